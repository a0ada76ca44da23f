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

mod begin;
mod children;
mod options;
mod start_error;

pub use options::{ClusterOptions, EngineOptions, Limits};
pub use start_error::StartError;

use crate::address::Address;
use crate::cluster::identity::NodeIdentity;
use crate::cluster::links::Links;
use crate::cluster::listener::{self, ClusterPort};
use crate::cluster::pace::Pace;
use crate::cluster::reconciler::{ReconcilerArguments, ReconcilerMessage, ReconcilerMetrics};
use crate::cluster::replicas::Replicas;
use crate::cluster::services::Services;
use crate::cluster::succession::{Succession, hand_over};
use crate::cluster::tls::Credentials;
use crate::cluster::transport::{LinkTransport, Receptions};
use crate::embedding::{EmbedderQueue, Embedding, EmbeddingMetrics, Opened, Opening, QueryCache};
use crate::gpu_rows::GpuRows;
use crate::hedge::Hedge;
use crate::ingest::jobs::{JobsArguments, JobsMessage, JobsMetrics};
use crate::ingest::pipeline::{Pipeline, PipelineMetrics};
use crate::keeper::{KeeperArguments, KeeperMessage, KeeperMetrics};
use crate::memory::MemoryLimits;
use crate::meta::Meta;
use crate::search::Searcher;
use crate::session::Sessions;
use crate::shard::actor::ShardMetrics;
use crate::shard::content_cache::ContentCache;
use crate::shard::text_writers::TextWriters;
use crate::shards::Shards;
use crate::supervision::{Child, RestartPolicy, Supervision, Supervisor, SupervisorMessage};
use begin::Begun;
use children::{
    StorageGround, embedder_children, jobs_child, keeper_child, reconciler_child, storage_children, supervisor, weights_bytes,
};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use ractor::concurrency::Duration;
use ractor::{ActorRef, ActorStatus};
use ragged_kernels::Model;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::group::{Beginning, Ground};
use ragged_raft::{Store, StoreOptions, lacks_space};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// Partitions that are loaded at once.
pub(crate) const LOADS_AT_ONCE: usize = 2;
/// How long a start waits before it looks again whether a full disk has space.
const SPACE_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long clearing a deleted collection waits after a failure.
const CLEAR_AGAIN_AFTER: Duration = Duration::from_secs(5);

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

/// The supervisors, from the root down.
pub(crate) struct Supervisors {
    root: ActorRef<SupervisorMessage>,
}

impl Engine {
    /// Starts a node. With a new data folder it founds a cluster, and then writes the admin key; or it joins one.
    pub async fn start(options: EngineOptions, registry: Registry) -> Result<Engine, StartError> {
        let gpu_rows = Arc::new(GpuRows::register(options.search_gpu_memory_percent, &registry)?);
        let (store, model, devices) = with_space(&options, || open(&options, &gpu_rows)).await?;
        let Begun { identity, found_shards, removed } = with_space(&options, || begin::begin(&store, &options)).await?;
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
            stopping: AtomicBool::new(false),
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
        let services = &self.parts.services;
        services.stopping.store(true, Ordering::Relaxed);
        hand_over(&services.replicas, &services.links).await;
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

async fn listen(address: std::net::SocketAddr, services: Arc<Services>) -> Result<ClusterPort, StartError> {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|fault| StartError::ClusterPort { address, fault })?;
    Ok(listener::serve(listener, services)?)
}
