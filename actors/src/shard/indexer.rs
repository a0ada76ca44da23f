//! Builds partitions' indexes in the background, and tries them with the queries that come, one at a time on a node, so that queries keep a core.

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
    /// Rounds that failed, and trials; the rows stay searchable, and it is tried again.
    pub failures: IntCounter,
    /// Indexes that were tried with queries that searches had brought.
    pub trials: IntCounter,
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
            trials: IntCounter::new(
                "ragged_index_trials_total",
                "Times that it was found out how hard an index must be searched for the queries that come.",
            )?,
        };
        registry.register(Box::new(metrics.seconds.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        registry.register(Box::new(metrics.trials.clone()))?;
        Ok(metrics)
    }
}

impl Indexer {
    /// An indexer without work.
    pub fn new(metrics: IndexerMetrics) -> Arc<Self> {
        Arc::new(Indexer { turn: Arc::new(Semaphore::new(1)), waiting: Mutex::new(HashSet::new()), metrics })
    }

    /// Has the partition's waiting rows indexed when it is its turn, if there are enough of them; and its indexes tried, if enough queries have come.
    pub fn offer(self: &Arc<Self>, partition: &Arc<Partition>) {
        let identity = Arc::as_ptr(partition) as usize;
        let (is_behind, is_untried) = (partition.wants_indexing(), partition.wants_trial());
        if !(is_behind || is_untried) || !self.waiting.lock().insert(identity) {
            return;
        }
        let (indexer, partition) = (self.clone(), partition.clone());
        tokio::spawn(async move {
            if let Ok(turn) = indexer.turn.clone().acquire_owned().await {
                if is_behind {
                    indexer.run(partition).await;
                } else {
                    indexer.try_index(partition).await;
                }
                drop(turn);
            }
            indexer.waiting.lock().remove(&identity);
        });
    }

    async fn try_index(&self, partition: Arc<Partition>) {
        let begun = std::time::Instant::now();
        let fault = match tokio::task::spawn_blocking(move || partition.try_index()).await {
            Ok(Ok(was_due)) => {
                self.metrics.trials.inc_by(u64::from(was_due));
                tracing::debug!(was_due, took_ms = begun.elapsed().as_millis() as u64, "index tried");
                return;
            }
            Ok(Err(fault)) => fault.to_string(),
            Err(fault) => fault.to_string(),
        };
        self.metrics.failures.inc();
        tracing::error!(%fault, "an index could not be tried: it is searched as hard as before");
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
