//! What should be done next so that every group has the replicas that are wanted: a function of how the cluster stands, and of nothing else. It is
//! asked again after every step, so a step that failed, or whose planner ended, is planned anew from what is there.

use crate::cluster::overview::{NodeView, Overview};
use crate::cluster::wire::{GroupName, MemberChange};
use ragged_raft::ids::{NodeId, ReplicaId, ShardId};
use ragged_raft::membership::Standing;
use ragged_raft::meta::node::{NodeState, ShardPlaces};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Voters of the meta group at most; further nodes learn.
const META_VOTERS_MAX: usize = 5;
/// Replicas that are being filled at once in the whole cluster.
const FILLING_MAX: usize = 4;
/// Entries that a replica may lack when it is made a voter.
const VOTER_LAG_MAX: u64 = 256;
/// Entries that a replica may lack when it is to lead.
const LEADER_LAG_MAX: u64 = 64;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Have a node keep a replica of a shard, and add that to the group as a learner.
    Grow {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// Change a group's members, by its leader.
    Change {
        /// The group.
        group: GroupName,
        /// What its members become.
        change: Members,
    },
    /// Have a node give up a replica that has left its group.
    Unhost {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
        /// The replica.
        replica: ReplicaId,
    },
    /// Note where a shard's replicas are.
    Place {
        /// The shard.
        shard: ShardId,
        /// Where.
        places: ShardPlaces,
    },
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Grow { shard, node } => write!(f, "{shard}: a new replica on {node}"),
            Step::Change { group, change } => write!(f, "{group}: {change}"),
            Step::Unhost { shard, node, replica } => write!(f, "{shard}: {node} gives up {replica}, which has left"),
            Step::Place { shard, places } => {
                let nodes: Vec<String> = places.replicas.iter().map(|(node, _)| node.0.to_string()).collect();
                write!(f, "{shard}: noted on nodes {}", nodes.join(", "))
            }
        }
    }
}

impl std::fmt::Display for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Members::Learner(node, replica) => write!(f, "{replica} on {node} begins to learn"),
            Members::Voters(voters) => {
                let voters: Vec<String> = voters.iter().map(|replica| replica.0.to_string()).collect();
                write!(f, "replicas {} vote", voters.join(", "))
            }
            Members::WithoutLearner(replica) => write!(f, "{replica}, which does not vote, leaves"),
            Members::Leader(replica) => write!(f, "{replica} leads"),
        }
    }
}

/// A change of a group's members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Members {
    /// Adds a replica that learns.
    Learner(NodeId, ReplicaId),
    /// Makes these the voters.
    Voters(BTreeSet<ReplicaId>),
    /// Removes one that learns.
    WithoutLearner(ReplicaId),
    /// Hands the leadership on.
    Leader(ReplicaId),
}

impl From<Members> for MemberChange {
    fn from(members: Members) -> MemberChange {
        match members {
            Members::Learner(node, replica) => MemberChange::AddLearner { node, replica },
            Members::Voters(voters) => MemberChange::SetVoters(voters.into_iter().collect()),
            Members::WithoutLearner(replica) => MemberChange::RemoveLearner(replica),
            Members::Leader(replica) => MemberChange::TransferLeader(replica),
        }
    }
}

/// How the cluster stands, to a planner.
pub struct Situation<'a> {
    /// What is agreed, and what the nodes say.
    pub overview: &'a Overview,
    /// Nodes that have been gone for too long.
    pub given_up: &'a BTreeSet<NodeId>,
    /// Replicas that a shard should have.
    pub replication: usize,
}

impl Situation<'_> {
    /// The next steps, in the order of their urgency.
    pub fn plan(&self) -> Vec<Step> {
        let mut steps = self.tend_meta();
        let mut filling = self.learners();
        for shard in self.shards() {
            let grows = |step: &Step| matches!(step, Step::Grow { .. });
            let tended: Vec<Step> = self.tend_shard(shard, filling < FILLING_MAX);
            filling += tended.iter().filter(|step| grows(step)).count();
            steps.extend(tended);
        }
        if steps.is_empty() {
            steps.extend(self.even_out_replicas());
        }
        if steps.is_empty() {
            steps.extend(self.even_out_leaders());
        }
        steps
    }

    fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.overview.places.len() as u16).map(ShardId)
    }

    /// Whether replicas are to be kept on a node.
    fn keeps(&self, node: NodeId) -> bool {
        self.overview.node(node).is_some_and(|view| view.row.state == NodeState::Active) && !self.given_up.contains(&node)
    }

    fn answers(&self, node: NodeId) -> bool {
        self.overview.node(node).is_some_and(|view| view.status.is_some())
    }

    fn keepers(&self) -> impl Iterator<Item = &NodeView> {
        self.overview.nodes.iter().filter(|view| self.keeps(view.row.node))
    }

    /// Nodes that are to keep replicas, those that are gone among them: a replica on a node that is gone stays in its group until there is
    /// another node to take its place, since it may come back and then lacks little.
    fn active(&self) -> usize {
        self.overview.nodes.iter().filter(|view| view.row.state == NodeState::Active).count()
    }

    /// The group as its leader sees it; none when that has no majority, and could change nothing.
    fn standing(&self, group: GroupName) -> Option<&Standing> {
        Some(&self.overview.working_leader(group)?.1.standing)
    }

    /// Replicas that learn, in all shards.
    fn learners(&self) -> usize {
        let of =
            |shard| self.standing(GroupName::Shard(shard)).map_or(0, |standing| standing.nodes.len() - standing.voters.len());
        self.shards().map(of).sum()
    }

    fn tend_meta(&self) -> Vec<Step> {
        let group = GroupName::Meta;
        let Some(standing) = self.standing(group) else { return Vec::new() };
        let change = |change| vec![Step::Change { group, change }];
        let replica_of: BTreeMap<NodeId, ReplicaId> =
            self.overview.nodes.iter().map(|view| (view.row.node, view.row.meta_replica)).collect();
        let newcomer = self.overview.nodes.iter().find(|view| !standing.nodes.contains_key(&view.row.meta_replica));
        if let Some(view) = newcomer {
            return change(Members::Learner(view.row.node, view.row.meta_replica));
        }
        // Those that vote stay, so far as they are to; others follow in the order of their ids.
        let votes = |replica: &ReplicaId| standing.voters.contains(replica);
        let fit = |node: NodeId, replica: &ReplicaId| {
            self.keeps(node) && (votes(replica) || (self.answers(node) && standing.has_caught_up(*replica, VOTER_LAG_MAX)))
        };
        let mut wanted: Vec<ReplicaId> =
            replica_of.iter().filter(|(node, replica)| fit(**node, replica)).map(|(_, replica)| *replica).collect();
        wanted.sort_by_key(|replica| !votes(replica));
        wanted.truncate(META_VOTERS_MAX);
        let wanted: BTreeSet<ReplicaId> = wanted.into_iter().collect();
        if !wanted.is_empty() && (wanted != standing.voters || standing.is_changing) {
            return self.become_voters(standing, wanted).map(change).unwrap_or_default();
        }
        let leaver = standing.nodes.iter().find(|(replica, node)| !votes(replica) && replica_of.get(node) != Some(replica));
        leaver.map(|(replica, _)| change(Members::WithoutLearner(*replica))).unwrap_or_default()
    }

    /// The step towards these voters. A leader that is to leave hands on first, and stays a voter until one of them can lead; and nobody leaves while
    /// too few of those that stay answer: the group would have no majority.
    fn become_voters(&self, standing: &Standing, mut wanted: BTreeSet<ReplicaId>) -> Option<Members> {
        if !wanted.contains(&standing.replica) {
            if let Some(next) = wanted.iter().find(|replica| self.may_lead(standing, **replica)) {
                return Some(Members::Leader(*next));
            }
            wanted.insert(standing.replica);
        }
        let answers = |replica: &&ReplicaId| standing.nodes.get(*replica).is_some_and(|node| self.answers(*node));
        let has_majority = wanted.iter().filter(answers).count() * 2 > wanted.len();
        (has_majority && (wanted != standing.voters || standing.is_changing)).then_some(Members::Voters(wanted))
    }

    fn may_lead(&self, standing: &Standing, replica: ReplicaId) -> bool {
        standing.voters.contains(&replica)
            && standing.nodes.get(&replica).is_some_and(|node| self.answers(*node))
            && standing.has_caught_up(replica, LEADER_LAG_MAX)
    }

    fn tend_shard(&self, shard: ShardId, may_grow: bool) -> Vec<Step> {
        let group = GroupName::Shard(shard);
        let Some(standing) = self.standing(group) else { return Vec::new() };
        let change = |change| vec![Step::Change { group, change }];
        let node_of = |replica: &ReplicaId| standing.nodes.get(replica).copied().unwrap_or_default();
        let kept: BTreeSet<ReplicaId> = standing.voters.iter().copied().filter(|replica| self.keeps(node_of(replica))).collect();
        if standing.is_changing {
            // A change that its proposer did not finish. What is kept is among both the old voters and the new ones.
            let voters = if kept.is_empty() { standing.voters.clone() } else { kept };
            return self.become_voters(standing, voters).map(change).unwrap_or_default();
        }
        let mut places = ShardPlaces { replicas: standing.voters.iter().map(|replica| (node_of(replica), *replica)).collect() };
        places.replicas.sort_unstable();
        let noted = self.overview.places.get(usize::from(shard.0));
        if noted.is_none_or(|noted| noted.replicas.is_empty()) {
            // Before it grows: a node that has just joined finds the shard by this alone, and filling its own replica may take long.
            return vec![Step::Place { shard, places }];
        }
        let wanted = self.replication.min(self.active()).max(1);
        if let Some((learner, node)) = standing.nodes.iter().find(|(replica, _)| !standing.voters.contains(replica)) {
            return self.tend_learner(shard, standing, *learner, *node);
        }
        if kept.len() < wanted {
            let target = self.keepers().map(|view| view.row.node).filter(|node| self.answers(*node));
            let target =
                target.filter(|node| !standing.nodes.values().any(|member| member == node) && self.has_nothing_of(shard, *node));
            if let Some(node) = target.min_by_key(|node| (self.replicas_on(*node), *node)).filter(|_| may_grow) {
                return vec![Step::Grow { shard, node }];
            }
        }
        if standing.voters.len() > wanted
            && let Some(step) = self.become_voters(standing, self.fittest(standing, wanted))
        {
            return change(step);
        }
        let mut steps = self.give_up_orphans(shard, standing);
        if noted != Some(&places) {
            steps.push(Step::Place { shard, places });
        }
        steps
    }

    /// A replica that learns is made a voter once it has everything, and given up when its node is not to keep it.
    fn tend_learner(&self, shard: ShardId, standing: &Standing, learner: ReplicaId, node: NodeId) -> Vec<Step> {
        let group = GroupName::Shard(shard);
        let there = self.overview.node(node).and_then(|view| view.replica(group));
        let lost = self.answers(node) && there.is_none_or(|replica| replica.standing.replica != learner);
        if !self.keeps(node) || lost {
            return vec![Step::Change { group, change: Members::WithoutLearner(learner) }];
        }
        if self.answers(node) && standing.has_caught_up(learner, VOTER_LAG_MAX) {
            // Together with those that leave: they go in a step of their own, so that a majority is always of replicas that have everything.
            let voters = standing.voters.iter().copied().chain([learner]).collect::<BTreeSet<_>>();
            return vec![Step::Change { group, change: Members::Voters(voters) }];
        }
        Vec::new()
    }

    /// So many voters of those there are: kept ones before those that leave, those that answer before others, and those on nodes that keep few.
    fn fittest(&self, standing: &Standing, wanted: usize) -> BTreeSet<ReplicaId> {
        let mut voters: Vec<ReplicaId> = standing.voters.iter().copied().collect();
        voters.sort_by_key(|replica| {
            let node = standing.nodes.get(replica).copied().unwrap_or_default();
            (!self.keeps(node), !self.answers(node), self.replicas_on(node), *replica != standing.replica, *replica)
        });
        voters.into_iter().take(wanted).collect()
    }

    /// Whether a node keeps no replica of a shard, not even one that has left its group: that is given up before another comes.
    fn has_nothing_of(&self, shard: ShardId, node: NodeId) -> bool {
        let status = self.overview.node(node).and_then(|view| view.status.as_ref());
        status.is_none_or(|status| status.kept.iter().all(|(kept, _)| *kept != shard))
    }

    /// Replicas that a node keeps though they are in no group any more, if the leader can say so.
    fn give_up_orphans(&self, shard: ShardId, standing: &Standing) -> Vec<Step> {
        let mut steps = Vec::new();
        if !standing.leads_as_voter() {
            return steps;
        }
        for view in &self.overview.nodes {
            let kept = view.status.iter().flat_map(|status| &status.kept).filter(|(kept, _)| *kept == shard);
            for (_, replica) in kept.filter(|(_, replica)| !standing.nodes.contains_key(replica)) {
                steps.push(Step::Unhost { shard, node: view.row.node, replica: *replica });
            }
        }
        steps
    }

    /// Voters of shards on a node, as their leaders see it.
    fn replicas_on(&self, node: NodeId) -> usize {
        let is_there = |shard: &ShardId| {
            self.standing(GroupName::Shard(*shard)).is_some_and(|standing| standing.nodes.values().any(|member| *member == node))
        };
        self.shards().filter(is_there).count()
    }

    /// Moves a replica from the node with the most to the one with the least, when they differ by more than one: first it grows there, then it
    /// is one too many where it was.
    fn even_out_replicas(&self) -> Option<Step> {
        let by_load: Vec<(usize, NodeId)> = self
            .keepers()
            .filter(|view| view.status.is_some())
            .map(|view| (self.replicas_on(view.row.node), view.row.node))
            .collect();
        let (most, from) = by_load.iter().max()?;
        let (least, to) = by_load.iter().min()?;
        if most - least < 2 {
            return None;
        }
        let movable = |shard: &ShardId| {
            self.standing(GroupName::Shard(*shard)).is_some_and(|standing| {
                standing.nodes.values().any(|node| node == from)
                    && !standing.nodes.values().any(|node| node == to)
                    && self.has_nothing_of(*shard, *to)
            })
        };
        // One that is not led there moves without a hand-over.
        let led_there =
            |shard: &ShardId| self.overview.leader(GroupName::Shard(*shard)).is_some_and(|(leader, _)| leader == *from);
        let shard = self.shards().filter(movable).min_by_key(|shard| (led_there(shard), *shard))?;
        Some(Step::Grow { shard, node: *to })
    }

    /// Hands leaderships on until every node leads as many shards as the others, within one. A node may have no replica of what the busiest one
    /// leads: then others hand on in between, each as much as it takes over.
    fn even_out_leaders(&self) -> Vec<Step> {
        let hand_over =
            |handing: &Handing| Step::Change { group: GroupName::Shard(handing.shard), change: Members::Leader(handing.replica) };
        let possible: Vec<Handing> = self.shards().flat_map(|shard| self.heirs(shard)).collect();
        let led = |node: NodeId| {
            let leads =
                |shard: &ShardId| self.overview.leader(GroupName::Shard(*shard)).is_some_and(|(leader, _)| leader == node);
            self.shards().filter(leads).count()
        };
        let mut load: BTreeMap<NodeId, usize> = self.keepers().map(|view| (view.row.node, led(view.row.node))).collect();
        // A node that is not to keep replicas leads none, if it can be helped.
        let leaving = possible.iter().filter(|handing| !self.keeps(handing.from));
        if let Some(handing) = leaving.min_by_key(|handing| load.get(&handing.to)) {
            return vec![hand_over(handing)];
        }
        load.retain(|node, _| self.answers(*node));
        let mut busiest: Vec<(usize, NodeId)> = load.iter().map(|(node, count)| (*count, *node)).collect();
        busiest.sort_unstable_by(|one, other| other.cmp(one));
        let path = busiest
            .into_iter()
            .find_map(|(most, node)| shortest_path(node, &possible, |to| load.get(&to).is_some_and(|count| count + 1 < most)));
        path.into_iter().flatten().map(hand_over).collect()
    }

    /// Whom the leader of a shard could hand on to.
    fn heirs(&self, shard: ShardId) -> Vec<Handing> {
        let Some((leader, status)) = self.overview.leader(GroupName::Shard(shard)) else { return Vec::new() };
        let standing = &status.standing;
        let others = standing
            .nodes
            .iter()
            .filter(|(replica, node)| **replica != standing.replica && self.keeps(**node) && self.may_lead(standing, **replica));
        others.map(|(replica, node)| Handing { shard, replica: *replica, from: leader, to: *node }).collect()
    }
}

/// A leadership that could be handed on.
struct Handing {
    shard: ShardId,
    replica: ReplicaId,
    from: NodeId,
    to: NodeId,
}

/// The fewest hand-overs, each from where the one before leads to, that begin at a node and end at one that is wanted.
fn shortest_path(start: NodeId, possible: &[Handing], wanted: impl Fn(NodeId) -> bool) -> Option<Vec<&Handing>> {
    let mut reached_by: BTreeMap<NodeId, &Handing> = BTreeMap::new();
    let mut frontier = VecDeque::from([start]);
    while let Some(node) = frontier.pop_front() {
        for handing in possible.iter().filter(|handing| handing.from == node) {
            if handing.to == start || reached_by.contains_key(&handing.to) {
                continue;
            }
            reached_by.insert(handing.to, handing);
            if wanted(handing.to) {
                let back = |handing: &&Handing| reached_by.get(&handing.from).copied();
                return Some(std::iter::successors(Some(handing), back).collect());
            }
            frontier.push_back(handing.to);
        }
    }
    None
}

#[cfg(test)]
mod tests;
