//! Whether the operations on one document can be put in an order that explains every answer, each at some moment between its beginning and its end
//! (Herlihy and Wing, 1990), by the search of Wing and Gong with Lowe's memory of what was tried (2017).

use crate::history::{Action, Operation, Outcome, Value};
use std::collections::HashSet;
use std::time::Duration;

/// An operation as the search sees it.
#[derive(Debug, Clone, Copy)]
struct Step {
    begun: Duration,
    /// None when it may be carried out at any time from its beginning on, or never.
    ended: Option<Duration>,
    action: Action,
}

/// The longest explained beginning of a history that no order explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unexplained {
    /// Positions, among the operations that were given, of those that no order could go on with.
    pub stuck_at: Vec<usize>,
}

/// Checks the operations on one document, in any order. Refused ones, and reads that promise less, do not count.
pub fn check(operations: &[&Operation]) -> Result<(), Unexplained> {
    let counted: Vec<(usize, Step)> = operations.iter().enumerate().filter_map(|(at, one)| Some((at, step(one)?))).collect();
    let mut order: Vec<usize> = (0..counted.len()).collect();
    order.sort_by_key(|index| counted[*index].1.begun);
    let steps: Vec<Step> = order.iter().map(|index| counted[*index].1).collect();
    search(&steps).map_err(|stuck| Unexplained { stuck_at: stuck.into_iter().map(|index| counted[order[index]].0).collect() })
}

fn step(operation: &Operation) -> Option<Step> {
    let ended = match (operation.outcome, operation.action) {
        (_, Action::SessionRead(_)) | (Outcome::Refused, _) | (Outcome::Unknown, Action::Read(_)) => return None,
        (Outcome::Done, _) => Some(operation.ended),
        (Outcome::Unknown, Action::Write(_)) => None,
    };
    Some(Step { begun: operation.begun, ended, action: operation.action })
}

/// Which steps have been carried out: a bit each.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Carried(Vec<u64>);

impl Carried {
    fn has(&self, step: usize) -> bool {
        self.0[step / 64] & (1 << (step % 64)) != 0
    }

    fn flip(&mut self, step: usize) {
        self.0[step / 64] ^= 1 << (step % 64);
    }
}

/// Depth first, one step at a time; a set of carried out steps with the value that it left is tried once.
fn search(steps: &[Step]) -> Result<(), Vec<usize>> {
    let required = steps.iter().filter(|step| step.ended.is_some()).count();
    let mut carried = Carried(vec![0; steps.len().div_ceil(64)]);
    let mut tried = HashSet::new();
    // The path: each step that was carried out, with the value before it.
    let mut path: Vec<(usize, Value)> = Vec::new();
    let (mut value, mut done, mut from) = (None, 0, 0);
    let (mut farthest, mut stuck) = (0, Vec::new());
    loop {
        if done == required {
            return Ok(());
        }
        let candidates = candidates(steps, &carried);
        let next = candidates.iter().copied().filter(|index| *index >= from).find_map(|index| {
            let after = carry_out(steps[index].action, value)?;
            let mut with = carried.clone();
            with.flip(index);
            tried.insert((with, after)).then_some((index, after))
        });
        if done >= farthest {
            farthest = done;
            stuck = candidates;
        }
        match next {
            Some((index, after)) => {
                path.push((index, value));
                carried.flip(index);
                done += usize::from(steps[index].ended.is_some());
                (value, from) = (after, 0);
            }
            None => {
                let Some((index, before)) = path.pop() else { return Err(stuck) };
                carried.flip(index);
                done -= usize::from(steps[index].ended.is_some());
                (value, from) = (before, index + 1);
            }
        }
    }
}

/// Steps that may be next: those not carried out that began before any other such step ended.
fn candidates(steps: &[Step], carried: &Carried) -> Vec<usize> {
    let left = || (0..steps.len()).filter(|index| !carried.has(*index));
    let first_end = left().filter_map(|index| steps[index].ended).min();
    left().filter(|index| first_end.is_none_or(|end| steps[*index].begun <= end)).collect()
}

/// The value after a step; none when the step cannot be carried out on this value.
fn carry_out(action: Action, value: Value) -> Option<Value> {
    match action {
        Action::Write(written) => Some(written),
        Action::Read(read) | Action::SessionRead(read) => (read == value).then_some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn operation(action: Action, begun: u64, ended: u64, outcome: Outcome) -> Operation {
        let at = Duration::from_millis;
        Operation { client: 0, node: 0, key: "k".into(), action, outcome, begun: at(begun), ended: at(ended) }
    }

    fn holds(operations: &[Operation]) -> bool {
        check(&operations.iter().collect::<Vec<_>>()).is_ok()
    }

    #[test]
    fn a_read_sees_what_was_acknowledged_before_it() {
        let write = operation(Action::Write(Some(1)), 0, 10, Outcome::Done);
        assert!(holds(&[write.clone(), operation(Action::Read(Some(1)), 11, 12, Outcome::Done)]));
        assert!(!holds(&[write.clone(), operation(Action::Read(None), 11, 12, Outcome::Done)]), "a stale read");
        assert!(holds(&[write.clone(), operation(Action::Read(None), 5, 12, Outcome::Done)]), "a read at the same time");
        assert!(!holds(&[operation(Action::Read(Some(7)), 11, 12, Outcome::Done)]), "a value from nowhere");
        let other = operation(Action::Write(Some(2)), 20, 30, Outcome::Done);
        let back =
            [operation(Action::Read(Some(2)), 31, 32, Outcome::Done), operation(Action::Read(Some(1)), 33, 34, Outcome::Done)];
        assert!(!holds(&[vec![write, other], back.to_vec()].concat()), "a value that comes back");
    }

    #[test]
    fn an_unknown_write_may_take_effect_once_and_late() {
        let unknown = operation(Action::Write(Some(1)), 0, 10, Outcome::Unknown);
        let read = |value, at| operation(Action::Read(value), at, at + 1, Outcome::Done);
        assert!(holds(&[unknown.clone(), read(None, 20), read(Some(1), 30), read(Some(1), 40)]));
        assert!(!holds(&[unknown.clone(), read(Some(1), 20), read(None, 30)]), "it does not go away again");
        let refused = operation(Action::Write(Some(1)), 0, 10, Outcome::Refused);
        assert!(!holds(&[refused, read(Some(1), 20)]), "what was refused has no effect");
    }

    /// A register that is one: operations take effect at a moment of their own.
    fn register(count: usize) -> impl Strategy<Value = Vec<Operation>> {
        let one = (0u8..4, 0u64..20, 0u64..20, any::<bool>());
        proptest::collection::vec(one, 1..count).prop_map(|seeds| {
            let (mut value, mut operations) = (None, Vec::new());
            for (number, (kind, before, after, known)) in (0u64..).zip(seeds) {
                let moment = 10 * number + 30;
                let outcome = if known || kind >= 2 { Outcome::Done } else { Outcome::Unknown };
                let action = match kind {
                    0 => Action::Write(Some(number)),
                    1 => Action::Write(None),
                    _ => Action::Read(value),
                };
                if let Action::Write(written) = action {
                    value = written;
                }
                operations.push(operation(action, moment - before, moment + after, outcome));
            }
            operations
        })
    }

    proptest! {
        #[test]
        fn what_a_register_did_is_explained(operations in register(40)) {
            prop_assert!(holds(&operations));
        }

        #[test]
        fn a_value_that_nobody_wrote_is_not(operations in register(40), at in any::<prop::sample::Index>()) {
            let mut operations = operations;
            let index = at.index(operations.len());
            let moment = operations[index].ended;
            operations.push(Operation { action: Action::Read(Some(999_999)), outcome: Outcome::Done, begun: moment, ended: moment, ..operations[index].clone() });
            prop_assert!(!holds(&operations));
        }
    }
}
