//! How far a part of the installation has got: TigeraStatus and its conditions (controllers §8).

use super::installation::Trouble;
use crate::cluster::{Action, View};
use crate::object::{DAEMON_SET, Kind, Name, POD, TIGERA_STATUS, covers, items, number, text};
use jiff::Timestamp;
use serde_json::{Value, json};

/// A part of the installation and what it is judged by.
#[derive(Debug)]
pub(super) struct Component<'a> {
    /// Name of its TigeraStatus.
    pub(super) name: &'static str,
    /// Generation of the resource that asked for it.
    pub(super) generation: i64,
    /// What keeps the operator from doing its work.
    pub(super) trouble: Option<&'a Trouble>,
    /// Said along with success.
    pub(super) warnings: &'a [String],
    /// Workloads that must be up, with the `k8s-app` label of their pods.
    pub(super) workloads: &'a [(Kind, Name, &'static str)],
}

/// What [`judge`] finds.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) available: bool,
    /// Conditions as stored, without their times.
    conditions: Vec<Value>,
}

/// Reads the state of the component's workloads and pods.
pub(super) fn judge(view: &View, component: &Component<'_>) -> Verdict {
    let mut failing = Vec::new();
    let mut progressing = Vec::new();
    for (kind, name, app) in component.workloads {
        let before = progressing.len();
        match view.get(*kind, name) {
            None => progressing.push(format!("{} {name} does not exist yet", kind.name)),
            Some(object) => progressing.extend(progress(*kind, name, object)),
        }
        if progressing.len() > before {
            failing.extend(failing_pods(view, name, app));
        }
    }
    let degraded = component.trouble.is_some() || !failing.is_empty();
    let available = !degraded && progressing.is_empty();
    let condition = |kind: &str, holds: bool, reason: &str, message: String| {
        json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "reason": reason,
            "message": message,
            "observedGeneration": component.generation,
        })
    };
    // A condition that does not hold says so only when the whole is well.
    let quiet = |kind: &str| match available {
        true => condition(kind, false, "AllObjectsAvailable", "All Objects Available".to_owned()),
        false => condition(kind, false, "Unknown", String::new()),
    };
    let conditions = vec![
        if available {
            let mut message = "All objects available".to_owned();
            for warning in component.warnings {
                message = format!("{message}; {warning}");
            }
            condition("Available", true, "AllObjectsAvailable", message)
        } else {
            condition("Available", false, "Unknown", String::new())
        },
        if degraded {
            let reason = component.trouble.map_or("PodFailure", |trouble| trouble.reason);
            let messages: Vec<String> = component
                .trouble
                .map(|trouble| trouble.message.clone())
                .into_iter()
                .chain(failing.clone())
                .collect();
            condition("Degraded", true, reason, messages.join("\n"))
        } else {
            quiet("Degraded")
        },
        if !progressing.is_empty() && failing.is_empty() {
            condition("Progressing", true, "ResourceNotReady", progressing.join("\n"))
        } else {
            quiet("Progressing")
        },
    ];
    Verdict { available, conditions }
}

/// What a workload still waits for.
fn progress(kind: Kind, name: &Name, object: &Value) -> Option<String> {
    // A workload that its controller has not looked at yet has no numbers that could be right.
    let unseen = object.pointer("/status/observedGeneration").is_none();
    let stale =
        unseen || number(object, "/metadata/generation") > number(object, "/status/observedGeneration");
    if kind == DAEMON_SET {
        let desired = number(object, "/status/desiredNumberScheduled");
        let updated = number(object, "/status/updatedNumberScheduled");
        let unavailable = number(object, "/status/numberUnavailable");
        let available = number(object, "/status/numberAvailable");
        return if stale {
            Some(format!("DaemonSet {name} has a change that is not acted upon yet"))
        } else if updated < desired {
            Some(format!("DaemonSet {name} update is being rolled out ({updated} of {desired} pods updated)"))
        } else if unavailable > 0 || (available == 0 && desired > 0) {
            Some(format!(
                "DaemonSet {name} is not available (awaiting {} of {desired} pods)",
                desired - available
            ))
        } else {
            None
        };
    }
    let wanted = object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
    let available = number(object, "/status/availableReplicas");
    if stale {
        Some(format!("Deployment {name} has a change that is not acted upon yet"))
    } else if number(object, "/status/unavailableReplicas") > 0 || available == 0 || available < wanted {
        Some(format!(
            "Deployment {name} is not available (awaiting {} of {wanted} replicas)",
            wanted - available
        ))
    } else {
        None
    }
}

/// Pods of a workload that fail rather than wait; the same complaint of several pods is said once.
fn failing_pods(view: &View, workload: &Name, app: &str) -> Vec<String> {
    let mut complaints: Vec<(String, Vec<String>)> = Vec::new();
    for pod in view.all(POD) {
        let name = Name::of(pod);
        if name.namespace != workload.namespace || super::label(pod, "k8s-app") != app {
            continue;
        }
        if let Some(complaint) = failure(pod) {
            match complaints.iter_mut().find(|(known, _)| *known == complaint) {
                Some((_, pods)) => pods.push(name.to_string()),
                None => complaints.push((complaint, vec![name.to_string()])),
            }
        }
    }
    complaints
        .into_iter()
        .take(3)
        .map(|(complaint, pods)| match pods.as_slice() {
            [pod] => format!("Pod {pod} {complaint}"),
            [pod, ..] => format!("Pod {pod} {complaint} ({} pods affected)", pods.len()),
            [] => complaint,
        })
        .collect()
}

fn failure(pod: &Value) -> Option<String> {
    if text(pod, "/status/phase") == "Failed" {
        return Some(format!("has failed: {}", text(pod, "/status/reason")));
    }
    items(pod, "/status/containerStatuses").iter().find_map(|container| {
        let name = text(container, "/name");
        let waiting = text(container, "/state/waiting/reason");
        if matches!(waiting, "CrashLoopBackOff" | "ImagePullBackOff" | "ErrImagePull") {
            return Some(format!("has container {name} in {waiting}"));
        }
        (text(container, "/state/terminated/reason") == "Error").then(|| {
            format!(
                "has container {name} terminated with exit code {}",
                number(container, "/state/terminated/exitCode")
            )
        })
    })
}

/// The writes that make the TigeraStatus say what was found, none when it says so already.
pub(super) fn report(
    view: &View,
    component: &Component<'_>,
    verdict: &Verdict,
    now: Timestamp,
) -> Option<Action> {
    let name = Name::cluster(component.name);
    let Some(object) = view.get(TIGERA_STATUS, &name) else {
        return Some(Action::Create(
            TIGERA_STATUS,
            json!({"apiVersion": TIGERA_STATUS.api_version, "kind": TIGERA_STATUS.name,
                "metadata": {"name": component.name}, "spec": {}}),
        ));
    };
    let conditions = timed(verdict, items(object, "/status/conditions"), now, |kind| kind)?;
    Some(Action::PatchStatus(TIGERA_STATUS, name, json!({"status": {"conditions": conditions}})))
}

/// The verdict's conditions under the names that `rename` gives them, each with the time since when it has its
/// status. `None` when `held` says all of it already.
pub(super) fn timed(
    verdict: &Verdict,
    held: &[Value],
    now: Timestamp,
    rename: impl Fn(&'static str) -> &'static str,
) -> Option<Vec<Value>> {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut changed = held.len() != verdict.conditions.len();
    let conditions = verdict
        .conditions
        .iter()
        .zip(["Available", "Degraded", "Progressing"])
        .map(|(found, kind)| {
            let kind = rename(kind);
            let mut condition = found.clone();
            condition["type"] = json!(kind);
            let before = held.iter().find(|before| text(before, "/type") == kind);
            changed |= before.is_none_or(|before| !covers(before, &condition));
            let since = before
                .filter(|before| before.get("status") == condition.get("status"))
                .map(|before| text(before, "/lastTransitionTime"))
                .filter(|since| !since.is_empty())
                .unwrap_or(&now);
            condition["lastTransitionTime"] = json!(since);
            condition
        })
        .collect();
    changed.then_some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::DEPLOYMENT;

    const NOW: &str = "2026-11-21T12:00:00Z";

    fn workloads() -> [(Kind, Name, &'static str); 2] {
        [
            (DAEMON_SET, Name::within("calico-system", "calico-node"), "calico-node"),
            (DEPLOYMENT, Name::within("calico-system", "calico-kube-controllers"), "calico-kube-controllers"),
        ]
    }

    fn view(unavailable: i64) -> View {
        let mut view = View::default();
        view.put(
            DAEMON_SET,
            json!({"metadata": {"namespace": "calico-system", "name": "calico-node", "generation": 1, "resourceVersion": "1"},
                "status": {"observedGeneration": 1, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3,
                    "numberAvailable": 3 - unavailable, "numberUnavailable": unavailable}}),
        );
        view.put(
            DEPLOYMENT,
            json!({"metadata": {"namespace": "calico-system", "name": "calico-kube-controllers", "generation": 1, "resourceVersion": "1"},
                "spec": {"replicas": 1}, "status": {"observedGeneration": 1, "availableReplicas": 1}}),
        );
        view
    }

    fn component<'a>(
        workloads: &'a [(Kind, Name, &'static str)],
        trouble: Option<&'a Trouble>,
    ) -> Component<'a> {
        Component { name: "calico", generation: 1, trouble, warnings: &[], workloads }
    }

    fn statuses(verdict: &Verdict) -> [&str; 3] {
        ["Available", "Progressing", "Degraded"].map(|kind| {
            let found = verdict.conditions.iter().find(|condition| condition["type"] == kind);
            found.map_or("", |condition| text(condition, "/status"))
        })
    }

    #[test]
    fn everything_up_is_available_and_nothing_else() {
        let workloads = workloads();
        let verdict = judge(&view(0), &component(&workloads, None));
        assert_eq!(statuses(&verdict), ["True", "False", "False"]);
        assert_eq!(verdict.conditions[0]["message"], "All objects available");
        assert_eq!(verdict.conditions[1]["message"], "All Objects Available");
    }

    #[test]
    fn workload_that_waits_or_is_missing_is_progressing_and_named() {
        let workloads = workloads();
        let verdict = judge(&view(1), &component(&workloads, None));
        assert_eq!(statuses(&verdict), ["False", "True", "False"]);
        assert!(text(&verdict.conditions[2], "/message").contains("calico-system/calico-node"));
        let nothing = judge(&View::default(), &component(&workloads, None));
        assert_eq!(statuses(&nothing), ["False", "True", "False"]);
    }

    #[test]
    fn failing_pod_is_degraded_with_its_name() {
        let workloads = workloads();
        let mut view = view(1);
        view.put(
            POD,
            json!({"metadata": {"namespace": "calico-system", "name": "calico-node-x", "labels": {"k8s-app": "calico-node"}, "resourceVersion": "1"},
                "status": {"phase": "Running", "containerStatuses": [{"name": "calico-node", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}}),
        );
        let verdict = judge(&view, &component(&workloads, None));
        assert_eq!(statuses(&verdict), ["False", "False", "True"]);
        assert_eq!(verdict.conditions[1]["reason"], "PodFailure");
        assert!(text(&verdict.conditions[1], "/message").contains("calico-system/calico-node-x"));
    }

    #[test]
    fn trouble_of_the_operator_is_degraded_with_its_reason() {
        let workloads = workloads();
        let trouble = Trouble { reason: "InvalidConfigurationError", message: "bad pool".to_owned() };
        let verdict = judge(&view(0), &component(&workloads, Some(&trouble)));
        assert_eq!(statuses(&verdict), ["False", "False", "True"]);
        assert_eq!(verdict.conditions[1]["reason"], "InvalidConfigurationError");
        assert_eq!(verdict.conditions[1]["message"], "bad pool");
    }

    #[test]
    fn time_of_a_condition_moves_only_with_its_status_and_nothing_is_written_when_nothing_changed() {
        let workloads = workloads();
        let (component, now) = (component(&workloads, None), NOW.parse().unwrap());
        let later = "2026-11-21T13:00:00Z".parse().unwrap();
        let up = judge(&view(0), &component);
        let first = timed(&up, &[], now, |kind| kind).unwrap();
        assert_eq!(first[0]["lastTransitionTime"], NOW);
        assert_eq!(timed(&up, &first, later, |kind| kind), None);
        let down = judge(&view(1), &component);
        let second = timed(&down, &first, later, |kind| kind).unwrap();
        assert_eq!(second[0]["lastTransitionTime"], "2026-11-21T13:00:00Z");
        assert_eq!(second[1]["lastTransitionTime"], NOW, "Degraded stays False");
    }

    #[test]
    fn first_report_makes_the_object() {
        let workloads = workloads();
        let component = component(&workloads, None);
        let verdict = judge(&View::default(), &component);
        let action = report(&View::default(), &component, &verdict, NOW.parse().unwrap());
        assert!(matches!(action, Some(Action::Create(..))));
    }
}
