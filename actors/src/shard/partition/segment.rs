//! A vector segment: rows that do not change any more, in a folder of their own.
//!
//! - `rows`: row ids in order, u32 in little endian
//! - `vectors.f16`: the vectors in the same order, one after the other, f16 in little endian; mapped into memory
//! - `vectors.index`: the approximate index over them, for larger segments; mapped into memory
//! - `segment`: lengths and checksums of the others, framed by the codec; written last
//!
//! How the nearest rows are looked for is decided in [`super::vector_plan`].
//!
//! All checksums are compared when a segment is opened, but for vectors and index beyond [`VERIFIED_BYTES_MAX`], of which only the lengths are:
//! reading gigabytes would keep the first search waiting. What is damaged is built again from the rows.

use super::dense::DenseBits;
use super::error::PartitionError;
use super::files;
use super::query_sample::QuerySample;
use super::selected::{Allowed, SegmentSelection};
use super::trial;
use super::vector_file::VectorFile;
use super::vector_index::{self, Efforts, KeptEfforts, Recall};
use super::vector_plan::{self, Method, Plan};
use crate::gpu_rows::{RowSearch, Seat, TenantRows};
use half::f16;
use parking_lot::{Mutex, RwLock};
use ragged_kernels::{ApproximateIndex, Scored};
use ragged_raft::codec;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::mutant::{self, Mutant};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Segments of at least this many rows get an approximate index; smaller ones are faster without.
pub(super) const INDEXED_ROWS_MIN: usize = 8192;
/// After a trial with queries that were seen, so many times as long as it took there is no other.
const TRIALS_REST: u32 = 10;
/// And for so long after one that failed.
const TRIAL_FAILED_REST: Duration = Duration::from_secs(60);
/// Vectors and index are compared with their checksums up to this length.
const VERIFIED_BYTES_MAX: u64 = 64 << 20;

const ROWS: &str = "rows";
const VECTORS: &str = "vectors.f16";
const INDEX: &str = "vectors.index";
const DESCRIPTION: &str = "segment";

/// Content of the file `segment`.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    dimension: u32,
    rows: FileSum,
    vectors: FileSum,
    index: Option<(FileSum, KeptEfforts)>,
}

/// A file's length and CRC-32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct FileSum {
    bytes: u64,
    crc32: u32,
}

impl FileSum {
    fn of(path: &Path) -> Result<FileSum, PartitionError> {
        let (bytes, crc32) = files::checksum(path)?;
        Ok(FileSum { bytes, crc32 })
    }

    fn compare(self, path: &Path) -> Result<(), PartitionError> {
        if mutant::is_on(Mutant::SkipChecksum) {
            return Ok(());
        }
        if FileSum::of(path)? == self { Ok(()) } else { Err(PartitionError::damaged(path, "its checksum does not match")) }
    }

    /// Compares the length, and the checksum of a file of at most so many bytes.
    fn compare_within(self, path: &Path, bytes_max: u64) -> Result<(), PartitionError> {
        let bytes = fs::metadata(path).map_err(PartitionError::file(path))?.len();
        if bytes != self.bytes {
            return Err(PartitionError::damaged(path, "it has the wrong length"));
        }
        if bytes <= bytes_max { self.compare(path) } else { Ok(()) }
    }
}

/// An open segment.
pub(super) struct Segment {
    /// Number of its folder.
    pub(super) number: u64,
    folder: PathBuf,
    dimension: usize,
    rows: Vec<u32>,
    row_set: RoaringBitmap,
    vectors: Arc<VectorFile>,
    index: Option<Index>,
    /// Where its vectors are on a GPU, when they are.
    seat: Arc<Seat>,
}

/// A segment's approximate index.
struct Index {
    vectors: ApproximateIndex,
    efforts: RwLock<Efforts>,
    trials: Mutex<Trials>,
}

/// When the efforts were last found with queries that had been seen.
#[derive(Default)]
struct Trials {
    /// Queries that had been seen; none before that.
    seen: u64,
    /// Before that it is not tried again: finding out how to be quick must not cost more than it brings.
    rests_until: Option<Instant>,
}

impl Trials {
    /// How many queries have been seen, if it is time for another.
    fn due(&self, sample: &QuerySample) -> Option<u64> {
        if self.rests_until.is_some_and(|until| Instant::now() < until) { None } else { sample.due_after(self.seen) }
    }
}

/// What a segment found.
pub(super) struct SegmentHits {
    /// Rows and scores, best first.
    pub(super) hits: Vec<(u32, f32)>,
    /// How they were found.
    pub(super) method: Method,
}

impl Segment {
    /// Opens the segment of this number.
    pub(super) fn open(parent: &Path, number: u64, dimension: usize) -> Result<Segment, PartitionError> {
        let folder = folder_of(parent, number);
        let path = folder.join(DESCRIPTION);
        let frame = files::read_if_there(&path)?.ok_or_else(|| PartitionError::damaged(&path, "it is missing"))?;
        let description: Description =
            codec::decode(&frame).map_err(|fault| PartitionError::damaged(&path, fault.to_string()))?;
        if description.dimension as usize != dimension {
            return Err(PartitionError::damaged(&path, "it is for vectors of another length"));
        }
        let rows = read_rows(&folder.join(ROWS), description.rows)?;
        let vectors = open_vectors(&folder.join(VECTORS), description.vectors, rows.len(), dimension)?;
        let index = match description.index {
            None => None,
            Some((sum, efforts)) => {
                let path = folder.join(INDEX);
                sum.compare_within(&path, VERIFIED_BYTES_MAX)?;
                let vectors = vector_index::open(&path, rows.len(), dimension)?;
                Some(Index { vectors, efforts: RwLock::new(efforts.into()), trials: Mutex::default() })
            }
        };
        let row_set = RoaringBitmap::from_sorted_iter(rows.iter().copied())
            .map_err(|_| PartitionError::damaged(&folder.join(ROWS), "its rows are not in order"))?;
        Ok(Segment { number, folder, dimension, rows, row_set, vectors, index, seat: Arc::default() })
    }

    /// Its rows, dead or alive.
    pub(super) fn row_set(&self) -> &RoaringBitmap {
        &self.row_set
    }

    /// Number of its rows, dead or alive.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Its rows in order, dead or alive.
    pub(super) fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// The vector at a position.
    ///
    /// # Panics
    /// If there is no such position.
    pub(super) fn vector(&self, position: u32) -> &[f16] {
        let start = position as usize * self.dimension;
        &self.vectors.mapped().values[start..start + self.dimension]
    }

    /// Positions of those of its rows that are in `rows`.
    pub(super) fn positions_of(&self, rows: &RoaringBitmap) -> RoaringBitmap {
        DenseBits::places(&self.rows, rows).to_bitmap()
    }

    /// The `k` nearest rows of those that are allowed, or all when there are fewer.
    pub(super) fn search(
        &self,
        query: &[f32],
        k: usize,
        allowed: Allowed<'_>,
        recall: Recall,
        gpus: &TenantRows,
    ) -> Result<SegmentHits, PartitionError> {
        let count = allowed.count().unwrap_or(self.rows.len() as u64);
        let wanted = k.min(count as usize);
        if wanted == 0 {
            return Ok(SegmentHits { hits: Vec::new(), method: Method::Nothing });
        }
        let plan_of = |index: &Index| Plan::new(&index.efforts.read(), recall, wanted, count);
        let planned = self.index.as_ref().and_then(|index| Some((&index.vectors, plan_of(index)?)));
        if gpus.is_there() {
            let compared = planned.as_ref().map_or(count, |(index, plan)| plan.cost(index));
            if let Some(positions) = self.find_on_gpu(gpus, (query, wanted), allowed, compared) {
                let scored = self.scored_again(query, &positions, wanted)?;
                return Ok(SegmentHits { hits: self.named(&scored), method: Method::ExactOnGpu { rows: count } });
            }
        }
        if let Some((index, plan)) = planned {
            let found = plan.find(index, query, allowed.mask(index).as_deref());
            let (found, method) = found.map_err(|fault| self.unreadable(INDEX, fault))?;
            let scored = self.scored_again(query, &found, wanted)?;
            if scored.len() >= wanted {
                return Ok(SegmentHits { hits: self.named(&scored), method });
            }
        }
        let positions = allowed.positions();
        let scored =
            self.vectors.nearest(query, positions.as_deref(), wanted).map_err(|fault| self.unreadable(VECTORS, fault))?;
        Ok(SegmentHits { hits: self.named(&scored), method: Method::Exact { rows: count } })
    }

    fn scored_again(&self, query: &[f32], positions: &[u32], wanted: usize) -> Result<Vec<Scored>, PartitionError> {
        self.vectors.scored_again(query, positions, wanted).map_err(|fault| self.unreadable(VECTORS, fault))
    }

    fn unreadable(&self, file: &str, fault: std::io::Error) -> PartitionError {
        PartitionError::File { path: self.folder.join(file), fault }
    }

    /// Whether it has an approximate index.
    pub(super) fn has_index(&self) -> bool {
        self.index.is_some()
    }

    /// Whether enough queries have been seen since the index was tried last.
    pub(super) fn wants_trial(&self, sample: &QuerySample) -> bool {
        self.index.as_ref().is_some_and(|index| index.trials.lock().due(sample).is_some())
    }

    /// Tries the index with queries that searches have brought, when it is due: it is searched no harder and no less than these need. Efforts are not
    /// kept when the segment is closed. Whether it was due.
    pub(super) fn try_index(&self, sample: &QuerySample) -> Result<bool, PartitionError> {
        let Some(index) = &self.index else { return Ok(false) };
        let Some(seen) = index.trials.lock().due(sample) else { return Ok(false) };
        let begun = Instant::now();
        let rest = |rest| *index.trials.lock() = Trials { seen, rests_until: Some(Instant::now() + rest) };
        rest(TRIAL_FAILED_REST); // should this one end in the middle
        let found = trial::with_queries(&index.vectors, &self.vectors, &sample.queries());
        let found = found.map_err(|fault| self.unreadable(VECTORS, fault))?;
        rest(begun.elapsed() * TRIALS_REST);
        if found.usual.contains(&None) {
            tracing::warn!(
                segment = self.number,
                ?found,
                "the approximate index does not find what is asked for, whatever the effort: such searches compare all vectors"
            );
        } else {
            tracing::debug!(segment = self.number, seen, ?found, "vector index tried with queries that were seen");
        }
        *index.efforts.write() = found;
        Ok(true)
    }

    /// Positions among which the nearest are, when a GPU finds them sooner than the processor compares so many vectors. They are scored again, as the
    /// processor scores all rows: replicas with and without a GPU give the same scores.
    fn find_on_gpu(
        &self,
        gpus: &TenantRows,
        (query, wanted): (&[f32], usize),
        allowed: Allowed<'_>,
        compared: u64,
    ) -> Option<Vec<u32>> {
        let search = RowSearch {
            query,
            wanted,
            rows: self.rows.len(),
            vectors: &|| self.vectors.clone(),
            allowed: allowed.key(),
            bits: &|| allowed.bits(self.rows.len()),
            bits_seconds: vector_plan::seconds_of_bits(allowed.bits_to_make()),
            otherwise_seconds: vector_plan::seconds_of_vectors(compared, self.dimension),
        };
        gpus.find(&self.seat, &search)
    }

    /// Makes what a search needs to go through the index for these rows, if one may.
    pub(super) fn prepare(&self, selection: &SegmentSelection) {
        if let Some(index) = &self.index
            && selection.len() > vector_plan::EXACT_ROWS_MAX
        {
            selection.mask(&index.vectors);
        }
        if self.seat.is_taken() {
            selection.bits(self.rows.len());
        }
    }

    fn named(&self, scored: &[Scored]) -> Vec<(u32, f32)> {
        scored.iter().map(|scored| (self.rows[scored.position as usize], scored.score)).collect()
    }

    /// Bytes that it holds in memory, without mapped files.
    pub(super) fn memory_bytes(&self) -> usize {
        self.rows.len() * 4 + self.row_set.serialized_size() + self.index.as_ref().map_or(0, |index| index.vectors.memory_bytes())
    }

    /// Bytes of its mapped files that searches go through in any case, and of those that they could read instead.
    pub(super) fn mapped_bytes(&self) -> (usize, usize) {
        let (needed, rows) = self.index.as_ref().map_or((0, 0), |index| index.vectors.mapped_bytes());
        (needed, rows + self.vectors.bytes())
    }

    /// Whether vectors are read from their files from now on, or looked at where they are mapped.
    pub(super) fn read_vectors(&self, reads: bool) {
        self.vectors.read_rows(reads);
        if let Some(index) = &self.index {
            index.vectors.read_rows(reads);
        }
    }

    /// Gives the pages of its mapped files back.
    pub(super) fn give_back(&self) {
        self.vectors.give_back();
        if let Some(index) = &self.index {
            index.vectors.give_back();
        }
    }
}

fn read_rows(path: &Path, sum: FileSum) -> Result<Vec<u32>, PartitionError> {
    sum.compare(path)?;
    let bytes = fs::read(path).map_err(PartitionError::file(path))?;
    Ok(bytes.chunks_exact(4).map(|row| u32::from_le_bytes([row[0], row[1], row[2], row[3]])).collect())
}

fn open_vectors(path: &Path, sum: FileSum, count: usize, dimension: usize) -> Result<Arc<VectorFile>, PartitionError> {
    if sum.bytes != (count * dimension * 2) as u64 {
        return Err(PartitionError::damaged(path, "it has not as many vectors as there are rows"));
    }
    sum.compare_within(path, VERIFIED_BYTES_MAX)?;
    // Nothing changes or shortens the file once its segment is described; it is only ever deleted.
    VectorFile::open(path, dimension).map(Arc::new).map_err(PartitionError::file(path))
}

fn folder_of(parent: &Path, number: u64) -> PathBuf {
    parent.join(number.to_string())
}

/// Deletes the segments that are not named: left behind by a crash, or replaced.
pub(super) fn remove_others(parent: &Path, kept: &[u64]) -> Result<(), PartitionError> {
    let entries = match fs::read_dir(parent) {
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(PartitionError::file(parent))?,
    };
    for entry in entries {
        let entry = entry.map_err(PartitionError::file(parent))?;
        let is_kept =
            entry.file_name().to_str().and_then(|name| name.parse().ok()).is_some_and(|number: u64| kept.contains(&number));
        if !is_kept {
            files::remove_folder(&entry.path()).map_err(PartitionError::file(parent))?;
        }
    }
    Ok(())
}

/// Writes a segment.
pub(super) struct SegmentBuilder {
    parent: PathBuf,
    number: u64,
    dimension: usize,
    rows: Vec<u32>,
    vectors: BufWriter<File>,
}

impl SegmentBuilder {
    pub(super) fn create(parent: &Path, number: u64, dimension: usize) -> Result<SegmentBuilder, PartitionError> {
        failpoints::hit(Point::SegmentBefore);
        let folder = folder_of(parent, number);
        files::remove_folder(&folder).map_err(PartitionError::file(&folder))?;
        // One after the other: when the folder above is gone, so is the collection, and nothing comes back.
        match fs::create_dir(parent) {
            Err(fault) if fault.kind() != ErrorKind::AlreadyExists => return Err(PartitionError::file(parent)(fault)),
            _ => {}
        }
        fs::create_dir(&folder).map_err(PartitionError::file(&folder))?;
        let path = folder.join(VECTORS);
        let vectors = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(PartitionError::file(&path))?);
        Ok(SegmentBuilder { parent: parent.to_owned(), number, dimension, rows: Vec::new(), vectors })
    }

    /// Adds a row; rows come in order.
    pub(super) fn push(&mut self, row: u32, vector: &[f16]) -> Result<(), PartitionError> {
        assert_eq!(vector.len(), self.dimension, "a vector of another length");
        assert!(self.rows.last().is_none_or(|last| *last < row), "rows out of order");
        self.rows.push(row);
        self.vectors.write_all(bytemuck::cast_slice(vector)).map_err(PartitionError::file(&self.parent))
    }

    /// Makes the segment durable, index and all, and opens it.
    pub(super) fn finish(self) -> Result<Segment, PartitionError> {
        let folder = folder_of(&self.parent, self.number);
        let path = folder.join(VECTORS);
        let vectors =
            self.vectors.into_inner().map_err(|fault| PartitionError::File { path: path.clone(), fault: fault.into_error() })?;
        vectors.sync_all().map_err(PartitionError::file(&path))?;
        failpoints::hit(Point::SegmentVectorsWritten);
        let rows: Vec<u8> = self.rows.iter().flat_map(|row| row.to_le_bytes()).collect();
        files::replace(&folder.join(ROWS), &rows)?;
        let index =
            if self.rows.len() >= INDEXED_ROWS_MIN { build_index(&folder, self.rows.len(), self.dimension)? } else { None };
        let description = Description {
            dimension: self.dimension as u32,
            rows: FileSum::of(&folder.join(ROWS))?,
            vectors: FileSum::of(&path)?,
            index,
        };
        let frame = codec::encode(&description).map_err(|fault| PartitionError::damaged(&folder, fault.to_string()))?;
        files::replace(&folder.join(DESCRIPTION), &frame)?;
        files::sync_folder(&self.parent)?;
        failpoints::hit(Point::SegmentWritten);
        Segment::open(&self.parent, self.number, self.dimension)
    }
}

/// Builds the approximate index of the vectors that have been written, and finds out how hard it must be searched. Vectors that it
/// cannot tell apart, whatever the effort, are searched exactly.
fn build_index(folder: &Path, count: usize, dimension: usize) -> Result<Option<(FileSum, KeptEfforts)>, PartitionError> {
    let (vectors, path) = (folder.join(VECTORS), folder.join(INDEX));
    let file = VectorFile::open(&vectors, dimension).map_err(PartitionError::file(&vectors))?;
    vector_index::build(&path, file.mapped().values, dimension)?;
    let efforts = trial::with_made_queries(&vector_index::open(&path, count, dimension)?, &file);
    match efforts.map_err(PartitionError::file(&vectors))?.kept() {
        Some(efforts) => {
            tracing::debug!(count, ?efforts, "vector index built");
            Ok(Some((FileSum::of(&path)?, efforts)))
        }
        None => {
            tracing::warn!(count, "the approximate index does not tell these vectors apart: they are searched exactly");
            fs::remove_file(&path).map_err(PartitionError::file(&path))?;
            Ok(None)
        }
    }
}
