//! Approximate search: vectors in lists by two near ones of some centroids, each kept as a code of four bits for every four values.
//!
//! A search scores the centroids, and with a table of what each code is worth to the query all codes of the best lists, sixteen-entry
//! tables at a time in registers. What scores best are candidates, which are scored again from the rows as bytes. The best of these are what is found;
//! the caller scores them once more from the vectors. The scheme is that of
//! Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search" (2011), of what is left after the centroid, with the
//! scan of André, Kermarrec and Le Scouarnec, "Cache locality is not enough" (2015). That each vector is in two lists finds as much in a third of
//! the rows.
//!
//! - `clusters`: the centroids
//! - `codes`: what becomes of a vector
//! - `bytes`: the rows that candidates are scored with again
//! - `file`: how an index lies in its file, which is mapped into memory
//! - `tables`: what each code is worth to a query
//! - `scan`: scores codes, for each instruction set
//! - `best`: the candidates among the scores
//! - `needs`: what effort finds a row, for all efforts at once
//! - `mask`: which rows may be found

mod best;
mod build;
mod bytes;
mod clusters;
mod codes;
mod file;
mod mask;
mod nearest;
mod needs;
mod scan;
mod tables;
mod vectors;

pub use build::build;
pub use file::{ApproximateIndex, IndexError};
pub use mask::Mask;
pub use needs::Places;

use crate::exact::Scored;
use bytes::ByteQuery;
use scan::{BLOCK, Scanner};
use std::cell::RefCell;
use std::io;
use tables::Tables;

/// Values of a vector at most: with more, rounding could add more than there is room for.
pub const DIMENSION_MAX: usize = 32_768;

/// Scores that a thread keeps room for between searches at most: 4 MiB.
const ROOM_KEPT_MAX: usize = 2 << 20;

/// Rows that are compared until only the best of them are kept.
const COMPARED_TOGETHER: usize = 4096;

/// How hard an index is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Lists that are looked into.
    pub probes: usize,
    /// Codes that score best, whose rows are scored again from their bytes. A row has two.
    pub candidates: usize,
    /// Rows whose bytes score best, which are found.
    pub found: usize,
}

/// Leaves so many with the best scores, in no order.
fn keep_best(scored: &mut Vec<Scored>, count: usize) {
    if count < scored.len() {
        scored.select_nth_unstable_by(count, |one, other| other.score.total_cmp(&one.score));
        scored.truncate(count);
    }
}

impl ApproximateIndex {
    /// Positions of at most as many rows as `effort` says with about the largest inner products with `query`, in no order that counts. With `allowed`,
    /// only rows that it has.
    ///
    /// # Errors
    /// If rows are read ([`ApproximateIndex::read_rows`]), and cannot be.
    ///
    /// # Panics
    /// If `query` has another length than the index's vectors, or `allowed` is of an index of another size.
    pub fn search(&self, query: &[f32], effort: Effort, allowed: Option<&Mask>) -> io::Result<Vec<u32>> {
        self.near(query).search(effort, allowed)
    }

    /// Positions of the `found` rows of those allowed whose bytes have the largest inner products with `query`, in no order that counts: every one is
    /// compared. Bytes place a row among its neighbours nearly as exactly as its vector does, and are half as many.
    ///
    /// # Errors
    /// As [`ApproximateIndex::search`].
    ///
    /// # Panics
    /// If `query` has another length than the index's vectors, or `allowed` is of an index of another size.
    pub fn compare(&self, query: &[f32], found: usize, allowed: &Mask) -> io::Result<Vec<u32>> {
        assert_eq!(query.len(), self.dimension(), "the query has another dimension");
        let byte_query = ByteQuery::new(query);
        let mut best = Vec::new();
        let mut numbers = allowed.numbers().fuse();
        let mut some = Vec::with_capacity(COMPARED_TOGETHER);
        loop {
            some.clear();
            some.extend(numbers.by_ref().take(COMPARED_TOGETHER));
            if some.is_empty() {
                let positions = self.positions();
                return Ok(best.iter().map(|one: &Scored| positions[one.position as usize]).collect());
            }
            let mut compared = some.iter();
            self.score_rows(&byte_query, &some, |score| {
                best.extend(compared.next().map(|number| Scored { position: *number, score }));
            })?;
            keep_best(&mut best, found);
        }
    }

    /// The lists as they lie to a query: to see what is in the nearest of them before they are searched.
    ///
    /// # Panics
    /// If `query` has another length than the index's vectors.
    pub fn near<'a>(&'a self, query: &'a [f32]) -> NearLists<'a> {
        assert_eq!(query.len(), self.dimension(), "the query has another dimension");
        let byte_query = ByteQuery::new(query);
        let scores = self.centroids().score_all(&byte_query);
        let lists = (0..).zip(scores).map(|(position, score)| Scored { position, score }).collect();
        NearLists { index: self, query, byte_query, lists }
    }
}

/// The lists of an index with the inner products of their centroids with a query.
pub struct NearLists<'a> {
    index: &'a ApproximateIndex,
    query: &'a [f32],
    byte_query: ByteQuery,
    lists: Vec<Scored>,
}

/// What is in some lists. Rows that are in two of them count twice.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reach {
    /// Rows, allowed or not.
    pub rows: usize,
    /// Rows that are allowed.
    pub allowed: usize,
    /// Rows, allowed or not, in blocks with allowed ones: those are scanned.
    pub scanned: usize,
    /// How much what part of a list's rows is allowed differs from what part of all rows of the index is: the mean of the differences' squares, beyond what chance
    /// makes of them, by the square of that part; the square of a coefficient of variation. About 0 when what is allowed has nothing to do with the lists, about 1 when
    /// none of these lists has any of it although some would have by chance.
    pub variation: f64,
}

impl NearLists<'_> {
    /// What is in the `probes` nearest lists, when `allowed` has a `part` of all rows.
    ///
    /// # Panics
    /// If `allowed` is of an index of another size.
    pub fn reach(&mut self, probes: usize, allowed: &Mask, part: f64) -> Reach {
        let index = self.index;
        let mut reach = Reach::default();
        let by_chance = part * (1.0 - part);
        let mut beyond_chance = 0.0;
        for scored in self.nearest(probes) {
            let list = index.list(scored.position);
            let words = allowed.words(list.blocks.clone());
            let allowed: usize = words.iter().map(|word| word.count_ones() as usize).sum();
            reach.rows += list.len;
            reach.allowed += allowed;
            reach.scanned += words.iter().filter(|word| **word != 0).count() * BLOCK;
            // The square of n rows' difference is by chance n times that of one.
            let rows = list.len as f64;
            beyond_chance += (allowed as f64 - rows * part).powi(2) / rows.max(1.0) - by_chance;
        }
        // Lists that are few or small say little one by one, and yet more of all rows may be allowed in them than elsewhere, or fewer.
        let rows = reach.rows as f64;
        let of_all_lists = (reach.allowed as f64 - rows * part).powi(2) / rows.max(1.0) - by_chance;
        let squares = rows * part * part;
        reach.variation = if squares > 0.0 { (beyond_chance.max(of_all_lists) / squares).max(0.0) } else { 0.0 };
        reach
    }

    /// The nearest lists, in no order.
    fn nearest(&mut self, probes: usize) -> &[Scored] {
        let probes = probes.max(1).min(self.lists.len());
        if probes < self.lists.len() {
            self.lists.select_nth_unstable_by(probes, |one, other| other.score.total_cmp(&one.score));
        }
        &self.lists[..probes]
    }

    /// As [`ApproximateIndex::search`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// If `allowed` is of an index of another size.
    pub fn search(mut self, effort: Effort, allowed: Option<&Mask>) -> io::Result<Vec<u32>> {
        let candidates = self.candidates(effort, allowed);
        let mut scored = Vec::with_capacity(candidates.len());
        let mut numbers = candidates.iter();
        self.index.score_rows(&self.byte_query, &candidates, |score| {
            scored.extend(numbers.next().map(|number| Scored { position: *number, score }));
        })?;
        // Each is there twice at most.
        keep_best(&mut scored, 2 * effort.found);
        scored.sort_unstable_by(|one, other| other.score.total_cmp(&one.score).then(one.position.cmp(&other.position)));
        scored.dedup_by_key(|one| one.position);
        scored.truncate(effort.found);
        let positions = self.index.positions();
        Ok(scored.iter().map(|one| positions[one.position as usize]).collect())
    }

    /// Numbers of the rows whose codes score best.
    fn candidates(&mut self, effort: Effort, allowed: Option<&Mask>) -> Vec<u32> {
        let (index, query) = (self.index, self.query);
        let lists = self.nearest(effort.probes);
        let scan = ListScan::new(index, query, lists);
        let blocks: usize = lists.iter().map(|list| index.list(list.position).blocks.len()).sum();
        with_room_for(blocks * BLOCK, |room| {
            let mut found = Found { scores: room, used: 0, numbers: Vec::with_capacity(lists.len()) };
            for scored in lists {
                let list = index.list(scored.position);
                let Some(allowed) = allowed else {
                    let scores = found.next(list.numbers);
                    scan.score(list.codes, scored.score, scores);
                    scores[list.len..].fill(0);
                    continue;
                };
                let words = allowed.words(list.blocks.clone());
                for run in mask::runs(words) {
                    let scores = found.next(&list.numbers[run.start * BLOCK..run.end * BLOCK]);
                    scan.score(list.codes_of(run.clone()), scored.score, scores);
                    mask::pass(scores, &words[run]);
                }
            }
            found.best(effort.candidates)
        })
    }
}

/// Scores the codes of some lists for a query, so that they can be compared with each other.
struct ListScan {
    tables: Tables,
    scanner: &'static Scanner,
    /// Least inner product of one of the lists' centroids with the query.
    least: f32,
}

impl ListScan {
    fn new(index: &ApproximateIndex, query: &[f32], lists: &[Scored]) -> ListScan {
        let scores = lists.iter().map(|list| list.score);
        let least = scores.clone().fold(f32::INFINITY, f32::min);
        let spread = scores.fold(f32::NEG_INFINITY, f32::max) - least;
        ListScan { tables: Tables::new(&index.codebook(), query, spread), scanner: Scanner::get(), least }
    }

    /// Replaces the scores by those of these codes, which are of the list whose centroid has this inner product with the query. None is 0, which stands
    /// for what is not to be found.
    fn score(&self, codes: &[u8], centroid: f32, scores: &mut [u16]) {
        let bias = 1 + ((centroid - self.least) * self.tables.scale).round() as u16;
        self.scanner.scan(codes, &self.tables.steps, bias, scores);
    }
}

thread_local! {
    /// Room for the scores of a search, which is kept for the thread's next one: an allocator gives so much memory back to the system, and asking for
    /// it again took a seventh of a search's time.
    static ROOM: RefCell<Vec<u16>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` with room for so many scores, which hold anything.
fn with_room_for<T>(scores: usize, work: impl FnOnce(&mut [u16]) -> T) -> T {
    let mut room = ROOM.take();
    if room.len() < scores {
        room.resize(scores, 0);
    }
    let done = work(&mut room[..scores]);
    if room.len() <= ROOM_KEPT_MAX {
        ROOM.set(room);
    }
    done
}

/// The scores of what has been scanned: lists, or runs of their blocks.
struct Found<'a> {
    scores: &'a mut [u16],
    used: usize,
    numbers: Vec<&'a [u32]>,
}

impl<'a> Found<'a> {
    /// Where the scores of the next rows go, which have these numbers.
    fn next(&mut self, numbers: &'a [u32]) -> &mut [u16] {
        let start = self.used;
        self.used += numbers.len();
        self.numbers.push(numbers);
        &mut self.scores[start..self.used]
    }

    /// The numbers with the `count` best scores.
    fn best(&self, count: usize) -> Vec<u32> {
        let mut scores = &self.scores[..self.used];
        let Some(mut cut) = best::cut(scores, count) else { return Vec::new() };
        let mut chosen = Vec::with_capacity(count);
        for numbers in &self.numbers {
            let (own, rest) = scores.split_at(numbers.len());
            scores = rest;
            cut.take(own, |slot| chosen.push(numbers[slot]));
        }
        chosen
    }
}

#[cfg(test)]
mod tests;
