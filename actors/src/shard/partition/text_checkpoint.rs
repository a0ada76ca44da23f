//! The text half of a checkpoint: the text index, and how far it is.

use super::analyzer::Analyzer;
use super::checkpoint::{Step, compare};
use super::error::PartitionError;
use super::source::RowSource;
use super::text_index::{self, TextIndex, TextSnapshot};
use crate::shard::text_writers::TextWriters;
use ragged_raft::shard::rows::PartitionRow;
use roaring::RoaringBitmap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TEXT: &str = "text";

/// The text index of a partition, with what is needed to go on building it.
pub(super) struct TextCheckpoint {
    folder: PathBuf,
    language: String,
    index: TextIndex,
    writers: Arc<TextWriters>,
    until: u32,
    rows: Arc<RoaringBitmap>,
}

impl TextCheckpoint {
    /// Opens the text index of a checkpoint's folder. What is damaged, or belongs to another past of the rows, is deleted, and starts from nothing; whether
    /// that has happened comes second.
    pub(super) fn open(
        checkpoint: &Path,
        language: &str,
        analyzer: &Analyzer,
        writers: Arc<TextWriters>,
        live: &RoaringBitmap,
        counters: PartitionRow,
    ) -> Result<(TextCheckpoint, bool), PartitionError> {
        let folder = checkpoint.join(TEXT);
        let (index, snapshot, is_rebuilt) = match open_text(&folder, language, analyzer, live, counters) {
            Ok((index, snapshot)) => (index, snapshot, false),
            Err(fault) if !fault.is_damage() => return Err(fault),
            Err(fault) => {
                tracing::warn!(folder = %checkpoint.display(), %fault, "the text index is built again from the rows");
                text_index::remove(&folder)?;
                let index = TextIndex::open(&folder, language, analyzer)?;
                let (snapshot, _) = index.snapshot()?;
                (index, snapshot, true)
            }
        };
        let language = language.to_owned();
        Ok((TextCheckpoint { folder, language, index, writers, until: snapshot.until, rows: snapshot.rows }, is_rebuilt))
    }

    /// Deletes everything and starts from nothing.
    pub(super) fn restart(&mut self, analyzer: &Analyzer) -> Result<(), PartitionError> {
        text_index::remove(&self.folder)?;
        self.index = TextIndex::open(&self.folder, &self.language, analyzer)?;
        self.until = 0;
        self.rows = Arc::default();
        Ok(())
    }

    /// Rows before it are in the text index.
    pub(super) fn until(&self) -> u32 {
        self.until
    }

    /// The text index and the first rows of its documents.
    pub(super) fn snapshot(&self) -> Result<(TextSnapshot, RoaringBitmap), PartitionError> {
        self.index.snapshot()
    }

    /// Whether there is something to do when no rows come.
    pub(super) fn could_settle(&self) -> Result<bool, PartitionError> {
        self.index.could_settle()
    }

    /// Brings the text index forward. When it fails, the index is as it was or as it should be.
    pub(super) fn advance(&mut self, source: &RowSource, step: &Step<'_>) -> Result<(), PartitionError> {
        let mut dead = self.rows.as_ref() - step.live;
        dead.remove_range(step.known_until..);
        let until = step.until.max(self.until);
        if until == self.until && dead.is_empty() && !(step.is_idle && self.index.could_settle()?) {
            return Ok(());
        }
        let writing = self.writers.begin();
        let rows = self.until..until;
        let advanced = self.index.advance(source, &writing, rows, &dead, step.counters.changed_at, step.is_idle);
        drop(writing);
        // Also after a failure: what was committed before it must not be added again.
        let (snapshot, _) = self.index.snapshot()?;
        self.until = snapshot.until;
        self.rows = snapshot.rows;
        advanced
    }
}

fn open_text(
    folder: &Path,
    language: &str,
    analyzer: &Analyzer,
    live: &RoaringBitmap,
    counters: PartitionRow,
) -> Result<(TextIndex, TextSnapshot), PartitionError> {
    let text = TextIndex::open(folder, language, analyzer)?;
    let (snapshot, _) = text.snapshot()?;
    compare(folder, snapshot.until, snapshot.changed_at, &snapshot.rows, live, counters)?;
    Ok((text, snapshot))
}
