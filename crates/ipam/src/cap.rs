//! How many addresses one handle may hold per IP version, and what an over-cap request is answered (algorithm §4.1, §10.2).
//!
//! The cap is what makes a virtual machine keep its one address: its pods ask by one handle with a cap of 1.

use crate::block;
use crate::clock::Clock;
use crate::explain::Explain;
use crate::failure::StoreError;
use crate::plan::Want;
use crate::query::addresses_in;
use crate::renewal;
use crate::seen::{self, HandleInHand, Seen};
use crate::surplus::plan_lowering;
use api::{Block, Cidr, Handle, IpVersion};
use datastore::{CommitError, Datastore};
use std::net::IpAddr;

/// Times that a handle is looked at whose count is ahead of its blocks before that is taken for what a crash left: somebody may be
/// between the write of the handle and that of the block.
pub(crate) const LOOKS: usize = 3;

/// Times that it is looked at in all, by whoever meets others at each of them.
pub(crate) const MOST_LOOKS: usize = 8;

/// A handle that would hold more than it may.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "handle {handle} holds {held} {version} addresses and may hold {cap}: release one of them, or ask by another handle"
)]
pub struct CapReached {
    /// The handle.
    pub handle: String,
    /// Family.
    pub version: IpVersion,
    /// How many it holds.
    pub held: u64,
    /// How many it may hold.
    pub cap: u32,
}

/// How many addresses of the family a handle's record counts, in blocks other than `except`.
pub fn counted(handle: &Handle, version: IpVersion, except: Option<Cidr>) -> u64 {
    handle
        .blocks
        .iter()
        .filter(|(cidr, _)| cidr.version() == version && Some(**cidr) != except)
        .map(|(_, count)| u64::from(*count))
        .sum()
}

/// How many more addresses `id` may take from this block as read; `None`: as many as it likes.
///
/// What it holds in this block is counted in the block, which is read after the handle: a count that a crash left too high
/// (quirk Q3) does not lock the handle out of its own block.
pub fn room(id: &str, handle: Option<&Handle>, block: &Block, cap: u32) -> Option<u64> {
    if cap == 0 {
        return None;
    }
    let elsewhere = handle.map_or(0, |handle| counted(handle, block.cidr.version(), Some(block.cidr)));
    let held = elsewhere.saturating_add(u64::from(block::count_of(block, id)));
    Some(u64::from(cap).saturating_sub(held))
}

/// Refuses `count` more addresses of this block if `id` would then hold more than `cap`; a cap of 0 is none.
///
/// # Errors
/// [`CapReached`]: answer with [`instead`], or wait for whoever is taking at the same time.
pub fn check(
    id: &str,
    handle: Option<&Handle>,
    block: &Block,
    count: usize,
    cap: u32,
) -> Result<(), CapReached> {
    match room(id, handle, block, cap) {
        Some(room) if u64::try_from(count).unwrap_or(u64::MAX) > room => Err(CapReached {
            handle: block::sanitized(id).to_owned(),
            version: block.cidr.version(),
            held: u64::from(cap) - room,
            cap,
        }),
        _ => Ok(()),
    }
}

/// The answer to a request whose handle is at its cap: what it holds already, as single addresses.
///
/// `None`: it holds fewer than wanted. Somebody else is taking with the same handle just now, or a crash left its count too
/// high; read again.
pub fn instead(held: &[IpAddr], version: IpVersion, wanted: usize) -> Option<Vec<Cidr>> {
    let of_version: Vec<Cidr> = held
        .iter()
        .filter(|address| IpVersion::of(**address) == version)
        .take(wanted)
        .map(|address| Cidr::from(*address))
        .collect();
    (of_version.len() == wanted).then_some(of_version)
}

/// How many addresses of a family a handle may hold; a cap of 0 is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) cap: u32,
    pub(crate) version: IpVersion,
}

/// What a request whose handle is at its cap comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AtCap {
    /// There is room after all.
    Room,
    /// These are the answer: what it holds already.
    Holds(Vec<Cidr>),
    /// It holds so many, fewer than are wanted, and may not hold more.
    Short(usize),
}

impl Limit {
    /// Whether what the handle's record counts leaves no room for `missing` more.
    pub(crate) fn is_over(self, hand: &HandleInHand, missing: usize) -> bool {
        let cap = u64::from(self.cap);
        let missing = u64::try_from(missing).unwrap_or(u64::MAX);
        let counted = hand.record().map_or(0, |handle| counted(handle, self.version, None));
        cap > 0 && counted.saturating_add(missing) > cap
    }

    /// Looks what the handle holds, to answer with it a request for `wanted` addresses of which `missing` are missing. What is
    /// answered is renewed (see [`renewal`]).
    ///
    /// Who holds fewer than are wanted looks again while the handle counts more than its blocks hold: somebody else may be
    /// taking for it. At the third look that is taken for what a crash left, and lowered (see [`lower`]).
    ///
    /// Datastore calls: 1 read per block of the handle, 24 at a time, and 1 commit per block of the answer. Where the handle
    /// counts more than its blocks hold: three times the reads, and 1 commit; each further look as much and 1 read of the
    /// handle, at most eight looks in all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn answer<D: Datastore>(
        self,
        store: &D,
        clock: &dyn Clock,
        hand: &mut HandleInHand,
        explain: &mut Explain,
        (want, missing): (&Want, usize),
    ) -> Result<AtCap, StoreError> {
        let (version, wanted) = (self.version, want.count);
        let mut held = Vec::new();
        for look in 1..=MOST_LOOKS {
            hand.look(store).await?;
            let Some(handle) = hand.record() else { return Ok(AtCap::Room) };
            let cidrs: Vec<Cidr> =
                handle.blocks.keys().copied().filter(|cidr| cidr.version() == version).collect();
            let counted = counted(handle, version, None);
            let id = handle.id.clone();
            let blocks = seen::blocks_of(store, &cidrs).await?;
            held = addresses_in(&blocks, &id);
            if let Some(answer) = instead(&held, version, wanted) {
                let addresses: Vec<IpAddr> = answer.iter().map(|held| held.network()).collect();
                let whom = &want.attributes;
                if renewal::renew_all(store, clock, blocks, &addresses, whom, hand, explain).await? {
                    return Ok(AtCap::Holds(answer));
                }
                continue;
            }
            if u64::try_from(held.len()).is_ok_and(|held| held >= counted) {
                break;
            }
            if look < LOOKS {
                hand.forget();
                hand.look(store).await?;
            } else if lower(store, hand, blocks).await? == Lowered::Nothing {
                break;
            }
            if !self.is_over(hand, missing) {
                return Ok(AtCap::Room);
            }
        }
        Ok(AtCap::Short(held.len()))
    }
}

/// What became of a count that was ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lowered {
    /// It was lowered, or somebody wrote one of the records meanwhile: look again.
    Perhaps,
    /// Nothing can be done about it here: the blocks that it counts are not there.
    Nothing,
}

/// Takes off the handle in hand what it counts too much in these blocks, which were read after it.
///
/// The blocks are written first, which keeps out whoever is still between the handle and the block (see [`plan_lowering`]). A
/// block that is not there cannot be written: it may be about to be made, and its entry is the collector's.
///
/// Datastore calls: 1 commit, and 1 read of the handle where that is refused.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn lower<D: Datastore>(
    store: &D,
    hand: &mut HandleInHand,
    blocks: Vec<Option<Seen<Block>>>,
) -> Result<Lowered, StoreError> {
    let writes = hand.seen().and_then(|handle| plan_lowering(handle, blocks.into_iter().flatten(), &[]));
    let Some(writes) = writes else { return Ok(Lowered::Nothing) };
    match store.commit(&[], &writes).await {
        Ok(versions) => hand.wrote(&writes, &versions),
        Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {
            hand.forget();
            hand.look(store).await?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(Lowered::Perhaps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Take, new_block, take};
    use api::Owner;
    use std::collections::{BTreeMap, BTreeSet};

    fn block(cidr: &str, held: usize) -> Block {
        let mut block = new_block(cidr.parse().unwrap(), &Owner::host("n"), jiff::Timestamp::UNIX_EPOCH);
        let request = Take {
            count: held,
            handle: Some("vm"),
            attributes: &BTreeMap::new(),
            reserved: &crate::ReservationSet::default(),
            avoid: &BTreeSet::new(),
            only_owner: None,
        };
        take(&mut block, &request).unwrap();
        block
    }

    fn handle(blocks: &[(&str, u32)]) -> Handle {
        let blocks = blocks.iter().map(|(cidr, count)| (cidr.parse().unwrap(), *count)).collect();
        Handle { id: "vm".to_owned(), blocks, deleted: false }
    }

    #[test]
    fn each_family_counts_by_itself() {
        let handle = handle(&[("10.0.0.0/30", 2), ("10.0.1.0/30", 1), ("fd00::/126", 5)]);
        assert_eq!(counted(&handle, IpVersion::V4, None), 3);
        assert_eq!(counted(&handle, IpVersion::V6, None), 5);
        assert_eq!(counted(&handle, IpVersion::V4, Some("10.0.0.0/30".parse().unwrap())), 1);
        assert_eq!(room("vm", Some(&handle), &block("10.0.2.0/30", 0), 4), Some(1));
        assert_eq!(room("vm", Some(&handle), &block("fd00::4/126", 0), 4), Some(0));
    }

    #[test]
    fn what_the_block_holds_counts_and_not_what_the_handle_says_of_it() {
        let handle = handle(&[("10.0.0.0/30", 7)]);
        assert_eq!(check("vm", Some(&handle), &block("10.0.0.0/30", 0), 1, 1), Ok(()));
        let refused = check("vm\rold", Some(&handle), &block("10.0.0.0/30", 1), 1, 1).unwrap_err();
        assert_eq!((refused.held, refused.handle.as_str()), (1, "vm"));
        assert_eq!(check("vm", None, &block("10.0.0.0/30", 1), 3, 0), Ok(()));
        assert!(check("vm", None, &block("10.0.0.0/30", 1), usize::MAX, 5).is_err());
        assert_eq!(check("vm", None, &block("10.0.0.0/30", 1), 4, 5), Ok(()));
    }

    #[test]
    fn a_count_beyond_every_cap_leaves_no_room_and_does_not_overflow() {
        let handle = handle(&[("10.0.0.0/30", u32::MAX), ("10.0.1.0/30", u32::MAX)]);
        assert_eq!(room("vm", Some(&handle), &block("10.0.2.0/30", 1), 1), Some(0));
    }

    #[test]
    fn an_over_cap_request_is_answered_with_what_the_handle_holds_or_not_at_all() {
        let held: Vec<IpAddr> = ["10.0.0.1", "fd00::1", "10.0.0.2"].map(|text| text.parse().unwrap()).into();
        let texts = |found: Option<Vec<Cidr>>| {
            found.map(|found| found.iter().map(Cidr::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(texts(instead(&held, IpVersion::V4, 1)).as_deref(), Some("10.0.0.1/32"));
        assert_eq!(texts(instead(&held, IpVersion::V4, 2)).as_deref(), Some("10.0.0.1/32 10.0.0.2/32"));
        assert_eq!(texts(instead(&held, IpVersion::V6, 1)).as_deref(), Some("fd00::1/128"));
        assert_eq!(instead(&held, IpVersion::V6, 2), None);
    }
}
