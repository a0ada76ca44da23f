//! Rows as bytes: what candidates are scored with before their vectors are looked at.
//!
//! A value x of a row stands as the byte round(x / scale) + 128, with a scale for each row; a query as whole numbers of 8 bits with a scale of its
//! own. With a code c and a query's number q, the sum of (c - 128) q is the sum of c q, less 128 times the sum of q, which is the same for all rows.
//! Both roundings together change an inner product of vectors of length 1 by less than a thousandth.

use std::sync::OnceLock;

/// Rows begin at multiples of so many bytes: those of a cache line, and of the widest register.
const ALIGNMENT: usize = 64;
/// The byte of the value zero.
const ZERO: u8 = 128;
/// The largest number of a value or a query's value, of either sign.
const LARGEST: f32 = 127.0;
/// Adding it to an f32 of less than 2^22 rounds to the nearest whole number, which is then in the lowest bits.
const ROUNDER: f32 = 12_582_912.0;
/// Rows that are scored together, so that their sums do not wait for each other.
const TOGETHER: usize = 4;
/// Rows that are asked for ahead of the one that is scored.
const AHEAD: usize = 8;

/// Bytes of a row of so many values.
pub(super) fn row_bytes(dimension: usize) -> usize {
    dimension.next_multiple_of(ALIGNMENT)
}

/// The factor that makes values whole numbers of at most [`LARGEST`].
fn factor_of(values: &[f32]) -> f32 {
    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let factor = LARGEST / largest;
    if factor.is_normal() { factor } else { 0.0 }
}

/// What a whole number is worth.
fn scale_of(factor: f32) -> f32 {
    if factor > 0.0 { 1.0 / factor } else { 0.0 }
}

fn whole(value: f32, factor: f32) -> u8 {
    (value * factor + ROUNDER).to_bits() as u8
}

/// The scale of a row.
pub(super) fn scale(row: &[f32]) -> f32 {
    scale_of(factor_of(row))
}

/// Replaces `bytes`, as many as [`row_bytes`] says, with the row's, and returns its scale.
pub(super) fn encode(row: &[f32], bytes: &mut [u8]) -> f32 {
    let factor = factor_of(row);
    let (own, rest) = bytes.split_at_mut(row.len());
    own.iter_mut().zip(row).for_each(|(byte, value)| *byte = whole(*value, factor).wrapping_add(ZERO));
    rest.fill(ZERO);
    scale_of(factor)
}

/// A query in whole numbers.
pub(super) struct ByteQuery {
    numbers: Vec<i8>,
    scale: f32,
    /// What the bytes of zeros add to the sum of any row.
    of_zeros: i32,
}

impl ByteQuery {
    /// The query as whole numbers.
    pub(super) fn new(query: &[f32]) -> ByteQuery {
        let factor = factor_of(query);
        let mut numbers: Vec<i8> = query.iter().map(|value| whole(*value, factor) as i8).collect();
        numbers.resize(row_bytes(query.len()), 0);
        let sum: i32 = numbers.iter().map(|number| i32::from(*number)).sum();
        ByteQuery { numbers, scale: scale_of(factor), of_zeros: i32::from(ZERO) * sum }
    }
}

/// Rows, one after the other, and their scales.
#[derive(Clone, Copy)]
pub(super) struct ByteRows<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) scales: &'a [f32],
}

impl ByteRows<'_> {
    /// Calls `take` with the inner product of `query` and each row of these numbers, in their order.
    ///
    /// # Panics
    /// If there is no such row, or the query has another length.
    pub(super) fn score(&self, query: &ByteQuery, numbers: &[u32], mut take: impl FnMut(f32)) {
        let (blocks, rest) = numbers.as_chunks::<TOGETHER>();
        for (done, block) in blocks.iter().enumerate() {
            let ahead = numbers.get(done * TOGETHER + AHEAD..).unwrap_or_default();
            for number in ahead.iter().take(TOGETHER) {
                prefetch(self.row(query, *number));
                prefetch(std::slice::from_ref(&self.scales[*number as usize]));
            }
            self.score_block(query, *block).into_iter().for_each(&mut take);
        }
        for number in rest {
            take(self.score_block(query, [*number; TOGETHER])[0]);
        }
    }

    /// The inner products of `query` and all rows.
    ///
    /// # Panics
    /// If the query has another length.
    pub(super) fn score_all(&self, query: &ByteQuery) -> Vec<f32> {
        let count = self.scales.len() as u32;
        let mut scores = Vec::with_capacity(self.scales.len().next_multiple_of(TOGETHER));
        for first in (0..count).step_by(TOGETHER) {
            let block = std::array::from_fn(|place| (first + place as u32).min(count - 1));
            scores.extend(self.score_block(query, block));
        }
        scores.truncate(self.scales.len());
        scores
    }

    fn score_block(&self, query: &ByteQuery, block: [u32; TOGETHER]) -> [f32; TOGETHER] {
        let sums = Kernel::get().run(&query.numbers, block.map(|number| self.row(query, number)));
        let score = |place: usize| (sums[place] - query.of_zeros) as f32 * (query.scale * self.scales[block[place] as usize]);
        std::array::from_fn(score)
    }

    fn row(&self, query: &ByteQuery, number: u32) -> &[u8] {
        let width = query.numbers.len();
        &self.bytes[number as usize * width..][..width]
    }

    /// Replaces `row` by what a row's bytes stand for.
    pub(super) fn decode(&self, number: usize, row: &mut [f32]) {
        let bytes = &self.bytes[number * row_bytes(row.len())..];
        let scale = self.scales[number];
        row.iter_mut().zip(bytes).for_each(|(value, byte)| *value = f32::from(byte.wrapping_sub(ZERO) as i8) * scale);
    }
}

/// Rows as bytes, in memory of their own.
#[derive(Default)]
pub(super) struct OwnByteRows {
    pub(super) bytes: Vec<u8>,
    pub(super) scales: Vec<f32>,
}

impl OwnByteRows {
    /// Room for so many rows.
    pub(super) fn zeros(count: usize, dimension: usize) -> OwnByteRows {
        OwnByteRows { bytes: vec![ZERO; count * row_bytes(dimension)], scales: vec![0.0; count] }
    }

    /// Rows one after the other, as bytes.
    pub(super) fn of(rows: &[f32], dimension: usize) -> OwnByteRows {
        let mut own = OwnByteRows::zeros(rows.len() / dimension, dimension);
        let places = own.bytes.chunks_exact_mut(row_bytes(dimension)).zip(&mut own.scales);
        places.zip(rows.chunks_exact(dimension)).for_each(|((bytes, scale), row)| *scale = encode(row, bytes));
        own
    }

    /// The rows.
    pub(super) fn rows(&self) -> ByteRows<'_> {
        ByteRows { bytes: &self.bytes, scales: &self.scales }
    }
}

/// Has memory fetched that is about to be read.
#[inline(always)]
fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(values)).step_by(ALIGNMENT) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults, and SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().cast::<i8>().wrapping_add(line)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Computes sums of the products of a query's numbers and the bytes of rows, all of one length that [`ALIGNMENT`] divides.
#[derive(Clone, Copy)]
struct Kernel {
    sums: unsafe fn(&[i8], [&[u8]; TOGETHER]) -> [i32; TOGETHER],
}

impl Kernel {
    /// The fastest that this processor has.
    fn get() -> Kernel {
        static CHOSEN: OnceLock<Kernel> = OnceLock::new();
        *CHOSEN.get_or_init(|| Self::available().next().unwrap_or(PORTABLE))
    }

    /// All that this processor has, the fastest first.
    fn available() -> impl Iterator<Item = Kernel> {
        #[cfg(target_arch = "x86_64")]
        let of_x86 = x86::available();
        #[cfg(not(target_arch = "x86_64"))]
        let of_x86 = std::iter::empty();
        of_x86.chain([PORTABLE])
    }

    #[inline(always)]
    fn run(self, query: &[i8], rows: [&[u8]; TOGETHER]) -> [i32; TOGETHER] {
        assert!(
            query.len().is_multiple_of(ALIGNMENT) && rows.iter().all(|row| row.len() == query.len()),
            "rows of another length"
        );
        // SAFETY: only kernels that this processor has are made, and all lengths are the same.
        unsafe { (self.sums)(query, rows) }
    }
}

const PORTABLE: Kernel = Kernel { sums: sums_portable };

fn sums_portable(query: &[i8], rows: [&[u8]; TOGETHER]) -> [i32; TOGETHER] {
    rows.map(|row| query.iter().zip(row).map(|(number, byte)| i32::from(*number) * i32::from(*byte)).sum())
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{ALIGNMENT, Kernel, TOGETHER};
    use std::arch::x86_64::*;

    pub(super) fn available() -> impl Iterator<Item = Kernel> {
        let is_vnni = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512f");
        let vnni = is_vnni.then_some(Kernel { sums: sums_vnni });
        let avx2 = is_x86_feature_detected!("avx2").then_some(Kernel { sums: sums_avx2 });
        vnni.into_iter().chain(avx2)
    }

    /// # Safety
    /// The processor has AVX-512 F and VNNI; the query and the rows are of one length, which [`ALIGNMENT`] divides.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn sums_vnni(query: &[i8], rows: [&[u8]; TOGETHER]) -> [i32; TOGETHER] {
        let mut sums = [_mm512_setzero_si512(); TOGETHER];
        for at in (0..query.len()).step_by(ALIGNMENT) {
            // SAFETY: `at` and the 64 bytes that follow are within the query and each row.
            unsafe {
                let numbers = _mm512_loadu_si512(query.as_ptr().add(at).cast());
                for (sum, row) in sums.iter_mut().zip(rows) {
                    *sum = _mm512_dpbusd_epi32(*sum, _mm512_loadu_si512(row.as_ptr().add(at).cast()), numbers);
                }
            }
        }
        sums.map(|sum| _mm512_reduce_add_epi32(sum))
    }

    /// # Safety
    /// The processor has AVX2; the query and the rows are of one length, which [`ALIGNMENT`] divides.
    #[target_feature(enable = "avx2")]
    unsafe fn sums_avx2(query: &[i8], rows: [&[u8]; TOGETHER]) -> [i32; TOGETHER] {
        let even_bytes = _mm256_set1_epi16(0xFF);
        let mut sums = [_mm256_setzero_si256(); TOGETHER];
        for at in (0..query.len()).step_by(ALIGNMENT / 2) {
            // SAFETY: `at` and the 32 bytes that follow are within the query and each row.
            unsafe {
                // Products of bytes need 16 bits, so even and odd bytes go apart.
                let numbers = _mm256_loadu_si256(query.as_ptr().add(at).cast());
                let (even, odd) = (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(numbers)), _mm256_srai_epi16::<8>(numbers));
                for (sum, row) in sums.iter_mut().zip(rows) {
                    let bytes = _mm256_loadu_si256(row.as_ptr().add(at).cast());
                    let of_even = _mm256_madd_epi16(_mm256_and_si256(bytes, even_bytes), even);
                    let of_odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(bytes), odd);
                    *sum = _mm256_add_epi32(*sum, _mm256_add_epi32(of_even, of_odd));
                }
            }
        }
        sums.map(|sum| {
            let mut lanes = [0i32; 8];
            // SAFETY: both are 32 bytes.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
            lanes.iter().sum()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_kernel_adds_up_the_same(
            (query, rows) in (1usize..5).prop_flat_map(|lines| {
                let length = lines * ALIGNMENT;
                (prop::collection::vec(any::<i8>(), length), prop::array::uniform4(prop::collection::vec(any::<u8>(), length)))
            }),
        ) {
            let rows: [&[u8]; TOGETHER] = [&rows[0], &rows[1], &rows[2], &rows[3]];
            let right = sums_portable(&query, rows);
            for (number, kernel) in Kernel::available().enumerate() {
                prop_assert_eq!(kernel.run(&query, rows), right, "number {}", number);
            }
        }

        #[test]
        fn scores_are_nearly_the_inner_products(
            (query, rows) in (1usize..200).prop_flat_map(|dimension| {
                (prop::collection::vec(-1f32..1.0, dimension), prop::collection::vec(prop::collection::vec(-2f32..2.0, dimension), 1..20))
            }),
        ) {
            let own = OwnByteRows::of(&rows.concat(), query.len());
            let numbers: Vec<u32> = (0..rows.len() as u32).rev().collect();
            let mut scores = Vec::new();
            let asked = ByteQuery::new(&query);
            own.rows().score(&asked, &numbers, |score| scores.push(score));
            let mut all = own.rows().score_all(&asked);
            all.reverse();
            prop_assert_eq!(&all, &scores);
            for (number, score) in numbers.iter().zip(&scores) {
                let row = &rows[*number as usize];
                let mut decoded = row.clone();
                own.rows().decode(*number as usize, &mut decoded);
                let step = own.scales[*number as usize];
                prop_assert!(decoded.iter().zip(row).all(|(one, other)| (one - other).abs() <= 0.51 * step));
                let right: f32 = row.iter().zip(&query).map(|(one, other)| one * other).sum();
                // Half a step of each value, times what it is multiplied with.
                let largest = |values: &[f32]| values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                let most = 1.02 * query.len() as f32 * largest(row) * largest(&query) / LARGEST;
                prop_assert!((score - right).abs() <= most, "{} instead of {}", score, right);
            }
        }
    }

    #[test]
    fn zeros_and_values_that_are_not_finite_do_no_harm() {
        for value in [0.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE, f32::MAX] {
            let own = OwnByteRows::of(&[value; 3], 3);
            assert_eq!(own.rows().score_all(&ByteQuery::new(&[0.0; 3]))[0].abs(), 0.0, "{value}");
            assert!(!own.rows().score_all(&ByteQuery::new(&[value; 3]))[0].is_nan(), "{value}");
        }
    }
}
