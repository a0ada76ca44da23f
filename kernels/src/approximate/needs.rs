//! What effort finds a row: how many candidates it takes, for each number of lists.
//!
//! One scan of the lists, the nearest first, says it for all efforts: after so many lists, a row is among the candidates when no more codes than that have scored
//! better than its own. How many have is told by counting the codes of each score.

use super::scan::BLOCK;
use super::{ApproximateIndex, ListScan, NearLists};
use std::collections::HashMap;
use std::num::NonZeroU32;

/// Scores that a code can have.
const SCORES: usize = 1 << 16;

/// Where rows are in the lists.
pub struct Places(HashMap<u32, Vec<Place>>);

/// One of a row's places.
#[derive(Clone, Copy)]
struct Place {
    list: u32,
    /// In the list.
    slot: u32,
}

impl ApproximateIndex {
    /// Where the rows at these positions are in the lists, each of which is gone through once.
    pub fn places(&self, positions: impl IntoIterator<Item = u32>) -> Places {
        let mut places: HashMap<u32, Vec<Place>> = positions.into_iter().map(|position| (position, Vec::new())).collect();
        let positions = self.positions();
        for list in 0..self.lists() as u32 {
            let found = self.list(list);
            for (slot, number) in (0..).zip(&found.numbers[..found.len]) {
                let position = positions.get(*number as usize);
                if let Some(places) = position.and_then(|position| places.get_mut(position)) {
                    places.push(Place { list, slot });
                }
            }
        }
        Places(places)
    }
}

impl NearLists<'_> {
    /// For each number of lists in `probes`, which ascend, and each of the rows at `positions`: the least [`candidates`](super::Effort::candidates) with which a
    /// search without a filter that looks into so many lists may find it. Of codes that score the same, any may be a candidate, so that it
    /// can need some more. None where the row is in none of these lists, or is not in `places`, which must be of this index.
    pub fn candidates_needed(mut self, positions: &[u32], places: &Places, probes: &[usize]) -> Vec<Vec<Option<NonZeroU32>>> {
        debug_assert!(probes.is_sorted());
        let index = self.index;
        let lists_max = probes.last().copied().unwrap_or(0).min(self.lists.len());
        self.lists.sort_unstable_by(|one, other| other.score.total_cmp(&one.score));
        let lists = &self.lists[..lists_max];
        let scan = ListScan::new(index, self.query, lists);
        let mut wanted: HashMap<u32, Vec<(usize, usize)>> = HashMap::new();
        for (row, position) in positions.iter().enumerate() {
            for place in places.0.get(position).into_iter().flatten() {
                wanted.entry(place.list).or_default().push((row, place.slot as usize));
            }
        }
        let mut best = vec![0u16; positions.len()];
        let mut counts = vec![0u32; SCORES];
        let mut scores = Vec::new();
        let mut scanned = 0;
        let mut needed = Vec::with_capacity(probes.len());
        for until in probes {
            let until = (*until).clamp(scanned, lists_max);
            for near in &lists[scanned..until] {
                let list = index.list(near.position);
                scores.resize(list.blocks.len() * BLOCK, 0);
                scan.score(list.codes, near.score, &mut scores);
                scores[..list.len].iter().for_each(|score| counts[usize::from(*score)] += 1);
                for (row, slot) in wanted.get(&near.position).into_iter().flatten() {
                    best[*row] = best[*row].max(scores[*slot]);
                }
            }
            scanned = until;
            needed.push(ranks(&best, &counts));
        }
        needed
    }
}

/// For each score, one more than there are scores above it, by how many there are of each. None for the score 0, which stands for a row that is not there.
fn ranks(of: &[u16], counts: &[u32]) -> Vec<Option<NonZeroU32>> {
    let mut order: Vec<usize> = (0..of.len()).collect();
    order.sort_unstable_by_key(|row| std::cmp::Reverse(of[*row]));
    let mut ranks = vec![None; of.len()];
    let (mut rank, mut from) = (NonZeroU32::MIN, SCORES);
    for row in order {
        let score = usize::from(of[row]);
        if score == 0 {
            break;
        }
        let above = counts[(score + 1).min(from)..from].iter().sum();
        rank = rank.saturating_add(above);
        from = from.min(score + 1);
        ranks[row] = Some(rank);
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::super::Effort;
    use super::super::tests::{in_heaps, index, values};
    use super::*;
    use crate::exact;

    #[test]
    fn a_rank_is_one_more_than_there_are_better_scores() {
        let mut counts = vec![0; SCORES];
        for (score, count) in [(3, 2), (5, 7), (9, 1), (65_535, 4)] {
            counts[score] = count;
        }
        let ranks = ranks(&[5, 0, 65_535, 3, 9, 5], &counts);
        assert_eq!(ranks, [6, 0, 1, 13, 5, 6].map(NonZeroU32::new));
    }

    #[test]
    fn a_row_is_found_with_the_candidates_that_it_needs_and_not_with_fewer() {
        let (dimension, count) = (48, 4000);
        let vectors = in_heaps(dimension, count);
        let (_folder, index) = index(&vectors, dimension, 64);
        let probes = [1, 4, 16, 64];
        let (mut tried, mut found_with, mut found_without, mut nowhere) = (0, 0, 0, 0);
        for query in 0..20 {
            let query = values(dimension, query);
            let nearest = exact::top_k(&query, &vectors, dimension, None, 20);
            let nearest: Vec<u32> = nearest.iter().map(|one| one.position).collect();
            let places = index.places(nearest.iter().copied());
            let needed = index.near(&query).candidates_needed(&nearest, &places, &probes);
            assert_eq!(needed.len(), probes.len());
            for (probes, needed) in probes.iter().zip(&needed) {
                for (position, needed) in nearest.iter().zip(needed) {
                    let finds = |candidates| {
                        let effort = Effort { probes: *probes, candidates, found: candidates };
                        index.search(&query, effort, None).unwrap().contains(position)
                    };
                    let Some(needed) = *needed else {
                        assert!(!finds(2 * count as usize));
                        nowhere += 1;
                        continue;
                    };
                    let needed = needed.get() as usize;
                    tried += 1;
                    // One to spare for codes that score the same, and for what rounding adds.
                    found_with += usize::from(finds(needed + needed / 8 + 2));
                    found_without += usize::from(needed > 2 && finds(needed - needed / 8 - 1));
                }
            }
            // With all lists every row is somewhere.
            assert!(needed.last().unwrap().iter().all(Option::is_some));
        }
        assert!(tried > 800 && nowhere > 0 && found_with * 100 >= tried * 99, "{found_with} of {tried}, {nowhere} nowhere");
        assert!(found_without * 20 <= tried, "{found_without} of {tried} were found with fewer");
    }
}
