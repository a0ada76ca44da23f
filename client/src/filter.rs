//! Filters on documents' metadata.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A document passes when all of `must`, at least one of `should` (when there are any) and none of `must_not` hold.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// All of these must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub must: Vec<Condition>,
    /// One of these at least must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub should: Vec<Condition>,
    /// None of these may hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub must_not: Vec<Condition>,
}

/// A condition on one metadata field. Exactly one kind of test is given; `gt`, `gte`, `lt` and `lte` may be combined into a range.
/// A field that holds an array passes when any of its elements does.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Path of the field, nested by dots: `author.name`.
    #[schema(min_length = 1, max_length = 512)]
    pub field: String,
    /// Equal to this string, number, boolean or null. Numbers are equal by value: `1` and `1.0` are the same.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schema(value_type = Option<Value>)]
    pub eq: Option<Value>,
    /// Equal to one of these; at most 1,024.
    #[serde(default, rename = "in", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Value>>, max_items = 1024)]
    pub any_of: Option<Vec<Value>>,
    /// Greater than this number or string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub gt: Option<Value>,
    /// Greater than or equal to this number or string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub gte: Option<Value>,
    /// Less than this number or string. Strings compare by their bytes, so ISO 8601 dates compare as dates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub lt: Option<Value>,
    /// Less than or equal to this number or string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    pub lte: Option<Value>,
    /// Whether the field is there at all (null counts as there).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
    /// The field is text that contains all of these words, without regard to case.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<String>,
}

/// Keeps an explicit `null` apart from an absent field.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}
