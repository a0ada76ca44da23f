//! Builds partitions' indexes in the background, one at a time on a node, so that queries keep a core.

use crate::shard::partition::Partition;
use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, IntCounter, Registry};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Builds indexes.
pub struct Indexer {
    turn: Arc<Semaphore>,
    waiting: Mutex<HashSet<usize>>,
    metrics: IndexerMetrics,
}

/// What the indexer counts.
#[derive(Clone)]
pub struct IndexerMetrics {
    /// Seconds that each round took.
    pub seconds: Histogram,
    /// Rounds that failed; the rows stay searchable, and it is tried again.
    pub failures: IntCounter,
}

impl IndexerMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = IndexerMetrics {
            seconds: Histogram::with_opts(
                HistogramOpts::new("ragged_indexing_seconds", "Time of a round of indexing a partition.")
                    .buckets(prometheus::exponential_buckets(0.01, 2.0, 14)?),
            )?,
            failures: IntCounter::new(
                "ragged_indexing_failures_total",
                "Rounds of indexing that failed and will be tried again.",
            )?,
        };
        registry.register(Box::new(metrics.seconds.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        Ok(metrics)
    }
}

impl Indexer {
    /// An indexer without work.
    pub fn new(metrics: IndexerMetrics) -> Arc<Self> {
        Arc::new(Indexer { turn: Arc::new(Semaphore::new(1)), waiting: Mutex::new(HashSet::new()), metrics })
    }

    /// Has the partition's waiting rows indexed when it is its turn, if there are enough of them.
    pub fn offer(self: &Arc<Self>, partition: &Arc<Partition>) {
        let identity = Arc::as_ptr(partition) as usize;
        if !partition.wants_indexing() || !self.waiting.lock().insert(identity) {
            return;
        }
        let (indexer, partition) = (self.clone(), partition.clone());
        tokio::spawn(async move {
            if let Ok(turn) = indexer.turn.clone().acquire_owned().await {
                indexer.run(partition).await;
                drop(turn);
            }
            indexer.waiting.lock().remove(&identity);
        });
    }

    async fn run(&self, partition: Arc<Partition>) {
        let begun = std::time::Instant::now();
        let outcome = tokio::task::spawn_blocking(move || partition.index()).await;
        self.metrics.seconds.observe(begun.elapsed().as_secs_f64());
        let fault = match outcome {
            Ok(Ok(progress)) => {
                tracing::debug!(?progress, took_ms = begun.elapsed().as_millis() as u64, "partition indexed");
                return;
            }
            Ok(Err(fault)) => fault.to_string(),
            Err(fault) => fault.to_string(),
        };
        self.metrics.failures.inc();
        tracing::error!(%fault, "indexing failed: the rows stay searchable, it will be tried again");
    }
}
