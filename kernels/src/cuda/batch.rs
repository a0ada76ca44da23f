//! Sequences packed for the GPU: one after the other, without padding between them.

use crate::tokenizer::TokenSequence;

/// Queries of one attention block; the kernel's `QUERIES`.
pub(crate) const ATTENTION_TILE: usize = 128;
/// Tokens of a short sequence: one for which half a block of attention is enough.
pub(crate) const SHORT_TOKENS: usize = ATTENTION_TILE / 2;
/// Words of a tile's description; the kernel's `AttentionTile`.
const TILE_WORDS: usize = 3;

/// How many rows, tiles and sequences there is room for. Batches of one shape have everything at the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BatchShape {
    /// Rows of the hidden state, one for each token.
    pub(crate) rows: usize,
    /// Blocks of attention, for each head.
    pub(crate) tiles: usize,
    /// Sequences.
    pub(crate) sequences: usize,
    /// Whether all of them are short.
    pub(crate) is_short: bool,
}

/// Rows of a batch with one short sequence: few different numbers, so that each is recorded once.
const QUERY_ROWS: [usize; 4] = [16, 32, 64, 128];
/// Larger batches have a multiple of this many rows, so that products of few different sizes are planned.
const ROWS_STEP: usize = 128;

/// Rows of the batch that has so many, and is not a single query.
pub(crate) fn whole_steps(rows: usize) -> usize {
    rows.max(1).next_multiple_of(ROWS_STEP)
}

impl BatchShape {
    /// The smallest shape that these sequences fit into.
    pub(crate) fn of(sequences: &[TokenSequence]) -> Self {
        let rows: usize = sequences.iter().map(TokenSequence::len).sum();
        let tiles = sequences.iter().map(|sequence| sequence.len().div_ceil(ATTENTION_TILE)).sum();
        match QUERY_ROWS.into_iter().find(|most| sequences.len() == 1 && rows <= *most) {
            Some(rows) => BatchShape { rows, tiles: rows.div_ceil(ATTENTION_TILE), sequences: 1, is_short: rows <= SHORT_TOKENS },
            None => {
                let is_short = sequences.iter().all(|sequence| sequence.len() <= SHORT_TOKENS);
                BatchShape { rows: whole_steps(rows), tiles, sequences: sequences.len(), is_short }
            }
        }
    }

    /// Whether it is one of the few shapes of a single query.
    pub(crate) fn is_query(self) -> bool {
        self.sequences == 1 && QUERY_ROWS.contains(&self.rows)
    }

    /// Words of a batch's description.
    pub(crate) fn words(self) -> usize {
        self.lengths() + self.sequences
    }

    /// Where the positions of the tokens in their sequences begin, in words; the tokens begin at 0.
    pub(crate) fn places(self) -> usize {
        self.rows
    }

    /// Where the descriptions of tiles begin.
    pub(crate) fn tiles_at(self) -> usize {
        2 * self.rows
    }

    /// Where the first rows of the sequences begin.
    pub(crate) fn first_rows(self) -> usize {
        self.tiles_at() + self.tiles * TILE_WORDS
    }

    /// Where the lengths of the sequences begin.
    pub(crate) fn lengths(self) -> usize {
        self.first_rows() + self.sequences
    }
}

/// Describes a batch: what `shape` says, in its order. Rows and tiles past the sequences' are zeros: token 0 at place 0, and tiles that are not there.
pub(crate) fn describe(sequences: &[TokenSequence], shape: BatchShape) -> Vec<u32> {
    let mut words = vec![0u32; shape.words()];
    let (mut row, mut tile) = (0, shape.tiles_at());
    for (number, sequence) in sequences.iter().enumerate() {
        let length = sequence.len();
        words[row..row + length].copy_from_slice(&sequence.0);
        for (place, word) in words[shape.places() + row..][..length].iter_mut().enumerate() {
            *word = place as u32;
        }
        for first_query in (0..length).step_by(ATTENTION_TILE) {
            words[tile..tile + TILE_WORDS].copy_from_slice(&[row as u32, length as u32, first_query as u32]);
            tile += TILE_WORDS;
        }
        words[shape.first_rows() + number] = row as u32;
        words[shape.lengths() + number] = length as u32;
        row += length;
    }
    words
}

/// Rows of a part at most, so that queues of work get as many parts each, and about as large ones, as few of at most `rows_max` as that allows.
pub(crate) fn even_rows(sequences: &[TokenSequence], rows_max: usize, queues: usize) -> usize {
    let rows: usize = sequences.iter().map(TokenSequence::len).sum();
    if rows <= rows_max {
        return rows_max;
    }
    let parts = rows.div_ceil(rows_max).next_multiple_of(queues);
    // A part ends when the next sequence does not fit: it has at least an even share when there is room for one more sequence.
    let longest = sequences.iter().map(TokenSequence::len).max().unwrap_or(0);
    (rows.div_ceil(parts) + longest).min(rows_max)
}

/// Cuts sequences into parts of at most `rows_max` tokens and `sequences_max` sequences, in their order. A sequence that is longer is a part of its own.
pub(crate) fn parts(sequences: &[TokenSequence], rows_max: usize, sequences_max: usize) -> Vec<&[TokenSequence]> {
    let mut parts = Vec::new();
    let (mut first, mut rows) = (0, 0);
    for (number, sequence) in sequences.iter().enumerate() {
        if number > first && (rows + sequence.len() > rows_max || number - first == sequences_max) {
            parts.push(&sequences[first..number]);
            (first, rows) = (number, 0);
        }
        rows += sequence.len();
    }
    if first < sequences.len() {
        parts.push(&sequences[first..]);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sequences(lengths: &[usize]) -> Vec<TokenSequence> {
        let mut next = 0;
        lengths.iter().map(|length| TokenSequence((0..*length).map(|_| (next += 1, next).1).collect())).collect()
    }

    proptest! {
        #[test]
        fn every_token_and_query_is_there_once(lengths in proptest::collection::vec(1usize..200, 1..20)) {
            let sequences = sequences(&lengths);
            let shape = BatchShape::of(&sequences);
            let words = describe(&sequences, shape);
            prop_assert_eq!(words.len(), shape.words());
            let rows: usize = lengths.iter().sum();
            prop_assert!(!shape.is_short || lengths.iter().all(|length| *length <= SHORT_TOKENS));
            prop_assert!(shape.rows >= rows && shape.rows.is_multiple_of(16));
            prop_assert!(words[..rows].iter().copied().eq(1..=rows as u32));
            let mut queries = std::collections::BTreeSet::new();
            for tile in words[shape.tiles_at()..shape.first_rows()].chunks_exact(TILE_WORDS) {
                let [first_row, length, first_query] = tile else { unreachable!() };
                for query in *first_query..(*first_query + ATTENTION_TILE as u32).min(*length) {
                    prop_assert!(queries.insert(first_row + query));
                }
            }
            prop_assert_eq!(queries, (0..rows as u32).collect());
            for (number, length) in lengths.iter().enumerate() {
                let first = words[shape.first_rows() + number] as usize;
                prop_assert_eq!(words[shape.lengths() + number] as usize, *length);
                prop_assert_eq!(words[shape.places() + first], 0);
                prop_assert_eq!(words[shape.places() + first + length - 1] as usize, length - 1);
            }
        }

        #[test]
        fn even_parts_are_as_many_for_each_queue(lengths in proptest::collection::vec(1usize..40, 1..200), queues in 1usize..4) {
            let sequences = sequences(&lengths);
            let (rows_max, rows) = (400, lengths.iter().sum::<usize>());
            let even = even_rows(&sequences, rows_max, queues);
            prop_assert!(even <= rows_max);
            let parts = parts(&sequences, even, usize::MAX);
            if rows > rows_max && even < rows_max {
                prop_assert!(parts.len() <= rows.div_ceil(rows_max).next_multiple_of(queues));
            }
        }

        #[test]
        fn parts_keep_their_limits_and_lose_nothing(
            lengths in proptest::collection::vec(1usize..100, 0..60), rows_max in 1usize..300, sequences_max in 1usize..10
        ) {
            let sequences = sequences(&lengths);
            let parts = parts(&sequences, rows_max, sequences_max);
            for part in &parts {
                let rows: usize = part.iter().map(TokenSequence::len).sum();
                prop_assert!(!part.is_empty() && part.len() <= sequences_max && (rows <= rows_max || part.len() == 1));
            }
            prop_assert_eq!(parts.concat(), sequences);
        }
    }

    #[test]
    fn a_query_has_one_of_few_shapes() {
        for length in 1..=128 {
            let shape = BatchShape::of(&sequences(&[length]));
            assert!(shape.is_query() && shape.rows >= length && shape.tiles * ATTENTION_TILE >= length);
        }
        assert!(!BatchShape::of(&sequences(&[129])).is_query());
        assert!(!BatchShape::of(&sequences(&[3, 4])).is_query());
    }
}
