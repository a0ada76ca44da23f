//! Each step of the encoder on the emulated GPU, beside a plain computation in f64.

use super::super::emulator::Emulator;
use super::alone::{self, TOLERANCE};
use super::attention_alone::AttentionWork;
use super::*;
use proptest::prelude::*;

const WAYS: [AttentionWay; 2] = [AttentionWay::Warps, AttentionWay::Warpgroups];

/// All ways of computing attention.
fn check_attention(seed: u64, head: usize, heads: usize, lengths: &[usize]) {
    for way in WAYS {
        check_attention_by(way, seed, (head, heads), lengths, 0.0);
    }
}

fn check_attention_by(way: AttentionWay, seed: u64, heads: (usize, usize), lengths: &[usize], growth: f32) {
    let difference = alone::attention(&Emulator::new(seed), seed, way, heads, lengths, growth).unwrap();
    assert!(difference <= TOLERANCE, "{difference} by {way:?} of {lengths:?}");
}

#[test]
fn attention_over_every_length_near_the_borders_of_tiles() {
    for lengths in
        [&[1, 2, 15][..], &[16, 17], &[63], &[64, 64, 1], &[65], &[127, 1], &[128], &[129], &[193, 64], &[257], &[32, 33, 96, 97]]
    {
        check_attention(lengths[0] as u64, 32, 2, lengths);
    }
}

#[test]
fn attention_of_wider_heads() {
    for lengths in [&[1, 64, 33][..], &[1, 70], &[130], &[17, 113], &[257]] {
        check_attention(7, 64, 1, lengths);
    }
}

#[test]
fn attention_alone_is_the_same_in_all_ways() {
    for head_dimension in [32, 64] {
        let work = AttentionWork { lengths: vec![3, 70], heads: 2, head_dimension };
        for way in WAYS {
            let difference = attention_alone::difference(&Emulator::new(1), &work, [AttentionWay::Warps, way]).unwrap();
            assert!(f64::from(difference) <= 2.0 * TOLERANCE, "{way:?}: {difference}");
        }
    }
}

/// Scores grow so much from step to step that what has been added up has to be made smaller.
#[test]
fn attention_whose_later_scores_are_larger() {
    for way in WAYS {
        for (head, length) in [(32, 300), (64, 200)] {
            check_attention_by(way, 5, (head, 1), &[length], 0.02);
            check_attention_by(way, 6, (head, 1), &[length], 0.2);
        }
    }
}

/// A step that is begun before all warps have ended the one before shows only when a warp falls behind at the right moment.
#[test]
fn attention_whose_warps_fall_behind() {
    for seed in 0..12 {
        check_attention(seed, 32, 1, &[320]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn rows_are_embedded_and_normalized(seed in any::<u64>(), rows in 1usize..20, groups in 1usize..=128) {
        let machine = Emulator::new(seed);
        for difference in [alone::embedding(&machine, seed, rows, groups * 8), alone::layer_norm(&machine, seed, rows, groups * 8)] {
            let difference = difference.unwrap();
            prop_assert!(difference <= TOLERANCE, "{difference}");
        }
    }

    #[test]
    fn sequences_are_pooled(
        seed in any::<u64>(), lengths in proptest::collection::vec(1usize..30, 1..6), groups in 1usize..=128, first_only in any::<bool>(),
    ) {
        let difference = alone::pooling(&Emulator::new(seed), seed, &lengths, groups * 8, first_only).unwrap();
        prop_assert!(difference <= 1e-5, "{difference}");
    }
}

/// What is said here of products is that the emulator computes them, and that the comparison sees it when they are not: on a GPU it is the library's that are
/// compared.
#[test]
fn products_have_their_ends() {
    for end in [ProductEnd::Store, ProductEnd::Add, ProductEnd::Relu, ProductEnd::Gelu] {
        let difference = alone::product(&Emulator::new(1), 1, (16, 48, 24), end).unwrap();
        assert!(difference <= TOLERANCE, "{difference} at {end:?}");
    }
}
