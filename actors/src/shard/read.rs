//! What a shard replica reads from its rows to answer requests. Every call blocks.

use crate::error::ServiceError;
use crate::shard::request::{ChunkContent, StoredDocument};
use ragged_raft::ids::{CollectionId, RowId, TenantId};
use ragged_raft::shard::reader::ShardReader;
use ragged_raft::shard::rows::{DocumentHead, RowOwner};
use std::collections::{BTreeSet, HashMap};

/// Bytes of texts and metadata that the hits of one shard may hold; more are refused.
const HITS_BYTES_MAX: usize = 64 << 20;
/// Bytes of texts after which a page of documents ends.
const PAGE_TEXT_BYTES: usize = 16 << 20;

/// Contents of chunks, in the order asked for; none for those that are gone.
pub(super) fn read_chunks(
    reader: &ShardReader,
    tenant: TenantId,
    collection: CollectionId,
    rows: &[RowId],
) -> Result<Vec<Option<ChunkContent>>, ServiceError> {
    let owners = reader.owners(tenant, collection, rows)?;
    read_chunks_of(reader, tenant, collection, rows, owners)
}

/// The same for rows whose owners are known.
pub(super) fn read_chunks_of(
    reader: &ShardReader,
    tenant: TenantId,
    collection: CollectionId,
    rows: &[RowId],
    owners: Vec<Option<RowOwner>>,
) -> Result<Vec<Option<ChunkContent>>, ServiceError> {
    let texts = reader.chunks(tenant, collection, rows)?;
    let documents: BTreeSet<&str> = owners.iter().flatten().map(|owner| owner.document_id.as_str()).collect();
    let documents: Vec<&str> = documents.into_iter().collect();
    let heads: HashMap<String, DocumentHead> =
        reader.heads_of(tenant, collection, &documents)?.into_iter().flatten().map(|head| (head.id.clone(), head)).collect();
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
            let detail = format!("limit: the hits hold more than {} MiB, ask for fewer at once", HITS_BYTES_MAX >> 20);
            return Err(ServiceError::invalid("answer_too_large", detail));
        }
        contents.push(head.map(|head| ChunkContent { owner, text, title: head.title.clone(), metadata: head.metadata.clone() }));
    }
    Ok(contents)
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
