//! What an operator asks of the cluster, and orders.

use crate::cluster::links::LinkError;
use crate::cluster::overview::{NodeView, Overview};
use crate::cluster::reconciler::Round;
use crate::cluster::services::Services;
use crate::cluster::tls;
use crate::cluster::token::JoinToken;
use crate::cluster::wire::{Answer, Call, GroupName};
use crate::error::{ErrorKind, ServiceError};
use crate::ingest::pipeline::now_ms;
use crate::service::Session;
use ragged_raft::ids::{NodeId, ReplicaId, ShardId};
use ragged_raft::meta::command::{MetaCommand, MetaReply};
use ragged_raft::meta::node::NodeState;
use std::time::{Duration, Instant};

/// How long hashing a replica may take.
const HASH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the next steps may take.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(40);
/// For how long who plans is looked for, and how often.
const PLANNER_PATIENCE: Duration = Duration::from_secs(10);
const PLANNER_PAUSE: Duration = Duration::from_millis(200);
/// Entries that a voter may lack when all is well: as many as may be on their way.
const LAG_MAX: u64 = 1_024;

/// How a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// The node.
    pub id: NodeId,
    /// Where it is reached.
    pub address: String,
    /// What is wanted of it.
    pub state: NodeState,
    /// Whether it answers.
    pub reachable: bool,
    /// Whether it leads the meta group.
    pub leads_meta: bool,
    /// Whether it votes in the meta group.
    pub votes_meta: bool,
    /// Version of its program, when it answers.
    pub version: Option<String>,
    /// Shards that it keeps a replica of.
    pub replicas: usize,
    /// Shards that it leads.
    pub leaders: usize,
}

/// How a shard stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardReport {
    /// The shard.
    pub id: ShardId,
    /// The node that leads it, if one does.
    pub leader: Option<NodeId>,
    /// Its replicas.
    pub replicas: Vec<ReplicaReport>,
}

/// How a replica stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaReport {
    /// Its node.
    pub node: NodeId,
    /// What it is in its group.
    pub role: ReplicaRole,
    /// Whether its node answers and runs it.
    pub running: bool,
    /// Index of the last entry that it has applied, when it runs.
    pub applied_index: Option<u64>,
    /// An index and a hash of all rows at it, when they were asked for.
    pub state_hash: Option<(u64, u64)>,
}

/// What a replica is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaRole {
    /// It leads.
    Leader,
    /// It votes.
    Follower,
    /// It is being filled.
    Learner,
}

/// What is wrong with a group, if anything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `meta`, or the shard.
    pub group: String,
    /// Whether it has a leader and all its replicas, and these have what was written.
    pub healthy: bool,
    /// Whether it takes writes.
    pub available: bool,
    /// What is wrong.
    pub problem: Option<String>,
    /// What the cluster does about it.
    pub remedy: Option<String>,
    /// What the operator can do.
    pub advice: Option<String>,
}

impl Session {
    /// The cluster's nodes.
    pub async fn cluster_nodes(&self) -> Result<Vec<NodeReport>, ServiceError> {
        let overview = self.services().overview().await?;
        let meta = overview.leader(GroupName::Meta).map(|(leader, status)| (leader, &status.standing));
        let report = |view: &NodeView| {
            let id = view.row.node;
            let shards = || (0..overview.places.len() as u16).map(ShardId);
            let keeps = |shard: &ShardId| overview.places[usize::from(shard.0)].replicas.iter().any(|(node, _)| *node == id);
            let leads = |shard: &ShardId| overview.leader(GroupName::Shard(*shard)).is_some_and(|(leader, _)| leader == id);
            NodeReport {
                id,
                address: view.row.address.clone(),
                state: view.row.state,
                reachable: view.status.is_some(),
                leads_meta: meta.is_some_and(|(leader, _)| leader == id),
                votes_meta: meta.is_some_and(|(_, standing)| standing.voters.contains(&view.row.meta_replica)),
                version: view.status.as_ref().map(|status| status.version.clone()),
                replicas: shards().filter(keeps).count(),
                leaders: shards().filter(leads).count(),
            }
        };
        Ok(overview.nodes.iter().map(report).collect())
    }

    /// The cluster's shards; with `hashes`, every replica hashes all its rows, which reads them all.
    pub async fn cluster_shards(&self, hashes: bool) -> Result<Vec<ShardReport>, ServiceError> {
        let services = self.services();
        let overview = services.overview().await?;
        let mut reports = Vec::with_capacity(overview.places.len());
        for number in 0..overview.places.len() as u16 {
            let mut report = shard_report(&overview, ShardId(number));
            if hashes {
                let asked = report.replicas.iter().map(|replica| state_hash(services, replica.node, report.id));
                for (replica, hash) in futures::future::join_all(asked).await.into_iter().enumerate() {
                    report.replicas[replica].state_hash = hash;
                }
            }
            reports.push(report);
        }
        Ok(reports)
    }

    /// What is wrong with each group.
    pub async fn cluster_doctor(&self) -> Result<Vec<Finding>, ServiceError> {
        let overview = self.services().overview().await?;
        let meta_members = overview.nodes.iter().map(|view| view.row.node).collect::<Vec<_>>();
        let mut findings = vec![examine(&overview, GroupName::Meta, &meta_members)];
        for (number, places) in (0u16..).zip(&overview.places) {
            let members: Vec<NodeId> = places.replicas.iter().map(|(node, _)| *node).collect();
            findings.push(examine(&overview, GroupName::Shard(ShardId(number)), &members));
        }
        Ok(findings)
    }

    /// Makes a token that lets one node join, once, for so long.
    pub async fn make_join_token(&self, valid: Duration) -> Result<String, ServiceError> {
        let services = self.services();
        let certificate =
            tls::certificate(&services.identity.authority_pem).map_err(|fault| ServiceError::internal(fault.to_string()))?;
        let token = JoinToken::generate(&certificate).map_err(|fault| ServiceError::internal(fault.to_string()))?;
        let now = now_ms();
        let row = token.row(now.saturating_add(valid.as_millis() as u64));
        match services.meta.change(MetaCommand::PutToken { token: row, at_ms: now }).await? {
            MetaReply::Done => Ok(token.reveal()),
            MetaReply::LimitExceeded(detail) => Err(ServiceError::new(ErrorKind::Conflict, "too_many_tokens", detail)),
            other => Err(ServiceError::internal(format!("the meta group answered {other:?}"))),
        }
    }

    /// Has the next steps towards an even cluster made at once, and says which; none when nothing is left to do.
    pub async fn rebalance(&self) -> Result<Round, ServiceError> {
        let services = self.services();
        let deadline = Instant::now() + PLANNER_PATIENCE;
        loop {
            let leader = services.overview().await?.leader(GroupName::Meta).map(|(leader, _)| leader);
            let no_leader = || ServiceError::unavailable("no_leader", "the meta group has no leader: nobody can plan now");
            let asked = match leader {
                Some(leader) => services.ask(leader, Call::Reconcile, REBALANCE_TIMEOUT).await,
                None => Err(LinkError::Refused(no_leader())),
            };
            match asked {
                Ok(Answer::Steps { made, failed }) => return Ok(Round { made, failed }),
                Ok(_) => return Err(ServiceError::internal("a node answered another question than it was asked")),
                // Another one leads by now, or soon. Steps that were made are not made again: they are planned from how things stand.
                Err(fault) if Instant::now() >= deadline => return Err(fault.into_unavailable()),
                Err(LinkError::Refused(fault)) if fault.kind != ErrorKind::Unavailable => return Err(fault),
                Err(fault) => tracing::debug!(%fault, "who plans cannot be asked yet"),
            }
            tokio::time::sleep(PLANNER_PAUSE).await;
        }
    }

    /// Has a node's replicas moved to others; it serves meanwhile.
    pub async fn drain_node(&self, node: NodeId) -> Result<NodeReport, ServiceError> {
        self.set_node_state(node, NodeState::Draining).await?;
        let nodes = self.cluster_nodes().await?;
        nodes.into_iter().find(|report| report.id == node).ok_or_else(|| no_node(node))
    }

    /// Takes a node out of the cluster for good. Refused while it alone keeps a shard, or a group has no majority without it, unless `force`.
    pub async fn remove_node(&self, node: NodeId, force: bool) -> Result<(), ServiceError> {
        let overview = self.services().overview().await?;
        let Some(view) = overview.node(node) else { return Err(no_node(node)) };
        if overview.nodes.len() == 1 {
            return Err(ServiceError::new(ErrorKind::Conflict, "last_node", "the only node of a cluster cannot be removed"));
        }
        let alone = overview.places.iter().filter(|places| places.replicas.len() == 1 && places.replicas[0].0 == node).count();
        if alone > 0 && !force {
            let detail = format!(
                "{} keeps the only replica of {alone} shards: drain it first, and remove it when it keeps none (or force it, which loses them)",
                view.row.node
            );
            return Err(ServiceError::new(ErrorKind::Conflict, "last_replica", detail));
        }
        // It is cut off at once: what needs its vote would never decide anything again, not even to go on without it.
        if !force && let Some(group) = needed_by(&overview, node) {
            let detail = format!(
                "{group} has no majority without {}: drain it first and wait until it keeps nothing, and start nodes that do not answer (or force it, which may lose what it keeps)",
                view.row.node
            );
            return Err(ServiceError::new(ErrorKind::Conflict, "majority_needed", detail));
        }
        self.set_node_state(node, NodeState::Removed).await
    }

    async fn set_node_state(&self, node: NodeId, state: NodeState) -> Result<(), ServiceError> {
        match self.services().meta.change(MetaCommand::SetNodeState { node, state }).await? {
            MetaReply::Done => Ok(()),
            MetaReply::NotFound => Err(no_node(node)),
            MetaReply::Refused(detail) => Err(ServiceError::new(ErrorKind::Conflict, "node_removed", detail)),
            other => Err(ServiceError::internal(format!("the meta group answered {other:?}"))),
        }
    }
}

/// A group that has no majority without a node, if there is one.
fn needed_by(overview: &Overview, node: NodeId) -> Option<GroupName> {
    let shards = (0..overview.places.len() as u16).map(|number| GroupName::Shard(ShardId(number)));
    shards.chain([GroupName::Meta]).find(|group| match overview.leader(*group) {
        Some((_, status)) => {
            let standing = &status.standing;
            let votes = standing.voters.iter().any(|voter| standing.nodes.get(voter) == Some(&node));
            votes && !overview.has_majority_without(*group, standing, node)
        }
        None => match group {
            GroupName::Meta => true,
            GroupName::Shard(ShardId(number)) => {
                overview.places[usize::from(*number)].replicas.iter().any(|(member, _)| *member == node)
            }
        },
    })
}

fn shard_report(overview: &Overview, shard: ShardId) -> ShardReport {
    let group = GroupName::Shard(shard);
    let leader = overview.working_leader(group);
    let noted = &overview.places[usize::from(shard.0)];
    // The members as the leader has them; without a leader, as they were noted.
    let members: Vec<(NodeId, bool)> = match leader {
        Some((_, status)) => {
            let standing = &status.standing;
            standing.nodes.iter().map(|(replica, node)| (*node, standing.voters.contains(replica))).collect()
        }
        None => noted.replicas.iter().map(|(node, _)| (*node, true)).collect(),
    };
    let leader = leader.map(|(node, _)| node);
    let replicas = members.into_iter().map(|(node, votes)| {
        let status = overview.node(node).and_then(|view| view.replica(group));
        let role = match (leader == Some(node), votes) {
            (true, _) => ReplicaRole::Leader,
            (false, true) => ReplicaRole::Follower,
            (false, false) => ReplicaRole::Learner,
        };
        ReplicaReport {
            node,
            role,
            running: status.is_some(),
            applied_index: status.map(|status| status.applied_index),
            state_hash: None,
        }
    });
    ShardReport { id: shard, leader, replicas: replicas.collect() }
}

async fn state_hash(services: &Services, node: NodeId, shard: ShardId) -> Option<(u64, u64)> {
    match services.ask(node, Call::StateHash(shard), HASH_TIMEOUT).await {
        Ok(Answer::Hash { index, hash }) => Some((index, hash)),
        _ => None,
    }
}

fn examine(overview: &Overview, group: GroupName, noted: &[NodeId]) -> Finding {
    let name = match group {
        GroupName::Meta => "meta".to_owned(),
        GroupName::Shard(ShardId(number)) => format!("shard {number}"),
    };
    let gone = |nodes: &mut dyn Iterator<Item = NodeId>| -> Vec<String> {
        nodes
            .filter(|node| overview.node(*node).is_none_or(|view| view.status.is_none()))
            .map(|node| node.0.to_string())
            .collect()
    };
    let Some((_, status)) = overview.working_leader(group) else {
        let gone = gone(&mut noted.iter().copied());
        let lost_majority = gone.len() * 2 >= noted.len().max(1);
        return Finding {
            group: name,
            healthy: false,
            available: false,
            problem: Some(match gone.is_empty() {
                true => "no replica leads it".to_owned(),
                false => format!("no replica leads it; nodes {} do not answer", gone.join(", ")),
            }),
            remedy: Some(match lost_majority {
                true => "nothing: without a majority of its replicas nobody can know what was acknowledged".to_owned(),
                false => "its replicas are electing a leader".to_owned(),
            }),
            advice: lost_majority.then(|| way_out(overview, group, noted)),
        };
    };
    let standing = &status.standing;
    let learners = standing.nodes.len() - standing.voters.len();
    // In the meta group all nodes that do not vote learn, for good: one that is gone takes nothing from it.
    let is_missed = |replica: &ReplicaId| group != GroupName::Meta || standing.voters.contains(replica);
    let missed = gone(&mut standing.nodes.iter().filter(|(replica, _)| is_missed(replica)).map(|(_, node)| *node));
    let gone = gone(&mut standing.nodes.values().copied());
    let behind: Vec<String> = standing
        .voters
        .iter()
        .filter(|voter| !standing.has_caught_up(**voter, LAG_MAX))
        .filter_map(|voter| Some(standing.nodes.get(voter)?.0.to_string()))
        .collect();
    let (problem, remedy) = if !missed.is_empty() {
        (
            Some(format!("nodes {} do not answer", missed.join(", "))),
            "it goes on with the others; nodes that stay away are replaced after cluster.replace_after_ms, when there are others to take their place",
        )
    } else if learners > 0 && group != GroupName::Meta {
        (Some(format!("{learners} of its replicas are being filled")), "they become voters once they have everything")
    } else if !behind.is_empty() {
        // Were another node stopped now, writes would wait for these.
        (Some(format!("its replicas on nodes {} lack what was written lately", behind.join(", "))), "they are sent it")
    } else {
        (None, "")
    };
    Finding {
        group: name,
        healthy: problem.is_none(),
        available: true,
        remedy: problem.as_ref().map(|_| remedy.to_owned()),
        advice: (!gone.is_empty())
            .then(|| format!("start node {} again, or remove it if it does not come back", gone.join(", "))),
        problem,
    }
}

/// What an operator can do about a majority that is gone.
fn way_out(overview: &Overview, group: GroupName, noted: &[NodeId]) -> String {
    let may_return = noted.iter().any(|node| overview.node(*node).is_some_and(|view| view.status.is_none()));
    let start = "start the nodes that do not answer again, with their data folders: everything that was acknowledged is in them";
    match group {
        GroupName::Meta => format!(
            "{start}. When they are gone for good: stop one node that is left, and run `ragged cluster refound` over its data folder"
        ),
        GroupName::Shard(ShardId(number)) if may_return => {
            format!(
                "{start}. When they are gone for good: `ragged cluster remove NODE --force`, then `ragged cluster recover {number}`"
            )
        }
        GroupName::Shard(ShardId(number)) => {
            format!("`ragged cluster recover {number}` says what is lost, and goes on without it when told to")
        }
    }
}

fn no_node(node: NodeId) -> ServiceError {
    ServiceError::not_found("node_not_found", format!("there is no {node} in the cluster"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::wire::{NodeStatus, ReplicaStatus};
    use ragged_raft::membership::Standing;
    use ragged_raft::meta::node::NodeRow;

    const GROUP: GroupName = GroupName::Shard(ShardId(3));
    const LAST_INDEX: u64 = 50_000;

    /// Three replicas on nodes of the same numbers, the first of which leads and knows that of the third so much is the same.
    fn with_third_at(index: u64) -> Overview {
        let numbers = [1, 2, 3];
        let voters = || numbers.map(ReplicaId).into_iter();
        let homes = || voters().zip(numbers.map(NodeId)).collect();
        let matching = [(ReplicaId(2), LAST_INDEX), (ReplicaId(3), index)];
        let nodes = numbers.map(|number| {
            let (node, replica) = (NodeId(number), ReplicaId(number));
            let standing =
                Standing::imagined(replica, Some(ReplicaId(1)), voters().collect(), homes(), LAST_INDEX, matching.into());
            let replicas = vec![ReplicaStatus { group: GROUP, standing, applied_index: LAST_INDEX }];
            let status = NodeStatus { node, version: String::new(), replicas, kept: Vec::new() };
            let row = NodeRow { node, address: String::new(), meta_replica: replica, state: NodeState::Active, joined_at_ms: 0 };
            NodeView { row, status: Some(status) }
        });
        Overview { nodes: nodes.into(), places: Vec::new() }
    }

    #[test]
    fn a_group_is_well_when_its_replicas_have_what_was_written() {
        let nearly = examine(&with_third_at(LAST_INDEX - LAG_MAX), GROUP, &[]);
        assert!(nearly.healthy && nearly.problem.is_none() && nearly.remedy.is_none());
        let behind = examine(&with_third_at(LAST_INDEX - LAG_MAX - 1), GROUP, &[]);
        assert!(!behind.healthy && behind.available && behind.remedy.is_some());
        assert_eq!(behind.problem.unwrap(), "its replicas on nodes 3 lack what was written lately");
    }
}
