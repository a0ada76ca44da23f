//! Rows of segments on GPUs, where they are searched exactly: which are there, how they come and go, and what happens when a GPU fails.
//!
//! Rows that a GPU would search sooner than the processor are put there behind the searches ([`uploads`]), as long as there is room; when others need it, those
//! leave that were searched least lately ([`hosted`]). Each set of rows has a [`seat`], empty or taken. Searches of the same rows at the same time go
//! together ([`turns`]). Whatever goes wrong on a GPU, the processor answers: nothing here fails a search.
//!
//! Who opens a GPU hands it over ([`GpuRows::host`]), and takes it back before it opens it again ([`GpuRows::close`]).

mod device;
#[cfg(test)]
pub(crate) mod fake;
mod hosted;
mod metrics;
mod seat;
#[cfg(test)]
mod tests;
mod turns;
mod uploads;

pub(crate) use device::DIMENSION_MAX;
pub use device::{CudaRowDevice, DeviceRows, RowDevice};
pub use metrics::GpuRowsMetrics;
pub use seat::Seat;
pub(crate) use turns::AllowedKey;
use turns::Hung;
pub use uploads::Vectors;

use crate::account_seconds::Account;
use crossbeam_channel::bounded;
use hosted::Hosted;
use parking_lot::RwLock;
use prometheus::Registry;
use ragged_kernels::Scored;
use ragged_kernels::cuda::HITS_MAX;
use ragged_raft::ids::TenantId;
use seat::Seated;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use uploads::{Bring, ERRANDS_MAX};

/// Rows that were searched within so long do not leave for others: they would come back at once.
const IN_USE: Duration = Duration::from_secs(10);
/// How long a search waits before it asks again when too many errands wait.
const BUSY: Duration = Duration::from_secs(1);

/// The rows that a node has on GPUs.
pub struct GpuRows {
    /// Of what is free of a GPU's memory when it is opened, how many of a hundred bytes rows may have.
    percent: u8,
    in_use: Duration,
    metrics: GpuRowsMetrics,
    hosts: RwLock<Hosts>,
    /// GPUs that rows may be put on; looked at by every search.
    count: AtomicUsize,
}

/// The GPUs.
#[derive(Default)]
struct Hosts {
    here: Vec<Arc<Hosted>>,
    /// Those that are to be opened again, and still have rows that are being searched.
    closing: Vec<Arc<Hosted>>,
}

/// The memory of a GPU, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuUse {
    /// Its number.
    pub gpu: usize,
    /// Its name.
    pub name: String,
    /// All of it.
    pub total_bytes: u64,
    /// What anybody has of it.
    pub used_bytes: u64,
    /// What the encoder has.
    pub encoder_bytes: u64,
    /// What rows of segments have.
    pub rows_bytes: u64,
    /// What they may have.
    pub rows_limit_bytes: u64,
}

impl GpuRows {
    /// No GPU yet. Of what is free of each when it is opened rows may have `percent` of a hundred bytes.
    pub fn register(percent: u8, registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self::new(percent, IN_USE, GpuRowsMetrics::register(registry)?))
    }

    fn new(percent: u8, in_use: Duration, metrics: GpuRowsMetrics) -> Self {
        GpuRows { percent, in_use, metrics, hosts: RwLock::default(), count: AtomicUsize::new(0) }
    }

    /// A GPU is open, and its encoder has so many bytes of its memory. When it cannot take rows, the log says why. Blocks for a moment.
    pub fn host(&self, number: usize, encoder_bytes: u64, device: Box<dyn RowDevice>) {
        let memory = match device.memory() {
            Ok(memory) => memory,
            Err(fault) => return tracing::warn!(gpu = number, %fault, "no rows are put on the GPU"),
        };
        let bytes_max = usize::try_from(memory.free_bytes / 100 * u64::from(self.percent)).unwrap_or(usize::MAX);
        let (errands, undone) = bounded(ERRANDS_MAX);
        let hosted = Arc::new(Hosted::new(number, device, memory, (bytes_max, encoder_bytes), self.metrics.clone(), errands));
        let (host, in_use) = (Arc::downgrade(&hosted), self.in_use);
        let thread = std::thread::Builder::new().name(format!("gpu-rows-{number}"));
        if let Err(fault) = thread.spawn(move || uploads::serve(&undone, &host, in_use)) {
            return tracing::warn!(gpu = number, %fault, "the thread that puts rows on the GPU could not be started: the processor searches");
        }
        tracing::info!(gpu = number, rows_mib = bytes_max >> 20, "rows may be searched on the GPU");
        let mut hosts = self.hosts.write();
        hosts.here.push(hosted);
        self.count.store(hosts.here.len(), Ordering::Relaxed);
    }

    /// Takes all rows off a GPU, and ends everything that this has there. Blocks while memory is freed.
    ///
    /// # Errors
    /// Rows are still being searched: the caller is to ask again later, and must not reset the GPU before.
    pub fn close(&self, number: usize) -> Result<(), String> {
        let mut closing = Vec::new();
        {
            let hosts = &mut *self.hosts.write();
            closing.extend(hosts.here.extract_if(.., |host| host.number == number));
            closing.extend(hosts.closing.extract_if(.., |host| host.number == number));
            self.count.store(hosts.here.len(), Ordering::Relaxed);
        }
        closing.iter().for_each(|host| host.close());
        // Whoever has rows there, or brings some, has the GPU, too. The last one ends here.
        let mut closing: Vec<_> = closing.into_iter().filter_map(|host| Arc::try_unwrap(host).err()).collect();
        let is_closed = closing.is_empty();
        self.hosts.write().closing.append(&mut closing);
        if is_closed { Ok(()) } else { Err("rows on it are still being searched".to_owned()) }
    }

    /// The GPUs' memory, as it was a moment ago.
    pub fn memory(&self) -> Vec<GpuUse> {
        let of = |host: &Arc<Hosted>| {
            let memory = host.memory();
            GpuUse {
                gpu: host.number,
                name: host.device.name().to_owned(),
                total_bytes: memory.total_bytes,
                used_bytes: memory.total_bytes.saturating_sub(memory.free_bytes),
                encoder_bytes: host.encoder_bytes,
                rows_bytes: host.held_bytes() as u64,
                rows_limit_bytes: host.bytes_max as u64,
            }
        };
        let mut uses: Vec<GpuUse> = self.hosts.read().here.iter().map(of).collect();
        uses.sort_by_key(|one| one.gpu);
        uses
    }

    /// Has rows put on a GPU where they would be searched sooner, if there is one.
    fn bring_where_sooner(&self, seat: &Arc<Seat>, search: &RowSearch<'_>) {
        let is_sooner = |host: &&Arc<Hosted>| {
            let bytes = host.device.bytes_of(search.rows, search.query.len());
            bytes <= host.bytes_max && host.is_well() && search.is_sooner(host.device.seconds(bytes))
        };
        let roomiest = self.hosts.read().here.iter().filter(is_sooner).max_by_key(|host| host.room()).cloned();
        let Some(host) = roomiest.filter(|_| seat.ask()) else { return };
        let bring = Bring { seat: Arc::downgrade(seat), vectors: (search.vectors)(), dimension: search.query.len() };
        if !host.bring(bring) {
            seat.refuse(Instant::now() + BUSY);
        }
    }
}

/// A search among rows.
pub struct RowSearch<'a> {
    /// As long as a row.
    pub query: &'a [f32],
    /// Rows that are to be found.
    pub wanted: usize,
    /// Rows that there are.
    pub rows: usize,
    /// Their vectors.
    pub vectors: &'a dyn Fn() -> Arc<dyn Vectors>,
    /// Which rows may be found.
    pub(crate) allowed: AllowedKey,
    /// The same as a bit for each row; none for all.
    pub bits: &'a dyn Fn() -> Option<Cow<'a, [u64]>>,
    /// Seconds that making the bits takes, roughly.
    pub bits_seconds: f64,
    /// Seconds that the processor would take, roughly.
    pub otherwise_seconds: f64,
}

impl RowSearch<'_> {
    /// Whether a GPU that takes so long answers sooner than the processor. That others may go along counts for neither: a GPU answers them together, and the
    /// processor at the same time.
    fn is_sooner(&self, seconds: f64) -> bool {
        self.bits_seconds + seconds < self.otherwise_seconds
    }

    /// Rows that are asked for: some more than are wanted, since the processor scores them again and rounds differently.
    fn asked(&self) -> Option<usize> {
        Some(self.wanted + self.wanted / 8 + 16).filter(|asked| *asked <= HITS_MAX)
    }
}

/// The rows on GPUs, as searches of one tenant see them.
#[derive(Clone)]
pub struct TenantRows {
    gpus: Arc<GpuRows>,
    account: Account,
}

impl TenantRows {
    /// For the searches of a tenant.
    pub fn new(gpus: Arc<GpuRows>, tenant: TenantId) -> Self {
        TenantRows { gpus, account: Account::of_tenant(tenant) }
    }

    /// Whether there is a GPU.
    pub fn is_there(&self) -> bool {
        self.gpus.count.load(Ordering::Relaxed) > 0
    }

    /// Positions of rows among which the best are, and hardly any others; none when the processor is to search, because it is sooner, or the rows are on no GPU,
    /// or that has failed. Waits for searches of the same rows that are there at the moment.
    pub fn find(&self, seat: &Arc<Seat>, search: &RowSearch<'_>) -> Option<Vec<u32>> {
        let asked = search.asked()?;
        let Some(rows) = seat.rows() else {
            self.gpus.bring_where_sooner(seat, search);
            return None;
        };
        if !search.is_sooner(rows.held.gpu().seconds_with_wait(rows.seconds)) {
            return None;
        }
        rows.touch();
        let answer = rows.turns.ask(search.allowed, search.query, asked, &self.gpus.metrics.queued, |asked| {
            self.compute(seat, &rows, asked, (search.bits)().as_deref())
        });
        answer.unwrap_or_else(|Hung| {
            rows.held.gpu().hangs(1);
            None
        })
    }

    fn compute(&self, seat: &Seat, rows: &Arc<Seated>, asked: &[turns::Asked], bits: Option<&[u64]>) -> Option<Vec<Vec<u32>>> {
        let (gpu, metrics) = (rows.held.gpu(), &self.gpus.metrics);
        let (found, took) = match gpu.in_turn(|| rows.top_k(asked, bits)) {
            Ok(done) => done,
            Err(Hung) => {
                gpu.hangs(asked.len());
                return None;
            }
        };
        metrics.batch_queries.observe(asked.len() as f64);
        metrics.batch_seconds.observe(took);
        metrics.busy_seconds.with_label_values(&[&gpu.number.to_string()]).inc_by(took);
        metrics.tenant_seconds.add(&self.account, took);
        let positions = |(asked, found): (&turns::Asked, Vec<Scored>)| {
            found.into_iter().take(asked.wanted).map(|scored| scored.position).collect()
        };
        match found {
            Ok(found) => {
                gpu.worked(seat);
                Some(asked.iter().zip(found).map(positions).collect())
            }
            Err(fault) => {
                gpu.failed(seat, Some(rows), &fault, asked.len());
                None
            }
        }
    }
}
