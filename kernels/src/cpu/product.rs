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

/// Values of a panel that are worked on together: they stay in a level-1 cache of 48 KiB beside the activations.
const PANEL_PART_VALUES: usize = 192 * 48;

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

/// One tile of a product: what `ROWS` rows and the columns of one panel give over a part of the depth.
struct TileTask {
    /// First activation of the first row, `stride` values before that of the next row.
    activations: *const f32,
    stride: usize,
    /// The part of the panel that belongs to the part of the depth.
    panel: *const f32,
    depth: usize,
    /// Biases of the panel's columns, with the first part of the depth.
    bias: Option<*const f32>,
    out: *mut f32,
    out_stride: usize,
    /// Columns that the result has, at most those of the panel.
    width: usize,
    /// Whether the result is added to what `out` holds.
    is_added: bool,
    /// What is applied to the result, with the last part of the depth.
    activation: Option<Activation>,
}

/// # Safety
/// As [`tile`]; `bias` is valid for `VECTORS` vectors, `out` for `ROWS` rows of `width` values `out_stride` apart.
#[inline(always)]
unsafe fn run<L: Lanes, const ROWS: usize, const VECTORS: usize>(task: &TileTask) {
    let width = task.width;
    // SAFETY: reads and writes stay within what the caller promises.
    unsafe {
        let mut sums = tile::<L, ROWS, VECTORS>(task.activations, task.stride, task.panel, task.depth);
        if let Some(bias) = task.bias {
            for (vector, sums_start) in (0..VECTORS).map(|vector| (vector, vector * L::WIDTH)) {
                let bias = L::load(bias.add(sums_start));
                for sums in &mut sums {
                    sums[vector] = sums[vector].add(bias);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let out_row = task.out.add(row * task.out_stride);
            for (vector, sum) in sums.into_iter().enumerate() {
                let at = vector * L::WIDTH;
                let place = out_row.add(at);
                if at + L::WIDTH <= width {
                    let sum = if task.is_added { sum.add(L::load(place)) } else { sum };
                    sum.store(place);
                } else if at < width {
                    let sum = if task.is_added { sum.add(L::load_first(place, width - at)) } else { sum };
                    sum.store_first(place, width - at);
                }
            }
        }
        if let Some(function) = task.activation {
            // The rows were just written and lie in the nearest cache.
            for row in 0..ROWS {
                activation::apply::<L>(task.out.add(row * task.out_stride), width, function);
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
    let (inputs, outputs, rows) = (*inputs, *outputs, product.rows);
    let activation = match product.epilogue {
        Epilogue::Activate(function) => Some(function),
        Epilogue::Store | Epilogue::Add => None,
    };
    // With few rows a panel is hardly used again: writing sums out between parts would cost more than it saves, and
    // the processor's own prefetching, which follows the panel, is the best there is.
    let has_few_rows = rows <= 2 * ROWS;
    let parts = if has_few_rows { 1 } else { (inputs * panel_columns).div_ceil(PANEL_PART_VALUES).max(1) };
    let part_depth = inputs.div_ceil(parts).max(1);
    // What is worked on next is fetched meanwhile, an equal share with each tile.
    let share = (part_depth * panel_columns).div_ceil(rows.div_ceil(ROWS).max(1)).next_multiple_of(16);
    // SAFETY: `check` has compared all lengths with the shape; row, column and depth offsets below stay inside it.
    unsafe {
        for (index, column) in (0..outputs).step_by(panel_columns).enumerate() {
            let panel = product.block.as_ptr().add(panels.start + index * inputs * panel_columns);
            for first_input in (0..inputs).step_by(part_depth) {
                let depth = part_depth.min(inputs - first_input);
                let is_first = first_input == 0;
                let is_last = first_input + depth == inputs;
                let mut task = TileTask {
                    activations: product.activations.as_ptr().add(first_input),
                    stride: inputs,
                    panel: panel.add(first_input * panel_columns),
                    depth,
                    bias: is_first.then(|| product.block.as_ptr().add(bias.start + column)),
                    out: product.out.as_mut_ptr().add(column),
                    out_stride: outputs,
                    width: (outputs - column).min(panel_columns),
                    is_added: !is_first || product.epilogue == Epilogue::Add,
                    activation: activation.filter(|_| is_last),
                };
                let mut ahead = task.panel.wrapping_add(depth * panel_columns);
                let mut left = rows;
                while left >= ROWS {
                    if !has_few_rows {
                        prefetch(ahead, share);
                        ahead = ahead.wrapping_add(share);
                    }
                    run::<L, ROWS, VECTORS>(&task);
                    left -= ROWS;
                    if left > 0 {
                        task.activations = task.activations.add(ROWS * inputs);
                        task.out = task.out.add(ROWS * outputs);
                    }
                }
                match left {
                    0 => {}
                    1 => run::<L, 1, VECTORS>(&task),
                    2 => run::<L, 2, VECTORS>(&task),
                    3 => run::<L, 3, VECTORS>(&task),
                    4 => run::<L, 4, VECTORS>(&task),
                    5 => run::<L, 5, VECTORS>(&task),
                    6 => run::<L, 6, VECTORS>(&task),
                    _ => run::<L, 7, VECTORS>(&task),
                }
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
