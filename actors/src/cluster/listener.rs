//! The cluster port: accepts other nodes, whatever else knocks there.
//!
//! Until a peer has shown who it is it costs one of a bounded number of places, for a bounded time, and the few kilobytes of a handshake. When all
//! places are taken the peer that has had its place the longest loses it: a node shakes hands in milliseconds, and comes in past any number of others
//! that do not.

use crate::cluster::connection;
use crate::cluster::links;
use crate::cluster::services::Services;
use crate::cluster::tls::TlsError;
use crate::cluster::wire::{CALL_PATH, Call, JOIN_BYTES_MAX, JOIN_PATH, JoinRequest, MESSAGE_BYTES_MAX, Outcome};
use crate::error::{ErrorKind, ServiceError};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use ragged_raft::codec;
use ragged_raft::ids::NodeId;
use rustls_pki_types::CertificateDer;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Peers at once that have not shown who they are.
const STRANGERS_MAX: usize = 64;
/// Peers at once that ask to join.
const JOINING_MAX: usize = 16;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node that joins may take, all together.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long answering what members have asked may take when the port closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often refusals are told in the log.
const REFUSALS_TOLD_EVERY: Duration = Duration::from_secs(1);
/// How long accepting pauses when the system refuses, as when it is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The cluster port while it is open; closed when dropped.
pub struct ClusterPort {
    accepting: tokio::task::JoinHandle<()>,
    /// Tells the connections of members to end once they have answered.
    closing: CancellationToken,
    members: TaskTracker,
}

impl ClusterPort {
    /// Accepts nobody any more, and answers what members have asked already.
    pub async fn close(&self) {
        self.accepting.abort();
        self.closing.cancel();
        self.members.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.members.wait()).await.is_err() {
            tracing::warn!("other nodes' requests were still in flight after {CLOSE_TIMEOUT:?}, and are cut off");
        }
    }
}

impl Drop for ClusterPort {
    fn drop(&mut self) {
        self.accepting.abort();
        self.closing.cancel();
    }
}

/// Accepts nodes.
pub fn serve(listener: TcpListener, services: Arc<Services>) -> Result<ClusterPort, TlsError> {
    let (closing, members) = (CancellationToken::new(), TaskTracker::new());
    let door = Arc::new(Door {
        acceptor: TlsAcceptor::from(Arc::new(services.links.credentials().server()?)),
        services,
        joining: Semaphore::new(JOINING_MAX),
        closing: closing.clone(),
        members: members.clone(),
    });
    let strangers = Arc::new(Strangers::default());
    let accepting = tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let (door, book) = (door.clone(), strangers.clone());
                    strangers.receive(from, |place| async move {
                        if let Err(why) = door.accept(stream, place).await {
                            book.note_refusal(from, &why);
                        }
                    });
                }
                Err(fault) => {
                    tracing::warn!(%fault, "the cluster port cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    Ok(ClusterPort { accepting, closing, members })
}

/// Peers that have not shown who they are yet, in the order they came.
#[derive(Default)]
struct Strangers {
    waiting: Mutex<VecDeque<Waiting>>,
    numbers: AtomicU64,
    refusals: Mutex<Refusals>,
}

struct Waiting {
    number: u64,
    from: SocketAddr,
    task: AbortHandle,
}

/// Refusals that the log has not told yet.
#[derive(Default)]
struct Refusals {
    told: Option<Instant>,
    untold: u64,
}

/// A stranger's place, given back when it is dropped.
struct Place {
    strangers: Arc<Strangers>,
    number: u64,
}

impl Strangers {
    /// Serves a peer on a task of its own, which has a place until it drops it.
    fn receive<F: Future<Output = ()> + Send + 'static>(self: &Arc<Self>, from: SocketAddr, serve: impl FnOnce(Place) -> F) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let longest = {
            // Under the lock, so that the task does not give its place back before it has it.
            let mut waiting = self.waiting.lock();
            let task = tokio::spawn(serve(Place { strangers: self.clone(), number })).abort_handle();
            waiting.push_back(Waiting { number, from, task });
            if waiting.len() > STRANGERS_MAX { waiting.pop_front() } else { None }
        };
        if let Some(longest) = longest {
            longest.task.abort();
            self.note_refusal(longest.from, "it had not shown who it is when others came");
        }
    }

    /// Logs a refusal, one a second at most, however many there are.
    fn note_refusal(&self, from: SocketAddr, why: &str) {
        let mut refusals = self.refusals.lock();
        if refusals.told.is_some_and(|told| told.elapsed() < REFUSALS_TOLD_EVERY) {
            refusals.untold += 1;
            return;
        }
        let untold = std::mem::take(&mut refusals.untold);
        refusals.told = Some(Instant::now());
        drop(refusals);
        tracing::warn!(%from, why, untold_before = untold, "a connection to the cluster port was refused");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.strangers.waiting.lock().retain(|waiting| waiting.number != self.number);
    }
}

/// What whoever knocks is met with.
struct Door {
    acceptor: TlsAcceptor,
    services: Arc<Services>,
    joining: Semaphore,
    closing: CancellationToken,
    members: TaskTracker,
}

impl Door {
    async fn accept(&self, stream: TcpStream, place: Place) -> Result<(), String> {
        connection::keep_alive(&stream).map_err(|fault| fault.to_string())?;
        let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await;
        let stream =
            shaken.map_err(|_| format!("no handshake within {HANDSHAKE_TIMEOUT:?}"))?.map_err(|fault| fault.to_string())?;
        let certificate =
            stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|one| one.clone().into_owned());
        match certificate {
            Some(certificate) => {
                let services = self.services.clone();
                let member = Arc::new(Member { services, certificate, node: Mutex::new(None), place: Mutex::new(Some(place)) });
                let ended = self.members.track_future(serve_member(stream, member.clone(), &self.closing)).await;
                let node = *member.node.lock();
                // When this node closes the port, its peers are well.
                if let Some(node) = node.filter(|_| !self.closing.is_cancelled()) {
                    tracing::debug!(%node, ?ended, "a node's connection has ended");
                    self.services.peer_lost(node);
                }
                Ok(())
            }
            None => {
                let _turn = self.joining.try_acquire().map_err(|_| format!("{JOINING_MAX} others ask to join already"))?;
                drop(place);
                tokio::time::timeout(JOIN_TIMEOUT, serve_stranger(stream, self.services.clone()))
                    .await
                    .unwrap_or_else(|_| Err("it did not ask to join in time".into()))
            }
        }
    }
}

type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

/// A peer with a certificate of the cluster.
struct Member {
    services: Arc<Services>,
    certificate: CertificateDer<'static>,
    /// Who it has said it is, which its certificate confirms.
    node: Mutex<Option<NodeId>>,
    place: Mutex<Option<Place>>,
}

/// Answers a member until it goes, or until the port closes and what it has asked is answered.
async fn serve_member(stream: TlsStream, member: Arc<Member>, closing: &CancellationToken) -> Result<(), hyper::Error> {
    let answer = move |request| {
        let member = member.clone();
        async move { respond(member.answer(request).await) }
    };
    connection::serve(stream, answer, closing).await
}

impl Member {
    async fn answer(&self, request: Request<Incoming>) -> Result<Vec<u8>, StatusCode> {
        let path_ok = request.uri().path() == CALL_PATH;
        let body = Limited::new(request.into_body(), MESSAGE_BYTES_MAX).collect().await.map_err(|_| StatusCode::BAD_REQUEST)?;
        let call = codec::decode::<Call>(&body.to_bytes()).map_err(|fault| {
            tracing::warn!(%fault, "a node sent what cannot be read");
            StatusCode::BAD_REQUEST
        })?;
        if !path_ok {
            return Err(StatusCode::NOT_FOUND);
        }
        let node = *self.node.lock();
        let outcome: Outcome = match (call, node) {
            (Call::Hello(hello), None) => self.greet(hello),
            (Call::Hello(_), Some(_)) | (_, None) => Err(ServiceError::internal("a node greets once, and first")),
            // It may have been removed since it was greeted.
            (_, Some(node)) if self.services.links.has_removed(node) => Err(links::removed(node)),
            (call, Some(node)) => self.services.answer(node, call).await,
        };
        codec::encode(&outcome).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn greet(&self, hello: crate::cluster::wire::Hello) -> Outcome {
        if !self.services.links.credentials().may_be_of(&self.certificate, hello.node) {
            tracing::warn!(node = %hello.node, "a node presented itself with another's certificate");
            return Err(ServiceError::new(ErrorKind::Forbidden, "wrong_node", "the certificate is another node's"));
        }
        let answer = self.services.greet(&hello)?;
        *self.node.lock() = Some(hello.node);
        *self.place.lock() = None; // no stranger any more
        Ok(answer)
    }
}

/// Serves a peer without a certificate: one request to join.
async fn serve_stranger(stream: TlsStream, services: Arc<Services>) -> Result<(), String> {
    let service = service_fn(move |request: Request<Incoming>| {
        let services = services.clone();
        async move {
            let answer = async {
                if request.uri().path() != JOIN_PATH {
                    return Err(StatusCode::FORBIDDEN);
                }
                let body =
                    Limited::new(request.into_body(), JOIN_BYTES_MAX).collect().await.map_err(|_| StatusCode::BAD_REQUEST)?;
                let request: JoinRequest = codec::decode(&body.to_bytes()).map_err(|_| StatusCode::BAD_REQUEST)?;
                codec::encode(&services.admit(request).await).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
            };
            Ok::<_, Infallible>(respond(answer.await))
        }
    });
    Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(1)
        .max_header_list_size(4 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|fault| fault.to_string())
}

fn respond(answer: Result<Vec<u8>, StatusCode>) -> Response<Full<Bytes>> {
    match answer {
        Ok(frame) => Response::new(Full::new(Bytes::from(frame))),
        Err(status) => {
            let mut response = Response::new(Full::new(Bytes::new()));
            *response.status_mut() = status;
            response
        }
    }
}
