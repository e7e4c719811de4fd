//! The controllers' view of the cluster: watched objects, with the answers to our own writes laid over them.
//!
//! A write's answer enters the cache at once, so that a reconciler that runs before the watch has delivered the change
//! does not make the same object twice. An event older than what is held is dropped by its revision.

use super::action::Kind;
use super::object::{self, ObjectName};
use serde_json::Value;
use std::collections::BTreeMap;

/// All watched objects by kind and name.
#[derive(Debug, Default)]
pub(super) struct Cache {
    objects: BTreeMap<Kind, BTreeMap<ObjectName, Value>>,
}

impl Cache {
    /// Objects of a kind, in namespace and name order.
    pub(super) fn all(&self, kind: Kind) -> impl Iterator<Item = &Value> {
        self.objects.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    /// One object.
    pub(super) fn get(&self, kind: Kind, name: &ObjectName) -> Option<&Value> {
        self.objects.get(&kind).and_then(|objects| objects.get(name))
    }

    /// Takes in an object unless a newer one is held. True if that changed anything.
    pub(super) fn put(&mut self, kind: Kind, object: Value) -> bool {
        let name = object::name_of(&object);
        let objects = self.objects.entry(kind).or_default();
        if objects.get(&name).is_some_and(|held| object::revision(held) >= object::revision(&object)) {
            return false;
        }
        objects.insert(name, object);
        true
    }

    /// Shows an object as it will soon be, at the revision that is held: the event that tells so is newer and wins.
    pub(super) fn overlay(&mut self, kind: Kind, object: Value) {
        self.objects.entry(kind).or_default().insert(object::name_of(&object), object);
    }

    /// Forgets an object, unless its name has been given to a successor since.
    pub(super) fn remove(&mut self, kind: Kind, name: &ObjectName, uid: &str) -> bool {
        let Some(objects) = self.objects.get_mut(&kind) else { return false };
        if objects.get(name).is_none_or(|held| object::uid(held) != uid) {
            return false;
        }
        objects.remove(name).is_some()
    }

    /// Replaces everything of a kind by a fresh list.
    pub(super) fn reset(&mut self, kind: Kind, list: Vec<Value>) {
        self.objects
            .insert(kind, list.into_iter().map(|object| (object::name_of(&object), object)).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(revision: &str, uid: &str) -> Value {
        json!({"metadata": {"namespace": "default", "name": "a", "uid": uid, "resourceVersion": revision}})
    }

    #[test]
    fn an_older_event_does_not_undo_the_answer_to_our_own_write() {
        let mut cache = Cache::default();
        assert!(cache.put(Kind::Pod, pod("7", "u1")));
        assert!(!cache.put(Kind::Pod, pod("5", "u1")));
        assert_eq!(object::revision(cache.all(Kind::Pod).next().unwrap()), 7);
    }

    #[test]
    fn a_late_deletion_does_not_take_the_successor_of_the_same_name() {
        let mut cache = Cache::default();
        cache.put(Kind::Pod, pod("9", "u2"));
        assert!(!cache.remove(Kind::Pod, &("default".into(), "a".into()), "u1"));
        assert!(cache.remove(Kind::Pod, &("default".into(), "a".into()), "u2"));
    }
}
