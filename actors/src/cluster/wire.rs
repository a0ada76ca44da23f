//! What nodes ask each other, and what they answer. Every message is a frame of the codec: with version, length and checksum.

use crate::error::ServiceError;
use crate::shard::request::{ShardFreshness, ShardRequest, ShardResponse};
use ragged_raft::ids::{NodeId, ReplicaId, ShardId, TenantId};
use ragged_raft::membership::Standing;
use ragged_raft::meta::command::{MetaCommand, MetaReply};
use ragged_raft::recovery::LogEnd;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// Bytes of a message between members at most: a log entry of the largest command, with room to spare.
pub const MESSAGE_BYTES_MAX: usize = 136 << 20;
/// Bytes of a request to join at most.
pub const JOIN_BYTES_MAX: usize = 16 << 10;
/// Path of members' requests.
pub const CALL_PATH: &str = "/call";
/// Path of requests to join.
pub const JOIN_PATH: &str = "/join";

/// A group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GroupName {
    /// The meta group.
    Meta,
    /// A shard's.
    Shard(ShardId),
}

impl std::fmt::Display for GroupName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GroupName::Meta => f.write_str("meta"),
            GroupName::Shard(shard) => write!(f, "{shard}"),
        }
    }
}

/// What a member asks another.
#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    /// Says who dials, and where it is reached; the first call of every connection.
    Hello(Hello),
    /// openraft's message for a replica. Answered by `Raft`.
    Raft {
        /// The replica.
        replica: ReplicaId,
        /// The message.
        #[serde(with = "ragged_raft::bytes::plain")]
        frame: Vec<u8>,
    },
    /// A part of a snapshot's file. Answered by `Received`, or by `Raft` when it was the last and the file was installed.
    Snapshot(SnapshotPart),
    /// A request for a shard's replica. Answered by `Shard`.
    Shard {
        /// The shard.
        shard: ShardId,
        /// The tenant that it acts for.
        tenant: TenantId,
        /// How fresh the replica must be.
        freshness: ShardFreshness,
        /// The request.
        request: ShardRequest,
    },
    /// A change of what the cluster agrees on, for the leader of the meta group. Answered by `Changed`.
    ChangeMeta(MetaCommand),
    /// The index up to which the meta group's log holds everything that was acknowledged, for its leader. Answered by `Index`.
    MetaIndex,
    /// How the node stands. Answered by `Status`.
    Status,
    /// Keep a replica of this shard. Answered by `Hosted`.
    Host(ShardId),
    /// Give up a replica that has left its group. Answered by `Done`.
    Unhost {
        /// The shard.
        shard: ShardId,
        /// The replica, so that no later one is meant.
        replica: ReplicaId,
    },
    /// A change of a group's members, for its leader. Answered by `Done`.
    ChangeMembers {
        /// The group.
        group: GroupName,
        /// The members as they were when the change was decided.
        seen: Standing,
        /// The change.
        change: MemberChange,
    },
    /// Run a job whose shard this node leads. Answered by `Done`.
    RunJob {
        /// Whose it is.
        tenant: TenantId,
        /// The job.
        id: Ulid,
    },
    /// Stop a job, if it runs there. Answered by `Flag`.
    CancelJob(Ulid),
    /// A hash of all rows of the node's replica of a shard. Answered by `Hash`.
    StateHash(ShardId),
    /// How far the log of the node's replica of a shard goes. Answered by `LogEnd`.
    LogEnd(ShardId),
    /// Have the node's replica of a shard go on alone, or found the shard anew when nothing of it is there. Answered by `Hosted`.
    Recover {
        /// The shard.
        shard: ShardId,
        /// The replica that goes on, and how far its log goes, as they were when that was decided; none to found the shard.
        from: Option<(ReplicaId, LogEnd)>,
    },
    /// Make the next steps towards how the cluster should be at once, for the leader of the meta group. Answered by `Steps`.
    Reconcile,
}

/// What a member answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Done, nothing to say.
    Done,
    /// openraft's answer.
    Raft(#[serde(with = "ragged_raft::bytes::plain")] Vec<u8>),
    /// Bytes of a snapshot's file that are there.
    Received(u64),
    /// A shard's answer.
    Shard(Box<ShardResponse>),
    /// A change was made.
    Changed {
        /// Its index in the meta group's log.
        index: u64,
        /// What it answered.
        reply: MetaReply,
    },
    /// An index.
    Index(u64),
    /// How the node stands.
    Status(NodeStatus),
    /// The replica that is kept.
    Hosted(ReplicaId),
    /// Yes or no.
    Flag(bool),
    /// A hash of all rows.
    Hash {
        /// The index at which they are so.
        index: u64,
        /// The hash.
        hash: u64,
    },
    /// How far a log goes; none when it is empty.
    LogEnd(Option<LogEnd>),
    /// Steps, in words.
    Steps {
        /// Those that were made.
        made: Vec<String>,
        /// Those that could not be made, and why.
        failed: Vec<String>,
    },
}

/// How a call ended.
pub type Outcome = Result<Answer, ServiceError>;

/// Who dials.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster.
    pub cluster: Ulid,
    /// The node.
    pub node: NodeId,
    /// The node that it means to talk to.
    pub to: NodeId,
    /// Where it is reached.
    pub address: String,
    /// Its program's version.
    pub version: String,
}

/// A part of a snapshot's file.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotPart {
    /// The transfer, by a number that its sender chose.
    pub transfer: u64,
    /// The replica that it is for.
    pub replica: ReplicaId,
    /// What announces the snapshot.
    #[serde(with = "ragged_raft::bytes::plain")]
    pub offer: Vec<u8>,
    /// Where in the file the bytes belong.
    pub offset: u64,
    /// The bytes.
    #[serde(with = "ragged_raft::bytes::plain")]
    pub bytes: Vec<u8>,
    /// Whether the file ends with them.
    pub last: bool,
}

/// A change of a group's members.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum MemberChange {
    /// Adds a replica that does not vote.
    AddLearner {
        /// Its node.
        node: NodeId,
        /// The replica.
        replica: ReplicaId,
    },
    /// Makes these the voters.
    SetVoters(Vec<ReplicaId>),
    /// Removes a replica that does not vote.
    RemoveLearner(ReplicaId),
    /// Hands the leadership on.
    TransferLeader(ReplicaId),
}

/// How a node stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Its program's version.
    pub version: String,
    /// Its replicas that run.
    pub replicas: Vec<ReplicaStatus>,
    /// Shards that it keeps a replica of on its disk, whether that runs or not, and which.
    pub kept: Vec<(ShardId, ReplicaId)>,
}

/// How a replica stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Its group.
    pub group: GroupName,
    /// The group as the replica sees it.
    pub standing: Standing,
    /// Index of the last entry that is applied.
    pub applied_index: u64,
}

/// A node asks to join.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Id of its token.
    pub token_id: String,
    /// SHA-256 of the token's secret.
    pub secret_sha256: [u8; 32],
    /// The node.
    pub node: NodeId,
    /// Where it is reached.
    pub address: String,
    /// Its replica of the meta group.
    pub meta_replica: ReplicaId,
    /// What it asks to be certified.
    #[serde(with = "ragged_raft::bytes::plain")]
    pub key_request: Vec<u8>,
    /// Its program's version.
    pub version: String,
}

/// A node was let in.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The cluster.
    pub cluster: Ulid,
    /// Number of its shards.
    pub shard_count: u16,
    /// The authority's certificate, as PEM.
    pub authority_pem: String,
    /// The node's certificate, as PEM.
    pub certificate_pem: String,
}
