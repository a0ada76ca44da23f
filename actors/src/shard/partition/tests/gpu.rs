//! Searches of a partition whose rows are on a GPU: they find what the processor finds, with its scores, whatever happens to rows and GPU.

use super::shard::{TestShard, document};
use super::*;
use crate::gpu_rows::fake::{FakeDevice, FakeGpu};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const COUNT: usize = 600;
/// With so many values to compare, bits are soon made.
const LENGTH: usize = 64;
/// Enough for all that the tests have.
const FREE_BYTES: u64 = 1 << 24;

/// A shard whose rows a GPU may have.
pub(super) fn shard_with_gpu(dimension: u32) -> (TestShard, Arc<FakeGpu>) {
    let mut shard = TestShard::new(dimension, "none");
    let fake = Arc::<FakeGpu>::default();
    shard.gpu_rows = Arc::new(GpuRows::register(50, &prometheus::Registry::new()).unwrap());
    shard.gpu_rows.host(0, 0, Box::new(FakeDevice(fake.clone(), FREE_BYTES)));
    (shard, fake)
}

fn vector(random: &mut StdRng) -> Vec<f32> {
    let mut vector: Vec<f32> = (0..LENGTH).map(|_| random.random_range(-1.0..1.0f32)).collect();
    ragged_kernels::exact::normalize(&mut vector);
    vector
}

fn filled(shard: &TestShard) {
    let mut random = StdRng::seed_from_u64(3);
    let prepared = (0..COUNT).map(|number| {
        let metadata = format!("{{\"number\":{number}}}");
        document(&number.to_string(), None, &metadata, &[("a point", vector(&mut random))])
    });
    shard.upsert_all(prepared.collect());
}

fn queries() -> Vec<PartitionQuery> {
    let below = |limit: usize| {
        let test = Test::Range { lower: Bound::Unbounded, upper: Bound::Excluded(Scalar::Number(limit.into())) };
        Filter { must: vec![Condition { field: "number".into(), test }], ..Default::default() }
    };
    let mut random = StdRng::seed_from_u64(4);
    let query = |filter: Option<Filter>| PartitionQuery {
        vector: Some(vector(&mut random)),
        filter,
        depth: 10,
        recall: Recall::Exact,
        explain: true,
        ..Default::default()
    };
    [None, Some(below(300)), Some(below(7)), None, Some(below(0))].map(query).into()
}

/// Answers without their steps, and whether the GPU had a part in all that found something.
fn answers(partition: &Partition) -> (Vec<Vec<(RowId, u32)>>, bool) {
    let mut by_gpu = true;
    let answer = |query: PartitionQuery| {
        let answer = partition.search(&query).unwrap();
        by_gpu &= answer.dense.is_empty() || answer.steps.iter().any(|step| step.contains("exact on a GPU"));
        answer.dense.into_iter().map(|one| (one.row, one.score.to_bits())).collect()
    };
    (queries().into_iter().map(answer).collect(), by_gpu)
}

fn until_on_gpu(partition: &Partition) -> Vec<Vec<(RowId, u32)>> {
    for _ in 0..2_000 {
        let (found, by_gpu) = answers(partition);
        if by_gpu {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the rows never came to the GPU");
}

#[test]
fn rows_and_scores_are_those_of_the_processor_with_filters_and_deletions_and_when_the_gpu_fails() {
    let (shard, fake) = shard_with_gpu(LENGTH as u32);
    filled(&shard);
    let on_gpu = shard.open();
    on_gpu.index_with(true).unwrap();
    let check = || {
        let found = until_on_gpu(&on_gpu);
        fake.fails.store(true, Ordering::SeqCst);
        let (without, by_gpu) = answers(&on_gpu);
        assert!(!by_gpu, "it has failed");
        fake.fails.store(false, Ordering::SeqCst);
        assert_eq!(found, without);
        found
    };
    let all = check();
    for number in (0..COUNT).step_by(3) {
        shard.delete(&number.to_string());
    }
    let fewer = check();
    assert_ne!(all, fewer);
    assert!(fewer.iter().flatten().all(|(row, _)| !row.0.is_multiple_of(3)));
    // Rows that are not indexed yet are the processor's, and ranked with the others.
    let best = queries()[0].vector.clone().unwrap();
    shard.upsert_all(vec![document("new", None, "{}", &[("a point", best)])]);
    let found = check();
    assert_eq!(found[0][0].0, RowId(COUNT as u32));
}

#[test]
fn a_partition_that_is_unloaded_takes_its_rows_along() {
    let (shard, fake) = shard_with_gpu(LENGTH as u32);
    filled(&shard);
    let partition = shard.open();
    partition.index_with(true).unwrap();
    until_on_gpu(&partition);
    assert_eq!(fake.sets.load(Ordering::SeqCst), 1);
    drop(partition);
    for _ in 0..2_000 {
        if fake.sets.load(Ordering::SeqCst) == 0 && shard.gpu_rows.memory()[0].rows_bytes == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the rows are never freed");
}

#[test]
fn an_index_that_is_sooner_than_the_gpu_is_asked_and_the_gpu_where_all_vectors_would_be_compared() {
    const ROWS: usize = 9_000;
    let (shard, fake) = shard_with_gpu(LENGTH as u32);
    let mut random = StdRng::seed_from_u64(5);
    // A few heaps, which an index tells apart.
    let centres: Vec<Vec<f32>> = (0..40).map(|_| vector(&mut random)).collect();
    let mut near = |centre: &Vec<f32>| {
        let mut near: Vec<f32> = centre.iter().map(|value| value + random.random_range(-0.08..0.08f32)).collect();
        ragged_kernels::exact::normalize(&mut near);
        near
    };
    for some in (0..ROWS).collect::<Vec<_>>().chunks(1_000) {
        let prepared =
            some.iter().map(|number| document(&number.to_string(), None, "{}", &[("a point", near(&centres[number % 40]))]));
        shard.upsert_all(prepared.collect());
    }
    let partition = shard.open();
    partition.index_with(true).unwrap();
    // More than an index takes, and less than comparing all vectors does.
    fake.micros.store(30, Ordering::SeqCst);
    let question = near(&centres[7]);
    let steps = |recall| {
        let vector = Some(question.clone());
        let query = PartitionQuery { vector, depth: 10, recall, explain: true, ..Default::default() };
        partition.search(&query).unwrap().steps.join("; ")
    };
    for _ in 0..2_000 {
        if steps(Recall::Exact).contains("exact on a GPU: 9000 compared") {
            assert!(steps(Recall::Usual).contains("approximate"), "{}", steps(Recall::Usual));
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the GPU never searched: {}", steps(Recall::Exact));
}
