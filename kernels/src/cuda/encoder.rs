//! The forward pass of a BERT encoder on a GPU.
//!
//! The same as [`crate::cpu`] does, in halves: linear layers are matrix products over all rows of a batch, with bias, activation and residual in their
//! ends; attention goes over packed sequences; sums, norms and softmax are in f32.

use super::batch::{self, BatchShape};
use super::machine::{DeviceMemory, GpuError, Kernel, LaunchShape, Machine, Product, ProductEnd};
use crate::configuration::{Activation, EncoderConfiguration, Pooling};
use crate::model::Model;
use crate::tokenizer::TokenSequence;
use bytemuck::{NoUninit, Pod, Zeroable};
use half::f16;
use std::collections::HashMap;
use std::sync::Arc;

/// Rows that pass through the encoder together, if nothing else is asked for.
pub(crate) const ROWS_MAX: usize = 24_576;
/// Sequences of one batch.
const SEQUENCES_MAX: usize = 4_096;
/// Queues of work: each of the batches in flight has two, or one all four. What one leaves of the GPU at the ends of its steps, the others use.
const LANES: usize = 2 * super::BATCHES_IN_FLIGHT;
/// Sequences whose vectors are fetched together: their parts follow one another without the processor waiting between them.
const FLIGHT_SEQUENCES: usize = 4_096;
/// So often it is tried again to record the work of queries. What else goes on on a GPU can spoil a recording.
const REFUSALS_MAX: u32 = 8;
/// Rows of the hidden state that a warp holds in its registers have at most this many values.
const HIDDEN_SIZE_MAX: usize = 1_024;
/// Threads of the blocks that take a warp for each row.
const ROW_THREADS: u32 = 128;
/// Rows that a warp normalizes at once; `ROWS_OF_WARP` of the kernel.
const NORMALIZED_ROWS: u32 = 2;
/// Threads of a block that pools a sequence.
const POOL_THREADS: u32 = 512;
/// Keys of a step of attention; `TILE` of the kernels.
const ATTENTION_KEYS: usize = 32;
/// The same of attention by warpgroups, which takes so many queries to a warpgroup of so many threads; `STEP_KEYS`, `GROUP_QUERIES` and `WARPGROUP` of its kernels.
const STEP_KEYS: usize = 64;
const GROUP_QUERIES: usize = 64;
const WARPGROUP: u32 = 128;
const WARP: u32 = 32;

/// Ways of computing attention. Only [`AttentionWay::Warps`] is possible on GPUs that do not multiply by warpgroups, and is what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionWay {
    /// Products by single warps.
    Warps,
    /// Products by warpgroups.
    Warpgroups,
}

/// How an encoder does its work, where there are several ways; the defaults are what was measured to be fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderOptions {
    /// How it computes attention.
    pub attention: AttentionWay,
    /// Queues of work: batches, and parts of a large batch, that are under way at once.
    pub lanes: usize,
    /// Rows that pass through the encoder together: enough for several blocks of every product on each multiprocessor, few enough that most of what one step
    /// hands to the next stays in the level-2 cache.
    pub rows: usize,
}

impl AttentionWay {
    fn possible_on(self, machine: &impl Machine) -> Self {
        if machine.has_warpgroups() { self } else { AttentionWay::Warps }
    }
}

impl Default for EncoderOptions {
    fn default() -> Self {
        EncoderOptions { attention: AttentionWay::Warpgroups, lanes: LANES, rows: ROWS_MAX }
    }
}

/// A model's weights on a GPU.
pub(crate) struct GpuEncoder<M: Machine> {
    machine: Arc<M>,
    model: Arc<Model>,
    kernels: Kernels,
    rows: usize,
    words: Tensors<M>,
    layers: Vec<Layer<M>>,
}

/// Tensors that were uploaded together.
struct Tensors<M: Machine> {
    memory: M::Memory,
    offsets: Vec<u64>,
}

impl<M: Machine> Tensors<M> {
    fn address(&self, tensor: usize) -> u64 {
        self.memory.address() + self.offsets[tensor]
    }
}

/// Where the tensors of the embeddings are in [`GpuEncoder::words`].
mod embeddings {
    pub(super) const WORDS: usize = 0;
    pub(super) const POSITIONS: usize = 1;
    pub(super) const NORM: usize = 2;
}

struct Layer<M: Machine> {
    tensors: Tensors<M>,
}

/// Where the tensors of a layer are: of a linear layer the weights, then the bias; of a norm the scale, then the shift.
mod layer {
    pub(super) const PROJECTIONS: usize = 0;
    pub(super) const ATTENTION_OUTPUT: usize = 2;
    pub(super) const ATTENTION_NORM: usize = 4;
    pub(super) const INTERMEDIATE: usize = 6;
    pub(super) const OUTPUT: usize = 8;
    pub(super) const OUTPUT_NORM: usize = 10;
}

/// Buffers and a queue of work: batches of different lanes can be under way at once.
pub(crate) struct Lane<M: Machine> {
    queue: M::Queue,
    description: M::Memory,
    hidden: M::Memory,
    projections: M::Memory,
    context: M::Memory,
    intermediate: M::Memory,
    vectors: M::Memory,
    /// The work of single queries, by shape.
    recordings: HashMap<BatchShape, M::Recording>,
    /// How often some could not be recorded.
    refusals: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedArguments {
    words: u64,
    positions: u64,
    scale: u64,
    shift: u64,
    tokens: u64,
    places: u64,
    hidden: u64,
    rows: u32,
    size: u32,
    epsilon: f32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LayerNormArguments {
    hidden: u64,
    scale: u64,
    shift: u64,
    rows: u32,
    size: u32,
    epsilon: f32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AttentionArguments {
    projections: u64,
    context: u64,
    tiles: u64,
    heads: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PoolArguments {
    hidden: u64,
    first_rows: u64,
    lengths: u64,
    vectors: u64,
    size: u32,
    first_only: u32,
}

impl<M: Machine> GpuEncoder<M> {
    /// Uploads the weights of `model`, rounded to halves.
    ///
    /// # Errors
    /// A model that the kernels are not made for, too little memory, a GPU that fails.
    pub(crate) fn new(machine: Arc<M>, model: Arc<Model>, options: EncoderOptions) -> Result<Self, GpuError> {
        let configuration = model.configuration();
        let kernels = Kernels::of(configuration, options.attention.possible_on(machine.as_ref()))?;
        let mut queue = machine.new_queue()?;
        let mut uploader = Uploader { machine: machine.as_ref(), queue: &mut queue, model: &model };
        let words = uploader.embeddings()?;
        let layers = (0..configuration.layers).map(|index| uploader.layer(index)).collect::<Result<_, _>>()?;
        model.weights().release_pages();
        let rows = batch::whole_steps(options.rows);
        Ok(GpuEncoder { machine, model, kernels, rows, words, layers })
    }

    /// Rows that pass through together.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Buffers for one batch at a time.
    pub(crate) fn new_lane(&self) -> Result<Lane<M>, GpuError> {
        let EncoderConfiguration { hidden_size, intermediate_size, positions, .. } = *self.model.configuration();
        let rows = self.rows.max(batch::whole_steps(positions));
        let shape =
            BatchShape { rows, tiles: rows / batch::ATTENTION_TILE + SEQUENCES_MAX, sequences: SEQUENCES_MAX, is_short: false };
        let halves = |columns: usize| self.machine.allocate(rows * columns * size_of::<f16>());
        Ok(Lane {
            queue: self.machine.new_queue()?,
            description: self.machine.allocate(shape.words() * size_of::<u32>())?,
            hidden: halves(hidden_size)?,
            projections: halves(3 * hidden_size)?,
            context: halves(hidden_size)?,
            intermediate: halves(intermediate_size)?,
            vectors: self.machine.allocate(FLIGHT_SEQUENCES * hidden_size * size_of::<f32>())?,
            recordings: HashMap::new(),
            refusals: 0,
        })
    }

    /// The vectors of `sequences`, one after the other, each of Euclidean length one. The lanes, of which there is at least one, share the work: what one of
    /// them leaves of the GPU at the beginning and the end of a step, the other uses. The caller has checked the sequences.
    pub(crate) fn embed(&self, lanes: &mut [Lane<M>], sequences: &[TokenSequence]) -> Result<Vec<f32>, GpuError> {
        let dimension = self.model.dimension();
        let mut vectors = vec![0.0f32; sequences.len() * dimension];
        for (flight, vectors) in sequences.chunks(FLIGHT_SEQUENCES).zip(vectors.chunks_mut(FLIGHT_SEQUENCES * dimension)) {
            let parts = batch::parts(flight, batch::even_rows(flight, self.rows, lanes.len()), SEQUENCES_MAX);
            let turns = parts.len().div_ceil(lanes.len());
            let mut done = vec![0; lanes.len()];
            for turn in 0..turns {
                for ((lane, share), done) in lanes.iter_mut().zip(parts.chunks(turns)).zip(&mut done) {
                    let Some(part) = share.get(turn) else { continue };
                    self.begin(lane, part, *done)?;
                    *done += part.len();
                }
            }
            let mut rest = vectors;
            for (lane, done) in lanes.iter_mut().zip(done) {
                let (own, after) = rest.split_at_mut(done * dimension);
                self.machine.download(&mut lane.queue, &lane.vectors, 0, bytemuck::cast_slice_mut(own))?;
                rest = after;
            }
        }
        Ok(vectors)
    }

    /// Gives the work of one batch to the lane; its vectors go behind the first `done`.
    fn begin(&self, lane: &mut Lane<M>, sequences: &[TokenSequence], done: usize) -> Result<(), GpuError> {
        let shape = BatchShape::of(sequences);
        let description = batch::describe(sequences, shape);
        self.machine.upload(&mut lane.queue, &lane.description, 0, bytemuck::cast_slice(&description))?;
        if !shape.is_query() || done > 0 {
            return self.encode(lane, shape, done);
        }
        if let Some(recording) = lane.recordings.get(&shape) {
            // SAFETY: the recording names the memory of its lane and of this encoder, and both are there until the queue's work is done: `embed` waits for
            // it, and where that failed the lane waits before it frees anything, and is dropped before the encoder.
            return unsafe { self.machine.replay(&mut lane.queue, recording) };
        }
        // The first time plans its products, which cannot be done while they are recorded.
        self.encode(lane, shape, 0)?;
        if lane.refusals < REFUSALS_MAX {
            match self.record(lane, shape) {
                Ok(recording) => drop(lane.recordings.insert(shape, recording)),
                Err(fault) => {
                    lane.refusals += 1;
                    tracing::warn!(%fault, refusals = lane.refusals, "a query was given to the GPU step by step");
                }
            }
        }
        Ok(())
    }

    fn record(&self, lane: &mut Lane<M>, shape: BatchShape) -> Result<M::Recording, GpuError> {
        let Lane { queue, description, hidden, projections, context, intermediate, vectors, .. } = lane;
        let buffers = Buffers {
            description: description.address(),
            hidden: hidden.address(),
            projections: projections.address(),
            context: context.address(),
            intermediate: intermediate.address(),
            vectors: vectors.address(),
        };
        self.machine.record(queue, &mut |queue| self.pass(queue, &buffers, shape))
    }

    fn encode(&self, lane: &mut Lane<M>, shape: BatchShape, done: usize) -> Result<(), GpuError> {
        let buffers = Buffers {
            description: lane.description.address(),
            hidden: lane.hidden.address(),
            projections: lane.projections.address(),
            context: lane.context.address(),
            intermediate: lane.intermediate.address(),
            vectors: lane.vectors.address() + (done * self.model.dimension() * size_of::<f32>()) as u64,
        };
        self.pass(&mut lane.queue, &buffers, shape)
    }

    /// The whole forward pass.
    fn pass(&self, queue: &mut M::Queue, buffers: &Buffers, shape: BatchShape) -> Result<(), GpuError> {
        let configuration = self.model.configuration();
        let mut work = Pass { machine: self.machine.as_ref(), queue, configuration, kernels: self.kernels, buffers, shape };
        work.embed(&self.words)?;
        for layer in &self.layers {
            work.attend(&layer.tensors)?;
            work.feed_forward(&layer.tensors)?;
        }
        work.pool()
    }
}

/// Addresses of a lane's memory.
struct Buffers {
    description: u64,
    hidden: u64,
    projections: u64,
    context: u64,
    intermediate: u64,
    vectors: u64,
}

/// One batch on its way.
struct Pass<'a, M: Machine> {
    machine: &'a M,
    queue: &'a mut M::Queue,
    configuration: &'a EncoderConfiguration,
    kernels: Kernels,
    buffers: &'a Buffers,
    shape: BatchShape,
}

impl<M: Machine> Pass<'_, M> {
    fn embed(&mut self, tensors: &Tensors<M>) -> Result<(), GpuError> {
        let arguments = EmbedArguments {
            words: tensors.address(embeddings::WORDS),
            positions: tensors.address(embeddings::POSITIONS),
            scale: tensors.address(embeddings::NORM),
            shift: tensors.address(embeddings::NORM + 1),
            tokens: self.described(0),
            places: self.described(self.shape.places()),
            hidden: self.buffers.hidden,
            rows: self.shape.rows as u32,
            size: self.configuration.hidden_size as u32,
            epsilon: self.configuration.layer_norm_epsilon,
            unused: 0,
        };
        self.launch(self.kernels.embed, row_shape(self.shape.rows as u32, 1), &arguments)
    }

    fn attend(&mut self, tensors: &Tensors<M>) -> Result<(), GpuError> {
        let hidden = self.configuration.hidden_size;
        let Buffers { hidden: rows, projections, context, .. } = *self.buffers;
        self.multiply(tensors, layer::PROJECTIONS, rows, projections, (hidden, 3 * hidden), ProductEnd::Store)?;
        let heads = self.configuration.heads as u32;
        let tiles = self.described(self.shape.tiles_at());
        let arguments = AttentionArguments { projections, context, tiles, heads, unused: 0 };
        let (kernel, shape) = self.kernels.attention.launch(self.shape, heads);
        self.launch(kernel, shape, &arguments)?;
        self.multiply(tensors, layer::ATTENTION_OUTPUT, context, rows, (hidden, hidden), ProductEnd::Add)?;
        self.normalize(tensors, layer::ATTENTION_NORM)
    }

    fn feed_forward(&mut self, tensors: &Tensors<M>) -> Result<(), GpuError> {
        let EncoderConfiguration { hidden_size: hidden, intermediate_size: wide, activation, .. } = *self.configuration;
        let Buffers { hidden: rows, intermediate, .. } = *self.buffers;
        let end = match activation {
            Activation::Gelu => ProductEnd::Gelu,
            Activation::Relu => ProductEnd::Relu,
        };
        self.multiply(tensors, layer::INTERMEDIATE, rows, intermediate, (hidden, wide), end)?;
        self.multiply(tensors, layer::OUTPUT, intermediate, rows, (wide, hidden), ProductEnd::Add)?;
        self.normalize(tensors, layer::OUTPUT_NORM)
    }

    fn pool(&mut self) -> Result<(), GpuError> {
        let size = self.configuration.hidden_size as u32;
        let arguments = PoolArguments {
            hidden: self.buffers.hidden,
            first_rows: self.described(self.shape.first_rows()),
            lengths: self.described(self.shape.lengths()),
            vectors: self.buffers.vectors,
            size,
            first_only: u32::from(self.configuration.pooling == Pooling::Cls),
        };
        self.launch(self.kernels.pool, pooling_shape(self.shape.sequences as u32, size), &arguments)
    }

    fn normalize(&mut self, tensors: &Tensors<M>, norm: usize) -> Result<(), GpuError> {
        let arguments = LayerNormArguments {
            hidden: self.buffers.hidden,
            scale: tensors.address(norm),
            shift: tensors.address(norm + 1),
            rows: self.shape.rows as u32,
            size: self.configuration.hidden_size as u32,
            epsilon: self.configuration.layer_norm_epsilon,
            unused: 0,
        };
        self.launch(self.kernels.layer_norm, row_shape(self.shape.rows as u32, NORMALIZED_ROWS), &arguments)
    }

    /// Address of a word of the batch's description.
    fn described(&self, word: usize) -> u64 {
        self.buffers.description + (word * size_of::<u32>()) as u64
    }

    fn launch(&mut self, kernel: Kernel, shape: LaunchShape, arguments: &impl NoUninit) -> Result<(), GpuError> {
        // SAFETY: each caller gives the kernel its own structure and the shape that its source asks for. The lane's memory is made for the largest batch,
        // the description for the batch's shape, and both live until the queue's work is done, because it is waited for before they can be dropped.
        unsafe { self.machine.launch(self.queue, kernel, shape, bytemuck::bytes_of(arguments)) }
    }

    fn multiply(
        &mut self,
        tensors: &Tensors<M>,
        linear: usize,
        activations: u64,
        out: u64,
        (inputs, outputs): (usize, usize),
        end: ProductEnd,
    ) -> Result<(), GpuError> {
        let (weights, bias) = (tensors.address(linear), tensors.address(linear + 1));
        let product = Product { activations, weights, bias, out, rows: self.shape.rows, inputs, outputs, end };
        // SAFETY: as for `launch`; the tensors have the configuration's shapes, which `Weights` has checked.
        unsafe { self.machine.multiply(self.queue, &product) }
    }
}

/// Warps enough for all rows when each takes so many.
fn row_shape(rows: u32, rows_of_warp: u32) -> LaunchShape {
    let blocks = rows.div_ceil(ROW_THREADS / WARP * rows_of_warp);
    LaunchShape { grid: [blocks, 1], threads: ROW_THREADS, shared_bytes: 0 }
}

/// A block for each sequence, whose warps share a row of sums each.
fn pooling_shape(sequences: u32, size: u32) -> LaunchShape {
    let shared_bytes = POOL_THREADS / WARP * size * size_of::<f32>() as u32;
    LaunchShape { grid: [sequences, 1], threads: POOL_THREADS, shared_bytes }
}

/// What of attention is computed how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attention {
    head_dimension: usize,
    way: AttentionWay,
}

impl Attention {
    /// # Errors
    /// Heads of a size that there are no kernels for.
    fn of(head_dimension: usize, way: AttentionWay) -> Result<Self, GpuError> {
        if !matches!(head_dimension, 32 | 64) {
            let what = format!("its attention heads have {head_dimension} values: 32 and 64 are possible");
            return Err(GpuError::ModelShape(what));
        }
        Ok(Attention { head_dimension, way })
    }

    /// The kernel for a batch, and its blocks.
    fn launch(self, batch: BatchShape, heads: u32) -> (Kernel, LaunchShape) {
        match self.way {
            AttentionWay::Warps => self.by_warps(batch, heads),
            AttentionWay::Warpgroups => self.by_warpgroups(batch, heads),
        }
    }

    fn bytes_of(self, rows: usize) -> u32 {
        (rows * self.head_dimension * size_of::<f16>()) as u32
    }

    fn by_warps(self, batch: BatchShape, heads: u32) -> (Kernel, LaunchShape) {
        let (kernel, queries_of_warp) = if self.is_narrow() { (Kernel::Attention32, 32) } else { (Kernel::Attention64, 16) };
        let threads = batch::ATTENTION_TILE as u32 / queries_of_warp * WARP;
        // Shared memory: the queries, and twice the keys and values of a step, rows 16 bytes longer than a head.
        let rows = batch::ATTENTION_TILE + 4 * ATTENTION_KEYS;
        let shared_bytes = self.bytes_of(rows) + 16 * rows as u32;
        (kernel, LaunchShape { grid: [batch.tiles as u32, heads], threads, shared_bytes })
    }

    fn by_warpgroups(self, batch: BatchShape, heads: u32) -> (Kernel, LaunchShape) {
        let (kernel, groups, steps_there) = match (self.is_narrow(), batch.is_short) {
            (true, false) => (Kernel::WarpgroupAttention32, 2, 4),
            (false, false) => (Kernel::WarpgroupAttention64, 2, 4),
            (true, true) => (Kernel::ShortAttention32, 1, 2),
            (false, true) => (Kernel::ShortAttention64, 1, 2),
        };
        // Shared memory: the queries, and the keys and values of several steps.
        let shared_bytes = self.bytes_of(groups * GROUP_QUERIES + steps_there * 2 * STEP_KEYS);
        (kernel, LaunchShape { grid: [heads, batch.tiles as u32], threads: groups as u32 * WARPGROUP, shared_bytes })
    }

    fn is_narrow(self) -> bool {
        self.head_dimension == 32
    }
}

/// The kernels for a model.
#[derive(Clone, Copy)]
struct Kernels {
    embed: Kernel,
    attention: Attention,
    layer_norm: Kernel,
    pool: Kernel,
}

impl Kernels {
    fn of(configuration: &EncoderConfiguration, way: AttentionWay) -> Result<Self, GpuError> {
        let EncoderConfiguration { hidden_size, intermediate_size, .. } = *configuration;
        if hidden_size > HIDDEN_SIZE_MAX || !hidden_size.is_multiple_of(8) || !intermediate_size.is_multiple_of(8) {
            let what = format!(
                "hidden_size {hidden_size} and intermediate_size {intermediate_size} must be multiples of 8, and hidden_size at most {HIDDEN_SIZE_MAX}"
            );
            return Err(GpuError::ModelShape(what));
        }
        let attention = Attention::of(configuration.head_dimension(), way)?;
        Ok(if hidden_size <= 512 {
            Kernels { embed: Kernel::Embed512, attention, layer_norm: Kernel::LayerNorm512, pool: Kernel::Pool512 }
        } else {
            Kernels { embed: Kernel::Embed1024, attention, layer_norm: Kernel::LayerNorm1024, pool: Kernel::Pool1024 }
        })
    }
}

/// Brings a model's tensors to the GPU.
struct Uploader<'a, M: Machine> {
    machine: &'a M,
    queue: &'a mut M::Queue,
    model: &'a Model,
}

impl<M: Machine> Uploader<'_, M> {
    fn embeddings(&mut self) -> Result<Tensors<M>, GpuError> {
        let hidden = self.model.dimension();
        let mut positions = self.values("embeddings.position_embeddings.weight")?;
        let types = self.values("embeddings.token_type_embeddings.weight")?;
        for position in positions.chunks_exact_mut(hidden) {
            for (value, of_type) in position.iter_mut().zip(&types) {
                *value += of_type;
            }
        }
        let mut parts = Parts::default();
        parts.push_halves(&self.values("embeddings.word_embeddings.weight")?)?;
        parts.push_halves(&positions)?;
        self.norm(&mut parts, "embeddings.LayerNorm")?;
        self.upload(parts)
    }

    fn layer(&mut self, index: usize) -> Result<Layer<M>, GpuError> {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        // The kernel's softmax is one of powers of two.
        let query_scale = std::f32::consts::LOG2_E / (self.model.configuration().head_dimension() as f32).sqrt();
        let mut parts = Parts::default();
        let projections =
            [(name("attention.self.query"), query_scale), (name("attention.self.key"), 1.0), (name("attention.self.value"), 1.0)];
        self.linear(&mut parts, &projections)?;
        self.linear(&mut parts, &[(name("attention.output.dense"), 1.0)])?;
        self.norm(&mut parts, &name("attention.output.LayerNorm"))?;
        self.linear(&mut parts, &[(name("intermediate.dense"), 1.0)])?;
        self.linear(&mut parts, &[(name("output.dense"), 1.0)])?;
        self.norm(&mut parts, &name("output.LayerNorm"))?;
        self.model.weights().release_pages();
        Ok(Layer { tensors: self.upload(parts)? })
    }

    /// Weights and bias of linear layers with the same inputs, one below the other, each multiplied by its factor.
    fn linear(&self, parts: &mut Parts, layers: &[(String, f32)]) -> Result<(), GpuError> {
        for what in ["weight", "bias"] {
            let mut all = Vec::new();
            for (name, factor) in layers {
                all.extend(self.values(&format!("{name}.{what}"))?.into_iter().map(|value| value * factor));
            }
            parts.push_halves(&all)?;
        }
        Ok(())
    }

    fn norm(&self, parts: &mut Parts, name: &str) -> Result<(), GpuError> {
        for what in ["weight", "bias"] {
            parts.push(bytemuck::cast_slice(&self.values(&format!("{name}.{what}"))?));
        }
        Ok(())
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, GpuError> {
        Ok(self.model.weights().tensor(name)?.values().into_owned())
    }

    fn upload(&mut self, parts: Parts) -> Result<Tensors<M>, GpuError> {
        let memory = self.machine.allocate(parts.bytes.len())?;
        self.machine.upload(self.queue, &memory, 0, &parts.bytes)?;
        // Lanes have queues of their own: nothing may be used before it is there.
        self.machine.download(self.queue, &memory, 0, &mut [])?;
        Ok(Tensors { memory, offsets: parts.offsets })
    }
}

/// Tensors one after the other, each at a multiple of 256 bytes.
#[derive(Default)]
struct Parts {
    bytes: Vec<u8>,
    offsets: Vec<u64>,
}

impl Parts {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.resize(self.bytes.len().next_multiple_of(256), 0);
        self.offsets.push(self.bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// # Errors
    /// Values that are too large for halves.
    fn push_halves(&mut self, values: &[f32]) -> Result<(), GpuError> {
        let halves = crate::exact::to_f16(values);
        if !halves.iter().all(|half| half.is_finite()) {
            return Err(GpuError::ModelShape("some of its weights are too large for halves".to_owned()));
        }
        self.push(bytemuck::cast_slice(&halves));
        Ok(())
    }
}

pub(crate) mod alone;
pub(crate) mod attention_alone;

#[cfg(test)]
mod tests;
