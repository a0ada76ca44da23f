//! Routes of searches.

use super::Client;
use super::call::Call;
use crate::error::ClientError;
use crate::search::{Consistency, SearchBatch, SearchBatchResponse, SearchRequest, SearchResponse};
use reqwest::Method;
use std::borrow::Cow;

impl Client {
    /// Searches a collection. Unless the request says otherwise, it sees what this client wrote before.
    pub async fn search(&self, collection: &str, request: &SearchRequest) -> Result<SearchResponse, ClientError> {
        let request = self.with_token(collection, request);
        self.inner.fetch(&search_call(collection).json(request.as_ref())?).await
    }

    /// Runs 1 to 256 searches; the answers are in the order of the requests.
    pub async fn search_batch(&self, collection: &str, requests: &[SearchRequest]) -> Result<SearchBatchResponse, ClientError> {
        let searches = requests.iter().map(|request| self.with_token(collection, request).into_owned()).collect();
        let path = ["api", "v1", "collections", collection, "search", "batch"];
        self.inner.fetch(&Call::read(Method::POST, &path).json(&SearchBatch { searches })?).await
    }

    /// The request with the token of the last write, where it says nothing about freshness itself.
    fn with_token<'a>(&self, collection: &str, request: &'a SearchRequest) -> Cow<'a, SearchRequest> {
        let wants_token = request.token.is_none() && matches!(request.consistency, None | Some(Consistency::Session));
        let token = self.inner.tokens().filter(|_| wants_token).and_then(|tokens| tokens.last(collection));
        match token {
            Some(token) => Cow::Owned(SearchRequest { token: Some(token), ..request.clone() }),
            None => Cow::Borrowed(request),
        }
    }
}

fn search_call(collection: &str) -> Call {
    Call::read(Method::POST, &["api", "v1", "collections", collection, "search"])
}
