//! Attention without the rest of the encoder, to compare its kernels on a GPU.

use super::super::batch::{self, BatchShape};
use super::super::limits::{noise, seconds_of};
use super::super::machine::{DeviceMemory, GpuError, Machine};
use super::{Attention, AttentionArguments, AttentionWay};
use crate::tokenizer::TokenSequence;
use half::f16;

/// Attention of one layer. Queries, keys and values are between -1 and 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionWork {
    /// Tokens of each text.
    pub lengths: Vec<usize>,
    /// Attention heads.
    pub heads: usize,
    /// Values of a head: 32 or 64.
    pub head_dimension: usize,
}

/// Seconds that the work takes, done several times in a row.
pub(crate) fn seconds<M: Machine>(machine: &M, work: &AttentionWork, way: AttentionWay) -> Result<f64, GpuError> {
    let mut alone = Alone::new(machine, work, way)?;
    seconds_of(|wait| {
        alone.begin()?;
        if wait { alone.download(&mut []) } else { Ok(()) }
    })
}

/// By how much the results of two ways differ at most; infinite where one of them is no number.
pub(crate) fn difference<M: Machine>(machine: &M, work: &AttentionWork, ways: [AttentionWay; 2]) -> Result<f32, GpuError> {
    let [left, right] = ways.map(|way| Alone::new(machine, work, way).and_then(|mut alone| alone.result()));
    let rows: usize = work.lengths.iter().sum();
    let differences = left?.into_iter().zip(right?).map(|(left, right)| (left.to_f32() - right.to_f32()).abs());
    let differences = differences.take(rows * work.heads * work.head_dimension);
    Ok(differences.map(|difference| if difference.is_nan() { f32::INFINITY } else { difference }).fold(0.0, f32::max))
}

/// What a launch of attention needs.
struct Alone<'a, M: Machine> {
    machine: &'a M,
    queue: M::Queue,
    attention: Attention,
    shape: BatchShape,
    heads: usize,
    description: M::Memory,
    projections: M::Memory,
    context: M::Memory,
}

impl<'a, M: Machine> Alone<'a, M> {
    fn new(machine: &'a M, work: &AttentionWork, way: AttentionWay) -> Result<Self, GpuError> {
        let AttentionWork { ref lengths, heads, head_dimension } = *work;
        let attention = Attention::of(head_dimension, way.possible_on(machine))?;
        let sequences: Vec<TokenSequence> = lengths.iter().map(|length| TokenSequence(vec![0; *length])).collect();
        let shape = BatchShape::of(&sequences);
        let values = shape.rows * heads * head_dimension;
        let mut queue = machine.new_queue()?;
        let description = machine.allocate(shape.words() * size_of::<u32>())?;
        machine.upload(&mut queue, &description, 0, bytemuck::cast_slice(&batch::describe(&sequences, shape)))?;
        let projections = machine.allocate(3 * values * size_of::<f16>())?;
        machine.upload(&mut queue, &projections, 0, bytemuck::cast_slice(&noise(3 * values)))?;
        let context = machine.allocate(values * size_of::<f16>())?;
        Ok(Alone { machine, queue, attention, shape, heads, description, projections, context })
    }

    fn begin(&mut self) -> Result<(), GpuError> {
        let arguments = AttentionArguments {
            projections: self.projections.address(),
            context: self.context.address(),
            tiles: self.description.address() + (self.shape.tiles_at() * size_of::<u32>()) as u64,
            heads: self.heads as u32,
            unused: 0,
        };
        let (kernel, shape) = self.attention.launch(self.shape, self.heads as u32);
        // SAFETY: the arguments are the kernel's, and the three pieces of memory are as large as the shape says. They are dropped after the queue, which waits
        // for its work.
        unsafe { self.machine.launch(&mut self.queue, kernel, shape, bytemuck::bytes_of(&arguments)) }
    }

    fn download(&mut self, into: &mut [u8]) -> Result<(), GpuError> {
        self.machine.download(&mut self.queue, &self.context, 0, into)
    }

    fn result(&mut self) -> Result<Vec<f16>, GpuError> {
        let mut result = vec![f16::ZERO; self.shape.rows * self.heads * self.attention.head_dimension];
        self.begin()?;
        self.download(bytemuck::cast_slice_mut(&mut result))?;
        Ok(result)
    }
}
