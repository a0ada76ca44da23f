//! The kernels of every instruction set that the processor has; what search promises is tested through its
//! interface.

use super::*;
use crate::instructions::Instructions;

#[test]
fn every_instruction_set_gives_the_inner_product_at_every_length() {
    let query: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
    let rows: Vec<Vec<f16>> = (0..BLOCK_ROWS)
        .map(|row| {
            let values: Vec<f32> = (0..100).map(|i| ((i + row * 17) as f32 * 0.71).cos()).collect();
            to_f16(&values)
        })
        .collect();
    for set in Instructions::available() {
        let kernels = Kernels::of(set);
        for length in 0..=100 {
            let query = &query[..length];
            let block: [&[f16]; BLOCK_ROWS] = std::array::from_fn(|row| &rows[row][..length]);
            let mut scores = [f32::NAN; BLOCK_ROWS];
            block.run(kernels, query, &mut scores);
            for (row, score) in block.into_iter().zip(scores) {
                let expected: f64 = query.iter().zip(row).map(|(a, b)| f64::from(*a) * b.to_f64()).sum();
                assert!((f64::from(score) - expected).abs() < 1e-5, "{set}, length {length}");
                let mut alone = [f32::NAN];
                [row].run(kernels, query, &mut alone);
                assert_eq!(alone[0], score, "{set}, length {length}");
            }
        }
    }
}

#[test]
fn many_queries_at_once_find_what_each_finds_alone() {
    let (dimension, rows, queries) = (37, 1003, 21);
    let value = |number: usize| ((number * 7919 % 10_007) as f32 * 0.01).sin();
    let values: Vec<f32> = (0..rows * dimension).map(value).collect();
    let asked: Vec<f32> = (0..queries * dimension).map(|number| value(number + 12_345)).collect();
    let rows = to_f16(&values);
    for (k, threads) in [(0, 1), (1, 3), (10, 1), (10, 4), (2000, 2)] {
        let found = top_k_of_each(&asked, &rows, dimension, k, threads);
        assert_eq!(found.len(), queries);
        for (found, query) in found.iter().zip(asked.chunks_exact(dimension)) {
            let scores = |scored: &[Scored]| scored.iter().map(|one| one.score).collect::<Vec<_>>();
            assert_eq!(scores(found), scores(&top_k(query, &rows, dimension, None, k)), "{k} on {threads} threads");
        }
    }
    assert!(top_k_of_each(&asked, &[], dimension, 5, 2).iter().all(Vec::is_empty));
    assert!(top_k_of_each(&[], &rows, dimension, 5, 2).is_empty());
}
