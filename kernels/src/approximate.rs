//! Approximate search: vectors in lists by the nearest of some centroids, each kept as a code of four bits for every four values.
//!
//! A search scores the centroids, and with a table of what each code is worth to the query all codes of the best lists, sixteen-entry
//! tables at a time in registers. What scores best are candidates only: the caller scores them again from the vectors. The scheme is that of
//! Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search" (2011), of what is left after the centroid, with the
//! scan of André, Kermarrec and Le Scouarnec, "Cache locality is not enough" (2015).
//!
//! - `clusters`: the centroids
//! - `codes`: what becomes of a vector
//! - `file`: how an index lies in its file, which is mapped into memory
//! - `tables`: what each code is worth to a query
//! - `scan`: scores codes, for each instruction set
//! - `best`: the candidates among the scores

mod best;
mod build;
mod clusters;
mod codes;
mod file;
mod scan;
mod tables;

pub use build::build;
pub use file::{ApproximateIndex, IndexError};

use crate::exact::{self, Scored};
use scan::{BLOCK, Scanner};
use std::cell::RefCell;
use tables::Tables;

/// Values of a vector at most: with more, rounding could add more than there is room for.
pub const DIMENSION_MAX: usize = 32_768;

/// Scores that a thread keeps room for between searches at most: 4 MiB.
const ROOM_KEPT_MAX: usize = 2 << 20;

/// The lists that are looked into, in no order, with the inner products of their centroids.
fn nearest_lists(query: &[f32], centroids: &[half::f16], probes: usize) -> Vec<Scored> {
    let mut lists = exact::score_all(query, centroids, query.len());
    if probes < lists.len() {
        lists.select_nth_unstable_by(probes, |one, other| other.score.total_cmp(&one.score));
        lists.truncate(probes);
    }
    lists
}

impl ApproximateIndex {
    /// Positions of about the `candidates` rows with the largest inner products with `query`, in no order that counts. `probes` lists are looked
    /// into. With `allowed`, only rows whose bit is set: bit `position % 8` of byte `position / 8`; bits that are not there are not set.
    ///
    /// # Panics
    /// If `query` has another length than the index's vectors.
    pub fn search(&self, query: &[f32], probes: usize, candidates: usize, allowed: Option<&[u8]>) -> Vec<u32> {
        assert_eq!(query.len(), self.dimension(), "the query has another dimension");
        let lists = nearest_lists(query, self.centroids(), probes.max(1));
        let scores = lists.iter().map(|list| list.score);
        let least = scores.clone().fold(f32::INFINITY, f32::min);
        let spread = scores.fold(f32::NEG_INFINITY, f32::max) - least;
        let tables = Tables::new(&self.codebook(), query, spread);
        let scanner = Scanner::get();
        let blocks: usize = lists.iter().map(|list| self.list(list.position).blocks()).sum();
        with_room_for(blocks * BLOCK, |room| {
            let mut found = Found { scores: room, used: 0, positions: Vec::with_capacity(lists.len()) };
            for scored in &lists {
                let list = self.list(scored.position);
                // Never 0, which stands for what is not to be found.
                let bias = 1 + ((scored.score - least) * tables.scale).round() as u16;
                let scores = found.next(list.positions);
                scanner.scan(list.codes, &tables.steps, bias, scores);
                scores[list.len..].fill(0);
                if let Some(allowed) = allowed {
                    leave_out(scores, &list.positions[..list.len], allowed);
                }
            }
            found.best(candidates)
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
fn leave_out(scores: &mut [u16], positions: &[u32], allowed: &[u8]) {
    for (score, position) in scores.iter_mut().zip(positions) {
        let is_allowed = allowed.get(*position as usize / 8).is_some_and(|byte| byte & (1 << (position % 8)) != 0);
        if !is_allowed {
            *score = 0;
        }
    }
}

/// The scores of the lists that have been scanned.
struct Found<'a> {
    scores: &'a mut [u16],
    used: usize,
    positions: Vec<&'a [u32]>,
}

impl<'a> Found<'a> {
    /// Where the scores of the next list go, which has these positions.
    fn next(&mut self, positions: &'a [u32]) -> &mut [u16] {
        let start = self.used;
        self.used += positions.len();
        self.positions.push(positions);
        &mut self.scores[start..self.used]
    }

    /// The positions with the `count` best scores.
    fn best(&self, count: usize) -> Vec<u32> {
        let Some(mut cut) = best::cut(self.scores, count) else { return Vec::new() };
        let mut chosen = Vec::with_capacity(count);
        let mut scores = &*self.scores;
        for positions in &self.positions {
            let (own, rest) = scores.split_at(positions.len());
            scores = rest;
            cut.take(own, |slot| chosen.push(positions[slot]));
        }
        chosen
    }
}

#[cfg(test)]
mod tests;
