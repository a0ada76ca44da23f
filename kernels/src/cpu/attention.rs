//! Multi-head self-attention over one sequence.

use super::activation::exp;
use super::aligned::AlignedBlock;
use super::arithmetic::Arithmetic;
use super::layout::{values_in_word, words_of};
use super::product::tile;
use crate::lanes::Lanes;
use crate::precision::Precision;

/// The widest panel of any instruction set, in values: buffers are sized for it.
const PANEL_COLUMNS_MAX: usize = 32;
/// The tallest block of rows of any instruction set.
const BLOCK_ROWS_MAX: usize = 32;
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
    /// Rows of a block, and rows that share words, once narrowed.
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
            narrowed: AlignedBlock::new(BLOCK_ROWS_MAX * tokens.max(columns)),
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
/// `VECTORS` vectors has at most 32 columns. The arithmetic is one without scales. Rows are f32.
///
/// # Safety
/// The processor has the instruction set of `A`.
#[inline(always)]
pub(crate) unsafe fn attend<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(attention: &mut Attention<'_>) {
    const { assert!(ROWS <= 8 && !matches!(A::PRECISION, Precision::Int8)) };
    let panel_columns = VECTORS * A::Lanes::WIDTH;
    let Attention { projections, out, tokens, heads, buffers } = attention;
    let (tokens, heads) = (*tokens, *heads);
    let dimension = buffers.head_dimension;
    let hidden = heads * dimension;
    assert!(PANEL_COLUMNS_MAX.is_multiple_of(panel_columns));
    assert!(tokens <= buffers.tokens_max);
    let projections: &[f32] = bytemuck::cast_slice(&projections[..tokens * 3 * hidden]);
    let out: &mut [f32] = bytemuck::cast_slice_mut(out);
    assert_eq!(out.len(), tokens * hidden);
    for head in 0..heads {
        let keys = &projections[hidden + head * dimension..];
        let values = &projections[2 * hidden + head * dimension..];
        // SAFETY: the assertions above tie the slices to the shape, and the buffers are sized for `tokens_max`
        // tokens rounded up to the widest panel, with a word for each value; all offsets below stay inside.
        unsafe {
            pack_keys::<A>(keys, 3 * hidden, tokens, panel_columns, buffers);
            pack_values::<A>(values, 3 * hidden, tokens, panel_columns, buffers);
            let mut row = 0;
            while row < tokens {
                let left = tokens - row;
                let task = RowsTask {
                    queries: projections.as_ptr().add(row * 3 * hidden + head * dimension),
                    query_stride: 3 * hidden,
                    tokens,
                    out: out.as_mut_ptr().add(row * hidden + head * dimension),
                    out_stride: hidden,
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
}

/// Transposes one head's keys into panels of `panel_columns` tokens; columns past the last token are zero.
///
/// # Safety
/// The processor has the instruction set of `A`.
#[inline(always)]
unsafe fn pack_keys<A: Arithmetic>(
    keys: &[f32],
    stride: usize,
    tokens: usize,
    panel_columns: usize,
    buffers: &mut AttentionBuffers,
) {
    let dimension = buffers.head_dimension;
    let depth = words_of(dimension, A::PRECISION);
    let key_words = &mut buffers.narrowed[..depth];
    let panels = buffers.keys.chunks_exact_mut(panel_columns * depth);
    for (first, panel) in (0..tokens).step_by(panel_columns).zip(panels) {
        let present = (tokens - first).min(panel_columns);
        if present < panel_columns {
            panel.fill(0);
        }
        for column in 0..present {
            let from = (first + column) * stride;
            // SAFETY: `key_words` has room for the words of a key.
            unsafe { A::narrow(&keys[from..from + dimension], key_words.as_mut_ptr()) };
            let places = panel[column..].iter_mut().step_by(panel_columns);
            for (place, word) in places.zip(&*key_words) {
                *place = *word;
            }
        }
    }
}

/// Copies one head's values into panels of `panel_columns` columns, so that a word holds the values of tokens that follow one another.
/// Columns past the last one are zero.
///
/// # Safety
/// The processor has the instruction set of `A`.
#[inline(always)]
unsafe fn pack_values<A: Arithmetic>(
    values: &[f32],
    stride: usize,
    tokens: usize,
    panel_columns: usize,
    buffers: &mut AttentionBuffers,
) {
    let dimension = buffers.head_dimension;
    let depth = words_of(tokens, A::PRECISION);
    let rows_of_word = values_in_word(A::PRECISION);
    let row_words = words_of(dimension, A::PRECISION);
    for word in 0..depth {
        let rows = &mut buffers.narrowed[..2 * row_words];
        if rows_of_word == 2 {
            rows[row_words..].fill(0);
        }
        for (row, token) in (word * rows_of_word..tokens).take(rows_of_word).enumerate() {
            let from = token * stride;
            // SAFETY: each row has room for its words.
            unsafe { A::narrow(&values[from..from + dimension], rows[row * row_words..].as_mut_ptr()) };
        }
        for first in (0..dimension).step_by(panel_columns) {
            let present = (dimension - first).min(panel_columns);
            let line = &mut buffers.values[first * depth + word * panel_columns..][..panel_columns];
            match rows_of_word {
                2 => {
                    let halves: &[u16] = bytemuck::cast_slice(rows);
                    let low = &halves[first..][..present];
                    let high = &halves[2 * row_words + first..][..present];
                    for ((place, low), high) in line.iter_mut().zip(low).zip(high) {
                        *place = u32::from(*low) | u32::from(*high) << 16;
                    }
                }
                _ => line[..present].copy_from_slice(&rows[first..][..present]),
            }
            line[present..].fill(0);
        }
    }
}

/// The tokens of one tile in one head.
struct RowsTask {
    queries: *const f32,
    query_stride: usize,
    /// Tokens of the sequence.
    tokens: usize,
    out: *mut f32,
    out_stride: usize,
}

/// `ROWS` rows of so many values as the arithmetic reads them, and the distance in words from one to the next.
///
/// # Safety
/// The processor has the instruction set of `A`; `rows` is valid for rows that are `stride` apart, `room` for their words.
#[inline(always)]
unsafe fn narrow_rows<A: Arithmetic, const ROWS: usize>(
    rows: *const f32,
    stride: usize,
    values: usize,
    room: *mut u32,
) -> (*const u32, usize) {
    if A::PRECISION == Precision::F32 {
        return (rows.cast(), stride);
    }
    let words = words_of(values, A::PRECISION);
    for row in 0..ROWS {
        // SAFETY: as the caller promises.
        unsafe { A::narrow(std::slice::from_raw_parts(rows.add(row * stride), values), room.add(row * words)) };
    }
    (room.cast_const(), words)
}

/// Attention of `ROWS` tokens in one head.
///
/// # Safety
/// The processor has the instruction set of `A`; the pointers and buffers are valid for the shapes that [`attend`] describes.
#[inline(always)]
unsafe fn attend_rows<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(task: &RowsTask, buffers: &mut AttentionBuffers) {
    let panel_columns = VECTORS * A::Lanes::WIDTH;
    let (tokens, dimension) = (task.tokens, buffers.head_dimension);
    let padded_tokens = tokens.next_multiple_of(panel_columns);
    let (token_words, dimension_words) = (words_of(tokens, A::PRECISION), words_of(dimension, A::PRECISION));
    let (keys, values) = (buffers.keys.as_ptr(), buffers.values.as_ptr());
    let (scores, room) = (buffers.scores.as_mut_ptr(), buffers.narrowed.as_mut_ptr());
    // SAFETY: `scores` holds ROWS x padded_tokens values, `keys` padded_tokens x words of the dimension, `values` words of the tokens x
    // the dimension rounded up to whole panels, `room` ROWS rows of either.
    unsafe {
        let (queries, stride) = narrow_rows::<A, ROWS>(task.queries, task.query_stride, dimension, room);
        for first in (0..padded_tokens).step_by(panel_columns) {
            let sums = tile::<A, ROWS, VECTORS>(queries, stride, keys.add(first * dimension_words), dimension_words);
            for (row, sums) in sums.into_iter().enumerate() {
                for (vector, sum) in sums.into_iter().enumerate() {
                    A::values(sum).store(scores.add(row * padded_tokens + first + vector * A::Lanes::WIDTH));
                }
            }
        }
        let mut inverse_sums = [0f32; ROWS];
        for (row, inverse_sum) in inverse_sums.iter_mut().enumerate() {
            let row_scores = scores.add(row * padded_tokens);
            *inverse_sum = 1.0 / exponentiate::<A::Lanes>(row_scores, tokens, padded_tokens);
        }
        let (weights, stride) = narrow_rows::<A, ROWS>(scores, padded_tokens, tokens, room);
        for first in (0..dimension).step_by(panel_columns) {
            let sums = tile::<A, ROWS, VECTORS>(weights, stride, values.add(first * token_words), token_words);
            let width = (dimension - first).min(panel_columns);
            for (row, sums) in sums.into_iter().enumerate() {
                let factor = A::Lanes::splat(inverse_sums[row]);
                let out_row = task.out.add(row * task.out_stride + first);
                for (vector, sum) in sums.into_iter().enumerate() {
                    let at = vector * A::Lanes::WIDTH;
                    let value = A::values(sum).mul(factor);
                    if at + A::Lanes::WIDTH <= width {
                        value.store(out_row.add(at));
                    } else if at < width {
                        value.store_first(out_row.add(at), width - at);
                    }
                }
            }
        }
    }
}

/// The numerators of a softmax, in place: e^(x - max) of the first `count` of `padded` scores (at least one).
/// Returns their sum, which is at least one.
///
/// # Safety
/// The processor has the instruction set of `L`; `scores` is valid for `padded` values, a multiple of the width.
#[inline(always)]
pub(crate) unsafe fn exponentiate<L: Lanes>(scores: *mut f32, count: usize, padded: usize) -> f32 {
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
