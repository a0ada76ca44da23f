//! The encoder's kernels for each instruction set: the only place where one is chosen.

use super::attention::{self, Attention};
use super::layer_norm;
use super::product::{self, Product};
#[cfg(test)]
use crate::configuration::Activation;
use crate::instructions::Instructions;

/// The kernels of one instruction set. A table is only handed out by [`Kernels::of`], after the processor was asked
/// whether it has the instruction set, so that calling its functions is safe.
pub(crate) struct Kernels {
    /// Columns of a panel of weights.
    pub(crate) panel_columns: usize,
    multiply: unsafe fn(&mut Product<'_>),
    attend: unsafe fn(&mut Attention<'_>),
    layer_norm: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    // Parts of `multiply` and `attend`, by themselves only in tests.
    #[cfg(test)]
    activate: unsafe fn(&mut [f32], Activation),
    #[cfg(test)]
    softmax: unsafe fn(&mut [f32]),
}

impl Kernels {
    /// The kernels of `instructions`, if this processor has them.
    pub(crate) fn of(instructions: Instructions) -> Option<&'static Self> {
        if !instructions.is_available() {
            return None;
        }
        match instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => Some(&avx512::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => Some(&avx2::KERNELS),
            #[cfg(not(target_arch = "x86_64"))]
            Instructions::Avx512 | Instructions::Avx2 => None,
            Instructions::Portable => Some(&portable::KERNELS),
        }
    }

    /// See [`product::multiply`].
    pub(crate) fn multiply(&self, mut product: Product<'_>) {
        // SAFETY: the table exists only where the processor has the instruction set.
        unsafe { (self.multiply)(&mut product) }
    }

    /// See [`attention::attend`].
    pub(crate) fn attend(&self, mut attention: Attention<'_>) {
        // SAFETY: the table exists only where the processor has the instruction set.
        unsafe { (self.attend)(&mut attention) }
    }

    /// See [`layer_norm::layer_norm`].
    pub(crate) fn layer_norm(&self, rows: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32) {
        // SAFETY: the table exists only where the processor has the instruction set.
        unsafe { (self.layer_norm)(rows, scale, shift, epsilon) }
    }

    /// Applies an activation function to each value.
    #[cfg(test)]
    pub(crate) fn activate(&self, values: &mut [f32], function: Activation) {
        // SAFETY: the table exists only where the processor has the instruction set.
        unsafe { (self.activate)(values, function) }
    }

    /// Softmax of all values: e^(x - max) divided by the sum.
    #[cfg(test)]
    pub(crate) fn softmax(&self, values: &mut [f32]) {
        // SAFETY: the table exists only where the processor has the instruction set.
        unsafe { (self.softmax)(values) }
    }
}

/// Instantiates the kernels for one instruction set: register type, rows and vectors of a tile for weights, vectors
/// of a tile for attention, and the processor features that the entry functions enable.
macro_rules! kernels {
    ($module:ident, $lanes:ty, $rows:literal, $vectors:literal, $attention_vectors:literal $(, $features:literal)?) => {
        mod $module {
            use super::*;
            use crate::lanes::Lanes;

            pub(super) static KERNELS: Kernels = Kernels {
                panel_columns: $vectors * <$lanes>::WIDTH,
                multiply,
                attend,
                layer_norm,
                #[cfg(test)]
                activate,
                #[cfg(test)]
                softmax,
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn multiply(product: &mut Product<'_>) {
                // SAFETY: `Kernels::of` has checked the instruction set.
                unsafe { product::multiply::<$lanes, $rows, $vectors>(product) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn attend(attention: &mut Attention<'_>) {
                // SAFETY: `Kernels::of` has checked the instruction set.
                unsafe { attention::attend::<$lanes, $rows, $attention_vectors>(attention) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn layer_norm(rows: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32) {
                // SAFETY: `Kernels::of` has checked the instruction set.
                unsafe { layer_norm::layer_norm::<$lanes>(rows, scale, shift, epsilon) }
            }

            #[cfg(test)]
            $(#[target_feature(enable = $features)])?
            unsafe fn activate(values: &mut [f32], function: Activation) {
                // SAFETY: `Kernels::of` has checked the instruction set; the slice is valid for its length.
                unsafe { crate::cpu::activation::apply::<$lanes>(values.as_mut_ptr(), values.len(), function) }
            }

            #[cfg(test)]
            $(#[target_feature(enable = $features)])?
            unsafe fn softmax(values: &mut [f32]) {
                if values.is_empty() {
                    return;
                }
                let padded = values.len().next_multiple_of(<$lanes>::WIDTH);
                let mut scores = values.to_vec();
                scores.resize(padded, 0.0);
                // SAFETY: `Kernels::of` has checked the instruction set; `scores` holds `padded` values.
                let sum = unsafe {
                    attention::exponentiate::<$lanes>(scores.as_mut_ptr(), values.len(), padded)
                };
                for (value, score) in values.iter_mut().zip(scores) {
                    *value = score / sum;
                }
            }
        }
    };
}

// AVX-512 has 32 registers: 8 x 3 sums leave room for three vectors of a panel and broadcast activations.
#[cfg(target_arch = "x86_64")]
kernels!(avx512, crate::lanes::avx512::Avx512, 8, 3, 2, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");

// AVX2 has 16 registers: 6 x 2 sums, two vectors of a panel, and two for activations.
#[cfg(target_arch = "x86_64")]
kernels!(avx2, crate::lanes::avx2::Avx2, 6, 2, 2, "avx2,fma,f16c");

// NEON has 32 registers of four lanes, SSE2 has 16; each of these vectors takes two.
#[cfg(target_arch = "aarch64")]
kernels!(portable, crate::lanes::portable::Portable, 6, 2, 2);
#[cfg(not(target_arch = "aarch64"))]
kernels!(portable, crate::lanes::portable::Portable, 4, 1, 1);

#[cfg(test)]
mod tests;
