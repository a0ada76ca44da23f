//! How groups reach their peers: openraft's messages as frames of the codec, carried by whatever [`Transport`] the node has.
//!
//! A message names the replica that it is for. Replica ids are never used twice, so one that reaches a node which has replaced its replica
//! finds nobody, instead of the wrong one.

use crate::codec;
use crate::ids::{NodeId, ReplicaId};
use crate::mutant::{self, Mutant};
use crate::runtime;
use crate::snapshot::SnapshotSource;
use crate::store::Store;
use crate::types::{ReplicaNode, SnapshotMeta, Types, Vote};
use futures::future::BoxFuture;
use openraft::EntryPayload;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
    VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long entries may take to be on a peer's disk.
const ENTRIES_TIMEOUT: Duration = Duration::from_secs(5);

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Destination {
    /// The node that the replica lives on.
    pub node: NodeId,
    /// The replica.
    pub replica: ReplicaId,
}

/// Why a peer did not answer. Whether it acted is not known.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{destination:?} is not reached: {why}")]
pub struct PeerError {
    /// Who was asked.
    pub destination: Destination,
    /// What happened.
    pub why: String,
}

/// Carries messages between nodes. The frames are opaque to it: the other side gives them to [`Group::answer`](crate::group::Group::answer) and
/// [`Group::install`](crate::group::Group::install).
pub trait Transport: Send + Sync + 'static {
    /// Sends a request and returns its answer, or fails within the time.
    fn ask(&self, to: Destination, request: Vec<u8>, within: Duration) -> BoxFuture<'static, Result<Vec<u8>, PeerError>>;

    /// Sends a file with what announces it, and returns the answer that it got once it was received whole. Ends when the future is dropped.
    fn send_file(&self, to: Destination, offer: Vec<u8>, file: PathBuf) -> BoxFuture<'static, Result<Vec<u8>, PeerError>>;
}

/// The transport of a node that is alone: reaches nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Alone {
    fn refuse(destination: Destination) -> BoxFuture<'static, Result<Vec<u8>, PeerError>> {
        Box::pin(async move { Err(PeerError { destination, why: "this node is alone".into() }) })
    }
}

impl Transport for Alone {
    fn ask(&self, to: Destination, _request: Vec<u8>, _within: Duration) -> BoxFuture<'static, Result<Vec<u8>, PeerError>> {
        Alone::refuse(to)
    }

    fn send_file(&self, to: Destination, _offer: Vec<u8>, _file: PathBuf) -> BoxFuture<'static, Result<Vec<u8>, PeerError>> {
        Alone::refuse(to)
    }
}

/// What one replica asks another.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<Types>),
    PreVote(VoteRequest<Types>),
    TransferLeader(TransferLeaderRequest<Types>),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    Append(AppendEntriesResponse<Types>),
    Vote(VoteResponse<Types>),
    TransferLeader(TransferLeaderResponse<Types>),
    /// The vote of the replica that was given a snapshot.
    Installed(Vote),
    /// The replica cannot answer: it has failed, or is being stopped.
    Failed(String),
}

/// Announces a snapshot that is sent as a file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotOffer {
    /// The vote of the leader that sends it.
    pub(crate) vote: Vote,
    /// What it holds.
    pub(crate) meta: SnapshotMeta,
}

/// Makes the peers of one group's replica.
#[derive(Clone)]
pub struct Peers {
    transport: Arc<dyn Transport>,
    store: Arc<Store>,
}

impl Peers {
    /// Peers that this transport reaches. Snapshots are written out beside the store.
    pub fn new(transport: Arc<dyn Transport>, store: Arc<Store>) -> Self {
        Peers { transport, store }
    }
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &ReplicaNode) -> Peer {
        let destination = Destination { node: NodeId(node.node), replica: ReplicaId(target) };
        Peer { transport: self.transport.clone(), store: self.store.clone(), destination }
    }
}

/// Another replica of a group.
pub struct Peer {
    transport: Arc<dyn Transport>,
    store: Arc<Store>,
    destination: Destination,
}

impl Peer {
    async fn ask(&self, request: Request, option: &RPCOption) -> Result<Response, RPCError<Types>> {
        // Entries may be many megabytes, and are on disk when they are answered; openraft gives them the time of a heartbeat, and sends them again and
        // again on a machine that is slower than that.
        let carries_entries = matches!(&request, Request::Append(append) if !append.entries.is_empty());
        let limit = if carries_entries { ENTRIES_TIMEOUT.max(option.hard_ttl()) } else { option.hard_ttl() };
        let within = if carries_entries { limit } else { option.soft_ttl() };
        let frame = codec::encode(&request).map_err(unreachable)?;
        // The transport keeps the time itself; a transport that does not must not stop replication.
        let answer = tokio::time::timeout(limit, self.transport.ask(self.destination, frame, within)).await;
        let answer = answer.map_err(unreachable)?.map_err(unreachable)?;
        match codec::decode(&answer).map_err(unreachable)? {
            Response::Failed(why) => Err(unreachable(PeerError { destination: self.destination, why })),
            response => Ok(response),
        }
    }

    fn mismatch(&self) -> RPCError<Types> {
        unreachable(PeerError { destination: self.destination, why: "the answer is to another question".into() })
    }

    /// A snapshot, written out as of now: it may hold more than openraft asked for.
    async fn send_snapshot(&self, vote: Vote, source: SnapshotSource) -> Result<Response, io::Error> {
        let folder = self.store.snapshot_folder();
        // The file is its guard's from the first moment: when the sending is given up meanwhile, the thread goes on, and drops it.
        let write_out = move || source.write_out(&folder).map(|(path, meta)| (OutgoingFile(path), meta));
        let written = runtime::blocking(write_out).await?;
        let (file, meta) = written?;
        let path = file.0.clone();
        let offer = codec::encode(&SnapshotOffer { vote, meta }).map_err(io::Error::other)?;
        let answer = self.transport.send_file(self.destination, offer, path).await;
        drop(file);
        codec::decode(&answer.map_err(io::Error::other)?).map_err(io::Error::other)
    }
}

/// A snapshot that is being sent; removed afterwards, however that ends.
struct OutgoingFile(PathBuf);

impl Drop for OutgoingFile {
    fn drop(&mut self) {
        remove_snapshot_file(&self.0);
    }
}

/// Removes a snapshot's file that is not needed any more; one that cannot be is removed with the others when the store is next opened.
pub(crate) fn remove_snapshot_file(path: &Path) {
    if let Err(fault) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %fault, "a snapshot's file is left behind");
    }
}

/// openraft waits a while before it tries an unreachable peer again; after other errors it does not.
fn unreachable(fault: impl std::error::Error + 'static) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::new(&fault))
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotSource;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        // What a group is formed by is let be, so that there is a group.
        let is_mutated = mutant::is_on(Mutant::AcknowledgeBeforeMajority)
            && rpc.entries.iter().any(|entry| matches!(entry.payload, EntryPayload::Normal(_)));
        let asked = self.ask(Request::Append(rpc), &option).await;
        if is_mutated && asked.is_err() {
            return Ok(AppendEntriesResponse::Success);
        }
        match asked? {
            Response::Append(response) => Ok(response),
            _ => Err(self.mismatch()),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.ask(Request::Vote(rpc), &option).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(self.mismatch()),
        }
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.ask(Request::PreVote(rpc), &option).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(self.mismatch()),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        match self.ask(Request::TransferLeader(rpc), &option).await? {
            Response::TransferLeader(response) => Ok(response),
            _ => Err(self.mismatch()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, SnapshotSource>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let sent = tokio::select! {
            biased; // what has been sent has been sent
            sent = self.send_snapshot(vote, snapshot.snapshot) => sent,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        match sent {
            Ok(Response::Installed(vote)) => Ok(SnapshotResponse::new(vote)),
            Ok(Response::Failed(why)) => {
                Err(StreamingError::Unreachable(Unreachable::new(&PeerError { destination: self.destination, why })))
            }
            Ok(_) => Err(StreamingError::Unreachable(Unreachable::new(&PeerError {
                destination: self.destination,
                why: "the answer is to another question".into(),
            }))),
            Err(fault) => Err(StreamingError::Unreachable(Unreachable::new(&fault))),
        }
    }
}
