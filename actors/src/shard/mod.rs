//! Shards: the actor of one replica, and the partitions that it keeps.

pub mod actor;
pub mod content_cache;
pub mod indexer;
pub(crate) mod loaded;
pub mod partition;
mod read;
pub mod read_threads;
pub mod request;
pub(crate) mod serving;
pub mod text_writers;

pub use actor::{ShardActor, ShardArguments, ShardMessage};
pub use request::{ShardRequest, ShardResponse};
