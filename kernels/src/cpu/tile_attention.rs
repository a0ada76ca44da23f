//! Multi-head self-attention over one sequence, of halves in tiles of AMX. Queries are read where they lie; keys are transposed and values
//! paired as the panels of a product are.

use super::arithmetic::bf16::narrowed;
use super::attention::{Attention, AttentionBuffers};
use super::layout::{RowLayout, words_of};
use super::tile_product::{BLOCK_ROWS, PANEL_COLUMNS, SUMS_STRIDE_BYTES, Sums, TILE_ROWS, TILE_WORDS};
use crate::precision::Precision;
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
            pack_keys(&keys, buffers);
            pack_values(&values, buffers);
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

/// What one head has of each token: `dimension` halves, `stride` from one token's to the next.
#[derive(Clone, Copy)]
struct Head<'a> {
    halves: &'a [u16],
    stride: usize,
    tokens: usize,
    dimension: usize,
}

/// Transposes keys into panels of 32 tokens. What is past the last token, and past the last value, is zero.
#[inline(always)]
fn pack_keys(head: &Head<'_>, buffers: &mut AttentionBuffers) {
    let depth = RowLayout::TILES.words(head.dimension);
    let panels = buffers.keys.chunks_exact_mut(PANEL_COLUMNS * depth);
    let is_padded = head.dimension < 2 * depth;
    for (first, panel) in (0..head.tokens).step_by(PANEL_COLUMNS).zip(panels) {
        let present = (head.tokens - first).min(PANEL_COLUMNS);
        if present < PANEL_COLUMNS || is_padded {
            panel.fill(0);
        }
        for column in 0..present {
            let key = &head.halves[(first + column) * head.stride..][..head.dimension];
            let (pairs, rest) = key.as_chunks::<2>();
            let mut places = panel[column..].iter_mut().step_by(PANEL_COLUMNS);
            for ([low, high], place) in pairs.iter().zip(&mut places) {
                *place = u32::from(*low) | u32::from(*high) << 16;
            }
            // The last one of an odd number.
            rest.iter().zip(places).for_each(|(half, place)| *place = u32::from(*half));
        }
    }
}

/// Copies values into panels of 32 columns, so that a word holds the values of two tokens that follow one another. What is past the last
/// token, and past the last column, is zero.
#[inline(always)]
fn pack_values(head: &Head<'_>, buffers: &mut AttentionBuffers) {
    let depth = RowLayout::TILES.words(head.tokens);
    let pairs = words_of(head.tokens, Precision::Bf16);
    for first in (0..head.dimension).step_by(PANEL_COLUMNS) {
        let present = (head.dimension - first).min(PANEL_COLUMNS);
        let panel = &mut buffers.values[first * depth..][..depth * PANEL_COLUMNS];
        let (lines, rest) = panel.split_at_mut(pairs * PANEL_COLUMNS);
        rest.fill(0);
        for (pair, line) in lines.chunks_exact_mut(PANEL_COLUMNS).enumerate() {
            let low = &head.halves[2 * pair * head.stride + first..][..present];
            if 2 * pair + 1 < head.tokens {
                let high = &head.halves[(2 * pair + 1) * head.stride + first..][..present];
                for ((place, low), high) in line.iter_mut().zip(low).zip(high) {
                    *place = u32::from(*low) | u32::from(*high) << 16;
                }
            } else {
                line.iter_mut().zip(low).for_each(|(place, low)| *place = u32::from(*low));
            }
            line[present..].fill(0);
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
                *inverse_sum = 1.0 / exponentiate(row_scores, self.tokens, padded_tokens, weights.add(row * token_words));
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

/// The numerators of a softmax as halves: e^(x - max) of the first `count` of `padded` scores (at least one), zero for the rest. Returns the
/// sum of them before they are narrowed, which is at least nearly one.
///
/// e^x = 2^n 2^f with f from -1/2 to 1/2, and 2^f by the polynomial of the third degree whose largest relative error is the least, 8e-5: halves have
/// errors of 2e-3.
///
/// # Safety
/// The processor has AVX-512 and its BF16. `scores` is valid for `padded` values, a multiple of 32, and `weights` for half as many words.
#[inline(always)]
unsafe fn exponentiate(scores: *const f32, count: usize, padded: usize, weights: *mut u32) -> f32 {
    let whole = count - count % 16;
    let rest = ((1u32 << (count % 16)) - 1) as u16;
    // SAFETY: offsets stay below `padded`.
    unsafe {
        let mut largest = _mm512_mask_loadu_ps(_mm512_set1_ps(f32::NEG_INFINITY), rest, scores.add(whole.min(padded - 16)));
        for at in (0..whole).step_by(16) {
            largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores.add(at)));
        }
        let log2_e = _mm512_set1_ps(std::f32::consts::LOG2_E);
        let largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
        let power = |at: usize| {
            let exponent = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores.add(at)), largest), log2_e);
            let n = _mm512_roundscale_ps::<0>(exponent);
            let f = _mm512_sub_ps(exponent, n);
            let mut p = _mm512_fmadd_ps(f, _mm512_set1_ps(5.517_142e-2), _mm512_set1_ps(2.426_111_7e-1));
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.932_61e-1));
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.999_280_6e-1));
            _mm512_scalef_ps(p, n)
        };
        let store = |at: usize, values: __m512| _mm256_storeu_si256(weights.add(at / 2).cast(), narrowed(values));
        let mut sum = _mm512_setzero_ps();
        for at in (0..whole).step_by(16) {
            let value = power(at);
            store(at, value);
            sum = _mm512_add_ps(sum, value);
        }
        let mut at = whole;
        if rest != 0 {
            let value = _mm512_maskz_mov_ps(rest, power(at));
            store(at, value);
            sum = _mm512_add_ps(sum, value);
            at += 16;
        }
        if at < padded {
            store(at, _mm512_setzero_ps());
        }
        _mm512_reduce_add_ps(sum)
    }
}
