//! The state machine of a group: rows in the shared database, changed by one atomic batch an entry.
//!
//! A batch carries the rows and how far the replica has applied, so after a crash the state is that of some entry, never of half of one. It
//! is not synced: entries are, and those that a crash takes from the state are applied again.

use crate::codec;
use crate::failpoints::{self, Point};
use crate::ids::ReplicaId;
use crate::keys::{RowKind, Scope};
use crate::mutant::{self, Mutant};
use crate::runtime;
use crate::snapshot::{self, SnapshotSource};
use crate::store::{Space, Store};
use crate::types::{Entry, LeaderId, LogId, Membership, ReplicaNode, Reply, SnapshotMeta, Types};
use futures::{Stream, TryStreamExt};
use openraft::async_runtime::watch::WatchSender as _;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine, Snapshot};
use openraft::type_config::TypeConfigExt as _;
use openraft::type_config::alias::{WatchReceiverOf, WatchSenderOf};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use rocksdb::WriteBatch;
use std::io;
use std::sync::Arc;

/// Entries that are handed to a blocking thread at once, at most.
const PART_ENTRIES: usize = 128;
/// Bytes of entries that are handed to a blocking thread at once, at most; one entry always is.
const PART_BYTES: usize = 16 << 20;

/// What a group's commands do to its rows. Apply is deterministic: no clock, no randomness, no arithmetic on floating-point numbers.
pub trait Application: Send + Sync + 'static {
    /// Adds the command's changes to `batch`, which already says that `index` is applied, writes it through the store, and makes the change
    /// known to whoever follows. The reply is a frame of the codec. Called on a blocking thread.
    fn apply(&self, index: u64, command: &[u8], batch: WriteBatch) -> io::Result<Vec<u8>>;

    /// The rows have been replaced by a snapshot.
    fn replaced(&self);
}

type Item = (Entry, Option<ApplyResponder<Types>>);

/// The state machine of one replica.
#[derive(Clone)]
pub struct Machine {
    store: Arc<Store>,
    replica: ReplicaId,
    space: Arc<Space>,
    /// Names this machine among those that were opened on the replica.
    opened: u64,
    application: Arc<dyn Application>,
    /// As the rows have it; here so that an entry is applied without reading it.
    membership: Arc<Mutex<Membership>>,
    applied: WatchSenderOf<Types, u64>,
}

impl Machine {
    /// The machine of this replica, as its rows say. What an interrupted installation of a snapshot has left is removed. Blocks.
    pub fn open(store: Arc<Store>, replica: ReplicaId, application: Arc<dyn Application>) -> io::Result<Machine> {
        let space = store.space(replica);
        let opened = space.take_over();
        store.remove_other_space(replica)?;
        let (applied, membership) = snapshot::applied_state(&store, replica)?;
        let (applied, _) = Types::watch_channel(applied.map_or(0, |id| id.index));
        Ok(Machine { store, replica, space, opened, application, membership: Arc::new(Mutex::new(membership)), applied })
    }

    /// Index of the last applied entry, as it grows; 0 before the first.
    pub fn applied(&self) -> WatchReceiverOf<Types, u64> {
        self.applied.subscribe()
    }

    fn note_applied(&self, index: u64) {
        self.applied.send_if_modified(|applied| {
            *applied = index;
            true
        });
    }

    fn apply_entry(&self, id: LogId, payload: EntryPayload<crate::types::Command, u64, ReplicaNode>) -> io::Result<Reply> {
        let mut membership = self.membership.lock();
        if let EntryPayload::Membership(new) = &payload {
            *membership = Membership::new(Some(id), new.clone());
        }
        let changes_members = matches!(&payload, EntryPayload::Membership(_));
        if changes_members {
            failpoints::hit(Point::MembershipBefore);
        }
        let mut batch = WriteBatch::default();
        let applied = codec::encode(&(Some(id), &*membership))?;
        batch.put_cf(self.store.rows(), Scope::replica(self.space.id()).key(RowKind::Applied, b""), applied);
        if mutant::is_on(Mutant::MarkBeforeRows) {
            self.store.write(std::mem::take(&mut batch))?;
            std::thread::sleep(std::time::Duration::from_millis(50)); // whatever may happen in between
        }
        let reply = match payload {
            EntryPayload::Normal(command) => Reply(self.application.apply(id.index, &command.0, batch)?),
            EntryPayload::Blank | EntryPayload::Membership(_) => {
                self.store.write(batch)?;
                Reply::default()
            }
        };
        if changes_members {
            failpoints::hit(Point::MembershipAfter);
        }
        Ok(reply)
    }

    fn apply_part(&self, part: Vec<Item>) -> io::Result<()> {
        for (entry, responder) in part {
            let index = entry.log_id.index;
            let _turn = self.space.enter(self.opened)?;
            failpoints::hit(Point::ApplyBefore);
            let reply = self.apply_entry(entry.log_id, entry.payload)?;
            failpoints::hit(Point::ApplyAfter);
            // In this order: whoever has the reply finds the rows, the noted changes and the applied index that it speaks of.
            self.note_applied(index);
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let this = self.clone();
        runtime::blocking(move || work(&this)).await?
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotSource;
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        let (applied, membership) = snapshot::applied_state(&self.store, self.replica)?;
        if mutant::is_on(Mutant::MembershipForgotten) {
            return Ok((applied, Membership::default()));
        }
        Ok((applied, membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut ended = false;
        while !ended {
            let mut part: Vec<Item> = Vec::new();
            let mut bytes = 0;
            while part.len() < PART_ENTRIES && bytes < PART_BYTES {
                let Some(item) = entries.try_next().await? else {
                    ended = true;
                    break;
                };
                if let EntryPayload::Normal(command) = &item.0.payload {
                    bytes += command.0.len();
                }
                part.push(item);
            }
            if !part.is_empty() {
                self.blocking(move |this| this.apply_part(part)).await?;
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Machine> {
        Some(self.clone())
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotSource) -> Result<(), io::Error> {
        let meta = meta.clone();
        self.blocking(move |this| {
            let _turn = this.space.enter(this.opened)?;
            snapshot.install(&this.store, this.replica, &meta)?;
            *this.membership.lock() = meta.last_membership;
            this.application.replaced();
            let index = meta.last_log_id.map_or(0, |id| id.index);
            this.note_applied(index);
            tracing::info!(replica = this.replica.0, index, "a snapshot has been installed");
            Ok(())
        })
        .await
    }

    /// Always what the rows hold now: they are durable by themselves, behind nothing that openraft was told before.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<LeaderId, u64, ReplicaNode, SnapshotSource>>, io::Error> {
        let snapshot = self.build_snapshot().await?;
        Ok(snapshot.meta.last_log_id.is_some().then_some(snapshot))
    }
}

/// The rows are durable by themselves, so a snapshot costs nothing until it has to be sent: then [`SnapshotSource`] writes it out.
impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = SnapshotSource;

    async fn build_snapshot(&mut self) -> Result<Snapshot<LeaderId, u64, ReplicaNode, SnapshotSource>, io::Error> {
        let meta = snapshot::meta(&self.store, self.replica)?;
        Ok(Snapshot { meta, snapshot: SnapshotSource::live(self.store.clone(), self.replica) })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::StoreOptions;
    use openraft::async_runtime::watch::WatchReceiver as _;

    /// An application whose log has no commands.
    pub(crate) struct NoCommands;

    impl Application for NoCommands {
        fn apply(&self, _index: u64, _command: &[u8], _batch: WriteBatch) -> io::Result<Vec<u8>> {
            Err(io::Error::other("there are no commands here"))
        }

        fn replaced(&self) {}
    }

    fn blank(index: u64) -> Vec<Item> {
        vec![(Entry { log_id: LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index }, payload: EntryPayload::Blank }, None)]
    }

    #[test]
    fn a_machine_changes_nothing_once_another_was_opened_on_its_replica() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let replica = store.replica("a").unwrap();
        let open = || Machine::open(store.clone(), replica, Arc::new(NoCommands)).unwrap();
        let first = open();
        first.apply_part(blank(1)).unwrap();
        let second = open();
        assert!(first.apply_part(blank(2)).is_err());
        assert_eq!(snapshot::applied_state(&store, replica).unwrap().0.map(|id| id.index), Some(1));
        second.apply_part(blank(2)).unwrap();
        assert_eq!(*second.applied().borrow_watched(), 2);
    }
}
