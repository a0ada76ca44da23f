//! A machine that tasks run on: it can be killed, and stand still.

use super::chance;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::task::{AbortHandle, JoinHandle};

/// A task that could go on lets others go first once in so many times.
const YIELDS_ONCE_IN: u64 = 8;
/// Ended tasks are forgotten when there are so many.
const TASKS_KEPT: usize = 64;

/// What the simulated world does to a host, and wants to hear of.
pub trait Fate: Send + Sync {
    /// How long the blocking work takes that begins now.
    fn work_takes(&self) -> Duration;
    /// Blocking work has been done: the disk may hold something new.
    fn worked(&self);
    /// How long the sync takes that begins now.
    fn sync_takes(&self) -> Duration;
    /// Everything that was written is durable.
    fn synced(&self);
}

/// A simulated machine.
pub struct Host {
    fate: Box<dyn Fate>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_dead: bool,
    is_paused: bool,
    /// Tasks that would go on if the host did.
    parked: Vec<Waker>,
    tasks: Vec<AbortHandle>,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Host>>> = const { RefCell::new(None) };
}

impl Host {
    /// A host that has no tasks yet.
    pub fn new(fate: impl Fate + 'static) -> Arc<Host> {
        Arc::new(Host { fate: Box::new(fate), state: Mutex::default() })
    }

    /// The host whose task runs on this thread.
    pub fn current() -> Option<Arc<Host>> {
        CURRENT.with_borrow(Clone::clone)
    }

    pub(super) fn fate(&self) -> &dyn Fate {
        &*self.fate
    }

    /// Starts a task on this host. On a dead one it never runs.
    pub fn spawn<F: Future<Output: Send> + Send + 'static>(self: &Arc<Self>, task: F) -> JoinHandle<F::Output> {
        let task = tokio::spawn(Hosted { host: self.clone(), task: Box::pin(task) });
        let mut state = self.state.lock();
        if state.is_dead {
            task.abort();
        }
        if state.tasks.len() >= TASKS_KEPT {
            state.tasks.retain(|task| !task.is_finished());
        }
        state.tasks.push(task.abort_handle());
        task
    }

    /// Whether it has been killed.
    pub fn is_dead(&self) -> bool {
        self.state.lock().is_dead
    }

    /// Whether it stands still.
    pub fn is_paused(&self) -> bool {
        self.state.lock().is_paused
    }

    /// Ends all its tasks where they are.
    pub fn kill(&self) {
        let tasks = {
            let mut state = self.state.lock();
            state.is_dead = true;
            state.parked.clear();
            std::mem::take(&mut state.tasks)
        };
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// Stops all its tasks where they are, until it is resumed. Time goes on.
    pub fn pause(&self) {
        self.state.lock().is_paused = true;
    }

    /// Lets its tasks go on.
    pub fn resume(&self) {
        let parked = {
            let mut state = self.state.lock();
            state.is_paused = false;
            std::mem::take(&mut state.parked)
        };
        parked.into_iter().for_each(Waker::wake);
    }

    /// Whether a task may go on now; if not, it is woken when it may.
    fn lets_run(&self, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        if state.is_dead {
            return false;
        }
        if state.is_paused {
            state.parked.push(waker.clone());
            return false;
        }
        if chance::once_in(YIELDS_ONCE_IN) {
            waker.wake_by_ref();
            return false;
        }
        true
    }
}

/// A task of a host.
struct Hosted<F> {
    host: Arc<Host>,
    task: Pin<Box<F>>,
}

impl<F: Future> Future for Hosted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if !self.host.lets_run(context.waker()) {
            return Poll::Pending;
        }
        let _entered = Entered { before: CURRENT.replace(Some(self.host.clone())) };
        self.task.as_mut().poll(context)
    }
}

/// While it lives, a host is the current one; afterwards, the one before.
struct Entered {
    before: Option<Arc<Host>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}
