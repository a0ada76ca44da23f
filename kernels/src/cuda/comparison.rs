//! Each kernel of the encoder on a real GPU beside a plain computation on the processor: what `make gpu-check` shows before it looks at whole vectors.

use super::Gpu;
use super::driver::guarded;
use super::encoder::AttentionWay;
use super::encoder::alone::{self, TOLERANCE};
use super::encoder::attention_alone::{self, AttentionWork};
use super::machine::{GpuError, ProductEnd};

/// A kernel, and what it computes beside the processor.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelComparison {
    /// The kernel, and what it was given.
    pub name: String,
    /// By how much a value differs at most; infinite where one is no number.
    pub difference: f64,
    /// By how much it may.
    pub allowed: f64,
}

/// How pooled vectors may differ, which are floats of length 1.
const POOLED_TOLERANCE: f64 = 1e-5;
/// Lengths of texts: within a tile of attention, at its borders and beyond them.
const LENGTHS: [&[usize]; 4] = [&[1, 15, 16, 17], &[63, 64, 65], &[127, 128, 129, 257], &[320, 1, 96]];

/// Compares the kernels that use no library of CUDA's: embedding, layer norm, attention in both ways, pooling.
///
/// # Errors
/// Too little memory, a GPU that fails.
pub fn compare_kernels(gpu: &Gpu) -> Result<Vec<KernelComparison>, GpuError> {
    let machine = gpu.machine.as_ref();
    let mut compared = Vec::new();
    let mut note = |name: String, allowed, difference: &mut dyn FnMut() -> Result<f64, GpuError>| {
        let difference = guarded("comparing a kernel", difference)?;
        compared.push(KernelComparison { name, difference, allowed });
        Ok::<(), GpuError>(())
    };
    for (rows, size) in [(1, 8), (37, 384), (130, 512), (37, 768), (5, 1_024)] {
        note(format!("embedding: {rows} rows of {size}"), TOLERANCE, &mut || alone::embedding(machine, 1, rows, size))?;
        note(format!("layer norm: {rows} rows of {size}"), TOLERANCE, &mut || alone::layer_norm(machine, 2, rows, size))?;
        for (how, first_only) in [("mean", false), ("first row", true)] {
            let pooled = &mut || alone::pooling(machine, 3, LENGTHS[0], size, first_only);
            note(format!("pooling: {how} of rows of {size}"), POOLED_TOLERANCE, pooled)?;
        }
    }
    for (number, lengths) in LENGTHS.into_iter().enumerate() {
        for head in [32, 64] {
            for way in [AttentionWay::Warps, AttentionWay::Warpgroups] {
                for growth in [0.0, 0.02] {
                    let name = format!("attention by {way:?}: heads of {head}, texts of {lengths:?}, keys growing by {growth}");
                    let seed = number as u64;
                    note(name, TOLERANCE, &mut || alone::attention(machine, seed, way, (head, 3), lengths, growth))?;
                }
            }
        }
    }
    Ok(compared)
}

/// Compares matrix products with each of their ends.
///
/// # Errors
/// As [`compare_kernels`].
pub fn compare_products(gpu: &Gpu) -> Result<Vec<KernelComparison>, GpuError> {
    let mut compared = Vec::new();
    for end in [ProductEnd::Store, ProductEnd::Add, ProductEnd::Relu, ProductEnd::Gelu] {
        for size in [(16, 384, 384), (128, 384, 1_536), (2_048, 64, 128)] {
            let difference = guarded("comparing a product", || alone::product(gpu.machine.as_ref(), 4, size, end))?;
            let name = format!("product: {end:?}, rows, inputs and outputs {size:?}");
            compared.push(KernelComparison { name, difference, allowed: TOLERANCE });
        }
    }
    Ok(compared)
}

/// By how much the results of two ways of computing attention differ at most; infinite where one of them is no number.
///
/// # Errors
/// As [`compare_kernels`]; heads of other sizes than 32 and 64.
pub fn compare_attention(gpu: &Gpu, work: &AttentionWork, ways: [AttentionWay; 2]) -> Result<f32, GpuError> {
    guarded("comparing attention", || attention_alone::difference(gpu.machine.as_ref(), work, ways))
}
