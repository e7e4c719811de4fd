//! Applying to a real kernel: what is written, what is repaired, what is left alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod namespace;

use api::{AssignmentMode, Encapsulation, Pool, Use};
use dataplane::{
    ApplyError, BlockUse, Desired, Endpoint, Inputs, Kernel, NodeAddress, NodeAddresses, Report, apply, plan,
};
use namespace::{Namespace, alone, change, give, index_of};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Runs a future on the calling thread, which is in the node's namespace.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn node(address: &str, tunnel: &str) -> NodeAddresses {
    NodeAddresses {
        ipv4: NodeAddress::parse(address),
        vxlan_ipv4: tunnel.parse().ok(),
        ..NodeAddresses::default()
    }
}

fn block(cidr: &str, owner: &str) -> BlockUse {
    BlockUse { cidr: cidr.parse().unwrap(), owner: Some(owner.to_owned()), borrowed: [].into() }
}

/// Two nodes; the interfaces of the first are in the namespace of the test.
fn inputs(mode: Encapsulation) -> Inputs {
    Inputs {
        node: "node1".to_owned(),
        nodes: [
            ("node1".to_owned(), node("172.18.0.2/16", "192.168.10.0")),
            ("node2".to_owned(), node("172.18.0.3/16", "192.168.20.0")),
        ]
        .into(),
        pools: vec![Pool {
            name: "default-ipv4-ippool".to_owned(),
            cidr: "192.168.0.0/16".parse().unwrap(),
            block_size: 26,
            ipip_mode: Encapsulation::Never,
            vxlan_mode: mode,
            nat_outgoing: true,
            disabled: false,
            disable_bgp_export: false,
            node_selector: "all()".to_owned(),
            namespace_selector: None,
            allowed_uses: vec![Use::Workload, Use::Tunnel],
            assignment_mode: AssignmentMode::Automatic,
            deleting: false,
            unallocatable: false,
        }],
        blocks: vec![block("192.168.10.0/26", "node1"), block("192.168.20.0/26", "node2")],
        ..Inputs::default()
    }
}

/// Runs `body` in a node with `eth0` 172.18.0.2/16.
fn on_node(name: &str, body: impl FnOnce() + Send) {
    alone(name, || {
        let (node, outside) = (Namespace::new(), Namespace::new());
        node.wire("eth0", "172.18.0.2/16", &outside, "wire", "172.18.0.1/16");
        node.run(body);
    });
}

/// The namespace of the calling thread.
fn here() -> Namespace {
    Namespace(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
}

async fn planned(kernel: &mut Kernel, mut inputs: Inputs) -> Desired {
    inputs.host = kernel.facts(&inputs.nodes["node1"]).await.unwrap();
    plan(&inputs)
}

/// Destinations of the main table of IPv4 with their protocols, as the kernel lists them.
fn table() -> BTreeSet<String> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(request));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut buffer = vec![0; request.buffer_len()];
    request.serialize(&mut buffer);
    let socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
    socket.connect(&netlink_sys::SocketAddr::new(0, 0)).unwrap();
    socket.send(&buffer, 0).unwrap();
    let mut lines = BTreeSet::new();
    loop {
        let (datagram, _) = socket.recv_from_full().unwrap();
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).unwrap();
            rest = &rest[usize::try_from(message.header.length).unwrap().next_multiple_of(4)..];
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                    let destination = route.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
                        _ => None,
                    });
                    if route.header.table == RouteHeader::RT_TABLE_MAIN {
                        lines.insert(format!(
                            "{}/{} {}",
                            destination.unwrap_or(Ipv4Addr::UNSPECIFIED),
                            route.header.destination_prefix_length,
                            u8::from(route.header.protocol)
                        ));
                    }
                }
                NetlinkPayload::Done(_) => return lines,
                other => panic!("{other:?}"),
            }
        }
    }
}

fn route(destination: &str, prefix: u8, device: &str, protocol: RouteProtocol) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = protocol;
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(destination.parse().unwrap())),
        RouteAttribute::Oif(index_of(device)),
    ];
    message
}

fn remove_link(name: &str) {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    change(RouteNetlinkMessage::DelLink(link), 0);
}

#[test]
fn the_kernel_is_brought_to_the_plan_and_a_second_pass_writes_nothing() {
    on_node("the_kernel_is_brought_to_the_plan_and_a_second_pass_writes_nothing", || {
        block_on(async {
            let mut kernel = Kernel::open().unwrap();
            let desired = planned(&mut kernel, inputs(Encapsulation::Always)).await;
            let first = apply(&mut kernel, &desired).await.unwrap();
            assert_eq!((first.routes_set, first.devices_created, first.neighbours_set), (2, 1, 2));
            assert!(first.nft_applied && first.skipped.is_empty(), "{first:?}");
            let expected =
                ["172.18.0.0/16 2", "192.168.10.0/26 80", "192.168.20.0/26 80"].map(str::to_owned).into();
            assert_eq!(table(), expected);
            // A complete pass, not one that trusts its memory: everything read must equal what was written.
            kernel.forget();
            assert_eq!(apply(&mut kernel, &desired).await.unwrap(), Report::default());
        });
    });
}

#[test]
fn a_new_agent_finds_everything_in_place() {
    on_node("a_new_agent_finds_everything_in_place", || {
        block_on(async {
            let mut before = Kernel::open().unwrap();
            let desired = planned(&mut before, inputs(Encapsulation::CrossSubnet)).await;
            apply(&mut before, &desired).await.unwrap();
            let mut after = Kernel::open().unwrap();
            let report = apply(&mut after, &desired).await.unwrap();
            // The rules are put in place anew, in one transaction: what they were cannot be read cheaply.
            assert_eq!(report, Report { nft_applied: true, ..Report::default() });
        });
    });
}

#[test]
fn what_somebody_removed_is_put_back() {
    on_node("what_somebody_removed_is_put_back", || {
        block_on(async {
            let mut kernel = Kernel::open().unwrap();
            let desired = planned(&mut kernel, inputs(Encapsulation::Always)).await;
            apply(&mut kernel, &desired).await.unwrap();
            remove_link("vxlan.calico");
            kernel.forget();
            let report = apply(&mut kernel, &desired).await.unwrap();
            // With the device went its route and its entries.
            assert_eq!((report.devices_created, report.routes_set, report.neighbours_set), (1, 1, 2));
            kernel.forget();
            assert_eq!(apply(&mut kernel, &desired).await.unwrap(), Report::default());
        });
    });
}

#[test]
fn a_device_with_another_port_is_made_anew() {
    on_node("a_device_with_another_port_is_made_anew", || {
        block_on(async {
            let mut kernel = Kernel::open().unwrap();
            let mut inputs = inputs(Encapsulation::Always);
            let desired = planned(&mut kernel, inputs.clone()).await;
            apply(&mut kernel, &desired).await.unwrap();
            inputs.settings.vxlan_port = 4799;
            let moved = planned(&mut kernel, inputs).await;
            let report = apply(&mut kernel, &moved).await.unwrap();
            assert_eq!((report.devices_created, report.neighbours_set, report.nft_applied), (1, 2, true));
            kernel.forget();
            assert_eq!(apply(&mut kernel, &moved).await.unwrap(), Report::default());
        });
    });
}

#[test]
fn a_pool_without_vxlan_moves_routes_and_removes_the_device() {
    on_node("a_pool_without_vxlan_moves_routes_and_removes_the_device", || {
        block_on(async {
            let mut kernel = Kernel::open().unwrap();
            let desired = planned(&mut kernel, inputs(Encapsulation::Always)).await;
            apply(&mut kernel, &desired).await.unwrap();
            let direct = planned(&mut kernel, inputs(Encapsulation::Never)).await;
            let report = apply(&mut kernel, &direct).await.unwrap();
            assert_eq!((report.devices_removed, report.routes_set, report.routes_removed), (1, 1, 0));
            kernel.forget();
            assert_eq!(apply(&mut kernel, &direct).await.unwrap(), Report::default());
        });
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    on_node("what_is_not_ours_is_left_alone", || {
        block_on(async {
            change(
                RouteNetlinkMessage::NewRoute(route("10.99.0.0", 24, "eth0", RouteProtocol::Static)),
                NLM_F_CREATE,
            );
            // In the place of one of ours, with the same metric.
            change(
                RouteNetlinkMessage::NewRoute(route("192.168.20.0", 26, "eth0", RouteProtocol::Static)),
                NLM_F_CREATE,
            );
            // Ours from an earlier life: nobody wants it.
            change(
                RouteNetlinkMessage::NewRoute(route("192.168.77.0", 26, "eth0", RouteProtocol::from(80))),
                NLM_F_CREATE,
            );
            let mut kernel = Kernel::open().unwrap();
            let desired = planned(&mut kernel, inputs(Encapsulation::Never)).await;
            let report = apply(&mut kernel, &desired).await.unwrap();
            assert_eq!((report.routes_set, report.routes_removed), (1, 1));
            assert!(report.skipped.iter().any(|skipped| skipped.contains("192.168.20.0/26")), "{report:?}");
            let expected = ["10.99.0.0/24 4", "172.18.0.0/16 2", "192.168.10.0/26 80", "192.168.20.0/26 4"];
            assert_eq!(table(), expected.map(str::to_owned).into());
        });
    });
}

#[test]
fn pods_come_and_go_without_a_complete_pass() {
    on_node("pods_come_and_go_without_a_complete_pass", || {
        let pod = Namespace::new();
        here().wire("calia1", "", &pod, "eth0", "");
        block_on(async {
            let mut kernel = Kernel::open().unwrap();
            let mut inputs = inputs(Encapsulation::Never);
            let without = planned(&mut kernel, inputs.clone()).await;
            apply(&mut kernel, &without).await.unwrap();
            // A route that a complete pass would remove shows that none is made.
            change(
                RouteNetlinkMessage::NewRoute(route("192.168.77.0", 26, "eth0", RouteProtocol::from(80))),
                NLM_F_CREATE,
            );
            let endpoint = |address: &str, interface: &str| Endpoint {
                address: address.parse().unwrap(),
                interface: interface.to_owned(),
            };
            inputs.endpoints.insert(endpoint("192.168.10.1", "calia1"));
            inputs.endpoints.insert(endpoint("192.168.10.2", "cali-not-yet"));
            let with = planned(&mut kernel, inputs).await;
            let came = apply(&mut kernel, &with).await.unwrap();
            assert_eq!((came.routes_set, came.skipped.len()), (1, 1), "{came:?}");
            assert!(table().contains("192.168.10.1/32 3"), "{:?}", table());
            assert_eq!(apply(&mut kernel, &with).await.unwrap(), Report::default());
            let went = apply(&mut kernel, &without).await.unwrap();
            assert_eq!((went.routes_set, went.routes_removed), (0, 1));
            assert!(table().contains("192.168.77.0/26 80"));
        });
    });
}

#[test]
fn a_pods_route_that_nobody_told_of_is_not_removed_at_once() {
    on_node("a_pods_route_that_nobody_told_of_is_not_removed_at_once", || {
        let pod = Namespace::new();
        here().wire("calia1", "", &pod, "eth0", "");
        block_on(async {
            let mut kernel = Kernel::open().unwrap();
            let desired = planned(&mut kernel, inputs(Encapsulation::Never)).await;
            change(
                RouteNetlinkMessage::NewRoute(route("192.168.10.9", 32, "calia1", RouteProtocol::Boot)),
                NLM_F_CREATE,
            );
            for _ in 0..2 {
                kernel.forget();
                let report = apply(&mut kernel, &desired).await.unwrap();
                assert_eq!(report.routes_removed, 0);
            }
            assert!(table().contains("192.168.10.9/32 3"));
        });
    });
}

#[test]
fn rules_that_nft_refuses_are_an_error_after_routes_are_in_place() {
    on_node("rules_that_nft_refuses_are_an_error_after_routes_are_in_place", || {
        block_on(async {
            let mut kernel = Kernel::open().unwrap();
            let mut desired = planned(&mut kernel, inputs(Encapsulation::Never)).await;
            desired.nft.push_str("no such word\n");
            let error = apply(&mut kernel, &desired).await.unwrap_err();
            assert!(matches!(error, ApplyError::Nft { .. }), "{error}");
            assert!(table().contains("192.168.20.0/26 80"), "{:?}", table());
        });
    });
}

#[test]
fn ipv6_is_applied_and_found_again() {
    on_node("ipv6_is_applied_and_found_again", || {
        give("eth0", "fd00:172::2/64");
        block_on(async {
            let six = |address: &str, tunnel: &str| NodeAddresses {
                ipv6: NodeAddress::parse(address),
                vxlan_ipv6: tunnel.parse().ok(),
                ..NodeAddresses::default()
            };
            let mut inputs = inputs(Encapsulation::Always);
            inputs.pools[0].cidr = "fd00:10:244::/48".parse().unwrap();
            inputs.nodes = [
                ("node1".to_owned(), six("fd00:172::2/64", "fd00:10:244:1::")),
                ("node2".to_owned(), six("fd00:172::3/64", "fd00:10:244:2::")),
            ]
            .into();
            inputs.blocks =
                vec![block("fd00:10:244:1::/122", "node1"), block("fd00:10:244:2::/122", "node2")];
            let mut kernel = Kernel::open().unwrap();
            let desired = planned(&mut kernel, inputs).await;
            let first = apply(&mut kernel, &desired).await.unwrap();
            assert_eq!(
                (first.routes_set, first.devices_created, first.neighbours_set),
                (2, 1, 2),
                "{first:?}"
            );
            kernel.forget();
            assert_eq!(apply(&mut kernel, &desired).await.unwrap(), Report::default());
        });
    });
}
