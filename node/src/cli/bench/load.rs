//! Sends searches and measures how long they take.

use crate::cli::bench::connection::{Connection, Target};
use bytes::Bytes;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Longest latency that is told apart, in microseconds: 10 minutes.
const LATENCY_US_MAX: u64 = 600_000_000;

/// Significant decimal digits of latencies.
const DIGITS: u8 = 3;

/// After the last request was due, answers are waited for this long; what is then still waiting was not served.
const DRAIN: Duration = Duration::from_secs(10);

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// The next when the last is answered: closed loop.
    Max,
    /// At fixed times, so many a second: open loop.
    PerSecond(f64),
}

/// What is sent how.
pub struct Load {
    /// The nodes; connections are spread over them.
    pub targets: Vec<Arc<Target>>,
    /// Searches; sent in turn, again and again. Never empty.
    pub requests: Vec<Bytes>,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// When requests are sent.
    pub rate: Rate,
    /// How long is measured.
    pub measured: Duration,
    /// How long is sent before that without measuring.
    pub warmup: Duration,
}

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    /// Latencies of successful searches in microseconds.
    pub latencies_us: Histogram<u64>,
    /// Failed searches by what they failed with.
    pub errors: BTreeMap<String, u64>,
    /// Requests that were due and never sent, because all connections were still waiting.
    pub unserved: u64,
    /// From the end of warming up to the last answer.
    pub elapsed: Duration,
}

/// What the connections share.
struct Shared {
    load: Arc<LoadPlan>,
    /// Requests sent to warm up.
    warming: AtomicU64,
    /// Requests taken so far.
    taken: AtomicU64,
    /// A permit for every request that is due (open loop only).
    due: Semaphore,
}

struct LoadPlan {
    counts_from: Instant,
    ends: Instant,
    gives_up: Instant,
    rate: Rate,
    /// Requests in all, in the open loop.
    total: u64,
}

impl LoadPlan {
    fn new(load: &Load) -> LoadPlan {
        let counts_from = Instant::now() + load.warmup;
        let ends = counts_from + load.measured;
        let total = match load.rate {
            Rate::Max => u64::MAX,
            Rate::PerSecond(rate) => (load.measured.as_secs_f64() * rate).ceil() as u64,
        };
        LoadPlan { counts_from, ends, gives_up: ends + DRAIN, rate: load.rate, total }
    }

    /// When a request is due; in the closed loop, now.
    fn due(&self, index: u64) -> Instant {
        match self.rate {
            Rate::Max => Instant::now(),
            Rate::PerSecond(rate) => self.counts_from + Duration::from_secs_f64(index as f64 / rate),
        }
    }

    fn is_over(&self) -> bool {
        let end = match self.rate {
            Rate::Max => self.ends,
            Rate::PerSecond(_) => self.gives_up,
        };
        Instant::now() >= end
    }
}

impl Load {
    /// Sends and measures.
    pub async fn run(&self) -> Measured {
        let plan = Arc::new(LoadPlan::new(self));
        let shared = Arc::new(Shared {
            load: Arc::clone(&plan),
            warming: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            due: Semaphore::new(0),
        });
        if matches!(self.rate, Rate::PerSecond(_)) {
            let shared = Arc::clone(&shared);
            let connections = self.connections;
            std::thread::spawn(move || announce(&shared, connections));
        }
        let requests: Arc<[Bytes]> = self.requests.clone().into();
        let workers: Vec<_> = (0..self.connections)
            .map(|index| {
                let connection = Connection::new(Arc::clone(&self.targets[index % self.targets.len()]));
                tokio::spawn(work(connection, Arc::clone(&requests), Arc::clone(&shared)))
            })
            .collect();
        let mut all = Measured { latencies_us: histogram(), errors: BTreeMap::new(), unserved: 0, elapsed: Duration::ZERO };
        for worker in workers {
            match worker.await {
                Ok(one) => all.add(one),
                Err(error) => *all.errors.entry(format!("client: {error}")).or_default() += 1,
            }
        }
        if matches!(self.rate, Rate::PerSecond(_)) {
            all.unserved = plan.total.saturating_sub(shared.taken.load(Ordering::Relaxed));
        }
        all
    }
}

impl Measured {
    fn add(&mut self, other: Measured) {
        // Both have the same bounds, so nothing can be out of range.
        let _ = self.latencies_us.add(&other.latencies_us);
        for (name, count) in other.errors {
            *self.errors.entry(name).or_default() += count;
        }
        self.elapsed = self.elapsed.max(other.elapsed);
    }
}

/// Announces requests as they become due. On a thread of its own, since the runtime's timer only knows milliseconds.
fn announce(shared: &Shared, connections: usize) {
    let plan = &shared.load;
    for index in 0..plan.total {
        let wait = plan.due(index).saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        shared.due.add_permits(1);
    }
    // Everyone who waits for more learns that there is none.
    shared.due.add_permits(connections);
}

async fn work(mut connection: Connection, requests: Arc<[Bytes]>, shared: Arc<Shared>) -> Measured {
    let plan = &shared.load;
    let request = |index: u64| &requests[(index % requests.len() as u64) as usize];
    // In a closed loop in any case: a node that cannot keep up must not begin with what it has not done yet.
    while Instant::now() < plan.counts_from {
        let index = shared.warming.fetch_add(1, Ordering::Relaxed);
        if connection.search(request(index)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let mut measured = Measured { latencies_us: histogram(), errors: BTreeMap::new(), unserved: 0, elapsed: Duration::ZERO };
    loop {
        if matches!(plan.rate, Rate::PerSecond(_)) {
            match shared.due.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => return measured,
            }
        }
        if plan.is_over() {
            return measured;
        }
        let index = shared.taken.fetch_add(1, Ordering::Relaxed);
        if index >= plan.total {
            return measured;
        }
        let due = plan.due(index);
        let answer = connection.search(request(index)).await;
        measured.record(due, plan.counts_from, answer);
    }
}

impl Measured {
    fn record(&mut self, due: Instant, counts_from: Instant, answer: Result<&[u8], String>) {
        self.elapsed = self.elapsed.max(counts_from.elapsed());
        match answer {
            Ok(_) => self.latencies_us.saturating_record(due.elapsed().as_micros() as u64),
            Err(error) => *self.errors.entry(error).or_default() += 1,
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).expect("1 is below the maximum and 3 digits are allowed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::test_node;

    /// A node that takes its time.
    fn node(takes: Duration) -> String {
        test_node::start(move |_| {
            std::thread::sleep(takes);
            (200, "{}".to_owned())
        })
    }

    fn load(endpoint: &str, connections: usize, rate: Rate, measured_ms: u64) -> Load {
        Load {
            targets: vec![Target::new(endpoint, None, "c").unwrap()],
            requests: vec![Bytes::from_static(b"{}")],
            connections,
            rate,
            measured: Duration::from_millis(measured_ms),
            warmup: Duration::from_millis(50),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn in_the_open_loop_waiting_counts_and_in_the_closed_one_it_does_not() {
        // One connection can do 50 a second; 100 are due: the last of them waits as long again as everything lasts.
        let endpoint = node(Duration::from_millis(20));
        let open = load(&endpoint, 1, Rate::PerSecond(100.0), 500).run().await;
        assert_eq!((open.latencies_us.len(), open.unserved), (50, 0));
        assert!(open.latencies_us.max() >= 400_000, "{}", open.latencies_us.max());
        let closed = load(&endpoint, 1, Rate::Max, 500).run().await;
        assert!((1..=25).contains(&closed.latencies_us.len()), "{}", closed.latencies_us.len());
        assert!(closed.latencies_us.value_at_quantile(0.5) < 200_000);
    }

    #[tokio::test]
    async fn failures_are_counted_by_what_they_were_and_have_no_latency() {
        let endpoint = test_node::start(|_| test_node::problem(429, "busy"));
        let measured = load(&endpoint, 2, Rate::PerSecond(200.0), 100).run().await;
        assert_eq!(measured.latencies_us.len(), 0);
        assert_eq!(measured.errors, BTreeMap::from([("busy".to_owned(), 20)]));
    }
}
