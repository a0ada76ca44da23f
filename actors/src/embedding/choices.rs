//! What the configuration says of how texts are embedded.

use ragged_kernels::Precision;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

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

/// What the processor multiplies, as it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PrecisionChoice {
    /// The fastest that this processor has of those that find as well as f32.
    Auto,
    /// This one; where the processor does not have it, the node does not start.
    Named(Precision),
}

impl FromStr for PrecisionChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "auto" => Ok(PrecisionChoice::Auto),
            name => name
                .parse()
                .map(PrecisionChoice::Named)
                .map_err(|_| format!("\"{text}\" is none of `auto`, `f32`, `bf16` and `int8`")),
        }
    }
}

impl fmt::Display for PrecisionChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrecisionChoice::Auto => formatter.write_str("auto"),
            PrecisionChoice::Named(precision) => precision.fmt(formatter),
        }
    }
}

/// Has a choice kept as the text that it is read from.
macro_rules! kept_as_text {
    ($choice:ty) => {
        impl TryFrom<String> for $choice {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$choice> for String {
            fn from(choice: $choice) -> String {
                choice.to_string()
            }
        }
    };
}

kept_as_text!(DeviceChoice);
kept_as_text!(PrecisionChoice);

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

    #[test]
    fn a_precision_is_read_as_it_is_written() {
        for text in ["auto", "f32", "bf16", "int8"] {
            assert_eq!(text.parse::<PrecisionChoice>().unwrap().to_string(), text);
        }
        for text in ["", "F32", "fp16", "int4", "auto,f32"] {
            assert!(text.parse::<PrecisionChoice>().is_err(), "{text}");
        }
    }
}
