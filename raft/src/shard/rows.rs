//! The rows of a shard replica: what is kept, under which keys.
//!
//! Keys: `[replica u64 BE][tenant u64 BE][collection u64 BE][kind u8][suffix]`, so that a partition, a tenant and a replica are each
//! one contiguous range. Values are framed by the codec (version, length, checksum), except vectors, which are raw f16 rows behind a
//! one-byte version, since they are read by the million.

use crate::ids::RowId;
use serde::{Deserialize, Serialize};

/// Everything about a document but its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DocumentHead {
    /// The client's id.
    pub id: String,
    /// Title, when it has one.
    pub title: Option<String>,
    /// `plain`, `markdown` or `html`.
    pub format: TextFormat,
    /// Metadata, a JSON object as text.
    pub metadata: String,
    /// Number of chunks; their rows are `first_row .. first_row + chunks`.
    pub chunks: u32,
    /// Row of the first chunk.
    pub first_row: RowId,
    /// Number of vectors of each chunk; set in apply.
    pub vectors: u8,
    /// 1 for a new document, one more with each replacement.
    pub version: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_at_ms: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub updated_at_ms: u64,
    /// Principal that uploaded it, for access control to come.
    pub owner: Option<String>,
    /// Principals that may read it, for access control to come.
    pub access: Vec<String>,
    /// People that it is about, for erasure requests to come.
    pub subjects: Vec<String>,
    /// When it expires, for expiry to come.
    pub expires_at_ms: Option<u64>,
}

/// How an uploaded text was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TextFormat {
    /// Plain text.
    Plain,
    /// Markdown.
    Markdown,
    /// HTML; what is stored is the plain text made from it.
    Html,
}

/// A chunk's place in its document, and its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChunkText {
    /// First byte in the document's text.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// The text itself.
    pub text: String,
}

/// Which document a row belongs to: small, read for every candidate of a search.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowOwner {
    /// Document's id.
    pub document_id: String,
    /// Number of the chunk in its document, from 0.
    pub chunk: u32,
}

/// A partition's counters, kept up to date by every write to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PartitionRow {
    /// The row id that the next chunk gets.
    pub next_row: RowId,
    /// Documents stored.
    pub documents: u64,
    /// Chunks stored.
    pub chunks: u64,
    /// Log index of the last entry that changed the partition.
    pub changed_at: u64,
}

/// An ingestion job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRow {
    /// Its id, sortable by creation.
    pub id: ulid::Ulid,
    /// Name of the collection that the documents go to.
    pub collection: String,
    /// How far it has come.
    pub stage: JobStage,
    /// How often it was begun anew at the client's wish.
    pub attempt: u32,
    /// Documents of the upload.
    pub documents: u64,
    /// Documents stored.
    pub done: u64,
    /// Documents that could not be ingested: id, code, detail.
    pub failed: Vec<(String, String, String)>,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_at_ms: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub updated_at_ms: u64,
}

impl DocumentHead {
    /// Of a document that was uploaded. What is decided when the upload is applied is 0 until then: chunks, rows, vectors, version and times.
    pub fn uploaded(id: String, title: Option<String>, format: TextFormat, metadata: String) -> DocumentHead {
        DocumentHead {
            id,
            title,
            format,
            metadata,
            chunks: 0,
            first_row: RowId(0),
            vectors: 0,
            version: 0,
            created_at_ms: 0,
            updated_at_ms: 0,
            owner: None,
            access: Vec::new(),
            subjects: Vec::new(),
            expires_at_ms: None,
        }
    }

    /// Whether a row is one of this version's.
    pub fn has(&self, row: RowId) -> bool {
        row >= self.first_row && row.0 - self.first_row.0 < self.chunks
    }
}

/// Stages of a job, in their order; the last three are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobStage {
    /// Durable, not begun.
    Received,
    /// Texts have been extracted.
    Parsed,
    /// Texts have been cut into chunks.
    Chunked,
    /// Chunks have vectors.
    Embedded,
    /// Everything that could be stored is stored.
    Replicated,
    /// Nothing could be stored.
    Failed,
    /// Stopped by a client.
    Cancelled,
}

impl JobStage {
    /// Whether nothing more will happen to the job by itself.
    pub fn is_final(self) -> bool {
        matches!(self, JobStage::Replicated | JobStage::Failed | JobStage::Cancelled)
    }
}
