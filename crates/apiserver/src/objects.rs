//! Objects as they are stored, and as they are sent.
//!
//! Stored is the object's JSON without `metadata.resourceVersion`, beginning with `kind`, `apiVersion` and `metadata`
//! in this order. The revision is the store's own; because `metadata` comes first, it is put in by copying bytes, so
//! that reads, lists and watches need not parse what they send.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Map, Value};
use storage::Entry;

const METADATA: &[u8] = b"\"metadata\":{";

/// JSON of an object for the store.
pub fn encode(object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"kind\":");
    write(&mut out, &object["kind"]);
    out.extend_from_slice(b",\"apiVersion\":");
    write(&mut out, &object["apiVersion"]);
    out.extend_from_slice(b",\"metadata\":{");
    let mut first = true;
    for (key, value) in object["metadata"].as_object().into_iter().flatten() {
        if key != "resourceVersion" {
            member(&mut out, key, value, &mut first);
        }
    }
    out.push(b'}');
    let mut first = false;
    for (key, value) in object.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "kind" | "apiVersion" | "metadata") {
            member(&mut out, key, value, &mut first);
        }
    }
    out.push(b'}');
    Bytes::from(out)
}

fn member(out: &mut Vec<u8>, key: &str, value: &Value, first: &mut bool) {
    if !std::mem::take(first) {
        out.push(b',');
    }
    write(out, &Value::from(key));
    out.push(b':');
    write(out, value);
}

fn write(out: &mut Vec<u8>, value: &Value) {
    // Writing values that hold only string keys into memory has no way to fail.
    let _ = serde_json::to_writer(out, value);
}

/// Copies a stored object into `out`, with its revision put in.
pub fn render(entry: &Entry, revision: u64, out: &mut BytesMut) {
    let stored = &entry.value[..];
    let split =
        stored.windows(METADATA.len()).position(|window| window == METADATA).map(|at| at + METADATA.len());
    let (head, rest) = stored.split_at(split.unwrap_or(0));
    out.reserve(stored.len() + 48);
    out.put_slice(head);
    if split.is_some() {
        out.put_slice(b"\"resourceVersion\":\"");
        out.put_slice(revision.to_string().as_bytes());
        out.put_slice(if rest.first() == Some(&b'}') { b"\"" } else { b"\"," });
    }
    out.put_slice(rest);
}

/// A stored object as a value, at its own revision.
///
/// What is not JSON reads as null: only this server writes the store, so it is not met.
pub fn decode(entry: &Entry) -> Value {
    decode_at(entry, entry.revision)
}

/// A stored object as a value that shows `revision`.
pub fn decode_at(entry: &Entry, revision: u64) -> Value {
    let mut object: Value = serde_json::from_slice(&entry.value).unwrap_or_else(|error| {
        tracing::error!(%error, revision = entry.revision, "a stored object is not JSON");
        Value::Null
    });
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
    object
}

/// The part of an object that housekeeping looks at.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Head {
    /// Kind.
    pub kind: String,
    /// Group and version.
    pub api_version: String,
    /// Metadata.
    pub metadata: HeadMetadata,
}

/// The part of the metadata that housekeeping looks at.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeadMetadata {
    /// Name.
    pub name: String,
    /// Namespace, empty for cluster-scoped objects.
    pub namespace: String,
    /// Identity.
    pub uid: String,
    /// Set once deletion was asked for.
    pub deletion_timestamp: Option<String>,
    /// Who must agree before the object goes.
    pub finalizers: Vec<String>,
    /// Owners.
    pub owner_references: Vec<OwnerReference>,
}

/// A reference to an owner.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Identity of the owner.
    pub uid: String,
    /// Whether a foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

/// Reads only the head of a stored object.
pub fn head(entry: &Entry) -> Head {
    serde_json::from_slice(&entry.value).unwrap_or_default()
}

/// A string below `metadata`, or the empty string.
pub fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The metadata of an object; makes it when it is missing.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    match metadata {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

/// Whether deletion was asked for.
pub fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Finalizers of an object.
pub fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Takes one finalizer away.
pub fn without_finalizer(object: &mut Value, finalizer: &str) {
    if let Some(metadata) = object["metadata"].as_object_mut()
        && let Some(list) = metadata.get_mut("finalizers").and_then(Value::as_array_mut)
    {
        list.retain(|one| one != finalizer);
        if list.is_empty() {
            metadata.remove("finalizers");
        }
    }
}

/// Now, as Kubernetes writes times: UTC, whole seconds.
pub fn now() -> String {
    timestamp(jiff::Timestamp::now())
}

/// A time as Kubernetes writes it.
pub fn timestamp(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stored(object: &Value) -> Entry {
        Entry { revision: 7, created: 3, value: encode(object) }
    }

    #[test]
    fn a_rendered_object_is_the_stored_one_with_its_revision() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"metadata": "{\"metadata\":{}}"},
            "metadata": {"name": "a", "resourceVersion": "1", "labels": {"x": "\"metadata\":{"}},
        });
        let entry = stored(&object);
        assert!(entry.value.starts_with(br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"labels""#));
        let mut out = BytesMut::new();
        render(&entry, 9, &mut out);
        let sent: Value = serde_json::from_slice(&out).unwrap();
        let mut expected = object;
        expected["metadata"]["resourceVersion"] = "9".into();
        assert_eq!(sent, expected);
        assert_eq!(decode_at(&entry, 9), expected);
    }

    #[test]
    fn empty_metadata_renders_too() {
        let mut out = BytesMut::new();
        render(&stored(&json!({"kind": "X", "apiVersion": "v1", "metadata": {}})), 1, &mut out);
        assert_eq!(&out[..], br#"{"kind":"X","apiVersion":"v1","metadata":{"resourceVersion":"1"}}"#);
    }
}
