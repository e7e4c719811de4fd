//! The worked example of the dataplane specification (§9) and the lesson's lab, as the lines of `ip route`.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use api::{AssignmentMode, Encapsulation, Pool, Use};
use dataplane::{
    BlockUse, Desired, Endpoint, HostFacts, Inputs, NodeAddress, NodeAddresses, Note, plan, vxlan_mac,
};
use std::collections::BTreeMap;

fn pool(name: &str, cidr: &str, vxlan_mode: Encapsulation) -> Pool {
    Pool {
        name: name.to_owned(),
        cidr: cidr.parse().unwrap(),
        block_size: if cidr.contains(':') { 122 } else { 26 },
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

fn block(cidr: &str, owner: Option<&str>, borrowed: &[(u32, &str)]) -> BlockUse {
    BlockUse {
        cidr: cidr.parse().unwrap(),
        owner: owner.map(str::to_owned),
        borrowed: borrowed.iter().map(|(ordinal, node)| (*ordinal, (*node).to_owned())).collect(),
    }
}

fn node(address: &str, tunnel: Option<&str>) -> NodeAddresses {
    NodeAddresses {
        ipv4: NodeAddress::parse(address),
        vxlan_ipv4: tunnel.map(|tunnel| tunnel.parse().unwrap()),
        ..NodeAddresses::default()
    }
}

fn endpoint(address: &str, interface: &str) -> Endpoint {
    Endpoint { address: address.parse().unwrap(), interface: interface.to_owned() }
}

/// The example as seen by `name`, with pods a1, a2 on node1, b1 on node2, c1 on node3.
fn example(name: &str, mode: Encapsulation, prefix: u8) -> Inputs {
    let tunnels = mode != Encapsulation::Never;
    let of = |index: u32| {
        let tunnel = format!("192.168.{}0.0", index);
        (
            format!("node{index}"),
            node(&format!("172.18.0.{}/{prefix}", index + 1), tunnels.then_some(tunnel.as_str())),
        )
    };
    let pods: BTreeMap<&str, Vec<Endpoint>> = [
        ("node1", vec![endpoint("192.168.10.1", "calia1"), endpoint("192.168.10.2", "calia2")]),
        ("node2", vec![endpoint("192.168.20.1", "calib1")]),
        ("node3", vec![endpoint("192.168.30.1", "calic1")]),
    ]
    .into();
    Inputs {
        node: name.to_owned(),
        nodes: (1..=3).map(of).collect(),
        pools: vec![pool("default-ipv4-ippool", "192.168.0.0/16", mode)],
        blocks: vec![
            block("192.168.10.0/26", Some("node1"), &[]),
            block("192.168.20.0/26", Some("node2"), &[]),
            block("192.168.30.0/26", Some("node3"), &[]),
        ],
        endpoints: pods.get(name).cloned().unwrap_or_default().into_iter().collect(),
        host: HostFacts { parent_ipv4: Some("eth0".to_owned()), parent_ipv6: None, mtu: 1500 },
        ..Inputs::default()
    }
}

fn routes(desired: &Desired) -> Vec<String> {
    desired.routes.values().map(ToString::to_string).collect()
}

#[test]
fn without_encapsulation_blocks_go_by_the_nodes_addresses() {
    let desired = plan(&example("node1", Encapsulation::Never, 16));
    assert_eq!(
        routes(&desired),
        [
            "blackhole 192.168.10.0/26 proto 80",
            "192.168.10.1 dev calia1 scope link metric 1024",
            "192.168.10.2 dev calia2 scope link metric 1024",
            "192.168.20.0/26 via 172.18.0.3 dev eth0 proto 80 onlink",
            "192.168.30.0/26 via 172.18.0.4 dev eth0 proto 80 onlink",
        ]
    );
    assert_eq!(desired.pod_mtu, 1500);
    assert!(desired.vxlan.is_empty() && desired.absent_devices.contains("vxlan.calico"));
    assert!(desired.notes.is_empty());
}

#[test]
fn with_vxlan_blocks_go_by_the_tunnel() {
    let desired = plan(&example("node1", Encapsulation::Always, 16));
    assert_eq!(
        routes(&desired),
        [
            "blackhole 192.168.10.0/26 proto 80",
            "192.168.10.1 dev calia1 scope link metric 1024",
            "192.168.10.2 dev calia2 scope link metric 1024",
            "192.168.20.0/26 via 192.168.20.0 dev vxlan.calico proto 80 onlink mtu 1450",
            "192.168.30.0/26 via 192.168.30.0 dev vxlan.calico proto 80 onlink mtu 1450",
        ]
    );
    assert_eq!(desired.pod_mtu, 1450);
    let [device] = desired.vxlan.as_slice() else { panic!("one device: {:?}", desired.vxlan) };
    assert_eq!((device.name, device.vni, device.port), ("vxlan.calico", 4096, 4789));
    assert_eq!((device.parent.as_str(), device.mtu), ("eth0", 1450));
    assert_eq!(device.local.to_string(), "172.18.0.2");
    assert_eq!(device.address.to_string(), "192.168.10.0");
    assert_eq!(device.mac.to_string(), "66:f9:37:c3:7e:94");
    let peers: Vec<String> =
        device.peers.iter().map(|(tunnel, peer)| format!("{tunnel} {} {}", peer.mac, peer.node)).collect();
    assert_eq!(
        peers,
        ["192.168.20.0 66:2d:bf:44:a6:8b 172.18.0.3", "192.168.30.0 66:a4:6f:e0:c4:da 172.18.0.4"]
    );
}

#[test]
fn tunnel_macs_are_those_of_the_specification() {
    use api::IpVersion::{V4, V6};
    for (name, version, mac) in [
        ("node1", V4, "66:f9:37:c3:7e:94"),
        ("node2", V4, "66:2d:bf:44:a6:8b"),
        ("node3", V4, "66:a4:6f:e0:c4:da"),
        ("node1", V6, "66:0f:35:f2:60:df"),
        ("node2", V6, "66:32:42:ed:de:d5"),
        ("node3", V6, "66:71:6e:25:e2:07"),
    ] {
        assert_eq!(vxlan_mac(name, version).to_string(), mac, "{name} {version}");
    }
}

#[test]
fn across_subnets_only_goes_by_the_tunnel_what_must() {
    let near = plan(&example("node1", Encapsulation::CrossSubnet, 16));
    assert_eq!(
        routes(&near),
        [
            "blackhole 192.168.10.0/26 proto 80",
            "192.168.10.1 dev calia1 scope link metric 1024",
            "192.168.10.2 dev calia2 scope link metric 1024",
            "192.168.20.0/26 via 172.18.0.3 dev eth0 proto 80 onlink",
            "192.168.20.0 via 172.18.0.3 dev eth0 proto 80 onlink",
            "192.168.30.0/26 via 172.18.0.4 dev eth0 proto 80 onlink",
            "192.168.30.0 via 172.18.0.4 dev eth0 proto 80 onlink",
        ]
    );
    assert_eq!(near.vxlan.len(), 1, "the device is there, idle");
    assert_eq!(near.pod_mtu, 1450);

    // Recorded as /31, node1 and node2 share a subnet and node3 is in another.
    let far = plan(&example("node1", Encapsulation::CrossSubnet, 31));
    let tunnelled: Vec<String> =
        routes(&far).into_iter().filter(|line| line.contains("vxlan.calico")).collect();
    assert_eq!(tunnelled, ["192.168.30.0/26 via 192.168.30.0 dev vxlan.calico proto 80 onlink mtu 1450"]);
    assert!(
        routes(&far).contains(&"192.168.20.0/26 via 172.18.0.3 dev eth0 proto 80 onlink".to_owned()),
        "{:?}",
        routes(&far)
    );
}

#[test]
fn one_side_recording_a_lone_address_makes_both_use_the_tunnel() {
    let mut inputs = example("node1", Encapsulation::CrossSubnet, 16);
    inputs.nodes.insert("node2".to_owned(), node("172.18.0.3/32", Some("192.168.20.0")));
    let from_one = plan(&inputs);
    inputs.node = "node2".to_owned();
    let from_two = plan(&inputs);
    let to = |desired: &Desired, cidr: &str| {
        desired.routes.get(&cidr.parse().unwrap()).and_then(|route| route.device().map(str::to_owned))
    };
    assert_eq!(to(&from_one, "192.168.20.0/26").as_deref(), Some("vxlan.calico"));
    assert_eq!(to(&from_two, "192.168.10.0/26").as_deref(), Some("vxlan.calico"));
}

#[test]
fn a_borrowed_address_goes_to_its_borrower_from_everywhere() {
    let with_loan = |name: &str| {
        let mut inputs = example(name, Encapsulation::Always, 16);
        inputs.blocks[0] = block("192.168.10.0/26", Some("node1"), &[(5, "node3")]);
        if name == "node3" {
            inputs.endpoints.insert(endpoint("192.168.10.5", "calid1"));
        }
        plan(&inputs)
    };
    let route = |desired: &Desired| desired.routes[&"192.168.10.5/32".parse().unwrap()].to_string();
    let through_tunnel = "192.168.10.5 via 192.168.30.0 dev vxlan.calico proto 80 onlink mtu 1450";
    assert_eq!(route(&with_loan("node1")), through_tunnel);
    assert_eq!(route(&with_loan("node2")), through_tunnel);
    assert_eq!(route(&with_loan("node3")), "192.168.10.5 dev calid1 scope link metric 1024");
}

#[test]
fn a_borrowed_address_without_its_pod_yet_is_no_blackhole() {
    let mut inputs = example("node3", Encapsulation::Never, 16);
    inputs.blocks[0] = block("192.168.10.0/26", Some("node1"), &[(5, "node3")]);
    assert!(!plan(&inputs).routes.contains_key(&"192.168.10.5/32".parse().unwrap()));
}

#[test]
fn a_block_without_owner_yields_a_route_per_address() {
    let mut inputs = example("node1", Encapsulation::Never, 16);
    inputs.blocks.push(block("192.168.40.0/26", None, &[(3, "node2"), (4, "node1")]));
    let lines: Vec<String> =
        routes(&plan(&inputs)).into_iter().filter(|line| line.contains("192.168.40.")).collect();
    assert_eq!(lines, ["192.168.40.3 via 172.18.0.3 dev eth0 proto 80 onlink"]);
}

#[test]
fn a_block_of_one_address_is_no_blackhole() {
    let mut inputs = example("node1", Encapsulation::Never, 16);
    inputs.blocks.push(block("192.168.50.7/32", Some("node1"), &[]));
    assert!(!plan(&inputs).routes.contains_key(&"192.168.50.7/32".parse().unwrap()));
}

#[test]
fn a_remote_tunnel_address_alone_in_its_block_is_reached_over_the_device_itself() {
    let mut inputs = example("node1", Encapsulation::Always, 16);
    inputs.nodes.insert("node2".to_owned(), node("172.18.0.3/16", Some("192.168.60.9")));
    inputs.blocks.push(block("192.168.60.9/32", Some("node2"), &[]));
    let desired = plan(&inputs);
    assert_eq!(
        desired.routes[&"192.168.60.9/32".parse().unwrap()].to_string(),
        "192.168.60.9 dev vxlan.calico proto 80 scope link mtu 1450"
    );
}

#[test]
fn without_encapsulation_another_subnet_is_reported_and_not_guessed() {
    let desired = plan(&example("node1", Encapsulation::Never, 31));
    assert!(!desired.routes.contains_key(&"192.168.30.0/26".parse().unwrap()));
    let expected = Note::OtherSubnet {
        destination: "192.168.30.0/26".parse().unwrap(),
        node: "node3".to_owned(),
        pool: "default-ipv4-ippool".to_owned(),
    };
    assert!(desired.notes.contains(&expected), "{:?}", desired.notes);
}

#[test]
fn what_is_not_known_yet_waits_without_holding_up_the_rest() {
    let mut inputs = example("node1", Encapsulation::Always, 16);
    inputs.nodes.insert("node2".to_owned(), node("172.18.0.3/16", None));
    inputs.nodes.remove("node3");
    let desired = plan(&inputs);
    assert_eq!(desired.routes.len(), 3, "{:?}", routes(&desired));
    assert_eq!(desired.notes.len(), 2, "{:?}", desired.notes);

    inputs.host.parent_ipv4 = None;
    let blind = plan(&inputs);
    assert!(blind.vxlan.is_empty());
    assert!(!blind.absent_devices.contains("vxlan.calico"), "a device is not torn down for want of facts");
}

#[test]
fn ipip_is_reported_and_nodes_of_one_subnet_go_direct() {
    let mut inputs = example("node1", Encapsulation::Never, 31);
    inputs.pools[0].ipip_mode = Encapsulation::Always;
    let desired = plan(&inputs);
    assert!(desired.notes.contains(&Note::IpipUnsupported { pool: "default-ipv4-ippool".to_owned() }));
    assert!(desired.routes.contains_key(&"192.168.20.0/26".parse().unwrap()));
    assert!(!desired.routes.contains_key(&"192.168.30.0/26".parse().unwrap()));
}

#[test]
fn a_pool_for_load_balancers_is_neither_routed_nor_exempt() {
    let mut inputs = example("node1", Encapsulation::Never, 16);
    let mut balancers = pool("lb", "10.9.0.0/24", Encapsulation::Never);
    balancers.allowed_uses = vec![Use::LoadBalancer];
    inputs.pools.push(balancers);
    inputs.blocks.push(block("10.9.0.0/26", Some("node1"), &[]));
    inputs.blocks.push(block("10.9.0.64/26", Some("node2"), &[]));
    let desired = plan(&inputs);
    assert!(!routes(&desired).iter().any(|line| line.contains("10.9.")), "{:?}", routes(&desired));
    assert!(!desired.nft.contains("10.9.0.0"));
}

#[test]
fn two_nodes_with_one_tunnel_mac_are_reported() {
    let mut inputs = example("node1", Encapsulation::Always, 16);
    if let Some(third) = inputs.nodes.get_mut("node3") {
        third.vxlan_mac = Some(vxlan_mac("node2", api::IpVersion::V4));
    }
    let desired = plan(&inputs);
    assert_eq!(desired.vxlan[0].peers.len(), 1);
    assert!(desired.notes.iter().any(|note| matches!(note, Note::SharedMac { .. })), "{:?}", desired.notes);
}

#[test]
fn ipv6_has_its_own_device_and_overhead() {
    let six = |index: u32| NodeAddresses {
        ipv6: NodeAddress::parse(&format!("fd00:172::{index}/64")),
        vxlan_ipv6: format!("fd00:10:244:{index}::").parse().ok(),
        ..NodeAddresses::default()
    };
    let inputs = Inputs {
        node: "node1".to_owned(),
        nodes: [("node1".to_owned(), six(1)), ("node2".to_owned(), six(2))].into(),
        pools: vec![pool("six", "fd00:10:244::/48", Encapsulation::Always)],
        blocks: vec![
            block("fd00:10:244:1::/122", Some("node1"), &[]),
            block("fd00:10:244:2::/122", Some("node2"), &[]),
        ],
        endpoints: [endpoint("fd00:10:244:1::1", "calia1")].into(),
        host: HostFacts { parent_ipv4: None, parent_ipv6: Some("eth0".to_owned()), mtu: 1500 },
        ..Inputs::default()
    };
    let desired = plan(&inputs);
    assert_eq!(
        routes(&desired),
        [
            "blackhole fd00:10:244:1::/122 proto 80",
            "fd00:10:244:1::1 dev calia1 scope link metric 1024",
            "fd00:10:244:2::/122 via fd00:10:244:2:: dev vxlan-v6.calico proto 80 onlink mtu 1430",
        ]
    );
    assert_eq!(desired.pod_mtu, 1430);
    assert!(desired.absent_devices.contains("vxlan.calico"));
    assert!(desired.nft.contains("table ip6 calico {"));
}

#[test]
fn the_lessons_worker_has_the_routes_of_the_lesson() {
    let lab = |name: &str, address: &str, tunnel: &str| (name.to_owned(), node(address, Some(tunnel)));
    let inputs = Inputs {
        node: "calico-ipam-worker".to_owned(),
        nodes: [
            lab("calico-ipam-control-plane", "172.18.0.3/16", "192.168.18.64"),
            lab("calico-ipam-worker", "172.18.0.2/16", "192.168.131.128"),
            lab("calico-ipam-worker2", "172.18.0.4/16", "192.168.112.128"),
        ]
        .into(),
        pools: vec![pool("default-ipv4-ippool", "192.168.0.0/16", Encapsulation::CrossSubnet)],
        blocks: vec![
            block("192.168.18.64/26", Some("calico-ipam-control-plane"), &[]),
            block("192.168.131.128/26", Some("calico-ipam-worker"), &[]),
            block("192.168.112.128/26", Some("calico-ipam-worker2"), &[]),
        ],
        endpoints: [endpoint("192.168.131.129", "cali0123456789a")].into(),
        host: HostFacts { parent_ipv4: Some("eth0".to_owned()), parent_ipv6: None, mtu: 1500 },
        ..Inputs::default()
    };
    let mut lines = routes(&plan(&inputs));
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "192.168.112.128 via 172.18.0.4 dev eth0 proto 80 onlink",
            "192.168.112.128/26 via 172.18.0.4 dev eth0 proto 80 onlink",
            "192.168.131.129 dev cali0123456789a scope link metric 1024",
            "192.168.18.64 via 172.18.0.3 dev eth0 proto 80 onlink",
            "192.168.18.64/26 via 172.18.0.3 dev eth0 proto 80 onlink",
            "blackhole 192.168.131.128/26 proto 80",
        ]
    );
}

#[test]
fn the_masquerading_rules_are_those_of_the_specification() {
    let mut inputs = example("node1", Encapsulation::CrossSubnet, 16);
    inputs.pools.push(Pool {
        disabled: true,
        nat_outgoing: false,
        ..pool("internal", "10.20.0.0/16", Encapsulation::Never)
    });
    // Lies in another pool: a set with intervals would refuse both.
    inputs.pools.push(pool("inner", "192.168.64.0/18", Encapsulation::Never));
    let script = plan(&inputs).nft;
    for (set, elements) in [
        ("cali40masq-ipam-pools", "192.168.0.0/16"),
        ("cali40network-ip-pools", "10.20.0.0/16, 192.168.0.0/16"),
        ("cali40all-vxlan-net", "172.18.0.3/32, 172.18.0.4/32"),
    ] {
        let text = format!(
            "\tset {set} {{\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = {{ {elements} }}\n\t}}\n"
        );
        assert!(script.contains(&text), "{set} is not {elements} in\n{script}");
    }
    assert!(script.contains(
        "ip saddr @cali40masq-ipam-pools ip daddr != @cali40network-ip-pools masquerade fully-random"
    ));
    assert!(!script.contains("table ip6 calico {"), "no IPv6 pool, no IPv6 table");

    inputs.settings.exempt_hosts = true;
    assert!(plan(&inputs).nft.contains("ip daddr != @cali40all-hosts-net masquerade"));
}

#[test]
fn without_masquerading_pools_the_chain_is_empty() {
    let mut inputs = example("node1", Encapsulation::Never, 16);
    inputs.pools[0].nat_outgoing = false;
    assert!(plan(&inputs).nft.contains("chain nat-cali-nat-outgoing {\n\t}\n"));
}
