//! Rows that are in no index yet, in a form that is searched exactly.
//!
//! The tail is a list of immutable blocks, one for each time that the partition caught up with its rows, joined as they grow, so that a
//! search never sees a block change and appending costs little.

use super::analyzer::Analyzer;
use super::error::PartitionError;
use super::facts::{FactRange, ValueRange};
use super::selection::FactIndex;
use super::source::RowSource;
use half::f16;
use roaring::RoaringBitmap;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use tantivy::fieldnorm::FieldNormReader;

/// Blocks of this many rows are not joined any more.
const BLOCK_ROWS_MAX: usize = 4096;

/// A word in a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Occurrence {
    /// Number of the row in its block.
    pub(super) position: u32,
    /// How often it is there.
    pub(super) frequency: u32,
}

/// Some neighbouring rows.
#[derive(Default, Clone)]
pub(super) struct TailBlock {
    /// In order.
    pub(super) rows: Vec<u32>,
    /// For each row the first row of its document.
    first_rows: Vec<u32>,
    /// One row after the other.
    pub(super) vectors: Vec<f16>,
    /// Where terms occur; positions are in order.
    pub(super) terms: HashMap<Box<str>, Vec<Occurrence>>,
    /// Each row's number of terms, rounded as the text index rounds it, so that a row's score does not change when it is indexed.
    pub(super) norms: Vec<u8>,
    /// Number of terms of all rows.
    pub(super) tokens: u64,
    /// The rows that have a fact.
    facts: BTreeMap<Box<[u8]>, Vec<u32>>,
    bytes: usize,
}

impl TailBlock {
    /// Reads the rows from `from` up to `until`.
    pub(super) fn read(source: &RowSource, analyzer: &Analyzer, from: u32, until: u32) -> Result<TailBlock, PartitionError> {
        let mut block = TailBlock::default();
        source.each_row(from, until, |stored| {
            block.push_text(analyzer, stored.row, stored.text);
            block.first_rows.push(stored.first_row);
            for fact in &stored.facts.values {
                match block.facts.get_mut(fact.as_slice()) {
                    Some(rows) => rows.push(stored.row),
                    None => {
                        block.bytes += fact.len() + 64;
                        block.facts.insert(fact.as_slice().into(), vec![stored.row]);
                    }
                }
                block.bytes += 4;
            }
            Ok(())
        })?;
        block.read_vectors(source, from, until)?;
        Ok(block)
    }

    fn push_text(&mut self, analyzer: &Analyzer, row: u32, text: &str) {
        let position = self.rows.len() as u32; // a block has a few thousand rows
        let mut count = 0u32;
        let (terms, bytes) = (&mut self.terms, &mut self.bytes);
        analyzer.each_term(text, |term| {
            count = count.saturating_add(1);
            if !terms.contains_key(term) {
                *bytes += term.len() + 64;
                terms.insert(term.into(), Vec::new());
            }
            let Some(occurrences) = terms.get_mut(term) else { return };
            match occurrences.last_mut() {
                Some(last) if last.position == position => last.frequency += 1,
                _ => {
                    *bytes += size_of::<Occurrence>();
                    occurrences.push(Occurrence { position, frequency: 1 });
                }
            }
        });
        self.rows.push(row);
        self.norms.push(FieldNormReader::fieldnorm_to_id(count));
        self.tokens += u64::from(count);
    }

    /// A row that is gone since its text was read gets zeros: it is about to be removed.
    fn read_vectors(&mut self, source: &RowSource, from: u32, until: u32) -> Result<(), PartitionError> {
        let dimension = source.dimension();
        self.vectors.reserve_exact(self.rows.len() * dimension);
        let mut filled = 0;
        let (rows, vectors) = (&self.rows, &mut self.vectors);
        source.each_vector(from, until, |row, vector| {
            while filled < rows.len() && rows[filled] < row {
                filled += 1;
                vectors.resize(filled * dimension, f16::ZERO);
            }
            if filled < rows.len() && rows[filled] == row {
                vectors.extend_from_slice(vector);
                filled += 1;
            }
        })?;
        self.vectors.resize(self.rows.len() * dimension, f16::ZERO);
        Ok(())
    }

    /// First rows of the documents here.
    pub(super) fn first_rows(&self) -> &[u32] {
        &self.first_rows
    }

    /// Bytes that the block holds, roughly.
    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes + self.vectors.len() * 2 + self.rows.len() * 9
    }

    /// Positions of the rows from `from` on that are in `allowed`; none when it is the whole block.
    pub(super) fn positions_from(&self, from: u32, allowed: &RoaringBitmap) -> Option<RoaringBitmap> {
        let (first, last) = (self.rows.first()?, self.rows.last()?);
        let is_whole = (last - first) as usize + 1 == self.rows.len();
        if *first >= from && is_whole && allowed.range_cardinality(*first..=*last) == self.rows.len() as u64 {
            return None;
        }
        let numbered = (0u32..).zip(&self.rows);
        let is_wanted = |row: u32| row >= from && allowed.contains(row);
        Some(numbered.filter(|(_, row)| is_wanted(**row)).map(|(position, _)| position).collect())
    }

    /// The rows of both, `self`'s before `later`'s.
    fn join(&self, later: &TailBlock) -> TailBlock {
        let mut joined = self.clone();
        let offset = self.rows.len() as u32;
        joined.rows.extend(&later.rows);
        joined.first_rows.extend(&later.first_rows);
        joined.vectors.extend(&later.vectors);
        joined.norms.extend(&later.norms);
        joined.tokens += later.tokens;
        joined.bytes += later.bytes;
        for (term, occurrences) in &later.terms {
            let moved = occurrences.iter().map(|one| Occurrence { position: one.position + offset, ..*one });
            joined.terms.entry(term.clone()).or_default().extend(moved);
        }
        for (fact, rows) in &later.facts {
            joined.facts.entry(fact.clone()).or_default().extend(rows);
        }
        joined
    }

    /// The rows from `from` on.
    fn without_rows_before(&self, from: u32, dimension: usize) -> TailBlock {
        let cut = self.rows.partition_point(|row| *row < from);
        let mut rest = TailBlock {
            rows: self.rows[cut..].to_vec(),
            first_rows: self.first_rows[cut..].to_vec(),
            vectors: self.vectors[cut * dimension..].to_vec(),
            norms: self.norms[cut..].to_vec(),
            ..TailBlock::default()
        };
        rest.bytes = self.bytes * rest.rows.len() / self.rows.len().max(1);
        for (term, occurrences) in &self.terms {
            let kept: Vec<Occurrence> = occurrences.iter().filter(|one| one.position >= cut as u32).copied().collect();
            if !kept.is_empty() {
                rest.tokens += kept.iter().map(|one| u64::from(one.frequency)).sum::<u64>();
                let moved = kept.into_iter().map(|one| Occurrence { position: one.position - cut as u32, ..one });
                rest.terms.insert(term.clone(), moved.collect());
            }
        }
        for (fact, rows) in &self.facts {
            let kept: Vec<u32> = rows.iter().filter(|row| **row >= from).copied().collect();
            if !kept.is_empty() {
                rest.facts.insert(fact.clone(), kept);
            }
        }
        rest
    }
}

impl FactIndex for TailBlock {
    fn rows_with(&self, facts: &[Vec<u8>]) -> Result<RoaringBitmap, PartitionError> {
        let mut found = RoaringBitmap::new();
        for rows in facts.iter().filter_map(|fact| self.facts.get(fact.as_slice())) {
            found.extend(rows);
        }
        Ok(found)
    }

    fn rows_within(&self, range: &ValueRange) -> Result<RoaringBitmap, PartitionError> {
        let mut found = RoaringBitmap::new();
        self.each_within(&range.values, &mut |_, rows| found.extend(rows))?;
        Ok(found)
    }

    fn each_within(&self, (from, until): &FactRange, take: &mut dyn FnMut(&[u8], &[u32])) -> Result<(), PartitionError> {
        if from < until {
            let bounds = (Bound::Included(from.as_slice()), Bound::Excluded(until.as_slice()));
            for (fact, rows) in self.facts.range::<[u8], _>(bounds) {
                take(fact, rows);
            }
        }
        Ok(())
    }
}

/// Adds a block at the end, and joins the last ones while they are of like size: a row is copied a logarithmic number of times.
pub(super) fn push(blocks: &mut Vec<Arc<TailBlock>>, block: TailBlock) {
    if block.rows.is_empty() {
        return;
    }
    blocks.push(Arc::new(block));
    while let [.., before, last] = blocks.as_slice() {
        let rows = before.rows.len() + last.rows.len();
        if before.rows.len() > 2 * last.rows.len() || rows > BLOCK_ROWS_MAX {
            break;
        }
        let joined = Arc::new(before.join(last));
        blocks.truncate(blocks.len() - 2);
        blocks.push(joined);
    }
}

/// Leaves the rows from `from` on.
pub(super) fn cut(blocks: &[Arc<TailBlock>], from: u32, dimension: usize) -> Vec<Arc<TailBlock>> {
    let mut kept = Vec::new();
    for block in blocks {
        match (block.rows.first(), block.rows.last()) {
            (Some(first), _) if *first >= from => kept.push(block.clone()),
            (_, Some(last)) if *last >= from => kept.push(Arc::new(block.without_rows_before(from, dimension))),
            _ => {}
        }
    }
    kept
}
