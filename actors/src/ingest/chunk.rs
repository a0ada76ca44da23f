//! Chunking: texts are cut where they may be cut best, by the model's tokens.

use crate::error::ServiceError;
use ragged_kernels::TextTokenizer;
use ragged_raft::shard::rows::{ChunkText, TextFormat};
use text_splitter::{ChunkConfig, ChunkSizer, MarkdownSplitter, TextSplitter};

/// Chunks of a document at most.
pub const CHUNKS_MAX: usize = 20_000;
/// Tokens that the model adds to every text of its own: the begin and the end.
const SPECIAL_TOKENS: usize = 2;
/// Tokens of a chunk that its document's title may take at most, as a fraction of the chunk.
const TITLE_SHARE: usize = 4;

/// Bytes of a text up to which its chunks are balanced, for each token of a chunk. Longer texts make so many chunks that it does not matter.
const BALANCED_BYTES: usize = 64;

/// How a collection's texts are cut.
#[derive(Clone, Copy)]
pub struct Chunker<'a> {
    /// Counts tokens.
    pub tokenizer: &'a TextTokenizer,
    /// Tokens of a chunk at most, with its title and the model's own.
    pub tokens: usize,
    /// Tokens that neighbouring chunks share.
    pub overlap: usize,
}

struct Tokens<'a>(&'a TextTokenizer);

impl ChunkSizer for Tokens<'_> {
    fn size(&self, chunk: &str) -> usize {
        self.0.count(chunk)
    }
}

impl Chunker<'_> {
    /// Cuts a text. There is always at least one chunk; none is empty unless the text is. Blocking.
    pub fn chunks(&self, title: &str, text: &str, format: TextFormat) -> Result<Vec<ChunkText>, ServiceError> {
        let capacity = self.capacity(title);
        let overlap = self.overlap.min(capacity / 2);
        // A token has at least one byte: short texts need no counting.
        if text.len() <= capacity {
            return Ok(vec![whole(text)]);
        }
        let tokens = (text.len() <= capacity * BALANCED_BYTES).then(|| self.tokenizer.count(text));
        if tokens.is_some_and(|tokens| tokens <= capacity) {
            return Ok(vec![whole(text)]);
        }
        let config = ChunkConfig::new(tokens.map_or(capacity, |tokens| balanced(tokens, capacity, overlap)))
            .with_sizer(Tokens(self.tokenizer))
            .with_overlap(overlap)
            .map_err(|fault| ServiceError::internal(format!("chunk settings: {fault}")))?;
        let pieces: Vec<(usize, &str)> = match format {
            TextFormat::Markdown => MarkdownSplitter::new(config).chunk_indices(text).take(CHUNKS_MAX + 1).collect(),
            TextFormat::Plain | TextFormat::Html => TextSplitter::new(config).chunk_indices(text).take(CHUNKS_MAX + 1).collect(),
        };
        if pieces.len() > CHUNKS_MAX {
            return Err(ServiceError::invalid(
                "too_many_chunks",
                format!("the text makes more than {CHUNKS_MAX} chunks: upload it in parts, or with longer chunks"),
            ));
        }
        if pieces.is_empty() {
            return Ok(vec![whole(text)]);
        }
        Ok(pieces
            .into_iter()
            .map(|(start, piece)| ChunkText { start: start as u64, end: (start + piece.len()) as u64, text: piece.to_owned() })
            .collect())
    }

    /// Tokens that are left for the text.
    fn capacity(&self, title: &str) -> usize {
        let title_tokens = self.tokenizer.count(title).min(self.tokens / TITLE_SHARE);
        self.tokens.saturating_sub(SPECIAL_TOKENS + title_tokens).max(1)
    }
}

/// Capacity with which a text of so many tokens makes chunks of about the same length, as few as with the whole `capacity`. A text that is
/// little longer than a chunk would otherwise leave a remainder of a few words, which says little and, being short, ranks too high.
fn balanced(tokens: usize, capacity: usize, overlap: usize) -> usize {
    let chunks = (tokens - overlap).div_ceil(capacity - overlap);
    let even = (tokens + (chunks - 1) * overlap).div_ceil(chunks);
    // Chunks end where sentences do, so they need some room.
    (even + capacity / 10).min(capacity)
}

/// A text that is one chunk.
pub fn whole(text: &str) -> ChunkText {
    ChunkText { start: 0, end: text.len() as u64, text: text.to_owned() }
}

/// What a chunk is embedded as: the title says what the text is about.
pub fn embedded_text(title: &str, chunk: &ChunkText) -> String {
    if title.is_empty() { chunk.text.clone() } else { format!("{title} {}", chunk.text) }
}
