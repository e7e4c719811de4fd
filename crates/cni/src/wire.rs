//! Wiring a pod: a veth pair, the way out through 169.254.1.1, and the host's route to it (CNI spec §9.3).
//!
//! ```text
//!  pod's namespace                              node's namespace
//!  eth0  192.168.10.5/32 ─────────────────────  cali0d7763386da  (MAC ee:ee:ee:ee:ee:ee, no address)
//!  169.254.1.1 dev eth0 scope link              192.168.10.5 dev cali0d7763386da scope link metric 1024
//!  default via 169.254.1.1
//!  neighbour 169.254.1.1 → ee:ee:ee:ee:ee:ee
//! ```
//! The neighbour entry is ours: proxy ARP, by which Calico answers for 169.254.1.1, needs a default route on the node,
//! and a node may have none (dataplane §5).

use crate::netlink::Netlink;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sha1::{Digest as _, Sha1};
use std::fs::File;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

/// MAC of every host end: pods reach it over a wire of their own, so they may all be equal.
const HOST_MAC: [u8; 6] = [0xee; 6];
/// Next hop of pods.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Next hop of pods in IPv6: the link-local address that follows from [`HOST_MAC`].
pub(crate) const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);
/// Metric of the host's routes to pods. The agent wants the same; below it BIRD takes a pod for a migrating one.
const HOST_ROUTE_METRIC: u32 = 1024;

/// What failed while a pod was wired, and how.
#[derive(Debug, thiserror::Error)]
#[error("{doing} failed")]
pub struct WireError {
    /// What was attempted, on which object, with the remedy where there is one.
    pub doing: String,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

pub(crate) fn failed(doing: impl Into<String>) -> impl FnOnce(io::Error) -> WireError {
    let doing = doing.into();
    move |source| WireError { doing, source }
}

/// Next hop of pods.
#[must_use]
pub fn gateway(is_v6: bool) -> IpAddr {
    if is_v6 { GATEWAY_IPV6.into() } else { GATEWAY.into() }
}

/// How a pod is to be wired.
#[derive(Clone, Debug)]
pub struct Wiring<'a> {
    /// Name of the host end.
    pub host: &'a str,
    /// Name of the pod's end.
    pub interface: &'a str,
    /// Identity that the pod's MAC is derived from, so that it needs not be read back.
    pub container: &'a str,
    /// The pod's network namespace, open.
    pub namespace: &'a File,
    /// Bytes; 0: the kernel's default.
    pub mtu: u32,
    /// The pod's addresses.
    pub addresses: &'a [IpAddr],
    /// The pod may forward packets.
    pub forwarding: bool,
}

/// MAC of a pod's end: locally administered, from the container's id and the interface's name.
#[must_use]
pub fn pod_mac(container: &str, interface: &str) -> [u8; 6] {
    let digest = Sha1::digest(format!("{container}/{interface}"));
    let mut mac = [0; 6];
    for (byte, hashed) in mac.iter_mut().zip(digest) {
        *byte = hashed;
    }
    // Not a group address, and not one that a maker of cards gave out.
    mac[0] = (mac[0] & 0xfe) | 0x02;
    mac
}

/// Wires a pod. The thread is in the pod's namespace afterwards: the plugin has nothing to do in the node's any more.
///
/// # Errors
/// [`WireError`]; the pair is removed then.
pub fn wire(wiring: &Wiring<'_>) -> Result<(), WireError> {
    let has_v6 = wiring.addresses.iter().any(IpAddr::is_ipv6);
    let mut node = Netlink::open().map_err(failed("opening a netlink socket"))?;
    make_pair(&mut node, wiring, !has_v6)?;
    let furnished = furnish(&mut node, wiring, has_v6);
    if furnished.is_err() {
        // By the socket in the node's namespace, wherever the thread is by now.
        let _ = delete(&mut node, wiring.host);
    }
    furnished
}

/// Everything after the pair exists: sysctls, the pod's side, the host's routes.
fn furnish(node: &mut Netlink, wiring: &Wiring<'_>, has_v6: bool) -> Result<(), WireError> {
    let index = index_of(wiring.host).map_err(failed(format!("finding {}", wiring.host)))?;
    host_sysctls(wiring.host, wiring.addresses)?;
    if has_v6 {
        let (message, flags) = raising(index);
        node.change(message, flags).map_err(failed(format!("setting {} up", wiring.host)))?;
    }
    enter(wiring.namespace).map_err(failed("entering the pod's network namespace"))?;
    pod_side(wiring, has_v6)?;
    for address in wiring.addresses {
        host_route(node, *address, index)
            .map_err(failed(format!("adding the route to {address} on {}", wiring.host)))?;
    }
    Ok(())
}

/// Removes the pod's end, and with it the host's. A namespace or interface that is gone counts as removed.
///
/// # Errors
/// [`WireError`] if the kernel refuses.
pub fn unwire(namespace: &File, interface: &str) -> Result<(), WireError> {
    match enter(namespace) {
        // What is mounted there is no namespace any more.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return Ok(()),
        entered => entered.map_err(failed("entering the pod's network namespace"))?,
    }
    let mut pod = Netlink::open().map_err(failed("opening a netlink socket"))?;
    delete(&mut pod, interface).map_err(failed(format!("removing {interface}")))
}

pub(crate) fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Makes both ends where they belong: a peer that is moved afterwards costs ten times as much.
fn make_pair(node: &mut Netlink, wiring: &Wiring<'_>, up: bool) -> Result<(), WireError> {
    // The peer cannot be up from the start: the kernel refuses while the host end is not there yet.
    let mut peer = end(wiring.interface, &pod_mac(wiring.container, wiring.interface), wiring.mtu, false);
    peer.attributes.push(LinkAttribute::NetNsFd(wiring.namespace.as_raw_fd()));
    let mut host = end(wiring.host, &HOST_MAC, wiring.mtu, up);
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let make = |node: &mut Netlink| {
        node.change(RouteNetlinkMessage::NewLink(host.clone()), NLM_F_CREATE | NLM_F_EXCL)
    };
    let made = match make(node) {
        // Left behind by an ADD that was cut off, or the pod comes again: the old pair goes, then it must work.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && index_of(wiring.host).is_ok() => {
            delete(node, wiring.host).map_err(failed(format!("removing the old {}", wiring.host)))?;
            make(node)
        }
        made => made,
    };
    made.map_err(failed(format!(
        "making the pair {} and {} (it exists in the pod if the kernel says so)",
        wiring.host, wiring.interface
    )))
}

fn end(name: &str, mac: &[u8; 6], mtu: u32, up: bool) -> LinkMessage {
    let mut message = LinkMessage::default();
    if up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    }
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    message.attributes.extend((mtu != 0).then_some(LinkAttribute::Mtu(mtu)));
    message
}

/// Writes the sysctls of the host end. Those that only help are tried and not insisted on.
fn host_sysctls(host: &str, addresses: &[IpAddr]) -> Result<(), WireError> {
    let needed = |path: String| sysctl(&path, "1").map_err(failed(format!("setting sysctl {path}")));
    let tried = |path: String, value: &str| {
        let _ = sysctl(&path, value);
    };
    if addresses.iter().any(IpAddr::is_ipv4) {
        needed(format!("net/ipv4/conf/{host}/forwarding"))?;
        needed(format!("net/ipv4/conf/{host}/proxy_arp"))?;
        tried(format!("net/ipv4/conf/{host}/route_localnet"), "1");
        tried(format!("net/ipv4/neigh/{host}/proxy_delay"), "0");
    }
    if addresses.iter().any(IpAddr::is_ipv6) {
        tried(format!("net/ipv6/conf/{host}/accept_dad"), "0");
        tried(format!("net/ipv6/conf/{host}/disable_ipv6"), "0");
        needed(format!("net/ipv6/conf/{host}/forwarding"))?;
        tried(format!("net/ipv6/conf/{host}/proxy_ndp"), "1");
    }
    tried(format!("net/ipv6/conf/{host}/accept_ra"), "0");
    Ok(())
}

/// Writes a sysctl of the namespace that the thread is in.
fn sysctl(path: &str, value: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(Path::new("/proc/sys").join(path))?;
    file.write_all(value.as_bytes())
}

/// Routes, neighbour and addresses of the pod's end. The thread is in the pod's namespace.
fn pod_side(wiring: &Wiring<'_>, has_v6: bool) -> Result<(), WireError> {
    let interface = wiring.interface;
    let mut pod = Netlink::open().map_err(failed("opening a netlink socket"))?;
    let index = index_of(interface).map_err(failed(format!("finding {interface} in the pod")))?;
    let forwarding = if wiring.forwarding { "1" } else { "0" };
    if has_v6 {
        for scope in ["all", "default", "lo"] {
            let _ = sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "0");
        }
        // An address that is probed for duplicates cannot be used meanwhile; on this wire there is nobody to have it.
        let _ = sysctl(&format!("net/ipv6/conf/{interface}/accept_dad"), "0");
    }
    // Everything by one call of the kernel; each is told by name if it is refused.
    let mut steps = vec![(raising(index), format!("setting {interface} up"))];
    if wiring.addresses.iter().any(IpAddr::is_ipv4) {
        steps.extend(way_out(index, IpAddr::V4(GATEWAY)));
    }
    if has_v6 {
        steps.extend(way_out(index, IpAddr::V6(GATEWAY_IPV6)));
    }
    steps.extend(wiring.addresses.iter().map(|address| {
        let mut message = AddressMessage::default();
        message.header.family = family(*address);
        message.header.prefix_len = full_prefix(*address);
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(*address), AddressAttribute::Address(*address)];
        let doing = format!("giving {interface} its address {address}");
        ((RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE), doing)
    }));
    let (changes, doing): (Vec<Change>, Vec<String>) = steps.into_iter().unzip();
    pod.change_all(changes)
        .map_err(|refused| failed(doing.get(refused.index).cloned().unwrap_or_default())(refused.source))?;
    if wiring.addresses.iter().any(IpAddr::is_ipv4) {
        let _ = sysctl("net/ipv4/ip_forward", forwarding);
    }
    if has_v6 {
        let _ = sysctl("net/ipv6/conf/all/forwarding", forwarding);
    }
    Ok(())
}

/// A message to the kernel and its flags.
type Change = (RouteNetlinkMessage, u16);

/// The neighbour and the routes by which a pod reaches everything.
fn way_out(index: u32, gateway: IpAddr) -> Vec<(Change, String)> {
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = family(gateway);
    neighbour.header.ifindex = index;
    neighbour.header.state = NeighbourState::Permanent;
    neighbour.header.kind = RouteType::Unicast;
    let destination = match gateway {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    neighbour.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(HOST_MAC.to_vec()),
    ];
    let mut messages = vec![RouteNetlinkMessage::NewNeighbour(neighbour)];
    // In IPv6 the gateway is link-local, and the kernel has the route to those itself.
    if gateway.is_ipv4() {
        let mut beside = route(gateway, full_prefix(gateway), index, RouteScope::Link);
        beside.attributes.push(RouteAttribute::Destination(route_address(gateway)));
        messages.push(RouteNetlinkMessage::NewRoute(beside));
    }
    let mut onward = route(gateway, 0, index, RouteScope::Universe);
    onward.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
    messages.push(RouteNetlinkMessage::NewRoute(onward));
    let doing = format!("adding the pod's way out through {gateway}");
    messages.into_iter().map(|message| ((message, NLM_F_CREATE | NLM_F_REPLACE), doing.clone())).collect()
}

/// Puts the host's route to a pod in place, or in the place of one that an earlier pod left.
fn host_route(node: &mut Netlink, address: IpAddr, index: u32) -> io::Result<()> {
    let mut message = route(address, full_prefix(address), index, RouteScope::Link);
    message.attributes.push(RouteAttribute::Destination(route_address(address)));
    message.attributes.push(RouteAttribute::Priority(HOST_ROUTE_METRIC));
    node.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// A unicast route of the main table through a device, still without destination.
fn route(like: IpAddr, prefix: u8, index: u32, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(like);
    message.header.destination_prefix_length = prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(crate) fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The message that sets an interface up.
fn raising(index: u32) -> Change {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// Removes an interface by name; one that is not there counts as removed.
fn delete(socket: &mut Netlink, name: &str) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match socket.change(RouteNetlinkMessage::DelLink(message), 0) {
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(()),
        done => done,
    }
}

/// Index of an interface of the namespace that the thread is in.
pub(crate) fn index_of(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(rustix::net::netdevice::name_to_index(socket, name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_mac_is_its_own_and_locally_administered() {
        let mac = pod_mac("0f3a", "eth0");
        assert_eq!(mac[0] & 0x03, 0x02);
        assert_ne!(mac, pod_mac("0f3b", "eth0"));
        assert_ne!(mac, pod_mac("0f3a", "net1"));
        assert_eq!(mac, pod_mac("0f3a", "eth0"));
    }
}
