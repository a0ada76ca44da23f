//! The threads that encode.

use super::encoder::{Encoder, Workspace};
use crate::device::DeviceError;
use crate::tokenizer::TokenSequence;
use parking_lot::{Condvar, Mutex};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

/// Sequences that are encoded together, and where their vectors go.
pub(crate) struct Group {
    /// Positions of the sequences in the call that they came with.
    pub(crate) positions: Vec<usize>,
    /// The sequences, in the order of `positions`.
    pub(crate) sequences: Vec<TokenSequence>,
    pub(crate) reply: Sender<EncodedGroup>,
}

/// The vectors of a group, or why there are none.
pub(crate) struct EncodedGroup {
    pub(crate) positions: Vec<usize>,
    pub(crate) vectors: Result<Vec<f32>, DeviceError>,
}

/// A fixed number of threads that take groups from one queue, first come first served. They are joined on drop.
pub(crate) struct Workers {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

struct QueueState {
    waiting: VecDeque<Group>,
    is_closed: bool,
}

impl Workers {
    /// Starts `count` threads.
    pub(crate) fn start(encoder: &Arc<Encoder>, count: usize) -> Result<Self, DeviceError> {
        let queue = Arc::new(Queue {
            state: Mutex::new(QueueState { waiting: VecDeque::new(), is_closed: false }),
            changed: Condvar::new(),
        });
        let mut workers = Self { queue, threads: Vec::with_capacity(count) };
        for index in 0..count {
            let encoder = Arc::clone(encoder);
            let queue = Arc::clone(&workers.queue);
            let thread = std::thread::Builder::new()
                .name(format!("encoder-{index}"))
                .spawn(move || work(&encoder, &queue))
                .map_err(DeviceError::Thread)?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Queues `groups`. Each one's reply is sent unless the device is dropped before.
    pub(crate) fn submit(&self, groups: impl IntoIterator<Item = Group>) {
        self.queue.state.lock().waiting.extend(groups);
        self.queue.changed.notify_all();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        {
            let mut state = self.queue.state.lock();
            state.is_closed = true;
            // Dropping a group drops its sender, which tells whoever waits for it.
            state.waiting.clear();
        }
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A worker catches panics of the encoder, so a failed join would be a bug of this file alone, and there
            // is nobody left to tell.
            let _ = thread.join();
        }
    }
}

fn work(encoder: &Encoder, queue: &Queue) {
    lower_priority();
    let mut workspace = None;
    while let Some(group) = next_group(queue) {
        let sequences: Vec<&TokenSequence> = group.sequences.iter().collect();
        let vectors = encode(encoder, &sequences, &mut workspace);
        // The caller may be gone, for example because another group of its call failed.
        let _ = group.reply.send(EncodedGroup { positions: group.positions, vectors });
    }
}

fn next_group(queue: &Queue) -> Option<Group> {
    let mut state = queue.state.lock();
    loop {
        if state.is_closed {
            return None;
        }
        if let Some(group) = state.waiting.pop_front() {
            return Some(group);
        }
        queue.changed.wait(&mut state);
    }
}

/// Encodes, turning a panic into an error; the workspace is then replaced, because its contents are unknown.
pub(crate) fn encode(
    encoder: &Encoder,
    sequences: &[&TokenSequence],
    workspace: &mut Option<Workspace>,
) -> Result<Vec<f32>, DeviceError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| encoder.embed(sequences, workspace)));
    match outcome {
        Ok(vectors) => Ok(vectors?),
        Err(panic) => {
            *workspace = None;
            Err(DeviceError::Panicked(message_of(panic.as_ref())))
        }
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "no message".to_owned())
}

/// Encoding documents keeps every core busy for minutes. At a lower priority than the threads that answer requests
/// and replicate, it takes only the time that these leave, and they need not wait for the scheduler's time slice.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        const NICE: libc::c_int = 5;
        // On Linux, process 0 means the calling thread alone.
        // SAFETY: the call has no preconditions.
        let outcome = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        if outcome != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, "encoder threads keep their priority");
        }
    }
}
