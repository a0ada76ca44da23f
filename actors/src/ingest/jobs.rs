//! The actor of jobs: uploads that nobody waits for. A job is durable before it is accepted, and whoever starts after a crash goes on with it.

use crate::account_seconds::Account;
use crate::address::{Address, Repeat, Reply};
use crate::cluster::links::{Lane, LinkError};
use crate::cluster::wire::{Answer, Call};
use crate::error::{ErrorKind, ServiceError};
use crate::ingest::document::UploadDocument;
use crate::ingest::pipeline::{ChunkedDocument, Idempotency, Pipeline, now_ms, refusal};
use crate::meta::Meta;
use crate::shard::request::{ShardFreshness, ShardRequest, ShardResponse};
use crate::shards::Shards;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use ractor::concurrency::{Duration, JoinHandle};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ragged_raft::codec;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::ids::{NodeId, TenantId};
use ragged_raft::meta::collection::Collection;
use ragged_raft::shard::command::{ShardCommand, ShardReply};
use ragged_raft::shard::rows::{JobRow, JobStage};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use ulid::Ulid;

/// Documents that a job embeds and stores at once.
const SLICE_DOCUMENTS: usize = 64;
/// Jobs that run at once; the others wait their turn.
const RUNNING_MAX: usize = 2;
/// Jobs that may wait; more are refused.
const WAITING_MAX: usize = 10_000;
/// How long a job that failed on the node, not on its documents, waits until it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How often the node looks for jobs that it should run.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long another node may take to begin or stop a job.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long finished jobs are remembered.
const KEPT_MS: u64 = 7 * 24 * 3600 * 1000;
/// How often finished jobs are looked through.
const SWEEP: Duration = Duration::from_secs(3600);
/// Failed documents that are noted one by one.
const FAILURES_NOTED_MAX: usize = 1000;

/// Messages of the jobs actor.
pub enum JobsMessage {
    /// Runs a job that has been made durable.
    Run {
        /// Whose it is.
        tenant: TenantId,
        /// The job.
        id: Ulid,
    },
    /// Stops a job at its next step, if it runs here; answers whether it does. One that waits does not run any more.
    Cancel {
        /// The job.
        id: Ulid,
        /// Told whether it runs.
        reply: Reply<bool>,
    },
    /// A job has ended, or must be tried again.
    Ended {
        /// Whose it is.
        tenant: TenantId,
        /// The job.
        id: Ulid,
        /// Whether the node was at fault and it must be tried again.
        again: bool,
    },
    /// Looks for jobs that a crash left.
    FindUnfinished,
    /// Forgets old jobs.
    Sweep,
    /// A panic on purpose, to test what stands above.
    #[cfg(test)]
    Panic,
}

/// What the jobs actor is started with.
#[derive(Clone)]
pub struct JobsArguments {
    /// Told where the actor is.
    pub address: Arc<Address<JobsMessage>>,
    /// Where jobs and documents are kept.
    pub shards: Shards,
    /// Brings documents in.
    pub pipeline: Pipeline,
    /// Knows collections.
    pub meta: Meta,
    /// Counters.
    pub metrics: JobsMetrics,
}

/// What the jobs actor counts.
#[derive(Clone)]
pub struct JobsMetrics {
    /// Jobs that run or wait.
    pub active: IntGauge,
    /// Jobs that ended, by their last stage.
    pub ended: IntCounterVec,
}

impl JobsMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = JobsMetrics {
            active: IntGauge::new("ragged_jobs_active", "Jobs that run or wait on this node.")?,
            ended: IntCounterVec::new(Opts::new("ragged_jobs_ended_total", "Jobs that ended, by their last stage."), &["stage"])?,
        };
        registry.register(Box::new(metrics.active.clone()))?;
        registry.register(Box::new(metrics.ended.clone()))?;
        Ok(metrics)
    }
}

/// The actor of jobs.
pub struct JobsActor;

/// What the jobs actor knows.
pub struct JobsState {
    arguments: JobsArguments,
    waiting: VecDeque<(TenantId, Ulid)>,
    running: HashMap<Ulid, Running>,
    /// Jobs that were cancelled, but could not say so yet: they begin with that.
    cancelled: HashSet<Ulid>,
    sweeper: JoinHandle<()>,
}

struct Running {
    cancelled: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

/// Ends the actor's jobs with it: the next actor finds them unfinished, and two must not run one job.
impl Drop for JobsState {
    fn drop(&mut self) {
        self.sweeper.abort();
        self.running.values().for_each(|running| running.task.abort());
        self.arguments.metrics.active.set(0);
    }
}

impl Actor for JobsActor {
    type Msg = JobsMessage;
    type State = JobsState;
    type Arguments = JobsArguments;

    async fn pre_start(&self, myself: ActorRef<JobsMessage>, arguments: JobsArguments) -> Result<JobsState, ActorProcessingErr> {
        let sweeper = myself.send_interval(SWEEP, || JobsMessage::Sweep);
        myself.send_message(JobsMessage::FindUnfinished)?;
        arguments.address.moved_to(myself);
        Ok(JobsState { arguments, waiting: VecDeque::new(), running: HashMap::new(), cancelled: HashSet::new(), sweeper })
    }

    async fn handle(
        &self,
        myself: ActorRef<JobsMessage>,
        message: JobsMessage,
        state: &mut JobsState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            JobsMessage::Run { tenant, id } => state.enqueue(tenant, id),
            JobsMessage::Cancel { id, reply } => {
                let _ = reply.send(Ok(state.cancel(id))); // the caller may have gone
            }
            JobsMessage::Ended { tenant, id, again } => {
                let ended = state.running.remove(&id);
                if again {
                    let was_cancelled = ended.is_some_and(|job| job.cancelled.load(Ordering::Relaxed));
                    if was_cancelled {
                        state.cancelled.insert(id);
                    }
                    myself.send_after(RETRY_AFTER, move || JobsMessage::Run { tenant, id });
                }
            }
            JobsMessage::FindUnfinished => {
                tokio::spawn(find_unfinished(state.arguments.clone(), myself.clone()));
            }
            JobsMessage::Sweep => {
                tokio::spawn(sweep(state.arguments.clone()));
            }
            #[cfg(test)]
            JobsMessage::Panic => panic!("injected"),
        }
        state.start_waiting(&myself);
        state.arguments.metrics.active.set((state.running.len() + state.waiting.len()) as i64);
        Ok(())
    }
}

impl JobsState {
    fn enqueue(&mut self, tenant: TenantId, id: Ulid) {
        if !self.running.contains_key(&id) && !self.waiting.contains(&(tenant, id)) {
            self.waiting.push_back((tenant, id));
        }
    }

    fn cancel(&mut self, id: Ulid) -> bool {
        self.waiting.retain(|(_, waiting)| *waiting != id);
        let running = self.running.get(&id);
        if let Some(running) = running {
            running.cancelled.store(true, Ordering::Relaxed);
        }
        running.is_some()
    }

    fn start_waiting(&mut self, myself: &ActorRef<JobsMessage>) {
        while self.running.len() < RUNNING_MAX
            && let Some((tenant, id)) = self.waiting.pop_front()
        {
            let cancelled = Arc::new(AtomicBool::new(self.cancelled.remove(&id)));
            let run = JobRun { arguments: self.arguments.clone(), tenant, cancelled: cancelled.clone() };
            let myself = myself.clone();
            let task = tokio::spawn(async move {
                let again = match run.run(id).await {
                    Ok(()) => false,
                    Err(fault) => {
                        tracing::warn!(job = %id, %fault, "a job was interrupted, it will be tried again");
                        true
                    }
                };
                let _ = myself.send_message(JobsMessage::Ended { tenant, id, again }); // the actor may have ended
            });
            self.running.insert(id, Running { cancelled, task });
        }
    }
}

/// What is still to be stored of a job's upload.
#[derive(serde::Serialize, serde::Deserialize)]
struct Payload {
    documents: Vec<UploadDocument>,
}

async fn encode(documents: Vec<UploadDocument>) -> Result<Vec<u8>, ServiceError> {
    let encode = move || codec::encode(&Payload { documents });
    let payload = tokio::task::spawn_blocking(encode).await.map_err(|fault| ServiceError::internal(fault.to_string()))?;
    payload.map_err(|fault| ServiceError::internal(fault.to_string()))
}

/// Makes a job durable and returns its id. Its documents have been checked, and all of them have ids. The same upload under the same
/// idempotency key is the same job, however often it is sent.
pub async fn submit(
    shards: &Shards,
    collection: &Collection,
    documents: Vec<UploadDocument>,
    idempotency: Option<&Idempotency>,
) -> Result<Ulid, ServiceError> {
    let now = now_ms();
    let idempotency = idempotency.map(Idempotency::for_job);
    let job = JobRow {
        id: idempotency.as_ref().map_or_else(Ulid::new, |key| id_in_shard_of(shards, &key.key)),
        collection: collection.name.clone(),
        stage: JobStage::Received,
        attempt: 0,
        documents: documents.len() as u64,
        done: 0,
        failed: Vec::new(),
        created_at_ms: now,
        updated_at_ms: now,
    };
    let payload = Some(encode(documents).await?);
    let shard = shards.shard_of(&job.id.to_bytes());
    let command = ShardCommand::PutJob { tenant: collection.tenant, job, payload, idempotency };
    match shards.write(shard, collection.tenant, command).await? {
        (_, ShardReply::Job(id)) => {
            failpoints::hit(Point::JobSubmitted);
            Ok(id)
        }
        (_, other) => Err(refusal(&collection.name, &other)),
    }
}

/// A new id that is kept in the same shard as the idempotency key, which remembers it: an id says by itself in which shard its job is.
fn id_in_shard_of(shards: &Shards, key: &[u8]) -> Ulid {
    let shard = shards.shard_of(key);
    loop {
        let id = Ulid::new();
        if shards.shard_of(&id.to_bytes()) == shard {
            return id;
        }
    }
}

/// Reads a job.
pub async fn read(shards: &Shards, tenant: TenantId, id: Ulid) -> Result<JobRow, ServiceError> {
    match shards.ask(shards.shard_of(&id.to_bytes()), tenant, ShardFreshness::Strong, ShardRequest::Job { id }).await? {
        ShardResponse::Jobs(jobs) => {
            jobs.into_iter().next().ok_or_else(|| ServiceError::not_found("job_not_found", format!("there is no job {id}")))
        }
        other => Err(other.mismatch()),
    }
}

/// Reads jobs, newest first, those before the given one.
pub async fn list(shards: &Shards, tenant: TenantId, before: Option<Ulid>, limit: usize) -> Result<Vec<JobRow>, ServiceError> {
    let asks =
        shards.ids().map(|shard| shards.ask(shard, tenant, ShardFreshness::Eventual, ShardRequest::Jobs { before, limit }));
    let mut jobs = Vec::new();
    for answer in futures::future::join_all(asks).await {
        match answer? {
            ShardResponse::Jobs(some) => jobs.extend(some),
            other => return Err(other.mismatch()),
        }
    }
    jobs.sort_by_key(|job| std::cmp::Reverse(job.id));
    jobs.truncate(limit);
    Ok(jobs)
}

/// Writes a job's row.
pub async fn put(shards: &Shards, tenant: TenantId, mut job: JobRow) -> Result<JobRow, ServiceError> {
    job.updated_at_ms = now_ms();
    let command = ShardCommand::PutJob { tenant, job: job.clone(), payload: None, idempotency: None };
    shards.write(shards.shard_of(&job.id.to_bytes()), tenant, command).await?;
    Ok(job)
}

/// Has a job that was made durable run by the node that leads its shard. One that cannot be told finds it by itself.
pub async fn start(shards: &Shards, here: &Address<JobsMessage>, tenant: TenantId, id: Ulid) {
    let links = shards.links();
    match shards.leader_node(shards.shard_of(&id.to_bytes())) {
        Some(node) if node != links.own() => {
            if let Err(fault) = links.call(node, Lane::Calls, &Call::RunJob { tenant, id }, FORWARD_TIMEOUT).await {
                tracing::debug!(%node, %fault, "a node was not told of a job");
            }
        }
        _ => here.cast(JobsMessage::Run { tenant, id }),
    }
}

/// Stops a job where it runs, if that is anywhere; whether it does. It runs on a node with a replica of its shard.
pub async fn stop(shards: &Shards, here: &Address<JobsMessage>, id: Ulid) -> Result<bool, ServiceError> {
    let hosts = shards.hosts(shards.shard_of(&id.to_bytes())).await?;
    let asked = futures::future::join_all(hosts.into_iter().map(|node| stop_on(shards, here, node, id))).await;
    if asked.iter().any(|answer| matches!(answer, Ok(true))) {
        return Ok(true);
    }
    // One that is not reached has lost what it ran, when others are; of one that does not answer nobody can know.
    let is_answered = asked.iter().any(Result::is_ok);
    let unknown = |fault: &LinkError| !is_answered || !matches!(fault, LinkError::Unreachable { .. });
    match asked.into_iter().filter_map(Result::err).find(unknown) {
        Some(fault) => Err(fault.into_unavailable()),
        None => Ok(false),
    }
}

async fn stop_on(shards: &Shards, here: &Address<JobsMessage>, node: NodeId, id: Ulid) -> Result<bool, LinkError> {
    let links = shards.links();
    if node == links.own() {
        let stopped = here.call(FORWARD_TIMEOUT, Repeat::Safe, |reply| JobsMessage::Cancel { id, reply }).await;
        return stopped.map_err(LinkError::Refused);
    }
    match links.call(node, Lane::Calls, &Call::CancelJob(id), FORWARD_TIMEOUT).await? {
        Answer::Flag(running) => Ok(running),
        _ => Err(LinkError::Refused(ServiceError::internal("a node answered another question than it was asked"))),
    }
}

/// Refuses a new job when too many wait already.
pub fn check_room(metrics: &JobsMetrics) -> Result<(), ServiceError> {
    if metrics.active.get() >= WAITING_MAX as i64 {
        return Err(ServiceError::new(ErrorKind::TooManyRequests, "too_many_jobs", format!("{WAITING_MAX} jobs wait already")));
    }
    Ok(())
}

/// One job on its way.
struct JobRun {
    arguments: JobsArguments,
    tenant: TenantId,
    cancelled: Arc<AtomicBool>,
}

/// How far a job has come.
struct Progress {
    job: JobRow,
    /// Ids of the documents that are stored by now.
    stored: HashSet<String>,
}

impl JobRun {
    /// Runs the job to its end. An error says that the node was at fault: the job is as durable as before.
    async fn run(&self, id: Ulid) -> Result<(), ServiceError> {
        let shards = &self.arguments.shards;
        if !shards.leads_here(shards.shard_of(&id.to_bytes())) {
            return Ok(()); // the node that leads the job's shard finds it
        }
        let job = match read(shards, self.tenant, id).await {
            Ok(job) if !job.stage.is_final() => job,
            Ok(_) => return Ok(()),
            Err(fault) if fault.kind == ErrorKind::NotFound => return Ok(()),
            Err(fault) => return Err(fault),
        };
        if self.is_cancelled() {
            return self.reach(job, JobStage::Cancelled).await.map(|_| ());
        }
        let mut progress = Progress { job, stored: HashSet::new() };
        let Some(collection) = self.arguments.meta.find_collection(self.tenant, &progress.job.collection).await? else {
            let gone =
                ServiceError::not_found("collection_not_found", format!("there is no collection {}", progress.job.collection));
            return self.give_up(progress, &gone).await;
        };
        let Some(documents) = self.payload(id).await? else {
            // It goes once the job has ended: on the node that led the shard before, after this one had begun.
            if read(shards, self.tenant, id).await?.stage.is_final() {
                return Ok(());
            }
            return self.give_up(progress, &ServiceError::internal("what was uploaded is not there any more")).await;
        };
        match self.ingest(&mut progress, &collection, documents).await {
            Ok(stage) => self.end(progress, stage).await,
            // The collection was deleted or the documents cannot be stored: trying again would not help.
            Err(fault)
                if matches!(fault.kind, ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Conflict | ErrorKind::TooLarge) =>
            {
                self.give_up(progress, &fault).await
            }
            Err(fault) => Err(fault),
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Stores what is not stored yet, and returns the stage that the job ends in.
    async fn ingest(
        &self,
        progress: &mut Progress,
        collection: &Arc<Collection>,
        documents: Vec<UploadDocument>,
    ) -> Result<JobStage, ServiceError> {
        let pipeline = &self.arguments.pipeline;
        let stored_before = progress.job.documents.saturating_sub(documents.len() as u64);
        (progress.job.done, progress.job.failed) = (stored_before, Vec::new());
        progress.job = self.reach(progress.job.clone(), JobStage::Parsed).await?;
        let ids: Vec<String> = documents.iter().map(|document| document.id.clone().unwrap_or_default()).collect();
        let mut chunked = Vec::with_capacity(documents.len());
        for (result, id) in pipeline.chunk(collection, documents).await?.into_iter().zip(ids) {
            match result {
                Ok(document) => chunked.push(document),
                Err(fault) => note_failure(&mut progress.job, &id, &fault),
            }
        }
        progress.job = self.reach(progress.job.clone(), JobStage::Chunked).await?;
        let mut chunked = chunked.into_iter();
        loop {
            let documents: Vec<_> = chunked.by_ref().take(SLICE_DOCUMENTS).collect();
            if documents.is_empty() {
                break;
            }
            if self.is_cancelled() {
                return Ok(JobStage::Cancelled);
            }
            let key = slice_key(&progress.job, &documents);
            let prepared = pipeline.embed(&Account::of_tenant(collection.tenant), collection, documents).await?;
            let stored =
                pipeline.store(collection, prepared, Some(Idempotency::new("jobs", collection, &key, key.as_bytes()))).await?;
            failpoints::hit(Point::JobSliceStored);
            progress.job.done += stored.documents.len() as u64;
            progress.stored.extend(stored.documents.into_iter().map(|document| document.id));
            progress.job = self.reach(progress.job.clone(), JobStage::Embedded).await?;
        }
        Ok(if progress.job.done == 0 { JobStage::Failed } else { JobStage::Replicated })
    }

    /// Ends a job that cannot go on. What it has stored stays.
    async fn give_up(&self, mut progress: Progress, fault: &ServiceError) -> Result<(), ServiceError> {
        note_failure(&mut progress.job, "*", fault);
        let stage = if progress.job.done == 0 { JobStage::Failed } else { JobStage::Replicated };
        self.end(progress, stage).await
    }

    /// Ends a job. What it has not stored is kept until the job is forgotten, for a retry.
    async fn end(&self, progress: Progress, stage: JobStage) -> Result<(), ServiceError> {
        let Progress { job, stored } = progress;
        let (id, is_complete) = (job.id, job.failed.is_empty() && stage != JobStage::Cancelled);
        if !is_complete && !stored.is_empty() {
            self.keep_only_unstored(&job, &stored).await?;
        }
        self.reach(job, stage).await?;
        failpoints::hit(Point::JobEnded);
        if is_complete {
            let shards = &self.arguments.shards;
            let command = ShardCommand::DeleteJobs { tenant: self.tenant, ids: vec![id], keep_rows: true };
            shards.write(shards.shard_of(&id.to_bytes()), self.tenant, command).await?;
        }
        Ok(())
    }

    /// A retry must not store again what is stored: it may have been changed or deleted since.
    async fn keep_only_unstored(&self, job: &JobRow, stored: &HashSet<String>) -> Result<(), ServiceError> {
        let Some(mut documents) = self.payload(job.id).await? else { return Ok(()) };
        documents.retain(|document| document.id.as_ref().is_none_or(|id| !stored.contains(id)));
        let shards = &self.arguments.shards;
        let payload = Some(encode(documents).await?);
        let command = ShardCommand::PutJob { tenant: self.tenant, job: job.clone(), payload, idempotency: None };
        shards.write(shards.shard_of(&job.id.to_bytes()), self.tenant, command).await.map(|_| ())
    }

    async fn reach(&self, mut job: JobRow, stage: JobStage) -> Result<JobRow, ServiceError> {
        if stage.is_final() {
            self.arguments.metrics.ended.with_label_values(&[stage_name(stage)]).inc();
        }
        job.stage = stage;
        failpoints::hit(Point::JobStageBefore);
        let job = put(&self.arguments.shards, self.tenant, job).await?;
        failpoints::hit(Point::JobStageAfter);
        Ok(job)
    }

    async fn payload(&self, id: Ulid) -> Result<Option<Vec<UploadDocument>>, ServiceError> {
        let shards = &self.arguments.shards;
        let payload = match shards
            .ask(shards.shard_of(&id.to_bytes()), self.tenant, ShardFreshness::Strong, ShardRequest::JobPayload { id })
            .await?
        {
            ShardResponse::Payload(payload) => payload,
            other => return Err(other.mismatch()),
        };
        let Some(payload) = payload else { return Ok(None) };
        let decode = move || codec::decode::<Payload>(&payload);
        let payload = tokio::task::spawn_blocking(decode).await.map_err(|fault| ServiceError::internal(fault.to_string()))?;
        Ok(Some(payload.map_err(|fault| ServiceError::internal(format!("an upload cannot be read: {fault}")))?.documents))
    }
}

/// Makes a slice that was stored just before a crash count once. A slice of other documents, or of another attempt, is another one.
fn slice_key(job: &JobRow, documents: &[ChunkedDocument]) -> String {
    let ids: Vec<&str> = documents.iter().map(ChunkedDocument::id).collect();
    format!("job {} {} {}", job.id, job.attempt, ids.join("\0"))
}

fn note_failure(job: &mut JobRow, id: &str, fault: &ServiceError) {
    if job.failed.len() < FAILURES_NOTED_MAX {
        job.failed.push((id.to_owned(), fault.code.to_owned(), fault.detail.clone()));
    }
}

/// A stage's name in metrics and in the API.
pub fn stage_name(stage: JobStage) -> &'static str {
    match stage {
        JobStage::Received => "received",
        JobStage::Parsed => "parsed",
        JobStage::Chunked => "chunked",
        JobStage::Embedded => "embedded",
        JobStage::Replicated => "replicated",
        JobStage::Failed => "failed",
        JobStage::Cancelled => "cancelled",
    }
}

async fn find_unfinished(arguments: JobsArguments, actor: ActorRef<JobsMessage>) {
    actor.send_after(LOOK_AGAIN, || JobsMessage::FindUnfinished);
    // A job is run by the node that leads its shard: when another one takes over, so does it.
    for shard in arguments.shards.ids().filter(|shard| arguments.shards.leads_here(*shard)) {
        // Not a tenant's request: the node looks through its own work.
        match arguments.shards.ask(shard, TenantId(0), ShardFreshness::Strong, ShardRequest::UnfinishedJobs).await {
            Ok(ShardResponse::Unfinished(jobs)) => {
                for (tenant, id) in jobs {
                    tracing::debug!(job = %id, "a job is not finished");
                    let _ = actor.send_message(JobsMessage::Run { tenant, id }); // the actor may have ended
                }
            }
            Ok(_) | Err(_) => {
                tracing::debug!(%shard, "unfinished jobs of a shard could not be read, trying again");
            }
        }
    }
}

/// Forgets jobs of the default tenant that ended long ago.
async fn sweep(arguments: JobsArguments) {
    let tenant = ragged_raft::ids::DEFAULT_TENANT;
    let oldest = now_ms().saturating_sub(KEPT_MS);
    let before = Ulid::from_parts(oldest, 0);
    loop {
        let jobs = match list(&arguments.shards, tenant, Some(before), 256).await {
            Ok(jobs) => jobs,
            Err(fault) => return tracing::warn!(%fault, "old jobs could not be looked through"),
        };
        let old: Vec<Ulid> = jobs.iter().filter(|job| job.stage.is_final()).map(|job| job.id).collect();
        if old.is_empty() {
            return;
        }
        for id in old {
            let command = ShardCommand::DeleteJobs { tenant, ids: vec![id], keep_rows: false };
            if let Err(fault) = arguments.shards.write(arguments.shards.shard_of(&id.to_bytes()), tenant, command).await {
                return tracing::warn!(%fault, "an old job could not be forgotten");
            }
        }
    }
}
