//! Comparing a pod's wiring with what an ADD made of it (CNI's CHECK): both interfaces, addresses and routes.

use crate::netlink::Netlink;
use crate::wire::{GATEWAY, GATEWAY_IPV6, WireError, enter, failed, family, full_prefix, index_of};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::fs::File;
use std::net::IpAddr;

/// What an ADD made.
#[derive(Clone, Debug)]
pub struct Made<'a> {
    /// Name of the host end.
    pub host: &'a str,
    /// Name of the pod's end.
    pub interface: &'a str,
    /// The pod's network namespace, open.
    pub namespace: &'a File,
    /// The pod's addresses.
    pub addresses: &'a [IpAddr],
    /// MAC address of the pod's end as the result told it; empty: not told.
    pub mac: &'a str,
    /// MTU of the pod's end in bytes; 0: not told.
    pub mtu: u32,
}

/// Everything in which the kernel differs from what an ADD made, in words. The thread may be in the pod's namespace afterwards.
///
/// # Errors
/// [`WireError`] if the kernel cannot be asked.
pub fn differences(made: &Made<'_>) -> Result<Vec<String>, WireError> {
    let mut found = Vec::new();
    let (host, interface) = (made.host, made.interface);
    match index_of(host) {
        Err(_) => found.push(format!("interface {host} is missing on the node")),
        Ok(index) => {
            let mut node = Netlink::open().map_err(failed("opening a netlink socket"))?;
            for address in made.addresses {
                let routes = routes(&mut node, *address)?;
                if !routes.iter().any(|route| route.leads(index, Some(*address), full_prefix(*address), None))
                {
                    found.push(format!("the node has no route to {address} through {host}"));
                }
            }
        }
    }
    enter(made.namespace).map_err(failed("entering the pod's network namespace"))?;
    let Ok(index) = index_of(interface) else {
        found.push(format!("interface {interface} is missing in the pod"));
        return Ok(found);
    };
    let mut pod = Netlink::open().map_err(failed("opening a netlink socket"))?;
    link(&mut pod, index, made, &mut found)?;
    let held = addresses(&mut pod, index)?;
    for address in made.addresses.iter().filter(|address| !held.contains(address)) {
        found.push(format!("address {address} is missing from {interface} in the pod"));
    }
    let gateways =
        [(GATEWAY.into(), IpAddr::is_ipv4 as fn(&IpAddr) -> bool), (GATEWAY_IPV6.into(), IpAddr::is_ipv6)];
    for (gateway, is_of) in gateways {
        if !made.addresses.iter().any(is_of) {
            continue;
        }
        let routes = routes(&mut pod, gateway)?;
        if gateway.is_ipv4() && !routes.iter().any(|route| route.leads(index, Some(gateway), 32, None)) {
            found.push(format!("the pod has no route to its gateway {gateway} through {interface}"));
        }
        if !routes.iter().any(|route| route.leads(index, None, 0, Some(gateway))) {
            found.push(format!("the pod has no default route through {gateway} on {interface}"));
        }
    }
    Ok(found)
}

/// A route of the main table.
struct Route {
    out: Option<u32>,
    destination: Option<RouteAddress>,
    prefix: u8,
    gateway: Option<RouteAddress>,
}

impl Route {
    fn leads(&self, out: u32, to: Option<IpAddr>, prefix: u8, through: Option<IpAddr>) -> bool {
        let is = |found: &Option<RouteAddress>, wanted: Option<IpAddr>| match (found, wanted) {
            (Some(RouteAddress::Inet(found)), Some(IpAddr::V4(wanted))) => *found == wanted,
            (Some(RouteAddress::Inet6(found)), Some(IpAddr::V6(wanted))) => *found == wanted,
            (None, None) => true,
            _ => false,
        };
        self.out == Some(out)
            && self.prefix == prefix
            && is(&self.destination, to)
            && (through.is_none() || is(&self.gateway, through))
    }
}

fn routes(socket: &mut Netlink, like: IpAddr) -> Result<Vec<Route>, WireError> {
    let mut question = RouteMessage::default();
    question.header.address_family = family(like);
    let answer = socket.dump(RouteNetlinkMessage::GetRoute(question)).map_err(failed("listing routes"))?;
    let of_main = answer.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) if route.header.table == RouteHeader::RT_TABLE_MAIN => {
            Some(route)
        }
        _ => None,
    });
    Ok(of_main
        .map(|route| {
            let mut found = Route {
                out: None,
                destination: None,
                prefix: route.header.destination_prefix_length,
                gateway: None,
            };
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => found.out = Some(index),
                    RouteAttribute::Destination(destination) => found.destination = Some(destination),
                    RouteAttribute::Gateway(gateway) => found.gateway = Some(gateway),
                    _ => {}
                }
            }
            found
        })
        .collect())
}

fn addresses(socket: &mut Netlink, index: u32) -> Result<Vec<IpAddr>, WireError> {
    let answer = socket
        .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .map_err(failed("listing the pod's addresses"))?;
    let of_link = answer.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(message) if message.header.index == index => Some(message),
        _ => None,
    });
    Ok(of_link
        .flat_map(|message| message.attributes)
        .filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(address),
            _ => None,
        })
        .collect())
}

/// MAC address and MTU of the pod's end.
fn link(socket: &mut Netlink, index: u32, made: &Made<'_>, found: &mut Vec<String>) -> Result<(), WireError> {
    let mut question = LinkMessage::default();
    question.header.interface_family = AddressFamily::Unspec;
    let answer = socket
        .dump(RouteNetlinkMessage::GetLink(question))
        .map_err(failed("listing the pod's interfaces"))?;
    let of_link = answer.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(message) if message.header.index == index => Some(message),
        _ => None,
    });
    for attribute in of_link.flat_map(|message| message.attributes) {
        match attribute {
            LinkAttribute::Address(mac) if !made.mac.is_empty() => {
                let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
                let mac = mac.join(":");
                if !mac.eq_ignore_ascii_case(made.mac) {
                    found.push(format!(
                        "{} in the pod has MAC address {mac}, not {}",
                        made.interface, made.mac
                    ));
                }
            }
            LinkAttribute::Mtu(mtu) if made.mtu != 0 && mtu != made.mtu => {
                found.push(format!("{} in the pod has MTU {mtu}, not {}", made.interface, made.mtu));
            }
            _ => {}
        }
    }
    Ok(())
}
