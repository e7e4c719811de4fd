//! What the kernel of a node should hold: routes, VXLAN devices with their peers, nftables, sysctls.

use crate::inputs::Mac;
use api::{Cidr, IpVersion};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// Protocol number of every route of ours that is not a pod's own (dataplane §1).
pub const ROUTE_PROTOCOL: u8 = 80;
/// Protocol of pods' own routes: boot, the kernel's default, as the plugin and Calico leave it.
pub const POD_ROUTE_PROTOCOL: u8 = 3;
/// Metric of pods' own routes. Below 1024 BIRD would take them for a migrating pod (dataplane §5).
pub const POD_ROUTE_METRIC: u32 = 1024;

/// Both families, in the order of everything that is listed by family.
pub(crate) const FAMILIES: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];

/// Name of the VXLAN device of a family.
#[must_use]
pub const fn vxlan_device_name(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "vxlan.calico",
        IpVersion::V6 => "vxlan-v6.calico",
    }
}

/// The state that [`apply`](crate::apply) brings the kernel to. Equal values mean nothing to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Routes of the main table by destination: the kernel's key, as all of ours share table and TOS.
    pub routes: BTreeMap<Cidr, Route>,
    /// VXLAN devices to have, at most one a family.
    pub vxlan: Vec<VxlanDevice>,
    /// VXLAN devices to remove, because no pool of their family needs one.
    pub absent_devices: BTreeSet<&'static str>,
    /// Script for `nft -f`; it replaces the table `calico` of each family in one transaction.
    pub nft: String,
    /// Sysctls below `/proc/sys` and their values.
    pub sysctls: BTreeMap<String, &'static str>,
    /// MTU of pods' interfaces in bytes.
    pub pod_mtu: u32,
    /// What could not be planned, and why; the rest is planned all the same.
    pub notes: BTreeSet<Note>,
}

/// One route of the main table. `Display` writes it as `ip route` does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination network.
    pub destination: Cidr,
    /// Where packets go.
    pub target: Target,
    /// MTU recorded in the route, bytes.
    pub mtu: Option<u32>,
}

/// Where the packets of a route go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Nowhere, silently: an address of an own block that no pod has.
    Blackhole,
    /// To a pod of this node.
    Pod {
        /// Host end of its interface.
        interface: String,
    },
    /// To another node, through a device, without asking whether the gateway is reachable (`onlink`).
    Gateway {
        /// Next hop: the node's address, or its tunnel address.
        gateway: IpAddr,
        /// The parent interface or the tunnel device.
        device: String,
    },
    /// To a tunnel address itself, at the far end of the tunnel device.
    Tunnel {
        /// The tunnel device.
        device: String,
    },
}

impl Route {
    /// The device it names, if any.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        match &self.target {
            Target::Blackhole => None,
            Target::Pod { interface } => Some(interface),
            Target::Gateway { device, .. } | Target::Tunnel { device } => Some(device),
        }
    }

    /// Protocol number it carries in the kernel.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self.target {
            Target::Pod { .. } => POD_ROUTE_PROTOCOL,
            _ => ROUTE_PROTOCOL,
        }
    }

    /// Metric it has in the kernel; IPv6 has none without, the kernel makes it 1024.
    #[must_use]
    pub fn metric(&self) -> u32 {
        match (&self.target, self.destination.version()) {
            (Target::Pod { .. }, _) => POD_ROUTE_METRIC,
            (_, IpVersion::V4) => 0,
            (_, IpVersion::V6) => 1024,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = self.destination.version().bits();
        let destination = match self.destination.prefix() {
            prefix if prefix == full => self.destination.network().to_string(),
            _ => self.destination.to_string(),
        };
        match &self.target {
            Target::Blackhole => write!(f, "blackhole {destination} proto {ROUTE_PROTOCOL}")?,
            Target::Pod { interface } => {
                write!(f, "{destination} dev {interface} scope link metric {POD_ROUTE_METRIC}")?;
            }
            Target::Gateway { gateway, device } => {
                write!(f, "{destination} via {gateway} dev {device} proto {ROUTE_PROTOCOL} onlink")?;
            }
            Target::Tunnel { device } => {
                write!(f, "{destination} dev {device} proto {ROUTE_PROTOCOL} scope link")?;
            }
        }
        match self.mtu {
            Some(mtu) => write!(f, " mtu {mtu}"),
            None => Ok(()),
        }
    }
}

/// A VXLAN device and everybody reached through it (dataplane §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanDevice {
    /// `vxlan.calico` or `vxlan-v6.calico`.
    pub name: &'static str,
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Interface that carries it.
    pub parent: String,
    /// This node's address, source of the outer packets.
    pub local: IpAddr,
    /// MAC of the device.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// This node's tunnel address, /32 or /128 on the device.
    pub address: IpAddr,
    /// One per remote node, by tunnel address: a neighbour entry and an FDB entry each.
    pub peers: BTreeMap<IpAddr, Peer>,
}

/// The far end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// MAC of its tunnel device.
    pub mac: Mac,
    /// Address of its node.
    pub node: IpAddr,
}

/// Something that was left out of a plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Note {
    /// IPIP is not programmed.
    #[error(
        "pool {pool} asks for IPIP, which is not supported: nodes of one subnet get direct routes, others none; use vxlanMode"
    )]
    IpipUnsupported {
        /// Name of the pool.
        pool: String,
    },
    /// A node is in another subnet and the pool has no encapsulation.
    #[error(
        "{destination} has no route: node {node} is in another subnet and pool {pool} has no encapsulation; set its vxlanMode to CrossSubnet"
    )]
    OtherSubnet {
        /// Addresses without route.
        destination: Cidr,
        /// Where they are.
        node: String,
        /// Pool they are of.
        pool: String,
    },
    /// An address of the node is not recorded yet, or the node is not known.
    #[error("{destination} has no route yet: the addresses of node {node} are not recorded")]
    UnknownNode {
        /// Addresses without route.
        destination: Cidr,
        /// Where they are.
        node: String,
    },
    /// This node's own address, interface or tunnel address is missing.
    #[error("{destination} has no route yet: this node's {missing} is not known")]
    Unready {
        /// Addresses without route.
        destination: Cidr,
        /// What is missing.
        missing: &'static str,
    },
    /// Blocks outside every pool get no routes between nodes.
    #[error("block {block} lies in no pool: it gets no route between nodes")]
    NoPool {
        /// The block.
        block: Cidr,
    },
    /// Two nodes have one tunnel MAC; the second gets no entries.
    #[error(
        "nodes {first} and {second} share tunnel MAC {mac}; give one another by annotation projectcalico.org/VXLANTunnelMACAddr"
    )]
    SharedMac {
        /// Who has it.
        first: String,
        /// Who is left out.
        second: String,
        /// The MAC.
        mac: Mac,
    },
}

/// What an [`apply`](crate::apply) changed. All zero: the kernel was as desired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Routes added or replaced.
    pub routes_set: usize,
    /// Routes removed.
    pub routes_removed: usize,
    /// VXLAN devices made, or made anew.
    pub devices_created: usize,
    /// Devices removed.
    pub devices_removed: usize,
    /// Devices changed in place: MTU, up, address.
    pub devices_changed: usize,
    /// Neighbour and FDB entries set.
    pub neighbours_set: usize,
    /// Neighbour and FDB entries removed.
    pub neighbours_removed: usize,
    /// The nftables script was run.
    pub nft_applied: bool,
    /// Sysctls written.
    pub sysctls_written: usize,
    /// What was left out because its device is missing or down, one sentence each; the next apply tries again.
    pub skipped: Vec<String>,
}

impl Report {
    /// Whether anything was written.
    #[must_use]
    pub fn changed(&self) -> bool {
        let quiet = Self { skipped: self.skipped.clone(), ..Self::default() };
        *self != quiet
    }
}
