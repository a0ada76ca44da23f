//! The best rows so far: of each row, or of each document the best row.

use roaring::RoaringBitmap;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

/// A row and its score; the smaller is the better, of equal scores the lower row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ranked {
    pub(super) score: f32,
    pub(super) row: u32,
}

impl Eq for Ranked {}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.score + 0.0).total_cmp(&(self.score + 0.0)).then(self.row.cmp(&other.row))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Keeps the best `depth`.
pub(super) struct Ranking<'a> {
    depth: usize,
    /// First rows of documents, when only the best row of each document counts.
    starts: Option<&'a RoaringBitmap>,
    best: BTreeSet<Ranked>,
    of_document: HashMap<u64, Ranked>,
}

impl<'a> Ranking<'a> {
    pub(super) fn new(depth: usize, starts: Option<&'a RoaringBitmap>) -> Self {
        Ranking { depth, starts, best: BTreeSet::new(), of_document: HashMap::new() }
    }

    /// How many are kept at most.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    fn is_full(&self) -> bool {
        self.best.len() >= self.depth
    }

    /// What a score must exceed, or equal with a lower row, to be kept.
    pub(super) fn worst(&self) -> Option<Ranked> {
        if self.is_full() { self.best.last().copied() } else { None }
    }

    pub(super) fn offer(&mut self, score: f32, row: u32) {
        let ranked = Ranked { score, row };
        if score.is_nan() || self.depth == 0 || self.worst().is_some_and(|worst| worst <= ranked) {
            return;
        }
        if let Some(starts) = self.starts {
            // A document's rows are neighbours, so the number of first rows up to a row names its document.
            let document = starts.rank(row);
            if let Some(known) = self.of_document.get(&document) {
                if *known <= ranked {
                    return;
                }
                self.best.remove(known);
            }
            self.of_document.insert(document, ranked);
        }
        self.best.insert(ranked);
        if self.best.len() > self.depth
            && let Some(dropped) = self.best.pop_last()
            && let Some(starts) = self.starts
        {
            self.of_document.remove(&starts.rank(dropped.row));
        }
    }

    /// Best first.
    pub(super) fn into_sorted(self) -> Vec<Ranked> {
        self.best.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_what_sorting_everything_would_keep(
            scores in proptest::collection::vec(0u8..20, 0..200), depth in 0usize..30, first_rows in proptest::collection::btree_set(1u32..200, 0..60),
        ) {
            let starts: RoaringBitmap = std::iter::once(0).chain(first_rows).collect();
            let mut all: Vec<Ranked> = scores.iter().enumerate().map(|(row, score)| Ranked { score: f32::from(*score), row: row as u32 }).collect();
            let (mut plain, mut grouped) = (Ranking::new(depth, None), Ranking::new(depth, Some(&starts)));
            for ranked in &all {
                plain.offer(ranked.score, ranked.row);
                grouped.offer(ranked.score, ranked.row);
            }
            all.sort();
            prop_assert_eq!(plain.into_sorted(), all.iter().copied().take(depth).collect::<Vec<_>>());
            let mut seen = std::collections::HashSet::new();
            let best: Vec<Ranked> = all.into_iter().filter(|ranked| seen.insert(starts.rank(ranked.row))).take(depth).collect();
            prop_assert_eq!(grouped.into_sorted(), best);
        }
    }
}
