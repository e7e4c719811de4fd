//! Which node a pod goes to: the filters that matter here, then the node with the fewest pods.

use super::action::{Action, Kind};
use super::object;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Binds every pod that waits and fits somewhere; says of the others why they do not.
///
/// `pods` are all pods of the cluster, `nodes` all nodes, `now` the time in RFC 3339. Oldest pods first.
pub(super) fn reconcile<'a>(
    pods: impl Iterator<Item = &'a Value>,
    nodes: &[&Value],
    now: &str,
) -> Vec<Action> {
    let mut load: BTreeMap<&str, i64> = BTreeMap::new();
    let mut waiting = Vec::new();
    for pod in pods.filter(|pod| !object::is_finished_pod(pod)) {
        match object::text(pod, &["spec", "nodeName"]) {
            "" if !object::is_deleting(pod) => waiting.push(pod),
            node => *load.entry(node).or_default() += 1,
        }
    }
    waiting.sort_by_key(|pod| (object::text(pod, &["metadata", "creationTimestamp"]), object::name_of(pod)));

    let mut actions = Vec::new();
    for pod in waiting {
        let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
        let mut best: Option<(i64, &str)> = None;
        for node in nodes {
            let name = object::text(node, &["metadata", "name"]);
            let used = load.get(name).copied().unwrap_or_default();
            match refusal(pod, node, used) {
                Some(reason) => *refusals.entry(reason).or_default() += 1,
                None if best.is_none_or(|held| (used, name) < held) => best = Some((used, name)),
                None => {}
            }
        }
        match best {
            Some((_, node)) => {
                *load.entry(node).or_default() += 1;
                actions.push(Action::Bind(object::name_of(pod), node.to_owned()));
                let (namespace, name) = object::name_of(pod);
                actions.push(Action::Event {
                    about: Box::new(pod.clone()),
                    kind: Kind::Pod,
                    warning: false,
                    reason: "Scheduled",
                    message: format!("Successfully assigned {namespace}/{name} to {node}"),
                });
            }
            None => actions.extend(unschedulable(pod, nodes.len(), &refusals, now)),
        }
    }
    actions
}

/// Why `node`, on which `used` pods run already, cannot take `pod`; `None` if it can.
fn refusal(pod: &Value, node: &Value, used: i64) -> Option<String> {
    if object::at(node, &["spec", "unschedulable"]) == Some(&Value::Bool(true))
        && !tolerates_unschedulable(pod)
    {
        return Some("node(s) were unschedulable".to_owned());
    }
    for taint in object::items(node, &["spec", "taints"]) {
        let effect = object::text(taint, &["effect"]);
        if effect != "PreferNoSchedule" && !tolerates(pod, taint) {
            let (key, value) = (object::text(taint, &["key"]), object::text(taint, &["value"]));
            return Some(format!("node(s) had untolerated taint {{{key}: {value}}}"));
        }
    }
    let labels = object::labels(node);
    let selected = object::at(pod, &["spec", "nodeSelector"])
        .and_then(Value::as_object)
        .is_none_or(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)));
    if !selected || !node_affinity_matches(pod, node) {
        return Some("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    let limit = object::text(node, &["status", "allocatable", "pods"]).parse().unwrap_or(110);
    (used >= limit).then(|| "Too many pods".to_owned())
}

/// Whether `pod` accepts `taint`.
pub(super) fn tolerates(pod: &Value, taint: &Value) -> bool {
    let effect = object::text(taint, &["effect"]);
    object::items(pod, &["spec", "tolerations"]).iter().any(|toleration| {
        let same_effect = matches!(object::text(toleration, &["effect"]), "")
            || object::text(toleration, &["effect"]) == effect;
        let key = object::text(toleration, &["key"]);
        let same_key = key == object::text(taint, &["key"]);
        same_effect
            && match object::text(toleration, &["operator"]) {
                "Exists" => key.is_empty() || same_key,
                _ => same_key && object::text(toleration, &["value"]) == object::text(taint, &["value"]),
            }
    })
}

fn tolerates_unschedulable(pod: &Value) -> bool {
    tolerates(pod, &json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}))
}

/// `requiredDuringSchedulingIgnoredDuringExecution` of the pod's node affinity: terms are alternatives.
fn node_affinity_matches(pod: &Value, node: &Value) -> bool {
    let path = [
        "spec",
        "affinity",
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
        "nodeSelectorTerms",
    ];
    let terms = object::items(pod, &path);
    let labels = object::labels(node);
    terms.is_empty()
        || terms.iter().any(|term| {
            object::items(term, &["matchExpressions"]).iter().all(|expression| {
                requirement_holds(
                    expression,
                    labels.get(object::text(expression, &["key"])).and_then(Value::as_str),
                )
            }) && object::items(term, &["matchFields"]).iter().all(|expression| {
                requirement_holds(expression, Some(object::text(node, &["metadata", "name"])))
            })
        })
}

fn requirement_holds(expression: &Value, held: Option<&str>) -> bool {
    let listed =
        object::items(expression, &["values"]).iter().any(|value| value.as_str() == held && held.is_some());
    match object::text(expression, &["operator"]) {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => held.is_some(),
        "DoesNotExist" => held.is_none(),
        _ => false,
    }
}

fn unschedulable(pod: &Value, nodes: usize, refusals: &BTreeMap<String, usize>, now: &str) -> Vec<Action> {
    let reasons: Vec<String> = refusals.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let message = match reasons.is_empty() {
        true => "no nodes available to schedule pods".to_owned(),
        false => format!("0/{nodes} nodes are available: {}.", reasons.join(", ")),
    };
    let held = object::items(pod, &["status", "conditions"])
        .iter()
        .find(|condition| object::text(condition, &["type"]) == "PodScheduled");
    if held.is_some_and(|condition| object::text(condition, &["message"]) == message) {
        return Vec::new();
    }
    let mut conditions: Vec<Value> = object::items(pod, &["status", "conditions"])
        .iter()
        .filter(|condition| object::text(condition, &["type"]) != "PodScheduled")
        .cloned()
        .collect();
    conditions.push(json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        "lastTransitionTime": now,
    }));
    vec![
        Action::PatchStatus(Kind::Pod, object::name_of(pod), json!({"status": {"conditions": conditions}})),
        Action::Event {
            about: Box::new(pod.clone()),
            kind: Kind::Pod,
            warning: true,
            reason: "FailedScheduling",
            message,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-21T12:00:00Z";

    fn node(name: &str, taints: Value) -> Value {
        json!({"metadata": {"name": name, "labels": {"zone": name}}, "spec": {"taints": taints}, "status": {"allocatable": {"pods": "110"}}})
    }

    fn pod(name: &str, spec: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})
    }

    fn bound(actions: &[Action]) -> Vec<(&str, &str)> {
        actions
            .iter()
            .filter_map(|action| match action {
                Action::Bind((_, pod), node) => Some((pod.as_str(), node.as_str())),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn pods_spread_over_the_nodes_with_the_fewest_pods() {
        let (a, b) = (node("a", json!([])), node("b", json!([])));
        let pods = [pod("p1", json!({})), pod("p2", json!({})), pod("p3", json!({"nodeName": "a"}))];
        let actions = reconcile(pods.iter(), &[&a, &b], NOW);
        assert_eq!(bound(&actions), [("p1", "b"), ("p2", "a")]);
    }

    #[test]
    fn an_untolerated_taint_keeps_a_pod_away_and_the_reason_is_told_once() {
        let tainted = node("a", json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]));
        let waiting = pod("p", json!({}));
        let actions = reconcile([&waiting].into_iter(), &[&tainted], NOW);
        let Action::PatchStatus(_, _, patch) = &actions[0] else {
            panic!("expected a status, got {actions:?}")
        };
        let message = patch["status"]["conditions"][0]["message"].as_str().unwrap();
        assert_eq!(
            message,
            "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."
        );

        let mut told = waiting.clone();
        told["status"] = patch["status"].clone();
        assert_eq!(reconcile([&told].into_iter(), &[&tainted], NOW), vec![]);
    }

    #[test]
    fn a_toleration_without_key_tolerates_everything() {
        let tainted = node("a", json!([{"key": "k", "value": "v", "effect": "NoExecute"}]));
        let daemon = pod("p", json!({"tolerations": [{"operator": "Exists"}]}));
        assert_eq!(bound(&reconcile([&daemon].into_iter(), &[&tainted], NOW)), [("p", "a")]);
    }

    #[test]
    fn node_selector_and_required_affinity_are_honoured() {
        let (a, b) = (node("a", json!([])), node("b", json!([])));
        let selecting = pod("p1", json!({"nodeSelector": {"zone": "b"}}));
        let affine = pod(
            "p2",
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["b"]}]}]}}}}),
        );
        let actions = reconcile([&selecting, &affine].into_iter(), &[&a, &b], NOW);
        assert_eq!(bound(&actions), [("p1", "b"), ("p2", "a")]);
    }
}
