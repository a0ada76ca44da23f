//! Shards: the actor of one replica, and the partitions that it keeps.

pub mod actor;
pub mod indexer;
pub mod partition;
mod read;
pub mod read_threads;
pub mod request;
mod serving;

pub use actor::{ShardActor, ShardArguments, ShardMessage};
pub use request::{ShardRequest, ShardResponse};
