//! Exact search for many queries at once: matrix products, which read every row once for all of them.

use super::{Best, Scored, count_rows, score, top_k};
use crate::cpu::aligned::AlignedBlock;
use crate::cpu::kernels::ProductKernels;
use crate::cpu::numbers::Numbers;
use crate::cpu::operand::Operand;
use crate::cpu::packed::{Linear, PackedMatrix};
use crate::cpu::product::{Epilogue, Product, Results};
use crate::instructions::Instructions;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Rows that are multiplied at a time: they stay in the level-2 cache.
const ROWS: usize = 64;
/// Rows that are kept beyond those that are wanted. Products add up in another order than [`score`], whose scores count in the end.
const SPARE: usize = 8;

/// For each query, one after the other in `queries`, what [`top_k`](super::top_k) returns, but that of rows whose scores differ by no more than
/// rounding any may be the last. Uses so many threads.
///
/// # Panics
/// If `queries` or `rows` are not whole vectors of `dimension` values.
pub fn top_k_of_each(queries: &[f32], rows: &[f16], dimension: usize, k: usize, threads: usize) -> Vec<Vec<Scored>> {
    assert!(dimension > 0 && queries.len().is_multiple_of(dimension), "queries of another dimension");
    let queries_each = queries.chunks_exact(dimension);
    let Some(many) = Many::new(queries, dimension, k + SPARE) else {
        return queries_each.map(|query| top_k(query, rows, dimension, None, k)).collect();
    };
    let parts = many.best_in_parts(rows, threads);
    let again = |(number, query): (usize, &[f32])| {
        let candidates: Vec<u32> = parts.iter().flat_map(|part| part[number].positions()).collect();
        let mut best = Best::new(k);
        score(query, rows, dimension, &candidates).into_iter().for_each(|scored| best.offer(scored));
        best.into_sorted()
    };
    queries_each.enumerate().map(again).collect()
}

/// Queries, packed as the columns of a matrix.
struct Many {
    kernels: &'static ProductKernels,
    block: AlignedBlock<u32>,
    matrix: PackedMatrix,
    kept: usize,
}

impl Many {
    fn new(queries: &[f32], dimension: usize, kept: usize) -> Option<Many> {
        let kernels = ProductKernels::of(Instructions::detect(), Numbers::F32)?;
        let count = queries.len() / dimension;
        let ProductKernels { panel_columns, layout, .. } = *kernels;
        let mut block = AlignedBlock::new(PackedMatrix::size(dimension, count, panel_columns, layout));
        let layer = Linear { weights: queries, biases: &vec![0.0; count], factor: 1.0 };
        let matrix = PackedMatrix::pack(&mut block, 0, dimension, panel_columns, layout, &[layer]);
        Some(Many { kernels, block, matrix, kept })
    }

    /// For each of as many parts of the rows as there are threads, the best of it for each query.
    fn best_in_parts(&self, rows: &[f16], threads: usize) -> Vec<Vec<Best>> {
        let dimension = self.matrix.inputs;
        let count = count_rows(&vec![0.0; dimension], rows, dimension) as usize;
        let share = count.div_ceil(threads.max(1)).next_multiple_of(ROWS).max(1);
        std::thread::scope(|scope| {
            let shares = rows[..count * dimension].chunks(share * dimension).enumerate();
            let running: Vec<_> = shares.map(|(number, rows)| scope.spawn(move || self.best_of(rows, number * share))).collect();
            let ended = running.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ended.collect()
        })
    }

    /// The best of some rows for each query, the first of which has this position.
    fn best_of(&self, rows: &[f16], first: usize) -> Vec<Best> {
        let (dimension, queries) = (self.matrix.inputs, self.matrix.outputs);
        let mut best: Vec<Best> = (0..queries).map(|_| Best::new(self.kept)).collect();
        let (mut values, mut scores) = (vec![0.0; ROWS * dimension], vec![0.0; ROWS * queries]);
        for (number, rows) in rows.chunks(ROWS * dimension).enumerate() {
            let values = &mut values[..rows.len()];
            rows.convert_to_f32_slice(values);
            let count = rows.len() / dimension;
            let scores = &mut scores[..count * queries];
            self.kernels.multiply(Product {
                block: &self.block,
                matrix: &self.matrix,
                activations: Operand::of_f32(values),
                out: Results::Values(scores),
                rows: count,
                epilogue: Epilogue::Store,
            });
            for (row, scores) in scores.chunks_exact(queries.max(1)).enumerate() {
                let position = (first + number * ROWS + row) as u32;
                best.iter_mut().zip(scores).for_each(|(best, score)| best.offer(Scored { position, score: *score }));
            }
        }
        best
    }
}
