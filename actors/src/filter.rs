//! Filters on documents' metadata, as the shard evaluates them.

use serde::{Deserialize, Serialize};

/// A document passes when all of `must`, at least one of `should` (when there are any) and none of `must_not` hold.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Filter {
    /// All of these must hold.
    pub must: Vec<Condition>,
    /// One of these at least must hold, when there are any.
    pub should: Vec<Condition>,
    /// None of these may hold.
    pub must_not: Vec<Condition>,
}

impl Filter {
    /// Whether every document passes.
    pub fn is_empty(&self) -> bool {
        self.must.is_empty() && self.should.is_empty() && self.must_not.is_empty()
    }
}

/// A test of one field. A field that holds an array passes when any of its elements does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    /// Path of the field, nested by dots.
    pub field: String,
    /// What is asked of it.
    pub test: Test,
}

/// What is asked of a field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Test {
    /// Equal to one of these; `eq` is a list of one.
    In(Vec<Scalar>),
    /// Within bounds of one type: both numbers or both texts.
    Range {
        /// Lower bound.
        lower: std::ops::Bound<Scalar>,
        /// Upper bound.
        upper: std::ops::Bound<Scalar>,
    },
    /// Whether it is there (null counts as there).
    Exists(bool),
    /// It is text that contains all of these words, without regard to case.
    Match(String),
}

/// A value that a field can be compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Scalar {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Any JSON number; compared by value, so that 1 and 1.0 are equal.
    Number(#[serde(with = "number_as_text")] serde_json::Number),
    /// A string; ordered by its bytes.
    Text(String),
}

/// Numbers travel between nodes as JSON text: the codec has no type for what may be whole or not.
mod number_as_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &serde_json::Number, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<serde_json::Number, D::Error> {
        serde_json::from_str(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
