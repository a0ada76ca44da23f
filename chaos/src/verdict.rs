//! What a history, and the cluster after it was mended, say of the promises.

use crate::history::{Action, Operation, Outcome};
use crate::{intervals, linearizability};
use ragged_client::ClusterShard;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The check that found it.
    pub check: &'static str,
    /// What was found.
    pub what: String,
}

/// How many operations there were, and what came of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Acknowledged, or answered.
    pub done: usize,
    /// Refused.
    pub refused: usize,
    /// Of unknown outcome.
    pub unknown: usize,
}

/// Counts the operations.
pub fn count(operations: &[Operation]) -> Counts {
    let of = |outcome| operations.iter().filter(|one| one.outcome == outcome).count();
    Counts { done: of(Outcome::Done), refused: of(Outcome::Refused), unknown: of(Outcome::Unknown) }
}

/// Checks the operations on each document, by two methods.
pub fn check_history(operations: &[Operation]) -> Vec<Violation> {
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    let mut violations = Vec::new();
    for (key, operations) in by_key {
        if let Err(unexplained) = linearizability::check(&operations) {
            let stuck: Vec<String> = unexplained.stuck_at.iter().take(8).map(|at| describe(operations[*at])).collect();
            let what = format!("{key}: no order explains what was answered; it goes no further than {}", stuck.join("; "));
            violations.push(Violation { check: "linearizability", what });
        }
        for fault in intervals::check(&operations) {
            let read = operations[fault.read];
            let check = if matches!(read.action, Action::SessionRead(_)) { "session" } else { "intervals" };
            violations.push(Violation { check, what: format!("{key}: {}: {}", describe(read), fault.why) });
        }
    }
    violations
}

fn describe(one: &Operation) -> String {
    let Operation { client, node, action, outcome, begun, ended, .. } = one;
    format!(
        "{action:?} by client {client} at node {node} from {:.3} to {:.3} s ({outcome:?})",
        begun.as_secs_f64(),
        ended.as_secs_f64()
    )
}

/// Checks that all replicas of every shard hold the same at the same index; whether they are all there yet.
pub fn check_replicas(shards: &[ClusterShard], nodes: usize) -> Result<bool, Violation> {
    let mut complete = true;
    for shard in shards {
        let mut by_index: HashMap<u64, HashSet<&str>> = HashMap::new();
        for replica in &shard.replicas {
            if let (Some(index), Some(hash)) = (replica.hash_index, &replica.state_hash) {
                by_index.entry(index).or_default().insert(hash);
            }
        }
        if let Some((index, hashes)) = by_index.iter().find(|(_, hashes)| hashes.len() > 1) {
            let what = format!("shard {}: replicas differ at index {index}: {hashes:?}", shard.id);
            return Err(Violation { check: "replicas", what });
        }
        let hashed = shard.replicas.iter().filter(|replica| replica.state_hash.is_some()).count();
        complete &= by_index.len() == 1 && hashed == nodes.min(3) && shard.leader.is_some();
    }
    Ok(complete)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ragged_client::{ClusterReplica, ReplicaRole, ReplicaState};
    use std::time::Duration;

    fn shard(states: [(u64, &str); 3]) -> ClusterShard {
        let replica = |(index, hash): (u64, &str)| ClusterReplica {
            node: 1,
            role: ReplicaRole::Follower,
            state: ReplicaState::Running,
            applied_index: Some(index),
            hash_index: Some(index),
            state_hash: Some(hash.to_owned()),
        };
        ClusterShard { id: 0, leader: Some(1), replicas: states.map(replica).to_vec() }
    }

    #[test]
    fn replicas_that_differ_at_one_index_are_found() {
        assert_eq!(check_replicas(&[shard([(7, "a"), (7, "a"), (7, "a")])], 3), Ok(true));
        assert_eq!(check_replicas(&[shard([(7, "a"), (7, "a"), (8, "b")])], 3), Ok(false), "one is behind");
        let found = check_replicas(&[shard([(7, "a"), (7, "b"), (8, "b")])], 3);
        assert!(found.is_err_and(|violation| violation.what.contains("index 7")));
    }

    #[test]
    fn each_check_says_what_it_found() {
        let at = Duration::from_millis;
        let operation = |action, begun, ended| Operation {
            client: 1,
            node: 2,
            key: "k".into(),
            action,
            outcome: Outcome::Done,
            begun: at(begun),
            ended: at(ended),
        };
        let (one, two) = (operation(Action::Write(Some(1)), 0, 1), operation(Action::Write(Some(2)), 2, 3));
        let stale = operation(Action::Read(Some(1)), 4, 5);
        let found = check_history(&[one.clone(), two.clone(), stale]);
        assert_eq!(found.iter().map(|one| one.check).collect::<Vec<_>>(), ["linearizability", "intervals"]);
        let stale = operation(Action::SessionRead(Some(1)), 4, 5);
        assert_eq!(
            check_history(&[one.clone(), two.clone(), stale]).iter().map(|one| one.check).collect::<Vec<_>>(),
            ["session"]
        );
        assert_eq!(check_history(&[one, two.clone(), operation(Action::Read(Some(2)), 4, 5)]), []);
        assert_eq!(count(&[two]), Counts { done: 1, refused: 0, unknown: 0 });
    }
}
