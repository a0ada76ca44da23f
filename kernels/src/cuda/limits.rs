//! What a GPU can do at best: the figures that the speed of kernels is measured against, from the same run.

use super::Gpu;
use super::driver::guarded;
use super::encoder::AttentionWay;
use super::encoder::attention_alone::{self, AttentionWork};
use super::machine::{DeviceMemory, GpuError, Machine, Product, ProductEnd};
use half::f16;
use std::time::Instant;

/// Rows, inputs and outputs of the product.
const PRODUCT_SIZE: usize = 8_192;
/// Bytes of the copy: far more than the caches hold.
const COPY_BYTES: usize = 2 << 30;
/// Times that each is done in a round.
const REPEATS: usize = 10;
const ROUNDS: usize = 6;

/// A GPU's limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Operations of a matrix product of halves with sums in f32, in a second: a multiplication and an addition are two.
    pub product_per_second: f64,
    /// Bytes read and written by a copy within its memory, in a second.
    pub copy_bytes_per_second: f64,
}

/// Measures a GPU's limits with cuBLASLt and the driver. Takes a second.
///
/// # Errors
/// Too little memory (4 GiB are used), a GPU that fails.
pub fn measure_limits(gpu: &Gpu) -> Result<Limits, GpuError> {
    guarded("measuring the GPU", || {
        Ok(Limits { product_per_second: measure_product(gpu)?, copy_bytes_per_second: measure_copy(gpu)? })
    })
}

/// Seconds that attention takes alone, in this way.
///
/// # Errors
/// As [`measure_limits`]; heads of other sizes than 32 and 64.
pub fn measure_attention(gpu: &Gpu, work: &AttentionWork, way: AttentionWay) -> Result<f64, GpuError> {
    guarded("measuring attention", || attention_alone::seconds(gpu.machine.as_ref(), work, way))
}

fn measure_product(gpu: &Gpu) -> Result<f64, GpuError> {
    let machine = gpu.machine.as_ref();
    let mut queue = machine.new_queue()?;
    let bytes = PRODUCT_SIZE * PRODUCT_SIZE * size_of::<f16>();
    let (activations, weights, out) = (machine.allocate(bytes)?, machine.allocate(bytes)?, machine.allocate(bytes)?);
    let bias = machine.allocate(PRODUCT_SIZE * size_of::<f16>())?;
    // Products of zeros are faster than others: fewer bits change.
    let noise = noise(PRODUCT_SIZE * PRODUCT_SIZE);
    for memory in [&activations, &weights] {
        machine.upload(&mut queue, memory, 0, bytemuck::cast_slice(&noise))?;
    }
    let product = Product {
        activations: activations.address(),
        weights: weights.address(),
        bias: bias.address(),
        out: out.address(),
        rows: PRODUCT_SIZE,
        inputs: PRODUCT_SIZE,
        outputs: PRODUCT_SIZE,
        end: ProductEnd::Store,
    };
    let seconds = seconds_of(|wait| {
        // SAFETY: the four pieces of memory have the product's sizes and live until the end of this function, which waits for the work.
        unsafe { machine.multiply(&mut queue, &product)? };
        if wait { machine.download(&mut queue, &out, 0, &mut []) } else { Ok(()) }
    })?;
    Ok(2.0 * (PRODUCT_SIZE as f64).powi(3) / seconds)
}

fn measure_copy(gpu: &Gpu) -> Result<f64, GpuError> {
    let machine = gpu.machine.as_ref();
    let mut queue = machine.new_queue()?;
    let (from, to) = (machine.allocate(COPY_BYTES)?, machine.allocate(COPY_BYTES)?);
    let seconds = seconds_of(|wait| {
        machine.copy(&mut queue, &from, &to, COPY_BYTES)?;
        if wait { machine.download(&mut queue, &to, 0, &mut []) } else { Ok(()) }
    })?;
    Ok(2.0 * COPY_BYTES as f64 / seconds)
}

/// Seconds of one piece of work: the best of several rounds, each of several pieces in a row, since the GPU takes a while to its full clock and a limit is what
/// it can do. `work` waits for all of them when it is told to.
pub(super) fn seconds_of(mut work: impl FnMut(bool) -> Result<(), GpuError>) -> Result<f64, GpuError> {
    let mut best = f64::INFINITY;
    work(true)?;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for number in 1..=REPEATS {
            work(number == REPEATS)?;
        }
        best = best.min(begun.elapsed().as_secs_f64() / REPEATS as f64);
    }
    Ok(best)
}

/// Numbers between -1 and 1, by xorshift: the same for the same seed.
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        // Never 0, which would stay so.
        Noise(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }
}

impl Iterator for Noise {
    type Item = f32;

    fn next(&mut self) -> Option<f32> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Some((self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    }
}

/// So many of them as halves.
pub(super) fn noise(count: usize) -> Vec<f16> {
    Noise::new(0).take(count).map(f16::from_f32).collect()
}
