//! Why a node could not start.

use crate::cluster::identity::IdentityError;
use crate::cluster::join;
use crate::cluster::tls::TlsError;
use crate::session::KeyError;
use ractor::SpawnErr;
use std::path::PathBuf;

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Store(#[from] ragged_raft::StoreError),
    /// A row of it.
    #[error(transparent)]
    Read(#[from] ragged_raft::ReadError),
    /// The model.
    #[error("the embedding model cannot be used: {0}")]
    Model(String),
    /// A group.
    #[error("replication did not start: {0}")]
    Group(String),
    /// An actor.
    #[error("an actor did not start: {0}")]
    Actor(#[from] SpawnErr),
    /// The admin key.
    #[error("the admin key could not be written to {path}: {fault}")]
    AdminKey {
        /// Where to.
        path: PathBuf,
        /// Why.
        fault: std::io::Error,
    },
    /// Random bits.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Who the node is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Refounding the cluster was cut off.
    #[error("the cluster in {0} was being refounded, and that was cut off: run `ragged cluster refound` over it again")]
    HalfRefounded(PathBuf),
    /// Joining.
    #[error(transparent)]
    Join(#[from] join::JoinError),
    /// The cluster port's certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The cluster port.
    #[error("cannot listen on {address} for other nodes: {fault}; see cluster.listen")]
    ClusterPort {
        /// Its address.
        address: std::net::SocketAddr,
        /// What the system said.
        fault: std::io::Error,
    },
    /// The metrics.
    #[error("metrics could not be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl StartError {
    /// Whether a full disk may be the cause; others stay when there is space again.
    pub(super) fn may_be_of_a_full_disk(&self) -> bool {
        use ragged_raft::StoreError::{Database, DiskFull, Folder, Syncer};
        matches!(self, StartError::Group(_) | StartError::Store(DiskFull(_) | Folder { .. } | Database(_) | Syncer(_)))
    }
}
