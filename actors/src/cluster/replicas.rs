//! The replicas that run on this node, by their ids: whom a peer's message is for.

use parking_lot::RwLock;
use ragged_raft::group::Group;
use ragged_raft::ids::{NodeId, ReplicaId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Replicas of one leader that is gone do not all stand for election in the same moment.
const ELECTION_SPREAD: Duration = Duration::from_millis(150);

/// The replicas that run on this node.
#[derive(Clone, Default)]
pub struct Replicas {
    running: Arc<RwLock<HashMap<ReplicaId, Group>>>,
}

impl Replicas {
    /// A replica runs.
    pub fn add(&self, group: Group) {
        self.running.write().insert(group.replica(), group);
    }

    /// A replica does not run any more.
    pub fn remove(&self, replica: ReplicaId) {
        self.running.write().remove(&replica);
    }

    /// A replica that runs.
    pub fn find(&self, replica: ReplicaId) -> Option<Group> {
        self.running.read().get(&replica).cloned()
    }

    /// A connection to this node has ended: the replicas that it leads look for another leader, without waiting until they miss it. When it is still
    /// there, the others hear from it, and refuse.
    pub fn peer_lost(&self, node: NodeId) {
        for group in self.running.read().values() {
            let standing = group.standing();
            if standing.leader_node() != Some(node) || !standing.voters.contains(&standing.replica) {
                continue;
            }
            let group = group.clone();
            tokio::spawn(async move {
                let spread = ELECTION_SPREAD.mul_f64(rand::random());
                tokio::time::sleep(spread).await;
                let standing = group.standing();
                if standing.leader_node() == Some(node)
                    && let Err(fault) = group.stand_for_election().await
                {
                    tracing::debug!(%fault, "an election could not be begun");
                }
            });
        }
    }
}
