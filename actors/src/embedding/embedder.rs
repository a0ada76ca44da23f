//! The actor of one embedding device: queues texts, and feeds the device as many batches as keep it busy.

use crate::account_seconds::Account;
use crate::address::{Address, Repeat, Reply};
use crate::embedding::devices::{BatchDevice, DeviceSlot, Devices, InUse, OpenLater, Spare};
use crate::embedding::metrics::EmbeddingMetrics;
use crate::embedding::query_cache::QueryCache;
use crate::embedding::queue::{Item, Queue};
use crate::error::{ErrorKind, ServiceError};
use prometheus::Histogram;
use ractor::concurrency::Duration;
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorStatus};
use ragged_kernels::{Device, Model, TokenSequence};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

pub use crate::embedding::queue::Urgency;

/// How long a search waits for its vector before it is told that the node is overloaded.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long documents wait: a bound for what has gone wrong, not for a long queue, whose length is limited by itself.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(3600);

/// How often it is seen whether a device still answers: a part of the time after which it hangs, within these.
const LOOK_MIN: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// The embedding part of a node, for whoever needs vectors.
#[derive(Clone)]
pub struct Embedding {
    model: Arc<Model>,
    queues: Arc<[EmbedderQueue]>,
    queries: Arc<QueryCache>,
    tokenize_seconds: Histogram,
}

/// Where an embedder is reached, and how much waits there.
#[derive(Clone)]
pub struct EmbedderQueue {
    /// Its address.
    pub address: Arc<Address<EmbedderMessage>>,
    /// Tokens that wait for its device or are on it.
    pub waiting: Arc<AtomicUsize>,
    /// Whether its device has failed, and a slower one computes.
    pub has_lost_its_device: Arc<AtomicBool>,
}

impl EmbedderQueue {
    /// The queue of an embedder that is about to be started.
    pub fn new(name: impl Into<String>) -> Self {
        EmbedderQueue { address: Arc::new(Address::new(name)), waiting: Arc::default(), has_lost_its_device: Arc::default() }
    }
}

impl Embedding {
    /// Embedding by this model through these embedders, of which there is at least one; vectors of queries are kept there.
    pub fn new(model: Arc<Model>, queues: Vec<EmbedderQueue>, queries: Arc<QueryCache>, metrics: &EmbeddingMetrics) -> Self {
        Embedding { model, queues: queues.into(), queries, tokenize_seconds: metrics.tokenize_seconds.clone() }
    }

    /// The model that makes the vectors.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    #[cfg(test)]
    pub(crate) fn address(&self) -> &Arc<Address<EmbedderMessage>> {
        &self.queues[0].address
    }

    /// Whether there is an embedder to ask.
    pub fn is_running(&self) -> bool {
        self.queues.iter().any(|queue| queue.address.current().is_some())
    }

    /// The vector of a query, from memory when the tenant has asked the same lately.
    pub async fn embed_query(&self, account: &Account, query: &str) -> Result<Arc<[f32]>, ServiceError> {
        if let Some(known) = self.queries.get(account.tenant, query) {
            return Ok(known);
        }
        let embedded = self.embed(account, Urgency::Query, vec![query.to_owned()]).await?.pop();
        let vector: Arc<[f32]> = embedded.ok_or_else(|| ServiceError::internal("a query was embedded into nothing"))?.into();
        self.queries.keep(account.tenant, query, &vector);
        Ok(vector)
    }

    /// Vectors of texts, each of the model's dimension and of length 1, in the texts' order.
    pub async fn embed(&self, account: &Account, urgency: Urgency, texts: Vec<String>) -> Result<Vec<Vec<f32>>, ServiceError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let model = self.model.clone();
        let seconds = self.tokenize_seconds.clone();
        let tokenize = move || {
            let begun = Instant::now();
            let sequences = texts.iter().map(|text| model.tokenizer().encode(text)).collect::<Result<Vec<_>, _>>();
            seconds.observe(begun.elapsed().as_secs_f64());
            sequences
        };
        let sequences = tokio::task::spawn_blocking(tokenize)
            .await
            .map_err(|fault| ServiceError::internal(format!("tokenizing failed: {fault}")))?
            .map_err(|fault| ServiceError::invalid("not_tokenizable", fault.to_string()))?;
        let sequences = Arc::new(sequences);
        let limit = match urgency {
            Urgency::Query => QUERY_TIMEOUT,
            Urgency::Document => DOCUMENT_TIMEOUT,
        };
        // Embedding changes nothing: a request that an embedder took down with it is sent again to the next one.
        let queue = least_busy(&self.queues);
        // Until the embedder counts by itself, so that those who ask at the same time do not all go there.
        queue.waiting.fetch_add(sequences.iter().map(TokenSequence::len).sum(), Ordering::Relaxed);
        queue
            .address
            .call(limit, Repeat::Safe, |reply| EmbedderMessage::Embed {
                account: account.clone(),
                urgency,
                sequences: sequences.clone(),
                reply,
            })
            .await
    }
}

/// The embedder that has the least to do, of those that are there.
fn least_busy(queues: &[EmbedderQueue]) -> &EmbedderQueue {
    let by_worth = |queue: &&EmbedderQueue| {
        let (is_away, is_slow) = (queue.address.current().is_none(), queue.has_lost_its_device.load(Ordering::Relaxed));
        (is_away, is_slow, queue.waiting.load(Ordering::Relaxed))
    };
    queues.iter().min_by_key(by_worth).unwrap_or(&queues[0])
}

/// Messages of the embedder.
pub enum EmbedderMessage {
    /// Asks for the vectors of texts.
    Embed {
        /// Whose turn and whose seconds it is counted as.
        account: Account,
        /// How soon they are needed.
        urgency: Urgency,
        /// The texts' tokens.
        sequences: Arc<Vec<TokenSequence>>,
        /// Where the vectors go, in the texts' order.
        reply: Reply<Vec<Vec<f32>>>,
    },
    /// The device has finished a batch.
    BatchDone {
        /// The batch's number.
        number: u64,
        /// One vector a text, one after the other; or what went wrong.
        vectors: Result<Vec<f32>, ServiceError>,
        /// The device that was asked first.
        device: Arc<dyn Device>,
        /// Whether that has failed.
        device_failed: bool,
    },
    /// The device was opened again, or could not be.
    Reopened(Result<BatchDevice, String>),
    /// It is time to see whether the device still answers.
    Look,
    /// A panic on purpose, to test what stands above.
    #[cfg(test)]
    Panic,
}

/// What an embedder is started with.
#[derive(Clone)]
pub struct EmbedderArguments {
    /// Told where the actor is.
    pub queue: EmbedderQueue,
    /// The device.
    pub device: DeviceSlot,
    /// What computes while the device has failed.
    pub spare: Option<Spare>,
    /// Length of its vectors.
    pub dimension: usize,
    /// Tokens that may wait; more are refused.
    pub queued_tokens_max: usize,
    /// Counters.
    pub metrics: EmbeddingMetrics,
}

/// The actor of one device.
pub struct Embedder;

/// What an embedder knows.
pub struct EmbedderState {
    arguments: EmbedderArguments,
    devices: Devices,
    queue: Queue,
    requests: HashMap<u64, Request>,
    next_request: u64,
    /// Batches on devices, by their numbers.
    batches: HashMap<u64, UnderWay>,
    next_batch: u64,
    gauges: Gauges,
}

/// Texts that are embedded together.
struct Batch {
    items: Vec<Item>,
    sequences: Vec<TokenSequence>,
    tokens: usize,
}

/// A batch on a device.
struct UnderWay {
    batch: Arc<Batch>,
    device: Arc<dyn Device>,
    /// Whether the device has come back from it.
    has_answered: Arc<AtomicBool>,
    begun: Instant,
}

/// What this embedder has added to the gauges that embedders share; taken back when it ends.
struct Gauges {
    metrics: EmbeddingMetrics,
    queued_tokens: i64,
    batches: i64,
    devices_lost: i64,
}

impl Gauges {
    fn set(&mut self, queued_tokens: i64, batches: i64, devices_lost: i64) {
        self.metrics.queued_tokens.add(queued_tokens - self.queued_tokens);
        self.metrics.batches.add(batches - self.batches);
        self.metrics.devices_lost.add(devices_lost - self.devices_lost);
        (self.queued_tokens, self.batches, self.devices_lost) = (queued_tokens, batches, devices_lost);
    }
}

impl Drop for Gauges {
    fn drop(&mut self) {
        self.set(0, 0, 0);
    }
}

struct Request {
    sequences: usize,
    vectors: Vec<Vec<f32>>,
    reply: Reply<Vec<Vec<f32>>>,
}

impl Actor for Embedder {
    type Msg = EmbedderMessage;
    type State = EmbedderState;
    type Arguments = EmbedderArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<EmbedderMessage>,
        arguments: EmbedderArguments,
    ) -> Result<EmbedderState, ActorProcessingErr> {
        let devices = Devices::new(arguments.device.clone(), arguments.spare.clone());
        let (devices, later) = devices.ok_or("there is no device to embed on")?;
        open_later(&myself, later);
        if let Some(spare) = &arguments.spare {
            let often = (spare.hung_after / 4).clamp(LOOK_MIN, LOOK_MAX);
            drop(myself.send_interval(often, || EmbedderMessage::Look)); // it ends with the actor
        }
        arguments.queue.waiting.store(0, Ordering::Relaxed);
        arguments.queue.address.moved_to(myself);
        Ok(EmbedderState {
            devices,
            gauges: Gauges { metrics: arguments.metrics.clone(), queued_tokens: 0, batches: 0, devices_lost: 0 },
            arguments,
            queue: Queue::default(),
            requests: HashMap::new(),
            next_request: 0,
            batches: HashMap::new(),
            next_batch: 0,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<EmbedderMessage>,
        message: EmbedderMessage,
        state: &mut EmbedderState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            EmbedderMessage::Embed { account, urgency, sequences, reply } => state.accept(&account, urgency, &sequences, reply),
            EmbedderMessage::BatchDone { number, vectors, device, device_failed } => {
                // Nothing is under way any more of a batch that hung, and was given to another device.
                let done = state.batches.remove(&number);
                if let Some(UnderWay { batch, .. }) = &done {
                    state.arguments.metrics.failures.inc_by(u64::from(device_failed));
                    if vectors.is_ok() {
                        state.arguments.metrics.tokens.inc_by(batch.tokens as u64);
                        state.arguments.metrics.texts.inc_by(batch.items.len() as u64);
                    }
                }
                if device_failed {
                    open_later(&myself, state.devices.give_up(&device));
                } else if vectors.is_ok() {
                    state.devices.worked(&device);
                }
                if let Some(UnderWay { batch, .. }) = &done {
                    state.deliver(&batch.items, vectors);
                }
                if !state.devices.is_in_use(&device) {
                    drop_elsewhere((device, done));
                }
            }
            EmbedderMessage::Reopened(opened) => open_later(&myself, state.devices.reopened(opened)),
            EmbedderMessage::Look => state.look(&myself),
            #[cfg(test)]
            EmbedderMessage::Panic => panic!("injected"),
        }
        state.feed_device(&myself);
        state.report();
        Ok(())
    }
}

impl EmbedderState {
    fn accept(&mut self, account: &Account, urgency: Urgency, sequences: &[TokenSequence], reply: Reply<Vec<Vec<f32>>>) {
        let tokens: usize = sequences.iter().map(TokenSequence::len).sum();
        if self.queue.tokens() > 0 && self.queue.tokens() + tokens > self.arguments.queued_tokens_max {
            self.drop_abandoned();
        }
        // A request alone in the queue is taken whatever its size, else a large one could never be served.
        if self.queue.tokens() > 0 && self.queue.tokens() + tokens > self.arguments.queued_tokens_max {
            let detail =
                format!("{} tokens wait to be embedded, the limit is {}", self.queue.tokens(), self.arguments.queued_tokens_max);
            answer(reply, Err(ServiceError::new(ErrorKind::Unavailable, "embedding_overloaded", detail)));
            return;
        }
        let (request, since) = (self.next_request, Instant::now());
        self.next_request += 1;
        for (position, tokens) in sequences.iter().enumerate() {
            let (account, tokens) = (account.clone(), tokens.clone());
            self.queue.push(urgency, Item { account, request, position, tokens, since });
        }
        self.requests.insert(request, Request { sequences: sequences.len(), vectors: vec![Vec::new(); sequences.len()], reply });
    }

    /// Forgets requests whose caller has gone.
    fn drop_abandoned(&mut self) {
        self.requests.retain(|_, request| !request.reply.is_closed());
        self.queue.retain(|request| self.requests.contains_key(&request));
    }

    fn feed_device(&mut self, myself: &ActorRef<EmbedderMessage>) {
        loop {
            let device = self.devices.current();
            // What hangs on another one is nothing to it.
            let on_it = |under_way: &&UnderWay| Arc::ptr_eq(&under_way.device, device.device());
            if self.batches.values().filter(on_it).count() >= device.batches_in_flight() {
                return;
            }
            let mut items = self.queue.take_batch(device.batch_tokens());
            if items.is_empty() {
                return;
            }
            let sequences: Vec<TokenSequence> = items.iter_mut().map(|item| std::mem::take(&mut item.tokens)).collect();
            let tokens = sequences.iter().map(TokenSequence::len).sum();
            items.iter().for_each(|item| self.arguments.metrics.queue_seconds.observe(item.since.elapsed().as_secs_f64()));
            self.give(myself, Arc::new(Batch { items, sequences, tokens }), device);
        }
    }

    /// Gives a batch to a device.
    fn give(&mut self, myself: &ActorRef<EmbedderMessage>, batch: Arc<Batch>, device: InUse) {
        let number = self.next_batch;
        self.next_batch += 1;
        let under_way = UnderWay {
            batch: batch.clone(),
            device: device.device().clone(),
            has_answered: device.has_answered().clone(),
            begun: Instant::now(),
        };
        self.batches.insert(number, under_way);
        let metrics = self.arguments.metrics.clone();
        let myself = myself.clone();
        tokio::task::spawn_blocking(move || {
            if myself.send_message(run_batch(device, number, &batch, &metrics)).is_err() {
                tracing::debug!("the embedder ended while its device worked: its callers ask again");
            }
        });
    }

    /// Gives up a device that does not come back from a batch, or that was lost to others. The batches are given to the spare one.
    fn look(&mut self, myself: &ActorRef<EmbedderMessage>) {
        self.hand_over_what_hangs(myself);
        let Some(device) = self.devices.lost() else { return };
        tracing::warn!(device = device.name(), "the embedding device answers no more; the spare one computes");
        // A batch that is on it says by itself that it has failed.
        let is_idle = !self.batches.values().any(|under_way| Arc::ptr_eq(&under_way.device, &device));
        self.arguments.metrics.failures.inc_by(u64::from(is_idle));
        open_later(myself, self.devices.give_up(&device));
        drop_elsewhere(device);
    }

    fn hand_over_what_hangs(&mut self, myself: &ActorRef<EmbedderMessage>) {
        let is_out = |under_way: &UnderWay| !under_way.has_answered.load(Ordering::Relaxed);
        let hangs = |under_way: &UnderWay| {
            let hung_after = self.devices.hung_after(&under_way.device);
            is_out(under_way) && hung_after.is_some_and(|hung_after| under_way.begun.elapsed() >= hung_after)
        };
        let hung: Vec<Arc<dyn Device>> = self.batches.values().filter(|one| hangs(one)).map(|one| one.device.clone()).collect();
        for device in hung {
            // All that is on it hangs: later batches wait for earlier ones.
            let is_on_it = |_: &u64, under_way: &mut UnderWay| is_out(under_way) && Arc::ptr_eq(&under_way.device, &device);
            let taken: Vec<UnderWay> = self.batches.extract_if(is_on_it).map(|(_, hung)| hung).collect();
            if taken.is_empty() {
                continue; // with another batch before
            }
            tracing::error!(
                device = device.name(),
                batches = taken.len(),
                "the embedding device does not answer; the spare one does. If it stays so, restart the node"
            );
            open_later(myself, self.devices.give_up(&device));
            self.arguments.metrics.failures.inc_by(taken.len() as u64);
            self.drop_abandoned();
            for UnderWay { batch, .. } in &taken {
                if batch.items.iter().any(|item| self.requests.contains_key(&item.request)) {
                    let device = self.devices.current();
                    self.give(myself, batch.clone(), device);
                }
            }
            drop_elsewhere((device, taken));
        }
    }

    fn report(&mut self) {
        let under_way: usize = self.batches.values().map(|under_way| under_way.batch.tokens).sum();
        self.arguments.queue.waiting.store(self.queue.tokens() + under_way, Ordering::Relaxed);
        let lost = self.devices.has_lost_its_own();
        self.arguments.queue.has_lost_its_device.store(lost, Ordering::Relaxed);
        self.gauges.set(self.queue.tokens() as i64, self.batches.len() as i64, i64::from(lost));
    }

    fn deliver(&mut self, items: &[Item], vectors: Result<Vec<f32>, ServiceError>) {
        let vectors = match vectors {
            Ok(vectors) => vectors,
            Err(fault) => return self.refuse(items, &fault),
        };
        for (item, vector) in items.iter().zip(vectors.chunks_exact(self.arguments.dimension)) {
            let Some(request) = self.requests.get_mut(&item.request) else { continue };
            request.vectors[item.position] = vector.to_vec();
            request.sequences -= 1;
            if request.sequences == 0
                && let Some(request) = self.requests.remove(&item.request)
            {
                answer(request.reply, Ok(request.vectors));
            }
        }
    }

    fn refuse(&mut self, items: &[Item], fault: &ServiceError) {
        for item in items {
            if let Some(request) = self.requests.remove(&item.request) {
                answer(request.reply, Err(fault.clone()));
            }
        }
        let requests = &self.requests;
        self.queue.retain(|request| requests.contains_key(&request));
    }
}

/// Opens a device again, after a wait.
fn open_later(myself: &ActorRef<EmbedderMessage>, later: Option<OpenLater>) {
    let Some(OpenLater { wait, open }) = later else { return };
    let myself = myself.clone();
    tokio::spawn(async move {
        tokio::time::sleep(wait).await;
        // The one that was started in its place opens the device by itself, and may have done so.
        if myself.get_status() >= ActorStatus::Stopping {
            return;
        }
        let opened = tokio::task::spawn_blocking(move || open()).await;
        let opened = opened.unwrap_or_else(|fault| Err(fault.to_string()));
        if let Err(unsent) = myself.send_message(EmbedderMessage::Reopened(opened)) {
            tracing::debug!("the embedder ended while its device was opened: the next one begins with its own");
            drop_elsewhere(unsent);
        }
    });
}

/// Drops what may be the last of a device, whose end waits for its GPU.
fn drop_elsewhere(last: impl Send + 'static) {
    tokio::task::spawn_blocking(move || drop(last));
}

fn run_batch(device: InUse, number: u64, batch: &Batch, metrics: &EmbeddingMetrics) -> EmbedderMessage {
    let Batch { items, sequences, tokens } = batch;
    let embedded = device.embed(sequences);
    let mut seconds = embedded.seconds;
    metrics.count_batch(embedded.device.as_ref(), *tokens, embedded.seconds);
    if let Some((spare, by_spare)) = &embedded.by_spare {
        metrics.count_batch(spare.as_ref(), *tokens, *by_spare);
        seconds += by_spare;
    }
    metrics.tenants.share_out(seconds, items.iter().map(|item| &item.account).zip(sequences.iter().map(TokenSequence::len)));
    let vectors = embedded.vectors.map_err(|fault| ServiceError::internal(format!("embedding failed: {fault}")));
    let (device, device_failed) = (embedded.device, embedded.device_failed);
    EmbedderMessage::BatchDone { number, vectors, device, device_failed }
}

fn answer<T>(reply: Reply<T>, result: Result<T, ServiceError>) {
    // The caller may have gone, its answer then goes nowhere.
    let _ = reply.send(result);
}

#[cfg(test)]
mod tests;
