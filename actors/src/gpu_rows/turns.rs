//! Who searches the same rows at the same time is answered together.
//!
//! Nobody waits when nobody is before: a search goes to the GPU at once. Those that come while it is there wait, and the first of them takes the others with
//! it that look among the same rows.

use parking_lot::{Condvar, Mutex};
use prometheus::IntGauge;
use std::collections::HashMap;

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
    next_ticket: u64,
}

impl Turns {
    /// Has a search answered by `compute`, alone or with others; `compute` is that of whichever of them comes first, and gives as many answers as it is
    /// asked for, or none.
    pub(super) fn ask(
        &self,
        allowed: AllowedKey,
        query: &[f32],
        wanted: usize,
        queued: &IntGauge,
        compute: impl FnOnce(&[Asked]) -> Option<Vec<Vec<u32>>>,
    ) -> Answer {
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push(Asked { ticket, allowed, query: query.to_vec(), wanted });
        queued.inc();
        while state.is_taken {
            self.done.wait(&mut state);
            if let Some(answer) = state.answers.remove(&ticket) {
                return answer;
            }
        }
        let mut turn = Turn { turns: self, taken: state.take(ticket, allowed), answers: Vec::new() };
        queued.sub(turn.taken.len() as i64);
        drop(state);
        turn.answers = compute(&turn.taken).unwrap_or_default();
        let own = turn.taken.iter().position(|asked| asked.ticket == ticket)?;
        let has_answer = own < turn.answers.len();
        has_answer.then(|| std::mem::take(&mut turn.answers[own]))
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
            if number > 0 {
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

    /// What is wanted of each query, as its answer.
    fn wanted(asked: &[Asked]) -> Option<Vec<Vec<u32>>> {
        Some(asked.iter().map(|asked| vec![asked.wanted as u32, asked.query[0] as u32]).collect())
    }

    #[test]
    fn a_search_alone_does_not_wait() {
        let (turns, queued) = (Turns::default(), gauge());
        for number in 0..3 {
            assert_eq!(turns.ask([0, 0], &[5.0], number, &queued, wanted), Some(vec![number as u32, 5]));
        }
        assert_eq!(turns.ask([0, 0], &[5.0], 1, &queued, |_| None), None);
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
                turns.ask([0, 0], &[0.0], 1, queued, |asked| {
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
                    assert_eq!(answer, (number % 3 != 2).then(|| vec![2, number]));
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
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            turns.ask([0, 0], &[1.0], 1, &queued, |_| panic!("injected"))
        }));
        assert!(panicked.is_err());
        assert_eq!(turns.ask([0, 0], &[1.0], 1, &queued, wanted), Some(vec![1, 1]));
    }
}
