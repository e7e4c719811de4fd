//! Removing what a schema does not know, and filling what it has a default for.

use super::{Additional, Node, below};
use crate::fields;
use serde_json::{Map, Value};

/// Removes unknown fields of a whole object; its metadata has the shape of every object's.
pub(super) fn prune(root: &Node, object: &mut Value) -> Vec<String> {
    let mut removed = Vec::new();
    let Some(map) = object.as_object_mut() else { return removed };
    resource(root, map, "", &mut removed);
    removed
}

/// Removes unknown fields of a value that is no whole object.
pub(super) fn prune_below(node: &Node, value: &mut Value) -> Vec<String> {
    let mut removed = Vec::new();
    value_of(node, value, "", &mut removed);
    removed
}

fn resource(node: &Node, map: &mut Map<String, Value>, path: &str, removed: &mut Vec<String>) {
    // Taken out while the rest is pruned, so that they stay whatever the schema says of them.
    let fixed = ["apiVersion", "kind", "metadata"].map(|name| (name, map.remove(name)));
    fields_of(node, map, path, removed);
    for (name, value) in fixed {
        let Some(mut value) = value else { continue };
        if name == "metadata" {
            fields::object_meta().prune(&mut value, &below(path, name), removed);
        }
        map.insert(name.to_owned(), value);
    }
    removed.sort();
}

fn value_of(node: &Node, value: &mut Value, path: &str, removed: &mut Vec<String>) {
    match value {
        Value::Object(map) if node.embedded => resource(node, map, path, removed),
        Value::Object(map) => fields_of(node, map, path, removed),
        Value::Array(list) => {
            if let Some(items) = &node.items {
                for (at, item) in list.iter_mut().enumerate() {
                    value_of(items, item, &format!("{path}[{at}]"), removed);
                }
            }
        }
        _ => {}
    }
}

fn fields_of(node: &Node, map: &mut Map<String, Value>, path: &str, removed: &mut Vec<String>) {
    let mut gone = Vec::new();
    for (name, value) in map.iter_mut() {
        match (node.properties.get(name), &node.additional) {
            (Some(property), _) => value_of(property, value, &below(path, name), removed),
            (None, Additional::Of(values)) => value_of(values, value, &below(path, name), removed),
            (None, Additional::Any) => {}
            (None, Additional::None) if node.preserve_unknown => {}
            (None, Additional::None) => gone.push(name.clone()),
        }
    }
    for name in gone {
        map.remove(&name);
        removed.push(below(path, &name));
    }
}

/// Fills defaults, from the outside in: an object that is a default gets the defaults of its own fields.
pub(super) fn default(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, property) in &node.properties {
                if let Some(default) = &property.default {
                    match map.get(name) {
                        None => {
                            map.insert(name.clone(), default.clone());
                        }
                        Some(Value::Null) if !property.nullable => {
                            map.insert(name.clone(), default.clone());
                        }
                        Some(_) => {}
                    }
                }
                if let Some(value) = map.get_mut(name) {
                    self::default(property, value);
                }
            }
            if let Additional::Of(values) = &node.additional {
                for value in map.values_mut() {
                    self::default(values, value);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &node.items {
                for item in list {
                    self::default(items, item);
                }
            }
        }
        _ => {}
    }
}
