//! A connection that sends prepared searches: HTTP/1.1 reduced to what that needs, since measuring may share its cores with the node.

use crate::cli::error::CliError;
use bytes::BytesMut;
use ragged_client::Problem;
use reqwest::Url;
use reqwest::header::HeaderValue;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long connecting may take, and an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of an answer's head at most, and of all of it.
const HEAD_BYTES_MAX: usize = 64 << 10;
const ANSWER_BYTES_MAX: usize = 256 << 20;
const HEADERS_MAX: usize = 64;
/// Bytes that there is room for at first: most answers.
const ROOM_BYTES: usize = 16 << 10;

/// What a search fails with when nobody answers it.
const UNREACHABLE: &str = "unreachable";

/// Where searches of a collection are sent.
pub struct Target {
    /// Host and port.
    address: String,
    /// Of the request's head, what is the same for all.
    head: String,
}

impl Target {
    /// Searches of a collection at a node.
    pub fn new(endpoint: &str, key: Option<&str>, collection: &str) -> Result<Arc<Target>, CliError> {
        let wrong = |what: &str| CliError::Failed(format!("{endpoint} cannot be measured: {what}"));
        let mut url = Url::parse(endpoint).map_err(|error| wrong(&error.to_string()))?;
        let path = ["api", "v1", "collections", collection, "search"];
        url.path_segments_mut().map_err(|()| wrong("it cannot have a path"))?.pop_if_empty().extend(path);
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(wrong("it names no host"));
        };
        let address = format!("{host}:{port}");
        let mut head = format!("POST {} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n", url.path());
        if let Some(key) = key {
            let bearer = format!("Bearer {key}");
            if HeaderValue::from_str(&bearer).is_err() {
                return Err(wrong("the key has characters that a key cannot have, such as a line break"));
            }
            head.push_str(&format!("authorization: {bearer}\r\n"));
        }
        head.push_str("content-length: ");
        Ok(Arc::new(Target { address, head }))
    }
}

/// A connection to a node, one request at a time. Opened when it is first needed, and again after a failure.
pub struct Connection {
    target: Arc<Target>,
    stream: Option<TcpStream>,
    sent: Vec<u8>,
    received: BytesMut,
}

/// What the head of an answer says.
struct Head {
    status: u16,
    /// Its own length.
    head_bytes: usize,
    body_bytes: usize,
    ends_connection: bool,
}

impl Connection {
    /// A connection that is not open yet.
    pub fn new(target: Arc<Target>) -> Connection {
        Connection { target, stream: None, sent: Vec::new(), received: BytesMut::with_capacity(ROOM_BYTES) }
    }

    /// Sends a search and reads its answer, whatever it is.
    ///
    /// # Errors
    /// A short name of what it failed with: the code of the node's problem, or `unreachable`.
    pub async fn search(&mut self, body: &[u8]) -> Result<&[u8], String> {
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(body)).await;
        let head = answered.unwrap_or_else(|_| Err("timeout".to_owned())).inspect_err(|_| self.stream = None)?;
        let answer = &self.received[head.head_bytes..];
        match head.status {
            200 => Ok(answer),
            other => {
                Err(serde_json::from_slice::<Problem>(answer).map_or_else(|_| format!("http_{other}"), |problem| problem.code))
            }
        }
    }

    /// Sends a search and receives its answer, of which it reads the head.
    async fn exchange(&mut self, body: &[u8]) -> Result<Head, String> {
        let unreachable = |_| UNREACHABLE.to_owned();
        let stream = match &mut self.stream {
            Some(stream) => stream,
            closed => {
                let opened = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.target.address)).await;
                let stream = opened.map_err(|_| UNREACHABLE.to_owned())?.map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                closed.insert(stream)
            }
        };
        self.sent.clear();
        self.sent.extend_from_slice(self.target.head.as_bytes());
        self.sent.extend_from_slice(body.len().to_string().as_bytes());
        self.sent.extend_from_slice(b"\r\n\r\n");
        self.sent.extend_from_slice(body);
        stream.write_all(&self.sent).await.map_err(unreachable)?;
        self.received.clear();
        let head = loop {
            if let Some(head) = read_head(&self.received)? {
                break head;
            }
            read_more(stream, &mut self.received).await?;
        };
        let all = head.head_bytes + head.body_bytes;
        while self.received.len() < all {
            read_more(stream, &mut self.received).await?;
        }
        if self.received.len() > all {
            return Err("more was answered than was asked for".to_owned());
        }
        if head.ends_connection {
            self.stream = None;
        }
        Ok(head)
    }
}

async fn read_more(stream: &mut TcpStream, received: &mut BytesMut) -> Result<(), String> {
    match stream.read_buf(received).await {
        Ok(1..) => Ok(()),
        Ok(0) | Err(_) => Err(UNREACHABLE.to_owned()),
    }
}

/// The head of an answer, when all of it is there.
fn read_head(received: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    let head_bytes = match answer.parse(received) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if received.len() <= HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => return Err("the head of an answer is too long".to_owned()),
        Err(error) => return Err(format!("not HTTP: {error}")),
    };
    let header = |name: &str| {
        let found = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let body_bytes = header("content-length").and_then(|length| length.trim().parse().ok());
    let Some(body_bytes) = body_bytes.filter(|length| *length <= ANSWER_BYTES_MAX) else {
        return Err("an answer does not say its length".to_owned());
    };
    let ends_connection = header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Ok(Some(Head { status: answer.code.unwrap_or_default(), head_bytes, body_bytes, ends_connection }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;

    /// Answers each connection's requests with these texts, then closes it. Says what the requests were.
    fn node(connections: Vec<Vec<&'static str>>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/prefix/", listener.local_addr().unwrap());
        let serving = std::thread::spawn(move || {
            let mut requests = Vec::new();
            for answers in connections {
                let mut stream = listener.accept().unwrap().0;
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                for answer in answers {
                    let mut request = String::new();
                    while !request.ends_with("\r\n\r\n") {
                        assert!(reader.read_line(&mut request).unwrap() > 0, "{request}");
                    }
                    let mut body = [0; 2];
                    reader.read_exact(&mut body).unwrap();
                    requests.push(request + std::str::from_utf8(&body).unwrap());
                    for part in answer.split('|') {
                        stream.write_all(part.as_bytes()).unwrap();
                    }
                }
            }
            requests
        });
        (endpoint, serving)
    }

    #[tokio::test]
    async fn searches_go_through_one_connection_until_it_ends() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n|\r\n{\"a|\"";
        let refused = "HTTP/1.1 429 No\r\ncontent-length: 82\r\n\r\n{\"type\":\"about:blank\",\"title\":\"T\",\"status\":429,\"code\":\"busy\",\"detail\":\"detail!!!\"}";
        let strange = "HTTP/1.1 502 No\r\nconnection: close\r\ncontent-length: 1\r\n\r\n<";
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc";
        let (endpoint, serving) = node(vec![vec![ok, refused, strange], vec![ok, chunked], vec![cut], vec![ok]]);
        let mut connection = Connection::new(Target::new(&endpoint, Some("k"), "c d").unwrap());
        let mut answers = Vec::new();
        for _ in 0..7 {
            answers.push(connection.search(b"{}").await.map(<[u8]>::to_vec));
        }
        let answer = Ok(b"{\"a\"".to_vec());
        let failed = |name: &str| Err(name.to_owned());
        let expected = [
            answer.clone(),
            failed("busy"),
            failed("http_502"),
            answer.clone(),
            failed("an answer does not say its length"),
            failed(UNREACHABLE),
            answer,
        ];
        assert_eq!(answers, expected);
        let requests = serving.join().unwrap();
        assert_eq!(requests.len(), 7);
        assert!(
            requests[0].starts_with("POST /prefix/api/v1/collections/c%20d/search HTTP/1.1\r\nhost: 127.0.0.1:"),
            "{}",
            requests[0]
        );
        assert!(requests[0].contains("\r\nauthorization: Bearer k\r\n") && requests[0].ends_with("content-length: 2\r\n\r\n{}"));
        assert_eq!(connection.search(b"{}").await, Err(UNREACHABLE.to_owned()), "nobody listens any more");
    }

    #[test]
    fn a_key_that_would_be_another_header_is_refused() {
        assert!(Target::new("http://h:1", Some("a\r\nx: y"), "c").is_err());
        assert!(Target::new("mailto:x", None, "c").is_err());
    }
}
