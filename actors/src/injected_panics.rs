//! A panic in every kind of actor: it is started again, and nothing that was acknowledged is lost.

use crate::account_seconds::Account;
use crate::cluster::reconciler::ReconcilerSettings;
use crate::embedding::{EmbedderMessage, Urgency};
use crate::engine::{ClusterOptions, Engine, EngineOptions, Limits};
use crate::fusion::Mode;
use crate::ingest::UploadDocument;
use crate::ingest::jobs::JobsMessage;
use crate::installed_model::model_dir;
use crate::keeper::KeeperMessage;
use crate::memory::MemoryLimits;
use crate::meta::MetaMessage;
use crate::search::{Freshness, Search};
use crate::service::{CreateCollection, EmbeddingChoice, Session};
use crate::shard::ShardMessage;
use ragged_raft::ids::DEFAULT_TENANT;
use ragged_raft::shard::rows::TextFormat;
use std::path::{Path, PathBuf};
use std::time::Duration;

async fn start(data: &Path, model_dir: PathBuf) -> Engine {
    let options = EngineOptions {
        data_dir: data.to_owned(),
        model_dir,
        shards: 16,
        embedding_device: crate::embedding::DeviceChoice::Cpu,
        embedding_precision: crate::embedding::PrecisionChoice::Auto,
        embedding_threads: 1,
        embedding_batch_tokens: 512,
        search_threads: 4,
        search_gpu_memory_percent: 0,
        memory: MemoryLimits {
            budget: 1 << 30,
            block_cache: 8 << 20,
            write_buffers: 16 << 20,
            content_cache: 1 << 20,
            query_cache: 64 << 10,
            partitions: 64 << 20,
            text_writer: 16 << 20,
        },
        partition_idle: Duration::from_secs(60),
        limits: Limits::default(),
        cluster: ClusterOptions {
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: "127.0.0.1:0".into(),
            joining: None,
            certificates: None,
            settings: ReconcilerSettings { replication: 3, replace_after: Duration::from_secs(300) },
            snapshot_bytes_per_second: 128 << 20,
        },
    };
    Engine::start(options, prometheus::Registry::new()).await.unwrap()
}

async fn session(engine: &Engine, data: &Path) -> Session {
    let key = std::fs::read_to_string(data.join("admin.key")).unwrap();
    engine.open_session(key.trim()).await.unwrap()
}

fn document(number: usize) -> UploadDocument {
    UploadDocument {
        id: Some(format!("d{number}")),
        title: None,
        text: format!("Document number {number} about albatrosses."),
        format: TextFormat::Plain,
        metadata: serde_json::Map::new(),
        vector: None,
    }
}

async fn upload(session: &Session, number: usize) {
    // While an actor is being restarted a write may be refused or have an unknown outcome; a client then tries again.
    for _ in 0..100 {
        match session.upload("c", vec![document(number)], None).await {
            Ok(_) => return,
            Err(fault) => assert!(fault.retry_after_ms.is_some() || fault.code == "unknown_outcome", "{fault}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("document {number} could not be stored");
}

async fn assert_all_found(session: &Session, count: usize) {
    for mode in [Mode::Dense, Mode::Text] {
        let search = Search {
            query: Some("albatrosses".into()),
            vector: None,
            mode: Some(mode),
            limit: 1000,
            offset: 0,
            filter: Default::default(),
            group_by_document: true,
            weights: (1.0, 1.0),
            recall: crate::Recall::Usual,
            explain: false,
            freshness: Freshness::Strong,
            allow_partial: false,
        };
        let found = session.search("c", search).await.unwrap();
        assert_eq!(found.hits.len(), count, "{mode:?}");
    }
    for number in 0..count {
        assert!(session.document("c", &format!("d{number}"), &crate::search::Freshness::Eventual).await.unwrap().text.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_every_kind_of_actor_loses_no_acknowledged_write() {
    let Some(model_dir) = model_dir() else { return };
    let data = tempfile::tempdir().unwrap();
    let engine = start(data.path(), model_dir.clone()).await;
    let new = CreateCollection {
        name: "c".into(),
        spread: Some(4),
        embedding: EmbeddingChoice::Default,
        chunk_tokens: 256,
        chunk_overlap: 32,
        language: "en".into(),
    };
    session(&engine, data.path()).await.create_collection(new).await.unwrap();
    let mut stored = 0;
    for _ in 0..3 {
        let own = session(&engine, data.path()).await;
        upload(&own, stored).await;
        stored += 1;
        engine.parts.embedding_address().cast(EmbedderMessage::Panic);
        assert_eq!(embedded_again(&engine).await, 1);
        for shard in engine.parts.shards.ids().map(|shard| engine.parts.shards.address(shard).unwrap().clone()) {
            shard.cast(ShardMessage::Panic);
        }
        upload(&own, stored).await;
        stored += 1;
        engine.parts.meta.address().cast(MetaMessage::Panic);
        engine.parts.jobs.cast(JobsMessage::Panic);
        engine.parts.keeper.cast(KeeperMessage::Panic);
        engine.parts.sessions.panic_session(own.principal());
        upload(&own, stored).await;
        stored += 1;
        engine.parts.sessions.panic_supervisor();
        upload(&own, stored).await;
        stored += 1;
        let id = loop {
            match own.submit("c", vec![document(stored)], None).await {
                Ok(id) => break id,
                Err(fault) => assert!(fault.retry_after_ms.is_some(), "{fault}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        engine.parts.jobs.cast(JobsMessage::Panic);
        while own.job(&id.to_string()).await.map_or(true, |job| !job.stage.is_final()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stored += 1;
        while !engine.readiness().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A new session works even though the one before it has panicked.
        assert_all_found(&session(&engine, data.path()).await, stored).await;
    }
    engine.stop(Duration::from_secs(5)).await;
    drop(engine);
    let engine = start(data.path(), model_dir).await;
    assert_all_found(&session(&engine, data.path()).await, stored).await;
    engine.stop(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_panics_is_restarted_with_its_children() {
    let Some(model_dir) = model_dir() else { return };
    let data = tempfile::tempdir().unwrap();
    let engine = start(data.path(), model_dir).await;
    let before = engine.parts.embedding_address().current().unwrap().get_id();
    let supervisor = engine.parts.embedding_address().current().unwrap().try_get_supervisor().unwrap();
    supervisor.send_message(crate::supervision::SupervisorMessage::Panic).unwrap();
    while engine.parts.embedding_address().current().is_none_or(|actor| actor.get_id() == before) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(embedded_again(&engine).await, 1);
    engine.stop(Duration::from_secs(5)).await;
}

/// How many vectors come of one text.
async fn embedded_again(engine: &Engine) -> usize {
    let account = Account::of_tenant(DEFAULT_TENANT);
    engine.parts.embedding.embed(&account, Urgency::Query, vec!["again".into()]).await.unwrap().len()
}
