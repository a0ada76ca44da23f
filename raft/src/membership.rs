//! Who is in a group, and changes of that: one at a time, proposed by its leader.

use crate::group::{Group, ProposeError};
use crate::ids::{NodeId, ReplicaId};
use crate::network::Destination;
use crate::runtime;
use crate::types::{LogId, ReplicaNode, Types};
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::{Precondition, TransferLeaderRequest};
use openraft::{ChangeMembers, RaftMetrics};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a change of the members may take before its outcome is called unknown.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a leader's majority may be silent until it does not count as one: some heartbeats, and the lease.
const MAJORITY_SILENCE_MAX: Duration = Duration::from_secs(3);

/// A group as one of its replicas sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The replica that sees it so.
    pub replica: ReplicaId,
    /// The term.
    pub term: u64,
    /// Who leads, as far as is known.
    pub leader: Option<ReplicaId>,
    /// Replicas that vote. While a change is under way, those before it and those after it.
    pub voters: BTreeSet<ReplicaId>,
    /// Where voters and learners live.
    pub nodes: BTreeMap<ReplicaId, NodeId>,
    /// Whether a change of the voters was begun and is not finished.
    pub is_changing: bool,
    /// Of each of these a majority is needed: the voters; while a change is under way, those before it and those after it.
    quorums: Vec<BTreeSet<ReplicaId>>,
    /// Index of the last entry in the log.
    pub last_index: u64,
    /// On the leader: up to which index the log of each other replica is known to be the same.
    pub matching: BTreeMap<ReplicaId, u64>,
    /// The entry that made the members what they are: a change names it, so that it is not made on another ground.
    members_since: Option<LogId>,
}

impl Standing {
    /// Whether everything the leader has in its log is known to be in this replica's too, but for so many entries.
    pub fn has_caught_up(&self, replica: ReplicaId, lag: u64) -> bool {
        replica == self.replica || self.matching.get(&replica).is_some_and(|index| index + lag >= self.last_index)
    }

    /// Whether the replicas that this holds for can decide for the group.
    pub fn is_majority(&self, holds: impl Fn(ReplicaId) -> bool) -> bool {
        let is_majority = |voters: &BTreeSet<ReplicaId>| voters.iter().filter(|voter| holds(**voter)).count() * 2 > voters.len();
        self.quorums.iter().all(is_majority)
    }

    /// Whether the replica that sees it so leads as a voter. One that has made others the voters leads them until one of them does, which nobody tells it:
    /// from then on it knows nothing of members that come.
    pub fn leads_as_voter(&self) -> bool {
        self.leads() && self.voters.contains(&self.replica)
    }

    fn of(metrics: &RaftMetrics<Types>) -> Standing {
        let members = &metrics.membership_config;
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let matching = metrics.replication.iter().flatten().map(|(replica, id)| (ReplicaId(*replica), index(*id)));
        Standing {
            replica: ReplicaId(metrics.id),
            term: metrics.current_term,
            leader: metrics.current_leader.map(ReplicaId),
            voters: members.voter_ids().map(ReplicaId).collect(),
            nodes: members.nodes().map(|(replica, node)| (ReplicaId(*replica), NodeId(node.node))).collect(),
            is_changing: members.get_joint_config().len() > 1,
            quorums: members.get_joint_config().iter().map(|voters| voters.iter().copied().map(ReplicaId).collect()).collect(),
            last_index: metrics.last_log_index.unwrap_or_default(),
            matching: matching.collect(),
            members_since: *members.log_id(),
        }
    }

    /// A group that is not, for tests of who decides on groups.
    pub fn imagined(
        replica: ReplicaId,
        leader: Option<ReplicaId>,
        voters: BTreeSet<ReplicaId>,
        nodes: BTreeMap<ReplicaId, NodeId>,
        last_index: u64,
        matching: BTreeMap<ReplicaId, u64>,
    ) -> Standing {
        let quorums = vec![voters.clone()];
        Standing {
            replica,
            term: 1,
            leader,
            voters,
            nodes,
            is_changing: false,
            quorums,
            last_index,
            matching,
            members_since: None,
        }
    }

    /// Whether the replica that sees it so leads.
    pub fn leads(&self) -> bool {
        self.leader == Some(self.replica)
    }

    /// Where the leader lives, as far as is known.
    pub fn leader_node(&self) -> Option<NodeId> {
        self.nodes.get(&self.leader?).copied()
    }
}

/// Why the members were not, or may not have been, changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Another replica leads.
    #[error("this replica does not lead its group")]
    NotLeader,
    /// Something else changed them meanwhile, or another change is not finished. Look again, and decide anew.
    #[error("the members are not what the change was decided on: {0}")]
    Outdated(String),
    /// The change makes no sense, such as a voter that is no learner yet.
    #[error("the change is refused: {0}")]
    Refused(String),
    /// It may have been made, or be made yet.
    #[error("it is not known whether the members were changed: {0}")]
    UnknownOutcome(String),
}

impl Group {
    /// The group as this replica sees it.
    pub fn standing(&self) -> Standing {
        Standing::of(&self.raft().metrics().borrow_watched())
    }

    /// Whether this replica is the group's only one, as far as it knows.
    pub fn is_alone(&self) -> bool {
        self.raft().metrics().borrow_watched().membership_config.nodes().count() <= 1
    }

    /// The node where the leader lives, as far as this replica knows.
    pub fn leader_node(&self) -> Option<NodeId> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader.filter(|_| metrics.running_state.is_ok())?;
        metrics.membership_config.get_node(&leader).map(|node| NodeId(node.node))
    }

    /// Whether this replica leads, as far as it knows.
    pub fn leads(&self) -> bool {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        metrics.running_state.is_ok() && metrics.current_leader == Some(self.replica().0)
    }

    /// Whether the group has a leader, as far as this replica knows: one that it follows or, when it leads itself, a majority that has answered it lately.
    pub fn is_led(&self) -> bool {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        match metrics.current_leader {
            None => false,
            Some(leader) if leader != self.replica().0 => true,
            Some(_) => {
                metrics.membership_config.voter_ids().count() == 1
                    || metrics.last_quorum_acked.is_some_and(|acked| acked.into_inner().elapsed() < MAJORITY_SILENCE_MAX)
            }
        }
    }

    /// Whether this replica votes: it has had everything once, and is kept up to date.
    pub fn votes(&self) -> bool {
        let own = self.replica().0;
        self.raft().metrics().borrow_watched().membership_config.voter_ids().any(|voter| voter == own)
    }

    /// Resolves when the group looks different from `seen`, or has ended.
    pub async fn standing_changed(&self, seen: &Standing) -> Standing {
        let mut metrics = self.raft().metrics();
        loop {
            let now = Standing::of(&metrics.borrow_watched());
            if now != *seen || metrics.changed().await.is_err() {
                return now;
            }
        }
    }

    /// Adds a replica that gets everything and does not vote. Does not wait until it has it.
    pub async fn add_learner(&self, seen: &Standing, learner: Destination) -> Result<(), ChangeError> {
        let nodes = BTreeMap::from([(learner.replica.0, ReplicaNode { node: learner.node.0 })]);
        self.change(seen, ChangeMembers::AddNodes(nodes)).await
    }

    /// Makes these replicas, all of them members already, the voters. Voters before that are not among them leave the group. Called with the
    /// voters that an unfinished change was to, it finishes it.
    pub async fn set_voters(&self, seen: &Standing, voters: &BTreeSet<ReplicaId>) -> Result<(), ChangeError> {
        let voters = voters.iter().map(|replica| replica.0).collect();
        self.change(seen, ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Removes a replica that does not vote.
    pub async fn remove_learner(&self, seen: &Standing, learner: ReplicaId) -> Result<(), ChangeError> {
        self.change(seen, ChangeMembers::RemoveNodes(BTreeSet::from([learner.0]))).await
    }

    async fn change(&self, seen: &Standing, change: ChangeMembers<u64, ReplicaNode>) -> Result<(), ChangeError> {
        let ground = Precondition::LastMembershipLogId { last_membership_log_id: seen.members_since };
        // A task of its own: openraft makes a change of voters in two steps, and giving up between them would leave it half made.
        let raft = self.raft().clone();
        let changed = runtime::spawn(async move { raft.change_membership_if(change, false, [ground]).await });
        match tokio::time::timeout(CHANGE_TIMEOUT, changed).await {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))))) => Err(ChangeError::NotLeader),
            Ok(Ok(Err(RaftError::APIError(ClientWriteError::PreconditionFailed(fault))))) => {
                Err(ChangeError::Outdated(fault.to_string()))
            }
            Ok(Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(fault))))) => {
                Err(ChangeError::Refused(fault.to_string()))
            }
            Ok(Ok(Err(fault))) => Err(ChangeError::UnknownOutcome(fault.to_string())),
            Ok(Err(fault)) => Err(ChangeError::UnknownOutcome(fault.to_string())),
            Err(_) => Err(ChangeError::UnknownOutcome(format!("no answer within {CHANGE_TIMEOUT:?}"))),
        }
    }

    /// Hands the leadership to a voter that has the whole log. Whether it takes it is seen by [`standing`](Self::standing).
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), ProposeError> {
        self.raft().trigger().transfer_leader(to.0).await.map_err(|fault| ProposeError::Stopped(fault.to_string()))
    }

    /// Stands for election at once. When the leader is known to be dead, the others vote although they have heard from it a moment ago, as they do
    /// when a leader hands on (Raft dissertation, 4.2.3); otherwise nothing happens while anyone has. A leader that is not dead after all
    /// loses its lead to one that has all it committed: nothing else is at stake, since reads never rest on the lease.
    pub async fn stand_for_election(&self, leader_is_dead: bool) -> Result<(), ProposeError> {
        let stopped = |fault: openraft::errors::Fatal<Types>| ProposeError::Stopped(fault.to_string());
        if leader_is_dead {
            let vote = self.raft().metrics().borrow_watched().vote;
            let request = TransferLeaderRequest::new(vote, self.replica().0, None);
            if self.raft().handle_transfer_leader(request).await.map_err(stopped)?.is_ok() {
                return Ok(());
            }
        }
        self.raft().trigger().elect(true).await.map_err(|fault| ProposeError::Stopped(fault.to_string()))
    }
}
