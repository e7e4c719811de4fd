//! How many addresses are used, reserved and free: the one count behind `ipam show`, metrics and pages (architecture D11).

use crate::block::free_count;
use crate::reservations::ReservationSet;
use api::{Block, Cidr, Owner, Pool};

/// Counts of addresses. `in_use` and `reserved` may overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All.
    pub total: u128,
    /// Not in a free list: allocated, or cooling down.
    pub in_use: u128,
    /// Covered by a reservation.
    pub reserved: u128,
    /// Could be handed out automatically.
    pub free: u128,
}

/// Counts of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockCount {
    /// The block.
    pub cidr: Cidr,
    /// Its owner.
    pub owner: Option<Owner>,
    /// Its counts.
    pub count: Count,
}

/// Counts of one pool with its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolCount {
    /// Name.
    pub name: String,
    /// Addresses.
    pub cidr: Cidr,
    /// Its counts; those outside of any block are free unless reserved.
    pub count: Count,
    /// Its blocks in address order.
    pub blocks: Vec<BlockCount>,
}

/// Counts of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Utilization {
    /// Pools in the order given.
    pub pools: Vec<PoolCount>,
    /// Blocks that lie in no pool, in address order.
    pub orphans: Vec<BlockCount>,
}

/// Counts one block. Nothing is collected first: an address whose cooldown is over but not yet noticed is in use.
pub fn count_block(block: &Block, reserved: &ReservationSet) -> BlockCount {
    let total = block.cidr.size();
    let queued = u128::try_from(block.unallocated.len()).unwrap_or(u128::MAX);
    BlockCount {
        cidr: block.cidr,
        owner: block.affinity.clone(),
        count: Count {
            total,
            in_use: total.saturating_sub(queued),
            reserved: reserved.count_in(block.cidr),
            free: u128::try_from(free_count(block, reserved)).unwrap_or(u128::MAX),
        },
    }
}

/// Counts pools and blocks; each block belongs to the first pool that it overlaps. Blocks marked deleted do not count.
pub fn utilization<'a>(
    pools: impl IntoIterator<Item = &'a Pool>,
    blocks: impl IntoIterator<Item = &'a Block>,
    reserved: &ReservationSet,
) -> Utilization {
    let mut counted = Utilization {
        pools: pools
            .into_iter()
            .map(|pool| PoolCount {
                name: pool.name.clone(),
                cidr: pool.cidr,
                count: Count::default(),
                blocks: Vec::new(),
            })
            .collect(),
        orphans: Vec::new(),
    };
    for block in blocks.into_iter().filter(|block| !block.deleted) {
        let home = counted.pools.iter_mut().find(|pool| pool.cidr.overlaps(block.cidr));
        home.map_or(&mut counted.orphans, |pool| &mut pool.blocks).push(count_block(block, reserved));
    }
    counted.orphans.sort_by_key(|block| block.cidr);
    for pool in &mut counted.pools {
        pool.blocks.sort_by_key(|block| block.cidr);
        pool.count = count_pool(pool.cidr, &pool.blocks, reserved);
    }
    counted
}

fn count_pool(cidr: Cidr, blocks: &[BlockCount], reserved: &ReservationSet) -> Count {
    let sum = |part: fn(&Count) -> u128| {
        blocks.iter().map(|block| part(&block.count)).fold(0, u128::saturating_add)
    };
    let total = cidr.size();
    let all_reserved = reserved.count_in(cidr);
    let outside = total.saturating_sub(sum(|count| count.total));
    let reserved_outside = all_reserved.saturating_sub(sum(|count| count.reserved));
    Count {
        total,
        in_use: sum(|count| count.in_use),
        reserved: all_reserved,
        free: sum(|count| count.free).saturating_add(outside.saturating_sub(reserved_outside)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Take, new_block, take};
    use api::Reservation;
    use std::collections::{BTreeMap, BTreeSet};

    fn block(cidr: &str, used: usize) -> Block {
        let owner = Owner::host("n");
        let mut block = new_block(cidr.parse().unwrap(), &owner, jiff::Timestamp::UNIX_EPOCH);
        let request = Take {
            count: used,
            handle: Some("h"),
            attributes: &BTreeMap::new(),
            reserved: &ReservationSet::default(),
            avoid: &BTreeSet::new(),
            only_owner: None,
        };
        assert_eq!(take(&mut block, &request).unwrap().len(), used);
        block
    }

    #[test]
    fn addresses_outside_of_blocks_are_free() {
        let pool = Pool::with_defaults("p", "192.168.0.0/16".parse().unwrap());
        let blocks = [block("192.168.1.0/26", 2), block("192.168.0.64/26", 8)];
        let counted = utilization([&pool], &blocks, &ReservationSet::default());
        assert_eq!(counted.pools[0].count, Count { total: 65536, in_use: 10, reserved: 0, free: 65526 });
        assert_eq!(counted.pools[0].blocks[0].cidr.to_string(), "192.168.0.64/26");
    }

    #[test]
    fn reservations_inside_and_outside_of_blocks_are_taken_off() {
        let pool = Pool::with_defaults("p", "10.65.0.0/16".parse().unwrap());
        let reserved = ReservationSet::new(&[Reservation {
            name: "r".to_owned(),
            cidrs: vec!["10.65.79.8/30".parse().unwrap(), "10.65.200.0/24".parse().unwrap()],
        }]);
        let counted = utilization([&pool], &[block("10.65.79.0/26", 5)], &reserved);
        assert_eq!(counted.pools[0].blocks[0].count, Count { total: 64, in_use: 5, reserved: 4, free: 55 });
        assert_eq!(counted.pools[0].count, Count { total: 65536, in_use: 5, reserved: 260, free: 65271 });
    }

    #[test]
    fn blocks_without_pool_are_orphans_in_both_families() {
        let mut gone = block("10.9.0.0/30", 0);
        gone.deleted = true;
        let counted = utilization(
            [],
            &[block("fd00::/122", 1), block("10.0.0.0/30", 0), gone],
            &ReservationSet::default(),
        );
        assert_eq!(counted.orphans.len(), 2);
    }

    #[test]
    fn a_pool_larger_than_any_number_does_not_overflow() {
        let pool = Pool::with_defaults("p", "::/0".parse().unwrap());
        let counted = utilization([&pool], &[block("fd00::/122", 7)], &ReservationSet::default());
        assert_eq!(counted.pools[0].count.in_use, 7);
        assert_eq!(counted.pools[0].count.free, u128::MAX - 7);
    }
}
