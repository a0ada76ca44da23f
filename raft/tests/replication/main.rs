//! What replication promises, tested from outside: each file is one promise or a family of them.
#![allow(clippy::unwrap_used, missing_docs)]

mod changes;
mod crash;
mod fixture;
mod meta;
mod peers;
mod restart;
mod shard;
mod snapshot;
mod store;
