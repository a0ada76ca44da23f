//! Where tests find the model and the shared data, and how they say that something is not there.

#[allow(dead_code)] // each program of tests uses a part of it
pub mod tiny_model;

use std::io::Write;
use std::path::PathBuf;

/// The folder of all-MiniLM-L6-v2: `RAGGED_MODEL_DIR`, or where `make test` installs it.
pub fn model_folder() -> Option<PathBuf> {
    let folder = match std::env::var_os("RAGGED_MODEL_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let data = std::env::var_os("XDG_DATA_HOME")
                .map(PathBuf::from)
                .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))?;
            data.join("ragged/models/all-MiniLM-L6-v2")
        }
    };
    present_or_say(folder, "config.json", "the model", "RAGGED_MODEL_DIR")
}

/// The folder of shared data: `RAGGED_SHARED`, or `shared` beside the repository.
#[allow(dead_code)]
pub fn shared_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("RAGGED_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    present_or_say(folder, "data", "the shared data", "RAGGED_SHARED")
}

fn present_or_say(folder: PathBuf, inside: &str, what: &str, variable: &str) -> Option<PathBuf> {
    if folder.join(inside).exists() {
        return Some(folder);
    }
    // Written past the test harness, which keeps what a passing test prints to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what} is not in {} (set {variable} to its folder)", folder.display());
    None
}
