//! The partitions of a shard that are in memory, and those that are being loaded.

use crate::shard::actor::{Residency, ShardMetrics};
use crate::shard::partition::Partition;
use parking_lot::Mutex;
use ragged_raft::ids::{CollectionId, TenantId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::OnceCell;

/// Which partition of a shard.
pub(super) type PartitionId = (TenantId, CollectionId);

/// A partition that is loaded, or being loaded by whoever came first.
pub(super) type Slot = Arc<OnceCell<Arc<Partition>>>;

struct Entry {
    slot: Slot,
    used: Instant,
}

/// The partitions of one replica; shared by its actor, which loads and unloads them, and by reads, which only use what is loaded.
pub(super) struct LoadedPartitions {
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

    /// Forgets a partition.
    pub(super) fn unload(&self, id: &PartitionId) {
        let removed = self.entries.lock().remove(id);
        self.note_unloaded(removed);
    }

    /// Forgets all of them.
    pub(super) fn unload_all(&self) {
        let removed: Vec<Entry> = self.entries.lock().drain().map(|(_, entry)| entry).collect();
        self.note_unloaded(removed);
    }

    /// Forgets those that nobody has used for long, and of the others those that were used the longest ago and do not fit.
    pub(super) fn unload_unused(&self, residency: Residency) {
        let now = Instant::now();
        let mut entries = self.entries.lock();
        let mut by_use: Vec<_> = entries
            .iter()
            .filter_map(|(id, entry)| {
                // One that is being searched or indexed stays: opened again meanwhile, there would be two on the same files.
                let partition = entry.slot.get().filter(|partition| Arc::strong_count(partition) == 1)?;
                Some((now.duration_since(entry.used), partition.memory_bytes(), *id))
            })
            .collect();
        by_use.sort();
        let (mut bytes, mut removed) = (0, Vec::new());
        for (position, (unused, size, id)) in by_use.into_iter().enumerate() {
            bytes += size;
            // The one in use stays, whatever its size.
            if unused > residency.idle || (position > 0 && bytes > residency.bytes) {
                removed.extend(entries.remove(&id));
            }
        }
        drop(entries);
        self.note_unloaded(removed);
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
