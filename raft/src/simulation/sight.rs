//! What is on a replica's disk, seen from outside at any moment.

use crate::ids::ReplicaId;
use crate::keys::LogKind;
use crate::log::GroupLog;
use crate::snapshot;
use crate::store::Store;
use crate::types::{Entry, LogId, Vote};
use std::io;
use std::sync::Arc;

/// What a replica has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sight {
    /// Its vote.
    pub vote: Option<Vote>,
    /// The last entry that it has purged.
    pub purged: Option<LogId>,
    /// The last entry of its log, purged ones among them.
    pub last: Option<LogId>,
    /// The last entry that its rows hold.
    pub applied: Option<LogId>,
}

/// What a replica has now.
pub fn sight(store: &Arc<Store>, replica: ReplicaId) -> io::Result<Sight> {
    let log = GroupLog::new(store.clone(), replica);
    let (applied, _) = snapshot::applied_state(store, replica)?;
    Ok(Sight { vote: log.mark(LogKind::Vote)?, purged: log.mark(LogKind::Purged)?, last: log.last_id()?, applied })
}

/// Entries `[from, until)` of its log.
pub fn entries(store: &Arc<Store>, replica: ReplicaId, from: u64, until: u64) -> io::Result<Vec<Entry>> {
    GroupLog::new(store.clone(), replica).entries(from, until, usize::MAX)
}
