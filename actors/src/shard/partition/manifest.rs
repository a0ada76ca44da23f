//! Which vector segments there are, and up to which row they reach: the root of the checkpoint, replaced as a whole.

use super::error::PartitionError;
use super::files;
use ragged_raft::codec;
use serde::{Deserialize, Serialize};
use std::path::Path;

const FILE: &str = "manifest";
/// Raised when what is below it is written in another way; an older checkpoint is then built again.
const VERSION: u32 = 1;

/// Content of the file `manifest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The version of ragged's files that it belongs to.
    pub(super) version: u32,
    /// Length of the vectors.
    pub(super) dimension: u32,
    /// All rows before it that are alive are in the segments.
    pub(super) until: u32,
    /// Log index of the partition's last change when it was written: rows from before it mean another past.
    pub(super) changed_at: u64,
    /// Numbers of the segments.
    pub(super) segments: Vec<u64>,
    /// The number that the next segment gets.
    pub(super) next_segment: u64,
}

impl Manifest {
    /// Of a partition without segments.
    pub(super) fn empty(dimension: usize) -> Manifest {
        Manifest { version: VERSION, dimension: dimension as u32, until: 0, changed_at: 0, segments: Vec::new(), next_segment: 1 }
    }

    /// Reads the manifest; none when there is none.
    pub(super) fn read(folder: &Path) -> Result<Option<Manifest>, PartitionError> {
        let path = folder.join(FILE);
        let Some(frame) = files::read_if_there(&path)? else { return Ok(None) };
        let manifest: Manifest = codec::decode(&frame).map_err(|fault| PartitionError::damaged(&path, fault.to_string()))?;
        if manifest.version != VERSION {
            return Err(PartitionError::damaged(
                &path,
                format!("version {} is not known to this version of ragged", manifest.version),
            ));
        }
        Ok(Some(manifest))
    }

    /// Replaces the manifest.
    pub(super) fn write(&self, folder: &Path) -> Result<(), PartitionError> {
        let path = folder.join(FILE);
        let frame = codec::encode(self).map_err(|fault| PartitionError::damaged(&path, fault.to_string()))?;
        files::replace(&path, &frame)
    }
}
