//! Multi-head self-attention over one sequence, of halves in tiles of AMX. Queries are read where they lie; keys are transposed and values
//! paired as the panels of a product are.

use super::arithmetic::bf16::narrowed;
use super::attention::{Attention, AttentionBuffers};
use super::half_heads::{self, Head};
use super::layout::RowLayout;
use super::softmax::exponentiate_as_halves;
use super::tile_product::{BLOCK_ROWS, PANEL_COLUMNS, SUMS_STRIDE_BYTES, Sums, TILE_ROWS, TILE_WORDS};
use crate::tiles::Tiles;
use std::arch::x86_64::*;

/// Computes softmax(Q K^T) V for each head, as [`super::attention::attend`] does.
///
/// # Safety
/// The processor has AMX with BF16, the system lets this process use it, and there are AVX-512 and its BF16.
#[inline(always)]
pub(crate) unsafe fn attend(attention: &mut Attention<'_>) {
    let Attention { projections, out, tokens, heads, buffers } = attention;
    let (tokens, heads) = (*tokens, *heads);
    let dimension = buffers.head_dimension;
    let hidden = heads * dimension;
    let (row_words, out_words) = (RowLayout::TILES.words(3 * hidden), RowLayout::TILES.words(hidden));
    assert!(tokens <= buffers.tokens_max());
    // Tiles of queries are whole: they reach past the last row, and past the end of a row where it is short.
    assert!(projections.len() >= RowLayout::TILES.rows_read(tokens) * row_words + TILE_WORDS);
    assert_eq!(out.len(), tokens * out_words);
    let halves: &[u16] = bytemuck::cast_slice(projections);
    // SAFETY: the assertions above tie the slices to the shape, and the buffers are sized for `tokens_max` tokens rounded up to whole panels;
    // all offsets below stay inside.
    unsafe {
        let mut tiles = Tiles::configure();
        for head in 0..heads {
            let first = head * dimension;
            let keys = Head { halves: &halves[hidden + first..], stride: 2 * row_words, tokens, dimension };
            let values = Head { halves: &halves[2 * hidden + first..], ..keys };
            half_heads::pack_keys(&keys, RowLayout::TILES, buffers);
            half_heads::pack_values(&values, RowLayout::TILES, buffers);
            for row in (0..tokens).step_by(BLOCK_ROWS) {
                let rows = (tokens - row).min(BLOCK_ROWS);
                let task = RowsTask {
                    queries: halves.as_ptr().add(2 * row * row_words + first),
                    query_stride_bytes: row_words * size_of::<u32>(),
                    rows,
                    tokens,
                    out: out.as_mut_ptr().cast::<u16>().add(2 * row * out_words + first),
                    out_stride: 2 * out_words,
                };
                if rows > TILE_ROWS {
                    task.run::<2>(&mut tiles, buffers);
                } else {
                    task.run::<1>(&mut tiles, buffers);
                }
            }
        }
        if hidden < 2 * out_words {
            for row in out.chunks_exact_mut(out_words) {
                let halves: &mut [u16] = bytemuck::cast_slice_mut(row);
                halves[hidden..].fill(0);
            }
        }
    }
}

/// Up to 32 tokens in one head.
struct RowsTask {
    queries: *const u16,
    query_stride_bytes: usize,
    rows: usize,
    /// Tokens of the sequence.
    tokens: usize,
    out: *mut u16,
    /// Halves from one token's results to the next one's.
    out_stride: usize,
}

impl RowsTask {
    /// # Safety
    /// As [`attend`]; the pointers are valid for the rows, that of queries for whole tiles.
    #[inline(always)]
    unsafe fn run<const BLOCKS: usize>(&self, tiles: &mut Tiles, buffers: &mut AttentionBuffers) {
        let dimension = buffers.head_dimension;
        let padded_tokens = self.tokens.next_multiple_of(PANEL_COLUMNS);
        let (key_words, token_words) = (RowLayout::TILES.words(dimension), padded_tokens / 2);
        let (scores, weights) = (buffers.scores.as_mut_ptr(), buffers.narrowed.as_mut_ptr());
        let mut inverse_sums = [0f32; BLOCK_ROWS];
        let mut sums = Sums::new();
        // SAFETY: `scores` holds 32 x padded_tokens values and `narrowed` half as many words; panels of keys are `key_words` deep and there are
        // as many as tokens need, those of values `token_words`.
        unsafe {
            for first in (0..padded_tokens).step_by(PANEL_COLUMNS) {
                tiles.clear();
                for word in (0..key_words).step_by(TILE_WORDS) {
                    // Where a head is no whole steps wide, what follows it is multiplied by the zeros of the panel.
                    let queries = self.queries.add(2 * word).cast();
                    let keys = buffers.keys.as_ptr().add(first * key_words + word * PANEL_COLUMNS);
                    tiles.multiply_add::<BLOCKS>(queries, self.query_stride_bytes, keys);
                }
                tiles.store::<BLOCKS>(scores.add(first), padded_tokens * size_of::<f32>());
            }
            for (row, inverse_sum) in inverse_sums.iter_mut().enumerate().take(self.rows) {
                let row_scores = scores.add(row * padded_tokens);
                *inverse_sum =
                    1.0 / exponentiate_as_halves(row_scores, self.tokens, padded_tokens, weights.add(row * token_words));
            }
            for first in (0..dimension).step_by(PANEL_COLUMNS) {
                tiles.clear();
                for word in (0..token_words).step_by(TILE_WORDS) {
                    let values = buffers.values.as_ptr().add(first * token_words + word * PANEL_COLUMNS);
                    tiles.multiply_add::<BLOCKS>(weights.add(word).cast(), token_words * size_of::<u32>(), values);
                }
                tiles.store::<BLOCKS>(sums.0.as_mut_ptr(), SUMS_STRIDE_BYTES);
                for (row, inverse_sum) in inverse_sums.iter().enumerate().take(self.rows) {
                    let factor = _mm512_set1_ps(*inverse_sum);
                    for at in (first..dimension.min(first + PANEL_COLUMNS)).step_by(16) {
                        let sum = _mm512_load_ps(sums.0.as_ptr().add(row * PANEL_COLUMNS + at - first));
                        let result = narrowed(_mm512_mul_ps(sum, factor));
                        let place = self.out.add(row * self.out_stride + at);
                        match dimension - at {
                            16.. => _mm256_storeu_si256(place.cast(), result),
                            left => _mm256_mask_storeu_epi16(place.cast(), (1 << left) - 1, result),
                        }
                    }
                }
            }
        }
    }
}
