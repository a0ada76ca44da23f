//! Products of bf16, two in a word: AVX-512 BF16, whose instruction multiplies pairs and adds them to a sum in f32.
//!
//! SAFETY of every block here: the contract of [`Arithmetic`] says that the processor has the instruction set and that pointers are valid
//! for what is touched; masked loads and stores touch no other memory.

use super::{Arithmetic, RowScale};
use crate::cpu::numbers::Numbers;
use crate::lanes::avx512::Avx512;
use std::arch::x86_64::*;

/// bf16 with AVX-512 F, BW, DQ, VL and BF16.
pub(crate) struct Bf16Avx512;

#[inline(always)]
fn halves(words: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes, and every pattern of bits is a value of both.
    unsafe { std::mem::transmute(words) }
}

/// Sixteen values as halves.
///
/// # Safety
/// The processor has the instruction set.
#[inline(always)]
pub(crate) unsafe fn narrowed(values: __m512) -> __m256i {
    // SAFETY: as the caller promises; both types are 32 bytes, and every pattern of bits is a value of both.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) }
}

impl Arithmetic for Bf16Avx512 {
    type Lanes = Avx512;
    type Sums = __m512;

    const NUMBERS: Numbers = Numbers::Bf16;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: see the head of this file.
        unsafe { _mm512_setzero_ps() }
    }

    whole_words!(__m512i, _mm512_set1_epi32, _mm512_loadu_si512);

    #[inline(always)]
    unsafe fn multiply_add(row: __m512i, columns: __m512i, sums: __m512) -> __m512 {
        // SAFETY: see the head of this file.
        unsafe { _mm512_dpbf16_ps(sums, halves(row), halves(columns)) }
    }

    #[inline(always)]
    unsafe fn values(sums: __m512) -> Avx512 {
        Avx512(sums)
    }

    #[inline(always)]
    unsafe fn narrow(values: &[f32], words: *mut u32) -> RowScale {
        let (from, to) = (values.as_ptr(), words.cast::<u16>());
        let rest = values.len() % 16;
        let whole = values.len() - rest;
        // SAFETY: see the head of this file; the caller promises a word for each two values.
        unsafe {
            for at in (0..whole).step_by(16) {
                // Without a mask: what a masked store has written, a load that follows has to wait for.
                _mm256_storeu_si256(to.add(at).cast(), narrowed(_mm512_loadu_ps(from.add(at))));
            }
            if rest > 0 {
                let read = (1u16 << rest) - 1;
                // The value that shares the last word with nothing is followed by zero.
                let written = if rest % 2 == 1 { read << 1 | 1 } else { read };
                let last = narrowed(_mm512_maskz_loadu_ps(read, from.add(whole)));
                _mm256_mask_storeu_epi16(to.add(whole).cast(), written, last);
            }
        }
        RowScale::default()
    }
}
