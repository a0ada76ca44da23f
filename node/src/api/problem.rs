//! Errors as problem details (RFC 9457).

use ragged_actors::{ErrorKind, ServiceError};
use std::fmt;
use warp::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

/// Content type of every problem.
pub const CONTENT_TYPE_PROBLEM: &str = "application/problem+json";

/// An answer that says what was wrong: a status, a stable code for programs, and a sentence for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code.
    pub code: &'static str,
    /// What was wrong, where, and what to do.
    pub detail: String,
    retry_after_ms: Option<u64>,
    allow: Vec<Method>,
}

impl Problem {
    /// A problem of a status, with its code and detail.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, code, detail: detail.into(), retry_after_ms: None, allow: Vec::new() }
    }

    /// 400: the request itself is wrong.
    pub fn invalid(code: &'static str, detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 500: a defect of the node.
    pub fn internal(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// 503: the node cannot serve this now; in a second it may.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Problem {
        Problem { retry_after_ms: Some(1_000), ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail) }
    }

    /// 405: the path is there, the method is not.
    pub fn method_not_allowed(method: &Method, path: &str, allow: Vec<Method>) -> Problem {
        let names: Vec<&str> = allow.iter().map(Method::as_str).collect();
        let detail = format!("{path} does not take {method}; it takes {}", names.join(", "));
        Problem { allow, ..Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail) }
    }

    /// The same problem, its detail led by the place that it is about.
    pub fn at(mut self, place: &str) -> Problem {
        self.detail = format!("{place}: {}", self.detail);
        self
    }

    /// The answer, which carries the request's id.
    pub fn into_response(self, request_id: &str) -> Response {
        let body = ragged_client::Problem {
            kind: "about:blank".to_string(),
            title: title(self.code),
            status: self.status.as_u16(),
            code: self.code.to_string(),
            detail: self.detail,
            request_id: Some(request_id.to_string()),
        };
        // A struct of strings and a number always serialises; were that ever untrue, the status still says what matters.
        let mut response = Response::new(serde_json::to_vec(&body).unwrap_or_default().into());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_PROBLEM));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(retry_after_ms) = self.retry_after_ms {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_ms.div_ceil(1_000)));
        }
        if let Some(allow) = allow_header(&self.allow) {
            headers.insert(ALLOW, allow);
        }
        response
    }
}

fn allow_header(methods: &[Method]) -> Option<HeaderValue> {
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    if names.is_empty() { None } else { HeaderValue::from_str(&names.join(", ")).ok() }
}

/// `collection_not_found` -> `Collection not found`.
fn title(code: &str) -> String {
    let words = code.replace('_', " ");
    let mut letters = words.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Problem {
        let status = match error.kind {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
            ErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorKind::Unavailable | ErrorKind::NotLeader => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::UnknownOutcome => StatusCode::GATEWAY_TIMEOUT,
        };
        Problem { retry_after_ms: error.retry_after_ms, ..Problem::new(status, error.code, error.detail) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status.as_u16(), self.code, self.detail)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_read_from_codes() {
        assert_eq!(title("collection_not_found"), "Collection not found");
        assert_eq!(title(""), "");
    }

    #[test]
    fn waiting_is_told_in_whole_seconds_rounded_up() {
        let mut error = ServiceError::unavailable("busy", "wait");
        error.retry_after_ms = Some(1_200);
        let response = Problem::from(error).into_response("r");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }

    #[test]
    fn a_missing_credential_says_which_kind_is_wanted() {
        let response = Problem::new(StatusCode::UNAUTHORIZED, "missing_credentials", "").into_response("r");
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }
}
