//! What one authenticated request may do. The tenant is bound here, from the credential, and nowhere else.

use crate::account_seconds::Account;
use crate::cluster::services::Services;
use crate::engine::{Engine, Parts};
use crate::error::{ErrorKind, ServiceError};
use crate::filter::Filter;
use crate::ingest::document::{DOCUMENTS_MAX, UploadDocument, check_dimension, check_id};
use crate::ingest::import::Import;
use crate::ingest::jobs;
use crate::ingest::pipeline::{Idempotency, now_ms, refusal};
use crate::search::{Freshness, Search, SearchOutcome, freshness_of};
use crate::session::{ApiKey, Permit, Principal};
use crate::shard::request::{ShardRequest, ShardResponse, StoredDocument};
use crate::token::WriteToken;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::ids::{ShardId, TenantId};
use ragged_raft::meta::collection::{Collection, ModelRevision, VectorSettings};
use ragged_raft::meta::command::{MetaCommand, MetaReply};
use ragged_raft::mutant::{self, Mutant};
use ragged_raft::shard::command::{ShardCommand, ShardReply, Upserted};
use ragged_raft::shard::rows::{JobRow, JobStage};
use std::collections::BTreeMap;
use std::sync::Arc;
use ulid::Ulid;

/// Bytes of an idempotency key at most.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;
/// Documents that a deletion by filter takes away at once.
const DELETE_STEP: usize = 1_000;
/// Tokens of a chunk, at least and at most.
const CHUNK_TOKENS: std::ops::RangeInclusive<u32> = 16..=8192;

/// A collection that is to be made.
#[derive(Debug, Clone)]
pub struct CreateCollection {
    /// Its name.
    pub name: String,
    /// Number of shards; 1 by default.
    pub spread: Option<u16>,
    /// Where vectors come from.
    pub embedding: EmbeddingChoice,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
    /// Tokens that neighbours share.
    pub chunk_overlap: u32,
    /// ISO 639-1 code, or `none`.
    pub language: String,
}

/// Where a collection's vectors come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingChoice {
    /// The node's model.
    Default,
    /// The model of this name.
    Model(String),
    /// The client, with vectors of this length.
    External(u32),
}

/// What a collection holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Documents.
    pub documents: u64,
    /// Chunks.
    pub chunks: u64,
}

/// Documents that were stored.
#[derive(Debug, Clone)]
pub struct Uploaded {
    /// One entry a document, in the order of the upload.
    pub documents: Vec<Upserted>,
    /// Names the write.
    pub token: String,
}

/// Documents that were deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// How many.
    pub deleted: u64,
    /// Names the write.
    pub token: String,
}

/// One authenticated request.
pub struct Session {
    parts: Arc<Parts>,
    principal: Principal,
    _permit: Permit,
}

impl Engine {
    /// Lets a request in that carries this key.
    pub async fn open_session(&self, bearer: &str) -> Result<Session, ServiceError> {
        let wrong = || {
            ServiceError::new(
                ErrorKind::Unauthenticated,
                "invalid_credentials",
                "the API key is missing or wrong: send it as `Authorization: Bearer <key>`",
            )
        };
        if self.parts.services.links.is_removed() {
            // What it has is of the past, and grows older.
            return Err(ServiceError::unavailable("node_left", "this node has been removed from its cluster: ask another"));
        }
        let key = ApiKey::parse(bearer).map_err(|_| wrong())?;
        let record = self.parts.meta.find_key(key.id()).await?.filter(|record| key.matches(record)).ok_or_else(wrong)?;
        let principal = Principal { tenant: record.tenant, key_id: record.id.clone(), role: record.role };
        let permit = self.parts.sessions.admit(&principal).await?;
        Ok(Session { parts: self.parts.clone(), principal, _permit: permit })
    }
}

impl Session {
    /// Whom the request acts for.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// What the node does among others.
    pub(crate) fn services(&self) -> &Services {
        &self.parts.services
    }

    fn tenant(&self) -> TenantId {
        self.principal.tenant
    }

    /// Whose seconds of devices the request's are.
    fn account(&self) -> Account {
        Account { tenant: self.principal.tenant, key: Some(self.principal.key_id.as_str().into()) }
    }

    async fn find(&self, name: &str) -> Result<Arc<Collection>, ServiceError> {
        check_name(name)?;
        let found = self.parts.meta.find_collection(self.tenant(), name).await?;
        found.ok_or_else(|| ServiceError::not_found("collection_not_found", format!("there is no collection {name}")))
    }

    /// Makes a collection.
    pub async fn create_collection(&self, new: CreateCollection) -> Result<Collection, ServiceError> {
        check_name(&new.name)?;
        let shard_count = self.parts.shards.count();
        let spread = new.spread.unwrap_or(1);
        if spread == 0 || spread > shard_count {
            return Err(ServiceError::invalid(
                "invalid_spread",
                format!("spread: is 1 to {shard_count}, the cluster's number of shards"),
            ));
        }
        if !CHUNK_TOKENS.contains(&new.chunk_tokens) || new.chunk_overlap >= new.chunk_tokens / 2 {
            let detail = format!(
                "chunking: tokens is {} to {}, and overlap less than half of it",
                CHUNK_TOKENS.start(),
                CHUNK_TOKENS.end()
            );
            return Err(ServiceError::invalid("invalid_chunking", detail));
        }
        let command = MetaCommand::CreateCollection {
            tenant: self.tenant(),
            name: new.name.clone(),
            spread,
            vectors: vec![self.vector_settings(&new.embedding)?],
            chunk_tokens: new.chunk_tokens,
            chunk_overlap: new.chunk_overlap,
            language: new.language,
            at_ms: now_ms(),
        };
        match self.parts.meta.change(command).await? {
            MetaReply::Collection(collection) => Ok(collection),
            MetaReply::AlreadyExists => Err(ServiceError::new(
                ErrorKind::Conflict,
                "collection_exists",
                format!("there is a collection {} already", new.name),
            )),
            MetaReply::LimitExceeded(detail) => Err(ServiceError::new(ErrorKind::Conflict, "too_many_collections", detail)),
            other => Err(ServiceError::internal(format!("the meta group answered {other:?}"))),
        }
    }

    fn vector_settings(&self, choice: &EmbeddingChoice) -> Result<VectorSettings, ServiceError> {
        let model = self.parts.embedding.model();
        let (dimension, revision) = match choice {
            EmbeddingChoice::External(dimension) => {
                check_dimension(*dimension)?;
                (*dimension, None)
            }
            EmbeddingChoice::Model(name) if name != model.name() => {
                return Err(ServiceError::invalid(
                    "unknown_model",
                    format!("embedding.model: {name} is not there, the node has {}", model.name()),
                ));
            }
            EmbeddingChoice::Model(_) | EmbeddingChoice::Default => (
                model.dimension() as u32,
                Some(ModelRevision { name: model.name().to_owned(), revision: model.revision().to_owned() }),
            ),
        };
        Ok(VectorSettings { name: "default".into(), dimension, model: revision })
    }

    /// A collection, and what it holds.
    pub async fn collection(&self, name: &str) -> Result<(Collection, Counts), ServiceError> {
        let collection = self.find(name).await?;
        let asks =
            collection.shards.iter().map(|shard| self.ask(*shard, ShardRequest::Counts { collection: collection.clone() }));
        let mut counts = Counts::default();
        for answer in futures::future::join_all(asks).await {
            match answer? {
                ShardResponse::Counts(row) => {
                    counts.documents += row.documents;
                    counts.chunks += row.chunks;
                }
                other => return Err(other.mismatch()),
            }
        }
        Ok((Arc::unwrap_or_clone(collection), counts))
    }

    /// Collections in the order of their names, and where to go on.
    pub async fn collections(
        &self,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Collection>, Option<String>), ServiceError> {
        let mut page = self.parts.meta.group()?.collections(self.tenant(), cursor, limit + 1)?;
        let more = page.len() > limit;
        page.truncate(limit);
        let next = page.last().filter(|_| more).map(|collection| collection.name.clone());
        Ok((page, next))
    }

    /// Deletes a collection with everything in it: nobody finds it any more, its rows are cleared behind.
    pub async fn delete_collection(&self, name: &str) -> Result<(), ServiceError> {
        check_name(name)?;
        match self.parts.meta.change(MetaCommand::DeleteCollection { tenant: self.tenant(), name: name.to_owned() }).await? {
            MetaReply::Collection(_) => {
                self.parts.dropped.notify_one();
                Ok(())
            }
            MetaReply::NotFound => Err(ServiceError::not_found("collection_not_found", format!("there is no collection {name}"))),
            other => Err(ServiceError::internal(format!("the meta group answered {other:?}"))),
        }
    }

    /// Stores documents and returns when they are durable and searchable. Nothing is stored when one of them is refused.
    pub async fn upload(
        &self,
        collection: &str,
        documents: Vec<UploadDocument>,
        idempotency_key: Option<&str>,
    ) -> Result<Uploaded, ServiceError> {
        let (collection, documents, idempotency) = self.receive(collection, documents, idempotency_key).await?;
        let pipeline = &self.parts.pipeline;
        let mut chunked = Vec::with_capacity(documents.len());
        for (position, result) in pipeline.chunk(&collection, documents).await?.into_iter().enumerate() {
            chunked.push(result.map_err(|fault| at_document(position, fault))?);
        }
        let prepared = pipeline.embed(&self.account(), &collection, chunked).await?;
        let uploaded = pipeline.store(&collection, prepared, idempotency).await?;
        Ok(Uploaded { documents: uploaded.documents, token: uploaded.token.reveal()? })
    }

    /// Makes an upload durable as a job, and returns before it is done.
    pub async fn submit(
        &self,
        collection: &str,
        documents: Vec<UploadDocument>,
        idempotency_key: Option<&str>,
    ) -> Result<Ulid, ServiceError> {
        jobs::check_room(&self.parts.jobs_metrics)?;
        let (collection, mut documents, idempotency) = self.receive(collection, documents, idempotency_key).await?;
        for document in &mut documents {
            document.id.get_or_insert_with(|| Ulid::new().to_string());
        }
        let id = jobs::submit(&self.parts.shards, &collection, documents, idempotency.as_ref()).await?;
        jobs::start(&self.parts.shards, &self.parts.jobs, self.tenant(), id).await;
        Ok(id)
    }

    /// Checks an upload as a whole.
    async fn receive(
        &self,
        collection: &str,
        mut documents: Vec<UploadDocument>,
        idempotency_key: Option<&str>,
    ) -> Result<(Arc<Collection>, Vec<UploadDocument>, Option<Idempotency>), ServiceError> {
        let collection = self.find(collection).await?;
        if documents.is_empty() || documents.len() > DOCUMENTS_MAX {
            return Err(ServiceError::invalid(
                "invalid_document_count",
                format!("documents: has {} entries, 1 to {DOCUMENTS_MAX} are allowed", documents.len()),
            ));
        }
        for (position, document) in documents.iter().enumerate() {
            document.check(&collection, &format!("documents[{position}]"))?;
        }
        let idempotency = match idempotency_key {
            Some(key) => Some(self.idempotency(&collection, key, &documents)?),
            None => None,
        };
        if let Some(idempotency) = &idempotency {
            for (position, document) in documents.iter_mut().enumerate() {
                document.id.get_or_insert_with(|| idempotency.document_id(position));
            }
        }
        Ok((collection, documents, idempotency))
    }

    fn idempotency(&self, collection: &Collection, key: &str, documents: &[UploadDocument]) -> Result<Idempotency, ServiceError> {
        if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ServiceError::invalid(
                "invalid_idempotency_key",
                format!("Idempotency-Key: is 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters"),
            ));
        }
        let content = serde_json::to_vec(documents).map_err(|fault| ServiceError::internal(fault.to_string()))?;
        Ok(Idempotency::new(&self.principal.key_id, collection, key, &content))
    }

    /// Begins an import.
    pub async fn import(&self, collection: &str) -> Result<Import, ServiceError> {
        Ok(Import::new(self.account(), self.parts.pipeline.clone(), self.find(collection).await?))
    }

    /// A document with its text.
    pub async fn document(&self, collection: &str, id: &str, freshness: &Freshness) -> Result<StoredDocument, ServiceError> {
        check_id(id, "id")?;
        let collection = self.find(collection).await?;
        let shard = collection.shard_of(id);
        match self.ask_as_of(shard, freshness, ShardRequest::Document { collection, id: id.to_owned() }).await? {
            ShardResponse::Documents(documents) => documents.into_iter().next().ok_or_else(|| no_document(id)),
            other => Err(other.mismatch()),
        }
    }

    /// Documents in the order of their ids, and where to go on. A page with texts ends before it grows too long.
    pub async fn documents(
        &self,
        collection: &str,
        cursor: Option<&str>,
        limit: usize,
        with_text: bool,
        freshness: &Freshness,
    ) -> Result<(Vec<StoredDocument>, Option<String>), ServiceError> {
        let collection = self.find(collection).await?;
        let asks = collection.shards.iter().map(|shard| {
            let request = ShardRequest::Documents {
                collection: collection.clone(),
                after: cursor.map(str::to_owned),
                limit: limit + 1,
                with_text,
            };
            self.ask_as_of(*shard, freshness, request)
        });
        let mut page = Vec::new();
        for answer in futures::future::join_all(asks).await {
            match answer? {
                ShardResponse::Documents(documents) => page.extend(documents),
                other => return Err(other.mismatch()),
            }
        }
        page.sort_by(|one, other| one.head.id.as_bytes().cmp(other.head.id.as_bytes()));
        // A shard leaves texts out once it has read enough of them.
        let complete = page.iter().take_while(|document| !with_text || document.text.is_some()).count();
        let more = page.len() > complete.min(limit);
        let skipped = page.get(limit).filter(|_| mutant::is_on(Mutant::ListingSkips)).map(|document| document.head.id.clone());
        page.truncate(complete.min(limit));
        let next = skipped.or_else(|| page.last().filter(|_| more).map(|document| document.head.id.clone()));
        Ok((page, next))
    }

    /// Deletes a document.
    pub async fn delete_document(&self, collection: &str, id: &str) -> Result<Deleted, ServiceError> {
        check_id(id, "id")?;
        let collection = self.find(collection).await?;
        let mut token = WriteToken::default();
        match self.delete_ids(&collection, vec![id.to_owned()], &mut token).await? {
            0 => Err(no_document(id)),
            deleted => Ok(Deleted { deleted, token: token.reveal()? }),
        }
    }

    /// Deletes every document that passes a filter.
    pub async fn delete_matching(&self, collection: &str, filter: Filter) -> Result<Deleted, ServiceError> {
        if filter.is_empty() {
            return Err(ServiceError::invalid(
                "empty_filter",
                "filter: is empty and would delete everything; delete the collection instead",
            ));
        }
        let collection = self.find(collection).await?;
        let (mut deleted, mut token) = (0, WriteToken::default());
        for shard in &collection.shards {
            let mut after = None;
            loop {
                let request = ShardRequest::Matching {
                    collection: collection.clone(),
                    filter: filter.clone(),
                    after: after.clone(),
                    limit: DELETE_STEP,
                };
                let documents = match self.ask(*shard, request).await? {
                    ShardResponse::Matching(documents) => documents,
                    other => return Err(other.mismatch()),
                };
                let Some((last, _)) = documents.last().cloned() else { break };
                // One that was replaced since may not match any more: only what was seen is deleted.
                let command = ShardCommand::DeleteSeen { tenant: self.tenant(), collection: collection.id, documents };
                deleted += self.write_deletion(&collection, *shard, command, &mut token).await?;
                after = Some(last);
            }
        }
        Ok(Deleted { deleted, token: token.reveal()? })
    }

    async fn delete_ids(
        &self,
        collection: &Arc<Collection>,
        ids: Vec<String>,
        token: &mut WriteToken,
    ) -> Result<u64, ServiceError> {
        let mut by_shard: BTreeMap<ShardId, Vec<String>> = BTreeMap::new();
        for id in ids {
            by_shard.entry(collection.shard_of(&id)).or_default().push(id);
        }
        let mut deleted = 0;
        for (shard, ids) in by_shard {
            let command = ShardCommand::Delete { tenant: self.tenant(), collection: collection.id, ids, at_ms: now_ms() };
            deleted += self.write_deletion(collection, shard, command, token).await?;
        }
        Ok(deleted)
    }

    async fn write_deletion(
        &self,
        collection: &Collection,
        shard: ShardId,
        command: ShardCommand,
        token: &mut WriteToken,
    ) -> Result<u64, ServiceError> {
        match self.parts.shards.write(shard, self.tenant(), command).await? {
            (index, ShardReply::Deleted(deleted)) => {
                token.add(shard, index);
                Ok(deleted)
            }
            (_, other) => Err(refusal(&collection.name, &other)),
        }
    }

    /// Searches a collection.
    pub async fn search(&self, collection: &str, search: Search) -> Result<SearchOutcome, ServiceError> {
        self.parts.searcher.search(&self.account(), self.find(collection).await?, search).await
    }

    /// Jobs, newest first, and where to go on.
    pub async fn jobs(&self, cursor: Option<&str>, limit: usize) -> Result<(Vec<JobRow>, Option<String>), ServiceError> {
        let before = cursor
            .map(|cursor| {
                Ulid::from_string(cursor)
                    .map_err(|_| ServiceError::invalid("invalid_cursor", "cursor: is not one that a listing returned"))
            })
            .transpose()?;
        let mut page = jobs::list(&self.parts.shards, self.tenant(), before, limit + 1).await?;
        let more = page.len() > limit;
        page.truncate(limit);
        let next = page.last().filter(|_| more).map(|job| job.id.to_string());
        Ok((page, next))
    }

    /// A job.
    pub async fn job(&self, id: &str) -> Result<JobRow, ServiceError> {
        jobs::read(&self.parts.shards, self.tenant(), job_id(id)?).await
    }

    /// Runs a job again that has ended with failures.
    pub async fn retry_job(&self, id: &str) -> Result<JobRow, ServiceError> {
        let mut job = self.job(id).await?;
        let can_retry = job.stage.is_final() && (job.stage != JobStage::Replicated || !job.failed.is_empty());
        if !can_retry {
            let detail = format!(
                "job {id} is {}: only a job that failed, was cancelled or has failed documents can be retried",
                jobs::stage_name(job.stage)
            );
            return Err(ServiceError::new(ErrorKind::Conflict, "job_not_retryable", detail));
        }
        job.stage = JobStage::Received;
        job.attempt += 1;
        job.failed = Vec::new();
        let (tenant, id) = (self.tenant(), job.id);
        let job = jobs::put(&self.parts.shards, tenant, job).await?;
        jobs::start(&self.parts.shards, &self.parts.jobs, tenant, id).await;
        Ok(job)
    }

    /// Stops a job; what it has stored stays.
    pub async fn cancel_job(&self, id: &str) -> Result<JobRow, ServiceError> {
        let mut job = self.job(id).await?;
        if job.stage.is_final() {
            return Err(ServiceError::new(
                ErrorKind::Conflict,
                "job_ended",
                format!("job {id} has ended: it is {}", jobs::stage_name(job.stage)),
            ));
        }
        let running = jobs::stop(&self.parts.shards, &self.parts.jobs, job.id).await?;
        if !running {
            job.stage = JobStage::Cancelled;
            return jobs::put(&self.parts.shards, self.tenant(), job).await;
        }
        self.job(id).await
    }

    async fn ask(&self, shard: ShardId, request: ShardRequest) -> Result<ShardResponse, ServiceError> {
        self.ask_as_of(shard, &Freshness::Eventual, request).await
    }

    async fn ask_as_of(
        &self,
        shard: ShardId,
        freshness: &Freshness,
        request: ShardRequest,
    ) -> Result<ShardResponse, ServiceError> {
        self.parts.shards.ask(shard, self.tenant(), freshness_of(freshness, shard), request).await
    }
}

impl Parts {
    /// Clears a deleted collection out of every shard, then out of the list of deleted ones.
    async fn drop_collection(&self, collection: &Collection) -> Result<(), ServiceError> {
        failpoints::hit(Point::CollectionDropBefore);
        for shard in &collection.shards {
            let command = ShardCommand::DropCollection { tenant: collection.tenant, collection: collection.id };
            self.shards.write(*shard, collection.tenant, command).await?;
            failpoints::hit(Point::CollectionDropShard);
        }
        self.meta.change(MetaCommand::ForgetCollection { collection: collection.id }).await.map(|_| ())
    }

    /// Clears collections whose deletion was interrupted.
    pub(crate) async fn drop_leftovers(&self) -> Result<(), ServiceError> {
        loop {
            let dropped = self.meta.group()?.dropped_collections(64)?;
            if dropped.is_empty() {
                return Ok(());
            }
            for collection in dropped {
                self.drop_collection(&collection).await?;
            }
        }
    }
}

/// Checks a collection's name.
fn check_name(name: &str) -> Result<(), ServiceError> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    let first_ok = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if name.len() > 63 || !first_ok || !name.bytes().all(inner) {
        return Err(ServiceError::invalid(
            "invalid_collection_name",
            "name: a collection's name matches [a-z0-9][a-z0-9_-]{0,62}",
        ));
    }
    Ok(())
}

fn job_id(text: &str) -> Result<Ulid, ServiceError> {
    Ulid::from_string(text).map_err(|_| ServiceError::not_found("job_not_found", "there is no job of that id"))
}

fn no_document(id: &str) -> ServiceError {
    ServiceError::not_found("document_not_found", format!("there is no document {id}"))
}

fn at_document(position: usize, fault: ServiceError) -> ServiceError {
    ServiceError { detail: format!("documents[{position}]: {}", fault.detail), ..fault }
}
