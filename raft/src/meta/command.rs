//! Commands of the meta group. Appending variants is compatible; changing one is not: add a new one.

use crate::ids::{NodeId, ShardId, TenantId};
use crate::meta::collection::{Collection, VectorSettings};
use crate::meta::node::{Authority, JoinToken, NodeRow, NodeState, ShardPlaces};
use serde::{Deserialize, Serialize};

/// What the meta group's log carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MetaCommand {
    /// Once, by the node that founds the cluster. A second one is answered `AlreadyExists`.
    Found {
        /// Identity of the cluster.
        cluster: ulid::Ulid,
        /// Number of shards, fixed from here on.
        shard_count: u16,
        /// The founding node.
        node: NodeId,
        /// Name of the default tenant.
        tenant_name: String,
        /// The first admin key.
        admin_key: KeyRecord,
        /// Milliseconds since 1970-01-01 UTC.
        at_ms: u64,
    },
    /// Adds a key or replaces the one of the same id.
    PutKey {
        /// The key.
        key: KeyRecord,
    },
    /// Forgets a key.
    DeleteKey {
        /// Id of the key.
        id: String,
    },
    /// Creates a collection; its id and its shards are chosen in apply (next id; `spread` shards from a start that the id decides).
    CreateCollection {
        /// Whose it is.
        tenant: TenantId,
        /// Its name.
        name: String,
        /// Number of shards, 1 to the cluster's.
        spread: u16,
        /// Named vectors, the default first.
        vectors: Vec<VectorSettings>,
        /// Tokens of a chunk at most.
        chunk_tokens: u32,
        /// Tokens that neighbouring chunks share.
        chunk_overlap: u32,
        /// ISO 639-1 code, or `none`.
        language: String,
        /// Milliseconds since 1970-01-01 UTC.
        at_ms: u64,
    },
    /// Takes a collection out of the catalogue and notes it in the list of dropped ones, until `Forget` says that every shard has dropped its rows.
    DeleteCollection {
        /// Whose it is.
        tenant: TenantId,
        /// Its name.
        name: String,
    },
    /// Every shard has dropped the collection's rows.
    ForgetCollection {
        /// The dropped collection.
        collection: crate::ids::CollectionId,
    },
    /// Makes the cluster able to let nodes join, once: its authority, and the node that founded it.
    Establish {
        /// What certificates are issued with.
        authority: Authority,
        /// The node that founded the cluster.
        founder: NodeRow,
    },
    /// Adds a token that lets a node join. Tokens that have expired by `at_ms` are forgotten.
    PutToken {
        /// The token.
        token: JoinToken,
        /// Milliseconds since 1970-01-01 UTC.
        at_ms: u64,
    },
    /// Lets a node join with a token, which is used up. Sent again for the same node, it notes the address only.
    Admit {
        /// The token's id.
        token_id: String,
        /// SHA-256 of the secret that the node presented.
        secret_sha256: [u8; 32],
        /// The node.
        node: NodeRow,
        /// Milliseconds since 1970-01-01 UTC.
        at_ms: u64,
    },
    /// A node is reached elsewhere.
    MoveNode {
        /// The node.
        node: NodeId,
        /// `HOST:PORT`.
        address: String,
    },
    /// Something else is wanted of a node. One that was removed stays so.
    SetNodeState {
        /// The node.
        node: NodeId,
        /// What is wanted.
        state: NodeState,
    },
    /// A shard's replicas are these.
    PlaceShard {
        /// The shard.
        shard: ShardId,
        /// Where they are.
        places: ShardPlaces,
    },
    /// The cluster goes on as another, of one node: all others are removed, and no token that was made before lets anybody in.
    Refound {
        /// Identity of the cluster from here on.
        cluster: ulid::Ulid,
        /// The node that is left.
        survivor: NodeId,
    },
}

/// What a command answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MetaReply {
    /// Done, nothing to say (also for blank and membership entries).
    Done,
    /// The collection that was created or deleted.
    Collection(Collection),
    /// There is one of that name already: it, unchanged.
    AlreadyExists,
    /// There is none of that name.
    NotFound,
    /// A limit would be exceeded; says which.
    LimitExceeded(String),
    /// It is refused; says why.
    Refused(String),
}

/// A key that opens the API; the secret itself is never stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Public part of the key, by which it is looked up.
    pub id: String,
    /// SHA-256 of the secret part (256 random bits, so a fast hash is enough).
    pub secret_sha256: [u8; 32],
    /// Tenant that requests with this key act for.
    pub tenant: TenantId,
    /// What it may do.
    pub role: Role,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_at_ms: u64,
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Everything.
    Admin,
}
