//! Matrix products: rows of activations times a packed matrix of weights.
//!
//! The kernel keeps a tile of `ROWS` x `VECTORS` registers of sums, and for each word of inputs multiplies the
//! broadcast word of each row with the vectors of a panel ([`super::packed`]): the scheme of Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication" (2008), without packing the activations, which are few enough to stay
//! in the level-2 cache.

use super::activation;
use super::arithmetic::{Arithmetic, RowScale};
use super::layout::{RowLayout, words_of};
use super::numbers::Numbers;
use super::operand::Operand;
use super::packed::PackedMatrix;
use crate::configuration::Activation;
use crate::lanes::Lanes;
use std::mem::MaybeUninit;

/// Words of a panel that are worked on together: they stay in a level-1 cache of 48 KiB beside the activations.
const PANEL_PART_WORDS: usize = 192 * 48;

/// Columns of the widest panel of any instruction set.
const PANEL_COLUMNS_MAX: usize = 48;

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

/// Where the rows of a product go.
pub(crate) enum Results<'a> {
    /// As f32, one row after the other.
    Values(&'a mut [f32]),
    /// In the layout of the rows that the product reads, if these are halves.
    Narrowed(&'a mut [u32]),
}

/// One product: `rows` rows of `matrix.inputs` values in `activations` times `matrix`, into `out` (`rows` rows of
/// `matrix.outputs` values).
pub(crate) struct Product<'a> {
    pub(crate) block: &'a [u32],
    pub(crate) matrix: &'a PackedMatrix,
    pub(crate) activations: Operand<'a>,
    pub(crate) out: Results<'a>,
    pub(crate) rows: usize,
    pub(crate) epilogue: Epilogue,
}

impl Product<'_> {
    /// Checks that every slice has the size that the shape asks for; the kernels rely on it.
    pub(super) fn check(&self, panel_columns: usize, layout: RowLayout) {
        let PackedMatrix { panels, columns, depth, outputs, .. } = self.matrix;
        assert!(self.matrix.panel_columns == panel_columns && self.matrix.layout == layout, "packed for another kernel");
        let padded = outputs.next_multiple_of(panel_columns);
        assert_eq!(panels.len(), padded * depth);
        assert!(columns.len() >= padded);
        assert!(panels.end <= self.block.len() && columns.end <= self.block.len());
        assert_eq!(self.activations.words.len(), layout.rows_read(self.rows) * depth);
        match &self.out {
            Results::Values(values) => assert_eq!(values.len(), self.rows * outputs),
            Results::Narrowed(words) => {
                assert!(layout.numbers == Numbers::Bf16 && self.epilogue != Epilogue::Add);
                assert_eq!(words.len(), self.rows * layout.words(*outputs));
            }
        }
        if layout.numbers == Numbers::Int8 {
            assert!(columns.len() == 3 * padded && self.activations.scales.len() >= self.rows);
        }
    }
}

/// Sums of one tile: `ROWS` rows of activations times `VECTORS` vectors of columns.
///
/// # Safety
/// The processor has the instruction set of `A`. `activations` is valid for `ROWS` rows of `depth` words that are
/// `stride` apart, `panel` for `depth` times `VECTORS` vectors.
#[inline(always)]
pub(crate) unsafe fn tile<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(
    activations: *const u32,
    stride: usize,
    panel: *const u32,
    depth: usize,
) -> [[A::Sums; VECTORS]; ROWS] {
    // SAFETY: reads stay within what the caller promises.
    unsafe {
        let mut sums = [[A::zero(); VECTORS]; ROWS];
        for word in 0..depth {
            let line = panel.add(word * VECTORS * A::Lanes::WIDTH);
            let mut columns = [A::load_columns(line); VECTORS];
            for (vector, column) in columns.iter_mut().enumerate().skip(1) {
                *column = A::load_columns(line.add(vector * A::Lanes::WIDTH));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let row = A::load_row(activations.add(row * stride + word));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = A::multiply_add(row, column, *sum);
                }
            }
        }
        sums
    }
}

/// What describes the columns of a panel.
#[derive(Clone, Copy)]
struct ColumnValues {
    bias: *const f32,
    /// For whole numbers: what one of a column's numbers is worth.
    scale: *const f32,
    /// For whole numbers: the sum of a column's numbers.
    sum: *const f32,
}

/// One tile of a product: what `ROWS` rows and the columns of one panel give over a part of the depth.
struct TileTask {
    /// First word of the first row, `stride` words before that of the next row.
    activations: *const u32,
    stride: usize,
    /// For whole numbers: how the rows are read.
    row_scales: *const RowScale,
    /// The part of the panel that belongs to the part of the depth.
    panel: *const u32,
    depth: usize,
    columns: ColumnValues,
    /// Whether the depth begins with this part: then what a column adds as a whole is added.
    is_first: bool,
    out: Place,
    /// Values from a row of results to the next, or words of halves.
    out_stride: usize,
    /// Columns that the result has, at most those of the panel.
    width: usize,
    /// Whether the result is added to what `out` holds.
    is_added: bool,
    /// What is applied to the result, with the last part of the depth.
    activation: Option<Activation>,
}

/// Where the first result of a tile goes.
#[derive(Clone, Copy)]
enum Place {
    Values(*mut f32),
    /// Halves. The depth is not in parts then.
    Narrowed(*mut u32),
}

impl Place {
    /// The place of a column of the same row, which is the first in its word.
    ///
    /// # Safety
    /// The row has the column.
    unsafe fn at(self, column: usize) -> Self {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Place::Values(values) => Place::Values(values.add(column)),
                Place::Narrowed(words) => Place::Narrowed(words.add(words_of(column, Numbers::Bf16))),
            }
        }
    }

    /// The place so many values, or words of halves, further on.
    ///
    /// # Safety
    /// There is a row.
    unsafe fn rows_on(self, distance: usize) -> Self {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Place::Values(values) => Place::Values(values.add(distance)),
                Place::Narrowed(words) => Place::Narrowed(words.add(distance)),
            }
        }
    }
}

/// Room for the results of a tile before they are narrowed.
type TileRoom<const ROWS: usize> = MaybeUninit<[[f32; PANEL_COLUMNS_MAX]; ROWS]>;

/// # Safety
/// As [`tile`]; `columns` is valid for `VECTORS` vectors, `row_scales` for `ROWS` rows, both as far as the arithmetic has them; `out` for
/// `ROWS` rows of `width` values `out_stride` apart, or of as many halves.
#[inline(always)]
unsafe fn run<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(task: &TileTask) {
    const { assert!(VECTORS * A::Lanes::WIDTH <= PANEL_COLUMNS_MAX) };
    let width = task.width;
    // SAFETY: passed on to the caller; a tile's room is large enough for its rows, and of it no more is read than is written.
    unsafe {
        let sums = tile::<A, ROWS, VECTORS>(task.activations, task.stride, task.panel, task.depth);
        let mut room = TileRoom::<ROWS>::uninit();
        let (values, stride) = match task.out {
            Place::Values(values) => (values, task.out_stride),
            Place::Narrowed(_) => (room.as_mut_ptr().cast(), PANEL_COLUMNS_MAX),
        };
        let whole = VECTORS * A::Lanes::WIDTH;
        let TileTask { is_first, is_added, .. } = *task;
        // Made for each case by itself, so that nothing is asked for each register.
        match (width == whole, is_first, is_added) {
            (true, true, false) => write::<A, ROWS, VECTORS>(task, sums, values, stride, whole, true, false),
            (true, true, true) => write::<A, ROWS, VECTORS>(task, sums, values, stride, whole, true, true),
            (true, false, true) => write::<A, ROWS, VECTORS>(task, sums, values, stride, whole, false, true),
            _ => write::<A, ROWS, VECTORS>(task, sums, values, stride, width, is_first, is_added),
        }
        // The rows were just written and lie in the nearest cache.
        for row in 0..ROWS {
            let values = values.add(row * stride);
            if let Some(function) = task.activation {
                activation::apply::<A::Lanes>(values, width, function, A::NUMBERS);
            }
            if let Place::Narrowed(words) = task.out {
                A::narrow(std::slice::from_raw_parts(values, width), words.add(row * task.out_stride));
            }
        }
    }
}

/// Writes what the sums of a tile are worth, or adds it to what is there.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn write<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(
    task: &TileTask,
    sums: [[A::Sums; VECTORS]; ROWS],
    values: *mut f32,
    stride: usize,
    width: usize,
    is_first: bool,
    is_added: bool,
) {
    // SAFETY: reads and writes stay within what the caller promises.
    unsafe {
        let mut columns = [Column::<A::Lanes>::load(task, 0, A::NUMBERS, is_first); VECTORS];
        for (vector, column) in columns.iter_mut().enumerate().skip(1) {
            *column = Column::load(task, vector * A::Lanes::WIDTH, A::NUMBERS, is_first);
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let out_row = values.add(row * stride);
            let scale = if A::NUMBERS == Numbers::Int8 { *task.row_scales.add(row) } else { RowScale::default() };
            for (vector, (sum, column)) in sums.into_iter().zip(columns).enumerate() {
                let at = vector * A::Lanes::WIDTH;
                let place = out_row.add(at);
                let value = finish::<A>(sum, scale, column, is_first);
                if at + A::Lanes::WIDTH <= width {
                    let value = if is_added { value.add(A::Lanes::load(place)) } else { value };
                    value.store(place);
                } else if at < width {
                    let value = if is_added { value.add(A::Lanes::load_first(place, width - at)) } else { value };
                    value.store_first(place, width - at);
                }
            }
        }
    }
}

/// What describes the columns of a vector.
#[derive(Clone, Copy)]
struct Column<L> {
    bias: L,
    /// For whole numbers.
    scale: L,
    /// For whole numbers.
    sum: L,
}

impl<L: Lanes> Column<L> {
    /// Those from `at` on, as far as they are needed.
    ///
    /// # Safety
    /// As [`run`].
    #[inline(always)]
    unsafe fn load(task: &TileTask, at: usize, numbers: Numbers, is_first: bool) -> Self {
        let are_whole = numbers == Numbers::Int8;
        // SAFETY: reads stay within what the caller promises.
        unsafe {
            let read = |is_needed: bool, from: *const f32| if is_needed { L::load(from.wrapping_add(at)) } else { L::splat(0.0) };
            Self {
                bias: read(is_first, task.columns.bias),
                scale: read(are_whole, task.columns.scale),
                sum: read(are_whole && is_first, task.columns.sum),
            }
        }
    }
}

/// What the sums of a row with a vector of columns are worth. With whole numbers, a = (p - zero) s and w = q t, so that
/// the sum of a w is (sum of p q - zero * sum of q) s t.
///
/// # Safety
/// The processor has the instruction set of `A`.
#[inline(always)]
unsafe fn finish<A: Arithmetic>(sums: A::Sums, row: RowScale, column: Column<A::Lanes>, is_first: bool) -> A::Lanes {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut value = A::values(sums);
        if A::NUMBERS == Numbers::Int8 {
            if is_first {
                value = A::Lanes::splat(-row.zero).mul_add(column.sum, value);
            }
            value = value.mul(A::Lanes::splat(row.scale)).mul(column.scale);
        }
        if is_first { value.add(column.bias) } else { value }
    }
}

/// Computes a product with tiles of at most `ROWS` x `VECTORS` registers (`ROWS` at most 8).
///
/// # Safety
/// The processor has the instruction set of `A`.
#[inline(always)]
pub(crate) unsafe fn multiply<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(product: &mut Product<'_>) {
    const { assert!(ROWS <= 8) };
    let panel_columns = VECTORS * A::Lanes::WIDTH;
    product.check(panel_columns, RowLayout::dense(A::NUMBERS));
    let PackedMatrix { panels, columns, depth: words, outputs, .. } = product.matrix;
    let (words, outputs, rows) = (*words, *outputs, product.rows);
    let padded = outputs.next_multiple_of(panel_columns);
    let (out, out_stride) = match &mut product.out {
        Results::Values(values) => (Place::Values(values.as_mut_ptr()), outputs),
        Results::Narrowed(words) => (Place::Narrowed(words.as_mut_ptr()), product.matrix.layout.words(outputs)),
    };
    let activation = match product.epilogue {
        Epilogue::Activate(function) => Some(function),
        Epilogue::Store | Epilogue::Add => None,
    };
    // With few rows a panel is hardly used again: writing sums out between parts would cost more than it saves, and
    // the processor's own prefetching, which follows the panel, is the best there is.
    let has_few_rows = rows <= 2 * ROWS;
    // Results that are narrowed are complete when they are written.
    let is_whole = has_few_rows || matches!(out, Place::Narrowed(_));
    let parts = if is_whole { 1 } else { (words * panel_columns).div_ceil(PANEL_PART_WORDS).max(1) };
    let part_depth = words.div_ceil(parts).max(1);
    // What is worked on next is fetched meanwhile, an equal share with each tile.
    let share = (part_depth * panel_columns).div_ceil(rows.div_ceil(ROWS).max(1)).next_multiple_of(16);
    // SAFETY: `check` has compared all lengths with the shape; row, column and depth offsets below stay inside it.
    unsafe {
        let described = product.block.as_ptr().add(columns.start).cast::<f32>();
        for (index, column) in (0..outputs).step_by(panel_columns).enumerate() {
            let panel = product.block.as_ptr().add(panels.start + index * words * panel_columns);
            let column_values = ColumnValues {
                bias: described.add(column),
                // Only whole numbers have these.
                scale: described.wrapping_add(padded + column),
                sum: described.wrapping_add(2 * padded + column),
            };
            for first_word in (0..words).step_by(part_depth) {
                let depth = part_depth.min(words - first_word);
                let is_first = first_word == 0;
                let is_last = first_word + depth == words;
                let mut task = TileTask {
                    activations: product.activations.words.as_ptr().add(first_word),
                    stride: words,
                    row_scales: product.activations.scales.as_ptr(),
                    panel: panel.add(first_word * panel_columns),
                    depth,
                    columns: column_values,
                    is_first,
                    out: out.at(column),
                    out_stride,
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
                    run::<A, ROWS, VECTORS>(&task);
                    left -= ROWS;
                    if left > 0 {
                        task.activations = task.activations.add(ROWS * words);
                        task.row_scales = task.row_scales.wrapping_add(ROWS);
                        task.out = task.out.rows_on(ROWS * out_stride);
                    }
                }
                match left {
                    0 => {}
                    1 => run::<A, 1, VECTORS>(&task),
                    2 => run::<A, 2, VECTORS>(&task),
                    3 => run::<A, 3, VECTORS>(&task),
                    4 => run::<A, 4, VECTORS>(&task),
                    5 => run::<A, 5, VECTORS>(&task),
                    6 => run::<A, 6, VECTORS>(&task),
                    _ => run::<A, 7, VECTORS>(&task),
                }
            }
        }
    }
}

/// Asks for `count` words from `from` on to be brought into the level-2 cache.
#[inline(always)]
pub(super) fn prefetch(from: *const u32, count: usize) {
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
