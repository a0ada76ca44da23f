//! The own synced watermark: notices a write-ahead log that lost what was acknowledged.
//!
//! RocksDB cannot tell a torn tail (harmless: nobody was told that it is durable) from a synced tail that went missing or bad (fatal for
//! Raft: votes and entries revert). So after each sync of the write-ahead log the sequence number that the sync covered is written to a
//! small file beside the database, and at start-up the recovered sequence number must not be below it.
//!
//! It is sound: the number is written only after the sync returned, so it is never ahead of what is durable and never raises a false
//! alarm. It is cheap: the file is not synced with every sync but once a second. A crash of the process loses nothing of it, so there the
//! check is exact; after a crash of the machine it may be up to a second behind, which leaves at most the last second of syncs unchecked
//! by it (closed write-ahead logs are checked by RocksDB all the same).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const MAGIC: [u8; 4] = *b"RGWM";
const SIZE: usize = 16;
/// How often the file itself is synced while there are writes.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// The watermark's file.
pub(crate) struct Watermark {
    file: File,
    synced_at: Option<Instant>,
}

impl Watermark {
    /// Opens or creates the file; the number is none in a new one, and in one whose contents were torn.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Option<u64>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = [0; SIZE];
        let number = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => parse(&bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(error),
        };
        Ok((Self { file, synced_at: None }, number))
    }

    /// Notes that everything up to this sequence number is durable.
    pub(crate) fn record(&mut self, sequence: u64) -> io::Result<()> {
        let mut bytes = [0; SIZE];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..12].copy_from_slice(&sequence.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..12]);
        bytes[12..].copy_from_slice(&checksum.to_le_bytes());
        self.file.write_all_at(&bytes, 0)?;
        if self.synced_at.is_none_or(|at| at.elapsed() >= SYNC_INTERVAL) {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.synced_at = Some(Instant::now());
        Ok(())
    }
}

fn parse(bytes: &[u8; SIZE]) -> Option<u64> {
    let sequence = u64::from_le_bytes(bytes[4..12].try_into().ok()?);
    let checksum = u32::from_le_bytes(bytes[12..].try_into().ok()?);
    (bytes[..4] == MAGIC && checksum == crc32fast::hash(&bytes[..12])).then_some(sequence)
}

impl Drop for Watermark {
    fn drop(&mut self) {
        if let Err(fault) = self.sync() {
            tracing::warn!(%fault, "the file `synced` could not be synced");
        }
    }
}
