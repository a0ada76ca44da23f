//! Each GPU's thread that puts rows there and takes them off: searches do not wait for either, nor does another GPU when one hangs.

use super::device::DeviceRows;
use super::hosted::Hosted;
use super::seat::{Seat, Seated, unless_it_panics};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use half::f16;
use ragged_kernels::cuda::GpuError;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Errands that wait at most. More are left undone: the next search asks again.
pub(super) const ERRANDS_MAX: usize = 256;
/// How often the GPU's memory is asked for.
const REFRESH: Duration = Duration::from_secs(5);
/// Bytes of rows that are copied at a time. In between it is seen whether anybody still wants them.
const PART_BYTES: usize = 4 << 20;
/// After so many parts their memory may be given back.
const PARTS_BEFORE_A_LOOK: usize = 8;
/// How long rows wait for which there is no room.
const NO_ROOM: Duration = Duration::from_secs(5);

/// Vectors that are to be put on a GPU, and stay as they are.
pub trait Vectors: Send + Sync {
    /// All of them, one after the other.
    fn values(&self) -> &[f16];

    /// Some have been looked at, and need not stay in memory for it.
    fn looked_at(&self) {}
}

/// What the thread is asked to do.
pub(super) enum Errand {
    /// Put rows on the GPU, if their seat is still there.
    Bring(Bring),
    /// Free what rows have.
    Free(Arc<Seated>),
}

/// Rows to bring.
pub(super) struct Bring {
    pub(super) seat: Weak<Seat>,
    pub(super) vectors: Arc<dyn Vectors>,
    pub(super) dimension: usize,
}

/// Does a GPU's errands until nobody has the GPU any more.
pub(super) fn serve(errands: &Receiver<Errand>, host: &Weak<Hosted>, in_use: Duration) {
    let mut refreshed = Instant::now();
    loop {
        match errands.recv_timeout(REFRESH) {
            Ok(Errand::Bring(bring)) => {
                let Some(host) = host.upgrade() else {
                    bring.refuse();
                    continue; // until nothing waits
                };
                bring.run(&host, in_use);
            }
            Ok(Errand::Free(rows)) => drop(rows),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if refreshed.elapsed() >= REFRESH {
            if let Some(host) = host.upgrade().filter(|host| host.is_well()) {
                host.refresh();
            }
            refreshed = Instant::now();
        }
    }
}

impl Bring {
    fn rows(&self) -> usize {
        self.vectors.values().len() / self.dimension
    }

    /// Bytes that they take of a GPU.
    pub(super) fn bytes(&self, host: &Hosted) -> usize {
        host.device.bytes_of(self.rows(), self.dimension)
    }

    fn run(&self, host: &Arc<Hosted>, in_use: Duration) {
        let (rows, bytes) = (self.rows(), self.bytes(host));
        let begun = Instant::now();
        let held = if host.is_well() { host.hold(bytes, in_use) } else { None };
        host.came(bytes);
        let Some(held) = held else { return self.refuse() };
        let brought = unless_it_panics("bringing rows", || self.copy(host, rows));
        let Some(seat) = self.seat.upgrade() else { return };
        match brought {
            Ok(Some(on_gpu)) => {
                host.seat(&seat, Seated::new(on_gpu, held, host.device.seconds(bytes)));
                host.metrics.upload_seconds.observe(begun.elapsed().as_secs_f64());
                host.refresh();
                tracing::debug!(gpu = host.number, rows, bytes, "a segment's rows are on the GPU");
            }
            Ok(None) => self.refuse(),
            Err(fault) => host.failed(&seat, None, &fault, 1),
        }
    }

    /// The rows on the GPU; none when nobody wants them any more.
    fn copy(&self, host: &Hosted, rows: usize) -> Result<Option<Box<dyn DeviceRows>>, GpuError> {
        let mut on_gpu = host.device.make_room(rows, self.dimension)?;
        let part = (PART_BYTES / (self.dimension * size_of::<f16>())).max(1) * self.dimension;
        for (number, part) in self.vectors.values().chunks(part).enumerate() {
            if number % PARTS_BEFORE_A_LOOK == 0 {
                self.vectors.looked_at();
            }
            if self.seat.strong_count() == 0 || !host.is_well() {
                return Ok(None);
            }
            on_gpu.append(part)?;
        }
        self.vectors.looked_at();
        Ok(Some(on_gpu))
    }

    fn refuse(&self) {
        if let Some(seat) = self.seat.upgrade() {
            seat.refuse(Instant::now() + NO_ROOM);
        }
    }
}
