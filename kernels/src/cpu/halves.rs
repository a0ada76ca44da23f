//! Whether a processor multiplies halves faster than f32.
//!
//! With tiles it does. With vector instructions it depends on the processor: one of AMD's was seen to encode 1.8 times as fast with them as with f32,
//! one of Intel's takes 1.5 times as long. A list of processors is wrong with the next one, so it is measured, once in a process, as what the
//! instructions themselves can do: one panel and few rows, all in the nearest cache, the shortest of many tries in turns. Whatever else the machine
//! does makes single tries longer and not the shortest; and processors differ by factors, so that none is known near the border that is drawn, and
//! one and the same processor is found to be the same at every start.

use super::aligned::AlignedBlock;
use super::kernels::ProductKernels;
use super::operand::NarrowedRows;
use super::packed::{Linear, PackedMatrix};
use super::product::{Epilogue, Product, Results};
use crate::instructions::Instructions;
use crate::precision::Precision;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The part of the time of f32 that halves may take at most, to be faster.
const BORDER: f64 = 0.8;
const ROWS: usize = 32;
const INPUTS: usize = 128;
/// A panel of AVX-512.
const OUTPUTS: usize = 48;
/// Each takes a few microseconds.
const TRIES: usize = 50;

/// Whether products of halves with the vector instructions of this processor are faster than those of f32.
pub(crate) fn are_faster_with_vectors() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let trial = |precision| ProductKernels::of(Instructions::Avx512, precision).map(Trial::new);
        let (Some(mut halves), Some(mut singles)) = (trial(Precision::Bf16), trial(Precision::F32)) else {
            return false;
        };
        let (mut of_halves, mut of_singles) = (Duration::MAX, Duration::MAX);
        for _ in 0..TRIES {
            of_halves = of_halves.min(halves.run());
            of_singles = of_singles.min(singles.run());
        }
        let ratio = of_halves.as_secs_f64() / of_singles.as_secs_f64();
        tracing::debug!(ratio, "time of a product of halves, as a part of that of one of f32");
        ratio < BORDER
    })
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
