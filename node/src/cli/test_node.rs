//! A node for tests, that answers what a function says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// What a request says.
pub struct Request {
    /// The body.
    pub body: String,
}

/// Serves on a free port until the test ends, each connection on a thread of its own. Returns the endpoint.
pub fn start(answer: impl Fn(Request) -> (u16, String) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, answer) = (stream.unwrap(), Arc::clone(&answer));
            std::thread::spawn(move || serve(stream, &*answer));
        }
    });
    endpoint
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(Request) -> (u16, String)) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = read(&mut reader) {
        let (status, body) = answer(request);
        let text = format!("HTTP/1.1 {status} Reason\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(text.as_bytes()).is_err() {
            return; // the client has gone
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { body: String::from_utf8(body).unwrap() })
}

/// A problem as a node answers it.
pub fn problem(status: u16, code: &str) -> (u16, String) {
    (status, format!(r#"{{"type": "about:blank", "title": "T", "status": {status}, "code": "{code}", "detail": "d"}}"#))
}
