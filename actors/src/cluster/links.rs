//! Connections to other nodes, made when they are first needed and again when they were lost.
//!
//! What keeps the groups together goes over a connection of its own, so that it never waits behind what clients ask: as many writes as fit into a
//! connection, each way, would wait for the very messages that decide them. So do snapshots, which are large.

use crate::cluster::connection::{self, Asker, Unanswered};
use crate::cluster::identity::NodeIdentity;
use crate::cluster::tls::{Credentials, TlsError};
use crate::cluster::wire::{Answer, CALL_PATH, Call, Hello, Outcome};
use crate::error::{ErrorKind, ServiceError};
use parking_lot::{Mutex, RwLock};
use ragged_raft::codec;
use ragged_raft::ids::NodeId;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use ulid::Ulid;

/// How long connecting may take, all steps together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a failed connection is not tried again, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Code of the refusal of a node that has been removed.
const REMOVED: &str = "removed_node";

/// Which of a node's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// For the groups' messages, and for how nodes stand.
    Consensus,
    /// For what clients ask.
    Calls,
    /// For snapshots.
    Bulk,
}

/// Why a node did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// It has not been asked.
    #[error("{node} is not reached: {why}")]
    Unreachable {
        /// The node.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// It may have acted.
    #[error("{node} did not answer: {why}")]
    Lost {
        /// The node.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// It refused, or failed.
    #[error("{0}")]
    Refused(ServiceError),
}

impl LinkError {
    /// As the error of a read, which may be tried elsewhere.
    pub fn into_unavailable(self) -> ServiceError {
        match self {
            LinkError::Refused(fault) => fault,
            other => ServiceError::unavailable("node_unreachable", other.to_string()),
        }
    }

    /// As the error of a change, which may have been made when the answer was lost.
    pub fn into_failure(self) -> ServiceError {
        match self {
            LinkError::Lost { .. } => ServiceError::new(ErrorKind::UnknownOutcome, "unknown_outcome", self.to_string()),
            other => other.into_unavailable(),
        }
    }
}

/// Connections to the other nodes.
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

/// A connection; held by whoever makes it.
type SharedLane = Arc<tokio::sync::Mutex<LaneState>>;

struct Inner {
    own: NodeId,
    cluster: Ulid,
    own_address: String,
    credentials: Credentials,
    connector: TlsConnector,
    addresses: RwLock<HashMap<NodeId, String>>,
    /// Nodes that have left for good.
    removed: RwLock<HashSet<NodeId>>,
    /// Whether others have said that this node has.
    is_removed: AtomicBool,
    lanes: Mutex<HashMap<(NodeId, Lane), SharedLane>>,
}

#[derive(Default)]
struct LaneState {
    asker: Option<Arc<Asker>>,
    /// Not tried before this.
    not_before: Option<Instant>,
    backoff: Duration,
    why: String,
}

impl LaneState {
    fn open_asker(&self) -> Option<Arc<Asker>> {
        self.asker.as_ref().filter(|asker| asker.is_open()).cloned()
    }
}

impl Links {
    /// Links of a node that others reach at `address`.
    pub fn new(identity: &NodeIdentity, credentials: Credentials, address: String) -> Result<Links, TlsError> {
        let connector = TlsConnector::from(Arc::new(credentials.client()?));
        let inner = Inner {
            own: identity.node,
            cluster: identity.cluster,
            own_address: address,
            credentials,
            connector,
            addresses: RwLock::default(),
            removed: RwLock::default(),
            is_removed: AtomicBool::new(false),
            lanes: Mutex::default(),
        };
        Ok(Links { inner: Arc::new(inner) })
    }

    /// This node.
    pub fn own(&self) -> NodeId {
        self.inner.own
    }

    /// Where this node is reached.
    pub fn own_address(&self) -> &str {
        &self.inner.own_address
    }

    /// This node, as it presents itself to another.
    fn hello(&self, to: NodeId) -> Hello {
        let Inner { own, cluster, own_address, .. } = &*self.inner;
        Hello { cluster: *cluster, node: *own, to, address: own_address.clone(), version: env!("CARGO_PKG_VERSION").into() }
    }

    /// What this node shows others.
    pub fn credentials(&self) -> &Credentials {
        &self.inner.credentials
    }

    /// Notes where a node is reached.
    pub fn note_address(&self, node: NodeId, address: &str) {
        if self.address(node).as_deref() != Some(address) {
            self.inner.addresses.write().insert(node, address.to_owned());
        }
    }

    /// Notes that a node is there: it is tried again at once, however long it could not be reached.
    pub fn note_return(&self, node: NodeId) {
        for lane in [Lane::Consensus, Lane::Calls, Lane::Bulk] {
            let lane = self.inner.lanes.lock().get(&(node, lane)).cloned();
            // Whoever has it is trying at this moment.
            if let Some(mut state) = lane.as_ref().and_then(|lane| lane.try_lock().ok()) {
                state.not_before = None;
                state.backoff = Duration::ZERO;
            }
        }
    }

    /// Where a node is reached, as far as is known.
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.inner.addresses.read().get(&node).cloned()
    }

    /// Whether a node is known to have been removed.
    pub fn has_removed(&self, node: NodeId) -> bool {
        self.inner.removed.read().contains(&node)
    }

    /// Whether another node has said that this one has been removed.
    pub fn is_removed(&self) -> bool {
        self.inner.is_removed.load(Ordering::Relaxed)
    }

    /// Forgets a node that was removed.
    pub fn forget(&self, node: NodeId) {
        if !self.has_removed(node) {
            self.inner.removed.write().insert(node);
        }
        self.inner.addresses.write().remove(&node);
        self.inner.lanes.lock().retain(|(known, _), _| *known != node);
    }

    /// Asks a node.
    pub async fn call(&self, node: NodeId, lane: Lane, call: &Call, within: Duration) -> Result<Answer, LinkError> {
        let frame = codec::encode(call).map_err(|fault| LinkError::Unreachable { node, why: fault.to_string() })?;
        self.send(node, lane, frame, within).await
    }

    /// Whether the last attempt to reach a node has failed, as far as one was made.
    pub fn is_unreachable(&self, node: NodeId) -> bool {
        let lanes = [Lane::Consensus, Lane::Calls].map(|lane| self.inner.lanes.lock().get(&(node, lane)).cloned());
        // A lane that somebody has at this moment says nothing, and that is no reason to count a node as gone.
        let is_down = |lane: &SharedLane| lane.try_lock().is_ok_and(|state| state.asker.is_none() && state.not_before.is_some());
        lanes.iter().flatten().next().is_some() && lanes.iter().flatten().all(is_down)
    }

    /// Whether nobody listens any more where a node was reached: its process is dead, though its machine answers.
    pub async fn is_refused(&self, node: NodeId) -> bool {
        let Some(address) = self.address(node) else { return false };
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await {
            Ok(Err(fault)) => fault.kind() == std::io::ErrorKind::ConnectionRefused,
            _ => false,
        }
    }

    async fn send(&self, node: NodeId, lane: Lane, frame: Vec<u8>, within: Duration) -> Result<Answer, LinkError> {
        let deadline = tokio::time::Instant::now() + within;
        let late = |sent: bool| {
            let why = format!("no answer within {within:?}");
            if sent { LinkError::Lost { node, why } } else { LinkError::Unreachable { node, why } }
        };
        let asker = tokio::time::timeout_at(deadline, self.asker(node, lane)).await.map_err(|_| late(false))??;
        let answered = tokio::time::timeout_at(deadline, asker.ask(CALL_PATH, frame)).await.map_err(|_| late(true))?;
        let body = answered.map_err(|fault| match fault {
            Unanswered::NotTaken(why) => LinkError::Unreachable { node, why },
            Unanswered::Lost(why) => LinkError::Lost { node, why },
        })?;
        let outcome: Outcome = codec::decode(&body).map_err(|fault| LinkError::Lost { node, why: fault.to_string() })?;
        outcome.map_err(|refusal| {
            self.heed(&refusal);
            LinkError::Refused(refusal)
        })
    }

    /// Takes note when another node says that this one has been removed.
    fn heed(&self, refusal: &ServiceError) {
        if refusal.code == REMOVED && !self.inner.is_removed.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "this node has been removed from its cluster, and serves no more: stop it; a new node begins with an empty data folder"
            );
        }
    }

    /// A connection that is up. Whoever gives up waiting does not end an attempt to make one: those who wait for a heartbeat's time only might never see
    /// one succeed.
    async fn asker(&self, node: NodeId, lane: Lane) -> Result<Arc<Asker>, LinkError> {
        let state = self.inner.lanes.lock().entry((node, lane)).or_default().clone();
        if let Some(asker) = state.lock().await.open_asker() {
            return Ok(asker);
        }
        let links = self.clone();
        let connected = tokio::spawn(async move { links.connected(node, state).await }).await;
        connected.unwrap_or_else(|fault| Err(LinkError::Unreachable { node, why: fault.to_string() }))
    }

    /// The same, made where there is none.
    async fn connected(&self, node: NodeId, state: SharedLane) -> Result<Arc<Asker>, LinkError> {
        let mut state = state.lock().await;
        if let Some(asker) = state.open_asker() {
            return Ok(asker);
        }
        state.asker = None;
        if state.not_before.is_some_and(|until| Instant::now() < until) {
            return Err(LinkError::Unreachable { node, why: state.why.clone() });
        }
        let connected = match tokio::time::timeout(CONNECT_TIMEOUT, self.connect(node)).await {
            Ok(connected) => connected,
            Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}")),
        };
        match connected {
            Ok(asker) => {
                let asker = Arc::new(asker);
                *state = LaneState { asker: Some(asker.clone()), ..LaneState::default() };
                Ok(asker)
            }
            Err(why) => {
                state.backoff = (state.backoff * 2).clamp(BACKOFF.0, BACKOFF.1);
                state.not_before = Some(Instant::now() + state.backoff.mul_f64(0.75 + rand::random::<f64>() / 2.0));
                state.why.clone_from(&why);
                Err(LinkError::Unreachable { node, why })
            }
        }
    }

    async fn connect(&self, node: NodeId) -> Result<Asker, String> {
        let address = self.address(node).ok_or("its address is not known")?;
        let fails = |fault: &dyn std::fmt::Display| format!("{address}: {fault}");
        let stream = TcpStream::connect(&address).await.map_err(|fault| fails(&fault))?;
        connection::keep_alive(&stream).map_err(|fault| fails(&fault))?;
        let name = self.inner.credentials.server_name(node, &address).map_err(|fault| fails(&fault))?;
        let stream = self.inner.connector.connect(name, stream).await.map_err(|fault| fails(&fault))?;
        let asker = Asker::open(stream).await.map_err(|fault| fails(&fault))?;
        let hello = codec::encode(&Call::Hello(self.hello(node))).map_err(|fault| fault.to_string())?;
        let answer = asker.ask(CALL_PATH, hello).await.map_err(|fault| fails(&fault))?;
        match codec::decode::<Outcome>(&answer).map_err(|fault| fails(&fault))? {
            Ok(_) => Ok(asker),
            Err(refusal) => {
                self.heed(&refusal);
                Err(refusal.to_string())
            }
        }
    }
}

/// The refusal of a node that has been removed.
pub(super) fn removed(node: NodeId) -> ServiceError {
    let detail = format!("{node} has been removed from the cluster: let it join anew with an empty data folder");
    ServiceError::new(ErrorKind::Forbidden, REMOVED, detail)
}
