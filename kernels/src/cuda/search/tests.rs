//! Searches on the emulated GPU, beside those of the processor.

use super::super::emulator::Emulator;
use super::super::rows::{TILE_VALUES, bytes_of};
use super::*;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use roaring::RoaringBitmap;
use std::sync::Arc;

fn vectors(seed: u64, count: usize, dimension: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count * dimension).map(|_| random.random_range(-1.0f32..1.0)).collect()
}

fn gpu(rows: &[f16], dimension: usize, parts: usize) -> (GpuRows<Emulator>, SearchLane<Emulator>) {
    gpu_of(Emulator::new(7), rows, dimension, parts)
}

fn gpu_of(machine: Emulator, rows: &[f16], dimension: usize, parts: usize) -> (GpuRows<Emulator>, SearchLane<Emulator>) {
    let mut gpu = GpuRows::new(Arc::new(machine), dimension);
    let mut lane = SearchLane::new(gpu.machine.as_ref(), dimension).unwrap();
    let part = (rows.len() / dimension).div_ceil(parts).max(1) * dimension;
    for part in rows.chunks(part) {
        gpu.append(&mut lane.queue, part).unwrap();
    }
    (gpu, lane)
}

/// The hits are those of the processor but for what rounding may exchange.
fn assert_same(found: &[Scored], expected: &[Scored], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found.score - expected.score).abs() <= tolerance, "{found:?} instead of {expected:?}");
    }
    let positions: std::collections::BTreeSet<u32> = found.iter().map(|hit| hit.position).collect();
    assert_eq!(positions.len(), found.len(), "a row is there twice");
    let last = expected.last().map_or(0.0, |hit| hit.score);
    for expected in expected.iter().filter(|hit| hit.score > last + 2.0 * tolerance) {
        assert!(positions.contains(&expected.position), "{expected:?} is missing");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn hits_are_those_of_the_processor(
        seed in any::<u64>(), dimension in 1usize..200, count in 1usize..600, queries in 1usize..70, k in 1usize..40,
        parts in 1usize..4, scale in -30i32..30, filtered in any::<bool>(), has_warpgroups in any::<bool>(),
    ) {
        let rows = crate::exact::to_f16(&vectors(seed, count, dimension));
        let mut machine = Emulator::new(seed);
        machine.has_warpgroups = has_warpgroups;
        let (gpu, mut lane) = gpu_of(machine, &rows, dimension, parts);
        let scale = 2.0f32.powi(scale);
        let asked: Vec<f32> = vectors(seed ^ 1, queries, dimension).into_iter().map(|value| value * scale).collect();
        let asked: Vec<&[f32]> = asked.chunks_exact(dimension).collect();
        let allowed: RoaringBitmap = (0..count as u32 + 50).filter(|row| row.wrapping_mul(2_654_435_761) >> 30 != 0).collect();
        let allowed = filtered.then_some(&allowed);
        let words = allowed.map(|allowed| super::super::words_of(allowed, count));
        let hits = gpu.top_k(&mut lane, &asked, words.as_deref(), k).unwrap();
        prop_assert_eq!(hits.len(), queries);
        for (query, hits) in asked.iter().zip(&hits) {
            let expected = crate::exact::top_k(query, &rows, dimension, allowed, k);
            assert_same(hits, &expected, 1e-5 * scale * dimension as f32);
        }
    }
}

#[test]
fn large_sets_are_sampled_and_searched_in_parts_where_the_sample_misleads() {
    let (dimension, count, k) = (3, 2 * CAPACITY + 1_000, 50);
    let query = [1.0f32, 0.5, -0.25];
    let random = crate::exact::to_f16(&vectors(3, count, dimension));
    // Nearly all rows are as good as the best, but those that a sample looks at: more reach its score than there is room for.
    let step = count.div_ceil(SAMPLE_MIN);
    let misleading: Vec<f16> = (0..count)
        .flat_map(|row| [f16::from_f32(if row % step == 0 { -1.0 } else { 1.0 + (row % 7) as f32 / 8.0 }), f16::ONE, f16::ONE])
        .collect();
    for rows in [random, misleading] {
        let (gpu, mut lane) = gpu(&rows, dimension, 3);
        let hits = gpu.top_k(&mut lane, &[&query], None, k).unwrap();
        assert_same(&hits[0], &crate::exact::top_k(&query, &rows, dimension, None, k), 1e-5);
    }
}

/// So many rows that each block has several times as many tiles as it holds.
#[test]
fn tiles_of_long_rows_are_replaced_again_and_again() {
    for (dimension, count, queries) in [(250, 3_000, 5), (390, 1_500, 70)] {
        let rows = crate::exact::to_f16(&vectors(8, count, dimension));
        let (gpu, mut lane) = gpu(&rows, dimension, 2);
        assert!(count / GROUP_ROWS * padded(dimension) / TILE_VALUES > 4 * STAGES_MAX);
        check(&gpu, &mut lane, &rows, queries, 9);
    }
}

/// Every way of scoring, one after the other, with a sample, a first part for a better threshold, and the rest.
#[test]
fn any_number_of_queries_goes_through_all_passes() {
    let (dimension, count) = (40, CAPACITY + 300);
    let rows = crate::exact::to_f16(&vectors(11, count, dimension));
    for has_warpgroups in [true, false] {
        let mut machine = Emulator::new(4);
        machine.has_warpgroups = has_warpgroups;
        let (gpu, mut lane) = gpu_of(machine, &rows, dimension, 2);
        let kernels: Vec<Kernel> = [1, 20, 100, 200].map(|queries| gpu.scoring(queries).kernel).to_vec();
        match has_warpgroups {
            true => assert_eq!(kernels, [Kernel::Scan8, Kernel::Scan64, Kernel::Scan128, Kernel::Scan256]),
            false => assert_eq!(kernels, [Kernel::Score8, Kernel::Score32, Kernel::Score128, Kernel::Score128]),
        }
        for queries in [1, REFINED_QUERIES, 100, 200] {
            check(&gpu, &mut lane, &rows, queries, 5);
        }
    }
}

fn check(gpu: &GpuRows<Emulator>, lane: &mut SearchLane<Emulator>, rows: &[f16], queries: usize, k: usize) {
    let dimension = gpu.dimension;
    let asked = vectors(queries as u64, queries, dimension);
    let asked: Vec<&[f32]> = asked.chunks_exact(dimension).collect();
    let hits = gpu.top_k(lane, &asked, None, k).unwrap();
    for (query, hits) in asked.iter().zip(&hits) {
        assert_same(hits, &crate::exact::top_k(query, rows, dimension, None, k), 1e-5 * dimension as f32);
    }
}

#[test]
fn rows_come_in_pieces_of_any_size_and_none_is_lost_when_memory_runs_out() {
    let dimension = 5;
    let rows = crate::exact::to_f16(&vectors(4, 900, dimension));
    let machine = Arc::new(Emulator::new(3));
    let mut gpu = GpuRows::new(machine.clone(), dimension);
    let mut lane = SearchLane::new(gpu.machine.as_ref(), dimension).unwrap();
    let query = [0.5f32, -1.0, 0.25, 2.0, 1.0];
    let mut there = 0;
    for (turn, piece) in [1, 2, 60, 1, 64, 130, 7, 300, 335].into_iter().enumerate() {
        let piece_rows = &rows[there * dimension..(there + piece) * dimension];
        // With no memory left, a piece that fits into the room there is comes in all the same.
        machine.allocations_left.store(0, std::sync::atomic::Ordering::Relaxed);
        let refused = gpu.append(&mut lane.queue, piece_rows);
        machine.allocations_left.store(usize::MAX, std::sync::atomic::Ordering::Relaxed);
        if let Err(fault) = refused {
            assert!(matches!(fault, GpuError::OutOfMemory { .. }), "{fault}");
            assert_eq!(gpu.count(), there);
            if turn > 0 {
                let expected = crate::exact::top_k(&query, &rows[..there * dimension], dimension, None, 4);
                assert_same(&gpu.top_k(&mut lane, &[&query], None, 4).unwrap()[0], &expected, 1e-5);
            }
            gpu.append(&mut lane.queue, piece_rows).unwrap();
        }
        there += piece;
        assert_eq!(gpu.count(), there);
        let expected = crate::exact::top_k(&query, &rows[..there * dimension], dimension, None, 12);
        assert_same(&gpu.top_k(&mut lane, &[&query], None, 12).unwrap()[0], &expected, 1e-5);
    }
}

#[test]
fn rows_of_any_length_take_turns_with_one_lane() {
    let machine = Arc::new(Emulator::new(5));
    let mut lane = SearchLane::new(machine.as_ref(), 130).unwrap();
    for (seed, dimension, count) in [(1, 130, 300), (2, 7, 900), (3, 64, 1), (4, 130, 64)] {
        let rows = crate::exact::to_f16(&vectors(seed, count, dimension));
        let mut gpu = GpuRows::new(machine.clone(), dimension);
        gpu.reserve(&mut lane.queue, count).unwrap();
        // What was reserved is all that is taken.
        machine.allocations_left.store(0, std::sync::atomic::Ordering::Relaxed);
        rows.chunks(100 * dimension).for_each(|part| gpu.append(&mut lane.queue, part).unwrap());
        machine.allocations_left.store(usize::MAX, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(gpu.slabs.iter().map(|slab| slab.room).sum::<usize>() * padded(dimension) * 2, bytes_of(count, dimension));
        let query = vectors(seed ^ 9, 1, dimension);
        // Bits beyond the last row, and rows beyond the last bit, are nothing.
        let allowed = vec![u64::MAX; count.div_ceil(128)];
        let few: RoaringBitmap = (0..(allowed.len() * 64) as u32).collect();
        let hits = gpu.top_k(&mut lane, &[&query], Some(&allowed), 10).unwrap();
        assert_same(&hits[0], &crate::exact::top_k(&query, &rows, dimension, Some(&few), 10), 1e-4);
    }
}

#[test]
fn equal_scores_come_in_the_order_of_their_rows() {
    let rows = vec![f16::ONE; 500 * 4];
    let (gpu, mut lane) = gpu(&rows, 4, 2);
    let hits = gpu.top_k(&mut lane, &[&[1.0, 2.0, 3.0, 4.0]], None, 20).unwrap();
    assert_eq!(hits[0].iter().map(|hit| hit.position).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
}

#[test]
fn what_is_no_number_is_never_found() {
    let mut rows = vec![f16::ONE; 40 * 4];
    rows[4..8].fill(f16::NAN);
    rows[12] = f16::NAN;
    let (gpu, mut lane) = gpu(&rows, 4, 1);
    let hits = gpu.top_k(&mut lane, &[&[1.0; 4], &[f32::NAN; 4]], None, 100).unwrap();
    assert_eq!(hits[0].len(), 38);
    assert!(hits[0].iter().all(|hit| hit.position != 1 && hit.position != 3));
    assert!(hits[1].is_empty());
}
