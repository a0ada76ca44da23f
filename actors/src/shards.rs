//! All shards, for whoever needs to ask one.

use crate::address::{Address, Repeat};
use crate::error::ServiceError;
use crate::shard::actor::ShardMessage;
use crate::shard::request::{ShardFreshness, ShardRequest, ShardResponse};
use ractor::concurrency::Duration;
use ragged_raft::ids::{ShardId, TenantId};
use ragged_raft::meta::collection::Collection;
use ragged_raft::shard::command::{ShardCommand, ShardReply};
use std::sync::Arc;

/// How long a shard may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(35);

/// The shards of the cluster, by their number.
#[derive(Clone)]
pub struct Shards {
    addresses: Arc<Vec<Arc<Address<ShardMessage>>>>,
}

impl Shards {
    /// The shards at these addresses, in the order of their numbers.
    pub fn new(addresses: Vec<Arc<Address<ShardMessage>>>) -> Self {
        Shards { addresses: Arc::new(addresses) }
    }

    /// All shards.
    pub fn ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.addresses.len() as u16).map(ShardId)
    }

    /// Addresses by shard.
    pub fn addresses(&self) -> &[Arc<Address<ShardMessage>>] {
        &self.addresses
    }

    /// The shard that a tenant's item of this key lives in.
    pub fn shard_of(&self, key: &[u8]) -> ShardId {
        ShardId((xxhash_rust::xxh3::xxh3_64(key) % self.addresses.len() as u64) as u16)
    }

    /// Asks a shard.
    pub async fn ask(
        &self,
        shard: ShardId,
        tenant: TenantId,
        freshness: ShardFreshness,
        request: ShardRequest,
    ) -> Result<ShardResponse, ServiceError> {
        let Some(address) = self.addresses.get(shard.0 as usize) else {
            return Err(ServiceError::internal(format!("{shard} does not exist")));
        };
        let repeat = match &request {
            ShardRequest::Propose { .. } => Repeat::Unsafe,
            _ => Repeat::Safe,
        };
        let message = |reply| ShardMessage::Ask { tenant, freshness, request: request.clone(), reply };
        address.call(ASK_TIMEOUT, repeat, message).await
    }

    /// Writes to a shard; returns the index and what the state machine said.
    pub async fn write(
        &self,
        shard: ShardId,
        tenant: TenantId,
        command: ShardCommand,
        adds_to: Option<Arc<Collection>>,
    ) -> Result<(u64, ShardReply), ServiceError> {
        match self
            .ask(shard, tenant, ShardFreshness::Eventual, ShardRequest::Propose { command: Arc::new(command), adds_to })
            .await?
        {
            ShardResponse::Applied { index, reply } => Ok((index, reply)),
            other => Err(other.mismatch()),
        }
    }
}
