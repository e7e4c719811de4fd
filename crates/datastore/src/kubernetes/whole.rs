//! Pools and reservations as whole resources, for a copy that loses none of their fields.

use super::Kubernetes;
use super::object::{self, METADATA_ANNOTATION};
use crate::copy::Whole;
use crate::{CommitError, Datastore, Key, Kind, ReadError, Record, Write};
use api::Node;
use api::wire::Resource;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Annotations of a node that are Calico's.
const OF_CALICO: &str = "projectcalico.org/";

/// An object as the resource of `projectcalico.org/v3` that it is the face of: labels and annotations that clients of Calico
/// keep in an annotation are its own.
fn resource(object: &Value) -> Value {
    let of = |metadata: &Value, field: &str| -> Map<String, Value> {
        metadata.get(field).and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let mut annotations = of(&object["metadata"], "annotations");
    let face = annotations.remove(METADATA_ANNOTATION);
    let face: Value = face
        .as_ref()
        .and_then(Value::as_str)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), object["metadata"]["name"].clone());
    for (field, own) in [("labels", of(&object["metadata"], "labels")), ("annotations", annotations)] {
        let mut merged = of(&face, field);
        merged.extend(own);
        if !merged.is_empty() {
            metadata.insert(field.to_owned(), Value::Object(merged));
        }
    }
    json!({"kind": object["kind"], "metadata": metadata, "spec": object["spec"]})
}

impl Whole for Kubernetes {
    async fn whole(&self, kind: Kind) -> Result<BTreeMap<Key, Value>, ReadError> {
        // Nodes are the cluster's.
        if kind == Kind::Node {
            return Ok(BTreeMap::new());
        }
        let of_kind = if kind == Kind::Reservation { Resource::RESERVATION } else { Resource::POOL };
        let objects = self.others(of_kind.plural).await?;
        let read = |object: &Value| {
            let mut whole = resource(object);
            // A list may leave it to itself what its items are.
            whole["kind"] = json!(of_kind.kind);
            Some((object::key_of(kind, object)?, whole))
        };
        Ok(objects.iter().filter_map(read).collect())
    }

    async fn create_whole(&self, record: &Record, whole: &Value) -> Result<(), CommitError> {
        match record {
            Record::Pool(_) | Record::Reservation(_) => self.create_as_it_stands(&record.key(), whole).await,
            _ => self.commit(&[], &[Write::Create(record.clone())]).await.map(drop),
        }
    }

    /// A node elsewhere says which one it is here, and what it has of other programs stays here.
    fn node_elsewhere(&self, mut node: Node) -> Node {
        node.annotations.retain(|name, _| name.starts_with(OF_CALICO));
        node.kubernetes_name.get_or_insert_with(|| node.name.clone());
        node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_calicos_clients_keep_in_an_annotation_are_the_resources_own() {
        let object = json!({"kind": "IPPool", "metadata": {"name": "p", "uid": "u", "resourceVersion": "7",
            "annotations": {"projectcalico.org/metadata": "{\"labels\":{\"team\":\"a\"},\"creationTimestamp\":null}", "note": "x"}},
            "spec": {"cidr": "10.0.0.0/16"}});
        assert_eq!(
            resource(&object),
            json!({"kind": "IPPool", "metadata": {"name": "p", "labels": {"team": "a"}, "annotations": {"note": "x"}},
                "spec": {"cidr": "10.0.0.0/16"}})
        );
    }
}
