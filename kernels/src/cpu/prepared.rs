//! Packed weights, and the files in which they are kept from one start to the next.
//!
//! Packing takes time, and packed weights take memory that is not given back while the node is idle. So they are packed once into a file that is mapped:
//! its pages are read when they are used and can be dropped at any time. The file is named after all that the words depend on.
//!
//! A file is a header and the words, in this machine's byte order. Header: 8 bytes of [`MAGIC`], then as u64 the format's version, the hash of the
//! description, the number of words and their XXH3, then zeros up to a page. Whatever does not fit in it, the file is made again. It is read once
//! through a small buffer before it is mapped, so that checking it does not count as memory of this process; it is written beside and renamed, so that
//! processes which do so at once each end up with a whole one, and those that have mapped an older one keep it.

use super::aligned::AlignedBlock;
use memmap2::Mmap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const MAGIC: [u8; 8] = *b"ragged-w";
/// Of the file, the order of the words in panels and what they are made of: one more with every change of any. 2: whole numbers for even rows.
const VERSION: u64 = 2;
/// A page, so that the words of a mapped file lie as those in memory do.
const HEADER_BYTES: usize = 4096;
/// What the names of these files begin with.
const PREFIX: &str = "weights-";
/// Nobody writes for so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(3_600);
const BUFFER_BYTES: usize = 256 << 10;
/// Words of a file at most (4 GiB): more than any encoder has that a processor is asked to compute.
const WORDS_MAX: usize = 1 << 30;

/// The words of packed weights.
pub(crate) enum PackedWeights {
    /// In memory of this process.
    Memory(AlignedBlock<u32>),
    /// In a file.
    Mapped(Mmap),
}

impl Deref for PackedWeights {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            PackedWeights::Memory(block) => block,
            // Maps begin on a page, and the file was checked to hold whole words.
            PackedWeights::Mapped(map) => bytemuck::cast_slice(&map[HEADER_BYTES..]),
        }
    }
}

impl PackedWeights {
    /// Bytes of memory that only this process can give back.
    pub(crate) fn memory_bytes(&self) -> usize {
        match self {
            PackedWeights::Memory(block) => block.len() * size_of::<u32>(),
            PackedWeights::Mapped(_) => 0,
        }
    }

    /// The weights in the file of this description in `folder`, which is made with `pack` where there is none that can be used. Where that
    /// cannot be written, they stay in memory, and the log says so.
    pub(crate) fn prepared<E>(
        folder: &Path,
        description: &str,
        words: usize,
        pack: impl FnOnce() -> Result<AlignedBlock<u32>, E>,
    ) -> Result<Self, E> {
        let key = xxh3_64(description.as_bytes());
        let path = folder.join(format!("{PREFIX}{key:016x}.bin"));
        match open(&path, key, words) {
            Ok(map) => return Ok(PackedWeights::Mapped(map)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::info!(path = %path.display(), %error, "the packed weights cannot be used and are made again"),
        }
        let block = pack()?;
        match write(&path, key, &block).and_then(|()| open(&path, key, words)) {
            Ok(map) => Ok(PackedWeights::Mapped(map)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the packed weights cannot be kept in a file and stay in memory");
                Ok(PackedWeights::Memory(block))
            }
        }
    }
}

/// The header of a file.
fn header(key: u64, words: usize, checksum: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    for (place, value) in header[8..].chunks_exact_mut(8).zip([VERSION, key, words as u64, checksum]) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
    header
}

/// Maps a file if it is whole and the one that is looked for.
fn open(path: &Path, key: u64, words: usize) -> io::Result<Mmap> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut file = File::open(path)?;
    let length = HEADER_BYTES + words * size_of::<u32>();
    if words > WORDS_MAX || file.metadata()?.len() != length as u64 {
        return Err(damaged("its length is another"));
    }
    let mut found = [0; HEADER_BYTES];
    file.read_exact(&mut found)?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if found != header(key, words, hash.digest()) {
        return Err(damaged("its header or checksum is another"));
    }
    // SAFETY: nothing of ragged changes such a file in place; it is replaced as a whole, which leaves what is mapped as it is.
    let map = unsafe { Mmap::map(&file) }?;
    if map.len() != length {
        return Err(damaged("it has been cut short"));
    }
    Ok(map)
}

/// Writes a file beside its place and moves it there.
fn write(path: &Path, key: u64, words: &[u32]) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Err(io::ErrorKind::NotFound.into()) };
    fs::create_dir_all(folder)?;
    // Of this process and call alone.
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let beside = Beside(path.with_extension(format!("{}-{call}.new", std::process::id())));
    let bytes: &[u8] = bytemuck::cast_slice(words);
    let mut file = File::create(&beside.0)?;
    file.write_all(&header(key, words.len(), xxh3_64(bytes)))?;
    file.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside.0, path)?;
    remove_others(folder, path);
    File::open(folder)?.sync_all()
}

/// Removes the files of other weights, and what processes have left that ended while they wrote: whoever has mapped one keeps it, and whoever
/// looks for one makes it again.
fn remove_others(folder: &Path, path: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_str().filter(|name| name.starts_with(PREFIX)).unwrap_or_default();
        let is_abandoned = || {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > ABANDONED_AFTER))
        };
        if entry.path() != path && (name.ends_with(".bin") || name.ends_with(".new") && is_abandoned()) {
            let removed = fs::remove_file(entry.path());
            tracing::debug!(path = %entry.path().display(), ?removed, "packed weights that nobody looks for");
        }
    }
}

/// A file that is gone when it was not moved to its place.
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        // Moved or never made, in most cases; what else is left of it takes only room.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::convert::Infallible;

    const WORDS: usize = 3_000;

    fn packed(seed: u32) -> AlignedBlock<u32> {
        let mut block = AlignedBlock::new(WORDS);
        block.iter_mut().enumerate().for_each(|(index, word)| *word = (index as u32 ^ seed).wrapping_mul(2_654_435_761));
        block
    }

    /// The weights of a description, whose words come from its length, and whether they had to be packed.
    fn prepare(folder: &Path, description: &str) -> (PackedWeights, bool) {
        let was_packed = Cell::new(false);
        let pack = || -> Result<_, Infallible> {
            was_packed.set(true);
            Ok(packed(description.len() as u32))
        };
        let Ok(weights) = PackedWeights::prepared(folder, description, WORDS, pack);
        assert!(weights[..] == packed(description.len() as u32)[..]);
        (weights, was_packed.get())
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().filter_map(|entry| Some(entry.ok()?.path())).collect()
    }

    #[test]
    fn weights_are_packed_once() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("not/there yet");
        for is_first in [true, false, false] {
            let (weights, was_packed) = prepare(&inside, "model");
            assert!(was_packed == is_first && matches!(weights, PackedWeights::Mapped(_)));
            assert_eq!(weights.memory_bytes(), 0);
        }
        assert_eq!(files(&inside).len(), 1);
    }

    #[test]
    fn other_weights_take_the_place_of_what_was_there_and_leave_what_is_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let (older, _) = prepare(folder.path(), "one model");
        let (newer, was_packed) = prepare(folder.path(), "another model");
        assert!(was_packed && files(folder.path()).len() == 1);
        assert!(older[..] == packed(9)[..] && newer[..] == packed(13)[..]);
    }

    #[test]
    fn a_file_that_is_not_whole_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path(), "model");
        let path = files(folder.path()).remove(0);
        let whole = fs::read(&path).unwrap();
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        };
        let length = whole.len();
        let numbers = [0, 8, 16, 24, 32, 40].map(flipped);
        let rest =
            [flipped(HEADER_BYTES), flipped(length - 1), whole[..length - 1].to_vec(), Vec::new(), [&whole[..], &[0]].concat()];
        for damaged in numbers.into_iter().chain(rest) {
            fs::write(&path, damaged).unwrap();
            let (weights, was_packed) = prepare(folder.path(), "model");
            assert!(was_packed && matches!(weights, PackedWeights::Mapped(_)));
            assert!(fs::read(&path).unwrap() == whole);
        }
    }

    #[test]
    fn where_nothing_can_be_written_the_weights_stay_in_memory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for _ in 0..2 {
            let (weights, was_packed) = prepare(file.path(), "model");
            assert!(was_packed && matches!(weights, PackedWeights::Memory(_)));
            assert_eq!(weights.memory_bytes(), WORDS * 4);
        }
    }

    #[test]
    fn many_at_once_each_end_up_with_the_weights() {
        let folder = tempfile::tempdir().unwrap();
        // `prepare` compares the words; those of a file that is lost before it is mapped stay in memory.
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        prepare(folder.path(), "model");
                        // As if the file had been lost, at any time.
                        files(folder.path())
                            .into_iter()
                            .filter(|path| path.extension().is_some_and(|end| end == "bin"))
                            .for_each(|path| {
                                let _ = fs::remove_file(path);
                            });
                    }
                });
            }
        });
    }

    #[test]
    fn what_a_process_left_that_ended_while_it_wrote_is_removed_after_an_hour() {
        let folder = tempfile::tempdir().unwrap();
        let [fresh, abandoned, foreign] =
            ["weights-1.1-0.new", "weights-1.2-0.new", "kernels.bin"].map(|name| folder.path().join(name));
        for path in [&fresh, &abandoned, &foreign] {
            fs::write(path, "half").unwrap();
        }
        let long_ago = std::time::SystemTime::now() - 2 * ABANDONED_AFTER;
        for path in [&abandoned, &foreign] {
            File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
        }
        prepare(folder.path(), "model");
        assert!(fresh.exists() && foreign.exists() && !abandoned.exists());
    }
}
