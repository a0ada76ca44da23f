//! The data folder: what is refused, and what is noticed.

use crate::fixture::*;
use ragged_raft::shard::group::ShardGroup;
use ragged_raft::{ReadError, Store, StoreError, StoreOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn open_error(folder: &Path) -> StoreError {
    match Store::open(folder, StoreOptions::default()) {
        Ok(_) => panic!("it opens"),
        Err(fault) => fault,
    }
}

#[test]
fn a_folder_is_used_by_one_node_and_keeps_its_identity() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert!(matches!(open_error(folder.path()), StoreError::InUse(_)));
    let ids = (store.node(), store.replica("a").unwrap(), store.replica("b").unwrap());
    assert_ne!(ids.1, ids.2);
    store.close();
    drop(store);
    let store = open(folder.path());
    assert_eq!((store.node(), store.replica("a").unwrap(), store.replica("b").unwrap()), ids);
    let another = tempfile::tempdir().unwrap();
    let another = open(another.path());
    assert_ne!(another.node(), ids.0);
    assert_ne!(another.replica("a").unwrap(), ids.1, "replicas of one group on two nodes differ");
}

#[test]
fn a_folder_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), folder.path().join("db"), ["default", "log", "rows"]).unwrap();
    db.put_cf(db.cf_handle("log").unwrap(), [0; 7], 2u32.to_le_bytes()).unwrap();
    drop(db);
    assert!(matches!(open_error(folder.path()), StoreError::NewerFormat(2)));
}

#[test]
fn a_folder_that_is_a_file_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, b"x").unwrap();
    assert!(matches!(open_error(&path), StoreError::Folder { .. }));
}

async fn write_some(folder: &Path) {
    let store = open(folder);
    let group = shard(&store, 0).await;
    for number in 0..50 {
        propose(&group, upsert(vec![document(&format!("d{number}"), &["some ", "text"])], 1)).await;
    }
    end(store, group).await;
}

async fn end(store: Arc<Store>, group: ShardGroup) {
    let folder = store.folder().to_owned();
    group.shutdown().await;
    store.close();
    drop((group, store));
    // The last of openraft's tasks lets go of the database a moment later: wait until the lock can be taken.
    let start = std::time::Instant::now();
    while rocksdb::DB::open_cf_for_read_only(&rocksdb::Options::default(), folder.join("db"), ["default", "log", "rows"], false)
        .is_err()
    {
        assert!(start.elapsed() < std::time::Duration::from_secs(20));
    }
}

fn newest_log(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder.join("db")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

/// RocksDB takes a log whose end is missing for one whose end was never written, and opens without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_ahead_log_that_lost_its_synced_end_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    write_some(folder.path()).await;
    let log = newest_log(folder.path());
    let length = std::fs::metadata(&log).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&log).unwrap();
    file.set_len(length - length / 4).unwrap();
    let fault = open_error(folder.path());
    assert!(matches!(fault, StoreError::LostWrites { found, synced, .. } if found < synced), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_write_ahead_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_some(folder.path()).await;
    let log = newest_log(folder.path());
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&log, bytes).unwrap();
    let fault = open_error(folder.path());
    assert!(matches!(fault, StoreError::Damaged { .. } | StoreError::LostWrites { .. }), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_row_is_an_error_and_not_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    write_some(folder.path()).await;
    drop(reopen(folder.path()));
    let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), folder.path().join("db"), ["default", "log", "rows"]).unwrap();
    let rows = db.cf_handle("rows").unwrap();
    // Documents' heads, texts, owners, chunks: a flipped bit each; vectors: an unknown version.
    let all: Vec<_> = db.full_iterator_cf(rows, rocksdb::IteratorMode::Start).map(Result::unwrap).collect();
    for (key, value) in all.iter().filter(|(key, _)| (20..=25).contains(&key[24])) {
        let mut value = value.to_vec();
        let at = if key[24] == 25 { 0 } else { value.len() - 1 };
        value[at] ^= 0x40;
        db.put_cf(rows, key, value).unwrap();
    }
    drop(db);
    let store = reopen(folder.path());
    let group = shard(&store, 0).await;
    let reader = group.reader();
    let row = ragged_raft::ids::RowId(0);
    assert!(matches!(reader.partition(TENANT, COLLECTION), Err(ReadError::Corrupt(_))));
    assert!(reader.head(TENANT, COLLECTION, "d1").is_err());
    assert!(reader.text(TENANT, COLLECTION, "d1").is_err());
    assert!(reader.heads(TENANT, COLLECTION, None, 10).is_err());
    assert!(reader.owner(TENANT, COLLECTION, row).is_err());
    assert!(reader.chunks(TENANT, COLLECTION, &[row]).is_err());
    assert!(reader.vectors(TENANT, COLLECTION, 0, row, ragged_raft::ids::RowId(10), |_, _| ()).is_err());
    // A write that needs the row stops the group, and its outcome is not called a failure.
    let fault = group.propose(upsert(vec![document("d1", &["x"])], 1)).await.unwrap_err();
    assert!(matches!(fault, ragged_raft::ProposeError::UnknownOutcome { .. }), "{fault}");
    group.failed().await;
}
