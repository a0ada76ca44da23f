//! How many of the nearest chunks a search by meaning finds.

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// How many of the nearest chunks by meaning a search must find: more take longer. Measured on questions unlike the chunks, of the first ten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recall {
    /// 95 of a hundred.
    #[default]
    Usual,
    /// 99 of a hundred.
    High,
    /// All of them: every chunk is compared.
    Exact,
}

impl Recall {
    /// As it is written: `0.95`, `0.99` or `exact`.
    pub fn name(self) -> &'static str {
        match self {
            Recall::Usual => "0.95",
            Recall::High => "0.99",
            Recall::Exact => "exact",
        }
    }
}

/// What is none of the recalls.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no recall: it is 0.95, 0.99 or \"exact\"")]
pub struct UnknownRecall(String);

impl FromStr for Recall {
    type Err = UnknownRecall;

    fn from_str(text: &str) -> Result<Self, UnknownRecall> {
        let all = [Recall::Usual, Recall::High, Recall::Exact];
        all.into_iter().find(|recall| recall.name() == text).ok_or_else(|| UnknownRecall(text.to_owned()))
    }
}

impl Serialize for Recall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Recall::Usual => serializer.serialize_f64(0.95),
            Recall::High => serializer.serialize_f64(0.99),
            Recall::Exact => serializer.serialize_str("exact"),
        }
    }
}

impl<'de> Deserialize<'de> for Recall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Recall;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("0.95, 0.99 or \"exact\"")
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Recall, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Recall, E> {
                if word == Recall::Exact.name() { Ok(Recall::Exact) } else { Err(E::custom(UnknownRecall(format!("{word:?}")))) }
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl PartialSchema for Recall {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new().schema_type(Type::Number).enum_values(Some([0.95, 0.99]));
        let word = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["exact"]));
        OneOfBuilder::new().item(number).item(word).into()
    }
}

impl ToSchema for Recall {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recall_is_a_number_or_a_word_and_nothing_else() {
        for (text, recall) in
            [("0.95", Recall::Usual), ("0.99", Recall::High), ("\"exact\"", Recall::Exact), ("0.990", Recall::High)]
        {
            assert_eq!(serde_json::from_str::<Recall>(text).unwrap(), recall);
        }
        for recall in [Recall::Usual, Recall::High, Recall::Exact] {
            assert_eq!(serde_json::from_str::<Recall>(&serde_json::to_string(&recall).unwrap()).unwrap(), recall);
            assert_eq!(recall.name().parse::<Recall>().unwrap(), recall);
        }
        for text in ["0.9", "1", "1.0", "-1", "\"0.95\"", "\"all\"", "null", "{}", "true"] {
            let fault = serde_json::from_str::<Recall>(text).unwrap_err().to_string();
            assert!(fault.contains("0.95, 0.99 or \"exact\""), "{text}: {fault}");
        }
    }
}
