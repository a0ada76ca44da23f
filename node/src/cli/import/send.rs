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
            let (mut batch, token) = batch?;
            batch.refused_before = summary.failed_count;
            summary.add(&batch, token);
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

async fn settle(client: &Client, collection: &str, batch: Batch) -> Result<(Acknowledged, String), CliError> {
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
    let accepted = report.accepted;
    Ok((Acknowledged { first_line, last_line, accepted, failed_count, failed: refused, refused_before: 0 }, report.token))
}

impl Summary {
    fn add(&mut self, batch: &Acknowledged, token: String) {
        self.accepted += batch.accepted;
        self.failed_count += batch.failed_count;
        let room = FAILURES_KEPT - self.failed.len();
        self.failed.extend(batch.failed.iter().take(room).cloned());
        self.batches += 1;
        self.last_line = batch.last_line;
        if !token.is_empty() {
            self.token = token;
        }
    }
}
