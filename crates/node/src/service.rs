//! What plugins and the kubelet ask over the unix socket: HTTP/1.1 and JSON, small bodies.

use crate::driver::{Door, Input};
use crate::health::Health;
use api::attachment::{AddReply, AddRequest, DelRequest, ErrorReply};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ipam::agent::{BAD_REQUEST, Reply, TRY_AGAIN};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::sync::Arc;

/// Longest body that is read, in bytes. A request of a plugin has some hundreds.
const BODY: usize = 64 << 10;

/// CNI error code of a plugin that cannot serve now (STATUS).
const NOT_AVAILABLE: u32 = 50;

#[derive(Clone, Debug)]
struct Service {
    door: Door,
    health: Arc<Health>,
}

/// The service's routes.
pub(crate) fn router(door: Door, health: Arc<Health>) -> Router {
    Router::new()
        .route("/v1/add", post(add))
        .route("/v1/del", post(del))
        .route("/v1/status", get(status))
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(Service { door, health })
}

async fn add(State(service): State<Service>, body: Bytes) -> Response {
    let request: AddRequest = match read(&body) {
        Ok(request) => request,
        Err(error) => return refused(&error),
    };
    match service.door.ask(|sender| Input::Add(request, sender)).await {
        Reply::Added(taken) => {
            let addresses = taken.iter().map(ipam::block::Taken::with_block_prefix).collect();
            json_answer(StatusCode::OK, &AddReply { addresses })
        }
        Reply::Failed(error) => refused(&error),
        // The driver answers an ADD in one of the two ways above.
        Reply::Deleted => refused(&unexpected()),
    }
}

async fn del(State(service): State<Service>, body: Bytes) -> Response {
    let request: DelRequest = match read(&body) {
        Ok(request) => request,
        Err(error) => return refused(&error),
    };
    match service.door.ask(|sender| Input::Del(request, sender)).await {
        Reply::Deleted => json_answer(StatusCode::OK, &json!({})),
        Reply::Failed(error) => refused(&error),
        Reply::Added(_) => refused(&unexpected()),
    }
}

fn unexpected() -> ErrorReply {
    let message = "the agent answered something else than was asked; this is a fault of the agent".to_owned();
    ErrorReply { code: TRY_AGAIN, message, details: String::new() }
}

async fn status(State(service): State<Service>) -> Response {
    let missing = service.health.hindrances();
    if missing.is_empty() {
        return json_answer(StatusCode::OK, &json!({}));
    }
    let error = ErrorReply {
        code: NOT_AVAILABLE,
        message: format!("this node cannot serve pods yet, it waits for: {}", missing.join(", ")),
        details: String::new(),
    };
    json_answer(StatusCode::SERVICE_UNAVAILABLE, &error)
}

async fn readyz(State(service): State<Service>) -> Response {
    let missing = service.health.missing();
    if missing.is_empty() {
        return "ok".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}", missing.join(", "))).into_response()
}

async fn metrics(State(service): State<Service>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], service.health.metrics()).into_response()
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ErrorReply> {
    serde_json::from_slice(body).map_err(|error| ErrorReply {
        code: BAD_REQUEST,
        message: format!("the request cannot be read: {error}; is the plugin of the agent's release?"),
        details: String::new(),
    })
}

fn refused(error: &ErrorReply) -> Response {
    let status = match error.code {
        TRY_AGAIN => StatusCode::SERVICE_UNAVAILABLE,
        BAD_REQUEST => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    json_answer(status, error)
}

fn json_answer<T: Serialize>(status: StatusCode, body: &T) -> Response {
    (status, axum::Json(body)).into_response()
}
