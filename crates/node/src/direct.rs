//! One request of the CNI plugin on a node without an agent: straight to the datastore, under Calico's lock of the node, so that
//! both plugins can be on one node.
//!
//! It reads what it needs and writes by the same operations as everybody ([`ipam::assign`], [`ipam::release`]); what keeps two
//! programs from one address is the datastore, the lock only spares them each other's conflicts. There is no queue of releases
//! here: while the datastore is away, a DEL fails with code 11, and the runtime repeats it.

mod add;
mod del;
mod host_lock;
mod status;

use crate::annotations;
use crate::node_object;
use crate::releases::SystemClock;
use crate::upkeep;
use api::attachment::{
    AddAnswer, AddCall, AddRequest, CheckRequest, DelRequest, ErrorReply, GcRequest, StatusRequest,
};
use api::direct::DirectCall;
use datastore::backend::{Settings, in_environment};
use datastore::gate::Gate;
use datastore::{Datastore, Key, ReadError, Record};
use host_lock::HostLock;
use ipam::StoreError;
use ipam::agent::{BAD_REQUEST, NOT_SERVED, TRY_AGAIN};
use kube::Client;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the datastore may take for its first word: a runtime is told soon that it is away.
const FIRST_WORD: Duration = Duration::from_millis(1500);

/// How long a request may take once the lock is held, as Calico has it.
const DEADLINE: Duration = Duration::from_secs(90);

/// CNI error code of a plugin that cannot serve now, and whose containers may have limited connectivity (STATUS).
const IMPAIRED: u32 = 51;

fn refusal(code: u32, message: impl Into<String>) -> ErrorReply {
    ErrorReply { code, message: message.into(), details: String::new() }
}

fn failed(error: &StoreError) -> ErrorReply {
    refusal(if error.is_retryable() { TRY_AGAIN } else { NOT_SERVED }, error.to_string())
}

fn unread(error: ReadError) -> ErrorReply {
    failed(&error.into())
}

/// Serves the request that `text` is, a [`DirectCall`], and returns the answer's body.
///
/// # Errors
/// [`ErrorReply`], with the codes of the agent.
pub async fn run(text: &[u8]) -> Result<Value, ErrorReply> {
    let call: DirectCall = serde_json::from_slice(text)
        .map_err(|error| refusal(BAD_REQUEST, format!("the call cannot be read: {error}")))?;
    let variable = |name: &str| call.variables.get(name).cloned().or_else(|| in_environment(name));
    let settings = Settings::from_variables(variable).map_err(|error| refusal(BAD_REQUEST, chain(&error)))?;
    let store = settings.connect().await.map_err(|error| refusal(BAD_REQUEST, chain(&error)))?;
    let client = settings.client(&store).await.map_err(|error| refusal(BAD_REQUEST, chain(&error)))?;
    serve(&Gate::new(store), client, &call).await
}

/// What is answered where the call could not even be taken in.
#[must_use]
pub fn unserved(error: &std::io::Error) -> ErrorReply {
    refusal(TRY_AGAIN, format!("the call could not be served: {error}"))
}

/// An error as the plugin reads it.
#[must_use]
pub fn text_of(error: &ErrorReply) -> String {
    json!(error).to_string()
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

async fn serve<D: Datastore>(
    store: &Gate<D>,
    client: Option<Client>,
    call: &DirectCall,
) -> Result<Value, ErrorReply> {
    let lock = async || {
        let lock = HostLock::take(call.lock_file.clone()).await?;
        // The datastore may have been locked while that was waited for.
        if lock.waited {
            unlocked(store).await?;
        }
        Ok::<_, ErrorReply>(lock)
    };
    match call.path.as_str() {
        "/v1/status" => {
            let request: StatusRequest = read(&call.body)?;
            let locked = first_word(store).await.map_err(|error| ErrorReply { code: IMPAIRED, ..error })?;
            if locked {
                return Err(refusal(status::NOT_AVAILABLE, "the datastore is locked while it is migrated"));
            }
            within(status::status(store, &call.node, &request)).await.map(|()| json!({}))
        }
        "/v1/check" => {
            let request: CheckRequest = read(&call.body)?;
            first_word(store).await?;
            within(upkeep::check(store, &SystemClock, &request)).await.map(|()| json!({}))
        }
        "/v1/add" => {
            let asked: AddCall = read(&call.body)?;
            unlocked(store).await?;
            // As in Calico's plugin, what is looked up is looked up before the lock.
            let labels = namespace_labels(client.as_ref(), &asked.request).await?;
            let requests = match asked.annotations {
                true => annotations::requests(client.as_ref(), asked.request).await?,
                false => vec![asked.request],
            };
            let _lock = lock().await?;
            let mut answer = AddAnswer::default();
            for request in requests {
                let added = add::add(store, &SystemClock, &call.node, &request, labels.clone());
                answer.addresses.extend(within(added).await?.addresses);
            }
            body(&answer)
        }
        "/v1/del" => {
            let request: DelRequest = read(&call.body)?;
            unlocked(store).await?;
            let _lock = lock().await?;
            within(del::del(store, &SystemClock, &request, &call.answered)).await.map(|()| json!({}))
        }
        "/v1/gc" => {
            let request: GcRequest = read(&call.body)?;
            unlocked(store).await?;
            let _lock = lock().await?;
            within(upkeep::gc(store, &SystemClock, &call.node, &request)).await.and_then(|reply| body(&reply))
        }
        other => {
            Err(refusal(BAD_REQUEST, format!("{other} is no request of the plugin; is it of this release?")))
        }
    }
}

fn read<T: DeserializeOwned>(body: &Value) -> Result<T, ErrorReply> {
    T::deserialize(body).map_err(|error| refusal(BAD_REQUEST, format!("the request cannot be read: {error}")))
}

fn body(reply: &impl Serialize) -> Result<Value, ErrorReply> {
    serde_json::to_value(reply).map_err(|error| refusal(NOT_SERVED, error.to_string()))
}

async fn within<T>(work: impl Future<Output = Result<T, ErrorReply>>) -> Result<T, ErrorReply> {
    let late = || Err(refusal(TRY_AGAIN, "the datastore is too slow; try again"));
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| late())
}

/// Whether the datastore answers, and whether it is locked.
async fn first_word<D: Datastore>(store: &D) -> Result<bool, ErrorReply> {
    let away =
        |reason: String| refusal(TRY_AGAIN, format!("the datastore does not answer: {reason}; try again"));
    match tokio::time::timeout(FIRST_WORD, store.get(&Key::ClusterInformation)).await {
        Err(_) => Err(away(format!("nothing came within {} ms", FIRST_WORD.as_millis()))),
        Ok(Err(ReadError::Unavailable { reason, .. })) => Err(away(reason)),
        Ok(Ok(Some(stored))) => Ok(match stored.record {
            Record::ClusterInformation(cluster) => !cluster.datastore_ready,
            _ => false,
        }),
        // What cannot be read here is no lock, as for the agent.
        Ok(Ok(None) | Err(_)) => Ok(false),
    }
}

async fn unlocked<D: Datastore>(store: &D) -> Result<(), ErrorReply> {
    match first_word(store).await? {
        true => Err(refusal(
            TRY_AGAIN,
            "the datastore is locked while it is migrated; try again when it is unlocked",
        )),
        false => Ok(()),
    }
}

/// Labels of the pod's namespace, where there is a Kubernetes API to ask.
async fn namespace_labels(
    client: Option<&Client>,
    request: &AddRequest,
) -> Result<BTreeMap<String, String>, ErrorReply> {
    let (Some(client), Some(namespace)) = (client, &request.namespace) else { return Ok(BTreeMap::new()) };
    node_object::namespace_labels(client, namespace)
        .await
        .map_err(|error| refusal(error.code(), format!("failed to get namespace {namespace}: {error}")))
}

#[cfg(test)]
mod tests;
