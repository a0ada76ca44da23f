//! What happens to every request: an id, a span, a route, a credential, a handler, and an answer whatever happens.

use crate::api::body::Body;
use crate::api::problem::Problem;
use crate::api::routes::{self, Answer, Handler};
use crate::api::{Api, Call, json};
use bytes::Buf;
use futures::{FutureExt, Stream};
use ragged_actors::Session;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio_util::context::TokioContext;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, Span, field};
use warp::http::header::{AUTHORIZATION, HeaderValue};
use warp::http::{HeaderMap, Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

const REQUEST_ID: &str = "x-request-id";
const REQUEST_ID_BYTES_MAX: usize = 128;

/// A frequent request that takes so long is worth a line.
const SLOW_MS: f64 = 100.0;

/// Longer paths are refused before anything looks at them. The longest of ours is a name of 63 and an id of 3 times 256 bytes.
const PATH_BYTES_MAX: usize = 4096;

/// The façade as warp sees it.
///
/// warp takes the request apart; which handler answers is looked up in [`routes::ROUTES`] rather than tried out filter by filter: a table
/// can say which methods a path takes, label metrics, and be compared with the OpenAPI document.
pub fn filter(api: Arc<Api>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |method: Method, path: FullPath, query: String, headers: HeaderMap, stream| {
            dispatch(Arc::clone(&api), method, path, query, headers, stream)
        })
        .recover(|rejection: Rejection| async move {
            // Nothing above rejects a request; if that ever changes, the client still gets a problem.
            Ok::<_, Infallible>(
                Problem::internal(format!("the request was rejected: {rejection:?}")).into_response(&new_request_id()),
            )
        })
        .unify()
}

async fn dispatch<S, B>(api: Arc<Api>, method: Method, path: FullPath, query: String, headers: HeaderMap, stream: S) -> Response
where
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf,
{
    let path = path.as_str();
    let request_id = request_id(&headers);
    let found = match path.len() {
        length if length > PATH_BYTES_MAX => Err(Problem::new(
            StatusCode::URI_TOO_LONG,
            "path_too_long",
            format!("the path is longer than {PATH_BYTES_MAX} bytes"),
        )),
        _ => routes::find(&method, path),
    };
    let template = found.as_ref().map_or("unmatched", |(route, _)| route.path);
    let is_frequent = found.as_ref().is_ok_and(|(route, _)| matches!(route.handler, Handler::Public(_) | Handler::Quick(_)));
    let in_flight = api.metrics.begin(template, method_label(&method));
    let span = tracing::info_span!(
        "request", %request_id, %method, path = path.get(..256).unwrap_or(path), status = field::Empty, took_ms = field::Empty
    );
    let body = Body::new(&headers, stream, api.reading.clone());
    let answer = match found {
        Ok((route, parameters)) => {
            let call = Call { api: Arc::clone(&api), parameters, query, headers, body };
            answer(route.handler, call, span.clone()).await
        }
        Err(problem) => Err(problem),
    };
    let problem = answer.as_ref().err().map(|problem| (problem.code, problem.detail.clone()));
    let mut response = answer.unwrap_or_else(|problem| problem.into_response(&request_id));
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let took_ms = in_flight.answered(response.status().as_u16()).as_secs_f64() * 1e3;
    log(&span, response.status(), took_ms, problem, is_frequent);
    response
}

async fn answer(handler: Handler, call: Call, span: Span) -> Answer {
    let (handler, is_quick) = match handler {
        Handler::Public(handler) => return handler(&call.api),
        Handler::Keyed(handler) => (handler, false),
        Handler::Quick(handler) => (handler, call.body.is_within(json::PARSE_INLINE_BYTES_MAX)),
    };
    let workers = call.api.workers.clone();
    let work = async move {
        let session = open_session(&call.api, &call.headers).await?;
        handler(call, session).await
    };
    let work = work.instrument(span).boxed();
    // When the client leaves, this is dropped, and the work ends at its next await. A panic is logged where it happens, within this request's span.
    if is_quick {
        return in_place(work, workers).await;
    }
    match AbortOnDropHandle::new(workers.spawn(work)).await {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => Err(defect()),
        Err(_) => Err(Problem::unavailable("stopping", "the node is stopping")),
    }
}

/// Does work where it stands, but within the workers' runtime: what it starts outlives the one that serves connections.
async fn in_place<T>(work: impl Future<Output = Result<T, Problem>>, workers: Handle) -> Result<T, Problem> {
    let done = TokioContext::new(AssertUnwindSafe(work).catch_unwind(), workers).await;
    done.unwrap_or_else(|_| Err(defect()))
}

fn defect() -> Problem {
    Problem::internal("a defect of the node: its log has the details under this request's id")
}

async fn open_session(api: &Api, headers: &HeaderMap) -> Result<Session, Problem> {
    let refused = |code, detail: &str| Problem::new(StatusCode::UNAUTHORIZED, code, detail);
    let Some(value) = headers.get(AUTHORIZATION) else {
        let detail = "send the header `Authorization: Bearer KEY`; the first key of a node is in admin.key in its data folder";
        return Err(refused("missing_credentials", detail));
    };
    let bearer =
        value.to_str().ok().and_then(|text| text.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let Some((_, key)) = bearer else {
        return Err(refused("invalid_credentials", "the Authorization header is not of the form `Bearer KEY`"));
    };
    Ok(api.engine()?.open_session(key.trim()).await?)
}

/// One line a request: an error when it is ours, nothing but `debug` for health checks and searches that were answered soon, of which there are many.
fn log(span: &Span, status: StatusCode, took_ms: f64, problem: Option<(&'static str, String)>, is_frequent: bool) {
    let is_told = problem.is_some() || !is_frequent || took_ms >= SLOW_MS;
    if !is_told && !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    span.record("status", status.as_u16());
    span.record("took_ms", (took_ms * 1e3).round() / 1e3);
    span.in_scope(|| match problem {
        Some((code, detail)) if status == StatusCode::INTERNAL_SERVER_ERROR => tracing::error!(code, "failed: {detail}"),
        Some((code, detail)) if status.is_server_error() => tracing::warn!(code, "not served: {detail}"),
        Some((code, detail)) => tracing::info!(code, "refused: {detail}"),
        None if is_told => tracing::info!("answered"),
        None => tracing::debug!("answered"),
    });
}

/// The client's id for its request when it can be repeated safely, in a header and in a log, otherwise a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_fit = (1..=REQUEST_ID_BYTES_MAX).contains(&given.len()) && given.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(given) {
        Ok(id) if is_fit => id.to_string(),
        _ => new_request_id(),
    }
}

fn new_request_id() -> String {
    ulid::Ulid::new().to_string()
}

/// Methods are free text; a label must not be.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};
    use http_body_util::BodyExt;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use warp::http::Request;

    /// A façade whose engine has not started.
    fn api() -> Arc<Api> {
        let home = vec![("HOME".to_string(), "/nowhere".to_string())];
        let config = Config::load(&Sources { file: None, variables: home, flags: Vec::new() }).unwrap().config;
        Api::new(&config.http, 64 << 20, prometheus::Registry::new()).unwrap()
    }

    async fn ask(api: &Arc<Api>, request: Request<String>) -> (StatusCode, HeaderMap, serde_json::Value) {
        let service = TowerToHyperService::new(warp::service(filter(Arc::clone(api))));
        let response = service.call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    fn get(path: &str) -> Request<String> {
        Request::get(path).body(String::new()).unwrap()
    }

    #[tokio::test]
    async fn health_answers_before_the_engine_runs() {
        let api = api();
        assert_eq!(ask(&api, get("/healthz")).await.0, 200);
        assert_eq!(ask(&api, get("/livez")).await.2["status"], "ok");
        let (status, _, body) = ask(&api, get("/readyz")).await;
        assert_eq!((status.as_u16(), &body["ready"]), (503, &false.into()));
        assert_eq!(body["waiting_for"][0]["reason"], "it is starting");
        api.stopping().cancel();
        assert_eq!(ask(&api, get("/readyz")).await.2["waiting_for"][0]["reason"], "it is stopping");
    }

    #[tokio::test]
    async fn a_request_without_a_key_is_refused_before_anything_else_is_said() {
        let api = api();
        for path in ["/metrics", "/api/v1/openapi.json", "/api/v1/collections", "/api/v1/jobs/x?wrong=parameter"] {
            let (status, headers, body) = ask(&api, get(path)).await;
            assert_eq!((status.as_u16(), &body["code"]), (401, &"missing_credentials".into()), "{path}");
            assert_eq!(headers["www-authenticate"], "Bearer");
        }
        for credential in ["Basic x", "Bearer", "x"] {
            let request = Request::get("/metrics").header("authorization", credential).body(String::new()).unwrap();
            assert_eq!(ask(&api, request).await.2["code"], "invalid_credentials", "{credential}");
        }
    }

    #[tokio::test]
    async fn work_in_place_belongs_to_the_workers_and_its_panic_is_its_answer() {
        let workers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let here = std::thread::current().id();
        let places = async {
            let spawned = tokio::spawn(async { Handle::current().id() }).await.unwrap();
            Ok((std::thread::current().id(), spawned))
        };
        let (thread, runtime) = in_place(places, workers.handle().clone()).await.unwrap();
        assert_eq!((thread, runtime), (here, workers.handle().id()));
        let failed = in_place::<()>(async { panic!("injected") }, workers.handle().clone()).await.unwrap_err();
        assert_eq!((failed.status.as_u16(), failed.code), (500, "internal"));
        workers.shutdown_background();
    }

    #[tokio::test]
    async fn a_starting_node_says_so() {
        let request = Request::get("/api/v1/jobs").header("authorization", "bearer rk_1_2").body(String::new()).unwrap();
        let (status, headers, body) = ask(&api(), request).await;
        assert_eq!((status.as_u16(), &body["code"]), (503, &"starting".into()));
        assert_eq!(headers["retry-after"], "1");
    }

    #[tokio::test]
    async fn what_is_not_there_is_a_problem_with_the_requests_id() {
        let api = api();
        let request = Request::get("/nope").header("x-request-id", "mine").body(String::new()).unwrap();
        let (status, headers, body) = ask(&api, request).await;
        assert_eq!((status.as_u16(), &body["code"]), (404, &"route_not_found".into()));
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_eq!((&headers["x-request-id"], &body["request_id"]), (&"mine".parse().unwrap(), &"mine".into()));
        let (status, headers, _) = ask(&api, Request::put("/healthz").body(String::new()).unwrap()).await;
        assert_eq!((status.as_u16(), &headers["allow"]), (405, &"GET, HEAD".parse().unwrap()));
        assert_eq!(ask(&api, get(&format!("/{}", "a".repeat(5000)))).await.0, 414);
    }

    #[tokio::test]
    async fn an_unfit_request_id_is_replaced() {
        let api = api();
        for unfit in ["two words", "", &"x".repeat(129)] {
            let request = Request::get("/healthz").header("x-request-id", unfit).body(String::new()).unwrap();
            assert_eq!(ask(&api, request).await.1["x-request-id"].len(), 26, "{unfit:?}");
        }
    }

    #[tokio::test]
    async fn requests_are_counted_by_route_and_status() {
        let api = api();
        ask(&api, get("/healthz")).await;
        ask(&api, get("/nope/1")).await;
        ask(&api, get("/nope/2")).await;
        let text = api.metrics.text().unwrap();
        assert!(text.contains(r#"{method="GET",route="/healthz",status="200"} 1"#), "{text}");
        assert!(text.contains(r#"{method="GET",route="unmatched",status="404"} 2"#), "{text}");
    }
}
