//! Rows that come, are searched and go, beside an encoder that is started meanwhile and records its work: what a node does with one GPU.

use crate::comparison::{COSINE_MIN, SCORE_TOLERANCE, least_cosine, noise, report, sequences};
use half::f16;
use ragged_kernels::cuda::{CudaLane, CudaRows, Gpu, GpuError};
use ragged_kernels::{CpuDevice, CudaDevice, Device, DeviceError, Model, exact};
use serde_json::{Value, json};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Values of the longest rows that take turns.
const DIMENSION_MAX: usize = 4_096;
/// Rows of each set.
const ROWS: usize = 3_000;
/// Encoders that are started one after the other.
const ENCODERS: usize = 4;
/// Part of the GPU's memory that may be missing in the end: the driver keeps some.
const MEMORY_LOST_MAX: f64 = 0.01;

/// Has two threads bring, search and drop rows that share a lane, while encoders are started and record queries of all kinds.
pub fn run(gpu: &Gpu, model: &Arc<Model>, cpu: &CpuDevice) -> Result<Value, Box<dyn Error>> {
    let before = gpu.memory()?.free_bytes;
    let lane = Arc::new(CudaLane::new(gpu, DIMENSION_MAX)?);
    let ended = AtomicBool::new(false);
    let (worst, least) = std::thread::scope(|threads| {
        let searching: Vec<_> = [[384, 64, 1_024], [4_096, 384, 100]]
            .map(|dimensions| {
                let (lane, ended) = (&lane, &ended);
                threads.spawn(move || come_and_go(lane, dimensions, ended))
            })
            .into();
        let least = encoders(gpu, model, cpu);
        ended.store(true, Ordering::Relaxed);
        let worst: Result<Vec<f32>, String> = searching
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?.map_err(|fault| fault.to_string()))
            .collect();
        (worst.map(|worst| worst.into_iter().fold(0.0, f32::max)), least)
    });
    drop(lane);
    let after = gpu.memory()?.free_bytes;
    let lost = before.saturating_sub(after) as f64 / before as f64;
    let (worst, least) = (worst?, least?);
    let passed = worst <= SCORE_TOLERANCE && least >= COSINE_MIN && lost <= MEMORY_LOST_MAX;
    let figures = json!({ "worst_score_difference": worst, "least_cosine": least, "part_of_memory_lost": lost });
    Ok(report("rows come and go while encoders start", passed, figures))
}

/// The worst difference of a score, as a part of what the lengths of query and row allow.
fn come_and_go(lane: &Arc<CudaLane>, dimensions: [usize; 3], ended: &AtomicBool) -> Result<f32, GpuError> {
    let sets = dimensions.map(|dimension| {
        let halves: Vec<f16> = noise(ROWS * dimension, 3).into_iter().map(f16::from_f32).collect();
        let query = noise(dimension, 4);
        let expected = exact::top_k(&query, &halves, dimension, None, 10);
        (dimension, halves, query, expected)
    });
    let mut worst = 0.0f32;
    for (dimension, halves, query, expected) in sets.iter().cycle() {
        if ended.load(Ordering::Relaxed) {
            return Ok(worst);
        }
        let mut rows = CudaRows::with_lane(lane.clone(), *dimension);
        rows.reserve(ROWS)?;
        for part in halves.chunks(ROWS.div_ceil(3) * dimension) {
            rows.append(part)?;
        }
        let found = rows.top_k_of(&[query], None, 10)?;
        if found[0].len() != expected.len() {
            return Ok(f32::INFINITY);
        }
        for (found, expected) in found[0].iter().zip(expected) {
            worst = worst.max((found.score - expected.score).abs() / *dimension as f32);
        }
    }
    Ok(worst)
}

/// The least cosine of what new encoders give, each of which records its work for queries of some lengths first.
fn encoders(gpu: &Gpu, model: &Arc<Model>, cpu: &CpuDevice) -> Result<f64, DeviceError> {
    let queries = [12, 30, 60, 100].map(|length| sequences(&[length]));
    let mut least = f64::INFINITY;
    for _ in 0..ENCODERS {
        let device = CudaDevice::new(gpu, model.clone())?;
        for query in queries.iter().chain(&queries) {
            least = least.min(least_cosine(&device.embed(query)?, &cpu.embed(query)?, model.dimension()));
        }
    }
    Ok(least)
}
