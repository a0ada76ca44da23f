//! The actor of one shard replica. It owns the replica's Raft group and its loaded partitions.
//!
//! Its mailbox only hands out work: proposals wait on their own tasks, reads and searches run on threads that the whole
//! node has for them. A request names a tenant and a collection; that the collection is the tenant's is checked here, whoever asks.

use crate::address::{Address, Reply};
use crate::cluster::replicas::Replicas;
use crate::error::ServiceError;
use crate::gpu_rows::GpuRows;
use crate::meta::Meta;
use crate::shard::content_cache::ContentCache;
use crate::shard::indexer::Indexer;
use crate::shard::loaded::LoadedPartitions;
use crate::shard::partition::{Partition, SearchMetrics};
use crate::shard::read_threads::ReadThreads;
use crate::shard::request::{ShardFreshness, ShardRequest, ShardResponse};
use crate::shard::serving::{Place, Replica, Request, check_tenant, may_answer, not_hosted, remove_checkpoint};
use crate::shard::text_writers::TextWriters;
use crate::supervision::StorageFault;
use arc_swap::ArcSwapOption;
use parking_lot::RwLock;
use prometheus::{IntGauge, Registry};
use ractor::concurrency::{Duration, JoinHandle};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ragged_raft::failpoints::{self, Point};
use ragged_raft::group::{Beginning, Ground};
use ragged_raft::ids::{CollectionId, ReplicaId, ShardId, TenantId};
use ragged_raft::recovery::{LogEnd, RecoveryError, log_end, make_sole_voter};
use ragged_raft::shard::group::ShardGroup;
use ragged_raft::shard::reader::ShardReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

/// How often idle partitions and waiting rows are looked at.
const TICK: Duration = Duration::from_millis(500);

/// A message: somebody's request, or the actor's own clock.
pub enum ShardMessage {
    /// A request.
    Ask {
        /// Whom it acts for.
        tenant: TenantId,
        /// How fresh the replica must be.
        freshness: ShardFreshness,
        /// What is asked.
        request: ShardRequest,
        /// Where the answer goes.
        reply: Reply<ShardResponse>,
    },
    /// Time to look after the partitions.
    Tick,
    /// Keep a replica, if there is none yet.
    Host {
        /// Told the replica.
        reply: Reply<ReplicaId>,
    },
    /// Give up a replica that has left its group.
    Unhost {
        /// Which, so that no later one is meant.
        replica: ReplicaId,
        /// Told when it is gone.
        reply: Reply<()>,
    },
    /// Go on alone, without the group's other replicas; or found the shard, when nothing of it is here.
    Recover {
        /// The replica that is to go on, and where its log must end; none to found the shard.
        from: Option<(ReplicaId, LogEnd)>,
        /// Told the replica.
        reply: Reply<ReplicaId>,
    },
    /// The Raft group has failed.
    GroupFailed {
        /// Whose.
        replica: ReplicaId,
        /// Why.
        fault: String,
    },
    /// A panic on purpose, to test what stands above.
    #[cfg(test)]
    Panic,
}

/// What a shard actor is started with.
pub struct ShardArguments {
    /// Told where the actor is.
    pub address: Arc<Address<ShardMessage>>,
    /// The shard.
    pub shard: ShardId,
    /// What its replica is started with.
    pub ground: Ground,
    /// Whether the actor's next start founds the group; false from then on, so that a replica which was given up is never founded anew.
    pub founds: Arc<AtomicBool>,
    /// The replica that runs, for those who only look at it; held by the actor before this one until this one has ended it.
    pub group: Arc<RwLock<Option<ShardGroup>>>,
    /// The replica that runs, for reads, which do without the actor.
    pub reads: Arc<ArcSwapOption<Replica>>,
    /// Told of the replica.
    pub replicas: Replicas,
    /// Folder of the partitions' checkpoints.
    pub folder: PathBuf,
    /// Where collections are looked up.
    pub meta: Meta,
    /// What hits have shown lately, on this node.
    pub cache: Arc<ContentCache>,
    /// Threads of all reads on this node.
    pub threads: Arc<ReadThreads>,
    /// How many partitions may be loaded at once on this node: loading one may build its index anew, which no search of another waits for.
    pub loads: Arc<Semaphore>,
    /// Builds indexes, for all shards of this node.
    pub indexer: Arc<Indexer>,
    /// The node's rows on GPUs.
    pub gpu_rows: Arc<GpuRows>,
    /// The node's writers of indexes of words.
    pub text_writers: Arc<TextWriters>,
    /// Memory of a partition's waiting rows with which they are indexed at once.
    pub tail_bytes_max: usize,
    /// A partition that nobody has used for so long is unloaded.
    pub partition_idle: Duration,
    /// Counters.
    pub metrics: ShardMetrics,
}

impl ShardArguments {
    /// Folder of all partitions' checkpoints of the shard.
    fn shard_folder(&self) -> PathBuf {
        self.folder.join(format!("shard-{:03}", self.shard.0))
    }

    /// Folder of one partition's checkpoint.
    pub(super) fn partition_folder(&self, tenant: TenantId, collection: CollectionId) -> PathBuf {
        self.shard_folder().join(format!("tenant-{}", tenant.0)).join(format!("collection-{}", collection.0))
    }
}

/// What shard actors count.
#[derive(Clone)]
pub struct ShardMetrics {
    /// Partitions that are loaded.
    pub partitions: IntGauge,
    /// Bytes that loaded partitions hold.
    pub partition_bytes: IntGauge,
    /// What searches did.
    pub search: SearchMetrics,
}

impl ShardMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = ShardMetrics {
            partitions: IntGauge::new("ragged_partitions_loaded", "Partitions that are loaded.")?,
            partition_bytes: IntGauge::new("ragged_partition_bytes", "Bytes of memory that loaded partitions hold.")?,
            search: SearchMetrics::register(registry)?,
        };
        registry.register(Box::new(metrics.partitions.clone()))?;
        registry.register(Box::new(metrics.partition_bytes.clone()))?;
        Ok(metrics)
    }
}

/// The actor of one shard replica.
pub struct ShardActor;

/// What a shard actor knows.
pub struct ShardState {
    arguments: Arc<ShardArguments>,
    /// The replica; none when this node keeps none of the shard.
    running: Option<Running>,
    partitions: Arc<LoadedPartitions>,
    clock: JoinHandle<()>,
}

/// A replica that runs.
struct Running {
    replica: Arc<Replica>,
    watcher: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Drop for ShardState {
    fn drop(&mut self) {
        self.clock.abort();
        self.withdraw_reads();
    }
}

impl Actor for ShardActor {
    type Msg = ShardMessage;
    type State = ShardState;
    type Arguments = Arc<ShardArguments>;

    async fn pre_start(
        &self,
        myself: ActorRef<ShardMessage>,
        arguments: Arc<ShardArguments>,
    ) -> Result<ShardState, ActorProcessingErr> {
        end_group(&arguments).await; // of the actor before this one: two of one replica at a time could vote twice
        let founds = arguments.founds.load(Ordering::Acquire);
        let keeps = founds || arguments.ground.store.replica_of(&arguments.shard.group_name()).is_some();
        let partitions = Arc::new(LoadedPartitions::new(arguments.metrics.clone()));
        let running = if keeps { Some(start_replica(&arguments, &partitions, founds, &myself).await?) } else { None };
        arguments.founds.store(false, Ordering::Release);
        let clock = myself.send_interval(TICK, || ShardMessage::Tick);
        arguments.address.moved_to(myself);
        let state = ShardState { arguments, running, partitions, clock };
        state.publish_reads();
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<ShardMessage>,
        message: ShardMessage,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ShardMessage::Host { reply } => {
                let hosted = state.host(&myself).await;
                let _ = reply.send(hosted); // the caller may have gone
            }
            ShardMessage::Unhost { replica, reply } => {
                let given_up = state.unhost(replica).await;
                let _ = reply.send(given_up); // the caller may have gone
            }
            ShardMessage::Recover { from, reply } => {
                let recovered = state.recover(from, &myself).await;
                let fault = recovered.as_ref().err().map(|fault| StorageFault::new(fault, &state.arguments.ground.store));
                let _ = reply.send(recovered); // the caller may have gone
                if let Some(fault) = fault {
                    return Err(fault.into()); // the next actor starts the replica as it is
                }
            }
            ShardMessage::Ask { tenant, freshness, request, reply } => state.serve(tenant, freshness, request, reply),
            ShardMessage::Tick => state.look_after_partitions(),
            ShardMessage::GroupFailed { replica, fault } => {
                let current = state.running.as_ref().is_some_and(|running| running.replica.group.group().replica() == replica);
                if current {
                    let what = format!("{}: {fault}", state.arguments.shard);
                    return Err(StorageFault::new(what, &state.arguments.ground.store).into());
                }
            }
            #[cfg(test)]
            ShardMessage::Panic => panic!("injected"),
        }
        Ok(())
    }

    async fn post_stop(&self, _myself: ActorRef<ShardMessage>, state: &mut ShardState) -> Result<(), ActorProcessingErr> {
        state.withdraw_reads();
        end_group(&state.arguments).await;
        Ok(())
    }
}

async fn start_replica(
    arguments: &Arc<ShardArguments>,
    partitions: &Arc<LoadedPartitions>,
    founds: bool,
    myself: &ActorRef<ShardMessage>,
) -> Result<Running, StorageFault> {
    let beginning = if founds { Beginning::Found } else { Beginning::Join };
    let ground = Ground { beginning, ..arguments.ground.clone() };
    let started = ShardGroup::start(ground, arguments.shard).await;
    let group = started.map_err(|fault| StorageFault::new(fault, &arguments.ground.store))?;
    let (reader, folder) = (group.reader(), arguments.shard_folder());
    if tokio::task::spawn_blocking(move || clear_leftovers(&folder, &reader)).await.is_err() {
        tracing::warn!(shard = %arguments.shard, "files of deleted collections may be left behind");
    }
    *arguments.group.write() = Some(group.clone());
    arguments.replicas.add(group.group().clone());
    let watcher = tokio::spawn({
        let (group, myself) = (group.clone(), myself.clone());
        async move {
            let fault = group.failed().await;
            let replica = group.group().replica();
            let _ = myself.send_message(ShardMessage::GroupFailed { replica, fault }); // the actor may have ended as well
        }
    });
    Ok(Running { replica: Arc::new(Replica::new(arguments.clone(), group, partitions.clone())), watcher })
}

async fn end_group(arguments: &ShardArguments) {
    let ended = arguments.group.write().take();
    if let Some(group) = ended {
        arguments.replicas.remove(group.group().replica());
        group.shutdown().await;
    }
}

/// Removes index files of collections that have nothing here: they were deleted, and the node ended before their files went.
fn clear_leftovers(shard_folder: &Path, reader: &ShardReader) {
    for (tenant, tenant_folder) in numbered(shard_folder, "tenant-") {
        for (collection, folder) in numbered(&tenant_folder, "collection-") {
            if matches!(reader.partition(TenantId(tenant), CollectionId(collection)), Ok(None))
                && let Err(fault) = Partition::remove(&folder)
            {
                tracing::warn!(folder = %folder.display(), %fault, "files of a deleted collection are left behind");
            }
        }
    }
}

/// Folders in a folder whose names are this and a number.
fn numbered(folder: &Path, name: &str) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix(name)?.parse().ok();
    entries.filter_map(|entry| Some((number(&entry.path())?, entry.path()))).collect()
}

/// Removes the index files of a replica that was given up.
fn clear_folder(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(fault) if fault.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %fault, "index files of a replica that was given up are left behind");
        }
        _ => {}
    }
}

impl ShardState {
    /// Keeps a replica of the shard, which waits for the group's leader to add it.
    async fn host(&mut self, myself: &ActorRef<ShardMessage>) -> Result<ReplicaId, ServiceError> {
        if self.running.is_none() {
            failpoints::hit(Point::HostBefore);
            let started = start_replica(&self.arguments, &self.partitions, false, myself).await;
            self.running = Some(started.map_err(|fault| ServiceError::unavailable("shard_unavailable", fault.to_string()))?);
            self.publish_reads();
        }
        failpoints::hit(Point::HostAfter);
        match &self.running {
            Some(running) => Ok(running.replica.group.group().replica()),
            None => Err(not_hosted(self.arguments.shard)),
        }
    }

    /// Gives up a replica that has left its group, with everything it kept.
    async fn unhost(&mut self, replica: ReplicaId) -> Result<(), ServiceError> {
        // One that could not be started is given up as well.
        if self.arguments.ground.store.replica_of(&self.arguments.shard.group_name()) != Some(replica) {
            return Ok(()); // it has been done before
        }
        tracing::info!(shard = %self.arguments.shard, %replica, "gives up a replica that has left its group");
        failpoints::hit(Point::UnhostBefore);
        self.end_replica().await;
        failpoints::hit(Point::UnhostEnded);
        let (store, name) = (self.arguments.ground.store.clone(), self.arguments.shard.group_name());
        let folder = self.arguments.shard_folder();
        let clear = move || {
            clear_folder(&folder);
            store.retire_replica(&name)
        };
        let cleared = tokio::task::spawn_blocking(clear).await.map_err(|fault| ServiceError::internal(fault.to_string()))?;
        cleared.map_err(|fault| ServiceError::unavailable("shard_unavailable", fault.to_string()))
    }

    async fn end_replica(&mut self) {
        self.withdraw_reads();
        self.running = None;
        self.partitions.unload_all();
        end_group(&self.arguments).await;
    }

    /// Lets reads of what is loaded be answered without a message to this actor.
    fn publish_reads(&self) {
        if let Some(running) = &self.running {
            self.arguments.reads.store(Some(running.replica.clone()));
        }
    }

    /// Ends that; what another actor has published since stays.
    fn withdraw_reads(&self) {
        let published = self.arguments.reads.load();
        if published.as_ref().is_some_and(|replica| Arc::ptr_eq(&replica.partitions, &self.partitions)) {
            self.arguments.reads.compare_and_swap(&published, None);
        }
    }

    /// Goes on alone from there, or founds the shard. Refused when what is here is not what that was decided on.
    async fn recover(
        &mut self,
        from: Option<(ReplicaId, LogEnd)>,
        myself: &ActorRef<ShardMessage>,
    ) -> Result<ReplicaId, ServiceError> {
        self.end_replica().await;
        let (store, name) = (self.arguments.ground.store.clone(), self.arguments.shard.group_name());
        let folder = self.arguments.shard_folder();
        let separate = move || -> Result<(), String> {
            let text = |fault: RecoveryError| fault.to_string();
            let here = match store.replica_of(&name) {
                Some(replica) => log_end(&store, replica).map_err(text)?.map(|end| (replica, end)),
                None => None,
            };
            if here != from {
                return Err(format!("what is here has changed: {here:?} instead of {from:?}"));
            }
            if let Some((replica, _)) = here {
                return make_sole_voter(&store, replica).map(|_| ()).map_err(text);
            }
            clear_folder(&folder);
            // One that was about to be filled may have voted, and could not found anything.
            store.retire_replica(&name).map_err(|fault| fault.to_string())
        };
        let separated = tokio::task::spawn_blocking(separate).await.map_err(|fault| ServiceError::internal(fault.to_string()))?;
        separated.map_err(|why| ServiceError::unavailable("shard_unavailable", why))?;
        let started = start_replica(&self.arguments, &self.partitions, from.is_none(), myself).await;
        let running = started.map_err(|fault| ServiceError::unavailable("shard_unavailable", fault.to_string()))?;
        let group = running.replica.group.group();
        let (replica, leads) = (group.replica(), group.leads());
        self.running = Some(running);
        self.publish_reads();
        if leads { Ok(replica) } else { Err(ServiceError::unavailable("shard_unavailable", "the replica does not lead")) }
    }

    fn serve(&mut self, tenant: TenantId, freshness: ShardFreshness, request: ShardRequest, reply: Reply<ShardResponse>) {
        let ready = self.running.as_ref().map(|running| &running.replica).filter(|replica| may_answer(&replica.group)).cloned();
        let admitted = ready.ok_or_else(|| not_hosted(self.arguments.shard)).and_then(|replica| {
            let partition = check_tenant(tenant, &request)?;
            let place = partition.map_or(Place::None, |id| Place::Slot(self.partitions.slot(id)));
            Ok(Request { tenant, place, replica })
        });
        let task = match admitted {
            Ok(task) => task,
            Err(refusal) => {
                let _ = reply.send(Err(refusal)); // the caller may have gone
                return;
            }
        };
        let span = tracing::Span::current();
        let serve = async move {
            let result = task.run(freshness, request).await;
            let _ = reply.send(result); // the caller may have gone
        };
        tokio::spawn(tracing::Instrument::instrument(serve, span));
    }

    /// Follows what was written, on every replica: partitions are kept loaded, so that their indexes follow, and files of dropped ones go.
    fn follow_writes(&mut self) {
        let Some(replica) = self.running.as_ref().map(|running| running.replica.clone()) else { return };
        for ((tenant, collection), dropped) in replica.group.changes().take_touched() {
            if !dropped {
                let slot = self.partitions.slot((tenant, collection));
                if !slot.initialized() {
                    let request = Request { tenant, place: Place::Slot(slot), replica: replica.clone() };
                    tokio::spawn(request.load_behind(collection));
                }
                continue;
            }
            // Where this replica leads, they have gone before the deletion was answered, unless it has led only since.
            let retired = self.partitions.retire(&(tenant, collection));
            let folder = self.arguments.partition_folder(tenant, collection);
            tokio::spawn(async move {
                if let Err(fault) = remove_checkpoint(folder, retired).await {
                    tracing::warn!(%fault, "files of a deleted collection are left behind until the node starts again");
                }
            });
        }
    }

    /// Follows what was written, has waiting rows indexed, and unloads what is idle.
    fn look_after_partitions(&mut self) {
        self.follow_writes();
        for partition in &self.partitions.all() {
            self.arguments.indexer.offer(partition);
        }
        self.partitions.unload_unused(self.arguments.partition_idle);
        self.partitions.count_bytes();
    }
}
