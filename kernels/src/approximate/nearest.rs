//! Which of many centroids is the best for a vector, by their scores.

use crate::instructions::choose_kernels;

/// Scores that are compared at once.
const LANES: usize = 16;

/// How the second centroid of a vector is chosen beside the first.
#[derive(Clone, Copy)]
pub(super) struct Beside {
    /// The first.
    pub(super) first: u32,
    /// The inner product of the vector and of what is left of it after the first.
    pub(super) along: f32,
    /// What it counts that something points the same way.
    pub(super) weight: f32,
}

/// Compares scores.
pub(super) struct Nearest {
    largest: unsafe fn(&[f32]) -> u32,
    score_beside: unsafe fn(Beside, &[f32], &[f32], &mut [f32]),
}

choose_kernels!(Nearest {
    Nearest { largest: avx512::largest, score_beside: avx512::score_beside },
    Nearest { largest: avx2::largest, score_beside: avx2::score_beside },
    Nearest { largest: portable::largest, score_beside: portable::score_beside }
});

impl Nearest {
    /// The place of the largest score, of equal ones the first; 0 when there is none.
    pub(super) fn largest(&self, scores: &[f32]) -> u32 {
        // SAFETY: `of` has checked the instruction set.
        unsafe { (self.largest)(scores) }
    }

    /// The best centroid beside the first: from all centroids' scores of the vector, and of the first centroid. Of a single centroid it is the same.
    /// `worth` is used for the computation.
    pub(super) fn second(&self, beside: Beside, scores: &[f32], first_scores: &[f32], worth: &mut [f32]) -> u32 {
        // SAFETY: `of` has checked the instruction set.
        unsafe { (self.score_beside)(beside, scores, first_scores, worth) };
        worth[beside.first as usize] = f32::NEG_INFINITY;
        if worth.len() > 1 { self.largest(worth) } else { beside.first }
    }
}

/// Written so that the compiler turns it into vector instructions, which compare a score of each lane.
#[inline(always)]
fn largest_of(scores: &[f32]) -> u32 {
    let (mut largest, mut places) = ([f32::NEG_INFINITY; LANES], [0u32; LANES]);
    let (blocks, rest) = scores.as_chunks::<LANES>();
    for (number, block) in (0u32..).zip(blocks) {
        for lane in 0..LANES {
            let is_larger = block[lane] > largest[lane];
            places[lane] = if is_larger { number } else { places[lane] };
            largest[lane] = if is_larger { block[lane] } else { largest[lane] };
        }
    }
    let mut best = (f32::NEG_INFINITY, 0);
    let in_lanes = (0u32..).zip(places).map(|(lane, block)| block * LANES as u32 + lane);
    let last = (blocks.len() * LANES) as u32;
    for (score, place) in largest.into_iter().zip(in_lanes).chain(rest.iter().copied().zip(last..)) {
        if score > best.0 || (score == best.0 && place < best.1) {
            best = (score, place);
        }
    }
    best.1
}

/// Replaces `worth` with how good a centroid is beside the first.
#[inline(always)]
fn score_all_beside(beside: Beside, scores: &[f32], first_scores: &[f32], worth: &mut [f32]) {
    for ((worth, score), first_score) in worth.iter_mut().zip(scores).zip(first_scores) {
        // What is left after this one, times what is left after the first: the difference of the scores is the inner product of this centroid
        // and of what is left after the first.
        let same_way = beside.along - (score - first_score);
        *worth = score - beside.weight * same_way * same_way;
    }
}

macro_rules! kernels {
    ($module:ident $(, $features:literal)?) => {
        mod $module {
            use super::Beside;

            $(#[target_feature(enable = $features)])?
            pub(super) fn largest(scores: &[f32]) -> u32 {
                super::largest_of(scores)
            }

            $(#[target_feature(enable = $features)])?
            pub(super) fn score_beside(beside: Beside, scores: &[f32], first_scores: &[f32], worth: &mut [f32]) {
                super::score_all_beside(beside, scores, first_scores, worth);
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
        fn every_instruction_set_finds_the_first_of_the_largest(scores in prop::collection::vec(-4i8..4, 1..70)) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let expected = scores.iter().position(|score| *score == largest).unwrap() as u32;
            for set in Instructions::available() {
                prop_assert_eq!(Nearest::of(set).largest(&scores), expected, "{}", set);
            }
        }

        #[test]
        fn the_second_is_the_best_beside_the_first(
            centroids in prop::collection::vec((-1f32..1.0, -1f32..1.0), 2..70),
            first in any::<prop::sample::Index>(),
        ) {
            let first = first.index(centroids.len());
            let (scores, first_scores): (Vec<f32>, Vec<f32>) = centroids.iter().copied().unzip();
            let beside = Beside { first: first as u32, along: 0.3, weight: 2.0 };
            let worth = |number: usize| f64::from(scores[number]) - 2.0 * (0.3 - f64::from(scores[number] - first_scores[number])).powi(2);
            let best = (0..centroids.len()).filter(|number| *number != first).map(worth).fold(f64::NEG_INFINITY, f64::max);
            for set in Instructions::available() {
                let second = Nearest::of(set).second(beside, &scores, &first_scores, &mut vec![0.0; scores.len()]) as usize;
                prop_assert!(second != first && worth(second) >= best - 1e-5, "{}: {}", set, second);
            }
        }
    }

    #[test]
    fn of_a_single_centroid_both_are_the_same() {
        let beside = Beside { first: 0, along: 0.0, weight: 1.0 };
        assert_eq!(Nearest::get().second(beside, &[1.0], &[0.5], &mut [0.0]), 0);
        assert_eq!(Nearest::get().largest(&[]), 0);
    }
}
