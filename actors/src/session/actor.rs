//! The actor of one signed-in principal: lets a bounded number of its requests in at once.

use crate::address::{Address, Reply};
use crate::error::{ErrorKind, ServiceError};
use ractor::concurrency::Duration;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ragged_raft::ids::TenantId;
use ragged_raft::meta::command::Role;
use std::sync::Arc;
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
    /// Asks to let a request in.
    Admit {
        /// Where the permit goes.
        reply: Reply<Permit>,
    },
    /// A request has ended.
    Release,
    /// Time to look whether the session is idle.
    Tick,
    /// A panic on purpose, to test what stands above.
    #[cfg(test)]
    Panic,
}

/// A request that was let in; gives its place back when dropped.
pub struct Permit {
    session: ActorRef<SessionMessage>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let _ = self.session.send_message(SessionMessage::Release); // a session that has ended counts nothing
    }
}

/// What a session is started with.
#[derive(Clone)]
pub struct SessionArguments {
    /// Told where the actor is.
    pub address: Arc<Address<SessionMessage>>,
    /// Whose session it is.
    pub principal: Principal,
    /// Requests at once.
    pub in_flight_max: usize,
}

/// The actor of one principal.
pub struct SessionActor;

/// What a session knows.
pub struct SessionState {
    arguments: SessionArguments,
    in_flight: usize,
    used: Instant,
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
        arguments.address.moved_to(myself);
        Ok(SessionState { arguments, in_flight: 0, used: Instant::now() })
    }

    async fn handle(
        &self,
        myself: ActorRef<SessionMessage>,
        message: SessionMessage,
        state: &mut SessionState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SessionMessage::Admit { reply } => {
                state.used = Instant::now();
                let _ = reply.send(state.admit(myself)); // a caller that has gone drops its permit, which releases it
            }
            SessionMessage::Release => state.in_flight = state.in_flight.saturating_sub(1),
            SessionMessage::Tick if state.in_flight == 0 && state.used.elapsed() > IDLE => myself.stop(Some("idle".into())),
            SessionMessage::Tick => {}
            #[cfg(test)]
            SessionMessage::Panic => panic!("injected"),
        }
        Ok(())
    }
}

impl SessionState {
    fn admit(&mut self, myself: ActorRef<SessionMessage>) -> Result<Permit, ServiceError> {
        if self.in_flight >= self.arguments.in_flight_max {
            let detail = format!(
                "key {} has {} requests in flight, the limit is {}",
                self.arguments.principal.key_id, self.in_flight, self.arguments.in_flight_max
            );
            return Err(ServiceError::new(ErrorKind::TooManyRequests, "too_many_requests", detail));
        }
        self.in_flight += 1;
        Ok(Permit { session: myself })
    }
}
