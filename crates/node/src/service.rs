//! What plugins and the kubelet ask over the unix socket: HTTP/1.1 and JSON, small bodies.

use crate::annotations;
use crate::driver::{Door, Input};
use crate::health::Health;
use crate::registry::Registry;
use crate::releases::SystemClock;
use crate::upkeep;
use api::Cidr;
use api::attachment::{
    AddAnswer, AddCall, CheckRequest, DelRequest, ErrorReply, GcReply, GcRequest, StatusRequest,
};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use datastore::backend::Backend;
use datastore::gate::Gate;
use datastore::{Datastore as _, Key, ReadError};
use futures::TryFutureExt as _;
use ipam::agent::{BAD_REQUEST, Demand, Reply, TRY_AGAIN};
use ipam::block::Taken;
use ipam::takeover::{Predecessor, take_over};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// Longest body that is read, in bytes. A request of a plugin has some hundreds.
const BODY: usize = 64 << 10;

/// The same of a request that names every attachment of a node.
const LONG_BODY: usize = 1 << 20;

/// CNI error code of a plugin that cannot serve now (STATUS).
const NOT_AVAILABLE: u32 = 50;

/// CNI error code of a plugin that cannot serve now, and whose containers may have limited connectivity (STATUS): while the
/// datastore is away, nobody learns of new nodes and blocks.
const IMPAIRED: u32 = 51;

/// How long an ADD waits while the datastore is away; a runtime is told so soon. A datastore that answers slowly is waited for.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long CHECK and GC may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(8);

/// What CHECK and GC are about, beside the driver.
#[derive(Clone)]
pub(crate) struct Upkeep {
    pub(crate) store: Gate<Backend>,
    pub(crate) node: String,
    pub(crate) registry: Registry,
}

#[derive(Clone)]
struct Service {
    door: Door,
    health: Arc<Health>,
    upkeep: Upkeep,
}

/// The service's routes.
pub(crate) fn router(door: Door, health: Arc<Health>, upkeep: Upkeep) -> Router {
    Router::new()
        .route("/v1/add", post(add))
        .route("/v1/del", post(del))
        .route("/v1/check", post(check))
        .route("/v1/gc", post(gc).layer(DefaultBodyLimit::max(LONG_BODY)))
        .route("/v1/status", get(status).post(status))
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(Service { door, health, upkeep })
}

async fn add(State(service): State<Service>, body: Bytes) -> Response {
    let call: AddCall = match read(&body) {
        Ok(call) => call,
        Err(error) => return refused(&error),
    };
    tokio::select! {
        result = service.added(call) => match result {
            Ok(answer) => json_answer(StatusCode::OK, &answer),
            Err(error) => refused(&error),
        },
        // What was begun goes on, and is the answer to the same ADD when it comes again.
        () = given_up(&service.health) => {
            let message = "the datastore does not answer; try again when it does".to_owned();
            refused(&ErrorReply { code: TRY_AGAIN, message, details: String::new() })
        }
    }
}

impl Service {
    async fn added(&self, call: AddCall) -> Result<AddAnswer, ErrorReply> {
        let requests = match call.annotations {
            true => annotations::requests(self.upkeep.registry.client(), call.request).await?,
            false => vec![call.request],
        };
        if let [request] = requests.as_slice()
            && (call.looks || !call.gone.is_empty())
        {
            let demand = Demand::pod(request, &self.upkeep.node, Timestamp::now())?;
            let mut old = self.door.predecessors(demand.clone()).await;
            if call.looks && !old.is_empty() {
                let asked: BTreeSet<String> = old.into_iter().map(|old| old.sandbox).collect();
                return Ok(AddAnswer { asked: asked.into_iter().collect(), ..AddAnswer::default() });
            }
            old.retain(|old| call.gone.contains(&old.sandbox));
            self.take_over(&demand, &old).await;
        }
        let mut answer = AddAnswer::default();
        for request in requests {
            let is_particular = request.requested.is_some();
            match self.door.ask(|sender| Input::Add(request, sender)).await {
                // An address that was asked for is answered alone, as Calico's plugin does.
                Reply::Added(taken) if is_particular => {
                    answer.addresses.extend(taken.iter().map(|taken| Cidr::from(taken.address).to_string()));
                }
                Reply::Added(taken) => answer.addresses.extend(taken.iter().map(Taken::with_block_prefix)),
                Reply::Failed(error) => return Err(error),
                // The driver answers an ADD in one of the two ways above.
                Reply::Deleted => return Err(unexpected()),
            }
        }
        Ok(answer)
    }

    /// Hands over what an earlier sandbox holds. Where that fails the pod gets another address, and the collector has the old one.
    async fn take_over(&self, demand: &Demand, old: &[Predecessor]) {
        if old.is_empty() || self.health.is_locked() {
            return;
        }
        match take_over(&self.upkeep.store, &SystemClock, demand, old).await {
            Ok(taken) => info!(handle = demand.handle, ?taken, "took over addresses of an earlier sandbox"),
            Err(error) => {
                warn!(handle = demand.handle, %error, "could not take over addresses of an earlier sandbox");
            }
        }
    }
}

/// Ends when an ADD that begins now has waited long enough for a datastore that is away.
async fn given_up(health: &Health) {
    tokio::time::sleep(PATIENCE).await;
    health.until_away().await;
}

async fn check(State(service): State<Service>, body: Bytes) -> Response {
    let request: CheckRequest = match read(&body) {
        Ok(request) => request,
        Err(error) => return refused(&error),
    };
    let checked = upkeep::check(&service.upkeep.store, &SystemClock, &request);
    answered(&service.health, checked.map_ok(|()| json!({}))).await
}

async fn gc(State(service): State<Service>, body: Bytes) -> Response {
    let request: GcRequest = match read(&body) {
        Ok(request) => request,
        Err(error) => return refused(&error),
    };
    if service.health.is_locked() {
        let message =
            "the datastore is locked while it is migrated; try again when it is unlocked".to_owned();
        return refused(&ErrorReply { code: TRY_AGAIN, message, details: String::new() });
    }
    let collected = upkeep::gc(&service.upkeep.store, &SystemClock, &service.upkeep.node, &request);
    let told = |reply: GcReply| {
        info!(
            network = request.network,
            released = reply.released.len(),
            asked = reply.asked.len(),
            "collected for a runtime"
        );
        json!(reply)
    };
    answered(&service.health, collected.map_ok(told)).await
}

/// The answer of what asks the datastore itself, within its time.
async fn answered(
    health: &Health,
    work: impl Future<Output = Result<serde_json::Value, ErrorReply>>,
) -> Response {
    let late = |message: String| ErrorReply { code: TRY_AGAIN, message, details: String::new() };
    let result = tokio::select! {
        result = tokio::time::timeout(LOOK_DEADLINE, work) => result.unwrap_or_else(|_| {
            Err(late(format!("the datastore did not answer within {} s; try again", LOOK_DEADLINE.as_secs())))
        }),
        () = given_up(health) => Err(late("the datastore does not answer; try again when it does".to_owned())),
    };
    match result {
        Ok(reply) => json_answer(StatusCode::OK, &reply),
        Err(error) => refused(&error),
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

/// Whether an ADD can be served: of any kind (no body), or of the kind that is described.
async fn status(State(service): State<Service>, body: Bytes) -> Response {
    let request = match body.is_empty() {
        true => StatusRequest::default(),
        false => match read(&body) {
            Ok(request) => request,
            Err(error) => return refused(&error),
        },
    };
    let unavailable = |code: u32, message: String| {
        let error = ErrorReply { code, message, details: String::new() };
        json_answer(StatusCode::SERVICE_UNAVAILABLE, &error)
    };
    if service.health.is_away() || !answers(&service.upkeep.store).await {
        let message = "the agent cannot reach its datastore: no pod gets an address, and what other nodes change is not \
                       heard of";
        return unavailable(IMPAIRED, message.to_owned());
    }
    let missing = service.health.hindrances();
    if !missing.is_empty() {
        let message = format!("this node cannot serve pods yet, it waits for: {}", missing.join(", "));
        return unavailable(NOT_AVAILABLE, message);
    }
    match service.door.hindrance(request).await {
        Some(hindrance) => unavailable(NOT_AVAILABLE, hindrance),
        None => json_answer(StatusCode::OK, &json!({})),
    }
}

/// Whether the datastore says anything at all now. Watches may not have noticed yet.
async fn answers(store: &Gate<Backend>) -> bool {
    let word = tokio::time::timeout(PATIENCE, store.get(&Key::ClusterInformation)).await;
    !matches!(word, Err(_) | Ok(Err(ReadError::Unavailable { .. })))
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
        upkeep::DIFFERS => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    json_answer(status, error)
}

fn json_answer<T: Serialize>(status: StatusCode, body: &T) -> Response {
    (status, axum::Json(body)).into_response()
}
