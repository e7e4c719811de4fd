//! Strategic merge: a merge patch that knows which lists are merged by which key, with directives inside the patch.
//!
//! - `$patch: replace | delete | merge` in an object, or in an element of a merged list;
//! - `$setElementOrder/<list>`: the order of a merged list afterwards;
//! - `$deleteFromPrimitiveList/<list>`: values to take out of a merged list of plain values;
//! - `$retainKeys`: which fields of an object stay.

use crate::fields::{Field, Message, Shape};
use serde_json::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PLAIN: &str = "$deleteFromPrimitiveList/";

/// The object that `patch` makes of `current`, both of the kind that `message` describes.
///
/// # Errors
/// What is wrong with the patch, in a sentence.
pub fn merge(message: &'static Message, current: &Value, patch: &Value) -> Result<Value, String> {
    let Value::Object(patch) = patch else {
        return Err("a strategic merge patch must be an object".to_owned());
    };
    let empty = Map::new();
    let current = current.as_object().unwrap_or(&empty);
    match merge_objects(Some(message), current, patch)? {
        Some(merged) => Ok(merged.into()),
        None => Err("the patch deletes the object; send a DELETE request instead".to_owned()),
    }
}

/// `None`: the patch deletes the object.
fn merge_objects(
    message: Option<&'static Message>,
    current: &Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Option<Map<String, Value>>, String> {
    let mut merged = match patch.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
        None | Some("merge") => current.clone(),
        Some("replace") => return Ok(Some(cleaned(patch))),
        Some("delete") => return Ok(None),
        Some(other) => return Err(format!("Unknown patch type: {other}")),
    };
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let Value::Array(keys) = keys else { return Err(format!("{RETAIN_KEYS} must be a list")) };
        merged.retain(|key, _| keys.iter().any(|kept| kept == key));
    }
    for (key, change) in patch {
        if let Some(list) = key.strip_prefix(DELETE_PLAIN) {
            let gone = change.as_array().ok_or_else(|| format!("{key} must be a list"))?;
            if let Some(Value::Array(values)) = merged.get_mut(list) {
                values.retain(|value| !gone.contains(value));
            }
        }
    }
    for (key, change) in patch {
        if key.starts_with('$') {
            continue;
        }
        let field = message.and_then(|message| message.field(key));
        let order = patch.get(&format!("{SET_ORDER}{key}"));
        match change {
            Value::Null => {
                merged.remove(key);
            }
            Value::Object(change) => {
                let empty = Map::new();
                let below = merged.get(key).and_then(Value::as_object).unwrap_or(&empty);
                let message = field.filter(|field| field.shape == Shape::One).and_then(Field::message);
                match merge_objects(message, below, change)? {
                    Some(value) => merged.insert(key.clone(), value.into()),
                    None => merged.remove(key),
                };
            }
            Value::Array(change) => {
                let current = merged.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let value = merge_lists(field, current, change, order)?;
                merged.insert(key.clone(), value.into());
            }
            scalar => {
                merged.insert(key.clone(), scalar.clone());
            }
        }
    }
    // A list whose order is set without any change to it.
    for (key, order) in patch {
        let Some(list) = key.strip_prefix(SET_ORDER).filter(|list| !patch.contains_key(*list)) else {
            continue;
        };
        let field = message.and_then(|message| message.field(list));
        if let (Some(key), Some(Value::Array(values)), Some(order)) =
            (field.and_then(|field| field.merge_key), merged.get_mut(list), order.as_array())
        {
            let taken = std::mem::take(values);
            let before = taken.clone();
            *values = ordered(key, taken, order, &before);
        }
    }
    Ok(Some(merged))
}

fn merge_lists(
    field: Option<&'static Field>,
    current: &[Value],
    patch: &[Value],
    order: Option<&Value>,
) -> Result<Vec<Value>, String> {
    let replaced = || patch.iter().filter(|value| directive(value).is_none()).map(clean).collect();
    let Some(key) = field.and_then(|field| field.merge_key) else { return Ok(replaced()) };
    if patch.iter().any(|value| directive(value) == Some("replace")) {
        return Ok(replaced());
    }
    let mut merged = current.to_vec();
    if key.is_empty() {
        for value in patch {
            if !merged.contains(value) {
                merged.push(value.clone());
            }
        }
    } else {
        for change in patch {
            let Value::Object(change) = change else {
                return Err(format!("an element of a list merged by {key:?} is no object"));
            };
            let id = change
                .get(key)
                .ok_or_else(|| format!("map: {change:?} does not contain declared merge key: {key}"))?;
            let at = merged.iter().position(|one| one.get(key) == Some(id));
            let empty = Map::new();
            let below = at.and_then(|at| merged[at].as_object()).unwrap_or(&empty);
            match (merge_objects(field.and_then(Field::message), below, change)?, at) {
                (Some(value), Some(at)) => merged[at] = value.into(),
                (Some(value), None) => merged.push(value.into()),
                (None, Some(at)) => {
                    merged.remove(at);
                }
                (None, None) => {}
            }
        }
    }
    // Without an order of its own the patch's elements stand as they stand in the patch.
    Ok(match order.and_then(Value::as_array) {
        Some(order) => ordered(key, merged, order, current),
        None => ordered(key, merged, patch, current),
    })
}

/// Puts the elements that `order` names into its order. The others stay before those named that they stood before in the
/// list as it was.
fn ordered(key: &str, values: Vec<Value>, order: &[Value], before: &[Value]) -> Vec<Value> {
    let rank = |of: &[Value], value: &Value| {
        of.iter().position(|one| if key.is_empty() { one == value } else { one.get(key) == value.get(key) })
    };
    let (mut named, others): (Vec<_>, Vec<_>) =
        values.into_iter().partition(|value| rank(order, value).is_some());
    named.sort_by_key(|value| rank(order, value));
    let mut merged: Vec<Value> = Vec::with_capacity(named.len() + others.len());
    let mut named = named.into_iter().peekable();
    for other in others {
        let stood = rank(before, &other);
        while let Some(next) = named
            .next_if(|next| !matches!((stood, rank(before, next)), (Some(other), Some(next)) if other < next))
        {
            merged.push(next);
        }
        merged.push(other);
    }
    merged.extend(named);
    merged
}

fn directive(value: &Value) -> Option<&str> {
    value.get(PATCH).and_then(Value::as_str)
}

/// A value of a patch without its directives.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => cleaned(map).into(),
        Value::Array(list) => list.iter().filter(|value| directive(value).is_none()).map(clean).collect(),
        scalar => scalar.clone(),
    }
}

fn cleaned(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter()
        .filter(|(key, value)| !key.starts_with('$') && !value.is_null())
        .map(|(key, value)| (key.clone(), clean(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields;
    use serde_json::json;

    fn patched(kind: (&str, &str), current: Value, patch: Value) -> Value {
        merge(fields::kind(kind.0, kind.1).unwrap(), &current, &patch).unwrap()
    }

    const SERVICE: (&str, &str) = ("v1", "Service");
    const DEPLOYMENT: (&str, &str) = ("apps/v1", "Deployment");
    const NODE: (&str, &str) = ("v1", "Node");

    #[test]
    fn the_ports_of_a_service_merge_by_port() {
        let current = json!({"spec": {"ports": [{"port": 80, "name": "web", "nodePort": 3}, {"port": 90}]}});
        let patch = json!({"spec": {
            "$setElementOrder/ports": [{"port": 8080}, {"port": 90}],
            "ports": [{"name": "http", "port": 8080}, {"$patch": "delete", "port": 80}]}});
        assert_eq!(
            patched(SERVICE, current, patch),
            json!({"spec": {"ports": [{"name": "http", "port": 8080}, {"port": 90}]}})
        );
    }

    #[test]
    fn an_image_changes_in_the_container_of_that_name() {
        let current = json!({"spec": {"template": {"spec": {"containers": [
            {"name": "a", "image": "x:1", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "y"}]}}}});
        let patch = json!({"spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
            "containers": [{"name": "a", "image": "x:2"}]}}}});
        let after = patched(DEPLOYMENT, current, patch);
        let containers = &after["spec"]["template"]["spec"]["containers"];
        assert_eq!(
            *containers,
            json!([{"name": "a", "image": "x:2", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "y"}])
        );
    }

    #[test]
    fn taints_are_replaced_as_a_whole() {
        let current = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
        let patch = json!({"spec": {"taints": [{"key": "b", "effect": "NoExecute"}]}});
        assert_eq!(
            patched(NODE, current, patch),
            json!({"spec": {"taints": [{"key": "b", "effect": "NoExecute"}]}})
        );
    }

    #[test]
    fn conditions_merge_by_type() {
        let current =
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X"}]}});
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(
            patched(NODE, current, patch),
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X"}]}})
        );
    }

    #[test]
    fn finalizers_are_a_merged_set() {
        let current = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {"finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"],
            "$setElementOrder/finalizers": ["c", "b"]}});
        assert_eq!(patched(NODE, current, patch), json!({"metadata": {"finalizers": ["c", "b"]}}));
    }

    #[test]
    fn retained_keys_drop_the_others() {
        let current =
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(patched(DEPLOYMENT, current, patch), json!({"spec": {"strategy": {"type": "Recreate"}}}));
    }

    #[test]
    fn objects_and_lists_can_be_replaced_or_deleted() {
        let current = json!({"spec": {"selector": {"a": "1"}, "ports": [{"port": 1}], "clusterIP": "x"}});
        let patch = json!({"spec": {"selector": {"$patch": "replace", "b": "2"},
            "ports": [{"$patch": "replace"}, {"port": 2}], "clusterIP": null}});
        assert_eq!(
            patched(SERVICE, current, patch),
            json!({"spec": {"selector": {"b": "2"}, "ports": [{"port": 2}]}})
        );
        let current = json!({"metadata": {"labels": {"a": "1"}}});
        let patch = json!({"metadata": {"labels": {"$patch": "delete"}}});
        assert_eq!(patched(SERVICE, current, patch), json!({"metadata": {}}));
    }

    #[test]
    fn an_element_without_its_key_is_refused() {
        let message = fields::kind("v1", "Service").unwrap();
        assert!(merge(message, &json!({}), &json!({"spec": {"ports": [{"name": "a"}]}})).is_err());
        assert!(merge(message, &json!({}), &json!({"spec": {"ports": [1]}})).is_err());
        assert!(merge(message, &json!({}), &json!({"$patch": "explode"})).is_err());
        assert!(merge(message, &json!({}), &json!([])).is_err());
    }
}
