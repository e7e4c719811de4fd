//! Kubernetes objects as JSON values: their kinds, where they are, and the few fields that are read.

use serde_json::{Map, Value};

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    /// `v1` or `<group>/<version>`.
    pub(crate) api_version: &'static str,
    /// `kind` of an object.
    pub(crate) name: &'static str,
    /// Last part of the REST path.
    pub(crate) plural: &'static str,
}

const fn kind(api_version: &'static str, name: &'static str, plural: &'static str) -> Kind {
    Kind { api_version, name, plural }
}

const CALICO: &str = "crd.projectcalico.org/v1";
const OPERATOR: &str = "operator.tigera.io/v1";

pub(crate) const NODE: Kind = kind("v1", "Node", "nodes");
pub(crate) const POD: Kind = kind("v1", "Pod", "pods");
pub(crate) const NAMESPACE: Kind = kind("v1", "Namespace", "namespaces");
pub(crate) const CONFIG_MAP: Kind = kind("v1", "ConfigMap", "configmaps");
pub(crate) const DAEMON_SET: Kind = kind("apps/v1", "DaemonSet", "daemonsets");
pub(crate) const DEPLOYMENT: Kind = kind("apps/v1", "Deployment", "deployments");
pub(crate) const INSTALLATION: Kind = kind(OPERATOR, "Installation", "installations");
pub(crate) const API_SERVER: Kind = kind(OPERATOR, "APIServer", "apiservers");
pub(crate) const TIGERA_STATUS: Kind = kind(OPERATOR, "TigeraStatus", "tigerastatuses");
pub(crate) const IP_POOL: Kind = kind(CALICO, "IPPool", "ippools");
pub(crate) const AFFINITY: Kind = kind(CALICO, "BlockAffinity", "blockaffinities");
pub(crate) const CLUSTER_INFORMATION: Kind = kind(CALICO, "ClusterInformation", "clusterinformations");
pub(crate) const FELIX_CONFIGURATION: Kind = kind(CALICO, "FelixConfiguration", "felixconfigurations");
pub(crate) const CONTROLLERS_CONFIGURATION: Kind =
    kind(CALICO, "KubeControllersConfiguration", "kubecontrollersconfigurations");

impl Kind {
    /// REST path of the collection in `namespace`, or of all where that is empty.
    pub(crate) fn path(self, namespace: &str) -> String {
        let root = if self.api_version == "v1" { "/api" } else { "/apis" };
        let version = self.api_version;
        let plural = self.plural;
        if namespace.is_empty() {
            format!("{root}/{version}/{plural}")
        } else {
            format!("{root}/{version}/namespaces/{namespace}/{plural}")
        }
    }
}

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Name {
    /// A cluster-scoped object's name.
    pub(crate) fn cluster(name: &str) -> Self {
        Self { namespace: String::new(), name: name.to_owned() }
    }

    /// A namespaced object's name.
    pub(crate) fn within(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The name of `object`.
    pub(crate) fn of(object: &Value) -> Self {
        Self::within(text(object, "/metadata/namespace"), text(object, "/metadata/name"))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Text at a JSON pointer, empty if it is not there.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Whole number at a JSON pointer, 0 if it is not there.
pub(crate) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// Elements of the array at a JSON pointer.
pub(crate) fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Entries of the map at a JSON pointer.
pub(crate) fn entries<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object.pointer(pointer).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

/// Revision of the last change, 0 if there is none.
pub(crate) fn revision(object: &Value) -> u64 {
    text(object, "/metadata/resourceVersion").parse().unwrap_or_default()
}

/// Whether it is on its way out.
pub(crate) fn is_deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|value| !value.is_null())
}

/// Whether every field of `wanted` has its value in `found`, which may have more: what a server defaults is no
/// difference. Arrays must agree element by element.
pub(crate) fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            found.get(key).map_or_else(|| is_empty(wanted), |found| covers(found, wanted))
        }),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len()
                && found.iter().zip(wanted).all(|(found, wanted)| covers(found, wanted))
        }
        _ => found == wanted,
    }
}

/// Servers leave out what says nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_of_a_server_are_no_difference_but_another_value_is() {
        let found = json!({"a": {"b": 1, "added": 2}, "list": [{"x": 1, "y": 2}]});
        assert!(covers(&found, &json!({"a": {"b": 1}, "list": [{"x": 1}], "off": false})));
        assert!(!covers(&found, &json!({"a": {"b": 2}})));
        assert!(!covers(&found, &json!({"list": []})));
        assert!(!covers(&found, &json!({"c": 1})));
    }

    #[test]
    fn paths_follow_group_and_namespace() {
        assert_eq!(POD.path("a"), "/api/v1/namespaces/a/pods");
        assert_eq!(IP_POOL.path(""), "/apis/crd.projectcalico.org/v1/ippools");
    }
}
