//! Centroids of vectors: Lloyd's k-means, whose distances are matrix products.
//!
//! They are products of halves where the processor is faster with those: what is nearly as near is as good a list, and where a vector is, its rows of
//! bytes and its codes say exactly.

use super::nearest::{Beside, Nearest};
use super::vectors::Vectors;
use crate::cpu::aligned::AlignedBlock;
use crate::cpu::kernels::ProductKernels;
use crate::cpu::operand::NarrowedRows;
use crate::cpu::packed::{Linear, PackedMatrix};
use crate::cpu::product::{Epilogue, Product, Results};

/// Rounds of k-means: more change the centroids, and hardly what is found. The first go through one of so many vectors, since they only have to find about
/// where the centroids are.
const ROUNDS: [usize; 6] = [2, 2, 2, 1, 1, 1];
/// Rounds where there are few centroids.
pub(super) const FEW_ROUNDS: usize = 20;
/// Vectors whose distances are computed at a time.
const ROWS: usize = 64;
/// At most so many centroids' scores with each other are kept while vectors are assigned: 64 MiB. With more they are computed for each vector.
const TABLED_MAX: usize = 4096;
/// How much more it counts against a second centroid that what is left after it points the way of what is left after the first, than that it is far away.
const SAME_WAY: f32 = 4.0;
/// What is left of a vector is taken for no less than this part of it, both squared: what is less is mostly rounding of the products.
const LEFT_MIN: f32 = 1e-3;
/// Vectors for each centroid that a round goes through at least.
const PER_CENTROID_MIN: usize = 8;
/// By what part of themselves two centroids differ that come from one.
const SPLIT: f32 = 1.0 / 1024.0;

/// Where the search for the centroid of this number begins, of `count` points: evenly spread.
pub(super) fn start_at(number: usize, centroids: usize, count: usize) -> usize {
    number * count / centroids.max(1)
}

/// The products that distances are made of; none on a processor that this crate has none for.
fn distance_kernels() -> Option<&'static ProductKernels> {
    ProductKernels::of_fastest_floats()
}

/// Finds which centroid vectors are nearest to.
pub(super) struct Assigner {
    kernels: &'static ProductKernels,
    block: AlignedBlock<u32>,
    matrix: PackedMatrix,
    dimension: usize,
    centroids: Vec<f32>,
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
        Some(Assigner { kernels, block, matrix, dimension, centroids: centroids.to_vec() })
    }

    /// Takes a vector's centroid away from it.
    pub(super) fn take_away(&self, vector: &mut [f32], centroid: u32) {
        vector.iter_mut().zip(self.centroid(centroid)).for_each(|(value, centre)| *value -= centre);
    }

    fn centroid(&self, number: u32) -> &[f32] {
        &self.centroids[number as usize * self.dimension..][..self.dimension]
    }

    /// Number of centroids.
    pub(super) fn count(&self) -> usize {
        self.centroids.len() / self.dimension
    }

    /// Replaces `nearest` with the number of each vector's nearest centroid. Uses so many threads.
    pub(super) fn assign(&self, vectors: &Vectors<'_>, threads: usize, nearest: &mut [u32]) {
        let chosen = Nearest::get();
        self.in_shares(vectors, threads, nearest, |room, nearest| {
            self.score(&mut room.narrowed, &room.vectors, &mut room.scores);
            let scores = room.scores.chunks_exact(self.count());
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
        let tabled = (self.count() <= TABLED_MAX).then(|| self.scores_of_centroids(threads));
        self.assign_pairs_with(tabled.as_deref(), vectors, threads, pairs);
    }

    /// The same with all centroids' scores with all of them, or without.
    fn assign_pairs_with(&self, tabled: Option<&[f32]>, vectors: &Vectors<'_>, threads: usize, pairs: &mut [[u32; 2]]) {
        let (dimension, count, chosen) = (self.dimension, self.count(), Nearest::get());
        self.in_shares(vectors, threads, pairs, |room, pairs| {
            self.score(&mut room.narrowed, &room.vectors, &mut room.scores);
            pairs.iter_mut().zip(room.scores.chunks_exact(count)).for_each(|(pair, scores)| *pair = [chosen.largest(scores); 2]);
            if tabled.is_none() {
                room.firsts.clear();
                pairs.iter().for_each(|pair| room.firsts.extend_from_slice(self.centroid(pair[0])));
                self.score(&mut room.narrowed, &room.firsts, &mut room.first_scores);
            }
            room.worth.resize(count, 0.0);
            let vectors = room.vectors.chunks_exact(dimension).zip(room.scores.chunks_exact(count));
            for (row, (pair, (vector, scores))) in pairs.iter_mut().zip(vectors).enumerate() {
                let first_scores = match tabled {
                    Some(tabled) => &tabled[pair[0] as usize * count..][..count],
                    None => &room.first_scores[row * count..][..count],
                };
                room.left.clear();
                room.left.extend_from_slice(vector);
                self.take_away(&mut room.left, pair[0]);
                let squares = inner_product(&room.left, &room.left).max(LEFT_MIN * inner_product(vector, vector));
                let weight = if squares > 0.0 { 0.5 * SAME_WAY / squares } else { 0.0 };
                let beside = Beside { first: pair[0], along: inner_product(&room.left, vector), weight };
                pair[1] = chosen.second(beside, scores, first_scores, &mut room.worth);
            }
        });
    }

    /// The scores of each centroid with all of them, centroid by centroid.
    fn scores_of_centroids(&self, threads: usize) -> Vec<f32> {
        let count = self.count();
        let mut scores = vec![0.0; count * count];
        let share = count.div_ceil(threads.max(1)).next_multiple_of(ROWS);
        std::thread::scope(|scope| {
            for (scores, centroids) in scores.chunks_mut(share * count).zip(self.centroids.chunks(share * self.dimension)) {
                scope.spawn(move || {
                    let mut room = Room::new(self.dimension, self.kernels);
                    for (scores, centroids) in scores.chunks_mut(ROWS * count).zip(centroids.chunks(ROWS * self.dimension)) {
                        self.score(&mut room.narrowed, centroids, &mut room.scores);
                        scores.copy_from_slice(&room.scores);
                    }
                });
            }
        });
        scores
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

    /// Replaces `scores` with those of each vector with all centroids, vector by vector: inner products less half the squares of the centroids.
    fn score(&self, narrowed: &mut NarrowedRows, vectors: &[f32], scores: &mut Vec<f32>) {
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
    }
}

/// Memory that a thread computes in.
struct Room {
    narrowed: NarrowedRows,
    vectors: Vec<f32>,
    scores: Vec<f32>,
    /// The first centroids of the vectors, and their scores.
    firsts: Vec<f32>,
    first_scores: Vec<f32>,
    /// Of one vector.
    left: Vec<f32>,
    worth: Vec<f32>,
}

impl Room {
    fn new(dimension: usize, kernels: &ProductKernels) -> Room {
        let narrowed = NarrowedRows::for_shapes(&[(ROWS, dimension, kernels.layout)]);
        let empty = Vec::new;
        Room {
            narrowed,
            vectors: empty(),
            scores: empty(),
            firsts: empty(),
            first_scores: empty(),
            left: empty(),
            worth: empty(),
        }
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
    for one_of in ROUNDS {
        let Some(assigner) = Assigner::new(&centroids, dimension) else { break };
        let vectors = vectors.sample(vectors.len().div_ceil(one_of).max(PER_CENTROID_MIN * count));
        let nearest = &mut nearest[..vectors.len()];
        assigner.assign(&vectors, threads, nearest);
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
        if counts[largest] < 2 {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::super::tests::in_heaps;
    use super::*;

    #[test]
    fn pairs_are_the_same_with_and_without_a_table_and_not_of_one_centroid() {
        let dimension = 24;
        let vectors = in_heaps(dimension, 1500);
        let vectors = Vectors::all(&vectors, dimension);
        let assigner = Assigner::new(&centroids(&vectors, 70, 2), dimension).unwrap();
        let mut pairs = [vec![[0; 2]; vectors.len()], vec![[0; 2]; vectors.len()]];
        let tabled = assigner.scores_of_centroids(2);
        assigner.assign_pairs_with(Some(&tabled), &vectors, 2, &mut pairs[0]);
        assigner.assign_pairs_with(None, &vectors, 2, &mut pairs[1]);
        assert_eq!(pairs[0], pairs[1]);
        assert!(pairs[0].iter().all(|[first, second]| first != second));
        let mut nearest = vec![0; vectors.len()];
        assigner.assign(&vectors, 1, &mut nearest);
        assert!(nearest.iter().eq(pairs[0].iter().map(|[first, _]| first)));
    }

    #[test]
    fn the_second_is_the_best_beside_the_first_by_what_is_left() {
        let dimension = 24;
        let vectors = in_heaps(dimension, 600);
        let vectors = Vectors::all(&vectors, dimension);
        let assigner = Assigner::new(&centroids(&vectors, 30, 2), dimension).unwrap();
        let mut pairs = vec![[0; 2]; vectors.len()];
        assigner.assign_pairs(&vectors, 2, &mut pairs);
        let mut vector = Vec::new();
        for (number, [first, second]) in pairs.into_iter().enumerate() {
            vectors.read(number..number + 1, &mut vector);
            let left_after = |centroid: u32| {
                let mut left = vector.clone();
                assigner.take_away(&mut left, centroid);
                left
            };
            let left = left_after(first);
            let squares = inner_product(&left, &left);
            if squares < LEFT_MIN {
                continue; // nothing is left, which points nowhere
            }
            let cost = |centroid: u32| {
                let after = left_after(centroid);
                let same_way = inner_product(&after, &left);
                inner_product(&after, &after) + SAME_WAY * same_way * same_way / squares
            };
            let best = (0..assigner.count() as u32).filter(|centroid| *centroid != first).map(cost).fold(f32::INFINITY, f32::min);
            assert!(cost(second) <= best * 1.05, "{number}: {} instead of {best}", cost(second));
        }
    }

    #[test]
    fn more_centroids_than_vectors_stay_finite() {
        let dimension = 8;
        let vectors = in_heaps(dimension, 50);
        let centroids = centroids(&Vectors::all(&vectors, dimension), 400, 2);
        assert!(centroids.iter().all(|value| value.abs() < 2.0));
    }
}
