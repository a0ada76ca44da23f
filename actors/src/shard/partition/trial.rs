//! Finds how hard an approximate index must be searched: it is searched for queries whose nearest rows are known, with more and with less effort.
//!
//! A new index is tried with queries made of its own vectors. What people ask may be easier or harder: among a million vectors, of which each has near copies,
//! a fifth of the effort was enough that those queries needed. So an index is tried again with queries that searches have brought ([`super::query_sample`]).

use super::vector_file::{VectorFile, Vectors};
use super::vector_index::{self, Depth, Effort, Efforts, FEW_PARTS, PARTS};
use parking_lot::Mutex;
use ragged_kernels::{ApproximateIndex, Scored, exact};
use std::collections::HashMap;
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
/// More than the sum of some hundred shares is off by.
const ROUNDING: f64 = 1e-9;

/// The least efforts that find enough for queries made of the vectors.
pub(super) fn with_made_queries(index: &ApproximateIndex, vectors: &VectorFile) -> io::Result<Efforts> {
    let queries = made_queries(vectors.mapped());
    let trial = Trial::new(index, vectors, &queries, vector_index::BUILD_THREADS)?;
    let efforts = trial.efforts([MADE_RECALL, MADE_RECALL_HIGH], 0.0, &FEW_PARTS)?;
    if efforts.kept().is_some() {
        return Ok(efforts);
    }
    // The margin cannot be had from queries as hard as these, which is no reason to compare all rows for every search.
    trial.efforts([RECALL, MADE_RECALL_HIGH], 0.0, &FEW_PARTS)
}

/// The least efforts that find enough for queries that searches have brought. It runs in one thread, beside searches.
pub(super) fn with_queries(index: &ApproximateIndex, vectors: &VectorFile, queries: &[f32]) -> io::Result<Efforts> {
    Trial::new(index, vectors, queries, 1)?.efforts([RECALL, RECALL_HIGH], ERRORS_TO_SPARE, &PARTS)
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
    threads: usize,
}

impl<'a> Trial<'a> {
    fn new(index: &'a ApproximateIndex, vectors: &'a VectorFile, queries: &'a [f32], threads: usize) -> io::Result<Trial<'a>> {
        let nearest = vectors.nearest_of_each(queries, Depth::Hundred.rows(), threads)?;
        Ok(Trial { index, vectors, queries: queries.chunks_exact(index.dimension()).collect(), nearest, threads })
    }

    /// For the two recalls, with so many standard errors to spare.
    fn efforts(&self, recalls: [f64; 2], errors_to_spare: f64, parts: &[u32]) -> io::Result<Efforts> {
        let mut unreadable = None;
        let least = Depth::ALL.map(|depth| {
            let mut found: HashMap<Effort, Share> = HashMap::new();
            // What fell short of one recall falls short of the next.
            debug_assert!(recalls.is_sorted());
            recalls.map(|recall| {
                Effort::least(self.index.rows(), depth, parts, |effort| {
                    let share = found.entry(effort).or_insert_with(|| {
                        self.share_found(effort, depth, recall).unwrap_or_else(|fault| {
                            unreadable = Some(fault);
                            Share { mean: 0.0, standard_error: 0.0 }
                        })
                    });
                    share.mean - errors_to_spare * share.standard_error >= recall
                })
            })
        });
        if let Some(fault) = unreadable {
            return Err(fault);
        }
        let [[ten, ten_high], [hundred, hundred_high]] = least;
        Ok(Efforts { usual: [ten, hundred], high: [ten_high, hundred_high] })
    }

    /// Part of the `depth` nearest rows that is found. When it turns out on the way to be less than `enough`, what it could be at most.
    fn share_found(&self, effort: Effort, depth: Depth, enough: f64) -> io::Result<Share> {
        let misses = Misses { so_far: Mutex::new(0.0), allowed: (1.0 - enough) * self.queries.len() as f64 };
        let share = self.queries.len().div_ceil(self.threads).max(1);
        let parts = self.queries.chunks(share).zip(self.nearest.chunks(share));
        let of_part = |(queries, nearest): (&[&[f32]], &[Vec<Scored>])| -> io::Result<Vec<f64>> {
            let shares = queries.iter().zip(nearest).filter_map(|(query, nearest)| self.share_of(effort, depth, query, nearest));
            shares.take_while(|share| share.as_ref().map_or(true, |share| misses.note(*share))).collect()
        };
        let of_parts: io::Result<Vec<Vec<f64>>> = std::thread::scope(|scope| {
            let running: Vec<_> = parts.map(|part| scope.spawn(move || of_part(part))).collect();
            let ended = running.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ended.collect()
        });
        let of_parts = of_parts?;
        let found = misses.at_most(self.queries.len()).unwrap_or_else(|| Share::of(&of_parts.concat()));
        tracing::debug!(?depth, ?effort, ?found, "tried");
        Ok(found)
    }

    /// By score, so that of equal rows any will do. None for a query that is near to nothing.
    fn share_of(&self, effort: Effort, depth: Depth, query: &[f32], nearest: &[Scored]) -> Option<io::Result<f64>> {
        let nearest = &nearest[..depth.rows().min(nearest.len())];
        let (worst, wanted) = (nearest.last()?.score, nearest.len());
        let found = self.index.search(query, effort.for_rows(wanted), None);
        let scored = found.and_then(|positions| self.vectors.scored_again(query, &positions, wanted));
        Some(scored.map(|scored| scored.iter().filter(|scored| scored.score >= worst).count() as f64 / wanted as f64))
    }
}

/// What queries have not found, as long as it may still be enough.
struct Misses {
    so_far: Mutex<f64>,
    allowed: f64,
}

impl Misses {
    /// One query's share; whether the others are worth asking.
    fn note(&self, share: f64) -> bool {
        let mut so_far = self.so_far.lock();
        *so_far += 1.0 - share;
        *so_far <= self.allowed + ROUNDING
    }

    /// When it cannot be enough any more, what it would be if all others found everything.
    fn at_most(&self, queries: usize) -> Option<Share> {
        let so_far = *self.so_far.lock();
        (so_far > self.allowed + ROUNDING).then(|| Share { mean: 1.0 - so_far / queries as f64, standard_error: 0.0 })
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `shares` come to when nobody is asked after it is known not to be enough.
    fn found(shares: &[f64], enough: f64) -> (Share, usize) {
        let misses = Misses { so_far: Mutex::new(0.0), allowed: (1.0 - enough) * shares.len() as f64 };
        let asked: Vec<f64> = shares.iter().copied().take_while(|share| misses.note(*share)).collect();
        (misses.at_most(shares.len()).unwrap_or_else(|| Share::of(&asked)), asked.len())
    }

    #[test]
    fn what_is_enough_is_found_to_the_end_and_what_is_not_no_longer_than_needed() {
        let shares: Vec<f64> = (0..64).map(|number| if number % 4 == 0 { 0.8 } else { 1.0 }).collect();
        let all = Share::of(&shares);
        for enough in [0.5, 0.9, 0.95] {
            let (share, asked) = found(&shares, enough);
            assert_eq!((share.mean, share.standard_error, asked), (all.mean, all.standard_error, 64));
        }
        for (enough, asked_max) in [(0.96, 56), (0.99, 16)] {
            let (share, asked) = found(&shares, enough);
            assert!(all.mean <= share.mean && share.mean < enough && asked <= asked_max, "{share:?} after {asked}");
        }
    }
}
