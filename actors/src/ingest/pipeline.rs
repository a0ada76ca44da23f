//! The way of documents from an upload into the shards: parsed, chunked, embedded, replicated.

use crate::account_seconds::Account;
use crate::embedding::{Embedding, Urgency};
use crate::error::{ErrorKind, ServiceError};
use crate::ingest::chunk::{Chunker, embedded_text, whole};
use crate::ingest::document::UploadDocument;
use crate::ingest::parse::parse;
use crate::shards::Shards;
use crate::token::WriteToken;
use half::f16;
use prometheus::{IntCounter, Registry};
use ragged_raft::failpoints::{self, Point};
use ragged_raft::ids::ShardId;
use ragged_raft::meta::collection::Collection;
use ragged_raft::mutant::{self, Mutant};
use ragged_raft::shard::command::{IdempotencyKey, PreparedChunk, PreparedDocument, ShardCommand, ShardReply, Upserted};
use ragged_raft::shard::rows::{ChunkText, DocumentHead};
use std::collections::BTreeMap;
use std::sync::Arc;
use ulid::Ulid;

/// Bytes of documents that one write carries before another is begun.
const WRITE_BYTES: usize = 4 << 20;

/// Brings documents into the shards.
#[derive(Clone)]
pub struct Pipeline {
    embedding: Embedding,
    shards: Shards,
    metrics: PipelineMetrics,
}

/// What the pipeline counts.
#[derive(Clone)]
pub struct PipelineMetrics {
    /// Documents stored.
    pub documents: IntCounter,
    /// Chunks stored.
    pub chunks: IntCounter,
}

impl PipelineMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = PipelineMetrics {
            documents: IntCounter::new("ragged_ingested_documents_total", "Documents stored.")?,
            chunks: IntCounter::new("ragged_ingested_chunks_total", "Chunks stored.")?,
        };
        registry.register(Box::new(metrics.documents.clone()))?;
        registry.register(Box::new(metrics.chunks.clone()))?;
        Ok(metrics)
    }
}

/// Documents that are stored and searchable.
#[derive(Debug, Clone, Default)]
pub struct Uploaded {
    /// One entry a document, in the order of the upload.
    pub documents: Vec<Upserted>,
    /// Names the writes.
    pub token: WriteToken,
}

/// A document that has been parsed and cut, but has no vectors yet.
pub struct ChunkedDocument {
    head: DocumentHead,
    text: String,
    chunks: Vec<ChunkText>,
    /// What each chunk is embedded with.
    embedded_title: String,
    /// The client's vector; the document then is one chunk.
    vector: Option<Vec<f32>>,
}

impl ChunkedDocument {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.head.id
    }
}

impl Pipeline {
    /// A pipeline into these shards.
    pub fn new(embedding: Embedding, shards: Shards, metrics: PipelineMetrics) -> Self {
        Pipeline { embedding, shards, metrics }
    }

    /// Parses and cuts documents: each a result of its own.
    pub async fn chunk(
        &self,
        collection: &Arc<Collection>,
        documents: Vec<UploadDocument>,
    ) -> Result<Vec<Result<ChunkedDocument, ServiceError>>, ServiceError> {
        let (model, collection) = (self.embedding.model().clone(), collection.clone());
        let chunk_all = move || {
            let chunker = Chunker {
                tokenizer: model.tokenizer(),
                tokens: (collection.chunk_tokens as usize).min(model.max_tokens()),
                overlap: collection.chunk_overlap as usize,
            };
            documents.into_iter().map(|document| guarded(|| chunk_one(&chunker, document))).collect::<Vec<_>>()
        };
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || span.in_scope(chunk_all))
            .await
            .map_err(|fault| ServiceError::internal(format!("chunking failed: {fault}")))
    }

    /// Gives chunks their vectors.
    pub async fn embed(
        &self,
        account: &Account,
        collection: &Collection,
        documents: Vec<ChunkedDocument>,
    ) -> Result<Vec<PreparedDocument>, ServiceError> {
        let texts: Vec<String> = documents
            .iter()
            .filter(|document| document.vector.is_none())
            .flat_map(|document| document.chunks.iter().map(|chunk| embedded_text(&document.embedded_title, chunk)))
            .collect();
        if !texts.is_empty() {
            self.check_model(collection)?;
        }
        let mut vectors = self.embedding.embed(account, Urgency::Document, texts).await?;
        if mutant::is_on(Mutant::VectorsSwapped) {
            vectors.reverse();
        }
        let mut vectors = vectors.into_iter();
        documents.into_iter().map(|document| with_vectors(document, &mut vectors)).collect()
    }

    /// The node must have the very model that the collection's other vectors were made by.
    pub fn check_model(&self, collection: &Collection) -> Result<(), ServiceError> {
        let model = self.embedding.model();
        match &collection.vector().model {
            None => Err(ServiceError::invalid(
                "vector_required",
                format!("collection {} takes the client's vectors", collection.name),
            )),
            Some(wanted) if wanted.name != model.name() || wanted.revision != model.revision() => {
                let detail = format!(
                    "collection {} was made with model {} revision {}, this node has {} revision {}",
                    collection.name,
                    wanted.name,
                    wanted.revision,
                    model.name(),
                    model.revision()
                );
                Err(ServiceError::unavailable("model_not_loaded", detail))
            }
            Some(_) => Ok(()),
        }
    }

    /// Replicates documents, each as one step, those of one shard in few writes.
    pub async fn store(
        &self,
        collection: &Arc<Collection>,
        documents: Vec<PreparedDocument>,
        idempotency: Option<Idempotency>,
    ) -> Result<Uploaded, ServiceError> {
        let order: Vec<String> = documents.iter().map(|document| document.head.id.clone()).collect();
        let chunks: usize = documents.iter().map(|document| document.chunks.len()).sum();
        let mut by_shard: BTreeMap<ShardId, Vec<PreparedDocument>> = BTreeMap::new();
        for document in documents {
            by_shard.entry(collection.shard_of(&document.head.id)).or_default().push(document);
        }
        let idempotency = idempotency.as_ref();
        if let Some(idempotency) = idempotency {
            self.reserve(collection, idempotency).await?;
        }
        let writes = by_shard.into_iter().map(|(shard, documents)| self.store_in(shard, collection, documents, idempotency));
        let mut uploaded = Uploaded::default();
        // An id that occurs twice has two results: the first of them first.
        let mut results: BTreeMap<String, std::collections::VecDeque<Upserted>> = BTreeMap::new();
        for (token, documents) in all_or_unknown(futures::future::join_all(writes).await)? {
            uploaded.token.merge(&token);
            documents.into_iter().for_each(|document| results.entry(document.id.clone()).or_default().push_back(document));
        }
        uploaded.documents = order.iter().filter_map(|id| results.get_mut(id)?.pop_front()).collect();
        self.metrics.documents.inc_by(uploaded.documents.len() as u64);
        self.metrics.chunks.inc_by(chunks as u64);
        Ok(uploaded)
    }

    /// Binds an idempotency key to its request, in one shard, before any shard is written: another request under the same key is refused
    /// before a part of it is stored.
    async fn reserve(&self, collection: &Arc<Collection>, idempotency: &Idempotency) -> Result<(), ServiceError> {
        let key = idempotency.reservation();
        let Some(shard) = collection.shards.get(usize::from(key.key[0]) % collection.shards.len().max(1)) else { return Ok(()) };
        if collection.shards.len() == 1 {
            return Ok(()); // the first write does it
        }
        let command = ShardCommand::Upsert {
            tenant: collection.tenant,
            collection: collection.id,
            documents: Vec::new(),
            idempotency: Some(key),
            at_ms: now_ms(),
        };
        match self.shards.write(*shard, collection.tenant, command).await? {
            (_, ShardReply::Upserted(_)) => Ok(()),
            (_, other) => Err(refusal(&collection.name, &other)),
        }
    }

    async fn store_in(
        &self,
        shard: ShardId,
        collection: &Arc<Collection>,
        documents: Vec<PreparedDocument>,
        idempotency: Option<&Idempotency>,
    ) -> Result<(WriteToken, Vec<Upserted>), ServiceError> {
        let (mut token, mut stored) = (WriteToken::default(), Vec::new());
        for (part, documents) in split_by_size(documents).into_iter().enumerate() {
            let command = ShardCommand::Upsert {
                tenant: collection.tenant,
                collection: collection.id,
                documents,
                idempotency: idempotency.map(|idempotency| idempotency.for_part(shard, part)),
                at_ms: now_ms(),
            };
            let written = match self.shards.write(shard, collection.tenant, command).await {
                Ok((index, ShardReply::Upserted(documents))) => Ok((index, documents)),
                Ok((_, other)) => Err(refusal(&collection.name, &other)),
                Err(fault) => Err(fault),
            };
            let (index, documents) = written.map_err(|fault| if part == 0 { fault } else { partly_stored(&fault) })?;
            failpoints::hit(Point::UploadShardWritten);
            stored.extend(documents);
            token.add(shard, index);
        }
        Ok((token, stored))
    }
}

/// What all shards wrote. When some did and some did not, the outcome of the whole is neither success nor failure.
fn all_or_unknown<T>(written: Vec<Result<T, ServiceError>>) -> Result<Vec<T>, ServiceError> {
    let is_any_stored = written.iter().any(Result::is_ok);
    let all: Result<Vec<T>, ServiceError> = written.into_iter().collect();
    all.map_err(|fault| if is_any_stored { partly_stored(&fault) } else { fault })
}

fn partly_stored(fault: &ServiceError) -> ServiceError {
    let detail = format!(
        "some of the documents are stored and some are not ({fault}): send the upload again, with the same idempotency key if it had one"
    );
    ServiceError::new(ErrorKind::UnknownOutcome, "unknown_outcome", detail)
}

/// A client's idempotency key, bound to who used it, and for what.
#[derive(Debug, Clone)]
pub struct Idempotency {
    scope: String,
    request: [u8; 16],
}

impl Idempotency {
    /// The key as used by a principal on a collection, for a request of this content.
    pub fn new(principal: &str, collection: &Collection, key: &str, content: &[u8]) -> Self {
        let scope = format!("{principal}\0{}\0{key}", collection.id.0);
        Idempotency { scope, request: xxhash_rust::xxh3::xxh3_128(content).to_le_bytes() }
    }

    /// The id of a document that was uploaded without one: the same in every retry.
    pub fn document_id(&self, position: usize) -> String {
        let request = u128::from_le_bytes(self.request);
        let hash = xxhash_rust::xxh3::xxh3_128(format!("{}\0{request}\0document\0{position}", self.scope).as_bytes());
        Ulid::from(hash).to_string()
    }

    /// The key of the job that the request becomes.
    pub fn for_job(&self) -> IdempotencyKey {
        self.key("job")
    }

    fn reservation(&self) -> IdempotencyKey {
        self.key("upload")
    }

    fn for_part(&self, shard: ShardId, part: usize) -> IdempotencyKey {
        self.key(&format!("{}\0{part}", shard.0))
    }

    fn key(&self, purpose: &str) -> IdempotencyKey {
        let key = format!("{}\0{purpose}", self.scope);
        IdempotencyKey { key: xxhash_rust::xxh3::xxh3_128(key.as_bytes()).to_le_bytes(), request: self.request }
    }
}

/// Milliseconds since 1970-01-01 UTC.
pub fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A parser or splitter that panics on a text costs that document, not its neighbours.
fn guarded<T>(work: impl FnOnce() -> Result<T, ServiceError>) -> Result<T, ServiceError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(ServiceError::invalid("not_readable", "the document cannot be read: its parser failed")))
}

fn chunk_one(chunker: &Chunker<'_>, document: UploadDocument) -> Result<ChunkedDocument, ServiceError> {
    let text = parse(document.text, document.format)?;
    let title = document.title.as_deref().unwrap_or_default();
    let embedded_title = chunker.embedded_title(title).to_owned();
    let chunks = match &document.vector {
        Some(_) => vec![whole(&text)],
        None => chunker.chunks(title, &text, document.format)?,
    };
    let metadata = serde_json::to_string(&document.metadata)
        .map_err(|fault| ServiceError::invalid("invalid_metadata", fault.to_string()))?;
    let id = document.id.unwrap_or_else(|| Ulid::new().to_string());
    let head = DocumentHead::uploaded(id, document.title, document.format, metadata);
    Ok(ChunkedDocument { head, text, chunks, embedded_title, vector: document.vector })
}

fn with_vectors(
    document: ChunkedDocument,
    embedded: &mut impl Iterator<Item = Vec<f32>>,
) -> Result<PreparedDocument, ServiceError> {
    let ChunkedDocument { head, text, chunks, vector, .. } = document;
    let mut own = vector.map(|mut vector| {
        normalize(&mut vector);
        vector
    });
    let chunks = chunks
        .into_iter()
        .map(|chunk| {
            let vector =
                own.take().or_else(|| embedded.next()).ok_or_else(|| ServiceError::internal("a chunk was given no vector"))?;
            Ok(PreparedChunk { text: chunk, vectors: vec![as_f16_bytes(&vector)] })
        })
        .collect::<Result<Vec<_>, ServiceError>>()?;
    Ok(PreparedDocument { head, text, chunks })
}

/// Scales a vector to length 1 without overflowing on large numbers.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|number| *number = (f64::from(*number) / length) as f32);
    }
}

fn as_f16_bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|number| f16::from_f32(*number).to_le_bytes()).collect()
}

fn split_by_size(documents: Vec<PreparedDocument>) -> Vec<Vec<PreparedDocument>> {
    let mut parts: Vec<Vec<PreparedDocument>> = Vec::new();
    let mut bytes = usize::MAX;
    for document in documents {
        let size = document.text.len()
            + document
                .chunks
                .iter()
                .map(|chunk| chunk.text.text.len() + chunk.vectors.iter().map(Vec::len).sum::<usize>())
                .sum::<usize>();
        if bytes.saturating_add(size) > WRITE_BYTES {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(document);
        }
    }
    parts
}

/// What a shard's refusal means to the one who asked.
pub fn refusal(collection: &str, reply: &ShardReply) -> ServiceError {
    match reply {
        ShardReply::IdempotencyConflict => ServiceError::new(
            ErrorKind::Conflict,
            "idempotency_conflict",
            "the idempotency key was used for another request; use a new key for a new request",
        ),
        ShardReply::PartitionFull => ServiceError::new(
            ErrorKind::Conflict,
            "partition_full",
            format!("collection {collection} has used up its row numbers; make a new one with a larger spread"),
        ),
        ShardReply::CollectionDropped => {
            ServiceError::not_found("collection_not_found", format!("collection {collection} was deleted meanwhile"))
        }
        other => ServiceError::internal(format!("a shard answered {other:?}")),
    }
}
