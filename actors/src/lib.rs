//! The supervised actors of a node, and the [`Engine`] that starts them.
//!
//! Data passes in this order: [`service`] lets a request in through its [`session`]; [`ingest`] brings documents through [`embedding`] into a
//! [`shard`]; [`search`] asks [`shards`] and merges what they found; [`hedge`] says when a slow one is not waited for. [`meta`] knows collections and keys. [`supervision`] restarts what fails, and
//! an [`address`] reaches an actor across its restarts. [`gpu_rows`] are vectors that GPUs search for shards, and [`account_seconds`] whose searches and texts devices worked for. [`memory`] says where the node's memory is, and the [`keeper`] keeps it within its budget.

#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that unwraps fails, and says where

pub mod account_seconds;
pub mod address;
pub mod cluster;
pub mod embedding;
pub mod engine;
pub mod error;
pub mod filter;
pub mod fusion;
pub mod gpu_rows;
pub mod hedge;
pub mod ingest;
pub mod keeper;
pub mod memory;
pub mod meta;
mod program_pages;
pub mod search;
pub mod service;
pub mod session;
pub mod shard;
pub mod shards;
pub mod supervision;
pub mod token;

#[cfg(test)]
mod injected_panics;
#[cfg(test)]
mod installed_model;

pub use cluster::join::Joining;
pub use cluster::operator::{Finding, NodeReport, ReplicaReport, ReplicaRole, ShardReport};
pub use cluster::reconciler::ReconcilerSettings;
pub use cluster::recovery::{Recovered, RefoundError, Refounded, refound};
pub use cluster::tls::CertificateFiles;
pub use engine::{ClusterOptions, Engine, EngineOptions, Limits, NotReady, StartError};
pub use error::{ErrorKind, ServiceError};
pub use filter::{Condition, Filter, Scalar, Test};
pub use fusion::Mode;
pub use gpu_rows::GpuUse;
pub use ingest::{Import, ImportOutcome, ImportRefusal, UploadDocument};
pub use memory::{MemoryLimits, PartMemory, ProcessMemory};
pub use ragged_raft::StoreOptions;
pub use ragged_raft::ids::{NodeId, RowId, ShardId};
pub use ragged_raft::meta::collection::{Collection, ModelRevision, VectorSettings};
pub use ragged_raft::meta::node::NodeState;
pub use ragged_raft::shard::command::Upserted;
pub use ragged_raft::shard::rows::{DocumentHead, JobRow, JobStage, TextFormat};
pub use search::{Found, Freshness, Search, SearchOutcome, ShardPlan};
pub use service::{Counts, CreateCollection, Deleted, EmbeddingChoice, Session, Uploaded};
pub use session::Principal;
pub use shard::partition::Recall;
pub use shard::request::StoredDocument;
pub use token::WriteToken;
