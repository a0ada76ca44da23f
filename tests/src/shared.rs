//! The shared collections, when they are there.

use anyhow::{Context, Result};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

/// Folder of the shared data, or none, saying that the test is skipped.
pub fn shared(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("RAGGED_SHARED").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| crate::node::package_dir().join("../../shared"));
    let found = folder.join("data").is_dir().then(|| folder.clone());
    if found.is_none() {
        eprintln!("{test} SKIPPED: there is no shared data in {}", folder.display());
    }
    found
}

/// The lines of a gzipped NDJSON file.
pub fn documents(path: &std::path::Path) -> Result<impl Iterator<Item = Result<Value>> + use<>> {
    let file = std::fs::File::open(path).with_context(|| format!("{}", path.display()))?;
    Ok(BufReader::new(flate2::read::GzDecoder::new(file)).lines().map(|line| Ok(serde_json::from_str(&line?)?)))
}
