//! Who a node is when it starts: a member since before, the founder of a new cluster, or one that joins.

use super::options::EngineOptions;
use super::start_error::StartError;
use crate::cluster::identity::{IdentityError, NodeIdentity};
use crate::cluster::{authority, join, recovery};
use crate::ingest::pipeline::now_ms;
use crate::session::ApiKey;
use ragged_raft::Store;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::group::{Beginning, Ground};
use ragged_raft::ids::{DEFAULT_TENANT, NodeId};
use ragged_raft::meta::command::{MetaCommand, Role};
use ragged_raft::meta::node::{NodeRow, NodeState};
use ragged_raft::meta::{Founding, MetaGroup};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

/// Name of the file with the first admin key, in the data folder.
const ADMIN_KEY_FILE: &str = "admin.key";

/// How a node began.
pub(super) struct Begun {
    pub(super) identity: NodeIdentity,
    /// Whether it founds the shards' groups: it founded the cluster, and nobody has noted yet where they are.
    pub(super) found_shards: bool,
    /// Nodes that have left for good, as far as it knows.
    pub(super) removed: Vec<NodeId>,
}

/// Finds out who this node is: a member since before, the founder of a new cluster, or one that joins.
pub(super) async fn begin(store: &Arc<Store>, options: &EngineOptions) -> Result<Begun, StartError> {
    let node = store.node();
    if recovery::is_being_refounded(&options.data_dir) {
        return Err(StartError::HalfRefounded(options.data_dir.clone()));
    }
    let known = NodeIdentity::load(&options.data_dir, node)?;
    if known.is_none()
        && let Some(joining) = &options.cluster.joining
    {
        let opened = store.clone();
        let meta_replica = tokio::task::spawn_blocking(move || opened.replica("meta")).await;
        let meta_replica = meta_replica.map_err(|fault| StartError::Group(fault.to_string()))??;
        failpoints::hit(Point::JoinBefore);
        let identity = join::join(joining, node, &options.cluster.advertise, meta_replica).await?;
        failpoints::hit(Point::JoinAnswered);
        identity.save(&options.data_dir)?;
        tracing::info!(%node, cluster = %identity.cluster, seed = joining.seed, "joined the cluster");
        return Ok(Begun { identity, found_shards: false, removed: Vec::new() });
    }
    let beginning = if known.is_none() { Beginning::Found } else { Beginning::Join };
    let ground = Ground { beginning, ..Ground::alone(store.clone()) };
    let group = MetaGroup::start(ground).await.map_err(|fault| StartError::Group(fault.to_string()))?;
    let identity = match known {
        Some(identity) => identity,
        None => found(&group, options).await?,
    };
    let cluster = group.cluster()?;
    // Nobody else can have moved them before they were noted.
    let found_shards = cluster.is_some_and(|row| row.founded_by == node) && group.all_places()?.is_empty();
    let removed = group.nodes()?.into_iter().filter(|row| row.state == NodeState::Removed).map(|row| row.node).collect();
    group.group().shutdown().await; // the meta actor starts its own
    Ok(Begun { identity, found_shards, removed })
}

/// Founds the cluster, as far as that has not been done, and certifies this node.
async fn found(group: &MetaGroup, options: &EngineOptions) -> Result<NodeIdentity, StartError> {
    let refused = |fault: ragged_raft::ProposeError| StartError::Group(fault.to_string());
    let node = group.group().store().node();
    if group.cluster()?.is_none() {
        // The key is written first: a crash in between leaves a key that the next start replaces, never a cluster without one.
        failpoints::hit(Point::AdminKeyBefore);
        let key = ApiKey::generate()?;
        write_admin_key(&options.data_dir, &key)?;
        let admin_key = key.record(DEFAULT_TENANT, Role::Admin, now_ms());
        let founding = Founding { shard_count: options.shards, admin_key, at_ms: now_ms() };
        group.found(founding).await.map_err(refused)?;
        failpoints::hit(Point::ClusterFounded);
        tracing::info!(shards = options.shards, key_file = %options.data_dir.join(ADMIN_KEY_FILE).display(), "founded a new cluster");
    }
    let cluster = group.cluster()?.ok_or_else(|| StartError::Group("the cluster was not founded".into()))?;
    if group.authority()?.is_none() {
        let authority = authority::found(cluster.cluster).map_err(IdentityError::from)?;
        let founder = NodeRow {
            node,
            address: options.cluster.advertise.clone(),
            meta_replica: group.group().replica(),
            state: NodeState::Active,
            joined_at_ms: now_ms(),
        };
        group.propose(&MetaCommand::Establish { authority, founder }).await.map_err(refused)?;
        failpoints::hit(Point::ClusterEstablished);
    }
    let authority = group.authority()?.ok_or_else(|| StartError::Group("the cluster has no authority".into()))?;
    let identity = NodeIdentity::issue(&authority, cluster.cluster, node, cluster.shard_count)?;
    identity.save(&options.data_dir)?;
    Ok(identity)
}

/// Writes the key so that only its owner can read it, whole or not at all.
fn write_admin_key(folder: &Path, key: &ApiKey) -> Result<(), StartError> {
    let path = folder.join(ADMIN_KEY_FILE);
    let write = || -> std::io::Result<()> {
        // Temporary files are made readable by their owner only.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        writeln!(file, "{}", key.reveal())?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(|fault| StartError::AdminKey { path: path.clone(), fault })
}
