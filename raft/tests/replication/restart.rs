//! A node that starts again: what it knew it knows, and it is ready at once.

use crate::fixture::*;
use ragged_raft::group::Ground;
use ragged_raft::ids::ShardId;
use ragged_raft::meta::MetaGroup;
use ragged_raft::shard::group::ShardGroup;
use std::time::{Duration, Instant};

async fn start_all(folder: &std::path::Path) -> (std::sync::Arc<ragged_raft::Store>, MetaGroup, Vec<ShardGroup>, Duration) {
    let start = Instant::now();
    let store = reopen(folder);
    let meta = MetaGroup::start(Ground::alone(store.clone())).await.unwrap();
    let shards = (0..16).map(|number| ShardGroup::start(Ground::alone(store.clone()), ShardId(number)));
    let shards: Vec<ShardGroup> = futures::future::try_join_all(shards).await.unwrap();
    (store, meta, shards, start.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_groups_of_a_node_are_ready_again_and_keep_what_they_had() {
    let folder = tempfile::tempdir().unwrap();
    let (store, meta, shards, _) = start_all(folder.path()).await;
    for (number, group) in shards.iter().enumerate() {
        assert!(group.group().is_ready());
        let id = format!("doc-{number}");
        propose(group, upsert(vec![document(&id, &["one ", "two"])], 1)).await;
    }
    let node = store.node();
    let replicas: Vec<_> = shards.iter().map(|group| group.group().replica()).collect();
    let mut hashes = Vec::new();
    for group in &shards {
        hashes.push(group.group().state_hash().await.unwrap());
        group.shutdown().await;
    }
    meta.group().shutdown().await;
    store.close();
    drop((store, meta, shards));

    let (store, meta, shards, took) = start_all(folder.path()).await;
    println!("start of 17 groups took {took:?}");
    assert_eq!(store.node(), node);
    assert!(meta.group().is_ready());
    for (number, group) in shards.iter().enumerate() {
        assert_eq!(group.group().replica(), replicas[number]);
        let heads = check_partition(&group.reader(), TENANT, COLLECTION);
        assert_eq!(heads[0].id, format!("doc-{number}"));
        let (applied, hash) = group.group().state_hash().await.unwrap();
        assert!(applied > hashes[number].0, "a new leader adds an entry");
        assert_eq!(hash, hashes[number].1);
        let index = group.linearizable().await.unwrap();
        group.wait_applied(index, Duration::from_secs(5)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_purged_behind_the_rows_and_the_group_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let group = shard(&store, 0).await;
    for round in 0..13u32 {
        let commands = (0..1_000u32).map(|number| {
            propose(&group, upsert(vec![document(&format!("d{}", number % 50), &[&format!("{round} {number}")])], 1))
        });
        futures::future::join_all(commands).await;
    }
    let heads = check_partition(&group.reader(), TENANT, COLLECTION);
    let hash = group.group().state_hash().await.unwrap().1;
    group.shutdown().await;
    store.close();
    drop((group, store));
    let entries = log_entries(folder.path());
    assert!(entries < 12_000, "{entries} entries are left");

    let store = reopen(folder.path());
    let group = shard(&store, 0).await;
    assert_eq!(check_partition(&group.reader(), TENANT, COLLECTION), heads);
    assert_eq!(group.group().state_hash().await.unwrap().1, hash);
    propose(&group, upsert(vec![document("new", &["x"])], 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_entries_leave_the_log_long_before_a_thousand_stand_behind_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let group = shard(&store, 0).await;
    let text = "word ".repeat(200_000);
    for number in 0..40 {
        propose(&group, upsert(vec![document(&format!("d{number}"), &[&text])], 1)).await;
    }
    let hash = group.group().state_hash().await.unwrap().1;
    group.shutdown().await;
    store.close();
    drop((group, store));
    let entries = log_entries(folder.path());
    assert!(entries < 20, "{entries} entries of a megabyte are left");

    let store = reopen(folder.path());
    let group = shard(&store, 0).await;
    assert_eq!(group.group().state_hash().await.unwrap().1, hash);
    propose(&group, upsert(vec![document("new", &["x"])], 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_shut_down_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let watcher = group.clone();
    let failed = tokio::spawn(async move { watcher.failed().await });
    assert!(!failed.is_finished());
    group.shutdown().await;
    tokio::time::timeout(Duration::from_secs(10), failed).await.unwrap().unwrap();
    assert!(!group.group().is_ready());
    let refused = group.propose(delete(&["a"])).await.unwrap_err();
    assert!(matches!(refused, ragged_raft::ProposeError::Stopped(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_an_index_ends_with_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let index = group.propose(delete(&["a"])).await.unwrap().index;
    group.wait_applied(index, Duration::ZERO).await.unwrap();
    let late = group.wait_applied(index + 1, Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(late, ragged_raft::WaitError::Timeout { wanted, .. } if wanted == index + 1), "{late}");
}
