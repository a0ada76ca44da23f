//! The actor of one signed-in principal: lets a bounded number of its requests in at once.

use crate::address::Address;
use crate::error::{ErrorKind, ServiceError};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use ractor::concurrency::Duration;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ragged_raft::ids::TenantId;
use ragged_raft::meta::command::Role;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A session that nobody has used for so long ends; the next request starts it again.
const IDLE: Duration = Duration::from_secs(600);
/// How often a session looks whether it is idle.
const TICK: Duration = Duration::from_secs(60);

/// Whom a request acts for, from its credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The tenant whose data it may touch.
    pub tenant: TenantId,
    /// Id of its key.
    pub key_id: String,
    /// What it may do.
    pub role: Role,
}

/// Messages of a session.
pub enum SessionMessage {
    /// Time to look whether the session is idle.
    Tick,
    /// A panic on purpose, to test what stands above.
    #[cfg(test)]
    Panic,
}

/// Lets a bounded number of requests in at once. Requests pass it by themselves, without a message to the session.
pub struct Gate {
    in_flight: AtomicUsize,
    in_flight_max: usize,
    used: Mutex<Instant>,
}

impl Gate {
    fn new(in_flight_max: usize) -> Self {
        Gate { in_flight: AtomicUsize::new(0), in_flight_max, used: Mutex::new(Instant::now()) }
    }

    /// Lets a request in, unless too many are in flight.
    pub(super) fn enter(self: &Arc<Self>, principal: &Principal) -> Result<Permit, ServiceError> {
        *self.used.lock() = Instant::now();
        let one_more = |in_flight: usize| (in_flight < self.in_flight_max).then_some(in_flight + 1);
        match self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(Permit { gate: self.clone() }),
            Err(in_flight) => {
                let detail =
                    format!("key {} has {in_flight} requests in flight, the limit is {}", principal.key_id, self.in_flight_max);
                Err(ServiceError::new(ErrorKind::TooManyRequests, "too_many_requests", detail))
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0 && self.used.lock().elapsed() > IDLE
    }
}

/// A request that was let in; gives its place back when dropped.
pub struct Permit {
    gate: Arc<Gate>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a session is found.
pub struct SessionPlace {
    /// Its actor.
    pub(super) address: Address<SessionMessage>,
    /// Its gate, while the actor lives.
    pub(super) gate: ArcSwapOption<Gate>,
}

impl SessionPlace {
    /// Where the session of a key will be.
    pub(super) fn new(key_id: &str) -> Self {
        SessionPlace { address: Address::new(format!("session {key_id}")), gate: ArcSwapOption::empty() }
    }
}

/// What a session is started with.
#[derive(Clone)]
pub struct SessionArguments {
    /// Told where the session is.
    pub place: Arc<SessionPlace>,
    /// Requests at once.
    pub in_flight_max: usize,
}

/// The actor of one principal.
pub struct SessionActor;

/// What a session knows.
pub struct SessionState {
    place: Arc<SessionPlace>,
    gate: Arc<Gate>,
}

impl Drop for SessionState {
    /// Closes the gate, however the actor has ended; that of a session which was started after it stays open.
    fn drop(&mut self) {
        self.place.gate.compare_and_swap(Arc::as_ptr(&self.gate), None);
    }
}

impl Actor for SessionActor {
    type Msg = SessionMessage;
    type State = SessionState;
    type Arguments = SessionArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SessionMessage>,
        arguments: SessionArguments,
    ) -> Result<SessionState, ActorProcessingErr> {
        myself.send_interval(TICK, || SessionMessage::Tick);
        let SessionArguments { place, in_flight_max } = arguments;
        let gate = Arc::new(Gate::new(in_flight_max));
        place.address.moved_to(myself);
        place.gate.store(Some(gate.clone()));
        Ok(SessionState { place, gate })
    }

    async fn handle(
        &self,
        myself: ActorRef<SessionMessage>,
        message: SessionMessage,
        state: &mut SessionState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SessionMessage::Tick if state.gate.is_idle() => myself.stop(Some("idle".into())),
            SessionMessage::Tick => {}
            #[cfg(test)]
            SessionMessage::Panic => panic!("injected"),
        }
        Ok(())
    }
}
