//! Matrix products of halves in tiles of AMX.
//!
//! A block of 32 rows and 32 columns, four tiles of sums, goes through the whole depth at once: a step of the depth loads four tiles and makes four
//! products of them. Sums go through memory that stays in the nearest cache, and what the vector instructions make of them (bias, activation,
//! residual, narrowing) they make while the tiles work on the next block.

use super::activation::{gelu, gelu_of_halves, relu};
use super::arithmetic::bf16::narrowed;
use super::layout::RowLayout;
use super::packed::PackedMatrix;
use super::product::{Epilogue, Product, Results, prefetch};
use crate::configuration::Activation;
use crate::lanes::Lanes;
use crate::lanes::avx512::Avx512;
use crate::tiles::Tiles;
use std::arch::x86_64::_mm256_storeu_si256;

/// Columns of a panel: two tiles.
pub(crate) const PANEL_COLUMNS: usize = 32;
/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// Words of a row of a tile.
pub(super) const TILE_WORDS: usize = 16;
/// Rows of a block: two tiles.
pub(super) const BLOCK_ROWS: usize = 2 * TILE_ROWS;
/// Bytes from a row of sums to the next.
pub(super) const SUMS_STRIDE_BYTES: usize = PANEL_COLUMNS * size_of::<f32>();

/// The sums of a block.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [f32; BLOCK_ROWS * PANEL_COLUMNS]);

impl Sums {
    pub(super) fn new() -> Self {
        Self([0.0; BLOCK_ROWS * PANEL_COLUMNS])
    }
}

/// Where the first value of a block goes.
#[derive(Clone, Copy)]
enum Place {
    /// f32, rows so many values apart.
    Values(*mut f32, usize),
    /// Halves, rows so many words apart.
    Narrowed(*mut u32, usize),
}

/// A block whose sums are complete, and what is still to become of them.
struct Unfinished {
    bias: *const f32,
    place: Place,
    /// Columns that the product has, at most those of a panel.
    width: usize,
    rows: usize,
    /// Rows that are finished.
    finished: usize,
    epilogue: Epilogue,
}

impl Unfinished {
    /// Nothing.
    const NONE: Self = Self {
        bias: std::ptr::null(),
        place: Place::Values(std::ptr::null_mut(), 0),
        width: 0,
        rows: 0,
        finished: 0,
        epilogue: Epilogue::Store,
    };

    /// Finishes so many rows more, as far as there are.
    ///
    /// # Safety
    /// The processor has AVX-512 and its BF16. `sums` are those of this block; `bias` is valid for a panel's columns, `place` for all rows.
    #[inline(always)]
    unsafe fn finish(&mut self, sums: &Sums, count: usize) {
        let last = (self.finished + count).min(self.rows);
        for row in self.finished..last {
            for at in (0..PANEL_COLUMNS).step_by(Avx512::WIDTH) {
                // SAFETY: the row is one of the block's; the rest is passed on to the caller.
                unsafe {
                    let sum = Avx512::load(sums.0.as_ptr().add(row * PANEL_COLUMNS + at));
                    self.finish_vector(row, at, sum.add(Avx512::load(self.bias.add(at))));
                }
            }
        }
        self.finished = last.max(self.finished);
    }

    /// # Safety
    /// As [`Unfinished::finish`], for sixteen columns from `at` on.
    #[inline(always)]
    unsafe fn finish_vector(&self, row: usize, at: usize, value: Avx512) {
        // SAFETY: as the caller promises; of f32 no more is touched than the row has.
        unsafe {
            match self.place {
                Place::Narrowed(words, stride) => {
                    let value = match self.epilogue {
                        Epilogue::Activate(Activation::Gelu) => gelu_of_halves(value),
                        Epilogue::Activate(Activation::Relu) => relu(value),
                        Epilogue::Store | Epilogue::Add => value,
                    };
                    // Columns past the last one have neither weights nor a bias, and give the zeros that a row ends with.
                    _mm256_storeu_si256(words.add(row * stride + at / 2).cast(), narrowed(value.0));
                }
                Place::Values(values, stride) => {
                    let place = values.add(row * stride + at);
                    let count = self.width.saturating_sub(at).min(Avx512::WIDTH);
                    let is_whole = count == Avx512::WIDTH;
                    let value = match self.epilogue {
                        Epilogue::Activate(Activation::Gelu) => gelu(value),
                        Epilogue::Activate(Activation::Relu) => relu(value),
                        Epilogue::Store => value,
                        Epilogue::Add if is_whole => value.add(Avx512::load(place)),
                        Epilogue::Add => value.add(Avx512::load_first(place, count)),
                    };
                    if is_whole {
                        value.store(place);
                    } else {
                        value.store_first(place, count);
                    }
                }
            }
        }
    }
}

/// Computes a product.
///
/// # Safety
/// The processor has AMX with BF16, the system lets this process use it, and there are AVX-512 and its BF16.
#[inline(always)]
pub(crate) unsafe fn multiply(product: &mut Product<'_>) {
    product.check(PANEL_COLUMNS, RowLayout::TILES);
    let PackedMatrix { panels, columns, depth, outputs, .. } = product.matrix;
    let (depth, outputs, rows) = (*depth, *outputs, product.rows);
    let out = match &mut product.out {
        Results::Values(values) => Place::Values(values.as_mut_ptr(), outputs),
        Results::Narrowed(words) => Place::Narrowed(words.as_mut_ptr(), RowLayout::TILES.words(outputs)),
    };
    let steps = depth / TILE_WORDS;
    let blocks = rows.div_ceil(BLOCK_ROWS);
    // Where panels are used again, the next one is fetched meanwhile, an equal share with each step. Where they are not, the processor's own
    // prefetching, which follows the panel, is the best there is.
    let share = if blocks > 1 { (TILE_WORDS * PANEL_COLUMNS).div_ceil(blocks).next_multiple_of(16) } else { 0 };
    let mut sums = Sums::new();
    let mut unfinished = Unfinished::NONE;
    // SAFETY: `check` has compared all lengths with the shape; row, column and depth offsets below stay inside it. Panels and rows are whole
    // steps deep, and there are as many rows as tiles have.
    unsafe {
        let mut tiles = Tiles::configure();
        let biases = product.block.as_ptr().add(columns.start).cast::<f32>();
        for (index, column) in (0..outputs).step_by(PANEL_COLUMNS).enumerate() {
            let panel = product.block.as_ptr().add(panels.start + index * depth * PANEL_COLUMNS);
            let mut ahead = panel.wrapping_add(depth * PANEL_COLUMNS);
            for first in (0..rows).step_by(BLOCK_ROWS) {
                let count = (rows - first).min(BLOCK_ROWS);
                let task =
                    Task { rows: product.activations.words.as_ptr().add(first * depth), depth, steps, panel, ahead, share };
                if count > TILE_ROWS {
                    task.run::<2>(&mut tiles, &mut sums, &mut unfinished);
                } else {
                    task.run::<1>(&mut tiles, &mut sums, &mut unfinished);
                }
                ahead = ahead.wrapping_add(share * steps);
                unfinished = Unfinished {
                    bias: biases.add(column),
                    place: match out {
                        Place::Values(values, stride) => Place::Values(values.add(first * stride + column), stride),
                        Place::Narrowed(words, stride) => Place::Narrowed(words.add(first * stride + column / 2), stride),
                    },
                    width: (outputs - column).min(PANEL_COLUMNS),
                    rows: count,
                    finished: 0,
                    epilogue: product.epilogue,
                };
            }
        }
        unfinished.finish(&sums, BLOCK_ROWS);
    }
}

/// The sums of one block.
struct Task {
    rows: *const u32,
    /// Words of a row.
    depth: usize,
    steps: usize,
    panel: *const u32,
    /// What is to be in the cache soon, so many words with each step.
    ahead: *const u32,
    share: usize,
}

impl Task {
    /// Finishes the block before, whose sums are in `sums`, and leaves there those of this one.
    ///
    /// # Safety
    /// As [`multiply`]; `rows` and `panel` are valid for `BLOCKS` tiles of rows and a panel, both `steps` deep; for the rest see
    /// [`Unfinished::finish`].
    #[inline(always)]
    unsafe fn run<const BLOCKS: usize>(&self, tiles: &mut Tiles, sums: &mut Sums, before: &mut Unfinished) {
        let stride_bytes = self.depth * size_of::<u32>();
        let finished_with_step = BLOCK_ROWS.div_ceil(self.steps.max(1));
        tiles.clear();
        // SAFETY: as the caller promises.
        unsafe {
            for step in 0..self.steps {
                let rows = self.rows.add(step * TILE_WORDS).cast();
                tiles.multiply_add::<BLOCKS>(rows, stride_bytes, self.panel.add(step * TILE_WORDS * PANEL_COLUMNS));
                prefetch(self.ahead.wrapping_add(step * self.share), self.share);
                before.finish(sums, finished_with_step);
            }
            tiles.store::<BLOCKS>(sums.0.as_mut_ptr(), SUMS_STRIDE_BYTES);
        }
    }
}
