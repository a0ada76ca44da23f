//! Shards: the actor of one replica, and the partitions that it keeps.

pub mod actor;
pub mod indexer;
pub mod partition;
pub mod request;

pub use actor::{ShardActor, ShardArguments, ShardMessage};
pub use request::{ShardRequest, ShardResponse};
