//! Server-side apply: a manager says which fields it wants, and gives up those that it no longer names.
//!
//! Who owns what stands in `metadata.managedFields`. Only managers that apply are written there: fields that others
//! set by update or patch belong to nobody, so applying over them is no conflict.

mod owned;
mod topology;

use self::owned::Owned;
use self::topology::{Kind, Place};
use crate::error::Status;
use crate::fields;
use crate::schema::Schema;
use serde_json::{Map, Value, json};

/// What is applied to what.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Name of the field manager.
    pub manager: &'a str,
    /// `status`, or empty.
    pub subresource: &'a str,
    /// Whether to take fields over from others.
    pub force: bool,
    /// As in the object.
    pub api_version: &'a str,
    /// As in the object.
    pub kind: &'a str,
    /// The time of the entry, RFC 3339.
    pub now: &'a str,
    /// The custom kind's schema.
    pub schema: Option<&'a Schema>,
    /// The present object, if there is one.
    pub current: Option<&'a Value>,
    /// What the manager wants.
    pub applied: &'a Value,
}

/// Metadata that nobody owns by applying it.
const UNOWNED: [&str; 10] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
];

/// The object after the manager applied what it wants, `managedFields` included. Applying the same again changes
/// nothing.
///
/// The result keeps the present object's `resourceVersion`, or has the one that the manager named, so that the
/// caller's check of it makes the change conditional.
///
/// # Errors
/// 400 if what is applied is no object of this kind, 409 if another manager owns a field with another value.
pub fn apply(request: &Request<'_>) -> Result<Value, Status> {
    let Value::Object(applied) = request.applied else {
        return Err(Status::bad_request("what is applied must be an object"));
    };
    for (field, wanted) in [("apiVersion", request.api_version), ("kind", request.kind)] {
        match applied.get(field).and_then(Value::as_str) {
            Some(given) if given == wanted => {}
            Some(given) => {
                let message = format!("what is applied has {field} {given:?}, but the path is of {wanted:?}");
                return Err(Status::bad_request(message));
            }
            None => return Err(Status::bad_request(format!("what is applied must have {field}"))),
        }
    }
    if applied
        .get("metadata")
        .and_then(|metadata| metadata.get("managedFields"))
        .is_some_and(|given| !given.is_null())
    {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }

    let root = match (request.schema, fields::kind(request.api_version, request.kind)) {
        (Some(schema), _) => Place::Root(schema.walk()),
        (None, Some(message)) => Place::Message(message),
        (None, None) => Place::Deduced,
    };
    let wanted = Value::Object(wanted(applied));
    let new = Owned::of(root, &wanted);
    let empty = json!({});
    let current = request.current.unwrap_or(&empty);
    let mut managers = owned::read(current);
    let own = |entry: &owned::Entry| entry.is_of(request.manager, request.subresource);

    let mut conflicts = Vec::new();
    for entry in managers.iter_mut().filter(|entry| entry.is_apply() && !own(entry)) {
        let mut paths = Vec::new();
        entry.owned.conflicts(root, &wanted, Some(current), &mut Vec::new(), &mut paths);
        for path in paths {
            if request.force {
                entry.owned.give_up(&path);
            } else {
                conflicts.push((format!("conflict with {:?}", entry.manager()), owned::shown(&path)));
            }
        }
    }
    if !conflicts.is_empty() {
        return Err(Status::apply_conflict(&conflicts));
    }

    let mut object = merge(root, Some(current), &wanted);
    let old = managers.iter().find(|entry| own(entry)).map(|entry| entry.owned.clone()).unwrap_or_default();
    let others: Vec<&Owned> =
        managers.iter().filter(|entry| entry.is_apply() && !own(entry)).map(|entry| &entry.owned).collect();
    old.give_back(root, &mut object, Some(&new), &others);

    if old != new || !managers.iter().any(own) {
        managers.retain(|entry| !own(entry));
        managers.push(owned::Entry::new(request, new));
    }
    managers.retain(|entry| !entry.is_apply() || !entry.owned.is_empty());
    let named = applied.get("metadata").and_then(Value::as_object);
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".to_owned(), request.api_version.into());
        map.insert("kind".to_owned(), request.kind.into());
        let metadata = map.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("managedFields".to_owned(), owned::write(&managers));
            // Named by the manager, they say which object is meant; the caller compares them.
            for field in ["name", "namespace", "uid", "resourceVersion"] {
                if let Some(value) = named.and_then(|named| named.get(field)).filter(|value| !value.is_null())
                {
                    metadata.insert(field.to_owned(), value.clone());
                }
            }
        }
    }
    Ok(object)
}

/// What is applied without what cannot be owned, and without nulls, which say nothing.
fn wanted(applied: &Map<String, Value>) -> Map<String, Value> {
    let mut wanted = without_nulls(applied);
    wanted.remove("apiVersion");
    wanted.remove("kind");
    if let Some(Value::Object(metadata)) = wanted.get_mut("metadata") {
        metadata.retain(|field, _| !UNOWNED.contains(&field.as_str()));
        if metadata.is_empty() {
            wanted.remove("metadata");
        }
    }
    wanted
}

fn without_nulls(map: &Map<String, Value>) -> Map<String, Value> {
    let clean = |value: &Value| match value {
        Value::Object(map) => Value::Object(without_nulls(map)),
        other => other.clone(),
    };
    map.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), clean(value))).collect()
}

fn merge(place: Place<'_>, current: Option<&Value>, applied: &Value) -> Value {
    match (place.kind(applied), applied, current) {
        (Kind::Object, Value::Object(applied), current) => {
            let mut merged = current.and_then(Value::as_object).cloned().unwrap_or_default();
            for (name, value) in applied {
                let value = merge(place.field(name), merged.get(name), value);
                merged.insert(name.clone(), value);
            }
            merged.into()
        }
        (Kind::Set, Value::Array(applied), Some(Value::Array(current))) => {
            let mut merged = current.clone();
            merged.extend(applied.iter().filter(|value| !current.contains(value)).cloned());
            merged.into()
        }
        (Kind::MapList(keys), Value::Array(applied), current) => {
            let mut merged = current.and_then(Value::as_array).cloned().unwrap_or_default();
            for value in applied {
                let id = place.id(&keys, value);
                let at = merged.iter().position(|one| place.id(&keys, one) == id);
                let value = merge(place.item(), at.map(|at| &merged[at]), value);
                match at {
                    Some(at) => merged[at] = value,
                    None => merged.push(value),
                }
            }
            merged.into()
        }
        (_, applied, _) => applied.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(manager: &'a str, current: Option<&'a Value>, applied: &'a Value) -> Request<'a> {
        Request {
            manager,
            subresource: "",
            force: false,
            api_version: applied["apiVersion"].as_str().unwrap(),
            kind: applied["kind"].as_str().unwrap(),
            now: "2026-01-01T00:00:00Z",
            schema: None,
            current,
            applied,
        }
    }

    fn config_map(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
    }

    #[test]
    fn a_field_that_is_no_longer_named_goes() {
        let first = config_map(json!({"a": "1", "b": "2"}));
        let object = apply(&request("m", None, &first)).unwrap();
        assert_eq!(
            object["metadata"]["managedFields"],
            json!([{"manager": "m", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:a": {}, "f:b": {}}}}])
        );
        let second = config_map(json!({"a": "1"}));
        let object = apply(&request("m", Some(&object), &second)).unwrap();
        assert_eq!(object["data"], json!({"a": "1"}));
    }

    #[test]
    fn applying_the_same_again_changes_nothing() {
        let wanted = config_map(json!({"a": "1"}));
        let once = apply(&request("m", None, &wanted)).unwrap();
        let again =
            apply(&Request { now: "2027-01-01T00:00:00Z", ..request("m", Some(&once), &wanted) }).unwrap();
        assert_eq!(once, again);
    }

    #[test]
    fn what_others_set_stays() {
        let wanted = config_map(json!({"a": "1"}));
        let mut object = apply(&request("m", None, &wanted)).unwrap();
        object["data"]["theirs"] = "x".into();
        let object = apply(&request("m", Some(&object), &config_map(json!({"b": "2"})))).unwrap();
        assert_eq!(object["data"], json!({"b": "2", "theirs": "x"}));
    }

    #[test]
    fn two_managers_conflict_over_one_value_unless_forced() {
        let one = apply(&request("one", None, &config_map(json!({"a": "1", "b": "1"})))).unwrap();
        let other = config_map(json!({"a": "2"}));
        let status = apply(&request("two", Some(&one), &other)).unwrap_err();
        assert_eq!(status.code, 409);
        assert_eq!(status.message, r#"Apply failed with 1 conflict: conflict with "one": .data.a"#);
        let forced = apply(&Request { force: true, ..request("two", Some(&one), &other) }).unwrap();
        assert_eq!(forced["data"], json!({"a": "2", "b": "1"}));
        assert_eq!(forced["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:data": {"f:b": {}}}));
        // The same value is owned by both, and stays until both let go.
        let shared = apply(&request("two", Some(&one), &config_map(json!({"a": "1"})))).unwrap();
        let left = apply(&request("one", Some(&shared), &config_map(json!({"b": "1"})))).unwrap();
        assert_eq!(left["data"], json!({"a": "1", "b": "1"}));
    }

    #[test]
    fn list_elements_are_merged_by_their_keys() {
        let deployment = |containers: Value| {
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
                "spec": {"template": {"spec": {"containers": containers}}}})
        };
        let first = deployment(
            json!([{"name": "a", "image": "x:1", "ports": [{"containerPort": 80}]}, {"name": "b"}]),
        );
        let mut object = apply(&request("m", None, &first)).unwrap();
        // Defaults of the server belong to nobody and must not make a second port.
        object["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"] = "TCP".into();
        object["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
        let second = deployment(json!([{"name": "a", "image": "x:2", "ports": [{"containerPort": 80}]}]));
        let object = apply(&request("m", Some(&object), &second)).unwrap();
        assert_eq!(
            object["spec"]["template"]["spec"]["containers"],
            json!([{"name": "a", "image": "x:2", "imagePullPolicy": "Always",
                "ports": [{"containerPort": 80, "protocol": "TCP"}]}])
        );
    }

    #[test]
    fn sets_lose_only_what_their_manager_added() {
        let node = |finalizers: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "finalizers": finalizers}});
        let mut object = apply(&request("m", None, &node(json!(["x/a", "x/b"])))).unwrap();
        object["metadata"]["finalizers"].as_array_mut().unwrap().push("x/theirs".into());
        let object = apply(&request("m", Some(&object), &node(json!(["x/b"])))).unwrap();
        assert_eq!(object["metadata"]["finalizers"], json!(["x/b", "x/theirs"]));
    }

    #[test]
    fn custom_kinds_merge_as_their_schema_says() {
        let schema = Schema::compile(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "rules": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                "items": {"type": "object", "properties": {"id": {"type": "integer"}, "to": {"type": "string"}}}},
            "plain": {"type": "array", "items": {"type": "string"}}}}}}))
        .unwrap();
        let cat = |spec: Value| json!({"apiVersion": "e.org/v1", "kind": "Cat", "metadata": {"name": "c"}, "spec": spec});
        let first = cat(json!({"rules": [{"id": 1, "to": "a"}], "plain": ["x"]}));
        let one = apply(&Request { schema: Some(&schema), ..request("one", None, &first) }).unwrap();
        let second = cat(json!({"rules": [{"id": 2, "to": "b"}]}));
        let two = apply(&Request { schema: Some(&schema), ..request("two", Some(&one), &second) }).unwrap();
        assert_eq!(two["spec"]["rules"], json!([{"id": 1, "to": "a"}, {"id": 2, "to": "b"}]));
        let third = cat(json!({"plain": ["y"]}));
        let status =
            apply(&Request { schema: Some(&schema), ..request("two", Some(&two), &third) }).unwrap_err();
        assert_eq!(status.details["causes"][0]["field"], ".spec.plain");
    }

    #[test]
    fn what_is_applied_must_be_of_the_kind() {
        let mut wanted = config_map(json!({}));
        let mut wrong = request("m", None, &wanted);
        wrong.kind = "Secret";
        assert_eq!(apply(&wrong).unwrap_err().code, 400);
        wanted["metadata"]["managedFields"] = json!([{}]);
        assert_eq!(apply(&request("m", None, &wanted)).unwrap_err().code, 400);
    }
}
