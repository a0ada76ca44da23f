//! Requests to a shard replica: who may ask what, and how it is answered.

use crate::error::{ErrorKind, ServiceError, propose_error};
use crate::shard::actor::ShardArguments;
use crate::shard::loaded::{LoadedPartitions, PartitionId, Slot};
use crate::shard::partition::{Partition, PartitionContext, PartitionError};
use crate::shard::read::{ContentReader, read_document, read_documents};
use crate::shard::request::{ShardFreshness, ShardRequest, ShardResponse};
use ragged_raft::ids::{CollectionId, ShardId, TenantId};
use ragged_raft::meta::collection::Collection;
use ragged_raft::mutant::{self, Mutant};
use ragged_raft::shard::command::ShardCommand;
use ragged_raft::shard::group::ShardGroup;
use ragged_raft::shard::reader::ShardReader;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a session read waits for its write to arrive.
const FRESHNESS_WAIT: Duration = Duration::from_secs(5);

/// A replica that runs, with what its requests need. It answers reads of what is loaded without a message to its actor.
pub struct Replica {
    pub(super) arguments: Arc<ShardArguments>,
    pub(super) group: ShardGroup,
    pub(super) reader: ShardReader,
    pub(crate) partitions: Arc<LoadedPartitions>,
}

impl Replica {
    /// A replica that has been started.
    pub(super) fn new(arguments: Arc<ShardArguments>, group: ShardGroup, partitions: Arc<LoadedPartitions>) -> Self {
        let reader = group.reader();
        Replica { arguments, group, reader, partitions }
    }

    /// Lets a read in. None for what is the actor's: writes, and what has to be loaded first.
    pub(crate) fn admit(self: Arc<Self>, tenant: TenantId, request: &ShardRequest) -> Result<Option<Request>, ServiceError> {
        if matches!(request, ShardRequest::Propose { .. }) {
            return Ok(None);
        }
        if !may_answer(&self.group) {
            return Err(not_hosted(self.arguments.shard));
        }
        let place = match check_tenant(tenant, request)? {
            None => Place::None,
            Some(id) => match self.partitions.get(&id) {
                Some(partition) => Place::Loaded(partition),
                None => return Ok(None),
            },
        };
        Ok(Some(Request { tenant, place, replica: self }))
    }

    fn contents(&self, tenant: TenantId, collection: CollectionId) -> ContentReader<'_> {
        ContentReader { reader: &self.reader, cache: &self.arguments.cache, tenant, collection }
    }
}

/// Whether a replica has had everything: one that has not would leave out what was acknowledged long ago.
pub(super) fn may_answer(group: &ShardGroup) -> bool {
    group.group().votes() || mutant::is_on(Mutant::AnswersWhileFilled)
}

/// The refusal of a node that keeps no replica which can answer.
pub(super) fn not_hosted(shard: ShardId) -> ServiceError {
    ServiceError::new(ErrorKind::NotLeader, "not_hosted", format!("{shard} has no replica on this node that can answer"))
}

/// Checks that a request stays within its tenant, and says which partition it needs, if any.
pub(super) fn check_tenant(tenant: TenantId, request: &ShardRequest) -> Result<Option<PartitionId>, ServiceError> {
    let (owner, partition) = match request {
        ShardRequest::Search { collection, .. } | ShardRequest::Matching { collection, .. } => {
            (collection.tenant, Some((collection.tenant, collection.id)))
        }
        ShardRequest::Chunks { collection, .. }
        | ShardRequest::Document { collection, .. }
        | ShardRequest::Documents { collection, .. }
        | ShardRequest::Counts { collection } => (collection.tenant, None),
        ShardRequest::Propose { command } => (tenant_of(command), None),
        // Only the node itself may ask, as no tenant.
        ShardRequest::UnfinishedJobs => (TenantId(0), None),
        ShardRequest::Job { .. } | ShardRequest::Jobs { .. } | ShardRequest::JobPayload { .. } | ShardRequest::ReadIndex => {
            return Ok(None);
        }
    };
    if owner != tenant {
        let detail = "the request names another tenant than its credential";
        return Err(ServiceError::new(ErrorKind::Forbidden, "foreign_tenant", detail));
    }
    Ok(partition)
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

/// The partition that a request needs.
pub(super) enum Place {
    /// It needs none.
    None,
    /// To be loaded, unless it is.
    Slot(Slot),
    /// It is loaded.
    Loaded(Arc<Partition>),
}

/// A request that was admitted.
pub(crate) struct Request {
    /// Whom it acts for.
    pub(super) tenant: TenantId,
    /// The partition that it needs, if any.
    pub(super) place: Place,
    /// The replica.
    pub(super) replica: Arc<Replica>,
}

impl Request {
    /// Answers it.
    pub(crate) async fn run(self, freshness: ShardFreshness, request: ShardRequest) -> Result<ShardResponse, ServiceError> {
        self.wait_until_fresh(freshness).await?;
        let (tenant, replica) = (self.tenant, self.replica.clone());
        let threads = &self.replica.arguments.threads;
        match request {
            ShardRequest::Propose { command } => Box::pin(self.propose(command)).await,
            ShardRequest::ReadIndex => {
                Box::pin(replica.group.linearizable()).await.map(ShardResponse::Index).map_err(propose_error)
            }
            ShardRequest::Search { collection, query, page } => {
                let partition = self.partition(&collection).await?;
                let search = move || {
                    let answer = partition.search(&query)?;
                    let contents = replica.contents(tenant, collection.id);
                    let shown = page
                        .map(|page| contents.read(&page.rows_of(replica.arguments.shard, &answer.dense, &answer.text)))
                        .transpose()?;
                    Ok(ShardResponse::Found { answer, shown })
                };
                threads.run(search).await
            }
            ShardRequest::Matching { collection, filter, after, limit } => {
                let partition = self.partition(&collection).await?;
                threads
                    .run(move || Ok(ShardResponse::Matching(partition.matching_documents(&filter, after.as_deref(), limit)?)))
                    .await
            }
            ShardRequest::Chunks { collection, rows } => {
                threads.run(move || Ok(ShardResponse::Chunks(replica.contents(tenant, collection.id).read(&rows)?))).await
            }
            ShardRequest::Document { collection, id } => {
                threads
                    .run(move || {
                        let document = read_document(&replica.reader, tenant, collection.id, &id)?;
                        Ok(ShardResponse::Documents(document.into_iter().collect()))
                    })
                    .await
            }
            ShardRequest::Documents { collection, after, limit, with_text } => {
                let read = move || read_documents(&replica.reader, tenant, collection.id, after.as_deref(), limit, with_text);
                threads.run(move || Ok(ShardResponse::Documents(read()?))).await
            }
            ShardRequest::Counts { collection } => {
                threads
                    .run(move || Ok(ShardResponse::Counts(replica.reader.partition(tenant, collection.id)?.unwrap_or_default())))
                    .await
            }
            ShardRequest::Job { id } => {
                threads.run(move || Ok(ShardResponse::Jobs(replica.reader.job(tenant, id)?.into_iter().collect()))).await
            }
            ShardRequest::Jobs { before, limit } => {
                threads.run(move || Ok(ShardResponse::Jobs(replica.reader.jobs(tenant, before, limit)?))).await
            }
            ShardRequest::UnfinishedJobs => {
                threads.run(move || Ok(ShardResponse::Unfinished(replica.reader.unfinished_jobs()?))).await
            }
            ShardRequest::JobPayload { id } => {
                threads.run(move || Ok(ShardResponse::Payload(replica.reader.job_payload(tenant, id)?))).await
            }
        }
    }

    async fn wait_until_fresh(&self, freshness: ShardFreshness) -> Result<(), ServiceError> {
        match freshness {
            ShardFreshness::Eventual => Ok(()),
            ShardFreshness::AtLeast(_) if mutant::is_on(Mutant::TokenNotAwaited) => Ok(()),
            ShardFreshness::AtLeast(index) => {
                Box::pin(self.replica.group.wait_applied(index, FRESHNESS_WAIT)).await.map_err(|fault| {
                    let detail = format!(
                        "{} has not seen the token's write within {FRESHNESS_WAIT:?}: {fault}",
                        self.replica.arguments.shard
                    );
                    ServiceError::unavailable("token_not_reached", detail)
                })
            }
            ShardFreshness::Strong => Box::pin(self.replica.group.linearizable()).await.map(|_| ()).map_err(propose_error),
        }
    }

    async fn propose(self, command: Arc<ShardCommand>) -> Result<ShardResponse, ServiceError> {
        let dropped = match &*command {
            ShardCommand::DropCollection { collection, .. } => Some(*collection),
            _ => None,
        };
        let applied = self.replica.group.propose(Arc::unwrap_or_clone(command)).await.map_err(propose_error)?;
        if let Some(collection) = dropped {
            let retired = self.replica.partitions.retire(&(self.tenant, collection));
            remove_checkpoint(self.replica.arguments.partition_folder(self.tenant, collection), retired).await?;
        }
        Ok(ShardResponse::Applied { index: applied.index, reply: applied.reply })
    }

    /// The partition, loaded by whoever comes first; the others wait for it.
    async fn partition(&self, collection: &Arc<Collection>) -> Result<Arc<Partition>, ServiceError> {
        match &self.place {
            Place::Loaded(partition) => Ok(partition.clone()),
            Place::Slot(slot) => Ok(Box::pin(slot.get_or_try_init(|| self.load(collection.clone()))).await?.clone()),
            Place::None => Err(ServiceError::internal("a request without a partition asked for one")),
        }
    }

    /// Loads the partition that was written to, without anybody waiting for it: only a loaded partition is indexed.
    pub(super) async fn load_behind(self, collection: CollectionId) {
        let meta = self.replica.arguments.meta.clone();
        let find = move || Ok::<_, ServiceError>(meta.group()?.collection_by_id(collection)?);
        let found =
            tokio::task::spawn_blocking(find).await.unwrap_or_else(|fault| Err(ServiceError::internal(fault.to_string())));
        let loaded = match found {
            // It is deleted, or its making has not arrived here: then a search loads it, or the next write.
            Ok(None) => return,
            Ok(Some(collection)) => self.partition(&collection).await.map(|_| ()),
            Err(fault) => Err(fault),
        };
        if let Err(fault) = loaded {
            tracing::warn!(%collection, %fault, "a partition that was written to could not be loaded; the next search tries again");
        }
    }

    async fn load(&self, collection: Arc<Collection>) -> Result<Arc<Partition>, ServiceError> {
        let (tenant, replica) = (self.tenant, self.replica.clone());
        let open = move || {
            let begun = Instant::now();
            // Watched before it is read, so that no change falls in between.
            let changes = replica.group.changes().watch(tenant, collection.id);
            let name = collection.name.clone();
            let partition = Partition::open(PartitionContext {
                reader: replica.reader.clone(),
                changes,
                tenant,
                folder: replica.arguments.partition_folder(tenant, collection.id),
                collection,
                cache: replica.arguments.cache.clone(),
                metrics: replica.arguments.metrics.search.clone(),
                gpu_rows: replica.arguments.gpu_rows.clone(),
                text_writers: replica.arguments.text_writers.clone(),
                tail_bytes_max: replica.arguments.tail_bytes_max,
            })?;
            tracing::info!(collection = %name, took_ms = begun.elapsed().as_millis() as u64, "partition loaded");
            Ok::<_, PartitionError>(Arc::new(partition))
        };
        let _turn = self.replica.arguments.loads.acquire().await.map_err(|fault| ServiceError::internal(fault.to_string()))?;
        let partition = tokio::task::spawn_blocking(open)
            .await
            .map_err(|fault| ServiceError::internal(format!("a partition could not be loaded: {fault}")))??;
        self.replica.arguments.metrics.partitions.inc();
        Ok(partition)
    }
}

/// Removes the index files of a deleted collection, and lets go of its partition. An error has the deletion tried again.
pub(super) async fn remove_checkpoint(folder: PathBuf, retired: Option<Slot>) -> Result<(), ServiceError> {
    let removed = tokio::task::spawn_blocking(move || {
        drop(retired);
        Partition::remove(&folder).map_err(|fault| (folder, fault))
    });
    match removed.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err((folder, fault))) => {
            let detail = format!("the index files of a deleted collection in {} could not be removed: {fault}", folder.display());
            Err(ServiceError::unavailable("shard_unavailable", detail))
        }
        Err(fault) => Err(ServiceError::internal(fault.to_string())),
    }
}

impl From<PartitionError> for ServiceError {
    fn from(fault: PartitionError) -> Self {
        tracing::error!(%fault, "a partition failed");
        ServiceError::internal(format!("the collection's index failed: {fault}"))
    }
}
