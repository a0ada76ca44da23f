//! Matrix products by cuBLASLt.
//!
//! The library thinks in columns: out, of rows x outputs in rows, is to it outputs x rows; so weights are its first factor, transposed, and activations its
//! second. Bias, activation and the sum with what is there are in the product's end, so that each result is written once.

use super::driver::{DriverMemory, failed, guarded};
use super::machine::{DeviceMemory, GpuError, Product, ProductEnd};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{self, cublasLtEpilogue_t as Epilogue, cublasLtMatmulDescAttributes_t as Attribute};
use cudarc::driver::sys as sys_driver;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError};
use half::f16;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Instant;

use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t as Algorithm;

/// The name by which the library is asked for.
const LIBRARY: &str = "libcublasLt";
/// Memory that the library may use for a product, as NVIDIA advises for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Ways of computing a product that are tried out, of those that the library thinks best.
const WAYS_TRIED: usize = 24;
/// Products of fewer rows are computed in the way that the library thinks best.
const ROWS_TRIED: usize = 2_048;
/// How often each way is tried, after once that is not counted.
const TRIALS: usize = 3;

/// The fastest ways that were found, for all queues of a GPU: what is tried while another queue computes says little, so that the first to try decides.
pub(super) type FastestWays = Arc<Mutex<HashMap<Size, Algorithm>>>;

/// The library, for the products of one queue.
pub(super) struct Products {
    context: Arc<CudaContext>,
    /// Whether the GPU can be asked how long something took.
    has_timers: bool,
    handle: sys::cublasLtHandle_t,
    workspace: DriverMemory,
    /// Few: batches have a multiple of 128 rows, up to a limit.
    plans: HashMap<Size, Plan>,
    fastest_ways: FastestWays,
}

// SAFETY: the handle and the plans are used by whoever has the queue, one at a time; the library allows any thread.
unsafe impl Send for Products {}

/// What a plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Size {
    rows: usize,
    inputs: usize,
    outputs: usize,
    end: ProductEnd,
}

impl Products {
    pub(super) fn new(
        context: &Arc<CudaContext>,
        has_timers: bool,
        fastest_ways: FastestWays,
        workspace: impl FnOnce(usize) -> Result<DriverMemory, GpuError>,
    ) -> Result<Self, GpuError> {
        // SAFETY: loading the library runs its initialisers, which is what it is for.
        if !unsafe { sys::is_culib_present() } {
            return Err(GpuError::NoLibrary { library: LIBRARY });
        }
        context.bind_to_thread().map_err(|fault| failed("turning to the GPU", fault))?;
        let workspace = workspace(WORKSPACE_BYTES)?;
        let handle = result::create_handle().map_err(|fault| failed("starting cuBLASLt", fault))?;
        Ok(Products { context: context.clone(), has_timers, handle, workspace, plans: HashMap::new(), fastest_ways })
    }

    /// Computes a product. The first large one of a size tries several ways, for which `allocate` gives memory.
    ///
    /// # Safety
    /// All memory that it names is large enough and lives until the stream's work is done.
    pub(super) unsafe fn multiply(
        &mut self,
        stream: &CudaStream,
        product: &Product,
        allocate: impl FnOnce(usize) -> Result<DriverMemory, GpuError>,
    ) -> Result<(), GpuError> {
        let Product { rows, inputs, outputs, end, .. } = *product;
        let size = Size { rows, inputs, outputs, end };
        if !self.plans.contains_key(&size) {
            let (mut plan, ways) = guarded("planning a product", || Plan::new(self.handle, size, product.bias))?;
            if rows >= ROWS_TRIED && ways.len() > 1 {
                // Held while ways are tried: another queue waits for what comes out, and tries none meanwhile.
                let mut fastest = self.fastest_ways.lock();
                match fastest.get(&size).copied() {
                    Some(way) => plan.algorithm = way,
                    None => match allocate(rows * outputs * size_of::<f16>()) {
                        Ok(out) => {
                            let elsewhere = Product { out: out.address(), ..*product };
                            // SAFETY: the caller's promise, and `out` is as large as what it stands for; it is freed after the work is done, which the
                            // timing waits for, as the freeing does where that has failed.
                            let tried =
                                guarded("timing matrix products", || unsafe { self.fastest(stream, &plan, &elsewhere, &ways) });
                            match tried {
                                Ok(way) => plan.algorithm = way,
                                // A GPU that has failed says so again at the product itself.
                                Err(fault) => {
                                    tracing::warn!(%fault, "products are computed in the way that cuBLASLt thinks best")
                                }
                            }
                            fastest.insert(size, plan.algorithm);
                        }
                        // What is tried is no more than what may be faster.
                        Err(GpuError::OutOfMemory { bytes }) => {
                            tracing::info!(bytes, "too little memory on the GPU to try ways of computing a product");
                        }
                        Err(fault) => return Err(fault),
                    },
                }
            }
            self.plans.insert(size, plan);
        }
        let plan = &self.plans[&size];
        // SAFETY: the caller's promise.
        unsafe { self.compute(stream, plan, product, &plan.algorithm) }
    }

    /// The way that takes the least time.
    ///
    /// # Safety
    /// As [`Products::multiply`].
    unsafe fn fastest(
        &self,
        stream: &CudaStream,
        plan: &Plan,
        product: &Product,
        ways: &[Algorithm],
    ) -> Result<Algorithm, GpuError> {
        let stopwatch = Stopwatch::new(&self.context, self.has_timers)?;
        let mut best = (f32::INFINITY, ways[0]);
        // All ways in turn, so that a clock that rises meanwhile is fair to each. The first turn is not counted.
        for trial in 0..=TRIALS {
            for way in ways {
                // SAFETY: the caller's promise.
                let timed = stopwatch.time(stream, || unsafe { self.compute(stream, plan, product, way) })?;
                let milliseconds = match timed {
                    Ok(milliseconds) => milliseconds,
                    Err(fault) => {
                        tracing::debug!(%fault, "a way of computing a product that is passed over");
                        continue;
                    }
                };
                if trial > 0 && milliseconds < best.0 {
                    best = (milliseconds, *way);
                }
            }
        }
        tracing::debug!(?product, milliseconds = best.0, "the fastest way to compute a product");
        Ok(best.1)
    }

    /// # Safety
    /// As [`Products::multiply`].
    unsafe fn compute(&self, stream: &CudaStream, plan: &Plan, product: &Product, way: &Algorithm) -> Result<(), GpuError> {
        let (one, there) = (1.0f32, if product.end == ProductEnd::Add { 1.0f32 } else { 0.0 });
        let out = product.out as *mut c_void;
        plan.set_bias(product.bias).map_err(|fault| failed("naming a bias", fault))?;
        // SAFETY: the layouts are those of the product's sizes, for which the caller says that the memory is large enough. The factors are read while the
        // library is called; the workspace is this queue's own.
        let multiplied = unsafe {
            result::matmul(
                self.handle,
                plan.description.0,
                (&raw const one).cast(),
                (&raw const there).cast(),
                product.weights as *const c_void,
                plan.weights.0,
                product.activations as *const c_void,
                plan.activations.0,
                out,
                plan.out.0,
                out,
                plan.out.0,
                way,
                self.workspace.address() as *mut c_void,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        };
        multiplied.map_err(|fault| failed("a matrix product", fault))
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        // On a thread that has turned to no GPU the library would open the first one.
        if let Err(fault) = self.context.bind_to_thread() {
            tracing::debug!(%fault, "cuBLASLt is not ended");
            return;
        }
        // SAFETY: the handle was made by the library and is not used after this.
        if let Err(fault) = unsafe { result::destroy_handle(self.handle) } {
            tracing::debug!(%fault, "cuBLASLt is not ended in order");
        }
    }
}

/// Says how long a GPU takes.
enum Stopwatch {
    /// By its own clock.
    Events(CudaEvent, CudaEvent),
    /// By the processor's, which counts the launch, too.
    Clock,
}

impl Stopwatch {
    fn new(context: &Arc<CudaContext>, has_timers: bool) -> Result<Self, GpuError> {
        if !has_timers {
            return Ok(Stopwatch::Clock);
        }
        let event = || context.new_event(Some(sys_driver::CUevent_flags::CU_EVENT_DEFAULT)).map_err(timing_failed);
        Ok(Stopwatch::Events(event()?, event()?))
    }

    /// Milliseconds that the work takes; or why there is none.
    fn time(&self, stream: &CudaStream, work: impl FnOnce() -> Result<(), GpuError>) -> Result<Result<f32, GpuError>, GpuError> {
        match self {
            Stopwatch::Events(begun, ended) => {
                begun.record(stream).map_err(timing_failed)?;
                if let Err(fault) = work() {
                    return Ok(Err(fault));
                }
                ended.record(stream).map_err(timing_failed)?;
                begun.elapsed_ms(ended).map(Ok).map_err(timing_failed)
            }
            Stopwatch::Clock => {
                stream.synchronize().map_err(timing_failed)?;
                let begun = Instant::now();
                if let Err(fault) = work() {
                    return Ok(Err(fault));
                }
                stream.synchronize().map_err(timing_failed)?;
                Ok(Ok(begun.elapsed().as_secs_f32() * 1e3))
            }
        }
    }
}

fn timing_failed(fault: DriverError) -> GpuError {
    failed("timing a matrix product", fault)
}

/// How a product of one size is computed.
struct Plan {
    description: Description,
    weights: Layout,
    activations: Layout,
    out: Layout,
    algorithm: Algorithm,
}

impl Plan {
    /// A plan that computes in the way that the library thinks best, and the ways that it thinks best, best first.
    fn new(handle: sys::cublasLtHandle_t, size: Size, bias: u64) -> Result<(Self, Vec<Algorithm>), GpuError> {
        let plan = || -> Result<(Self, Vec<Algorithm>), CublasError> {
            let Size { rows, inputs, outputs, end } = size;
            let description = Description::new()?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &1i32)?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue(end))?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
            let (weights, activations, out) =
                (Layout::new(inputs, outputs)?, Layout::new(inputs, rows)?, Layout::new(outputs, rows)?);
            let preference = Preference::new()?;
            let mut found = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; WAYS_TRIED];
            let mut count = 0;
            // SAFETY: all of them are there until the end of this function, and there is room for as many results as are asked for.
            unsafe {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    handle,
                    description.0,
                    weights.0,
                    activations.0,
                    out.0,
                    out.0,
                    preference.0,
                    WAYS_TRIED as i32,
                    found.as_mut_ptr().cast(),
                    &mut count,
                )
                .result()?;
            }
            // SAFETY: the library says how many results it has written.
            let found = found[..count as usize].iter().map(|result| unsafe { result.assume_init_ref() });
            let ways: Vec<Algorithm> = found.filter(|result| result.state.result().is_ok()).map(|result| result.algo).collect();
            let algorithm = *ways.first().ok_or(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED))?;
            Ok((Plan { description, weights, activations, out, algorithm }, ways))
        };
        plan().map_err(|fault| failed("planning a matrix product", format!("{fault} for {size:?}")))
    }

    fn set_bias(&self, bias: u64) -> Result<(), CublasError> {
        self.description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)
    }
}

fn epilogue(end: ProductEnd) -> Epilogue {
    match end {
        ProductEnd::Store | ProductEnd::Add => Epilogue::CUBLASLT_EPILOGUE_BIAS,
        ProductEnd::Relu => Epilogue::CUBLASLT_EPILOGUE_RELU_BIAS,
        ProductEnd::Gelu => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
    }
}

/// What is multiplied how.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self, CublasError> {
        let sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        result::create_matmul_desc(sums, sys::cudaDataType_t::CUDA_R_32F).map(Description)
    }

    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<(), CublasError> {
        // SAFETY: the description is there, and the value is read while the library is called; callers give each attribute the type that it has.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, (&raw const *value).cast(), size_of::<T>()) }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by the library, and not used after this.
        if let Err(fault) = unsafe { result::destroy_matmul_desc(self.0) } {
            tracing::debug!(%fault, "a product's description is left in memory");
        }
    }
}

/// How a matrix of halves lies in memory: columns one after the other.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(rows: usize, columns: usize) -> Result<Self, CublasError> {
        result::create_matrix_layout(sys::cudaDataType_t::CUDA_R_16F, rows as u64, columns as u64, rows as i64).map(Layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by the library, and not used after this.
        if let Err(fault) = unsafe { result::destroy_matrix_layout(self.0) } {
            tracing::debug!(%fault, "a matrix's layout is left in memory");
        }
    }
}

/// What a plan may use.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CublasError> {
        let preference = Preference(result::create_matmul_pref()?);
        let workspace = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let bytes = WORKSPACE_BYTES;
        // SAFETY: the preference is there, and the value, of the type that the attribute has, is read while the library is called.
        unsafe { result::set_matmul_pref_attribute(preference.0, workspace, (&raw const bytes).cast(), size_of::<usize>())? };
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by the library, and not used after this.
        if let Err(fault) = unsafe { result::destroy_matmul_pref(self.0) } {
            tracing::debug!(%fault, "a preference is left in memory");
        }
    }
}
