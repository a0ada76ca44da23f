//! Searches, one or many at a time.

use crate::api::problem::Problem;
use crate::api::query::Query;
use crate::api::routes::Answer;
use crate::api::{Call, filter, freshness, json};
use futures::{StreamExt, TryStreamExt};
use ragged_actors::{Found, Search, SearchOutcome, Session};
use ragged_client::{
    Explanation, GroupBy, Hit, Mode, Recall, SearchBatch, SearchBatchResponse, SearchRequest, SearchResponse, ShardPlan, Span,
};
use std::time::Instant;

const LIMIT_DEFAULT: u32 = 10;
const BATCH_MAX: usize = 256;
/// Hits that the searches of a batch may ask for together.
const BATCH_HITS_MAX: u64 = 10_000;
/// Bytes of texts, titles and metadata that the hits of a batch may hold together.
const BATCH_BYTES_MAX: usize = 64 << 20;

/// Searches of a batch that run at once: enough to keep the encoder's batches full, without one client taking every search thread.
const BATCH_CONCURRENCY: usize = 16;

/// `POST /api/v1/collections/{collection}/search`.
#[utoipa::path(post, path = "/api/v1/collections/{collection}/search", tag = "search", operation_id = "search",
    summary = "Search", description = "Finds chunks by meaning, by words or both.",
    params(("collection" = String, Path, description = "Name of the collection", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook")),
    request_body(content = SearchRequest, content_type = "application/json"),
    responses((status = 200, description = "What was found, best first", body = SearchResponse)))]
pub async fn search(mut call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    let request: SearchRequest = call.json().await?;
    let answer = run(&session, call.parameter(0)?, request).await?;
    let bytes = answer.hits.iter().map(bytes_shown).sum();
    json::ok_of_size(answer, bytes).await
}

/// `POST /api/v1/collections/{collection}/search/batch`.
#[utoipa::path(post, path = "/api/v1/collections/{collection}/search/batch", tag = "search", operation_id = "search_batch",
    summary = "Search many times", description = "Runs 1 to 256 searches, several at once. When one fails, the batch does, and says which.",
    params(("collection" = String, Path, description = "Name of the collection", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook")),
    request_body(content = SearchBatch, content_type = "application/json"),
    responses((status = 200, description = "One answer a search, in the order of the request", body = SearchBatchResponse)))]
pub async fn batch(mut call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    let SearchBatch { searches } = call.json().await?;
    if searches.is_empty() || searches.len() > BATCH_MAX {
        let detail = format!("searches has {} entries, but must have 1 to {BATCH_MAX}", searches.len());
        return Err(Problem::invalid("invalid_batch", detail));
    }
    let hits: u64 = searches.iter().map(|search| u64::from(search.limit.unwrap_or(LIMIT_DEFAULT))).sum();
    if hits > BATCH_HITS_MAX {
        let detail = format!("searches: ask for {hits} hits in all, but a batch may ask for {BATCH_HITS_MAX}");
        return Err(Problem::invalid("invalid_batch", detail));
    }
    let collection = call.parameter(0)?;
    let session = &session;
    let began = Instant::now();
    let running = searches.into_iter().enumerate().map(|(index, request)| async move {
        run(session, collection, request).await.map_err(|problem| problem.at(&format!("searches[{index}]")))
    });
    let mut running = futures::stream::iter(running).buffered(BATCH_CONCURRENCY);
    let (mut results, mut bytes) = (Vec::new(), 0);
    while let Some(answer) = running.try_next().await? {
        bytes += answer.hits.iter().map(bytes_shown).sum::<usize>();
        if bytes > BATCH_BYTES_MAX {
            let detail = format!("searches: their hits hold more than {} MiB, ask for fewer at once", BATCH_BYTES_MAX >> 20);
            return Err(Problem::invalid("answer_too_large", detail));
        }
        results.push(answer);
    }
    json::ok_of_size(SearchBatchResponse { results, took_ms: took_ms(began) }, bytes).await
}

/// Bytes of what a hit shows.
fn bytes_shown(hit: &Hit) -> usize {
    hit.text.len() + hit.title.as_ref().map_or(0, String::len) + hit.metadata.text().len()
}

async fn run(session: &Session, collection: &str, request: SearchRequest) -> Result<SearchResponse, Problem> {
    let explain = request.explain.unwrap_or(false);
    let search = from_wire(request)?;
    let began = Instant::now();
    let outcome = session.search(collection, search).await?;
    Ok(to_wire(outcome, explain, began))
}

fn from_wire(request: SearchRequest) -> Result<Search, Problem> {
    let freshness = freshness::freshness(request.consistency, request.token)?;
    let weights = request.weights.unwrap_or_default();
    let mode = request.mode.map(|mode| match mode {
        Mode::Dense => ragged_actors::Mode::Dense,
        Mode::Text => ragged_actors::Mode::Text,
        Mode::Hybrid => ragged_actors::Mode::Hybrid,
    });
    Ok(Search {
        query: request.query,
        vector: request.vector,
        mode,
        limit: request.limit.unwrap_or(LIMIT_DEFAULT) as usize,
        offset: request.offset.unwrap_or(0) as usize,
        filter: filter::from_wire(request.filter.unwrap_or_default())?,
        group_by_document: request.group_by.unwrap_or_default() == GroupBy::Document,
        weights: (weights.dense, weights.text),
        recall: match request.recall.unwrap_or_default() {
            Recall::Usual => ragged_actors::Recall::Usual,
            Recall::High => ragged_actors::Recall::High,
            Recall::Exact => ragged_actors::Recall::Exact,
        },
        explain: request.explain.unwrap_or(false),
        freshness,
        allow_partial: request.allow_partial.unwrap_or(false),
    })
}

fn to_wire(outcome: SearchOutcome, explain: bool, began: Instant) -> SearchResponse {
    let hits = outcome.hits.into_iter().map(|found| hit(found, explain)).collect();
    let shard = |plan: ragged_actors::ShardPlan| ShardPlan { shard: plan.shard, steps: plan.steps, took_ms: plan.took_ms };
    let plan = explain.then(|| outcome.plan.into_iter().map(shard).collect());
    let missing_shards: Vec<u16> = outcome.missing.iter().map(|shard| shard.0).collect();
    let partial = (!missing_shards.is_empty()).then_some(true);
    SearchResponse { hits, took_ms: took_ms(began), plan, partial, missing_shards }
}

fn hit(found: Found, explain: bool) -> Hit {
    let explanation = explain.then(|| Explanation {
        dense_score: found.dense.map(|(score, _)| score),
        dense_rank: found.dense.map(|(_, rank)| rank),
        text_score: found.text_match.map(|(score, _)| score),
        text_rank: found.text_match.map(|(_, rank)| rank),
    });
    Hit {
        document_id: found.document_id,
        chunk: found.chunk,
        score: found.score,
        title: found.title,
        text: found.text,
        span: Span { start: found.start, end: found.end },
        metadata: json::stored_metadata(found.metadata),
        explanation,
    }
}

fn took_ms(began: Instant) -> f64 {
    // Microseconds are as fine as anyone wants to read.
    began.elapsed().as_micros() as f64 / 1e3
}
