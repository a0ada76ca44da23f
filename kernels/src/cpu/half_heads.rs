//! Keys and values of one head of attention, as halves, in the order in which products read them.

use super::attention::{AttentionBuffers, PREFETCHED_ROWS, prefetch_row};
use super::layout::{RowLayout, words_of};
use super::numbers::Numbers;

/// Columns of a panel.
pub(crate) const PANEL_COLUMNS: usize = 32;

/// What one head has of each token: `dimension` halves, `stride` from one token's to the next.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) halves: &'a [u16],
    pub(crate) stride: usize,
    pub(crate) tokens: usize,
    pub(crate) dimension: usize,
}

impl Head<'_> {
    /// Asks for what it has of a token.
    #[inline(always)]
    fn prefetch(&self, token: usize) {
        prefetch_row(self.halves.as_ptr().wrapping_add(token * self.stride), self.dimension);
    }
}

/// Transposes keys into panels of 32 tokens, as deep as rows of this layout. What is past the last token, and past the last value, is zero.
#[inline(always)]
pub(crate) fn pack_keys(head: &Head<'_>, layout: RowLayout, buffers: &mut AttentionBuffers) {
    let depth = layout.words(head.dimension);
    let panels = buffers.keys.chunks_exact_mut(PANEL_COLUMNS * depth);
    let is_padded = head.dimension < 2 * depth;
    for (first, panel) in (0..head.tokens).step_by(PANEL_COLUMNS).zip(panels) {
        let present = (head.tokens - first).min(PANEL_COLUMNS);
        if present < PANEL_COLUMNS || is_padded {
            panel.fill(0);
        }
        for column in 0..present {
            head.prefetch(first + column + PREFETCHED_ROWS);
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

/// Copies values into panels of 32 columns, as deep as rows of this layout, so that a word holds the values of two tokens that follow one another. What is past the last
/// token, and past the last column, is zero.
#[inline(always)]
pub(crate) fn pack_values(head: &Head<'_>, layout: RowLayout, buffers: &mut AttentionBuffers) {
    let depth = layout.words(head.tokens);
    let pairs = words_of(head.tokens, Numbers::Bf16);
    for first in (0..head.dimension).step_by(PANEL_COLUMNS) {
        let present = (head.dimension - first).min(PANEL_COLUMNS);
        let panel = &mut buffers.values[first * depth..][..depth * PANEL_COLUMNS];
        let (lines, rest) = panel.split_at_mut(pairs * PANEL_COLUMNS);
        rest.fill(0);
        for (pair, line) in lines.chunks_exact_mut(PANEL_COLUMNS).enumerate() {
            head.prefetch(2 * pair + PREFETCHED_ROWS);
            head.prefetch(2 * pair + 1 + PREFETCHED_ROWS);
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
