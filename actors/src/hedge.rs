//! A second replica is asked when the first takes longer than reads of its kind usually do ("The Tail at Scale", Dean and Barroso, 2013): about one
//! read in twenty, by its very definition.

use crate::shard::request::ShardRequest;
use prometheus::{IntCounter, Registry};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a replica is waited for at first, before anything is known, and at least and at most.
const PATIENCE: Duration = Duration::from_millis(200);
const PATIENCE_RANGE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));
/// The share of reads that answer within the patience.
const USUAL: f64 = 0.95;
/// By how much of itself the patience moves towards what is seen.
const STEP: f64 = 0.05;

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
    /// Microseconds within which a read is usually answered, by kind.
    usual: [AtomicU64; 3],
    /// Second replicas that were asked.
    pub asked: IntCounter,
    /// Those that answered first.
    pub won: IntCounter,
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
        Ok(Hedge { usual: [(); 3].map(|()| AtomicU64::new(PATIENCE.as_micros() as u64)), asked, won })
    }

    /// How long a replica is waited for before another is asked besides.
    pub fn patience(&self, request: &ShardRequest) -> Duration {
        let usual = Duration::from_micros(self.usual[kind(request) as usize].load(Ordering::Relaxed));
        usual.clamp(PATIENCE_RANGE.0, PATIENCE_RANGE.1)
    }

    /// Notes how long the first replica took, or how long it was waited for in vain.
    pub fn note(&self, request: &ShardRequest, took: Duration) {
        let usual = &self.usual[kind(request) as usize];
        // Of two at once one may be lost: it is an estimate.
        let known = usual.load(Ordering::Relaxed) as f64;
        let late = took.as_micros() as f64 > known;
        let moved = known + STEP * known * if late { USUAL } else { USUAL - 1.0 };
        let range = (PATIENCE_RANGE.0.as_micros() as f64, PATIENCE_RANGE.1.as_micros() as f64);
        usual.store(moved.clamp(range.0, range.1).round() as u64, Ordering::Relaxed);
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
}
