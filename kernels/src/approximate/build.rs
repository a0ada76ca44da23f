//! Builds an index of vectors.

use super::bytes::{self, OwnByteRows, row_bytes};
use super::clusters::{self, Assigner};
use super::codes::{self, Codebook, PartCodes, parts_of};
use super::file::{Contents, NOWHERE, Sizes};
use super::scan::{BLOCK, byte_of};
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
    let centroids = OwnByteRows::of(&learnt, dimension);
    // As they will be read again: what is left of a vector is what its list's centroid, as it is scored, lacks.
    let mut rounded = learnt;
    rounded.chunks_exact_mut(dimension).enumerate().for_each(|(number, centroid)| centroids.rows().decode(number, centroid));
    let assigner = Assigner::new(&rounded, dimension).ok_or_else(|| invalid("this processor has no kernels"))?;
    let codebook = learn_codes(&assigner, &vectors.sample(CODE_SAMPLES), dimension, threads);
    let lists = Lists::fill(&vectors, &assigner, threads);
    let codes = lists.encode(&vectors, &assigner, &codebook, threads);
    let rows = lists.rows_as_bytes(&vectors, threads);
    Contents {
        sizes: Sizes { dimension, rows: vectors.len(), lists: lists.lengths.len(), blocks: lists.numbers.len() / BLOCK },
        centroids: centroids.rows(),
        lengths: &lists.lengths,
        codebook: &codebook,
        numbers: &lists.numbers,
        codes: &codes,
        positions: &lists.positions,
        rows: rows.rows(),
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

/// Learns the codes of what is left of vectors after both their centroids.
fn learn_codes(assigner: &Assigner, sample: &[f32], dimension: usize, threads: usize) -> Vec<PartCodes> {
    let mut pairs = vec![[0; 2]; sample.len() / dimension];
    assigner.assign_pairs(sample, threads, &mut pairs);
    let mut left = sample.to_vec();
    for (number, (left, pair)) in left.chunks_exact_mut(dimension).zip(&pairs).enumerate() {
        assigner.take_away(left, pair[number % 2]);
    }
    codes::learn(&left, dimension)
}

/// Which vectors are in which lists: each is in two.
struct Lists {
    /// Rows in each list.
    lengths: Vec<u32>,
    /// Numbers of rows, list by list, each filled up to whole blocks.
    numbers: Vec<u32>,
    /// Positions of rows, by their numbers.
    positions: Vec<u32>,
}

impl Lists {
    fn fill(vectors: &Vectors<'_>, assigner: &Assigner, threads: usize) -> Lists {
        let mut pairs = vec![[0u32; 2]; vectors.len()];
        let mut block = Vec::new();
        for (number, pairs) in pairs.chunks_mut(ROWS).enumerate() {
            block.clear();
            (0..pairs.len()).for_each(|row| vectors.read(number * ROWS + row, &mut block));
            assigner.assign_pairs(&block, threads, pairs);
        }
        let mut positions: Vec<u32> = (0..).take(pairs.len()).collect();
        positions.sort_by_key(|position| pairs[*position as usize]);
        let mut lists: Vec<Vec<u32>> = vec![Vec::new(); assigner.count()];
        for (number, position) in (0u32..).zip(&positions) {
            let [first, second] = pairs[*position as usize];
            lists[first as usize].push(number);
            if second != first {
                lists[second as usize].push(number);
            }
        }
        let lengths = lists.iter().map(|list| list.len() as u32).collect();
        for list in &mut lists {
            list.resize(list.len().next_multiple_of(BLOCK), NOWHERE);
        }
        Lists { lengths, numbers: lists.concat(), positions }
    }

    /// All rows as bytes, by their numbers.
    fn rows_as_bytes(&self, vectors: &Vectors<'_>, threads: usize) -> OwnByteRows {
        let mut rows = OwnByteRows::zeros(vectors.len(), vectors.dimension);
        let share = vectors.len().div_ceil(threads.max(1)).max(1);
        let width = row_bytes(vectors.dimension);
        std::thread::scope(|scope| {
            let places = rows.bytes.chunks_mut(share * width).zip(rows.scales.chunks_mut(share));
            for ((bytes, scales), positions) in places.zip(self.positions.chunks(share)) {
                scope.spawn(move || {
                    let mut row = Vec::new();
                    for ((bytes, scale), position) in bytes.chunks_exact_mut(width).zip(scales).zip(positions) {
                        row.clear();
                        vectors.read(*position as usize, &mut row);
                        *scale = bytes::encode(&row, bytes);
                    }
                });
            }
        });
        rows
    }

    /// The codes of all blocks.
    fn encode(&self, vectors: &Vectors<'_>, assigner: &Assigner, codebook: &[PartCodes], threads: usize) -> Vec<u8> {
        let block_bytes = parts_of(vectors.dimension) / 2 * BLOCK;
        let blocks = self.numbers.len() / BLOCK;
        let lists: Vec<usize> = self
            .lengths
            .iter()
            .enumerate()
            .flat_map(|(list, length)| std::iter::repeat_n(list, (*length as usize).div_ceil(BLOCK)))
            .collect();
        let mut codes = vec![0u8; blocks * block_bytes];
        let share = blocks.div_ceil(threads.max(1)).max(1);
        std::thread::scope(|scope| {
            let shares = codes.chunks_mut(share * block_bytes).zip(lists.chunks(share)).zip(self.numbers.chunks(share * BLOCK));
            for ((codes, lists), numbers) in shares {
                scope.spawn(move || {
                    let blocks = codes.chunks_exact_mut(block_bytes).zip(lists).zip(numbers.chunks_exact(BLOCK));
                    for ((block, list), numbers) in blocks {
                        let positions = numbers.iter().map_while(|number| self.positions.get(*number as usize));
                        encode_block(block, *list as u32, positions, vectors, assigner, codebook);
                    }
                });
            }
        });
        codes
    }
}

/// Replaces a block's codes with those of the vectors at these positions.
fn encode_block<'a>(
    block: &mut [u8],
    list: u32,
    positions: impl Iterator<Item = &'a u32>,
    vectors: &Vectors<'_>,
    assigner: &Assigner,
    codebook: &[PartCodes],
) {
    let (mut left, mut codes) = (Vec::new(), Vec::new());
    for (number, position) in positions.enumerate() {
        left.clear();
        vectors.read(*position as usize, &mut left);
        assigner.take_away(&mut left, list);
        Codebook { parts: codebook }.encode(&left, &mut codes);
        for (pair, codes) in codes.as_chunks::<2>().0.iter().enumerate() {
            block[pair * BLOCK + byte_of(number)] = codes[0] | (codes[1] << 4);
        }
    }
}
