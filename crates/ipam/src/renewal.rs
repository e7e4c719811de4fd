//! Answering what is held already: the allocation begins a new life (invariants 6 and 9).
//!
//! Whoever decided to free an address named its handle and its stamp: the collector, whose verdict may be minutes old, or a
//! queue of releases. Both stay the same for as long as the allocation stands, and a read keeps nobody out. So an address that
//! is answered once more gets a new stamp in a write of its block: what was decided about its earlier life is refused from then
//! on, and so is every write of the block that is still on its way.
//!
//! It gets the attributes of who asks, too. A container id may come back with another pod, after a DEL that was cut short: under
//! the earlier pod's name the address would be taken for leaked as soon as that pod is missed, by its present stamp.

use crate::block::{self, Taken};
use crate::clock::Clock;
use crate::explain::Explain;
use crate::failure::StoreError;
use crate::mistake::{Mistake, made};
use crate::owner_attributes::{Change, OwnerUpdate, PodName, set_owner};
use crate::plan::{BlockPlan, Handles, handle_write};
use crate::seen::{HandleInHand, Seen};
use crate::take::{OnBlock, commit_on};
use api::Block;
use datastore::{Datastore, Record, Write};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A cooldown that nothing is over: a renewal frees nothing on its way.
const NOTHING_COOLED: u32 = u32::MAX;

/// Who is answered what is held already.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The handle that must hold it.
    pub handle: &'a str,
    /// Whom it is for from now on.
    pub attributes: &'a BTreeMap<String, String>,
}

/// Gives an allocation of the asker's handle a new stamp, the block's present sequence number, and the asker's attributes.
/// `None`: the handle does not hold this address here, and the block is as it was.
///
/// The asker becomes the active owner. One who is the alternate owner, as the target of a migration is, stays that. The other
/// side is left as it is.
///
/// [`block::advance`] once before the block is written.
pub fn renew(block: &mut Block, address: IpAddr, asker: Asker<'_>) -> Option<Taken> {
    let held = block::attribute_of(block, address)?;
    let pod = PodName::of(asker.attributes).filter(|pod| !pod.owns(&held.secondary));
    let side = Change::Set(asker.attributes.clone());
    let update = match pod.is_some_and(|pod| pod.owns(&held.alternate)) {
        true => OwnerUpdate { alternate: side, ..OwnerUpdate::default() },
        false => OwnerUpdate { active: side, ..OwnerUpdate::default() },
    };
    let taken = restamp(block, address, asker.handle)?;
    // What the handle holds can be changed.
    set_owner(block, address, asker.handle, &update).ok()?;
    Some(taken)
}

/// Gives an allocation of `handle` a new stamp, the block's present sequence number, and leaves its owners as they are. `None`:
/// the handle does not hold this address here, and the block is as it was.
///
/// [`block::advance`] once before the block is written.
pub(crate) fn restamp(block: &mut Block, address: IpAddr, handle: &str) -> Option<Taken> {
    let held = block::attribute_of(block, address).filter(|held| held.released_at.is_none())?;
    if held.handle_id.as_deref().map(block::sanitized) != Some(block::sanitized(handle)) {
        return None;
    }
    let is_nodes_own = held.secondary.contains_key("type");
    let (cidr, ordinal) = (block.cidr, block.cidr.ordinal(address)?);
    let sequence = match is_nodes_own && made(Mistake::RejoinedTrusted) {
        true => block::stamp(block, ordinal),
        false => block.sequence_number,
    };
    Arc::make_mut(&mut block.sequence_for_allocation).insert(ordinal.0, sequence);
    Some(Taken { block: cidr, ordinal, address, sequence })
}

/// Whether a handle's record counts less here than the block holds, so that it has to be written with the block.
pub(crate) fn counts_too_little(known: Option<&Seen<api::Handle>>, block: &Block, handle: &str) -> bool {
    let counted = known.and_then(|seen| seen.value.blocks.get(&block.cidr)).copied().unwrap_or(0);
    counted < block::count_of(block, handle)
}

/// Plans the renewal of addresses of a block as read; what the asker's handle does not hold here is left out. Nothing to write:
/// it holds none of them.
///
/// `handles` must hold the handle if it exists. Its record is written only where it counts too little.
pub fn plan_renewal(
    seen: &Seen<Block>,
    addresses: &[IpAddr],
    asker: Asker<'_>,
    handles: &Handles,
) -> BlockPlan {
    let mut block = seen.value.clone();
    let taken: Vec<Taken> =
        addresses.iter().filter_map(|address| renew(&mut block, *address, asker)).collect();
    if taken.is_empty() {
        return BlockPlan { block: Some(block), writes: Vec::new(), taken: Vec::new() };
    }
    block::advance(&mut block);
    let id = block::sanitized(asker.handle);
    let known = handles.get(id);
    let mut writes = Vec::new();
    if counts_too_little(known, &block, id) {
        writes.extend(handle_write(id, known, block.cidr, block::count_of(&block, id)));
    }
    writes.push(Write::Update(Record::Block(block.clone()), seen.version.clone()));
    BlockPlan { block: Some(block), writes, taken: vec![taken] }
}

/// Renews addresses of a block as read, reading it again after each conflict. `None`: the asker's handle does not hold all of
/// them any more.
///
/// Datastore calls: 1 commit, and 1 read before it if the handle in hand is not known; after each conflict 2 reads at once
/// and 1 commit more.
///
/// # Errors
/// [`StoreError`]. A commit whose answer was lost is looked up and not repeated blindly.
///
/// # Cancellation
/// They are renewed or as before.
pub(crate) async fn renew_in<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    block: Seen<Block>,
    addresses: &[IpAddr],
    asker: Asker<'_>,
    hand: &mut HandleInHand,
    explain: &mut Explain,
) -> Result<Option<Vec<Taken>>, StoreError> {
    if made(Mistake::AnsweredUnrenewed) {
        let found = &block.value;
        let as_read = |address: &IpAddr| {
            let taken = restamp(&mut found.clone(), *address, asker.handle)?;
            Some(Taken { sequence: block::stamp(found, taken.ordinal), ..taken })
        };
        return Ok(addresses.iter().map(as_read).collect());
    }
    let planned = |seen: &Seen<Block>, handles: &Handles| {
        let plan = plan_renewal(seen, addresses, asker, handles);
        let all = plan.taken.iter().flatten().count() == addresses.len();
        Ok(if all { plan } else { BlockPlan { writes: Vec::new(), ..plan } })
    };
    Ok(match commit_on(store, clock, block, hand, NOTHING_COOLED, explain, planned).await? {
        OnBlock::Took(taken) => Some(taken),
        OnBlock::Full | OnBlock::Gone | OnBlock::Refused(_) => None,
    })
}

/// Renews addresses that lie in several blocks as read. False: the handle in hand does not hold all of them any more.
///
/// Datastore calls: those of [`renew_in`], per block that has some of them.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn renew_all<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    blocks: Vec<Option<Seen<Block>>>,
    addresses: &[IpAddr],
    attributes: &BTreeMap<String, String>,
    hand: &mut HandleInHand,
    explain: &mut Explain,
) -> Result<bool, StoreError> {
    let Some(handle) = hand.id().map(str::to_owned) else { return Ok(false) };
    let asker = Asker { handle: &handle, attributes };
    for block in blocks.into_iter().flatten() {
        let cidr = block.value.cidr;
        let here: Vec<IpAddr> = addresses.iter().copied().filter(|address| cidr.contains(*address)).collect();
        if !here.is_empty() && renew_in(store, clock, block, &here, asker, hand, explain).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Release, ReleaseError};
    use api::{Handle, Owner};
    use datastore::{Revision, Version};
    use jiff::Timestamp;

    fn address() -> IpAddr {
        "10.0.0.1".parse().unwrap()
    }

    fn attributes(pod: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("pod".to_owned(), pod.to_owned()), ("namespace".to_owned(), "shop".to_owned())])
    }

    /// Two addresses that were taken together for the pod `first`.
    fn held() -> Seen<Block> {
        let mut block =
            block::new_block("10.0.0.0/30".parse().unwrap(), &Owner::host("n"), Timestamp::UNIX_EPOCH);
        for address in [address(), "10.0.0.2".parse().unwrap()] {
            block::assign(&mut block, address, Some("h\rjunk"), &attributes("first"), None).unwrap();
        }
        block::advance(&mut block);
        let version = Version { revision: Revision(1), uid: None };
        Seen { value: block, version, created: None }
    }

    #[test]
    fn what_was_decided_about_an_earlier_life_does_not_free_a_renewed_address() {
        let before = held();
        let judged = Release { address: address(), handle: Some("h".to_owned()), sequence: Some(0) };
        let attributes = attributes("first");
        let asker = Asker { handle: "h", attributes: &attributes };
        let plan = plan_renewal(&before, &[address()], asker, &Handles::new());
        let mut after = plan.block.unwrap();
        assert_eq!(plan.taken[0][0].sequence, 1);
        assert!(after.sequence_number > plan.taken[0][0].sequence, "no later stamp is the same");
        let refused = block::release(&mut after, &[judged], 0, Timestamp::UNIX_EPOCH);
        assert!(matches!(refused, Err(ReleaseError::OtherSequence { found: 1, .. })), "{refused:?}");
    }

    #[test]
    fn a_handle_is_written_only_where_it_counts_too_little() {
        let before = held();
        let cidr = before.value.cidr;
        let version = Version { revision: Revision(1), uid: None };
        let known = |count| {
            let handle = Handle { id: "h".to_owned(), blocks: [(cidr, count)].into(), deleted: false };
            Handles::from([("h".to_owned(), Seen { value: handle, version: version.clone(), created: None })])
        };
        let attributes = attributes("second");
        let asker = Asker { handle: "h", attributes: &attributes };
        for (handles, writes) in [(known(2), 1), (known(1), 2), (Handles::new(), 2), (known(3), 1)] {
            assert_eq!(plan_renewal(&before, &[address()], asker, &handles).writes.len(), writes);
        }
        let others = plan_renewal(&before, &[address()], Asker { handle: "other", ..asker }, &Handles::new());
        assert!(others.writes.is_empty() && others.block == Some(before.value));
    }

    fn pods(block: &Block, address: IpAddr) -> [Option<&str>; 2] {
        let held = block::attribute_of(block, address).unwrap();
        [&held.secondary, &held.alternate].map(|side| side.get("pod").map(String::as_str))
    }

    #[test]
    fn a_renewed_address_is_that_of_the_pod_that_asks_and_what_was_taken_with_it_is_not() {
        let other: IpAddr = "10.0.0.2".parse().unwrap();
        let mut block = held().value;
        let attributes = attributes("second");
        let asker = Asker { handle: "h", attributes: &attributes };
        renew(&mut block, address(), asker).unwrap();
        assert_eq!(pods(&block, address()), [Some("second"), None]);
        assert_eq!(pods(&block, other), [Some("first"), None]);
        assert_eq!(block::count_of(&block, "h"), 2);
        renew(&mut block, address(), asker).unwrap();
        assert_eq!((block.attributes.len(), block::fault(&block)), (2, None), "asked again by the same pod");
    }

    #[test]
    fn the_target_of_a_migration_that_asks_stays_the_target() {
        let mut block = held().value;
        let target = attributes("target");
        let update = OwnerUpdate { alternate: Change::Set(target.clone()), ..OwnerUpdate::default() };
        set_owner(&mut block, address(), "h", &update).unwrap();
        renew(&mut block, address(), Asker { handle: "h", attributes: &target }).unwrap();
        assert_eq!(pods(&block, address()), [Some("first"), Some("target")]);
        let next = attributes("next");
        renew(&mut block, address(), Asker { handle: "h", attributes: &next }).unwrap();
        assert_eq!(pods(&block, address()), [Some("next"), Some("target")]);
    }
}
