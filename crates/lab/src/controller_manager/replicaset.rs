//! ReplicaSet: as many pods as asked for.

use super::action::{Action, Kind, pod_from_template};
use super::object;
use serde_json::{Value, json};

/// Pods are made and removed in portions, so that one ReplicaSet does not hold up the others.
const PORTION: usize = 256;

/// What brings the pods of `replica_set` (all those it controls) to its wish.
pub(super) fn reconcile(replica_set: &Value, pods: &[&Value]) -> Vec<Action> {
    let mut actions = Vec::new();
    let active: Vec<&Value> = pods.iter().copied().filter(|pod| object::is_active_pod(pod)).collect();
    let wanted =
        usize::try_from(object::number(replica_set, &["spec", "replicas"]).unwrap_or(1)).unwrap_or(0);
    if !object::is_deleting(replica_set) {
        for _ in active.len()..wanted.min(active.len() + PORTION) {
            actions.push(Action::Create(Kind::Pod, pod_from_template(Kind::ReplicaSet, replica_set)));
        }
        if active.len() > wanted {
            let mut victims = active.clone();
            victims.sort_by_key(|pod| least_missed_first(pod));
            for pod in victims.into_iter().take((active.len() - wanted).min(PORTION)) {
                actions.push(Action::Delete(Kind::Pod, object::name_of(pod), object::uid(pod).to_owned()));
            }
        }
    }
    let ready = active.iter().filter(|pod| object::is_ready_pod(pod)).count();
    let status = json!({
        "replicas": active.len(),
        "fullyLabeledReplicas": active.len(),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "observedGeneration": object::number(replica_set, &["metadata", "generation"]).unwrap_or(1),
    });
    actions.extend(status_change(Kind::ReplicaSet, replica_set, status));
    actions
}

/// Order of removal: not yet bound, then not ready, then the youngest.
fn least_missed_first(pod: &Value) -> (bool, bool, std::cmp::Reverse<String>) {
    (
        !object::text(pod, &["spec", "nodeName"]).is_empty(),
        object::is_ready_pod(pod),
        std::cmp::Reverse(object::text(pod, &["metadata", "creationTimestamp"]).to_owned()),
    )
}

/// A status patch, if any field of `status` differs from what the object has. Absent counts as zero.
pub(super) fn status_change(kind: Kind, object: &Value, status: Value) -> Option<Action> {
    let zero = json!(0);
    let changed = status.as_object()?.iter().any(|(key, value)| {
        let held = object.get("status").and_then(|held| held.get(key));
        held.unwrap_or(&zero) != value
    });
    changed.then(|| Action::PatchStatus(kind, object::name_of(object), json!({ "status": status })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica_set(replicas: u32) -> Value {
        json!({"metadata": {"name": "web-1", "namespace": "shop", "uid": "rs", "generation": 2},
               "spec": {"replicas": replicas, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}}})
    }

    fn pod(name: &str, ready: bool) -> Value {
        let status = if ready { "True" } else { "False" };
        json!({"metadata": {"name": name, "namespace": "shop", "uid": name}, "spec": {"nodeName": "n"},
               "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}})
    }

    #[test]
    fn missing_pods_are_made_from_the_template_and_owned() {
        let actions = reconcile(&replica_set(2), &[]);
        let Action::Create(Kind::Pod, made) = &actions[0] else { panic!("expected a pod, got {actions:?}") };
        assert_eq!(made["metadata"]["generateName"], "web-1-");
        assert_eq!(made["metadata"]["labels"]["app"], "web");
        assert_eq!(object::controller_uid(made), Some("rs"));
        assert_eq!(actions.iter().filter(|action| matches!(action, Action::Create(..))).count(), 2);
    }

    #[test]
    fn a_pod_that_is_not_ready_goes_first_when_there_are_too_many() {
        let (good, bad) = (pod("good", true), pod("bad", false));
        let actions = reconcile(&replica_set(1), &[&good, &bad]);
        assert!(actions.contains(&Action::Delete(Kind::Pod, ("shop".into(), "bad".into()), "bad".into())));
        assert_eq!(actions.iter().filter(|action| matches!(action, Action::Delete(..))).count(), 1);
    }

    #[test]
    fn nothing_is_written_when_all_is_as_wished() {
        let mut settled = replica_set(1);
        settled["status"] = json!({"replicas": 1, "fullyLabeledReplicas": 1, "readyReplicas": 1, "availableReplicas": 1, "observedGeneration": 2});
        assert_eq!(reconcile(&settled, &[&pod("a", true)]), vec![]);
    }
}
