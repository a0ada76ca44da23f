//! Several nodes: they join, any of them serves, one that dies takes nothing with it.

use anyhow::{Context, Result, ensure};
use ragged_tests::node::{Node, program};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A founder, and so many nodes that have joined it.
async fn nodes(count: usize, settings: &[(&str, &str)]) -> Result<Vec<Node>> {
    let mut nodes = vec![Node::start_with(settings).await?];
    while nodes.len() < count {
        let joined = nodes[0].start_beside(settings).await?;
        nodes.push(joined);
    }
    Ok(nodes)
}

/// Asks until the answer is as it should be.
async fn until(node: &Node, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = node.get(path).await?;
        if answer.status == 200 && holds(&answer.body) {
            return Ok(answer.body);
        }
        ensure!(Instant::now() < deadline, "{what}: {}", answer.body);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn entries<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value[name].as_array().into_iter().flatten()
}

/// Waits until every shard has so many voters, all running, and the leaders are spread evenly over as many nodes.
async fn replicated(node: &Node, replicas: usize, nodes: usize) -> Result<Value> {
    until(node, "/cluster/shards", "every shard has its replicas", |body| {
        let complete = entries(body, "shards").all(|shard| {
            let voters =
                entries(shard, "replicas").filter(|replica| replica["role"] != "learner" && replica["state"] == "running");
            voters.count() == replicas && entries(shard, "replicas").count() == replicas && shard["leader"].is_u64()
        });
        let mut led: Vec<u64> = entries(body, "shards").filter_map(|shard| shard["leader"].as_u64()).collect();
        led.sort_unstable();
        let counts: Vec<usize> = led.chunk_by(|one, other| one == other).map(<[u64]>::len).collect();
        let even = counts.iter().max().zip(counts.iter().min()).is_some_and(|(most, least)| most - least <= 1);
        complete && even && counts.len() == nodes
    })
    .await
}

/// Waits until all replicas of every shard have the same rows at the same index.
async fn agreed(node: &Node) -> Result<Value> {
    until(node, "/cluster/shards?hashes=true", "all replicas have the same rows", |body| {
        entries(body, "shards").all(|shard| {
            let states: HashSet<String> = entries(shard, "replicas")
                .map(|replica| format!("{}@{}", replica["state_hash"], replica["hash_index"]))
                .collect();
            states.len() == 1 && !states.iter().any(|state| state.contains("null"))
        })
    })
    .await
}

/// Uploads through a node until it is acknowledged; a node that has just lost a leader may ask for patience.
async fn upload(node: &Node, id: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let body = json!({ "documents": [{ "id": id, "text": format!("The albatross number {id} crosses the southern ocean.") }] });
    loop {
        let answer = node.post("/collections/birds/documents", &body).await?;
        if answer.status == 200 || answer.status == 201 {
            return Ok(answer.body["token"].as_str().context("a write returns a token")?.to_owned());
        }
        ensure!(matches!(answer.status, 503 | 504) && Instant::now() < deadline, "{}: {}", answer.status, answer.body);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The document is found through this node, by a search that carries its token.
async fn finds(node: &Node, id: &str, token: &str) -> Result<()> {
    let query = json!({ "query": format!("albatross {id}"), "mode": "text", "limit": 100, "token": token });
    let found = node.post("/collections/birds/search", &query).await?.expect(200)?;
    ensure!(entries(&found, "hits").any(|hit| hit["document_id"] == id), "{id} is not found: {found}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_serves_and_one_that_dies_takes_nothing_with_it() -> Result<()> {
    let mut nodes = nodes(3, &[]).await?;
    replicated(&nodes[1], 3, 3).await?;
    let members = nodes[2].get("/cluster/nodes").await?.expect(200)?;
    ensure!(entries(&members, "nodes").all(|node| node["state"] == "active" && node["votes_meta"] == true), "{members}");

    // What one node was told, every other one knows at once.
    nodes[0].post("/collections", &json!({ "name": "birds", "spread": 4 })).await?.expect(201)?;
    let mut written = Vec::new();
    for round in 0..4 {
        for (number, node) in nodes.iter().enumerate() {
            let id = format!("d{round}x{number}");
            let token = upload(node, &id).await?;
            for other in &nodes {
                finds(other, &id, &token).await?;
            }
            written.push((id, token));
        }
    }
    agreed(&nodes[0]).await?;

    for victim in 0..3 {
        nodes[victim].kill()?;
        for (number, node) in nodes.iter().enumerate().filter(|(number, _)| *number != victim) {
            for round in 0..4 {
                let id = format!("k{victim}x{number}x{round}");
                let token = upload(node, &id).await?;
                finds(node, &id, &token).await?;
                written.push((id, token));
            }
        }
        nodes[victim].restart().await?;
        for (id, token) in &written {
            finds(&nodes[victim], id, token).await?;
        }
        until(&nodes[(victim + 1) % 3], "/cluster/doctor", "everything is healthy again", |body| body["healthy"] == true).await?;
    }
    agreed(&nodes[0]).await?;
    for node in &nodes {
        let strong = json!({ "query": "albatross", "mode": "text", "limit": 100, "consistency": "strong" });
        let found = node.post("/collections/birds/search", &strong).await?.expect(200)?;
        ensure!(
            entries(&found, "hits").count() == written.len(),
            "{} of {} are found",
            entries(&found, "hits").count(),
            written.len()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_follow_the_nodes_that_come_and_go() -> Result<()> {
    let mut nodes = nodes(3, &[]).await?;
    nodes[0].post("/collections", &json!({ "name": "birds", "spread": 4 })).await?.expect(201)?;
    let mut written = Vec::new();
    for number in 0..20 {
        let id = format!("d{number}");
        written.push((id.clone(), upload(&nodes[number % 3], &id).await?));
    }
    replicated(&nodes[0], 3, 3).await?;
    let fourth = nodes[1].start_beside(&[]).await?;
    nodes.push(fourth);
    let even = |body: &Value| entries(body, "nodes").count() == 4 && entries(body, "nodes").all(|node| node["replicas"] == 12);
    until(&nodes[3], "/cluster/nodes", "the replicas are spread evenly", even).await?;

    // The founder leaves: its identity, its lead and its replicas are nothing special.
    let members = nodes[1].get("/cluster/nodes").await?.expect(200)?;
    let founder =
        entries(&members, "nodes").find(|node| node["address"] == nodes[0].cluster_listen()).context("the founder")?["id"]
            .clone();
    nodes[1].post(&format!("/cluster/nodes/{founder}/drain"), &json!({})).await?.expect(200)?;
    let drained =
        |body: &Value| entries(body, "nodes").any(|node| node["id"] == founder && node["replicas"] == 0 && node["leaders"] == 0);
    until(&nodes[1], "/cluster/nodes", "the drained node keeps nothing", drained).await?;
    nodes[1].delete(&format!("/cluster/nodes/{founder}")).await?.expect(204)?;
    until(&nodes[1], "/cluster/nodes", "the node has left", |body| entries(body, "nodes").count() == 3).await?;
    nodes[0].kill()?;
    replicated(&nodes[1], 3, 3).await?;
    for node in &nodes[1..] {
        for (id, token) in &written {
            finds(node, id, token).await?;
        }
    }
    agreed(&nodes[1]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_not_join_is_told_why() -> Result<()> {
    let (one, other) = (Node::start().await?, Node::start().await?);
    let token = one.post("/cluster/tokens", &json!({ "valid_seconds": 600 })).await?.expect(201)?["token"].clone();
    let token = token.as_str().context("a token is text")?;
    let refused = |seed: &str, token: &str| -> Result<String> {
        let folder = tempfile::tempdir()?;
        let output = program()
            .args(["serve", "--listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0", "--join", seed, "--token", token])
            .env("RAGGED_DATA_DIR", folder.path())
            .env("RAGGED_MODEL_DIR", ragged_tests::node::model_dir())
            .output()?;
        ensure!(!output.status.success(), "it joined");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (seed, token, wanted) in [
        (one.cluster_listen(), "garbage", "a join token looks like"),
        (other.cluster_listen(), token, "not of the cluster that made the token"),
        ("127.0.0.1:9", token, "does not answer"),
    ] {
        let said = refused(seed, token)?;
        ensure!(said.contains(wanted), "{wanted}: {said}");
    }
    // The port of the API answers otherwise, or not in time.
    let said = refused(one.listen(), token)?;
    ensure!(said.contains("speaks another protocol") || said.contains("does not answer as a cluster port"), "{said}");
    let forged = format!("{}0{}", &token[..30], &token[31..]);
    if forged != token {
        ensure!(refused(one.cluster_listen(), &forged)?.contains("the join token is wrong"), "a forged secret");
    }
    let joined = Node::start_with(&[("RAGGED_CLUSTER_JOIN", one.cluster_listen()), ("RAGGED_CLUSTER_TOKEN", token)]).await?;
    ensure!(refused(one.cluster_listen(), token)?.contains("is not known: it was used before"), "a used token");
    drop(joined);
    Ok(())
}
