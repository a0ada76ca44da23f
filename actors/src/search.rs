//! A search: asks the collection's shards, merges their rankings, and fetches what the hits show.

use crate::account_seconds::Account;
use crate::embedding::Embedding;
use crate::error::{ErrorKind, ServiceError};
use crate::filter::Filter;
use crate::fusion::{Hit, Mode, Page, Ranked};
use crate::ingest::document::check_vector;
use crate::ingest::pipeline::{Pipeline, normalize};
use crate::shard::partition::{PartitionAnswer, PartitionQuery, Recall};
use crate::shard::request::{ChunkContent, ShardFreshness, ShardRequest, ShardResponse};
use crate::shards::Shards;
use crate::token::WriteToken;
use prometheus::{HistogramOpts, HistogramVec, Registry};
use ragged_raft::ids::{RowId, ShardId};
use ragged_raft::meta::collection::Collection;
use ragged_raft::mutant::{self, Mutant};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a query at most.
pub const QUERY_BYTES_MAX: usize = 32 << 10;
/// Hits of an answer at most.
pub const LIMIT_MAX: usize = 1_000;
/// Hits that may be left out and shown, together.
pub const DEPTH_MAX: usize = 10_000;
/// Candidates of each ranking that are fused at least: a hit may be far down in one and first in the other.
const FUSED_MIN: usize = 100;

/// How long a shard is waited for that the search may do without.
const PARTIAL_PATIENCE: Duration = Duration::from_secs(2);

/// How often a search is run at most, when documents that it found are replaced before they are read.
const ATTEMPTS: u32 = 3;

/// How fresh an answer must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// Whatever a live replica has.
    Eventual,
    /// At least what this token's write left.
    Session(WriteToken),
    /// Everything acknowledged before.
    Strong,
}

/// A search.
#[derive(Debug, Clone)]
pub struct Search {
    /// What to look for, in words.
    pub query: Option<String>,
    /// What to look for, as a vector.
    pub vector: Option<Vec<f32>>,
    /// How; by default what the query and the vector allow.
    pub mode: Option<Mode>,
    /// Hits at most.
    pub limit: usize,
    /// Hits to leave out first.
    pub offset: usize,
    /// What documents must pass.
    pub filter: Filter,
    /// Whether a document is shown once, by its best chunk.
    pub group_by_document: bool,
    /// Weights of the rankings by meaning and by words.
    pub weights: (f32, f32),
    /// How many of the nearest chunks by meaning must be found.
    pub recall: Recall,
    /// Whether to say how it was done.
    pub explain: bool,
    /// How fresh the answer must be.
    pub freshness: Freshness,
    /// Whether to answer without the shards that do not.
    pub allow_partial: bool,
}

/// What a search found.
#[derive(Debug, Clone, Default)]
pub struct SearchOutcome {
    /// Best first.
    pub hits: Vec<Found>,
    /// How each shard did it, when asked for.
    pub plan: Vec<ShardPlan>,
    /// Shards that did not answer, when the search may do without them.
    pub missing: Vec<ShardId>,
}

/// How one shard did its part.
#[derive(Debug, Clone)]
pub struct ShardPlan {
    /// The shard.
    pub shard: u16,
    /// What was done.
    pub steps: Vec<String>,
    /// Milliseconds.
    pub took_ms: f64,
}

/// A hit.
#[derive(Debug, Clone)]
pub struct Found {
    /// The document.
    pub document_id: String,
    /// Number of the chunk in it.
    pub chunk: u32,
    /// Higher is better.
    pub score: f32,
    /// Title of the document.
    pub title: Option<String>,
    /// Text of the chunk.
    pub text: String,
    /// First byte in the document's text.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Metadata of the document, as JSON text.
    pub metadata: String,
    /// Score and rank by meaning.
    pub dense: Option<(f32, u32)>,
    /// Score and rank by words.
    pub text_match: Option<(f32, u32)>,
}

/// Runs searches.
#[derive(Clone)]
pub struct Searcher {
    embedding: Embedding,
    pipeline: Pipeline,
    shards: Shards,
    seconds: HistogramVec,
}

/// What the shards of a collection answered, together.
#[derive(Default)]
struct ShardAnswers {
    dense: Vec<Ranked>,
    text: Vec<Ranked>,
    /// What the page's hits show, when one shard could know them.
    shown: Option<Vec<Option<Arc<ChunkContent>>>>,
    plan: Vec<ShardPlan>,
    missing: Vec<ShardId>,
}

impl Searcher {
    /// Registers the searcher's metrics.
    pub fn register(
        embedding: Embedding,
        pipeline: Pipeline,
        shards: Shards,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let buckets = prometheus::exponential_buckets(0.000_25, 2.0, 16)?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("ragged_search_seconds", "Time of searches, by mode.").buckets(buckets),
            &["mode"],
        )?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Searcher { embedding, pipeline, shards, seconds })
    }

    /// Runs a search.
    pub async fn search(
        &self,
        account: &Account,
        collection: Arc<Collection>,
        search: Search,
    ) -> Result<SearchOutcome, ServiceError> {
        let mode = check(&search, &collection)?;
        let timer = self.seconds.with_label_values(&[mode.name()]).start_timer();
        let query = Arc::new(self.partition_query(account, &search, mode, &collection).await?);
        let page = Arc::new(Page {
            mode,
            weights: search.weights,
            group_by_document: search.group_by_document,
            offset: search.offset,
            limit: search.limit,
        });
        let mut attempt = 1;
        loop {
            let (found, outcome) = self.attempt(&collection, &query, &page, &search).await?;
            // A document that was replaced between finding and reading is to be shown as it is now.
            if outcome.hits.len() == found || !outcome.missing.is_empty() || attempt == ATTEMPTS {
                timer.observe_duration();
                return Ok(outcome);
            }
            attempt += 1;
        }
    }

    /// Searches once: how many hits were found, and those that could be read.
    async fn attempt(
        &self,
        collection: &Arc<Collection>,
        query: &Arc<PartitionQuery>,
        page: &Arc<Page>,
        search: &Search,
    ) -> Result<(usize, SearchOutcome), ServiceError> {
        let ShardAnswers { dense, text, shown, plan, mut missing } = self.ask_shards(collection, query, page, search).await?;
        let hits = page.of(dense, text);
        let found = hits.len();
        let contents = match shown {
            Some(contents) => contents,
            None => Box::pin(self.fetch(collection, &hits, search, &mut missing)).await?,
        };
        let hits = hits.into_iter().zip(contents).filter_map(|(hit, content)| Some(show(hit, content?))).collect();
        Ok((found, SearchOutcome { hits, plan, missing }))
    }

    async fn partition_query(
        &self,
        account: &Account,
        search: &Search,
        mode: Mode,
        collection: &Collection,
    ) -> Result<PartitionQuery, ServiceError> {
        let vector = match (mode, &search.vector, &search.query) {
            (Mode::Text, _, _) => None,
            (_, Some(vector), _) => {
                let mut vector = vector.clone();
                normalize(&mut vector);
                Some(vector)
            }
            (_, None, Some(query)) => {
                self.pipeline.check_model(collection)?;
                Some(Box::pin(self.embedding.embed_query(account, query)).await?.to_vec())
            }
            (_, None, None) => None,
        };
        let shown = search.offset + search.limit;
        Ok(PartitionQuery {
            vector,
            text: search.query.clone().filter(|_| mode != Mode::Dense),
            filter: Some(search.filter.clone()).filter(|filter| !filter.is_empty()),
            depth: if mode == Mode::Hybrid { shown.max(FUSED_MIN) } else { shown },
            group_by_document: search.group_by_document,
            recall: search.recall,
            explain: search.explain,
        })
    }

    async fn ask_shards(
        &self,
        collection: &Arc<Collection>,
        query: &Arc<PartitionQuery>,
        page: &Arc<Page>,
        search: &Search,
    ) -> Result<ShardAnswers, ServiceError> {
        // One shard alone knows the page, and answers with what it shows: another round saved.
        let page = (collection.shards.len() == 1).then_some(page);
        let asks = collection.shards.iter().map(|shard| async move {
            let begun = Instant::now();
            let request = ShardRequest::Search { collection: collection.clone(), query: query.clone(), page: page.cloned() };
            match self.ask(*shard, collection, search, request).await {
                Ok(ShardResponse::Found { answer, shown }) => Ok((answer, shown, begun.elapsed())),
                Ok(other) => Err(other.mismatch()),
                Err(fault) => Err(fault),
            }
        });
        let mut answers = ShardAnswers::default();
        let asked = futures::future::join_all(asks).await;
        let nobody = asked.iter().all(Result::is_err);
        for (shard, answer) in collection.shards.iter().copied().zip(asked) {
            let (PartitionAnswer { dense, text, steps }, shown, took) = match answer {
                Ok(answer) => answer,
                Err(fault) if !nobody && may_do_without(search, &fault) => {
                    answers.missing.push(shard);
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            if mutant::is_on(Mutant::MergeDropsShard) && collection.shards.len() > 1 && collection.shards.last() == Some(&shard) {
                continue;
            }
            answers.dense.extend(dense.into_iter().map(|candidate| Ranked { shard, candidate }));
            answers.text.extend(text.into_iter().map(|candidate| Ranked { shard, candidate }));
            if search.explain {
                answers.plan.push(ShardPlan { shard: shard.0, steps, took_ms: took.as_secs_f64() * 1000.0 });
            }
            if page.is_some() {
                answers.shown = shown;
            }
        }
        for ranking in [&mut answers.dense, &mut answers.text] {
            ranking.sort_by(|one, other| {
                other
                    .candidate
                    .score
                    .total_cmp(&one.candidate.score)
                    .then(one.shard.cmp(&other.shard))
                    .then(one.candidate.row.cmp(&other.candidate.row))
            });
            ranking.truncate(query.depth);
        }
        Ok(answers)
    }

    /// Asks a shard, with less patience when the search may do without it.
    async fn ask(
        &self,
        shard: ShardId,
        collection: &Collection,
        search: &Search,
        request: ShardRequest,
    ) -> Result<ShardResponse, ServiceError> {
        let freshness = freshness_of(&search.freshness, shard);
        if !search.allow_partial {
            return self.shards.ask(shard, collection.tenant, freshness, request).await;
        }
        let asked = Box::pin(self.shards.ask(shard, collection.tenant, freshness, request));
        let late =
            |_| ServiceError::unavailable("shard_unavailable", format!("{shard} did not answer within {PARTIAL_PATIENCE:?}"));
        tokio::time::timeout(PARTIAL_PATIENCE, asked).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
    }

    /// Fetches what hits show, in one request a shard; none for a hit that was deleted or replaced meanwhile.
    async fn fetch(
        &self,
        collection: &Arc<Collection>,
        hits: &[Hit],
        search: &Search,
        missing: &mut Vec<ShardId>,
    ) -> Result<Vec<Option<Arc<ChunkContent>>>, ServiceError> {
        let mut rows: HashMap<ShardId, Vec<RowId>> = HashMap::new();
        for hit in hits {
            rows.entry(hit.best.shard).or_default().push(hit.best.candidate.row);
        }
        let asks = rows.into_iter().map(|(shard, rows)| async move {
            let request = ShardRequest::Chunks { collection: collection.clone(), rows };
            let answer = match self.ask(shard, collection, search, request).await {
                Ok(ShardResponse::Chunks(chunks)) => Ok(chunks.into_iter()),
                Ok(other) => Err(other.mismatch()),
                Err(fault) => Err(fault),
            };
            (shard, answer)
        });
        let mut contents = HashMap::new();
        for (shard, answer) in futures::future::join_all(asks).await {
            match answer {
                Ok(chunks) => {
                    contents.insert(shard, chunks);
                }
                Err(fault) if may_do_without(search, &fault) => missing.push(shard),
                Err(fault) => return Err(fault),
            }
        }
        Ok(hits.iter().map(|hit| contents.get_mut(&hit.best.shard)?.next()?).collect())
    }
}

/// Whether a search goes on without a shard that failed like this.
fn may_do_without(search: &Search, fault: &ServiceError) -> bool {
    search.allow_partial && fault.kind == ErrorKind::Unavailable
}

/// How fresh a shard must be for that.
pub(crate) fn freshness_of(freshness: &Freshness, shard: ShardId) -> ShardFreshness {
    match freshness {
        Freshness::Eventual => ShardFreshness::Eventual,
        Freshness::Session(token) => token.index(shard).map_or(ShardFreshness::Eventual, ShardFreshness::AtLeast),
        Freshness::Strong => ShardFreshness::Strong,
    }
}

fn check(search: &Search, collection: &Collection) -> Result<Mode, ServiceError> {
    if let Some(query) = &search.query {
        if query.trim().is_empty() {
            return Err(ServiceError::invalid("empty_query", "query: is empty, there is nothing to look for"));
        }
        if query.len() > QUERY_BYTES_MAX {
            return Err(ServiceError::invalid(
                "query_too_long",
                format!("query: has {} bytes, the limit is {QUERY_BYTES_MAX}", query.len()),
            ));
        }
    }
    if let Some(vector) = &search.vector {
        check_vector(vector, collection, "vector")?;
    }
    if search.limit == 0 || search.limit > LIMIT_MAX {
        return Err(ServiceError::invalid("invalid_limit", format!("limit: is 1 to {LIMIT_MAX}")));
    }
    if search.offset + search.limit > DEPTH_MAX {
        return Err(ServiceError::invalid(
            "invalid_offset",
            format!("offset + limit: is at most {DEPTH_MAX}; narrow the search by a filter instead"),
        ));
    }
    let weight_ok = |weight: f32| weight.is_finite() && (0.0..=1000.0).contains(&weight);
    if !weight_ok(search.weights.0) || !weight_ok(search.weights.1) {
        return Err(ServiceError::invalid("invalid_weights", "weights: are 0 to 1000"));
    }
    check_mode(search, collection)
}

fn check_mode(search: &Search, collection: &Collection) -> Result<Mode, ServiceError> {
    let embeds = collection.vector().model.is_some();
    let mode = match (search.mode, &search.query, &search.vector) {
        (_, None, None) => return Err(ServiceError::invalid("empty_query", "query or vector: one of them is needed")),
        (Some(mode), _, _) => mode,
        (None, Some(_), None) if !embeds => Mode::Text,
        (None, Some(_), _) => Mode::Hybrid,
        (None, None, Some(_)) => Mode::Dense,
    };
    if mode != Mode::Dense && search.query.is_none() {
        return Err(ServiceError::invalid("query_required", "query: a search by words needs one"));
    }
    if mode != Mode::Text && search.vector.is_none() && !embeds {
        return Err(ServiceError::invalid(
            "vector_required",
            format!("vector: collection {} takes the client's vectors, a search by meaning needs one", collection.name),
        ));
    }
    Ok(mode)
}

fn show(hit: Hit, content: Arc<ChunkContent>) -> Found {
    let content = Arc::unwrap_or_clone(content);
    Found {
        document_id: content.owner.document_id,
        chunk: content.owner.chunk,
        score: hit.score,
        title: content.title,
        text: content.text.text,
        start: content.text.start,
        end: content.text.end,
        metadata: content.metadata,
        dense: hit.dense,
        text_match: hit.text,
    }
}
