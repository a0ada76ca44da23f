//! What a node is started with.

use crate::cluster::join;
use crate::cluster::reconciler::ReconcilerSettings;
use crate::cluster::tls::CertificateFiles;
use crate::embedding::{DeviceChoice, PrecisionChoice};
use crate::memory::MemoryLimits;
use std::path::PathBuf;
use std::time::Duration;

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Folder of everything that the node keeps.
    pub data_dir: PathBuf,
    /// Folder of the embedding model.
    pub model_dir: PathBuf,
    /// Number of shards of a cluster that is founded; an existing one keeps its own.
    pub shards: u16,
    /// The node among others.
    pub cluster: ClusterOptions,
    /// Devices that embed.
    pub embedding_device: DeviceChoice,
    /// What the processor multiplies when it embeds.
    pub embedding_precision: PrecisionChoice,
    /// Threads that embed.
    pub embedding_threads: usize,
    /// Tokens of an embedding batch at most.
    pub embedding_batch_tokens: usize,
    /// Reads and searches that run at once.
    pub search_threads: usize,
    /// Of what the encoder leaves of a GPU's memory, how many of a hundred bytes rows may have that are searched there.
    pub search_gpu_memory_percent: u8,
    /// What the parts of the node may hold in memory.
    pub memory: MemoryLimits,
    /// A partition that nobody has used for so long is unloaded.
    pub partition_idle: Duration,
    /// Limits of what clients may ask.
    pub limits: Limits,
}

/// How a node is one of many.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Address of the cluster port.
    pub listen: std::net::SocketAddr,
    /// `HOST:PORT` that other nodes reach it at.
    pub advertise: String,
    /// How to join, when the data folder is new; without it, the node founds a cluster.
    pub joining: Option<join::Joining>,
    /// The operator's certificates, when not the cluster's own are to be used.
    pub certificates: Option<CertificateFiles>,
    /// How replicas are kept.
    pub settings: ReconcilerSettings,
    /// Bytes of snapshots that the node sends in a second at most.
    pub snapshot_bytes_per_second: u64,
}

/// Limits of what clients may ask.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests of one key at once.
    pub in_flight_per_key: usize,
    /// Tokens that may wait to be embedded.
    pub queued_tokens: usize,
    /// Reads and searches that may wait.
    pub queued_searches: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { in_flight_per_key: 256, queued_tokens: 4 << 20, queued_searches: 4096 }
    }
}
