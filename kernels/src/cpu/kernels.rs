//! The encoder's kernels for each instruction set and kind of numbers: the only place where they are chosen.

use super::arithmetic::{Arithmetic, F32, int8::Int8Portable};
#[cfg(target_arch = "x86_64")]
use super::arithmetic::{
    bf16::Bf16Avx512,
    int8::{Int8Avx2, Int8Avx512, Int8AvxVnni},
};
use super::attention::{self, Attention};
use super::balance::Balance;
use super::layer_norm;
use super::layout::RowLayout;
use super::numbers::Numbers;
use super::operand::{NarrowedRows, Operand, PassedRows};
use super::product::{self, Product};
use super::rates;
#[cfg(test)]
use super::softmax::Softmax;
#[cfg(test)]
use crate::configuration::Activation;
use crate::instructions::Instructions;
use crate::lanes::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{avx2::Avx2, avx512::Avx512};
use crate::precision::Precision;

/// The kernels of an encoder.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// The products that make queries, keys and values, and that of what attention gives.
    pub(crate) attention: &'static ProductKernels,
    /// The products into the wide middle of the feed-forward network and out of it.
    pub(crate) feed_forward: &'static ProductKernels,
    /// All that is not a product with weights.
    pub(crate) rows: &'static RowKernels,
}

impl Kernels {
    /// The kernels of `instructions` for `precision`, if this processor has them.
    ///
    /// Whole numbers are too coarse for attention: more than half of what they cost in exactness, they would cost there, for a third of the products. It is
    /// computed in halves where the processor is fast with them, else in f32.
    pub(crate) fn of(instructions: Instructions, precision: Precision) -> Option<Self> {
        // Tiles multiply only halves.
        let instructions = match (instructions, precision) {
            (Instructions::Amx, Precision::F32 | Precision::Int8) => Instructions::Avx512,
            _ => instructions,
        };
        let products = |numbers| ProductKernels::of(instructions, numbers);
        // A narrower set may lack what the widest one is fast with.
        let floats = || products(rates::fastest_floats()).or_else(|| products(Numbers::F32));
        let (attention, feed_forward) = match precision {
            Precision::F32 => (products(Numbers::F32)?, products(Numbers::F32)?),
            Precision::Bf16 => (products(Numbers::Bf16)?, products(Numbers::Bf16)?),
            Precision::Int8 => (floats()?, products(Numbers::Int8)?),
        };
        let rows = RowKernels::of(instructions, attention.layout.numbers)?;
        Some(Self { attention, feed_forward, rows })
    }

    /// How rows lie between the two products of the feed-forward network: as halves if these are what it multiplies.
    pub(crate) fn passed_within_feed_forward(&self) -> RowLayout {
        let layout = self.feed_forward.layout;
        if layout.numbers == Numbers::Bf16 { layout } else { RowLayout::F32 }
    }
}

/// Products of one instruction set and arithmetic. A table is only handed out by [`ProductKernels::of`], after the processor was asked
/// whether it has the instructions, so that calling its functions is safe.
pub(crate) struct ProductKernels {
    /// The instruction set.
    pub(crate) instructions: Instructions,
    /// What is multiplied, and how its rows lie.
    pub(crate) layout: RowLayout,
    /// Columns of a panel of weights.
    pub(crate) panel_columns: usize,
    narrow: for<'a> unsafe fn(&'a mut NarrowedRows, &'a [f32], usize, Option<&Balance>) -> Operand<'a>,
    multiply: unsafe fn(&mut Product<'_>),
}

impl ProductKernels {
    /// The products of `instructions` that multiply `numbers`, if this processor has them.
    pub(crate) fn of(instructions: Instructions, numbers: Numbers) -> Option<&'static Self> {
        if !instructions.is_available() {
            return None;
        }
        match (instructions, numbers) {
            #[cfg(target_arch = "x86_64")]
            (Instructions::Amx, Numbers::Bf16) => Some(&amx::PRODUCTS),
            (Instructions::Amx, _) => Self::of(Instructions::Avx512, numbers),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx512, Numbers::F32) => Some(&avx512::PRODUCTS),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx512, Numbers::Bf16) if is_x86_feature_detected!("avx512bf16") => Some(&avx512_bf16::PRODUCTS),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx512, Numbers::Int8) if is_x86_feature_detected!("avx512vnni") => Some(&avx512_int8::PRODUCTS),
            // AVX-512 without whole numbers: every processor that has it has AVX2.
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx512, Numbers::Int8) => Self::of(Instructions::Avx2, numbers),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2, Numbers::F32) => Some(&avx2::PRODUCTS),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2, Numbers::Int8) if is_x86_feature_detected!("avxvnni") => Some(&avx_vnni_int8::PRODUCTS),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2, Numbers::Int8) => Some(&avx2_int8::PRODUCTS),
            (Instructions::Portable, Numbers::F32) => Some(&portable::PRODUCTS),
            (Instructions::Portable, Numbers::Int8) => Some(&portable_int8::PRODUCTS),
            _ => None,
        }
    }

    /// The fastest of this processor that multiply halves or f32, in whichever.
    pub(crate) fn of_fastest_floats() -> Option<&'static Self> {
        let instructions = Instructions::detect();
        let numbers = if instructions == Instructions::Amx { Numbers::Bf16 } else { rates::fastest_floats() };
        Self::of(instructions, numbers)
    }

    /// See [`NarrowedRows::narrow`].
    pub(crate) fn narrow<'a>(&self, room: &'a mut NarrowedRows, rows: &'a [f32], values: usize) -> Operand<'a> {
        // SAFETY: the table exists only where the processor has the instruction set.
        unsafe { (self.narrow)(room, rows, values, None) }
    }

    /// As [`ProductKernels::narrow`], of rows that are made even first.
    pub(crate) fn narrow_even<'a>(
        &self,
        room: &'a mut NarrowedRows,
        rows: &'a [f32],
        values: usize,
        balance: &Balance,
    ) -> Operand<'a> {
        // SAFETY: the table exists only where the processor has the instruction set.
        unsafe { (self.narrow)(room, rows, values, Some(balance)) }
    }

    /// Rows that other kernels have passed on.
    pub(crate) fn operand<'a>(&self, room: &'a mut NarrowedRows, passed: &'a PassedRows, rows: usize) -> Operand<'a> {
        if passed.layout() == self.layout {
            return passed.operand(rows);
        }
        self.narrow(room, passed.rows_of_f32(rows), passed.values())
    }

    /// See [`product::multiply`].
    pub(crate) fn multiply(&self, mut product: Product<'_>) {
        // SAFETY: the table exists only where the processor has the instruction set.
        unsafe { (self.multiply)(&mut product) }
    }
}

/// Attention and normalisation of one instruction set. A table is only handed out by [`RowKernels::of`], as that of products.
pub(crate) struct RowKernels {
    /// How rows lie that attention reads and writes.
    pub(crate) passed: RowLayout,
    attend: unsafe fn(&mut Attention<'_>),
    layer_norm: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    // Parts of products and attention, by themselves only in tests.
    #[cfg(test)]
    activate: unsafe fn(&mut [f32], Activation),
    #[cfg(test)]
    softmax: unsafe fn(&mut [f32]),
}

impl RowKernels {
    /// The kernels of `instructions`, whose attention multiplies `numbers`, if this processor has them.
    pub(crate) fn of(instructions: Instructions, numbers: Numbers) -> Option<&'static Self> {
        if !instructions.is_available() {
            return None;
        }
        match (instructions, numbers) {
            #[cfg(target_arch = "x86_64")]
            (Instructions::Amx, Numbers::Bf16) => Some(&amx::ROWS),
            (Instructions::Amx, _) => Self::of(Instructions::Avx512, numbers),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx512, Numbers::F32) => Some(&avx512_rows::ROWS),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx512, Numbers::Bf16) if is_x86_feature_detected!("avx512bf16") => Some(&avx512_bf16_rows::ROWS),
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2, Numbers::F32) => Some(&avx2_rows::ROWS),
            (Instructions::Portable, Numbers::F32) => Some(&portable_rows::ROWS),
            _ => None,
        }
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

/// Instantiates products: the arithmetic, rows and vectors of a tile, and the processor features that the entry functions enable.
macro_rules! products {
    ($module:ident, $instructions:ident, $arithmetic:ty, $rows:literal x $vectors:literal $(, $features:literal)?) => {
        mod $module {
            use super::*;

            const LAYOUT: RowLayout = RowLayout::dense(<$arithmetic>::NUMBERS);

            pub(super) static PRODUCTS: ProductKernels = ProductKernels {
                instructions: Instructions::$instructions,
                layout: LAYOUT,
                panel_columns: $vectors * <<$arithmetic as Arithmetic>::Lanes as crate::lanes::Lanes>::WIDTH,
                narrow,
                multiply,
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn narrow<'a>(
                room: &'a mut NarrowedRows,
                rows: &'a [f32],
                values: usize,
                balance: Option<&Balance>,
            ) -> Operand<'a> {
                // SAFETY: `ProductKernels::of` has checked the instruction set.
                unsafe { room.narrow::<$arithmetic>(rows, values, LAYOUT, balance) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn multiply(product: &mut Product<'_>) {
                // SAFETY: `ProductKernels::of` has checked the instruction set.
                unsafe { product::multiply::<$arithmetic, $rows, $vectors>(product) }
            }
        }
    };
}

/// Instantiates the kernels of rows: the arithmetic of attention, rows and vectors of its tiles, and the processor features.
macro_rules! rows {
    ($module:ident, $arithmetic:ty, $rows:literal x $vectors:literal $(, $features:literal)?) => {
        mod $module {
            use super::*;

            type Lanes = <$arithmetic as Arithmetic>::Lanes;

            pub(super) static ROWS: RowKernels = RowKernels {
                passed: RowLayout::dense(<$arithmetic>::NUMBERS),
                attend,
                layer_norm,
                #[cfg(test)]
                activate,
                #[cfg(test)]
                softmax,
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn attend(attention: &mut Attention<'_>) {
                // SAFETY: `RowKernels::of` has checked the instruction set.
                unsafe { attention::attend::<$arithmetic, $rows, $vectors>(attention) }
            }

            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn layer_norm(rows: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32) {
                // SAFETY: `RowKernels::of` has checked the instruction set.
                unsafe { layer_norm::layer_norm::<Lanes>(rows, scale, shift, epsilon) }
            }

            #[cfg(test)]
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn activate(values: &mut [f32], function: Activation) {
                // SAFETY: `RowKernels::of` has checked the instruction set; the slice is valid for its length.
                unsafe { crate::cpu::activation::apply::<Lanes>(values.as_mut_ptr(), values.len(), function, Numbers::F32) }
            }

            #[cfg(test)]
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn softmax(values: &mut [f32]) {
                if values.is_empty() {
                    return;
                }
                let padded = values.len().next_multiple_of($vectors * <Lanes as crate::lanes::Lanes>::WIDTH);
                let mut scores = values.to_vec();
                scores.resize(padded, 0.0);
                let mut halves = vec![half::bf16::ZERO; padded];
                let are_f32 = <$arithmetic>::NUMBERS == Numbers::F32;
                let from = scores.as_mut_ptr();
                let weights = if are_f32 { from.cast() } else { halves.as_mut_ptr().cast() };
                // SAFETY: `RowKernels::of` has checked the instruction set; both hold `padded` values.
                let sum = unsafe { <$arithmetic as Softmax>::exponentiate(from, values.len(), padded, weights) };
                for ((value, score), half) in values.iter_mut().zip(scores).zip(halves) {
                    *value = if are_f32 { score } else { half.to_f32() } / sum;
                }
            }
        }
    };
}

/// Products and attention in tiles; everything else as with AVX-512.
#[cfg(target_arch = "x86_64")]
mod amx {
    use super::*;
    use crate::cpu::{tile_attention, tile_product};

    pub(super) static PRODUCTS: ProductKernels = ProductKernels {
        instructions: Instructions::Amx,
        layout: RowLayout::TILES,
        panel_columns: tile_product::PANEL_COLUMNS,
        narrow,
        multiply,
    };

    pub(super) static ROWS: RowKernels = RowKernels {
        passed: RowLayout::TILES,
        attend,
        layer_norm: avx512_rows::layer_norm,
        #[cfg(test)]
        activate: avx512_rows::activate,
        #[cfg(test)]
        softmax: avx512_bf16_rows::softmax,
    };

    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn narrow<'a>(room: &'a mut NarrowedRows, rows: &'a [f32], values: usize, balance: Option<&Balance>) -> Operand<'a> {
        // SAFETY: `ProductKernels::of` has checked the instruction set.
        unsafe { room.narrow::<Bf16Avx512>(rows, values, RowLayout::TILES, balance) }
    }

    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn multiply(product: &mut Product<'_>) {
        // SAFETY: `ProductKernels::of` has checked the instruction set.
        unsafe { tile_product::multiply(product) }
    }

    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn attend(attention: &mut Attention<'_>) {
        // SAFETY: `RowKernels::of` has checked the instruction set.
        unsafe { tile_attention::attend(attention) }
    }
}

// AVX-512 has 32 registers: 8 x 3 sums leave room for three vectors of a panel and broadcast activations.
#[cfg(target_arch = "x86_64")]
products!(avx512, Avx512, F32<Avx512>, 8 x 3, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
products!(avx512_bf16, Avx512, Bf16Avx512, 8 x 3, "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
products!(avx512_int8, Avx512, Int8Avx512, 8 x 3, "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
rows!(avx512_rows, F32<Avx512>, 8 x 2, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
rows!(avx512_bf16_rows, Bf16Avx512, 8 x 2, "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");

// AVX2 has 16 registers: 6 x 2 sums, two vectors of a panel, and two for activations.
#[cfg(target_arch = "x86_64")]
products!(avx2, Avx2, F32<Avx2>, 6 x 2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
products!(avx_vnni_int8, Avx2, Int8AvxVnni, 6 x 2, "avxvnni,avx2,fma,f16c");
// Even and odd bytes take two registers each.
#[cfg(target_arch = "x86_64")]
products!(avx2_int8, Avx2, Int8Avx2, 4 x 2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
rows!(avx2_rows, F32<Avx2>, 6 x 2, "avx2,fma,f16c");

// NEON has 32 registers of four lanes, SSE2 has 16; each of these vectors takes two.
#[cfg(target_arch = "aarch64")]
products!(portable, Portable, F32<Portable>, 6 x 2);
#[cfg(target_arch = "aarch64")]
products!(portable_int8, Portable, Int8Portable, 6 x 2);
#[cfg(target_arch = "aarch64")]
rows!(portable_rows, F32<Portable>, 6 x 2);
#[cfg(not(target_arch = "aarch64"))]
products!(portable, Portable, F32<Portable>, 4 x 1);
#[cfg(not(target_arch = "aarch64"))]
products!(portable_int8, Portable, Int8Portable, 4 x 1);
#[cfg(not(target_arch = "aarch64"))]
rows!(portable_rows, F32<Portable>, 4 x 1);

#[cfg(test)]
mod tests;
