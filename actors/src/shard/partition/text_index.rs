//! The index of words and metadata: tantivy, one of its documents for each row.
//!
//! It says itself up to which row it reaches, in what each of its commits carries, so that it and the vector segments need not be
//! committed together: after a crash between the two, each goes on from where it is.

use super::analyzer::Analyzer;
use super::dense::{self, DenseBits};
use super::error::PartitionError;
use super::facts::{FactRange, ValueRange};
use super::files;
use super::filter_cache::FilterCache;
use super::merge_plan::{self, SegmentSize};
use super::selected::IndexedSelection;
use super::selection::FactIndex;
use super::source::RowSource;
use crate::shard::text_writers::Writing;
use parking_lot::Mutex;
use ragged_raft::failpoints::{self, Point};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tantivy::columnar::Column;
use tantivy::directory::{Directory, MmapDirectory, OwnedBytes};
use tantivy::index::{InvertedIndexReader, SegmentComponent, SegmentId, SegmentMeta, SegmentReader};
use tantivy::indexer::{LogMergePolicy, MergePolicy, NoMergePolicy};
use tantivy::postings::{BlockSegmentPostings, TermInfo};
use tantivy::schema::{
    BytesOptions, FAST, Field, INDEXED, IndexRecordOption, NumericOptions, Schema, TextFieldIndexing, TextOptions,
};
use tantivy::{Index, IndexReader, IndexSettings, IndexWriter, ReloadPolicy, Searcher, TantivyDocument, Term};

/// Part of a segment's rows that may be dead before it is written again.
const DEAD_PART_MAX: f32 = 0.3;
/// Files are compared with their checksums when the index is opened, up to this length in all.
const VERIFIED_BYTES_MAX: u64 = 256 << 20;
const TOKENIZER: &str = "ragged";
/// Raised when rows are indexed in another way; an older index is then built again.
const VERSION: u32 = 2;

/// What a commit carries, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Payload {
    version: u32,
    language: String,
    /// All rows before it that are alive are indexed.
    until: u32,
    /// Log index of the partition's last change.
    changed_at: u64,
}

/// The fields of a row.
#[derive(Clone, Copy)]
pub(super) struct Fields {
    row: Field,
    first_row: Field,
    pub(super) text: Field,
    facts: Field,
}

/// The index of one partition.
pub(super) struct TextIndex {
    directory: MmapDirectory,
    index: Index,
    reader: IndexReader,
    fields: Fields,
    language: String,
    /// What is known of the segments that there were when it was looked at last: they do not change but by deletions.
    known: Mutex<HashMap<SegmentKey, Arc<SegmentRows>>>,
}

/// A segment of tantivy's, and how many of its documents are deleted.
type SegmentKey = (SegmentId, u32);

/// The rows of a segment's documents.
struct SegmentRows {
    /// By the documents' numbers, deleted ones included.
    column: Column<u64>,
    /// Those that are not deleted.
    rows: RoaringBitmap,
    /// The first rows of their documents of ours.
    starts: RoaringBitmap,
}

impl SegmentRows {
    fn read(segment: &SegmentReader) -> Result<SegmentRows, PartitionError> {
        let column = segment.fast_fields().u64("row")?;
        let rows = living(segment, &column);
        let starts = living(segment, &segment.fast_fields().u64("first_row")?);
        Ok(SegmentRows { column, rows, starts })
    }
}

/// What a column has of documents that are not deleted.
fn living(segment: &SegmentReader, column: &Column<u64>) -> RoaringBitmap {
    let value = |document| column.first(document).and_then(|row| u32::try_from(row).ok());
    let mut rows: Vec<u32> = segment.doc_ids_alive().filter_map(value).collect();
    rows.sort_unstable();
    rows.dedup();
    rows.into_iter().collect()
}

/// The index at one moment; it does not change.
#[derive(Clone)]
pub(super) struct TextSnapshot {
    directory: MmapDirectory,
    pub(super) searcher: Searcher,
    pub(super) fields: Fields,
    /// For each of tantivy's segments the rows of its documents.
    segments: Arc<Vec<Arc<SegmentRows>>>,
    /// What filters have selected from it.
    pub(super) filters: Arc<FilterCache<IndexedSelection>>,
    /// Rows before it are here.
    pub(super) until: u32,
    /// The rows that are here and not deleted.
    pub(super) rows: Arc<RoaringBitmap>,
    /// Log index of the partition's last change when it was written.
    pub(super) changed_at: u64,
}

impl TextIndex {
    /// Opens the index in a folder, or makes an empty one. An index that is damaged, or of another kind, is an error.
    pub(super) fn open(folder: &Path, language: &str, analyzer: &Analyzer) -> Result<TextIndex, PartitionError> {
        std::fs::create_dir_all(folder).map_err(PartitionError::file(folder))?;
        let (schema, fields) = schema();
        let directory = MmapDirectory::open(folder).map_err(tantivy::TantivyError::from)?;
        let is_new = !Index::exists(&directory).map_err(tantivy::TantivyError::from)?;
        if !is_new {
            verify(folder)?;
        }
        let shared = directory.clone();
        let index = if is_new { Index::create(shared, schema, IndexSettings::default())? } else { Index::open(shared)? };
        index.tokenizers().register(TOKENIZER, analyzer.for_texts());
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).num_warming_threads(0).try_into()?;
        let opened = TextIndex { directory, index, reader, fields, language: language.to_owned(), known: Mutex::default() };
        let payload = opened.payload()?;
        if payload.version != VERSION || payload.language != language {
            return Err(PartitionError::damaged(folder, "it was written for another language or by another version"));
        }
        Ok(opened)
    }

    fn payload(&self) -> Result<Payload, PartitionError> {
        match self.index.load_metas()?.payload {
            None => Ok(Payload { version: VERSION, language: self.language.clone(), until: 0, changed_at: 0 }),
            Some(text) => serde_json::from_str(&text)
                .map_err(|fault| PartitionError::Text(tantivy::TantivyError::InternalError(fault.to_string()))),
        }
    }

    /// The index as it is now, and the first rows of the documents in it.
    pub(super) fn snapshot(&self) -> Result<(TextSnapshot, RoaringBitmap), PartitionError> {
        self.reader.reload()?;
        let searcher = self.reader.searcher();
        let payload = self.payload()?;
        let segments = self.segments(&searcher)?;
        let (mut rows, mut starts) = (RoaringBitmap::new(), RoaringBitmap::new());
        for segment in &segments {
            rows |= &segment.rows;
            starts |= &segment.starts;
        }
        let snapshot = TextSnapshot {
            directory: self.directory.clone(),
            searcher,
            fields: self.fields,
            segments: Arc::new(segments),
            filters: Arc::default(),
            until: payload.until,
            rows: Arc::new(rows),
            changed_at: payload.changed_at,
        };
        Ok((snapshot, starts))
    }

    /// What is known of each segment; only new ones are gone through.
    fn segments(&self, searcher: &Searcher) -> Result<Vec<Arc<SegmentRows>>, PartitionError> {
        let mut known = self.known.lock();
        let (mut segments, mut found) = (Vec::new(), HashMap::new());
        for segment in searcher.segment_readers() {
            let key = (segment.segment_id(), segment.num_deleted_docs());
            let rows = match known.get(&key) {
                Some(rows) => rows.clone(),
                None => Arc::new(SegmentRows::read(segment)?),
            };
            found.insert(key, rows.clone());
            segments.push(rows);
        }
        *known = found;
        Ok(segments)
    }

    /// The segments to join when no rows come.
    fn joined_when_idle(&self) -> Result<Vec<SegmentId>, PartitionError> {
        let segments = self.index.searchable_segment_metas()?;
        let size = |segment: &SegmentMeta| SegmentSize { live: segment.num_docs().into(), written: segment.max_doc().into() };
        let joined = merge_plan::when_idle(&segments.iter().map(size).collect::<Vec<_>>());
        Ok(joined.into_iter().map(|place| segments[place].id()).collect())
    }

    /// Whether there is something to do when no rows come.
    pub(super) fn could_settle(&self) -> Result<bool, PartitionError> {
        Ok(!self.joined_when_idle()?.is_empty())
    }

    /// Adds rows, deletes `dead` ones, and commits; when no rows come otherwise, joins what is small.
    pub(super) fn advance(
        &self,
        source: &RowSource,
        writing: &Writing<'_>,
        rows: Range<u32>,
        dead: &RoaringBitmap,
        changed_at: u64,
        is_idle: bool,
    ) -> Result<(), PartitionError> {
        let mut writer: IndexWriter = self.index.writer_with_num_threads(1, writing.bytes())?;
        let policy: Box<dyn MergePolicy> = if is_idle { Box::new(NoMergePolicy) } else { merge_policy(rows.len() as u64) };
        writer.set_merge_policy(policy);
        for row in dead {
            writer.delete_term(Term::from_field_u64(self.fields.row, u64::from(row)));
        }
        if !rows.is_empty() {
            source.each_row(rows.start, rows.end, |stored| {
                let mut document = TantivyDocument::new();
                document.add_u64(self.fields.row, u64::from(stored.row));
                document.add_u64(self.fields.first_row, u64::from(stored.first_row));
                document.add_text(self.fields.text, stored.text);
                for fact in stored.facts.values.iter().chain(&stored.facts.coarse) {
                    document.add_bytes(self.fields.facts, fact);
                }
                writer.add_document(document)?;
                Ok(())
            })?;
        }
        let payload = Payload { version: VERSION, language: self.language.clone(), until: rows.end, changed_at };
        let payload = serde_json::to_string(&payload).map_err(|fault| tantivy::TantivyError::InternalError(fault.to_string()))?;
        let mut commit = writer.prepare_commit()?;
        commit.set_payload(&payload);
        failpoints::hit(Point::TextCommitBefore);
        commit.commit()?;
        failpoints::hit(Point::TextCommitAfter);
        if is_idle {
            let joined = self.joined_when_idle()?;
            if !joined.is_empty()
                && let Err(fault) = writer.merge(&joined).wait()
            {
                tracing::warn!(%fault, "small parts of a text index could not be joined");
            }
        }
        writer.wait_merging_threads()?;
        Ok(())
    }
}

fn merge_policy(added: u64) -> Box<LogMergePolicy> {
    let mut policy = LogMergePolicy::default();
    policy.set_min_num_segments(merge_plan::joined_min(added) as usize);
    policy.set_del_docs_ratio_before_merge(DEAD_PART_MAX);
    Box::new(policy)
}

fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let words =
        TextFieldIndexing::default().set_tokenizer(TOKENIZER).set_index_option(IndexRecordOption::WithFreqs).set_fieldnorms(true);
    let fields = Fields {
        row: schema.add_u64_field("row", INDEXED | FAST),
        first_row: schema.add_u64_field("first_row", NumericOptions::from(FAST)),
        text: schema.add_text_field("text", TextOptions::default().set_indexing_options(words)),
        facts: schema.add_bytes_field("facts", BytesOptions::default().set_indexed()),
    };
    (schema.build(), fields)
}

/// Compares the files with their checksums, through an opening of their own: what was mapped for it is given back.
fn verify(folder: &Path) -> Result<(), PartitionError> {
    let entries = std::fs::read_dir(folder).map_err(PartitionError::file(folder))?;
    let bytes: u64 = entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|about| about.len()).sum();
    let index = Index::open_in_dir(folder)?;
    for segment in index.searchable_segment_metas()? {
        let is_missing = |file: &PathBuf| !folder.join(file).exists();
        let missing = components(&segment).into_iter().map(|component| segment.relative_path(component)).find(is_missing);
        if let Some(file) = missing {
            return Err(PartitionError::damaged(&folder.join(file), "it is missing"));
        }
    }
    if bytes > VERIFIED_BYTES_MAX {
        return Ok(());
    }
    match index.validate_checksum()?.into_iter().next() {
        Some(file) => Err(PartitionError::damaged(&folder.join(file), "its checksum does not match")),
        None => Ok(()),
    }
}

/// The files that a segment cannot do without.
fn components(segment: &SegmentMeta) -> Vec<SegmentComponent> {
    use SegmentComponent::{Delete, FastFields, FieldNorms, Postings, Terms};
    let mut components = vec![Postings, Terms, FastFields, FieldNorms];
    if segment.has_deletes() {
        components.push(Delete);
    }
    components
}

impl TextSnapshot {
    /// The row of a document.
    pub(super) fn row_of(&self, segment: usize, document: u32) -> Option<u32> {
        self.segments.get(segment)?.column.first(document).and_then(|row| u32::try_from(row).ok())
    }

    /// The rows of the documents that `gather` finds, segment by segment.
    fn rows_of(
        &self,
        mut gather: impl FnMut(&Terms<'_>, &mut DenseBits) -> Result<(), PartitionError>,
    ) -> Result<RoaringBitmap, PartitionError> {
        let mut rows = RoaringBitmap::new();
        for (segment, rows_of) in self.searcher.segment_readers().iter().zip(self.segments.iter()) {
            let inverted = segment.inverted_index(self.fields.facts)?;
            let mut documents = DenseBits::below(segment.max_doc() as usize);
            gather(&Terms { inverted: &inverted }, &mut documents)?;
            rows |= rows_in(&rows_of.column, &documents);
        }
        Ok(rows)
    }

    /// Gives the pages of its mapped files back.
    pub(super) fn give_back(&self) {
        for content in self.mapped() {
            // SAFETY: it is a whole file, as tantivy has mapped it, for reading and shared; no file of its changes once it is written.
            unsafe { files::give_back(content.as_slice()) };
        }
    }

    /// Bytes of its mapped files.
    pub(super) fn mapped_bytes(&self) -> usize {
        self.mapped().map(|content| content.len()).sum()
    }

    /// What is mapped. Whoever opens a file that is mapped already is given the same mapping; a file may have been deleted a moment ago.
    fn mapped(&self) -> impl Iterator<Item = OwnedBytes> {
        let paths = self.directory.get_cache_info().mmapped.into_iter();
        paths.filter_map(|path| self.directory.open_read(&path).ok()?.read_bytes().ok())
    }
}

/// The rows of some documents.
fn rows_in(column: &Column<u64>, documents: &DenseBits) -> RoaringBitmap {
    let mut rows = Vec::new();
    let mut found = [None; dense::PART];
    documents.each_part(|documents| {
        let found = &mut found[..documents.len()];
        found.fill(None);
        column.first_vals(documents, found);
        rows.extend(found.iter().flatten().filter_map(|row| u32::try_from(*row).ok()));
    });
    match RoaringBitmap::from_sorted_iter(rows.iter().copied()) {
        Ok(rows) => rows,
        // Segments that have been joined may follow each other in any order.
        Err(_) => rows.into_iter().collect(),
    }
}

/// The facts of one of tantivy's segments.
struct Terms<'a> {
    inverted: &'a InvertedIndexReader,
}

impl Terms<'_> {
    /// Calls `take` with documents that have the fact of this place, in order.
    fn documents(&self, place: &TermInfo, postings: &mut Postings, mut take: impl FnMut(&[u32])) -> Result<(), PartitionError> {
        let postings = match postings {
            // Opening another one would cost more than reading it: most facts are of few documents.
            Some(postings) => {
                self.inverted.reset_block_postings_from_terminfo(place, postings)?;
                postings
            }
            none => none.insert(self.inverted.read_block_postings_from_terminfo(place, IndexRecordOption::Basic)?),
        };
        while postings.block_len() > 0 {
            take(postings.docs());
            postings.advance();
        }
        Ok(())
    }

    /// Calls `take` with each fact of the range and documents that have it.
    fn each_within(&self, (from, until): &FactRange, mut take: impl FnMut(&[u8], &[u32])) -> Result<(), PartitionError> {
        if from >= until {
            return Ok(());
        }
        let mut postings = None;
        let mut facts = self.inverted.terms().range().ge(from).lt(until).into_stream()?;
        while let Some((fact, place)) = facts.next() {
            self.documents(place, &mut postings, |documents| take(fact, documents))?;
        }
        Ok(())
    }
}

/// What is used again for the documents of the next fact.
type Postings = Option<BlockSegmentPostings>;

impl FactIndex for TextSnapshot {
    fn rows_with(&self, facts: &[Vec<u8>]) -> Result<RoaringBitmap, PartitionError> {
        self.rows_of(|terms, found| {
            let mut postings = None;
            for fact in facts {
                if let Some(place) = terms.inverted.get_term_info(&Term::from_field_bytes(self.fields.facts, fact))? {
                    terms.documents(&place, &mut postings, |documents| found.insert_all(documents))?;
                }
            }
            Ok(())
        })
    }

    fn rows_within(&self, range: &ValueRange) -> Result<RoaringBitmap, PartitionError> {
        self.rows_of(|terms, found| {
            for facts in &range.cover {
                terms.each_within(facts, |_, documents| found.insert_all(documents))?;
            }
            Ok(())
        })
    }

    fn each_within(&self, range: &FactRange, take: &mut dyn FnMut(&[u8], &[u32])) -> Result<(), PartitionError> {
        let mut rows = Vec::new();
        for (segment, rows_of) in self.searcher.segment_readers().iter().zip(self.segments.iter()) {
            let inverted = segment.inverted_index(self.fields.facts)?;
            Terms { inverted: &inverted }.each_within(range, |fact, documents| {
                rows.clear();
                rows.extend(documents.iter().filter_map(|document| u32::try_from(rows_of.column.first(*document)?).ok()));
                take(fact, &rows);
            })?;
        }
        Ok(())
    }
}

/// Deletes the index in a folder.
pub(super) fn remove(folder: &Path) -> Result<(), PartitionError> {
    files::remove_folder(folder).map_err(PartitionError::file(folder))
}
