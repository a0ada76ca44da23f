//! Metadata of a document, as it is stored and shown: JSON text that is read when somebody looks at it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Metadata of a document: a JSON object, kept as the text that it is stored as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata(Cow<'static, str>);

impl Metadata {
    /// Of a text that is JSON; what is not is found out when it is written.
    pub fn of_text(text: String) -> Metadata {
        Metadata(Cow::Owned(text))
    }

    /// The JSON text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The fields.
    pub fn fields(&self) -> Result<Map<String, Value>, serde_json::Error> {
        serde_json::from_str(self.text())
    }
}

impl Default for Metadata {
    /// None: `{}`.
    fn default() -> Self {
        Metadata(Cow::Borrowed("{}"))
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Metadata(Cow::Owned(String::from(Box::<str>::from(Box::<RawValue>::deserialize(deserializer)?)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_kept_and_must_be_json() -> Result<(), serde_json::Error> {
        let text = r#"{"a":[1,{"b":"\"x\""}],"n":1e3}"#;
        let metadata = Metadata::of_text(text.to_owned());
        assert_eq!(serde_json::to_string(&metadata)?, text);
        assert_eq!(metadata.fields()?["n"], 1e3);
        let again: Metadata = serde_json::from_str(&format!(" {text} "))?;
        assert_eq!(again, metadata);
        let value: Value = serde_json::to_value(&metadata)?;
        assert_eq!(serde_json::from_value::<Metadata>(value)?.fields()?["n"], 1e3);
        assert_eq!(serde_json::to_string(&Metadata::default())?, "{}");
        for broken in ["{\"a\":}", "{} {}", ""] {
            assert!(serde_json::to_string(&Metadata::of_text(broken.to_owned())).is_err(), "{broken}");
        }
        Ok(())
    }
}
