//! What came of a run: what was broken when, what clients met meanwhile, and what was found.

use crate::fault::{Class, Kind};
use crate::history::{Action, Operation, Outcome};
use crate::resources::Usage;
use crate::verdict::{Counts, Violation};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Points of a course at most: longer runs have longer steps than a second.
const POINTS_MAX: u64 = 900;
/// For how long after a fault was mended a wait for a write is counted as its own.
const AFTERMATH: Duration = Duration::from_secs(10);

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What it was drawn from.
    pub seed: u64,
    /// The command that draws the same faults again.
    pub command: String,
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Seconds that it was broken for.
    pub seconds: f64,
    /// Operations, by what came of them.
    pub operations: Counts,
    /// How often each class was injected, and seen to take effect.
    pub injections: BTreeMap<Class, usize>,
    /// Seconds in which faults of two classes were there at once.
    pub overlapping_seconds: f64,
    /// How long the cluster took to be whole after the end.
    pub recovery_ms: Option<u64>,
    /// What the longest time was in which no write was acknowledged.
    pub longest_write_gap_ms: u64,
    /// Promises that were not kept.
    pub violations: Vec<Violation>,
    /// Why the run has shown nothing, if it has not.
    pub invalid: Vec<String>,
    /// Why the run came to an end before its time, if it did: a fault of the harness.
    pub failure: Option<String>,
    /// Faults that could not be injected when their turn came, and why.
    pub not_now: Vec<String>,
    /// Classes that cannot be injected here, and why.
    pub missing: BTreeMap<Class, &'static str>,
    /// The nodes' data and logs, kept when something is wrong.
    pub kept: Option<PathBuf>,
    /// The most that each node took.
    pub peaks: Vec<Usage>,
    /// What was looked at when the cluster was mended.
    pub aftermath: Aftermath,
    /// What was broken when.
    pub faults: Vec<Fault>,
    /// How clients fared.
    pub course: Course,
}

/// What was looked at when the cluster was mended.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Aftermath {
    /// Documents that were read through every node.
    pub read: usize,
    /// Those of them that were found by their words and their vector.
    pub found: usize,
    /// Those of them that were gone, and were not found by their last words.
    pub gone: usize,
}

/// A fault that was in the cluster.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// Its class.
    pub class: Class,
    /// What it broke.
    pub kind: Kind,
    /// The nodes that it was done to.
    pub nodes: Vec<usize>,
    /// When it began, in milliseconds from the beginning.
    pub begun_ms: u64,
    /// When it was mended.
    pub mended_ms: u64,
    /// What was seen of it.
    pub seen: Option<String>,
    /// How long the cluster took to be whole again, when that was waited for.
    pub whole_ms: Option<u64>,
    /// The longest time without an acknowledged write, from its beginning until a while after it was mended.
    pub writes_waited_ms: u64,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes: Vec<String> = self.nodes.iter().map(ToString::to_string).collect();
        write!(f, "{} of {}", self.class.name(), nodes.join(", "))?;
        self.seen.as_ref().map_or(Ok(()), |seen| write!(f, ": {seen}"))
    }
}

/// How clients fared, step by step.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Course {
    /// Seconds of a step.
    pub step_seconds: u64,
    /// Operations that were answered, a second.
    pub answered: Vec<f64>,
    /// Operations that were refused, or of unknown outcome, a second.
    pub failed: Vec<f64>,
    /// Half of the answers took at most so long.
    pub median_ms: Vec<f64>,
    /// Of a hundred answers 99 took at most so long.
    pub slow_ms: Vec<f64>,
}

/// How clients fared in the first so many seconds.
pub fn course(operations: &[Operation], seconds: f64) -> Course {
    let whole_seconds = seconds.ceil() as u64;
    let step_seconds = whole_seconds.div_ceil(POINTS_MAX).max(1);
    let steps = whole_seconds.div_ceil(step_seconds) as usize;
    let mut latencies: Vec<Vec<f64>> = vec![Vec::new(); steps];
    let mut failed = vec![0.0; steps];
    for one in operations {
        let step = (one.ended.as_secs() / step_seconds) as usize;
        if step >= steps {
            continue;
        }
        match one.outcome {
            Outcome::Done => latencies[step].push((one.ended - one.begun).as_secs_f64() * 1e3),
            Outcome::Refused | Outcome::Unknown => failed[step] += 1.0 / step_seconds as f64,
        }
    }
    latencies.iter_mut().for_each(|step| step.sort_unstable_by(f64::total_cmp));
    let at = |part: f64| {
        let of = |step: &Vec<f64>| step.get((step.len() as f64 * part) as usize).copied().unwrap_or_default();
        latencies.iter().map(of).collect()
    };
    let answered = latencies.iter().map(|step| step.len() as f64 / step_seconds as f64).collect();
    Course { step_seconds, answered, failed, median_ms: at(0.5), slow_ms: at(0.99) }
}

/// Times in which no write was acknowledged: from one acknowledgement to the next.
pub struct WriteGaps(Vec<Duration>);

impl WriteGaps {
    /// Of a run of so many seconds.
    pub fn new(operations: &[Operation], seconds: f64) -> WriteGaps {
        let end = Duration::from_secs_f64(seconds);
        let written = operations.iter().filter(|one| one.outcome == Outcome::Done && matches!(one.action, Action::Write(_)));
        let mut moments: Vec<Duration> = written.map(|one| one.ended).filter(|ended| *ended <= end).collect();
        moments.extend([Duration::ZERO, end]);
        moments.sort_unstable();
        WriteGaps(moments)
    }

    /// The longest of all.
    pub fn longest(&self) -> Duration {
        self.longest_within(Duration::ZERO, Duration::MAX)
    }

    /// The longest that a fault may have caused: one that lies, in part, between its beginning and a while after its end.
    pub fn of_fault(&self, begun: Duration, mended: Duration) -> Duration {
        self.longest_within(begun, mended + AFTERMATH)
    }

    fn longest_within(&self, from: Duration, until: Duration) -> Duration {
        let gaps = self.0.windows(2).map(|pair| (pair[0].max(from), pair[1]));
        gaps.filter(|(begun, _)| *begun < until).map(|(begun, ended)| ended.saturating_sub(begun)).max().unwrap_or_default()
    }
}

/// Seconds in which two faults or more were there.
pub fn overlapping_seconds(faults: &[Fault]) -> f64 {
    let begun = faults.iter().map(|fault| (fault.begun_ms, 1));
    let mut changes: Vec<(u64, i32)> = begun.chain(faults.iter().map(|fault| (fault.mended_ms, -1))).collect();
    changes.sort_unstable();
    let (mut there, mut since, mut total) = (0, 0, 0);
    for (at, change) in changes {
        if there > 1 {
            total += at - since;
        }
        there += change;
        since = at;
    }
    total as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(begun: u64, ended: u64, outcome: Outcome) -> Operation {
        let at = Duration::from_millis;
        let (action, key) = (Action::Write(Some(begun)), "k".to_owned());
        Operation { client: 0, node: 0, key, action, outcome, begun: at(begun), ended: at(ended) }
    }

    fn fault(begun_ms: u64, mended_ms: u64) -> Fault {
        let (class, kind) = (Class::Kill, Kind::Process);
        Fault { class, kind, nodes: vec![0], begun_ms, mended_ms, seen: None, whole_ms: None, writes_waited_ms: 0 }
    }

    #[test]
    fn gaps_belong_to_the_faults_that_they_fall_into() {
        let operations =
            [write(0, 1_000, Outcome::Done), write(900, 4_000, Outcome::Done), write(4_000, 5_000, Outcome::Refused)];
        let gaps = WriteGaps::new(&operations, 60.0);
        let at = Duration::from_secs;
        assert_eq!(gaps.longest(), at(56));
        assert_eq!(gaps.of_fault(at(2), at(2)), at(56), "what began in its aftermath");
        assert_eq!(WriteGaps::new(&operations, 5.0).of_fault(at(2), at(2)), at(2), "from its beginning on");
    }

    #[test]
    fn a_course_counts_each_operation_in_its_second() {
        let operations = [write(0, 100, Outcome::Done), write(0, 900, Outcome::Done), write(1_000, 1_500, Outcome::Unknown)];
        let course = course(&operations, 2.0);
        assert_eq!((course.answered, course.failed), (vec![2.0, 0.0], vec![0.0, 1.0]));
        assert_eq!((course.median_ms, course.slow_ms), (vec![900.0, 0.0], vec![900.0, 0.0]));
    }

    #[test]
    fn seconds_of_two_faults_are_counted_once() {
        assert_eq!(overlapping_seconds(&[fault(0, 1_000), fault(1_000, 2_000)]), 0.0);
        assert_eq!(overlapping_seconds(&[fault(0, 3_000), fault(1_000, 2_000), fault(1_500, 4_000)]), 2.0);
    }
}
