//! API keys: `rk_<id>_<secret>`. The id is public, the secret is 256 random bits, of which only the SHA-256 is stored.

use ragged_raft::ids::TenantId;
use ragged_raft::meta::command::{KeyRecord, Role};
use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};
use std::fmt;
use subtle::ConstantTimeEq;

/// Longest text that is looked at as a key.
const KEY_BYTES_MAX: usize = 256;

/// A key as a client presents it. Its secret is never printed.
#[derive(Clone)]
pub struct ApiKey {
    id: String,
    secret: String,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({})", self.id)
    }
}

/// Why a key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It does not look like a key.
    #[error("a key looks like rk_<id>_<secret>")]
    Malformed,
    /// The system gave no random bits.
    #[error("the system's random number generator failed: {0}")]
    NoRandomness(String),
}

impl ApiKey {
    /// A new random key.
    pub fn generate() -> Result<ApiKey, KeyError> {
        Ok(ApiKey { id: random_hex(8)?, secret: random_hex(32)? })
    }

    /// Reads `rk_<id>_<secret>`.
    pub fn parse(text: &str) -> Result<ApiKey, KeyError> {
        if text.len() > KEY_BYTES_MAX {
            return Err(KeyError::Malformed);
        }
        let (id, secret) = text.trim().strip_prefix("rk_").and_then(|rest| rest.split_once('_')).ok_or(KeyError::Malformed)?;
        let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex(id) || !is_hex(secret) {
            return Err(KeyError::Malformed);
        }
        Ok(ApiKey { id: id.to_owned(), secret: secret.to_owned() })
    }

    /// The public part.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole key, to be handed to its owner once.
    pub fn reveal(&self) -> String {
        format!("rk_{}_{}", self.id, self.secret)
    }

    /// What is stored of it.
    pub fn record(&self, tenant: TenantId, role: Role, created_at_ms: u64) -> KeyRecord {
        KeyRecord { id: self.id.clone(), secret_sha256: self.digest(), tenant, role, created_at_ms }
    }

    /// Whether it is the key of this record, in a time that does not depend on where they differ.
    pub fn matches(&self, record: &KeyRecord) -> bool {
        self.id == record.id && bool::from(self.digest().ct_eq(&record.secret_sha256))
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_bytes()).into()
    }
}

fn random_hex(bytes: usize) -> Result<String, KeyError> {
    let mut random = vec![0u8; bytes];
    OsRng.try_fill_bytes(&mut random).map_err(|fault| KeyError::NoRandomness(fault.to_string()))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_its_own_record_only() {
        let (one, other) = (ApiKey::generate().unwrap(), ApiKey::generate().unwrap());
        let record = one.record(TenantId(1), Role::Admin, 0);
        assert!(ApiKey::parse(&one.reveal()).unwrap().matches(&record));
        assert!(!other.matches(&record));
        let forged = ApiKey { id: one.id.clone(), secret: other.secret.clone() };
        assert!(!forged.matches(&record));
        assert!(!format!("{one:?}").contains(&one.secret));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "rk_", "rk__", "rk_a_", "sk_a_b", "rk_a b_c", "rk_ab_é", &"rk_a_".repeat(100)] {
            assert!(ApiKey::parse(text).is_err(), "{text}");
        }
    }
}
