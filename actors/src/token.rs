//! Write tokens: opaque to clients, they name the log index that each touched shard must have applied for the write to be seen.

use crate::error::ServiceError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ragged_raft::codec;
use ragged_raft::ids::ShardId;
use std::collections::BTreeMap;

/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 8192;

/// The log index of a write, by shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteToken(BTreeMap<ShardId, u64>);

impl WriteToken {
    /// Adds a write.
    pub fn add(&mut self, shard: ShardId, index: u64) {
        let seen = self.0.entry(shard).or_default();
        *seen = (*seen).max(index);
    }

    /// Adds another token's writes.
    pub fn merge(&mut self, other: &WriteToken) {
        other.0.iter().for_each(|(shard, index)| self.add(*shard, *index));
    }

    /// The index that a shard must have applied.
    pub fn index(&self, shard: ShardId) -> Option<u64> {
        self.0.get(&shard).copied()
    }

    /// As text for the client.
    pub fn reveal(&self) -> Result<String, ServiceError> {
        let pairs: Vec<(u16, u64)> = self.0.iter().map(|(shard, index)| (shard.0, *index)).collect();
        let frame = codec::encode(&pairs).map_err(|fault| ServiceError::internal(fault.to_string()))?;
        Ok(URL_SAFE_NO_PAD.encode(frame))
    }

    /// Reads what a client gives back.
    pub fn parse(text: &str) -> Result<WriteToken, ServiceError> {
        let invalid = || ServiceError::invalid("invalid_token", "token: is not one that a write of this cluster returned");
        if text.len() > TOKEN_BYTES_MAX {
            return Err(invalid());
        }
        let frame = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        let pairs: Vec<(u16, u64)> = codec::decode(&frame).map_err(|_| invalid())?;
        Ok(WriteToken(pairs.into_iter().map(|(shard, index)| (ShardId(shard), index)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_garbage_does_not_parse() {
        let mut token = WriteToken::default();
        token.add(ShardId(3), 7);
        token.add(ShardId(3), 5);
        token.add(ShardId(200), u64::MAX);
        let text = token.reveal().unwrap();
        assert_eq!(WriteToken::parse(&text).unwrap(), token);
        assert_eq!(token.index(ShardId(3)), Some(7));
        for garbage in ["", "!", "AAAA", &text[1..], &format!("{text}A")] {
            assert_eq!(WriteToken::parse(garbage).unwrap_err().code, "invalid_token");
        }
    }
}
