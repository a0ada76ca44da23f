//! The ways out when a majority is gone for good, which an operator orders who accepts what is lost with it: a shard goes on with the replica that is
//! left, or empty; and, when the meta group has lost its majority, a node refounds the cluster with what it has.

use crate::cluster::identity::{IdentityError, NodeIdentity};
use crate::cluster::overview::Overview;
use crate::cluster::services::Services;
use crate::cluster::wire::{Answer, Call, GroupName};
use crate::error::{ErrorKind, ServiceError};
use crate::service::Session;
use ragged_raft::group::Ground;
use ragged_raft::ids::{NodeId, ShardId};
use ragged_raft::membership::Standing;
use ragged_raft::meta::MetaGroup;
use ragged_raft::meta::command::MetaCommand;
use ragged_raft::meta::node::NodeState;
use ragged_raft::recovery::{LogEnd, RecoveryError, make_sole_voter};
use ragged_raft::{ProposeError, ReadError, Store, StoreError, StoreOptions};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ulid::Ulid;

/// How long a replica may take to go on alone.
const RECOVER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a shard goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// The node that leads it now.
    pub node: NodeId,
    /// Whether no replica was left, so that the shard is empty.
    pub empty: bool,
}

impl Session {
    /// Has a shard without a majority go on with what is left of it. Refused while the nodes that lack may come back, and unless the loss is accepted.
    pub async fn recover_shard(&self, shard: ShardId, accepts_loss: bool) -> Result<Recovered, ServiceError> {
        let services = self.services();
        let overview = services.overview().await?;
        if usize::from(shard.0) >= overview.places.len() {
            return Err(ServiceError::not_found("shard_not_found", format!("there is no {shard}")));
        }
        let left = what_is_left(&overview, shard)?;
        let mut best: Option<(LogEnd, NodeId)> = None;
        for node in left {
            best = best.max(log_end(services, node, shard).await?.map(|end| (end, node)));
        }
        if !accepts_loss {
            let detail = match best {
                Some((end, node)) => format!(
                    "{shard} would go on with what {node} has, its log ends at entry {}: what only the lost replicas had is lost; accept that to go on",
                    end.index
                ),
                None => {
                    format!("no replica of {shard} is left: it would go on empty, its documents are lost; accept that to go on")
                }
            };
            return Err(ServiceError::new(ErrorKind::Conflict, "loss_not_accepted", detail));
        }
        let node = best.map_or_else(|| emptiest(&overview), |(_, node)| Ok(node))?;
        tracing::warn!(%shard, %node, empty = best.is_none(), "the shard goes on with what is left of it, as an operator has ordered");
        services.ask(node, Call::Recover(shard), RECOVER_TIMEOUT).await?;
        Ok(Recovered { node, empty: best.is_none() })
    }
}

/// Nodes that have a replica of a shard which has lost its majority for good.
fn what_is_left(overview: &Overview, shard: ShardId) -> Result<Vec<NodeId>, ServiceError> {
    let group = GroupName::Shard(shard);
    let conflict = |code, detail| Err(ServiceError::new(ErrorKind::Conflict, code, detail));
    if let Some((leader, _)) = overview.working_leader(group) {
        return conflict("shard_has_leader", format!("{shard} is led by {leader}: there is nothing to recover"));
    }
    let running = overview.nodes.iter().filter_map(|view| Some((view.row.node, view.replica(group)?)));
    let voting: Vec<_> = running.filter(|(_, replica)| replica.standing.voters.contains(&replica.standing.replica)).collect();
    let noted = overview.places[usize::from(shard.0)].replicas.iter().map(|(node, _)| *node);
    let members: BTreeSet<NodeId> =
        voting.iter().flat_map(|(_, replica)| replica.standing.nodes.values().copied()).chain(noted).collect();
    let may_return = members.iter().filter(|node| overview.node(**node).is_some_and(|view| view.status.is_none()));
    let may_return: Vec<String> = may_return.map(|node| node.0.to_string()).collect();
    if !may_return.is_empty() {
        let detail = format!(
            "nodes {} keep replicas of {shard} and do not answer: start them again, which loses nothing; or, when they are gone for good, remove them first (ragged cluster remove NODE --force)",
            may_return.join(", ")
        );
        return conflict("replicas_may_return", detail);
    }
    let has_majority = |standing: &Standing| overview.voters_that_run(group, standing) * 2 > standing.voters.len();
    if voting.iter().any(|(_, replica)| has_majority(&replica.standing)) {
        return conflict("shard_has_majority", format!("a majority of {shard} answers: it will elect a leader by itself"));
    }
    Ok(voting.into_iter().map(|(node, _)| node).collect())
}

async fn log_end(services: &Services, node: NodeId, shard: ShardId) -> Result<Option<LogEnd>, ServiceError> {
    match services.ask(node, Call::LogEnd(shard), RECOVER_TIMEOUT).await? {
        Answer::LogEnd(end) => Ok(end),
        _ => Err(ServiceError::internal("a node answered another question than it was asked")),
    }
}

/// The node that is to keep replicas, answers, and has the fewest.
fn emptiest(overview: &Overview) -> Result<NodeId, ServiceError> {
    let able = overview.nodes.iter().filter(|view| view.row.state == NodeState::Active);
    let able = able.filter_map(|view| Some((view.status.as_ref()?.replicas.len(), view.row.node)));
    able.min()
        .map(|(_, node)| node)
        .ok_or_else(|| ServiceError::unavailable("no_node", "no node answers that is to keep replicas"))
}

/// Why a node could not refound the cluster.
#[derive(Debug, thiserror::Error)]
pub enum RefoundError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row of it.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Who the node is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The data folder is of no cluster.
    #[error("the data folder {0} does not belong to a cluster: there is nothing to refound")]
    NoMember(std::path::PathBuf),
    /// A replica.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The meta group.
    #[error("the meta group did not go on alone: {0}")]
    Group(String),
    /// It could not be written.
    #[error("the meta group did not take note: {0}")]
    Propose(#[from] ProposeError),
    /// The work was interrupted.
    #[error("the work was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// What a refounded cluster consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refounded {
    /// Its identity.
    pub cluster: Ulid,
    /// The node that is left.
    pub node: NodeId,
    /// Shards that go on with what the node has.
    pub shards: Vec<ShardId>,
    /// Shards that it has nothing of.
    pub lost: Vec<ShardId>,
}

/// Makes a cluster of one of what a node has in its data folder, when a majority of the meta group is gone for good. The node must not run. It is another
/// cluster from then on, so that the nodes of the old one are refused should they return; interrupted, it is done again.
pub async fn refound(data_dir: &Path, options: StoreOptions) -> Result<Refounded, RefoundError> {
    let folder = data_dir.to_owned();
    let (store, identity, shards, lost) = tokio::task::spawn_blocking(move || separate(&folder, options)).await??;
    let group = MetaGroup::start(Ground::alone(store.clone())).await.map_err(|fault| RefoundError::Group(fault.to_string()))?;
    let refounded = group.propose(&MetaCommand::Refound { cluster: identity.cluster, survivor: identity.node }).await;
    group.group().shutdown().await;
    tokio::task::spawn_blocking(move || store.close()).await?;
    refounded?;
    Ok(Refounded { cluster: identity.cluster, node: identity.node, shards, lost })
}

type Separated = (Arc<Store>, NodeIdentity, Vec<ShardId>, Vec<ShardId>);

/// Parts the node from the others: it belongs to another cluster, and votes alone in every group.
fn separate(data_dir: &Path, options: StoreOptions) -> Result<Separated, RefoundError> {
    let no_member = || RefoundError::NoMember(data_dir.to_owned());
    let folder = data_dir.join("store");
    if !folder.exists() {
        return Err(no_member()); // opening it would make one
    }
    let store = Store::open(&folder, options)?;
    let mut identity = NodeIdentity::load(data_dir, store.node())?.ok_or_else(no_member)?;
    let meta = store.replica_of("meta").ok_or_else(no_member)?;
    // First of all: from here on no node of the old cluster is talked to.
    identity.cluster = Ulid::new();
    identity.save(data_dir)?;
    make_sole_voter(&store, meta)?;
    let (mut shards, mut lost) = (Vec::new(), Vec::new());
    for shard in (0..identity.shard_count).map(ShardId) {
        let alone = store.replica_of(&shard.group_name()).map(|replica| make_sole_voter(&store, replica));
        match alone {
            Some(Ok(_)) => shards.push(shard),
            // One that was about to be filled has nothing.
            None | Some(Err(RecoveryError::Empty(_))) => lost.push(shard),
            Some(Err(fault)) => return Err(fault.into()),
        }
    }
    Ok((store, identity, shards, lost))
}
