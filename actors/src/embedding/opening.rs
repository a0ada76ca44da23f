//! Opens the devices of a node: GPUs as they are asked for and there, and the processor, which is always there.

use crate::embedding::devices::{BatchDevice, OpenDevice, Spare};
use ractor::concurrency::Duration;
use ragged_kernels::cuda::{self, Gpu, GpuError};
use ragged_kernels::{CpuDevice, CudaDevice, Device, DeviceError, Model};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Wait before a GPU that has failed is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// Longest wait, after it could not be opened again and again.
const REOPEN_AFTER_MAX: Duration = Duration::from_secs(300);
/// GPUs that can be named.
const GPUS_MAX: usize = 64;

/// Which devices embed, as it is configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// All GPUs; the processor where there are none or they cannot be used.
    Auto,
    /// The processor.
    Cpu,
    /// These GPUs, by their numbers; all when none is named. Without them the node does not start.
    Gpus(Vec<usize>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("\"{text}\" is none of `auto`, `cpu`, `gpu` and `gpu:` with numbers, such as `gpu:0,1`");
        match text.trim() {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "gpu" => Ok(DeviceChoice::Gpus(Vec::new())),
            other => {
                let numbers = other.strip_prefix("gpu:").ok_or_else(unknown)?;
                let mut gpus = Vec::new();
                for number in numbers.split(',') {
                    let number = number.trim().parse::<usize>().map_err(|_| unknown())?;
                    if number >= GPUS_MAX || gpus.contains(&number) {
                        return Err(format!("\"{text}\" names a GPU twice, or one above {}", GPUS_MAX - 1));
                    }
                    gpus.push(number);
                }
                Ok(DeviceChoice::Gpus(gpus))
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => formatter.write_str("auto"),
            DeviceChoice::Cpu => formatter.write_str("cpu"),
            DeviceChoice::Gpus(gpus) if gpus.is_empty() => formatter.write_str("gpu"),
            DeviceChoice::Gpus(gpus) => {
                let numbers: Vec<String> = gpus.iter().map(usize::to_string).collect();
                write!(formatter, "gpu:{}", numbers.join(","))
            }
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

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
    /// Tokens of a batch of the processor at most; GPUs have larger ones.
    pub batch_tokens: usize,
    /// Folder of compiled kernels.
    pub kernels: PathBuf,
}

impl Opening<'_> {
    /// Opens the devices: at least one.
    ///
    /// # Errors
    /// A processor that cannot embed the model; GPUs that were asked for and cannot be used.
    pub fn open(&self, model: &Arc<Model>) -> Result<Vec<Opened>, DeviceError> {
        let cpu = Arc::new(CpuDevice::new(model.clone(), self.threads)?);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_read_as_it_is_written() {
        for text in ["auto", "cpu", "gpu", "gpu:0", "gpu:2,0,1"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["", "GPU", "gpu:", "gpu:a", "gpu:-1", "gpu:1,1", "gpu:64", "gpu 0", "cuda"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
