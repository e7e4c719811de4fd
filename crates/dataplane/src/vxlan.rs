//! VXLAN devices with their address, and the neighbour and FDB entries that lead to other nodes (dataplane §4).

use crate::desired::{Report, VxlanDevice};
use crate::failure::ApplyError;
use crate::inputs::Mac;
use crate::links::{Link, VxlanFacts};
use crate::netlink::Netlink;
use crate::routes::family;
use api::IpVersion;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

/// Brings one device to its desired state and returns its index.
///
/// `None` when its parent interface is missing: everything through it waits for the next apply.
pub(crate) async fn ensure(
    netlink: &mut Netlink,
    desired: &VxlanDevice,
    links: &[Link],
    report: &mut Report,
) -> Result<Option<u32>, ApplyError> {
    let Some(parent) = links.iter().find(|link| link.name == desired.parent) else {
        report.skipped.push(format!("{}: its interface {} does not exist yet", desired.name, desired.parent));
        return Ok(None);
    };
    let wanted = facts(desired, parent.index);
    let mut found = links.iter().find(|link| link.name == desired.name).cloned();
    if let Some(link) = &found
        && (link.vxlan != Some(wanted) || link.mac != Some(desired.mac))
    {
        delete(netlink, desired.name, link.index).await?;
        found = None;
    }
    let link = match found {
        Some(link) => link,
        None => {
            create(netlink, desired, parent.index).await?;
            report.devices_created += 1;
            let index = index_of(desired.name)
                .map_err(ApplyError::netlink(format!("finding {} after making it", desired.name)))?;
            Link { index, mtu: desired.mtu, ..Link::default() }
        }
    };
    if link.mtu != desired.mtu || !link.up {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::Mtu(desired.mtu));
        netlink
            .change(RouteNetlinkMessage::SetLink(message), 0)
            .await
            .map_err(ApplyError::netlink(format!("setting {} up", desired.name)))?;
        report.devices_changed += 1;
    }
    addresses(netlink, desired, &link, report).await?;
    Ok(Some(link.index))
}

fn facts(desired: &VxlanDevice, parent: u32) -> VxlanFacts {
    VxlanFacts {
        vni: desired.vni,
        parent,
        local: Some(desired.local),
        port: desired.port,
        learning: false,
        foreign: false,
    }
}

async fn create(netlink: &mut Netlink, desired: &VxlanDevice, parent: u32) -> Result<(), ApplyError> {
    let local = match desired.local {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    };
    let properties = vec![
        InfoVxlan::Id(desired.vni),
        InfoVxlan::Link(parent),
        local,
        InfoVxlan::Learning(false),
        InfoVxlan::Port(desired.port),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(desired.name.to_owned()),
        LinkAttribute::Address(desired.mac.0.to_vec()),
        LinkAttribute::Mtu(desired.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(properties)),
        ]),
    ];
    let doing = format!(
        "making {} (VNI {}, port {}; another device with both makes it fail)",
        desired.name, desired.vni, desired.port
    );
    netlink
        .change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
        .await
        .map_err(ApplyError::netlink(doing))
}

/// Removes a device; one that is gone already counts as removed.
pub(crate) async fn delete(netlink: &mut Netlink, name: &str, index: u32) -> Result<(), ApplyError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    match netlink.change(RouteNetlinkMessage::DelLink(message), 0).await {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::NODEV.raw_os_error()) => {
            Err(ApplyError::netlink(format!("removing {name}"))(error))
        }
        _ => Ok(()),
    }
}

/// Index of an interface by name, without a dump.
pub(crate) fn index_of(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(rustix::net::netdevice::name_to_index(socket, name)?)
}

/// Leaves exactly the tunnel address on the device, besides the link-local one of IPv6.
async fn addresses(
    netlink: &mut Netlink,
    desired: &VxlanDevice,
    link: &Link,
    report: &mut Report,
) -> Result<(), ApplyError> {
    let full = IpVersion::of(desired.address).bits();
    let wanted = (desired.address, full);
    if !link.addresses.contains(&wanted) {
        let message = RouteNetlinkMessage::NewAddress(address_message(link.index, desired.address, full));
        netlink.change(message, NLM_F_CREATE | NLM_F_REPLACE).await.map_err(ApplyError::netlink(format!(
            "giving {} its address {}",
            desired.name, desired.address
        )))?;
        report.devices_changed += 1;
    }
    for (address, prefix) in &link.addresses {
        let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if (*address, *prefix) == wanted || is_link_local {
            continue;
        }
        let message = RouteNetlinkMessage::DelAddress(address_message(link.index, *address, *prefix));
        netlink
            .change(message, 0)
            .await
            .map_err(ApplyError::netlink(format!("taking address {address} from {}", desired.name)))?;
        report.devices_changed += 1;
    }
    Ok(())
}

fn address_message(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(IpVersion::of(address));
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

/// A permanent entry of a tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry {
    /// The MAC of a tunnel address.
    Neighbour {
        /// Tunnel address of another node.
        address: IpAddr,
        /// MAC of its device.
        mac: Mac,
    },
    /// The node behind a MAC.
    Forwarding {
        /// MAC of another node's device.
        mac: Mac,
        /// Address of that node.
        node: IpAddr,
    },
}

impl Entry {
    /// What an entry replaces when it is set: the same address, or the same MAC of the forwarding table.
    ///
    /// A forwarding entry with another destination is a second one and not a replacement, so both are in its key.
    fn key(self) -> Self {
        match self {
            Self::Neighbour { address, .. } => Self::Neighbour { address, mac: Mac([0; 6]) },
            Self::Forwarding { .. } => self,
        }
    }

    fn message(self, index: u32) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        let (destination, mac) = match self {
            Self::Neighbour { address, mac } => {
                message.header.family = family(IpVersion::of(address));
                (address, mac)
            }
            Self::Forwarding { mac, node } => {
                message.header.family = AddressFamily::Bridge;
                message.header.flags = NeighbourFlags::Own;
                (node, mac)
            }
        };
        let destination = match destination {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(destination),
            NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        ];
        message
    }
}

/// The entries that a device's peers need.
pub(crate) fn entries(device: &VxlanDevice) -> BTreeSet<Entry> {
    let of_peer = |(address, peer): (&IpAddr, &crate::Peer)| {
        [
            Entry::Neighbour { address: *address, mac: peer.mac },
            Entry::Forwarding { mac: peer.mac, node: peer.node },
        ]
    };
    device.peers.iter().flat_map(of_peer).collect()
}

/// What to set and what to remove so that a device has the wanted entries.
pub(crate) fn diff(listed: &BTreeSet<Entry>, wanted: &BTreeSet<Entry>) -> (Vec<Entry>, Vec<Entry>) {
    let keys: BTreeSet<Entry> = wanted.iter().map(|entry| entry.key()).collect();
    let set = wanted.difference(listed).copied().collect();
    // Those with a wanted key are replaced by setting.
    let remove = listed.iter().filter(|entry| !keys.contains(&entry.key())).copied().collect();
    (set, remove)
}

/// Reads the permanent entries of all devices, by device index.
pub(crate) async fn read(netlink: &mut Netlink) -> Result<BTreeMap<u32, BTreeSet<Entry>>, ApplyError> {
    let mut found: BTreeMap<u32, BTreeSet<Entry>> = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        let listed = match netlink.dump(&RouteNetlinkMessage::GetNeighbour(request)).await {
            Ok(listed) => listed,
            Err(error)
                if family == AddressFamily::Inet6
                    && error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) =>
            {
                continue;
            }
            Err(error) => return Err(ApplyError::netlink("listing neighbours")(error)),
        };
        for message in listed {
            let RouteNetlinkMessage::NewNeighbour(message) = message else { continue };
            let index = message.header.ifindex;
            if let Some(entry) = decode(message) {
                found.entry(index).or_default().insert(entry);
            }
        }
    }
    Ok(found)
}

fn decode(message: NeighbourMessage) -> Option<Entry> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut destination, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => destination = ip(address),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
            _ => {}
        }
    }
    match (destination, mac) {
        (Some(node), Some(mac)) if message.header.family == AddressFamily::Bridge => {
            Some(Entry::Forwarding { mac, node })
        }
        (Some(address), Some(mac)) => Some(Entry::Neighbour { address, mac }),
        _ => None,
    }
}

/// Entries of the forwarding table carry an address whose family only its length tells.
fn ip(address: NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(v4) => Some(IpAddr::V4(v4)),
        NeighbourAddress::Inet6(v6) => Some(IpAddr::V6(v6)),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    }
}

/// Sets one entry.
pub(crate) async fn set(netlink: &mut Netlink, index: u32, entry: Entry) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewNeighbour(entry.message(index));
    netlink.change(message, NLM_F_CREATE | NLM_F_REPLACE).await
}

/// Removes one entry; one that is gone already counts as removed.
pub(crate) async fn remove(netlink: &mut Netlink, index: u32, entry: Entry) -> io::Result<()> {
    match netlink.change(RouteNetlinkMessage::DelNeighbour(entry.message(index)), 0).await {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error()) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> Mac {
        Mac([0x66, 0, 0, 0, 0, last])
    }

    #[test]
    fn a_changed_mac_replaces_the_neighbour_and_moves_the_forwarding_entry() {
        let (address, node) = ("192.168.20.0".parse().unwrap(), "172.18.0.3".parse().unwrap());
        let of = |last: u8| -> BTreeSet<Entry> {
            [Entry::Neighbour { address, mac: mac(last) }, Entry::Forwarding { mac: mac(last), node }].into()
        };
        let (set, remove) = diff(&of(1), &of(2));
        assert_eq!(set.len(), 2);
        assert_eq!(remove, [Entry::Forwarding { mac: mac(1), node }]);
    }

    #[test]
    fn a_node_that_is_gone_takes_both_its_entries_with_it() {
        let listed: BTreeSet<Entry> = [
            Entry::Neighbour { address: "192.168.20.0".parse().unwrap(), mac: mac(1) },
            Entry::Forwarding { mac: mac(1), node: "172.18.0.3".parse().unwrap() },
        ]
        .into();
        assert_eq!(diff(&listed, &BTreeSet::new()), (Vec::new(), listed.into_iter().collect()));
    }
}
