//! Vectors of queries that were embedded lately: a query that is asked again need not be.
//!
//! What one tenant has asked is of no use to another, or the time that an answer takes would tell who has asked what. Model and revision are the same for
//! all of them: a node has one model for as long as it runs.

use prometheus::{IntCounter, Registry};
use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};
use ragged_raft::ids::TenantId;
use std::sync::Arc;

/// Bytes of an entry beside its text and its vector, roughly.
const ENTRY_BYTES: usize = 192;
/// Longer queries are not kept: they are seldom asked twice.
const QUERY_BYTES_MAX: usize = 4 << 10;
/// Entries that there is room for at first.
const ENTRIES: usize = 64;

/// A query, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Asked {
    tenant: TenantId,
    query: Box<str>,
}

/// The same, to look it up.
#[derive(Hash)]
struct Asking<'a> {
    tenant: TenantId,
    query: &'a str,
}

impl Equivalent<Asked> for Asking<'_> {
    fn equivalent(&self, asked: &Asked) -> bool {
        self.tenant == asked.tenant && *self.query == *asked.query
    }
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Asked, Arc<[f32]>> for Bytes {
    fn weight(&self, asked: &Asked, vector: &Arc<[f32]>) -> u64 {
        (ENTRY_BYTES + asked.query.len() + size_of_val::<[f32]>(vector)) as u64
    }
}

/// Vectors by queries, in bounded memory.
pub struct QueryCache {
    vectors: Cache<Asked, Arc<[f32]>, Bytes>,
    found: IntCounter,
    embedded: IntCounter,
}

impl QueryCache {
    /// A cache of at most so many bytes, and its metrics.
    pub fn register(bytes: usize, registry: &Registry) -> Result<QueryCache, prometheus::Error> {
        let found = IntCounter::new("ragged_query_cache_hits_total", "Queries whose vectors were in memory.")?;
        let embedded = IntCounter::new("ragged_query_cache_misses_total", "Queries that were embedded.")?;
        registry.register(Box::new(found.clone()))?;
        registry.register(Box::new(embedded.clone()))?;
        Ok(QueryCache { vectors: Cache::with_weighter(ENTRIES, bytes as u64, Bytes), found, embedded })
    }

    /// The vector of a query that this tenant has asked lately.
    pub(super) fn get(&self, tenant: TenantId, query: &str) -> Option<Arc<[f32]>> {
        let vector = self.vectors.get(&Asking { tenant, query });
        let counter = if vector.is_some() { &self.found } else { &self.embedded };
        counter.inc();
        vector
    }

    /// Keeps the vector of a tenant's query for later.
    pub(super) fn keep(&self, tenant: TenantId, query: &str, vector: &Arc<[f32]>) {
        if query.len() <= QUERY_BYTES_MAX {
            self.vectors.insert(Asked { tenant, query: query.into() }, Arc::clone(vector));
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.vectors.weight() as usize
    }

    /// Bytes that it may hold.
    pub fn bytes_max(&self) -> usize {
        self.vectors.capacity() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{BuildHasher, Hasher, RandomState};

    const ONE: TenantId = TenantId(1);
    const OTHER: TenantId = TenantId(2);

    fn cache(bytes: usize) -> QueryCache {
        QueryCache::register(bytes, &Registry::new()).unwrap()
    }

    #[test]
    fn a_tenant_finds_its_own_queries_and_nobody_elses() {
        let cache = cache(1 << 20);
        assert_eq!(cache.get(ONE, "albatross"), None);
        let vector: Arc<[f32]> = [0.6, 0.8].into();
        cache.keep(ONE, "albatross", &vector);
        assert_eq!(cache.get(ONE, "albatross"), Some(vector));
        assert_eq!((cache.get(OTHER, "albatross"), cache.get(ONE, "Albatross")), (None, None));
        assert_eq!((cache.found.get(), cache.embedded.get()), (1, 3));
    }

    #[test]
    fn it_holds_no_more_than_it_may_and_no_long_queries() {
        let cache = cache(64 << 10);
        let vector: Arc<[f32]> = vec![0.5; 384].into();
        for number in 0..1_000 {
            cache.keep(ONE, &format!("query {number}"), &vector);
            assert!(cache.bytes() <= cache.bytes_max());
        }
        assert!(cache.bytes() > 32 << 10, "{}", cache.bytes());
        let long = "x".repeat(QUERY_BYTES_MAX + 1);
        cache.keep(ONE, &long, &vector);
        assert_eq!(cache.get(ONE, &long), None);
    }

    #[test]
    fn what_is_looked_up_hashes_like_what_is_kept() {
        let hashes = RandomState::new();
        let asked = Asked { tenant: ONE, query: "albatross".into() };
        let asking = Asking { tenant: ONE, query: "albatross" };
        assert_eq!(hashes.hash_one(&asked), hashes.hash_one(&asking));
        assert_ne!(hashes.build_hasher().finish(), hashes.hash_one(&asked));
    }
}
