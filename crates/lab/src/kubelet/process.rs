//! A container's process, as the holder is asked for it, and the notes by which a later kubelet knows it again.

use super::plan::Run;
use super::pod::{Container, Pod};
use super::program::{Program, StandIn};
use super::shared::Shared;
use crate::holder::{ProcessSpec, ProcessState};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Notes that are kept with a process, for the kubelet that adopts it.
pub(super) const CONTAINER_ID: &str = "container";
const RESTARTS: &str = "restarts";
const PROGRAM: &str = "program";
const WAITED: &str = "waited";

/// What the holder is asked to start for `run`.
pub(super) fn spec(
    shared: &Shared,
    pod: &Pod,
    container: &Container,
    run: &Run,
    env: BTreeMap<String, String>,
    log: PathBuf,
) -> ProcessSpec {
    let node = &shared.node.name;
    let tortie = |arguments: &[&str]| -> Vec<String> {
        let program = shared.cluster.program.display().to_string();
        std::iter::once(program).chain(arguments.iter().map(|word| (*word).to_owned())).collect()
    };
    let kubeconfig = |component: &str| shared.cluster.kubeconfig_of(component).display().to_string();
    let mut listeners = Vec::new();
    let (kind, argv) = match &run.program {
        Program::Agent => {
            listeners.push(shared.agent_listener());
            let argv = tortie(&[
                "node",
                "--node-name",
                node,
                "--kubeconfig",
                &kubeconfig(&format!("node-{node}")),
                "--cni-conf-dir",
                &shared.cluster.cni_directory(node).display().to_string(),
                "--cni-plugin-socket",
                &shared.agent_socket().display().to_string(),
                "--state-dir",
                &shared.cluster.state_directory(node).display().to_string(),
            ]);
            ("agent", argv)
        }
        Program::Controllers => {
            ("controllers", tortie(&["controllers", "--kubeconfig", &kubeconfig("controllers")]))
        }
        Program::Operator => {
            let network = shared.node.address.trunc().to_string();
            let arguments = ["operator", "--kubeconfig", &kubeconfig("operator"), "--node-network", &network];
            ("operator", tortie(&arguments))
        }
        Program::Host(command) => ("host", command.clone()),
        Program::StandIn(_) => {
            ("stand-in", vec![shared.programs().join("tortie-pause").display().to_string()])
        }
    };
    let labels = [
        (CONTAINER_ID, run.container_id.clone()),
        (RESTARTS, run.restarts.to_string()),
        (PROGRAM, kind.to_owned()),
        (WAITED, run.waited.as_secs().to_string()),
    ];
    ProcessSpec {
        id: shared.process(&pod.uid, &container.name),
        argv,
        env,
        cwd: container.working_dir.as_ref().map(PathBuf::from),
        namespaces: Some(pod.namespaces()),
        network_only: run.program.is_ours(),
        listeners,
        stdout: Some(log.clone()),
        stderr: Some(log),
        labels: labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}

/// The run that a process of an earlier kubelet is.
pub(super) fn adopted(shared: &Shared, state: &ProcessState) -> Option<(String, Run)> {
    let (_, name) = state.id.strip_prefix(&shared.processes())?.split_once('/')?;
    let label = |key: &str| state.labels.get(key).map(String::as_str).unwrap_or_default();
    let program = match label(PROGRAM) {
        "agent" => {
            shared.agent_running.send_replace(state.is_running());
            Program::Agent
        }
        "controllers" => Program::Controllers,
        "operator" => Program::Operator,
        "host" => Program::Host(Vec::new()),
        _ => Program::StandIn(StandIn::NoCommand),
    };
    let run = Run {
        container_id: label(CONTAINER_ID).to_owned(),
        program,
        restarts: label(RESTARTS).parse().unwrap_or_default(),
        started: state.started,
        ended: None,
        last: None,
        waited: Duration::from_secs(label(WAITED).parse().unwrap_or_default()),
        back_off: Duration::ZERO,
    };
    Some((name.to_owned(), run))
}
