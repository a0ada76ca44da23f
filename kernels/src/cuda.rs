//! The second device: NVIDIA GPUs.
//!
//! Everything builds without CUDA and runs without a GPU. The driver and the libraries of CUDA are loaded when a GPU is opened; the kernels of `kernels/cu` are
//! compiled for it then, and kept. The encoder and exact search are written over a [`machine`], of which there are two: the GPU behind the driver, and
//! one for tests that runs the kernels on the processor.

mod batch;
mod comparison;
mod compiler;
mod contexts;
mod driver;
mod encoder;
mod limits;
mod machine;
mod products;
mod rows;
mod search;

#[cfg(test)]
mod emulator;

pub use comparison::{KernelComparison, compare_attention, compare_kernels, compare_products};
pub use compiler::{compile, is_compiler_present};
pub use contexts::reset;
pub use driver::{GpuDescription, GpuMemory, gpu_count, gpus};
pub use encoder::attention_alone::AttentionWork;
pub use encoder::{AttentionWay, EncoderOptions};
pub use limits::{Limits, measure_attention, measure_limits};
pub use machine::{CudaVersion, GpuError};
pub use search::HITS_MAX;

use crate::device::{Device, DeviceError, check_sequences};
use crate::exact::Scored;
use crate::model::Model;
use crate::tokenizer::TokenSequence;
use driver::Driver;
use encoder::{GpuEncoder, Lane};
use half::f16;
use machine::Machine;
use parking_lot::{Condvar, Mutex};
use roaring::RoaringBitmap;
use rows::GpuRows;
use search::SearchLane;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Batches that are under way at once: while one computes, the next is packed and copied.
pub const BATCHES_IN_FLIGHT: usize = 2;

/// Tokens of a batch that keeps a large GPU busy: two passes of the encoder, the second of which is packed while the first computes.
pub const BATCH_TOKENS: usize = 2 * encoder::ROWS_MAX;

/// A GPU that is open, with its kernels.
#[derive(Clone)]
pub struct Gpu {
    machine: Arc<Driver>,
}

impl Gpu {
    /// Opens GPU `number`, from 0. Kernels that are not in `folder` are compiled and put there, which takes a second or two.
    ///
    /// # Errors
    /// What is missing or too old.
    pub fn open(number: usize, folder: &Path) -> Result<Self, GpuError> {
        Ok(Gpu { machine: Arc::new(Driver::open(number, folder)?) })
    }

    /// What it is.
    pub fn description(&self) -> &GpuDescription {
        self.machine.description()
    }

    /// It was found not to answer any more: nothing is embedded on it from now on, and its embedder opens it again.
    pub fn lose(&self) {
        self.machine.lose();
    }

    /// How much of its memory is free, whoever has the rest.
    ///
    /// # Errors
    /// A GPU that fails.
    pub fn memory(&self) -> Result<GpuMemory, GpuError> {
        driver::guarded("asking for the GPU's free memory", || self.machine.memory())
    }
}

/// A model's encoder on a GPU.
pub struct CudaDevice {
    name: String,
    lanes: usize,
    machine: Arc<Driver>,
    encoder: SharedEncoder<Driver>,
}

impl CudaDevice {
    /// Uploads the weights of a model.
    ///
    /// # Errors
    /// A model that the kernels are not made for, too little memory, a library that is not there.
    pub fn new(gpu: &Gpu, model: Arc<Model>) -> Result<Self, GpuError> {
        CudaDevice::with(gpu, model, EncoderOptions::default())
    }

    /// [`CudaDevice::new`] with other ways of working than the fastest, to measure them.
    ///
    /// # Errors
    /// As [`CudaDevice::new`].
    pub fn with(gpu: &Gpu, model: Arc<Model>, options: EncoderOptions) -> Result<Self, GpuError> {
        let GpuDescription { number, name, architecture, .. } = gpu.description();
        let name = format!("gpu {number} ({name}, {architecture})");
        let encoder = driver::guarded("starting the encoder", || SharedEncoder::new(gpu.machine.clone(), model, options))?;
        Ok(CudaDevice { name, lanes: options.lanes.max(1), machine: gpu.machine.clone(), encoder })
    }
}

impl Device for CudaDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn embed(&self, sequences: &[TokenSequence]) -> Result<Vec<f32>, DeviceError> {
        if self.machine.is_lost() {
            return Err(GpuError::Lost.into());
        }
        self.encoder.embed(sequences)
    }

    fn is_lost(&self) -> bool {
        self.machine.is_lost() || self.encoder.lost.load(Ordering::Relaxed)
    }

    fn batches_in_flight(&self) -> usize {
        BATCHES_IN_FLIGHT.min(self.lanes)
    }
}

/// What searching rows on a GPU needs besides the rows: memory for one search, by turns, and a queue on which rows are brought. All rows of a GPU share one.
pub struct CudaLane {
    machine: Arc<Driver>,
    search: Mutex<SearchLane<Driver>>,
    uploads: Mutex<<Driver as Machine>::Queue>,
}

impl CudaLane {
    /// For rows of at most so many values. It takes some 80 MiB of the GPU's memory.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(gpu: &Gpu, dimension_max: usize) -> Result<Self, GpuError> {
        driver::guarded("starting a search", || {
            let machine = gpu.machine.clone();
            let search = Mutex::new(SearchLane::new(machine.as_ref(), dimension_max)?);
            let uploads = Mutex::new(machine.new_queue()?);
            Ok(CudaLane { machine, search, uploads })
        })
    }

    /// After a failure the GPU may have nothing but failures left for the encoder, too.
    fn doubt(&self, fault: &GpuError) {
        if !matches!(fault, GpuError::OutOfMemory { .. }) {
            self.machine.doubt();
        }
    }
}

/// Rows of halves in the memory of a GPU, searched exactly.
pub struct CudaRows {
    rows: GpuRows<Driver>,
    lane: Arc<CudaLane>,
}

impl CudaRows {
    /// No rows yet, of so many values each, with a lane of their own.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(gpu: &Gpu, dimension: usize) -> Result<Self, GpuError> {
        Ok(Self::with_lane(Arc::new(CudaLane::new(gpu, dimension)?), dimension))
    }

    /// No rows yet, of so many values each, that are searched in turn with others.
    pub fn with_lane(lane: Arc<CudaLane>, dimension: usize) -> Self {
        CudaRows { rows: GpuRows::new(lane.machine.clone(), dimension), lane }
    }

    /// Bytes that so many rows take in the GPU's memory, when room is made for all of them at once.
    pub fn bytes_of(rows: usize, dimension: usize) -> usize {
        rows::bytes_of(rows, dimension)
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.rows.count()
    }

    /// Makes room for so many rows in all.
    ///
    /// # Errors
    /// Too little memory, a GPU that fails.
    pub fn reserve(&mut self, rows: usize) -> Result<(), GpuError> {
        let reserved = driver::guarded("making room for rows", || self.rows.reserve(&mut self.lane.uploads.lock(), rows));
        reserved.inspect_err(|fault| self.lane.doubt(fault))
    }

    /// Adds rows, one after the other, behind those that are there. Searches of other rows go on meanwhile.
    ///
    /// # Errors
    /// Too little memory, a GPU that fails.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub fn append(&mut self, rows: &[f16]) -> Result<(), GpuError> {
        self.rows.append(&mut self.lane.uploads.lock(), rows).inspect_err(|fault| self.lane.doubt(fault))
    }

    /// For each query the `k` rows with the largest inner product, as [`crate::exact::top_k`] finds them; scores may differ from its by what f32 rounds. One
    /// call computes at a time.
    ///
    /// # Errors
    /// A GPU that fails.
    ///
    /// # Panics
    /// If a query does not have as many values as a row, or `k` is above [`HITS_MAX`].
    pub fn top_k(&self, queries: &[&[f32]], allowed: Option<&RoaringBitmap>, k: usize) -> Result<Vec<Vec<Scored>>, GpuError> {
        let words = allowed.map(|allowed| words_of(allowed, self.count()));
        self.top_k_of(queries, words.as_deref(), k)
    }

    /// The same of rows that are told by bits: bit `row % 64` of word `row / 64` for each that may be found, and none for those beyond the last word.
    ///
    /// # Errors
    /// A GPU that fails.
    ///
    /// # Panics
    /// As [`CudaRows::top_k`].
    pub fn top_k_of(&self, queries: &[&[f32]], allowed: Option<&[u64]>, k: usize) -> Result<Vec<Vec<Scored>>, GpuError> {
        self.rows.top_k(&mut self.lane.search.lock(), queries, allowed, k).inspect_err(|fault| self.lane.doubt(fault))
    }
}

/// A bit for each of `count` rows.
fn words_of(allowed: &RoaringBitmap, count: usize) -> Vec<u64> {
    let mut words = vec![0u64; count.div_ceil(64)];
    for row in allowed.iter().take_while(|row| (*row as usize) < count) {
        words[row as usize / 64] |= 1 << (row % 64);
    }
    words
}

/// An encoder whose lanes threads take in turn.
struct SharedEncoder<M: Machine> {
    model: Arc<Model>,
    /// Dropped before the encoder, whose memory their work may still read after a failure.
    free: Mutex<Vec<Lane<M>>>,
    encoder: GpuEncoder<M>,
    freed: Condvar,
    /// A GPU that has failed once may hold on to wrong results, and is not asked again.
    lost: AtomicBool,
}

impl<M: Machine> SharedEncoder<M> {
    fn new(machine: Arc<M>, model: Arc<Model>, options: EncoderOptions) -> Result<Self, GpuError> {
        let encoder = GpuEncoder::new(machine, model.clone(), options)?;
        let lanes = (0..options.lanes.max(1)).map(|_| encoder.new_lane()).collect::<Result<_, _>>()?;
        Ok(SharedEncoder { model, encoder, free: Mutex::new(lanes), freed: Condvar::new(), lost: AtomicBool::new(false) })
    }

    fn embed(&self, sequences: &[TokenSequence]) -> Result<Vec<f32>, DeviceError> {
        check_sequences(self.model.configuration(), sequences)?;
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let passes = sequences.iter().map(TokenSequence::len).sum::<usize>().div_ceil(self.encoder.rows());
        let mut lanes = self.take_lanes(passes)?;
        let vectors = driver::guarded("embedding", || self.encoder.embed(&mut lanes, sequences));
        if vectors.is_err() {
            self.lost.store(true, Ordering::Relaxed);
        }
        self.free.lock().extend(lanes);
        self.freed.notify_all();
        let vectors = vectors?;
        // What halves cannot hold has become infinite on the way, and no number in the end.
        match vectors.chunks_exact(self.model.dimension()).position(|vector| !vector.iter().all(|value| value.is_finite())) {
            Some(sequence) => Err(DeviceError::BeyondHalves { sequence }),
            None => Ok(vectors),
        }
    }

    /// A lane, and as many more as are free and wanted.
    fn take_lanes(&self, wanted: usize) -> Result<Vec<Lane<M>>, GpuError> {
        let mut free = self.free.lock();
        loop {
            if self.lost.load(Ordering::Relaxed) {
                return Err(GpuError::Lost);
            }
            let left = free.len().saturating_sub(wanted.max(1));
            if !free.is_empty() {
                return Ok(free.split_off(left));
            }
            self.freed.wait(&mut free);
        }
    }
}

#[cfg(test)]
mod tests;
