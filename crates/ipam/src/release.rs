//! Giving addresses back (algorithm §12 and §13).

use crate::account::{Account, BlockEnd};
use crate::affinity::{self, ReleaseAffinityError, ReleaseTerms};
use crate::block::{self, Release, ReleaseError};
use crate::clock::Clock;
use crate::explain::Explained;
use crate::failure::{ATTEMPTS, StoreError};
use crate::plan::{self, Handles};
use crate::plan_release::plan_release_again;
use crate::seen::{self, Seen, TOGETHER};
use crate::setting::{home, is_deselected};
use api::{Block, Cidr, Handle, Node, OwnerKind, Pool};
use datastore::{CommitError, Datastore, Key, Kind, ReadError, Record, Scope, Version, Write};
use futures::future::join_all;
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
    /// How it came to that.
    pub account: Account,
}

/// What a release by handle did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleasedHandle {
    /// Addresses given back.
    pub addresses: usize,
    /// How it came to that.
    pub account: Account,
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
/// Datastore calls, as trips where commits are atomic: 3, of 3 reads (handle, configuration, pools), 1 read per block, and
/// 1 commit of the blocks and the handle; with the commit goes 1 read of the node for each block that becomes empty in a
/// pool that is not for all nodes, and if the pool is not for it those of [`affinity::release_affinity`]. A handle in more
/// than 24 blocks: 2 trips more per 24. On a Kubernetes API the commit is 1 request per block and 1 for the handle, one after
/// another: 4 trips for a handle in one block. A handle that does not exist: 1 trip. Whoever knows the addresses saves a trip
/// with [`release_by_handle_in`]: this one is for who knows nothing but the handle.
///
/// # Errors
/// [`StoreError`]; what was released before the failure stays released. What is in blocks that cannot be understood is left
/// alone, and said when the rest is released.
///
/// # Cancellation
/// Leaves the handle with the entries not yet done; the call may be repeated.
pub async fn release_by_handle<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    handle: &str,
) -> Result<usize, StoreError> {
    let released = release_by_handle_in(store, clock, handle, &[]).await;
    released.map(|released| released.addresses).map_err(|failure| failure.error)
}

/// As [`release_by_handle`], for a caller who believes to know where the handle's addresses are: their blocks are read beside
/// the handle, at most 24 of them. This is what a plugin's DEL calls: its runtime hands it the addresses that the ADD answered.
///
/// `answered` are these addresses, each with the prefix that it was answered with: one narrower than a single address is taken
/// for its block, a single address for one of a block of the usual size ([`Pool::default_block_size`]). Exact blocks do too.
///
/// What is released is what the handle names, whatever the caller believes: a block that it does not name is left alone, one
/// that was not guessed is read then. That a block is read before its handle takes nothing from the rules: it is written in
/// the state it was read in before the handle is lowered, so that whoever put an address into it since then makes this fail.
///
/// Datastore calls: those of [`release_by_handle`] less 1 trip where the guess is right, so that on a Kubernetes API it is 3
/// for a handle in one block (the reads, the block, the handle); a wrong guess costs its read, and nothing guessed is the trip
/// that it would be without.
///
/// # Errors
/// See [`release_by_handle`]; the account comes with it.
///
/// # Cancellation
/// See [`release_by_handle`].
pub async fn release_by_handle_in<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    handle: &str,
    answered: &[Cidr],
) -> Result<ReleasedHandle, Box<Explained<StoreError, Account>>> {
    let mut account = Account::of(format!("release of handle {}", block::sanitized(handle)));
    match release_handle(store, clock, handle, &blocks_around(answered), &mut account).await {
        Ok(addresses) => {
            // What a lost answer hid is counted, though nobody saw of which block it was.
            account.addresses = addresses;
            Ok(ReleasedHandle { addresses, account })
        }
        Err(error) => Err(Box::new(Explained { error, explain: account })),
    }
}

/// The blocks in which addresses lie as far as their prefixes say: each once, at most as many as are read together.
fn blocks_around(answered: &[Cidr]) -> Vec<Cidr> {
    let around = |cidr: &Cidr| {
        let single = cidr.prefix() == cidr.version().bits();
        let prefix = if single { Pool::default_block_size(cidr.version()) } else { cidr.prefix() };
        Cidr::containing(cidr.network(), prefix)
    };
    let blocks: BTreeSet<Cidr> = answered.iter().filter_map(around).collect();
    blocks.into_iter().take(TOGETHER).collect()
}

async fn release_handle<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    handle: &str,
    guessed: &[Cidr],
    account: &mut Account,
) -> Result<usize, StoreError> {
    let id = block::sanitized(handle);
    let (found, config, pools, early) = futures::join!(
        seen::handle(store, id),
        seen::config(store),
        seen::pools(store),
        seen::each_block(store, guessed)
    );
    let (mut found, cooldown, pools) = (found?, config?.ip_cooldown_seconds, pools?);
    // One that was not there or could not be read is read again once the handle names it: it may have been made meanwhile.
    let early = early.into_iter().filter_map(|read| read.ok().flatten());
    let mut early: BTreeMap<Cidr, Seen<Block>> = early.map(|seen| (seen.value.cidr, seen)).collect();
    let mut released = 0;
    // Per block, what was given back by a commit whose answer was lost, if it was made.
    let mut perhaps: BTreeMap<Cidr, usize> = BTreeMap::new();
    let mut attempts = 0;
    // Entries that the handle keeps: of blocks that cannot be understood, and of blocks that are gone, which may be about to
    // be made, with addresses of this handle in them. The collector takes those off when they have stood for a while (Q9).
    let mut kept: BTreeMap<Cidr, Option<ReadError>> = BTreeMap::new();
    while let Some(seen) = found.take() {
        let known = seen.value.blocks.keys().copied().filter(|cidr| !kept.contains_key(cidr));
        let cidrs: Vec<Cidr> = known.take(TOGETHER).collect();
        let mut blocks = Vec::with_capacity(cidrs.len());
        let reads = join_all(cidrs.iter().map(|cidr| {
            let early = early.remove(cidr);
            async move {
                match early {
                    Some(block) => Ok(Some(block)),
                    None => seen::block(store, *cidr).await,
                }
            }
        }));
        for (cidr, read) in cidrs.iter().zip(reads.await) {
            let held = match read {
                Ok(Some(mut block)) => {
                    block::collect(&mut block.value, cooldown, clock.now());
                    let held = block::held_by(&block.value, id).next().is_some();
                    blocks.push(block);
                    held
                }
                Ok(None) => {
                    account.block(*cidr, BlockEnd::Gone);
                    kept.insert(*cidr, None);
                    false
                }
                Err(error @ ReadError::Malformed { .. }) => {
                    account.block(*cidr, BlockEnd::failed(&error));
                    kept.insert(*cidr, Some(error));
                    true
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(count) = perhaps.remove(cidr)
                && !held
            {
                released += count;
                account.block(*cidr, BlockEnd::Released { addresses: count });
            }
        }
        if blocks.is_empty() && !seen.value.blocks.is_empty() {
            // Nothing more can be done.
            return match kept.into_values().flatten().next() {
                Some(error) => Err(error.into()),
                None => Ok(released),
            };
        }
        let plan = plan::plan_release_of_handle(&seen, &blocks, cooldown, clock.now());
        let (done, deselected) =
            futures::join!(store.commit(&[], &plan.writes), deselected(store, &pools, &plan.emptied));
        match done {
            Ok(versions) => {
                released += note(account, &plan.counts, plan.counts.len());
                found = match (plan.writes.last(), versions.last()) {
                    (Some(Write::Update(Record::Handle(left), _)), Some(version)) => {
                        Some(Seen::written(left.clone(), version.clone(), seen.created))
                    }
                    _ => None,
                };
                give_up_all(store, clock, deselected, account).await;
                continue;
            }
            // Nothing can be lost by looking again: what is released already is not found by the handle any more.
            Err(CommitError::Conflict { written, key }) => {
                account.conflict(&key);
                released += note(account, &plan.counts, written);
            }
            Err(CommitError::Unknown { .. }) => perhaps.extend(plan.counts.iter().copied()),
            Err(error) => return Err(error.into()),
        }
        attempts += 1;
        if attempts >= ATTEMPTS {
            return Err(StoreError::Contention { what: format!("the release of {id}") });
        }
        // The handle is read before the blocks, so that entries are only taken off it by what the blocks say now.
        found = seen::handle(store, id).await?;
    }
    // The handle goes last: where it is gone, everything before was made.
    Ok(released + perhaps.values().sum::<usize>())
}

/// Notes the blocks whose writes were made, and answers how many addresses that gave back.
fn note(account: &mut Account, counts: &[(Cidr, usize)], written: usize) -> usize {
    let made = counts.iter().take(written);
    made.clone().for_each(|(cidr, count)| account.block(*cidr, BlockEnd::Released { addresses: *count }));
    made.map(|(_, count)| count).sum()
}

/// Gives back particular addresses, each only if it still is what the caller saw.
///
/// Addresses of disabled and deleted pools too. One block's failure does not stop the others; within a block it is all
/// or nothing.
///
/// Datastore calls, as trips where commits are atomic: 3 for addresses of one block whose handles are named, of 2 reads
/// (pools, configuration) and 1 per handle, 1 read per block, and 1 commit; 1 trip more if a handle is not named. Each
/// further block: 1 commit. If an address lies in no pool or in no block of its pool's size: 1 list of blocks more. Handles
/// and blocks are read 24 at a time; more than 24 handles are listed. A block that becomes empty in a pool that is not for all
/// nodes: 2 reads more.
///
/// # Errors
/// [`StoreError`] if pools, configuration or handles could not be read: nothing is released then; or the list of blocks: only
/// addresses in blocks of their pools' sizes may be released then. The call may be repeated.
pub async fn release_addresses<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    releases: &[Release],
) -> Result<ReleasedAddresses, StoreError> {
    let named: BTreeSet<&str> =
        releases.iter().filter_map(|release| release.handle.as_deref()).map(block::sanitized).collect();
    let mut handles = KnownHandles::default();
    let (config, pools, known) =
        futures::join!(seen::config(store), seen::pools(store), handles.look(store, named));
    let (config, pools) = (config?, pools?);
    known?;
    let mut run = Run {
        store,
        clock,
        cooldown_seconds: config.ip_cooldown_seconds,
        pools,
        handles,
        outcome: ReleasedAddresses {
            account: Account::of(format!("release of {} addresses", releases.len())),
            ..ReleasedAddresses::default()
        },
    };
    let mut by_block: BTreeMap<Cidr, Vec<Release>> = BTreeMap::new();
    let mut homeless = Vec::new();
    for release in releases {
        let pool = run.pools.iter().map(|seen| &seen.value).find(|pool| pool.cidr.contains(release.address));
        match pool.and_then(|pool| Cidr::containing(release.address, pool.block_size)) {
            Some(cidr) => by_block.entry(cidr).or_default().push(release.clone()),
            None => homeless.push(release.clone()),
        }
    }
    homeless.extend(run.blocks(by_block).await);
    if homeless.is_empty() {
        return Ok(run.outcome);
    }
    // No pool, or one that was made anew with another block size: the blocks themselves know.
    let blocks = seen::blocks(store).await?;
    let mut by_block: BTreeMap<Cidr, Vec<Release>> = BTreeMap::new();
    for release in homeless {
        match blocks.iter().find(|seen| seen.value.cidr.contains(release.address)) {
            Some(seen) => by_block.entry(seen.value.cidr).or_default().push(release),
            None => run.outcome.not_allocated.push(release.address),
        }
    }
    let gone = run.blocks(by_block).await;
    run.outcome.not_allocated.extend(gone.iter().map(|release| release.address));
    Ok(run.outcome)
}

/// Handles as read or written, by sanitised id; `None` for one that does not exist.
#[derive(Default)]
struct KnownHandles(BTreeMap<String, Option<Seen<Handle>>>);

impl KnownHandles {
    /// Reads those of these that are not known: one by one but together, or by one list where they are many.
    async fn look<D: Datastore>(
        &mut self,
        store: &D,
        ids: impl IntoIterator<Item = &str>,
    ) -> Result<(), StoreError> {
        let unknown: Vec<&str> =
            ids.into_iter().filter(|id| !id.is_empty() && !self.0.contains_key(*id)).collect();
        if unknown.len() > TOGETHER {
            let mut all: BTreeMap<String, Seen<Handle>> =
                seen::list::<Handle, D>(store, &Scope::All(Kind::Handle))
                    .await?
                    .into_iter()
                    .map(|seen| (seen.value.id.clone(), seen))
                    .collect();
            self.0.extend(unknown.into_iter().map(|id| (id.to_owned(), all.remove(id))));
            return Ok(());
        }
        let read = join_all(unknown.iter().map(|id| seen::handle(store, id))).await;
        for (id, seen) in unknown.into_iter().zip(read) {
            self.0.insert(id.to_owned(), seen?);
        }
        Ok(())
    }

    fn of(&self, ids: &BTreeSet<String>) -> Handles {
        ids.iter().filter_map(|id| Some((id.clone(), self.0.get(id)?.clone()?))).collect()
    }

    fn wrote(&mut self, writes: &[Write], versions: &[Version]) {
        for (write, version) in writes.iter().zip(versions) {
            let Record::Handle(handle) = write.record() else { continue };
            let left = match write {
                Write::Delete(..) => None,
                _ => Some(Seen::written(handle.clone(), version.clone(), None)),
            };
            self.0.insert(handle.id.clone(), left);
        }
    }

    fn forget(&mut self, ids: &BTreeSet<String>) {
        self.0.retain(|id, _| !ids.contains(id));
    }
}

struct Run<'a, D> {
    store: &'a D,
    clock: &'a dyn Clock,
    cooldown_seconds: u32,
    pools: Vec<Seen<Pool>>,
    handles: KnownHandles,
    outcome: ReleasedAddresses,
}

impl<D: Datastore> Run<'_, D> {
    /// Gives back what is named in these blocks. Returns what is named in those that do not exist.
    async fn blocks(&mut self, by_block: BTreeMap<Cidr, Vec<Release>>) -> Vec<Release> {
        let mut homeless = Vec::new();
        let by_block: Vec<(Cidr, Vec<Release>)> = by_block.into_iter().collect();
        for some in by_block.chunks(TOGETHER) {
            let cidrs: Vec<Cidr> = some.iter().map(|(cidr, _)| *cidr).collect();
            let blocks = seen::each_block(self.store, &cidrs).await;
            for ((cidr, releases), block) in some.iter().zip(blocks) {
                let block = match block {
                    Ok(Some(block)) => block,
                    Ok(None) => {
                        homeless.extend(releases.iter().cloned());
                        continue;
                    }
                    Err(error) => {
                        self.outcome.account.block(*cidr, BlockEnd::failed(&error));
                        self.outcome.failed.push((*cidr, StoreError::from(error).into()));
                        continue;
                    }
                };
                match self.block(block, releases).await {
                    Ok((released, not_allocated)) => {
                        let addresses = released.len();
                        self.outcome.account.block(*cidr, BlockEnd::Released { addresses });
                        self.outcome.released.extend(released);
                        self.outcome.not_allocated.extend(not_allocated);
                    }
                    Err(failure) => {
                        self.outcome.account.block(*cidr, BlockEnd::failed(&failure));
                        self.outcome.failed.push((*cidr, failure));
                    }
                }
            }
        }
        homeless
    }

    /// Gives back what is named in one block as read. Returns what was given back, and what was not allocated.
    async fn block(
        &mut self,
        block: Seen<Block>,
        releases: &[Release],
    ) -> Result<(Vec<IpAddr>, Vec<IpAddr>), ReleaseFailure> {
        let cidr = block.value.cidr;
        let mut block = block;
        // What earlier attempts freed for certain or perhaps, and the handles that may not know of it yet.
        let (mut freed, mut perhaps) = (BTreeSet::new(), BTreeSet::new());
        let mut owing: BTreeSet<String> = BTreeSet::new();
        for _ in 0..ATTEMPTS {
            let now = self.clock.now();
            block::collect(&mut block.value, self.cooldown_seconds, now);
            freed.extend(perhaps.iter().copied().filter(|address| is_free(&block.value, *address)));
            perhaps.clear();
            let wanted: Vec<Release> =
                releases.iter().filter(|release| !freed.contains(&release.address)).cloned().collect();
            let mut rehearsal = block.value.clone();
            let touched = block::release(&mut rehearsal, &wanted, self.cooldown_seconds, now)?.by_handle;
            let ids: BTreeSet<String> = touched.into_keys().chain(owing.iter().cloned()).collect();
            self.handles.look(self.store, ids.iter().map(String::as_str)).await?;
            let (plan, outcome) = plan_release_again(
                &block,
                &wanted,
                &owing,
                &self.handles.of(&ids),
                self.cooldown_seconds,
                now,
            )?;
            let done =
                |freed: BTreeSet<IpAddr>| Ok((freed.into_iter().collect(), outcome.not_allocated.clone()));
            if plan.writes.is_empty() {
                return done(freed);
            }
            let now_freed = outcome.ordinals.iter().filter_map(|ordinal| cidr.address(*ordinal));
            match self.store.commit(&[], &plan.writes).await {
                Ok(versions) => {
                    self.handles.wrote(&plan.writes, &versions);
                    freed.extend(now_freed);
                    if let Some(block) = plan.block.as_ref().filter(|block| block::is_empty(block)) {
                        let empty = std::slice::from_ref(block);
                        let found = deselected(self.store, &self.pools, empty).await;
                        give_up_all(self.store, self.clock, found, &mut self.outcome.account).await;
                    }
                    return done(freed);
                }
                // The block is written first: what conflicted was a handle.
                Err(CommitError::Conflict { written, key }) if written > 0 => {
                    self.outcome.account.conflict(&key);
                    freed.extend(now_freed);
                    owing.extend(ids.iter().cloned());
                }
                Err(CommitError::Conflict { key, .. }) => self.outcome.account.conflict(&key),
                Err(CommitError::Unknown { .. }) => {
                    perhaps.extend(now_freed);
                    owing.extend(ids.iter().cloned());
                }
                Err(error) => return Err(StoreError::from(error).into()),
            }
            // Handles are read before the block, so that a count is only lowered by what the block says now.
            self.handles.forget(&ids);
            self.handles.look(self.store, ids.iter().map(String::as_str)).await?;
            match seen::block(self.store, cidr).await.map_err(StoreError::from)? {
                Some(again) => block = again,
                None => {
                    freed.append(&mut perhaps);
                    let (released, not_allocated) = releases
                        .iter()
                        .map(|release| release.address)
                        .partition(|address| freed.contains(address));
                    return Ok((released, not_allocated));
                }
            }
        }
        Err(StoreError::Contention { what: format!("the release of addresses in {cidr}") }.into())
    }
}

/// Whether nobody holds this address: it is free or cools down.
fn is_free(block: &Block, address: IpAddr) -> bool {
    block::attribute_of(block, address).is_none_or(|attribute| attribute.released_at.is_some())
}

/// Those of these empty blocks whose pool no longer is for their node (algorithm §12.1).
///
/// Datastore calls: 1 read per block of a pool that is not for all nodes, at once.
async fn deselected<'b, D: Datastore>(
    store: &D,
    pools: &[Seen<Pool>],
    empty: &'b [Block],
) -> Result<Vec<&'b Block>, StoreError> {
    let mut found = Vec::new();
    for some in empty.chunks(TOGETHER) {
        let judged = join_all(some.iter().map(|block| async move {
            let owner = block.affinity.as_ref().filter(|owner| owner.kind == OwnerKind::Host);
            let choosy = home(pools, block.cidr).filter(|pool| is_choosy(&pool.node_selector));
            let (Some(owner), Some(_)) = (owner, choosy) else { return Ok(None) };
            let node: Option<Seen<Node>> = seen::get(store, &Key::Node(owner.name.clone())).await?;
            let out = node.is_some_and(|node| is_deselected(pools, &node.value.labels, block.cidr));
            Ok::<_, StoreError>(out.then_some(block))
        }))
        .await;
        for block in judged {
            found.extend(block?);
        }
    }
    Ok(found)
}

/// Whether a node selector may leave a node out: the two that never do need no look at the node.
fn is_choosy(selector: &str) -> bool {
    !matches!(selector.trim(), "" | "all()")
}

/// Gives up blocks whose addresses were released: that is done, whether this succeeds or not (algorithm §12.4). What stays is
/// given up by its owner's next request.
async fn give_up_all<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    found: Result<Vec<&Block>, StoreError>,
    account: &mut Account,
) {
    for block in found.into_iter().flatten() {
        account.block(block.cidr, BlockEnd::Deselected);
        let _ = give_up(store, clock, block).await;
    }
}

/// Gives up a block if it still is empty.
async fn give_up<D: Datastore>(store: &D, clock: &dyn Clock, block: &Block) -> Result<(), StoreError> {
    let Some(owner) = &block.affinity else { return Ok(()) };
    let terms = ReleaseTerms { must_be_empty: true, ..ReleaseTerms::default() };
    match affinity::release_affinity(store, clock, owner, block.cidr, terms).await {
        Err(ReleaseAffinityError::Store(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Gives up an empty block whose pool no longer is for its node (algorithm §12.1).
///
/// # Errors
/// [`StoreError`] if the node or pools cannot be read.
pub(crate) async fn give_up_if_deselected<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    block: &Block,
) -> Result<(), StoreError> {
    if block.affinity.is_none() || !block::is_empty(block) {
        return Ok(());
    }
    let pools = seen::pools(store).await?;
    for block in deselected(store, &pools, std::slice::from_ref(block)).await? {
        give_up(store, clock, block).await?;
    }
    Ok(())
}
