//! The cluster: its nodes and shards, and what is wrong with them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /api/v1/cluster/nodes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// The nodes, in the order of their ids.
    pub nodes: Vec<ClusterNode>,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterNode {
    /// Its id, never given to another node.
    pub id: u64,
    /// Where other nodes reach it.
    pub address: String,
    /// What is wanted of it, and whether it answers.
    pub state: NodeStanding,
    /// Whether it leads the meta group.
    pub leads_meta: bool,
    /// Whether it votes in the meta group.
    pub votes_meta: bool,
    /// Version of its program, when it answers.
    pub version: Option<String>,
    /// Shards that it keeps a replica of.
    pub replicas: u32,
    /// Shards that it leads.
    pub leaders: u32,
}

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeStanding {
    /// It keeps replicas, and answers.
    Active,
    /// Its replicas are moved to others.
    Draining,
    /// It is to keep replicas, and does not answer.
    Unreachable,
}

/// Answer of `GET /api/v1/cluster/shards`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ShardList {
    /// The shards, in the order of their numbers.
    pub shards: Vec<ClusterShard>,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterShard {
    /// Its number.
    pub id: u16,
    /// The node that leads it, if one does.
    pub leader: Option<u64>,
    /// Its replicas.
    pub replicas: Vec<ClusterReplica>,
}

/// A replica of a shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterReplica {
    /// Its node.
    pub node: u64,
    /// What it is in its group.
    pub role: ReplicaRole,
    /// Whether it runs.
    pub state: ReplicaState,
    /// Index of the last entry of the shard's log that it has applied, when it runs.
    pub applied_index: Option<u64>,
    /// With `hashes`: the index at which its rows were hashed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_index: Option<u64>,
    /// With `hashes`: a hash of all its rows, 16 hexadecimal digits. Replicas at the same index have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_hash: Option<String>,
}

/// What a replica is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaRole {
    /// It leads.
    Leader,
    /// It votes.
    Follower,
    /// It is being filled.
    Learner,
}

/// Whether a replica runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaState {
    /// Its node answers, and runs it.
    Running,
    /// Its node does not answer, or does not run it.
    Down,
}

/// Answer of `GET /api/v1/cluster/doctor`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Diagnosis {
    /// Whether every group has a leader and all its replicas, and these have what was written.
    pub healthy: bool,
    /// One entry a group: the meta group, then the shards.
    pub groups: Vec<GroupFinding>,
}

/// How a group is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupFinding {
    /// `meta`, or `shard N`.
    pub group: String,
    /// Whether it has a leader and all its replicas, and these have what was written.
    pub healthy: bool,
    /// Whether it takes writes.
    pub available: bool,
    /// What is wrong.
    pub problem: Option<String>,
    /// What the cluster does about it.
    pub remedy: Option<String>,
    /// What the operator can do.
    pub advice: Option<String>,
}

/// Body of `POST /api/v1/cluster/tokens`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJoinToken {
    /// For how long it can be used; an hour by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604800)]
    pub valid_seconds: Option<u32>,
}

/// A token that lets one node join, once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// The token; it is shown this once.
    pub token: String,
}

/// Answer of `POST /api/v1/cluster/rebalance`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rebalanced {
    /// Steps that were made, in words.
    pub steps: Vec<String>,
    /// Steps that could not be made, and why; they are tried again. When there are neither, nothing is left to do.
    pub failed: Vec<String>,
}

/// Body of `POST /api/v1/cluster/shards/{shard}/recover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// Whether what only the lost replicas had may be lost; without it, the answer says what would be done.
    #[serde(default)]
    pub accept_loss: bool,
}

/// What a shard goes on with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoveredShard {
    /// The shard.
    pub id: u16,
    /// The node that leads it now.
    pub node: u64,
    /// Whether no replica was left, so that the shard is empty.
    pub empty: bool,
}
