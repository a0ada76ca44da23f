//! What embedders count.

use crate::account_seconds::AccountSeconds;
use prometheus::{CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntGauge, Opts, Registry};
use ragged_kernels::Device;

/// What an embedder counts.
#[derive(Clone)]
pub struct EmbeddingMetrics {
    /// Tokens embedded.
    pub tokens: IntCounter,
    /// Texts embedded.
    pub texts: IntCounter,
    /// Tokens that wait for a device.
    pub queued_tokens: IntGauge,
    /// Batches that are on a device.
    pub batches: IntGauge,
    /// Batches that a device failed on, and a spare one answered.
    pub failures: IntCounter,
    /// Devices that have failed and could not be opened again yet.
    pub devices_lost: IntGauge,
    /// Seconds that each text waited for a device.
    pub queue_seconds: Histogram,
    /// Seconds of batches on each device, added up: on GPUs more than time passes, because batches overlap.
    pub busy_seconds: CounterVec,
    /// The same of each account: batches' seconds shared out by tokens.
    pub(super) tenants: AccountSeconds,
    /// Seconds in which each request's texts became tokens.
    pub tokenize_seconds: Histogram,
    /// Tokens of the batches of each device.
    pub batch_tokens: HistogramVec,
    /// Seconds that they took.
    pub batch_seconds: HistogramVec,
}

impl EmbeddingMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = EmbeddingMetrics {
            tokens: IntCounter::new("ragged_embedding_tokens_total", "Tokens embedded.")?,
            texts: IntCounter::new("ragged_embedding_texts_total", "Texts embedded.")?,
            queued_tokens: IntGauge::new("ragged_embedding_queued_tokens", "Tokens that wait for a device.")?,
            batches: IntGauge::new("ragged_embedding_batches", "Batches that are on a device.")?,
            failures: IntCounter::new("ragged_embedding_failures_total", "Batches that a device failed on.")?,
            devices_lost: IntGauge::new("ragged_embedding_devices_lost", "Devices that have failed and are not back.")?,
            queue_seconds: Histogram::with_opts(
                HistogramOpts::new("ragged_embedding_queue_seconds", "Time that a text waited for a device.")
                    .buckets(prometheus::exponential_buckets(50e-6, 2.0, 20)?),
            )?,
            busy_seconds: CounterVec::new(
                Opts::new("ragged_embedding_busy_seconds_total", "Seconds of batches on a device."),
                &["device"],
            )?,
            tenants: AccountSeconds::register(
                "ragged_embedding_tenant_seconds_total",
                "Seconds of batches on devices, by whose tokens they were.",
                registry,
            )?,
            tokenize_seconds: Histogram::with_opts(
                HistogramOpts::new("ragged_embedding_tokenize_seconds", "Time in which a request's texts became tokens.")
                    .buckets(prometheus::exponential_buckets(20e-6, 2.0, 14)?),
            )?,
            batch_tokens: HistogramVec::new(
                HistogramOpts::new("ragged_embedding_batch_tokens", "Tokens of a batch.")
                    .buckets(prometheus::exponential_buckets(8.0, 2.0, 14)?),
                &["device"],
            )?,
            batch_seconds: HistogramVec::new(
                HistogramOpts::new("ragged_embedding_batch_seconds", "Time of a batch on a device.")
                    .buckets(prometheus::exponential_buckets(100e-6, 2.0, 18)?),
                &["device"],
            )?,
        };
        registry.register(Box::new(metrics.tokens.clone()))?;
        registry.register(Box::new(metrics.texts.clone()))?;
        registry.register(Box::new(metrics.queued_tokens.clone()))?;
        registry.register(Box::new(metrics.batches.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        registry.register(Box::new(metrics.devices_lost.clone()))?;
        registry.register(Box::new(metrics.queue_seconds.clone()))?;
        registry.register(Box::new(metrics.busy_seconds.clone()))?;
        registry.register(Box::new(metrics.tokenize_seconds.clone()))?;
        registry.register(Box::new(metrics.batch_tokens.clone()))?;
        registry.register(Box::new(metrics.batch_seconds.clone()))?;
        Ok(metrics)
    }

    /// A batch was on a device for so long.
    pub(super) fn count_batch(&self, device: &dyn Device, tokens: usize, seconds: f64) {
        let device = &[device.name()];
        self.batch_seconds.with_label_values(device).observe(seconds);
        self.busy_seconds.with_label_values(device).inc_by(seconds);
        self.batch_tokens.with_label_values(device).observe(tokens as f64);
    }
}
