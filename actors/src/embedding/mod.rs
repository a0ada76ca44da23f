//! Embedding: texts become vectors, in batches that are fair to tenants.

mod choices;
mod devices;
mod embedder;
mod metrics;
mod opening;
mod query_cache;
mod queue;

pub use choices::{DeviceChoice, PrecisionChoice};
pub use devices::{BatchDevice, DeviceSlot, OpenDevice, Spare};
pub use embedder::{Embedder, EmbedderArguments, EmbedderMessage, EmbedderQueue, Embedding, Urgency};
pub use metrics::EmbeddingMetrics;
pub use opening::{Opened, Opening};
pub use query_cache::QueryCache;
