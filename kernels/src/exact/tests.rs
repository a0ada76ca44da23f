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
