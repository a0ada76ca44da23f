//! A shard group on this node.

use crate::codec;
use crate::group::{Ground, Group, ProposeError, StartError, WaitError};
use crate::ids::ShardId;
use crate::runtime;
use crate::shard::changes::Changes;
use crate::shard::command::{ShardCommand, ShardReply};
use crate::shard::machine::ShardApplication;
use crate::shard::reader::ShardReader;
use std::sync::Arc;
use std::time::Duration;

/// A shard replica of this node, running.
#[derive(Clone)]
pub struct ShardGroup {
    group: Group,
    changes: Arc<Changes>,
}

/// A write that is durable on a majority and applied here.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// Its index in the shard's log.
    pub index: u64,
    /// What it answered.
    pub reply: ShardReply,
}

impl ShardGroup {
    /// Starts this node's replica of a shard.
    pub async fn start(ground: Ground, shard: ShardId) -> Result<ShardGroup, StartError> {
        let changes = Arc::new(Changes::default());
        let store = ground.store.clone();
        let application =
            |replica| Arc::new(ShardApplication::new(store.clone(), store.space(replica), changes.clone())) as Arc<_>;
        let group = Group::start(ground, &shard.group_name(), application).await?;
        Ok(ShardGroup { group, changes })
    }

    /// The group itself.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Replicates a command.
    pub async fn propose(&self, command: ShardCommand) -> Result<Applied, ProposeError> {
        let command = if is_large(&command) {
            let encode = runtime::blocking(move || codec::encode(&command)).await;
            encode.map_err(|fault| ProposeError::Stopped(fault.to_string()))??
        } else {
            codec::encode(&command)?
        };
        let (index, reply) = self.group.propose(command).await?;
        Ok(Applied { index, reply: codec::decode(&reply).map_err(ProposeError::unreadable)? })
    }

    /// Reads the replica's rows.
    pub fn reader(&self) -> ShardReader {
        ShardReader::new(self.group.store().clone(), self.group.replica())
    }

    /// Watches the replica's partitions.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// See [`Group::linearizable`].
    pub async fn linearizable(&self) -> Result<u64, ProposeError> {
        self.group.linearizable().await
    }

    /// See [`Group::wait_applied`].
    pub async fn wait_applied(&self, index: u64, limit: Duration) -> Result<(), WaitError> {
        self.group.wait_applied(index, limit).await
    }

    /// See [`Group::failed`].
    pub async fn failed(&self) -> String {
        self.group.failed().await
    }

    /// See [`Group::shutdown`].
    pub async fn shutdown(&self) {
        self.group.shutdown().await;
    }
}

/// Whether encoding takes long enough to leave the async threads.
fn is_large(command: &ShardCommand) -> bool {
    match command {
        ShardCommand::Upsert { documents, .. } => {
            documents.len() > 8 || documents.iter().any(|document| document.text.len() > 64 << 10)
        }
        ShardCommand::PutJob { payload, .. } => payload.as_ref().is_some_and(|payload| payload.len() > 64 << 10),
        _ => false,
    }
}
