//! How a new node gets into a cluster: it asks a member, with a token that an operator made.

use crate::cluster::authority::{self, CertificateError};
use crate::cluster::connection::Asker;
use crate::cluster::identity::NodeIdentity;
use crate::cluster::tls::{self, CertificateFiles, Credentials, TlsError};
use crate::cluster::token::{JoinToken, TokenError};
use crate::cluster::wire::{JOIN_PATH, JoinAnswer, JoinRequest};
use crate::error::ServiceError;
use ragged_raft::codec;
use ragged_raft::ids::{NodeId, ReplicaId};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long the seed may take to show who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long joining may take.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How to join.
#[derive(Debug, Clone)]
pub struct Joining {
    /// `HOST:PORT` of a member's cluster port.
    pub seed: String,
    /// The token, as text.
    pub token: String,
    /// The operator's certificates, when the cluster uses these: then they say whom to trust, and not the token.
    pub certificates: Option<CertificateFiles>,
}

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The seed does not answer.
    #[error("{seed} does not answer as a cluster port: {why}")]
    Unreachable {
        /// The seed.
        seed: String,
        /// Why.
        why: String,
    },
    /// The seed's certificate is of another cluster.
    #[error("{seed} is not of the cluster that made the token, or speaks another protocol: {why}")]
    WrongCluster {
        /// The seed.
        seed: String,
        /// What TLS said.
        why: String,
    },
    /// The cluster refused.
    #[error("the cluster does not let this node join: {0}")]
    Refused(ServiceError),
    /// The node's key.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Joins, and returns who this node is from now on.
pub async fn join(joining: &Joining, node: NodeId, address: &str, meta_replica: ReplicaId) -> Result<NodeIdentity, JoinError> {
    let unreachable = |why: String| JoinError::Unreachable { seed: joining.seed.clone(), why };
    let late = |_| unreachable(format!("no answer within {JOIN_TIMEOUT:?}"));
    tokio::time::timeout(JOIN_TIMEOUT, ask(joining, node, address, meta_replica)).await.map_err(late)?
}

async fn ask(joining: &Joining, node: NodeId, address: &str, meta_replica: ReplicaId) -> Result<NodeIdentity, JoinError> {
    let seed = joining.seed.clone();
    let unreachable = |why: String| JoinError::Unreachable { seed: seed.clone(), why };
    let token = JoinToken::parse(&joining.token)?;
    let key = authority::request()?;
    let late = |_| unreachable(format!("no handshake within {HANDSHAKE_TIMEOUT:?}"));
    let connected = tokio::time::timeout(HANDSHAKE_TIMEOUT, TcpStream::connect(&joining.seed)).await.map_err(late)?;
    let stream = connected.map_err(|fault| unreachable(fault.to_string()))?;
    let (trust, name) = match &joining.certificates {
        Some(files) => (Credentials::of_files(files)?.joining_client()?, tls::host_name(&joining.seed)),
        None => (tls::joining_client(&token)?, tls::host_name("ragged.internal")), // any name: the authority decides
    };
    let connector = TlsConnector::from(Arc::new(trust));
    let name = name.map_err(|fault| unreachable(fault.to_string()))?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, connector.connect(name, stream)).await.map_err(late)?;
    let stream = stream.map_err(|fault| JoinError::WrongCluster { seed: seed.clone(), why: fault.to_string() })?;
    let asker = Asker::open(stream).await.map_err(|fault| unreachable(fault.to_string()))?;
    let request = JoinRequest {
        token_id: token.id().to_owned(),
        secret_sha256: token.secret_sha256(),
        node,
        address: address.to_owned(),
        meta_replica,
        key_request: key.request,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let frame = codec::encode(&request).map_err(|fault| unreachable(fault.to_string()))?;
    let answer = asker.ask(JOIN_PATH, frame).await.map_err(|fault| unreachable(fault.to_string()))?;
    let answer: Result<JoinAnswer, ServiceError> = codec::decode(&answer).map_err(|fault| unreachable(fault.to_string()))?;
    let JoinAnswer { cluster, shard_count, authority_pem, certificate_pem } = answer.map_err(JoinError::Refused)?;
    Ok(NodeIdentity { cluster, node, shard_count, authority_pem, certificate_pem, key_pem: key.key_pem })
}
