//! Bodies of requests, read within limits of size and time.

use crate::api::body_room::{BodyPlace, BodyRoom};
use crate::api::problem::Problem;
use bytes::{Buf, Bytes};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use prometheus::IntCounter;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use warp::http::header::{CONTENT_LENGTH, EXPECT};
use warp::http::{HeaderMap, StatusCode};

/// What is left of a refused body is read for so long, and up to so many bytes: closing the connection on a client that is still sending
/// would reset it, and the client would see a broken connection instead of what was wrong.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES_MAX: u64 = 64 << 20;

/// The same, when the node stops.
const LINGER_STOPPING: Duration = Duration::from_millis(500);

/// No more than this is reserved on the word of a `content-length`.
const RESERVE_BYTES_MAX: usize = 1 << 20;

/// How bodies are read.
#[derive(Clone)]
pub struct Reading {
    /// A body that brings no byte for so long is given up.
    pub idle: Duration,
    /// Counts the bytes that were read.
    pub counter: IntCounter,
    /// Memory for bodies that are kept as a whole.
    pub room: Arc<BodyRoom>,
    /// Cancelled when the node begins to stop.
    pub stopping: CancellationToken,
}

/// A body on its way in.
pub struct Body {
    stream: Option<BoxStream<'static, Result<Bytes, warp::Error>>>,
    declared_bytes: Option<u64>,
    begun: bool,
    waits_for_continue: bool,
    idle: Duration,
    counter: Option<IntCounter>,
    place: Option<Arc<BodyPlace>>,
    stopping: CancellationToken,
}

impl Body {
    /// A body as it comes from the connection.
    pub fn new<S, B>(headers: &HeaderMap, stream: S, reading: Reading) -> Body
    where
        S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
        B: Buf,
    {
        // For a chunk that is `Bytes` already, which it is on every connection, this copies nothing.
        let chunks = stream.map(|chunk| chunk.map(|mut bytes| bytes.copy_to_bytes(bytes.remaining())));
        Body {
            stream: Some(chunks.boxed()),
            declared_bytes: headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok()),
            begun: false,
            waits_for_continue: headers.contains_key(EXPECT),
            idle: reading.idle,
            counter: Some(reading.counter),
            place: Some(Arc::new(reading.room.place())),
            stopping: reading.stopping,
        }
    }

    /// A body that has been read.
    pub fn empty() -> Body {
        Body {
            stream: None,
            declared_bytes: None,
            begun: true,
            waits_for_continue: false,
            idle: Duration::ZERO,
            counter: None,
            place: None,
            stopping: CancellationToken::new(),
        }
    }

    /// The body, for whoever reads it elsewhere. What stays is empty, and keeps the place: what is made of the body may be as large as it was.
    pub fn take(&mut self) -> Body {
        let mut left = Body::empty();
        left.place = self.place.clone();
        std::mem::replace(self, left)
    }

    /// Whether the client has said that it is no longer than that.
    pub fn is_within(&self, limit_bytes: usize) -> bool {
        self.declared_bytes.is_some_and(|declared| declared <= limit_bytes as u64)
    }

    /// The next bytes, or none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let Some(stream) = &mut self.stream else { return Ok(None) };
        self.begun = true;
        let problem = match tokio::time::timeout(self.idle, stream.next()).await {
            Ok(Some(Ok(bytes))) => {
                if let Some(counter) = &self.counter {
                    counter.inc_by(bytes.len() as u64);
                }
                return Ok(Some(bytes));
            }
            Ok(None) => {
                self.stream = None;
                return Ok(None);
            }
            Ok(Some(Err(error))) => Problem::invalid("body_incomplete", format!("the body ended early: {error}")),
            Err(_) => {
                let detail = format!("no byte of the body came for {} s", self.idle.as_secs_f32());
                Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
            }
        };
        // Nothing sensible can follow on this connection.
        self.stream = None;
        Err(problem)
    }

    /// The whole body, when it is no longer than `limit_bytes`. It has its place in the memory for bodies until this is dropped.
    pub async fn read_all(&mut self, limit_bytes: usize) -> Result<Vec<u8>, Problem> {
        self.check_declared(limit_bytes)?;
        let declared = self.declared_bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
        let mut whole = Vec::with_capacity(declared.min(RESERVE_BYTES_MAX));
        while let Some(bytes) = self.next().await? {
            if whole.len() + bytes.len() > limit_bytes {
                return Err(too_large(limit_bytes));
            }
            self.take_place(whole.len() + bytes.len())?;
            whole.extend_from_slice(&bytes);
        }
        Ok(whole)
    }

    /// The body as a stream that fails with a [`Problem`] once it is longer than `limit_bytes`.
    pub fn into_stream(self, limit_bytes: usize) -> Result<impl Stream<Item = Result<Bytes, Problem>> + Send + 'static, Problem> {
        self.check_declared(limit_bytes)?;
        Ok(futures::stream::try_unfold((self, 0_usize), move |(mut body, before)| async move {
            let Some(bytes) = body.next().await? else { return Ok(None) };
            let received = before + bytes.len();
            if received > limit_bytes {
                return Err(too_large(limit_bytes));
            }
            body.take_place(received)?;
            Ok(Some((bytes, (body, received))))
        }))
    }

    fn take_place(&mut self, bytes: usize) -> Result<(), Problem> {
        self.place.as_ref().map_or(Ok(()), |place| place.grow_to(bytes))
    }

    fn check_declared(&self, limit_bytes: usize) -> Result<(), Problem> {
        let within = self.declared_bytes.is_none_or(|declared| declared <= limit_bytes as u64);
        if within { Ok(()) } else { Err(too_large(limit_bytes)) }
    }
}

fn too_large(limit_bytes: usize) -> Problem {
    let detail = format!(
        "the body is longer than {limit_bytes} bytes: send less at once, or import documents as NDJSON, which has no limit as a whole"
    );
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
}

impl Drop for Body {
    /// Reads on for a while, behind the answer, what the handler left.
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        let client_waits = self.waits_for_continue && !self.begun;
        let too_long = self.declared_bytes.is_some_and(|bytes| bytes > LINGER_BYTES_MAX);
        if client_waits || too_long || self.declared_bytes == Some(0) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let stopping = self.stopping.clone();
        runtime.spawn(async move {
            let mut received = 0;
            let rest = async {
                while let Some(Ok(bytes)) = stream.next().await {
                    received += bytes.len() as u64;
                    if received > LINGER_BYTES_MAX {
                        return;
                    }
                }
            };
            let given_up = async {
                stopping.cancelled().await;
                tokio::time::sleep(LINGER_STOPPING).await;
            };
            tokio::select! {
                () = rest => {}
                () = given_up => {}
                () = tokio::time::sleep(LINGER) => {}
            }
        });
    }
}

#[cfg(test)]
impl Body {
    /// A body that is there already, in pieces.
    pub fn of(chunks: Vec<Bytes>) -> Body {
        let reading = Reading {
            idle: Duration::from_secs(1),
            counter: IntCounter::new("bytes", "for tests").unwrap(),
            room: BodyRoom::new(1 << 30),
            stopping: CancellationToken::new(),
        };
        Body::new(&HeaderMap::new(), futures::stream::iter(chunks.into_iter().map(Ok::<_, warp::Error>)), reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading() -> Reading {
        let counter = IntCounter::new("bytes", "for tests").unwrap();
        Reading { idle: Duration::from_millis(20), counter, room: BodyRoom::new(1 << 20), stopping: CancellationToken::new() }
    }

    fn body(chunks: &[&'static [u8]], headers: &HeaderMap) -> Body {
        let chunks: Vec<Result<Bytes, warp::Error>> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk))).collect();
        Body::new(headers, futures::stream::iter(chunks), reading())
    }

    #[tokio::test]
    async fn a_body_within_its_limit_is_read_whole() {
        let mut body = body(&[b"ab", b"", b"c"], &HeaderMap::new());
        assert_eq!(body.read_all(3).await.unwrap(), b"abc");
        assert_eq!(body.counter.as_ref().unwrap().get(), 3);
    }

    #[tokio::test]
    async fn a_body_has_its_place_until_it_is_dropped() {
        const LARGE: usize = 100 << 10;
        let reading = Reading { room: BodyRoom::new(LARGE * 3 / 2), ..reading() };
        let new = |bytes: usize| {
            let chunks = futures::stream::iter([Ok::<_, warp::Error>(Bytes::from(vec![7; bytes]))]);
            Body::new(&HeaderMap::new(), chunks, reading.clone())
        };
        let mut first = new(LARGE);
        // Who takes the body gives nothing back by dropping it, as long as the one that it was taken from is there.
        drop(first.take().into_stream(LARGE).unwrap().collect::<Vec<_>>().await);
        assert_eq!(reading.room.bytes(), LARGE);
        let refused = new(LARGE).read_all(LARGE).await.unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (503, "bodies_overloaded"));
        assert_eq!(new(9).read_all(9).await.unwrap().len(), 9, "a search is not refused for the uploads of others");
        drop(first);
        assert_eq!(new(LARGE).read_all(LARGE).await.unwrap().len(), LARGE);
        assert_eq!(reading.room.bytes(), 0);
    }

    #[tokio::test]
    async fn a_body_over_its_limit_is_refused_with_or_without_its_length() {
        let chunked = body(&[b"ab", b"cd"], &HeaderMap::new()).read_all(3).await.unwrap_err();
        assert_eq!((chunked.status.as_u16(), chunked.code), (413, "body_too_large"));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, 4.into());
        let mut declared = body(&[b"ab", b"cd"], &headers);
        assert_eq!(declared.read_all(3).await.unwrap_err().code, "body_too_large");
        assert!(!declared.begun);
    }

    #[tokio::test]
    async fn a_silent_body_is_given_up() {
        let stream = futures::stream::pending::<Result<Bytes, warp::Error>>();
        let mut body = Body::new(&HeaderMap::new(), stream, reading());
        let problem = body.read_all(3).await.unwrap_err();
        assert_eq!((problem.status.as_u16(), problem.code), (408, "body_timeout"));
    }
}
