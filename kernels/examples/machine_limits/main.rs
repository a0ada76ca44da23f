//! What this machine can do at most, for what the encoder and searches reach to be held against: products of each kind that the encoder's kernels
//! make, with everything in registers, and how fast memory is read. By one thread and by as many as there are cores.
//!
//! Usage: `machine_limits`. Prints one line of JSON; operations are multiplications and additions, each counted.

mod arithmetic;
mod reading;

use std::error::Error;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let cores = std::thread::available_parallelism()?.get();
    let arithmetic: Vec<serde_json::Value> = arithmetic::available()
        .iter()
        .map(|products| {
            let operations_per_s = |threads: usize| {
                let seconds = shortest(threads, |_| (products.run)(products.repetitions)).as_secs_f64();
                products.operations * products.repetitions as f64 * threads as f64 / seconds
            };
            serde_json::json!({
                "precision": products.precision,
                "instructions": products.instructions,
                "operations_per_s_one_core": operations_per_s(1).round(),
                "operations_per_s": operations_per_s(cores).round(),
            })
        })
        .collect();
    let buffer = reading::buffer();
    let bytes_per_s = |threads: usize| {
        let seconds = shortest(threads, |thread| reading::read(&buffer, thread, threads)).as_secs_f64();
        size_of_val(buffer.as_slice()) as f64 / seconds
    };
    let report = serde_json::json!({
        "cores": cores,
        "arithmetic": arithmetic,
        "read_bytes_per_s_one_core": bytes_per_s(1).round(),
        "read_bytes_per_s": bytes_per_s(cores).round(),
    });
    println!("{report}");
    Ok(())
}

/// The shortest time that so many threads, each given its number, took for what they do at once, of some rounds.
fn shortest(threads: usize, work: impl Fn(usize) + Sync) -> Duration {
    let round = || {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let work = &work;
                scope.spawn(move || work(thread));
            }
        });
        begun.elapsed()
    };
    (0..ROUNDS).map(|_| round()).min().unwrap_or(Duration::MAX)
}
