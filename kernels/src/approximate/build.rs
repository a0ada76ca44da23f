//! Builds an index of vectors.

use super::bytes::{self, OwnByteRows, row_bytes};
use super::clusters::{self, Assigner};
use super::codes::{self, Codebook, PartCodes, TOGETHER, parts_of};
use super::file::{IndexWriter, NOWHERE, Sizes};
use super::scan::{BLOCK, byte_of};
use super::vectors::Vectors;
use half::f16;
use std::io::{self, Write};

/// Vectors that are learnt from, for each list.
const SAMPLES_PER_LIST: usize = 40;
/// Vectors that the codes are learnt from.
const CODE_SAMPLES: usize = 8192;
/// Rows that are made and then written at a time, by each thread.
const ROWS_WRITTEN: usize = 4096;
/// Blocks of codes that are.
const BLOCKS_WRITTEN: usize = 512;

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
    let vectors = Vectors::all(vectors, dimension);
    let sample = vectors.sample(lists.saturating_mul(SAMPLES_PER_LIST));
    let learnt = clusters::centroids(&sample, lists.clamp(1, vectors.len()), threads);
    let centroids = OwnByteRows::of(&learnt, dimension);
    // As they will be read again: what is left of a vector is what its list's centroid, as it is scored, lacks.
    let mut rounded = learnt;
    rounded.chunks_exact_mut(dimension).enumerate().for_each(|(number, centroid)| centroids.rows().decode(number, centroid));
    let assigner = Assigner::new(&rounded, dimension).ok_or_else(|| invalid("this processor has no kernels"))?;
    let codebook = learn_codes(&assigner, &vectors.sample(CODE_SAMPLES), threads);
    let lists = Lists::fill(&vectors, &assigner, threads);
    let sizes = Sizes { dimension, rows: vectors.len(), lists: lists.lengths.len(), blocks: lists.numbers.len() / BLOCK };
    let mut file = IndexWriter::new(sizes, to)?;
    file.section(|at| &at.centroids, centroids.rows().bytes)?;
    file.section(|at| &at.centroid_scales, bytemuck::cast_slice(centroids.rows().scales))?;
    file.section(|at| &at.lengths, bytemuck::cast_slice(&lists.lengths))?;
    file.section(|at| &at.codebook, bytemuck::cast_slice(codebook.as_flattened()))?;
    file.section(|at| &at.numbers, bytemuck::cast_slice(&lists.numbers))?;
    file.section(|at| &at.codes, &[])?;
    let coder = Coder { vectors, assigner: &assigner, codebook: Codebook { parts: &codebook } };
    lists.write_codes(&coder, threads, &mut file)?;
    file.section(|at| &at.positions, bytemuck::cast_slice(&lists.positions))?;
    file.section(|at| &at.row_scales, bytemuck::cast_slice(&lists.row_scales(&vectors)))?;
    file.section(|at| &at.rows, &[])?;
    lists.write_rows(&vectors, threads, &mut file)
}

/// Learns the codes of what is left of vectors after both their centroids.
fn learn_codes(assigner: &Assigner, sample: &Vectors<'_>, threads: usize) -> Vec<PartCodes> {
    let mut pairs = vec![[0; 2]; sample.len()];
    assigner.assign_pairs(sample, threads, &mut pairs);
    let mut left = Vec::new();
    sample.read(0..sample.len(), &mut left);
    for (number, (left, pair)) in left.chunks_exact_mut(sample.dimension()).zip(&pairs).enumerate() {
        assigner.take_away(left, pair[number % 2]);
    }
    codes::learn(&left, sample.dimension(), threads)
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
        assigner.assign_pairs(vectors, threads, &mut pairs);
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

    /// The scales of all rows as bytes, by their numbers.
    fn row_scales(&self, vectors: &Vectors<'_>) -> Vec<f32> {
        let mut row = Vec::new();
        let scale = |position: &u32| {
            let number = *position as usize;
            vectors.read(number..number + 1, &mut row);
            bytes::scale(&row)
        };
        self.positions.iter().map(scale).collect()
    }

    /// Writes all rows as bytes, by their numbers.
    fn write_rows<W: Write>(&self, vectors: &Vectors<'_>, threads: usize, file: &mut IndexWriter<'_, W>) -> io::Result<()> {
        let width = row_bytes(vectors.dimension());
        let encode = |bytes: &mut [u8], positions: &[u32]| {
            let mut row = Vec::new();
            for (bytes, position) in bytes.chunks_exact_mut(width).zip(positions) {
                let number = *position as usize;
                vectors.read(number..number + 1, &mut row);
                bytes::encode(&row, bytes);
            }
        };
        in_shares(&self.positions, ROWS_WRITTEN, width, threads, encode, |bytes| file.append(bytes))
    }

    /// Writes the codes of all blocks.
    fn write_codes<W: Write>(&self, coder: &Coder<'_>, threads: usize, file: &mut IndexWriter<'_, W>) -> io::Result<()> {
        let block_bytes = coder.block_bytes();
        let numbers = self.numbers.chunks_exact(BLOCK);
        let lists = (0u32..).zip(&self.lengths);
        let lists = lists.flat_map(|(list, length)| std::iter::repeat_n(list, (*length as usize).div_ceil(BLOCK)));
        let blocks: Vec<(u32, &[u32])> = lists.zip(numbers).collect();
        let encode = |bytes: &mut [u8], blocks: &[(u32, &[u32])]| {
            let mut left = Vec::new();
            for (bytes, (list, numbers)) in bytes.chunks_exact_mut(block_bytes).zip(blocks) {
                let positions = numbers.iter().map_while(|number| self.positions.get(*number as usize).copied());
                coder.encode_block(*list, positions, &mut left, bytes);
            }
        };
        in_shares(&blocks, BLOCKS_WRITTEN, block_bytes, threads, encode, |bytes| file.append(bytes))
    }
}

/// Has threads make the bytes of items, so many of each, and writes them in order: a share of each thread is in memory at a time.
fn in_shares<T: Sync>(
    items: &[T],
    share: usize,
    item_bytes: usize,
    threads: usize,
    make: impl Fn(&mut [u8], &[T]) + Sync,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    for items in items.chunks(share * threads.max(1)) {
        bytes.clear();
        bytes.resize(items.len() * item_bytes, 0);
        std::thread::scope(|scope| {
            for (bytes, items) in bytes.chunks_mut(share * item_bytes).zip(items.chunks(share)) {
                let make = &make;
                scope.spawn(move || make(bytes, items));
            }
        });
        write(&bytes)?;
    }
    Ok(())
}

/// What makes codes of vectors.
struct Coder<'a> {
    vectors: Vectors<'a>,
    assigner: &'a Assigner,
    codebook: Codebook<'a>,
}

impl Coder<'_> {
    fn block_bytes(&self) -> usize {
        parts_of(self.vectors.dimension()) / 2 * BLOCK
    }

    /// Adds the codes of a list's vectors at these positions to a block of zeros. Uses `left` for its computation.
    fn encode_block(&self, list: u32, positions: impl Iterator<Item = u32>, left: &mut Vec<f32>, block: &mut [u8]) {
        let dimension = self.vectors.dimension();
        left.clear();
        positions.for_each(|position| self.vectors.append(position as usize, left));
        left.chunks_exact_mut(dimension).for_each(|left| self.assigner.take_away(left, list));
        for (number, some) in left.chunks(TOGETHER * dimension).enumerate() {
            let count = some.len() / dimension;
            self.codebook.encode(some, dimension, |part, codes| {
                let (bytes, shift) = (&mut block[part / 2 * BLOCK..][..BLOCK], part % 2 * 4);
                for (place, code) in codes.into_iter().take(count).enumerate() {
                    bytes[byte_of(number * TOGETHER + place)] |= code << shift;
                }
            });
        }
    }
}
