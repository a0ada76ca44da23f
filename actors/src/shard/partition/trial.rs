//! Finds how hard an approximate index must be searched, with queries whose nearest rows are known.
//!
//! For each query all codes are scanned once, which says of every effort whether it finds the nearest rows among its candidates: so all efforts are known
//! for what one search of all lists costs. The cheapest that should find enough is then searched with: bytes can lose what codes have found.
//!
//! A new index is tried with queries made of its own vectors. What people ask may be easier or harder: among a million vectors, of which each has near copies,
//! a fifth of the effort was enough that those queries needed. So an index is tried again with queries that searches have brought ([`super::query_sample`]).

use super::vector_file::{VectorFile, Vectors};
use super::vector_index::{self, Depth, Effort, Efforts};
use ragged_kernels::{ApproximateIndex, Scored, exact};
use std::io;

/// Queries that are made to try a new index with.
const MADE_QUERIES: usize = 64;
/// Part of the nearest rows that must be found for made queries, for 95 of a hundred and for 99: they are few, and not what will be asked for.
const MADE_RECALL: f64 = 0.97;
const MADE_RECALL_HIGH: f64 = 0.995;
/// Part of the nearest rows that must be found for queries that searches have brought,
const RECALL: f64 = 0.95;
const RECALL_HIGH: f64 = 0.99;
/// with so many standard errors to spare: of all samples of queries, nine in ten would then say no less.
const ERRORS_TO_SPARE: f64 = 1.28;

/// The least efforts that find enough for queries made of the vectors.
pub(super) fn with_made_queries(index: &ApproximateIndex, vectors: &VectorFile) -> io::Result<Efforts> {
    let queries = made_queries(vectors.mapped());
    let trial = Trial::new(index, vectors, &queries, vector_index::BUILD_THREADS)?;
    let efforts = trial.efforts([MADE_RECALL, MADE_RECALL_HIGH], 0.0)?;
    if efforts.kept().is_some() {
        return Ok(efforts);
    }
    // The margin cannot be had from queries as hard as these, which is no reason to compare all rows for every search.
    trial.efforts([RECALL, MADE_RECALL_HIGH], 0.0)
}

/// The least efforts that find enough for queries that searches have brought. It runs in one thread, beside searches.
pub(super) fn with_queries(index: &ApproximateIndex, vectors: &VectorFile, queries: &[f32]) -> io::Result<Efforts> {
    Trial::new(index, vectors, queries, 1)?.efforts([RECALL, RECALL_HIGH], ERRORS_TO_SPARE)
}

/// Queries to try an index with: sums of one to four vectors that it has. Questions are seldom as near to an answer as answers are to
/// each other, and lie between lists, where an index errs the most.
fn made_queries(vectors: Vectors<'_>) -> Vec<f32> {
    let count = vectors.count();
    let query = |number: usize| {
        let mut query = vectors.of(number * count / MADE_QUERIES);
        for other in 0..number % 4 {
            let other = vectors.of((number * 7919 + other * 104_729 + 13) % count);
            query.iter_mut().zip(other).for_each(|(value, other)| *value += other);
        }
        exact::normalize(&mut query);
        query
    };
    (0..MADE_QUERIES).flat_map(query).collect()
}

/// An index, queries, and what is nearest to them.
struct Trial<'a> {
    index: &'a ApproximateIndex,
    vectors: &'a VectorFile,
    queries: Vec<&'a [f32]>,
    nearest: Vec<Vec<Scored>>,
    /// Numbers of lists, ascending, and for each query, for each of them, the candidates that each of the nearest rows needs.
    probes: Vec<u32>,
    needed: Vec<Vec<Vec<Option<usize>>>>,
    threads: usize,
}

impl<'a> Trial<'a> {
    fn new(index: &'a ApproximateIndex, vectors: &'a VectorFile, queries: &'a [f32], threads: usize) -> io::Result<Trial<'a>> {
        let nearest = vectors.nearest_of_each(queries, Depth::Hundred.rows(), threads)?;
        let queries = queries.chunks_exact(index.dimension()).collect();
        let probes = vector_index::probes_tried(index.lists() as u32);
        let mut trial = Trial { index, vectors, queries, nearest, probes, needed: Vec::new(), threads };
        trial.needed = trial.candidates_needed();
        Ok(trial)
    }

    fn candidates_needed(&self) -> Vec<Vec<Vec<Option<usize>>>> {
        let positions = |nearest: &[Scored]| -> Vec<u32> { nearest.iter().map(|one| one.position).collect() };
        let places = self.index.places(self.nearest.iter().flat_map(|nearest| positions(nearest)));
        let probes: Vec<usize> = self.probes.iter().map(|probes| *probes as usize).collect();
        self.of_each(|query, nearest| self.index.near(query).candidates_needed(&positions(nearest), &places, &probes))
    }

    /// For the two recalls, with so many standard errors to spare.
    fn efforts(&self, recalls: [f64; 2], errors_to_spare: f64) -> io::Result<Efforts> {
        let mut least = [[None; 2]; 2];
        for (least, depth) in least.iter_mut().zip(Depth::ALL) {
            let efforts = Effort::all(self.index.rows(), depth);
            let should_find: Vec<f64> =
                efforts.iter().map(|effort| self.share_that_should_be_found(*effort, depth).at_least(errors_to_spare)).collect();
            for (least, recall) in least.iter_mut().zip(recalls) {
                *least = least_that_finds(recall, &should_find, |place| {
                    let share = self.share_found(efforts[place], depth)?;
                    tracing::debug!(?depth, effort = ?efforts[place], should_find = should_find[place], ?share, "tried");
                    Ok(share.at_least(errors_to_spare))
                })?
                .map(|place| efforts[place]);
            }
        }
        let [[ten, ten_high], [hundred, hundred_high]] = least;
        Ok(Efforts { usual: [ten, hundred], high: [ten_high, hundred_high] })
    }

    /// Part of the `depth` nearest rows that is among the candidates.
    fn share_that_should_be_found(&self, effort: Effort, depth: Depth) -> Share {
        let place = self.probes.partition_point(|probes| *probes < effort.probes);
        let candidates = effort.candidates(depth.rows());
        let is_found = |needed: &&Option<usize>| needed.is_some_and(|needed| needed <= candidates);
        let of_query = |needed: &Vec<Vec<Option<usize>>>| {
            let needed = &needed[place];
            let nearest = &needed[..depth.rows().min(needed.len())];
            nearest.iter().filter(is_found).count() as f64 / nearest.len() as f64
        };
        // A query that is near to nothing says nothing.
        let says = |needed: &&Vec<Vec<Option<usize>>>| !needed[place].is_empty();
        Share::of(&self.needed.iter().filter(says).map(of_query).collect::<Vec<f64>>())
    }

    /// Part of the `depth` nearest rows that is found.
    fn share_found(&self, effort: Effort, depth: Depth) -> io::Result<Share> {
        let shares: io::Result<Vec<Option<f64>>> =
            self.of_each(|query, nearest| self.share_of(effort, depth, query, nearest).transpose()).into_iter().collect();
        Ok(Share::of(&shares?.into_iter().flatten().collect::<Vec<f64>>()))
    }

    /// By score, so that of equal rows any will do. None for a query that is near to nothing.
    fn share_of(&self, effort: Effort, depth: Depth, query: &[f32], nearest: &[Scored]) -> Option<io::Result<f64>> {
        let nearest = &nearest[..depth.rows().min(nearest.len())];
        let (worst, wanted) = (nearest.last()?.score, nearest.len());
        let found = self.index.search(query, effort.for_rows(wanted), None);
        let scored = found.and_then(|positions| self.vectors.scored_again(query, &positions, wanted));
        Some(scored.map(|scored| scored.iter().filter(|scored| scored.score >= worst).count() as f64 / wanted as f64))
    }

    /// Does something for each query and what is nearest to it.
    fn of_each<T: Send>(&self, work: impl Fn(&[f32], &[Scored]) -> T + Sync) -> Vec<T> {
        let share = self.queries.len().div_ceil(self.threads).max(1);
        let parts = self.queries.chunks(share).zip(self.nearest.chunks(share));
        let of_part = |(queries, nearest): (&[&[f32]], &[Vec<Scored>])| -> Vec<T> {
            queries.iter().zip(nearest).map(|(query, nearest)| work(query, nearest)).collect()
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = parts.map(|part| scope.spawn(move || of_part(part))).collect();
            let ended = running.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ended.flatten().collect()
        })
    }
}

/// The first of some efforts, cheapest first, that finds so much, by what each should find and what a search finds. Where a search finds less than it should, so
/// will others: the next must promise more by what was missing, or as much as any does. With every failure twice as many efforts are left out, so that there are
/// few.
fn least_that_finds(
    recall: f64,
    should_find: &[f64],
    mut finds: impl FnMut(usize) -> io::Result<f64>,
) -> io::Result<Option<usize>> {
    let most = should_find.iter().copied().fold(0.0, f64::max);
    let last = should_find.len().saturating_sub(1);
    let (mut from, mut step, mut enough) = (0, 1, recall);
    loop {
        let promises = |place: &usize| should_find[*place] >= enough;
        let Some(place) = (from..should_find.len()).find(promises) else { return Ok(None) };
        let missing = recall - finds(place)?;
        if missing <= 0.0 {
            return Ok(Some(place));
        }
        if place == last {
            return Ok(None);
        }
        enough = enough.max(should_find[place] + missing).min(most);
        (from, step) = ((place + step).min(last), 2 * step);
    }
}

/// What queries found, on the average.
#[derive(Debug, Clone, Copy)]
struct Share {
    mean: f64,
    standard_error: f64,
}

impl Share {
    fn of(shares: &[f64]) -> Share {
        let count = (shares.len() as f64).max(1.0);
        let mean = shares.iter().sum::<f64>() / count;
        let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / count;
        Share { mean, standard_error: (variance / count).sqrt() }
    }

    /// With so many standard errors to spare.
    fn at_least(&self, errors_to_spare: f64) -> f64 {
        self.mean - errors_to_spare * self.standard_error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Which is found, and how many were searched with.
    fn found(recall: f64, should_find: &[f64], finds: impl Fn(f64) -> f64) -> (Option<usize>, usize) {
        let mut tries = 0;
        let least = least_that_finds(recall, should_find, |place| {
            tries += 1;
            Ok(finds(should_find[place]))
        });
        (least.unwrap(), tries)
    }

    #[test]
    fn the_first_that_finds_enough_is_found_in_few_tries() {
        let should_find: Vec<f64> = (0..1000).map(|place| f64::from(place) / 1000.0).collect();
        assert_eq!(found(0.95, &should_find, |share| share), (Some(950), 1));
        // What a search lacks is added to what is asked for.
        let (least, tries) = found(0.5, &should_find, |share| share - 0.1);
        assert!(least.is_some_and(|least| (600..640).contains(&least)) && tries == 2, "{least:?} after {tries}");
        assert_eq!(found(0.9995, &should_find, |share| share), (None, 0));
        // Where a search finds nothing whatever the effort, that is known soon.
        for should_find in [should_find, vec![1.0; 1000]] {
            let (least, tries) = found(0.95, &should_find, |_| 0.0);
            assert!(least.is_none() && tries <= 11, "{tries}");
        }
    }

    proptest! {
        #[test]
        fn what_is_found_was_seen_to_find_enough_and_the_most_promising_is_tried_before_it_is_given_up(
            mut should_find in prop::collection::vec(0f64..1.0, 0..300),
            lost in 0f64..0.3,
            recall in 0f64..1.0,
        ) {
            should_find.sort_by(f64::total_cmp);
            let (least, _) = found(recall, &should_find, |share| share - lost);
            match least {
                Some(least) => prop_assert!(should_find[least] - lost >= recall),
                None => prop_assert!(should_find.last().is_none_or(|most| most - lost < recall)),
            }
        }
    }
}
