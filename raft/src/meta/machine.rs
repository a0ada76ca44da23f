//! What meta commands do to the meta group's rows.

use crate::codec;
use crate::ids::{CollectionId, DEFAULT_TENANT, NodeId, ShardId, TenantId};
use crate::keys::{RowKind, Scope, end_of};
use crate::machine::Application;
use crate::meta::collection::{Collection, VectorSettings};
use crate::meta::command::{MetaCommand, MetaReply};
use crate::meta::group::ClusterRow;
use crate::meta::node::{JoinToken, NodeRow, NodeState, SpentToken};
use crate::store::{Space, Store};
use rocksdb::WriteBatch;
use serde::Serialize;
use std::io;
use std::sync::Arc;

/// Collections of a tenant at most.
const COLLECTIONS_MAX: u64 = 10_000;
/// Named vectors of a collection at most.
const VECTORS_MAX: usize = 16;
/// Bytes of a name or an id at most: they are parts of keys.
const NAME_BYTES_MAX: usize = 256;
/// Tokens that may wait for their nodes.
const TOKENS_MAX: usize = 1_000;
/// Nodes that are in the cluster at once.
const NODES_MAX: usize = 100;

/// Applies meta commands.
pub(crate) struct MetaApplication {
    pub(crate) store: Arc<Store>,
    pub(crate) space: Arc<Space>,
}

impl Application for MetaApplication {
    fn apply(&self, _index: u64, command: &[u8], mut batch: WriteBatch) -> io::Result<Vec<u8>> {
        let reply = self.change(codec::decode(command)?, &mut batch)?;
        self.store.write(batch)?;
        Ok(codec::encode(&reply)?)
    }

    fn replaced(&self) {}
}

impl MetaApplication {
    fn change(&self, command: MetaCommand, batch: &mut WriteBatch) -> io::Result<MetaReply> {
        match command {
            MetaCommand::Found { cluster, shard_count, node, tenant_name, admin_key, at_ms } => {
                if self.store.row::<ClusterRow>(&self.global(RowKind::Cluster, b""))?.is_some() {
                    return Ok(MetaReply::AlreadyExists);
                }
                let row = ClusterRow {
                    cluster,
                    shard_count,
                    founded_by: node,
                    tenants: vec![(DEFAULT_TENANT, tenant_name)],
                    founded_at_ms: at_ms,
                };
                self.put(batch, self.global(RowKind::Cluster, b""), &row)?;
                self.put(batch, self.global(RowKind::ApiKey, admin_key.id.as_bytes()), &admin_key)?;
                Ok(MetaReply::Done)
            }
            MetaCommand::PutKey { key } => {
                if key.id.len() > NAME_BYTES_MAX {
                    return Ok(MetaReply::LimitExceeded(format!("a key's id has at most {NAME_BYTES_MAX} bytes")));
                }
                self.put(batch, self.global(RowKind::ApiKey, key.id.as_bytes()), &key)?;
                Ok(MetaReply::Done)
            }
            MetaCommand::DeleteKey { id } => {
                batch.delete_cf(self.store.rows(), self.global(RowKind::ApiKey, id.as_bytes()));
                Ok(MetaReply::Done)
            }
            MetaCommand::CreateCollection { tenant, name, spread, vectors, chunk_tokens, chunk_overlap, language, at_ms } => {
                let new = Collection {
                    id: CollectionId(0),
                    tenant,
                    name,
                    shards: Vec::new(),
                    vectors,
                    chunk_tokens,
                    chunk_overlap,
                    language,
                    created_at_ms: at_ms,
                };
                self.create_collection(new, spread, batch)
            }
            MetaCommand::DeleteCollection { tenant, name } => self.delete_collection(tenant, &name, batch),
            MetaCommand::ForgetCollection { collection } => {
                batch.delete_cf(self.store.rows(), self.global(RowKind::Dropped, &collection.0.to_be_bytes()));
                Ok(MetaReply::Done)
            }
            MetaCommand::Establish { authority, founder } => {
                let key = self.global(RowKind::Authority, b"");
                if self.store.row::<crate::meta::node::Authority>(&key)?.is_some() {
                    return Ok(MetaReply::AlreadyExists);
                }
                self.put(batch, key, &authority)?;
                self.put_node(&founder, batch)
            }
            MetaCommand::PutToken { token, at_ms } => self.put_token(&token, at_ms, batch),
            MetaCommand::Admit { token_id, secret_sha256, node, at_ms } => {
                self.admit(&token_id, &secret_sha256, node, at_ms, batch)
            }
            MetaCommand::MoveNode { node, address } => match self.node(node)? {
                Some(row) => self.put_node(&NodeRow { address, ..row }, batch),
                None => Ok(MetaReply::NotFound),
            },
            MetaCommand::SetNodeState { node, state } => match self.node(node)? {
                Some(row) if row.state == NodeState::Removed && state != NodeState::Removed => {
                    Ok(MetaReply::Refused(format!("{node} has been removed; a removed node's identity is not used again")))
                }
                Some(row) => self.put_node(&NodeRow { state, ..row }, batch),
                None => Ok(MetaReply::NotFound),
            },
            MetaCommand::PlaceShard { shard, places } => {
                self.put(batch, self.global(RowKind::ShardPlaces, &shard.0.to_be_bytes()), &places)?;
                Ok(MetaReply::Done)
            }
            MetaCommand::Refound { cluster, survivor } => self.refound(cluster, survivor, batch),
        }
    }

    fn create_collection(&self, mut new: Collection, spread: u16, batch: &mut WriteBatch) -> io::Result<MetaReply> {
        let Some(cluster) = self.store.row::<ClusterRow>(&self.global(RowKind::Cluster, b""))? else {
            return Ok(MetaReply::NotFound);
        };
        let key = collection_key(self.space.id(), new.tenant, &new.name);
        if self.store.row::<Collection>(&key)?.is_some() {
            return Ok(MetaReply::AlreadyExists);
        }
        if new.name.len() > NAME_BYTES_MAX || new.vectors.len() > VECTORS_MAX {
            return Ok(MetaReply::LimitExceeded(format!(
                "a name has at most {NAME_BYTES_MAX} bytes, a collection at most {VECTORS_MAX} vectors"
            )));
        }
        if spread == 0
            || spread > cluster.shard_count
            || new.vectors.is_empty()
            || new.vectors.iter().any(|VectorSettings { dimension, .. }| *dimension == 0)
        {
            return Ok(MetaReply::LimitExceeded(format!(
                "spread is 1 to {} and every vector has a dimension",
                cluster.shard_count
            )));
        }
        let count_key = Scope::tenant(self.space.id(), new.tenant).key(RowKind::CollectionCount, b"");
        let count: u64 = self.store.row(&count_key)?.unwrap_or(0);
        if count >= COLLECTIONS_MAX {
            return Ok(MetaReply::LimitExceeded(format!("a tenant has at most {COLLECTIONS_MAX} collections")));
        }
        let next_key = self.global(RowKind::NextCollection, b"");
        new.id = CollectionId(self.store.row(&next_key)?.unwrap_or(1));
        // Collections start on different shards, so that they share the shards evenly.
        let mut shards: Vec<ShardId> =
            (0..spread as u64).map(|step| ShardId(((new.id.0 + step) % cluster.shard_count as u64) as u16)).collect();
        shards.sort_unstable();
        new.shards = shards;
        self.put(batch, key, &new)?;
        self.put(batch, self.global(RowKind::CollectionName, &new.id.0.to_be_bytes()), &(new.tenant, &new.name))?;
        self.put(batch, count_key, &(count + 1))?;
        self.put(batch, next_key, &(new.id.0 + 1))?;
        Ok(MetaReply::Collection(new))
    }

    fn delete_collection(&self, tenant: TenantId, name: &str, batch: &mut WriteBatch) -> io::Result<MetaReply> {
        let key = collection_key(self.space.id(), tenant, name);
        let Some(collection) = self.store.row::<Collection>(&key)? else { return Ok(MetaReply::NotFound) };
        let count_key = Scope::tenant(self.space.id(), tenant).key(RowKind::CollectionCount, b"");
        let count: u64 = self.store.row(&count_key)?.unwrap_or(0);
        batch.delete_cf(self.store.rows(), key);
        batch.delete_cf(self.store.rows(), self.global(RowKind::CollectionName, &collection.id.0.to_be_bytes()));
        self.put(batch, count_key, &count.saturating_sub(1))?;
        self.put(batch, self.global(RowKind::Dropped, &collection.id.0.to_be_bytes()), &collection)?;
        Ok(MetaReply::Collection(collection))
    }

    fn node(&self, node: NodeId) -> io::Result<Option<NodeRow>> {
        Ok(self.store.row(&self.global(RowKind::Node, &node.0.to_be_bytes()))?)
    }

    fn put_node(&self, row: &NodeRow, batch: &mut WriteBatch) -> io::Result<MetaReply> {
        if row.address.len() > NAME_BYTES_MAX {
            return Ok(MetaReply::LimitExceeded(format!("an address has at most {NAME_BYTES_MAX} bytes")));
        }
        self.put(batch, self.global(RowKind::Node, &row.node.0.to_be_bytes()), row)?;
        Ok(MetaReply::Done)
    }

    fn refound(&self, cluster: ulid::Ulid, survivor: NodeId, batch: &mut WriteBatch) -> io::Result<MetaReply> {
        let key = self.global(RowKind::Cluster, b"");
        let Some(row) = self.store.row::<ClusterRow>(&key)? else { return Ok(MetaReply::NotFound) };
        if self.node(survivor)?.is_none() {
            return Ok(MetaReply::NotFound);
        }
        self.put(batch, key, &ClusterRow { cluster, ..row })?;
        let nodes = self.global(RowKind::Node, b"");
        for row in self.store.scan(&nodes, end_of(&nodes)) {
            let row = codec::decode::<NodeRow>(&row.map_err(io::Error::other)?.1)?;
            let state = if row.node == survivor { NodeState::Active } else { NodeState::Removed };
            self.put_node(&NodeRow { state, ..row }, batch)?;
        }
        for kind in [RowKind::JoinToken, RowKind::SpentToken] {
            let tokens = self.global(kind, b"");
            for row in self.store.scan(&tokens, end_of(&tokens)) {
                batch.delete_cf(self.store.rows(), row.map_err(io::Error::other)?.0);
            }
        }
        Ok(MetaReply::Done)
    }

    fn put_token(&self, token: &JoinToken, at_ms: u64, batch: &mut WriteBatch) -> io::Result<MetaReply> {
        if token.id.len() > NAME_BYTES_MAX {
            return Ok(MetaReply::LimitExceeded(format!("a token's id has at most {NAME_BYTES_MAX} bytes")));
        }
        let prefix = self.global(RowKind::JoinToken, b"");
        let mut waiting = 0;
        for row in self.store.scan(&prefix, end_of(&prefix)) {
            let (key, value) = row.map_err(io::Error::other)?;
            if codec::decode::<JoinToken>(&value)?.expires_at_ms <= at_ms {
                batch.delete_cf(self.store.rows(), key);
            } else {
                waiting += 1;
            }
        }
        let spent = self.global(RowKind::SpentToken, b"");
        for row in self.store.scan(&spent, end_of(&spent)) {
            let (key, value) = row.map_err(io::Error::other)?;
            if codec::decode::<SpentToken>(&value)?.token.expires_at_ms <= at_ms {
                batch.delete_cf(self.store.rows(), key);
            }
        }
        if waiting >= TOKENS_MAX {
            return Ok(MetaReply::LimitExceeded(format!("{TOKENS_MAX} join tokens wait to be used already")));
        }
        self.put(batch, self.global(RowKind::JoinToken, token.id.as_bytes()), token)?;
        Ok(MetaReply::Done)
    }

    fn admit(
        &self,
        token_id: &str,
        secret_sha256: &[u8; 32],
        node: NodeRow,
        at_ms: u64,
        batch: &mut WriteBatch,
    ) -> io::Result<MetaReply> {
        let refused = |why: &str| Ok(MetaReply::Refused(why.to_owned()));
        let (key, spent_key) =
            (self.global(RowKind::JoinToken, token_id.as_bytes()), self.global(RowKind::SpentToken, token_id.as_bytes()));
        let spent = self.store.row::<SpentToken>(&spent_key)?.filter(|spent| spent.node == node.node);
        let is_again = spent.is_some();
        let token = self.store.row::<JoinToken>(&key)?.or(spent.map(|spent| spent.token));
        let Some(token) = token else {
            return refused(
                "the join token is not known: it was used before, or is another cluster's; make one with `ragged cluster token`",
            );
        };
        // Hashes of 256 random bits: their comparison tells nothing that helps to guess one.
        if token.secret_sha256 != *secret_sha256 {
            return refused("the join token is wrong");
        }
        if token.expires_at_ms <= at_ms {
            return refused("the join token has expired; make one with `ragged cluster token`");
        }
        match self.node(node.node)? {
            Some(known) if is_again && known.state != NodeState::Removed && known.meta_replica == node.meta_replica => {
                return self.put_node(&NodeRow { address: node.address, ..known }, batch);
            }
            Some(_) => {
                return refused("a node of this identity is in the cluster already: let a node join with an empty data folder");
            }
            None => {}
        }
        let prefix = self.global(RowKind::Node, b"");
        let mut present = 0;
        for row in self.store.scan(&prefix, end_of(&prefix)) {
            let (_, value) = row.map_err(io::Error::other)?;
            present += usize::from(codec::decode::<NodeRow>(&value)?.state != NodeState::Removed);
        }
        if present >= NODES_MAX {
            return Ok(MetaReply::LimitExceeded(format!("the cluster has {NODES_MAX} nodes, which is its limit")));
        }
        batch.delete_cf(self.store.rows(), key);
        self.put(batch, spent_key, &SpentToken { token, node: node.node })?;
        self.put_node(&node, batch)
    }

    fn global(&self, kind: RowKind, suffix: &[u8]) -> Vec<u8> {
        Scope::replica(self.space.id()).key(kind, suffix)
    }

    fn put<T: Serialize>(&self, batch: &mut WriteBatch, key: Vec<u8>, value: &T) -> io::Result<()> {
        batch.put_cf(self.store.rows(), key, codec::encode(value)?);
        Ok(())
    }
}

/// Key of a collection's row.
pub(crate) fn collection_key(space: u64, tenant: TenantId, name: &str) -> Vec<u8> {
    Scope::tenant(space, tenant).key(RowKind::Collection, name.as_bytes())
}
