//! The GPU's results beside the processor's.

use half::f16;
use ragged_kernels::cuda::{AttentionWay, AttentionWork, CudaRows, Gpu, KernelComparison};
use ragged_kernels::cuda::{compare_attention, compare_kernels, compare_products, reset};
use ragged_kernels::{CpuDevice, CudaDevice, Device, DeviceError, Model, Scored, TokenSequence, exact};
use roaring::RoaringBitmap;
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

/// How near vectors must be.
pub const COSINE_MIN: f64 = 0.9995;
/// How far the square of a vector's length may be from 1.
const LENGTH_TOLERANCE: f64 = 1e-4;
/// How far scores may be from one another, as a part of what the lengths of query and row allow.
pub const SCORE_TOLERANCE: f32 = 2e-6;
/// How far results of attention may be from one another: they are below 1, and weights are rounded to halves.
const ATTENTION_TOLERANCE: f32 = 4e-3;

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
    let mut results = run_kernels(gpu)?;
    results.extend(compare_products(gpu)?.into_iter().map(kernel));
    for (name, lengths) in batches.into_iter().filter(|(_, lengths)| !small || lengths.len() <= SMALL_BATCH) {
        let sequences = sequences(&lengths);
        let least = least_cosine(&device.embed(&sequences)?, &cpu.embed(&sequences)?, model.dimension());
        results.push(report(&format!("encoder: {name}"), least >= COSINE_MIN, json!({ "least_cosine": least })));
    }
    results.push(at_once(device, cpu, model)?);
    results.push(report("encoder: none", device.embed(&[])?.is_empty(), Value::Null));
    results.extend(run_attention(gpu, small)?);
    results.extend(run_searches(gpu, small)?);
    Ok(results)
}

/// The kernels that use no library of CUDA's, each by itself.
pub fn run_kernels(gpu: &Gpu) -> Result<Vec<Value>, Box<dyn Error>> {
    Ok(compare_kernels(gpu)?.into_iter().map(kernel).collect())
}

fn kernel(compared: KernelComparison) -> Value {
    let KernelComparison { name, difference, allowed } = compared;
    report(&name, difference <= allowed, json!({ "largest_difference": difference }))
}

/// A GPU that was reset as after a failure: not while something is on it, and then as good as before, also for threads that had turned to it.
pub fn after_reset(number: usize, kernels: &Path, model: &Arc<Model>, cpu: &CpuDevice) -> Result<Value, Box<dyn Error>> {
    let sequences = sequences(&[16, 100, 9]);
    let expected = cpu.embed(&sequences)?;
    let open = || CudaDevice::new(&Gpu::open(number, kernels)?, model.clone());
    let mut cosines = Vec::new();
    let device = open()?;
    cosines.push(least_cosine(&device.embed(&sequences)?, &expected, model.dimension()));
    let is_refused = reset(number).is_err();
    cosines.push(least_cosine(&device.embed(&sequences)?, &expected, model.dimension()));
    drop(device);
    reset(number)?;
    let device = open()?;
    cosines.push(least_cosine(&device.embed(&sequences)?, &expected, model.dimension()));
    let passed = is_refused && cosines.iter().all(|cosine| *cosine >= COSINE_MIN);
    Ok(report(
        "a reset: refused while in use, and the encoder after it",
        passed,
        json!({ "refused": is_refused, "least_cosines": cosines }),
    ))
}

/// The kernels of attention beside one another, over every length of a few blocks, short sequences alone, and sequences of many steps.
fn run_attention(gpu: &Gpu, small: bool) -> Result<Vec<Value>, Box<dyn Error>> {
    let batches = [
        ("short", (1..=64).collect::<Vec<usize>>()),
        ("every length to 300", (1..=300).step_by(if small { 31 } else { 1 }).collect()),
        ("long", vec![512, 1_000, 513, 64, 385]),
    ];
    let mut results = Vec::new();
    for (name, lengths) in batches {
        for head_dimension in [32, 64] {
            let work = AttentionWork { lengths: lengths.clone(), heads: 3, head_dimension };
            let difference = compare_attention(gpu, &work, [AttentionWay::Warps, AttentionWay::Warpgroups])?;
            let name = format!("attention: {name}, heads of {head_dimension}");
            results.push(report(&name, difference <= ATTENTION_TOLERANCE, json!({ "largest_difference": difference })));
        }
    }
    Ok(results)
}

/// The searches of [`run`].
pub fn run_searches(gpu: &Gpu, small: bool) -> Result<Vec<Value>, Box<dyn Error>> {
    let mut results = Vec::new();
    let searches = [
        (1, 1, 1, 1),
        (1_000, 384, 3, 10),
        (1_500, 200, 40, 5),
        (2_000, 384, 200, 10),
        (50_000, 384, 70, 100),
        (300_000, 100, 5, 1_000),
        (40_000, 1_024, 300, 10),
    ];
    for (rows, dimension, queries, k) in searches.into_iter().filter(|(rows, ..)| !small || *rows <= SMALL) {
        for filtered in [false, true] {
            results.push(compare_search(gpu, rows, dimension, queries, k, filtered)?);
        }
    }
    Ok(results)
}

/// Several threads at once, whose queries and batches take turns on the lanes; shapes that were not recorded before among them.
fn at_once(device: &CudaDevice, cpu: &CpuDevice, model: &Model) -> Result<Value, Box<dyn Error>> {
    let lengths = [vec![33], vec![50], vec![5; 300], vec![120, 7, 64], vec![12]];
    let batches: Vec<Vec<TokenSequence>> = lengths.iter().map(|lengths| sequences(lengths)).collect();
    let expected = batches.iter().map(|batch| cpu.embed(batch)).collect::<Result<Vec<_>, _>>()?;
    let least = std::thread::scope(|threads| {
        let compare = |first: usize| {
            let (batches, expected) = (&batches, &expected);
            threads.spawn(move || -> Result<f64, DeviceError> {
                let mut least = f64::INFINITY;
                for turn in 0..40 {
                    let number = (first + turn) % batches.len();
                    least = least.min(least_cosine(&device.embed(&batches[number])?, &expected[number], model.dimension()));
                }
                Ok(least)
            })
        };
        let running: Vec<_> = (0..4).map(compare).collect();
        let ended = running.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked"));
        ended.collect::<Result<Vec<_>, _>>()
    })?;
    let least = least.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().fold(f64::INFINITY, f64::min);
    Ok(report("encoder: four threads at once", least >= COSINE_MIN, json!({ "least_cosine": least })))
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
    let mut sound = found.len() == asked.len();
    for (number, (query, found)) in asked.iter().zip(&found).enumerate() {
        let row = |position: u32| &halves[position as usize * dimension..][..dimension];
        let ordered = found.windows(2).all(|two| two[0].score >= two[1].score);
        let positions: RoaringBitmap = found.iter().map(|hit| hit.position).collect();
        let is_there =
            |hit: &Scored| (hit.position as usize) < rows && allowed.is_none_or(|allowed| allowed.contains(hit.position));
        sound &= ordered && positions.len() == found.len() as u64 && found.iter().all(is_there);
        if !sound {
            break;
        }
        for hit in found {
            worst = worst.max((hit.score - exact::dot(query, row(hit.position))).abs() / dimension as f32);
        }
        // The processor takes its time: the first and the last of all groups of queries.
        if number % 64 < 2 || number + 1 == asked.len() {
            let expected = exact::top_k(query, &halves, dimension, allowed, k);
            sound &= found.len() == expected.len();
            for (found, expected) in found.iter().zip(&expected) {
                worst = worst.max((found.score - expected.score).abs() / dimension as f32);
            }
        }
    }
    let name = format!(
        "search: {queries} queries, {k} of {rows} rows of {dimension}{}",
        if filtered { ", a quarter of them allowed" } else { "" }
    );
    Ok(report(&name, sound && worst <= SCORE_TOLERANCE, json!({ "worst_score_difference": worst })))
}

/// A line for people, and the same for the file.
pub fn report(name: &str, passed: bool, figures: Value) -> Value {
    println!("  {:<70} {}  {figures}", name, if passed { "ok" } else { "FAILED" });
    json!({ "name": name, "passed": passed, "figures": figures })
}

/// The least cosine of vectors that should be the same and of length 1; less than all cosines when one of them is not.
pub fn least_cosine(left: &[f32], right: &[f32], dimension: usize) -> f64 {
    assert_eq!(left.len(), right.len());
    let product = |left: &[f32], right: &[f32]| -> f64 {
        left.iter().zip(right).map(|(left, right)| f64::from(*left) * f64::from(*right)).sum()
    };
    let cosine = |(left, right): (&[f32], &[f32])| match (product(left, left) - 1.0).abs() < LENGTH_TOLERANCE {
        true => product(left, right),
        false => f64::NEG_INFINITY, // also what is no number
    };
    left.chunks_exact(dimension).zip(right.chunks_exact(dimension)).map(cosine).fold(f64::INFINITY, f64::min)
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
