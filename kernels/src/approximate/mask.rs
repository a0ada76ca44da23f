//! Which rows a search may find, in the order in which an index has its rows.
//!
//! A mask is made once for a set of rows and used by many searches: a word of 64 bits for each block of the index. A block without an allowed
//! row is not scanned at all, and the scores of a scanned block are passed by its word.

use super::file::{ApproximateIndex, NOWHERE};
use super::scan::BLOCK;
use crate::instructions::choose_kernels;
use std::ops::Range;

/// The rows of one index that may be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// For each block of the index a bit for each of its places, the first in the lowest.
    words: Vec<u64>,
    /// The same by the numbers of rows, in the order in which the index has them.
    by_number: Vec<u64>,
}

impl Mask {
    /// The rows that are in both. Both are of the same index.
    ///
    /// # Panics
    /// If they are of indexes of different sizes.
    pub fn and(&self, other: &Mask) -> Mask {
        assert_eq!(self.words.len(), other.words.len(), "masks of different indexes");
        let both = |one: &[u64], other: &[u64]| one.iter().zip(other).map(|(one, other)| one & other).collect();
        Mask { words: both(&self.words, &other.words), by_number: both(&self.by_number, &other.by_number) }
    }

    /// Bytes that it holds.
    pub fn memory_bytes(&self) -> usize {
        (self.words.len() + self.by_number.len()) * size_of::<u64>()
    }

    /// The numbers of the rows, in order.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        (0u32..).zip(&self.by_number).flat_map(|(place, word)| {
            let rests = std::iter::successors(Some(*word), |rest| Some(rest & rest.wrapping_sub(1)));
            rests.take_while(|rest| *rest != 0).map(move |rest| place * BLOCK as u32 + rest.trailing_zeros())
        })
    }

    /// The words of some blocks.
    pub(super) fn words(&self, blocks: Range<usize>) -> &[u64] {
        &self.words[blocks]
    }
}

impl ApproximateIndex {
    /// The mask of the rows whose bit is set: bit `position % 64` of word `position / 64`; bits that are not there are not set.
    pub fn mask(&self, allowed: &[u64]) -> Mask {
        // Lists have the numbers of rows, which have the positions.
        let by_number = gather_all(self.positions(), allowed);
        Mask { words: gather_all(self.numbers(), &by_number), by_number }
    }
}

/// The bits at these places, in their order; those that are not there are not set.
fn gather_all(places: &[u32], bits: &[u64]) -> Vec<u64> {
    let kernels = Kernels::get();
    let (blocks, rest) = places.as_chunks::<BLOCK>();
    let mut words: Vec<u64> = blocks.iter().map(|places| kernels.gather(places, bits)).collect();
    if !rest.is_empty() {
        let mut last = [NOWHERE; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        words.push(kernels.gather(&last, bits));
    }
    words
}

/// The runs of neighbouring blocks that have allowed rows, as places in `words`.
pub(super) fn runs(words: &[u64]) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = next + words[next..].iter().position(|word| *word != 0)?;
        let len = words[start..].iter().position(|word| *word == 0).unwrap_or(words.len() - start);
        next = start + len;
        Some(start..next)
    })
}

/// Sets the scores of rows that are not allowed to 0; a word for each block.
pub(super) fn pass(scores: &mut [u16], words: &[u64]) {
    let (blocks, rest) = scores.as_chunks_mut::<BLOCK>();
    assert!(rest.is_empty() && blocks.len() == words.len(), "scores of other blocks");
    let kernels = Kernels::get();
    for (block, word) in blocks.iter_mut().zip(words) {
        kernels.pass(block, *word);
    }
}

/// For one instruction set.
struct Kernels {
    gather: unsafe fn(&[u32; BLOCK], &[u64]) -> u64,
    pass: unsafe fn(&mut [u16; BLOCK], u64),
}

choose_kernels!(Kernels { x86::AVX512, x86::AVX2, PORTABLE });

impl Kernels {
    /// The bits at these positions; those that are not there are not set.
    fn gather(&self, positions: &[u32; BLOCK], bits: &[u64]) -> u64 {
        // SAFETY: `of` has checked the instruction set.
        unsafe { (self.gather)(positions, bits) }
    }

    /// Leaves the scores whose bits are set, and makes the others 0.
    fn pass(&self, scores: &mut [u16; BLOCK], word: u64) {
        // SAFETY: `of` has checked the instruction set.
        unsafe { (self.pass)(scores, word) }
    }
}

static PORTABLE: Kernels = Kernels { gather: gather_portable, pass: pass_portable };

fn gather_portable(positions: &[u32; BLOCK], bits: &[u64]) -> u64 {
    let bit = |position: u32| bits.get(position as usize / 64).map_or(0, |word| word >> (position % 64) & 1);
    positions.iter().enumerate().fold(0, |word, (place, position)| word | bit(*position) << place)
}

fn pass_portable(scores: &mut [u16; BLOCK], word: u64) {
    for (place, score) in scores.iter_mut().enumerate() {
        *score &= ((word >> place & 1) as u16).wrapping_neg();
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, Kernels};
    use std::arch::x86_64::*;

    pub(super) static AVX512: Kernels = Kernels { gather: gather_avx512, pass: pass_avx512 };
    pub(super) static AVX2: Kernels = Kernels { gather: gather_avx2, pass: pass_avx2 };

    /// Words of 32 bits, as they are gathered: numbers of words fit a register's signed lanes, positions being of 32 bits.
    fn halves(bits: &[u64]) -> (*const i32, i32) {
        (bits.as_ptr().cast(), i32::try_from(bits.len() * 2).unwrap_or(i32::MAX))
    }

    /// # Safety
    /// The processor has AVX-512 F and BW.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn gather_avx512(positions: &[u32; BLOCK], bits: &[u64]) -> u64 {
        let (start, count) = halves(bits);
        let mut word = 0;
        for (part, positions) in positions.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: sixteen positions are read, and only words before the end of `bits` are gathered.
            unsafe {
                let positions = _mm512_loadu_si512(positions.as_ptr().cast());
                let places = _mm512_srli_epi32::<5>(positions);
                let are_there = _mm512_cmplt_epi32_mask(places, _mm512_set1_epi32(count));
                let words = _mm512_mask_i32gather_epi32::<4>(_mm512_setzero_si512(), are_there, places, start);
                let wanted = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_and_si512(positions, _mm512_set1_epi32(31)));
                word |= u64::from(_mm512_test_epi32_mask(words, wanted)) << (part * 16);
            }
        }
        word
    }

    /// # Safety
    /// The processor has AVX-512 F and BW.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn pass_avx512(scores: &mut [u16; BLOCK], word: u64) {
        for (half, scores) in scores.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            // SAFETY: 32 scores are read and written.
            unsafe {
                let passed = _mm512_maskz_loadu_epi16((word >> (half * 32)) as u32, scores.as_ptr().cast());
                _mm512_storeu_si512(scores.as_mut_ptr().cast(), passed);
            }
        }
    }

    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2")]
    unsafe fn gather_avx2(positions: &[u32; BLOCK], bits: &[u64]) -> u64 {
        let (start, count) = halves(bits);
        let mut word = 0;
        for (part, positions) in positions.as_chunks::<8>().0.iter().enumerate() {
            // SAFETY: eight positions are read, and only words before the end of `bits` are gathered.
            unsafe {
                let positions = _mm256_loadu_si256(positions.as_ptr().cast());
                let places = _mm256_srli_epi32::<5>(positions);
                let are_there = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), places);
                let words = _mm256_mask_i32gather_epi32::<4>(_mm256_setzero_si256(), start, places, are_there);
                // The wanted bit becomes the sign.
                let up = _mm256_sub_epi32(_mm256_set1_epi32(31), _mm256_and_si256(positions, _mm256_set1_epi32(31)));
                let signs = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_sllv_epi32(words, up)));
                word |= u64::from(signs as u8) << (part * 8);
            }
        }
        word
    }

    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2")]
    unsafe fn pass_avx2(scores: &mut [u16; BLOCK], word: u64) {
        let lanes = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, i16::MIN);
        for (quarter, scores) in scores.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let bits = _mm256_and_si256(_mm256_set1_epi16((word >> (quarter * 16)) as i16), lanes);
            let passes = _mm256_cmpeq_epi16(bits, lanes);
            // SAFETY: sixteen scores are read and written.
            unsafe {
                let passed = _mm256_and_si256(_mm256_loadu_si256(scores.as_ptr().cast()), passes);
                _mm256_storeu_si256(scores.as_mut_ptr().cast(), passed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instructions::Instructions;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_instruction_set_gathers_and_passes_the_same(
            bits in prop::collection::vec(any::<u64>(), 0..6),
            positions in prop::collection::vec(prop_oneof![4 => 0u32..400, 1 => Just(u32::MAX), 1 => any::<u32>()], BLOCK),
            scores in prop::collection::vec(any::<u16>(), BLOCK), word: u64,
        ) {
            let positions: &[u32; BLOCK] = positions.first_chunk().unwrap();
            let is_set = |position: u32| bits.iter().enumerate().any(|(number, word)| (0..64).any(|bit| {
                number * 64 + bit == position as usize && word & (1 << bit) != 0
            }));
            let gathered: u64 = (0..BLOCK).map(|place| u64::from(is_set(positions[place])) << place).sum();
            let passed: Vec<u16> = (0..BLOCK).map(|place| if word & (1 << place) == 0 { 0 } else { scores[place] }).collect();
            for set in Instructions::available() {
                prop_assert_eq!(Kernels::of(set).gather(positions, &bits), gathered, "{}", set);
                let mut found: [u16; BLOCK] = *scores.first_chunk().unwrap();
                Kernels::of(set).pass(&mut found, word);
                prop_assert_eq!(&found[..], &passed[..], "{}", set);
            }
        }

        #[test]
        fn runs_are_the_blocks_with_allowed_rows(words in prop::collection::vec(prop_oneof![Just(0u64), any::<u64>()], 0..40)) {
            let runs: Vec<Range<usize>> = runs(&words).collect();
            let with_rows: Vec<usize> = (0..words.len()).filter(|place| words[*place] != 0).collect();
            prop_assert!(runs.iter().cloned().flatten().eq(with_rows));
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
