//! All shards, for whoever needs to ask one: a replica on this node when there is one, and otherwise on another.

use crate::address::{Address, RESTART_PATIENCE, Repeat};
use crate::cluster::links::{Lane, LinkError, Links};
use crate::cluster::wire::{Answer, Call};
use crate::error::{ErrorKind, ServiceError};
use crate::hedge::Hedge;
use crate::meta::Meta;
use crate::shard::actor::ShardMessage;
use crate::shard::loaded::LoadedPartitions;
use crate::shard::request::{ShardFreshness, ShardRequest, ShardResponse};
use crate::shard::serving::Replica;
use arc_swap::ArcSwapOption;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::RwLock;
use ractor::concurrency::Duration;
use ragged_raft::ids::{NodeId, ReplicaId, ShardId, TenantId};
use ragged_raft::mutant::{self, Mutant};
use ragged_raft::recovery::LogEnd;
use ragged_raft::shard::command::{ShardCommand, ShardReply};
use ragged_raft::shard::group::ShardGroup;
use rand::seq::SliceRandom;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::time::Instant;

/// How long a shard may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(35);
/// How long a leader, or a replica that answers, is looked for.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the replicas are left alone between two rounds of asking.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// How long beginning or ending a replica may take.
const HOST_TIMEOUT: Duration = Duration::from_secs(30);

/// The shards of the cluster, by their number.
#[derive(Clone)]
pub struct Shards {
    inner: Arc<Inner>,
}

struct Inner {
    here: Vec<Here>,
    meta: Meta,
    links: Links,
    hedge: Hedge,
}

/// A shard on this node.
struct Here {
    address: Arc<Address<ShardMessage>>,
    group: Arc<RwLock<Option<ShardGroup>>>,
    reads: Arc<ArcSwapOption<Replica>>,
}

impl Here {
    fn new(number: u16) -> Here {
        Here { address: Arc::new(Address::new(format!("shard {number}"))), group: Arc::default(), reads: Arc::default() }
    }
}

impl Shards {
    /// So many shards, of a node with these links.
    pub fn new(count: u16, meta: Meta, links: Links, hedge: Hedge) -> Self {
        let here = (0..count).map(Here::new).collect();
        Shards { inner: Arc::new(Inner { here, meta, links, hedge }) }
    }

    /// All shards.
    pub fn ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.count()).map(ShardId)
    }

    /// Number of shards.
    pub fn count(&self) -> u16 {
        self.inner.here.len() as u16
    }

    /// Where this node's actor of a shard is reached.
    pub fn address(&self, shard: ShardId) -> Result<&Arc<Address<ShardMessage>>, ServiceError> {
        Ok(&self.here(shard)?.address)
    }

    fn here(&self, shard: ShardId) -> Result<&Here, ServiceError> {
        self.inner.here.get(usize::from(shard.0)).ok_or_else(|| ServiceError::internal(format!("{shard} does not exist")))
    }

    /// Where the actor of a shard puts its group while it runs.
    pub fn group_slot(&self, shard: ShardId) -> Result<Arc<RwLock<Option<ShardGroup>>>, ServiceError> {
        Ok(self.here(shard)?.group.clone())
    }

    /// Where the actor of a shard puts what answers reads while its replica runs.
    pub(crate) fn reads_slot(&self, shard: ShardId) -> Result<Arc<ArcSwapOption<Replica>>, ServiceError> {
        Ok(self.here(shard)?.reads.clone())
    }

    /// This node's replica of a shard, if it has one that runs.
    pub fn group_here(&self, shard: ShardId) -> Option<ShardGroup> {
        self.here(shard).ok()?.group.read().clone()
    }

    /// What is to be known of this node's replica of a shard, if it has one that runs.
    fn with_group_here<T>(&self, shard: ShardId, look: impl FnOnce(&ShardGroup) -> T) -> Option<T> {
        self.here(shard).ok()?.group.read().as_ref().map(look)
    }

    /// What is loaded of the shards on this node.
    pub(crate) fn loaded_here(&self) -> Vec<Arc<LoadedPartitions>> {
        self.inner.here.iter().filter_map(|here| Some(here.reads.load().as_ref()?.partitions.clone())).collect()
    }

    /// The shard that a tenant's item of this key lives in.
    pub fn shard_of(&self, key: &[u8]) -> ShardId {
        ShardId((xxhash_rust::xxh3::xxh3_64(key) % self.inner.here.len() as u64) as u16)
    }

    /// Whether this node's replica leads its shard, as far as it knows.
    pub fn leads_here(&self, shard: ShardId) -> bool {
        self.with_group_here(shard, |group| group.group().leads()).unwrap_or(false)
    }

    /// The node where a shard is led, as far as is known here.
    pub fn leader_node(&self, shard: ShardId) -> Option<NodeId> {
        self.with_group_here(shard, |group| group.group().leader_node())?
    }

    /// The connections to other nodes.
    pub fn links(&self) -> &Links {
        &self.inner.links
    }

    /// Has this node keep a replica of a shard.
    pub async fn host(&self, shard: ShardId) -> Result<ReplicaId, ServiceError> {
        self.here(shard)?.address.call(HOST_TIMEOUT, Repeat::Safe, |reply| ShardMessage::Host { reply }).await
    }

    /// Has this node give up a replica that has left its group.
    pub async fn unhost(&self, shard: ShardId, replica: ReplicaId) -> Result<(), ServiceError> {
        self.here(shard)?.address.call(HOST_TIMEOUT, Repeat::Safe, |reply| ShardMessage::Unhost { replica, reply }).await
    }

    /// Has this node's replica of a shard go on alone from there, or founds the shard here when nothing of it is.
    pub async fn recover(&self, shard: ShardId, from: Option<(ReplicaId, LogEnd)>) -> Result<ReplicaId, ServiceError> {
        self.here(shard)?.address.call(HOST_TIMEOUT, Repeat::Unsafe, |reply| ShardMessage::Recover { from, reply }).await
    }

    /// Asks a shard, on whatever node it is.
    pub async fn ask(
        &self,
        shard: ShardId,
        tenant: TenantId,
        freshness: ShardFreshness,
        request: ShardRequest,
    ) -> Result<ShardResponse, ServiceError> {
        match (&request, freshness) {
            (ShardRequest::Propose { .. } | ShardRequest::ReadIndex, _) => {
                Box::pin(self.ask_leader(shard, tenant, &request)).await
            }
            (_, ShardFreshness::Strong) if mutant::is_on(Mutant::StaleStrongRead) => {
                self.read(shard, tenant, ShardFreshness::Eventual, &request).await
            }
            // What was acknowledged is in the leader's log; any replica that has applied as much can answer.
            (_, ShardFreshness::Strong) => match Box::pin(self.ask_leader(shard, tenant, &ShardRequest::ReadIndex)).await? {
                ShardResponse::Index(index) => self.read(shard, tenant, ShardFreshness::AtLeast(index), &request).await,
                other => Err(other.mismatch()),
            },
            _ => self.read(shard, tenant, freshness, &request).await,
        }
    }

    /// Asks this node's replica.
    pub async fn ask_here(
        &self,
        shard: ShardId,
        tenant: TenantId,
        freshness: ShardFreshness,
        request: &ShardRequest,
    ) -> Result<ShardResponse, ServiceError> {
        let here = self.here(shard)?;
        let reads = here.reads.load_full();
        if let Some(read) = reads.map(|reads| reads.admit(tenant, request)).transpose()?.flatten() {
            let late = |_| ServiceError::unavailable("timeout", format!("{shard} did not answer within {ASK_TIMEOUT:?}"));
            return tokio::time::timeout(ASK_TIMEOUT, read.run(freshness, request.clone())).await.map_err(late)?;
        }
        let repeat = match request {
            ShardRequest::Propose { .. } => Repeat::Unsafe,
            _ => Repeat::Safe,
        };
        let message = |reply| ShardMessage::Ask { tenant, freshness, request: request.clone(), reply };
        Box::pin(here.address.call_if_back_within(RESTART_PATIENCE, ASK_TIMEOUT, repeat, message)).await
    }

    async fn ask_node(
        &self,
        node: NodeId,
        shard: ShardId,
        tenant: TenantId,
        freshness: ShardFreshness,
        request: &ShardRequest,
    ) -> Result<ShardResponse, LinkError> {
        if node == self.own() {
            return self.ask_here(shard, tenant, freshness, request).await.map_err(LinkError::Refused);
        }
        let call = Call::Shard { shard, tenant, freshness, request: request.clone() };
        match Box::pin(self.inner.links.call(node, Lane::Calls, &call, ASK_TIMEOUT)).await? {
            Answer::Shard(response) => Ok(*response),
            _ => Err(LinkError::Refused(ServiceError::internal("a node answered another question than it was asked"))),
        }
    }

    fn own(&self) -> NodeId {
        self.inner.links.own()
    }

    /// Nodes with a replica of a shard, this one first when it has one, the others in any order.
    pub(crate) async fn hosts(&self, shard: ShardId) -> Result<Vec<NodeId>, ServiceError> {
        let mut nodes = self.other_hosts(shard).await?;
        if self.group_here(shard).is_some() || nodes.is_empty() {
            nodes.insert(0, self.own());
        }
        Ok(nodes)
    }

    /// Other nodes with a replica of a shard, in any order, but those last that are slow or gone.
    async fn other_hosts(&self, shard: ShardId) -> Result<Vec<NodeId>, ServiceError> {
        let own = self.own();
        let places = self.inner.meta.find_places(shard).await?;
        let mut nodes: Vec<NodeId> = places.replicas.iter().map(|(node, _)| *node).filter(|node| *node != own).collect();
        nodes.shuffle(&mut rand::rng());
        nodes.sort_by_cached_key(|node| self.inner.hedge.is_overtaken(*node) || self.inner.links.is_unreachable(*node));
        Ok(nodes)
    }

    /// Asks the replica that leads. What no replica can have seen is tried until one leads; what one may have seen has an unknown outcome.
    async fn ask_leader(&self, shard: ShardId, tenant: TenantId, request: &ShardRequest) -> Result<ShardResponse, ServiceError> {
        let deadline = Instant::now() + SEARCH_TIMEOUT;
        let changes = matches!(request, ShardRequest::Propose { .. }) && !mutant::is_on(Mutant::RetryUnknownWrite);
        let mut hint = self.leader_node(shard);
        loop {
            let mut nodes = self.hosts(shard).await?;
            if let Some(leader) = hint.take() {
                nodes.retain(|node| *node != leader);
                nodes.insert(0, leader);
            }
            let mut why = String::new();
            let mut silent = Vec::new();
            for node in nodes {
                match self.ask_node(node, shard, tenant, ShardFreshness::Eventual, request).await {
                    Ok(response) => return Ok(response),
                    Err(LinkError::Refused(fault)) if fault.kind == ErrorKind::NotLeader => {
                        // A replica may not have heard yet that who led it is gone.
                        hint = fault.leader.filter(|leader| *leader != node && !silent.contains(leader));
                        why = fault.detail;
                        if hint.is_some() {
                            break;
                        }
                    }
                    Err(LinkError::Refused(fault)) if fault.code == "restarting" || fault.code == "shard_unavailable" => {
                        why = fault.detail
                    }
                    Err(LinkError::Refused(fault)) => return Err(fault),
                    Err(LinkError::Lost { node, why }) if changes => return Err(unknown_outcome(shard, node, &why)),
                    Err(fault) => {
                        why = fault.to_string();
                        silent.push(node);
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(ServiceError::unavailable("shard_unavailable", format!("{shard} has no leader that answers: {why}")));
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// Asks one replica after another until one answers.
    async fn read(
        &self,
        shard: ShardId,
        tenant: TenantId,
        freshness: ShardFreshness,
        request: &ShardRequest,
    ) -> Result<ShardResponse, ServiceError> {
        let deadline = Instant::now() + SEARCH_TIMEOUT;
        loop {
            let why = match self.ask_any(shard, tenant, freshness, request).await? {
                Ok(response) => return Ok(response),
                Err(why) => why,
            };
            if Instant::now() >= deadline {
                return Err(ServiceError::unavailable(
                    "shard_unavailable",
                    format!("{shard} has no replica that answers: {why}"),
                ));
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// Asks each replica once, the next when one fails, and a second one besides when the first is slow. Why none could answer, when that may pass.
    async fn ask_any(
        &self,
        shard: ShardId,
        tenant: TenantId,
        freshness: ShardFreshness,
        request: &ShardRequest,
    ) -> Result<Result<ShardResponse, String>, ServiceError> {
        let mut candidates = Candidates::of(self, shard);
        let hedge = &self.inner.hedge;
        // Where there is nobody else to ask, no clock is set.
        let is_alone = self.with_group_here(shard, |group| group.group().is_alone()).unwrap_or(false);
        let slow = tokio::time::sleep(hedge.patience(request));
        tokio::pin!(slow);
        let ask = |node: NodeId, is_second: bool| async move {
            let begun = Instant::now();
            let answer = self.ask_node(node, shard, tenant, freshness, request).await;
            (is_second, begun.elapsed(), answer)
        };
        let mut asked = FuturesUnordered::new();
        let (mut current, mut hedged) = (None, is_alone);
        let (mut why, mut refusal) = ("no node is known to keep one".to_owned(), None);
        loop {
            if asked.is_empty() {
                // A refusal that is no replica's own fault counts when nobody else is being asked.
                if let Some(fault) = refusal {
                    return Err(fault);
                }
                let Some(node) = candidates.next().await? else { return Ok(Err(why)) };
                current = Some(node);
                asked.push(ask(node, false));
            }
            tokio::select! {
                Some((is_second, took, answer)) = asked.next() => match answer {
                    Ok(response) => {
                        hedge.note(request, took);
                        if let Some(overtaken) = current.filter(|_| is_second && !asked.is_empty()) {
                            hedge.note_overtaken(overtaken);
                        }
                        return Ok(Ok(response));
                    }
                    Err(LinkError::Refused(fault)) if !may_answer_elsewhere(&fault) => refusal = Some(fault),
                    Err(fault) => why = fault.to_string(),
                },
                () = &mut slow, if !hedged => {
                    hedged = true;
                    // That nobody else is known is no reason to give up the one that is being asked.
                    if let Ok(Some(node)) = candidates.next().await {
                        match hedge.may_ask() {
                            true => asked.push(ask(node, true)),
                            false => candidates.put_back(node),
                        }
                    }
                }
            }
        }
    }

    /// Writes to a shard; returns the index and what the state machine said.
    pub async fn write(
        &self,
        shard: ShardId,
        tenant: TenantId,
        command: ShardCommand,
    ) -> Result<(u64, ShardReply), ServiceError> {
        match self.ask(shard, tenant, ShardFreshness::Eventual, ShardRequest::Propose { command: Arc::new(command) }).await? {
            ShardResponse::Applied { index, reply } => Ok((index, reply)),
            other => Err(other.mismatch()),
        }
    }
}

/// Nodes with a replica of a shard, in the order that they are asked: this one first, or last when another was faster lately; the others are looked up when
/// they are needed.
struct Candidates<'a> {
    shards: &'a Shards,
    shard: ShardId,
    own: Option<NodeId>,
    own_is_last: bool,
    others: Option<VecDeque<NodeId>>,
}

impl<'a> Candidates<'a> {
    fn of(shards: &'a Shards, shard: ShardId) -> Self {
        let own = shards.with_group_here(shard, |_| shards.own());
        let own_is_last = own.is_some_and(|own| shards.inner.hedge.is_overtaken(own));
        Candidates { shards, shard, own, own_is_last, others: None }
    }

    async fn next(&mut self) -> Result<Option<NodeId>, ServiceError> {
        if !self.own_is_last
            && let Some(own) = self.own.take()
        {
            return Ok(Some(own));
        }
        let others = match &mut self.others {
            Some(others) => others,
            None => self.others.insert(self.shards.other_hosts(self.shard).await?.into()),
        };
        Ok(others.pop_front().or_else(|| self.own.take()))
    }

    /// The next one, after all.
    fn put_back(&mut self, node: NodeId) {
        self.others.get_or_insert_default().push_front(node);
    }
}

/// Whether the fault is the replica's, so that another one may do better.
fn may_answer_elsewhere(fault: &ServiceError) -> bool {
    fault.kind == ErrorKind::NotLeader
        || matches!(
            fault.code,
            "not_hosted" | "restarting" | "timeout" | "token_not_reached" | "shard_unavailable" | "node_unreachable"
        )
}

fn unknown_outcome(shard: ShardId, node: NodeId, why: &str) -> ServiceError {
    let detail = format!(
        "{node} may have written to {shard} ({why}): it is not known whether the write took effect; read it back or retry with the same idempotency key"
    );
    if mutant::is_on(Mutant::UnknownAsRefused) {
        return ServiceError::unavailable("write_overloaded", detail);
    }
    ServiceError::new(ErrorKind::UnknownOutcome, "unknown_outcome", detail)
}
