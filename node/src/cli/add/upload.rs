//! Sends documents in batches.

use super::walk::Found;
use super::{Failure, Summary, read};
use crate::cli::error::CliError;
use futures::StreamExt;
use indicatif::ProgressBar;
use ragged_client::{Client, ClientError, NewDocument, UploadOptions, UploadReply, UploadedDocuments};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Documents of a request at most.
const BATCH_DOCUMENTS: usize = 64;

/// Bytes of the texts of a request, unless a single one is longer.
const BATCH_BYTES: usize = 2 << 20;

/// Sends documents to a collection.
pub struct Uploader {
    /// The node.
    pub client: Client,
    /// Name of the collection.
    pub collection: String,
    /// Requests at once.
    pub parallel: usize,
    /// Counts files.
    pub bar: ProgressBar,
}

/// Documents that are sent in one request, with the files that they come from.
#[derive(Debug, Default)]
struct Batch {
    documents: Vec<NewDocument>,
    paths: Vec<String>,
    bytes: usize,
    failed: Vec<Failure>,
}

/// What became of a batch.
#[derive(Debug, Default)]
struct Settled {
    added: u64,
    chunks: u64,
    failed: Vec<Failure>,
    token: String,
}

impl Uploader {
    /// Reads and sends all files. What became of them is in the summary, also when this ends with an error.
    pub async fn run(&self, files: Vec<Found>, summary: &mut Summary) -> Result<(), CliError> {
        let mut settled = produce(files).map(|batch| self.settle(batch)).buffer_unordered(self.parallel);
        while let Some(batch) = settled.next().await {
            let batch = batch?;
            self.bar.inc(batch.added + batch.failed.len() as u64);
            summary.added += batch.added;
            summary.chunks += batch.chunks;
            summary.failed.extend(batch.failed);
            if !batch.token.is_empty() {
                summary.token = batch.token;
            }
        }
        // Batches end in any order; what people and machines read has one.
        summary.failed.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(())
    }

    async fn settle(&self, batch: Batch) -> Result<Settled, CliError> {
        let Batch { documents, paths, failed, .. } = batch;
        let mut settled = Settled { failed, ..Settled::default() };
        if documents.is_empty() {
            return Ok(settled);
        }
        match self.upload(&documents).await {
            Ok(uploaded) => settled.add(&uploaded),
            // None of the batch is stored when one of it is wrong: each for itself, then.
            Err(error) if concerns_content(&error) => {
                for (document, path) in documents.into_iter().zip(paths) {
                    match self.upload(std::slice::from_ref(&document)).await {
                        Ok(uploaded) => settled.add(&uploaded),
                        Err(error) if concerns_content(&error) => settled.failed.push(failure(path, &error)),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(settled)
    }

    async fn upload(&self, documents: &[NewDocument]) -> Result<UploadedDocuments, ClientError> {
        // A key of its own for each request lets the client repeat it when the answer is lost.
        let options = UploadOptions { idempotency_key: Some(format!("add-{}", ulid::Ulid::new())), no_wait: false };
        match self.client.upload(&self.collection, documents, options).await? {
            UploadReply::Stored(stored) => Ok(stored),
            UploadReply::Accepted(job) => {
                Err(ClientError::Decode { detail: format!("the upload was to be waited for, but became job {}", job.job) })
            }
        }
    }
}

impl Settled {
    fn add(&mut self, uploaded: &UploadedDocuments) {
        self.added += uploaded.documents.len() as u64;
        self.chunks += uploaded.documents.iter().map(|document| u64::from(document.chunks)).sum::<u64>();
        self.token.clone_from(&uploaded.token);
    }
}

/// Whether another document might fare better.
fn concerns_content(error: &ClientError) -> bool {
    matches!(error.status(), Some(400 | 413 | 422))
}

fn failure(path: String, error: &ClientError) -> Failure {
    let code = error.code().unwrap_or("failed").to_owned();
    let detail = match error {
        ClientError::Problem(problem) => problem.detail.clone(),
        other => other.to_string(),
    };
    Failure { path, code, detail }
}

/// Reads files on a thread of its own, a few batches ahead.
fn produce(files: Vec<Found>) -> ReceiverStream<Batch> {
    let (sender, receiver) = mpsc::channel(2);
    std::thread::spawn(move || {
        let documents = files.into_iter().map(|found| (found.path.display().to_string(), read::document(&found)));
        for batch in Batches::new(documents) {
            if sender.blocking_send(batch).is_err() {
                return; // nobody listens any more
            }
        }
    });
    ReceiverStream::new(receiver)
}

type Read = (String, Result<NewDocument, Failure>);

/// Cuts documents into batches.
struct Batches<I: Iterator<Item = Read>> {
    documents: std::iter::Peekable<I>,
}

impl<I: Iterator<Item = Read>> Batches<I> {
    fn new(documents: I) -> Batches<I> {
        Batches { documents: documents.peekable() }
    }
}

impl<I: Iterator<Item = Read>> Iterator for Batches<I> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        self.documents.peek()?;
        let mut batch = Batch::default();
        while let Some((path, document)) = self.documents.next_if(|(_, document)| batch.has_room(document)) {
            match document {
                Ok(document) => {
                    batch.bytes += document.text.len();
                    batch.documents.push(document);
                    batch.paths.push(path);
                }
                Err(failure) => batch.failed.push(failure),
            }
        }
        Some(batch)
    }
}

impl Batch {
    fn has_room(&self, next: &Result<NewDocument, Failure>) -> bool {
        let Ok(next) = next else { return self.failed.len() < BATCH_DOCUMENTS };
        let fits = self.bytes + next.text.len() <= BATCH_BYTES && self.documents.len() < BATCH_DOCUMENTS;
        self.documents.is_empty() || fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::test_node;

    #[test]
    fn batches_are_bounded_by_count_and_bytes_and_keep_the_order() {
        let document = |bytes: usize| NewDocument { text: "x".repeat(bytes), ..NewDocument::default() };
        let unreadable = Failure { path: "f".into(), code: "c".into(), detail: "d".into() };
        let mut read: Vec<Read> = vec![("big".into(), Ok(document(3 * BATCH_BYTES)))];
        read.extend((0..BATCH_DOCUMENTS + 1).map(|index| (index.to_string(), Ok(document(1)))));
        read.push(("f".into(), Err(unreadable)));
        read.extend(["half", "other half"].map(|path| (path.into(), Ok(document(BATCH_BYTES / 2)))));
        let batches: Vec<Batch> = Batches::new(read.into_iter()).collect();
        let sizes: Vec<usize> = batches.iter().map(|batch| batch.documents.len()).collect();
        assert_eq!(sizes, [1, BATCH_DOCUMENTS, 2, 1]);
        assert_eq!(batches[2].failed.len(), 1);
        let paths: Vec<&String> = batches.iter().flat_map(|batch| &batch.paths).collect();
        assert_eq!(paths.len(), BATCH_DOCUMENTS + 4);
        assert_eq!((paths[0].as_str(), paths[1].as_str(), paths[2].as_str()), ("big", "0", "1"));
    }

    fn files(folder: &std::path::Path, names: &[&str]) -> Vec<Found> {
        let found = |name: &&str| {
            let path = folder.join(name);
            std::fs::write(&path, format!("text of {name}")).unwrap();
            Found { path, id: name.to_string(), format: ragged_client::Format::Plain }
        };
        names.iter().map(found).collect()
    }

    async fn upload(endpoint: &str, files: Vec<Found>) -> (Result<(), CliError>, Summary) {
        let client = Client::builder().endpoint(endpoint).retry(ragged_client::RetryPolicy::never()).build().unwrap();
        let uploader = Uploader { client, collection: "c".to_owned(), parallel: 2, bar: ProgressBar::hidden() };
        let mut summary = Summary::default();
        (uploader.run(files, &mut summary).await, summary)
    }

    #[tokio::test]
    async fn one_wrong_document_does_not_keep_out_the_others() {
        let endpoint = test_node::start(|request| {
            let upload: ragged_client::NewDocuments = serde_json::from_str(&request.body).unwrap();
            if upload.documents.iter().any(|document| document.text.contains("bad")) {
                return test_node::problem(400, "invalid_document");
            }
            let stored =
                |document: &NewDocument| format!(r#"{{"id": "{}", "chunks": 2, "version": 1}}"#, document.id.as_deref().unwrap());
            let documents: Vec<String> = upload.documents.iter().map(stored).collect();
            (200, format!(r#"{{"documents": [{}], "token": "t"}}"#, documents.join(",")))
        });
        let folder = tempfile::tempdir().unwrap();
        let (outcome, summary) = upload(&endpoint, files(folder.path(), &["a", "bad", "c"])).await;
        outcome.unwrap();
        assert_eq!((summary.added, summary.chunks, summary.token.as_str()), (2, 4, "t"));
        assert_eq!(summary.failed.len(), 1);
        assert!(summary.failed[0].path.ends_with("/bad") && summary.failed[0].code == "invalid_document");
    }

    #[tokio::test]
    async fn what_would_go_wrong_again_ends_it() {
        for (status, code) in [(404, "collection_not_found"), (401, "invalid_key"), (500, "internal")] {
            let endpoint = test_node::start(move |_| test_node::problem(status, code));
            let folder = tempfile::tempdir().unwrap();
            let (outcome, summary) = upload(&endpoint, files(folder.path(), &["a", "b"])).await;
            assert!(matches!(outcome, Err(CliError::Client(_))), "{status}");
            assert_eq!((summary.added, summary.failed.len()), (0, 0));
        }
    }
}
