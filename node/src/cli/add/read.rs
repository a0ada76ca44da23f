//! Makes a document of a file.

use super::Failure;
use super::title;
use super::walk::Found;
use crate::cli::timestamp;
use ragged_client::{Format, NewDocument};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of a text at most, as nodes take it.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// Reads a file as a document, or says why it is none.
pub fn document(found: &Found) -> Result<NewDocument, Failure> {
    let fail = |code: &str, detail: String| Failure { path: found.path.display().to_string(), code: code.to_owned(), detail };
    let (bytes, metadata) = contents(&found.path).map_err(|error| fail("unreadable", error.to_string()))?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(fail("too_large", format!("the file is longer than {TEXT_BYTES_MAX} bytes")));
    }
    if bytes.contains(&0) {
        return Err(fail("binary", "the file holds zero bytes, so it is no text".to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        fail("invalid_utf8", format!("the file is not valid UTF-8 at byte {}", error.utf8_error().valid_up_to()))
    })?;
    // The mark that some editors put before a text is no part of it.
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    if text.trim().is_empty() {
        return Err(fail("empty", "the file has no text".to_owned()));
    }
    let name = found.path.file_name().map_or_else(|| found.id.clone(), |name| name.to_string_lossy().into_owned());
    Ok(NewDocument {
        id: Some(found.id.clone()),
        title: Some(title::of(&text, found.format).unwrap_or_else(|| title::shorten(name))),
        text,
        format: (found.format != Format::Plain).then_some(found.format),
        metadata: Some(metadata),
        vector: None,
    })
}

/// The bytes of a file, one more than allowed at most, and what is known about it.
fn contents(path: &Path) -> io::Result<(Vec<u8>, Map<String, Value>)> {
    let file = File::open(path)?;
    let about = file.metadata()?;
    let mut metadata = Map::new();
    metadata.insert("path".to_owned(), Value::from(path.to_string_lossy()));
    metadata.insert("size_bytes".to_owned(), Value::from(about.len()));
    if let Some(modified) = about.modified().ok().and_then(timestamp::of_system) {
        metadata.insert("modified".to_owned(), Value::from(modified));
    }
    let mut bytes = Vec::new();
    file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok((bytes, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: &[u8]) -> Result<NewDocument, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let found = Found { path, id: format!("sub/{name}"), format: Format::Markdown };
        document(&found).map_err(|failure| failure.code)
    }

    #[test]
    fn a_file_becomes_a_document() {
        let document = read("a.md", "\u{feff}# Ä title\ntext".as_bytes()).unwrap();
        assert_eq!(document.id.as_deref(), Some("sub/a.md"));
        assert_eq!(document.title.as_deref(), Some("Ä title"));
        assert_eq!(document.text, "# Ä title\ntext");
        let metadata = document.metadata.unwrap();
        assert_eq!(metadata["size_bytes"], 18);
        assert!(metadata["path"].as_str().unwrap().ends_with("/a.md"));
        assert!(metadata["modified"].as_str().unwrap().ends_with('Z'));
        assert_eq!(read("b.md", b"no heading").unwrap().title.as_deref(), Some("b.md"));
    }

    #[test]
    fn what_is_no_text_says_why() {
        assert_eq!(read("a.md", b"a\0b"), Err("binary".to_owned()));
        assert_eq!(read("a.md", b"a\xffb"), Err("invalid_utf8".to_owned()));
        assert_eq!(read("a.md", b" \n\t"), Err("empty".to_owned()));
        assert_eq!(read("a.md", b"\xef\xbb\xbf"), Err("empty".to_owned()));
        let missing = Found { path: "/no/such/file.md".into(), id: "x".into(), format: Format::Plain };
        assert_eq!(document(&missing).unwrap_err().code, "unreadable");
    }
}
