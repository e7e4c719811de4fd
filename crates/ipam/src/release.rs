//! Giving addresses back (algorithm §12 and §13).

use crate::affinity::{self, ReleaseAffinityError, ReleaseTerms};
use crate::block::{self, Release, ReleaseError};
use crate::clock::Clock;
use crate::failure::{ATTEMPTS, StoreError};
use crate::plan::{self, Handles};
use crate::pools;
use crate::seen::{self, Seen};
use api::{Block, Cidr, Handle, Node, OwnerKind, Pool};
use datastore::{CommitError, Datastore, Key, Record, Write};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What a release by addresses did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleasedAddresses {
    /// Addresses given back.
    pub released: Vec<IpAddr>,
    /// Addresses that were free, cooling, or in no block.
    pub not_allocated: Vec<IpAddr>,
    /// Blocks of which nothing was given back, and why.
    pub failed: Vec<(Cidr, ReleaseFailure)>,
}

/// Why nothing of a block was given back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseFailure {
    /// An address is not what the caller saw.
    #[error(transparent)]
    Refused(#[from] ReleaseError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Gives back everything that a handle holds, and removes the handle. Returns how many addresses that were.
///
/// A handle that does not exist is success with 0: nothing is held by it. An entry for a block that is gone stays, and with it
/// the handle: the block may be about to be made. It is the collector's.
///
/// Datastore calls: 2 reads (handle, configuration); per block 1 read and 1 commit, and, if a block of ours became empty,
/// 2 reads to see whether its pool still is for its node.
///
/// # Errors
/// [`StoreError`]; the blocks before the failing one are released.
///
/// # Cancellation
/// Leaves the handle with the entries not yet done; the call may be repeated.
pub async fn release_by_handle<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    handle: &str,
) -> Result<usize, StoreError> {
    let id = block::sanitized(handle);
    let Some(mut seen) = seen::handle(store, id).await? else { return Ok(0) };
    let config = seen::config(store).await?;
    let mut released = 0;
    for cidr in seen.value.blocks.keys().copied().collect::<Vec<_>>() {
        let mut done = None;
        for _ in 0..ATTEMPTS {
            if !seen.value.blocks.contains_key(&cidr) {
                done = Some(None);
                break;
            }
            match release_in_block(store, clock, id, &seen, cidr, config.ip_cooldown_seconds).await? {
                Step::Done { count, handle, block } => {
                    released += count;
                    match handle {
                        Some(handle) => seen = handle,
                        None => seen.value.blocks.clear(),
                    }
                    done = Some(block);
                    break;
                }
                // The handle is read before the block, so that a count is only lowered by what the block says now.
                Step::Again => match seen::handle(store, id).await? {
                    Some(again) => seen = again,
                    None => return Ok(released),
                },
            }
        }
        let block = done.ok_or_else(|| StoreError::Contention { what: format!("the release of {id}") })?;
        if let Some(block) = block {
            give_up_if_deselected(store, clock, &block).await?;
        }
    }
    Ok(released)
}

enum Step {
    /// The block has nothing of the handle any more.
    Done {
        /// Addresses given back.
        count: usize,
        /// The handle as written; `None` if it is deleted.
        handle: Option<Seen<Handle>>,
        /// The block as written, if it was.
        block: Option<Box<Block>>,
    },
    /// Something changed: read again.
    Again,
}

async fn release_in_block<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    id: &str,
    seen: &Seen<Handle>,
    cidr: Cidr,
    cooldown_seconds: u32,
) -> Result<Step, StoreError> {
    let handles = Handles::from([(id.to_owned(), seen.clone())]);
    let (plan, held) = match seen::block(store, cidr).await? {
        Some(mut block) => {
            let now = clock.now();
            block::collect(&mut block.value, cooldown_seconds, now);
            let held = block::held_by(&block.value, id).count();
            let plan = plan::plan_release_by_handles(&block, &[id], &handles, cooldown_seconds, now);
            (plan, held)
        }
        // It may be about to be made, with addresses of this handle in it, and nothing could stop that. The collector
        // takes the entry off when it has stood for a while (quirk Q9).
        None => return Ok(Step::Done { count: 0, handle: Some(seen.clone()), block: None }),
    };
    match store.commit(&[], &plan.writes).await {
        Ok(versions) => {
            let handle = plan.writes.iter().zip(versions).find_map(|(write, version)| match write {
                Write::Update(Record::Handle(handle), _) => {
                    Some(Seen::written(handle.clone(), version, seen.created))
                }
                _ => None,
            });
            Ok(Step::Done { count: held, handle, block: plan.block.filter(|_| held > 0).map(Box::new) })
        }
        // Nothing can be lost by looking again: what is released already is not found by the handle any more.
        Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => Ok(Step::Again),
        Err(error) => Err(error.into()),
    }
}

/// Gives back particular addresses, each only if it still is what the caller saw.
///
/// Addresses of disabled and deleted pools too. One block's failure does not stop the others; within a block it is all
/// or nothing.
///
/// Datastore calls: 2 reads (pools, configuration), 1 more if an address lies in no pool or in no block of its pool's
/// size; per block 1 read, 1 read per handle, and 1 commit.
///
/// # Errors
/// [`StoreError`] if the pools or the configuration could not be read: nothing is released then; or the blocks: only
/// addresses in blocks of their pools' sizes may be released then. The call may be repeated.
pub async fn release_addresses<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    releases: &[Release],
) -> Result<ReleasedAddresses, StoreError> {
    let pools = seen::pools(store).await?;
    let config = seen::config(store).await?;
    let mut outcome = ReleasedAddresses::default();
    let mut by_block: BTreeMap<Cidr, Vec<Release>> = BTreeMap::new();
    let mut homeless = Vec::new();
    for release in releases {
        let pool = pools.iter().map(|seen| &seen.value).find(|pool| pool.cidr.contains(release.address));
        match pool.and_then(|pool| Cidr::containing(release.address, pool.block_size)) {
            Some(cidr) => by_block.entry(cidr).or_default().push(release.clone()),
            None => homeless.push(release.clone()),
        }
    }
    for (cidr, releases) in by_block {
        if !release_of_block(store, clock, cidr, &releases, config.ip_cooldown_seconds, &mut outcome).await {
            homeless.extend(releases);
        }
    }
    if homeless.is_empty() {
        return Ok(outcome);
    }
    // No pool, or one that was made anew with another block size: the blocks themselves know.
    let blocks = seen::blocks(store).await?;
    let mut by_block: BTreeMap<Cidr, Vec<Release>> = BTreeMap::new();
    for release in homeless {
        match blocks.iter().find(|seen| seen.value.cidr.contains(release.address)) {
            Some(seen) => by_block.entry(seen.value.cidr).or_default().push(release),
            None => outcome.not_allocated.push(release.address),
        }
    }
    for (cidr, releases) in by_block {
        if !release_of_block(store, clock, cidr, &releases, config.ip_cooldown_seconds, &mut outcome).await {
            outcome.not_allocated.extend(releases.iter().map(|release| release.address));
        }
    }
    Ok(outcome)
}

/// Gives back what is named in one block and notes it in `outcome`. `false`: there is no such block.
async fn release_of_block<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    cidr: Cidr,
    releases: &[Release],
    cooldown_seconds: u32,
    outcome: &mut ReleasedAddresses,
) -> bool {
    match release_in(store, clock, cidr, releases, cooldown_seconds).await {
        Ok(Some(done)) => {
            outcome.released.extend(done.released);
            outcome.not_allocated.extend(done.not_allocated);
            true
        }
        Ok(None) => false,
        Err(failure) => {
            outcome.failed.push((cidr, failure));
            true
        }
    }
}

/// `None`: there is no such block.
async fn release_in<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    cidr: Cidr,
    releases: &[Release],
    cooldown_seconds: u32,
) -> Result<Option<ReleasedAddresses>, ReleaseFailure> {
    // After a lost answer the addresses may be free because this call freed them.
    let mut maybe_done: BTreeSet<IpAddr> = BTreeSet::new();
    for _ in 0..ATTEMPTS {
        let Some(mut block) = seen::block(store, cidr).await.map_err(StoreError::from)? else {
            if maybe_done.is_empty() {
                return Ok(None);
            }
            let (released, not_allocated) = releases
                .iter()
                .map(|release| release.address)
                .partition(|address| maybe_done.contains(address));
            return Ok(Some(ReleasedAddresses { released, not_allocated, failed: Vec::new() }));
        };
        let now = clock.now();
        block::collect(&mut block.value, cooldown_seconds, now);
        let mut rehearsal = block.value.clone();
        let wanted: Vec<Release> = releases
            .iter()
            .filter(|release| !maybe_done_here(&block.value, release, &maybe_done))
            .cloned()
            .collect();
        let handles_touched = block::release(&mut rehearsal, &wanted, cooldown_seconds, now)?.by_handle;
        let mut handles = Handles::new();
        for id in handles_touched.into_keys() {
            if let Some(seen) = seen::handle(store, &id).await.map_err(StoreError::from)? {
                handles.insert(id, seen);
            }
        }
        let (plan, outcome) = plan::plan_release(&block, &wanted, &handles, cooldown_seconds, now)?;
        let mut freed: BTreeSet<IpAddr> =
            outcome.ordinals.iter().filter_map(|ordinal| cidr.address(*ordinal)).collect();
        if plan.writes.is_empty() {
            return Ok(Some(ReleasedAddresses {
                released: maybe_done.into_iter().collect(),
                not_allocated: outcome.not_allocated,
                failed: Vec::new(),
            }));
        }
        match store.commit(&[], &plan.writes).await {
            Ok(_) => {
                if let Some(block) = &plan.block {
                    give_up_if_deselected(store, clock, block).await?;
                }
                freed.append(&mut maybe_done);
                return Ok(Some(ReleasedAddresses {
                    released: freed.into_iter().collect(),
                    not_allocated: outcome.not_allocated,
                    failed: Vec::new(),
                }));
            }
            Err(CommitError::Conflict { .. }) => {}
            Err(CommitError::Unknown { .. }) => maybe_done.extend(freed),
            Err(error) => return Err(StoreError::from(error).into()),
        }
    }
    Err(StoreError::Contention { what: format!("the release of addresses in {cidr}") }.into())
}

/// Whether this address was freed by an attempt whose answer was lost.
fn maybe_done_here(block: &Block, release: &Release, maybe_done: &BTreeSet<IpAddr>) -> bool {
    maybe_done.contains(&release.address)
        && block::attribute_of(block, release.address).is_none_or(|attribute| attribute.released_at.is_some())
}

/// Gives up an empty block whose pool no longer is for its node (algorithm §12.1). Failing to is not the caller's concern.
///
/// # Errors
/// [`StoreError`] if the node or pools cannot be read.
pub(crate) async fn give_up_if_deselected<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    block: &Block,
) -> Result<(), StoreError> {
    let Some(owner) = block.affinity.as_ref().filter(|owner| owner.kind == OwnerKind::Host) else {
        return Ok(());
    };
    if !block::is_empty(block) {
        return Ok(());
    }
    let node: Option<Seen<Node>> = seen::get(store, &Key::Node(owner.name.clone())).await?;
    let Some(node) = node else { return Ok(()) };
    let pools = seen::pools(store).await?;
    let home = pools
        .iter()
        .map(|seen| &seen.value)
        .find(|pool: &&Pool| pool.is_enabled() && pool.cidr.contains_cidr(block.cidr));
    if home.is_some_and(|pool| pools::selects_node(pool, &node.value.labels) == Ok(false)) {
        let terms = ReleaseTerms { must_be_empty: true, ..ReleaseTerms::default() };
        return match affinity::release_affinity(store, clock, owner, block.cidr, terms).await {
            Err(ReleaseAffinityError::Store(error)) => Err(error),
            _ => Ok(()),
        };
    }
    Ok(())
}
