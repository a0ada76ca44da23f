//! What can go wrong with a call, told apart by what a caller can do about it.

use crate::problem::Problem;

/// Why a call gave no answer.
///
/// The variants separate what is known: [`ClientError::Problem`] and [`ClientError::Invalid`] changed nothing,
/// [`ClientError::Unreachable`] was never taken by a node, and after [`ClientError::UnknownOutcome`] the write may or may
/// not have happened. None of them ever holds the key.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A node answered with an error. Its `status` and `code` say which.
    #[error("{} ({}): {}", .0.title, .0.code, .0.detail)]
    Problem(Box<Problem>),

    /// No node could be reached, or none answered a call that changes nothing.
    #[error("{endpoint} cannot be reached: {detail}")]
    Unreachable {
        /// The node that was tried last.
        endpoint: String,
        /// How many times a node was tried in all.
        attempts: u32,
        /// What the last attempt failed with.
        detail: String,
    },

    /// A write was sent and its answer never came: it may have been carried out or not.
    #[error("the outcome at {endpoint} is unknown, the write may or may not have been carried out: {detail}")]
    UnknownOutcome {
        /// The node that the write was sent to.
        endpoint: String,
        /// What became of the connection.
        detail: String,
    },

    /// A node answered with success, but not with what this client understands.
    #[error("the answer could not be understood: {detail}")]
    Decode {
        /// What was wrong with the answer.
        detail: String,
    },

    /// An answer was longer than the client accepts.
    #[error("the answer is longer than {limit_bytes} bytes")]
    TooLarge {
        /// The client's limit, see [`ClientBuilder::max_response_bytes`](crate::ClientBuilder::max_response_bytes).
        limit_bytes: usize,
    },

    /// An argument or a setting of the client is wrong; nothing was sent.
    #[error("{0}")]
    Invalid(String),
}

impl ClientError {
    /// The HTTP status, when a node answered with an error.
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Problem(problem) => Some(problem.status),
            _ => None,
        }
    }

    /// The stable code, when a node answered with an error.
    pub fn code(&self) -> Option<&str> {
        match self {
            ClientError::Problem(problem) => Some(&problem.code),
            _ => None,
        }
    }

    /// Whether what was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Whether no node could serve the call now; the same call may succeed later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, ClientError::Unreachable { .. }) || matches!(self.status(), Some(502..=504))
    }
}
