//! Starts a node's actors and stops them: the tree is
//!
//! ```text
//! node ─┬─ shards ────┬─ meta
//!       │             └─ shard-0 … shard-n
//!       ├─ embedding ─── embedder-cpu
//!       ├─ ingest ────── jobs
//!       └─ sessions ──── one a key, started by its first request
//! ```

use crate::address::Address;
use crate::embedding::{Embedder, EmbedderArguments, EmbedderMessage, Embedding, EmbeddingMetrics};
use crate::ingest::jobs::{JobsActor, JobsArguments, JobsMessage, JobsMetrics};
use crate::ingest::pipeline::{Pipeline, PipelineMetrics, now_ms};
use crate::meta::{Meta, MetaActor, MetaArguments};
use crate::search::Searcher;
use crate::session::{ApiKey, KeyError, Sessions};
use crate::shard::actor::{ReadGate, Residency, ShardMetrics};
use crate::shard::indexer::{Indexer, IndexerMetrics};
use crate::shard::{ShardActor, ShardArguments, ShardMessage};
use crate::shards::Shards;
use crate::supervision::{Child, RestartPolicy, Supervision, Supervisor, SupervisorMessage};
use prometheus::{IntCounterVec, Opts, Registry};
use ractor::concurrency::Duration;
use ractor::{Actor, ActorRef, ActorStatus, SpawnErr};
use ragged_kernels::{CpuDevice, Model};
use ragged_raft::group::Ground;
use ragged_raft::ids::{DEFAULT_TENANT, ShardId};
use ragged_raft::meta::command::Role;
use ragged_raft::meta::{Founding, MetaGroup};
use ragged_raft::{Store, StoreOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use tokio::sync::{Mutex, Notify};

/// Name of the file with the first admin key, in the data folder.
pub const ADMIN_KEY_FILE: &str = "admin.key";

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Folder of everything that the node keeps.
    pub data_dir: PathBuf,
    /// Folder of the embedding model.
    pub model_dir: PathBuf,
    /// Number of shards of a cluster that is founded; an existing one keeps its own.
    pub shards: u16,
    /// Threads that embed.
    pub embedding_threads: usize,
    /// Tokens of an embedding batch at most.
    pub embedding_batch_tokens: usize,
    /// Reads and searches that run at once.
    pub search_threads: usize,
    /// Memory for blocks of the database.
    pub block_cache_bytes: usize,
    /// Memory that loaded partitions may hold.
    pub partitions_bytes: usize,
    /// A partition that nobody has used for so long is unloaded.
    pub partition_idle: Duration,
    /// Limits of what clients may ask.
    pub limits: Limits,
}

/// How long clearing a deleted collection waits after a failure.
const CLEAR_AGAIN_AFTER: Duration = Duration::from_secs(5);

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

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Store(#[from] ragged_raft::StoreError),
    /// A row of it.
    #[error(transparent)]
    Read(#[from] ragged_raft::ReadError),
    /// The model.
    #[error("the embedding model cannot be used: {0}")]
    Model(String),
    /// A group.
    #[error("replication did not start: {0}")]
    Group(String),
    /// An actor.
    #[error("an actor did not start: {0}")]
    Actor(#[from] SpawnErr),
    /// The admin key.
    #[error("the admin key could not be written to {path}: {fault}")]
    AdminKey {
        /// Where to.
        path: PathBuf,
        /// Why.
        fault: std::io::Error,
    },
    /// Random bits.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The metrics.
    #[error("metrics could not be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A part of the node that cannot serve yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReady {
    /// The part.
    pub part: String,
    /// Why.
    pub reason: String,
}

/// A running node.
#[derive(Clone)]
pub struct Engine {
    pub(crate) parts: Arc<Parts>,
}

/// What requests need of a node.
pub(crate) struct Parts {
    pub(crate) meta: Meta,
    pub(crate) shards: Shards,
    pub(crate) embedding: Embedding,
    pub(crate) pipeline: Pipeline,
    pub(crate) searcher: Searcher,
    pub(crate) sessions: Sessions,
    pub(crate) jobs: Arc<Address<JobsMessage>>,
    pub(crate) jobs_metrics: JobsMetrics,
    pub(crate) supervisors: Supervisors,
    /// Told when a collection has been deleted, whose rows are to be cleared.
    pub(crate) dropped: Arc<Notify>,
    store: Arc<Store>,
}

impl Drop for Parts {
    /// Ends the clearing of deleted collections.
    fn drop(&mut self) {
        self.dropped.notify_one();
    }
}

#[cfg(test)]
impl Parts {
    pub(crate) fn embedding_address(&self) -> &Arc<Address<EmbedderMessage>> {
        self.embedding.address()
    }
}

/// The supervisors, from the root down.
pub(crate) struct Supervisors {
    root: ActorRef<SupervisorMessage>,
}

impl Engine {
    /// Starts a node. Founds a cluster when the data folder is new, and then writes the admin key.
    pub async fn start(options: EngineOptions, registry: Registry) -> Result<Engine, StartError> {
        let (store, model, device) = open(&options).await?;
        let shard_count = found_if_new(&store, &options).await?;
        let restarts =
            IntCounterVec::new(Opts::new("ragged_actor_restarts_total", "Restarts of actors."), &["supervisor", "actor"])?;
        registry.register(Box::new(restarts.clone()))?;

        let meta = Meta::default();
        let shard_addresses: Vec<_> =
            (0..shard_count).map(|shard| Arc::new(Address::<ShardMessage>::new(format!("shard {shard}")))).collect();
        let shards = Shards::new(shard_addresses);
        let embedder = Arc::new(Address::<EmbedderMessage>::new("embedder"));
        let embedding = Embedding::new(model.clone(), embedder.clone());
        let pipeline = Pipeline::new(embedding.clone(), shards.clone(), PipelineMetrics::register(&registry)?);
        let searcher = Searcher::register(embedding.clone(), pipeline.clone(), shards.clone(), &registry)?;
        let sessions = Sessions::new(options.limits.in_flight_per_key);
        let jobs = Arc::new(Address::<JobsMessage>::new("jobs"));
        let jobs_metrics = JobsMetrics::register(&registry)?;

        let storage = storage_children(&options, &store, &meta, &shards, &registry)?;
        let embedder_child = embedder_child(EmbedderArguments {
            address: embedder,
            device,
            dimension: model.dimension(),
            batch_tokens: options.embedding_batch_tokens,
            queued_tokens_max: options.limits.queued_tokens,
            metrics: EmbeddingMetrics::register(&registry)?,
        });
        let jobs_child = jobs_child(JobsArguments {
            address: jobs.clone(),
            shards: shards.clone(),
            pipeline: pipeline.clone(),
            meta: meta.clone(),
            metrics: jobs_metrics.clone(),
        });
        let sessions_child = {
            let sessions = sessions.clone();
            Child::new("sessions", move |above| {
                let sessions = sessions.clone();
                async move { sessions.start(above).await }
            })
        };
        let children = vec![
            supervisor("shards", storage, &restarts),
            supervisor("embedding", vec![embedder_child], &restarts),
            supervisor("ingest", vec![jobs_child], &restarts),
            sessions_child,
        ];
        let root =
            Supervisor::start(Supervision { name: "node".into(), policy: RestartPolicy::default(), children, restarts }, None)
                .await?;
        let supervisors = Supervisors { root };
        let dropped = Arc::new(Notify::new());
        let parts =
            Parts { meta, shards, embedding, pipeline, searcher, sessions, jobs, jobs_metrics, supervisors, dropped, store };
        let parts = Arc::new(parts);
        tokio::spawn(clear_dropped(parts.dropped.clone(), Arc::downgrade(&parts)));
        Ok(Engine { parts })
    }

    /// What cannot serve right now; empty when everything can. Cheap: no actor is asked.
    pub fn readiness(&self) -> Vec<NotReady> {
        let mut waiting = Vec::new();
        let mut check = |up: bool, part: String| {
            if !up {
                waiting.push(NotReady { part, reason: "is being started again after a failure".into() });
            }
        };
        check(self.parts.meta.address().current().is_some(), "meta".into());
        for (number, address) in self.parts.shards.addresses().iter().enumerate() {
            check(address.current().is_some(), format!("shard {number}"));
        }
        check(self.parts.embedding.is_running(), "embedding".into());
        waiting
    }

    /// Resolves when the root supervisor has given up, with what is known: the node must end.
    pub async fn failed(&self) -> String {
        let root = &self.parts.supervisors.root;
        while !matches!(root.get_status(), ActorStatus::Stopped) {
            if root.get_cell().wait(None).await.is_err() {
                break;
            }
        }
        "the supervisors have given up, see the errors above".into()
    }

    /// Stops the actors, waiting for what is in flight until the deadline, and closes the store.
    pub async fn stop(&self, deadline: Duration) {
        let root = &self.parts.supervisors.root;
        if root.get_cell().stop_and_wait(Some("shutdown".into()), Some(deadline)).await.is_err() {
            tracing::warn!("some actors did not stop in time; what was acknowledged is durable all the same");
        }
        let store = self.parts.store.clone();
        if tokio::task::spawn_blocking(move || store.close()).await.is_err() {
            tracing::warn!("the store did not close cleanly; what was acknowledged is durable all the same");
        }
    }
}

/// Clears collections out of the shards once they are deleted, those first whose clearing a crash interrupted.
async fn clear_dropped(dropped: Arc<Notify>, parts: Weak<Parts>) {
    while let Some(node) = parts.upgrade() {
        let cleared = node.drop_leftovers().await;
        drop(node);
        match cleared {
            Ok(()) => dropped.notified().await,
            Err(fault) => {
                tracing::warn!(%fault, "collections that were deleted could not be cleared yet, trying again");
                tokio::time::sleep(CLEAR_AGAIN_AFTER).await;
            }
        }
    }
}

async fn open(options: &EngineOptions) -> Result<(Arc<Store>, Arc<Model>, Arc<CpuDevice>), StartError> {
    let options = options.clone();
    let open = move || {
        let store_options = StoreOptions { block_cache_bytes: options.block_cache_bytes, ..StoreOptions::default() };
        let store = Store::open(&options.data_dir.join("store"), store_options)?;
        let model = Arc::new(Model::load(&options.model_dir).map_err(|fault| StartError::Model(fault.to_string()))?);
        let device =
            CpuDevice::new(model.clone(), options.embedding_threads).map_err(|fault| StartError::Model(fault.to_string()))?;
        Ok((store, model, Arc::new(device)))
    };
    tokio::task::spawn_blocking(open).await.map_err(|fault| StartError::Group(fault.to_string()))?
}

/// Founds the cluster when there is none. Returns the number of shards.
async fn found_if_new(store: &Arc<Store>, options: &EngineOptions) -> Result<u16, StartError> {
    let group = MetaGroup::start(Ground::alone(store.clone())).await.map_err(|fault| StartError::Group(fault.to_string()))?;
    let shard_count = match group.cluster()? {
        Some(cluster) => cluster.shard_count,
        None => {
            // The key is written first: a crash in between leaves a key that the next start replaces, never a cluster without one.
            let key = ApiKey::generate()?;
            write_admin_key(&options.data_dir, &key)?;
            let admin_key = key.record(DEFAULT_TENANT, Role::Admin, now_ms());
            let founding = Founding { shard_count: options.shards, admin_key, at_ms: now_ms() };
            group.found(founding).await.map_err(|fault| StartError::Group(fault.to_string()))?;
            tracing::info!(shards = options.shards, key_file = %options.data_dir.join(ADMIN_KEY_FILE).display(), "founded a new cluster");
            options.shards
        }
    };
    group.group().shutdown().await; // the meta actor starts its own
    Ok(shard_count)
}

/// Writes the key so that only its owner can read it, whole or not at all.
fn write_admin_key(folder: &Path, key: &ApiKey) -> Result<(), StartError> {
    let path = folder.join(ADMIN_KEY_FILE);
    let write = || -> std::io::Result<()> {
        // Temporary files are made readable by their owner only.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        writeln!(file, "{}", key.reveal())?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(|fault| StartError::AdminKey { path: path.clone(), fault })
}

fn supervisor(name: &'static str, children: Vec<Child>, restarts: &IntCounterVec) -> Child {
    let restarts = restarts.clone();
    Child::new(name, move |above| {
        let supervision = Supervision {
            name: name.into(),
            policy: RestartPolicy::default(),
            children: children.clone(),
            restarts: restarts.clone(),
        };
        async move { Ok(Supervisor::start(supervision, Some(above)).await?.get_cell()) }
    })
}

fn storage_children(
    options: &EngineOptions,
    store: &Arc<Store>,
    meta: &Meta,
    shards: &Shards,
    registry: &Registry,
) -> Result<Vec<Child>, StartError> {
    let gate = Arc::new(ReadGate::new(options.search_threads, options.limits.queued_searches));
    let indexer = Indexer::new(IndexerMetrics::register(registry)?);
    let metrics = ShardMetrics::register(registry)?;
    let residency = Residency { idle: options.partition_idle, bytes: options.partitions_bytes / shards.addresses().len().max(1) };
    let meta_arguments = MetaArguments { store: store.clone(), meta: meta.clone() };
    let mut children = vec![Child::new("meta", move |above| {
        let arguments = meta_arguments.clone();
        async move { Ok(Actor::spawn_linked(None, MetaActor, arguments, above).await?.0.get_cell()) }
    })];
    for (number, address) in shards.addresses().iter().enumerate() {
        let arguments = ShardArguments {
            address: address.clone(),
            shard: ShardId(number as u16),
            store: store.clone(),
            group: Arc::new(Mutex::new(None)),
            folder: options.data_dir.join("partitions"),
            gate: gate.clone(),
            indexer: indexer.clone(),
            residency,
            metrics: metrics.clone(),
        };
        children.push(Child::new(format!("shard-{number}"), move |above| {
            let arguments = arguments.clone();
            async move { Ok(Actor::spawn_linked(None, ShardActor, arguments, above).await?.0.get_cell()) }
        }));
    }
    Ok(children)
}

fn embedder_child(arguments: EmbedderArguments) -> Child {
    Child::new("embedder-cpu", move |above| {
        let arguments = arguments.clone();
        async move { Ok(Actor::spawn_linked(None, Embedder, arguments, above).await?.0.get_cell()) }
    })
}

fn jobs_child(arguments: JobsArguments) -> Child {
    Child::new("jobs", move |above| {
        let arguments = arguments.clone();
        async move { Ok(Actor::spawn_linked(None, JobsActor, arguments, above).await?.0.get_cell()) }
    })
}
