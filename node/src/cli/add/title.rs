//! Finds the title of a text.

use ragged_client::Format;

/// Bytes of a title at most, as nodes take it.
pub const TITLE_BYTES_MAX: usize = 1024;

/// The title that a text gives itself: the first heading of Markdown, the title or first heading of HTML.
pub fn of(text: &str, format: Format) -> Option<String> {
    let found = match format {
        Format::Plain => None,
        Format::Markdown => markdown(text),
        Format::Html => html(text),
    }?;
    let title = found.split_whitespace().collect::<Vec<_>>().join(" ");
    (!title.is_empty()).then(|| shorten(title))
}

/// A title cut to what nodes take.
pub fn shorten(mut title: String) -> String {
    let is_boundary = |bytes: &usize| title.is_char_boundary(*bytes);
    let kept = (0..=TITLE_BYTES_MAX.min(title.len())).rev().find(is_boundary);
    title.truncate(kept.unwrap_or(0));
    title
}

fn markdown(text: &str) -> Option<String> {
    let mut fence: Option<&str> = None;
    let mut above = "";
    for line in without_front_matter(text).lines() {
        let indented = line.starts_with("    ") || line.starts_with('\t');
        let line = line.trim();
        let mark = ["```", "~~~"].into_iter().find(|mark| line.starts_with(mark));
        match (fence, mark) {
            (Some(open), Some(mark)) if open == mark => fence = None,
            (Some(_), _) => {}
            (None, Some(mark)) => fence = Some(mark),
            (None, None) => {
                if let Some(heading) = atx_heading(line).filter(|_| !indented) {
                    return Some(heading);
                }
                if !above.is_empty() && is_underline(line) {
                    return Some(plain(above));
                }
            }
        }
        above = if fence.is_none() && !indented { line } else { "" };
    }
    None
}

/// The text after the YAML block that some Markdown begins with.
fn without_front_matter(text: &str) -> &str {
    let Some(rest) = text.strip_prefix("---\n").or_else(|| text.strip_prefix("---\r\n")) else { return text };
    rest.find("\n---").and_then(|end| rest[end + 4..].split_once('\n')).map_or(text, |(_, body)| body)
}

/// `## Heading ##` -> `Heading`.
fn atx_heading(line: &str) -> Option<String> {
    let level = line.bytes().take_while(|byte| *byte == b'#').count();
    let rest = &line[level..];
    let is_heading = (1..=6).contains(&level) && rest.starts_with([' ', '\t']);
    is_heading.then(|| plain(rest.trim().trim_end_matches('#'))).filter(|heading| !heading.trim().is_empty())
}

fn is_underline(line: &str) -> bool {
    !line.is_empty() && (line.bytes().all(|byte| byte == b'=') || (line.len() > 2 && line.bytes().all(|byte| byte == b'-')))
}

/// Words without the marks of Markdown: `[text](address)` -> `text`, `![image](address)` -> nothing, no `*` and backquotes.
fn plain(text: &str) -> String {
    let mut words = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let is_image = rest[..open].ends_with('!');
        let Some(close) = rest[open..].find("](").map(|close| open + close) else { break };
        let Some(end) = rest[close..].find(')').map(|end| close + end) else { break };
        words.push_str(&rest[..open - usize::from(is_image)]);
        if !is_image {
            words.push_str(&rest[open + 1..close]);
        }
        rest = &rest[end + 1..];
    }
    words.push_str(rest);
    words.retain(|letter| !matches!(letter, '*' | '`'));
    words
}

fn html(text: &str) -> Option<String> {
    // ASCII letters only change, so that positions are the same in both.
    let lower = text.to_ascii_lowercase();
    ["title", "h1", "h2"].into_iter().find_map(|name| element(text, &lower, name))
}

/// What the first element of a name holds, as text.
fn element(text: &str, lower: &str, name: &str) -> Option<String> {
    let open = format!("<{name}");
    let mut from = 0;
    loop {
        let start = from + lower[from..].find(&open)?;
        from = start + open.len();
        // `<h1` also begins `<h1x>`.
        if !lower[from..].starts_with(['>', ' ', '\t', '\r', '\n', '/']) {
            continue;
        }
        let content = from + lower[from..].find('>')? + 1;
        let end = content + lower[content..].find(&format!("</{name}"))?;
        let said = unescape(&without_tags(&text[content..end]));
        return (!said.trim().is_empty()).then_some(said);
    }
}

fn without_tags(text: &str) -> String {
    let mut words = String::new();
    let mut inside = false;
    for letter in text.chars() {
        match letter {
            '<' => inside = true,
            '>' if inside => {
                inside = false;
                words.push(' ');
            }
            _ if !inside => words.push(letter),
            _ => {}
        }
    }
    words
}

/// The entities that titles have; others stay as they are.
fn unescape(text: &str) -> String {
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&apos;", "'"), ("&nbsp;", " ")];
    // The ampersand comes last, so that `&amp;lt;` becomes `&lt;`.
    let text = named.iter().fold(text.to_owned(), |text, (entity, letter)| text.replace(entity, letter));
    text.replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn markdown(text: &str) -> Option<String> {
        of(text, Format::Markdown)
    }

    #[test]
    fn the_first_heading_of_markdown_is_its_title() {
        assert_eq!(markdown("text\n\n##  The *first* [heading](http://x) ##\n# Other").as_deref(), Some("The first heading"));
        assert_eq!(markdown("Under\nlined\n=====\n# Other").as_deref(), Some("lined"));
        assert_eq!(markdown("---\ntitle: x\n# no\n---\n# Yes").as_deref(), Some("Yes"));
        assert_eq!(markdown("```sh\n# a comment\n```\n# Real").as_deref(), Some("Real"));
        assert_eq!(markdown("    # code\n\n# `serde` ![badge](x)").as_deref(), Some("serde"));
        assert_eq!(markdown("#hashtag\n---\n\n- a\n---").as_deref(), Some("#hashtag"));
        assert_eq!(markdown("no heading\n\n---\n#\n"), None);
        assert_eq!(markdown(""), None);
    }

    #[test]
    fn html_has_its_title_or_its_first_heading() {
        let html = |text: &str| of(text, Format::Html);
        assert_eq!(html("<HTML><Title lang=en>\n A &amp; B &lt;c&gt;\n</TITLE><h1>H</h1>").as_deref(), Some("A & B <c>"));
        assert_eq!(html("<title> </title><h1 class='x'>One <em>two</em></h1>").as_deref(), Some("One two"));
        assert_eq!(html("<titles>no</titles><p>text"), None);
        assert_eq!(html("<title>never closed"), None);
    }

    #[test]
    fn titles_are_cut_between_characters() {
        let title = markdown(&format!("# a{}", "ä".repeat(TITLE_BYTES_MAX))).unwrap();
        assert_eq!(title.len(), TITLE_BYTES_MAX - 1);
        assert_eq!(of("# text", Format::Plain), None);
    }
}
