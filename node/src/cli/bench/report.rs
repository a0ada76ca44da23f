//! What a benchmark measured.

use super::load::{Load, Measured, Rate};
use crate::cli::error::Exit;
use ragged_client::Mode;
use serde::Serialize;
use std::collections::BTreeMap;

/// What was measured; machines get it as it is.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `search`.
    pub benchmark: &'static str,
    /// Name of the collection.
    pub collection: String,
    /// How hits were found, when that was said.
    pub mode: Option<Mode>,
    /// Connections.
    pub clients: usize,
    /// Requests a second that were due; none in the closed loop.
    pub rate_per_s: Option<f64>,
    /// Seconds that were measured, to the last answer.
    pub elapsed_s: f64,
    /// Successful searches.
    pub searches: u64,
    /// Successful searches a second.
    pub throughput_per_s: f64,
    /// Latencies of successful searches.
    pub latency_ms: Latency,
    /// Failed searches by their codes.
    pub errors: BTreeMap<String, u64>,
    /// Requests that were due and never sent, since every client was still waiting.
    pub unserved: u64,
}

/// Percentiles in milliseconds.
#[derive(Debug, Serialize)]
pub struct Latency {
    mean: f64,
    p50: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

impl Report {
    /// The report of a load.
    pub fn new(load: &Load, collection: String, mode: Option<Mode>, measured: Measured) -> Report {
        let latencies = &measured.latencies_us;
        let ms = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1e3;
        let elapsed_s = measured.elapsed.as_secs_f64();
        Report {
            benchmark: "search",
            collection,
            mode,
            clients: load.connections,
            rate_per_s: match load.rate {
                Rate::Max => None,
                Rate::PerSecond(rate) => Some(rate),
            },
            elapsed_s,
            searches: latencies.len(),
            throughput_per_s: latencies.len() as f64 / elapsed_s.max(1e-9),
            latency_ms: Latency {
                mean: latencies.mean() / 1e3,
                p50: ms(0.5),
                p90: ms(0.9),
                p95: ms(0.95),
                p99: ms(0.99),
                max: latencies.max() as f64 / 1e3,
            },
            errors: measured.errors,
            unserved: measured.unserved,
        }
    }

    /// How a benchmark with errors ended.
    pub fn exit(&self) -> Exit {
        if self.searches == 0 { Exit::Failure } else { Exit::PartlyFailed }
    }

    /// The report for people.
    pub fn describe(&self) -> String {
        let loop_kind = match self.rate_per_s {
            Some(rate) => format!("open loop, {rate} due a second"),
            None => "closed loop".to_owned(),
        };
        let Latency { mean, p50, p90, p95, p99, max } = self.latency_ms;
        let mut lines = vec![
            format!("searches    {} in {:.1} s by {} clients ({loop_kind})", self.searches, self.elapsed_s, self.clients),
            format!("throughput  {:.1} a second", self.throughput_per_s),
            format!("latency     p50 {p50:.2}  p90 {p90:.2}  p95 {p95:.2}  p99 {p99:.2}  max {max:.2}  mean {mean:.2}  ms"),
        ];
        lines.extend(self.errors.iter().map(|(name, count)| format!("failed      {count} with {name}")));
        if self.unserved > 0 {
            lines.push(format!("unserved    {}: the clients were still waiting when the time was over", self.unserved));
        }
        lines.join("\n")
    }
}
