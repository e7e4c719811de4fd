//! The fields that a manager owns: a tree, and its form in `managedFields`.

use super::Request;
use super::topology::{Kind, Place};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Levels read from `managedFields`, at most.
const MAX_DEPTH: usize = 100;

/// A tree of owned fields. Its branches are named as in the wire form: `f:<field>`, `k:<keys>` or `v:<value>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owned {
    /// The value here is owned as such, not only fields below it.
    here: bool,
    below: BTreeMap<String, Owned>,
}

impl Owned {
    fn leaf() -> Self {
        Self { here: true, below: BTreeMap::new() }
    }

    /// Everything that a manager names in `value`.
    pub(super) fn of(place: Place<'_>, value: &Value) -> Self {
        let below: BTreeMap<String, Self> = match (place.kind(value), value) {
            (Kind::Object, Value::Object(map)) => map
                .iter()
                .map(|(name, value)| (format!("f:{name}"), Self::of(place.field(name), value)))
                .collect(),
            (Kind::Set, Value::Array(list)) => {
                list.iter().map(|value| (format!("v:{value}"), Self::leaf())).collect()
            }
            (Kind::MapList(keys), Value::Array(list)) => list
                .iter()
                .map(|value| (place.id(&keys, value), Self { here: true, ..Self::of(place.item(), value) }))
                .collect(),
            _ => return Self::leaf(),
        };
        Self { here: below.is_empty(), below }
    }

    /// Whether nothing is owned.
    pub(super) fn is_empty(&self) -> bool {
        !self.here && self.below.is_empty()
    }

    /// Paths of fields owned here that `applied` would give another value than they have.
    pub(super) fn conflicts(
        &self,
        place: Place<'_>,
        applied: &Value,
        current: Option<&Value>,
        path: &mut Vec<String>,
        found: &mut Vec<Vec<String>>,
    ) {
        if self.is_empty() {
            return;
        }
        let mut each = |branch: String, place: Place<'_>, applied: &Value, current: Option<&Value>| {
            if let Some(owned) = self.below.get(&branch) {
                path.push(branch);
                owned.conflicts(place, applied, current, path, found);
                path.pop();
            }
        };
        match (place.kind(applied), applied) {
            (Kind::Object, Value::Object(map)) => {
                for (name, value) in map {
                    let current = current.and_then(|current| current.get(name));
                    each(format!("f:{name}"), place.field(name), value, current);
                }
            }
            (Kind::MapList(keys), Value::Array(list)) => {
                for value in list {
                    let id = place.id(&keys, value);
                    let elements = current.and_then(Value::as_array).into_iter().flatten();
                    let current = elements.into_iter().find(|one| place.id(&keys, one) == id);
                    each(id, place.item(), value, current);
                }
            }
            (Kind::Set, Value::Array(_)) => {}
            _ if current != Some(applied) => found.push(path.clone()),
            _ => {}
        }
    }

    /// No longer owns what stands at a path.
    pub(super) fn give_up(&mut self, path: &[String]) {
        match path {
            [] => *self = Self::default(),
            [branch, rest @ ..] => {
                if let Some(owned) = self.below.get_mut(branch) {
                    owned.give_up(rest);
                    if owned.is_empty() {
                        self.below.remove(branch);
                    }
                }
            }
        }
    }

    /// Removes from `value` what was owned here, is not in `new`, and belongs to none of `others`.
    pub(super) fn give_back(
        &self,
        place: Place<'_>,
        value: &mut Value,
        new: Option<&Self>,
        others: &[&Self],
    ) {
        for (branch, owned) in &self.below {
            let new = new.and_then(|new| new.below.get(branch));
            let others: Vec<&Self> = others.iter().filter_map(|other| other.below.get(branch)).collect();
            let is_free = new.is_none() && others.is_empty();
            match (branch.split_at_checked(2), &mut *value) {
                (Some(("f:", name)), Value::Object(map)) => {
                    let is_leaf = owned.below.is_empty();
                    let Some(below) = map.get_mut(name) else { continue };
                    if !is_leaf {
                        owned.give_back(place.field(name), below, new, &others);
                    }
                    let is_bare = matches!(below, Value::Object(map) if map.is_empty())
                        || matches!(below, Value::Array(list) if list.is_empty());
                    if is_free && (is_leaf || is_bare) {
                        map.remove(name);
                    }
                }
                (Some(("v:", _)), Value::Array(list)) if is_free => {
                    list.retain(|one| format!("v:{one}") != *branch);
                }
                (Some(("k:", _)), Value::Array(list)) => {
                    let Kind::MapList(keys) = place.kind(&json!([])) else { continue };
                    if is_free {
                        list.retain(|one| place.id(&keys, one) != *branch);
                    } else if let Some(one) = list.iter_mut().find(|one| place.id(&keys, one) == *branch) {
                        owned.give_back(place.item(), one, new, &others);
                    }
                }
                _ => {}
            }
        }
    }

    fn parse(fields: &Value, depth: usize) -> Self {
        let Value::Object(map) = fields else { return Self::default() };
        if map.is_empty() || depth > MAX_DEPTH {
            return Self::leaf();
        }
        let below = map
            .iter()
            .filter(|(branch, _)| *branch != ".")
            .map(|(branch, fields)| (branch.clone(), Self::parse(fields, depth + 1)))
            .collect();
        Self { here: map.contains_key("."), below }
    }

    fn to_value(&self) -> Value {
        let mut map: Map<String, Value> =
            self.below.iter().map(|(branch, owned)| (branch.clone(), owned.to_value())).collect();
        if self.here && !map.is_empty() {
            map.insert(".".to_owned(), json!({}));
        }
        map.into()
    }
}

/// One entry of `managedFields`. Those of updates are carried along untouched.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    raw: Value,
    pub(super) owned: Owned,
}

impl Entry {
    pub(super) fn new(request: &Request<'_>, owned: Owned) -> Self {
        let mut raw = json!({
            "manager": request.manager,
            "operation": "Apply",
            "apiVersion": request.api_version,
            "time": request.now,
            "fieldsType": "FieldsV1",
        });
        if !request.subresource.is_empty() {
            raw["subresource"] = request.subresource.into();
        }
        Self { raw, owned }
    }

    pub(super) fn manager(&self) -> &str {
        self.raw["manager"].as_str().unwrap_or_default()
    }

    pub(super) fn is_apply(&self) -> bool {
        self.raw["operation"] == "Apply"
    }

    pub(super) fn is_of(&self, manager: &str, subresource: &str) -> bool {
        self.is_apply()
            && self.manager() == manager
            && self.raw["subresource"].as_str().unwrap_or_default() == subresource
    }
}

/// The entries of an object.
pub(super) fn read(object: &Value) -> Vec<Entry> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .filter(|entry| entry.is_object())
        .map(|entry| Entry { raw: entry.clone(), owned: Owned::parse(&entry["fieldsV1"], 0) })
        .collect()
}

/// The value of `managedFields`.
pub(super) fn write(entries: &[Entry]) -> Value {
    entries
        .iter()
        .map(|entry| {
            let mut raw = entry.raw.clone();
            if entry.is_apply() {
                raw["fieldsV1"] = entry.owned.to_value();
            }
            raw
        })
        .collect()
}

/// A path as people read it: `.spec.containers[name="a"].image`.
pub(super) fn shown(path: &[String]) -> String {
    path.iter()
        .map(|branch| match branch.split_at_checked(2) {
            Some(("f:", name)) => format!(".{name}"),
            Some(("v:", value)) => format!("[={value}]"),
            Some(("k:", keys)) => match serde_json::from_str::<Map<String, Value>>(keys) {
                Ok(keys) => {
                    let keys: Vec<String> =
                        keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                    format!("[{}]", keys.join(","))
                }
                Err(_) => format!("[{keys}]"),
            },
            _ => branch.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_reads_back_as_it_was_written() {
        let fields = json!({"f:spec": {"f:ports": {"k:{\"port\":80}": {".": {}, "f:port": {}}}},
            "f:metadata": {"f:finalizers": {"v:\"a\"": {}}}});
        assert_eq!(Owned::parse(&fields, 0).to_value(), fields);
    }

    #[test]
    fn paths_are_shown_with_their_keys() {
        let path = ["f:spec", "f:containers", "k:{\"name\":\"a\"}", "f:image"].map(str::to_owned);
        assert_eq!(shown(&path), r#".spec.containers[name="a"].image"#);
    }
}
