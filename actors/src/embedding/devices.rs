//! Which device an embedder computes on: its own, or the spare one while its own has failed.

use ractor::concurrency::Duration;
use ragged_kernels::{Device, DeviceError, TokenSequence};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Opens a device. Blocks for seconds.
pub type OpenDevice = Arc<dyn Fn() -> Result<Arc<dyn Device>, DeviceError> + Send + Sync>;

/// What an embedder has besides its own device.
#[derive(Clone)]
pub struct Spare {
    /// Computes while the other one has failed.
    pub device: Arc<dyn Device>,
    /// Opens the other one again.
    pub reopen: OpenDevice,
    /// Wait before it is first opened again; doubles up to `backoff_max` while that fails.
    pub backoff_initial: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
}

/// The devices of an embedder, and how they stand.
pub struct Devices {
    standing: Standing,
    /// How often it was opened again in vain since it last worked.
    failures: u32,
}

enum Standing {
    /// Its own device is in use.
    Own { device: Arc<dyn Device>, spare: Option<Spare> },
    /// Its own device has failed.
    Lost { spare: Spare },
}

impl Devices {
    /// Its own device, and what takes its place.
    pub fn new(device: Arc<dyn Device>, spare: Option<Spare>) -> Self {
        Devices { standing: Standing::Own { device, spare }, failures: 0 }
    }

    /// What the next batch is computed on.
    pub fn current(&self) -> InUse {
        match &self.standing {
            Standing::Own { device, spare } => {
                InUse { device: device.clone(), spare: spare.as_ref().map(|spare| spare.device.clone()) }
            }
            Standing::Lost { spare } => InUse { device: spare.device.clone(), spare: None },
        }
    }

    /// Whether its own device has failed.
    pub fn has_lost_its_own(&self) -> bool {
        matches!(self.standing, Standing::Lost { .. })
    }

    /// Gives up its own device after it has failed, if that is the one in use. How long to wait before it is opened again, and how.
    pub fn give_up(&mut self, failed: &Arc<dyn Device>) -> Option<(Duration, OpenDevice)> {
        let spare = match &self.standing {
            Standing::Own { device, spare: Some(spare) } if Arc::ptr_eq(device, failed) => spare.clone(),
            _ => return None,
        };
        let later = self.open_later(&spare);
        self.standing = Standing::Lost { spare };
        Some(later)
    }

    /// Takes the device that was opened again. When it could not be: how long to wait before the next time, and how.
    pub fn reopened(&mut self, opened: Result<Arc<dyn Device>, DeviceError>) -> Option<(Duration, OpenDevice)> {
        let Standing::Lost { spare } = &self.standing else { return None };
        let spare = spare.clone();
        match opened {
            Ok(device) => {
                tracing::info!(device = device.name(), "the embedding device works again");
                self.standing = Standing::Own { device, spare: Some(spare) };
                None
            }
            Err(fault) => {
                tracing::warn!(%fault, "the embedding device cannot be opened again yet; the spare one computes");
                Some(self.open_later(&spare))
            }
        }
    }

    /// A batch was computed without a failure.
    pub fn worked(&mut self) {
        if !self.has_lost_its_own() {
            self.failures = 0;
        }
    }

    fn open_later(&mut self, spare: &Spare) -> (Duration, OpenDevice) {
        let wait = spare.backoff_initial.saturating_mul(2u32.saturating_pow(self.failures)).min(spare.backoff_max);
        self.failures = self.failures.saturating_add(1);
        (wait, spare.reopen.clone())
    }
}

/// A device for one batch, and what answers the batch when that fails.
pub struct InUse {
    device: Arc<dyn Device>,
    spare: Option<Arc<dyn Device>>,
}

/// What came of a batch.
pub struct Embedded {
    /// The vectors, one after the other.
    pub vectors: Result<Vec<f32>, String>,
    /// The device that failed, when the spare one was asked.
    pub failed: Option<Arc<dyn Device>>,
}

impl InUse {
    /// How many batches keep the device busy.
    pub fn batches_in_flight(&self) -> usize {
        self.device.batches_in_flight()
    }

    /// Embeds a batch; on the spare device when the other one fails. Sequences that no device can embed are the caller's fault, and no device's.
    pub fn embed(&self, sequences: &[TokenSequence]) -> Embedded {
        let (fault, is_the_devices) = match embed_on(&self.device, sequences) {
            Ok(vectors) => return Embedded { vectors: Ok(vectors), failed: None },
            Err(fault) => fault,
        };
        match &self.spare {
            Some(spare) if is_the_devices => {
                tracing::warn!(device = self.device.name(), fault, "the embedding device failed; the spare one answers");
                let vectors = embed_on(spare, sequences).map_err(|(fault, _)| fault);
                Embedded { vectors, failed: Some(self.device.clone()) }
            }
            _ => Embedded { vectors: Err(fault), failed: None },
        }
    }
}

/// Embeds on one device. On failure, why, and whether the device is to blame.
fn embed_on(device: &Arc<dyn Device>, sequences: &[TokenSequence]) -> Result<Vec<f32>, (String, bool)> {
    // A device that panics must not leave the embedder waiting for ever.
    match catch_unwind(AssertUnwindSafe(|| device.embed(sequences))) {
        Ok(Ok(vectors)) => Ok(vectors),
        Ok(Err(fault)) => {
            let bad_input = matches!(
                fault,
                DeviceError::EmptySequence { .. } | DeviceError::SequenceTooLong { .. } | DeviceError::TokenOutOfRange { .. }
            );
            Err((fault.to_string(), !bad_input))
        }
        Err(_) => Err(("the device panicked".to_owned(), true)),
    }
}
