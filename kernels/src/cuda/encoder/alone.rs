//! Each step of the encoder by itself, beside a plain computation in f64: more closely than whole vectors can be compared, and on any machine.
//!
//! What comes out is the largest difference; infinite where something is no number that should be one, or where something was written that should not be.

use super::super::batch::{self, BatchShape};
use super::super::limits::Noise;
use super::super::machine::{DeviceMemory, GpuError, Kernel, LaunchShape, Machine, Product, ProductEnd};
use super::{Attention, AttentionArguments, AttentionWay, EmbedArguments, LayerNormArguments, PoolArguments};
use super::{NORMALIZED_ROWS, pooling_shape, row_shape};
use crate::tokenizer::TokenSequence;
use bytemuck::{NoUninit, Pod};
use half::f16;

/// By how much halves of values up to about 1 may be off: their own rounding, and that of what they are computed from.
pub(crate) const TOLERANCE: f64 = 2e-3;

const VOCABULARY: usize = 30;
const POSITIONS: usize = 12;
const EPSILON: f32 = 1e-6;

/// A queue, memory, and numbers between -1 and 1.
struct Ground<'a, M: Machine> {
    machine: &'a M,
    /// Dropped before the memory: it waits for its work.
    queue: M::Queue,
    pieces: Vec<M::Memory>,
    noise: Noise,
}

/// A piece of memory.
#[derive(Clone, Copy)]
struct Piece {
    number: usize,
    address: u64,
}

impl<'a, M: Machine> Ground<'a, M> {
    fn new(machine: &'a M, seed: u64) -> Result<Self, GpuError> {
        Ok(Ground { machine, queue: machine.new_queue()?, pieces: Vec::new(), noise: Noise::new(seed) })
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        self.noise.by_ref().take(count).collect()
    }

    fn halves(&mut self, count: usize) -> Vec<f16> {
        self.noise.by_ref().take(count).map(f16::from_f32).collect()
    }

    fn indices(&mut self, count: usize, below: usize) -> Vec<u32> {
        let index = |value: f32| (((value + 1.0) / 2.0 * below as f32) as u32).min(below as u32 - 1);
        self.noise.by_ref().take(count).map(index).collect()
    }

    fn put<T: NoUninit>(&mut self, values: &[T]) -> Result<Piece, GpuError> {
        let memory = self.machine.allocate(size_of_val(values))?;
        self.machine.upload(&mut self.queue, &memory, 0, bytemuck::cast_slice(values))?;
        let piece = Piece { number: self.pieces.len(), address: memory.address() };
        self.pieces.push(memory);
        Ok(piece)
    }

    /// Memory whose values are none of those that belong there.
    fn poisoned(&mut self, count: usize) -> Result<Piece, GpuError> {
        self.put(&vec![f16::NAN; count])
    }

    fn get<T: Pod>(&mut self, piece: Piece, count: usize) -> Result<Vec<T>, GpuError> {
        let mut values = vec![T::zeroed(); count];
        self.machine.download(&mut self.queue, &self.pieces[piece.number], 0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    fn launch(&mut self, kernel: Kernel, shape: LaunchShape, arguments: &impl NoUninit) -> Result<(), GpuError> {
        // SAFETY: each step gives a kernel its own arguments and shape, and memory of the sizes that they name, which is there until the queue has waited.
        unsafe { self.machine.launch(&mut self.queue, kernel, shape, bytemuck::bytes_of(arguments)) }
    }
}

/// The larger of a difference so far and the one of these; infinite for what is no number.
fn larger(so_far: f64, found: f64, expected: f64) -> f64 {
    let difference = (found - expected).abs();
    if difference.is_nan() { f64::INFINITY } else { so_far.max(difference) }
}

fn largest(found: impl IntoIterator<Item = f64>, expected: impl IntoIterator<Item = f64>) -> f64 {
    found.into_iter().zip(expected).fold(0.0, |so_far, (found, expected)| larger(so_far, found, expected))
}

fn widen(halves: &[f16]) -> impl Iterator<Item = f64> {
    halves.iter().map(|half| f64::from(*half))
}

fn normalized(row: &[f64], scale: &[f32], shift: &[f32]) -> Vec<f64> {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / row.len() as f64;
    let norm = |((value, scale), shift): ((&f64, &f32), &f32)| {
        (value - mean) / (variance + f64::from(EPSILON)).sqrt() * f64::from(*scale) + f64::from(*shift)
    };
    row.iter().zip(scale).zip(shift).map(norm).collect()
}

/// Embeddings of words and places, added up and normalized.
pub(crate) fn embedding<M: Machine>(machine: &M, seed: u64, rows: usize, size: usize) -> Result<f64, GpuError> {
    let mut ground = Ground::new(machine, seed)?;
    let (words, places) = (ground.halves(VOCABULARY * size), ground.halves(POSITIONS * size));
    let (scale, shift) = (ground.floats(size), ground.floats(size));
    let (tokens, at) = (ground.indices(rows, VOCABULARY), ground.indices(rows, POSITIONS));
    let hidden = ground.poisoned(rows * size)?;
    let arguments = EmbedArguments {
        words: ground.put(&words)?.address,
        positions: ground.put(&places)?.address,
        scale: ground.put(&scale)?.address,
        shift: ground.put(&shift)?.address,
        tokens: ground.put(&tokens)?.address,
        places: ground.put(&at)?.address,
        hidden: hidden.address,
        rows: rows as u32,
        size: size as u32,
        epsilon: EPSILON,
        unused: 0,
    };
    ground.launch(if size <= 512 { Kernel::Embed512 } else { Kernel::Embed1024 }, row_shape(rows as u32, 1), &arguments)?;
    let embedded: Vec<f16> = ground.get(hidden, rows * size)?;
    let expected = (0..rows).flat_map(|row| {
        let word = &words[tokens[row] as usize * size..][..size];
        let place = &places[at[row] as usize * size..][..size];
        normalized(&widen(word).zip(widen(place)).map(|(word, place)| word + place).collect::<Vec<_>>(), &scale, &shift)
    });
    Ok(largest(widen(&embedded), expected))
}

/// Rows normalized in their place.
pub(crate) fn layer_norm<M: Machine>(machine: &M, seed: u64, rows: usize, size: usize) -> Result<f64, GpuError> {
    let mut ground = Ground::new(machine, seed)?;
    let (values, scale, shift) = (ground.halves(rows * size), ground.floats(size), ground.floats(size));
    let hidden = ground.put(&values)?;
    let arguments = LayerNormArguments {
        hidden: hidden.address,
        scale: ground.put(&scale)?.address,
        shift: ground.put(&shift)?.address,
        rows: rows as u32,
        size: size as u32,
        epsilon: EPSILON,
        unused: 0,
    };
    let kernel = if size <= 512 { Kernel::LayerNorm512 } else { Kernel::LayerNorm1024 };
    ground.launch(kernel, row_shape(rows as u32, NORMALIZED_ROWS), &arguments)?;
    let found: Vec<f16> = ground.get(hidden, rows * size)?;
    let expected = values.chunks_exact(size).flat_map(|row| normalized(&widen(row).collect::<Vec<_>>(), &scale, &shift));
    Ok(largest(widen(&found), expected))
}

/// Vectors of sequences from their rows: the mean, or the first of them.
pub(crate) fn pooling<M: Machine>(
    machine: &M,
    seed: u64,
    lengths: &[usize],
    size: usize,
    first_only: bool,
) -> Result<f64, GpuError> {
    let mut ground = Ground::new(machine, seed)?;
    let values = ground.halves(lengths.iter().sum::<usize>() * size);
    let firsts: Vec<u32> = lengths.iter().scan(0, |next, length| Some(std::mem::replace(next, *next + *length as u32))).collect();
    let counts: Vec<u32> = lengths.iter().map(|length| *length as u32).collect();
    let vectors = ground.put(&vec![f32::NAN; lengths.len() * size])?;
    let arguments = PoolArguments {
        hidden: ground.put(&values)?.address,
        first_rows: ground.put(&firsts)?.address,
        lengths: ground.put(&counts)?.address,
        vectors: vectors.address,
        size: size as u32,
        first_only: u32::from(first_only),
    };
    let kernel = if size <= 512 { Kernel::Pool512 } else { Kernel::Pool1024 };
    ground.launch(kernel, pooling_shape(lengths.len() as u32, size as u32), &arguments)?;
    let found: Vec<f32> = ground.get(vectors, lengths.len() * size)?;
    let expected = firsts.iter().zip(lengths).flat_map(|(first, length)| {
        let rows = *first as usize..*first as usize + if first_only { 1 } else { *length };
        let sums: Vec<f64> = (0..size).map(|i| rows.clone().map(|row| f64::from(values[row * size + i])).sum()).collect();
        let length = sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
        sums.into_iter().map(move |sum| if length > 0.0 { sum / length } else { 0.0 })
    });
    Ok(largest(found.into_iter().map(f64::from), expected))
}

/// A matrix product with its end. Results are between -1 and 1, roughly.
pub(crate) fn product<M: Machine>(
    machine: &M,
    seed: u64,
    (rows, inputs, outputs): (usize, usize, usize),
    end: ProductEnd,
) -> Result<f64, GpuError> {
    let mut ground = Ground::new(machine, seed)?;
    let part = 1.0 / (inputs as f32).sqrt();
    let (activations, weights) = (ground.halves(rows * inputs), ground.floats(outputs * inputs));
    let weights: Vec<f16> = weights.into_iter().map(|value| f16::from_f32(value * part)).collect();
    let (bias, before) = (ground.halves(outputs), ground.halves(rows * outputs));
    let out = ground.put(&before)?;
    let product = Product {
        activations: ground.put(&activations)?.address,
        weights: ground.put(&weights)?.address,
        bias: ground.put(&bias)?.address,
        out: out.address,
        rows,
        inputs,
        outputs,
        end,
    };
    // SAFETY: the four pieces have the product's sizes, and are there until the queue has waited.
    unsafe { machine.multiply(&mut ground.queue, &product)? };
    let found: Vec<f16> = ground.get(out, rows * outputs)?;
    let expected = (0..rows * outputs).map(|at| {
        let (row, column) = (&activations[at / outputs * inputs..][..inputs], &weights[at % outputs * inputs..][..inputs]);
        let sum = widen(row).zip(widen(column)).map(|(left, right)| left * right).sum::<f64>() + f64::from(bias[at % outputs]);
        match end {
            ProductEnd::Store => sum,
            ProductEnd::Add => sum + f64::from(before[at]),
            ProductEnd::Relu => sum.max(0.0),
            ProductEnd::Gelu => 0.5 * sum * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (sum + 0.044715 * sum.powi(3))).tanh()),
        }
    });
    Ok(largest(widen(&found), expected))
}

/// Attention, and whether rows of no sequence are left as they are. The keys of each row are larger by `growth` than those of the one before.
pub(crate) fn attention<M: Machine>(
    machine: &M,
    seed: u64,
    way: AttentionWay,
    (head, heads): (usize, usize),
    lengths: &[usize],
    growth: f32,
) -> Result<f64, GpuError> {
    let mut ground = Ground::new(machine, seed)?;
    let sequences: Vec<TokenSequence> = lengths.iter().map(|length| TokenSequence(vec![1; *length])).collect();
    let shape = BatchShape::of(&sequences);
    let hidden = heads * head;
    // Scores of several powers of two: the softmax has something to weigh.
    let mut projections = ground.halves(shape.rows * 3 * hidden);
    for (number, row) in projections.chunks_exact_mut(3 * hidden).enumerate() {
        row[..hidden].iter_mut().for_each(|value| *value = f16::from_f32(value.to_f32() * 2.0));
        let larger = 1.0 + number as f32 * growth;
        row[hidden..2 * hidden].iter_mut().for_each(|value| *value = f16::from_f32(value.to_f32() * larger));
    }
    let description = ground.put(&batch::describe(&sequences, shape))?;
    let context = ground.poisoned(shape.rows * hidden)?;
    let arguments = AttentionArguments {
        projections: ground.put(&projections)?.address,
        context: context.address,
        tiles: description.address + (shape.tiles_at() * size_of::<u32>()) as u64,
        heads: heads as u32,
        unused: 0,
    };
    let (kernel, launch_shape) = Attention::of(head, way.possible_on(machine))?.launch(shape, heads as u32);
    ground.launch(kernel, launch_shape, &arguments)?;
    let found: Vec<f16> = ground.get(context, shape.rows * hidden)?;

    let row = |row: usize, part: usize, of_head: usize| &projections[row * 3 * hidden + part * hidden + of_head * head..][..head];
    let (mut first, mut difference) = (0, 0.0);
    for length in lengths.iter().copied() {
        for query in 0..length {
            for of_head in 0..heads {
                let score = |key: usize| -> f64 {
                    let (query, key) = (row(first + query, 0, of_head), row(first + key, 1, of_head));
                    widen(query).zip(widen(key)).map(|(left, right)| left * right).sum()
                };
                let weights: Vec<f64> = (0..length).map(|key| score(key).exp2()).collect();
                let sum: f64 = weights.iter().sum();
                for column in 0..head {
                    let value = |key: usize| f64::from(row(first + key, 2, of_head)[column]);
                    let expected = weights.iter().enumerate().map(|(key, weight)| weight / sum * value(key)).sum();
                    difference = larger(difference, found[(first + query) * hidden + of_head * head + column].into(), expected);
                }
            }
        }
        first += length;
    }
    // A row of no sequence, once written, is no longer what is no number.
    Ok(if found[first * hidden..].iter().all(|half| half.is_nan()) { difference } else { f64::INFINITY })
}
