//! Node lifecycle: taints follow the Ready condition, silence becomes Unknown, every node gets a pod CIDR.

use super::action::{Action, Kind};
use super::object;
use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Seconds without a renewed Lease after which a node counts as unreachable.
const GRACE_SECONDS: i64 = 40;

/// What `node` needs, judged at `now` with its `lease`. `pod_cidr` is given to a node that has none.
pub(super) fn reconcile(
    node: &Value,
    lease: Option<&Value>,
    now: jiff::Timestamp,
    pod_cidr: Option<&str>,
) -> Vec<Action> {
    let mut actions = Vec::new();
    let name = object::name_of(node);
    let silent = lease.is_some_and(|lease| is_stale(lease, now));
    if silent && object::condition(node, "Ready") != "Unknown" {
        actions.push(Action::PatchStatus(
            Kind::Node,
            name.clone(),
            json!({"status": {"conditions": unknown(node, now)}}),
        ));
        actions.push(Action::Event {
            about: Box::new(node.clone()),
            kind: Kind::Node,
            warning: false,
            reason: "NodeNotReady",
            message: format!("Node {} status is now: NodeNotReady", name.1),
        });
    }
    let wish = match (silent, object::condition(node, "Ready")) {
        (true, _) | (false, "Unknown") => Some(UNREACHABLE),
        (false, "True") => None,
        (false, _) => Some(NOT_READY),
    };
    let held = object::items(node, &["spec", "taints"]);
    let mut taints: Vec<Value> = held
        .iter()
        .filter(|taint| {
            let key = object::text(taint, &["key"]);
            (key != NOT_READY && key != UNREACHABLE) || Some(key) == wish
        })
        .cloned()
        .collect();
    for effect in ["NoSchedule", "NoExecute"] {
        let missing = |key: &&str| {
            !taints.iter().any(|taint| {
                object::text(taint, &["key"]) == *key && object::text(taint, &["effect"]) == effect
            })
        };
        if let Some(key) = wish.filter(missing) {
            let mut taint = json!({"key": key, "effect": effect});
            if effect == "NoExecute" {
                taint["timeAdded"] = json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            }
            taints.push(taint);
        }
    }
    let mut spec = json!({});
    if taints != held {
        spec["taints"] = if taints.is_empty() { Value::Null } else { json!(taints) };
    }
    if let Some(cidr) = pod_cidr.filter(|_| object::text(node, &["spec", "podCIDR"]).is_empty()) {
        spec["podCIDR"] = json!(cidr);
        spec["podCIDRs"] = json!([cidr]);
    }
    if spec != json!({}) {
        // A patch of the list replaces it whole: made against this very revision or not at all.
        let revision = object::text(node, &["metadata", "resourceVersion"]);
        actions.push(Action::Patch(
            Kind::Node,
            name,
            json!({"metadata": {"resourceVersion": revision}, "spec": spec}),
        ));
    }
    actions
}

fn is_stale(lease: &Value, now: jiff::Timestamp) -> bool {
    object::text(lease, &["spec", "renewTime"])
        .parse::<jiff::Timestamp>()
        .is_ok_and(|renewed| now.as_second() - renewed.as_second() > GRACE_SECONDS)
}

/// The node's conditions with everything its kubelet reported turned Unknown.
fn unknown(node: &Value, now: jiff::Timestamp) -> Vec<Value> {
    object::items(node, &["status", "conditions"])
        .iter()
        .map(|condition| {
            let mut condition = condition.clone();
            if object::text(&condition, &["type"]) != "NetworkUnavailable" {
                condition["status"] = json!("Unknown");
                condition["reason"] = json!("NodeStatusUnknown");
                condition["message"] = json!("Kubelet stopped posting node status.");
                condition["lastTransitionTime"] = json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            }
            condition
        })
        .collect()
}

/// The /24 of `pod_subnet` for the node at `index`; `None` where the subnet is used up.
pub(super) fn pod_cidr(pod_subnet: &str, index: u32) -> Option<String> {
    let net: ipnet::Ipv4Net = pod_subnet.parse().ok()?;
    net.subnets(24).ok()?.nth(usize::try_from(index).ok()?).map(|net| net.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: Value) -> Value {
        json!({"metadata": {"name": "n", "resourceVersion": "5"}, "spec": {"podCIDR": "192.168.0.0/24", "taints": taints},
               "status": {"conditions": [{"type": "Ready", "status": ready}]}})
    }

    fn lease(renewed: &str) -> Value {
        json!({"spec": {"renewTime": renewed}})
    }

    fn now() -> jiff::Timestamp {
        "2026-11-21T12:01:00Z".parse().unwrap()
    }

    #[test]
    fn a_node_that_is_not_ready_is_tainted_and_one_that_is_loses_the_taint() {
        let fresh = lease("2026-11-21T12:00:55Z");
        let actions = reconcile(&node("False", json!([])), Some(&fresh), now(), None);
        let Action::Patch(_, _, patch) = &actions[0] else { panic!("{actions:?}") };
        let taints = patch["spec"]["taints"].clone();
        assert_eq!(taints.as_array().map(Vec::len), Some(2));
        assert_eq!(reconcile(&node("False", taints.clone()), Some(&fresh), now(), None), vec![]);
        let actions = reconcile(&node("True", taints), Some(&fresh), now(), None);
        let Action::Patch(_, _, patch) = &actions[0] else { panic!("{actions:?}") };
        assert_eq!(patch["spec"]["taints"], Value::Null);
    }

    #[test]
    fn silence_beyond_the_grace_period_turns_ready_to_unknown() {
        let actions = reconcile(&node("True", json!([])), Some(&lease("2026-11-21T12:00:19Z")), now(), None);
        let Action::PatchStatus(_, _, patch) = &actions[0] else { panic!("{actions:?}") };
        assert_eq!(patch["status"]["conditions"][0]["status"], "Unknown");
        assert_eq!(
            reconcile(&node("True", json!([])), Some(&lease("2026-11-21T12:00:20Z")), now(), None),
            vec![]
        );
    }

    #[test]
    fn pod_cidrs_are_the_subnets_in_order_and_end() {
        assert_eq!(pod_cidr("192.168.0.0/16", 2).as_deref(), Some("192.168.2.0/24"));
        assert_eq!(pod_cidr("192.168.0.0/16", 256), None);
    }
}
