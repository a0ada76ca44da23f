//! How the cluster stands, as any node can tell: what is agreed, and what every node says of itself right now.

use crate::cluster::links::Lane;
use crate::cluster::services::Services;
use crate::cluster::wire::{Answer, Call, GroupName, NodeStatus, ReplicaStatus};
use crate::error::ServiceError;
use ragged_raft::ids::{NodeId, ReplicaId, ShardId};
use ragged_raft::membership::Standing;
use ragged_raft::meta::node::{NodeRow, NodeState, ShardPlaces};
use std::time::Duration;

/// How long a node may take to say how it stands.
const STATUS_TIMEOUT: Duration = Duration::from_millis(1_500);

/// A node, and how it stands; none when it does not answer.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// What is agreed on it.
    pub row: NodeRow,
    /// What it says.
    pub status: Option<NodeStatus>,
}

impl NodeView {
    /// Its replica of a group.
    pub fn replica(&self, group: GroupName) -> Option<&ReplicaStatus> {
        self.status.as_ref()?.replicas.iter().find(|replica| replica.group == group)
    }
}

/// The cluster.
#[derive(Debug, Clone)]
pub struct Overview {
    /// Nodes that have not been removed.
    pub nodes: Vec<NodeView>,
    /// Where the shards' replicas are, by shard.
    pub places: Vec<ShardPlaces>,
}

impl Overview {
    /// A node.
    pub fn node(&self, node: NodeId) -> Option<&NodeView> {
        self.nodes.iter().find(|view| view.row.node == node)
    }

    /// What the leader of a group says: of several that think so, the one of the latest term.
    pub fn leader(&self, group: GroupName) -> Option<(NodeId, &ReplicaStatus)> {
        let replicas = self.nodes.iter().filter_map(|view| Some((view.row.node, view.replica(group)?)));
        replicas.filter(|(_, replica)| replica.standing.leads()).max_by_key(|(_, replica)| replica.standing.term)
    }

    /// The same when a majority of the group's voters run: a leader that has lost its majority does not know it at once.
    pub fn working_leader(&self, group: GroupName) -> Option<(NodeId, &ReplicaStatus)> {
        self.leader(group).filter(|(_, status)| self.has_majority(group, &status.standing))
    }

    /// Whether enough of a group's voters run to decide anything: while the voters are being changed, of those before and of those after.
    pub fn has_majority(&self, group: GroupName, standing: &Standing) -> bool {
        standing.is_majority(|replica| self.runs(group, standing, replica))
    }

    /// The same without the voter on this node.
    pub fn has_majority_without(&self, group: GroupName, standing: &Standing, node: NodeId) -> bool {
        standing.is_majority(|replica| standing.nodes.get(&replica) != Some(&node) && self.runs(group, standing, replica))
    }

    fn runs(&self, group: GroupName, standing: &Standing, replica: ReplicaId) -> bool {
        let view = standing.nodes.get(&replica).and_then(|node| self.node(*node));
        view.and_then(|view| view.replica(group)).is_some_and(|status| status.standing.replica == replica)
    }
}

impl Services {
    /// Asks every node how it stands.
    pub async fn overview(&self) -> Result<Overview, ServiceError> {
        let group = self.meta.group()?;
        let rows = group.nodes()?;
        let mut places = vec![ShardPlaces::default(); usize::from(self.identity.shard_count)];
        for (ShardId(number), placed) in group.all_places()? {
            if let Some(slot) = places.get_mut(usize::from(number)) {
                *slot = placed;
            }
        }
        let present = rows.into_iter().filter(|row| row.state != NodeState::Removed);
        let nodes = futures::future::join_all(present.map(|row| async move {
            let status = self.status_of(row.node).await;
            NodeView { row, status }
        }));
        Ok(Overview { nodes: nodes.await, places })
    }

    async fn status_of(&self, node: NodeId) -> Option<NodeStatus> {
        if node == self.identity.node {
            return Some(self.status());
        }
        match self.links.call(node, Lane::Consensus, &Call::Status, STATUS_TIMEOUT).await {
            Ok(Answer::Status(status)) if status.node == node => Some(status),
            _ => None,
        }
    }
}
