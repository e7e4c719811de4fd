//! Nodes that Kubernetes knows by another name than etcd: records that name them are carried over under the new one.

use api::{Attribute, Block, Handle, Owner, OwnerKind};
use datastore::Record;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Handles of a node's own addresses: what comes before the node's name.
const TUNNELS: [&str; 5] = [
    "ipip-tunnel-addr-",
    "vxlan-tunnel-addr-",
    "vxlan-v6-tunnel-addr-",
    "wireguard-tunnel-addr-",
    "wireguard-v6-tunnel-addr-",
];

/// Kinds that are about one node where their name begins so.
const OF_A_NODE: &str = "node.";

/// By its name in etcd, that of each node in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names(BTreeMap<String, String>);

impl Names {
    /// As the nodes' references to their orchestrator say. A node without one keeps its name, if that is allowed.
    ///
    /// # Errors
    /// One sentence that names the nodes without such a reference.
    pub(super) fn of<'a>(nodes: impl Iterator<Item = &'a Value>, keep: bool) -> Result<Self, String> {
        let (mut names, mut without) = (BTreeMap::new(), Vec::new());
        for node in nodes {
            let name = node.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            let references = node.pointer("/spec/orchRefs").and_then(Value::as_array);
            let known = references
                .into_iter()
                .flatten()
                .find(|reference| reference["orchestrator"] == "k8s")
                .and_then(|reference| reference["nodeName"].as_str());
            match known {
                Some(known) => drop(names.insert(name.to_owned(), known.to_owned())),
                None if keep => drop(names.insert(name.to_owned(), name.to_owned())),
                None => without.push(name),
            }
        }
        if without.is_empty() {
            return Ok(Self(names));
        }
        Err(format!(
            "no reference to a node of Kubernetes (spec.orchRefs with orchestrator k8s) in node {}: where it has the same name in Kubernetes, say --keep-node-names; otherwise let calico/node of the cluster write the reference",
            without.join(", ")
        ))
    }

    fn name(&self, name: &str) -> String {
        self.0.get(name).map_or(name, String::as_str).to_owned()
    }

    fn owner(&self, owner: Owner) -> Owner {
        match owner.kind {
            OwnerKind::Host => Owner { name: self.name(&owner.name), ..owner },
            OwnerKind::Virtual => owner,
        }
    }

    fn handle(&self, id: &str) -> String {
        TUNNELS
            .iter()
            .find_map(|tunnel| Some(format!("{tunnel}{}", self.name(id.strip_prefix(tunnel)?))))
            .unwrap_or_else(|| id.to_owned())
    }

    /// A resource under the names of Kubernetes.
    pub(super) fn resource(&self, mut value: Value) -> Value {
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if value["kind"] == "Node" {
            value["metadata"]["name"] = json!(self.name(&name));
        } else if let Some(node) = name.strip_prefix(OF_A_NODE) {
            value["metadata"]["name"] = json!(format!("{OF_A_NODE}{}", self.name(node)));
        }
        value
    }

    /// A record under the names of Kubernetes.
    pub(super) fn record(&self, record: Record) -> Record {
        match record {
            Record::Affinity(mut affinity) => {
                affinity.owner = self.owner(affinity.owner);
                Record::Affinity(affinity)
            }
            Record::Handle(handle) => Record::Handle(Handle { id: self.handle(&handle.id), ..handle }),
            Record::Block(block) => Record::Block(Block {
                affinity: block.affinity.map(|owner| self.owner(owner)),
                attributes: Arc::new(
                    block.attributes.iter().map(|attribute| Arc::new(self.attribute(attribute))).collect(),
                ),
                legacy_host_affinity: block.legacy_host_affinity.as_deref().map(|name| self.name(name)),
                ..block
            }),
            record => record,
        }
    }

    fn attribute(&self, attribute: &Attribute) -> Attribute {
        let mut attribute = attribute.clone();
        for owner in [&mut attribute.secondary, &mut attribute.alternate] {
            if let Some(node) = owner.get_mut("node") {
                *node = self.name(node);
            }
        }
        attribute.handle_id = attribute.handle_id.map(|id| self.handle(&id));
        attribute
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, known: Option<&str>) -> Value {
        let references: Vec<Value> =
            known.iter().map(|known| json!({"orchestrator": "k8s", "nodeName": known})).collect();
        json!({"kind": "Node", "metadata": {"name": name}, "spec": {"orchRefs": references}})
    }

    #[test]
    fn everything_that_names_a_node_names_the_node_of_kubernetes() {
        let nodes = [node("old", Some("new")), node("same", Some("same"))];
        let names = Names::of(nodes.iter(), false).unwrap();
        assert_eq!(names.resource(nodes[0].clone())["metadata"]["name"], "new");
        let config = json!({"kind": "FelixConfiguration", "metadata": {"name": "node.old"}});
        assert_eq!(names.resource(config)["metadata"]["name"], "node.new");
        let pool = json!({"kind": "IPPool", "metadata": {"name": "old"}});
        assert_eq!(names.resource(pool.clone()), pool);

        let cidr = "10.0.0.0/30".parse().unwrap();
        let attribute = |node: &str, handle: &str| Attribute {
            handle_id: Some(handle.to_owned()),
            secondary: BTreeMap::from([("node".to_owned(), node.to_owned())]),
            ..Attribute::default()
        };
        let block = |node: &str, tunnel: &str| {
            Record::Block(Block {
                cidr,
                affinity: Some(Owner::host(node)),
                claim_time: None,
                allocations: vec![Some(0), Some(1), None, None].into(),
                unallocated: vec![2, 3],
                attributes: vec![attribute(node, tunnel).into(), attribute("same", "net.old").into()].into(),
                sequence_number: 4,
                sequence_for_allocation: Arc::default(),
                deleted: false,
                legacy_host_affinity: Some(node.to_owned()),
            })
        };
        assert_eq!(
            names.record(block("old", "vxlan-tunnel-addr-old")),
            block("new", "vxlan-tunnel-addr-new")
        );
        let handle = |id: &str| {
            Record::Handle(Handle { id: id.to_owned(), blocks: BTreeMap::from([(cidr, 1)]), deleted: false })
        };
        assert_eq!(names.record(handle("ipip-tunnel-addr-old")), handle("ipip-tunnel-addr-new"));
        assert_eq!(names.record(handle("net.old")), handle("net.old"));
        let claim = |owner| {
            let state = api::AffinityState::Confirmed;
            Record::Affinity(api::Affinity { owner, cidr, state, deleted: false })
        };
        assert_eq!(names.record(claim(Owner::host("old"))), claim(Owner::host("new")));
        let balancer = claim(Owner::virtual_named("old"));
        assert_eq!(names.record(balancer.clone()), balancer);
    }

    #[test]
    fn nodes_that_kubernetes_does_not_know_are_named() {
        let nodes = [node("a", Some("a")), node("b", None), node("c", None)];
        let refused = Names::of(nodes.iter(), false).unwrap_err();
        assert!(refused.contains("in node b, c:") && refused.contains("--keep-node-names"), "{refused}");
        let kept = Names::of(nodes.iter(), true).unwrap();
        assert_eq!(kept.resource(nodes[1].clone()), nodes[1]);
    }
}
