//! Opens the devices of a node: GPUs as they are asked for and there, and the processor, which is always there.

use crate::embedding::choices::{DeviceChoice, PrecisionChoice};
use crate::embedding::devices::{BatchDevice, OpenDevice, Spare};
use crate::gpu_rows::{CudaRowDevice, GpuRows};
use ractor::concurrency::Duration;
use ragged_kernels::cuda::{self, Gpu, GpuDescription, GpuError};
use ragged_kernels::{CpuDevice, CudaDevice, Device, DeviceError, Model};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Wait before a GPU that has failed is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// Longest wait, after it could not be opened again and again.
const REOPEN_AFTER_MAX: Duration = Duration::from_secs(300);
/// A batch takes a GPU some hundredths of a second, or of a large model a second, and the first large one, which tries out ways of computing products, some
/// seconds. Queries wait for half a minute.
const HUNG_AFTER: Duration = Duration::from_secs(20);

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
    /// Told of the GPUs: what the encoder leaves of their memory is for rows.
    pub gpu_rows: &'a Arc<GpuRows>,
}

impl Opening<'_> {
    /// Opens the devices: at least one.
    ///
    /// # Errors
    /// A processor that cannot embed the model; GPUs that were asked for and cannot be used.
    pub fn open(&self, model: &Arc<Model>) -> Result<Vec<Opened>, DeviceError> {
        let precision = match self.precision {
            PrecisionChoice::Auto => CpuDevice::fastest_as_good_as_f32(model),
            PrecisionChoice::Named(precision) => precision,
        };
        let cpu = Arc::new(CpuDevice::with_prepared_weights(model.clone(), self.threads, precision, &self.kernels)?);
        tracing::info!(device = cpu.name(), "the processor can embed");
        let cpu = BatchDevice { device: cpu, batch_tokens: self.batch_tokens };
        let gpus = match self.choice {
            DeviceChoice::Cpu => Vec::new(),
            DeviceChoice::Auto => self.open_usable_gpus(model, &cpu),
            DeviceChoice::Gpus(numbers) => self.open_gpus(model, &cpu, numbers)?,
        };
        if !gpus.is_empty() {
            return Ok(gpus);
        }
        Ok(vec![Opened { embedder: "embedder-cpu".to_owned(), device: cpu, spare: None }])
    }

    /// Opens the GPUs that can be used, which may be none. One line in the log says what is used, or why it is not.
    fn open_usable_gpus(&self, model: &Arc<Model>, cpu: &BatchDevice) -> Vec<Opened> {
        let there = match cuda::gpus() {
            Ok(there) => there,
            Err(GpuError::NoDriver) => {
                tracing::info!("there is no NVIDIA driver: the processor embeds");
                return Vec::new();
            }
            Err(fault) => {
                tracing::warn!("no GPU can be used, the processor embeds: {fault}");
                return Vec::new();
            }
        };
        if there.is_empty() {
            tracing::info!("there is no NVIDIA GPU: the processor embeds");
        }
        let open = |gpu: GpuDescription| match OpenGpu::open(model, gpu.number, &self.kernels) {
            Ok(open) => Some(self.embed_on(model, cpu, gpu.number, open)),
            Err(fault) => {
                tracing::warn!(
                    gpu = gpu.number,
                    name = gpu.name,
                    "the GPU cannot be used, others and the processor embed: {fault}"
                );
                None
            }
        };
        there.into_iter().filter_map(open).collect()
    }

    /// Opens the GPUs of these numbers; when none is named, all that are not too old. At least one.
    fn open_gpus(&self, model: &Arc<Model>, cpu: &BatchDevice, numbers: &[usize]) -> Result<Vec<Opened>, GpuError> {
        let all: Vec<usize> = match numbers {
            [] => (0..cuda::gpu_count()?).collect(),
            named => named.to_vec(),
        };
        let mut opened = Vec::new();
        for number in all {
            match OpenGpu::open(model, number, &self.kernels) {
                Ok(gpu) => opened.push((number, gpu)),
                Err(fault @ GpuError::TooOld { .. }) if numbers.is_empty() => {
                    tracing::info!(number, %fault, "a GPU is passed over")
                }
                Err(fault) => return Err(fault),
            }
        }
        if opened.is_empty() {
            return Err(GpuError::NoSuchGpu { wanted: 0, there: 0 });
        }
        // Rows come to them once all are open: when one cannot be, none is used.
        Ok(opened.into_iter().map(|(number, gpu)| self.embed_on(model, cpu, number, gpu)).collect())
    }

    fn embed_on(&self, model: &Arc<Model>, cpu: &BatchDevice, number: usize, gpu: OpenGpu) -> Opened {
        let batch_tokens = self.batch_tokens.max(cuda::BATCH_TOKENS);
        let device = BatchDevice { device: gpu.share(self.gpu_rows, number), batch_tokens };
        tracing::info!(device = device.device.name(), "a GPU embeds");
        let reopen: OpenDevice = {
            let (model, kernels, gpu_rows) = (model.clone(), self.kernels.clone(), self.gpu_rows.clone());
            Arc::new(move || {
                gpu_rows.close(number)?;
                cuda::reset(number).map_err(|fault| fault.to_string())?;
                let gpu = OpenGpu::open(&model, number, &kernels).map_err(|fault| fault.to_string())?;
                Ok(BatchDevice { device: gpu.share(&gpu_rows, number), batch_tokens })
            })
        };
        let spare = Spare {
            device: cpu.clone(),
            reopen,
            backoff_initial: REOPEN_AFTER,
            backoff_max: REOPEN_AFTER_MAX,
            hung_after: HUNG_AFTER,
        };
        Opened { embedder: format!("embedder-gpu-{number}"), device, spare: Some(spare) }
    }
}

/// A GPU with an encoder on it.
struct OpenGpu {
    encoder: CudaDevice,
    gpu: Gpu,
    encoder_bytes: u64,
}

impl OpenGpu {
    fn open(model: &Arc<Model>, number: usize, kernels: &Path) -> Result<Self, GpuError> {
        let gpu = Gpu::open(number, kernels)?;
        let free = gpu.memory()?.free_bytes;
        let encoder = CudaDevice::new(&gpu, model.clone())?;
        let encoder_bytes = free.saturating_sub(gpu.memory()?.free_bytes);
        Ok(OpenGpu { encoder, gpu, encoder_bytes })
    }

    /// Leaves what the encoder has not taken to rows.
    fn share(self, gpu_rows: &GpuRows, number: usize) -> Arc<dyn Device> {
        gpu_rows.host(number, self.encoder_bytes, Box::new(CudaRowDevice::new(self.gpu)));
        Arc::new(self.encoder)
    }
}
