//! The identities that keys, commands and rows are made of.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $label:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, " {}"), self.0)
            }
        }
    };
}

id!(
    /// A node of the cluster. Never reused: a node that lost its disk comes back under a new id.
    NodeId(u64), "node"
);
id!(
    /// A replica of a group on a node; the Raft node id inside its group. Never reused, see `notes/consensus.md`.
    ReplicaId(u64), "replica"
);
id!(
    /// One of the fixed number of shards.
    ShardId(u16), "shard"
);
impl ShardId {
    /// Name of its group.
    pub fn group_name(self) -> String {
        format!("shard-{}", self.0)
    }
}

id!(
    /// A tenant. 0 is no tenant: rows that belong to the replica itself are kept under it.
    TenantId(u64), "tenant"
);
id!(
    /// A collection, unique in the cluster and never reused. 0 is no collection: what belongs to the tenant itself is kept under it.
    CollectionId(u64), "collection"
);
id!(
    /// A chunk's row inside a partition (one collection's part in one shard). Grows, never reused.
    RowId(u32), "row"
);

/// The tenant that a new cluster starts with; the first admin key belongs to it.
pub const DEFAULT_TENANT: TenantId = TenantId(1);
