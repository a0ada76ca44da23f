//! How the nearest rows of a segment are looked for: by comparing all that are allowed, or through the index, and then how far into it.
//!
//! Costs are counted in rows that are compared, which takes about 25 ns of 384 values. An index costs as many as it has lists, to find those that
//! are near, as many as there are candidates, and one for each [`SCANNED_PER_ROW`] rows whose codes are looked at.
//!
//! The effort of an index has been found by trial with all rows. With a filter it looks into lists until it has seen as many rows that pass as the
//! trial saw of all: the nearest of those that pass are farther away, and where they are is not known beforehand, for a filter may pass just the
//! rows that are near a query, or none of them. Seeing more codes costs little, and what a filter leaves of a block is known before it is scanned.

use super::vector_index::{Efforts, Recall};
use ragged_kernels::approximate::{Effort, Mask, NearLists, Reach};
use std::fmt;

/// Rows whose codes are looked at while one row is compared.
const SCANNED_PER_ROW: u64 = 30;
/// What an index costs whatever is looked for: weighing the codes, choosing the best.
const SEARCH_ROWS: u64 = 200;
/// Part of the rows that candidates may be at most: choosing as many would choose nothing.
const CANDIDATES_PART_MAX: u64 = 4;
/// By what the lists that are looked into grow at most from one look at them to the next.
const STEP: usize = 4;
/// With so many of a hundred rows allowed, the effort is not raised: deleted rows are not worth a second look at the lists.
const ENOUGH_OF_HUNDRED: usize = 90;

/// How rows were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// There are none.
    Nothing,
    /// All that are allowed were compared.
    Exact {
        /// So many.
        rows: u64,
    },
    /// Through the index.
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
    /// None when comparing all of the `count` rows is better from the start. `lists` are those of the index.
    pub(super) fn new(efforts: &Efforts, recall: Recall, wanted: usize, count: u64, lists: usize) -> Option<Plan> {
        let effort = efforts.for_recall(recall, wanted)?.for_rows(wanted);
        let plan = Plan { wanted, count, effort };
        let is_better = plan.cost(lists, 0) < count && (effort.candidates as u64) < count / CANDIDATES_PART_MAX;
        is_better.then_some(plan)
    }

    fn cost(&self, lists: usize, scanned: usize) -> u64 {
        lists as u64 + self.effort.candidates as u64 + SEARCH_ROWS + scanned as u64 / SCANNED_PER_ROW
    }

    /// How far to look into the index, of which the rows of `mask` are allowed, all without one; none when comparing all that are allowed is better.
    pub(super) fn approximate(&self, near: &mut NearLists<'_>, mask: Option<&Mask>) -> Option<Approximate> {
        let lists = near.count();
        let Some(mask) = mask else { return Some(Approximate { effort: self.effort, lists, reach: None }) };
        let mut probes = self.effort.probes.min(lists);
        let mut reach = near.reach(probes, mask);
        let enough = reach.rows * ENOUGH_OF_HUNDRED / 100;
        loop {
            if self.cost(lists, reach.scanned) >= self.count {
                return None;
            }
            if reach.allowed >= enough || probes == lists {
                break;
            }
            probes = (probes * enough).div_ceil(reach.allowed.max(1)).min(probes * STEP).min(lists);
            reach = near.reach(probes, mask);
        }
        // A row that is in two lists counts twice.
        let is_enough = reach.allowed >= 2 * self.wanted;
        is_enough.then_some(Approximate { effort: Effort { probes, ..self.effort }, lists, reach: Some(reach) })
    }
}
