//! What of the process' memory mapped files have, and what its allocator has given out.

use procfs::ProcError;
use procfs::process::{MMapPath, Process};
use std::collections::BTreeMap;
use std::path::Path;

/// What files are that are mapped into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// Vectors of segments.
    Vectors,
    /// Approximate indexes over them.
    VectorIndexes,
    /// Indexes of words and metadata.
    TextIndexes,
    /// The embedding model: as it was published, and its weights as they are packed for this processor.
    Model,
    /// The program and its libraries.
    Program,
    /// Anything else.
    Other,
}

impl FileKind {
    /// As machines read it.
    pub fn name(self) -> &'static str {
        match self {
            FileKind::Vectors => "vectors",
            FileKind::VectorIndexes => "vector_indexes",
            FileKind::TextIndexes => "text_indexes",
            FileKind::Model => "model",
            FileKind::Program => "program",
            FileKind::Other => "other",
        }
    }

    /// What a mapped file is, by its path.
    fn of(path: &Path, is_executable: bool) -> FileKind {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_in = |folder: &str| path.components().any(|part| part.as_os_str() == folder);
        match name {
            "vectors.f16" => FileKind::Vectors,
            "vectors.index" => FileKind::VectorIndexes,
            "model.safetensors" => FileKind::Model,
            _ if name.starts_with("weights-") && is_in("kernels") => FileKind::Model,
            _ if is_in("partitions") => FileKind::TextIndexes,
            _ if is_executable || name.contains(".so") || Some(path) == std::env::current_exe().ok().as_deref() => {
                FileKind::Program
            }
            _ => FileKind::Other,
        }
    }
}

/// What of mapped files is in memory. Goes through all mappings: a millisecond and more.
pub fn of_mapped_files() -> Result<BTreeMap<FileKind, u64>, ProcError> {
    let mut bytes = BTreeMap::new();
    for map in Process::myself()?.smaps()? {
        let MMapPath::Path(path) = &map.pathname else { continue };
        let value = |name: &str| map.extension.map.get(name).copied().unwrap_or(0);
        let is_executable = map.perms.contains(procfs::process::MMPermissions::EXECUTE);
        // Pages that were written to are no longer the file's.
        *bytes.entry(FileKind::of(path, is_executable)).or_default() += value("Rss").saturating_sub(value("Anonymous"));
    }
    Ok(bytes)
}

/// Bytes that the program has of its allocator.
pub fn allocated() -> Result<u64, tikv_jemalloc_ctl::Error> {
    // Counted when asked for.
    tikv_jemalloc_ctl::epoch::advance()?;
    Ok(tikv_jemalloc_ctl::stats::allocated::read()? as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_is_counted() {
        let before = allocated().unwrap();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(allocated().unwrap() >= before + (60 << 20));
        assert_eq!(block.len(), 64 << 20);
    }

    #[test]
    fn mapped_files_are_told_apart() {
        let kind = |path: &str| FileKind::of(Path::new(path), false);
        assert_eq!(kind("/data/partitions/shard-000/tenant-1/collection-2/segments/7/vectors.f16"), FileKind::Vectors);
        assert_eq!(kind("/data/partitions/shard-000/tenant-1/collection-2/segments/7/vectors.index"), FileKind::VectorIndexes);
        assert_eq!(kind("/data/partitions/shard-000/tenant-1/collection-2/text/1.idx"), FileKind::TextIndexes);
        assert_eq!(kind("/models/all-MiniLM-L6-v2/model.safetensors"), FileKind::Model);
        assert_eq!(kind("/usr/lib/libc.so.6"), FileKind::Program);
        assert_eq!(kind("/dev/shm/x"), FileKind::Other);
        assert!(of_mapped_files().unwrap()[&FileKind::Program] > 0);
    }
}
