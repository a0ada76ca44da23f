//! Collections: named sets of documents that share an embedding model and chunking.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /api/v1/collections`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCollection {
    /// Matches `[a-z0-9][a-z0-9_-]{0,62}`.
    #[schema(pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook")]
    pub name: String,
    /// Over how many shards the documents are spread; 1 to the cluster's number of shards. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 256)]
    pub spread: Option<u16>,
    /// How documents become vectors. Default: the node's own model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Embedding>,
    /// How texts are cut into chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunking: Option<Chunking>,
    /// Language of the texts, for stemming and stop words in word search; ISO 639-1. Default `en`; `none` switches stemming off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
}

/// Where vectors come from: a model of the cluster, or the client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, deny_unknown_fields)]
pub enum Embedding {
    /// The cluster embeds texts with this model.
    Model(EmbeddingModel),
    /// The client sends vectors of this length with every document and with every search by meaning.
    External(EmbeddingDimension),
}

/// The cluster embeds texts with a model of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingModel {
    /// Name of a model that the nodes have, `all-MiniLM-L6-v2` by default.
    #[schema(example = "all-MiniLM-L6-v2")]
    pub model: String,
}

/// The client brings the vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingDimension {
    /// Length of every vector.
    #[schema(minimum = 1, maximum = 4096)]
    pub dimension: u32,
}

/// How texts are cut into chunks, in tokens of the collection's model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Chunking {
    /// Tokens of a chunk at most. Default 256.
    #[serde(default = "default_chunk_tokens")]
    #[schema(minimum = 16, maximum = 8192, default = 256)]
    pub tokens: u32,
    /// Tokens that neighbouring chunks share. Default 32; less than half of `tokens`.
    #[serde(default = "default_chunk_overlap")]
    #[schema(minimum = 0, maximum = 4096, default = 32)]
    pub overlap: u32,
}

impl Default for Chunking {
    fn default() -> Self {
        Chunking { tokens: default_chunk_tokens(), overlap: default_chunk_overlap() }
    }
}

fn default_chunk_tokens() -> u32 {
    256
}

fn default_chunk_overlap() -> u32 {
    32
}

/// Languages that word search has a stemmer for, by their ISO 639-1 code; `none` is for everything else and for mixed collections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the codes name themselves
pub enum Language {
    None,
    Ar,
    Da,
    De,
    El,
    #[default]
    En,
    Es,
    Fi,
    Fr,
    Hu,
    It,
    Nl,
    No,
    Pt,
    Ro,
    Ru,
    Sv,
    Ta,
    Tr,
}

/// A collection as the cluster keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Collection {
    /// The name that it was created with.
    pub name: String,
    /// Over how many shards its documents are spread.
    pub spread: u16,
    /// Where its vectors come from.
    pub embedding: CollectionEmbedding,
    /// How its texts are cut into chunks.
    pub chunking: Chunking,
    /// Language for word search.
    pub language: Language,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_at_ms: u64,
    /// Documents stored. Absent in listings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<u64>,
    /// Chunks stored. Absent in listings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<u64>,
}

/// Where a collection's vectors come from, with what was resolved when it was created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CollectionEmbedding {
    /// The model; absent when the client brings the vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Content hash of the model's files; absent when the client brings the vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Length of every vector.
    pub dimension: u32,
}

/// Answer of `GET /api/v1/collections`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CollectionList {
    /// In order of their names.
    pub collections: Vec<Collection>,
    /// Pass it as `cursor` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
