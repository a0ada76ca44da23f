//! Parsing: the text that spans refer to.

use crate::error::{ErrorKind, ServiceError};
use crate::ingest::document::TEXT_BYTES_MAX;
use crate::ingest::html;
use ragged_raft::shard::rows::TextFormat;

/// The text of a document: Markdown and plain text as they are, HTML as the text that a reader sees. Blocking.
pub fn parse(text: String, format: TextFormat) -> Result<String, ServiceError> {
    let text = match format {
        TextFormat::Plain | TextFormat::Markdown => text,
        TextFormat::Html => html::text_of(&text),
    };
    if text.len() > TEXT_BYTES_MAX {
        let detail = format!("the text has {} bytes once it is read, the limit is {TEXT_BYTES_MAX}", text.len());
        return Err(ServiceError::new(ErrorKind::TooLarge, "text_too_long", detail));
    }
    Ok(text)
}
