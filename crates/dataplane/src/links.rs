//! The interfaces of the namespace: what they are, which addresses they hold.

use crate::failure::ApplyError;
use crate::inputs::Mac;
use crate::netlink::Netlink;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One interface.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub(crate) name: String,
    /// Number in this namespace.
    pub(crate) index: u32,
    pub(crate) up: bool,
    /// Bytes.
    pub(crate) mtu: u32,
    pub(crate) mac: Option<Mac>,
    /// What it says of itself if it is a VXLAN device.
    pub(crate) vxlan: Option<VxlanFacts>,
    /// Addresses and their prefix lengths.
    pub(crate) addresses: Vec<(IpAddr, u8)>,
}

/// The properties of a VXLAN device that cannot be changed in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VxlanFacts {
    pub(crate) vni: u32,
    /// Index of the interface that carries it.
    pub(crate) parent: u32,
    pub(crate) local: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) learning: bool,
    /// It has a group or a default remote, misses are reported, or packets carry group policy: never so by us.
    pub(crate) foreign: bool,
}

/// Reads all interfaces with their addresses.
pub(crate) async fn read(netlink: &mut Netlink) -> Result<Vec<Link>, ApplyError> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let links = netlink
        .dump(&RouteNetlinkMessage::GetLink(request))
        .await
        .map_err(ApplyError::netlink("listing interfaces"))?;
    let addresses = netlink
        .dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .await
        .map_err(ApplyError::netlink("listing addresses"))?;
    let mut held: BTreeMap<u32, Vec<(IpAddr, u8)>> = BTreeMap::new();
    for message in addresses {
        let RouteNetlinkMessage::NewAddress(message) = message else { continue };
        // On a point-to-point interface `Address` is the far end and `Local` ours; elsewhere they are equal.
        let (mut local, mut other) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(address),
                AddressAttribute::Address(address) => other = Some(address),
                _ => {}
            }
        }
        if let Some(address) = local.or(other) {
            held.entry(message.header.index).or_default().push((address, message.header.prefix_len));
        }
    }
    let read = links.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(message) => {
            let mut link = decode(message);
            link.addresses = held.remove(&link.index).unwrap_or_default();
            Some(link)
        }
        _ => None,
    });
    Ok(read.collect())
}

fn decode(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    let (mut parent, mut kind, mut data) = (0, None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Link(index) => parent = index,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(found) => kind = Some(found),
                        LinkInfo::Data(found) => data = Some(found),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if kind == Some(InfoKind::Vxlan)
        && let Some(InfoData::Vxlan(properties)) = data
    {
        link.vxlan = Some(vxlan(&properties, parent));
    }
    link
}

fn vxlan(properties: &[InfoVxlan], parent: u32) -> VxlanFacts {
    let mut facts = VxlanFacts { parent, ..VxlanFacts::default() };
    for property in properties {
        match property {
            InfoVxlan::Id(vni) => facts.vni = *vni,
            InfoVxlan::Link(index) => facts.parent = *index,
            InfoVxlan::Local(address) => facts.local = Some(IpAddr::V4(*address)),
            InfoVxlan::Local6(address) => facts.local = Some(IpAddr::V6(*address)),
            InfoVxlan::Port(port) => facts.port = *port,
            InfoVxlan::Learning(learning) => facts.learning = *learning,
            InfoVxlan::L2Miss(miss) => facts.foreign |= *miss,
            InfoVxlan::Group(_) | InfoVxlan::Group6(_) | InfoVxlan::Gbp => facts.foreign = true,
            _ => {}
        }
    }
    facts
}

/// Whether an interface's name is that of a network card (dataplane §8, default of `mtuIfacePattern`).
pub(crate) fn looks_like_hardware(name: &str) -> bool {
    if ["eth", "wlan", "wwan"].iter().any(|prefix| name.starts_with(prefix)) {
        return true;
    }
    ["en", "wl", "ww", "sl", "ib"]
        .iter()
        .filter_map(|prefix| name.strip_prefix(prefix)?.chars().next())
        .any(|next| "Pcopsvx".contains(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_told_from_virtual_interfaces_by_name() {
        for card in ["eth0", "enp3s0", "ens5", "wlan0", "wlp2s0", "ibP1", "enx001122334455"] {
            assert!(looks_like_hardware(card), "{card}");
        }
        for other in ["lo", "cali0123456789a", "vxlan.calico", "docker0", "en", "ent0", "br-kind"] {
            assert!(!looks_like_hardware(other), "{other}");
        }
    }
}
