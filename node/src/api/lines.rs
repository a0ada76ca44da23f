//! A body as lines, in bounded memory.

use crate::api::body::Body;
use crate::api::problem::Problem;
use bytes::{Bytes, BytesMut};

/// A line of a body.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// What it says, without its end.
    Text(Bytes),
    /// It was longer than allowed, and has been skipped.
    TooLong,
}

/// Reads a body line by line. Memory is bounded by the longest line allowed, however long the body.
pub struct Lines {
    body: Body,
    line_bytes_max: usize,
    buffer: BytesMut,
    /// Bytes of the buffer that are known to hold no end of a line.
    scanned: usize,
    skipping: bool,
    ended: bool,
    number: u64,
}

impl Lines {
    /// The lines of a body.
    pub fn new(body: Body, line_bytes_max: usize) -> Lines {
        Lines { body, line_bytes_max, buffer: BytesMut::new(), scanned: 0, skipping: false, ended: false, number: 0 }
    }

    /// The next line and its number, from 1.
    pub async fn next(&mut self) -> Result<Option<(u64, Line)>, Problem> {
        loop {
            if let Some(offset) = memchr::memchr(b'\n', &self.buffer[self.scanned..]) {
                let text = self.buffer.split_to(self.scanned + offset + 1).freeze();
                return Ok(Some(self.line(text.slice(..text.len() - 1))));
            }
            if self.buffer.len() > self.line_bytes_max {
                self.skipping = true;
            }
            if self.skipping {
                self.buffer.clear();
            }
            self.scanned = self.buffer.len();
            if self.ended {
                let nothing_left = self.buffer.is_empty() && !self.skipping;
                let last = self.buffer.split().freeze();
                return Ok(if nothing_left { None } else { Some(self.line(last)) });
            }
            match self.body.next().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => self.ended = true,
            }
        }
    }

    fn line(&mut self, text: Bytes) -> (u64, Line) {
        self.scanned = 0;
        self.number += 1;
        let too_long = std::mem::take(&mut self.skipping) || text.len() > self.line_bytes_max;
        if too_long {
            return (self.number, Line::TooLong);
        }
        let end = text.strip_suffix(b"\r").map_or(text.len(), <[u8]>::len);
        (self.number, Line::Text(text.slice(..end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(whole: &[u8], chunk: usize) -> Vec<(u64, Option<String>)> {
        let chunks = whole.chunks(chunk).map(Bytes::copy_from_slice).collect();
        let mut lines = Lines::new(Body::of(chunks), 5);
        let mut read = Vec::new();
        while let Some((number, line)) = lines.next().await.unwrap() {
            assert!(lines.buffer.len() <= 5 + chunk);
            let text = match line {
                Line::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
                Line::TooLong => None,
            };
            read.push((number, text));
        }
        read
    }

    #[tokio::test]
    async fn lines_do_not_depend_on_how_the_bytes_arrive() {
        let text = |text: &str| Some(text.to_string());
        let whole = b"a\r\n\nabcde\nabcdef\nb\nabcdefghijklmnop\nlast";
        let expected =
            [(1, text("a")), (2, text("")), (3, text("abcde")), (4, None), (5, text("b")), (6, None), (7, text("last"))];
        for chunk in 1..=whole.len() {
            assert_eq!(lines(whole, chunk).await, expected, "in chunks of {chunk}");
        }
    }

    #[tokio::test]
    async fn an_end_without_a_last_line_is_no_line() {
        assert_eq!(lines(b"", 4).await, []);
        assert_eq!(lines(b"a\n", 4).await.len(), 1);
        assert_eq!(lines(b"a\ntoo long", 3).await, [(1, Some("a".to_string())), (2, None)]);
    }
}
