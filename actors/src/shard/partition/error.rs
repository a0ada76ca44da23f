//! What can go wrong in a partition.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tantivy::TantivyError;

/// Why a partition could not do what it was asked. A damaged index is not among these: it is built again from the rows.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// The rows could not be read.
    #[error("the partition's rows could not be read: {0}")]
    Rows(#[from] ragged_raft::ReadError),
    /// A file of the index could not be read or written.
    #[error("{path}: {fault}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        fault: std::io::Error,
    },
    /// A file of the index is not what was written.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The text index failed.
    #[error("the text index failed: {0}")]
    Text(#[from] tantivy::TantivyError),
    /// The query's vector does not have the collection's length.
    #[error("the query's vector has {found} values, the collection's have {expected}")]
    Dimension {
        /// Length of the collection's vectors.
        expected: usize,
        /// Length of the query's.
        found: usize,
    },
}

impl PartitionError {
    /// Whether files are not what was written, so that they must be built again, and not only out of reach at the moment: for want of
    /// descriptors, memory or rights.
    pub(super) fn is_damage(&self) -> bool {
        let is_damage = |kind| matches!(kind, ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData);
        match self {
            PartitionError::File { fault, .. } => is_damage(fault.kind()),
            PartitionError::Text(TantivyError::IoError(fault)) => is_damage(fault.kind()),
            PartitionError::Text(TantivyError::LockFailure(..)) | PartitionError::Rows(_) | PartitionError::Dimension { .. } => {
                false
            }
            PartitionError::Text(_) | PartitionError::Damaged { .. } => true,
        }
    }

    /// For `map_err` on file operations.
    pub(super) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> PartitionError + '_ {
        move |fault| PartitionError::File { path: path.to_owned(), fault }
    }

    pub(super) fn damaged(path: &Path, why: impl Into<String>) -> PartitionError {
        PartitionError::Damaged { path: path.to_owned(), why: why.into() }
    }
}

impl From<std::io::Error> for PartitionError {
    /// For reads inside the text index, which do not say of which file.
    fn from(fault: std::io::Error) -> Self {
        PartitionError::Text(fault.into())
    }
}
