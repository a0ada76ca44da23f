//! What the encoder and exact search need of a GPU: memory, work in order, kernels, matrix products.
//!
//! There are two: the one behind the driver, and the one of the tests, which runs the kernels on the processor.

use std::fmt;

/// Why a GPU cannot be used, or has failed.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// There is no driver.
    #[error("there is no NVIDIA driver on this machine (libcuda.so.1 cannot be loaded)")]
    NoDriver,
    /// The driver does not know enough.
    #[error("the NVIDIA driver is for CUDA {found}, but {needed} is needed: install a newer driver")]
    DriverTooOld {
        /// Version of CUDA that the driver is for.
        found: CudaVersion,
        /// The oldest that will do.
        needed: CudaVersion,
    },
    /// There is no GPU of this number.
    #[error("there is no GPU {wanted}: this machine has {there}")]
    NoSuchGpu {
        /// The number asked for, from 0.
        wanted: usize,
        /// How many there are.
        there: usize,
    },
    /// The GPU is older than what the kernels are written for.
    #[error("{name} has compute capability {major}.{minor}: 8.0 (Ampere) or newer is needed")]
    TooOld {
        /// Its name.
        name: String,
        /// The capability's first part.
        major: i32,
        /// Its second part.
        minor: i32,
    },
    /// A library of CUDA cannot be loaded.
    #[error("{library} cannot be loaded: install the CUDA libraries, or name their folder in LD_LIBRARY_PATH")]
    NoLibrary {
        /// Its name.
        library: &'static str,
    },
    /// The kernels do not compile for this GPU.
    #[error("the kernels do not compile for {architecture}: {log}")]
    Compilation {
        /// The GPU's architecture, as `sm_90`.
        architecture: String,
        /// What the compiler said.
        log: String,
    },
    /// The model has a shape that the kernels are not made for.
    #[error("the GPU's kernels are not made for this model: {0}")]
    ModelShape(String),
    /// The model's weights could not be read.
    #[error(transparent)]
    Model(#[from] crate::ModelError),
    /// The GPU's memory is full.
    #[error("the GPU has no {bytes} bytes of memory left")]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
    },
    /// The driver or a library refused something, or a kernel failed.
    #[error("{what} failed: {reason}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// The driver's word for it.
        reason: String,
    },
    /// The device has failed before and is not used again; another one has to be made.
    #[error("the GPU has failed before")]
    Lost,
}

/// A version of CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// As 13 of 13.0.
    pub major: u32,
    /// As 0 of 13.0.
    pub minor: u32,
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// The kernels of `kernels/cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    Attention32,
    Attention64,
    WarpgroupAttention32,
    WarpgroupAttention64,
    ShortAttention32,
    ShortAttention64,
    Embed512,
    Embed1024,
    LayerNorm512,
    LayerNorm1024,
    Pool512,
    Pool1024,
    PrepareQueries,
    Score8,
    Score32,
    Score128,
    Scan8,
    Scan64,
    Scan128,
    Scan256,
    SelectBest,
}

impl Kernel {
    pub(crate) const ALL: [Kernel; 21] = [
        Kernel::Attention32,
        Kernel::Attention64,
        Kernel::WarpgroupAttention32,
        Kernel::WarpgroupAttention64,
        Kernel::ShortAttention32,
        Kernel::ShortAttention64,
        Kernel::Embed512,
        Kernel::Embed1024,
        Kernel::LayerNorm512,
        Kernel::LayerNorm1024,
        Kernel::Pool512,
        Kernel::Pool1024,
        Kernel::PrepareQueries,
        Kernel::Score8,
        Kernel::Score32,
        Kernel::Score128,
        Kernel::Scan8,
        Kernel::Scan64,
        Kernel::Scan128,
        Kernel::Scan256,
        Kernel::SelectBest,
    ];

    /// Whether it is for GPUs that multiply by warpgroups only.
    pub(crate) fn needs_warpgroups(self) -> bool {
        matches!(
            self,
            Kernel::WarpgroupAttention32
                | Kernel::WarpgroupAttention64
                | Kernel::ShortAttention32
                | Kernel::ShortAttention64
                | Kernel::Scan8
                | Kernel::Scan64
                | Kernel::Scan128
                | Kernel::Scan256
        )
    }

    /// Its name in the source.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kernel::Attention32 => "attention_32",
            Kernel::Attention64 => "attention_64",
            Kernel::WarpgroupAttention32 => "warpgroup_attention_32",
            Kernel::WarpgroupAttention64 => "warpgroup_attention_64",
            Kernel::ShortAttention32 => "short_attention_32",
            Kernel::ShortAttention64 => "short_attention_64",
            Kernel::Embed512 => "embed_512",
            Kernel::Embed1024 => "embed_1024",
            Kernel::LayerNorm512 => "layer_norm_512",
            Kernel::LayerNorm1024 => "layer_norm_1024",
            Kernel::Pool512 => "pool_512",
            Kernel::Pool1024 => "pool_1024",
            Kernel::PrepareQueries => "prepare_queries",
            Kernel::Score8 => "score_8",
            Kernel::Score32 => "score_32",
            Kernel::Score128 => "score_128",
            Kernel::Scan8 => "scan_8",
            Kernel::Scan64 => "scan_64",
            Kernel::Scan128 => "scan_128",
            Kernel::Scan256 => "scan_256",
            Kernel::SelectBest => "select_best",
        }
    }
}

/// How many blocks of how many threads run a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LaunchShape {
    /// Blocks, in two dimensions.
    pub(crate) grid: [u32; 2],
    /// Threads of a block: whole warps.
    pub(crate) threads: u32,
    /// Shared memory of a block.
    pub(crate) shared_bytes: u32,
}

/// What a matrix product does with its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ProductEnd {
    /// out = sums + bias
    Store,
    /// out = out + sums + bias
    Add,
    /// out = max(sums + bias, 0)
    Relu,
    /// out = gelu(sums + bias), with the approximation x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), Hendrycks and Gimpel (2016).
    Gelu,
}

/// out = end(activations x weights^T + bias), all in halves with sums in f32. Addresses are of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Product {
    /// rows x inputs
    pub(crate) activations: u64,
    /// outputs x inputs
    pub(crate) weights: u64,
    /// outputs
    pub(crate) bias: u64,
    /// rows x outputs
    pub(crate) out: u64,
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) end: ProductEnd,
}

/// A piece of device memory, freed when it is dropped.
pub(crate) trait DeviceMemory: Send + Sync {
    /// Where it begins; a multiple of 256.
    fn address(&self) -> u64;
}

/// A GPU.
pub(crate) trait Machine: Send + Sync + 'static {
    type Memory: DeviceMemory;
    /// Work that is done in the order in which it is given.
    type Queue: Send;
    /// Work that was recorded, to be given again at once.
    type Recording: Send;

    /// Multiprocessors: blocks that run at once are a small multiple of them.
    fn multiprocessors(&self) -> u32;

    /// Shared memory that one block can have.
    fn shared_bytes_max(&self) -> u32;

    /// Whether it has the instructions by which four warps multiply together, with factors in shared memory.
    fn has_warpgroups(&self) -> bool;

    /// Memory, filled with zeros.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory, GpuError>;

    fn new_queue(&self) -> Result<Self::Queue, GpuError>;

    /// Copies `bytes` to `to`, `offset` bytes behind its beginning. They are taken before it returns, and arrive in the queue's order.
    fn upload(&self, queue: &mut Self::Queue, to: &Self::Memory, offset: usize, bytes: &[u8]) -> Result<(), GpuError>;

    /// Waits for all of the queue's work, and copies what is in `from`, `offset` bytes behind its beginning.
    fn download(&self, queue: &mut Self::Queue, from: &Self::Memory, offset: usize, into: &mut [u8]) -> Result<(), GpuError>;

    /// Copies the first `bytes` from one piece of memory to the beginning of another.
    ///
    /// # Panics
    /// If one of them is shorter.
    fn copy(&self, queue: &mut Self::Queue, from: &Self::Memory, to: &Self::Memory, bytes: usize) -> Result<(), GpuError>;

    /// Runs a kernel with these arguments, the bytes of its structure.
    ///
    /// # Safety
    /// The bytes are a value of the structure that the kernel takes, the shape is one that it is made for, and all memory that they name is large
    /// enough and lives until the queue's work is done.
    unsafe fn launch(
        &self,
        queue: &mut Self::Queue,
        kernel: Kernel,
        shape: LaunchShape,
        arguments: &[u8],
    ) -> Result<(), GpuError>;

    /// Computes a matrix product.
    ///
    /// # Safety
    /// All memory that it names is large enough and lives until the queue's work is done.
    unsafe fn multiply(&self, queue: &mut Self::Queue, product: &Product) -> Result<(), GpuError>;

    /// Records the launches and products that `work` gives to the queue instead of doing them.
    fn record(
        &self,
        queue: &mut Self::Queue,
        work: &mut dyn FnMut(&mut Self::Queue) -> Result<(), GpuError>,
    ) -> Result<Self::Recording, GpuError>;

    /// Does what was recorded from this queue.
    ///
    /// # Safety
    /// The memory that it names is still there, and lives until the queue's work is done.
    unsafe fn replay(&self, queue: &mut Self::Queue, recording: &Self::Recording) -> Result<(), GpuError>;
}
