//! The next step of a pod: a function of what is known about it.
//!
//! ```text
//!   bound ──Create──► sandbox ──Start (init, in order; then all)──► running ──ended, policy──► Start again
//!     │                  │                                             │
//!     │ deleted          │ deleted                                     │ deleted: Terminate, after grace Kill
//!     ▼                  ▼                                             ▼
//!   Delete ◄────────── Remove (CNI DEL, namespaces) ◄──────────────────┘        all ended for good: Remove, Wait
//!     │
//!     ▼
//!    End
//! ```

use super::pod::{Container, Pod, RestartPolicy};
use super::program::Program;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// How a run of a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub container_id: String,
    /// Exit code; 128 and the signal's number when a signal ended it.
    pub code: i32,
    pub reason: String,
    pub message: String,
    pub started: Timestamp,
    pub finished: Timestamp,
}

/// The newest run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub container_id: String,
    pub program: Program,
    pub restarts: u32,
    pub started: Timestamp,
    pub ended: Option<Ended>,
    /// How the run before ended.
    pub last: Option<Ended>,
    /// The wait that came before this run.
    pub waited: Duration,
    /// The wait after this run's end; zero while it lasts.
    pub back_off: Duration,
}

/// Why a container cannot be started yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocked {
    pub reason: String,
    pub message: String,
    pub retry: Timestamp,
}

/// A pod's namespaces with their connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sandbox {
    /// Nothing of it exists.
    None,
    /// An attempt failed, and what it left could not be taken away yet.
    Broken,
    /// Containers can be started in it.
    Ready,
}

/// What is known about a pod.
#[derive(Clone, Debug)]
pub(super) struct View<'a> {
    pub now: Timestamp,
    /// The pod; `None` when the API has it no more.
    pub pod: Option<&'a Pod>,
    /// Whether pods can be connected on this node.
    pub network_ready: bool,
    pub sandbox: Sandbox,
    /// Not before this time is the sandbox, or the pod's deletion, tried again.
    pub retry: Option<Timestamp>,
    pub runs: &'a BTreeMap<String, Run>,
    pub blocked: &'a BTreeMap<String, Blocked>,
    /// When its processes were told to end.
    pub terminated: Option<Timestamp>,
    /// Whether they were killed.
    pub killed: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make the namespaces and connect them.
    Create,
    /// Start this container.
    Start(String),
    /// Tell all processes to end.
    Terminate,
    /// End all processes.
    Kill,
    /// Disconnect the namespaces and let them go.
    Remove,
    /// Tell the API that nothing of the pod is left.
    Delete,
    /// Nothing is left to do, ever.
    End,
    /// Nothing to do before this time, or before something changes.
    Wait(Option<Timestamp>),
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// Whether its containers have ended for good.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// The next step.
pub(super) fn next(view: &View<'_>) -> Step {
    let early = view.retry.filter(|retry| *retry > view.now);
    let Some(pod) = view.pod.filter(|pod| !pod.deleting) else {
        if let Some(step) = end_processes(view) {
            return step;
        }
        return match (view.sandbox, view.pod, early) {
            (Sandbox::None, None, _) => Step::End,
            (_, _, Some(retry)) => Step::Wait(Some(retry)),
            (Sandbox::None, Some(_), None) => Step::Delete,
            (Sandbox::Broken | Sandbox::Ready, _, None) => Step::Remove,
        };
    };
    if pod.finished || phase(pod, view.runs).is_final() {
        return match (view.sandbox, early) {
            (Sandbox::None, _) => Step::Wait(None),
            (_, Some(retry)) => Step::Wait(Some(retry)),
            (_, None) => Step::Remove,
        };
    }
    match (view.sandbox, early) {
        (Sandbox::Ready, _) => {}
        (_, Some(retry)) => return Step::Wait(Some(retry)),
        (Sandbox::Broken, None) => return Step::Remove,
        (Sandbox::None, None) if view.network_ready || pod.host_network => return Step::Create,
        (Sandbox::None, None) => return Step::Wait(None),
    }
    for container in &pod.init {
        match view.runs.get(&container.name) {
            Some(Run { ended: Some(ended), .. }) if ended.code == 0 => {}
            run => return start(pod, container, run, view).unwrap_or(Step::Wait(None)),
        }
    }
    let mut wait: Option<Timestamp> = None;
    for container in &pod.containers {
        match start(pod, container, view.runs.get(&container.name), view) {
            Some(Step::Wait(Some(until))) => wait = Some(wait.map_or(until, |wait| wait.min(until))),
            Some(Step::Wait(None)) | None => {}
            Some(step) => return step,
        }
    }
    Step::Wait(wait)
}

/// What remains to be done until no process of the pod runs; `None` when none does.
fn end_processes(view: &View<'_>) -> Option<Step> {
    let running = |run: &Run| run.ended.is_none() && !run.program.is_stand_in();
    if view.killed || !view.runs.values().any(running) {
        return None;
    }
    let Some(since) = view.terminated else { return Some(Step::Terminate) };
    let grace = view.pod.map_or(Duration::ZERO, |pod| pod.grace);
    let deadline = since.checked_add(grace).unwrap_or(since);
    Some(if deadline <= view.now { Step::Kill } else { Step::Wait(Some(deadline)) })
}

/// Whether and when `container` starts, given its newest run. `None` when it runs, or never starts again.
fn start(pod: &Pod, container: &Container, run: Option<&Run>, view: &View<'_>) -> Option<Step> {
    let wanted = match run {
        None => view.now,
        Some(Run { ended: None, .. }) => return None,
        Some(run @ Run { ended: Some(ended), .. }) => {
            if !restarts(pod.restart_policy, ended) {
                return None;
            }
            ended.finished.checked_add(run.back_off).unwrap_or(view.now)
        }
    };
    let wanted = match view.blocked.get(&container.name) {
        Some(blocked) => wanted.max(blocked.retry),
        None => wanted,
    };
    Some(if wanted <= view.now { Step::Start(container.name.clone()) } else { Step::Wait(Some(wanted)) })
}

/// Whether a container that ended so is started again.
pub(super) fn restarts(policy: RestartPolicy, ended: &Ended) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => ended.code != 0,
        RestartPolicy::Never => false,
    }
}

/// How far a pod is, by its containers' runs.
pub(super) fn phase(pod: &Pod, runs: &BTreeMap<String, Run>) -> Phase {
    for container in &pod.init {
        match runs.get(&container.name).and_then(|run| run.ended.as_ref()) {
            Some(ended) if ended.code == 0 => {}
            // An init container is repeated until it succeeds, except where nothing is.
            Some(_) if pod.restart_policy == RestartPolicy::Never => return Phase::Failed,
            _ => return Phase::Pending,
        }
    }
    let mut failed = false;
    let mut going_on = false;
    for container in &pod.containers {
        let Some(run) = runs.get(&container.name) else { return Phase::Pending };
        match &run.ended {
            Some(ended) if !restarts(pod.restart_policy, ended) => failed |= ended.code != 0,
            _ => going_on = true,
        }
    }
    match (going_on, failed) {
        (true, _) => Phase::Running,
        (false, true) => Phase::Failed,
        (false, false) => Phase::Succeeded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(policy: &str, extra: Value) -> Pod {
        let mut object = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]},
        });
        json_merge(&mut object, extra);
        Pod::read(object)
    }

    fn json_merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    json_merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn run(ended: Option<(i32, i64)>) -> Run {
        Run {
            container_id: "id".into(),
            program: Program::Host(vec!["sleep".into()]),
            restarts: 0,
            started: at(0),
            ended: ended.map(|(code, second)| Ended {
                container_id: "id".into(),
                code,
                reason: String::new(),
                message: String::new(),
                started: at(0),
                finished: at(second),
            }),
            last: None,
            waited: Duration::ZERO,
            back_off: Duration::from_secs(2),
        }
    }

    struct Known {
        pod: Option<Pod>,
        network: bool,
        sandbox: Sandbox,
        retry: Option<Timestamp>,
        runs: BTreeMap<String, Run>,
        blocked: BTreeMap<String, Blocked>,
        terminated: Option<Timestamp>,
        killed: bool,
    }

    impl Known {
        fn new(pod: Pod) -> Self {
            Self {
                pod: Some(pod),
                network: true,
                sandbox: Sandbox::None,
                retry: None,
                runs: BTreeMap::new(),
                blocked: BTreeMap::new(),
                terminated: None,
                killed: false,
            }
        }

        fn next(&self, second: i64) -> Step {
            next(&View {
                now: at(second),
                pod: self.pod.as_ref(),
                network_ready: self.network,
                sandbox: self.sandbox,
                retry: self.retry,
                runs: &self.runs,
                blocked: &self.blocked,
                terminated: self.terminated,
                killed: self.killed,
            })
        }
    }

    #[test]
    fn a_pod_waits_for_the_network_unless_it_uses_the_nodes() {
        let mut known = Known::new(pod("Always", json!({})));
        known.network = false;
        assert_eq!(known.next(0), Step::Wait(None));
        known.pod = Some(pod("Always", json!({"spec": {"hostNetwork": true}})));
        assert_eq!(known.next(0), Step::Create);
        known.retry = Some(at(1));
        assert_eq!(known.next(0), Step::Wait(Some(at(1))));
        assert_eq!(known.next(1), Step::Create);
        known.sandbox = Sandbox::Broken;
        assert_eq!(known.next(0), Step::Wait(Some(at(1))));
        assert_eq!(known.next(1), Step::Remove);
    }

    #[test]
    fn init_containers_come_first_and_one_by_one() {
        let mut known =
            Known::new(pod("Always", json!({"spec": {"initContainers": [{"name": "i"}, {"name": "j"}]}})));
        known.sandbox = Sandbox::Ready;
        assert_eq!(known.next(0), Step::Start("i".into()));
        known.runs.insert("i".into(), run(None));
        assert_eq!(known.next(0), Step::Wait(None));
        known.runs.insert("i".into(), run(Some((1, 5))));
        assert_eq!(known.next(5), Step::Wait(Some(at(7))));
        assert_eq!(known.next(7), Step::Start("i".into()));
        known.runs.insert("i".into(), run(Some((0, 8))));
        assert_eq!(known.next(8), Step::Start("j".into()));
        known.runs.insert("j".into(), run(Some((0, 8))));
        assert_eq!(known.next(8), Step::Start("a".into()));
        known.runs.insert("a".into(), run(None));
        assert_eq!(known.next(8), Step::Start("b".into()));
    }

    #[test]
    fn the_policy_says_what_starts_again_and_when_a_pod_is_done() {
        let mut known = Known::new(pod("OnFailure", json!({})));
        known.sandbox = Sandbox::Ready;
        known.runs = BTreeMap::from([("a".into(), run(Some((0, 1)))), ("b".into(), run(Some((3, 1))))]);
        assert_eq!(known.next(1), Step::Wait(Some(at(3))));
        assert_eq!(known.next(3), Step::Start("b".into()));
        known.pod = Some(pod("Never", json!({})));
        assert_eq!(phase(known.pod.as_ref().unwrap(), &known.runs), Phase::Failed);
        assert_eq!(known.next(3), Step::Remove);
        known.sandbox = Sandbox::None;
        assert_eq!(known.next(3), Step::Wait(None));
        known.runs.insert("b".into(), run(Some((0, 1))));
        assert_eq!(phase(known.pod.as_ref().unwrap(), &known.runs), Phase::Succeeded);
        known.pod = Some(pod("Always", json!({})));
        assert_eq!(phase(known.pod.as_ref().unwrap(), &known.runs), Phase::Running);
    }

    #[test]
    fn a_deleted_pod_gets_its_grace_and_leaves_nothing() {
        let deleted = json!({"metadata": {"deletionTimestamp": "now", "deletionGracePeriodSeconds": 5}});
        let mut known = Known::new(pod("Always", deleted));
        known.sandbox = Sandbox::Ready;
        known.runs.insert("a".into(), run(None));
        assert_eq!(known.next(10), Step::Terminate);
        known.terminated = Some(at(10));
        assert_eq!(known.next(11), Step::Wait(Some(at(15))));
        assert_eq!(known.next(15), Step::Kill);
        known.killed = true;
        assert_eq!(known.next(15), Step::Remove);
        known.retry = Some(at(16));
        assert_eq!(known.next(15), Step::Wait(Some(at(16))));
        known.sandbox = Sandbox::None;
        known.retry = None;
        assert_eq!(known.next(16), Step::Delete);
        known.pod = None;
        assert_eq!(known.next(16), Step::End);
    }

    #[test]
    fn stand_ins_end_at_once() {
        let mut known = Known::new(pod("Always", json!({"metadata": {"deletionTimestamp": "now"}})));
        known.sandbox = Sandbox::Ready;
        let stand_in = Program::StandIn(super::super::program::StandIn::NoCommand);
        known.runs.insert("a".into(), Run { program: stand_in, ..run(None) });
        assert_eq!(known.next(0), Step::Remove);
    }

    #[test]
    fn what_vanished_from_the_api_is_killed_without_grace() {
        let mut known = Known::new(pod("Always", json!({})));
        known.pod = None;
        known.sandbox = Sandbox::Ready;
        known.runs.insert("a".into(), run(None));
        assert_eq!(known.next(0), Step::Terminate);
        known.terminated = Some(at(0));
        assert_eq!(known.next(0), Step::Kill);
    }

    #[test]
    fn a_blocked_container_holds_up_itself_only() {
        let mut known = Known::new(pod("Always", json!({})));
        known.sandbox = Sandbox::Ready;
        let blocked = Blocked { reason: String::new(), message: String::new(), retry: at(4) };
        known.blocked.insert("a".into(), blocked);
        assert_eq!(known.next(0), Step::Start("b".into()));
        known.runs.insert("b".into(), run(None));
        assert_eq!(known.next(0), Step::Wait(Some(at(4))));
    }
}
