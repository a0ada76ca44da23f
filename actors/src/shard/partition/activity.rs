//! When a partition's waiting rows are indexed. Every search scores them all, so they should not be many; but rounds of indexing that follow one another while rows
//! come fast index each row again and again, and leave less of the machine to storing them.

use ragged_raft::IS_FOR_TESTS;
use std::time::{Duration, Instant};

/// Waiting rows that are indexed at once, whatever else happens: a search would have to read and score them all.
pub(super) const WAITING_ROWS_MAX: u32 = if IS_FOR_TESTS { 128 } else { 131_072 };
/// The same while searches come.
pub(super) const WAITING_ROWS_SEARCHED: u32 = if IS_FOR_TESTS { 96 } else { 49_152 };
/// Waiting rows that are indexed when the last round has rested.
pub(super) const WAITING_ROWS: u32 = if IS_FOR_TESTS { 64 } else { 4096 };
/// For how many times its own length a round rests, and how long at most: while rows come fast, few large rounds leave more of the machine to storing them.
const ROUND_RESTS: u32 = 2;
const ROUND_RESTS_MAX: Duration = Duration::from_secs(5);
/// No write for so long, and rows do not come fast any more.
pub(super) const PAUSE: Duration = Duration::from_millis(500);
/// Waiting rows that are indexed when no others come for a while.
const WAITING_ROWS_IDLE: u32 = if IS_FOR_TESTS { 32 } else { 256 };
/// No write for so long is a while.
pub(super) const IDLE: Duration = Duration::from_secs(3);
/// After so long even a single row is indexed.
pub(super) const LONG_IDLE: Duration = Duration::from_secs(30);

/// When the partition was last seen to change, and indexed.
pub(super) struct Activity {
    changed_at: u64,
    pub(super) since: Instant,
    /// `changed_at` when the indexes were last brought to rest.
    settled_at: Option<u64>,
    /// Until then the last round of indexing rests.
    pub(super) rests_until: Instant,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Rows are to be indexed.
    Now,
    /// No rows wait, and nothing has come for a while: segments may be joined, if there is something to join.
    ToSettle,
    /// Nothing yet.
    Later,
}

impl Activity {
    pub(super) fn new(changed_at: u64) -> Activity {
        let now = Instant::now();
        Activity { changed_at, since: now, settled_at: None, rests_until: now }
    }

    /// For how long nothing has changed, when the partition's last change is this.
    fn idle(&mut self, changed_at: u64) -> Duration {
        if self.changed_at != changed_at {
            self.changed_at = changed_at;
            self.since = Instant::now();
        }
        self.since.elapsed()
    }

    /// What is due when the last change is this and so many rows wait, and searches come meanwhile or not.
    pub(super) fn due(&mut self, changed_at: u64, waiting: u32, is_searched: bool) -> Due {
        let idle = self.idle(changed_at);
        let is_rested = idle >= PAUSE || self.rests_until <= Instant::now();
        let are_enough = match waiting {
            WAITING_ROWS_MAX.. => true,
            WAITING_ROWS_SEARCHED.. => is_searched || is_rested,
            WAITING_ROWS.. => is_rested,
            WAITING_ROWS_IDLE.. => idle >= IDLE,
            1.. => idle >= LONG_IDLE,
            0 => false,
        };
        match are_enough {
            true => Due::Now,
            false if waiting == 0 && idle >= IDLE && self.settled_at != Some(changed_at) => Due::ToSettle,
            false => Due::Later,
        }
    }

    /// Whether a round may bring the indexes to rest. Many rows are indexed by themselves first: joining all segments takes far longer, and they should not
    /// wait for it.
    pub(super) fn is_idle(&mut self, changed_at: u64, waiting: u32) -> bool {
        waiting < WAITING_ROWS && self.idle(changed_at) >= IDLE
    }

    /// A round took so long.
    pub(super) fn rest_after(&mut self, round: Duration) {
        self.rests_until = Instant::now() + (round * ROUND_RESTS).min(ROUND_RESTS_MAX);
    }

    /// The indexes have been brought to rest after this change.
    pub(super) fn settled(&mut self, changed_at: u64) {
        self.settled_at = Some(changed_at);
    }
}
