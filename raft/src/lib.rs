//! Replication: openraft groups over one RocksDB, and what they replicate.
//!
//! From the bottom up: [`codec`] frames everything that is written; [`Store`] is the node's one database with its one group-commit
//! [`syncer`]; [`log`] keeps the groups' logs in it and [`machine`] their state; [`group`] runs a group over the [`network`] that its node has, [`membership`] changes who is in it; [`recovery`] is the way out of a majority that is gone; [`meta`] and [`shard`] are the two kinds. All of it runs on what `runtime` gives: threads and the system or, for tests, a seed.

#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that cannot go on has failed

pub mod bytes;
pub mod codec;
pub mod failpoints;
pub mod group;
pub mod ids;
pub mod keys;
pub mod log;
pub mod machine;
pub mod membership;
pub mod meta;
pub mod mutant;
pub mod network;
mod power;
mod purge;
pub mod recovery;
#[cfg(not(feature = "simulation"))]
pub mod runtime;
pub mod shard;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod snapshot;
pub mod store;
pub mod syncer;
pub mod types;
mod watermark;

#[cfg(feature = "simulation")]
use simulation::runtime;
/// Builds for tests purge logs and build indexes after fewer entries, so that little work shows what much would.
pub const IS_FOR_TESTS: bool = cfg!(any(feature = "mutants", feature = "failpoints"));

pub use group::{ProposeError, WaitError};
pub use store::{ReadError, Store, StoreError, StoreMemory, StoreOptions, lacks_space};
