//! How the nearest rows of a segment are looked for: by comparing the vectors of all that are allowed, or only their bytes, which the index has, or
//! those that are near by its lists, and then of how many lists; or by a GPU, which compares the vectors of all rows, when they are there and that is sooner.
//!
//! Costs are counted in vectors that are compared; each takes some tens of nanoseconds. What counts is how much memory is read: of a row's bytes half
//! as much, of its codes a sixteenth, which are then counted several times.
//!
//! The effort of an index has been found by trial with all rows. With a filter it looks into lists until it has seen as many rows that pass as the
//! trial saw of all: the nearest of those that pass are farther away, and where they are is not known beforehand, for a filter may pass just the
//! rows that are near a query, or none of them. How many pass is seen in the mask, before anything is scanned. Fewer lists are enough where a filter
//! has nothing to do with the meaning, and too few where it has.

use super::vector_index::{Efforts, Recall};
use ragged_kernels::ApproximateIndex;
use ragged_kernels::approximate::{Effort, Mask, NearLists, Reach};
use std::fmt;
use std::io;

/// Allowed rows up to which their vectors are compared: what else there is would not be quicker.
pub(super) const EXACT_ROWS_MAX: u64 = 1024;
/// Rows whose bytes are compared while one vector is.
const BYTES_PER_ROW: u64 = 2;
/// Rows whose codes are looked at while one vector is compared.
const SCANNED_PER_ROW: u64 = 12;
/// What looking into lists costs whatever is looked for: weighing the codes, choosing the best.
const SEARCH_ROWS: u64 = 100;
/// Part of the rows that candidates may be at most: choosing as many would choose nothing.
const CANDIDATES_PART_MAX: u64 = 4;
/// By what the lists that are looked into grow at most from one look at them to the next.
const STEP: usize = 4;
/// With so many of a hundred rows allowed the effort is enough as it is: a few deleted rows are not worth a second look at the lists.
const ENOUGH_OF_HUNDRED: usize = 90;

/// Bytes of vectors that are compared in a second.
const COMPARED_BYTES: f64 = 20e9;
/// Bits of rows that are set in a second, one by one.
const BITS: f64 = 1e9;

/// Seconds that comparing so many vectors takes, roughly.
pub(super) fn seconds_of_vectors(compared: u64, dimension: usize) -> f64 {
    compared as f64 * (dimension * size_of::<half::f16>()) as f64 / COMPARED_BYTES
}

/// Seconds that making so many bits takes, roughly.
pub(super) fn seconds_of_bits(bits: u64) -> f64 {
    bits as f64 / BITS
}

/// How rows were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// There are none.
    Nothing,
    /// The vectors of all that are allowed were compared.
    Exact {
        /// So many.
        rows: u64,
    },
    /// A GPU compared the vectors of all rows, and found the best of those that are allowed.
    ExactOnGpu {
        /// Rows that are allowed.
        rows: u64,
    },
    /// The bytes of all that are allowed were compared, and then the vectors of the best.
    Bytes {
        /// Rows that are allowed.
        rows: u64,
        /// Rows whose vectors were compared.
        found: usize,
    },
    /// Through the lists of the index.
    Approximate(Approximate),
}

/// How far an index is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Approximate {
    pub(super) effort: Effort,
    /// Lists that there are.
    lists: usize,
    /// What is in those lists, when not all rows are allowed.
    reach: Option<Reach>,
}

impl fmt::Display for Method {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Nothing => write!(to, "nothing to look at"),
            Method::Exact { rows } => write!(to, "exact: {rows} compared"),
            Method::ExactOnGpu { rows } => write!(to, "exact on a GPU: {rows} compared"),
            Method::Bytes { rows, found } => write!(to, "by bytes: {rows} compared, {found} re-scored"),
            Method::Approximate(Approximate { effort, lists, reach }) => {
                write!(to, "approximate: {} of {lists} lists, ", effort.probes)?;
                if let Some(Reach { rows, allowed, .. }) = reach {
                    write!(to, "in them {allowed} of {rows} codes allowed, ")?;
                }
                write!(to, "{} candidates, {} re-scored", effort.candidates, effort.found)
            }
        }
    }
}

/// What is looked for in an index.
pub(super) struct Plan {
    wanted: usize,
    /// Rows that are allowed.
    count: u64,
    effort: Effort,
}

impl Plan {
    /// None when comparing the vectors of all of the `count` rows is better from the start.
    pub(super) fn new(efforts: &Efforts, recall: Recall, wanted: usize, count: u64) -> Option<Plan> {
        let effort = efforts.for_recall(recall, wanted)?.for_rows(wanted);
        let chooses = count > EXACT_ROWS_MAX && (effort.candidates as u64) < count / CANDIDATES_PART_MAX;
        chooses.then_some(Plan { wanted, count, effort })
    }

    /// What it costs, roughly, before a mask is looked at.
    pub(super) fn cost(&self, index: &ApproximateIndex) -> u64 {
        let (lists, rows) = (index.lists() as u64, index.rows() as u64);
        let by_bytes = self.count / BYTES_PER_ROW + self.effort.found as u64;
        // A row is in two lists. With fewer rows allowed more lists are looked into, until as many of them have been seen.
        let scanned = 2 * rows * self.effort.probes as u64 / lists.max(1) * rows / self.count.max(1);
        let by_lists = SEARCH_ROWS + (lists + self.effort.candidates as u64) / BYTES_PER_ROW + scanned / SCANNED_PER_ROW;
        if self.count < rows { by_lists.min(by_bytes) } else { by_lists }
    }

    /// Positions of rows among which the nearest are, of those of `mask` when there is one, and how they were found.
    pub(super) fn find(&self, index: &ApproximateIndex, query: &[f32], mask: Option<&Mask>) -> io::Result<(Vec<u32>, Method)> {
        let Some(mask) = mask else {
            let approximate = Approximate { effort: self.effort, lists: index.lists(), reach: None };
            return Ok((index.search(query, self.effort, None)?, Method::Approximate(approximate)));
        };
        if self.is_better(index.lists(), 0) {
            let mut near = index.near(query);
            if let Some(approximate) = self.approximate(&mut near, mask) {
                return Ok((near.search(approximate.effort, Some(mask))?, Method::Approximate(approximate)));
            }
        }
        let found = self.effort.found;
        Ok((index.compare(query, found, mask)?, Method::Bytes { rows: self.count, found }))
    }

    /// Whether looking into lists is better than comparing the bytes of all rows that are allowed.
    fn is_better(&self, lists: usize, scanned: usize) -> bool {
        let compared = (lists + self.effort.candidates) as u64;
        SEARCH_ROWS + compared / BYTES_PER_ROW + scanned as u64 / SCANNED_PER_ROW < self.count / BYTES_PER_ROW
    }

    /// How far to look into the lists; none when that is not better than comparing all rows that are allowed.
    fn approximate(&self, near: &mut NearLists<'_>, mask: &Mask) -> Option<Approximate> {
        let lists = near.count();
        let mut probes = self.effort.probes.min(lists);
        let mut reach = near.reach(probes, mask);
        let enough = reach.rows * ENOUGH_OF_HUNDRED / 100;
        while reach.allowed < enough && probes < lists && self.is_better(lists, reach.scanned) {
            probes = (probes * enough).div_ceil(reach.allowed.max(1)).min(probes * STEP).min(lists);
            reach = near.reach(probes, mask);
        }
        // A row that is in two lists counts twice.
        let is_enough = reach.allowed >= 2 * self.wanted && self.is_better(lists, reach.scanned);
        is_enough.then_some(Approximate { effort: Effort { probes, ..self.effort }, lists, reach: Some(reach) })
    }
}
