//! What a loss of power leaves of a store: a build for mutants notes how far its write-ahead log is sure to be on the disk.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// How much is taken of what was synced, when a log is to lack some of it.
const TAKEN_BYTES: u64 = 64;

/// Cuts the log of a node that does not run to what had been synced, and puts the watermark back to what it was then. RocksDB syncs all its other files by
/// itself, and a log when it begins the next one.
pub fn lose_power(store: &Path) -> Result<()> {
    let (log, durable) = durable(store)?;
    cut(&log, durable)?;
    std::fs::copy(store.join("durable.synced"), store.join("synced"))?;
    Ok(())
}

/// Takes the end of what had been synced from the log of a node that does not run, and leaves the watermark.
pub fn lose_synced(store: &Path) -> Result<()> {
    let (log, durable) = durable(store)?;
    ensure!(durable > TAKEN_BYTES, "the log has only {durable} bytes that were synced");
    cut(&log, durable - TAKEN_BYTES)
}

/// The log that is written to, and how much of it had been synced.
fn durable(store: &Path) -> Result<(PathBuf, u64)> {
    let noted = std::fs::read_to_string(store.join("durable.lengths")).context("the node did not note what is durable")?;
    let entries = std::fs::read_dir(store.join("db"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let log = entries.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max();
    let log = log.context("there is no write-ahead log")?;
    let name = log.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let length = noted.lines().filter_map(|line| line.split_once(' ')).find(|(noted, _)| *noted == name);
    let length = length.map_or(Ok(0), |(_, length)| length.parse())?;
    Ok((log, length))
}

fn cut(log: &Path, length: u64) -> Result<()> {
    let file = std::fs::OpenOptions::new().write(true).open(log)?;
    Ok(file.set_len(length.min(file.metadata()?.len()))?)
}
