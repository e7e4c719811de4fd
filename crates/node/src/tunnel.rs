//! The address of the node's VXLAN device: allocated like any other, recorded on the Node (dataplane §4.3).
//!
//! The allocation's handle is the truth about what the node holds; the annotation follows it. Normally it is the first
//! allocation of the node, so it takes the first address of its first block.

use crate::driver::{Door, Input, Sight};
use crate::node_object::{IPV4_ADDRESS, VXLAN_ADDRESS};
use api::{Encapsulation, IpVersion, Node, Pool, Use};
use dataplane::NodeAddress;
use ipam::agent::{Demand, Reply, Surrender};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tracing::info;

/// Pools that the tunnel's address may come from: enabled IPv4 pools with VXLAN for tunnels of this node.
pub(crate) fn eligible(pools: &[Pool], node: &Node) -> Vec<Pool> {
    pools
        .iter()
        .filter(|pool| {
            pool.is_enabled()
                && pool.cidr.version() == IpVersion::V4
                && pool.vxlan_mode != Encapsulation::Never
                && pool.allowed_uses.contains(&Use::Tunnel)
                && ipam::pools::selects_node(pool, &node.labels).unwrap_or(false)
        })
        .cloned()
        .collect()
}

/// Makes sure that the node holds a tunnel address from an eligible pool, or none if there is no such pool.
///
/// # Errors
/// What the batcher answered.
pub(crate) async fn ensure(door: &Door, node: &str, pools: &[Pool]) -> Result<Option<IpAddr>, String> {
    let demand = Demand::vxlan_tunnel(node, pools.iter().map(|pool| pool.cidr.to_string()).collect());
    let surrender = || Surrender { handle: demand.handle.clone(), interface: None, legacy_handle: None };
    if pools.is_empty() {
        return match door.ask(|sender| Input::Surrender(surrender(), sender)).await {
            Reply::Failed(error) => Err(error.message),
            Reply::Added(_) | Reply::Deleted => Ok(None),
        };
    }
    for _ in 0..2 {
        let asked = demand.clone();
        match door.ask(|sender| Input::Demand(asked, sender)).await {
            Reply::Failed(error) => return Err(error.message),
            Reply::Deleted => {}
            Reply::Added(taken) => {
                let address = taken.first().map(|taken| taken.address);
                if address.is_some_and(|address| pools.iter().any(|pool| pool.cidr.contains(address))) {
                    return Ok(address);
                }
                // Held since another pool was the one: give it back and take anew.
                info!(node, ?address, "released tunnel address outside of every eligible pool");
                if let Reply::Failed(error) = door.ask(|sender| Input::Surrender(surrender(), sender)).await {
                    return Err(error.message);
                }
            }
        }
    }
    Err("the tunnel address stays outside of every eligible pool; release it with calicoctl ipam release"
        .to_owned())
}

/// What has to be changed on the Node so that it says these addresses; empty if it does.
pub(crate) fn annotations(
    sight: &Sight,
    address: Option<NodeAddress>,
    tunnel: Option<IpAddr>,
) -> BTreeMap<&'static str, Option<String>> {
    let found = |key: &str| sight.node.as_ref().and_then(|node| node.annotations.get(key));
    let mut changes = BTreeMap::new();
    if let Some(address) = address {
        let text = format!("{}/{}", address.address, address.prefix);
        if found(IPV4_ADDRESS) != Some(&text) {
            changes.insert(IPV4_ADDRESS, Some(text));
        }
    }
    let text = tunnel.map(|tunnel| tunnel.to_string());
    if found(VXLAN_ADDRESS) != text.as_ref() {
        changes.insert(VXLAN_ADDRESS, text);
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enabled_vxlan_pools_for_tunnels_of_this_node_are_eligible() {
        let node = Node { labels: [("zone".to_owned(), "a".to_owned())].into(), ..Node::default() };
        let pool = |name: &str| {
            let mut pool = Pool::with_defaults(name, "10.0.0.0/16".parse().unwrap());
            pool.vxlan_mode = Encapsulation::CrossSubnet;
            pool
        };
        let mut pools: Vec<Pool> =
            ["good", "disabled", "plain", "workload", "elsewhere"].into_iter().map(pool).collect();
        pools[1].disabled = true;
        pools[2].vxlan_mode = Encapsulation::Never;
        pools[3].allowed_uses = vec![Use::Workload];
        pools[4].node_selector = "zone == 'b'".to_owned();
        let names: Vec<String> = eligible(&pools, &node).into_iter().map(|pool| pool.name).collect();
        assert_eq!(names, ["good"]);
    }

    #[test]
    fn annotations_are_written_only_where_they_differ() {
        let address = NodeAddress::parse("172.18.0.3/16");
        let tunnel = Some("192.168.18.64".parse().unwrap());
        let mut sight = Sight { node: Some(Node::default()), ..Sight::default() };
        let changes = annotations(&sight, address, tunnel);
        assert_eq!(changes[IPV4_ADDRESS], Some("172.18.0.3/16".to_owned()));
        assert_eq!(changes[VXLAN_ADDRESS], Some("192.168.18.64".to_owned()));
        let written = changes.into_iter().map(|(key, text)| (key.to_owned(), text.unwrap())).collect();
        sight.node = Some(Node { annotations: written, ..Node::default() });
        assert_eq!(annotations(&sight, address, tunnel), BTreeMap::new());
        assert_eq!(annotations(&sight, address, None), [(VXLAN_ADDRESS, None)].into());
    }
}
