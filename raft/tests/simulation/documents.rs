//! What clients write: documents, each a register with a text.

use ragged_raft::codec;
use ragged_raft::ids::{CollectionId, TenantId};
use ragged_raft::shard::command::{IdempotencyKey, PreparedChunk, PreparedDocument, ShardCommand};
use ragged_raft::shard::rows::{ChunkText, DocumentHead, TextFormat};

pub const TENANT: TenantId = TenantId(1);
pub const COLLECTION: CollectionId = CollectionId(7);

/// What a command does to a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    pub document: String,
    /// None deletes it.
    pub value: Option<String>,
    pub key: Option<[u8; 16]>,
}

impl Effect {
    /// The command that does it.
    pub fn command(&self, at_ms: u64) -> ShardCommand {
        let Some(value) = &self.value else {
            return ShardCommand::Delete { tenant: TENANT, collection: COLLECTION, ids: vec![self.document.clone()], at_ms };
        };
        let idempotency = self.key.map(|key| IdempotencyKey { key, request: key });
        let documents = vec![prepared(&self.document, value)];
        ShardCommand::Upsert { tenant: TENANT, collection: COLLECTION, documents, idempotency, at_ms }
    }
}

/// What a command in a log does.
pub fn effect(command: &[u8]) -> Option<Effect> {
    match codec::decode(command).ok()? {
        ShardCommand::Upsert { documents, idempotency, .. } => {
            let document = documents.into_iter().next()?;
            let key = idempotency.map(|idempotency| idempotency.key);
            Some(Effect { document: document.head.id, value: Some(document.text), key })
        }
        ShardCommand::Delete { ids, .. } => Some(Effect { document: ids.into_iter().next()?, value: None, key: None }),
        _ => None,
    }
}

fn prepared(id: &str, text: &str) -> PreparedDocument {
    let head = DocumentHead::uploaded(id.to_owned(), None, TextFormat::Plain, "{}".into());
    let chunk = ChunkText { start: 0, end: text.len() as u64, text: text.to_owned() };
    PreparedDocument { head, text: text.to_owned(), chunks: vec![PreparedChunk { text: chunk, vectors: vec![vec![0; 4]] }] }
}
