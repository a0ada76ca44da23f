//! A GPU for tests that is none: runs the kernels on the processor (see `emulator/emulator.hpp`), and computes matrix products plainly.
//!
//! Memory ends at a page that cannot be touched, so that a kernel that reads or writes past it ends the test. So does a race (`emulator/races.hpp`).

use super::machine::{DeviceMemory, GpuError, Kernel, LaunchShape, Machine, Product, ProductEnd};
use half::f16;
use libloading::Library;
use library::library;
use parking_lot::Mutex;
use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

mod library;
mod memory;
mod tests;

pub(crate) use memory::GuardedMemory;

/// How the library's functions are called: grid, threads, shared memory, arguments and their size, seed. They return what is wrong with the kernel, or null.
type Launch = unsafe extern "C" fn(*const u32, *const u32, u32, *const u8, u32, u64) -> *const c_char;

/// What a launch says that is refused because a test wants it.
pub(crate) const REFUSAL: &str = "as the test wants it";

/// A GPU on the processor.
pub(crate) struct Emulator {
    library: &'static Library,
    seed: AtomicU64,
    /// Work is refused after so many launches, as by a GPU that fails.
    pub(crate) launches_left: AtomicUsize,
    /// Memory is refused after so many pieces.
    pub(crate) allocations_left: AtomicUsize,
    /// Whether it is one of those that multiply by warpgroups.
    pub(crate) has_warpgroups: bool,
}

/// The library keeps what it runs in one place.
static RUNNING: Mutex<()> = Mutex::new(());

impl Emulator {
    pub(crate) fn new(seed: u64) -> Self {
        Emulator {
            library: library(),
            seed: AtomicU64::new(seed),
            launches_left: AtomicUsize::new(usize::MAX),
            allocations_left: AtomicUsize::new(usize::MAX),
            has_warpgroups: true,
        }
    }

    /// Runs a kernel; returns what is wrong with it.
    ///
    /// # Safety
    ///
    /// As for [`Machine::launch`].
    unsafe fn run(&self, name: &str, shape: LaunchShape, arguments: &[u8]) -> Option<String> {
        let _one_at_a_time = RUNNING.lock();
        // SAFETY: all functions of this form are made by one macro and have this type; the caller answers for the arguments.
        unsafe {
            let launch = self.library.get::<Launch>(format!("launch_{name}").as_bytes()).expect("the kernel is in the library");
            let (grid, threads) = ([shape.grid[0], shape.grid[1], 1], [shape.threads, 1, 1]);
            let seed = self.seed.fetch_add(1, Ordering::Relaxed);
            let wrong =
                launch(grid.as_ptr(), threads.as_ptr(), shape.shared_bytes, arguments.as_ptr(), arguments.len() as u32, seed);
            (!wrong.is_null()).then(|| format!("{name}: {}", CStr::from_ptr(wrong).to_string_lossy()))
        }
    }
}

/// Work is done at once, or noted while it is recorded.
pub(crate) struct EmulatedQueue {
    recording: Option<Vec<Step>>,
}

pub(crate) enum Step {
    Launch(Kernel, LaunchShape, Vec<u8>),
    Product(Product),
}

impl Machine for Emulator {
    type Memory = GuardedMemory;
    type Queue = EmulatedQueue;
    type Recording = Vec<Step>;

    fn multiprocessors(&self) -> u32 {
        2
    }

    fn shared_bytes_max(&self) -> u32 {
        160 << 10
    }

    fn has_warpgroups(&self) -> bool {
        self.has_warpgroups
    }

    fn allocate(&self, bytes: usize) -> Result<GuardedMemory, GpuError> {
        let left = self.allocations_left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(GpuError::OutOfMemory { bytes });
        }
        self.allocations_left.store(left - 1, Ordering::Relaxed);
        Ok(GuardedMemory::new(bytes))
    }

    fn new_queue(&self) -> Result<EmulatedQueue, GpuError> {
        Ok(EmulatedQueue { recording: None })
    }

    fn upload(&self, queue: &mut EmulatedQueue, to: &GuardedMemory, offset: usize, bytes: &[u8]) -> Result<(), GpuError> {
        assert!(queue.recording.is_none() && offset + bytes.len() <= to.bytes);
        // SAFETY: the memory is there and large enough, and no kernel is running.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (to.address as *mut u8).add(offset), bytes.len()) };
        Ok(())
    }

    fn download(&self, queue: &mut EmulatedQueue, from: &GuardedMemory, offset: usize, into: &mut [u8]) -> Result<(), GpuError> {
        assert!(queue.recording.is_none() && offset + into.len() <= from.bytes);
        // SAFETY: as for `upload`.
        unsafe { std::ptr::copy_nonoverlapping((from.address as *const u8).add(offset), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn copy(&self, queue: &mut EmulatedQueue, from: &GuardedMemory, to: &GuardedMemory, bytes: usize) -> Result<(), GpuError> {
        assert!(queue.recording.is_none() && bytes <= from.bytes.min(to.bytes));
        // SAFETY: both are there and large enough, and no kernel is running.
        unsafe { std::ptr::copy_nonoverlapping(from.address as *const u8, to.address as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        queue: &mut EmulatedQueue,
        kernel: Kernel,
        shape: LaunchShape,
        arguments: &[u8],
    ) -> Result<(), GpuError> {
        assert!(shape.shared_bytes <= self.shared_bytes_max());
        let left = self.launches_left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(GpuError::Failed { what: "a launch", reason: REFUSAL.to_owned() });
        }
        self.launches_left.store(left - 1, Ordering::Relaxed);
        match &mut queue.recording {
            Some(steps) => steps.push(Step::Launch(kernel, shape, arguments.to_vec())),
            None => {
                // SAFETY: the caller's promise.
                let wrong = unsafe { self.run(kernel.name(), shape, arguments) };
                assert_eq!(wrong, None);
            }
        }
        Ok(())
    }

    unsafe fn multiply(&self, queue: &mut EmulatedQueue, product: &Product) -> Result<(), GpuError> {
        match &mut queue.recording {
            Some(steps) => steps.push(Step::Product(*product)),
            // SAFETY: the caller's promise.
            None => unsafe { multiply(product) },
        }
        Ok(())
    }

    fn record(
        &self,
        queue: &mut EmulatedQueue,
        work: &mut dyn FnMut(&mut EmulatedQueue) -> Result<(), GpuError>,
    ) -> Result<Vec<Step>, GpuError> {
        queue.recording = Some(Vec::new());
        let outcome = work(queue);
        let steps = queue.recording.take().unwrap();
        outcome.map(|()| steps)
    }

    unsafe fn replay(&self, queue: &mut EmulatedQueue, recording: &Vec<Step>) -> Result<(), GpuError> {
        for step in recording {
            // SAFETY: the caller's promise.
            unsafe {
                match step {
                    Step::Launch(kernel, shape, arguments) => self.launch(queue, *kernel, *shape, arguments)?,
                    Step::Product(product) => self.multiply(queue, product)?,
                }
            }
        }
        Ok(())
    }
}

/// A product as the library for it computes it: halves, sums in f32.
unsafe fn multiply(product: &Product) {
    let Product { rows, inputs, outputs, .. } = *product;
    // SAFETY: the caller says that the memory is there and large enough; what is written is none of what is read otherwise.
    let (activations, weights, bias, out) = unsafe {
        (
            std::slice::from_raw_parts(product.activations as *const f16, rows * inputs),
            std::slice::from_raw_parts(product.weights as *const f16, outputs * inputs),
            std::slice::from_raw_parts(product.bias as *const f16, outputs),
            std::slice::from_raw_parts_mut(product.out as *mut f16, rows * outputs),
        )
    };
    let widen = |halves: &[f16]| -> Vec<f32> { halves.iter().map(|half| half.to_f32()).collect() };
    let (activations, weights) = (widen(activations), widen(weights));
    for (row, out) in activations.chunks_exact(inputs).zip(out.chunks_exact_mut(outputs)) {
        for ((column, bias), out) in weights.chunks_exact(inputs).zip(bias).zip(out) {
            let sum: f32 = column.iter().zip(row).map(|(left, right)| left * right).sum::<f32>() + bias.to_f32();
            *out = f16::from_f32(match product.end {
                ProductEnd::Store => sum,
                ProductEnd::Add => sum + out.to_f32(),
                ProductEnd::Relu => sum.max(0.0),
                ProductEnd::Gelu => {
                    let inner = (2.0 / std::f32::consts::PI).sqrt() * (sum + 0.044715 * sum.powi(3));
                    0.5 * sum * (1.0 + inner.tanh())
                }
            });
        }
    }
}
