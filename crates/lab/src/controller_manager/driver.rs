//! The controllers' rim: watches in, requests out.

use super::action::{Action, Kind};
use super::cache::Cache;
use super::object;
use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::Client;
use kube::core::WatchEvent;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

/// Requests under way at once: enough to keep a durable store's group commit busy.
const CONCURRENCY: usize = 32;

/// How often the clock alone can change a verdict (a Lease that goes stale).
const TICK: Duration = Duration::from_secs(5);

/// Wait before a failed watch or a failed write is tried again.
const RETRY: Duration = Duration::from_millis(300);

/// What the controller manager needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Credentials and address of the API server.
    pub kubeconfig: PathBuf,
    /// Subnet from which nodes get their (here unused) pod CIDRs.
    pub pod_subnet: String,
}

/// What a watch delivers.
enum Delivery {
    Listed(Kind, Vec<Value>),
    Put(Kind, Value),
    Deleted(Kind, Value),
}

/// Runs the workload controllers and the scheduler until the process ends.
///
/// # Errors
/// When the kubeconfig cannot be used. A lost API server is waited for, not reported as an error.
pub async fn run(options: Options) -> Result<()> {
    let client = datastore::kubernetes::client(Some(&options.kubeconfig)).await?;
    let (sender, mut deliveries) = mpsc::channel(4096);
    for kind in Kind::WATCHED {
        tokio::spawn(follow(client.clone(), kind, sender.clone()));
    }
    drop(sender);

    let mut cache = Cache::default();
    let mut listed = std::collections::BTreeSet::new();
    let mut inbox = Vec::new();
    let mut tick = tokio::time::interval(TICK);
    let mut retry = false;
    info!("watching");
    loop {
        tokio::select! {
            received = deliveries.recv_many(&mut inbox, 4096) => {
                if received == 0 {
                    return Ok(());
                }
            }
            _ = tick.tick() => {}
            () = tokio::time::sleep(RETRY), if retry => {}
        }
        for delivery in inbox.drain(..) {
            match delivery {
                Delivery::Listed(kind, objects) => {
                    listed.insert(kind);
                    cache.reset(kind, objects);
                }
                Delivery::Put(kind, object) => {
                    cache.put(kind, object);
                }
                Delivery::Deleted(kind, object) => {
                    cache.remove(kind, &object::name_of(&object), object::uid(&object));
                }
            }
        }
        // A verdict from half a view would delete what it cannot see.
        if listed.len() == Kind::WATCHED.len() {
            retry = settle(&client, &mut cache, &options.pod_subnet).await;
        }
    }
}

/// Carries out what the reconcilers want until they want nothing more. True if something failed and is to be tried again.
async fn settle(client: &Client, cache: &mut Cache, pod_subnet: &str) -> bool {
    // Each round builds on the answers of the one before: ReplicaSet, then pods, then bindings.
    for _ in 0..8 {
        let actions = super::reconcile(cache, jiff::Timestamp::now(), pod_subnet);
        if actions.is_empty() {
            return false;
        }
        let mut answers = stream::iter(actions)
            .map(|action| async move {
                let answer = perform(client, &action).await;
                (action, answer)
            })
            .buffer_unordered(CONCURRENCY);
        let mut failed = false;
        while let Some((action, answer)) = answers.next().await {
            match answer {
                Ok(answer) => take_in(cache, &action, answer),
                // Somebody was faster: the watch brings what we have to decide upon anew.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    debug!(?action, reason = status.message, "overtaken");
                    failed = true;
                }
                Err(error) => {
                    warn!(?action, %error, "request failed");
                    failed = true;
                }
            }
        }
        if failed {
            return true;
        }
    }
    true
}

/// Lays the answer to a write over the view.
fn take_in(cache: &mut Cache, action: &Action, answer: Value) {
    let is_object = !object::text(&answer, &["metadata", "uid"]).is_empty();
    match action {
        Action::Create(kind, _) | Action::Patch(kind, ..) | Action::PatchStatus(kind, ..) => {
            cache.put(*kind, answer);
        }
        Action::Delete(kind, _, _) if is_object && object::is_deleting(&answer) => {
            cache.put(*kind, answer);
        }
        Action::Delete(kind, name, uid) => {
            cache.remove(*kind, name, uid);
        }
        Action::Bind(name, node) => {
            // The answer is a Status. The pod is bound; its revision stays behind the event that will tell so.
            if let Some(pod) = cache.get(Kind::Pod, name) {
                let mut pod = pod.clone();
                object::set(&mut pod, &["spec", "nodeName"], json!(node));
                cache.overlay(Kind::Pod, pod);
            }
        }
        Action::Event { .. } => {}
    }
}

async fn perform(client: &Client, action: &Action) -> Result<Value, kube::Error> {
    match action {
        Action::Create(kind, body) => {
            let (namespace, _) = object::name_of(body);
            send(client, "POST", &kind.path(&namespace), "application/json", body).await
        }
        Action::Patch(kind, (namespace, name), body) => {
            let path = format!("{}/{name}", kind.path(namespace));
            send(client, "PATCH", &path, "application/merge-patch+json", body).await
        }
        Action::PatchStatus(kind, (namespace, name), body) => {
            let path = format!("{}/{name}/status", kind.path(namespace));
            send(client, "PATCH", &path, "application/merge-patch+json", body).await
        }
        Action::Delete(kind, (namespace, name), uid) => {
            let path = format!("{}/{name}", kind.path(namespace));
            let body = json!({"propagationPolicy": "Background", "preconditions": {"uid": uid}});
            send(client, "DELETE", &path, "application/json", &body).await
        }
        Action::Bind((namespace, name), node) => {
            let path = format!("{}/{name}/binding", Kind::Pod.path(namespace));
            let body = json!({
                "apiVersion": "v1", "kind": "Binding",
                "metadata": {"name": name, "namespace": namespace},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            });
            send(client, "POST", &path, "application/json", &body).await
        }
        Action::Event { about, kind, warning, reason, message } => {
            let (namespace, name) = object::name_of(about);
            let namespace = if namespace.is_empty() { "default".to_owned() } else { namespace };
            let now = jiff::Timestamp::now();
            let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let body = json!({
                "apiVersion": "v1", "kind": "Event",
                "metadata": {"name": format!("{name}.{:x}", now.as_nanosecond()), "namespace": namespace},
                "involvedObject": {
                    "apiVersion": kind.api_version(), "kind": kind.name(), "name": name,
                    "namespace": object::name_of(about).0, "uid": object::uid(about),
                    "resourceVersion": object::text(about, &["metadata", "resourceVersion"]),
                },
                "type": if *warning { "Warning" } else { "Normal" },
                "reason": reason, "message": message, "count": 1,
                "firstTimestamp": time, "lastTimestamp": time,
                "source": {"component": "default-scheduler"},
                "reportingComponent": "", "reportingInstance": "",
            });
            // An event that cannot be told is not worth failing for.
            let path = format!("/api/v1/namespaces/{namespace}/events");
            Ok(send(client, "POST", &path, "application/json", &body).await.unwrap_or(Value::Null))
        }
    }
}

async fn send(
    client: &Client,
    method: &str,
    path: &str,
    content_type: &str,
    body: &Value,
) -> Result<Value, kube::Error> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// Lists and watches a kind for ever.
async fn follow(client: Client, kind: Kind, sender: mpsc::Sender<Delivery>) {
    loop {
        if let Err(error) = list_and_watch(&client, kind, &sender).await {
            debug!(kind = kind.name(), error = format!("{error:#}"), "watch lost");
        }
        if sender.is_closed() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn list_and_watch(client: &Client, kind: Kind, sender: &mpsc::Sender<Delivery>) -> Result<()> {
    let get = |uri: String| http::Request::get(uri).body(Vec::new()).context("building a request");
    let mut list: Value = client.request(get(kind.path(""))?).await?;
    let mut revision = object::text(&list, &["metadata", "resourceVersion"]).to_owned();
    let objects = match list.get_mut("items").map(Value::take) {
        Some(Value::Array(objects)) => objects,
        _ => Vec::new(),
    };
    sender.send(Delivery::Listed(kind, objects)).await?;
    loop {
        let uri = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds=290&resourceVersion={revision}",
            kind.path("")
        );
        let mut events = client.request_events::<Value>(get(uri)?).await?.boxed();
        while let Some(event) = events.try_next().await? {
            let delivery = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    revision = object::text(&object, &["metadata", "resourceVersion"]).to_owned();
                    Delivery::Put(kind, object)
                }
                WatchEvent::Deleted(object) => {
                    revision = object::text(&object, &["metadata", "resourceVersion"]).to_owned();
                    Delivery::Deleted(kind, object)
                }
                WatchEvent::Bookmark(bookmark) => {
                    revision = bookmark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) => anyhow::bail!("{}", status.message),
            };
            sender.send(delivery).await?;
        }
    }
}
