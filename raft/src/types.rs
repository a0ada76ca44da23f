//! The types that openraft is set up with: one set for all groups, whose commands are bytes that only their machine understands.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A command in a log: a frame of the codec.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command(#[serde(with = "crate::bytes::plain")] pub Vec<u8>);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a command answered: a frame of the codec; empty for blank and membership entries.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Reply(#[serde(with = "crate::bytes::plain")] pub Vec<u8>);

/// Where a replica lives. The node's address is no part of it: it may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReplicaNode {
    /// The node.
    pub node: u64,
}

impl fmt::Display for ReplicaNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.node)
    }
}

openraft::declare_raft_types!(
    /// openraft's types for every group.
    pub Types: D = Command, R = Reply, NodeId = u64, Node = ReplicaNode, AsyncRuntime = crate::runtime::Runtime
);

/// A log entry.
pub type Entry = openraft::type_config::alias::EntryOf<Types>;
/// The id of a log entry.
pub type LogId = openraft::type_config::alias::LogIdOf<Types>;
/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<Types>;
/// Who leads, and in which term.
pub type LeaderId = openraft::type_config::alias::LeaderIdOf<Types>;
/// A membership and the entry that set it.
pub type Membership = openraft::type_config::alias::StoredMembershipOf<Types>;
/// What a snapshot holds.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
