//! How groups reach their peers. A cluster of one has none: whoever is asked for is unreachable.

use crate::snapshot::SnapshotSource;
use crate::types::{ReplicaNode, Types, Vote};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::type_config::alias::SnapshotOf;
use std::io;

/// The network of a node that is alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

/// A peer that a node which is alone does not reach.
#[derive(Debug, Clone)]
pub struct NoPeer {
    target: String,
}

impl NoPeer {
    fn unreachable(&self) -> Unreachable<Types> {
        Unreachable::new(&io::Error::new(
            io::ErrorKind::NotConnected,
            format!("{} is not reachable: this node is alone", self.target),
        ))
    }
}

impl RaftNetworkFactory<Types> for NoPeers {
    type Network = NoPeer;

    async fn new_client(&mut self, target: u64, node: &ReplicaNode) -> NoPeer {
        NoPeer { target: format!("replica {target} on {node}") }
    }
}

impl RaftNetworkV2<Types> for NoPeer {
    type SnapshotData = SnapshotSource;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(self.unreachable()))
    }

    async fn vote(&mut self, _rpc: VoteRequest<Types>, _option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(self.unreachable()))
    }

    async fn pre_vote(&mut self, _rpc: VoteRequest<Types>, _option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(self.unreachable()))
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: SnapshotOf<Types, SnapshotSource>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        Err(StreamingError::Unreachable(self.unreachable()))
    }
}
