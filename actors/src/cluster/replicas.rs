//! The replicas that run on this node, by their ids: whom a peer's message is for.

use parking_lot::RwLock;
use ragged_raft::group::Group;
use ragged_raft::ids::ReplicaId;
use std::collections::HashMap;
use std::sync::Arc;

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

    /// All that run.
    pub fn all(&self) -> Vec<Group> {
        self.running.read().values().cloned().collect()
    }
}
