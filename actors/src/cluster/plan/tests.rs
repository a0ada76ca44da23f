//! The planner over a model of a cluster: steps are made as they are planned, and nodes come, die, drain and leave in between.

use super::*;
use crate::cluster::wire::{NodeStatus, ReplicaStatus};
use proptest::prelude::*;
use ragged_raft::meta::node::NodeRow;

const SHARDS: u16 = 8;
const REPLICATION: usize = 3;
/// Rounds of planning after which everything has to be as it should.
const ROUNDS_MAX: usize = 200;

#[derive(Debug, Clone)]
struct Member {
    row: NodeRow,
    alive: bool,
    /// Gone for so long that it is replaced.
    given_up: bool,
    /// What it keeps, whether or not it is in the group any more.
    hosts: BTreeMap<ShardId, ReplicaId>,
}

#[derive(Debug, Clone, Default)]
struct Group {
    voters: BTreeSet<ReplicaId>,
    nodes: BTreeMap<ReplicaId, NodeId>,
    leader: Option<ReplicaId>,
    places: ShardPlaces,
}

/// A cluster whose steps succeed at once.
#[derive(Debug, Clone)]
struct Model {
    members: Vec<Member>,
    meta: Group,
    shards: Vec<Group>,
    next: u64,
}

impl Model {
    fn founded() -> Model {
        let mut model =
            Model { members: Vec::new(), meta: Group::default(), shards: vec![Group::default(); SHARDS.into()], next: 1 };
        model.join();
        let founder = model.members[0].row.clone();
        model.meta.voters.insert(founder.meta_replica);
        model.meta.nodes.insert(founder.meta_replica, founder.node);
        for number in 0..SHARDS {
            let replica = model.replica();
            let group = &mut model.shards[usize::from(number)];
            group.voters.insert(replica);
            group.nodes.insert(replica, founder.node);
            model.members[0].hosts.insert(ShardId(number), replica);
        }
        model.elect();
        model
    }

    fn replica(&mut self) -> ReplicaId {
        self.next += 1;
        ReplicaId(self.next)
    }

    fn join(&mut self) {
        let (node, meta_replica) = (NodeId(1000 + self.members.len() as u64), self.replica());
        let row = NodeRow { node, address: format!("{node}"), meta_replica, state: NodeState::Active, joined_at_ms: 0 };
        self.members.push(Member { row, alive: true, given_up: false, hosts: BTreeMap::new() });
    }

    fn alive(&self, node: NodeId) -> bool {
        self.members.iter().any(|member| member.row.node == node && member.alive && member.row.state != NodeState::Removed)
    }

    /// Every group with a living majority has a living leader.
    fn elect(&mut self) {
        let alive: BTreeSet<NodeId> =
            self.members.iter().map(|member| member.row.node).filter(|node| self.alive(*node)).collect();
        for group in self.shards.iter_mut().chain([&mut self.meta]) {
            let lives = |replica: &ReplicaId| alive.contains(&group.nodes[replica]);
            let living: Vec<ReplicaId> = group.voters.iter().copied().filter(lives).collect();
            if living.len() * 2 <= group.voters.len() {
                group.leader = None;
            } else if group.leader.is_none_or(|leader| !living.contains(&leader)) {
                group.leader = living.first().copied();
            }
        }
    }

    fn status(&self, group: &Group, name: GroupName, replica: ReplicaId) -> ReplicaStatus {
        let leads = group.leader == Some(replica);
        let matching = group.nodes.iter().filter(|(_, node)| leads && self.alive(**node)).map(|(replica, _)| (*replica, 10));
        let standing =
            Standing::imagined(replica, group.leader, group.voters.clone(), group.nodes.clone(), 10, matching.collect());
        ReplicaStatus { group: name, standing, applied_index: 10 }
    }

    fn overview(&self) -> Overview {
        let present = self.members.iter().filter(|member| member.row.state != NodeState::Removed);
        let nodes = present.map(|member| {
            let shards = member
                .hosts
                .iter()
                .map(|(shard, replica)| self.status(&self.shards[usize::from(shard.0)], GroupName::Shard(*shard), *replica));
            let meta = self.meta.nodes.contains_key(&member.row.meta_replica);
            let meta = meta.then(|| self.status(&self.meta, GroupName::Meta, member.row.meta_replica));
            let replicas: Vec<ReplicaStatus> = shards.chain(meta).collect();
            let shard = |replica: &ReplicaStatus| match replica.group {
                GroupName::Meta => None,
                GroupName::Shard(shard) => Some((shard, replica.standing.replica)),
            };
            let kept = replicas.iter().filter_map(shard).collect();
            let status = NodeStatus { node: member.row.node, version: "1".into(), replicas, kept };
            NodeView { row: member.row.clone(), status: member.alive.then_some(status) }
        });
        Overview { nodes: nodes.collect(), places: self.shards.iter().map(|group| group.places.clone()).collect() }
    }

    fn plan(&self) -> Vec<Step> {
        let given_up = self.members.iter().filter(|member| member.given_up).map(|member| member.row.node).collect();
        Situation { overview: &self.overview(), given_up: &given_up, replication: REPLICATION }.plan()
    }

    fn make(&mut self, step: Step) {
        match step {
            Step::Grow { shard, node } => {
                let replica = self.replica();
                let member = self.members.iter_mut().find(|member| member.row.node == node).unwrap();
                assert!(member.alive, "a node that is gone is asked to keep a replica");
                let replica = *member.hosts.entry(shard).or_insert(replica);
                self.shards[usize::from(shard.0)].nodes.insert(replica, node);
            }
            Step::Unhost { shard, node, replica } => {
                let group = &self.shards[usize::from(shard.0)];
                assert!(!group.nodes.contains_key(&replica), "a replica is given up that is in its group");
                let member = self.members.iter_mut().find(|member| member.row.node == node).unwrap();
                assert_eq!(member.hosts.remove(&shard), Some(replica));
            }
            Step::Place { shard, places } => self.shards[usize::from(shard.0)].places = places,
            Step::Change { group, change } => self.change(group, change),
        }
        self.elect();
    }

    fn change(&mut self, name: GroupName, change: Members) {
        let alive: BTreeSet<NodeId> =
            self.members.iter().map(|member| member.row.node).filter(|node| self.alive(*node)).collect();
        let group = match name {
            GroupName::Meta => &mut self.meta,
            GroupName::Shard(shard) => &mut self.shards[usize::from(shard.0)],
        };
        assert!(group.leader.is_some(), "a group without a leader is changed");
        match change {
            Members::Learner(node, replica) => {
                group.nodes.insert(replica, node);
            }
            Members::Voters(voters) => {
                assert!(voters.iter().all(|voter| group.nodes.contains_key(voter)), "a voter that has not learnt");
                let living = voters.iter().filter(|voter| alive.contains(&group.nodes[voter])).count();
                assert!(living * 2 > voters.len(), "{name} loses its majority: {voters:?}");
                assert!(voters.contains(&group.leader.unwrap()), "{name} loses its leader");
                // As openraft does it: those that do not vote any more are no members any more.
                let before = group.voters.clone();
                group.nodes.retain(|replica, _| voters.contains(replica) || !before.contains(replica));
                group.voters = voters;
            }
            Members::WithoutLearner(replica) => {
                assert!(!group.voters.contains(&replica), "a voter is removed as a learner");
                group.nodes.remove(&replica);
            }
            Members::Leader(replica) => {
                assert!(group.voters.contains(&replica) && alive.contains(&group.nodes[&replica]), "nobody to hand on to");
                group.leader = Some(replica);
            }
        }
    }

    /// Makes steps until none is left.
    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let steps = self.plan();
            if steps.is_empty() {
                return;
            }
            for step in steps {
                self.make(step);
            }
        }
        panic!("there is always something left to do: {:?}", self.plan());
    }

    fn count(&self, node: NodeId) -> usize {
        self.shards.iter().filter(|group| group.nodes.values().any(|member| *member == node)).count()
    }

    /// Everything is as it should be.
    fn check(&self) {
        let keeps = |member: &&Member| member.row.state == NodeState::Active && !member.given_up;
        let keepers: Vec<&Member> = self.members.iter().filter(keeps).collect();
        if keepers.is_empty() {
            return; // everything stays where it is
        }
        let active = self.members.iter().filter(|member| member.row.state == NodeState::Active).count();
        for (number, group) in self.shards.iter().enumerate() {
            assert!(group.leader.is_some(), "shard {number} has no leader");
            assert_eq!(group.voters.len(), group.nodes.len(), "shard {number} has learners");
            // Those on nodes that are gone, or that drain meanwhile, stay until others can take their place.
            let possible = if keepers.len() == active { REPLICATION.min(active) } else { group.voters.len().min(REPLICATION) };
            assert_eq!(group.voters.len(), possible, "replicas of shard {number}");
            let kept = group.nodes.values().filter(|node| keepers.iter().any(|keeper| keeper.row.node == **node)).count();
            assert!(kept >= REPLICATION.min(keepers.len()), "shard {number} has replicas where none should be");
        }
        let even = |counts: Vec<usize>, what: &str| {
            let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
            assert!(most - least <= 1, "{what} are uneven: {counts:?}");
        };
        even(keepers.iter().map(|keeper| self.count(keeper.row.node)).collect(), "replicas");
        let leads = |node: NodeId| {
            self.shards.iter().filter(|group| group.leader.is_some_and(|leader| group.nodes[&leader] == node)).count()
        };
        if keepers.len() == active {
            even(keepers.iter().map(|keeper| leads(keeper.row.node)).collect(), "leaders");
        }
        let meta_voters = self.meta.voters.len();
        assert_eq!(meta_voters, META_VOTERS_MAX.min(keepers.len()), "voters of the meta group");
    }

    /// Whether every group would still have a living majority without this node.
    fn can_lose(&self, node: NodeId) -> bool {
        let survives = |group: &Group| {
            let living = group.voters.iter().filter(|voter| group.nodes[voter] != node && self.alive(group.nodes[voter])).count();
            living * 2 > group.voters.len()
        };
        self.shards.iter().all(survives) && survives(&self.meta)
    }
}

/// Something that happens to a cluster.
#[derive(Debug, Clone)]
enum Event {
    Join,
    Die(usize),
    GiveUp(usize),
    Return(usize),
    Drain(usize),
    Remove(usize),
    /// So many steps are made, and then something else happens.
    Steps(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => Just(Event::Join),
        2 => (0..8usize).prop_map(Event::Die),
        2 => (0..8usize).prop_map(Event::GiveUp),
        2 => (0..8usize).prop_map(Event::Return),
        1 => (0..8usize).prop_map(Event::Drain),
        1 => (0..8usize).prop_map(Event::Remove),
        6 => (1..12usize).prop_map(Event::Steps),
    ];
    prop::collection::vec(event, 1..24)
}

fn happen(model: &mut Model, event: &Event) {
    let of = |model: &Model, number: usize| number % model.members.len();
    match *event {
        Event::Join if model.members.len() < 8 => model.join(),
        Event::Join => {}
        Event::Die(number) => {
            let number = of(model, number);
            if model.can_lose(model.members[number].row.node) {
                model.members[number].alive = false;
            }
        }
        Event::GiveUp(number) => {
            let number = of(model, number);
            model.members[number].given_up |= !model.members[number].alive;
        }
        Event::Return(number) => {
            let number = of(model, number);
            model.members[number].alive |= model.members[number].row.state != NodeState::Removed;
            model.members[number].given_up &= !model.members[number].alive;
        }
        Event::Drain(number) => {
            let number = of(model, number);
            let others = model.members.iter().filter(|member| member.row.state == NodeState::Active && member.alive).count();
            if others > 1 && model.members[number].row.state == NodeState::Active {
                model.members[number].row.state = NodeState::Draining;
            }
        }
        Event::Remove(number) => {
            // As an operator does who is careful: what is gone, or keeps nothing.
            let number = of(model, number);
            let member = &model.members[number];
            let empty = member.hosts.is_empty() && member.row.state == NodeState::Draining;
            let others = model
                .members
                .iter()
                .any(|other| other.row.node != member.row.node && other.row.state == NodeState::Active && other.alive);
            if others && model.can_lose(member.row.node) && (empty || !member.alive) {
                model.members[number].row.state = NodeState::Removed;
            }
        }
        Event::Steps(count) => {
            for step in model.plan().into_iter().take(count) {
                model.make(step);
            }
        }
    }
    model.elect();
}

#[test]
fn one_node_alone_has_nothing_to_do_once_its_shards_are_placed() {
    let mut model = Model::founded();
    model.settle();
    model.check();
}

#[test]
fn shards_are_placed_before_they_grow() {
    let mut model = Model::founded();
    model.join();
    let steps = model.plan();
    let shards = steps.iter().filter(|step| !matches!(step, Step::Change { group: GroupName::Meta, .. }));
    assert!(
        shards.clone().count() == usize::from(SHARDS) && shards.clone().all(|step| matches!(step, Step::Place { .. })),
        "{steps:?}"
    );
}

#[test]
fn five_nodes_get_their_share_and_give_it_back() {
    let mut model = Model::founded();
    for _ in 0..4 {
        model.join();
    }
    model.settle();
    model.check();
    for number in [0, 3] {
        model.members[number].row.state = NodeState::Draining;
        model.settle();
        model.check();
        assert!(model.members[number].hosts.is_empty(), "a drained node keeps nothing");
        model.members[number].row.state = NodeState::Removed;
        model.settle();
        model.check();
    }
}

#[test]
fn a_replica_on_a_node_that_is_gone_waits_for_another_node() {
    let mut model = Model::founded();
    model.join();
    model.join();
    model.settle();
    model.members[2].alive = false;
    model.members[2].given_up = true;
    model.elect();
    model.settle();
    let gone = model.members[2].row.node;
    assert_eq!(model.count(gone), usize::from(SHARDS), "nobody else could keep its replicas");
    model.join();
    model.settle();
    model.check();
    assert_eq!(model.count(gone), 0, "the new node has taken them over");
}

#[test]
fn only_a_leader_that_votes_says_which_replica_has_left() {
    let mut model = Model::founded();
    for _ in 0..3 {
        model.join();
    }
    model.settle();
    let shard = ShardId(0);
    let gives_up = |model: &Model| {
        let of_shard = |step: &&Step| matches!(step, Step::Unhost { shard: of, .. } if *of == shard);
        model.plan().iter().filter(of_shard).count()
    };
    let orphan = model.replica();
    let free = model.members.iter_mut().find(|member| !member.hosts.contains_key(&shard)).unwrap();
    free.hosts.insert(shard, orphan);
    assert_eq!(gives_up(&model), 1);
    let group = &mut model.shards[usize::from(shard.0)];
    let leader = group.leader.unwrap();
    group.voters.remove(&leader);
    group.nodes.remove(&leader);
    assert_eq!(gives_up(&model), 0, "another may lead by now, and the replica may have come under that one");
}

proptest! {
    #[test]
    fn whatever_happens_the_steps_lead_to_where_everything_is_as_it_should(events in events()) {
        let mut model = Model::founded();
        for event in &events {
            happen(&mut model, event);
        }
        // Those that are gone come back, or are given up for good.
        for member in &mut model.members {
            if !member.alive && member.row.state != NodeState::Removed {
                member.alive = !member.given_up;
            }
        }
        model.elect();
        model.settle();
        model.check();
    }
}
