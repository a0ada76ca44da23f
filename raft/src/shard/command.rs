//! Commands of the shard groups. Appending variants is compatible; changing one is not: add a new one.

use crate::ids::{CollectionId, RowId, TenantId};
use crate::shard::rows::{ChunkText, DocumentHead, JobRow};
use serde::{Deserialize, Serialize};

/// What a shard group's log carries. Everything that could differ between replicas (times, ids, vectors) comes with the command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ShardCommand {
    /// Stores documents, each replacing the one of its id as one step.
    Upsert {
        /// Whose they are.
        tenant: TenantId,
        /// Where they go.
        collection: CollectionId,
        /// The documents, ready to be stored.
        documents: Vec<PreparedDocument>,
        /// A second command with the same key changes nothing and is given the first one's reply.
        idempotency: Option<IdempotencyKey>,
        /// Milliseconds since 1970-01-01 UTC.
        at_ms: u64,
    },
    /// Deletes documents; ids that are not there count as nothing.
    Delete {
        /// Whose they are.
        tenant: TenantId,
        /// Where they are.
        collection: CollectionId,
        /// Their ids.
        ids: Vec<String>,
        /// Milliseconds since 1970-01-01 UTC.
        at_ms: u64,
    },
    /// Deletes a whole partition.
    DropCollection {
        /// Whose it is.
        tenant: TenantId,
        /// The collection.
        collection: CollectionId,
    },
    /// Adds a job or replaces its row; with `payload`, its uploaded documents too.
    PutJob {
        /// Whose it is.
        tenant: TenantId,
        /// Its state.
        job: JobRow,
        /// What is still to be stored of the upload, as the ingest actor encoded it; none leaves it as it is.
        #[serde(with = "crate::bytes::option")]
        payload: Option<Vec<u8>>,
        /// A second command with the same key changes nothing and is given the first one's reply.
        idempotency: Option<IdempotencyKey>,
    },
    /// Forgets jobs (with their payloads), or only their payloads when `keep_rows`.
    DeleteJobs {
        /// Whose they are.
        tenant: TenantId,
        /// Their ids.
        ids: Vec<ulid::Ulid>,
        /// Whether the rows stay, as a record.
        keep_rows: bool,
    },
    /// Deletes documents as they were seen; those that were replaced or deleted since count as nothing.
    DeleteSeen {
        /// Whose they are.
        tenant: TenantId,
        /// Where they are.
        collection: CollectionId,
        /// Their ids, and their first rows, which are others in every version.
        documents: Vec<(String, RowId)>,
    },
}

/// Dedupes a client's retries: kept for 24 hours after its command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    /// Hash of principal, collection and the client's key.
    pub key: [u8; 16],
    /// Hash of the request, so that another request under the same key is refused.
    pub request: [u8; 16],
}

/// A document with its chunks and vectors, ready to be stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreparedDocument {
    /// Everything but the text; `version`, `created_at_ms` and `first_row` are set in apply.
    pub head: DocumentHead,
    /// The text that spans refer to.
    pub text: String,
    /// Its chunks, in order; at least one.
    pub chunks: Vec<PreparedChunk>,
}

/// A chunk with its vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreparedChunk {
    /// Span and text.
    pub text: ChunkText,
    /// One vector for each of the collection's slots: f16 in little endian, `2 * dimension` bytes. Normalised to length 1.
    #[serde(with = "crate::bytes::list")]
    pub vectors: Vec<Vec<u8>>,
}

/// What a command answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ShardReply {
    /// Done, nothing to say (also for blank and membership entries).
    Done,
    /// One entry a document, in the order of the command.
    Upserted(Vec<Upserted>),
    /// How many documents were deleted.
    Deleted(u64),
    /// The idempotency key was used by another request.
    IdempotencyConflict,
    /// The partition's row ids are used up.
    PartitionFull,
    /// The collection has been deleted meanwhile.
    CollectionDropped,
    /// The job that was put, or that was put under the same idempotency key before.
    Job(ulid::Ulid),
}

/// A document that was stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Upserted {
    /// Its id.
    pub id: String,
    /// Number of its chunks.
    pub chunks: u32,
    /// 1 for a new document.
    pub version: u64,
}
