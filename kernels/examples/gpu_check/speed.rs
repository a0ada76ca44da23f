//! How fast the encoder and exact search are, as parts of the GPU's limits.

use crate::comparison::{noise, sequences};
use half::f16;
use ragged_kernels::cuda::{AttentionWay, AttentionWork, CudaRows, EncoderOptions, Gpu, Limits, measure_attention};
use ragged_kernels::{CudaDevice, Device, EncoderConfiguration, Model};
use serde_json::{Value, json};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

const ENCODER_REPEATS: usize = 7;
const UNCOUNTED: usize = 3;
const QUERY_REPEATS: usize = 500;
const SEARCH_REPEATS: usize = 15;
/// Rows that are searched: a part of them first, then more.
const SEARCH_ROWS: [usize; 3] = [10_000, 100_000, MOST_ROWS];
const MOST_ROWS: usize = 1_000_000;
const SEARCH_DIMENSION: usize = 384;
const HITS: usize = 10;

/// Tokens a second by length and batch.
pub fn encoder(device: &CudaDevice, model: &Model, limits: &Limits) -> Result<Vec<Value>, Box<dyn Error>> {
    println!("\nencoder, vectors on the processor again at the end (median of {ENCODER_REPEATS})");
    println!("  {:>6} {:>6} {:>14} {:>10} {:>22}", "tokens", "batch", "tokens/s", "ms", "of the product's rate");
    let mut results = Vec::new();
    for tokens in [16, 64, 256] {
        for batch in [1, 32, 512, 2_048] {
            let sequences = sequences(&vec![tokens; batch]);
            let seconds = median(ENCODER_REPEATS, || device.embed(&sequences).map(drop))?;
            let per_second = (tokens * batch) as f64 / seconds;
            let part = per_second * operations_of_a_token(model.configuration(), tokens) / limits.product_per_second;
            println!("  {tokens:>6} {batch:>6} {per_second:>14.0} {:>10.3} {:>20.1} %", seconds * 1e3, part * 100.0);
            results.push(json!({
                "tokens": tokens, "batch": batch, "tokens_per_second": per_second, "seconds": seconds, "of_product_rate": part,
            }));
        }
    }
    Ok(results)
}

/// Tokens a second of two threads that embed at once, as a node does: while one batch computes, the next is packed and copied.
pub fn two_at_once(device: &CudaDevice, model: &Model, limits: &Limits) -> Result<Value, Box<dyn Error>> {
    let (tokens, batch) = (256, 512);
    let sequences = sequences(&vec![tokens; batch]);
    let each = || times(ENCODER_REPEATS, || device.embed(&sequences).map(drop));
    let begun = Instant::now();
    std::thread::scope(|threads| {
        let two = [threads.spawn(each), threads.spawn(each)];
        two.into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?.map(drop).map_err(|fault| fault.to_string()))
    })?;
    let embedded = 2 * (ENCODER_REPEATS + UNCOUNTED) * tokens * batch;
    let per_second = embedded as f64 / begun.elapsed().as_secs_f64();
    let part = per_second * operations_of_a_token(model.configuration(), tokens) / limits.product_per_second;
    println!("  two batches of {batch} at once: {per_second:.0} tokens/s, {:.1} % of the product's rate", part * 100.0);
    Ok(json!({ "tokens": tokens, "batch": batch, "tokens_per_second": per_second, "of_product_rate": part }))
}

/// Rounds in which ways of working take turns.
const ROUNDS: usize = 3;

const ATTENTION_WAYS: [AttentionWay; 2] = [AttentionWay::Warps, AttentionWay::Warpgroups];

/// Attention alone, in each way: about 16,384 rows of a layer each.
pub fn attention(gpu: &Gpu) -> Result<Vec<Value>, Box<dyn Error>> {
    println!("\nattention alone, 16,384 rows of 384 values, microseconds (best of several rounds)");
    println!("  {:>6} {:>6} {:>6} {:>10} {:>14}", "tokens", "texts", "head", "warps", "warpgroups");
    let mut results = Vec::new();
    for head_dimension in [32, 64] {
        for tokens in [16, 64, 128, 200, 256, 512] {
            let texts = 16_384 / tokens;
            let work = AttentionWork { lengths: vec![tokens; texts], heads: 384 / head_dimension, head_dimension };
            let mut seconds = [0.0; ATTENTION_WAYS.len()];
            for (way, seconds) in ATTENTION_WAYS.into_iter().zip(&mut seconds) {
                *seconds = measure_attention(gpu, &work, way)?;
            }
            let [warps, warpgroups] = seconds.map(|seconds| seconds * 1e6);
            println!("  {tokens:>6} {:>6} {head_dimension:>6} {warps:>10.1} {warpgroups:>14.1}", texts);
            results.push(json!({ "tokens": tokens, "texts": texts, "head_dimension": head_dimension, "seconds": seconds }));
        }
    }
    Ok(results)
}

/// Rows that pass together. As parts are even, only their number counts: of 512 texts of 256 tokens these make 10, 8, 6, 4 and 2 parts for two queues, and
/// what lies between them makes the same parts.
const WAYS_ROWS: [usize; 5] = [14_336, 16_384, 24_576, 32_768, 65_536];

/// 512 texts of 256 tokens with the encoder's ways of working, which take turns, so that none has the better moments of the machine.
pub fn ways(gpu: &Gpu, model: &Arc<Model>, limits: &Limits) -> Result<Vec<Value>, Box<dyn Error>> {
    let (tokens, batch) = (256, 512);
    println!("\nways of encoding {batch} texts of {tokens} tokens (best of {ROUNDS} medians of {ENCODER_REPEATS}, in turns)");
    println!("  {:<58} {:>14} {:>10} {:>22}", "", "tokens/s", "ms", "of the product's rate");
    let usual = EncoderOptions::default();
    let mut all = Vec::new();
    for attention in ATTENTION_WAYS {
        all.extend(WAYS_ROWS.map(|rows| EncoderOptions { attention, rows, ..usual }));
    }
    all.extend([3, 4].map(|lanes| EncoderOptions { lanes, ..usual }));
    let devices = all.iter().map(|options| CudaDevice::with(gpu, model.clone(), *options)).collect::<Result<Vec<_>, _>>()?;
    let sequences = sequences(&vec![tokens; batch]);
    let mut best = vec![f64::INFINITY; all.len()];
    for _ in 0..ROUNDS {
        for (device, best) in devices.iter().zip(&mut best) {
            *best = best.min(median(ENCODER_REPEATS, || device.embed(&sequences).map(drop))?);
        }
    }
    let mut results = Vec::new();
    for (options, seconds) in all.iter().zip(best) {
        let per_second = (tokens * batch) as f64 / seconds;
        let part = per_second * operations_of_a_token(model.configuration(), tokens) / limits.product_per_second;
        let EncoderOptions { attention, lanes, rows } = *options;
        let name = format!("{lanes} lanes, {rows} rows, attention: {attention:?}");
        println!("  {name:<58} {per_second:>14.0} {:>10.3} {:>20.1} %", seconds * 1e3, part * 100.0);
        results.push(json!({ "way": name, "tokens_per_second": per_second, "seconds": seconds, "of_product_rate": part }));
    }
    Ok(results)
}

/// Operations of the products and of attention for one token of a sequence of so many.
fn operations_of_a_token(configuration: &EncoderConfiguration, tokens: usize) -> f64 {
    let EncoderConfiguration { hidden_size, intermediate_size, layers, .. } = *configuration;
    let linear = 4 * hidden_size * hidden_size + 2 * hidden_size * intermediate_size;
    let attention = 2 * tokens * hidden_size;
    (2 * layers * (linear + attention)) as f64
}

/// How long a query of 16 tokens takes, from its tokens to its vector.
pub fn query(device: &CudaDevice) -> Result<Value, Box<dyn Error>> {
    let query = sequences(&[16]);
    let mut seconds = times(QUERY_REPEATS, || device.embed(&query).map(drop))?;
    seconds.sort_by(f64::total_cmp);
    let at = |part: f64| seconds[(seconds.len() as f64 * part) as usize];
    println!("\na query of 16 tokens: {:.3} ms (median), {:.3} ms (95 of 100)", at(0.5) * 1e3, at(0.95) * 1e3);
    Ok(json!({ "tokens": 16, "median_seconds": at(0.5), "p95_seconds": at(0.95) }))
}

/// Queries a second of exact search, by rows and batch.
pub fn search(gpu: &Gpu, limits: &Limits) -> Result<Vec<Value>, Box<dyn Error>> {
    println!("\nexact search, {HITS} of rows of {SEARCH_DIMENSION} halves (median of {SEARCH_REPEATS})");
    println!(
        "  {:>9} {:>6} {:>12} {:>10} {:>20} {:>22}",
        "rows", "batch", "queries/s", "ms", "of the copy's rate", "of the product's rate"
    );
    let mut rows = CudaRows::new(gpu, SEARCH_DIMENSION)?;
    let mut results = Vec::new();
    for count in SEARCH_ROWS {
        append_up_to(&mut rows, count)?;
        results.extend(search_of(&rows, limits)?);
    }
    Ok(results)
}

fn search_of(rows: &CudaRows, limits: &Limits) -> Result<Vec<Value>, Box<dyn Error>> {
    let count = rows.count();
    let bytes = (count * SEARCH_DIMENSION * size_of::<f16>()) as f64;
    let mut results = Vec::new();
    for batch in [1, 4, 16, 64, 256] {
        let queries = noise(batch * SEARCH_DIMENSION, 77);
        let queries: Vec<&[f32]> = queries.chunks_exact(SEARCH_DIMENSION).collect();
        let seconds = median(SEARCH_REPEATS, || rows.top_k(&queries, None, HITS).map(drop))?;
        let of_copy = bytes / seconds / limits.copy_bytes_per_second;
        let of_product = 2.0 * (count * SEARCH_DIMENSION * batch) as f64 / seconds / limits.product_per_second;
        let per_second = batch as f64 / seconds;
        println!(
            "  {count:>9} {batch:>6} {per_second:>12.0} {:>10.3} {:>18.1} % {:>20.1} %",
            seconds * 1e3,
            of_copy * 100.0,
            of_product * 100.0
        );
        results.push(json!({
            "rows": count, "batch": batch, "queries_per_second": per_second, "seconds": seconds, "of_copy_rate": of_copy, "of_product_rate": of_product,
        }));
    }
    Ok(results)
}

/// Adds rows until there are so many.
fn append_up_to(rows: &mut CudaRows, count: usize) -> Result<(), Box<dyn Error>> {
    const PART: usize = 100_000;
    while rows.count() < count {
        let there = rows.count();
        let part = PART.min(count - there);
        let halves: Vec<f16> = noise(part * SEARCH_DIMENSION, there as u64).into_iter().map(f16::from_f32).collect();
        rows.append(&halves)?;
    }
    Ok(())
}

/// A part of the encoder as large as they get, a query, and searches of one and of many, twice each.
pub fn one_of_each(gpu: &Gpu, device: &CudaDevice) -> Result<(), Box<dyn Error>> {
    let mut rows = CudaRows::new(gpu, SEARCH_DIMENSION)?;
    append_up_to(&mut rows, MOST_ROWS)?;
    let queries = noise(256 * SEARCH_DIMENSION, 77);
    let queries: Vec<&[f32]> = queries.chunks_exact(SEARCH_DIMENSION).collect();
    for _ in 0..2 {
        device.embed(&sequences(&[256; 64]))?;
        for batch in [1, 256] {
            rows.top_k(&queries[..batch], None, HITS)?;
        }
    }
    device.embed(&sequences(&[16]))?;
    Ok(())
}

fn median<E>(repeats: usize, work: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut seconds = times(repeats, work)?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[repeats / 2])
}

/// Seconds of each repeat, after some that are not counted.
fn times<E>(repeats: usize, mut work: impl FnMut() -> Result<(), E>) -> Result<Vec<f64>, E> {
    for _ in 0..UNCOUNTED {
        work()?;
    }
    let mut seconds = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let begun = Instant::now();
        work()?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    Ok(seconds)
}
