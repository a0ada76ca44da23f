//! Sends a call: endpoints in turn, back-off between rounds, bounded answers.

use super::call::{Body, Call};
use super::retry::{AttemptFailure, RetryPolicy, is_retryable, retry_after};
use super::tokens::WriteTokens;
use crate::error::ClientError;
use crate::problem::Problem;
use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::de::DeserializeOwned;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Header that makes a write recognisable when it is repeated.
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Characters of an unexpected error body that are shown.
const SHOWN_BODY_CHARS: usize = 300;

/// What a client is made from, checked.
pub(crate) struct Settings {
    pub(crate) http: reqwest::Client,
    /// Never empty.
    pub(crate) endpoints: Vec<Url>,
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) timeout: Duration,
    pub(crate) upload_timeout: Duration,
    pub(crate) max_response_bytes: usize,
    pub(crate) retry: RetryPolicy,
    pub(crate) tokens: Option<WriteTokens>,
}

/// The connections to a cluster.
pub(crate) struct Transport {
    settings: Settings,
    /// The endpoint that answered last; it is asked first.
    preferred: AtomicUsize,
}

/// A node's answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What is known about a call while it is being tried.
struct Progress {
    attempts: u32,
    /// An attempt was sent and its answer lost: from then on nobody knows whether the write happened.
    lost: Option<ClientError>,
    /// When each endpoint may be asked again.
    not_before: Vec<Instant>,
}

impl Transport {
    pub(crate) fn new(settings: Settings) -> Self {
        assert!(!settings.endpoints.is_empty(), "a client has endpoints");
        Transport { settings, preferred: AtomicUsize::new(0) }
    }

    pub(crate) fn endpoints(&self) -> Vec<&str> {
        self.settings.endpoints.iter().map(Url::as_str).collect()
    }

    pub(crate) fn tokens(&self) -> Option<&WriteTokens> {
        self.settings.tokens.as_ref()
    }

    /// Sends a call and reads a successful answer as JSON.
    pub(crate) async fn fetch<T: DeserializeOwned>(&self, call: &Call) -> Result<T, ClientError> {
        decode(&self.send(call).await?.body)
    }

    /// Sends a call until a node takes it, as often as its nature and the policy allow.
    ///
    /// # Errors
    /// Every variant of [`ClientError`]; an error status is [`ClientError::Problem`].
    pub(crate) async fn send(&self, call: &Call) -> Result<Answer, ClientError> {
        self.send_accepting(call, 0).await
    }

    /// The same, where one more status is an answer and no refusal.
    pub(crate) async fn send_accepting(&self, call: &Call, accepted: u16) -> Result<Answer, ClientError> {
        let endpoints = self.settings.endpoints.len();
        let first = self.preferred.load(Ordering::Relaxed) % endpoints;
        let attempts_max = self.settings.retry.attempts.max(1).max(endpoints as u32);
        let mut progress = Progress { attempts: 0, lost: None, not_before: vec![Instant::now(); endpoints] };
        loop {
            let index = (first + progress.attempts as usize) % endpoints;
            self.wait_for_turn(index, &progress).await;
            progress.attempts += 1;
            let may_go_on = progress.attempts < attempts_max;
            let endpoint = &self.settings.endpoints[index];
            match self.attempt(endpoint, call).await? {
                Ok(answer) if answer.status.as_u16() == accepted => return Ok(answer),
                Ok(answer) => {
                    if is_retryable(answer.status.as_u16()) && call.repeatable && may_go_on {
                        let asked = retry_after(&answer.headers).unwrap_or_default();
                        if asked <= self.settings.retry.retry_after_max {
                            if call.writes
                                && let error @ ClientError::UnknownOutcome { .. } = refusal(endpoint, call, &answer)
                            {
                                progress.lost = Some(error);
                            }
                            progress.not_before[index] = Instant::now() + asked;
                            continue;
                        }
                    }
                    self.preferred.store(index, Ordering::Relaxed);
                    return conclude(endpoint, call, answer, progress);
                }
                Err(AttemptFailure::NotSent(_)) if may_go_on => {}
                Err(AttemptFailure::NotSent(detail)) => {
                    return Err(progress.lost.take().unwrap_or_else(|| unreachable_node(endpoint, progress.attempts, detail)));
                }
                Err(AttemptFailure::Lost(detail)) => {
                    if call.writes {
                        progress.lost = Some(ClientError::UnknownOutcome { endpoint: shown(endpoint), detail: detail.clone() });
                    }
                    if !call.repeatable || !may_go_on {
                        return Err(progress
                            .lost
                            .take()
                            .unwrap_or_else(|| unreachable_node(endpoint, progress.attempts, detail)));
                    }
                }
            }
        }
    }

    /// Waits until an endpoint may be asked.
    async fn wait_for_turn(&self, index: usize, progress: &Progress) {
        if progress.attempts == 0 {
            return;
        }
        let endpoints = self.settings.endpoints.len() as u32;
        let backoff = self.settings.retry.backoff(progress.attempts, endpoints, rand::random());
        let asked = progress.not_before[index].saturating_duration_since(Instant::now());
        tokio::time::sleep(backoff.max(asked)).await;
    }

    /// One attempt at one endpoint. The outer error ends the call: trying again could not change it.
    async fn attempt(&self, endpoint: &Url, call: &Call) -> Result<Result<Answer, AttemptFailure>, ClientError> {
        match self.request(endpoint, call)?.send().await {
            Ok(response) => self.collect(response).await,
            Err(error) => failure(error).map(Err),
        }
    }

    /// Reads an answer to its end, up to the limit.
    async fn collect(&self, mut response: reqwest::Response) -> Result<Result<Answer, AttemptFailure>, ClientError> {
        let limit_bytes = self.settings.max_response_bytes;
        if response.content_length().is_some_and(|length| length > limit_bytes as u64) {
            return Err(ClientError::TooLarge { limit_bytes });
        }
        let mut body = BytesMut::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > limit_bytes => return Err(ClientError::TooLarge { limit_bytes }),
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(error) => return Ok(Err(AttemptFailure::Lost(root_cause(&error.without_url())))),
            }
        }
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        Ok(Ok(Answer { status, headers, body: body.freeze() }))
    }

    fn request(&self, endpoint: &Url, call: &Call) -> Result<reqwest::RequestBuilder, ClientError> {
        let timeout = if call.upload { self.settings.upload_timeout } else { self.settings.timeout };
        let mut request = self.settings.http.request(call.method.clone(), call.url(endpoint)?).timeout(timeout);
        if let Some(authorization) = &self.settings.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        if let Some(key) = &call.idempotency_key {
            let value = HeaderValue::from_str(key)
                .map_err(|_| ClientError::Invalid("the idempotency key has characters that a header cannot hold".to_owned()))?;
            request = request.header(IDEMPOTENCY_KEY.clone(), value);
        }
        Ok(match &call.body {
            Body::Empty => request,
            Body::Json(bytes) => request.header(CONTENT_TYPE, "application/json").body(bytes.clone()),
            Body::Ndjson(bytes) => request.header(CONTENT_TYPE, "application/x-ndjson").body(bytes.clone()),
            Body::Files(files) => request.multipart(super::documents::form(files)),
        })
    }

    /// Sends a body that exists only once. It cannot be tried again, so a node that lives is looked for first.
    pub(crate) async fn send_stream(&self, call: &Call, body: reqwest::Body) -> Result<Answer, ClientError> {
        if self.settings.endpoints.len() > 1 {
            // Any answer will do: the endpoint that gives one is preferred from then on. If none does, sending will say so.
            let _ = self.send(&Call::read(reqwest::Method::GET, &["livez"])).await;
        }
        let index = self.preferred.load(Ordering::Relaxed) % self.settings.endpoints.len();
        let endpoint = &self.settings.endpoints[index];
        let request = self.request(endpoint, call)?.header(CONTENT_TYPE, "application/x-ndjson").body(body);
        let mut request = request.build().map_err(|error| ClientError::Invalid(root_cause(&error.without_url())))?;
        *request.timeout_mut() = None; // it lasts as long as there is something to send
        let outcome = match self.settings.http.execute(request).await {
            Ok(response) => self.collect(response).await?,
            Err(error) => Err(failure(error)?),
        };
        match outcome {
            Ok(answer) if answer.status.is_success() => Ok(answer),
            Ok(answer) => Err(refusal(endpoint, call, &answer)),
            Err(AttemptFailure::NotSent(detail)) => Err(unreachable_node(endpoint, 1, detail)),
            Err(AttemptFailure::Lost(detail)) => Err(ClientError::UnknownOutcome { endpoint: shown(endpoint), detail }),
        }
    }
}

/// What an answer means, knowing that an earlier attempt may have been carried out.
fn conclude(endpoint: &Url, call: &Call, answer: Answer, progress: Progress) -> Result<Answer, ClientError> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    // A repetition that is refused does not say that the first attempt was: the deletion whose answer was lost makes the
    // second one a 404, and a node that is too busy for the repetition may have carried out the first.
    Err(progress.lost.unwrap_or_else(|| refusal(endpoint, call, &answer)))
}

/// What a failed exchange means. An error ends the call: the request itself is wrong.
fn failure(error: reqwest::Error) -> Result<AttemptFailure, ClientError> {
    let is_builder = error.is_builder();
    let is_connect = error.is_connect();
    let detail = root_cause(&error.without_url());
    if is_builder {
        return Err(ClientError::Invalid(detail));
    }
    Ok(if is_connect { AttemptFailure::NotSent(detail) } else { AttemptFailure::Lost(detail) })
}

/// An endpoint as people write it.
fn shown(endpoint: &Url) -> String {
    endpoint.as_str().trim_end_matches('/').to_owned()
}

fn unreachable_node(endpoint: &Url, attempts: u32, detail: String) -> ClientError {
    ClientError::Unreachable { endpoint: shown(endpoint), attempts, detail }
}

/// What an answer that is no success means for its call.
fn refusal(endpoint: &Url, call: &Call, answer: &Answer) -> ClientError {
    let problem = problem(answer);
    // 502 and 504 say that whoever answered does not know what became of the write.
    if call.writes && matches!(problem.status, 502 | 504) {
        return ClientError::UnknownOutcome { endpoint: shown(endpoint), detail: problem.detail };
    }
    ClientError::Problem(Box::new(problem))
}

/// The problem that an answer holds; one is made for an answer of something that is no node, such as a proxy.
fn problem(answer: &Answer) -> Problem {
    if let Ok(problem) = serde_json::from_slice::<Problem>(&answer.body) {
        return problem;
    }
    let status = answer.status.as_u16();
    let detail: String = String::from_utf8_lossy(&answer.body).chars().take(SHOWN_BODY_CHARS).collect();
    Problem {
        kind: "about:blank".to_owned(),
        title: answer.status.canonical_reason().unwrap_or("Error").to_owned(),
        status,
        code: format!("http_{status}"),
        detail,
        request_id: answer.headers.get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned),
    }
}

/// Reads a body as JSON of a type.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Decode { detail: error.to_string() })
}

/// What an error began with, which is where reqwest says what happened: "Connection refused", "operation timed out".
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
