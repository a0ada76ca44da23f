//! Supervision: starts children, and starts them again when they fail.
//!
//! A supervisor restarts a failed child alone (one for one: children share no state), after a back-off that doubles with every failure in
//! a row. More than `max_restarts` within `window` are taken as a sign that restarting does not help: the supervisor fails itself, which
//! its own supervisor sees, up to the root, whose end ends the node. Faults of the disk do not count: the child is parked and tried again
//! every `probe_interval`, since a full disk mends when somebody frees it, and not by ending the process; for the same reason a full disk
//! does not keep a supervisor from starting.

use futures::future::BoxFuture;
use prometheus::IntCounterVec;
use ractor::concurrency::Duration;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use ragged_raft::Store;
use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

/// How often children may fail, and how long a restart waits.
#[derive(Debug, Clone, Copy)]
pub struct RestartPolicy {
    /// Failures within `window` that are answered by a restart.
    pub max_restarts: usize,
    /// The span that failures are counted over.
    pub window: Duration,
    /// Wait before the first restart; doubles with each failure within `window`.
    pub backoff_initial: Duration,
    /// Longest wait before a restart.
    pub backoff_max: Duration,
    /// Wait before a child that failed on the disk is tried again.
    pub probe_interval: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy {
            max_restarts: 10,
            window: Duration::from_secs(60),
            backoff_initial: Duration::from_millis(10),
            backoff_max: Duration::from_secs(5),
            probe_interval: Duration::from_secs(5),
        }
    }
}

/// A failure that the disk is to blame for. An actor that ends with it is parked, not counted.
#[derive(Debug, thiserror::Error)]
#[error("storage fault: {what}")]
pub struct StorageFault {
    what: String,
    /// Whether the disk was full when it came: that passes, and does not keep a node from starting.
    disk_is_full: bool,
}

impl StorageFault {
    /// A failure of what is kept in a store.
    pub fn new(what: impl Display, store: &Store) -> Self {
        StorageFault { what: what.to_string(), disk_is_full: store.lacks_space() }
    }
}

/// Starts one child, linked to the given supervisor. Called again for every restart.
pub type Spawn = Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;

/// A child: its name, and how to start it.
#[derive(Clone)]
pub struct Child {
    /// For logs and metrics; unique among siblings.
    pub name: String,
    /// Starts it.
    pub spawn: Spawn,
}

impl Child {
    /// A child of that name, started by `spawn`.
    pub fn new<F, Fut>(name: impl Into<String>, spawn: F) -> Child
    where
        F: Fn(ActorCell) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<ActorCell, SpawnErr>> + Send + 'static,
    {
        Child { name: name.into(), spawn: Arc::new(move |supervisor| Box::pin(spawn(supervisor))) }
    }
}

/// What a supervisor is started with.
pub struct Supervision {
    /// Name of the supervisor, for logs.
    pub name: String,
    /// How often children may fail.
    pub policy: RestartPolicy,
    /// Children, started at once, in this order; one that cannot start fails the supervisor's start, unless its disk is full.
    pub children: Vec<Child>,
    /// Counts restarts by child.
    pub restarts: IntCounterVec,
}

/// The actor that supervises.
pub struct Supervisor;

/// Messages of a supervisor.
pub enum SupervisorMessage {
    /// Starts a child again after its back-off.
    Restart {
        /// Name of the child.
        name: String,
    },
    /// A panic on purpose, to test what stands above.
    #[cfg(test)]
    Panic,
}

/// What a supervisor knows.
pub struct SupervisorState {
    name: String,
    policy: RestartPolicy,
    children: HashMap<String, Child>,
    running: HashMap<ActorId, String>,
    failures: VecDeque<Instant>,
    restarts: IntCounterVec,
    stopping: bool,
}

impl Supervisor {
    /// Starts a supervisor under another one, or as a root.
    pub async fn start(supervision: Supervision, above: Option<ActorCell>) -> Result<ActorRef<SupervisorMessage>, SpawnErr> {
        let (actor, _) = match above {
            Some(above) => Actor::spawn_linked(None, Supervisor, supervision, above).await?,
            None => Actor::spawn(None, Supervisor, supervision).await?,
        };
        Ok(actor)
    }
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = Supervision;

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMessage>,
        supervision: Supervision,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let mut running = HashMap::new();
        let starts = supervision.children.iter().map(|child| (child.spawn)(myself.get_cell()));
        let started = futures::future::join_all(starts).await;
        for (child, started) in supervision.children.iter().zip(started) {
            match started.map_err(cause_of) {
                Ok(cell) => {
                    running.insert(cell.get_id(), child.name.clone());
                }
                Err(fault) if fault.downcast_ref::<StorageFault>().is_some_and(|fault| fault.disk_is_full) => {
                    tracing::error!(supervisor = %supervision.name, actor = %child.name, %fault, "actor could not be started, it will be tried again");
                    let name = child.name.clone();
                    myself.send_after(supervision.policy.probe_interval, move || SupervisorMessage::Restart { name });
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(SupervisorState {
            name: supervision.name,
            policy: supervision.policy,
            children: supervision.children.into_iter().map(|child| (child.name.clone(), child)).collect(),
            running,
            failures: VecDeque::new(),
            restarts: supervision.restarts,
            stopping: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Restart { name } => state.restart(&myself, &name).await,
            #[cfg(test)]
            SupervisorMessage::Panic => panic!("injected"),
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, fault) => state.child_failed(&myself, cell.get_id(), fault),
            // A child that ended without a fault was stopped on purpose, unless the supervisor still wants it.
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                let fault = format!("stopped: {}", reason.unwrap_or_default());
                state.child_failed(&myself, cell.get_id(), fault.into())
            }
            _ => Ok(()),
        }
    }

    async fn post_stop(
        &self,
        myself: ActorRef<SupervisorMessage>,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        state.stopping = true;
        myself.get_cell().stop_children_and_wait(None, Some(Duration::from_secs(8))).await;
        Ok(())
    }
}

impl SupervisorState {
    fn child_failed(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        id: ActorId,
        fault: ActorProcessingErr,
    ) -> Result<(), ActorProcessingErr> {
        let Some(name) = self.running.remove(&id) else { return Ok(()) };
        if self.stopping {
            return Ok(());
        }
        let wait = if is_of_the_disk(&fault) { self.policy.probe_interval } else { self.backoff_after_failure(&name, &fault)? };
        tracing::error!(supervisor = %self.name, actor = %name, %fault, wait_ms = wait.as_millis() as u64, "actor failed, it will be restarted");
        myself.send_after(wait, move || SupervisorMessage::Restart { name });
        Ok(())
    }

    /// Notes a failure; an error when there were too many of them.
    fn backoff_after_failure(&mut self, name: &str, fault: &ActorProcessingErr) -> Result<Duration, ActorProcessingErr> {
        let now = Instant::now();
        while self.failures.front().is_some_and(|at| now.duration_since(*at) > self.policy.window) {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        if self.failures.len() > self.policy.max_restarts {
            let text = format!(
                "{} failed {} times within {:?}, last: {name}: {fault}",
                self.name,
                self.failures.len(),
                self.policy.window
            );
            tracing::error!(supervisor = %self.name, "{text}: giving up");
            return Err(text.into());
        }
        let doublings = (self.failures.len() - 1).min(16) as u32;
        Ok(self.policy.backoff_initial.saturating_mul(1 << doublings).min(self.policy.backoff_max))
    }

    async fn restart(&mut self, myself: &ActorRef<SupervisorMessage>, name: &str) -> Result<(), ActorProcessingErr> {
        let Some(child) = self.children.get(name).cloned() else { return Ok(()) };
        self.restarts.with_label_values(&[&self.name, name]).inc();
        match (child.spawn)(myself.get_cell()).await {
            Ok(cell) => {
                tracing::info!(supervisor = %self.name, actor = %name, "actor restarted");
                self.running.insert(cell.get_id(), name.to_owned());
                Ok(())
            }
            Err(fault) => {
                let fault = cause_of(fault);
                let wait =
                    if is_of_the_disk(&fault) { self.policy.probe_interval } else { self.backoff_after_failure(name, &fault)? };
                tracing::error!(supervisor = %self.name, actor = %name, %fault, "actor could not be restarted, it will be tried again");
                let name = name.to_owned();
                myself.send_after(wait, move || SupervisorMessage::Restart { name });
                Ok(())
            }
        }
    }
}

/// Why an actor did not start.
fn cause_of(fault: SpawnErr) -> ActorProcessingErr {
    match fault {
        SpawnErr::StartupFailed(cause) => cause,
        other => other.into(),
    }
}

fn is_of_the_disk(fault: &ActorProcessingErr) -> bool {
    fault.downcast_ref::<StorageFault>().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Idle;

    impl Actor for Idle {
        type Msg = ();
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _myself: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
    }

    /// A supervisor of one child whose first `failures` starts fail with a storage fault.
    async fn start(failures: usize, disk_is_full: bool) -> (Result<ActorRef<SupervisorMessage>, SpawnErr>, Arc<AtomicUsize>) {
        let starts = Arc::new(AtomicUsize::new(0));
        let counted = starts.clone();
        let child = Child::new("idle", move |above| {
            let counted = counted.clone();
            async move {
                if counted.fetch_add(1, Ordering::SeqCst) < failures {
                    let fault = StorageFault { what: "injected".into(), disk_is_full };
                    return Err(SpawnErr::StartupFailed(fault.into()));
                }
                Ok(Actor::spawn_linked(None, Idle, (), above).await?.0.get_cell())
            }
        });
        let policy = RestartPolicy { probe_interval: Duration::from_millis(10), ..RestartPolicy::default() };
        let restarts = IntCounterVec::new(prometheus::Opts::new("restarts", "Restarts."), &["supervisor", "actor"]).unwrap();
        let supervision = Supervision { name: "test".into(), policy, children: vec![child], restarts };
        (Supervisor::start(supervision, None).await, starts)
    }

    #[tokio::test]
    async fn a_full_disk_keeps_no_supervisor_from_starting() {
        // More often than other failures may come.
        let failures = RestartPolicy::default().max_restarts + 5;
        let (started, starts) = start(failures, true).await;
        let supervisor = started.unwrap();
        for _ in 0..1_000 {
            if starts.load(Ordering::SeqCst) > failures && !supervisor.get_cell().get_children().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the child was never started, after {} attempts", starts.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_store_that_is_damaged_keeps_it_from_starting() {
        let (started, starts) = start(1, false).await;
        assert!(started.is_err());
        assert_eq!(starts.load(Ordering::SeqCst), 1);
    }
}
