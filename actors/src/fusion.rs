//! How the rankings of a search become one page of hits.

use crate::shard::partition::Candidate;
use ragged_raft::ids::{RowId, ShardId};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The constant of reciprocal rank fusion: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet", SIGIR 2009.
const FUSION_K: f32 = 60.0;

/// How hits are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// By meaning.
    Dense,
    /// By words.
    Text,
    /// Both, fused.
    Hybrid,
}

impl Mode {
    /// Its name, as it is asked for.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Dense => "dense",
            Mode::Text => "text",
            Mode::Hybrid => "hybrid",
        }
    }
}

/// Which hits are wanted, and how they are ranked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// Which rankings count.
    pub mode: Mode,
    /// Weights of the rankings by meaning and by words.
    pub weights: (f32, f32),
    /// Whether a document is shown once, by its best chunk.
    pub group_by_document: bool,
    /// Hits to leave out first.
    pub offset: usize,
    /// Hits at most.
    pub limit: usize,
}

/// A candidate of the whole collection.
#[derive(Debug, Clone)]
pub struct Ranked {
    /// Where it was found.
    pub shard: ShardId,
    /// What was found.
    pub candidate: Candidate,
}

/// A hit before its content has been read.
#[derive(Debug, Clone)]
pub struct Hit {
    /// The chunk that is shown.
    pub best: Ranked,
    /// Higher is better.
    pub score: f32,
    /// Score and rank by meaning.
    pub dense: Option<(f32, u32)>,
    /// Score and rank by words.
    pub text: Option<(f32, u32)>,
}

impl Page {
    /// The page's hits, of two rankings with the best first.
    pub fn of(&self, dense: Vec<Ranked>, text: Vec<Ranked>) -> Vec<Hit> {
        let hits = match self.mode {
            Mode::Dense => single(dense, |score, rank| (Some((score, rank)), None)),
            Mode::Text => single(text, |score, rank| (None, Some((score, rank)))),
            Mode::Hybrid => self.reciprocal_ranks(dense, text),
        };
        hits.into_iter().skip(self.offset).take(self.limit).collect()
    }

    /// Rows of the page's hits, of the rankings of a shard that is the only one.
    pub fn rows_of(&self, shard: ShardId, dense: &[Candidate], text: &[Candidate]) -> Vec<RowId> {
        let ranking = match self.mode {
            Mode::Dense => dense,
            Mode::Text => text,
            Mode::Hybrid => {
                let ranked =
                    |ranking: &[Candidate]| ranking.iter().map(|found| Ranked { shard, candidate: found.clone() }).collect();
                return self.of(ranked(dense), ranked(text)).into_iter().map(|hit| hit.best.candidate.row).collect();
            }
        };
        ranking.iter().skip(self.offset).take(self.limit).map(|found| found.row).collect()
    }

    /// Fuses two rankings: score = sum of weight / (60 + rank). A hit of both shows the chunk that ranks higher.
    fn reciprocal_ranks(&self, dense: Vec<Ranked>, text: Vec<Ranked>) -> Vec<Hit> {
        let (dense_weight, text_weight) = self.weights;
        let mut fused: HashMap<(ShardId, String, u32), Hit> = HashMap::new();
        let identity = |ranked: &Ranked| {
            let document = ranked.candidate.document_id.to_string();
            (ranked.shard, document, if self.group_by_document { 0 } else { ranked.candidate.chunk })
        };
        for (ranked, rank) in dense.into_iter().zip(1u32..) {
            let score = ranked.candidate.score;
            let hit =
                Hit { score: dense_weight / (FUSION_K + rank as f32), dense: Some((score, rank)), text: None, best: ranked };
            fused.insert(identity(&hit.best), hit);
        }
        for (ranked, rank) in text.into_iter().zip(1u32..) {
            let part = text_weight / (FUSION_K + rank as f32);
            let matched = Some((ranked.candidate.score, rank));
            match fused.entry(identity(&ranked)) {
                Entry::Occupied(mut entry) => {
                    let hit = entry.get_mut();
                    hit.score += part;
                    hit.text = matched;
                    if hit.dense.is_some_and(|(_, dense_rank)| rank < dense_rank) {
                        hit.best = ranked;
                    }
                }
                Entry::Vacant(entry) => {
                    entry.insert(Hit { best: ranked, score: part, dense: None, text: matched });
                }
            }
        }
        let mut fused: Vec<Hit> = fused.into_values().collect();
        fused.sort_by(|one, other| {
            other
                .score
                .total_cmp(&one.score)
                .then_with(|| one.best.shard.cmp(&other.best.shard))
                .then_with(|| one.best.candidate.row.cmp(&other.best.candidate.row))
        });
        fused
    }
}

type Parts = (Option<(f32, u32)>, Option<(f32, u32)>);

fn single(ranking: Vec<Ranked>, parts: impl Fn(f32, u32) -> Parts) -> Vec<Hit> {
    let hits = ranking.into_iter().zip(1..).map(|(best, rank)| {
        let score = best.candidate.score;
        let (dense, text) = parts(score, rank);
        Hit { best, score, dense, text }
    });
    hits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranking(rows: Vec<u32>) -> Vec<Candidate> {
        let candidate = |(rank, row): (usize, u32)| Candidate {
            row: RowId(row),
            score: 1.0 / (1.0 + rank as f32),
            document_id: (row / 3).to_string(),
            chunk: row % 3,
        };
        rows.into_iter().enumerate().map(candidate).collect()
    }

    proptest! {
        #[test]
        fn the_rows_that_a_shard_reads_are_those_of_the_page(
            dense in proptest::collection::hash_set(0u32..60, 0..40), text in proptest::collection::hash_set(0u32..60, 0..40),
            offset in 0usize..20, limit in 1usize..20, group_by_document: bool,
        ) {
            let (dense, text) = (ranking(dense.into_iter().collect()), ranking(text.into_iter().collect()));
            let ranked = |ranking: &[Candidate]| -> Vec<Ranked> {
                ranking.iter().map(|found| Ranked { shard: ShardId(3), candidate: found.clone() }).collect()
            };
            for mode in [Mode::Dense, Mode::Text, Mode::Hybrid] {
                let page = Page { mode, weights: (1.0, 0.5), group_by_document, offset, limit };
                let shown: Vec<RowId> =
                    page.of(ranked(&dense), ranked(&text)).into_iter().map(|hit| hit.best.candidate.row).collect();
                prop_assert_eq!(page.rows_of(ShardId(3), &dense, &text), shown);
            }
        }
    }
}
