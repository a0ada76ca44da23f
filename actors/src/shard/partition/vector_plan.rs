//! How the nearest rows of a segment are looked for: by comparing all that are allowed, or through the index, and then how far into it.
//!
//! Costs are counted in rows that are compared, which takes about 25 ns of 384 values. An index costs as many as it has lists, to find those that
//! are near, as many as there are candidates, and one for each [`SCANNED_PER_ROW`] rows whose codes are looked at.
//!
//! Of rows that pass a filter the nearest are farther away, and so are their lists. If one in ten passes, the nearest ten of them are about the
//! nearest hundred of all, and it takes the effort that finds a hundred. How many pass is not asked of all rows but of those near the query: a
//! filter may pass just the rows that are near, or none of them.

use super::vector_index::{Efforts, Recall};
use ragged_kernels::approximate::{Mask, NearLists, Reach};
use std::fmt;

/// Rows whose codes are looked at while one row is compared.
const SCANNED_PER_ROW: u64 = 30;
/// What an index costs whatever is looked for: weighing the codes, choosing the best.
const SEARCH_ROWS: u64 = 200;
/// Part of the rows that candidates may be at most: choosing as many would choose nothing.
const CANDIDATES_PART_MAX: u64 = 4;
/// By what the lists grow at least when ten times as many rows are wanted, as a power of ten. Where the trials of an index saw less, its efforts for ten rows
/// had room to spare.
const GROWTH_MIN: f64 = 0.25;
/// By what the lists that are looked into grow at most from one look at them to the next.
const STEP: usize = 2;

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
    /// Lists that are looked into.
    pub(super) probes: usize,
    /// Lists that there are.
    lists: usize,
    /// Rows that are scored again.
    pub(super) candidates: usize,
    /// What is in those lists, when not all rows are allowed.
    reach: Option<Reach>,
}

impl fmt::Display for Method {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Nothing => write!(to, "nothing to look at"),
            Method::Exact { rows } => write!(to, "exact: {rows} compared"),
            Method::Approximate(Approximate { probes, lists, candidates, reach }) => {
                write!(to, "approximate: {probes} of {lists} lists, ")?;
                if let Some(Reach { rows, allowed, .. }) = reach {
                    write!(to, "in them {allowed} allowed of {rows}, ")?;
                }
                write!(to, "{candidates} re-scored")
            }
        }
    }
}

/// What is looked for in an index.
pub(super) struct Plan<'a> {
    efforts: &'a Efforts,
    recall: Recall,
    wanted: usize,
    /// Rows that are allowed.
    count: u64,
    probes: usize,
    candidates: usize,
}

impl<'a> Plan<'a> {
    /// None when comparing all of the `count` rows is better from the start. `lists` are those of the index.
    pub(super) fn new(efforts: &'a Efforts, recall: Recall, wanted: usize, count: u64, lists: usize) -> Option<Plan<'a>> {
        let effort = efforts.for_recall(recall, wanted)?;
        let (probes, candidates) = (effort.probes as usize, effort.candidates(wanted));
        let plan = Plan { efforts, recall, wanted, count, probes, candidates };
        let is_better = plan.cost(lists, 0) < count && (candidates as u64) < count / CANDIDATES_PART_MAX;
        is_better.then_some(plan)
    }

    fn cost(&self, lists: usize, scanned: usize) -> u64 {
        lists as u64 + self.candidates as u64 + SEARCH_ROWS + scanned as u64 / SCANNED_PER_ROW
    }

    /// How far to look into the index, of which the rows of `mask` are allowed, all without one; none when comparing all that are allowed is better.
    pub(super) fn approximate(&self, near: &mut NearLists<'_>, mask: Option<&Mask>) -> Option<Approximate> {
        let lists = near.count();
        let (mut probes, candidates) = (self.probes.min(lists), self.candidates);
        let Some(mask) = mask else { return Some(Approximate { probes, lists, candidates, reach: None }) };
        let mut reach = near.reach(probes, mask);
        while probes < lists {
            let part = reach.allowed.max(1) as f64 / reach.rows.max(1) as f64;
            let enough = self.probes_for(self.wanted as f64 / part)?.min(lists);
            if enough <= probes {
                break;
            }
            probes = enough.min(probes * STEP);
            reach = near.reach(probes, mask);
        }
        let is_better = self.cost(lists, reach.scanned) < self.count && reach.allowed >= self.wanted;
        is_better.then_some(Approximate { probes, lists, candidates, reach: Some(reach) })
    }

    /// Lists that the nearest rows lie in, so many of them: what was found by trial for ten and for a hundred, and on along the same power.
    fn probes_for(&self, rows: f64) -> Option<usize> {
        let tried = |rows| self.efforts.for_recall(self.recall, rows).map(|effort| f64::from(effort.probes));
        let (ten, hundred) = (tried(10)?, tried(100)?);
        let growth = (hundred / ten).log10().max(GROWTH_MIN);
        Some((ten * (rows / 10.0).max(1.0).powf(growth)).ceil() as usize)
    }
}
