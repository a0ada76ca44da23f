//! Matrices of weights in the order in which products read them.
//!
//! The weights are packed once into *panels* of as many columns as one register tile has. A panel holds its
//! columns depth-first: for each word of inputs (one f32, two bf16, four bytes), the panel's columns side by side, so that a tile reads it
//! from front to back.

use super::layout::{RowLayout, values_in_word};
use super::numbers::Numbers;
use half::bf16;
use std::ops::Range;

/// The largest magnitude of a weight in a byte; -128 is left out, so that each number has its negative.
const LARGEST_BYTE: f32 = 127.0;
/// Words that are written to each column of a panel before the next one: the panel's lines that are written stay in the cache.
const PART_WORDS: usize = 16;

/// Rows of weights, one for each output (as `torch.nn.Linear` keeps them), with a bias for each. All are multiplied by the factor.
#[derive(Clone, Copy)]
pub(crate) struct Linear<'a> {
    pub(crate) weights: &'a [f32],
    pub(crate) biases: &'a [f32],
    pub(crate) factor: f32,
}

/// Where a packed matrix lies in the block of all weights, and its shape.
#[derive(Debug, Clone)]
pub(crate) struct PackedMatrix {
    /// How the rows lie that it is multiplied with.
    pub(crate) layout: RowLayout,
    /// Words of the block: panels, each `depth` x `panel_columns`, the last one padded with zeros.
    pub(crate) panels: Range<usize>,
    /// Words of the block, each an f32, for each column of the panels: the biases; for whole numbers after them each column's scale, and
    /// after those the sum of its numbers.
    pub(crate) columns: Range<usize>,
    /// Values of one activation row.
    pub(crate) inputs: usize,
    /// Words of one activation row.
    pub(crate) depth: usize,
    /// Columns of the result.
    pub(crate) outputs: usize,
    pub(crate) panel_columns: usize,
}

/// Values that describe a column, beside its weights.
const fn values_of_column(numbers: Numbers) -> usize {
    match numbers {
        Numbers::F32 | Numbers::Bf16 => 1,
        Numbers::Int8 => 3,
    }
}

impl PackedMatrix {
    /// Words of the block that a matrix of this shape takes.
    pub(crate) fn size(inputs: usize, outputs: usize, panel_columns: usize, layout: RowLayout) -> usize {
        let columns = outputs.next_multiple_of(panel_columns);
        // Rounded up so that every matrix begins on a cache line.
        (columns * (layout.words(inputs) + values_of_column(layout.numbers))).next_multiple_of(16)
    }

    /// A matrix of this shape that begins with the word `start` of a block.
    pub(crate) fn at(start: usize, inputs: usize, outputs: usize, panel_columns: usize, layout: RowLayout) -> Self {
        let padded = outputs.next_multiple_of(panel_columns);
        let depth = layout.words(inputs);
        let panels = start..start + padded * depth;
        let columns = panels.end..panels.end + padded * values_of_column(layout.numbers);
        Self { layout, panels, columns, inputs, depth, outputs, panel_columns }
    }

    /// Packs linear layers, all with so many inputs, into `block[start..]`, which is zero. They become one matrix.
    pub(crate) fn pack(
        block: &mut [u32],
        start: usize,
        inputs: usize,
        panel_columns: usize,
        layout: RowLayout,
        layers: &[Linear<'_>],
    ) -> Self {
        let outputs = layers.iter().map(|layer| layer.biases.len()).sum();
        let matrix = Self::at(start, inputs, outputs, panel_columns, layout);
        matrix.fill(block, layers);
        matrix
    }

    /// Packs linear layers, which have the matrix's inputs and together its outputs, into its place in the block, which is zero.
    pub(crate) fn fill(&self, block: &mut [u32], layers: &[Linear<'_>]) {
        assert_eq!(layers.iter().map(|layer| layer.biases.len()).sum::<usize>(), self.outputs);
        let panel_columns = self.panel_columns;
        let mut column = 0;
        for layer in layers {
            assert_eq!(layer.weights.len(), layer.biases.len() * self.inputs, "one bias for each row");
            let mut row = 0;
            while row < layer.biases.len() {
                let count = (panel_columns - (column + row) % panel_columns).min(layer.biases.len() - row);
                self.pack_into_panel(block, column + row, layer, row..row + count);
                row += count;
            }
            column += layer.biases.len();
        }
    }

    /// Packs some rows of a layer, whose columns begin with `column` and are all in its panel.
    fn pack_into_panel(&self, block: &mut [u32], column: usize, layer: &Linear<'_>, rows: Range<usize>) {
        let weights = &layer.weights[rows.start * self.inputs..rows.end * self.inputs];
        let factors: Vec<f32> = weights
            .chunks_exact(self.inputs)
            .zip(&layer.biases[rows])
            .enumerate()
            .map(|(offset, (weights, bias))| self.describe_column(block, column + offset, weights, *bias, layer.factor))
            .collect();
        let in_panel = column % self.panel_columns;
        let panel_start = self.panels.start + (column - in_panel) * self.depth;
        let panel = &mut block[panel_start..panel_start + self.depth * self.panel_columns];
        let part_values = PART_WORDS * values_in_word(self.layout.numbers);
        for (part, lines) in panel.chunks_mut(PART_WORDS * self.panel_columns).enumerate() {
            for (offset, (weights, factor)) in weights.chunks_exact(self.inputs).zip(&factors).enumerate() {
                let first = part * part_values;
                let weights = &weights[first..(first + part_values).min(self.inputs)];
                let places = lines[in_panel + offset..].iter_mut().step_by(self.panel_columns);
                write_words(self.layout.numbers, weights, *factor, places);
            }
        }
    }

    /// Writes what describes a column; returns the factor that its weights are to be written with.
    fn describe_column(&self, block: &mut [u32], column: usize, weights: &[f32], bias: f32, factor: f32) -> f32 {
        let padded = self.outputs.next_multiple_of(self.panel_columns);
        let mut describe = |number: usize, value: f32| block[self.columns.start + number * padded + column] = value.to_bits();
        describe(0, bias * factor);
        if self.layout.numbers != Numbers::Int8 {
            return factor;
        }
        let largest = weights.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
        let to_byte = if largest > 0.0 { LARGEST_BYTE / largest } else { 1.0 };
        describe(1, factor / to_byte);
        describe(2, weights.iter().map(|weight| i32::from(byte(weight * to_byte))).sum::<i32>() as f32);
        to_byte
    }
}

/// Writes values times a factor to places, each of which takes one word. What follows the last value in its word is zero.
fn write_words<'a>(numbers: Numbers, values: &[f32], factor: f32, places: impl Iterator<Item = &'a mut u32>) {
    match numbers {
        Numbers::F32 => places.zip(values).for_each(|(place, value)| *place = (value * factor).to_bits()),
        Numbers::Bf16 => places.zip(values.chunks(2)).for_each(|(place, pair)| {
            let half = |number: usize| pair.get(number).map_or(0, |value| u32::from(bf16::from_f32(value * factor).to_bits()));
            *place = half(0) | half(1) << 16;
        }),
        Numbers::Int8 => places.zip(values.chunks(4)).for_each(|(place, four)| {
            let byte = |number: usize| four.get(number).map_or(0, |value| byte(value * factor));
            *place = u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)].map(|byte| byte as u8));
        }),
    }
}

/// The nearest whole number of a value from -127 to 127.
fn byte(value: f32) -> i8 {
    // Adding 1.5 * 2^23 leaves the nearest whole number in the lowest bits: `round` is a call of a function on some processors.
    (value + 12_582_912.0).to_bits() as i8
}
