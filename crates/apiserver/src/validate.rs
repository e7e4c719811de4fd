//! Rules of built-in kinds: names, types, unknown fields, required fields, and what must not change.

mod metadata;
mod pod;
mod service;
mod workload;

use crate::error::FieldError;
use crate::fields::{self, Field, Message, Shape, Type};
use serde_json::{Value, json};

/// Faults reported for one object, at most.
const MAX_FAULTS: usize = 100;

/// Removes nulls, and fields that the kind does not have; returns the paths of the latter, as `spec.foo` or `spec.list[0].foo`.
///
/// Kinds that the table does not know keep all their fields.
pub fn unknown_fields(api_version: &str, kind: &str, object: &mut Value) -> Vec<String> {
    let mut removed = Vec::new();
    match fields::kind(api_version, kind) {
        Some(message) => {
            let fixed = ["apiVersion", "kind"]
                .map(|name| (name, object.as_object_mut().and_then(|map| map.remove(name))));
            message.prune(object, "", &mut removed);
            if let Some(map) = object.as_object_mut() {
                map.extend(fixed.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
            }
        }
        None => {
            if let Some(metadata) = object.get_mut("metadata") {
                fields::object_meta().prune(metadata, "metadata", &mut removed);
            }
        }
    }
    removed
}

/// What is wrong with an object of a built-in kind, after its defaults were filled. `old` is what it replaces.
///
/// Values of the wrong JSON type are reported alone: the other rules do not look at such an object.
pub fn validate_builtin(group: &str, kind: &str, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut faults = Vec::new();
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    match fields::kind(api_version, kind) {
        Some(message) => types(message, object, "", &mut faults),
        None => {
            if !object["metadata"].is_null() {
                types(fields::object_meta(), &object["metadata"], "metadata", &mut faults);
            }
        }
    }
    if !faults.is_empty() {
        faults.truncate(MAX_FAULTS);
        return faults;
    }
    metadata::check(object, old, &mut faults);
    match (group, kind) {
        ("", "Pod") => pod::check(&object["spec"], "spec", &mut faults),
        ("", "PodTemplate") => pod::check(&object["template"]["spec"], "template.spec", &mut faults),
        ("", "Service") => service::check(object, &mut faults),
        ("", "ConfigMap") => data(object, old, &["data", "binaryData"], &mut faults),
        ("", "Secret") => secret(object, old, &mut faults),
        ("", "PersistentVolumeClaim") => {
            required(object, &["spec.accessModes", "spec.resources.requests.storage"], &mut faults);
        }
        ("apps" | "batch", _) | ("", "ReplicationController") => {
            workload::check(kind, object, old, &mut faults)
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            required(object, &["addressType"], &mut faults);
            unchanged(object, old, "addressType", &mut faults);
        }
        ("networking.k8s.io", "IngressClass") => required(object, &["spec.controller"], &mut faults),
        ("policy", "PodDisruptionBudget")
            if !object["spec"]["minAvailable"].is_null() && !object["spec"]["maxUnavailable"].is_null() =>
        {
            let detail = "minAvailable and maxUnavailable cannot be both set";
            faults.push(FieldError::invalid("spec", &object["spec"], detail));
        }
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => rules(object, &mut faults),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            required(object, &["roleRef.kind", "roleRef.name"], &mut faults);
            if old.is_some_and(|old| old["roleRef"] != object["roleRef"]) {
                faults.push(FieldError::invalid("roleRef", &object["roleRef"], "cannot change roleRef"));
            }
        }
        ("storage.k8s.io", "StorageClass") => {
            required(object, &["provisioner"], &mut faults);
            for field in ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"] {
                unchanged(object, old, field, &mut faults);
            }
        }
        ("coordination.k8s.io", "Lease") => lease(object, &mut faults),
        ("scheduling.k8s.io", "PriorityClass") => unchanged(object, old, "value", &mut faults),
        _ => {}
    }
    faults.truncate(MAX_FAULTS);
    faults
}

/// Looks at the JSON types of all fields.
fn types(message: &'static Message, value: &Value, path: &str, faults: &mut Vec<FieldError>) {
    let Value::Object(map) = value else {
        return wrong(path, "object", value, faults);
    };
    for (name, value) in map {
        if value.is_null() {
            continue;
        }
        let Some(field) = message.field(name) else { continue };
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (field.shape, value) {
            (Shape::One, value) => one_type(field, value, &below, faults),
            (Shape::List, Value::Array(list)) => {
                for (at, item) in list.iter().enumerate() {
                    one_type(field, item, &format!("{below}[{at}]"), faults);
                }
            }
            (Shape::Map, Value::Object(map)) => {
                for (key, value) in map {
                    one_type(field, value, &format!("{below}.{key}"), faults);
                }
            }
            (Shape::List, value) => wrong(&below, "array", value, faults),
            (Shape::Map, value) => wrong(&below, "object", value, faults),
        }
        if faults.len() >= MAX_FAULTS {
            return;
        }
    }
}

fn one_type(field: &'static Field, value: &Value, path: &str, faults: &mut Vec<FieldError>) {
    let (fits, expected) = match field.of {
        Type::String | Type::Duration => (value.is_string(), "string"),
        Type::Time | Type::MicroTime => {
            (value.as_str().is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok()), "time")
        }
        Type::Bytes => {
            use base64::Engine;
            let engine = &base64::engine::general_purpose::STANDARD;
            (value.as_str().is_some_and(|text| engine.decode(text).is_ok()), "base64")
        }
        Type::Bool => (value.is_boolean(), "boolean"),
        Type::Int => (value.is_i64() || value.is_u64(), "integer"),
        Type::Double => (value.is_number(), "number"),
        Type::Quantity => (value.is_number() || value.as_str().is_some_and(is_quantity), "quantity"),
        Type::IntOrString => (value.is_string() || value.is_i64() || value.is_u64(), "integer,string"),
        Type::Any => (true, ""),
        Type::Fields => (value.is_object(), "object"),
        Type::Message(_) => {
            if let Some(message) = field.message().filter(|message| message.list_of.is_none()) {
                return types(message, value, path, faults);
            }
            (value.is_array(), "array")
        }
    };
    // A null in a list or map says nothing.
    if !fits && !value.is_null() {
        wrong(path, expected, value, faults);
    }
}

fn wrong(path: &str, expected: &str, value: &Value, faults: &mut Vec<FieldError>) {
    let actual = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "boolean".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(text) => text.chars().take(64).collect(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    };
    let detail = format!("{path} in body must be of type {expected}: {actual:?}");
    faults.push(FieldError::type_invalid(path, &json!(actual), &detail));
}

/// Whether `text` is a quantity as `100m`, `1.5Gi` or `12e6`.
pub fn is_quantity(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let is_number = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
    let is_exponent = || {
        suffix.strip_prefix(['e', 'E']).is_some_and(|exponent| {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
        })
    };
    let known = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    is_number && (known.contains(&suffix) || is_exponent())
}

fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(object, |value, field| &value[field])
}

/// Fields that must be there and not empty.
fn required(object: &Value, paths: &[&str], faults: &mut Vec<FieldError>) {
    for path in paths {
        let missing = match at(object, path) {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if missing {
            faults.push(FieldError::required(*path, ""));
        }
    }
}

/// A field that must stay as it is.
fn unchanged(object: &Value, old: Option<&Value>, path: &str, faults: &mut Vec<FieldError>) {
    let new = at(object, path);
    if old.is_some_and(|old| at(old, path) != new) {
        faults.push(FieldError::invalid(path, new, "field is immutable"));
    }
}

/// Rules of config maps and secrets: their keys are file names, and those declared immutable stay.
fn data(object: &Value, old: Option<&Value>, fields: &[&str], faults: &mut Vec<FieldError>) {
    for field in fields {
        for key in object[*field].as_object().into_iter().flatten().map(|(key, _)| key) {
            let is_name = !key.is_empty()
                && key.len() <= 253
                && !matches!(key.as_str(), "." | "..")
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if !is_name {
                let detail = "a valid config key must consist of letters, digits, '-', '_' and '.'";
                faults.push(FieldError::invalid(format!("{field}[{key}]"), &json!(key), detail));
            }
        }
        let fixed = old.is_some_and(|old| old["immutable"] == true && old[*field] != object[*field]);
        if fixed {
            faults.push(FieldError::forbidden(*field, "field is immutable when `immutable` is set"));
        }
    }
    if old.is_some_and(|old| old["immutable"] == true && object["immutable"] != true) {
        faults.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
}

fn secret(object: &Value, old: Option<&Value>, faults: &mut Vec<FieldError>) {
    data(object, old, &["data"], faults);
    unchanged(object, old, "type", faults);
    let needed: &[&str] = match object["type"].as_str().unwrap_or_default() {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        if object["data"][*key].is_null() && object["stringData"][*key].is_null() {
            faults.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
}

fn lease(object: &Value, faults: &mut Vec<FieldError>) {
    for (field, least, detail) in [
        ("leaseDurationSeconds", 1, "must be greater than 0"),
        ("leaseTransitions", 0, "must be greater than or equal to 0"),
    ] {
        let value = &object["spec"][field];
        if value.as_i64().is_some_and(|value| value < least) {
            faults.push(FieldError::invalid(format!("spec.{field}"), value, detail));
        }
    }
}

fn rules(object: &Value, faults: &mut Vec<FieldError>) {
    for (index, rule) in object["rules"].as_array().into_iter().flatten().enumerate() {
        let is_empty = |field: &str| rule[field].as_array().is_none_or(Vec::is_empty);
        if is_empty("verbs") {
            faults.push(FieldError::required(
                format!("rules[{index}].verbs"),
                "verbs must contain at least one value",
            ));
        }
        if is_empty("nonResourceURLs") && is_empty("resources") {
            let detail = "resource rules must supply at least one resource";
            faults.push(FieldError::required(format!("rules[{index}].resources"), detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_removed_and_named() {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"any": "x"}, "colour": "red"},
            "spec": {"containers": [{"name": "a", "imag": "x"}], "foo": 1, "nodeSelector": {"any": "x"}},
        });
        assert_eq!(
            unknown_fields("v1", "Pod", &mut pod),
            ["metadata.colour", "spec.containers[0].imag", "spec.foo"]
        );
        assert_eq!(pod["spec"], json!({"containers": [{"name": "a"}], "nodeSelector": {"any": "x"}}));
        assert_eq!(pod["kind"], "Pod");
    }

    #[test]
    fn nulls_are_dropped_without_a_word() {
        let mut pod = json!({"kind": "Pod", "metadata": {"creationTimestamp": null}, "spec": null});
        assert!(unknown_fields("v1", "Pod", &mut pod).is_empty());
        assert_eq!(pod, json!({"kind": "Pod", "metadata": {}}));
    }

    #[test]
    fn kinds_without_a_table_keep_their_fields() {
        let mut service =
            json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "spec": {"any": 1}});
        assert!(unknown_fields("apiregistration.k8s.io/v1", "APIService", &mut service).is_empty());
        assert_eq!(service["spec"]["any"], 1);
    }

    #[test]
    fn wrong_types_are_found_wherever_they_stand() {
        let faults = |object: Value| -> Vec<String> {
            let kind = object["kind"].as_str().unwrap().to_owned();
            let (group, _) = object["apiVersion"].as_str().unwrap().split_once('/').unwrap_or(("", ""));
            validate_builtin(group, &kind, &object, None).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            faults(json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": "3"}})),
            [r#"spec.replicas: Invalid value: "3": spec.replicas in body must be of type integer: "3""#]
        );
        assert_eq!(faults(json!({"apiVersion": "v1", "kind": "Pod", "spec": 1})).len(), 1);
        assert_eq!(
            faults(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": 1}}})).len(),
            1
        );
        assert_eq!(faults(json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "%"}})).len(), 1);
    }

    #[test]
    fn quantities_are_known_by_their_suffix() {
        for text in ["1", "100m", "1.5Gi", "12e6", "0.5", ".5", "-1", "1E"] {
            assert!(is_quantity(text), "{text}");
        }
        for text in ["", "m", "1 Gi", "1gi", "1.2.3", "1e", "abc"] {
            assert!(!is_quantity(text), "{text}");
        }
    }

    #[test]
    fn an_immutable_secret_stays_as_it_is() {
        let old = json!({"apiVersion": "v1", "kind": "Secret", "immutable": true, "data": {"a": "YQ=="}, "type": "Opaque"});
        let mut new = old.clone();
        assert!(validate_builtin("", "Secret", &new, Some(&old)).is_empty());
        new["data"]["a"] = "Yg==".into();
        assert_eq!(validate_builtin("", "Secret", &new, Some(&old)).len(), 1);
        new["type"] = "other".into();
        assert_eq!(validate_builtin("", "Secret", &new, Some(&old)).len(), 2);
    }

    #[test]
    fn a_role_binding_keeps_its_role() {
        let old = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "roleRef": {"kind": "Role", "name": "a", "apiGroup": "rbac.authorization.k8s.io"}});
        let mut new = old.clone();
        new["roleRef"]["name"] = "b".into();
        assert_eq!(validate_builtin("rbac.authorization.k8s.io", "RoleBinding", &new, Some(&old)).len(), 1);
    }
}
