//! A partition: what one collection of one tenant keeps in one shard, made searchable.
//!
//! Rows in the database are the truth; everything here is made from them. Rows up to some point are in indexes on disk, the *checkpoint*:
//! vector segments ([`segment`], listed by [`manifest`]) and the index of words and metadata ([`text_index`]). Later rows are the *tail*
//! ([`tail`]), which is in memory and searched exactly. A search first takes in what has changed, so it sees every write that was
//! acknowledged before it, then works on one immutable [`view`]. [`Partition::index`] moves rows from the tail into the indexes behind the
//! searches, which see no more of it than the exchange of one view for the next.
//!
//! A checkpoint that is torn, damaged or of another past is no error: it is deleted and built again.
//!
//! In the order in which data passes: [`source`] reads rows; [`analyzer`] and [`facts`] say what they can be found by; [`tail`] keeps them
//! at first; [`activity`] says when, and [`checkpoint`] indexes them ([`vector_checkpoint`] and [`text_checkpoint`]), as [`merge_plan`] says; [`search`] asks all of these, with [`selection`] for filters, whose
//! results are kept ([`selected`], [`filter_cache`]), [`text_search`] for words, [`segment`] and [`vector_index`] for meaning, as [`vector_plan`] says, and
//! [`ranking`] to keep the best.

mod activity;
mod analyzer;
mod checkpoint;
mod dense;
mod error;
mod facts;
mod files;
mod filter_cache;
mod manifest;
mod merge_plan;
mod query_sample;
mod ranking;
mod search;
mod search_metrics;
mod segment;
mod selected;
mod selection;
mod source;
mod tail;
mod text_checkpoint;
mod text_index;
mod text_search;
mod trial;
mod vector_checkpoint;
mod vector_file;
mod vector_index;
mod vector_plan;
mod view;

#[cfg(test)]
mod tests;

pub use error::PartitionError;
pub use search_metrics::SearchMetrics;
pub use vector_index::Recall;

use crate::filter::Filter;
use crate::gpu_rows::{self, GpuRows, TenantRows};
use crate::shard::content_cache::ContentCache;
use crate::shard::text_writers::TextWriters;
use activity::{Activity, Due};
use analyzer::Analyzer;
use arc_swap::ArcSwap;
use checkpoint::{Checkpoint, Step};
use filter_cache::FilterCache;
use parking_lot::Mutex;
use query_sample::QuerySample;
use ragged_raft::ids::{RowId, TenantId};
use ragged_raft::meta::collection::Collection;
use ragged_raft::mutant::{self, Mutant};
use ragged_raft::shard::changes::{ChangesHandle, PendingChanges};
use ragged_raft::shard::reader::ShardReader;
use ragged_raft::shard::rows::PartitionRow;
use roaring::RoaringBitmap;
use search::{Search, passing};
use serde::{Deserialize, Serialize};
use source::RowSource;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use tail::TailBlock;
use view::{SegmentView, View};

/// Rows that one step indexes at most. They are streamed, so this bounds time, not memory.
const STEP_ROWS_MAX: u32 = 1 << 18;
/// Rows beyond the checkpoint that a partition is opened with; more are indexed first, so that they need no memory.
const OPEN_TAIL_ROWS_MAX: u32 = 8192;
/// How many times the memory of a tail waiting rows may take once they are read.
const UNREAD_TAILS_MAX: usize = 4;
/// Rows that are read into one block of the tail.
const BLOCK_ROWS: u32 = 4096;
/// Up to so many documents that pass a filter, ids are read for each; beyond, all documents are gone through in the order of their ids.
const NAMED_DOCUMENTS_MAX: u64 = 20_000;
/// Documents that are read at a time.
const HEADS_READ: usize = 1024;
/// Longest vectors that a collection can have.
pub const DIMENSION_MAX: usize = 4096;
const _: () = assert!(DIMENSION_MAX <= gpu_rows::DIMENSION_MAX, "a GPU must have room for all of them");
/// Longest ranking; more is never asked for.
const DEPTH_MAX: usize = 16_384;

/// What a partition is opened with.
pub struct PartitionContext {
    /// Reads the shard's rows.
    pub reader: ShardReader,
    /// What changes in the partition; watched before it is opened.
    pub changes: Arc<ChangesHandle>,
    /// Whose the collection is.
    pub tenant: TenantId,
    /// The collection.
    pub collection: Arc<Collection>,
    /// Folder of this partition's checkpoint; made when it is not there.
    pub folder: PathBuf,
    /// What hits have shown lately.
    pub cache: Arc<ContentCache>,
    /// Counts what searches do.
    pub metrics: SearchMetrics,
    /// The node's rows on GPUs.
    pub gpu_rows: Arc<GpuRows>,
    /// The node's writers of indexes of words.
    pub text_writers: Arc<TextWriters>,
    /// Memory of waiting rows with which they are indexed at once.
    pub tail_bytes_max: usize,
}

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PartitionQuery {
    /// By meaning: a vector of the collection's length, normalised to length 1.
    pub vector: Option<Vec<f32>>,
    /// By words: plain text; it has no syntax.
    pub text: Option<String>,
    /// Only rows of documents that pass.
    pub filter: Option<Filter>,
    /// Candidates that each ranking should have; with `group_by_document`, documents.
    pub depth: usize,
    /// Each ranking has the best row of each document only.
    pub group_by_document: bool,
    /// How many of the nearest rows by meaning must be found.
    pub recall: Recall,
    /// Say how the search was run.
    pub explain: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PartitionAnswer {
    /// By meaning, best first; of equal scores the lower row. Scores are inner products.
    pub dense: Vec<Candidate>,
    /// By words, best first; of equal scores the lower row. Scores are BM25's, with this partition's statistics.
    pub text: Vec<Candidate>,
    /// How the search was run, with `explain`.
    pub steps: Vec<String>,
}

/// A row that was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The row.
    pub row: RowId,
    /// Its score; comparable within one ranking.
    pub score: f32,
    /// Document that it is a chunk of.
    pub document_id: String,
    /// Number of the chunk in its document.
    pub chunk: u32,
}

/// What a round of indexing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IndexProgress {
    /// Rows that were added to the vector segments.
    pub rows: u64,
    /// Segments that were joined into others.
    pub replaced: usize,
    /// Segments that there are now.
    pub segments: usize,
    /// Rows before it are indexed.
    pub until: u32,
}

/// How a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartitionStatus {
    /// Vector segments.
    pub segments: usize,
    /// Rows that are there.
    pub live_rows: u64,
    /// Rows in memory because they are not indexed yet, with those that are gone since.
    pub tail_rows: usize,
    /// Rows before it are indexed.
    pub indexed_until: u32,
    /// Indexes that were damaged, or of another past, and were started again from the rows since the partition was opened.
    pub rebuilds: u64,
}

/// A loaded partition.
pub struct Partition {
    source: RowSource,
    changes: Arc<ChangesHandle>,
    analyzer: Analyzer,
    metrics: SearchMetrics,
    gpus: TenantRows,
    view: ArcSwap<View>,
    /// Held while the view is exchanged. Taken after `checkpoint` where both are.
    follower: Mutex<Follower>,
    /// Held while the indexes are built.
    checkpoint: Mutex<Checkpoint>,
    activity: Mutex<Activity>,
    rebuilds: AtomicU64,
    tail_bytes_max: usize,
    /// Queries that its indexes are tried with.
    sample: QuerySample,
    /// Searches read vectors from their files, and do not look at them where they are mapped.
    reads_vectors: AtomicBool,
    /// A search has come since the last round of indexing began.
    is_searched: AtomicBool,
    /// Where its checkpoint is.
    folder: PathBuf,
    /// The collection has been dropped: nothing is written any more, and the folder goes with whoever used it last.
    is_dropped: AtomicBool,
}

/// How the view follows the rows.
#[derive(Default)]
struct Follower {
    /// Changes were taken and could not be applied: the view has to be made again.
    is_lost: bool,
    /// The checkpoint is of another past and has to be started again.
    is_checkpoint_void: bool,
    /// One more each time that the view was made again: what was built beside is not for it.
    epoch: u64,
}

impl Partition {
    /// Opens the partition: loads its checkpoint, builds again what is not right, and reads the rows beyond it.
    pub fn open(context: PartitionContext) -> Result<Partition, PartitionError> {
        let collection = &context.collection;
        let dimension = collection.vector().dimension as usize;
        let source = RowSource::new(context.reader, context.tenant, collection.id, dimension, context.cache);
        let analyzer = Analyzer::new(&collection.language);
        let counters = source.counters()?;
        let live = source.live_rows(0, counters.next_row.0)?;
        let (folder, writers, dimension) = (&context.folder, context.text_writers, source.dimension());
        let opened = Checkpoint::open(folder, &collection.language, &analyzer, writers, dimension, &live, counters)?;
        let (checkpoint, rebuilds) = opened;
        let view = first_view(&checkpoint, live)?;
        let partition = Partition {
            source,
            changes: context.changes,
            metrics: context.metrics,
            gpus: TenantRows::new(context.gpu_rows, context.tenant),
            analyzer,
            view: ArcSwap::from_pointee(view),
            follower: Mutex::default(),
            checkpoint: Mutex::new(checkpoint),
            activity: Mutex::new(Activity::new(counters.changed_at)),
            rebuilds: AtomicU64::new(rebuilds),
            tail_bytes_max: context.tail_bytes_max,
            sample: QuerySample::default(),
            reads_vectors: AtomicBool::new(false),
            is_searched: AtomicBool::new(false),
            folder: context.folder,
            is_dropped: AtomicBool::new(false),
        };
        partition.load_tail(counters.next_row.0)?;
        Ok(partition)
    }

    fn load_tail(&self, next_row: u32) -> Result<(), PartitionError> {
        if next_row.saturating_sub(self.view.load().next_row) > OPEN_TAIL_ROWS_MAX
            && let Err(fault) = self.advance(false)
        {
            tracing::warn!(%fault, "rows could not be indexed when their partition was opened: they are kept in memory");
        }
        let _follower = self.follower.lock();
        let mut view = View::clone(&self.view.load());
        if mutant::is_on(Mutant::LoseTail) {
            view.next_row = next_row;
        }
        self.read_tail(&mut view, next_row)?;
        self.view.store(Arc::new(view));
        Ok(())
    }

    /// Searches. Sees every write that was acknowledged before it was called.
    pub fn search(&self, query: &PartitionQuery) -> Result<PartitionAnswer, PartitionError> {
        if !self.is_searched.load(Ordering::Relaxed) {
            self.is_searched.store(true, Ordering::Relaxed);
        }
        let view = self.current()?;
        let bounded;
        let query = if query.depth > DEPTH_MAX {
            bounded = PartitionQuery { depth: DEPTH_MAX, ..query.clone() };
            &bounded
        } else {
            query
        };
        let Partition { source, analyzer, metrics, gpus, .. } = self;
        let answer = Search { view: &view, source, analyzer, metrics, gpus, query }.run()?;
        if let Some(vector) = &query.vector
            && view.segments.iter().any(|part| part.segment.has_index())
        {
            self.sample.note(vector);
        }
        Ok(answer)
    }

    /// Ids of documents that pass, in their order, after `after`, and their first rows; `limit` of them at most.
    pub fn matching_documents(
        &self,
        filter: &Filter,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, RowId)>, PartitionError> {
        let view = self.current()?;
        let selected = passing(&view, Some(filter), &self.metrics)?;
        let first_rows = selected.as_ref().map_or(view.live.as_ref(), |selected| selected.rows.as_ref()) & view.starts.as_ref();
        if first_rows.len() > NAMED_DOCUMENTS_MAX {
            return self.matching_in_order(&first_rows, after, limit);
        }
        let rows: Vec<u32> = first_rows.iter().collect();
        let owners = self.source.owners(&rows)?.into_iter().zip(rows);
        let mut documents: Vec<(String, RowId)> =
            owners.filter_map(|(owner, row)| Some((owner?.document_id, RowId(row)))).collect();
        documents.retain(|(id, _)| after.is_none_or(|after| id.as_str() > after));
        documents.sort_unstable();
        documents.truncate(limit);
        Ok(documents)
    }

    fn matching_in_order(
        &self,
        first_rows: &RoaringBitmap,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, RowId)>, PartitionError> {
        let mut documents = Vec::new();
        let mut last = after.map(str::to_owned);
        while documents.len() < limit {
            let heads = self.source.heads(last.as_deref(), HEADS_READ)?;
            let Some(head) = heads.last() else { break };
            last = Some(head.id.clone());
            let passing = heads.into_iter().filter(|head| first_rows.contains(head.first_row.0));
            documents.extend(passing.map(|head| (head.id, head.first_row)));
        }
        documents.truncate(limit);
        Ok(documents)
    }

    /// Whether [`Partition::index`] has something to do. Reads one row of the database.
    pub fn wants_indexing(&self) -> bool {
        if self.is_dropped() {
            return false;
        }
        let Ok(counters) = self.source.counters() else { return false };
        // Somebody is taking in changes: the next call is early enough, and this one must not wait.
        let Some(follower) = self.follower.try_lock() else { return false };
        if follower.is_checkpoint_void {
            return true;
        }
        drop(follower);
        let view = self.view.load();
        let waiting = waiting(&view, &counters);
        // The next search would read those that none has read yet.
        let vectors_bytes = waiting as usize * self.source.dimension() * size_of::<half::f16>();
        if view.tail_bytes() >= self.tail_bytes_max || vectors_bytes >= UNREAD_TAILS_MAX * self.tail_bytes_max {
            return true;
        }
        let due = self.activity.lock().due(counters.changed_at, waiting, self.is_searched.load(Ordering::Relaxed));
        due == Due::Now || (due == Due::ToSettle && self.could_settle())
    }

    /// Whether [`Partition::try_index`] has something to do.
    pub fn wants_trial(&self) -> bool {
        self.view.load().segments.iter().any(|part| part.segment.wants_trial(&self.sample))
    }

    /// Finds out how hard an approximate index must be searched for the queries that have come: of one that is due, so that others have their turns. Searches
    /// go on meanwhile. Whether one was due.
    pub fn try_index(&self) -> Result<bool, PartitionError> {
        for part in &self.view.load_full().segments {
            if part.segment.try_index(&self.sample)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn could_settle(&self) -> bool {
        let view = self.view.load();
        let step = Step { counters: Default::default(), until: 0, live: &view.live, known_until: view.next_row, is_idle: true };
        // When the indexes are being built at the moment, that comes first.
        self.checkpoint.try_lock().is_some_and(|checkpoint| checkpoint.could_settle(&step))
    }

    /// Moves waiting rows into the indexes, and joins segments as they grow. One call at a time does this; others wait. Searches go on
    /// meanwhile. After a crash at any moment the partition opens as it was before or after.
    pub fn index(&self) -> Result<IndexProgress, PartitionError> {
        let begun = Instant::now();
        self.is_searched.store(false, Ordering::Relaxed);
        let counters = self.source.counters()?;
        let is_idle = self.activity.lock().is_idle(counters.changed_at, waiting(&self.view.load(), &counters));
        let outcome = self.index_with(is_idle);
        self.activity.lock().rest_after(begun.elapsed());
        outcome
    }

    fn index_with(&self, is_idle: bool) -> Result<IndexProgress, PartitionError> {
        let outcome = self.advance(is_idle);
        // When many rows came meanwhile, they are for the next round: taken in now, they would fill memory, and nobody has asked for them.
        let few_came = || -> Result<bool, PartitionError> {
            let came = self.source.counters()?.next_row.0.saturating_sub(self.view.load().next_row);
            Ok(came <= OPEN_TAIL_ROWS_MAX)
        };
        match outcome {
            Ok(progress) => {
                if few_came()? {
                    self.current()?;
                }
                Ok(progress)
            }
            Err(fault) => {
                self.current()?;
                // The folder went while it was being written to.
                if self.is_dropped() { Ok(IndexProgress::default()) } else { Err(fault) }
            }
        }
    }

    fn advance(&self, is_idle: bool) -> Result<IndexProgress, PartitionError> {
        let mut checkpoint = self.checkpoint.lock();
        let mut progress = IndexProgress::default();
        while !self.is_dropped() {
            let (epoch, is_void) = {
                let follower = self.follower.lock();
                (follower.epoch, follower.is_checkpoint_void)
            };
            if is_void {
                checkpoint.restart(&self.analyzer)?;
            }
            let counters = self.source.counters()?;
            let until = counters.next_row.0.min(checkpoint.until().saturating_add(STEP_ROWS_MAX));
            let view = self.view.load_full();
            let advanced = checkpoint
                .advance(&self.source, &Step { counters, until, live: &view.live, known_until: view.next_row, is_idle })?;
            progress.rows += advanced.rows;
            progress.replaced += advanced.replaced;
            progress.segments = checkpoint.segments().len();
            progress.until = checkpoint.until();
            self.publish(&checkpoint, epoch)?;
            checkpoint.remove_replaced()?;
            if until >= counters.next_row.0 {
                if is_idle {
                    self.activity.lock().settled(counters.changed_at);
                }
                break;
            }
        }
        Ok(progress)
    }

    /// Lets searches use the indexes as they are now.
    fn publish(&self, checkpoint: &Checkpoint, epoch: u64) -> Result<(), PartitionError> {
        let (text, mut starts) = checkpoint.text_snapshot()?;
        let until = checkpoint.until();
        // Rows that no search has asked for yet are not known to the view. They are read before it is locked; should somebody make the
        // view know them meanwhile, with what has been removed since, that counts.
        let known = self.view.load().next_row;
        let mut unknown = Vec::new();
        self.source.each_owner(known, until, |row, first_row| unknown.push((row, first_row)))?;
        let mut follower = self.follower.lock();
        if follower.epoch != epoch {
            return Ok(()); // the rows were replaced meanwhile; the next round looks at them again
        }
        let mut view = View::clone(&self.view.load());
        starts |= view.starts.as_ref();
        if view.next_row > known {
            unknown.clear();
            self.source.each_owner(view.next_row, until, |row, first_row| unknown.push((row, first_row)))?;
        }
        let live = Arc::make_mut(&mut view.live);
        for (row, first_row) in unknown {
            live.insert(row);
            starts.insert(first_row);
        }
        view.next_row = view.next_row.max(until);
        view.starts = Arc::new(starts);
        view.text = text;
        view.segments_until = checkpoint.segments_until();
        view.segments = checkpoint.segments().iter().map(|segment| SegmentView::new(segment.clone(), &view.live)).collect();
        view.read_vectors(self.reads_vectors());
        view.tail = tail::cut(&view.tail, until, self.source.dimension());
        follower.is_checkpoint_void = false;
        let old = self.view.swap(Arc::new(view));
        drop(follower);
        drop(old); // closing files takes time; nobody waits for it
        Ok(())
    }

    /// The view, with everything in it that was acknowledged before the call.
    fn current(&self) -> Result<Arc<View>, PartitionError> {
        let mut follower = self.follower.lock();
        if let Some(changes) = self.changes.drain() {
            self.is_dropped.fetch_or(changes.dropped, Ordering::Relaxed);
            let must_reload = std::mem::replace(&mut follower.is_lost, true) || changes.reload || changes.dropped;
            if must_reload {
                self.reload(&mut follower)?;
            } else {
                self.follow(&changes)?;
            }
            follower.is_lost = false;
        } else if follower.is_lost {
            self.reload(&mut follower)?;
            follower.is_lost = false;
        }
        Ok(self.view.load_full())
    }

    /// Applies what has changed.
    fn follow(&self, changes: &PendingChanges) -> Result<(), PartitionError> {
        let mut view = View::clone(&self.view.load());
        self.read_tail(&mut view, changes.next_row.0)?;
        // After reading: a row that was read may have been removed since. Rows are never used again, so gone is gone.
        view.remove(&changes.removed.iter().map(|row| row.0).collect());
        self.view.store(Arc::new(view));
        Ok(())
    }

    /// Adds the rows up to `next_row` to the view.
    fn read_tail(&self, view: &mut View, next_row: u32) -> Result<(), PartitionError> {
        while view.next_row < next_row {
            let until = next_row.min(view.next_row.saturating_add(BLOCK_ROWS));
            let block = TailBlock::read(&self.source, &self.analyzer, view.next_row, until)?;
            Arc::make_mut(&mut view.live).extend(block.rows.iter().copied());
            Arc::make_mut(&mut view.starts).extend(block.first_rows().iter().copied());
            tail::push(&mut view.tail, block);
            view.next_row = until;
        }
        Ok(())
    }

    /// Makes the view again from the rows. The indexes stay in use when they have all rows that they should have; otherwise everything is
    /// kept in memory until they are built again.
    fn reload(&self, follower: &mut Follower) -> Result<(), PartitionError> {
        follower.epoch += 1;
        let counters = self.source.counters()?;
        let next_row = counters.next_row.0;
        let live = self.source.live_rows(0, next_row)?;
        let mut view = View::clone(&self.view.load());
        if follower.is_checkpoint_void || !is_covered(&view, &live, next_row) {
            if !self.is_dropped() {
                tracing::warn!("a partition's rows were replaced: its indexes are built again");
                self.rebuilds.fetch_add(1, Ordering::Relaxed);
            }
            follower.is_checkpoint_void = true;
            view.segments.clear();
            view.segments_until = 0;
            view.text.until = 0;
            view.starts = Arc::default();
        }
        let until = view.segments_until.min(view.text.until);
        let mut known = live;
        known.remove_range(until..);
        view.live = Arc::new(known);
        view.segments = view.segments.iter().map(|one| SegmentView::new(one.segment.clone(), &view.live)).collect();
        view.tail.clear();
        view.next_row = until;
        self.read_tail(&mut view, next_row)?;
        // The segments may reach further than the text index: they are compared again with all rows that are there.
        view.segments = view.segments.iter().map(|one| SegmentView::new(one.segment.clone(), &view.live)).collect();
        self.view.store(Arc::new(view));
        Ok(())
    }

    /// Bytes of memory that the partition holds, roughly; without mapped files.
    pub fn memory_bytes(&self) -> usize {
        self.view.load().memory_bytes() + self.sample.memory_bytes()
    }

    /// Bytes of its mapped files that searches go through in any case, and of vectors, which they could read instead.
    pub fn mapped_bytes(&self) -> (usize, usize) {
        self.view.load().mapped_bytes()
    }

    /// Whether searches read vectors from their files, or look at them where they are mapped.
    pub fn reads_vectors(&self) -> bool {
        self.reads_vectors.load(Ordering::Relaxed)
    }

    /// Has searches read vectors from their files from now on, which needs no memory, or look at them where they are mapped, which is quicker. To be said
    /// again when segments have come.
    pub fn read_vectors(&self, reads: bool) {
        self.reads_vectors.store(reads, Ordering::Relaxed);
        self.view.load().read_vectors(reads);
    }

    /// Gives the pages of its mapped files back. They stay in the system's cache of files as long as nobody needs the memory, and are found there by the
    /// searches that come next.
    pub fn give_back(&self) {
        self.view.load_full().give_back();
    }

    /// How it is.
    pub fn status(&self) -> PartitionStatus {
        let view = self.view.load();
        PartitionStatus {
            segments: view.segments.len(),
            live_rows: view.live.len(),
            tail_rows: view.tail_rows(),
            indexed_until: view.segments_until.min(view.text.until),
            rebuilds: self.rebuilds.load(Ordering::Relaxed),
        }
    }

    fn is_dropped(&self) -> bool {
        self.is_dropped.load(Ordering::Relaxed)
    }

    /// The collection has been dropped: nothing more is indexed. What is being written at this moment goes with the last user of the partition.
    pub fn retire(&self) {
        self.is_dropped.store(true, Ordering::Relaxed);
    }

    /// Deletes the checkpoint of a partition that is gone.
    pub fn remove(folder: &Path) -> std::io::Result<()> {
        checkpoint::remove(folder)
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        // It may have been opened while the collection was being dropped.
        let is_dropped = self.is_dropped() || self.changes.drain().is_some_and(|changes| changes.dropped);
        if is_dropped && let Err(fault) = Partition::remove(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %fault, "files of a deleted collection are left behind until the node starts again");
        }
    }
}

/// Whether the indexes of the view have all rows that they should have.
fn is_covered(view: &View, live: &RoaringBitmap, next_row: u32) -> bool {
    if view.segments_until > next_row || view.text.until > next_row {
        return false;
    }
    let mut rows = live.clone();
    rows.remove_range(view.text.until..);
    let mut in_segments = RoaringBitmap::new();
    for part in &view.segments {
        in_segments |= part.segment.row_set();
    }
    let mut vectors = live.clone();
    vectors.remove_range(view.segments_until..);
    rows.is_subset(&view.text.rows) && vectors.is_subset(&in_segments)
}

/// Rows that are not in both indexes yet.
fn waiting(view: &View, counters: &PartitionRow) -> u32 {
    counters.next_row.0.saturating_sub(view.segments_until.min(view.text.until))
}

/// The view of a checkpoint: the rows that are in both indexes.
fn first_view(checkpoint: &Checkpoint, mut live: RoaringBitmap) -> Result<View, PartitionError> {
    let (text, starts) = checkpoint.text_snapshot()?;
    let until = checkpoint.until();
    let segments = checkpoint.segments().iter().map(|segment| SegmentView::new(segment.clone(), &live)).collect();
    live.remove_range(until..);
    Ok(View {
        live: Arc::new(live),
        starts: Arc::new(starts),
        next_row: until,
        segments_until: checkpoint.segments_until(),
        segments,
        text,
        tail: Vec::new(),
        filters: FilterCache::default(),
    })
}
