//! Finds the session of a principal, starting it when there is none.

use crate::address::{Address, Repeat};
use crate::error::ServiceError;
#[cfg(test)]
use crate::session::actor::SessionMessage;
use crate::session::actor::{Permit, Principal, SessionActor, SessionArguments, SessionPlace};
use parking_lot::Mutex;
use ractor::concurrency::Duration;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// How long a request waits to be let in.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The sessions of a node.
#[derive(Clone)]
pub struct Sessions {
    supervisor: Arc<Address<SessionsMessage>>,
    places: Arc<Mutex<HashMap<String, Arc<SessionPlace>>>>,
    in_flight_max: usize,
}

/// Messages of the actor above the sessions.
pub enum SessionsMessage {
    /// Starts a session.
    Start {
        /// What with.
        arguments: SessionArguments,
        /// Told when it runs.
        reply: oneshot::Sender<Result<(), ServiceError>>,
    },
    /// A panic on purpose, to test what stands above.
    #[cfg(test)]
    Panic,
}

/// The actor above the sessions. A session that fails is not started again by itself: the next request of its principal does that.
pub struct SessionsActor;

impl Sessions {
    /// The sessions of a node, each letting so many requests in at once.
    pub fn new(in_flight_max: usize) -> Self {
        Sessions { supervisor: Arc::new(Address::new("sessions")), places: Arc::default(), in_flight_max }
    }

    /// Starts the actor above the sessions under a supervisor.
    pub async fn start(&self, above: ActorCell) -> Result<ActorCell, ractor::SpawnErr> {
        let (actor, _) = Actor::spawn_linked(None, SessionsActor, self.clone(), above).await?;
        Ok(actor.get_cell())
    }

    /// Lets a request of this principal in, unless it has too many in flight.
    pub async fn admit(&self, principal: &Principal) -> Result<Permit, ServiceError> {
        let place = self.place(principal);
        loop {
            if let Some(gate) = place.gate.load_full() {
                return gate.enter(principal);
            }
            // One that has just ended has closed its gate.
            Box::pin(self.start_session(place.clone())).await?;
        }
    }

    fn place(&self, principal: &Principal) -> Arc<SessionPlace> {
        let mut places = self.places.lock();
        if let Some(place) = places.get(&principal.key_id) {
            return place.clone();
        }
        places.entry(principal.key_id.clone()).or_insert(Arc::new(SessionPlace::new(&principal.key_id))).clone()
    }

    async fn start_session(&self, place: Arc<SessionPlace>) -> Result<(), ServiceError> {
        let arguments = SessionArguments { place, in_flight_max: self.in_flight_max };
        self.supervisor
            .call(ADMIT_TIMEOUT, Repeat::Safe, |reply| SessionsMessage::Start { arguments: arguments.clone(), reply })
            .await
    }

    #[cfg(test)]
    pub(crate) fn panic_session(&self, principal: &Principal) {
        self.place(principal).address.cast(SessionMessage::Panic);
    }

    #[cfg(test)]
    pub(crate) fn panic_supervisor(&self) {
        self.supervisor.cast(SessionsMessage::Panic);
    }
}

impl Actor for SessionsActor {
    type Msg = SessionsMessage;
    type State = ();
    type Arguments = Sessions;

    async fn pre_start(&self, myself: ActorRef<SessionsMessage>, sessions: Sessions) -> Result<(), ActorProcessingErr> {
        sessions.supervisor.moved_to(myself);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<SessionsMessage>,
        message: SessionsMessage,
        _state: &mut (),
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SessionsMessage::Start { arguments, reply } => {
                // Two requests may have asked at once: the second finds it running.
                let started = match arguments.place.gate.load().is_some() {
                    true => Ok(()),
                    false => Actor::spawn_linked(None, SessionActor, arguments, myself.get_cell()).await.map(|_| ()),
                };
                let _ = reply
                    .send(started.map_err(|fault| ServiceError::internal(format!("a session could not be started: {fault}"))));
                Ok(())
            }
            #[cfg(test)]
            SessionsMessage::Panic => panic!("injected"),
        }
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<SessionsMessage>,
        event: SupervisionEvent,
        _state: &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, fault) = event {
            tracing::error!(%fault, "a session failed; the next request of its key starts it again");
        }
        Ok(())
    }
}
