//! Which entries of a log are let go, besides those that openraft purges by their number.
//!
//! Of an entry that is applied, and that all replicas of the group have, the leader's copy is read by nobody again. Kept until a thousand newer ones stand
//! behind it, as openraft does, it would be written to the database's files, and compacted with its neighbours, for nothing: with large entries, as an import makes them, that is as
//! much work as the rows themselves are. So a leader lets go of what all have while the database still holds it in memory.
//!
//! And a number of entries bounds no bytes: what is kept for a replica that lags is bounded here. One that lags further is sent a snapshot. openraft waits with a
//! purge while it is sending what is to be purged: a replica that is slow, and takes entries all the time, holds it up.

use crate::IS_FOR_TESTS;
use crate::machine::Machine;
use crate::types::Types;
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A leader looks for what all replicas have whenever its log has grown by so many bytes: a part of what the database keeps in memory.
const STEP_BYTES: u64 = if IS_FOR_TESTS { 64 << 10 } else { 4 << 20 };
/// Bytes that are kept behind what is applied, and as many again before it is looked.
const KEPT_BYTES: u64 = if IS_FOR_TESTS { 8 << 20 } else { 512 << 20 };
/// How long a snapshot may take, of which only the place in the log is noted.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the log of one replica has grown by since it was opened, in bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogGrowth(Arc<AtomicU64>);

impl LogGrowth {
    /// So many more.
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a replica knows of its group's log.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// Bytes that the log has grown by.
    grown: u64,
    /// Last entry that is applied here.
    applied: u64,
    /// Last entry that all replicas have, as far as a leader knows; none elsewhere.
    held_by_all: Option<u64>,
}

/// When the log was looked at.
#[derive(Debug, Default)]
struct Looks {
    /// The last entry that was let go. Each snapshot makes openraft purge by number, too: there is to be none when nothing can be let go.
    gone: u64,
    /// How long it was when entries that all have were let go.
    step: u64,
    /// How long it was, and what was applied, when it was bounded.
    bound: (u64, u64),
}

impl Looks {
    /// The last entry to be let go now, if it is time to.
    fn let_go(&mut self, known: Known) -> Option<u64> {
        let mut last = self.gone;
        if known.grown - self.bound.0 >= KEPT_BYTES {
            last = last.max(self.bound.1);
            self.bound = (known.grown, known.applied);
        }
        if known.grown - self.step >= STEP_BYTES {
            self.step = known.grown;
            last = last.max(known.held_by_all.unwrap_or(0).min(known.applied));
        }
        let goes = last > self.gone;
        self.gone = last;
        goes.then_some(last)
    }
}

/// Lets entries go as the log grows, until the replica has ended.
pub(crate) async fn as_it_grows(raft: Raft<Types, Machine>, growth: LogGrowth) {
    let mut metrics = raft.metrics();
    let applied = metrics.borrow_watched().last_applied.map_or(0, |last| last.index);
    let mut looks = Looks { bound: (0, applied), ..Looks::default() };
    while metrics.changed().await.is_ok() {
        let known = {
            let metrics = metrics.borrow_watched();
            let matched = metrics.replication.iter().flat_map(|replicas| replicas.values());
            Known {
                grown: growth.bytes(),
                applied: metrics.last_applied.map_or(0, |last| last.index),
                held_by_all: matched.map(|matched| matched.map_or(0, |last| last.index)).min(),
            }
        };
        if let Some(last) = looks.let_go(known)
            && let Err(why) = purge(&raft, last).await
        {
            tracing::debug!(last, why, "entries of a log are kept until it has grown again");
        }
    }
}

/// openraft purges only what a snapshot holds.
async fn purge(raft: &Raft<Types, Machine>, last: u64) -> Result<(), String> {
    raft.trigger().snapshot().await.map_err(|fault| fault.to_string())?;
    let holds = |metrics: &openraft::RaftMetrics<Types>| metrics.snapshot.is_some_and(|snapshot| snapshot.index >= last);
    raft.wait(Some(SNAPSHOT_TIMEOUT)).metrics(holds, "a snapshot holds it").await.map_err(|fault| fault.to_string())?;
    raft.trigger().purge_log(last).await.map_err(|fault| fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(grown: u64, applied: u64, held_by_all: Option<u64>) -> Known {
        Known { grown, applied, held_by_all }
    }

    #[test]
    fn a_leader_lets_go_of_what_is_applied_and_all_have_at_each_step() {
        let mut looks = Looks::default();
        assert_eq!(looks.let_go(known(STEP_BYTES - 1, 10, Some(10))), None);
        assert_eq!(looks.let_go(known(STEP_BYTES, 10, Some(8))), Some(8));
        assert_eq!(looks.let_go(known(STEP_BYTES + 1, 20, Some(20))), None, "it has hardly grown since");
        assert_eq!(looks.let_go(known(2 * STEP_BYTES, 20, Some(25))), Some(20));
        assert_eq!(looks.let_go(known(3 * STEP_BYTES, 25, Some(20))), None, "a replica has got nothing since");
    }

    #[test]
    fn nothing_is_let_go_that_a_replica_has_yet_to_get_before_too_much_is_kept() {
        let mut looks = Looks::default();
        assert_eq!(looks.let_go(known(STEP_BYTES, 10, Some(0))), None, "one has nothing");
        assert_eq!(looks.let_go(known(2 * STEP_BYTES, 10, None)), None, "only a leader knows what others have");
        assert_eq!(looks.let_go(known(KEPT_BYTES, 100, None)), None, "so many bytes are kept");
        assert_eq!(looks.let_go(known(2 * KEPT_BYTES - 1, 150, None)), None);
        assert_eq!(looks.let_go(known(2 * KEPT_BYTES, 200, None)), Some(100));
        assert_eq!(looks.let_go(known(3 * KEPT_BYTES, 300, Some(20))), Some(200));
    }

    #[test]
    fn what_an_earlier_process_has_left_is_bounded_with_what_comes() {
        let mut looks = Looks { bound: (0, 70), ..Looks::default() };
        assert_eq!(looks.let_go(known(KEPT_BYTES, 100, None)), Some(70));
    }
}
