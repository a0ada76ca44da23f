//! A second replica is asked when the first takes longer than nineteen of twenty answers to reads of its kind do ("The Tail at Scale", Dean and
//! Barroso, 2013), for one read in ten at most; and a node that was overtaken so is asked after the others for a while.

use crate::shard::request::ShardRequest;
use parking_lot::Mutex;
use prometheus::{IntCounter, Registry};
use ragged_raft::ids::NodeId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a replica is waited for at first, before anything is known, and at least and at most.
const PATIENCE: Duration = Duration::from_millis(200);
const PATIENCE_RANGE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// The share of answers that come within the patience.
const USUAL: f64 = 0.95;
/// By how much of itself the patience moves towards what is seen.
const STEP: f64 = 0.05;
/// Second replicas are asked for one read in so many at most, and for so many in a row: where everything is slow they would make it slower.
const READS_PER_HEDGE: i64 = 10;
const HEDGES_IN_A_ROW: i64 = 20;
/// A node that was overtaken is asked after the others for so long.
const OVERTAKEN: Duration = Duration::from_secs(5);

/// Reads that take about as long as each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Search,
    Point,
    Listing,
}

fn kind(request: &ShardRequest) -> Kind {
    match request {
        ShardRequest::Search { .. } => Kind::Search,
        ShardRequest::Chunks { .. }
        | ShardRequest::Document { .. }
        | ShardRequest::Counts { .. }
        | ShardRequest::Job { .. }
        | ShardRequest::ReadIndex
        | ShardRequest::Propose { .. } => Kind::Point,
        ShardRequest::Matching { .. }
        | ShardRequest::Documents { .. }
        | ShardRequest::Jobs { .. }
        | ShardRequest::UnfinishedJobs
        | ShardRequest::JobPayload { .. } => Kind::Listing,
    }
}

/// How long replicas take to answer, and what came of asking a second one.
pub struct Hedge {
    /// Microseconds within which a replica usually answers, by kind.
    usual: [AtomicU64; 3],
    /// Reads that have not been used up by hedges.
    budget: AtomicI64,
    /// Nodes that another one was faster than, and when.
    overtaken: Mutex<HashMap<NodeId, Instant>>,
    asked: IntCounter,
    won: IntCounter,
}

impl Hedge {
    /// Registers its metrics.
    pub fn register(registry: &Registry) -> Result<Hedge, prometheus::Error> {
        let asked = IntCounter::new(
            "ragged_hedged_reads_total",
            "Reads for which a second replica was asked, since the first was slow.",
        )?;
        let won = IntCounter::new("ragged_hedged_reads_won_total", "Reads that the second replica answered first.")?;
        registry.register(Box::new(asked.clone()))?;
        registry.register(Box::new(won.clone()))?;
        Ok(Hedge {
            usual: [(); 3].map(|()| AtomicU64::new(PATIENCE.as_micros() as u64)),
            budget: AtomicI64::new(HEDGES_IN_A_ROW * READS_PER_HEDGE),
            overtaken: Mutex::default(),
            asked,
            won,
        })
    }

    /// How long a replica is waited for before another is asked besides.
    pub fn patience(&self, request: &ShardRequest) -> Duration {
        let usual = Duration::from_micros(self.usual[kind(request) as usize].load(Ordering::Relaxed));
        usual.clamp(PATIENCE_RANGE.0, PATIENCE_RANGE.1)
    }

    /// Whether a second replica may be asked; counts it.
    pub fn may_ask(&self) -> bool {
        let granted = self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            (left >= READS_PER_HEDGE).then_some(left - READS_PER_HEDGE)
        });
        if granted.is_ok() {
            self.asked.inc();
        }
        granted.is_ok()
    }

    /// Notes how long the replica took that answered a read.
    pub fn note(&self, request: &ShardRequest, took: Duration) {
        let _ = self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            (left < HEDGES_IN_A_ROW * READS_PER_HEDGE).then_some(left + 1) // full is full
        });
        let usual = &self.usual[kind(request) as usize];
        // Of two at once one may be lost: it is an estimate.
        let known = usual.load(Ordering::Relaxed) as f64;
        let late = took.as_micros() as f64 > known;
        let moved = known + STEP * known * if late { USUAL } else { USUAL - 1.0 };
        let range = (PATIENCE_RANGE.0.as_micros() as f64, PATIENCE_RANGE.1.as_micros() as f64);
        usual.store(moved.clamp(range.0, range.1).round() as u64, Ordering::Relaxed);
    }

    /// Notes that a second replica has answered while the one that was asked first, on `node`, had not.
    pub fn note_overtaken(&self, node: NodeId) {
        self.won.inc();
        let mut overtaken = self.overtaken.lock();
        overtaken.retain(|_, when| when.elapsed() < OVERTAKEN);
        overtaken.insert(node, Instant::now());
    }

    /// Whether a node is asked after the others.
    pub fn is_overtaken(&self, node: NodeId) -> bool {
        self.overtaken.lock().get(&node).is_some_and(|when| when.elapsed() < OVERTAKEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patience_comes_to_what_nineteen_of_twenty_reads_keep_to() {
        let hedge = Hedge::register(&Registry::new()).unwrap();
        let (request, other) = (ShardRequest::ReadIndex, ShardRequest::UnfinishedJobs);
        // Times are spread evenly from 0 to 100 ms.
        for number in 0..20_000u64 {
            hedge.note(&request, Duration::from_micros(number * 7_919 % 100_000));
        }
        let patience = hedge.patience(&request).as_millis();
        assert!((85..=100).contains(&patience), "{patience}");
        assert_eq!(hedge.patience(&other), PATIENCE, "another kind is not touched");
        (0..2_000).for_each(|_| hedge.note(&request, Duration::ZERO));
        assert_eq!(hedge.patience(&request), PATIENCE_RANGE.0);
        (0..2_000).for_each(|_| hedge.note(&request, Duration::from_secs(60)));
        assert_eq!(hedge.patience(&request), PATIENCE_RANGE.1);
    }

    #[test]
    fn hedges_are_a_tenth_of_the_reads_at_most() {
        let hedge = Hedge::register(&Registry::new()).unwrap();
        let granted = (0..1_000).filter(|_| hedge.may_ask()).count() as i64;
        assert_eq!(granted, HEDGES_IN_A_ROW);
        (0..50).for_each(|_| hedge.note(&ShardRequest::ReadIndex, Duration::ZERO));
        assert_eq!((0..1_000).filter(|_| hedge.may_ask()).count(), 5);
        assert!(!hedge.is_overtaken(NodeId(1)));
        hedge.note_overtaken(NodeId(1));
        assert!(hedge.is_overtaken(NodeId(1)) && !hedge.is_overtaken(NodeId(2)));
    }
}
