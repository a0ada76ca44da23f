//! Routes of collections.

use super::call::Call;
use super::{Client, ListOptions};
use crate::collection::{Collection, CollectionList, NewCollection};
use crate::error::ClientError;
use reqwest::Method;

impl Client {
    /// Creates a collection. Sent once only: after [`ClientError::UnknownOutcome`], reading it tells whether it is there.
    pub async fn create_collection(&self, new: &NewCollection) -> Result<Collection, ClientError> {
        self.inner.fetch(&Call::write(Method::POST, &["api", "v1", "collections"]).json(new)?).await
    }

    /// A page of the collections, in order of their names.
    pub async fn list_collections(&self, page: ListOptions) -> Result<CollectionList, ClientError> {
        self.inner.fetch(&Call::read(Method::GET, &["api", "v1", "collections"]).query(page.into_query())).await
    }

    /// A collection, with the numbers of its documents and chunks.
    pub async fn get_collection(&self, name: &str) -> Result<Collection, ClientError> {
        self.inner.fetch(&Call::read(Method::GET, &["api", "v1", "collections", name])).await
    }

    /// Deletes a collection and everything in it.
    ///
    /// It is repeated when its answer is lost; when the repetition does not find the collection any more, the error is
    /// [`ClientError::UnknownOutcome`], since it may have been deleted by this call or have been gone before.
    pub async fn delete_collection(&self, name: &str) -> Result<(), ClientError> {
        let call = Call::write(Method::DELETE, &["api", "v1", "collections", name]).repeatable(true);
        self.inner.send(&call).await?;
        if let Some(tokens) = self.inner.tokens() {
            tokens.forget(name);
        }
        Ok(())
    }
}
