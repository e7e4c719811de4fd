//! Claiming and giving up blocks on command, in the five forms that Calico has (algorithm §16).
//!
//! What is done to one block, and why in that order, is told in [`crate::affinity`]. Here: which blocks, how often, and what
//! one block's failure means for the others.

use crate::account::{Account, BlockEnd};
use crate::affinity::{self, Claim, ClaimError, Known, ReleaseAffinityError, ReleaseTerms};
use crate::block;
use crate::clock::Clock;
use crate::failure::{ATTEMPTS, StoreError};
use crate::guarded::commit_guarded;
use crate::plan;
use crate::query;
use crate::seen::{self, Seen};
use crate::vacancy;
use api::{Affinity, Block, Cidr, Owner, Pool};
use datastore::{Check, CommitError, Datastore, Key, Kind, Scope};
use std::collections::{BTreeMap, BTreeSet};

/// Blocks that one [`claim_affinity`] claims at most.
pub const MAX_BLOCKS_PER_CLAIM: u128 = 4096;

/// What became of the blocks of a CIDR that was claimed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimedBlocks {
    /// Blocks that are the owner's now, those included that were before.
    pub claimed: Vec<Cidr>,
    /// Blocks that are another's, or nobody's with addresses in use, or overlap one of another size, or cannot be understood.
    pub failed: Vec<Cidr>,
    /// What came of each, and why.
    pub account: Account,
}

impl ClaimedBlocks {
    fn note(&mut self, block: Cidr, end: BlockEnd) {
        let done = matches!(end, BlockEnd::Claimed | BlockEnd::Had);
        if done { &mut self.claimed } else { &mut self.failed }.push(block);
        self.account.block(block, end);
    }
}

/// Why a CIDR cannot be claimed or given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AffinityRequestError {
    /// No enabled pool has it.
    #[error("{cidr} is not in an enabled pool: enable its pool, or correct the CIDR")]
    NoPool {
        /// The CIDR.
        cidr: Cidr,
    },
    /// It is a part of a block.
    #[error("{cidr} is smaller than the minimum, a block of {block_size} bits: name whole blocks")]
    TooSmall {
        /// The CIDR.
        cidr: Cidr,
        /// Prefix length of a block of its pool.
        block_size: u8,
    },
    /// It has more blocks than are claimed at once, or reaches beyond its pool.
    #[error(
        "{cidr} is more than can be claimed at once, {MAX_BLOCKS_PER_CLAIM} blocks of one pool: claim it in parts"
    )]
    TooLarge {
        /// The CIDR.
        cidr: Cidr,
    },
    /// The store failed; what was claimed before stays claimed.
    #[error("claiming blocks was interrupted after {} of them", done.claimed.len())]
    Interrupted {
        /// What was done before.
        done: Box<ClaimedBlocks>,
        /// What failed.
        #[source]
        source: StoreError,
    },
    /// A block was not given up; those before it were.
    #[error(transparent)]
    NotReleased(#[from] ReleaseAffinityError),
}

impl AffinityRequestError {
    fn before_anything(source: impl Into<StoreError>) -> Self {
        Self::Interrupted { done: Box::default(), source: source.into() }
    }
}

/// The enabled pool that `cidr` begins in, if whole blocks of it are named.
fn pool_for(pools: Vec<Seen<Pool>>, cidr: Cidr) -> Result<Seen<Pool>, AffinityRequestError> {
    let found = query::enabled_pool(pools.iter().map(|seen| &seen.value), cidr.network());
    let name = found.map(|pool| pool.name.clone()).ok_or(AffinityRequestError::NoPool { cidr })?;
    let pool = pools.into_iter().find(|seen| seen.value.name == name);
    let pool = pool.ok_or(AffinityRequestError::NoPool { cidr })?;
    let block_size = pool.value.block_size;
    if cidr.prefix() > block_size {
        return Err(AffinityRequestError::TooSmall { cidr, block_size });
    }
    Ok(pool)
}

/// Makes every block of `cidr` a block of `owner` (ClaimAffinity). Block limit and selectors do not apply.
///
/// Datastore calls: 3 lists (pools, affinities of the owner, blocks), and those of [`affinity::claim`] per block that is not
/// another's.
///
/// # Errors
/// See [`AffinityRequestError`].
///
/// # Cancellation
/// What was claimed stays; one block may be left half claimed, which the owner's next claim of it mends.
pub async fn claim_affinity<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    cidr: Cidr,
    owner: &Owner,
) -> Result<ClaimedBlocks, AffinityRequestError> {
    let early = AffinityRequestError::before_anything;
    let mut pool = pool_for(seen::pools(store).await.map_err(early)?, cidr)?;
    let count = cidr.block_count(pool.value.block_size);
    if count > MAX_BLOCKS_PER_CLAIM || !pool.value.cidr.contains_cidr(cidr) {
        return Err(AffinityRequestError::TooLarge { cidr });
    }
    let held: Vec<Seen<Affinity>> =
        seen::list(store, &Scope::AffinitiesOf(owner.clone())).await.map_err(early)?;
    let mut held: BTreeMap<Cidr, Seen<Affinity>> =
        held.into_iter().map(|seen| (seen.value.cidr, seen)).collect();
    // Listed after the pool was read: blocks of another size appear only with a changed pool, which a claim notices.
    let all = seen::all_blocks(store).await.map_err(early)?;
    let account = Account::of(format!("claim of {cidr} for {owner}"));
    let mut done = ClaimedBlocks { account, ..ClaimedBlocks::default() };
    for number in 0..count {
        let Some(wanted) = cidr.nth_block(pool.value.block_size, number) else { continue };
        let ours = held.remove(&wanted);
        if vacancy::is_crossed(wanted, &all) {
            done.note(wanted, BlockEnd::Across);
            continue;
        }
        let found = all.blocks.iter().map(|seen| &seen.value).find(|block| block.cidr == wanted);
        if let Some(block) = found.filter(|block| ours.is_none() && block.affinity.as_ref() != Some(owner)) {
            done.note(wanted, BlockEnd::Taken { owner: block.affinity.clone() });
            continue;
        }
        let known = ours.map_or(Known::Absent, Known::Found);
        match claim_one(store, clock, owner, wanted, &mut pool, known).await {
            Ok(end) => done.note(wanted, end),
            Err(Some(source)) => {
                done.account.block(wanted, BlockEnd::failed(&source));
                return Err(AffinityRequestError::Interrupted { done: Box::new(done), source });
            }
            Err(None) => return Err(AffinityRequestError::NoPool { cidr }),
        }
    }
    Ok(done)
}

/// Claims one block, reading the pool again when it changed. `Err(None)`: the pool is gone.
async fn claim_one<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    owner: &Owner,
    cidr: Cidr,
    pool: &mut Seen<Pool>,
    known: Known,
) -> Result<BlockEnd, Option<StoreError>> {
    let mut known = known;
    for _ in 0..ATTEMPTS {
        let claim = Claim::of(owner, cidr, pool);
        match affinity::claim(store, clock, &claim, std::mem::replace(&mut known, Known::Unread)).await {
            Ok(claimed) if claimed.made => return Ok(BlockEnd::Claimed),
            Ok(_) => return Ok(BlockEnd::Had),
            Err(ClaimError::Taken { owner, .. }) => return Ok(BlockEnd::Taken { owner }),
            Err(error @ (ClaimError::Refused(_) | ClaimError::Unreadable(_))) => {
                return Ok(BlockEnd::failed(&error));
            }
            Err(ClaimError::Store(error)) => return Err(Some(error)),
            Err(ClaimError::PoolChanged { .. }) => {
                let found: Option<Seen<Pool>> = seen::get(store, &Key::Pool(pool.value.name.clone()))
                    .await
                    .map_err(|error| Some(error.into()))?;
                let same = |found: &Seen<Pool>| {
                    found.value.is_enabled()
                        && found.value.cidr == pool.value.cidr
                        && found.value.block_size == pool.value.block_size
                };
                *pool = found.filter(same).ok_or(None)?;
            }
        }
    }
    Err(Some(StoreError::Contention { what: format!("the claim of block {cidr}") }))
}

/// Gives up the blocks of `cidr` that `owner` has (ReleaseAffinity), in ascending order. Returns how many.
///
/// A block that is another's by now, or gone, counts as done.
///
/// Datastore calls: 2 lists (pools, affinities of the owner), and those of [`affinity::release_affinity`] per block.
///
/// # Errors
/// See [`AffinityRequestError`]: the first failure ends it, earlier blocks stay given up.
///
/// # Cancellation
/// As [`affinity::release_affinity`] for one block.
pub async fn release_affinities_within<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    cidr: Cidr,
    owner: &Owner,
    must_be_empty: bool,
) -> Result<usize, AffinityRequestError> {
    let early = AffinityRequestError::before_anything;
    pool_for(seen::pools(store).await.map_err(early)?, cidr)?;
    let held: Vec<Seen<Affinity>> =
        seen::list(store, &Scope::AffinitiesOf(owner.clone())).await.map_err(early)?;
    let inside: BTreeSet<Cidr> =
        held.into_iter().map(|seen| seen.value.cidr).filter(|held| cidr.contains_cidr(*held)).collect();
    let terms = ReleaseTerms { must_be_empty, ..ReleaseTerms::default() };
    let mut given_up = 0;
    for held in inside {
        if give_up(store, clock, owner, held, terms).await? == GivenUp::Now {
            given_up += 1;
        }
    }
    Ok(given_up)
}

/// Gives up one block as its owner has it (ReleaseBlockAffinity). A block without owner is success, as is one that is gone or
/// another's by now. Says whether it was given up by this call.
///
/// One attempt: a conflict means that the block is not what the caller saw.
///
/// Datastore calls: those of [`affinity::release_affinity`].
///
/// # Errors
/// See [`ReleaseAffinityError`].
///
/// # Cancellation
/// As [`affinity::release_affinity`].
pub async fn release_block_affinity<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    block: &Block,
    must_be_empty: bool,
) -> Result<bool, ReleaseAffinityError> {
    let Some(owner) = &block.affinity else { return Ok(false) };
    let terms = ReleaseTerms { must_be_empty, ..ReleaseTerms::default() };
    match affinity::release_affinity(store, clock, owner, block.cidr, terms).await {
        Ok(()) => Ok(true),
        Err(ReleaseAffinityError::Missing { .. } | ReleaseAffinityError::Taken { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives up all blocks of an owner (ReleaseHostAffinities), IPv4 first. Works after the pools are gone.
///
/// Returns how many were given up. A block that is another's by now, or gone, counts as done. With
/// [`ReleaseTerms::owner_gone`] also blocks that name the owner without there being an affinity: nobody else would ever free
/// them.
///
/// Datastore calls: 1 list, and those of [`affinity::release_affinity`] per block; where the owner is gone 1 list of all
/// blocks and 1 read more, and 1 commit per block without affinity.
///
/// # Errors
/// The last block's error, after all were tried.
///
/// # Cancellation
/// As [`affinity::release_affinity`] for one block; the call may be repeated.
pub async fn release_affinities_of<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    owner: &Owner,
    terms: ReleaseTerms,
) -> Result<usize, ReleaseAffinityError> {
    let found: Vec<Seen<Affinity>> =
        seen::list(store, &Scope::AffinitiesOf(owner.clone())).await.map_err(StoreError::from)?;
    let found: BTreeSet<Cidr> = found.into_iter().map(|seen| seen.value.cidr).collect();
    let claims = found.into_iter().map(|cidr| (owner.clone(), cidr));
    let mut round = Round::default();
    round.release(store, clock, claims, terms).await;
    // While a release is not done its affinity is still there, and its block no stray.
    if terms.owner_gone && round.failure.is_none() {
        let strays = disown_all(store, clock, owner, terms).await;
        strays.map(|count| round.given_up += count).unwrap_or_else(|error| round.failure = Some(error));
    }
    round.failure.map_or(Ok(round.given_up), Err)
}

/// Gives up all blocks of a pool, whoever owns them (ReleasePoolAffinities): what precedes the deletion of the pool.
///
/// Addresses in use stay in use in blocks without owner. Returns how many were given up. Rounds are made until one meets no
/// block that changed hands.
///
/// Datastore calls: 1 list a round, normally one round, and those of [`affinity::release_affinity`] per block.
///
/// # Errors
/// The last block's error, after all were tried.
///
/// # Cancellation
/// As [`affinity::release_affinity`] for one block; the call may be repeated.
pub async fn release_affinities_in<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    pool: Cidr,
) -> Result<usize, ReleaseAffinityError> {
    let mut given_up = 0;
    for _ in 0..ATTEMPTS {
        let found: Vec<Seen<Affinity>> =
            seen::list(store, &Scope::All(Kind::Affinity)).await.map_err(StoreError::from)?;
        let inside = found
            .into_iter()
            .filter(|seen| pool.contains_cidr(seen.value.cidr))
            .map(|seen| (seen.value.owner, seen.value.cidr));
        let mut round = Round::default();
        round.release(store, clock, inside, ReleaseTerms::default()).await;
        given_up += round.given_up;
        match round.failure {
            Some(error) => return Err(error),
            None if !round.changed_hands => return Ok(given_up),
            None => {}
        }
    }
    Err(StoreError::Contention { what: format!("the release of the blocks of {pool}") }.into())
}

/// What came of giving up several blocks.
#[derive(Debug, Default)]
struct Round {
    given_up: usize,
    changed_hands: bool,
    failure: Option<ReleaseAffinityError>,
}

impl Round {
    async fn release<D: Datastore>(
        &mut self,
        store: &D,
        clock: &dyn Clock,
        claims: impl Iterator<Item = (Owner, Cidr)>,
        terms: ReleaseTerms,
    ) {
        for (owner, cidr) in claims {
            match give_up(store, clock, &owner, cidr, terms).await {
                Ok(GivenUp::Now) => self.given_up += 1,
                Ok(GivenUp::Gone) => {}
                Ok(GivenUp::Taken) => self.changed_hands = true,
                Err(error) => self.failure = Some(error),
            }
        }
    }
}

/// How a block came not to be the owner's any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GivenUp {
    /// By this call.
    Now,
    /// It was gone, or is.
    Gone,
    /// It is another's.
    Taken,
}

/// Gives one block up, looking again after conflicts and after answers that were lost.
async fn give_up<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    owner: &Owner,
    cidr: Cidr,
    terms: ReleaseTerms,
) -> Result<GivenUp, ReleaseAffinityError> {
    let mut lost = false;
    for _ in 0..ATTEMPTS {
        match affinity::release_affinity(store, clock, owner, cidr, terms).await {
            Ok(()) => return Ok(GivenUp::Now),
            Err(ReleaseAffinityError::Missing { .. }) if lost => return Ok(GivenUp::Now),
            Err(ReleaseAffinityError::Missing { .. }) => return Ok(GivenUp::Gone),
            Err(ReleaseAffinityError::Taken { .. }) => return Ok(GivenUp::Taken),
            Err(ReleaseAffinityError::Changed { .. }) => {}
            Err(ReleaseAffinityError::Store(StoreError::Commit(CommitError::Unknown { .. }))) => lost = true,
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Contention { what: format!("the release of block {cidr}") }.into())
}

/// Takes the name of an owner that is gone off blocks for which it has no affinity: empty ones are deleted.
async fn disown_all<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    owner: &Owner,
    terms: ReleaseTerms,
) -> Result<usize, ReleaseAffinityError> {
    let mut strays: Vec<Seen<Block>> = seen::blocks(store).await.map_err(StoreError::from)?;
    strays.retain(|seen| seen.value.affinity.as_ref() == Some(owner));
    if strays.is_empty() {
        return Ok(0);
    }
    let cooldown = seen::config(store).await.map_err(StoreError::from)?.ip_cooldown_seconds;
    let mut disowned = 0;
    for seen in strays {
        let cidr = seen.value.cidr;
        let mut seen = seen;
        block::collect(&mut seen.value, cooldown, clock.now());
        if terms.must_be_empty && !block::is_empty(&seen.value) {
            continue;
        }
        let write = plan::disown(seen);
        // With an affinity there it is not a stray: whoever made that is at work on the block.
        let check = Check::Absent(Key::Affinity(owner.clone(), cidr));
        match commit_guarded(store, &[check], vec![write]).await {
            Ok(_) => disowned += 1,
            Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {
                let again = seen::block(store, cidr).await.map_err(StoreError::from)?;
                if again.is_some_and(|again| again.value.affinity.as_ref() == Some(owner)) {
                    return Err(ReleaseAffinityError::Changed { block: cidr });
                }
            }
            Err(error) => return Err(StoreError::from(error).into()),
        }
    }
    Ok(disowned)
}
