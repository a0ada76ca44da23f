//! A watched value as openraft wants it. Tokio's wakes those who wait in an order that no seed decides; this one, in the order in which they came to be.

use openraft::OptionalSend;
use openraft::async_runtime::watch::{self, RecvError, SendError};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// openraft's name for both ends.
pub struct Watch;

struct Shared<T> {
    value: RwLock<T>,
    ends: Mutex<Ends>,
}

struct Ends {
    /// Counts what was sent.
    version: u64,
    senders: usize,
    receivers: usize,
    next_receiver: u64,
    waiting: BTreeMap<u64, Waker>,
}

impl<T> Shared<T> {
    fn changed(&self) {
        let waiting = {
            let mut ends = self.ends.lock();
            ends.version += 1;
            std::mem::take(&mut ends.waiting)
        };
        waiting.into_values().for_each(Waker::wake);
    }

    fn receiver(self: &Arc<Self>, seen: Option<u64>) -> Receiver<T> {
        let mut ends = self.ends.lock();
        ends.next_receiver += 1;
        ends.receivers += 1;
        Receiver { shared: self.clone(), number: ends.next_receiver, seen: seen.unwrap_or(ends.version) }
    }
}

/// Changes the value.
pub struct Sender<T>(Arc<Shared<T>>);

/// Sees it change.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    number: u64,
    seen: u64,
}

impl watch::Watch for Watch {
    type Sender<T: OptionalSend + Sync> = Sender<T>;
    type Receiver<T: OptionalSend + Sync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = RwLockReadGuard<'a, T>;

    fn channel<T: OptionalSend + Sync>(init: T) -> (Sender<T>, Receiver<T>) {
        let ends = Ends { version: 0, senders: 1, receivers: 0, next_receiver: 0, waiting: BTreeMap::new() };
        let shared = Arc::new(Shared { value: RwLock::new(init), ends: Mutex::new(ends) });
        let receiver = shared.receiver(None);
        (Sender(shared), receiver)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.ends.lock().senders += 1;
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waiting = {
            let mut ends = self.0.ends.lock();
            ends.senders -= 1;
            if ends.senders > 0 {
                return;
            }
            std::mem::take(&mut ends.waiting)
        };
        waiting.into_values().for_each(Waker::wake);
    }
}

impl<T: OptionalSend + Sync> watch::WatchSender<Watch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.ends.lock().receivers == 0 {
            return Err(SendError(value));
        }
        *self.0.value.write() = value;
        self.0.changed();
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let is_modified = modify(&mut self.0.value.write());
        if is_modified {
            self.0.changed();
        }
        is_modified
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.0.value.read()
    }

    fn subscribe(&self) -> Receiver<T> {
        self.0.receiver(None)
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.receiver(Some(self.seen))
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut ends = self.shared.ends.lock();
        ends.receivers -= 1;
        ends.waiting.remove(&self.number);
    }
}

impl<T: OptionalSend + Sync> watch::WatchReceiver<Watch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        poll_fn(|context| {
            let mut ends = self.shared.ends.lock();
            if ends.version != self.seen {
                self.seen = ends.version;
                return Poll::Ready(Ok(()));
            }
            if ends.senders == 0 {
                return Poll::Ready(Err(RecvError(())));
            }
            ends.waiting.insert(self.number, context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.shared.value.read()
    }

    fn borrow_and_update(&mut self) -> RwLockReadGuard<'_, T> {
        let value = self.shared.value.read();
        self.seen = self.shared.ends.lock().version;
        value
    }
}
