//! What an answer to a peer promises: it must be on the disk of the one who answers, whatever happens to it.

use crate::codec;
use crate::network::{Request, Response};
use crate::types::{LogId, Vote};
use openraft::raft::AppendEntriesResponse;

/// What a replica has promised with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    /// It follows no lesser vote than this.
    pub vote: Vote,
    /// It has this entry, and all before it.
    pub stored: Option<LogId>,
}

/// What the answer to a request promises, if anything.
pub fn promise(request: &[u8], answer: &[u8]) -> Option<Promise> {
    match (codec::decode(request).ok()?, codec::decode(answer).ok()?) {
        (Request::Vote(request), Response::Vote(answer)) => {
            answer.vote_granted.then_some(Promise { vote: request.vote, stored: None })
        }
        (Request::Append(request), Response::Append(answer)) => {
            let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
            let stored = match answer {
                AppendEntriesResponse::Success => last,
                AppendEntriesResponse::PartialSuccess(stored) => stored,
                AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => return None,
            };
            Some(Promise { vote: request.vote, stored })
        }
        _ => None,
    }
}
