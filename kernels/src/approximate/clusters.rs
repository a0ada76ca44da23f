//! Centroids of vectors: Lloyd's k-means, whose distances are matrix products.

use crate::cpu::aligned::AlignedBlock;
use crate::cpu::kernels::ProductKernels;
use crate::cpu::operand::Operand;
use crate::cpu::packed::{Linear, PackedMatrix};
use crate::cpu::product::{Epilogue, Product, Results};
use crate::instructions::Instructions;
use crate::precision::Precision;

/// Rounds of k-means: more change the centroids, and hardly what is found.
const ROUNDS: usize = 10;
/// Rounds where there are few centroids.
pub(super) const FEW_ROUNDS: usize = 20;
/// Vectors whose distances are computed at a time.
const ROWS: usize = 64;
/// By what part of themselves two centroids differ that come from one.
const SPLIT: f32 = 1.0 / 1024.0;

/// Where the search for the centroid of this number begins, of `count` points: evenly spread.
pub(super) fn start_at(number: usize, centroids: usize, count: usize) -> usize {
    number * count / centroids.max(1)
}

/// Finds which centroid vectors are nearest to.
pub(super) struct Assigner {
    kernels: &'static ProductKernels,
    block: AlignedBlock<u32>,
    matrix: PackedMatrix,
}

impl Assigner {
    /// For centroids one after the other.
    pub(super) fn new(centroids: &[f32], dimension: usize) -> Option<Assigner> {
        let kernels = ProductKernels::of(Instructions::detect(), Precision::F32)?;
        let count = centroids.len() / dimension;
        // Nearest is whose inner product less half its square is the largest.
        let halves: Vec<f32> = centroids
            .chunks_exact(dimension)
            .map(|centroid| -0.5 * centroid.iter().map(|value| value * value).sum::<f32>())
            .collect();
        let ProductKernels { panel_columns, layout, .. } = *kernels;
        let mut block = AlignedBlock::new(PackedMatrix::size(dimension, count, panel_columns, layout));
        let layer = Linear { weights: centroids, biases: &halves, factor: 1.0 };
        let matrix = PackedMatrix::pack(&mut block, 0, dimension, panel_columns, layout, &[layer]);
        Some(Assigner { kernels, block, matrix })
    }

    /// Replaces `nearest` with the number of each vector's nearest centroid. Uses so many threads.
    pub(super) fn assign(&self, vectors: &[f32], threads: usize, nearest: &mut [u32]) {
        let dimension = self.matrix.inputs;
        let share = nearest.len().div_ceil(threads.max(1)).next_multiple_of(ROWS).max(1);
        std::thread::scope(|scope| {
            for (vectors, nearest) in vectors.chunks(share * dimension).zip(nearest.chunks_mut(share)) {
                scope.spawn(move || self.assign_share(vectors, nearest));
            }
        });
    }

    fn assign_share(&self, vectors: &[f32], nearest: &mut [u32]) {
        let (dimension, count) = (self.matrix.inputs, self.matrix.outputs);
        let mut scores = vec![0.0; ROWS * count];
        for (vectors, nearest) in vectors.chunks(ROWS * dimension).zip(nearest.chunks_mut(ROWS)) {
            let scores = &mut scores[..nearest.len() * count];
            self.kernels.multiply(Product {
                block: &self.block,
                matrix: &self.matrix,
                activations: Operand::of_f32(vectors),
                out: Results::Values(scores),
                rows: nearest.len(),
                epilogue: Epilogue::Store,
            });
            for (nearest, scores) in nearest.iter_mut().zip(scores.chunks_exact(count)) {
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                *nearest = scores.iter().position(|score| *score >= largest).unwrap_or(0) as u32;
            }
        }
    }
}

/// So many centroids of vectors one after the other.
pub(super) fn centroids(vectors: &[f32], dimension: usize, count: usize, threads: usize) -> Vec<f32> {
    let points = vectors.len() / dimension;
    let start = |number: usize| {
        let point = start_at(number, count, points);
        &vectors[point * dimension..(point + 1) * dimension]
    };
    let mut centroids: Vec<f32> = (0..count).flat_map(start).copied().collect();
    let mut nearest = vec![0u32; points];
    for _ in 0..ROUNDS {
        let Some(assigner) = Assigner::new(&centroids, dimension) else { break };
        assigner.assign(vectors, threads, &mut nearest);
        let mut counts = vec![0u32; count];
        centroids.fill(0.0);
        for (vector, nearest) in vectors.chunks_exact(dimension).zip(&nearest) {
            let at = *nearest as usize;
            counts[at] += 1;
            let sums = &mut centroids[at * dimension..(at + 1) * dimension];
            sums.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
        }
        for (sums, count) in centroids.chunks_exact_mut(dimension).zip(&counts) {
            let factor = 1.0 / (*count).max(1) as f32;
            sums.iter_mut().for_each(|sum| *sum *= factor);
        }
        fill_empty(&mut centroids, &mut counts, dimension);
    }
    centroids
}

/// Has each centroid that nothing is nearest to share the vectors of the one that has the most.
fn fill_empty(centroids: &mut [f32], counts: &mut [u32], dimension: usize) {
    for empty in 0..counts.len() {
        if counts[empty] > 0 {
            continue;
        }
        let Some(largest) = (0..counts.len()).max_by_key(|number| counts[*number]) else { return };
        for value in 0..dimension {
            let whole = centroids[largest * dimension + value];
            let part = if value % 2 == 0 { whole * SPLIT } else { -whole * SPLIT };
            centroids[empty * dimension + value] = whole + part;
            centroids[largest * dimension + value] = whole - part;
        }
        counts[empty] = counts[largest] / 2;
        counts[largest] -= counts[empty];
    }
}
