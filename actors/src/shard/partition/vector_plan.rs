//! How the nearest rows of a segment are looked for: by comparing the vectors of all that are allowed, or only their bytes, which the index has, or
//! those that are near by its lists, and then of how many lists; or by a GPU, which compares the vectors of all rows, when they are there and that is sooner.
//!
//! Costs are counted in vectors that are compared; each takes some tens of nanoseconds. What counts is how much memory is read: of a row's bytes half
//! as much, of its codes a sixteenth, which are then counted several times.
//!
//! The effort of an index has been found by trial with all rows. With a filter that passes a part `f` of them, and has nothing to do with what they mean,
//! the nearest `k` that pass lie among the nearest `k / f` of all, and of the candidates for so many a part `f` passes: how effort grows with the rows that are
//! looked for is known from two trials ([`Growth`]). A filter that has much to do with the meaning may pass just the rows that are near a query, or
//! none of them, or those at the edges of lists whose middle is elsewhere. Then lists are looked into until as many rows that pass have been seen as the
//! trial saw of all. How much it has is told by how the part that passes differs from list to list; what is between is between. All this is seen in the mask,
//! before anything is scanned.

use super::vector_index::{self, Depth, Efforts, Growth, Recall};
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
const STEP: f64 = 4.0;
/// Of the allowed rows that lists have by chance so many are enough: a few less are not worth a second look at the lists.
const ENOUGH: f64 = 0.9;
/// Codes of allowed rows that are seen at least when a filter has everything to do with the meaning: with fewer not even looking into all lists takes long.
const SEEN_MIN: usize = 2 * EXACT_ROWS_MAX as usize;
/// Codes of allowed rows that are seen at least for each row that is wanted.
const SEEN_FOR_EACH: usize = 4;
/// Variation from which on a filter has everything to do with the meaning ([`Reach::variation`]). Of a million rows with filters by a direction or a subject,
/// recall fell to 0.93 with 1.8, and was 0.96 with 0.8. Where less may be missed, less is enough.
const VARIATION: f64 = 0.5;
const VARIATION_HIGH: f64 = 0.1;

/// How many rows more are looked for because of chance, by the standard deviation of how many of the nearest pass: where more of them are farther away, more
/// is missed than where fewer are is gained. Of a million rows, a filter that a tenth passes found 0.9498 for 0.95 without.
const TO_SPARE: f64 = 0.25;

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
#[derive(Debug, Clone, Copy, PartialEq)]
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
#[derive(Debug, Clone, Copy, PartialEq)]
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
    growth: Growth,
    /// From which on a filter has everything to do with the meaning.
    variation: f64,
}

impl Plan {
    /// None when comparing the vectors of all of the `count` rows is better from the start.
    pub(super) fn new(efforts: &Efforts, recall: Recall, wanted: usize, count: u64) -> Option<Plan> {
        let variation = if recall == Recall::High { VARIATION_HIGH } else { VARIATION };
        let plan = Plan { wanted, count, growth: efforts.for_recall(recall, wanted)?, variation };
        let candidates = plan.effort(1.0).candidates as u64;
        let chooses = count > EXACT_ROWS_MAX && candidates < count / CANDIDATES_PART_MAX;
        chooses.then_some(plan)
    }

    /// The effort when a part of all rows is allowed that has nothing to do with the meaning.
    fn effort(&self, part: f64) -> Effort {
        // Of few, where they are among the others is by chance.
        let wanted = self.wanted.max(Depth::Ten.rows()) as f64;
        let among = (wanted + TO_SPARE * (wanted * (1.0 - part).max(0.0)).sqrt()) / part;
        let found = vector_index::found_for(self.wanted);
        let candidates = (self.growth.candidates(among) * part).ceil() as usize;
        let candidates = candidates.max(vector_index::candidates_min(self.wanted));
        Effort { probes: self.growth.probes(among).ceil() as usize, candidates, found }
    }

    /// What part of an index' rows is allowed.
    fn part(&self, index: &ApproximateIndex) -> f64 {
        self.count.max(1) as f64 / index.rows().max(1) as f64
    }

    /// What it costs, roughly, before a mask is looked at.
    pub(super) fn cost(&self, index: &ApproximateIndex) -> u64 {
        let (lists, rows) = (index.lists() as u64, index.rows() as u64);
        let effort = self.effort(self.part(index));
        let by_bytes = self.count / BYTES_PER_ROW + effort.found as u64;
        // A row is in two lists.
        let scanned = 2 * rows * (effort.probes as u64).min(lists) / lists.max(1);
        let by_lists = SEARCH_ROWS + (lists + effort.candidates as u64) / BYTES_PER_ROW + scanned / SCANNED_PER_ROW;
        if self.count < rows { by_lists.min(by_bytes) } else { by_lists }
    }

    /// Positions of rows among which the nearest are, of those of `mask` when there is one, and how they were found.
    pub(super) fn find(&self, index: &ApproximateIndex, query: &[f32], mask: Option<&Mask>) -> io::Result<(Vec<u32>, Method)> {
        let Some(mask) = mask else {
            let (effort, lists) = (self.effort(1.0), index.lists());
            let effort = Effort { probes: effort.probes.min(lists), ..effort };
            let approximate = Approximate { effort, lists, reach: None };
            return Ok((index.search(query, effort, None)?, Method::Approximate(approximate)));
        };
        if let Some((near, approximate)) = self.look_at_lists(index, query, mask) {
            return Ok((near.search(approximate.effort, Some(mask))?, Method::Approximate(approximate)));
        }
        let found = vector_index::found_for(self.wanted);
        Ok((index.compare(query, found, mask)?, Method::Bytes { rows: self.count, found }))
    }

    /// Whether looking into lists is better than comparing the bytes of all rows that are allowed.
    fn is_better(&self, lists: usize, candidates: usize, scanned: usize) -> bool {
        let compared = (lists + candidates) as u64;
        SEARCH_ROWS + compared / BYTES_PER_ROW + scanned as u64 / SCANNED_PER_ROW < self.count / BYTES_PER_ROW
    }

    /// The lists as they lie to a query, and how far to look into them; none when that is not better than comparing all rows that are allowed.
    fn look_at_lists<'a>(
        &self,
        index: &'a ApproximateIndex,
        query: &'a [f32],
        mask: &Mask,
    ) -> Option<(NearLists<'a>, Approximate)> {
        let (lists, part) = (index.lists(), self.part(index));
        let (of_all, of_part) = (self.effort(1.0), self.effort(part));
        if !self.is_better(lists, of_part.candidates.min(of_all.candidates), 0) {
            return None;
        }
        let mut near = index.near(query);
        let seen_of_all = near.reach(of_all.probes, mask, part).rows.max(SEEN_MIN) as f64;
        let first = near.reach(of_part.probes, mask, part);
        let seen_of_part = first.rows as f64 * part * ENOUGH;
        let mut meaning = self.meaning(&first);
        let mut probes = (weighed(meaning, of_part.probes as f64, of_all.probes as f64).ceil() as usize).min(lists);
        loop {
            let reach = near.reach(probes, mask, part);
            meaning = meaning.max(self.meaning(&reach));
            let candidates = weighed(meaning, of_part.candidates as f64, of_all.candidates as f64).ceil() as usize;
            if !self.is_better(lists, candidates, reach.scanned) {
                return None;
            }
            // More than are wanted in any case, so that lists become more each time.
            let enough = weighed(meaning, seen_of_part, seen_of_all).max((SEEN_FOR_EACH * self.wanted) as f64);
            if reach.allowed as f64 >= enough || probes == lists {
                let effort = Effort { probes, candidates, ..of_part };
                let is_enough = reach.allowed >= 2 * self.wanted; // a row that is in two lists counts twice
                return is_enough.then_some((near, Approximate { effort, lists, reach: Some(reach) }));
            }
            let wider = (enough / reach.allowed.max(1) as f64).min(STEP);
            probes = ((probes as f64 * wider).ceil() as usize).max(probes + 1).min(lists);
        }
    }

    /// How much what is allowed has to do with the meaning: 0 nothing, 1 everything.
    fn meaning(&self, reach: &Reach) -> f64 {
        (reach.variation / self.variation).min(1.0)
    }
}

/// What lies between two figures, by their logarithms: the one without meaning, the other with all of it.
fn weighed(meaning: f64, without: f64, with: f64) -> f64 {
    if meaning <= 0.0 { without } else { without.max(1.0) * (with / without.max(1.0)).powf(meaning) }
}
