//! The indexes as they are on disk: made from the rows, ahead of nothing, and made again when they turn out wrong.

use super::analyzer::Analyzer;
use super::error::PartitionError;
use super::files;
use super::segment::Segment;
use super::source::RowSource;
use super::text_checkpoint::TextCheckpoint;
use super::text_index::TextSnapshot;
use super::vector_checkpoint::VectorCheckpoint;
use crate::shard::text_writers::TextWriters;
use ragged_raft::shard::rows::PartitionRow;
use roaring::RoaringBitmap;
use std::path::Path;
use std::sync::Arc;

/// The segments and the text index of a partition. Each is as far as it is: what only one of them has is not in the checkpoint yet.
pub(super) struct Checkpoint {
    vectors: VectorCheckpoint,
    text: TextCheckpoint,
}

/// What one step is to do.
pub(super) struct Step<'a> {
    /// The partition's counters.
    pub(super) counters: PartitionRow,
    /// Rows before it are to be indexed.
    pub(super) until: u32,
    /// Rows that are there, as far as is known.
    pub(super) live: &'a RoaringBitmap,
    /// Rows before it are known: those that are not in `live` are gone.
    pub(super) known_until: u32,
    /// No rows come at present: what is small is joined, what is dead is dropped.
    pub(super) is_idle: bool,
}

/// What a step did.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Advanced {
    /// Rows that were added.
    pub(super) rows: u64,
    /// Segments that were replaced.
    pub(super) replaced: usize,
}

impl Checkpoint {
    /// Opens what is in the folder. What is damaged, or belongs to another past of the rows than `live` and `counters`, is deleted, and
    /// starts from nothing; the number of parts that this happened to comes second.
    pub(super) fn open(
        folder: &Path,
        language: &str,
        analyzer: &Analyzer,
        text_writers: Arc<TextWriters>,
        dimension: usize,
        live: &RoaringBitmap,
        counters: PartitionRow,
    ) -> Result<(Checkpoint, u64), PartitionError> {
        std::fs::create_dir_all(folder).map_err(PartitionError::file(folder))?;
        let (vectors, are_vectors_rebuilt) = VectorCheckpoint::open(folder, dimension, live, counters)?;
        let (text, is_text_rebuilt) = TextCheckpoint::open(folder, language, analyzer, text_writers, live, counters)?;
        Ok((Checkpoint { vectors, text }, u64::from(are_vectors_rebuilt) + u64::from(is_text_rebuilt)))
    }

    /// Deletes everything and starts from nothing.
    pub(super) fn restart(&mut self, analyzer: &Analyzer) -> Result<(), PartitionError> {
        self.vectors.restart()?;
        self.text.restart(analyzer)
    }

    /// Rows before it are in both indexes.
    pub(super) fn until(&self) -> u32 {
        self.segments_until().min(self.text.until())
    }

    /// Rows before it are in the segments.
    pub(super) fn segments_until(&self) -> u32 {
        self.vectors.until()
    }

    /// The segments.
    pub(super) fn segments(&self) -> &[Arc<Segment>] {
        self.vectors.segments()
    }

    /// The text index and the first rows of its documents.
    pub(super) fn text_snapshot(&self) -> Result<(TextSnapshot, RoaringBitmap), PartitionError> {
        self.text.snapshot()
    }

    /// Brings both indexes forward, side by side: words are joined by one thread, which would leave cores idle at the end of an import. When it fails, each
    /// index is as it was or as it should be.
    pub(super) fn advance(&mut self, source: &RowSource, step: &Step<'_>) -> Result<Advanced, PartitionError> {
        let Checkpoint { vectors, text } = self;
        std::thread::scope(|scope| {
            let text = scope.spawn(|| text.advance(source, step));
            let advanced = vectors.advance(source, step);
            text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            advanced
        })
    }

    /// Deletes segments that have been replaced; searches that still use them keep what they have open.
    pub(super) fn remove_replaced(&self) -> Result<(), PartitionError> {
        self.vectors.remove_replaced()
    }

    /// Whether there is something to do when no rows come.
    pub(super) fn could_settle(&self, step: &Step<'_>) -> bool {
        self.text.could_settle().is_ok_and(|could| could) || self.vectors.could_settle(step)
    }
}

/// Refuses what belongs to another past of the rows: a checkpoint reaches as far as the rows at most, and has all of them that it says.
pub(super) fn compare(
    path: &Path,
    until: u32,
    changed_at: u64,
    has: &RoaringBitmap,
    live: &RoaringBitmap,
    counters: PartitionRow,
) -> Result<(), PartitionError> {
    if until > counters.next_row.0 || changed_at > counters.changed_at {
        return Err(PartitionError::damaged(path, "it is ahead of the rows"));
    }
    let mut expected = live.clone();
    expected.remove_range(until..);
    if expected.is_subset(has) { Ok(()) } else { Err(PartitionError::damaged(path, "it lacks rows that are there")) }
}

/// Deletes a partition's checkpoint.
pub(super) fn remove(folder: &Path) -> std::io::Result<()> {
    files::remove_folder(folder)
}
