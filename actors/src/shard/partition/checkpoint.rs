//! The indexes as they are on disk: made from the rows, ahead of nothing, and made again when they turn out wrong.

use super::analyzer::Analyzer;
use super::error::PartitionError;
use super::files;
use super::manifest::Manifest;
use super::merge_plan::{self, SegmentSize};
use super::segment::{self, Segment, SegmentBuilder};
use super::source::RowSource;
use super::text_index::{self, TextIndex, TextSnapshot};
use crate::shard::text_writers::TextWriters;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::shard::rows::PartitionRow;
use roaring::RoaringBitmap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SEGMENTS: &str = "segments";
const TEXT: &str = "text";

/// The segments and the text index of a partition, with what is needed to go on building them.
pub(super) struct Checkpoint {
    folder: PathBuf,
    language: String,
    manifest: Manifest,
    segments: Vec<Arc<Segment>>,
    text: TextIndex,
    text_writers: Arc<TextWriters>,
    text_until: u32,
    text_rows: Arc<RoaringBitmap>,
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
        let mut rebuilt = 0;
        let (manifest, segments) = match open_segments(folder, dimension, live, counters) {
            Ok(opened) => opened,
            Err(fault) if !fault.is_damage() => return Err(fault),
            Err(fault) => {
                tracing::warn!(folder = %folder.display(), %fault, "the vector index is built again from the rows");
                rebuilt += 1;
                (Manifest::empty(dimension), Vec::new())
            }
        };
        segment::remove_others(&folder.join(SEGMENTS), &manifest.segments)?;
        let text_folder = folder.join(TEXT);
        let (text, snapshot) = match open_text(&text_folder, language, analyzer, live, counters) {
            Ok(opened) => opened,
            Err(fault) if !fault.is_damage() => return Err(fault),
            Err(fault) => {
                tracing::warn!(folder = %folder.display(), %fault, "the text index is built again from the rows");
                rebuilt += 1;
                text_index::remove(&text_folder)?;
                let text = TextIndex::open(&text_folder, language, analyzer)?;
                let (snapshot, _) = text.snapshot()?;
                (text, snapshot)
            }
        };
        let checkpoint = Checkpoint {
            folder: folder.to_owned(),
            language: language.to_owned(),
            manifest,
            segments,
            text,
            text_writers,
            text_until: snapshot.until,
            text_rows: snapshot.rows,
        };
        Ok((checkpoint, rebuilt))
    }

    /// Deletes everything and starts from nothing.
    pub(super) fn restart(&mut self, analyzer: &Analyzer) -> Result<(), PartitionError> {
        let next_segment = self.manifest.next_segment;
        self.manifest = Manifest { next_segment, ..Manifest::empty(self.manifest.dimension as usize) };
        self.manifest.write(&self.folder)?;
        self.segments.clear();
        segment::remove_others(&self.folder.join(SEGMENTS), &[])?;
        let text_folder = self.folder.join(TEXT);
        text_index::remove(&text_folder)?;
        self.text = TextIndex::open(&text_folder, &self.language, analyzer)?;
        self.text_until = 0;
        self.text_rows = Arc::default();
        Ok(())
    }

    /// Rows before it are in both indexes.
    pub(super) fn until(&self) -> u32 {
        self.manifest.until.min(self.text_until)
    }

    /// Rows before it are in the segments.
    pub(super) fn segments_until(&self) -> u32 {
        self.manifest.until
    }

    /// The segments.
    pub(super) fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// The text index and the first rows of its documents.
    pub(super) fn text_snapshot(&self) -> Result<(TextSnapshot, RoaringBitmap), PartitionError> {
        self.text.snapshot()
    }

    /// Brings both indexes forward. When it fails, each is as it was or as it should be.
    pub(super) fn advance(&mut self, source: &RowSource, step: &Step<'_>) -> Result<Advanced, PartitionError> {
        self.advance_text(source, step)?;
        self.advance_segments(source, step)
    }

    fn advance_text(&mut self, source: &RowSource, step: &Step<'_>) -> Result<(), PartitionError> {
        let mut dead = self.text_rows.as_ref() - step.live;
        dead.remove_range(step.known_until..);
        let until = step.until.max(self.text_until);
        if until == self.text_until && dead.is_empty() && !(step.is_idle && self.text.could_settle()?) {
            return Ok(());
        }
        let writing = self.text_writers.begin();
        let rows = self.text_until..until;
        let advanced = self.text.advance(source, &writing, rows, &dead, step.counters.changed_at, step.is_idle);
        drop(writing);
        // Also after a failure: what was committed before it must not be added again.
        let (snapshot, _) = self.text.snapshot()?;
        self.text_until = snapshot.until;
        self.text_rows = snapshot.rows;
        advanced
    }

    fn advance_segments(&mut self, source: &RowSource, step: &Step<'_>) -> Result<Advanced, PartitionError> {
        let from = self.manifest.until;
        let until = step.until.max(from);
        let sizes = self.sizes(step);
        let mut joined = if from < until { merge_plan::with_new_rows(&sizes, u64::from(until - from)) } else { Vec::new() };
        if step.is_idle {
            let idle = merge_plan::when_idle(&sizes);
            if idle.len() > joined.len() {
                joined = idle;
            }
        }
        if from == until && joined.is_empty() {
            return Ok(Advanced::default());
        }
        let number = self.manifest.next_segment;
        let (segment, added) = self.write_segment(source, step, number, &joined, from..until)?;
        let mut segments: Vec<Arc<Segment>> = Vec::new();
        for (place, old) in self.segments.iter().enumerate() {
            if !joined.contains(&place) {
                segments.push(old.clone());
            }
        }
        segments.extend(segment.map(Arc::new));
        let manifest = Manifest {
            until,
            changed_at: step.counters.changed_at,
            segments: segments.iter().map(|segment| segment.number).collect(),
            next_segment: number + 1,
            ..self.manifest.clone()
        };
        failpoints::hit(Point::ManifestBefore);
        manifest.write(&self.folder)?;
        failpoints::hit(Point::ManifestAfter);
        self.manifest = manifest;
        self.segments = segments;
        Ok(Advanced { rows: added, replaced: joined.len() })
    }

    /// Deletes segments that have been replaced; searches that still use them keep what they have open.
    pub(super) fn remove_replaced(&self) -> Result<(), PartitionError> {
        segment::remove_others(&self.folder.join(SEGMENTS), &self.manifest.segments)
    }

    fn sizes(&self, step: &Step<'_>) -> Vec<SegmentSize> {
        let mut sizes = Vec::with_capacity(self.segments.len());
        for segment in &self.segments {
            let written = segment.len() as u64;
            sizes.push(SegmentSize { live: written - dead_rows(segment, step).len(), written });
        }
        sizes
    }

    /// Whether there is something to do when no rows come.
    pub(super) fn could_settle(&self, step: &Step<'_>) -> bool {
        self.text.could_settle().is_ok_and(|could| could) || !merge_plan::when_idle(&self.sizes(step)).is_empty()
    }

    /// Writes the living rows of some segments and the new ones as one segment; none when there are none.
    fn write_segment(
        &self,
        source: &RowSource,
        step: &Step<'_>,
        number: u64,
        joined: &[usize],
        new: std::ops::Range<u32>,
    ) -> Result<(Option<Segment>, u64), PartitionError> {
        let mut builder = SegmentBuilder::create(&self.folder.join(SEGMENTS), number, source.dimension())?;
        let old: Vec<&Segment> = joined.iter().map(|place| self.segments[*place].as_ref()).collect();
        let mut places: Vec<(u32, u32, u32)> = Vec::new(); // row, segment, position
        for (which, segment) in (0u32..).zip(&old) {
            let dead = dead_rows(segment, step);
            let numbered = (0u32..).zip(segment.rows());
            places.extend(numbered.filter(|(_, row)| !dead.contains(**row)).map(|(position, row)| (*row, which, position)));
        }
        places.sort_unstable();
        for (row, which, position) in &places {
            builder.push(*row, old[*which as usize].vector(*position))?;
        }
        let mut added = 0;
        let mut outcome = Ok(());
        source.each_vector(new.start, new.end, |row, vector| {
            if outcome.is_ok() {
                outcome = builder.push(row, vector);
                added += 1;
            }
        })?;
        outcome?;
        if places.is_empty() && added == 0 {
            return Ok((None, 0));
        }
        Ok((Some(builder.finish()?), added))
    }
}

fn dead_rows(segment: &Segment, step: &Step<'_>) -> RoaringBitmap {
    let mut dead = segment.row_set() - step.live;
    dead.remove_range(step.known_until..);
    dead
}

/// Refuses what belongs to another past of the rows: a checkpoint reaches as far as the rows at most, and has all of them that it says.
fn compare(
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

fn open_segments(
    folder: &Path,
    dimension: usize,
    live: &RoaringBitmap,
    counters: PartitionRow,
) -> Result<(Manifest, Vec<Arc<Segment>>), PartitionError> {
    let Some(manifest) = Manifest::read(folder)? else { return Ok((Manifest::empty(dimension), Vec::new())) };
    if manifest.dimension as usize != dimension {
        return Err(PartitionError::damaged(folder, "it is for vectors of another length"));
    }
    let (mut segments, mut has) = (Vec::new(), RoaringBitmap::new());
    for number in &manifest.segments {
        let segment = Segment::open(&folder.join(SEGMENTS), *number, dimension)?;
        if !has.is_disjoint(segment.row_set()) {
            return Err(PartitionError::damaged(folder, "two segments have the same rows"));
        }
        has |= segment.row_set();
        segments.push(Arc::new(segment));
    }
    compare(folder, manifest.until, manifest.changed_at, &has, live, counters)?;
    Ok((manifest, segments))
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

/// Deletes a partition's checkpoint.
pub(super) fn remove(folder: &Path) -> std::io::Result<()> {
    files::remove_folder(folder)
}
