//! Routes about a node: health, metrics, its own description.

use super::Client;
use super::call::Call;
use super::transport::decode;
use crate::error::ClientError;
use crate::memory::MemoryReport;
use crate::status::{Health, Readiness};
use reqwest::Method;

impl Client {
    /// Whether a node's process is alive.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.inner.fetch(&Call::read(Method::GET, &["healthz"])).await
    }

    /// Whether a node can serve requests, and what it waits for when it cannot. A node that is not ready is an answer, not an
    /// error, and is not asked again.
    pub async fn ready(&self) -> Result<Readiness, ClientError> {
        let answer = self.inner.send_accepting(&Call::read(Method::GET, &["readyz"]), 503).await?;
        decode(&answer.body)
    }

    /// Where a node's memory is.
    pub async fn memory(&self) -> Result<MemoryReport, ClientError> {
        self.inner.fetch(&Call::read(Method::GET, &["api", "v1", "memory"])).await
    }

    /// The OpenAPI document of the API.
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.inner.fetch(&Call::read(Method::GET, &["api", "v1", "openapi.json"])).await
    }

    /// A node's metrics in Prometheus' text format.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let answer = self.inner.send(&Call::read(Method::GET, &["metrics"])).await?;
        String::from_utf8(answer.body.into()).map_err(|error| ClientError::Decode { detail: error.to_string() })
    }
}
