//! What a node's dataplane is computed from: nodes, pools, blocks, local pods and two facts about the host.

use api::{Cidr, IpVersion, Pool, Use};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Everything that [`plan`](crate::plan) looks at. Nothing else decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Name of the node that is planned for; it stands in `nodes` too.
    pub node: String,
    /// All nodes by name, this one included.
    pub nodes: BTreeMap<String, NodeAddresses>,
    /// All pools, disabled ones too: they still exempt their addresses from masquerading.
    pub pools: Vec<Pool>,
    /// All blocks of the datastore, in any order.
    pub blocks: Vec<BlockUse>,
    /// Pods on this node.
    pub endpoints: BTreeSet<Endpoint>,
    /// What the kernel says about this host; see [`Kernel::facts`](crate::Kernel::facts).
    pub host: HostFacts,
    /// What an operator may set.
    pub settings: Settings,
}

/// Whether a pool's addresses are held by pods or tunnels at all (§3.1: LoadBalancer-only pools are not routed).
pub(crate) fn is_routed(pool: &Pool) -> bool {
    pool.allowed_uses.is_empty() || pool.allowed_uses.iter().any(|allowed| *allowed != Use::LoadBalancer)
}

/// Addresses of one node, as its Node object records them (dataplane §2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// IPv4 address with the prefix length of its network.
    pub ipv4: Option<NodeAddress>,
    /// IPv6 address with the prefix length of its network.
    pub ipv6: Option<NodeAddress>,
    /// Address of `vxlan.calico`.
    pub vxlan_ipv4: Option<IpAddr>,
    /// Address of `vxlan-v6.calico`.
    pub vxlan_ipv6: Option<IpAddr>,
    /// MAC of `vxlan.calico`, where it is not derived from the node's name.
    pub vxlan_mac: Option<Mac>,
    /// MAC of `vxlan-v6.calico`, where it is not derived from the node's name.
    pub vxlan_mac_ipv6: Option<Mac>,
}

/// An address and the length of the network prefix it was recorded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The node's address.
    pub address: IpAddr,
    /// Prefix length, at most the bits of the family.
    pub prefix: u8,
}

impl NodeAddress {
    /// Reads `172.18.0.2/16`; without a length it is the address alone (/32 or /128).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address.parse().ok()?, prefix.parse().ok()?),
            None => {
                let address: IpAddr = text.parse().ok()?;
                (address, IpVersion::of(address).bits())
            }
        };
        (prefix <= IpVersion::of(address).bits()).then_some(Self { address, prefix })
    }

    /// The network it was recorded in.
    #[must_use]
    pub fn network(self) -> Cidr {
        Cidr::containing(self.address, self.prefix).unwrap_or_else(|| Cidr::from(self.address))
    }
}

impl NodeAddresses {
    /// Reads the annotations of a Node object, with its InternalIPs (as /32 or /128) where they are absent.
    ///
    /// An annotation that cannot be read counts as absent: one broken node must not keep others from their routes.
    #[must_use]
    pub fn of(node: &api::Node) -> Self {
        let text =
            |key: &str| node.annotations.get(&format!("projectcalico.org/{key}")).map(|text| text.trim());
        let of_family = |version: IpVersion| move |address: &IpAddr| IpVersion::of(*address) == version;
        let recorded = |key: &str, version: IpVersion| {
            text(key).and_then(NodeAddress::parse).filter(|found| of_family(version)(&found.address)).or_else(
                || {
                    let internal = node.internal_ips.iter().copied().find(of_family(version))?;
                    Some(NodeAddress { address: internal, prefix: version.bits() })
                },
            )
        };
        let tunnel = |key: &str, version: IpVersion| {
            text(key).and_then(|text| text.parse::<IpAddr>().ok()).filter(of_family(version))
        };
        Self {
            ipv4: recorded("IPv4Address", IpVersion::V4),
            ipv6: recorded("IPv6Address", IpVersion::V6),
            vxlan_ipv4: tunnel("IPv4VXLANTunnelAddr", IpVersion::V4),
            vxlan_ipv6: tunnel("IPv6VXLANTunnelAddr", IpVersion::V6),
            vxlan_mac: text("VXLANTunnelMACAddr").and_then(Mac::parse),
            vxlan_mac_ipv6: text("VXLANTunnelMACAddrV6").and_then(Mac::parse),
        }
    }

    /// The node's address of a family.
    #[must_use]
    pub fn address(&self, version: IpVersion) -> Option<NodeAddress> {
        match version {
            IpVersion::V4 => self.ipv4,
            IpVersion::V6 => self.ipv6,
        }
    }

    /// The node's VXLAN tunnel address of a family.
    #[must_use]
    pub fn tunnel(&self, version: IpVersion) -> Option<IpAddr> {
        match version {
            IpVersion::V4 => self.vxlan_ipv4,
            IpVersion::V6 => self.vxlan_ipv6,
        }
    }
}

/// What routing needs of a block: its owner, and the addresses that are used elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockUse {
    /// Addresses of the block.
    pub cidr: Cidr,
    /// Node it is affine to; `None` when its affinity was released.
    pub owner: Option<String>,
    /// Used ordinals whose `node` attribute is not the owner, and that node (borrowed addresses).
    /// Ordinals without a `node` attribute are left out: nobody knows where they are.
    pub borrowed: BTreeMap<u32, String>,
}

impl BlockUse {
    /// Reads a whole block. Cooling ordinals belong to nobody.
    #[must_use]
    pub fn of(block: &api::Block) -> Self {
        let owner = block.affinity.as_ref().map(|owner| owner.name.clone());
        let borrowed = (0_u32..)
            .zip(block.allocations.iter())
            .filter_map(|(ordinal, allocation)| {
                let attribute = block.attributes.get((*allocation)?)?;
                let node = attribute.secondary.get("node")?;
                let elsewhere = attribute.released_at.is_none() && owner.as_ref() != Some(node);
                elsewhere.then(|| (ordinal, node.clone()))
            })
            .collect();
        Self { cidr: block.cidr, owner, borrowed }
    }
}

/// A pod on this node: an address and the host end of its interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The pod's address.
    pub address: IpAddr,
    /// Name of the host end, `cali…`: [`api::attachment::host_interface`].
    pub interface: String,
}

/// Facts about the host that only the kernel knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Interface that holds this node's IPv4 address; `None` until it is found.
    pub parent_ipv4: Option<String>,
    /// Interface that holds this node's IPv6 address.
    pub parent_ipv6: Option<String>,
    /// MTU of the host's network in bytes (dataplane §8).
    pub mtu: u32,
}

impl Default for HostFacts {
    /// No parent, and the MTU that is assumed when no interface matches.
    fn default() -> Self {
        Self { parent_ipv4: None, parent_ipv6: None, mtu: 1460 }
    }
}

impl HostFacts {
    /// The interface that holds the node's address of a family.
    #[must_use]
    pub fn parent(&self, version: IpVersion) -> Option<&str> {
        match version {
            IpVersion::V4 => self.parent_ipv4.as_deref(),
            IpVersion::V6 => self.parent_ipv6.as_deref(),
        }
    }
}

/// Settings of FelixConfiguration that this dataplane follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// VXLAN network identifier, below 2^24.
    pub vxlan_vni: u32,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// MTU of the IPv4 tunnel in bytes; `None`: the host's less 50.
    pub vxlan_mtu: Option<u32>,
    /// MTU of the IPv6 tunnel in bytes; `None`: the host's less 70.
    pub vxlan_mtu_ipv6: Option<u32>,
    /// Addresses of cluster nodes are exempt from masquerading too (`IPPoolsAndHostIPs`).
    pub exempt_hosts: bool,
    /// Sources besides nodes that may send VXLAN (`externalNodesList`).
    pub external_nodes: Vec<Cidr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            vxlan_vni: 4096,
            vxlan_port: 4789,
            vxlan_mtu: None,
            vxlan_mtu_ipv6: None,
            exempt_hosts: false,
            external_nodes: Vec::new(),
        }
    }
}

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Reads `66:f9:37:c3:7e:94`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_annotations_has_its_internal_address_alone() {
        let node = api::Node { internal_ips: vec!["172.18.0.2".parse().unwrap()], ..api::Node::default() };
        let read = NodeAddresses::of(&node);
        assert_eq!(read.ipv4, NodeAddress::parse("172.18.0.2/32"));
        assert_eq!(read.ipv6, None);
        assert_eq!(read.vxlan_ipv4, None);
    }

    #[test]
    fn annotations_win_and_broken_ones_count_as_absent() {
        let annotations = [
            ("projectcalico.org/IPv4Address", "172.18.0.2/16"),
            ("projectcalico.org/IPv4VXLANTunnelAddr", "192.168.10.0"),
            ("projectcalico.org/IPv6Address", "172.18.0.2/16"),
            ("projectcalico.org/VXLANTunnelMACAddr", "66:zz:00:00:00:00"),
        ];
        let node = api::Node {
            internal_ips: vec!["10.0.0.1".parse().unwrap()],
            annotations: annotations.map(|(key, text)| (key.to_owned(), text.to_owned())).into(),
            ..api::Node::default()
        };
        let read = NodeAddresses::of(&node);
        assert_eq!(read.ipv4, NodeAddress::parse("172.18.0.2/16"));
        assert_eq!(read.vxlan_ipv4, Some("192.168.10.0".parse().unwrap()));
        assert_eq!((read.ipv6, read.vxlan_mac), (None, None));
    }

    #[test]
    fn prefixes_longer_than_the_family_are_refused() {
        assert_eq!(NodeAddress::parse("172.18.0.2/33"), None);
        assert_eq!(NodeAddress::parse("fd00::2/129"), None);
        assert_eq!(NodeAddress::parse("fd00::2").map(|found| found.prefix), Some(128));
    }

    #[test]
    fn a_block_names_the_ordinals_of_other_nodes_only() {
        let attribute = |node: &str, cooling: bool| {
            std::sync::Arc::new(api::Attribute {
                secondary: [("node".to_owned(), node.to_owned())].into(),
                released_at: cooling.then(|| "2026-01-01T00:00:00Z".parse().unwrap()),
                ..api::Attribute::default()
            })
        };
        let block = api::Block {
            cidr: "192.168.10.0/29".parse().unwrap(),
            affinity: Some(api::Owner::host("node1")),
            claim_time: None,
            allocations: vec![Some(0), Some(1), Some(2), Some(3), Some(9), None, None, None].into(),
            unallocated: vec![5, 6, 7],
            attributes: vec![
                attribute("node1", false),
                attribute("node3", false),
                attribute("node3", true),
                std::sync::Arc::default(),
            ]
            .into(),
            sequence_number: 0,
            sequence_for_allocation: std::sync::Arc::default(),
            deleted: false,
            legacy_host_affinity: None,
        };
        assert_eq!(BlockUse::of(&block).borrowed, [(1, "node3".to_owned())].into());
    }
}
