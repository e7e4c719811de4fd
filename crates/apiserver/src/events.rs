//! Events in their two shapes: stored is that of the core group, `events.k8s.io` is another view of it.

use serde_json::{Map, Value};

/// (field of events.k8s.io/v1, field of core/v1)
const RENAMED: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(object: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = object.remove(from) {
        object.insert(to.to_owned(), value);
    }
}

/// The core form of an event of `events.k8s.io`.
pub(crate) fn to_core(mut event: Value) -> Value {
    if let Some(object) = event.as_object_mut() {
        for (own, core) in RENAMED {
            rename(object, own, core);
        }
        object.insert("apiVersion".into(), "v1".into());
        object.insert("kind".into(), "Event".into());
    }
    event
}

/// The `events.k8s.io` form of a core event.
pub(crate) fn from_core(mut event: Value) -> Value {
    if let Some(object) = event.as_object_mut() {
        for (own, core) in RENAMED {
            rename(object, core, own);
        }
        object.insert("apiVersion".into(), "events.k8s.io/v1".into());
        object.insert("kind".into(), "Event".into());
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_shapes_say_the_same() {
        let own = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"name": "p"},
                         "reason": "Started", "reportingController": "c", "reportingInstance": "i"});
        let core = to_core(own.clone());
        assert_eq!((&core["message"], &core["involvedObject"]["name"]), (&json!("n"), &json!("p")));
        assert_eq!(from_core(core), own);
    }
}
