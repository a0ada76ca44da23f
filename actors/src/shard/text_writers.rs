//! The memory of those that write indexes of words: tantivy keeps what it is told of rows until it has so much of them.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Writers at once at most: that of the indexer, and those of partitions that are being loaded.
const WRITERS_AT_ONCE: usize = 1 + crate::engine::LOADS_AT_ONCE;

/// The writers of a node.
pub struct TextWriters {
    bytes_each: usize,
    writing: AtomicUsize,
}

/// Somebody writes, for as long as this lives.
pub(super) struct Writing<'a> {
    writers: &'a TextWriters,
}

impl TextWriters {
    /// Nobody writes yet; each may have so many bytes.
    pub fn new(bytes_each: usize) -> TextWriters {
        TextWriters { bytes_each, writing: AtomicUsize::new(0) }
    }

    /// Begins to write.
    pub(super) fn begin(&self) -> Writing<'_> {
        self.writing.fetch_add(1, Ordering::Relaxed);
        Writing { writers: self }
    }

    /// Bytes that those who write may have at this moment.
    pub fn bytes(&self) -> usize {
        self.writing.load(Ordering::Relaxed) * self.bytes_each
    }

    /// Bytes that they may have at most.
    pub fn bytes_max(&self) -> usize {
        WRITERS_AT_ONCE * self.bytes_each
    }
}

impl Writing<'_> {
    /// Bytes that the writer may have.
    pub(super) fn bytes(&self) -> usize {
        self.writers.bytes_each
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.writers.writing.fetch_sub(1, Ordering::Relaxed);
    }
}
