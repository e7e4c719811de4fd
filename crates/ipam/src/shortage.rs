//! Why there is nothing left to take, and what would come free: pure, from all blocks as listed.

use crate::block;
use crate::explain::{Few, PoolFill, Relief, Shortage};
use crate::seen::Seen;
use crate::vacancy::Search;
use api::{Block, Ordinal, Pool};

/// Why no block can be claimed and nothing is left to take.
pub fn shortage(search: &Search<'_>, pools: &[Seen<Pool>], strict: bool, blocks: &[Seen<Block>]) -> Shortage {
    let owns = |block: &Block| block.affinity.as_ref() == Some(search.owner);
    let fills: Vec<PoolFill> = pools
        .iter()
        .map(|pool| {
            PoolFill::of(&pool.value, blocks.iter().map(|seen| (&seen.value.cidr, owns(&seen.value))))
        })
        .collect();
    let unmade = fills.iter().any(|fill| fill.claimed < fill.blocks);
    let queued = in_pools(pools, blocks).any(|block| !block.unallocated.is_empty());
    let fills: Few<PoolFill> = fills.into();
    if strict {
        Shortage::StrictAffinity { pools: fills }
    } else if !search.reserved.is_empty() && (queued || unmade) {
        Shortage::Reserved { pools: fills }
    } else {
        Shortage::PoolsFull { pools: fills }
    }
}

/// What in the usable pools could come free.
pub fn relief(search: &Search<'_>, pools: &[Seen<Pool>], blocks: &[Seen<Block>]) -> Relief {
    let mut relief = Relief::default();
    for block in in_pools(pools, blocks) {
        let cooling =
            block::allocated(block).filter(|(_, attribute)| attribute.released_at.is_some()).count();
        let reserved = block
            .unallocated
            .iter()
            .filter_map(|ordinal| block.cidr.address(Ordinal(*ordinal)))
            .filter(|address| search.reserved.covers_address(*address))
            .count();
        relief.cooling = relief.cooling.saturating_add(count(cooling));
        relief.reserved = relief.reserved.saturating_add(count(reserved));
        if block.affinity.as_ref() != Some(search.owner) {
            let free = block.unallocated.len().saturating_sub(reserved);
            relief.elsewhere = relief.elsewhere.saturating_add(count(free));
            relief.empty_blocks += u64::from(block.affinity.is_some() && block::is_empty(block));
        }
    }
    relief
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn in_pools<'b>(pools: &[Seen<Pool>], blocks: &'b [Seen<Block>]) -> impl Iterator<Item = &'b Block> {
    blocks
        .iter()
        .map(|seen| &seen.value)
        .filter(|block| pools.iter().any(|pool| pool.value.cidr.contains_cidr(block.cidr)))
}
