//! A group's log in the shared database.
//!
//! Order of writes: openraft calls one method at a time, each writes to the one write-ahead log before it returns, and completions are
//! called in the order of the writes. So what is durable is always a prefix of what was written.

use crate::codec;
use crate::failpoints::{self, Point};
use crate::ids::ReplicaId;
use crate::keys::{LogKind, entry_key, log_key};
use crate::mutant::{self, Mutant};
use crate::purge::LogGrowth;
use crate::runtime;
use crate::store::{Store, bounded};
use crate::types::{Entry, LeaderId, LogId, Types, Vote};
use futures::{Stream, StreamExt, TryStreamExt};
use openraft::errors::LeaderChanged;
use openraft::storage::{IOFlushed, LeaderBoundedStreamError, LeaderBoundedStreamResult, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use rocksdb::{Direction, IteratorMode, WriteBatch};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Entries that one read returns at most, by their bytes; a replica that lags is fed in steps.
const READ_BYTES_MAX: usize = 16 << 20;
/// Entries that one read for applying returns at most.
const READ_ENTRIES_MAX: u64 = 256;

/// The log of one replica.
#[derive(Clone)]
pub struct GroupLog {
    store: Arc<Store>,
    replica: ReplicaId,
    growth: LogGrowth,
}

impl GroupLog {
    /// The log of this replica.
    pub fn new(store: Arc<Store>, replica: ReplicaId) -> Self {
        GroupLog { store, replica, growth: LogGrowth::default() }
    }

    /// How much it grows by.
    pub(crate) fn growth(&self) -> LogGrowth {
        self.growth.clone()
    }

    /// What is noted beside the entries.
    pub(crate) fn mark<T: DeserializeOwned>(&self, kind: LogKind) -> io::Result<Option<T>> {
        let frame = self.store.db().get_cf(self.store.log(), log_key(self.replica, kind)).map_err(io::Error::other)?;
        Ok(frame.map(|frame| codec::decode(&frame)).transpose()?)
    }

    async fn durable(&self) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        let queued = self.store.syncer().when_durable(Box::new(move || {
            let _ = done.send(()); // whoever waited may have been shut down
        }));
        if !queued {
            return Err(stopped());
        }
        wait.await.map_err(|_| stopped())
    }

    fn last_entry(&self) -> io::Result<Option<Entry>> {
        let end = log_key(self.replica, LogKind::End);
        let mut options = bounded(end);
        options.set_iterate_lower_bound(log_key(self.replica, LogKind::Entry));
        let mut entries = self.store.db().iterator_cf_opt(self.store.log(), options, IteratorMode::End);
        match entries.next() {
            Some(row) => Ok(Some(codec::decode(&row.map_err(io::Error::other)?.1)?)),
            None => Ok(None),
        }
    }

    /// The last entry that is there, or was before it was purged.
    pub(crate) fn last_id(&self) -> io::Result<Option<LogId>> {
        Ok(self.last_entry()?.map(|entry| entry.log_id).max(self.purged()?))
    }

    /// Puts an entry where it belongs.
    pub(crate) fn put_entry(&self, entry: &Entry, batch: &mut WriteBatch) -> io::Result<()> {
        batch.put_cf(self.store.log(), entry_key(self.replica, entry.log_id.index), codec::encode(entry)?);
        Ok(())
    }

    /// Entries `[from, until)`, as far as they are there and fit; one always does. A hole is an error: only what has been purged may be
    /// missing at the beginning.
    pub(crate) fn entries(&self, from: u64, until: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        if from >= until {
            return Ok(entries);
        }
        let (from_key, end) = (entry_key(self.replica, from), entry_key(self.replica, until));
        let mode = IteratorMode::From(&from_key, Direction::Forward);
        let mut expected = from;
        let mut bytes = 0;
        for row in self.store.db().iterator_cf_opt(self.store.log(), bounded(end), mode) {
            let (_, frame) = row.map_err(io::Error::other)?;
            if !entries.is_empty() && bytes + frame.len() > bytes_max {
                break;
            }
            bytes += frame.len();
            let entry: Entry = codec::decode(&frame)?;
            let index = entry.log_id.index;
            if index != expected && !(entries.is_empty() && self.begins_at(index)?) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("log entry {expected} is missing")));
            }
            entries.push(entry);
            expected = index + 1;
        }
        Ok(entries)
    }

    /// Whether the log rightly begins at this entry: nothing stands before it, and it follows what has been purged.
    fn begins_at(&self, index: u64) -> io::Result<bool> {
        let mut options = bounded(entry_key(self.replica, index));
        options.set_iterate_lower_bound(log_key(self.replica, LogKind::Entry));
        let before = self.store.db().iterator_cf_opt(self.store.log(), options, IteratorMode::End).next();
        let before = before.transpose().map_err(io::Error::other)?;
        Ok(before.is_none() && self.purged()?.is_none_or(|purged| index <= purged.index + 1))
    }

    fn purged(&self) -> io::Result<Option<LogId>> {
        self.mark(LogKind::Purged)
    }

    async fn read(&self, from: u64, until: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let log = self.clone();
        runtime::blocking(move || log.entries(from, until, bytes_max)).await?
    }

    /// On a blocking thread, since RocksDB makes writers wait when it falls behind.
    async fn write(&self, batch: impl FnOnce(&Self, &mut WriteBatch) -> io::Result<()> + Send + 'static) -> io::Result<()> {
        let log = self.clone();
        let write = move || {
            let mut writes = WriteBatch::default();
            batch(&log, &mut writes)?;
            log.store.write(writes)
        };
        runtime::blocking(write).await?
    }

    pub(crate) fn put_mark<T: Serialize>(&self, kind: LogKind, mark: &T, batch: &mut WriteBatch) -> io::Result<()> {
        batch.put_cf(self.store.log(), log_key(self.replica, kind), codec::encode(mark)?);
        Ok(())
    }

    /// Deletes entries up to and with this one, and notes that.
    pub(crate) fn purge_through(&self, log_id: LogId, batch: &mut WriteBatch) -> io::Result<()> {
        let before = self.purged()?;
        self.put_mark(LogKind::Purged, &before.map_or(log_id, |before| before.max(log_id)), batch)?;
        // From where the last one ended, so that no deletion covers all earlier ones.
        self.delete_entries(before.map_or(0, |before| before.index), log_id.index + 1, batch);
        Ok(())
    }

    /// Deletes entries `[from, until)`, never a key of another kind or replica.
    fn delete_entries(&self, from: u64, until: u64, batch: &mut WriteBatch) {
        if from < until {
            batch.delete_range_cf(self.store.log(), entry_key(self.replica, from), entry_key(self.replica, until));
        }
    }
}

/// `[from, until)` of a range.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let until = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(until) => *until,
        Bound::Unbounded => u64::MAX,
    };
    (from, until)
}

fn stopped() -> io::Error {
    io::Error::other("the write-ahead log is closed")
}

impl RaftLogReader<Types> for GroupLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, until) = bounds(&range);
        self.read(from, until, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    /// Reads bounded parts as the stream is consumed. The vote is looked at after each part is read: what was read before a change of the
    /// vote is of the leader.
    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderId,
        range: RB,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<Types>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, until) = bounds(&range);
        let parts = futures::stream::try_unfold((self.clone(), from), move |(log, next)| async move {
            let part_until = until.min(next.saturating_add(READ_ENTRIES_MAX));
            let entries = log.read(next, part_until, READ_BYTES_MAX).await?;
            let vote: Option<Vote> = log.mark(LogKind::Vote)?;
            if !vote.is_some_and(|vote| vote.leader_id == leader && vote.committed) {
                return Err(LeaderBoundedStreamError::LeaderChanged(LeaderChanged::new(leader, vote)));
            }
            let next = entries.last().map(|last| last.log_id.index + 1);
            Ok(next.map(|next| (futures::stream::iter(entries.into_iter().map(Ok)), (log, next))))
        });
        parts.try_flatten().boxed()
    }

    /// Reads bounded parts as the stream is consumed, so that applying a long log never holds all of it in memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, until) = bounds(&range);
        let parts = futures::stream::try_unfold((self.clone(), from), move |(log, next)| async move {
            let part_until = until.min(next.saturating_add(READ_ENTRIES_MAX));
            let entries = log.read(next, part_until, READ_BYTES_MAX).await?;
            let next = entries.last().map(|last| last.log_id.index + 1);
            Ok::<_, io::Error>(next.map(|next| (futures::stream::iter(entries.into_iter().map(Ok)), (log, next))))
        });
        parts.try_flatten().boxed()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        if mutant::is_on(Mutant::VoteWithoutPersisting) {
            return Ok(None);
        }
        self.mark(LogKind::Vote)
    }
}

impl RaftLogStorage<Types> for GroupLog {
    type LogReader = GroupLog;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let last_purged_log_id = self.purged()?;
        Ok(LogState { last_purged_log_id, last_log_id: self.last_id()? })
    }

    async fn get_log_reader(&mut self) -> GroupLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        failpoints::hit(Point::VoteBefore);
        self.write(move |log, batch| log.put_mark(LogKind::Vote, &vote, batch)).await?;
        failpoints::hit(Point::VoteWritten);
        self.durable().await?;
        failpoints::hit(Point::VoteDurable);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // A hint that spares a restart some waiting; losing it loses nothing, so nobody waits for its sync.
        self.write(move |log, batch| log.put_mark(LogKind::Committed, &committed, batch)).await?;
        failpoints::hit(Point::CommittedSaved);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.mark::<Option<LogId>>(LogKind::Committed)?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let append = move |log: &Self, batch: &mut WriteBatch| {
            entries.iter().try_for_each(|entry| log.put_entry(entry, batch))?;
            log.growth.add(batch.size_in_bytes());
            Ok(())
        };
        failpoints::hit(Point::LogAppendBefore);
        self.write(append).await?;
        failpoints::hit(Point::LogAppendWritten);
        if mutant::is_on(Mutant::LogWithoutPersisting) {
            callback.io_completed(Ok(()));
            return Ok(());
        }
        let queued = self.store.syncer().when_durable(Box::new(move || {
            failpoints::hit(Point::LogAppendDurable);
            callback.io_completed(Ok(()));
        }));
        if queued { Ok(()) } else { Err(stopped()) }
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |last| last.index + 1);
        let truncate = move |log: &Self, batch: &mut WriteBatch| {
            log.delete_entries(from, u64::MAX, batch);
            Ok(())
        };
        failpoints::hit(Point::TruncateBefore);
        self.write(truncate).await?;
        failpoints::hit(Point::TruncateAfter);
        Ok(())
    }

    /// Safe as soon as the entries are applied: the rows that they made stand before this batch in the one write-ahead log. What a crash
    /// leaves is a prefix of it, and RocksDB syncs closed write-ahead logs before it counts a flush of either column family: so the entries
    /// are never gone without the rows being there.
    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        failpoints::hit(Point::PurgeBefore);
        self.write(move |log, batch| log.purge_through(log_id, batch)).await?;
        failpoints::hit(Point::PurgeAfter);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Scope;
    use crate::machine::{Application, Machine};
    use crate::store::StoreOptions;
    use openraft::StorageError;
    use openraft::storage::RaftLogStorageExt;
    use openraft::testing::log::{StoreBuilder, Suite};
    use openraft::testing::{blank_ent, log_id};
    use std::sync::atomic::{AtomicU64, Ordering};

    struct NoCommands;

    impl Application for NoCommands {
        fn apply(&self, _index: u64, _command: &[u8], _batch: WriteBatch) -> io::Result<Vec<u8>> {
            Err(io::Error::other("the suite has no commands"))
        }

        fn replaced(&self) {}
    }

    /// Replicas between neighbours, all in one database.
    struct Shared {
        store: Arc<Store>,
        next: AtomicU64,
    }

    /// Ids of neighbours on both sides of those that the suite is given: 10, 20, 30...
    const NEIGHBOURS: std::ops::Range<u64> = 0..1_000;

    fn is_neighbour(id: &u64) -> bool {
        id % 10 == 9 || id % 10 == 1
    }

    impl StoreBuilder<Types, GroupLog, Machine> for Shared {
        async fn build(&self) -> Result<((), GroupLog, Machine), StorageError<Types>> {
            let replica = ReplicaId(self.next.fetch_add(10, Ordering::SeqCst));
            assert!(replica.0 < NEIGHBOURS.end, "there are neighbours for it");
            let machine = Machine::open(self.store.clone(), replica, Arc::new(NoCommands)).unwrap();
            Ok(((), GroupLog::new(self.store.clone(), replica), machine))
        }
    }

    async fn fill_neighbour(store: &Arc<Store>, id: u64) {
        let mut log = GroupLog::new(store.clone(), ReplicaId(id));
        log.blocking_append((1..=3).map(|index| blank_ent::<Types>(id, id, index))).await.unwrap();
        log.purge(log_id::<Types>(id, id, 1)).await.unwrap();
        log.save_vote(&Vote::new(id, id)).await.unwrap();
        log.save_committed(Some(log_id::<Types>(id, id, 2))).await.unwrap();
        let mut batch = WriteBatch::default();
        batch.put_cf(store.rows(), Scope::replica(id).key(crate::keys::RowKind::Cluster, b"x"), id.to_be_bytes());
        store.write(batch).unwrap();
    }

    async fn check_neighbour(store: &Arc<Store>, id: u64) {
        let mut log = GroupLog::new(store.clone(), ReplicaId(id));
        let entries = log.try_get_log_entries(..).await.unwrap();
        assert_eq!(entries, (2..=3).map(|index| blank_ent::<Types>(id, id, index)).collect::<Vec<_>>());
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(id, id)));
        assert_eq!(log.read_committed().await.unwrap(), Some(log_id::<Types>(id, id, 2)));
        let state = log.get_log_state().await.unwrap();
        assert_eq!(
            (state.last_purged_log_id, state.last_log_id),
            (Some(log_id::<Types>(id, id, 1)), Some(log_id::<Types>(id, id, 3)))
        );
        let rows: Vec<_> = store.scan(&id.to_be_bytes(), crate::keys::end_of(&id.to_be_bytes())).map(Result::unwrap).collect();
        assert_eq!(rows.len(), 1);
        assert_eq!(*rows[0].1, id.to_be_bytes());
    }

    #[test]
    fn it_is_a_log_as_openraft_wants_it_between_neighbours_that_it_does_not_touch() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let neighbours = || NEIGHBOURS.filter(is_neighbour);
            futures::future::join_all(neighbours().map(|id| fill_neighbour(&store, id))).await;
            Suite::test_all(Shared { store: store.clone(), next: AtomicU64::new(10) }).await.unwrap();
            futures::future::join_all(neighbours().map(|id| check_neighbour(&store, id))).await;
        });
    }

    #[tokio::test]
    async fn a_hole_in_the_log_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let mut log = GroupLog::new(store.clone(), ReplicaId(5));
        log.blocking_append((0..10).map(|index| blank_ent::<Types>(1, 1, index))).await.unwrap();
        store.db().delete_cf(store.log(), entry_key(ReplicaId(5), 4)).unwrap();
        assert_eq!(log.try_get_log_entries(0..4).await.unwrap().len(), 4);
        assert!(log.try_get_log_entries(0..10).await.is_err());
        assert!(log.try_get_log_entries(4..10).await.is_err(), "also where the range begins");
        assert!(log.entries_stream(0..10).await.collect::<Vec<_>>().await.last().unwrap().is_err());
    }

    #[tokio::test]
    async fn a_long_log_is_streamed_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let mut log = GroupLog::new(store, ReplicaId(5));
        log.blocking_append((0..1_000).map(|index| blank_ent::<Types>(1, 1, index))).await.unwrap();
        let indexes: Vec<u64> = log.entries_stream(3..900).await.map(|entry| entry.unwrap().log_id.index).collect().await;
        assert_eq!(indexes, (3..900).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn after_the_store_is_closed_nothing_is_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let mut log = GroupLog::new(store.clone(), ReplicaId(5));
        store.close();
        assert!(log.save_vote(&Vote::new(1, 1)).await.is_err());
        assert!(log.blocking_append([blank_ent::<Types>(1, 1, 0)]).await.is_err());
    }
}
