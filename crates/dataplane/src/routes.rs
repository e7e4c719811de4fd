//! Routes of the main table: which are ours, what differs, and how a change is written.

use crate::desired::{FAMILIES, Route, Target, vxlan_device_name};
use crate::failure::ApplyError;
use crate::netlink::Netlink;
use api::{Cidr, IpVersion};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

/// Routes by the kernel itself (link-local networks of IPv6): never ours, whatever their device.
const KERNEL_PROTOCOL: u8 = 2;

/// What the kernel tells routes of the main table apart by, all of ours having no TOS.
pub(crate) type RouteKey = (Cidr, u32);

/// A route as the kernel keeps it, with devices by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelRoute {
    pub(crate) destination: Cidr,
    pub(crate) metric: u32,
    pub(crate) blackhole: bool,
    pub(crate) protocol: u8,
    /// Scope number; 0 for all of IPv6, which has none.
    pub(crate) scope: u8,
    /// Index of the device; none for blackholes, which the kernel lists on `lo` in IPv6.
    pub(crate) device: Option<u32>,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) onlink: bool,
    pub(crate) mtu: Option<u32>,
    /// It has several next hops, a source or the like: never so by us.
    pub(crate) foreign: bool,
}

impl KernelRoute {
    pub(crate) fn key(&self) -> RouteKey {
        (self.destination, self.metric)
    }

    /// The form in which the kernel will list a planned route.
    pub(crate) fn of(route: &Route, device: Option<u32>) -> Self {
        let (gateway, link_scope) = match &route.target {
            Target::Gateway { gateway, .. } => (Some(*gateway), false),
            Target::Pod { .. } | Target::Tunnel { .. } => (None, true),
            Target::Blackhole => (None, false),
        };
        let has_scope = route.destination.version() == IpVersion::V4;
        Self {
            destination: route.destination,
            metric: route.metric(),
            blackhole: route.target == Target::Blackhole,
            protocol: route.protocol(),
            scope: if link_scope && has_scope { u8::from(RouteScope::Link) } else { 0 },
            device,
            gateway,
            onlink: gateway.is_some(),
            mtu: route.mtu,
            foreign: false,
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(self.destination.version()),
            destination_prefix_length: self.destination.prefix(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::from(self.protocol),
            scope: RouteScope::from(self.scope),
            kind: if self.blackhole { RouteType::BlackHole } else { RouteType::Unicast },
            flags: if self.onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
            ..RouteHeader::default()
        };
        message.attributes.push(RouteAttribute::Destination(address(self.destination.network())));
        message.attributes.extend(self.gateway.map(|gateway| RouteAttribute::Gateway(address(gateway))));
        message.attributes.extend(self.device.map(RouteAttribute::Oif));
        message.attributes.extend((self.metric != 0).then_some(RouteAttribute::Priority(self.metric)));
        message.attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        message
    }
}

/// Reads the main table of both families.
pub(crate) async fn read(netlink: &mut Netlink) -> Result<Vec<KernelRoute>, ApplyError> {
    let mut found = Vec::new();
    for version in FAMILIES {
        let mut request = RouteMessage::default();
        request.header.address_family = family(version);
        let listed = match netlink.dump(&RouteNetlinkMessage::GetRoute(request)).await {
            Ok(listed) => listed,
            // A kernel without IPv6 has no routes of it.
            Err(error) if version == IpVersion::V6 && is_unsupported(&error) => Vec::new(),
            Err(error) => return Err(ApplyError::netlink("listing routes")(error)),
        };
        found.extend(listed.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(message) => decode(message, version),
            _ => None,
        }));
    }
    Ok(found)
}

fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error())
}

fn decode(message: RouteMessage, version: IpVersion) -> Option<KernelRoute> {
    let header = message.header;
    let any = match version {
        IpVersion::V4 => IpAddr::from([0_u8; 4]),
        IpVersion::V6 => IpAddr::from([0_u8; 16]),
    };
    let (mut destination, mut table) = (any, u32::from(header.table));
    let mut route = KernelRoute {
        destination: Cidr::from(any),
        metric: 0,
        blackhole: header.kind == RouteType::BlackHole,
        protocol: u8::from(header.protocol),
        scope: if version == IpVersion::V4 { u8::from(header.scope) } else { 0 },
        device: None,
        gateway: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        mtu: None,
        foreign: !matches!(header.kind, RouteType::BlackHole | RouteType::Unicast) || header.tos != 0,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(&address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(&address),
            RouteAttribute::Oif(index) => route.device = Some(index),
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::Table(number) => table = number,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    if let RouteMetric::Mtu(mtu) = metric {
                        route.mtu = Some(mtu);
                    }
                }
            }
            RouteAttribute::MultiPath(_) | RouteAttribute::Encap(_) | RouteAttribute::PrefSource(_) => {
                route.foreign = true;
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    route.destination = Cidr::containing(destination, header.destination_prefix_length)?;
    if route.blackhole {
        route.device = None;
    }
    Some(route)
}

/// Whose a listed route is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// Ours by protocol or device: removed as soon as it is not wanted.
    Ours,
    /// Leads to a pod: someone may be about to tell us, so it is removed only when it stays unknown.
    Pod,
    /// None of our business.
    Foreign,
}

/// Judges by protocol and by the name of the device (dataplane §13.1).
pub(crate) fn ownership(route: &KernelRoute, device: Option<&str>) -> Ownership {
    if route.protocol == KERNEL_PROTOCOL {
        return Ownership::Foreign;
    }
    match device {
        Some(name) if name.starts_with("cali") => Ownership::Pod,
        _ if route.protocol == crate::ROUTE_PROTOCOL => Ownership::Ours,
        Some(name) if FAMILIES.iter().any(|version| vxlan_device_name(*version) == name) => Ownership::Ours,
        _ => Ownership::Foreign,
    }
}

/// What to write so that the table holds what is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Routes to add or to put in the place of one with the same key.
    pub(crate) set: Vec<KernelRoute>,
    /// Our routes that nobody wants.
    pub(crate) remove: Vec<KernelRoute>,
    /// Pods' routes that nobody wants, as far as we know.
    pub(crate) unknown: Vec<KernelRoute>,
    /// Wanted destinations that a foreign route occupies with the same metric.
    pub(crate) occupied: Vec<Cidr>,
}

/// Compares what is listed with what is wanted. Pure; each wanted route is looked up once.
pub(crate) fn diff(listed: Vec<(KernelRoute, Ownership)>, wanted: Vec<KernelRoute>) -> Changes {
    let mut wanted: BTreeMap<RouteKey, KernelRoute> =
        wanted.into_iter().map(|route| (route.key(), route)).collect();
    let mut changes = Changes::default();
    for (route, ownership) in listed {
        match (wanted.get(&route.key()), ownership) {
            (Some(same), _) if *same == route => {
                wanted.remove(&route.key());
            }
            (Some(_), Ownership::Foreign) => {
                wanted.remove(&route.key());
                changes.occupied.push(route.destination);
            }
            // Replaced in place by what is left in `wanted`: no packet finds the table without it.
            (Some(_), _) | (None, Ownership::Foreign) => {}
            (None, Ownership::Ours) => changes.remove.push(route),
            (None, Ownership::Pod) => changes.unknown.push(route),
        }
    }
    changes.set = wanted.into_values().collect();
    changes
}

/// Adds a route, or swaps the one of the same destination and metric for it.
pub(crate) async fn set(netlink: &mut Netlink, route: &KernelRoute) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewRoute(route.message());
    netlink.change(message, NLM_F_CREATE | NLM_F_REPLACE).await
}

/// Removes a route; one that is gone already counts as removed.
///
/// The device is part of the request, so that a route that moved to another pod in the meantime stays.
pub(crate) async fn remove(netlink: &mut Netlink, route: &KernelRoute) -> io::Result<()> {
    match netlink.change(RouteNetlinkMessage::DelRoute(route.message()), 0).await {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(()),
        done => done,
    }
}

pub(crate) fn family(version: IpVersion) -> AddressFamily {
    match version {
        IpVersion::V4 => AddressFamily::Inet,
        IpVersion::V6 => AddressFamily::Inet6,
    }
}

fn address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blackhole(cidr: &str) -> KernelRoute {
        let destination = cidr.parse().unwrap();
        KernelRoute::of(&Route { destination, target: Target::Blackhole, mtu: None }, None)
    }

    fn via(cidr: &str, gateway: &str) -> KernelRoute {
        let target = Target::Gateway { gateway: gateway.parse().unwrap(), device: "eth0".to_owned() };
        KernelRoute::of(&Route { destination: cidr.parse().unwrap(), target, mtu: None }, Some(2))
    }

    #[test]
    fn equal_tables_give_no_changes() {
        let route = via("192.168.20.0/26", "172.18.0.3");
        let changes = diff(vec![(route.clone(), Ownership::Ours)], vec![route]);
        assert_eq!(changes, Changes::default());
    }

    #[test]
    fn a_changed_gateway_is_replaced_and_not_removed_first() {
        let old = via("192.168.20.0/26", "172.18.0.3");
        let new = via("192.168.20.0/26", "172.18.0.9");
        let changes = diff(vec![(old, Ownership::Ours)], vec![new.clone()]);
        assert_eq!(changes, Changes { set: vec![new], ..Changes::default() });
    }

    #[test]
    fn only_our_own_are_removed() {
        let (ours, pod, foreign) =
            (blackhole("10.1.0.0/26"), blackhole("10.2.0.0/26"), blackhole("10.3.0.0/26"));
        let changes = diff(
            vec![
                (ours.clone(), Ownership::Ours),
                (pod.clone(), Ownership::Pod),
                (foreign, Ownership::Foreign),
            ],
            Vec::new(),
        );
        let expected = Changes { remove: vec![ours], unknown: vec![pod], ..Changes::default() };
        assert_eq!(changes, expected);
    }

    #[test]
    fn a_foreign_route_in_the_way_stays() {
        let foreign = KernelRoute { protocol: 4, ..via("192.168.20.0/26", "172.18.0.250") };
        let wanted = via("192.168.20.0/26", "172.18.0.3");
        let changes = diff(vec![(foreign, Ownership::Foreign)], vec![wanted.clone()]);
        let expected = Changes { occupied: vec![wanted.destination], ..Changes::default() };
        assert_eq!(changes, expected);
    }

    #[test]
    fn ownership_rests_on_protocol_and_device() {
        let route = via("192.168.20.0/26", "172.18.0.3");
        assert_eq!(ownership(&route, Some("eth0")), Ownership::Ours);
        let boot = KernelRoute { protocol: 3, ..route.clone() };
        assert_eq!(ownership(&boot, Some("eth0")), Ownership::Foreign);
        assert_eq!(ownership(&boot, Some("vxlan.calico")), Ownership::Ours);
        assert_eq!(ownership(&boot, Some("cali0123456789a")), Ownership::Pod);
        let kernel = KernelRoute { protocol: 2, ..route };
        assert_eq!(ownership(&kernel, Some("cali0123456789a")), Ownership::Foreign);
    }
}
