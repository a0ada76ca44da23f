//! Group commit: one thread makes the writes of all groups durable, with one sync for all that wait.
//!
//! A write goes to the database unsynced and its completion is queued here. The thread takes everything that is queued, syncs the
//! write-ahead log once, and completes them in their order; writes that come meanwhile wait for the next round. Since the database has one
//! write-ahead log, a sync makes durable everything that was written before it, of whatever group. The queue is as long as writes are in
//! flight, which the groups limit.

use parking_lot::Mutex;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Called once its write is durable. It never hears of a failed sync: that ends the process (and, if it does not, drops the call).
pub type Durable = Box<dyn FnOnce() + Send>;

/// Makes everything durable that was written before the call.
pub type Sync = Box<dyn FnMut() -> io::Result<()> + Send>;

/// What is done when the log cannot be synced. What the disk holds is then unknown, and a second sync may report success for data that
/// the first one lost: nothing but ending the process is safe.
pub type OnSyncFailure = Box<dyn Fn(&io::Error) + Send>;

/// The thread that syncs.
pub struct Syncer {
    queue: Mutex<Option<Sender<Durable>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Syncer {
    /// Starts the thread.
    pub fn start(sync: Sync, on_failure: OnSyncFailure) -> io::Result<Syncer> {
        let (queue, waiting) = channel();
        let thread = std::thread::Builder::new().name("wal-syncer".into()).spawn(move || run(sync, &waiting, &on_failure))?;
        Ok(Syncer { queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)) })
    }

    /// Calls `durable`, on the syncer's thread, once everything written so far is durable. False when the syncer has ended: the write then is not.
    pub fn when_durable(&self, durable: Durable) -> bool {
        self.queue.lock().as_ref().is_some_and(|queue| queue.send(durable).is_ok())
    }

    /// Waits until everything written so far is durable. False when the syncer has ended: it then is not.
    pub fn sync(&self) -> bool {
        let (done, wait) = channel();
        let queued = self.when_durable(Box::new(move || {
            let _ = done.send(()); // whoever waited may be gone
        }));
        queued && wait.recv().is_ok()
    }

    /// Syncs what is queued and ends the thread.
    pub fn stop(&self) {
        drop(self.queue.lock().take());
        let Some(thread) = self.thread.lock().take() else { return };
        if thread.thread().id() == std::thread::current().id() {
            return; // it cannot wait for itself; it ends when it finds the queue closed
        }
        if thread.join().is_err() {
            tracing::error!("the syncer's thread had panicked");
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ends the process: the default answer to a failed sync.
pub fn end_process(fault: &io::Error) {
    // Not through the logger, which may be buffered.
    eprintln!(
        "ragged: the write-ahead log could not be synced ({fault}); what is on the disk is unknown, so the node ends here. Check the disk, then start it again."
    );
    std::process::abort();
}

fn run(mut sync: Sync, waiting: &Receiver<Durable>, on_failure: &OnSyncFailure) {
    while let Ok(first) = waiting.recv() {
        let mut round = vec![first];
        round.extend(waiting.try_iter());
        match sync() {
            Ok(()) => round.into_iter().for_each(|durable| durable()),
            Err(fault) => {
                on_failure(&fault);
                return; // nothing after a failed sync may be called durable
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn no_failure() -> OnSyncFailure {
        Box::new(|fault| panic!("no sync fails here: {fault}"))
    }

    #[test]
    fn writes_that_wait_share_one_sync_and_complete_in_their_order() {
        let syncs = Arc::new(AtomicU64::new(0));
        let (open_gate, gate) = channel::<()>();
        let count = syncs.clone();
        let sync: Sync = Box::new(move || {
            let _ = gate.recv();
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let syncer = Syncer::start(sync, no_failure()).unwrap();
        let (seen, order) = channel();
        for number in 0..100 {
            let seen = seen.clone();
            assert!(syncer.when_durable(Box::new(move || seen.send(number).unwrap())));
        }
        drop(open_gate); // everything is queued: from here on no sync waits
        let order: Vec<i32> = (0..100).map(|_| order.recv().unwrap()).collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
        assert!(syncs.load(Ordering::SeqCst) <= 2, "one for the first that came, one for all others");
    }

    #[test]
    fn after_a_failed_sync_nothing_is_called_durable_and_none_is_tried_again() {
        let syncs = Arc::new(AtomicU64::new(0));
        let failures = Arc::new(AtomicU64::new(0));
        let (count, noted) = (syncs.clone(), failures.clone());
        let sync: Sync = Box::new(move || match count.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(io::Error::other("the disk is on fire")),
        });
        let on_failure: OnSyncFailure = Box::new(move |_| {
            noted.fetch_add(1, Ordering::SeqCst);
        });
        let syncer = Syncer::start(sync, on_failure).unwrap();
        let durable = |syncer: &Syncer| {
            let (done, wait) = channel();
            syncer.when_durable(Box::new(move || done.send(()).unwrap())) && wait.recv().is_ok()
        };
        assert!(durable(&syncer));
        assert!(!durable(&syncer));
        assert!(!durable(&syncer));
        assert_eq!((syncs.load(Ordering::SeqCst), failures.load(Ordering::SeqCst)), (2, 1));
    }

    #[test]
    fn stopping_completes_what_is_queued_and_refuses_the_rest() {
        let syncer = Syncer::start(Box::new(|| Ok(())), no_failure()).unwrap();
        let done = Arc::new(AtomicU64::new(0));
        for _ in 0..50 {
            let done = done.clone();
            syncer.when_durable(Box::new(move || {
                done.fetch_add(1, Ordering::SeqCst);
            }));
        }
        syncer.stop();
        assert_eq!(done.load(Ordering::SeqCst), 50);
        assert!(!syncer.when_durable(Box::new(|| panic!("it is not durable"))));
    }
}
