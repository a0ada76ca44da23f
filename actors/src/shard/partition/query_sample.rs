//! A sample of the queries that searches bring, which indexes are tried with: how hard an index must be searched depends on them.

use half::f16;
use parking_lot::Mutex;
use ragged_kernels::exact;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// Queries that are kept, all different.
const KEPT_MAX: usize = 512;
/// With fewer, a trial says little.
const ENOUGH: usize = 256;
/// As many of all queries are taken as keep the sample even, but one in so many at the least, so that it follows what is asked for.
const TAKEN_OF_MAX: u64 = 16;
/// An index is tried first when so many queries have been seen: the first few are often of one kind.
const SEEN_AT_FIRST: u64 = 1024;
/// And again when so many times as many have been seen as at its last trial,
const GROWTH: u64 = 2;
/// and at the latest after so many.
const SEEN_BETWEEN_MAX: u64 = 1 << 16;

/// The sample.
#[derive(Default)]
pub(super) struct QuerySample {
    seen: AtomicU64,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    queries: Vec<Query>,
    /// Hashes of them: the same query again and again would say nothing of others.
    hashes: HashSet<u64>,
}

struct Query {
    values: Vec<f16>,
    hash: u64,
}

impl QuerySample {
    /// Takes a query in, or not. Never waits.
    pub(super) fn note(&self, query: &[f32]) {
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        if !number.is_multiple_of((number / KEPT_MAX as u64).clamp(1, TAKEN_OF_MAX)) {
            return;
        }
        let Some(mut kept) = self.kept.try_lock() else { return };
        let values = exact::to_f16(query);
        let mut hasher = DefaultHasher::new();
        bytemuck::cast_slice::<f16, u16>(&values).hash(&mut hasher);
        kept.take(Query { values, hash: hasher.finish() });
    }

    /// How many queries have been seen, when an index is due that was tried last when so many had been.
    pub(super) fn due_after(&self, tried_at: u64) -> Option<u64> {
        let seen = self.seen.load(Ordering::Relaxed);
        let next = tried_at.saturating_mul(GROWTH).min(tried_at.saturating_add(SEEN_BETWEEN_MAX)).max(SEEN_AT_FIRST);
        (seen >= next && self.kept.lock().queries.len() >= ENOUGH).then_some(seen)
    }

    /// The queries, one after the other.
    pub(super) fn queries(&self) -> Vec<f32> {
        let kept = self.kept.lock();
        kept.queries.iter().flat_map(|query| query.values.iter().map(|value| value.to_f32())).collect()
    }

    /// Bytes of memory that it holds, roughly.
    pub(super) fn memory_bytes(&self) -> usize {
        let kept = self.kept.lock();
        kept.queries.iter().map(|query| size_of_val(&*query.values) + 2 * size_of::<Query>()).sum()
    }
}

impl Kept {
    fn take(&mut self, query: Query) {
        if !self.hashes.insert(query.hash) {
            return;
        }
        if self.queries.len() < KEPT_MAX {
            self.queries.push(query);
            return;
        }
        // A hash is as good as a draw.
        let place = query.hash as usize % self.queries.len();
        let replaced = std::mem::replace(&mut self.queries[place], query);
        self.hashes.remove(&replaced.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(number: usize) -> Vec<f32> {
        vec![number as f32, 1.0]
    }

    #[test]
    fn an_index_is_due_when_enough_different_queries_were_seen_and_then_ever_more_seldom() {
        let sample = QuerySample::default();
        (0..10_000).for_each(|_| sample.note(&query(0)));
        assert_eq!(sample.due_after(0), None, "one query is no sample");
        (1..ENOUGH * TAKEN_OF_MAX as usize).for_each(|number| sample.note(&query(number)));
        let seen = 10_000 + (ENOUGH as u64 * TAKEN_OF_MAX) - 1;
        assert_eq!(sample.due_after(0), Some(seen));
        assert_eq!(sample.due_after(seen), None);
        assert_eq!(sample.due_after(seen / GROWTH), Some(seen));
        assert!(sample.queries().len() >= 2 * ENOUGH);
        let much = 100 * SEEN_BETWEEN_MAX;
        sample.seen.store(much + SEEN_BETWEEN_MAX, Ordering::Relaxed);
        assert_eq!((sample.due_after(much).is_some(), sample.due_after(much + 1)), (true, None));
    }

    #[test]
    fn a_sample_is_bounded_and_follows_what_is_asked_for() {
        let sample = QuerySample::default();
        (0..ENOUGH).for_each(|number| sample.note(&query(number)));
        (1000..1000 + KEPT_MAX * TAKEN_OF_MAX as usize * 8).for_each(|number| sample.note(&query(number)));
        let queries = sample.queries();
        assert_eq!(queries.len(), 2 * KEPT_MAX);
        let old = queries.chunks(2).filter(|query| query[0] < ENOUGH as f32).count();
        assert!(old < ENOUGH / 16, "{old} of the first are left");
        assert!(sample.memory_bytes() >= KEPT_MAX * 4);
    }
}
