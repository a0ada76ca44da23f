//! What a search sees of a partition: one moment of it, which does not change while it is searched.

use super::filter_cache::{FilterCache, MemoryBytes};
use super::segment::Segment;
use super::selected::{SegmentSelection, Selected};
use super::tail::TailBlock;
use super::text_index::TextSnapshot;
use ragged_raft::mutant::{self, Mutant};
use roaring::RoaringBitmap;
use std::sync::Arc;

/// A partition at one moment. Copying it copies references only.
#[derive(Clone)]
pub(super) struct View {
    /// Rows that are there, indexed or in the tail.
    pub(super) live: Arc<RoaringBitmap>,
    /// First rows of documents, also of documents that are gone. A document's rows are neighbours, so the last first row up to a row
    /// is its document's.
    pub(super) starts: Arc<RoaringBitmap>,
    /// Rows before it are known here.
    pub(super) next_row: u32,
    /// Rows before it are in the segments.
    pub(super) segments_until: u32,
    /// The vector segments.
    pub(super) segments: Vec<SegmentView>,
    /// Words and metadata of the rows before `text.until`.
    pub(super) text: TextSnapshot,
    /// Rows that are not in the segments or not in the text index.
    pub(super) tail: Vec<Arc<TailBlock>>,
    /// What filters have selected from it.
    pub(super) filters: FilterCache<Selected>,
}

/// A segment with what is left of it.
#[derive(Clone)]
pub(super) struct SegmentView {
    pub(super) segment: Arc<Segment>,
    /// Those of its rows that are there; none when all of them are.
    pub(super) live: Option<Arc<SegmentSelection>>,
}

impl SegmentView {
    pub(super) fn new(segment: Arc<Segment>, live: &RoaringBitmap) -> SegmentView {
        let left = segment.row_set().intersection_len(live);
        if left == segment.len() as u64 || mutant::is_on(Mutant::IgnoreDeletions) {
            return SegmentView { segment, live: None };
        }
        let live = SegmentSelection::of(&segment, live);
        SegmentView { segment, live: Some(Arc::new(live)) }
    }

    fn without(&self, removed: &RoaringBitmap) -> SegmentView {
        if self.segment.row_set().is_disjoint(removed) || mutant::is_on(Mutant::IgnoreDeletions) {
            return self.clone();
        }
        let gone = self.segment.positions_of(removed);
        let live = match &self.live {
            Some(live) => live.without(&gone),
            None => SegmentSelection::all(&self.segment).without(&gone),
        };
        SegmentView { segment: self.segment.clone(), live: Some(Arc::new(live)) }
    }
}

impl View {
    /// Forgets rows that are gone.
    pub(super) fn remove(&mut self, removed: &RoaringBitmap) {
        if removed.is_empty() {
            return;
        }
        *Arc::make_mut(&mut self.live) -= removed;
        for segment in &mut self.segments {
            *segment = segment.without(removed);
        }
    }

    /// Bytes that it holds, roughly.
    pub(super) fn memory_bytes(&self) -> usize {
        let bitmaps = self.live.serialized_size() + self.starts.serialized_size() + self.text.rows.serialized_size();
        let segments: usize = self
            .segments
            .iter()
            .map(|one| one.segment.memory_bytes() + one.live.as_ref().map_or(0, |live| live.memory_bytes()))
            .sum();
        bitmaps + segments + self.tail_bytes() + self.text.filters.memory_bytes() + self.filters.memory_bytes()
    }

    /// Bytes of mapped files that searches go through in any case, and of vectors, which they could read instead.
    pub(super) fn mapped_bytes(&self) -> (usize, usize) {
        let each = self.segments.iter().map(|one| one.segment.mapped_bytes());
        each.fold((self.text.mapped_bytes(), 0), |(needed, vectors), (more, others)| (needed + more, vectors + others))
    }

    /// Whether vectors are read from their files from now on.
    pub(super) fn read_vectors(&self, reads: bool) {
        self.segments.iter().for_each(|one| one.segment.read_vectors(reads));
    }

    /// Gives the pages of mapped files back.
    pub(super) fn give_back(&self) {
        self.segments.iter().for_each(|one| one.segment.give_back());
        self.text.give_back();
    }

    /// Bytes that the tail holds, roughly.
    pub(super) fn tail_bytes(&self) -> usize {
        self.tail.iter().map(|block| block.memory_bytes()).sum()
    }

    /// Rows that are in no vector segment yet, dead ones included.
    pub(super) fn tail_rows(&self) -> usize {
        self.tail.iter().map(|block| block.rows.len()).sum()
    }
}
