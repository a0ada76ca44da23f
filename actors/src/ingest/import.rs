//! An import: a stream of documents of any length, in bounded memory.

use crate::account_seconds::Account;
use crate::error::ServiceError;
use crate::ingest::document::UploadDocument;
use crate::ingest::pipeline::Pipeline;
use crate::token::WriteToken;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::meta::collection::Collection;
use ragged_raft::mutant::{self, Mutant};
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Documents of a batch at most.
const BATCH_DOCUMENTS: usize = 128;
/// Bytes of text that close a batch.
const BATCH_BYTES: usize = 256 << 10;
/// Batches that are on their way at once: enough to keep the embedder busy while others are written.
const BATCHES_AT_ONCE: usize = 4;
/// Refusals that are listed at most.
const REFUSALS_LISTED_MAX: usize = 1000;

/// An import in progress. Dropping it stops it; what was stored until then stays.
pub struct Import {
    account: Account,
    pipeline: Pipeline,
    collection: Arc<Collection>,
    batch: Vec<(u64, UploadDocument)>,
    batch_bytes: usize,
    running: JoinSet<Result<BatchOutcome, ServiceError>>,
    /// Ends when the last batch that was sent has been stored: batches are stored in their order, so that of two lines with one id the later wins.
    stored_before: Option<oneshot::Receiver<()>>,
    outcome: ImportOutcome,
}

/// A document that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportRefusal {
    /// Its line, from 1.
    pub line: u64,
    /// Stable code.
    pub code: String,
    /// What was wrong.
    pub detail: String,
}

/// What became of an import.
#[derive(Debug, Clone, Default)]
pub struct ImportOutcome {
    /// Documents stored.
    pub accepted: u64,
    /// The first refusals.
    pub failed: Vec<ImportRefusal>,
    /// How many refusals there were.
    pub failed_count: u64,
    /// Names the writes; none when nothing was accepted.
    pub token: WriteToken,
}

#[derive(Default)]
struct BatchOutcome {
    accepted: u64,
    refused: Vec<ImportRefusal>,
    token: WriteToken,
}

impl Import {
    /// An import into this collection, on somebody's account.
    pub fn new(account: Account, pipeline: Pipeline, collection: Arc<Collection>) -> Self {
        Import {
            account,
            pipeline,
            collection,
            batch: Vec::new(),
            batch_bytes: 0,
            running: JoinSet::new(),
            stored_before: None,
            outcome: ImportOutcome::default(),
        }
    }

    /// Takes a document; waits while too many are on their way. An error ends the import: the node or the collection is at fault, not the document.
    pub async fn push(&mut self, line: u64, document: UploadDocument) -> Result<(), ServiceError> {
        if let Err(refusal) = document.check(&self.collection, "document") {
            self.refuse(line, refusal.code, &refusal.detail);
            return Ok(());
        }
        self.batch_bytes += document.text.len();
        self.batch.push((line, document));
        if self.batch.len() >= BATCH_DOCUMENTS || self.batch_bytes >= BATCH_BYTES {
            self.send_batch().await?;
        }
        Ok(())
    }

    /// Notes a line that is no document.
    pub fn refuse(&mut self, line: u64, code: &str, detail: &str) {
        self.outcome.note(ImportRefusal { line, code: code.to_owned(), detail: detail.to_owned() });
    }

    /// Waits until everything is stored.
    pub async fn finish(mut self) -> Result<ImportOutcome, ServiceError> {
        self.send_batch().await?;
        if mutant::is_on(Mutant::ImportAnswersEarly) {
            return Ok(self.outcome);
        }
        while let Some(done) = self.running.join_next().await {
            self.outcome.add(done)?;
        }
        self.outcome.failed.sort_by_key(|refusal| refusal.line);
        Ok(self.outcome)
    }

    async fn send_batch(&mut self) -> Result<(), ServiceError> {
        while self.running.len() >= BATCHES_AT_ONCE
            && let Some(done) = self.running.join_next().await
        {
            self.outcome.add(done)?;
        }
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        if !batch.is_empty() {
            if mutant::is_on(Mutant::ImportAnswersEarly) {
                self.outcome.accepted += batch.len() as u64;
            }
            let (account, pipeline, collection) = (self.account.clone(), self.pipeline.clone(), self.collection.clone());
            let (stored, stored_after) = oneshot::channel();
            let turn = Turn { before: self.stored_before.replace(stored_after), _stored: stored };
            self.running.spawn(tracing::Instrument::in_current_span(run_batch(account, pipeline, collection, batch, turn)));
        }
        Ok(())
    }
}

impl ImportOutcome {
    fn note(&mut self, refusal: ImportRefusal) {
        self.failed_count += 1;
        if self.failed.len() < REFUSALS_LISTED_MAX {
            self.failed.push(refusal);
        }
    }

    fn add(&mut self, done: Result<Result<BatchOutcome, ServiceError>, tokio::task::JoinError>) -> Result<(), ServiceError> {
        let done = done.map_err(|fault| ServiceError::internal(format!("a batch failed: {fault}")))??;
        self.accepted += done.accepted;
        self.token.merge(&done.token);
        done.refused.into_iter().for_each(|refusal| self.note(refusal));
        Ok(())
    }
}

/// A batch's place in the order of storing: it comes after `before`, and is done when dropped.
struct Turn {
    before: Option<oneshot::Receiver<()>>,
    _stored: oneshot::Sender<()>,
}

async fn run_batch(
    account: Account,
    pipeline: Pipeline,
    collection: Arc<Collection>,
    batch: Vec<(u64, UploadDocument)>,
    turn: Turn,
) -> Result<BatchOutcome, ServiceError> {
    let mut outcome = BatchOutcome::default();
    let (lines, documents): (Vec<u64>, Vec<UploadDocument>) = batch.into_iter().unzip();
    let mut chunked = Vec::with_capacity(documents.len());
    for (line, result) in lines.into_iter().zip(pipeline.chunk(&collection, documents).await?) {
        match result {
            Ok(document) => chunked.push(document),
            Err(refusal) => outcome.refused.push(ImportRefusal { line, code: refusal.code.into(), detail: refusal.detail }),
        }
    }
    let prepared = pipeline.embed(&account, &collection, chunked).await?;
    if let Some(before) = turn.before {
        let _ = before.await; // ends by being dropped
    }
    if !prepared.is_empty() {
        let uploaded = pipeline.store(&collection, prepared, None).await?;
        failpoints::hit(Point::ImportBatchStored);
        outcome.accepted = uploaded.documents.len() as u64;
        outcome.token = uploaded.token;
    }
    Ok(outcome)
}
