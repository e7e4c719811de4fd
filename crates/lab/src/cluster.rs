//! The cluster that a lab consists of: what its parts must know, and the file `lab.json` that tells them.

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Name of the lab's description in the lab directory.
pub const FILE: &str = "lab.json";

/// Port of the API server on the control plane's address.
pub const API_PORT: u16 = 6443;

/// Name of the namespace set with the bridge between the nodes.
pub const UNDERLAY: &str = "underlay";

/// Name of that bridge.
pub const BRIDGE: &str = "br-kind";

/// Version that an image tag without one stands for.
const DEFAULT_VERSION: &str = "v1.28.0";

/// A node's part in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Runs the control plane.
    #[default]
    ControlPlane,
    /// Runs workloads only.
    Worker,
}

impl Role {
    /// As it stands in node names and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::Worker => "worker",
        }
    }
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Name of the Node object, and hostname.
    pub name: String,
    /// Its part.
    pub role: Role,
    /// Address of `eth0` on the lab's network, with the network's prefix length: 172.18.0.3/16.
    pub address: IpNet,
    /// The same for IPv6.
    pub address6: IpNet,
    /// Image as the configuration names it: kindest/node:v1.28.0.
    pub image: String,
    /// Labels that the configuration gives it.
    pub labels: BTreeMap<String, String>,
}

impl Node {
    /// Name of the node's namespace set with the holder.
    #[must_use]
    pub fn namespaces(&self) -> String {
        format!("node/{}", self.name)
    }
}

/// A lab with its one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Name of the lab, from the topology.
    pub lab: String,
    /// Name of the cluster: the topology's node. What kind knows it by.
    pub name: String,
    /// The topology file, absolute.
    pub topology: PathBuf,
    /// The lab directory, absolute: state, keys, sockets, logs.
    pub directory: PathBuf,
    /// The tortie program; the CNI plugins stand beside it.
    pub program: PathBuf,
    /// Kubernetes version that everything reports: v1.28.0.
    pub version: String,
    /// Nodes in the order of the configuration.
    pub nodes: Vec<Node>,
    /// Subnet of the pods.
    pub pod_subnet: IpNet,
    /// Subnet of the services.
    pub service_subnet: IpNet,
    /// kube-proxy's mode, as it stands in its configuration.
    pub kube_proxy_mode: String,
    /// Where the API server listens on the host; port 0 until it does.
    pub api_server: SocketAddr,
    /// The file that the cluster's entry was merged into for the user's kubectl.
    pub kubeconfig: Option<PathBuf>,
    /// Who deployed it, for the tables.
    pub owner: String,
    /// When it was deployed.
    pub created: jiff::Timestamp,
}

impl Cluster {
    /// Reads a lab's description.
    ///
    /// # Errors
    /// When there is none or it is not readable.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes the description into the lab directory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("describing the lab")?;
        crate::private_file::write(&self.directory.join(FILE), &text)
    }

    /// The node that the control plane runs on.
    #[must_use]
    pub fn control_plane(&self) -> Option<&Node> {
        self.nodes.iter().find(|node| node.role == Role::ControlPlane)
    }

    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Where the API server is reached from inside the lab: `https://172.18.0.3:6443`.
    #[must_use]
    pub fn internal_server(&self) -> String {
        let address =
            self.control_plane().map_or_else(|| Ipv4Addr::LOCALHOST.into(), |node| node.address.addr());
        format!("https://{address}:{API_PORT}")
    }

    /// Name of cluster, user and context in kubeconfig files.
    #[must_use]
    pub fn context(&self) -> String {
        format!("kind-{}", self.name)
    }

    /// Address `number` of the service subnet: 1 is the API server, 10 the name service.
    #[must_use]
    pub fn service_address(&self, number: u8) -> IpAddr {
        match self.service_subnet.network() {
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first).wrapping_add(number.into())).into(),
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).wrapping_add(number.into())).into(),
        }
    }

    /// A node's own files: `nodes/<node>` in the lab directory.
    #[must_use]
    pub fn node_directory(&self, node: &str) -> PathBuf {
        self.directory.join("nodes").join(node)
    }

    /// Where a node's CNI configuration belongs.
    #[must_use]
    pub fn cni_directory(&self, node: &str) -> PathBuf {
        self.node_directory(node).join("cni").join("net.d")
    }

    /// Where a node's agent keeps what it owes the datastore.
    #[must_use]
    pub fn state_directory(&self, node: &str) -> PathBuf {
        self.node_directory(node).join("state")
    }

    /// The kubeconfig of a component, `admin`, `kubelet-<node>`, `node-<node>`, `controllers`, `operator` or
    /// `controller-manager`.
    #[must_use]
    pub fn kubeconfig_of(&self, component: &str) -> PathBuf {
        self.directory.join("kubeconfig").join(format!("{component}.kubeconfig"))
    }

    /// Where the log of one of the lab's own processes goes.
    #[must_use]
    pub fn log(&self, component: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{component}.log"))
    }

    /// Contents of a node's or a host-network pod's `/etc/hosts`.
    #[must_use]
    pub fn hosts_file(&self) -> String {
        let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        for node in &self.nodes {
            text.push_str(&format!("{}\t{}\n", node.address.addr(), node.name));
        }
        text
    }

    /// Contents of a pod's `/etc/resolv.conf`.
    #[must_use]
    pub fn pod_resolv_conf(&self, namespace: &str) -> String {
        format!(
            "search {namespace}.svc.cluster.local svc.cluster.local cluster.local\nnameserver {}\noptions ndots:5\n",
            self.service_address(10)
        )
    }
}

/// Names, as kind gives them: the role, and for the second and later nodes of a role its number.
#[must_use]
pub fn node_name(cluster: &str, role: Role, earlier: usize) -> String {
    match earlier {
        0 => format!("{cluster}-{}", role.as_str()),
        earlier => format!("{cluster}-{}{}", role.as_str(), earlier + 1),
    }
}

/// The last numbers of the nodes' addresses, which every published run of the lesson has: the first worker 2, the
/// control plane 3, further workers 4, 5, … A control plane alone has 2.
#[must_use]
pub fn host_numbers(roles: &[Role]) -> Vec<u16> {
    let first_worker = roles.iter().position(|role| *role == Role::Worker);
    let mut next = if first_worker.is_some() { 3 } else { 2 };
    let mut take = || {
        next += 1;
        next - 1
    };
    // The control plane takes its number first, wherever it stands.
    let mut numbers = vec![0; roles.len()];
    for wanted in [Role::ControlPlane, Role::Worker] {
        for (index, role) in roles.iter().enumerate().filter(|(_, role)| **role == wanted) {
            debug_assert_eq!(*role, wanted);
            if let Some(number) = numbers.get_mut(index) {
                *number = if Some(index) == first_worker { 2 } else { take() };
            }
        }
    }
    numbers
}

/// The addresses of a node with this number on the lab's network.
#[must_use]
pub fn node_addresses(number: u16) -> (IpNet, IpNet) {
    let [high, low] = number.to_be_bytes();
    let address = Ipv4Addr::new(172, 18, high, low);
    let address6 = Ipv6Addr::new(0xfc00, 0xf853, 0xccd, 0xe793, 0, 0, 0, number);
    (IpNet::new_assert(address.into(), 16), IpNet::new_assert(address6.into(), 64))
}

/// The version in an image's tag, and whether there was one: kindest/node:v1.28.0@sha256:… is v1.28.0.
#[must_use]
pub fn image_version(image: &str) -> (String, bool) {
    let name = image.split('@').next().unwrap_or_default();
    let tag = name.rsplit('/').next().unwrap_or_default().split_once(':').map_or("", |(_, tag)| tag);
    let numbers: Vec<&str> = tag.trim_start_matches('v').split('.').collect();
    let is_version = tag.starts_with('v')
        && numbers.len() == 3
        && numbers
            .iter()
            .all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    if is_version { (tag.to_owned(), true) } else { (DEFAULT_VERSION.to_owned(), false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_and_numbered_as_in_the_lesson() {
        let roles = [Role::ControlPlane, Role::Worker, Role::Worker, Role::Worker];
        assert_eq!(host_numbers(&roles), [3, 2, 4, 5]);
        assert_eq!(host_numbers(&[Role::Worker, Role::Worker, Role::ControlPlane]), [2, 4, 3]);
        assert_eq!(host_numbers(&[Role::ControlPlane]), [2]);
        assert_eq!(node_name("c", Role::Worker, 0), "c-worker");
        assert_eq!(node_name("c", Role::Worker, 1), "c-worker2");
        let (address, address6) = node_addresses(300);
        assert_eq!(address.to_string(), "172.18.1.44/16");
        assert_eq!(address6.to_string(), "fc00:f853:ccd:e793::12c/64");
    }

    #[test]
    fn the_version_is_the_tag_of_the_image() {
        assert_eq!(image_version("kindest/node:v1.28.0"), ("v1.28.0".into(), true));
        assert_eq!(image_version("registry:5000/kindest/node:v1.33.1@sha256:00"), ("v1.33.1".into(), true));
        assert_eq!(image_version("registry:5000/kindest/node"), ("v1.28.0".into(), false));
        assert_eq!(image_version("kindest/node:latest"), ("v1.28.0".into(), false));
    }
}
