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
/// How much more it counts against a second centroid that what is left after it points the way of what is left after the first, than that it is far away.
const SAME_WAY: f32 = 4.0;
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
    dimension: usize,
    centroids: Vec<f32>,
    /// Half the square of each centroid's length, negative.
    halves: Vec<f32>,
}

impl Assigner {
    /// For centroids one after the other.
    pub(super) fn new(centroids: &[f32], dimension: usize) -> Option<Assigner> {
        let kernels = ProductKernels::of(Instructions::detect(), Precision::F32)?;
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
    pub(super) fn assign(&self, vectors: &[f32], threads: usize, nearest: &mut [u32]) {
        self.in_shares(vectors, threads, nearest, |vectors, nearest, room| {
            self.score(vectors, &mut room.scores);
            nearest
                .iter_mut()
                .zip(room.scores.chunks_exact(self.count()))
                .for_each(|(nearest, scores)| *nearest = largest(scores));
        });
    }

    /// Replaces `pairs` with the numbers of two centroids for each vector: the nearest, and of the others the one that is best beside it. Uses so many
    /// threads.
    ///
    /// Where the first list loses a query, because what is left of the vector points away from it, the second should not lose it too. So the second is
    /// the one after which least is left, where what points the way of what is left after the first counts [`SAME_WAY`] times more: Sun et al., "SOAR: Improved
    /// Indexing for Approximate Nearest Neighbor Search" (2023). Of a single centroid both are the same.
    pub(super) fn assign_pairs(&self, vectors: &[f32], threads: usize, pairs: &mut [[u32; 2]]) {
        let dimension = self.dimension;
        self.in_shares(vectors, threads, pairs, |vectors, pairs, room| {
            self.score(vectors, &mut room.scores);
            let scores = || room.scores.chunks_exact(self.count());
            let mut left = vectors.to_vec();
            for ((pair, scores), left) in pairs.iter_mut().zip(scores()).zip(left.chunks_exact_mut(dimension)) {
                *pair = [largest(scores); 2];
                self.take_away(left, pair[0]);
            }
            self.score(&left, &mut room.left_scores);
            let vectors = vectors.chunks_exact(dimension).zip(left.chunks_exact(dimension));
            let scores = scores().zip(room.left_scores.chunks_exact(self.count()));
            for ((pair, (vector, left)), (scores, left_scores)) in pairs.iter_mut().zip(vectors).zip(scores) {
                pair[1] = self.second(pair[0], inner_product(left, vector), inner_product(left, left), scores, left_scores);
            }
        });
    }

    /// The best centroid beside the first, from all centroids' scores of the vector and of what is left of it after the first; `along` is the inner product of the
    /// two, `squares` that of the latter with itself.
    fn second(&self, first: u32, along: f32, squares: f32, scores: &[f32], left_scores: &[f32]) -> u32 {
        let weight = if squares > 0.0 { 0.5 * SAME_WAY / squares } else { 0.0 };
        let mut best = (first, f32::INFINITY);
        let all = scores.iter().zip(left_scores).zip(&self.halves);
        for (number, ((score, left_score), half)) in (0u32..).zip(all) {
            // What is left after this one, times what is left after the first.
            let same_way = along - (left_score - half);
            let cost = weight * same_way * same_way - score;
            if cost < best.1 && number != first {
                best = (number, cost);
            }
        }
        best.0
    }

    /// Calls `work` with few vectors at a time and what is to be found out about them, on so many threads.
    fn in_shares<T: Send>(
        &self,
        vectors: &[f32],
        threads: usize,
        found: &mut [T],
        work: impl Fn(&[f32], &mut [T], &mut Room) + Sync,
    ) {
        let dimension = self.dimension;
        let share = found.len().div_ceil(threads.max(1)).next_multiple_of(ROWS).max(1);
        std::thread::scope(|scope| {
            for (vectors, found) in vectors.chunks(share * dimension).zip(found.chunks_mut(share)) {
                let work = &work;
                scope.spawn(move || {
                    let mut room = Room::default();
                    for (vectors, found) in vectors.chunks(ROWS * dimension).zip(found.chunks_mut(ROWS)) {
                        work(vectors, found, &mut room);
                    }
                });
            }
        });
    }

    /// Replaces `scores` with those of each vector with all centroids: inner products less half the squares of the centroids.
    fn score(&self, vectors: &[f32], scores: &mut Vec<f32>) {
        let rows = vectors.len() / self.dimension;
        scores.resize(rows * self.count(), 0.0);
        self.kernels.multiply(Product {
            block: &self.block,
            matrix: &self.matrix,
            activations: Operand::of_f32(vectors),
            out: Results::Values(scores),
            rows,
            epilogue: Epilogue::Store,
        });
    }
}

/// Memory that a thread computes in.
#[derive(Default)]
struct Room {
    scores: Vec<f32>,
    left_scores: Vec<f32>,
}

fn largest(scores: &[f32]) -> u32 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter().position(|score| *score >= largest).unwrap_or(0) as u32
}

fn inner_product(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
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
