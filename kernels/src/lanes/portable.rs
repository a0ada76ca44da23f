//! Eight lanes in plain Rust: loops of fixed length that the compiler turns into SSE2 or NEON instructions.
//!
//! SAFETY of every block here: the contract of [`Lanes`] says that pointers are valid for the lanes that are
//! touched. No instruction set is assumed.

use super::Lanes;

/// Eight values, kept in two registers of the target.
#[derive(Clone, Copy)]
pub(crate) struct Portable(pub(crate) [f32; 8]);

impl Portable {
    #[inline(always)]
    fn map(self, function: impl Fn(f32) -> f32) -> Self {
        let mut result = self.0;
        for value in &mut result {
            *value = function(*value);
        }
        Self(result)
    }

    #[inline(always)]
    fn zip(self, other: Self, function: impl Fn(f32, f32) -> f32) -> Self {
        let mut result = self.0;
        for (value, other) in result.iter_mut().zip(other.0) {
            *value = function(*value, other);
        }
        Self(result)
    }
}

/// `a * b + c`: fused only where the target has the instruction, because elsewhere it would be a library call.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

/// Widens a half-precision value without branches, so that a loop over it is vectorised.
///
/// The exponent and mantissa are moved to their places in an f32 and the difference of the exponents' biases
/// (127 - 15) is made up by a multiplication, which also normalises subnormal values. Infinity and NaN, whose
/// exponent is all ones, get an exponent of all ones.
#[inline(always)]
pub(crate) fn widen(value: half::f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let sign = (bits & 0x8000) << 16;
    let magnitude = (bits & 0x7fff) << 13;
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
    let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 127 - 15) << 23);
    f32::from_bits(scaled.to_bits() | special | sign)
}

impl Lanes for Portable {
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the head of this file.
        unsafe { Self(from.cast::<[f32; 8]>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        debug_assert!(count < 8);
        let mut values = [0f32; 8];
        // SAFETY: see the head of this file; `count` is less than 8.
        unsafe { std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count) };
        Self(values)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see the head of this file.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        debug_assert!(count < 8);
        // SAFETY: see the head of this file; `count` is less than 8.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, count) };
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, to: *mut u8) {
        // SAFETY: see the head of this file.
        unsafe { to.cast::<[u8; 8]>().write(self.0.map(|value| value.to_bits() as u8)) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const half::f16) -> Self {
        // SAFETY: see the head of this file.
        let values = unsafe { from.cast::<[half::f16; 8]>().read_unaligned() };
        Self(values.map(widen))
    }

    #[inline(always)]
    unsafe fn load_f16_first(from: *const half::f16, count: usize) -> Self {
        debug_assert!(count < 8);
        let mut values = [half::f16::ZERO; 8];
        // SAFETY: see the head of this file; `count` is less than 8.
        unsafe { std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count) };
        Self(values.map(widen))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        let mut result = addend.0;
        for (index, sum) in result.iter_mut().enumerate() {
            *sum = multiply_add(self.0[index], factor.0[index], *sum);
        }
        Self(result)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn exp2_of_integer(self) -> Self {
        // Adding 1.5 * 2^23 leaves the integer in the low bits; the exponent field of an f32 is the power plus 127.
        self.map(|power| {
            let bits = (power + 12_582_912.0).to_bits();
            f32::from_bits((bits << 23).wrapping_add(127 << 23))
        })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (b + f)) + ((c + g) + (d + h))
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
}
