//! Health of a node.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `/healthz` and `/livez`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// Version of the node.
    pub version: String,
}

/// Answer of `/readyz`: 200 when ready, 503 when not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// Whether requests can be served.
    pub ready: bool,
    /// One entry for each part that is not ready; empty when ready.
    pub waiting_for: Vec<NotReady>,
    /// Shards of the node that are not well, though it serves: their replica here is being filled, or has no leader.
    #[serde(default)]
    pub ailing_shards: Vec<NotReady>,
}

/// A part of the node that cannot serve yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NotReady {
    /// `meta`, `shard 7`, `embedding`.
    pub part: String,
    /// Why.
    pub reason: String,
}
