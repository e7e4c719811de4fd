//! Handing out addresses (algorithm §10 and §11): from the node's own blocks, from a newly claimed one, then from others'.
//!
//! This is the direct way, for callers without an agent: it reads what it needs. The agent keeps the same state by
//! watch and shares the planning ([`crate::plan`]).

use crate::affinity::{self, Claim, ClaimError, Claimed, Known, ReleaseAffinityError, ReleaseTerms};
use crate::block::{self, TakeError, Taken};
use crate::candidate;
use crate::clock::Clock;
use crate::explain::{BlockOutcome, Explain, Few, PoolFill, Shortage};
use crate::failure::{ATTEMPTS, StoreError};
use crate::plan::{self, AddressRequest, BlockPlan, Handles, TakeRules, Want};
use crate::pools::{self, PoolRequest, SelectError, Selection};
use crate::reservations::ReservationSet;
use crate::seen::{self, Seen};
use crate::vacancy::{self, Search, Vacant};
use api::{Affinity, Block, Cidr, IpVersion, IpamConfig, Node, Owner, OwnerKind, Pool, Use};
use datastore::{CommitError, Datastore, Key, Kind, Scope};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

/// Blocks that a node may own per IP version where nothing says otherwise.
pub const DEFAULT_MAX_BLOCKS: u32 = 20;

/// A request for any addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignRequest {
    /// Who asks: a node, or the virtual owner of LoadBalancer addresses.
    pub owner: Owner,
    /// Family.
    pub version: IpVersion,
    /// What for.
    pub intended_use: Use,
    /// How many, and who will hold them.
    pub want: Want,
    /// Pools asked for by CIDR; empty: any eligible.
    pub pools: Vec<Cidr>,
    /// Labels of the pod's namespace.
    pub namespace_labels: BTreeMap<String, String>,
    /// Blocks the owner may have; 0: as configured.
    pub max_blocks: u32,
    /// Addresses of this family that the handle may hold; 0: any number.
    pub max_per_handle: u32,
}

impl AssignRequest {
    /// A request without special wishes: any eligible pool, limits as configured.
    pub fn new(owner: Owner, version: IpVersion, intended_use: Use, want: Want) -> Self {
        Self {
            owner,
            version,
            intended_use,
            want,
            pools: Vec::new(),
            namespace_labels: BTreeMap::new(),
            max_blocks: 0,
            max_per_handle: 0,
        }
    }
}

/// What was handed out, perhaps less than wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The addresses.
    pub taken: Vec<Taken>,
    /// How it came to that; its shortage says why it is less than wanted.
    pub explain: Explain,
}

/// Why the request could not be worked on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// No pool may be used.
    #[error(transparent)]
    Pools(#[from] SelectError),
    /// The node is not in the datastore.
    #[error("node {node} does not exist: register it, or correct the node name")]
    NoSuchNode {
        /// Its name.
        node: String,
    },
    /// The store failed. What was taken before stays taken: release it or ask again by the same handle.
    #[error("assigning addresses was interrupted after {} of them", taken.len())]
    Interrupted {
        /// Taken before.
        taken: Vec<Taken>,
        /// What failed.
        #[source]
        source: StoreError,
    },
}

/// What one request works with, read once.
struct Setting {
    config: IpamConfig,
    reserved: ReservationSet,
    pools: BTreeMap<String, Seen<Pool>>,
    selection: Selection,
    affine: VecDeque<Seen<Affinity>>,
}

/// Hands out up to `want.count` addresses. Running out is not an error: the account says why.
///
/// Datastore calls with room in the first own block: 7 reads (configuration, reservations, node, pools, affinities, block,
/// handle) and 1 commit. With a new block: as many reads (all blocks at once in place of one) and 3 commits. Each full own
/// block before: 2 reads more. Borrowing: 2 lists of all blocks, and 1 read and 1 commit per block tried.
///
/// # Errors
/// See [`AssignError`].
///
/// # Cancellation
/// May leave addresses assigned that nobody was told of; they are found by their handle.
pub async fn assign<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    request: &AssignRequest,
) -> Result<Assigned, AssignError> {
    let explain = Explain::new(&request.owner.name, request.version, request.want.count);
    let mut run = Run { store, clock, request, taken: Vec::new(), explain };
    // A pool that changes while a block of it is claimed is rare; what was taken before stays.
    for _ in 0..ATTEMPTS {
        match run.once().await {
            Ok(()) => {
                run.explain.assigned = run.taken.len();
                return Ok(Assigned { taken: run.taken, explain: run.explain });
            }
            Err(Stop::Restart) => {}
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Store(source)) => return Err(AssignError::Interrupted { taken: run.taken, source }),
        }
    }
    let source = StoreError::Contention { what: format!("addresses for {}", request.owner) };
    Err(AssignError::Interrupted { taken: run.taken, source })
}

enum Stop {
    /// The pools changed: read everything again.
    Restart,
    Failed(AssignError),
    Store(StoreError),
}

impl<E: Into<StoreError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}

struct Run<'a, D> {
    store: &'a D,
    clock: &'a dyn Clock,
    request: &'a AssignRequest,
    taken: Vec<Taken>,
    explain: Explain,
}

impl<D: Datastore> Run<'_, D> {
    fn missing(&self) -> Want {
        let want = &self.request.want;
        Want { count: want.count.saturating_sub(self.taken.len()), ..want.clone() }
    }

    fn satisfied(&self) -> bool {
        self.taken.len() >= self.request.want.count
    }

    async fn once(&mut self) -> Result<(), Stop> {
        let mut setting = self.setting().await?;
        self.explain.considered(setting.selection.considered.clone());
        let limit = block_limit(self.request.max_blocks, setting.config.max_blocks_per_host);
        let mut owned = u32::try_from(setting.affine.len()).unwrap_or(u32::MAX);
        while !self.satisfied() {
            if let Some(affinity) = setting.affine.pop_front() {
                self.take_from_own(&setting, affinity).await?;
            } else if owned >= limit {
                self.explain.shortage = Some(Shortage::BlockLimit { limit, owned });
                return Ok(());
            } else if !setting.config.auto_allocate_blocks {
                self.explain.shortage = Some(Shortage::AutoAllocateOff);
                return Ok(());
            } else if self.take_from_new(&setting).await? {
                owned += 1;
            } else {
                break;
            }
        }
        if !self.satisfied() {
            self.borrow(&setting).await?;
        }
        Ok(())
    }

    /// Reads what the request works with (algorithm §6 and §7), and gives up empty blocks of pools that are no longer for us.
    async fn setting(&self) -> Result<Setting, Stop> {
        let (store, request) = (self.store, self.request);
        let config = seen::config(store).await?;
        let reservations: Vec<Seen<api::Reservation>> =
            seen::list(store, &Scope::All(Kind::Reservation)).await?;
        let reserved = ReservationSet::new(reservations.iter().map(|seen| &seen.value));
        let labels = self.node_labels().await?;
        let pools = seen::pools(store).await?;
        let asked = PoolRequest {
            version: request.version,
            requested: &request.pools,
            node: &request.owner.name,
            node_labels: &labels,
            namespace_labels: &request.namespace_labels,
            intended_use: request.intended_use,
            max_prefix: request.version.bits(),
        };
        let selection = pools::select(pools.iter().map(|seen| &seen.value), &asked)
            .map_err(|error| Stop::Failed(error.into()))?;
        let held: Vec<Seen<Affinity>> =
            seen::list(store, &Scope::AffinitiesOf(request.owner.clone())).await?;
        let mut affine = VecDeque::new();
        for affinity in held.into_iter().filter(|seen| seen.value.cidr.version() == request.version) {
            let cidr = affinity.value.cidr;
            if selection.usable.iter().any(|pool| pool.cidr.contains_cidr(cidr)) {
                affine.push_back(affinity);
            } else if deselected(&pools, &selection, &labels, cidr) {
                self.give_up(cidr).await?;
            }
        }
        let pools = pools.into_iter().map(|seen| (seen.value.name.clone(), seen)).collect();
        Ok(Setting { config, reserved, pools, selection, affine })
    }

    async fn node_labels(&self) -> Result<BTreeMap<String, String>, Stop> {
        let owner = &self.request.owner;
        if owner.kind == OwnerKind::Virtual {
            return Ok(BTreeMap::new());
        }
        let node: Option<Seen<Node>> = seen::get(self.store, &Key::Node(owner.name.clone())).await?;
        node.map(|seen| seen.value.labels)
            .ok_or_else(|| Stop::Failed(AssignError::NoSuchNode { node: owner.name.clone() }))
    }

    /// Gives up a block of ours if it is empty; one in use is left alone.
    async fn give_up(&self, cidr: Cidr) -> Result<(), Stop> {
        let terms = ReleaseTerms { must_be_empty: true, ..ReleaseTerms::default() };
        match affinity::release_affinity(self.store, self.clock, &self.request.owner, cidr, terms).await {
            Err(ReleaseAffinityError::Store(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes from a block that we have, or ought to have, an affinity for.
    async fn take_from_own(&mut self, setting: &Setting, affinity: Seen<Affinity>) -> Result<(), Stop> {
        let cidr = affinity.value.cidr;
        let Some(pool) = pool_of(setting, cidr).filter(|_| !setting.reserved.covers(cidr)) else {
            self.explain.tried(cidr, BlockOutcome::Full);
            return Ok(());
        };
        match self.claim(setting, pool, cidr, Known::Found(affinity)).await? {
            Some(claimed) => self.take_from_claimed(setting, claimed).await,
            None => Ok(()),
        }
    }

    /// Claims a block and takes from it. False: there is none left to claim.
    async fn take_from_new(&mut self, setting: &Setting) -> Result<bool, Stop> {
        for _ in 0..ATTEMPTS {
            let blocks = seen::blocks(self.store).await?;
            let Some(Vacant { pool, cidr, known }) = self.find_usable(setting, &blocks).await? else {
                let all: Vec<Block> = blocks.into_iter().map(|seen| seen.value).collect();
                self.explain.shortage = Some(shortage(setting, &self.request.owner, &all));
                return Ok(false);
            };
            if let Some(claimed) = self.claim(setting, pool, cidr, known).await? {
                let outcome = if claimed.made { BlockOutcome::Claimed } else { BlockOutcome::Took };
                self.explain.tried(cidr, outcome);
                self.take_from_claimed(setting, claimed).await?;
                return Ok(true);
            }
        }
        Err(StoreError::Contention { what: format!("a new block for {}", self.request.owner) }.into())
    }

    async fn claim(
        &mut self,
        setting: &Setting,
        pool: &Seen<Pool>,
        cidr: Cidr,
        known: Known,
    ) -> Result<Option<Claimed>, Stop> {
        let want = self.missing();
        let claim = Claim {
            want: Some(&want),
            reserved: &setting.reserved,
            ..Claim::of(&self.request.owner, cidr, pool)
        };
        match affinity::claim(self.store, self.clock, &claim, known).await {
            Ok(claimed) => Ok(Some(claimed)),
            Err(ClaimError::Taken { .. }) => {
                self.explain.tried(cidr, BlockOutcome::LostRace);
                Ok(None)
            }
            Err(ClaimError::PoolChanged { .. }) => Err(Stop::Restart),
            Err(ClaimError::Store(error)) => Err(error.into()),
        }
    }

    /// Counts what a claim brought, or takes from the block if it was there already.
    async fn take_from_claimed(&mut self, setting: &Setting, claimed: Claimed) -> Result<(), Stop> {
        if claimed.made {
            self.taken.extend(claimed.taken);
            return Ok(());
        }
        let only = setting.config.strict_affinity.then_some(&self.request.owner);
        self.take_from_block(setting, claimed.block, only, BlockOutcome::Took).await
    }

    /// Takes from a block as read, reading it again after each conflict.
    async fn take_from_block(
        &mut self,
        setting: &Setting,
        block: Seen<Block>,
        only_owner: Option<&Owner>,
        outcome: BlockOutcome,
    ) -> Result<(), Stop> {
        let cidr = block.value.cidr;
        let want = self.missing();
        let rules = TakeRules { reserved: &setting.reserved, avoid: &BTreeSet::new(), only_owner };
        let cooldown = setting.config.ip_cooldown_seconds;
        let taken = take_from(self.store, self.clock, block, &want, &rules, cooldown).await?;
        self.explain.tried(cidr, if taken.is_empty() { BlockOutcome::Full } else { outcome });
        self.taken.extend(taken);
        Ok(())
    }

    /// Finds a block to claim (algorithm §8): one that does not exist, or one that its owner does not use.
    async fn find_usable<'s>(
        &self,
        setting: &'s Setting,
        blocks: &[Seen<Block>],
    ) -> Result<Option<Vacant<'s>>, Stop> {
        let search = Search {
            owner: &self.request.owner,
            reserved: &setting.reserved,
            cooldown_seconds: setting.config.ip_cooldown_seconds,
            now: self.clock.now(),
        };
        let found = search.among(usable(setting), blocks);
        if found.first.is_some() {
            return Ok(found.first);
        }
        for (pool, block) in found.reclaimable {
            if vacancy::reclaim(self.store, self.clock, &block).await? {
                return Ok(Some(Vacant { pool, cidr: block.value.cidr, known: Known::Unread }));
            }
        }
        Ok(None)
    }

    /// Takes from blocks of others, unless strict affinity forbids it.
    async fn borrow(&mut self, setting: &Setting) -> Result<(), Stop> {
        // A tunnel's address must be routed to its node before any route of a borrowed one can come over the tunnel.
        if setting.config.strict_affinity || self.request.intended_use == Use::Tunnel {
            return Ok(());
        }
        let now = self.clock.now();
        let blocks = seen::blocks(self.store).await?;
        let mut by_cidr: BTreeMap<Cidr, Seen<Block>> =
            blocks.into_iter().map(|seen| (seen.value.cidr, seen)).collect();
        for pool in usable(setting) {
            let existing = by_cidr.keys().copied().collect::<Vec<_>>();
            for cidr in candidate::in_order(&pool.value, &self.request.owner.name, now, existing) {
                if self.satisfied() {
                    self.explain.shortage = None;
                    return Ok(());
                }
                let Some(seen) = by_cidr.remove(&cidr) else { continue };
                let mut collected = seen.value.clone();
                block::collect(&mut collected, setting.config.ip_cooldown_seconds, now);
                if block::free_count(&collected, &setting.reserved) > 0 {
                    self.take_from_block(setting, seen, None, BlockOutcome::Borrowed).await?;
                }
            }
        }
        if self.satisfied() {
            self.explain.shortage = None;
        }
        Ok(())
    }
}

/// The stricter of what the request and the configuration allow; 20 where neither says anything.
pub fn block_limit(requested: u32, configured: u32) -> u32 {
    match (requested, configured) {
        (0, 0) => DEFAULT_MAX_BLOCKS,
        (0, limit) | (limit, 0) => limit,
        (requested, configured) => requested.min(configured),
    }
}

fn usable(setting: &Setting) -> impl Iterator<Item = &Seen<Pool>> {
    setting.selection.usable.iter().filter_map(|pool| setting.pools.get(&pool.name))
}

fn pool_of(setting: &Setting, cidr: Cidr) -> Option<&Seen<Pool>> {
    usable(setting).find(|pool| pool.value.cidr.contains_cidr(cidr))
}

/// Whether a block of ours lies in an enabled pool whose node selector is no longer for us (algorithm §7.3).
fn deselected(
    pools: &[Seen<Pool>],
    selection: &Selection,
    labels: &BTreeMap<String, String>,
    cidr: Cidr,
) -> bool {
    if selection.selecting.iter().any(|pool| pool.cidr.contains_cidr(cidr)) {
        return false;
    }
    let home =
        pools.iter().map(|seen| &seen.value).find(|pool| pool.is_enabled() && pool.cidr.contains_cidr(cidr));
    home.is_some_and(|pool| pools::selects_node(pool, labels) == Ok(false))
}

/// Why no block can be claimed for `owner` and nothing is left to take, given all blocks.
fn shortage(setting: &Setting, owner: &Owner, blocks: &[Block]) -> Shortage {
    let pools: Few<PoolFill> = usable(setting)
        .map(|pool| {
            PoolFill::of(
                &pool.value,
                blocks.iter().map(|block| (&block.cidr, block.affinity.as_ref() == Some(owner))),
            )
        })
        .collect();
    let queued = blocks
        .iter()
        .filter(|block| usable(setting).any(|pool| pool.value.cidr.contains_cidr(block.cidr)))
        .any(|block| !block.unallocated.is_empty());
    let reserved = !setting.reserved.is_empty()
        && (queued || pools.listed().iter().any(|fill| fill.claimed < fill.blocks));
    if setting.config.strict_affinity {
        Shortage::StrictAffinity { pools }
    } else if reserved {
        Shortage::Reserved { pools }
    } else {
        Shortage::PoolsFull { pools }
    }
}

/// Takes addresses from one block as read: handle and block in one commit, read again and planned again on a conflict.
///
/// Returns what was taken, perhaps nothing: the block is full, or is not `rules.only_owner`'s, or is gone.
///
/// Datastore calls: 1 read (the handle, if any) and 1 commit; after each conflict 2 reads and 1 commit more.
///
/// # Errors
/// [`StoreError`]. A commit whose answer was lost is looked up and not repeated blindly (invariant I40).
pub async fn take_from<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    block: Seen<Block>,
    want: &Want,
    rules: &TakeRules<'_>,
    cooldown_seconds: u32,
) -> Result<Vec<Taken>, StoreError> {
    // A block that changed hands has nothing for us: as good as full.
    let planned = |seen: &Seen<Block>, handles: &Handles| {
        plan::plan_take(seen, std::slice::from_ref(want), handles, rules).ok()
    };
    let taken = commit_on(store, clock, block, want.handle.as_deref(), cooldown_seconds, planned).await?;
    Ok(taken.into_iter().flatten().flatten().collect())
}

/// Plans on a block, commits, and starts over on a conflict. `None`: the plan had nothing to write, or there is no block.
async fn commit_on<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    block: Seen<Block>,
    handle: Option<&str>,
    cooldown_seconds: u32,
    planned: impl Fn(&Seen<Block>, &Handles) -> Option<BlockPlan>,
) -> Result<Option<Vec<Vec<Taken>>>, StoreError> {
    let cidr = block.value.cidr;
    let mut block = block;
    for _ in 0..ATTEMPTS {
        let mut handles = Handles::new();
        if let Some(id) = handle.map(block::sanitized)
            && let Some(seen) = seen::handle(store, id).await?
        {
            handles.insert(id.to_owned(), seen);
        }
        block::collect(&mut block.value, cooldown_seconds, clock.now());
        let Some(plan) = planned(&block, &handles).filter(|plan| !plan.writes.is_empty()) else {
            return Ok(None);
        };
        let unknown = match store.commit(&[], &plan.writes).await {
            Ok(_) => return Ok(Some(plan.taken)),
            Err(CommitError::Conflict { .. }) => false,
            Err(CommitError::Unknown { .. }) => true,
            Err(error) => return Err(error.into()),
        };
        let Some(again) = seen::block(store, cidr).await? else { return Ok(None) };
        if unknown && holds(&again.value, &plan.taken, handle) {
            return Ok(Some(plan.taken));
        }
        block = again;
    }
    Err(StoreError::Contention { what: format!("addresses of block {cidr}") })
}

/// Whether a block as read back carries these allocations, by ordinal, stamp and handle.
pub fn holds(block: &Block, taken: &[Vec<Taken>], handle: Option<&str>) -> bool {
    taken.iter().flatten().all(|taken| {
        let held = block::attribute_of(block, taken.address);
        let holder = held.and_then(|attribute| attribute.handle_id.as_deref()).map(block::sanitized);
        held.is_some_and(|attribute| attribute.released_at.is_none())
            && block::stamp(block, taken.ordinal) == taken.sequence
            && holder == handle.map(block::sanitized)
    })
}

/// Why one particular address was not assigned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignAddressError {
    /// No enabled pool has it.
    #[error("address {address} is not in a configured pool: choose one that is, or add a pool")]
    NoPool {
        /// The address.
        address: IpAddr,
    },
    /// Its pool is not for this.
    #[error(
        "address {address} is in pool {pool}, which is not allowed for use as {intended_use}: choose another"
    )]
    WrongUse {
        /// The address.
        address: IpAddr,
        /// The pool.
        pool: String,
        /// The use.
        intended_use: &'static str,
    },
    /// Its block would overlap one of another size, made when the pool had another block size.
    #[error(
        "address {address} would need block {block}, which overlaps block {other} of an earlier block size: release what \
         block {other} holds first"
    )]
    Overlap {
        /// The address.
        address: IpAddr,
        /// The block that would be made.
        block: Cidr,
        /// The block that is there.
        other: Cidr,
    },
    /// It is assigned, or its block is another's under strict affinity.
    #[error(transparent)]
    Refused(#[from] TakeError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Assigns one particular address. Selectors, reservations and the block limit do not apply.
///
/// An address that the same handle holds already is answered with success.
///
/// Datastore calls: 4 reads (pools, configuration, block, handle) and 1 commit; where the block does not exist 1 list of
/// blocks and 2 commits more.
///
/// # Errors
/// See [`AssignAddressError`].
pub async fn assign_address<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    request: &AddressRequest,
) -> Result<Taken, AssignAddressError> {
    let address = request.address;
    let pools = seen::pools(store).await.map_err(StoreError::from)?;
    let pool = pools
        .iter()
        .find(|pool| pool.value.is_enabled() && pool.value.cidr.contains(address))
        .ok_or(AssignAddressError::NoPool { address })?;
    if let Some(wrong) = request.intended_use.filter(|wanted| !pool.value.allowed_uses.contains(wanted)) {
        let pool = pool.value.name.clone();
        return Err(AssignAddressError::WrongUse { address, pool, intended_use: wrong.as_str() });
    }
    let config = seen::config(store).await.map_err(StoreError::from)?;
    let mut cidr =
        Cidr::containing(address, pool.value.block_size).ok_or(AssignAddressError::NoPool { address })?;
    let only_owner = config.strict_affinity.then_some(&request.owner);
    for _ in 0..ATTEMPTS {
        let Some(block) = seen::block(store, cidr).await.map_err(StoreError::from)? else {
            // Listed after the pool was read, so that only a changed pool, which the claim notices, has other blocks.
            let blocks = seen::blocks(store).await.map_err(StoreError::from)?;
            let others: Vec<Cidr> = blocks.iter().map(|seen| seen.value.cidr).collect();
            if let Some(around) = others.iter().find(|other| other.contains(address)) {
                cidr = *around;
                continue;
            }
            if let Some(other) = others.iter().copied().find(|other| other.overlaps(cidr)) {
                return Err(AssignAddressError::Overlap { address, block: cidr, other });
            }
            let claim = Claim::of(&request.owner, cidr, pool);
            match affinity::claim(store, clock, &claim, Known::Unread).await {
                // Lost to another node: its block is there now (quirk Q6).
                Ok(_) | Err(ClaimError::Taken { .. }) => continue,
                Err(ClaimError::PoolChanged { .. }) => return Err(AssignAddressError::NoPool { address }),
                Err(ClaimError::Store(error)) => return Err(error.into()),
            }
        };
        if let Some(taken) = held_already(&block.value, request) {
            return Ok(taken);
        }
        let refusal = std::cell::Cell::new(None);
        let planned = |seen: &Seen<Block>, handles: &Handles| {
            plan::plan_assign(seen, request, handles, only_owner)
                .map_err(|error| refusal.set(Some(error)))
                .ok()
        };
        let handle = request.handle.as_deref();
        let taken = commit_on(store, clock, block, handle, config.ip_cooldown_seconds, planned).await?;
        if let Some(taken) = taken.into_iter().flatten().flatten().next() {
            return Ok(taken);
        }
        if let Some(refusal) = refusal.take() {
            return Err(refusal.into());
        }
    }
    Err(StoreError::Contention { what: format!("address {address}") }.into())
}

/// The allocation of the requested address, if the requesting handle has it.
fn held_already(block: &Block, request: &AddressRequest) -> Option<Taken> {
    let wanted = block::sanitized(request.handle.as_deref()?);
    let held = block::attribute_of(block, request.address)?;
    if held.handle_id.as_deref().map(block::sanitized) != Some(wanted) {
        return None;
    }
    let ordinal = block.cidr.ordinal(request.address)?;
    Some(Taken {
        block: block.cidr,
        ordinal,
        address: request.address,
        sequence: block::stamp(block, ordinal),
    })
}
