//! What a controller wants done: requests to the API, as values.

use super::object::ObjectName;
use serde_json::{Value, json};

/// Kinds the controller manager watches and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Node,
    Pod,
    Deployment,
    ReplicaSet,
    DaemonSet,
    Lease,
}

impl Kind {
    /// All kinds that are watched.
    pub(super) const WATCHED: [Self; 6] =
        [Self::Node, Self::Pod, Self::Deployment, Self::ReplicaSet, Self::DaemonSet, Self::Lease];

    /// The collection's path for `namespace`; empty means all namespaces, or a cluster-scoped kind.
    pub(super) fn path(self, namespace: &str) -> String {
        let (root, plural) = match self {
            Self::Node => return "/api/v1/nodes".to_owned(),
            Self::Pod => ("/api/v1", "pods"),
            Self::Deployment => ("/apis/apps/v1", "deployments"),
            Self::ReplicaSet => ("/apis/apps/v1", "replicasets"),
            Self::DaemonSet => ("/apis/apps/v1", "daemonsets"),
            Self::Lease => ("/apis/coordination.k8s.io/v1", "leases"),
        };
        match namespace {
            "" => format!("{root}/{plural}"),
            namespace => format!("{root}/namespaces/{namespace}/{plural}"),
        }
    }

    /// Kind as objects spell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::ReplicaSet => "ReplicaSet",
            Self::DaemonSet => "DaemonSet",
            Self::Lease => "Lease",
        }
    }

    /// API version as objects spell it.
    pub(super) fn api_version(self) -> &'static str {
        match self {
            Self::Node | Self::Pod => "v1",
            Self::Deployment | Self::ReplicaSet | Self::DaemonSet => "apps/v1",
            Self::Lease => "coordination.k8s.io/v1",
        }
    }
}

/// One request to the API.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// POST the object to its namespace's collection.
    Create(Kind, Value),
    /// Merge-patch the object.
    Patch(Kind, ObjectName, Value),
    /// Merge-patch the object's status.
    PatchStatus(Kind, ObjectName, Value),
    /// Delete the object with this uid.
    Delete(Kind, ObjectName, String),
    /// Bind a pod to a node.
    Bind(ObjectName, String),
    /// Tell people. Lost events are no failure.
    Event { about: Box<Value>, kind: Kind, warning: bool, reason: &'static str, message: String },
}

/// A reference by which `owner` controls what carries it.
pub(super) fn owner_reference(kind: Kind, owner: &Value) -> Value {
    let (_, name) = super::object::name_of(owner);
    json!([{
        "apiVersion": kind.api_version(),
        "kind": kind.name(),
        "name": name,
        "uid": super::object::uid(owner),
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

/// A pod made from `owner`'s template, with labels and annotations of the template, named by the server.
pub(super) fn pod_from_template(kind: Kind, owner: &Value) -> Value {
    let (namespace, name) = super::object::name_of(owner);
    let template = super::object::at(owner, &["spec", "template"]).cloned().unwrap_or_else(|| json!({}));
    let mut metadata = json!({});
    for key in ["labels", "annotations", "finalizers"] {
        if let Some(value) = super::object::at(&template, &["metadata", key]) {
            metadata[key] = value.clone();
        }
    }
    metadata["generateName"] = json!(format!("{name}-"));
    metadata["namespace"] = json!(namespace);
    metadata["ownerReferences"] = owner_reference(kind, owner);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": template.get("spec").cloned().unwrap_or_else(|| json!({})),
    })
}
