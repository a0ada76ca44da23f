//! Starts a node's actors and stops them: the tree is
//!
//! ```text
//! node ─┬─ shards ────┬─ meta
//!       │             └─ shard-0 … shard-n
//!       ├─ embedding ─── embedder-cpu, or embedder-gpu-0 …
//!       ├─ ingest ────── jobs
//!       ├─ reconciler
//!       ├─ keeper
//!       └─ sessions ──── one a key, started by its first request
//! ```

use crate::address::Address;
use crate::cluster::identity::{IdentityError, NodeIdentity};
use crate::cluster::links::Links;
use crate::cluster::listener::ClusterPort;
use crate::cluster::pace::Pace;
use crate::cluster::reconciler::{Reconciler, ReconcilerArguments, ReconcilerMessage, ReconcilerMetrics, ReconcilerSettings};
use crate::cluster::replicas::Replicas;
use crate::cluster::services::Services;
use crate::cluster::succession::{Succession, hand_over};
use crate::cluster::tls::{CertificateFiles, Credentials, TlsError};
use crate::cluster::transport::{LinkTransport, Receptions};
use crate::cluster::{authority, join, listener, recovery};
use crate::embedding::{
    DeviceChoice, Embedder, EmbedderArguments, EmbedderQueue, Embedding, EmbeddingMetrics, Opened, Opening, PrecisionChoice,
    QueryCache,
};
use crate::gpu_rows::GpuRows;
use crate::hedge::Hedge;
use crate::ingest::jobs::{JobsActor, JobsArguments, JobsMessage, JobsMetrics};
use crate::ingest::pipeline::{Pipeline, PipelineMetrics, now_ms};
use crate::keeper::{Keeper, KeeperArguments, KeeperMessage, KeeperMetrics};
use crate::memory::MemoryLimits;
use crate::meta::{Meta, MetaActor, MetaArguments};
use crate::search::Searcher;
use crate::session::{ApiKey, KeyError, Sessions};
use crate::shard::actor::ShardMetrics;
use crate::shard::content_cache::ContentCache;
use crate::shard::indexer::{Indexer, IndexerMetrics};
use crate::shard::read_threads::ReadThreads;
use crate::shard::text_writers::TextWriters;
use crate::shard::{ShardActor, ShardArguments};
use crate::shards::Shards;
use crate::supervision::{Child, RestartPolicy, Supervision, Supervisor, SupervisorMessage};
use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use ractor::concurrency::Duration;
use ractor::{Actor, ActorRef, ActorStatus, SpawnErr};
use ragged_kernels::Model;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::group::{Beginning, Ground};
use ragged_raft::ids::{DEFAULT_TENANT, NodeId};
use ragged_raft::meta::command::{MetaCommand, Role};
use ragged_raft::meta::node::{NodeRow, NodeState};
use ragged_raft::meta::{Founding, MetaGroup};
use ragged_raft::{Store, StoreOptions, lacks_space};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use tokio::sync::{Notify, Semaphore};

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

/// Partitions that are loaded at once.
pub(crate) const LOADS_AT_ONCE: usize = 2;
/// How long a start waits before it looks again whether a full disk has space.
const SPACE_AGAIN_AFTER: Duration = Duration::from_secs(5);
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
    /// Who the node is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Refounding the cluster was cut off.
    #[error("the cluster in {0} was being refounded, and that was cut off: run `ragged cluster refound` over it again")]
    HalfRefounded(PathBuf),
    /// Joining.
    #[error(transparent)]
    Join(#[from] join::JoinError),
    /// The cluster port's certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The cluster port.
    #[error("cannot listen on {address} for other nodes: {fault}; see cluster.listen")]
    ClusterPort {
        /// Its address.
        address: std::net::SocketAddr,
        /// What the system said.
        fault: std::io::Error,
    },
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
    pub(crate) services: Arc<Services>,
    pub(crate) supervisors: Supervisors,
    /// Told when a collection has been deleted, whose rows are to be cleared.
    pub(crate) dropped: Arc<Notify>,
    pub(crate) store: Arc<Store>,
    /// Bytes of the encoders' weights.
    pub(crate) encoder_bytes: usize,
    pub(crate) content_cache: Arc<ContentCache>,
    pub(crate) query_cache: Arc<QueryCache>,
    pub(crate) gpu_rows: Arc<GpuRows>,
    /// Bytes that loaded partitions hold.
    pub(crate) partition_bytes: IntGauge,
    pub(crate) text_writers: Arc<TextWriters>,
    /// What all of them may hold.
    pub(crate) memory: MemoryLimits,
    #[cfg(test)]
    pub(crate) keeper: Arc<Address<KeeperMessage>>,
    pub(crate) keeper_metrics: KeeperMetrics,
    port: ClusterPort,
}

impl Drop for Parts {
    /// Ends the clearing of deleted collections.
    fn drop(&mut self) {
        self.dropped.notify_one();
    }
}

#[cfg(test)]
impl Parts {
    pub(crate) fn embedding_address(&self) -> &Arc<Address<crate::embedding::EmbedderMessage>> {
        self.embedding.address()
    }
}

impl StartError {
    /// Whether a full disk may be the cause; others stay when there is space again.
    fn may_be_of_a_full_disk(&self) -> bool {
        use ragged_raft::StoreError::{Database, DiskFull, Folder, Syncer};
        matches!(self, StartError::Group(_) | StartError::Store(DiskFull(_) | Folder { .. } | Database(_) | Syncer(_)))
    }
}

/// The supervisors, from the root down.
pub(crate) struct Supervisors {
    root: ActorRef<SupervisorMessage>,
}

impl Engine {
    /// Starts a node. With a new data folder it founds a cluster, and then writes the admin key; or it joins one.
    pub async fn start(options: EngineOptions, registry: Registry) -> Result<Engine, StartError> {
        let gpu_rows = Arc::new(GpuRows::register(options.search_gpu_memory_percent, &registry)?);
        let (store, model, devices) = with_space(&options, || open(&options, &gpu_rows)).await?;
        let Begun { identity, found_shards, removed } = with_space(&options, || begin(&store, &options)).await?;
        let restarts =
            IntCounterVec::new(Opts::new("ragged_actor_restarts_total", "Restarts of actors."), &["supervisor", "actor"])?;
        registry.register(Box::new(restarts.clone()))?;

        let credentials = match &options.cluster.certificates {
            Some(files) => Credentials::of_files(files)?,
            None => Credentials::of_cluster(&identity)?,
        };
        let links = Links::new(&identity, credentials, options.cluster.advertise.clone())?;
        // Before anybody is let in.
        removed.into_iter().for_each(|node| links.forget(node));
        let replicas = Replicas::default();
        let transport = LinkTransport::new(links.clone(), Pace::new(options.cluster.snapshot_bytes_per_second));
        let ground = Ground { store: store.clone(), beginning: Beginning::Join, transport };
        let meta = Meta::new(links.clone());
        let shards = Shards::new(identity.shard_count, meta.clone(), links.clone(), Hedge::register(&registry)?);
        let queues: Vec<EmbedderQueue> = devices.iter().map(|device| EmbedderQueue::new(&device.embedder)).collect();
        let query_cache = Arc::new(QueryCache::register(options.memory.query_cache, &registry)?);
        let embedding_metrics = EmbeddingMetrics::register(&registry)?;
        let embedding = Embedding::new(model.clone(), queues.clone(), query_cache.clone(), &embedding_metrics);
        let pipeline = Pipeline::new(embedding.clone(), shards.clone(), PipelineMetrics::register(&registry)?);
        let searcher = Searcher::register(embedding.clone(), pipeline.clone(), shards.clone(), &registry)?;
        let sessions = Sessions::new(options.limits.in_flight_per_key);
        let jobs = Arc::new(Address::<JobsMessage>::new("jobs"));
        let jobs_metrics = JobsMetrics::register(&registry)?;
        let reconciler = Arc::new(Address::<ReconcilerMessage>::new("reconciler"));
        let services = Arc::new(Services {
            store: store.clone(),
            succession: Succession::default(),
            identity: identity.clone(),
            links,
            replicas: replicas.clone(),
            receptions: Receptions::default(),
            meta: meta.clone(),
            shards: shards.clone(),
            jobs: jobs.clone(),
            reconciler: reconciler.clone(),
        });
        // Before the groups: a cluster port that is taken ends the start with one clear line.
        let port = listen(options.cluster.listen, services.clone()).await?;

        let content_cache = Arc::new(ContentCache::register(options.memory.content_cache, &registry)?);
        let text_writers = Arc::new(TextWriters::new(options.memory.text_writer));
        let (cache, writers) = (content_cache.clone(), text_writers.clone());
        let storage = StorageGround { ground, replicas, found_shards, cache, gpu_rows: gpu_rows.clone(), text_writers: writers };
        let shard_metrics = ShardMetrics::register(&registry)?;
        let partition_bytes = shard_metrics.partition_bytes.clone();
        let storage = storage_children(&options, &storage, &meta, &shards, shard_metrics, &registry)?;
        let encoder_bytes = weights_bytes(&devices);
        let embedders = embedder_children(devices, queues, &model, &options, &embedding_metrics);
        let jobs_child = jobs_child(JobsArguments {
            address: jobs.clone(),
            shards: shards.clone(),
            pipeline: pipeline.clone(),
            meta: meta.clone(),
            metrics: jobs_metrics.clone(),
        });
        let reconciler_child = reconciler_child(ReconcilerArguments {
            address: reconciler,
            services: services.clone(),
            settings: options.cluster.settings,
            metrics: ReconcilerMetrics::register(&registry)?,
        });
        let keeper = Arc::new(Address::<KeeperMessage>::new("keeper"));
        let keeper_metrics = KeeperMetrics::register(&registry)?;
        let keeper_child = keeper_child(KeeperArguments {
            address: keeper.clone(),
            shards: shards.clone(),
            limits: options.memory,
            metrics: keeper_metrics.clone(),
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
            supervisor("embedding", embedders, &restarts),
            supervisor("ingest", vec![jobs_child], &restarts),
            reconciler_child,
            keeper_child,
            sessions_child,
        ];
        let root =
            Supervisor::start(Supervision { name: "node".into(), policy: RestartPolicy::default(), children, restarts }, None)
                .await?;
        let supervisors = Supervisors { root };
        let dropped = Arc::new(Notify::new());
        let parts = Parts {
            meta,
            shards,
            embedding,
            pipeline,
            searcher,
            sessions,
            jobs,
            jobs_metrics,
            services,
            supervisors,
            dropped,
            store,
            encoder_bytes,
            content_cache,
            query_cache,
            gpu_rows,
            partition_bytes,
            text_writers,
            memory: options.memory,
            #[cfg(test)]
            keeper,
            keeper_metrics,
            port,
        };
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
        for shard in self.parts.shards.ids() {
            let up = self.parts.shards.address(shard).is_ok_and(|address| address.current().is_some());
            check(up, shard.to_string());
        }
        check(self.parts.embedding.is_running(), "embedding".into());
        if self.parts.services.links.is_removed() {
            waiting.push(NotReady { part: "node".into(), reason: "has been removed from its cluster: stop it".into() });
        }
        // A node that has just joined knows no key and no collection yet.
        let knows_cluster = self.parts.meta.group().is_ok_and(|group| matches!(group.cluster(), Ok(Some(_))));
        if !knows_cluster {
            waiting.push(NotReady { part: "meta".into(), reason: "waits for what the cluster has agreed on".into() });
        }
        waiting
    }

    /// Shards whose replica on this node does not answer, or that have no leader, and why. The node serves them from other nodes where it can.
    pub fn ailing_shards(&self) -> Vec<NotReady> {
        let mut ailing = Vec::new();
        for shard in self.parts.shards.ids() {
            let Some(group) = self.parts.shards.group_here(shard) else { continue };
            let lost = group.group().leader_node().is_some_and(|leader| self.parts.services.links.is_unreachable(leader));
            let reason = match (group.group().votes(), group.group().is_led() && !lost) {
                (false, _) => "its replica on this node is being filled: others answer",
                (true, false) => "has no leader that this node knows of: it takes no writes",
                (true, true) => continue,
            };
            ailing.push(NotReady { part: shard.to_string(), reason: reason.into() });
        }
        ailing
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

    /// Hands on what the node leads, stops the actors, waiting for what is in flight until the deadline, and closes the store.
    pub async fn stop(&self, deadline: Duration) {
        failpoints::hit(Point::HandOverBefore);
        hand_over(&self.parts.services.replicas).await;
        failpoints::hit(Point::HandOverAfter);
        self.parts.port.close().await;
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

/// Does a step of the start. A member whose disk is full waits for space, as it would if the disk had become full while it served.
async fn with_space<T, Fut>(options: &EngineOptions, step: impl Fn() -> Fut) -> Result<T, StartError>
where
    Fut: Future<Output = Result<T, StartError>>,
{
    loop {
        match step().await {
            Err(fault)
                if fault.may_be_of_a_full_disk()
                    && NodeIdentity::is_there(&options.data_dir)
                    && lacks_space(&options.data_dir) =>
            {
                tracing::error!(%fault, data_dir = %options.data_dir.display(), "the disk is full: the start goes on once there is space again");
                tokio::time::sleep(SPACE_AGAIN_AFTER).await;
            }
            outcome => return outcome,
        }
    }
}

async fn open(options: &EngineOptions, gpu_rows: &Arc<GpuRows>) -> Result<(Arc<Store>, Arc<Model>, Vec<Opened>), StartError> {
    let (options, gpu_rows) = (options.clone(), gpu_rows.clone());
    let open = move || {
        let (block_cache_bytes, write_buffer_bytes) = (options.memory.block_cache, options.memory.write_buffers);
        let store = Store::open(&options.data_dir.join("store"), StoreOptions { block_cache_bytes, write_buffer_bytes })?;
        let model = Arc::new(Model::load(&options.model_dir).map_err(|fault| StartError::Model(fault.to_string()))?);
        let opening = Opening {
            choice: &options.embedding_device,
            precision: options.embedding_precision,
            threads: options.embedding_threads,
            batch_tokens: options.embedding_batch_tokens,
            kernels: options.data_dir.join("kernels"),
            gpu_rows: &gpu_rows,
        };
        let devices = opening.open(&model).map_err(|fault| StartError::Model(fault.to_string()))?;
        Ok((store, model, devices))
    };
    tokio::task::spawn_blocking(open).await.map_err(|fault| StartError::Group(fault.to_string()))?
}

/// How a node began.
struct Begun {
    identity: NodeIdentity,
    /// Whether it founds the shards' groups: it founded the cluster, and nobody has noted yet where they are.
    found_shards: bool,
    /// Nodes that have left for good, as far as it knows.
    removed: Vec<NodeId>,
}

/// Finds out who this node is: a member since before, the founder of a new cluster, or one that joins.
async fn begin(store: &Arc<Store>, options: &EngineOptions) -> Result<Begun, StartError> {
    let node = store.node();
    if recovery::is_being_refounded(&options.data_dir) {
        return Err(StartError::HalfRefounded(options.data_dir.clone()));
    }
    let known = NodeIdentity::load(&options.data_dir, node)?;
    if known.is_none()
        && let Some(joining) = &options.cluster.joining
    {
        let opened = store.clone();
        let meta_replica = tokio::task::spawn_blocking(move || opened.replica("meta")).await;
        let meta_replica = meta_replica.map_err(|fault| StartError::Group(fault.to_string()))??;
        failpoints::hit(Point::JoinBefore);
        let identity = join::join(joining, node, &options.cluster.advertise, meta_replica).await?;
        failpoints::hit(Point::JoinAnswered);
        identity.save(&options.data_dir)?;
        tracing::info!(%node, cluster = %identity.cluster, seed = joining.seed, "joined the cluster");
        return Ok(Begun { identity, found_shards: false, removed: Vec::new() });
    }
    let beginning = if known.is_none() { Beginning::Found } else { Beginning::Join };
    let ground = Ground { beginning, ..Ground::alone(store.clone()) };
    let group = MetaGroup::start(ground).await.map_err(|fault| StartError::Group(fault.to_string()))?;
    let identity = match known {
        Some(identity) => identity,
        None => found(&group, options).await?,
    };
    let cluster = group.cluster()?;
    // Nobody else can have moved them before they were noted.
    let found_shards = cluster.is_some_and(|row| row.founded_by == node) && group.all_places()?.is_empty();
    let removed = group.nodes()?.into_iter().filter(|row| row.state == NodeState::Removed).map(|row| row.node).collect();
    group.group().shutdown().await; // the meta actor starts its own
    Ok(Begun { identity, found_shards, removed })
}

/// Founds the cluster, as far as that has not been done, and certifies this node.
async fn found(group: &MetaGroup, options: &EngineOptions) -> Result<NodeIdentity, StartError> {
    let refused = |fault: ragged_raft::ProposeError| StartError::Group(fault.to_string());
    let node = group.group().store().node();
    if group.cluster()?.is_none() {
        // The key is written first: a crash in between leaves a key that the next start replaces, never a cluster without one.
        failpoints::hit(Point::AdminKeyBefore);
        let key = ApiKey::generate()?;
        write_admin_key(&options.data_dir, &key)?;
        let admin_key = key.record(DEFAULT_TENANT, Role::Admin, now_ms());
        let founding = Founding { shard_count: options.shards, admin_key, at_ms: now_ms() };
        group.found(founding).await.map_err(refused)?;
        failpoints::hit(Point::ClusterFounded);
        tracing::info!(shards = options.shards, key_file = %options.data_dir.join(ADMIN_KEY_FILE).display(), "founded a new cluster");
    }
    let cluster = group.cluster()?.ok_or_else(|| StartError::Group("the cluster was not founded".into()))?;
    if group.authority()?.is_none() {
        let authority = authority::found(cluster.cluster).map_err(IdentityError::from)?;
        let founder = NodeRow {
            node,
            address: options.cluster.advertise.clone(),
            meta_replica: group.group().replica(),
            state: NodeState::Active,
            joined_at_ms: now_ms(),
        };
        group.propose(&MetaCommand::Establish { authority, founder }).await.map_err(refused)?;
        failpoints::hit(Point::ClusterEstablished);
    }
    let authority = group.authority()?.ok_or_else(|| StartError::Group("the cluster has no authority".into()))?;
    let identity = NodeIdentity::issue(&authority, cluster.cluster, node, cluster.shard_count)?;
    identity.save(&options.data_dir)?;
    Ok(identity)
}

async fn listen(address: std::net::SocketAddr, services: Arc<Services>) -> Result<ClusterPort, StartError> {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|fault| StartError::ClusterPort { address, fault })?;
    Ok(listener::serve(listener, services)?)
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

/// What the groups are started with.
struct StorageGround {
    ground: Ground,
    replicas: Replicas,
    found_shards: bool,
    cache: Arc<ContentCache>,
    gpu_rows: Arc<GpuRows>,
    text_writers: Arc<TextWriters>,
}

fn storage_children(
    options: &EngineOptions,
    storage: &StorageGround,
    meta: &Meta,
    shards: &Shards,
    metrics: ShardMetrics,
    registry: &Registry,
) -> Result<Vec<Child>, StartError> {
    let threads = ReadThreads::start(options.search_threads, options.limits.queued_searches)
        .map_err(|fault| StartError::Group(format!("the threads that search could not be started: {fault}")))?;
    let (threads, loads) = (Arc::new(threads), Arc::new(Semaphore::new(LOADS_AT_ONCE)));
    let indexer = Indexer::new(IndexerMetrics::register(registry)?);
    let meta_arguments = MetaArguments { ground: storage.ground.clone(), replicas: storage.replicas.clone(), meta: meta.clone() };
    let mut children = vec![Child::new("meta", move |above| {
        let arguments = meta_arguments.clone();
        async move { Ok(Actor::spawn_linked(None, MetaActor, arguments, above).await?.0.get_cell()) }
    })];
    for shard in shards.ids() {
        let lost = |fault: crate::error::ServiceError| StartError::Group(fault.to_string());
        let arguments = ShardArguments {
            address: shards.address(shard).map_err(lost)?.clone(),
            shard,
            ground: storage.ground.clone(),
            founds: Arc::new(AtomicBool::new(storage.found_shards)),
            group: shards.group_slot(shard).map_err(lost)?,
            reads: shards.reads_slot(shard).map_err(lost)?,
            replicas: storage.replicas.clone(),
            folder: options.data_dir.join("partitions"),
            meta: meta.clone(),
            cache: storage.cache.clone(),
            gpu_rows: storage.gpu_rows.clone(),
            text_writers: storage.text_writers.clone(),
            tail_bytes_max: options.memory.tail_max(),
            threads: threads.clone(),
            loads: loads.clone(),
            indexer: indexer.clone(),
            partition_idle: options.partition_idle,
            metrics: metrics.clone(),
        };
        let arguments = Arc::new(arguments);
        children.push(Child::new(shard.group_name(), move |above| {
            let arguments = arguments.clone();
            async move { Ok(Actor::spawn_linked(None, ShardActor, arguments, above).await?.0.get_cell()) }
        }));
    }
    Ok(children)
}

/// Bytes of the encoders' weights. The processor's encoder, which may be the spare one of several GPUs, is there once.
fn weights_bytes(devices: &[Opened]) -> usize {
    let spares = devices.iter().filter_map(|opened| opened.spare.as_ref()).map(|spare| &spare.device);
    devices.iter().map(|opened| &opened.device).chain(spares).map(|device| device.device.weights_bytes()).max().unwrap_or(0)
}

fn embedder_children(
    devices: Vec<Opened>,
    queues: Vec<EmbedderQueue>,
    model: &Model,
    options: &EngineOptions,
    metrics: &EmbeddingMetrics,
) -> Vec<Child> {
    let child = |(opened, queue): (Opened, EmbedderQueue)| {
        let arguments = EmbedderArguments {
            queue,
            device: Arc::new(Mutex::new(Some(opened.device))),
            spare: opened.spare,
            dimension: model.dimension(),
            queued_tokens_max: options.limits.queued_tokens,
            metrics: metrics.clone(),
        };
        Child::new(opened.embedder, move |above| {
            let arguments = arguments.clone();
            async move { Ok(Actor::spawn_linked(None, Embedder, arguments, above).await?.0.get_cell()) }
        })
    };
    devices.into_iter().zip(queues).map(child).collect()
}

fn jobs_child(arguments: JobsArguments) -> Child {
    Child::new("jobs", move |above| {
        let arguments = arguments.clone();
        async move { Ok(Actor::spawn_linked(None, JobsActor, arguments, above).await?.0.get_cell()) }
    })
}

fn keeper_child(arguments: KeeperArguments) -> Child {
    Child::new("keeper", move |above| {
        let arguments = arguments.clone();
        async move { Ok(Actor::spawn_linked(None, Keeper, arguments, above).await?.0.get_cell()) }
    })
}

fn reconciler_child(arguments: ReconcilerArguments) -> Child {
    Child::new("reconciler", move |above| {
        let arguments = arguments.clone();
        async move { Ok(Actor::spawn_linked(None, Reconciler, arguments, above).await?.0.get_cell()) }
    })
}
