//! What tasks, blocking work, syncing and chance come from: tokio, threads and the system. The feature `simulation` puts another module in the place
//! of this one, where all of them come from a seed.

pub use crate::syncer::Syncer;
pub use openraft_rt_tokio::TokioRuntime as Runtime;

use std::io;
use tokio::task::JoinHandle;

/// Starts a task.
pub fn spawn<F: Future<Output: Send> + Send + 'static>(task: F) -> JoinHandle<F::Output> {
    tokio::spawn(task)
}

/// Does work that blocks where it stops nobody else. It is done to its end even when nobody waits for it any more.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// 64 random bits, no secret.
pub fn random() -> u64 {
    ulid::Ulid::new().random() as u64
}
