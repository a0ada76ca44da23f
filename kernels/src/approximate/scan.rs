//! Scores blocks of codes.
//!
//! A block holds the codes of 64 vectors, two parts of a vector after the other: 64 bytes whose low halves are the codes of the first part and
//! whose high halves are those of the second. An instruction looks up as many codes as a register has bytes in a table of sixteen. The sums have
//! 16 bits: those of even bytes and those of odd bytes are kept apart, which is why a block's vectors are not in the order of its bytes
//! (see [`byte_of`]). Entries are small enough ([`STEPS_MAX`]) that four of them are added up as bytes first.

#[cfg(doc)]
use super::tables::STEPS_MAX;
use crate::instructions::choose_kernels;

/// Vectors of a block.
pub(super) const BLOCK: usize = 64;
/// Entries of a table.
const ENTRIES: usize = 16;

/// The byte of its part's 64 that holds the code of a block's vector: even bytes first, then odd ones.
pub(super) fn byte_of(vector: usize) -> usize {
    if vector < BLOCK / 2 { 2 * vector } else { 2 * (vector - BLOCK / 2) + 1 }
}

/// Blocks, tables, what is added to every score, and the scores.
type Scan = unsafe fn(&[u8], &[u8], u16, &mut [u16]);

/// Scans with the widest instruction set that this processor has.
pub(super) struct Scanner(Scan);

choose_kernels!(Scanner { Scanner(scan_avx512), Scanner(scan_avx2), Scanner(scan_portable) });

impl Scanner {
    /// Replaces `scores`: for each vector of the blocks in `codes`, `bias` and the sum of its codes' entries in `tables`, which has sixteen for each
    /// part, none above [`STEPS_MAX`]. Sums are taken modulo 2^16.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub(super) fn scan(&self, codes: &[u8], tables: &[u8], bias: u16, scores: &mut [u16]) {
        assert!(tables.len().is_multiple_of(2 * ENTRIES), "parts come in pairs");
        assert!(scores.len().is_multiple_of(BLOCK), "vectors come in blocks");
        assert_eq!(codes.len(), scores.len() * tables.len() / (2 * ENTRIES), "codes of other vectors");
        // SAFETY: `of` has checked the instruction set, and the lengths belong together.
        unsafe { (self.0)(codes, tables, bias, scores) }
    }
}

/// # Safety
/// The lengths belong together, as [`Scanner::scan`] checks.
unsafe fn scan_portable(codes: &[u8], tables: &[u8], bias: u16, scores: &mut [u16]) {
    let pairs = tables.len() / (2 * ENTRIES);
    for (number, scores) in scores.chunks_exact_mut(BLOCK).enumerate() {
        scores.fill(bias);
        let block = &codes[number * pairs * BLOCK..(number + 1) * pairs * BLOCK];
        for (codes, tables) in block.chunks_exact(BLOCK).zip(tables.chunks_exact(2 * ENTRIES)) {
            let (low, high) = tables.split_at(ENTRIES);
            for (vector, score) in scores.iter_mut().enumerate() {
                let code = codes[byte_of(vector)];
                let worth = u16::from(low[usize::from(code & 15)]) + u16::from(high[usize::from(code >> 4)]);
                *score = score.wrapping_add(worth);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
use x86::{scan_avx2, scan_avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, ENTRIES};
    use std::arch::x86_64::*;

    /// Bytes ahead of the scan that are asked for: the processor's own prefetching stops at the borders of pages and lists.
    const AHEAD: usize = 2048;

    /// # Safety
    /// The processor has AVX-512 F and BW; the lengths belong together, as [`super::Scanner::scan`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn scan_avx512(codes: &[u8], tables: &[u8], bias: u16, scores: &mut [u16]) {
        let block_bytes = tables.len() / (2 * ENTRIES) * BLOCK;
        // Two blocks at a time: their sums do not wait for each other.
        let both = codes.chunks(2 * block_bytes).zip(scores.chunks_mut(2 * BLOCK));
        for (codes, scores) in both {
            // SAFETY: as the caller promises, for as many blocks as there are.
            unsafe {
                if scores.len() == 2 * BLOCK {
                    blocks_avx512::<2>(codes, tables, bias, scores);
                } else {
                    blocks_avx512::<1>(codes, tables, bias, scores);
                }
            }
        }
    }

    /// # Safety
    /// As [`scan_avx512`], with `BLOCKS` blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn blocks_avx512<const BLOCKS: usize>(codes: &[u8], tables: &[u8], bias: u16, scores: &mut [u16]) {
        let block_bytes = tables.len() / (2 * ENTRIES) * BLOCK;
        let nibble = _mm512_set1_epi8(15);
        let mut even = [_mm512_set1_epi16(bias as i16); BLOCKS];
        let mut odd = [_mm512_setzero_si512(); BLOCKS];
        // The entries of 64 vectors' codes of a pair of parts, added up.
        let pair = |tables: &[u8], codes: *const u8| {
            // SAFETY: two tables of sixteen bytes, and 64 bytes of codes; a prefetch never faults.
            unsafe {
                let low = _mm512_broadcast_i32x4(_mm_loadu_si128(tables.as_ptr().cast()));
                let high = _mm512_broadcast_i32x4(_mm_loadu_si128(tables.as_ptr().add(ENTRIES).cast()));
                _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD).cast());
                let both = _mm512_loadu_si512(codes.cast());
                let first = _mm512_shuffle_epi8(low, _mm512_and_si512(both, nibble));
                let second = _mm512_shuffle_epi8(high, _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble));
                _mm512_add_epi8(first, second)
            }
        };
        for (number, tables) in tables.chunks(4 * ENTRIES).enumerate() {
            for block in 0..BLOCKS {
                let codes = codes.as_ptr().wrapping_add(block * block_bytes + 2 * number * BLOCK);
                let mut sums = pair(tables, codes);
                if tables.len() > 2 * ENTRIES {
                    sums = _mm512_add_epi8(sums, pair(&tables[2 * ENTRIES..], codes.wrapping_add(BLOCK)));
                }
                even[block] = _mm512_add_epi16(even[block], sums);
                odd[block] = _mm512_add_epi16(odd[block], _mm512_srli_epi16::<8>(sums));
            }
        }
        for (block, scores) in scores.chunks_exact_mut(BLOCK).enumerate() {
            // What the odd bytes added to the sums of the even ones is taken out again.
            let even = _mm512_sub_epi16(even[block], _mm512_slli_epi16::<8>(odd[block]));
            let odd = _mm512_add_epi16(odd[block], _mm512_set1_epi16(bias as i16));
            // SAFETY: there are 64 scores.
            unsafe {
                _mm512_storeu_si512(scores.as_mut_ptr().cast(), even);
                _mm512_storeu_si512(scores.as_mut_ptr().add(BLOCK / 2).cast(), odd);
            }
        }
    }

    /// # Safety
    /// The processor has AVX2; the lengths belong together, as [`super::Scanner::scan`] checks.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn scan_avx2(codes: &[u8], tables: &[u8], bias: u16, scores: &mut [u16]) {
        let block_bytes = tables.len() / (2 * ENTRIES) * BLOCK;
        let nibble = _mm256_set1_epi8(15);
        let bias = _mm256_set1_epi16(bias as i16);
        // As for AVX-512, of 32 vectors.
        let pair = |tables: &[u8], codes: *const u8| {
            // SAFETY: two tables of sixteen bytes, and 32 bytes of codes; a prefetch never faults.
            unsafe {
                let low = _mm256_broadcastsi128_si256(_mm_loadu_si128(tables.as_ptr().cast()));
                let high = _mm256_broadcastsi128_si256(_mm_loadu_si128(tables.as_ptr().add(ENTRIES).cast()));
                _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD).cast());
                let both = _mm256_loadu_si256(codes.cast());
                let first = _mm256_shuffle_epi8(low, _mm256_and_si256(both, nibble));
                let second = _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble));
                _mm256_add_epi8(first, second)
            }
        };
        for (codes, scores) in codes.chunks_exact(block_bytes).zip(scores.chunks_exact_mut(BLOCK)) {
            let mut even = [bias; 2];
            let mut odd = [_mm256_setzero_si256(); 2];
            for (number, tables) in tables.chunks(4 * ENTRIES).enumerate() {
                for half in 0..2 {
                    let codes = codes.as_ptr().wrapping_add(2 * number * BLOCK + half * BLOCK / 2);
                    let mut sums = pair(tables, codes);
                    if tables.len() > 2 * ENTRIES {
                        sums = _mm256_add_epi8(sums, pair(&tables[2 * ENTRIES..], codes.wrapping_add(BLOCK)));
                    }
                    even[half] = _mm256_add_epi16(even[half], sums);
                    odd[half] = _mm256_add_epi16(odd[half], _mm256_srli_epi16::<8>(sums));
                }
            }
            for half in 0..2 {
                let even = _mm256_sub_epi16(even[half], _mm256_slli_epi16::<8>(odd[half]));
                let odd = _mm256_add_epi16(odd[half], bias);
                // SAFETY: a quarter of the 64 scores from each of these places on.
                unsafe {
                    let scores = scores.as_mut_ptr().add(half * BLOCK / 4);
                    _mm256_storeu_si256(scores.cast(), even);
                    _mm256_storeu_si256(scores.add(BLOCK / 2).cast(), odd);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approximate::tables::STEPS_MAX;
    use crate::instructions::Instructions;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_instruction_set_adds_up_what_the_codes_are_worth(
            blocks in 0usize..6,
            pairs in 1usize..9,
            seed in any::<u64>(),
            bias in 0u16..1000,
        ) {
            let mut state = seed | 1;
            let mut random = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            };
            let codes: Vec<u8> = (0..blocks * pairs * BLOCK).map(|_| random()).collect();
            let tables: Vec<u8> = (0..pairs * 2 * ENTRIES).map(|_| random() % (STEPS_MAX + 1)).collect();
            let right: Vec<u16> = (0..blocks * BLOCK)
                .map(|vector| {
                    let block = &codes[vector / BLOCK * pairs * BLOCK..];
                    let worth = |pair: usize| {
                        let code = block[pair * BLOCK + byte_of(vector % BLOCK)];
                        let table = &tables[pair * 2 * ENTRIES..];
                        u16::from(table[usize::from(code & 15)]) + u16::from(table[ENTRIES + usize::from(code >> 4)])
                    };
                    bias + (0..pairs).map(worth).sum::<u16>()
                })
                .collect();
            for set in Instructions::available() {
                let mut scores = vec![u16::MAX; blocks * BLOCK];
                Scanner::of(set).scan(&codes, &tables, bias, &mut scores);
                prop_assert_eq!(&scores, &right, "{}", set);
            }
        }
    }

    #[test]
    fn a_block_has_a_byte_for_each_vector() {
        let mut bytes: Vec<usize> = (0..BLOCK).map(byte_of).collect();
        bytes.sort_unstable();
        assert!(bytes.into_iter().eq(0..BLOCK));
    }
}
