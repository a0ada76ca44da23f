//! The vector half of a checkpoint: segments, and the manifest that names them.

use super::checkpoint::{Advanced, Step, compare};
use super::error::PartitionError;
use super::manifest::Manifest;
use super::merge_plan::{self, SegmentSize};
use super::segment::{self, Segment, SegmentBuilder};
use super::source::RowSource;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::shard::rows::PartitionRow;
use roaring::RoaringBitmap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SEGMENTS: &str = "segments";

/// The segments of a partition.
pub(super) struct VectorCheckpoint {
    folder: PathBuf,
    manifest: Manifest,
    segments: Vec<Arc<Segment>>,
}

impl VectorCheckpoint {
    /// Opens the segments of a checkpoint's folder. What is damaged, or belongs to another past of the rows, is deleted, and starts from nothing; whether
    /// that has happened comes second.
    pub(super) fn open(
        folder: &Path,
        dimension: usize,
        live: &RoaringBitmap,
        counters: PartitionRow,
    ) -> Result<(VectorCheckpoint, bool), PartitionError> {
        let (manifest, segments, is_rebuilt) = match open_segments(folder, dimension, live, counters) {
            Ok((manifest, segments)) => (manifest, segments, false),
            Err(fault) if !fault.is_damage() => return Err(fault),
            Err(fault) => {
                tracing::warn!(folder = %folder.display(), %fault, "the vector index is built again from the rows");
                (Manifest::empty(dimension), Vec::new(), true)
            }
        };
        segment::remove_others(&folder.join(SEGMENTS), &manifest.segments)?;
        Ok((VectorCheckpoint { folder: folder.to_owned(), manifest, segments }, is_rebuilt))
    }

    /// Deletes everything and starts from nothing.
    pub(super) fn restart(&mut self) -> Result<(), PartitionError> {
        let next_segment = self.manifest.next_segment;
        self.manifest = Manifest { next_segment, ..Manifest::empty(self.manifest.dimension as usize) };
        self.manifest.write(&self.folder)?;
        self.segments.clear();
        segment::remove_others(&self.folder.join(SEGMENTS), &[])
    }

    /// Rows before it are in the segments.
    pub(super) fn until(&self) -> u32 {
        self.manifest.until
    }

    /// The segments.
    pub(super) fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// Whether there is something to do when no rows come.
    pub(super) fn could_settle(&self, step: &Step<'_>) -> bool {
        !merge_plan::when_idle(&self.sizes(step)).is_empty()
    }

    /// Brings the segments forward. When it fails they are as they were.
    pub(super) fn advance(&mut self, source: &RowSource, step: &Step<'_>) -> Result<Advanced, PartitionError> {
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
