//! What to write for an operation on one block: pure, from records as read to the writes of one commit.
//!
//! The async protocols and the agent's batcher share these. On the way in, handles are written before the block; on
//! the way out after it (invariant I23): a crash between leaves a handle that counts too much, never an address that
//! its handle does not know. Handle counts are set from the block in hand and not added to, so that a retry after a crash
//! does not count twice (architecture D4); who takes never lowers one.

use crate::block::{self, Take, TakeError, Taken};
use crate::cap::{self, CapReached};
use crate::host_reserved::{self, HostReserved};
use crate::reservations::ReservationSet;
use crate::seen::Seen;
use api::{Affinity, AffinityState, Block, Cidr, Handle, Ordinal, Owner, Use};
use datastore::{Record, Write};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use crate::plan_release::{ReleasePlan, plan_release, plan_release_of_handle};

/// How long another owner's unconfirmed claim is left alone before it may be taken over (architecture D9).
pub const TAKE_OVER_AGE: SignedDuration = SignedDuration::from_secs(60);

/// Handles as read, by sanitised id. A handle that was read and is not there has no entry.
pub type Handles = BTreeMap<String, Seen<Handle>>;

/// Addresses wanted by one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// How many.
    pub count: usize,
    /// Handle to hold them; `None` for an anonymous allocation.
    pub handle: Option<String>,
    /// Attributes stored with them.
    pub attributes: BTreeMap<String, String>,
}

/// A request for one particular address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressRequest {
    /// Who asks.
    pub owner: Owner,
    /// The address.
    pub address: IpAddr,
    /// What for. `None`: not checked.
    pub intended_use: Option<Use>,
    /// Handle to hold it.
    pub handle: Option<String>,
    /// Attributes stored with it.
    pub attributes: BTreeMap<String, String>,
    /// Addresses of this family that the handle may hold; 0: any number.
    pub max_per_handle: u32,
}

impl AddressRequest {
    /// A request by this handle, or by nobody, whose use is not checked and whose handle is not capped.
    pub fn new(owner: Owner, address: IpAddr, handle: Option<&str>) -> Self {
        Self {
            owner,
            address,
            intended_use: None,
            handle: handle.map(str::to_owned),
            attributes: BTreeMap::new(),
            max_per_handle: 0,
        }
    }
}

/// How to take from a block.
#[derive(Clone, Copy, Debug)]
pub struct TakeRules<'a> {
    /// Addresses never handed out automatically.
    pub reserved: &'a ReservationSet,
    /// Ordinals to pass over: those that the same batch released.
    pub avoid: &'a BTreeSet<Ordinal>,
    /// Refuse the block of anybody else. `None`: borrow.
    pub only_owner: Option<&'a Owner>,
}

/// A block to be made, and what is put into it at once.
#[derive(Clone, Copy, Debug)]
pub struct NewBlock<'a> {
    /// Which.
    pub cidr: Cidr,
    /// For whom.
    pub owner: &'a Owner,
    /// Ordinals that the owner keeps for itself.
    pub host_reserved: Option<&'a HostReserved>,
    /// Addresses never handed out automatically.
    pub reserved: &'a ReservationSet,
}

/// Why nothing is planned on a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanRefusal {
    /// The block does not allow it.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// The handle may not hold more.
    #[error(transparent)]
    Cap(#[from] CapReached),
}

/// One commit on one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockPlan {
    /// The block as it will be; `None` if it is deleted.
    pub block: Option<Block>,
    /// Writes in order. Empty: nothing to do.
    pub writes: Vec<Write>,
    /// Addresses per want, in the order of the wants; each perhaps fewer than wanted.
    pub taken: Vec<Vec<Taken>>,
}

impl BlockPlan {
    /// Position in `writes` of the block's own write.
    pub fn block_write(&self) -> Option<usize> {
        self.writes.iter().position(|write| matches!(write.record(), Record::Block(_)))
    }
}

/// The write that makes the handle's count for this block what the block says; `None` if there is nothing to write.
///
/// A handle that holds nothing any more is deleted. A handle that holds something is written even if its count stays:
/// its new revision tells whoever wants to remove it that it is in use.
pub fn handle_write(id: &str, seen: Option<&Seen<Handle>>, cidr: Cidr, count: u32) -> Option<Write> {
    let mut handle = seen.map_or_else(
        || Handle { id: id.to_owned(), blocks: BTreeMap::new(), deleted: false },
        |seen| seen.value.clone(),
    );
    if count > 0 {
        handle.blocks.insert(cidr, count);
    } else {
        handle.blocks.remove(&cidr);
    }
    match seen {
        None if count > 0 => Some(Write::Create(Record::Handle(handle))),
        None => None,
        Some(seen) if handle.blocks.is_empty() => {
            // As it was seen, so that a commit that has to be undone can make it again.
            Some(Write::Delete(Record::Handle(seen.value.clone()), seen.version.clone()))
        }
        Some(seen) if count == 0 && seen.value == handle => None,
        Some(seen) => Some(Write::Update(Record::Handle(handle), seen.version.clone())),
    }
}

/// As [`handle_write`], for a handle that takes addresses of the block: its count is never lowered.
///
/// The handle may be younger than the block as it was read. Another ADD of the same handle may have counted and taken since: this
/// one's block write is refused then, but its handle write is not, and would leave that address uncounted (invariant 5). What is
/// counted too much is the collector's to lower.
pub fn handle_gain(id: &str, seen: Option<&Seen<Handle>>, cidr: Cidr, count: u32) -> Option<Write> {
    let counted = seen.and_then(|seen| seen.value.blocks.get(&cidr)).copied().unwrap_or(0);
    handle_write(id, seen, cidr, count.max(counted))
}

/// The writes of handles that take addresses of a block, given as it will be.
fn handle_gains<'a>(ids: impl IntoIterator<Item = &'a str>, handles: &Handles, block: &Block) -> Vec<Write> {
    each_handle(ids, handles, block, handle_gain)
}

/// The writes of handles whose counts become what a block, given as it will be, says.
pub(crate) fn handle_writes<'a>(
    ids: impl IntoIterator<Item = &'a str>,
    handles: &Handles,
    block: &Block,
) -> Vec<Write> {
    each_handle(ids, handles, block, handle_write)
}

fn each_handle<'a>(
    ids: impl IntoIterator<Item = &'a str>,
    handles: &Handles,
    block: &Block,
    write: impl Fn(&str, Option<&Seen<Handle>>, Cidr, u32) -> Option<Write>,
) -> Vec<Write> {
    let ids: BTreeSet<&str> = ids.into_iter().map(block::sanitized).filter(|id| !id.is_empty()).collect();
    ids.into_iter()
        .filter_map(|id| write(id, handles.get(id), block.cidr, block::count_of(block, id)))
        .collect()
}

/// Plans takes from a block as read: one block write serves all wants, in their order.
///
/// `handles` must hold every wanted handle that exists. If nothing could be taken there is nothing to write.
///
/// # Errors
/// [`TakeError::NotOwner`].
pub fn plan_take(
    seen: &Seen<Block>,
    wants: &[Want],
    handles: &Handles,
    rules: &TakeRules<'_>,
) -> Result<BlockPlan, TakeError> {
    let mut block = seen.value.clone();
    let taken = take_all(&mut block, wants, rules)?;
    if taken.iter().all(Vec::is_empty) {
        return Ok(BlockPlan { block: Some(seen.value.clone()), writes: Vec::new(), taken });
    }
    block::advance(&mut block);
    let mut writes = handle_gains(served(wants, &taken), handles, &block);
    writes.push(Write::Update(Record::Block(block.clone()), seen.version.clone()));
    Ok(BlockPlan { block: Some(block), writes, taken })
}

/// Plans as [`plan_take`] for one want whose handle may hold at most `cap` addresses of the family; 0: any number.
///
/// # Errors
/// See [`PlanRefusal`].
pub fn plan_take_capped(
    seen: &Seen<Block>,
    want: &Want,
    cap: u32,
    handles: &Handles,
    rules: &TakeRules<'_>,
) -> Result<BlockPlan, PlanRefusal> {
    let plan = plan_take(seen, std::slice::from_ref(want), handles, rules)?;
    let taken = plan.taken.iter().map(Vec::len).sum();
    if taken > 0 {
        check_cap(want.handle.as_deref(), &seen.value, taken, cap, handles)?;
    }
    Ok(plan)
}

fn check_cap(
    handle: Option<&str>,
    before: &Block,
    taken: usize,
    cap: u32,
    handles: &Handles,
) -> Result<(), CapReached> {
    let Some(id) = handle.map(block::sanitized) else { return Ok(()) };
    cap::check(id, handles.get(id).map(|seen| &seen.value), before, taken, cap)
}

/// Plans a block that does not exist yet, with what its host keeps of it and the first addresses in it. `wants` may be empty.
///
/// The affinity must be pending before this is committed, and the pool's revision be among the commit's checks.
///
/// # Errors
/// None in practice: a new block belongs to its owner.
pub fn plan_new_block(
    new: &NewBlock<'_>,
    now: Timestamp,
    wants: &[Want],
    handles: &Handles,
) -> Result<BlockPlan, TakeError> {
    let mut block = fresh(new, now);
    let rules = TakeRules { reserved: new.reserved, avoid: &BTreeSet::new(), only_owner: Some(new.owner) };
    let taken = take_all(&mut block, wants, &rules)?;
    let writes = handle_gains(served(wants, &taken), handles, &block);
    Ok(created(block, writes, taken))
}

/// Plans as [`plan_new_block`] for one want whose handle may hold at most `cap` addresses of the family; 0: any number.
///
/// # Errors
/// See [`PlanRefusal`].
pub fn plan_new_block_capped(
    new: &NewBlock<'_>,
    now: Timestamp,
    want: &Want,
    cap: u32,
    handles: &Handles,
) -> Result<BlockPlan, PlanRefusal> {
    let plan = plan_new_block(new, now, std::slice::from_ref(want), handles)?;
    let taken = plan.taken.iter().map(Vec::len).sum();
    check_cap(want.handle.as_deref(), &fresh(new, now), taken, cap, handles)?;
    Ok(plan)
}

/// Plans a block that does not exist yet, with one particular address assigned in it.
///
/// # Errors
/// See [`PlanRefusal`].
pub fn plan_new_block_with(
    new: &NewBlock<'_>,
    now: Timestamp,
    request: &AddressRequest,
    handles: &Handles,
) -> Result<BlockPlan, PlanRefusal> {
    let mut block = fresh(new, now);
    let handle = request.handle.as_deref();
    check_cap(handle, &block, 1, request.max_per_handle, handles)?;
    let taken = block::assign(&mut block, request.address, handle, &request.attributes, Some(new.owner))?;
    let writes = handle_gains(handle, handles, &block);
    Ok(created(block, writes, vec![vec![taken]]))
}

fn fresh(new: &NewBlock<'_>, now: Timestamp) -> Block {
    let mut block = block::new_block(new.cidr, new.owner, now);
    if let Some(reserved) = new.host_reserved {
        host_reserved::keep(&mut block, reserved);
    }
    block
}

fn created(mut block: Block, mut writes: Vec<Write>, taken: Vec<Vec<Taken>>) -> BlockPlan {
    if taken.iter().any(|taken| !taken.is_empty()) {
        block::advance(&mut block);
    }
    writes.push(Write::Create(Record::Block(block.clone())));
    BlockPlan { block: Some(block), writes, taken }
}

/// Plans the assignment of one particular address of a block as read.
///
/// # Errors
/// See [`PlanRefusal`].
pub fn plan_assign(
    seen: &Seen<Block>,
    request: &AddressRequest,
    handles: &Handles,
    only_owner: Option<&Owner>,
) -> Result<BlockPlan, PlanRefusal> {
    let mut block = seen.value.clone();
    let handle = request.handle.as_deref();
    let taken = block::assign(&mut block, request.address, handle, &request.attributes, only_owner)?;
    check_cap(handle, &seen.value, 1, request.max_per_handle, handles)?;
    block::advance(&mut block);
    let mut writes = handle_gains(handle, handles, &block);
    writes.push(Write::Update(Record::Block(block.clone()), seen.version.clone()));
    Ok(BlockPlan { block: Some(block), writes, taken: vec![vec![taken]] })
}

fn take_all(block: &mut Block, wants: &[Want], rules: &TakeRules<'_>) -> Result<Vec<Vec<Taken>>, TakeError> {
    wants
        .iter()
        .map(|want| {
            block::take(
                block,
                &Take {
                    count: want.count,
                    handle: want.handle.as_deref(),
                    attributes: &want.attributes,
                    reserved: rules.reserved,
                    avoid: rules.avoid,
                    only_owner: rules.only_owner,
                },
            )
        })
        .collect()
}

fn served<'a>(wants: &'a [Want], taken: &'a [Vec<Taken>]) -> impl Iterator<Item = &'a str> {
    wants
        .iter()
        .zip(taken)
        .filter(|(_, taken)| !taken.is_empty())
        .filter_map(|(want, _)| want.handle.as_deref())
}

/// What to do about the affinity before a block is claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PendingPlan {
    /// Write this; the affinity is then ours and pending.
    Write(Write),
    /// It is ours and pending already.
    Pending,
    /// It is ours and confirmed already: load the block instead.
    Confirmed,
    /// It is another owner's and may not be taken over: try another block.
    Taken(Owner),
}

/// Plans the pending affinity of `owner` for `cidr`, given the object found under its name, if any.
///
/// Another owner's object, which per-block names can bring up, is taken over only when it is not confirmed, older than
/// sixty seconds, and there is no block (architecture D9). `block_exists` must come from a read made after `found`.
pub fn plan_pending(
    owner: &Owner,
    cidr: Cidr,
    found: Option<&Seen<Affinity>>,
    block_exists: bool,
    now: Timestamp,
) -> PendingPlan {
    let pending = Record::Affinity(Affinity {
        owner: owner.clone(),
        cidr,
        state: AffinityState::Pending,
        deleted: false,
    });
    let Some(found) = found else { return PendingPlan::Write(Write::Create(pending)) };
    if found.value.owner == *owner {
        return match found.value.state {
            AffinityState::Pending => PendingPlan::Pending,
            AffinityState::Confirmed => PendingPlan::Confirmed,
            // A new revision makes the release that wrote this fail.
            AffinityState::PendingDeletion => {
                PendingPlan::Write(Write::Update(pending, found.version.clone()))
            }
        };
    }
    let old = found.created.is_some_and(|created| now.duration_since(created) > TAKE_OVER_AGE);
    if found.value.state != AffinityState::Confirmed && old && !block_exists {
        return PendingPlan::Write(Write::Update(pending, found.version.clone()));
    }
    PendingPlan::Taken(found.value.owner.clone())
}

/// The write that takes a block from its owner: an empty one is deleted, one with addresses in use or cooling is nobody's.
pub(crate) fn disown(seen: Seen<Block>) -> Write {
    let Seen { value: mut block, version, .. } = seen;
    if block::is_empty(&block) {
        return Write::Delete(Record::Block(block), version);
    }
    block.affinity = None;
    block.claim_time = None;
    block::advance(&mut block);
    Write::Update(Record::Block(block), version)
}

/// The write that brings an affinity as read into another state.
pub fn affinity_write(seen: &Seen<Affinity>, state: AffinityState) -> Write {
    Write::Update(Record::Affinity(Affinity { state, ..seen.value.clone() }), seen.version.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use datastore::{Key, Revision, Version};

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn seen<T>(value: T) -> Seen<T> {
        Seen { value, version: Version { revision: Revision(7), uid: None }, created: Some(now()) }
    }

    fn want(handle: &str) -> Want {
        Want { count: 1, handle: Some(handle.to_owned()), attributes: BTreeMap::new() }
    }

    fn cidr() -> Cidr {
        "10.0.0.0/30".parse().unwrap()
    }

    fn keys(plan: &BlockPlan) -> Vec<String> {
        plan.writes.iter().map(|write| write.key().to_string()).collect()
    }

    #[test]
    fn handles_are_written_before_the_block_and_one_block_write_serves_all() {
        let block = seen(block::new_block(cidr(), &Owner::host("n"), now()));
        let reserved = ReservationSet::default();
        let rules = TakeRules { reserved: &reserved, avoid: &BTreeSet::new(), only_owner: None };
        let wants: Vec<Want> = ["a", "b", "c", "d", "e"].into_iter().map(want).collect();
        let plan = plan_take(&block, &wants, &Handles::new(), &rules).unwrap();
        assert_eq!(keys(&plan), ["handle a", "handle b", "handle c", "handle d", "block 10.0.0.0/30"]);
        assert_eq!(plan.taken.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 1, 0]);
        assert_eq!(plan.block_write(), Some(4));
        let after = plan.block.unwrap();
        assert_eq!(after.sequence_number, block.value.sequence_number + 1);
        let full = plan_take(&seen(after), &[want("f")], &Handles::new(), &rules).unwrap();
        assert!(full.writes.is_empty());
    }

    /// The handle is younger than the block as it was read: another ADD of it has counted and taken meanwhile.
    #[test]
    fn who_takes_never_lowers_a_handle() {
        let block = seen(block::new_block(cidr(), &Owner::host("n"), now()));
        let reserved = ReservationSet::default();
        let rules = TakeRules { reserved: &reserved, avoid: &BTreeSet::new(), only_owner: None };
        let counted = |count| Handle { id: "a".to_owned(), blocks: [(cidr(), count)].into(), deleted: false };
        for (before, after) in [(0, 1), (1, 1), (2, 2), (3, 3)] {
            let handles = Handles::from([("a".to_owned(), seen(counted(before)))]);
            let plan = plan_take(&block, &[want("a")], &handles, &rules).unwrap();
            assert_eq!(plan.writes[0].record(), &Record::Handle(counted(after)));
        }
    }

    #[test]
    fn a_new_block_stamps_its_first_addresses_below_its_own_number_and_behind_what_the_host_keeps() {
        let new = NewBlock {
            cidr: "10.0.0.0/29".parse().unwrap(),
            owner: &Owner::host("n"),
            host_reserved: Some(&HostReserved::windows()),
            reserved: &ReservationSet::default(),
        };
        let plan = plan_new_block(&new, now(), &[want("a")], &Handles::new()).unwrap();
        let block = plan.block.unwrap();
        assert!(plan.taken[0][0].sequence < block.sequence_number);
        assert_eq!(plan.taken[0][0].address.to_string(), "10.0.0.3");
        assert_eq!(plan.writes.last().unwrap().key(), Key::Block(block.cidr));
    }

    #[test]
    fn only_an_old_unconfirmed_claim_without_block_is_taken_over() {
        let me = Owner::host("me");
        let claim = |owner: &str, state| {
            seen(Affinity { owner: Owner::host(owner), cidr: cidr(), state, deleted: false })
        };
        let later = now() + SignedDuration::from_secs(61);
        let theirs = claim("other", AffinityState::Pending);
        let write = |found, at| match plan_pending(&me, cidr(), found, false, at) {
            PendingPlan::Write(write) => write,
            other => panic!("{other:?}"),
        };
        assert!(matches!(write(None, now()), Write::Create(_)));
        assert!(matches!(write(Some(&theirs), later), Write::Update(..)));
        for (found, exists, at) in [
            (claim("other", AffinityState::Confirmed), false, later),
            (claim("other", AffinityState::Pending), true, later),
            (claim("other", AffinityState::Pending), false, now()),
            (Seen { created: None, ..theirs }, false, later),
        ] {
            assert_eq!(
                plan_pending(&me, cidr(), Some(&found), exists, at),
                PendingPlan::Taken(Owner::host("other"))
            );
        }
        let mine = claim("me", AffinityState::Confirmed);
        assert_eq!(plan_pending(&me, cidr(), Some(&mine), true, now()), PendingPlan::Confirmed);
    }
}
