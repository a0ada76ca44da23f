//! How fast a processor multiplies each kind of numbers.
//!
//! With tiles halves are the fastest. With vector instructions it depends on the processor: one of AMD's was seen to encode 1.8 times as fast with halves as
//! with f32, one of Intel's takes 1.5 times as long. A list of processors is wrong with the next one, so it is measured, once in a process, as what the
//! instructions themselves can do: one panel and few rows, all in the nearest cache, the shortest of many tries in turns. Whatever else the machine
//! does makes single tries longer and not the shortest; and processors that have instructions for halves or bytes take half or twice as long with them, far
//! from the border that is drawn, so that one and the same processor is found to be the same at every start.

use super::aligned::AlignedBlock;
use super::kernels::ProductKernels;
use super::numbers::Numbers;
use super::operand::NarrowedRows;
use super::packed::{Linear, PackedMatrix};
use super::product::{Epilogue, Product, Results};
use crate::instructions::Instructions;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The part of the time of others that numbers may take at most, to be faster.
const BORDER: f64 = 0.65;
const ROWS: usize = 32;
const INPUTS: usize = 128;
/// A panel of AVX-512.
const OUTPUTS: usize = 48;
/// Each takes a few microseconds.
const TRIES: usize = 50;

/// Whether products of these numbers are faster than those of others with the widest vector instructions of this processor; not with its tiles.
/// Numbers that it cannot multiply are not.
pub(crate) fn are_faster(numbers: Numbers, others: Numbers) -> bool {
    match (time_of(numbers), time_of(others)) {
        (Some(time), Some(of_others)) => time.as_secs_f64() < BORDER * of_others.as_secs_f64(),
        (time, _) => time.is_some(),
    }
}

/// Which of halves and f32 are the faster ones with vector instructions.
pub(crate) fn fastest_floats() -> Numbers {
    if are_faster(Numbers::Bf16, Numbers::F32) { Numbers::Bf16 } else { Numbers::F32 }
}

/// How long a small product takes; nothing if the processor cannot make it.
fn time_of(numbers: Numbers) -> Option<Duration> {
    static TIMES: OnceLock<[Option<Duration>; Numbers::ALL.len()]> = OnceLock::new();
    TIMES.get_or_init(measure)[numbers as usize]
}

/// The times of all numbers, in their order.
fn measure() -> [Option<Duration>; Numbers::ALL.len()] {
    let instructions = match Instructions::detect() {
        Instructions::Amx => Instructions::Avx512,
        instructions => instructions,
    };
    let mut trials = Numbers::ALL.map(|numbers| ProductKernels::of(instructions, numbers).map(Trial::new));
    let mut shortest = Numbers::ALL.map(|_| None);
    for _ in 0..TRIES {
        for (trial, shortest) in trials.iter_mut().zip(&mut shortest) {
            let time = trial.as_mut().map(Trial::run);
            *shortest = [*shortest, time].into_iter().flatten().min();
        }
    }
    tracing::debug!(times = ?Numbers::ALL.iter().zip(&shortest).collect::<Vec<_>>(), "a small product in each kind of numbers");
    shortest
}

/// A small product.
struct Trial {
    kernels: &'static ProductKernels,
    block: AlignedBlock<u32>,
    matrix: PackedMatrix,
    narrowed: NarrowedRows,
    rows: Vec<f32>,
    out: Vec<f32>,
}

impl Trial {
    fn new(kernels: &'static ProductKernels) -> Self {
        let ProductKernels { panel_columns, layout, .. } = *kernels;
        let weights = vec![0.5; OUTPUTS * INPUTS];
        let layer = Linear { weights: &weights, biases: &[0.0; OUTPUTS], factor: 1.0 };
        let mut block = AlignedBlock::new(PackedMatrix::size(INPUTS, OUTPUTS, panel_columns, layout));
        let matrix = PackedMatrix::pack(&mut block, 0, INPUTS, panel_columns, layout, &[layer]);
        Self {
            kernels,
            block,
            matrix,
            narrowed: NarrowedRows::for_shapes(&[(ROWS, INPUTS, layout)]),
            rows: vec![0.5; ROWS * INPUTS],
            out: vec![0.0; ROWS * OUTPUTS],
        }
    }

    /// How long the product takes.
    fn run(&mut self) -> Duration {
        let activations = self.kernels.narrow(&mut self.narrowed, &self.rows, INPUTS);
        let start = Instant::now();
        self.kernels.multiply(Product {
            block: &self.block,
            matrix: &self.matrix,
            activations,
            out: Results::Values(&mut self.out),
            rows: ROWS,
            epilogue: Epilogue::Store,
        });
        start.elapsed()
    }
}
