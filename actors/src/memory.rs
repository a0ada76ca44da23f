//! What the parts of a node hold in memory.

use crate::engine::Engine;
use crate::error::ServiceError;

/// What a part holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartMemory {
    /// `encoder`, `store_block_cache`, `store_write_buffers`, `content_cache`, `query_cache` or `partitions`.
    pub part: &'static str,
    /// What it holds.
    pub bytes: usize,
    /// What it may hold; none when that does not change while the node runs.
    pub limit_bytes: Option<usize>,
}

impl Engine {
    /// What the parts hold that hold most. Cheap: everything is counted as it changes.
    pub fn memory(&self) -> Result<Vec<PartMemory>, ServiceError> {
        let parts = &self.parts;
        let store = parts.store.memory().map_err(|fault| ServiceError::internal(fault.to_string()))?;
        let part = |part, bytes, limit_bytes| PartMemory { part, bytes, limit_bytes };
        Ok(vec![
            part("encoder", parts.encoder_bytes, None),
            part("store_block_cache", store.block_cache_bytes, Some(store.limits.block_cache_bytes)),
            part("store_write_buffers", store.write_buffer_bytes, Some(store.limits.write_buffer_bytes)),
            part("content_cache", parts.content_cache.bytes(), Some(parts.content_cache.bytes_max())),
            part("query_cache", parts.query_cache.bytes(), Some(parts.query_cache.bytes_max())),
            part("partitions", parts.partition_bytes.get().max(0) as usize, Some(parts.partition_bytes_max)),
        ])
    }
}
