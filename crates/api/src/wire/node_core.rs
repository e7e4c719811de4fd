//! What is read of a core/v1 Node (data model §10).

use super::WireError;
use super::field::{Fields, texts};
use crate::Node;
use serde_json::Value;

/// Annotation with further labels as a JSON map; the Node's own labels win over it.
const LABELS_ANNOTATION: &str = "projectcalico.org/labels";

impl Node {
    /// Reads a core/v1 Node. An annotation or address that does not parse is passed over.
    ///
    /// # Errors
    /// If it has no name.
    pub fn from_core(object: &Value) -> Result<Self, WireError> {
        let fields = Fields::of("Node", object);
        let name = fields.object_name(object)?;
        let annotations = texts(object.pointer("/metadata/annotations"));
        let underneath: Option<Value> =
            annotations.get(LABELS_ANNOTATION).and_then(|text| serde_json::from_str(text).ok());
        let mut labels = texts(underneath.as_ref());
        labels.extend(texts(object.pointer("/metadata/labels")));
        let internal_ips = object
            .pointer("/status/addresses")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|entry| entry.get("type").and_then(Value::as_str) == Some("InternalIP"))
            .filter_map(|entry| entry.get("address")?.as_str()?.parse().ok())
            .collect();
        Ok(Self { name, labels, annotations, internal_ips, kubernetes_name: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn own_labels_win_over_those_of_the_annotation() {
        let object = json!({"metadata":{"name":"n","labels":{"zone":"a"},
            "annotations":{"projectcalico.org/labels":"{\"zone\":\"b\",\"rack\":\"1\"}"}},
            "status":{"addresses":[{"type":"Hostname","address":"n"},{"type":"InternalIP","address":"172.18.0.3"}]}});
        let node = Node::from_core(&object).unwrap();
        assert_eq!(node.labels["zone"], "a");
        assert_eq!(node.labels["rack"], "1");
        assert_eq!(node.internal_ips, ["172.18.0.3".parse::<std::net::IpAddr>().unwrap()]);
    }

    #[test]
    fn a_broken_annotation_does_not_hide_the_node() {
        let object = json!({"metadata":{"name":"n","annotations":{"projectcalico.org/labels":"["}}});
        assert!(Node::from_core(&object).unwrap().labels.is_empty());
    }
}
