//! What clients did, and what they were told: the only thing that the checks look at.

use serde::Serialize;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What a document holds: a number that no other write has; none when there is no document.
pub type Value = Option<u64>;

/// What a client did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Made the document hold this; none deletes it.
    Write(Value),
    /// Read that it holds this, by a read that sees everything that was acknowledged before.
    Read(Value),
    /// Read that it holds this, by a read that sees what this client had last written to it.
    SessionRead(Value),
}

/// What a client knows of an action's outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// It was acknowledged, or answered.
    Done,
    /// It was refused: nothing was changed, nothing was read.
    Refused,
    /// Nobody knows whether it was carried out, or will be.
    Unknown,
}

/// An action of a client on a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// The client.
    pub client: usize,
    /// The node that it asked.
    pub node: usize,
    /// The document.
    pub key: String,
    /// What it did.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
    /// When it was begun, from the beginning of the run on.
    pub begun: Duration,
    /// When its outcome was known.
    pub ended: Duration,
}

/// All operations of a run.
pub struct History {
    start: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Default for History {
    fn default() -> Self {
        History { start: Instant::now(), operations: Mutex::default() }
    }
}

impl History {
    /// Time since the beginning.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Notes an operation that has ended.
    pub fn note(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(operation);
    }

    /// Operations so far, in the order that they ended.
    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
