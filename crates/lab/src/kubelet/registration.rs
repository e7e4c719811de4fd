//! Keeps the node's own objects: the Node with its conditions, and the Lease that says that its kubelet lives.

use super::agent::State;
use super::api::{RETRY, code};
use super::node::{self, Machine};
use super::shared::Shared;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{debug, info};

/// How often the Lease is renewed and the Node looked at.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// After so many seconds the conditions are told again although nothing changed.
const RETELL_SECONDS: i64 = 300;

/// How long a new kubelet waits for the agent's answer before it calls a ready node not ready.
const TAKE_OVER: Duration = Duration::from_secs(3);

/// How long a Lease lasts, in seconds.
const LEASE_SECONDS: u32 = 40;

/// Registers the node and keeps what is said about it true, for ever.
pub(super) async fn keep(shared: Arc<Shared>, mut network: watch::Receiver<State>) {
    let machine = Machine::read(&shared.cluster.directory);
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = Timestamp::UNIX_EPOCH;
    // A kubelet that was restarted has yet to ask the agent: until then what the one before said stands.
    let was_ready = shared.api.get(&path(&shared)).await.is_ok_and(|node| {
        let conditions = super::pod::items(&node, "/status/conditions");
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    });
    if was_ready {
        // If it does not answer in this time, that is what is reported.
        let _ = tokio::time::timeout(TAKE_OVER, network.wait_for(State::is_ready)).await;
    }
    loop {
        let beat = tokio::select! {
            _ = heartbeat.tick() => true,
            changed = network.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
        };
        loop {
            let state = network.borrow_and_update().clone();
            match report(&shared, &machine, &state, &mut told).await {
                Ok(()) => break,
                Err(error) => debug!(%error, "did not report the node's state"),
            }
            tokio::time::sleep(RETRY).await;
        }
        if beat && let Err(error) = renew(&shared).await {
            debug!(%error, "did not renew the lease");
            heartbeat.reset_after(RETRY);
        }
    }
}

fn path(shared: &Shared) -> String {
    format!("/api/v1/nodes/{}", shared.node.name)
}

async fn report(
    shared: &Shared,
    machine: &Machine,
    state: &State,
    told: &mut Timestamp,
) -> Result<(), kube::Error> {
    let path = path(shared);
    let now = Timestamp::now();
    let existing = match shared.api.get(&path).await {
        Err(error) if code(&error) == Some(404) => {
            let object = node::object(&shared.cluster, &shared.node, machine, state, now);
            let made = shared.api.create("/api/v1/nodes", &object).await?;
            info!(node = shared.node.name, "registered the node");
            *told = now;
            if super::pod::items(&made, "/status/conditions").is_empty() {
                // A server that takes the status by its subresource only.
                shared.api.patch(&format!("{path}/status"), &json!({"status": object["status"]})).await?;
            }
            return Ok(());
        }
        answer => answer?,
    };
    let conditions = node::conditions(&existing, state, now);
    if node::is_told(&existing, &conditions) && now.as_second() - told.as_second() < RETELL_SECONDS {
        return Ok(());
    }
    // The list is replaced whole: by this revision or not at all.
    let revision = super::pod::text(&existing, "/metadata/resourceVersion");
    let patch = json!({"metadata": {"resourceVersion": revision}, "status": {"conditions": conditions}});
    shared.api.patch(&format!("{path}/status"), &patch).await?;
    info!(node = shared.node.name, ready = state.is_ready(), "reported the node's state");
    *told = now;
    Ok(())
}

async fn renew(shared: &Shared) -> Result<(), kube::Error> {
    const COLLECTION: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let name = &shared.node.name;
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    let patch = json!({"spec": {"holderIdentity": name, "renewTime": now}});
    match shared.api.patch(&format!("{COLLECTION}/{name}"), &patch).await {
        Err(error) if code(&error) == Some(404) => {
            let lease: Value = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "namespace": "kube-node-lease"},
                "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now},
            });
            shared.api.create(COLLECTION, &lease).await?;
            Ok(())
        }
        answer => answer.map(|_| ()),
    }
}
