//! Multi-head self-attention over one sequence.

use super::aligned::AlignedBlock;
use super::arithmetic::Arithmetic;
use super::half_heads::{self, Head};
use super::layout::{RowLayout, values_in_word, words_of};
use super::numbers::Numbers;
use super::product::tile;
use super::softmax::Softmax;
use crate::lanes::Lanes;

/// The widest panel of any instruction set, in values: buffers are sized for it.
const PANEL_COLUMNS_MAX: usize = 32;
/// The tallest block of rows of any instruction set.
const BLOCK_ROWS_MAX: usize = 32;
/// How many rows before it is read a row is asked for: long enough for it to come from the last cache.
pub(super) const PREFETCHED_ROWS: usize = 16;
/// Words that any instruction set has a row be a multiple of.
const WHOLE_WORDS_MAX: usize = 16;

/// Buffers for one head, used again for every head and sequence. Words are those of the arithmetic.
pub(crate) struct AttentionBuffers {
    tokens_max: usize,
    pub(super) head_dimension: usize,
    /// Keys of one head, transposed: panels of tokens, each words of the head's dimension x panel columns.
    pub(super) keys: AlignedBlock<u32>,
    /// Values of one head: panels of the head's columns, each words of the tokens x panel columns.
    pub(super) values: AlignedBlock<u32>,
    /// Scores of a block's rows against all tokens.
    pub(super) scores: AlignedBlock,
    /// Weights of a block's rows as halves.
    pub(super) narrowed: AlignedBlock<u32>,
}

impl AttentionBuffers {
    /// Buffers for sequences of at most `tokens_max` tokens.
    pub(crate) fn new(tokens_max: usize, head_dimension: usize) -> Self {
        let tokens = tokens_max.next_multiple_of(PANEL_COLUMNS_MAX);
        let columns = head_dimension.next_multiple_of(PANEL_COLUMNS_MAX);
        Self {
            tokens_max,
            head_dimension,
            keys: AlignedBlock::new(tokens * head_dimension.next_multiple_of(WHOLE_WORDS_MAX)),
            values: AlignedBlock::new(tokens * columns),
            scores: AlignedBlock::new(BLOCK_ROWS_MAX * tokens),
            narrowed: AlignedBlock::new(BLOCK_ROWS_MAX * words_of(tokens, Numbers::Bf16)),
        }
    }

    /// The longest sequence that the buffers are for.
    pub(crate) fn tokens_max(&self) -> usize {
        self.tokens_max
    }
}

/// Attention of one sequence. Rows are in the layout that its kernels pass on.
pub(crate) struct Attention<'a> {
    /// For each token: queries, keys and values of all heads, 3 x heads x head dimension. The queries are already
    /// divided by the square root of the head dimension. More may follow.
    pub(crate) projections: &'a [u32],
    /// For each token the heads' results side by side: heads x head dimension.
    pub(crate) out: &'a mut [u32],
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) buffers: &'a mut AttentionBuffers,
}

/// Computes softmax(Q K^T) V for each head (Vaswani et al., "Attention Is All You Need", 2017, equation 1; the
/// division by the root of the head dimension is in the weights of Q). `ROWS` is at most 8, and a panel of
/// `VECTORS` vectors has at most 32 columns. Rows hold the numbers of the arithmetic without gaps.
///
/// # Safety
/// The processor has the instruction set of `A`.
#[inline(always)]
pub(crate) unsafe fn attend<A: Softmax, const ROWS: usize, const VECTORS: usize>(attention: &mut Attention<'_>) {
    const { assert!(ROWS <= 8 && VECTORS * A::Lanes::WIDTH <= PANEL_COLUMNS_MAX) };
    let panel_columns = VECTORS * A::Lanes::WIDTH;
    let Attention { projections, out, tokens, heads, buffers } = attention;
    let (tokens, heads) = (*tokens, *heads);
    let dimension = buffers.head_dimension;
    let hidden = heads * dimension;
    let layout = RowLayout::dense(A::NUMBERS);
    let (row_words, out_words) = (layout.words(3 * hidden), layout.words(hidden));
    assert!(PANEL_COLUMNS_MAX.is_multiple_of(panel_columns));
    assert!(tokens <= buffers.tokens_max);
    // A word of a head may reach past its last value.
    assert!(projections.len() > tokens * row_words);
    assert_eq!(out.len(), tokens * out_words);
    for head in 0..heads {
        let first = head * dimension;
        // SAFETY: the assertions above tie the slices to the shape, and the buffers are sized for `tokens_max`
        // tokens rounded up to the widest panel, with a word for each value; all offsets below stay inside.
        unsafe {
            match A::NUMBERS {
                Numbers::Bf16 => {
                    assert_eq!(panel_columns, half_heads::PANEL_COLUMNS);
                    let halves: &[u16] = bytemuck::cast_slice(projections);
                    let keys = Head { halves: &halves[hidden + first..], stride: 2 * row_words, tokens, dimension };
                    half_heads::pack_keys(&keys, layout, buffers);
                    half_heads::pack_values(&Head { halves: &halves[2 * hidden + first..], ..keys }, layout, buffers);
                }
                _ => {
                    let values: &[f32] = bytemuck::cast_slice(projections);
                    pack_keys(&values[hidden + first..], row_words, tokens, panel_columns, buffers);
                    pack_values(&values[2 * hidden + first..], row_words, tokens, panel_columns, buffers);
                }
            }
            let mut row = 0;
            while row < tokens {
                let left = tokens - row;
                for ahead in row + ROWS..row + 2 * ROWS {
                    let queries = value_of::<A>(projections.as_ptr().wrapping_add(ahead * row_words), first);
                    prefetch_row(queries, words_of(dimension, A::NUMBERS));
                }
                let task = RowsTask {
                    queries: value_of::<A>(projections.as_ptr().add(row * row_words), first),
                    query_stride: row_words,
                    tokens,
                    out: value_of::<A>(out.as_mut_ptr().add(row * out_words), first).cast_mut(),
                    out_stride: out_words,
                };
                match left {
                    _ if left >= ROWS => attend_rows::<A, ROWS, VECTORS>(&task, buffers),
                    1 => attend_rows::<A, 1, VECTORS>(&task, buffers),
                    2 => attend_rows::<A, 2, VECTORS>(&task, buffers),
                    3 => attend_rows::<A, 3, VECTORS>(&task, buffers),
                    4 => attend_rows::<A, 4, VECTORS>(&task, buffers),
                    5 => attend_rows::<A, 5, VECTORS>(&task, buffers),
                    6 => attend_rows::<A, 6, VECTORS>(&task, buffers),
                    _ => attend_rows::<A, 7, VECTORS>(&task, buffers),
                }
                row += ROWS;
            }
        }
    }
    if A::NUMBERS == Numbers::Bf16 && !hidden.is_multiple_of(2) {
        for row in out.chunks_exact_mut(out_words) {
            bytemuck::cast_slice_mut::<u32, u16>(row)[hidden] = 0;
        }
    }
}

/// The place of the value of this number in a row: that of a word, unless it is a half in the middle of one.
#[inline(always)]
fn value_of<A: Arithmetic>(row: *const u32, number: usize) -> *const u32 {
    match A::NUMBERS {
        Numbers::Bf16 => row.cast::<u16>().wrapping_add(number).cast(),
        _ => row.wrapping_add(number),
    }
}

/// Asks for so many values of a row to be brought into the nearest cache. Those of one head are far apart, so that the processor does not see what
/// comes next.
#[inline(always)]
pub(super) fn prefetch_row<T>(row: *const T, values: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..values * size_of::<T>()).step_by(64) {
        // SAFETY: a prefetch never faults, whatever the address, and SSE is part of x86-64.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(row.cast::<i8>().wrapping_add(line));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (row, values);
}

/// Transposes one head's keys into panels of `panel_columns` tokens; columns past the last token are zero.
#[inline(always)]
fn pack_keys(keys: &[f32], stride: usize, tokens: usize, panel_columns: usize, buffers: &mut AttentionBuffers) {
    let dimension = buffers.head_dimension;
    let panels = buffers.keys.chunks_exact_mut(panel_columns * dimension);
    for (first, panel) in (0..tokens).step_by(panel_columns).zip(panels) {
        let present = (tokens - first).min(panel_columns);
        if present < panel_columns {
            panel.fill(0);
        }
        for column in 0..present {
            let from = (first + column) * stride;
            prefetch_row(keys.as_ptr().wrapping_add(from + PREFETCHED_ROWS * stride), dimension);
            let places = panel[column..].iter_mut().step_by(panel_columns);
            for (place, value) in places.zip(&keys[from..from + dimension]) {
                *place = value.to_bits();
            }
        }
    }
}

/// Copies one head's values into panels of `panel_columns` columns. Columns past the last one are zero.
#[inline(always)]
fn pack_values(values: &[f32], stride: usize, tokens: usize, panel_columns: usize, buffers: &mut AttentionBuffers) {
    let dimension = buffers.head_dimension;
    for token in 0..tokens {
        let from = token * stride;
        prefetch_row(values.as_ptr().wrapping_add(from + PREFETCHED_ROWS * stride), dimension);
        let words: &[u32] = bytemuck::cast_slice(&values[from..from + dimension]);
        for first in (0..dimension).step_by(panel_columns) {
            let present = (dimension - first).min(panel_columns);
            let line = &mut buffers.values[first * tokens + token * panel_columns..][..panel_columns];
            line[..present].copy_from_slice(&words[first..][..present]);
            line[present..].fill(0);
        }
    }
}

/// The tokens of one tile in one head.
struct RowsTask {
    /// Where the first word begins; not on a word where a head has an odd number of halves.
    queries: *const u32,
    /// Words.
    query_stride: usize,
    /// Tokens of the sequence.
    tokens: usize,
    /// As the queries.
    out: *mut u32,
    out_stride: usize,
}

/// Attention of `ROWS` tokens in one head.
///
/// # Safety
/// The processor has the instruction set of `A`; the pointers and buffers are valid for the shapes that [`attend`] describes.
#[inline(always)]
unsafe fn attend_rows<A: Softmax, const ROWS: usize, const VECTORS: usize>(task: &RowsTask, buffers: &mut AttentionBuffers) {
    let panel_columns = VECTORS * A::Lanes::WIDTH;
    let (tokens, dimension) = (task.tokens, buffers.head_dimension);
    let padded_tokens = tokens.next_multiple_of(panel_columns);
    let (token_words, dimension_words) = (words_of(tokens, A::NUMBERS), words_of(dimension, A::NUMBERS));
    let (keys, values) = (buffers.keys.as_ptr(), buffers.values.as_ptr());
    let (scores, room) = (buffers.scores.as_mut_ptr(), buffers.narrowed.as_mut_ptr());
    let mut results = [0f32; PANEL_COLUMNS_MAX];
    // SAFETY: `scores` holds ROWS x padded_tokens values, `keys` padded_tokens x words of the dimension, `values` words of the tokens x
    // the dimension rounded up to whole panels, `room` ROWS rows of as many words as there are scores, `results` a panel's columns.
    unsafe {
        for first in (0..padded_tokens).step_by(panel_columns) {
            let keys = keys.add(first * dimension_words);
            let sums = tile::<A, ROWS, VECTORS>(task.queries, task.query_stride, keys, dimension_words);
            for (row, sums) in sums.into_iter().enumerate() {
                for (vector, sum) in sums.into_iter().enumerate() {
                    A::values(sum).store(scores.add(row * padded_tokens + first + vector * A::Lanes::WIDTH));
                }
            }
        }
        let weights = if A::NUMBERS == Numbers::F32 { scores.cast() } else { room };
        let stride = words_of(padded_tokens, A::NUMBERS);
        let mut inverse_sums = [0f32; ROWS];
        for (row, inverse_sum) in inverse_sums.iter_mut().enumerate() {
            let row_scores = scores.add(row * padded_tokens);
            *inverse_sum = 1.0 / A::exponentiate(row_scores, tokens, padded_tokens, weights.add(row * stride));
        }
        for first in (0..dimension).step_by(panel_columns) {
            let sums = tile::<A, ROWS, VECTORS>(weights, stride, values.add(first * token_words), token_words);
            let width = (dimension - first).min(panel_columns);
            for (row, sums) in sums.into_iter().enumerate() {
                let factor = A::Lanes::splat(inverse_sums[row]);
                for (vector, sum) in sums.into_iter().enumerate() {
                    A::values(sum).mul(factor).store(results.as_mut_ptr().add(vector * A::Lanes::WIDTH));
                }
                let place = value_of::<A>(task.out.add(row * task.out_stride), first).cast_mut();
                if width.is_multiple_of(values_in_word(A::NUMBERS)) {
                    A::narrow(&results[..width], place);
                } else {
                    // What follows in the last word is another head's, or another row's.
                    let mut words = [0u32; PANEL_COLUMNS_MAX];
                    A::narrow(&results[..width], words.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(words.as_ptr().cast::<u16>(), place.cast::<u16>(), width);
                }
            }
        }
    }
}
