//! kind's cluster configuration, `kind.x-k8s.io/v1alpha4`, read strictly.

use crate::cluster::{Node, Role, host_numbers, node_addresses, node_name};
use crate::yaml::{self, Wrong};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

const API_VERSION: &str = "kind.x-k8s.io/v1alpha4";

/// Image of a node when nothing names one.
pub const DEFAULT_IMAGE: &str = "kindest/node:v1.28.0";

/// Most nodes of a lab: more do not fit on one machine anyway.
const NODE_LIMIT: usize = 100;

/// What a kind configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindConfig {
    /// Name of the cluster, when the file gives one.
    pub name: Option<String>,
    /// The nodes, in the file's order.
    pub nodes: Vec<NodeConfig>,
    /// Subnet of the pods.
    pub pod_subnet: IpNet,
    /// Subnet of the services.
    pub service_subnet: IpNet,
    /// kube-proxy's mode.
    pub kube_proxy_mode: String,
    /// Port of the API server on the host; 0 takes a free one.
    pub api_server_port: u16,
    /// What was read and has no effect here.
    pub warnings: Vec<String>,
}

/// One node of a kind configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its part.
    pub role: Role,
    /// Its image, when the file names one.
    pub image: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    kind: Option<Spanned<String>>,
    api_version: Option<Spanned<String>>,
    name: Option<Spanned<String>>,
    nodes: Option<Vec<RawNode>>,
    networking: Option<Networking>,
    feature_gates: Option<Value>,
    runtime_config: Option<Value>,
    kubeadm_config_patches: Option<Value>,
    #[serde(rename = "kubeadmConfigPatchesJSON6902")]
    kubeadm_config_patches_json6902: Option<Value>,
    containerd_config_patches: Option<Value>,
    #[serde(rename = "containerdConfigPatchesJSON6902")]
    containerd_config_patches_json6902: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawNode {
    role: Option<Spanned<String>>,
    image: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    extra_mounts: Option<Value>,
    extra_port_mappings: Option<Value>,
    kubeadm_config_patches: Option<Value>,
    #[serde(rename = "kubeadmConfigPatchesJSON6902")]
    kubeadm_config_patches_json6902: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Networking {
    ip_family: Option<Spanned<String>>,
    pod_subnet: Option<Spanned<String>>,
    service_subnet: Option<Spanned<String>>,
    #[serde(rename = "disableDefaultCNI")]
    disable_default_cni: Option<Spanned<bool>>,
    kube_proxy_mode: Option<Spanned<String>>,
    api_server_address: Option<Spanned<String>>,
    api_server_port: Option<Spanned<i32>>,
    #[serde(rename = "dnsSearch")]
    dns_search: Option<Vec<String>>,
}

impl KindConfig {
    /// One control-plane node, with the defaults.
    #[must_use]
    pub fn single_node() -> Self {
        Self {
            name: None,
            nodes: vec![NodeConfig { role: Role::ControlPlane, image: None, labels: BTreeMap::new() }],
            pod_subnet: default_subnet([10, 244]),
            service_subnet: default_subnet([10, 96]),
            kube_proxy_mode: "iptables".into(),
            api_server_port: 0,
            warnings: Vec::new(),
        }
    }

    /// The nodes of a cluster of this name; `image` wins over the images of the file.
    #[must_use]
    pub fn nodes_of(&self, cluster: &str, image: Option<&str>) -> Vec<Node> {
        let roles: Vec<Role> = self.nodes.iter().map(|node| node.role).collect();
        let numbers = host_numbers(&roles);
        let mut earlier: BTreeMap<&str, usize> = BTreeMap::new();
        let mut nodes = Vec::new();
        for (config, number) in self.nodes.iter().zip(numbers) {
            let earlier = earlier.entry(config.role.as_str()).or_default();
            let (address, address6) = node_addresses(number);
            nodes.push(Node {
                name: node_name(cluster, config.role, *earlier),
                role: config.role,
                address,
                address6,
                image: image.or(config.image.as_deref()).unwrap_or(DEFAULT_IMAGE).to_owned(),
                labels: config.labels.clone(),
            });
            *earlier += 1;
        }
        nodes
    }
}

fn default_subnet([first, second]: [u8; 2]) -> IpNet {
    IpNet::new_assert(IpAddr::from([first, second, 0, 0]), 16)
}

/// Whether kind takes this as the name of a cluster.
#[must_use]
pub fn is_cluster_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
}

/// What to say about a cluster name that kind does not take.
#[must_use]
pub fn wrong_cluster_name(name: &str) -> String {
    format!("'{name}' is not a valid cluster name, cluster names must match `^[a-z0-9.-]+$`")
}

/// Reads the configuration in `file`.
///
/// # Errors
/// With file, line, key and remedy; several are put together as `[a, b]`.
pub fn read(file: &Path) -> Result<KindConfig, Wrong> {
    parse(file, &yaml::read(file)?)
}

/// Reads a configuration from its text.
///
/// # Errors
/// As [`read`].
pub fn parse(file: &Path, text: &str) -> Result<KindConfig, Wrong> {
    let document: Document = yaml::parse(file, text)?;
    match &document.api_version {
        Some(version) if version.value == API_VERSION => {}
        Some(version) => {
            let message = format!("unknown apiVersion: {}; write apiVersion: {API_VERSION}", version.value);
            return Err(Wrong::of(file, version, message));
        }
        None => {
            return Err(Wrong::at(file, 0, format!("unknown apiVersion: ; write apiVersion: {API_VERSION}")));
        }
    }
    match &document.kind {
        Some(kind) if kind.value == "Cluster" => {}
        Some(kind) => {
            let message =
                format!("unknown kind {} for apiVersion: {API_VERSION}; write kind: Cluster", kind.value);
            return Err(Wrong::of(file, kind, message));
        }
        None => return Err(Wrong::at(file, 0, "has no kind; write kind: Cluster")),
    }
    let mut wrongs = Vec::new();
    let config = check(file, &document, &mut wrongs);
    match wrongs.len() {
        0 => Ok(config),
        1 => Err(wrongs.remove(0)),
        _ => {
            let all: Vec<String> = wrongs.iter().map(Wrong::to_string).collect();
            Err(Wrong { place: "invalid configuration".into(), message: format!("[{}]", all.join(", ")) })
        }
    }
}

fn check(file: &Path, document: &Document, wrongs: &mut Vec<Wrong>) -> KindConfig {
    let mut config = KindConfig::single_node();
    if let Some(name) = &document.name {
        if !is_cluster_name(&name.value) {
            wrongs.push(Wrong::of(file, name, wrong_cluster_name(&name.value)));
        }
        config.name = Some(name.value.clone());
    }
    if let Some(networking) = &document.networking {
        check_networking(file, networking, &mut config, wrongs);
    }
    let disabled =
        document.networking.as_ref().and_then(|networking| networking.disable_default_cni.as_ref());
    if !disabled.is_some_and(|disabled| disabled.value) {
        let line = disabled.map_or(0, |disabled| disabled.referenced.line());
        let message =
            "networking.disableDefaultCNI: there is no default CNI here; set disableDefaultCNI: true";
        wrongs.push(Wrong::at(file, line, message));
    }
    if let Some(nodes) = &document.nodes {
        config.nodes.clear();
        for node in nodes {
            check_node(file, node, &mut config, wrongs);
        }
        check_roles(file, document, &config, wrongs);
    }
    let ignored = [
        ("featureGates", document.feature_gates.is_some()),
        ("runtimeConfig", document.runtime_config.is_some()),
        ("kubeadmConfigPatches", document.kubeadm_config_patches.is_some()),
        ("kubeadmConfigPatchesJSON6902", document.kubeadm_config_patches_json6902.is_some()),
        ("containerdConfigPatches", document.containerd_config_patches.is_some()),
        ("containerdConfigPatchesJSON6902", document.containerd_config_patches_json6902.is_some()),
    ];
    config.warnings.extend(
        ignored.iter().filter(|(_, given)| *given).map(|(key, _)| format!("{key} has no effect here")),
    );
    config
}

fn check_roles(file: &Path, document: &Document, config: &KindConfig, wrongs: &mut Vec<Wrong>) {
    let planes = config.nodes.iter().filter(|node| node.role == Role::ControlPlane).count();
    let mut second = document
        .nodes
        .iter()
        .flatten()
        .filter_map(|node| node.role.as_ref())
        .filter(|role| role.value == "control-plane");
    if planes == 0 {
        let message = "nodes: must have at least one control-plane node; add - role: control-plane";
        let first = document.nodes.iter().flatten().find_map(|node| node.role.as_ref());
        wrongs.push(Wrong::at(file, first.map_or(0, |role| role.referenced.line()), message));
    } else if planes > 1 {
        let line = second.next_back().map_or(0, |role| role.referenced.line());
        let message =
            "nodes: more than one control-plane node is not supported; make the others role: worker";
        wrongs.push(Wrong::at(file, line, message));
    }
    if config.nodes.len() > NODE_LIMIT {
        wrongs.push(Wrong::at(file, 0, format!("nodes: at most {NODE_LIMIT} nodes fit into a lab")));
    }
}

fn check_node(file: &Path, node: &RawNode, config: &mut KindConfig, wrongs: &mut Vec<Wrong>) {
    let role = match node.role.as_ref().map(|role| role.value.as_str()) {
        None | Some("" | "control-plane") => Role::ControlPlane,
        Some("worker") => Role::Worker,
        Some(other) => {
            let message = format!("nodes: {other:?} is not a valid node role; write control-plane or worker");
            let line = node.role.as_ref().map_or(0, |role| role.referenced.line());
            wrongs.push(Wrong::at(file, line, message));
            Role::Worker
        }
    };
    let ignored = [
        ("extraMounts", node.extra_mounts.is_some()),
        ("extraPortMappings", node.extra_port_mappings.is_some()),
        ("kubeadmConfigPatches", node.kubeadm_config_patches.is_some()),
        ("kubeadmConfigPatchesJSON6902", node.kubeadm_config_patches_json6902.is_some()),
    ];
    for (key, _) in ignored.iter().filter(|(_, given)| *given) {
        let warning = format!("nodes: {key} has no effect here");
        if !config.warnings.contains(&warning) {
            config.warnings.push(warning);
        }
    }
    config.nodes.push(NodeConfig {
        role,
        image: node.image.clone().filter(|image| !image.is_empty()),
        labels: node.labels.clone().unwrap_or_default(),
    });
}

fn check_networking(file: &Path, networking: &Networking, config: &mut KindConfig, wrongs: &mut Vec<Wrong>) {
    if let Some(family) = &networking.ip_family {
        match family.value.as_str() {
            "ipv4" | "" => {}
            "ipv6" | "dual" => {
                let message =
                    format!("networking.ipFamily: {} is not supported yet; write ipv4", family.value);
                wrongs.push(Wrong::of(file, family, message));
            }
            other => wrongs.push(Wrong::of(file, family, format!("invalid ipFamily: {other}; write ipv4"))),
        }
    }
    let mut subnet = |what: &str, given: &Option<Spanned<String>>, target: &mut IpNet| {
        let Some(given) = given else { return };
        match given.value.parse::<IpNet>() {
            Ok(subnet) if subnet.addr().is_ipv4() => *target = subnet.trunc(),
            Ok(_) => {
                let message = format!("invalid {what} {}: write one IPv4 subnet", given.value);
                wrongs.push(Wrong::of(file, given, message));
            }
            Err(error) => {
                let message = format!(
                    "invalid {what} failed to parse cidr value:{:?} with error: {error}; write one like 10.244.0.0/16",
                    given.value
                );
                wrongs.push(Wrong::of(file, given, message));
            }
        }
    };
    subnet("pod subnet", &networking.pod_subnet, &mut config.pod_subnet);
    subnet("service subnet", &networking.service_subnet, &mut config.service_subnet);
    let (pods, services) = (config.pod_subnet, config.service_subnet);
    if pods.contains(&services) || services.contains(&pods) {
        let line = networking.pod_subnet.as_ref().map_or(0, |subnet| subnet.referenced.line());
        let message = format!(
            "networking.podSubnet: {pods} overlaps the service subnet {services}; choose another podSubnet or \
             serviceSubnet"
        );
        wrongs.push(Wrong::at(file, line, message));
    }
    let nodes = node_addresses(0).0.trunc();
    for (what, given, subnet) in
        [("podSubnet", &networking.pod_subnet, pods), ("serviceSubnet", &networking.service_subnet, services)]
    {
        if subnet.contains(&nodes) || nodes.contains(&subnet) {
            let line = given.as_ref().map_or(0, |subnet| subnet.referenced.line());
            let message =
                format!("networking.{what}: {subnet} overlaps the nodes' network {nodes}; choose another");
            wrongs.push(Wrong::at(file, line, message));
        }
    }
    if let Some(mode) = &networking.kube_proxy_mode {
        match mode.value.as_str() {
            "iptables" | "ipvs" | "nftables" | "none" => config.kube_proxy_mode.clone_from(&mode.value),
            other => {
                let message =
                    format!("invalid kubeProxyMode: {other}; write iptables, ipvs, nftables or none");
                wrongs.push(Wrong::of(file, mode, message));
            }
        }
    }
    if let Some(address) = &networking.api_server_address {
        let loopback = address.value.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if address.value != "127.0.0.1" {
            let message = if loopback {
                "networking.apiServerAddress: only 127.0.0.1 is supported"
            } else {
                "networking.apiServerAddress: the lab listens on the loopback only; write 127.0.0.1 or leave it out"
            };
            wrongs.push(Wrong::of(file, address, message));
        }
    }
    if let Some(port) = &networking.api_server_port {
        match u16::try_from(port.value.max(0)) {
            Ok(number) if port.value >= -1 => config.api_server_port = number,
            _ => {
                let message = format!(
                    "invalid apiServerPort: {}; write a number from 0 (a free port) to 65535",
                    port.value
                );
                wrongs.push(Wrong::of(file, port, message));
            }
        }
    }
    if networking.dns_search.is_some() {
        config.warnings.push("networking.dnsSearch has no effect here".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LESSON: &str = "\
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  disableDefaultCNI: true
  podSubnet: 192.168.0.0/16
  serviceSubnet: 10.96.0.0/16
nodes:
- role: control-plane
- role: worker
- role: worker
";

    fn wrong(from: &str, to: &str) -> String {
        parse(Path::new("k.yaml"), &LESSON.replace(from, to)).unwrap_err().to_string()
    }

    #[test]
    fn the_lessons_cluster_has_the_lessons_nodes() {
        let config = parse(Path::new("k.yaml"), LESSON).unwrap();
        assert_eq!(config.pod_subnet.to_string(), "192.168.0.0/16");
        let nodes = config.nodes_of("calico-ipam", Some("kindest/node:v1.28.0"));
        let shown: Vec<String> = nodes.iter().map(|node| format!("{} {}", node.name, node.address)).collect();
        assert_eq!(
            shown,
            [
                "calico-ipam-control-plane 172.18.0.3/16",
                "calico-ipam-worker 172.18.0.2/16",
                "calico-ipam-worker2 172.18.0.4/16"
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_a_remedy() {
        let text = wrong("podSubnet:", "podSubnets:");
        assert!(text.starts_with("k.yaml:5: unknown field `podSubnets`"), "{text}");
        assert!(text.contains("podSubnet"), "{text}");
        assert_eq!(
            wrong("v1alpha4", "v1beta1"),
            "k.yaml:2: unknown apiVersion: kind.x-k8s.io/v1beta1; write apiVersion: kind.x-k8s.io/v1alpha4"
        );
        assert!(wrong("kind: Cluster", "kind: Klaster").starts_with("k.yaml:1: unknown kind Klaster"));
        assert!(
            wrong("192.168.0.0/16", "192.168.0.0").contains("k.yaml:5: invalid pod subnet failed to parse")
        );
        assert!(wrong("192.168.0.0/16", "10.96.0.0/12").contains("overlaps the service subnet"));
        assert_eq!(
            wrong("192.168.0.0/16", "172.18.0.0/20"),
            "k.yaml:5: networking.podSubnet: 172.18.0.0/20 overlaps the nodes' network 172.18.0.0/16; choose another"
        );
        assert!(
            wrong("disableDefaultCNI: true", "disableDefaultCNI: false")
                .contains("set disableDefaultCNI: true")
        );
        assert!(wrong("- role: control-plane\n", "").contains("must have at least one control-plane node"));
        assert!(
            wrong("- role: worker\n- role: worker", "- role: master")
                .contains("\"master\" is not a valid node role")
        );
        let two = wrong("10.96.0.0/16\n", "x\n  kubeProxyMode: magic\n");
        assert!(two.starts_with("invalid configuration: [k.yaml:6: invalid service subnet"), "{two}");
        assert!(two.contains("k.yaml:7: invalid kubeProxyMode: magic"), "{two}");
    }
}
