//! The part of a hit's text that says why it was found, on one line.

/// Characters of a snippet, about two lines of a terminal.
const SNIPPET_CHARS: usize = 240;

/// Words of a query that are shorter carry little meaning; they count only when there are no others.
const SHORT_WORD_CHARS: usize = 3;

/// A word that shares so many first letters with one of the query, and differs in no more than an ending, is taken for a form of it.
const STEM_CHARS: usize = 4;

/// The stretch of a text with most of the query's words, each passed through `mark`. Without any of them, as in a search by
/// meaning, it is the beginning.
pub fn of(text: &str, query: &str, mark: impl Fn(&str) -> String) -> String {
    let text = flat(text);
    let wanted = query_words(query);
    let matches: Vec<(usize, usize)> = words(&text).filter(|&(start, end)| is_wanted(&text[start..end], &wanted)).collect();
    let (start, end) = window(&text, &matches);
    let mut snippet = String::new();
    if start > 0 {
        snippet.push_str("... ");
    }
    let mut position = start;
    for (from, to) in matches.into_iter().filter(|&(from, to)| from >= start && to <= end) {
        snippet.push_str(&text[position..from]);
        snippet.push_str(&mark(&text[from..to]));
        position = to;
    }
    snippet.push_str(text[position..end].trim_end());
    if end < text.len() {
        snippet.push_str(" ...");
    }
    snippet
}

/// Everything on one line, single blanks between words, nothing that commands a terminal.
fn flat(text: &str) -> String {
    crate::cli::output::printable(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Where the words of a text begin and end, in bytes.
fn words(text: &str) -> impl Iterator<Item = (usize, usize)> {
    text.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()).map(move |word| {
        // A part of a string knows where it is: its address is within the whole.
        let start = word.as_ptr() as usize - text.as_ptr() as usize;
        (start, start + word.len())
    })
}

fn query_words(query: &str) -> Vec<String> {
    let all: Vec<String> = words(query).map(|(start, end)| query[start..end].to_lowercase()).collect();
    let long: Vec<String> = all.iter().filter(|word| word.chars().count() > SHORT_WORD_CHARS).cloned().collect();
    if long.is_empty() { all } else { long }
}

fn is_wanted(word: &str, wanted: &[String]) -> bool {
    let word = word.to_lowercase();
    wanted.iter().any(|wanted| {
        let shared = word.chars().zip(wanted.chars()).take_while(|(one, other)| one == other).count();
        let (length, wanted_length) = (word.chars().count(), wanted.chars().count());
        let equal = shared == length && shared == wanted_length;
        equal || (shared >= STEM_CHARS && shared + 1 >= length.min(wanted_length) && shared + 3 >= length.max(wanted_length))
    })
}

/// The bytes to show: as long as a snippet may be, from a bit before the first of the matches that fit in together.
fn window(text: &str, matches: &[(usize, usize)]) -> (usize, usize) {
    let boundaries: Vec<usize> = text.char_indices().map(|(index, _)| index).chain([text.len()]).collect();
    let letters = boundaries.len() - 1;
    if letters <= SNIPPET_CHARS {
        return (0, text.len());
    }
    let letter_of = |byte: usize| boundaries.partition_point(|&boundary| boundary < byte);
    let lead = SNIPPET_CHARS / 6;
    let fitting = |&(start, _): &(usize, usize)| {
        let first = letter_of(start);
        matches.iter().filter(|&&(from, to)| from >= start && letter_of(to) <= first + SNIPPET_CHARS - lead).count()
    };
    // The first of the best, so that the window does not jump about.
    let best = matches.iter().rev().max_by_key(|&one| fitting(one)).map_or(0, |&(start, _)| letter_of(start));
    let first = best.saturating_sub(lead).min(letters - SNIPPET_CHARS);
    let start = if first == 0 { 0 } else { word_start(text, boundaries[first]) };
    let end = boundaries[(letter_of(start) + SNIPPET_CHARS).min(letters)];
    (start, if end == text.len() { end } else { word_end(text, start, end) })
}

/// The start of the next word, unless that is far.
fn word_start(text: &str, byte: usize) -> usize {
    text[byte..].find(' ').filter(|&distance| distance < 20).map_or(byte, |distance| byte + distance + 1)
}

/// The end of the last whole word.
fn word_end(text: &str, start: usize, byte: usize) -> usize {
    text[start..byte].rfind(' ').filter(|&length| length + 20 > byte - start).map_or(byte, |length| start + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(word: &str) -> String {
        format!("[{word}]")
    }

    #[test]
    fn words_of_the_query_and_their_forms_are_marked() {
        let text = "Replicas are\n\trepaired; a replica that REPAIRS itself. Reply.";
        assert_eq!(
            of(text, "how are replicas repaired?", mark),
            "[Replicas] are [repaired]; a [replica] that [REPAIRS] itself. Reply."
        );
        assert_eq!(of("an ox is an ox", "ox", mark), "an [ox] is an [ox]");
    }

    #[test]
    fn a_long_text_is_cut_around_most_of_the_matches() {
        let filler = "lorem ipsum dolor sit amet ".repeat(40);
        let text = format!("{filler} quorum {filler} the quorum of replicas decides {filler}");
        let snippet = of(&text, "quorum replicas", mark);
        assert!(snippet.contains("[quorum] of [replicas] decides"), "{snippet}");
        assert!(snippet.starts_with("... ") && snippet.ends_with(" ..."), "{snippet}");
        assert!(snippet.chars().count() <= SNIPPET_CHARS + 20, "{}", snippet.chars().count());
    }

    #[test]
    fn without_a_match_it_is_the_beginning() {
        let text = "word ".repeat(200);
        let snippet = of(&text, "nothing", mark);
        assert!(snippet.starts_with("word word") && snippet.ends_with("word ..."), "{snippet}");
    }

    #[test]
    fn any_script_and_any_length_is_cut_between_characters() {
        for letter in ["ä", "語", "🦀", "a"] {
            for count in [0, 1, SNIPPET_CHARS - 1, SNIPPET_CHARS, SNIPPET_CHARS + 1, 3 * SNIPPET_CHARS] {
                let text = format!("{} quorum {}", letter.repeat(count), letter.repeat(count));
                let snippet = of(&text, "quorum", mark);
                assert!(snippet.contains("[quorum]"), "{letter} {count}: {snippet}");
            }
        }
    }
}
