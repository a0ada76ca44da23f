//! A block of numbers that starts on a cache line, or on a huge page when it is large.

use bytemuck::Pod;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const CACHE_LINE_BYTES: usize = 64;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A fixed number of numbers, zero at first.
pub(crate) struct AlignedBlock<T = f32> {
    start: NonNull<T>,
    length: usize,
    layout: Layout,
}

// SAFETY: the block owns its memory and gives it out only by Rust's borrowing rules.
unsafe impl<T: Pod + Send> Send for AlignedBlock<T> {}
// SAFETY: as above; a shared block is only read.
unsafe impl<T: Pod + Sync> Sync for AlignedBlock<T> {}

impl<T: Pod> AlignedBlock<T> {
    /// Allocates `length` zeros.
    pub(crate) fn new(length: usize) -> Self {
        let size_bytes = length.max(1) * size_of::<T>();
        let alignment = if size_bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { CACHE_LINE_BYTES };
        let Ok(layout) = Layout::from_size_align(size_bytes, alignment) else {
            // Only sizes above isize::MAX get here, which no allocator could satisfy either.
            handle_alloc_error(Layout::new::<T>())
        };
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(memory) else { handle_alloc_error(layout) };
        prefer_huge_pages(start, layout);
        // SAFETY: the allocation has this size, and zero bytes are a value of a plain number.
        unsafe { start.write_bytes(0, size_bytes) };
        Self { start: start.cast(), length, layout }
    }
}

/// Asks for huge pages, because the weights are streamed through for every batch and would otherwise miss the
/// translation buffer every 4 KiB. Only a hint: where it is refused everything works, more slowly.
fn prefer_huge_pages(start: NonNull<u8>, layout: Layout) {
    #[cfg(target_os = "linux")]
    if layout.align() == HUGE_PAGE_BYTES {
        // Whole huge pages only, so that no memory beyond the block is taken.
        let whole_bytes = layout.size() / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
        // SAFETY: the range lies inside the new allocation, and the advice does not change its contents.
        unsafe {
            libc::madvise(start.as_ptr().cast(), whole_bytes, libc::MADV_HUGEPAGE);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, layout);
}

impl<T> Drop for AlignedBlock<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr().cast(), self.layout) }
    }
}

impl<T> Deref for AlignedBlock<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `length` values, all initialised, owned by this block.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T> DerefMut for AlignedBlock<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}
