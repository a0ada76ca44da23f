//! Answers a query from one view of the partition.

use super::analyzer::Analyzer;
use super::error::PartitionError;
use super::ranking::{Ranked, Ranking};
use super::search_metrics::SearchMetrics;
use super::selected::{Allowed, Selected};
use super::source::RowSource;
use super::text_search::{self, TextScope};
use super::view::View;
use super::{Candidate, PartitionAnswer, PartitionQuery};
use crate::filter::Filter;
use crate::gpu_rows::TenantRows;
use ragged_kernels::exact;
use ragged_raft::ids::RowId;
use ragged_raft::mutant::{self, Mutant};
use roaring::RoaringBitmap;
use std::borrow::Cow;
use std::sync::Arc;

/// By what the number of rows grows that are looked for until there are enough documents.
const WIDENING: usize = 4;

/// What the filter selects; none when it passes everything.
pub(super) fn passing(
    view: &View,
    filter: Option<&Filter>,
    metrics: &SearchMetrics,
) -> Result<Option<Arc<Selected>>, PartitionError> {
    match filter {
        Some(filter) if !filter.is_empty() && !mutant::is_on(Mutant::FilterIgnored) => {
            Selected::of(view, filter, metrics).map(Some)
        }
        _ => Ok(None),
    }
}

/// A search under way.
pub(super) struct Search<'a> {
    pub(super) view: &'a View,
    pub(super) source: &'a RowSource,
    pub(super) analyzer: &'a Analyzer,
    pub(super) metrics: &'a SearchMetrics,
    pub(super) gpus: &'a TenantRows,
    pub(super) query: &'a PartitionQuery,
}

impl Search<'_> {
    pub(super) fn run(&self) -> Result<PartitionAnswer, PartitionError> {
        let mut answer = PartitionAnswer::default();
        let steps = &mut answer.steps;
        let selected = passing(self.view, self.query.filter.as_ref(), self.metrics)?;
        let selected = selected.as_deref();
        self.explain(steps, || {
            let (live, tail) = (self.view.live.len(), self.view.tail_rows());
            match selected {
                Some(selected) => format!("filter: {} of {live} chunks pass", selected.rows.len()),
                None => format!("{live} chunks, {tail} of them not indexed yet"),
            }
        });
        let dense = match &self.query.vector {
            Some(vector) => self.dense(vector, selected, steps)?,
            None => Vec::new(),
        };
        let text = match &self.query.text {
            Some(text) => self.text(text, selected.map_or(self.view.live.as_ref(), |selected| selected.rows.as_ref()), steps)?,
            None => Vec::new(),
        };
        (answer.dense, answer.text) = self.name(&dense, &text)?;
        Ok(answer)
    }

    fn explain(&self, steps: &mut Vec<String>, step: impl FnOnce() -> String) {
        if self.query.explain {
            steps.push(step());
        }
    }

    fn starts(&self) -> Option<&RoaringBitmap> {
        self.query.group_by_document.then_some(self.view.starts.as_ref())
    }

    fn text(&self, text: &str, allowed: &RoaringBitmap, steps: &mut Vec<String>) -> Result<Vec<Ranked>, PartitionError> {
        let terms = self.analyzer.query_terms(text);
        self.explain(steps, || format!("words: BM25 of {} distinct terms", terms.len()));
        let scope = TextScope { index: &self.view.text, tail: &self.view.tail, allowed };
        let mut ranking = Ranking::new(self.query.depth, self.starts());
        text_search::rank(&scope, terms, &mut ranking)?;
        Ok(ranking.into_sorted())
    }

    fn dense(&self, vector: &[f32], selected: Option<&Selected>, steps: &mut Vec<String>) -> Result<Vec<Ranked>, PartitionError> {
        if vector.len() != self.source.dimension() {
            return Err(PartitionError::Dimension { expected: self.source.dimension(), found: vector.len() });
        }
        let mut wanted = self.query.depth;
        loop {
            let mut ranking = Ranking::new(self.query.depth, self.starts());
            let unseen = self.dense_rows(vector, selected, wanted, &mut ranking, steps)?;
            // Where several rows share a document, the best rows of a part can be of so few documents that a row that was not asked for
            // is better than the worst that is kept.
            if ranking.depth() == 0 || unseen.is_none_or(|unseen| ranking.worst().is_some_and(|worst| worst.score >= unseen)) {
                return Ok(ranking.into_sorted());
            }
            wanted = wanted.saturating_mul(WIDENING);
            self.explain(steps, || format!("several chunks of the same documents: looking for the best {wanted} chunks"));
        }
    }

    /// Offers the best `wanted` rows of each segment and of the tail. Rows that were not looked at have the returned score at most; none
    /// when there are no such rows.
    fn dense_rows(
        &self,
        vector: &[f32],
        selected: Option<&Selected>,
        wanted: usize,
        ranking: &mut Ranking<'_>,
        steps: &mut Vec<String>,
    ) -> Result<Option<f32>, PartitionError> {
        let mut unseen: Option<f32> = None;
        let mut cut_at = |score: f32| unseen = Some(unseen.map_or(score, |known| known.max(score)));
        for part in &self.view.segments {
            let selection = selected.map(|selected| selected.segment(self.view, part));
            let allowed = Allowed { selected: selection.as_deref(), live: part.live.as_deref() };
            let found = part.segment.search(vector, wanted, allowed, self.query.recall, self.gpus)?;
            self.metrics.segment_searched(&found.method);
            self.explain(steps, || {
                format!("meaning: segment {} of {} chunks, {}", part.segment.number, part.segment.len(), found.method)
            });
            if let Some((_, score)) = found.hits.last().filter(|_| found.hits.len() >= wanted) {
                cut_at(*score);
            }
            for (row, score) in found.hits {
                ranking.offer(score, row);
            }
        }
        for (number, block) in self.view.tail.iter().enumerate() {
            let positions = match selected {
                Some(selected) => selected.tail(number).map(Cow::Borrowed),
                None => block.positions_from(self.view.segments_until, &self.view.live).map(Cow::Owned),
            };
            let scored = exact::top_k(vector, &block.vectors, vector.len(), positions.as_deref(), wanted);
            self.explain(steps, || {
                let compared = positions.as_ref().map_or(block.rows.len() as u64, |positions| positions.len());
                format!("meaning: {} chunks not indexed yet, exact: {compared} compared", block.rows.len())
            });
            if let Some(last) = scored.last().filter(|_| scored.len() >= wanted) {
                cut_at(last.score);
            }
            for one in scored {
                ranking.offer(one.score, block.rows[one.position as usize]);
            }
        }
        Ok(unseen)
    }

    /// Says whose the rows are; rows that went while the search ran are left out.
    fn name(&self, dense: &[Ranked], text: &[Ranked]) -> Result<(Vec<Candidate>, Vec<Candidate>), PartitionError> {
        let mut rows: Vec<u32> = dense.iter().chain(text).map(|ranked| ranked.row).collect();
        rows.sort_unstable();
        rows.dedup();
        let owners = self.source.owners(&rows)?;
        let candidate = |ranked: &Ranked| {
            let place = rows.binary_search(&ranked.row).ok()?;
            let owner = owners.get(place)?.as_ref()?;
            Some(Candidate {
                row: RowId(ranked.row),
                score: ranked.score,
                document_id: owner.document_id.clone(),
                chunk: owner.chunk,
            })
        };
        Ok((dense.iter().filter_map(candidate).collect(), text.iter().filter_map(candidate).collect()))
    }
}
