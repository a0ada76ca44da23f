//! How long to wait before another attempt, and what a failed attempt means.

use reqwest::header::{HeaderMap, RETRY_AFTER};
use std::time::Duration;

/// How often and after what waits a call is tried again.
///
/// An attempt after a full round of the endpoints waits `backoff_base`, twice that after the next round and so on up to
/// `backoff_max`, each shortened at random by up to a half so that clients do not return together. A node's `retry-after`
/// is honoured when it is longer; when it is longer than `retry_after_max`, the node's answer is returned instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts of a call in all, over all endpoints; at least 1. Default 4, and every endpoint is tried once in any case.
    pub attempts: u32,
    /// Wait after the first round. Default 50 ms.
    pub backoff_base: Duration,
    /// Longest wait that is not asked for by a node. Default 2 s.
    pub backoff_max: Duration,
    /// Longest `retry-after` that is waited for. Default 30 s.
    pub retry_after_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            attempts: 4,
            backoff_base: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            retry_after_max: Duration::from_secs(30),
        }
    }
}

impl RetryPolicy {
    /// One attempt at each endpoint, and no more.
    pub fn never() -> Self {
        RetryPolicy { attempts: 1, ..RetryPolicy::default() }
    }

    /// The wait before attempt number `attempt` (from 0) over `endpoints` endpoints; `random` is in 0..1.
    pub(crate) fn backoff(&self, attempt: u32, endpoints: u32, random: f64) -> Duration {
        let round = attempt / endpoints.max(1);
        if round == 0 {
            return Duration::ZERO; // another endpoint may well be fine: it is asked at once
        }
        let doublings = (round - 1).min(16);
        let full = self.backoff_base.saturating_mul(1 << doublings).min(self.backoff_max);
        full.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
    }
}

/// Why an attempt gave no answer that can be returned.
#[derive(Debug)]
pub(crate) enum AttemptFailure {
    /// The request never left: safe to send elsewhere, whatever it is.
    NotSent(String),
    /// The request may have been carried out: the connection broke or time ran out before the whole answer was there.
    Lost(String),
}

/// Statuses that say "not now" or "not here", after which a repeatable call is tried again.
pub(crate) fn is_retryable(status: u16) -> bool {
    matches!(status, 429 | 502 | 503 | 504)
}

/// How long a node asks to be left alone. Only the form in seconds is used by nodes.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_asked_before_waiting() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.backoff(0, 3, 0.0), Duration::ZERO);
        assert_eq!(policy.backoff(2, 3, 0.0), Duration::ZERO);
        assert_eq!(policy.backoff(3, 3, 0.0), Duration::from_millis(50));
    }

    #[test]
    fn waits_double_up_to_the_maximum_and_jitter_only_shortens_them() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.backoff(1, 1, 0.0), Duration::from_millis(50));
        assert_eq!(policy.backoff(2, 1, 0.0), Duration::from_millis(100));
        assert_eq!(policy.backoff(3, 1, 1.0), Duration::from_millis(100));
        assert_eq!(policy.backoff(30, 1, 0.0), Duration::from_secs(2));
        assert_eq!(policy.backoff(u32::MAX, 1, 0.0), Duration::from_secs(2));
    }

    #[test]
    fn retry_after_is_read_in_seconds() {
        let mut headers = HeaderMap::new();
        assert_eq!(retry_after(&headers), None);
        headers.insert(RETRY_AFTER, " 7 ".parse().expect("a header"));
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        headers.insert(RETRY_AFTER, "Fri, 31 Dec 1999 23:59:59 GMT".parse().expect("a header"));
        assert_eq!(retry_after(&headers), None);
    }
}
