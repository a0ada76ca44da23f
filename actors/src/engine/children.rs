//! The actors of a node, as children of its supervisors.

use super::LOADS_AT_ONCE;
use super::options::EngineOptions;
use super::start_error::StartError;
use crate::cluster::reconciler::{Reconciler, ReconcilerArguments};
use crate::cluster::replicas::Replicas;
use crate::embedding::{Embedder, EmbedderArguments, EmbedderQueue, EmbeddingMetrics, Opened};
use crate::gpu_rows::GpuRows;
use crate::ingest::jobs::{JobsActor, JobsArguments};
use crate::keeper::{Keeper, KeeperArguments};
use crate::meta::{Meta, MetaActor, MetaArguments};
use crate::shard::actor::ShardMetrics;
use crate::shard::content_cache::ContentCache;
use crate::shard::indexer::{Indexer, IndexerMetrics};
use crate::shard::read_threads::ReadThreads;
use crate::shard::text_writers::TextWriters;
use crate::shard::{ShardActor, ShardArguments};
use crate::shards::Shards;
use crate::supervision::{Child, RestartPolicy, Supervision, Supervisor};
use parking_lot::Mutex;
use prometheus::{IntCounterVec, Registry};
use ractor::Actor;
use ragged_kernels::Model;
use ragged_raft::group::Ground;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::sync::Semaphore;

/// A supervisor of these children, itself a child of the root.
pub(super) fn supervisor(name: &'static str, children: Vec<Child>, restarts: &IntCounterVec) -> Child {
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
pub(super) struct StorageGround {
    pub(super) ground: Ground,
    pub(super) replicas: Replicas,
    pub(super) found_shards: bool,
    pub(super) cache: Arc<ContentCache>,
    pub(super) gpu_rows: Arc<GpuRows>,
    pub(super) text_writers: Arc<TextWriters>,
}

/// The meta group's actor and those of all shards.
pub(super) fn storage_children(
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
pub(super) fn weights_bytes(devices: &[Opened]) -> usize {
    let spares = devices.iter().filter_map(|opened| opened.spare.as_ref()).map(|spare| &spare.device);
    devices.iter().map(|opened| &opened.device).chain(spares).map(|device| device.device.weights_bytes()).max().unwrap_or(0)
}

/// An embedder for each device.
pub(super) fn embedder_children(
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

/// The actor of ingestion jobs.
pub(super) fn jobs_child(arguments: JobsArguments) -> Child {
    Child::new("jobs", move |above| {
        let arguments = arguments.clone();
        async move { Ok(Actor::spawn_linked(None, JobsActor, arguments, above).await?.0.get_cell()) }
    })
}

/// The actor that keeps the memory budget.
pub(super) fn keeper_child(arguments: KeeperArguments) -> Child {
    Child::new("keeper", move |above| {
        let arguments = arguments.clone();
        async move { Ok(Actor::spawn_linked(None, Keeper, arguments, above).await?.0.get_cell()) }
    })
}

/// The actor that keeps replicas where they belong.
pub(super) fn reconciler_child(arguments: ReconcilerArguments) -> Child {
    Child::new("reconciler", move |above| {
        let arguments = arguments.clone();
        async move { Ok(Actor::spawn_linked(None, Reconciler, arguments, above).await?.0.get_cell()) }
    })
}
