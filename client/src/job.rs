//! Ingestion jobs: what becomes of an upload.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An upload on its way to being searchable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// Collection that the documents go to.
    pub collection: String,
    /// How far it has come.
    pub stage: Stage,
    /// Documents of the upload.
    pub documents: u64,
    /// Documents that are stored and searchable.
    pub done: u64,
    /// Documents that could not be ingested, and why.
    pub failed: Vec<DocumentFailure>,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_at_ms: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub updated_at_ms: u64,
}

/// Stages of a job, in their order; the last three are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Durable, not begun.
    Received,
    /// Texts have been extracted.
    Parsed,
    /// Texts have been cut into chunks.
    Chunked,
    /// Chunks have vectors.
    Embedded,
    /// Everything that could be stored is stored and searchable.
    Replicated,
    /// Nothing could be stored; see `failed`. It can be retried.
    Failed,
    /// Stopped by a client; documents done until then stay.
    Cancelled,
}

/// A document that could not be ingested.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DocumentFailure {
    /// The document's id.
    pub id: String,
    /// Stable code, as in problem details.
    pub code: String,
    /// What was wrong.
    pub detail: String,
}

/// Answer of `GET /api/v1/jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    /// Newest first.
    pub jobs: Vec<Job>,
    /// Pass it as `cursor` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
