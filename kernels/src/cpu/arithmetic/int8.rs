//! Products of whole numbers, four in a word: activations of 0 to 255 times weights of -127 to 127, summed in 32 bits. All variants give the
//! same sums to the last bit.
//!
//! SAFETY of every block here: the contract of [`Arithmetic`] says that the processor has the instruction set and that pointers are valid
//! for what is touched.

use super::{Arithmetic, RowScale};
use crate::cpu::numbers::Numbers;
use crate::lanes::Lanes;
use crate::lanes::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{avx2::Avx2, avx512::Avx512};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// The largest number of an activation.
const LARGEST: f32 = 255.0;
/// Adding it to an f32 from 0 to 2^22 rounds to the nearest integer, which is then in the lowest bits.
const ROUNDER: f32 = 12_582_912.0;

/// Writes a row as bytes. Its numbers reach from its smallest value, or zero, to its largest, or zero.
///
/// # Safety
/// The processor has the instruction set of `L`; there is room for a word for each four values.
#[inline(always)]
unsafe fn narrow<L: Lanes>(values: &[f32], words: *mut u32) -> RowScale {
    let from = values.as_ptr();
    let bytes = words.cast::<u8>();
    let whole = values.len() - values.len() % L::WIDTH;
    let rest = values.len() - whole;
    // SAFETY: reads stay within `values`, writes within its bytes rounded up to a word.
    unsafe {
        let (mut largest, mut smallest) = (L::splat(0.0), L::splat(0.0));
        for at in (0..whole).step_by(L::WIDTH) {
            let value = L::load(from.add(at));
            largest = largest.max(value);
            smallest = smallest.min(value);
        }
        if rest > 0 {
            let value = L::load_first(from.add(whole), rest);
            largest = largest.max(value);
            smallest = smallest.min(value);
        }
        let smallest = -L::splat(0.0).sub(smallest).largest();
        let range = largest.largest() - smallest;
        // A row of zeros has any scale.
        let factor = if range > 0.0 { LARGEST / range } else { 1.0 };
        let zero = (-smallest * factor).round_ties_even();
        let (factors, shift) = (L::splat(factor), L::splat(zero + ROUNDER));
        let (least, most) = (L::splat(ROUNDER), L::splat(LARGEST + ROUNDER));
        let number = |value: L| value.mul_add(factors, shift).max(least).min(most);
        for at in (0..whole).step_by(L::WIDTH) {
            number(L::load(from.add(at))).store_low_bytes(bytes.add(at));
        }
        if rest > 0 {
            let mut last = [0u8; 64];
            number(L::load_first(from.add(whole), rest)).store_low_bytes(last.as_mut_ptr());
            last[rest..].fill(0);
            std::ptr::copy_nonoverlapping(last.as_ptr(), bytes.add(whole), rest.next_multiple_of(4));
        }
        RowScale { scale: 1.0 / factor, zero }
    }
}

/// Plain Rust that the compiler vectorises.
pub(crate) struct Int8Portable;

impl Arithmetic for Int8Portable {
    type Lanes = Portable;
    type Row = [i32; 4];
    type Columns = [[i8; 4]; Portable::WIDTH];
    type Sums = [i32; Portable::WIDTH];

    const NUMBERS: Numbers = Numbers::Int8;

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        [0; Portable::WIDTH]
    }

    #[inline(always)]
    unsafe fn load_row(from: *const u32) -> [i32; 4] {
        // SAFETY: see the head of this file.
        unsafe { from.cast::<[u8; 4]>().read() }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn load_columns(from: *const u32) -> Self::Columns {
        // SAFETY: see the head of this file; every pattern of bits is a value.
        unsafe { from.cast::<Self::Columns>().read() }
    }

    #[inline(always)]
    unsafe fn multiply_add(row: [i32; 4], columns: Self::Columns, mut sums: Self::Sums) -> Self::Sums {
        for (sum, column) in sums.iter_mut().zip(columns) {
            for (activation, weight) in row.iter().zip(column) {
                *sum += activation * i32::from(weight);
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn values(sums: Self::Sums) -> Portable {
        Portable(sums.map(|sum| sum as f32))
    }

    #[inline(always)]
    unsafe fn narrow(values: &[f32], words: *mut u32) -> RowScale {
        // SAFETY: passed on to the caller.
        unsafe { narrow::<Portable>(values, words) }
    }
}

/// AVX2 without instructions for bytes that do not lose bits: even and odd bytes apart, as halves of 32 bits.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Int8Avx2;

/// Even bytes and odd bytes, each as 16 bits.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct EvenAndOdd {
    even: __m256i,
    odd: __m256i,
}

#[cfg(target_arch = "x86_64")]
impl Arithmetic for Int8Avx2 {
    type Lanes = Avx2;
    type Row = EvenAndOdd;
    type Columns = EvenAndOdd;
    type Sums = __m256i;

    const NUMBERS: Numbers = Numbers::Int8;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        // SAFETY: see the head of this file.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn load_row(from: *const u32) -> EvenAndOdd {
        // SAFETY: see the head of this file.
        unsafe {
            let bytes = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
            EvenAndOdd { even: _mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), odd: _mm256_srli_epi16::<8>(bytes) }
        }
    }

    #[inline(always)]
    unsafe fn load_columns(from: *const u32) -> EvenAndOdd {
        // SAFETY: see the head of this file.
        unsafe {
            let bytes = _mm256_loadu_si256(from.cast());
            EvenAndOdd { even: _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes)), odd: _mm256_srai_epi16::<8>(bytes) }
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(row: EvenAndOdd, columns: EvenAndOdd, sums: __m256i) -> __m256i {
        // SAFETY: see the head of this file.
        unsafe {
            let even = _mm256_madd_epi16(row.even, columns.even);
            let odd = _mm256_madd_epi16(row.odd, columns.odd);
            _mm256_add_epi32(sums, _mm256_add_epi32(even, odd))
        }
    }

    #[inline(always)]
    unsafe fn values(sums: __m256i) -> Avx2 {
        // SAFETY: see the head of this file.
        unsafe { Avx2(_mm256_cvtepi32_ps(sums)) }
    }

    #[inline(always)]
    unsafe fn narrow(values: &[f32], words: *mut u32) -> RowScale {
        // SAFETY: passed on to the caller.
        unsafe { narrow::<Avx2>(values, words) }
    }
}

/// AVX2 with AVX-VNNI.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Int8AvxVnni;

#[cfg(target_arch = "x86_64")]
impl Arithmetic for Int8AvxVnni {
    type Lanes = Avx2;
    type Sums = __m256i;

    const NUMBERS: Numbers = Numbers::Int8;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        // SAFETY: see the head of this file.
        unsafe { _mm256_setzero_si256() }
    }

    whole_words!(__m256i, _mm256_set1_epi32, _mm256_loadu_si256);

    #[inline(always)]
    unsafe fn multiply_add(row: __m256i, columns: __m256i, sums: __m256i) -> __m256i {
        // SAFETY: see the head of this file.
        unsafe { _mm256_dpbusd_avx_epi32(sums, row, columns) }
    }

    #[inline(always)]
    unsafe fn values(sums: __m256i) -> Avx2 {
        // SAFETY: see the head of this file.
        unsafe { Avx2(_mm256_cvtepi32_ps(sums)) }
    }

    #[inline(always)]
    unsafe fn narrow(values: &[f32], words: *mut u32) -> RowScale {
        // SAFETY: passed on to the caller.
        unsafe { narrow::<Avx2>(values, words) }
    }
}

/// AVX-512 F, BW, DQ, VL and VNNI.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Int8Avx512;

#[cfg(target_arch = "x86_64")]
impl Arithmetic for Int8Avx512 {
    type Lanes = Avx512;
    type Sums = __m512i;

    const NUMBERS: Numbers = Numbers::Int8;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: see the head of this file.
        unsafe { _mm512_setzero_si512() }
    }

    whole_words!(__m512i, _mm512_set1_epi32, _mm512_loadu_si512);

    #[inline(always)]
    unsafe fn multiply_add(row: __m512i, columns: __m512i, sums: __m512i) -> __m512i {
        // SAFETY: see the head of this file.
        unsafe { _mm512_dpbusd_epi32(sums, row, columns) }
    }

    #[inline(always)]
    unsafe fn values(sums: __m512i) -> Avx512 {
        // SAFETY: see the head of this file.
        unsafe { Avx512(_mm512_cvtepi32_ps(sums)) }
    }

    #[inline(always)]
    unsafe fn narrow(values: &[f32], words: *mut u32) -> RowScale {
        // SAFETY: passed on to the caller.
        unsafe { narrow::<Avx512>(values, words) }
    }
}
