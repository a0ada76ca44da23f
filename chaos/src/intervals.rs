//! The second method, which knows nothing of the first: conditions that every read must meet, looked at one by one. It finds less, and cannot err by
//! searching wrongly. It also checks reads that promise less than the order of all operations: those of a session.

use crate::history::{Action, Operation, Outcome, Value};

/// A read that saw what it must not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Position of the read among the operations that were given.
    pub read: usize,
    /// What is wrong.
    pub why: String,
}

/// Checks the reads of one document.
pub fn check(operations: &[&Operation]) -> Vec<Fault> {
    operations.iter().enumerate().filter_map(|(read, one)| Some(Fault { read, why: fault(operations, one)? })).collect()
}

fn fault(operations: &[&Operation], read: &Operation) -> Option<String> {
    let (value, is_strong) = match (read.action, read.outcome) {
        (Action::Read(value), Outcome::Done) => (value, true),
        (Action::SessionRead(value), Outcome::Done) => (value, false),
        _ => return None,
    };
    let writers: Vec<&&Operation> = writes(operations).filter(|write| write.action == Action::Write(value)).collect();
    // Nothing was there before the first write.
    let mut begun: Vec<&&&Operation> = writers.iter().filter(|write| write.begun <= read.ended).collect();
    if begun.is_empty() && value.is_some() {
        return Some(format!("{} was not written by anyone before", shown(value)));
    }
    // A write that must be seen, after which the value was written by nobody: it had been replaced before the read began.
    let must_be_seen = writes(operations).filter(|write| {
        let acknowledged = write.outcome == Outcome::Done && write.ended < read.begun;
        acknowledged && write.action != Action::Write(value) && (is_strong || write.client == read.client)
    });
    for seen in must_be_seen {
        begun.retain(|write| write.outcome == Outcome::Unknown || write.ended >= seen.begun);
        if begun.is_empty() {
            let Action::Write(newer) = seen.action else { continue };
            return Some(format!("{} had been replaced by {} before the read began", shown(value), shown(newer)));
        }
    }
    None
}

/// Writes that may have taken effect.
fn writes<'a>(operations: &'a [&Operation]) -> impl Iterator<Item = &'a &'a Operation> {
    operations.iter().filter(|one| matches!(one.action, Action::Write(_)) && one.outcome != Outcome::Refused)
}

fn shown(value: Value) -> String {
    value.map_or("the document's absence".to_owned(), |number| format!("value {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn operation(client: usize, action: Action, begun: u64, ended: u64) -> Operation {
        let at = Duration::from_millis;
        Operation { client, node: 0, key: "k".into(), action, outcome: Outcome::Done, begun: at(begun), ended: at(ended) }
    }

    fn faults(operations: &[Operation]) -> usize {
        check(&operations.iter().collect::<Vec<_>>()).len()
    }

    #[test]
    fn stale_reads_are_found_and_concurrent_ones_are_not() {
        let writes = [operation(1, Action::Write(Some(1)), 0, 10), operation(1, Action::Write(Some(2)), 20, 30)];
        let with = |read: Operation| [writes.to_vec(), vec![read]].concat();
        assert_eq!(faults(&with(operation(2, Action::Read(Some(2)), 31, 32))), 0);
        assert_eq!(faults(&with(operation(2, Action::Read(Some(1)), 31, 32))), 1, "replaced before the read began");
        assert_eq!(faults(&with(operation(2, Action::Read(Some(1)), 25, 32))), 0, "replaced meanwhile");
        assert_eq!(faults(&with(operation(2, Action::Read(None), 31, 32))), 1, "never deleted");
        assert_eq!(faults(&with(operation(2, Action::Read(Some(9)), 31, 32))), 1, "never written");
        assert_eq!(faults(&with(operation(2, Action::SessionRead(Some(1)), 31, 32))), 0, "another client's session");
        assert_eq!(faults(&with(operation(1, Action::SessionRead(Some(1)), 31, 32))), 1, "its own session");
    }
}
