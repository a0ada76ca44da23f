//! Products with everything in registers: as many as the processor's units can make.

/// A kind of products.
pub struct Products {
    /// Of the numbers, as `Precision` names it.
    pub precision: &'static str,
    /// As the encoder's kernels name theirs.
    pub instructions: &'static str,
    /// Multiplications and additions of one repetition.
    pub operations: f64,
    /// Repetitions that take some tenths of a second.
    pub repetitions: u64,
    /// Makes so many repetitions.
    pub run: fn(u64),
}

/// The kinds that this processor has.
#[cfg(not(target_arch = "x86_64"))]
pub fn available() -> Vec<Products> {
    vec![portable::F32]
}

/// The kinds that this processor has.
#[cfg(target_arch = "x86_64")]
pub fn available() -> Vec<Products> {
    let mut kinds = Vec::new();
    if is_x86_feature_detected!("avx512f") {
        kinds.push(avx512::F32);
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        kinds.push(avx2::F32);
    } else {
        kinds.push(portable::F32);
    }
    if is_x86_feature_detected!("avx512bf16") {
        kinds.push(avx512::BF16);
    }
    if is_x86_feature_detected!("avx512vnni") {
        kinds.push(avx512::INT8);
    }
    let tiles = amx::available();
    if tiles.bf16 {
        kinds.push(amx::BF16);
    }
    if tiles.int8 {
        kinds.push(amx::INT8);
    }
    kinds
}

mod portable {
    use super::Products;
    use std::hint::black_box;

    pub const F32: Products =
        Products { precision: "f32", instructions: "portable", operations: 2.0 * 64.0, repetitions: 5_000_000, run };

    fn run(repetitions: u64) {
        let (factor, mut sums) = (black_box(0.5_f32), [1.0_f32; 64]);
        for _ in 0..repetitions {
            for sum in &mut sums {
                *sum = *sum * factor + 1.0;
            }
        }
        black_box(sums);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::Products;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Sums that do not wait for each other.
    const CHAINS: usize = 12;

    pub const F32: Products = Products {
        precision: "f32",
        instructions: "avx2",
        operations: 2.0 * 8.0 * CHAINS as f64,
        repetitions: 50_000_000,
        // SAFETY: offered only where the processor has the instructions.
        run: |repetitions| unsafe { f32(repetitions) },
    };

    #[target_feature(enable = "avx2,fma")]
    fn f32(repetitions: u64) {
        let factor = black_box(_mm256_set1_ps(0.5));
        let mut sums = [_mm256_set1_ps(1.0); CHAINS];
        for _ in 0..repetitions {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::Products;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Sums that do not wait for each other.
    const CHAINS: usize = 24;

    pub const F32: Products = Products {
        precision: "f32",
        instructions: "avx512",
        operations: 2.0 * 16.0 * CHAINS as f64,
        repetitions: 20_000_000,
        // SAFETY: offered only where the processor has the instructions.
        run: |repetitions| unsafe { f32(repetitions) },
    };

    pub const BF16: Products = Products {
        precision: "bf16",
        instructions: "avx512",
        operations: 2.0 * 32.0 * CHAINS as f64,
        repetitions: 20_000_000,
        // SAFETY: as above.
        run: |repetitions| unsafe { bf16(repetitions) },
    };

    pub const INT8: Products = Products {
        precision: "int8",
        instructions: "avx512",
        operations: 2.0 * 64.0 * CHAINS as f64,
        repetitions: 20_000_000,
        // SAFETY: as above.
        run: |repetitions| unsafe { int8(repetitions) },
    };

    #[target_feature(enable = "avx512f")]
    fn f32(repetitions: u64) {
        let factor = black_box(_mm512_set1_ps(0.5));
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..repetitions {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16(repetitions: u64) {
        let values = black_box(_mm512_set1_ps(0.5));
        let factors = _mm512_cvtne2ps_pbh(values, values);
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..repetitions {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, factors, factors);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8(repetitions: u64) {
        let factors = black_box(_mm512_set1_epi8(1));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..repetitions {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, factors, factors);
            }
        }
        black_box(sums);
    }
}

#[cfg(target_arch = "x86_64")]
mod amx {
    use super::Products;
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    /// Products of tiles in a repetition.
    const PRODUCTS: f64 = 4.0;
    /// A tile has 16 rows of 64 bytes.
    const ROWS: f64 = 16.0;

    pub const BF16: Products = Products {
        precision: "bf16",
        instructions: "amx",
        operations: PRODUCTS * 2.0 * ROWS * ROWS * 32.0,
        repetitions: 10_000_000,
        // SAFETY: offered only where the processor has the instructions and the system lets this process use them.
        run: |repetitions| unsafe { bf16(repetitions) },
    };

    pub const INT8: Products = Products {
        precision: "int8",
        instructions: "amx",
        operations: PRODUCTS * 2.0 * ROWS * ROWS * 64.0,
        repetitions: 10_000_000,
        // SAFETY: as above.
        run: |repetitions| unsafe { int8(repetitions) },
    };

    /// The products of tiles that this process may use.
    pub struct Tiles {
        pub bf16: bool,
        pub int8: bool,
    }

    pub fn available() -> Tiles {
        let features = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
        let has = |bit: u32| features & (1 << bit) != 0;
        let has_tiles = has(24) && is_permitted();
        Tiles { bf16: has_tiles && has(22), int8: has_tiles && has(25) }
    }

    /// Linux saves the tiles' registers only for processes that ask.
    #[cfg(target_os = "linux")]
    fn is_permitted() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        // SAFETY: the call takes two numbers and touches no memory of this process.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn is_permitted() -> bool {
        false
    }

    /// As the processor reads it: palette 1, and for each of the eight tiles its bytes in a row and its rows.
    #[repr(C, align(64))]
    struct Shape {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    static SHAPE: Shape = {
        let mut shape = Shape { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < 8 {
            shape.row_bytes[tile] = 64;
            shape.rows[tile] = ROWS as u8;
            tile += 1;
        }
        shape
    };

    /// Two tiles times two tiles, as the encoder's kernels could at most, again and again.
    macro_rules! products {
        ($product:literal, $repetitions:expr) => {
            asm!(
                "ldtilecfg [{shape}]",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "2:",
                concat!($product, " tmm0, tmm4, tmm6"),
                concat!($product, " tmm1, tmm4, tmm7"),
                concat!($product, " tmm2, tmm5, tmm6"),
                concat!($product, " tmm3, tmm5, tmm7"),
                "dec {repetitions}",
                "jnz 2b",
                "tilerelease",
                shape = in(reg) &raw const SHAPE,
                repetitions = inout(reg) $repetitions => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }

    /// # Safety
    /// The process may use these instructions, and `repetitions` is above 0.
    unsafe fn bf16(repetitions: u64) {
        // SAFETY: as the caller promises; the shape is valid, and the tiles are given back.
        unsafe { products!("tdpbf16ps", repetitions) }
    }

    /// # Safety
    /// The process may use these instructions, and `repetitions` is above 0.
    unsafe fn int8(repetitions: u64) {
        // SAFETY: as the caller promises; the shape is valid, and the tiles are given back.
        unsafe { products!("tdpbusd", repetitions) }
    }
}
