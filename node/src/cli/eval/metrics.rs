//! Measures of a ranking against judgements.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Ranks that nDCG looks at.
const NDCG_RANKS: usize = 10;

/// Ranks that recall looks at.
const RECALL_RANKS: usize = 100;

/// What was measured; each is 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Measures {
    /// Normalised discounted cumulative gain of the first 10 documents.
    pub ndcg_at_10: f64,
    /// The part of the relevant documents among the first 100.
    pub recall_at_100: f64,
    /// One divided by the rank of the first relevant document.
    pub mrr: f64,
}

impl Measures {
    /// The measures of one ranking, best first. A document that comes again counts once.
    pub fn of(ranking: &[String], judgements: &HashMap<String, f64>) -> Measures {
        let mut seen = HashSet::new();
        let gains: Vec<f64> = ranking.iter().filter(|id| seen.insert(id.as_str())).map(|id| gain(judgements, id)).collect();
        Measures {
            ndcg_at_10: ndcg(&gains, judgements.values().copied()),
            recall_at_100: recall(&gains, judgements),
            mrr: gains.iter().position(|gain| *gain > 0.0).map_or(0.0, |index| 1.0 / (index + 1) as f64),
        }
    }

    /// The mean of each measure; 0 for no ranking at all.
    pub fn mean(all: &[Measures]) -> Measures {
        let mean = |measure: fn(&Measures) -> f64| all.iter().map(measure).sum::<f64>() / all.len().max(1) as f64;
        Measures {
            ndcg_at_10: mean(|one| one.ndcg_at_10),
            recall_at_100: mean(|one| one.recall_at_100),
            mrr: mean(|one| one.mrr),
        }
    }
}

/// The gain of a document is its judgement; an unjudged or a negatively judged one gains nothing.
fn gain(judgements: &HashMap<String, f64>, id: &str) -> f64 {
    judgements.get(id).copied().unwrap_or(0.0).max(0.0)
}

/// DCG / ideal DCG, as trec_eval's `ndcg_cut` (after Järvelin and Kekäläinen 2002, with linear gain).
fn ndcg(gains: &[f64], judgements: impl Iterator<Item = f64>) -> f64 {
    let mut ideal: Vec<f64> = judgements.map(|judgement| judgement.max(0.0)).collect();
    ideal.sort_by(|one, other| other.total_cmp(one));
    let best = dcg(&ideal);
    if best > 0.0 { dcg(gains) / best } else { 0.0 }
}

/// The sum over the first ranks of gain / log2(rank + 1).
fn dcg(gains: &[f64]) -> f64 {
    gains.iter().take(NDCG_RANKS).enumerate().map(|(index, gain)| gain / ((index + 2) as f64).log2()).sum()
}

fn recall(gains: &[f64], judgements: &HashMap<String, f64>) -> f64 {
    let relevant = judgements.values().filter(|judgement| **judgement > 0.0).count();
    let found = gains.iter().take(RECALL_RANKS).filter(|gain| **gain > 0.0).count();
    if relevant == 0 { 0.0 } else { found as f64 / relevant as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranking: &[&str], judgements: &[(&str, f64)]) -> Measures {
        let ranking: Vec<String> = ranking.iter().map(ToString::to_string).collect();
        Measures::of(&ranking, &judgements.iter().map(|(id, judgement)| (id.to_string(), *judgement)).collect())
    }

    fn assert_close(measured: f64, expected: f64) {
        assert!((measured - expected).abs() < 1e-9, "{measured} is not {expected}");
    }

    #[test]
    fn graded_judgements_computed_by_hand() {
        // DCG = 3/log2(2) + 0/log2(3) + 2/log2(4) + 1/log2(5) = 3 + 0 + 1 + 0.43067655807339306
        // IDCG = 3/log2(2) + 2/log2(3) + 1/log2(4) + 1/log2(5) = 3 + 1.2618595071429148 + 0.5 + 0.43067655807339306
        let measured = of(&["a", "x", "b", "c"], &[("a", 3.0), ("b", 2.0), ("c", 1.0), ("d", 1.0), ("x", 0.0), ("y", -1.0)]);
        assert_close(measured.ndcg_at_10, 4.430676558073393 / 5.192536065216308);
        assert_close(measured.recall_at_100, 3.0 / 4.0);
        assert_close(measured.mrr, 1.0);
    }

    #[test]
    fn the_gain_is_linear() {
        // With the gain 2^rel - 1 this would be (1 + 7 * 0.6309...) / (7 + 0.6309...) = 0.7098...
        let measured = of(&["low", "high"], &[("high", 3.0), ("low", 1.0)]);
        let discount = 1.0 / 3f64.log2();
        assert_close(measured.ndcg_at_10, (1.0 + 3.0 * discount) / (3.0 + discount));
    }

    #[test]
    fn ranks_end_where_they_should() {
        let mut ranking: Vec<String> = (0..200).map(|index| format!("x{index}")).collect();
        ranking[10] = "a".to_owned();
        ranking[99] = "b".to_owned();
        ranking[100] = "c".to_owned();
        let judgements = [("a", 1.0), ("b", 1.0), ("c", 1.0)].map(|(id, judgement)| (id.to_owned(), judgement)).into();
        let measured = Measures::of(&ranking, &judgements);
        assert_close(measured.ndcg_at_10, 0.0);
        assert_close(measured.recall_at_100, 2.0 / 3.0);
        assert_close(measured.mrr, 1.0 / 11.0);
    }

    #[test]
    fn a_perfect_ranking_is_1_and_an_empty_one_0() {
        let perfect = of(&["a", "b"], &[("a", 2.0), ("b", 1.0)]);
        assert_eq!(perfect, Measures { ndcg_at_10: 1.0, recall_at_100: 1.0, mrr: 1.0 });
        assert_eq!(of(&[], &[("a", 1.0)]), Measures::default());
        assert_eq!(Measures::mean(&[perfect, Measures::default()]), Measures { ndcg_at_10: 0.5, recall_at_100: 0.5, mrr: 0.5 });
        assert_eq!(Measures::mean(&[]), Measures::default());
    }

    #[test]
    fn a_document_that_comes_again_counts_once() {
        let measured = of(&["a", "a", "b"], &[("a", 1.0), ("b", 1.0)]);
        assert_eq!(measured, Measures { ndcg_at_10: 1.0, recall_at_100: 1.0, mrr: 1.0 });
    }
}
