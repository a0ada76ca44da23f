//! The table of everything that the node answers.
//!
//! A row is a method, a path and a handler; the descriptions beside the handlers (`#[utoipa::path]`) name the same methods and paths,
//! and a test holds the two against each other. A path matches whole segments: `{parameters}` match any segment that is not empty.
//! Rows are found by path *and* method, so `GET .../documents/import` reads the document whose id is `import`.

use crate::api::problem::Problem;
use crate::api::query::decode;
use crate::api::{Api, Call, cluster, collections, documents, health, import, jobs, memory, metrics, openapi, search};
use futures::future::BoxFuture;
use ragged_actors::Session;
use warp::http::Method;
use warp::reply::Response;

/// What a handler answers.
pub type Answer = Result<Response, Problem>;

/// Who may ask, and who answers.
#[derive(Clone, Copy)]
pub enum Handler {
    /// Anyone may ask. It answers at once and touches no actor, so it does so under any load.
    Public(fn(&Api) -> Answer),
    /// Whoever has a key that opens a session.
    Keyed(fn(Call, Session) -> BoxFuture<'static, Answer>),
    /// The same. It computes for fractions of a millisecond at most and waits for everything else without blocking, so that a request with a short body
    /// is answered where its connection is served: the way to the workers and back would take as long again.
    Quick(fn(Call, Session) -> BoxFuture<'static, Answer>),
}

/// A row of the table.
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, with `{parameters}`.
    pub path: &'static str,
    /// Who may ask, and who answers.
    pub handler: Handler,
}

const fn public(path: &'static str, handler: fn(&Api) -> Answer) -> Route {
    Route { method: Method::GET, path, handler: Handler::Public(handler) }
}

const fn keyed(method: Method, path: &'static str, handler: fn(Call, Session) -> BoxFuture<'static, Answer>) -> Route {
    Route { method, path, handler: Handler::Keyed(handler) }
}

const fn quick(method: Method, path: &'static str, handler: fn(Call, Session) -> BoxFuture<'static, Answer>) -> Route {
    Route { method, path, handler: Handler::Quick(handler) }
}

/// Everything that the node answers.
pub static ROUTES: &[Route] = &[
    public("/healthz", health::healthz),
    public("/livez", health::livez),
    public("/readyz", health::readyz),
    keyed(Method::GET, "/metrics", |call, session| Box::pin(metrics::metrics(call, session))),
    keyed(Method::GET, "/api/v1/openapi.json", |call, session| Box::pin(openapi::document(call, session))),
    keyed(Method::GET, "/api/v1/collections", |call, session| Box::pin(collections::list(call, session))),
    keyed(Method::POST, "/api/v1/collections", |call, session| Box::pin(collections::create(call, session))),
    keyed(Method::GET, "/api/v1/collections/{collection}", |call, session| Box::pin(collections::get(call, session))),
    keyed(Method::DELETE, "/api/v1/collections/{collection}", |call, session| Box::pin(collections::delete(call, session))),
    keyed(Method::GET, "/api/v1/collections/{collection}/documents", |call, session| Box::pin(documents::list(call, session))),
    keyed(Method::POST, "/api/v1/collections/{collection}/documents", |call, session| Box::pin(documents::upload(call, session))),
    keyed(Method::DELETE, "/api/v1/collections/{collection}/documents", |call, session| {
        Box::pin(documents::delete_matching(call, session))
    }),
    keyed(Method::POST, "/api/v1/collections/{collection}/documents/delete", |call, session| {
        Box::pin(documents::post_delete(call, session))
    }),
    keyed(Method::POST, "/api/v1/collections/{collection}/documents/import", |call, session| {
        Box::pin(import::import(call, session))
    }),
    keyed(Method::GET, "/api/v1/collections/{collection}/documents/{id}", |call, session| {
        Box::pin(documents::get(call, session))
    }),
    keyed(Method::DELETE, "/api/v1/collections/{collection}/documents/{id}", |call, session| {
        Box::pin(documents::delete(call, session))
    }),
    quick(Method::POST, "/api/v1/collections/{collection}/search", |call, session| Box::pin(search::search(call, session))),
    keyed(Method::POST, "/api/v1/collections/{collection}/search/batch", |call, session| Box::pin(search::batch(call, session))),
    keyed(Method::GET, "/api/v1/jobs", |call, session| Box::pin(jobs::list(call, session))),
    keyed(Method::GET, "/api/v1/jobs/{id}", |call, session| Box::pin(jobs::get(call, session))),
    keyed(Method::POST, "/api/v1/jobs/{id}/retry", |call, session| Box::pin(jobs::retry(call, session))),
    keyed(Method::POST, "/api/v1/jobs/{id}/cancel", |call, session| Box::pin(jobs::cancel(call, session))),
    keyed(Method::GET, "/api/v1/memory", |call, session| Box::pin(memory::memory(call, session))),
    keyed(Method::GET, "/api/v1/cluster/nodes", |call, session| Box::pin(cluster::nodes(call, session))),
    keyed(Method::GET, "/api/v1/cluster/shards", |call, session| Box::pin(cluster::shards(call, session))),
    keyed(Method::GET, "/api/v1/cluster/doctor", |call, session| Box::pin(cluster::doctor(call, session))),
    keyed(Method::POST, "/api/v1/cluster/tokens", |call, session| Box::pin(cluster::token(call, session))),
    keyed(Method::POST, "/api/v1/cluster/rebalance", |call, session| Box::pin(cluster::rebalance(call, session))),
    keyed(Method::POST, "/api/v1/cluster/shards/{shard}/recover", |call, session| Box::pin(cluster::recover(call, session))),
    keyed(Method::POST, "/api/v1/cluster/nodes/{node}/drain", |call, session| Box::pin(cluster::drain(call, session))),
    keyed(Method::DELETE, "/api/v1/cluster/nodes/{node}", |call, session| Box::pin(cluster::remove(call, session))),
];

/// Finds the row of a request, with the decoded parameters of its path.
pub fn find(method: &Method, path: &str) -> Result<(&'static Route, Vec<String>), Problem> {
    // What answers GET answers HEAD: the connection leaves out the body.
    let wanted = if method == Method::HEAD { &Method::GET } else { method };
    let mut allow = Vec::new();
    for route in ROUTES {
        let Some(raw) = matches(route.path, path) else { continue };
        if route.method == wanted {
            let parameters = raw.iter().map(|segment| decode(segment, "the path")).collect::<Result<_, _>>()?;
            return Ok((route, parameters));
        }
        if !allow.contains(&route.method) {
            allow.push(route.method.clone());
        }
    }
    if allow.is_empty() {
        let detail = format!("there is nothing at {path}; /api/v1/openapi.json describes what there is");
        return Err(Problem::new(warp::http::StatusCode::NOT_FOUND, "route_not_found", detail));
    }
    if allow.contains(&Method::GET) {
        allow.push(Method::HEAD);
    }
    Err(Problem::method_not_allowed(method, path, allow))
}

/// The segments that stand for the parameters of a template, when the path matches it.
fn matches<'a>(template: &str, path: &'a str) -> Option<Vec<&'a str>> {
    let mut parameters = Vec::new();
    let mut given = path.split('/');
    for wanted in template.split('/') {
        let segment = given.next()?;
        if wanted.starts_with('{') && !segment.is_empty() {
            parameters.push(segment);
        } else if wanted != segment {
            return None;
        }
    }
    if given.next().is_some() { None } else { Some(parameters) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(method: Method, path: &str) -> (&'static str, Vec<String>) {
        let (route, parameters) = find(&method, path).unwrap();
        (route.path, parameters)
    }

    #[test]
    fn parameters_are_decoded_segments() {
        let (path, parameters) = found(Method::GET, "/api/v1/collections/books/documents/a%2Fb%20%C3%A9");
        assert_eq!(path, "/api/v1/collections/{collection}/documents/{id}");
        assert_eq!(parameters, ["books", "a/b é"]);
    }

    #[test]
    fn a_document_may_be_called_like_an_action() {
        assert_eq!(found(Method::GET, "/api/v1/collections/c/documents/import").1, ["c", "import"]);
        assert_eq!(found(Method::POST, "/api/v1/collections/c/documents/import").1, ["c"]);
        assert_eq!(found(Method::DELETE, "/api/v1/collections/c/documents/delete").1, ["c", "delete"]);
    }

    #[test]
    fn unknown_paths_and_methods_are_told_apart() {
        for path in ["/", "/api/v2/collections", "/api/v1/collections/", "/api/v1/collections//documents", "/healthz/x"] {
            assert_eq!(find(&Method::GET, path).err().unwrap().code, "route_not_found", "{path}");
        }
        let problem = find(&Method::PATCH, "/api/v1/collections/c").err().unwrap();
        assert_eq!(problem.code, "method_not_allowed");
        let response = problem.into_response("r");
        assert_eq!(response.headers()["allow"], "GET, DELETE, HEAD");
    }

    #[test]
    fn bad_encodings_in_a_path_are_refused() {
        let refusal = |path: &str| find(&Method::GET, path).err().unwrap().code;
        assert_eq!(refusal("/api/v1/collections/%zz"), "invalid_percent_encoding");
        assert_eq!(refusal("/api/v1/collections/%ff"), "invalid_utf8");
    }

    #[test]
    fn head_is_answered_where_get_is() {
        assert_eq!(found(Method::HEAD, "/healthz").0, "/healthz");
    }

    #[test]
    fn only_health_is_public() {
        let public: Vec<_> =
            ROUTES.iter().filter(|route| matches!(route.handler, Handler::Public(_))).map(|route| route.path).collect();
        assert_eq!(public, ["/healthz", "/livez", "/readyz"]);
    }
}
