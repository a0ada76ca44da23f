//! The best of many scores.
//!
//! Scores of 16 bits are so quick to count, some tens at an instruction, that the score which parts the best from the rest is found by halving
//! the range in which it lies. What has the score 0 is never among the best.

use super::scan::BLOCK;
use crate::instructions::choose_kernels;

/// Scores that are counted together: as many as a count of 16 bits has room for.
const CHUNK: usize = 1 << 14;

/// What parts the best scores from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// The least score among the best.
    least: u16,
    /// How many of those with the least score are still wanted.
    of_least: usize,
}

/// The cut below the `count` largest of `scores`; none when nothing is wanted or there.
pub(super) fn cut(scores: &[u16], count: usize) -> Option<Cut> {
    if count == 0 {
        return None;
    }
    let kernels = Kernels::get();
    // `count` scores or more are at least `low`, fewer are at least `high`.
    let (mut low, mut high) = (0u32, 1 << 16);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if kernels.at_least(scores, middle as u16) >= count { low = middle } else { high = middle }
    }
    let least = (low as u16).max(1);
    let above = if least == u16::MAX { 0 } else { kernels.at_least(scores, least + 1) };
    let of_least = count.saturating_sub(above);
    Some(Cut { least, of_least })
}

impl Cut {
    /// Calls `take` with the places of those of `scores` that are among the best, in their order.
    pub(super) fn take(&mut self, scores: &[u16], mut take: impl FnMut(usize)) {
        let kernels = Kernels::get();
        let (blocks, rest) = scores.as_chunks::<BLOCK>();
        for (number, block) in blocks.iter().enumerate() {
            self.take_marked(block, kernels.marks(block, self.least), number * BLOCK, &mut take);
        }
        let marks = (0..rest.len()).fold(0, |marks, place| marks | u64::from(rest[place] >= self.least) << place);
        self.take_marked(rest, marks, blocks.len() * BLOCK, &mut take);
    }

    /// Takes the scores whose bits are set: those that are at least the least.
    fn take_marked(&mut self, scores: &[u16], mut marks: u64, start: usize, take: &mut impl FnMut(usize)) {
        while marks != 0 {
            let place = marks.trailing_zeros() as usize;
            marks &= marks - 1;
            let is_least = scores[place] == self.least;
            if is_least && self.of_least == 0 {
                continue;
            }
            self.of_least -= usize::from(is_least);
            take(start + place);
        }
    }
}

/// What goes through many scores, for one instruction set.
struct Kernels {
    at_least: unsafe fn(&[u16], u16) -> usize,
    marks: unsafe fn(&[u16; BLOCK], u16) -> u64,
}

choose_kernels!(Kernels { avx512::KERNELS, avx2::KERNELS, portable::KERNELS });

impl Kernels {
    /// How many of `scores` are at least `limit`.
    fn at_least(&self, scores: &[u16], limit: u16) -> usize {
        // SAFETY: `of` has checked the instruction set.
        unsafe { (self.at_least)(scores, limit) }
    }

    /// A bit for each of `scores` that is at least `limit`, the first in the lowest place.
    fn marks(&self, scores: &[u16; BLOCK], limit: u16) -> u64 {
        // SAFETY: `of` has checked the instruction set.
        unsafe { (self.marks)(scores, limit) }
    }
}

// Both are written so that the compiler turns them into vector instructions.

#[inline(always)]
fn at_least(scores: &[u16], limit: u16) -> usize {
    let count = |chunk: &[u16]| chunk.iter().map(|score| u16::from(*score >= limit)).fold(0u16, u16::wrapping_add);
    scores.chunks(CHUNK).map(|chunk| usize::from(count(chunk))).sum()
}

#[inline(always)]
fn marks(scores: &[u16; BLOCK], limit: u16) -> u64 {
    // Most blocks have none, which is found out without a bit for each.
    if scores.iter().fold(0, |most: u16, score| most.max(*score)) < limit {
        return 0;
    }
    scores.iter().enumerate().fold(0, |marks, (place, score)| marks | u64::from(*score >= limit) << place)
}

/// Instantiates the kernels for one instruction set, given the processor features.
macro_rules! kernels {
    ($module:ident $(, $features:literal)?) => {
        mod $module {
            use super::{BLOCK, Kernels};

            pub(super) static KERNELS: Kernels = Kernels { at_least, marks };

            $(#[target_feature(enable = $features)])?
            fn at_least(scores: &[u16], limit: u16) -> usize {
                super::at_least(scores, limit)
            }

            $(#[target_feature(enable = $features)])?
            fn marks(scores: &[u16; BLOCK], limit: u16) -> u64 {
                super::marks(scores, limit)
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(avx512, "avx512f,avx512bw,avx512dq,avx512vl");
#[cfg(target_arch = "x86_64")]
kernels!(avx2, "avx2");
kernels!(portable);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instructions::Instructions;
    use proptest::prelude::*;

    fn taken(scores: &[u16], count: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        if let Some(mut cut) = cut(scores, count) {
            // In two parts, as lists are.
            let (one, other) = scores.split_at(scores.len() / 2);
            cut.take(one, |place| taken.push(place));
            cut.take(other, |place| taken.push(one.len() + place));
        }
        taken
    }

    proptest! {
        #[test]
        fn the_best_are_taken_and_no_more(
            scores in prop::collection::vec(prop_oneof![Just(0u16), 1u16..8, any::<u16>(), Just(u16::MAX)], 0..300),
            count in 0usize..320,
        ) {
            let taken = taken(&scores, count);
            let mut found: Vec<u16> = taken.iter().map(|place| scores[*place]).collect();
            found.sort_unstable_by(|one, other| other.cmp(one));
            let mut right: Vec<u16> = scores.iter().copied().filter(|score| *score > 0).collect();
            right.sort_unstable_by(|one, other| other.cmp(one));
            right.truncate(count);
            prop_assert_eq!(found, right);
            prop_assert!(taken.is_sorted());
        }

        #[test]
        fn every_instruction_set_counts_and_marks_the_same(scores in prop::collection::vec(any::<u16>(), BLOCK..200), limit in any::<u16>()) {
            let right = scores.iter().filter(|score| **score >= limit).count();
            let block = scores.first_chunk::<BLOCK>().unwrap();
            let marks = (0..BLOCK).map(|place| u64::from(block[place] >= limit) << place).sum::<u64>();
            for set in Instructions::available() {
                prop_assert_eq!(Kernels::of(set).at_least(&scores, limit), right, "{}", set);
                prop_assert_eq!(Kernels::of(set).marks(block, limit), marks, "{}", set);
            }
        }
    }

    #[test]
    fn more_scores_than_a_count_has_room_for() {
        let scores = vec![7; 5 * CHUNK + 3];
        for set in Instructions::available() {
            assert_eq!(Kernels::of(set).at_least(&scores, 7), scores.len(), "{set}");
        }
        assert_eq!(taken(&scores, 10).len(), 10);
    }
}
