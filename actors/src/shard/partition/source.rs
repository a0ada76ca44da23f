//! Reads the partition's rows: what everything here is made from.

use super::error::PartitionError;
use super::facts::{Facts, facts};
use crate::shard::content_cache::{ContentCache, RowPlace};
use half::f16;
use ragged_raft::ReadError;
use ragged_raft::ids::{CollectionId, RowId, TenantId};
use ragged_raft::shard::reader::ShardReader;
use ragged_raft::shard::rows::{DocumentHead, PartitionRow, RowOwner};
use roaring::RoaringBitmap;
use std::sync::Arc;

/// The vector that is indexed.
const SLOT: u8 = 0;
/// Rows whose documents' heads are read at once: one by one they took a twentieth of an import's time.
const ROWS_TOGETHER: usize = 64;

/// One partition's rows.
pub(super) struct RowSource {
    reader: ShardReader,
    tenant: TenantId,
    collection: CollectionId,
    dimension: usize,
    cache: Arc<ContentCache>,
}

/// A chunk with what its document adds to it.
pub(super) struct StoredRow<'a> {
    pub(super) row: u32,
    /// Row of its document's first chunk.
    pub(super) first_row: u32,
    /// Title and text, as they are searched by words.
    pub(super) text: &'a str,
    /// What its document's metadata says.
    pub(super) facts: &'a Facts,
}

impl RowSource {
    pub(super) fn new(
        reader: ShardReader,
        tenant: TenantId,
        collection: CollectionId,
        dimension: usize,
        cache: Arc<ContentCache>,
    ) -> Self {
        RowSource { reader, tenant, collection, dimension, cache }
    }

    /// Length of the vectors.
    pub(super) fn dimension(&self) -> usize {
        self.dimension
    }

    /// The partition's counters; zeros when nothing was ever written to it.
    pub(super) fn counters(&self) -> Result<PartitionRow, ReadError> {
        Ok(self.reader.partition(self.tenant, self.collection)?.unwrap_or_default())
    }

    /// Rows from `from` up to `until` that are there.
    pub(super) fn live_rows(&self, from: u32, until: u32) -> Result<RoaringBitmap, ReadError> {
        let mut live = RoaringBitmap::new();
        for row in self.reader.live_rows(self.tenant, self.collection, RowId(from), RowId(until)) {
            live.insert(row?.0);
        }
        Ok(live)
    }

    /// Calls `take` with every row from `from` up to `until` that is there, and the row of its document's first chunk.
    pub(super) fn each_owner(&self, from: u32, until: u32, mut take: impl FnMut(u32, u32)) -> Result<(), ReadError> {
        for row in self.reader.rows(self.tenant, self.collection, RowId(from), RowId(until)) {
            let (row, owner) = row?;
            take(row.0, row.0.saturating_sub(owner.chunk));
        }
        Ok(())
    }

    /// Whose rows are; none for those that are gone.
    pub(super) fn owners(&self, rows: &[u32]) -> Result<Vec<Option<RowOwner>>, ReadError> {
        let space = self.reader.space();
        let known = |row: RowId| {
            let place = RowPlace { space, tenant: self.tenant, collection: self.collection, row };
            self.cache.get(&place).map(|content| content.owner.clone())
        };
        let mut owners: Vec<Option<RowOwner>> = rows.iter().map(|row| known(RowId(*row))).collect();
        let unknown: Vec<usize> = (0..rows.len()).filter(|number| owners[*number].is_none()).collect();
        let unknown_rows: Vec<RowId> = unknown.iter().map(|number| RowId(rows[*number])).collect();
        if !unknown.is_empty() {
            let read = self.reader.owners(self.tenant, self.collection, &unknown_rows)?;
            unknown.into_iter().zip(read).for_each(|(number, owner)| owners[number] = owner);
        }
        Ok(owners)
    }

    /// Documents in the order of their ids.
    pub(super) fn heads(&self, after: Option<&str>, limit: usize) -> Result<Vec<DocumentHead>, ReadError> {
        self.reader.heads(self.tenant, self.collection, after, limit)
    }

    /// Calls `take` with every row from `from` up to `until` that is there, in order.
    pub(super) fn each_row(
        &self,
        from: u32,
        until: u32,
        mut take: impl FnMut(StoredRow<'_>) -> Result<(), PartitionError>,
    ) -> Result<(), PartitionError> {
        let mut chunks = self.reader.chunk_range(self.tenant, self.collection, RowId(from), RowId(until)).peekable();
        let mut rows = self.reader.rows(self.tenant, self.collection, RowId(from), RowId(until));
        let mut text = String::new();
        loop {
            let some: Vec<(RowId, RowOwner)> = rows.by_ref().take(ROWS_TOGETHER).collect::<Result<_, _>>()?;
            if some.is_empty() {
                return Ok(());
            }
            let by_document = || some.chunk_by(|(_, one), (_, next)| one.document_id == next.document_id);
            let ids: Vec<&str> = by_document().filter_map(|rows| Some(rows.first()?.1.document_id.as_str())).collect();
            let heads = self.reader.heads_of(self.tenant, self.collection, &ids)?;
            for (rows, head) in by_document().zip(heads) {
                let Some(head) = head else { continue };
                let facts = facts(&head.metadata);
                for (row, _) in rows {
                    while chunks.next_if(|chunk| chunk.as_ref().is_ok_and(|(at, _)| at < row)).is_some() {}
                    let Some(chunk) = chunks.next_if(|chunk| chunk.as_ref().map_or(true, |(at, _)| at == row)) else { continue };
                    let (_, chunk) = chunk?;
                    if !head.has(*row) {
                        continue; // it was replaced since the scan began: this row is gone
                    }
                    text.clear();
                    if let Some(title) = &head.title {
                        text.push_str(title);
                        text.push('\n');
                    }
                    text.push_str(&chunk.text);
                    take(StoredRow { row: row.0, first_row: head.first_row.0, text: &text, facts: &facts })?;
                }
            }
        }
    }

    /// Calls `take` with the vector of every row from `from` up to `until` that is there, in order. A vector of another length than the
    /// collection's, which nothing writes, is passed as zeros, so that one such row does not make all others unfindable.
    pub(super) fn each_vector(&self, from: u32, until: u32, mut take: impl FnMut(u32, &[f16])) -> Result<(), ReadError> {
        let zeros = vec![f16::ZERO; self.dimension];
        self.reader.vectors(self.tenant, self.collection, SLOT, RowId(from), RowId(until), |row, vector| {
            if vector.len() == self.dimension {
                take(row.0, vector);
            } else {
                tracing::error!(%row, length = vector.len(), "a stored vector has the wrong length and cannot be found");
                take(row.0, &zeros);
            }
        })
    }
}
