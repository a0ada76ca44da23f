//! A document as it is uploaded, and what is checked before anything is done with it.

use crate::error::{ErrorKind, ServiceError};

use ragged_raft::meta::collection::Collection;
use ragged_raft::shard::rows::TextFormat;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Bytes of a document's id at most.
pub const ID_BYTES_MAX: usize = 256;
/// Bytes of a title at most.
pub const TITLE_BYTES_MAX: usize = 1024;
/// Bytes of a text at most.
pub const TEXT_BYTES_MAX: usize = 16 << 20;
/// Bytes of the metadata as JSON at most.
pub const METADATA_BYTES_MAX: usize = 64 << 10;
/// How deep metadata may be nested.
pub const METADATA_DEPTH_MAX: usize = 16;
/// Numbers of a vector at most.
pub const DIMENSION_MAX: usize = 4096;
/// Documents of one upload at most.
pub const DOCUMENTS_MAX: usize = 10_000;

/// A document as a client sends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UploadDocument {
    /// The client's id; made when absent.
    pub id: Option<String>,
    /// Title.
    pub title: Option<String>,
    /// The text as it was written.
    pub text: String,
    /// How it was written.
    pub format: TextFormat,
    /// Metadata.
    #[serde(with = "metadata_as_text")]
    pub metadata: Map<String, Value>,
    /// The document's vector, when the client makes the vectors.
    pub vector: Option<Vec<f32>>,
}

/// Metadata goes through formats that do not describe themselves, hence as text.
mod metadata_as_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::{Map, Value};

    pub fn serialize<S: Serializer>(metadata: &Map<String, Value>, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::to_string(metadata).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
        serde_json::from_str(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl UploadDocument {
    /// Checks everything that can be told from the document and its collection alone. `at` says where in the request it stands.
    pub fn check(&self, collection: &Collection, at: &str) -> Result<(), ServiceError> {
        if let Some(id) = &self.id {
            check_id(id, &format!("{at}.id"))?;
        }
        let title = self.title.as_deref().unwrap_or_default();
        limit(title.len(), TITLE_BYTES_MAX, "title_too_long", at, "title")?;
        limit(self.text.len(), TEXT_BYTES_MAX, "text_too_long", at, "text")?;
        if self.text.trim().is_empty() && title.trim().is_empty() && self.vector.is_none() {
            return Err(ServiceError::invalid(
                "empty_document",
                format!("{at}: text and title are both empty, there is nothing to find it by"),
            ));
        }
        self.check_metadata(at)?;
        match &self.vector {
            Some(vector) => check_vector(vector, collection, &format!("{at}.vector")),
            None if collection.vector().model.is_none() => Err(ServiceError::invalid(
                "vector_required",
                format!(
                    "{at}.vector: collection {} takes the client's vectors, of length {}",
                    collection.name,
                    collection.vector().dimension
                ),
            )),
            None => Ok(()),
        }
    }

    fn check_metadata(&self, at: &str) -> Result<(), ServiceError> {
        let bytes = serde_json::to_vec(&self.metadata)
            .map_err(|fault| ServiceError::invalid("invalid_metadata", format!("{at}.metadata: {fault}")))?;
        limit(bytes.len(), METADATA_BYTES_MAX, "metadata_too_long", at, "metadata")?;
        if self.metadata.values().map(depth).max().unwrap_or(0) + 1 > METADATA_DEPTH_MAX {
            return Err(ServiceError::invalid(
                "metadata_too_deep",
                format!("{at}.metadata: nested deeper than {METADATA_DEPTH_MAX}"),
            ));
        }
        Ok(())
    }
}

/// Checks a document's id.
pub fn check_id(id: &str, at: &str) -> Result<(), ServiceError> {
    if id.is_empty() || id.len() > ID_BYTES_MAX || id.chars().any(char::is_control) {
        return Err(ServiceError::invalid(
            "invalid_document_id",
            format!("{at}: an id has 1 to {ID_BYTES_MAX} bytes and no control characters"),
        ));
    }
    Ok(())
}

/// Checks a vector of a document or of a search.
pub fn check_vector(vector: &[f32], collection: &Collection, at: &str) -> Result<(), ServiceError> {
    let dimension = collection.vector().dimension as usize;
    if vector.len() != dimension {
        return Err(ServiceError::invalid(
            "wrong_vector_length",
            format!("{at}: has {} numbers, collection {} takes {dimension}", vector.len(), collection.name),
        ));
    }
    if let Some(position) = vector.iter().position(|number| !number.is_finite()) {
        return Err(ServiceError::invalid("invalid_vector", format!("{at}[{position}]: is not a finite number")));
    }
    if vector.iter().all(|number| *number == 0.0) {
        return Err(ServiceError::invalid("invalid_vector", format!("{at}: all numbers are zero, so it has no direction")));
    }
    Ok(())
}

/// Checks the number of dimensions of a new collection.
pub fn check_dimension(dimension: u32) -> Result<(), ServiceError> {
    if dimension == 0 || dimension as usize > DIMENSION_MAX {
        return Err(ServiceError::invalid("invalid_dimension", format!("embedding.dimension: is 1 to {DIMENSION_MAX}")));
    }
    Ok(())
}

fn limit(length: usize, max: usize, code: &'static str, at: &str, field: &str) -> Result<(), ServiceError> {
    if length > max {
        return Err(ServiceError::new(
            ErrorKind::TooLarge,
            code,
            format!("{at}.{field}: has {length} bytes, the limit is {max}"),
        ));
    }
    Ok(())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        Value::Object(values) => 1 + values.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
