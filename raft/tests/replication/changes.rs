//! The feed of changes: nothing is missed, whenever it is watched.

use crate::fixture::*;
use ragged_raft::ids::RowId;
use ragged_raft::shard::command::ShardCommand;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_noted_before_the_proposer_hears_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let handle = group.changes().watch(TENANT, COLLECTION);
    assert_eq!(handle.drain(), None);
    let applied = group.propose(upsert(vec![document("a", &["one", "two"])], 1)).await.unwrap();
    let changes = handle.drain().unwrap();
    assert_eq!((changes.removed.clone(), changes.next_row, changes.changed_at), (vec![], RowId(2), applied.index));
    assert_eq!(handle.drain(), None);
    propose(&group, upsert(vec![document("a", &["three"])], 1)).await;
    propose(&group, delete(&["a"])).await;
    let changes = handle.drain().unwrap();
    assert_eq!((changes.removed, changes.next_row), (vec![RowId(0), RowId(1), RowId(2)], RowId(3)));
    propose(&group, ShardCommand::DropCollection { tenant: TENANT, collection: COLLECTION }).await;
    assert!(handle.drain().unwrap().dropped);
    let other = group.changes().watch(TENANT, ragged_raft::ids::CollectionId(8));
    assert_eq!(other.drain(), None);
}

/// Partitions are loaded again and again (watched, then scanned) while others write; what was scanned, with what was noted since, must be
/// what is there in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_partition_that_is_loaded_while_it_changes_misses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let writing = Arc::new(AtomicBool::new(true));
    let mut loaded = Vec::new();
    let loader = {
        let (group, writing) = (group.clone(), writing.clone());
        tokio::task::spawn_blocking(move || {
            while writing.load(Ordering::SeqCst) && loaded.len() < 2_000 {
                let handle = group.changes().watch(TENANT, COLLECTION);
                let rows: BTreeSet<RowId> =
                    group.reader().live_rows(TENANT, COLLECTION, RowId(0), RowId(u32::MAX)).map(Result::unwrap).collect();
                loaded.push((handle, rows));
            }
            loaded
        })
    };
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4u32 {
        let group = group.clone();
        writers.spawn(async move {
            for round in 0..60u32 {
                let id = format!("d{}", (writer + round) % 6);
                match round % 4 {
                    3 => propose(&group, delete(&[&id])).await,
                    _ => propose(&group, upsert(vec![document(&id, &["one ", "two ", "three"])], 1)).await,
                };
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    writing.store(false, Ordering::SeqCst);
    let loaded = loader.await.unwrap();
    assert!(!loaded.is_empty());
    let there: BTreeSet<RowId> =
        group.reader().live_rows(TENANT, COLLECTION, RowId(0), RowId(u32::MAX)).map(Result::unwrap).collect();
    for (handle, mut rows) in loaded {
        let Some(changes) = handle.drain() else {
            assert_eq!(rows, there);
            continue;
        };
        assert!(!changes.reload && !changes.dropped);
        // As a partition follows: the tail that it has not seen is read, then what is gone is taken away.
        let next = rows.last().map_or(0, |last| last.0 + 1);
        rows.extend(
            group.reader().live_rows(TENANT, COLLECTION, RowId(next), changes.next_row.max(RowId(next))).map(Result::unwrap),
        );
        for removed in &changes.removed {
            rows.remove(removed);
        }
        assert_eq!(rows, there);
    }
}
