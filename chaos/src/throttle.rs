//! Has a process write slowly to a disk: a control group of its own, with a limit on the disk's device.

use crate::command::is_root;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The controller of block devices, version 1.
const CONTROLLER: &str = "/sys/fs/cgroup/blkio";

/// Whether writes can be slowed down here.
pub fn is_possible() -> bool {
    is_root() && Path::new(CONTROLLER).join("blkio.throttle.write_iops_device").exists()
}

/// A limit on what a process writes, until it is lifted.
pub struct Throttle {
    group: PathBuf,
    device: String,
}

impl Throttle {
    /// Lets a process write only so often in a second to a device, as `major:minor`.
    pub fn put_on(process: u32, device: &str, writes_per_second: u32) -> Result<Throttle> {
        let group = Path::new(CONTROLLER).join(format!("ragged-chaos-{}-{process}", std::process::id()));
        std::fs::create_dir(&group).with_context(|| group.display().to_string())?;
        let throttle = Throttle { group, device: device.to_owned() };
        throttle.tell("blkio.throttle.write_iops_device", &format!("{device} {writes_per_second}"))?;
        throttle.tell("cgroup.procs", &process.to_string())?;
        Ok(throttle)
    }

    /// How many writes have gone through the limit.
    pub fn writes(&self) -> Result<u64> {
        let served = std::fs::read_to_string(self.group.join("blkio.throttle.io_serviced"))?;
        let prefix = format!("{} Write ", self.device);
        Ok(served.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok()).unwrap_or_default())
    }

    fn tell(&self, file: &str, what: &str) -> Result<()> {
        std::fs::write(self.group.join(file), what).with_context(|| format!("{what} to {file} of {}", self.group.display()))
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // No limit lets those writes go that wait, and the process goes back to where it came from; it may have ended.
        let _ = self.tell("blkio.throttle.write_iops_device", &format!("{} 0", self.device));
        for process in std::fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = std::fs::write(Path::new(CONTROLLER).join("cgroup.procs"), process);
        }
        let _ = std::fs::remove_dir(&self.group);
    }
}
