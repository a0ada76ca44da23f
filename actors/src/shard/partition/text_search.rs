//! Ranks rows by words: BM25 over the text index and the tail, with the statistics of both, so that a row's score does not depend on
//! whether it is indexed yet.

use super::error::PartitionError;
use super::ranking::Ranking;
use super::tail::TailBlock;
use super::text_index::TextSnapshot;
use roaring::RoaringBitmap;
use std::collections::HashMap;
use std::sync::Arc;
use tantivy::query::{Bm25StatisticsProvider, Bm25Weight, BooleanQuery, BoostQuery, EnableScoring, Occur, Query, TermQuery};
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{Score, Term};

/// What is searched.
pub(super) struct TextScope<'a> {
    /// Rows that are indexed.
    pub(super) index: &'a TextSnapshot,
    /// Rows that are not.
    pub(super) tail: &'a [Arc<TailBlock>],
    /// Rows that may be found.
    pub(super) allowed: &'a RoaringBitmap,
}

/// Statistics of the index and the tail together.
struct Statistics {
    tokens: u64,
    rows: u64,
    frequencies: HashMap<Term, u64>,
}

impl Statistics {
    fn gather(scope: &TextScope<'_>, terms: &[(Term, String, u32)]) -> Result<Statistics, PartitionError> {
        let searcher = &scope.index.searcher;
        let tail_tokens: u64 = scope.tail.iter().map(|block| block.tokens).sum();
        let tail_rows: u64 = scope.tail.iter().map(|block| block.rows.len() as u64).sum();
        let mut frequencies = HashMap::new();
        for (term, text, _) in terms {
            let in_tail: usize = scope.tail.iter().filter_map(|block| block.terms.get(text.as_str())).map(Vec::len).sum();
            frequencies.insert(term.clone(), searcher.doc_freq(term)? + in_tail as u64);
        }
        let tokens = searcher.total_num_tokens(scope.index.fields.text)? + tail_tokens;
        Ok(Statistics { tokens: tokens.max(1), rows: searcher.total_num_docs()? + tail_rows, frequencies })
    }
}

impl Bm25StatisticsProvider for Statistics {
    fn total_num_tokens(&self, _: Field) -> tantivy::Result<u64> {
        Ok(self.tokens)
    }

    fn total_num_docs(&self) -> tantivy::Result<u64> {
        Ok(self.rows)
    }

    fn doc_freq(&self, term: &Term) -> tantivy::Result<u64> {
        Ok(self.frequencies.get(term).copied().unwrap_or_default())
    }
}

/// Offers every row that has one of the terms and can still be among the best.
pub(super) fn rank(scope: &TextScope<'_>, terms: Vec<(String, u32)>, ranking: &mut Ranking<'_>) -> Result<(), PartitionError> {
    let field = scope.index.fields.text;
    let terms: Vec<(Term, String, u32)> =
        terms.into_iter().map(|(text, count)| (Term::from_field_text(field, &text), text, count)).collect();
    let statistics = Statistics::gather(scope, &terms)?;
    if terms.is_empty() || statistics.rows == 0 {
        return Ok(());
    }
    for block in scope.tail {
        rank_block(scope, block, &terms, &statistics, ranking)?;
    }
    rank_index(scope, &terms, &statistics, ranking)
}

fn rank_index(
    scope: &TextScope<'_>,
    terms: &[(Term, String, u32)],
    statistics: &Statistics,
    ranking: &mut Ranking<'_>,
) -> Result<(), PartitionError> {
    let clauses = terms.iter().map(|(term, _, count)| {
        let query: Box<dyn Query> = Box::new(TermQuery::new(term.clone(), IndexRecordOption::WithFreqs));
        let query = if *count > 1 { Box::new(BoostQuery::new(query, *count as Score)) } else { query };
        (Occur::Should, query)
    });
    let query = BooleanQuery::new(clauses.collect());
    let searcher = &scope.index.searcher;
    let weight = query.weight(EnableScoring::enabled_from_statistics_provider(statistics, searcher))?;
    for (number, segment) in searcher.segment_readers().iter().enumerate() {
        let begin = threshold(ranking);
        let mut offer = |document, score| {
            if let Some(row) = scope.index.row_of(number, document)
                && row < scope.index.until
                && scope.allowed.contains(row)
            {
                ranking.offer(score, row);
            }
            threshold(ranking)
        };
        weight.for_each_pruning(begin, segment, &mut offer)?;
    }
    Ok(())
}

/// What a score must exceed for its row to be offered: just below the worst that is kept, so that rows with an equal score and a lower
/// number are offered too.
fn threshold(ranking: &Ranking<'_>) -> Score {
    ranking.worst().map_or(Score::MIN, |worst| worst.score.next_down())
}

fn rank_block(
    scope: &TextScope<'_>,
    block: &TailBlock,
    terms: &[(Term, String, u32)],
    statistics: &Statistics,
    ranking: &mut Ranking<'_>,
) -> Result<(), PartitionError> {
    let mut scores = vec![0f32; block.rows.len()];
    for (term, text, count) in terms {
        let Some(occurrences) = block.terms.get(text.as_str()) else { continue };
        let weight = Bm25Weight::for_terms(statistics, std::slice::from_ref(term))?.boost_by(*count as Score);
        for occurrence in occurrences {
            let position = occurrence.position as usize;
            scores[position] += weight.score(block.norms[position], occurrence.frequency);
        }
    }
    for (row, score) in block.rows.iter().zip(scores) {
        // A row with one of the terms has a positive score: BM25's idf here is ln(1 + x).
        if score > 0.0 && *row >= scope.index.until && scope.allowed.contains(*row) {
            ranking.offer(score, *row);
        }
    }
    Ok(())
}
