//! Rows of pods, whose status is a summary of all their containers.

use super::format::{NONE, age, condition, count, items, name, text, text_or};
use super::{Cells, Head, shown, wide};
use crate::age as ages;
use jiff::Timestamp;
use serde_json::Value;

const HEADS: &[Head] = const {
    &[
        shown("Name"),
        shown("Ready"),
        shown("Status"),
        shown("Restarts"),
        shown("Age"),
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ]
};

pub(super) fn printer(group: &str, resource: &str) -> Option<(&'static [Head], Cells)> {
    (group.is_empty() && resource == "pods").then_some((HEADS, cells as Cells))
}

/// What the containers of a pod come to.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(last) => {
            format!("{} ({} ago)", summary.restarts, ages::human(ages::whole_seconds(last, now)))
        }
        None => summary.restarts.to_string(),
    };
    let status = &pod["status"];
    let ip = match text(&status["podIPs"][0]["ip"]) {
        "" => text_or(&status["podIP"], NONE),
        ip => ip.into(),
    };
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now),
        ip,
        text_or(&pod["spec"]["nodeName"], NONE),
        text_or(&status["nominatedNodeName"], NONE),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = items(&pod["spec"]["readinessGates"]);
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let met = gates
        .iter()
        .filter(|gate| {
            condition(pod, text(&gate["conditionType"])).is_some_and(|one| one["status"] == "True")
        })
        .count();
    format!("{met}/{}", gates.len())
}

fn is_true(pod: &Value, wanted: &str) -> bool {
    condition(pod, wanted).is_some_and(|one| one["status"] == "True")
}

fn finished_at(status: &Value) -> Option<Timestamp> {
    text(&status["lastState"]["terminated"]["finishedAt"]).parse().ok()
}

/// Why a terminated container ended: its reason, else its signal, else its exit code.
fn end(terminated: &Value) -> String {
    match (text(&terminated["reason"]), count(&terminated["signal"])) {
        ("", 0) => format!("ExitCode:{}", count(&terminated["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn summarize(pod: &Value) -> Summary {
    let status = &pod["status"];
    let init_specs = items(&pod["spec"]["initContainers"]);
    let is_sidecar = |name: &Value| {
        init_specs.iter().any(|spec| spec["name"] == *name && spec["restartPolicy"] == "Always")
    };
    let mut total = items(&pod["spec"]["containers"]).len();
    total += init_specs.iter().filter(|spec| spec["restartPolicy"] == "Always").count();

    let mut reason = match text(&status["reason"]) {
        "" => text(&status["phase"]).to_owned(),
        reason => reason.to_owned(),
    };
    if condition(pod, "PodScheduled").is_some_and(|one| one["reason"] == "SchedulingGated") {
        reason = "SchedulingGated".to_owned();
    }

    let mut summary = Summary { reason, ready: 0, total, restarts: 0, last_restart: None };
    let mut sidecars = (0, None);
    let mut initializing = false;
    for (at, container) in items(&status["initContainerStatuses"]).iter().enumerate() {
        summary.restarts += count(&container["restartCount"]);
        summary.last_restart = summary.last_restart.max(finished_at(container));
        let sidecar = is_sidecar(&container["name"]);
        if sidecar {
            sidecars.0 += count(&container["restartCount"]);
            sidecars.1 = sidecars.1.max(finished_at(container));
        }
        let state = &container["state"];
        if state["terminated"].is_object() && count(&state["terminated"]["exitCode"]) == 0 {
            continue;
        }
        if sidecar && container["started"] == true {
            if container["ready"] == true {
                summary.ready += 1;
            }
            continue;
        }
        summary.reason = match text(&state["waiting"]["reason"]) {
            _ if state["terminated"].is_object() => format!("Init:{}", end(&state["terminated"])),
            "" | "PodInitializing" => format!("Init:{at}/{}", init_specs.len()),
            waiting => format!("Init:{waiting}"),
        };
        initializing = true;
        break;
    }

    if !initializing || is_true(pod, "Initialized") {
        (summary.restarts, summary.last_restart) = sidecars;
        let mut running = false;
        for container in items(&status["containerStatuses"]).iter().rev() {
            summary.restarts += count(&container["restartCount"]);
            summary.last_restart = summary.last_restart.max(finished_at(container));
            let state = &container["state"];
            if !text(&state["waiting"]["reason"]).is_empty() {
                summary.reason = text(&state["waiting"]["reason"]).to_owned();
            } else if state["terminated"].is_object() {
                summary.reason = end(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                summary.ready += 1;
            }
        }
        if summary.reason == "Completed" && running {
            summary.reason = if is_true(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }

    if !text(&pod["metadata"]["deletionTimestamp"]).is_empty() {
        let lost = status["reason"] == "NodeLost";
        summary.reason = if lost { "Unknown" } else { "Terminating" }.to_owned();
    }
    summary
}

#[cfg(test)]
mod tests {
    use crate::table::format::testing::{cell, row_of};
    use serde_json::{Value, json};

    fn pod(status: Value) -> Value {
        json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}, {"name": "j"}]},
            "status": status,
        })
    }

    fn status_of(pod: &Value) -> Value {
        cell("", "pods", pod, "Status")
    }

    #[test]
    fn a_running_pod_shows_address_and_node() {
        let pod = json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n1", "containers": [{"name": "a"}]},
            "status": {"phase": "Running", "podIP": "192.168.0.1", "podIPs": [{"ip": "192.168.0.1"}],
                "containerStatuses": [{"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}}]},
        });
        let cells: Vec<Value> = row_of("", "pods", &pod).into_iter().map(|(_, cell)| cell).collect();
        assert_eq!(
            Value::from(cells),
            json!(["p", "1/1", "Running", "0", "60m", "192.168.0.1", "n1", "<none>", "<none>"])
        );
    }

    #[test]
    fn the_first_unfinished_init_container_decides() {
        let waiting = pod(json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 0}}},
            {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}]}));
        assert_eq!(status_of(&waiting), "Init:1/2");
        let pulling = pod(json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}));
        assert_eq!(status_of(&pulling), "Init:ImagePullBackOff");
        let failed = pod(json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 3}}}]}));
        assert_eq!(status_of(&failed), "Init:ExitCode:3");
    }

    #[test]
    fn the_first_container_with_a_reason_decides() {
        let pod = pod(json!({"phase": "Pending", "containerStatuses": [
            {"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}},
            {"name": "b", "state": {"terminated": {"exitCode": 1, "signal": 9}}}]}));
        assert_eq!(status_of(&pod), "ContainerCreating");
    }

    #[test]
    fn restarts_say_when_the_last_one_was() {
        let pod = pod(json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "ready": true, "restartCount": 2, "state": {"running": {}},
             "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}},
            {"name": "b", "ready": false, "restartCount": 1, "state": {"running": {}}}]}));
        assert_eq!(cell("", "pods", &pod, "Restarts"), "3 (5m ago)");
        assert_eq!(cell("", "pods", &pod, "Ready"), "1/2");
    }

    #[test]
    fn a_pod_that_is_being_deleted_is_terminating() {
        let mut pod = pod(json!({"phase": "Running"}));
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:30:00Z".into();
        assert_eq!(status_of(&pod), "Terminating");
        pod["status"]["reason"] = "NodeLost".into();
        assert_eq!(status_of(&pod), "Unknown");
    }

    #[test]
    fn a_completed_container_beside_a_running_one_is_not_ready() {
        let pod = pod(json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
            {"name": "b", "ready": true, "state": {"running": {}}}]}));
        assert_eq!(status_of(&pod), "NotReady");
    }
}
