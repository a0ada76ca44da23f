//! Prepares searches, so that none is written as JSON while it is being measured.

use crate::cli::error::CliError;
use crate::cli::lines::{self, Line, Lines};
use bytes::Bytes;
use ragged_client::{Client, ListOptions, SearchRequest};
use serde::Deserialize;
use std::path::Path;

/// Lines that are taken of a file, so that a large one does not fill the memory.
const LINES_MAX: usize = 100_000;

/// Bytes of a line at most.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Documents whose titles are searched for when there are no queries.
const TITLES_MAX: u32 = 1000;

#[derive(Deserialize)]
struct QueryObject {
    #[serde(alias = "query")]
    text: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum VectorLine {
    Bare(Vec<f32>),
    Named { vector: Vec<f32> },
}

/// The queries of a file.
pub fn queries(path: &Path) -> Result<Vec<String>, CliError> {
    read(path, |line| {
        if !line.starts_with(b"{") {
            return std::str::from_utf8(line).map(str::to_owned).map_err(|error| error.to_string());
        }
        serde_json::from_slice::<QueryObject>(line).map(|object| object.text).map_err(|error| error.to_string())
    })
}

/// The vectors of a file.
pub fn vectors(path: &Path) -> Result<Vec<Vec<f32>>, CliError> {
    read(path, |line| match serde_json::from_slice(line) {
        Ok(VectorLine::Bare(vector) | VectorLine::Named { vector }) => Ok(vector),
        Err(_) => Err("this is neither an array of numbers nor an object with one as `vector`".to_owned()),
    })
}

/// Titles of documents, for want of queries.
pub async fn titles(client: &Client, collection: &str) -> Result<Vec<String>, CliError> {
    let page = ListOptions { limit: Some(TITLES_MAX), cursor: None };
    let documents = client.list_documents(collection, page, false).await?.documents;
    let titles: Vec<String> = documents.into_iter().map(|document| document.title.unwrap_or(document.id)).collect();
    if titles.is_empty() {
        return Err(CliError::Failed(format!("{collection} has no documents to take queries from: give --queries")));
    }
    Ok(titles)
}

/// Searches as JSON. With queries and vectors both, one of each goes into a search, the fewer ones again and again.
pub fn prepare(template: &SearchRequest, queries: &[String], vectors: &[Vec<f32>]) -> Result<Vec<Bytes>, CliError> {
    let pick = |index: usize, count: usize| (count > 0).then(|| index % count);
    let search = |index: usize| {
        let request = SearchRequest {
            query: pick(index, queries.len()).map(|index| queries[index].clone()),
            vector: pick(index, vectors.len()).map(|index| vectors[index].clone()),
            ..template.clone()
        };
        let written = serde_json::to_vec(&request);
        written.map(Bytes::from).map_err(|error| CliError::Failed(format!("a search cannot be written as JSON: {error}")))
    };
    (0..queries.len().max(vectors.len())).map(search).collect()
}

fn read<T>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, String>) -> Result<Vec<T>, CliError> {
    let mut values = Vec::new();
    let wrong = |number: u64, detail: String| CliError::Failed(format!("{}, line {number}: {detail}", path.display()));
    for line in Lines::new(lines::open(path)?.reader, LINE_BYTES_MAX).take(LINES_MAX) {
        match line.map_err(|source| CliError::io(format!("cannot read {}", path.display()), source))? {
            (_, Line::Text(text)) if text.trim_ascii().is_empty() => {}
            (number, Line::Text(text)) => values.push(parse(text.trim_ascii()).map_err(|detail| wrong(number, detail))?),
            (number, Line::TooLong) => return Err(wrong(number, format!("it is longer than {LINE_BYTES_MAX} bytes"))),
        }
    }
    if values.is_empty() {
        return Err(CliError::Failed(format!("{} is empty", path.display())));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn queries_are_text_or_json() {
        let file = file(" plain words \n\n{\"id\": \"1\", \"text\": \"a\"}\r\n{\"query\": \"b\"}\n");
        assert_eq!(queries(file.path()).unwrap(), ["plain words", "a", "b"]);
        assert!(queries(self::file("{\"id\": 1}").path()).unwrap_err().to_string().contains("line 1"));
        assert!(queries(self::file("\n").path()).unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn vectors_are_arrays_or_objects() {
        let file = file("[1, 2.5]\n{\"id\": 7, \"vector\": [3]}\n");
        assert_eq!(vectors(file.path()).unwrap(), [vec![1.0, 2.5], vec![3.0]]);
        assert!(vectors(self::file("[1]\n[\"x\"]").path()).unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn the_fewer_ones_are_used_again() {
        let queries = ["a", "b", "c"].map(str::to_owned);
        let template = SearchRequest { limit: Some(5), ..SearchRequest::default() };
        let requests = prepare(&template, &queries, &[vec![1.0], vec![2.0]]).unwrap();
        let third: SearchRequest = serde_json::from_slice(&requests[2]).unwrap();
        assert_eq!((requests.len(), third.query.as_deref(), third.vector, third.limit), (3, Some("c"), Some(vec![1.0]), Some(5)));
        let vectors_only = prepare(&template, &[], &[vec![1.0]]).unwrap();
        assert_eq!(vectors_only[0], "{\"vector\":[1.0],\"limit\":5}");
    }
}
