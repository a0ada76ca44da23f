//! Route of imports: one document a line, any number of lines.

use super::Client;
use super::call::{Body, Call};
use super::transport::decode;
use crate::document::ImportReport;
use crate::error::ClientError;
use bytes::Bytes;
use futures::Stream;
use reqwest::Method;
use std::error::Error;

/// How lines are imported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Every line names its document's id. Doing the import twice then leaves the same documents as doing it once (their
    /// versions count up), so the client may repeat it when its answer is lost.
    pub every_line_has_an_id: bool,
}

impl Client {
    /// Imports lines that are in memory: one [`NewDocument`](crate::NewDocument) as JSON a line.
    pub async fn import(&self, collection: &str, lines: Bytes, options: ImportOptions) -> Result<ImportReport, ClientError> {
        let call = import_call(collection).body(Body::Ndjson(lines)).repeatable(options.every_line_has_an_id);
        let report: ImportReport = self.inner.fetch(&call).await?;
        self.remember(collection, &report.token);
        Ok(report)
    }

    /// Imports lines as they come from a stream, such as `tokio_util::io::ReaderStream` over a reader, in one request without
    /// a limit of length or time. It is sent once only: what was stored when the connection breaks is unknown, and importing
    /// again is safe when every line names its document's id.
    pub async fn import_stream<S, E>(&self, collection: &str, lines: S) -> Result<ImportReport, ClientError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        let answer = self.inner.send_stream(&import_call(collection), reqwest::Body::wrap_stream(lines)).await?;
        let report: ImportReport = decode(&answer.body)?;
        self.remember(collection, &report.token);
        Ok(report)
    }
}

fn import_call(collection: &str) -> Call {
    Call::write(Method::POST, &["api", "v1", "collections", collection, "documents", "import"]).upload()
}
