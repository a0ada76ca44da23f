//! Filters: from the wire to the engine, naming the condition that is wrong.

use crate::api::problem::Problem;
use ragged_actors::filter::{Condition, Filter, Scalar, Test};
use serde_json::Value;
use std::ops::Bound;

/// A filter as the engine evaluates it.
pub fn from_wire(filter: ragged_client::Filter) -> Result<Filter, Problem> {
    Ok(Filter {
        must: conditions("filter.must", filter.must)?,
        should: conditions("filter.should", filter.should)?,
        must_not: conditions("filter.must_not", filter.must_not)?,
    })
}

fn conditions(place: &str, wire: Vec<ragged_client::Condition>) -> Result<Vec<Condition>, Problem> {
    wire.into_iter()
        .enumerate()
        .map(|(index, one)| condition(one).map_err(|problem| problem.at(&format!("{place}[{index}]"))))
        .collect()
}

fn condition(wire: ragged_client::Condition) -> Result<Condition, Problem> {
    let range = range(&wire)?;
    let mut tests: Vec<Test> = Vec::new();
    if let Some(value) = wire.eq {
        tests.push(Test::In(vec![scalar("eq", value)?]));
    }
    if let Some(values) = wire.any_of {
        tests.push(Test::In(values.into_iter().map(|value| scalar("in", value)).collect::<Result<_, _>>()?));
    }
    tests.extend(range);
    tests.extend(wire.exists.map(Test::Exists));
    tests.extend(wire.matches.map(Test::Match));
    let count = tests.len();
    match tests.pop() {
        Some(test) if count == 1 => Ok(Condition { field: wire.field, test }),
        _ => {
            let detail =
                format!("{count} tests are given, but must be one: eq, in, exists, match, or a range of gt, gte, lt and lte");
            Err(invalid(detail))
        }
    }
}

fn range(wire: &ragged_client::Condition) -> Result<Option<Test>, Problem> {
    let lower = bound("gt", &wire.gt, "gte", &wire.gte)?;
    let upper = bound("lt", &wire.lt, "lte", &wire.lte)?;
    let is_given = lower != Bound::Unbounded || upper != Bound::Unbounded;
    Ok(is_given.then_some(Test::Range { lower, upper }))
}

fn bound(
    exclusive_name: &str,
    exclusive: &Option<Value>,
    inclusive_name: &str,
    inclusive: &Option<Value>,
) -> Result<Bound<Scalar>, Problem> {
    match (exclusive, inclusive) {
        (None, None) => Ok(Bound::Unbounded),
        (Some(value), None) => Ok(Bound::Excluded(scalar(exclusive_name, value.clone())?)),
        (None, Some(value)) => Ok(Bound::Included(scalar(inclusive_name, value.clone())?)),
        (Some(_), Some(_)) => Err(invalid(format!("{exclusive_name} and {inclusive_name} are both given"))),
    }
}

fn scalar(place: &str, value: Value) -> Result<Scalar, Problem> {
    match value {
        Value::Null => Ok(Scalar::Null),
        Value::Bool(value) => Ok(Scalar::Bool(value)),
        Value::Number(number) => Ok(Scalar::Number(number)),
        Value::String(text) => Ok(Scalar::Text(text)),
        Value::Array(_) => Err(invalid(format!("{place} compares with a string, number, boolean or null, not with an array"))),
        Value::Object(_) => Err(invalid(format!("{place} compares with a string, number, boolean or null, not with an object"))),
    }
}

fn invalid(detail: String) -> Problem {
    Problem::invalid("invalid_filter", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Filter, Problem> {
        from_wire(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn each_kind_of_test_is_taken() {
        let filter = parse(
            r#"{"must": [{"field": "a", "eq": null}, {"field": "b", "in": [1, "x"]}, {"field": "c", "gt": 1, "lte": 2}],
                "should": [{"field": "d", "exists": false}], "must_not": [{"field": "e", "match": "word"}]}"#,
        )
        .unwrap();
        assert_eq!(filter.must[0].test, Test::In(vec![Scalar::Null]));
        let range =
            Test::Range { lower: Bound::Excluded(Scalar::Number(1.into())), upper: Bound::Included(Scalar::Number(2.into())) };
        assert_eq!(filter.must[2].test, range);
        assert_eq!(filter.should[0].test, Test::Exists(false));
        assert_eq!(filter.must_not[0].test, Test::Match("word".to_string()));
    }

    #[test]
    fn wrong_conditions_are_named() {
        for (text, place) in [
            (r#"{"must": [{"field": "a", "eq": 1}, {"field": "a"}]}"#, "filter.must[1]: 0 tests"),
            (r#"{"should": [{"field": "a", "eq": 1, "exists": true}]}"#, "filter.should[0]: 2 tests"),
            (r#"{"must_not": [{"field": "a", "gt": 1, "gte": 2}]}"#, "filter.must_not[0]: gt and gte are both"),
            (r#"{"must": [{"field": "a", "in": [[1]]}]}"#, "filter.must[0]: in compares"),
        ] {
            let problem = parse(text).unwrap_err();
            assert_eq!(problem.code, "invalid_filter");
            assert!(problem.detail.starts_with(place), "{}", problem.detail);
        }
    }
}
