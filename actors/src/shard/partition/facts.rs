//! What a document's metadata says, as byte strings that can be looked up and compared.
//!
//! A fact is `path 0 tag value`. The same facts are indexed, kept in the tail and asked for by filters, so that a filter means the same
//! wherever a row is. Their order within a path and tag is the order of the values, hence a range is a range of facts.
//!
//! - The path is the keys from the outermost to the innermost, joined by dots; a key that has dots in it is the same path. Objects in
//!   arrays are entered. Paths of more than [`PATH_BYTES_MAX`] bytes are not indexed: no filter can ask for them.
//! - Numbers are equal and ordered by value, whatever they are written as: the nearest f64, then what an integer beyond 2^53 differs by.
//!   A number has further facts, of its first bits only ([`PRECISIONS`]): however many numbers a range has, it is some hundred of facts, the
//!   coarse ones inside and the precise ones at its ends (Schindler and Diepenbroek, "Generic XML-based framework for metadata portals", 2008).
//! - Texts of more than [`TEXT_BYTES_MAX`] bytes are cut, with a hash of the whole behind: equality holds for all of a text, order is
//!   decided by so many bytes.
//! - Words carry the number of the text that they are in, so that all words of a match must be in one element of an array.

use crate::filter::Scalar;
use crate::shard::partition::analyzer::each_word;
use serde_json::{Map, Number, Value};
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

/// Longest path that can be filtered by; also the limit of the API.
const PATH_BYTES_MAX: usize = 512;
/// Bytes of a text that its order is decided by.
const TEXT_BYTES_MAX: usize = 512;

/// Longer paths stand as their hash.
const PATH_BYTES_KEPT: usize = 40;
/// Begins an escaped byte of a path.
const ESCAPE: u8 = 1;
/// Begins a path that is a hash, of 16 bytes.
const HASHED: u8 = 2;

const EXISTS: u8 = b'e';
const NULL: u8 = b'n';
const BOOL: u8 = b'b';
const NUMBER: u8 = b'd';
const COARSE_NUMBER: u8 = b'c';
const TEXT: u8 = b't';
const WORD: u8 = b'w';

/// Bits of an ordered number.
const NUMBER_BITS: u32 = 80;
/// Bits that the coarse facts of a number have, the most precise first. Twelve are its sign and its power of two; numbers that share them part
/// into 64 by the next precision, those into 64 again, then twice into 256. A range takes twice as many facts of each precision at most, and
/// of the numbers themselves those that agree with one of its ends in 40 bits, about eight digits.
const PRECISIONS: [u32; 5] = [40, 32, 24, 18, 12];

/// What can be asked of a document's metadata.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Its values; in order.
    pub(super) values: Vec<Vec<u8>>,
    /// Coarse facts of its numbers; in order. What is gone through in order anyway need not keep them.
    pub(super) coarse: Vec<Vec<u8>>,
}

/// Everything that can be asked of this metadata, a JSON object as text.
pub(super) fn facts(metadata: &str) -> Facts {
    let mut gatherer = Gatherer::default();
    match serde_json::from_str::<Map<String, Value>>(metadata) {
        Ok(object) => gatherer.object("", &object),
        Err(_) if metadata.trim().is_empty() => {}
        Err(fault) => tracing::warn!(%fault, "a document's metadata is not a JSON object: no filter will find it"),
    }
    Facts { values: gatherer.facts.into_iter().collect(), coarse: gatherer.coarse.into_iter().collect() }
}

#[derive(Default)]
struct Gatherer {
    facts: BTreeSet<Vec<u8>>,
    coarse: BTreeSet<Vec<u8>>,
    /// Texts seen at each path.
    texts: HashMap<String, u32>,
}

impl Gatherer {
    fn object(&mut self, path: &str, object: &Map<String, Value>) {
        for (key, value) in object {
            let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if inner.len() <= PATH_BYTES_MAX {
                self.facts.insert(fact(&inner, EXISTS, &[]));
                self.value(&inner, value);
            }
        }
    }

    fn value(&mut self, path: &str, value: &Value) {
        match value {
            Value::Null => self.add(path, NULL, &[]),
            Value::Bool(value) => self.add(path, BOOL, &[u8::from(*value)]),
            Value::Number(number) => self.number(path, ordered_number(number)),
            Value::String(text) => self.text(path, text),
            Value::Array(values) => {
                for value in values {
                    self.value(path, value);
                }
            }
            Value::Object(object) => self.object(path, object),
        }
    }

    fn number(&mut self, path: &str, number: u128) {
        self.facts.insert(number_fact(path, NUMBER_BITS, number));
        for bits in PRECISIONS {
            self.coarse.insert(number_fact(path, bits, number));
        }
    }

    fn text(&mut self, path: &str, text: &str) {
        self.add(path, TEXT, &bounded_text(text));
        let number = self.texts.entry(path.to_owned()).or_default();
        let element = *number;
        *number += 1;
        each_word(text, false, |word| {
            let mut value = word.as_bytes().to_vec();
            value.push(0);
            value.extend(element.to_be_bytes());
            self.facts.insert(fact(path, WORD, &value));
        });
    }

    fn add(&mut self, path: &str, tag: u8, value: &[u8]) {
        self.facts.insert(fact(path, tag, value));
    }
}

/// `path 0 tag value`. Low bytes in the path are escaped, so that no path's facts lie among another's. A long path stands as its hash:
/// it is repeated in every fact, and nobody asks for a part of it.
fn fact(path: &str, tag: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len().min(PATH_BYTES_KEPT) + 2 + value.len());
    if path.len() > PATH_BYTES_KEPT {
        bytes.push(HASHED);
        bytes.extend(xxhash_rust::xxh3::xxh3_128(path.as_bytes()).to_be_bytes());
    } else {
        for byte in path.bytes() {
            match byte {
                0..=HASHED => bytes.extend([ESCAPE, byte + 1]),
                other => bytes.push(other),
            }
        }
    }
    bytes.push(0);
    bytes.push(tag);
    bytes.extend(value);
    bytes
}

/// A whole number of [`NUMBER_BITS`] bits; their order is the numbers'. The first 64 are the nearest f64 with its bits turned so that they order
/// as integers, the other 16 what an integer that no f64 equals differs from it by (at most 1,024 either way).
fn ordered_number(number: &Number) -> u128 {
    let (nearest, rest) = match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(value), _, _) => (value as f64, i128::from(value) - (value as f64) as i128),
        (_, Some(value), _) => (value as f64, i128::from(value) - (value as f64) as i128),
        (_, _, value) => (value.unwrap_or(0.0), 0),
    };
    let bits = (nearest + 0.0).to_bits(); // adding makes -0 into 0
    let ordered = if bits >> 63 == 0 { bits | 1 << 63 } else { !bits };
    u128::from(ordered) << 16 | u128::from((rest + 0x8000) as u16)
}

/// The fact of the first `bits` bits of an ordered number.
fn number_fact(path: &str, bits: u32, number: u128) -> Vec<u8> {
    let bytes = (number << (128 - NUMBER_BITS)).to_be_bytes();
    if bits == NUMBER_BITS {
        return fact(path, NUMBER, &bytes[..NUMBER_BITS as usize / 8]);
    }
    let kept = (number >> (NUMBER_BITS - bits)) << (128 - bits);
    let mut value = vec![bits as u8];
    value.extend(&kept.to_be_bytes()[..bits.div_ceil(8) as usize]);
    fact(path, COARSE_NUMBER, &value)
}

/// The facts of so many bits of the ordered numbers from `from` up to, but without, `until`.
fn number_facts(path: &str, bits: u32, from: u128, until: u128) -> FactRange {
    let end = match bits {
        _ if until < 1 << NUMBER_BITS => number_fact(path, bits, until),
        NUMBER_BITS => fact(path, NUMBER + 1, &[]),
        _ => fact(path, COARSE_NUMBER, &[bits as u8 + 1]),
    };
    (number_fact(path, bits, from), end)
}

/// The same numbers by as few facts as there can be.
fn cover(path: &str, mut from: u128, mut until: u128) -> Vec<FactRange> {
    let mut ranges = Vec::new();
    let mut bits = NUMBER_BITS;
    for coarser in PRECISIONS {
        let step = 1 << (NUMBER_BITS - coarser);
        let (whole_from, whole_until) = (from.next_multiple_of(step), until / step * step);
        if whole_from >= whole_until {
            break;
        }
        for (from, until) in [(from, whole_from), (whole_until, until)] {
            if from < until {
                ranges.push(number_facts(path, bits, from, until));
            }
        }
        (from, until, bits) = (whole_from, whole_until, coarser);
    }
    if from < until {
        ranges.push(number_facts(path, bits, from, until));
    }
    ranges
}

fn bounded_text(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    if bytes.len() <= TEXT_BYTES_MAX {
        return bytes.to_vec();
    }
    let mut bounded = bytes[..TEXT_BYTES_MAX].to_vec();
    bounded.push(0xFF); // in no UTF-8 text: comes after every text that goes on from the same bytes
    bounded.extend(xxhash_rust::xxh3::xxh3_128(bytes).to_be_bytes());
    bounded
}

/// The fact that a field equals a value.
pub(super) fn equals(path: &str, value: &Scalar) -> Vec<u8> {
    match value {
        Scalar::Null => fact(path, NULL, &[]),
        Scalar::Bool(value) => fact(path, BOOL, &[u8::from(*value)]),
        Scalar::Number(number) => number_fact(path, NUMBER_BITS, ordered_number(number)),
        Scalar::Text(text) => fact(path, TEXT, &bounded_text(text)),
    }
}

/// The fact that a field is there.
pub(super) fn exists(path: &str) -> Vec<u8> {
    fact(path, EXISTS, &[])
}

/// Facts from the first and up to, but without, the second.
pub(super) type FactRange = (Vec<u8>, Vec<u8>);

/// The facts of values within bounds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ValueRange {
    /// Facts of the values themselves.
    pub(super) values: FactRange,
    /// The same values by as few facts as there can be, coarse ones among them.
    pub(super) cover: Vec<FactRange>,
}

impl From<FactRange> for ValueRange {
    fn from(values: FactRange) -> Self {
        ValueRange { cover: vec![values.clone()], values }
    }
}

/// The facts of values within bounds; none when the bounds are of different types, or of types that have no order.
pub(super) fn within(path: &str, lower: &Bound<Scalar>, upper: &Bound<Scalar>) -> Option<ValueRange> {
    match (scalar_of(lower), scalar_of(upper)) {
        (Some(Scalar::Number(_)), None | Some(Scalar::Number(_))) | (None, Some(Scalar::Number(_))) => {
            Some(numbers_within(path, lower, upper))
        }
        (Some(Scalar::Text(_)), None | Some(Scalar::Text(_))) | (None, Some(Scalar::Text(_))) => {
            Some(texts_within(path, lower, upper).into())
        }
        _ => None,
    }
}

fn texts_within(path: &str, lower: &Bound<Scalar>, upper: &Bound<Scalar>) -> FactRange {
    let (first, end) = any_text(path);
    let from = match lower {
        Bound::Unbounded => first,
        Bound::Included(value) => equals(path, value),
        Bound::Excluded(value) => after(equals(path, value)),
    };
    let until = match upper {
        Bound::Unbounded => end,
        Bound::Included(value) => after(equals(path, value)),
        Bound::Excluded(value) => equals(path, value),
    };
    (from, until)
}

fn numbers_within(path: &str, lower: &Bound<Scalar>, upper: &Bound<Scalar>) -> ValueRange {
    let from = match lower {
        Bound::Included(Scalar::Number(number)) => ordered_number(number),
        Bound::Excluded(Scalar::Number(number)) => ordered_number(number) + 1,
        _ => 0,
    };
    let until = match upper {
        Bound::Included(Scalar::Number(number)) => ordered_number(number) + 1,
        Bound::Excluded(Scalar::Number(number)) => ordered_number(number),
        _ => 1 << NUMBER_BITS,
    };
    ValueRange { values: number_facts(path, NUMBER_BITS, from, until), cover: cover(path, from, until) }
}

/// The facts of all texts of a field.
pub(super) fn any_text(path: &str) -> FactRange {
    (fact(path, TEXT, &[]), fact(path, TEXT + 1, &[]))
}

/// The facts that a field's texts contain a word; what they end with says in which text, see [`element_of`].
pub(super) fn contains_word(path: &str, word: &str) -> FactRange {
    let start = fact(path, WORD, word.as_bytes());
    let (mut from, mut until) = (start.clone(), start);
    from.push(0);
    until.push(1);
    (from, until)
}

/// Which of a field's texts a word's fact is about.
pub(super) fn element_of(fact: &[u8]) -> u32 {
    fact.last_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// The first byte string after this one.
fn after(mut fact: Vec<u8>) -> Vec<u8> {
    fact.push(0);
    fact
}

fn scalar_of(bound: &Bound<Scalar>) -> Option<&Scalar> {
    match bound {
        Bound::Included(value) | Bound::Excluded(value) => Some(value),
        Bound::Unbounded => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may fail
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(text: &str) -> u128 {
        ordered_number(&serde_json::from_str(text).unwrap())
    }

    /// Numbers of all sizes, and pairs that differ in few bits.
    fn ordered() -> impl Strategy<Value = u128> {
        (0u32..=NUMBER_BITS, any::<u128>()).prop_map(|(bits, value)| {
            let low = if bits == 0 { 0 } else { value >> (128 - bits) };
            number("1234.5") & !((1 << bits) - 1) | low
        })
    }

    fn has(ranges: &[FactRange], facts: &Facts) -> usize {
        let is_in = |fact: &Vec<u8>, (from, until): &FactRange| from <= fact && fact < until;
        let all = facts.values.iter().chain(&facts.coarse);
        all.map(|fact| ranges.iter().filter(|range| is_in(fact, range)).count()).sum()
    }

    proptest! {
        #[test]
        fn a_cover_has_the_numbers_of_its_range_once_and_is_short(
            from in ordered(), until in prop_oneof![3 => ordered(), 1 => Just(1 << NUMBER_BITS)], probes in prop::collection::vec(ordered(), 1..30),
        ) {
            let ranges = cover("a", from, until);
            prop_assert!(ranges.len() <= 2 * PRECISIONS.len() + 1);
            for probe in probes.into_iter().chain([from, from.saturating_sub(1), until.saturating_sub(1), until.min((1 << NUMBER_BITS) - 1)]) {
                let mut gatherer = Gatherer::default();
                gatherer.number("a", probe);
                let facts = Facts { values: gatherer.facts.into_iter().collect(), coarse: gatherer.coarse.into_iter().collect() };
                let expected = usize::from(from <= probe && probe < until);
                prop_assert_eq!(has(&ranges, &facts), expected);
                prop_assert_eq!(has(&[number_facts("a", NUMBER_BITS, from, until)], &facts), expected);
                prop_assert_eq!(has(&cover("a.b", from, until), &facts), 0);
            }
        }
    }

    #[test]
    fn numbers_order_by_value() {
        let ascending = [
            "-1e300",
            "-9223372036854775808",
            "-9223372036854775807",
            "-9007199254740993",
            "-9007199254740992",
            "-1.5",
            "-1",
            "-0.5",
            "0",
            "5e-324",
            "0.5",
            "1",
            "1.5",
            "9007199254740992",
            "9007199254740993",
            "9007199254740994",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551614",
            "18446744073709551615",
            "1e300",
        ];
        for pair in ascending.windows(2) {
            assert!(number(pair[0]) < number(pair[1]), "{pair:?}");
        }
        for (one, other) in [("1", "1.0"), ("0", "-0.0"), ("9007199254740992", "9007199254740992.0"), ("1e3", "1000")] {
            assert_eq!(number(one), number(other));
        }
    }

    #[test]
    fn no_path_lies_among_another() {
        let one = facts(r#"{"a":{"b":1}}"#);
        let other = facts(r#"{"a.b":1}"#);
        assert!(other.values.iter().all(|fact| one.values.contains(fact)));
        assert!(other.coarse.iter().all(|fact| one.coarse.contains(fact)));
        let zero = facts("{\"a\\u0000dx\":1}");
        assert!(!zero.values.iter().chain(&zero.coarse).any(|fact| fact.starts_with(b"a\0")));
    }

    #[test]
    fn long_texts_are_equal_as_a_whole() {
        let (one, other) = ("x".repeat(600), "x".repeat(601));
        assert_ne!(bounded_text(&one), bounded_text(&other));
        assert!(bounded_text(&one) > bounded_text(&"x".repeat(512)));
        assert!(bounded_text(&one) < bounded_text(&format!("{}y", "x".repeat(511))));
    }
}
