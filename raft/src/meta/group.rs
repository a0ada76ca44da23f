//! The meta group on this node: proposes, and reads its rows. What requests need again and again is kept once it was read, and nothing is read ahead, so
//! that a start does not grow with what there is.

use crate::codec;
use crate::group::{Ground, Group, ProposeError, StartError};
use crate::ids::{CollectionId, NodeId, ShardId, TenantId};
use crate::keys::{RowKind, Scope, end_of};
use crate::meta::collection::Collection;
use crate::meta::command::{KeyRecord, MetaCommand, MetaReply};
use crate::meta::kept::KeptRows;
use crate::meta::machine::{MetaApplication, collection_key};
use crate::meta::node::{Authority, NodeRow, PlacedShard, ShardPlaces};
use crate::store::ReadError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use ulid::Ulid;

/// What is decided once, at the founding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRow {
    /// Identity of the cluster.
    pub cluster: Ulid,
    /// Number of shards.
    pub shard_count: u16,
    /// The node that founded it.
    pub founded_by: NodeId,
    /// Tenants and their names.
    pub tenants: Vec<(TenantId, String)>,
    /// Milliseconds since 1970-01-01 UTC.
    pub founded_at_ms: u64,
}

/// What a cluster is founded with.
#[derive(Debug, Clone)]
pub struct Founding {
    /// Number of shards.
    pub shard_count: u16,
    /// The first admin key.
    pub admin_key: KeyRecord,
    /// Milliseconds since 1970-01-01 UTC.
    pub at_ms: u64,
}

/// The meta group on this node.
#[derive(Clone)]
pub struct MetaGroup {
    group: Group,
    kept: Arc<KeptRows>,
}

impl MetaGroup {
    /// Starts this node's replica.
    pub async fn start(ground: Ground) -> Result<MetaGroup, StartError> {
        let store = ground.store.clone();
        let application = |replica| Arc::new(MetaApplication { store: store.clone(), space: store.space(replica) }) as Arc<_>;
        Ok(MetaGroup { group: Group::start(ground, "meta", application).await?, kept: Arc::default() })
    }

    /// The group itself.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Founds the cluster, unless it is founded.
    pub async fn found(&self, founding: Founding) -> Result<MetaReply, ProposeError> {
        let command = MetaCommand::Found {
            cluster: Ulid::new(),
            shard_count: founding.shard_count,
            node: self.group.store().node(),
            tenant_name: "default".into(),
            admin_key: founding.admin_key,
            at_ms: founding.at_ms,
        };
        Ok(self.propose(&command).await?.1)
    }

    /// Replicates a command; returns its index and its reply.
    pub async fn propose(&self, command: &MetaCommand) -> Result<(u64, MetaReply), ProposeError> {
        let (index, reply) = self.group.propose(codec::encode(command)?).await?;
        Ok((index, codec::decode(&reply).map_err(ProposeError::unreadable)?))
    }

    /// The cluster, once it is founded.
    pub fn cluster(&self) -> Result<Option<ClusterRow>, ReadError> {
        self.row(Scope::replica(self.space()).key(RowKind::Cluster, b""))
    }

    /// A key, by its public id.
    pub fn key(&self, id: &str) -> Result<Option<Arc<KeyRecord>>, ReadError> {
        self.row_to_keep(self.key_of_key(id))
    }

    /// The same from memory, when it was read since the last entry was applied.
    pub fn known_key(&self, id: &str) -> Option<Arc<KeyRecord>> {
        self.kept_row(&self.key_of_key(id))
    }

    /// A collection, by its name.
    pub fn collection(&self, tenant: TenantId, name: &str) -> Result<Option<Arc<Collection>>, ReadError> {
        self.row_to_keep(collection_key(self.space(), tenant, name))
    }

    /// The same from memory, when it was read since the last entry was applied.
    pub fn known_collection(&self, tenant: TenantId, name: &str) -> Option<Arc<Collection>> {
        self.kept_row(&collection_key(self.space(), tenant, name))
    }

    /// A collection, by its id; none once it is deleted.
    pub fn collection_by_id(&self, id: CollectionId) -> Result<Option<Arc<Collection>>, ReadError> {
        let name: Option<(TenantId, String)> =
            self.row(Scope::replica(self.space()).key(RowKind::CollectionName, &id.0.to_be_bytes()))?;
        let Some((tenant, name)) = name else { return Ok(None) };
        // Between the two reads it may have been deleted, and another of its name been made.
        Ok(self.collection(tenant, &name)?.filter(|collection| collection.id == id))
    }

    /// Collections in the order of their names, after the given one.
    pub fn collections(&self, tenant: TenantId, after: Option<&str>, limit: usize) -> Result<Vec<Collection>, ReadError> {
        let prefix = Scope::tenant(self.space(), tenant).key(RowKind::Collection, b"");
        let mut from = [prefix.as_slice(), after.unwrap_or_default().as_bytes()].concat();
        if after.is_some() {
            from.push(0); // the first key after that of `after`
        }
        self.scan(&from, &prefix, limit)
    }

    /// Deleted collections whose rows are not all gone yet.
    pub fn dropped_collections(&self, limit: usize) -> Result<Vec<Collection>, ReadError> {
        let prefix = Scope::replica(self.space()).key(RowKind::Dropped, b"");
        self.scan(&prefix, &prefix, limit)
    }

    /// What nodes' certificates are issued with, once the cluster has it.
    pub fn authority(&self) -> Result<Option<Authority>, ReadError> {
        self.row(Scope::replica(self.space()).key(RowKind::Authority, b""))
    }

    /// A node.
    pub fn node(&self, node: NodeId) -> Result<Option<NodeRow>, ReadError> {
        self.row(Scope::replica(self.space()).key(RowKind::Node, &node.0.to_be_bytes()))
    }

    /// All nodes that ever were, in the order of their ids.
    pub fn nodes(&self) -> Result<Vec<NodeRow>, ReadError> {
        let prefix = Scope::replica(self.space()).key(RowKind::Node, b"");
        let rows = self.group.store().scan(&prefix, end_of(&prefix));
        rows.map(|row| Ok(codec::decode(&row?.1)?)).collect()
    }

    /// Where a shard's replicas are; none before it has been noted.
    pub fn places(&self, shard: ShardId) -> Result<Option<Arc<ShardPlaces>>, ReadError> {
        self.row_to_keep(self.key_of_places(shard))
    }

    /// The same from memory, when it was read since the last entry was applied.
    pub fn known_places(&self, shard: ShardId) -> Option<Arc<ShardPlaces>> {
        self.kept_row(&self.key_of_places(shard))
    }

    /// Where all shards' replicas are, in the order of the shards.
    pub fn all_places(&self) -> Result<Vec<PlacedShard>, ReadError> {
        let prefix = Scope::replica(self.space()).key(RowKind::ShardPlaces, b"");
        let rows = self.group.store().scan(&prefix, end_of(&prefix));
        let placed = |(key, value): (Box<[u8]>, Box<[u8]>)| {
            let number = key[prefix.len()..].try_into().map_err(|_| ReadError::Malformed("a shard's key has another length"))?;
            Ok((ShardId(u16::from_be_bytes(number)), codec::decode(&value)?))
        };
        rows.map(|row| placed(row?)).collect()
    }

    fn space(&self) -> u64 {
        self.group.space().id()
    }

    fn key_of_key(&self, id: &str) -> Vec<u8> {
        Scope::replica(self.space()).key(RowKind::ApiKey, id.as_bytes())
    }

    fn key_of_places(&self, shard: ShardId) -> Vec<u8> {
        Scope::replica(self.space()).key(RowKind::ShardPlaces, &shard.0.to_be_bytes())
    }

    fn row<T: DeserializeOwned>(&self, key: Vec<u8>) -> Result<Option<T>, ReadError> {
        self.group.store().row(&key)
    }

    fn kept_row<T: Send + Sync + 'static>(&self, key: &[u8]) -> Option<Arc<T>> {
        self.kept.get(self.group.applied_index(), key)
    }

    fn row_to_keep<T: DeserializeOwned + Send + Sync + 'static>(&self, key: Vec<u8>) -> Result<Option<Arc<T>>, ReadError> {
        let as_of = self.group.applied_index(); // before it is read: what is applied meanwhile is then read again
        let row = self.group.store().row(&key)?.map(Arc::new);
        if let Some(row) = &row {
            self.kept.keep(as_of, key, Arc::clone(row));
        }
        Ok(row)
    }

    fn scan(&self, from: &[u8], prefix: &[u8], limit: usize) -> Result<Vec<Collection>, ReadError> {
        let rows = self.group.store().scan(from, end_of(prefix)).take(limit);
        rows.map(|row| Ok(codec::decode(&row?.1)?)).collect()
    }
}
