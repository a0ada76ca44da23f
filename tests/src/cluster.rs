//! Several nodes under test, and what is waited for in a cluster.

use crate::node::Node;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long something may take to come about, on a machine that runs other tests beside.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same under a long load, where moving what is missing takes its time on two cores.
pub const LONG_PATIENCE: Duration = Duration::from_secs(300);

/// A founder, and so many nodes that have joined it.
pub async fn nodes(count: usize, settings: &[(&str, &str)]) -> Result<Vec<Node>> {
    let mut nodes = vec![Node::start_with(settings).await?];
    while nodes.len() < count {
        let joined = nodes[0].start_beside(settings).await?;
        nodes.push(joined);
    }
    Ok(nodes)
}

/// Asks until the answer is as it should be.
pub async fn until(node: &Node, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    within(PATIENCE, node, path, what, holds).await
}

/// The same for what may take longer.
pub async fn within(patience: Duration, node: &Node, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + patience;
    loop {
        let answer = node.get(path).await?;
        if answer.status == 200 && holds(&answer.body) {
            return Ok(answer.body);
        }
        ensure!(Instant::now() < deadline, "{what}: {}", answer.body);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The entries of a list in an answer.
pub fn entries<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value[name].as_array().into_iter().flatten()
}

/// Waits until every shard has so many voters, all running, and the leaders are spread evenly over as many nodes.
pub async fn replicated(patience: Duration, node: &Node, replicas: usize, nodes: usize) -> Result<Value> {
    within(patience, node, "/cluster/shards", "every shard has its replicas", |body| {
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

/// Waits until every group of the cluster is at full strength.
pub async fn healthy(patience: Duration, node: &Node) -> Result<Value> {
    within(patience, node, "/cluster/doctor", "everything is healthy", |body| body["healthy"] == true).await
}

/// Waits until all replicas of every shard have the same rows at the same index.
pub async fn agreed(patience: Duration, node: &Node) -> Result<Value> {
    within(patience, node, "/cluster/shards?hashes=true", "all replicas have the same rows", |body| {
        entries(body, "shards").all(|shard| {
            let states: HashSet<String> = entries(shard, "replicas")
                .map(|replica| format!("{}@{}", replica["state_hash"], replica["hash_index"]))
                .collect();
            states.len() == 1 && !states.iter().any(|state| state.contains("null"))
        })
    })
    .await
}

/// The number that the cluster knows a node by.
pub async fn number_of(asked: &Node, node: &Node) -> Result<u64> {
    let members = asked.get("/cluster/nodes").await?.expect(200)?;
    let member = entries(&members, "nodes").find(|member| member["address"] == node.cluster_listen());
    member.and_then(|member| member["id"].as_u64()).with_context(|| format!("the node is not listed: {members}"))
}

/// Has a node drained and, when it keeps nothing any more, removed. It still runs.
pub async fn retire(patience: Duration, asked: &Node, number: u64) -> Result<()> {
    asked.post(&format!("/cluster/nodes/{number}/drain"), &json!({})).await?.expect(200)?;
    let drained =
        |body: &Value| entries(body, "nodes").any(|node| node["id"] == number && node["replicas"] == 0 && node["leaders"] == 0);
    within(patience, asked, "/cluster/nodes", "the drained node keeps nothing", drained).await?;
    asked.delete(&format!("/cluster/nodes/{number}")).await?.expect(204)?;
    within(patience, asked, "/cluster/nodes", "the node has left", |body| {
        entries(body, "nodes").all(|node| node["id"] != number)
    })
    .await?;
    Ok(())
}
