//! The partitions of a shard that are in memory, and those that are being loaded.

use crate::shard::actor::ShardMetrics;
use crate::shard::partition::Partition;
use parking_lot::Mutex;
use ragged_raft::ids::{CollectionId, TenantId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// Which partition of a shard.
pub(crate) type PartitionId = (TenantId, CollectionId);

/// A partition that is loaded, or being loaded by whoever came first.
pub(super) type Slot = Arc<OnceCell<Arc<Partition>>>;

struct Entry {
    slot: Slot,
    used: Instant,
}

impl Entry {
    /// Whether it is loaded and nobody has used it for so long. One that is being searched or indexed stays: opened again meanwhile, there would be
    /// two on the same files.
    fn is_unused(&self, unused: Duration) -> bool {
        let is_idle = Arc::strong_count(&self.slot) == 1 && self.used.elapsed() >= unused;
        is_idle && self.slot.get().is_some_and(|partition| Arc::strong_count(partition) == 1)
    }
}

/// The partitions of one replica; shared by its actor, which loads and unloads them, and by reads, which only use what is loaded.
pub(crate) struct LoadedPartitions {
    entries: Mutex<HashMap<PartitionId, Entry>>,
    metrics: ShardMetrics,
    /// What the metrics have been told that the partitions hold.
    counted_bytes: Mutex<i64>,
}

impl LoadedPartitions {
    /// None yet.
    pub(super) fn new(metrics: ShardMetrics) -> Self {
        LoadedPartitions { entries: Mutex::default(), metrics, counted_bytes: Mutex::new(0) }
    }

    /// A partition's slot, to load it into.
    pub(super) fn slot(&self, id: PartitionId) -> Slot {
        let mut entries = self.entries.lock();
        let entry = entries.entry(id).or_insert_with(|| Entry { slot: Slot::default(), used: Instant::now() });
        entry.used = Instant::now();
        entry.slot.clone()
    }

    /// A partition, when it is loaded. It stays as long as the caller holds it.
    pub(super) fn get(&self, id: &PartitionId) -> Option<Arc<Partition>> {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(id)?;
        entry.used = Instant::now();
        entry.slot.get().cloned()
    }

    /// All that are loaded.
    pub(super) fn all(&self) -> Vec<Arc<Partition>> {
        self.entries.lock().values().filter_map(|entry| entry.slot.get().cloned()).collect()
    }

    /// Forgets a partition whose collection has been dropped. The last one to let go of it removes its files, which blocks.
    pub(super) fn retire(&self, id: &PartitionId) -> Option<Slot> {
        let removed = self.entries.lock().remove(id);
        let slot = removed.as_ref().map(|entry| entry.slot.clone());
        if let Some(partition) = slot.as_ref().and_then(|slot| slot.get()) {
            partition.retire();
        }
        self.note_unloaded(removed);
        slot
    }

    /// Forgets all of them.
    pub(super) fn unload_all(&self) {
        let removed: Vec<Entry> = self.entries.lock().drain().map(|(_, entry)| entry).collect();
        self.note_unloaded(removed);
    }

    /// Which are loaded, and when each was last used.
    pub(crate) fn uses(&self) -> Vec<(Instant, PartitionId)> {
        let entries = self.entries.lock();
        entries.iter().filter(|(_, entry)| entry.slot.initialized()).map(|(id, entry)| (entry.used, *id)).collect()
    }

    /// A partition, when it is loaded, for whoever does not use it: it is not younger for that.
    pub(crate) fn peek(&self, id: &PartitionId) -> Option<Arc<Partition>> {
        self.entries.lock().get(id)?.slot.get().cloned()
    }

    /// Forgets a partition that nobody has used for so long. Whether it did.
    pub(crate) fn unload_if_unused(&self, id: &PartitionId, unused: Duration) -> bool {
        let mut entries = self.entries.lock();
        let is_unused = entries.get(id).is_some_and(|entry| entry.is_unused(unused));
        let removed = if is_unused { entries.remove(id) } else { None };
        drop(entries);
        let has_removed = removed.is_some();
        self.note_unloaded(removed);
        has_removed
    }

    /// Forgets those that nobody has used for so long.
    pub(super) fn unload_unused(&self, unused: Duration) {
        for (_, id) in self.uses() {
            self.unload_if_unused(&id, unused);
        }
    }

    fn note_unloaded(&self, removed: impl IntoIterator<Item = Entry>) {
        let loaded = removed.into_iter().filter(|entry| entry.slot.initialized()).count();
        self.metrics.partitions.sub(loaded as i64);
    }

    /// Counts what the partitions hold.
    pub(super) fn count_bytes(&self) {
        let bytes = self.all().iter().map(|partition| partition.memory_bytes() as i64).sum();
        let mut counted = self.counted_bytes.lock();
        self.metrics.partition_bytes.add(bytes - *counted);
        *counted = bytes;
    }
}

impl Drop for LoadedPartitions {
    fn drop(&mut self) {
        self.unload_all();
        self.metrics.partition_bytes.sub(*self.counted_bytes.get_mut());
    }
}
