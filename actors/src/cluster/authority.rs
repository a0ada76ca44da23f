//! The cluster's own certificate authority: made when a cluster is founded, used whenever a node joins.

use ragged_raft::ids::NodeId;
use ragged_raft::meta::node::Authority;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use ulid::Ulid;

/// Years that certificates are valid from their making. They are not what keeps a removed node out: that is its row.
const YEARS: i32 = 30;

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("a certificate could not be made: {0}")]
pub struct CertificateError(#[from] rcgen::Error);

/// A node's private key, with what it asks to be certified.
pub struct KeyRequest {
    /// The private key, as PEM.
    pub key_pem: String,
    /// The request, as DER.
    pub request: Vec<u8>,
}

/// The name that a node's certificate is for.
pub fn node_name(node: NodeId) -> String {
    format!("node-{}.ragged.internal", node.0)
}

/// A new authority for a cluster.
pub fn found(cluster: Ulid) -> Result<Authority, CertificateError> {
    let key = KeyPair::generate()?;
    let mut params = valid(CertificateParams::new(Vec::new())?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, format!("ragged cluster {cluster}"));
    let certificate = params.self_signed(&key)?;
    Ok(Authority { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

/// A new key for a node, which never leaves it.
pub fn request() -> Result<KeyRequest, CertificateError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::new(Vec::new())?.serialize_request(&key)?;
    Ok(KeyRequest { key_pem: key.serialize_pem(), request: request.der().to_vec() })
}

/// Certifies that a key is the node's. Nothing but the key is taken from the request.
pub fn issue(authority: &Authority, node: NodeId, request: &[u8]) -> Result<String, CertificateError> {
    let key = KeyPair::from_pem(&authority.key_pem)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate_pem, key)?;
    let mut asked = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
    let mut params = valid(CertificateParams::new(Vec::new())?);
    params.subject_alt_names = vec![SanType::DnsName(node_name(node).try_into()?)];
    params.distinguished_name.push(DnType::CommonName, node_name(node));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    asked.params = params;
    Ok(asked.signed_by(&issuer)?.pem())
}

fn valid(mut params: CertificateParams) -> CertificateParams {
    let now = time::OffsetDateTime::now_utc();
    // Clocks differ: valid since yesterday.
    params.not_before = now - time::Duration::DAY;
    params.not_after =
        now.replace_day(1).and_then(|day| day.replace_year(now.year() + YEARS)).unwrap_or(now + time::Duration::weeks(1_500));
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_none_is_refused() {
        let authority = found(Ulid::new()).unwrap();
        let asked = request().unwrap();
        assert!(issue(&authority, NodeId(7), &asked.request).unwrap().contains("BEGIN CERTIFICATE"));
        assert!(issue(&authority, NodeId(7), b"garbage").is_err());
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }
}
