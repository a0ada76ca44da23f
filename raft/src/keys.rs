//! Keys of the database. Every key begins with the replica (a row's with its space), every row's key then names its tenant and its collection, so that a replica,
//! a tenant and a partition are each one contiguous range, and every scan is bounded by a prefix that no neighbour shares.

use crate::ids::{CollectionId, ReplicaId, RowId, TenantId};
use crate::mutant::{self, Mutant};

/// What a log key holds.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub enum LogKind {
    /// The vote.
    Vote = 1,
    /// How far the log is committed.
    Committed = 2,
    /// How far the log has been purged.
    Purged = 3,
    /// An entry; followed by its index.
    Entry = 4,
    /// After all of a replica's keys.
    End = 255,
}

/// Key of a replica's vote, committed or purged mark; prefix of its entries.
pub fn log_key(replica: ReplicaId, kind: LogKind) -> Vec<u8> {
    let mut key = replica.0.to_be_bytes().to_vec();
    key.push(kind as u8);
    key
}

/// Key of a log entry.
pub fn entry_key(replica: ReplicaId, index: u64) -> Vec<u8> {
    let mut key = log_key(replica, LogKind::Entry);
    key.extend(index.to_be_bytes());
    key
}

/// What a row's key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RowKind {
    /// How far the replica has applied its log, and its membership.
    Applied = 1,
    /// The cluster itself.
    Cluster = 10,
    /// An API key, by its id.
    ApiKey = 11,
    /// The id of the next collection.
    NextCollection = 12,
    /// A deleted collection whose rows are not all gone yet.
    Dropped = 13,
    /// A collection's tenant and name, by its id.
    CollectionName = 16,
    /// A collection, by its name.
    Collection = 14,
    /// How many collections a tenant has.
    CollectionCount = 15,
    /// A node of the cluster, by its id.
    Node = 17,
    /// Where a shard's replicas are, by its number.
    ShardPlaces = 18,
    /// A token that lets a node join, by its public id.
    JoinToken = 19,
    /// What nodes' certificates are issued with.
    Authority = 37,
    /// A token that has let a node join, by its public id.
    SpentToken = 38,
    /// A partition's counters.
    Partition = 20,
    /// A document but its text, by its id.
    Head = 21,
    /// A document's text, by its id.
    Text = 22,
    /// Whose a row is; its presence means that the row is alive.
    Owner = 23,
    /// A chunk's text.
    Chunk = 24,
    /// A chunk's vector, by slot and row.
    Vector = 25,
    /// A job.
    Job = 30,
    /// What was uploaded for a job.
    Payload = 31,
    /// The reply to a write, by its idempotency key.
    Idempotency = 32,
    /// Idempotency keys of all tenants by time.
    IdempotencyByTime = 33,
    /// Up to which time idempotency keys have been removed.
    IdempotencyExpired = 36,
    /// Jobs that are not finished, of all tenants.
    Unfinished = 34,
    /// A partition that has been dropped: writes to it that come late are refused.
    DroppedPartition = 35,
}

/// Whose rows: one replica's part of one collection of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// The replica's space, see [`crate::store::Space`].
    pub space: u64,
    /// The tenant; 0 for what belongs to the replica.
    pub tenant: TenantId,
    /// The collection; 0 for what belongs to the tenant.
    pub collection: CollectionId,
}

impl Scope {
    /// What belongs to the replica itself.
    pub fn replica(space: u64) -> Scope {
        Scope { space, tenant: TenantId(0), collection: CollectionId(0) }
    }

    /// What belongs to a tenant.
    pub fn tenant(space: u64, tenant: TenantId) -> Scope {
        Scope { space, tenant, collection: CollectionId(0) }
    }

    /// A partition.
    pub fn partition(space: u64, tenant: TenantId, collection: CollectionId) -> Scope {
        Scope { space, tenant, collection }
    }

    /// Prefix of everything in this scope.
    pub fn prefix(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(64);
        key.extend(self.space.to_be_bytes());
        key.extend(self.tenant.0.to_be_bytes());
        let collection = if mutant::is_on(Mutant::DropKeyPrefix) { 0 } else { self.collection.0 };
        key.extend(collection.to_be_bytes());
        key
    }

    /// Key of a row.
    pub fn key(&self, kind: RowKind, suffix: &[u8]) -> Vec<u8> {
        let mut key = self.prefix();
        key.push(kind as u8);
        key.extend(suffix);
        key
    }

    /// Key of a chunk's owner or text.
    pub fn row_key(&self, kind: RowKind, row: RowId) -> Vec<u8> {
        self.key(kind, &row.0.to_be_bytes())
    }

    /// Key of a chunk's vector.
    pub fn vector_key(&self, slot: u8, row: RowId) -> Vec<u8> {
        let mut suffix = [slot, 0, 0, 0, 0];
        suffix[1..].copy_from_slice(&row.0.to_be_bytes());
        self.key(RowKind::Vector, &suffix)
    }
}

/// Bytes of a scope's prefix and the kind: where the suffix begins.
pub const SUFFIX_AT: usize = 25;

/// The first key after everything that begins with `prefix`, which does not consist of bytes 255 only: ids are below 2^53.
pub fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![u8::MAX; prefix.len() + 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(u8::MAX), Just(0), any::<u8>()], length)
    }

    proptest! {
        #[test]
        fn a_prefix_holds_exactly_the_keys_before_its_end(prefix in bytes(0..4), key in bytes(0..6)) {
            let prefix = [&[7], prefix.as_slice()].concat();
            let key = [&[7], key.as_slice()].concat();
            let within = key >= prefix && key < end_of(&prefix);
            prop_assert_eq!(within, key.starts_with(&prefix));
        }
    }
}
