//! What a node's kubelet may change and read: its own Node and Lease, the pods that run on it, and what those refer to.

use crate::authorize::Attributes;
use crate::guard::{Change, Guard, Others};
use crate::identity::User;
use crate::objects::{self, meta};
use crate::server::Server;
use serde_json::Value;

/// How a pod refers to objects of a kind.
struct Reference {
    plural: &'static str,
    /// The field with a list of them, if there is one.
    list: &'static str,
    /// Fields that refer to one, and the field of its name in each.
    fields: &'static [(&'static str, &'static str)],
}

const REFERENCES: [Reference; 2] = [
    Reference {
        plural: "secrets",
        list: "imagePullSecrets",
        fields: &[
            ("secretKeyRef", "name"),
            ("secretRef", "name"),
            ("secret", "secretName"),
            ("secret", "name"),
        ],
    },
    Reference {
        plural: "configmaps",
        list: "",
        fields: &[("configMapKeyRef", "name"), ("configMapRef", "name"), ("configMap", "name")],
    },
];

/// Fields of a pod that give it something by other ways than those of [`REFERENCES`].
const GRANTS: [&str; 5] =
    ["persistentVolumeClaim", "ephemeral", "serviceAccountToken", "clusterTrustBundle", "resourceClaims"];

/// What makes a pod the mirror of one that a kubelet runs from a file.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Whether a pod is the mirror of one that a kubelet runs from a file.
pub(crate) fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"][MIRROR].is_string()
}

/// The node of a kubelet's user.
fn node_of(user: &User) -> Option<&str> {
    let node = user.name.strip_prefix("system:node:")?;
    user.groups.iter().any(|group| group == "system:nodes").then_some(node)
}

/// Whether a part of a pod names the object in one of the fields.
fn names(part: &Value, by: &Reference, name: &str) -> bool {
    match part {
        Value::Object(map) => map.iter().any(|(field, value)| {
            by.fields.iter().any(|(of, at)| of == field && value[*at] == name)
                || field == by.list && value.as_array().into_iter().flatten().any(|one| one["name"] == name)
                || names(value, by, name)
        }),
        Value::Array(items) => items.iter().any(|item| names(item, by, name)),
        _ => false,
    }
}

/// The first field with which a part of a pod refers to another object.
fn reference(part: &Value) -> Option<&str> {
    match part {
        Value::Object(map) => map.iter().find_map(|(field, value)| {
            let is_list = value.as_array().is_some_and(|list| !list.is_empty());
            let by_list = is_list && REFERENCES.iter().any(|by| by.list == field);
            let by_field = REFERENCES.iter().flat_map(|by| by.fields).any(|(of, _)| of == field)
                || GRANTS.contains(&field.as_str());
            let is_one = by_list || by_field && (is_list || value.is_object());
            if is_one { Some(field.as_str()) } else { reference(value) }
        }),
        Value::Array(items) => items.iter().find_map(reference),
        _ => None,
    }
}

/// Whether a kubelet may create a pod: mirrors that are given nothing. It writes what stands in them itself, so whatever
/// they named would be its own.
fn may_mirror(node: &str, pod: &Value) -> Result<(), String> {
    if !is_mirror(pod) || pod["spec"]["nodeName"] != node {
        return Err(format!("node {node:?} can only create mirror pods of its own"));
    }
    // Admission has made "default" of none.
    let is_default = |field: &str| matches!(pod["spec"][field].as_str(), None | Some("" | "default"));
    if !is_default("serviceAccountName") || !is_default("serviceAccount") {
        return Err(format!("node {node:?} cannot create pods that run as a service account"));
    }
    match reference(&pod["spec"]) {
        Some(field) => {
            Err(format!("node {node:?} cannot create pods that refer to other objects, as {field}"))
        }
        None => Ok(()),
    }
}

/// Whether a user who has the right may use it here: a kubelet reads secrets and settings by name, and only those that
/// a pod on its node refers to. Mirrors do not count: kubelets make them.
pub(crate) fn may_read(server: &Server, user: &User, what: &Attributes<'_>) -> bool {
    let Some(node) = node_of(user) else { return true };
    let reference = REFERENCES.iter().find(|one| what.group.is_empty() && one.plural == what.resource);
    let Some(reference) = reference else {
        return true;
    };
    if what.name.is_empty() || what.verb != "get" {
        return false;
    }
    let pods = server.store.list(&format!("/core/pods/{}/", what.namespace), None, 0);
    pods.entries.iter().any(|(_, entry)| {
        let pod = objects::decode(entry);
        pod["spec"]["nodeName"] == node && !is_mirror(&pod) && names(&pod["spec"], reference, what.name)
    })
}

/// Whether a user may have a token of an account: a kubelet only for a pod on its node that runs as the account,
/// and is no mirror.
///
/// # Errors
/// Why not.
pub(crate) fn may_have_token(
    server: &Server,
    user: &User,
    (namespace, account): (&str, &str),
    request: &Value,
) -> Result<(), String> {
    let Some(node) = node_of(user) else { return Ok(()) };
    let bound = &request["spec"]["boundObjectRef"];
    let (kind, name) = (&bound["kind"], bound["name"].as_str().unwrap_or_default());
    if kind != "Pod" || name.is_empty() {
        return Err(format!("node {node:?} has tokens bound to a pod only"));
    }
    let pod =
        server.store.get(&format!("/core/pods/{namespace}/{name}")).map(|entry| objects::decode(&entry));
    let pod = pod.ok_or_else(|| format!("pod {name:?} is not there"))?;
    if is_mirror(&pod) {
        return Err(format!("node {node:?} has no tokens for mirror pods"));
    }
    let runs_as = pod["spec"]["serviceAccountName"].as_str().unwrap_or("default");
    if pod["spec"]["nodeName"] != node || runs_as != account || bound["uid"] != meta(&pod, "uid") {
        return Err(format!(
            "node {node:?} has tokens only for pods that run on it, as the account they run as"
        ));
    }
    Ok(())
}

/// The guard of kubelets, known by their user `system:node:<name>` of the group `system:nodes`.
#[derive(Debug)]
pub struct NodeRestriction;

impl Guard for NodeRestriction {
    fn judge(&self, change: &Change<'_>, _others: &dyn Others) -> Result<(), String> {
        let Some(node) = node_of(change.user) else { return Ok(()) };
        let runs_here = |pod: &Value| pod["spec"]["nodeName"] == node;
        match (change.group, change.resource) {
            ("", "nodes") if change.name != node => {
                Err(format!("node {node:?} is not allowed to modify node {:?}", change.name))
            }
            ("coordination.k8s.io", "leases") if change.namespace != "kube-node-lease" => {
                Err(format!("node {node:?} has no lease outside kube-node-lease"))
            }
            ("coordination.k8s.io", "leases") if change.name != node => {
                Err(format!("node {node:?} can only have the lease of its own name"))
            }
            ("", "pods") => match (change.old, change.new) {
                (None, Some(pod)) => may_mirror(node, pod),
                (Some(pod), _) if !runs_here(pod) => {
                    Err(format!("node {node:?} can only change pods that run on it"))
                }
                (Some(_), Some(pod)) if !runs_here(pod) => {
                    Err(format!("node {node:?} cannot give a pod to another node"))
                }
                (Some(old), Some(new)) if is_mirror(old) != is_mirror(new) => {
                    Err(format!("node {node:?} cannot change whether a pod is a mirror"))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use serde_json::json;

    struct Nothing;

    impl Others for Nothing {
        fn get(&self, _group: &str, _resource: &str, _name: &str) -> Option<Value> {
            None
        }
    }

    #[test]
    fn a_kubelet_changes_only_what_is_its_nodes() {
        let user = User { name: "system:node:n1".into(), groups: vec!["system:nodes".into()], uid: None };
        let judge = |group: &str,
                     resource: &str,
                     namespace: &str,
                     name: &str,
                     old: Option<&Value>,
                     new: Option<&Value>| {
            let now = Timestamp::UNIX_EPOCH;
            NodeRestriction
                .judge(&Change { user: &user, group, resource, namespace, name, old, new, now }, &Nothing)
                .is_ok()
        };
        let any = json!({});
        assert!(judge("", "nodes", "", "n1", Some(&any), Some(&any)));
        assert!(!judge("", "nodes", "", "n2", Some(&any), Some(&any)));
        assert!(!judge("", "nodes", "", "n2", None, Some(&any)));
        assert!(judge("coordination.k8s.io", "leases", "kube-node-lease", "n1", None, Some(&any)));
        assert!(!judge("coordination.k8s.io", "leases", "kube-node-lease", "n2", Some(&any), Some(&any)));
        assert!(!judge("coordination.k8s.io", "leases", "default", "n1", None, Some(&any)));
        let pod = |node: &str| json!({"spec": {"nodeName": node}});
        let mirror = |node: &str| json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": node}});
        assert!(judge("", "pods", "a", "p", None, Some(&mirror("n1"))));
        assert!(!judge("", "pods", "a", "p", None, Some(&mirror("n2"))));
        assert!(!judge("", "pods", "a", "p", None, Some(&pod("n1"))));
        for (field, value) in [
            ("serviceAccountName", json!("strong")),
            ("serviceAccount", json!("strong")),
            ("imagePullSecrets", json!([{"name": "s"}])),
            ("volumes", json!([{"name": "v", "secret": {"secretName": "s"}}])),
            ("volumes", json!([{"name": "v", "configMap": {"name": "s"}}])),
            (
                "volumes",
                json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]),
            ),
            ("volumes", json!([{"name": "v", "persistentVolumeClaim": {"claimName": "s"}}])),
            ("containers", json!([{"envFrom": [{"secretRef": {"name": "s"}}]}])),
            (
                "initContainers",
                json!([{"env": [{"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]),
            ),
        ] {
            let mut strong = mirror("n1");
            strong["spec"][field] = value;
            assert!(!judge("", "pods", "a", "p", None, Some(&strong)), "{strong}");
        }
        let mut plain = mirror("n1");
        plain["spec"]["serviceAccountName"] = "default".into();
        plain["spec"]["imagePullSecrets"] = json!([]);
        plain["spec"]["volumes"] = json!([{"name": "v", "hostPath": {"path": "/etc"}}]);
        assert!(judge("", "pods", "a", "p", None, Some(&plain)));
        assert!(judge("", "pods", "a", "p", Some(&plain), Some(&mirror("n1"))));
        assert!(!judge("", "pods", "a", "p", Some(&mirror("n1")), Some(&pod("n1"))));
        assert!(!judge("", "pods", "a", "p", Some(&pod("n1")), Some(&mirror("n1"))));
        assert!(judge("", "pods", "a", "p", Some(&pod("n1")), None));
        assert!(!judge("", "pods", "a", "p", Some(&pod("n2")), None));
        assert!(!judge("", "pods", "a", "p", Some(&pod("n1")), Some(&pod("n2"))));
    }
}
