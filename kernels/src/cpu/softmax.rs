//! The exponentials of attention's softmax, in the numbers that its weights are multiplied in.

use super::activation::exp;
#[cfg(target_arch = "x86_64")]
use super::arithmetic::bf16::{Bf16Avx512, narrowed};
use super::arithmetic::{Arithmetic, F32};
use crate::lanes::Lanes;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Numbers that are fine enough for attention.
pub(crate) trait Softmax: Arithmetic {
    /// Writes the numerators of a softmax, e^(x - max) of the first `count` of `padded` scores (at least one) and next to nothing for the rest, as a row of words to
    /// `weights`, and returns their sum, which is at least nearly one. f32 are written where the scores are.
    ///
    /// # Safety
    /// The processor has the instruction set. `scores` is valid for `padded` values, the next multiple of a panel's columns (32 of halves), and `weights` for the words of
    /// as many.
    unsafe fn exponentiate(scores: *mut f32, count: usize, padded: usize, weights: *mut u32) -> f32;
}

impl<L: Lanes> Softmax for F32<L> {
    #[inline(always)]
    unsafe fn exponentiate(scores: *mut f32, count: usize, padded: usize, weights: *mut u32) -> f32 {
        debug_assert!(std::ptr::eq(scores.cast(), weights));
        // SAFETY: passed on to the caller.
        unsafe { exponentiate_in_place::<L>(scores, count, padded) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Softmax for Bf16Avx512 {
    #[inline(always)]
    unsafe fn exponentiate(scores: *mut f32, count: usize, padded: usize, weights: *mut u32) -> f32 {
        // SAFETY: passed on to the caller.
        unsafe { exponentiate_as_halves(scores, count, padded, weights) }
    }
}

/// The numerators of a softmax, in place: e^(x - max) of the first `count` of `padded` scores (at least one).
/// Returns their sum, which is at least one.
///
/// # Safety
/// The processor has the instruction set of `L`; `scores` is valid for `padded` values, a multiple of the width.
#[inline(always)]
pub(crate) unsafe fn exponentiate_in_place<L: Lanes>(scores: *mut f32, count: usize, padded: usize) -> f32 {
    // SAFETY: offsets stay below `padded`.
    unsafe {
        for at in count..padded {
            // `exp` makes of it the smallest value that it gives, 1e-38: nothing in the sum.
            *scores.add(at) = f32::NEG_INFINITY;
        }
        let mut largest = L::load(scores);
        for at in (L::WIDTH..padded).step_by(L::WIDTH) {
            largest = largest.max(L::load(scores.add(at)));
        }
        let largest = L::splat(largest.largest());
        let mut sum = L::splat(0.0);
        for at in (0..padded).step_by(L::WIDTH) {
            let value = exp::<L>(L::load(scores.add(at)).sub(largest));
            value.store(scores.add(at));
            sum = sum.add(value);
        }
        sum.sum()
    }
}

/// The numerators of a softmax as halves: e^(x - max) of the first `count` of `padded` scores (at least one), zero for the rest. Returns the
/// sum of them before they are narrowed, which is at least nearly one.
///
/// e^x = 2^n 2^f with f from -1/2 to 1/2, and 2^f by the polynomial of the third degree whose largest relative error is the least, 8e-5: halves have
/// errors of 2e-3.
///
/// # Safety
/// The processor has AVX-512 and its BF16. `scores` is valid for `padded` values, a multiple of 32, and `weights` for half as many words.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn exponentiate_as_halves(scores: *const f32, count: usize, padded: usize, weights: *mut u32) -> f32 {
    let whole = count - count % 16;
    let rest = ((1u32 << (count % 16)) - 1) as u16;
    // SAFETY: offsets stay below `padded`.
    unsafe {
        let mut largest = _mm512_mask_loadu_ps(_mm512_set1_ps(f32::NEG_INFINITY), rest, scores.add(whole.min(padded - 16)));
        for at in (0..whole).step_by(16) {
            largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores.add(at)));
        }
        let log2_e = _mm512_set1_ps(std::f32::consts::LOG2_E);
        let largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
        let power = |at: usize| {
            let exponent = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores.add(at)), largest), log2_e);
            let n = _mm512_roundscale_ps::<0>(exponent);
            let f = _mm512_sub_ps(exponent, n);
            let mut p = _mm512_fmadd_ps(f, _mm512_set1_ps(5.517_142e-2), _mm512_set1_ps(2.426_111_7e-1));
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.932_61e-1));
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.999_280_6e-1));
            _mm512_scalef_ps(p, n)
        };
        let store = |at: usize, values: __m512| _mm256_storeu_si256(weights.add(at / 2).cast(), narrowed(values));
        let mut sum = _mm512_setzero_ps();
        for at in (0..whole).step_by(16) {
            let value = power(at);
            store(at, value);
            sum = _mm512_add_ps(sum, value);
        }
        let mut at = whole;
        if rest != 0 {
            let value = _mm512_maskz_mov_ps(rest, power(at));
            store(at, value);
            sum = _mm512_add_ps(sum, value);
            at += 16;
        }
        if at < padded {
            store(at, _mm512_setzero_ps());
        }
        _mm512_reduce_add_ps(sum)
    }
}
