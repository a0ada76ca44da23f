//! Which instructions of the processor are used.

use crate::tiles;
use std::fmt;

/// Gives a type of kernels `get()`, those of the widest set that this processor has, and `of(instructions)`, from constants for each set.
macro_rules! choose_kernels {
    ($kernels:ident { $avx512:expr, $avx2:expr, $portable:expr }) => {
        impl $kernels {
            pub(super) fn get() -> &'static Self {
                static CHOSEN: std::sync::OnceLock<&'static $kernels> = std::sync::OnceLock::new();
                CHOSEN.get_or_init(|| Self::of($crate::instructions::Instructions::detect()))
            }

            /// The kernels of `instructions`, which this processor must have; the portable ones otherwise.
            fn of(instructions: $crate::instructions::Instructions) -> &'static Self {
                match instructions {
                    #[cfg(target_arch = "x86_64")]
                    $crate::instructions::Instructions::Amx | $crate::instructions::Instructions::Avx512
                        if instructions.is_available() =>
                    {
                        &$avx512
                    }
                    #[cfg(target_arch = "x86_64")]
                    $crate::instructions::Instructions::Avx2 if instructions.is_available() => &$avx2,
                    _ => &$portable,
                }
            }
        }
    };
}
pub(crate) use choose_kernels;

/// A set of instructions for which this crate has kernels. Each contains those that are narrower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Instructions {
    /// x86-64 with AMX BF16: products of tiles of 16 x 32 halves; for all else AVX-512 with BF16.
    Amx,
    /// x86-64 with AVX-512 F, BW, DQ and VL: 16 lanes of f32.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C: 8 lanes of f32.
    Avx2,
    /// Plain Rust, written so that the compiler vectorises it for the target (SSE2, NEON).
    Portable,
}

impl Instructions {
    /// All, the widest first.
    pub const ALL: [Instructions; 4] = [Instructions::Amx, Instructions::Avx512, Instructions::Avx2, Instructions::Portable];

    /// The widest set that this processor has.
    pub fn detect() -> Self {
        // The standard library caches what the processor answered, so this is a load and a few bit tests.
        Self::ALL.into_iter().find(|set| set.is_available()).unwrap_or(Instructions::Portable)
    }

    /// Whether this processor has the set.
    pub fn is_available(self) -> bool {
        match self {
            Instructions::Amx => tiles::is_available(),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Instructions::Avx512 | Instructions::Avx2 => false,
            Instructions::Portable => true,
        }
    }

    /// All sets that this processor has, widest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|set| set.is_available()).collect()
    }

    /// The name in lower case: `amx`, `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self {
            Instructions::Amx => "amx",
            Instructions::Avx512 => "avx512",
            Instructions::Avx2 => "avx2",
            Instructions::Portable => "portable",
        }
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
