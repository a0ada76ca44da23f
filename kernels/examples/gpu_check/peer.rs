//! sentence-transformers with the same weights, beside us in the same run.

use serde_json::{Value, json};
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const SCRIPT: &str = include_str!("peer.py");

/// Runs the peer where Python has it; says so where it has not.
pub fn run(model: &Path, gpu: usize, ours: &[Value]) -> Result<Value, Box<dyn Error>> {
    let mut python = Command::new("python3");
    python.arg("-").arg(model).env("CUDA_VISIBLE_DEVICES", gpu.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn()?;
    python.stdin.take().ok_or("python takes no input")?.write_all(SCRIPT.as_bytes())?;
    let output = python.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("python ended with {}", output.status).into());
    }
    // Libraries may have said something before.
    let said = String::from_utf8_lossy(&output.stdout);
    let theirs: Value = serde_json::from_str(said.trim().lines().last().unwrap_or_default())?;
    println!("\nsentence-transformers {} with halves, {}", theirs["version"], theirs["attention"]);
    println!(
        "  {:>6} {:>6} {:>16} {:>16} {:>16} {:>12} {:>12}",
        "tokens", "batch", "its encode()", "its forward()", "ours", "to encode", "to forward"
    );
    let mut results = Vec::new();
    for figures in theirs["figures"].as_array().ok_or("the peer's figures are no list")? {
        let same = |our: &&Value| our["tokens"] == figures["tokens"] && our["batch"] == figures["batch"];
        let Some(our) = ours.iter().find(same) else { continue };
        let (encode, forward) = (figures["encode_tokens_per_second"].as_f64(), figures["forward_tokens_per_second"].as_f64());
        let (Some(encode), Some(forward), Some(our)) = (encode, forward, our["tokens_per_second"].as_f64()) else { continue };
        let (to_encode, to_forward) = (our / encode, our / forward);
        println!(
            "  {:>6} {:>6} {encode:>16.0} {forward:>16.0} {our:>16.0} {to_encode:>12.2} {to_forward:>12.2}",
            figures["tokens"], figures["batch"]
        );
        let mut figures = figures.clone();
        figures["ours_to_encode"] = json!(to_encode);
        figures["ours_to_forward"] = json!(to_forward);
        results.push(figures);
    }
    Ok(json!({ "version": theirs["version"], "attention": theirs["attention"], "figures": results }))
}
