//! The way out when a majority of a group's replicas is gone for good: one that is left goes on alone.
//!
//! What it has in its log is kept, whether it was acknowledged or not; what only the others had is lost. Whoever uses this makes sure that the
//! others never come back: they would go on as the group that they know.

use crate::ids::{NodeId, ReplicaId};
use crate::keys::{LogKind, RowKind, Scope};
use crate::log::GroupLog;
use crate::meta::ClusterRow;
use crate::meta::node::NodeRow;
use crate::snapshot;
use crate::store::{ReadError, Store, StoreError};
use crate::types::{Entry, LeaderId, LogId, ReplicaNode, Vote};
use openraft::EntryPayload;
use rocksdb::WriteBatch;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// How far a replica's log goes, in the order of openraft's log ids. Of several, the greatest has everything that any majority of them had acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogEnd {
    /// Term of the last entry.
    pub term: u64,
    /// The replica that led when it was written: a term may have several leaders, one after the other.
    pub leader: ReplicaId,
    /// Its index.
    pub index: u64,
}

impl From<LogId> for LogEnd {
    fn from(id: LogId) -> Self {
        LogEnd { term: id.leader_id.term, leader: ReplicaId(id.leader_id.node_id), index: id.index }
    }
}

/// Why a replica could not be made to go on alone.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The log or the rows.
    #[error("{replica} cannot be read or written: {fault}")]
    Storage {
        /// The replica.
        replica: ReplicaId,
        /// What happened.
        fault: io::Error,
    },
    /// It has never had anything: it can only be filled by others.
    #[error("{0} has nothing that it could go on with")]
    Empty(ReplicaId),
    /// It could not be made durable.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a replica has, and could go on from.
struct Ends {
    /// The last entry of its log, purged ones among them.
    logged: Option<LogId>,
    /// The last entry that its rows hold.
    applied: Option<LogId>,
    vote: Option<Vote>,
}

fn ends(store: &Arc<Store>, replica: ReplicaId) -> Result<Ends, RecoveryError> {
    let failed = |fault| RecoveryError::Storage { replica, fault };
    let log = GroupLog::new(store.clone(), replica);
    let (applied, _) = snapshot::applied_state(store, replica).map_err(|fault| failed(fault.into()))?;
    Ok(Ends { logged: log.last_id().map_err(failed)?, applied, vote: log.mark(LogKind::Vote).map_err(failed)? })
}

/// How far a replica's log goes; none when it has never had anything. Blocks.
pub fn log_end(store: &Arc<Store>, replica: ReplicaId) -> Result<Option<LogEnd>, RecoveryError> {
    let Ends { logged, applied, .. } = ends(store, replica)?;
    Ok(logged.max(applied).map(LogEnd::from))
}

/// Makes a replica the only one of its group, durably, by an entry at the end of its log. It must not run; once it is started, it leads. Returns the
/// entry's place, which no other replica can have written: the entry is of a term of its own. Blocks.
pub fn make_sole_voter(store: &Arc<Store>, replica: ReplicaId) -> Result<LogEnd, RecoveryError> {
    let failed = |fault| RecoveryError::Storage { replica, fault };
    // Whoever still applies entries, or installs a snapshot, is refused from here on.
    store.space(replica).take_over();
    let Ends { logged, applied, vote } = ends(store, replica)?;
    let last = logged.max(applied).ok_or(RecoveryError::Empty(replica))?;
    let voted = vote.map_or(0, |vote| vote.leader_id.term);
    let leader = LeaderId { term: voted.max(last.leader_id.term) + 1, node_id: replica.0 };
    let node = ReplicaNode { node: store.node().0 };
    let members = openraft::Membership::new(vec![BTreeSet::from([replica.0])], BTreeMap::from([(replica.0, node)]));
    let members = members.map_err(|fault| failed(io::Error::other(fault)))?;
    let entry = Entry { log_id: LogId::new(leader, last.index + 1), payload: EntryPayload::Membership(members) };
    let log = GroupLog::new(store.clone(), replica);
    let mut batch = WriteBatch::default();
    if applied > logged {
        // A snapshot was installed, and a crash took the purging of what it replaced: behind the entry there would be a hole.
        log.purge_through(last, &mut batch).map_err(failed)?;
    }
    log.put_mark(LogKind::Vote, &Vote::new(leader.term, leader.node_id), &mut batch).map_err(failed)?;
    log.put_entry(&entry, &mut batch).map_err(failed)?;
    store.write(batch).map_err(failed)?;
    store.sync()?;
    Ok(LogEnd::from(entry.log_id))
}

/// Whether the rows of a replica of the meta group know a cluster with this node in it. Blocks.
pub fn knows_itself(store: &Arc<Store>, meta: ReplicaId, node: NodeId) -> Result<bool, ReadError> {
    let scope = Scope::replica(store.space(meta).id());
    let cluster: Option<ClusterRow> = store.row(&scope.key(RowKind::Cluster, b""))?;
    let row: Option<NodeRow> = store.row(&scope.key(RowKind::Node, &node.0.to_be_bytes()))?;
    Ok(cluster.is_some() && row.is_some())
}
