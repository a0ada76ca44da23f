//! The GPU's results beside the processor's.

use half::f16;
use ragged_kernels::cuda::{CudaRows, Gpu};
use ragged_kernels::{CpuDevice, CudaDevice, Device, Model, TokenSequence, exact};
use roaring::RoaringBitmap;
use serde_json::{Value, json};
use std::error::Error;

/// How near vectors must be.
const COSINE_MIN: f64 = 0.9995;
/// How far scores may be from one another, as a part of what the lengths of query and row allow.
const SCORE_TOLERANCE: f32 = 2e-6;

/// Rows of a small search, at most.
const SMALL: usize = 2_000;
/// Texts of a small batch, at most.
const SMALL_BATCH: usize = 130;

/// Compares vectors of many kinds of batches, and hits of many kinds of searches; small ones only where each step takes long.
pub fn run(gpu: &Gpu, device: &CudaDevice, cpu: &CpuDevice, model: &Model, small: bool) -> Result<Vec<Value>, Box<dyn Error>> {
    let longest = model.max_tokens().max(model.configuration().positions);
    let batches: Vec<(&str, Vec<usize>)> = vec![
        ("one token", vec![1]),
        ("every length to 130", (1..=130).collect()),
        ("a query, asked twice", vec![7]),
        ("a query, asked twice", vec![7]),
        ("queries of other lengths", vec![16]),
        ("queries of other lengths", vec![17]),
        ("queries of other lengths", vec![100]),
        ("the longest", vec![longest, 1, longest]),
        ("512 of 256 tokens", vec![256.min(longest); 512]),
        ("10,000 of 1 to 40 tokens", (0..10_000).map(|number| 1 + number % 40).collect()),
    ];
    let mut results = Vec::new();
    for (name, lengths) in batches.into_iter().filter(|(_, lengths)| !small || lengths.len() <= SMALL_BATCH) {
        let sequences = sequences(&lengths);
        let least = least_cosine(&device.embed(&sequences)?, &cpu.embed(&sequences)?, model.dimension());
        results.push(report(&format!("encoder: {name}"), least >= COSINE_MIN, json!({ "least_cosine": least })));
    }
    results.push(report("encoder: none", device.embed(&[])?.is_empty(), Value::Null));
    let searches =
        [(1, 1, 1, 1), (1_000, 384, 3, 10), (50_000, 384, 70, 100), (300_000, 100, 5, 1_000), (40_000, 1_024, 300, 10)];
    for (rows, dimension, queries, k) in searches.into_iter().filter(|(rows, ..)| !small || *rows <= SMALL) {
        for filtered in [false, true] {
            results.push(compare_search(gpu, rows, dimension, queries, k, filtered)?);
        }
    }
    Ok(results)
}

fn compare_search(
    gpu: &Gpu,
    rows: usize,
    dimension: usize,
    queries: usize,
    k: usize,
    filtered: bool,
) -> Result<Value, Box<dyn Error>> {
    let halves = noise(rows * dimension, 1).into_iter().map(f16::from_f32).collect::<Vec<_>>();
    let asked = noise(queries * dimension, 2);
    let asked: Vec<&[f32]> = asked.chunks_exact(dimension).collect();
    let allowed: RoaringBitmap = (0..rows as u32).filter(|row| row.wrapping_mul(2_654_435_761) >> 30 == 0).collect();
    let allowed = filtered.then_some(&allowed);
    let mut on_gpu = CudaRows::new(gpu, dimension)?;
    for part in halves.chunks(rows.div_ceil(3) * dimension) {
        on_gpu.append(part)?;
    }
    let found = on_gpu.top_k(&asked, allowed, k)?;
    let mut worst = 0.0f32;
    let mut same = true;
    // The processor takes its time for each.
    for (query, found) in asked.iter().zip(&found).take(20) {
        let expected = exact::top_k(query, &halves, dimension, allowed, k);
        same &= found.len() == expected.len();
        for (found, expected) in found.iter().zip(&expected) {
            worst = worst.max((found.score - expected.score).abs() / dimension as f32);
        }
    }
    let name = format!(
        "search: {queries} queries, {k} of {rows} rows of {dimension}{}",
        if filtered { ", a quarter of them allowed" } else { "" }
    );
    Ok(report(&name, same && worst <= SCORE_TOLERANCE, json!({ "worst_score_difference": worst })))
}

fn report(name: &str, passed: bool, figures: Value) -> Value {
    println!("  {:<70} {}  {figures}", name, if passed { "ok" } else { "FAILED" });
    json!({ "name": name, "passed": passed, "figures": figures })
}

fn least_cosine(left: &[f32], right: &[f32], dimension: usize) -> f64 {
    assert_eq!(left.len(), right.len());
    let cosine = |(left, right): (&[f32], &[f32])| -> f64 {
        left.iter().zip(right).map(|(left, right)| f64::from(*left) * f64::from(*right)).sum()
    };
    // A vector that is no number must not be passed over.
    let worse = |least: f64, cosine: f64| if cosine.is_nan() { f64::NEG_INFINITY } else { least.min(cosine) };
    left.chunks_exact(dimension).zip(right.chunks_exact(dimension)).map(cosine).fold(f64::INFINITY, worse)
}

/// Sequences of these lengths; their tokens differ.
pub fn sequences(lengths: &[usize]) -> Vec<TokenSequence> {
    let mut token = 1_000;
    let mut next = || {
        token = (token * 31 + 7) % 30_000;
        token
    };
    lengths.iter().map(|length| TokenSequence((0..*length).map(|_| next()).collect())).collect()
}

/// Values between -1 and 1, by xorshift.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(2 * seed + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
