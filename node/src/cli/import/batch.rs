//! Cuts lines into batches that may be sent twice.

use ragged_client::ImportFailure;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::io;

/// Bytes of a batch, unless a single line is longer.
const BATCH_BYTES: usize = 4 << 20;

/// A line on its way to a node.
#[derive(Debug, PartialEq)]
pub enum Entry {
    /// To be sent.
    Line {
        /// Its number in the file, from 1.
        number: u64,
        /// What it says.
        text: Vec<u8>,
    },
    /// Found wrong before it was sent.
    Refused(ImportFailure),
}

impl Entry {
    /// A line that is not sent, and why.
    pub fn refused(line: u64, code: &str, detail: String) -> Entry {
        Entry::Refused(ImportFailure { line, code: code.to_owned(), detail })
    }
}

/// Lines that are sent in one request.
#[derive(Debug, Default)]
pub struct Batch {
    /// The body of the request.
    pub body: Vec<u8>,
    /// The number in the file of each line of the body.
    pub numbers: Vec<u64>,
    /// Lines that were found wrong before.
    pub refused: Vec<ImportFailure>,
    /// Whether sending it twice does what sending it once does.
    pub every_line_has_an_id: bool,
    /// Number of the last line in the file that this batch settles.
    pub last_line: u64,
}

/// Cuts lines into batches.
pub struct Batches<I> {
    entries: I,
    lines_max: usize,
    waiting: Option<Entry>,
}

impl<I: Iterator<Item = io::Result<Entry>>> Batches<I> {
    /// Batches of a number of lines at most.
    pub fn new(entries: I, lines_max: usize) -> Batches<I> {
        Batches { entries, lines_max, waiting: None }
    }

    fn next_entry(&mut self) -> Option<io::Result<Entry>> {
        self.waiting.take().map(Ok).or_else(|| self.entries.next())
    }
}

impl<I: Iterator<Item = io::Result<Entry>>> Iterator for Batches<I> {
    type Item = io::Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut batch = Batch { every_line_has_an_id: true, ..Batch::default() };
        while batch.numbers.len() + batch.refused.len() < self.lines_max {
            match self.next_entry() {
                None => break,
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(Entry::Refused(failure))) => {
                    batch.last_line = failure.line;
                    batch.refused.push(failure);
                }
                Some(Ok(Entry::Line { number, text })) => {
                    let line = text.trim_ascii();
                    let is_full = !batch.body.is_empty() && batch.body.len() + line.len() > BATCH_BYTES;
                    if is_full {
                        self.waiting = Some(Entry::Line { number, text });
                        break;
                    }
                    batch.last_line = number;
                    if !line.is_empty() {
                        batch.push(number, line);
                    }
                }
            }
        }
        (batch.last_line > 0).then_some(Ok(batch))
    }
}

impl Batch {
    fn push(&mut self, number: u64, line: &[u8]) {
        let (line, has_id) = with_id(line);
        self.body.extend_from_slice(&line);
        self.body.push(b'\n');
        self.numbers.push(number);
        self.every_line_has_an_id &= has_id;
    }
}

/// Whether a line names an id. What else is right or wrong with it is the node's to say.
#[derive(Clone, Copy, PartialEq)]
enum Id {
    Absent,
    Null,
    Given,
}

/// Reads an object up to its id, which is often the first of its fields and a vector the last: what comes after a given id is not looked at.
struct IdSearch<'a>(&'a mut Id);

impl<'de> Visitor<'de> for IdSearch<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut fields: M) -> Result<(), M::Error> {
        while let Some(name) = fields.next_key::<Cow<str>>()? {
            if name != "id" {
                fields.next_value::<IgnoredAny>()?;
            } else if fields.next_value::<Option<IgnoredAny>>()?.is_some() {
                *self.0 = Id::Given;
                return Ok(());
            } else {
                *self.0 = Id::Null;
            }
        }
        Ok(())
    }
}

/// The id of a line; none when the line is no object.
fn id_of(line: &[u8]) -> Option<Id> {
    let mut id = Id::Absent;
    let mut reader = serde_json::Deserializer::from_slice(line);
    let is_object = reader.deserialize_map(IdSearch(&mut id)).and_then(|()| reader.end()).is_ok();
    (is_object || id == Id::Given).then_some(id)
}

/// The line with an id, when it had none: the node would make one, and another one each time that the line is sent. Also
/// whether sending it twice is safe now.
fn with_id(line: &[u8]) -> (Cow<'_, [u8]>, bool) {
    match id_of(line) {
        Some(Id::Given) | None => (line.into(), true), // the node refuses what is no object
        Some(Id::Null) => (line.into(), false),
        Some(Id::Absent) => {
            let Some(rest) = line.strip_prefix(b"{") else { return (line.into(), true) };
            let comma = if rest.trim_ascii_start().starts_with(b"}") { "" } else { "," };
            let mut whole = format!("{{\"id\":\"{}\"{comma}", ulid::Ulid::new()).into_bytes();
            whole.extend_from_slice(rest);
            (whole.into(), true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(lines: &[&str], lines_max: usize) -> Vec<Batch> {
        let entry = |(index, line): (usize, &&str)| Ok(Entry::Line { number: index as u64 + 1, text: line.as_bytes().to_vec() });
        let entries: Vec<io::Result<Entry>> = lines.iter().enumerate().map(entry).collect();
        Batches::new(entries.into_iter(), lines_max).map(Result::unwrap).collect()
    }

    #[test]
    fn batches_have_a_bounded_number_of_lines_and_know_their_numbers() {
        let lines = ["{\"id\":\"1\"}", "", "{\"id\":\"3\"}", "  {\"id\":\"4\"}\r", "{\"id\":\"5\"}", "", ""];
        let batches = batches(&lines, 2);
        let numbers: Vec<Vec<u64>> = batches.iter().map(|batch| batch.numbers.clone()).collect();
        assert_eq!(numbers, [vec![1, 3], vec![4, 5], vec![]]);
        assert_eq!(batches.iter().map(|batch| batch.last_line).collect::<Vec<_>>(), [3, 5, 7]);
        assert_eq!(batches[1].body, b"{\"id\":\"4\"}\n{\"id\":\"5\"}\n");
        assert!(super::Batches::new(std::iter::empty(), 2).next().is_none());
    }

    #[test]
    fn batches_have_a_bounded_number_of_bytes_unless_a_line_is_longer() {
        let long = format!("{{\"id\":\"{}\"}}", "x".repeat(BATCH_BYTES));
        let half = format!("{{\"id\":\"{}\"}}", "x".repeat(BATCH_BYTES / 2));
        let batches = batches(&["{\"id\":\"1\"}", &long, &half, "{\"id\":\"4\"}", &half], 100);
        let numbers: Vec<Vec<u64>> = batches.iter().map(|batch| batch.numbers.clone()).collect();
        assert_eq!(numbers, [vec![1], vec![2], vec![3, 4], vec![5]]);
    }

    #[test]
    fn every_line_ends_up_with_one_id() {
        for line in ["{\"text\":\"a\"}", "{ \"metadata\": {\"id\": 1}, \"text\":\"a\"}", "{}", "{  }"] {
            let (whole, safe) = with_id(line.as_bytes());
            let value: serde_json::Value = serde_json::from_slice(&whole).unwrap();
            assert_eq!(value["id"].as_str().unwrap().len(), 26, "{line}");
            assert!(safe);
            let (again, _) = with_id(&whole);
            assert_eq!(again, whole);
        }
    }

    #[test]
    fn what_the_node_must_judge_is_left_as_it_is() {
        for line in [
            "{\"id\":7}",
            "{\"id\":\"a\",\"x\":1}",
            "{\"id\":\"a\", nonsense",
            "{\"text\":\"a\",\"id\":\"a\"}",
            "{\"text\":1",
            "nonsense",
            "[1]",
            "[]",
            "{\"id\":\"a\",\"id\":\"b\"}",
            "\u{ff}",
        ] {
            let (whole, _) = with_id(line.as_bytes());
            assert_eq!(whole, line.as_bytes());
        }
        assert!(!with_id(b"{\"id\":null,\"text\":\"a\"}").1, "the node makes an id for null, a new one each time");
    }
}
