//! What shard commands do to a replica's rows.

use crate::codec;
use crate::failpoints::{self, Point};
use crate::ids::{CollectionId, RowId, TenantId};
use crate::keys::{RowKind, SUFFIX_AT, Scope, end_of};
use crate::machine::Application;
use crate::mutant::{self, Mutant};
use crate::shard::changes::{Changes, PartitionChange};
use crate::shard::command::{IdempotencyKey, PreparedDocument, ShardCommand, ShardReply, Upserted};
use crate::shard::reader::VECTOR_VERSION;
use crate::shard::rows::{DocumentHead, JobRow, PartitionRow, RowOwner};
use crate::store::{Space, Store};
use rocksdb::WriteBatch;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use ulid::Ulid;

/// How long the reply to an idempotent write is kept.
const IDEMPOTENCY_MS: u64 = 24 * 3600 * 1000;
/// Expired replies that one command removes at most: more than one, so that they do not pile up.
const EXPIRED_PER_COMMAND: usize = 8;

/// Applies shard commands.
pub(crate) struct ShardApplication {
    store: Arc<Store>,
    space: Arc<Space>,
    changes: Arc<Changes>,
}

/// What an idempotency key was used for.
#[derive(Debug, Serialize, Deserialize)]
struct IdempotencyRow {
    request: [u8; 16],
    reply: ShardReply,
    at_ms: u64,
}

/// A partition while a command changes it.
struct PartitionWrite<'a> {
    application: &'a ShardApplication,
    scope: Scope,
    row: PartitionRow,
    removed: Vec<RowId>,
    /// The documents that the command names, as it has left them so far; none for those that are not there.
    heads: HashMap<String, Option<DocumentHead>>,
}

impl Application for ShardApplication {
    fn apply(&self, index: u64, command: &[u8], mut batch: WriteBatch) -> io::Result<Vec<u8>> {
        let command: ShardCommand = codec::decode(command)?;
        if mutant::is_on(Mutant::ApplyTwice) {
            let mut first = WriteBatch::default();
            self.change(index, command.clone(), &mut first)?;
            self.store.write(first)?;
        }
        let (reply, change) = self.change(index, command, &mut batch)?;
        if mutant::is_on(Mutant::PurgeBeforeDurable) {
            self.store.db().write_without_wal(batch).map_err(io::Error::other)?;
        } else {
            self.store.write(batch)?;
        }
        failpoints::hit(Point::ShardApplied);
        if let Some((tenant, collection, change)) = change {
            self.changes.note(tenant, collection, &change);
        }
        Ok(codec::encode(&reply)?)
    }

    fn replaced(&self) {
        self.changes.note_replaced();
    }
}

type Change = Option<(TenantId, CollectionId, PartitionChange)>;

impl ShardApplication {
    pub(crate) fn new(store: Arc<Store>, space: Arc<Space>, changes: Arc<Changes>) -> Self {
        ShardApplication { store, space, changes }
    }

    fn change(&self, index: u64, command: ShardCommand, batch: &mut WriteBatch) -> io::Result<(ShardReply, Change)> {
        match command {
            ShardCommand::Upsert { tenant, collection, documents, idempotency, at_ms } => {
                if self.is_dropped(tenant, collection)? {
                    return Ok((ShardReply::CollectionDropped, None));
                }
                if let Some(reply) = self.earlier_reply(tenant, idempotency.as_ref(), at_ms)? {
                    return Ok((reply, None));
                }
                let (reply, change) = self.upsert(index, tenant, collection, documents, at_ms, batch)?;
                if let (Some(key), ShardReply::Upserted(_)) = (idempotency, &reply) {
                    self.remember_reply(tenant, key, &reply, at_ms, batch)?;
                }
                Ok((reply, change))
            }
            ShardCommand::Delete { tenant, collection, ids, .. } => {
                self.delete(index, tenant, collection, ids.iter().map(|id| (id.as_str(), None)), batch)
            }
            ShardCommand::DeleteSeen { tenant, collection, documents } => {
                let seen = documents.iter().map(|(id, first_row)| (id.as_str(), Some(*first_row)));
                self.delete(index, tenant, collection, seen, batch)
            }
            ShardCommand::DropCollection { tenant, collection } => {
                let prefix = Scope::partition(self.space.id(), tenant, collection).prefix();
                batch.delete_range_cf(self.store.rows(), prefix.clone(), end_of(&prefix));
                self.put(batch, self.dropped_key(tenant, collection), &true)?;
                let change = PartitionChange { removed: Vec::new(), next_row: RowId(0), changed_at: index, dropped: true };
                Ok((ShardReply::Done, Some((tenant, collection, change))))
            }
            ShardCommand::PutJob { tenant, job, payload, idempotency } => {
                if let Some(reply) = self.earlier_reply(tenant, idempotency.as_ref(), job.updated_at_ms)? {
                    return Ok((reply, None));
                }
                if !self.is_behind(tenant, &job)? {
                    self.put_job(tenant, &job, payload.as_ref(), batch)?;
                }
                let reply = ShardReply::Job(job.id);
                if let Some(key) = idempotency {
                    self.remember_reply(tenant, key, &reply, job.updated_at_ms, batch)?;
                }
                Ok((reply, None))
            }
            ShardCommand::DeleteJobs { tenant, ids, keep_rows } => {
                ids.iter().for_each(|id| self.delete_job(tenant, *id, keep_rows, batch));
                Ok((ShardReply::Done, None))
            }
        }
    }

    fn dropped_key(&self, tenant: TenantId, collection: CollectionId) -> Vec<u8> {
        Scope::tenant(self.space.id(), tenant).key(RowKind::DroppedPartition, &collection.0.to_be_bytes())
    }

    fn is_dropped(&self, tenant: TenantId, collection: CollectionId) -> io::Result<bool> {
        Ok(self.store.row::<bool>(&self.dropped_key(tenant, collection))?.is_some())
    }

    fn upsert(
        &self,
        index: u64,
        tenant: TenantId,
        collection: CollectionId,
        documents: Vec<PreparedDocument>,
        at_ms: u64,
        batch: &mut WriteBatch,
    ) -> io::Result<(ShardReply, Change)> {
        let ids = documents.iter().map(|document| document.head.id.as_str());
        let mut partition = self.open_partition(tenant, collection, ids)?;
        let chunks: u64 = documents.iter().map(|document| document.chunks.len() as u64).sum();
        if u64::from(partition.row.next_row.0) + chunks >= u64::from(u32::MAX) {
            return Ok((ShardReply::PartitionFull, None));
        }
        let mut upserted = Vec::with_capacity(documents.len());
        for document in documents {
            upserted.push(partition.upsert(document, at_ms, batch)?);
        }
        let change = partition.close(index, batch)?;
        Ok((ShardReply::Upserted(upserted), Some((tenant, collection, change))))
    }

    /// Deletes documents by their ids; where a first row is given, only the version that begins there.
    fn delete<'a>(
        &self,
        index: u64,
        tenant: TenantId,
        collection: CollectionId,
        documents: impl Iterator<Item = (&'a str, Option<RowId>)> + Clone,
        batch: &mut WriteBatch,
    ) -> io::Result<(ShardReply, Change)> {
        let mut partition = self.open_partition(tenant, collection, documents.clone().map(|(id, _)| id))?;
        let mut deleted = 0;
        for (id, first_row) in documents {
            let head = partition.head(id);
            if let Some(head) = head.filter(|head| first_row.is_none_or(|first_row| head.first_row == first_row)) {
                if mutant::is_on(Mutant::DeleteNotDone) {
                    deleted += 1;
                    continue;
                }
                partition.remove(&head, batch);
                partition.row.documents = partition.row.documents.saturating_sub(1);
                deleted += 1;
            }
        }
        if deleted == 0 {
            return Ok((ShardReply::Deleted(0), None));
        }
        let change = partition.close(index, batch)?;
        Ok((ShardReply::Deleted(deleted), Some((tenant, collection, change))))
    }

    /// For a command that names these documents. They are looked up all at once: one by one, that would take longer than anything else that an import's
    /// command does, since most of them are in none of the files that there are.
    fn open_partition<'a>(
        &self,
        tenant: TenantId,
        collection: CollectionId,
        ids: impl Iterator<Item = &'a str>,
    ) -> io::Result<PartitionWrite<'_>> {
        let scope = Scope::partition(self.space.id(), tenant, collection);
        let row = self.store.row(&scope.key(RowKind::Partition, b""))?.unwrap_or_default();
        let ids: Vec<&str> = ids.collect();
        let keys: Vec<Vec<u8>> = ids.iter().map(|id| scope.key(RowKind::Head, id.as_bytes())).collect();
        let heads = ids.iter().map(|id| (*id).to_owned()).zip(self.store.rows_of(&keys)?).collect();
        Ok(PartitionWrite { application: self, scope, row, removed: Vec::new(), heads })
    }

    fn earlier_reply(&self, tenant: TenantId, key: Option<&IdempotencyKey>, at_ms: u64) -> io::Result<Option<ShardReply>> {
        let Some(key) = key.filter(|_| !mutant::is_on(Mutant::ForgetIdempotency)) else { return Ok(None) };
        let row: Option<IdempotencyRow> =
            self.store.row(&Scope::tenant(self.space.id(), tenant).key(RowKind::Idempotency, &key.key))?;
        Ok(row
            .filter(|row| at_ms < row.at_ms.saturating_add(IDEMPOTENCY_MS))
            .map(|row| if row.request == key.request { row.reply } else { ShardReply::IdempotencyConflict }))
    }

    /// Keeps the reply for retries, and removes some that have expired.
    ///
    /// Time is only that of the commands. Records stand in the index under a time that is never before what has been removed already, so
    /// that a scan can begin there: it does not pass over all that was ever deleted.
    fn remember_reply(
        &self,
        tenant: TenantId,
        key: IdempotencyKey,
        reply: &ShardReply,
        at_ms: u64,
        batch: &mut WriteBatch,
    ) -> io::Result<()> {
        failpoints::hit(Point::IdempotencyBefore);
        let replica = Scope::replica(self.space.id());
        let expired_key = replica.key(RowKind::IdempotencyExpired, b"");
        let mut expired_to: u64 = self.store.row(&expired_key)?.unwrap_or(0);
        let at_ms = at_ms.max(expired_to);

        let from = replica.key(RowKind::IdempotencyByTime, &expired_to.to_be_bytes());
        let until = replica.key(RowKind::IdempotencyByTime, &at_ms.saturating_sub(IDEMPOTENCY_MS).to_be_bytes());
        if from < until {
            for row in self.store.scan(&from, until).take(EXPIRED_PER_COMMAND) {
                let (old, _) = row.map_err(io::Error::other)?;
                let (old_at_ms, old_tenant, old_key) = time_key_parts(&old)?;
                let record = Scope::tenant(self.space.id(), old_tenant).key(RowKind::Idempotency, old_key);
                // A key that was used again after it had expired has a younger record, which stays.
                if self.store.row::<IdempotencyRow>(&record)?.is_some_and(|row| row.at_ms == old_at_ms) {
                    batch.delete_cf(self.store.rows(), record);
                }
                batch.delete_cf(self.store.rows(), &old);
                expired_to = old_at_ms;
            }
            self.put(batch, expired_key, &expired_to)?;
        }

        let row = IdempotencyRow { request: key.request, reply: reply.clone(), at_ms };
        self.put(batch, Scope::tenant(self.space.id(), tenant).key(RowKind::Idempotency, &key.key), &row)?;
        let suffix = [&at_ms.to_be_bytes()[..], &tenant.0.to_be_bytes(), &key.key].concat();
        batch.put_cf(self.store.rows(), replica.key(RowKind::IdempotencyByTime, &suffix), b"");
        failpoints::hit(Point::IdempotencyAfter);
        Ok(())
    }

    /// Whether a job's row says already that this attempt has ended, or that a later one was begun: a node that led the shard before may still be at it.
    fn is_behind(&self, tenant: TenantId, job: &JobRow) -> io::Result<bool> {
        let key = Scope::tenant(self.space.id(), tenant).key(RowKind::Job, &job.id.to_bytes());
        let known: Option<JobRow> = self.store.row(&key)?;
        Ok(known.is_some_and(|known| {
            let has_ended = known.attempt == job.attempt && known.stage.is_final() && !job.stage.is_final();
            known.attempt > job.attempt || has_ended
        }))
    }

    fn put_job(&self, tenant: TenantId, job: &JobRow, payload: Option<&Vec<u8>>, batch: &mut WriteBatch) -> io::Result<()> {
        failpoints::hit(Point::JobPutBefore);
        let scope = Scope::tenant(self.space.id(), tenant);
        self.put(batch, scope.key(RowKind::Job, &job.id.to_bytes()), job)?;
        if let Some(payload) = payload {
            self.put(batch, scope.key(RowKind::Payload, &job.id.to_bytes()), payload)?;
        }
        let unfinished = self.unfinished_key(tenant, job.id);
        if job.stage.is_final() || mutant::is_on(Mutant::LoseJobStage) {
            batch.delete_cf(self.store.rows(), unfinished);
        } else {
            batch.put_cf(self.store.rows(), unfinished, b"");
        }
        failpoints::hit(Point::JobPutAfter);
        Ok(())
    }

    fn delete_job(&self, tenant: TenantId, id: Ulid, keep_row: bool, batch: &mut WriteBatch) {
        let scope = Scope::tenant(self.space.id(), tenant);
        batch.delete_cf(self.store.rows(), scope.key(RowKind::Payload, &id.to_bytes()));
        if !keep_row {
            batch.delete_cf(self.store.rows(), scope.key(RowKind::Job, &id.to_bytes()));
            batch.delete_cf(self.store.rows(), self.unfinished_key(tenant, id));
        }
    }

    fn unfinished_key(&self, tenant: TenantId, id: Ulid) -> Vec<u8> {
        let suffix = [&tenant.0.to_be_bytes()[..], &id.to_bytes()].concat();
        Scope::replica(self.space.id()).key(RowKind::Unfinished, &suffix)
    }

    fn put<T: Serialize>(&self, batch: &mut WriteBatch, key: Vec<u8>, value: &T) -> io::Result<()> {
        batch.put_cf(self.store.rows(), key, codec::encode(value)?);
        Ok(())
    }
}

impl PartitionWrite<'_> {
    fn head(&self, id: &str) -> Option<DocumentHead> {
        self.heads.get(id).cloned().flatten()
    }

    /// Takes a document's rows away, but not out of the count of documents.
    fn remove(&mut self, head: &DocumentHead, batch: &mut WriteBatch) {
        let rows = self.application.store.rows();
        batch.delete_cf(rows, self.scope.key(RowKind::Head, head.id.as_bytes()));
        batch.delete_cf(rows, self.scope.key(RowKind::Text, head.id.as_bytes()));
        let chunks = if mutant::is_on(Mutant::DeleteKeepsRows) { 0 } else { head.chunks };
        for row in (head.first_row.0..head.first_row.0 + chunks).map(RowId) {
            batch.delete_cf(rows, self.scope.row_key(RowKind::Owner, row));
            batch.delete_cf(rows, self.scope.row_key(RowKind::Chunk, row));
            for slot in 0..head.vectors {
                batch.delete_cf(rows, self.scope.vector_key(slot, row));
            }
            self.removed.push(row);
        }
        self.row.chunks = self.row.chunks.saturating_sub(u64::from(head.chunks));
        self.heads.insert(head.id.clone(), None);
    }

    fn upsert(&mut self, document: PreparedDocument, at_ms: u64, batch: &mut WriteBatch) -> io::Result<Upserted> {
        let mut head = document.head;
        let before = self.head(&head.id);
        match &before {
            Some(_) if mutant::is_on(Mutant::UpdateKeepsChunks) => {}
            Some(before) => self.remove(before, batch),
            None => self.row.documents += 1,
        }
        head.version = before.as_ref().map_or(1, |before| before.version + 1);
        head.created_at_ms = before.as_ref().map_or(at_ms, |before| before.created_at_ms);
        head.updated_at_ms = at_ms;
        head.chunks = document.chunks.len() as u32;
        head.vectors = document.chunks.first().map_or(0, |chunk| chunk.vectors.len() as u8);
        head.first_row = self.row.next_row;
        let application = self.application;
        application.put(batch, self.scope.key(RowKind::Head, head.id.as_bytes()), &head)?;
        application.put(batch, self.scope.key(RowKind::Text, head.id.as_bytes()), &document.text)?;
        for (number, chunk) in document.chunks.into_iter().enumerate() {
            let row = self.row.next_row;
            self.row.next_row = RowId(row.0 + 1);
            let owner = RowOwner { document_id: head.id.clone(), chunk: number as u32 };
            application.put(batch, self.scope.row_key(RowKind::Owner, row), &owner)?;
            application.put(batch, self.scope.row_key(RowKind::Chunk, row), &chunk.text)?;
            for (slot, mut vector) in chunk.vectors.into_iter().enumerate().take(usize::from(head.vectors)) {
                vector.insert(0, VECTOR_VERSION);
                batch.put_cf(application.store.rows(), self.scope.vector_key(slot as u8, row), vector);
            }
        }
        self.row.chunks += u64::from(head.chunks);
        let upserted = Upserted { id: head.id.clone(), chunks: head.chunks, version: head.version };
        self.heads.insert(head.id.clone(), Some(head));
        Ok(upserted)
    }

    fn close(mut self, index: u64, batch: &mut WriteBatch) -> io::Result<PartitionChange> {
        self.row.changed_at = index;
        self.application.put(batch, self.scope.key(RowKind::Partition, b""), &self.row)?;
        Ok(PartitionChange { removed: self.removed, next_row: self.row.next_row, changed_at: index, dropped: false })
    }
}

/// Time, tenant and idempotency key of an index key.
fn time_key_parts(key: &[u8]) -> io::Result<(u64, TenantId, &[u8])> {
    let parse = || {
        let (at_ms, rest) = key.get(SUFFIX_AT..)?.split_first_chunk::<8>()?;
        let (tenant, key) = rest.split_first_chunk::<8>()?;
        Some((u64::from_be_bytes(*at_ms), TenantId(u64::from_be_bytes(*tenant)), key))
    };
    parse().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a key of the idempotency index is too short"))
}
