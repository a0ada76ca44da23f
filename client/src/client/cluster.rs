//! Routes of the cluster.

use super::Client;
use super::call::Call;
use crate::cluster::{
    ClusterNode, Diagnosis, JoinToken, NewJoinToken, NodeList, Rebalanced, RecoveredShard, Recovery, ShardList,
};
use crate::error::ClientError;
use reqwest::Method;

impl Client {
    /// The cluster's nodes.
    pub async fn cluster_nodes(&self) -> Result<NodeList, ClientError> {
        self.inner.fetch(&Call::read(Method::GET, &["api", "v1", "cluster", "nodes"])).await
    }

    /// The cluster's shards and their replicas; with `hashes`, each replica hashes all its rows, which takes a while.
    pub async fn cluster_shards(&self, hashes: bool) -> Result<ShardList, ClientError> {
        let query = if hashes { vec![("hashes", "true".to_owned())] } else { Vec::new() };
        self.inner.fetch(&Call::read(Method::GET, &["api", "v1", "cluster", "shards"]).query(query)).await
    }

    /// What is wrong with the cluster, if anything is.
    pub async fn cluster_doctor(&self) -> Result<Diagnosis, ClientError> {
        self.inner.fetch(&Call::read(Method::GET, &["api", "v1", "cluster", "doctor"])).await
    }

    /// Makes a token that lets one node join, once.
    pub async fn make_join_token(&self, new: &NewJoinToken) -> Result<JoinToken, ClientError> {
        self.inner.fetch(&Call::write(Method::POST, &["api", "v1", "cluster", "tokens"]).json(new)?).await
    }

    /// Has the next steps towards an even cluster made at once; none are left when it names none.
    pub async fn rebalance(&self) -> Result<Rebalanced, ClientError> {
        self.inner.fetch(&Call::write(Method::POST, &["api", "v1", "cluster", "rebalance"])).await
    }

    /// Has a shard without a majority go on with what is left of it.
    pub async fn recover_shard(&self, shard: u16, recovery: &Recovery) -> Result<RecoveredShard, ClientError> {
        let shard = shard.to_string();
        let call = Call::write(Method::POST, &["api", "v1", "cluster", "shards", &shard, "recover"]);
        self.inner.fetch(&call.json(recovery)?).await
    }

    /// Has a node's replicas moved to others.
    pub async fn drain_node(&self, node: u64) -> Result<ClusterNode, ClientError> {
        let node = node.to_string();
        self.inner.fetch(&Call::write(Method::POST, &["api", "v1", "cluster", "nodes", &node, "drain"])).await
    }

    /// Takes a node out of the cluster for good.
    pub async fn remove_node(&self, node: u64, force: bool) -> Result<(), ClientError> {
        let node = node.to_string();
        let query = if force { vec![("force", "true".to_owned())] } else { Vec::new() };
        self.inner.send(&Call::write(Method::DELETE, &["api", "v1", "cluster", "nodes", &node]).query(query)).await?;
        Ok(())
    }
}
