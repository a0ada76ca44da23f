//! Documents: upload, import, listing, deletion.

use crate::filter::Filter;
use crate::metadata::Metadata;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Body of `POST /api/v1/collections/{collection}/documents`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDocuments {
    /// 1 to 10,000 documents.
    #[schema(min_items = 1, max_items = 10000)]
    pub documents: Vec<NewDocument>,
}

/// A document as a client sends it; also one line of an import.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDocument {
    /// 1 to 256 bytes without control characters. A document of the same id is replaced, as one step. Made when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub id: Option<String>,
    /// At most 1,024 bytes; searched by word and by meaning together with every chunk of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1024)]
    pub title: Option<String>,
    /// The text itself; at most 16 MiB.
    pub text: String,
    /// How the text is written. Default `plain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Any JSON object, at most 64 KiB, nested at most 16 deep; fields are filtered on by their path with dots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// The document's vector, when the client makes the vectors: the text then stays one chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vector: Option<Vec<f32>>,
}

/// How a text is written, which decides how it is parsed and where it may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Plain text, cut at paragraphs, sentences and words.
    #[default]
    Plain,
    /// Markdown, cut at headings and blocks first.
    Markdown,
    /// HTML, turned into plain text first; spans then refer to that text.
    Html,
}

/// Answer of an upload that was waited for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UploadedDocuments {
    /// One entry a document, in the order of the upload.
    pub documents: Vec<UploadedDocument>,
    /// Names this write. A search that carries it sees the write, on whatever node it runs.
    pub token: String,
}

/// A document that is stored and searchable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UploadedDocument {
    /// Its id, made by the cluster when the upload had none.
    pub id: String,
    /// Chunks that the text was cut into.
    pub chunks: u32,
    /// 1 for a new document, one more with each replacement.
    pub version: u64,
}

/// Answer (202) of an upload with `?wait=false`: the documents are durable and will be indexed by the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AcceptedJob {
    /// Id of the job, for `GET /api/v1/jobs/{id}`.
    pub job: String,
}

/// Answer of `POST .../documents/import`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct ImportReport {
    /// Documents stored.
    pub accepted: u64,
    /// Lines that were refused; the first 1,000 of them.
    pub failed: Vec<ImportFailure>,
    /// How many lines were refused in all.
    pub failed_count: u64,
    /// Names the last write of this import; empty when nothing was accepted.
    pub token: String,
}

/// A line of an import that was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImportFailure {
    /// Line of the body, from 1.
    pub line: u64,
    /// Stable code, as in problem details.
    pub code: String,
    /// What was wrong and where.
    pub detail: String,
}

/// A stored document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Document {
    /// Its id.
    pub id: String,
    /// Title, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The text that spans of hits refer to. Absent in listings unless asked for with `?text=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// How the text was written.
    pub format: Format,
    /// The metadata as uploaded; `{}` when there was none.
    #[schema(value_type = Object)]
    pub metadata: Metadata,
    /// Chunks that the text was cut into.
    pub chunks: u32,
    /// 1 for a new document, one more with each replacement.
    pub version: u64,
    /// Milliseconds since 1970-01-01 UTC, of the first upload under this id.
    pub created_at_ms: u64,
    /// Milliseconds since 1970-01-01 UTC, of the last upload under this id.
    pub updated_at_ms: u64,
}

/// Answer of `GET /api/v1/collections/{collection}/documents`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DocumentList {
    /// A page of documents, in a stable order.
    pub documents: Vec<Document>,
    /// Pass it as `cursor` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Body of `POST /api/v1/collections/{collection}/documents/delete`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteByFilter {
    /// Every document that matches is deleted. May not be empty.
    pub filter: Filter,
}

/// Answer of a deletion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeletedDocuments {
    /// Documents that were deleted.
    pub deleted: u64,
    /// Names this write.
    pub token: String,
}
