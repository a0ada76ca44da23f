//! What a partition promises, against a naive model of it and the real store.

#![allow(clippy::unwrap_used)] // a test may fail

mod crash;
mod filters;
mod gpu;
mod model;
mod quality;
mod recall;
mod shard;
mod words;

use super::activity::{IDLE, LONG_IDLE, PAUSE, WAITING_ROWS, WAITING_ROWS_MAX, WAITING_ROWS_SEARCHED};
use super::*;
use crate::filter::{Condition, Scalar, Test};
use model::{Model, Operation};
use proptest::prelude::*;
use shard::{TestShard, document};
use std::ops::Bound;
use std::time::Duration;

const DIMENSION: u32 = 6;

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (0u16..10, 1u16..5, any::<u64>()).prop_map(|(id, chunks, seed)| Operation::Upsert { id, chunks, seed }),
        3 => (0u16..10).prop_map(|id| Operation::Delete { id }),
        2 => any::<bool>().prop_map(|idle| Operation::Index { idle }),
        1 => Just(Operation::Reopen),
        1 => Just(Operation::GiveBack),
        1 => any::<bool>().prop_map(|reads| Operation::ReadVectors { reads }),
        1 => any::<bool>().prop_map(|void| Operation::Lose { void }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_those_of_the_model_whatever_happens_in_whatever_order(
        operations in proptest::collection::vec(operation(), 1..40), look_each_time: bool, has_gpu: bool,
    ) {
        let mut shard = if has_gpu { gpu::shard_with_gpu(DIMENSION).0 } else { TestShard::new(DIMENSION, "none") };
        let mut model = Model::default();
        let mut partition = Some(shard.open());
        for operation in &operations {
            match operation {
                Operation::Upsert { .. } | Operation::Delete { .. } | Operation::Drop => model.apply(&mut shard, operation),
                Operation::Index { idle } => {
                    partition.as_ref().unwrap().index_with(*idle).unwrap();
                }
                Operation::Lose { void } => {
                    let mut follower = partition.as_ref().unwrap().follower.lock();
                    follower.is_lost = true;
                    follower.is_checkpoint_void |= void;
                }
                Operation::GiveBack => partition.as_ref().unwrap().give_back(),
                Operation::ReadVectors { reads } => partition.as_ref().unwrap().read_vectors(*reads),
                Operation::Reopen => {
                    drop(partition.take());
                    partition = Some(shard.open());
                }
            }
            if look_each_time {
                model.check(partition.as_ref().unwrap());
            }
        }
        model.check(partition.as_ref().unwrap());
        partition.as_ref().unwrap().index_with(true).unwrap();
        model.check(partition.as_ref().unwrap());
        drop(partition);
        let reopened = shard.open();
        prop_assert_eq!(reopened.status().rebuilds, 0);
        model.check(&reopened);
    }
}

#[test]
fn deleted_rows_do_not_come_back_after_merging_and_reopening() {
    let mut shard = TestShard::new(DIMENSION, "none");
    let mut model = Model::default();
    let partition = shard.open();
    for round in 0..12u16 {
        for id in 0..10 {
            model.apply(&mut shard, &Operation::Upsert { id, chunks: 3, seed: u64::from(round) * 100 + u64::from(id) });
        }
        model.apply(&mut shard, &Operation::Delete { id: round % 10 });
        partition.index_with(round % 4 == 3).unwrap();
        model.check(&partition);
    }
    assert!(partition.status().segments <= 4);
    drop(partition);
    let partition = shard.open();
    model.check(&partition);
    assert_eq!(partition.status().tail_rows, 0);
}

/// Bytes of mapped files in a folder that are this process' memory.
fn mapped_bytes(folder: &Path) -> u64 {
    mapped_bytes_of(folder, "")
}

/// Of the files of this name in it, or of all with an empty name.
fn mapped_bytes_of(folder: &Path, name: &str) -> u64 {
    let is_inside = |map: &procfs::process::MemoryMap| match &map.pathname {
        procfs::process::MMapPath::Path(path) => path.starts_with(folder) && (name.is_empty() || path.ends_with(name)),
        _ => false,
    };
    let maps = procfs::process::Process::myself().unwrap().smaps().unwrap();
    maps.iter().filter(|map| is_inside(map)).map(|map| map.extension.map["Rss"]).sum()
}

#[test]
fn pages_that_are_given_back_are_read_again_by_searches() {
    let mut shard = TestShard::new(DIMENSION, "none");
    let mut model = Model::default();
    let partition = shard.open();
    for id in 0..100 {
        model.apply(&mut shard, &Operation::Upsert { id, chunks: 4, seed: u64::from(id) });
    }
    partition.index_with(true).unwrap();
    assert_eq!(partition.status().tail_rows, 0);
    let folder = shard.checkpoint().canonicalize().unwrap();
    for _ in 0..3 {
        model.check(&partition);
        assert!(mapped_bytes(&folder) > 0);
        partition.give_back();
        assert_eq!(mapped_bytes(&folder), 0, "vectors and words alike");
    }
    partition.read_vectors(true);
    let (_, vectors) = partition.mapped_bytes();
    assert_eq!(vectors, 400 * DIMENSION as usize * 2);
    model.check(&partition);
    let mapped = |file: &str| mapped_bytes_of(&folder, file);
    assert_eq!(mapped("vectors.f16"), 0, "vectors are read");
    partition.read_vectors(false);
    model.check(&partition);
    assert!(mapped("vectors.f16") > 0);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                partition.give_back();
            }
        });
        (0..20).for_each(|_| model.check(&partition));
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn an_idle_partition_has_nothing_left_to_do() {
    let mut shard = TestShard::new(DIMENSION, "none");
    let mut model = Model::default();
    let partition = shard.open();
    assert!(!partition.wants_indexing());
    model.apply(&mut shard, &Operation::Upsert { id: 1, chunks: 4, seed: 1 });
    partition.index_with(true).unwrap();
    partition.activity.lock().since = Instant::now().checked_sub(LONG_IDLE).unwrap();
    assert!(!partition.wants_indexing());
    model.apply(&mut shard, &Operation::Upsert { id: 2, chunks: 4, seed: 1 });
    assert!(!partition.wants_indexing(), "a few rows wait a while");
    partition.activity.lock().since = Instant::now().checked_sub(LONG_IDLE).unwrap();
    assert!(partition.wants_indexing());
}

#[test]
fn rows_that_come_fast_wait_while_a_round_of_indexing_rests_but_not_too_many() {
    const CHUNKS: u16 = 128;
    let mut shard = TestShard::new(DIMENSION, "none");
    let mut model = Model::default();
    let partition = shard.open();
    let mut id = 0;
    let mut add = |shard: &mut TestShard, rows: u32| {
        for _ in 0..rows / u32::from(CHUNKS) {
            id += 1;
            model.apply(shard, &Operation::Upsert { id, chunks: CHUNKS, seed: 1 });
        }
    };
    add(&mut shard, WAITING_ROWS);
    assert!(partition.wants_indexing(), "no round has been yet");
    let begun = Instant::now();
    partition.index().unwrap();
    assert!(partition.activity.lock().rests_until > begun, "a round rests after it");
    add(&mut shard, WAITING_ROWS);
    partition.activity.lock().rests_until = Instant::now() + Duration::from_secs(600);
    assert!(!partition.wants_indexing());
    partition.activity.lock().rests_until = Instant::now();
    assert!(partition.wants_indexing(), "it has rested");
    partition.activity.lock().rests_until = Instant::now() + Duration::from_secs(600);
    partition.activity.lock().since = Instant::now().checked_sub(PAUSE).unwrap();
    assert!(partition.wants_indexing(), "they do not come fast any more");
    partition.activity.lock().rests_until = Instant::now() + Duration::from_secs(600);
    add(&mut shard, WAITING_ROWS_SEARCHED - WAITING_ROWS);
    assert!(!partition.wants_indexing(), "nobody searches");
    let query = PartitionQuery { vector: Some(vec![1.0; DIMENSION as usize]), depth: 1, ..Default::default() };
    partition.search(&query).unwrap();
    assert!(partition.wants_indexing(), "every search scores them all");
    partition.index().unwrap();
    partition.activity.lock().rests_until = Instant::now() + Duration::from_secs(600);
    add(&mut shard, WAITING_ROWS_SEARCHED);
    assert!(!partition.wants_indexing(), "nobody has searched since");
    add(&mut shard, WAITING_ROWS_MAX - WAITING_ROWS_SEARCHED);
    assert!(partition.wants_indexing(), "the next search would read and score them all");
}

#[test]
fn rows_are_indexed_before_a_search_would_have_to_read_too_many() {
    const DIMENSION: usize = 4096;
    let shard = TestShard::new(DIMENSION as u32, "none");
    let partition = shard.open();
    // A tail may have a MiB, which is 128 rows; four times as many wait.
    let chunks = vec![("word", vec![0.5; DIMENSION]); 128];
    for id in 0..4 {
        assert!(!partition.wants_indexing(), "{id}");
        shard.upsert_all(vec![document(&id.to_string(), None, "{}", &chunks)]);
    }
    assert!(partition.wants_indexing());
}

#[test]
fn rows_that_wait_are_indexed_before_all_are_joined() {
    let mut shard = TestShard::new(DIMENSION, "none");
    let mut model = Model::default();
    let partition = shard.open();
    let mut add = |documents: std::ops::Range<u16>| {
        documents.for_each(|id| model.apply(&mut shard, &Operation::Upsert { id, chunks: 128, seed: 1 }));
    };
    let index_when_idle = || {
        partition.activity.lock().due(partition.source.counters().unwrap().changed_at, 0, false); // it has been seen to change
        partition.activity.lock().since = Instant::now().checked_sub(IDLE).unwrap();
        assert!(partition.wants_indexing());
        let progress = partition.index().unwrap();
        (progress.rows, progress.replaced, progress.segments)
    };
    add(0..320);
    assert_eq!(index_when_idle(), (320 * 128, 0, 1));
    add(320..360);
    assert_eq!(index_when_idle(), (40 * 128, 0, 2), "joining all of them would keep these waiting");
    assert_eq!(index_when_idle(), (0, 2, 1));
}

#[test]
fn searches_run_beside_indexing_and_see_every_acknowledged_write() {
    let shard = TestShard::new(DIMENSION, "none");
    let partition = shard.open();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                partition.index_with(true).unwrap();
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                partition.search(&PartitionQuery { text: Some("alpha".to_owned()), depth: 5, ..Default::default() }).unwrap();
            }
        });
        for number in 0..60u32 {
            let word = format!("only{number}");
            shard.upsert(&format!("d{}", number % 20), None, "{}", &[(&word, vec![1.0; 6])]);
            let query = PartitionQuery { text: Some(word), vector: Some(vec![1.0; 6]), depth: 100, ..Default::default() };
            let answer = partition.search(&query).unwrap();
            assert_eq!(answer.text.len(), 1, "write {number} is not seen");
            assert_eq!(answer.dense.len() as u32, (number + 1).min(20));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn filtered_searches_beside_writes_and_indexing_see_every_acknowledged_write_and_nothing_else() {
    const DOCUMENTS: i64 = 20;
    let shard = TestShard::new(DIMENSION, "none");
    let partition = shard.open();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let from = |number: i64| {
        let range = Test::Range { lower: Bound::Included(Scalar::Number(number.into())), upper: Bound::Unbounded };
        Some(Filter { must: vec![Condition { field: "n".to_owned(), test: range }], ..Default::default() })
    };
    let query = |number: i64| PartitionQuery {
        vector: Some(vec![1.0; 6]),
        text: Some("word".to_owned()),
        filter: from(number),
        depth: 100,
        ..Default::default()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                partition.index_with(true).unwrap();
            }
        });
        // Two that ask the same all the time, so that what one makes the other uses.
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let answer = partition.search(&query(0)).unwrap();
                    let documents: std::collections::HashSet<&str> =
                        answer.dense.iter().map(|one| one.document_id.as_str()).collect();
                    assert_eq!(documents.len(), answer.dense.len(), "two versions of a document");
                    assert!(answer.text.len() <= DOCUMENTS as usize);
                }
            });
        }
        for number in 0..100i64 {
            let metadata = format!("{{\"n\":{number}}}");
            shard.upsert(&format!("d{}", number % DOCUMENTS), None, &metadata, &[("word", vec![1.0; 6])]);
            let count = |number| {
                let answer = partition.search(&query(number)).unwrap();
                assert_eq!(answer.dense.len(), answer.text.len());
                answer.dense.len() as i64
            };
            assert_eq!(count(number), 1, "write {number} is not seen");
            assert_eq!(count(number - 5), (number + 1).min(6));
            assert_eq!(count(0), (number + 1).min(DOCUMENTS));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn grouping_gives_the_best_row_of_each_document_and_enough_documents() {
    let shard = TestShard::new(DIMENSION, "none");
    let partition = shard.open();
    // One document has all of the nearest rows.
    let near: Vec<(&str, Vec<f32>)> = (0..30).map(|_| ("alpha alpha alpha", vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0])).collect();
    shard.upsert("near", None, "{}", &near);
    for number in 0..9 {
        shard.upsert(
            &format!("far{number}"),
            None,
            "{}",
            &[("alpha beta", vec![0.5, 0.1, 0.0, 0.0, 0.0, 0.0]), ("gamma", vec![0.0; 6])],
        );
    }
    let query = PartitionQuery {
        vector: Some(vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        text: Some("alpha".to_owned()),
        depth: 5,
        group_by_document: true,
        ..Default::default()
    };
    for _ in 0..2 {
        let answer = partition.search(&query).unwrap();
        for ranking in [&answer.dense, &answer.text] {
            assert_eq!(ranking.len(), 5);
            assert_eq!((ranking[0].document_id.as_str(), ranking[0].chunk), ("near", 0));
            let documents: std::collections::HashSet<&str> = ranking.iter().map(|one| one.document_id.as_str()).collect();
            assert_eq!(documents.len(), 5);
        }
        partition.index_with(true).unwrap();
    }
}

#[test]
fn a_query_of_another_length_is_an_error() {
    let shard = TestShard::new(DIMENSION, "none");
    let query = PartitionQuery { vector: Some(vec![1.0; 5]), depth: 3, ..Default::default() };
    assert!(matches!(shard.open().search(&query), Err(PartitionError::Dimension { expected: 6, found: 5 })));
}

#[test]
fn a_dropped_collection_is_empty() {
    let mut shard = TestShard::new(DIMENSION, "none");
    let mut model = Model::default();
    let partition = shard.open();
    for id in 0..5 {
        model.apply(&mut shard, &Operation::Upsert { id, chunks: 2, seed: 7 });
    }
    partition.index_with(true).unwrap();
    model.apply(&mut shard, &Operation::Drop);
    model.check(&partition);
    Partition::remove(&shard.checkpoint()).unwrap();
    assert!(!partition.wants_indexing());
    partition.index_with(true).unwrap();
    model.check(&partition);
    drop(partition);
    model.check(&shard.open());
}

#[test]
fn files_of_a_dropped_collection_do_not_come_back() {
    let mut shard = TestShard::new(DIMENSION, "none");
    let mut model = Model::default();
    let (partition, opened_meanwhile) = (shard.open(), shard.open());
    for id in 0..5 {
        model.apply(&mut shard, &Operation::Upsert { id, chunks: 2, seed: 7 });
    }
    // A round that has begun before the folder goes: it finds that, and makes none.
    Partition::remove(&shard.checkpoint()).unwrap();
    assert!(partition.index_with(true).is_err());
    assert!(!shard.checkpoint().exists());
    partition.retire();
    partition.index_with(true).unwrap();
    assert!(!shard.checkpoint().exists() && !partition.wants_indexing());
    // One that is opened at that moment makes the folder again: it goes with whoever used it last.
    drop(opened_meanwhile);
    let opened_meanwhile = shard.open();
    assert!(shard.checkpoint().exists());
    model.apply(&mut shard, &Operation::Drop);
    drop(partition);
    assert!(!shard.checkpoint().exists());
    std::fs::create_dir(shard.checkpoint()).unwrap();
    drop(opened_meanwhile);
    assert!(!shard.checkpoint().exists());
}
