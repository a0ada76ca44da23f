//! Streams between nodes: TLS 1.3 with certificates of one authority on both sides, the cluster's own or the operator's. A node that joins has none yet; it is let as far as asking to.

use crate::cluster::authority::node_name;
use crate::cluster::identity::NodeIdentity;
use crate::cluster::token::JoinToken;
use ragged_raft::ids::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime};
use std::path::PathBuf;
use std::sync::Arc;

/// What both sides must speak: a node of another protocol version is refused in the handshake.
pub const PROTOCOL: &[u8] = b"ragged-cluster/2";

/// Why a stream cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// TLS.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A certificate or key cannot be read.
    #[error("a certificate or key cannot be read: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// A file with certificates or a key.
    #[error("{path} cannot be read as PEM: {fault}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        fault: rustls_pki_types::pem::Error,
    },
    /// The verifier.
    #[error("the authority's certificate cannot be used: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A certificate of PEM.
pub fn certificate(pem: &str) -> Result<CertificateDer<'static>, TlsError> {
    Ok(CertificateDer::from_pem_slice(pem.as_bytes())?)
}

/// The operator's own certificates, as PEM files: read when the node starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The node's certificate and those between it and the authority's, for the host that other nodes dial.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority's certificates: whoever has one of theirs is a node of the cluster.
    pub authority: PathBuf,
}

/// What a node shows others, and whom it trusts.
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    naming: Naming,
}

/// What a certificate names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// A node, for which the cluster has issued it.
    Node,
    /// The host that is dialled, as is usual: which node it is, the node says.
    Host,
}

impl Credentials {
    /// Those that the cluster has issued.
    pub fn of_cluster(identity: &NodeIdentity) -> Result<Credentials, TlsError> {
        let authority = certificate(&identity.authority_pem)?;
        Ok(Credentials {
            // The authority's own is sent as well: a node that joins knows it by its fingerprint only.
            chain: vec![certificate(&identity.certificate_pem)?, authority.clone()],
            key: PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())?,
            roots: roots([authority])?,
            naming: Naming::Node,
        })
    }

    /// The operator's.
    pub fn of_files(files: &CertificateFiles) -> Result<Credentials, TlsError> {
        let unreadable = |path: &PathBuf| {
            let path = path.clone();
            move |fault| TlsError::File { path, fault }
        };
        let all = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>, TlsError> {
            let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unreadable(path))?.collect();
            match read.map_err(unreadable(path))? {
                none if none.is_empty() => Err(unreadable(path)(rustls_pki_types::pem::Error::NoItemsFound)),
                some => Ok(some),
            }
        };
        Ok(Credentials {
            chain: all(&files.certificate)?,
            key: PrivateKeyDer::from_pem_file(&files.key).map_err(unreadable(&files.key))?,
            roots: roots(all(&files.authority)?)?,
            naming: Naming::Host,
        })
    }

    /// For the side that is dialled. Whoever shows no certificate is let in too, and may only ask to join.
    pub fn server(&self) -> Result<ServerConfig, TlsError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider()).allow_unauthenticated().build()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(config)
    }

    /// For the side that dials, as a member.
    pub fn client(&self) -> Result<ClientConfig, TlsError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(config)
    }

    /// For a node that joins a cluster with the operator's certificates: it shows none yet.
    pub fn joining_client(&self) -> Result<ClientConfig, TlsError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(config)
    }

    /// The name that the certificate of a node at this address must be for.
    pub fn server_name(&self, node: NodeId, address: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
        match self.naming {
            Naming::Node => ServerName::try_from(node_name(node)),
            Naming::Host => host_name(address),
        }
    }

    /// Whether a certificate, which has been verified, may be this node's.
    pub fn may_be_of(&self, certificate: &CertificateDer<'_>, node: NodeId) -> bool {
        self.naming == Naming::Host || is_of(certificate, node)
    }
}

/// The host of `HOST:PORT`.
pub fn host_name(address: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
}

fn roots(authorities: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    authorities.into_iter().try_for_each(|authority| roots.add(authority))?;
    Ok(Arc::new(roots))
}

/// For a node that joins: it trusts whoever shows a certificate of the authority that its token names.
pub fn joining_client(token: &JoinToken) -> Result<ClientConfig, TlsError> {
    let verifier = Arc::new(ByFingerprint { token: token.clone(), provider: provider() });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // the verifier below is stricter than the usual one: one authority, known by its hash
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

fn is_of(certificate: &CertificateDer<'_>, node: NodeId) -> bool {
    let Ok(name) = ServerName::try_from(node_name(node)) else { return false };
    webpki::EndEntityCert::try_from(certificate).is_ok_and(|found| found.verify_is_valid_for_subject_name(&name).is_ok())
}

/// Trusts the authority of a join token.
#[derive(Debug)]
struct ByFingerprint {
    token: JoinToken,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = intermediates.iter().find(|one| self.token.is_of(one)).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&ParsedCertificate::try_from(end_entity)?, &roots, &[], now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
