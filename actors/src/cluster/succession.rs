//! Who leads after a node has died: the replicas that it led elect another leader without waiting until they miss it.
//!
//! A connection that ends says that something has happened, not what. Where the node was reached nobody may listen any more: then its process is
//! dead, and the voters elect at once, although they have heard from it a moment ago. Otherwise it may be the network, and the leader may be well:
//! then they stand for election once they would grant each other a vote, which they do not while anyone hears from the leader.

use crate::cluster::links::Links;
use crate::cluster::replicas::Replicas;
use parking_lot::Mutex;
use ragged_raft::group::{Group, LEADER_LEASE};
use ragged_raft::ids::{NodeId, ReplicaId};
use rand::seq::IndexedRandom;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long each voter leaves to the one before it. In the order of their ids, so that they do not split the votes.
const TURN: Duration = Duration::from_millis(200);
/// Connections of one node that end within this time say the same.
const SAME_LOSS: Duration = Duration::from_secs(1);

/// How often it is looked whether a node's process is dead, and how long after each look.
const DEATH_LOOKS: usize = 4;
const DEATH_LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Entries that a replica may lack when it is to lead.
const HEIR_LAG_MAX: u64 = 64;
/// How long handing on may take, after what time it is tried again, and how often it is looked whether it is done. An heir waits for half a second until its
/// log is on the disk: before that no other may be asked, or two stand against each other.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
const HAND_OVER_AGAIN: Duration = Duration::from_millis(700);
const HAND_OVER_LOOK: Duration = Duration::from_millis(10);
/// How long after that it may take until what was proposed to a leader before it handed on is decided.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Has leaders of nodes that are gone replaced.
#[derive(Default)]
pub struct Succession {
    lost: Mutex<HashMap<NodeId, Instant>>,
}

impl Succession {
    /// A connection with this node has ended.
    pub fn peer_lost(&self, node: NodeId, replicas: &Replicas, links: &Links) {
        let now = Instant::now();
        {
            // Noted when something is done only: connections that end again and again do not put it off.
            let mut lost = self.lost.lock();
            if lost.get(&node).is_some_and(|lost| now.duration_since(*lost) < SAME_LOSS) {
                return;
            }
            lost.insert(node, now);
        }
        let bereaved: Vec<Group> = replicas.all().into_iter().filter(|group| group.leader_node() == Some(node)).collect();
        if bereaved.is_empty() {
            return;
        }
        let links = links.clone();
        tokio::spawn(async move {
            let is_dead = is_dead(node, &links).await;
            tracing::info!(%node, is_dead, groups = bereaved.len(), "lost a node that leads groups");
            for group in bereaved {
                tokio::spawn(succeed(group, node, is_dead));
            }
        });
    }
}

/// Hands on what this node leads, as far as others have everything, so that nobody has to miss it when it stops. What was proposed here before is decided
/// then: this node learns from the new leaders what they made of it, so the cluster port must be open until this returns.
pub async fn hand_over(replicas: &Replicas, links: &Links) {
    let deadline = Instant::now() + HAND_OVER_TIMEOUT;
    loop {
        let handed = replicas.all().into_iter().map(|group| async move {
            hand_on(&group, links, deadline).await;
            if !group.settled((deadline + SETTLE_TIMEOUT).saturating_duration_since(Instant::now())).await {
                tracing::warn!(replica = %group.replica(), "writes are undecided when the node stops: whoever sent them is told so");
            }
        });
        futures::future::join_all(handed).await;
        // What came back meanwhile is handed on again.
        let leads_others = |group: &Group| group.leads() && group.standing().voters.len() > 1;
        if Instant::now() >= deadline || !replicas.all().iter().any(leads_others) {
            return;
        }
        tokio::time::sleep(HAND_OVER_LOOK).await;
    }
}

/// Hands on one group, if this replica leads it and another can.
async fn hand_on(group: &Group, links: &Links, deadline: Instant) {
    while group.leads() && Instant::now() < deadline {
        let standing = group.standing();
        if standing.voters.len() < 2 {
            return; // there is nobody
        }
        // A voter that is gone has everything, too, when nothing was written since.
        let is_there = |voter: &ReplicaId| standing.nodes.get(voter).is_some_and(|node| !links.is_unreachable(*node));
        let can_lead =
            |voter: &&ReplicaId| **voter != standing.replica && standing.has_caught_up(**voter, HEIR_LAG_MAX) && is_there(voter);
        let heirs: Vec<ReplicaId> = standing.voters.iter().filter(can_lead).copied().collect();
        if let Some(heir) = heirs.choose(&mut rand::rng())
            && let Err(fault) = group.transfer_leader(*heir).await
        {
            tracing::debug!(%fault, "a lead could not be handed on");
            return;
        }
        // Who has nobody to ask now looks again soon.
        let again = Instant::now() + if heirs.is_empty() { HAND_OVER_LOOK } else { HAND_OVER_AGAIN };
        while group.leads() && Instant::now() < again {
            tokio::time::sleep(HAND_OVER_LOOK).await;
        }
    }
}

/// Whether nobody listens where the node was reached. A process that ends may close its connections before it closes what it listens on.
async fn is_dead(node: NodeId, links: &Links) -> bool {
    for _ in 0..DEATH_LOOKS {
        if links.is_refused(node).await {
            return true;
        }
        tokio::time::sleep(DEATH_LOOK_PAUSE).await;
    }
    false
}

/// Stands for election when it is this replica's turn, unless another leads by then.
async fn succeed(group: Group, lost: NodeId, is_dead: bool) {
    let standing = group.standing();
    let candidates = standing.voters.iter().filter(|voter| standing.nodes.get(voter) != Some(&lost));
    let Some(rank) = candidates.into_iter().position(|voter| *voter == group.replica()) else { return };
    let wait = TURN * rank as u32 + if is_dead { Duration::ZERO } else { LEADER_LEASE };
    tokio::time::sleep(wait).await;
    if group.leader_node().is_some_and(|leader| leader != lost) {
        return;
    }
    if let Err(fault) = group.stand_for_election(is_dead).await {
        tracing::debug!(%fault, "an election could not be begun");
    }
}
