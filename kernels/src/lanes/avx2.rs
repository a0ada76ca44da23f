//! Eight lanes: AVX2, FMA and F16C.
//!
//! SAFETY of every block here: the contract of [`Lanes`] says that the processor has the instruction set and that
//! pointers are valid for the lanes that are touched.

use super::Lanes;
use std::arch::x86_64::*;

/// One 256-bit register.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(crate) __m256);

impl Lanes for Avx2 {
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see the head of this file.
        unsafe { Self(_mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the head of this file.
        unsafe { Self(_mm256_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        debug_assert!(count < 8);
        let mut values = [0f32; 8];
        // SAFETY: see the head of this file; `count` is less than 8.
        unsafe {
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count);
            Self::load(values.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see the head of this file.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        debug_assert!(count < 8);
        let mut values = [0f32; 8];
        // SAFETY: see the head of this file; `count` is less than 8.
        unsafe {
            self.store(values.as_mut_ptr());
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, count);
        }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, to: *mut u8) {
        // SAFETY: see the head of this file.
        unsafe {
            let bytes = _mm256_and_si256(_mm256_castps_si256(self.0), _mm256_set1_epi32(0xff));
            let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            let words = _mm_packus_epi32(low, high);
            _mm_storel_epi64(to.cast(), _mm_packus_epi16(words, words));
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const half::f16) -> Self {
        // SAFETY: see the head of this file.
        unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_f16_first(from: *const half::f16, count: usize) -> Self {
        debug_assert!(count < 8);
        let mut values = [half::f16::ZERO; 8];
        // SAFETY: see the head of this file; `count` is less than 8.
        unsafe {
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count);
            Self::load_f16(values.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see the head of this file.
        unsafe { Self(_mm256_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see the head of this file.
        unsafe { Self(_mm256_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see the head of this file.
        unsafe { Self(_mm256_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see the head of this file.
        unsafe { Self(_mm256_div_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see the head of this file.
        unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see the head of this file.
        unsafe { Self(_mm256_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: see the head of this file.
        unsafe { Self(_mm256_min_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn exp2_of_integer(self) -> Self {
        // The exponent field of an f32 is the power plus 127, from bit 23 on.
        // SAFETY: see the head of this file.
        unsafe {
            let power = _mm256_cvtps_epi32(self.0);
            let biased = _mm256_add_epi32(power, _mm256_set1_epi32(127));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut values = [0f32; 8];
        // SAFETY: see the head of this file.
        unsafe { self.store(values.as_mut_ptr()) };
        pairwise(values, |left, right| left + right)
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut values = [0f32; 8];
        // SAFETY: see the head of this file.
        unsafe { self.store(values.as_mut_ptr()) };
        pairwise(values, |left, right| if left > right { left } else { right })
    }
}

/// Folds eight values as a balanced tree.
#[inline(always)]
fn pairwise(values: [f32; 8], fold: impl Fn(f32, f32) -> f32) -> f32 {
    let [a, b, c, d, e, f, g, h] = values;
    fold(fold(fold(a, e), fold(b, f)), fold(fold(c, g), fold(d, h)))
}
