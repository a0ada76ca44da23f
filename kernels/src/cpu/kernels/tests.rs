//! Each kernel against a plain implementation in f64, for every instruction set of the processor and every precision that it has.

use super::*;
use crate::cpu::attention::AttentionBuffers;
use crate::cpu::packed::{Linear, PackedMatrix};
use crate::cpu::product::{Epilogue, Results};
use half::bf16;
use proptest::prelude::*;

/// Something of each instruction set and kind of numbers of this processor, with what they are called.
fn of_each<T>(choose: impl Fn(Instructions, Numbers) -> Option<T>) -> Vec<(String, T)> {
    let sets = Instructions::available();
    let choices = sets.into_iter().flat_map(|set| Numbers::ALL.map(|numbers| (set, numbers)));
    choices.filter_map(|(set, numbers)| Some((format!("{set}, {numbers:?}"), choose(set, numbers)?))).collect()
}

fn all_products() -> Vec<(String, &'static ProductKernels)> {
    let mut tables = of_each(ProductKernels::of);
    // What this processor would not be given, if it has better ones.
    #[cfg(target_arch = "x86_64")]
    if Instructions::Avx2.is_available() {
        tables.push(("avx2 without VNNI, int8".to_owned(), &avx2_int8::PRODUCTS));
    }
    tables
}

fn all_rows() -> Vec<(String, &'static RowKernels)> {
    of_each(RowKernels::of)
}

/// What a value becomes as a bf16.
fn in_bf16(value: f32) -> f64 {
    f64::from(bf16::from_f32(value).to_f32())
}

/// Rows of activations as the kernels read them. Which whole number stands for a value, another test holds within bounds; where the value lies in the
/// middle, instruction sets differ.
fn activations_as_read(kernels: &ProductKernels, rows: &[f32], inputs: usize) -> Vec<f64> {
    match kernels.layout.numbers {
        Numbers::F32 => rows.iter().map(|value| f64::from(*value)).collect(),
        Numbers::Bf16 => rows.iter().map(|value| in_bf16(*value)).collect(),
        Numbers::Int8 => {
            let count = rows.len() / inputs;
            let mut room = NarrowedRows::for_shapes(&[(count, inputs, kernels.layout)]);
            let operand = kernels.narrow(&mut room, rows, inputs);
            let as_read = |row: usize| {
                let (bytes, scale) = operand.row_of_bytes(row);
                let value = move |byte: &u8| (f64::from(*byte) - f64::from(scale.zero)) * f64::from(scale.scale);
                bytes[..inputs].iter().map(value)
            };
            (0..count).flat_map(as_read).collect()
        }
    }
}

/// Rows of weights as the kernels read them.
fn weights_as_read(numbers: Numbers, rows: &[f32], inputs: usize, factor: impl Fn(usize) -> f32) -> Vec<f64> {
    let as_read = |(number, row): (usize, &[f32])| -> Vec<f64> {
        let factor = factor(number);
        match numbers {
            Numbers::F32 => row.iter().map(|value| f64::from(value * factor)).collect(),
            Numbers::Bf16 => row.iter().map(|value| in_bf16(value * factor)).collect(),
            Numbers::Int8 => {
                let largest = row.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                let to_byte = if largest > 0.0 { 127.0 / largest } else { 1.0 };
                row.iter().map(|value| f64::from((value * to_byte).round_ties_even() * factor) / f64::from(to_byte)).collect()
            }
        }
    };
    rows.chunks(inputs).enumerate().flat_map(as_read).collect()
}

/// The values of words that hold two halves each.
fn values_of_halves(words: &[u32]) -> Vec<f64> {
    bytemuck::cast_slice(words).iter().map(|half: &u16| f64::from(bf16::from_bits(*half).to_f32())).collect()
}

/// The values of rows, with what fills each up, and how many of them a row has.
fn values_of(rows: &mut PassedRows, count: usize) -> (Vec<f64>, usize) {
    let layout = rows.layout();
    let words = rows.rows_mut(0..count);
    let values = match layout.numbers {
        Numbers::F32 => bytemuck::cast_slice(words).iter().map(|value: &f32| f64::from(*value)).collect(),
        _ => values_of_halves(words),
    };
    let width = values.len() / count;
    (values, width)
}

/// Writes rows of values in the form in which they are passed on.
fn fill(rows: &mut PassedRows, count: usize, values: &[f32]) {
    let (layout, width) = (rows.layout(), rows.values());
    let depth = layout.words(width);
    for (words, values) in rows.rows_mut(0..count).chunks_mut(depth).zip(values.chunks(width)) {
        match layout.numbers {
            Numbers::F32 => words.copy_from_slice(bytemuck::cast_slice(values)),
            _ => {
                let halves: &mut [u16] = bytemuck::cast_slice_mut(words);
                halves.iter_mut().zip(values).for_each(|(half, value)| *half = bf16::from_f32(*value).to_bits());
            }
        }
    }
}

/// Values from -1 to 1 that repeat only after a long time.
fn values(count: usize, mut seed: u32) -> Vec<f32> {
    (0..count)
        .map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// The error function: Maclaurin series for small arguments, continued fraction of erfc for large ones.
fn erf(x: f64) -> f64 {
    if x < 0.0 {
        return -erf(-x);
    }
    if x < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let mut fraction = x;
    for n in (1..=60).rev() {
        fraction = x + f64::from(n) / 2.0 / fraction;
    }
    1.0 - (-x * x).exp() / (fraction * std::f64::consts::PI.sqrt())
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_of_any_shape_are_those_of_the_plain_formula(
        rows in 0usize..40,
        inputs in 1usize..100,
        part_outputs in prop::collection::vec(1usize..120, 1..4),
        scale in prop::sample::select(vec![1.0f32, 0.25]),
        epilogue in prop::sample::select(vec![
            Epilogue::Store,
            Epilogue::Add,
            Epilogue::Activate(Activation::Gelu),
            Epilogue::Activate(Activation::Relu),
        ]),
        seed in any::<u32>(),
    ) {
        let outputs: usize = part_outputs.iter().sum();
        let activations = values(rows * inputs, seed);
        let weights = values(outputs * inputs, seed ^ 1);
        let biases = values(outputs, seed ^ 2);
        let before = values(rows * outputs, seed ^ 3);
        for (name, kernels) in all_products() {
            let ProductKernels { panel_columns, layout, .. } = *kernels;
            let numbers = layout.numbers;
            let start = 16;
            let mut block = vec![u32::MAX; start + PackedMatrix::size(inputs, outputs, panel_columns, layout)];
            block[start..].fill(0);
            let mut layers = Vec::new();
            let mut first = 0;
            for (index, count) in part_outputs.iter().enumerate() {
                let last = first + count;
                let factor = if index == 0 { scale } else { 1.0 };
                layers.push(Linear { weights: &weights[first * inputs..last * inputs], biases: &biases[first..last], factor });
                first = last;
            }
            let matrix = PackedMatrix::pack(&mut block, start, inputs, panel_columns, layout, &layers);
            let factor = |column: usize| if column < part_outputs[0] { scale } else { 1.0 };
            let read_weights = weights_as_read(numbers, &weights, inputs, factor);
            let read_activations = activations_as_read(kernels, &activations, inputs);
            // Rows are narrowed in a room that is not clean.
            let mut room = NarrowedRows::for_shapes(&[(rows + 1, inputs, layout)]);
            kernels.narrow(&mut room, &values((rows + 1) * inputs, seed ^ 4), inputs);
            let mut out = before.clone();
            kernels.multiply(Product {
                block: &block,
                matrix: &matrix,
                activations: kernels.narrow(&mut room, &activations, inputs),
                out: Results::Values(&mut out),
                rows,
                epilogue,
            });
            // What is passed on to other kernels as halves.
            let passes_on = layout.numbers == Numbers::Bf16 && epilogue != Epilogue::Add;
            let mut passed = PassedRows::new(layout, rows, outputs);
            if passes_on {
                passed.rows_mut(0..rows).fill(u32::MAX);
                kernels.multiply(Product {
                    block: &block,
                    matrix: &matrix,
                    activations: kernels.narrow(&mut room, &activations, inputs),
                    out: passed.results(rows),
                    rows,
                    epilogue,
                });
            }
            let passed: Vec<Vec<f64>> = passed.rows_mut(0..rows).chunks(layout.words(outputs)).map(values_of_halves).collect();
            for row in 0..rows {
                prop_assert!(!passes_on || passed[row][outputs..].iter().all(|value| *value == 0.0), "{}", name);
                for column in 0..outputs {
                    let product: f64 = (0..inputs)
                        .map(|k| read_activations[row * inputs + k] * read_weights[column * inputs + k])
                        .sum::<f64>() + f64::from(biases[column] * factor(column));
                    let at = row * outputs + column;
                    let expected = match epilogue {
                        Epilogue::Store => product,
                        Epilogue::Add => product + f64::from(before[at]),
                        Epilogue::Activate(Activation::Gelu) => gelu(product),
                        Epilogue::Activate(Activation::Relu) => product.max(0.0),
                    };
                    // What GELU may be off where not all bits are kept.
                    let is_coarse = numbers != Numbers::F32 && epilogue == Epilogue::Activate(Activation::Gelu);
                    let off = if is_coarse { 4e-5 * product.abs().max(1.0) } else { 0.0 };
                    prop_assert!(
                        (f64::from(out[at]) - expected).abs() < 3e-5 + off,
                        "{}: row {} column {}: {} {}", name, row, column, out[at], expected
                    );
                    if passes_on {
                        let found = passed[row][column];
                        // Half of the last of eight bits, and what GELU may be off.
                        let tolerance = expected.abs() / 255.0 + 4e-5 * product.abs().max(1.0) + 3e-5;
                        prop_assert!(
                            (found - expected).abs() < tolerance,
                            "{}: row {} column {}: {} {}", name, row, column, found, expected
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn whole_numbers_are_at_most_half_of_one_from_the_values_they_stand_for(
        row in prop::collection::vec(prop_oneof![4 => -3.0f32..9.0, 1 => Just(0.0)], 1..200),
        factor in prop::sample::select(vec![1.0f32, 1e-20, 1e20, 0.0]),
    ) {
        let row: Vec<f32> = row.iter().map(|value| value * factor).collect();
        for (name, kernels) in all_products() {
            if kernels.layout.numbers != Numbers::Int8 {
                continue;
            }
            let mut room = NarrowedRows::for_shapes(&[(1, row.len(), kernels.layout)]);
            let (bytes, scale) = kernels.narrow(&mut room, &row, row.len()).row_of_bytes(0);
            prop_assert_eq!(bytes.len(), row.len().next_multiple_of(4));
            prop_assert!(bytes[row.len()..].iter().all(|byte| *byte == 0));
            for (byte, value) in bytes.iter().zip(&row) {
                let read = (f32::from(*byte) - scale.zero) * scale.scale;
                prop_assert!((read - value).abs() <= 0.502 * scale.scale, "{}: {} {}", name, read, value);
            }
        }
    }

    #[test]
    fn attention_of_any_shape_is_that_of_the_plain_formula(
        tokens in 1usize..80,
        heads in 1usize..4,
        dimension in 1usize..70,
        seed in any::<u32>(),
    ) {
        let hidden = heads * dimension;
        let projections = values(tokens * 3 * hidden, seed);
        let at = |part: usize, token: usize, head: usize, column: usize| {
            f64::from(projections[(token * 3 + part) * hidden + head * dimension + column])
        };
        for (name, kernels) in all_rows() {
            // Halves have eight bits: queries, keys, weights and values are all rounded.
            let tolerance = if name.ends_with("F32") { 1e-5 } else { 2e-2 };
            let mut passed = PassedRows::new(kernels.passed, tokens, 3 * hidden);
            fill(&mut passed, tokens, &projections);
            let mut out = PassedRows::new(kernels.passed, tokens, hidden);
            // Not a number, whatever the form.
            out.rows_mut(0..tokens).fill(u32::MAX);
            let mut buffers = AttentionBuffers::new(tokens + seed as usize % 3, dimension);
            kernels.attend(Attention {
                projections: passed.rows_from(0),
                out: out.rows_mut(0..tokens),
                tokens,
                heads,
                buffers: &mut buffers,
            });
            let (out, width) = values_of(&mut out, tokens);
            for row in out.chunks(width) {
                prop_assert!(row[hidden..].iter().all(|value| *value == 0.0), "{}", name);
            }
            for token in 0..tokens {
                for head in 0..heads {
                    let weight = |key: usize| {
                        (0..dimension).map(|c| at(0, token, head, c) * at(1, key, head, c)).sum::<f64>().exp()
                    };
                    let weights: Vec<f64> = (0..tokens).map(weight).collect();
                    let sum: f64 = weights.iter().sum();
                    for column in 0..dimension {
                        let expected: f64 =
                            (0..tokens).map(|key| weights[key] / sum * at(2, key, head, column)).sum();
                        let found = out[token * width + head * dimension + column];
                        prop_assert!((found - expected).abs() < tolerance, "{}: {} {}", name, found, expected);
                    }
                }
            }
        }
    }

    #[test]
    fn softmax_of_any_scores_is_that_of_the_plain_formula(
        scores in prop::collection::vec(-80.0f32..80.0, 1..600),
    ) {
        let largest = scores.iter().copied().map(f64::from).fold(f64::MIN, f64::max);
        let sum: f64 = scores.iter().map(|score| (f64::from(*score) - largest).exp()).sum();
        for (name, kernels) in all_rows() {
            // Halves have eight bits.
            let coarse = if name.ends_with("F32") { 0.0 } else { 4e-3 };
            let mut found = scores.clone();
            kernels.softmax(&mut found);
            for (score, found) in scores.iter().zip(found) {
                let expected = (f64::from(*score) - largest).exp() / sum;
                // Half a unit in the last place of the difference of scores, which exp makes a relative error.
                let rounding = (f64::from(*score) - largest).abs() * 2f64.powi(-24);
                prop_assert!(
                    (f64::from(found) - expected).abs() <= (1e-6 + coarse + rounding) * expected + 1e-37,
                    "{}: {} {}", name, found, expected
                );
            }
        }
    }

    #[test]
    fn layer_norm_of_any_width_is_that_of_the_plain_formula(
        width in 1usize..200,
        rows in 0usize..4,
        mean in prop::sample::select(vec![0.0f32, 100.0]),
        seed in any::<u32>(),
    ) {
        let mut input = values(width * rows, seed);
        for value in &mut input {
            *value += mean;
        }
        let (scale, shift) = (values(width, seed ^ 1), values(width, seed ^ 2));
        for (name, kernels) in all_rows() {
            let mut found = input.clone();
            kernels.layer_norm(&mut found, &scale, &shift, 1e-5);
            for (row, found) in input.chunks(width).zip(found.chunks(width)) {
                let mean: f64 = row.iter().copied().map(f64::from).sum::<f64>() / width as f64;
                let variance: f64 =
                    row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
                for column in 0..width {
                    let normal = (f64::from(row[column]) - mean) / (variance + 1e-5).sqrt();
                    let expected = normal * f64::from(scale[column]) + f64::from(shift[column]);
                    // Values near 100 carry rounding errors of 4e-6 already, which the division magnifies.
                    let tolerance = 1e-5 + 1e-5 / (variance + 1e-5).sqrt() * mean.abs();
                    prop_assert!(
                        (f64::from(found[column]) - expected).abs() < tolerance,
                        "{}: {} {}", name, found[column], expected
                    );
                }
            }
        }
    }
}

#[test]
fn softmax_survives_scores_of_any_size() {
    for (name, kernels) in all_rows() {
        for scores in [vec![f32::MAX, f32::MIN, 0.0], vec![f32::MIN; 20], vec![-1e30; 3], vec![1e30, 1e30]] {
            let mut found = scores.clone();
            kernels.softmax(&mut found);
            let sum: f32 = found.iter().sum();
            let tolerance = if name.ends_with("F32") { 1e-5 } else { 4e-3 };
            assert!((sum - 1.0).abs() < tolerance, "{name}: {scores:?} {found:?}");
        }
    }
}

#[test]
fn gelu_is_exact_to_a_millionth() {
    let inputs: Vec<f32> = (-1_200_000..=1_200_000).map(|i| i as f32 / 1e5).collect();
    for (name, kernels) in all_rows() {
        let mut found = inputs.clone();
        kernels.activate(&mut found, Activation::Gelu);
        let mut worst = 0.0f64;
        for (x, found) in inputs.iter().zip(found) {
            let x = f64::from(*x);
            let error = (f64::from(found) - gelu(x)).abs() / x.abs().max(1.0);
            worst = worst.max(error);
        }
        println!("{name}: {worst:e}");
        assert!(worst <= 1e-6, "{name}: {worst:e}");
    }
}

#[test]
fn gelu_of_halves_is_exact_beyond_their_eight_bits() {
    use crate::cpu::activation::gelu_of_halves;
    use crate::lanes::{Lanes, portable::Portable};

    let inputs: Vec<f32> = (-1_200_000..1_200_000).map(|i| i as f32 / 1e5).collect();
    for inputs in inputs.chunks_exact(Portable::WIDTH) {
        let mut found = [0f32; Portable::WIDTH];
        // SAFETY: every processor has what the compiler makes; both are as long as a register.
        unsafe { gelu_of_halves(Portable::load(inputs.as_ptr())).store(found.as_mut_ptr()) };
        for (x, found) in inputs.iter().zip(found) {
            let x = f64::from(*x);
            let most = if x.abs() <= 4.0 { 3e-5 } else { 4e-5 * x.abs() };
            assert!((f64::from(found) - gelu(x)).abs() <= most, "{x}: {found}");
        }
    }
}

#[test]
fn relu_is_exact() {
    for (_, kernels) in all_rows() {
        let mut found = vec![-1.5, -0.0, 0.0, 2.5, f32::MAX, f32::MIN, 1e-40];
        kernels.activate(&mut found, Activation::Relu);
        assert_eq!(found, [0.0, 0.0, 0.0, 2.5, f32::MAX, 0.0, 1e-40]);
    }
}
