//! A node's disk, which forgets on a loss of power what was not synced.

use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The system goes on: what was written is on the disk.
    Process,
    /// The machine stops: of what was not synced, a part from the beginning is on the disk, down to none.
    Power,
}

/// The files of one node. Each crash makes new ones of those that there were, so that nothing of the ended process writes to them.
pub struct Disk {
    root: PathBuf,
    generation: u32,
    /// How much of each write-ahead log is durable.
    synced: BTreeMap<String, u64>,
}

impl Disk {
    pub fn new(root: PathBuf) -> Disk {
        Disk { root, generation: 0, synced: BTreeMap::new() }
    }

    /// Where the store is.
    pub fn folder(&self) -> PathBuf {
        self.root.join(self.generation.to_string())
    }

    /// Everything that is written is durable from now on.
    pub fn sync(&mut self) -> io::Result<()> {
        self.synced = logs(&self.folder().join("db"))?.into_iter().collect();
        Ok(())
    }

    /// What is left for the next process. Without `watermark`, the file that says how far was synced is lost too.
    pub fn crash(&mut self, crash: Crash, watermark: bool, chance: &mut StdRng) -> io::Result<()> {
        let before = self.folder();
        self.generation += 1;
        let after = self.folder();
        if !before.join("db/CURRENT").exists() {
            return Ok(()); // it ended before there was anything
        }
        fs::create_dir_all(after.join("db"))?;
        copy_database(&before.join("db"), &after.join("db"))?;
        for (log, length) in logs(&before.join("db"))? {
            let durable = self.synced.get(&log).copied().unwrap_or(0).min(length);
            let kept = match crash {
                Crash::Process => length,
                Crash::Power if chance.random_bool(0.5) => durable,
                Crash::Power => chance.random_range(durable..=length),
            };
            fs::copy(before.join("db").join(&log), after.join("db").join(&log))?;
            fs::OpenOptions::new().write(true).open(after.join("db").join(&log))?.set_len(kept)?;
        }
        if watermark && before.join("synced").exists() {
            fs::copy(before.join("synced"), after.join("synced"))?;
        }
        self.synced = logs(&after.join("db"))?.into_iter().collect();
        Ok(())
    }
}

/// Write-ahead logs and how long they are.
fn logs(db: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut logs = Vec::new();
    for file in fs::read_dir(db)? {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        if name.ends_with(".log") {
            logs.push((name, file.metadata()?.len()));
        }
    }
    logs.sort();
    Ok(logs)
}

/// Everything but the write-ahead logs, as of one moment: RocksDB may be merging files on its threads.
fn copy_database(from: &Path, to: &Path) -> io::Result<()> {
    loop {
        let before = listing(from)?;
        let copied = before.iter().try_for_each(|(name, _)| match name.ends_with(".sst") {
            true => fs::hard_link(from.join(name), to.join(name)),
            false => fs::copy(from.join(name), to.join(name)).map(|_| ()),
        });
        match copied {
            Ok(()) if listing(from)? == before => return Ok(()),
            Err(fault) if fault.kind() != io::ErrorKind::NotFound => return Err(fault),
            _ => {
                for file in fs::read_dir(to)? {
                    fs::remove_file(file?.path())?;
                }
            }
        }
    }
}

fn listing(folder: &Path) -> io::Result<BTreeMap<String, u64>> {
    let mut files = BTreeMap::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        let is_kept = name == "CURRENT" || name == "IDENTITY" || name.starts_with("MANIFEST") || name.ends_with(".sst");
        if is_kept {
            match file.metadata() {
                Ok(metadata) => drop(files.insert(name, metadata.len())),
                Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
                Err(fault) => return Err(fault),
            }
        }
    }
    Ok(files)
}
