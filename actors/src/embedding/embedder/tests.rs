//! What becomes of requests when devices fail.

use super::*;
use crate::embedding::devices::OpenDevice;
use parking_lot::Mutex;
use prometheus::Registry;
use ragged_kernels::{DeviceError, GpuError};
use ragged_raft::ids::TenantId;
use std::sync::atomic::AtomicBool;
use tokio::time::timeout;

/// A device whose vectors are their sequence's length and its own number.
struct Numbered {
    number: f32,
    name: String,
    at_once: usize,
    fails: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
    is_lost: Arc<AtomicBool>,
    /// Where its batches wait for one another.
    gate: Option<Arc<std::sync::Barrier>>,
    /// Only batches of a first text of so many tokens wait there.
    gated: Option<usize>,
    batches: AtomicUsize,
    computing: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl Numbered {
    fn new(number: f32) -> Self {
        Numbered {
            number,
            name: format!("device {number}"),
            at_once: 1,
            fails: Arc::default(),
            panics: Arc::default(),
            is_lost: Arc::default(),
            gate: None,
            gated: None,
            batches: AtomicUsize::new(0),
            computing: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
        }
    }
}

impl Device for Numbered {
    fn name(&self) -> &str {
        &self.name
    }

    fn embed(&self, sequences: &[TokenSequence]) -> Result<Vec<f32>, DeviceError> {
        let computing = self.computing.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(computing, Ordering::SeqCst);
        self.batches.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate
            && self.gated.is_none_or(|gated| sequences[0].len() == gated)
        {
            gate.wait();
        }
        self.computing.fetch_sub(1, Ordering::SeqCst);
        if self.panics.load(Ordering::SeqCst) {
            panic!("injected");
        }
        if self.fails.load(Ordering::SeqCst) {
            return Err(GpuError::Lost.into());
        }
        if let Some(sequence) = sequences.iter().position(|sequence| sequence.is_empty()) {
            return Err(DeviceError::EmptySequence { sequence });
        }
        Ok(sequences.iter().flat_map(|sequence| [sequence.len() as f32, self.number]).collect())
    }

    fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::SeqCst)
    }

    fn batches_in_flight(&self) -> usize {
        self.at_once
    }
}

struct Running {
    queue: EmbedderQueue,
    metrics: EmbeddingMetrics,
    actor: ActorRef<EmbedderMessage>,
}

impl Running {
    async fn start(device: Arc<dyn Device>, spare: Option<Spare>) -> Running {
        let metrics = EmbeddingMetrics::register(&Registry::new()).unwrap();
        let queue = EmbedderQueue::new("embedder");
        let arguments = EmbedderArguments {
            queue: queue.clone(),
            device: slot(device),
            spare,
            dimension: 2,
            queued_tokens_max: 10_000,
            metrics: metrics.clone(),
        };
        let (actor, _) = Actor::spawn(None, Embedder, arguments).await.unwrap();
        Running { queue, metrics, actor }
    }

    async fn embed(&self, lengths: &[usize]) -> Result<Vec<Vec<f32>>, ServiceError> {
        let sequences = Arc::new(lengths.iter().map(|length| TokenSequence(vec![7; *length])).collect::<Vec<_>>());
        let ask = |reply| EmbedderMessage::Embed {
            account: Account { tenant: TenantId(1), key: Some("key".into()) },
            urgency: Urgency::Document,
            sequences: sequences.clone(),
            reply,
        };
        timeout(Duration::from_secs(20), self.queue.address.call(Duration::from_secs(15), Repeat::Safe, ask)).await.unwrap()
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        for _ in 0..1_000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never seen: {what}");
    }
}

fn batches_of_ten(device: Arc<dyn Device>) -> BatchDevice {
    BatchDevice { device, batch_tokens: 10 }
}

fn slot(device: Arc<dyn Device>) -> DeviceSlot {
    Arc::new(Mutex::new(Some(batches_of_ten(device))))
}

fn spare(device: Arc<dyn Device>, reopen: OpenDevice) -> Option<Spare> {
    let device = batches_of_ten(device);
    let (backoff_initial, backoff_max) = (Duration::from_millis(5), Duration::from_millis(40));
    Some(Spare { device, reopen, backoff_initial, backoff_max, hung_after: Duration::from_secs(60) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_device_is_stood_in_for_and_opened_again_and_no_request_is_lost() {
    for by_panic in [false, true] {
        let (own, other) = (Numbered::new(1.0), Arc::new(Numbered::new(2.0)));
        let (fails, panics) = (own.fails.clone(), own.panics.clone());
        let attempts = Arc::new(AtomicUsize::new(0));
        let may_open = Arc::new(AtomicBool::new(false));
        let reopen: OpenDevice = {
            let (attempts, may_open) = (attempts.clone(), may_open.clone());
            Arc::new(move || {
                attempts.fetch_add(1, Ordering::SeqCst);
                match may_open.load(Ordering::SeqCst) {
                    true => Ok(batches_of_ten(Arc::new(Numbered::new(3.0)))),
                    false => Err("not yet".to_owned()),
                }
            })
        };
        let running = Running::start(Arc::new(own), spare(other, reopen)).await;
        assert_eq!(running.embed(&[3, 4]).await.unwrap(), [[3.0, 1.0], [4.0, 1.0]]);
        assert_eq!(attempts.load(Ordering::SeqCst), 0);

        match by_panic {
            true => panics.store(true, Ordering::SeqCst),
            false => fails.store(true, Ordering::SeqCst),
        }
        // Several batches: the first meets the failure, and is answered all the same.
        let vectors = running.embed(&[9, 8, 7]).await.unwrap();
        assert_eq!(vectors, [[9.0, 2.0], [8.0, 2.0], [7.0, 2.0]]);
        running.until("opened again in vain, more than once", || attempts.load(Ordering::SeqCst) >= 3).await;
        assert_eq!((running.metrics.failures.get(), running.metrics.devices_lost.get()), (1, 1));
        // Of [3, 4] one batch; of [9, 8, 7] one on each of both, and two on the other.
        let counted = |device: &str| {
            let (tokens, seconds) = (&running.metrics.batch_tokens, &running.metrics.batch_seconds);
            let (tokens, seconds) = (tokens.with_label_values(&[device]), seconds.with_label_values(&[device]));
            let busy = running.metrics.busy_seconds.with_label_values(&[device]).get();
            assert!((seconds.get_sample_sum() - busy).abs() < 1e-9);
            (tokens.get_sample_count(), tokens.get_sample_sum(), busy)
        };
        let ((own, own_tokens, own_busy), (spare, spare_tokens, spare_busy)) = (counted("device 1"), counted("device 2"));
        assert_eq!((own, own_tokens, spare, spare_tokens), (2, 16.0, 3, 24.0));
        let spent = running.metrics.tenants.spent("1", "key");
        assert!((spent - own_busy - spare_busy).abs() < 1e-9 && spent > 0.0, "{spent} {own_busy} {spare_busy}");
        assert_eq!(running.metrics.queue_seconds.get_sample_count(), 5);
        assert_eq!(running.embed(&[5]).await.unwrap(), [[5.0, 2.0]]);

        may_open.store(true, Ordering::SeqCst);
        running.until("the device is back", || running.metrics.devices_lost.get() == 0).await;
        assert_eq!(running.embed(&[6]).await.unwrap(), [[6.0, 3.0]]);
        running.actor.stop_and_wait(None, None).await.unwrap();
        assert_eq!((running.metrics.queued_tokens.get(), running.metrics.batches.get()), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sequences_that_no_device_can_embed_are_refused_and_blame_no_device() {
    let opened = Arc::new(AtomicBool::new(false));
    let reopen: OpenDevice = {
        let opened = opened.clone();
        Arc::new(move || {
            opened.store(true, Ordering::SeqCst);
            Err("not wanted".to_owned())
        })
    };
    let running = Running::start(Arc::new(Numbered::new(1.0)), spare(Arc::new(Numbered::new(2.0)), reopen)).await;
    assert!(running.embed(&[0]).await.is_err());
    assert_eq!(running.embed(&[2]).await.unwrap(), [[2.0, 1.0]]);
    assert_eq!(running.metrics.failures.get(), 0);
    assert!(!opened.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_spare_device_a_failure_is_the_callers_and_the_next_batch_is_tried() {
    let own = Arc::new(Numbered::new(1.0));
    let running = Running::start(own.clone(), None).await;
    own.fails.store(true, Ordering::SeqCst);
    assert!(running.embed(&[2]).await.is_err());
    own.fails.store(false, Ordering::SeqCst);
    assert_eq!(running.embed(&[2]).await.unwrap(), [[2.0, 1.0]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gets_as_many_batches_as_keep_it_busy() {
    // Both batches are on the device at the same time, or neither ends.
    let gate = Some(Arc::new(std::sync::Barrier::new(2)));
    let device = Arc::new(Numbered { at_once: 2, gate, ..Numbered::new(1.0) });
    let running = Running::start(device.clone(), None).await;
    let lengths = [10; 6];
    assert_eq!(running.embed(&lengths).await.unwrap().len(), lengths.len());
    assert_eq!(device.most_at_once.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_where_least_waits() {
    let [idle, busy, away] = ["idle", "busy", "away"].map(EmbedderQueue::new);
    let mut running = Vec::new();
    for queue in [&idle, &busy] {
        let arguments = EmbedderArguments {
            queue: queue.clone(),
            device: slot(Arc::new(Numbered::new(1.0))),
            spare: None,
            dimension: 2,
            queued_tokens_max: 100,
            metrics: EmbeddingMetrics::register(&Registry::new()).unwrap(),
        };
        running.push(Actor::spawn(None, Embedder, arguments).await.unwrap().0);
    }
    busy.waiting.store(100, Ordering::Relaxed);
    idle.waiting.store(5, Ordering::Relaxed);
    let queues = [away, busy, idle];
    assert_eq!(least_busy(&queues).waiting.load(Ordering::Relaxed), 5);
    queues[2].has_lost_its_device.store(true, Ordering::Relaxed);
    assert_eq!(least_busy(&queues).waiting.load(Ordering::Relaxed), 100, "one with its own device is faster");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedder_that_is_started_again_knows_that_its_device_has_failed() {
    let reopened = Arc::new(AtomicUsize::new(0));
    let reopen: OpenDevice = {
        let reopened = reopened.clone();
        Arc::new(move || {
            reopened.fetch_add(1, Ordering::SeqCst);
            Ok(batches_of_ten(Arc::new(Numbered::new(3.0))))
        })
    };
    let own = Numbered::new(1.0);
    own.fails.store(true, Ordering::SeqCst);
    let slot = slot(Arc::new(own));
    let patient = |spare: Option<Spare>| spare.map(|spare| Spare { backoff_initial: Duration::from_secs(600), ..spare });
    let arguments = |spare| EmbedderArguments {
        queue: EmbedderQueue::new("embedder"),
        device: slot.clone(),
        spare,
        dimension: 2,
        queued_tokens_max: 100,
        metrics: EmbeddingMetrics::register(&Registry::new()).unwrap(),
    };
    let first = arguments(patient(spare(Arc::new(Numbered::new(2.0)), reopen.clone())));
    let (queue, metrics) = (first.queue.clone(), first.metrics.clone());
    let (actor, _) = Actor::spawn(None, Embedder, first).await.unwrap();
    let running = Running { queue, metrics, actor };
    assert_eq!(running.embed(&[4]).await.unwrap(), [[4.0, 2.0]]);
    running.actor.stop_and_wait(None, None).await.unwrap();
    assert!(slot.lock().is_none(), "nothing keeps the device that has failed");

    let again = arguments(spare(Arc::new(Numbered::new(2.0)), reopen));
    let (queue, metrics) = (again.queue.clone(), again.metrics.clone());
    let (actor, _) = Actor::spawn(None, Embedder, again).await.unwrap();
    let running = Running { queue, metrics, actor };
    running.until("opened again", || reopened.load(Ordering::SeqCst) == 1 && slot.lock().is_some()).await;
    assert_eq!(running.embed(&[5]).await.unwrap(), [[5.0, 3.0]]);
}

/// Opens a device of number 3 each time, and counts that.
fn counted(opened: &Arc<AtomicUsize>) -> OpenDevice {
    let opened = opened.clone();
    Arc::new(move || {
        opened.fetch_add(1, Ordering::SeqCst);
        Ok(batches_of_ten(Arc::new(Numbered::new(3.0))))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_hangs_is_given_up_and_its_batches_are_embedded_by_the_spare_one() {
    // Two batches come and wait for a third.
    let gate = Arc::new(std::sync::Barrier::new(3));
    let own = Numbered { at_once: 2, gate: Some(gate.clone()), ..Numbered::new(1.0) };
    let opened = Arc::new(AtomicUsize::new(0));
    let spare = spare(Arc::new(Numbered::new(2.0)), counted(&opened));
    let hung_after = Duration::from_secs(2);
    let running = Running::start(Arc::new(own), spare.map(|spare| Spare { hung_after, ..spare })).await;
    assert_eq!(running.embed(&[9, 8]).await.unwrap(), [[9.0, 2.0], [8.0, 2.0]]);
    assert_eq!((running.metrics.failures.get(), running.metrics.devices_lost.get()), (2, 1));
    assert_eq!(running.embed(&[7]).await.unwrap(), [[7.0, 2.0]]);
    assert_eq!(opened.load(Ordering::SeqCst), 0, "it is not opened again while something is on it");

    // It comes back, and what it has found meanwhile is nobody's any more.
    tokio::task::spawn_blocking(move || gate.wait()).await.unwrap();
    running.until("the device is back", || running.metrics.devices_lost.get() == 0).await;
    assert_eq!(running.embed(&[6]).await.unwrap(), [[6.0, 3.0]]);
    // Said behind the answer.
    running.until("nothing is under way", || running.metrics.batches.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_lost_by_others_is_opened_again_though_nothing_is_embedded() {
    let own = Numbered::new(1.0);
    let is_lost = own.is_lost.clone();
    let opened = Arc::new(AtomicUsize::new(0));
    let spare = spare(Arc::new(Numbered::new(2.0)), counted(&opened));
    let hung_after = Duration::from_secs(2);
    let running = Running::start(Arc::new(own), spare.map(|spare| Spare { hung_after, ..spare })).await;
    is_lost.store(true, Ordering::SeqCst);
    running.until("opened again", || opened.load(Ordering::SeqCst) == 1).await;
    running.until("in use", || running.metrics.devices_lost.get() == 0).await;
    assert_eq!(running.embed(&[6]).await.unwrap(), [[6.0, 3.0]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedder_that_has_ended_opens_no_device() {
    let own = Numbered::new(1.0);
    own.fails.store(true, Ordering::SeqCst);
    let opened = Arc::new(AtomicUsize::new(0));
    let spare = spare(Arc::new(Numbered::new(2.0)), counted(&opened));
    let backoff_initial = Duration::from_secs(1);
    let running =
        Running::start(Arc::new(own), spare.map(|spare| Spare { backoff_initial, backoff_max: backoff_initial, ..spare })).await;
    assert_eq!(running.embed(&[4]).await.unwrap(), [[4.0, 2.0]]);
    running.actor.stop_and_wait(None, None).await.unwrap();
    tokio::time::sleep(2 * backoff_initial).await;
    assert_eq!(opened.load(Ordering::SeqCst), 0);
}

#[test]
fn a_device_that_fails_again_soon_is_waited_for_longer_though_it_worked_in_between() {
    let device = || -> Arc<dyn Device> { Arc::new(Numbered::new(1.0)) };
    let opened = Arc::new(AtomicUsize::new(0));
    let spare = spare(device(), counted(&opened));
    let (backoff_initial, backoff_max) = (Duration::from_millis(100), Duration::from_secs(600));
    let spare = spare.map(|spare| Spare { backoff_initial, backoff_max, ..spare });
    let (mut devices, _) = Devices::new(slot(device()), spare).unwrap();
    let mut waits = Vec::new();
    for _ in 0..6 {
        let own = devices.current().device().clone();
        devices.worked(&own);
        let later = devices.give_up(&own).unwrap();
        drop(own);
        waits.push(later.wait.as_millis());
        assert!(devices.reopened((later.open)()).is_none());
    }
    assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200]);
    // Once it has worked for as long as it was waited for, it is as good as any.
    std::thread::sleep(Duration::from_millis(3_300));
    let own = devices.current().device().clone();
    devices.worked(&own);
    assert_eq!(devices.give_up(&own).unwrap().wait, backoff_initial);
}

/// One batch of two hangs; the other fails, which gives the device up before the first is missed.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_hangs_on_a_device_that_was_given_up_is_embedded_all_the_same() {
    let gate = Arc::new(std::sync::Barrier::new(2));
    let own = Arc::new(Numbered { at_once: 2, gate: Some(gate.clone()), gated: Some(9), ..Numbered::new(1.0) });
    own.fails.store(true, Ordering::SeqCst);
    let opened = Arc::new(AtomicUsize::new(0));
    let spare = spare(Arc::new(Numbered::new(2.0)), counted(&opened));
    let hung_after = Duration::from_secs(2);
    let running = Running::start(own, spare.map(|spare| Spare { hung_after, ..spare })).await;
    let (hung, failed) = tokio::join!(running.embed(&[9]), running.embed(&[8]));
    assert_eq!((hung.unwrap(), failed.unwrap()), (vec![vec![9.0, 2.0]], vec![vec![8.0, 2.0]]));
    // The spare one is fed whatever hangs.
    assert_eq!(running.embed(&[7]).await.unwrap(), [[7.0, 2.0]]);
    assert_eq!((running.metrics.failures.get(), running.metrics.texts.get()), (2, 3));
    tokio::task::spawn_blocking(move || gate.wait()).await.unwrap();
    running.until("the device is back", || running.metrics.devices_lost.get() == 0).await;
    assert_eq!((running.metrics.failures.get(), running.metrics.texts.get()), (2, 3), "what came too late is not counted again");
}

/// A spare device that takes longer than a device may hang: the one before it has answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_spare_device_may_take_its_time() {
    let own = Numbered::new(1.0);
    own.fails.store(true, Ordering::SeqCst);
    let gate = Arc::new(std::sync::Barrier::new(2));
    let other = Arc::new(Numbered { gate: Some(gate.clone()), ..Numbered::new(2.0) });
    let spare = spare(other.clone(), counted(&Arc::default()));
    let hung_after = Duration::from_secs(1);
    let running = Running::start(
        Arc::new(own),
        spare.map(|spare| Spare { hung_after, backoff_initial: Duration::from_secs(600), ..spare }),
    )
    .await;
    let slowly = async move {
        tokio::time::sleep(2 * hung_after).await;
        tokio::task::spawn_blocking(move || gate.wait()).await.unwrap();
    };
    let (embedded, ()) = tokio::join!(running.embed(&[5]), slowly);
    assert_eq!(embedded.unwrap(), [[5.0, 2.0]]);
    assert_eq!((running.metrics.failures.get(), other.batches.load(Ordering::SeqCst)), (1, 1));
}
