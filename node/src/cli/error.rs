//! What went wrong with a command, and the exit code that says so.

use crate::config::ConfigError;
use ragged_client::{ClientError, Problem};
use serde::Serialize;
use std::io;
use std::process::ExitCode;

/// How a command ended. Scripts rely on the numbers: they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Failed.
    Failure = 1,
    /// The arguments or the configuration are wrong; nothing was done.
    Usage = 2,
    /// What was asked for does not exist.
    NotFound = 3,
    /// The node refused the request.
    Refused = 4,
    /// No node can be reached, or it cannot serve now.
    Unavailable = 5,
    /// A part of the work failed, the rest is done.
    PartlyFailed = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A call to a node failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The configuration of the node is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The arguments are wrong in a way that their parser cannot see.
    #[error("{0}")]
    Usage(String),
    /// Something else.
    #[error("{0}")]
    Failed(String),
    /// The work was cut off after a part of it was done.
    #[error("{done}: {cause}")]
    CutOff {
        /// What is done, and how to go on.
        done: String,
        /// Why it was cut off.
        cause: Box<CliError>,
    },
    /// A file or a stream of this machine failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The node failed or could not start.
    #[error("{0:#}")]
    Node(anyhow::Error),
    /// Nobody reads standard output any more.
    #[error("standard output was closed")]
    BrokenPipe,
}

/// An error as `--json` prints it, on standard error.
#[derive(Serialize)]
pub struct ErrorDocument<'a> {
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    exit_code: u8,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a Problem>,
}

impl CliError {
    /// A failure of a file or a stream.
    pub fn io(what: impl Into<String>, source: io::Error) -> CliError {
        CliError::Io { what: what.into(), source }
    }

    /// The exit code that says it.
    pub fn exit(&self) -> Exit {
        match self {
            CliError::Client(error) => client_exit(error),
            CliError::Config(_) | CliError::Usage(_) => Exit::Usage,
            CliError::CutOff { cause, .. } => cause.exit(),
            CliError::Failed(_) | CliError::Io { .. } | CliError::Node(_) => Exit::Failure,
            CliError::BrokenPipe => Exit::Success,
        }
    }

    /// What a person can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            CliError::CutOff { cause, .. } => cause.hint(),
            CliError::Client(ClientError::Unreachable { .. }) => {
                Some("is a node running there? start one with `ragged serve`, or name another with --endpoint")
            }
            CliError::Client(error) if error.status() == Some(401) => Some(
                "give the key with --key-file or RAGGED_KEY; the key in a data folder is found with --data-dir, and is only sent to this machine",
            ),
            CliError::Client(error) if error.code() == Some("collection_not_found") => {
                Some("`ragged collections list` shows what there is; `ragged collections create NAME` makes one")
            }
            _ => None,
        }
    }

    /// The error for machines.
    pub fn document(&self) -> ErrorDocument<'_> {
        ErrorDocument { error: ErrorBody { exit_code: self.exit() as u8, message: self.to_string(), problem: self.problem() } }
    }

    fn problem(&self) -> Option<&Problem> {
        match self {
            CliError::Client(ClientError::Problem(problem)) => Some(problem),
            CliError::CutOff { cause, .. } => cause.problem(),
            _ => None,
        }
    }
}

fn client_exit(error: &ClientError) -> Exit {
    match error {
        ClientError::Invalid(_) => Exit::Usage,
        ClientError::Unreachable { .. } => Exit::Unavailable,
        ClientError::Problem(problem) => match problem.status {
            404 => Exit::NotFound,
            400..=499 => Exit::Refused,
            502..=504 => Exit::Unavailable,
            _ => Exit::Failure,
        },
        ClientError::UnknownOutcome { .. } | ClientError::Decode { .. } | ClientError::TooLarge { .. } => Exit::Failure,
    }
}

/// How work on many things ended: all, some or none of them failed.
pub fn exit_of_many(done: u64, failed: u64) -> Exit {
    match (done, failed) {
        (_, 0) => Exit::Success,
        (0, _) => Exit::Failure,
        _ => Exit::PartlyFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16) -> CliError {
        let text = || "x".to_owned();
        let problem = Problem { kind: text(), title: text(), status, code: text(), detail: text(), request_id: None };
        CliError::Client(ClientError::Problem(Box::new(problem)))
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let io = || io::Error::other("x");
        let unreachable = ClientError::Unreachable { endpoint: "e".to_owned(), attempts: 1, detail: "d".to_owned() };
        let unknown = ClientError::UnknownOutcome { endpoint: "e".to_owned(), detail: "d".to_owned() };
        let cases = [
            (CliError::Failed("x".to_owned()), 1),
            (CliError::io("x", io()), 1),
            (CliError::Client(unknown), 1),
            (answered(500), 1),
            (CliError::Usage("x".to_owned()), 2),
            (CliError::Client(ClientError::Invalid("x".to_owned())), 2),
            (answered(404), 3),
            (answered(400), 4),
            (answered(401), 4),
            (answered(409), 4),
            (answered(429), 4),
            (answered(503), 5),
            (answered(504), 5),
            (CliError::Client(unreachable), 5),
            (CliError::CutOff { done: "x".to_owned(), cause: Box::new(answered(404)) }, 3),
        ];
        for (error, code) in cases {
            assert_eq!(error.exit() as u8, code, "{error:?}");
        }
        assert_eq!([exit_of_many(3, 0) as u8, exit_of_many(0, 3) as u8, exit_of_many(2, 1) as u8], [0, 1, 6]);
    }

    #[test]
    fn errors_for_machines_keep_the_problem() {
        let cut_off = CliError::CutOff { done: "half".to_owned(), cause: Box::new(answered(409)) };
        let document = serde_json::to_value(cut_off.document()).unwrap();
        assert_eq!(document["error"]["exit_code"], 4);
        assert_eq!(document["error"]["problem"]["status"], 409);
        assert!(document["error"]["message"].as_str().unwrap().starts_with("half: "));
    }
}
