//! Each kernel of the encoder beside a plain computation in f64, more closely than whole vectors can be compared.

use super::super::emulator::{Emulator, GuardedMemory};
use super::attention_alone::AttentionWork;
use super::*;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// By how much halves of values up to 1 may be off: their own rounding, and that of what they are computed from.
const TOLERANCE: f64 = 2e-3;

fn halves(random: &mut StdRng, count: usize) -> Vec<f16> {
    (0..count).map(|_| f16::from_f32(random.random_range(-1.0..1.0))).collect()
}

fn floats(random: &mut StdRng, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// Memory and a queue of an emulated GPU.
struct Ground {
    machine: Emulator,
    queue: <Emulator as Machine>::Queue,
}

impl Ground {
    fn new(seed: u64) -> Self {
        let machine = Emulator::new(seed);
        let queue = machine.new_queue().unwrap();
        Ground { machine, queue }
    }

    fn put<T: NoUninit>(&mut self, values: &[T]) -> GuardedMemory {
        let memory = self.machine.allocate(size_of_val(values)).unwrap();
        self.machine.upload(&mut self.queue, &memory, 0, bytemuck::cast_slice(values)).unwrap();
        memory
    }

    /// Memory whose values are none of those that belong there.
    fn poisoned(&mut self, count: usize) -> GuardedMemory {
        self.put(&vec![f16::NAN; count])
    }

    fn get<T: Pod>(&mut self, memory: &GuardedMemory, count: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        self.machine.download(&mut self.queue, memory, 0, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    }

    fn launch(&mut self, kernel: Kernel, shape: LaunchShape, arguments: &impl NoUninit) {
        // SAFETY: each test gives a kernel its own arguments, and memory of the sizes that they name.
        unsafe { self.machine.launch(&mut self.queue, kernel, shape, bytemuck::bytes_of(arguments)).unwrap() };
    }
}

fn assert_near(found: f64, expected: f64, what: &dyn std::fmt::Debug) {
    assert!((found - expected).abs() <= TOLERANCE, "{found} instead of {expected} at {what:?}");
}

fn normalized(row: &[f64], scale: &[f32], shift: &[f32], epsilon: f64) -> Vec<f64> {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / row.len() as f64;
    let norm = |((value, scale), shift): ((&f64, &f32), &f32)| {
        (value - mean) / (variance + epsilon).sqrt() * f64::from(*scale) + f64::from(*shift)
    };
    row.iter().zip(scale).zip(shift).map(norm).collect()
}

const WAYS: [AttentionWay; 2] = [AttentionWay::Warps, AttentionWay::Warpgroups];

/// All ways of computing attention.
fn check_attention(seed: u64, head: usize, heads: usize, lengths: &[usize]) {
    for way in WAYS {
        check_attention_by(way, seed, head, heads, lengths, 0.0);
    }
}

/// The keys of each row are larger by `growth` than those of the one before.
fn check_attention_by(way: AttentionWay, seed: u64, head: usize, heads: usize, lengths: &[usize], growth: f32) {
    let mut random = StdRng::seed_from_u64(seed);
    let sequences: Vec<TokenSequence> = lengths.iter().map(|length| TokenSequence(vec![1; *length])).collect();
    let shape = BatchShape::of(&sequences);
    let hidden = heads * head;
    // Scores of several powers of two: the softmax has something to weigh.
    let mut projections = halves(&mut random, shape.rows * 3 * hidden);
    for (number, row) in projections.chunks_exact_mut(3 * hidden).enumerate() {
        row[..hidden].iter_mut().for_each(|value| *value = f16::from_f32(value.to_f32() * 2.0));
        let larger = 1.0 + number as f32 * growth;
        row[hidden..2 * hidden].iter_mut().for_each(|value| *value = f16::from_f32(value.to_f32() * larger));
    }
    let mut ground = Ground::new(seed);
    let description = ground.put(&batch::describe(&sequences, shape));
    let memory = ground.put(&projections);
    let context = ground.poisoned(shape.rows * hidden);
    let attention = Attention::of(head, way).unwrap();
    let arguments = AttentionArguments {
        projections: memory.address(),
        context: context.address(),
        tiles: description.address() + (shape.tiles_at() * size_of::<u32>()) as u64,
        heads: heads as u32,
        unused: 0,
    };
    let (kernel, launch_shape) = attention.launch(shape, heads as u32);
    ground.launch(kernel, launch_shape, &arguments);
    let found: Vec<f16> = ground.get(&context, shape.rows * hidden);

    let value = |row: usize, part: usize, of_head: usize, column: usize| {
        f64::from(projections[row * 3 * hidden + part * hidden + of_head * head + column])
    };
    let mut first = 0;
    for length in lengths.iter().copied() {
        for query in 0..length {
            for of_head in 0..heads {
                let score = |key: usize| -> f64 {
                    (0..head).map(|i| value(first + query, 0, of_head, i) * value(first + key, 1, of_head, i)).sum()
                };
                let weights: Vec<f64> = (0..length).map(|key| score(key).exp2()).collect();
                let sum: f64 = weights.iter().sum();
                for column in 0..head {
                    let expected: f64 = weights
                        .iter()
                        .enumerate()
                        .map(|(key, weight)| weight / sum * value(first + key, 2, of_head, column))
                        .sum();
                    let place = (first + query) * hidden + of_head * head + column;
                    assert_near(f64::from(found[place]), expected, &(way, lengths, query, of_head, column));
                }
            }
        }
        first += length;
    }
    assert!(found[first * hidden..].iter().all(|half| half.is_nan()), "rows of no sequence are written");
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
            check_attention_by(way, 5, head, 1, &[length], 0.02);
            check_attention_by(way, 6, head, 1, &[length], 0.2);
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
        let mut random = StdRng::seed_from_u64(seed);
        let (size, vocabulary, positions, epsilon) = (groups * 8, 30, 12, 1e-6);
        let (words, places) = (halves(&mut random, vocabulary * size), halves(&mut random, positions * size));
        let (scale, shift) = (floats(&mut random, size), floats(&mut random, size));
        let tokens: Vec<u32> = (0..rows).map(|_| random.random_range(0..vocabulary as u32)).collect();
        let at: Vec<u32> = (0..rows).map(|_| random.random_range(0..positions as u32)).collect();
        let mut ground = Ground::new(seed);
        let [scale_at, shift_at] = [&scale, &shift].map(|values| ground.put(values));
        let [words_at, places_at] = [&words, &places].map(|values| ground.put(values));
        let [tokens_at, at_at] = [&tokens, &at].map(|values| ground.put(values));
        let hidden = ground.poisoned(rows * size);
        let shape = LaunchShape { grid: [(rows as u32).div_ceil(ROW_THREADS / WARP), 1], threads: ROW_THREADS, shared_bytes: 0 };
        let arguments = EmbedArguments {
            words: words_at.address(), positions: places_at.address(), scale: scale_at.address(), shift: shift_at.address(),
            tokens: tokens_at.address(), places: at_at.address(), hidden: hidden.address(),
            rows: rows as u32, size: size as u32, epsilon, unused: 0,
        };
        ground.launch(if size <= 512 { Kernel::Embed512 } else { Kernel::Embed1024 }, shape, &arguments);
        let embedded: Vec<f16> = ground.get(&hidden, rows * size);
        for (row, found) in embedded.chunks_exact(size).enumerate() {
            let sum = |i: usize| f64::from(words[tokens[row] as usize * size + i]) + f64::from(places[at[row] as usize * size + i]);
            let expected = normalized(&(0..size).map(sum).collect::<Vec<_>>(), &scale, &shift, f64::from(epsilon));
            found.iter().zip(&expected).for_each(|(found, expected)| assert_near(f64::from(*found), *expected, &row));
        }

        let arguments = LayerNormArguments {
            hidden: hidden.address(), scale: shift_at.address(), shift: scale_at.address(),
            rows: rows as u32, size: size as u32, epsilon, unused: 0,
        };
        ground.launch(if size <= 512 { Kernel::LayerNorm512 } else { Kernel::LayerNorm1024 }, shape, &arguments);
        let again: Vec<f16> = ground.get(&hidden, rows * size);
        for (before, found) in embedded.chunks_exact(size).zip(again.chunks_exact(size)) {
            let before: Vec<f64> = before.iter().map(|value| f64::from(*value)).collect();
            let expected = normalized(&before, &shift, &scale, f64::from(epsilon));
            found.iter().zip(&expected).for_each(|(found, expected)| assert_near(f64::from(*found), *expected, &"again"));
        }
    }

    #[test]
    fn sequences_are_pooled(seed in any::<u64>(), lengths in proptest::collection::vec(1usize..30, 1..6), groups in 1usize..=128, cls in any::<bool>()) {
        let mut random = StdRng::seed_from_u64(seed);
        let (size, rows) = (groups * 8, lengths.iter().sum::<usize>());
        let values = halves(&mut random, rows * size);
        let firsts: Vec<u32> = lengths.iter().scan(0, |next, length| Some(std::mem::replace(next, *next + *length as u32))).collect();
        let counts: Vec<u32> = lengths.iter().map(|length| *length as u32).collect();
        let mut ground = Ground::new(seed);
        let hidden = ground.put(&values);
        let [first_rows, lengths_at] = [&firsts, &counts].map(|values| ground.put(values));
        let vectors = ground.put(&vec![f32::NAN; lengths.len() * size]);
        let arguments = PoolArguments {
            hidden: hidden.address(), first_rows: first_rows.address(), lengths: lengths_at.address(), vectors: vectors.address(),
            size: size as u32, first_only: u32::from(cls),
        };
        let shared_bytes = POOL_THREADS / WARP * size as u32 * 4;
        let kernel = if size <= 512 { Kernel::Pool512 } else { Kernel::Pool1024 };
        ground.launch(kernel, LaunchShape { grid: [lengths.len() as u32, 1], threads: POOL_THREADS, shared_bytes }, &arguments);
        let found: Vec<f32> = ground.get(&vectors, lengths.len() * size);
        for (number, found) in found.chunks_exact(size).enumerate() {
            let first = firsts[number] as usize;
            let rows = first..first + if cls { 1 } else { lengths[number] };
            let sums: Vec<f64> = (0..size).map(|i| rows.clone().map(|row| f64::from(values[row * size + i])).sum()).collect();
            let length = sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
            for (found, sum) in found.iter().zip(&sums) {
                let expected = if length > 0.0 { sum / length } else { 0.0 };
                prop_assert!((f64::from(*found) - expected).abs() <= 1e-5, "{found} instead of {expected}");
            }
        }
    }
}
