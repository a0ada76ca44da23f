//! A GPU for tests that is none: it keeps rows in memory and searches them on the processor, and fails when it is told to.

use super::device::{DeviceRows, RowDevice};
use half::f16;
use parking_lot::{Condvar, Mutex};
use ragged_kernels::cuda::{GpuError, GpuMemory};
use ragged_kernels::{Scored, exact};
use roaring::RoaringBitmap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What tests see of it, and tell it.
#[derive(Default)]
pub(crate) struct FakeGpu {
    /// Searches fail.
    pub(crate) fails: AtomicBool,
    /// Searches panic.
    pub(crate) panics: AtomicBool,
    /// There is no memory for rows, nor for searches.
    pub(crate) is_full: AtomicBool,
    /// It was said to answer no more.
    pub(crate) is_lost: AtomicBool,
    /// Searches that it was asked for.
    pub(crate) searches: AtomicUsize,
    /// Sets of rows that it has.
    pub(crate) sets: AtomicUsize,
    /// Microseconds that it says a search takes.
    pub(crate) micros: AtomicUsize,
    stopped: Mutex<bool>,
    goes_on: Condvar,
}

impl FakeGpu {
    /// Has uploads, searches and whoever frees rows wait.
    pub(crate) fn stop(&self) {
        *self.stopped.lock() = true;
    }

    /// Has them go on.
    pub(crate) fn go_on(&self) {
        *self.stopped.lock() = false;
        self.goes_on.notify_all();
    }

    fn wait(&self) {
        let mut stopped = self.stopped.lock();
        self.goes_on.wait_while(&mut stopped, |stopped| *stopped);
    }

    fn memory_for(&self, bytes: usize) -> Result<(), GpuError> {
        if self.is_full.load(Ordering::SeqCst) { Err(GpuError::OutOfMemory { bytes }) } else { Ok(()) }
    }
}

/// The device of it, with so many free bytes.
pub(crate) struct FakeDevice(pub(crate) Arc<FakeGpu>, pub(crate) u64);

struct FakeRows {
    gpu: Arc<FakeGpu>,
    dimension: usize,
    rows: Vec<f16>,
}

impl Drop for FakeRows {
    fn drop(&mut self) {
        self.gpu.wait();
        self.gpu.sets.fetch_sub(1, Ordering::SeqCst);
    }
}

impl RowDevice for FakeDevice {
    fn name(&self) -> &str {
        "fake"
    }

    fn memory(&self) -> Result<GpuMemory, GpuError> {
        Ok(GpuMemory { free_bytes: self.1, total_bytes: 2 * self.1 })
    }

    fn bytes_of(&self, rows: usize, dimension: usize) -> usize {
        rows * dimension * size_of::<f16>()
    }

    fn make_room(&self, rows: usize, dimension: usize) -> Result<Box<dyn DeviceRows>, GpuError> {
        self.0.memory_for(self.bytes_of(rows, dimension))?;
        self.0.sets.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FakeRows { gpu: self.0.clone(), dimension, rows: Vec::new() }))
    }

    fn lose(&self) {
        self.0.is_lost.store(true, Ordering::SeqCst);
    }

    fn seconds(&self, _bytes: usize) -> f64 {
        self.0.micros.load(Ordering::SeqCst) as f64 / 1e6
    }
}

impl DeviceRows for FakeRows {
    fn append(&mut self, rows: &[f16]) -> Result<(), GpuError> {
        self.gpu.wait();
        self.rows.extend_from_slice(rows);
        Ok(())
    }

    fn top_k(&self, queries: &[&[f32]], allowed: Option<&[u64]>, k: usize) -> Result<Vec<Vec<Scored>>, GpuError> {
        self.gpu.searches.fetch_add(1, Ordering::SeqCst);
        self.gpu.wait();
        self.gpu.memory_for(1)?;
        assert!(!self.gpu.panics.load(Ordering::SeqCst), "injected");
        if self.gpu.fails.load(Ordering::SeqCst) {
            return Err(GpuError::Failed { what: "a launch", reason: "injected".to_owned() });
        }
        let allowed: Option<RoaringBitmap> = allowed.map(|words| {
            let bit = |row: &u32| words.get(*row as usize / 64).is_some_and(|word| word >> (row % 64) & 1 == 1);
            (0..(words.len() * 64) as u32).filter(bit).collect()
        });
        let found = |query: &&[f32]| {
            let mut found = exact::top_k(query, &self.rows, self.dimension, allowed.as_ref(), k);
            // Another order of summing rounds otherwise.
            found.iter_mut().for_each(|hit| hit.score *= 1.000_001);
            found
        };
        Ok(queries.iter().map(found).collect())
    }
}
