//! A server that answers one request after the other as it was told, and remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a request gets.
pub enum Reply {
    Answer {
        status: u16,
        headers: Vec<(String, String)>,
        body: String,
        with_length: bool,
    },
    /// The connection is closed after the request was read.
    HangUp,
    /// The connection is closed in the middle of a 200.
    HalfAnswer,
    /// Nothing, for longer than anyone waits.
    Silence,
}

impl Reply {
    pub fn status(status: u16, body: impl AsRef<str>) -> Reply {
        Reply::Answer { status, headers: Vec::new(), body: body.as_ref().to_owned(), with_length: true }
    }

    pub fn header(mut self, name: &str, value: &str) -> Reply {
        if let Reply::Answer { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    pub fn without_length(mut self) -> Reply {
        if let Reply::Answer { with_length, .. } = &mut self {
            *with_length = false;
        }
        self
    }
}

#[derive(Debug, Clone)]
pub struct Request {
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub struct Server {
    endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Each connection serves one request, so that the order of the replies is that of the requests.
    pub fn start(replies: Vec<Reply>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for reply in replies {
                let Ok((stream, _)) = listener.accept() else { return };
                let Some(request) = read(&stream) else { continue };
                seen.lock().expect("no test panics while it holds this").push(request);
                answer(stream, reply);
            }
        });
        Server { endpoint, requests }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no test panics while it holds this").clone()
    }
}

/// An address where nothing listens.
pub fn refused_endpoint() -> String {
    "http://127.0.0.1:1".to_owned() // nobody listens there, and nobody is given it
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut headers = Vec::new();
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut request = Request { headers, body: Vec::new() };
    if let Some(length) = request.header("content-length").and_then(|length| length.parse().ok()) {
        request.body = vec![0; length];
        reader.read_exact(&mut request.body).ok()?;
    } else if request.header("transfer-encoding").is_some() {
        while !request.body.ends_with(b"0\r\n\r\n") {
            let read = reader.fill_buf().ok().filter(|bytes| !bytes.is_empty())?.to_vec();
            request.body.extend_from_slice(&read);
            reader.consume(read.len());
        }
    }
    Some(request)
}

fn answer(mut stream: TcpStream, reply: Reply) {
    let text = match reply {
        Reply::HangUp => return,
        Reply::HalfAnswer => "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"hits\"".to_owned(),
        Reply::Silence => {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(60));
                drop(stream);
            });
            return;
        }
        Reply::Answer { status, headers, body, with_length } => {
            let mut text = format!("HTTP/1.1 {status} Reason\r\nconnection: close\r\n");
            for (name, value) in headers {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            if with_length {
                text.push_str(&format!("content-length: {}\r\n", body.len()));
            }
            text + "\r\n" + &body
        }
    };
    // The client may have gone already; then there is nobody to tell.
    let _ = stream.write_all(text.as_bytes());
}
