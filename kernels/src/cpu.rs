//! The encoder on the processor.

pub(crate) mod activation;
pub(crate) mod aligned;
pub(crate) mod arithmetic;
pub(crate) mod attention;
pub(crate) mod balance;
pub(crate) mod encoder;
pub(crate) mod half_heads;
pub(crate) mod kernels;
pub(crate) mod layer_norm;
pub(crate) mod layout;
pub(crate) mod numbers;
pub(crate) mod operand;
pub(crate) mod packed;
pub(crate) mod prepared;
pub(crate) mod product;
pub(crate) mod rates;
pub(crate) mod softmax;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tile_attention;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tile_product;
pub(crate) mod workers;

use crate::device::{Device, DeviceError, check_sequences};
use crate::instructions::Instructions;
use crate::model::Model;
use crate::precision::Precision;
use crate::tokenizer::TokenSequence;
use encoder::{Encoder, Workspace};
use kernels::Kernels;
use numbers::Numbers;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::{Arc, mpsc};
use workers::{Group, Workers};

/// Tokens of a group that one thread encodes at once. Enough rows that streaming the weights from memory costs little
/// beside the arithmetic, few enough that the rows stay in the cache and a thread's buffers small (6 MB).
const GROUP_TOKENS: usize = 512;
/// A call with at most this many tokens in all is encoded by the calling thread: a query is answered sooner without
/// being handed over, and without waiting behind groups of documents.
const CALLER_TOKENS: usize = 64;
/// Revisions of models that were shown to find as well in `int8`, with attention in bf16, as in f32: all-MiniLM-L6-v2.
const MEASURED_IN_INT8: [&str; 1] = ["2da3f986d6dbfa39"];
/// More threads than any machine has cores; a larger number is a mistake.
const THREADS_MAX: usize = 1_024;

/// A model's encoder on the processor, with threads of its own for batches.
pub struct CpuDevice {
    name: String,
    threads: usize,
    encoder: Arc<Encoder>,
    workers: Workers,
    /// Buffers for calling threads, when none is using them.
    caller_workspace: Mutex<Option<Workspace>>,
}

impl CpuDevice {
    /// Packs the weights (about 43 MB for all-MiniLM-L6-v2 in f32, a half of that in bf16, a third or a half in int8) and starts `threads` threads
    /// (at least one), with the widest instruction set that the processor has.
    ///
    /// # Errors
    /// [`DeviceError::PrecisionUnavailable`] where the processor does not have the instructions; if the weights cannot be read or a thread
    /// cannot be started.
    pub fn new(model: Arc<Model>, threads: usize, precision: Precision) -> Result<Self, DeviceError> {
        Self::start(model, threads, precision, Instructions::detect(), None)
    }

    /// As [`CpuDevice::new`], with the packed weights in a file in `folder`, made when there is none for this model, precision and processor. It is
    /// mapped: what of it is not used can leave the memory. Where it cannot be written, the weights are packed in memory.
    ///
    /// # Errors
    /// Those of `new`.
    pub fn with_prepared_weights(
        model: Arc<Model>,
        threads: usize,
        precision: Precision,
        folder: &Path,
    ) -> Result<Self, DeviceError> {
        Self::start(model, threads, precision, Instructions::detect(), Some(folder))
    }

    /// The fastest precision of this processor with which `model` is shown to find as well as in f32: within 0.002 of its nDCG@10 on both datasets of the
    /// example `encoder_quality`. Halves are that close for any model: their numbers have an error of a part in 512, whatever they are.
    /// For whole numbers it depends on how far apart the values of a token are, so that they are only chosen for models with which it was measured, and only
    /// where attention is in bf16: with attention in f32 one of the datasets was 0.0028 away.
    pub fn fastest_as_good_as_f32(model: &Model) -> Precision {
        if Instructions::Amx.is_available() {
            return Precision::Bf16;
        }
        let floats = rates::fastest_floats();
        let are_as_good = floats == Numbers::Bf16 && MEASURED_IN_INT8.contains(&model.revision());
        let are_bytes = are_as_good && rates::are_faster(Numbers::Int8, floats);
        if are_bytes { Precision::Int8 } else { floats.into() }
    }

    /// As [`CpuDevice::new`], with a named instruction set.
    ///
    /// # Errors
    /// [`DeviceError::InstructionsUnavailable`] where the processor does not have it, and those of `new`.
    pub fn with_instructions(
        model: Arc<Model>,
        threads: usize,
        precision: Precision,
        instructions: Instructions,
    ) -> Result<Self, DeviceError> {
        Self::start(model, threads, precision, instructions, None)
    }

    fn start(
        model: Arc<Model>,
        threads: usize,
        precision: Precision,
        instructions: Instructions,
        prepared: Option<&Path>,
    ) -> Result<Self, DeviceError> {
        if !instructions.is_available() {
            return Err(DeviceError::InstructionsUnavailable(instructions));
        }
        let unavailable = DeviceError::PrecisionUnavailable { precision, instructions };
        let kernels = Kernels::of(instructions, precision).ok_or(unavailable)?;
        let threads = threads.clamp(1, THREADS_MAX);
        let encoder = Arc::new(Encoder::new(model, kernels, prepared)?);
        Ok(Self {
            name: format!("cpu ({precision}, {}, {threads} threads)", encoder.instructions()),
            threads,
            workers: Workers::start(&encoder, threads)?,
            encoder,
            caller_workspace: Mutex::new(None),
        })
    }

    /// What products multiply.
    pub fn precision(&self) -> Precision {
        self.encoder.precision()
    }

    /// The instruction set that products are computed with.
    pub fn instructions(&self) -> Instructions {
        self.encoder.instructions()
    }

    /// Number of threads for batches.
    pub fn threads(&self) -> usize {
        self.threads
    }

    fn embed_on_this_thread(&self, sequences: &[TokenSequence]) -> Result<Vec<f32>, DeviceError> {
        let sequences: Vec<&TokenSequence> = sequences.iter().collect();
        let mut workspace = self.caller_workspace.lock().take();
        let vectors = workers::encode(&self.encoder, &sequences, &mut workspace);
        *self.caller_workspace.lock() = workspace;
        vectors
    }

    /// Cuts the sequences, ordered by length, into groups of nearly equal token counts: longest first, so that the
    /// last groups to be taken are the quickest and the threads finish together.
    fn groups_of(&self, sequences: &[TokenSequence], tokens: usize) -> Vec<Vec<usize>> {
        let share = tokens.div_ceil(self.threads);
        let limit = share.div_ceil(share.div_ceil(GROUP_TOKENS));
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(sequences[*index].len()));
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut group_tokens = usize::MAX;
        for index in order {
            let length = sequences[index].len();
            match groups.last_mut() {
                Some(group) if group_tokens + length <= limit => {
                    group.push(index);
                    group_tokens += length;
                }
                _ => {
                    groups.push(vec![index]);
                    group_tokens = length;
                }
            }
        }
        groups
    }
}

impl Device for CpuDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn weights_bytes(&self) -> usize {
        self.encoder.weights_bytes()
    }

    fn embed(&self, sequences: &[TokenSequence]) -> Result<Vec<f32>, DeviceError> {
        check_sequences(self.encoder.model().configuration(), sequences)?;
        self.embed_checked(sequences)
    }
}

impl CpuDevice {
    fn embed_checked(&self, sequences: &[TokenSequence]) -> Result<Vec<f32>, DeviceError> {
        let tokens: usize = sequences.iter().map(TokenSequence::len).sum();
        if tokens <= CALLER_TOKENS {
            return self.embed_on_this_thread(sequences);
        }
        let (reply, replies) = mpsc::channel();
        let groups = self.groups_of(sequences, tokens);
        let group_count = groups.len();
        self.workers.submit(groups.into_iter().map(|positions| Group {
            sequences: positions.iter().map(|position| sequences[*position].clone()).collect(),
            positions,
            reply: reply.clone(),
        }));
        drop(reply);
        let dimension = self.encoder.model().dimension();
        let mut vectors = vec![0.0; sequences.len() * dimension];
        for _ in 0..group_count {
            let group = replies.recv().map_err(|_| DeviceError::Stopped)?;
            let group_vectors = group.vectors?;
            for (position, vector) in group.positions.into_iter().zip(group_vectors.chunks_exact(dimension)) {
                let start = position * dimension;
                vectors[start..start + dimension].copy_from_slice(vector);
            }
        }
        Ok(vectors)
    }
}

#[cfg(test)]
mod tests;
