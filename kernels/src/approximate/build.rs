//! Builds an index of vectors.

use super::clusters::{self, Assigner};
use super::codes::{self, Codebook, PartCodes, parts_of};
use super::file::{Contents, NOWHERE, Sizes};
use super::scan::{BLOCK, byte_of};
use crate::exact;
use half::f16;
use std::io::{self, Write};

/// Vectors that are learnt from, for each list.
const SAMPLES_PER_LIST: usize = 40;
/// Vectors that the codes are learnt from.
const CODE_SAMPLES: usize = 8192;
/// Vectors that are converted to f32 at a time.
const ROWS: usize = 4096;

/// Builds the index of `vectors`, one after the other, and writes it as it lies in its file. Values that are not finite count as 0. About
/// twice the square root of the number of vectors is a good number of `lists`. Uses so many threads.
///
/// # Errors
/// What `to` fails with; [`io::ErrorKind::InvalidInput`] if there are no vectors, or too many values or vectors for an index.
pub fn build(vectors: &[f16], dimension: usize, lists: usize, threads: usize, to: &mut impl Write) -> io::Result<()> {
    let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    if dimension == 0 || dimension > super::DIMENSION_MAX || vectors.is_empty() || !vectors.len().is_multiple_of(dimension) {
        return Err(invalid("an index needs whole vectors of a length that it can keep"));
    }
    let vectors = Vectors { vectors, dimension };
    let sample = vectors.sample(lists.saturating_mul(SAMPLES_PER_LIST));
    let learnt = clusters::centroids(&sample, dimension, lists.clamp(1, vectors.len()), threads);
    let centroids = exact::to_f16(&learnt);
    // As they will be read again.
    let rounded: Vec<f32> = centroids.iter().map(|value| value.to_f32()).collect();
    let assigner = Assigner::new(&rounded, dimension).ok_or_else(|| invalid("this processor has no kernels"))?;
    let codebook = learn_codes(&assigner, &rounded, &vectors.sample(CODE_SAMPLES), dimension, threads);
    let lists = Lists::fill(&vectors, &assigner, centroids.len() / dimension, threads);
    let codes = lists.encode(&vectors, &rounded, &codebook, threads);
    Contents {
        sizes: Sizes { dimension, rows: vectors.len(), lists: lists.lengths.len(), blocks: lists.positions.len() / BLOCK },
        centroids: &centroids,
        lengths: &lists.lengths,
        codebook: &codebook,
        positions: &lists.positions,
        codes: &codes,
    }
    .write(to)
}

/// Vectors, one after the other.
struct Vectors<'a> {
    vectors: &'a [f16],
    dimension: usize,
}

impl Vectors<'_> {
    fn len(&self) -> usize {
        self.vectors.len() / self.dimension
    }

    /// Appends a vector. One with a value that is not finite has no nearest ones anyway.
    fn read(&self, number: usize, into: &mut Vec<f32>) {
        let vector = &self.vectors[number * self.dimension..(number + 1) * self.dimension];
        into.extend(vector.iter().map(|value| if value.is_finite() { value.to_f32() } else { 0.0 }));
    }

    /// So many vectors at most, spread evenly over all.
    fn sample(&self, count: usize) -> Vec<f32> {
        let count = count.min(self.len());
        let mut sample = Vec::with_capacity(count * self.dimension);
        for number in 0..count {
            self.read(number * self.len() / count, &mut sample);
        }
        sample
    }
}

/// Learns the codes of what is left of vectors after their centroids.
fn learn_codes(assigner: &Assigner, centroids: &[f32], sample: &[f32], dimension: usize, threads: usize) -> Vec<PartCodes> {
    let mut nearest = vec![0; sample.len() / dimension];
    assigner.assign(sample, threads, &mut nearest);
    let mut left = sample.to_vec();
    for (left, nearest) in left.chunks_exact_mut(dimension).zip(&nearest) {
        take_away(left, centroids, *nearest as usize);
    }
    codes::learn(&left, dimension)
}

/// Takes a centroid away from a vector.
fn take_away(vector: &mut [f32], centroids: &[f32], number: usize) {
    let dimension = vector.len();
    let centroid = &centroids[number * dimension..(number + 1) * dimension];
    vector.iter_mut().zip(centroid).for_each(|(value, centre)| *value -= centre);
}

/// Which vectors are in which list.
struct Lists {
    lengths: Vec<u32>,
    /// List by list, each filled up to whole blocks.
    positions: Vec<u32>,
}

impl Lists {
    fn fill(vectors: &Vectors<'_>, assigner: &Assigner, count: usize, threads: usize) -> Lists {
        let mut nearest = vec![0u32; vectors.len()];
        let mut block = Vec::new();
        for (number, nearest) in nearest.chunks_mut(ROWS).enumerate() {
            block.clear();
            (0..nearest.len()).for_each(|row| vectors.read(number * ROWS + row, &mut block));
            assigner.assign(&block, threads, nearest);
        }
        let mut lengths = vec![0u32; count];
        nearest.iter().for_each(|list| lengths[*list as usize] += 1);
        let mut next = Vec::with_capacity(count);
        let mut end = 0;
        for length in &lengths {
            next.push(end);
            end += (*length as usize).next_multiple_of(BLOCK);
        }
        let mut positions = vec![NOWHERE; end];
        for (position, list) in (0u32..).zip(&nearest) {
            let next = &mut next[*list as usize];
            positions[*next] = position;
            *next += 1;
        }
        Lists { lengths, positions }
    }

    /// The codes of all blocks.
    fn encode(&self, vectors: &Vectors<'_>, centroids: &[f32], codebook: &[PartCodes], threads: usize) -> Vec<u8> {
        let block_bytes = parts_of(vectors.dimension) / 2 * BLOCK;
        let blocks = self.positions.len() / BLOCK;
        let lists: Vec<usize> = self
            .lengths
            .iter()
            .enumerate()
            .flat_map(|(list, length)| std::iter::repeat_n(list, (*length as usize).div_ceil(BLOCK)))
            .collect();
        let mut codes = vec![0u8; blocks * block_bytes];
        let share = blocks.div_ceil(threads.max(1)).max(1);
        std::thread::scope(|scope| {
            let shares = codes.chunks_mut(share * block_bytes).zip(lists.chunks(share)).zip(self.positions.chunks(share * BLOCK));
            for ((codes, lists), positions) in shares {
                scope.spawn(move || {
                    let blocks = codes.chunks_exact_mut(block_bytes).zip(lists).zip(positions.chunks_exact(BLOCK));
                    for ((block, list), positions) in blocks {
                        encode_block(block, *list, positions, vectors, centroids, codebook);
                    }
                });
            }
        });
        codes
    }
}

/// Replaces a block's codes with those of the vectors at these positions.
fn encode_block(
    block: &mut [u8],
    list: usize,
    positions: &[u32],
    vectors: &Vectors<'_>,
    centroids: &[f32],
    codebook: &[PartCodes],
) {
    let (mut left, mut codes) = (Vec::new(), Vec::new());
    for (number, position) in positions.iter().enumerate().take_while(|(_, position)| **position != NOWHERE) {
        left.clear();
        vectors.read(*position as usize, &mut left);
        take_away(&mut left, centroids, list);
        Codebook { parts: codebook }.encode(&left, &mut codes);
        for (pair, codes) in codes.as_chunks::<2>().0.iter().enumerate() {
            block[pair * BLOCK + byte_of(number)] = codes[0] | (codes[1] << 4);
        }
    }
}
