//! Judging an object by a schema, in the words of Kubernetes.

use super::{Bound, Junctors, Kind, Limits, ListType, Node, below, formats};
use crate::error::FieldError;
use serde_json::{Value, json};

/// Faults reported for one object, at most.
const MAX_FAULTS: usize = 100;

pub(super) fn validate(root: &Node, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut faults = Vec::new();
    walk(root, object, old, "", &mut faults);
    faults.truncate(MAX_FAULTS);
    faults
}

/// Judges a value that stands at `path`.
pub(super) fn validate_at(node: &Node, value: &Value, path: &str) -> Vec<FieldError> {
    let mut faults = Vec::new();
    walk(node, value, None, path, &mut faults);
    faults
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn has_kind(kind: Kind, value: &Value) -> bool {
    match (kind, value) {
        (Kind::Object, Value::Object(_))
        | (Kind::Array, Value::Array(_))
        | (Kind::String, Value::String(_))
        | (Kind::Number, Value::Number(_))
        | (Kind::Boolean, Value::Bool(_)) => true,
        (Kind::Integer, Value::Number(number)) => {
            !number.is_f64() || number.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        _ => false,
    }
}

fn wrong_type(path: &str, expected: &str, value: &Value) -> FieldError {
    let actual = type_name(value);
    let detail = format!("{path} in body must be of type {expected}: \"{actual}\"");
    FieldError::type_invalid(path, &json!(actual), &detail)
}

fn walk(node: &Node, value: &Value, old: Option<&Value>, path: &str, faults: &mut Vec<FieldError>) {
    if old == Some(value) || faults.len() >= MAX_FAULTS {
        return;
    }
    if value.is_null() && node.nullable {
        return;
    }
    if node.int_or_string {
        if !(value.is_string() || has_kind(Kind::Integer, value)) {
            faults.push(wrong_type(path, "integer,string", value));
            return;
        }
    } else if let Some(kind) = node.kind
        && !has_kind(kind, value)
    {
        faults.push(wrong_type(path, kind.name(), value));
        return;
    }
    if let Some(limits) = &node.limits {
        check(limits, value, path, faults);
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let below = below(path, name);
                let old = old.and_then(|old| old.get(name));
                match (node.properties.get(name), &node.additional) {
                    (Some(property), _) => walk(property, value, old, &below, faults),
                    (None, super::Additional::Of(values)) => walk(values, value, old, &below, faults),
                    _ => {}
                }
            }
        }
        Value::Array(list) => {
            for (at, item) in list.iter().enumerate() {
                if let Some(items) = &node.items {
                    let old = old_item(&node.list_type, item, at, old);
                    walk(items, item, old, &format!("{path}[{at}]"), faults);
                }
            }
            distinct(&node.list_type, list, path, faults);
        }
        _ => {}
    }
    if let Some(junctors) = &node.junctors {
        alternatives(junctors, value, path, faults);
    }
}

/// The element of the stored list that this one continues.
pub(super) fn old_item<'a>(
    list_type: &ListType,
    item: &Value,
    at: usize,
    old: Option<&'a Value>,
) -> Option<&'a Value> {
    match list_type {
        ListType::Map(keys) => {
            old?.as_array()?.iter().find(|one| keys.iter().all(|key| one.get(key) == item.get(key)))
        }
        _ => old?.get(at),
    }
}

fn distinct(list_type: &ListType, list: &[Value], path: &str, faults: &mut Vec<FieldError>) {
    let identity = |item: &Value| match list_type {
        ListType::Atomic => Value::Null,
        ListType::Set => item.clone(),
        ListType::Map(keys) => {
            keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone()))).collect()
        }
    };
    if *list_type == ListType::Atomic {
        return;
    }
    let mut seen = std::collections::BTreeSet::new();
    for (at, item) in list.iter().enumerate() {
        let identity = identity(item);
        if !seen.insert(identity.to_string()) {
            faults.push(FieldError::duplicate(format!("{path}[{at}]"), &identity));
        }
    }
}

fn check(limits: &Limits, value: &Value, path: &str, faults: &mut Vec<FieldError>) {
    if !limits.allowed.is_empty() && !limits.allowed.contains(value) {
        let allowed: Vec<String> = limits.allowed.iter().map(crate::jsonpath::plain).collect();
        let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
        faults.push(FieldError::not_supported(path, value, &allowed));
    }
    let mut invalid = |value: &Value, what: String| {
        faults.push(FieldError::invalid(path, value, &format!("{path} in body {what}")));
    };
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            if let Some(Bound { at, exclusive }) = limits.minimum
                && (number < at || exclusive && number <= at)
            {
                let or_equal = if exclusive { "" } else { " or equal to" };
                invalid(value, format!("should be greater than{or_equal} {at}"));
            }
            if let Some(Bound { at, exclusive }) = limits.maximum
                && (number > at || exclusive && number >= at)
            {
                let or_equal = if exclusive { "" } else { " or equal to" };
                invalid(value, format!("should be less than{or_equal} {at}"));
            }
            if let Some(step) = limits.multiple_of
                && (number / step).fract() != 0.0
            {
                invalid(value, format!("should be a multiple of {step}"));
            }
        }
        Value::String(text) => {
            let length = text.chars().count();
            if let Some(min) = limits.min_length.filter(|min| length < *min) {
                invalid(value, format!("should be at least {min} chars long"));
            }
            if let Some(pattern) = limits.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
                invalid(value, format!("should match '{pattern}'"));
            }
            if let Some(format) = limits.format.as_deref().filter(|format| !formats::is(format, text)) {
                invalid(value, format!("must be of type {format}: {text:?}"));
            }
            if let Some(max) = limits.max_length.filter(|max| length > *max) {
                faults.push(FieldError::too_long(path, max));
            }
        }
        Value::Array(list) => {
            if let Some(min) = limits.min_items.filter(|min| list.len() < *min) {
                invalid(&json!(list.len()), format!("should have at least {min} items"));
            }
            if let Some(max) = limits.max_items.filter(|max| list.len() > *max) {
                faults.push(FieldError::too_many(path, list.len(), max));
            }
        }
        Value::Object(map) => {
            if let Some(min) = limits.min_properties.filter(|min| map.len() < *min) {
                invalid(&json!(map.len()), format!("should have at least {min} properties"));
            }
            for name in limits.required.iter().filter(|name| !map.contains_key(*name)) {
                faults.push(FieldError::required(below(path, name), ""));
            }
            if let Some(max) = limits.max_properties.filter(|max| map.len() > *max) {
                faults.push(FieldError::too_many(path, map.len(), max));
            }
        }
        _ => {}
    }
}

fn alternatives(junctors: &Junctors, value: &Value, path: &str, faults: &mut Vec<FieldError>) {
    let passes = |node: &Node| validate_at(node, value, path).is_empty();
    let mut invalid = |what: &str| {
        let detail = format!("{path:?} must {what}");
        faults.push(FieldError::invalid(path, &json!(""), &detail));
    };
    if !junctors.any_of.is_empty() && !junctors.any_of.iter().any(passes) {
        invalid("validate at least one schema (anyOf)");
    }
    if !junctors.one_of.is_empty() && junctors.one_of.iter().filter(|node| passes(node)).count() != 1 {
        invalid("validate one and only one schema (oneOf)");
    }
    if junctors.not.as_ref().is_some_and(passes) {
        invalid("not validate the schema (not)");
    }
    for node in &junctors.all_of {
        faults.extend(validate_at(node, value, path));
    }
}
