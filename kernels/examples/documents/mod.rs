//! Documents and queries in the form of ../shared/data, for the examples that measure.

use flate2::read::GzDecoder;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// A document, or a query, which has no title.
pub struct Document {
    #[allow(dead_code)] // not every example asks
    pub id: String,
    pub title: String,
    pub text: String,
}

impl Document {
    /// What is embedded: title and text.
    pub fn whole(&self) -> String {
        if self.title.is_empty() { self.text.clone() } else { format!("{} {}", self.title, self.text) }
    }
}

/// The lines of a file, gzipped.
pub fn lines(path: &Path) -> Result<impl Iterator<Item = std::io::Result<String>>, Box<dyn Error>> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(BufReader::new(GzDecoder::new(file)).lines())
}

/// The first documents of a `docs.jsonl.gz` or `queries.jsonl.gz`, at most so many.
pub fn read(path: &Path, count: usize) -> Result<Vec<Document>, Box<dyn Error>> {
    let mut documents = Vec::new();
    for line in lines(path)?.take(count) {
        let entry: serde_json::Value = serde_json::from_str(&line?)?;
        let field = |name: &str| entry[name].as_str().map(str::to_owned);
        documents.push(Document {
            id: field("id").ok_or("a line without id")?,
            title: field("title").unwrap_or_default(),
            text: field("text").ok_or("a line without text")?,
        });
    }
    Ok(documents)
}
