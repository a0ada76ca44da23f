//! The disk that a node keeps its data on: an ext4 image on a loop device, which can lose its power, fail and be full. It needs root and loop devices;
//! without, it is a folder, which can only be damaged and lost.

use crate::command::{is_root, run, succeeds};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Size of a disk. The image is sparse: it takes what is written.
const SIZE_BYTES: u64 = 1 << 30;
/// `EXT4_IOC_SHUTDOWN`: from then on the file system refuses everything.
const SHUT_DOWN: libc::c_ulong = 0x8004_587d;
/// Its argument by which nothing more reaches the disk, the journal included: as when the power fails.
const NO_LOG_FLUSH: u32 = 2;
/// What is written to see whether it can be.
const PROBE: &[u8] = b"this must not survive a loss of power";

/// A node's disk.
pub struct Disk {
    kind: Kind,
}

enum Kind {
    Image { image: PathBuf, mounted: PathBuf },
    Folder(PathBuf),
}

/// Why images cannot be had here, if they cannot.
pub fn missing_for_images() -> Option<&'static str> {
    let here = is_root() && Path::new("/dev/loop-control").exists() && succeeds("mkfs.ext4", &["-V"]);
    (!here).then_some("it needs root, loop devices and e2fsprogs")
}

impl Disk {
    /// A new, empty one in a folder: an image when that can be.
    pub fn make(folder: &Path, name: &str) -> Result<Disk> {
        let mounted = folder.join(name);
        std::fs::create_dir(&mounted)?;
        if missing_for_images().is_some() {
            return Ok(Disk { kind: Kind::Folder(mounted) });
        }
        let image = folder.join(format!("{name}.ext4"));
        let disk = Disk { kind: Kind::Image { image, mounted } };
        disk.format()?;
        Ok(disk)
    }

    /// The folder for the node's data.
    pub fn data_dir(&self) -> PathBuf {
        self.root().join("data")
    }

    /// Takes the power away: what was not synced is lost, and nothing can be written any more, which is seen.
    pub fn lose_power(&self) -> Result<()> {
        let mut probe = File::create(self.probe())?;
        probe.write_all(PROBE)?;
        self.shut_down()
    }

    /// Makes every access fail from now on, which is seen.
    pub fn shut_down(&self) -> Result<()> {
        let root = File::open(self.root())?;
        // SAFETY: the descriptor is open for the whole call, and the argument is the number of 4 bytes that the kernel reads there.
        let answer = unsafe { libc::ioctl(root.as_raw_fd(), SHUT_DOWN, &NO_LOG_FLUSH) };
        ensure!(answer == 0, "the file system cannot be shut down: {}", std::io::Error::last_os_error());
        let written = File::create(self.root().join("refused"));
        ensure!(written.is_err(), "the file system takes writes although it has been shut down");
        Ok(())
    }

    /// Gives the power back, once nobody uses the disk any more.
    pub fn power_up(&self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// Whether what was written before the power was lost, and not synced, is gone; it is removed.
    pub fn has_lost_what_was_not_synced(&self) -> Result<bool> {
        let gone = std::fs::read(self.probe()).map_or(true, |found| found != PROBE);
        let _ = std::fs::remove_file(self.probe()); // it may not be there
        Ok(gone)
    }

    /// Fills all the space that is left, which is seen.
    pub fn fill(&self) -> Result<()> {
        let ballast = File::create(self.ballast())?;
        let (mut filled, mut length) = (0, SIZE_BYTES as i64);
        while length > 0 {
            // SAFETY: takes plain numbers; the descriptor is open for the whole call.
            match unsafe { libc::fallocate(ballast.as_raw_fd(), 0, filled, length) } {
                0 => filled += length,
                _ => match std::io::Error::last_os_error() {
                    fault if fault.kind() == ErrorKind::StorageFull => length /= 2,
                    fault => return Err(fault).context("the disk cannot be filled"),
                },
            }
        }
        let refused = std::fs::write(self.probe(), vec![0x5a; 1 << 20]);
        let _ = std::fs::remove_file(self.probe()); // it may not have come about
        let is_full = refused.is_err_and(|fault| fault.kind() == ErrorKind::StorageFull);
        ensure!(is_full, "the disk takes more although it has been filled");
        Ok(())
    }

    /// Gives the space back.
    pub fn free(&self) -> Result<()> {
        std::fs::remove_file(self.ballast()).context("the disk cannot be freed")
    }

    /// Its device, as `major:minor`.
    pub fn device(&self) -> Result<String> {
        let device = std::fs::metadata(self.root())?.dev();
        Ok(format!("{}:{}", libc::major(device), libc::minor(device)))
    }

    /// Loses everything, once nobody uses the disk any more.
    pub fn wipe(&self) -> Result<()> {
        match &self.kind {
            Kind::Image { image, .. } => {
                self.unmount()?;
                std::fs::remove_file(image)?;
                self.format()
            }
            Kind::Folder(folder) => {
                std::fs::remove_dir_all(folder)?;
                Ok(std::fs::create_dir(folder)?)
            }
        }
    }

    fn root(&self) -> &Path {
        match &self.kind {
            Kind::Image { mounted, .. } => mounted,
            Kind::Folder(folder) => folder,
        }
    }

    fn probe(&self) -> PathBuf {
        self.root().join("not-synced")
    }

    fn ballast(&self) -> PathBuf {
        self.root().join("ballast")
    }

    fn format(&self) -> Result<()> {
        let Kind::Image { image, .. } = &self.kind else { return Ok(()) };
        File::create_new(image)?.set_len(SIZE_BYTES)?;
        // Without blocks that only root may use, and nothing left to be done behind our back.
        let options = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        run("mkfs.ext4", &[&options[..], &[&text(image)?]].concat())?;
        self.mount()
    }

    fn mount(&self) -> Result<()> {
        let Kind::Image { image, mounted } = &self.kind else { return Ok(()) };
        run("mount", &["-o", "loop,noatime", &text(image)?, &text(mounted)?]).map(drop)
    }

    fn unmount(&self) -> Result<()> {
        let Kind::Image { mounted, .. } = &self.kind else { return Ok(()) };
        run("umount", &[&text(mounted)?]).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(fault) = self.unmount() {
            eprintln!("ragged-chaos: a disk stays mounted: {fault:#}");
        }
    }
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_keeps_what_was_synced_and_nothing_else() -> Result<()> {
        if let Some(why) = missing_for_images() {
            eprintln!("skipped: {why}");
            return Ok(());
        }
        let folder = tempfile::tempdir()?;
        let disk = Disk::make(folder.path(), "disk")?;
        let synced = disk.root().join("synced");
        let mut file = File::create(&synced)?;
        file.write_all(b"kept")?;
        file.sync_all()?;
        File::open(disk.root())?.sync_all()?;
        drop(file);
        disk.lose_power()?;
        disk.power_up()?;
        assert!(disk.has_lost_what_was_not_synced()?);
        assert_eq!(std::fs::read(&synced)?, b"kept");
        disk.fill()?;
        assert!(std::fs::write(disk.root().join("more"), vec![0; 1 << 20]).is_err());
        disk.free()?;
        std::fs::write(disk.root().join("more"), vec![0; 1 << 20])?;
        disk.wipe()?;
        assert!(!synced.exists());
        Ok(())
    }
}
