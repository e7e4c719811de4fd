//! Claiming a block (algorithm §5, architecture D5 and D9): the steps that [`crate::affinity`] tells of, from the affinity
//! that passes through pending to the answer.

use crate::affinity::{self, ReleaseAffinityError, ReleaseTerms};
use crate::block::{self, Release, Taken};
use crate::clock::Clock;
use crate::failure::{ATTEMPTS, StoreError};
use crate::host_reserved::HostReserved;
use crate::mistake::{Mistake, made};
use crate::plan::{self, AddressRequest, BlockPlan, Handles, NewBlock, PendingPlan, PlanRefusal, Want};
use crate::release::release_addresses;
use crate::reservations::ReservationSet;
use crate::seen::{self, HandleInHand, Seen};
use crate::vacancy;
use api::{Affinity, AffinityState, Attribute, Block, Cidr, Ordinal, Owner, Pool};
use datastore::{Check, CommitError, Datastore, Key, ReadError, Record, Write};
use jiff::Timestamp;

/// A block to be made ours, or to be found ours.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// For whom.
    pub owner: &'a Owner,
    /// Which block.
    pub cidr: Cidr,
    /// The pool it is cut from, as read: a new block is made only while the pool is unchanged.
    pub pool: &'a Seen<Pool>,
    /// What is put into the block if it is made now.
    pub content: Content<'a>,
    /// Addresses never handed out automatically.
    pub reserved: &'a ReservationSet,
    /// Ordinals that the host keeps of the block if it is made now.
    pub host_reserved: Option<&'a HostReserved>,
}

/// What is put into a block that is made.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Nothing.
    Nothing,
    /// Any addresses, as many as there is room for; the handle may hold `cap` of the family, 0: any number.
    Any {
        /// What is wanted.
        want: &'a Want,
        /// The most that the handle may hold.
        cap: u32,
    },
    /// One particular address.
    One(&'a AddressRequest),
}

impl<'a> Claim<'a> {
    /// The claim of a block with nothing to put into it.
    pub fn of(owner: &'a Owner, cidr: Cidr, pool: &'a Seen<Pool>) -> Self {
        static NOTHING: ReservationSet = ReservationSet::none();
        Self { owner, cidr, pool, content: Content::Nothing, host_reserved: None, reserved: &NOTHING }
    }
}

/// A block that is ours, its affinity confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The block.
    pub block: Seen<Block>,
    /// Addresses taken while it was made; empty if it was there already.
    pub taken: Vec<Taken>,
    /// Whether it was made by this claim.
    pub made: bool,
}

/// Why a block did not become ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// It is somebody else's, or nobody's with addresses in use: try another block.
    #[error("block {block} belongs to {}", .owner.as_ref().map_or_else(|| "nobody".to_owned(), Owner::to_string))]
    Taken {
        /// The block.
        block: Cidr,
        /// Who has it.
        owner: Option<Owner>,
    },
    /// The pool changed since it was read: read the pools again and decide again.
    #[error("pool {pool} changed while a block of it was claimed")]
    PoolChanged {
        /// The pool.
        pool: String,
    },
    /// What was to be put into it is refused; the block is not made.
    #[error(transparent)]
    Refused(#[from] PlanRefusal),
    /// There is such a block, and it cannot be understood: try another block. The affinity is left as it is, unless it was
    /// only begun.
    #[error(transparent)]
    Unreadable(ReadError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is known about the affinity object before a claim.
#[derive(Clone, Debug)]
pub enum Known {
    /// Nothing: read it first.
    Unread,
    /// A list did not show one: create it at once.
    Absent,
    /// It was read like this.
    Found(Seen<Affinity>),
}

/// Makes `claim.cidr` a block of `claim.owner` and confirms it, whatever half-done state it is in.
///
/// As [`claim_for`], for content that no handle holds.
///
/// # Errors
/// See [`ClaimError`].
pub async fn claim<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    claim: &Claim<'_>,
    known: Known,
) -> Result<Claimed, ClaimError> {
    let mut hand = HandleInHand::unread(match claim.content {
        Content::Nothing => None,
        Content::Any { want, .. } => want.handle.as_deref(),
        Content::One(request) => request.handle.as_deref(),
    });
    claim_for(store, clock, claim, known, &mut hand).await
}

/// Makes `claim.cidr` a block of `claim.owner` and confirms it, whatever half-done state it is in.
///
/// `hand` is the handle that will hold the content; it is read if it is not known.
///
/// Datastore calls where nothing exists and `known` is [`Known::Absent`]: 1 commit, of the affinity that passes through
/// pending, the handle, and the block with its first addresses, conditional on the pool. Where the block is ours and
/// confirmed: 1 read, of the block; where only our affinity is there 1 list of all blocks more; where it is ours and not confirmed, 1 list of all blocks, 1 read of the pool and 1 commit
/// more. Each conflict adds 2 reads, a lost answer 3 reads and 1 commit.
///
/// # Errors
/// See [`ClaimError`]. After [`ClaimError::Taken`] no affinity of the owner for the block is left, unless it could not be
/// deleted.
///
/// # Cancellation
/// Leaves at most a pending affinity, or a block that is ours with its affinity pending; the next claim mends both.
pub async fn claim_for<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    claim: &Claim<'_>,
    known: Known,
    hand: &mut HandleInHand,
) -> Result<Claimed, ClaimError> {
    let (owner, cidr) = (claim.owner, claim.cidr);
    let mut known = known;
    for _ in 0..ATTEMPTS {
        let (found, look) = match std::mem::replace(&mut known, Known::Unread) {
            Known::Unread => (seen::affinity(store, owner, cidr).await.map_err(StoreError::from)?, true),
            Known::Absent => (None, false),
            Known::Found(found) => (Some(found), true),
        };
        // What exists is looked at after the affinity was read: a claim made since then changes the affinity.
        let existing = if look { seen::block(store, cidr).await } else { Ok(None) };
        let existing = match existing {
            Err(error @ ReadError::Malformed { .. }) => {
                let begun = found.as_ref().filter(|found| found.value.state == AffinityState::Pending);
                drop_affinity(store, owner, begun).await;
                return Err(ClaimError::Unreadable(error));
            }
            existing => existing.map_err(StoreError::from)?,
        };
        let Some(existing) = existing else {
            let begun = found.as_ref().filter(|found| found.value.owner == *owner);
            if begun.is_some() && !may_be_made(store, claim).await? {
                drop_affinity(store, owner, begun).await;
                return Err(ClaimError::Taken { block: cidr, owner: None });
            }
            if let Some(claimed) = make(store, clock, claim, found.as_ref(), hand).await? {
                return Ok(claimed);
            }
            continue;
        };
        if existing.value.affinity.as_ref() != Some(owner) {
            drop_affinity(store, owner, found.as_ref()).await;
            return Err(ClaimError::Taken { block: cidr, owner: existing.value.affinity });
        }
        match &found {
            Some(affinity) if affinity.value.owner != *owner => {
                // Under per-block names another node has just begun to claim what is ours; it will find the block and go.
                return Ok(Claimed { block: existing, taken: Vec::new(), made: false });
            }
            Some(affinity) if affinity.value.state == AffinityState::Confirmed => {
                return Ok(Claimed { block: existing, taken: Vec::new(), made: false });
            }
            _ => {}
        }
        if !may_stand(store, claim).await? {
            leave(store, clock, claim, existing, found.is_some()).await?;
            return Err(ClaimError::Taken { block: cidr, owner: None });
        }
        if let Some(block) = confirm(store, owner, found, existing).await? {
            return Ok(Claimed { block, taken: Vec::new(), made: false });
        }
    }
    Err(StoreError::Contention { what: format!("the claim of block {cidr}") }.into())
}

/// Claims a block that does not exist: affinity pending, block with its first addresses, affinity confirmed.
///
/// `None`: somebody interfered, look again.
async fn make<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    claim: &Claim<'_>,
    found: Option<&Seen<Affinity>>,
    hand: &mut HandleInHand,
) -> Result<Option<Claimed>, ClaimError> {
    let (owner, cidr) = (claim.owner, claim.cidr);
    if cidr.prefix() != claim.pool.value.block_size && !made(Mistake::StaleAffinityTrusted) {
        // Begun when the pool had another block size: made now, the block could lie across others (invariant 4).
        drop_affinity(store, owner, found).await;
        return Err(ClaimError::Taken { block: cidr, owner: None });
    }
    let now = clock.now();
    let pass = match plan_pass(owner, cidr, found, now) {
        Ok(pass) => pass,
        Err(by) => return Err(ClaimError::Taken { block: cidr, owner: Some(by) }),
    };
    hand.look(store).await.map_err(StoreError::from)?;
    let mut plan = plan_content(claim, now, &hand.handles())?;
    let mut writes = vec![pass];
    writes.append(&mut plan.writes);
    let place = writes.len() - 1;
    let Some(planned) = plan.block else { return Ok(None) };
    let pool = &claim.pool.value.name;
    let check = Check::Unchanged(Key::Pool(pool.clone()), claim.pool.version.revision);
    let checks: &[Check] =
        if made(Mistake::StalePool) && !matches!(claim.content, Content::Nothing) { &[] } else { &[check] };
    let block = match store.commit(checks, &writes).await {
        Ok(versions) => {
            hand.wrote(&writes, &versions);
            versions.get(place).cloned().map(|version| Seen::written(planned, version, Some(now)))
        }
        Err(CommitError::Conflict { key: Key::Pool(_), written: 0 }) => {
            hand.forget();
            return Err(ClaimError::PoolChanged { pool: pool.clone() });
        }
        Err(CommitError::Conflict { written: 0, .. }) => {
            hand.forget();
            None
        }
        // Nobody knows what stands, or some of it does: what was taken is answered if it is there, and not taken again.
        Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {
            hand.forget();
            find_made(store, clock, claim, &plan.taken, hand).await?
        }
        Err(error) => return Err(StoreError::from(error).into()),
    };
    let taken = plan.taken.into_iter().flatten().collect();
    Ok(block.map(|block| Claimed { block, taken, made: true }))
}

fn plan_content(claim: &Claim<'_>, now: Timestamp, handles: &Handles) -> Result<BlockPlan, PlanRefusal> {
    let new = NewBlock {
        cidr: claim.cidr,
        owner: claim.owner,
        host_reserved: claim.host_reserved,
        reserved: claim.reserved,
    };
    match claim.content {
        Content::Nothing => Ok(plan::plan_new_block(&new, now, &[], handles)?),
        Content::Any { want, cap } => plan::plan_new_block_capped(&new, now, want, cap, handles),
        Content::One(request) => plan::plan_new_block_with(&new, now, request, handles),
    }
}

/// The affinity of `owner` for `cidr`, pending while its block is made, confirmed at last.
///
/// # Errors
/// The owner whose affinity stands there and may not be taken over.
fn plan_pass(
    owner: &Owner,
    cidr: Cidr,
    found: Option<&Seen<Affinity>>,
    now: Timestamp,
) -> Result<Write, Owner> {
    if let PendingPlan::Taken(by) = plan::plan_pending(owner, cidr, found, false, now) {
        return Err(by);
    }
    let affinity = |state| Record::Affinity(Affinity { owner: owner.clone(), cidr, state, deleted: false });
    Ok(Write::Pass {
        passing: Box::new(affinity(passing_state())),
        last: affinity(AffinityState::Confirmed),
        seen: found.map(|found| found.version.clone()),
    })
}

/// State of an affinity while its block is made.
fn passing_state() -> AffinityState {
    if made(Mistake::PendingSkipped) { AffinityState::Confirmed } else { AffinityState::Pending }
}

/// Whether a block as read back carries these allocations, by ordinal, stamp and handle.
pub fn holds(block: &Block, taken: &[Vec<Taken>], handle: Option<&str>) -> bool {
    taken.iter().flatten().all(|taken| {
        let held = block::attribute_of(block, taken.address);
        let holder = held.and_then(|attribute| attribute.handle_id.as_deref()).map(block::sanitized);
        held.is_some_and(|attribute| attribute.released_at.is_none())
            && block::stamp(block, taken.ordinal) == taken.sequence
            && holder.unwrap_or_default() == handle.map(block::sanitized).unwrap_or_default()
    })
}

/// Looks for the block of a claim of which nobody knows how far it came, and confirms it. `None`: it is not there as planned.
///
/// That it is read proves nothing yet: the writes, or what takes them back, may still be on their way. The confirmation writes
/// the block, so that whatever comes later finds another revision.
///
/// Datastore calls: 3 reads (affinity, block, pool) and 1 commit; each conflict adds as much again. Where the block was given
/// up meanwhile: 2 reads, and those of [`release_addresses`].
async fn find_made<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    claim: &Claim<'_>,
    taken: &[Vec<Taken>],
    hand: &mut HandleInHand,
) -> Result<Option<Seen<Block>>, ClaimError> {
    let (owner, cidr) = (claim.owner, claim.cidr);
    for _ in 0..ATTEMPTS {
        // The block first: where a late commit has made it, the affinity that was written before it is there too.
        let block = seen::block(store, cidr).await.map_err(StoreError::from)?;
        let found = seen::affinity(store, owner, cidr).await.map_err(StoreError::from)?;
        let Some(block) = block.filter(|seen| holds(&seen.value, taken, hand.id())) else { return Ok(None) };
        if block.value.affinity.as_ref() != Some(owner) {
            // The block was taken from us with the addresses in it, which are not answered then and looked for by nobody.
            if !give_back(store, clock, taken, hand).await? {
                continue;
            }
            return Ok(None);
        }
        // With the answer the check was lost: it is made here before anybody is told (architecture D3).
        if !pool_unchanged(store, claim.pool).await? {
            if take_back(store, clock, owner, (found, block), taken, hand).await? {
                return Err(ClaimError::PoolChanged { pool: claim.pool.value.name.clone() });
            }
            continue;
        }
        if let Some(block) = confirm(store, owner, found, block).await? {
            return Ok(Some(block));
        }
    }
    Err(StoreError::Contention { what: format!("the confirmation of block {cidr}") }.into())
}

/// Takes back what a claim put into its block, and the block with its affinity if nobody else uses it by now. False: somebody
/// interfered, look again.
///
/// The affinity is marked first: it may be confirmed already, and what would still confirm it finds another revision.
///
/// Datastore calls: 2 commits, and 1 read if the handle is not known; if others use the block, those of
/// [`release_addresses`].
async fn take_back<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    owner: &Owner,
    (affinity, block): (Option<Seen<Affinity>>, Seen<Block>),
    taken: &[Vec<Taken>],
    hand: &mut HandleInHand,
) -> Result<bool, ClaimError> {
    let cidr = block.value.cidr;
    let others = |(ordinal, attribute): (Ordinal, &Attribute)| {
        !block::is_kept_by_host(attribute) && taken.iter().flatten().all(|taken| taken.ordinal != ordinal)
    };
    if block::allocated(&block.value).any(others) {
        return give_back(store, clock, taken, hand).await;
    }
    hand.look(store).await.map_err(StoreError::from)?;
    let mut writes = vec![Write::Delete(Record::Block(block.value), block.version)];
    if let Some(id) = hand.id() {
        writes.extend(plan::handle_write(id, hand.handles().get(id), cidr, 0));
    }
    hand.forget();
    if let Some(found) = affinity.filter(|found| found.value.owner == *owner) {
        let leaving = plan::affinity_write(&found, AffinityState::PendingDeletion);
        let version = match store.commit(&[], std::slice::from_ref(&leaving)).await {
            Ok(versions) => versions.into_iter().next(),
            Err(CommitError::Conflict { .. }) => return Ok(false),
            Err(error) => return Err(StoreError::from(error).into()),
        };
        writes.extend(version.map(|version| Write::Delete(leaving.record().clone(), version)));
    }
    match store.commit(&[], &writes).await {
        Ok(_) => Ok(true),
        // The block goes first: what is left is an entry of the handle, or an affinity that is marked.
        Err(CommitError::Conflict { written, .. }) => Ok(written > 0),
        Err(error) => Err(StoreError::from(error).into()),
    }
}

/// Gives back what a claim put into a block, and leaves the block as it is. False: look again.
async fn give_back<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    taken: &[Vec<Taken>],
    hand: &mut HandleInHand,
) -> Result<bool, ClaimError> {
    let named = taken.iter().flatten().map(|taken| Release {
        address: taken.address,
        handle: hand.id().map(str::to_owned),
        sequence: Some(taken.sequence),
    });
    let releases: Vec<Release> = named.collect();
    hand.forget();
    if releases.is_empty() {
        return Ok(true);
    }
    let outcome = release_addresses(store, clock, &releases).await?;
    Ok(outcome.failed.is_empty())
}

async fn pool_unchanged<D: Datastore>(store: &D, pool: &Seen<Pool>) -> Result<bool, StoreError> {
    let found: Option<Seen<Pool>> = seen::get(store, &Key::Pool(pool.value.name.clone())).await?;
    Ok(found.is_some_and(|found| found.version == pool.version))
}

/// Whether the block that an affinity of ours promises may be made: others may have been made across it since the affinity
/// was written. The list is newer than the pool as read, and the commit holds only while that is unchanged.
///
/// Datastore calls: 1 list of all blocks.
async fn may_be_made<D: Datastore>(store: &D, claim: &Claim<'_>) -> Result<bool, ClaimError> {
    if made(Mistake::StaleAffinityTrusted) {
        return Ok(true);
    }
    let all = seen::all_blocks(store).await.map_err(StoreError::from)?;
    Ok(!vacancy::is_crossed(claim.cidr, &all))
}

/// Whether a block that is there may be confirmed: it is of the pool's present size and lies across no other.
///
/// Whoever made it may have died before it knew that the pool was unchanged, and blocks of another size may have been made
/// beside it. The list is newer than the block, and the pool unchanged around the list: whoever did not see the block is seen.
///
/// Datastore calls: 1 list of all blocks, and 1 read of the pool.
async fn may_stand<D: Datastore>(store: &D, claim: &Claim<'_>) -> Result<bool, ClaimError> {
    let (cidr, pool) = (claim.cidr, &claim.pool.value);
    if made(Mistake::StaleAffinityTrusted) {
        return Ok(true);
    }
    if cidr.prefix() != pool.block_size {
        return Ok(false);
    }
    let all = seen::all_blocks(store).await.map_err(StoreError::from)?;
    if !pool_unchanged(store, claim.pool).await? {
        return Err(ClaimError::PoolChanged { pool: pool.name.clone() });
    }
    Ok(!vacancy::is_crossed(cidr, &all))
}

/// Gives up a block that may not stand: with addresses in use it loses its owner.
async fn leave<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    claim: &Claim<'_>,
    block: Seen<Block>,
    has_affinity: bool,
) -> Result<(), ClaimError> {
    if has_affinity {
        let terms = ReleaseTerms::default();
        return match affinity::release_affinity(store, clock, claim.owner, claim.cidr, terms).await {
            Err(ReleaseAffinityError::Store(error)) => Err(error.into()),
            _ => Ok(()),
        };
    }
    match store.commit(&[], &[plan::disown(block)]).await {
        Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
        Err(error) => Err(StoreError::from(error).into()),
    }
}

/// Confirms the affinity of a block that is ours, making it again if it is gone: a new revision of the block, then confirmed
/// (architecture D9).
///
/// The rewritten block makes a release fail that read the old one, and whatever of an earlier commit is still on its way. Of
/// two who confirm at once the first makes the other's last write fail, and that one finds it confirmed. `None`: somebody
/// interfered, look again.
///
/// Datastore calls: 1 commit.
async fn confirm<D: Datastore>(
    store: &D,
    owner: &Owner,
    affinity: Option<Seen<Affinity>>,
    block: Seen<Block>,
) -> Result<Option<Seen<Block>>, ClaimError> {
    let mut touched = block.value;
    let cidr = touched.cidr;
    block::advance(&mut touched);
    let mut writes = vec![Write::Update(Record::Block(touched.clone()), block.version)];
    let confirmed = AffinityState::Confirmed;
    match affinity {
        None => {
            let affinity = Affinity { owner: owner.clone(), cidr, state: confirmed, deleted: false };
            writes.push(Write::Create(Record::Affinity(affinity)));
        }
        // Another's, under per-block names, who will find the block and go; or nothing to do.
        Some(found) if found.value.owner != *owner || found.value.state == confirmed => {}
        Some(found) => writes.push(plan::affinity_write(&found, confirmed)),
    }
    match store.commit(&[], &writes).await {
        Ok(versions) => {
            Ok(versions.into_iter().next().map(|version| Seen::written(touched, version, block.created)))
        }
        Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => Ok(None),
        Err(error) => Err(StoreError::from(error).into()),
    }
}

/// Deletes our affinity in the state it was read in. A failure leaves it to the owner's next request (W13).
pub(crate) async fn drop_affinity<D: Datastore>(store: &D, owner: &Owner, found: Option<&Seen<Affinity>>) {
    if let Some(found) = found.filter(|found| found.value.owner == *owner) {
        let write = Write::Delete(Record::Affinity(found.value.clone()), found.version.clone());
        let _ = store.commit(&[], std::slice::from_ref(&write)).await;
    }
}
