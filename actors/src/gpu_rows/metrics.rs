//! What is counted of searches on GPUs.

use crate::account_seconds::AccountSeconds;
use prometheus::{CounterVec, Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};

/// The counters. Copies count together. GPUs are labelled by their numbers.
#[derive(Clone)]
pub struct GpuRowsMetrics {
    pub(super) memory_total_bytes: IntGaugeVec,
    pub(super) memory_used_bytes: IntGaugeVec,
    pub(super) encoder_bytes: IntGaugeVec,
    pub(super) rows_bytes: IntGaugeVec,
    pub(super) busy_seconds: CounterVec,
    /// Seconds by whose searches they were.
    pub tenant_seconds: AccountSeconds,
    pub(super) queued: IntGauge,
    pub(super) batch_queries: Histogram,
    pub(super) batch_seconds: Histogram,
    pub(super) upload_seconds: Histogram,
    pub(super) evictions: IntCounter,
    /// Searches and uploads that a GPU failed on.
    pub failures: IntCounter,
}

impl GpuRowsMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let of_each = |name, help| IntGaugeVec::new(Opts::new(name, help), &["gpu"]);
        let seconds = |name, help, from| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(prometheus::exponential_buckets(from, 2.0, 14)?))
        };
        let queries = HistogramOpts::new("ragged_gpu_search_batch_queries", "Queries that a GPU answered together.")
            .buckets(prometheus::exponential_buckets(1.0, 2.0, 9)?);
        let busy = Opts::new("ragged_gpu_search_busy_seconds_total", "Seconds that a GPU searched rows.");
        let metrics = GpuRowsMetrics {
            memory_total_bytes: of_each("ragged_gpu_memory_total_bytes", "Memory of a GPU.")?,
            memory_used_bytes: of_each("ragged_gpu_memory_used_bytes", "Memory of a GPU that anybody has.")?,
            encoder_bytes: of_each("ragged_gpu_encoder_bytes", "Memory of a GPU that the encoder has.")?,
            rows_bytes: of_each("ragged_gpu_rows_bytes", "Memory of a GPU that rows of segments have.")?,
            busy_seconds: CounterVec::new(busy, &["gpu"])?,
            tenant_seconds: AccountSeconds::register(
                "ragged_gpu_search_tenant_seconds_total",
                "Seconds that GPUs searched rows, by whose rows they were.",
                registry,
            )?,
            queued: IntGauge::new("ragged_gpu_search_queued", "Searches that wait for rows on a GPU.")?,
            batch_queries: Histogram::with_opts(queries)?,
            batch_seconds: seconds("ragged_gpu_search_seconds", "Time of a GPU's search, for all of its queries.", 50e-6)?,
            upload_seconds: seconds("ragged_gpu_upload_seconds", "Time in which a segment's rows were put on a GPU.", 0.001)?,
            evictions: IntCounter::new("ragged_gpu_evictions_total", "Segments whose rows left a GPU for those of others.")?,
            failures: IntCounter::new(
                "ragged_gpu_search_failures_total",
                "Searches that a GPU failed on and the processor answered, and uploads of rows that failed.",
            )?,
        };
        for gauge in [&metrics.memory_total_bytes, &metrics.memory_used_bytes, &metrics.encoder_bytes, &metrics.rows_bytes] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(metrics.busy_seconds.clone()))?;
        registry.register(Box::new(metrics.queued.clone()))?;
        for histogram in [&metrics.batch_queries, &metrics.batch_seconds, &metrics.upload_seconds] {
            registry.register(Box::new(histogram.clone()))?;
        }
        registry.register(Box::new(metrics.evictions.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        Ok(metrics)
    }
}
