//! Filters, evaluated into sets of rows.

use super::error::PartitionError;
use super::facts::{self, FactRange, ValueRange};
use crate::filter::{Condition, Filter, Test};
use crate::shard::partition::analyzer::each_word;
use roaring::{MultiOps, RoaringBitmap};
use std::collections::BTreeMap;

/// Something that knows which rows have which facts.
pub(super) trait FactIndex {
    /// The rows that have one of these facts.
    fn rows_with(&self, facts: &[Vec<u8>]) -> Result<RoaringBitmap, PartitionError>;
    /// The rows that have a value of the range.
    fn rows_within(&self, range: &ValueRange) -> Result<RoaringBitmap, PartitionError>;
    /// Calls `take` with each fact of the range and rows that have it, in any order and more than once.
    fn each_within(&self, range: &FactRange, take: &mut dyn FnMut(&[u8], &[u32])) -> Result<(), PartitionError>;
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
    match &condition.test {
        Test::In(values) => index.rows_with(&values.iter().map(|value| facts::equals(field, value)).collect::<Vec<_>>()),
        Test::Range { lower, upper } => match facts::within(field, lower, upper) {
            Some(range) => index.rows_within(&range),
            None => Ok(RoaringBitmap::new()),
        },
        Test::Exists(wanted) => {
            let rows = index.rows_with(&[facts::exists(field)])?;
            Ok(if *wanted { rows } else { all - rows })
        }
        Test::Match(text) => matches(field, text, index),
    }
}

/// Rows that have a text with all of these words in it.
fn matches(field: &str, text: &str, index: &dyn FactIndex) -> Result<RoaringBitmap, PartitionError> {
    let mut words = Vec::new();
    each_word(text, true, |word| words.push(word.to_owned()));
    words.sort_unstable();
    words.dedup();
    let (first, others) = match words.as_slice() {
        // No word at all is in every text.
        [] => return index.rows_within(&facts::any_text(field).into()),
        [word] => return index.rows_within(&facts::contains_word(field, word).into()),
        [first, others @ ..] => (first, others),
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
    Ok(texts.into_values().union())
}

/// For each place in a field's array the rows whose text there has the word in it.
fn texts_with(field: &str, word: &str, index: &dyn FactIndex) -> Result<BTreeMap<u32, RoaringBitmap>, PartitionError> {
    let mut texts: BTreeMap<u32, RoaringBitmap> = BTreeMap::new();
    index.each_within(&facts::contains_word(field, word), &mut |fact, found| {
        texts.entry(facts::element_of(fact)).or_default().extend(found);
    })?;
    Ok(texts)
}
