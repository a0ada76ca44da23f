//! Checks and measures this machine's GPU, without anything else of ragged: its vectors and its exact search against the processor's, then how fast both are,
//! beside the chip's own limits and, where Python has it, sentence-transformers with the same weights and texts.
//!
//! ```text
//! gpu_check pack MODEL_DIR FOLDER    a model with its weights as halves, small enough to be carried to a GPU machine
//! gpu_check run MODEL_DIR [--gpu N] [--json FILE] [--kernels FOLDER] [--peer]
//! gpu_check compare MODEL_DIR [--gpu N] [--kernels FOLDER]    small comparisons only, for compute-sanitizer
//! gpu_check compare-own MODEL_DIR [--gpu N] [--kernels FOLDER]    kernels by themselves and searches, without products of a library that sanitizers stumble over
//! gpu_check measure MODEL_DIR [--gpu N] [--json FILE] [--kernels FOLDER]    the speeds only
//! gpu_check ways MODEL_DIR [--gpu N] [--json FILE] [--kernels FOLDER]    the kernels of attention, and the encoder's ways of working, beside one another
//! gpu_check profile MODEL_DIR [--gpu N] [--kernels FOLDER]    each kind of work a few times and nothing else, for a profiler
//! ```
//!
//! Prints a table, writes JSON, and exits with 1 when a comparison fails. docs/gpu.md says more.

mod beside;
mod comparison;
mod pack;
mod peer;
mod speed;

use ragged_kernels::cuda::{Gpu, Limits, gpus, measure_limits};
use ragged_kernels::{CpuDevice, CudaDevice, Device, Model, Precision};
use serde_json::{Value, json};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

const USAGE: &str =
    "usage: gpu_check pack MODEL_DIR FOLDER\n       gpu_check run MODEL_DIR [--gpu N] [--json FILE] [--kernels FOLDER] [--peer]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["pack", model, folder] => pack::pack(Path::new(model), Path::new(folder)).map(|()| true),
        ["run", model, rest @ ..] => Options::read(model, rest).and_then(|options| run(&options)),
        ["compare", model, rest @ ..] => Options::read(model, rest).and_then(|options| compare(&options)),
        ["compare-own", model, rest @ ..] => Options::read(model, rest).and_then(|options| compare_own(&options)),
        ["measure", model, rest @ ..] => Options::read(model, rest).and_then(|options| measure(&options)),
        ["ways", model, rest @ ..] => Options::read(model, rest).and_then(|options| ways(&options)),
        ["profile", model, rest @ ..] => Options::read(model, rest).and_then(|options| profile(&options)),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            eprintln!("gpu_check: {fault}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    model: PathBuf,
    gpu: usize,
    json: Option<PathBuf>,
    kernels: PathBuf,
    peer: bool,
}

impl Options {
    fn read(model: &str, rest: &[&str]) -> Result<Self, Box<dyn Error>> {
        let kernels = std::env::temp_dir().join("ragged-kernels");
        let mut options = Options { model: model.into(), gpu: 0, json: None, kernels, peer: false };
        let mut rest = rest.iter();
        while let Some(name) = rest.next() {
            let mut value = || rest.next().ok_or(format!("{name} needs a value"));
            match *name {
                "--gpu" => options.gpu = value()?.parse()?,
                "--json" => options.json = Some(value()?.into()),
                "--kernels" => options.kernels = value()?.into(),
                "--peer" => options.peer = true,
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }
}

/// What has been found so far, written out after every step: a machine that is lent may be taken back.
struct Findings {
    all: serde_json::Map<String, Value>,
    path: Option<PathBuf>,
}

impl Findings {
    fn add(&mut self, name: &str, what: impl Into<Value>) -> Result<(), Box<dyn Error>> {
        self.all.insert(name.to_owned(), what.into());
        if let Some(path) = &self.path {
            std::fs::write(path, serde_json::to_vec_pretty(&self.all)?)?;
        }
        Ok(())
    }
}

/// What is compared and measured.
struct Ground {
    gpu: Gpu,
    model: Arc<Model>,
    device: CudaDevice,
    cpu: CpuDevice,
}

impl Ground {
    fn open(options: &Options) -> Result<Self, Box<dyn Error>> {
        println!("GPUs: {:?}", gpus()?);
        // A device that is opened, used and closed leaves nothing that is in the way of the next.
        let model = Arc::new(Model::load(&options.model)?);
        CudaDevice::new(&Gpu::open(options.gpu, &options.kernels)?, model.clone())?.embed(&comparison::sequences(&[9]))?;
        let gpu = Gpu::open(options.gpu, &options.kernels)?;
        let about = gpu.description();
        println!("GPU {}: {}, {}, {} MiB", about.number, about.name, about.architecture, about.memory_bytes >> 20);
        let device = CudaDevice::new(&gpu, model.clone())?;
        let cpu = CpuDevice::new(model.clone(), std::thread::available_parallelism()?.get(), Precision::F32)?;
        Ok(Ground { gpu, model, device, cpu })
    }
}

fn all_passed(comparisons: &[Value]) -> bool {
    comparisons.iter().all(|comparison| comparison["passed"] == true)
}

/// Whether the small comparisons passed.
fn compare(options: &Options) -> Result<bool, Box<dyn Error>> {
    let Ground { gpu, model, device, cpu } = Ground::open(options)?;
    Ok(all_passed(&comparison::run(&gpu, &device, &cpu, &model, true)?))
}

/// Whether the comparisons of kernels and the small ones of searches passed.
fn compare_own(options: &Options) -> Result<bool, Box<dyn Error>> {
    let gpu = Gpu::open(options.gpu, &options.kernels)?;
    let searches = comparison::run_searches(&gpu, true)?;
    Ok(all_passed(&searches) & all_passed(&comparison::run_kernels(&gpu)?))
}

/// Work for a profiler to look at: one full part of the encoder, and searches of one and of many queries.
fn profile(options: &Options) -> Result<bool, Box<dyn Error>> {
    let Ground { gpu, device, .. } = Ground::open(options)?;
    speed::one_of_each(&gpu, &device)?;
    Ok(true)
}

/// The speeds, without any comparison.
fn measure(options: &Options) -> Result<bool, Box<dyn Error>> {
    let ground = Ground::open(options)?;
    let mut findings = Findings { all: serde_json::Map::new(), path: options.json.clone() };
    measure_all(&ground, &mut findings)?;
    Ok(true)
}

/// The kernels of attention and the encoder's ways of working beside one another.
fn ways(options: &Options) -> Result<bool, Box<dyn Error>> {
    let Ground { gpu, model, .. } = Ground::open(options)?;
    let mut findings = Findings { all: serde_json::Map::new(), path: options.json.clone() };
    let limits = measure_limits(&gpu)?;
    print_limits(&limits);
    findings.add("attention", speed::attention(&gpu)?)?;
    findings.add("ways", speed::ways(&gpu, &model, &limits)?)?;
    Ok(true)
}

fn print_limits(limits: &Limits) {
    println!(
        "\nlimits: {:.0} TFLOP/s (8192 x 8192 x 8192 of halves, cuBLASLt), {:.2} TB/s (copy within its memory)",
        limits.product_per_second / 1e12,
        limits.copy_bytes_per_second / 1e12
    );
}

/// Measures the limits and all speeds; returns those of the encoder.
fn measure_all(Ground { gpu, model, device, .. }: &Ground, findings: &mut Findings) -> Result<Vec<Value>, Box<dyn Error>> {
    let limits = measure_limits(gpu)?;
    print_limits(&limits);
    let limits_found =
        json!({ "product_flop_per_second": limits.product_per_second, "copy_bytes_per_second": limits.copy_bytes_per_second });
    findings.add("limits", limits_found)?;
    let encoder = speed::encoder(device, model, &limits)?;
    findings.add("encoder", encoder.clone())?;
    findings.add("two_at_once", speed::two_at_once(device, model, &limits)?)?;
    findings.add("query", speed::query(device)?)?;
    findings.add("search", speed::search(gpu, &limits)?)?;
    Ok(encoder)
}

/// Whether all comparisons passed.
fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    let ground = Ground::open(options)?;
    let Ground { gpu, model, device, cpu } = &ground;
    let about = gpu.description().clone();
    let mut findings = Findings { all: serde_json::Map::new(), path: options.json.clone() };
    findings.add("model", model.name())?;
    findings.add("gpu", json!({ "name": about.name, "architecture": about.architecture, "memory_bytes": about.memory_bytes, "bandwidth_bytes": about.bandwidth_bytes }))?;
    println!("\ncomparisons with the processor");
    let mut comparisons = comparison::run(gpu, device, cpu, model, false)?;
    comparisons.push(beside::run(gpu, model, cpu)?);
    let mut passed = all_passed(&comparisons);
    findings.add("comparisons", comparisons)?;
    let encoder = measure_all(&ground, &mut findings)?;
    if options.peer {
        let peer = peer::run(&options.model, options.gpu, &encoder).unwrap_or_else(|fault| {
            println!("\nsentence-transformers did not run: {fault}");
            Value::Null
        });
        findings.add("sentence_transformers", peer)?;
    }
    // In the end: what follows a reset that goes wrong would say nothing.
    let Ground { gpu, model, device, cpu } = ground;
    drop((device, gpu));
    println!("\nafter a reset");
    let reset = comparison::after_reset(options.gpu, &options.kernels, &model, &cpu)?;
    passed &= reset["passed"] == true;
    findings.add("reset", reset)?;
    println!("\n{}", if passed { "all comparisons passed" } else { "COMPARISONS FAILED" });
    Ok(passed)
}
