//! What a container runs. No image is ever pulled: a container is a part of ours, a program of the host, or a
//! stand-in that only waits.

use super::pod::{Container, Pod};
use std::path::Path;
use std::time::Duration;

/// Where programs of containers are looked for.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// First wait before a container is started again.
pub(super) const FIRST_BACK_OFF: Duration = Duration::from_secs(2);

/// Longest wait before a container is started again.
const LAST_BACK_OFF: Duration = Duration::from_secs(300);

/// A run as long as this makes the next wait a first one again.
const STEADY: Duration = Duration::from_secs(600);

/// What a container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// The node agent.
    Agent,
    /// The controllers of Calico.
    Controllers,
    /// The operator.
    Operator,
    /// A program of the host with its arguments.
    Host(Vec<String>),
    /// A process that waits, and why.
    StandIn(StandIn),
}

/// Why a container is a stand-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StandIn {
    /// The spec leaves it to the image what to run.
    NoCommand,
    /// The host has no such program.
    NoProgram(String),
}

impl Program {
    /// Whether it is one of our own parts.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, Self::Agent | Self::Controllers | Self::Operator)
    }

    /// Whether nothing but a wait stands behind it.
    pub(super) fn is_stand_in(&self) -> bool {
        matches!(self, Self::StandIn(_))
    }

    /// How long to wait before it runs again, after a wait of `last` (zero at first) and a run of `ran`.
    ///
    /// Our own parts come back soon however often they end: the node is of no use without them.
    pub(super) fn back_off(&self, last: Duration, ran: Duration) -> Duration {
        if self.is_ours() || last.is_zero() || ran >= STEADY {
            FIRST_BACK_OFF
        } else {
            last.saturating_mul(2).min(LAST_BACK_OFF)
        }
    }
}

/// What `container` of `pod` runs, its command being `command` (variables replaced). `is_runnable` says whether a
/// program can be found and executed.
pub(super) fn choose(
    pod: &Pod,
    container: &Container,
    command: Vec<String>,
    is_runnable: impl Fn(&str) -> bool,
) -> Program {
    // In other namespaces the image names are just names: a second agent would fight with the first.
    match (pod.namespace.as_str(), base_name(&container.image)) {
        ("calico-system" | "kube-system", "calico/node") if pod.host_network => return Program::Agent,
        ("calico-system" | "kube-system", "calico/kube-controllers") => return Program::Controllers,
        ("tigera-operator", "tigera/operator") => return Program::Operator,
        _ => {}
    }
    match command.first() {
        Some(program) if is_runnable(program) => Program::Host(command),
        // Arguments alone may well be meant for a program inside the image: nothing is missing then.
        Some(program) if !container.command.is_empty() => {
            Program::StandIn(StandIn::NoProgram(program.clone()))
        }
        _ => Program::StandIn(StandIn::NoCommand),
    }
}

/// An image's name without registry host, tag and digest, its last two parts.
pub(super) fn base_name(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or_default();
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let end = name.get(last..).and_then(|tail| tail.find(':')).map_or(name.len(), |colon| last + colon);
    let name = name.get(..end).unwrap_or_default();
    let start = name.rmatch_indices('/').nth(1).map_or(0, |(slash, _)| slash + 1);
    name.get(start..).unwrap_or_default()
}

/// Whether `program` is an executable file, by its path or in [`PATH`].
pub(super) fn is_runnable(program: &str) -> bool {
    let executable =
        |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    if program.contains('/') {
        return program.starts_with('/') && executable(Path::new(program));
    }
    !program.is_empty() && PATH.split(':').any(|directory| executable(&Path::new(directory).join(program)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chosen(namespace: &str, host_network: bool, image: &str, command: &[&str], args: &[&str]) -> Program {
        let pod = Pod::read(json!({
            "metadata": {"name": "p", "namespace": namespace},
            "spec": {"hostNetwork": host_network, "containers": [
                {"name": "c", "image": image, "command": command, "args": args}]},
        }));
        let words = command.iter().chain(args).map(|word| (*word).to_owned()).collect();
        choose(&pod, &pod.containers[0], words, |program| program == "sleep")
    }

    #[test]
    fn images_are_known_by_their_base_name() {
        assert_eq!(base_name("registry.example:5000/calico/node:v3.30.0@sha256:00"), "calico/node");
        assert_eq!(base_name("calico/node"), "calico/node");
        assert_eq!(base_name("localhost:5000/nginx"), "localhost:5000/nginx");
        assert_eq!(base_name("nginx:1.25"), "nginx");
        assert_eq!(base_name(""), "");
    }

    #[test]
    fn our_parts_run_only_where_calico_puts_them() {
        assert_eq!(chosen("calico-system", true, "calico/node:v3.30.0", &[], &[]), Program::Agent);
        assert_eq!(
            chosen("tigera-operator", true, "tigera/operator:v1.38.0", &["operator"], &[]),
            Program::Operator
        );
        assert!(chosen("default", true, "calico/node:v3.30.0", &[], &[]).is_stand_in());
        assert!(chosen("calico-system", false, "calico/node:v3.30.0", &[], &[]).is_stand_in());
    }

    #[test]
    fn a_program_of_the_host_runs_and_a_missing_one_is_named() {
        let sleep = Program::Host(vec!["sleep".into(), "60".into()]);
        assert_eq!(chosen("default", false, "busybox", &["sleep", "60"], &[]), sleep);
        assert_eq!(chosen("default", false, "busybox", &[], &["sleep", "60"]), sleep);
        assert_eq!(
            chosen("default", false, "busybox", &["frobnicate"], &[]),
            Program::StandIn(StandIn::NoProgram("frobnicate".into()))
        );
        assert_eq!(
            chosen("default", false, "nginx", &[], &["-g", "daemon off;"]),
            Program::StandIn(StandIn::NoCommand)
        );
    }

    #[test]
    fn waits_double_except_for_our_own_parts() {
        let host = Program::Host(vec![]);
        let seconds = Duration::from_secs;
        assert_eq!(host.back_off(seconds(0), seconds(1)), seconds(2));
        assert_eq!(host.back_off(seconds(2), seconds(1)), seconds(4));
        assert_eq!(host.back_off(seconds(300), seconds(1)), seconds(300));
        assert_eq!(host.back_off(seconds(300), seconds(600)), seconds(2));
        assert_eq!(Program::Agent.back_off(seconds(2), seconds(1)), seconds(2));
    }
}
