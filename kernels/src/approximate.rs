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

mod best;
mod build;
mod bytes;
mod clusters;
mod codes;
mod file;
mod nearest;
mod scan;
mod tables;
mod vectors;

pub use build::build;
pub use file::{ApproximateIndex, IndexError};

use crate::exact::Scored;
use bytes::{ByteQuery, ByteRows};
use scan::{BLOCK, Scanner};
use std::cell::RefCell;
use tables::Tables;

/// Values of a vector at most: with more, rounding could add more than there is room for.
pub const DIMENSION_MAX: usize = 32_768;

/// Scores that a thread keeps room for between searches at most: 4 MiB.
const ROOM_KEPT_MAX: usize = 2 << 20;

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

/// The lists that are looked into, in no order, with the inner products of their centroids.
fn nearest_lists(query: &ByteQuery, centroids: ByteRows<'_>, probes: usize) -> Vec<Scored> {
    let scores = centroids.score_all(query);
    let mut lists: Vec<Scored> = (0..).zip(scores).map(|(position, score)| Scored { position, score }).collect();
    keep_best(&mut lists, probes);
    lists
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
    /// only rows whose bit is set: bit `position % 8` of byte `position / 8`; bits that are not there are not set.
    ///
    /// # Panics
    /// If `query` has another length than the index's vectors.
    pub fn search(&self, query: &[f32], effort: Effort, allowed: Option<&[u8]>) -> Vec<u32> {
        assert_eq!(query.len(), self.dimension(), "the query has another dimension");
        let byte_query = ByteQuery::new(query);
        let candidates = self.candidates(query, &byte_query, effort, allowed);
        let mut scored = Vec::with_capacity(candidates.len());
        let mut numbers = candidates.iter();
        self.byte_rows().score(&byte_query, &candidates, |score| {
            scored.extend(numbers.next().map(|number| Scored { position: *number, score }));
        });
        // Each is there twice at most.
        keep_best(&mut scored, 2 * effort.found);
        scored.sort_unstable_by(|one, other| other.score.total_cmp(&one.score).then(one.position.cmp(&other.position)));
        scored.dedup_by_key(|one| one.position);
        scored.truncate(effort.found);
        let positions = self.positions();
        scored.iter().map(|one| positions[one.position as usize]).collect()
    }

    /// Numbers of the rows whose codes score best.
    fn candidates(&self, query: &[f32], byte_query: &ByteQuery, effort: Effort, allowed: Option<&[u8]>) -> Vec<u32> {
        let lists = nearest_lists(byte_query, self.centroids(), effort.probes.max(1));
        let scores = lists.iter().map(|list| list.score);
        let least = scores.clone().fold(f32::INFINITY, f32::min);
        let spread = scores.fold(f32::NEG_INFINITY, f32::max) - least;
        let tables = Tables::new(&self.codebook(), query, spread);
        let scanner = Scanner::get();
        let blocks: usize = lists.iter().map(|list| self.list(list.position).blocks()).sum();
        let positions = self.positions();
        with_room_for(blocks * BLOCK, |room| {
            let mut found = Found { scores: room, used: 0, numbers: Vec::with_capacity(lists.len()) };
            for scored in &lists {
                let list = self.list(scored.position);
                // Never 0, which stands for what is not to be found.
                let bias = 1 + ((scored.score - least) * tables.scale).round() as u16;
                let scores = found.next(list.numbers);
                scanner.scan(list.codes, &tables.steps, bias, scores);
                scores[list.len..].fill(0);
                if let Some(allowed) = allowed {
                    leave_out(scores, list.numbers[..list.len].iter().map(|number| positions[*number as usize]), allowed);
                }
            }
            found.best(effort.candidates)
        })
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

/// Marks the scores of rows that are not allowed.
fn leave_out(scores: &mut [u16], positions: impl Iterator<Item = u32>, allowed: &[u8]) {
    for (score, position) in scores.iter_mut().zip(positions) {
        let is_allowed = allowed.get(position as usize / 8).is_some_and(|byte| byte & (1 << (position % 8)) != 0);
        if !is_allowed {
            *score = 0;
        }
    }
}

/// The scores of the lists that have been scanned.
struct Found<'a> {
    scores: &'a mut [u16],
    used: usize,
    numbers: Vec<&'a [u32]>,
}

impl<'a> Found<'a> {
    /// Where the scores of the next list go, whose rows have these numbers.
    fn next(&mut self, numbers: &'a [u32]) -> &mut [u16] {
        let start = self.used;
        self.used += numbers.len();
        self.numbers.push(numbers);
        &mut self.scores[start..self.used]
    }

    /// The numbers with the `count` best scores.
    fn best(&self, count: usize) -> Vec<u32> {
        let Some(mut cut) = best::cut(self.scores, count) else { return Vec::new() };
        let mut chosen = Vec::with_capacity(count);
        let mut scores = &*self.scores;
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
