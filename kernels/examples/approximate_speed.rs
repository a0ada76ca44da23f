//! Measures approximate search on this machine: how long an index takes to build, and for each effort how many of the nearest rows it finds and
//! how long a query takes, beside the exact search.
//!
//! Usage: `approximate_speed VECTORS QUERIES DIMENSION [lists]`: files of f32 in little endian, one vector after the other. One thread searches.

use ragged_kernels::approximate::{self, ApproximateIndex, Effort};
use ragged_kernels::exact;
use std::error::Error;
use std::time::Instant;

const DEPTH: usize = 10;
const FOUND: usize = 3 * DEPTH;
const BUILD_THREADS: usize = 2;
const EFFORTS: [(usize, usize); 12] =
    [(1, 100), (1, 200), (2, 100), (2, 200), (3, 100), (3, 200), (4, 200), (6, 200), (6, 400), (8, 400), (12, 400), (16, 800)];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [vectors, queries, dimension, rest @ ..] = arguments.as_slice() else {
        return Err("usage: approximate_speed VECTORS QUERIES DIMENSION [lists]".into());
    };
    let dimension: usize = dimension.parse()?;
    let vectors = exact::to_f16(&read(vectors)?);
    let queries = read(queries)?;
    let count = vectors.len() / dimension;
    let lists = match rest.first() {
        Some(lists) => lists.parse()?,
        None => 4 * count.isqrt(),
    };
    let begun = Instant::now();
    let mut bytes = Vec::new();
    approximate::build(&vectors, dimension, lists, BUILD_THREADS, &mut bytes)?;
    println!("{count} vectors, {lists} lists, {} bytes, built in {:?}", bytes.len(), begun.elapsed());
    let path = std::env::temp_dir().join(format!("approximate-speed-{}", std::process::id()));
    std::fs::write(&path, bytes)?;
    let index = ApproximateIndex::open(&path)?;
    std::fs::remove_file(&path)?;

    let queries: Vec<&[f32]> = queries.chunks_exact(dimension).collect();
    let begun = Instant::now();
    let right: Vec<Vec<exact::Scored>> =
        queries.iter().map(|query| exact::top_k(query, &vectors, dimension, None, DEPTH)).collect();
    println!("exact: {:.0} µs", begun.elapsed().as_secs_f64() * 1e6 / queries.len() as f64);
    for (percent, candidates) in EFFORTS {
        let probes = (lists * percent / 100).max(1);
        let (mut found, mut scan, mut again) = (0, 0.0, 0.0);
        for (query, right) in queries.iter().zip(&right) {
            let begun = Instant::now();
            let positions = index.search(query, Effort { probes, candidates, found: FOUND }, None)?;
            scan += begun.elapsed().as_secs_f64();
            let begun = Instant::now();
            let mut scored = exact::score(query, &vectors, dimension, &positions);
            scored.sort_unstable_by(|one, other| other.score.total_cmp(&one.score));
            again += begun.elapsed().as_secs_f64();
            // By score, so that of equal rows any will do.
            let worst = right.last().map_or(f32::MAX, |right| right.score);
            found += scored.iter().take(DEPTH).filter(|one| one.score >= worst).count();
        }
        let micros = |seconds: f64| seconds * 1e6 / queries.len() as f64;
        println!(
            "{probes} lists, {candidates} candidates: recall {:.4}, {:.0} µs to find and {:.0} µs to score again",
            found as f64 / (queries.len() * DEPTH) as f64,
            micros(scan),
            micros(again)
        );
    }
    Ok(())
}

fn read(path: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect())
}
