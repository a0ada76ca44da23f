//! What the nodes' processes take: memory, descriptors and threads, which must stay bounded.

use crate::verdict::Violation;
use serde::Serialize;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(1);
/// What a node may take at most with its default settings and the data of a run: the model and the program, the store's buffers and cache, and indexes.
const MEMORY_MAX_BYTES: u64 = 2 << 30;
/// Files of the store (512 at most) and of indexes, and connections of clients, of other nodes and of strangers.
const DESCRIPTORS_MAX: u64 = 2048;
/// Workers of the runtime, of the store, of the indexes, and those that wait for the disk.
const THREADS_MAX: u64 = 768;

/// What a process takes, or the most of it that was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Memory that is resident.
    pub memory_bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

/// Watches processes until it is dropped.
pub struct Watch {
    peaks: Arc<Mutex<Vec<Usage>>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins.
    pub fn start(processes: Arc<Vec<AtomicU32>>) -> Watch {
        let peaks = Arc::new(Mutex::new(vec![Usage::default(); processes.len()]));
        let seen = peaks.clone();
        let task = tokio::spawn(async move {
            loop {
                for (node, process) in processes.iter().enumerate() {
                    // One that ends meanwhile takes nothing.
                    let usage = usage(process.load(Ordering::Relaxed)).unwrap_or_default();
                    let peak = &mut seen.lock().unwrap_or_else(PoisonError::into_inner)[node];
                    *peak = Usage {
                        memory_bytes: peak.memory_bytes.max(usage.memory_bytes),
                        descriptors: peak.descriptors.max(usage.descriptors),
                        threads: peak.threads.max(usage.threads),
                    };
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        Watch { peaks, task }
    }

    /// The most that each node took.
    pub fn peaks(&self) -> Vec<Usage> {
        self.peaks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn usage(process: u32) -> Option<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?.count() as u64;
    Some(Usage { memory_bytes: field("VmRSS:")? << 10, descriptors, threads: field("Threads:")? })
}

/// Checks that no node took more than it may.
pub fn check(peaks: &[Usage]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (node, peak) in peaks.iter().enumerate() {
        let bounds = [
            ("bytes of memory", peak.memory_bytes, MEMORY_MAX_BYTES),
            ("descriptors", peak.descriptors, DESCRIPTORS_MAX),
            ("threads", peak.threads, THREADS_MAX),
        ];
        for (what, taken, most) in bounds.into_iter().filter(|(_, taken, most)| taken > most) {
            found.push(Violation { check: "resources", what: format!("node {node} took {taken} {what}; {most} are the limit") });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_measured_and_held_against_its_limits() {
        let Some(own) = usage(std::process::id()) else { panic!("this process runs, and cannot be measured") };
        assert!(own.memory_bytes > 1 << 20 && own.descriptors > 2 && own.threads > 0, "{own:?}");
        assert_eq!(check(&[own]), []);
        let leaking = Usage { descriptors: DESCRIPTORS_MAX + 1, ..own };
        assert_eq!(check(&[own, leaking]).iter().map(|one| one.check).collect::<Vec<_>>(), ["resources"]);
    }
}
