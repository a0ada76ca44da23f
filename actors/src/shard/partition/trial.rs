//! Finds how hard an approximate index must be searched: it is searched for queries whose nearest rows are known, with more and with less effort.
//!
//! A new index is tried with queries made of its own vectors. What people ask may be easier or harder: among a million vectors, of which each has near copies,
//! a fifth of the effort was enough that those queries needed. So an index is tried again with queries that searches have brought ([`super::query_sample`]).

use super::vector_file::{VectorFile, Vectors};
use super::vector_index::{self, Depth, Effort, Efforts, FEW_PARTS, PARTS};
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

/// The least efforts that find enough for queries made of the vectors.
pub(super) fn with_made_queries(index: &ApproximateIndex, vectors: &VectorFile) -> io::Result<Efforts> {
    let queries = made_queries(vectors.mapped());
    Trial::new(index, vectors, &queries, vector_index::BUILD_THREADS)?.efforts([MADE_RECALL, MADE_RECALL_HIGH], 0.0, &FEW_PARTS)
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
            recalls.map(|recall| {
                Effort::least(self.index.rows(), depth, parts, |effort| {
                    let share = found.entry(effort).or_insert_with(|| {
                        self.share_found(effort, depth).unwrap_or_else(|fault| {
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

    /// Part of the `depth` nearest rows that is found.
    fn share_found(&self, effort: Effort, depth: Depth) -> io::Result<Share> {
        let share = self.queries.len().div_ceil(self.threads).max(1);
        let parts = self.queries.chunks(share).zip(self.nearest.chunks(share));
        let of_part = |(queries, nearest): (&[&[f32]], &[Vec<Scored>])| -> io::Result<Vec<f64>> {
            queries.iter().zip(nearest).filter_map(|(query, nearest)| self.share_of(effort, depth, query, nearest)).collect()
        };
        let of_parts: io::Result<Vec<Vec<f64>>> = std::thread::scope(|scope| {
            let running: Vec<_> = parts.map(|part| scope.spawn(move || of_part(part))).collect();
            let ended = running.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ended.collect()
        });
        let found = Share::of(&of_parts?.concat());
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
