//! How rows of values lie in words of 32 bits.

use super::numbers::Numbers;

/// How rows of values lie in words of 32 bits, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowLayout {
    /// The numbers.
    pub(crate) numbers: Numbers,
    /// A row is a multiple of so many words: what follows its last value is zero.
    whole_words: usize,
    /// So many rows are read at a time: whoever passes fewer passes memory behind them that may be read, whatever it holds.
    whole_rows: usize,
}

impl RowLayout {
    /// f32, without gaps.
    pub(crate) const F32: Self = Self::dense(Numbers::F32);
    /// Halves in the rows of tiles.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const TILES: Self = Self { numbers: Numbers::Bf16, whole_words: 16, whole_rows: 16 };

    /// Rows that begin with the word after the last one of the row before.
    pub(crate) const fn dense(numbers: Numbers) -> Self {
        Self { numbers, whole_words: 1, whole_rows: 1 }
    }

    /// Words of a row of so many values.
    pub(crate) fn words(self, values: usize) -> usize {
        values.div_ceil(values_in_word(self.numbers)).next_multiple_of(self.whole_words)
    }

    /// Rows that are read where there are so many.
    pub(crate) fn rows_read(self, rows: usize) -> usize {
        rows.next_multiple_of(self.whole_rows)
    }
}

/// Values in a word.
pub(crate) const fn values_in_word(numbers: Numbers) -> usize {
    match numbers {
        Numbers::F32 => 1,
        Numbers::Bf16 => 2,
        Numbers::Int8 => 4,
    }
}

/// Words of so many values without gaps.
pub(crate) fn words_of(values: usize, numbers: Numbers) -> usize {
    values.div_ceil(values_in_word(numbers))
}
