//! A range of addresses that blocks are cut from (data model §4).

use crate::{Cidr, IpVersion};

/// When traffic between nodes is encapsulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encapsulation {
    /// Never.
    #[default]
    Never,
    /// Always.
    Always,
    /// Only where the nodes are in different subnets.
    CrossSubnet,
}

/// What addresses of a pool may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Pods.
    Workload,
    /// Tunnel endpoints of nodes.
    Tunnel,
    /// Service LoadBalancer addresses.
    LoadBalancer,
}

/// Whether addresses may be handed out without being asked for by pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AssignmentMode {
    /// Yes.
    #[default]
    Automatic,
    /// Only to requests that name the pool.
    Manual,
}

/// An IP pool with defaults applied (data model §4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Object name; lists are in name order, which is the pool order.
    pub name: String,
    /// Addresses of the pool.
    pub cidr: Cidr,
    /// Prefix length of a block: 20..=32 for IPv4 (default 26), 116..=128 for IPv6 (default 122).
    pub block_size: u8,
    /// IPIP encapsulation.
    pub ipip_mode: Encapsulation,
    /// VXLAN encapsulation.
    pub vxlan_mode: Encapsulation,
    /// Masquerade traffic that leaves the pools.
    pub nat_outgoing: bool,
    /// No allocation from this pool.
    pub disabled: bool,
    /// Dataplane only.
    pub disable_bgp_export: bool,
    /// Nodes that may use it, selector language of data model §11.
    pub node_selector: String,
    /// Namespaces that may use it; `None` matches all.
    pub namespace_selector: Option<String>,
    /// What it may be used for; never empty once read.
    pub allowed_uses: Vec<Use>,
    /// Whether it serves requests that name no pool.
    pub assignment_mode: AssignmentMode,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// Condition `Allocatable` is False.
    pub unallocatable: bool,
}

impl Pool {
    /// Prefix length of a block where the pool names none: 26 for IPv4, 122 for IPv6.
    pub const fn default_block_size(version: IpVersion) -> u8 {
        match version {
            IpVersion::V4 => 26,
            IpVersion::V6 => 122,
        }
    }

    /// Prefix lengths that a block may have: 4096 addresses at most (data model §4.2).
    pub const fn block_sizes(version: IpVersion) -> std::ops::RangeInclusive<u8> {
        match version {
            IpVersion::V4 => 20..=32,
            IpVersion::V6 => 116..=128,
        }
    }

    /// Whether addresses may be taken from it at all (data model §4.4).
    pub fn is_enabled(&self) -> bool {
        !self.disabled && !self.deleting && !self.unallocatable
    }
}
