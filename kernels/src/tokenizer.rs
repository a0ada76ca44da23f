//! Texts to token ids.

use crate::model::ModelError;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::path::Path;
use tokenizers::{NormalizerWrapper, PostProcessor, PreTokenizerWrapper, Tokenizer, TruncationDirection};

/// Words whose token count is remembered: a few megabytes, and more than the vocabulary of most collections.
const REMEMBERED_WORDS_MAX: usize = 65_536;
/// Longer words are rare and would make the memory's size hard to foresee.
const REMEMBERED_WORD_BYTES_MAX: usize = 48;
/// Bytes of a text that are tokenized first for each token that is wanted; English has about five.
const PREFIX_BYTES_PER_TOKEN: usize = 16;

/// The token ids of one text, special tokens included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenSequence(pub Vec<u32>);

impl TokenSequence {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no tokens at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The tokenizer could not process a text. No text is known that causes this.
#[derive(Debug, thiserror::Error)]
#[error("the text cannot be tokenized: {0}")]
pub struct TokenizeError(String);

/// Turns texts into token ids for one model. Can be used by many threads at once.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    max_tokens: usize,
    /// Special tokens that every text gets.
    special_tokens: usize,
    /// Whether the tokens of a text are those of its words, one word after the other, where words are separated by
    /// ASCII white space.
    is_word_by_word: bool,
    remembered: RwLock<HashMap<Box<str>, u32>>,
}

impl TextTokenizer {
    /// Loads `tokenizer.json`. Its own truncation and padding are replaced: texts are truncated to `max_tokens`
    /// and never padded.
    pub(crate) fn load(path: &Path, max_tokens: usize) -> Result<Self, ModelError> {
        let bytes = std::fs::read(path).map_err(|source| ModelError::from_io(path, source))?;
        let unusable = |reason: String| ModelError::Tokenizer { path: path.to_owned(), reason };
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| unusable(error.to_string()))?;
        tokenizer.with_truncation(None).map_err(|error| unusable(error.to_string()))?.with_padding(None);
        let special_tokens = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if special_tokens >= max_tokens {
            return Err(unusable(format!(
                "it adds {special_tokens} special tokens, which leaves no room for text in {max_tokens} tokens"
            )));
        }
        Ok(Self {
            is_word_by_word: is_word_by_word(&tokenizer),
            tokenizer,
            max_tokens,
            special_tokens,
            remembered: RwLock::default(),
        })
    }

    /// The tokens of `text` with special tokens, truncated to [`Model::max_tokens`](crate::Model::max_tokens).
    /// Takes time for little more of a long text than is kept.
    ///
    /// # Errors
    /// If the tokenizer fails; no text is known that makes it fail.
    pub fn encode(&self, text: &str) -> Result<TokenSequence, TokenizeError> {
        let wanted = self.max_tokens - self.special_tokens;
        let mut prefix_bytes = wanted * PREFIX_BYTES_PER_TOKEN;
        let mut encoding = loop {
            let prefix = if self.is_word_by_word { prefix_of_words(text, prefix_bytes) } else { text };
            let encoding = self.tokenizer.encode_fast(prefix, false).map_err(failed)?;
            if prefix.len() == text.len() || encoding.len() >= wanted {
                break encoding;
            }
            prefix_bytes = prefix_bytes.saturating_mul(4);
        };
        encoding.truncate(wanted, 0, TruncationDirection::Right);
        let encoding = self.tokenizer.post_process(encoding, None, true).map_err(failed)?;
        Ok(TokenSequence(encoding.get_ids().to_vec()))
    }

    /// Number of tokens of `text`, without special tokens and without truncation.
    ///
    /// The counts of short words are remembered, so that long documents are counted at the speed of a table
    /// look-up for each word.
    pub fn count(&self, text: &str) -> usize {
        if !self.is_word_by_word {
            return self.count_directly(text);
        }
        let mut total = 0;
        let mut new_words: Vec<(&str, u32)> = Vec::new();
        {
            let remembered = self.remembered.read();
            for word in words(text) {
                if let Some(count) = remembered.get(word) {
                    total += *count as usize;
                    continue;
                }
                let count = self.count_directly(word);
                total += count;
                if word.len() <= REMEMBERED_WORD_BYTES_MAX && new_words.len() < REMEMBERED_WORDS_MAX {
                    new_words.push((word, count as u32));
                }
            }
        }
        if !new_words.is_empty() {
            let mut remembered = self.remembered.write();
            for (word, count) in new_words {
                if remembered.len() >= REMEMBERED_WORDS_MAX {
                    // Starting over is as good as any other choice here: common words are back at once.
                    remembered.clear();
                }
                remembered.insert(word.into(), count);
            }
        }
        total
    }

    fn count_directly(&self, text: &str) -> usize {
        match self.tokenizer.encode_fast(text, false) {
            Ok(encoding) => encoding.len(),
            Err(error) => {
                // Cannot happen as far as known; one token for each byte is more than there can be.
                tracing::warn!(%error, "the tokenizer failed to count");
                text.len()
            }
        }
    }
}

fn failed(error: tokenizers::Error) -> TokenizeError {
    TokenizeError(error.to_string())
}

/// BERT's pre-tokenizer splits at white space, and its normalizer changes each character for itself, never joining
/// what ASCII white space separates (other white space may be a control character, which the normalizer removes).
/// No added token may contain white space or match across it.
fn is_word_by_word(tokenizer: &Tokenizer) -> bool {
    let splits_at_white_space = matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)));
    let keeps_words_apart = matches!(tokenizer.get_normalizer(), None | Some(NormalizerWrapper::BertNormalizer(_)));
    let added_tokens_are_words =
        tokenizer.get_added_tokens_decoder().values().all(|token| !token.content.contains(char::is_whitespace));
    splits_at_white_space && keeps_words_apart && added_tokens_are_words
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', '\t', '\n', '\r']).filter(|word| !word.is_empty())
}

/// The words of `text` that begin within its first `size_bytes` bytes.
fn prefix_of_words(text: &str, size_bytes: usize) -> &str {
    if text.len() <= size_bytes {
        return text;
    }
    let rest = &text.as_bytes()[size_bytes..];
    match rest.iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
        // An ASCII byte is always a character of its own, so this is a character's border.
        Some(distance) => &text[..size_bytes + distance],
        None => text,
    }
}
