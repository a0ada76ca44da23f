//! JSON in and out, with errors that say what was wrong and where.

use crate::api::problem::Problem;
use ragged_client::Metadata;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

/// Longer texts are parsed, and longer answers written, off the threads that serve connections: 64 KiB take about a tenth of a millisecond.
pub const PARSE_INLINE_BYTES_MAX: usize = 64 << 10;

/// Refuses a body that says it is something else. One that says nothing is taken for JSON.
pub fn check_media_type(media_type: Option<&mime::Mime>) -> Result<(), Problem> {
    let Some(media_type) = media_type else { return Ok(()) };
    let is_json = media_type.type_() == mime::APPLICATION && media_type.subtype() == mime::JSON;
    let is_utf8 = media_type.get_param(mime::CHARSET).is_none_or(|charset| charset == mime::UTF_8);
    if is_json && is_utf8 {
        return Ok(());
    }
    Err(unsupported(media_type, "application/json (in UTF-8)"))
}

/// The problem of a body of another type than is taken here.
pub fn unsupported(media_type: &mime::Mime, wanted: &str) -> Problem {
    let detail = format!("the body's content-type is {media_type}; this takes {wanted}");
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

/// Parses a body.
pub async fn parse<T, B>(bytes: B) -> Result<T, Problem>
where
    T: DeserializeOwned + Send + 'static,
    B: AsRef<[u8]> + Send + 'static,
{
    if bytes.as_ref().len() <= PARSE_INLINE_BYTES_MAX {
        return parse_now(bytes.as_ref());
    }
    match tokio::task::spawn_blocking(move || parse_now(bytes.as_ref())).await {
        Ok(parsed) => parsed,
        Err(error) => Err(Problem::internal(format!("parsing the body failed: {error}"))),
    }
}

/// Parses a text where it stands.
pub fn parse_now<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let detail = format!("the text is not valid UTF-8 at byte {}", error.valid_up_to());
            return Err(Problem::invalid("invalid_utf8", detail));
        }
    };
    if text.trim_ascii().is_empty() {
        return Err(Problem::invalid("malformed_json", "the body is empty; a JSON object is expected"));
    }
    // Where a fault is, is only found out when there is one: keeping track costs as much as reading.
    serde_json::from_str(text).or_else(|_| parse_with_place(text))
}

fn parse_with_place<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        describe(text, &path, error.inner())
    })?;
    deserializer.end().map_err(|error| describe(text, ".", &error))?;
    Ok(value)
}

fn describe(text: &str, path: &str, error: &serde_json::Error) -> Problem {
    let place = format!("line {}, column {}", error.line(), error.column());
    let message = error.to_string();
    // serde_json ends its messages with the place, which is said in front here.
    let message = message.rfind(" at line ").map_or(message.as_str(), |end| &message[..end]);
    if matches!(error.classify(), Category::Syntax | Category::Eof | Category::Io) {
        let hint = not_a_number_hint(text, error.line(), error.column());
        return Problem::invalid("malformed_json", format!("the text is not JSON at {place}: {message}{hint}"));
    }
    let code = if message.starts_with("unknown field") {
        "unknown_field"
    } else if message.starts_with("missing field") {
        "missing_field"
    } else if message.starts_with("invalid type") {
        "invalid_type"
    } else if message.starts_with("duplicate field") {
        "duplicate_field"
    } else {
        "invalid_value"
    };
    let path = if path == "." { "the body" } else { path };
    // serde names the Rust type there, which is of no use to a client.
    let message =
        if message.starts_with("data did not match any variant") { "has none of the forms that it may have" } else { message };
    Problem::invalid(code, format!("{path}: {message} ({place})"))
}

/// Some languages write `NaN` and `Infinity` into what they call JSON; the parser's own message does not help there.
fn not_a_number_hint(text: &str, line: usize, column: usize) -> &'static str {
    let line_text = text.split('\n').nth(line.saturating_sub(1)).unwrap_or("");
    let rest = line_text.as_bytes().get(column.saturating_sub(2)..).unwrap_or_default();
    let starts = |word: &str| (0..2).any(|skip| rest.get(skip..).is_some_and(|rest| rest.starts_with(word.as_bytes())));
    if starts("NaN") || starts("Infinity") || starts("-Infinity") || starts("inf") {
        " (JSON has no NaN and no Infinity)"
    } else {
        ""
    }
}

/// Metadata that the engine keeps as text; none is empty.
pub fn stored_metadata(text: String) -> Metadata {
    if text.is_empty() { Metadata::default() } else { Metadata::of_text(text) }
}

/// An answer with a JSON body.
pub fn reply<T: Serialize>(status: StatusCode, value: &T) -> Result<Response, Problem> {
    let body = serde_json::to_vec(value).map_err(|error| Problem::internal(format!("writing the answer failed: {error}")))?;
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// 200 with a JSON body of about so many bytes. A long one is written where no other request waits for it.
pub async fn ok_of_size<T: Serialize + Send + 'static>(value: T, about_bytes: usize) -> Result<Response, Problem> {
    if about_bytes <= PARSE_INLINE_BYTES_MAX {
        return ok(&value);
    }
    let written = tokio::task::spawn_blocking(move || ok(&value)).await;
    written.unwrap_or_else(|error| Err(Problem::internal(format!("writing the answer failed: {error}"))))
}

/// 200 with a JSON body.
pub fn ok<T: Serialize>(value: &T) -> Result<Response, Problem> {
    reply(StatusCode::OK, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ragged_client::{NewCollection, NewDocuments, SearchRequest};

    fn refusal<T: DeserializeOwned>(text: &[u8]) -> (&'static str, String) {
        match parse_now::<T>(text) {
            Ok(_) => panic!("{text:?} was taken"),
            Err(problem) => (problem.code, problem.detail),
        }
    }

    #[test]
    fn malformed_json_names_line_and_column() {
        let (code, detail) = refusal::<SearchRequest>(b"{\n  \"query\": }");
        assert_eq!(code, "malformed_json");
        assert!(detail.contains("line 2, column 12"), "{detail}");
        for text in ["", "  \n", "{", "{} {}", "[1,]", "{\"query\": \"\\ud800\"}"] {
            assert_eq!(
                refusal::<SearchRequest>(text.as_bytes()).0,
                if text == "[1,]" { "invalid_type" } else { "malformed_json" },
                "{text}"
            );
        }
    }

    #[test]
    fn wrong_fields_are_named_by_their_path() {
        let (code, detail) = refusal::<NewDocuments>(br#"{"documents": [{"text": "a"}, {"text": "b", "titel": "c"}]}"#);
        assert_eq!(code, "unknown_field");
        assert!(detail.starts_with("documents[1].titel: unknown field `titel`, expected one of"), "{detail}");
        let (code, detail) = refusal::<NewDocuments>(br#"{"documents": [{"text": 7}]}"#);
        assert_eq!(code, "invalid_type");
        assert!(detail.starts_with("documents[0].text: invalid type: integer `7`, expected a string"), "{detail}");
        let (code, detail) = refusal::<NewDocuments>(br#"{"documents": [{}]}"#);
        assert_eq!(code, "missing_field");
        assert!(detail.starts_with("documents[0]: missing field `text`"), "{detail}");
        assert_eq!(refusal::<SearchRequest>(br#"{"mode": "magic"}"#).0, "invalid_value");
        assert_eq!(refusal::<SearchRequest>(br#"{"limit": -1}"#).0, "invalid_value");
        assert_eq!(refusal::<SearchRequest>(br#"{"limit": 1, "limit": 2}"#).0, "duplicate_field");
        assert_eq!(refusal::<NewCollection>(br#"{"name": "a", "embedding": {"x": 1}}"#).0, "invalid_value");
    }

    #[test]
    fn what_is_no_number_is_explained() {
        for text in ["{\"vector\": [NaN]}", "{\"vector\": [0.5, -Infinity]}", "{\n\"vector\": [\nInfinity]}"] {
            let (code, detail) = refusal::<SearchRequest>(text.as_bytes());
            assert_eq!(code, "malformed_json");
            assert!(detail.contains("no NaN"), "{text}: {detail}");
        }
    }

    #[test]
    fn bad_utf8_names_the_byte() {
        let (code, detail) = refusal::<SearchRequest>(b"{\"query\": \"\xff\"}");
        assert_eq!(code, "invalid_utf8");
        assert!(detail.contains("byte 11"), "{detail}");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep =
            format!("{{\"documents\":[{{\"text\":\"a\",\"metadata\":{{\"a\":{}1{}}}}}]}}", "[".repeat(200), "]".repeat(200));
        assert_eq!(refusal::<NewDocuments>(deep.as_bytes()).0, "malformed_json");
    }

    #[test]
    fn media_types() {
        let check = |text: &str| check_media_type(Some(&text.parse().unwrap()));
        assert!(check_media_type(None).is_ok());
        assert!(check("application/json").is_ok());
        assert!(check("application/json; charset=UTF-8").is_ok());
        assert_eq!(check("application/json; charset=latin1").unwrap_err().status, 415);
        assert_eq!(check("application/x-www-form-urlencoded").unwrap_err().code, "unsupported_media_type");
    }
}
