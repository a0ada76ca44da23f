//! What an index promises, through its interface.

use super::*;
use crate::exact;
use half::f16;
use proptest::prelude::*;
use std::io::Write;

/// Values between -1 and 1 that look random and are always the same.
pub(super) fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// A bit for each position.
fn bits(positions: &[u32], count: usize) -> Vec<u64> {
    let mut bits = vec![0u64; count.div_ceil(64)];
    positions.iter().for_each(|position| bits[*position as usize / 64] |= 1 << (position % 64));
    bits
}

pub(super) fn index(vectors: &[f16], dimension: usize, lists: usize) -> (tempfile::TempDir, ApproximateIndex) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    let mut bytes = Vec::new();
    build(vectors, dimension, lists, 2, &mut bytes).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let index = ApproximateIndex::open(&path).unwrap();
    (folder, index)
}

/// An effort that keeps every candidate.
fn all_of(probes: usize, count: usize) -> Effort {
    Effort { probes, candidates: 2 * count, found: count }
}

/// Vectors in forty heaps, as texts on forty subjects are: `row % 40` is the heap.
pub(super) fn in_heaps(dimension: usize, count: u64) -> Vec<f16> {
    let mut vectors = Vec::new();
    for row in 0..count {
        let mut vector = values(dimension, row % 40);
        vector.iter_mut().zip(values(dimension, 1000 + row)).for_each(|(value, own)| *value += 0.7 * own);
        exact::normalize(&mut vector);
        vectors.extend(vector);
    }
    exact::to_f16(&vectors)
}

#[test]
fn what_is_nearest_is_among_the_candidates() {
    let (dimension, count) = (48, 4000);
    let vectors = in_heaps(dimension, count);
    let (_folder, index) = index(&vectors, dimension, 64);
    index.give_back(); // its pages are read again
    let (mut found, mut wanted) = (0, 0);
    for query in 0..50 {
        let mut query = values(dimension, query % 40);
        exact::normalize(&mut query);
        let right = exact::top_k(&query, &vectors, dimension, None, 10);
        let candidates = index.search(&query, Effort { probes: 16, candidates: 100, found: 20 }, None).unwrap();
        assert_eq!(candidates.len(), 20);
        found += right.iter().filter(|right| candidates.contains(&right.position)).count();
        wanted += right.len();
    }
    assert!(found * 100 >= wanted * 98, "{found} of {wanted}");
}

#[test]
fn lists_vary_in_what_is_allowed_when_that_has_to_do_with_the_vectors() {
    let (dimension, count) = (48, 4000);
    let vectors = in_heaps(dimension, count);
    let (_folder, index) = index(&vectors, dimension, 64);
    let variation = |is_allowed: &dyn Fn(u32) -> bool| {
        let allowed: Vec<u32> = (0..count as u32).filter(|row| is_allowed(*row)).collect();
        let mask = index.mask(&bits(&allowed, count as usize));
        let part = allowed.len() as f64 / count as f64;
        index.near(&values(dimension, 0)).reach(64, &mask, part).variation
    };
    // Of each heap as many; all of some heaps; of each heap some, but of some more.
    assert!(variation(&|row| row / 40 % 4 == 0) < 0.01);
    assert!(variation(&|row| row % 40 < 10) > 1.0);
    let some = variation(&|row| row / 40 % 4 < if row % 2 == 0 { 1 } else { 3 });
    assert!((0.05..0.5).contains(&some), "{some}");
    assert_eq!((variation(&|_| true), variation(&|_| false)), (0.0, 0.0));
    // A filter that passes the tenth that is farthest from the query, and nothing near it.
    let query = values(dimension, 0);
    let nearest = exact::top_k(&query, &vectors, dimension, None, count as usize);
    let far: Vec<u32> = nearest[count as usize * 9 / 10..].iter().map(|one| one.position).collect();
    let mask = index.mask(&bits(&far, count as usize));
    let near = index.near(&query).reach(2, &mask, 0.1);
    assert!(near.allowed <= 2 && near.variation > 0.8, "{near:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn with_all_lists_every_allowed_row_is_found_once(
        count in 1usize..400,
        dimension in 1usize..40,
        lists in 1usize..20,
        seed in any::<u64>(),
        step in 1usize..4,
    ) {
        let vectors = exact::to_f16(&values(count * dimension, seed));
        let (_folder, index) = index(&vectors, dimension, lists);
        let query = values(dimension, seed ^ 1);
        let mut all = index.search(&query, all_of(lists, count), None).unwrap();
        all.sort_unstable();
        prop_assert!(all.into_iter().eq(0..count as u32));
        let right: Vec<u32> = (0..count as u32).step_by(step).collect();
        let mask = index.mask(&bits(&right, count));
        let mut some = index.search(&query, all_of(lists, count), Some(&mask)).unwrap();
        some.sort_unstable();
        prop_assert_eq!(&some, &right);
        // What is in both of two masks, a third of what is allowed in the last block only.
        let last: Vec<u32> = right.iter().copied().filter(|position| *position as usize + BLOCK >= count).step_by(3).collect();
        let both = mask.and(&index.mask(&bits(&last, count)));
        let mut some = index.search(&query, all_of(lists, count), Some(&both)).unwrap();
        some.sort_unstable();
        prop_assert_eq!(&some, &last);
        let mut compared = index.compare(&query, count, &both).unwrap();
        compared.sort_unstable();
        prop_assert_eq!(compared, last);
        let best_byte = index.compare(&query, 1, &mask).unwrap()[0];
        let score = |position: u32| exact::score(&query, &vectors, dimension, &[position])[0].score;
        let best = right.iter().map(|position| score(*position)).fold(f32::NEG_INFINITY, f32::max);
        prop_assert!(best - score(best_byte) < 0.01 * dimension as f32, "{} instead of {}", score(best_byte), best);
        // A row is in one list or in two.
        let reach = index.near(&query).reach(index.lists(), &mask, right.len() as f64 / count as f64);
        prop_assert!(reach.rows >= count && reach.rows <= 2 * count);
        prop_assert!(reach.allowed >= right.len() && reach.allowed <= 2 * right.len());
        prop_assert!(reach.scanned >= reach.allowed && reach.scanned <= index.numbers().len());
        let mut near = index.near(&query);
        let nearest = near.reach(2, &mask, 0.5).allowed;
        let found = near.search(all_of(2, count), Some(&mask)).unwrap().len();
        prop_assert!(found <= nearest && nearest <= 2 * found);
        let few = index.search(&query, all_of(1, 5), None).unwrap();
        prop_assert!(few.len() <= 5);
        // Rows that are read are the same.
        index.read_rows(true);
        prop_assert_eq!(index.search(&query, all_of(1, 5), None).unwrap(), few);
        prop_assert_eq!(index.compare(&query, 1, &mask).unwrap()[0], best_byte);
    }

    #[test]
    fn a_file_that_is_not_a_whole_index_is_refused(cut in 0usize..10_000, place in 0usize..64, bit in 0u8..8) {
        let vectors = exact::to_f16(&values(300 * 8, 7));
        let mut bytes = Vec::new();
        build(&vectors, 8, 4, 1, &mut bytes).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        std::fs::write(&path, &bytes[..cut % bytes.len()]).unwrap();
        prop_assert!(ApproximateIndex::open(&path).is_err());
        // In the head; what follows is in the hands of whoever keeps the file's checksum.
        bytes[place] ^= 1 << bit;
        std::fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
        if let Ok(index) = ApproximateIndex::open(&path) {
            prop_assert!(place >= 24, "byte {}", place);
            prop_assert_eq!(index.search(&values(8, 1), all_of(4, 10), None).unwrap().len(), 10);
        }
    }
}

#[test]
fn equal_vectors_zeros_and_values_that_are_not_finite_are_kept() {
    let mut vectors = vec![f16::from_f32(0.5); 500 * 6];
    vectors[..6].fill(f16::ZERO);
    vectors[6..12].fill(f16::NAN);
    vectors[12..18].fill(f16::INFINITY);
    let (_folder, index) = index(&vectors, 6, 16);
    let mut found = index.search(&[1.0; 6], all_of(16, 500), None).unwrap();
    found.sort_unstable();
    assert!(found.into_iter().eq(0..500));
    assert!(!index.search(&[1.0; 6], all_of(4, 10), None).unwrap().contains(&0), "zeros are not what is nearest");
}

#[test]
fn what_cannot_be_indexed_is_refused() {
    let mut nothing = Vec::new();
    for (count, dimension) in [(0, 4), (7, 4), (8, 0), (2 * DIMENSION_MAX + 2, DIMENSION_MAX + 1)] {
        let vectors = vec![f16::ONE; count];
        assert!(build(&vectors, dimension, 1, 1, &mut nothing).is_err(), "{count} values, {dimension} each");
    }
}
