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
use std::num::NonZeroU32;

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

/// For each number of lists, the candidates that each of the rows needs that are nearest to a query.
type Needed = Vec<Vec<Option<NonZeroU32>>>;

/// An index, queries, and what is nearest to them.
struct Trial<'a> {
    index: &'a ApproximateIndex,
    vectors: &'a VectorFile,
    queries: Vec<&'a [f32]>,
    nearest: Vec<Vec<Scored>>,
    /// Numbers of lists, ascending, and what each query needs.
    probes: Vec<u32>,
    needed: Vec<Needed>,
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

    fn candidates_needed(&self) -> Vec<Needed> {
        let positions = |nearest: &[Scored]| -> Vec<u32> { nearest.iter().map(|one| one.position).collect() };
        let places = self.index.places(self.nearest.iter().flat_map(|nearest| positions(nearest)));
        let probes: Vec<usize> = self.probes.iter().map(|probes| *probes as usize).collect();
        self.of_each(|query, nearest| self.index.near(query).candidates_needed(&positions(nearest), &places, &probes))
    }

    /// The least for the two recalls, with so many standard errors to spare.
    fn efforts(&self, recalls: [f64; 2], errors_to_spare: f64) -> io::Result<Efforts> {
        let of_depth = |depth| self.efforts_for_depth(depth, recalls, errors_to_spare);
        let ([ten, ten_high], [hundred, hundred_high]) = (of_depth(Depth::Ten)?, of_depth(Depth::Hundred)?);
        Ok(Efforts { usual: [ten, hundred], high: [ten_high, hundred_high] })
    }

    fn efforts_for_depth(&self, depth: Depth, recalls: [f64; 2], errors_to_spare: f64) -> io::Result<[Option<Effort>; 2]> {
        let efforts = Effort::all(self.index.rows(), self.index.lists() as u32, depth);
        let should_find: Vec<f64> =
            efforts.iter().map(|effort| self.share_that_should_be_found(*effort, depth).with_spare(errors_to_spare)).collect();
        let least = |recall| {
            least_that_finds(recall, &should_find, |place| {
                let share = self.share_found(efforts[place], depth)?;
                tracing::debug!(?depth, effort = ?efforts[place], should_find = should_find[place], ?share, "tried");
                Ok(share.with_spare(errors_to_spare))
            })
            .map(|least| least.map(|place| efforts[place]))
        };
        Ok([least(recalls[0])?, least(recalls[1])?])
    }

    /// Part of the `depth` nearest rows that is among the candidates.
    fn share_that_should_be_found(&self, effort: Effort, depth: Depth) -> Share {
        let place = self.probes.partition_point(|probes| *probes < effort.probes);
        let candidates = effort.candidates(depth.rows());
        let is_found = |needed: &&Option<NonZeroU32>| needed.is_some_and(|needed| needed.get() as usize <= candidates);
        let of_query = |needed: &Needed| {
            let needed = &needed[place];
            let nearest = &needed[..depth.rows().min(needed.len())];
            nearest.iter().filter(is_found).count() as f64 / nearest.len() as f64
        };
        // A query that is near to nothing says nothing.
        let says = |needed: &&Needed| !needed[place].is_empty();
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

/// One of the cheapest of some efforts, cheapest first, that finds so much, by what each should find and what a search finds.
///
/// Where a search finds less than it should, so will others: the next must promise more by what was missing, or as much as any that is left does, and with
/// every failure twice as many are left out, so that there are few. What was left out last is then halved, since that which found enough may be far beyond.
fn least_that_finds(
    recall: f64,
    should_find: &[f64],
    mut finds: impl FnMut(usize) -> io::Result<f64>,
) -> io::Result<Option<usize>> {
    let promising: Vec<usize> = (0..should_find.len()).filter(|place| should_find[*place] >= recall).collect();
    let promise = |number: usize| should_find[promising[number]];
    let Some(last) = promising.len().checked_sub(1) else { return Ok(None) };
    let (mut from, mut step, mut enough, mut failed) = (0, 1, recall, None);
    let mut found = loop {
        let most_left = (from..=last).map(promise).fold(recall, f64::max);
        enough = enough.min(most_left);
        let number = (from..=last).find(|number| promise(*number) >= enough).unwrap_or(last);
        let missing = recall - finds(promising[number])?;
        if missing <= 0.0 {
            break number;
        }
        if number == last {
            return Ok(None);
        }
        failed = Some(number);
        enough = enough.max(promise(number) + missing);
        (from, step) = ((number + step).min(last), 2 * step);
    };
    while let Some(known) = failed
        && found > known + 1
    {
        let middle = usize::midpoint(known, found);
        if promise(middle) >= enough && finds(promising[middle])? >= recall { found = middle } else { failed = Some(middle) }
    }
    Ok(Some(promising[found]))
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

    /// What is left of the mean when so many standard errors are spared.
    fn with_spare(&self, errors_to_spare: f64) -> f64 {
        self.mean - errors_to_spare * self.standard_error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
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
        assert!(least.is_some_and(|least| (600..604).contains(&least)) && tries <= 10, "{least:?} after {tries}");
        assert_eq!(found(0.9995, &should_find, |share| share), (None, 0));
        // Where a search finds nothing whatever the effort, that is known soon, and where all promise everything, the one that keeps it is not passed by far.
        for should_find in [should_find, vec![1.0; 1000]] {
            let (least, tries) = found(0.95, &should_find, |_| 0.0);
            assert!(least.is_none() && tries <= 11, "{tries}");
        }
        let mut tries = 0;
        let least = least_that_finds(0.95, &[1.0; 1000], |place| {
            tries += 1;
            Ok(if place < 300 { 0.5 } else { 0.96 })
        });
        assert_eq!(least.unwrap(), Some(300));
        assert!(tries <= 20, "{tries}");
    }

    /// Vectors around some forty centres, as texts on forty subjects are.
    fn in_heaps(count: usize, dimension: usize) -> Vec<f16> {
        let mut state = 7u64;
        let mut value = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let centres: Vec<f32> = (0..40 * dimension).map(|_| value()).collect();
        let vector = |number: usize| {
            let centre = &centres[number % 40 * dimension..][..dimension];
            let mut vector: Vec<f32> = centre.iter().map(|centre| centre + 0.7 * value()).collect();
            exact::normalize(&mut vector);
            exact::to_f16(&vector)
        };
        (0..count).flat_map(vector).collect()
    }

    #[test]
    fn a_search_finds_what_it_should() {
        let (count, dimension) = (9000, 48);
        let vectors = in_heaps(count, dimension);
        let folder = tempfile::tempdir().unwrap();
        let (index_path, vectors_path) = (folder.path().join("index"), folder.path().join("vectors"));
        std::fs::write(&vectors_path, bytemuck::cast_slice::<f16, u8>(&vectors)).unwrap();
        vector_index::build(&index_path, &vectors, dimension).unwrap();
        let index = vector_index::open(&index_path, count, dimension).unwrap();
        let file = VectorFile::open(&vectors_path, dimension).unwrap();
        let queries = made_queries(file.mapped());
        let trial = Trial::new(&index, &file, &queries, 2).unwrap();
        for depth in [Depth::Ten, Depth::Hundred] {
            let efforts = Effort::all(count, index.lists() as u32, depth);
            for effort in efforts.into_iter().step_by(17) {
                let should = trial.share_that_should_be_found(effort, depth).mean;
                let found = trial.share_found(effort, depth).unwrap().mean;
                assert!((should - found).abs() < 0.02, "{depth:?} {effort:?}: {found} instead of {should}");
            }
        }
        let efforts = with_made_queries(&index, &file).unwrap();
        for (depth, (usual, high)) in [Depth::Ten, Depth::Hundred].into_iter().zip(efforts.usual.into_iter().zip(efforts.high)) {
            let found = |effort: Option<Effort>| trial.share_found(effort.unwrap(), depth).unwrap().mean;
            assert!(found(usual) >= MADE_RECALL && found(high) >= MADE_RECALL_HIGH);
        }
    }

    proptest! {
        #[test]
        fn what_is_found_was_seen_to_find_enough_and_the_last_that_promises_enough_is_tried_before_all_is_given_up(
            shares in prop::collection::vec((0.8f64..1.0, 0f64..0.1), 0..300),
            recall in 0.7f64..1.0,
        ) {
            let should_find: Vec<f64> = shares.iter().map(|(should, _)| *should).collect();
            let finds = |place: usize| shares[place].0 - shares[place].1;
            let mut tried = Vec::new();
            let least = least_that_finds(recall, &should_find, |place| {
                tried.push(place);
                Ok(finds(place))
            });
            match least.unwrap() {
                Some(least) => prop_assert!(finds(least) >= recall && tried.contains(&least)),
                None => {
                    let last = (0..shares.len()).rfind(|place| should_find[*place] >= recall);
                    prop_assert!(last.is_none_or(|last| tried.contains(&last)), "{:?} in {:?}", last, tried);
                }
            }
            prop_assert!(tried.len() <= 20, "{:?}", tried);
        }
    }
}
