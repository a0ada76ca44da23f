//! Sends batches of lines and collects what became of them.

use super::batch::{Batch, Batches, Entry};
use crate::cli::error::CliError;
use bytes::Bytes;
use futures::StreamExt;
use ragged_client::{Client, ClientError, ImportFailure, ImportOptions, ImportReport};
use serde::Serialize;
use std::io;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Failures that are kept with their reasons; further ones are counted.
pub const FAILURES_KEPT: usize = 1000;

/// What became of an import; machines get it as it is.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Documents stored.
    pub accepted: u64,
    /// Lines that were refused.
    pub failed_count: u64,
    /// The first of them, by their numbers in the file.
    pub failed: Vec<ImportFailure>,
    /// Requests that were acknowledged.
    pub batches: u64,
    /// Number of the last line that is settled; the import may go on after it.
    pub last_line: u64,
    /// Names the last write.
    pub token: String,
    /// Seconds.
    pub took_s: f64,
}

/// A batch that the node has acknowledged.
#[derive(Debug, Serialize)]
pub struct Acknowledged {
    /// Numbers of the lines that the request held, as a range: blank lines and refused ones are among them.
    pub first_line: u64,
    /// The last of them.
    pub last_line: u64,
    /// Documents stored.
    pub accepted: u64,
    /// Lines that were refused.
    pub failed_count: u64,
    /// The first of them.
    pub failed: Vec<ImportFailure>,
    /// Names the write, for searches that must see it; empty when nothing was stored.
    pub token: String,
    /// How many lines of earlier batches were refused.
    #[serde(skip)]
    pub refused_before: u64,
}

/// Called for every batch that was acknowledged; its error ends the import.
pub type OnBatch<'a> = Box<dyn FnMut(&Acknowledged) -> Result<(), CliError> + Send + 'a>;

/// Sends lines to a collection.
pub struct Importer<'a> {
    /// The node.
    pub client: Client,
    /// Name of the collection.
    pub collection: String,
    /// Lines of a request at most.
    pub batch_lines: usize,
    /// Requests at once.
    pub parallel: usize,
    /// Called in the order of the file.
    pub on_batch: OnBatch<'a>,
}

impl Importer<'_> {
    /// Sends all lines. When it is cut off, the error says up to which line everything is settled.
    pub async fn run(&mut self, entries: impl Iterator<Item = io::Result<Entry>> + Send + 'static) -> Result<Summary, CliError> {
        let began = Instant::now();
        let mut summary = Summary::default();
        let outcome = self.send(entries, &mut summary).await;
        summary.took_s = began.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => Ok(summary),
            Err(CliError::BrokenPipe) => Err(CliError::BrokenPipe),
            Err(cause) if summary.last_line == 0 => Err(cause),
            Err(cause) => {
                let done = format!(
                    "stopped after line {} ({} documents are stored); to go on: --from-line {}",
                    summary.last_line,
                    summary.accepted,
                    summary.last_line + 1
                );
                Err(CliError::CutOff { done, cause: Box::new(cause) })
            }
        }
    }

    async fn send(
        &mut self,
        entries: impl Iterator<Item = io::Result<Entry>> + Send + 'static,
        summary: &mut Summary,
    ) -> Result<(), CliError> {
        let batches = produce(Batches::new(entries, self.batch_lines));
        let client = &self.client;
        let collection = &self.collection;
        let sending = batches.map(|batch| async move {
            let batch = batch.map_err(|source| CliError::io("cannot read the lines", source))?;
            settle(client, collection, batch).await
        });
        // In the order of the file, so that "settled up to line N" is true.
        let mut settled = sending.buffered(self.parallel);
        while let Some(batch) = settled.next().await {
            let mut batch = batch?;
            batch.refused_before = summary.failed_count;
            summary.add(&batch);
            (self.on_batch)(&batch)?;
        }
        Ok(())
    }
}

/// Reads on a thread of its own: reading and unpacking block.
fn produce<I>(batches: Batches<I>) -> ReceiverStream<io::Result<Batch>>
where
    I: Iterator<Item = io::Result<Entry>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(2);
    std::thread::spawn(move || {
        for batch in batches {
            let is_last = batch.is_err();
            if sender.blocking_send(batch).is_err() || is_last {
                return; // nobody listens any more, or the file cannot be read further
            }
        }
    });
    ReceiverStream::new(receiver)
}

async fn settle(client: &Client, collection: &str, batch: Batch) -> Result<Acknowledged, CliError> {
    let Batch { body, numbers, mut refused, every_line_has_an_id, last_line } = batch;
    let report = if numbers.is_empty() {
        ImportReport::default()
    } else {
        client.import(collection, Bytes::from(body), ImportOptions { every_line_has_an_id }).await?
    };
    let failed_count = report.failed_count + refused.len() as u64;
    for mut failure in report.failed {
        let index = usize::try_from(failure.line).ok().and_then(|line| line.checked_sub(1));
        let number = index.and_then(|index| numbers.get(index)).copied();
        failure.line = number.ok_or_else(|| {
            CliError::Client(ClientError::Decode { detail: format!("the node names line {} of {}", failure.line, numbers.len()) })
        })?;
        refused.push(failure);
    }
    refused.sort_by_key(|failure| failure.line);
    let first_line = numbers.first().copied().into_iter().chain(refused.first().map(|failure| failure.line)).min();
    let first_line = first_line.unwrap_or(last_line);
    let ImportReport { accepted, token, .. } = report;
    Ok(Acknowledged { first_line, last_line, accepted, failed_count, failed: refused, token, refused_before: 0 })
}

impl Summary {
    fn add(&mut self, batch: &Acknowledged) {
        self.accepted += batch.accepted;
        self.failed_count += batch.failed_count;
        let room = FAILURES_KEPT - self.failed.len();
        self.failed.extend(batch.failed.iter().take(room).cloned());
        self.batches += 1;
        self.last_line = batch.last_line;
        if !batch.token.is_empty() {
            self.token.clone_from(&batch.token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::test_node::{self, Request};
    use std::sync::{Arc, Mutex};

    fn importer(endpoint: &str, acknowledged: Arc<Mutex<Vec<(u64, u64)>>>) -> Importer<'static> {
        Importer {
            client: Client::builder().endpoint(endpoint).retry(ragged_client::RetryPolicy::never()).build().unwrap(),
            collection: "c".to_owned(),
            batch_lines: 2,
            parallel: 2,
            on_batch: Box::new(move |batch| {
                acknowledged.lock().unwrap().push((batch.first_line, batch.last_line));
                Ok(())
            }),
        }
    }

    fn entries(lines: &[&str]) -> impl Iterator<Item = io::Result<Entry>> + Send + 'static {
        let entry = |(index, line): (usize, &&str)| Ok(Entry::Line { number: index as u64 + 1, text: line.as_bytes().to_vec() });
        lines.iter().enumerate().map(entry).collect::<Vec<_>>().into_iter()
    }

    /// Refuses every line with `bad` in it, as a node does: by its number in the body.
    fn report(request: Request) -> (u16, String) {
        let lines: Vec<&str> = request.body.lines().collect();
        let bad = lines.iter().enumerate().filter(|(_, line)| line.contains("bad"));
        let failed: Vec<ImportFailure> = bad
            .map(|(index, _)| ImportFailure { line: index as u64 + 1, code: "malformed_json".into(), detail: "d".into() })
            .collect();
        let failed_count = failed.len() as u64;
        let report = ImportReport { accepted: lines.len() as u64 - failed_count, failed, failed_count, token: "t".into() };
        (200, serde_json::to_string(&report).unwrap())
    }

    #[tokio::test]
    async fn failures_have_their_line_in_the_file_and_batches_are_acknowledged_in_its_order() {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let mut importer = importer(&test_node::start(report), Arc::clone(&acknowledged));
        let summary = importer.run(entries(&["{}", "", "{}", "bad 4", "", "{}", "bad 7"])).await.unwrap();
        assert_eq!((summary.accepted, summary.failed_count, summary.last_line), (3, 2, 7));
        assert_eq!(summary.failed.iter().map(|failure| failure.line).collect::<Vec<_>>(), [4, 7]);
        assert_eq!(*acknowledged.lock().unwrap(), [(1, 3), (4, 6), (7, 7)]);
        assert_eq!(summary.token, "t");
    }

    #[tokio::test]
    async fn an_import_that_is_cut_off_says_where_to_go_on() {
        let endpoint = test_node::start(|request| {
            if request.body.contains("stop") { test_node::problem(404, "collection_not_found") } else { report(request) }
        });
        let lines = ["{}", "{}", "{}", "{}", "{\"id\":\"stop\"}", "{}", "{}"];
        let error = importer(&endpoint, Arc::default()).run(entries(&lines)).await.unwrap_err();
        assert_eq!(error.exit(), crate::cli::error::Exit::NotFound);
        assert!(error.to_string().contains("after line 4 (4 documents are stored); to go on: --from-line 5"), "{error}");
        let error = importer(&endpoint, Arc::default()).run(entries(&lines[4..])).await.unwrap_err();
        assert!(matches!(error, CliError::Client(_)), "{error}");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_further_is_an_error() {
        let broken = entries(&["{}", "{}"]).chain([Err(io::Error::other("torn"))]);
        let error = importer(&test_node::start(report), Arc::default()).run(broken).await.unwrap_err();
        assert!(error.to_string().contains("torn") && error.to_string().contains("--from-line 3"), "{error}");
    }
}
