//! Reads a dataset: queries, judgements, documents.

use crate::cli::error::CliError;
use crate::cli::import::batch::Entry;
use crate::cli::lines::{self, Line, Lines};
use ragged_client::NewDocument;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

const LINE_BYTES_MAX: usize = 16 << 20;

/// Queries of a dataset at most.
const QUERIES_MAX: usize = 1_000_000;

/// A query with its judgements.
#[derive(Debug, PartialEq)]
pub struct Query {
    /// What is looked for.
    pub text: String,
    /// Judgements by document id; one at least is above 0.
    pub judgements: HashMap<String, f64>,
}

/// What is measured with.
#[derive(Debug, PartialEq)]
pub struct Dataset {
    /// The queries that have a judgement above 0, in the order of their file.
    pub queries: Vec<Query>,
}

#[derive(Deserialize)]
struct QueryLine {
    id: String,
    text: String,
}

#[derive(Deserialize)]
struct DocumentLine {
    id: String,
    title: Option<String>,
    text: String,
    meta: Option<Map<String, Value>>,
}

impl Dataset {
    /// Reads queries and judgements.
    pub fn read(folder: &Path) -> Result<Dataset, CliError> {
        let mut judgements = read_judgements(&file(folder, "qrels.tsv")?)?;
        let path = file(folder, "queries.jsonl")?;
        let mut queries = Vec::new();
        for_each_line(&path, |number, text| {
            let line: QueryLine = parse(&path, number, text)?;
            let judged = judgements.remove(&line.id).filter(|judged| judged.values().any(|judgement| *judgement > 0.0));
            if let Some(judgements) = judged {
                queries.push(Query { text: line.text, judgements });
            }
            if queries.len() > QUERIES_MAX {
                return Err(wrong(&path, number, format!("more than {QUERIES_MAX} queries")));
            }
            Ok(())
        })?;
        if queries.is_empty() {
            return Err(CliError::Failed(format!("no query in {} has a judgement above 0", path.display())));
        }
        Ok(Dataset { queries })
    }
}

/// Documents by query, with what was judged of them.
fn read_judgements(path: &Path) -> Result<HashMap<String, HashMap<String, f64>>, CliError> {
    let mut judgements: HashMap<String, HashMap<String, f64>> = HashMap::new();
    for_each_line(path, |number, text| {
        let text = std::str::from_utf8(text).map_err(|error| wrong(path, number, error.to_string()))?;
        let mut fields = text.trim_end_matches(['\r', '\n']).split('\t');
        let (Some(query), Some(document), Some(score), None) = (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(wrong(path, number, "a line has query-id, doc-id and score, with tabs between them".to_owned()));
        };
        match score.trim().parse::<f64>() {
            Ok(score) if score.is_finite() => {
                judgements.entry(query.to_owned()).or_default().insert(document.to_owned(), score);
            }
            _ if number == 1 => {} // the headings
            _ => return Err(wrong(path, number, format!("the score {score:?} is not a number"))),
        }
        Ok(())
    })?;
    Ok(judgements)
}

/// The documents of a dataset, as lines to import.
pub struct Documents {
    /// The lines.
    pub entries: Box<dyn Iterator<Item = io::Result<Entry>> + Send>,
    /// Bytes read so far.
    pub position: Arc<AtomicU64>,
    /// Bytes of the file.
    pub total_bytes: Option<u64>,
}

/// Opens the documents of a dataset.
pub fn documents(folder: &Path) -> Result<Documents, CliError> {
    let source = lines::open(&file(folder, "docs.jsonl")?)?;
    let entries = Lines::new(source.reader, LINE_BYTES_MAX).map(|line| line.map(document_entry));
    Ok(Documents { entries: Box::new(entries), position: source.position, total_bytes: source.total_bytes })
}

fn document_entry((number, line): (u64, Line)) -> Entry {
    let text = match line {
        Line::Text(text) if text.trim_ascii().is_empty() => return Entry::Line { number, text },
        Line::Text(text) => text,
        Line::TooLong => {
            return Entry::refused(number, "line_too_long", format!("the line is longer than {LINE_BYTES_MAX} bytes"));
        }
    };
    let written = serde_json::from_slice::<DocumentLine>(&text).and_then(|line| {
        serde_json::to_vec(&NewDocument {
            id: Some(line.id),
            title: line.title.filter(|title| !title.trim().is_empty()),
            text: line.text,
            metadata: line.meta,
            ..NewDocument::default()
        })
    });
    match written {
        Ok(text) => Entry::Line { number, text },
        Err(error) => Entry::refused(number, "malformed_json", error.to_string()),
    }
}

/// The file of a name, or its gzipped form.
fn file(folder: &Path, name: &str) -> Result<PathBuf, CliError> {
    let plain = folder.join(name);
    let packed = folder.join(format!("{name}.gz"));
    [plain, packed]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| CliError::Usage(format!("{} has neither {name} nor {name}.gz", folder.display())))
}

fn for_each_line(path: &Path, mut take: impl FnMut(u64, &[u8]) -> Result<(), CliError>) -> Result<(), CliError> {
    for line in Lines::new(lines::open(path)?.reader, LINE_BYTES_MAX) {
        match line.map_err(|source| CliError::io(format!("cannot read {}", path.display()), source))? {
            (_, Line::Text(text)) if text.trim_ascii().is_empty() => {}
            (number, Line::Text(text)) => take(number, &text)?,
            (number, Line::TooLong) => return Err(wrong(path, number, "the line is too long".to_owned())),
        }
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(path: &Path, number: u64, text: &[u8]) -> Result<T, CliError> {
    serde_json::from_slice(text).map_err(|error| wrong(path, number, error.to_string()))
}

fn wrong(path: &Path, number: u64, detail: String) -> CliError {
    CliError::Failed(format!("{}, line {number}: {detail}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    const QUERIES: &str =
        "{\"id\":\"1\",\"text\":\"one\"}\n\n{\"id\":\"2\",\"text\":\"two\"}\n{\"id\":\"3\",\"text\":\"three\",\"meta\":{}}\n";

    #[test]
    fn only_queries_with_a_judgement_above_0_count() {
        let qrels = "query-id\tdoc-id\tscore\n3\ta\t2\n3\tb\t0\n1\ta\t0\n9\ta\t1\r\n";
        let folder = folder(&[("queries.jsonl", QUERIES), ("qrels.tsv", qrels)]);
        let dataset = Dataset::read(folder.path()).unwrap();
        assert_eq!(dataset.queries.len(), 1);
        assert_eq!(dataset.queries[0].text, "three");
        assert_eq!(dataset.queries[0].judgements, HashMap::from([("a".to_owned(), 2.0), ("b".to_owned(), 0.0)]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let cases =
            [("1\ta\n", "line 1"), ("q\td\ts\n1\ta\tx\n", "line 2"), ("q\td\ts\n1\ta\tNaN\n", "line 2"), ("", "no query")];
        for (qrels, said) in cases {
            let folder = folder(&[("queries.jsonl", QUERIES), ("qrels.tsv", qrels)]);
            let error = Dataset::read(folder.path()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let missing = Dataset::read(folder(&[]).path()).unwrap_err();
        assert!(matches!(missing, CliError::Usage(_)) && missing.to_string().contains("qrels.tsv.gz"));
    }

    #[test]
    fn documents_become_lines_to_import() {
        let docs = "{\"id\":\"1\",\"title\":\"T\",\"text\":\"x\",\"meta\":{\"a\":1}}\n{\"id\":\"2\",\"title\":\"\",\"text\":\"y\"}\n{\"id\":3}\n";
        let folder = folder(&[("docs.jsonl", docs)]);
        let entries: Vec<Entry> = documents(folder.path()).unwrap().entries.map(Result::unwrap).collect();
        let line = |number: u64, text: &str| Entry::Line { number, text: text.as_bytes().to_vec() };
        assert_eq!(entries[0], line(1, "{\"id\":\"1\",\"title\":\"T\",\"text\":\"x\",\"metadata\":{\"a\":1}}"));
        assert_eq!(entries[1], line(2, "{\"id\":\"2\",\"text\":\"y\"}"));
        assert!(matches!(&entries[2], Entry::Refused(failure) if failure.line == 3));
    }
}
