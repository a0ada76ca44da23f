//! A GPU that rows can be put on, as searches see it.

use half::f16;
use parking_lot::Mutex;
use ragged_kernels::Scored;
use ragged_kernels::cuda::{CudaLane, CudaRows, Gpu, GpuError, GpuMemory};
use std::sync::Arc;

/// Values of the longest rows that can be put on a GPU.
pub(crate) const DIMENSION_MAX: usize = 4096;
/// Seconds that a search takes on a GPU however few rows there are: copies, a few launches, and the way there and back.
const LAUNCH_SECONDS: f64 = 100e-6;
/// Part of what its memory could move that a search moves.
const BANDWIDTH_PART: f64 = 0.7;
/// What is taken for the bytes that memory moves in a second where the driver does not say: that of a small GPU.
const BANDWIDTH_BYTES: u64 = 300_000_000_000;

/// A GPU.
pub trait RowDevice: Send + Sync {
    /// A short name for logs.
    fn name(&self) -> &str;

    /// Its memory.
    fn memory(&self) -> Result<GpuMemory, GpuError>;

    /// Bytes that so many rows of so many values take.
    fn bytes_of(&self, rows: usize, dimension: usize) -> usize;

    /// Room for so many rows of so many values, of which none is there yet.
    fn make_room(&self, rows: usize, dimension: usize) -> Result<Box<dyn DeviceRows>, GpuError>;

    /// It does not answer any more: whoever opened it is to do so again.
    fn lose(&self);

    /// Seconds that going through so many bytes of rows takes, roughly, for one query or for some.
    fn seconds(&self, bytes: usize) -> f64;
}

/// Rows on a GPU.
pub trait DeviceRows: Send + Sync {
    /// Adds whole rows behind those that are there.
    fn append(&mut self, rows: &[f16]) -> Result<(), GpuError>;

    /// For each query the `k` rows with the largest inner product, best first; of equal scores the lower position comes first. `allowed` has bit `row % 64`
    /// of word `row / 64` for each row that may be found.
    fn top_k(&self, queries: &[&[f32]], allowed: Option<&[u64]>, k: usize) -> Result<Vec<Vec<Scored>>, GpuError>;
}

/// A GPU behind NVIDIA's driver.
pub struct CudaRowDevice {
    gpu: Gpu,
    /// Made for the first rows.
    lane: Mutex<Option<Arc<CudaLane>>>,
}

impl CudaRowDevice {
    /// Nothing is taken of its memory before there are rows.
    pub fn new(gpu: Gpu) -> Self {
        CudaRowDevice { gpu, lane: Mutex::new(None) }
    }

    fn lane(&self) -> Result<Arc<CudaLane>, GpuError> {
        let mut lane = self.lane.lock();
        match lane.as_ref() {
            Some(lane) => Ok(lane.clone()),
            None => Ok(lane.insert(Arc::new(CudaLane::new(&self.gpu, DIMENSION_MAX)?)).clone()),
        }
    }
}

impl RowDevice for CudaRowDevice {
    fn name(&self) -> &str {
        &self.gpu.description().name
    }

    fn memory(&self) -> Result<GpuMemory, GpuError> {
        self.gpu.memory()
    }

    fn bytes_of(&self, rows: usize, dimension: usize) -> usize {
        CudaRows::bytes_of(rows, dimension)
    }

    fn make_room(&self, rows: usize, dimension: usize) -> Result<Box<dyn DeviceRows>, GpuError> {
        let mut on_gpu = CudaRows::with_lane(self.lane()?, dimension);
        on_gpu.reserve(rows)?;
        Ok(Box::new(on_gpu))
    }

    fn lose(&self) {
        self.gpu.lose();
    }

    fn seconds(&self, bytes: usize) -> f64 {
        let bandwidth = self.gpu.description().bandwidth_bytes.unwrap_or(BANDWIDTH_BYTES);
        LAUNCH_SECONDS + bytes as f64 / (bandwidth as f64 * BANDWIDTH_PART)
    }
}

impl DeviceRows for CudaRows {
    fn append(&mut self, rows: &[f16]) -> Result<(), GpuError> {
        CudaRows::append(self, rows)
    }

    fn top_k(&self, queries: &[&[f32]], allowed: Option<&[u64]>, k: usize) -> Result<Vec<Vec<Scored>>, GpuError> {
        self.top_k_of(queries, allowed, k)
    }
}
