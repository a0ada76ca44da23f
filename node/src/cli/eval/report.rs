//! What was measured, and how it differs from the last run.

use super::metrics::Measures;
use crate::cli::output::{Output, number, render};
use crate::cli::timestamp;
use comfy_table::Cell;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Differences below this are shown as none: they would not show in four digits.
const SAME: f64 = 0.000_05;

/// A run; also what is kept of it for the next one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Folder of the dataset.
    pub dataset: String,
    /// Name of the collection.
    pub collection: String,
    /// Queries that were measured with.
    pub queries: usize,
    /// Documents that the node refused, when they were loaded in this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents_refused: Option<u64>,
    /// Milliseconds since 1970-01-01 UTC.
    pub at_ms: u64,
    /// By the names of modes.
    pub modes: BTreeMap<String, ModeResult>,
    /// When the run that this is compared with was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared_with_ms: Option<u64>,
    /// Modes whose nDCG@10 is below what was required.
    #[serde(default)]
    pub below: Vec<Below>,
}

/// What was measured of one mode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModeResult {
    /// The measures.
    #[serde(flatten)]
    pub measures: Measures,
    /// How they differ from the last run's: this one minus that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Measures>,
    /// Seconds that all searches took.
    pub took_s: f64,
}

/// A mode that is not good enough.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Below {
    /// Name of the mode.
    pub mode: String,
    /// Its nDCG@10.
    pub ndcg_at_10: f64,
    /// What it should be at least.
    pub required: f64,
}

impl Report {
    /// The report of a run that ends now.
    pub fn new(dataset: &Path, collection: &str, queries: usize, modes: BTreeMap<String, ModeResult>) -> Report {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let dataset = dataset.display().to_string();
        let collection = collection.to_owned();
        Report { dataset, collection, queries, documents_refused: None, at_ms, modes, compared_with_ms: None, below: Vec::new() }
    }

    /// Notes how this run differs from the last one.
    pub fn compare(&mut self, last: Option<Report>) {
        let Some(last) = last else { return };
        self.compared_with_ms = Some(last.at_ms);
        for (name, result) in &mut self.modes {
            if let Some(before) = last.modes.get(name) {
                let (now, before) = (result.measures, before.measures);
                result.change = Some(Measures {
                    ndcg_at_10: now.ndcg_at_10 - before.ndcg_at_10,
                    recall_at_100: now.recall_at_100 - before.recall_at_100,
                    mrr: now.mrr - before.mrr,
                });
            }
        }
    }

    /// Notes the modes that are below what is required of them.
    pub fn require(&mut self, minima: impl Iterator<Item = (String, f64)>) {
        for (mode, required) in minima {
            let ndcg_at_10 = self.modes.get(&mode).map_or(0.0, |result| result.measures.ndcg_at_10);
            if ndcg_at_10 < required {
                self.below.push(Below { mode, ndcg_at_10, required });
            }
        }
    }

    /// The report for people.
    pub fn describe(&self, output: &Output) -> String {
        let mut table = output.table(&["mode", "nDCG@10", "recall@100", "MRR", "queries/s"]);
        for (name, result) in &self.modes {
            let (now, change) = (result.measures, result.change);
            table.add_row(vec![
                Cell::new(name),
                number(cell(now.ndcg_at_10, change.map(|change| change.ndcg_at_10))),
                number(cell(now.recall_at_100, change.map(|change| change.recall_at_100))),
                number(cell(now.mrr, change.map(|change| change.mrr))),
                number(format!("{:.0}", self.queries as f64 / result.took_s.max(1e-6))),
            ]);
        }
        let mut text = render(&table);
        text.push_str(&format!("\n{} queries of {}", self.queries, self.dataset));
        match self.compared_with_ms {
            Some(at_ms) => text.push_str(&format!("; in brackets, the change since the run of {}", timestamp::of_ms(at_ms))),
            None => text.push_str("; the first run, the next one is compared with it"),
        }
        for below in &self.below {
            text.push_str(&format!("\n{}: nDCG@10 is {:.4}, below {}", below.mode, below.ndcg_at_10, below.required));
        }
        text
    }
}

fn cell(value: f64, change: Option<f64>) -> String {
    match change {
        None => format!("{value:.4}"),
        Some(change) if change.abs() < SAME => format!("{value:.4} (same)"),
        Some(change) => format!("{value:.4} ({change:+.4})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ndcg_at_10: f64) -> Report {
        let measures = Measures { ndcg_at_10, recall_at_100: 0.5, mrr: 0.25 };
        let mode = ModeResult { measures, change: None, took_s: 2.0 };
        Report::new(Path::new("/d"), "c", 10, BTreeMap::from([("dense".to_owned(), mode)]))
    }

    #[test]
    fn a_run_is_compared_with_the_last_one() {
        let output = Output::new(false, false);
        let mut now = run(0.64);
        assert!(now.describe(&output).contains("the first run"));
        now.compare(Some(run(0.65)));
        let change = now.modes["dense"].change.unwrap();
        assert!((change.ndcg_at_10 + 0.01).abs() < 1e-12 && change.mrr == 0.0);
        let text = now.describe(&output);
        assert!(text.contains("0.6400 (-0.0100)") && text.contains("0.5000 (same)"), "{text}");
    }

    #[test]
    fn what_is_below_the_minimum_is_noted_and_what_equals_it_is_not() {
        let mut report = run(0.64);
        report.require([("dense".to_owned(), 0.64)].into_iter());
        assert!(report.below.is_empty());
        report.require([("dense".to_owned(), 0.6401)].into_iter());
        assert_eq!(report.below.len(), 1);
        assert!(report.describe(&Output::new(false, false)).contains("below 0.6401"));
    }

    #[test]
    fn a_run_is_kept_as_it_is() {
        let report = run(0.123_456_789_012_345_67);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(text.contains("\"ndcg_at_10\":0.1234567890123456"), "{text}");
    }
}
