//! How long writes wait when the node that leads dies. Behaviour is asserted, times are printed: `make failover` runs 20 rounds and says
//! the median and the longest.

use anyhow::{Context, Result, ensure};
use ragged_tests::cluster::{LONG_PATIENCE, agreed, entries, healthy, nodes, replicated, until};
use ragged_tests::import::stored;
use ragged_tests::node::Node;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Documents that are written again and again, enough that every shard has some.
const WRITERS: usize = 48;
/// Who write while a node is restarted: enough that some write is undecided whenever a lead is handed on.
const WRITERS_AT_RESTART: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);

/// The tests take turns: what one kills must not keep the processor from nodes of the other, whose leads would be missed.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn rounds() -> usize {
    std::env::var("RAGGED_FAILOVERS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

/// Writes one document through this node until it is acknowledged; how long that took.
async fn write(http: &reqwest::Client, url: &str, key: &str, number: usize, round: usize) -> Result<Duration> {
    let body = json!({ "documents": [{ "id": format!("w{number}"), "text": format!("round {round}"), "vector": [1.0, number as f32] }] });
    let begun = Instant::now();
    loop {
        let sent = http.post(url).bearer_auth(key).json(&body).send().await?;
        match sent.status().as_u16() {
            200 => return Ok(begun.elapsed()),
            503 | 504 => ensure!(begun.elapsed() < PATIENCE, "document {number} is not accepted: {}", sent.text().await?),
            other => anyhow::bail!("{other}: {}", sent.text().await?),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes every document once, all at the same time; how long the slowest took.
async fn write_all(http: &reqwest::Client, node: &Node, round: usize) -> Result<Duration> {
    let (url, key) = (node.url("/api/v1/collections/c/documents"), node.key()?);
    let writes = (0..WRITERS).map(|number| write(http, &url, &key, number, round));
    let took = futures::future::try_join_all(writes).await?;
    took.into_iter().max().context("there are writers")
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_to_every_shard_go_on_after_the_death_of_any_node() -> Result<()> {
    let _turn = TURN.lock().await;
    let mut nodes = nodes(3, &[]).await?;
    nodes[0].post("/collections", &json!({ "name": "c", "spread": 16, "embedding": { "dimension": 2 } })).await?.expect(201)?;
    let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let mut waited = Vec::new();
    for round in 0..rounds() {
        replicated(LONG_PATIENCE, &nodes[0], 3, 3).await?;
        write_all(&http, &nodes[round % 3], round).await?;
        // Each node leads some shards; the meta group's leader is among those that die.
        let victim = round % 3;
        until(&nodes[victim], "/cluster/shards", "every shard has a leader", |body| {
            entries(body, "shards").all(|shard| shard["leader"].is_u64())
        })
        .await?;
        nodes[victim].kill()?;
        let took = write_all(&http, &nodes[(victim + 1) % 3], round).await?;
        println!("round {round}: every shard took writes again {} ms after a node was killed", took.as_millis());
        waited.push(took);
        nodes[victim].restart().await?;
        healthy(LONG_PATIENCE, &nodes[victim]).await?;
    }
    agreed(LONG_PATIENCE, &nodes[0]).await?;
    for node in &nodes {
        ensure!(stored(node, "c").await?.len() == WRITERS, "documents are missing");
    }
    waited.sort();
    let (median, longest) = (waited[waited.len() / 2], waited[waited.len() - 1]);
    println!("writes waited, of {} kills: median {} ms, maximum {} ms", waited.len(), median.as_millis(), longest.as_millis());
    Ok(())
}

/// Waits until so many writes were acknowledged; a writer that was refused writes no more.
async fn reaches(written: &AtomicUsize, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while written.load(Ordering::Relaxed) < count {
        ensure!(Instant::now() < deadline, "writes have stopped");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_restart_of_each_node_is_noticed_by_nobody() -> Result<()> {
    let _turn = TURN.lock().await;
    let mut nodes = nodes(3, &[]).await?;
    nodes[0].post("/collections", &json!({ "name": "c", "spread": 16, "embedding": { "dimension": 2 } })).await?.expect(201)?;
    replicated(LONG_PATIENCE, &nodes[0], 3, 3).await?;
    let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
    for leaving in 0..3 {
        let other = &nodes[(leaving + 1) % 3];
        let (url, key) = (other.url("/api/v1/collections/c/documents"), other.key()?);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let written = Arc::new(AtomicUsize::new(0));
        let writers = (0..WRITERS_AT_RESTART).map(|writer| {
            let (http, url, key, stopped) = (http.clone(), url.clone(), key.clone(), stopped.clone());
            let written = written.clone();
            tokio::spawn(async move {
                let mut count = 0;
                while !*stopped.borrow() {
                    let id = format!("r{leaving}w{writer}n{count}");
                    let body = json!({ "documents": [{ "id": id, "text": "a text", "vector": [1.0, count as f32] }] });
                    let answer = http.post(&url).bearer_auth(&key).json(&body).send().await?;
                    let status = answer.status().as_u16();
                    ensure!(status == 200, "write {count} was answered {status}: {}", answer.text().await?);
                    count += 1;
                    written.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let writers: Vec<_> = writers.collect();
        reaches(&written, WRITERS).await?;
        nodes[leaving].signal(libc::SIGTERM)?;
        let ended = nodes[leaving].wait_for_end(Duration::from_secs(20)).await?;
        ensure!(ended.success(), "the node ended with {ended}");
        // While it is away, and once it is back.
        reaches(&written, written.load(Ordering::Relaxed) + WRITERS).await?;
        nodes[leaving].restart().await?;
        healthy(LONG_PATIENCE, &nodes[leaving]).await?;
        reaches(&written, written.load(Ordering::Relaxed) + WRITERS).await?;
        stop.send(true)?;
        for writer in writers {
            writer.await??;
        }
        println!("{} writes went on while a node was restarted", written.load(Ordering::Relaxed));
        replicated(LONG_PATIENCE, &nodes[leaving], 3, 3).await?;
    }
    agreed(LONG_PATIENCE, &nodes[0]).await?;
    Ok(())
}
