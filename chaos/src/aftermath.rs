//! What can be asked of a cluster that has been mended: its replicas are equal, and every document is read the same through every node, and found, or not
//! found any more.

use crate::cluster::Cluster;
use crate::history::{Action, History, Value};
use crate::report::Aftermath;
use crate::run::RECOVERY_MAX;
use crate::verdict::{self, Violation};
use crate::workload;
use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use ragged_client::Client;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Documents that are written once more: so many that each shard of the collection has some. Their values are beyond those of the clients.
const WRITTEN_AGAIN: u64 = 64;
const VALUES_FROM: u64 = 1 << 40;
/// How long a shard that has a leader may take to acknowledge a write.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// Documents that are read once more, through every node, and searched.
const READ_AGAIN: usize = 1_500;
/// How many of them at a time.
const AT_ONCE: usize = 16;

/// Asks; what is wrong is added to the violations.
pub async fn check(cluster: &Cluster, history: &History, seed: u64, violations: &mut Vec<Violation>) -> Result<Aftermath> {
    until_replicas_are_equal(cluster, violations).await?;
    let clients = (0..cluster.len()).map(|node| cluster.client(node)).collect::<Result<Vec<_>>>()?;
    every_shard_takes_writes(&clients, history, violations).await;
    let mut last_values: BTreeMap<String, Value> = BTreeMap::new();
    for operation in history.operations() {
        let last = last_values.entry(operation.key).or_default();
        if let Action::Write(Some(value)) = operation.action {
            *last = Some(value);
        }
    }
    let mut documents: Vec<(String, Value)> = last_values.into_iter().collect();
    documents.shuffle(&mut StdRng::seed_from_u64(seed));
    documents.truncate(READ_AGAIN);
    let asked = documents.iter().enumerate().map(|(number, (key, last))| document(&clients, history, number, key, *last));
    let answers: Vec<Shown> = stream::iter(asked).buffer_unordered(AT_ONCE).try_collect().await?;
    let mut looked_at = Aftermath { read: answers.len(), ..Aftermath::default() };
    for answer in answers {
        match answer {
            Shown::Found => looked_at.found += 1,
            Shown::Gone => looked_at.gone += 1,
            Shown::Wrong(what) => violations.push(Violation { check: "search", what }),
        }
    }
    Ok(looked_at)
}

/// What a document showed.
enum Shown {
    /// It is there, and found.
    Found,
    /// It is not there, and not found.
    Gone,
    /// Reading and searching do not agree.
    Wrong(String),
}

/// Reads a document through every node, for the history's checks, and searches it through one of them.
async fn document(clients: &[Client], history: &History, number: usize, key: &str, written: Value) -> Result<Shown> {
    let mut held = None;
    for (node, client) in clients.iter().enumerate() {
        held = workload::read_last(client, history, node, key).await?;
    }
    let node = number % clients.len();
    let Some(value) = held.or(written) else { return Ok(Shown::Gone) };
    let ways = workload::ways_to_find(&clients[node], key, value)
        .await
        .with_context(|| format!("{key} cannot be searched through node {node} although everything has been mended"))?;
    Ok(match (held, ways) {
        (Some(_), 2) => Shown::Found,
        (Some(_), _) => Shown::Wrong(format!("{key} holds value {value}, and is not found by it through node {node}")),
        (None, 0) => Shown::Gone,
        (None, _) => Shown::Wrong(format!("{key} has been deleted, and is found by value {value} through node {node}")),
    })
}

async fn every_shard_takes_writes(clients: &[Client], history: &History, violations: &mut Vec<Violation>) {
    let mut value = VALUES_FROM;
    for number in 0..WRITTEN_AGAIN {
        let (node, key) = (number as usize % clients.len(), format!("after{number}"));
        let begun = Instant::now();
        loop {
            value += 1;
            if workload::write_last(&clients[node], history, node, &key, value).await {
                break;
            }
            if begun.elapsed() > WRITE_MAX {
                let what = format!("{key} cannot be written through node {node} although everything has been mended");
                violations.push(Violation { check: "recovery", what });
                return;
            }
        }
    }
}

async fn until_replicas_are_equal(cluster: &Cluster, violations: &mut Vec<Violation>) -> Result<()> {
    let deadline = Instant::now() + RECOVERY_MAX;
    loop {
        match verdict::check_replicas(&cluster.hashed_shards().await?, cluster.len()) {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(200)).await,
            Ok(false) => {
                let what = format!("the replicas do not come to the same index within {RECOVERY_MAX:?}");
                violations.push(Violation { check: "replicas", what });
                return Ok(());
            }
            Err(violation) => {
                violations.push(violation);
                return Ok(());
            }
        }
    }
}
