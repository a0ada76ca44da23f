//! A GPU that rows can be put on, for as long as it is open: what it holds, and how it stands.

use super::device::RowDevice;
use super::metrics::GpuRowsMetrics;
use super::seat::{Seat, Seated};
use super::turns::{Hung, PATIENCE};
use super::uploads::{Bring, Errand};
use crossbeam_channel::Sender;
use parking_lot::Mutex;
use ragged_kernels::cuda::{GpuError, GpuMemory};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long rows that failed, and GPUs, are left alone: so long at first, twice as long with each failure, and never longer than the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(if cfg!(test) { 20 } else { 1_000 }), Duration::from_secs(300));

/// A GPU that is open.
pub(super) struct Hosted {
    pub(super) number: usize,
    pub(super) device: Box<dyn RowDevice>,
    /// Bytes that rows may have.
    pub(super) bytes_max: usize,
    pub(super) encoder_bytes: u64,
    pub(super) metrics: GpuRowsMetrics,
    /// What its thread is to do.
    errands: Sender<Errand>,
    held_bytes: Mutex<usize>,
    /// Bytes of rows that wait to be brought.
    coming_bytes: AtomicUsize,
    /// Held while it searches: its time is that of one search.
    turn: Mutex<()>,
    /// Turns that are waited for, with the one that is taken.
    turns: AtomicUsize,
    seats: Mutex<Vec<Weak<Seat>>>,
    standing: Mutex<Standing>,
    memory: Mutex<GpuMemory>,
    /// It is about to be opened again, and takes no more rows.
    is_closing: AtomicBool,
    /// Rows that left when it did not answer any more: to free them would wait for it.
    left_behind: Mutex<Vec<Arc<Seated>>>,
}

#[derive(Default)]
struct Standing {
    failures: u32,
    not_before: Option<Instant>,
}

/// Bytes of a GPU that are taken for rows, for as long as this lives.
pub(super) struct Held {
    gpu: Arc<Hosted>,
    bytes: usize,
}

impl Held {
    pub(super) fn gpu(&self) -> &Arc<Hosted> {
        &self.gpu
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.gpu.held_bytes.lock();
        *held -= self.bytes;
        self.gpu.show_held(*held);
    }
}

/// Nobody has rows on it any more: it was closed, and another one of its number comes after that.
impl Drop for Hosted {
    fn drop(&mut self) {
        self.show_nothing();
    }
}

/// How long to leave alone what has failed so often in a row.
pub(super) fn backoff(failures: u32) -> Duration {
    BACKOFF.0.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1))).min(BACKOFF.1)
}

impl Hosted {
    pub(super) fn new(
        number: usize,
        device: Box<dyn RowDevice>,
        memory: GpuMemory,
        (bytes_max, encoder_bytes): (usize, u64),
        metrics: GpuRowsMetrics,
        errands: Sender<Errand>,
    ) -> Self {
        let hosted = Hosted {
            number,
            device,
            bytes_max,
            encoder_bytes,
            metrics,
            errands,
            held_bytes: Mutex::new(0),
            coming_bytes: AtomicUsize::new(0),
            turn: Mutex::new(()),
            turns: AtomicUsize::new(0),
            seats: Mutex::default(),
            standing: Mutex::default(),
            memory: Mutex::new(memory),
            is_closing: AtomicBool::new(false),
            left_behind: Mutex::default(),
        };
        hosted.show_memory(memory);
        hosted.show_held(0);
        hosted
    }

    /// Whether it takes rows at this moment.
    pub(super) fn is_well(&self) -> bool {
        let is_early = self.standing.lock().not_before.is_some_and(|then| Instant::now() < then);
        !is_early && !self.is_closing.load(Ordering::Relaxed)
    }

    /// Does one piece of work at a time; what came of it, and the seconds that it took without the wait for others.
    ///
    /// # Errors
    /// The one before it does not end.
    pub(super) fn in_turn<T>(&self, work: impl FnOnce() -> T) -> Result<(T, f64), Hung> {
        self.turns.fetch_add(1, Ordering::Relaxed);
        // The lock is fair in the end: who waits for so long waits for one piece of work, not for others that come in between.
        let turn = self.turn.try_lock_for(PATIENCE);
        let done = turn.map(|_turn| {
            let begun = Instant::now();
            let done = work();
            (done, begun.elapsed().as_secs_f64())
        });
        self.turns.fetch_sub(1, Ordering::Relaxed);
        done.ok_or(Hung)
    }

    /// Seconds until work of so many seconds would be done, if all that are before it are like it.
    pub(super) fn seconds_with_wait(&self, seconds: f64) -> f64 {
        seconds * (1 + self.turns.load(Ordering::Relaxed)) as f64
    }

    /// Bytes that rows have.
    pub(super) fn held_bytes(&self) -> usize {
        *self.held_bytes.lock()
    }

    /// Its memory, as it was when it was last asked.
    pub(super) fn memory(&self) -> GpuMemory {
        *self.memory.lock()
    }

    /// Asks what of its memory is free.
    pub(super) fn refresh(&self) {
        if let Ok(memory) = self.device.memory() {
            *self.memory.lock() = memory;
            self.show_memory(memory);
        }
    }

    fn show_memory(&self, memory: GpuMemory) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let number = self.number.to_string();
        let labels = &[number.as_str()];
        self.metrics.memory_total_bytes.with_label_values(labels).set(gauge(memory.total_bytes));
        let used = memory.total_bytes.saturating_sub(memory.free_bytes);
        self.metrics.memory_used_bytes.with_label_values(labels).set(gauge(used));
        self.metrics.encoder_bytes.with_label_values(labels).set(gauge(self.encoder_bytes));
    }

    /// Nothing is said of its memory any more.
    fn show_nothing(&self) {
        let number = self.number.to_string();
        for gauge in [
            &self.metrics.memory_total_bytes,
            &self.metrics.memory_used_bytes,
            &self.metrics.encoder_bytes,
            &self.metrics.rows_bytes,
        ] {
            if let Err(fault) = gauge.remove_label_values(&[&number]) {
                tracing::debug!(%fault, "a GPU's gauge was not there");
            }
        }
    }

    fn show_held(&self, bytes: usize) {
        self.metrics.rows_bytes.with_label_values(&[&self.number.to_string()]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Takes so many bytes. Those rows leave for it that were searched least lately, but none that were within `in_use`, and none in vain. None when there is no
    /// room then, or when what leaves is still being searched.
    pub(super) fn hold(self: &Arc<Self>, bytes: usize, in_use: Duration) -> Option<Held> {
        if let Some(held) = self.take(bytes) {
            return Some(held);
        }
        let mut idle = self.seated();
        idle.retain(|(_, rows)| rows.used().elapsed() >= in_use);
        let idle_bytes: usize = idle.iter().map(|(_, rows)| rows.held.bytes).sum();
        if self.held_bytes().saturating_sub(idle_bytes).saturating_add(bytes) > self.bytes_max {
            return None;
        }
        idle.sort_by_key(|(_, rows)| rows.used());
        for (seat, rows) in idle {
            self.metrics.evictions.inc_by(u64::from(seat.leave(&rows).is_some()));
            drop(rows);
            if let Some(held) = self.take(bytes) {
                return Some(held);
            }
        }
        None
    }

    /// Takes so many bytes if nobody has them.
    fn take(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let mut held = self.held_bytes.lock();
        let after = held.checked_add(bytes).filter(|after| *after <= self.bytes_max)?;
        *held = after;
        self.show_held(after);
        Some(Held { gpu: self.clone(), bytes })
    }

    /// The seats whose rows are here.
    fn seated(&self) -> Vec<(Arc<Seat>, Arc<Seated>)> {
        let mut seats = self.seats.lock();
        seats.retain(|seat| seat.strong_count() > 0);
        let seats: Vec<Arc<Seat>> = seats.iter().filter_map(Weak::upgrade).collect();
        let is_here = |rows: &Arc<Seated>| std::ptr::eq(Arc::as_ptr(rows.held.gpu()), self);
        seats.into_iter().filter_map(|seat| seat.rows().filter(is_here).map(|rows| (seat, rows))).collect()
    }

    /// Rows are here.
    pub(super) fn seat(&self, seat: &Arc<Seat>, rows: Seated) {
        let is_known = |known: &Weak<Seat>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(seat));
        let mut seats = self.seats.lock();
        seats.retain(|seat| seat.strong_count() > 0);
        if !seats.iter().any(is_known) {
            seats.push(Arc::downgrade(seat));
        }
        drop(seats);
        drop(seat.take(Arc::new(rows)));
    }

    /// Bytes that rows may have and neither have nor are about to have.
    pub(super) fn room(&self) -> usize {
        self.bytes_max.saturating_sub(self.held_bytes()).saturating_sub(self.coming_bytes.load(Ordering::Relaxed))
    }

    /// Has rows brought behind whoever searches; false when too much waits already.
    pub(super) fn bring(&self, bring: Bring) -> bool {
        let bytes = bring.bytes(self);
        self.coming_bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_sent = self.errands.try_send(Errand::Bring(bring)).is_ok();
        if !is_sent {
            self.came(bytes);
        }
        is_sent
    }

    /// Rows that were to be brought are here, or do not come.
    pub(super) fn came(&self, bytes: usize) {
        self.coming_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Has memory freed behind whoever searches.
    pub(super) fn free(&self, rows: Arc<Seated>) {
        if let Err(refused) = self.errands.try_send(Errand::Free(rows)) {
            drop(refused); // here, then
        }
    }

    /// All rows leave.
    pub(super) fn clear(&self) {
        for (seat, rows) in self.seated() {
            if let Some(rows) = seat.leave(&rows) {
                self.free(rows);
            }
        }
    }

    /// Rows leave, and no others come: the GPU is about to be opened again. Those of a search that does not end stay, with all that left when it did not.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        for (seat, rows) in self.seated() {
            drop(seat.leave(&rows));
        }
        let mut left_behind = self.left_behind.lock();
        if left_behind.iter().all(|rows| Arc::strong_count(rows) == 1) {
            let freed = std::mem::take(&mut *left_behind);
            drop(left_behind);
            drop(freed);
        }
    }

    /// It does not come back from a search, which others wait for: nobody asks it any more.
    pub(super) fn hangs(&self, searches: usize) {
        self.metrics.failures.inc_by(searches as u64);
        if !self.is_closing.swap(true, Ordering::Relaxed) {
            tracing::error!(
                gpu = self.number,
                device = self.device.name(),
                "a GPU does not come back from a search: the processor searches. If it stays so, restart the node"
            );
            self.device.lose();
        }
        let mut left_behind = self.left_behind.lock();
        left_behind.extend(self.seated().into_iter().filter_map(|(seat, rows)| seat.leave(&rows)));
    }

    /// The GPU has failed on rows, which so many searches asked: they are left to the processor for a while, with all others when it was not for want of memory.
    pub(super) fn failed(&self, seat: &Seat, rows: Option<&Arc<Seated>>, fault: &GpuError, searches: usize) {
        self.metrics.failures.inc_by(searches as u64);
        let left = rows.and_then(|rows| seat.leave(rows));
        if rows.is_some() && left.is_none() {
            return; // somebody has seen it before
        }
        let pause = backoff(seat.failed());
        seat.refuse(Instant::now() + pause);
        tracing::warn!(
            gpu = self.number,
            device = self.device.name(),
            %fault,
            again_after_s = pause.as_secs(),
            "a GPU failed on the rows of a segment: the processor searches them"
        );
        if !matches!(fault, GpuError::OutOfMemory { .. }) {
            let mut standing = self.standing.lock();
            standing.failures = standing.failures.saturating_add(1);
            standing.not_before = Some(Instant::now() + backoff(standing.failures));
            drop(standing);
            self.clear();
        }
        if let Some(rows) = left {
            self.free(rows);
        }
    }

    /// The GPU has answered a search of these rows.
    pub(super) fn worked(&self, seat: &Seat) {
        seat.worked();
        *self.standing.lock() = Standing::default();
    }
}
