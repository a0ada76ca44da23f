//! The numbers that a product is made of: how many inputs lie in 32 bits of a row and of a column, and how they are multiplied and summed.
//!
//! All methods are `unsafe` as those of [`Lanes`]: the caller promises that the processor has the instruction set, and that pointers are
//! valid for what is read or written.

/// Rows and columns of an [`Arithmetic`] whose instructions take words as they lie in memory.
#[cfg(target_arch = "x86_64")]
macro_rules! whole_words {
    ($register:ty, $splat:ident, $load:ident) => {
        type Row = $register;
        type Columns = $register;

        #[inline(always)]
        unsafe fn load_row(from: *const u32) -> $register {
            // SAFETY: the contract of `Arithmetic`: the word is there, and the processor has the instruction.
            unsafe { $splat(from.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn load_columns(from: *const u32) -> $register {
            // SAFETY: as above, for a word of each lane.
            unsafe { $load(from.cast()) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod bf16;
pub(crate) mod int8;

use super::numbers::Numbers;
use crate::lanes::Lanes;
use std::marker::PhantomData;

/// How the whole numbers of a row are read: value = (number - zero) * scale.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RowScale {
    pub(crate) scale: f32,
    pub(crate) zero: f32,
}

/// How the products of a tile are computed.
pub(crate) trait Arithmetic {
    /// Registers of f32 that results are in. Each lane is a column.
    type Lanes: Lanes;
    /// The same word of a row in all lanes, made for multiplying.
    type Row: Copy;
    /// A word of each of as many columns as there are lanes, made for multiplying.
    type Columns: Copy;
    /// Sums of products.
    type Sums: Copy;

    const NUMBERS: Numbers;

    unsafe fn zero() -> Self::Sums;
    /// Reads one word, which need not begin on one.
    unsafe fn load_row(from: *const u32) -> Self::Row;
    /// Reads as many words as there are lanes.
    unsafe fn load_columns(from: *const u32) -> Self::Columns;
    /// Adds the products of the inputs in a word.
    unsafe fn multiply_add(row: Self::Row, columns: Self::Columns, sums: Self::Sums) -> Self::Sums;
    /// The sums as f32.
    unsafe fn values(sums: Self::Sums) -> Self::Lanes;
    /// Writes `values` as a row of words; what follows the last value in its word is zero.
    unsafe fn narrow(values: &[f32], words: *mut u32) -> RowScale;
}

/// f32, one in a word.
pub(crate) struct F32<L>(PhantomData<L>);

// SAFETY of every block here: the contract of the trait is that of `Lanes`.
impl<L: Lanes> Arithmetic for F32<L> {
    type Lanes = L;
    type Row = L;
    type Columns = L;
    type Sums = L;

    const NUMBERS: Numbers = Numbers::F32;

    #[inline(always)]
    unsafe fn zero() -> L {
        // SAFETY: see above.
        unsafe { L::splat(0.0) }
    }

    #[inline(always)]
    unsafe fn load_row(from: *const u32) -> L {
        // SAFETY: see above; every word is a valid f32.
        unsafe { L::splat(from.cast::<f32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_columns(from: *const u32) -> L {
        // SAFETY: see above.
        unsafe { L::load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn multiply_add(row: L, columns: L, sums: L) -> L {
        // SAFETY: see above.
        unsafe { row.mul_add(columns, sums) }
    }

    #[inline(always)]
    unsafe fn values(sums: L) -> L {
        sums
    }

    #[inline(always)]
    unsafe fn narrow(values: &[f32], words: *mut u32) -> RowScale {
        // SAFETY: the caller promises room for a word for each value, and the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast(), words, values.len()) };
        RowScale::default()
    }
}
