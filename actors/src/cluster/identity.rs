//! Who this node is to the others: its certificate and key, in a file that only its owner can read.

use crate::cluster::authority::{self, CertificateError};
use ragged_raft::codec;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::ids::NodeId;
use ragged_raft::meta::node::Authority;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use ulid::Ulid;

/// The file, in the data folder.
const FILE: &str = "node.identity";

/// A node's place in its cluster.
#[derive(Clone, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// The cluster.
    pub cluster: Ulid,
    /// The node.
    pub node: NodeId,
    /// Number of the cluster's shards.
    pub shard_count: u16,
    /// The authority's certificate, as PEM.
    pub authority_pem: String,
    /// The node's certificate, as PEM.
    pub certificate_pem: String,
    /// Its private key, as PEM.
    pub key_pem: String,
}

impl std::fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeIdentity({} of {})", self.node, self.cluster) // never the key
    }
}

/// Why the identity could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file.
    #[error("{path} cannot be read or written: {fault}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        fault: io::Error,
    },
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// It belongs to another data folder.
    #[error("{path} is {found}'s, and this data folder is {expected}'s: files of two nodes were mixed")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose file it is.
        found: NodeId,
        /// Whose folder it is.
        expected: NodeId,
    },
}

impl NodeIdentity {
    /// The identity of a node that the authority's holder certifies itself: the founder's.
    pub fn issue(authority: &Authority, cluster: Ulid, node: NodeId, shard_count: u16) -> Result<NodeIdentity, IdentityError> {
        let asked = authority::request()?;
        let certificate_pem = authority::issue(authority, node, &asked.request)?;
        let authority_pem = authority.certificate_pem.clone();
        Ok(NodeIdentity { cluster, node, shard_count, authority_pem, certificate_pem, key_pem: asked.key_pem })
    }

    /// Whether there is one in this data folder: its node is a member of a cluster.
    pub fn is_there(folder: &Path) -> bool {
        folder.join(FILE).exists()
    }

    /// Reads the identity in this data folder, which must be this node's; none when there is none yet.
    pub fn load(folder: &Path, node: NodeId) -> Result<Option<NodeIdentity>, IdentityError> {
        let path = folder.join(FILE);
        let frame = match std::fs::read(&path) {
            Ok(frame) => frame,
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(fault) => return Err(IdentityError::File { path, fault }),
        };
        let identity: NodeIdentity = match codec::decode(&frame) {
            Ok(identity) => identity,
            Err(fault) => return Err(IdentityError::File { path, fault: fault.into() }),
        };
        match identity.node == node {
            true => Ok(Some(identity)),
            false => Err(IdentityError::Foreign { path, found: identity.node, expected: node }),
        }
    }

    /// Writes it, whole or not at all.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        let path = folder.join(FILE);
        let write = || -> io::Result<()> {
            // Temporary files are made readable by their owner only.
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(&codec::encode(self)?)?;
            file.as_file().sync_all()?;
            failpoints::hit(Point::IdentityRenameBefore);
            file.persist(&path)?;
            failpoints::hit(Point::IdentityRenameAfter);
            std::fs::File::open(folder)?.sync_all()
        };
        write().map_err(|fault| IdentityError::File { path: path.clone(), fault })
    }
}
