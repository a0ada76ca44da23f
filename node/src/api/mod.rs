//! The HTTP façade: `/api/v1`, health and metrics.
//!
//! A request passes `server` (connections) -> `dispatch` (id, span, route, credential, panics, metrics) -> the handler of its
//! resource (`collections`, `documents`, `import`, `search`, `jobs`, `health`) -> the engine. [`routes`] is the one table of what there
//! is; `openapi` describes the same. Whatever goes wrong on the way is a [`problem::Problem`].

pub mod body;
pub mod body_room;
pub mod cluster;
pub mod collections;
pub mod dispatch;
pub mod documents;
pub mod filter;
pub mod freshness;
pub mod health;
pub mod import;
pub mod jobs;
pub mod json;
pub mod lines;
pub mod memory;
pub mod metrics;
pub mod openapi;
pub mod problem;
pub mod query;
pub mod routes;
pub mod search;
pub mod server;
pub mod upload_form;

use crate::config::Http;
use body_room::BodyRoom;
use metrics::Metrics;
use problem::Problem;
use ragged_actors::Engine;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use warp::http::{HeaderMap, StatusCode};

/// A body that brings no byte for so long is given up.
const BODY_IDLE: Duration = Duration::from_secs(30);

/// What every request can reach.
pub struct Api {
    engine: OnceLock<Engine>,
    metrics: Metrics,
    max_body_bytes: usize,
    reading: body::Reading,
    body_room: Arc<BodyRoom>,
    stopping: CancellationToken,
    workers: Handle,
}

impl Api {
    /// A façade without its engine, with so much memory for bodies: health answers, everything else says that the node is starting.
    ///
    /// What needs the engine runs on the runtime that this is called in. Connections may be served, and health answered, by another one,
    /// which then stays quick while the first computes.
    pub fn new(http: &Http, bodies_bytes: usize, registry: prometheus::Registry) -> Result<Arc<Api>, prometheus::Error> {
        let metrics = Metrics::new(registry)?;
        let (stopping, body_room) = (CancellationToken::new(), BodyRoom::new(bodies_bytes));
        let counter = metrics.body_bytes.clone();
        Ok(Arc::new(Api {
            engine: OnceLock::new(),
            reading: body::Reading { idle: BODY_IDLE, counter, room: body_room.clone(), stopping: stopping.clone() },
            body_room,
            metrics,
            max_body_bytes: http.max_body_bytes.as_usize(),
            stopping,
            workers: Handle::current(),
        }))
    }

    /// From now on requests are served. The first engine stays.
    pub fn serve_with(&self, engine: Engine) {
        if self.engine.set(engine).is_err() {
            tracing::error!("the façade was given a second engine, and keeps the first");
        }
    }

    /// Cancelled when the node begins to stop: `/readyz` says so, and imports end after what they have read.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// The engine, once it has started.
    pub fn engine(&self) -> Result<&Engine, Problem> {
        let starting = || Problem::unavailable("starting", "the node is starting: /readyz says what it waits for");
        self.engine.get().ok_or_else(starting)
    }
}

/// A request on its way to the handler of its route.
pub struct Call {
    /// What every request can reach.
    pub api: Arc<Api>,
    /// The decoded `{parameters}` of the route's path, in order.
    pub parameters: Vec<String>,
    /// The query string, undecoded.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, unread.
    pub body: body::Body,
}

impl Call {
    /// A parameter of the path. The table of routes decides how many there are, so a missing one is a defect.
    pub fn parameter(&self, index: usize) -> Result<&str, Problem> {
        let missing = || Problem::internal("a route has fewer parameters than its handler reads");
        self.parameters.get(index).map(String::as_str).ok_or_else(missing)
    }

    /// A header that is there at most once and is text.
    pub fn header(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.headers.get_all(name).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Problem::invalid("invalid_header", format!("header {name} is given more than once")));
        }
        match value.to_str() {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Problem::invalid("invalid_header", format!("header {name} is not visible ASCII"))),
        }
    }

    /// The media type of the body, when it has one.
    pub fn media_type(&self) -> Result<Option<mime::Mime>, Problem> {
        let Some(text) = self.header("content-type")? else { return Ok(None) };
        let unreadable = |_| {
            Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                format!("content-type {text:?} is not a media type"),
            )
        };
        text.parse::<mime::Mime>().map(Some).map_err(unreadable)
    }

    /// The body, for a handler that reads it in its own way; what stays behind is empty, and keeps its place in memory until the call is answered.
    pub fn take_body(&mut self) -> body::Body {
        self.body.take()
    }

    /// Reads the body as JSON of a type.
    pub async fn json<T: serde::de::DeserializeOwned + Send + 'static>(&mut self) -> Result<T, Problem> {
        json::check_media_type(self.media_type()?.as_ref())?;
        let bytes = self.body.read_all(self.api.max_body_bytes).await?;
        json::parse(bytes).await
    }
}
