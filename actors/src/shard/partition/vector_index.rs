//! The approximate index over a segment's vectors: how it is made, and how hard it is searched.
//!
//! It finds candidates only; what is returned is scored again from the exact rows.

use super::error::PartitionError;
use half::f16;
use ragged_kernels::approximate::{self, ApproximateIndex, IndexError};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Vectors for each list at least: with fewer, a centroid says nothing of others.
const ROWS_PER_LIST_MIN: usize = 40;
/// Each number of lists that is tried is greater than the one before it by one part in so many.
const PROBES_STEP: u32 = 8;
/// Codes whose rows are scored again for ten rows, as they are tried when ten are wanted.
const FOR_TEN: [u32; 15] = [60, 80, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400, 3200, 4800, 6400];
/// The part of them that is tried for every ten rows when a hundred are wanted: the more are wanted, the fewer candidates each of them needs.
const FOR_TEN_OF_HUNDRED: (u32, u32) = (2, 5);
/// Codes that are scanned in the time in which the row of one is scored again.
const CODES_FOR_CANDIDATE: usize = 16;
/// Lists that are looked into at least.
const PROBES_MIN: u32 = 8;
/// Rows whose vectors are compared for each row that is wanted, and in any case: bytes place a row among its neighbours nearly as exactly as vectors do.
const FOUND_FOR_EACH: usize = 2;
const FOUND_MIN: usize = 10;
/// The least power of the rows with which lists and candidates grow beyond what was tried, and that of lists when no trial says it.
const POWER_MIN: f64 = 0.25;
const POWER_UNKNOWN: f64 = 0.5;
/// By how much the power is taken for more there than between the trials: nothing has been tried there, and a filter that a hundredth passes found 0.946 for 0.95.
const POWER_TO_SPARE: f64 = 0.1;
/// Threads for building.
pub(super) const BUILD_THREADS: usize = 2;

/// How hard an index is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Effort {
    /// Lists that are looked into.
    pub(super) probes: u32,
    /// Codes whose rows are scored again for every ten rows that are wanted.
    for_ten: u32,
}

/// How many of the nearest rows a search must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Recall {
    /// 95 of a hundred.
    #[default]
    Usual,
    /// 99 of a hundred.
    High,
    /// All.
    Exact,
}

/// How few and how many rows a search may want, that efforts are found for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Ten or fewer.
    Ten,
    /// More: efforts are found for a hundred.
    Hundred,
}

impl Depth {
    /// Rows that efforts are found for.
    pub(super) fn rows(self) -> usize {
        match self {
            Depth::Ten => 10,
            Depth::Hundred => 100,
        }
    }

    fn of(rows: usize) -> Depth {
        if rows <= Depth::Ten.rows() { Depth::Ten } else { Depth::Hundred }
    }
}

/// Efforts that an index is searched with, by how many rows are wanted. None where it does not tell the rows apart so well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Efforts {
    /// For [`Recall::Usual`], by [`Depth`].
    pub(super) usual: [Option<Effort>; 2],
    /// For [`Recall::High`].
    pub(super) high: [Option<Effort>; 2],
}

/// The same as they are kept with an index, which is not used when there are none for [`Recall::Usual`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptEfforts {
    usual: [Effort; 2],
    high: [Option<Effort>; 2],
}

impl Efforts {
    /// How the effort for so much recall grows with the rows that are looked for, when so many are wanted; none when only going through all rows gives it.
    pub(super) fn for_recall(&self, recall: Recall, wanted: usize) -> Option<Growth> {
        let tried = match recall {
            Recall::Usual => self.usual,
            Recall::High => self.high,
            Recall::Exact => return None,
        };
        match tried {
            [Some(ten), Some(hundred)] => Some(Growth::between(ten, hundred)),
            [ten, hundred] => match Depth::of(wanted) {
                Depth::Ten => Some(Growth::from_one(ten?, Depth::Ten)),
                Depth::Hundred => Some(Growth::from_one(hundred?, Depth::Hundred)),
            },
        }
    }

    /// As they are kept.
    pub(super) fn kept(&self) -> Option<KeptEfforts> {
        let [ten, hundred] = self.usual;
        Some(KeptEfforts { usual: [ten?, hundred?], high: self.high })
    }
}

/// How the effort grows with the number of rows that are looked for: lists and candidates as powers of it, which two trials tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Growth {
    /// Rows that efforts have been found for, at least and at most. Fewer need no less.
    rows: (f64, f64),
    /// For the least.
    probes: f64,
    candidates: f64,
    probes_power: Power,
    candidates_power: Power,
}

/// With what power of the rows something grows.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Power {
    /// Between those that efforts have been found for,
    between: f64,
    /// and beyond.
    beyond: f64,
}

impl Growth {
    fn between(ten: Effort, hundred: Effort) -> Growth {
        let (from_ten, from_hundred) = (Growth::from_one(ten, Depth::Ten), Growth::from_one(hundred, Depth::Hundred));
        let rows = (from_ten.rows.0, from_hundred.rows.0);
        let power = |less: f64, more: f64, beyond_min: f64| {
            let between = ((more / less).ln() / (rows.1 / rows.0).ln()).max(0.0);
            Power { between, beyond: between.max(beyond_min) + POWER_TO_SPARE }
        };
        // Where the least that is tried was enough, the power is not known.
        let probes_min = if ten.probes <= PROBES_MIN { POWER_UNKNOWN } else { POWER_MIN };
        Growth {
            rows,
            probes_power: power(from_ten.probes, from_hundred.probes, probes_min),
            candidates_power: power(from_ten.candidates, from_hundred.candidates, POWER_MIN),
            ..from_ten
        }
    }

    /// With one trial only, effort is in proportion.
    fn from_one(effort: Effort, depth: Depth) -> Growth {
        let rows = depth.rows();
        Growth {
            rows: (rows as f64, rows as f64),
            probes: f64::from(effort.probes),
            candidates: effort.candidates(rows) as f64,
            probes_power: Power { between: 1.0, beyond: 1.0 },
            candidates_power: Power { between: 1.0, beyond: 1.0 },
        }
    }

    /// Lists in which so many nearest rows are found.
    pub(super) fn probes(&self, rows: f64) -> f64 {
        self.probes * self.grown(self.probes_power, rows)
    }

    /// Codes among which they are.
    pub(super) fn candidates(&self, rows: f64) -> f64 {
        self.candidates * self.grown(self.candidates_power, rows)
    }

    /// How many times as much it is for so many rows.
    fn grown(&self, power: Power, rows: f64) -> f64 {
        let (least, most) = self.rows;
        (rows.clamp(least, most) / least).powf(power.between) * (rows / most).max(1.0).powf(power.beyond)
    }
}

impl From<KeptEfforts> for Efforts {
    fn from(kept: KeptEfforts) -> Self {
        Efforts { usual: kept.usual.map(Some), high: kept.high }
    }
}

impl Effort {
    /// The efforts that an index of so many vectors in so many lists may be searched with, those first that cost least. Lists and candidates grow by
    /// themselves: rows that are much like each other lie in few lists, and only bytes tell them apart.
    pub(super) fn all(count: usize, lists: u32, depth: Depth) -> Vec<Effort> {
        let for_ten = FOR_TEN.map(|for_ten| match depth {
            Depth::Ten => for_ten,
            Depth::Hundred => for_ten * FOR_TEN_OF_HUNDRED.0 / FOR_TEN_OF_HUNDRED.1,
        });
        let with = |probes: u32| for_ten.map(|for_ten| Effort { probes, for_ten });
        let mut efforts: Vec<Effort> = probes_tried(lists).into_iter().flat_map(with).collect();
        efforts.sort_by_key(|effort| effort.cost(count, lists, depth));
        efforts
    }

    /// What a search costs, in codes that are scanned.
    fn cost(&self, count: usize, lists: u32, depth: Depth) -> usize {
        let scanned = 2 * count * self.probes as usize / lists as usize;
        scanned + CODES_FOR_CANDIDATE * self.candidates(depth.rows())
    }

    /// Candidates for so many rows.
    pub(super) fn candidates(self, rows: usize) -> usize {
        (rows.max(Depth::Ten.rows()) * self.for_ten as usize / 10).max(candidates_min(rows))
    }

    /// The effort of finding so many rows.
    pub(super) fn for_rows(self, rows: usize) -> approximate::Effort {
        approximate::Effort { probes: self.probes as usize, candidates: self.candidates(rows), found: found_for(rows) }
    }
}

/// Numbers of lists that are tried of so many, from the least to all.
pub(super) fn probes_tried(lists: u32) -> Vec<u32> {
    let mut tried = vec![PROBES_MIN.min(lists)];
    let mut probes = PROBES_MIN;
    while probes < lists {
        probes = (probes + probes / PROBES_STEP).min(lists);
        tried.push(probes);
    }
    tried
}

/// Rows whose vectors are compared when so many rows are wanted.
pub(super) fn found_for(rows: usize) -> usize {
    rows * FOUND_FOR_EACH + FOUND_MIN
}

/// Candidates at least when so many rows are wanted: one whose row is in two lists may be there twice.
pub(super) fn candidates_min(rows: usize) -> usize {
    2 * found_for(rows)
}

/// Lists for so many vectors: about three times the square root, but enough vectors in each to learn from.
fn lists_for(count: usize) -> usize {
    let wanted = 3 * count.isqrt();
    let rounded = if wanted > 128 { wanted.div_ceil(64) * 64 } else { wanted };
    rounded.clamp(1, (count / ROWS_PER_LIST_MIN).max(1))
}

/// Builds the index of vectors, one after the other, into a file, and makes it durable.
pub(super) fn build(path: &Path, vectors: &[f16], dimension: usize) -> Result<(), PartitionError> {
    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        approximate::build(vectors, dimension, lists_for(vectors.len() / dimension), BUILD_THREADS, &mut file)?;
        file.flush()?;
        file.get_ref().sync_all()
    };
    write().map_err(PartitionError::file(path))
}

/// Opens an index of so many vectors, whose file's checksum has been compared.
pub(super) fn open(path: &Path, count: usize, dimension: usize) -> Result<ApproximateIndex, PartitionError> {
    let index = ApproximateIndex::open(path).map_err(|fault| match fault {
        IndexError::File { path, fault } => PartitionError::File { path, fault },
        IndexError::Damaged { path, why } => PartitionError::damaged(&path, why),
    })?;
    if index.rows() != count || index.dimension() != dimension {
        return Err(PartitionError::damaged(path, "it is the index of other vectors"));
    }
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn efforts_are_tried_from_the_cheapest_to_one_that_looks_into_all_lists() {
        for (count, depth) in [(40, Depth::Ten), (8192, Depth::Ten), (63_000, Depth::Hundred), (1_000_000, Depth::Ten)] {
            let lists = lists_for(count) as u32;
            let efforts = Effort::all(count, lists, depth);
            assert!(efforts.is_sorted_by_key(|effort| effort.cost(count, lists, depth)));
            let (first, last) = (efforts[0], efforts[efforts.len() - 1]);
            assert_eq!((first.probes, last.probes), (PROBES_MIN.min(lists), lists));
            assert!(efforts.iter().all(|effort| effort.probes <= lists && effort.for_ten <= last.for_ten));
            let probes = probes_tried(lists);
            assert!(probes.is_sorted_by(|one, next| one < next && *next <= one + one / 8), "{probes:?}");
        }
    }

    #[test]
    fn effort_is_what_was_tried_where_it_was_tried_and_grows_between_and_beyond() {
        let (ten, hundred) = (Effort { probes: 20, for_ten: 100 }, Effort { probes: 60, for_ten: 50 });
        let efforts = Efforts { usual: [Some(ten), Some(hundred)], high: [Some(ten), None] };
        let growth = efforts.for_recall(Recall::Usual, 10).unwrap();
        let spare = 10f64.powf(POWER_TO_SPARE);
        let beyond = (1000.0, 180.0 * spare, 2500.0 * spare);
        for (rows, probes, candidates) in [(1.0, 20.0, 100.0), (10.0, 20.0, 100.0), (100.0, 60.0, 500.0), beyond] {
            assert!((growth.probes(rows) - probes).abs() < 1e-9 && (growth.candidates(rows) - candidates).abs() < 1e-9);
        }
        assert!(growth.probes(30.0) > 20.0 && growth.probes(30.0) < 60.0);
        // With one trial there is but proportion; and what none has found is not searched for.
        let growth = efforts.for_recall(Recall::High, 10).unwrap();
        assert_eq!((growth.probes(50.0), growth.candidates(50.0)), (100.0, 500.0));
        assert_eq!((efforts.for_recall(Recall::High, 50), efforts.for_recall(Recall::Exact, 10)), (None, None));
        // An index that needs no more lists for a hundred needs some more beyond, and more yet where the least that is tried was enough.
        let growth = Growth::between(ten, Effort { probes: 20, for_ten: 320 });
        assert!((growth.probes(100.0), growth.candidates(100.0).round()) == (20.0, 3200.0) && growth.probes(10_000.0) > 60.0);
        let least = Effort { probes: PROBES_MIN, for_ten: 100 };
        assert!(Growth::between(least, least).probes(10_000.0) > 79.0);
    }

    #[test]
    fn lists_follow_the_number_of_vectors() {
        assert_eq!(lists_for(63_000), 768);
        assert_eq!(lists_for(157_458), 1216);
        assert!(
            (1..20_000)
                .all(|count| lists_for(count) >= 1 && lists_for(count) * ROWS_PER_LIST_MIN <= count.max(ROWS_PER_LIST_MIN))
        );
    }
}
