//! Claiming blocks and giving them up (algorithm §5, architecture D5 and D9).
//!
//! ```text
//!  (none) --create--> pending --block exists and is ours--> confirmed --release--> pendingDeletion --> (none)
//!            ^           |  \--block is another's: delete                              |
//!            +-----------+<------------- the same owner claims again -----------------+
//! ```
//!
//! The block's own owner is the truth; the affinity object is an index and a lock. `confirmed` is written only after
//! the block exists with our name, `pendingDeletion` before the block is touched. Each step is conditional on what
//! was read, so that a claim and a release of the same block make each other fail instead of passing each other.

use crate::block;
use crate::claim::drop_affinity;
pub use crate::claim::{Claim, ClaimError, Claimed, Content, Known, claim, claim_for, holds};
use crate::clock::Clock;
use crate::failure::StoreError;
use crate::mistake::{Mistake, made};
use crate::plan;
use crate::seen;
use api::{Affinity, AffinityState, Cidr, Owner};
use datastore::{CommitError, Datastore, Record, Write};

/// On what terms a block is given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReleaseTerms {
    /// Only if nothing is allocated in it.
    pub must_be_empty: bool,
    /// Only if the block still has this sequence number.
    pub required_sequence: Option<u64>,
    /// The owner is gone for good: an affinity without block is removed whatever its state (quirk Q4).
    pub owner_gone: bool,
}

/// Why a block was not given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseAffinityError {
    /// The owner has no affinity for it, or there is no block.
    #[error("{owner} has no block {block}")]
    Missing {
        /// The owner.
        owner: Owner,
        /// The block.
        block: Cidr,
    },
    /// The block is another owner's; our affinity is gone.
    #[error("block {block} belongs to {owner} now")]
    Taken {
        /// The block.
        block: Cidr,
        /// Who has it.
        owner: Owner,
    },
    /// Addresses of it are in use, and it was to be empty.
    #[error("block {block} is not empty: release its addresses first")]
    NotEmpty {
        /// The block.
        block: Cidr,
    },
    /// It changed since it was read: read again and decide again.
    #[error("block {block} was updated since it was read")]
    Changed {
        /// The block.
        block: Cidr,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Gives a block up: an empty one is deleted, one with addresses in use loses its owner.
///
/// Datastore calls, as trips where commits are atomic: 4, of 2 reads (affinity, configuration), 1 read of the block, and 2
/// commits.
///
/// # Errors
/// See [`ReleaseAffinityError`]; [`ReleaseAffinityError::Changed`] may be repeated.
///
/// # Cancellation
/// Leaves at most an affinity in `pendingDeletion`, which its owner's next claim revives and a repeated release finishes.
pub async fn release_affinity<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    owner: &Owner,
    cidr: Cidr,
    terms: ReleaseTerms,
) -> Result<(), ReleaseAffinityError> {
    let missing = || ReleaseAffinityError::Missing { owner: owner.clone(), block: cidr };
    // The block is looked at after the affinity: a claim made in between changes the affinity.
    let (found, config) = futures::join!(seen::affinity(store, owner, cidr), seen::config(store));
    let found = found.map_err(StoreError::from)?;
    let affinity = found.filter(|found| found.value.owner == *owner).ok_or_else(missing)?;
    let config = config.map_err(StoreError::from)?;
    let Some(mut seen) = seen::block(store, cidr).await.map_err(StoreError::from)? else {
        if terms.owner_gone || affinity.value.state == AffinityState::PendingDeletion {
            drop_affinity(store, owner, Some(&affinity)).await;
        }
        return Err(missing());
    };
    let block = &mut seen.value;
    if terms.required_sequence.is_some_and(|sequence| sequence != block.sequence_number) {
        return Err(ReleaseAffinityError::Changed { block: cidr });
    }
    block::collect(block, config.ip_cooldown_seconds, clock.now());
    let unchecked = made(Mistake::OwnerUnchecked);
    if let Some(other) = block.affinity.as_ref().filter(|other| *other != owner && !unchecked) {
        drop_affinity(store, owner, Some(&affinity)).await;
        return Err(ReleaseAffinityError::Taken { block: cidr, owner: other.clone() });
    }
    if terms.must_be_empty && !block::is_empty(block) {
        return Err(ReleaseAffinityError::NotEmpty { block: cidr });
    }
    let leaving = plan::affinity_write(&affinity, AffinityState::PendingDeletion);
    let version = store.commit(&[], std::slice::from_ref(&leaving)).await;
    let version = version.map_err(|error| conflict_or(error, cidr))?.into_iter().next();
    let Some(version) = version else { return Err(ReleaseAffinityError::Changed { block: cidr }) };
    let going = Affinity { state: AffinityState::PendingDeletion, ..affinity.value };
    let writes = [plan::disown(seen), Write::Delete(Record::Affinity(going), version)];
    store.commit(&[], &writes).await.map_err(|error| conflict_or(error, cidr))?;
    Ok(())
}

fn conflict_or(error: CommitError, block: Cidr) -> ReleaseAffinityError {
    match error {
        CommitError::Conflict { .. } => ReleaseAffinityError::Changed { block },
        error => StoreError::from(error).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::administration::{release_affinities_in, release_affinities_of};
    use crate::clock::FixedClock;
    use crate::plan::Want;
    use crate::seen::Seen;
    use api::Pool;
    use datastore::memory::Memory;
    use futures::executor::block_on;
    use jiff::Timestamp;
    use std::collections::BTreeMap;

    const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);

    fn cidr() -> Cidr {
        "10.0.0.64/26".parse().unwrap()
    }

    async fn store_with_pool(naming: api::AffinityNaming) -> (Memory, Seen<Pool>) {
        let store = Memory::new().with_naming(naming).with_clock(|| Timestamp::UNIX_EPOCH);
        let pool = Pool::with_defaults("p", "10.0.0.0/16".parse().unwrap());
        store.commit(&[], &[Write::Create(Record::Pool(pool))]).await.unwrap();
        let pool = seen::pools(&store).await.unwrap().remove(0);
        (store, pool)
    }

    async fn claim_for(
        store: &Memory,
        clock: &FixedClock,
        node: &str,
        pool: &Seen<Pool>,
        want: Option<&Want>,
        known: Known,
    ) -> Result<Claimed, ClaimError> {
        let content = want.map_or(Content::Nothing, |want| Content::Any { want, cap: 0 });
        let owner = Owner::host(node);
        claim(store, clock, &Claim { content, ..Claim::of(&owner, cidr(), pool) }, known).await
    }

    async fn state(store: &Memory, node: &str) -> Option<AffinityState> {
        let found = seen::affinity(store, &Owner::host(node), cidr()).await.unwrap()?;
        (found.value.owner == Owner::host(node)).then_some(found.value.state)
    }

    fn want() -> Want {
        Want { count: 1, handle: Some("h".to_owned()), attributes: BTreeMap::new() }
    }

    #[test]
    fn a_fresh_block_is_made_with_its_first_address_and_confirmed() {
        block_on(async {
            let (store, pool) = store_with_pool(api::AffinityNaming::PerBlock).await;
            let want = want();
            let before = store.revision().0;
            let claimed = claim_for(&store, &CLOCK, "n1", &pool, Some(&want), Known::Absent).await.unwrap();
            assert_eq!(claimed.taken[0].address.to_string(), "10.0.0.64");
            assert_eq!(state(&store, "n1").await, Some(AffinityState::Confirmed));
            assert_eq!(seen::block(&store, cidr()).await.unwrap().unwrap(), claimed.block);
            // Affinity, handle, block.
            assert_eq!(store.revision().0 - before, 3);
        });
    }

    #[test]
    fn the_second_node_to_claim_a_block_leaves_nothing_behind() {
        for naming in [api::AffinityNaming::PerNode, api::AffinityNaming::PerBlock] {
            block_on(async {
                let (store, pool) = store_with_pool(naming).await;
                claim_for(&store, &CLOCK, "n1", &pool, None, Known::Absent).await.unwrap();
                let lost = claim_for(&store, &CLOCK, "n2", &pool, None, Known::Absent).await;
                let owner = Some(Owner::host("n1"));
                assert_eq!(lost, Err(ClaimError::Taken { block: cidr(), owner }));
                assert_eq!(state(&store, "n2").await, None);
                assert_eq!(state(&store, "n1").await, Some(AffinityState::Confirmed));
            });
        }
    }

    #[test]
    fn every_half_done_claim_is_finished_by_the_next() {
        for (left, with_block) in [
            (AffinityState::Pending, false),
            (AffinityState::Pending, true),
            (AffinityState::PendingDeletion, false),
            (AffinityState::PendingDeletion, true),
            (AffinityState::Confirmed, false),
        ] {
            block_on(async {
                let (store, pool) = store_with_pool(api::AffinityNaming::PerNode).await;
                let owner = Owner::host("n1");
                let affinity = Affinity { owner: owner.clone(), cidr: cidr(), state: left, deleted: false };
                store.commit(&[], &[Write::Create(Record::Affinity(affinity))]).await.unwrap();
                if with_block {
                    let block = block::new_block(cidr(), &owner, CLOCK.0);
                    store.commit(&[], &[Write::Create(Record::Block(block))]).await.unwrap();
                }
                let claimed = claim_for(&store, &CLOCK, "n1", &pool, None, Known::Unread).await.unwrap();
                assert_eq!(claimed.made, !with_block, "{left:?}");
                assert_eq!(state(&store, "n1").await, Some(AffinityState::Confirmed), "{left:?}");
                assert_eq!(seen::block(&store, cidr()).await.unwrap().unwrap(), claimed.block);
            });
        }
    }

    #[test]
    fn a_block_without_its_affinity_gets_it_again() {
        block_on(async {
            let (store, pool) = store_with_pool(api::AffinityNaming::PerBlock).await;
            let block = block::new_block(cidr(), &Owner::host("n1"), CLOCK.0);
            store.commit(&[], &[Write::Create(Record::Block(block))]).await.unwrap();
            let claimed = claim_for(&store, &CLOCK, "n1", &pool, Some(&want()), Known::Absent).await.unwrap();
            assert!(claimed.taken.is_empty());
            assert_eq!(state(&store, "n1").await, Some(AffinityState::Confirmed));
        });
    }

    #[test]
    fn an_abandoned_claim_is_taken_over_after_a_minute_and_not_before() {
        block_on(async {
            let (store, pool) = store_with_pool(api::AffinityNaming::PerBlock).await;
            let abandoned = Affinity {
                owner: Owner::host("gone"),
                cidr: cidr(),
                state: AffinityState::Pending,
                deleted: false,
            };
            store.commit(&[], &[Write::Create(Record::Affinity(abandoned))]).await.unwrap();
            let early = claim_for(&store, &CLOCK, "n1", &pool, None, Known::Unread).await;
            assert!(matches!(early, Err(ClaimError::Taken { .. })));
            let later = FixedClock(CLOCK.0 + jiff::SignedDuration::from_secs(61));
            assert!(claim_for(&store, &later, "n1", &pool, None, Known::Unread).await.is_ok());
            assert_eq!(state(&store, "n1").await, Some(AffinityState::Confirmed));
        });
    }

    #[test]
    fn no_block_is_made_of_a_pool_that_changed() {
        block_on(async {
            let (store, pool) = store_with_pool(api::AffinityNaming::PerNode).await;
            let mut smaller = pool.value.clone();
            smaller.disabled = true;
            store.commit(&[], &[Write::Update(Record::Pool(smaller), pool.version.clone())]).await.unwrap();
            let outcome = claim_for(&store, &CLOCK, "n1", &pool, None, Known::Absent).await;
            assert_eq!(outcome, Err(ClaimError::PoolChanged { pool: "p".to_owned() }));
            assert_eq!(state(&store, "n1").await, None);
            assert_eq!(seen::block(&store, cidr()).await.unwrap(), None);
        });
    }

    #[test]
    fn a_block_that_nobody_confirmed_is_given_up_where_it_lies_across_others() {
        for with_block in [true, false] {
            for affinity in [Some(AffinityState::Pending), None] {
                block_on(async {
                    let (store, pool) = store_with_pool(api::AffinityNaming::PerNode).await;
                    let owner = Owner::host("n1");
                    if let Some(state) = affinity {
                        let begun = Affinity { owner: owner.clone(), cidr: cidr(), state, deleted: false };
                        store.commit(&[], &[Write::Create(Record::Affinity(begun))]).await.unwrap();
                    }
                    let mut blocks = vec![("10.0.0.64/27", Owner::host("n2"))];
                    blocks.extend(with_block.then(|| ("10.0.0.64/26", owner.clone())));
                    for (cidr, owner) in blocks {
                        let block = block::new_block(cidr.parse().unwrap(), &owner, CLOCK.0);
                        store.commit(&[], &[Write::Create(Record::Block(block))]).await.unwrap();
                    }
                    if affinity.is_none() && !with_block {
                        return;
                    }
                    let claimed = claim_for(&store, &CLOCK, "n1", &pool, Some(&want()), Known::Unread).await;
                    assert_eq!(claimed, Err(ClaimError::Taken { block: cidr(), owner: None }));
                    assert_eq!(state(&store, "n1").await, None);
                    assert_eq!(seen::block(&store, cidr()).await.unwrap(), None);
                });
            }
        }
    }

    #[test]
    fn an_empty_block_is_deleted_and_a_used_one_loses_its_owner() {
        block_on(async {
            let (store, pool) = store_with_pool(api::AffinityNaming::PerNode).await;
            let owner = Owner::host("n1");
            claim_for(&store, &CLOCK, "n1", &pool, None, Known::Absent).await.unwrap();
            release_affinity(&store, &CLOCK, &owner, cidr(), ReleaseTerms::default()).await.unwrap();
            assert_eq!(seen::block(&store, cidr()).await.unwrap(), None);
            assert_eq!(state(&store, "n1").await, None);

            claim_for(&store, &CLOCK, "n1", &pool, Some(&want()), Known::Absent).await.unwrap();
            let strictly = ReleaseTerms { must_be_empty: true, ..ReleaseTerms::default() };
            let refused = release_affinity(&store, &CLOCK, &owner, cidr(), strictly).await;
            assert_eq!(refused, Err(ReleaseAffinityError::NotEmpty { block: cidr() }));
            assert_eq!(state(&store, "n1").await, Some(AffinityState::Confirmed));

            assert_eq!(release_affinities_in(&store, &CLOCK, pool.value.cidr).await, Ok(1));
            let left = seen::block(&store, cidr()).await.unwrap().unwrap().value;
            assert_eq!((left.affinity, left.claim_time), (None, None));
            assert_eq!(block::count_of(&seen::block(&store, cidr()).await.unwrap().unwrap().value, "h"), 1);
        });
    }

    #[test]
    fn an_affinity_of_a_node_that_is_gone_does_not_outlive_its_block() {
        block_on(async {
            let (store, _) = store_with_pool(api::AffinityNaming::PerNode).await;
            let owner = Owner::host("gone");
            let affinity = Affinity {
                owner: owner.clone(),
                cidr: cidr(),
                state: AffinityState::Confirmed,
                deleted: false,
            };
            store.commit(&[], &[Write::Create(Record::Affinity(affinity))]).await.unwrap();
            let terms = ReleaseTerms { owner_gone: true, ..ReleaseTerms::default() };
            assert_eq!(release_affinities_of(&store, &CLOCK, &owner, terms).await, Ok(0));
            assert_eq!(state(&store, "gone").await, None);
        });
    }
}
