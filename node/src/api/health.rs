//! Health of the node. Nothing here waits for anything, so it answers under any load.

use crate::api::routes::Answer;
use crate::api::{Api, json};
use ragged_client::{Health, NotReady, Readiness};
use warp::http::StatusCode;

/// `GET /healthz`.
#[utoipa::path(get, path = "/healthz", tag = "operation", operation_id = "healthz", security(()),
    summary = "Is the process alive?", description = "The same as /livez.",
    responses((status = 200, description = "It is", body = Health)))]
pub fn healthz(api: &Api) -> Answer {
    livez(api)
}

/// `GET /livez`.
#[utoipa::path(get, path = "/livez", tag = "operation", operation_id = "livez", security(()),
    summary = "Is the process alive?", description = "Answers as long as the process does; whether it can serve requests is for /readyz to say.",
    responses((status = 200, description = "It is", body = Health)))]
pub fn livez(_api: &Api) -> Answer {
    json::ok(&Health { status: "ok".to_string(), version: env!("CARGO_PKG_VERSION").to_string() })
}

/// `GET /readyz`.
#[utoipa::path(get, path = "/readyz", tag = "operation", operation_id = "readyz", security(()),
    summary = "Can the node serve requests?",
    description = "Says what it waits for when it cannot, and which of its shards are not well. A node is ready when it can serve, from others where its own replicas cannot.",
    responses(
        (status = 200, description = "It can", body = Readiness),
        (status = 503, description = "It cannot: it is starting, stopping, or a part of it is being restarted", body = Readiness),
    ))]
pub fn readyz(api: &Api) -> Answer {
    let not_ready = |part: &str, reason: &str| NotReady { part: part.to_string(), reason: reason.to_string() };
    let waiting_for = match api.engine.get() {
        _ if api.stopping.is_cancelled() => vec![not_ready("node", "it is stopping")],
        None => vec![not_ready("node", "it is starting")],
        Some(engine) => {
            engine.readiness().into_iter().map(|missing| NotReady { part: missing.part, reason: missing.reason }).collect()
        }
    };
    let ready = waiting_for.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let ailing = api.engine.get().map(|engine| engine.ailing_shards()).unwrap_or_default();
    let ailing_shards = ailing.into_iter().map(|shard| NotReady { part: shard.part, reason: shard.reason }).collect();
    json::reply(status, &Readiness { ready, waiting_for, ailing_shards })
}
