//! The control plane as pods: mirrors of processes that run beside the nodes, and of etcd, which is none at all.

use super::api::{RETRY, code};
use super::pod::{MIRROR, Pod, text};
use super::shared::Shared;
use super::status::clock;
use crate::cluster::Role;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::path::PathBuf;
use std::sync::Arc;
use tracing::debug;

/// A part of the control plane, its image's version where that is not the cluster's, and the process that stands
/// behind it by the name of its log.
const PARTS: [(&str, Option<&str>, Option<&str>); 4] = [
    ("etcd", Some("3.5.9-0"), None),
    ("kube-apiserver", None, Some("apiserver")),
    ("kube-controller-manager", None, Some("controller-manager")),
    ("kube-scheduler", None, Some("controller-manager")),
];

/// Creates the mirror pods of a control-plane node; those that exist stay.
pub(super) async fn create(shared: Arc<Shared>) {
    if shared.node.role != Role::ControlPlane {
        return;
    }
    for (part, version, process) in PARTS {
        let object = object(&shared, part, version.unwrap_or(&shared.cluster.version), process.is_none());
        loop {
            match shared.api.create("/api/v1/namespaces/kube-system/pods", &object).await {
                Ok(_) => break,
                Err(error) if code(&error) == Some(409) => break,
                Err(error) => debug!(pod = part, %error, "did not create a mirror pod"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

fn object(shared: &Shared, part: &str, version: &str, stand_in: bool) -> Value {
    let node = &shared.node.name;
    let hash: String = Sha256::digest(format!("{node}/{part}/{version}"))
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let now = clock(Timestamp::now());
    let mut annotations = json!({
        "kubernetes.io/config.hash": hash,
        "kubernetes.io/config.seen": now,
        "kubernetes.io/config.source": "file",
    });
    annotations[MIRROR] = json!(hash);
    if stand_in {
        annotations["tortie.dev/stand-in"] = json!("true");
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("{part}-{node}"),
            "namespace": "kube-system",
            "labels": {"component": part, "tier": "control-plane"},
            "annotations": annotations,
        },
        "spec": {
            "nodeName": node,
            "hostNetwork": true,
            "priorityClassName": "system-node-critical",
            "priority": 2_000_001_000,
            "tolerations": [{"effect": "NoExecute", "operator": "Exists"}],
            "containers": [{"name": part, "image": format!("{part}:{version}"), "imagePullPolicy": "IfNotPresent"}],
        },
    })
}

/// Where the log of a mirror pod's container is; `None` when no process stands behind it.
pub(super) fn log(shared: &Shared, container: &str) -> Option<PathBuf> {
    let (_, _, process) = PARTS.iter().find(|(part, ..)| *part == container)?;
    process.map(|process| shared.cluster.log(process))
}

/// Tells that a mirror pod runs, or lets it go when somebody deleted it: it comes again then.
pub(super) async fn settle(shared: Arc<Shared>, pod: Arc<Pod>) {
    let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
    loop {
        let answer = if pod.deleting {
            let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}});
            shared.api.delete(&path, &options).await
        } else if text(&pod.object, "/status/phase") == "Running" {
            return;
        } else {
            shared.api.patch(&format!("{path}/status"), &running(&shared, &pod)).await
        };
        match answer {
            Ok(_) => return,
            Err(error) if matches!(code(&error), Some(404 | 409)) => return,
            Err(error) => debug!(pod = pod.name, %error, "did not tell about a mirror pod"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn running(shared: &Shared, pod: &Pod) -> Value {
    let now = clock(shared.started);
    let address = shared.node.address.addr().to_string();
    let statuses: Vec<Value> = pod
        .containers
        .iter()
        .map(|container| {
            let id: String = Sha256::digest(format!("{}/{}", pod.uid, container.name))
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            json!({
                "name": container.name, "image": container.image, "imageID": "",
                "containerID": format!("containerd://{id}"),
                "restartCount": 0, "ready": true, "started": true,
                "state": {"running": {"startedAt": now}}, "lastState": {},
            })
        })
        .collect();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    json!({
        "metadata": {"uid": pod.uid},
        "status": {
            "phase": "Running",
            "hostIP": address,
            "podIP": address,
            "podIPs": [{"ip": address}],
            "startTime": now,
            "containerStatuses": statuses,
            "conditions": conditions,
        },
    })
}
