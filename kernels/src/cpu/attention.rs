//! Multi-head self-attention over one sequence.

use super::activation::exp;
use super::aligned::AlignedBlock;
use super::product::tile;
use crate::lanes::Lanes;

/// The widest panel of any instruction set, in values: buffers are sized for it.
const PANEL_COLUMNS_MAX: usize = 32;
/// The tallest tile of any instruction set, in rows.
const TILE_ROWS_MAX: usize = 8;

/// Buffers for one head, used again for every head and sequence.
pub(crate) struct AttentionBuffers {
    tokens_max: usize,
    head_dimension: usize,
    /// Keys of one head, transposed: panels of tokens, each `head_dimension` x panel columns.
    keys: AlignedBlock,
    /// Values of one head: panels of the head's columns, each tokens x panel columns.
    values: AlignedBlock,
    /// Scores of a tile's rows against all tokens.
    scores: AlignedBlock,
}

impl AttentionBuffers {
    /// Buffers for sequences of at most `tokens_max` tokens.
    pub(crate) fn new(tokens_max: usize, head_dimension: usize) -> Self {
        let tokens = tokens_max.next_multiple_of(PANEL_COLUMNS_MAX);
        let columns = head_dimension.next_multiple_of(PANEL_COLUMNS_MAX);
        Self {
            tokens_max,
            head_dimension,
            keys: AlignedBlock::new(tokens * head_dimension),
            values: AlignedBlock::new(tokens * columns),
            scores: AlignedBlock::new(TILE_ROWS_MAX * tokens),
        }
    }

    /// The longest sequence that the buffers are for.
    pub(crate) fn tokens_max(&self) -> usize {
        self.tokens_max
    }
}

/// Attention of one sequence.
pub(crate) struct Attention<'a> {
    /// For each token: queries, keys and values of all heads, 3 x heads x head dimension. The queries are already
    /// divided by the square root of the head dimension.
    pub(crate) projections: &'a [f32],
    /// For each token the heads' results side by side: heads x head dimension.
    pub(crate) out: &'a mut [f32],
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) buffers: &'a mut AttentionBuffers,
}

/// Computes softmax(Q K^T) V for each head (Vaswani et al., "Attention Is All You Need", 2017, equation 1; the
/// division by the root of the head dimension is in the weights of Q). `ROWS` is at most 8, and a panel of
/// `VECTORS` vectors has at most 32 columns.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn attend<L: Lanes, const ROWS: usize, const VECTORS: usize>(attention: &mut Attention<'_>) {
    const { assert!(ROWS <= TILE_ROWS_MAX) };
    let panel_columns = VECTORS * L::WIDTH;
    let Attention { projections, out, tokens, heads, buffers } = attention;
    let (tokens, heads) = (*tokens, *heads);
    let dimension = buffers.head_dimension;
    let hidden = heads * dimension;
    assert!(PANEL_COLUMNS_MAX.is_multiple_of(panel_columns));
    assert!(tokens <= buffers.tokens_max);
    assert_eq!(projections.len(), tokens * 3 * hidden);
    assert_eq!(out.len(), tokens * hidden);
    let padded_tokens = tokens.next_multiple_of(panel_columns);
    for head in 0..heads {
        let queries = &projections[head * dimension..];
        let keys = &projections[hidden + head * dimension..];
        let values = &projections[2 * hidden + head * dimension..];
        // SAFETY: the assertions above tie the slices to the shape, and the buffers are sized for `tokens_max`
        // tokens rounded up to the widest panel; all offsets below stay inside.
        unsafe {
            pack_keys(keys, 3 * hidden, tokens, dimension, panel_columns, &mut buffers.keys);
            pack_values(values, 3 * hidden, tokens, dimension, panel_columns, &mut buffers.values);
            let mut row = 0;
            while row < tokens {
                let left = tokens - row;
                let queries = queries.as_ptr().add(row * 3 * hidden);
                let out = out.as_mut_ptr().add(row * hidden + head * dimension);
                macro_rules! rows_of {
                    ($rows:expr) => {
                        attend_rows::<L, { $rows }, VECTORS>(
                            queries,
                            3 * hidden,
                            buffers.keys.as_ptr(),
                            buffers.values.as_ptr(),
                            buffers.scores.as_mut_ptr(),
                            tokens,
                            padded_tokens,
                            dimension,
                            out,
                            hidden,
                        )
                    };
                }
                if left >= ROWS {
                    rows_of!(ROWS);
                } else {
                    match left {
                        1 => rows_of!(1),
                        2 => rows_of!(2),
                        3 => rows_of!(3),
                        4 => rows_of!(4),
                        5 => rows_of!(5),
                        6 => rows_of!(6),
                        _ => rows_of!(7),
                    }
                }
                row += ROWS;
            }
        }
    }
}

/// Transposes one head's keys into panels of `panel_columns` tokens; columns past the last token are zero.
fn pack_keys(keys: &[f32], stride: usize, tokens: usize, dimension: usize, panel_columns: usize, packed: &mut [f32]) {
    let panels = packed.chunks_exact_mut(panel_columns * dimension);
    for (first, panel) in (0..tokens).step_by(panel_columns).zip(panels) {
        let present = (tokens - first).min(panel_columns);
        if present < panel_columns {
            panel.fill(0.0);
        }
        for column in 0..present {
            let from = (first + column) * stride;
            let key = &keys[from..from + dimension];
            let places = panel[column..].iter_mut().step_by(panel_columns);
            for (place, value) in places.zip(key) {
                *place = *value;
            }
        }
    }
}

/// Copies one head's values into panels of `panel_columns` columns; columns past the last one are zero.
fn pack_values(values: &[f32], stride: usize, tokens: usize, dimension: usize, panel_columns: usize, packed: &mut [f32]) {
    let panels = packed.chunks_exact_mut(panel_columns * tokens);
    for (first, panel) in (0..dimension).step_by(panel_columns).zip(panels) {
        let present = (dimension - first).min(panel_columns);
        for (token, line) in panel.chunks_exact_mut(panel_columns).enumerate() {
            let from = token * stride + first;
            line[..present].copy_from_slice(&values[from..from + present]);
            line[present..].fill(0.0);
        }
    }
}

/// Attention of `ROWS` tokens in one head.
///
/// # Safety
/// The processor has the instruction set of `L`; the pointers are valid for the shapes that [`attend`] describes.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn attend_rows<L: Lanes, const ROWS: usize, const VECTORS: usize>(
    queries: *const f32,
    query_stride: usize,
    keys: *const f32,
    values: *const f32,
    scores: *mut f32,
    tokens: usize,
    padded_tokens: usize,
    dimension: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let panel_columns = VECTORS * L::WIDTH;
    // SAFETY: `scores` holds ROWS x padded_tokens values, `keys` padded_tokens x dimension, `values` tokens x
    // dimension rounded up to whole panels.
    unsafe {
        for first in (0..padded_tokens).step_by(panel_columns) {
            let panel = keys.add(first * dimension);
            let sums = tile::<L, ROWS, VECTORS>(queries, query_stride, panel, dimension);
            for (row, sums) in sums.into_iter().enumerate() {
                for (vector, sum) in sums.into_iter().enumerate() {
                    sum.store(scores.add(row * padded_tokens + first + vector * L::WIDTH));
                }
            }
        }
        let mut inverse_sums = [0f32; ROWS];
        for (row, inverse_sum) in inverse_sums.iter_mut().enumerate() {
            let row_scores = scores.add(row * padded_tokens);
            *inverse_sum = 1.0 / exponentiate::<L>(row_scores, tokens, padded_tokens);
        }
        for first in (0..dimension).step_by(panel_columns) {
            let panel = values.add(first * tokens);
            let sums = tile::<L, ROWS, VECTORS>(scores, padded_tokens, panel, tokens);
            let width = (dimension - first).min(panel_columns);
            for (row, sums) in sums.into_iter().enumerate() {
                let factor = L::splat(inverse_sums[row]);
                let out_row = out.add(row * out_stride + first);
                for (vector, sum) in sums.into_iter().enumerate() {
                    let at = vector * L::WIDTH;
                    let value = sum.mul(factor);
                    if at + L::WIDTH <= width {
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
