//! The error that a request can end with.

use parking_lot::Mutex;
use ragged_raft::ids::NodeId;
use ragged_raft::mutant::{self, Mutant};
use ragged_raft::{ProposeError, ReadError};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// What kind of trouble it is; the façade turns it into an HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The request itself is wrong (400).
    Invalid,
    /// The credential is missing or wrong (401).
    Unauthenticated,
    /// The credential does not allow this (403).
    Forbidden,
    /// What it names is not there (404).
    NotFound,
    /// It contradicts what is there (409).
    Conflict,
    /// It is larger than allowed (413).
    TooLarge,
    /// The caller asks too much at once (429); see `retry_after_ms`.
    TooManyRequests,
    /// A defect or a fault of the node (500).
    Internal,
    /// The node cannot serve this now (503); see `retry_after_ms`.
    Unavailable,
    /// It is not known whether the write took effect (504): read back, or retry with the same idempotency key.
    UnknownOutcome,
    /// Another replica leads; nothing was done (503). Nodes ask that one instead, clients do not see this.
    NotLeader,
}

/// The error that a request ends with: a kind, a stable code for programs, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceError {
    /// What kind of trouble it is.
    pub kind: ErrorKind,
    /// Stable code, such as `collection_not_found`.
    pub code: &'static str,
    /// What was wrong, where, and what to do.
    pub detail: String,
    /// When it makes sense to try again.
    pub retry_after_ms: Option<u64>,
    /// With `NotLeader`: the node where the leader is, if that is known.
    pub leader: Option<NodeId>,
}

impl ServiceError {
    /// An error of a kind, with its code and detail.
    pub fn new(kind: ErrorKind, code: &'static str, detail: impl Into<String>) -> Self {
        let retry_after_ms = match kind {
            ErrorKind::TooManyRequests | ErrorKind::Unavailable | ErrorKind::NotLeader => Some(1_000),
            _ => None,
        };
        ServiceError { kind, code, detail: detail.into(), retry_after_ms, leader: None }
    }

    /// The request itself is wrong.
    pub fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, code, detail)
    }

    /// What it names is not there.
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, code, detail)
    }

    /// A defect or a fault of the node; the detail goes to the client, so it names no secrets.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, "internal", detail)
    }

    /// The node cannot serve this now.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, code, detail)
    }
}

/// Codes of other nodes that are remembered; of one cluster's versions there are far fewer.
const CODES_MAX: usize = 1_000;

/// An error as another node sent it.
#[derive(Deserialize)]
struct ReceivedError {
    kind: ErrorKind,
    code: String,
    detail: String,
    retry_after_ms: Option<u64>,
    leader: Option<NodeId>,
}

impl<'de> Deserialize<'de> for ServiceError {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ReceivedError { kind, code, detail, retry_after_ms, leader } = ReceivedError::deserialize(deserializer)?;
        Ok(ServiceError { kind, code: kept(code), detail, retry_after_ms, leader })
    }
}

/// A code of another node. Each is kept once, for good.
fn kept(code: String) -> &'static str {
    static CODES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut codes = CODES.lock();
    if let Some(known) = codes.get(code.as_str()) {
        return known;
    }
    if codes.len() >= CODES_MAX {
        return "internal";
    }
    let kept: &'static str = code.leak();
    codes.insert(kept);
    kept
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for ServiceError {}

/// What a failed proposal means to the one who asked.
pub fn propose_error(fault: ProposeError) -> ServiceError {
    let detail = fault.to_string();
    match fault {
        ProposeError::UnknownOutcome { .. } if mutant::is_on(Mutant::UnknownAsRefused) => {
            ServiceError::unavailable("write_overloaded", detail)
        }
        ProposeError::UnknownOutcome { .. } => ServiceError::new(ErrorKind::UnknownOutcome, "unknown_outcome", detail),
        ProposeError::TooLarge { .. } => ServiceError::new(ErrorKind::TooLarge, "write_too_large", detail),
        ProposeError::Overloaded => ServiceError::unavailable("write_overloaded", detail),
        ProposeError::NotLeader { leader } => ServiceError {
            leader: leader.map(|node| NodeId(node.node)),
            ..ServiceError::new(ErrorKind::NotLeader, "shard_unavailable", detail)
        },
        _ => ServiceError::unavailable("shard_unavailable", detail),
    }
}

impl From<ReadError> for ServiceError {
    fn from(fault: ReadError) -> Self {
        tracing::error!(%fault, "stored rows could not be read");
        ServiceError::internal(format!("stored rows could not be read: {fault}"))
    }
}
