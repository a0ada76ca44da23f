//! How long attention takes alone, to compare its kernels on a GPU.

use super::super::batch::{self, BatchShape};
use super::super::limits::{noise, seconds_of};
use super::super::machine::{DeviceMemory, GpuError, Machine};
use super::{Attention, AttentionArguments, AttentionWay};
use crate::tokenizer::TokenSequence;
use half::f16;

/// Attention of one layer over texts of equal length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionWork {
    /// Number of texts.
    pub texts: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Attention heads.
    pub heads: usize,
    /// Values of a head: 32 or 64.
    pub head_dimension: usize,
}

/// Seconds that the work takes, done several times in a row.
pub(crate) fn measure<M: Machine>(machine: &M, work: AttentionWork, way: AttentionWay) -> Result<f64, GpuError> {
    let AttentionWork { texts, tokens, heads, head_dimension } = work;
    let attention = Attention::of(head_dimension, way.possible_on(machine))?;
    let sequences = vec![TokenSequence(vec![0; tokens]); texts];
    let shape = BatchShape::of(&sequences);
    let values = shape.rows * heads * head_dimension;
    let mut queue = machine.new_queue()?;
    let description = machine.allocate(shape.words() * size_of::<u32>())?;
    machine.upload(&mut queue, &description, 0, bytemuck::cast_slice(&batch::describe(&sequences, shape)))?;
    let projections = machine.allocate(3 * values * size_of::<f16>())?;
    machine.upload(&mut queue, &projections, 0, bytemuck::cast_slice(&noise(3 * values)))?;
    let context = machine.allocate(values * size_of::<f16>())?;
    let arguments = AttentionArguments {
        projections: projections.address(),
        context: context.address(),
        tiles: description.address() + (shape.tiles_at() * size_of::<u32>()) as u64,
        heads: heads as u32,
        as_a_whole: attention.as_a_whole(),
    };
    let (kernel, launch_shape) = attention.launch(shape, heads as u32);
    seconds_of(|wait| {
        // SAFETY: the arguments are the kernel's, the three pieces of memory are as large as the shape says, and live until the work is done, which the
        // last round waits for.
        unsafe { machine.launch(&mut queue, kernel, launch_shape, bytemuck::bytes_of(&arguments))? };
        if wait { machine.download(&mut queue, &context, 0, &mut []) } else { Ok(()) }
    })
}
