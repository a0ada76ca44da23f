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
