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
/// Threads for building.
const BUILD_THREADS: usize = 2;

/// How hard an index is searched: the lists that are looked into, and the candidates that are scored again for ten and for a hundred rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Effort {
    /// Lists that are looked into.
    pub(super) probes: u32,
    for_ten: u32,
    for_hundred: u32,
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

/// Efforts that an index is searched with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Efforts {
    /// For [`Recall::Usual`].
    pub(super) usual: Effort,
    /// For [`Recall::High`]; none when the index does not tell the rows apart so well.
    pub(super) high: Option<Effort>,
}

impl Efforts {
    /// The effort for so much recall; none when only going through all rows gives it.
    pub(super) fn for_recall(&self, recall: Recall) -> Option<Effort> {
        match recall {
            Recall::Usual => Some(self.usual),
            Recall::High => self.high,
            Recall::Exact => None,
        }
    }
}

impl Effort {
    /// Efforts for an index of so many vectors, from the least on.
    pub(super) fn ladder(count: usize) -> impl Iterator<Item = Effort> {
        let lists = lists_for(count) as u32;
        let rungs = [
            (8, 100, 400),
            (6, 100, 400),
            (4, 100, 400),
            (4, 200, 600),
            (3, 200, 600),
            (3, 400, 1000),
            (2, 400, 1000),
            (2, 800, 1600),
            (1, 800, 1600),
        ];
        rungs.into_iter().map(move |(part, for_ten, for_hundred)| Effort {
            probes: (lists / part).max(16).min(lists),
            for_ten,
            for_hundred,
        })
    }

    /// Candidates for so many rows. The more rows are wanted, the fewer candidates each of them needs.
    pub(super) fn candidates(self, rows: usize) -> usize {
        (self.for_ten as usize).max(rows * self.for_hundred as usize / 100)
    }
}

/// Lists for so many vectors: about twice the square root, but enough vectors in each to learn from.
fn lists_for(count: usize) -> usize {
    let wanted = 2 * count.isqrt();
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
    fn lists_follow_the_number_of_vectors() {
        assert_eq!(lists_for(63_000), 512);
        assert_eq!(lists_for(157_458), 832);
        assert!(
            (1..20_000)
                .all(|count| lists_for(count) >= 1 && lists_for(count) * ROWS_PER_LIST_MIN <= count.max(ROWS_PER_LIST_MIN))
        );
    }
}
