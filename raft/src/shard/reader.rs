//! Reads a shard replica's rows. Every call reads the database and may block; scans do so for long and belong on blocking threads.

use crate::codec;
use crate::ids::{CollectionId, ReplicaId, RowId, TenantId};
use crate::keys::{RowKind, SUFFIX_AT, Scope, end_of};
use crate::shard::rows::{ChunkText, DocumentHead, JobRow, PartitionRow, RowOwner};
use crate::store::{ReadError, Space, Store};
use half::f16;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use ulid::Ulid;

/// First byte of a vector's value.
pub(crate) const VECTOR_VERSION: u8 = 1;

/// Reads the rows of one shard replica.
#[derive(Clone)]
pub struct ShardReader {
    store: Arc<Store>,
    space: Arc<Space>,
}

impl ShardReader {
    /// A reader of this replica's rows.
    pub fn new(store: Arc<Store>, replica: ReplicaId) -> Self {
        let space = store.space(replica);
        ShardReader { store, space }
    }

    /// The space that the rows are in at this moment.
    pub fn space(&self) -> u64 {
        self.space.id()
    }

    fn scope(&self, tenant: TenantId, collection: CollectionId) -> Scope {
        Scope::partition(self.space.id(), tenant, collection)
    }

    /// A partition's counters; none when nothing was ever written to it.
    pub fn partition(&self, tenant: TenantId, collection: CollectionId) -> Result<Option<PartitionRow>, ReadError> {
        self.store.row(&self.scope(tenant, collection).key(RowKind::Partition, b""))
    }

    /// A document but its text.
    pub fn head(&self, tenant: TenantId, collection: CollectionId, id: &str) -> Result<Option<DocumentHead>, ReadError> {
        self.store.row(&self.scope(tenant, collection).key(RowKind::Head, id.as_bytes()))
    }

    /// A document's text.
    pub fn text(&self, tenant: TenantId, collection: CollectionId, id: &str) -> Result<Option<String>, ReadError> {
        self.store.row(&self.scope(tenant, collection).key(RowKind::Text, id.as_bytes()))
    }

    /// Documents in the order of their ids, after the given one.
    pub fn heads(
        &self,
        tenant: TenantId,
        collection: CollectionId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DocumentHead>, ReadError> {
        let prefix = self.scope(tenant, collection).key(RowKind::Head, b"");
        let mut from = [prefix.as_slice(), after.unwrap_or_default().as_bytes()].concat();
        if after.is_some() {
            from.push(0); // the first key after that of `after`
        }
        self.store.scan(&from, end_of(&prefix)).take(limit).map(|row| Ok(codec::decode(&row?.1)?)).collect()
    }

    /// Whose a row is; none when it is gone.
    pub fn owner(&self, tenant: TenantId, collection: CollectionId, row: RowId) -> Result<Option<RowOwner>, ReadError> {
        self.store.row(&self.scope(tenant, collection).row_key(RowKind::Owner, row))
    }

    /// Whose rows are, in the order asked for; none for those that are gone.
    pub fn owners(&self, tenant: TenantId, collection: CollectionId, rows: &[RowId]) -> Result<Vec<Option<RowOwner>>, ReadError> {
        self.many(tenant, collection, RowKind::Owner, rows)
    }

    /// Chunks' texts, in the order asked for; none for those that are gone.
    pub fn chunks(
        &self,
        tenant: TenantId,
        collection: CollectionId,
        rows: &[RowId],
    ) -> Result<Vec<Option<ChunkText>>, ReadError> {
        self.many(tenant, collection, RowKind::Chunk, rows)
    }

    /// Documents but their texts, in the order asked for; none for those that are gone.
    pub fn heads_of(
        &self,
        tenant: TenantId,
        collection: CollectionId,
        ids: &[&str],
    ) -> Result<Vec<Option<DocumentHead>>, ReadError> {
        let scope = self.scope(tenant, collection);
        let keys: Vec<_> = ids.iter().map(|id| scope.key(RowKind::Head, id.as_bytes())).collect();
        self.store.rows_of(&keys)
    }

    fn many<T: DeserializeOwned>(
        &self,
        tenant: TenantId,
        collection: CollectionId,
        kind: RowKind,
        rows: &[RowId],
    ) -> Result<Vec<Option<T>>, ReadError> {
        let scope = self.scope(tenant, collection);
        let keys: Vec<_> = rows.iter().map(|row| scope.row_key(kind, *row)).collect();
        self.store.rows_of(&keys)
    }

    /// Rows that are there, from `from` up to and without `until`, in order.
    pub fn live_rows(
        &self,
        tenant: TenantId,
        collection: CollectionId,
        from: RowId,
        until: RowId,
    ) -> impl Iterator<Item = Result<RowId, ReadError>> + '_ {
        let scope = self.scope(tenant, collection);
        let first = scope.row_key(RowKind::Owner, from);
        let end = scope.row_key(RowKind::Owner, until.max(from));
        self.store.scan(&first, end).map(|row| row_of(&row?.0))
    }

    /// Rows that are there with whose they are, from `from` up to and without `until`, in order.
    pub fn rows(
        &self,
        tenant: TenantId,
        collection: CollectionId,
        from: RowId,
        until: RowId,
    ) -> impl Iterator<Item = Result<(RowId, RowOwner), ReadError>> + '_ {
        let scope = self.scope(tenant, collection);
        let first = scope.row_key(RowKind::Owner, from);
        let end = scope.row_key(RowKind::Owner, until.max(from));
        self.store.scan(&first, end).map(|row| {
            let (key, frame) = row?;
            Ok((row_of(&key)?, codec::decode(&frame)?))
        })
    }

    /// Chunks' texts of the rows that are there, from `from` up to and without `until`, in order.
    pub fn chunk_range(
        &self,
        tenant: TenantId,
        collection: CollectionId,
        from: RowId,
        until: RowId,
    ) -> impl Iterator<Item = Result<(RowId, ChunkText), ReadError>> + '_ {
        let scope = self.scope(tenant, collection);
        let first = scope.row_key(RowKind::Chunk, from);
        let end = scope.row_key(RowKind::Chunk, until.max(from));
        self.store.scan(&first, end).map(|row| {
            let (key, frame) = row?;
            Ok((row_of(&key)?, codec::decode(&frame)?))
        })
    }

    /// Vectors of a slot for the rows that are there, from `from` up to and without `until`, in order: calls `take` with each.
    pub fn vectors(
        &self,
        tenant: TenantId,
        collection: CollectionId,
        slot: u8,
        from: RowId,
        until: RowId,
        mut take: impl FnMut(RowId, &[f16]),
    ) -> Result<(), ReadError> {
        let scope = self.scope(tenant, collection);
        let first = scope.vector_key(slot, from);
        let end = scope.vector_key(slot, until.max(from));
        let mut vector = Vec::new();
        for row in self.store.scan(&first, end) {
            let (key, value) = row?;
            read_vector(&value, &mut vector)?;
            take(row_of(&key)?, &vector);
        }
        Ok(())
    }

    /// Vectors of a slot for these rows, those that are gone left out: calls `take` with each, in the order asked for.
    pub fn vectors_of(
        &self,
        tenant: TenantId,
        collection: CollectionId,
        slot: u8,
        rows: &[RowId],
        mut take: impl FnMut(RowId, &[f16]),
    ) -> Result<(), ReadError> {
        let scope = self.scope(tenant, collection);
        let keys: Vec<Vec<u8>> = rows.iter().map(|row| scope.vector_key(slot, *row)).collect();
        let mut vector = Vec::new();
        for (row, value) in rows.iter().zip(self.store.db().batched_multi_get_cf(self.store.rows(), &keys, false)) {
            if let Some(value) = value? {
                read_vector(&value, &mut vector)?;
                take(*row, &vector);
            }
        }
        Ok(())
    }

    /// Partitions of this shard in the order of tenant and collection, after the given one. Goes from one to the next without passing over their rows.
    pub fn partitions(
        &self,
        after: Option<(TenantId, CollectionId)>,
        limit: usize,
    ) -> Result<Vec<(TenantId, CollectionId, PartitionRow)>, ReadError> {
        let space = self.space.id();
        let end = end_of(&space.to_be_bytes());
        // What belongs to the replica itself stands before all tenants.
        let (tenant, collection) = after.unwrap_or((TenantId(0), CollectionId(u64::MAX)));
        let mut from = end_of(&self.scope(tenant, collection).prefix());
        let mut partitions = Vec::new();
        while partitions.len() < limit && from < end {
            let Some(row) = self.store.scan(&from, end.clone()).next() else { break };
            let (key, _) = row?;
            let (tenant, collection) = place_of(&key)?;
            let scope = Scope::partition(space, tenant, collection);
            if let Some(row) = self.store.row(&scope.key(RowKind::Partition, b""))? {
                partitions.push((tenant, collection, row));
            }
            from = end_of(&scope.prefix());
        }
        Ok(partitions)
    }

    /// A job.
    pub fn job(&self, tenant: TenantId, id: Ulid) -> Result<Option<JobRow>, ReadError> {
        self.store.row(&Scope::tenant(self.space.id(), tenant).key(RowKind::Job, &id.to_bytes()))
    }

    /// Jobs older than the given one, newest first.
    pub fn jobs(&self, tenant: TenantId, before: Option<Ulid>, limit: usize) -> Result<Vec<JobRow>, ReadError> {
        let prefix = Scope::tenant(self.space.id(), tenant).key(RowKind::Job, b"");
        let from = match before {
            Some(id) => [prefix.as_slice(), &id.to_bytes()].concat(),
            None => end_of(&prefix),
        };
        self.store.scan_back(&from, prefix).take(limit).map(|row| Ok(codec::decode(&row?.1)?)).collect()
    }

    /// What was uploaded for a job; none when it has been forgotten.
    pub fn job_payload(&self, tenant: TenantId, id: Ulid) -> Result<Option<Vec<u8>>, ReadError> {
        self.store.row(&Scope::tenant(self.space.id(), tenant).key(RowKind::Payload, &id.to_bytes()))
    }

    /// Jobs of all tenants that are not finished.
    pub fn unfinished_jobs(&self) -> Result<Vec<(TenantId, Ulid)>, ReadError> {
        let prefix = Scope::replica(self.space.id()).key(RowKind::Unfinished, b"");
        let malformed = ReadError::Malformed("a job's key has another length than is written");
        let parse = |key: &[u8]| {
            let tenant = u64::from_be_bytes(key.get(..8)?.try_into().ok()?);
            let id: [u8; 16] = key.get(8..)?.try_into().ok()?;
            Some((TenantId(tenant), Ulid::from_bytes(id)))
        };
        let mut jobs = Vec::new();
        for row in self.store.scan(&prefix, end_of(&prefix)) {
            match parse(&row?.0[SUFFIX_AT..]) {
                Some(job) => jobs.push(job),
                None => return Err(malformed),
            }
        }
        Ok(jobs)
    }
}

/// The row that a key ends with.
fn row_of(key: &[u8]) -> Result<RowId, ReadError> {
    let last = key.last_chunk::<4>().ok_or(ReadError::Malformed("a row's key is too short"))?;
    Ok(RowId(u32::from_be_bytes(*last)))
}

/// The tenant and the collection of a row's key.
fn place_of(key: &[u8]) -> Result<(TenantId, CollectionId), ReadError> {
    let part = |at: usize| Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
    match (part(8), part(16)) {
        (Some(tenant), Some(collection)) => Ok((TenantId(tenant), CollectionId(collection))),
        _ => Err(ReadError::Malformed("a row's key is too short")),
    }
}

/// A vector's value: a version and f16 in little endian.
fn read_vector(value: &[u8], vector: &mut Vec<f16>) -> Result<(), ReadError> {
    let Some((&VECTOR_VERSION, bytes)) = value.split_first() else {
        return Err(ReadError::Malformed("a vector of unknown version"));
    };
    if bytes.len() % 2 != 0 {
        return Err(ReadError::Malformed("a vector of odd length"));
    }
    vector.clear();
    vector.extend(bytes.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]])));
    Ok(())
}
