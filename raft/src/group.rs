//! A running group: proposes commands, waits for what is applied, reads linearizably.

use crate::IS_FOR_TESTS;
use crate::codec::{self, CodecError};
use crate::ids::ReplicaId;
use crate::log::GroupLog;
use crate::machine::{Application, Machine};
use crate::mutant::{self, Mutant};
use crate::network::{Alone, Peers, Request, Response, SnapshotOffer, Transport, remove_snapshot_file};
use crate::purge;
use crate::runtime;
use crate::snapshot::{self, SnapshotSource};
use crate::store::{ReadError, Space, Store, StoreError};
use crate::types::{Command, ReplicaNode, Types};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::SnapshotResponse;
use openraft::storage::Snapshot;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Config, Raft, ReadPolicy, SnapshotPolicy};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

/// Commands of a group that may wait at once; more are refused.
const IN_FLIGHT_MAX: usize = 1024;
/// Kibibytes of commands of a group that may wait at once; more are refused.
const IN_FLIGHT_KIB_MAX: usize = 256 << 10;
/// Bytes of a command at most.
pub const COMMAND_BYTES_MAX: usize = 96 << 20;
/// Entries that are kept in the log after the state has them, for replicas that lag a little.
const LOG_ENTRIES_KEPT: u64 = if IS_FOR_TESTS { 50 } else { 1_000 };
/// Entries after which older ones are purged.
const LOG_ENTRIES_PURGE: u64 = if IS_FOR_TESTS { 200 } else { 5_000 };
/// How often a leader is heard from.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// How long after the lease has ended a replica that misses its leader waits at least, and the lease at most, until it stands for election.
const ELECTION_TIMEOUT_MIN: Duration = Duration::from_millis(500);
/// How long nobody votes for another after having heard from the leader.
pub const LEADER_LEASE: Duration = Duration::from_secs(1);
/// How long a command may wait before its outcome is called unknown.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked whether all commands in flight are decided.
const SETTLED_LOOK: Duration = Duration::from_millis(10);
/// How long a linearizable read may wait for a majority and for what is applied.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a group that is alone may take to lead itself.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a command was not, or may not have been, applied.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Another replica leads.
    #[error("this replica does not lead its group, {leader:?} does")]
    NotLeader {
        /// Where the leader is, if it is known.
        leader: Option<ReplicaNode>,
    },
    /// Too many commands wait.
    #[error("{IN_FLIGHT_MAX} writes or {IN_FLIGHT_KIB_MAX} KiB of them wait in this group already, try again")]
    Overloaded,
    /// The command is too long.
    #[error("a write of {size_bytes} bytes is over the limit of {COMMAND_BYTES_MAX}")]
    TooLarge {
        /// Its length.
        size_bytes: usize,
    },
    /// It may have been applied, or be applied yet.
    #[error("it is not known whether the write took effect ({why}): read it back, or retry with the same idempotency key")]
    UnknownOutcome {
        /// What happened.
        why: String,
    },
    /// The group has stopped; nothing was written.
    #[error("the group does not run: {0}")]
    Stopped(String),
    /// The command cannot be written: a defect.
    #[error("{0}")]
    Codec(#[from] CodecError),
}

impl ProposeError {
    /// The reply to a command that was applied cannot be read: a defect.
    pub(crate) fn unreadable(fault: CodecError) -> ProposeError {
        ProposeError::UnknownOutcome { why: format!("its reply cannot be read: {fault}") }
    }
}

/// Why waiting ended.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It took too long.
    #[error("index {wanted} is not applied yet, {applied} is")]
    Timeout {
        /// The index that was waited for.
        wanted: u64,
        /// The index that is applied.
        applied: u64,
    },
    /// The group has stopped.
    #[error("the group has stopped")]
    Stopped,
}

/// Why a group could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state cannot be read.
    #[error("the state of {replica} cannot be read: {fault}")]
    State {
        /// The replica.
        replica: ReplicaId,
        /// Why.
        fault: std::io::Error,
    },
    /// openraft refused.
    #[error("{replica} of group {group} did not start: {why}")]
    Raft {
        /// The group.
        group: String,
        /// The replica.
        replica: ReplicaId,
        /// Why.
        why: String,
    },
}

/// How a group's replica begins on a node that has none yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// It founds the group, and leads it alone.
    Found,
    /// It waits to be added by the group's leader.
    Join,
}

/// What a replica is started with.
#[derive(Clone)]
pub struct Ground {
    /// The node's database.
    pub store: Arc<Store>,
    /// How the replica begins, when the node has none of the group.
    pub beginning: Beginning,
    /// What reaches the other nodes.
    pub transport: Arc<dyn Transport>,
}

impl Ground {
    /// For a node that is a cluster of its own.
    pub fn alone(store: Arc<Store>) -> Ground {
        Ground { store, beginning: Beginning::Found, transport: Arc::new(Alone) }
    }
}

/// A replica of a group, running.
#[derive(Clone)]
pub struct Group {
    raft: Raft<Types, Machine>,
    store: Arc<Store>,
    replica: ReplicaId,
    space: Arc<Space>,
    applied: WatchReceiverOf<Types, u64>,
    /// Places for commands.
    in_flight: Arc<Semaphore>,
    /// Kibibytes of commands.
    in_flight_kib: Arc<Semaphore>,
    /// Ends with the last handle, so that it does not keep the replica's tasks alive by itself.
    _purging: Arc<AbortOnDropHandle<()>>,
}

impl Group {
    /// Starts this node's replica of a group. A replica that is alone in its group leads it, and has applied everything that was acknowledged,
    /// on return; one that has peers does not wait for them.
    pub async fn start(
        ground: Ground,
        name: &str,
        application: impl FnOnce(ReplicaId) -> Arc<dyn Application>,
    ) -> Result<Group, StartError> {
        let Ground { store, beginning, transport } = ground;
        let (opened, group_name) = (store.clone(), name.to_owned());
        let replica = runtime::blocking(move || opened.replica_to_start(&group_name)).await.map_err(StoreError::Syncer)??;
        let refused = |why: String| StartError::Raft { group: name.to_owned(), replica, why };
        let (opened, application) = (store.clone(), application(replica));
        let machine = runtime::blocking(move || Machine::open(opened, replica, application)).await;
        let machine = machine.flatten().map_err(|fault| StartError::State { replica, fault })?;
        let applied = machine.applied();
        let config = Arc::new(config(name).validate().map_err(|fault| refused(fault.to_string()))?);
        let log = GroupLog::new(store.clone(), replica);
        let growth = log.growth();
        let raft = Raft::new(replica.0, config, Peers::new(transport, store.clone()), log, machine)
            .await
            .map_err(|fault| refused(fault.to_string()))?;
        let space = store.space(replica);
        let (in_flight, in_flight_kib) = (Arc::new(Semaphore::new(IN_FLIGHT_MAX)), Arc::new(Semaphore::new(IN_FLIGHT_KIB_MAX)));
        let _purging = Arc::new(AbortOnDropHandle::new(runtime::spawn(purge::as_it_grows(raft.clone(), growth))));
        let group = Group { raft, store, replica, space, applied, in_flight, in_flight_kib, _purging };
        if let Err(why) = group.begin(beginning).await {
            group.shutdown().await;
            return Err(refused(why));
        }
        Ok(group)
    }

    /// Makes a replica that is alone the leader at once, and waits until it has applied everything that was acknowledged before.
    async fn begin(&self, beginning: Beginning) -> Result<(), String> {
        if self.raft.is_initialized().await.map_err(|fault| fault.to_string())? {
            if self.raft.voter_ids().collect::<Vec<_>>() != [self.replica.0] {
                return Ok(());
            }
            self.raft.trigger().elect(false).await.map_err(|fault| fault.to_string())?;
        } else if beginning == Beginning::Found {
            let node = ReplicaNode { node: self.store.node().0 };
            self.raft.initialize(BTreeMap::from([(self.replica.0, node)])).await.map_err(|fault| fault.to_string())?;
        } else {
            return Ok(());
        }
        self.raft
            .wait(Some(START_TIMEOUT))
            .current_leader(self.replica.0, "a replica that is alone leads")
            .await
            .map_err(|fault| fault.to_string())?;
        self.linearizable().await.map(|_| ()).map_err(|fault| fault.to_string())
    }

    /// Answers a peer's request.
    pub async fn answer(&self, request: &[u8]) -> Result<Vec<u8>, CodecError> {
        let response = match codec::decode(request)? {
            Request::Append(request) => self.raft.append_entries(request).await.map(Response::Append),
            Request::Vote(request) => self.raft.vote(request).await.map(Response::Vote),
            Request::PreVote(request) => self.raft.pre_vote(request).await.map(Response::Vote),
            Request::TransferLeader(request) => {
                self.raft.handle_transfer_leader(request).await.map(Response::TransferLeader).map_err(RaftError::Fatal)
            }
        };
        codec::encode(&response.unwrap_or_else(|fault| Response::Failed(fault.to_string())))
    }

    /// Installs a snapshot that a peer has sent, when it still leads and the file holds what it announced. The file is removed.
    pub async fn install(&self, offer: &[u8], file: PathBuf) -> Result<Vec<u8>, CodecError> {
        let response = self.install_offered(offer, &file).await;
        let removed = runtime::blocking(move || remove_snapshot_file(&file)).await;
        if let Err(fault) = removed {
            tracing::warn!(%fault, "a snapshot's file may be left behind");
        }
        codec::encode(&response?)
    }

    async fn install_offered(&self, offer: &[u8], file: &Path) -> Result<Response, CodecError> {
        let SnapshotOffer { vote, meta } = codec::decode(offer)?;
        // Before openraft has it: there, a snapshot that cannot be installed ends the replica.
        let checked = file.to_owned();
        if let Err(fault) = runtime::blocking(move || snapshot::check(&checked)).await.flatten() {
            return Ok(Response::Failed(fault.to_string()));
        }
        let snapshot = Snapshot { meta, snapshot: SnapshotSource::File(file.to_owned()) };
        Ok(match self.raft.install_full_snapshot(vote, snapshot).await {
            Ok(SnapshotResponse { vote }) => Response::Installed(vote),
            Err(fault) => Response::Failed(fault.to_string()),
        })
    }

    /// The replica's id.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// openraft's handle.
    pub(crate) fn raft(&self) -> &Raft<Types, Machine> {
        &self.raft
    }

    /// Where its rows are.
    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// Whether it runs: one that has failed keeps what it last knew.
    pub fn runs(&self) -> bool {
        self.raft.metrics().borrow_watched().running_state.is_ok()
    }

    /// Whether it runs and knows of a leader.
    pub fn is_ready(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.running_state.is_ok() && metrics.current_leader.is_some()
    }

    /// The node's database.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Replicates a command and returns its index and its reply, both once it is durable on a majority and applied here.
    pub async fn propose(&self, command: Vec<u8>) -> Result<(u64, Vec<u8>), ProposeError> {
        if command.len() > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { size_bytes: command.len() });
        }
        if let Err(fault) = &self.raft.metrics().borrow_watched().running_state {
            return Err(ProposeError::Stopped(fault.to_string()));
        }
        let kib = command.len().div_ceil(1 << 10).clamp(1, IN_FLIGHT_KIB_MAX) as u32;
        let place = self.in_flight.clone().try_acquire_owned().map_err(|_| ProposeError::Overloaded)?;
        let memory = self.in_flight_kib.clone().try_acquire_many_owned(kib).map_err(|_| ProposeError::Overloaded)?;
        // A task of its own: the command keeps its place until it is decided, even when whoever proposed it gives up waiting.
        let raft = self.raft.clone();
        let written = runtime::spawn(async move {
            let _places = (place, memory);
            raft.client_write(Command(command)).await
        });
        match tokio::time::timeout(PROPOSE_TIMEOUT, written).await {
            Ok(Ok(Ok(response))) => Ok((response.log_id.index, response.data.0)),
            // Refused before it was appended.
            Ok(Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))))) => {
                Err(ProposeError::NotLeader { leader: forward.leader_node })
            }
            // From here on it may have been appended.
            Ok(Ok(Err(fault))) => Err(ProposeError::UnknownOutcome { why: fault.to_string() }),
            Ok(Err(fault)) => Err(ProposeError::UnknownOutcome { why: fault.to_string() }),
            Err(_) => Err(ProposeError::UnknownOutcome { why: format!("no answer within {PROPOSE_TIMEOUT:?}") }),
        }
    }

    /// Waits until everything that was acknowledged before the call is applied here. Returns the index. `NotLeader` when this replica does not lead, or
    /// cannot show that it does.
    pub async fn linearizable(&self) -> Result<u64, ProposeError> {
        if mutant::is_on(Mutant::UnconfirmedReadIndex) && self.leads() {
            return Ok(self.applied_index());
        }
        match tokio::time::timeout(READ_TIMEOUT, self.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await {
            Ok(Ok(read)) => Ok(read.index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader { leader: forward.leader_node })
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(fault)))) => {
                tracing::debug!(%fault, "a linearizable read found no majority");
                Err(ProposeError::NotLeader { leader: None })
            }
            Ok(Err(RaftError::Fatal(fault))) => Err(ProposeError::Stopped(fault.to_string())),
            Err(_) => Err(ProposeError::NotLeader { leader: None }),
        }
    }

    /// Index of the last entry that is applied here.
    pub fn applied_index(&self) -> u64 {
        *self.applied.borrow_watched()
    }

    /// Waits until an index is applied here.
    pub async fn wait_applied(&self, index: u64, limit: Duration) -> Result<(), WaitError> {
        let mut applied = self.applied.clone();
        match tokio::time::timeout(limit, applied.wait_until_ge(&index)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(WaitError::Stopped),
            Err(_) => Err(WaitError::Timeout { wanted: index, applied: self.applied_index() }),
        }
    }

    /// Resolves when the group has failed, with the reason: openraft's tasks are not supervised, whoever owns the group watches this.
    pub async fn failed(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(fault) = &metrics.borrow_watched().running_state {
                return fault.to_string();
            }
            if metrics.changed().await.is_err() {
                return "the group has ended".into();
            }
        }
    }

    /// Waits until everything that was proposed here is decided, so long at most; whether it is. A replica that has handed its lead on learns that from the
    /// new leader.
    pub async fn settled(&self, limit: Duration) -> bool {
        let is_settled = || self.in_flight.available_permits() == IN_FLIGHT_MAX;
        let wait = async {
            while !is_settled() {
                tokio::time::sleep(SETTLED_LOOK).await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    /// Ends the replica's tasks. Commands in flight end with an unknown outcome.
    pub async fn shutdown(&self) {
        if let Err(fault) = self.raft.shutdown().await {
            tracing::warn!(replica = self.replica.0, %fault, "a group did not end cleanly");
        }
    }

    /// The applied index, and a hash of all rows at that index. Reads them all.
    pub async fn state_hash(&self) -> Result<(u64, u64), ReadError> {
        let (store, replica) = (self.store.clone(), self.replica);
        let hash = runtime::blocking(move || snapshot::state_hash(&store, replica)).await;
        hash.unwrap_or(Err(ReadError::Malformed("the scan was interrupted")))
    }
}

fn config(name: &str) -> Config {
    Config {
        cluster_name: name.to_owned(),
        heartbeat_interval: HEARTBEAT.as_millis() as u64,
        election_timeout_min: ELECTION_TIMEOUT_MIN.as_millis() as u64,
        election_timeout_max: LEADER_LEASE.as_millis() as u64,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(LOG_ENTRIES_PURGE),
        max_in_snapshot_log_to_keep: LOG_ENTRIES_KEPT,
        purge_batch_size: 256,
        // A leader that restarts is elected again: only that shows that nobody else leads.
        enable_leader_restore: Some(false),
        // A replica that was away cannot unseat a leader that works.
        enable_pre_vote: Some(true),
        max_payload_entries: 64,
        ..Config::default()
    }
}
