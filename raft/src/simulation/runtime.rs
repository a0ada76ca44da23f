//! What tasks, blocking work, syncing and chance come from: the current [`Host`], and the seed.

use super::chance;
use super::host::Host;
use crate::syncer::{Durable, OnSyncFailure, Sync};
use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::TokioRuntime;
use parking_lot::Mutex;
use rand_of_openraft::rngs::SmallRng;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Starts a task on the host of the one that starts it.
pub fn spawn<F: Future<Output: Send> + Send + 'static>(task: F) -> JoinHandle<F::Output> {
    match Host::current() {
        Some(host) => host.spawn(task),
        None => tokio::spawn(task),
    }
}

/// Does work that blocks between two tasks, after the time that it takes. It is done to its end even when nobody waits for it any more.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let Some(host) = Host::current() else { return Ok(work()) };
    let takes = host.fate().work_takes();
    let done = host.clone().spawn(async move {
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        let result = work();
        host.fate().worked();
        result
    });
    done.await.map_err(io::Error::other)
}

/// 64 bits.
pub fn random() -> u64 {
    chance::bits()
}

/// Group commit as [`crate::syncer`] has it, by a task in the place of a thread.
pub struct Syncer(Arc<Queue>);

struct Queue {
    /// What syncs, and what is done when that fails. Nothing is queued any more once there is none.
    disk: Mutex<Option<(Sync, OnSyncFailure)>>,
    waiting: Mutex<Vec<Durable>>,
}

impl Syncer {
    /// One that has nothing to do yet.
    pub fn start(sync: Sync, on_failure: OnSyncFailure) -> io::Result<Syncer> {
        Ok(Syncer(Arc::new(Queue { disk: Mutex::new(Some((sync, on_failure))), waiting: Mutex::default() })))
    }

    /// Calls `durable` once everything written so far is durable. False when the syncer has ended: the write then is not.
    pub fn when_durable(&self, durable: Durable) -> bool {
        if self.0.disk.lock().is_none() {
            return false;
        }
        let is_first = {
            let mut waiting = self.0.waiting.lock();
            waiting.push(durable);
            waiting.len() == 1
        };
        if is_first {
            let queue = self.0.clone();
            spawn(async move {
                if let Some(host) = Host::current() {
                    tokio::time::sleep(host.fate().sync_takes()).await;
                }
                queue.sync();
            });
        }
        true
    }

    /// Makes everything written so far durable. False when the syncer has ended.
    pub fn sync(&self) -> bool {
        self.0.sync()
    }

    /// Syncs what is queued and ends.
    pub fn stop(&self) {
        self.0.sync();
        *self.0.disk.lock() = None;
    }
}

impl Queue {
    /// One round: everything that waits, in its order.
    fn sync(&self) -> bool {
        let round = std::mem::take(&mut *self.waiting.lock());
        let mut disk = self.disk.lock();
        let Some((sync, on_failure)) = &mut *disk else { return false };
        if let Err(fault) = sync() {
            on_failure(&fault);
            *disk = None;
            return false;
        }
        drop(disk);
        if let Some(host) = Host::current() {
            host.fate().synced();
        }
        round.into_iter().for_each(|durable| durable());
        true
    }
}

/// openraft's runtime: tokio's, with the host's tasks and the seed's chance.
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, F: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, F>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = super::watch::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<F>(task: F) -> JoinHandle<F::Output>
    where
        F: Future + OptionalSend + 'static,
        F::Output: OptionalSend + 'static,
    {
        spawn(task)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, task: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, task)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, task: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, task)
    }

    fn is_panic(fault: &Self::JoinError) -> bool {
        fault.is_panic()
    }

    fn thread_rng() -> SmallRng {
        chance::fork()
    }

    fn new(threads: usize) -> Self {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, task: F) -> T {
        self.0.block_on(task)
    }

    async fn spawn_blocking<F, T>(work: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        blocking(work).await
    }
}
