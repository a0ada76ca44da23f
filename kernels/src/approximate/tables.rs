//! What each code is worth to a query.

use super::codes::{CODES, Codebook, PART, PartCodes, part};
use crate::instructions::choose_kernels;

/// The largest score of a code: leaves room for what rounding adds, so that no sum of 16 bits overflows.
const SCORE_MAX: f32 = 57_000.0;

/// The largest worth of a code in steps: four of them are added up in a byte.
pub(super) const STEPS_MAX: u8 = 63;

/// What each code is worth to a query, in steps that a sum of all codes has room for.
pub(super) struct Tables {
    /// For each part of the vector, what each of its sixteen codes is worth above the least of them.
    pub(super) steps: Vec<u8>,
    /// Steps for each unit of an inner product.
    pub(super) scale: f32,
}

/// What the sixteen codes of a part are worth.
type Worth = [f32; CODES];

impl Tables {
    /// For a query, and lists whose centroids' inner products with it differ by at most `spread`.
    pub(super) fn new(codebook: &Codebook<'_>, query: &[f32], spread: f32) -> Tables {
        let kernels = Kernels::get();
        let mut worth = vec![[0.0; CODES]; codebook.parts.len()];
        // SAFETY: `of` has checked the instruction set.
        let range = unsafe { (kernels.weigh)(codebook.parts, query, &mut worth) };
        let widest = f32::from(STEPS_MAX) / range.widest.max(f32::MIN_POSITIVE);
        let scale = widest.min(SCORE_MAX / (range.total + spread).max(f32::MIN_POSITIVE));
        let mut steps = vec![0; worth.len() * CODES];
        // SAFETY: as above.
        unsafe { (kernels.step)(&worth, scale, steps.as_chunks_mut().0) };
        Tables { steps, scale }
    }
}

/// By how much the codes of a part differ in worth: the most that they do in any part, and the sum of all parts.
struct Range {
    widest: f32,
    total: f32,
}

/// For one instruction set.
struct Kernels {
    /// Replaces the worths by the inner product of each code with its part of the query, above the least of its part.
    weigh: unsafe fn(&[PartCodes], &[f32], &mut [Worth]) -> Range,
    /// Replaces the steps by the worths, so many to one.
    step: unsafe fn(&[Worth], f32, &mut [[u8; CODES]]),
}

choose_kernels!(Kernels { avx512::KERNELS, avx2::KERNELS, portable::KERNELS });

// All of these are written so that the compiler turns them into vector instructions.

#[inline(always)]
fn weigh(parts: &[PartCodes], query: &[f32], worths: &mut [Worth]) -> Range {
    let mut range = Range { widest: 0.0, total: 0.0 };
    for (number, (codes, worth)) in parts.iter().zip(worths).enumerate() {
        let mut sums: Worth = [0.0; CODES];
        let values: [f32; PART] = part(query, number);
        for (value, codes) in values.into_iter().zip(codes) {
            for (sum, code) in sums.iter_mut().zip(codes) {
                *sum += value * code;
            }
        }
        let least = folded(sums, |one, other| if other < one { other } else { one });
        let most = folded(sums, |one, other| if other > one { other } else { one });
        *worth = sums.map(|sum| sum - least);
        range.widest = range.widest.max(most - least);
        range.total += most - least;
    }
    range
}

/// All values as one, half with half: an order that vector instructions have as well.
#[inline(always)]
fn folded(mut values: Worth, fold: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = CODES / 2;
    while half > 0 {
        for place in 0..half {
            values[place] = fold(values[place], values[place + half]);
        }
        half /= 2;
    }
    values[0]
}

#[inline(always)]
fn step(worths: &[Worth], scale: f32, steps: &mut [[u8; CODES]]) {
    for (worth, steps) in worths.iter().zip(steps) {
        // Half a step more, and a whole number of 32 bits on the way: rounding is a call on some processors.
        *steps = worth.map(|value| ((value * scale + 0.5) as i32).min(i32::from(STEPS_MAX)) as u8);
    }
}

/// Instantiates the kernels for one instruction set, given the processor features.
macro_rules! kernels {
    ($module:ident $(, $features:literal)?) => {
        mod $module {
            use super::{CODES, Kernels, PartCodes, Range, Worth};

            pub(super) static KERNELS: Kernels = Kernels { weigh, step };

            $(#[target_feature(enable = $features)])?
            fn weigh(parts: &[PartCodes], query: &[f32], worths: &mut [Worth]) -> Range {
                super::weigh(parts, query, worths)
            }

            $(#[target_feature(enable = $features)])?
            fn step(worths: &[Worth], scale: f32, steps: &mut [[u8; CODES]]) {
                super::step(worths, scale, steps)
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
#[cfg(target_arch = "x86_64")]
kernels!(avx2, "avx2,fma");
kernels!(portable);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instructions::Instructions;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn steps_follow_the_inner_products(
            codes in prop::collection::vec(prop::array::uniform4(prop::array::uniform16(-1f32..1.0)), 1..5),
            query in prop::collection::vec(-1f32..1.0, 20),
            spread in 0f32..2.0,
        ) {
            let query = &query[..codes.len() * PART];
            let worth = |number: usize, code: usize| (0..PART).map(|value| codes[number][value][code] * query[number * PART + value]).sum::<f32>();
            let tables = Tables::new(&Codebook { parts: &codes }, query, spread);
            let mut most = 0f32;
            for number in 0..codes.len() {
                let worths: Vec<f32> = (0..CODES).map(|code| worth(number, code)).collect();
                let least = worths.iter().copied().fold(f32::INFINITY, f32::min);
                for (worth, step) in worths.iter().zip(&tables.steps[number * CODES..]) {
                    prop_assert!((f32::from(*step) - (worth - least) * tables.scale).abs() <= 0.6, "{}: {}", number, worth);
                }
                most += worths.iter().map(|worth| (worth - least) * tables.scale).fold(0.0, f32::max);
            }
            prop_assert!(most + spread * tables.scale <= SCORE_MAX * 1.001);
        }

        #[test]
        fn every_instruction_set_weighs_and_steps_the_same(
            codes in prop::collection::vec(prop::array::uniform4(prop::array::uniform16(-1f32..1.0)), 1..5),
            query in prop::collection::vec(-1f32..1.0, 20), scale in 0f32..60.0,
        ) {
            let weighed = |set| {
                let mut worth = vec![[0.0; CODES]; codes.len()];
                // SAFETY: the set is available.
                let range = unsafe { (Kernels::of(set).weigh)(&codes, &query, &mut worth) };
                (range, worth)
            };
            let (right, worth) = weighed(Instructions::Portable);
            for set in Instructions::available() {
                let (range, found) = weighed(set);
                prop_assert!((range.widest - right.widest).abs() < 1e-5 && (range.total - right.total).abs() < 1e-5, "{}", set);
                let near = found.iter().flatten().zip(worth.iter().flatten()).all(|(one, other)| (one - other).abs() < 1e-5);
                prop_assert!(near, "{}", set);
                let (mut steps, mut right) = (vec![[0; CODES]; worth.len()], vec![[0; CODES]; worth.len()]);
                // SAFETY: as above.
                unsafe {
                    (Kernels::of(set).step)(&worth, scale, &mut steps);
                    (Kernels::of(Instructions::Portable).step)(&worth, scale, &mut right);
                }
                let within_one = |(one, other): (&u8, &u8)| one.abs_diff(*other) <= 1;
                prop_assert!(steps.iter().flatten().zip(right.iter().flatten()).all(within_one), "{}", set);
            }
        }
    }
}
