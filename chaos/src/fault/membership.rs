//! Faults, and plain changes, of who belongs to the cluster, while it is at work.

use super::{Class, Injected, Mending, process, shuffled};
use crate::cluster::Cluster;
use anyhow::{Context, Result};
use rand::rngs::StdRng;
use std::time::{Duration, Instant};

/// How long a node may take to be drained; where no other can take its replicas it keeps them.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// For how long something is asked of the cluster again and again, which may have no leader at the moment.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// How long a node may take to join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Drains a node.
pub async fn inject(class: Class, cluster: &mut Cluster, random: &mut StdRng) -> Result<Injected> {
    let order = shuffled(cluster, random);
    let (node, other) = (order[0], order[1]);
    let client = cluster.client(other)?;
    let id = persist("a node cannot be drained", async || {
        let id = id_of(cluster, node, other).await?.with_context(|| format!("node {node} is no member"))?;
        client.drain_node(id).await?;
        Ok(id)
    });
    let id = id.await?;
    let begun = Instant::now();
    let seen = loop {
        let members = persist("the nodes cannot be listed", async || Ok(client.cluster_nodes().await?.nodes)).await?;
        let keeps = members.iter().find(|member| member.id == id).map_or(0, |member| member.replicas);
        if keeps == 0 {
            break format!("drained within {} ms", begun.elapsed().as_millis());
        }
        if begun.elapsed() > DRAIN_TIMEOUT {
            break format!("it keeps {keeps} replicas, which no other node can take");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    Ok(Injected { class, nodes: vec![node], seen: Some(seen), violation: None, mending: Mending::Anew })
}

/// Removes a node, and has it join with an empty disk.
pub async fn join_anew(cluster: &mut Cluster, node: usize) -> Result<()> {
    let other = (0..cluster.len()).find(|other| *other != node).context("there is no other node")?;
    persist("a node cannot be removed", async || remove(cluster, node, other).await).await?;
    if cluster.process(node).is_some() {
        process::kill(cluster, &[node]).await?;
    }
    cluster.disk(node).wipe()?;
    let token = persist("there is no token", async || cluster.join_token(other).await).await?;
    cluster.join(node, other, token)?;
    cluster.until_ready(node, JOIN_TIMEOUT).await
}

/// Takes the node that had this place out of the cluster; done when it is none of its any more.
async fn remove(cluster: &Cluster, node: usize, other: usize) -> Result<()> {
    let Some(id) = id_of(cluster, node, other).await? else { return Ok(()) };
    Ok(cluster.client(other)?.remove_node(id, false).await?)
}

/// The identity of the node that has this place, as another one says.
pub async fn id_of(cluster: &Cluster, node: usize, other: usize) -> Result<Option<u64>> {
    let members = cluster.client(other)?.cluster_nodes().await?.nodes;
    Ok(members.into_iter().find(|member| member.address == cluster.cluster_address(node)).map(|member| member.id))
}

async fn persist<T>(what: &'static str, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + ASK_AGAIN;
    loop {
        match attempt().await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY).await,
            done => return done.context(what),
        }
    }
}
