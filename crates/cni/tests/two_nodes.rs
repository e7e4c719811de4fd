//! The real plugins between two nodes made of namespaces, with a stub of the agent and the real dataplane.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "../../dataplane/tests/namespace/mod.rs"]
mod namespace;

use api::attachment::{AddReply, AddRequest, DelRequest, ErrorReply, host_interface};
use api::{AssignmentMode, Encapsulation, Pool, Use};
use cni::{AddResult, CniError};
use dataplane::{BlockUse, Endpoint, Inputs, Kernel, NodeAddress, NodeAddresses, apply, plan};
use namespace::{Namespace, alone, change, give, index_of};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

/// What the stub of the agent knows and was asked.
#[derive(Default)]
struct Stub {
    /// Addresses of each container, with commas between.
    addresses: BTreeMap<String, String>,
    adds: Vec<AddRequest>,
    dels: Vec<DelRequest>,
}

/// Answers on `socket` until the process ends.
fn serve(socket: &Path, addresses: &[(&str, &str)]) -> Arc<Mutex<Stub>> {
    let addresses = addresses
        .iter()
        .map(|(container, address)| ((*container).to_owned(), (*address).to_owned()))
        .collect();
    let stub = Arc::new(Mutex::new(Stub { addresses, ..Stub::default() }));
    let listener = UnixListener::bind(socket).unwrap();
    let state = Arc::clone(&stub);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            answer(connection.unwrap(), &state);
        }
    });
    stub
}

fn answer(mut connection: UnixStream, stub: &Mutex<Stub>) {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    let (head, body) = loop {
        let read = connection.read(&mut chunk).unwrap();
        text.extend_from_slice(&chunk[..read]);
        let Some(split) = text.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(text[..split].to_vec()).unwrap();
        let length: usize =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap();
        if text.len() >= split + 4 + length {
            break (head, text[split + 4..split + 4 + length].to_vec());
        }
    };
    let mut stub = stub.lock().unwrap();
    let (status, reply) = if head.starts_with("POST /v1/add ") {
        let request: AddRequest = serde_json::from_slice(&body).unwrap();
        let reply = match stub.addresses.get(&request.attachment.container) {
            Some(address) => {
                let addresses = address.split(',').map(str::to_owned).collect();
                (200, serde_json::to_vec(&AddReply { addresses }).unwrap())
            }
            None => {
                let message = "pool default-ipv4-ippool is full".to_owned();
                (409, serde_json::to_vec(&ErrorReply { code: 100, message, details: String::new() }).unwrap())
            }
        };
        stub.adds.push(request);
        reply
    } else if head.starts_with("POST /v1/del ") {
        stub.dels.push(serde_json::from_slice(&body).unwrap());
        (200, b"{}".to_vec())
    } else {
        (200, Vec::new())
    };
    write!(connection, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", reply.len()).unwrap();
    connection.write_all(&reply).unwrap();
}

/// A node: its namespace, and the plugins' configuration with its agent's socket.
struct Node {
    namespace: Namespace,
    config: String,
}

impl Node {
    /// Runs the plugin `calico` in the node's namespace.
    fn plugin(&self, command: &str, pod: &Namespace, name: &str, container: &str) -> Output {
        let netns = format!("/proc/{}/fd/{}", std::process::id(), pod.0.as_raw_fd());
        self.plugin_at(command, &netns, name, container)
    }

    fn plugin_at(&self, command: &str, netns: &str, name: &str, container: &str) -> Output {
        self.plugin_with(command, netns, name, container, &self.config)
    }

    fn plugin_with(&self, command: &str, netns: &str, name: &str, container: &str, config: &str) -> Output {
        let program = Path::new(env!("CARGO_BIN_EXE_calico"));
        self.namespace.run(|| {
            let mut child = Command::new(program)
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", container)
                .env("CNI_NETNS", netns)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", program.parent().unwrap())
                .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        })
    }

    fn add(&self, pod: &Namespace, name: &str, container: &str) -> AddResult {
        let output = self.plugin("ADD", pod, name, container);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "ADD of {name}: {printed}");
        AddResult::parse(printed.as_bytes()).unwrap()
    }

    fn has(&self, interface: &str) -> bool {
        self.namespace.run(|| {
            let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
            rustix::net::netdevice::name_to_index(socket, interface).is_ok()
        })
    }
}

/// Everything a test needs: two nodes on a bridge, `outside` at 172.18.0.1 beside them.
struct Lab {
    _directory: tempfile::TempDir,
    outside: Namespace,
    nodes: [Node; 2],
    stub: Arc<Mutex<Stub>>,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let stub = serve(
            &socket,
            &[
                ("a1", "192.168.10.1/26"),
                ("a2", "192.168.10.2/26"),
                ("b1", "192.168.20.1/26"),
                ("dual", "192.168.10.9/26,fd00:10:244:1::9/122"),
            ],
        );
        let outside = Namespace::new();
        outside.run(|| {
            let mut bridge = LinkMessage::default();
            bridge.attributes = vec![
                LinkAttribute::IfName("bridge".to_owned()),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
            ];
            change(RouteNetlinkMessage::NewLink(bridge), NLM_F_CREATE | NLM_F_EXCL);
            give("bridge", "172.18.0.1/16");
        });
        let node = |port: &str, address: &str| {
            let namespace = Namespace::new();
            namespace.wire("eth0", address, &outside, port, "");
            outside.run(|| {
                let mut link = LinkMessage::default();
                link.header.index = index_of(port);
                link.attributes = vec![LinkAttribute::Controller(index_of("bridge"))];
                change(RouteNetlinkMessage::SetLink(link), 0);
            });
            let config = serde_json::json!({
                "cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "calico", "mtu": 1450,
                "nodename": port, "ipam": {"type": "calico-ipam", "agent_socket": socket},
            });
            Node { namespace, config: config.to_string() }
        };
        let nodes = [node("node1", "172.18.0.2/16"), node("node2", "172.18.0.3/16")];
        Self { _directory: directory, outside, nodes, stub }
    }

    /// Brings both nodes' dataplanes to the plan.
    fn route(&self, mode: Encapsulation, pods: [&[(&str, &str)]; 2]) {
        let names = ["node1", "node2"];
        let block = |cidr: &str, owner: &str| BlockUse {
            cidr: cidr.parse().unwrap(),
            owner: Some(owner.to_owned()),
            borrowed: BTreeMap::new(),
        };
        let recorded = |address: &str, tunnel: &str| NodeAddresses {
            ipv4: NodeAddress::parse(address),
            vxlan_ipv4: tunnel.parse().ok(),
            ..NodeAddresses::default()
        };
        for ((node, name), pods) in self.nodes.iter().zip(names).zip(pods) {
            let mut inputs = Inputs {
                node: name.to_owned(),
                nodes: [
                    ("node1".to_owned(), recorded("172.18.0.2/16", "192.168.10.0")),
                    ("node2".to_owned(), recorded("172.18.0.3/16", "192.168.20.0")),
                ]
                .into(),
                pools: vec![pool(mode)],
                blocks: vec![block("192.168.10.0/26", "node1"), block("192.168.20.0/26", "node2")],
                endpoints: pods
                    .iter()
                    .map(|(pod, address)| Endpoint {
                        address: address.parse().unwrap(),
                        interface: host_interface("default", pod),
                    })
                    .collect(),
                ..Inputs::default()
            };
            node.namespace.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut kernel = Kernel::open().unwrap();
                    inputs.host = kernel.facts(&inputs.nodes[name]).await.unwrap();
                    let report = apply(&mut kernel, &plan(&inputs)).await.unwrap();
                    assert!(report.skipped.is_empty(), "{report:?}");
                });
            });
        }
    }
}

fn pool(vxlan_mode: Encapsulation) -> Pool {
    Pool {
        name: "default-ipv4-ippool".to_owned(),
        cidr: "192.168.0.0/16".parse().unwrap(),
        block_size: 26,
        ipip_mode: Encapsulation::Never,
        vxlan_mode,
        nat_outgoing: true,
        disabled: false,
        disable_bgp_export: false,
        node_selector: "all()".to_owned(),
        namespace_selector: None,
        allowed_uses: vec![Use::Workload, Use::Tunnel],
        assignment_mode: AssignmentMode::Automatic,
        deleting: false,
        unallocatable: false,
    }
}

/// Sends one echo request and waits at most `seconds`: the TTL of the answer, or what ping said.
fn ping_within(seconds: &str, from: &Namespace, to: &str) -> Result<u8, String> {
    let output = from.run(|| Command::new("ping").args(["-c", "1", "-W", seconds, to]).output().unwrap());
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    printed
        .split_once("ttl=")
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .ok_or(printed)
}

fn ping(from: &Namespace, to: &str) -> Result<u8, String> {
    ping_within("5", from, to)
}

/// The source address that a datagram from one namespace carries when it arrives in another.
fn seen_source(from: &Namespace, to: &Namespace, address: &str) -> String {
    let receiver = to.run(|| UdpSocket::bind((address, 0)).unwrap());
    receiver.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let port = receiver.local_addr().unwrap().port();
    from.run(|| {
        let sender = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        sender.send_to(b"who am I", (address, port)).unwrap();
    });
    let (_, source) = receiver.recv_from(&mut [0; 16]).unwrap();
    source.ip().to_string()
}

fn packets_flow(mode: Encapsulation) {
    let lab = Lab::new();
    let pods = [Namespace::new(), Namespace::new(), Namespace::new()];
    let result = lab.nodes[0].add(&pods[0], "a1", "a1");
    lab.nodes[0].add(&pods[1], "a2", "a2");
    lab.nodes[1].add(&pods[2], "b1", "b1");
    assert_eq!(result.ips[0].address, "192.168.10.1/32");
    assert_eq!(result.interfaces[0].name, host_interface("default", "a1"));
    assert_eq!((result.interfaces[1].name.as_str(), result.interfaces[1].mtu), ("eth0", 1450));
    lab.route(mode, [&[("a1", "192.168.10.1"), ("a2", "192.168.10.2")], &[("b1", "192.168.20.1")]]);

    assert_eq!(ping(&pods[0], "192.168.10.2"), Ok(63), "on one node");
    assert_eq!(ping(&pods[0], "192.168.20.1"), Ok(62), "across nodes");
    assert_eq!(ping(&pods[2], "192.168.10.1"), Ok(62), "and back");
    assert_eq!(ping(&pods[0], "172.18.0.2"), Ok(64), "to its own node");
    assert_eq!(seen_source(&pods[0], &pods[1], "192.168.10.2"), "192.168.10.1");
    assert_eq!(seen_source(&pods[0], &pods[2], "192.168.20.1"), "192.168.10.1");
    // A host outside the pool sees the node.
    assert_eq!(ping(&pods[0], "172.18.0.1"), Ok(63));
    assert_eq!(seen_source(&pods[0], &lab.outside, "172.18.0.1"), "172.18.0.2");
    assert_eq!(ping(&lab.nodes[0].namespace, "192.168.20.1"), Ok(63), "from a node to a pod of another");
    // An address that nobody has is swallowed: no error comes back.
    let said = ping_within("1", &pods[2], "192.168.10.9").unwrap_err();
    assert!(said.contains("100% packet loss") && !said.contains("From "), "{said}");
}

#[test]
fn packets_flow_between_nodes_of_one_subnet() {
    alone("packets_flow_between_nodes_of_one_subnet", || packets_flow(Encapsulation::CrossSubnet));
}

#[test]
fn packets_flow_through_the_tunnel() {
    alone("packets_flow_through_the_tunnel", || packets_flow(Encapsulation::Always));
}

#[test]
fn a_pod_that_is_deleted_leaves_nothing_behind_and_twice_is_once() {
    alone("a_pod_that_is_deleted_leaves_nothing_behind_and_twice_is_once", || {
        let lab = Lab::new();
        let [node, _] = &lab.nodes;
        let (pod, host) = (Namespace::new(), host_interface("default", "a1"));
        node.add(&pod, "a1", "a1");
        assert!(node.has(&host));
        for _ in 0..2 {
            let output = node.plugin("DEL", &pod, "a1", "a1");
            assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
            assert!(!node.has(&host));
        }
        // The namespace may be gone before the runtime says so.
        for netns in ["", "/nonexistent/netns"] {
            assert!(node.plugin_at("DEL", netns, "a1", "a1").status.success(), "{netns}");
        }
        let stub = lab.stub.lock().unwrap();
        assert_eq!(stub.dels.len(), 4);
        assert_eq!(stub.dels[0].legacy_handle.as_deref(), Some("default.a1"));
        assert_eq!(stub.dels[0].attachment, stub.adds[0].attachment);
    });
}

#[test]
fn deleting_an_older_container_of_a_pod_leaves_the_newer_one() {
    alone("deleting_an_older_container_of_a_pod_leaves_the_newer_one", || {
        let lab = Lab::new();
        let [node, _] = &lab.nodes;
        let (older, newer) = (Namespace::new(), Namespace::new());
        node.add(&older, "a1", "a1");
        node.add(&newer, "a1", "a2");
        assert!(node.plugin("DEL", &older, "a1", "a1").status.success());
        assert!(node.has(&host_interface("default", "a1")));
        assert_eq!(ping(&node.namespace, "192.168.10.2"), Ok(64));
    });
}

#[test]
fn an_add_that_is_repeated_ends_with_a_working_pod() {
    alone("an_add_that_is_repeated_ends_with_a_working_pod", || {
        let lab = Lab::new();
        let [node, _] = &lab.nodes;
        let pod = Namespace::new();
        let first = node.add(&pod, "a1", "a1");
        assert_eq!(node.add(&pod, "a1", "a1"), first);
        assert_eq!(ping(&node.namespace, "192.168.10.1"), Ok(64));
    });
}

#[test]
fn what_the_agent_refuses_is_told_and_nothing_is_wired() {
    alone("what_the_agent_refuses_is_told_and_nothing_is_wired", || {
        let lab = Lab::new();
        let [node, _] = &lab.nodes;
        let output = node.plugin("ADD", &Namespace::new(), "lost", "nobody");
        assert!(!output.status.success());
        let error: CniError = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((error.code, error.msg.as_str()), (100, "pool default-ipv4-ippool is full"));
        assert_eq!(error.cni_version, "1.0.0");
        assert!(!node.has(&host_interface("default", "lost")));
    });
}

#[test]
fn wiring_that_fails_gives_the_address_back() {
    alone("wiring_that_fails_gives_the_address_back", || {
        let lab = Lab::new();
        let [node, _] = &lab.nodes;
        let pod = Namespace::new();
        // The pod has an eth0 already, of somebody else's making.
        pod.wire("eth0", "", &lab.outside, "other", "");
        let output = node.plugin("ADD", &pod, "a1", "a1");
        let error: CniError = serde_json::from_slice(&output.stdout).unwrap();
        assert!(error.msg.contains("eth0"), "{}", error.msg);
        assert_eq!(lab.stub.lock().unwrap().dels.len(), 1);
        assert!(!node.has(&host_interface("default", "a1")));
        pod.run(|| assert_ne!(index_of("eth0"), 0, "what was there is still there"));
    });
}

#[test]
fn a_nodes_own_namespace_is_refused_before_anything_is_assigned() {
    alone("a_nodes_own_namespace_is_refused_before_anything_is_assigned", || {
        let lab = Lab::new();
        let [node, _] = &lab.nodes;
        let output = node.plugin("ADD", &node.namespace, "a1", "a1");
        let error: CniError = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(error.code, 8);
        assert!(lab.stub.lock().unwrap().adds.is_empty());
    });
}

#[test]
fn check_finds_what_was_taken_from_a_pod() {
    alone("check_finds_what_was_taken_from_a_pod", || {
        let lab = Lab::new();
        let [node, _] = &lab.nodes;
        let pod = Namespace::new();
        let added = node.add(&pod, "a1", "a1");
        let mut config: serde_json::Value = serde_json::from_str(&node.config).unwrap();
        config["prevResult"] = added.render("1.0.0");
        let netns = format!("/proc/{}/fd/{}", std::process::id(), pod.0.as_raw_fd());
        let check = || node.plugin_with("CHECK", &netns, "a1", "a1", &config.to_string());
        assert!(check().status.success(), "{:?}", check());
        config["prevResult"]["ips"][0]["address"] = "192.168.10.77/32".into();
        let missing = node.plugin_with("CHECK", &netns, "a1", "a1", &config.to_string());
        let error: CniError = serde_json::from_slice(&missing.stdout).unwrap();
        assert!(error.msg.contains("192.168.10.77"), "{}", error.msg);
        assert!(node.plugin("DEL", &pod, "a1", "a1").status.success());
        let gone = node.plugin_with("CHECK", &netns, "a1", "a1", &config.to_string());
        let error: CniError = serde_json::from_slice(&gone.stdout).unwrap();
        assert!(error.msg.contains(&host_interface("default", "a1")), "{}", error.msg);
    });
}

#[test]
fn a_pod_with_both_families_is_reached_by_both() {
    alone("a_pod_with_both_families_is_reached_by_both", || {
        if !Path::new("/proc/sys/net/ipv6").exists() {
            eprintln!("skipped: this kernel has no IPv6");
            return;
        }
        let lab = Lab::new();
        let [node, _] = &lab.nodes;
        let pod = Namespace::new();
        let added = node.add(&pod, "dual", "dual");
        let given: Vec<&str> = added.ips.iter().map(|ip| ip.address.as_str()).collect();
        assert_eq!(given, ["192.168.10.9/32", "fd00:10:244:1::9/128"]);
        assert_eq!(ping(&node.namespace, "192.168.10.9"), Ok(64));
        // The node needs an address of its own to ask from, and the pod answers through its gateway.
        node.namespace.run(|| give("lo", "fd00:172::2/128"));
        assert_eq!(ping(&node.namespace, "fd00:10:244:1::9"), Ok(64));
    });
}
