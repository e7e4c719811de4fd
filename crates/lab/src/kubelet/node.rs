//! What a node reports about itself.

use super::agent::State;
use super::pod::{items, text};
use super::status::clock;
use crate::cluster::{Cluster, Node, Role};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What the machine is.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    pub cpus: usize,
    pub memory_kib: u64,
    pub disk_kib: u64,
    pub kernel: String,
    pub boot_id: String,
}

impl Machine {
    /// Reads the machine that this runs on.
    pub(super) fn read(directory: &std::path::Path) -> Self {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let disk = rustix::fs::statvfs(directory);
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_kib: memory
                .and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok())
                .unwrap_or_default(),
            disk_kib: disk.map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize) / 1024),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }
    }
}

/// The Node object that a kubelet registers.
pub(super) fn object(
    cluster: &Cluster,
    node: &Node,
    machine: &Machine,
    state: &State,
    now: Timestamp,
) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut labels = json!({
        "beta.kubernetes.io/arch": architecture,
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
    });
    let mut taints = vec![json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"})];
    if node.role == Role::ControlPlane {
        labels["node-role.kubernetes.io/control-plane"] = json!("");
        labels["node.kubernetes.io/exclude-from-external-load-balancers"] = json!("");
        if cluster.nodes.len() > 1 {
            taints.push(json!({"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}));
        }
    }
    for (key, value) in &node.labels {
        labels[key] = json!(value);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": labels,
            "annotations": {
                "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///run/containerd/containerd.sock",
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
        },
        "spec": {"providerID": format!("kind://docker/{}/{}", cluster.name, node.name), "taints": taints},
        "status": status(cluster, node, machine, architecture, state, now),
    })
}

fn status(
    cluster: &Cluster,
    node: &Node,
    machine: &Machine,
    architecture: &str,
    state: &State,
    now: Timestamp,
) -> Value {
    let resources = json!({
        "cpu": machine.cpus.to_string(),
        "ephemeral-storage": format!("{}Ki", machine.disk_kib),
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
        "memory": format!("{}Ki", machine.memory_kib),
        "pods": "110",
    });
    let id: String = Sha256::digest(format!("{}/{}", cluster.name, node.name))
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let (os, runtime) = system(&cluster.version);
    json!({
        "addresses": [
            {"type": "InternalIP", "address": node.address.addr().to_string()},
            {"type": "Hostname", "address": node.name},
        ],
        "capacity": resources,
        "allocatable": resources,
        "conditions": conditions(&Value::Null, state, now),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "architecture": architecture,
            "bootID": machine.boot_id,
            "containerRuntimeVersion": runtime,
            "kernelVersion": machine.kernel,
            "kubeProxyVersion": cluster.version,
            "kubeletVersion": cluster.version,
            "machineID": id,
            "operatingSystem": "linux",
            "osImage": os,
            "systemUUID": uuid::Uuid::parse_str(&id).map(|uuid| uuid.to_string()).unwrap_or_default(),
        },
    })
}

/// Operating system and container runtime of a node image of this version.
fn system(version: &str) -> (&'static str, &'static str) {
    let minor: u32 = version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or_default();
    match (minor, version) {
        (..28, _) | (28, "v1.28.0") => ("Debian GNU/Linux 11 (bullseye)", "containerd://1.7.1"),
        (28..32, _) => ("Debian GNU/Linux 12 (bookworm)", "containerd://1.7.18"),
        _ => ("Debian GNU/Linux 12 (bookworm)", "containerd://2.0.2"),
    }
}

/// The node's conditions in the order that kind relies on (Ready last), those of others first and as they are.
pub(super) fn conditions(node: &Value, state: &State, now: Timestamp) -> Vec<Value> {
    let told = items(node, "/status/conditions");
    let ours: [(&str, &str, &str, String); 4] = [
        (
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available".into(),
        ),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure".into()),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available".into()),
        ready(state),
    ];
    let mut conditions: Vec<Value> = told
        .iter()
        .filter(|told| !ours.iter().any(|(kind, ..)| text(told, "/type") == *kind))
        .cloned()
        .collect();
    for (kind, status, reason, message) in ours {
        let since = told
            .iter()
            .find(|told| text(told, "/type") == kind && text(told, "/status") == status)
            .map_or_else(|| clock(now), |told| text(told, "/lastTransitionTime").to_owned());
        conditions.push(json!({
            "type": kind,
            "status": status,
            "lastHeartbeatTime": clock(now),
            "lastTransitionTime": since,
            "reason": reason,
            "message": message,
        }));
    }
    conditions
}

fn ready(state: &State) -> (&'static str, &'static str, &'static str, String) {
    if state.is_ready() {
        return ("Ready", "True", "KubeletReady", "kubelet is posting ready status".into());
    }
    let cause = if state.network.is_none() {
        "Network plugin returns error: cni plugin not initialized"
    } else {
        "the node's Calico agent does not answer"
    };
    let message = format!(
        "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{cause}"
    );
    ("Ready", "False", "KubeletNotReady", message)
}

/// Whether what the API has says the same as `conditions`, the time of the heartbeat apart.
pub(super) fn is_told(node: &Value, conditions: &[Value]) -> bool {
    let essence = |condition: &Value| {
        ["/type", "/status", "/reason", "/message"].map(|key| text(condition, key).to_owned())
    };
    items(node, "/status/conditions").iter().map(essence).eq(conditions.iter().map(essence))
}

#[cfg(test)]
mod tests {
    use super::super::cni::Network;
    use super::*;
    use std::sync::Arc;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn serving() -> State {
        let network = Network { name: "n".into(), version: "1.0.0".into(), plugins: vec![] };
        State { agent_ready: true, serving: true, network: Some(Arc::new(network)) }
    }

    fn kinds(conditions: &[Value]) -> Vec<&str> {
        conditions.iter().map(|condition| text(condition, "/type")).collect()
    }

    #[test]
    fn ready_is_last_and_follows_the_agent() {
        let before = conditions(&Value::Null, &State::default(), at(1));
        assert_eq!(kinds(&before), ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]);
        assert!(text(&before[3], "/message").ends_with("cni plugin not initialized"));
        let mut told = before.clone();
        told.push(json!({"type": "NetworkUnavailable", "status": "False"}));
        let node = json!({"status": {"conditions": told}});
        let after = conditions(&node, &serving(), at(5));
        assert_eq!(
            kinds(&after),
            ["NetworkUnavailable", "MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
        );
        assert_eq!(text(&after[4], "/lastTransitionTime"), clock(at(5)));
        assert_eq!(text(&after[1], "/lastTransitionTime"), clock(at(1)));
        assert!(!is_told(&node, &after));
        let node = json!({"status": {"conditions": after}});
        assert!(is_told(&node, &conditions(&node, &serving(), at(9))));
        let dead = State { serving: false, ..serving() };
        assert!(text(&conditions(&node, &dead, at(9))[4], "/message").ends_with("agent does not answer"));
    }

    #[test]
    fn the_image_tells_the_system() {
        assert_eq!(system("v1.28.0"), ("Debian GNU/Linux 11 (bullseye)", "containerd://1.7.1"));
        assert_eq!(system("v1.27.3").0, "Debian GNU/Linux 11 (bullseye)");
        assert_eq!(system("v1.28.9").0, "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(system("v1.33.1").1, "containerd://2.0.2");
    }
}
