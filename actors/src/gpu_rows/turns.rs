//! Who searches the same rows at the same time is answered together.
//!
//! Nobody waits when nobody is before: a search goes to the GPU at once. Those that come while it is there wait, and the first of them takes the others with
//! it that look among the same rows.

use parking_lot::{Condvar, Mutex};
use prometheus::IntGauge;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// When no turn has ended for so long, the one that is taken does not end any more: a search takes a GPU some thousandths of a second.
pub(super) const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });
/// Searches that are answered together at most.
const TOGETHER_MAX: usize = 256;

/// Which rows may be found: searches with the same one may be answered together. Of two references that live at the same time the same address is the same.
pub(crate) type AllowedKey = [usize; 2];

/// What one search asks.
pub(super) struct Asked {
    ticket: u64,
    allowed: AllowedKey,
    pub(super) query: Vec<f32>,
    pub(super) wanted: usize,
}

/// Positions of rows, best first; none when the GPU has failed.
type Answer = Option<Vec<u32>>;

/// A GPU does not come back from a search.
pub(super) struct Hung;

/// The turns of one set of rows.
#[derive(Default)]
pub(super) struct Turns {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    is_taken: bool,
    /// No more than there are threads that search.
    waiting: Vec<Asked>,
    answers: HashMap<u64, Answer>,
    /// Those that were taken along and have gone, because the turn does not end.
    gone: HashSet<u64>,
    next_ticket: u64,
}

impl Turns {
    /// Has a search answered by `compute`, alone or with others; `compute` is that of whichever of them comes first, and gives as many answers as it is
    /// asked for, or none.
    ///
    /// # Errors
    /// The turn before it does not end.
    pub(super) fn ask(
        &self,
        allowed: AllowedKey,
        query: &[f32],
        wanted: usize,
        queued: &IntGauge,
        compute: impl FnOnce(&[Asked]) -> Option<Vec<Vec<u32>>>,
    ) -> Result<Answer, Hung> {
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push(Asked { ticket, allowed, query: query.to_vec(), wanted });
        queued.inc();
        while state.is_taken {
            let is_late = self.done.wait_for(&mut state, PATIENCE).timed_out();
            if let Some(answer) = state.answers.remove(&ticket) {
                return Ok(answer);
            }
            if is_late && state.is_taken {
                if state.leave(ticket) {
                    queued.dec();
                }
                return Err(Hung);
            }
        }
        let mut turn = Turn { turns: self, taken: state.take(ticket, allowed), answers: Vec::new() };
        queued.sub(turn.taken.len() as i64);
        drop(state);
        turn.answers = compute(&turn.taken).unwrap_or_default();
        // Its own is the first.
        Ok(turn.answers.first_mut().map(std::mem::take))
    }
}

impl State {
    /// Begins the turn of a search that waits.
    fn take(&mut self, ticket: u64, allowed: AllowedKey) -> Vec<Asked> {
        self.is_taken = true;
        // Its own first, so that it is among those that there is room for.
        self.waiting.sort_by_key(|asked| asked.ticket != ticket);
        let mut taken = Vec::new();
        let mut left = Vec::new();
        for asked in self.waiting.drain(..) {
            let goes = asked.allowed == allowed && taken.len() < TOGETHER_MAX;
            if goes { taken.push(asked) } else { left.push(asked) }
        }
        self.waiting = left;
        taken
    }

    /// Somebody waits no longer; whether it was for a turn that had not begun.
    fn leave(&mut self, ticket: u64) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|asked| asked.ticket != ticket);
        let was_waiting = self.waiting.len() < before;
        if !was_waiting {
            self.gone.insert(ticket);
        }
        was_waiting
    }
}

/// A turn: when it ends, however that is, the others have their answers and the next may begin.
struct Turn<'a> {
    turns: &'a Turns,
    /// The first is whose turn it is.
    taken: Vec<Asked>,
    answers: Vec<Vec<u32>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut answers = self.answers.drain(..);
        let mut state = self.turns.state.lock();
        for (number, asked) in self.taken.drain(..).enumerate() {
            let answer = answers.next();
            if number > 0 && !state.gone.remove(&asked.ticket) {
                state.answers.insert(asked.ticket, answer);
            }
        }
        state.is_taken = false;
        self.turns.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn gauge() -> IntGauge {
        IntGauge::new("waiting", "waiting").unwrap()
    }

    fn ask(turns: &Turns, queued: &IntGauge, wanted: usize, compute: impl FnOnce(&[Asked]) -> Option<Vec<Vec<u32>>>) -> Answer {
        turns.ask([0, 0], &[5.0], wanted, queued, compute).unwrap_or_else(|Hung| panic!("a turn does not end"))
    }

    /// What is wanted of each query, as its answer.
    fn wanted(asked: &[Asked]) -> Option<Vec<Vec<u32>>> {
        Some(asked.iter().map(|asked| vec![asked.wanted as u32, asked.query[0] as u32]).collect())
    }

    #[test]
    fn a_search_alone_does_not_wait() {
        let (turns, queued) = (Turns::default(), gauge());
        for number in 0..3 {
            assert_eq!(ask(&turns, &queued, number, wanted), Some(vec![number as u32, 5]));
        }
        assert_eq!(ask(&turns, &queued, 1, |_| None), None);
        assert_eq!(queued.get(), 0);
    }

    #[test]
    fn those_that_come_meanwhile_go_together_with_those_among_the_same_rows() {
        let (turns, queued, sizes) = (Turns::default(), gauge(), Mutex::new(Vec::new()));
        let (release, held) = channel::<()>();
        let (begun, begins) = channel::<()>();
        std::thread::scope(|scope| {
            let (turns, queued, sizes) = (&turns, &queued, &sizes);
            scope.spawn(move || {
                ask(turns, queued, 1, |asked| {
                    begun.send(()).unwrap();
                    held.recv().unwrap();
                    wanted(asked)
                })
            });
            begins.recv().unwrap();
            for number in 1..=12u32 {
                scope.spawn(move || {
                    let answer = turns.ask([(number % 3) as usize, 0], &[number as f32], 2, queued, |asked| {
                        sizes.lock().push(asked.len());
                        // One group of three fails, each of its searches is told.
                        if asked[0].allowed == [2, 0] { None } else { wanted(asked) }
                    });
                    assert_eq!(answer.ok(), Some((number % 3 != 2).then(|| vec![2, number])));
                });
            }
            while queued.get() < 12 {
                std::thread::yield_now();
            }
            release.send(()).unwrap();
        });
        assert_eq!(*sizes.lock(), [4, 4, 4]);
        assert_eq!(queued.get(), 0);
        assert!(turns.state.lock().answers.is_empty());
    }

    #[test]
    fn a_turn_that_panics_leaves_nobody_waiting() {
        let (turns, queued) = (Turns::default(), gauge());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask(&turns, &queued, 1, |_| panic!("injected"))));
        assert!(panicked.is_err());
        assert_eq!(ask(&turns, &queued, 1, wanted), Some(vec![1, 5]));
    }

    #[test]
    fn nobody_waits_for_a_turn_that_does_not_end() {
        let (turns, queued) = (Turns::default(), gauge());
        let (release, held) = channel::<()>();
        let (begun, begins) = channel::<()>();
        std::thread::scope(|scope| {
            let (turns, queued) = (&turns, &queued);
            let hung = scope.spawn(move || {
                ask(turns, queued, 1, |asked| {
                    begun.send(()).unwrap();
                    held.recv().unwrap();
                    wanted(asked)
                })
            });
            begins.recv().unwrap();
            let waiting =
                [1, 2].map(|_| scope.spawn(|| turns.ask([0, 0], &[1.0], 1, queued, |_| panic!("it is not its turn")).is_err()));
            assert!(waiting.into_iter().all(|waits| waits.join().unwrap()));
            assert_eq!(queued.get(), 0);
            release.send(()).unwrap();
            assert_eq!(hung.join().unwrap(), Some(vec![1, 5]));
        });
        assert_eq!(ask(&turns, &queued, 3, wanted), Some(vec![3, 5]));
        let state = turns.state.lock();
        assert!(state.answers.is_empty() && state.gone.is_empty() && state.waiting.is_empty());
    }
}
