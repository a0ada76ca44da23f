//! Snapshots: the same rows on the other side, or nothing.

use crate::fixture::*;
use ragged_raft::Store;
use ragged_raft::ids::ReplicaId;
use ragged_raft::shard::group::ShardGroup;
use ragged_raft::shard::reader::ShardReader;
use ragged_raft::snapshot::{SnapshotSource, state_hash};
use ragged_raft::types::SnapshotMeta;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::sync::Arc;

async fn source(folder: &Path) -> (Arc<Store>, ShardGroup) {
    let store = open(folder);
    let group = shard(&store, 3).await;
    for number in 0..200u32 {
        let long = format!("{number} ").repeat(500);
        propose(
            &group,
            upsert_once(vec![document(&format!("d{}", number % 60), &[&long, "tail"])], number as u8, 1, u64::from(number)),
        )
        .await;
    }
    propose(&group, delete(&["d3", "d4"])).await;
    (store, group)
}

fn write_out(store: &Arc<Store>, group: &ShardGroup, folder: &Path) -> (PathBuf, SnapshotMeta) {
    SnapshotSource::live(store.clone(), group.group().replica()).write_out(folder).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_brings_the_same_state_and_outlives_a_restart() {
    let (folder, target_folder, files) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, group) = source(folder.path()).await;
    let (file, meta) = write_out(&store, &group, files.path());
    let hash = group.group().state_hash().await.unwrap();

    let target = open(target_folder.path());
    let replica = ReplicaId(42);
    SnapshotSource::File(file.clone()).install(&target, replica, &meta).unwrap();
    assert_eq!(state_hash(&target, replica).unwrap(), hash);
    check_partition(&ShardReader::new(target.clone(), replica), TENANT, COLLECTION);

    // A newer one replaces it, whole.
    propose(&group, delete(&["d7"])).await;
    let (newer_file, newer_meta) = write_out(&store, &group, files.path());
    let newer_hash = group.group().state_hash().await.unwrap();
    assert_ne!(newer_hash, hash);
    let reader = ShardReader::new(target.clone(), replica);
    SnapshotSource::File(newer_file).install(&target, replica, &newer_meta).unwrap();
    assert_eq!(state_hash(&target, replica).unwrap(), newer_hash);
    assert_eq!(
        check_partition(&reader, TENANT, COLLECTION),
        check_partition(&group.reader(), TENANT, COLLECTION),
        "readers follow to the new rows"
    );

    drop((reader, target));
    assert_eq!(state_hash(&reopen(target_folder.path()), replica).unwrap(), newer_hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_changed_or_wrong_snapshot_is_refused_and_the_old_state_stays() {
    let (folder, target_folder, files) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, group) = source(folder.path()).await;
    let target = open(target_folder.path());
    let replica = ReplicaId(42);
    let (file, meta) = write_out(&store, &group, files.path());
    SnapshotSource::File(file).install(&target, replica, &meta).unwrap();
    let old = state_hash(&target, replica).unwrap();

    propose(&group, delete(&["d8"])).await;
    let (file, meta) = write_out(&store, &group, files.path());
    let whole = std::fs::read(&file).unwrap();
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let bad = files.path().join("bad");
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&bad, bytes).unwrap();
        let result = SnapshotSource::File(bad.clone()).install(&target, replica, &meta);
        assert!(result.is_err(), "{what} is installed");
        assert_eq!(state_hash(&target, replica).unwrap(), old, "{what} leaves the old state");
    };
    for _ in 0..20 {
        let length = random.random_range(0..whole.len());
        refused(&whole[..length], &format!("a file torn at {length} of {}", whole.len()));
    }
    refused(&whole[..whole.len() - 1], "a file without its last byte");
    for _ in 0..40 {
        let mut changed = whole.clone();
        let at = random.random_range(0..changed.len());
        changed[at] ^= 1 << random.random_range(0..8);
        refused(&changed, &format!("a file with a flipped bit at {at}"));
    }
    refused(&[whole.as_slice(), b"x"].concat(), "a file with something behind its end");
    let mut other_meta = meta.clone();
    other_meta.last_log_id.as_mut().unwrap().index += 1;
    assert!(
        SnapshotSource::File(file.clone()).install(&target, replica, &other_meta).is_err(),
        "another snapshot than was announced"
    );

    SnapshotSource::File(file).install(&target, replica, &meta).unwrap();
    assert_eq!(state_hash(&target, replica).unwrap(), group.group().state_hash().await.unwrap());
}

/// A file is of one moment, also when it is written while the group goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_of_one_moment() {
    let (folder, target_folder, files) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, group) = source(folder.path()).await;
    let target = open(target_folder.path());
    let writer = {
        let group = group.clone();
        tokio::spawn(async move {
            for number in 0..300u32 {
                propose(&group, upsert(vec![document(&format!("d{}", number % 40), &["new ", "text"])], 1)).await;
            }
        })
    };
    let mut replica = 1;
    while !writer.is_finished() {
        replica += 1;
        let (store, group, target, files) = (store.clone(), group.clone(), target.clone(), files.path().to_owned());
        let check = move || {
            let (file, meta) = write_out(&store, &group, &files);
            SnapshotSource::File(file.clone()).install(&target, ReplicaId(replica), &meta).unwrap();
            std::fs::remove_file(file).unwrap();
            let (applied, _) = state_hash(&target, ReplicaId(replica)).unwrap();
            assert_eq!(Some(applied), meta.last_log_id.map(|id| id.index));
            check_partition(&ShardReader::new(target, ReplicaId(replica)), TENANT, COLLECTION);
        };
        tokio::task::spawn_blocking(check).await.unwrap();
    }
    writer.await.unwrap();
}
