//! AMX: registers that hold a tile of a matrix, 16 rows of 64 bytes, and the instruction that multiplies two of them.
//!
//! Rust has no functions for these instructions yet, so they are written out. Tiles are configured before a product and released after it: a
//! thread that is interrupted while they are in use has eight kilobytes more to save.

#[cfg(target_arch = "x86_64")]
pub(crate) use tile_registers::{Tiles, is_available};

/// Whether the processor has the instructions and the system lets this process use them.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn is_available() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
mod tile_registers {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    use std::marker::PhantomData;
    use std::sync::OnceLock;

    /// Rows of a tile.
    const ROWS: usize = 16;
    /// Bytes of a row of a tile.
    const ROW_BYTES: usize = 64;
    /// Tiles that there are registers for.
    const COUNT: usize = 8;

    /// Whether the processor has the instructions and the system lets this process use them, for which it is asked once.
    pub(crate) fn is_available() -> bool {
        static ANSWER: OnceLock<bool> = OnceLock::new();
        *ANSWER.get_or_init(|| {
            if !processor_has_tiles() {
                return false;
            }
            let permission = request_permission();
            if let Err(error) = &permission {
                tracing::warn!(%error, "this processor has AMX, but the system does not let it be used: embedding takes several times as long");
            }
            permission.is_ok()
        })
    }

    /// Whether there are AMX TILE and BF16, the vector instructions that are used beside them, and a system that saves tiles.
    fn processor_has_tiles() -> bool {
        const TILE: u32 = 1 << 24;
        const BF16: u32 = 1 << 22;
        /// The configuration of tiles, and their contents, in the register that says what the system saves.
        const SAVED: u64 = 0b11 << 17;
        /// The only arrangement of tiles that there is.
        const PALETTE: u32 = 1;
        let has_vectors = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16");
        if !has_vectors || !is_x86_feature_detected!("xsave") || __cpuid_count(0, 0).eax < 0x1d {
            return false;
        }
        let has_instructions = __cpuid_count(7, 0).edx & (TILE | BF16) == TILE | BF16;
        // SAFETY: the processor has XSAVE, and the system has enabled it: it saves the registers of AVX-512.
        let is_saved = unsafe { saved_state() } & SAVED == SAVED;
        let palette = __cpuid_count(0x1d, PALETTE);
        let has_size = palette.ebx == (COUNT << 16 | ROW_BYTES) as u32 && palette.ecx & 0xffff == ROWS as u32;
        has_instructions && is_saved && has_size
    }

    /// Which state of the processor the system saves.
    ///
    /// # Safety
    /// The processor has XSAVE and the system has enabled it.
    #[target_feature(enable = "xsave")]
    unsafe fn saved_state() -> u64 {
        // SAFETY: as the caller promises.
        unsafe { _xgetbv(0) }
    }

    /// Asks the system to make room for tiles in what it saves of this process's threads.
    #[cfg(target_os = "linux")]
    fn request_permission() -> std::io::Result<()> {
        // From the kernel's `arch/x86/include/uapi/asm/prctl.h` and `asm/fpu/types.h`.
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILE_DATA: libc::c_long = 18;
        // SAFETY: the call reads its two numbers and touches no memory of this process.
        let outcome = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) };
        if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    #[cfg(not(target_os = "linux"))]
    fn request_permission() -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// The tiles of this thread, all of full size, from their configuration to their release. The sums of one block of a product are built up
    /// in them: one or two tiles of rows (`BLOCKS`), each times two tiles of columns.
    pub(crate) struct Tiles {
        /// Registers belong to a thread.
        not_send: PhantomData<*const ()>,
    }

    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    static CONFIGURATION: Configuration = {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < COUNT {
            row_bytes[tile] = ROW_BYTES as u16;
            rows[tile] = ROWS as u8;
            tile += 1;
        }
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    };

    // The compiler keeps nothing in tiles by itself, so that what one block of instructions leaves in them the next one finds.
    impl Tiles {
        /// Configures the tiles of this thread.
        ///
        /// # Safety
        /// [`is_available`].
        #[inline(always)]
        pub(crate) unsafe fn configure() -> Self {
            // SAFETY: the caller promises that the instruction is there; it reads the 64 bytes of a valid configuration.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly)) };
            Self { not_send: PhantomData }
        }

        /// Sets all sums to zero.
        #[inline(always)]
        pub(crate) fn clear(&mut self) {
            // SAFETY: tiles are configured.
            unsafe {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack, nomem)
                );
            }
        }

        /// Adds the products of 32 halves of each row with those of 32 columns. The panel has a line of 32 words for each two halves.
        ///
        /// # Safety
        /// `rows` is valid for reads of 16 `BLOCKS` rows of 64 bytes, `stride_bytes` apart, and `panel` for 16 lines of 128 bytes.
        #[inline(always)]
        pub(crate) unsafe fn multiply_add<const BLOCKS: usize>(
            &mut self,
            rows: *const u8,
            stride_bytes: usize,
            panel: *const u32,
        ) {
            const { assert!(BLOCKS == 1 || BLOCKS == 2) };
            // SAFETY: tiles are configured, and the caller promises what is read.
            unsafe {
                if BLOCKS == 2 {
                    asm!(
                        "tileloadd tmm4, [{rows} + {stride}]",
                        "tileloadd tmm6, [{panel} + {line}]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm7, [{panel} + {line} + 64]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tileloadd tmm5, [{more} + {stride}]",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        rows = in(reg) rows, more = in(reg) rows.add(ROWS * stride_bytes), stride = in(reg) stride_bytes,
                        panel = in(reg) panel, line = in(reg) 2 * ROW_BYTES,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, readonly)
                    );
                } else {
                    asm!(
                        "tileloadd tmm4, [{rows} + {stride}]",
                        "tileloadd tmm6, [{panel} + {line}]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm7, [{panel} + {line} + 64]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        rows = in(reg) rows, stride = in(reg) stride_bytes, panel = in(reg) panel, line = in(reg) 2 * ROW_BYTES,
                        out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _, options(nostack, readonly)
                    );
                }
            }
        }

        /// Writes the sums: 32 of each row.
        ///
        /// # Safety
        /// `sums` is valid for writes of 16 `BLOCKS` rows of 32 values, `stride_bytes` apart.
        #[inline(always)]
        pub(crate) unsafe fn store<const BLOCKS: usize>(&mut self, sums: *mut f32, stride_bytes: usize) {
            // SAFETY: tiles are configured, and the caller promises what is written.
            unsafe {
                asm!(
                    "tilestored [{sums} + {stride}], tmm0", "tilestored [{sums} + {stride} + 64], tmm1",
                    sums = in(reg) sums, stride = in(reg) stride_bytes, options(nostack)
                );
                if BLOCKS == 2 {
                    asm!(
                        "tilestored [{sums} + {stride}], tmm2", "tilestored [{sums} + {stride} + 64], tmm3",
                        sums = in(reg) sums.byte_add(ROWS * stride_bytes), stride = in(reg) stride_bytes, options(nostack)
                    );
                }
            }
        }
    }

    impl Drop for Tiles {
        #[inline(always)]
        fn drop(&mut self) {
            // SAFETY: whoever made this promised that the instruction is there.
            unsafe {
                asm!(
                    "tilerelease",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, nomem)
                );
            }
        }
    }
}
