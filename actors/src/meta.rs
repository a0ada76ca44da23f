//! The actor of the meta group, and what the node asks of it.

use crate::address::{Address, Repeat, Reply};
use crate::error::ServiceError;
use crate::shard::actor::propose_error;
use crate::supervision::StorageFault;
use parking_lot::RwLock;
use ractor::concurrency::Duration;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ragged_raft::Store;
use ragged_raft::group::Ground;
use ragged_raft::ids::TenantId;
use ragged_raft::meta::MetaGroup;
use ragged_raft::meta::collection::Collection;
use ragged_raft::meta::command::{KeyRecord, MetaCommand, MetaReply};
use std::sync::Arc;

/// How long a change may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(35);

/// Messages of the meta actor.
pub enum MetaMessage {
    /// Asks for a change.
    Change {
        /// The change.
        command: Arc<MetaCommand>,
        /// Where the answer goes.
        reply: Reply<MetaReply>,
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
}

impl Default for Meta {
    fn default() -> Self {
        Meta { address: Arc::new(Address::new("meta")), group: Arc::default() }
    }
}

impl Meta {
    /// Where the actor is reached.
    pub fn address(&self) -> &Arc<Address<MetaMessage>> {
        &self.address
    }

    /// The running group. Reads of its rows are point reads of the database, short enough for async threads.
    pub fn group(&self) -> Result<MetaGroup, ServiceError> {
        self.group.read().clone().ok_or_else(|| ServiceError::unavailable("restarting", "the meta group is being restarted"))
    }

    /// Replicates a change.
    pub async fn change(&self, command: MetaCommand) -> Result<MetaReply, ServiceError> {
        let command = Arc::new(command);
        self.address.call(CHANGE_TIMEOUT, Repeat::Unsafe, |reply| MetaMessage::Change { command: command.clone(), reply }).await
    }

    /// A collection, by its name.
    pub async fn find_collection(&self, tenant: TenantId, name: &str) -> Result<Option<Arc<Collection>>, ServiceError> {
        Ok(self.group()?.collection(tenant, name)?.map(Arc::new))
    }

    /// A key, by its public id.
    pub fn key(&self, id: &str) -> Result<Option<KeyRecord>, ServiceError> {
        Ok(self.group()?.key(id)?)
    }
}

/// What the meta actor is started with.
#[derive(Clone)]
pub struct MetaArguments {
    /// The node's store.
    pub store: Arc<Store>,
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
            before.group().shutdown().await;
        }
        let group =
            MetaGroup::start(Ground::alone(arguments.store.clone())).await.map_err(|fault| StorageFault(fault.to_string()))?;
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
            MetaMessage::GroupFailed(fault) => return Err(StorageFault(format!("meta: {fault}")).into()),
            #[cfg(test)]
            MetaMessage::Panic => panic!("injected"),
        }
        Ok(())
    }

    async fn post_stop(&self, _myself: ActorRef<MetaMessage>, state: &mut MetaState) -> Result<(), ActorProcessingErr> {
        *state.arguments.meta.group.write() = None;
        state.group.group().shutdown().await;
        Ok(())
    }
}
