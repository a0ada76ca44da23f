//! Filters, against an evaluator that looks at the JSON.

use super::shard::{TestShard, document};
use crate::filter::{Condition, Filter, Scalar, Test};
use crate::shard::partition::{Candidate, PartitionQuery};
use proptest::prelude::*;
use ragged_raft::ids::RowId;
use serde_json::{Number, Value, json};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound;

/// All values at a path: keys are joined by dots, arrays are entered.
fn values_at<'a>(object: &'a Value, path: &str, prefix: &str, found: &mut Vec<&'a Value>) {
    for (key, value) in object.as_object().into_iter().flatten() {
        let here = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        if here == path {
            found.push(value);
        }
        enter(value, path, &here, found);
    }
}

fn enter<'a>(value: &'a Value, path: &str, here: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| enter(value, path, here, found)),
        Value::Object(_) => values_at(value, path, here, found),
        _ => {}
    }
}

fn leaves<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| leaves(value, found)),
        other => found.push(other),
    }
}

/// Exactly, by decimal digits of integers where both are integers.
fn compare_numbers(one: &Number, other: &Number) -> Ordering {
    let integer = |number: &Number| number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
    let whole =
        |number: &Number| number.as_f64().filter(|value| value.fract() == 0.0 && value.abs() < 1e30).map(|value| value as i128);
    match (integer(one).or(whole(one)), integer(other).or(whole(other))) {
        (Some(one), Some(other)) => one.cmp(&other),
        _ => one.as_f64().partial_cmp(&other.as_f64()).unwrap(),
    }
}

fn compare(value: &Value, scalar: &Scalar) -> Option<Ordering> {
    match (value, scalar) {
        (Value::Null, Scalar::Null) => Some(Ordering::Equal),
        (Value::Bool(one), Scalar::Bool(other)) => Some(one.cmp(other)),
        (Value::Number(one), Scalar::Number(other)) => Some(compare_numbers(one, other)),
        (Value::String(one), Scalar::Text(other)) => Some(one.as_bytes().cmp(other.as_bytes())),
        _ => None,
    }
}

/// Only numbers and texts have an order.
fn order(value: &Value, scalar: &Scalar) -> Option<Ordering> {
    if matches!(scalar, Scalar::Number(_) | Scalar::Text(_)) { compare(value, scalar) } else { None }
}

fn holds(condition: &Condition, metadata: &Value) -> bool {
    let mut at_path = Vec::new();
    values_at(metadata, &condition.field, "", &mut at_path);
    let mut values = Vec::new();
    at_path.iter().for_each(|value| leaves(value, &mut values));
    match &condition.test {
        Test::Exists(wanted) => at_path.is_empty() != *wanted,
        Test::In(scalars) => {
            values.iter().any(|value| scalars.iter().any(|scalar| compare(value, scalar) == Some(Ordering::Equal)))
        }
        Test::Range { lower, upper } => values.iter().any(|value| {
            let above = match lower {
                Bound::Unbounded => None,
                Bound::Included(scalar) => Some(order(value, scalar).is_some_and(Ordering::is_ge)),
                Bound::Excluded(scalar) => Some(order(value, scalar).is_some_and(Ordering::is_gt)),
            };
            let below = match upper {
                Bound::Unbounded => None,
                Bound::Included(scalar) => Some(order(value, scalar).is_some_and(Ordering::is_le)),
                Bound::Excluded(scalar) => Some(order(value, scalar).is_some_and(Ordering::is_lt)),
            };
            above.or(below).is_some() && above != Some(false) && below != Some(false)
        }),
        Test::Match(words) => values.iter().filter_map(|value| value.as_str()).any(|text| {
            let text = text.to_lowercase();
            let has: Vec<&str> = text.split(|character: char| !character.is_alphanumeric()).collect();
            words
                .to_lowercase()
                .split(|character: char| !character.is_alphanumeric())
                .filter(|word| !word.is_empty())
                .all(|word| has.contains(&word))
        }),
    }
}

fn passes(filter: &Filter, metadata: &Value) -> bool {
    filter.must.iter().all(|condition| holds(condition, metadata))
        && (filter.should.is_empty() || filter.should.iter().any(|condition| holds(condition, metadata)))
        && !filter.must_not.iter().any(|condition| holds(condition, metadata))
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[abAB]{0,3}",
        Just("red car".to_owned()),
        Just("Blue car, red bike".to_owned()),
        Just("2024-01-31T10:00:00Z".to_owned()),
        Just("x".repeat(600)),
        Just(format!("{}y", "x".repeat(600))),
        Just("a\u{0}b".to_owned()),
    ]
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![
        (-3i64..4).prop_map(Number::from),
        (-6i32..7).prop_map(|half| Number::from_f64(f64::from(half) / 2.0).unwrap()),
        prop_oneof![Just(i64::MAX), Just(i64::MIN), Just(i64::MAX - 1), Just((1 << 53) + 1), Just(1 << 53)]
            .prop_map(Number::from),
        Just(Number::from(u64::MAX)),
        Just(Number::from_f64(9.2e18).unwrap()),
        Just(Number::from_f64(-0.0).unwrap()),
    ]
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        number().prop_map(Value::Number),
        text().prop_map(Value::String)
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("b"), Just("a.b"), Just("c d"), Just("a\u{0}t"), Just("ä")].prop_map(str::to_owned)
}

fn metadata() -> impl Strategy<Value = Value> {
    let value = leaf().prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            proptest::collection::hash_map(key(), inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    proptest::collection::hash_map(key(), value, 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
}

fn scalar() -> impl Strategy<Value = Scalar> {
    prop_oneof![
        Just(Scalar::Null),
        any::<bool>().prop_map(Scalar::Bool),
        number().prop_map(Scalar::Number),
        text().prop_map(Scalar::Text),
    ]
}

/// Texts that share their first 512 bytes are ordered by chance, as documented: they are not used as bounds.
fn bound() -> impl Strategy<Value = Bound<Scalar>> {
    let short = scalar().prop_filter("long texts", |scalar| !matches!(scalar, Scalar::Text(text) if text.len() > 512)).boxed();
    prop_oneof![1 => Just(Bound::Unbounded), 2 => short.clone().prop_map(Bound::Included), 2 => short.prop_map(Bound::Excluded)]
}

fn condition() -> impl Strategy<Value = Condition> {
    let path = prop_oneof![key(), (key(), key()).prop_map(|(one, other)| format!("{one}.{other}"))];
    let words = prop_oneof![Just("RED"), Just("red bike"), Just("car red"), Just("blue bike"), Just("a"), Just(""), Just("!")];
    let test = prop_oneof![
        3 => proptest::collection::vec(scalar(), 1..3).prop_map(Test::In),
        3 => (bound(), bound()).prop_map(|(lower, upper)| Test::Range { lower, upper }),
        1 => any::<bool>().prop_map(Test::Exists),
        2 => words.prop_map(|words| Test::Match(words.to_owned())),
    ];
    (path, test).prop_map(|(field, test)| Condition { field, test })
}

fn filter() -> impl Strategy<Value = Filter> {
    let some = || proptest::collection::vec(condition(), 0..3);
    (some(), some(), some()).prop_map(|(must, should, must_not)| Filter { must, should, must_not })
}

fn ids(documents: Vec<(String, RowId)>) -> Vec<String> {
    documents.into_iter().map(|(id, _)| id).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_filter_selects_what_the_json_says(
        documents in proptest::collection::vec(metadata(), 1..40), filters in proptest::collection::vec(filter(), 40), single in proptest::collection::vec(condition(), 60),
        indexed in 0.0..1.0f64,
    ) {
        let shard = TestShard::new(2, "none");
        let partition = shard.open();
        let half = (documents.len() as f64 * indexed) as usize;
        for (number, metadata) in documents.iter().enumerate() {
            if number == half {
                partition.index_with(false).unwrap();
            }
            let prepared = document(&format!("d{number:03}"), None, &metadata.to_string(), &[("word", vec![1.0, 0.0]), ("word", vec![0.0, 1.0])]);
            shard.upsert_all(vec![prepared]);
        }
        let filters = filters.into_iter().chain(single.into_iter().map(|condition| Filter { must: vec![condition], ..Default::default() }));
        for filter in filters {
            let expected: Vec<String> =
                documents.iter().enumerate().filter(|(_, metadata)| passes(&filter, metadata)).map(|(number, _)| format!("d{number:03}")).collect();
            prop_assert_eq!(&ids(partition.matching_documents(&filter, None, 1000).unwrap()), &expected, "{:?}", filter);
            let query = PartitionQuery { vector: Some(vec![1.0, 0.0]), text: Some("word".to_owned()), filter: Some(filter), depth: 1000, ..Default::default() };
            let answer = partition.search(&query).unwrap();
            prop_assert_eq!(answer.dense.len(), expected.len() * 2);
            prop_assert_eq!(answer.text.len(), expected.len() * 2);
        }
    }
}

/// A number near this one that is the same after it has been written and read again: reading may round the last digit.
fn as_it_is_read(mut number: Number) -> Number {
    for _ in 0..8 {
        let read: Number = serde_json::from_str(&number.to_string()).unwrap();
        if read == number {
            return number;
        }
        number = read;
    }
    Number::from(0)
}

/// Numbers of every size, and many that differ in their last bits only.
fn any_number() -> impl Strategy<Value = Number> {
    let float = |value: f64| as_it_is_read(Number::from_f64(value).unwrap_or_else(|| Number::from(0)));
    prop_oneof![
        2 => any::<i64>().prop_map(Number::from),
        2 => any::<f64>().prop_map(float),
        2 => (0.0..1.0f64).prop_map(float),
        2 => (-2000i64..2000).prop_map(Number::from),
        2 => (0u64..300).prop_map(|more| Number::from((1 << 53) - 150 + more)),
        2 => (0u64..5000).prop_map(|more| Number::from(u64::MAX - more)),
        1 => (0i64..5000).prop_map(|more| Number::from(i64::MIN + more)),
        1 => (0u64..40).prop_map(move |bits| float(f64::from_bits(bits))),
        1 => (0u64..40).prop_map(move |bits| float(-f64::from_bits(f64::MAX.to_bits() - bits))),
        1 => (0u64..40).prop_map(move |bits| float(f64::from_bits(1.5f64.to_bits() + (bits << 12)))),
    ]
}

fn number_range() -> impl Strategy<Value = Test> {
    let bound = || {
        let number = any_number().prop_map(Scalar::Number).boxed();
        prop_oneof![1 => Just(Bound::Unbounded), 3 => number.clone().prop_map(Bound::Included), 3 => number.prop_map(Bound::Excluded)]
    };
    let equal = any_number().prop_map(|number| {
        let number = Scalar::Number(number);
        Test::Range { lower: Bound::Included(number.clone()), upper: Bound::Included(number) }
    });
    prop_oneof![8 => (bound(), bound()).prop_map(|(lower, upper)| Test::Range { lower, upper }), 1 => equal]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn a_range_of_many_numbers_selects_those_within(
        numbers in proptest::collection::vec(proptest::collection::vec(any_number(), 0..4), 600),
        ranges in proptest::collection::vec(number_range(), 60), picked in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 40),
        indexed in 0.0..1.2f64,
    ) {
        let shard = TestShard::new(2, "none");
        let partition = shard.open();
        let indexed = (numbers.len() as f64 * indexed) as usize;
        let metadata: Vec<Value> = numbers.iter().map(|numbers| json!({ "deep": [{ "number": numbers }] })).collect();
        let prepared = |some: &[Value], first: usize| {
            some.iter().enumerate().map(|(place, metadata)| document(&format!("d{:03}", first + place), None, &metadata.to_string(), &[("word", vec![1.0, 0.0])])).collect::<Vec<_>>()
        };
        // In two parts of the index, and the rest in the tail.
        for (part, some) in metadata.chunks(200).enumerate() {
            shard.upsert_all(prepared(some, part * 200));
            if (part + 1) * 200 <= indexed {
                partition.index_with(false).unwrap();
            }
        }
        // Bounds that documents have, too.
        let all: Vec<&Number> = numbers.iter().flatten().collect();
        let between = picked.iter().filter(|_| !all.is_empty()).map(|(lower, upper)| {
            let bound = |place: &prop::sample::Index| Scalar::Number((*place.get(&all)).clone());
            Test::Range { lower: Bound::Excluded(bound(lower)), upper: Bound::Included(bound(upper)) }
        });
        for test in ranges.into_iter().chain(between) {
            let filter = Filter { must: vec![Condition { field: "deep.number".to_owned(), test }], ..Default::default() };
            let expected: Vec<String> =
                metadata.iter().enumerate().filter(|(_, metadata)| passes(&filter, metadata)).map(|(number, _)| format!("d{number:03}")).collect();
            for _ in 0..2 {
                prop_assert_eq!(&ids(partition.matching_documents(&filter, None, 1000).unwrap()), &expected, "{:?}", filter);
            }
        }
    }
}

#[test]
fn what_a_filter_selected_is_kept_and_never_shows_what_is_gone() {
    let shard = TestShard::new(2, "none");
    let partition = shard.open();
    let upsert = |id: usize, number: usize| {
        shard.upsert(&format!("d{id:02}"), None, &json!({ "n": number }).to_string(), &[("word", vec![1.0, 0.0])])
    };
    (0..50).for_each(|id| upsert(id, id));
    partition.index_with(false).unwrap();
    let test = Test::Range { lower: Bound::Included(Scalar::Number(2.into())), upper: Bound::Excluded(Scalar::Number(9.into())) };
    let filter = Filter { must: vec![Condition { field: "n".to_owned(), test }], ..Default::default() };
    let found = || {
        let (vector, text, filter) = (Some(vec![1.0, 0.0]), Some("word".to_owned()), Some(filter.clone()));
        let answer = partition.search(&PartitionQuery { vector, text, filter, depth: 100, ..Default::default() }).unwrap();
        let sorted = |hits: &[Candidate]| hits.iter().map(|hit| hit.document_id.clone()).collect::<BTreeSet<_>>();
        assert_eq!(sorted(&answer.dense), sorted(&answer.text));
        sorted(&answer.dense).into_iter().collect::<Vec<_>>()
    };
    let evaluated = || partition.metrics.filters_evaluated.get();
    assert_eq!(found(), ["d02", "d03", "d04", "d05", "d06", "d07", "d08"]);
    found();
    assert_eq!(evaluated(), 1, "the second search uses what the first has made");
    shard.delete("d03");
    upsert(4, 40);
    upsert(30, 5);
    assert_eq!(found(), ["d02", "d05", "d06", "d07", "d08", "d30"]);
    assert_eq!(evaluated(), 1, "rows that go are taken out of what is kept");
    partition.index_with(true).unwrap();
    assert_eq!(found(), ["d02", "d05", "d06", "d07", "d08", "d30"]);
    assert_eq!(evaluated(), 2, "another index is asked anew");
    assert_eq!(partition.metrics.filters.get(), 4);
}

#[test]
fn matching_documents_come_in_order_and_in_pages() {
    let shard = TestShard::new(2, "none");
    let partition = shard.open();
    for number in (0..50).rev() {
        shard.upsert(&format!("d{number:02}"), None, &json!({ "even": number % 2 == 0 }).to_string(), &[("x", vec![0.0, 0.0])]);
    }
    let even = Filter {
        must: vec![Condition { field: "even".to_owned(), test: Test::In(vec![Scalar::Bool(true)]) }],
        ..Default::default()
    };
    let mut all = Vec::new();
    loop {
        let page = partition.matching_documents(&even, all.last().map(String::as_str), 7).unwrap();
        if page.is_empty() {
            break;
        }
        all.extend(ids(page));
    }
    let expected: Vec<String> = (0..50).step_by(2).map(|number| format!("d{number:02}")).collect();
    assert_eq!(all, expected);
    let first_rows = partition.view.load().starts.as_ref().clone();
    assert_eq!(ids(partition.matching_in_order(&first_rows, Some("d10"), 3).unwrap()), ["d11", "d12", "d13"]);
}
