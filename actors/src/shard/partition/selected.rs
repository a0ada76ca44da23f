//! Rows that a filter has selected, as every part of a search needs them.
//!
//! What is selected from the rows of the text index is kept with the moment of that index: it stays right while rows go. What is selected from the
//! tail, and which rows are still there, belongs to one view.

use super::dense::DenseBits;
use super::error::PartitionError;
use super::filter_cache::MemoryBytes;
use super::search_metrics::SearchMetrics;
use super::segment::Segment;
use super::selection::select;
use super::view::{SegmentView, View};
use crate::filter::Filter;
use crate::gpu_rows::AllowedKey;
use ragged_kernels::ApproximateIndex;
use ragged_kernels::approximate::Mask;
use roaring::RoaringBitmap;
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

/// Some rows of a segment.
pub(super) struct SegmentSelection {
    positions: RoaringBitmap,
    /// Made when it is asked for.
    mask: OnceLock<Mask>,
    /// The same as a bit for each row, for a GPU. Made when it is asked for.
    bits: OnceLock<DenseBits>,
}

impl SegmentSelection {
    /// Those of a segment's rows that are in `rows`.
    pub(super) fn of(segment: &Segment, rows: &RoaringBitmap) -> SegmentSelection {
        SegmentSelection { positions: segment.positions_of(rows), mask: OnceLock::new(), bits: OnceLock::new() }
    }

    /// All of a segment's rows.
    pub(super) fn all(segment: &Segment) -> SegmentSelection {
        let mut positions = RoaringBitmap::new();
        positions.insert_range(0..segment.len() as u32);
        SegmentSelection { positions, mask: OnceLock::new(), bits: OnceLock::new() }
    }

    /// Without some positions.
    pub(super) fn without(&self, gone: &RoaringBitmap) -> SegmentSelection {
        SegmentSelection { positions: &self.positions - gone, mask: OnceLock::new(), bits: OnceLock::new() }
    }

    /// Their number.
    pub(super) fn len(&self) -> u64 {
        self.positions.len()
    }

    /// Their mask for the segment's index.
    pub(super) fn mask(&self, index: &ApproximateIndex) -> &Mask {
        self.mask.get_or_init(|| index.mask(DenseBits::of(&self.positions, index.rows()).words()))
    }

    /// A bit for each of the segment's `count` rows.
    pub(super) fn bits(&self, count: usize) -> &[u64] {
        self.bits.get_or_init(|| DenseBits::of(&self.positions, count)).words()
    }

    /// The same, without keeping it: what is kept of a filter does not grow.
    fn bits_if_made(&self, count: usize) -> Cow<'_, [u64]> {
        match self.bits.get() {
            Some(bits) => Cow::Borrowed(bits.words()),
            None => Cow::Owned(DenseBits::of(&self.positions, count).words().to_vec()),
        }
    }
}

impl MemoryBytes for SegmentSelection {
    fn memory_bytes(&self) -> usize {
        let bits = self.bits.get().map_or(0, |bits| size_of_val(bits.words()));
        self.positions.serialized_size() + self.mask.get().map_or(0, Mask::memory_bytes) + bits
    }
}

/// Which rows of a segment may be found: those that a filter has selected, if there is one, and that are there.
#[derive(Clone, Copy, Default)]
pub(super) struct Allowed<'a> {
    /// None without a filter.
    pub(super) selected: Option<&'a SegmentSelection>,
    /// None when all rows are there.
    pub(super) live: Option<&'a SegmentSelection>,
}

impl<'a> Allowed<'a> {
    /// Their number; none when it is all of them.
    pub(super) fn count(self) -> Option<u64> {
        match (self.selected, self.live) {
            (Some(one), Some(other)) => Some(one.positions.intersection_len(&other.positions)),
            (one, other) => one.or(other).map(|only| only.positions.len()),
        }
    }

    /// Their positions; none when it is all of them.
    pub(super) fn positions(self) -> Option<Cow<'a, RoaringBitmap>> {
        match (self.selected, self.live) {
            (Some(one), Some(other)) => Some(Cow::Owned(&one.positions & &other.positions)),
            (one, other) => one.or(other).map(|only| Cow::Borrowed(&only.positions)),
        }
    }

    /// Their mask for the segment's index; none when it is all of them.
    pub(super) fn mask(self, index: &ApproximateIndex) -> Option<Cow<'a, Mask>> {
        match (self.selected, self.live) {
            (Some(one), Some(other)) => Some(Cow::Owned(one.mask(index).and(other.mask(index)))),
            (one, other) => one.or(other).map(|only| Cow::Borrowed(only.mask(index))),
        }
    }

    /// A bit for each of the segment's `count` rows; none when it is all of them.
    pub(super) fn bits(self, count: usize) -> Option<Cow<'a, [u64]>> {
        let live = self.live.map(|live| live.bits(count));
        match (self.selected.map(|selected| selected.bits_if_made(count)), live) {
            (Some(selected), Some(live)) => {
                let both = selected.iter().zip(live).map(|(selected, live)| selected & live);
                Some(Cow::Owned(both.collect()))
            }
            (selected, live) => selected.or(live.map(Cow::Borrowed)),
        }
    }

    /// Bits that have to be made for that each time, one by one.
    pub(super) fn bits_to_make(self) -> u64 {
        self.selected.filter(|selected| selected.bits.get().is_none()).map_or(0, SegmentSelection::len)
    }

    /// What it is told apart from others by, as long as it lives.
    pub(super) fn key(self) -> AllowedKey {
        [self.selected, self.live].map(|one| one.map_or(0, |one| std::ptr::from_ref(one).addr()))
    }
}

/// What a filter selects from the rows of the text index, those that are gone since included.
pub(super) struct IndexedSelection {
    rows: Arc<RoaringBitmap>,
    /// The same in the segments that there were, by their numbers. Whole from the beginning: what is kept does not grow.
    segments: Vec<(u64, Arc<SegmentSelection>)>,
}

impl IndexedSelection {
    fn of(view: &View, filter: &Filter) -> Result<IndexedSelection, PartitionError> {
        let rows = Arc::new(select(filter, &view.text, &view.text.rows)?);
        let selection = |part: &SegmentView| {
            let selection = SegmentSelection::of(&part.segment, &rows);
            part.segment.prepare(&selection);
            (part.segment.number, Arc::new(selection))
        };
        let segments = view.segments.iter().map(selection).collect();
        Ok(IndexedSelection { rows, segments })
    }

    fn segment(&self, segment: &Segment) -> Option<Arc<SegmentSelection>> {
        self.segments.iter().find(|(number, _)| *number == segment.number).map(|(_, selection)| selection.clone())
    }
}

impl MemoryBytes for IndexedSelection {
    fn memory_bytes(&self) -> usize {
        self.rows.serialized_size() + self.segments.iter().map(|(_, selection)| selection.memory_bytes()).sum::<usize>()
    }
}

/// What a filter selects from a view.
pub(super) struct Selected {
    indexed: Arc<IndexedSelection>,
    /// Rows that pass and are there, indexed or not.
    pub(super) rows: Arc<RoaringBitmap>,
    /// For each block of the tail the positions of its rows that pass and are in no segment.
    tail: Vec<Option<RoaringBitmap>>,
}

impl Selected {
    /// What the filter selects; kept for those who ask after.
    pub(super) fn of(view: &View, filter: &Filter, metrics: &SearchMetrics) -> Result<Arc<Selected>, PartitionError> {
        metrics.filters.inc();
        view.filters.get(filter, || {
            let indexed = view.text.filters.get(filter, || {
                metrics.filters_evaluated.inc();
                IndexedSelection::of(view, filter)
            })?;
            Selected::with(view, filter, indexed)
        })
    }

    fn with(view: &View, filter: &Filter, indexed: Arc<IndexedSelection>) -> Result<Selected, PartitionError> {
        let until = view.text.until;
        let mut rows = indexed.rows.as_ref() & view.live.as_ref();
        // Usually there are none: the text index may be about to be built again, and then its rows count as not indexed.
        rows.remove_range(until..);
        for block in &view.tail {
            let there = block.rows.iter().copied().filter(|row| *row >= until && view.live.contains(*row));
            let there: RoaringBitmap = there.collect();
            rows |= select(filter, block.as_ref(), &there)?;
        }
        let is_same = rows.len() == indexed.rows.len() && rows == *indexed.rows;
        let rows = if is_same { indexed.rows.clone() } else { Arc::new(rows) };
        let tail = view.tail.iter().map(|block| block.positions_from(view.segments_until, &rows)).collect();
        Ok(Selected { indexed, rows, tail })
    }

    /// What is selected from one of the view's segments; rows that are gone may be among it.
    pub(super) fn segment(&self, view: &View, part: &SegmentView) -> Arc<SegmentSelection> {
        let is_indexed = part.segment.rows().last().is_none_or(|last| *last < view.text.until);
        match self.indexed.segment(&part.segment) {
            Some(kept) if is_indexed => kept,
            // It reaches further than the text index: some of its rows are in the tail as well.
            _ => Arc::new(SegmentSelection::of(&part.segment, &self.rows)),
        }
    }

    /// Positions of what is selected from a block of the view's tail and is in no segment; none when it is the whole block.
    pub(super) fn tail(&self, block: usize) -> Option<&RoaringBitmap> {
        self.tail[block].as_ref()
    }
}

impl MemoryBytes for Selected {
    fn memory_bytes(&self) -> usize {
        let own = if Arc::ptr_eq(&self.rows, &self.indexed.rows) { 0 } else { self.rows.serialized_size() };
        // It keeps what the text index' cache may have forgotten already; while both have it, it is counted twice.
        self.indexed.memory_bytes() + own + self.tail.iter().flatten().map(RoaringBitmap::serialized_size).sum::<usize>()
    }
}
