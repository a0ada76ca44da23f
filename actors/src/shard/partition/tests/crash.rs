//! Crashes and damage: whatever is on the disk, answers are right.

use super::model::{Model, Operation};
use super::shard::{TestShard, document};
use crate::filter::{Condition, Filter, Scalar, Test};
use crate::shard::partition::segment::INDEXED_ROWS_MIN;
use crate::shard::partition::{PartitionQuery, Recall};
use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::path::{Path, PathBuf};

fn filled() -> (TestShard, Model) {
    let mut shard = TestShard::new(6, "none");
    let mut model = Model::default();
    let partition = shard.open();
    for id in 0..10 {
        model.apply(&mut shard, &Operation::Upsert { id, chunks: 4, seed: u64::from(id) });
    }
    partition.index_with(false).unwrap();
    model.apply(&mut shard, &Operation::Delete { id: 3 });
    model.apply(&mut shard, &Operation::Upsert { id: 4, chunks: 2, seed: 99 });
    partition.index_with(false).unwrap();
    model.apply(&mut shard, &Operation::Upsert { id: 11, chunks: 2, seed: 98 });
    drop(partition);
    (shard, model)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn damage_to_any_file_changes_no_answer() {
    let (shard, model) = filled();
    let intact = tempfile::tempdir().unwrap();
    copy(&shard.checkpoint(), intact.path());
    for path in files(intact.path()) {
        let name = path.strip_prefix(intact.path()).unwrap().to_owned();
        let length = fs::metadata(&path).unwrap().len();
        for damage in ["missing", "torn", "flipped", "empty"] {
            fs::remove_dir_all(shard.checkpoint()).unwrap();
            copy(intact.path(), &shard.checkpoint());
            let damaged = shard.checkpoint().join(&name);
            let mut content = fs::read(&damaged).unwrap();
            match damage {
                "missing" => fs::remove_file(&damaged).unwrap(),
                "torn" => fs::write(&damaged, &content[..length as usize / 2]).unwrap(),
                "flipped" if length > 0 => {
                    content[length as usize / 3] ^= 4;
                    fs::write(&damaged, content).unwrap();
                }
                _ => fs::write(&damaged, []).unwrap(),
            }
            let partition = shard.open();
            model.check(&partition);
            partition.index_with(true).unwrap();
            model.check(&partition);
            drop(partition);
            model.check(&shard.open());
        }
    }
}

#[test]
fn a_crash_between_the_two_commits_loses_and_doubles_nothing() {
    let (mut shard, mut model) = filled();
    let before = tempfile::tempdir().unwrap();
    copy(&shard.checkpoint(), before.path());
    model.apply(&mut shard, &Operation::Upsert { id: 5, chunks: 3, seed: 70 });
    shard.open().index_with(false).unwrap();
    let after = tempfile::tempdir().unwrap();
    copy(&shard.checkpoint(), after.path());
    for (text, vectors) in [(&before, &after), (&after, &before)] {
        fs::remove_dir_all(shard.checkpoint()).unwrap();
        copy(&text.path().join("text"), &shard.checkpoint().join("text"));
        copy(&vectors.path().join("segments"), &shard.checkpoint().join("segments"));
        fs::copy(vectors.path().join("manifest"), shard.checkpoint().join("manifest")).unwrap();
        fs::create_dir_all(shard.checkpoint().join("segments/77")).unwrap();
        let partition = shard.open();
        assert_eq!(partition.status().rebuilds, 0);
        assert!(!shard.checkpoint().join("segments/77").exists(), "left behind by a crash");
        model.check(&partition);
        model.apply(&mut shard, &Operation::Upsert { id: 6, chunks: 1, seed: 71 });
        model.check(&partition);
        partition.index_with(false).unwrap();
        model.check(&partition);
        drop(partition);
        model.check(&shard.open());
    }
}

#[test]
fn a_checkpoint_ahead_of_the_rows_is_not_believed() {
    let (ahead, _) = filled();
    ahead.open().index_with(true).unwrap();
    let mut shard = TestShard::new(6, "none");
    let mut model = Model::default();
    for id in 0..3 {
        model.apply(&mut shard, &Operation::Upsert { id, chunks: 3, seed: 500 + u64::from(id) });
    }
    copy(&ahead.checkpoint(), &shard.checkpoint());
    let partition = shard.open();
    assert_eq!(partition.status().rebuilds, 2);
    model.check(&partition);
    partition.index_with(true).unwrap();
    model.check(&partition);
}

/// Clustered vectors of length one.
fn clustered(count: usize, dimension: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut gauss = move || (0..6).map(|_| random.random_range(-1.0f32..1.0)).sum::<f32>();
    let centers: Vec<Vec<f32>> = (0..200).map(|_| (0..dimension).map(|_| gauss()).collect()).collect();
    let mut vectors = Vec::new();
    for number in 0..count {
        let mut vector: Vec<f32> = centers[number * 7919 % 200].iter().map(|value| value + 0.6 * gauss()).collect();
        ragged_kernels::exact::normalize(&mut vector);
        vectors.push(vector);
    }
    vectors
}

#[test]
fn the_approximate_index_finds_what_exact_search_finds() {
    const COUNT: usize = 20_000;
    for dimension in [64usize, 30] {
        let shard = TestShard::new(dimension as u32, "none");
        let mut vectors = clustered(COUNT + 50, dimension, 1);
        let queries = vectors.split_off(COUNT);
        for (block, some) in vectors.chunks(1000).enumerate() {
            let documents = some.iter().enumerate().map(|(place, vector)| {
                let number = block * 1000 + place;
                let metadata = format!("{{\"tenth\":{},\"rare\":{}}}", number % 10 == 0, number % 1000 == 0);
                document(&format!("d{number}"), None, &metadata, &[("word", vector.clone())])
            });
            shard.upsert_all(documents.collect());
        }
        let partition = shard.open();
        partition.index_with(true).unwrap();
        assert_eq!((partition.status().segments, partition.status().tail_rows), (1, 0));
        const { assert!(COUNT > INDEXED_ROWS_MIN) };
        for number in (0..COUNT).filter(|number| number % 7 == 3) {
            shard.delete(&format!("d{number}"));
        }
        let is_there = |number: usize| number % 7 != 3;
        let only = |field: &str| {
            Some(Filter {
                must: vec![Condition { field: field.to_owned(), test: Test::In(vec![Scalar::Bool(true)]) }],
                ..Default::default()
            })
        };
        let cases: [(Option<Filter>, usize); 3] = [(None, 1), (only("tenth"), 10), (only("rare"), 1000)];
        for (filter, step) in cases {
            let recalls = [(Recall::Usual, 0.95), (Recall::High, 0.99), (Recall::Exact, 1.0)];
            let (mut right, mut wanted) = ([0; 3], 0);
            for query in &queries {
                let score = |number: &usize| {
                    let row: Vec<f16> = ragged_kernels::exact::to_f16(&vectors[*number]);
                    ragged_kernels::exact::dot(query, &row)
                };
                let mut expected: Vec<(f32, usize)> =
                    (0..COUNT).step_by(step).filter(|number| is_there(*number)).map(|number| (score(&number), number)).collect();
                expected.sort_by(|one, other| other.0.total_cmp(&one.0));
                let all = expected.len();
                let search = |depth: usize, recall: Recall| {
                    let (vector, filter) = (Some(query.clone()), filter.clone());
                    let query = PartitionQuery { vector, filter, depth, recall, explain: true, ..Default::default() };
                    let answer = partition.search(&query).unwrap();
                    assert_eq!(answer.dense.len(), depth.min(all), "fewer than there are");
                    assert!(answer.dense.iter().all(|one| is_there(one.row.0 as usize)), "a deleted row");
                    answer
                };
                let best: Vec<usize> = expected[..10].iter().map(|(_, number)| *number).collect();
                for ((recall, _), right) in recalls.iter().zip(&mut right) {
                    let answer = search(10, *recall);
                    let is_exact = !answer.steps.iter().any(|step| step.contains("approximate"));
                    assert!(is_exact || *recall != Recall::Exact, "{:?}", answer.steps);
                    *right += answer.dense.iter().filter(|one| best.contains(&(one.row.0 as usize))).count();
                }
                wanted += 10;
                search(100, Recall::Usual);
                search(11_000, Recall::Usual);
            }
            for ((recall, least), right) in recalls.into_iter().zip(right) {
                let found = right as f64 / f64::from(wanted);
                println!("dimension {dimension}, one in {step}: {recall:?} finds {found:.3}");
                assert!(found >= least, "{recall:?} finds {found}");
            }
        }
        drop(partition);
        let partition = shard.open();
        assert_eq!(partition.status().rebuilds, 0);
        let best = PartitionQuery { vector: Some(vectors[0].clone()), depth: 1, explain: true, ..Default::default() };
        let answer = partition.search(&best).unwrap();
        assert_eq!(answer.dense[0].document_id, "d0");
        assert!(answer.steps.iter().any(|step| step.contains("approximate")), "{:?}", answer.steps);
    }
}

#[test]
fn zeros_and_duplicates_are_indexed() {
    let shard = TestShard::new(16, "none");
    let documents: Vec<_> = (0..INDEXED_ROWS_MIN + 10)
        .map(|number| {
            document(&format!("d{number}"), None, "{}", &[("word", vec![if number % 2 == 0 { 0.0 } else { 0.25 }; 16])])
        })
        .collect();
    for some in documents.chunks(1000) {
        shard.upsert_all(some.to_vec());
    }
    let partition = shard.open();
    partition.index_with(true).unwrap();
    let found =
        partition.search(&PartitionQuery { vector: Some(vec![0.25; 16]), depth: 10, ..Default::default() }).unwrap().dense;
    assert!(found.iter().all(|one| (one.score - 1.0).abs() < 1e-3), "{found:?}");
    assert_eq!(found.len(), 10);
}
