//! Measures the encoder on this machine, in the same way as the peer that it is compared with (ONNX Runtime, by
//! `bench/onnxruntime_speed.py`): the first 512 texts, tokenized beforehand, best of three rounds after a warm-up; and one query of 12 tokens, on one thread.
//!
//! Usage: `encoder_speed MODEL_DIR DOCS_JSONL_GZ [threads] [f32|bf16|int8] [avx512|avx2|portable]`. Prints one line of JSON for each precision that this processor has, or for the one
//! that is named.

mod documents;

use ragged_kernels::{CpuDevice, Device, DeviceError, Instructions, Model, Precision, TokenSequence};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TEXTS: usize = 512;
const ROUNDS: usize = 3;
const QUERY: &str = "what does exercise do for the health of old mice";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model_folder, texts, rest @ ..] = arguments.as_slice() else {
        return Err("usage: encoder_speed MODEL_DIR DOCS_JSONL_GZ [threads] [f32|bf16|int8] [avx512|avx2|portable]".into());
    };
    let threads = match rest.first() {
        Some(threads) => threads.parse()?,
        None => 2,
    };
    let instructions = match rest.get(2) {
        Some(name) => Instructions::available()
            .into_iter()
            .find(|set| set.name() == name)
            .ok_or("this processor does not have these instructions")?,
        None => Instructions::detect(),
    };

    let model = Arc::new(Model::load(Path::new(model_folder))?);
    let sequences = documents::read(Path::new(texts), TEXTS)?
        .iter()
        .map(|document| model.tokenizer().encode(&document.whole()))
        .collect::<Result<Vec<TokenSequence>, _>>()?;
    let named = rest.get(1).map(|name| name.parse::<Precision>()).transpose()?;
    for precision in Precision::ALL {
        if named.is_some_and(|named| named != precision) {
            continue;
        }
        let pack_start = Instant::now();
        match CpuDevice::with_instructions(Arc::clone(&model), threads, precision, instructions) {
            Err(DeviceError::PrecisionUnavailable { .. }) if named.is_none() => {}
            device => println!("{}", measure(&device?, &model, &sequences, pack_start.elapsed())?),
        }
    }
    Ok(())
}

fn measure(
    device: &CpuDevice,
    model: &Model,
    sequences: &[TokenSequence],
    pack_time: Duration,
) -> Result<serde_json::Value, Box<dyn Error>> {
    let tokens: usize = sequences.iter().map(TokenSequence::len).sum();
    let processor_start = processor_time();
    let round = best_of_rounds(ROUNDS, || device.embed(sequences).map(drop))?;
    // All rounds and the warm-up: this figure moves less when the machine has other work too.
    let processor_time = (processor_time() - processor_start) / (ROUNDS + 1) as u32;

    let query = [model.tokenizer().encode(QUERY)?];
    assert_eq!(query[0].len(), 12, "the query has 12 tokens");
    let query_time = best_of_rounds(100, || device.embed(&query).map(drop))?;
    Ok(serde_json::json!({
        "device": device.name(),
        "instructions": device.instructions().name(),
        "precision": device.precision().name(),
        "is_default": device.precision() == CpuDevice::fastest_as_good_as_f32(model),
        "threads": device.threads(),
        "texts": sequences.len(),
        "tokens": tokens,
        "tokens_per_s": (tokens as f64 / round.as_secs_f64()).round(),
        "processor_us_per_token": (processor_time.as_secs_f64() * 1e8 / tokens as f64).round() / 100.0,
        "query_12_tokens_ms": (query_time.as_secs_f64() * 1e6).round() / 1e3,
        "pack_ms": (pack_time.as_secs_f64() * 1e3).round(),
    }))
}

/// The shortest of `rounds` runs after one that does not count.
fn best_of_rounds<E>(rounds: usize, mut run: impl FnMut() -> Result<(), E>) -> Result<Duration, E> {
    run()?;
    let mut best = Duration::MAX;
    for _ in 0..rounds {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}

/// Processor time of all threads so far; zero where it is not known.
fn processor_time() -> Duration {
    #[cfg(unix)]
    {
        // SAFETY: zeros are a valid value of this plain structure.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a structure of the right type.
        unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
        let micros = usage.ru_utime.tv_sec * 1_000_000 + usage.ru_utime.tv_usec;
        Duration::from_micros(micros as u64)
    }
    #[cfg(not(unix))]
    Duration::ZERO
}
