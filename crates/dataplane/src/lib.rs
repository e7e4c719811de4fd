//! What the kernel of a node should hold so that pods reach each other, and the difference to what it holds.
//!
//! [`plan`] is a pure function from [`Inputs`] (nodes, pools, blocks, local pods) to [`Desired`] (routes, VXLAN
//! devices, nftables, sysctls). [`apply`] reads the kernel of the namespace it runs in and writes the difference,
//! touching only what is ours: routes of protocol 80, routes of `cali…` interfaces, the devices `vxlan.calico` and
//! `vxlan-v6.calico`, and the nftables tables `calico`.

mod apply;
mod desired;
mod failure;
mod inputs;
mod kernel;
mod links;
mod netlink;
mod nft;
mod plan;
mod routes;
mod vxlan;

pub use apply::{RESYNC, apply};

pub use desired::{
    Desired, Note, POD_ROUTE_METRIC, POD_ROUTE_PROTOCOL, Peer, ROUTE_PROTOCOL, Report, Route, Target,
    VxlanDevice, vxlan_device_name,
};
pub use failure::ApplyError;
pub use inputs::{BlockUse, Endpoint, HostFacts, Inputs, Mac, NodeAddress, NodeAddresses, Settings};
pub use kernel::Kernel;
pub use plan::{plan, vxlan_mac};
