//! What the API is told about a pod.

use super::plan::{Blocked, Ended, Phase, Run, phase, restarts};
use super::pod::{Container, Pod, items, text};
use super::program::{FIRST_BACK_OFF, Program};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Marks pods in which at least one container is a stand-in.
const STAND_IN: &str = "tortie.dev/stand-in";

/// What the kubelet knows of a pod.
#[derive(Clone, Debug)]
pub(super) struct Observed<'a> {
    pub now: Timestamp,
    pub pod: &'a Pod,
    pub runs: &'a BTreeMap<String, Run>,
    pub blocked: &'a BTreeMap<String, Blocked>,
    /// Address of the node.
    pub host_ip: &'a str,
    /// Addresses of the pod, IPv4 first; empty before it is connected.
    pub pod_ips: &'a [String],
    /// Container ID of the sandbox for the CNI plugins, when the pod has a network of its own.
    pub attachment: Option<&'a str>,
    /// Whether the node agent serves.
    pub agent_ready: bool,
    /// The status told last, or as the API had it at first.
    pub told: &'a Value,
}

/// A merge patch for the pod's `status` subresource, annotations included, as CNI plugins write them too.
pub(super) fn patch(observed: &Observed<'_>) -> Value {
    let mut annotations = json!({});
    if observed.runs.values().any(|run| run.program.is_stand_in()) {
        annotations[STAND_IN] = json!("true");
    }
    if let (Some(id), false) = (observed.attachment, observed.pod_ips.is_empty()) {
        let nets: Vec<String> = observed.pod_ips.iter().map(|ip| host_net(ip)).collect();
        annotations["cni.projectcalico.org/containerID"] = json!(id);
        annotations["cni.projectcalico.org/podIP"] = json!(nets.first());
        annotations["cni.projectcalico.org/podIPs"] = json!(nets.join(","));
    }
    json!({
        "metadata": {"uid": observed.pod.uid, "annotations": annotations},
        "status": status(observed),
    })
}

fn host_net(ip: &str) -> String {
    if ip.contains(':') { format!("{ip}/128") } else { format!("{ip}/32") }
}

fn status(observed: &Observed<'_>) -> Value {
    let pod = observed.pod;
    let phase = phase(pod, observed.runs);
    let started = match text(observed.told, "/startTime") {
        "" => clock(observed.now),
        told => told.to_owned(),
    };
    let statuses = |containers: &[Container], init: bool| -> Vec<Value> {
        containers.iter().map(|container| container_status(observed, container, init)).collect()
    };
    let mut status = json!({
        "phase": phase.as_str(),
        "hostIP": observed.host_ip,
        "startTime": started,
        "containerStatuses": statuses(&pod.containers, false),
        "conditions": conditions(observed, phase),
    });
    if !pod.init.is_empty() {
        status["initContainerStatuses"] = json!(statuses(&pod.init, true));
    }
    if let Some(first) = observed.pod_ips.first() {
        status["podIP"] = json!(first);
        status["podIPs"] = observed.pod_ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<Value>>().into();
    }
    status
}

fn container_status(observed: &Observed<'_>, container: &Container, init: bool) -> Value {
    let run = observed.runs.get(&container.name);
    let (state, last) = states(observed, container, run, init);
    let running = state.get("running").is_some();
    json!({
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "containerID": run.map(|run| run.container_id.as_str()).unwrap_or_default(),
        "restartCount": run.map_or(0, |run| run.restarts),
        "ready": if init { run.is_some_and(succeeded) } else { is_ready(observed, run) },
        "started": running,
        "state": state,
        "lastState": last,
    })
}

/// The container's state and the one before.
fn states(observed: &Observed<'_>, container: &Container, run: Option<&Run>, init: bool) -> (Value, Value) {
    let waiting = |reason: &str, message: &str| {
        let mut waiting = json!({"reason": reason});
        if !message.is_empty() {
            waiting["message"] = json!(message);
        }
        json!({ "waiting": waiting })
    };
    let last = run.and_then(|run| run.last.as_ref()).map_or_else(|| json!({}), terminated);
    if let Some(blocked) = observed.blocked.get(&container.name) {
        return (waiting(&blocked.reason, &blocked.message), last);
    }
    let Some(run) = run else {
        let first =
            observed.pod.init.iter().position(|other| !observed.runs.get(&other.name).is_some_and(succeeded));
        // Everything behind the first init container that is still to succeed waits for it.
        let initializing = match first {
            None => false,
            Some(_) if !init => true,
            Some(first) => observed.pod.init.get(first).is_some_and(|first| first.name != container.name),
        };
        let reason = if initializing { "PodInitializing" } else { "ContainerCreating" };
        return (waiting(reason, ""), last);
    };
    let Some(ended) = &run.ended else {
        return (json!({"running": {"startedAt": clock(run.started)}}), last);
    };
    let again = if init {
        ended.code != 0 && restarts(observed.pod.restart_policy, ended)
    } else {
        restarts(observed.pod.restart_policy, ended)
    };
    // After the first end the reason is what matters; from the second on, that it keeps ending.
    if again && run.back_off > FIRST_BACK_OFF {
        let message = format!(
            "back-off {}s restarting failed container={} pod={}_{}({})",
            run.back_off.as_secs(),
            container.name,
            observed.pod.name,
            observed.pod.namespace,
            observed.pod.uid
        );
        return (waiting("CrashLoopBackOff", &message), terminated(ended));
    }
    (terminated(ended), last)
}

fn terminated(ended: &Ended) -> Value {
    let mut state = json!({
        "exitCode": ended.code,
        "reason": ended.reason,
        "startedAt": clock(ended.started),
        "finishedAt": clock(ended.finished),
        "containerID": ended.container_id,
    });
    if !ended.message.is_empty() {
        state["message"] = json!(ended.message);
    }
    json!({ "terminated": state })
}

/// The ends that the API was told of, by container: what is known of earlier runs after a restart of the kubelet.
pub(super) fn told_ends(object: &Value, list: &str, state: &str) -> BTreeMap<String, Ended> {
    let end = |status: &Value| {
        let at = |key: &str| text(status, &format!("/{state}/terminated/{key}"));
        Some((
            text(status, "/name").to_owned(),
            Ended {
                container_id: at("containerID").to_owned(),
                code: status
                    .pointer(&format!("/{state}/terminated/exitCode"))?
                    .as_i64()
                    .and_then(|code| i32::try_from(code).ok())?,
                reason: at("reason").to_owned(),
                message: at("message").to_owned(),
                started: at("startedAt").parse().ok()?,
                finished: at("finishedAt").parse().ok()?,
            },
        ))
    };
    items(object, &format!("/status/{list}")).iter().filter_map(end).collect()
}

fn succeeded(run: &Run) -> bool {
    run.ended.as_ref().is_some_and(|ended| ended.code == 0)
}

fn is_ready(observed: &Observed<'_>, run: Option<&Run>) -> bool {
    run.is_some_and(|run| run.ended.is_none() && (run.program != Program::Agent || observed.agent_ready))
}

fn conditions(observed: &Observed<'_>, phase: Phase) -> Vec<Value> {
    let pod = observed.pod;
    let uninitialized: Vec<&str> = pod
        .init
        .iter()
        .filter(|container| !observed.runs.get(&container.name).is_some_and(succeeded))
        .map(|container| container.name.as_str())
        .collect();
    let unready: Vec<&str> = pod
        .containers
        .iter()
        .filter(|container| !is_ready(observed, observed.runs.get(&container.name)))
        .map(|container| container.name.as_str())
        .collect();
    let incomplete = |names: &[&str], reason: &str, what: &str| {
        if names.is_empty() {
            ("True", String::new(), String::new())
        } else if phase == Phase::Succeeded {
            ("False", "PodCompleted".to_owned(), String::new())
        } else {
            let message = format!("containers with {what} status: [{}]", names.join(" "));
            ("False", reason.to_owned(), message)
        }
    };
    let mut conditions = Vec::new();
    for (kind, (status, reason, message)) in [
        ("Initialized", incomplete(&uninitialized, "ContainersNotInitialized", "incomplete")),
        ("Ready", incomplete(&unready, "ContainersNotReady", "unready")),
        ("ContainersReady", incomplete(&unready, "ContainersNotReady", "unready")),
    ] {
        let told = items(observed.told, "/conditions").iter().find(|told| text(told, "/type") == kind);
        let since = told
            .filter(|told| text(told, "/status") == status)
            .map(|told| text(told, "/lastTransitionTime").to_owned())
            .unwrap_or_else(|| clock(observed.now));
        let mut condition = json!({
            "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since,
        });
        if !reason.is_empty() {
            condition["reason"] = json!(reason);
        }
        if !message.is_empty() {
            condition["message"] = json!(message);
        }
        conditions.push(condition);
    }
    // What others say about the pod (PodScheduled, above all) stays.
    let ours = ["Initialized", "Ready", "ContainersReady"];
    conditions.extend(
        items(observed.told, "/conditions")
            .iter()
            .filter(|told| !ours.contains(&text(told, "/type")))
            .cloned(),
    );
    conditions
}

/// A time as the API writes it: whole seconds.
pub(super) fn clock(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::super::program::StandIn;
    use super::*;
    use std::time::Duration;

    fn pod(policy: &str) -> Pod {
        Pod::read(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "nginx"}]},
            "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]},
        }))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn told(pod: &Pod, runs: &BTreeMap<String, Run>, agent_ready: bool) -> Value {
        patch(&Observed {
            now: at(60),
            pod,
            runs,
            blocked: &BTreeMap::new(),
            host_ip: "172.18.0.2",
            pod_ips: &["192.168.0.7".to_owned()],
            attachment: Some("sandbox"),
            agent_ready,
            told: &pod.object["status"],
        })
    }

    fn run(program: Program, ended: Option<i32>, back_off: u64) -> BTreeMap<String, Run> {
        let ended = ended.map(|code| Ended {
            container_id: "containerd://1".into(),
            code,
            reason: "Error".into(),
            message: String::new(),
            started: at(1),
            finished: at(2),
        });
        let run = Run {
            container_id: "containerd://1".into(),
            program,
            restarts: 3,
            started: at(1),
            ended,
            last: None,
            waited: Duration::ZERO,
            back_off: Duration::from_secs(back_off),
        };
        BTreeMap::from([("c".into(), run)])
    }

    #[test]
    fn a_running_stand_in_is_ready_and_says_what_it_is() {
        let patch = told(&pod("Always"), &run(Program::StandIn(StandIn::NoCommand), None, 0), false);
        assert_eq!(patch["metadata"]["annotations"]["tortie.dev/stand-in"], "true");
        assert_eq!(patch["metadata"]["annotations"]["cni.projectcalico.org/podIP"], "192.168.0.7/32");
        let status = &patch["status"];
        assert_eq!(status["phase"], "Running");
        assert_eq!(status["podIPs"], json!([{"ip": "192.168.0.7"}]));
        let kinds: Vec<&str> = items(status, "/conditions").iter().map(|c| text(c, "/type")).collect();
        assert_eq!(kinds, ["Initialized", "Ready", "ContainersReady", "PodScheduled"]);
        assert_eq!(status["conditions"][1]["status"], "True");
        assert_eq!(
            status["containerStatuses"][0]["state"],
            json!({"running": {"startedAt": "1970-01-01T00:00:01Z"}})
        );
    }

    #[test]
    fn the_agents_container_is_ready_only_when_the_agent_serves() {
        for (serves, ready) in [(false, "False"), (true, "True")] {
            let patch = told(&pod("Always"), &run(Program::Agent, None, 0), serves);
            assert_eq!(patch["status"]["containerStatuses"][0]["ready"], serves);
            assert_eq!(patch["status"]["conditions"][1]["status"], ready);
        }
    }

    #[test]
    fn ends_are_told_first_as_such_and_then_as_a_loop() {
        let host = || Program::Host(vec![]);
        let patch = told(&pod("Always"), &run(host(), Some(1), 2), false);
        assert_eq!(patch["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 1);
        let patch = told(&pod("Always"), &run(host(), Some(1), 4), false);
        let status = &patch["status"]["containerStatuses"][0];
        assert_eq!(status["state"]["waiting"]["reason"], "CrashLoopBackOff");
        assert_eq!(status["lastState"]["terminated"]["exitCode"], 1);
        assert_eq!(patch["status"]["phase"], "Running");
        let patch = told(&pod("Never"), &run(host(), Some(0), 2), false);
        assert_eq!(patch["status"]["phase"], "Succeeded");
        assert_eq!(patch["status"]["conditions"][1]["reason"], "PodCompleted");
    }

    #[test]
    fn a_pod_that_is_not_connected_yet_is_being_created() {
        let patch = told(&pod("Always"), &BTreeMap::new(), false);
        assert_eq!(patch["status"]["phase"], "Pending");
        assert_eq!(
            patch["status"]["containerStatuses"][0]["state"]["waiting"]["reason"],
            "ContainerCreating"
        );
    }

    #[test]
    fn ends_are_read_back_from_what_was_told() {
        let patch = told(&pod("Always"), &run(Program::Host(vec![]), Some(7), 2), false);
        let ends = told_ends(&patch, "containerStatuses", "state");
        assert_eq!(ends["c"].code, 7);
        assert_eq!(ends["c"].finished, at(2));
    }
}
