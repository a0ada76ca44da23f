//! Collections: create, read, list, delete.

use crate::api::problem::Problem;
use crate::api::query::Query;
use crate::api::routes::Answer;
use crate::api::{Call, json};
use ragged_actors::{CreateCollection, EmbeddingChoice, Session};
use ragged_client::{Chunking, Collection, CollectionEmbedding, CollectionList, Embedding, Language, NewCollection};
use warp::http::StatusCode;
use warp::http::header::{HeaderValue, LOCATION};
use warp::reply::Response;

/// `POST /api/v1/collections`.
#[utoipa::path(post, path = "/api/v1/collections", tag = "collections", operation_id = "create_collection",
    summary = "Create a collection", description = "Its settings do not change afterwards.",
    request_body(content = NewCollection, content_type = "application/json"),
    responses((status = 201, description = "Created; `location` names it", body = Collection)))]
pub async fn create(mut call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    let wanted: NewCollection = call.json().await?;
    let created = session.create_collection(settings(wanted)?).await?;
    let wire = collection(created, None)?;
    let location = HeaderValue::from_str(&format!("/api/v1/collections/{}", wire.name));
    let mut response = json::reply(StatusCode::CREATED, &wire)?;
    if let Ok(location) = location {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// `GET /api/v1/collections`.
#[utoipa::path(get, path = "/api/v1/collections", tag = "collections", operation_id = "list_collections",
    summary = "List collections", description = "In order of their names, a page at a time.",
    params(
        ("limit" = Option<u32>, Query, description = "Collections on the page. Default 100.", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.", max_length = 1024),
    ),
    responses((status = 200, description = "A page", body = CollectionList)))]
pub async fn list(call: Call, session: Session) -> Answer {
    let mut query = Query::parse(&call.query)?;
    let limit = query.number("limit", 1..=1000, 100)?;
    let cursor = query.cursor()?;
    query.end()?;
    let (page, next_cursor) = session.collections(cursor.as_deref(), limit).await?;
    let collections = page.into_iter().map(|found| collection(found, None)).collect::<Result<_, _>>()?;
    json::ok(&CollectionList { collections, next_cursor })
}

/// `GET /api/v1/collections/{collection}`.
#[utoipa::path(get, path = "/api/v1/collections/{collection}", tag = "collections", operation_id = "get_collection",
    summary = "Read a collection", description = "With the numbers of its documents and chunks.",
    params(("collection" = String, Path, description = "Name of the collection", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook")),
    responses((status = 200, description = "The collection", body = Collection)))]
pub async fn get(call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    let (found, counts) = session.collection(call.parameter(0)?).await?;
    json::ok(&collection(found, Some((counts.documents, counts.chunks)))?)
}

/// `DELETE /api/v1/collections/{collection}`.
#[utoipa::path(delete, path = "/api/v1/collections/{collection}", tag = "collections", operation_id = "delete_collection",
    summary = "Delete a collection", description = "With everything in it. It is gone at once; its space is freed in the background.",
    params(("collection" = String, Path, description = "Name of the collection", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook")),
    responses((status = 204, description = "Deleted")))]
pub async fn delete(call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    session.delete_collection(call.parameter(0)?).await?;
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn settings(wanted: NewCollection) -> Result<CreateCollection, Problem> {
    let embedding = match wanted.embedding {
        None => EmbeddingChoice::Default,
        Some(Embedding::Model(model)) => EmbeddingChoice::Model(model.model),
        Some(Embedding::External(external)) => EmbeddingChoice::External(external.dimension),
    };
    let chunking = wanted.chunking.unwrap_or_default();
    Ok(CreateCollection {
        name: wanted.name,
        spread: wanted.spread,
        embedding,
        chunk_tokens: chunking.tokens,
        chunk_overlap: chunking.overlap,
        language: language_code(wanted.language.unwrap_or_default())?,
    })
}

fn collection(found: ragged_actors::Collection, counts: Option<(u64, u64)>) -> Result<Collection, Problem> {
    let vector = found.vector();
    let model = vector.model.as_ref();
    Ok(Collection {
        spread: u16::try_from(found.shards.len()).unwrap_or(u16::MAX),
        embedding: CollectionEmbedding {
            model: model.map(|model| model.name.clone()),
            revision: model.map(|model| model.revision.clone()),
            dimension: vector.dimension,
        },
        chunking: Chunking { tokens: found.chunk_tokens, overlap: found.chunk_overlap },
        language: language(&found.language)?,
        created_at_ms: found.created_at_ms,
        documents: counts.map(|(documents, _)| documents),
        chunks: counts.map(|(_, chunks)| chunks),
        name: found.name,
    })
}

/// The code of a language is what the wire writes.
fn language_code(language: Language) -> Result<String, Problem> {
    match serde_json::to_value(language) {
        Ok(serde_json::Value::String(code)) => Ok(code),
        other => Err(Problem::internal(format!("language {language:?} has no code: {other:?}"))),
    }
}

fn language(code: &str) -> Result<Language, Problem> {
    let value = serde_json::Value::String(code.to_string());
    serde_json::from_value(value).map_err(|_| Problem::internal(format!("a stored collection has the unknown language {code:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_go_there_and_back() {
        for one in [Language::None, Language::En, Language::Tr] {
            assert_eq!(language(&language_code(one).unwrap()).unwrap(), one);
        }
        assert_eq!(language("xx").unwrap_err().code, "internal");
    }
}
