//! DaemonSet: one pod on every node that may have it.

use super::action::{Action, Kind, pod_from_template};
use super::deployment::template_hash;
use super::object;
use super::replicaset::status_change;
use super::scheduler::tolerates;
use serde_json::{Value, json};

/// Label that tells which template a DaemonSet's pod was made from.
const HASH_LABEL: &str = "controller-revision-hash";

/// Taints that a DaemonSet's pods tolerate without saying so, as on any cluster.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// What brings the pods of `daemon_set` (all those it controls) to one per fitting node.
pub(super) fn reconcile(daemon_set: &Value, pods: &[&Value], nodes: &[&Value]) -> Vec<Action> {
    if object::is_deleting(daemon_set) {
        return Vec::new();
    }
    let hash = template_hash(daemon_set);
    let fitting: Vec<&str> = nodes
        .iter()
        .filter(|node| !object::is_deleting(node))
        .filter(|node| fits(&made_for(daemon_set, "", &hash), node))
        .map(|node| object::text(node, &["metadata", "name"]))
        .collect();

    let mut actions = Vec::new();
    let (mut scheduled, mut updated, mut ready) = (0, 0, 0);
    for node in &fitting {
        let here = pods.iter().filter(|pod| object::text(pod, &["spec", "nodeName"]) == *node);
        let mut held = here.filter(|pod| !object::is_finished_pod(pod));
        match held.next() {
            None => actions.push(Action::Create(Kind::Pod, made_for(daemon_set, node, &hash))),
            Some(pod) if object::is_deleting(pod) => {}
            Some(pod) => {
                scheduled += 1;
                let current = object::text(pod, &["metadata", "labels", HASH_LABEL]) == hash;
                updated += i32::from(current);
                ready += i32::from(object::is_ready_pod(pod));
                if !current {
                    actions.push(delete(pod));
                }
                actions.extend(held.filter(|pod| !object::is_deleting(pod)).map(|pod| delete(pod)));
            }
        }
    }
    for pod in pods.iter().filter(|pod| !object::is_deleting(pod)) {
        let misplaced = !fitting.contains(&object::text(pod, &["spec", "nodeName"]));
        if misplaced || object::is_finished_pod(pod) {
            actions.push(delete(pod));
        }
    }
    let status = json!({
        "desiredNumberScheduled": fitting.len(),
        "currentNumberScheduled": scheduled,
        "updatedNumberScheduled": updated,
        "numberReady": ready,
        "numberAvailable": ready,
        "numberUnavailable": i64::try_from(fitting.len()).unwrap_or(i64::MAX) - i64::from(ready),
        "numberMisscheduled": 0,
        "observedGeneration": object::number(daemon_set, &["metadata", "generation"]).unwrap_or(1),
    });
    actions.extend(status_change(Kind::DaemonSet, daemon_set, status));
    actions
}

fn delete(pod: &Value) -> Action {
    Action::Delete(Kind::Pod, object::name_of(pod), object::uid(pod).to_owned())
}

/// The pod for `node`, bound to it from the start: what the scheduler would do with a node affinity comes to the same.
fn made_for(daemon_set: &Value, node: &str, hash: &str) -> Value {
    let mut pod = pod_from_template(Kind::DaemonSet, daemon_set);
    object::set(&mut pod, &["spec", "nodeName"], json!(node));
    object::set(&mut pod, &["metadata", "labels", HASH_LABEL], json!(hash));
    let mut tolerations = object::items(&pod, &["spec", "tolerations"]).to_vec();
    tolerations.extend(
        TOLERATED.iter().map(|(key, effect)| json!({"key": key, "operator": "Exists", "effect": effect})),
    );
    object::set(&mut pod, &["spec", "tolerations"], json!(tolerations));
    pod
}

fn fits(pod: &Value, node: &Value) -> bool {
    let labels = object::labels(node);
    let selected = object::at(pod, &["spec", "nodeSelector"])
        .and_then(Value::as_object)
        .is_none_or(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)));
    selected
        && object::items(node, &["spec", "taints"])
            .iter()
            .all(|taint| object::text(taint, &["effect"]) == "PreferNoSchedule" || tolerates(pod, taint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon_set(tolerations: Value) -> Value {
        json!({"metadata": {"name": "agent", "namespace": "s", "uid": "ds", "generation": 1},
               "spec": {"template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"tolerations": tolerations, "containers": []}}}})
    }

    fn node(name: &str, taints: Value) -> Value {
        json!({"metadata": {"name": name}, "spec": {"taints": taints}})
    }

    fn created(actions: &[Action]) -> Vec<&str> {
        actions
            .iter()
            .filter_map(|action| match action {
                Action::Create(Kind::Pod, pod) => Some(object::text(pod, &["spec", "nodeName"])),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn each_node_gets_one_pod_unless_a_taint_keeps_it_away() {
        let control_plane =
            node("cp", json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]));
        let worker = node("w", json!([]));
        assert_eq!(created(&reconcile(&daemon_set(json!([])), &[], &[&control_plane, &worker])), ["w"]);
        let everywhere = daemon_set(json!([{"operator": "Exists"}]));
        assert_eq!(created(&reconcile(&everywhere, &[], &[&control_plane, &worker])), ["cp", "w"]);
    }

    #[test]
    fn a_pod_of_an_old_template_is_replaced_and_one_being_deleted_is_waited_for() {
        let set = daemon_set(json!([]));
        let worker = node("w", json!([]));
        let mut pod = made_for(&set, "w", "older");
        pod["metadata"]["name"] = json!("agent-x");
        pod["metadata"]["uid"] = json!("u");
        let actions = reconcile(&set, &[&pod], &[&worker]);
        assert!(actions.contains(&Action::Delete(Kind::Pod, ("s".into(), "agent-x".into()), "u".into())));
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T12:00:00Z");
        assert_eq!(created(&reconcile(&set, &[&pod], &[&worker])), Vec::<&str>::new());
    }
}
