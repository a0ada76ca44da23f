//! Files that are there as a whole or not at all.

use super::error::PartitionError;
use ragged_raft::failpoints::{self, Point};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::Duration;

/// Bytes read at a time.
const BLOCK_BYTES: usize = 1 << 20;
/// How often a folder is removed again in which files are being made, and after what time.
const REMOVALS_MAX: usize = 10;
const REMOVAL_PAUSE: Duration = Duration::from_millis(10);

/// Replaces a file: after a crash it has its old or its new content.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), PartitionError> {
    let new = path.with_extension("new");
    let mut file = File::create(&new).map_err(PartitionError::file(&new))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(PartitionError::file(&new))?;
    failpoints::hit(Point::FileRenameBefore);
    fs::rename(&new, path).map_err(PartitionError::file(path))?;
    failpoints::hit(Point::FileRenameAfter);
    match path.parent() {
        Some(folder) => sync_folder(folder),
        None => Ok(()),
    }
}

/// Makes what was created, renamed or deleted in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), PartitionError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(PartitionError::file(folder))
}

/// A file's content; none when it is not there.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, PartitionError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(fault) if fault.kind() == ErrorKind::NotFound => Ok(None),
        Err(fault) => Err(PartitionError::File { path: path.to_owned(), fault }),
    }
}

/// Deletes a folder with everything in it, if it is there. Somebody may still be making files there: then it is tried again.
pub(super) fn remove_folder(folder: &Path) -> std::io::Result<()> {
    let mut attempts = 0;
    loop {
        match fs::remove_dir_all(folder) {
            Err(fault) if fault.kind() == ErrorKind::DirectoryNotEmpty && attempts < REMOVALS_MAX => attempts += 1,
            Err(fault) if fault.kind() != ErrorKind::NotFound => return Err(fault),
            _ => return Ok(()),
        }
        std::thread::sleep(REMOVAL_PAUSE);
    }
}

/// Gives the pages of a mapped file back: they no longer count as the program's memory, and stay in the system's cache of files, where whoever reads
/// them next finds them.
///
/// # Safety
/// It must be the content of a file that is mapped as a whole, shared, and for reading only, and that nothing changes. Then pages that are read again
/// have the bytes that they had, and those who read them at this moment notice nothing.
pub(super) unsafe fn give_back(mapped: &[u8]) {
    if mapped.is_empty() {
        return;
    }
    // SAFETY: the caller promises that these are pages of a file, which come back as they were.
    let refused = unsafe { libc::madvise(mapped.as_ptr().cast_mut().cast(), mapped.len(), libc::MADV_DONTNEED) } != 0;
    if refused {
        let fault = std::io::Error::last_os_error();
        tracing::debug!(%fault, "pages of a mapped file were not given back");
    }
}

/// Length and checksum of a file. It is read, not mapped, so that its pages do not count as the program's memory.
pub(super) fn checksum(path: &Path) -> Result<(u64, u32), PartitionError> {
    let mut file = File::open(path).map_err(PartitionError::file(path))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut length = 0;
    loop {
        let count = file.read(&mut block).map_err(PartitionError::file(path))?;
        if count == 0 {
            return Ok((length, hasher.finalize()));
        }
        hasher.update(&block[..count]);
        length += count as u64;
    }
}
