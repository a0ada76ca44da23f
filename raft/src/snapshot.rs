//! Snapshots: a replica's rows as one file of checksummed frames, written when it is to be sent and checked whole before it is installed.
//!
//! The file is a sequence of `length u32 LE | frame`, the frame being the codec's: a start, chunks of rows without their space, and an
//! end with their number and hash. It is made in a temporary file, synced and renamed, so a file under its own name is a whole one; a torn or
//! changed one is refused all the same.

use crate::codec;
use crate::failpoints::{self, Point};
use crate::ids::ReplicaId;
use crate::keys::{RowKind, SUFFIX_AT, Scope, end_of};
use crate::mutant::{self, Mutant};
use crate::store::{ReadError, Store, bounded};
use crate::types::{LogId, Membership, SnapshotMeta};
use rocksdb::{Direction, IteratorMode, WriteBatch};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Bytes of rows that are put into one chunk before it is closed.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes of the space at the beginning of each key, which are left out.
const SPACE_BYTES: usize = 8;

#[derive(Debug, Serialize, Deserialize)]
enum Frame {
    Start { version: u32 },
    Rows(#[serde(with = "crate::bytes::pairs")] Vec<(Vec<u8>, Vec<u8>)>),
    End { rows: u64, hash: u64 },
}

/// Version of the file.
const VERSION: u32 = 1;

/// Where a snapshot's rows are.
#[derive(Clone)]
pub enum SnapshotSource {
    /// In the replica itself.
    Live {
        /// The database.
        store: Arc<Store>,
        /// The replica.
        replica: ReplicaId,
    },
    /// In a file that was received.
    File(PathBuf),
}

impl std::fmt::Debug for SnapshotSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SnapshotSource::Live { replica, .. } => write!(f, "rows of {replica}"),
            SnapshotSource::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

impl SnapshotSource {
    /// The rows of a replica as they are when they are written out.
    pub fn live(store: Arc<Store>, replica: ReplicaId) -> Self {
        SnapshotSource::Live { store, replica }
    }

    /// Writes the rows to a file in this folder, as of one moment. Returns the file and what it holds, which a transport has to announce
    /// instead of the (possibly older) state that openraft asked it to send. The file is the caller's to remove. Blocking.
    pub fn write_out(&self, folder: &Path) -> io::Result<(PathBuf, SnapshotMeta)> {
        match self {
            SnapshotSource::Live { store, replica } => write_file(store, *replica, folder),
            SnapshotSource::File(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "a received snapshot is not sent on")),
        }
    }

    /// Replaces the replica's rows by the snapshot's, which must hold what `meta` says. When it fails, or the process ends in the middle, the
    /// old rows stay. Durable on return. Blocking.
    pub fn install(&self, store: &Store, replica: ReplicaId, meta: &SnapshotMeta) -> io::Result<()> {
        match self {
            SnapshotSource::File(path) => install_file(store, replica, path, meta),
            // Its own rows: they are there already.
            SnapshotSource::Live { replica: source, .. } if *source == replica => Ok(()),
            SnapshotSource::Live { store: from, replica: source } => {
                let folder = tempfile::tempdir_in(store.folder())?;
                let (path, _) = write_file(from, *source, folder.path())?;
                install_file(store, replica, &path, meta)
            }
        }
    }
}

/// How far a replica has applied, and its membership.
pub fn applied_state(store: &Store, replica: ReplicaId) -> Result<(Option<LogId>, Membership), ReadError> {
    applied_in(store, store.space(replica).id())
}

fn applied_in(store: &Store, space: u64) -> Result<(Option<LogId>, Membership), ReadError> {
    Ok(store.row(&Scope::replica(space).key(RowKind::Applied, b""))?.unwrap_or_default())
}

/// What a snapshot of the replica would hold now.
pub fn meta(store: &Store, replica: ReplicaId) -> Result<SnapshotMeta, ReadError> {
    let (last_log_id, last_membership) = applied_state(store, replica)?;
    Ok(SnapshotMeta { last_log_id, last_membership })
}

fn write_file(store: &Store, replica: ReplicaId, folder: &Path) -> io::Result<(PathBuf, SnapshotMeta)> {
    failpoints::hit(Point::SnapshotWriteBefore);
    std::fs::create_dir_all(folder)?;
    // In this order: rows that an installation removes afterwards are still in the view.
    let space = store.space(replica).id();
    let view = store.db().snapshot();
    let prefix = space.to_be_bytes();
    let applied_key = Scope::replica(space).key(RowKind::Applied, b"");
    let mut meta = SnapshotMeta { last_log_id: None, last_membership: Membership::default() };
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    let mut out = BufWriter::new(file.as_file_mut());
    write_frame(&mut out, &Frame::Start { version: VERSION })?;
    let (mut hash, mut count, mut rows, mut bytes) = (Xxh3::new(), 0, Vec::new(), 0);
    let mode = IteratorMode::From(&prefix, Direction::Forward);
    for row in view.iterator_cf_opt(store.rows(), bounded(end_of(&prefix)), mode) {
        let (key, value) = row.map_err(io::Error::other)?;
        if *key == *applied_key {
            let (last_log_id, last_membership) = codec::decode(&value)?;
            meta = SnapshotMeta { last_log_id, last_membership };
        }
        if mutant::is_on(Mutant::SnapshotMissesRows) && key.get(SUFFIX_AT - 1) == Some(&(RowKind::Text as u8)) {
            continue;
        }
        add_to_hash(&mut hash, &key[SPACE_BYTES..], &value);
        count += 1;
        bytes += key.len() + value.len();
        rows.push((key[SPACE_BYTES..].to_vec(), value.into_vec()));
        if bytes >= CHUNK_BYTES {
            write_frame(&mut out, &Frame::Rows(std::mem::take(&mut rows)))?;
            bytes = 0;
        }
    }
    if mutant::is_on(Mutant::InstallTornSnapshot) {
        rows.truncate(rows.len() / 2); // the transfer is cut off here
        write_frame(&mut out, &Frame::Rows(rows))?;
    } else {
        write_frame(&mut out, &Frame::Rows(rows))?;
        write_frame(&mut out, &Frame::End { rows: count, hash: hash.digest() })?;
    }
    out.flush()?;
    drop(out);
    file.as_file().sync_all()?;
    let name = format!("{}-{}-{}.snapshot", replica.0, meta.last_log_id.map_or(0, |id| id.index), ulid::Ulid::new());
    let path = folder.join(name);
    failpoints::hit(Point::SnapshotRenameBefore);
    file.persist(&path)?;
    failpoints::hit(Point::SnapshotRenameAfter);
    File::open(folder)?.sync_all()?;
    Ok((path, meta))
}

fn add_to_hash(hash: &mut Xxh3, key: &[u8], value: &[u8]) {
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(&(value.len() as u64).to_le_bytes());
    hash.update(value);
}

fn write_frame(out: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let frame = codec::encode(frame)?;
    out.write_all(&(frame.len() as u32).to_le_bytes())?;
    out.write_all(&frame)
}

fn read_frame(from: &mut impl Read) -> io::Result<Frame> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > codec::PAYLOAD_BYTES_MAX {
        return Err(corrupt("a frame is longer than any that is written"));
    }
    let mut frame = Vec::new();
    from.take(length as u64).read_to_end(&mut frame)?; // grows with what is there, not with what the length claims
    Ok(codec::decode(&frame)?)
}

fn corrupt(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot is corrupt: {what}"))
}

/// Whether a file is whole and unchanged. Reads all of it. Blocking.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    read_file(path, |_| Ok(()))
}

/// Gives each chunk of a file to `take`; an error when the file is not exactly what was written.
fn read_file(path: &Path, mut take: impl FnMut(Vec<(Vec<u8>, Vec<u8>)>) -> io::Result<()>) -> io::Result<()> {
    let mut file = BufReader::new(File::open(path)?);
    match read_frame(&mut file)? {
        Frame::Start { version: VERSION } => {}
        Frame::Start { .. } => return Err(corrupt("its version is not known")),
        _ => return Err(corrupt("it does not begin with a start")),
    }
    let (mut hash, mut count) = (Xxh3::new(), 0);
    loop {
        let frame = match read_frame(&mut file) {
            Err(fault) if fault.kind() == io::ErrorKind::UnexpectedEof && mutant::is_on(Mutant::InstallTornSnapshot) => break,
            frame => frame?,
        };
        match frame {
            Frame::Rows(rows) => {
                count += rows.len() as u64;
                rows.iter().for_each(|(key, value)| add_to_hash(&mut hash, key, value));
                take(rows)?;
            }
            Frame::End { rows, hash: expected } if rows == count && expected == hash.digest() => break,
            _ => return Err(corrupt("its end does not match its rows")),
        }
    }
    let rest = file.read(&mut [0])?;
    if rest == 0 { Ok(()) } else { Err(corrupt("something follows its end")) }
}

fn install_file(store: &Store, replica: ReplicaId, path: &Path, meta: &SnapshotMeta) -> io::Result<()> {
    if mutant::is_on(Mutant::InstallOverOldRows) {
        return stage_file(store, store.space(replica).id(), path, meta);
    }
    failpoints::hit(Point::SnapshotStageBefore);
    let staged = store.stage_space(replica)?;
    let result = stage_file(store, staged, path, meta);
    if result.is_ok() {
        failpoints::hit(Point::SnapshotStaged);
        // All rows stand before this in the write-ahead log, and it is synced: from here on the log before the snapshot may be purged.
        store.switch_space(replica)?;
        failpoints::hit(Point::SnapshotSwitched);
    }
    // The old rows, or those of a snapshot that is refused.
    store.remove_other_space(replica)?;
    failpoints::hit(Point::SnapshotInstalled);
    result
}

fn stage_file(store: &Store, staged: u64, path: &Path, meta: &SnapshotMeta) -> io::Result<()> {
    let prefix = staged.to_be_bytes();
    read_file(path, |rows| {
        let mut batch = WriteBatch::default();
        for (key, value) in rows {
            batch.put_cf(store.rows(), [&prefix[..], &key].concat(), value);
        }
        store.write(batch)
    })?;
    let (last_log_id, last_membership) = applied_in(store, staged)?;
    if last_log_id != meta.last_log_id || last_membership != meta.last_membership {
        return Err(corrupt("it holds another state than was announced"));
    }
    Ok(())
}

/// Hash of all rows of a replica as of one moment, the same on replicas whose rows are the same, and the applied index at that moment. Blocking.
pub fn state_hash(store: &Store, replica: ReplicaId) -> Result<(u64, u64), ReadError> {
    // In this order: rows that an installation removes afterwards are still in the view.
    let space = store.space(replica).id();
    let view = store.db().snapshot();
    let prefix = space.to_be_bytes();
    let applied_key = Scope::replica(space).key(RowKind::Applied, b"");
    let (mut hash, mut applied) = (Xxh3::new(), None::<LogId>);
    let mode = IteratorMode::From(&prefix, Direction::Forward);
    for row in view.iterator_cf_opt(store.rows(), bounded(end_of(&prefix)), mode) {
        let (key, value) = row?;
        if *key == *applied_key {
            applied = codec::decode::<(Option<LogId>, Membership)>(&value)?.0;
        } else {
            add_to_hash(&mut hash, &key[SPACE_BYTES..], &value);
        }
    }
    Ok((applied.map_or(0, |id| id.index), hash.digest()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::machine::tests::NoCommands;
    use crate::store::StoreOptions;

    fn put(store: &Store, space: u64, value: &str) {
        let mut batch = WriteBatch::default();
        batch.put_cf(store.rows(), Scope::replica(space).key(RowKind::Cluster, b""), codec::encode(value).unwrap());
        store.write(batch).unwrap();
    }

    fn value(store: &Store, space: u64) -> Option<String> {
        store.row(&Scope::replica(space).key(RowKind::Cluster, b"")).unwrap()
    }

    fn open(folder: &Path) -> Arc<Store> {
        Store::open(folder, StoreOptions::default()).unwrap()
    }

    #[test]
    fn an_installation_that_ends_in_the_middle_leaves_the_old_state_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let replica = store.replica("a").unwrap();
        put(&store, store.space(replica).id(), "old");
        let staged = store.stage_space(replica).unwrap();
        put(&store, staged, "half of the new");
        drop(store); // here the process ends

        let store = open(folder.path());
        Machine::open(store.clone(), replica, Arc::new(NoCommands)).unwrap();
        assert_eq!(value(&store, store.space(replica).id()).as_deref(), Some("old"));
        assert_eq!(value(&store, staged), None);
    }

    #[test]
    fn an_installation_that_ends_after_the_switch_leaves_the_new_state_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let replica = store.replica("a").unwrap();
        let old = store.space(replica).id();
        put(&store, old, "old");
        let staged = store.stage_space(replica).unwrap();
        put(&store, staged, "new");
        store.switch_space(replica).unwrap();
        assert_eq!(value(&store, store.space(replica).id()).as_deref(), Some("new"), "readers follow at once");
        drop(store); // here the process ends

        let store = open(folder.path());
        Machine::open(store.clone(), replica, Arc::new(NoCommands)).unwrap();
        assert_eq!(value(&store, store.space(replica).id()).as_deref(), Some("new"));
        assert_eq!(value(&store, old), None);
    }
}
