//! What filters have selected, kept as long as what they selected it from.
//!
//! A cache belongs to something that does not change: to one moment of the text index, or to one view. It goes with it, so that nothing in it can be
//! out of date. Whoever asks for what somebody else is about to make waits for that.

use super::error::PartitionError;
use crate::filter::Filter;
use parking_lot::Mutex;
use ragged_raft::codec;
use std::collections::HashMap;
use std::sync::Arc;

/// Filters that are kept at most: applications have few that come again and again.
const FILTERS_MAX: usize = 128;
/// Bytes that are kept at most. A filter that half of a million rows pass takes half a megabyte.
const BYTES_MAX: usize = 16 << 20;

/// Something that says what it holds.
pub(super) trait MemoryBytes {
    /// Bytes that it holds, roughly.
    fn memory_bytes(&self) -> usize;
}

/// What some filters have selected.
pub(super) struct FilterCache<T> {
    entries: Mutex<Entries<T>>,
}

struct Entries<T> {
    by_filter: HashMap<Vec<u8>, Entry<T>>,
    /// Counts uses, for the order in which entries were used last.
    uses: u64,
}

struct Entry<T> {
    slot: Slot<T>,
    used: u64,
}

/// Locked while what belongs here is being made.
type Slot<T> = Arc<Mutex<Option<Arc<T>>>>;

impl<T> Default for FilterCache<T> {
    fn default() -> Self {
        FilterCache { entries: Mutex::new(Entries { by_filter: HashMap::new(), uses: 0 }) }
    }
}

impl<T> Clone for FilterCache<T> {
    /// Empty: what it belongs to is copied in order to be changed.
    fn clone(&self) -> Self {
        FilterCache::default()
    }
}

impl<T: MemoryBytes> FilterCache<T> {
    /// What a filter has selected, or what `make` makes of it.
    pub(super) fn get(
        &self,
        filter: &Filter,
        make: impl FnOnce() -> Result<T, PartitionError>,
    ) -> Result<Arc<T>, PartitionError> {
        // Filters with the same bytes are the same.
        let Ok(filter) = codec::encode(filter) else { return make().map(Arc::new) };
        let slot = self.slot(filter);
        let mut content = slot.lock();
        if let Some(content) = content.as_ref() {
            return Ok(content.clone());
        }
        let made = make().map(Arc::new);
        *content = made.as_ref().ok().cloned();
        drop(content);
        // Also when nothing was made: the filter itself is there.
        self.bound(FILTERS_MAX, BYTES_MAX);
        made
    }

    fn slot(&self, filter: Vec<u8>) -> Slot<T> {
        let mut entries = self.entries.lock();
        entries.uses += 1;
        let used = entries.uses;
        let entry = entries.by_filter.entry(filter).or_insert_with(|| Entry { slot: Slot::default(), used });
        entry.used = used;
        entry.slot.clone()
    }

    /// Forgets what was used the longest ago until the rest is within bounds.
    fn bound(&self, filters: usize, bytes: usize) {
        let mut entries = self.entries.lock();
        let mut sizes: Vec<(u64, usize)> =
            entries.by_filter.iter().map(|(filter, entry)| (entry.used, entry.bytes(filter))).collect();
        sizes.sort_unstable_by(|one, other| other.cmp(one));
        let (mut count, mut total) = (0, 0);
        // One that is too large for all of it drives out nothing but itself.
        sizes.retain(|(_, size)| {
            let fits = count < filters && total + size <= bytes;
            (count, total) = if fits { (count + 1, total + size) } else { (count, total) };
            fits
        });
        entries.by_filter.retain(|_, entry| sizes.iter().any(|(used, _)| *used == entry.used));
    }
}

impl<T: MemoryBytes> MemoryBytes for FilterCache<T> {
    fn memory_bytes(&self) -> usize {
        self.entries.lock().by_filter.iter().map(|(filter, entry)| entry.bytes(filter)).sum()
    }
}

impl<T: MemoryBytes> Entry<T> {
    /// What is being made counts nothing yet.
    fn bytes(&self, filter: &[u8]) -> usize {
        let content = self.slot.try_lock().and_then(|content| content.as_ref().map(|content| content.memory_bytes()));
        filter.len() + size_of::<Self>() + content.unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may fail
mod tests {
    use super::*;
    use crate::filter::{Condition, Scalar, Test};
    use std::sync::atomic::{AtomicUsize, Ordering};

    impl MemoryBytes for usize {
        fn memory_bytes(&self) -> usize {
            *self
        }
    }

    fn filter(number: usize) -> Filter {
        let test = Test::In(vec![Scalar::Text(number.to_string())]);
        Filter { must: vec![Condition { field: "a".to_owned(), test }], ..Default::default() }
    }

    fn is_kept(cache: &FilterCache<usize>, number: usize) -> bool {
        let missing = || Err(PartitionError::Dimension { expected: 0, found: 0 });
        cache.get(&filter(number), missing).is_ok()
    }

    #[test]
    fn many_that_want_the_same_at_once_have_it_made_once() {
        let (cache, made) = (FilterCache::default(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let make = || {
                        made.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(7)
                    };
                    assert_eq!(*cache.get(&filter(1), make).unwrap(), 7);
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn what_was_used_the_longest_ago_goes_first() {
        let cache = FilterCache::default();
        for number in 0..5 {
            cache.get(&filter(number), || Ok(100)).unwrap();
        }
        assert!(is_kept(&cache, 0));
        cache.bound(3, usize::MAX);
        assert_eq!([0, 1, 2, 3, 4].map(|number| is_kept(&cache, number)), [true, false, false, true, true]);
        for number in 5..5 + FILTERS_MAX {
            cache.get(&filter(number), || Ok(0)).unwrap();
        }
        assert!(!is_kept(&cache, 0) && is_kept(&cache, FILTERS_MAX + 4));
    }

    #[test]
    fn what_takes_too_much_is_not_kept() {
        let cache = FilterCache::default();
        cache.get(&filter(1), || Ok(BYTES_MAX / 2)).unwrap();
        cache.get(&filter(2), || Ok(BYTES_MAX + 1)).unwrap();
        assert!(is_kept(&cache, 1) && !is_kept(&cache, 2));
        cache.get(&filter(3), || Ok(BYTES_MAX / 3)).unwrap();
        assert!(is_kept(&cache, 1) && is_kept(&cache, 3) && cache.memory_bytes() > BYTES_MAX / 2);
        cache.get(&filter(4), || Ok(BYTES_MAX / 3)).unwrap();
        assert!(!is_kept(&cache, 1) && is_kept(&cache, 3) && is_kept(&cache, 4) && cache.memory_bytes() <= BYTES_MAX);
    }

    #[test]
    fn a_failure_is_not_kept() {
        let cache = FilterCache::default();
        assert!(!is_kept(&cache, 1));
        assert_eq!(*cache.get(&filter(1), || Ok(3)).unwrap(), 3);
    }

    #[test]
    fn a_copy_is_empty() {
        let cache = FilterCache::default();
        cache.get(&filter(1), || Ok(3)).unwrap();
        assert!(!is_kept(&cache.clone(), 1));
    }
}
