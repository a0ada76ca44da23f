//! Searches: by meaning, by words, or both.

use crate::filter::Filter;
use crate::metadata::Metadata;
use crate::recall::Recall;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /api/v1/collections/{collection}/search`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    /// What to look for, in words; at most 32 KiB. `query`, `vector` or both: with both, the vector is used for meaning and the query for words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, example = "how are replicas repaired?")]
    pub query: Option<String>,
    /// What to look for, as a vector of the collection's dimension. It is normalised to length 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vector: Option<Vec<f32>>,
    /// Default: `hybrid` with a query, `dense` with a vector alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Hits at most. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
    /// Hits to leave out first. Default 0; offset + limit is at most 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 10000)]
    pub offset: Option<u32>,
    /// Only documents whose metadata passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// `chunk` (default): every chunk is a hit of its own. `document`: the best chunk of each document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_by: Option<GroupBy>,
    /// Weights of the two rankings in mode `hybrid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// How many of the nearest chunks by meaning must be found. Default 0.95.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall: Option<Recall>,
    /// Say with every hit how its score came about, and how the search was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explain: Option<bool>,
    /// How fresh the answer must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Token of a write that this search must see; implies consistency `session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Answer without the shards that cannot answer within 2 s, instead of refusing. The answer then says `partial`. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_partial: Option<bool>,
}

/// How hits are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By meaning: nearest vectors. Scores are cosines.
    Dense,
    /// By words: BM25.
    Text,
    /// Both rankings, fused by reciprocal rank.
    Hybrid,
}

/// What a hit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GroupBy {
    /// Every chunk is a hit of its own.
    #[default]
    Chunk,
    /// A document's best chunk stands for it.
    Document,
}

/// How fresh the answer of a search must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Whatever a live replica has.
    #[default]
    Eventual,
    /// At least what the given token's write left.
    Session,
    /// Everything acknowledged before the search began.
    Strong,
}

/// Weights of the two rankings in a hybrid search: score = dense / (60 + rank by meaning) + text / (60 + rank by words).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// Weight of the ranking by meaning; 0 to 1000. Default 1.
    #[serde(default = "one")]
    #[schema(minimum = 0, maximum = 1000, default = 1.0)]
    pub dense: f32,
    /// Weight of the ranking by words; 0 to 1000. Default 1.
    #[serde(default = "one")]
    #[schema(minimum = 0, maximum = 1000, default = 1.0)]
    pub text: f32,
}

impl Default for Weights {
    fn default() -> Self {
        Weights { dense: 1.0, text: 1.0 }
    }
}

fn one() -> f32 {
    1.0
}

/// Answer of a search.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct SearchResponse {
    /// Best first.
    pub hits: Vec<Hit>,
    /// Time that the node spent, in milliseconds.
    pub took_ms: f64,
    /// How the search was run; with `explain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Vec<ShardPlan>>,
    /// True when shards are missing from the answer; with `allow_partial`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<bool>,
    /// The shards that are missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_shards: Vec<u16>,
}

/// A chunk that was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Hit {
    /// Document that the chunk belongs to.
    pub document_id: String,
    /// Number of the chunk in its document, from 0.
    pub chunk: u32,
    /// Higher is better; comparable within one answer only.
    pub score: f32,
    /// Title of the document, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Text of the chunk.
    pub text: String,
    /// Where the chunk stands in the document's text.
    pub span: Span,
    /// Metadata of the document.
    #[schema(value_type = Object)]
    pub metadata: Metadata,
    /// How the score came about; with `explain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

/// Bytes `start..end` of the document's UTF-8 text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// How a hit's score came about.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// Cosine of query and chunk, when found by meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense_score: Option<f32>,
    /// Rank by meaning, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense_rank: Option<u32>,
    /// BM25, when found by words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_score: Option<f32>,
    /// Rank by words, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_rank: Option<u32>,
}

/// How one shard ran its part of a search.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct ShardPlan {
    /// The shard.
    pub shard: u16,
    /// What was done, step by step.
    pub steps: Vec<String>,
    /// Milliseconds.
    pub took_ms: f64,
}

/// Body of `POST /api/v1/collections/{collection}/search/batch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchBatch {
    /// 1 to 256 searches.
    #[schema(min_items = 1, max_items = 256)]
    pub searches: Vec<SearchRequest>,
}

/// Answer of a batch of searches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SearchBatchResponse {
    /// One answer a search, in the order of the request.
    pub results: Vec<SearchResponse>,
    /// Time that the node spent on all of them, in milliseconds.
    pub took_ms: f64,
}
