//! The actor of one shard replica. It owns the replica's Raft group and its loaded partitions.
//!
//! Its mailbox only hands out work: proposals wait on their own tasks, reads and searches run on threads that the whole
//! node has for them. A request names a tenant and a collection; that the collection is the tenant's is checked here, whoever asks.

use crate::address::{Address, Reply};
use crate::cluster::replicas::Replicas;
use crate::error::{ErrorKind, ServiceError};
use crate::meta::Meta;
use crate::shard::indexer::Indexer;
use crate::shard::partition::Partition;
use crate::shard::read_threads::ReadThreads;
use crate::shard::request::{ShardFreshness, ShardRequest, ShardResponse};
use crate::shard::serving::{Request, remove_checkpoint};
use crate::supervision::StorageFault;
use parking_lot::RwLock;
use prometheus::{IntGauge, Registry};
use ractor::concurrency::{Duration, JoinHandle};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ragged_raft::failpoints::{self, Point};
use ragged_raft::group::{Beginning, Ground};
use ragged_raft::ids::{CollectionId, ReplicaId, ShardId, TenantId};
use ragged_raft::mutant::{self, Mutant};
use ragged_raft::recovery::{LogEnd, RecoveryError, log_end, make_sole_voter};
use ragged_raft::shard::command::ShardCommand;
use ragged_raft::shard::group::ShardGroup;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::{OnceCell, Semaphore};

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
#[derive(Clone)]
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
    /// Told of the replica.
    pub replicas: Replicas,
    /// Folder of the partitions' checkpoints.
    pub folder: PathBuf,
    /// Where collections are looked up.
    pub meta: Meta,
    /// Threads of all reads on this node.
    pub threads: Arc<ReadThreads>,
    /// How many partitions may be loaded at once on this node: loading one may build its index anew, which no search of another waits for.
    pub loads: Arc<Semaphore>,
    /// Builds indexes, for all shards of this node.
    pub indexer: Arc<Indexer>,
    /// Memory and time limits of loaded partitions.
    pub residency: Residency,
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

/// When loaded partitions are unloaded.
#[derive(Debug, Clone, Copy)]
pub struct Residency {
    /// A partition that nobody has used for so long is unloaded.
    pub idle: Duration,
    /// Memory that one shard's partitions may hold; beyond it, the longest unused are unloaded.
    pub bytes: usize,
}

/// What shard actors count.
#[derive(Clone)]
pub struct ShardMetrics {
    /// Partitions that are loaded.
    pub partitions: IntGauge,
    /// Bytes that loaded partitions hold.
    pub partition_bytes: IntGauge,
}

impl ShardMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = ShardMetrics {
            partitions: IntGauge::new("ragged_partitions_loaded", "Partitions that are loaded.")?,
            partition_bytes: IntGauge::new("ragged_partition_bytes", "Bytes of memory that loaded partitions hold.")?,
        };
        registry.register(Box::new(metrics.partitions.clone()))?;
        registry.register(Box::new(metrics.partition_bytes.clone()))?;
        Ok(metrics)
    }
}

type PartitionId = (TenantId, CollectionId);

/// A partition that is loaded, or being loaded by whoever came first.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) cell: Arc<OnceCell<Arc<Partition>>>,
    used: Arc<parking_lot::Mutex<Instant>>,
}

/// The actor of one shard replica.
pub struct ShardActor;

/// What a shard actor knows.
pub struct ShardState {
    arguments: ShardArguments,
    /// The replica; none when this node keeps none of the shard.
    running: Option<Running>,
    partitions: HashMap<PartitionId, Slot>,
    clock: JoinHandle<()>,
}

/// A replica that runs.
struct Running {
    group: ShardGroup,
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
        self.arguments.metrics.partitions.sub(loaded(&self.partitions).count() as i64);
    }
}

impl Actor for ShardActor {
    type Msg = ShardMessage;
    type State = ShardState;
    type Arguments = ShardArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ShardMessage>,
        arguments: ShardArguments,
    ) -> Result<ShardState, ActorProcessingErr> {
        end_group(&arguments).await; // of the actor before this one: two of one replica at a time could vote twice
        let founds = arguments.founds.load(Ordering::Acquire);
        let keeps = founds || arguments.ground.store.replica_of(&arguments.shard.group_name()).is_some();
        let running = if keeps { Some(start_group(&arguments, founds, &myself).await?) } else { None };
        arguments.founds.store(false, Ordering::Release);
        let clock = myself.send_interval(TICK, || ShardMessage::Tick);
        arguments.address.moved_to(myself);
        Ok(ShardState { arguments, running, partitions: HashMap::new(), clock })
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
                let current = state.running.as_ref().is_some_and(|running| running.group.group().replica() == replica);
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
        end_group(&state.arguments).await;
        Ok(())
    }
}

async fn start_group(arguments: &ShardArguments, founds: bool, myself: &ActorRef<ShardMessage>) -> Result<Running, StorageFault> {
    let beginning = if founds { Beginning::Found } else { Beginning::Join };
    let ground = Ground { beginning, ..arguments.ground.clone() };
    let started = ShardGroup::start(ground, arguments.shard).await;
    let group = started.map_err(|fault| StorageFault::new(fault, &arguments.ground.store))?;
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
    Ok(Running { group, watcher })
}

async fn end_group(arguments: &ShardArguments) {
    let ended = arguments.group.write().take();
    if let Some(group) = ended {
        arguments.replicas.remove(group.group().replica());
        group.shutdown().await;
    }
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
            let started = start_group(&self.arguments, false, myself).await;
            self.running = Some(started.map_err(|fault| ServiceError::unavailable("shard_unavailable", fault.to_string()))?);
        }
        failpoints::hit(Point::HostAfter);
        match &self.running {
            Some(running) => Ok(running.group.group().replica()),
            None => Err(self.not_hosted()),
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
        self.running = None;
        for id in self.partitions.keys().copied().collect::<Vec<_>>() {
            self.unload(&id);
        }
        end_group(&self.arguments).await;
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
        let started = start_group(&self.arguments, from.is_none(), myself).await;
        let running = started.map_err(|fault| ServiceError::unavailable("shard_unavailable", fault.to_string()))?;
        let (replica, leads) = (running.group.group().replica(), running.group.group().leads());
        self.running = Some(running);
        if leads { Ok(replica) } else { Err(ServiceError::unavailable("shard_unavailable", "the replica does not lead")) }
    }

    fn not_hosted(&self) -> ServiceError {
        ServiceError::new(
            ErrorKind::NotLeader,
            "not_hosted",
            format!("{} has no replica on this node that can answer", self.arguments.shard),
        )
    }

    fn serve(&mut self, tenant: TenantId, freshness: ShardFreshness, request: ShardRequest, reply: Reply<ShardResponse>) {
        // A replica that has not had everything yet does not answer: it would leave out what was acknowledged long ago.
        let ready = self.running.as_ref().filter(|running| may_answer(running)).map(|running| running.group.clone());
        let admitted = ready.ok_or_else(|| self.not_hosted()).and_then(|group| Ok((group, self.admit(tenant, &request)?)));
        let (group, slot) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                let _ = reply.send(Err(refusal)); // the caller may have gone
                return;
            }
        };
        let task = Request { tenant, slot, group, arguments: self.arguments.clone() };
        let span = tracing::Span::current();
        let serve = async move {
            let result = task.run(freshness, request).await;
            let _ = reply.send(result); // the caller may have gone
        };
        tokio::spawn(tracing::Instrument::instrument(serve, span));
    }

    /// Checks that the request stays within its tenant, and finds the partition's slot when it needs one.
    fn admit(&mut self, tenant: TenantId, request: &ShardRequest) -> Result<Option<Slot>, ServiceError> {
        let foreign =
            || ServiceError::new(ErrorKind::Forbidden, "foreign_tenant", "the request names another tenant than its credential");
        let collection = match request {
            ShardRequest::Search { collection, .. } | ShardRequest::Matching { collection, .. } => {
                if collection.tenant != tenant {
                    return Err(foreign());
                }
                collection.id
            }
            ShardRequest::Chunks { collection, .. }
            | ShardRequest::Document { collection, .. }
            | ShardRequest::Documents { collection, .. }
            | ShardRequest::Counts { collection } => {
                return if collection.tenant == tenant { Ok(None) } else { Err(foreign()) };
            }
            ShardRequest::Propose { command } => {
                if tenant_of(command) != tenant {
                    return Err(foreign());
                }
                if let ShardCommand::DropCollection { collection, .. } = &**command {
                    self.unload(&(tenant, *collection));
                }
                return Ok(None);
            }
            ShardRequest::UnfinishedJobs if tenant != TenantId(0) => return Err(foreign()),
            ShardRequest::Job { .. }
            | ShardRequest::Jobs { .. }
            | ShardRequest::JobPayload { .. }
            | ShardRequest::ReadIndex
            | ShardRequest::UnfinishedJobs => return Ok(None),
        };
        Ok(Some(self.use_partition((tenant, collection))))
    }

    fn use_partition(&mut self, id: PartitionId) -> Slot {
        let slot = self
            .partitions
            .entry(id)
            .or_insert_with(|| Slot { cell: Arc::new(OnceCell::new()), used: Arc::new(parking_lot::Mutex::new(Instant::now())) });
        *slot.used.lock() = Instant::now();
        slot.clone()
    }

    /// Follows what was written, on every replica: partitions are kept loaded, so that their indexes follow, and files of dropped ones go.
    fn follow_writes(&mut self) {
        let Some(group) = self.running.as_ref().map(|running| running.group.clone()) else { return };
        for ((tenant, collection), dropped) in group.changes().take_touched() {
            if !dropped {
                let slot = self.use_partition((tenant, collection));
                if !slot.cell.initialized() {
                    let request = Request { tenant, slot: Some(slot), group: group.clone(), arguments: self.arguments.clone() };
                    tokio::spawn(request.load_behind(collection));
                }
                continue;
            }
            self.unload(&(tenant, collection));
            // The leader's files go before the deletion is answered.
            if !group.group().leads() {
                let folder = self.arguments.partition_folder(tenant, collection);
                tokio::spawn(async move {
                    if let Err(fault) = remove_checkpoint(folder).await {
                        tracing::warn!(%fault, "files of a deleted collection are left behind");
                    }
                });
            }
        }
    }

    fn unload(&mut self, id: &PartitionId) {
        if let Some(slot) = self.partitions.remove(id)
            && slot.cell.initialized()
        {
            self.arguments.metrics.partitions.dec();
        }
    }

    /// Follows what was written, has waiting rows indexed, and unloads what is idle or does not fit.
    fn look_after_partitions(&mut self) {
        self.follow_writes();
        for partition in loaded(&self.partitions) {
            self.arguments.indexer.offer(partition);
        }
        for id in self.partitions_to_unload() {
            self.unload(&id);
        }
    }

    fn partitions_to_unload(&self) -> Vec<PartitionId> {
        let now = Instant::now();
        let mut by_use: Vec<_> = self
            .partitions
            .iter()
            .filter_map(|(id, slot)| {
                // One that is being searched or indexed stays: opened again meanwhile, there would be two on the same files.
                let partition = slot.cell.get().filter(|partition| Arc::strong_count(partition) == 1)?;
                Some((now.duration_since(*slot.used.lock()), partition.memory_bytes(), *id))
            })
            .collect();
        by_use.sort();
        let mut bytes = 0;
        let mut unload = Vec::new();
        for (position, (unused, size, id)) in by_use.into_iter().enumerate() {
            bytes += size;
            // The one in use stays, whatever its size.
            if unused > self.arguments.residency.idle || (position > 0 && bytes > self.arguments.residency.bytes) {
                unload.push(id);
            }
        }
        unload
    }
}

/// Whether a replica has had everything.
fn may_answer(running: &Running) -> bool {
    running.group.group().votes() || mutant::is_on(Mutant::AnswersWhileFilled)
}

fn loaded(partitions: &HashMap<PartitionId, Slot>) -> impl Iterator<Item = &Arc<Partition>> {
    partitions.values().filter_map(|slot| slot.cell.get())
}

fn tenant_of(command: &ShardCommand) -> TenantId {
    match command {
        ShardCommand::Upsert { tenant, .. }
        | ShardCommand::Delete { tenant, .. }
        | ShardCommand::DeleteSeen { tenant, .. }
        | ShardCommand::DropCollection { tenant, .. }
        | ShardCommand::PutJob { tenant, .. }
        | ShardCommand::DeleteJobs { tenant, .. } => *tenant,
    }
}
