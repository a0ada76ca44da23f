//! Notes what of the store a loss of power would leave, in a build for mutants: a kill shows nothing of it, since the page cache survives that.
//!
//! Before each sync of the write-ahead log the lengths of its files are read, and once it has returned they are noted beside the store, with the
//! watermark as it is then. Whoever cuts the files to these lengths after a kill has what the disk is sure to hold. RocksDB syncs all its other files by itself. Without the feature nothing is
//! looked at and nothing noted.

#[cfg(feature = "mutants")]
pub(crate) use noted::Durable;
#[cfg(not(feature = "mutants"))]
pub(crate) use unnoted::Durable;

#[cfg(not(feature = "mutants"))]
mod unnoted {
    use std::io;
    use std::path::Path;

    /// Nothing, in this build.
    pub(crate) struct Durable;

    impl Durable {
        #[inline(always)]
        pub(crate) fn before_sync(_folder: &Path) -> io::Result<Durable> {
            Ok(Durable)
        }

        #[inline(always)]
        pub(crate) fn note(self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(feature = "mutants")]
mod noted {
    use std::fmt::Write as _;
    use std::io;
    use std::path::{Path, PathBuf};

    /// What a sync that is about to be made will make durable, at least.
    pub(crate) struct Durable {
        folder: PathBuf,
        lengths: String,
    }

    impl Durable {
        /// Looked at before the sync.
        pub(crate) fn before_sync(folder: &Path) -> io::Result<Durable> {
            let mut lengths = String::new();
            for entry in std::fs::read_dir(folder.join("db"))? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "log")
                    && let Some(name) = path.file_name().and_then(|name| name.to_str())
                    && let Ok(about) = path.metadata()
                {
                    let _ = writeln!(lengths, "{name} {}", about.len()); // writing to a string does not fail
                }
            }
            Ok(Durable { folder: folder.to_owned(), lengths })
        }

        /// The sync has returned, and the watermark says so.
        pub(crate) fn note(self) -> io::Result<()> {
            let put = |name: &str, content: &[u8]| {
                let (path, new) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
                std::fs::write(&new, content)?;
                std::fs::rename(new, path)
            };
            put("durable.synced", &std::fs::read(self.folder.join("synced"))?)?;
            put("durable.lengths", self.lengths.as_bytes())
        }
    }
}
