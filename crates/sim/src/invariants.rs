//! What must hold after every step, judged from the records alone (architecture §5).

use api::{Block, Cidr, Handle};
use datastore::Record;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Everything that is wrong with these records; empty if nothing is. Numbers are those of the architecture.
pub fn broken(records: &[Record]) -> Vec<String> {
    let blocks: Vec<&Block> = records
        .iter()
        .filter_map(|record| match record {
            Record::Block(block) => Some(block),
            _ => None,
        })
        .collect();
    let handles: BTreeMap<&str, &Handle> = records
        .iter()
        .filter_map(|record| match record {
            Record::Handle(handle) => Some((handle.id.as_str(), handle)),
            _ => None,
        })
        .collect();
    let mut wrong = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        for other in &blocks[index + 1..] {
            if block.cidr.overlaps(other.cidr) {
                wrong.push(format!("4: blocks {} and {} overlap", block.cidr, other.cidr));
            }
        }
        wrong.extend(miscounted(block));
        wrong.extend(unreachable(block, &handles));
    }
    wrong
}

/// Invariant 2: every ordinal is either free, once, or allocated.
fn miscounted(block: &Block) -> Option<String> {
    let free: BTreeSet<u32> = block.unallocated.iter().copied().collect();
    let held = block.allocations.iter().flatten().count();
    let disjoint = free.iter().all(|ordinal| {
        usize::try_from(*ordinal)
            .ok()
            .and_then(|index| block.allocations.get(index))
            .is_some_and(Option::is_none)
    });
    let whole = free.len() == block.unallocated.len() && free.len() + held == block.allocations.len();
    (!disjoint || !whole).then(|| {
        format!(
            "2: block {}: {} free, {held} allocated of {}",
            block.cidr,
            block.unallocated.len(),
            block.allocations.len()
        )
    })
}

/// Invariant 5: every allocation with a handle is counted by that handle.
fn unreachable(block: &Block, handles: &BTreeMap<&str, &Handle>) -> Vec<String> {
    let mut held: BTreeMap<&str, u32> = BTreeMap::new();
    for (_, attribute) in ipam::block::allocated(block) {
        if let Some(id) = &attribute.handle_id {
            *held.entry(ipam::block::sanitized(id)).or_default() += 1;
        }
    }
    held.into_iter()
        .filter(|(id, count)| {
            handles.get(id).and_then(|handle| handle.blocks.get(&block.cidr)).is_none_or(|held| held < count)
        })
        .map(|(id, count)| format!("5: handle {id} does not reach its {count} addresses in {}", block.cidr))
        .collect()
}

/// Invariant 1, as clients see it: nobody was promised what another was promised too.
pub fn promised_twice<'a>(promises: impl Iterator<Item = (&'a str, IpAddr)>) -> Vec<String> {
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (owner, address) in promises {
        if let Some(other) = owners.insert(address, owner)
            && other != owner
        {
            wrong.push(format!("1: {address} was given to {other} and to {owner}"));
        }
    }
    wrong
}

/// Blocks whose CIDR the records hold.
pub fn block_cidrs(records: &[Record]) -> BTreeSet<Cidr> {
    records
        .iter()
        .filter_map(|record| match record {
            Record::Block(block) => Some(block.cidr),
            _ => None,
        })
        .collect()
}
