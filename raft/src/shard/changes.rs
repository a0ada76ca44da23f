//! What has changed in the partitions that are loaded: apply notes it, the partition takes it before it answers.
//!
//! Why nothing is missed: a partition is watched before its rows are read. A write that the reading does not see is noted after the
//! reading began, hence after the watching began, hence in the handle. A write that is both seen and noted is harmless, since both say
//! the same: these rows are gone, rows up to that one are there. And a write is noted before its proposer hears of it, so whoever was
//! told of a write finds it in the handle.

use crate::ids::{CollectionId, RowId, TenantId};
use crate::mutant::{self, Mutant};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// Rows noted at most, before the watcher is told to read everything again.
const ROWS_NOTED_MAX: usize = 1_000_000;

/// Partitions that are noted as written to at most.
const TOUCHED_MAX: usize = 100_000;

/// What has changed in a partition since it was asked last.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PendingChanges {
    /// Rows that are gone.
    pub removed: Vec<RowId>,
    /// The row that the next chunk gets: rows before it are there, unless they are gone.
    pub next_row: RowId,
    /// Log index of the last change; 0 when nothing has changed.
    pub changed_at: u64,
    /// The partition has been dropped.
    pub dropped: bool,
    /// More has changed than was noted, or everything was replaced: what was loaded is void.
    pub reload: bool,
}

/// A watched partition.
#[derive(Debug)]
pub struct ChangesHandle {
    pending: Mutex<PendingChanges>,
}

impl ChangesHandle {
    /// Takes what has changed since the last call; none when nothing has.
    pub fn drain(&self) -> Option<PendingChanges> {
        let mut pending = self.pending.lock();
        let changed = pending.changed_at > 0 || pending.reload || pending.dropped;
        changed.then(|| std::mem::take(&mut *pending))
    }
}

/// One write's effect on a partition.
#[derive(Debug)]
pub(crate) struct PartitionChange {
    pub(crate) removed: Vec<RowId>,
    pub(crate) next_row: RowId,
    pub(crate) changed_at: u64,
    pub(crate) dropped: bool,
}

/// The partitions of a replica that are watched.
#[derive(Debug, Default)]
pub struct Changes {
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    handles: HashMap<(TenantId, CollectionId), Vec<Weak<ChangesHandle>>>,
    /// Partitions that were written to, and whether they were dropped, since they were taken.
    touched: HashMap<(TenantId, CollectionId), bool>,
    /// Length at which the map is searched for partitions that nobody watches any more.
    prune_at: usize,
}

impl Changes {
    /// Watches a partition until the handle is dropped.
    pub fn watch(&self, tenant: TenantId, collection: CollectionId) -> Arc<ChangesHandle> {
        let handle = Arc::new(ChangesHandle { pending: Mutex::default() });
        let mut watched = self.watched.lock();
        if watched.handles.len() >= watched.prune_at {
            watched.handles.retain(|_, handles| handles.iter().any(|handle| handle.strong_count() > 0));
            watched.prune_at = 2 * watched.handles.len() + 16;
        }
        let handles = watched.handles.entry((tenant, collection)).or_default();
        handles.retain(|handle| handle.strong_count() > 0);
        handles.push(Arc::downgrade(&handle));
        handle
    }

    /// Notes a write, after it is in the database and before its proposer hears of it.
    pub(crate) fn note(&self, tenant: TenantId, collection: CollectionId, change: &PartitionChange) {
        let mut watched = self.watched.lock();
        if watched.touched.len() < TOUCHED_MAX || watched.touched.contains_key(&(tenant, collection)) {
            *watched.touched.entry((tenant, collection)).or_default() |= change.dropped;
        }
        if mutant::is_on(Mutant::SearchMissesFresh) {
            return;
        }
        let Some(handles) = watched.handles.get(&(tenant, collection)) else { return };
        for handle in handles.iter().filter_map(Weak::upgrade) {
            let mut pending = handle.pending.lock();
            pending.changed_at = change.changed_at;
            pending.next_row = pending.next_row.max(change.next_row);
            pending.dropped |= change.dropped;
            if pending.removed.len() + change.removed.len() > ROWS_NOTED_MAX {
                pending.reload = true;
                pending.removed = Vec::new();
            } else if !pending.reload {
                pending.removed.extend(&change.removed);
            }
        }
    }

    /// Takes the partitions that were written to since the last call, and whether they were dropped: on every replica, whoever proposed the writes.
    /// Of very many it leaves out some; they are noted when they are written to again.
    pub fn take_touched(&self) -> HashMap<(TenantId, CollectionId), bool> {
        std::mem::take(&mut self.watched.lock().touched)
    }

    /// Notes that all rows have been replaced.
    pub(crate) fn note_replaced(&self) {
        for handle in self.watched.lock().handles.values().flatten().filter_map(Weak::upgrade) {
            handle.pending.lock().reload = true;
        }
    }
}
