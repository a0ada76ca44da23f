//! The OpenAPI document, generated from the handlers and the wire types.

use crate::api::problem::{CONTENT_TYPE_PROBLEM, Problem};
use crate::api::query::Query;
use crate::api::routes::Answer;
use crate::api::upload_form::UploadForm;
use crate::api::{Call, cluster, collections, documents, health, import, jobs, memory, metrics, search};
use ragged_actors::Session;
use std::sync::OnceLock;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr};
use utoipa::{Modify, OpenApi};
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

const BEARER: &str = "key";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "ragged",
        description = "Upload documents, find them again by meaning, by words or both. Errors are problem details (RFC 9457) with a stable `code`; \
                       every answer carries the request's `x-request-id`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "collections", description = "Named sets of documents"),
        (name = "documents", description = "Upload, import, read and delete documents"),
        (name = "search", description = "Find documents"),
        (name = "jobs", description = "What becomes of uploads"),
        (name = "cluster", description = "Nodes and shards, and what an operator orders"),
        (name = "operation", description = "Health, metrics and this description"),
    ),
    paths(
        health::healthz,
        health::livez,
        health::readyz,
        metrics::metrics,
        memory::memory,
        document,
        collections::list,
        collections::create,
        collections::get,
        collections::delete,
        documents::list,
        documents::upload,
        documents::delete_matching,
        documents::post_delete,
        import::import,
        documents::get,
        documents::delete,
        search::search,
        search::batch,
        jobs::list,
        jobs::get,
        jobs::retry,
        jobs::cancel,
        cluster::nodes,
        cluster::shards,
        cluster::doctor,
        cluster::token,
        cluster::rebalance,
        cluster::recover,
        cluster::drain,
        cluster::remove,
    ),
    components(schemas(ragged_client::Problem, ragged_client::NewDocument, UploadForm)),
    security(("key" = [])),
    modifiers(&Credential, &Problems, &RequestIds)
)]
struct Api;

/// How a key is presented.
struct Credential;

impl Modify for Credential {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A key; the first one of a node is in `admin.key` in its data folder."))
            .build();
        let components = api.components.get_or_insert_default();
        components.add_security_scheme(BEARER, SecurityScheme::Http(scheme));
    }
}

/// Adds the problems that an operation can end with, which follow from what it is.
struct Problems;

impl Modify for Problems {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        for (path, item) in &mut api.paths.paths {
            let is_search = path.contains("/search");
            let has_parameters = path.contains('{');
            let reads = [&mut item.get];
            for operation in reads.into_iter().flatten() {
                document_problems(operation, has_parameters, false);
            }
            for operation in [&mut item.post, &mut item.delete].into_iter().flatten() {
                document_problems(operation, has_parameters, !is_search);
            }
        }
    }
}

fn document_problems(operation: &mut Operation, has_parameters: bool, writes: bool) {
    let is_public = operation.security.as_ref().is_some_and(|needed| needed.iter().all(|one| *one == Default::default()));
    if is_public {
        return;
    }
    let mut problems = vec![
        ("400", "The request is wrong; `code` and `detail` say what and where"),
        ("401", "The key is missing or wrong"),
        ("403", "The key does not allow this"),
        ("429", "Too much at once; `retry-after` says when to try again"),
        ("500", "A defect or a fault of the node"),
        ("503", "The node cannot serve this now; `retry-after` says when to try again"),
        ("504", "It is not known in time what became of the request; a write may have taken effect"),
    ];
    if has_parameters {
        problems.push(("404", "There is nothing of that name"));
    }
    if operation.request_body.is_some() {
        problems.push(("408", "The body stopped coming"));
        problems.push(("413", "The body, or a part of it, is larger than allowed"));
        problems.push(("415", "The body is of a type that is not read"));
    }
    if writes {
        problems.push(("409", "It contradicts what is there"));
    }
    for (status, description) in problems {
        operation.responses.responses.entry(status.to_string()).or_insert_with(|| problem_response(status, description));
    }
}

fn problem_response(status: &str, description: &str) -> RefOr<utoipa::openapi::Response> {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let mut response = ResponseBuilder::new().description(description).content(CONTENT_TYPE_PROBLEM, content);
    if matches!(status, "429" | "503") {
        let seconds = ObjectBuilder::new().schema_type(Type::Integer).build();
        response = response.header("retry-after", HeaderBuilder::new().schema(seconds).description(Some("Seconds")).build());
    }
    RefOr::T(response.build())
}

/// Every answer names the request.
struct RequestIds;

impl Modify for RequestIds {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let operations = api.paths.paths.values_mut().flat_map(|item| [&mut item.get, &mut item.post, &mut item.delete]);
        for response in operations.flatten().flat_map(|operation| operation.responses.responses.values_mut()) {
            if let RefOr::T(response) = response {
                let text = ObjectBuilder::new().schema_type(Type::String).max_length(Some(128)).build();
                let header =
                    HeaderBuilder::new().schema(text).description(Some("Id of the request: the one it came with, or a new one"));
                response.headers.insert("x-request-id".to_string(), header.build());
            }
        }
    }
}

/// The document as JSON text; made once.
pub fn text() -> Result<&'static str, Problem> {
    static TEXT: OnceLock<Result<String, String>> = OnceLock::new();
    let made = TEXT.get_or_init(|| Api::openapi().to_json().map_err(|error| error.to_string()));
    made.as_deref().map_err(|error| Problem::internal(format!("writing the OpenAPI document failed: {error}")))
}

/// `GET /api/v1/openapi.json`.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "operation", operation_id = "openapi",
    summary = "This description", responses((status = 200, description = "An OpenAPI 3.1 document", body = serde_json::Value)))]
pub async fn document(call: Call, _session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    let mut response = Response::new(text()?.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::routes::{Handler, ROUTES};
    use serde_json::Value;

    fn parsed() -> Value {
        serde_json::from_str(text().unwrap()).unwrap()
    }

    fn operations(api: &Value) -> Vec<(String, String, &Value)> {
        let paths = api["paths"].as_object().unwrap().iter();
        let all = paths.flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation))
        });
        all.collect()
    }

    #[test]
    fn every_route_is_described_and_every_description_is_a_route() {
        let api = parsed();
        let mut described: Vec<(String, String)> = operations(&api).into_iter().map(|(method, path, _)| (method, path)).collect();
        let mut routed: Vec<(String, String)> =
            ROUTES.iter().map(|route| (route.method.to_string(), route.path.to_string())).collect();
        described.sort();
        routed.sort();
        assert_eq!(described, routed);
    }

    #[test]
    fn an_operation_needs_a_key_exactly_when_its_route_does() {
        let api = parsed();
        for (method, path, operation) in operations(&api) {
            let route = ROUTES.iter().find(|route| route.path == path && route.method.as_str() == method).unwrap();
            let is_public = operation["security"] == serde_json::json!([{}]);
            assert_eq!(is_public, matches!(route.handler, Handler::Public(_)), "{method} {path}");
            assert_eq!(operation["responses"].get("401").is_none(), is_public, "{method} {path}");
        }
        assert_eq!(api["security"], serde_json::json!([{"key": []}]));
        assert_eq!(api["components"]["securitySchemes"]["key"]["scheme"], "bearer");
    }

    #[test]
    fn every_parameter_of_a_path_is_described() {
        let api = parsed();
        for (method, path, operation) in operations(&api) {
            let in_path: Vec<&str> = path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}')).collect();
            let empty = Vec::new();
            let parameters = operation["parameters"].as_array().unwrap_or(&empty).iter();
            let described: Vec<&str> = parameters
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            assert_eq!(in_path, described, "{method} {path}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(object) => {
                    found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_string));
                    object.values().for_each(|inner| references(inner, found));
                }
                Value::Array(items) => items.iter().for_each(|inner| references(inner, found)),
                _ => {}
            }
        }
        let api = parsed();
        let mut found = Vec::new();
        references(&api, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(api.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn names_of_operations_are_unique() {
        let api = parsed();
        let mut names: Vec<&str> =
            operations(&api).iter().map(|(_, _, operation)| operation["operationId"].as_str().unwrap()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
