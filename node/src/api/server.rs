//! Connections: accepted, limited, and closed in order when the node stops.

use crate::api::{Api, dispatch};
use futures::FutureExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// The head of a request must have come after so long, so that nobody holds a connection by sending it a byte at a time. It is also how
/// long an idle connection is kept: longer than the 60 s of nginx, so that a proxy never reuses a connection that we are closing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// Head of a request: line and headers. hyper answers 431 beyond.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;

/// Connections that the system keeps waiting while we are busy accepting others.
const BACKLOG: u32 = 1024;

/// When the node stops, connections that nobody uses are closed after this: a request that has come before is seen by then, and answered.
const LATEST_REQUEST: Duration = Duration::from_millis(30);

/// Refused connections that are told so at the same time; more are simply closed.
const REFUSALS_MAX: usize = 64;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long accepting rests when the system has no file descriptor or memory left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Opens the address. Restarting a node does not have to wait for the connections of the one before.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves the façade on a listener until it begins to stop; then closes the listener, lets what is in flight end, for `grace` at most, and
/// says whether everything did.
pub async fn serve(listener: TcpListener, api: Arc<Api>, max_connections: usize, grace: Duration) -> bool {
    let service = TowerToHyperService::new(warp::service(dispatch::filter(Arc::clone(&api))));
    // Not with `pipeline_flush`: hyper then leaves its own answer (400, 431) to a head that it cannot read unsent.
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
    let places = Arc::new(Semaphore::new(max_connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let connections = TaskTracker::new();
    let admit = |stream: TcpStream| {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { return refuse(stream, &api, &refusals) };
        // Answers are small and complete: waiting to fill a packet would only delay them.
        let _ = stream.set_nodelay(true);
        let mut connection = protocol.serve_connection(TokioIo::new(stream), service.clone());
        let (open, stopping) = (api.metrics.connections.clone(), api.stopping().clone());
        open.inc();
        connections.spawn(async move {
            let stopping = async {
                stopping.cancelled().await;
                tokio::time::sleep(LATEST_REQUEST).await;
            };
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = stopping => {
                    Pin::new(&mut connection).graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!("connection ended: {error}");
            }
            open.dec();
            drop(place);
        });
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = api.stopping().cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => admit(stream),
            Err(error) => pause_after(&error).await,
        }
    }
    // Whoever has come by then is let in: closing would reset what waits.
    for _ in 0..BACKLOG {
        let Some(Ok((stream, _))) = listener.accept().now_or_never() else { break };
        admit(stream);
    }
    drop(listener);
    connections.close();
    tokio::time::timeout(grace, connections.wait()).await.is_ok()
}

async fn pause_after(error: &io::Error) {
    let client_left = matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
    if !client_left {
        tracing::warn!("accepting connections failed, and goes on in {} ms: {error}", ACCEPT_PAUSE.as_millis());
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Tells a client that there are too many connections, without making it wait for one to end.
fn refuse(mut stream: TcpStream, api: &Api, refusals: &Arc<Semaphore>) {
    api.metrics.connections_refused.inc();
    let Ok(turn) = Arc::clone(refusals).try_acquire_owned() else { return };
    tokio::spawn(async move {
        let tell = async {
            stream.write_all(refusal().as_bytes()).await?;
            stream.shutdown().await?;
            // What the client is still sending is read, so that closing does not reset the connection under the answer.
            let mut rest = [0; 4096];
            while stream.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(REFUSAL_TIMEOUT, tell).await;
        drop(turn);
    });
}

fn refusal() -> String {
    let body = concat!(
        r#"{"type":"about:blank","title":"Too many connections","status":503,"code":"too_many_connections","#,
        r#""detail":"http.max_connections connections are open: try again, or keep fewer open"}"#
    );
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};
    use tokio::task::JoinHandle;

    const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: node\r\n\r\n";

    struct Running {
        api: Arc<Api>,
        address: SocketAddr,
        serving: JoinHandle<bool>,
    }

    fn start(max_connections: usize) -> Running {
        let home = vec![("HOME".to_string(), "/nowhere".to_string())];
        let config = Config::load(&Sources { file: None, variables: home, flags: Vec::new() }).unwrap().config;
        let api = Api::new(&config.http, 64 << 20, prometheus::Registry::new()).unwrap();
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, Arc::clone(&api), max_connections, Duration::from_secs(20)));
        Running { api, address, serving }
    }

    async fn connect(running: &Running) -> TcpStream {
        TcpStream::connect(running.address).await.unwrap()
    }

    /// Sends bytes and reads until an answer of ours is complete, or the connection ends.
    async fn exchange(stream: &mut TcpStream, sent: &[u8]) -> String {
        stream.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while !answer.ends_with(b"}") {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => answer.extend_from_slice(&buffer[..count]),
            }
        }
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn a_connection_serves_one_request_after_the_other() {
        let running = start(4);
        let mut stream = connect(&running).await;
        for _ in 0..3 {
            assert!(exchange(&mut stream, HEALTH).await.starts_with("HTTP/1.1 200"));
        }
    }

    #[tokio::test]
    async fn connections_over_the_limit_are_told_so_and_places_come_back() {
        let running = start(2);
        let mut first = connect(&running).await;
        let mut second = connect(&running).await;
        assert!(exchange(&mut first, HEALTH).await.starts_with("HTTP/1.1 200"));
        assert!(exchange(&mut second, HEALTH).await.starts_with("HTTP/1.1 200"));
        let refused = exchange(&mut connect(&running).await, HEALTH).await;
        assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("too_many_connections"), "{refused}");
        let body = refused.split("\r\n\r\n").nth(1).unwrap();
        assert_eq!(serde_json::from_str::<ragged_client::Problem>(body).unwrap().status, 503);
        drop(first);
        while !exchange(&mut connect(&running).await, HEALTH).await.starts_with("HTTP/1.1 200") {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_head_that_cannot_be_read_is_answered() {
        let running = start(4);
        let answer = exchange(&mut connect(&running).await, b"\x00\xff\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer:?}");
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        let answer = exchange(&mut connect(&running).await, many.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer:?}");
    }

    #[tokio::test]
    async fn a_stopping_node_does_not_wait_for_idle_connections() {
        let running = start(4);
        let mut used = connect(&running).await;
        assert!(exchange(&mut used, HEALTH).await.starts_with("HTTP/1.1 200"));
        let unused = connect(&running).await;
        running.api.stopping().cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), running.serving).await;
        assert!(ended.unwrap().unwrap(), "connections were cut off");
        assert!(TcpStream::connect(running.address).await.is_err());
        drop((used, unused));
    }

    #[tokio::test]
    async fn what_was_asked_before_a_node_stops_is_answered() {
        for _ in 0..20 {
            let running = start(4);
            let mut used = connect(&running).await;
            assert!(exchange(&mut used, HEALTH).await.starts_with("HTTP/1.1 200"));
            let mut unused = connect(&running).await;
            let ask = async |stream: &mut TcpStream| exchange(stream, HEALTH).await;
            let stop = async { running.api.stopping().cancel() };
            let (first, second, ()) = tokio::join!(ask(&mut used), ask(&mut unused), stop);
            assert!(first.starts_with("HTTP/1.1 200") && second.starts_with("HTTP/1.1 200"), "{first:?} {second:?}");
            assert!(running.serving.await.unwrap());
        }
    }
}
