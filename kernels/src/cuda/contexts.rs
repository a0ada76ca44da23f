//! What this process has of each GPU, and the end of it: a GPU that has failed is reset when nothing of ours is left on it, and not before.

use super::driver::{check_driver, failed, find, guarded};
use super::machine::GpuError;
use cudarc::driver::CudaContext;
use cudarc::driver::sys;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// What this process has of each GPU, by its number. A GPU's list is held while it is opened or reset.
static CONTEXTS: Mutex<BTreeMap<usize, Contexts>> = Mutex::new(BTreeMap::new());
/// How long a reset waits for the end of a context that nobody has any more.
const RELEASE_MAX: Duration = Duration::from_secs(1);

type Contexts = Arc<Mutex<Vec<Weak<CudaContext>>>>;

/// The contexts of a GPU that were opened, of which some may be gone.
pub(super) fn contexts_of(number: usize) -> Contexts {
    CONTEXTS.lock().entry(number).or_default().clone()
}

/// Makes an end of what a GPU that has failed has kept of this process: until then it can only fail again.
///
/// # Errors
/// Something that was opened on it is still there; no driver, no such GPU, a driver that refuses.
pub fn reset(number: usize) -> Result<(), GpuError> {
    guarded("resetting the GPU", || {
        check_driver()?;
        let device = find(number)?;
        let contexts = contexts_of(number);
        let mut contexts = contexts.lock();
        contexts.retain(|context| context.strong_count() > 0);
        if !contexts.is_empty() {
            let reason = "something of this process is still on it".to_owned();
            return Err(GpuError::Failed { what: "resetting the GPU", reason });
        }
        wait_for_release(device);
        // SAFETY: the device is there, and nothing is left that would use what this ends: memory, streams and kernels have the context until they are freed,
        // nobody has one, and nobody gets one while the list is locked.
        unsafe { sys::cuDevicePrimaryCtxReset_v2(device) }.result().map_err(|fault| failed("resetting the GPU", fault))
    })
}

/// Whoever had the last context may be about to release it: that must not meet the next one.
fn wait_for_release(device: sys::CUdevice) {
    let begun = Instant::now();
    let is_there = || {
        let (mut flags, mut is_active) = (0, 0);
        // SAFETY: the device is there, and both are written to variables of their types.
        let asked = unsafe { sys::cuDevicePrimaryCtxGetState(device, &mut flags, &mut is_active) };
        asked.result().is_ok() && is_active != 0
    };
    while is_there() && begun.elapsed() < RELEASE_MAX {
        std::thread::sleep(Duration::from_millis(5));
    }
}
