//! Whether a node could be served at all, before anybody asks: which CNI's STATUS wants to know. Pure.

use crate::pools::{self, PoolRequest};
use api::{Cidr, IpVersion, Owner, Pool, Use};
use std::collections::BTreeMap;

/// What of a block counts here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// The block.
    pub cidr: Cidr,
    /// Who has it.
    pub owner: Option<Owner>,
    /// Addresses that can be handed out.
    pub free: usize,
}

/// The node that asks, and what it is among.
#[derive(Clone, Debug)]
pub struct Surroundings<'a> {
    /// The node as owner of blocks.
    pub owner: &'a Owner,
    /// Its labels; `None`: there is no such node.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// All pools, in pool order.
    pub pools: &'a [Pool],
    /// All blocks.
    pub blocks: &'a [Room],
    /// Blocks of others are not lent.
    pub strict_affinity: bool,
}

/// What keeps every pod of the node from an address of `version`; `None`: nothing that can be told beforehand.
///
/// `requested` names pools by name or CIDR; empty: any eligible. A pool that is for some namespaces only counts as usable: a pod of
/// such a namespace may come. A network of the pool that is in no block counts as room, reserved or not.
#[must_use]
pub fn hindrance(around: &Surroundings<'_>, version: IpVersion, requested: &[String]) -> Option<String> {
    let node = &around.owner.name;
    let Some(labels) = around.labels else {
        return Some(format!(
            "there is no Node {node} in the cluster: register it, or correct the node name"
        ));
    };
    // Whose namespace a pod will be of is not known yet.
    let open = |pool: &Pool| Pool { namespace_selector: None, ..pool.clone() };
    let pools: Vec<Pool> = around.pools.iter().map(open).collect();
    let mut cidrs = Vec::new();
    for name in requested {
        let named = pools.iter().find(|pool| pool.name == *name).map(|pool| pool.cidr);
        match named.or_else(|| name.parse().ok()) {
            Some(cidr) if cidr.version() == version => cidrs.push(cidr),
            Some(_) => {}
            None => {
                return Some(format!(
                    "pool {name:?} is neither an IPPool's name nor a CIDR; name one that exists"
                ));
            }
        }
    }
    let request = PoolRequest {
        version,
        requested: &cidrs,
        node,
        node_labels: labels,
        namespace_labels: &BTreeMap::new(),
        intended_use: Use::Workload,
        max_prefix: version.bits(),
    };
    let selected = match pools::select(&pools, &request) {
        Ok(selected) => selected,
        Err(error) => return Some(error.to_string()),
    };
    let has_room = |pool: &Pool| {
        let blocks = || around.blocks.iter().filter(|block| pool.cidr.contains_cidr(block.cidr));
        let lent = |block: &&Room| !around.strict_affinity || block.owner.as_ref() == Some(around.owner);
        let covered = blocks().map(|block| block.cidr.size()).fold(0, u128::saturating_add);
        covered < pool.cidr.size() || blocks().filter(lent).any(|block| block.free > 0)
    };
    if selected.usable.iter().any(has_room) {
        return None;
    }
    let full: Vec<String> =
        selected.usable.iter().map(|pool| format!("{} ({})", pool.name, pool.cidr)).collect();
    Some(format!("no {version} address is free for node {node} in {}: add a pool", full.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around<'a>(
        owner: &'a Owner,
        labels: Option<&'a BTreeMap<String, String>>,
        pools: &'a [Pool],
        blocks: &'a [Room],
    ) -> Surroundings<'a> {
        Surroundings { owner, labels, pools, blocks, strict_affinity: false }
    }

    fn room(cidr: &str, owner: &str, free: usize) -> Room {
        Room { cidr: cidr.parse().unwrap(), owner: Some(Owner::host(owner)), free }
    }

    #[test]
    fn what_keeps_every_pod_of_a_node_from_an_address_is_told() {
        let (owner, labels) = (Owner::host("n1"), BTreeMap::new());
        let pool = Pool::with_defaults("p", "10.0.0.0/25".parse().unwrap());
        let pools = [pool.clone()];
        let of =
            |around: &Surroundings<'_>, requested: &[String]| hindrance(around, IpVersion::V4, requested);
        assert_eq!(of(&around(&owner, Some(&labels), &pools, &[]), &[]), None);
        let told = of(&around(&owner, None, &pools, &[]), &[]).unwrap();
        assert!(told.contains("no Node n1"), "{told}");
        assert!(of(&around(&owner, Some(&labels), &[], &[]), &[]).is_some());
        assert!(hindrance(&around(&owner, Some(&labels), &pools, &[]), IpVersion::V6, &[]).is_some());
        let elsewhere = [Pool { node_selector: "zone == 'b'".to_owned(), ..pool.clone() }];
        assert!(of(&around(&owner, Some(&labels), &elsewhere, &[]), &[]).is_some());
        let named = [Pool { namespace_selector: Some("team == 'a'".to_owned()), ..pool }];
        assert_eq!(of(&around(&owner, Some(&labels), &named, &[]), &[]), None);
        let told = of(&around(&owner, Some(&labels), &pools, &[]), &["q".to_owned()]).unwrap();
        assert!(told.contains("\"q\""), "{told}");
    }

    #[test]
    fn a_pool_has_room_where_a_block_has_or_where_none_is() {
        let (owner, labels) = (Owner::host("n1"), BTreeMap::new());
        let pools = [Pool::with_defaults("p", "10.0.0.0/25".parse().unwrap())];
        let of = |blocks: &[Room], strict_affinity: bool| {
            let around = around(&owner, Some(&labels), &pools, blocks);
            hindrance(&Surroundings { strict_affinity, ..around }, IpVersion::V4, &[])
        };
        assert_eq!(of(&[room("10.0.0.0/26", "n1", 0)], false), None);
        let full = [room("10.0.0.0/26", "n1", 0), room("10.0.0.64/26", "n2", 0)];
        assert!(of(&full, false).unwrap().contains("p (10.0.0.0/25)"));
        let lent = [room("10.0.0.0/26", "n1", 0), room("10.0.0.64/26", "n2", 3)];
        assert_eq!(of(&lent, false), None);
        assert!(of(&lent, true).is_some());
    }
}
