//! Events: what people are told about a pod. The same event again is counted, not written anew.

use super::api::Api;
use super::pod::Pod;
use super::status::clock;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tracing::debug;

/// Events that wait to be written; more are dropped, they are no record.
const QUEUE: usize = 1024;

/// Events whose repetitions are counted.
const REMEMBERED: usize = 512;

#[derive(Clone, Debug)]
struct Event {
    namespace: String,
    name: String,
    uid: String,
    warning: bool,
    reason: &'static str,
    message: String,
    /// Name of the container it is about, if one is.
    container: Option<String>,
}

/// Takes events to be written.
#[derive(Clone, Debug)]
pub(super) struct Events {
    sender: mpsc::Sender<Event>,
}

impl Events {
    /// Starts the writer.
    pub(super) fn start(api: Api, node: String) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(write(api, node, receiver));
        Self { sender }
    }

    /// Something worth knowing.
    pub(super) fn normal(&self, pod: &Pod, container: &str, reason: &'static str, message: String) {
        self.tell(pod, Some(container), false, reason, message);
    }

    /// Something that keeps the pod from running.
    pub(super) fn warning(&self, pod: &Pod, container: Option<&str>, reason: &'static str, message: String) {
        self.tell(pod, container, true, reason, message);
    }

    fn tell(&self, pod: &Pod, container: Option<&str>, warning: bool, reason: &'static str, message: String) {
        let event = Event {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            warning,
            reason,
            message,
            container: container.map(str::to_owned),
        };
        if self.sender.try_send(event).is_err() {
            debug!(pod = pod.name, reason, "dropped an event: too many wait");
        }
    }
}

struct Written {
    path: String,
    count: u32,
    last: Timestamp,
}

async fn write(api: Api, node: String, mut events: mpsc::Receiver<Event>) {
    let mut written: BTreeMap<(String, &'static str, String), Written> = BTreeMap::new();
    while let Some(event) = events.recv().await {
        let now = Timestamp::now();
        let key = (event.uid.clone(), event.reason, event.message.clone());
        if let Some(known) = written.get_mut(&key) {
            known.count += 1;
            known.last = now;
            let patch = json!({"count": known.count, "lastTimestamp": clock(now)});
            match api.patch(&known.path, &patch).await {
                Ok(_) => continue,
                // It may be gone or unreachable: written anew with the next occasion.
                Err(error) => debug!(%error, "did not count an event"),
            }
            written.remove(&key);
        }
        let collection = format!("/api/v1/namespaces/{}/events", event.namespace);
        let name = format!("{}.{:x}", event.name, now.as_nanosecond());
        match api.create(&collection, &object(&event, &name, &node, now)).await {
            Ok(_) => {
                if written.len() >= REMEMBERED {
                    let oldest =
                        written.iter().min_by_key(|(_, known)| known.last).map(|(key, _)| key.clone());
                    oldest.and_then(|key| written.remove(&key));
                }
                written.insert(key, Written { path: format!("{collection}/{name}"), count: 1, last: now });
            }
            Err(error) => debug!(pod = event.name, reason = event.reason, %error, "did not write an event"),
        }
    }
}

fn object(event: &Event, name: &str, node: &str, now: Timestamp) -> Value {
    let mut about = json!({
        "apiVersion": "v1", "kind": "Pod",
        "namespace": event.namespace, "name": event.name, "uid": event.uid,
    });
    if let Some(container) = &event.container {
        about["fieldPath"] = json!(format!("spec.containers{{{container}}}"));
    }
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": event.namespace},
        "involvedObject": about,
        "type": if event.warning { "Warning" } else { "Normal" },
        "reason": event.reason,
        "message": event.message,
        "count": 1,
        "firstTimestamp": clock(now),
        "lastTimestamp": clock(now),
        "source": {"component": "kubelet", "host": node},
        "reportingComponent": "kubelet",
        "reportingInstance": node,
    })
}
