//! Centroids of vectors: Lloyd's k-means, whose distances are matrix products.
//!
//! They are products of halves where the processor is faster with those: what is nearly as near is as good a list, and where a vector is, its rows of
//! bytes and its codes say exactly.

use super::nearest::{Beside, Nearest};
use super::vectors::Vectors;
use crate::cpu::CpuDevice;
use crate::cpu::aligned::AlignedBlock;
use crate::cpu::kernels::ProductKernels;
use crate::cpu::operand::NarrowedRows;
use crate::cpu::packed::{Linear, PackedMatrix};
use crate::cpu::product::{Epilogue, Product, Results};
use crate::instructions::Instructions;

/// Rounds of k-means: more change the centroids, and hardly what is found.
const ROUNDS: usize = 6;
/// Rounds where there are few centroids.
pub(super) const FEW_ROUNDS: usize = 20;
/// Vectors whose distances are computed at a time.
const ROWS: usize = 64;
/// How much more it counts against a second centroid that what is left after it points the way of what is left after the first, than that it is far away.
const SAME_WAY: f32 = 4.0;
/// By what part of themselves two centroids differ that come from one.
const SPLIT: f32 = 1.0 / 1024.0;

/// Where the search for the centroid of this number begins, of `count` points: evenly spread.
pub(super) fn start_at(number: usize, centroids: usize, count: usize) -> usize {
    number * count / centroids.max(1)
}

/// The products that distances are made of; none on a processor that this crate has none for.
fn distance_kernels() -> Option<&'static ProductKernels> {
    ProductKernels::of(Instructions::detect(), CpuDevice::fastest_as_good_as_f32())
}

/// Finds which centroid vectors are nearest to.
pub(super) struct Assigner {
    kernels: &'static ProductKernels,
    block: AlignedBlock<u32>,
    matrix: PackedMatrix,
    dimension: usize,
    centroids: Vec<f32>,
    /// Half the square of each centroid's length, negative.
    halves: Vec<f32>,
}

impl Assigner {
    /// For centroids one after the other.
    pub(super) fn new(centroids: &[f32], dimension: usize) -> Option<Assigner> {
        let kernels = distance_kernels()?;
        let count = centroids.len() / dimension;
        let halves: Vec<f32> = centroids
            .chunks_exact(dimension)
            .map(|centroid| -0.5 * centroid.iter().map(|value| value * value).sum::<f32>())
            .collect();
        let ProductKernels { panel_columns, layout, .. } = *kernels;
        let mut block = AlignedBlock::new(PackedMatrix::size(dimension, count, panel_columns, layout));
        // Nearest is whose inner product less half its square is the largest.
        let layer = Linear { weights: centroids, biases: &halves, factor: 1.0 };
        let matrix = PackedMatrix::pack(&mut block, 0, dimension, panel_columns, layout, &[layer]);
        Some(Assigner { kernels, block, matrix, dimension, centroids: centroids.to_vec(), halves })
    }

    /// Takes a vector's centroid away from it.
    pub(super) fn take_away(&self, vector: &mut [f32], centroid: u32) {
        let centroid = &self.centroids[centroid as usize * self.dimension..][..self.dimension];
        vector.iter_mut().zip(centroid).for_each(|(value, centre)| *value -= centre);
    }

    /// Number of centroids.
    pub(super) fn count(&self) -> usize {
        self.halves.len()
    }

    /// Replaces `nearest` with the number of each vector's nearest centroid. Uses so many threads.
    pub(super) fn assign(&self, vectors: &Vectors<'_>, threads: usize, nearest: &mut [u32]) {
        let chosen = Nearest::get();
        self.in_shares(vectors, threads, nearest, |room, nearest| {
            let scores = self.scores(&mut room.narrowed, &room.vectors, &mut room.scores);
            nearest.iter_mut().zip(scores).for_each(|(nearest, scores)| *nearest = chosen.largest(scores));
        });
    }

    /// Replaces `pairs` with the numbers of two centroids for each vector: the nearest, and of the others the one that is best beside it. Uses so many
    /// threads.
    ///
    /// Where the first list loses a query, because what is left of the vector points away from it, the second should not lose it too. So the second is
    /// the one after which least is left, where what points the way of what is left after the first counts [`SAME_WAY`] times more: Sun et al., "SOAR: Improved
    /// Indexing for Approximate Nearest Neighbor Search" (2023). Of a single centroid both are the same.
    pub(super) fn assign_pairs(&self, vectors: &Vectors<'_>, threads: usize, pairs: &mut [[u32; 2]]) {
        let (dimension, chosen) = (self.dimension, Nearest::get());
        self.in_shares(vectors, threads, pairs, |room, pairs| {
            let scores = self.scores(&mut room.narrowed, &room.vectors, &mut room.scores);
            room.left.clone_from(&room.vectors);
            for ((pair, scores), left) in pairs.iter_mut().zip(scores).zip(room.left.chunks_exact_mut(dimension)) {
                *pair = [chosen.largest(scores); 2];
                self.take_away(left, pair[0]);
            }
            let left_scores = self.scores(&mut room.narrowed, &room.left, &mut room.left_scores);
            let vectors = room.vectors.chunks_exact(dimension).zip(room.left.chunks_exact(dimension));
            let scores = room.scores.chunks_exact(self.count()).zip(left_scores);
            for ((pair, (vector, left)), (scores, left_scores)) in pairs.iter_mut().zip(vectors).zip(scores) {
                let squares = inner_product(left, left);
                let weight = if squares > 0.0 { 0.5 * SAME_WAY / squares } else { 0.0 };
                let beside = Beside { first: pair[0], along: inner_product(left, vector), weight };
                pair[1] = chosen.second(beside, scores, &self.halves, left_scores);
            }
        });
    }

    /// Calls `work` with few vectors at a time, in its room, and what is to be found out about them, on so many threads.
    fn in_shares<T: Send>(
        &self,
        vectors: &Vectors<'_>,
        threads: usize,
        found: &mut [T],
        work: impl Fn(&mut Room, &mut [T]) + Sync,
    ) {
        let share = found.len().div_ceil(threads.max(1)).next_multiple_of(ROWS).max(1);
        std::thread::scope(|scope| {
            for (thread, found) in found.chunks_mut(share).enumerate() {
                let work = &work;
                scope.spawn(move || {
                    let mut room = Room::new(self.dimension, self.kernels);
                    for (block, found) in found.chunks_mut(ROWS).enumerate() {
                        let first = thread * share + block * ROWS;
                        vectors.read(first..first + found.len(), &mut room.vectors);
                        work(&mut room, found);
                    }
                });
            }
        });
    }

    /// The scores of each vector with all centroids, vector by vector: inner products less half the squares of the centroids. They are in `scores`.
    fn scores<'s>(
        &self,
        narrowed: &mut NarrowedRows,
        vectors: &[f32],
        scores: &'s mut Vec<f32>,
    ) -> std::slice::ChunksExactMut<'s, f32> {
        let rows = vectors.len() / self.dimension;
        scores.resize(rows * self.count(), 0.0);
        self.kernels.multiply(Product {
            block: &self.block,
            matrix: &self.matrix,
            activations: self.kernels.narrow(narrowed, vectors, self.dimension),
            out: Results::Values(scores),
            rows,
            epilogue: Epilogue::Store,
        });
        scores.chunks_exact_mut(self.count())
    }
}

/// Memory that a thread computes in.
struct Room {
    vectors: Vec<f32>,
    left: Vec<f32>,
    narrowed: NarrowedRows,
    scores: Vec<f32>,
    left_scores: Vec<f32>,
}

impl Room {
    fn new(dimension: usize, kernels: &ProductKernels) -> Room {
        let narrowed = NarrowedRows::for_shapes(&[(ROWS, dimension, kernels.layout)]);
        Room { vectors: Vec::new(), left: Vec::new(), narrowed, scores: Vec::new(), left_scores: Vec::new() }
    }
}

fn inner_product(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

/// So many centroids of vectors.
pub(super) fn centroids(vectors: &Vectors<'_>, count: usize, threads: usize) -> Vec<f32> {
    let dimension = vectors.dimension();
    let mut centroids = Vec::with_capacity(count * dimension);
    (0..count).for_each(|number| vectors.append(start_at(number, count, vectors.len()), &mut centroids));
    let mut nearest = vec![0u32; vectors.len()];
    for _ in 0..ROUNDS {
        let Some(assigner) = Assigner::new(&centroids, dimension) else { break };
        assigner.assign(vectors, threads, &mut nearest);
        let mut counts = vec![0u32; count];
        let mut vector = Vec::new();
        centroids.fill(0.0);
        for (number, nearest) in nearest.iter().enumerate() {
            vectors.read(number..number + 1, &mut vector);
            let at = *nearest as usize;
            counts[at] += 1;
            let sums = &mut centroids[at * dimension..(at + 1) * dimension];
            sums.iter_mut().zip(&vector).for_each(|(sum, value)| *sum += value);
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
