//! Changes of the members: a planner that has goals, and takes one step after another towards them, whatever happens meanwhile.

use crate::world::World;
use ragged_raft::ids::ReplicaId;
use ragged_raft::membership::Standing;
use ragged_raft::network::Destination;
use ragged_raft::shard::group::ShardGroup;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Entries that a replica may lack when it is made a voter.
const VOTER_LAG_MAX: u64 = 8;
/// How long a planner waits for a step.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);

/// Nodes that are to have a voter.
pub type Goal = BTreeSet<usize>;

/// The members that a run begins with.
pub fn first_goal(world: &World) -> Goal {
    (0..world.size().min(3)).collect()
}

pub fn another_goal(world: &World) -> Goal {
    let wanted = 1 + world.below(world.size() as u64).max(1) as usize;
    let mut goal: Goal = (0..world.size()).collect();
    while goal.len() > wanted.min(world.size()) {
        let at = world.below(goal.len() as u64) as usize;
        let leaver = goal.iter().copied().nth(at).unwrap_or_default();
        goal.remove(&leaver);
    }
    goal
}

/// Takes steps until the members are these.
pub async fn until_reached(world: &Arc<World>, goal: &Goal) {
    while !step(world, goal).await {
        sleep(Duration::from_millis(20)).await;
    }
}

/// Takes steps towards a goal, and now and then has another one.
pub async fn keep_changing(world: Arc<World>) {
    loop {
        sleep(world.between(Duration::from_millis(100), Duration::from_secs(3))).await;
        let goal = another_goal(&world);
        world.note(&format!("the members are to be on {goal:?}"), b"");
        let until = world.now() + world.between(Duration::from_secs(1), Duration::from_secs(6));
        while world.now() < until && !step(&world, &goal).await {
            sleep(world.between(Duration::from_millis(10), Duration::from_millis(300))).await;
        }
    }
}

/// One step towards the goal, on the ground of what the leader sees. True when there is nothing to do.
async fn step(world: &Arc<World>, goal: &Goal) -> bool {
    let running = world.all_running();
    let replicas: BTreeMap<usize, ReplicaId> =
        running.iter().map(|(number, _, group)| (*number, group.group().replica())).collect();
    let Some((_, host, leader)) = world.leader() else { return false };
    let standing = leader.group().standing();
    let wanted: BTreeSet<ReplicaId> = goal.iter().filter_map(|number| replicas.get(number).copied()).collect();
    if wanted.len() < goal.len() {
        return false; // some of them do not run
    }
    if !standing.leads_as_voter() {
        // It may have been followed by another leader that does not run at the moment, and cannot say who is a member.
        let heir = standing.voters.iter().copied().find(|voter| replicas.values().any(|replica| replica == voter));
        if let Some(heir) = heir {
            let _ = timeout(STEP_TIMEOUT, host.spawn(async move { leader.group().transfer_leader(heir).await })).await;
        }
        return false;
    }
    // A replica that was a member and is none any more comes back as another.
    for (number, _, group) in &running {
        let replica = group.group().replica();
        let has_left = !standing.nodes.contains_key(&replica) && group.group().standing().nodes.contains_key(&replica);
        if has_left && !group.group().leads() {
            world.note(&format!("{number} gives its replica up"), b"");
            // Not bounded by time: it is its node's own business.
            tokio::spawn({
                let (world, number) = (world.clone(), *number);
                async move { world.restart_group(number, true).await }
            });
            return false;
        }
    }
    let taken = timeout(STEP_TIMEOUT, host.spawn(take(leader, standing, wanted, destinations(&running)))).await;
    matches!(taken, Ok(Ok(true)))
}

fn destinations(running: &[(usize, Arc<ragged_raft::simulation::Host>, ShardGroup)]) -> BTreeMap<ReplicaId, Destination> {
    let destination = |group: &ShardGroup| Destination { node: group.group().store().node(), replica: group.group().replica() };
    running.iter().map(|(_, _, group)| (group.group().replica(), destination(group))).collect()
}

/// What the leader does next so that these become the voters. True when they are.
async fn take(leader: ShardGroup, standing: Standing, wanted: BTreeSet<ReplicaId>, at: BTreeMap<ReplicaId, Destination>) -> bool {
    let group = leader.group();
    if standing.is_changing {
        let voters: BTreeSet<ReplicaId> = wanted.iter().copied().filter(|replica| standing.voters.contains(replica)).collect();
        let voters = if voters.is_empty() { standing.voters.clone() } else { voters };
        let _ = group.set_voters(&standing, &voters).await; // it is looked at again what has come of it
        return false;
    }
    if let Some(newcomer) = wanted.iter().find(|replica| !standing.nodes.contains_key(replica)) {
        if let Some(destination) = at.get(newcomer) {
            let _ = group.add_learner(&standing, *destination).await;
        }
        return false;
    }
    if standing.voters != wanted {
        if !wanted.iter().all(|replica| standing.has_caught_up(*replica, VOTER_LAG_MAX)) {
            return false;
        }
        let heir = wanted.iter().find(|replica| standing.voters.contains(replica));
        match heir.filter(|_| !wanted.contains(&standing.replica)) {
            Some(heir) => drop(group.transfer_leader(*heir).await),
            None => drop(group.set_voters(&standing, &wanted).await),
        }
        return false;
    }
    if let Some(learner) = standing.nodes.keys().find(|replica| !standing.voters.contains(replica)) {
        let _ = group.remove_learner(&standing, *learner).await;
        return false;
    }
    true
}
