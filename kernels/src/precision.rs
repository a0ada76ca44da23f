//! With how many bits the encoder multiplies on the processor.

use std::fmt;
use std::str::FromStr;

/// The numbers that the products of the encoder are made of. Sums, normalisation and everything else that is not passed on as halves are f32 in all
/// of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// IEEE single precision, as the weights are published.
    F32,
    /// The upper half of an f32, eight bits of which are the fraction's. Needs AMX BF16 or AVX-512 BF16.
    Bf16,
    /// Whole numbers: weights of -127 to 127 with a factor for each output, activations of 0 to 255 with a factor and a zero for each token. Attention
    /// and its products, for which they are too coarse, are in bf16 where the processor is fast with it by AVX-512, else in f32.
    Int8,
}

impl Precision {
    /// All, the most exact one first.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

    /// The name in lower case: `f32`, `bf16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A name that is none of a precision's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no precision: use f32, bf16 or int8")]
pub struct UnknownPrecision(String);

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Self, UnknownPrecision> {
        Self::ALL.into_iter().find(|precision| precision.name() == name).ok_or_else(|| UnknownPrecision(name.to_owned()))
    }
}
