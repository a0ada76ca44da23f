//! A connection between two nodes: HTTP/2 over mutual TLS, from its handshake to an end that leaves nobody in doubt.
//!
//! Requests are streams that do not wait for each other, each with a credit of bytes, and pings that are not answered end a connection.
//!
//! The other side is a node of the cluster, and takes back what it does not need any more, as when a second replica answers first. That is no attack, as it
//! might be from a stranger: no number of it ends the connection.
//!
//! A node that stops says which requests it has taken, and answers these. All that must reach whoever asked: a socket that is closed while bytes
//! come in resets the connection, and whoever writes there next learns of that before it reads what it was told. So the node that stops goes on
//! reading until the other has closed its end as well.

use crate::cluster::wire::MESSAGE_BYTES_MAX;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::{client, server};
use tokio_util::sync::CancellationToken;

/// How often a silent connection is pinged, and how long the answer may take.
const PING: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(1_500));
/// Bytes that may be on their way in one stream, and in all of a connection.
const CREDIT_BYTES: (u32, u32) = (1 << 20, 8 << 20);
/// Requests of one connection at once.
const REQUESTS_MAX: u32 = 1_024;
/// How long what was sent may stay unacknowledged before the connection is given up.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(2);
/// How long the other side may take to close its end of a connection that has ended.
const LINGER: Duration = Duration::from_secs(1);

/// The end of a connection that asks. The connection ends when this is dropped and what was asked is answered.
pub struct Asker {
    /// None once the connection has ended. The only one there is: a request that was handed over at the moment the connection ended comes back only
    /// when its sender is dropped.
    requests: Arc<Mutex<Option<SendRequest<Full<Bytes>>>>>,
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The other side has not looked at it.
    #[error("{0}")]
    NotTaken(String),
    /// It may have acted on it.
    #[error("{0}")]
    Lost(String),
}

/// Has the system notice a peer that is gone without a word.
pub fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_keepalive(
        &socket2::TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(1)),
    )?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

impl Asker {
    /// Begins to ask over a stream.
    pub async fn open(stream: client::TlsStream<TcpStream>) -> Result<Asker, hyper::Error> {
        let (requests, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .keep_alive_while_idle(true)
            .max_concurrent_reset_streams(REQUESTS_MAX as usize)
            .max_local_error_reset_streams(None)
            .initial_stream_window_size(CREDIT_BYTES.0)
            .initial_connection_window_size(CREDIT_BYTES.1)
            .handshake(TokioIo::new(stream))
            .await?;
        let requests = Arc::new(Mutex::new(Some(requests)));
        let asker = Asker { requests: requests.clone() };
        let requests = Arc::downgrade(&requests);
        tokio::spawn(async move {
            if let Err(fault) = connection.await {
                tracing::debug!(%fault, "a connection to a node has ended");
            }
            if let Some(requests) = requests.upgrade() {
                requests.lock().take();
            }
        });
        Ok(asker)
    }

    /// Whether the connection is still up, as far as is known.
    pub fn is_open(&self) -> bool {
        self.requests.lock().as_ref().is_some_and(|requests| !requests.is_closed())
    }

    /// Asks, and returns the body of the answer.
    pub async fn ask(&self, path: &str, frame: Vec<u8>) -> Result<Bytes, Unanswered> {
        let request = post(path, frame);
        let sent = self.requests.lock().as_mut().map(|requests| requests.try_send_request(request));
        let sent = sent.ok_or_else(|| Unanswered::NotTaken("the connection has ended".into()))?;
        let answer = sent.await.map_err(|mut refused| {
            // A request that comes back has not left: the connection had ended before.
            let returned = refused.take_message().is_some();
            let fault = refused.into_error();
            let why = fault.to_string();
            if returned || was_not_taken(&fault) { Unanswered::NotTaken(why) } else { Unanswered::Lost(why) }
        })?;
        let body = Limited::new(answer.into_body(), MESSAGE_BYTES_MAX).collect().await;
        Ok(body.map_err(|fault| Unanswered::Lost(fault.to_string()))?.to_bytes())
    }
}

/// Answers what comes over a stream until the other side goes, or until `closing` is cancelled and what was asked before is answered.
pub async fn serve<A, F>(stream: server::TlsStream<TcpStream>, answer: A, closing: &CancellationToken) -> Result<(), hyper::Error>
where
    A: Fn(Request<Incoming>) -> F + Clone,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    // Of its own, so that the stream is not closed with the connection.
    let socket = socket2::SockRef::from(stream.get_ref().0).try_clone();
    let service = service_fn(move |request| {
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_concurrent_streams(REQUESTS_MAX)
        .max_pending_accept_reset_streams(usize::MAX)
        .max_local_error_reset_streams(None)
        .initial_stream_window_size(CREDIT_BYTES.0)
        .initial_connection_window_size(CREDIT_BYTES.1)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let ended = connection.await;
            match tokio::time::timeout(LINGER, until_closed(socket)).await {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => tracing::debug!(%fault, "the other side did not close its end in good order"),
                Err(_) => tracing::debug!("the other side has not closed its end within {LINGER:?}"),
            }
            ended
        }
    }
}

/// Reads, and forgets, until the other side has closed its end.
async fn until_closed(socket: std::io::Result<socket2::Socket>) -> std::io::Result<()> {
    let mut stream = TcpStream::from_std(socket?.into())?;
    let mut forgotten = [0; 4 << 10];
    while stream.read(&mut forgotten).await? > 0 {}
    Ok(())
}

/// A request with a frame.
fn post(path: &str, frame: Vec<u8>) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from(frame)));
    *request.method_mut() = hyper::Method::POST;
    // HTTP/2 wants an authority; who is meant is said by the certificate.
    *request.uri_mut() = format!("https://ragged.internal{path}").parse().unwrap_or_default();
    request
}

/// Whether a node has said that it did not look at a request: it was closing when the request came (RFC 9113, 6.8 and 8.7).
fn was_not_taken(fault: &hyper::Error) -> bool {
    let source = std::error::Error::source(fault).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|fault| {
        let closing = fault.is_go_away() && fault.reason() == Some(h2::Reason::NO_ERROR);
        fault.is_remote() && (closing || (fault.is_reset() && fault.reason() == Some(h2::Reason::REFUSED_STREAM)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::authority;
    use crate::cluster::identity::NodeIdentity;
    use crate::cluster::tls::Credentials;
    use ragged_raft::ids::NodeId;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::net::TcpListener;
    use tokio_rustls::{TlsAcceptor, TlsConnector};
    use ulid::Ulid;

    const NODE: NodeId = NodeId(7);
    const PATIENCE: Duration = Duration::from_secs(20);
    const ASKING: usize = 32;
    const CLOSINGS: usize = 300;

    /// Both ends of a stream.
    async fn streams(credentials: &Credentials) -> (client::TlsStream<TcpStream>, server::TlsStream<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dial = async {
            let stream = TcpStream::connect(&address).await.unwrap();
            keep_alive(&stream).unwrap();
            let connector = TlsConnector::from(Arc::new(credentials.client().unwrap()));
            connector.connect(credentials.server_name(NODE, &address).unwrap(), stream).await.unwrap()
        };
        let accept = async {
            let (stream, _) = listener.accept().await.unwrap();
            TlsAcceptor::from(Arc::new(credentials.server().unwrap())).accept(stream).await.unwrap()
        };
        tokio::join!(dial, accept)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn whoever_asks_a_node_that_stops_is_answered_or_told_that_nobody_looked() {
        let authority = authority::found(Ulid::new()).unwrap();
        let identity = NodeIdentity::issue(&authority, Ulid::new(), NODE, 1).unwrap();
        let credentials = Credentials::of_cluster(&identity).unwrap();
        for closing_number in 0..CLOSINGS {
            let (dialled, accepted) = streams(&credentials).await;
            let taken = Arc::new(AtomicUsize::new(0));
            let closing = CancellationToken::new();
            let asker = Arc::new(Asker::open(dialled).await.unwrap());
            let served = tokio::spawn({
                let (taken, closing) = (taken.clone(), closing.clone());
                let answer = move |request: Request<Incoming>| {
                    let taken = taken.clone();
                    async move {
                        let Ok(body) = request.into_body().collect().await else { return Response::default() }; // the other side has taken it back
                        let body = body.to_bytes();
                        taken.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(rand::random_range(0..3))).await;
                        Response::new(Full::new(body))
                    }
                };
                async move { serve(accepted, answer, &closing).await }
            });
            let asking = (0..ASKING).map(|_| {
                let asker = asker.clone();
                tokio::spawn(async move {
                    for answered in 0.. {
                        let asked = asker.ask("/call", vec![1; 1_000]);
                        match tokio::time::timeout(PATIENCE, asked).await.expect("it is decided") {
                            Ok(body) => assert_eq!(body.len(), 1_000),
                            Err(Unanswered::NotTaken(_)) => return answered,
                            Err(lost) => panic!("{lost}"),
                        }
                    }
                    unreachable!("it asks until it is refused")
                })
            });
            let asking: Vec<_> = asking.collect();
            tokio::time::sleep(Duration::from_millis(rand::random_range(1..20))).await;
            closing.cancel();
            let mut answered: usize = 0;
            for asked in asking {
                answered += asked.await.unwrap_or_else(|fault| panic!("closing {closing_number}: {fault}"));
            }
            let _ = served.await.unwrap(); // it may find that the other side was the first to close
            assert_eq!(answered, taken.load(Ordering::Relaxed));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_connection_outlives_any_number_of_requests_that_are_taken_back() {
        let authority = authority::found(Ulid::new()).unwrap();
        let identity = NodeIdentity::issue(&authority, Ulid::new(), NODE, 1).unwrap();
        let credentials = Credentials::of_cluster(&identity).unwrap();
        let (dialled, accepted) = streams(&credentials).await;
        let asker = Arc::new(Asker::open(dialled).await.unwrap());
        let closing = CancellationToken::new();
        let late = |_| async {
            tokio::time::sleep(Duration::from_millis(3)).await;
            Response::new(Full::new(Bytes::from_static(b"late")))
        };
        let served = tokio::spawn(async move { serve(accepted, late, &closing).await });
        let asking = (0..ASKING).map(|_| {
            let asker = asker.clone();
            tokio::spawn(async move {
                for _ in 0..200 {
                    let within = Duration::from_micros(rand::random_range(0..5_000));
                    if let Ok(answer) = tokio::time::timeout(within, asker.ask("/call", vec![1; 10])).await {
                        assert_eq!(answer, Ok(Bytes::from_static(b"late")));
                    }
                }
            })
        });
        futures::future::try_join_all(asking).await.unwrap();
        assert!(asker.is_open());
        assert_eq!(asker.ask("/call", Vec::new()).await, Ok(Bytes::from_static(b"late")));
        drop(asker);
        served.await.unwrap().unwrap();
    }
}
