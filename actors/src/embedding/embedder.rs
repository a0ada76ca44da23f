//! The actor of one embedding device: queues texts, feeds the device, one batch at a time.

use crate::address::{Address, Repeat, Reply};
use crate::embedding::queue::{Item, Queue};
use crate::error::{ErrorKind, ServiceError};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};
use ractor::concurrency::Duration;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ragged_kernels::{Device, Model, TokenSequence};
use ragged_raft::ids::TenantId;
use std::collections::HashMap;
use std::sync::Arc;

pub use crate::embedding::queue::Urgency;

/// How long a search waits for its vector before it is told that the node is overloaded.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long documents wait: a bound for what has gone wrong, not for a long queue, whose length is limited by itself.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(3600);

/// The embedding part of a node, for whoever needs vectors.
#[derive(Clone)]
pub struct Embedding {
    model: Arc<Model>,
    address: Arc<Address<EmbedderMessage>>,
}

impl Embedding {
    /// Embedding by this model through the embedder at this address.
    pub fn new(model: Arc<Model>, address: Arc<Address<EmbedderMessage>>) -> Self {
        Embedding { model, address }
    }

    /// The model that makes the vectors.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    #[cfg(test)]
    pub(crate) fn address(&self) -> &Arc<Address<EmbedderMessage>> {
        &self.address
    }

    /// Whether there is an embedder to ask.
    pub fn is_running(&self) -> bool {
        self.address.current().is_some()
    }

    /// Vectors of texts, each of the model's dimension and of length 1, in the texts' order.
    pub async fn embed(&self, tenant: TenantId, urgency: Urgency, texts: Vec<String>) -> Result<Vec<Vec<f32>>, ServiceError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let model = self.model.clone();
        let tokenize = move || texts.iter().map(|text| model.tokenizer().encode(text)).collect::<Result<Vec<_>, _>>();
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
        self.address
            .call(limit, Repeat::Safe, |reply| EmbedderMessage::Embed { tenant, urgency, sequences: sequences.clone(), reply })
            .await
    }
}

/// Messages of the embedder.
pub enum EmbedderMessage {
    /// Asks for the vectors of texts.
    Embed {
        /// Whose turn it is counted as.
        tenant: TenantId,
        /// How soon they are needed.
        urgency: Urgency,
        /// The texts' tokens.
        sequences: Arc<Vec<TokenSequence>>,
        /// Where the vectors go, in the texts' order.
        reply: Reply<Vec<Vec<f32>>>,
    },
    /// The device has finished a batch.
    BatchDone {
        /// The batch.
        items: Vec<Item>,
        /// One vector a text, one after the other; or what went wrong.
        vectors: Result<Vec<f32>, ServiceError>,
    },
    /// A panic on purpose, to test what stands above.
    #[cfg(test)]
    Panic,
}

/// What an embedder is started with.
#[derive(Clone)]
pub struct EmbedderArguments {
    /// Told where the actor is.
    pub address: Arc<Address<EmbedderMessage>>,
    /// The device.
    pub device: Arc<dyn Device>,
    /// Length of its vectors.
    pub dimension: usize,
    /// Tokens of a batch at most. Larger ones are hardly faster, and a query waits for the batch before it.
    pub batch_tokens: usize,
    /// Tokens that may wait; more are refused.
    pub queued_tokens_max: usize,
    /// Counters.
    pub metrics: EmbeddingMetrics,
}

/// What an embedder counts.
#[derive(Clone)]
pub struct EmbeddingMetrics {
    /// Tokens embedded.
    pub tokens: IntCounter,
    /// Texts embedded.
    pub texts: IntCounter,
    /// Tokens that wait.
    pub queued_tokens: IntGauge,
    /// Tokens of each batch.
    pub batch_tokens: Histogram,
    /// Seconds that each batch took.
    pub batch_seconds: Histogram,
}

impl EmbeddingMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = EmbeddingMetrics {
            tokens: IntCounter::new("ragged_embedding_tokens_total", "Tokens embedded.")?,
            texts: IntCounter::new("ragged_embedding_texts_total", "Texts embedded.")?,
            queued_tokens: IntGauge::new("ragged_embedding_queued_tokens", "Tokens that wait for the device.")?,
            batch_tokens: Histogram::with_opts(
                HistogramOpts::new("ragged_embedding_batch_tokens", "Tokens of a batch.")
                    .buckets(prometheus::exponential_buckets(8.0, 2.0, 10)?),
            )?,
            batch_seconds: Histogram::with_opts(HistogramOpts::new(
                "ragged_embedding_batch_seconds",
                "Time of a batch on the device.",
            ))?,
        };
        registry.register(Box::new(metrics.tokens.clone()))?;
        registry.register(Box::new(metrics.texts.clone()))?;
        registry.register(Box::new(metrics.queued_tokens.clone()))?;
        registry.register(Box::new(metrics.batch_tokens.clone()))?;
        registry.register(Box::new(metrics.batch_seconds.clone()))?;
        Ok(metrics)
    }
}

/// The actor of one device.
pub struct Embedder;

/// What an embedder knows.
pub struct EmbedderState {
    arguments: EmbedderArguments,
    queue: Queue,
    requests: HashMap<u64, Request>,
    next_request: u64,
    device_busy: bool,
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
        arguments.metrics.queued_tokens.set(0);
        arguments.address.moved_to(myself);
        Ok(EmbedderState { arguments, queue: Queue::default(), requests: HashMap::new(), next_request: 0, device_busy: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<EmbedderMessage>,
        message: EmbedderMessage,
        state: &mut EmbedderState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            EmbedderMessage::Embed { tenant, urgency, sequences, reply } => state.accept(tenant, urgency, &sequences, reply),
            EmbedderMessage::BatchDone { items, vectors } => {
                state.device_busy = false;
                state.deliver(items, vectors);
            }
            #[cfg(test)]
            EmbedderMessage::Panic => panic!("injected"),
        }
        state.feed_device(&myself);
        state.arguments.metrics.queued_tokens.set(state.queue.tokens() as i64);
        Ok(())
    }
}

impl EmbedderState {
    fn accept(&mut self, tenant: TenantId, urgency: Urgency, sequences: &[TokenSequence], reply: Reply<Vec<Vec<f32>>>) {
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
        let request = self.next_request;
        self.next_request += 1;
        for (position, tokens) in sequences.iter().enumerate() {
            self.queue.push(tenant, urgency, Item { request, position, tokens: tokens.clone() });
        }
        self.requests.insert(request, Request { sequences: sequences.len(), vectors: vec![Vec::new(); sequences.len()], reply });
    }

    /// Forgets requests whose caller has gone.
    fn drop_abandoned(&mut self) {
        self.requests.retain(|_, request| !request.reply.is_closed());
        self.queue.retain(|request| self.requests.contains_key(&request));
    }

    fn feed_device(&mut self, myself: &ActorRef<EmbedderMessage>) {
        if self.device_busy {
            return;
        }
        let items = self.queue.take_batch(self.arguments.batch_tokens);
        if items.is_empty() {
            return;
        }
        self.device_busy = true;
        let device = self.arguments.device.clone();
        let metrics = self.arguments.metrics.clone();
        let myself = myself.clone();
        tokio::task::spawn_blocking(move || {
            let (items, vectors) = run_batch(device.as_ref(), items, &metrics);
            if myself.send_message(EmbedderMessage::BatchDone { items, vectors }).is_err() {
                tracing::debug!("the embedder ended while its device worked: its callers ask again");
            }
        });
    }

    fn deliver(&mut self, items: Vec<Item>, vectors: Result<Vec<f32>, ServiceError>) {
        let vectors = match vectors {
            Ok(vectors) => vectors,
            Err(fault) => return self.refuse(&items, &fault),
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

fn run_batch(
    device: &dyn Device,
    mut items: Vec<Item>,
    metrics: &EmbeddingMetrics,
) -> (Vec<Item>, Result<Vec<f32>, ServiceError>) {
    let sequences: Vec<TokenSequence> = items.iter_mut().map(|item| std::mem::take(&mut item.tokens)).collect();
    let tokens: usize = sequences.iter().map(TokenSequence::len).sum();
    let begun = std::time::Instant::now();
    // A device that panics must not leave the embedder waiting for ever: its batch is refused.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.embed(&sequences)));
    metrics.batch_seconds.observe(begun.elapsed().as_secs_f64());
    metrics.batch_tokens.observe(tokens as f64);
    let vectors = match outcome {
        Ok(Ok(vectors)) => {
            metrics.tokens.inc_by(tokens as u64);
            metrics.texts.inc_by(items.len() as u64);
            Ok(vectors)
        }
        Ok(Err(fault)) => Err(ServiceError::internal(format!("embedding failed: {fault}"))),
        Err(_) => Err(ServiceError::internal("embedding failed: the device panicked")),
    };
    (items, vectors)
}

fn answer<T>(reply: Reply<T>, result: Result<T, ServiceError>) {
    // The caller may have gone, its answer then goes nowhere.
    let _ = reply.send(result);
}
