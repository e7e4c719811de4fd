//! Claiming a block (algorithm §5, architecture D5 and D9): the steps that [`crate::affinity`] tells of, from the affinity
//! that passes through pending to the answer.

use crate::block::{self, Taken};
use crate::clock::Clock;
use crate::failure::{ATTEMPTS, StoreError};
use crate::host_reserved::HostReserved;
use crate::mistake::{Mistake, made};
use crate::plan::{self, AddressRequest, BlockPlan, Handles, NewBlock, PendingPlan, PlanRefusal, Want};
use crate::reservations::ReservationSet;
use crate::seen::{self, HandleInHand, Seen};
use api::{Affinity, AffinityState, Block, Cidr, Owner, Pool};
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
/// confirmed: 1 read, of the block; where it is ours and not confirmed, 1 commit more. Each conflict adds 2 reads.
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
            if let Some(claimed) = make(store, clock, claim, found.as_ref(), hand).await? {
                return Ok(claimed);
            }
            continue;
        };
        if existing.value.affinity.as_ref() != Some(owner) {
            drop_affinity(store, owner, found.as_ref()).await;
            return Err(ClaimError::Taken { block: cidr, owner: existing.value.affinity });
        }
        match found {
            Some(affinity) if affinity.value.owner == *owner => {
                if affinity.value.state == AffinityState::Confirmed {
                    return Ok(Claimed { block: existing, taken: Vec::new(), made: false });
                }
                if let Some(block) = revive(store, affinity, existing).await? {
                    return Ok(Claimed { block, taken: Vec::new(), made: false });
                }
            }
            // Under per-block names another node has just begun to claim what is ours; it will find the block and go.
            Some(_) => return Ok(Claimed { block: existing, taken: Vec::new(), made: false }),
            None => {
                settle(store, owner, cidr).await?;
                return Ok(Claimed { block: existing, taken: Vec::new(), made: false });
            }
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
        Err(CommitError::Conflict { key: Key::Pool(_), .. }) => {
            return Err(ClaimError::PoolChanged { pool: pool.clone() });
        }
        Err(CommitError::Conflict { .. }) => {
            hand.forget();
            None
        }
        Err(CommitError::Unknown { .. }) => {
            hand.forget();
            let found = seen::block(store, cidr).await.map_err(StoreError::from)?;
            let ours = found.filter(|seen| {
                seen.value.affinity.as_ref() == Some(owner) && holds(&seen.value, &plan.taken, hand.id())
            });
            match ours {
                // With the answer the check was lost: it is made here before anybody is told (architecture D3).
                Some(block) if !pool_unchanged(store, claim.pool).await? => {
                    take_back(store, owner, block, hand).await?;
                    return Err(ClaimError::PoolChanged { pool: pool.clone() });
                }
                Some(block) => {
                    // The addresses are in the block. Whoever took the affinity from us acted on a block without them,
                    // and failed. Nothing is taken again: what is held is answered.
                    settle(store, owner, cidr).await?;
                    Some(block)
                }
                None => None,
            }
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

/// Removes a block that was just made, with the handle's entry for it and the affinity.
async fn take_back<D: Datastore>(
    store: &D,
    owner: &Owner,
    block: Seen<Block>,
    hand: &mut HandleInHand,
) -> Result<(), ClaimError> {
    let cidr = block.value.cidr;
    hand.look(store).await.map_err(StoreError::from)?;
    let mut writes = vec![Write::Delete(Record::Block(block.value), block.version)];
    if let Some(id) = hand.id() {
        writes.extend(plan::handle_write(id, hand.handles().get(id), cidr, 0));
    }
    hand.forget();
    store.commit(&[], &writes).await.map_err(StoreError::from)?;
    let affinity = seen::affinity(store, owner, cidr).await.map_err(StoreError::from)?;
    drop_affinity(store, owner, affinity.as_ref()).await;
    Ok(())
}

async fn pool_unchanged<D: Datastore>(store: &D, pool: &Seen<Pool>) -> Result<bool, StoreError> {
    let found: Option<Seen<Pool>> = seen::get(store, &Key::Pool(pool.value.name.clone())).await?;
    Ok(found.is_some_and(|found| found.version == pool.version))
}

/// Brings the affinity of a block that is ours to confirmed, making it again if it is gone (architecture D9).
async fn settle<D: Datastore>(store: &D, owner: &Owner, cidr: Cidr) -> Result<(), ClaimError> {
    for _ in 0..ATTEMPTS {
        let found = seen::affinity(store, owner, cidr).await.map_err(StoreError::from)?;
        let Some(existing) = seen::block(store, cidr).await.map_err(StoreError::from)? else { return Ok(()) };
        if existing.value.affinity.as_ref() != Some(owner) {
            return Ok(());
        }
        match found {
            None => {
                let confirmed =
                    Affinity { owner: owner.clone(), cidr, state: AffinityState::Confirmed, deleted: false };
                let check = Check::Unchanged(Key::Block(cidr), existing.version.revision);
                match store.commit(&[check], &[Write::Create(Record::Affinity(confirmed))]).await {
                    Ok(_) => return Ok(()),
                    Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {}
                    Err(error) => return Err(StoreError::from(error).into()),
                }
            }
            Some(found) if found.value.owner != *owner => return Ok(()),
            Some(found) if found.value.state == AffinityState::Confirmed => return Ok(()),
            Some(found) => {
                if revive(store, found, existing).await?.is_some() {
                    return Ok(());
                }
            }
        }
    }
    Err(StoreError::Contention { what: format!("the confirmation of block {cidr}") }.into())
}

/// Confirms the unconfirmed affinity of a block that is ours: pending, a new revision of the block, confirmed.
///
/// The rewritten block makes a release that read the old one fail. `None`: somebody interfered, look again.
///
/// Datastore calls: 1 commit.
async fn revive<D: Datastore>(
    store: &D,
    affinity: Seen<Affinity>,
    block: Seen<Block>,
) -> Result<Option<Seen<Block>>, ClaimError> {
    let mut touched = block.value;
    block::advance(&mut touched);
    let state = |state| Record::Affinity(Affinity { state, ..affinity.value.clone() });
    let writes = [
        Write::Pass {
            passing: Box::new(state(AffinityState::Pending)),
            last: state(AffinityState::Confirmed),
            seen: Some(affinity.version.clone()),
        },
        Write::Update(Record::Block(touched.clone()), block.version),
    ];
    match store.commit(&[], &writes).await {
        Ok(versions) => {
            Ok(versions.into_iter().nth(1).map(|version| Seen::written(touched, version, block.created)))
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
