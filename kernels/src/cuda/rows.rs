//! Rows of halves in a GPU's memory, in the order in which Hopper's products read them: groups of 64 rows, in slabs that are never moved once they are full.

use super::machine::{DeviceMemory, GpuError, Machine};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::sync::Arc;

/// Values of a row that lie together: rows are as long as a multiple of it; as in the kernels.
pub(super) const TILE_VALUES: usize = 64;
/// Values that are exchanged as a whole.
const CHUNK: usize = 8;
const TILE_CHUNKS: usize = TILE_VALUES / CHUNK;
/// Rows that lie together.
pub(super) const GROUP_ROWS: usize = 64;
pub(super) const TILE_BYTES: usize = GROUP_ROWS * TILE_VALUES * size_of::<f16>();
/// Rows that a sample takes together.
pub(super) const OCTET: usize = 8;
/// Rows that one piece of memory holds at most.
const SLAB_ROWS: usize = 1_024 * GROUP_ROWS;
/// Rows that are laid out and uploaded at a time; slabs are whole multiples.
const UPLOAD_ROWS: usize = SLAB_ROWS / 16;

/// Rows in the memory of a GPU.
pub(crate) struct GpuRows<M: Machine> {
    pub(super) machine: Arc<M>,
    pub(super) dimension: usize,
    pub(super) slabs: Vec<Slab<M>>,
    /// Addresses of the slabs.
    pub(super) table: Growing<M>,
    pub(super) rows: usize,
    /// Rows of the last group, which the next ones join.
    open: Vec<f16>,
    /// Euclidean length of the longest row of finite values.
    pub(super) longest: f32,
}

/// Up to [`SLAB_ROWS`] rows. All but the last are full.
pub(super) struct Slab<M: Machine> {
    memory: M::Memory,
    /// Rows that it has room for: whole groups.
    pub(super) room: usize,
}

/// Memory that is replaced by a larger piece when it does not suffice.
pub(super) struct Growing<M: Machine>(Option<(M::Memory, usize)>);

impl<M: Machine> Growing<M> {
    /// None yet.
    pub(super) fn none() -> Self {
        Growing(None)
    }

    /// At least so many bytes. What was there is gone when they were fewer: work that uses it must be done. It stays when there is no more memory.
    pub(super) fn of(&mut self, machine: &M, bytes: usize) -> Result<&M::Memory, GpuError> {
        if self.0.as_ref().is_none_or(|(_, size)| *size < bytes) {
            let size = bytes.next_power_of_two();
            self.0 = Some((machine.allocate(size)?, size));
        }
        self.0.as_ref().map(|(memory, _)| memory).ok_or(GpuError::OutOfMemory { bytes })
    }

    pub(super) fn address(&self) -> u64 {
        self.0.as_ref().map_or(0, |(memory, _)| memory.address())
    }
}

impl<M: Machine> GpuRows<M> {
    /// No rows yet, of so many values each.
    pub(crate) fn new(machine: Arc<M>, dimension: usize) -> Self {
        GpuRows { machine, dimension, slabs: Vec::new(), table: Growing::none(), rows: 0, open: Vec::new(), longest: 0.0 }
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> usize {
        self.rows
    }

    /// Makes room for so many rows, so that memory which they come to need is taken once. Nothing has changed when there is too little.
    pub(crate) fn reserve(&mut self, queue: &mut M::Queue, rows: usize) -> Result<(), GpuError> {
        self.make_room(queue, rows)
    }

    /// Adds rows, one after the other, behind those that are there. All or none of them, when there is too little memory.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub(crate) fn append(&mut self, queue: &mut M::Queue, rows: &[f16]) -> Result<(), GpuError> {
        assert!(rows.len().is_multiple_of(self.dimension), "{} values are not whole rows of {}", rows.len(), self.dimension);
        if rows.is_empty() {
            return Ok(());
        }
        let first = self.rows / GROUP_ROWS * GROUP_ROWS;
        // The last group is written again with what joins it.
        let mut all = [&self.open, rows].concat();
        let count = first + all.len() / self.dimension;
        self.make_room(queue, count)?;
        let mut at = first;
        while at < count {
            // Parts of the slabs, so that what is laid out anew is never much.
            let end = count.min((at / UPLOAD_ROWS + 1) * UPLOAD_ROWS);
            self.upload(queue, at, &all[(at - first) * self.dimension..(end - first) * self.dimension])?;
            at = end;
        }
        self.longest = longest(rows, self.dimension).max(self.longest);
        self.open = all.split_off((count / GROUP_ROWS * GROUP_ROWS - first) * self.dimension);
        self.rows = count;
        // Searches of other lanes may begin as soon as this returns.
        let table = self.table.of(&self.machine, 1)?;
        self.machine.download(queue, table, 0, &mut [])
    }

    /// Slabs for so many rows. The last one grows until it is full. Nothing has changed when there is too little memory.
    fn make_room(&mut self, queue: &mut M::Queue, rows: usize) -> Result<(), GpuError> {
        let row_bytes = padded(self.dimension) * size_of::<f16>();
        let there: usize = self.slabs.iter().map(|slab| slab.room).sum();
        if there >= rows {
            return Ok(());
        }
        // The last one that is there, when it is not full, is replaced by a larger one; others follow.
        let first = self.slabs.len() - usize::from(!there.is_multiple_of(SLAB_ROWS));
        let mut new = Vec::new();
        for number in first..rows.div_ceil(SLAB_ROWS) {
            let needed = (rows - number * SLAB_ROWS).next_multiple_of(GROUP_ROWS);
            let room = self.slabs.get(number).map_or(needed, |slab| needed.max(2 * slab.room)).min(SLAB_ROWS);
            new.push(Slab { memory: self.machine.allocate(room * row_bytes)?, room });
        }
        let addresses = self.slabs[..first].iter().chain(&new).map(|slab| slab.memory.address());
        let addresses: Vec<u64> = addresses.collect();
        let table = self.table.of(&self.machine, size_of_val(addresses.as_slice()))?;
        self.machine.upload(queue, table, 0, bytemuck::cast_slice(&addresses))?;
        if let (Some(before), Some(after)) = (self.slabs.get(first), new.first()) {
            self.machine.copy(queue, &before.memory, &after.memory, before.room * row_bytes)?;
        }
        self.machine.download(queue, table, 0, &mut [])?;
        self.slabs.truncate(first);
        self.slabs.append(&mut new);
        Ok(())
    }

    /// Writes rows from the `first` on, which begins a group; they are within one slab.
    fn upload(&self, queue: &mut M::Queue, first: usize, rows: &[f16]) -> Result<(), GpuError> {
        let row_bytes = padded(self.dimension) * size_of::<f16>();
        let laid_out = laid_out(rows, self.dimension);
        let slab = &self.slabs[first / SLAB_ROWS];
        self.machine.upload(queue, &slab.memory, first % SLAB_ROWS * row_bytes, bytemuck::cast_slice(&laid_out))
    }
}

/// Bytes that so many rows take in a GPU's memory, when room is made for all of them at once.
pub(crate) fn bytes_of(rows: usize, dimension: usize) -> usize {
    rows.next_multiple_of(GROUP_ROWS) * padded(dimension) * size_of::<f16>()
}

/// Values of a row in the GPU's memory; those past the dimension are zeros.
pub(super) fn padded(dimension: usize) -> usize {
    dimension.next_multiple_of(TILE_VALUES)
}

/// Rows in the order of the GPU's memory: groups of [`GROUP_ROWS`], the last one filled up with zeros.
fn laid_out(rows: &[f16], dimension: usize) -> Vec<f16> {
    let size = padded(dimension);
    let count = rows.len() / dimension;
    let mut out = vec![f16::ZERO; count.next_multiple_of(GROUP_ROWS) * size];
    for (number, row) in rows.chunks_exact(dimension).enumerate() {
        let group = &mut out[number / GROUP_ROWS * GROUP_ROWS * size..][..GROUP_ROWS * size];
        for (chunk, values) in row.chunks(CHUNK).enumerate() {
            let tile = chunk / TILE_CHUNKS * GROUP_ROWS * TILE_VALUES;
            let place = tile + number % GROUP_ROWS * TILE_VALUES + (chunk ^ number) % TILE_CHUNKS * CHUNK;
            group[place..place + values.len()].copy_from_slice(values);
        }
    }
    out
}

/// Euclidean length of the longest of these rows whose values are finite.
fn longest(rows: &[f16], dimension: usize) -> f32 {
    let mut values = vec![0.0; dimension];
    let mut length = |row: &[f16]| {
        row.convert_to_f32_slice(&mut values);
        values.iter().map(|value| value * value).sum::<f32>().sqrt()
    };
    rows.chunks_exact(dimension).map(&mut length).filter(|length| length.is_finite()).fold(0.0, f32::max)
}
