//! The threads that all reads and searches of a node run on.
//!
//! A thread takes the next read as soon as it has done one, without a detour over the async threads, so that as many threads as cores are
//! enough to keep the cores busy. Reads are taken in the order they came; one whose caller has gone is left out.

use crate::error::{ErrorKind, ServiceError};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

type Read = Box<dyn FnOnce() + Send>;

/// A bounded number of threads that read, and a bounded queue before them.
pub struct ReadThreads {
    queue: Option<Sender<Read>>,
    threads: Vec<JoinHandle<()>>,
}

impl ReadThreads {
    /// Starts so many threads, for which so many reads may wait.
    pub fn start(threads: usize, waiting: usize) -> io::Result<ReadThreads> {
        let (queue, reads) = bounded(waiting.max(1));
        let mut started = ReadThreads { queue: Some(queue), threads: Vec::new() };
        for number in 0..threads.max(1) {
            let reads = reads.clone();
            let thread = std::thread::Builder::new().name(format!("read-{number}")).spawn(move || serve(&reads))?;
            started.threads.push(thread);
        }
        Ok(started)
    }

    /// Runs blocking work when it is its turn.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
    ) -> Result<T, ServiceError> {
        let (reply, answer) = oneshot::channel();
        let span = tracing::Span::current();
        let read = move || {
            if !reply.is_closed() {
                let _ = reply.send(span.in_scope(work)); // the caller may have gone
            }
        };
        let queued = self.queue.as_ref().map(|queue| queue.try_send(Box::new(read)));
        match queued {
            Some(Ok(())) => answer.await.map_err(|_| ServiceError::internal("a read failed: its thread panicked"))?,
            Some(Err(TrySendError::Full(_))) => {
                Err(ServiceError::new(ErrorKind::Unavailable, "search_overloaded", "too many searches wait on this node"))
            }
            Some(Err(TrySendError::Disconnected(_))) | None => Err(ServiceError::unavailable("stopping", "the node is stopping")),
        }
    }
}

fn serve(reads: &Receiver<Read>) {
    for read in reads {
        // What panics is the caller's answer; the panic hook has written where. The thread goes on.
        let _ = catch_unwind(AssertUnwindSafe(read));
    }
}

impl Drop for ReadThreads {
    /// Waits for the reads that are being done: none may use the store, or C++ code, while the process ends.
    fn drop(&mut self) {
        drop(self.queue.take());
        let current = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != current) {
            let _ = thread.join(); // it does not panic: see `serve`
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// Occupies a thread until the sender is dropped.
    async fn occupied(threads: &std::sync::Arc<ReadThreads>) -> std::sync::mpsc::Sender<()> {
        let (release, held) = channel::<()>();
        let (begun, begins) = oneshot::channel();
        let threads = threads.clone();
        tokio::spawn(async move {
            let hold = move || {
                let _ = begun.send(());
                let _ = held.recv();
                Ok(())
            };
            threads.run(hold).await
        });
        begins.await.unwrap();
        release
    }

    #[tokio::test]
    async fn a_panic_is_the_answer_of_its_read_alone() {
        let threads = ReadThreads::start(1, 4).unwrap();
        let failed = threads.run(|| -> Result<(), ServiceError> { panic!("injected") }).await;
        assert_eq!(failed.unwrap_err().kind, ErrorKind::Internal);
        assert_eq!(threads.run(|| Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn more_than_may_wait_are_refused() {
        let threads = std::sync::Arc::new(ReadThreads::start(1, 1).unwrap());
        let release = occupied(&threads).await;
        let waits = tokio::spawn({
            let threads = threads.clone();
            async move { threads.run(|| Ok(())).await }
        });
        while threads.queue.as_ref().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(threads.run(|| Ok(())).await.unwrap_err().code, "search_overloaded");
        drop(release);
        waits.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_read_whose_caller_has_gone_is_left_out() {
        let threads = std::sync::Arc::new(ReadThreads::start(1, 4).unwrap());
        let release = occupied(&threads).await;
        let (ran, runs) = channel();
        let waits = tokio::spawn({
            let threads = threads.clone();
            async move {
                let read = move || {
                    let _ = ran.send(());
                    Ok(())
                };
                threads.run(read).await
            }
        });
        while threads.queue.as_ref().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        waits.abort();
        assert!(waits.await.unwrap_err().is_cancelled());
        drop(release);
        threads.run(|| Ok(())).await.unwrap();
        assert!(runs.try_recv().is_err());
    }
}
