//! The way out when a majority of a group's replicas is gone for good: one that is left goes on alone.
//!
//! What it has in its log is kept, whether it was acknowledged or not; what only the others had is lost. Whoever uses this makes sure that the
//! others never come back: they would go on as the group that they know.

use crate::ids::ReplicaId;
use crate::log::GroupLog;
use crate::snapshot;
use crate::store::{Store, StoreError, write_error};
use crate::types::{Entry, LogId, ReplicaNode};
use openraft::EntryPayload;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// How far a replica's log goes. Of several, the greatest has everything that any majority of them had acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogEnd {
    /// Term of the last entry.
    pub term: u64,
    /// Its index.
    pub index: u64,
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

/// How far a replica's log goes; none when it has never had anything. Blocks.
pub fn log_end(store: &Arc<Store>, replica: ReplicaId) -> Result<Option<LogEnd>, RecoveryError> {
    Ok(last_id(store, replica)?.map(|id| LogEnd { term: id.leader_id.term, index: id.index }))
}

fn last_id(store: &Arc<Store>, replica: ReplicaId) -> Result<Option<LogId>, RecoveryError> {
    let failed = |fault| RecoveryError::Storage { replica, fault };
    let logged = GroupLog::new(store.clone(), replica).last_id().map_err(failed)?;
    let (applied, _) = snapshot::applied_state(store, replica).map_err(|fault| failed(fault.into()))?;
    Ok(logged.max(applied))
}

/// Makes a replica the only one of its group, durably, by an entry at the end of its log. It must not run; once it is started, it leads. Returns the
/// entry's place. Blocks.
pub fn make_sole_voter(store: &Arc<Store>, replica: ReplicaId) -> Result<LogEnd, RecoveryError> {
    let failed = |fault| RecoveryError::Storage { replica, fault };
    let last = last_id(store, replica)?.ok_or(RecoveryError::Empty(replica))?;
    let node = ReplicaNode { node: store.node().0 };
    let members = openraft::Membership::new(vec![BTreeSet::from([replica.0])], BTreeMap::from([(replica.0, node)]));
    let members = members.map_err(|fault| failed(io::Error::other(fault)))?;
    let id = LogId::new(last.leader_id, last.index + 1);
    let entry = Entry { log_id: id, payload: EntryPayload::Membership(members) };
    let batch = GroupLog::new(store.clone(), replica).batch_of(&entry).map_err(failed)?;
    store.write(batch).map_err(|fault| failed(write_error(fault)))?;
    store.sync()?;
    Ok(LogEnd { term: id.leader_id.term, index: id.index })
}
