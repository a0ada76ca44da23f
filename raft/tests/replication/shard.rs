//! What shard commands do.

use crate::fixture::*;
use ragged_raft::codec;
use ragged_raft::ids::{CollectionId, RowId, TenantId};
use ragged_raft::shard::command::{IdempotencyKey, ShardCommand, ShardReply};
use ragged_raft::shard::rows::{JobRow, JobStage};
use ulid::Ulid;

const DAY_MS: u64 = 24 * 3600 * 1000;

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_stored_replaced_and_deleted_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let reader = group.reader();

    let reply = propose(&group, upsert(vec![document("a", &["one ", "two"]), document("b", &["three"])], 10)).await;
    assert_eq!(reply, ShardReply::Upserted(vec![upserted("a", 2, 1), upserted("b", 1, 1)]));
    check_partition(&reader, TENANT, COLLECTION);

    let reply = propose(&group, upsert(vec![document("a", &["four"])], 20)).await;
    assert_eq!(reply, ShardReply::Upserted(vec![upserted("a", 1, 2)]));
    let heads = check_partition(&reader, TENANT, COLLECTION);
    assert_eq!((heads[0].created_at_ms, heads[0].updated_at_ms, heads[0].first_row), (10, 20, RowId(3)));
    assert_eq!(reader.text(TENANT, COLLECTION, "a").unwrap().as_deref(), Some("four"));
    assert_eq!(reader.owner(TENANT, COLLECTION, RowId(0)).unwrap(), None, "the replaced rows are gone");

    assert_eq!(propose(&group, delete(&["a", "nobody", "a"])).await, ShardReply::Deleted(1));
    let heads = check_partition(&reader, TENANT, COLLECTION);
    assert_eq!(heads.iter().map(|head| head.id.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(propose(&group, delete(&["a"])).await, ShardReply::Deleted(0));

    propose(&group, upsert(vec![document("a", &["again"])], 30)).await;
    let heads = check_partition(&reader, TENANT, COLLECTION);
    assert_eq!((heads[0].version, heads[0].created_at_ms), (1, 30), "a deleted document begins anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_twice_in_a_command_replaces_within_it() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let documents = vec![
        document("a", &["one", "two"]),
        document("b", &["x"]),
        document("a", &["three", "four", "five"]),
        document("a", &["six"]),
    ];
    let reply = propose(&group, upsert(documents, 1)).await;
    let expected = vec![upserted("a", 2, 1), upserted("b", 1, 1), upserted("a", 3, 2), upserted("a", 1, 3)];
    assert_eq!(reply, ShardReply::Upserted(expected));
    let heads = check_partition(&group.reader(), TENANT, COLLECTION);
    assert_eq!(heads.len(), 2);
    assert_eq!(group.reader().text(TENANT, COLLECTION, "a").unwrap().as_deref(), Some("six"));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writes_at_once_leave_a_partition_that_fits_together() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16u32 {
        let group = group.clone();
        writers.spawn(async move {
            for round in 0..20u32 {
                let id = format!("d{}", (writer * 7 + round) % 10);
                if (writer + round) % 5 == 0 {
                    propose(&group, delete(&[&id])).await;
                } else {
                    propose(&group, upsert(vec![document(&id, &["some ", "text"]), document(&id, &["more"])], 1)).await;
                }
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    check_partition(&group.reader(), TENANT, COLLECTION);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_write_is_done_once() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let first = propose(&group, upsert_once(vec![document("a", &["one"])], 1, 1, 1_000)).await;
    assert_eq!(first, ShardReply::Upserted(vec![upserted("a", 1, 1)]));
    assert_eq!(
        propose(&group, upsert_once(vec![document("a", &["one"])], 1, 1, 2_000)).await,
        first,
        "the retry is given the first reply"
    );
    assert_eq!(propose(&group, upsert_once(vec![document("a", &["other"])], 1, 2, 2_000)).await, ShardReply::IdempotencyConflict);
    assert_eq!(group.reader().text(TENANT, COLLECTION, "a").unwrap().as_deref(), Some("one"));
    let head = group.reader().head(TENANT, COLLECTION, "a").unwrap().unwrap();
    assert_eq!(head.version, 1);

    // Up to a day by the commands' own clock it is known, then it is not.
    assert_eq!(propose(&group, upsert_once(vec![document("a", &["one"])], 1, 1, 1_000 + DAY_MS - 1)).await, first);
    let later = propose(&group, upsert_once(vec![document("a", &["two"])], 1, 2, 1_000 + DAY_MS)).await;
    assert_eq!(later, ShardReply::Upserted(vec![upserted("a", 1, 2)]));
    // Used again, it is known for another day.
    assert_eq!(propose(&group, upsert_once(vec![document("a", &["two"])], 1, 2, 1_000 + 2 * DAY_MS - 1)).await, later);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_idempotency_records_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let group = shard(&store, 0).await;
    for key in 0..100 {
        propose(&group, upsert_once(vec![document("a", &["one"])], key, 1, 1_000 + u64::from(key))).await;
    }
    for key in 100..120 {
        propose(&group, upsert_once(vec![document("a", &["one"])], key, 1, 10_000 + DAY_MS)).await;
    }
    // A record that comes with an old clock is removed as well.
    propose(&group, upsert_once(vec![document("a", &["one"])], 200, 1, 5)).await;
    propose(&group, upsert_once(vec![document("a", &["one"])], 201, 1, 20_000 + 3 * DAY_MS)).await;
    for key in 202..210 {
        propose(&group, upsert_once(vec![document("a", &["one"])], key, 1, 20_000 + 3 * DAY_MS)).await;
    }
    group.shutdown().await;
    drop(group);
    drop(store);
    let idempotency_rows = count_rows(folder.path(), |key| key.get(24) == Some(&32));
    let index_rows = count_rows(folder.path(), |key| key.get(24) == Some(&33));
    assert_eq!((idempotency_rows, index_rows), (9, 9), "only the last nine are left");
}

fn count_rows(folder: &std::path::Path, wanted: impl Fn(&[u8]) -> bool) -> usize {
    drop(reopen(folder));
    let db =
        rocksdb::DB::open_cf_for_read_only(&rocksdb::Options::default(), folder.join("db"), ["default", "log", "rows"], false)
            .unwrap();
    let rows = db.full_iterator_cf(db.cf_handle("rows").unwrap(), rocksdb::IteratorMode::Start);
    rows.filter(|row| wanted(&row.as_ref().unwrap().0)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_and_collections_do_not_mix() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let reader = group.reader();
    // Neighbours in the order of keys, also where a byte overflows.
    let places = [(1, 7), (2, 7), (1, 8), (255, u64::MAX), (256, 0xff), (256, 0x100)]
        .map(|(tenant, collection)| (TenantId(tenant), CollectionId(collection)));
    for (tenant, collection) in places {
        let text = format!("{} {}", tenant.0, collection.0);
        let command =
            ShardCommand::Upsert { tenant, collection, documents: vec![document("same", &[&text])], idempotency: None, at_ms: 1 };
        propose(&group, command).await;
    }
    for (tenant, collection) in places {
        assert_eq!(check_partition(&reader, tenant, collection).len(), 1);
        assert_eq!(reader.text(tenant, collection, "same").unwrap(), Some(format!("{} {}", tenant.0, collection.0)));
    }
    let mut sorted = places.to_vec();
    sorted.sort();
    let listed: Vec<_> =
        reader.partitions(None, 100).unwrap().into_iter().map(|(tenant, collection, _)| (tenant, collection)).collect();
    assert_eq!(listed, sorted);
    let rest = reader.partitions(Some(sorted[2]), 2).unwrap();
    assert_eq!(rest.iter().map(|row| (row.0, row.1)).collect::<Vec<_>>(), sorted[3..5]);

    let (tenant, collection) = places[3];
    propose(&group, ShardCommand::DropCollection { tenant, collection }).await;
    assert_eq!(reader.partition(tenant, collection).unwrap(), None);
    assert!(check_partition(&reader, tenant, collection).is_empty());
    for (tenant, collection) in places.into_iter().filter(|place| *place != (tenant, collection)) {
        assert_eq!(check_partition(&reader, tenant, collection).len(), 1, "the neighbours are untouched");
    }
    let late =
        ShardCommand::Upsert { tenant, collection, documents: vec![document("late", &["x"])], idempotency: None, at_ms: 1 };
    assert_eq!(propose(&group, late).await, ShardReply::CollectionDropped, "a write that comes late does not bring it back");
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_listed_in_pages_in_the_order_of_their_ids() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let ids = ["a", "a\0", "a\0b", "ab", "b", "ü"];
    propose(&group, upsert(ids.iter().rev().map(|id| document(id, &["x"])).collect(), 1)).await;
    let mut listed: Vec<String> = Vec::new();
    loop {
        let page = group.reader().heads(TENANT, COLLECTION, listed.last().map(String::as_str), 2).unwrap();
        if page.is_empty() {
            break;
        }
        listed.extend(page.into_iter().map(|head| head.id));
    }
    assert_eq!(listed, ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_kept_listed_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let reader = group.reader();
    let job = |number: u128, stage| JobRow {
        id: Ulid(number),
        collection: "c".into(),
        stage,
        attempt: 0,
        documents: 1,
        done: 0,
        failed: Vec::new(),
        created_at_ms: 1,
        updated_at_ms: 1,
    };
    let ids = |jobs: Vec<JobRow>| jobs.into_iter().map(|job| job.id.0).collect::<Vec<_>>();
    for number in [1, 2, 3, u128::MAX] {
        propose(
            &group,
            ShardCommand::PutJob {
                tenant: TENANT,
                job: job(number, JobStage::Received),
                payload: Some(vec![number as u8; 300]),
                idempotency: None,
            },
        )
        .await;
    }
    propose(
        &group,
        ShardCommand::PutJob { tenant: TenantId(2), job: job(1, JobStage::Parsed), payload: None, idempotency: None },
    )
    .await;
    assert_eq!(ids(reader.jobs(TENANT, None, 10).unwrap()), [u128::MAX, 3, 2, 1]);
    assert_eq!(ids(reader.jobs(TENANT, Some(Ulid(3)), 1).unwrap()), [2]);
    assert_eq!(reader.job_payload(TENANT, Ulid(2)).unwrap(), Some(vec![2; 300]));
    assert_eq!(reader.unfinished_jobs().unwrap().len(), 5);

    propose(&group, ShardCommand::PutJob { tenant: TENANT, job: job(2, JobStage::Replicated), payload: None, idempotency: None })
        .await;
    assert_eq!(reader.job(TENANT, Ulid(2)).unwrap().unwrap().stage, JobStage::Replicated);
    assert_eq!(reader.job_payload(TENANT, Ulid(2)).unwrap(), Some(vec![2; 300]), "a new state keeps the payload");
    propose(&group, ShardCommand::PutJob { tenant: TENANT, job: job(2, JobStage::Chunked), payload: None, idempotency: None })
        .await;
    assert_eq!(reader.job(TENANT, Ulid(2)).unwrap().unwrap().stage, JobStage::Replicated, "who is behind changes nothing");
    propose(&group, ShardCommand::DeleteJobs { tenant: TENANT, ids: vec![Ulid(2)], keep_rows: true }).await;
    assert_eq!(reader.job_payload(TENANT, Ulid(2)).unwrap(), None);
    assert!(reader.job(TENANT, Ulid(2)).unwrap().is_some());
    let again = |stage, attempt| ShardCommand::PutJob {
        tenant: TENANT,
        job: JobRow { attempt, ..job(2, stage) },
        payload: None,
        idempotency: None,
    };
    propose(&group, again(JobStage::Received, 1)).await;
    propose(&group, again(JobStage::Failed, 0)).await;
    assert_eq!(reader.job(TENANT, Ulid(2)).unwrap().unwrap().stage, JobStage::Received, "a new attempt has begun");
    propose(&group, again(JobStage::Replicated, 1)).await;
    propose(&group, ShardCommand::DeleteJobs { tenant: TENANT, ids: vec![Ulid(1), Ulid(9)], keep_rows: false }).await;
    assert_eq!(ids(reader.jobs(TENANT, None, 10).unwrap()), [u128::MAX, 3, 2]);
    let unfinished = reader.unfinished_jobs().unwrap();
    assert_eq!(unfinished, [(TENANT, Ulid(3)), (TENANT, Ulid(u128::MAX)), (TenantId(2), Ulid(1))]);

    let put = |number, request| ShardCommand::PutJob {
        tenant: TENANT,
        job: job(number, JobStage::Received),
        payload: Some(vec![1]),
        idempotency: Some(IdempotencyKey { key: [7; 16], request: [request; 16] }),
    };
    assert_eq!(propose(&group, put(20, 1)).await, ShardReply::Job(Ulid(20)));
    assert_eq!(propose(&group, put(21, 1)).await, ShardReply::Job(Ulid(20)), "the same request is the same job");
    assert_eq!(propose(&group, put(22, 2)).await, ShardReply::IdempotencyConflict, "another request is refused");
    assert!(reader.job(TENANT, Ulid(21)).unwrap().is_none() && reader.job(TENANT, Ulid(22)).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_replaced_since_it_was_seen_is_not_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let reader = group.reader();
    propose(&group, upsert(vec![document("a", &["old"]), document("b", &["old"])], 1)).await;
    let seen: Vec<_> =
        reader.heads(TENANT, COLLECTION, None, 9).unwrap().into_iter().map(|head| (head.id, head.first_row)).collect();
    propose(&group, upsert(vec![document("a", &["new"])], 2)).await;
    let command = ShardCommand::DeleteSeen { tenant: TENANT, collection: COLLECTION, documents: seen };
    assert_eq!(propose(&group, command.clone()).await, ShardReply::Deleted(1));
    assert_eq!(propose(&group, command).await, ShardReply::Deleted(0));
    let left = check_partition(&reader, TENANT, COLLECTION);
    assert_eq!(left.iter().map(|head| (head.id.as_str(), head.version)).collect::<Vec<_>>(), [("a", 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_apply_the_same_have_the_same_state() {
    // Two clusters of one stand for two replicas: each is given the same commands in the same order.
    let mut hashes = Vec::new();
    for _ in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let group = shard(&open(folder.path()), 0).await;
        for number in 0..200u8 {
            let id = format!("d{}", number % 7);
            let command = match number % 10 {
                9 => delete(&[&id]),
                8 => ShardCommand::DropCollection { tenant: TENANT, collection: CollectionId(u64::from(number)) },
                _ => upsert_once(vec![document(&id, &["one ", "two"])], number, 1, u64::from(number) * DAY_MS / 20),
            };
            propose(&group, command).await;
        }
        check_partition(&group.reader(), TENANT, COLLECTION);
        hashes.push(group.group().state_hash().await.unwrap());
    }
    assert_eq!(hashes[0], hashes[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_too_large_is_refused_before_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let group = shard(&open(folder.path()), 0).await;
    let job = JobRow {
        id: Ulid(1),
        collection: "c".into(),
        stage: JobStage::Received,
        attempt: 0,
        documents: 1,
        done: 0,
        failed: Vec::new(),
        created_at_ms: 1,
        updated_at_ms: 1,
    };
    let before = group.group().applied_index();
    let command = ShardCommand::PutJob { tenant: TENANT, job, payload: Some(vec![0; 100 << 20]), idempotency: None };
    let refused = group.propose(command).await.unwrap_err();
    assert!(matches!(refused, ragged_raft::ProposeError::TooLarge { .. }), "{refused}");
    assert_eq!(group.group().applied_index(), before);
}

#[test]
fn a_command_with_many_vectors_is_not_much_longer_than_its_vectors() {
    let mut large = document("a", &["x"; 100]);
    for chunk in &mut large.chunks {
        chunk.vectors = vec![vec![0xff; 768]];
    }
    let frame = codec::encode(&upsert(vec![large], 1)).unwrap();
    assert!(frame.len() < 100 * (768 + 64), "{} bytes", frame.len());
}
