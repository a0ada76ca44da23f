//! `/metrics`: counters of the façade and of the process, beside those that the engine registers.

use crate::api::problem::Problem;
use crate::api::query::Query;
use crate::api::routes::Answer;
use crate::api::{Api, Call};
use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use ragged_actors::{ProcessMemory, Session};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

/// Upper bounds of the latency histogram, in seconds: from a health check to an import.
const LATENCY_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// Counters of the façade and of the process.
pub struct Metrics {
    registry: Registry,
    /// Answered requests, by route, method and status; status `gone` when the client left before the answer.
    requests: IntCounterVec,
    /// Seconds from the head of a request to its answer, by route and method.
    latency: HistogramVec,
    /// Requests being answered.
    in_flight: IntGauge,
    /// Bytes of bodies that were read.
    pub body_bytes: IntCounter,
    /// Connections that are open.
    pub connections: IntGauge,
    /// Connections that were refused because there were too many.
    pub connections_refused: IntCounter,
    resident_bytes: IntGauge,
    open_files: IntGauge,
    uptime_seconds: IntGauge,
    started: Instant,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: Registry) -> Result<Metrics, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new("ragged_http_requests_total", "Answered requests; status `gone` when the client left before the answer."),
            &["route", "method", "status"],
        )?;
        let latency = HistogramVec::new(
            HistogramOpts::new("ragged_http_request_seconds", "Seconds from the head of a request to its answer.")
                .buckets(LATENCY_SECONDS.to_vec()),
            &["route", "method"],
        )?;
        let in_flight = IntGauge::new("ragged_http_requests_in_flight", "Requests being answered.")?;
        let body_bytes = IntCounter::new("ragged_http_request_body_bytes_total", "Bytes of request bodies that were read.")?;
        let connections = IntGauge::new("ragged_http_connections", "Connections that are open.")?;
        let connections_refused = IntCounter::new(
            "ragged_http_connections_refused_total",
            "Connections refused because http.max_connections were open.",
        )?;
        let resident_bytes = IntGauge::new("process_resident_memory_bytes", "Resident memory of the process.")?;
        let open_files = IntGauge::new("process_open_fds", "Open file descriptors of the process.")?;
        let start_seconds =
            IntGauge::new("process_start_time_seconds", "When the process started, in seconds since 1970-01-01 UTC.")?;
        let uptime_seconds = IntGauge::new("ragged_uptime_seconds", "Seconds since the node started.")?;
        let build = GaugeVec::new(Opts::new("ragged_build_info", "1, with the version of the node."), &["version"])?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(latency.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(body_bytes.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(connections_refused.clone()))?;
        registry.register(Box::new(resident_bytes.clone()))?;
        registry.register(Box::new(open_files.clone()))?;
        registry.register(Box::new(start_seconds.clone()))?;
        registry.register(Box::new(uptime_seconds.clone()))?;
        registry.register(Box::new(build.clone()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        start_seconds.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        let started = Instant::now();
        Ok(Metrics {
            registry,
            requests,
            latency,
            in_flight,
            body_bytes,
            connections,
            connections_refused,
            resident_bytes,
            open_files,
            uptime_seconds,
            started,
        })
    }

    /// Counts a request from here on. `route` is the template of its path, so that labels stay few.
    pub fn begin(&self, route: &'static str, method: &'static str) -> InFlight {
        self.in_flight.inc();
        InFlight {
            requests: self.requests.clone(),
            latency: self.latency.clone(),
            in_flight: self.in_flight.clone(),
            route,
            method,
            status: None,
            began: Instant::now(),
        }
    }

    /// Everything in the registry, in Prometheus' text format.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        self.uptime_seconds.set(i64::try_from(self.started.elapsed().as_secs()).unwrap_or(i64::MAX));
        if let Ok(memory) = ProcessMemory::current() {
            self.resident_bytes.set(i64::try_from(memory.resident).unwrap_or(i64::MAX));
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.open_files.set(i64::try_from(files.count()).unwrap_or(i64::MAX));
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

/// A request being answered. When it is dropped without an answer, the client has left.
pub struct InFlight {
    requests: IntCounterVec,
    latency: HistogramVec,
    in_flight: IntGauge,
    route: &'static str,
    method: &'static str,
    status: Option<u16>,
    began: Instant,
}

impl InFlight {
    /// The request was answered with a status; says how long it took.
    pub fn answered(mut self, status: u16) -> Duration {
        self.status = Some(status);
        self.began.elapsed()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.in_flight.dec();
        let status = self.status.map_or_else(|| "gone".to_string(), |status| status.to_string());
        self.requests.with_label_values(&[self.route, self.method, &status]).inc();
        self.latency.with_label_values(&[self.route, self.method]).observe(self.began.elapsed().as_secs_f64());
    }
}

/// `GET /metrics`.
#[utoipa::path(get, path = "/metrics", tag = "operation", operation_id = "metrics",
    summary = "Metrics", description = "Counters, gauges and histograms in Prometheus' text format. Needs a key: labels name routes and shards.",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain")))]
pub async fn metrics(call: Call, _session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    text_answer(&call.api)
}

fn text_answer(api: &Api) -> Answer {
    let text = api.metrics.text().map_err(|error| Problem::internal(format!("gathering metrics failed: {error}")))?;
    let mut response = Response::new(text.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_with_their_answer_or_as_gone() {
        let metrics = Metrics::new(Registry::new()).unwrap();
        metrics.begin("/healthz", "GET").answered(200);
        drop(metrics.begin("/healthz", "GET"));
        let text = metrics.text().unwrap();
        assert!(text.contains(r#"ragged_http_requests_total{method="GET",route="/healthz",status="200"} 1"#), "{text}");
        assert!(text.contains(r#"ragged_http_requests_total{method="GET",route="/healthz",status="gone"} 1"#), "{text}");
        assert!(text.contains("ragged_http_requests_in_flight 0"), "{text}");
        assert!(text.contains("process_resident_memory_bytes") && text.contains("ragged_build_info{version="), "{text}");
    }
}
