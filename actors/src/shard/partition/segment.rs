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
use super::selected::{Allowed, SegmentSelection};
use super::vector_index::{self, Depth, Effort, Efforts, Recall};
use super::vector_plan::{self, Method, Plan};
use crate::gpu_rows::{RowSearch, Searching, Seat, TenantRows, Vectors};
use half::f16;
use memmap2::Mmap;
use ragged_kernels::{ApproximateIndex, Scored, exact};
use ragged_raft::codec;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::mutant::{self, Mutant};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Segments of at least this many rows get an approximate index; smaller ones are faster without.
pub(super) const INDEXED_ROWS_MIN: usize = 8192;
/// Queries that the effort of searching an index is found with.
const TRIAL_QUERIES: usize = 64;
/// Part of the nearest rows that an index must find for the trial queries, for 95 of a hundred and for 99. Trial queries are about as hard as questions of
/// people, but few: what is seen with them may be a hundredth off.
const TRIAL_RECALL: f64 = 0.97;
const TRIAL_RECALL_HIGH: f64 = 0.995;
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
    index: Option<(FileSum, Efforts)>,
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
    dimension: usize,
    rows: Vec<u32>,
    row_set: RoaringBitmap,
    vectors: Option<Arc<MappedVectors>>,
    index: Option<(ApproximateIndex, Efforts)>,
    /// Where its vectors are on a GPU, when they are.
    seat: Arc<Seat>,
}

/// A file of vectors, mapped into memory.
struct MappedVectors(Mmap);

impl Vectors for MappedVectors {
    fn values(&self) -> &[f16] {
        // A mapping starts at a page and its length is that of whole vectors, so the cast cannot fail.
        bytemuck::cast_slice(&self.0)
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
        let vectors = map_vectors(&folder.join(VECTORS), description.vectors, rows.len() * dimension * 2)?;
        let index = match description.index {
            None => None,
            Some((sum, efforts)) => {
                let path = folder.join(INDEX);
                sum.compare_within(&path, VERIFIED_BYTES_MAX)?;
                Some((vector_index::open(&path, rows.len(), dimension)?, efforts))
            }
        };
        let row_set = RoaringBitmap::from_sorted_iter(rows.iter().copied())
            .map_err(|_| PartitionError::damaged(&folder.join(ROWS), "its rows are not in order"))?;
        Ok(Segment { number, dimension, rows, row_set, vectors, index, seat: Arc::default() })
    }

    /// Its rows, dead or alive.
    pub(super) fn row_set(&self) -> &RoaringBitmap {
        &self.row_set
    }

    /// Number of its rows, dead or alive.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Its vectors, one after the other.
    fn vectors(&self) -> &[f16] {
        self.vectors.as_ref().map_or(&[], |mapped| mapped.values())
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
        &self.vectors()[start..start + self.dimension]
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
        let rows = Rows { vectors: self.vectors(), dimension: self.dimension };
        let planned = self.index.as_ref().and_then(|(index, efforts)| Some((index, Plan::new(efforts, recall, wanted, count)?)));
        // Counted until it has ended, wherever it computes: the more search the same rows, the sooner a GPU is that takes them together.
        let searching = gpus.enter(&self.seat);
        if let Some(searching) = &searching {
            let compared = planned.as_ref().map_or(count, |(index, plan)| plan.cost(index));
            if let Some(positions) = self.find_on_gpu(gpus, searching, (query, wanted), allowed, compared) {
                let scored = rows.scored_again(query, &positions, wanted);
                return Ok(SegmentHits { hits: self.named(&scored), method: Method::ExactOnGpu { rows: count } });
            }
        }
        if let Some((index, plan)) = planned {
            let (found, method) = plan.find(index, query, allowed.mask(index).as_deref());
            let scored = rows.scored_again(query, &found, wanted);
            if scored.len() >= wanted {
                return Ok(SegmentHits { hits: self.named(&scored), method });
            }
        }
        let scored = exact::top_k(query, rows.vectors, self.dimension, allowed.positions().as_deref(), wanted);
        Ok(SegmentHits { hits: self.named(&scored), method: Method::Exact { rows: count } })
    }

    /// Positions among which the nearest are, when a GPU finds them sooner than the processor compares so many vectors. They are scored again, as the
    /// processor scores all rows: replicas with and without a GPU give the same scores.
    fn find_on_gpu(
        &self,
        gpus: &TenantRows,
        searching: &Searching,
        (query, wanted): (&[f32], usize),
        allowed: Allowed<'_>,
        compared: u64,
    ) -> Option<Vec<u32>> {
        let mapped = self.vectors.as_ref()?;
        let search = RowSearch {
            query,
            wanted,
            rows: self.rows.len(),
            vectors: &|| mapped.clone(),
            allowed: allowed.key(),
            bits: &|| allowed.bits(self.rows.len()),
            bits_seconds: vector_plan::seconds_of_bits(allowed.bits_to_make()),
            otherwise_seconds: vector_plan::seconds_of_vectors(compared, self.dimension),
        };
        gpus.find(searching, &search)
    }

    /// Makes what a search needs to go through the index for these rows, if one may.
    pub(super) fn prepare(&self, selection: &SegmentSelection) {
        if let Some((index, _)) = &self.index
            && selection.len() > vector_plan::EXACT_ROWS_MAX
        {
            selection.mask(index);
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
        self.rows.len() * 4 + self.row_set.serialized_size() + self.index.as_ref().map_or(0, |(index, _)| index.memory_bytes())
    }

    /// Gives the pages of its mapped files back.
    pub(super) fn give_back(&self) {
        if let Some(mapped) = &self.vectors {
            // SAFETY: as for `map_vectors`, which has mapped it so.
            unsafe { files::give_back(&mapped.0) };
        }
        if let Some((index, _)) = &self.index {
            index.give_back();
        }
    }
}

/// Vectors, one after the other.
struct Rows<'a> {
    vectors: &'a [f16],
    dimension: usize,
}

impl Rows<'_> {
    /// The nearest of what the index finds, with exact scores, best first.
    fn nearest(&self, index: &ApproximateIndex, effort: Effort, query: &[f32], wanted: usize) -> Vec<Scored> {
        let positions = index.search(query, effort.for_rows(wanted), None);
        self.scored_again(query, &positions, wanted)
    }

    /// The nearest of the rows at these positions, with exact scores, best first.
    fn scored_again(&self, query: &[f32], positions: &[u32], wanted: usize) -> Vec<Scored> {
        let mut scored = exact::score(query, self.vectors, self.dimension, positions);
        let by_score = |one: &Scored, other: &Scored| other.score.total_cmp(&one.score).then(one.position.cmp(&other.position));
        if wanted < scored.len() {
            scored.select_nth_unstable_by(wanted, by_score);
            scored.truncate(wanted);
        }
        scored.sort_unstable_by(by_score);
        scored
    }

    fn of(&self, position: usize) -> Vec<f32> {
        let start = position * self.dimension;
        self.vectors[start..start + self.dimension].iter().map(|value| value.to_f32()).collect()
    }

    /// Queries to try an index with: sums of one to four vectors that it has. Questions are seldom as near to an answer as answers are to
    /// each other, and lie between lists, where an index errs the most.
    fn trial_queries(&self) -> Vec<Vec<f32>> {
        let count = self.vectors.len() / self.dimension;
        let query = |number: usize| {
            let mut query = self.of(number * count / TRIAL_QUERIES);
            for other in 0..number % 4 {
                let other = self.of((number * 7919 + other * 104_729 + 13) % count);
                query.iter_mut().zip(other).for_each(|(value, other)| *value += other);
            }
            exact::normalize(&mut query);
            query
        };
        (0..TRIAL_QUERIES).map(query).collect()
    }

    /// The least efforts that find enough; none when even the most does not.
    fn efforts(&self, index: &ApproximateIndex) -> Option<Efforts> {
        let queries = self.trial_queries();
        let deepest = Depth::Hundred.rows();
        let right = exact::top_k_of_each(&queries.concat(), self.vectors, self.dimension, deepest, vector_index::BUILD_THREADS);
        let count = self.vectors.len() / self.dimension;
        let least = Depth::ALL.map(|depth| {
            let mut recalls: HashMap<Effort, f64> = HashMap::new();
            let mut least_for = |trial_recall: f64| {
                let recall = |effort: &Effort| {
                    let recall = self.recall(index, *effort, depth.rows(), &queries, &right);
                    tracing::debug!(?depth, ?effort, recall, "tried");
                    recall
                };
                Effort::least(count, depth, |effort| *recalls.entry(effort).or_insert_with_key(recall) >= trial_recall)
            };
            (least_for(TRIAL_RECALL), least_for(TRIAL_RECALL_HIGH))
        });
        let [(ten, ten_high), (hundred, hundred_high)] = least;
        Some(Efforts { usual: [ten?, hundred?], high: [ten_high, hundred_high] })
    }

    /// Part of the `depth` nearest rows that is found. By score, so that of equal rows any will do.
    fn recall(&self, index: &ApproximateIndex, effort: Effort, depth: usize, queries: &[Vec<f32>], right: &[Vec<Scored>]) -> f64 {
        let found_of = |(query, right): (&Vec<f32>, &Vec<Scored>)| {
            let right = &right[..depth.min(right.len())];
            let worst = right.last().map_or(f32::MAX, |scored| scored.score);
            let nearest = self.nearest(index, effort, query, right.len());
            nearest.iter().filter(|scored| scored.score >= worst).count()
        };
        let share = queries.len().div_ceil(vector_index::BUILD_THREADS).max(1);
        let found = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for (queries, right) in queries.chunks(share).zip(right.chunks(share)) {
                let (found, found_of) = (&found, &found_of);
                scope.spawn(move || found.fetch_add(queries.iter().zip(right).map(found_of).sum(), Ordering::Relaxed));
            }
        });
        let wanted: usize = right.iter().map(|right| depth.min(right.len())).sum();
        found.into_inner() as f64 / (wanted as f64).max(1.0)
    }
}

fn read_rows(path: &Path, sum: FileSum) -> Result<Vec<u32>, PartitionError> {
    sum.compare(path)?;
    let bytes = fs::read(path).map_err(PartitionError::file(path))?;
    Ok(bytes.chunks_exact(4).map(|row| u32::from_le_bytes([row[0], row[1], row[2], row[3]])).collect())
}

fn map_vectors(path: &Path, sum: FileSum, expected_bytes: usize) -> Result<Option<Arc<MappedVectors>>, PartitionError> {
    if sum.bytes != expected_bytes as u64 {
        return Err(PartitionError::damaged(path, "it has not as many vectors as there are rows"));
    }
    sum.compare_within(path, VERIFIED_BYTES_MAX)?;
    let file = File::open(path).map_err(PartitionError::file(path))?;
    if expected_bytes == 0 {
        return Ok(None); // an empty file cannot be mapped
    }
    // SAFETY: nothing changes or shortens the file once its segment is described; it is only ever deleted, which leaves a mapping intact.
    let mapped = unsafe { Mmap::map(&file) }.map_err(PartitionError::file(path))?;
    Ok(Some(Arc::new(MappedVectors(mapped))))
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
        fs::create_dir_all(&folder).map_err(PartitionError::file(&folder))?;
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
fn build_index(folder: &Path, count: usize, dimension: usize) -> Result<Option<(FileSum, Efforts)>, PartitionError> {
    let (vectors, path) = (folder.join(VECTORS), folder.join(INDEX));
    let file = File::open(&vectors).map_err(PartitionError::file(&vectors))?;
    // SAFETY: the file has been written and is not changed any more.
    let mapped = unsafe { Mmap::map(&file) }.map_err(PartitionError::file(&vectors))?;
    let rows = Rows { vectors: bytemuck::cast_slice(&mapped), dimension };
    vector_index::build(&path, rows.vectors, dimension)?;
    match rows.efforts(&vector_index::open(&path, count, dimension)?) {
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
