//! Which device an embedder computes on: its own, or the spare one while its own has failed.

use parking_lot::Mutex;
use ractor::concurrency::Duration;
use ragged_kernels::{Device, DeviceError, TokenSequence};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// A device, and how many tokens its batches have at most.
#[derive(Clone)]
pub struct BatchDevice {
    /// The device.
    pub device: Arc<dyn Device>,
    /// Tokens of a batch at most. Larger ones are hardly faster, and a query waits for the batch before it.
    pub batch_tokens: usize,
}

/// Where an embedder's own device is kept across restarts of the embedder: empty while it has failed, so that nothing of it is left when it is opened again.
pub type DeviceSlot = Arc<Mutex<Option<BatchDevice>>>;

/// Opens a device. Blocks for seconds. On failure, why.
pub type OpenDevice = Arc<dyn Fn() -> Result<BatchDevice, String> + Send + Sync>;

/// What an embedder has besides its own device.
#[derive(Clone)]
pub struct Spare {
    /// Computes while the other one has failed.
    pub device: BatchDevice,
    /// Opens the other one again.
    pub reopen: OpenDevice,
    /// Wait before it is first opened again; doubles up to `backoff_max` while that fails.
    pub backoff_initial: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
    /// A batch that is on the other one for so long is given to this one: the other does not answer any more.
    pub hung_after: Duration,
}

/// When a device is to be opened again, and how.
pub struct OpenLater {
    /// How long to wait.
    pub wait: Duration,
    /// Opens it.
    pub open: OpenDevice,
}

/// The devices of an embedder, and how they stand.
pub struct Devices {
    slot: DeviceSlot,
    standing: Standing,
    /// How often it was opened again in vain, or failed again soon, since it last worked for a while.
    failures: u32,
    /// How long it was waited before it was last opened again.
    last_wait: Duration,
    /// Since when its own device is in use.
    in_use_since: Instant,
}

enum Standing {
    /// Its own device is in use.
    Own { device: BatchDevice, spare: Option<Spare> },
    /// Its own device has failed; batches may still be on it.
    Lost { failed: Option<Weak<dyn Device>>, spare: Spare },
}

impl Devices {
    /// The device in the slot, and what takes its place. With an empty slot the device had failed before, and is to be opened again. None when there is
    /// nothing at all to compute on.
    pub fn new(slot: DeviceSlot, spare: Option<Spare>) -> Option<(Self, Option<OpenLater>)> {
        let own = slot.lock().clone();
        let standing = match (own, spare) {
            (Some(device), spare) => Standing::Own { device, spare },
            (None, Some(spare)) => Standing::Lost { failed: None, spare },
            (None, None) => return None,
        };
        let mut devices = Devices { slot, standing, failures: 0, last_wait: Duration::ZERO, in_use_since: Instant::now() };
        let later = devices.open_later();
        Some((devices, later))
    }

    /// What the next batch is computed on.
    pub fn current(&self) -> InUse {
        match &self.standing {
            Standing::Own { device, spare } => InUse {
                device: device.device.clone(),
                batch_tokens: device.batch_tokens,
                spare: spare.as_ref().map(|spare| spare.device.device.clone()),
                has_answered: Arc::default(),
            },
            Standing::Lost { spare, .. } => InUse {
                device: spare.device.device.clone(),
                batch_tokens: spare.device.batch_tokens,
                spare: None,
                has_answered: Arc::default(),
            },
        }
    }

    /// Whether batches are computed on this device.
    pub fn is_in_use(&self, device: &Arc<dyn Device>) -> bool {
        let (Standing::Own { device: in_use, .. } | Standing::Lost { spare: Spare { device: in_use, .. }, .. }) = &self.standing;
        Arc::ptr_eq(&in_use.device, device)
    }

    /// Whether its own device has failed.
    pub fn has_lost_its_own(&self) -> bool {
        matches!(self.standing, Standing::Lost { .. })
    }

    /// Its own device when that is in use, answers no more, and there is another.
    pub fn lost(&self) -> Option<Arc<dyn Device>> {
        match &self.standing {
            Standing::Own { device, spare: Some(_) } if device.device.is_lost() => Some(device.device.clone()),
            _ => None,
        }
    }

    /// After how long a batch hangs that this device, or one before it, was given: never, when that is the spare one, or there is none.
    pub fn hung_after(&self, on: &Arc<dyn Device>) -> Option<Duration> {
        let (Standing::Own { spare: Some(spare), .. } | Standing::Lost { spare, .. }) = &self.standing else { return None };
        Some(spare.hung_after).filter(|_| !Arc::ptr_eq(&spare.device.device, on))
    }

    /// Gives up its own device after it has failed, if that is the one in use and there is another.
    pub fn give_up(&mut self, failed: &Arc<dyn Device>) -> Option<OpenLater> {
        let spare = match &self.standing {
            Standing::Own { device, spare: Some(spare) } if Arc::ptr_eq(&device.device, failed) => spare.clone(),
            _ => return None,
        };
        *self.slot.lock() = None;
        self.standing = Standing::Lost { failed: Some(Arc::downgrade(failed)), spare };
        self.open_later()
    }

    /// Takes the device that was opened again. When it could not be: when to try the next time.
    pub fn reopened(&mut self, opened: Result<BatchDevice, String>) -> Option<OpenLater> {
        let Standing::Lost { spare, .. } = &self.standing else { return None };
        match opened {
            Ok(device) => {
                tracing::info!(device = device.device.name(), "the embedding device works again");
                *self.slot.lock() = Some(device.clone());
                self.in_use_since = Instant::now();
                self.standing = Standing::Own { device, spare: Some(spare.clone()) };
                None
            }
            Err(fault) => {
                let attempts = self.failures;
                tracing::warn!(fault, attempts, "the embedding device cannot be opened again yet; the spare one computes");
                self.open_later()
            }
        }
    }

    /// A batch was computed on this device without a failure. One batch does not say that the device is well: it may fail on others. It counts when the device
    /// has been there for as long as it was waited for.
    pub fn worked(&mut self, on: &Arc<dyn Device>) {
        if let Standing::Own { device, .. } = &self.standing
            && Arc::ptr_eq(&device.device, on)
            && self.in_use_since.elapsed() >= self.last_wait
        {
            self.failures = 0;
        }
    }

    /// When its own device, which has failed, is to be opened again.
    fn open_later(&mut self) -> Option<OpenLater> {
        let Standing::Lost { failed, spare } = &self.standing else { return None };
        let wait = spare.backoff_initial.saturating_mul(2u32.saturating_pow(self.failures)).min(spare.backoff_max);
        let (failed, reopen) = (failed.clone(), spare.reopen.clone());
        self.failures = self.failures.saturating_add(1);
        self.last_wait = wait;
        let open = move || match failed.as_ref().is_some_and(|failed| failed.strong_count() > 0) {
            true => Err("a batch is still on it".to_owned()),
            false => reopen(),
        };
        Some(OpenLater { wait, open: Arc::new(open) })
    }
}

/// A device for one batch, and what answers the batch when that fails.
pub struct InUse {
    device: Arc<dyn Device>,
    batch_tokens: usize,
    spare: Option<Arc<dyn Device>>,
    /// The device has come back, whatever with: what the spare one does then takes its own time.
    has_answered: Arc<AtomicBool>,
}

/// What came of a batch.
pub struct Embedded {
    /// The vectors, one after the other.
    pub vectors: Result<Vec<f32>, String>,
    /// The device that was asked first.
    pub device: Arc<dyn Device>,
    /// Whether that is to be given up.
    pub device_failed: bool,
    /// Seconds that it took.
    pub seconds: f64,
    /// The device that answered in its place, and the seconds that this took.
    pub by_spare: Option<(Arc<dyn Device>, f64)>,
}

/// Who is to blame for a failure.
enum Blame {
    /// Sequences that no device can embed.
    Sequences,
    /// The device cannot embed these sequences; another can.
    Limits,
    /// The device.
    Device,
}

impl InUse {
    /// How many batches keep the device busy.
    pub fn batches_in_flight(&self) -> usize {
        self.device.batches_in_flight()
    }

    /// Tokens of a batch at most.
    pub fn batch_tokens(&self) -> usize {
        self.batch_tokens
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Becomes true when the device comes back from the batch.
    pub fn has_answered(&self) -> &Arc<AtomicBool> {
        &self.has_answered
    }

    /// Embeds a batch; on the spare device when the other one fails.
    pub fn embed(self, sequences: &[TokenSequence]) -> Embedded {
        let (outcome, seconds) = timed(|| embed_on(&self.device, sequences));
        self.has_answered.store(true, Ordering::Relaxed);
        let of_device =
            |vectors, device_failed| Embedded { vectors, device: self.device.clone(), device_failed, seconds, by_spare: None };
        let (fault, blame) = match outcome {
            Ok(vectors) => return of_device(Ok(vectors), false),
            Err(failure) => failure,
        };
        let device_failed = matches!(blame, Blame::Device);
        match (self.spare, blame) {
            (Some(spare), Blame::Device | Blame::Limits) => {
                match device_failed {
                    true => {
                        tracing::warn!(device = self.device.name(), fault, "the embedding device failed; the spare one answers")
                    }
                    false => tracing::info!(device = self.device.name(), fault, "texts are embedded by the spare device"),
                }
                let (outcome, seconds) = timed(|| embed_on(&spare, sequences));
                let vectors = outcome.map_err(|(fault, _)| fault);
                Embedded { by_spare: Some((spare, seconds)), ..of_device(vectors, device_failed) }
            }
            _ => of_device(Err(fault), device_failed),
        }
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begun = Instant::now();
    let done = work();
    (done, begun.elapsed().as_secs_f64())
}

fn embed_on(device: &Arc<dyn Device>, sequences: &[TokenSequence]) -> Result<Vec<f32>, (String, Blame)> {
    // A device that panics must not leave the embedder waiting for ever.
    match catch_unwind(AssertUnwindSafe(|| device.embed(sequences))) {
        Ok(Ok(vectors)) => Ok(vectors),
        Ok(Err(fault)) => {
            let blame = match fault {
                DeviceError::EmptySequence { .. } | DeviceError::SequenceTooLong { .. } | DeviceError::TokenOutOfRange { .. } => {
                    Blame::Sequences
                }
                DeviceError::BeyondHalves { .. } => Blame::Limits,
                _ => Blame::Device,
            };
            Err((fault.to_string(), blame))
        }
        Err(_) => Err(("the device panicked".to_owned(), Blame::Device)),
    }
}
