//! The client: typed calls to a cluster, over any of its nodes.
//!
//! - `builder` makes a client and checks its settings.
//! - `call` is a request as data: what is sent, and whether it may be sent twice.
//! - `transport` sends a call: endpoints in turn, back-off, bounded answers.
//! - `retry` says how long to wait and what a failed attempt means.
//! - `tokens` remembers the last write of each collection, for reading one's own writes.
//! - The rest are the routes, a file for each resource.

mod builder;
mod call;
mod cluster;
mod collections;
mod documents;
mod import;
mod jobs;
mod key;
mod node;
mod retry;
mod search;
mod tokens;
mod transport;

pub use builder::ClientBuilder;
pub use documents::{UploadFile, UploadOptions, UploadReply};
pub use import::ImportOptions;
pub use key::Key;
pub use retry::RetryPolicy;

use std::sync::Arc;

/// A client of one cluster. Cheap to clone; clones share connections and write tokens.
///
/// ```no_run
/// # async fn example() -> Result<(), ragged_client::ClientError> {
/// use ragged_client::{Client, NewDocument, SearchRequest};
///
/// let client = Client::builder().endpoint("http://127.0.0.1:7400").key("rgd_...").build()?;
/// let document = NewDocument { id: Some("a".into()), text: "Replicas are repaired on their own.".into(), ..Default::default() };
/// client.upload("handbook", &[document], Default::default()).await?;
/// let search = SearchRequest { query: Some("how are replicas repaired?".into()), ..Default::default() };
/// let answer = client.search("handbook", &search).await?;
/// println!("{}", answer.hits[0].text);
/// # Ok(())
/// # }
/// ```
///
/// # Which node is asked
/// The endpoint that answered last is asked first. A call that could not be sent goes to the next one. An answer 502, 503 or
/// 504, and a connection that broke while waiting for the answer, lead to another attempt only when the call may be
/// repeated: reads and deletions always, writes when they carry an idempotency key.
///
/// # Reading one's own writes
/// By default the client remembers the token of the last write to each collection that was made through it (or a clone),
/// and searches carry it, unless they name a token or a consistency of their own: a search sees what this client wrote
/// before, on whatever node it runs. [`ClientBuilder::read_your_writes`] switches that off.
#[derive(Clone)]
pub struct Client {
    inner: Arc<transport::Transport>,
}

impl Client {
    /// Starts to make a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Client").field("endpoints", &self.inner.endpoints()).finish_non_exhaustive()
    }
}

/// Which page of a listing is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Entries at most; the node's default when absent.
    pub limit: Option<u32>,
    /// Where to go on: `next_cursor` of the page before.
    pub cursor: Option<String>,
}

impl ListOptions {
    fn into_query(self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        if let Some(limit) = self.limit {
            query.push(("limit", limit.to_string()));
        }
        if let Some(cursor) = self.cursor {
            query.push(("cursor", cursor));
        }
        query
    }
}
