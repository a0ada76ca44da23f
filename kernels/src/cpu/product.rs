//! Matrix products: rows of activations times a packed matrix of weights.
//!
//! The weights are packed once into *panels* of as many columns as one register tile has. A panel holds its
//! columns depth-first: for each input, the panel's columns side by side, so that a tile reads it from front to
//! back. The kernel keeps a tile of `ROWS` x `VECTORS` registers of sums, and for each input multiplies the
//! broadcast activation of each row with the panel's vectors: the scheme of Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication" (2008), without packing the activations, which are few enough to stay
//! in the level-2 cache.

use super::activation;
use crate::configuration::Activation;
use crate::lanes::Lanes;
use std::ops::Range;

/// Where a packed matrix lies in the block of all weights, and its shape.
#[derive(Debug, Clone)]
pub(crate) struct PackedMatrix {
    /// Values in the block: panels, each `inputs` x `panel_columns`, the last one padded with zeros.
    panels: Range<usize>,
    /// Bias of each output, padded with zeros to whole panels.
    bias: Range<usize>,
    /// Depth of the product: values of one activation row.
    pub(crate) inputs: usize,
    /// Columns of the result.
    pub(crate) outputs: usize,
    panel_columns: usize,
}

impl PackedMatrix {
    /// Values of the block that a matrix of this shape takes, with its bias.
    pub(crate) fn size(inputs: usize, outputs: usize, panel_columns: usize) -> usize {
        let columns = outputs.next_multiple_of(panel_columns);
        // Rounded up so that every matrix begins on a cache line.
        (columns * (inputs + 1)).next_multiple_of(16)
    }

    /// Packs rows of `inputs` weights, one row for each output (as `torch.nn.Linear` keeps them), into
    /// `block[start..]`. `weights` yields (rows, biases, scale): the rows of several matrices become one, and each
    /// is multiplied by its scale.
    pub(crate) fn pack(
        block: &mut [f32],
        start: usize,
        inputs: usize,
        panel_columns: usize,
        parts: &[(&[f32], &[f32], f32)],
    ) -> Self {
        let outputs: usize = parts.iter().map(|(_, biases, _)| biases.len()).sum();
        let columns = outputs.next_multiple_of(panel_columns);
        let panels = start..start + columns * inputs;
        let bias = panels.end..panels.end + columns;
        let mut column = 0;
        for (rows, biases, scale) in parts {
            assert_eq!(rows.len(), biases.len() * inputs, "one bias for each row");
            for (row, row_bias) in biases.iter().enumerate() {
                block[bias.start + column + row] = row_bias * scale;
            }
            // Sixteen inputs of all rows of a panel at a time: the panel's lines being written stay in the cache.
            let mut row = 0;
            while row < biases.len() {
                let in_panel = (column + row) % panel_columns;
                let run = (panel_columns - in_panel).min(biases.len() - row);
                let panel_start = panels.start + (column + row - in_panel) * inputs;
                let panel = &mut block[panel_start..panel_start + inputs * panel_columns];
                for (chunk, lines) in panel.chunks_mut(16 * panel_columns).enumerate() {
                    let depth = lines.len() / panel_columns;
                    for offset in 0..run {
                        let from = (row + offset) * inputs + chunk * 16;
                        let source = &rows[from..from + depth];
                        let places = lines[in_panel + offset..].iter_mut();
                        for (place, value) in places.step_by(panel_columns).zip(source) {
                            *place = value * scale;
                        }
                    }
                }
                row += run;
            }
            column += biases.len();
        }
        Self { panels, bias, inputs, outputs, panel_columns }
    }
}

/// What becomes of a product's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Epilogue {
    /// `out = product + bias`
    Store,
    /// `out = activation(product + bias)`
    Activate(Activation),
    /// `out += product + bias`: the residual connection.
    Add,
}

/// One product: `rows` rows of `matrix.inputs` values in `activations` times `matrix`, into `out` (`rows` rows of
/// `matrix.outputs` values).
pub(crate) struct Product<'a> {
    pub(crate) block: &'a [f32],
    pub(crate) matrix: &'a PackedMatrix,
    pub(crate) activations: &'a [f32],
    pub(crate) out: &'a mut [f32],
    pub(crate) rows: usize,
    pub(crate) epilogue: Epilogue,
}

impl Product<'_> {
    /// Checks that every slice has the size that the shape asks for; the kernels rely on it.
    fn check(&self, panel_columns: usize) {
        let PackedMatrix { panels, bias, inputs, outputs, panel_columns: packed_columns } = self.matrix;
        assert_eq!(*packed_columns, panel_columns, "packed for another kernel");
        assert_eq!(panels.len(), bias.len() * inputs);
        assert_eq!(bias.len(), outputs.next_multiple_of(panel_columns));
        assert!(panels.end <= self.block.len() && bias.end <= self.block.len());
        assert_eq!(self.activations.len(), self.rows * inputs);
        assert_eq!(self.out.len(), self.rows * outputs);
    }
}

/// Sums of one tile: `ROWS` rows of activations times `VECTORS` vectors of columns.
///
/// # Safety
/// The processor has the instruction set of `L`. `activations` is valid for `ROWS` rows of `depth` values that are
/// `stride` apart, `panel` for `depth` times `VECTORS` vectors.
#[inline(always)]
pub(crate) unsafe fn tile<L: Lanes, const ROWS: usize, const VECTORS: usize>(
    activations: *const f32,
    stride: usize,
    panel: *const f32,
    depth: usize,
) -> [[L; VECTORS]; ROWS] {
    // SAFETY: reads stay within what the caller promises.
    unsafe {
        let mut sums = [[L::splat(0.0); VECTORS]; ROWS];
        for input in 0..depth {
            let line = panel.add(input * VECTORS * L::WIDTH);
            let mut columns = [L::splat(0.0); VECTORS];
            for (vector, column) in columns.iter_mut().enumerate() {
                *column = L::load(line.add(vector * L::WIDTH));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = L::splat(*activations.add(row * stride + input));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = value.mul_add(column, *sum);
                }
            }
        }
        sums
    }
}

/// Runs `tile` for `ROWS` rows and writes the first `width` columns of the result.
///
/// # Safety
/// As [`tile`]; `bias` is valid for `VECTORS` vectors, `out` for `ROWS` rows of `width` values `out_stride` apart.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile_with_epilogue<L: Lanes, const ROWS: usize, const VECTORS: usize>(
    activations: *const f32,
    stride: usize,
    panel: *const f32,
    depth: usize,
    bias: *const f32,
    out: *mut f32,
    out_stride: usize,
    width: usize,
    epilogue: Epilogue,
) {
    // SAFETY: reads and writes stay within what the caller promises.
    unsafe {
        let sums = tile::<L, ROWS, VECTORS>(activations, stride, panel, depth);
        for (row, sums) in sums.into_iter().enumerate() {
            let out_row = out.add(row * out_stride);
            for (vector, sum) in sums.into_iter().enumerate() {
                let at = vector * L::WIDTH;
                let sum = sum.add(L::load(bias.add(at)));
                let place = out_row.add(at);
                if at + L::WIDTH <= width {
                    let sum = if epilogue == Epilogue::Add { sum.add(L::load(place)) } else { sum };
                    sum.store(place);
                } else if at < width {
                    let sum = if epilogue == Epilogue::Add { sum.add(L::load_first(place, width - at)) } else { sum };
                    sum.store_first(place, width - at);
                }
            }
        }
        if let Epilogue::Activate(function) = epilogue {
            // The rows were just written and lie in the nearest cache.
            for row in 0..ROWS {
                activation::apply::<L>(out.add(row * out_stride), width, function);
            }
        }
    }
}

/// Computes a product with tiles of at most `ROWS` x `VECTORS` registers (`ROWS` at most 8).
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn multiply<L: Lanes, const ROWS: usize, const VECTORS: usize>(product: &mut Product<'_>) {
    const { assert!(ROWS <= 8) };
    let panel_columns = VECTORS * L::WIDTH;
    product.check(panel_columns);
    let PackedMatrix { panels, bias, inputs, outputs, .. } = product.matrix;
    let (depth, outputs) = (*inputs, *outputs);
    // SAFETY: `check` has compared all lengths with the shape; row and column offsets below stay inside it. Wrapping
    // pointer arithmetic is used for the prefetch, which may point past the end and never faults.
    unsafe {
        let panel_size = depth * panel_columns;
        let tiles = product.rows.div_ceil(ROWS).max(1);
        // The next panel is fetched while this one is worked on, an equal share with each tile.
        let share = panel_size.div_ceil(tiles).next_multiple_of(16);
        for (index, column) in (0..outputs).step_by(panel_columns).enumerate() {
            let panel = product.block.as_ptr().add(panels.start + index * panel_size);
            let panel_bias = product.block.as_ptr().add(bias.start + column);
            let width = (outputs - column).min(panel_columns);
            let mut row = 0;
            let mut ahead = panel.wrapping_add(panel_size);
            while row < product.rows {
                if tiles > 2 {
                    prefetch(ahead, share);
                    ahead = ahead.wrapping_add(share);
                }
                let activations = product.activations.as_ptr().add(row * depth);
                let out = product.out.as_mut_ptr().add(row * outputs + column);
                let left = product.rows - row;
                macro_rules! tile_of {
                    ($rows:expr) => {
                        tile_with_epilogue::<L, { $rows }, VECTORS>(
                            activations,
                            depth,
                            panel,
                            depth,
                            panel_bias,
                            out,
                            outputs,
                            width,
                            product.epilogue,
                        )
                    };
                }
                if left >= ROWS {
                    tile_of!(ROWS);
                } else {
                    match left {
                        1 => tile_of!(1),
                        2 => tile_of!(2),
                        3 => tile_of!(3),
                        4 => tile_of!(4),
                        5 => tile_of!(5),
                        6 => tile_of!(6),
                        _ => tile_of!(7),
                    }
                }
                row += ROWS;
            }
        }
    }
}

/// Asks for `count` values from `from` on to be brought into the level-2 cache.
#[inline(always)]
fn prefetch(from: *const f32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..count).step_by(16) {
        // SAFETY: a prefetch never faults, whatever the address, and SSE is part of x86-64.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(line).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, count);
}
