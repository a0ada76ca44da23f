//! A majority that is gone for good: the cluster says so, and what is left of it goes on when an operator says so.

use anyhow::{Context, Result, ensure};
use ragged_tests::cluster::{agreed, entries, healthy, nodes, number_of, replicated, until};
use ragged_tests::node::{Answer, Node, program};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const DOCUMENTS: usize = 64;

async fn write(node: &Node, id: &str) -> Result<Answer> {
    let body = json!({ "documents": [{ "id": id, "text": format!("lighthouse {id}") }] });
    node.post("/collections/lights/documents", &body).await
}

/// Writes until it is acknowledged: a group that has just got a leader may ask for patience.
async fn written(node: &Node, id: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = write(node, id).await?;
        if answer.status == 200 {
            return Ok(());
        }
        ensure!(matches!(answer.status, 503 | 504) && Instant::now() < deadline, "{}: {}", answer.status, answer.body);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Documents on all shards.
async fn fill(node: &Node) -> Result<()> {
    node.post("/collections", &json!({ "name": "lights", "spread": 16 })).await?.expect(201)?;
    for number in 0..DOCUMENTS {
        written(node, &format!("d{number}")).await?;
    }
    Ok(())
}

/// How many documents are found when everything that was acknowledged must be.
async fn found(node: &Node) -> Result<usize> {
    let query = json!({ "query": "lighthouse", "mode": "text", "limit": 200, "consistency": "strong" });
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = node.post("/collections/lights/search", &query).await?;
        if answer.status == 200 {
            return Ok(entries(&answer.body, "hits").count());
        }
        ensure!(answer.status == 503 && Instant::now() < deadline, "{}: {}", answer.status, answer.body);
    }
}

/// Shards that the doctor says take no writes.
async fn lost_shards(node: &Node, lost: impl Fn(&Value) -> bool) -> Result<Vec<u64>> {
    let diagnosis = until(node, "/cluster/doctor", "shards without a majority are found", |body| {
        entries(body, "groups").any(|group| group["available"] == false && lost(group))
            && entries(body, "groups").all(|group| group["available"] == true || lost(group))
    })
    .await?;
    let ill = entries(&diagnosis, "groups").filter(|group| group["available"] == false);
    ill.map(|group| group["group"].as_str().and_then(|name| name.strip_prefix("shard ")?.parse().ok()).context("a shard"))
        .collect()
}

fn advises(group: &Value, what: &str) -> bool {
    group["advice"].as_str().is_some_and(|advice| advice.contains(what))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_goes_on_with_the_replica_that_is_left() -> Result<()> {
    // Two replicas a shard: when one is lost, the other is no majority, and has everything. The meta group of three goes on.
    let mut nodes = nodes(3, &[("RAGGED_CLUSTER_REPLICATION", "2")]).await?;
    replicated(PATIENCE, &nodes[0], 2, 3).await?;
    fill(&nodes[0]).await?;
    let number = number_of(&nodes[0], &nodes[2]).await?;
    nodes[2].kill()?;
    let deadline = Instant::now() + PATIENCE;
    let lost = loop {
        let lost = lost_shards(&nodes[0], |group| advises(group, "start the nodes")).await?;
        // A node that is slow to say how it stands counts as gone, too.
        if (8..=12).contains(&lost.len()) {
            break lost;
        }
        ensure!(Instant::now() < deadline, "two thirds of the shards had a replica there: {lost:?}");
    };
    loop {
        let ready: Value = reqwest::get(nodes[0].url("/readyz")).await?.error_for_status()?.json().await?;
        let ailing: Vec<&str> = entries(&ready, "ailing_shards").filter_map(|shard| shard["part"].as_str()).collect();
        // The node is ready, and says which of its shards take no writes; those of the other two that it has no replica of it does not know of.
        if !ailing.is_empty() && ailing.iter().all(|part| lost.iter().any(|shard| *part == format!("shard {shard}"))) {
            break;
        }
        ensure!(Instant::now() < deadline, "{ready}, {lost:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let recover = |shard: u64, accept: bool| {
        let path = format!("/cluster/shards/{shard}/recover");
        let node = &nodes[1];
        async move { node.post(&path, &json!({ "accept_loss": accept })).await }
    };
    let refused = recover(lost[0], true).await?;
    ensure!(refused.status == 409 && refused.code() == "replicas_may_return", "{}", refused.body);
    let healthy_shard = (0..16).find(|shard| !lost.contains(shard)).context("some shards are well")?;
    let refused = recover(healthy_shard, true).await?;
    ensure!(refused.status == 409 && refused.code() == "shard_has_leader", "{}", refused.body);
    nodes[0].delete(&format!("/cluster/nodes/{number}?force=true")).await?.expect(204)?;
    lost_shards(&nodes[1], |group| advises(group, "cluster recover")).await?;
    let refused = recover(lost[0], false).await?;
    ensure!(refused.status == 409 && refused.code() == "loss_not_accepted", "{}", refused.body);
    for shard in &lost {
        let recovered = recover(*shard, true).await?.expect(200)?;
        ensure!(recovered["empty"] == false, "{recovered}");
    }
    ensure!(recover(99, true).await?.code() == "shard_not_found", "a shard that is not");
    written(&nodes[0], "after").await?;
    ensure!(found(&nodes[1]).await? == DOCUMENTS + 1, "what was acknowledged by both replicas is all there");
    replicated(PATIENCE, &nodes[0], 2, 2).await?;
    healthy(PATIENCE, &nodes[0]).await?;
    agreed(PATIENCE, &nodes[0]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_of_which_nothing_is_left_goes_on_empty() -> Result<()> {
    let mut nodes = nodes(3, &[("RAGGED_CLUSTER_REPLICATION", "1")]).await?;
    replicated(PATIENCE, &nodes[0], 1, 3).await?;
    fill(&nodes[0]).await?;
    let number = number_of(&nodes[0], &nodes[2]).await?;
    nodes[2].kill()?;
    let refused = nodes[0].delete(&format!("/cluster/nodes/{number}")).await?;
    ensure!(refused.status == 409 && refused.code() == "last_replica", "{}", refused.body);
    nodes[0].delete(&format!("/cluster/nodes/{number}?force=true")).await?.expect(204)?;
    let lost = lost_shards(&nodes[0], |group| advises(group, "cluster recover")).await?;
    for shard in &lost {
        let path = format!("/cluster/shards/{shard}/recover");
        let refused = nodes[0].post(&path, &json!({})).await?;
        ensure!(refused.code() == "loss_not_accepted" && refused.body.to_string().contains("empty"), "{}", refused.body);
        let recovered = nodes[0].post(&path, &json!({ "accept_loss": true })).await?.expect(200)?;
        ensure!(recovered["empty"] == true, "{recovered}");
    }
    replicated(PATIENCE, &nodes[1], 1, 2).await?;
    let left = found(&nodes[1]).await?;
    ensure!((DOCUMENTS / 3..DOCUMENTS).contains(&left), "what the others kept is there: {left}");
    for number in 0..DOCUMENTS {
        written(&nodes[0], &format!("d{number}")).await?;
    }
    ensure!(found(&nodes[0]).await? == DOCUMENTS, "all shards take documents again");
    Ok(())
}

fn refound(folder: &Path, arguments: &[&str]) -> Result<Output> {
    Ok(program().args(["cluster", "refound", "--json"]).args(arguments).env("RAGGED_DATA_DIR", folder).output()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_refounds_the_cluster_with_what_it_has() -> Result<()> {
    let mut nodes = nodes(3, &[]).await?;
    replicated(PATIENCE, &nodes[0], 3, 3).await?;
    fill(&nodes[0]).await?;
    agreed(PATIENCE, &nodes[0]).await?;
    let running = refound(nodes[2].data_dir(), &["--accept-loss"])?;
    ensure!(String::from_utf8_lossy(&running.stderr).contains("in use"), "a node that runs is left alone: {running:?}");
    nodes.iter_mut().try_for_each(Node::kill)?;
    let asked = refound(nodes[2].data_dir(), &[])?;
    ensure!(asked.status.code() == Some(2), "{asked:?}");
    let empty = tempfile::tempdir()?;
    let nothing = refound(empty.path(), &["--accept-loss"])?;
    ensure!(String::from_utf8_lossy(&nothing.stderr).contains("does not belong to a cluster"), "{nothing:?}");
    ensure!(std::fs::read_dir(empty.path())?.next().is_none(), "nothing is made in a folder that is nobody's");

    let done = refound(nodes[2].data_dir(), &["--accept-loss"])?;
    let said: Value = serde_json::from_slice(&done.stdout).with_context(|| format!("{done:?}"))?;
    ensure!(entries(&said, "shards").count() == 16 && entries(&said, "lost_shards").count() == 0, "{said}");
    // As if that had been cut off: the node does not start, and it can be done again.
    std::fs::write(nodes[2].data_dir().join("refounding"), "")?;
    ensure!(nodes[2].restart().await.is_err(), "a node that is half refounded starts");
    let again = refound(nodes[2].data_dir(), &["--accept-loss"])?;
    ensure!(again.status.success(), "{again:?}");
    // Not the founder, and not the one that led.
    nodes[2].restart().await?;
    ensure!(found(&nodes[2]).await? == DOCUMENTS, "everything is there");
    written(&nodes[2], "new").await?;

    // The others come back: they are the old cluster, which goes on for itself.
    for old in [0, 1] {
        nodes[old].restart().await?;
    }
    written(&nodes[0], "old").await?;
    let fourth = nodes[2].start_beside(&[]).await?;
    replicated(PATIENCE, &fourth, 2, 2).await?;
    agreed(PATIENCE, &fourth).await?;
    for node in [&nodes[2], &fourth] {
        let members = node.get("/cluster/nodes").await?.expect(200)?;
        ensure!(entries(&members, "nodes").count() == 2, "{members}");
        node.get("/collections/lights/documents/new").await?.expect(200)?;
        node.get("/collections/lights/documents/old").await?.expect(404)?;
    }
    nodes[0].get("/collections/lights/documents/new").await?.expect(404)?;
    let old = nodes[0].get("/cluster/nodes").await?.expect(200)?;
    ensure!(entries(&old, "nodes").any(|node| node["state"] == "unreachable"), "the old cluster misses the node: {old}");
    Ok(())
}
