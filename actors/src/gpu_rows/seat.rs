//! Where a set of rows is searched on a GPU, when it is on one.

use super::device::DeviceRows;
use super::hosted::Held;
use super::turns::{Asked, Turns};
use parking_lot::Mutex;
use ragged_kernels::Scored;
use ragged_kernels::cuda::GpuError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// The seat of rows that do not change, for as long as they live. Empty at first.
#[derive(Default)]
pub struct Seat {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: Option<Arc<Seated>>,
    /// They are about to be put on a GPU.
    is_asked_for: bool,
    /// Not before then are they to be put on a GPU again.
    not_before: Option<Instant>,
    /// How often they have failed there since they were last searched.
    failures: u32,
}

/// Rows on a GPU.
pub(super) struct Seated {
    /// Freed before what is held for them.
    rows: Box<dyn DeviceRows>,
    pub(super) turns: Turns,
    pub(super) held: Held,
    used: Mutex<Instant>,
    /// Seconds that going through them takes, roughly.
    pub(super) seconds: f64,
}

impl Seat {
    /// The rows, when they are there, for a search.
    pub(super) fn rows(&self) -> Option<Arc<Seated>> {
        self.state.lock().rows.clone()
    }

    /// Whether the rows are on a GPU.
    pub(crate) fn is_taken(&self) -> bool {
        self.state.lock().rows.is_some()
    }

    /// Whether the rows were refused.
    #[cfg(test)]
    pub(super) fn is_left_alone(&self) -> bool {
        self.state.lock().not_before.is_some()
    }

    /// Whether somebody is to put the rows on a GPU now; then that is the caller.
    pub(super) fn ask(&self) -> bool {
        let mut state = self.state.lock();
        let is_early = state.not_before.is_some_and(|then| Instant::now() < then);
        if state.rows.is_some() || state.is_asked_for || is_early {
            return false;
        }
        state.is_asked_for = true;
        true
    }

    /// Nobody puts the rows on a GPU any more, and nobody shall before then.
    pub(super) fn refuse(&self, until: Instant) {
        let mut state = self.state.lock();
        state.is_asked_for = false;
        state.not_before = Some(until);
    }

    /// The rows are there. Those that were there before are returned: freeing them takes time, in which nobody waits for the seat.
    pub(super) fn take(&self, seated: Arc<Seated>) -> Option<Arc<Seated>> {
        let mut state = self.state.lock();
        state.is_asked_for = false;
        state.rows.replace(seated)
    }

    /// Empties the seat when these are the rows there. The memory is freed with what is returned, or by the last search that uses it.
    pub(super) fn leave(&self, seated: &Arc<Seated>) -> Option<Arc<Seated>> {
        self.state.lock().rows.take_if(|there| Arc::ptr_eq(there, seated))
    }

    /// The rows have failed on a GPU; how often in a row.
    pub(super) fn failed(&self) -> u32 {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        state.failures
    }

    /// The rows were searched on a GPU.
    pub(super) fn worked(&self) {
        self.state.lock().failures = 0;
    }
}

impl Drop for Seat {
    /// To free memory of a GPU takes time, and whoever is the last to know these rows may be a search.
    fn drop(&mut self) {
        if let Some(seated) = self.state.get_mut().rows.take() {
            let gpu = seated.held.gpu().clone();
            gpu.free(seated);
        }
    }
}

impl Seated {
    pub(super) fn new(rows: Box<dyn DeviceRows>, held: Held, seconds: f64) -> Self {
        Seated { rows, turns: Turns::default(), held, used: Mutex::new(Instant::now()), seconds }
    }

    /// When they were last searched.
    pub(super) fn used(&self) -> Instant {
        *self.used.lock()
    }

    /// They are searched.
    pub(super) fn touch(&self) {
        *self.used.lock() = Instant::now();
    }

    /// The best rows of each that asks.
    pub(super) fn top_k(&self, asked: &[Asked], allowed: Option<&[u64]>) -> Result<Vec<Vec<Scored>>, GpuError> {
        let queries: Vec<&[f32]> = asked.iter().map(|asked| asked.query.as_slice()).collect();
        let wanted = asked.iter().map(|asked| asked.wanted).max().unwrap_or(0);
        let found = unless_it_panics("a search", || self.rows.top_k(&queries, allowed, wanted))?;
        match found.len() == asked.len() {
            true => Ok(found),
            false => Err(GpuError::Failed { what: "a search", reason: "queries are left without an answer".to_owned() }),
        }
    }
}

/// What a device does, with a panic as a failure of it: whoever waits for it must not wait for ever.
pub(super) fn unless_it_panics<T>(what: &'static str, work: impl FnOnce() -> Result<T, GpuError>) -> Result<T, GpuError> {
    let panicked = |_| Err(GpuError::Failed { what, reason: "it panicked".to_owned() });
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked)
}
