//! The workloads that the operator keeps: what runs where, as objects (lab §6.2).

use crate::object::{DAEMON_SET, DEPLOYMENT, Kind, Name};
use serde_json::{Value, json};

/// Version of Calico that the images name.
pub(crate) const CALICO_VERSION: &str = "v3.30.0";

/// Namespace of nodes, typha and controllers.
pub(super) const SYSTEM: &str = "calico-system";

/// Namespace of the API server's pods.
pub(super) const API: &str = "calico-apiserver";

/// What the TigeraStatus `calico` is judged by.
pub(super) fn calico_workloads() -> [(Kind, Name, &'static str); 2] {
    [
        (DAEMON_SET, Name::within(SYSTEM, "calico-node"), "calico-node"),
        (DEPLOYMENT, Name::within(SYSTEM, "calico-kube-controllers"), "calico-kube-controllers"),
    ]
}

/// What the TigeraStatus `apiserver` is judged by.
pub(super) fn api_server_workloads() -> [(Kind, Name, &'static str); 1] {
    [(DEPLOYMENT, Name::within(API, "calico-apiserver"), "calico-apiserver")]
}

/// A namespace in which pods may do everything.
pub(super) fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"name": name, "pod-security.kubernetes.io/enforce": "privileged"}},
    })
}

/// Everything that an Installation runs, in a cluster of `nodes` nodes.
pub(super) fn of_installation(owner: &Value, nodes: usize) -> Vec<(Kind, Value)> {
    vec![
        (DAEMON_SET, calico_node(owner)),
        (DAEMON_SET, csi_node_driver(owner)),
        (DEPLOYMENT, typha(owner, nodes)),
        (DEPLOYMENT, kube_controllers(owner)),
    ]
}

/// What an APIServer resource runs.
///
/// Its pods share the nodes' network: the API they stand for is served by the cluster's own API server, and an address
/// of a pool would be counted for nobody.
pub(super) fn of_api_server(owner: &Value) -> Vec<(Kind, Value)> {
    let mut spec = control_plane_pod();
    spec["hostNetwork"] = json!(true);
    spec["containers"] = json!([container("calico-apiserver", "apiserver")]);
    spec["affinity"] = apart("calico-apiserver");
    vec![(DEPLOYMENT, workload(DEPLOYMENT, Name::within(API, "calico-apiserver"), owner, spec, Some(2)))]
}

fn calico_node(owner: &Value) -> Value {
    let mut node = container("calico-node", "node");
    node["env"] = json!([
        {"name": "DATASTORE_TYPE", "value": "kubernetes"},
        {"name": "NODENAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "FELIX_DEFAULTENDPOINTTOHOSTACTION", "value": "ACCEPT"},
        {"name": "FELIX_HEALTHENABLED", "value": "true"},
    ]);
    node["securityContext"] = json!({"privileged": true});
    let spec = json!({
        "hostNetwork": true,
        "priorityClassName": "system-node-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": every_toleration(),
        "terminationGracePeriodSeconds": 5,
        "initContainers": [container("flexvol-driver", "pod2daemon-flexvol"), container("install-cni", "cni")],
        "containers": [node],
    });
    workload(DAEMON_SET, Name::within(SYSTEM, "calico-node"), owner, spec, None)
}

fn csi_node_driver(owner: &Value) -> Value {
    let spec = json!({
        "priorityClassName": "system-node-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": every_toleration(),
        "containers": [container("calico-csi", "csi"), container("csi-node-driver-registrar", "node-driver-registrar")],
    });
    workload(DAEMON_SET, Name::within(SYSTEM, "csi-node-driver"), owner, spec, None)
}

fn typha(owner: &Value, nodes: usize) -> Value {
    let replicas = match nodes {
        0..=2 => 1,
        3..=4 => 2,
        _ => 3,
    };
    let spec = json!({
        "hostNetwork": true,
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": every_toleration(),
        "affinity": apart("calico-typha"),
        "containers": [container("calico-typha", "typha")],
    });
    workload(DEPLOYMENT, Name::within(SYSTEM, "calico-typha"), owner, spec, Some(replicas))
}

fn kube_controllers(owner: &Value) -> Value {
    let mut container = container("calico-kube-controllers", "kube-controllers");
    container["env"] = json!([
        {"name": "DATASTORE_TYPE", "value": "kubernetes"},
        {"name": "ENABLED_CONTROLLERS", "value": "node,loadbalancer"},
    ]);
    let mut spec = control_plane_pod();
    spec["priorityClassName"] = json!("system-cluster-critical");
    spec["containers"] = json!([container]);
    workload(DEPLOYMENT, Name::within(SYSTEM, "calico-kube-controllers"), owner, spec, Some(1))
}

fn container(name: &str, image: &str) -> Value {
    json!({"name": name, "image": format!("calico/{image}:{CALICO_VERSION}"), "imagePullPolicy": "IfNotPresent"})
}

/// A pod that may run on the control plane.
fn control_plane_pod() -> Value {
    json!({
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [
            {"key": "CriticalAddonsOnly", "operator": "Exists"},
            {"key": "node-role.kubernetes.io/master", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"},
        ],
    })
}

fn every_toleration() -> Value {
    json!([
        {"key": "CriticalAddonsOnly", "operator": "Exists"},
        {"effect": "NoSchedule", "operator": "Exists"},
        {"effect": "NoExecute", "operator": "Exists"},
    ])
}

/// Replicas on different nodes where there are enough.
fn apart(app: &str) -> Value {
    json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
        "weight": 1,
        "podAffinityTerm": {"labelSelector": {"matchLabels": {"k8s-app": app}}, "topologyKey": "kubernetes.io/hostname"},
    }]}})
}

/// The object around a pod's `spec`; `owner` takes it along when it is deleted.
fn workload(kind: Kind, name: Name, owner: &Value, spec: Value, replicas: Option<u32>) -> Value {
    let labels = json!({"k8s-app": name.name, "app.kubernetes.io/name": name.name});
    let mut object = json!({
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {"namespace": name.namespace, "name": name.name, "labels": labels, "ownerReferences": [owner]},
        "spec": {
            "selector": {"matchLabels": {"k8s-app": name.name}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    });
    if let Some(replicas) = replicas {
        object["spec"]["replicas"] = json!(replicas);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{items, text};

    #[test]
    fn only_csi_and_controllers_take_addresses_of_the_pools() {
        let owner = json!({});
        let all = of_installation(&owner, 3).into_iter().chain(of_api_server(&owner));
        let in_pod_network: Vec<String> = all
            .filter(|(_, object)| object.pointer("/spec/template/spec/hostNetwork").is_none())
            .map(|(_, object)| text(&object, "/metadata/name").to_owned())
            .collect();
        assert_eq!(in_pod_network, ["csi-node-driver", "calico-kube-controllers"]);
    }

    #[test]
    fn containers_of_a_node_pod_are_named_as_the_lesson_shows_them() {
        let node = calico_node(&json!({}));
        let names = |pointer| -> Vec<&str> {
            items(&node, pointer).iter().map(|entry| text(entry, "/name")).collect()
        };
        assert_eq!(names("/spec/template/spec/containers"), ["calico-node"]);
        assert_eq!(names("/spec/template/spec/initContainers"), ["flexvol-driver", "install-cni"]);
        assert_eq!(text(&node, "/spec/template/spec/containers/0/image"), "calico/node:v3.30.0");
    }

    #[test]
    fn typha_grows_with_the_cluster() {
        for (nodes, replicas) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)] {
            assert_eq!(typha(&json!({}), nodes)["spec"]["replicas"], replicas);
        }
    }
}
