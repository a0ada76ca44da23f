//! The memory of a node: what it may have, what it has, and what its parts hold.

use crate::engine::Engine;
use crate::gpu_rows::GpuUse;
use procfs::ProcError;
use procfs::process::Process;

/// What the parts of a node may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimits {
    /// What the node keeps its resident memory within, mapped files included.
    pub budget: usize,
    /// Blocks of the database.
    pub block_cache: usize,
    /// What has been written and is in no file of the database yet.
    pub write_buffers: usize,
    /// What hits have shown.
    pub content_cache: usize,
    /// Vectors of queries.
    pub query_cache: usize,
    /// What loaded partitions keep beside their mapped files.
    pub partitions: usize,
    /// One writer of an index of words.
    pub text_writer: usize,
}

/// A partition's waiting rows are indexed at the latest when they have this part of all partitions' memory,
const TAIL_PART: usize = 16;
/// but neither for a few bytes, nor with more than would be written in one go.
const TAIL_BYTES: (usize, usize) = (2 << 20, 64 << 20);

/// Once it is over the budget, a process gives back until so large a part of it is free: it does not come back every second.
const FREE_PART: usize = 16;

impl MemoryLimits {
    /// What the process comes back to when it was over the budget.
    pub(crate) fn wanted(&self) -> usize {
        self.budget - self.budget / FREE_PART
    }

    /// Bytes that rows may have which wait to be indexed, in one partition.
    pub(crate) fn tail_max(&self) -> usize {
        (self.partitions / TAIL_PART).clamp(TAIL_BYTES.0, TAIL_BYTES.1)
    }
}

/// What a process has of the machine's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProcessMemory {
    /// The sum of the two that follow.
    pub resident: u64,
    /// Memory that only it can give back.
    pub anonymous: u64,
    /// Pages of files, which the system takes back when anybody needs memory.
    pub mapped: u64,
}

impl ProcessMemory {
    /// What the system counts for this process. Cheap.
    pub fn current() -> Result<ProcessMemory, ProcError> {
        let pages = Process::myself()?.statm()?;
        let (resident, mapped) = (pages.resident * procfs::page_size(), pages.shared * procfs::page_size());
        Ok(ProcessMemory { resident, anonymous: resident.saturating_sub(mapped), mapped })
    }
}

/// What a part holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartMemory {
    /// `encoder`, `store_block_cache`, `store_write_buffers`, `content_cache`, `query_cache`, `partitions` or `text_writers`.
    pub part: &'static str,
    /// What it holds.
    pub bytes: usize,
    /// What it may hold; none when that does not change while the node runs.
    pub limit_bytes: Option<usize>,
}

impl Engine {
    /// What the parts hold that hold most. Cheap: everything is counted as it changes.
    pub fn memory(&self) -> Vec<PartMemory> {
        let (parts, limits) = (&self.parts, &self.parts.memory);
        let store = parts.store.memory();
        let part = |part, bytes, limit_bytes| PartMemory { part, bytes, limit_bytes };
        // Blocks may have what is free of the write buffers' memory.
        let free = limits.write_buffers.saturating_sub(store.write_buffer_bytes);
        vec![
            part("encoder", parts.encoder_bytes, None),
            part("store_block_cache", store.block_cache_bytes, Some(limits.block_cache + free)),
            part("store_write_buffers", store.write_buffer_bytes, Some(limits.write_buffers)),
            part("content_cache", parts.content_cache.bytes(), Some(parts.content_cache.bytes_max())),
            part("query_cache", parts.query_cache.bytes(), Some(parts.query_cache.bytes_max())),
            part("partitions", parts.partition_bytes.get().max(0) as usize, Some(limits.partitions)),
            part("text_writers", parts.text_writers.bytes(), Some(parts.text_writers.bytes_max())),
        ]
    }

    /// The memory of the GPUs that the node has. Cheap, too.
    pub fn gpu_memory(&self) -> Vec<GpuUse> {
        self.parts.gpu_rows.memory()
    }

    /// What the node keeps its resident memory within, in bytes.
    pub fn memory_budget(&self) -> usize {
        self.parts.memory.budget
    }

    /// Bytes of mapped files that were given back so that the budget was kept, since the node started.
    pub fn memory_given_back(&self) -> u64 {
        self.parts.keeper_metrics.given_back_bytes.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_is_counted() {
        let before = ProcessMemory::current().unwrap();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = ProcessMemory::current().unwrap();
        assert!(after.anonymous >= before.anonymous + (60 << 20), "{before:?} {after:?}");
        assert_eq!(after.resident, after.anonymous + after.mapped);
        assert_eq!(block.len(), 64 << 20);
    }
}
