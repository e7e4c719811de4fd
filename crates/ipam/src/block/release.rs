//! Giving addresses of a block back, and the time that they wait before they are used again (algorithm §2.8, §2.9).

use super::{attribute_of, collect, held_by, sanitized, stamp};
use api::{Attribute, Block, Cidr, Ordinal};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// One address to give back, and what it must still be to be given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The address.
    pub address: IpAddr,
    /// Refuse unless this handle holds it. `None`: whoever holds it.
    pub handle: Option<String>,
    /// Refuse unless the allocation has this stamp. `None`: any.
    pub sequence: Option<u64>,
}

/// What a release did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Addresses that were free or cooling already.
    pub not_allocated: Vec<IpAddr>,
    /// How many addresses each handle lost.
    pub by_handle: BTreeMap<String, u32>,
    /// The ordinals given back.
    pub ordinals: BTreeSet<Ordinal>,
}

/// Why a release changed nothing in a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The address is none of this block.
    #[error("address {address} is not in block {block}")]
    OutOfBlock {
        /// The block.
        block: Cidr,
        /// The address.
        address: IpAddr,
    },
    /// The address was released and assigned anew since the caller saw it.
    #[error(
        "address {address} is not the allocation that was seen: sequence number {found}, not {wanted}; look again"
    )]
    OtherSequence {
        /// The address.
        address: IpAddr,
        /// Stamp asked for.
        wanted: u64,
        /// Stamp of the allocation.
        found: u64,
    },
    /// Another handle holds the address.
    #[error("address {address} is held by {}, not by {wanted}; look again", .found.as_deref().unwrap_or("no handle"))]
    OtherHandle {
        /// The address.
        address: IpAddr,
        /// Handle asked for.
        wanted: String,
        /// Handle that holds it.
        found: Option<String>,
    },
}

/// Gives addresses back: each enters its cooldown, or is free at once if there is none.
///
/// The same address named twice counts once, the last naming wins. All or nothing: any refusal leaves the block as it
/// was (invariant 6). If nothing was allocated the block is not changed either.
///
/// # Errors
/// See [`ReleaseError`].
pub fn release(
    block: &mut Block,
    releases: &[Release],
    cooldown_seconds: u32,
    now: Timestamp,
) -> Result<Released, ReleaseError> {
    let distinct: BTreeMap<IpAddr, &Release> =
        releases.iter().map(|release| (release.address, release)).collect();
    let mut released = Released::default();
    for (address, release) in distinct {
        let ordinal =
            block.cidr.ordinal(address).ok_or(ReleaseError::OutOfBlock { block: block.cidr, address })?;
        let found = stamp(block, ordinal);
        if let Some(wanted) = release.sequence.filter(|wanted| *wanted != found) {
            return Err(ReleaseError::OtherSequence { address, wanted, found });
        }
        let Some(attribute) =
            attribute_of(block, address).filter(|attribute| attribute.released_at.is_none())
        else {
            released.not_allocated.push(address);
            continue;
        };
        let holder = attribute.handle_id.as_deref().map(sanitized);
        if let Some(wanted) = release.handle.as_deref().map(sanitized)
            && holder != Some(wanted)
        {
            let found = holder.map(str::to_owned);
            return Err(ReleaseError::OtherHandle { address, wanted: wanted.to_owned(), found });
        }
        if let Some(handle) = holder.filter(|handle| !handle.is_empty()) {
            *released.by_handle.entry(handle.to_owned()).or_insert(0) += 1;
        }
        released.ordinals.insert(ordinal);
    }
    let stamped = block.sequence_number;
    for ordinal in &released.ordinals {
        Arc::make_mut(&mut block.sequence_for_allocation).insert(ordinal.0, stamped);
    }
    cool(block, &released.ordinals, cooldown_seconds, now);
    Ok(released)
}

/// Gives back every address that `handle` holds here (with `sequence`: only allocations with that stamp).
///
/// Returns the ordinals given back; the block is unchanged if there are none. Stamps stay.
pub fn release_by_handle(
    block: &mut Block,
    handle: &str,
    sequence: Option<u64>,
    cooldown_seconds: u32,
    now: Timestamp,
) -> BTreeSet<Ordinal> {
    let held: BTreeSet<Ordinal> = held_by(block, handle)
        .filter(|ordinal| sequence.is_none_or(|wanted| stamp(block, *ordinal) == wanted))
        .collect();
    cool(block, &held, cooldown_seconds, now);
    held
}

/// Points ordinals at one attribute that says when they were released, and collects.
fn cool(block: &mut Block, ordinals: &BTreeSet<Ordinal>, cooldown_seconds: u32, now: Timestamp) {
    if ordinals.is_empty() {
        return;
    }
    Arc::make_mut(&mut block.attributes)
        .push(Arc::new(Attribute { released_at: Some(now), ..Attribute::default() }));
    let index = block.attributes.len() - 1;
    let allocations = Arc::make_mut(&mut block.allocations);
    for ordinal in ordinals {
        if let Some(slot) = usize::try_from(ordinal.0).ok().and_then(|at| allocations.get_mut(at)) {
            *slot = Some(index);
        }
    }
    collect(block, cooldown_seconds, now);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, fresh, take_as};
    use super::super::{advance, count_of, free_count, is_empty};
    use super::*;
    use crate::reservations::ReservationSet;

    fn back(address: &str, handle: Option<&str>, sequence: Option<u64>) -> Release {
        Release { address: address.parse().unwrap(), handle: handle.map(str::to_owned), sequence }
    }

    #[test]
    fn reuse_visits_every_address_before_the_first_again() {
        let mut block = fresh("10.0.0.0/29");
        for turn in 0..16 {
            let address = take_as(&mut block, 1, "h").remove(0);
            assert_eq!(address, format!("10.0.0.{}/29", turn % 8));
            release_by_handle(&mut block, "h", None, 0, at(turn));
            advance(&mut block);
        }
    }

    #[test]
    fn a_released_address_waits_for_its_cooldown() {
        let mut block = fresh("10.0.0.0/31");
        take_as(&mut block, 2, "h");
        assert_eq!(
            release(&mut block, &[back("10.0.0.0", None, None)], 30, at(10)).unwrap().by_handle["h"],
            1
        );
        assert_eq!(free_count(&block, &ReservationSet::default()), 0);
        assert!(!is_empty(&block));
        assert!(!collect(&mut block, 30, at(40)));
        assert!(collect(&mut block, 30, at(41)));
        assert_eq!(block.unallocated, [0]);
        assert_eq!(block.sequence_for_allocation.len(), 1);
    }

    #[test]
    fn a_release_that_names_another_incarnation_changes_nothing() {
        let mut block = fresh("10.0.0.0/30");
        take_as(&mut block, 2, "h");
        let first = stamp(&block, Ordinal(0));
        let before = block.clone();
        for wrong in [
            [back("10.0.0.1", None, None), back("10.0.0.0", Some("h"), Some(first + 1))],
            [back("10.0.0.1", None, None), back("10.0.0.0", Some("other"), Some(first))],
            [back("10.0.0.1", None, None), back("10.0.0.9", None, None)],
        ] {
            assert!(release(&mut block, &wrong, 0, at(1)).is_err());
            assert_eq!(block, before);
        }
    }

    #[test]
    fn releasing_what_is_free_changes_nothing_and_says_so() {
        let mut block = fresh("10.0.0.0/30");
        let before = block.clone();
        let released = release(&mut block, &[back("10.0.0.0", Some("h"), None)], 0, at(1)).unwrap();
        assert_eq!(released.not_allocated.len(), 1);
        assert!(released.ordinals.is_empty());
        assert_eq!(block, before);
    }

    #[test]
    fn the_stamp_grows_by_two_over_release_and_new_assignment() {
        let mut block = fresh("10.0.0.0/32");
        take_as(&mut block, 1, "h");
        let first = stamp(&block, Ordinal(0));
        release(&mut block, &[back("10.0.0.0", None, Some(first))], 0, at(1)).unwrap();
        advance(&mut block);
        take_as(&mut block, 1, "h");
        assert_eq!(stamp(&block, Ordinal(0)), first + 2);
        assert!(release(&mut block, &[back("10.0.0.0", Some("h"), Some(first))], 0, at(2)).is_err());
    }

    #[test]
    fn handles_are_compared_up_to_the_carriage_return() {
        let mut block = fresh("10.0.0.0/30");
        take_as(&mut block, 1, "h\rjunk");
        assert_eq!(count_of(&block, "h"), 1);
        assert_eq!(release_by_handle(&mut block, "h", None, 0, at(1)).len(), 1);
        assert!(is_empty(&block));
        assert!(block.attributes.is_empty());
    }
}
