//! What this node does for others: answers their calls, and lets new ones in.

use crate::address::{Address, Repeat};
use crate::cluster::authority;
use crate::cluster::identity::NodeIdentity;
use crate::cluster::links::{self, Lane, LinkError, Links};
use crate::cluster::reconciler::{ReconcilerMessage, Round};
use crate::cluster::replicas::Replicas;
use crate::cluster::succession::Succession;
use crate::cluster::token::presented;
use crate::cluster::transport::{Receptions, no_replica};
use crate::cluster::wire::{
    Answer, Call, GroupName, Hello, JoinAnswer, JoinRequest, MemberChange, NodeStatus, Outcome, ReplicaStatus,
};
use crate::error::{ErrorKind, ServiceError};
use crate::ingest::jobs::JobsMessage;
use crate::ingest::pipeline::now_ms;
use crate::meta::Meta;
use crate::shards::Shards;
use ractor::concurrency::Duration;
use ragged_raft::Store;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::group::Group;
use ragged_raft::ids::{NodeId, ShardId};
use ragged_raft::membership::{ChangeError, Standing};
use ragged_raft::meta::command::{MetaCommand, MetaReply};
use ragged_raft::meta::node::{NodeRow, NodeState};
use ragged_raft::network::Destination;
use ragged_raft::recovery::{self, LogEnd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How long stopping a job may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the next steps may take.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(35);

/// What this node does for others.
pub struct Services {
    /// Who it is.
    pub identity: NodeIdentity,
    /// Its database.
    pub store: Arc<Store>,
    /// How it asks others.
    pub links: Links,
    /// Its replicas.
    pub replicas: Replicas,
    /// Snapshots that it receives.
    pub receptions: Receptions,
    /// Who leads after a node has died.
    pub succession: Succession,
    /// Its replica of the meta group.
    pub meta: Meta,
    /// Its shards' replicas.
    pub shards: Shards,
    /// Its jobs.
    pub jobs: Arc<Address<JobsMessage>>,
    /// What moves the cluster to how it should be.
    pub reconciler: Arc<Address<ReconcilerMessage>>,
    /// Whether this node is about to end.
    pub stopping: AtomicBool,
}

impl Services {
    /// Answers a member's first call.
    pub fn greet(&self, hello: &Hello) -> Outcome {
        let refuse = |refusal: ServiceError| {
            tracing::warn!(node = %hello.node, %refusal, "a node was refused");
            Err(refusal)
        };
        let forbidden = |code, detail| ServiceError::new(ErrorKind::Forbidden, code, detail);
        if hello.cluster != self.identity.cluster {
            return refuse(forbidden("wrong_cluster", format!("cluster {} is another", hello.cluster)));
        }
        if hello.node == self.identity.node {
            let detail = format!("{} is this node: two nodes run on copies of one data folder", hello.node);
            return refuse(forbidden("same_node", detail));
        }
        if hello.to != self.identity.node {
            // The node that is meant lived here before: it must not seem to answer.
            return refuse(forbidden("another_node", format!("this is {}, not {}", self.identity.node, hello.to)));
        }
        let row = self.meta.group().ok().and_then(|group| group.node(hello.node).ok().flatten());
        if self.links.has_removed(hello.node) || row.is_some_and(|row| row.state == NodeState::Removed) {
            return refuse(links::removed(hello.node));
        }
        self.links.note_address(hello.node, &hello.address);
        self.links.note_return(hello.node);
        Ok(Answer::Done)
    }

    /// Whether this node is about to end: nobody counts on it any more, and it looks after nothing.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// A connection from this node has ended.
    pub fn peer_lost(&self, node: NodeId) {
        self.succession.peer_lost(node, &self.replicas, &self.links);
    }

    /// Answers a member.
    pub async fn answer(&self, from: NodeId, call: Call) -> Outcome {
        match call {
            Call::Hello(_) => Err(ServiceError::internal("a node greets once, and first")),
            Call::Raft { replica, frame } => {
                let group = self.replicas.find(replica).ok_or_else(|| no_replica(replica))?;
                group.answer(&frame).await.map(Answer::Raft).map_err(|fault| ServiceError::internal(fault.to_string()))
            }
            Call::Snapshot(part) => self.receptions.receive(from, part, &self.replicas).await,
            Call::Shard { shard, tenant, freshness, request } => {
                self.shards.ask_here(shard, tenant, freshness, &request).await.map(|answer| Answer::Shard(Box::new(answer)))
            }
            Call::ChangeMeta(command) => {
                self.meta.change_here(Arc::new(command)).await.map(|(index, reply)| Answer::Changed { index, reply })
            }
            Call::MetaIndex => self.meta.index_here().await.map(Answer::Index),
            // Who looked after the cluster would hand on to it what it has just handed on.
            Call::Status if self.is_stopping() => Err(ServiceError::unavailable("stopping", "the node is about to end")),
            Call::Status => Ok(Answer::Status(self.status())),
            Call::Host(shard) => self.shards.host(shard).await.map(Answer::Hosted),
            Call::Unhost { shard, replica } => self.shards.unhost(shard, replica).await.map(|()| Answer::Done),
            Call::ChangeMembers { group, seen, change } => {
                self.change_members(group, &seen, &change).await.map(|()| Answer::Done)
            }
            Call::StateHash(shard) => {
                let group = self.shards.group_here(shard).ok_or_else(|| not_hosted(GroupName::Shard(shard)))?;
                let (index, hash) = group.group().state_hash().await?;
                Ok(Answer::Hash { index, hash })
            }
            Call::LogEnd(shard) => self.log_end(shard).await.map(Answer::LogEnd),
            Call::Recover { shard, from } => self.shards.recover(shard, from).await.map(Answer::Hosted),
            Call::Reconcile => {
                let steps = self.reconciler.call(RECONCILE_TIMEOUT, Repeat::Safe, |reply| ReconcilerMessage::LookNow { reply });
                steps.await.map(|Round { made, failed }| Answer::Steps { made, failed })
            }
            Call::RunJob { tenant, id } => {
                self.jobs.cast(JobsMessage::Run { tenant, id });
                Ok(Answer::Done)
            }
            Call::CancelJob(id) => {
                let cancel = self.jobs.call(CANCEL_TIMEOUT, Repeat::Safe, |reply| JobsMessage::Cancel { id, reply });
                cancel.await.map(Answer::Flag)
            }
        }
    }

    /// Asks a node, which may be this one.
    pub async fn ask(&self, node: NodeId, call: Call, within: Duration) -> Result<Answer, LinkError> {
        if node == self.identity.node {
            return Box::pin(self.answer(node, call)).await.map_err(LinkError::Refused);
        }
        self.links.call(node, Lane::Calls, &call, within).await
    }

    async fn log_end(&self, shard: ShardId) -> Result<Option<LogEnd>, ServiceError> {
        let group = self.shards.group_here(shard).ok_or_else(|| not_hosted(GroupName::Shard(shard)))?;
        let (store, replica) = (group.group().store().clone(), group.group().replica());
        let end = tokio::task::spawn_blocking(move || recovery::log_end(&store, replica)).await;
        let end = end.map_err(|fault| ServiceError::internal(fault.to_string()))?;
        end.map_err(|fault| ServiceError::internal(fault.to_string()))
    }

    /// How this node stands.
    pub fn status(&self) -> NodeStatus {
        let of = |group: GroupName, running: &Group| ReplicaStatus {
            group,
            standing: running.standing(),
            applied_index: running.applied_index(),
        };
        let meta = self.meta.group().ok().map(|meta| (GroupName::Meta, meta.group().clone()));
        let shard = |shard| Some((GroupName::Shard(shard), self.shards.group_here(shard)?.group().clone()));
        let all = meta.into_iter().chain(self.shards.ids().filter_map(shard));
        let replicas = all.filter(|(_, group)| group.runs()).map(|(name, group)| of(name, &group)).collect();
        let on_disk = self.store.replicas();
        let kept = self.shards.ids().filter_map(|shard| Some((shard, *on_disk.get(&shard.group_name())?))).collect();
        NodeStatus { node: self.identity.node, version: env!("CARGO_PKG_VERSION").into(), replicas, kept }
    }

    /// Changes a group's members; its leader must be here.
    pub async fn change_members(&self, name: GroupName, seen: &Standing, change: &MemberChange) -> Result<(), ServiceError> {
        let group = match name {
            GroupName::Meta => self.meta.group()?.group().clone(),
            GroupName::Shard(shard) => self.shards.group_here(shard).ok_or_else(|| not_hosted(name))?.group().clone(),
        };
        let changed = match change {
            MemberChange::AddLearner { node, replica } => {
                group.add_learner(seen, Destination { node: *node, replica: *replica }).await
            }
            MemberChange::SetVoters(voters) => group.set_voters(seen, &voters.iter().copied().collect()).await,
            MemberChange::RemoveLearner(replica) => group.remove_learner(seen, *replica).await,
            MemberChange::TransferLeader(to) => {
                return group.transfer_leader(*to).await.map_err(crate::error::propose_error);
            }
        };
        changed.map_err(|fault| match fault {
            ChangeError::UnknownOutcome(_) => ServiceError::new(ErrorKind::UnknownOutcome, "unknown_outcome", fault.to_string()),
            other => ServiceError::unavailable("members_unchanged", other.to_string()),
        })
    }

    /// Lets a node join that has a token.
    pub async fn admit(&self, request: JoinRequest) -> Result<JoinAnswer, ServiceError> {
        let own = env!("CARGO_PKG_VERSION");
        if request.version != own {
            let detail = format!(
                "the node is version {}, the cluster {own}: install the same version, then upgrade node by node",
                request.version
            );
            return Err(refused(&request, detail));
        }
        if request.address.is_empty() || request.address.len() > 255 {
            return Err(refused(&request, "the address has 1 to 255 bytes".into()));
        }
        let authority = self.meta.group()?.authority()?;
        let authority = authority
            .ok_or_else(|| ServiceError::unavailable("no_authority", "the cluster cannot let nodes join yet, try again"))?;
        let node = NodeRow {
            node: request.node,
            address: request.address.clone(),
            meta_replica: request.meta_replica,
            state: NodeState::Active,
            joined_at_ms: now_ms(),
        };
        let certify = {
            let (authority, node, request) = (authority.clone(), request.node, request.key_request.clone());
            move || authority::issue(&authority, node, &request)
        };
        // Before the token is used up: a request that cannot be certified costs nobody a token.
        let certified = tokio::task::spawn_blocking(certify).await.map_err(|fault| ServiceError::internal(fault.to_string()))?;
        let certificate_pem = match certified {
            Ok(certificate) => certificate,
            Err(fault) => return Err(refused(&request, fault.to_string())),
        };
        let admit = MetaCommand::Admit {
            token_id: request.token_id.clone(),
            secret_sha256: presented(&request.secret_sha256),
            node,
            at_ms: now_ms(),
        };
        failpoints::hit(Point::AdmitBefore);
        match self.meta.change(admit).await? {
            MetaReply::Done => failpoints::hit(Point::AdmitAfter),
            MetaReply::Refused(why) | MetaReply::LimitExceeded(why) => return Err(refused(&request, why)),
            other => return Err(ServiceError::internal(format!("the meta group answered {other:?}"))),
        }
        tracing::info!(node = %request.node, address = request.address, "a node has joined the cluster");
        Ok(JoinAnswer {
            cluster: self.identity.cluster,
            shard_count: self.identity.shard_count,
            authority_pem: authority.certificate_pem,
            certificate_pem,
        })
    }
}

fn not_hosted(group: GroupName) -> ServiceError {
    ServiceError::unavailable("not_hosted", format!("{group} has no replica on this node"))
}

fn refused(request: &JoinRequest, why: String) -> ServiceError {
    tracing::warn!(node = %request.node, why, "a node may not join");
    ServiceError::new(ErrorKind::Forbidden, "join_refused", why)
}
