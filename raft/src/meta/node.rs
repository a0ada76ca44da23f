//! What the cluster agrees on about its nodes, and about which of them keeps a replica of which shard.

use crate::ids::{NodeId, ReplicaId, ShardId};
use serde::{Deserialize, Serialize};

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// The node. Never given to another.
    pub node: NodeId,
    /// `HOST:PORT` that the other nodes reach it at.
    pub address: String,
    /// Its replica of the meta group.
    pub meta_replica: ReplicaId,
    /// What is wanted of it.
    pub state: NodeState,
    /// Milliseconds since 1970-01-01 UTC.
    pub joined_at_ms: u64,
}

/// What is wanted of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// It keeps replicas.
    Active,
    /// Its replicas are moved to others; it serves meanwhile.
    Draining,
    /// It has left for good. Its row stays, so that its identity is never used again.
    Removed,
}

/// Where a shard's replicas are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShardPlaces {
    /// The replicas that vote, by the nodes that they live on.
    pub replicas: Vec<(NodeId, ReplicaId)>,
}

/// A shard and where its replicas are.
pub type PlacedShard = (ShardId, ShardPlaces);

/// A token that lets one node join, once; the secret itself is never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Public part.
    pub id: String,
    /// SHA-256 of the secret part.
    pub secret_sha256: [u8; 32],
    /// Milliseconds since 1970-01-01 UTC.
    pub expires_at_ms: u64,
}

/// A token that has let a node join. Until it would have expired, the node may ask again: the answer may have been lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpentToken {
    /// The token.
    pub token: JoinToken,
    /// The node that it let in.
    pub node: NodeId,
}

/// What nodes' certificates are issued with. Every node has it, so that any of them can let another join.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// The certificate, as PEM.
    pub certificate_pem: String,
    /// Its private key, as PEM.
    pub key_pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority(..)") // never the key
    }
}
