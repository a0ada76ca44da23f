//! Memory of the emulated GPU.

use crate::cuda::machine::DeviceMemory;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Addresses of the GPU's memory: enough for all that a process asks for, of which none is used twice.
pub(super) fn arena() -> Range<u64> {
    const BYTES: usize = 1 << 40;
    static ARENA: OnceLock<Range<u64>> = OnceLock::new();
    let reserve = || {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(map, libc::MAP_FAILED);
        map as u64..map as u64 + BYTES as u64
    };
    ARENA.get_or_init(reserve).clone()
}

/// Memory with a page behind it that cannot be touched.
pub(crate) struct GuardedMemory {
    pub(super) address: u64,
    pub(super) bytes: usize,
    pages: Range<u64>,
}

// SAFETY: nothing but the address is in it; who reads and writes there is the machine's matter.
unsafe impl Send for GuardedMemory {}
// SAFETY: as before.
unsafe impl Sync for GuardedMemory {}

impl DeviceMemory for GuardedMemory {
    fn address(&self) -> u64 {
        self.address
    }
}

impl GuardedMemory {
    pub(super) fn new(bytes: usize) -> GuardedMemory {
        const PAGE: u64 = 4096;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Addresses are multiples of 256, so up to 255 bytes behind the end can be touched after all.
        let used = (bytes as u64).next_multiple_of(256);
        let length = used.next_multiple_of(PAGE);
        let arena = arena();
        let start = arena.start + NEXT.fetch_add(length + PAGE, Ordering::Relaxed);
        assert!(start + length + PAGE <= arena.end, "a process of tests does not allocate so much");
        // SAFETY: these pages of the arena are nobody else's.
        let opened = unsafe { libc::mprotect(start as *mut c_void, length as usize, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(opened, 0);
        GuardedMemory { address: start + length - used, bytes, pages: start..start + length }
    }
}

impl Drop for GuardedMemory {
    fn drop(&mut self) {
        let (start, length) = (self.pages.start as *mut c_void, (self.pages.end - self.pages.start) as usize);
        // SAFETY: the pages are this one's own, and nothing refers to them any more. What is there is given back, and nothing comes there again.
        unsafe {
            libc::madvise(start, length, libc::MADV_DONTNEED);
            libc::mprotect(start, length, libc::PROT_NONE);
        }
    }
}
