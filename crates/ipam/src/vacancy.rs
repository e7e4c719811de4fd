//! Which block an owner may claim next, given all blocks that exist (algorithm §8).

use crate::affinity::{self, Known, ReleaseAffinityError, ReleaseTerms};
use crate::block;
use crate::candidate;
use crate::clock::Clock;
use crate::failure::StoreError;
use crate::host_reserved::{self, HostReserved};
use crate::mistake::{Mistake, made};
use crate::reservations::ReservationSet;
use crate::seen::{self, AllBlocks, Seen};
use api::{Block, Cidr, Owner, Pool};
use datastore::{CommitError, Datastore, Record, Write};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

/// How long an empty block stays with its owner before another node may have it.
pub const MIN_RECLAIM_AGE: SignedDuration = SignedDuration::from_secs(60);

/// For whom, and by what rules.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// Who wants a block.
    pub owner: &'a Owner,
    /// Addresses never handed out automatically.
    pub reserved: &'a ReservationSet,
    /// Ordinals that the owner keeps for itself in a block that it makes.
    pub host_reserved: Option<&'a HostReserved>,
    /// Seconds that a released address is not used.
    pub cooldown_seconds: u32,
    /// The present instant.
    pub now: Timestamp,
}

/// A block to claim.
#[derive(Clone, Debug)]
pub struct Vacant<'p> {
    /// The pool it is cut from.
    pub pool: &'p Seen<Pool>,
    /// The block.
    pub cidr: Cidr,
    /// What is known about its affinity.
    pub known: Known,
}

/// What a search found.
#[derive(Clone, Debug, Default)]
pub struct Vacancies<'p> {
    /// The first block that can be claimed at once.
    pub first: Option<Vacant<'p>>,
    /// Where there is none: blocks that their owners do not use, collected, in the order of the candidates.
    pub reclaimable: Vec<(&'p Seen<Pool>, Seen<Block>)>,
}

impl Search<'_> {
    /// Searches `pools` in order for a block that does not exist, or is the owner's and has room; notes on the way the empty
    /// ones of others that were claimed at least [`MIN_RECLAIM_AGE`] ago.
    ///
    /// A block that overlaps an existing one of another size, or one that cannot be understood, is never chosen, whatever the
    /// pool says (invariant 4).
    pub fn among<'p>(
        &self,
        pools: impl IntoIterator<Item = &'p Seen<Pool>>,
        all: &AllBlocks,
    ) -> Vacancies<'p> {
        let index: BTreeMap<Cidr, &Seen<Block>> =
            all.blocks.iter().map(|seen| (seen.value.cidr, seen)).collect();
        let mut reclaimable = Vec::new();
        for pool in pools {
            let size = pool.value.block_size;
            let of_other_size = index
                .iter()
                .filter(|(cidr, _)| cidr.prefix() != size)
                .filter(|(_, seen)| !made(Mistake::OverlapUnchecked) || seen.value.affinity.is_some())
                .map(|(cidr, _)| *cidr);
            let in_the_way = ReservationSet::of_cidrs(
                of_other_size
                    .chain(all.unreadable.iter().copied())
                    .filter(|cidr| cidr.overlaps(pool.value.cidr)),
            );
            let passed = |cidr: Cidr| {
                let across = || in_the_way.touches(cidr).then(|| cidr.last());
                self.reserved.last_around(cidr).or_else(|| in_the_way.last_around(cidr)).or_else(across)
            };
            for cidr in candidate::candidates_past(&pool.value, &self.owner.name, self.now, passed) {
                let Some(seen) = index.get(&cidr) else {
                    if !self.leaves_something(cidr) {
                        continue;
                    }
                    let first = Some(Vacant { pool, cidr, known: Known::Absent });
                    return Vacancies { first, reclaimable: Vec::new() };
                };
                let mut seen = (*seen).clone();
                block::collect(&mut seen.value, self.cooldown_seconds, self.now);
                if block::free_count(&seen.value, self.reserved) == 0 {
                    continue;
                }
                if seen.value.affinity.as_ref() == Some(self.owner) {
                    let first = Some(Vacant { pool, cidr, known: Known::Unread });
                    return Vacancies { first, reclaimable: Vec::new() };
                }
                if block::is_empty(&seen.value) && self.is_old(&seen.value) {
                    reclaimable.push((pool, seen));
                }
            }
        }
        Vacancies { first: None, reclaimable }
    }

    /// Whether a block made of this would have an address to give: what the host leaves of it may be reserved.
    fn leaves_something(&self, cidr: Cidr) -> bool {
        let Some(kept) = self.host_reserved.filter(|_| self.reserved.touches(cidr)) else { return true };
        let mut made = block::new_block(cidr, self.owner, self.now);
        host_reserved::keep(&mut made, kept);
        block::free_count(&made, self.reserved) > 0
    }

    fn is_old(&self, block: &Block) -> bool {
        block.claim_time.is_none_or(|claimed| self.now.duration_since(claimed) >= MIN_RECLAIM_AGE)
    }
}

/// Whether a block would lie across others that are listed, or in the place of what cannot be understood (invariant 4).
pub(crate) fn is_crossed(cidr: Cidr, all: &AllBlocks) -> bool {
    let others = all.blocks.iter().map(|seen| seen.value.cidr).filter(|other| *other != cidr);
    others.chain(all.unreadable.iter().copied()).any(|other| other.overlaps(cidr))
}

/// Whether addresses of another owner's block may be used: one of another size than its pool has now must have stood for
/// [`MIN_RECLAIM_AGE`].
///
/// On a store without transactions a claim that began before its pool was made anew with another block size puts its block
/// there for a moment, until it has looked at the pool once more and takes it back. Another owner's block may be made across it
/// just then. Whoever took an address from it would keep it from being taken back.
pub(crate) fn is_lendable(block: &Block, block_size: u8, now: Timestamp) -> bool {
    let is_old = |claimed| now.duration_since(claimed) >= MIN_RECLAIM_AGE;
    block.cidr.prefix() == block_size || block.affinity.is_none() || block.claim_time.is_none_or(is_old)
}

/// Takes an empty block as listed from its owner, or removes it where it has none (quirk Q22). False: it is in use after all.
///
/// Datastore calls: those of [`affinity::release_affinity`]; 1 commit where it has no owner; 1 read more if an answer was lost.
///
/// # Errors
/// [`StoreError`].
///
/// # Cancellation
/// As [`affinity::release_affinity`].
pub async fn reclaim<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    block: &Seen<Block>,
) -> Result<bool, StoreError> {
    let cidr = block.value.cidr;
    let outcome = if let Some(owner) = &block.value.affinity {
        let terms = ReleaseTerms {
            must_be_empty: true,
            required_sequence: Some(block.value.sequence_number),
            owner_gone: false,
        };
        match affinity::release_affinity(store, clock, owner, cidr, terms).await {
            Ok(()) => Ok(true),
            Err(ReleaseAffinityError::Store(error)) => Err(error),
            Err(_) => Ok(false),
        }
    } else {
        let write = Write::Delete(Record::Block(block.value.clone()), block.version.clone());
        match store.commit(&[], &[write]).await {
            Ok(_) => Ok(true),
            Err(CommitError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    };
    match outcome {
        Err(StoreError::Commit(CommitError::Unknown { .. })) => Ok(seen::block(store, cidr).await?.is_none()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datastore::{Revision, Version};

    fn seen<T>(value: T) -> Seen<T> {
        let version = Version { revision: Revision(1), uid: None };
        Seen { value, version, created: None }
    }

    fn pool(cidr: &str, block_size: u8) -> Seen<Pool> {
        let mut pool = Pool::with_defaults("p", cidr.parse().unwrap());
        pool.block_size = block_size;
        seen(pool)
    }

    fn block_of(cidr: &str, owner: &str, claimed: i64) -> Seen<Block> {
        let claimed = Timestamp::from_second(claimed).unwrap();
        seen(block::new_block(cidr.parse().unwrap(), &Owner::host(owner), claimed))
    }

    fn found(pool: &Seen<Pool>, blocks: &[Seen<Block>]) -> (Option<String>, Vec<String>) {
        let reserved = ReservationSet::default();
        let owner = Owner::host("me");
        let now = Timestamp::from_second(1000).unwrap();
        let search =
            Search { owner: &owner, reserved: &reserved, host_reserved: None, cooldown_seconds: 0, now };
        let all = AllBlocks { blocks: blocks.to_vec(), unreadable: Vec::new() };
        let found = search.among([pool], &all);
        (
            found.first.map(|vacant| vacant.cidr.to_string()),
            found.reclaimable.iter().map(|(_, seen)| seen.value.cidr.to_string()).collect(),
        )
    }

    #[test]
    fn a_block_of_an_earlier_size_is_lent_only_when_it_has_stood_for_a_minute() {
        let block = block_of("10.0.0.0/30", "other", 1_000).value;
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(is_lendable(&block, 30, at(1_000)));
        assert!(!is_lendable(&block, 29, at(1_059)));
        assert!(is_lendable(&block, 29, at(1_060)));
        assert!(is_lendable(&Block { affinity: None, claim_time: None, ..block }, 29, at(1_000)));
    }

    #[test]
    fn a_block_that_does_not_exist_goes_before_the_empty_one_of_another() {
        let pool = pool("10.0.0.0/29", 30);
        let others = [block_of("10.0.0.0/30", "other", 0)];
        assert_eq!(found(&pool, &others), (Some("10.0.0.4/30".to_owned()), Vec::new()));
    }

    #[test]
    fn empty_blocks_of_others_are_left_alone_for_a_minute() {
        let pool = pool("10.0.0.0/29", 30);
        let blocks = [block_of("10.0.0.0/30", "other", 941), block_of("10.0.0.4/30", "other", 940)];
        assert_eq!(found(&pool, &blocks), (None, vec!["10.0.0.4/30".to_owned()]));
    }

    #[test]
    fn nothing_is_claimed_across_a_block_of_another_size() {
        let larger = pool("10.0.0.0/28", 30);
        assert_eq!(found(&larger, &[block_of("10.0.0.0/28", "other", 0)]), (None, Vec::new()));
        let smaller = [block_of("10.0.0.0/31", "me", 0), block_of("10.0.0.12/32", "other", 0)];
        let (first, _) = found(&pool("10.0.0.0/28", 29), &smaller);
        assert_eq!(first, None);
    }

    #[test]
    fn nothing_is_claimed_in_the_place_of_a_block_that_cannot_be_understood() {
        let reserved = ReservationSet::default();
        let owner = Owner::host("me");
        let search = Search {
            owner: &owner,
            reserved: &reserved,
            host_reserved: None,
            cooldown_seconds: 0,
            now: Timestamp::UNIX_EPOCH,
        };
        for unreadable in ["10.0.0.0/28", "10.0.0.0/29", "10.0.0.3/32"] {
            let pool = pool("10.0.0.0/28", 30);
            let all = AllBlocks { blocks: Vec::new(), unreadable: vec![unreadable.parse().unwrap()] };
            let first = search.among([&pool], &all).first.map(|vacant| vacant.cidr);
            assert_eq!(first.is_none(), unreadable == "10.0.0.0/28", "{unreadable}");
            assert!(first.is_none_or(|first| !first.overlaps(all.unreadable[0])), "{unreadable}");
        }
    }

    #[test]
    fn an_own_block_with_room_is_used_though_its_affinity_is_not_known() {
        let pool = pool("10.0.0.0/30", 30);
        assert_eq!(found(&pool, &[block_of("10.0.0.0/30", "me", 999)]).0, Some("10.0.0.0/30".to_owned()));
    }

    #[test]
    fn a_block_of_which_only_reserved_addresses_would_be_left_is_not_made() {
        let pool = pool("10.0.0.0/28", 29);
        // What a Windows node would leave of the first block, and one address of the second.
        let reserved = ["10.0.0.3/32", "10.0.0.4/31", "10.0.0.6/32", "10.0.0.8/32"];
        let reserved = ReservationSet::of_cidrs(reserved.map(|text| text.parse().unwrap()));
        let (owner, windows) = (Owner::host("w"), HostReserved::windows());
        let now = Timestamp::from_second(1000).unwrap();
        let host_reserved = Some(&windows);
        let search = Search { owner: &owner, reserved: &reserved, host_reserved, cooldown_seconds: 0, now };
        let first = search.among([&pool], &AllBlocks::default()).first.unwrap();
        assert_eq!(first.cidr.to_string(), "10.0.0.8/29");
    }
}
