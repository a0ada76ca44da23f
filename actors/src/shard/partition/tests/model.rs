//! What a partition should answer, in the simplest way.

use super::shard::{TestShard, document};
use crate::filter::{Condition, Filter, Scalar, Test};
use crate::shard::partition::{Candidate, Partition, PartitionQuery};
use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;

const WORDS: [&str; 8] = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"];

#[derive(Debug, Clone)]
pub(super) enum Operation {
    Upsert {
        id: u16,
        chunks: u16,
        seed: u64,
    },
    Delete {
        id: u16,
    },
    Drop,
    Index {
        idle: bool,
    },
    Reopen,
    GiveBack,
    ReadVectors {
        reads: bool,
    },
    /// Changes were taken and not applied; with `void`, the rows were replaced as well.
    Lose {
        void: bool,
    },
}

struct ModelChunk {
    words: Vec<&'static str>,
    vector: Vec<f32>,
}

struct ModelDocument {
    /// What the metadata says; some say nothing.
    number: Option<i64>,
    chunks: Vec<ModelChunk>,
}

#[derive(Default)]
pub(super) struct Model {
    documents: BTreeMap<String, ModelDocument>,
}

/// Whether a document with this number passes.
type Passes = fn(Option<i64>) -> bool;

/// Filters that every check asks with, so that what was kept of them is used after whatever has happened since.
fn filters() -> Vec<(Filter, Passes)> {
    let number = |test| Condition { field: "n".to_owned(), test };
    let only = |test, passes: Passes| (Filter { must: vec![number(test)], ..Default::default() }, passes);
    let without = |test, passes: Passes| (Filter { must_not: vec![number(test)], ..Default::default() }, passes);
    let whole = |value: i64| Scalar::Number(value.into());
    let range = |lower, upper| Test::Range { lower, upper };
    vec![
        only(range(Bound::Unbounded, Bound::Excluded(whole(500))), |n| n.is_some_and(|n| n < 500)),
        only(range(Bound::Included(whole(250)), Bound::Included(whole(400))), |n| n.is_some_and(|n| (250..=400).contains(&n))),
        only(Test::Exists(false), |n| n.is_none()),
        without(range(Bound::Excluded(whole(100)), Bound::Unbounded), |n| n.is_none_or(|n| n <= 100)),
    ]
}

type Place = (String, u32);

impl Model {
    pub(super) fn apply(&mut self, shard: &mut TestShard, operation: &Operation) {
        match operation {
            Operation::Upsert { id, chunks, seed } => self.upsert(shard, &format!("d{id}"), *chunks, *seed),
            Operation::Delete { id } => {
                self.documents.remove(&format!("d{id}"));
                shard.delete(&format!("d{id}"));
            }
            Operation::Drop => {
                self.documents.clear();
                shard.drop_collection();
            }
            Operation::Index { .. }
            | Operation::Reopen
            | Operation::GiveBack
            | Operation::ReadVectors { .. }
            | Operation::Lose { .. } => {
                unreachable!("not for the model")
            }
        }
    }

    fn upsert(&mut self, shard: &mut TestShard, id: &str, chunks: u16, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut content = Vec::new();
        for _ in 0..chunks {
            let words = (0..random.random_range(0..6)).map(|_| WORDS[random.random_range(0..WORDS.len())]).collect();
            let vector = (0..6).map(|_| f16::from_f32(random.random_range(-1.0..1.0)).to_f32()).collect();
            content.push(ModelChunk { words, vector });
        }
        let number = random.random_bool(0.8).then(|| random.random_range(0..1000));
        let metadata = number.map_or("{}".to_owned(), |number: i64| format!("{{\"n\":{number}}}"));
        let texts: Vec<String> = content.iter().map(|chunk| chunk.words.join(" ")).collect();
        let chunks: Vec<(&str, Vec<f32>)> =
            texts.iter().zip(&content).map(|(text, chunk)| (text.as_str(), chunk.vector.clone())).collect();
        shard.upsert_all(vec![document(id, None, &metadata, &chunks)]);
        self.documents.insert(id.to_owned(), ModelDocument { number, chunks: content });
    }

    fn chunks(&self) -> impl Iterator<Item = (Place, &ModelChunk)> {
        self.documents
            .iter()
            .flat_map(|(id, document)| (0u32..).zip(&document.chunks).map(move |(chunk, content)| ((id.clone(), chunk), content)))
    }

    /// Compares answers of several kinds.
    pub(super) fn check(&self, partition: &Partition) {
        for group_by_document in [false, true] {
            for depth in [3, 1000] {
                self.check_dense(partition, group_by_document, depth);
            }
            for word in &WORDS[..3] {
                self.check_text(partition, word, group_by_document);
            }
        }
        for (filter, passes) in filters() {
            self.check_filter(partition, &filter, passes);
        }
        let status = partition.status();
        assert_eq!(status.live_rows as usize, self.chunks().count());
    }

    fn check_dense(&self, partition: &Partition, group_by_document: bool, depth: usize) {
        let vector = vec![0.3, -0.2, 0.5, 0.1, -0.7, 0.4];
        let query = PartitionQuery { vector: Some(vector.clone()), depth, group_by_document, ..Default::default() };
        let found = partition.search(&query).unwrap().dense;
        let dot = |chunk: &ModelChunk| vector.iter().zip(&chunk.vector).map(|(a, b)| a * b).sum::<f32>();
        let mut expected: Vec<(f32, Place)> = self.chunks().map(|(place, chunk)| (dot(chunk), place)).collect();
        expected.sort_by(|one, other| other.0.total_cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
        if group_by_document {
            let mut seen = HashSet::new();
            expected.retain(|(_, (id, _))| seen.insert(id.clone()));
        }
        expected.truncate(depth);
        assert_eq!(found.len(), expected.len());
        for (one, (score, _)) in found.iter().zip(&expected) {
            assert!((one.score - score).abs() < 1e-4, "{found:?} {expected:?}");
        }
        // The scores are random, so that equal ones are of the same seed: their documents have the same content.
        if depth >= expected.len() && !group_by_document {
            assert_eq!(places(&found), expected.into_iter().map(|(_, place)| place).collect());
        }
    }

    fn check_filter(&self, partition: &Partition, filter: &Filter, passes: Passes) {
        let passing = self.documents.iter().filter(|(_, document)| passes(document.number));
        let passing: BTreeSet<String> = passing.map(|(id, _)| id.clone()).collect();
        let expected: BTreeSet<Place> = self.chunks().map(|(place, _)| place).filter(|(id, _)| passing.contains(id)).collect();
        let with_word: BTreeSet<Place> = self
            .chunks()
            .filter(|(place, chunk)| expected.contains(place) && chunk.words.contains(&WORDS[0]))
            .map(|(place, _)| place)
            .collect();
        let query = PartitionQuery {
            vector: Some(vec![0.3, -0.2, 0.5, 0.1, -0.7, 0.4]),
            text: Some(WORDS[0].to_owned()),
            filter: Some(filter.clone()),
            depth: 1000,
            ..Default::default()
        };
        for _ in 0..2 {
            let answer = partition.search(&query).unwrap();
            assert_eq!(places(&answer.dense), expected, "{filter:?}");
            assert_eq!(answer.dense.len(), expected.len());
            assert_eq!(places(&answer.text), with_word, "{filter:?}");
            let documents = partition.matching_documents(filter, None, 1000).unwrap();
            assert!(documents.iter().map(|(id, _)| id).eq(&passing), "{filter:?}: {documents:?}");
        }
    }

    fn check_text(&self, partition: &Partition, word: &str, group_by_document: bool) {
        let query = PartitionQuery { text: Some(format!("{word}? zzz")), depth: 1000, group_by_document, ..Default::default() };
        let found = partition.search(&query).unwrap().text;
        assert!(found.is_sorted_by(|one, other| one.score > other.score || (one.score == other.score && one.row < other.row)));
        let expected: BTreeSet<Place> =
            self.chunks().filter(|(_, chunk)| chunk.words.contains(&word)).map(|(place, _)| place).collect();
        if group_by_document {
            let documents: BTreeSet<&str> = expected.iter().map(|(id, _)| id.as_str()).collect();
            assert_eq!(found.len(), documents.len());
            assert_eq!(found.iter().map(|one| one.document_id.as_str()).collect::<BTreeSet<_>>(), documents);
        } else {
            assert_eq!(found.len(), expected.len());
            assert_eq!(places(&found), expected);
        }
    }
}

fn places(found: &[Candidate]) -> BTreeSet<Place> {
    found.iter().map(|one| (one.document_id.clone(), one.chunk)).collect()
}
