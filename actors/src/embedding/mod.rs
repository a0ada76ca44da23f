//! Embedding: texts become vectors, in batches that are fair to tenants.

mod embedder;
mod queue;

pub use embedder::{Embedder, EmbedderArguments, EmbedderMessage, Embedding, EmbeddingMetrics, Urgency};
