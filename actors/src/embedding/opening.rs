//! Opens the devices of a node: GPUs as they are asked for and there, and the processor, which is always there.

use crate::embedding::choices::{DeviceChoice, PrecisionChoice};
use crate::embedding::devices::{BatchDevice, OpenDevice, Spare};
use ractor::concurrency::Duration;
use ragged_kernels::cuda::{self, Gpu, GpuError};
use ragged_kernels::{CpuDevice, CudaDevice, Device, DeviceError, Model};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Wait before a GPU that has failed is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// Longest wait, after it could not be opened again and again.
const REOPEN_AFTER_MAX: Duration = Duration::from_secs(300);

/// A device that an embedder is to be started with.
pub struct Opened {
    /// Name of its embedder: `embedder-cpu` or `embedder-gpu-0`.
    pub embedder: String,
    /// The device.
    pub device: BatchDevice,
    /// What takes its place while it has failed.
    pub spare: Option<Spare>,
}

/// How devices are opened.
pub struct Opening<'a> {
    /// Which ones.
    pub choice: &'a DeviceChoice,
    /// Threads of the processor.
    pub threads: usize,
    /// What the processor multiplies.
    pub precision: PrecisionChoice,
    /// Tokens of a batch of the processor at most; GPUs have larger ones.
    pub batch_tokens: usize,
    /// Folder of compiled kernels and packed weights.
    pub kernels: PathBuf,
}

impl Opening<'_> {
    /// Opens the devices: at least one.
    ///
    /// # Errors
    /// A processor that cannot embed the model; GPUs that were asked for and cannot be used.
    pub fn open(&self, model: &Arc<Model>) -> Result<Vec<Opened>, DeviceError> {
        let precision = match self.precision {
            PrecisionChoice::Auto => CpuDevice::fastest_as_good_as_f32(),
            PrecisionChoice::Named(precision) => precision,
        };
        let cpu = Arc::new(CpuDevice::with_prepared_weights(model.clone(), self.threads, precision, &self.kernels)?);
        tracing::info!(device = cpu.name(), "the processor can embed");
        let cpu = BatchDevice { device: cpu, batch_tokens: self.batch_tokens };
        let gpus = match self.choice {
            DeviceChoice::Cpu => Vec::new(),
            DeviceChoice::Auto => match self.open_gpus(model, &cpu, &[]) {
                Ok(gpus) => gpus,
                Err(GpuError::NoDriver) => {
                    tracing::debug!("there is no NVIDIA driver: the processor embeds");
                    Vec::new()
                }
                Err(fault) => {
                    tracing::warn!("the GPU cannot be used, the processor embeds: {fault}");
                    Vec::new()
                }
            },
            DeviceChoice::Gpus(numbers) => {
                let gpus = self.open_gpus(model, &cpu, numbers)?;
                if gpus.is_empty() {
                    return Err(GpuError::NoSuchGpu { wanted: 0, there: 0 }.into());
                }
                gpus
            }
        };
        if !gpus.is_empty() {
            return Ok(gpus);
        }
        Ok(vec![Opened { embedder: "embedder-cpu".to_owned(), device: cpu, spare: None }])
    }

    /// Opens the GPUs of these numbers; all when none is named.
    fn open_gpus(&self, model: &Arc<Model>, cpu: &BatchDevice, numbers: &[usize]) -> Result<Vec<Opened>, GpuError> {
        let all: Vec<usize> = match numbers {
            [] => cuda::gpus()?.iter().map(|gpu| gpu.number).collect(),
            named => named.to_vec(),
        };
        all.into_iter().map(|number| self.open_gpu(model, cpu, number)).collect()
    }

    fn open_gpu(&self, model: &Arc<Model>, cpu: &BatchDevice, number: usize) -> Result<Opened, GpuError> {
        let batch_tokens = self.batch_tokens.max(cuda::BATCH_TOKENS);
        let device = BatchDevice { device: open_gpu(model, number, &self.kernels)?, batch_tokens };
        tracing::info!(device = device.device.name(), "a GPU embeds");
        let reopen: OpenDevice = {
            let (model, kernels) = (model.clone(), self.kernels.clone());
            Arc::new(move || {
                // SAFETY: the embedder opens its GPU again only when nothing is left of the device that it had, and nobody else has anything on a GPU.
                unsafe { cuda::reset(number) }.map_err(|fault| fault.to_string())?;
                let device = open_gpu(&model, number, &kernels).map_err(|fault| fault.to_string())?;
                Ok(BatchDevice { device, batch_tokens })
            })
        };
        let spare = Spare { device: cpu.clone(), reopen, backoff_initial: REOPEN_AFTER, backoff_max: REOPEN_AFTER_MAX };
        Ok(Opened { embedder: format!("embedder-gpu-{number}"), device, spare: Some(spare) })
    }
}

fn open_gpu(model: &Arc<Model>, number: usize, kernels: &Path) -> Result<Arc<dyn Device>, GpuError> {
    Ok(Arc::new(CudaDevice::new(&Gpu::open(number, kernels)?, model.clone())?))
}
