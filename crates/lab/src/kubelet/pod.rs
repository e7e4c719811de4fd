//! What the kubelet reads from a Pod object.

use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Namespace and name of a pod.
pub(super) type PodName = (String, String);

/// Marks the pods that show a part of the cluster which no API object created.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

/// Longest hostname the kernel takes for a pod, as Kubernetes cuts it.
const HOSTNAME_LIMIT: usize = 63;

/// Longest grace period that is honoured, in seconds.
const GRACE_LIMIT: u64 = 600;

/// When a container that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Container {
    pub name: String,
    pub image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    /// The entries of `env` and `envFrom` as they stand in the spec.
    pub env: Vec<Value>,
    pub env_from: Vec<Value>,
    /// Whether somebody may type into it.
    pub stdin: bool,
    /// Whether standard input ends when the first who attached goes.
    pub stdin_once: bool,
    pub tty: bool,
}

/// A pod, with the object it was read from.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub hostname: String,
    pub host_network: bool,
    /// Whether the cluster's name service is wanted although the pod is in the node's network.
    pub cluster_dns: bool,
    pub restart_policy: RestartPolicy,
    /// How long its processes get to end.
    pub grace: Duration,
    pub deleting: bool,
    /// Whether the API already has it as Succeeded or Failed.
    pub finished: bool,
    /// Whether it shows a part of the control plane.
    pub mirror: bool,
    pub init: Vec<Container>,
    pub containers: Vec<Container>,
    pub object: Arc<Value>,
}

impl Pod {
    /// Reads an object; whatever is missing counts as Kubernetes' default.
    pub(super) fn read(object: Value) -> Self {
        let metadata = |key: &str| text(&object, &format!("/metadata/{key}")).to_owned();
        let name = metadata("name");
        let mut hostname = match text(&object, "/spec/hostname") {
            "" => name.clone(),
            given => given.to_owned(),
        };
        hostname.truncate(HOSTNAME_LIMIT);
        let grace = ["/metadata/deletionGracePeriodSeconds", "/spec/terminationGracePeriodSeconds"]
            .iter()
            .find_map(|path| object.pointer(path).and_then(Value::as_u64))
            .unwrap_or(30);
        Self {
            namespace: metadata("namespace"),
            uid: metadata("uid"),
            hostname: hostname.trim_end_matches(['-', '.']).to_owned(),
            host_network: flag(&object, "/spec/hostNetwork"),
            cluster_dns: text(&object, "/spec/dnsPolicy") == "ClusterFirstWithHostNet",
            restart_policy: match text(&object, "/spec/restartPolicy") {
                "Never" => RestartPolicy::Never,
                "OnFailure" => RestartPolicy::OnFailure,
                _ => RestartPolicy::Always,
            },
            grace: Duration::from_secs(grace.min(GRACE_LIMIT)),
            deleting: object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null()),
            finished: matches!(text(&object, "/status/phase"), "Succeeded" | "Failed"),
            mirror: object
                .pointer("/metadata/annotations")
                .and_then(|annotations| annotations.get(MIRROR))
                .is_some(),
            init: containers(&object, "/spec/initContainers"),
            containers: containers(&object, "/spec/containers"),
            name,
            object: Arc::new(object),
        }
    }

    /// Namespace and name.
    pub(super) fn key(&self) -> PodName {
        (self.namespace.clone(), self.name.clone())
    }

    /// The container of this name, an init container too.
    pub(super) fn container(&self, name: &str) -> Option<&Container> {
        self.init.iter().chain(&self.containers).find(|container| container.name == name)
    }

    /// Name of its namespace set with the holder.
    pub(super) fn namespaces(&self) -> String {
        namespaces(&self.uid)
    }
}

/// Name of a pod's namespace set with the holder.
pub(super) fn namespaces(uid: &str) -> String {
    format!("pod/{uid}")
}

fn containers(object: &Value, path: &str) -> Vec<Container> {
    items(object, path)
        .iter()
        .map(|container| Container {
            name: text(container, "/name").to_owned(),
            image: text(container, "/image").to_owned(),
            command: words(container, "/command"),
            args: words(container, "/args"),
            working_dir: Some(text(container, "/workingDir").to_owned()).filter(|path| !path.is_empty()),
            env: items(container, "/env").to_vec(),
            env_from: items(container, "/envFrom").to_vec(),
            stdin: flag(container, "/stdin"),
            stdin_once: flag(container, "/stdinOnce"),
            tty: flag(container, "/tty"),
        })
        .collect()
}

/// Text at a JSON pointer, empty if it is not there.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Elements of the array at a JSON pointer; none if it is not there.
pub(super) fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn flag(object: &Value, pointer: &str) -> bool {
    object.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

fn words(object: &Value, pointer: &str) -> Vec<String> {
    items(object, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_without_anything_has_the_defaults_of_kubernetes() {
        let pod = Pod::read(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}));
        assert_eq!(pod.restart_policy, RestartPolicy::Always);
        assert_eq!(pod.grace, Duration::from_secs(30));
        assert!(!pod.deleting && !pod.finished && !pod.mirror && !pod.host_network);
        assert_eq!(pod.hostname, "p");
    }

    #[test]
    fn a_deletion_brings_its_own_grace_period() {
        let pod = Pod::read(json!({
            "metadata": {"name": "p", "deletionTimestamp": "2026-11-21T12:00:00Z", "deletionGracePeriodSeconds": 0},
            "spec": {"terminationGracePeriodSeconds": 30},
        }));
        assert!(pod.deleting);
        assert_eq!(pod.grace, Duration::ZERO);
    }
}
