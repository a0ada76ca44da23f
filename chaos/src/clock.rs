//! A node's clock, which can be set to another time of day: a library that is loaded before the node's own ones adds what a file says.

use crate::command::{run, succeeds};
use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The library's source.
const SOURCE: &str = include_str!("clock.c");
/// Where in the file it counts how often it was asked.
const ASKED_AT: u64 = 8;

/// Whether the library can be made here.
pub fn can_be_set() -> bool {
    succeeds("cc", &["--version"])
}

/// Makes the library in a folder; where it is.
pub fn make_library(folder: &Path) -> Result<PathBuf> {
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    std::fs::write(&source, SOURCE)?;
    let path = |path: &Path| path.to_str().context("the folder's name is not UTF-8").map(str::to_owned);
    run("cc", &["-shared", "-fPIC", "-O2", "-o", &path(&library)?, &path(&source)?, "-ldl"])?;
    Ok(library)
}

/// A node's clock.
pub struct Clock {
    file: File,
    path: PathBuf,
}

impl Clock {
    /// One that is right.
    pub fn make(path: PathBuf) -> Result<Clock> {
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        file.write_all_at(&[0; 16], 0)?;
        Ok(Clock { file, path })
    }

    /// The file that the library is told by `CHAOS_CLOCK`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets it ahead by so many seconds, or back.
    pub fn set(&self, ahead_seconds: i64) -> Result<()> {
        Ok(self.file.write_all_at(&ahead_seconds.to_ne_bytes(), 0)?)
    }

    /// How often the node has looked at it.
    pub fn asked(&self) -> Result<u64> {
        let mut count = [0; 8];
        self.file.read_exact_at(&mut count, ASKED_AT)?;
        Ok(u64::from_ne_bytes(count))
    }
}
