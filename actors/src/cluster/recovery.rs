//! The ways out when a majority is gone for good, which an operator orders who accepts what is lost with it: a shard goes on with the replica that is
//! left, or empty; and, when the meta group has lost its majority, a node refounds the cluster with what it has.

use crate::cluster::identity::{IdentityError, NodeIdentity};
use crate::cluster::links::LinkError;
use crate::cluster::overview::{NodeView, Overview};
use crate::cluster::services::Services;
use crate::cluster::wire::{Answer, Call, GroupName};
use crate::error::{ErrorKind, ServiceError};
use crate::service::Session;
use ragged_raft::group::Ground;
use ragged_raft::ids::{NodeId, ReplicaId, ShardId};
use ragged_raft::meta::MetaGroup;
use ragged_raft::meta::command::{MetaCommand, MetaReply};
use ragged_raft::meta::node::NodeState;
use ragged_raft::recovery::{LogEnd, RecoveryError, knows_itself, log_end, make_sole_voter};
use ragged_raft::{ProposeError, ReadError, Store, StoreError, StoreOptions};
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

/// A replica that is left, as its node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Left {
    /// First, so that the greatest is the one with the most.
    end: LogEnd,
    votes: bool,
    node: NodeId,
    replica: ReplicaId,
}

impl Session {
    /// Has a shard without a majority go on with what is left of it. Refused while a replica of it may come back, and unless the loss is accepted.
    pub async fn recover_shard(&self, shard: ShardId, accepts_loss: bool) -> Result<Recovered, ServiceError> {
        let services = self.services();
        // Who has been removed must be known: what is not known counts as present.
        services.meta.catch_up().await?;
        let overview = services.overview().await?;
        if usize::from(shard.0) >= overview.places.len() {
            return Err(ServiceError::not_found("shard_not_found", format!("there is no {shard}")));
        }
        check_lost(&overview, shard)?;
        let best = what_is_left(services, &overview, shard).await?.into_iter().max();
        if !accepts_loss {
            return Err(ServiceError::new(ErrorKind::Conflict, "loss_not_accepted", loss(shard, best)));
        }
        let node = best.map_or_else(|| emptiest(&overview), |left| Ok(left.node))?;
        tracing::warn!(%shard, %node, ?best, "the shard goes on with what is left of it, as an operator has ordered");
        let from = best.map(|left| (left.replica, left.end));
        services.ask(node, Call::Recover { shard, from }, RECOVER_TIMEOUT).await.map_err(LinkError::into_failure)?;
        Ok(Recovered { node, empty: best.is_none() })
    }
}

fn conflict(code: &'static str, detail: String) -> Result<(), ServiceError> {
    Err(ServiceError::new(ErrorKind::Conflict, code, detail))
}

/// Refuses a shard that has not lost its majority, or of which a replica may be where nobody can see it now.
fn check_lost(overview: &Overview, shard: ShardId) -> Result<(), ServiceError> {
    let group = GroupName::Shard(shard);
    if let Some((leader, _)) = overview.working_leader(group) {
        return conflict("shard_has_leader", format!("{shard} is led by {leader}: there is nothing to recover"));
    }
    // Any node may have one that is not noted yet; and one that has just started does not run all of its own.
    let silent: Vec<NodeId> = overview.nodes.iter().filter(|view| view.status.is_none()).map(|view| view.row.node).collect();
    let keeps = |view: &&NodeView| view.status.as_ref().is_some_and(|status| status.kept.iter().any(|(kept, _)| *kept == shard));
    let idle: Vec<NodeId> =
        overview.nodes.iter().filter(keeps).filter(|view| view.replica(group).is_none()).map(|view| view.row.node).collect();
    if !silent.is_empty() || !idle.is_empty() {
        let list = |nodes: &[NodeId]| nodes.iter().map(|node| node.0.to_string()).collect::<Vec<_>>().join(", ");
        let mut detail = String::new();
        if !silent.is_empty() {
            detail = format!(
                "nodes {} do not answer and may have replicas of {shard}: start them again, which loses nothing; or, when they are gone for good, remove them first (ragged cluster remove NODE --force). ",
                list(&silent)
            );
        }
        if !idle.is_empty() {
            detail += &format!(
                "nodes {} have replicas of {shard} that do not run: wait until they do; their logs say why they cannot, if they cannot",
                list(&idle)
            );
        }
        return conflict("replicas_may_return", detail.trim_end().to_owned());
    }
    let mut standings = overview.nodes.iter().filter_map(|view| Some(&view.replica(group)?.standing));
    if standings.any(|standing| standing.voters.contains(&standing.replica) && overview.has_majority(group, standing)) {
        return conflict("shard_has_majority", format!("a majority of {shard} answers: it will elect a leader by itself"));
    }
    Ok(())
}

/// All replicas of a shard that have anything.
async fn what_is_left(services: &Services, overview: &Overview, shard: ShardId) -> Result<Vec<Left>, ServiceError> {
    let mut left = Vec::new();
    for view in &overview.nodes {
        let Some(status) = view.replica(GroupName::Shard(shard)) else { continue };
        let (node, replica) = (view.row.node, status.standing.replica);
        match services.ask(node, Call::LogEnd(shard), RECOVER_TIMEOUT).await.map_err(LinkError::into_unavailable)? {
            Answer::LogEnd(Some(end)) => left.push(Left { end, votes: status.standing.voters.contains(&replica), node, replica }),
            Answer::LogEnd(None) => {}
            _ => return Err(ServiceError::internal("a node answered another question than it was asked")),
        }
    }
    Ok(left)
}

/// What a shard would go on with.
fn loss(shard: ShardId, best: Option<Left>) -> String {
    match best {
        Some(Left { end, votes, node, .. }) => {
            let standing = if votes { "" } else { ", which was being filled or had left the group, and may lack more," };
            format!(
                "{shard} would go on with what {node}{standing} has, its log ends at entry {}: what only the lost replicas had is lost; accept that to go on",
                end.index
            )
        }
        None => format!("no replica of {shard} is left: it would go on empty, its documents are lost; accept that to go on"),
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
    /// The node has not been told enough.
    #[error("the node in {0} has not got so far as to know its cluster: it cannot refound it, and nothing was changed")]
    KnowsNothing(std::path::PathBuf),
    /// The data folder is of no cluster.
    #[error("the data folder {0} does not belong to a cluster: there is nothing to refound")]
    NoMember(std::path::PathBuf),
    /// The file that marks a folder that is being refounded.
    #[error("the data folder {0} cannot be written to: {1}")]
    Mark(std::path::PathBuf, std::io::Error),
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
    let folder = data_dir.to_owned();
    let close = move || -> Result<(), RefoundError> {
        store.close();
        match refounded?.1 {
            MetaReply::Done => unmark(&folder),
            other => Err(RefoundError::Group(format!("it answered {other:?}"))),
        }
    };
    tokio::task::spawn_blocking(close).await??;
    Ok(Refounded { cluster: identity.cluster, node: identity.node, shards, lost })
}

/// The file that says that a folder is being refounded, and that its node must not be started.
const REFOUNDING: &str = "refounding";

/// Whether refounding was begun over this folder, and not ended.
pub fn is_being_refounded(data_dir: &Path) -> bool {
    data_dir.join(REFOUNDING).exists()
}

fn mark(data_dir: &Path) -> Result<(), RefoundError> {
    let mark =
        || std::fs::File::create(data_dir.join(REFOUNDING))?.sync_all().and_then(|()| std::fs::File::open(data_dir)?.sync_all());
    mark().map_err(|fault| RefoundError::Mark(data_dir.to_owned(), fault))
}

fn unmark(data_dir: &Path) -> Result<(), RefoundError> {
    let unmark = || std::fs::remove_file(data_dir.join(REFOUNDING)).and_then(|()| std::fs::File::open(data_dir)?.sync_all());
    unmark().map_err(|fault| RefoundError::Mark(data_dir.to_owned(), fault))
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
    // What cannot be done is found out before anything is changed.
    if log_end(&store, meta)?.is_none() || !knows_itself(&store, meta, identity.node)? {
        return Err(RefoundError::KnowsNothing(data_dir.to_owned()));
    }
    let mut shards = Vec::new();
    let (mut empty, mut lost) = (Vec::new(), Vec::new());
    for shard in (0..identity.shard_count).map(ShardId) {
        match store.replica_of(&shard.group_name()) {
            Some(replica) if log_end(&store, replica)?.is_some() => shards.push((shard, replica)),
            Some(_) => empty.push(shard),
            None => lost.push(shard),
        }
    }
    mark(data_dir)?;
    // From here on no node of the old cluster is talked to.
    identity.cluster = Ulid::new();
    identity.save(data_dir)?;
    make_sole_voter(&store, meta)?;
    for (_, replica) in &shards {
        make_sole_voter(&store, *replica)?;
    }
    for shard in &empty {
        // It was about to be filled, by nobody that is left.
        store.retire_replica(&shard.group_name())?;
    }
    lost.extend(empty);
    lost.sort_unstable();
    let shards = shards.into_iter().map(|(shard, _)| shard).collect();
    Ok((store, identity, shards, lost))
}
