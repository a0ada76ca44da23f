//! What meta commands do.

use crate::fixture::*;
use ragged_raft::group::Ground;
use ragged_raft::ids::{CollectionId, NodeId, ReplicaId, ShardId, TenantId};
use ragged_raft::meta::collection::{Collection, VectorSettings};
use ragged_raft::meta::command::{KeyRecord, MetaCommand, MetaReply, Role};
use ragged_raft::meta::node::{JoinToken, NodeRow, NodeState};
use ragged_raft::meta::{Founding, MetaGroup};

fn key(id: &str) -> KeyRecord {
    KeyRecord { id: id.into(), secret_sha256: [7; 32], tenant: TENANT, role: Role::Admin, created_at_ms: 1 }
}

fn founding() -> Founding {
    Founding { shard_count: 4, admin_key: key("admin"), at_ms: 1 }
}

fn create(tenant: TenantId, name: &str, spread: u16) -> MetaCommand {
    MetaCommand::CreateCollection {
        tenant,
        name: name.into(),
        spread,
        vectors: vec![VectorSettings { name: "default".into(), dimension: 8, model: None }],
        chunk_tokens: 100,
        chunk_overlap: 10,
        language: "en".into(),
        at_ms: 5,
    }
}

async fn created(meta: &MetaGroup, tenant: TenantId, name: &str, spread: u16) -> Collection {
    match meta.propose(&create(tenant, name, spread)).await.unwrap().1 {
        MetaReply::Collection(collection) => collection,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_founded_once_and_keeps_its_collections() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let meta = MetaGroup::start(Ground::alone(store.clone())).await.unwrap();
    assert_eq!(meta.cluster().unwrap(), None);
    assert_eq!(meta.propose(&create(TENANT, "early", 1)).await.unwrap().1, MetaReply::NotFound);
    assert_eq!(meta.found(founding()).await.unwrap(), MetaReply::Done);
    let cluster = meta.cluster().unwrap().unwrap();
    assert_eq!(meta.found(founding()).await.unwrap(), MetaReply::AlreadyExists);
    assert_eq!(meta.cluster().unwrap(), Some(cluster.clone()));
    assert_eq!(meta.key("admin").unwrap().as_deref(), Some(&key("admin")));

    let a = created(&meta, TENANT, "a", 2).await;
    let b = created(&meta, TENANT, "b", 4).await;
    let other = created(&meta, TenantId(2), "a", 1).await;
    assert_eq!((a.id, b.id, other.id), (CollectionId(1), CollectionId(2), CollectionId(3)));
    assert_eq!(b.shards, [0, 1, 2, 3].map(ShardId));
    assert_eq!(a.shards.len(), 2);
    assert_eq!(meta.propose(&create(TENANT, "a", 1)).await.unwrap().1, MetaReply::AlreadyExists);
    for spread in [0, 5] {
        assert!(matches!(meta.propose(&create(TENANT, "c", spread)).await.unwrap().1, MetaReply::LimitExceeded(_)));
    }
    assert!(matches!(meta.propose(&create(TENANT, &"x".repeat(300), 1)).await.unwrap().1, MetaReply::LimitExceeded(_)));
    assert_eq!(meta.collection(TenantId(2), "a").unwrap().as_deref(), Some(&other));
    assert_eq!(meta.collection_by_id(other.id).unwrap().as_deref(), Some(&other));
    assert_eq!(meta.collections(TENANT, None, 10).unwrap(), [a.clone(), b.clone()]);
    assert_eq!(meta.collections(TENANT, Some("a"), 10).unwrap(), std::slice::from_ref(&b));

    let deletion = MetaCommand::DeleteCollection { tenant: TENANT, name: "a".into() };
    assert_eq!(meta.propose(&deletion).await.unwrap().1, MetaReply::Collection(a.clone()));
    assert_eq!(meta.propose(&deletion).await.unwrap().1, MetaReply::NotFound);
    assert_eq!(meta.collection_by_id(a.id).unwrap(), None);
    assert_eq!(meta.dropped_collections(10).unwrap(), std::slice::from_ref(&a));
    assert_eq!(created(&meta, TENANT, "a", 1).await.id, CollectionId(4), "ids are never given twice");
    meta.propose(&MetaCommand::ForgetCollection { collection: a.id }).await.unwrap();
    assert_eq!(meta.dropped_collections(10).unwrap(), []);

    meta.propose(&MetaCommand::PutKey { key: key("second") }).await.unwrap();
    meta.propose(&MetaCommand::DeleteKey { id: "admin".into() }).await.unwrap();
    assert_eq!((meta.key("admin").unwrap().as_deref(), meta.key("second").unwrap().as_deref()), (None, Some(&key("second"))));

    meta.group().shutdown().await;
    drop((meta, store));
    let meta = MetaGroup::start(Ground::alone(reopen(folder.path()))).await.unwrap();
    assert_eq!(meta.cluster().unwrap(), Some(cluster));
    assert_eq!(meta.collections(TENANT, None, 10).unwrap().len(), 2);
    assert_eq!(meta.key("second").unwrap().as_deref(), Some(&key("second")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_a_row_ends_with_the_change_that_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let meta = MetaGroup::start(Ground::alone(open(folder.path()))).await.unwrap();
    meta.found(founding()).await.unwrap();
    assert_eq!(meta.known_key("admin"), None, "nothing is read ahead");
    for round in 0..50u8 {
        let record = KeyRecord { secret_sha256: [round; 32], ..key("k") };
        meta.propose(&MetaCommand::PutKey { key: record.clone() }).await.unwrap();
        assert_eq!(meta.known_key("k"), None);
        assert_eq!(meta.key("k").unwrap().as_deref(), Some(&record));
        assert_eq!(meta.known_key("k").as_deref(), Some(&record));
        // Readers that are in the middle of reading keep nothing that outlives the deletion.
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let meta = meta.clone();
                std::thread::spawn(move || while meta.key("k").unwrap().is_some() {})
            })
            .collect();
        meta.propose(&MetaCommand::DeleteKey { id: "k".into() }).await.unwrap();
        assert_eq!((meta.known_key("k"), meta.key("k").unwrap()), (None, None));
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert_eq!(meta.known_key("k"), None);
    }
    let collection = created(&meta, TENANT, "a", 1).await;
    assert_eq!(meta.collection(TENANT, "a").unwrap().as_deref(), Some(&collection));
    assert_eq!(meta.known_collection(TENANT, "a").as_deref(), Some(&collection));
    assert_eq!(meta.known_collection(TenantId(2), "a"), None);
    meta.propose(&MetaCommand::DeleteCollection { tenant: TENANT, name: "a".into() }).await.unwrap();
    assert_eq!(meta.known_collection(TENANT, "a"), None);
    meta.group().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_a_limit_of_collections_and_another_tenant_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let meta = MetaGroup::start(Ground::alone(open(folder.path()))).await.unwrap();
    meta.found(founding()).await.unwrap();
    let names: Vec<String> = (0..10_000).map(|number| format!("c{number}")).collect();
    for part in names.chunks(500) {
        let commands: Vec<MetaCommand> = part.iter().map(|name| create(TENANT, name, 1)).collect();
        let replies = futures::future::join_all(commands.iter().map(|command| meta.propose(command))).await;
        assert!(replies.iter().all(|reply| matches!(reply, Ok((_, MetaReply::Collection(_))))));
    }
    assert!(matches!(meta.propose(&create(TENANT, "more", 1)).await.unwrap().1, MetaReply::LimitExceeded(_)));
    created(&meta, TenantId(2), "more", 1).await;
    meta.propose(&MetaCommand::DeleteCollection { tenant: TENANT, name: "c5".into() }).await.unwrap();
    created(&meta, TENANT, "more", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_one_node_in_which_may_ask_again() {
    let folder = tempfile::tempdir().unwrap();
    let meta = MetaGroup::start(Ground::alone(open(folder.path()))).await.unwrap();
    meta.found(founding()).await.unwrap();
    let token = |expires_at_ms| JoinToken { id: "t".into(), secret_sha256: [3; 32], expires_at_ms };
    let node = |id: u64| NodeRow {
        node: NodeId(id),
        address: format!("10.0.0.{id}:7401"),
        meta_replica: ReplicaId(id * 10),
        state: NodeState::Active,
        joined_at_ms: 5,
    };
    let admit = |secret: u8, row: NodeRow, at_ms: u64| {
        let meta = meta.clone();
        async move {
            let command = MetaCommand::Admit { token_id: "t".into(), secret_sha256: [secret; 32], node: row, at_ms };
            meta.propose(&command).await.unwrap().1
        }
    };
    let is_refused =
        |reply: MetaReply, why: &str| assert!(matches!(&reply, MetaReply::Refused(said) if said.contains(why)), "{reply:?}");
    is_refused(admit(3, node(1), 10).await, "not known");
    meta.propose(&MetaCommand::PutToken { token: token(100), at_ms: 1 }).await.unwrap();
    is_refused(admit(4, node(1), 10).await, "wrong");
    is_refused(admit(3, node(1), 100).await, "expired");
    assert_eq!(admit(3, node(1), 10).await, MetaReply::Done);
    // The answer was lost, and the node asks again, from another address.
    let moved = NodeRow { address: "10.0.0.9:7401".into(), joined_at_ms: 7, ..node(1) };
    is_refused(admit(4, moved.clone(), 11).await, "wrong");
    assert_eq!(admit(3, moved.clone(), 11).await, MetaReply::Done);
    assert_eq!(meta.node(NodeId(1)).unwrap(), Some(NodeRow { joined_at_ms: 5, ..moved.clone() }));
    is_refused(admit(3, node(2), 12).await, "used before");
    is_refused(admit(3, NodeRow { meta_replica: ReplicaId(77), ..node(1) }, 12).await, "empty data folder");
    is_refused(admit(3, moved, 100).await, "expired");
    meta.propose(&MetaCommand::SetNodeState { node: NodeId(1), state: NodeState::Removed }).await.unwrap();
    is_refused(admit(3, node(1), 12).await, "empty data folder");

    // Another cluster of the survivor alone, which no token of the old one lets anybody into.
    meta.propose(&MetaCommand::PutToken { token: token(1_000), at_ms: 20 }).await.unwrap();
    let cluster = ulid::Ulid::new();
    let refounded = meta.propose(&MetaCommand::Refound { cluster, survivor: NodeId(1) }).await.unwrap().1;
    assert_eq!(refounded, MetaReply::Done);
    assert_eq!(meta.cluster().unwrap().unwrap().cluster, cluster);
    assert_eq!(meta.node(NodeId(1)).unwrap().unwrap().state, NodeState::Active);
    is_refused(admit(3, node(3), 30).await, "not known");
    meta.group().shutdown().await;
}
