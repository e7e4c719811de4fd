//! Pools, reservations, nodes and the cluster's information as values in etcd: whole resources of
//! `projectcalico.org/v3` (data model §4, §9, §10).
//!
//! A resource holds more than a record: its identity, others' labels, fields that IPAM does not read. A write is
//! therefore made *over* the value that it replaces ([`Over`]), of which all that the record does not own stays.

use super::etcd_text::{InOrder, compact};
use super::field::texts;
use super::{Group, Resource, SINGLETON, WireError};
use crate::{ClusterInformation, Node, Pool, Reservation};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// Kind of a node, which is no custom resource.
const NODE_KIND: &str = "Node";

/// Fields of a pool in the order in which they are written; all of them are the record's.
const POOL_FIELDS: [&str; 11] = [
    "cidr",
    "vxlanMode",
    "ipipMode",
    "natOutgoing",
    "blockSize",
    "nodeSelector",
    "namespaceSelector",
    "disableBGPExport",
    "allowedUses",
    "assignmentMode",
    "disabled",
];

/// Node annotations of the Kubernetes datastore, and where a node in etcd has the same (dataplane §2).
const NODE_FIELDS: [(&str, &str); 7] = [
    ("projectcalico.org/IPv4Address", "/bgp/ipv4Address"),
    ("projectcalico.org/IPv6Address", "/bgp/ipv6Address"),
    ("projectcalico.org/IPv4IPIPTunnelAddr", "/bgp/ipv4IPIPTunnelAddr"),
    ("projectcalico.org/IPv4VXLANTunnelAddr", "/ipv4VXLANTunnelAddr"),
    ("projectcalico.org/IPv6VXLANTunnelAddr", "/ipv6VXLANTunnelAddr"),
    ("projectcalico.org/VXLANTunnelMACAddr", "/vxlanTunnelMACAddr"),
    ("projectcalico.org/VXLANTunnelMACAddrV6", "/vxlanTunnelMACAddrV6"),
];

/// Kubernetes, in a node's references to orchestrators.
const ORCHESTRATOR: &str = "k8s";

/// What a resource is written over.
#[derive(Clone, Copy, Debug)]
pub enum Over<'a> {
    /// Nothing: it is created now, by a writer that gives it this identity.
    Nothing {
        /// A random UUID.
        uid: &'a str,
        /// The time of the creation, written in whole seconds.
        created: Timestamp,
    },
    /// The value that it replaces.
    Value(&'a Value),
}

#[derive(Serialize)]
struct Text<'a> {
    kind: &'a str,
    #[serde(rename = "apiVersion")]
    api_version: &'a str,
    metadata: InOrder<'a>,
    spec: InOrder<'a>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A resource being put together.
struct Draft {
    kind: &'static str,
    metadata: Map<String, Value>,
    spec: Map<String, Value>,
    rest: Map<String, Value>,
}

impl Draft {
    fn over(over: Over<'_>, kind: &'static str, name: &str) -> Self {
        let object_of = |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
        let mut draft = match over {
            Over::Nothing { uid, created } => {
                let mut metadata = Map::new();
                metadata.insert("uid".into(), json!(uid));
                metadata.insert("creationTimestamp".into(), json!(super::field::whole_seconds(created)));
                Self { kind, metadata, spec: Map::new(), rest: Map::new() }
            }
            Over::Value(value) => {
                let mut rest = object_of(Some(value));
                let (metadata, spec) = (object_of(rest.get("metadata")), object_of(rest.get("spec")));
                rest.retain(|field, _| !["kind", "apiVersion", "metadata", "spec"].contains(&field.as_str()));
                Self { kind, metadata, spec, rest }
            }
        };
        draft.metadata.insert("name".into(), json!(name));
        // The store's own revision is not part of the value.
        draft.metadata.remove("resourceVersion");
        draft
    }

    /// Puts `fields` in place of those named `owned`.
    fn replace(&mut self, owned: &[&str], fields: &Value) {
        self.spec.retain(|field, _| !owned.contains(&field.as_str()));
        if let Some(fields) = fields.as_object() {
            self.spec.extend(fields.clone());
        }
    }

    fn text(self, first: &[&str]) -> String {
        compact(&Text {
            kind: self.kind,
            api_version: Group::V3.api_version(),
            metadata: InOrder {
                map: &self.metadata,
                first: &["name", "uid", "generation", "creationTimestamp"],
            },
            spec: InOrder { map: &self.spec, first },
            rest: self.rest,
        })
    }
}

/// When the resource of `value` was created, if it says so.
pub fn created_etcd(value: &Value) -> Option<Timestamp> {
    value.pointer("/metadata/creationTimestamp")?.as_str()?.parse().ok()
}

/// The same resource with the name of its key, for readers that take the name from the object.
fn named(value: &Value, name: &str) -> Value {
    let mut object = if value.is_object() { value.clone() } else { json!({}) };
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"]["name"] = json!(name);
    object
}

/// The value in etcd of a resource that is created as `whole` has it, which keeps its identity if it has one.
fn whole_text(
    kind: &'static str,
    name: &str,
    whole: &Value,
    identity: (&str, Timestamp),
    first: &[&str],
) -> String {
    let mut draft = Draft::over(Over::Value(whole), kind, name);
    let (uid, created) = identity;
    draft.metadata.entry("uid").or_insert_with(|| json!(uid));
    draft.metadata.entry("creationTimestamp").or_insert_with(|| json!(super::field::whole_seconds(created)));
    draft.text(first)
}

impl Pool {
    /// The value in etcd of the pool as the resource `whole` has it, with fields and metadata that no record has; made by a
    /// writer that gives it this identity, unless it has one.
    pub fn whole_etcd(&self, whole: &Value, uid: &str, created: Timestamp) -> String {
        whole_text(Resource::POOL.kind, &self.name, whole, (uid, created), &POOL_FIELDS)
    }

    /// The value in etcd.
    pub fn to_etcd(&self, over: Over<'_>) -> String {
        let mut draft = Draft::over(over, Resource::POOL.kind, &self.name);
        draft.replace(&POOL_FIELDS, &self.spec_v1());
        draft.text(&POOL_FIELDS)
    }

    /// Reads the value of the key that names the pool, and applies the defaults.
    ///
    /// # Errors
    /// As [`Pool::from_v1`], the name apart.
    pub fn from_etcd(name: &str, value: &Value) -> Result<Self, WireError> {
        Self::from_v1(&named(value, name))
    }
}

impl Reservation {
    /// As [`Pool::whole_etcd`], with entries that make no sense as they stand.
    pub fn whole_etcd(&self, whole: &Value, uid: &str, created: Timestamp) -> String {
        whole_text(Resource::RESERVATION.kind, &self.name, whole, (uid, created), &["reservedCIDRs"])
    }

    /// The value in etcd.
    pub fn to_etcd(&self, over: Over<'_>) -> String {
        let mut draft = Draft::over(over, Resource::RESERVATION.kind, &self.name);
        draft.replace(&["reservedCIDRs"], &self.spec_v1());
        draft.text(&["reservedCIDRs"])
    }

    /// Reads the value of the key that names the reservation.
    ///
    /// # Errors
    /// As [`Reservation::from_v1`], the name apart.
    pub fn from_etcd(name: &str, value: &Value) -> Result<Self, WireError> {
        Self::from_v1(&named(value, name))
    }
}

impl ClusterInformation {
    /// The value in etcd.
    pub fn to_etcd(&self, over: Over<'_>) -> String {
        let mut draft = Draft::over(over, Resource::CLUSTER_INFORMATION.kind, SINGLETON);
        draft.replace(&["clusterGUID", "calicoVersion", "datastoreReady"], &self.spec_v1());
        draft.text(&["clusterGUID", "clusterType", "calicoVersion", "datastoreReady"])
    }

    /// Reads the value in etcd; a missing `datastoreReady` is ready.
    ///
    /// # Errors
    /// If a value is of the wrong type.
    pub fn from_etcd(value: &Value) -> Result<Self, WireError> {
        Self::from_v1(&named(value, SINGLETON))
    }
}

impl Node {
    /// As [`Pool::whole_etcd`].
    pub fn whole_etcd(&self, whole: &Value, uid: &str, created: Timestamp) -> String {
        whole_text(NODE_KIND, &self.name, whole, (uid, created), &[])
    }

    /// The value in etcd. Annotations that have a field of their own there go into that field; of a node that exists
    /// labels and addresses stay.
    pub fn to_etcd(&self, over: Over<'_>) -> String {
        let mut draft = Draft::over(over, NODE_KIND, &self.name);
        if matches!(over, Over::Nothing { .. }) {
            if !self.labels.is_empty() {
                draft.metadata.insert("labels".into(), json!(self.labels));
            }
            let internal = self.internal_ips.iter().map(|ip| json!({"address": ip, "type": "InternalIP"}));
            let addresses: Vec<Value> = internal.collect();
            if !addresses.is_empty() {
                draft.spec.insert("addresses".into(), json!(addresses));
            }
        }
        let mut annotations = self.annotations.clone();
        for (annotation, path) in NODE_FIELDS {
            let value = annotations.remove(annotation);
            match path.strip_prefix("/bgp/") {
                None => place(&mut draft.spec, path.trim_start_matches('/'), value),
                Some(field) => {
                    let mut bgp =
                        draft.spec.get("bgp").and_then(Value::as_object).cloned().unwrap_or_default();
                    place(&mut bgp, field, value);
                    draft.spec.remove("bgp");
                    if !bgp.is_empty() {
                        draft.spec.insert("bgp".into(), Value::Object(bgp));
                    }
                }
            }
        }
        if let Some(known) = &self.kubernetes_name
            && !draft.spec.contains_key("orchRefs")
        {
            let reference = json!([{"nodeName": known, "orchestrator": ORCHESTRATOR}]);
            draft.spec.insert("orchRefs".into(), reference);
        }
        draft.metadata.remove("annotations");
        if !annotations.is_empty() {
            draft.metadata.insert("annotations".into(), json!(annotations));
        }
        draft.text(&[])
    }

    /// Reads the value of the key that names the node. Its addresses appear as the annotations that a Kubernetes node
    /// has for them; those of type InternalIP, with or without a prefix length, also as such.
    ///
    /// # Errors
    /// None: a field that makes no sense is passed over.
    pub fn from_etcd(name: &str, value: &Value) -> Result<Self, WireError> {
        let mut annotations = texts(value.pointer("/metadata/annotations"));
        for (annotation, path) in NODE_FIELDS {
            match value.pointer(&format!("/spec{path}")).and_then(Value::as_str) {
                Some(text) if !text.is_empty() => annotations.insert(annotation.to_owned(), text.to_owned()),
                _ => annotations.remove(annotation),
            };
        }
        let addresses = value.pointer("/spec/addresses").and_then(Value::as_array).into_iter().flatten();
        let internal_ips = addresses
            .filter(|entry| entry.get("type").and_then(Value::as_str) == Some("InternalIP"))
            .filter_map(|entry| entry.get("address")?.as_str()?.split('/').next()?.parse::<IpAddr>().ok())
            .collect();
        let mut references = value.pointer("/spec/orchRefs").and_then(Value::as_array).into_iter().flatten();
        let kubernetes_name = references
            .find(|reference| reference.get("orchestrator").and_then(Value::as_str) == Some(ORCHESTRATOR))
            .and_then(|reference| Some(reference.get("nodeName")?.as_str()?.to_owned()));
        Ok(Self {
            name: name.to_owned(),
            labels: texts(value.pointer("/metadata/labels")),
            annotations,
            internal_ips,
            kubernetes_name,
        })
    }
}

/// Sets a field, or takes it out where there is nothing to say.
fn place(map: &mut Map<String, Value>, field: &str, value: Option<String>) {
    match value {
        Some(text) if !text.is_empty() => {
            map.insert(field.to_owned(), json!(text));
        }
        _ => {
            map.remove(field);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Over<'static> =
        Over::Nothing { uid: "0d0f6d2e-95a9-4d0b-8f53-1f6f0c4a7b11", created: Timestamp::UNIX_EPOCH };

    #[test]
    fn a_pool_is_created_with_an_identity_and_no_revision() {
        let pool = Pool::with_defaults("blue", "10.244.0.0/16".parse().unwrap());
        assert_eq!(
            pool.to_etcd(NEW),
            r#"{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"blue","uid":"0d0f6d2e-95a9-4d0b-8f53-1f6f0c4a7b11","creationTimestamp":"1970-01-01T00:00:00Z"},"spec":{"cidr":"10.244.0.0/16","vxlanMode":"Never","ipipMode":"Never","blockSize":26,"nodeSelector":"all()","allowedUses":["Workload","Tunnel"],"assignmentMode":"Automatic"}}"#
        );
    }

    #[test]
    fn an_update_keeps_what_the_record_does_not_own() {
        let before = json!({"kind":"IPPool","apiVersion":"projectcalico.org/v3",
            "metadata":{"name":"p","uid":"u","labels":{"team":"a"},"resourceVersion":"7"},
            "spec":{"cidr":"10.0.0.0/16","disabled":true,"namespaceSelector":"x == 'y'","later":1},
            "status":{"conditions":[]}});
        let mut pool = Pool::from_etcd("p", &before).unwrap();
        assert!(pool.disabled);
        pool.disabled = false;
        pool.namespace_selector = None;
        let after: Value = serde_json::from_str(&pool.to_etcd(Over::Value(&before))).unwrap();
        assert_eq!(after["metadata"], json!({"name":"p","uid":"u","labels":{"team":"a"}}));
        assert_eq!(after["spec"]["later"], 1);
        assert!(after["spec"].get("disabled").is_none() && after["spec"].get("namespaceSelector").is_none());
        assert!(after["status"].is_object());
        assert_eq!(Pool::from_etcd("p", &after).unwrap(), pool);
    }

    #[test]
    fn the_addresses_of_a_node_are_annotations_here_and_fields_there() {
        let before = json!({"kind":"Node","metadata":{"name":"n","labels":{"zone":"a"}},
            "spec":{"bgp":{"ipv4Address":"172.18.0.2/16","asNumber":64512},
                    "addresses":[{"address":"172.18.0.2/16","type":"CalicoNodeIP"},{"address":"172.18.0.2","type":"InternalIP"}],
                    "orchRefs":[{"nodeName":"n","orchestrator":"k8s"}]}});
        let mut node = Node::from_etcd("n", &before).unwrap();
        assert_eq!(node.annotations["projectcalico.org/IPv4Address"], "172.18.0.2/16");
        assert_eq!(node.internal_ips, ["172.18.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(node.kubernetes_name.as_deref(), Some("n"));
        let made: Value = serde_json::from_str(&node.to_etcd(NEW)).unwrap();
        assert_eq!(made["spec"]["orchRefs"], before["spec"]["orchRefs"]);
        node.annotations.insert("projectcalico.org/IPv4VXLANTunnelAddr".into(), "192.168.10.0".into());
        node.annotations.insert("other".into(), "kept".into());
        let after: Value = serde_json::from_str(&node.to_etcd(Over::Value(&before))).unwrap();
        assert_eq!(after["spec"]["ipv4VXLANTunnelAddr"], "192.168.10.0");
        assert_eq!(after["spec"]["bgp"], before["spec"]["bgp"]);
        assert_eq!(after["spec"]["orchRefs"], before["spec"]["orchRefs"]);
        assert_eq!(after["metadata"]["annotations"], json!({"other": "kept"}));
        assert_eq!(Node::from_etcd("n", &after).unwrap(), node);
    }

    #[test]
    fn values_of_another_shape_do_not_hurt() {
        for value in [json!(null), json!([]), json!({"metadata": 1, "spec": "x"})] {
            assert!(Pool::from_etcd("p", &value).is_err());
            assert!(Node::from_etcd("n", &value).is_ok());
            assert!(ClusterInformation::from_etcd(&value).unwrap().datastore_ready);
            let node = Node { name: "n".to_owned(), ..Node::default() };
            assert!(serde_json::from_str::<Value>(&node.to_etcd(Over::Value(&value))).is_ok());
        }
    }
}
