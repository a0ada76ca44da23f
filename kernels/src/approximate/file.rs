//! How an index lies in its file.
//!
//! All numbers are little-endian, every section begins at a multiple of 64 bytes: a head (magic number, version, dimension, number of rows, of lists
//! and of blocks); the lists' centroids as bytes, and their scales; the lists' lengths; what the codes stand for; the numbers of the rows, list by list, each
//! list filled up to whole blocks; the codes in the same order; by numbers, the rows' positions, scales and bytes. Rows have numbers so that neighbours in
//! lists are neighbours in memory. The file carries no checksum of its own: whoever keeps it compares one of the whole.

use super::DIMENSION_MAX;
use super::bytes::{ByteQuery, ByteRows, row_bytes};
use super::codes::{CODES, Codebook, PART, PartCodes, parts_of};
use super::scan::BLOCK;
use crate::row_file::RowFile;
use memmap2::{Mmap, UncheckedAdvice};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// First bytes of the file, its version among them.
const MAGIC: [u8; 8] = *b"RAGVEC\x00\x02";
/// Where sections begin.
const ALIGNMENT: usize = 64;
/// The number of a place without a row.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Why an index could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file could not be read.
    #[error("{}: {fault}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        fault: io::Error,
    },
    /// The file is not a whole index of the version that this program reads; it must be built again.
    #[error("{}: {why}; build it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
}

/// Sizes that say where everything lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) dimension: usize,
    pub(super) rows: usize,
    pub(super) lists: usize,
    pub(super) blocks: usize,
}

/// Where the sections are.
pub(super) struct Sections {
    pub(super) centroids: Range<usize>,
    pub(super) centroid_scales: Range<usize>,
    pub(super) lengths: Range<usize>,
    pub(super) codebook: Range<usize>,
    pub(super) numbers: Range<usize>,
    pub(super) codes: Range<usize>,
    pub(super) positions: Range<usize>,
    pub(super) row_scales: Range<usize>,
    pub(super) rows: Range<usize>,
}

impl Sizes {
    /// Bytes of a block's codes.
    pub(super) fn block_bytes(&self) -> usize {
        parts_of(self.dimension) / 2 * BLOCK
    }

    /// None when they are not sizes that an index can have.
    fn sections(&self) -> Option<Sections> {
        if self.dimension == 0 || self.dimension > DIMENSION_MAX {
            return None;
        }
        let mut end = ALIGNMENT;
        let mut section = |count: usize, bytes: usize| {
            let start = end;
            let until = start.checked_add(count.checked_mul(bytes)?)?;
            end = until.checked_next_multiple_of(ALIGNMENT)?;
            Some(start..until)
        };
        Some(Sections {
            centroids: section(self.lists, row_bytes(self.dimension))?,
            centroid_scales: section(self.lists, 4)?,
            lengths: section(self.lists, 4)?,
            codebook: section(parts_of(self.dimension), size_of::<PartCodes>())?,
            numbers: section(self.blocks, BLOCK * 4)?,
            codes: section(self.blocks, self.block_bytes())?,
            positions: section(self.rows, 4)?,
            row_scales: section(self.rows, 4)?,
            rows: section(self.rows, row_bytes(self.dimension))?,
        })
    }
}

/// Writes the sections of a file, in their order.
pub(super) struct IndexWriter<'w, W> {
    to: &'w mut W,
    sections: Sections,
    written: usize,
}

impl<'w, W: Write> IndexWriter<'w, W> {
    /// Begins with the head.
    pub(super) fn new(sizes: Sizes, to: &'w mut W) -> io::Result<Self> {
        let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "too many vectors for one index");
        let Sizes { dimension, rows, lists, blocks } = sizes;
        let mut writer = IndexWriter { to, sections: sizes.sections().ok_or_else(too_large)?, written: 0 };
        let mut head = MAGIC.to_vec();
        for size in [dimension, rows, lists, blocks] {
            head.extend(u32::try_from(size).map_err(|_| too_large())?.to_le_bytes());
        }
        writer.append(&head)?;
        Ok(writer)
    }

    /// Begins a section with these bytes.
    pub(super) fn section(&mut self, range: impl Fn(&Sections) -> &Range<usize>, bytes: &[u8]) -> io::Result<()> {
        let gap = range(&self.sections).start - self.written;
        self.append(&vec![0; gap])?;
        self.append(bytes)
    }

    /// Goes on with a section.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.to.write_all(bytes)
    }
}

/// An index, mapped from its file.
pub struct ApproximateIndex {
    mapped: Mmap,
    sizes: Sizes,
    sections: Sections,
    /// First block of each list, and the end of the last.
    starts: Vec<u32>,
    /// The rows as bytes, most of the file, are read and not mapped.
    reads_rows: AtomicBool,
    row_file: RowFile,
}

/// A list of an index.
pub(super) struct List<'a> {
    /// Number of its rows.
    pub(super) len: usize,
    /// Numbers of its rows, filled up to whole blocks.
    pub(super) numbers: &'a [u32],
    /// Their codes, block by block.
    pub(super) codes: &'a [u8],
    /// Numbers of its blocks among those of the index.
    pub(super) blocks: Range<usize>,
}

impl<'a> List<'a> {
    /// The codes of some of its blocks, by their places in the list.
    pub(super) fn codes_of(&self, blocks: Range<usize>) -> &'a [u8] {
        let block_bytes = self.codes.len() / self.blocks.len();
        &self.codes[blocks.start * block_bytes..blocks.end * block_bytes]
    }
}

impl ApproximateIndex {
    /// Opens the index in a file that [`build`](super::build()) has written. Nothing may change or shorten the file while it is open; it may be deleted.
    ///
    /// # Errors
    /// [`IndexError`] if the file cannot be read, or is not a whole index of this version.
    pub fn open(path: &Path) -> Result<ApproximateIndex, IndexError> {
        let file = |fault| IndexError::File { path: path.to_owned(), fault };
        let damaged = |why| IndexError::Damaged { path: path.to_owned(), why };
        let opened = File::open(path).map_err(file)?;
        // SAFETY: the caller promises that nothing changes or shortens the file.
        let mapped = unsafe { Mmap::map(&opened) }.map_err(file)?;
        let head = mapped.get(..ALIGNMENT).ok_or_else(|| damaged("it is too short for an index"))?;
        if head[..MAGIC.len()] != MAGIC {
            return Err(damaged("it is not an index of the version that this program reads"));
        }
        let size = |number: usize| {
            let start = MAGIC.len() + number * 4;
            u32::from_le_bytes([head[start], head[start + 1], head[start + 2], head[start + 3]]) as usize
        };
        let sizes = Sizes { dimension: size(0), rows: size(1), lists: size(2), blocks: size(3) };
        let sections = sizes.sections().ok_or_else(|| damaged("its sizes are those of no index"))?;
        if sections.rows.end != mapped.len() {
            return Err(damaged("it has the wrong length"));
        }
        let row_file = RowFile::new(opened, sections.rows.start as u64, row_bytes(sizes.dimension));
        let mut index =
            ApproximateIndex { mapped, sizes, sections, starts: Vec::new(), reads_rows: AtomicBool::new(false), row_file };
        let mut end = 0u32;
        let ends = index.lengths().iter().map(|length| {
            end = end.saturating_add(length.div_ceil(BLOCK as u32));
            end
        });
        let starts = std::iter::once(0).chain(ends).collect();
        index.starts = starts;
        let is_row = |number: &u32| (*number as usize) < sizes.rows;
        let is_number = |number: &u32| is_row(number) || *number == NOWHERE;
        let are_rows = index.numbers().iter().all(is_number) && index.positions().iter().all(is_row);
        if end as usize != sizes.blocks || !are_rows {
            return Err(damaged("its lists do not hold its rows"));
        }
        Ok(index)
    }

    /// Values of a vector.
    pub fn dimension(&self) -> usize {
        self.sizes.dimension
    }

    /// Number of vectors.
    pub fn rows(&self) -> usize {
        self.sizes.rows
    }

    /// Number of lists.
    pub fn lists(&self) -> usize {
        self.sizes.lists
    }

    /// Bytes that it holds in memory, without its mapped file.
    pub fn memory_bytes(&self) -> usize {
        self.starts.len() * 4
    }

    /// Bytes of its mapped file that searches go through in any case, and of the rows, which can be read instead.
    pub fn mapped_bytes(&self) -> (usize, usize) {
        let rows = self.sections.rows.len();
        (self.mapped.len() - rows, rows)
    }

    /// Whether rows are read from the file from now on, which needs no memory, or looked at where they are mapped, which is quicker.
    pub fn read_rows(&self, reads_rows: bool) {
        if self.reads_rows.swap(reads_rows, Ordering::Relaxed) != reads_rows && reads_rows {
            self.give_back();
        }
    }

    /// Calls `take` with the inner product of `query` and each row of these numbers, in their order.
    pub(super) fn score_rows(&self, query: &ByteQuery, numbers: &[u32], take: impl FnMut(f32)) -> io::Result<()> {
        let rows = self.byte_rows();
        if !self.reads_rows.load(Ordering::Relaxed) {
            rows.score(query, numbers, take);
            return Ok(());
        }
        let mut bytes = vec![0; numbers.len() * row_bytes(self.sizes.dimension)];
        self.row_file.read(numbers, &mut bytes)?;
        let scales: Vec<f32> = numbers.iter().map(|number| rows.scales[*number as usize]).collect();
        let places: Vec<u32> = (0..numbers.len() as u32).collect();
        ByteRows { bytes: &bytes, scales: &scales }.score(query, &places, take);
        Ok(())
    }

    /// Gives the pages of its file back: they no longer count as the program's memory, and stay in the system's cache of files, where the next search
    /// finds them.
    pub fn give_back(&self) {
        // SAFETY: a file that is mapped for reading only and that nothing changes: pages that are read again have the bytes that they had, and
        // searches that read them at this moment notice nothing.
        let given = unsafe { self.mapped.unchecked_advise(UncheckedAdvice::DontNeed) };
        if let Err(fault) = given {
            tracing::debug!(%fault, "pages of an index were not given back");
        }
    }

    // A mapping begins at a page and every section at a multiple of 64, so that no cast below can fail.

    pub(super) fn centroids(&self) -> ByteRows<'_> {
        let Sections { centroids, centroid_scales, .. } = &self.sections;
        ByteRows { bytes: &self.mapped[centroids.clone()], scales: bytemuck::cast_slice(&self.mapped[centroid_scales.clone()]) }
    }

    fn lengths(&self) -> &[u32] {
        bytemuck::cast_slice(&self.mapped[self.sections.lengths.clone()])
    }

    /// Numbers of the rows, by their places in the lists.
    pub(super) fn numbers(&self) -> &[u32] {
        bytemuck::cast_slice(&self.mapped[self.sections.numbers.clone()])
    }

    /// Positions of the rows, by their numbers.
    pub(super) fn positions(&self) -> &[u32] {
        bytemuck::cast_slice(&self.mapped[self.sections.positions.clone()])
    }

    /// The rows, by their numbers.
    pub(super) fn byte_rows(&self) -> ByteRows<'_> {
        let Sections { rows, row_scales, .. } = &self.sections;
        ByteRows { bytes: &self.mapped[rows.clone()], scales: bytemuck::cast_slice(&self.mapped[row_scales.clone()]) }
    }

    pub(super) fn codebook(&self) -> Codebook<'_> {
        let values: &[[f32; CODES]] = bytemuck::cast_slice(&self.mapped[self.sections.codebook.clone()]);
        let (parts, _) = values.as_chunks::<PART>();
        Codebook { parts }
    }

    /// The list of this number.
    ///
    /// # Panics
    /// If there is no such list.
    pub(super) fn list(&self, number: u32) -> List<'_> {
        let number = number as usize;
        let blocks = self.starts[number] as usize..self.starts[number + 1] as usize;
        let block_bytes = self.sizes.block_bytes();
        let codes = &self.mapped[self.sections.codes.clone()];
        List {
            len: self.lengths()[number] as usize,
            numbers: &self.numbers()[blocks.start * BLOCK..blocks.end * BLOCK],
            codes: &codes[blocks.start * block_bytes..blocks.end * block_bytes],
            blocks,
        }
    }
}
