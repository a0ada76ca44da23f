//! Join tokens: `rj_<id>_<secret>_<fingerprint>`. The fingerprint is of the cluster's authority, so that the node that joins knows whom it talks to; the
//! secret lets it in, once.

use ragged_raft::meta::node::JoinToken as TokenRow;
use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};

/// Longest text that is looked at as a token.
const TOKEN_BYTES_MAX: usize = 256;

/// A join token as an operator passes it on. Its secret is never logged.
#[derive(Clone)]
pub struct JoinToken {
    id: String,
    secret: String,
    fingerprint: String,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

/// Why a token could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It does not look like one.
    #[error("a join token looks like rj_<id>_<secret>_<fingerprint>; `ragged cluster token` makes one")]
    Malformed,
    /// The system gave no random bits.
    #[error("the system's random number generator failed: {0}")]
    NoRandomness(String),
}

impl JoinToken {
    /// A new token of the cluster whose authority has this certificate.
    pub fn generate(authority: &[u8]) -> Result<JoinToken, TokenError> {
        Ok(JoinToken { id: random_hex(8)?, secret: random_hex(32)?, fingerprint: hex(&fingerprint(authority)) })
    }

    /// Reads one.
    pub fn parse(text: &str) -> Result<JoinToken, TokenError> {
        let text = text.trim();
        let parts: Vec<&str> = text.strip_prefix("rj_").unwrap_or_default().split('_').collect();
        let is_hex = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        match parts.as_slice() {
            [id, secret, fingerprint] if text.len() <= TOKEN_BYTES_MAX && parts.iter().all(is_hex) && fingerprint.len() == 64 => {
                Ok(JoinToken { id: (*id).into(), secret: (*secret).into(), fingerprint: (*fingerprint).into() })
            }
            _ => Err(TokenError::Malformed),
        }
    }

    /// The whole token, for its one use.
    pub fn reveal(&self) -> String {
        format!("rj_{}_{}_{}", self.id, self.secret, self.fingerprint)
    }

    /// The public part.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// SHA-256 of the secret part: all that leaves the node that joins, and all that is stored.
    pub fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_bytes()).into()
    }

    /// Whether this certificate is the one of the cluster's authority.
    pub fn is_of(&self, authority: &[u8]) -> bool {
        self.fingerprint.eq_ignore_ascii_case(&hex(&fingerprint(authority)))
    }

    /// What is stored of it.
    pub fn row(&self, expires_at_ms: u64) -> TokenRow {
        TokenRow { id: self.id.clone(), secret_sha256: self.secret_row(), expires_at_ms }
    }

    /// What is compared: the hash of what is presented, which is a hash itself, so that reading the rows lets nobody in.
    fn secret_row(&self) -> [u8; 32] {
        presented(&self.secret_sha256())
    }
}

/// What is stored of a presented secret.
pub fn presented(secret_sha256: &[u8; 32]) -> [u8; 32] {
    Sha256::digest(secret_sha256).into()
}

fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

fn random_hex(bytes: usize) -> Result<String, TokenError> {
    let mut random = vec![0u8; bytes];
    OsRng.try_fill_bytes(&mut random).map_err(|fault| TokenError::NoRandomness(fault.to_string()))?;
    Ok(hex(&random))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_garbage_does_not_parse() {
        let token = JoinToken::generate(b"authority").unwrap();
        let read = JoinToken::parse(&token.reveal()).unwrap();
        assert!(read.is_of(b"authority") && !read.is_of(b"another"));
        assert_eq!(read.row(1).secret_sha256, presented(&token.secret_sha256()));
        assert!(!format!("{token:?}").contains(&token.secret));
        for garbage in ["", "rj_", "rj_a_b", "rj_a_b_c", "rk_aa_bb_cc", &token.reveal()[1..], &format!("{}00", token.reveal())] {
            assert!(JoinToken::parse(garbage).is_err(), "{garbage}");
        }
    }
}
