//! Parsing: the text that spans refer to.

use crate::error::ServiceError;
use ragged_raft::shard::rows::TextFormat;

/// Width that HTML is laid out for: so wide that no sentence is broken for it.
const HTML_WIDTH: usize = 1_000_000;

/// The text of a document: Markdown and plain text as they are, HTML as the text that a reader sees. Blocking.
pub fn parse(text: String, format: TextFormat) -> Result<String, ServiceError> {
    match format {
        TextFormat::Plain | TextFormat::Markdown => Ok(text),
        TextFormat::Html => html2text::config::plain_no_decorate()
            .no_table_borders()
            .allow_width_overflow()
            .string_from_read(text.as_bytes(), HTML_WIDTH)
            .map_err(|fault| ServiceError::invalid("unreadable_html", format!("the HTML cannot be read: {fault}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_becomes_the_text_that_a_reader_sees() {
        let html = "<html><head><title>T</title><style>b{}</style><script>var x = 1;</script></head><body><h1>Head</h1><p>One &amp; two <b>three</b>.</p><ul><li>item</li></ul></body></html>";
        let text = parse(html.into(), TextFormat::Html).unwrap();
        assert!(text.contains("Head") && text.contains("One & two three.") && text.contains("item"), "{text}");
        assert!(!text.contains("var x") && !text.contains('<'), "{text}");
    }

    #[test]
    fn broken_html_is_no_panic() {
        for html in ["<", "<p", "<table><tr><td>", "&#xFFFFFFFF;", "<div>".repeat(2000).as_str(), "\0\u{1}<p>a"] {
            let _ = parse(html.to_owned(), TextFormat::Html);
        }
    }
}
