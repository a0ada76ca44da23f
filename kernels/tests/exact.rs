//! What exact search promises: the best rows of all, in order, whatever is allowed.

use half::f16;
use proptest::prelude::*;
use ragged_kernels::Scored;
use ragged_kernels::exact::{dot, normalize, score, to_f16, top_k};
use roaring::RoaringBitmap;

fn naive_dot(query: &[f32], row: &[f16]) -> f64 {
    query.iter().zip(row).map(|(a, b)| f64::from(*a) * b.to_f64()).sum()
}

/// All allowed rows ordered by score and position, by the crate's own `dot`.
fn naive_top_k(query: &[f32], rows: &[f16], allowed: Option<&RoaringBitmap>, k: usize) -> Vec<Scored> {
    let mut all: Vec<Scored> = rows
        .chunks(query.len())
        .zip(0..)
        .map(|(row, position)| Scored { position, score: dot(query, row) })
        .filter(|scored| !scored.score.is_nan())
        .filter(|scored| allowed.is_none_or(|allowed| allowed.contains(scored.position)))
        .collect();
    all.sort_by(|a, b| b.score.partial_cmp(&a.score).expect("numbers").then(a.position.cmp(&b.position)));
    all.truncate(k);
    all
}

/// Values of which many products are equal, so that ties are common.
fn coarse() -> impl Strategy<Value = f32> {
    (-4i8..=4).prop_map(|value| f32::from(value) / 4.0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn dot_is_the_inner_product(
        pairs in prop::collection::vec((-10.0f32..10.0, -10.0f32..10.0), 0..700),
    ) {
        let query: Vec<f32> = pairs.iter().map(|(a, _)| *a).collect();
        let row = to_f16(&pairs.iter().map(|(_, b)| *b).collect::<Vec<f32>>());
        let magnitude: f64 = query.iter().zip(&row).map(|(a, b)| (f64::from(*a) * b.to_f64()).abs()).sum();
        let difference = f64::from(dot(&query, &row)) - naive_dot(&query, &row);
        prop_assert!(difference.abs() <= 1e-6 * magnitude + 1e-9);
    }

    #[test]
    fn the_best_rows_are_found_in_order_with_and_without_a_filter(
        query in prop::collection::vec(coarse(), 1..50),
        count in 0usize..60,
        values in prop::collection::vec(coarse(), 50 * 60),
        broken in prop::collection::vec(0usize..60, 0..5),
        allowed in prop::option::of(prop::collection::vec(0u32..100, 0..60)),
        k in 0usize..70,
    ) {
        let dimension = query.len();
        let mut rows = to_f16(&values[..count * dimension]);
        for position in broken.into_iter().filter(|position| *position < count) {
            rows[position * dimension] = f16::NAN;
        }
        let allowed: Option<RoaringBitmap> = allowed.map(|positions| positions.into_iter().collect());
        let found = top_k(&query, &rows, dimension, allowed.as_ref(), k);
        prop_assert_eq!(&found, &naive_top_k(&query, &rows, allowed.as_ref(), k));

        let positions: Vec<u32> = found.iter().map(|scored| scored.position).rev().collect();
        let mut again = score(&query, &rows, dimension, &positions);
        again.reverse();
        prop_assert_eq!(again, found);
    }

    #[test]
    fn normalized_vectors_have_length_one(
        mut values in prop::collection::vec(-1e30f32..1e30, 1..400),
        scale in prop::sample::select(vec![1.0f32, 1e-30, 1e8, 1e-60]),
    ) {
        for value in &mut values {
            *value *= scale;
        }
        let was_zero = values.iter().all(|value| *value == 0.0);
        normalize(&mut values);
        let length: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
        if was_zero {
            prop_assert_eq!(length, 0.0);
        } else {
            prop_assert!((length - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn every_half_precision_value_is_widened_exactly() {
    for bits in 0..=u16::MAX {
        let value = f16::from_bits(bits);
        let product = dot(&[1.0], &[value]);
        if value.is_nan() {
            assert!(product.is_nan());
        } else {
            assert_eq!(product, value.to_f32());
        }
    }
}

#[test]
fn rows_without_a_score_are_never_returned() {
    let rows = to_f16(&[f32::NAN, 1.0, f32::INFINITY, -1.0]);
    let positions = |found: Vec<Scored>| found.iter().map(|it| it.position).collect::<Vec<u32>>();
    assert_eq!(positions(top_k(&[1.0], &rows, 1, None, 10)), [2, 1, 3]);
    assert_eq!(positions(top_k(&[0.0], &rows, 1, None, 10)), [1, 3]);
    assert!(top_k(&[f32::NAN], &rows, 1, None, 10).is_empty());
    assert!(score(&[f32::NAN], &rows, 1, &[0, 1]).is_empty());
}

#[test]
fn positions_past_the_last_row_are_passed_over() {
    let rows = to_f16(&[1.0, 2.0]);
    let allowed: RoaringBitmap = [1, 2, u32::MAX].into_iter().collect();
    assert_eq!(top_k(&[1.0], &rows, 1, Some(&allowed), 5).len(), 1);
    assert_eq!(score(&[1.0], &rows, 1, &[5, 0, u32::MAX]).len(), 1);
    assert!(top_k(&[1.0], &[], 1, None, 5).is_empty());
    assert_eq!(top_k(&[1.0], &rows, 1, None, usize::MAX).len(), 2);
}
