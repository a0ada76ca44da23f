//! Streams between nodes: TLS 1.3 with certificates of the cluster's authority on both sides. A node that joins has none yet; it is let as far as asking to.

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
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::sync::Arc;

/// What both sides must speak: a node of another protocol version is refused in the handshake.
pub const PROTOCOL: &[u8] = b"ragged-cluster/1";

/// Why a stream cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// TLS.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A certificate or key cannot be read.
    #[error("a certificate or key cannot be read: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
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

fn chain(identity: &NodeIdentity) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    // The authority's own is sent as well: a node that joins knows it by its fingerprint only.
    Ok(vec![certificate(&identity.certificate_pem)?, certificate(&identity.authority_pem)?])
}

fn key(identity: &NodeIdentity) -> Result<PrivateKeyDer<'static>, TlsError> {
    Ok(PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())?)
}

fn roots(authority: CertificateDer<'static>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    Ok(Arc::new(roots))
}

/// For the side that is dialled. Whoever shows no certificate is let in too, and may only ask to join.
pub fn server(identity: &NodeIdentity) -> Result<ServerConfig, TlsError> {
    let roots = roots(certificate(&identity.authority_pem)?)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).allow_unauthenticated().build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(identity)?, key(identity)?)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// For the side that dials, as a member.
pub fn client(identity: &NodeIdentity) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(certificate(&identity.authority_pem)?)?)
        .with_client_auth_cert(chain(identity)?, key(identity)?)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
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

/// The name that a node's certificate must be for.
pub fn server_name(node: NodeId) -> Result<ServerName<'static>, rustls_pki_types::InvalidDnsNameError> {
    ServerName::try_from(node_name(node))
}

/// Whether a certificate, which has been verified, is this node's.
pub fn is_of(certificate: &CertificateDer<'_>, node: NodeId) -> bool {
    let Ok(name) = server_name(node) else { return false };
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
