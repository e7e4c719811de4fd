//! Reading Kubernetes objects as JSON values: the few fields that the workload controllers look at.

use serde_json::{Map, Value};

/// Name of an object within its kind: namespace (empty for cluster-scoped kinds) and name.
pub(super) type ObjectName = (String, String);

/// Text at a path of keys, empty if anything on the way is missing.
pub(super) fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// Whole number at a path of keys.
pub(super) fn number(object: &Value, path: &[&str]) -> Option<i64> {
    at(object, path).and_then(Value::as_i64)
}

/// Elements of the array at a path; none if it is missing.
pub(super) fn items<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Value at a path of keys.
pub(super) fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, key| value.get(key))
}

/// Namespace and name.
pub(super) fn name_of(object: &Value) -> ObjectName {
    (text(object, &["metadata", "namespace"]).to_owned(), text(object, &["metadata", "name"]).to_owned())
}

/// The object's uid.
pub(super) fn uid(object: &Value) -> &str {
    text(object, &["metadata", "uid"])
}

/// Revision of its last change; 0 if there is none.
pub(super) fn revision(object: &Value) -> u64 {
    text(object, &["metadata", "resourceVersion"]).parse().unwrap_or_default()
}

/// Whether it is on its way out.
pub(super) fn is_deleting(object: &Value) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_some_and(|value| !value.is_null())
}

/// The owner that controls it: its uid.
pub(super) fn controller_uid(object: &Value) -> Option<&str> {
    items(object, &["metadata", "ownerReferences"])
        .iter()
        .find(|owner| owner.get("controller") == Some(&Value::Bool(true)))
        .and_then(|owner| owner.get("uid"))
        .and_then(Value::as_str)
}

/// Labels, or an empty map.
pub(super) fn labels(object: &Value) -> Map<String, Value> {
    at(object, &["metadata", "labels"]).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Status of a condition (`True`, `False`, `Unknown`), empty if it is not there.
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    items(object, &["status", "conditions"])
        .iter()
        .find(|condition| condition.get("type").and_then(Value::as_str) == Some(kind))
        .and_then(|condition| condition.get("status"))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Whether a pod still counts for its owner: neither finished nor being deleted.
pub(super) fn is_active_pod(pod: &Value) -> bool {
    !is_deleting(pod) && !is_finished_pod(pod)
}

/// Whether a pod's containers have all ended for good.
pub(super) fn is_finished_pod(pod: &Value) -> bool {
    matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed")
}

/// Whether a pod is ready to serve.
pub(super) fn is_ready_pod(pod: &Value) -> bool {
    condition(pod, "Ready") == "True"
}

/// Sets the value at a path of keys. Whatever on the way is not an object becomes one: objects come from outside.
pub(super) fn set(object: &mut Value, path: &[&str], value: Value) {
    let mut place = object;
    for key in path {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[*key];
    }
    *place = value;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn setting_below_something_that_is_no_object_replaces_it() {
        let mut object = json!({"metadata": {"labels": "nonsense"}});
        set(&mut object, &["metadata", "labels", "app"], json!("web"));
        assert_eq!(object, json!({"metadata": {"labels": {"app": "web"}}}));
    }
}
