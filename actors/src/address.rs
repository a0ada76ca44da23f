//! Where an actor is reached, across its restarts.
//!
//! An `ActorRef` dies with its actor. An [`Address`] is given the new one by every start, and a call that meets a restart waits for it.

use crate::error::ServiceError;
use ractor::concurrency::Duration;
use ractor::{ActorRef, ActorStatus, Message};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

/// How long an actor that is not there is waited for by one who can ask another node: most restarts take less, and one that is put off (its disk is full)
/// must not hold up those.
pub const RESTART_PATIENCE: Duration = Duration::from_millis(250);

/// How an actor answers; dropped unanswered when the actor fails.
pub type Reply<T> = oneshot::Sender<Result<T, ServiceError>>;

/// A lasting way to reach an actor.
pub struct Address<M> {
    name: String,
    current: watch::Sender<Option<ActorRef<M>>>,
}

/// Whether a call may be sent a second time when the actor failed while it had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It changes nothing, or changes the same thing once only.
    Safe,
    /// Its outcome would be unknown.
    Unsafe,
}

impl<M: Message> Address<M> {
    /// The address of an actor that is about to be started for the first time.
    pub fn new(name: impl Into<String>) -> Self {
        Address { name: name.into(), current: watch::Sender::new(None) }
    }

    /// Called by the actor as it starts.
    pub fn moved_to(&self, actor: ActorRef<M>) {
        self.current.send_replace(Some(actor));
    }

    /// The living actor, if there is one right now.
    pub fn current(&self) -> Option<ActorRef<M>> {
        self.current.borrow().as_ref().filter(|actor| is_alive(actor)).cloned()
    }

    /// Sends a message that is not answered; lost when the actor is not there.
    pub fn cast(&self, message: M) {
        if let Some(actor) = self.current()
            && actor.send_message(message).is_err()
        {
            tracing::debug!(actor = %self.name, "message to an actor that has just ended");
        }
    }

    /// Sends a message and waits for its answer until `limit` has passed.
    ///
    /// Errors: `Unavailable` when the message cannot have been seen; `UnknownOutcome` when it may have been and `repeat` is unsafe.
    pub async fn call<T, F>(&self, limit: Duration, repeat: Repeat, message: F) -> Result<T, ServiceError>
    where
        F: FnMut(Reply<T>) -> M,
    {
        self.call_if_back_within(limit, limit, repeat, message).await
    }

    /// [`Address::call`] by one who can ask elsewhere: an actor that is not there is waited for no longer than `patience`.
    pub async fn call_if_back_within<T, F>(
        &self,
        patience: Duration,
        limit: Duration,
        repeat: Repeat,
        mut message: F,
    ) -> Result<T, ServiceError>
    where
        F: FnMut(Reply<T>) -> M,
    {
        let deadline = Instant::now() + limit;
        loop {
            let back_by = deadline.min(Instant::now() + patience);
            let actor = self.wait_for_actor(back_by).await?;
            let (reply, answer) = oneshot::channel();
            if actor.send_message(message(reply)).is_err() {
                continue; // it has just ended: the next one is waited for
            }
            match timeout_at(deadline, answer).await {
                Ok(Ok(result)) => return result,
                Ok(Err(_)) if repeat == Repeat::Safe => {
                    let back_by = deadline.min(Instant::now() + patience);
                    self.wait_for_another(&actor, back_by).await?;
                }
                Ok(Err(_)) => return Err(self.unknown_outcome("failed while it handled the request")),
                Err(_) if repeat == Repeat::Safe => {
                    return Err(ServiceError::unavailable("timeout", format!("{} did not answer within {limit:?}", self.name)));
                }
                Err(_) => return Err(self.unknown_outcome(&format!("did not answer within {limit:?}"))),
            }
        }
    }

    async fn wait_for_actor(&self, deadline: Instant) -> Result<ActorRef<M>, ServiceError> {
        self.wait_until(deadline, |actor| actor.as_ref().is_some_and(is_alive)).await
    }

    async fn wait_for_another(&self, failed: &ActorRef<M>, deadline: Instant) -> Result<(), ServiceError> {
        let failed = failed.get_id();
        self.wait_until(deadline, |actor| actor.as_ref().is_some_and(|actor| actor.get_id() != failed)).await.map(|_| ())
    }

    async fn wait_until(
        &self,
        deadline: Instant,
        wanted: impl FnMut(&Option<ActorRef<M>>) -> bool,
    ) -> Result<ActorRef<M>, ServiceError> {
        let mut current = self.current.subscribe();
        let found = timeout_at(deadline, current.wait_for(wanted)).await;
        match found {
            Ok(Ok(actor)) => (*actor).clone().ok_or_else(|| self.restarting()),
            _ => Err(self.restarting()),
        }
    }

    fn restarting(&self) -> ServiceError {
        ServiceError::unavailable("restarting", format!("{} is being restarted", self.name))
    }

    fn unknown_outcome(&self, why: &str) -> ServiceError {
        let detail = format!(
            "{} {why}: it is not known whether the write took effect; read it back or retry with the same idempotency key",
            self.name
        );
        ServiceError::new(crate::error::ErrorKind::UnknownOutcome, "unknown_outcome", detail)
    }
}

fn is_alive<M>(actor: &ActorRef<M>) -> bool {
    matches!(actor.get_status(), ActorStatus::Unstarted | ActorStatus::Starting | ActorStatus::Running | ActorStatus::Upgrading)
}
