//! The text of an HTML page as a reader sees it.
//!
//! Works on the tokens of the page, without making a tree of them: the time and the memory that it takes grow with the page's length, however
//! deep it is nested and whatever its tables hold.

use html5ever::LocalName;
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};
use std::cell::RefCell;

/// The page's text: a line for each block, an empty line between paragraphs, two before a heading, so that chunks begin there.
pub fn text_of(html: &str) -> String {
    let tokenizer = Tokenizer::new(Page::default(), TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(StrTendril::from_slice(html));
    while !input.is_empty() {
        let _ = tokenizer.feed(&input); // ends early where a browser would do something, which nothing does here
    }
    tokenizer.end();
    tokenizer.sink.0.into_inner().text
}

/// What a tag does to the text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Nothing: it is inside a line.
    Inline,
    /// Ends the line; then come so many empty lines.
    Block(u8),
    /// Keeps cells of a table apart.
    Cell,
    /// What is in it is not shown.
    Hidden,
    /// White space in it is shown as it is.
    Preformatted,
}

fn effect_of(name: &LocalName) -> Effect {
    match &**name {
        "script" | "style" | "template" | "noframes" | "noembed" | "iframe" | "svg" | "math" | "object" | "select"
        | "datalist" | "title" | "head" => Effect::Hidden,
        "pre" | "textarea" | "listing" => Effect::Preformatted,
        "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => Effect::Block(2),
        "p" | "blockquote" | "ul" | "ol" | "dl" | "table" | "figure" | "article" | "section" | "header" | "footer" | "main"
        | "nav" | "aside" | "hr" | "form" | "fieldset" | "details" | "body" => Effect::Block(1),
        "div" | "li" | "dt" | "dd" | "tr" | "caption" | "figcaption" | "br" | "address" | "summary" | "option" | "legend" => {
            Effect::Block(0)
        }
        "td" | "th" => Effect::Cell,
        _ => Effect::Inline,
    }
}

#[derive(Default)]
struct Page(RefCell<Reader>);

/// The text so far, and where in the page it is.
#[derive(Default)]
struct Reader {
    text: String,
    /// What separates the text so far from what comes.
    gap: Gap,
    /// The hidden element that it is in, and how many elements of that name are open in it.
    hidden: Option<(LocalName, u32)>,
    preformatted: u32,
}

/// Space that is due before the next word.
#[derive(Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    #[default]
    None,
    Space,
    Lines(u8),
}

impl Reader {
    fn tag(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        let is_start = tag.kind == TagKind::StartTag;
        // Nothing closes `head` for certain; `body`, and what can only be in one, end it.
        if self.hidden.as_ref().is_some_and(|(name, _)| &**name == "head") && effect_of(&tag.name) != Effect::Hidden {
            let is_of_head = matches!(&*tag.name, "meta" | "link" | "base" | "noscript");
            if !is_of_head {
                self.hidden = None;
            }
        }
        if let Some((name, depth)) = &mut self.hidden {
            if *name == tag.name && !tag.self_closing {
                *depth = if is_start { *depth + 1 } else { depth.saturating_sub(1) };
                if *depth == 0 {
                    self.hidden = None;
                }
            }
            return if is_start { raw_text_of(&tag.name) } else { TokenSinkResult::Continue };
        }
        match effect_of(&tag.name) {
            Effect::Hidden if is_start && !tag.self_closing => self.hidden = Some((tag.name.clone(), 1)),
            Effect::Hidden | Effect::Inline => {}
            Effect::Block(empty) => self.gap = self.gap.max(Gap::Lines(empty + 1)),
            Effect::Cell => self.gap = self.gap.max(Gap::Space),
            Effect::Preformatted => {
                self.gap = self.gap.max(Gap::Lines(2));
                self.preformatted = if is_start { self.preformatted + 1 } else { self.preformatted.saturating_sub(1) };
            }
        }
        if is_start { raw_text_of(&tag.name) } else { TokenSinkResult::Continue }
    }

    fn characters(&mut self, characters: &str) {
        if self.hidden.is_some() {
            return;
        }
        if self.preformatted > 0 {
            self.close_gap();
            self.text.push_str(characters);
            return;
        }
        for (number, word) in characters.split(|character: char| character.is_ascii_whitespace()).enumerate() {
            if number > 0 {
                self.gap = self.gap.max(Gap::Space);
            }
            if !word.is_empty() {
                self.close_gap();
                self.text.push_str(word);
            }
        }
    }

    fn close_gap(&mut self) {
        match std::mem::take(&mut self.gap) {
            _ if self.text.is_empty() => {}
            Gap::None => {}
            Gap::Space => self.text.push(' '),
            Gap::Lines(count) => (0..count).for_each(|_| self.text.push('\n')),
        }
    }
}

/// How the tokenizer must read what follows a start tag: as the HTML standard has it, in some elements a `<` is a character like others.
fn raw_text_of(name: &LocalName) -> TokenSinkResult<()> {
    match &**name {
        "script" => TokenSinkResult::RawData(RawKind::ScriptData),
        "style" | "iframe" | "noembed" | "noframes" => TokenSinkResult::RawData(RawKind::Rawtext),
        "title" | "textarea" => TokenSinkResult::RawData(RawKind::Rcdata),
        "plaintext" => TokenSinkResult::Plaintext,
        _ => TokenSinkResult::Continue,
    }
}

impl TokenSink for Page {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut reader = self.0.borrow_mut();
        match token {
            Token::TagToken(tag) => reader.tag(&tag),
            Token::CharacterTokens(characters) => {
                reader.characters(&characters);
                TokenSinkResult::Continue
            }
            _ => TokenSinkResult::Continue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_becomes_the_text_that_a_reader_sees() {
        let html = "<!doctype html><html><head><title>T</title><style>b{}</style><script>var x = '</b>';</script></head>\
            <body><h1>Head</h1>\n<p>One &amp; two <b>thr</b>ee.</p><p>Next\n line</p><!-- no --><ul><li>item<li>other</ul>\
            <table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table><h2>Second</h2><pre>x\n  y</pre>z</body></html>";
        assert_eq!(
            text_of(html),
            "Head\n\n\nOne & two three.\n\nNext line\n\nitem\nother\n\na b\nc\n\n\nSecond\n\n\nx\n  y\n\nz"
        );
    }

    #[test]
    fn pages_without_their_outer_tags_are_read_too() {
        assert_eq!(text_of("just <i>text</i>"), "just text");
        assert_eq!(text_of("<head><meta charset=utf-8><p>no body tag"), "no body tag");
        assert_eq!(text_of("<script>if (a < b) { '<p>' }</script>after<br>it"), "after\nit");
        assert_eq!(text_of("<svg><svg><path/></svg>a</svg>b"), "b");
    }

    #[test]
    fn broken_and_hostile_pages_cost_no_more_than_their_length() {
        let cells = format!("<table><tr><td>{}", "<p>a paragraph in a cell".repeat(20_000));
        for html in [
            "<".to_owned(),
            "<p".to_owned(),
            "<table><tr><td>".to_owned(),
            "&#xFFFFFFFF;".to_owned(),
            "\0\u{1}<p>a".to_owned(),
            "<script>".to_owned(),
            "<div>".repeat(500_000),
            "<ul><li>x".repeat(100_000),
            "<svg>".repeat(100_000),
            cells,
        ] {
            assert!(text_of(&html).len() <= 2 * html.len());
        }
    }
}
