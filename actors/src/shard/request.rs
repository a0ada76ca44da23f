//! What a shard replica can be asked. Plain values, so that another node can ask as well.

use crate::error::ServiceError;
use crate::filter::Filter;
use crate::fusion::Page;
use crate::shard::partition::{PartitionAnswer, PartitionQuery};
use ragged_raft::ids::{RowId, TenantId};
use ragged_raft::meta::collection::Collection;
use ragged_raft::shard::command::{ShardCommand, ShardReply};
use ragged_raft::shard::rows::{ChunkText, DocumentHead, JobRow, PartitionRow, RowOwner};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use ulid::Ulid;

/// How fresh the replica must be before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShardFreshness {
    /// As it is.
    Eventual,
    /// The log must be applied up to this index.
    AtLeast(u64),
    /// Everything acknowledged before must be applied.
    Strong,
}

/// A request, cheap to clone; the tenant that it acts for comes beside it, from the credential.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ShardRequest {
    /// Writes. Answered by `Applied`.
    Propose {
        /// The write.
        command: Arc<ShardCommand>,
    },
    /// The index up to which everything that was acknowledged is in the log; only the leader knows. Answered by `Index`.
    ReadIndex,
    /// Searches a partition. Answered by `Found`.
    Search {
        /// The partition's collection.
        collection: Arc<Collection>,
        /// What to look for.
        query: Arc<PartitionQuery>,
        /// The page of hits that is wanted, when no other shard is asked: what it shows is then answered at once.
        page: Option<Arc<Page>>,
    },
    /// Reads what a hit shows. Answered by `Chunks`.
    Chunks {
        /// The partition's collection.
        collection: Arc<Collection>,
        /// Rows of the hits.
        rows: Vec<RowId>,
    },
    /// Ids of documents that match. Answered by `Matching`.
    Matching {
        /// The partition's collection.
        collection: Arc<Collection>,
        /// What they must match.
        filter: Filter,
        /// Ids after this one.
        after: Option<String>,
        /// At most so many.
        limit: usize,
    },
    /// Reads a document. Answered by `Documents` of one or none.
    Document {
        /// Its collection.
        collection: Arc<Collection>,
        /// Its id.
        id: String,
    },
    /// Reads documents in the order of their ids. Answered by `Documents`.
    Documents {
        /// Their collection.
        collection: Arc<Collection>,
        /// Ids after this one.
        after: Option<String>,
        /// At most so many.
        limit: usize,
        /// Whether their texts are wanted: as many, from the first on, as there is room for in an answer.
        with_text: bool,
    },
    /// Reads a partition's counters. Answered by `Counts`.
    Counts {
        /// The partition's collection.
        collection: Arc<Collection>,
    },
    /// Reads a job. Answered by `Jobs` of one or none.
    Job {
        /// Its id.
        id: Ulid,
    },
    /// Reads jobs, newest first. Answered by `Jobs`.
    Jobs {
        /// Jobs older than this one.
        before: Option<Ulid>,
        /// At most so many.
        limit: usize,
    },
    /// Reads which jobs of all tenants are not finished; only the node itself, as no tenant, may ask. Answered by `Unfinished`.
    UnfinishedJobs,
    /// Reads what was uploaded for a job. Answered by `Payload`.
    JobPayload {
        /// Its id.
        id: Ulid,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ShardResponse {
    /// A write has been applied.
    Applied {
        /// Index in the shard's log.
        index: u64,
        /// What the state machine said.
        reply: ShardReply,
    },
    /// An index of the shard's log.
    Index(u64),
    /// What a search found.
    Found {
        /// The rankings.
        answer: PartitionAnswer,
        /// When a page was asked for, one entry a hit; none where the row is gone by now.
        shown: Option<Vec<Option<Arc<ChunkContent>>>>,
    },
    /// One entry a row that was asked for; none where the row is gone by now.
    Chunks(Vec<Option<Arc<ChunkContent>>>),
    /// Documents' ids, in order, and the first row of each, which names its version.
    Matching(Vec<(String, RowId)>),
    /// Documents.
    Documents(Vec<StoredDocument>),
    /// A partition's counters.
    Counts(PartitionRow),
    /// Jobs.
    Jobs(Vec<JobRow>),
    /// Jobs that are not finished, and whose they are.
    Unfinished(Vec<(TenantId, Ulid)>),
    /// What was uploaded for a job, unless it has been forgotten.
    Payload(#[serde(with = "ragged_raft::bytes::option")] Option<Vec<u8>>),
}

impl ShardResponse {
    /// The error of a response that does not belong to its request: a defect.
    pub fn mismatch(self) -> ServiceError {
        ServiceError::internal("a shard answered another question than it was asked")
    }
}

/// What a hit shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChunkContent {
    /// Whose chunk it is.
    pub owner: RowOwner,
    /// Its text and place.
    pub text: ChunkText,
    /// Title of the document.
    pub title: Option<String>,
    /// Metadata of the document, as JSON text.
    pub metadata: String,
}

impl ChunkContent {
    /// Bytes of its texts.
    pub(crate) fn bytes(&self) -> usize {
        let title = self.title.as_ref().map_or(0, String::len);
        self.owner.document_id.len() + self.text.text.len() + title + self.metadata.len()
    }
}

/// A document as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredDocument {
    /// Everything but the text.
    pub head: DocumentHead,
    /// The text, when it was asked for.
    pub text: Option<String>,
}
