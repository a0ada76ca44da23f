//! Filters on documents' metadata, as the shard evaluates them.

/// A document passes when all of `must`, at least one of `should` (when there are any) and none of `must_not` hold.
#[derive(Debug, Clone, PartialEq, Default)]
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
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// Path of the field, nested by dots.
    pub field: String,
    /// What is asked of it.
    pub test: Test,
}

/// What is asked of a field.
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Any JSON number; compared by value, so that 1 and 1.0 are equal.
    Number(serde_json::Number),
    /// A string; ordered by its bytes.
    Text(String),
}
