//! What the tests share: stores in temporary folders, groups on them, documents.

use half::f16;
use ragged_raft::group::Ground;
use ragged_raft::ids::{CollectionId, RowId, ShardId, TenantId};
use ragged_raft::shard::command::{IdempotencyKey, PreparedChunk, PreparedDocument, ShardCommand, ShardReply, Upserted};
use ragged_raft::shard::group::ShardGroup;
use ragged_raft::shard::reader::ShardReader;
use ragged_raft::shard::rows::{ChunkText, DocumentHead, TextFormat};
use ragged_raft::{Store, StoreError, StoreOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const TENANT: TenantId = TenantId(1);
pub const COLLECTION: CollectionId = CollectionId(7);
pub const DIMENSION: usize = 8;

pub fn open(folder: &Path) -> Arc<Store> {
    Store::open(folder, StoreOptions::default()).unwrap()
}

/// Opens a store that someone may still be closing: openraft's tasks let go of it a moment after their shutdown.
pub fn reopen(folder: &Path) -> Arc<Store> {
    let start = Instant::now();
    loop {
        match Store::open(folder, StoreOptions::default()) {
            Ok(store) => return store,
            Err(StoreError::InUse(_)) if start.elapsed() < Duration::from_secs(20) => {
                std::thread::sleep(Duration::from_millis(5))
            }
            Err(fault) => panic!("{fault}"),
        }
    }
}

/// Entries that the logs of a closed store hold.
pub fn log_entries(folder: &Path) -> usize {
    drop(reopen(folder));
    let db =
        rocksdb::DB::open_cf_for_read_only(&rocksdb::Options::default(), folder.join("db"), ["default", "log", "rows"], false)
            .unwrap();
    db.full_iterator_cf(db.cf_handle("log").unwrap(), rocksdb::IteratorMode::Start)
        .filter(|row| row.as_ref().unwrap().0.len() == 17)
        .count()
}

pub async fn shard(store: &Arc<Store>, number: u16) -> ShardGroup {
    ShardGroup::start(Ground::alone(store.clone()), ShardId(number)).await.unwrap()
}

/// A vector that says which chunk of which document version it belongs to.
pub fn vector(text: &str) -> Vec<f16> {
    let sum: u32 = text.bytes().map(u32::from).sum();
    (0..DIMENSION).map(|at| f16::from_f32(((sum + at as u32) % 1000) as f32)).collect()
}

pub fn document(id: &str, texts: &[&str]) -> PreparedDocument {
    let text = texts.concat();
    let mut start = 0;
    let chunks = texts
        .iter()
        .map(|text| {
            let chunk = ChunkText { start, end: start + text.len() as u64, text: (*text).to_owned() };
            start = chunk.end;
            let vectors = vec![vector(text).iter().flat_map(|value| value.to_le_bytes()).collect()];
            PreparedChunk { text: chunk, vectors }
        })
        .collect();
    let head = DocumentHead::uploaded(id.to_owned(), None, TextFormat::Plain, "{}".into());
    PreparedDocument { head, text, chunks }
}

pub fn upsert(documents: Vec<PreparedDocument>, at_ms: u64) -> ShardCommand {
    ShardCommand::Upsert { tenant: TENANT, collection: COLLECTION, documents, idempotency: None, at_ms }
}

pub fn upsert_once(documents: Vec<PreparedDocument>, key: u8, request: u8, at_ms: u64) -> ShardCommand {
    let idempotency = Some(IdempotencyKey { key: [key; 16], request: [request; 16] });
    ShardCommand::Upsert { tenant: TENANT, collection: COLLECTION, documents, idempotency, at_ms }
}

pub fn delete(ids: &[&str]) -> ShardCommand {
    ShardCommand::Delete {
        tenant: TENANT,
        collection: COLLECTION,
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        at_ms: 0,
    }
}

pub async fn propose(group: &ShardGroup, command: ShardCommand) -> ShardReply {
    group.propose(command).await.unwrap().reply
}

pub fn upserted(id: &str, chunks: u32, version: u64) -> Upserted {
    Upserted { id: id.to_owned(), chunks, version }
}

/// Everything about a partition fits together: counters, heads, texts, owners, chunks and vectors, and nothing else is there.
pub fn check_partition(reader: &ShardReader, tenant: TenantId, collection: CollectionId) -> Vec<DocumentHead> {
    let heads = reader.heads(tenant, collection, None, usize::MAX).unwrap();
    let row = reader.partition(tenant, collection).unwrap().unwrap_or_default();
    assert_eq!(row.documents, heads.len() as u64, "documents are counted");
    assert_eq!(row.chunks, heads.iter().map(|head| u64::from(head.chunks)).sum::<u64>(), "chunks are counted");
    let mut expected_rows = Vec::new();
    for head in &heads {
        let rows: Vec<RowId> = (head.first_row.0..head.first_row.0 + head.chunks).map(RowId).collect();
        assert!(rows.iter().all(|row_id| *row_id < row.next_row));
        let text = reader.text(tenant, collection, &head.id).unwrap().expect("a document has its text");
        let owners = reader.owners(tenant, collection, &rows).unwrap();
        let chunks = reader.chunks(tenant, collection, &rows).unwrap();
        let mut vectors = Vec::new();
        reader.vectors_of(tenant, collection, 0, &rows, |row_id, vector| vectors.push((row_id, vector.to_vec()))).unwrap();
        assert_eq!(vectors.len(), rows.len(), "every chunk has its vector");
        for (number, row_id) in rows.iter().enumerate() {
            let owner = owners[number].as_ref().expect("every row has its owner");
            assert_eq!((owner.document_id.as_str(), owner.chunk as usize), (head.id.as_str(), number));
            let chunk = chunks[number].as_ref().expect("every row has its text");
            assert_eq!(text[chunk.start as usize..chunk.end as usize], chunk.text);
            assert_eq!(vectors[number], (*row_id, vector(&chunk.text)));
        }
        expected_rows.extend(rows);
    }
    expected_rows.sort();
    let live: Vec<RowId> = reader.live_rows(tenant, collection, RowId(0), RowId(u32::MAX)).map(Result::unwrap).collect();
    assert_eq!(live, expected_rows, "exactly the rows of the documents are live");
    let chunks: Vec<RowId> =
        reader.chunk_range(tenant, collection, RowId(0), RowId(u32::MAX)).map(|row| row.unwrap().0).collect();
    assert_eq!(chunks, expected_rows);
    let mut vectors = Vec::new();
    reader.vectors(tenant, collection, 0, RowId(0), RowId(u32::MAX), |row_id, _| vectors.push(row_id)).unwrap();
    assert_eq!(vectors, expected_rows);
    heads
}
