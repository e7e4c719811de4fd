//! Which address the node has in its network, with the prefix length that its interface gives (dataplane §2).

use dataplane::NodeAddress;
use futures::TryStreamExt as _;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// Names of interfaces that never hold the node's own address.
const SKIPPED: [&str; 11] =
    ["lo", "cali", "tunl", "vxlan", "docker", "br-", "virbr", "veth", "dummy", "kube-ipvs", "wireguard"];

/// Why the addresses are not known.
#[derive(Debug, thiserror::Error)]
#[error("the addresses of this host cannot be read from the kernel: the agent needs a netlink socket")]
pub(crate) struct HostAddressError(#[source] rtnetlink::Error);

/// One address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    interface: String,
    address: Ipv4Addr,
    prefix: u8,
}

/// The node's IPv4 address: the one of `internal`, its InternalIPs, that an interface holds, else the first address
/// of the first interface that looks like the host's own. `None` while there is neither.
///
/// # Errors
/// [`HostAddressError`].
pub(crate) async fn ipv4(
    netlink: &rtnetlink::Handle,
    internal: &[IpAddr],
) -> Result<Option<NodeAddress>, HostAddressError> {
    let mut names = BTreeMap::new();
    let mut links = netlink.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(HostAddressError)? {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        names.insert(link.header.index, name.unwrap_or_default());
    }
    let mut held = Vec::new();
    let mut addresses = netlink.address().get().execute();
    while let Some(message) = addresses.try_next().await.map_err(HostAddressError)? {
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
        if let (Some(address), Some(interface)) = (local, names.get(&message.header.index)) {
            let prefix = message.header.prefix_len;
            held.push(Held { interface: interface.clone(), address, prefix });
        }
    }
    Ok(choose(&held, internal))
}

fn choose(held: &[Held], internal: &[IpAddr]) -> Option<NodeAddress> {
    let named = held.iter().find(|held| internal.contains(&IpAddr::V4(held.address)));
    let own = |held: &&Held| {
        !SKIPPED.iter().any(|skipped| held.interface.starts_with(skipped))
            && !held.address.is_loopback()
            && !held.address.is_link_local()
    };
    let found = named.or_else(|| held.iter().find(own))?;
    Some(NodeAddress { address: found.address.into(), prefix: found.prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(interface: &str, address: &str, prefix: u8) -> Held {
        Held { interface: interface.to_owned(), address: address.parse().unwrap(), prefix }
    }

    #[test]
    fn internal_address_wins_and_takes_its_interfaces_prefix() {
        let held = [held("lo", "127.0.0.1", 8), held("eth0", "10.0.0.5", 24), held("eth1", "172.18.0.3", 16)];
        let internal = ["172.18.0.3".parse().unwrap()];
        assert_eq!(choose(&held, &internal), NodeAddress::parse("172.18.0.3/16"));
        assert_eq!(choose(&held, &[]), NodeAddress::parse("10.0.0.5/24"));
    }

    #[test]
    fn interfaces_of_pods_and_tunnels_are_passed_over() {
        let held = [held("cali0123456789a", "192.168.1.1", 32), held("vxlan.calico", "192.168.10.0", 32)];
        assert_eq!(choose(&held, &[]), None);
    }
}
