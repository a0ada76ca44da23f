//! A cluster under load to which something happens: nodes die, come, leave, lose their disks. With RAGGED_LONG_TESTS=1 the load is the
//! whole of debian_en, embedded by the cluster; otherwise a part of it with given vectors.

use anyhow::{Context, Result, ensure};
use ragged_tests::cluster::{LONG_PATIENCE, agreed, entries, healthy, nodes, number_of, replicated, retire};
use ragged_tests::import::{Import, stored, write_lines};
use ragged_tests::node::Node;
use ragged_tests::shared::{documents, shared};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

/// Documents of the short runs.
const SHORT: usize = 6000;
/// Dimension of the vectors of the short runs.
const DIMENSION: usize = 8;

fn long() -> bool {
    std::env::var_os("RAGGED_LONG_TESTS").is_some()
}

/// A file of documents, each with its number.
struct Load {
    _folder: TempDir,
    file: PathBuf,
    count: usize,
    /// Documents of a request: few in the short runs, so that they last.
    batch: usize,
}

fn load(test: &str) -> Result<Option<Load>> {
    let Some(shared) = shared(test) else { return Ok(None) };
    let texts = documents(&shared.join("data/debian_en/docs.jsonl.gz"))?.take(if long() { usize::MAX } else { SHORT });
    let mut lines = Vec::new();
    for (number, text) in texts.enumerate() {
        let text = text?;
        let mut document =
            json!({ "id": text["id"], "title": text["title"], "text": text["text"], "metadata": { "number": number } });
        if !long() {
            document["vector"] =
                json!((0..DIMENSION).map(|bit| if number >> bit & 1 == 1 { 1.0 } else { -1.0 }).collect::<Vec<f32>>());
        }
        lines.push(document);
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("docs.ndjson");
    write_lines(&file, &lines)?;
    Ok(Some(Load { _folder: folder, file, count: lines.len(), batch: if long() { 64 } else { 8 } }))
}

async fn collection(node: &Node) -> Result<()> {
    let mut new = json!({ "name": "c", "spread": 8 });
    if !long() {
        new["embedding"] = json!({ "dimension": DIMENSION });
    }
    node.post("/collections", &new).await?.expect(201)?;
    Ok(())
}

/// A search that must see the document with this number.
fn question(number: u64, token: &Value) -> Value {
    let vector: Vec<f32> = vec![1.0; if long() { 384 } else { DIMENSION }];
    json!({ "vector": vector, "mode": "dense", "limit": 1, "token": token, "filter": { "must": [{ "field": "number", "eq": number }] } })
}

/// The batches that were acknowledged, and how many searches met a node that did not answer.
type Seen = (Vec<Value>, usize);

/// Looks for a document of every batch as soon as it is acknowledged, through every node. A node that does not answer is passed over,
/// but one has to answer, and whoever does has to have it. Returns the batches and how many were passed over.
fn witness(nodes: &[Node], mut acks: UnboundedReceiver<Value>) -> Result<JoinHandle<Result<Seen>>> {
    let urls: Vec<String> = nodes.iter().map(|node| node.url("/api/v1/collections/c/search")).collect();
    let key = nodes.first().context("nodes")?.key()?;
    let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
    Ok(tokio::spawn(async move {
        let (mut seen, mut passed_over) = (Vec::new(), 0);
        while let Some(ack) = acks.recv().await {
            let number = ack["first_line"].as_u64().context("a line")? - 1;
            let mut answered = 0;
            for url in &urls {
                let sent = http.post(url).bearer_auth(&key).json(&question(number, &ack["token"])).send().await;
                let Ok(answer) = sent else { continue };
                match answer.status().as_u16() {
                    200 => {
                        let found: Value = answer.json().await?;
                        ensure!(entries(&found, "hits").count() == 1, "document {number} is not found through {url}: {found}");
                        answered += 1;
                    }
                    503 => {}
                    other => anyhow::bail!("{url} answered {other}: {}", answer.text().await?),
                }
            }
            ensure!(answered > 0, "no node answered a search for document {number}");
            passed_over += urls.len() - answered;
            seen.push(ack);
        }
        Ok((seen, passed_over))
    }))
}

/// Everything is there, through every node, with its token, and the same on all replicas.
async fn complete(nodes: &[Node], load: &Load, acks: &[Value]) -> Result<()> {
    healthy(LONG_PATIENCE, &nodes[0]).await?;
    agreed(LONG_PATIENCE, &nodes[0]).await?;
    for node in nodes {
        let found = stored(node, "c").await?;
        ensure!(found.len() == load.count, "{} of {} documents are stored", found.len(), load.count);
        for ack in acks {
            let number = ack["first_line"].as_u64().context("a line")? - 1;
            let found = node.post("/collections/c/search", &question(number, &ack["token"])).await?.expect(200)?;
            ensure!(entries(&found, "hits").count() == 1, "document {number} is not found: {found}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_goes_on_while_each_node_dies_in_turn() -> Result<()> {
    let Some(load) = load("the import while nodes die")? else { return Ok(()) };
    let mut nodes = nodes(3, &[]).await?;
    collection(&nodes[0]).await?;
    replicated(LONG_PATIENCE, &nodes[0], 3, 3).await?;
    let mut import = Import::start(&load.file, "c", load.batch, &nodes)?;
    let witness = witness(&nodes, import.acks()?)?;
    for (number, victim) in nodes.iter_mut().enumerate() {
        import.reaches(load.count * (number + 1) / 8).await?;
        victim.kill()?;
        import.reaches(load.count * (number + 1) / 8 + load.count / 16).await?;
        victim.restart().await?;
        healthy(LONG_PATIENCE, victim).await?;
    }
    let summary = import.finish().await?;
    let (acks, passed_over) = witness.await??;
    println!(
        "{} documents in {} s; {passed_over} of {} searches met a node that was down",
        summary["accepted"],
        summary["took_s"],
        acks.len() * 3
    );
    complete(&nodes, &load, &acks).await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_become_five_and_three_again_during_an_import() -> Result<()> {
    let Some(load) = load("the import while nodes come and go")? else { return Ok(()) };
    let mut nodes = nodes(3, &[]).await?;
    collection(&nodes[0]).await?;
    replicated(LONG_PATIENCE, &nodes[0], 3, 3).await?;
    let mut import = Import::start(&load.file, "c", load.batch, &nodes)?;
    let witness = witness(&nodes, import.acks()?)?;
    import.reaches(load.count / 8).await?;
    for _ in 0..2 {
        let joined = nodes[1].start_beside(&[]).await?;
        nodes.push(joined);
    }
    let even = |body: &Value| {
        let counts: Vec<u64> = entries(body, "nodes").filter_map(|node| node["replicas"].as_u64()).collect();
        let within_one = counts.iter().max().zip(counts.iter().min()).is_some_and(|(most, least)| most - least <= 1);
        counts.len() == 5 && counts.iter().sum::<u64>() == 48 && within_one
    };
    ragged_tests::cluster::within(LONG_PATIENCE, &nodes[4], "/cluster/nodes", "the replicas are spread evenly", even).await?;
    replicated(LONG_PATIENCE, &nodes[0], 3, 5).await?;
    let during = import.acknowledged();
    import.finish().await?;
    let (acks, _) = witness.await??;
    println!("five nodes were even after {during} of {} documents", load.count);
    complete(&nodes, &load, &acks).await?;
    // The two that leave were among the first; whoever leads the meta group may be one of them.
    for leaving in 0..2 {
        let number = number_of(&nodes[4], &nodes[leaving]).await?;
        retire(LONG_PATIENCE, &nodes[4], number).await?;
        nodes[leaving].kill()?;
    }
    replicated(LONG_PATIENCE, &nodes[4], 3, 3).await?;
    complete(&nodes[2..], &load, &acks).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_disk_is_replaced_by_starting_a_new_one() -> Result<()> {
    let Some(load) = load("the lost disk")? else { return Ok(()) };
    let settings = [("RAGGED_CLUSTER_REPLACE_AFTER_MS", "3000")];
    let mut nodes = nodes(3, &settings).await?;
    collection(&nodes[0]).await?;
    replicated(LONG_PATIENCE, &nodes[0], 3, 3).await?;
    let mut import = Import::start(&load.file, "c", load.batch, &nodes)?;
    let witness = witness(&nodes, import.acks()?)?;
    import.reaches(load.count / 4).await?;
    let mut lost = nodes.pop().context("three nodes")?;
    lost.kill()?;
    drop(lost); // its folder goes with it
    import.finish().await?;
    let (acks, _) = witness.await??;
    let new = nodes[0].start_beside(&settings).await?;
    nodes.push(new);
    replicated(LONG_PATIENCE, &nodes[2], 3, 3).await?;
    complete(&nodes, &load, &acks).await
}
