//! What the cluster agrees on about a collection.

use crate::ids::{CollectionId, ShardId, TenantId};
use serde::{Deserialize, Serialize};

/// A collection's settings and place. Settings do not change after creation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Collection {
    /// Its identity in keys.
    pub id: CollectionId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Unique within its tenant; matches `[a-z0-9][a-z0-9_-]{0,62}`.
    pub name: String,
    /// The shards that its documents are spread over; never empty, in order. A document's id picks one of them.
    pub shards: Vec<ShardId>,
    /// Its named vectors; never empty. Slot 0 is the default.
    pub vectors: Vec<VectorSettings>,
    /// Tokens of a chunk at most.
    pub chunk_tokens: u32,
    /// Tokens that neighbouring chunks share.
    pub chunk_overlap: u32,
    /// ISO 639-1 code for word search, or `none`.
    pub language: String,
    /// Milliseconds since 1970-01-01 UTC, from the node that took the request.
    pub created_at_ms: u64,
}

impl Collection {
    /// The shard of `self.shards` that a document lives in: xxh3 of its id, modulo their number.
    pub fn shard_of(&self, document_id: &str) -> ShardId {
        let hash = xxhash_rust::xxh3::xxh3_64(document_id.as_bytes());
        self.shards[(hash % self.shards.len() as u64) as usize]
    }

    /// The default vector.
    pub fn vector(&self) -> &VectorSettings {
        &self.vectors[0]
    }
}

/// One named vector of a collection's chunks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VectorSettings {
    /// `default` for slot 0.
    pub name: String,
    /// Number of dimensions.
    pub dimension: u32,
    /// The model that makes it; none when clients bring it.
    pub model: Option<ModelRevision>,
}

/// A model and the content hash of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRevision {
    /// Name of the model.
    pub name: String,
    /// Content hash of its files.
    pub revision: String,
}
