//! What clients do while the cluster is broken: each writes, deletes and reads documents through whatever node, and notes what it was told.

use crate::cluster::Cluster;
use crate::history::{Action, History, Operation, Outcome, Value};
use anyhow::Result;
use ragged_client::{
    Client, ClientError, Consistency, Embedding, EmbeddingDimension, NewCollection, NewDocument, SearchRequest, UploadOptions,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The collection that everything happens in.
pub const COLLECTION: &str = "chaos";
/// Shards that it is spread over.
const SPREAD: u16 = 8;
/// Values of a vector.
const DIMENSION: u32 = 8;
/// Documents that are worked on at a time, and for how long: a document's history stays short enough to be checked.
const DOCUMENTS: u64 = 48;
const EPOCH: Duration = Duration::from_secs(2);
/// A client that waited so long for nothing takes the node for one that hangs, and asks others for a while.
const HANGS_AFTER: Duration = Duration::from_secs(2);
const HANGS_FOR: Duration = Duration::from_secs(8);
/// A client that was refused waits for so long.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// Of a hundred writes so many have an idempotency key, and are repeated so often when their outcome is not known.
const WRITTEN_ONCE: u32 = 25;
const REPEATS: usize = 4;
/// In how many of a hundred cases such a write is sent again although it was acknowledged.
const SENT_AGAIN: u32 = 5;

/// A value that is never written.
const NEVER_WRITTEN: u64 = u64::MAX;

/// Clients at work.
pub struct Workload {
    history: Arc<History>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

/// What all clients of a run share.
struct Shared {
    history: Arc<History>,
    values: AtomicU64,
    stopped: watch::Receiver<bool>,
}

impl Workload {
    /// Makes the collection, and has so many clients begin.
    pub async fn start(cluster: &Cluster, clients: usize, seed: u64) -> Result<Workload> {
        let embedding = Some(Embedding::External(EmbeddingDimension { dimension: DIMENSION }));
        let new = NewCollection { name: COLLECTION.into(), spread: Some(SPREAD), embedding, chunking: None, language: None };
        cluster.client(0)?.create_collection(&new).await?;
        let (stop, stopped) = watch::channel(false);
        let history = Arc::new(History::default());
        let shared = Arc::new(Shared { history: history.clone(), values: AtomicU64::new(1), stopped });
        let mut at_work = JoinSet::new();
        for client in 0..clients {
            // A client each for its tokens: a session is one client's, on all nodes.
            let nodes = (0..cluster.len()).map(|node| cluster.client(node)).collect::<Result<Vec<_>>>()?;
            let random = StdRng::seed_from_u64(seed ^ (client as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            at_work.spawn(work(client, nodes, random, shared.clone()));
        }
        Ok(Workload { history, stop, clients: at_work })
    }

    /// What they have done.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// Has them end what they are at, and no more.
    pub async fn stop(mut self) -> Arc<History> {
        self.stop.send_replace(true);
        while self.clients.join_next().await.is_some() {}
        self.history
    }
}

async fn work(number: usize, nodes: Vec<Client>, mut random: StdRng, shared: Arc<Shared>) {
    // A token names the shards of one write: it promises that write, and none to another document.
    let mut tokens: HashMap<String, String> = HashMap::new();
    let mut current = 0;
    let mut hangs_until = vec![Duration::ZERO; nodes.len()];
    // What was written with a key that makes it count once, and is sent again after the next operation.
    let mut last_once: Option<(String, u64)> = None;
    while !*shared.stopped.borrow() {
        let mut node = random.random_range(0..nodes.len());
        if shared.history.now() < hangs_until[node] {
            node = random.random_range(0..nodes.len());
        }
        let epoch = shared.history.now().as_millis() as u64 / EPOCH.as_millis() as u64;
        let key = format!("e{epoch}d{}", random.random_range(0..DOCUMENTS));
        if epoch != current {
            tokens.clear();
            current = epoch;
        }
        if random.random_range(0..100) < SENT_AGAIN
            && let Some((key, value)) = last_once.take()
        {
            repeat(&nodes[node], &key, value).await;
        }
        let begun = shared.history.now();
        let (action, outcome) = match random.random_range(0..100) {
            0..40 => {
                let value = shared.values.fetch_add(1, Ordering::Relaxed);
                let once = random.random_range(0..100) < WRITTEN_ONCE;
                let (action, outcome) = write(&nodes[node], &key, value, once, &mut tokens).await;
                if once && outcome == Outcome::Done {
                    last_once = Some((key.clone(), value));
                }
                (action, outcome)
            }
            40..50 => delete(&nodes[node], &key, &mut tokens).await,
            50..80 => read(&nodes[node], &key, None).await,
            _ => read(&nodes[node], &key, tokens.get(&key).map(String::as_str)).await,
        };
        let ended = shared.history.now();
        shared.history.note(Operation { client: number, node, key, action, outcome, begun, ended });
        if outcome != Outcome::Done {
            if ended - begun > HANGS_AFTER {
                hangs_until[node] = ended + HANGS_FOR;
            }
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
    }
}

/// The vector of a value: none is like another.
pub fn vector_of(value: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(value);
    (0..DIMENSION).map(|_| random.random_range(-1.0..1.0f32)).collect()
}

/// The text of a value, which has one word.
pub fn text_of(value: u64) -> String {
    format!("value{value}")
}

/// The value of a text; one that nobody wrote when the text is none of ours, so that it is not taken for a document that is not there.
fn value_of(text: Option<&str>) -> u64 {
    text.and_then(|text| text.strip_prefix("value")).and_then(|digits| digits.parse().ok()).unwrap_or(NEVER_WRITTEN)
}

/// Writes; with a key of its own it is written again until it is known to be there, or refused for good: whatever came of the first times, it counts once.
async fn write(client: &Client, key: &str, value: u64, once: bool, tokens: &mut HashMap<String, String>) -> (Action, Outcome) {
    let document = NewDocument {
        id: Some(key.to_owned()),
        title: None,
        text: text_of(value),
        format: None,
        metadata: None,
        vector: Some(vector_of(value)),
    };
    let options = UploadOptions { idempotency_key: once.then(|| format!("chaos-{value}")), no_wait: false };
    let mut outcome = Outcome::Refused;
    for _ in 0..if once { REPEATS } else { 1 } {
        outcome = match client.upload(COLLECTION, std::slice::from_ref(&document), options.clone()).await {
            Ok(ragged_client::UploadReply::Stored(stored)) => {
                tokens.insert(key.to_owned(), stored.token);
                Outcome::Done
            }
            // What one attempt may have done no later refusal undoes.
            Err(fault) if outcome != Outcome::Unknown => outcome_of(&fault),
            Ok(ragged_client::UploadReply::Accepted(_)) | Err(_) => Outcome::Unknown,
        };
        if outcome == Outcome::Done {
            break;
        }
        tokio::time::sleep(REFUSED_PAUSE).await;
    }
    (Action::Write(Some(value)), outcome)
}

/// Sends a write again that was acknowledged before: it changes nothing, whatever was written since, or the history shows an old value that is back.
async fn repeat(client: &Client, key: &str, value: u64) {
    let _ = write(client, key, value, true, &mut HashMap::new()).await;
}

async fn delete(client: &Client, key: &str, tokens: &mut HashMap<String, String>) -> (Action, Outcome) {
    let outcome = match client.delete_document(COLLECTION, key).await {
        Ok(deleted) => {
            tokens.insert(key.to_owned(), deleted.token);
            Outcome::Done
        }
        // That there is nothing to delete is an answer. It has no token, and those from before promise less than it.
        Err(fault) if fault.code() == Some("document_not_found") => {
            tokens.remove(key);
            Outcome::Done
        }
        Err(fault) => outcome_of(&fault),
    };
    (Action::Write(None), outcome)
}

async fn read(client: &Client, key: &str, token: Option<&str>) -> (Action, Outcome) {
    let document = match token {
        Some(token) => client.get_document_since(COLLECTION, key, token).await,
        None => client.get_document_as_of(COLLECTION, key, Some(Consistency::Strong)).await,
    };
    let (value, outcome) = match document {
        Ok(document) => (Some(value_of(document.text.as_deref())), Outcome::Done),
        Err(fault) if fault.code() == Some("document_not_found") => (None, Outcome::Done),
        Err(_) => (None, Outcome::Refused),
    };
    (if token.is_some() { Action::SessionRead(value) } else { Action::Read(value) }, outcome)
}

/// What a client knows after an error, as `ragged-client` says.
fn outcome_of(fault: &ClientError) -> Outcome {
    match fault {
        ClientError::Problem(_) | ClientError::Unreachable { .. } | ClientError::Invalid(_) => Outcome::Refused,
        ClientError::UnknownOutcome { .. } | ClientError::Decode { .. } | ClientError::TooLarge { .. } => Outcome::Unknown,
    }
}

/// Writes a document once more; whether that was acknowledged.
pub async fn write_last(client: &Client, history: &History, node: usize, key: &str, value: u64) -> bool {
    let begun = history.now();
    let (action, outcome) = write(client, key, value, false, &mut HashMap::new()).await;
    history.note(Operation { client: usize::MAX, node, key: key.to_owned(), action, outcome, begun, ended: history.now() });
    outcome == Outcome::Done
}

/// Reads a document once more, as the last operation on it; what it holds.
pub async fn read_last(client: &Client, history: &History, node: usize, key: &str) -> Result<Value> {
    let begun = history.now();
    let (action, outcome) = read(client, key, None).await;
    history.note(Operation { client: usize::MAX, node, key: key.to_owned(), action, outcome, begun, ended: history.now() });
    match (action, outcome) {
        (Action::Read(value), Outcome::Done) => Ok(value),
        _ => anyhow::bail!("{key} cannot be read through node {node} although everything has been mended"),
    }
}

/// By how many of two ways a document is found: by its word, and as the nearest to its vector.
pub async fn ways_to_find(client: &Client, key: &str, value: u64) -> Result<usize> {
    let by_words = SearchRequest { query: Some(text_of(value)), mode: Some(ragged_client::Mode::Text), ..strong() };
    let by_vector = SearchRequest { vector: Some(vector_of(value)), ..strong() };
    let mut ways = 0;
    for request in [by_words, by_vector] {
        let found = client.search(COLLECTION, &request).await?;
        ways += usize::from(found.hits.first().is_some_and(|hit| hit.document_id == key));
    }
    Ok(ways)
}

fn strong() -> SearchRequest {
    SearchRequest { consistency: Some(Consistency::Strong), limit: Some(3), ..SearchRequest::default() }
}
