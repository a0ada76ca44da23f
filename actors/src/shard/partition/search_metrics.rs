//! What searches did, counted for all partitions of a node.

use super::vector_plan::Method;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// The counters. Copies count together.
#[derive(Clone)]
pub struct SearchMetrics {
    /// Filters that partitions were asked with.
    pub(super) filters: IntCounter,
    /// Of these, filters that were looked up because nothing was kept of them.
    pub(super) filters_evaluated: IntCounter,
    exact: IntCounter,
    gpu: IntCounter,
    bytes: IntCounter,
    lists: IntCounter,
}

impl SearchMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let filters = IntCounter::new("ragged_filters_total", "Filters that partitions were asked with.")?;
        let filters_evaluated = IntCounter::new(
            "ragged_filters_evaluated_total",
            "Filters that partitions looked up in their text index, because nothing was kept of them.",
        )?;
        let about =
            Opts::new("ragged_segment_searches_total", "Searches by meaning in a segment, by how its rows were looked for.");
        let segments = IntCounterVec::new(about, &["method"])?;
        registry.register(Box::new(filters.clone()))?;
        registry.register(Box::new(filters_evaluated.clone()))?;
        registry.register(Box::new(segments.clone()))?;
        let by_method = |method: &str| segments.with_label_values(&[method]);
        Ok(SearchMetrics {
            filters,
            filters_evaluated,
            exact: by_method("exact"),
            gpu: by_method("gpu"),
            bytes: by_method("bytes"),
            lists: by_method("lists"),
        })
    }

    /// A segment was searched.
    pub(super) fn segment_searched(&self, method: &Method) {
        match method {
            Method::Nothing => {}
            Method::Exact { .. } => self.exact.inc(),
            Method::ExactOnGpu { .. } => self.gpu.inc(),
            Method::Bytes { .. } => self.bytes.inc(),
            Method::Approximate(_) => self.lists.inc(),
        }
    }
}
