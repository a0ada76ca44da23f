//! A GPU for tests that is none: runs the kernels on the processor (see `emulator/emulator.hpp`), and computes matrix products plainly.
//!
//! Memory ends at a page that cannot be touched, so that a kernel that reads or writes past it ends the test. So does a race (`emulator/races.hpp`).

use super::machine::{DeviceMemory, GpuError, Kernel, LaunchShape, Machine, Product, ProductEnd};
use half::f16;
use libloading::Library;
use parking_lot::Mutex;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// How the library's functions are called: grid, threads, shared memory, arguments and their size, seed. They return what is wrong with the kernel, or null.
type Launch = unsafe extern "C" fn(*const u32, *const u32, u32, *const u8, u32, u64) -> *const c_char;

/// Tells the library where the GPU's memory begins and ends, and where its own file is.
type MemoryIs = unsafe extern "C" fn(*const c_void, *const c_void, *const c_char);

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

/// The kernels.
fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let file = compiled();
        // SAFETY: the library has no initialisers that do anything.
        let library = unsafe { Library::new(&file) }.unwrap();
        let (memory, file) = (arena(), CString::new(file.into_os_string().into_vec()).unwrap());
        // SAFETY: the function has this type and copies the text.
        unsafe {
            let memory_is = library.get::<MemoryIs>(b"memory_is").expect("the library finds races");
            memory_is(memory.start as *const c_void, memory.end as *const c_void, file.as_ptr());
        }
        library
    })
}

/// The library's file, beside the tests: compiled when there is none of these sources.
fn compiled() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let name = format!("libragged_kernels_emulated-{:016x}.so", source_hash());
    let file = tests.parent().unwrap().join(name);
    if !file.exists() {
        let folder = tempfile::tempdir_in(tests.parent().unwrap()).unwrap();
        // Other processes may do the same: each finds a whole file.
        std::fs::rename(compile(folder.path()), &file).unwrap();
    }
    file
}

/// Changes with every source.
fn source_hash() -> u64 {
    let mut files: Vec<PathBuf> = ["cu", "src/cuda/emulator", "src/cuda/emulator.rs"]
        .map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
        .iter()
        .flat_map(|path| match path.is_dir() {
            true => std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect(),
            false => vec![path.clone()],
        })
        .collect();
    files.sort();
    xxh3_64(&files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect::<Vec<u8>>())
}

/// Compiles the kernels so that they report what they read and write, and what looks at that so that it does not.
fn compile(folder: &Path) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let emulator = sources.join("src/cuda/emulator");
    let run = |command: &mut Command| {
        let done = command.output().expect("a C++ compiler is there: `make setup` installs it");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let compiler = || {
        let mut compiler = Command::new("c++");
        compiler
            .args(["-O2", "-g1", "-std=c++17", "-fPIC", "-Wno-unknown-pragmas", "-I"])
            .arg(sources.join("cu"))
            .arg("-I")
            .arg(&emulator);
        compiler
    };
    let (kernels, races, library) = (folder.join("kernels.o"), folder.join("races.o"), folder.join("emulated.so"));
    run(compiler()
        .args(["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0", "-c"])
        .arg(emulator.join("kernels.cpp"))
        .arg("-o")
        .arg(&kernels));
    run(compiler().arg("-c").arg(emulator.join("races.cpp")).arg("-o").arg(&races));
    run(Command::new("c++").args(["-shared", "-Wl,-Bsymbolic"]).args([&kernels, &races]).arg("-o").arg(&library));
    library
}

/// Addresses of the GPU's memory: enough for all that a process asks for, of which none is used twice.
fn arena() -> Range<u64> {
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
    address: u64,
    bytes: usize,
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
    fn new(bytes: usize) -> GuardedMemory {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a kernel of `racing.cu` in two blocks of five warps.
    fn run(name: &str, is_right: bool, seed: u64) -> Option<String> {
        let emulator = Emulator::new(seed);
        let memory = emulator.allocate(4096).unwrap();
        let mut arguments = memory.address().to_ne_bytes().to_vec();
        arguments.extend(u64::from(is_right).to_ne_bytes());
        let shape = LaunchShape { grid: [2, 1], threads: 160, shared_bytes: 20 << 10 };
        // SAFETY: the kernels take such arguments and have room for as many threads.
        unsafe { emulator.run(name, shape, &arguments) }
    }

    #[test]
    fn races_are_found_and_nothing_else() {
        let kernels = [
            ("racing_between_warps", "shared memory"),
            ("racing_between_lanes", "shared memory"),
            ("racing_to_write_again", "shared memory"),
            ("racing_between_blocks", "another block"),
            ("racing_to_count", "addition"),
            ("racing_with_a_copy", "shared memory"),
            ("racing_with_a_copy_between_barriers", "not waited for"),
            ("racing_with_a_later_copy", "shared memory"),
            ("racing_with_a_copy_in_bulk", "a copy in bulk"),
            ("racing_with_a_later_copy_in_bulk", "a copy in bulk"),
        ];
        for seed in 0..6 {
            for (name, words) in kernels {
                assert_eq!(run(name, true, seed), None);
                let wrong = run(name, false, seed).unwrap_or_else(|| panic!("the race of {name} is not found with seed {seed}"));
                assert!(wrong.contains("a race") && wrong.contains(words) && wrong.contains("racing.cu:"), "{wrong}");
            }
        }
    }

    #[test]
    fn products_are_raced_with_until_they_are_waited_for() {
        let name = "racing_with_a_product";
        assert!((0..20).all(|seed| run(name, true, seed).is_none()));
        // By lot a product reads at once; who writes after that comes too late to be seen.
        let wrong: Vec<_> = (0..20).filter_map(|seed| run(name, false, seed)).collect();
        assert!(!wrong.is_empty() && wrong[0].contains("a product of warp"), "{wrong:?}");
    }
}
