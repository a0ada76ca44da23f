//! The node's one database, with the identities that live in it.

use crate::codec::{self, CodecError};
use crate::failpoints::{self, Point};
use crate::ids::{NodeId, ReplicaId};
use crate::keys::end_of;
use crate::mutant::{self, Mutant};
use crate::power::Durable;
use crate::runtime::{self, Syncer};
use crate::syncer::{OnSyncFailure, Sync, end_process};
use crate::watermark::Watermark;
use parking_lot::{Mutex, MutexGuard, RwLock};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    Direction, IteratorMode, Options, ReadOptions, WriteBatch, WriteBufferManager,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Column family of the groups' logs.
const LOG: &str = "log";
/// Column family of the groups' states.
const ROWS: &str = "rows";
/// Folder of snapshots that are being sent or received.
const SNAPSHOTS: &str = "snapshots";
/// Key of the node's identity, before all replicas' keys (there is no replica 0).
const IDENTITY_KEY: &[u8] = &[0; 8];
/// Key of the format's number, as 4 bytes LE: not framed, so that every version can read it.
const FORMAT_KEY: &[u8] = &[0; 7];
/// Space that the disk must have left for a write. A write-ahead log that was refused space cannot be synced any more, and nothing but ending the
/// process would help; so writes are refused before it comes to that. Votes, entries and the files that the database makes of them go on fitting in.
const DISK_RESERVE_BYTES: u64 = 64 << 20;
/// Layout of the database.
const FORMAT: u32 = 1;
/// Ids stay below this, so that every JSON parser reads them exactly.
const ID_MAX: u64 = (1 << 53) - 1;

/// Limits of the database's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOptions {
    /// Memory for blocks that have been read.
    pub block_cache_bytes: usize,
    /// Memory for writes that are not in files yet; blocks use what of it is free.
    pub write_buffer_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions { block_cache_bytes: 64 << 20, write_buffer_bytes: 64 << 20 }
    }
}

/// Memory that the database holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreMemory {
    /// Blocks that have been read, and the indexes and filters of the database's files.
    pub block_cache_bytes: usize,
    /// Writes that are not in files yet.
    pub write_buffer_bytes: usize,
    /// What both may have.
    pub limits: StoreOptions,
}

/// Why the database could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("the data folder {0} is in use by another node")]
    InUse(PathBuf),
    /// The folder cannot be used.
    #[error("the data folder {folder} cannot be used: {fault}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        fault: io::Error,
    },
    /// There is no space left.
    #[error("the disk of the data folder {0} is full")]
    DiskFull(PathBuf),
    /// Its files are damaged.
    #[error(
        "the data folder {folder} is damaged ({fault}): let the node join its cluster anew with an empty folder; a node that is alone is restored from a backup"
    )]
    Damaged {
        /// The folder.
        folder: PathBuf,
        /// What RocksDB found.
        fault: rocksdb::Error,
    },
    /// Writes that had been acknowledged are not there.
    #[error(
        "the data folder {folder} has lost acknowledged writes (it ends at {found}, synced was {synced}): let the node join its cluster anew with an empty folder; a node that is alone is restored from a backup"
    )]
    LostWrites {
        /// The folder.
        folder: PathBuf,
        /// Last sequence number that is there.
        found: u64,
        /// Last sequence number that was synced.
        synced: u64,
    },
    /// Written by a newer version.
    #[error(
        "the data folder has format {0}, this version of ragged knows {FORMAT}: use the version that wrote it, or a newer one"
    )]
    NewerFormat(u32),
    /// The database itself failed.
    #[error("the database failed: {0}")]
    Database(#[from] rocksdb::Error),
    /// A row cannot be read.
    #[error("the database holds a corrupt row: {0}")]
    Corrupt(#[from] CodecError),
    /// The syncer's thread could not be started, or has ended.
    #[error("the write-ahead log cannot be synced: {0}")]
    Syncer(io::Error),
}

impl From<StoreError> for io::Error {
    fn from(fault: StoreError) -> Self {
        io::Error::other(fault)
    }
}

/// Why a row could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] rocksdb::Error),
    /// The row is not what was written.
    #[error("a row is corrupt: {0}")]
    Corrupt(#[from] CodecError),
    /// A key or a raw value has another form than was written.
    #[error("a row is corrupt: {0}")]
    Malformed(&'static str),
}

impl From<ReadError> for io::Error {
    fn from(fault: ReadError) -> Self {
        io::Error::other(fault)
    }
}

/// Removes what transfers that ended with the process have left.
fn empty_snapshots(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(fault) if fault.kind() != io::ErrorKind::NotFound => Err(fault),
        _ => std::fs::create_dir_all(folder),
    }
}

/// Makes an `io::Error` of a failed write, so that a full disk can be told from other faults.
fn write_error(fault: rocksdb::Error) -> io::Error {
    let kind = if is_disk_full(&fault) { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
    io::Error::new(kind, fault)
}

fn is_disk_full(fault: &rocksdb::Error) -> bool {
    // RocksDB tells it only by its words.
    fault.as_ref().contains("No space left on device")
}

/// Whether the disk of a folder has less space left than writes need. A disk that does not say is not taken for full.
pub fn lacks_space(folder: &Path) -> bool {
    rustix::fs::statvfs(folder).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < DISK_RESERVE_BYTES)
}

/// Who this node is, and which replicas live on it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Identity {
    node: NodeId,
    /// Counts what has been given an id: replicas and spaces.
    given: u64,
    replicas: BTreeMap<String, ReplicaId>,
    spaces: BTreeMap<ReplicaId, Spaces>,
}

/// Where a replica's rows are.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Spaces {
    current: u64,
    /// What is being written by an installation, or left by one: to be removed.
    other: Option<u64>,
}

/// The first part of a replica's rows' keys.
///
/// A replica's rows are kept under a *space*. A snapshot is written under a new one, and one durable write then makes that the replica's: a
/// crash in the middle leaves the old rows as they are, and what was written of the new ones is removed at the next start. So
/// nothing half is ever served.
#[derive(Debug)]
pub struct Space {
    id: AtomicU64,
    /// How often a machine was opened on the replica. Held by the one that changes rows, while it does.
    opened: Mutex<u64>,
}

impl Space {
    /// Makes the caller the only one that may change the replica's rows, once whoever does so at the moment has ended. openraft does not wait for
    /// the task that applies entries: after a failed actor's restart, the old one could still be at work.
    pub(crate) fn take_over(&self) -> u64 {
        let mut opened = self.opened.lock();
        *opened += 1;
        *opened
    }

    /// Whether anyone has changed the rows since the process began.
    fn was_taken_over(&self) -> bool {
        *self.opened.lock() > 0
    }

    /// Lets the one who took over last change rows, for as long as what is returned lives.
    pub(crate) fn enter(&self, opened: u64) -> io::Result<MutexGuard<'_, u64>> {
        let guard = self.opened.lock();
        if *guard == opened { Ok(guard) } else { Err(io::Error::other("the replica has been started again by another")) }
    }

    /// The number that the rows' keys begin with, at this moment.
    pub fn id(&self) -> u64 {
        self.id.load(Ordering::Acquire)
    }
}

/// A key and its value, as a scan gives them.
type RawRow = Result<(Box<[u8]>, Box<[u8]>), rocksdb::Error>;

/// The node's database.
pub struct Store {
    // Before the database, so that its last sync comes first.
    syncer: Syncer,
    db: Arc<DB>,
    cache: Cache,
    write_buffers: WriteBufferManager,
    limits: StoreOptions,
    identity: Mutex<Identity>,
    /// The groups' replicas, for whoever only looks: the identity is held while the disk is waited for.
    replicas: RwLock<BTreeMap<String, ReplicaId>>,
    spaces: Mutex<HashMap<ReplicaId, Arc<Space>>>,
    folder: PathBuf,
    /// The folder, to ask for the space on its disk.
    disk: File,
}

impl Store {
    /// Opens the database in this folder, making it when it is not there. Blocks for as long as recovery takes.
    pub fn open(folder: &Path, options: StoreOptions) -> Result<Arc<Store>, StoreError> {
        Self::open_with(folder, options, Box::new(end_process))
    }

    /// The same, with another answer to a failed sync than to end the process: for tests.
    pub fn open_with(folder: &Path, options: StoreOptions, on_failure: OnSyncFailure) -> Result<Arc<Store>, StoreError> {
        let cannot_use = |fault: io::Error| match fault.kind() {
            io::ErrorKind::StorageFull => StoreError::DiskFull(folder.to_owned()),
            _ => StoreError::Folder { folder: folder.to_owned(), fault },
        };
        std::fs::create_dir_all(folder).map_err(cannot_use)?;
        // One memory for both: what is written takes the place of blocks, and hardly more than its part.
        let cache = Cache::new_lru_cache(options.block_cache_bytes.saturating_add(options.write_buffer_bytes));
        let write_buffers =
            WriteBufferManager::new_write_buffer_manager_with_cache(options.write_buffer_bytes, false, cache.clone());
        let db = Arc::new(open_database(folder, options, &cache, &write_buffers)?);
        let (watermark, synced) = Watermark::open(&folder.join("synced")).map_err(cannot_use)?;
        let found = db.latest_sequence_number();
        match synced {
            Some(synced) if found < synced && !mutant::is_on(Mutant::IgnoreWatermark) => {
                return Err(StoreError::LostWrites { folder: folder.to_owned(), found, synced });
            }
            None if found > 0 => {
                tracing::warn!(folder = %folder.display(), "the file `synced` is missing: the end of the write-ahead log cannot be checked")
            }
            _ => {}
        }
        check_format(&db)?;
        let identity = match db.get_cf(log_family(&db), IDENTITY_KEY)? {
            Some(frame) => codec::decode::<Identity>(&frame)?,
            None => Identity { node: NodeId(random_id()), given: 0, replicas: BTreeMap::new(), spaces: BTreeMap::new() },
        };
        let syncer = Syncer::start(sync_with_watermark(db.clone(), watermark, folder), on_failure).map_err(StoreError::Syncer)?;
        let store = Store {
            syncer,
            db,
            cache,
            write_buffers,
            limits: options,
            identity: Mutex::new(identity.clone()),
            replicas: RwLock::new(identity.replicas.clone()),
            spaces: Mutex::default(),
            folder: folder.to_owned(),
            disk: File::open(folder).map_err(cannot_use)?,
        };
        store.save_identity(&identity, WriteBatch::default())?;
        empty_snapshots(&store.snapshot_folder()).map_err(cannot_use)?;
        Ok(Arc::new(store))
    }

    /// The folder that it lives in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Memory that it holds. Cheap: RocksDB keeps count.
    pub fn memory(&self) -> StoreMemory {
        let write_buffer_bytes = self.write_buffers.get_usage();
        // The cache counts what write buffers take of it as its own, in steps.
        let block_cache_bytes = self.cache.get_usage().saturating_sub(write_buffer_bytes);
        StoreMemory { block_cache_bytes, write_buffer_bytes, limits: self.limits }
    }

    /// Whether the disk has less space left than writes need.
    pub fn lacks_space(&self) -> bool {
        lacks_space(&self.folder)
    }

    /// Where snapshots are put that are being sent or received. Emptied when the store is opened.
    pub fn snapshot_folder(&self) -> PathBuf {
        self.folder.join(SNAPSHOTS)
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.identity.lock().node
    }

    /// The replica of a group on this node, with a new id when there is none yet. An id is durable before it is used, and never given twice: not in this
    /// node, which counts, and not in its cluster, since ids are hashes of the node's own random id and the count. Blocks for a sync when it is new.
    pub fn replica(&self, group: &str) -> Result<ReplicaId, StoreError> {
        let mut identity = self.identity.lock();
        if let Some(replica) = identity.replicas.get(group) {
            return Ok(*replica);
        }
        let mut changed = identity.clone();
        let replica = ReplicaId(changed.next_id());
        changed.replicas.insert(group.to_owned(), replica);
        changed.spaces.insert(replica, Spaces { current: replica.0, other: None });
        self.save_identity(&changed, WriteBatch::default())?;
        self.replicas.write().clone_from(&changed.replicas);
        *identity = changed;
        Ok(replica)
    }

    /// The same for whoever starts it. What it has appended earlier in this process may not be durable yet, and would count as if it were once the log
    /// is read: then this blocks for a sync.
    pub(crate) fn replica_to_start(&self, group: &str) -> Result<ReplicaId, StoreError> {
        let replica = self.replica(group)?;
        if self.space(replica).was_taken_over() {
            self.sync()?;
        }
        Ok(replica)
    }

    /// Forgets the replica of a group with all its keys, so that the group's next replica on this node has another id. Its group must have been
    /// shut down, and removed it. Blocks for a sync.
    pub fn retire_replica(&self, group: &str) -> Result<(), StoreError> {
        let Some(replica) = self.identity.lock().replicas.get(group).copied() else { return Ok(()) };
        let space = self.space(replica);
        // Whoever still applies entries is refused from here on.
        space.take_over();
        self.remove_other_space(replica)?;
        let mut identity = self.identity.lock();
        let mut changed = identity.clone();
        failpoints::hit(Point::ReplicaDropBefore);
        changed.replicas.remove(group);
        changed.spaces.remove(&replica);
        let mut batch = WriteBatch::default();
        let rows = space.id().to_be_bytes();
        batch.delete_range_cf(self.rows(), rows.to_vec(), end_of(&rows));
        let log = replica.0.to_be_bytes();
        batch.delete_range_cf(self.log(), log.to_vec(), end_of(&log));
        self.save_identity(&changed, batch)?;
        self.replicas.write().clone_from(&changed.replicas);
        *identity = changed;
        drop(identity);
        self.spaces.lock().remove(&replica);
        failpoints::hit(Point::ReplicaDropAfter);
        Ok(())
    }

    /// The replica of a group on this node, if there is one.
    pub fn replica_of(&self, group: &str) -> Option<ReplicaId> {
        self.replicas.read().get(group).copied()
    }

    /// The replicas on this node, by their groups. Waits for nothing.
    pub fn replicas(&self) -> BTreeMap<String, ReplicaId> {
        self.replicas.read().clone()
    }

    /// Where a replica's rows are; all callers share it.
    pub fn space(&self, replica: ReplicaId) -> Arc<Space> {
        let mut spaces = self.spaces.lock();
        let space = spaces.entry(replica).or_insert_with(|| {
            let current = self.identity.lock().spaces.get(&replica).map_or(replica.0, |spaces| spaces.current);
            Arc::new(Space { id: AtomicU64::new(current), opened: Mutex::new(0) })
        });
        space.clone()
    }

    /// A new space to write a snapshot's rows to. Blocks for a sync.
    pub(crate) fn stage_space(&self, replica: ReplicaId) -> Result<u64, StoreError> {
        self.remove_other_space(replica)?;
        let mut identity = self.identity.lock();
        let mut changed = identity.clone();
        let staged = changed.next_id();
        changed.spaces.entry(replica).or_insert(Spaces { current: replica.0, other: None }).other = Some(staged);
        self.save_identity(&changed, WriteBatch::default())?;
        *identity = changed;
        Ok(staged)
    }

    /// Makes the staged space the replica's, durably and in one step; the old one is removed next. Blocks for a sync.
    pub(crate) fn switch_space(&self, replica: ReplicaId) -> Result<(), StoreError> {
        let space = self.space(replica);
        let mut identity = self.identity.lock();
        let mut changed = identity.clone();
        let Some(Spaces { current, other: Some(staged) }) = changed.spaces.get(&replica).copied() else {
            return Err(StoreError::Syncer(io::Error::other(format!("{replica} has no staged space"))));
        };
        changed.spaces.insert(replica, Spaces { current: staged, other: Some(current) });
        self.save_identity(&changed, WriteBatch::default())?;
        *identity = changed;
        space.id.store(staged, Ordering::Release);
        Ok(())
    }

    /// Removes what an installation has left: the old rows, or those that it wrote before it failed.
    pub(crate) fn remove_other_space(&self, replica: ReplicaId) -> Result<(), StoreError> {
        let mut identity = self.identity.lock();
        let Some(Spaces { current, other: Some(other) }) = identity.spaces.get(&replica).copied() else { return Ok(()) };
        let mut changed = identity.clone();
        changed.spaces.insert(replica, Spaces { current, other: None });
        let mut batch = WriteBatch::default();
        let prefix = other.to_be_bytes();
        batch.delete_range_cf(self.rows(), prefix.to_vec(), end_of(&prefix));
        self.save_identity(&changed, batch)?;
        *identity = changed;
        Ok(())
    }

    fn save_identity(&self, identity: &Identity, mut batch: WriteBatch) -> Result<(), StoreError> {
        batch.put_cf(self.log(), IDENTITY_KEY, codec::encode(identity)?);
        failpoints::hit(Point::StoreIdentityBefore);
        self.write(batch).map_err(|fault| match fault.kind() {
            io::ErrorKind::StorageFull => StoreError::DiskFull(self.folder.clone()),
            _ => StoreError::Folder { folder: self.folder.clone(), fault },
        })?;
        self.sync()?;
        failpoints::hit(Point::StoreIdentityAfter);
        Ok(())
    }

    /// Makes everything written so far durable. Blocks.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        if self.syncer.sync() { Ok(()) } else { Err(StoreError::Syncer(io::Error::other("the store is closed"))) }
    }

    /// The column family of logs.
    pub(crate) fn log(&self) -> &ColumnFamily {
        log_family(&self.db)
    }

    /// The column family of states.
    pub(crate) fn rows(&self) -> &ColumnFamily {
        family(&self.db, ROWS)
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    pub(crate) fn syncer(&self) -> &Syncer {
        &self.syncer
    }

    /// Writes a batch as one step. It becomes durable with the next sync. Refused, as `StorageFull`, when the disk is almost full.
    pub(crate) fn write(&self, batch: WriteBatch) -> io::Result<()> {
        let disk = rustix::fs::fstatvfs(&self.disk)?;
        check_space(disk.f_bavail.saturating_mul(disk.f_frsize), &self.folder)?;
        self.db.write(batch).map_err(write_error)
    }

    /// Reads one row.
    pub(crate) fn row<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, ReadError> {
        match self.db.get_pinned_cf(self.rows(), key)? {
            Some(frame) => Ok(Some(codec::decode(&frame)?)),
            None => Ok(None),
        }
    }

    /// Reads many rows, in the order asked for, in less time than one by one.
    pub(crate) fn rows_of<T: DeserializeOwned>(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<T>>, ReadError> {
        let values = self.db.batched_multi_get_cf(self.rows(), keys, false);
        values.into_iter().map(|value| value?.map(|frame| Ok(codec::decode(&frame)?)).transpose()).collect()
    }

    /// Rows from `from` on, up to and without `until`, in order.
    pub(crate) fn scan<'a>(&'a self, from: &[u8], until: Vec<u8>) -> impl Iterator<Item = RawRow> + use<'a> {
        self.db.iterator_cf_opt(self.rows(), bounded(until), IteratorMode::From(from, Direction::Forward))
    }

    /// Rows before `from`, back to and with `first`, in reverse order.
    pub(crate) fn scan_back<'a>(&'a self, from: &[u8], first: Vec<u8>) -> impl Iterator<Item = RawRow> + use<'a> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(first);
        options.set_iterate_upper_bound(from.to_vec());
        self.db.iterator_cf_opt(self.rows(), options, IteratorMode::End)
    }

    /// Syncs what is written, and ends the syncer: what comes later is refused. The database is closed with its last user.
    pub fn close(&self) {
        if let Err(fault) = self.sync() {
            tracing::debug!(%fault, "the store had been closed before");
        }
        self.syncer.stop();
    }
}

impl Identity {
    fn next_id(&mut self) -> u64 {
        loop {
            self.given += 1;
            let node = if mutant::is_on(Mutant::ReuseReplicaId) { 0 } else { self.node.0 };
            let id = xxhash_rust::xxh3::xxh3_64(&[node.to_be_bytes(), self.given.to_be_bytes()].concat()) & ID_MAX;
            let taken = self.replicas.values().any(|replica| replica.0 == id)
                || self.spaces.values().any(|spaces| spaces.current == id || spaces.other == Some(id));
            if id != 0 && !taken {
                return id;
            }
        }
    }
}

/// What the syncer does: it notes what the sync has covered once the sync has returned.
fn sync_with_watermark(db: Arc<DB>, mut watermark: Watermark, folder: &Path) -> Sync {
    let folder = folder.to_owned();
    Box::new(move || {
        if mutant::is_on(Mutant::SkipSync) {
            return Ok(());
        }
        failpoints::hit(Point::SyncBefore);
        let durable = Durable::before_sync(&folder)?;
        let covered = db.latest_sequence_number();
        db.flush_wal(true).map_err(write_error)?;
        failpoints::hit(Point::SyncAfter);
        watermark.record(covered)?;
        failpoints::hit(Point::WatermarkAfter);
        durable.note()
    })
}

fn check_space(left_bytes: u64, folder: &Path) -> io::Result<()> {
    if left_bytes >= DISK_RESERVE_BYTES {
        return Ok(());
    }
    let what = format!(
        "the disk of the data folder {} has {left_bytes} bytes left, and {DISK_RESERVE_BYTES} are kept free: writes go on once there is space again",
        folder.display()
    );
    Err(io::Error::new(io::ErrorKind::StorageFull, what))
}

fn check_format(db: &DB) -> Result<(), StoreError> {
    match db.get_cf(log_family(db), FORMAT_KEY)? {
        Some(bytes) => {
            let bytes = bytes.try_into().map_err(|_| CodecError::Malformed("the format is not 4 bytes".into()))?;
            let format = u32::from_le_bytes(bytes);
            if format > FORMAT { Err(StoreError::NewerFormat(format)) } else { Ok(()) }
        }
        None => Ok(db.put_cf(log_family(db), FORMAT_KEY, FORMAT.to_le_bytes())?),
    }
}

/// Options of a scan that ends before `until`, however the database lies around it.
pub(crate) fn bounded(until: Vec<u8>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(until);
    options
}

fn family<'a>(db: &'a DB, name: &str) -> &'a ColumnFamily {
    db.cf_handle(name).expect("both column families are made when the database is opened")
}

fn log_family(db: &DB) -> &ColumnFamily {
    family(db, LOG)
}

fn random_id() -> u64 {
    // Never 0: nodes are told apart by it, it is no secret.
    (runtime::random() & ID_MAX) | 1
}

fn open_database(
    folder: &Path,
    limits: StoreOptions,
    cache: &Cache,
    write_buffers: &WriteBufferManager,
) -> Result<DB, StoreError> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // Point-in-time recovery, the default, silently drops everything after the first bad record: for Raft, votes and entries that were
    // acknowledged. A torn tail was never synced, hence never acknowledged; a bad record before the tail is an error.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_write_buffer_manager(write_buffers);
    options.set_max_total_wal_size(256 << 20);
    options.set_max_open_files(512);
    options.set_keep_log_file_num(3);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    options.set_log_level(rocksdb::LogLevel::Warn);
    let families = [LOG, ROWS].map(|name| ColumnFamilyDescriptor::new(name, family_options(cache, limits)));
    DB::open_cf_descriptors(&options, folder.join("db"), families).map_err(|fault| {
        // RocksDB tells a taken lock only by its words.
        let text: &str = fault.as_ref();
        if text.contains("lock hold by current process") || text.contains("LOCK: Resource temporarily unavailable") {
            StoreError::InUse(folder.to_owned())
        } else if is_disk_full(&fault) {
            StoreError::DiskFull(folder.to_owned())
        } else if fault.kind() == rocksdb::ErrorKind::Corruption {
            StoreError::Damaged { folder: folder.to_owned(), fault }
        } else {
            StoreError::Database(fault)
        }
    })
}

fn family_options(cache: &Cache, limits: StoreOptions) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_bloom_filter(10.0, false);
    // In parts: the filter of a file with a million small rows is larger than what a shard of the cache has room for, and would be read from the disk,
    // whole, with every row that is looked up.
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_pin_top_level_index_and_filter(true);
    blocks.set_block_size(16 << 10);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    // What lies above the last level is written again soon.
    options.set_compression_type(DBCompressionType::None);
    options.set_bottommost_compression_type(DBCompressionType::Lz4);
    // A compaction of new files writes all of the level below again, since a document's rows lie all over it: the more files at a time, the less is written.
    options.set_level_zero_file_num_compaction_trigger(12);
    // Both families may have one that is being written to a file, and one that is filled: hardly more than they may have in all.
    options.set_write_buffer_size(limits.write_buffer_bytes / 3);
    options.set_level_compaction_dynamic_level_bytes(true);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_counted_and_takes_the_place_of_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions { block_cache_bytes: 8 << 20, write_buffer_bytes: 8 << 20 };
        let store = Store::open(folder.path(), options).unwrap();
        let before = store.memory();
        let mut batch = WriteBatch::default();
        batch.put_cf(store.rows(), b"key", vec![7; 1 << 20]);
        store.write(batch).unwrap();
        let after = store.memory();
        assert!(after.write_buffer_bytes >= before.write_buffer_bytes + (1 << 20), "{before:?} {after:?}");
        assert!(store.cache.get_usage() >= after.write_buffer_bytes, "both are one memory");
        assert_eq!(after.limits, options);
    }

    #[test]
    fn a_write_is_refused_before_the_disk_is_full() {
        let folder = Path::new("/data");
        assert!(check_space(DISK_RESERVE_BYTES, folder).is_ok());
        let refused = check_space(DISK_RESERVE_BYTES - 1, folder).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert!(refused.to_string().contains("/data"), "it says where: {refused}");
    }
}
