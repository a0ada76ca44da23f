//! A real shard group on a store of its own, for tests.

use crate::gpu_rows::GpuRows;
use crate::shard::content_cache::ContentCache;
use crate::shard::partition::{Partition, PartitionContext, SearchMetrics};
use crate::shard::text_writers::TextWriters;
use half::f16;
use ragged_raft::group::Ground;
use ragged_raft::ids::{CollectionId, ShardId, TenantId};
use ragged_raft::meta::collection::{Collection, VectorSettings};
use ragged_raft::shard::command::{PreparedChunk, PreparedDocument, ShardCommand, ShardReply};
use ragged_raft::shard::group::ShardGroup;
use ragged_raft::shard::rows::{ChunkText, DocumentHead, TextFormat};
use ragged_raft::{Store, StoreOptions};
use std::path::PathBuf;
use std::sync::Arc;

const TENANT: TenantId = TenantId(1);

pub(super) struct TestShard {
    runtime: tokio::runtime::Runtime,
    group: ShardGroup,
    collection: Arc<Collection>,
    folder: tempfile::TempDir,
    /// None, unless a test puts some there.
    pub(super) gpu_rows: Arc<GpuRows>,
}

impl TestShard {
    pub(super) fn new(dimension: u32, language: &str) -> TestShard {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = Store::open(&folder.path().join("store"), StoreOptions::default()).unwrap();
        let group = runtime.block_on(ShardGroup::start(Ground::alone(store), ShardId(0))).unwrap();
        let collection = Arc::new(Collection {
            id: CollectionId(1),
            tenant: TENANT,
            name: "test".to_owned(),
            shards: vec![ShardId(0)],
            vectors: vec![VectorSettings { name: "default".to_owned(), dimension, model: None }],
            chunk_tokens: 256,
            chunk_overlap: 32,
            language: language.to_owned(),
            created_at_ms: 0,
        });
        let gpu_rows = Arc::new(GpuRows::register(0, &prometheus::Registry::new()).unwrap());
        TestShard { runtime, group, collection, folder, gpu_rows }
    }

    /// Folder of the checkpoint.
    pub(super) fn checkpoint(&self) -> PathBuf {
        self.folder.path().join("partition")
    }

    pub(super) fn open(&self) -> Partition {
        Partition::open(PartitionContext {
            reader: self.group.reader(),
            changes: self.group.changes().watch(TENANT, self.collection.id),
            tenant: TENANT,
            collection: self.collection.clone(),
            folder: self.checkpoint(),
            cache: Arc::new(ContentCache::register(1 << 20, &prometheus::Registry::new()).unwrap()),
            metrics: SearchMetrics::register(&prometheus::Registry::new()).unwrap(),
            gpu_rows: self.gpu_rows.clone(),
            text_writers: Arc::new(TextWriters::new(16 << 20)),
            tail_bytes_max: 1 << 20,
        })
        .unwrap()
    }

    pub(super) fn propose(&self, command: ShardCommand) -> ShardReply {
        self.runtime.block_on(self.group.propose(command)).unwrap().reply
    }

    pub(super) fn upsert(&self, id: &str, title: Option<&str>, metadata: &str, chunks: &[(&str, Vec<f32>)]) {
        self.upsert_all(vec![document(id, title, metadata, chunks)]);
    }

    pub(super) fn upsert_all(&self, documents: Vec<PreparedDocument>) {
        let command =
            ShardCommand::Upsert { tenant: TENANT, collection: self.collection.id, documents, idempotency: None, at_ms: 1 };
        assert!(matches!(self.propose(command), ShardReply::Upserted(_)));
    }

    pub(super) fn delete(&self, id: &str) {
        self.propose(ShardCommand::Delete { tenant: TENANT, collection: self.collection.id, ids: vec![id.to_owned()], at_ms: 1 });
    }

    pub(super) fn drop_collection(&self) {
        self.propose(ShardCommand::DropCollection { tenant: TENANT, collection: self.collection.id });
    }
}

impl Drop for TestShard {
    fn drop(&mut self) {
        self.runtime.block_on(self.group.shutdown());
    }
}

/// A document as the ingest actor would prepare it.
pub(super) fn document(id: &str, title: Option<&str>, metadata: &str, chunks: &[(&str, Vec<f32>)]) -> PreparedDocument {
    let chunk = |(text, vector): &(&str, Vec<f32>)| PreparedChunk {
        text: ChunkText { start: 0, end: text.len() as u64, text: (*text).to_owned() },
        vectors: vec![vector.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()],
    };
    PreparedDocument {
        head: DocumentHead::uploaded(id.to_owned(), title.map(str::to_owned), TextFormat::Plain, metadata.to_owned()),
        text: chunks.iter().map(|(text, _)| *text).collect::<Vec<_>>().join(" "),
        chunks: chunks.iter().map(chunk).collect(),
    }
}
