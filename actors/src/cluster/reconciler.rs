//! The actor that moves the cluster to how it should be. It runs on every node and acts on the one that leads the meta group.

use crate::address::{Address, Reply};
use crate::cluster::links::LinkError;
use crate::cluster::overview::Overview;
use crate::cluster::plan::{Situation, Step};
use crate::cluster::services::Services;
use crate::cluster::wire::{Answer, Call, GroupName, MemberChange};
use crate::error::ServiceError;
use prometheus::{IntCounter, IntGauge, Registry};
use ractor::concurrency::Duration;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ragged_raft::failpoints::{self, Point};
use ragged_raft::ids::NodeId;
use ragged_raft::meta::command::MetaCommand;
use ragged_raft::meta::node::NodeState;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// How long it waits until it looks again: after a step, and when there was nothing to do.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1_000));
/// How long one step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// How replicas are kept.
#[derive(Debug, Clone, Copy)]
pub struct ReconcilerSettings {
    /// Replicas of a shard, when there are as many nodes.
    pub replication: usize,
    /// A node that has been gone for so long is replaced.
    pub replace_after: Duration,
}

/// What the reconciler counts.
#[derive(Clone)]
pub struct ReconcilerMetrics {
    /// Steps that are planned.
    pub planned: IntGauge,
    /// Steps that were made.
    pub made: IntCounter,
    /// Steps that failed.
    pub failed: IntCounter,
}

impl ReconcilerMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = ReconcilerMetrics {
            planned: IntGauge::new("ragged_cluster_steps_planned", "Steps that are left until the cluster is as it should be.")?,
            made: IntCounter::new("ragged_cluster_steps_total", "Steps that the reconciler of this node has made.")?,
            failed: IntCounter::new("ragged_cluster_steps_failed_total", "Steps that failed and are planned anew.")?,
        };
        registry.register(Box::new(metrics.planned.clone()))?;
        registry.register(Box::new(metrics.made.clone()))?;
        registry.register(Box::new(metrics.failed.clone()))?;
        Ok(metrics)
    }
}

/// What the reconciler is started with.
#[derive(Clone)]
pub struct ReconcilerArguments {
    /// Told where the actor is.
    pub address: Arc<Address<ReconcilerMessage>>,
    /// The node.
    pub services: Arc<Services>,
    /// How replicas are kept.
    pub settings: ReconcilerSettings,
    /// Counters.
    pub metrics: ReconcilerMetrics,
}

/// The actor.
pub struct Reconciler;

/// Messages of the reconciler.
pub enum ReconcilerMessage {
    /// Time to look.
    Look,
    /// Look at once; only where the meta group is led.
    LookNow {
        /// Told the steps.
        reply: Reply<Round>,
    },
}

/// Steps that were tried at once, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Round {
    /// Those that were made.
    pub made: Vec<String>,
    /// Those that could not be made, and why; they are planned anew.
    pub failed: Vec<String>,
}

/// What it knows.
pub struct ReconcilerState {
    arguments: ReconcilerArguments,
    /// When each node last answered, since this node leads.
    seen: HashMap<NodeId, Instant>,
    /// Whether the other nodes know where this one is reached.
    announced: bool,
}

impl Actor for Reconciler {
    type Msg = ReconcilerMessage;
    type State = ReconcilerState;
    type Arguments = ReconcilerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ReconcilerMessage>,
        arguments: ReconcilerArguments,
    ) -> Result<ReconcilerState, ActorProcessingErr> {
        myself.send_message(ReconcilerMessage::Look)?;
        arguments.address.moved_to(myself);
        Ok(ReconcilerState { arguments, seen: HashMap::new(), announced: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<ReconcilerMessage>,
        message: ReconcilerMessage,
        state: &mut ReconcilerState,
    ) -> Result<(), ActorProcessingErr> {
        if let ReconcilerMessage::LookNow { reply } = message {
            let _ = reply.send(state.look_where_led().await); // the caller may have gone
            return Ok(());
        }
        let pause = match state.look().await {
            Ok(round) if round == Round::default() => PAUSE.1,
            Ok(_) => PAUSE.0,
            Err(fault) => {
                tracing::debug!(%fault, "the cluster could not be looked after, trying again");
                PAUSE.1
            }
        };
        myself.send_after(pause, || ReconcilerMessage::Look);
        Ok(())
    }
}

impl ReconcilerState {
    /// Makes the next steps; refused when it is not this node's to make them.
    async fn look_where_led(&mut self) -> Result<Round, ServiceError> {
        let services = &self.arguments.services;
        if services.is_stopping() || !services.meta.group()?.group().leads() {
            return Err(ServiceError::unavailable("not_leader", "another node leads the meta group, ask again"));
        }
        self.look().await
    }

    /// Makes the next steps, if it is this node's to make them, and says which.
    async fn look(&mut self) -> Result<Round, ServiceError> {
        let services = self.arguments.services.clone();
        if services.is_stopping() {
            return Ok(Round::default());
        }
        self.learn_addresses()?;
        if !self.announced {
            self.announce().await?;
        }
        if !services.meta.group()?.group().leads() {
            self.seen.clear();
            self.arguments.metrics.planned.set(0);
            return Ok(Round::default());
        }
        let overview = services.overview().await?;
        let given_up = self.given_up(&overview);
        let situation = Situation { overview: &overview, given_up: &given_up, replication: self.arguments.settings.replication };
        let steps = situation.plan();
        self.arguments.metrics.planned.set(steps.len() as i64);
        let made = steps.iter().map(|step| make(&services, &overview, step));
        let mut round = Round::default();
        for (step, outcome) in steps.iter().zip(futures::future::join_all(made).await) {
            match outcome {
                Ok(()) => {
                    tracing::info!(%step, "cluster: step made");
                    self.arguments.metrics.made.inc();
                    round.made.push(step.to_string());
                }
                Err(fault) => {
                    tracing::info!(%step, %fault, "cluster: step not made, it will be planned anew");
                    self.arguments.metrics.failed.inc();
                    round.failed.push(format!("{step}: {fault}"));
                }
            }
        }
        Ok(round)
    }

    /// Learns from the meta group where nodes are reached.
    fn learn_addresses(&self) -> Result<(), ServiceError> {
        let services = &self.arguments.services;
        for row in services.meta.group()?.nodes()? {
            if row.state == NodeState::Removed {
                services.links.forget(row.node);
            } else if services.links.address(row.node).is_none() {
                services.links.note_address(row.node, &row.address);
            }
        }
        Ok(())
    }

    /// Has the cluster note where this node is reached, when it has moved.
    async fn announce(&mut self) -> Result<(), ServiceError> {
        let services = &self.arguments.services;
        let (own, address) = (services.links.own(), services.links.own_address());
        let Some(row) = services.meta.group()?.node(own)? else { return Ok(()) };
        if row.address != address {
            services.meta.change(MetaCommand::MoveNode { node: own, address: address.to_owned() }).await?;
            tracing::info!(from = row.address, to = address, "this node is reached at another address now");
        }
        self.announced = true;
        Ok(())
    }

    /// Nodes that have not answered for too long. A node that has just begun to lead counts from then on.
    fn given_up(&mut self, overview: &Overview) -> BTreeSet<NodeId> {
        let now = Instant::now();
        for view in &overview.nodes {
            if view.status.is_some() {
                self.seen.insert(view.row.node, now);
            } else {
                self.seen.entry(view.row.node).or_insert(now);
            }
        }
        let limit = self.arguments.settings.replace_after;
        self.seen.iter().filter(|(_, seen)| now.duration_since(**seen) > limit).map(|(node, _)| *node).collect()
    }
}

async fn make(services: &Services, overview: &Overview, step: &Step) -> Result<(), ServiceError> {
    failpoints::hit(Point::StepBefore);
    carry_out(services, overview, step).await?;
    failpoints::hit(Point::StepAfter);
    Ok(())
}

async fn carry_out(services: &Services, overview: &Overview, step: &Step) -> Result<(), ServiceError> {
    match step {
        Step::Grow { shard, node } => {
            let replica = match services.ask(*node, Call::Host(*shard), STEP_TIMEOUT).await.map_err(LinkError::into_failure)? {
                Answer::Hosted(replica) => replica,
                _ => return Err(mismatch()),
            };
            failpoints::hit(Point::GrowHosted);
            change(services, overview, GroupName::Shard(*shard), MemberChange::AddLearner { node: *node, replica }).await
        }
        Step::Change { group, change: members } => change(services, overview, *group, members.clone().into()).await,
        Step::Unhost { shard, node, replica } => services
            .ask(*node, Call::Unhost { shard: *shard, replica: *replica }, STEP_TIMEOUT)
            .await
            .map(|_| ())
            .map_err(LinkError::into_failure),
        Step::Place { shard, places } => {
            services.meta.change(MetaCommand::PlaceShard { shard: *shard, places: places.clone() }).await.map(|_| ())
        }
    }
}

async fn change(services: &Services, overview: &Overview, group: GroupName, change: MemberChange) -> Result<(), ServiceError> {
    let leader = overview.leader(group);
    let (node, status) = leader.ok_or_else(|| ServiceError::unavailable("no_leader", format!("{group} has no leader")))?;
    let seen = status.standing.clone();
    services
        .ask(node, Call::ChangeMembers { group, seen, change }, STEP_TIMEOUT)
        .await
        .map(|_| ())
        .map_err(LinkError::into_failure)
}

fn mismatch() -> ServiceError {
    ServiceError::internal("a node answered another question than it was asked")
}
