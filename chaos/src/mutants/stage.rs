//! Where a scenario is played: a cluster, what is done to it, and what was found.

use crate::cluster::{Cluster, Installation};
use crate::verdict::Violation;
use crate::workload::{text_of, vector_of};
use anyhow::{Context, Result, ensure};
use ragged_client::{
    Client, ClientError, ClusterReplica, ClusterShard, Consistency, Document, Embedding, EmbeddingDimension, NewCollection,
    NewDocument, ReplicaRole, UploadOptions, UploadReply, UploadedDocument, UploadedDocuments,
};
use serde_json::{Map, Value};
use std::path::Path;
use std::time::{Duration, Instant};

/// Values of a vector, as the workload has them.
const DIMENSION: u32 = 8;
/// How long a node may take to be ready.
pub const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster, and what was found.
pub struct Stage {
    /// The cluster.
    pub cluster: Cluster,
    /// Promises that were not kept.
    pub found: Vec<Violation>,
    /// What nodes are started with once they are armed.
    armed: Vec<(String, String)>,
}

impl Stage {
    /// So many nodes, armed from the beginning.
    pub async fn armed(nodes: usize, installation: &Installation) -> Result<Stage> {
        let cluster = Cluster::start(nodes, installation.clone()).await?;
        until_replicated(&cluster, nodes).await?;
        Ok(Stage { cluster, found: Vec::new(), armed: installation.environment.clone() })
    }

    /// So many nodes as they should be; they are armed when they are started again.
    pub async fn unarmed(nodes: usize, installation: &Installation) -> Result<Stage> {
        let unarmed = Installation { environment: Vec::new(), ..installation.clone() };
        let cluster = Cluster::start(nodes, unarmed).await?;
        until_replicated(&cluster, nodes).await?;
        Ok(Stage { cluster, found: Vec::new(), armed: installation.environment.clone() })
    }

    /// Nodes are armed when they are started from now on, or not any more.
    pub fn arm(&mut self, on: bool) {
        *self.cluster.environment() = if on { self.armed.clone() } else { Vec::new() };
    }

    /// Notes a promise that was not kept.
    pub fn violated(&mut self, check: &'static str, what: impl Into<String>) {
        self.found.push(Violation { check, what: what.into() });
    }

    /// Notes it when something does not hold.
    pub fn expect(&mut self, check: &'static str, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violated(check, what());
        }
    }

    /// A client of a node, which tries nothing twice.
    pub fn client(&self, node: usize) -> Result<Client> {
        self.cluster.client(node)
    }

    /// What a node keeps.
    pub fn data_dir(&self, node: usize) -> std::path::PathBuf {
        self.cluster.data_dir(node)
    }

    /// Kills a node.
    pub async fn kill(&mut self, node: usize) -> Result<()> {
        self.cluster.signal(node, libc::SIGKILL)?;
        self.cluster.ended(node, KILL_TIMEOUT).await
    }

    /// Starts a node again, and waits until it is ready; whether it is.
    pub async fn start_again(&mut self, node: usize) -> Result<bool> {
        self.cluster.restart(node)?;
        self.is_ready(node, READY_TIMEOUT).await
    }

    /// Kills a node, and starts it again armed.
    pub async fn restart_armed(&mut self, node: usize) -> Result<()> {
        self.kill(node).await?;
        self.arm(true);
        ensure!(self.start_again(node).await?, "node {node} is not ready again");
        Ok(())
    }

    /// Whether a node is ready within that time. That its process ends by itself is an error here.
    pub async fn is_ready(&mut self, node: usize, within: Duration) -> Result<bool> {
        let deadline = Instant::now() + within;
        let client = self.client(node)?;
        while Instant::now() < deadline {
            if client.ready().await.is_ok_and(|readiness| readiness.ready) {
                return Ok(true);
            }
            if let Some((ended, status)) = self.cluster.deserter()? {
                anyhow::bail!("node {ended} ended by itself with {status}: {}", last_line(&self.cluster.log_path(ended)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(false)
    }

    /// The node that leads a shard.
    pub async fn leader_of(&self, shard: u16) -> Result<usize> {
        self.leader_seen_by(0, shard).await
    }

    /// The node that leads a shard, as another one says. There may be none for a moment.
    pub async fn leader_seen_by(&self, node: usize, shard: u16) -> Result<usize> {
        let client = self.client(node)?;
        let deadline = Instant::now() + READY_TIMEOUT;
        let leader = loop {
            let shards = client.cluster_shards(false).await?.shards;
            match shards.iter().find(|one| one.id == shard).and_then(|one| one.leader) {
                Some(leader) => break leader,
                None => ensure!(Instant::now() < deadline, "shard {shard} has no leader"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let nodes = client.cluster_nodes().await?.nodes;
        let address = nodes.into_iter().find(|node| node.id == leader).context("the leader is not known")?.address;
        (0..self.cluster.len()).find(|node| self.cluster.cluster_address(*node) == address).context("the leader is no node")
    }

    /// The only shard that a collection has documents in: the one whose log grew since it was looked at.
    pub async fn shard_of(&self, collection: &str) -> Result<u16> {
        let client = self.client(0)?;
        let before = applied(&client).await?;
        for value in 0..20 {
            store(&client, collection, &[document("which-shard", value)]).await?;
        }
        let after = applied(&client).await?;
        let grown = after.iter().zip(&before).find(|(after, before)| after.1 >= before.1 + 20);
        grown.map(|(shard, _)| shard.0).context("no shard has grown")
    }
}

/// Waits until every shard has a replica on each of so many nodes, three at most: a cluster that is whole may still be growing.
pub async fn until_replicated(cluster: &Cluster, nodes: usize) -> Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let shards = cluster.client(0)?.cluster_shards(false).await?.shards;
        let votes = |replica: &&ClusterReplica| matches!(replica.role, ReplicaRole::Leader | ReplicaRole::Follower);
        let full = |shard: &ClusterShard| shard.leader.is_some() && shard.replicas.iter().filter(votes).count() == nodes.min(3);
        if shards.iter().all(full) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the shards do not get their replicas");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn applied(client: &Client) -> Result<Vec<(u16, u64)>> {
    let shards = client.cluster_shards(false).await?.shards;
    let most = |shard: &ClusterShard| shard.replicas.iter().filter_map(|replica| replica.applied_index).max();
    Ok(shards.iter().map(|shard| (shard.id, most(shard).unwrap_or_default())).collect())
}

/// The last line of a log.
pub fn last_line(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default().lines().last().unwrap_or_default().to_owned()
}

/// Makes a collection whose vectors come from the client.
pub async fn make_collection(client: &Client, name: &str, spread: u16) -> Result<()> {
    let embedding = Some(Embedding::External(EmbeddingDimension { dimension: DIMENSION }));
    let new = NewCollection { name: name.into(), spread: Some(spread), embedding, chunking: None, language: None };
    client.create_collection(&new).await?;
    Ok(())
}

/// A document of a value: its text has a word that no other has and one that all have, its vector is like no other.
pub fn document(id: &str, value: u64) -> NewDocument {
    let metadata = Map::from_iter([("even".to_owned(), Value::from(value.is_multiple_of(2)))]);
    NewDocument {
        id: Some(id.to_owned()),
        title: None,
        text: words_of(value),
        format: None,
        metadata: Some(metadata),
        vector: Some(vector_of(value)),
    }
}

/// The text of a value.
pub fn words_of(value: u64) -> String {
    format!("{} common", text_of(value))
}

/// Stores documents, and has the answer.
pub async fn upload(client: &Client, collection: &str, documents: &[NewDocument]) -> Result<UploadedDocuments, ClientError> {
    match client.upload(collection, documents, UploadOptions::default()).await? {
        UploadReply::Stored(stored) => Ok(stored),
        UploadReply::Accepted(_) => Err(ClientError::Invalid("the node has made a job of an upload that waits".into())),
    }
}

/// Stores documents; what each became.
pub async fn store(client: &Client, collection: &str, documents: &[NewDocument]) -> Result<Vec<UploadedDocument>> {
    Ok(upload(client, collection, documents).await?.documents)
}

/// A document, or that there is none.
pub async fn read(client: &Client, collection: &str, id: &str) -> Result<Option<Document>> {
    found(client.get_document_as_of(collection, id, Some(Consistency::Strong)).await)
}

/// That there is no document is an answer.
pub fn found(read: Result<Document, ClientError>) -> Result<Option<Document>> {
    match read {
        Ok(document) => Ok(Some(document)),
        Err(fault) if fault.code() == Some("document_not_found") => Ok(None),
        Err(fault) => Err(fault.into()),
    }
}
