//! How text becomes search terms: the same way for stored chunks, for the tail and for queries.
//!
//! Unicode's compatibility forms are unified (NFKC), words are runs of letters, digits and their combining marks, in lower case; then
//! come the language's stop words and stemmer, and last the accents of Latin and Greek letters are dropped, so that `café` finds `cafe`.
//! Scripts that write no spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) and Korean, whose particles stick to their words, become
//! pairs of neighbouring characters; single characters are indexed as well where one character can be a word.

use std::borrow::Cow;
use std::collections::HashMap;
use tantivy::tokenizer::{Language, Stemmer, StopWordFilter, TextAnalyzer, Token, TokenFilter, TokenStream, Tokenizer};
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Longest term in bytes; longer words are cut, in texts and in queries alike.
const TERM_BYTES_MAX: usize = 120;
/// Distinct terms of a query that are looked for; those that come later are not.
const QUERY_TERMS_MAX: usize = 256;

/// Turns text into terms, for one language.
#[derive(Clone)]
pub(super) struct Analyzer {
    texts: TextAnalyzer,
    queries: TextAnalyzer,
}

impl Analyzer {
    /// For an ISO 639-1 code that there is a stemmer for; anything else is split into words only.
    pub(super) fn new(language: &str) -> Self {
        Analyzer { texts: build(language, Purpose::Text), queries: build(language, Purpose::Query) }
    }

    /// What the text index is given.
    pub(super) fn for_texts(&self) -> TextAnalyzer {
        self.texts.clone()
    }

    /// Calls `take` with every term of a stored text, in order.
    pub(super) fn each_term(&self, text: &str, mut take: impl FnMut(&str)) {
        let mut analyzer = self.texts.clone();
        let mut stream = analyzer.token_stream(text);
        while stream.advance() {
            take(&stream.token().text);
        }
    }

    /// Distinct terms of a query with how often each occurs, in the order of their first occurrence.
    pub(super) fn query_terms(&self, text: &str) -> Vec<(String, u32)> {
        let mut terms: Vec<(String, u32)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut analyzer = self.queries.clone();
        let mut stream = analyzer.token_stream(text);
        while stream.advance() {
            let term = &stream.token().text;
            match places.get(term) {
                Some(place) => terms[*place].1 += 1,
                None if terms.len() < QUERY_TERMS_MAX => {
                    places.insert(term.clone(), terms.len());
                    terms.push((term.clone(), 1));
                }
                None => {}
            }
        }
        terms
    }
}

/// Calls `take` with the lower-case words of a text as [`Test::Match`](crate::filter::Test) compares them: neither stemmed nor stopped.
pub(super) fn each_word(text: &str, is_query: bool, mut take: impl FnMut(&str)) {
    let mut words = WordTokenizer { purpose: if is_query { Purpose::Query } else { Purpose::Text }, token: Token::default() };
    let mut stream = words.token_stream(text);
    while stream.advance() {
        take(&stream.token().text);
    }
}

fn build(language: &str, purpose: Purpose) -> TextAnalyzer {
    let words = WordTokenizer { purpose, token: Token::default() };
    let Some(language) = language_of(language) else { return TextAnalyzer::builder(words).filter(Fold).build() };
    let stemmer = Stemmer::new(language);
    match StopWordFilter::new(language) {
        Some(stop_words) => TextAnalyzer::builder(words).filter(stop_words).filter(stemmer).filter(Fold).build(),
        None => TextAnalyzer::builder(words).filter(stemmer).filter(Fold).build(),
    }
}

fn language_of(code: &str) -> Option<Language> {
    Some(match code {
        "ar" => Language::Arabic,
        "da" => Language::Danish,
        "de" => Language::German,
        "el" => Language::Greek,
        "en" => Language::English,
        "es" => Language::Spanish,
        "fi" => Language::Finnish,
        "fr" => Language::French,
        "hu" => Language::Hungarian,
        "it" => Language::Italian,
        "nl" => Language::Dutch,
        "no" => Language::Norwegian,
        "pt" => Language::Portuguese,
        "ro" => Language::Romanian,
        "ru" => Language::Russian,
        "sv" => Language::Swedish,
        "ta" => Language::Tamil,
        "tr" => Language::Turkish,
        _ => return None,
    })
}

/// What terms are made for. Where single characters are indexed beside pairs, a query asks for pairs if it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Text,
    Query,
}

/// How a run of characters is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    /// At spaces and punctuation.
    Spaced,
    /// Into pairs; one character can be a word.
    Ideographic,
    /// Into pairs; one character says nothing.
    Continuous,
}

fn script_of(character: char) -> Script {
    match u32::from(character) {
        0x3005 | 0x3007 | 0x3041..=0x309F | 0x30A1..=0x30FA | 0x30FC..=0x30FF | 0x31F0..=0x31FF => Script::Ideographic,
        0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF => Script::Ideographic,
        0x1100..=0x11FF | 0x3130..=0x318F | 0xAC00..=0xD7AF => Script::Ideographic,
        0x0E01..=0x0E3A | 0x0E40..=0x0E4E | 0x0E81..=0x0ECE => Script::Continuous,
        0x1000..=0x103F | 0x1050..=0x109F | 0x1780..=0x17D3 => Script::Continuous,
        _ => Script::Spaced,
    }
}

/// Characters inside words that are not part of them: soft hyphen, zero-width joiner and non-joiner, tatweel.
fn is_ignorable(character: char) -> bool {
    matches!(character, '\u{AD}' | '\u{200C}' | '\u{200D}' | '\u{640}')
}

/// Cuts text into words and pairs of characters, in lower case.
#[derive(Clone)]
struct WordTokenizer {
    purpose: Purpose,
    token: Token,
}

impl Tokenizer for WordTokenizer {
    type TokenStream<'a> = WordStream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> WordStream<'a> {
        self.token.reset();
        let text = if text.is_ascii() { Cow::Borrowed(text) } else { Cow::Owned(text.nfkc().collect()) };
        WordStream { text, at: 0, run: None, purpose: self.purpose, token: &mut self.token }
    }
}

/// Inside a run of a script without spaces.
struct Run {
    /// Where the character starts whose terms come next.
    at: usize,
    /// One past the run's last byte.
    end: usize,
    script: Script,
    is_single: bool,
    /// The character's own term has been given, its pair has not.
    single_given: bool,
}

/// The words of one text.
struct WordStream<'a> {
    text: Cow<'a, str>,
    at: usize,
    run: Option<Run>,
    purpose: Purpose,
    token: &'a mut Token,
}

impl WordStream<'_> {
    /// The next term of the run that the stream is in; false at its end.
    fn advance_in_run(&mut self) -> bool {
        let Some(run) = &mut self.run else { return false };
        let mut characters = self.text[run.at..run.end].chars();
        let Some(first) = characters.next() else {
            self.run = None;
            return false;
        };
        let wants_single = run.is_single || (run.script == Script::Ideographic && self.purpose == Purpose::Text);
        if wants_single && !run.single_given {
            run.single_given = true;
            self.token.text.extend(first.to_lowercase());
            return true;
        }
        run.at += first.len_utf8();
        run.single_given = false;
        match characters.next() {
            Some(second) => {
                self.token.text.push(first);
                self.token.text.push(second);
                true
            }
            None => {
                self.run = None;
                false
            }
        }
    }

    /// The end of the run of this script that starts at `start`, and whether it is one character long.
    fn run_end(&self, start: usize, script: Script) -> (usize, bool) {
        let mut count = 0;
        for (offset, character) in self.text[start..].char_indices() {
            if script_of(character) != script {
                return (start + offset, count == 1);
            }
            count += 1;
        }
        (self.text.len(), count == 1)
    }

    /// Reads the word that starts at `start` into the token and stands behind it.
    fn read_word(&mut self, start: usize) {
        let text = &mut self.token.text;
        for (offset, character) in self.text[start..].char_indices() {
            let continues = character.is_alphanumeric() || is_combining_mark(character) || is_ignorable(character);
            if !continues || script_of(character) != Script::Spaced {
                self.at = start + offset;
                return;
            }
            if !is_ignorable(character) && text.len() < TERM_BYTES_MAX {
                text.extend(character.to_lowercase());
            }
        }
        self.at = self.text.len();
    }
}

impl TokenStream for WordStream<'_> {
    fn advance(&mut self) -> bool {
        self.token.text.clear();
        self.token.position = self.token.position.wrapping_add(1);
        loop {
            if self.advance_in_run() {
                return true;
            }
            let mut rest = self.text[self.at..].char_indices();
            let found = rest.find(|(_, character)| character.is_alphanumeric() || script_of(*character) != Script::Spaced);
            let Some((offset, character)) = found else { return false };
            let start = self.at + offset;
            let script = script_of(character);
            if script == Script::Spaced {
                self.read_word(start);
                return true;
            }
            let (end, is_single) = self.run_end(start, script);
            self.run = Some(Run { at: start, end, script, is_single, single_given: false });
            self.at = end;
        }
    }

    fn token(&self) -> &Token {
        self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        self.token
    }
}

/// Drops accents; after the stemmer, which knows them.
#[derive(Clone)]
struct Fold;

impl TokenFilter for Fold {
    type Tokenizer<T: Tokenizer> = FoldTokenizer<T>;

    fn transform<T: Tokenizer>(self, tokenizer: T) -> FoldTokenizer<T> {
        FoldTokenizer { inner: tokenizer }
    }
}

#[derive(Clone)]
struct FoldTokenizer<T> {
    inner: T,
}

impl<T: Tokenizer> Tokenizer for FoldTokenizer<T> {
    type TokenStream<'a> = FoldStream<T::TokenStream<'a>>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> FoldStream<T::TokenStream<'a>> {
        FoldStream { inner: self.inner.token_stream(text) }
    }
}

struct FoldStream<S> {
    inner: S,
}

impl<S: TokenStream> TokenStream for FoldStream<S> {
    fn advance(&mut self) -> bool {
        if !self.inner.advance() {
            return false;
        }
        let token = self.inner.token_mut();
        if !token.text.is_ascii() {
            token.text = fold(&token.text);
        }
        true
    }

    fn token(&self) -> &Token {
        self.inner.token()
    }

    fn token_mut(&mut self) -> &mut Token {
        self.inner.token_mut()
    }
}

fn fold(term: &str) -> String {
    let mut folded = String::with_capacity(term.len());
    let mut base = ' ';
    for character in term.nfd() {
        match character {
            '\u{300}'..='\u{36F}' if is_accented_script(base) => {}
            '\u{308}' if base == 'е' => {} // ё is usually written е
            '\u{64B}'..='\u{652}' => {}    // Arabic vowel signs are usually left out
            'ß' => folded.push_str("ss"),
            'æ' => folded.push_str("ae"),
            'œ' => folded.push_str("oe"),
            'ø' => folded.push('o'),
            'đ' => folded.push('d'),
            'ł' => folded.push('l'),
            'ı' => folded.push('i'),
            'ς' => folded.push('σ'),
            other => folded.push(other),
        }
        if !is_combining_mark(character) {
            base = character;
        }
    }
    if folded.is_ascii() { folded } else { folded.nfc().collect() }
}

fn is_accented_script(character: char) -> bool {
    matches!(u32::from(character), 0x41..=0x24F | 0x370..=0x3FF | 0x1E00..=0x1FFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(language: &str, text: &str) -> Vec<String> {
        let mut terms = Vec::new();
        Analyzer::new(language).each_term(text, |term| terms.push(term.to_owned()));
        terms
    }

    fn query(language: &str, text: &str) -> Vec<String> {
        Analyzer::new(language).query_terms(text).into_iter().map(|(term, _)| term).collect()
    }

    #[test]
    fn english_is_stemmed_and_stopped() {
        assert_eq!(terms("en", "The Running of the Wings!"), ["run", "wing"]);
        assert_eq!(query("en", "wings wing WING"), ["wing"]);
    }

    #[test]
    fn accents_and_widths_make_no_difference() {
        assert_eq!(terms("none", "Café ＦＵＬＬ İstanbul ΣΊΣΥΦΟΣ"), ["cafe", "full", "istanbul", "σισυφοσ"]);
        assert_eq!(terms("de", "Müller Straße"), terms("de", "muller strasse"));
        assert_eq!(terms("ru", "йод ёлка"), terms("ru", "йод елка"));
    }

    #[test]
    fn scripts_without_spaces_become_pairs() {
        assert_eq!(terms("none", "東京都"), ["東", "東京", "京", "京都", "都"]);
        assert_eq!(query("none", "東京都"), ["東京", "京都"]);
        assert_eq!(query("none", "京"), ["京"]);
        assert_eq!(terms("none", "Rust言語 x"), ["rust", "言", "言語", "語", "x"]);
        assert_eq!(query("none", "ไทย"), ["ไท", "ทย"]);
    }

    #[test]
    fn marks_stay_in_their_words() {
        assert_eq!(terms("none", "हिन्दी भाषा").len(), 2);
    }

    #[test]
    fn every_query_term_of_a_text_is_a_term_of_it() {
        for text in ["東京都に行く", "ภาษาไทย", "한국어 텍스트", "hello 世界", "क्षत्रिय", "a\u{200d}b"]
        {
            let stored = terms("none", text);
            assert!(query("none", text).iter().all(|term| stored.contains(term)), "{text}");
            assert!(!stored.is_empty());
        }
    }

    #[test]
    fn a_query_has_a_bounded_number_of_terms() {
        let long: String = (0..1000).map(|number| format!("w{number} ")).collect();
        assert_eq!(query("none", &long).len(), QUERY_TERMS_MAX);
    }
}
