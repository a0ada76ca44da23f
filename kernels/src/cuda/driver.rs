//! A real GPU, behind the driver.
//!
//! The driver's library and those of CUDA are loaded when they are first needed; nothing is linked. cudarc looks functions up when they are first called and
//! panics where a library lacks one: whatever may call a function for the first time is within [`guarded`].

use super::compiler;
use super::contexts::contexts_of;
use super::machine::{CudaVersion, DeviceMemory, GpuError, Kernel, LaunchShape, Machine, Product};
use super::products::{FastestWays, Products};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUfunction_attribute_enum as FunctionAttribute};
use cudarc::driver::{CudaContext, CudaFunction, CudaGraph, CudaModule, CudaStream, PinnedHostSlice};
use cudarc::nvrtc::Ptx;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The architecture whose GPUs multiply by warpgroups.
const WARPGROUP_ARCHITECTURE: &str = "sm_90a";
/// The oldest driver that will do.
const DRIVER_NEEDED: CudaVersion = CudaVersion { major: 12, minor: 0 };
/// The oldest driver whose GPUs can be asked how long something took: cudarc asks by a function that older ones lack.
const DRIVER_WITH_TIMERS: CudaVersion = CudaVersion { major: 12, minor: 8 };
/// How long memory waits for the end of a recording before it is freed all the same.
const RECORDING_MAX: Duration = Duration::from_secs(1);
/// Memory of the processor from which and to which the GPU copies by itself, for each queue and direction.
const STAGING_BYTES: usize = 4 << 20;

/// A GPU of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuDescription {
    /// Its number, from 0.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// Its architecture, as `sm_90a`.
    pub architecture: String,
    /// Its memory.
    pub memory_bytes: u64,
    /// Bytes that its memory moves in a second at most, by its clock and its width; none where the driver does not say.
    pub bandwidth_bytes: Option<u64>,
}

/// The memory of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// Bytes that nobody has.
    pub free_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
}

/// The GPUs of this machine that can be used. Opens none of them.
///
/// # Errors
/// [`GpuError::NoDriver`] on a machine without any, which is nothing to worry about; GPUs of which none can be used.
pub fn gpus() -> Result<Vec<GpuDescription>, GpuError> {
    guarded("listing GPUs", || {
        check_driver()?;
        let (mut gpus, mut faults) = (Vec::new(), Vec::new());
        for number in 0..count()? {
            match describe(number) {
                Ok(description) => gpus.push(description),
                Err(fault) => faults.push((number, fault)),
            }
        }
        // Of what is wrong each is said once: the last one by the caller where there is nothing else to say.
        let unsaid = if gpus.is_empty() { faults.pop() } else { None };
        for (number, fault) in faults {
            tracing::warn!(number, %fault, "a GPU is passed over");
        }
        unsaid.map_or(Ok(gpus), |(_, fault)| Err(fault))
    })
}

/// The version of CUDA that the driver is for.
pub(super) fn check_driver() -> Result<CudaVersion, GpuError> {
    // SAFETY: loading the library runs its initialisers, which is what it is for.
    if !unsafe { sys::is_culib_present() } {
        return Err(GpuError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the version is written to a variable of its type.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|fault| failed("asking for the driver's version", fault))?;
    let found = CudaVersion { major: version as u32 / 1000, minor: version as u32 % 1000 / 10 };
    if found < DRIVER_NEEDED {
        return Err(GpuError::DriverTooOld { found, needed: DRIVER_NEEDED });
    }
    Ok(found)
}

/// How many GPUs there are, whatever they are good for.
///
/// # Errors
/// [`GpuError::NoDriver`] on a machine without any; a driver that is too old or fails.
pub fn gpu_count() -> Result<usize, GpuError> {
    guarded("counting GPUs", || {
        check_driver()?;
        count()
    })
}

fn count() -> Result<usize, GpuError> {
    match result::init().and_then(|()| result::device::get_count()) {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(fault) => Err(failed("counting GPUs", fault)),
    }
}

pub(super) fn find(number: usize) -> Result<sys::CUdevice, GpuError> {
    let there = count()?;
    let ordinal = i32::try_from(number).ok().filter(|_| number < there).ok_or(GpuError::NoSuchGpu { wanted: number, there })?;
    result::device::get(ordinal).map_err(|fault| failed("finding the GPU", fault))
}

fn describe(number: usize) -> Result<GpuDescription, GpuError> {
    let device = find(number)?;
    let name = result::device::get_name(device).map_err(|fault| failed("asking for the GPU's name", fault))?;
    // SAFETY: the device is there.
    let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    let capability = |part| attribute(part).map_err(|fault| failed("asking for the GPU's architecture", fault));
    let major = capability(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = capability(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if major < 8 {
        return Err(GpuError::TooOld { name, major, minor });
    }
    // SAFETY: as before.
    let memory = unsafe { result::device::total_mem(device) }.map_err(|fault| failed("asking for the GPU's memory", fault))?;
    let clock_khz = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE).unwrap_or(0);
    let width_bits = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH).unwrap_or(0);
    Ok(GpuDescription {
        number,
        name,
        architecture: architecture(major, minor),
        memory_bytes: memory as u64,
        bandwidth_bytes: bandwidth(clock_khz, width_bits),
    })
}

/// Two transfers a beat, each as wide as the bus.
fn bandwidth(clock_khz: i32, width_bits: i32) -> Option<u64> {
    let known = |value: i32| u64::try_from(value).ok().filter(|value| *value > 0);
    Some(2 * 1000 * known(clock_khz)? * known(width_bits)? / 8)
}

/// What kernels are compiled for. Hopper's has instructions that no later one has, under a name of its own.
fn architecture(major: i32, minor: i32) -> String {
    match (major, minor) {
        (9, 0) => WARPGROUP_ARCHITECTURE.to_owned(),
        _ => format!("sm_{major}{minor}"),
    }
}

/// A GPU with its kernels.
pub(crate) struct Driver {
    context: Arc<CudaContext>,
    description: GpuDescription,
    kernels: HashMap<Kernel, CudaFunction>,
    multiprocessors: u32,
    shared_bytes_max: u32,
    /// On which memory is cleared.
    clearing: Arc<CudaStream>,
    has_timers: bool,
    /// Whether it was found to answer no more.
    is_lost: AtomicBool,
    fastest_ways: FastestWays,
    /// Held while work is recorded and while memory is allocated or freed: a recording does not bear what waits for its GPU.
    recording: Arc<Mutex<()>>,
}

impl Driver {
    /// Opens a GPU. Kernels that are not in `folder` are compiled and put there.
    ///
    /// # Errors
    /// No GPU, driver, library or compiler, or one that is too old.
    pub(crate) fn open(number: usize, folder: &Path) -> Result<Self, GpuError> {
        guarded("opening the GPU", || {
            let has_timers = check_driver()? >= DRIVER_WITH_TIMERS;
            let description = describe(number)?;
            let contexts = contexts_of(number);
            let mut contexts = contexts.lock();
            let context = CudaContext::new(number).map_err(|fault| failed("opening the GPU", fault))?;
            contexts.push(Arc::downgrade(&context));
            drop(contexts);
            // Before anything is recorded: cudarc waits for the GPU when it makes the first one.
            let clearing = context.new_stream().map_err(|fault| failed("making a stream", fault))?;
            let module = load_kernels(&context, &description.architecture, folder)?;
            let attribute = |attribute| context.attribute(attribute).map_err(|fault| failed("asking the GPU", fault));
            let of_a_block = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
            let mut shared_bytes_max = of_a_block;
            let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
            let mut kernels = HashMap::new();
            let has_warpgroups = description.architecture == WARPGROUP_ARCHITECTURE;
            for kernel in Kernel::ALL.into_iter().filter(|kernel| has_warpgroups || !kernel.needs_warpgroups()) {
                let function = module.load_function(kernel.name()).map_err(|fault| failed("finding a kernel", fault))?;
                let own = function.shared_size_bytes().map_err(|fault| failed("asking for a kernel's shared memory", fault))?;
                let most = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                function.set_attribute(most, of_a_block - own).map_err(|fault| failed("giving a kernel shared memory", fault))?;
                shared_bytes_max = shared_bytes_max.min(of_a_block - own);
                if kernel.needs_warpgroups() {
                    // In percent. They read what is in shared memory, and as many blocks are to be there as it has room for.
                    let of_the_cache = FunctionAttribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
                    function.set_attribute(of_the_cache, 100).map_err(|fault| failed("giving a kernel shared memory", fault))?;
                }
                kernels.insert(kernel, function);
            }
            let shared_bytes_max = shared_bytes_max as u32;
            Ok(Driver {
                context,
                description,
                kernels,
                multiprocessors,
                shared_bytes_max,
                clearing,
                has_timers,
                is_lost: AtomicBool::new(false),
                fastest_ways: FastestWays::default(),
                recording: Arc::default(),
            })
        })
    }

    /// What it is.
    pub(crate) fn description(&self) -> &GpuDescription {
        &self.description
    }

    /// What of its memory is free.
    pub(crate) fn memory(&self) -> Result<GpuMemory, GpuError> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(|fault| failed("asking for the GPU's free memory", fault))?;
        Ok(GpuMemory { free_bytes: free as u64, total_bytes: total as u64 })
    }

    /// Something has failed that may have been the fault of what was asked, or of the GPU: looks which. A GPU that has failed refuses everything from then on.
    pub(crate) fn doubt(&self) {
        let answers = guarded("asking the GPU whether it answers", || {
            self.bind()?;
            self.clearing.synchronize().map_err(|fault| failed("the work of the GPU", fault))
        });
        if let Err(fault) = answers {
            tracing::warn!(gpu = self.description.number, %fault, "a GPU is lost");
            self.lose();
        }
    }

    /// It does not answer any more.
    pub(crate) fn lose(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }

    /// Whether it answers no more: it has to be reset.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    fn bind(&self) -> Result<(), GpuError> {
        self.context.bind_to_thread().map_err(|fault| failed("turning to the GPU", fault))
    }
}

/// Loads the kernels; those that were kept are compiled anew when the driver refuses them, as an older one may.
fn load_kernels(context: &Arc<CudaContext>, architecture: &str, folder: &Path) -> Result<Arc<CudaModule>, GpuError> {
    let load = |code| context.load_module(Ptx::from_binary(code)).map_err(|fault| failed("loading the kernels", fault));
    load(compiler::machine_code(architecture, folder)?).or_else(|fault| {
        tracing::warn!(%fault, "the driver refuses the kernels: compiling them anew");
        load(compiler::machine_code_anew(architecture, folder)?)
    })
}

/// Memory of a GPU.
pub(crate) struct DriverMemory {
    context: Arc<CudaContext>,
    recording: Arc<Mutex<()>>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl DeviceMemory for DriverMemory {
    fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for DriverMemory {
    fn drop(&mut self) {
        // A recording is a matter of milliseconds. Should it be this thread's own, it is better lost than waited for.
        let _not_while_recording = self.recording.try_lock_for(RECORDING_MAX);
        // SAFETY: the memory was allocated by `allocate` and is freed once; the driver waits for work that uses it.
        let freed = self.context.bind_to_thread().and_then(|()| unsafe { result::free_sync(self.address) });
        if let Err(fault) = freed {
            tracing::warn!(bytes = self.bytes, %fault, "memory of the GPU is not freed");
        }
    }
}

/// A stream, with the memory through which it copies.
pub(crate) struct DriverQueue {
    stream: Arc<CudaStream>,
    products: Products,
    outgoing: PinnedHostSlice<u8>,
    /// Bytes of `outgoing` that the GPU may not have fetched yet.
    outgoing_used: usize,
    incoming: PinnedHostSlice<u8>,
}

impl Drop for DriverQueue {
    fn drop(&mut self) {
        // Work may be under way after a failure: what it copies from and to must outlive it.
        let ended = self.stream.context().bind_to_thread().and_then(|()| self.stream.synchronize());
        if let Err(fault) = ended {
            tracing::debug!(%fault, "the work of a queue has failed");
        }
    }
}

impl DriverQueue {
    fn synchronize(&mut self) -> Result<(), GpuError> {
        self.stream.synchronize().map_err(|fault| failed("the work of the GPU", fault))?;
        self.outgoing_used = 0;
        Ok(())
    }
}

/// Work that was recorded.
pub(crate) struct DriverRecording(CudaGraph);

// SAFETY: a graph may be used by one thread at a time, whichever that is; there is no shared access to it that does anything.
unsafe impl Send for DriverRecording {}

impl Machine for Driver {
    type Memory = DriverMemory;
    type Queue = DriverQueue;
    type Recording = DriverRecording;

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn shared_bytes_max(&self) -> u32 {
        self.shared_bytes_max
    }

    fn has_warpgroups(&self) -> bool {
        self.description.architecture == WARPGROUP_ARCHITECTURE
    }

    fn allocate(&self, bytes: usize) -> Result<DriverMemory, GpuError> {
        self.bind()?;
        let bytes = bytes.max(1);
        let not_while_recording = self.recording.lock();
        // SAFETY: the memory is written over before it is given away.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|fault| match fault {
            DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY) => GpuError::OutOfMemory { bytes },
            fault => failed("allocating memory", fault),
        })?;
        drop(not_while_recording);
        let (context, recording) = (self.context.clone(), self.recording.clone());
        let memory = DriverMemory { context, recording, address, bytes };
        // Taken after the memory is made, so that it is given back before that is dropped, which takes it as well.
        let _not_while_recording = self.recording.lock();
        // SAFETY: the memory has this size and is nobody else's; it is given away after the stream's work is done.
        unsafe { result::memset_d8_async(address, 0, bytes, self.clearing.cu_stream()) }
            .map_err(|fault| failed("clearing memory", fault))?;
        self.clearing.synchronize().map_err(|fault| failed("clearing memory", fault))?;
        Ok(memory)
    }

    fn new_queue(&self) -> Result<DriverQueue, GpuError> {
        guarded("making a queue", || {
            let not_while_recording = self.recording.lock();
            let stream = self.context.new_stream().map_err(|fault| failed("making a stream", fault))?;
            let staging = || {
                // SAFETY: bytes may have any value; what is read of them has been written before.
                let memory = unsafe { self.context.alloc_pinned_with_flags::<u8>(STAGING_BYTES, 0) };
                memory.map_err(|fault| failed("allocating staging memory", fault))
            };
            let (outgoing, incoming) = (staging()?, staging()?);
            drop(not_while_recording);
            let products =
                Products::new(&self.context, self.has_timers, self.fastest_ways.clone(), |bytes| self.allocate(bytes))?;
            Ok(DriverQueue { stream, products, outgoing, outgoing_used: 0, incoming })
        })
    }

    fn upload(&self, queue: &mut DriverQueue, to: &DriverMemory, offset: usize, bytes: &[u8]) -> Result<(), GpuError> {
        assert!(offset + bytes.len() <= to.bytes, "an upload past the end of its memory");
        self.bind()?;
        let mut offset = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            if queue.outgoing_used == STAGING_BYTES {
                queue.synchronize()?;
            }
            let (part, after) = rest.split_at(rest.len().min(STAGING_BYTES - queue.outgoing_used));
            let staged = queue.outgoing.as_mut_slice().map_err(|fault| failed("staging memory", fault))?;
            let staged = &mut staged[queue.outgoing_used..][..part.len()];
            staged.copy_from_slice(part);
            // SAFETY: the target was checked above; the staged bytes are written over only after the queue's work is done.
            unsafe { result::memcpy_htod_async(to.address + offset as u64, staged, queue.stream.cu_stream()) }
                .map_err(|fault| failed("an upload", fault))?;
            queue.outgoing_used += part.len();
            offset += part.len();
            rest = after;
        }
        Ok(())
    }

    fn download(&self, queue: &mut DriverQueue, from: &DriverMemory, offset: usize, into: &mut [u8]) -> Result<(), GpuError> {
        assert!(offset + into.len() <= from.bytes, "a download past the end of its memory");
        self.bind()?;
        for (number, part) in into.chunks_mut(STAGING_BYTES).enumerate() {
            let staged = queue.incoming.as_mut_slice().map_err(|fault| failed("staging memory", fault))?;
            let staged = &mut staged[..part.len()];
            // SAFETY: the source was checked above; the staged bytes are not touched before the queue's work is done.
            unsafe {
                result::memcpy_dtoh_async(
                    staged,
                    from.address + (offset + number * STAGING_BYTES) as u64,
                    queue.stream.cu_stream(),
                )
            }
            .map_err(|fault| failed("a download", fault))?;
            queue.stream.synchronize().map_err(|fault| failed("the work of the GPU", fault))?;
            part.copy_from_slice(staged);
        }
        queue.synchronize()
    }

    fn copy(&self, queue: &mut DriverQueue, from: &DriverMemory, to: &DriverMemory, bytes: usize) -> Result<(), GpuError> {
        assert!(bytes <= from.bytes.min(to.bytes), "a copy past the end of memory");
        self.bind()?;
        // SAFETY: both are at least so long, and the driver frees them after work that uses them only.
        unsafe { result::memcpy_dtod_async(to.address, from.address, bytes, queue.stream.cu_stream()) }
            .map_err(|fault| failed("a copy", fault))
    }

    unsafe fn launch(
        &self,
        queue: &mut DriverQueue,
        kernel: Kernel,
        shape: LaunchShape,
        arguments: &[u8],
    ) -> Result<(), GpuError> {
        self.bind()?;
        let function = &self.kernels[&kernel];
        // The driver copies the arguments while it is called.
        let mut parameters = [arguments.as_ptr().cast_mut().cast::<c_void>()];
        let [columns, rows] = shape.grid;
        // SAFETY: the caller's promise; every kernel takes one structure by value.
        let launched = unsafe {
            result::launch_kernel(
                function.cu_function(),
                (columns, rows, 1),
                (shape.threads, 1, 1),
                shape.shared_bytes,
                queue.stream.cu_stream(),
                &mut parameters,
            )
        };
        launched.map_err(|fault| failed("a launch", fault))
    }

    unsafe fn multiply(&self, queue: &mut DriverQueue, product: &Product) -> Result<(), GpuError> {
        self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { queue.products.multiply(&queue.stream, product, |bytes| self.allocate(bytes)) }
    }

    fn record(
        &self,
        queue: &mut DriverQueue,
        work: &mut dyn FnMut(&mut DriverQueue) -> Result<(), GpuError>,
    ) -> Result<DriverRecording, GpuError> {
        let _alone = self.recording.lock();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        queue.stream.begin_capture(mode).map_err(|fault| failed("beginning a recording", fault))?;
        let outcome = work(queue);
        // A recording must be ended whatever came of it, else the stream stays in it.
        let ended = queue.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        outcome?;
        match ended {
            Ok(Some(graph)) => Ok(DriverRecording(graph)),
            Ok(None) => Err(GpuError::Failed { what: "ending a recording", reason: "there is nothing in it".to_owned() }),
            Err(fault) => Err(failed("ending a recording", fault)),
        }
    }

    unsafe fn replay(&self, _queue: &mut DriverQueue, recording: &DriverRecording) -> Result<(), GpuError> {
        recording.0.launch().map_err(|fault| failed("replaying work", fault))
    }
}

pub(super) fn failed(what: &'static str, fault: impl std::fmt::Display) -> GpuError {
    GpuError::Failed { what, reason: fault.to_string() }
}

/// Does what may call a function of a library for the first time: that the library lacks it is an error here.
pub(super) fn guarded<T>(what: &'static str, work: impl FnOnce() -> Result<T, GpuError>) -> Result<T, GpuError> {
    // Nothing is used after a panic but what the caller gets: nothing.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said =
            panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(GpuError::Failed { what, reason: said.unwrap_or_else(|| "it panicked".to_owned()) })
    })
}
