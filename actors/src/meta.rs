//! The actor of the meta group, and what the node asks of it.

use crate::address::{Address, RESTART_PATIENCE, Repeat, Reply};
use crate::cluster::links::{Lane, LinkError, Links};
use crate::cluster::replicas::Replicas;
use crate::cluster::wire::{Answer, Call};
use crate::error::{ErrorKind, ServiceError, propose_error};
use crate::supervision::StorageFault;
use parking_lot::RwLock;
use ractor::concurrency::Duration;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ragged_raft::ReadError;
use ragged_raft::group::Ground;
use ragged_raft::ids::{NodeId, ShardId, TenantId};
use ragged_raft::meta::MetaGroup;
use ragged_raft::meta::collection::Collection;
use ragged_raft::meta::command::{KeyRecord, MetaCommand, MetaReply};
use ragged_raft::meta::node::{NodeState, ShardPlaces};
use ragged_raft::mutant::{self, Mutant};
use std::sync::Arc;
use tokio::time::Instant;

/// How long a change may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(35);
/// How long a leader is looked for.
const LEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the nodes are left alone between two rounds of asking who leads.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// How long this node's replica may take to see what another node has said.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages of the meta actor.
pub enum MetaMessage {
    /// Asks for a change.
    Change {
        /// The change.
        command: Arc<MetaCommand>,
        /// Where the answer goes.
        reply: Reply<(u64, MetaReply)>,
    },
    /// The Raft group has failed.
    GroupFailed(String),
    /// A panic on purpose, to test what stands above.
    #[cfg(test)]
    Panic,
}

/// The meta group, for whoever needs it.
#[derive(Clone)]
pub struct Meta {
    address: Arc<Address<MetaMessage>>,
    group: Arc<RwLock<Option<MetaGroup>>>,
    links: Links,
    /// When this node's replica last had everything that was acknowledged before. Held by the one that finds out.
    caught_up: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

impl Meta {
    /// The meta group of a node with these links.
    pub fn new(links: Links) -> Self {
        Meta { address: Arc::new(Address::new("meta")), group: Arc::default(), links, caught_up: Arc::default() }
    }

    /// Where the actor is reached.
    pub fn address(&self) -> &Arc<Address<MetaMessage>> {
        &self.address
    }

    /// The running group. Reads of its rows are point reads of the database, short enough for async threads.
    pub fn group(&self) -> Result<MetaGroup, ServiceError> {
        self.group.read().clone().ok_or_else(|| ServiceError::unavailable("restarting", "the meta group is being restarted"))
    }

    /// Replicates a change, wherever the leader is. When it is made, this node's replica has it.
    pub async fn change(&self, command: MetaCommand) -> Result<MetaReply, ServiceError> {
        let command = Arc::new(command);
        let asked =
            self.ask_leader(|| Call::ChangeMeta(command.as_ref().clone()), || self.change_answer(command.clone()), false).await?;
        let Answer::Changed { index, reply } = asked else { return Err(mismatch()) };
        self.wait_applied(index).await?;
        Ok(reply)
    }

    /// Replicates a change; this node must lead.
    pub async fn change_here(&self, command: Arc<MetaCommand>) -> Result<(u64, MetaReply), ServiceError> {
        let message = |reply| MetaMessage::Change { command: command.clone(), reply };
        self.address.call_if_back_within(RESTART_PATIENCE, CHANGE_TIMEOUT, Repeat::Unsafe, message).await
    }

    async fn change_answer(&self, command: Arc<MetaCommand>) -> Result<Answer, ServiceError> {
        self.change_here(command).await.map(|(index, reply)| Answer::Changed { index, reply })
    }

    /// The index up to which everything that was acknowledged is in the log; this node must lead.
    pub async fn index_here(&self) -> Result<u64, ServiceError> {
        self.group()?.group().linearizable().await.map_err(propose_error)
    }

    async fn index_answer(&self) -> Result<Answer, ServiceError> {
        self.index_here().await.map(Answer::Index)
    }

    /// A collection, by its name. That there is none is said only when no node has acknowledged that there is.
    pub async fn find_collection(&self, tenant: TenantId, name: &str) -> Result<Option<Arc<Collection>>, ServiceError> {
        match self.known(|group| group.known_collection(tenant, name)) {
            Some(known) => Ok(Some(known)),
            // Apart, as with all that few requests wait for: it would make the future of every request longer, which is moved about.
            None => Box::pin(self.read_collection(tenant, name.to_owned())).await,
        }
    }

    async fn read_collection(&self, tenant: TenantId, name: String) -> Result<Option<Arc<Collection>>, ServiceError> {
        let read = async || {
            let name = name.clone();
            self.read(move |group| group.collection(tenant, &name)).await
        };
        if let Some(found) = read().await? {
            return Ok(Some(found));
        }
        if mutant::is_on(Mutant::MetadataNotAsked) {
            return Ok(None);
        }
        self.catch_up().await?;
        read().await
    }

    /// A key, by its public id. That there is none is said only when no node has acknowledged that there is.
    pub async fn find_key(&self, id: &str) -> Result<Option<Arc<KeyRecord>>, ServiceError> {
        match self.known(|group| group.known_key(id)) {
            Some(known) => Ok(Some(known)),
            None => Box::pin(self.read_key(id.to_owned())).await,
        }
    }

    async fn read_key(&self, id: String) -> Result<Option<Arc<KeyRecord>>, ServiceError> {
        let read = async || {
            let id = id.clone();
            self.read(move |group| group.key(&id)).await
        };
        if let Some(found) = read().await? {
            return Ok(Some(found));
        }
        self.catch_up().await?;
        read().await
    }

    /// Where a shard's replicas are, as far as this node has heard.
    pub async fn find_places(&self, shard: ShardId) -> Result<Arc<ShardPlaces>, ServiceError> {
        match self.known(|group| group.known_places(shard)) {
            Some(known) => Ok(known),
            None => Ok(Box::pin(self.read(move |group| group.places(shard))).await?.unwrap_or_default()),
        }
    }

    /// What the running group has in memory.
    fn known<T>(&self, look_up: impl FnOnce(&MetaGroup) -> Option<T>) -> Option<T> {
        look_up(self.group.read().as_ref()?)
    }

    /// Reads rows where nobody else waits for the disk: requests come by here on threads that answer health, too.
    async fn read<T, F>(&self, read: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: FnOnce(&MetaGroup) -> Result<T, ReadError> + Send + 'static,
    {
        let group = self.group()?;
        let done = tokio::task::spawn_blocking(move || read(&group)).await;
        Ok(done.map_err(|fault| ServiceError::internal(format!("reading the cluster's metadata failed: {fault}")))??)
    }

    /// Waits until this node's replica has everything that was acknowledged before the call. Those who call meanwhile share one question.
    pub async fn catch_up(&self) -> Result<(), ServiceError> {
        let called = Instant::now();
        let mut caught_up = self.caught_up.lock().await;
        if caught_up.is_some_and(|since| since >= called) {
            return Ok(());
        }
        let began = Instant::now();
        let asked = self.ask_leader(|| Call::MetaIndex, || self.index_answer(), true).await?;
        let Answer::Index(index) = asked else { return Err(mismatch()) };
        self.wait_applied(index).await?;
        *caught_up = Some(began);
        Ok(())
    }

    async fn wait_applied(&self, index: u64) -> Result<(), ServiceError> {
        let waited = self.group()?.group().wait_applied(index, CATCH_UP_TIMEOUT).await;
        waited.map_err(|fault| ServiceError::unavailable("meta_behind", format!("this node lags behind the cluster: {fault}")))
    }

    /// Asks the leader, on whatever node it is; `safe` says whether asking twice does no harm.
    async fn ask_leader<F, Fut>(&self, call: impl Fn() -> Call, here: F, safe: bool) -> Result<Answer, ServiceError>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<Answer, ServiceError>>,
    {
        let deadline = Instant::now() + LEADER_TIMEOUT;
        let own = self.links.own();
        let mut hint = None;
        loop {
            let mut why = "no node was asked".to_owned();
            let mut silent = Vec::new();
            let candidates = match self.candidates(hint.take()) {
                // This node's replica is being started again.
                Err(fault) if fault.kind == ErrorKind::Unavailable => {
                    why = fault.detail;
                    Vec::new()
                }
                candidates => candidates?,
            };
            for node in candidates {
                let asked = if node == own {
                    here().await.map_err(LinkError::Refused)
                } else {
                    self.links.call(node, Lane::Calls, &call(), CHANGE_TIMEOUT).await
                };
                match asked {
                    Ok(answer) => return Ok(answer),
                    Err(LinkError::Refused(fault)) if fault.kind == ErrorKind::NotLeader => {
                        hint = fault.leader.filter(|leader| *leader != node && !silent.contains(leader));
                        why = fault.detail;
                        if hint.is_some() {
                            break;
                        }
                    }
                    Err(LinkError::Refused(fault)) if fault.kind == ErrorKind::Unavailable => why = fault.detail,
                    Err(LinkError::Refused(fault)) => return Err(fault),
                    Err(LinkError::Lost { node, why }) if !safe => {
                        let detail = format!("{node} may have made the change: {why}");
                        return Err(ServiceError::new(ErrorKind::UnknownOutcome, "unknown_outcome", detail));
                    }
                    Err(fault) => {
                        why = fault.to_string();
                        silent.push(node);
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(ServiceError::unavailable(
                    "meta_unavailable",
                    format!("the meta group has no leader that answers: {why}"),
                ));
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// Nodes to ask, the likeliest leader first.
    fn candidates(&self, hint: Option<NodeId>) -> Result<Vec<NodeId>, ServiceError> {
        let group = self.group()?;
        let first = hint.or_else(|| group.group().standing().leader_node());
        let mut nodes: Vec<NodeId> = first.into_iter().collect();
        let rows = group.nodes()?;
        let others = rows.iter().filter(|row| row.state != NodeState::Removed).map(|row| row.node);
        for node in others.chain([self.links.own()]) {
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        Ok(nodes)
    }
}

/// What the meta actor is started with.
#[derive(Clone)]
pub struct MetaArguments {
    /// What its replica is started with.
    pub ground: Ground,
    /// Told of the replica.
    pub replicas: Replicas,
    /// Told where the actor is, and given its group.
    pub meta: Meta,
}

/// The actor of the meta group.
pub struct MetaActor;

/// What the meta actor knows.
pub struct MetaState {
    arguments: MetaArguments,
    group: MetaGroup,
    watcher: tokio::task::JoinHandle<()>,
}

impl Drop for MetaState {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Actor for MetaActor {
    type Msg = MetaMessage;
    type State = MetaState;
    type Arguments = MetaArguments;

    async fn pre_start(&self, myself: ActorRef<MetaMessage>, arguments: MetaArguments) -> Result<MetaState, ActorProcessingErr> {
        // The group of the actor before this one must have ended: two of one replica could vote twice.
        let before = arguments.meta.group.write().take();
        if let Some(before) = before {
            arguments.replicas.remove(before.group().replica());
            before.group().shutdown().await;
        }
        let started = MetaGroup::start(arguments.ground.clone()).await;
        let group = started.map_err(|fault| StorageFault::new(fault, &arguments.ground.store))?;
        arguments.replicas.add(group.group().clone());
        *arguments.meta.group.write() = Some(group.clone());
        let watcher = tokio::spawn({
            let (group, myself) = (group.clone(), myself.clone());
            async move {
                let fault = group.group().failed().await;
                let _ = myself.send_message(MetaMessage::GroupFailed(fault)); // the actor may have ended as well
            }
        });
        arguments.meta.address.moved_to(myself);
        Ok(MetaState { arguments, group, watcher })
    }

    async fn handle(
        &self,
        _myself: ActorRef<MetaMessage>,
        message: MetaMessage,
        state: &mut MetaState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            MetaMessage::Change { command, reply } => {
                let group = state.group.clone();
                tokio::spawn(async move {
                    let result = group.propose(&command).await.map_err(propose_error);
                    let _ = reply.send(result); // the caller may have gone
                });
            }
            MetaMessage::GroupFailed(fault) => {
                return Err(StorageFault::new(format!("meta: {fault}"), &state.arguments.ground.store).into());
            }
            #[cfg(test)]
            MetaMessage::Panic => panic!("injected"),
        }
        Ok(())
    }

    async fn post_stop(&self, _myself: ActorRef<MetaMessage>, state: &mut MetaState) -> Result<(), ActorProcessingErr> {
        *state.arguments.meta.group.write() = None;
        state.arguments.replicas.remove(state.group.group().replica());
        state.group.group().shutdown().await;
        Ok(())
    }
}

fn mismatch() -> ServiceError {
    ServiceError::internal("a node answered another question than it was asked")
}
