//! Rows of activations: in the numbers that a product multiplies, and as kernels pass them on to one another.

use super::aligned::AlignedBlock;
use super::arithmetic::{Arithmetic, RowScale};
use super::balance::Balance;
use super::layout::{RowLayout, words_of};
use super::numbers::Numbers;
use super::product::Results;
use std::ops::Range;

/// Words behind the last row that may be read with it.
const SPARE_WORDS: usize = 16;

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
    /// A row that is made even.
    even: Vec<f32>,
}

impl NarrowedRows {
    /// Room for any of these shapes: rows, values of a row, and what they become. Rows of f32 are read where they are.
    pub(crate) fn for_shapes(shapes: &[(usize, usize, RowLayout)]) -> Self {
        let narrowed = || shapes.iter().filter(|(_, _, layout)| layout.numbers != Numbers::F32);
        let words = narrowed().map(|(rows, values, layout)| layout.rows_read(*rows) * layout.words(*values)).max();
        let rows = narrowed().map(|(rows, _, _)| *rows).max();
        let values = narrowed().map(|(_, values, _)| *values).max();
        Self {
            words: AlignedBlock::new(words.unwrap_or_default()),
            scales: vec![RowScale::default(); rows.unwrap_or_default()],
            even: vec![0.0; values.unwrap_or_default()],
        }
    }

    /// Rows of so many values in the arithmetic's numbers, made even first if it is said how.
    ///
    /// # Safety
    /// The processor has the instruction set of `A`.
    #[inline(always)]
    pub(crate) unsafe fn narrow<'a, A: Arithmetic>(
        &'a mut self,
        rows: &'a [f32],
        values: usize,
        layout: RowLayout,
        balance: Option<&Balance>,
    ) -> Operand<'a> {
        assert_eq!(layout.numbers, A::NUMBERS);
        if A::NUMBERS == Numbers::F32 {
            assert!(balance.is_none(), "f32 are read where they are");
            return Operand::of_f32(rows);
        }
        let (depth, count) = (layout.words(values), rows.len() / values);
        let taken = words_of(values, A::NUMBERS);
        let (words, scales) = (&mut self.words[..layout.rows_read(count) * depth], &mut self.scales[..count]);
        for ((row, words), scale) in rows.chunks_exact(values).zip(words.chunks_exact_mut(depth)).zip(&mut *scales) {
            let row = match balance {
                Some(balance) => {
                    balance.apply(row, &mut self.even);
                    &self.even[..values]
                }
                None => row,
            };
            // SAFETY: `words` has room for the values of a row; the rest is passed on to the caller.
            *scale = unsafe { A::narrow(row, words.as_mut_ptr()) };
            words[taken..].fill(0);
        }
        Operand { words, scales }
    }
}

/// Rows that only kernels read, in the form in which they pass them on.
pub(crate) struct PassedRows {
    words: AlignedBlock<u32>,
    layout: RowLayout,
    values: usize,
}

impl PassedRows {
    /// Room for so many rows of so many values.
    pub(crate) fn new(layout: RowLayout, rows: usize, values: usize) -> Self {
        // Wherever the rows begin that are read together, as many as that follow.
        let rows = rows + layout.rows_read(1) - 1;
        Self { words: AlignedBlock::new(rows * layout.words(values) + SPARE_WORDS), layout, values }
    }

    /// The form.
    pub(crate) fn layout(&self) -> RowLayout {
        self.layout
    }

    /// Values of a row.
    pub(crate) fn values(&self) -> usize {
        self.values
    }

    /// Words of a row.
    fn depth(&self) -> usize {
        self.layout.words(self.values)
    }

    /// The words of this row and of all that follow it.
    pub(crate) fn rows_from(&self, row: usize) -> &[u32] {
        &self.words[row * self.depth()..]
    }

    /// The words of these rows, to be written.
    pub(crate) fn rows_mut(&mut self, rows: Range<usize>) -> &mut [u32] {
        let depth = self.depth();
        &mut self.words[rows.start * depth..rows.end * depth]
    }

    /// The first rows, for the results of a product.
    pub(crate) fn results(&mut self, rows: usize) -> Results<'_> {
        let is_f32 = self.layout.numbers == Numbers::F32;
        let words = self.rows_mut(0..rows);
        if is_f32 { Results::Values(bytemuck::cast_slice_mut(words)) } else { Results::Narrowed(words) }
    }

    /// The first rows as the words that a product reads which takes them as they are.
    pub(crate) fn operand(&self, rows: usize) -> Operand<'_> {
        Operand { words: &self.words[..self.layout.rows_read(rows) * self.depth()], scales: &[] }
    }

    /// The values of the first rows, of f32.
    pub(crate) fn rows_of_f32(&self, rows: usize) -> &[f32] {
        assert_eq!(self.layout, RowLayout::F32);
        bytemuck::cast_slice(&self.words[..rows * self.values])
    }
}
