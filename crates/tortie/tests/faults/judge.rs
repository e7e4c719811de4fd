//! Reads the store when all is done and compares it with what the runtimes were told (invariants 1 to 8).
//!
//! Nothing here calls the code that it judges: blocks are counted and looked through anew.

use crate::agents::node;
use crate::load::Outcome;
use crate::members::Store;
use crate::{AGENTS, PATIENCE};
use api::{Affinity, AffinityState, Block, Cidr, Handle, Ordinal};
use datastore::{Datastore as _, Kind, Record, Scope};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Everything that is judged.
#[derive(Debug, Default)]
struct Contents {
    blocks: BTreeMap<Cidr, Block>,
    affinities: Vec<Affinity>,
    handles: BTreeMap<String, Handle>,
}

/// Fails where something is broken that must hold at every moment, whatever agents are at.
///
/// # Panics
/// With what is wrong.
pub(crate) fn is_sound(store: &Store<'_>) {
    let broken = broken(&read(store), &Outcome::default());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Fails at once where an answer does not hold or something is broken; waits for what agents have yet to clear up.
///
/// # Panics
/// With what is wrong, one line each, which begins with the invariant's number.
pub(crate) fn comes_to_rest(store: &Store<'_>, outcome: &Outcome) {
    let since = Instant::now();
    loop {
        let contents = read(store);
        let broken = broken(&contents, outcome);
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        let unfinished = unfinished(&contents, outcome);
        if unfinished.is_empty() {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "still after {PATIENCE:?}:\n{}", unfinished.join("\n"));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until exactly these handles hold something, those of the nodes' own addresses aside.
///
/// # Panics
/// If it takes longer than anything may.
pub(crate) fn only_these_hold(store: &Store<'_>, handles: &BTreeSet<String>) {
    let since = Instant::now();
    loop {
        let contents = read(store);
        let holders = contents.blocks.values().flat_map(allocations).map(|(_, handle)| handle.to_owned());
        let holders: BTreeSet<String> =
            holders.filter(|handle| !handle.starts_with("vxlan-tunnel-addr-")).collect();
        if holders == *handles {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "{holders:?} hold addresses, and {handles:?} should");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn read(store: &Store<'_>) -> Contents {
    store.now(async |store| {
        let mut contents = Contents::default();
        for kind in [Kind::Block, Kind::Affinity, Kind::Handle] {
            let listing = store.list(&Scope::All(kind)).await.unwrap();
            assert!(listing.unreadable.is_empty(), "{:?}", listing.unreadable);
            for stored in listing.items {
                match stored.record {
                    Record::Block(block) => drop(contents.blocks.insert(block.cidr, block)),
                    Record::Affinity(affinity) => contents.affinities.push(affinity),
                    Record::Handle(handle) => drop(contents.handles.insert(handle.id.clone(), handle)),
                    other => panic!("{other:?}"),
                }
            }
        }
        contents
    })
}

/// Who holds what in a block: address and handle.
fn allocations(block: &Block) -> impl Iterator<Item = (IpAddr, &str)> {
    (0_u32..).zip(block.allocations.iter()).filter_map(|(ordinal, allocation)| {
        let attribute = block.attributes.get((*allocation)?)?;
        let held = attribute.released_at.is_none();
        held.then_some((
            block.cidr.address(Ordinal(ordinal))?,
            attribute.handle_id.as_deref().unwrap_or_default(),
        ))
    })
}

/// What must hold at every moment (1, 2, 4), and that every answer holds (6, 9).
fn broken(contents: &Contents, outcome: &Outcome) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    let mut before: Option<&Block> = None;
    for block in contents.blocks.values() {
        if let Some(before) = before.filter(|before| before.cidr.contains_cidr(block.cidr)) {
            wrong.push(format!("4: blocks {} and {} overlap", before.cidr, block.cidr));
        }
        before = Some(block);
        wrong.extend(miscounted(block));
        for (address, handle) in allocations(block) {
            if let Some(other) = owners.insert(address, handle) {
                wrong.push(format!("1: {address} is held by {other} and by {handle}"));
            }
        }
    }
    for (handle, address) in &outcome.held {
        match owners.get(address) {
            Some(holder) if holder == handle => {}
            Some(other) => wrong.push(format!("1, 9: {address} was given to {handle} and is {other}'s")),
            None => wrong.push(format!("6, 9: {address} was given to {handle} and is free")),
        }
    }
    wrong
}

/// Invariant 2: every ordinal is free, once, or allocated, and refers to something that is there.
fn miscounted(block: &Block) -> Option<String> {
    let size = block.allocations.len();
    let free: BTreeSet<u32> = block.unallocated.iter().copied().collect();
    let taken: BTreeSet<u32> =
        (0_u32..).zip(block.allocations.iter()).filter_map(|(at, held)| held.map(|_| at)).collect();
    let whole = free.len() == block.unallocated.len()
        && free.is_disjoint(&taken)
        && free.len() + taken.len() == size
        && free.iter().all(|at| usize::try_from(*at).is_ok_and(|at| at < size))
        && u128::try_from(size).is_ok_and(|size| size == block.cidr.size());
    let described = block.allocations.iter().flatten().all(|at| *at < block.attributes.len());
    (!whole || !described).then(|| format!("2: block {} does not add up: {block:?}", block.cidr))
}

/// What agents may still have to clear up: 3, 5, 8.
fn unfinished(contents: &Contents, outcome: &Outcome) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut counts: BTreeMap<&str, BTreeMap<Cidr, u32>> = BTreeMap::new();
    let tunnels: BTreeSet<String> = (0..AGENTS).map(|at| format!("vxlan-tunnel-addr-{}", node(at))).collect();
    for block in contents.blocks.values() {
        for (address, handle) in allocations(block) {
            *counts.entry(handle).or_default().entry(block.cidr).or_default() += 1;
            if outcome.held.get(handle) != Some(&address) && !tunnels.contains(handle) {
                wrong.push(format!("8: {address} is held by {handle}, which gave it back"));
            }
        }
    }
    for tunnel in &tunnels {
        let held: u32 = counts.get(tunnel.as_str()).into_iter().flat_map(BTreeMap::values).sum();
        if held != 1 {
            wrong.push(format!("8: {tunnel} holds {held} addresses"));
        }
    }
    for (handle, blocks) in &counts {
        let known = contents.handles.get(*handle).map(|handle| &handle.blocks);
        if known != Some(blocks) {
            wrong.push(format!("5: {handle} holds {blocks:?} and its record says {known:?}"));
        }
    }
    for handle in contents.handles.keys().filter(|handle| !counts.contains_key(handle.as_str())) {
        wrong.push(format!("8: the record of {handle} is left, which holds nothing"));
    }
    let claimed: BTreeMap<Cidr, &Affinity> =
        contents.affinities.iter().map(|affinity| (affinity.cidr, affinity)).collect();
    for affinity in &contents.affinities {
        let owner = contents.blocks.get(&affinity.cidr).map(|block| block.affinity.as_ref());
        if affinity.state != AffinityState::Confirmed || owner != Some(Some(&affinity.owner)) {
            wrong.push(format!(
                "3: {} claims {} ({:?}), whose owner is {owner:?}",
                affinity.owner, affinity.cidr, affinity.state
            ));
        }
    }
    for block in contents.blocks.values() {
        let claim = claimed.get(&block.cidr).map(|affinity| &affinity.owner);
        if claim != block.affinity.as_ref() {
            wrong.push(format!(
                "3: block {} is of {:?}, and claimed by {claim:?}",
                block.cidr, block.affinity
            ));
        }
    }
    wrong
}
