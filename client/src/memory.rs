//! Where the memory of a node is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /api/v1/memory`, about the node that answers. All sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryReport {
    /// What the node keeps `resident_bytes` within.
    #[serde(default)]
    #[schema(example = 1073741824)]
    pub budget_bytes: u64,
    /// Bytes of mapped files that were given back to keep the budget, since the node started.
    #[serde(default)]
    pub given_back_bytes: u64,
    /// What the node has of the machine's memory: `anonymous_bytes` and `mapped_bytes`.
    #[schema(example = 73400320)]
    pub resident_bytes: u64,
    /// Memory that only the node can give back: what its parts hold, stacks, and what the allocator keeps for later.
    pub anonymous_bytes: u64,
    /// Pages of files that the node has read lately. The system takes them back when anybody needs memory.
    pub mapped_bytes: u64,
    /// What the node's parts have of the allocator.
    pub allocated_bytes: u64,
    /// The parts that hold most of it.
    pub parts: Vec<MemoryPart>,
    /// `mapped_bytes`, by what the files are.
    pub files: Vec<MappedFiles>,
    /// The GPUs that the node computes on, whose memory is no part of all this.
    #[serde(default)]
    pub gpus: Vec<GpuMemory>,
}

/// The memory of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuMemory {
    /// Its number, from 0.
    pub gpu: usize,
    /// Its name.
    #[schema(example = "NVIDIA H100 80GB HBM3")]
    pub name: String,
    /// All of its memory.
    pub total_bytes: u64,
    /// What anybody has of it, other processes included, a few seconds ago.
    pub used_bytes: u64,
    /// What the encoder has.
    pub encoder_bytes: u64,
    /// What indexed vectors have that are searched there.
    pub rows_bytes: u64,
    /// What they may have: `search.gpu_memory_percent` of what the encoder has left.
    pub rows_limit_bytes: u64,
}

/// A part of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryPart {
    /// `encoder`, `store_block_cache`, `store_write_buffers`, `content_cache`, `query_cache`, `partitions`, `text_writers` or `bodies`.
    #[schema(example = "partitions")]
    pub part: String,
    /// What it holds.
    pub bytes: u64,
    /// What it may hold; none when that does not change while the node runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
}

/// Files that are mapped into memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MappedFiles {
    /// `vectors`, `vector_indexes`, `text_indexes`, `model`, `program` or `other`.
    #[schema(example = "vectors")]
    pub kind: String,
    /// What of them is in memory.
    pub bytes: u64,
}
