//! Documents: upload, read, list, delete.

use crate::api::problem::Problem;
use crate::api::query::Query;
use crate::api::routes::Answer;
use crate::api::upload_form::{self, UploadForm};
use crate::api::{Call, filter, freshness, json};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ragged_actors::{Deleted, Session, StoredDocument, TextFormat, UploadDocument, Uploaded};
use ragged_client::{
    AcceptedJob, Consistency, DeleteByFilter, DeletedDocuments, Document, DocumentList, Format, NewDocument, NewDocuments,
    UploadedDocument, UploadedDocuments,
};
use warp::http::StatusCode;

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Documents of a listing; fewer when their texts come along, since a text may have 16 MiB.
const PAGE_MAX: usize = 1000;
const PAGE_WITH_TEXT_MAX: usize = 100;
const PAGE_DEFAULT: usize = 100;
const PAGE_WITH_TEXT_DEFAULT: usize = 10;

/// `POST /api/v1/collections/{collection}/documents`.
#[utoipa::path(post, path = "/api/v1/collections/{collection}/documents", tag = "documents", operation_id = "upload_documents",
    summary = "Upload documents",
    description = "As JSON, or as .txt, .md and .html files of a form. A document whose id exists is replaced, as one step. \
                   When any document is wrong, none is stored. With `wait=false` the upload is durable when the answer comes, and is indexed by a job.",
    params(
        ("collection" = String, Path, description = "Name of the collection", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook"),
        ("wait" = Option<bool>, Query, description = "Whether to answer only when the documents can be found. Default true."),
        ("idempotency-key" = Option<String>, Header, description = "Makes it safe to repeat an upload whose answer was lost.",
            min_length = 1, max_length = 128),
    ),
    request_body(content((NewDocuments = "application/json"), (UploadForm = "multipart/form-data"))),
    responses(
        (status = 200, description = "Stored and searchable", body = UploadedDocuments),
        (status = 202, description = "Durable, and to be indexed by a job; with `wait=false`", body = AcceptedJob),
    ))]
pub async fn upload(mut call: Call, session: Session) -> Answer {
    let mut query = Query::parse(&call.query)?;
    let wait = query.boolean("wait", true)?;
    query.end()?;
    let documents = read_documents(&mut call).await?;
    let collection = call.parameter(0)?;
    let idempotency_key = call.header(IDEMPOTENCY_KEY)?;
    if wait {
        let uploaded = session.upload(collection, documents, idempotency_key).await?;
        return json::ok(&uploaded_to_wire(uploaded));
    }
    let job = session.submit(collection, documents, idempotency_key).await?;
    json::reply(StatusCode::ACCEPTED, &AcceptedJob { job: job.to_string() })
}

async fn read_documents(call: &mut Call) -> Result<Vec<UploadDocument>, Problem> {
    // An upload that could not be repeated safely is refused before its body is read.
    call.header(IDEMPOTENCY_KEY)?;
    let documents = match call.media_type()? {
        Some(media_type) if media_type.essence_str() == mime::MULTIPART_FORM_DATA.essence_str() => {
            let limit_bytes = call.api.max_body_bytes;
            upload_form::read(call.take_body(), &media_type, limit_bytes).await?
        }
        _ => call.json::<NewDocuments>().await?.documents,
    };
    Ok(documents.into_iter().map(from_wire).collect())
}

/// `GET /api/v1/collections/{collection}/documents`.
#[utoipa::path(get, path = "/api/v1/collections/{collection}/documents", tag = "documents", operation_id = "list_documents",
    summary = "List documents", description = "In a stable order, a page at a time.",
    params(
        ("collection" = String, Path, description = "Name of the collection", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook"),
        ("limit" = Option<u32>, Query, description = "Documents on the page: to 1000, by default 100; with texts to 100, by default 10.",
            minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.", max_length = 1024),
        ("text" = Option<bool>, Query, description = "Whether to include the texts. Default false."),
        ("consistency" = Option<Consistency>, Query, description = "How fresh the answer must be. Default `eventual`, or `session` with a token."),
        ("token" = Option<String>, Query, description = "Token of a write that must be seen."),
    ),
    responses((status = 200, description = "A page", body = DocumentList)))]
pub async fn list(call: Call, session: Session) -> Answer {
    let mut query = Query::parse(&call.query)?;
    let with_text = query.boolean("text", false)?;
    let (max, default) = if with_text { (PAGE_WITH_TEXT_MAX, PAGE_WITH_TEXT_DEFAULT) } else { (PAGE_MAX, PAGE_DEFAULT) };
    let limit = query.number("limit", 1..=max, default)?;
    let after = query.cursor()?.map(|cursor| id_of(&cursor)).transpose()?;
    let freshness = freshness::of_query(&mut query)?;
    query.end()?;
    let (page, next) = session.documents(call.parameter(0)?, after.as_deref(), limit, with_text, &freshness).await?;
    let documents = page.into_iter().map(to_wire).collect();
    json::ok(&DocumentList { documents, next_cursor: next.map(|id| URL_SAFE_NO_PAD.encode(id)) })
}

/// The document id that a cursor stands for. Ids hold characters that mean something else in a URL, cursors do not.
fn id_of(cursor: &str) -> Result<String, Problem> {
    let id = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    id.ok_or_else(|| Problem::invalid("invalid_parameter", "cursor is not a `next_cursor` of a page of documents"))
}

/// `GET /api/v1/collections/{collection}/documents/{id}`.
#[utoipa::path(get, path = "/api/v1/collections/{collection}/documents/{id}", tag = "documents", operation_id = "get_document",
    summary = "Read a document", description = "With its text, which the spans of hits refer to.",
    params(
        ("collection" = String, Path, description = "Name of the collection", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook"),
        ("id" = String, Path, description = "Id of the document, percent-encoded", min_length = 1, max_length = 256, example = "raft.md"),
        ("consistency" = Option<Consistency>, Query, description = "How fresh the answer must be. Default `eventual`, or `session` with a token."),
        ("token" = Option<String>, Query, description = "Token of a write that must be seen."),
    ),
    responses((status = 200, description = "The document", body = Document)))]
pub async fn get(call: Call, session: Session) -> Answer {
    let mut query = Query::parse(&call.query)?;
    let freshness = freshness::of_query(&mut query)?;
    query.end()?;
    json::ok(&to_wire(session.document(call.parameter(0)?, call.parameter(1)?, &freshness).await?))
}

/// `DELETE /api/v1/collections/{collection}/documents/{id}`.
#[utoipa::path(delete, path = "/api/v1/collections/{collection}/documents/{id}", tag = "documents", operation_id = "delete_document",
    summary = "Delete a document", description = "A search that carries the token of the answer does not find it any more, on any node.",
    params(
        ("collection" = String, Path, description = "Name of the collection", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook"),
        ("id" = String, Path, description = "Id of the document, percent-encoded", min_length = 1, max_length = 256, example = "raft.md"),
    ),
    responses((status = 200, description = "Deleted", body = DeletedDocuments)))]
pub async fn delete(call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    json::ok(&deleted(session.delete_document(call.parameter(0)?, call.parameter(1)?).await?))
}

/// `POST /api/v1/collections/{collection}/documents/delete`, for clients that cannot send a body with DELETE.
#[utoipa::path(post, path = "/api/v1/collections/{collection}/documents/delete", tag = "documents", operation_id = "delete_documents",
    summary = "Delete documents by a filter", description = "Deletes every document whose metadata passes. An empty filter is refused.",
    params(("collection" = String, Path, description = "Name of the collection", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook")),
    request_body(content = DeleteByFilter, content_type = "application/json"),
    responses((status = 200, description = "Deleted", body = DeletedDocuments)))]
pub async fn post_delete(call: Call, session: Session) -> Answer {
    delete_by_filter(call, session).await
}

/// `DELETE /api/v1/collections/{collection}/documents`.
#[utoipa::path(delete, path = "/api/v1/collections/{collection}/documents", tag = "documents", operation_id = "delete_matching_documents",
    summary = "Delete documents by a filter",
    description = "The same as POST to `documents/delete`, for clients that can send a body with DELETE.",
    params(("collection" = String, Path, description = "Name of the collection", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook")),
    request_body(content = DeleteByFilter, content_type = "application/json"),
    responses((status = 200, description = "Deleted", body = DeletedDocuments)))]
pub async fn delete_matching(call: Call, session: Session) -> Answer {
    delete_by_filter(call, session).await
}

async fn delete_by_filter(mut call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    let DeleteByFilter { filter } = call.json().await?;
    let filter = filter::from_wire(filter)?;
    json::ok(&deleted(session.delete_matching(call.parameter(0)?, filter).await?))
}

/// A document as the engine takes it.
pub fn from_wire(wire: NewDocument) -> UploadDocument {
    let format = match wire.format.unwrap_or_default() {
        Format::Plain => TextFormat::Plain,
        Format::Markdown => TextFormat::Markdown,
        Format::Html => TextFormat::Html,
    };
    UploadDocument {
        id: wire.id,
        title: wire.title,
        text: wire.text,
        format,
        metadata: wire.metadata.unwrap_or_default(),
        vector: wire.vector,
    }
}

fn to_wire(stored: StoredDocument) -> Document {
    let head = stored.head;
    let format = match head.format {
        TextFormat::Plain => Format::Plain,
        TextFormat::Markdown => Format::Markdown,
        TextFormat::Html => Format::Html,
    };
    Document {
        id: head.id,
        title: head.title,
        text: stored.text,
        format,
        metadata: json::stored_metadata(head.metadata),
        chunks: head.chunks,
        version: head.version,
        created_at_ms: head.created_at_ms,
        updated_at_ms: head.updated_at_ms,
    }
}

fn uploaded_to_wire(uploaded: Uploaded) -> UploadedDocuments {
    let one = |document: ragged_actors::Upserted| UploadedDocument {
        id: document.id,
        chunks: document.chunks,
        version: document.version,
    };
    UploadedDocuments { documents: uploaded.documents.into_iter().map(one).collect(), token: uploaded.token }
}

fn deleted(outcome: Deleted) -> DeletedDocuments {
    DeletedDocuments { deleted: outcome.deleted, token: outcome.token }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_stands_for_any_id_and_is_safe_in_a_url() {
        for id in ["a", "en:g++", "x & y=z", "ж/%2F"] {
            let cursor = URL_SAFE_NO_PAD.encode(id);
            assert!(cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
            assert_eq!(id_of(&cursor).unwrap(), id);
        }
        assert_eq!(id_of("en:g++").err().unwrap().code, "invalid_parameter");
    }
}
