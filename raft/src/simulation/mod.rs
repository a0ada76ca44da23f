//! What replication runs on when it is simulated: one thread, whose tasks, time and chance come from a seed.
//!
//! A seed gives one run, again and again: tasks take turns in an order that the seed draws, clocks go forward when nothing is left to do,
//! and work that blocks is done between two tasks. Nodes are [`Host`]s, which are killed and paused with all their tasks. What is between them
//! and on their disks is for the tests in `tests/simulation`.

pub mod chance;
mod host;
mod promise;
pub mod runtime;
mod sight;
mod watch;

pub use host::{Fate, Host};
pub use promise::{Promise, promise};
pub use sight::{Sight, entries, sight};

use crate::group::{Group, ProposeError};

impl Group {
    /// Makes the replica purge its log but for so many entries that it has applied, so that those that lag need a snapshot.
    pub async fn purge_log(&self, kept: u64) -> Result<(), ProposeError> {
        let stopped = |fault: openraft::errors::Fatal<crate::types::Types>| ProposeError::Stopped(fault.to_string());
        let trigger = self.raft().trigger();
        trigger.snapshot().await.map_err(stopped)?;
        trigger.purge_log(self.applied_index().saturating_sub(kept)).await.map_err(stopped)
    }
}
