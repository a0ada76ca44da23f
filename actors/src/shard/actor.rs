//! The actor of one shard replica. It owns the replica's Raft group and its loaded partitions.
//!
//! Its mailbox only hands out work: proposals wait on their own tasks, reads and searches run on blocking threads behind one gate for the
//! whole node. A request names a tenant and a collection; that the collection is the tenant's is checked here, whoever asks.

use crate::address::{Address, Reply};
use crate::cluster::replicas::Replicas;
use crate::error::{ErrorKind, ServiceError};
use crate::fusion::{Page, Ranked};
use crate::shard::indexer::Indexer;
use crate::shard::partition::{Candidate, Partition, PartitionAnswer, PartitionContext};
use crate::shard::request::{ChunkContent, ShardFreshness, ShardRequest, ShardResponse, StoredDocument};
use crate::supervision::StorageFault;
use parking_lot::RwLock;
use prometheus::{IntGauge, Registry};
use ractor::concurrency::{Duration, JoinHandle};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ragged_raft::ProposeError;
use ragged_raft::group::{Beginning, Ground};
use ragged_raft::ids::{CollectionId, NodeId, ReplicaId, RowId, ShardId, TenantId};
use ragged_raft::meta::collection::Collection;
use ragged_raft::shard::command::ShardCommand;
use ragged_raft::shard::group::ShardGroup;
use ragged_raft::shard::reader::ShardReader;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::{OnceCell, Semaphore};

/// Bytes of texts and metadata that the hits of one shard may hold; more are refused.
pub const HITS_BYTES_MAX: usize = 64 << 20;
/// Bytes of texts after which a page of documents ends.
const PAGE_TEXT_BYTES: usize = 16 << 20;
/// How long a session read waits for its write to arrive.
const FRESHNESS_WAIT: Duration = Duration::from_secs(5);
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
    /// Gate of all reads on this node.
    pub gate: Arc<ReadGate>,
    /// Builds indexes, for all shards of this node.
    pub indexer: Arc<Indexer>,
    /// Memory and time limits of loaded partitions.
    pub residency: Residency,
    /// Counters.
    pub metrics: ShardMetrics,
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

/// Lets a bounded number of reads run at once, and a bounded number wait.
pub struct ReadGate {
    running: Arc<Semaphore>,
    waiting: Semaphore,
}

impl ReadGate {
    /// A gate for so many reads at once, and so many waiting.
    pub fn new(running: usize, waiting: usize) -> Self {
        ReadGate { running: Arc::new(Semaphore::new(running.max(1))), waiting: Semaphore::new(waiting.max(1)) }
    }

    /// Runs blocking work when it is its turn.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
    ) -> Result<T, ServiceError> {
        let overloaded = || ServiceError::new(ErrorKind::Unavailable, "search_overloaded", "too many searches wait on this node");
        let waiting = self.waiting.try_acquire().map_err(|_| overloaded())?;
        let turn = self.running.clone().acquire_owned().await.map_err(|_| overloaded())?;
        drop(waiting);
        let span = tracing::Span::current();
        let work = move || {
            let _turn = turn;
            span.in_scope(work)
        };
        tokio::task::spawn_blocking(work).await.map_err(|fault| ServiceError::internal(format!("a read failed: {fault}")))?
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
            ShardMessage::Ask { tenant, freshness, request, reply } => state.serve(tenant, freshness, request, reply),
            ShardMessage::Tick => state.look_after_partitions(),
            ShardMessage::GroupFailed { replica, fault } => {
                let current = state.running.as_ref().is_some_and(|running| running.group.group().replica() == replica);
                if current {
                    return Err(StorageFault(format!("{}: {fault}", state.arguments.shard)).into());
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
    let group = ShardGroup::start(ground, arguments.shard).await.map_err(|fault| StorageFault(fault.to_string()))?;
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

impl ShardState {
    /// Keeps a replica of the shard, which waits for the group's leader to add it.
    async fn host(&mut self, myself: &ActorRef<ShardMessage>) -> Result<ReplicaId, ServiceError> {
        if self.running.is_none() {
            let started = start_group(&self.arguments, false, myself).await;
            self.running = Some(started.map_err(|fault| ServiceError::unavailable("shard_unavailable", fault.to_string()))?);
        }
        match &self.running {
            Some(running) => Ok(running.group.group().replica()),
            None => Err(self.not_hosted()),
        }
    }

    /// Gives up a replica that has left its group, with everything it kept.
    async fn unhost(&mut self, replica: ReplicaId) -> Result<(), ServiceError> {
        if self.running.as_ref().is_none_or(|running| running.group.group().replica() != replica) {
            return Ok(()); // it has been done before
        }
        tracing::info!(shard = %self.arguments.shard, %replica, "gives up a replica that has left its group");
        self.running = None;
        for id in self.partitions.keys().copied().collect::<Vec<_>>() {
            self.unload(&id);
        }
        end_group(&self.arguments).await;
        let (store, name) = (self.arguments.ground.store.clone(), self.arguments.shard.group_name());
        let folder = shard_folder(&self.arguments);
        let clear = move || {
            match std::fs::remove_dir_all(&folder) {
                Err(fault) if fault.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(folder = %folder.display(), %fault, "index files of a replica that was given up are left behind");
                }
                _ => {}
            }
            store.retire_replica(&name)
        };
        let cleared = tokio::task::spawn_blocking(clear).await.map_err(|fault| ServiceError::internal(fault.to_string()))?;
        cleared.map_err(|fault| ServiceError::unavailable("shard_unavailable", fault.to_string()))
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
        let ready = self.running.as_ref().filter(|running| running.group.group().votes()).map(|running| running.group.clone());
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
            ShardRequest::Propose { command, adds_to } => {
                if tenant_of(command) != tenant || adds_to.as_ref().is_some_and(|collection| collection.tenant != tenant) {
                    return Err(foreign());
                }
                if let ShardCommand::DropCollection { collection, .. } = &**command {
                    self.unload(&(tenant, *collection));
                }
                match adds_to {
                    Some(collection) => collection.id,
                    None => return Ok(None),
                }
            }
            ShardRequest::UnfinishedJobs if tenant != TenantId(0) => return Err(foreign()),
            ShardRequest::Job { .. }
            | ShardRequest::Jobs { .. }
            | ShardRequest::JobPayload { .. }
            | ShardRequest::ReadIndex
            | ShardRequest::UnfinishedJobs => return Ok(None),
        };
        let slot = self
            .partitions
            .entry((tenant, collection))
            .or_insert_with(|| Slot { cell: Arc::new(OnceCell::new()), used: Arc::new(parking_lot::Mutex::new(Instant::now())) });
        *slot.used.lock() = Instant::now();
        Ok(Some(slot.clone()))
    }

    fn unload(&mut self, id: &PartitionId) {
        if let Some(slot) = self.partitions.remove(id)
            && slot.cell.initialized()
        {
            self.arguments.metrics.partitions.dec();
        }
    }

    /// Has waiting rows indexed, and unloads what is idle or does not fit.
    fn look_after_partitions(&mut self) {
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

/// Folder of all partitions' checkpoints of the shard.
fn shard_folder(arguments: &ShardArguments) -> PathBuf {
    arguments.folder.join(format!("shard-{:03}", arguments.shard.0))
}

/// Folder of one partition's checkpoint.
fn partition_folder(arguments: &ShardArguments, tenant: TenantId, collection: CollectionId) -> PathBuf {
    shard_folder(arguments).join(format!("tenant-{}", tenant.0)).join(format!("collection-{}", collection.0))
}

/// A request on its own task.
struct Request {
    tenant: TenantId,
    slot: Option<Slot>,
    group: ShardGroup,
    arguments: ShardArguments,
}

impl Request {
    async fn run(self, freshness: ShardFreshness, request: ShardRequest) -> Result<ShardResponse, ServiceError> {
        self.wait_until_fresh(freshness).await?;
        let reader = self.group.reader();
        let tenant = self.tenant;
        match request {
            ShardRequest::Propose { command, adds_to } => self.propose(command, adds_to).await,
            ShardRequest::ReadIndex => self.group.linearizable().await.map(ShardResponse::Index).map_err(propose_error),
            ShardRequest::Search { collection, query, page } => {
                let (partition, shard) = (self.partition(&collection).await?, self.arguments.shard);
                let search = move || {
                    let answer = partition.search(&query)?;
                    let rows = page.map(|page| rows_shown(&page, shard, &answer));
                    let shown = rows.map(|rows| read_chunks(&reader, tenant, collection.id, &rows)).transpose()?;
                    Ok(ShardResponse::Found { answer, shown })
                };
                self.arguments.gate.run(search).await
            }
            ShardRequest::Matching { collection, filter, after, limit } => {
                let partition = self.partition(&collection).await?;
                self.arguments
                    .gate
                    .run(move || Ok(ShardResponse::Matching(partition.matching_documents(&filter, after.as_deref(), limit)?)))
                    .await
            }
            ShardRequest::Chunks { collection, rows } => {
                self.arguments
                    .gate
                    .run(move || Ok(ShardResponse::Chunks(read_chunks(&reader, tenant, collection.id, &rows)?)))
                    .await
            }
            ShardRequest::Document { collection, id } => {
                self.arguments
                    .gate
                    .run(move || {
                        let document = read_document(&reader, tenant, collection.id, &id)?;
                        Ok(ShardResponse::Documents(document.into_iter().collect()))
                    })
                    .await
            }
            ShardRequest::Documents { collection, after, limit, with_text } => {
                let read = move || read_documents(&reader, tenant, collection.id, after.as_deref(), limit, with_text);
                self.arguments.gate.run(move || Ok(ShardResponse::Documents(read()?))).await
            }
            ShardRequest::Counts { collection } => {
                self.arguments
                    .gate
                    .run(move || Ok(ShardResponse::Counts(reader.partition(tenant, collection.id)?.unwrap_or_default())))
                    .await
            }
            ShardRequest::Job { id } => {
                self.arguments.gate.run(move || Ok(ShardResponse::Jobs(reader.job(tenant, id)?.into_iter().collect()))).await
            }
            ShardRequest::Jobs { before, limit } => {
                self.arguments.gate.run(move || Ok(ShardResponse::Jobs(reader.jobs(tenant, before, limit)?))).await
            }
            ShardRequest::UnfinishedJobs => {
                self.arguments.gate.run(move || Ok(ShardResponse::Unfinished(reader.unfinished_jobs()?))).await
            }
            ShardRequest::JobPayload { id } => {
                self.arguments.gate.run(move || Ok(ShardResponse::Payload(reader.job_payload(tenant, id)?))).await
            }
        }
    }

    async fn wait_until_fresh(&self, freshness: ShardFreshness) -> Result<(), ServiceError> {
        match freshness {
            ShardFreshness::Eventual => Ok(()),
            ShardFreshness::AtLeast(index) => self.group.wait_applied(index, FRESHNESS_WAIT).await.map_err(|fault| {
                let detail =
                    format!("{} has not seen the token's write within {FRESHNESS_WAIT:?}: {fault}", self.arguments.shard);
                ServiceError::unavailable("token_not_reached", detail)
            }),
            ShardFreshness::Strong => self.group.linearizable().await.map(|_| ()).map_err(propose_error),
        }
    }

    async fn propose(self, command: Arc<ShardCommand>, adds_to: Option<Arc<Collection>>) -> Result<ShardResponse, ServiceError> {
        let dropped = match &*command {
            ShardCommand::DropCollection { collection, .. } => Some(partition_folder(&self.arguments, self.tenant, *collection)),
            _ => None,
        };
        let applied = self.group.propose(Arc::unwrap_or_clone(command)).await.map_err(propose_error)?;
        if let Some(folder) = dropped {
            remove_checkpoint(folder).await?;
        }
        if let Some(collection) = adds_to {
            self.load_behind(collection);
        }
        Ok(ShardResponse::Applied { index: applied.index, reply: applied.reply })
    }

    /// The partition, loaded by whoever comes first; the others wait for it.
    async fn partition(&self, collection: &Arc<Collection>) -> Result<Arc<Partition>, ServiceError> {
        let Some(slot) = &self.slot else { return Err(ServiceError::internal("a request without a partition asked for one")) };
        let partition = slot.cell.get_or_try_init(|| self.load(collection.clone())).await?;
        Ok(partition.clone())
    }

    /// Loads the partition that was written to, without anybody waiting for it: only a loaded partition is indexed.
    fn load_behind(self, collection: Arc<Collection>) {
        if self.slot.as_ref().is_some_and(|slot| slot.cell.initialized()) {
            return;
        }
        tokio::spawn(async move {
            if let Err(fault) = self.partition(&collection).await {
                tracing::warn!(collection = %collection.name, %fault, "a partition that was written to could not be loaded; the next search tries again");
            }
        });
    }

    async fn load(&self, collection: Arc<Collection>) -> Result<Arc<Partition>, ServiceError> {
        let (tenant, group) = (self.tenant, self.group.clone());
        let folder = partition_folder(&self.arguments, tenant, collection.id);
        let open = move || {
            let begun = Instant::now();
            // Watched before it is read, so that no change falls in between.
            let changes = group.changes().watch(tenant, collection.id);
            let name = collection.name.clone();
            let partition = Partition::open(PartitionContext { reader: group.reader(), changes, tenant, collection, folder })?;
            tracing::info!(collection = %name, took_ms = begun.elapsed().as_millis() as u64, "partition loaded");
            Ok(Arc::new(partition))
        };
        let partition = self.arguments.gate.run(open).await?;
        self.arguments.metrics.partitions.inc();
        Ok(partition)
    }
}

/// Removes the index files of a deleted collection. An error has the deletion tried again.
async fn remove_checkpoint(folder: PathBuf) -> Result<(), ServiceError> {
    let removed = tokio::task::spawn_blocking(move || Partition::remove(&folder).map_err(|fault| (folder, fault)));
    match removed.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err((folder, fault))) => {
            let detail = format!("the index files of a deleted collection in {} could not be removed: {fault}", folder.display());
            Err(ServiceError::unavailable("shard_unavailable", detail))
        }
        Err(fault) => Err(ServiceError::internal(fault.to_string())),
    }
}

/// Rows of the page's hits.
fn rows_shown(page: &Page, shard: ShardId, answer: &PartitionAnswer) -> Vec<RowId> {
    let ranked = |ranking: &[Candidate]| ranking.iter().map(|found| Ranked { shard, candidate: found.clone() }).collect();
    page.of(ranked(&answer.dense), ranked(&answer.text)).into_iter().map(|hit| hit.best.candidate.row).collect()
}

fn read_chunks(
    reader: &ShardReader,
    tenant: TenantId,
    collection: CollectionId,
    rows: &[RowId],
) -> Result<Vec<Option<ChunkContent>>, ServiceError> {
    let owners = reader.owners(tenant, collection, rows)?;
    let texts = reader.chunks(tenant, collection, rows)?;
    let mut heads = HashMap::new();
    let mut bytes = 0;
    let mut contents = Vec::with_capacity(rows.len());
    for ((owner, text), row) in owners.into_iter().zip(texts).zip(rows) {
        let (Some(owner), Some(text)) = (owner, text) else {
            contents.push(None);
            continue;
        };
        if !heads.contains_key(&owner.document_id) {
            let head = reader.head(tenant, collection, &owner.document_id)?;
            heads.insert(owner.document_id.clone(), head);
        }
        // A row that the head does not name is of a version that was replaced while this was read.
        let head = heads.get(&owner.document_id).and_then(Option::as_ref).filter(|head| head.has(*row));
        bytes += text.text.len() + head.map_or(0, |head| head.metadata.len());
        if bytes > HITS_BYTES_MAX {
            let detail = format!("limit: the hits hold more than {} MiB, ask for fewer at once", HITS_BYTES_MAX >> 20);
            return Err(ServiceError::invalid("answer_too_large", detail));
        }
        contents.push(head.map(|head| ChunkContent { owner, text, title: head.title.clone(), metadata: head.metadata.clone() }));
    }
    Ok(contents)
}

fn read_documents(
    reader: &ShardReader,
    tenant: TenantId,
    collection: CollectionId,
    after: Option<&str>,
    limit: usize,
    with_text: bool,
) -> Result<Vec<StoredDocument>, ServiceError> {
    let (mut documents, mut bytes) = (Vec::new(), 0);
    let mut after = after.map(str::to_owned);
    // More than once when documents are deleted meanwhile: a page that is not full says that nothing follows.
    while documents.len() < limit {
        let heads = reader.heads(tenant, collection, after.as_deref(), limit - documents.len())?;
        let Some(last) = heads.last() else { break };
        after = Some(last.id.clone());
        for head in heads {
            if !with_text || bytes >= PAGE_TEXT_BYTES {
                documents.push(StoredDocument { head, text: None });
            } else if let Some(document) = read_document(reader, tenant, collection, &head.id)? {
                bytes += document.text.as_ref().map_or(0, String::len);
                documents.push(document);
            }
        }
    }
    Ok(documents)
}

/// A document with its text, both of one version.
fn read_document(
    reader: &ShardReader,
    tenant: TenantId,
    collection: CollectionId,
    id: &str,
) -> Result<Option<StoredDocument>, ServiceError> {
    let mut head = reader.head(tenant, collection, id)?;
    while let Some(before) = head {
        let text = reader.text(tenant, collection, id)?;
        head = reader.head(tenant, collection, id)?;
        if head.as_ref().is_some_and(|now| now.first_row == before.first_row) {
            return Ok(Some(StoredDocument { head: before, text }));
        }
    }
    Ok(None)
}

/// What a failed proposal means to the one who asked.
pub fn propose_error(fault: ProposeError) -> ServiceError {
    let detail = fault.to_string();
    match fault {
        ProposeError::UnknownOutcome { .. } => ServiceError::new(ErrorKind::UnknownOutcome, "unknown_outcome", detail),
        ProposeError::TooLarge { .. } => ServiceError::new(ErrorKind::TooLarge, "write_too_large", detail),
        ProposeError::Overloaded => ServiceError::unavailable("write_overloaded", detail),
        ProposeError::NotLeader { leader } => ServiceError {
            leader: leader.map(|node| NodeId(node.node)),
            ..ServiceError::new(ErrorKind::NotLeader, "shard_unavailable", detail)
        },
        _ => ServiceError::unavailable("shard_unavailable", detail),
    }
}

impl From<ragged_raft::ReadError> for ServiceError {
    fn from(fault: ragged_raft::ReadError) -> Self {
        tracing::error!(%fault, "stored rows could not be read");
        ServiceError::internal(format!("stored rows could not be read: {fault}"))
    }
}

impl From<crate::shard::partition::PartitionError> for ServiceError {
    fn from(fault: crate::shard::partition::PartitionError) -> Self {
        tracing::error!(%fault, "a partition failed");
        ServiceError::internal(format!("the collection's index failed: {fault}"))
    }
}
