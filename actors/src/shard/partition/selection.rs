//! Filters, evaluated into sets of rows.

use super::error::PartitionError;
use super::facts::{self, FactRange};
use crate::filter::{Condition, Filter, Test};
use crate::shard::partition::analyzer::each_word;
use roaring::RoaringBitmap;
use std::collections::BTreeMap;

/// Something that knows which rows have which facts. Rows may be given in any order and more than once.
pub(super) trait FactIndex {
    /// Calls `take` with the rows that have this fact.
    fn rows_with(&self, fact: &[u8], take: &mut dyn FnMut(&[u32])) -> Result<(), PartitionError>;
    /// Calls `take` with each fact of the range and rows that have it.
    fn rows_within(&self, range: &FactRange, take: &mut dyn FnMut(&[u8], &[u32])) -> Result<(), PartitionError>;
}

/// The rows of `all` that pass.
pub(super) fn select(filter: &Filter, index: &dyn FactIndex, all: &RoaringBitmap) -> Result<RoaringBitmap, PartitionError> {
    let mut selected = all.clone();
    for condition in &filter.must {
        if selected.is_empty() {
            return Ok(selected);
        }
        selected &= holds(condition, index, all)?;
    }
    if !filter.should.is_empty() && !selected.is_empty() {
        let mut any = RoaringBitmap::new();
        for condition in &filter.should {
            any |= holds(condition, index, all)?;
        }
        selected &= any;
    }
    for condition in &filter.must_not {
        if selected.is_empty() {
            break;
        }
        selected -= holds(condition, index, all)?;
    }
    Ok(selected)
}

fn holds(condition: &Condition, index: &dyn FactIndex, all: &RoaringBitmap) -> Result<RoaringBitmap, PartitionError> {
    let field = condition.field.as_str();
    let mut rows = RoaringBitmap::new();
    match &condition.test {
        Test::In(values) => {
            for value in values {
                index.rows_with(&facts::equals(field, value), &mut |found| rows.extend(found))?;
            }
        }
        Test::Range { lower, upper } => {
            if let Some(range) = facts::within(field, lower, upper) {
                index.rows_within(&range, &mut |_, found| rows.extend(found))?;
            }
        }
        Test::Exists(wanted) => {
            index.rows_with(&facts::exists(field), &mut |found| rows.extend(found))?;
            if !wanted {
                return Ok(all - rows);
            }
        }
        Test::Match(text) => return matches(field, text, index),
    }
    Ok(rows)
}

/// Rows that have a text with all of these words in it.
fn matches(field: &str, text: &str, index: &dyn FactIndex) -> Result<RoaringBitmap, PartitionError> {
    let mut words = Vec::new();
    each_word(text, true, |word| words.push(word.to_owned()));
    words.sort_unstable();
    words.dedup();
    let mut rows = RoaringBitmap::new();
    let Some((first, others)) = words.split_first() else {
        // No word at all is in every text.
        index.rows_within(&facts::any_text(field), &mut |_, found| rows.extend(found))?;
        return Ok(rows);
    };
    let mut texts = texts_with(field, first, index)?;
    for word in others {
        let with_word = texts_with(field, word, index)?;
        texts.retain(|element, rows| {
            match with_word.get(element) {
                Some(found) => *rows &= found,
                None => rows.clear(),
            }
            !rows.is_empty()
        });
    }
    for found in texts.into_values() {
        rows |= found;
    }
    Ok(rows)
}

/// For each place in a field's array the rows whose text there has the word in it.
fn texts_with(field: &str, word: &str, index: &dyn FactIndex) -> Result<BTreeMap<u32, RoaringBitmap>, PartitionError> {
    let mut texts: BTreeMap<u32, RoaringBitmap> = BTreeMap::new();
    index.rows_within(&facts::contains_word(field, word), &mut |fact, found| {
        texts.entry(facts::element_of(fact)).or_default().extend(found);
    })?;
    Ok(texts)
}
