//! How much of what is nearest is found in a segment with an index, and how, whatever part of the rows a filter passes.

use super::shard::{TestShard, document};
use crate::filter::{Condition, Filter, Scalar, Test};
use crate::shard::partition::{Partition, PartitionQuery, Recall};
use ragged_kernels::exact;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashSet;
use std::ops::Bound;

const DIMENSION: usize = 24;
const COUNT: usize = 12_000;
const HEAPS: usize = 60;
const LIMIT: usize = 10;

/// Vectors in heaps, as texts on some subjects are; the heap comes first.
fn vectors(count: usize, seed: u64) -> Vec<(usize, Vec<f32>)> {
    let centre = |heap: usize| {
        let mut random = StdRng::seed_from_u64(1000 + heap as u64);
        (0..DIMENSION).map(|_| random.random_range(-1.0..1.0f32)).collect::<Vec<f32>>()
    };
    let centres: Vec<Vec<f32>> = (0..HEAPS).map(centre).collect();
    let mut random = StdRng::seed_from_u64(seed);
    let mut vector = |number: usize| {
        let heap = number % HEAPS;
        let mut vector: Vec<f32> = centres[heap].iter().map(|value| value + random.random_range(-0.9..0.9)).collect();
        exact::normalize(&mut vector);
        (heap, vector)
    };
    (0..count).map(&mut vector).collect()
}

fn ids(partition: &Partition, query: &PartitionQuery) -> (Vec<String>, String) {
    let answer = partition.search(query).unwrap();
    (answer.dense.into_iter().map(|one| one.document_id).collect(), answer.steps.join("; "))
}

/// With all documents in one segment with an index.
fn filled(shard: &TestShard) -> Partition {
    let partition = shard.open();
    let numbered: Vec<(usize, (usize, Vec<f32>))> = vectors(COUNT, 1).into_iter().enumerate().collect();
    for some in numbered.chunks(1000) {
        let prepared = some.iter().map(|(number, (heap, vector))| {
            // Apart from everything else: a whole number that has nothing to do with the vector.
            let metadata = format!("{{\"draw\":{},\"heap\":{heap}}}", number * 7919 % COUNT);
            document(&number.to_string(), None, &metadata, &[("a point", vector.clone())])
        });
        shard.upsert_all(prepared.collect());
    }
    partition.index_with(true).unwrap();
    partition
}

/// The shares of what is nearest that are found for these questions, and how.
fn share_found(partition: &Partition, questions: &[(usize, Vec<f32>)], recall: Recall) -> (f64, String) {
    let (mut found, mut wanted, mut steps) = (0, 0, String::new());
    for (_, question) in questions {
        let query =
            |recall| PartitionQuery { vector: Some(question.clone()), depth: LIMIT, recall, explain: true, ..Default::default() };
        let (right, _) = ids(partition, &query(Recall::Exact));
        let (hits, how) = ids(partition, &query(recall));
        (found, wanted, steps) = (found + hits.iter().filter(|id| right.contains(id)).count(), wanted + right.len(), how);
    }
    (found as f64 / wanted as f64, steps)
}

#[test]
fn an_index_is_searched_as_hard_as_the_queries_need_that_have_come() {
    let shard = TestShard::new(DIMENSION as u32, "none");
    let partition = filled(&shard);
    let questions = vectors(600, 3);
    let (asked, others) = questions.split_at(300);
    let (_, at_first) = share_found(&partition, &asked[..100], Recall::Usual);
    assert!(!partition.wants_trial(), "a hundred queries say too little");
    (0..2).for_each(|_| drop(share_found(&partition, asked, Recall::Usual)));
    assert!(partition.wants_trial());
    partition.read_vectors(true);
    assert!(partition.try_index().unwrap());
    assert!(!partition.wants_trial() && !partition.try_index().unwrap(), "it has been tried");
    partition.read_vectors(false);
    for (recall, least) in [(Recall::Usual, 0.95), (Recall::High, 0.99)] {
        let (found, steps) = share_found(&partition, others, recall);
        assert!(found >= least - 0.01, "{found} by {steps}");
    }
    // Questions that are vectors of the segment are easier than those that it was tried with at first: one list has all that is near.
    let (_, then) = share_found(&partition, others, Recall::Usual);
    assert_ne!(then, at_first, "nothing was learnt");
}

#[test]
fn as_much_is_found_however_many_are_wanted() {
    let shard = TestShard::new(DIMENSION as u32, "none");
    let partition = filled(&shard);
    for depth in [1, 10, 30, 100, 250] {
        let (mut found, mut wanted, mut used) = (0, 0, String::new());
        for (_, question) in vectors(100, 2) {
            let query =
                |recall| PartitionQuery { vector: Some(question.clone()), depth, recall, explain: true, ..Default::default() };
            let (right, _) = ids(&partition, &query(Recall::Exact));
            let (hits, steps) = ids(&partition, &query(Recall::Usual));
            assert_eq!(hits.len(), depth);
            (found, wanted, used) = (found + hits.iter().filter(|id| right.contains(id)).count(), wanted + depth, steps);
        }
        assert!(used.contains("approximate"), "{depth}: {used}");
        assert!(found * 100 >= wanted * 95, "{depth}: {found} of {wanted}");
    }
}

#[test]
fn a_filtered_search_finds_as_much_as_it_is_asked_to_and_all_that_there_is_up_to_the_limit() {
    let shard = TestShard::new(DIMENSION as u32, "none");
    let partition = filled(&shard);
    // Some are gone: what is left is looked for through a mask also without a filter.
    for number in (0..COUNT).step_by(40) {
        shard.delete(&number.to_string());
    }
    let only = |field: &str, test| Filter { must: vec![Condition { field: field.to_owned(), test }], ..Default::default() };
    let whole = |value: usize| Scalar::Number(value.into());
    let below =
        |field: &str, value: usize| only(field, Test::Range { lower: Bound::Unbounded, upper: Bound::Excluded(whole(value)) });
    let cases = [
        ("all", Filter::default(), "approximate"),
        ("half", below("draw", COUNT / 2), "approximate"),
        ("a tenth", below("draw", COUNT / 10), "by bytes"),
        ("a hundredth", below("draw", COUNT / 100), "exact"),
        ("six", below("draw", 6), "exact"),
        ("none", below("draw", 0), "nothing"),
        // Near some questions is everything allowed, near others nothing.
        ("half of the heaps", below("heap", HEAPS / 2), "approximate"),
        ("a few heaps", below("heap", HEAPS / 6), ""),
    ];
    for (name, filter, method) in cases {
        let (mut found, mut wanted, mut used) = (0, 0, HashSet::new());
        for (_, question) in vectors(120, 2) {
            let query = |recall| PartitionQuery {
                vector: Some(question.clone()),
                filter: Some(filter.clone()),
                depth: LIMIT,
                recall,
                explain: true,
                ..Default::default()
            };
            let (right, steps) = ids(&partition, &query(Recall::Exact));
            assert!(!steps.contains("approximate") && !steps.contains("by bytes"), "{steps}");
            let (hits, steps) = ids(&partition, &query(Recall::Usual));
            assert_eq!(hits.len(), right.len(), "{name}: {steps}");
            used.extend(["approximate", "by bytes", "exact", "nothing"].into_iter().filter(|method| steps.contains(method)));
            found += hits.iter().filter(|id| right.contains(id)).count();
            wanted += right.len();
        }
        assert!(found * 100 >= wanted * 95, "{name}: {found} of {wanted}");
        assert!(used.iter().any(|used| used.contains(method)), "{name}: {used:?}");
    }
}
