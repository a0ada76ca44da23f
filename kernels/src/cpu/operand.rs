//! Rows of activations in the numbers that a product multiplies.

use super::aligned::AlignedBlock;
use super::arithmetic::{Arithmetic, RowScale};
use super::packed::words_of;
use crate::precision::Precision;

/// Rows of activations as the words that a product reads.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(super) words: &'a [u32],
    /// How each row is read; none unless it holds whole numbers.
    pub(super) scales: &'a [RowScale],
}

impl<'a> Operand<'a> {
    /// Rows of f32 as they are.
    pub(crate) fn of_f32(rows: &'a [f32]) -> Self {
        Self { words: bytemuck::cast_slice(rows), scales: &[] }
    }

    /// The bytes of a row, and how they are read.
    #[cfg(test)]
    pub(crate) fn row_of_bytes(&self, row: usize) -> (&'a [u8], RowScale) {
        let depth = self.words.len() / self.scales.len();
        (bytemuck::cast_slice(&self.words[row * depth..][..depth]), self.scales[row])
    }
}

/// Room for rows that are narrowed.
pub(crate) struct NarrowedRows {
    words: AlignedBlock<u32>,
    scales: Vec<RowScale>,
}

impl NarrowedRows {
    /// Room for any of these shapes: rows, values of a row, and what they become. Rows of f32 are read where they are.
    pub(crate) fn for_shapes(shapes: &[(usize, usize, Precision)]) -> Self {
        let narrowed = || shapes.iter().filter(|(_, _, precision)| *precision != Precision::F32);
        let words = narrowed().map(|(rows, values, precision)| rows * words_of(*values, *precision)).max();
        let rows = narrowed().map(|(rows, _, _)| *rows).max();
        Self { words: AlignedBlock::new(words.unwrap_or_default()), scales: vec![RowScale::default(); rows.unwrap_or_default()] }
    }

    /// Rows of so many values in the arithmetic's numbers.
    ///
    /// # Safety
    /// The processor has the instruction set of `A`.
    #[inline(always)]
    pub(crate) unsafe fn narrow<'a, A: Arithmetic>(&'a mut self, rows: &'a [f32], values: usize) -> Operand<'a> {
        if A::PRECISION == Precision::F32 {
            return Operand::of_f32(rows);
        }
        let (depth, count) = (words_of(values, A::PRECISION), rows.len() / values);
        let (words, scales) = (&mut self.words[..count * depth], &mut self.scales[..count]);
        for ((row, words), scale) in rows.chunks_exact(values).zip(words.chunks_exact_mut(depth)).zip(&mut *scales) {
            // SAFETY: `words` has room for the values of a row; the rest is passed on to the caller.
            *scale = unsafe { A::narrow(row, words.as_mut_ptr()) };
        }
        Operand { words, scales }
    }
}
