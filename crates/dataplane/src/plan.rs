//! From inputs to desired state: which address is reached how (dataplane §3, §4, §7, §8).
//!
//! ```
//! use dataplane::{Inputs, plan};
//! let desired = plan(&Inputs::default());
//! assert!(desired.routes.is_empty());
//! ```

use crate::desired::{Desired, FAMILIES, Note, Peer, Route, Target, VxlanDevice, vxlan_device_name};
use crate::inputs::{Inputs, Mac, NodeAddress, NodeAddresses, is_routed};
use crate::nft;
use api::{Cidr, Encapsulation, IpVersion, Ordinal, Pool};
use sha1::{Digest as _, Sha1};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Bytes that VXLAN adds to a packet of a family.
const fn vxlan_overhead(version: IpVersion) -> u32 {
    match version {
        IpVersion::V4 => 50,
        IpVersion::V6 => 70,
    }
}

/// MAC of a node's tunnel device: `66` and the first five bytes of SHA-1 of its name, with `-v6` for IPv6 (§4.1).
#[must_use]
pub fn vxlan_mac(node: &str, version: IpVersion) -> Mac {
    let digest = match version {
        IpVersion::V4 => Sha1::digest(node),
        IpVersion::V6 => Sha1::digest(format!("{node}-v6")),
    };
    let mut bytes = [0x66; 6];
    for (byte, hashed) in bytes.iter_mut().skip(1).zip(digest) {
        *byte = hashed;
    }
    Mac(bytes)
}

/// Computes what this node's kernel should hold.
///
/// Never fails: what cannot be planned is left out and named in [`Desired::notes`].
///
/// Time: one pass over blocks and their borrowed addresses, times the number of pools.
#[must_use]
pub fn plan(inputs: &Inputs) -> Desired {
    let mut desired = Desired { nft: nft::script(inputs), ..Desired::default() };
    let planner = Planner::of(inputs);
    for version in FAMILIES {
        if !encapsulates(&inputs.pools, version) {
            desired.absent_devices.insert(vxlan_device_name(version));
        } else if let Some(device) = planner.device(version, &mut desired.notes) {
            desired.vxlan.push(device);
        }
    }
    for pool in inputs.pools.iter().filter(|pool| pool.ipip_mode != Encapsulation::Never) {
        desired.notes.insert(Note::IpipUnsupported { pool: pool.name.clone() });
    }
    planner.blocks(&mut desired);
    planner.tunnel_addresses(&mut desired);
    // Last, so that a pod's own route wins over everything computed for its address.
    for endpoint in &inputs.endpoints {
        let destination = Cidr::from(endpoint.address);
        let target = Target::Pod { interface: endpoint.interface.clone() };
        desired.routes.insert(destination, Route { destination, target, mtu: None });
    }
    desired.pod_mtu = FAMILIES
        .into_iter()
        .filter(|version| encapsulates(&inputs.pools, *version))
        .map(|version| tunnel_mtu(inputs, version))
        .fold(inputs.host.mtu, u32::min);
    desired.sysctls.insert("net/ipv4/ip_forward".to_owned(), "1");
    if inputs.pools.iter().any(|pool| pool.cidr.version() == IpVersion::V6) {
        desired.sysctls.insert("net/ipv6/conf/all/forwarding".to_owned(), "1");
    }
    desired
}

/// Whether a pool of the family uses VXLAN, disabled ones included: their pods still run.
fn encapsulates(pools: &[Pool], version: IpVersion) -> bool {
    pools.iter().any(|pool| pool.cidr.version() == version && pool.vxlan_mode != Encapsulation::Never)
}

/// MTU of the tunnel device of a family in bytes.
fn tunnel_mtu(inputs: &Inputs, version: IpVersion) -> u32 {
    let set = match version {
        IpVersion::V4 => inputs.settings.vxlan_mtu,
        IpVersion::V6 => inputs.settings.vxlan_mtu_ipv6,
    };
    set.unwrap_or_else(|| inputs.host.mtu.saturating_sub(vxlan_overhead(version)))
}

/// The inputs, and what several steps need of them.
struct Planner<'a> {
    inputs: &'a Inputs,
    own: NodeAddresses,
    /// Addresses of nodes: a host's own address is never routed as a pod's (invariant D18).
    hosts: BTreeSet<IpAddr>,
}

impl<'a> Planner<'a> {
    fn of(inputs: &'a Inputs) -> Self {
        let hosts = inputs
            .nodes
            .values()
            .flat_map(|node| [node.ipv4, node.ipv6])
            .flatten()
            .map(|found| found.address)
            .collect();
        Self { inputs, own: inputs.nodes.get(&inputs.node).cloned().unwrap_or_default(), hosts }
    }

    fn remote_nodes(&self) -> impl Iterator<Item = (&'a String, &'a NodeAddresses)> {
        self.inputs.nodes.iter().filter(|(name, _)| **name != self.inputs.node)
    }

    /// The most specific pool around a network.
    fn pool(&self, cidr: Cidr) -> Option<&'a Pool> {
        self.inputs
            .pools
            .iter()
            .filter(|pool| pool.cidr.contains_cidr(cidr))
            .max_by_key(|pool| pool.cidr.prefix())
    }

    fn mac(&self, name: &str, node: &NodeAddresses, version: IpVersion) -> Mac {
        let recorded = match version {
            IpVersion::V4 => node.vxlan_mac,
            IpVersion::V6 => node.vxlan_mac_ipv6,
        };
        recorded.unwrap_or_else(|| vxlan_mac(name, version))
    }

    fn device(&self, version: IpVersion, notes: &mut BTreeSet<Note>) -> Option<VxlanDevice> {
        let own = self.own.address(version)?;
        let address = self.own.tunnel(version)?;
        let parent = self.inputs.host.parent(version)?;
        let mac = self.mac(&self.inputs.node, &self.own, version);
        let mut taken: BTreeMap<Mac, &str> = [(mac, self.inputs.node.as_str())].into();
        let mut peers = BTreeMap::new();
        for (name, node) in self.remote_nodes() {
            let (Some(remote), Some(tunnel)) = (node.address(version), node.tunnel(version)) else {
                continue;
            };
            let mac = self.mac(name, node, version);
            if let Some(first) = taken.get(&mac) {
                let (first, second) = ((*first).to_owned(), name.clone());
                notes.insert(Note::SharedMac { first, second, mac });
                continue;
            }
            taken.insert(mac, name);
            peers.insert(tunnel, Peer { mac, node: remote.address });
        }
        Some(VxlanDevice {
            name: vxlan_device_name(version),
            vni: self.inputs.settings.vxlan_vni,
            port: self.inputs.settings.vxlan_port,
            parent: parent.to_owned(),
            local: own.address,
            mac,
            mtu: tunnel_mtu(self.inputs, version),
            address,
            peers,
        })
    }

    fn blocks(&self, desired: &mut Desired) {
        for block in &self.inputs.blocks {
            let full = block.cidr.version().bits();
            let pool = self.pool(block.cidr);
            if pool.is_some_and(|pool| !is_routed(pool)) {
                continue;
            }
            // An own block swallows what no pod of ours has, whether or not its pool still exists. A block of one
            // address would shadow its own pod (invariant D17).
            let is_own = block.owner.as_ref() == Some(&self.inputs.node);
            if is_own && block.cidr.prefix() != full {
                let route = Route { destination: block.cidr, target: Target::Blackhole, mtu: None };
                desired.routes.insert(block.cidr, route);
            }
            let Some(pool) = pool else {
                desired.notes.insert(Note::NoPool { block: block.cidr });
                continue;
            };
            if let Some(owner) = block.owner.as_deref().filter(|_| !is_own) {
                self.add(desired, pool, block.cidr, owner);
            }
            for (ordinal, node) in &block.borrowed {
                let Some(address) = block.cidr.address(Ordinal(*ordinal)) else { continue };
                if *node != self.inputs.node {
                    self.add(desired, pool, Cidr::from(address), node);
                }
            }
        }
    }

    /// Adds the route to addresses that are on another node, or the note why there is none.
    fn add(&self, desired: &mut Desired, pool: &Pool, destination: Cidr, node: &str) {
        if destination.prefix() == destination.version().bits() && self.hosts.contains(&destination.network())
        {
            return;
        }
        match self.remote(pool, destination, node) {
            Ok(route) => {
                desired.routes.insert(destination, route);
            }
            Err(note) => {
                desired.notes.insert(note);
            }
        }
    }

    /// The route to `destination` on node `name`, by the pool's kind and the nodes' subnets (§3.3).
    fn remote(&self, pool: &Pool, destination: Cidr, name: &str) -> Result<Route, Note> {
        let version = destination.version();
        let unready = |missing: &'static str| Note::Unready { destination, missing };
        let unknown = || Note::UnknownNode { destination, node: name.to_owned() };
        let node = self.inputs.nodes.get(name).ok_or_else(unknown)?;
        let remote = node.address(version).ok_or_else(unknown)?;
        let own = self.own.address(version).ok_or_else(|| unready("address"))?;
        let parent = self.inputs.host.parent(version).ok_or_else(|| unready("network interface"))?;
        let tunnels = pool.vxlan_mode != Encapsulation::Never;
        let direct = || Route {
            destination,
            target: Target::Gateway { gateway: remote.address, device: parent.to_owned() },
            mtu: None,
        };
        if pool.vxlan_mode != Encapsulation::Always && share_subnet(own, remote) {
            return Ok(direct());
        }
        if !tunnels {
            let (node, pool) = (name.to_owned(), pool.name.clone());
            return Err(Note::OtherSubnet { destination, node, pool });
        }
        self.own.tunnel(version).ok_or_else(|| unready("tunnel address"))?;
        let tunnel = node.tunnel(version).ok_or_else(unknown)?;
        let device = vxlan_device_name(version).to_owned();
        // A tunnel address cannot be reached through itself.
        let target = match destination == Cidr::from(tunnel) {
            true => Target::Tunnel { device },
            false => Target::Gateway { gateway: tunnel, device },
        };
        Ok(Route { destination, target, mtu: Some(tunnel_mtu(self.inputs, version)) })
    }

    /// Direct routes to the tunnel addresses of nodes in this subnet: Calico has them beside the block's own route
    /// (lab §8.3). Through the tunnel the block's route reaches the tunnel address anyway, and one that is borrowed
    /// or alone in its block has come out of the blocks already.
    fn tunnel_addresses(&self, desired: &mut Desired) {
        for (name, node) in self.remote_nodes() {
            for tunnel in [node.vxlan_ipv4, node.vxlan_ipv6].into_iter().flatten() {
                let destination = Cidr::from(tunnel);
                let Some(pool) = self.pool(destination) else { continue };
                if pool.vxlan_mode == Encapsulation::Never {
                    continue;
                }
                if let Ok(route) = self.remote(pool, destination, name)
                    && route.mtu.is_none()
                {
                    desired.routes.insert(destination, route);
                }
            }
        }
    }
}

/// Whether two nodes reach each other without a router: each lies in the other's network.
///
/// Asking both sides keeps the two directions on one path; Calico asks only its own (§9.3, asymmetry hazard).
fn share_subnet(a: NodeAddress, b: NodeAddress) -> bool {
    a.network().contains(b.address) && b.network().contains(a.address)
}
