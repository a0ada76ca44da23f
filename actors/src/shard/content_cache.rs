//! What hits have shown lately, for all shards of a node: a search that finds them again does not read the database.
//!
//! A row's content never changes, and its number is never used again within its space ([`ragged_raft::store::Space`]): a document that is stored again has
//! other rows. So nothing here is ever wrong; what is not found any more is forgotten in time.

use crate::shard::request::ChunkContent;
use prometheus::{IntCounter, Registry};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ragged_raft::ids::{CollectionId, RowId, TenantId};
use std::sync::Arc;

/// Bytes of an entry beside its texts, roughly.
const ENTRY_BYTES: usize = 256;
/// Larger contents are not kept: a few of them would drive out everything else.
const CONTENT_BYTES_MAX: usize = 64 << 10;
/// Entries that there is room for at first.
const ENTRIES: usize = 1024;

/// Where a row is, among all that this node ever keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RowPlace {
    /// The space of its replica's rows.
    pub(super) space: u64,
    /// Whose it is.
    pub(super) tenant: TenantId,
    /// Its collection.
    pub(super) collection: CollectionId,
    /// The row.
    pub(super) row: RowId,
}

/// Contents by rows, in bounded memory.
pub struct ContentCache {
    contents: Cache<RowPlace, Arc<ChunkContent>, Bytes>,
    found: IntCounter,
    read: IntCounter,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<RowPlace, Arc<ChunkContent>> for Bytes {
    fn weight(&self, _place: &RowPlace, content: &Arc<ChunkContent>) -> u64 {
        (ENTRY_BYTES + content.bytes()) as u64
    }
}

impl ContentCache {
    /// A cache of at most so many bytes, and its metrics.
    pub fn register(bytes: usize, registry: &Registry) -> Result<ContentCache, prometheus::Error> {
        let found = IntCounter::new("ragged_content_cache_hits_total", "Contents of hits that were in memory.")?;
        let read = IntCounter::new("ragged_content_cache_misses_total", "Contents of hits that were read from the database.")?;
        registry.register(Box::new(found.clone()))?;
        registry.register(Box::new(read.clone()))?;
        Ok(ContentCache { contents: Cache::with_weighter(ENTRIES, bytes as u64, Bytes), found, read })
    }

    /// A row's content, when it is in memory.
    pub(super) fn get(&self, place: &RowPlace) -> Option<Arc<ChunkContent>> {
        self.contents.get(place)
    }

    /// Keeps a row's content for later.
    pub(super) fn keep(&self, place: RowPlace, content: &Arc<ChunkContent>) {
        if content.bytes() <= CONTENT_BYTES_MAX {
            self.contents.insert(place, content.clone());
        }
    }

    /// Counts contents that were shown: those found here, and those read.
    pub(super) fn count(&self, found: usize, read: usize) {
        self.found.inc_by(found as u64);
        self.read.inc_by(read as u64);
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.contents.weight() as usize
    }

    /// Bytes that it may hold.
    pub fn bytes_max(&self) -> usize {
        self.contents.capacity() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ragged_raft::shard::rows::{ChunkText, RowOwner};

    fn cache(bytes: usize) -> ContentCache {
        ContentCache::register(bytes, &Registry::new()).unwrap()
    }

    fn content(text: &str) -> Arc<ChunkContent> {
        Arc::new(ChunkContent {
            owner: RowOwner { document_id: "d".into(), chunk: 0 },
            text: ChunkText { start: 0, end: text.len() as u64, text: text.to_owned() },
            title: Some("title".into()),
            metadata: "{}".into(),
        })
    }

    fn place(row: u32) -> RowPlace {
        RowPlace { space: 1, tenant: TenantId(2), collection: CollectionId(3), row: RowId(row) }
    }

    #[test]
    fn a_row_is_found_in_its_own_place_only() {
        let cache = cache(1 << 20);
        let own = place(4);
        cache.keep(own, &content("albatross"));
        assert_eq!(cache.get(&own).unwrap().text.text, "albatross");
        let others = [
            RowPlace { space: 9, ..own },
            RowPlace { tenant: TenantId(9), ..own },
            RowPlace { collection: CollectionId(9), ..own },
            RowPlace { row: RowId(9), ..own },
        ];
        for other in others {
            assert!(cache.get(&other).is_none(), "{other:?}");
            cache.keep(other, &content("petrel"));
        }
        assert_eq!(cache.get(&own).unwrap().text.text, "albatross");
    }

    #[test]
    fn it_holds_no_more_than_it_may() {
        let cache = cache(256 << 10);
        let text = "x".repeat(1_000);
        for row in 0..2_000 {
            cache.keep(place(row), &content(&text));
            assert!(cache.bytes() <= cache.bytes_max(), "{} of {}", cache.bytes(), cache.bytes_max());
        }
        // What it says that it holds is what is in there.
        let kept = (0..2_000).filter(|row| cache.get(&place(*row)).is_some()).count();
        assert_eq!(cache.bytes(), kept * (ENTRY_BYTES + content(&text).bytes()));
        assert!(kept > 100, "{kept}");
    }

    #[test]
    fn a_large_content_drives_nothing_out() {
        let cache = cache(256 << 10);
        cache.keep(place(1), &content("albatross"));
        cache.keep(place(2), &content(&"x".repeat(CONTENT_BYTES_MAX)));
        assert!(cache.get(&place(1)).is_some() && cache.get(&place(2)).is_none());
    }

    #[test]
    fn what_was_shown_is_counted_by_where_it_came_from() {
        let cache = cache(1 << 20);
        cache.count(3, 0);
        cache.count(1, 6);
        assert_eq!((cache.found.get(), cache.read.get()), (4, 6));
    }
}
