//! A file, a variable and a flag, as figment takes them.

use crate::config::error::ConfigError;
use crate::config::key::{KEYS, Key};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};
use std::path::PathBuf;

/// The file's values, whose keys are known to exist.
pub struct FileValues {
    path: PathBuf,
    text: String,
}

impl FileValues {
    /// Reads a file, and refuses keys that there are none of.
    pub fn read(path: PathBuf) -> Result<FileValues, ConfigError> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        let table: toml::Table = match toml::from_str(&text) {
            Ok(table) => table,
            Err(error) => return Err(ConfigError::Syntax { detail: syntax_detail(&text, &error), path }),
        };
        match unknown_key(&table, "") {
            Some(key) => Err(ConfigError::UnknownKey { path, key }),
            None => Ok(FileValues { path, text }),
        }
    }
}

fn syntax_detail(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = &text.as_bytes()[..start];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    format!("line {line}, column {column}: {}", error.message())
}

fn unknown_key(table: &toml::Table, prefix: &str) -> Option<String> {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let is_section = KEYS.iter().any(|key| key.path.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.')));
        match value {
            toml::Value::Table(inner) if is_section => {
                if let Some(key) = unknown_key(inner, &path) {
                    return Some(key);
                }
            }
            _ if Key::find(&path).is_some() || is_section => {}
            _ => return Some(path),
        }
    }
    None
}

impl Provider for FileValues {
    fn metadata(&self) -> Metadata {
        Metadata::named(format!("file {}", self.path.display()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Toml::string(&self.text).data()
    }
}

/// The value of one key, from a variable or a flag.
pub struct SingleValue {
    key: &'static Key,
    value: Value,
    origin: String,
}

impl SingleValue {
    /// Reads a value that is given as text.
    pub fn parse(key: &'static Key, text: &str, origin: String) -> Result<SingleValue, ConfigError> {
        match key.value(text) {
            Ok(value) => Ok(SingleValue { key, value, origin }),
            Err(detail) => Err(ConfigError::Value { key: key.path.to_string(), detail, origin }),
        }
    }
}

impl Provider for SingleValue {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(self.key.path, self.value.clone());
        let dict = nested.into_dict().ok_or_else(|| figment::Error::from("a key's path is never empty".to_string()))?;
        Ok(Profile::Default.collect(dict))
    }
}
