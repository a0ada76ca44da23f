//! Query strings, read strictly: an unknown, repeated or wrong parameter is an error that names it.

use crate::api::problem::Problem;
use std::ops::RangeInclusive;

/// Longest cursor that is looked at. Ours hold an id of 256 bytes at most.
const CURSOR_CHARS_MAX: usize = 1024;

/// Parameters of a query string that nobody has asked for yet.
pub struct Query {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Query {
    /// Decodes a query string.
    pub fn parse(raw: &str) -> Result<Query, Problem> {
        let mut left: Vec<(String, String)> = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(&name.replace('+', " "), "the query string")?;
            let value = decode(&value.replace('+', " "), &format!("parameter {name}"))?;
            if left.iter().any(|(given, _)| *given == name) {
                return Err(Problem::invalid("duplicate_parameter", format!("parameter {name} is given more than once")));
            }
            left.push((name, value));
        }
        Ok(Query { left, known: Vec::new() })
    }

    /// The cursor of a listing.
    pub fn cursor(&mut self) -> Result<Option<String>, Problem> {
        let cursor = self.take("cursor");
        if cursor.as_ref().is_some_and(|cursor| cursor.chars().count() > CURSOR_CHARS_MAX) {
            let detail = format!("parameter cursor is longer than {CURSOR_CHARS_MAX} characters, which no cursor is");
            return Err(Problem::invalid("invalid_parameter", detail));
        }
        Ok(cursor)
    }

    /// A whole number within a range.
    pub fn number(&mut self, name: &'static str, range: RangeInclusive<usize>, default: usize) -> Result<usize, Problem> {
        let Some(text) = self.take(name) else { return Ok(default) };
        match text.parse::<usize>() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => {
                let detail =
                    format!("parameter {name} is {text:?}, but must be a whole number from {} to {}", range.start(), range.end());
                Err(Problem::invalid("invalid_parameter", detail))
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, name: &'static str, default: bool) -> Result<bool, Problem> {
        match self.take(name).as_deref() {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => {
                Err(Problem::invalid("invalid_parameter", format!("parameter {name} is {other:?}, but must be true or false")))
            }
        }
    }

    /// A text.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.take(name)
    }

    fn take(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let index = self.left.iter().position(|(given, _)| given == name)?;
        Some(self.left.swap_remove(index).1)
    }

    /// Refuses what nobody asked for.
    pub fn end(self) -> Result<(), Problem> {
        let Some((name, _)) = self.left.first() else { return Ok(()) };
        let known = if self.known.is_empty() { "none".to_string() } else { self.known.join(", ") };
        Err(Problem::invalid("unknown_parameter", format!("unknown parameter {name:?}; known here: {known}")))
    }
}

/// Decodes `%41` and the like; `place` says in an error where it stood.
pub fn decode(text: &str, place: &str) -> Result<String, Problem> {
    let bytes = text.as_bytes();
    for (index, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        let is_escape = matches!(bytes.get(index + 1..index + 3), Some([a, b]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
        if !is_escape {
            let detail = format!("{place} has a % at byte {index} that two hexadecimal digits do not follow");
            return Err(Problem::invalid("invalid_percent_encoding", detail));
        }
    }
    match percent_encoding::percent_decode_str(text).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(Problem::invalid("invalid_utf8", format!("{place} is not valid UTF-8 once decoded"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(raw: &str) -> Query {
        Query::parse(raw).unwrap()
    }

    #[test]
    fn parameters_are_decoded() {
        let mut query = query("cursor=a%2Fb+c&limit=7&wait=false&");
        assert_eq!(query.cursor().unwrap().as_deref(), Some("a/b c"));
        assert_eq!(query.number("limit", 1..=10, 5).unwrap(), 7);
        assert!(!query.boolean("wait", true).unwrap());
        assert!(query.boolean("text", true).unwrap());
        query.end().unwrap();
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (raw, code) in [("limit=0", "invalid_parameter"), ("limit=x", "invalid_parameter"), ("limit", "invalid_parameter")] {
            let problem = query(raw).number("limit", 1..=10, 5).unwrap_err();
            assert_eq!(problem.code, code);
            assert!(problem.detail.contains("limit"));
        }
        assert_eq!(query("wait=yes").boolean("wait", true).unwrap_err().code, "invalid_parameter");
        assert_eq!(query("limt=3").end().unwrap_err().code, "unknown_parameter");
        assert_eq!(query(&format!("cursor={}", "é".repeat(1025))).cursor().unwrap_err().code, "invalid_parameter");
        assert_eq!(Query::parse("a=1&a=2").err().unwrap().code, "duplicate_parameter");
    }

    #[test]
    fn bad_encodings_are_refused() {
        for raw in ["a=%", "a=%4", "a=%zz", "%=1"] {
            assert_eq!(Query::parse(raw).err().unwrap().code, "invalid_percent_encoding", "{raw}");
        }
        assert_eq!(Query::parse("a=%ff").err().unwrap().code, "invalid_utf8");
    }
}
