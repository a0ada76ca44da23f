//! What a shard replica reads from its rows to answer requests. Every call blocks.

use crate::error::ServiceError;
use crate::shard::content_cache::{ContentCache, RowPlace};
use crate::shard::request::{ChunkContent, StoredDocument};
use ragged_raft::ids::{CollectionId, RowId, TenantId};
use ragged_raft::shard::reader::ShardReader;
use ragged_raft::shard::rows::DocumentHead;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Bytes of texts and metadata that the hits of one shard may hold; more are refused.
const HITS_BYTES_MAX: usize = 64 << 20;
/// Bytes of texts after which a page of documents ends.
const PAGE_TEXT_BYTES: usize = 16 << 20;

/// Reads what hits of a partition show.
pub(super) struct ContentReader<'a> {
    /// Reads the shard's rows.
    pub(super) reader: &'a ShardReader,
    /// What was read before.
    pub(super) cache: &'a ContentCache,
    /// Whose the partition is.
    pub(super) tenant: TenantId,
    /// Its collection.
    pub(super) collection: CollectionId,
}

impl ContentReader<'_> {
    /// Contents of rows, in the order asked for; none for those that are gone.
    pub(super) fn read(&self, rows: &[RowId]) -> Result<Vec<Option<Arc<ChunkContent>>>, ServiceError> {
        // Asked for before anything is read: rows that are read after the space has changed are kept for the one before, which nobody asks for again.
        let space = self.reader.space();
        let place = |row: RowId| RowPlace { space, tenant: self.tenant, collection: self.collection, row };
        let mut contents: Vec<Option<Arc<ChunkContent>>> = rows.iter().map(|row| self.cache.get(&place(*row))).collect();
        let unknown: Vec<usize> = (0..rows.len()).filter(|number| contents[*number].is_none()).collect();
        self.cache.count(rows.len() - unknown.len(), unknown.len());
        if !unknown.is_empty() {
            let read = self.read_rows(&unknown.iter().map(|number| rows[*number]).collect::<Vec<RowId>>())?;
            for (number, content) in unknown.into_iter().zip(read) {
                contents[number] = content.map(Arc::new);
                if let Some(content) = &contents[number] {
                    self.cache.keep(place(rows[number]), content);
                }
            }
        }
        if contents.iter().flatten().map(|content| content.bytes()).sum::<usize>() > HITS_BYTES_MAX {
            return Err(too_large());
        }
        Ok(contents)
    }

    fn read_rows(&self, rows: &[RowId]) -> Result<Vec<Option<ChunkContent>>, ServiceError> {
        let (tenant, collection) = (self.tenant, self.collection);
        let owners = self.reader.owners(tenant, collection, rows)?;
        let texts = self.reader.chunks(tenant, collection, rows)?;
        let documents: BTreeSet<&str> = owners.iter().flatten().map(|owner| owner.document_id.as_str()).collect();
        let documents: Vec<&str> = documents.into_iter().collect();
        let heads = self.reader.heads_of(tenant, collection, &documents)?;
        let heads: HashMap<String, DocumentHead> = heads.into_iter().flatten().map(|head| (head.id.clone(), head)).collect();
        let mut bytes = 0;
        let mut contents = Vec::with_capacity(rows.len());
        for ((owner, text), row) in owners.into_iter().zip(texts).zip(rows) {
            let (Some(owner), Some(text)) = (owner, text) else {
                contents.push(None);
                continue;
            };
            // A row that the head does not name is of a version that was replaced while this was read.
            let head = heads.get(&owner.document_id).filter(|head| head.has(*row));
            bytes += text.text.len() + head.map_or(0, |head| head.metadata.len());
            if bytes > HITS_BYTES_MAX {
                return Err(too_large());
            }
            contents.push(head.map(|head| ChunkContent {
                owner,
                text,
                title: head.title.clone(),
                metadata: head.metadata.clone(),
            }));
        }
        Ok(contents)
    }
}

fn too_large() -> ServiceError {
    let detail = format!("limit: the hits hold more than {} MiB, ask for fewer at once", HITS_BYTES_MAX >> 20);
    ServiceError::invalid("answer_too_large", detail)
}

/// Documents in the order of their ids, after the given one.
pub(super) fn read_documents(
    reader: &ShardReader,
    tenant: TenantId,
    collection: CollectionId,
    after: Option<&str>,
    limit: usize,
    with_text: bool,
) -> Result<Vec<StoredDocument>, ServiceError> {
    let (mut documents, mut bytes) = (Vec::new(), 0);
    let mut after = after.map(str::to_owned);
    // More than once when documents are deleted meanwhile: a page that is not full says that nothing follows.
    while documents.len() < limit {
        let heads = reader.heads(tenant, collection, after.as_deref(), limit - documents.len())?;
        let Some(last) = heads.last() else { break };
        after = Some(last.id.clone());
        for head in heads {
            if !with_text || bytes >= PAGE_TEXT_BYTES {
                documents.push(StoredDocument { head, text: None });
            } else if let Some(document) = read_document(reader, tenant, collection, &head.id)? {
                bytes += document.text.as_ref().map_or(0, String::len);
                documents.push(document);
            }
        }
    }
    Ok(documents)
}

/// A document with its text, both of one version.
pub(super) fn read_document(
    reader: &ShardReader,
    tenant: TenantId,
    collection: CollectionId,
    id: &str,
) -> Result<Option<StoredDocument>, ServiceError> {
    let mut head = reader.head(tenant, collection, id)?;
    while let Some(before) = head {
        let text = reader.text(tenant, collection, id)?;
        head = reader.head(tenant, collection, id)?;
        if head.as_ref().is_some_and(|now| now.first_row == before.first_row) {
            return Ok(Some(StoredDocument { head: before, text }));
        }
    }
    Ok(None)
}
