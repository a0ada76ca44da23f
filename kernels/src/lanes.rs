//! One vector register of f32 values, so that every kernel is written once for all instruction sets.
//!
//! A kernel is a function generic over [`Lanes`], always inlined into an entry function that enables the
//! instruction set with `#[target_feature]`; see [`crate::cpu::kernels`] for the entry functions. All methods are
//! `unsafe`: the caller promises that the processor has the instruction set (which [`crate::Instructions`] checks
//! once, when an entry function is chosen) and that pointers are valid for the lanes that are read or written.
//! Pointers need no alignment beyond that of their type.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod portable;

/// A register of [`WIDTH`](Lanes::WIDTH) f32 values.
pub(crate) trait Lanes: Copy {
    /// Number of values.
    const WIDTH: usize;

    /// All lanes equal to `value`.
    unsafe fn splat(value: f32) -> Self;
    /// Reads `WIDTH` values.
    unsafe fn load(from: *const f32) -> Self;
    /// Reads the first `count` values (`count < WIDTH`); the other lanes are zero.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    /// Writes `WIDTH` values.
    unsafe fn store(self, to: *mut f32);
    /// Writes the first `count` lanes (`count < WIDTH`).
    unsafe fn store_first(self, to: *mut f32, count: usize);
    /// Writes the lowest byte of each lane's bits.
    unsafe fn store_low_bytes(self, to: *mut u8);
    /// Reads `WIDTH` IEEE half-precision values and widens them.
    unsafe fn load_f16(from: *const half::f16) -> Self;
    /// Reads and widens the first `count` half-precision values (`count < WIDTH`); the other lanes are zero.
    unsafe fn load_f16_first(from: *const half::f16, count: usize) -> Self;
    /// `self + other`
    unsafe fn add(self, other: Self) -> Self;
    /// `self - other`
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * other`
    unsafe fn mul(self, other: Self) -> Self;
    /// `self / other`
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once where the instruction set has such an instruction.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger of each pair; which one where either is NaN is not specified.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller of each pair; which one where either is NaN is not specified.
    unsafe fn min(self, other: Self) -> Self;
    /// 2 to the power of each lane. Lanes must hold integers from -126 to 127.
    unsafe fn exp2_of_integer(self) -> Self;
    /// Sum of the lanes.
    unsafe fn sum(self) -> f32;
    /// Largest lane.
    unsafe fn largest(self) -> f32;
}
