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

/// Bytes that a token of a chunk stands for at most.
const TOKEN_BYTES_MAX: usize = 32;
/// Bytes of a text up to which its chunks are balanced, for each token of a chunk. Longer texts make so many chunks that it does not matter. Longer
/// lines are cut into pieces of that length first.
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

/// Sizes of pieces of text, for a chunk that holds `capacity`.
struct Sizer<'a> {
    tokenizer: &'a TextTokenizer,
    capacity: usize,
}

impl ChunkSizer for Sizer<'_> {
    /// A model may take a very long word for one token; it counts by its length, so that a chunk's text is bounded whatever it is. What is
    /// too long for that reason alone is not counted: splitters ask for the size of all that is left of a text.
    fn size(&self, text: &str) -> usize {
        let least = text.len() / TOKEN_BYTES_MAX;
        if least > self.capacity { least } else { self.tokenizer.count(text).max(least) }
    }
}

impl Chunker<'_> {
    /// Cuts a text. There is always at least one chunk; none is empty unless the text is. Blocking.
    pub fn chunks(&self, title: &str, text: &str, format: TextFormat) -> Result<Vec<ChunkText>, ServiceError> {
        let capacity = self.capacity(title);
        // A token has at least one byte: short texts need no counting.
        if text.len() <= capacity {
            return Ok(vec![whole(text)]);
        }
        let mut chunks = Vec::new();
        for (start, section) in sections(text, capacity * BALANCED_BYTES) {
            self.split(section, start, capacity, format, &mut chunks)?;
            if chunks.len() > CHUNKS_MAX {
                return Err(ServiceError::invalid(
                    "too_many_chunks",
                    format!("the text makes more than {CHUNKS_MAX} chunks: upload it in parts, or with longer chunks"),
                ));
            }
        }
        Ok(if chunks.is_empty() { vec![whole(text)] } else { chunks })
    }

    /// Cuts a section that begins at byte `offset` of its text.
    fn split(
        &self,
        section: &str,
        offset: usize,
        capacity: usize,
        format: TextFormat,
        chunks: &mut Vec<ChunkText>,
    ) -> Result<(), ServiceError> {
        let overlap = self.overlap.min(capacity / 2);
        let sizer = Sizer { tokenizer: self.tokenizer, capacity };
        let tokens = (section.len() <= capacity * BALANCED_BYTES).then(|| sizer.size(section));
        let mut push = |(start, piece): (usize, &str)| {
            let start = offset + start;
            chunks.push(ChunkText { start: start as u64, end: (start + piece.len()) as u64, text: piece.to_owned() });
        };
        if tokens.is_some_and(|tokens| tokens <= capacity) {
            if !section.trim().is_empty() {
                push((0, section));
            }
            return Ok(());
        }
        let config = ChunkConfig::new(tokens.map_or(capacity, |tokens| balanced(tokens, capacity, overlap)))
            .with_sizer(sizer)
            .with_overlap(overlap)
            .map_err(|fault| ServiceError::internal(format!("chunk settings: {fault}")))?;
        match format {
            TextFormat::Markdown => MarkdownSplitter::new(config).chunk_indices(section).take(CHUNKS_MAX + 1).for_each(push),
            TextFormat::Plain | TextFormat::Html => {
                TextSplitter::new(config).chunk_indices(section).take(CHUNKS_MAX + 1).for_each(push);
            }
        }
        Ok(())
    }

    /// What a title adds to each of its document's chunks: as much of it as chunks have room for.
    pub fn embedded_title<'t>(&self, title: &'t str) -> &'t str {
        let room = self.tokens / TITLE_SHARE;
        if self.tokenizer.count(title) <= room {
            return title;
        }
        let ends: Vec<usize> = title.char_indices().map(|(at, _)| at).collect();
        let fitting = ends.partition_point(|end| self.tokenizer.count(&title[..*end]) <= room);
        title[..ends[fitting.saturating_sub(1)]].trim_end()
    }

    /// Tokens that are left for the text.
    fn capacity(&self, title: &str) -> usize {
        let title_tokens = self.tokenizer.count(title).min(self.tokens / TITLE_SHARE);
        self.tokens.saturating_sub(SPECIAL_TOKENS + title_tokens).max(1)
    }
}

/// The parts that a text is cut in before it is split, with the bytes that they begin at: mostly one. Lines of more than `longest` bytes, such as
/// books without paragraphs and encoded data, are cut: the splitter looks for a chunk's end in the whole rest of a line, which takes a time
/// that grows with the square of its length.
fn sections(text: &str, longest: usize) -> Vec<(usize, &str)> {
    let (mut sections, mut begin, mut line) = (Vec::new(), 0, 0);
    for end in text.match_indices('\n').map(|(at, _)| at + 1).chain([text.len()]) {
        while end - line > longest {
            line += cut(&text[line..text.floor_char_boundary(line + longest)]);
            sections.push((begin, &text[begin..line]));
            begin = line;
        }
        line = end;
    }
    if begin < text.len() {
        sections.push((begin, &text[begin..]));
    }
    sections
}

/// Where to cut a piece of a line: behind the last sentence in its second half, else behind the last word there, else at its end.
fn cut(piece: &str) -> usize {
    let half = piece.floor_char_boundary(piece.len() / 2);
    let second = &piece[half..];
    let is_end = |(at, mark): &(usize, &str)| {
        !mark.is_ascii() || second[at + mark.len()..].chars().next().is_some_and(char::is_whitespace)
    };
    let sentence = second.rmatch_indices(['.', '!', '?', '。', '！', '？', '।']).find(is_end).map(|(at, mark)| at + mark.len());
    let word =
        || second.char_indices().rfind(|(_, character)| character.is_whitespace()).map(|(at, space)| at + space.len_utf8());
    half + sentence.or_else(word).unwrap_or(second.len())
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
pub fn embedded_text(embedded_title: &str, chunk: &ChunkText) -> String {
    if embedded_title.is_empty() { chunk.text.clone() } else { format!("{embedded_title} {}", chunk.text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ragged_kernels::Model;

    fn sentences(count: usize) -> String {
        (0..count).map(|number| format!("Sentence number {number} says that water is wet and stones are not. ")).collect()
    }

    #[test]
    fn chunks_are_spans_within_the_limit_that_leave_nothing_out() {
        let Some(folder) = crate::installed_model::model_dir() else { return };
        let model = Model::load(&folder).unwrap();
        let chunker = Chunker { tokenizer: model.tokenizer(), tokens: 64, overlap: 16 };
        let markdown = format!("# One\n\n{}\n\n## Two\n\n- {}\n- Grüße, 東京\n", sentences(20), sentences(3));
        let unbroken = "a1".repeat(3_000);
        for (text, format) in [
            (sentences(9), TextFormat::Plain),
            (sentences(1_000), TextFormat::Plain),
            (markdown, TextFormat::Markdown),
            (format!("Before. {unbroken} After. {}", sentences(9)), TextFormat::Plain),
            (unbroken, TextFormat::Plain),
            ("東京".repeat(5_000), TextFormat::Plain),
        ] {
            let chunks = chunker.chunks("A title", &text, format).unwrap();
            let mut covered = 0;
            for chunk in &chunks {
                let (start, end) = (chunk.start as usize, chunk.end as usize);
                assert_eq!(text.get(start..end), Some(chunk.text.as_str()));
                assert!(!chunk.text.trim().is_empty() && chunk.text.len() <= 64 * TOKEN_BYTES_MAX);
                assert!(model.tokenizer().count(&embedded_text("A title", chunk)) <= 62, "{:?}", chunk.text);
                assert!(start <= covered || text[covered..start].trim().is_empty(), "{:?} is in no chunk", &text[covered..start]);
                covered = covered.max(end);
            }
            assert!(text[covered..].trim().is_empty());
            assert!(chunks.len() > 1);
        }
    }

    #[test]
    fn a_long_title_leaves_room_for_the_text() {
        let Some(folder) = crate::installed_model::model_dir() else { return };
        let model = Model::load(&folder).unwrap();
        let chunker = Chunker { tokenizer: model.tokenizer(), tokens: 256, overlap: 32 };
        let title = "Ünïcode title ".repeat(70);
        let cut = chunker.embedded_title(&title);
        assert!(title.starts_with(cut) && model.tokenizer().count(cut) <= 64 && model.tokenizer().count(cut) > 58);
        assert_eq!(chunker.embedded_title("short"), "short");
        for chunk in chunker.chunks(&title, &sentences(60), TextFormat::Plain).unwrap() {
            assert!(model.tokenizer().count(&embedded_text(cut, &chunk)) <= 254);
        }
    }

    #[test]
    fn a_text_little_longer_than_a_chunk_makes_two_of_about_the_same_length() {
        let Some(folder) = crate::installed_model::model_dir() else { return };
        let model = Model::load(&folder).unwrap();
        let chunker = Chunker { tokenizer: model.tokenizer(), tokens: 256, overlap: 32 };
        let text = sentences(21);
        let lengths: Vec<usize> = (chunker.chunks("", &text, TextFormat::Plain).unwrap().iter())
            .map(|chunk| model.tokenizer().count(&chunk.text))
            .collect();
        assert!(model.tokenizer().count(&text) < 256 + 64, "the text is to be little longer than a chunk");
        assert!(lengths.len() == 2 && lengths.iter().all(|length| (120..200).contains(length)), "{lengths:?}");
    }

    #[test]
    fn balanced_chunks_are_as_few_as_full_ones_would_be() {
        for (capacity, overlap) in [(254, 32), (62, 16), (1, 0), (14, 7)] {
            for tokens in capacity + 1..capacity * 20 {
                let (full, even) = (capacity - overlap, balanced(tokens, capacity, overlap) - overlap);
                assert!(even <= full && (tokens - overlap).div_ceil(even) == (tokens - overlap).div_ceil(full));
            }
        }
    }
}
