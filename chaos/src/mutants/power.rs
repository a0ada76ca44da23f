//! What a loss of power leaves of a store: a build for mutants notes how far its write-ahead log is sure to be on the disk.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Cuts the log of a node that does not run to what had been synced, and puts the watermark back to what it was then. RocksDB syncs all its other files by
/// itself, and a log when it begins the next one.
pub fn lose_power(store: &Path) -> Result<()> {
    let noted = std::fs::read_to_string(store.join("durable.lengths")).context("the node did not note what is durable")?;
    let lengths: HashMap<&str, u64> = noted
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, length)| Some((name, length.parse().ok()?)))
        .collect();
    let log = last_log(store)?;
    let name = log.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let durable = lengths.get(name).copied().unwrap_or(0);
    let file = std::fs::OpenOptions::new().write(true).open(&log)?;
    file.set_len(durable.min(file.metadata()?.len()))?;
    std::fs::copy(store.join("durable.synced"), store.join("synced"))?;
    Ok(())
}

/// Takes so many bytes from the end of a log.
pub fn cut_log(store: &Path, bytes: u64) -> Result<()> {
    let file = std::fs::OpenOptions::new().write(true).open(last_log(store)?)?;
    let length = file.metadata()?.len();
    anyhow::ensure!(length > bytes, "the log has only {length} bytes");
    Ok(file.set_len(length - bytes)?)
}

/// The log that is written to.
fn last_log(store: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(store.join("db"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let logs = entries.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.max().context("there is no write-ahead log")
}
