//! Routes of documents: upload, read, list, delete.

use super::call::{Body, Call};
use super::transport::decode;
use super::{Client, ListOptions};
use crate::document::{AcceptedJob, DeleteByFilter, DeletedDocuments, Document, DocumentList, NewDocument, UploadedDocuments};
use crate::error::ClientError;
use crate::filter::Filter;
use crate::search::Consistency;
use bytes::Bytes;
use reqwest::{Method, StatusCode, multipart};
use serde::Serialize;

/// How an upload is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadOptions {
    /// Lets the node recognise a repetition, so that the client may repeat the upload when its answer is lost. 1 to 128
    /// visible ASCII characters; a key stands for one upload, and is an error with any other. Without one an upload is sent
    /// once only.
    pub idempotency_key: Option<String>,
    /// Answer as soon as the documents are durable, with a job that makes them searchable.
    pub no_wait: bool,
}

/// What an upload was answered.
#[derive(Debug, Clone, PartialEq)]
pub enum UploadReply {
    /// The documents are stored and searchable.
    Stored(UploadedDocuments),
    /// The documents are durable and this job makes them searchable; with [`UploadOptions::no_wait`].
    Accepted(AcceptedJob),
}

/// A file of a multipart upload; its name becomes the document's id and title.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadFile {
    /// Its name, ending in .txt, .md, .markdown, .html or .htm.
    pub name: String,
    /// Its content, UTF-8.
    pub content: Bytes,
}

/// The body of an upload, without taking the documents.
#[derive(Serialize)]
struct NewDocumentsRef<'a> {
    documents: &'a [NewDocument],
}

impl Client {
    /// Uploads documents. None is stored when one of them is wrong.
    pub async fn upload(
        &self,
        collection: &str,
        documents: &[NewDocument],
        options: UploadOptions,
    ) -> Result<UploadReply, ClientError> {
        let call = upload_call(collection, options).json(&NewDocumentsRef { documents })?;
        self.send_upload(collection, call).await
    }

    /// Uploads files as a form. A file of the name of an existing document replaces it.
    pub async fn upload_files(
        &self,
        collection: &str,
        files: Vec<UploadFile>,
        options: UploadOptions,
    ) -> Result<UploadReply, ClientError> {
        let call = upload_call(collection, options).body(Body::Files(files));
        self.send_upload(collection, call).await
    }

    async fn send_upload(&self, collection: &str, call: Call) -> Result<UploadReply, ClientError> {
        let answer = self.inner.send(&call).await?;
        if answer.status == StatusCode::ACCEPTED {
            return Ok(UploadReply::Accepted(decode(&answer.body)?));
        }
        let stored: UploadedDocuments = decode(&answer.body)?;
        self.remember(collection, &stored.token);
        Ok(UploadReply::Stored(stored))
    }

    /// A document with its text. The last write of this client to the collection is seen; earlier ones to other shards may not be yet.
    pub async fn get_document(&self, collection: &str, id: &str) -> Result<Document, ClientError> {
        self.get_document_as_of(collection, id, None).await
    }

    /// A document with its text, as fresh as wanted; without a wish, as [`Client::get_document`] reads it.
    pub async fn get_document_as_of(
        &self,
        collection: &str,
        id: &str,
        consistency: Option<Consistency>,
    ) -> Result<Document, ClientError> {
        let query = self.freshness(collection, consistency);
        let call = Call::read(Method::GET, &["api", "v1", "collections", collection, "documents", id]);
        self.inner.fetch(&call.query(query)).await
    }

    /// A document with its text, as it is once the write of this token is seen.
    pub async fn get_document_since(&self, collection: &str, id: &str, token: &str) -> Result<Document, ClientError> {
        let call = Call::read(Method::GET, &["api", "v1", "collections", collection, "documents", id]);
        self.inner.fetch(&call.query(vec![("token", token.to_owned())])).await
    }

    /// What a read says of how fresh it must be.
    fn freshness(&self, collection: &str, consistency: Option<Consistency>) -> Vec<(&'static str, String)> {
        let written = || self.inner.tokens().and_then(|tokens| tokens.last(collection));
        let token = |token: String| ("token", token);
        match consistency {
            Some(Consistency::Strong) => vec![("consistency", "strong".to_owned())],
            Some(Consistency::Eventual) => vec![("consistency", "eventual".to_owned())],
            None | Some(Consistency::Session) => written().map(token).into_iter().collect(),
        }
    }

    /// A page of the documents, the last write of this client among them, in a stable order, without their texts unless asked for.
    pub async fn list_documents(
        &self,
        collection: &str,
        page: ListOptions,
        with_text: bool,
    ) -> Result<DocumentList, ClientError> {
        let mut query = page.into_query();
        if with_text {
            query.push(("text", "true".to_owned()));
        }
        query.extend(self.freshness(collection, None));
        let call = Call::read(Method::GET, &["api", "v1", "collections", collection, "documents"]).query(query);
        self.inner.fetch(&call).await
    }

    /// Deletes a document. Repeated when its answer is lost, see [`Client::delete_collection`] for what that means.
    pub async fn delete_document(&self, collection: &str, id: &str) -> Result<DeletedDocuments, ClientError> {
        let path = ["api", "v1", "collections", collection, "documents", id];
        self.delete(collection, Call::write(Method::DELETE, &path).repeatable(true)).await
    }

    /// Deletes the documents whose metadata passes the filter, which may not be empty.
    ///
    /// Sent once only: a repetition would also delete documents that came to match in between, and its count would be wrong.
    pub async fn delete_by_filter(&self, collection: &str, filter: Filter) -> Result<DeletedDocuments, ClientError> {
        let path = ["api", "v1", "collections", collection, "documents", "delete"];
        self.delete(collection, Call::write(Method::POST, &path).json(&DeleteByFilter { filter })?).await
    }

    async fn delete(&self, collection: &str, call: Call) -> Result<DeletedDocuments, ClientError> {
        let deleted: DeletedDocuments = self.inner.fetch(&call).await?;
        self.remember(collection, &deleted.token);
        Ok(deleted)
    }

    /// Keeps the token of a write for the searches that follow.
    pub(super) fn remember(&self, collection: &str, token: &str) {
        if let Some(tokens) = self.inner.tokens() {
            tokens.remember(collection, token);
        }
    }
}

fn upload_call(collection: &str, options: UploadOptions) -> Call {
    let mut call = Call::write(Method::POST, &["api", "v1", "collections", collection, "documents"]).upload();
    if options.no_wait {
        call = call.query(vec![("wait", "false".to_owned())]);
    }
    call.idempotency_key(options.idempotency_key)
}

/// The files as a form. It is made anew for each attempt; contents are shared, not copied.
pub(super) fn form(files: &[UploadFile]) -> multipart::Form {
    let mut form = multipart::Form::new();
    for file in files {
        let part =
            multipart::Part::stream_with_length(file.content.clone(), file.content.len() as u64).file_name(file.name.clone());
        form = form.part("file", part);
    }
    form
}
