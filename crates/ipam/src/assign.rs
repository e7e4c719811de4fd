//! Handing out addresses (algorithm §10): from the node's own blocks, from a newly claimed one, then from others'.
//!
//! This is the direct way, for callers without an agent: it reads what it needs, and what can be read together is read
//! together. A *trip* is a set of requests that are under way at the same time. The agent keeps the same state by watch
//! and shares the planning ([`crate::plan`]).

mod borrow;
mod ensure;

use crate::affinity::{self, Claim, ClaimError, Claimed, Content, Known, ReleaseTerms};
use crate::block::{self, TakeError, Taken};
use crate::candidate;
use crate::cap::{self, AtCap};
use crate::claim;
use crate::clock::Clock;
use crate::explain::{BlockOutcome, Explain, Explained, Relief, Shortage};
use crate::failure::{ATTEMPTS, StoreError};
use crate::host_reserved::{HostReserved, HostReservedError};
use crate::plan::{self, PlanRefusal, TakeRules, Want};
use crate::pools::SelectError;
use crate::seen::{self, AllBlocks, HandleInHand, InTurn, Seen};
use crate::setting::{Setting, World};
use crate::shortage::relief;
use crate::take::{OnBlock, commit_on};
use crate::vacancy::{self, Search, Vacant};
use api::{Affinity, AffinityState, Block, Cidr, IpVersion, Owner, Pool, Use};
use datastore::Datastore;
use jiff::Timestamp;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use ensure::{EnsureBlockError, Ensured, ensure_block};

/// Blocks that a node may own per IP version where nothing says otherwise.
pub const DEFAULT_MAX_BLOCKS: u32 = 20;

/// Own blocks up to which they are looked at in the order of the list, as Calico does.
const FEW_OWN: usize = 4;

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
    /// Ordinals that the owner keeps for itself in every block that it makes.
    pub host_reserved: Option<HostReserved>,
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
            host_reserved: None,
        }
    }
}

/// What was handed out, perhaps less than wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The addresses taken by this request.
    pub taken: Vec<Taken>,
    /// The answer where the handle may not hold more: addresses that it held already, as single ones (algorithm §10.2).
    /// `taken` is then part of them.
    pub held: Vec<Cidr>,
    /// How it came to that; its shortage says why it is less than wanted.
    pub explain: Explain,
}

impl Assigned {
    /// The addresses to answer with: with their block's prefix, or as single ones if the handle held them already.
    pub fn answer(&self) -> Vec<String> {
        if self.held.is_empty() {
            self.taken.iter().map(Taken::with_block_prefix).collect()
        } else {
            self.held.iter().map(Cidr::to_string).collect()
        }
    }

    /// Whether it is as many as were wanted.
    pub fn is_enough(&self) -> bool {
        self.explain.assigned >= self.explain.wanted
    }
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
    /// The ordinals that the host keeps make no sense.
    #[error(transparent)]
    HostReserved(#[from] HostReservedError),
    /// A Windows node cannot use addresses of blocks of others.
    #[error(
        "node {node} runs Windows, which needs strict affinity: run calicoctl ipam configure --strictaffinity=true"
    )]
    StrictAffinityRequired {
        /// The node.
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

/// Hands out up to `want.count` addresses. Running out is not an error: the account says why.
///
/// Datastore calls, as trips where commits are atomic: 3 with room in a confirmed own block, of 6 reads (configuration,
/// reservations, node, pools, affinities, handle), 1 read per own block, and 1 commit; 3 without an own block and with one
/// to be made, where the own blocks' place is taken by the list of all blocks. On a Kubernetes API the commit is 2 requests
/// one after another (handle, block), with a new block 4 trips (affinity and handle, block, pool, affinity). Own blocks
/// that are all full: 1 trip more, of the list. Each further block taken from: 1 commit. Own blocks are read 24 at a time, and
/// where the store answers at once those behind one with room not at all. Affinities that lie across each
/// other: 1 trip more, of the list. Taking an empty block from its owner: 5 trips more. A handle at its cap: 1 read and 1
/// commit per block of it, which renews what is answered.
///
/// # Errors
/// See [`AssignError`]; the account comes with it.
///
/// # Cancellation
/// May leave addresses assigned that nobody was told of; they are found by their handle.
pub async fn assign<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    request: &AssignRequest,
) -> Result<Assigned, Box<Explained<AssignError>>> {
    let mut hand = HandleInHand::unread(request.want.handle.as_deref());
    assign_in(store, clock, request, &mut None, &mut hand).await
}

/// As [`assign`], with what was read already, if anything; what was read last is left there.
pub(crate) async fn assign_in<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    request: &AssignRequest,
    world: &mut Option<World>,
    hand: &mut HandleInHand,
) -> Result<Assigned, Box<Explained<AssignError>>> {
    let explain = Explain::new(&request.owner.name, request.version, request.want.count);
    let mut run = Run { store, clock, request, hand, taken: Vec::new(), held: Vec::new(), explain };
    let failure = match run.carry_out(world).await {
        Ok(()) => None,
        Err(Stop::Failed(error)) => Some(error),
        Err(Stop::Store(source)) => Some(AssignError::Interrupted { taken: run.taken.clone(), source }),
        Err(Stop::Restart | Stop::Answered) => {
            let source = StoreError::Contention { what: format!("addresses for {}", request.owner) };
            Some(AssignError::Interrupted { taken: run.taken.clone(), source })
        }
    };
    let Run { taken, held, mut explain, .. } = run;
    explain.assigned = taken.len().max(held.len());
    match failure {
        None => Ok(Assigned { taken, held, explain }),
        // The pools or the node went while a later block was taken from: what was taken before is told, as when pools run out.
        Some(error) if !taken.is_empty() && !matches!(error, AssignError::Interrupted { .. }) => {
            Ok(Assigned { taken, held, explain })
        }
        Some(error) => Err(Box::new(Explained { error, explain })),
    }
}

enum Stop {
    /// The pools changed: read everything again.
    Restart,
    /// Nothing more is to be done: the request is answered, or cannot be.
    Answered,
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
    hand: &'a mut HandleInHand,
    taken: Vec<Taken>,
    held: Vec<Cidr>,
    explain: Explain,
}

impl<D: Datastore> Run<'_, D> {
    fn missing(&self) -> Want {
        let want = &self.request.want;
        Want { count: want.count.saturating_sub(self.taken.len()), ..want.clone() }
    }

    /// Whether blocks of others may not be used: by strict affinity, and because a tunnel's address must be routed to its
    /// node before any route of a borrowed one can come over the tunnel.
    fn only_own(&self, world: &World) -> bool {
        world.config.strict_affinity || self.request.intended_use == Use::Tunnel
    }

    fn satisfied(&self) -> bool {
        self.taken.len() >= self.request.want.count
    }

    async fn carry_out(&mut self, world: &mut Option<World>) -> Result<(), Stop> {
        // A pool that changes while a block of it is claimed is rare; what was taken before stays.
        for _ in 0..ATTEMPTS {
            let read = match world.take() {
                Some(read) => read,
                None => World::read(self.store, &self.request.owner, self.hand).await?,
            };
            let read = world.insert(read);
            match self.once(read).await {
                Ok(()) | Err(Stop::Answered) => return Ok(()),
                Err(Stop::Restart) => *world = None,
                Err(stop) => return Err(stop),
            }
        }
        Err(Stop::Restart)
    }

    async fn once(&mut self, world: &World) -> Result<(), Stop> {
        let reserved = self.request.host_reserved.as_ref();
        if reserved.is_some_and(HostReserved::is_windows) && !world.config.strict_affinity {
            let node = self.request.owner.name.clone();
            return Err(Stop::Failed(AssignError::StrictAffinityRequired { node }));
        }
        let setting = self.set_out(world)?;
        let careful = if world.may_be_crossed() {
            world.holding_back_shared(&seen::all_blocks(self.store).await?)
        } else {
            None
        };
        let world = careful.as_ref().unwrap_or(world);
        if self.is_over_cap() {
            self.answer_at_cap().await?;
        }
        let unmade = self.take_from_own(world, &setting).await?;
        if !self.satisfied() {
            self.take_from_others(world, &setting, unmade).await?;
        }
        self.give_up(&setting.deselected).await;
        Ok(())
    }

    /// Selects pools and blocks, and notes what became of the pools.
    fn set_out<'w>(&mut self, world: &'w World) -> Result<Setting<'w>, Stop> {
        let setting = Setting::of(world, self.request).map_err(|error| {
            if let AssignError::Pools(error) = &error {
                self.explain.considered(error.considered().to_vec());
            }
            Stop::Failed(error)
        })?;
        self.explain.considered(setting.considered.clone());
        Ok(setting)
    }

    /// Whether what the handle's record counts leaves no room for what is missing.
    fn is_over_cap(&self) -> bool {
        self.limit().is_over(self.hand, self.missing().count)
    }

    fn limit(&self) -> cap::Limit {
        cap::Limit { cap: self.request.max_per_handle, version: self.request.version }
    }

    /// Answers a request whose handle may not hold more with what it holds (algorithm §10.2), and stops. `Ok`: there is room
    /// after all.
    async fn answer_at_cap(&mut self) -> Result<(), Stop> {
        let (limit, want, missing) = (self.limit(), &self.request.want, self.missing().count);
        let (store, clock) = (self.store, self.clock);
        match limit.answer(store, clock, self.hand, &mut self.explain, (want, missing)).await? {
            AtCap::Room => return Ok(()),
            AtCap::Holds(held) => self.held = held,
            AtCap::Short(held) => {
                self.explain.shortage = Some(Shortage::HandleLimit { limit: limit.cap, held });
            }
        }
        Err(Stop::Answered)
    }

    /// Takes from blocks that we have an affinity for. Returns the affinities whose block does not exist.
    async fn take_from_own(
        &mut self,
        world: &World,
        setting: &Setting<'_>,
    ) -> Result<VecDeque<Seen<Affinity>>, Stop> {
        let (mut unmade, mut unsettled) = (VecDeque::new(), Vec::new());
        let (store, own) = (self.store, self.in_order(&setting.affine));
        let mut blocks =
            InTurn::new(own.iter().map(|affinity| affinity.value.cidr), |cidr| seen::block(store, cidr));
        for affinity in own {
            if self.satisfied() {
                return Ok(unmade);
            }
            match blocks.next().await? {
                None => unmade.push_back(affinity.clone()),
                Some(block) if is_settled(affinity, &block) => {
                    self.take_from_block(world, block, BlockOutcome::Took).await?;
                }
                Some(_) => unsettled.push(affinity.clone()),
            }
        }
        unmade.make_contiguous().sort_by_key(|affinity| affinity.value.cidr);
        for affinity in unsettled {
            let cidr = affinity.value.cidr;
            if let Some(pool) = setting.pool_of(cidr).filter(|_| !self.satisfied())
                && let Some(claimed) = self.claim(world, pool, cidr, Known::Found(affinity)).await?
            {
                self.take_from_claimed(world, claimed).await?;
            }
        }
        Ok(unmade)
    }

    /// Own blocks in the order in which they are looked at: as listed where they are few.
    ///
    /// Of many, most are full, and each of them costs a look. The one claimed last comes first, since a node claims when the
    /// others are full; then the others from a place that the handle tells, because what was given back since is anywhere:
    /// whoever always looks from the same end fills that end.
    fn in_order<'w>(&self, affine: &[&'w Seen<Affinity>]) -> Vec<&'w Seen<Affinity>> {
        let mut own = affine.to_vec();
        if own.len() > FEW_OWN {
            let handle = self.hand.id().unwrap_or_default();
            let first = candidate::place_among(own.len(), handle);
            own.rotate_left(first);
            let newest = (0..own.len()).max_by_key(|at| own.get(*at).map(|seen| seen.version.revision));
            if let Some(newest) = newest.and_then(|at| own.get_mut(..=at)) {
                newest.rotate_right(1);
            }
        }
        own
    }

    /// Takes from blocks to be made, from blocks to be taken over, and from blocks of others.
    async fn take_from_others(
        &mut self,
        world: &World,
        setting: &Setting<'_>,
        mut unmade: VecDeque<Seen<Affinity>>,
    ) -> Result<(), Stop> {
        let mut world = Cow::Borrowed(world);
        let limit = block_limit(self.request.max_blocks, world.config.max_blocks_per_host);
        let mut owned = u32::try_from(setting.affine.len()).unwrap_or(u32::MAX);
        let mut listed: Option<AllBlocks> = None;
        // Blocks that others were about to make: until one is there, the next is tried.
        let mut lost: BTreeSet<Cidr> = BTreeSet::new();
        // Each turn takes something, claims something, or loses a race.
        let mut races = 0;
        while !self.satisfied() {
            let may_claim = !unmade.is_empty() || (owned < limit && world.config.auto_allocate_blocks);
            if !may_claim {
                let shortage = if owned >= limit {
                    Shortage::BlockLimit { limit, owned }
                } else {
                    Shortage::AutoAllocateOff
                };
                let search = search_of(self.request, &world, self.clock.now());
                let listed = listed.as_ref();
                let relief =
                    listed.map_or_else(Relief::default, |all| relief(&search, &setting.usable, &all.blocks));
                self.fall_short(shortage, relief);
                return Ok(());
            }
            if races >= ATTEMPTS {
                let what = format!("a new block for {}", self.request.owner);
                return Err(StoreError::Contention { what }.into());
            }
            if let Some(affinity) = unmade.pop_front() {
                match self.make_up(&world, setting, affinity).await? {
                    Some(claimed) => self.take_from_claimed(&world, claimed).await?,
                    None => owned = owned.saturating_sub(1),
                }
                continue;
            }
            // Listed after the pools were read: only a changed pool, which the claim notices, has other blocks.
            let mut all = match listed.take() {
                Some(all) => all,
                None => {
                    let all = seen::all_blocks(self.store).await?;
                    if let Some(careful) = world.holding_back_shared(&all) {
                        world = Cow::Owned(careful);
                    }
                    all
                }
            };
            lost.retain(|cidr| all.blocks.iter().all(|seen| seen.value.cidr != *cidr));
            all.unreadable.extend(&lost);
            let Some(Vacant { pool, cidr, known }) = self.vacant(&world, setting, &all).await? else {
                self.borrow(&world, setting, all.blocks).await?;
                return Ok(());
            };
            match self.claim(&world, pool, cidr, known).await? {
                Some(claimed) => {
                    owned = owned.saturating_add(1);
                    // One that was there already is no longer as it was listed.
                    if claimed.made {
                        all.blocks.push(claimed.block.clone());
                        listed = Some(all);
                    }
                    self.take_from_claimed(&world, claimed).await?;
                }
                None => {
                    races += 1;
                    lost.insert(cidr);
                }
            }
        }
        Ok(())
    }

    fn fall_short(&mut self, shortage: Shortage, relief: Relief) {
        self.explain.shortage = Some(shortage);
        self.explain.relief = relief;
    }

    /// Makes the block that an affinity of ours promises. Its claim looks whether it would lie across others by now.
    async fn make_up(
        &mut self,
        world: &World,
        setting: &Setting<'_>,
        affinity: Seen<Affinity>,
    ) -> Result<Option<Claimed>, Stop> {
        let cidr = affinity.value.cidr;
        match setting.pool_of(cidr) {
            Some(pool) => self.claim(world, pool, cidr, Known::Found(affinity)).await,
            None => {
                claim::drop_affinity(self.store, &self.request.owner, Some(&affinity)).await;
                Ok(None)
            }
        }
    }

    /// Makes a block ours, with the missing addresses in it if it is made now. `None`: another was quicker.
    async fn claim(
        &mut self,
        world: &World,
        pool: &Seen<Pool>,
        cidr: Cidr,
        known: Known,
    ) -> Result<Option<Claimed>, Stop> {
        for _ in 0..ATTEMPTS {
            let want = self.missing();
            let claim = Claim {
                content: Content::Any { want: &want, cap: self.request.max_per_handle },
                host_reserved: self.request.host_reserved.as_ref(),
                reserved: &world.reserved,
                ..Claim::of(&self.request.owner, cidr, pool)
            };
            match affinity::claim_for(self.store, self.clock, &claim, known.clone(), self.hand).await {
                Ok(claimed) => {
                    let outcome = if claimed.made { BlockOutcome::Claimed } else { BlockOutcome::Took };
                    self.explain.tried(cidr, outcome);
                    return Ok(Some(claimed));
                }
                Err(ClaimError::Taken { .. } | ClaimError::Refused(PlanRefusal::Take(_))) => {
                    self.explain.tried(cidr, BlockOutcome::LostRace);
                    return Ok(None);
                }
                Err(ClaimError::Unreadable(_)) => {
                    self.explain.tried(cidr, BlockOutcome::Failed);
                    return Ok(None);
                }
                Err(ClaimError::Refused(PlanRefusal::Cap(_))) => {
                    self.hand.forget();
                    self.answer_at_cap().await?;
                }
                Err(ClaimError::PoolChanged { .. }) => return Err(Stop::Restart),
                Err(ClaimError::Store(error)) => return Err(error.into()),
            }
        }
        Err(StoreError::Contention { what: format!("the claim of block {cidr}") }.into())
    }

    /// Counts what a claim brought, or takes from the block if it was there already.
    async fn take_from_claimed(&mut self, world: &World, claimed: Claimed) -> Result<(), Stop> {
        if claimed.made {
            self.taken.extend(claimed.taken);
            return Ok(());
        }
        self.take_from_block(world, claimed.block, BlockOutcome::Took).await
    }

    /// Takes from a block as read, reading it again after each conflict.
    ///
    /// Nothing is planned on one that is full: a node of many blocks would plan on each of them.
    async fn take_from_block(
        &mut self,
        world: &World,
        block: Seen<Block>,
        outcome: BlockOutcome,
    ) -> Result<(), Stop> {
        let cidr = block.value.cidr;
        let cooldown = borrow::cooldown(world.config.ip_cooldown_seconds, outcome);
        let only_owner = self.only_own(world).then_some(&self.request.owner);
        let avoid = BTreeSet::new();
        let rules = TakeRules { reserved: &world.reserved, avoid: &avoid, only_owner };
        let (want, cap) = (self.missing(), self.request.max_per_handle);
        let mut block = block;
        block::collect(&mut block.value, cooldown, self.clock.now());
        let is_ours = only_owner.is_none_or(|owner| block.value.affinity.as_ref() == Some(owner));
        if is_ours && block.value.unallocated.is_empty() {
            self.explain.tried(cidr, BlockOutcome::Full);
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            let planned = |seen: &Seen<Block>, handles: &plan::Handles| {
                plan::plan_take_capped(seen, &want, cap, handles, &rules)
            };
            let (hand, explain) = (&mut *self.hand, &mut self.explain);
            let done = commit_on(self.store, self.clock, block, hand, cooldown, explain, planned).await?;
            let outcome = match done {
                OnBlock::Took(taken) => {
                    self.taken.extend(taken);
                    outcome
                }
                OnBlock::Full if world.shared.touches(cidr) => BlockOutcome::Crossed,
                OnBlock::Full => BlockOutcome::Full,
                OnBlock::Gone => BlockOutcome::Gone,
                OnBlock::Refused(PlanRefusal::Take(TakeError::NotOwner { .. })) => BlockOutcome::NotOurs,
                OnBlock::Refused(PlanRefusal::Take(_)) => BlockOutcome::Failed,
                OnBlock::Refused(PlanRefusal::Cap(_)) => {
                    // The block is younger than what is known of the handle: somebody took for it in between.
                    self.hand.forget();
                    self.answer_at_cap().await?;
                    match seen::block(self.store, cidr).await? {
                        Some(again) => {
                            block = again;
                            continue;
                        }
                        None => BlockOutcome::Gone,
                    }
                }
            };
            self.explain.tried(cidr, outcome);
            return Ok(());
        }
        Err(StoreError::Contention { what: format!("addresses of block {cidr}") }.into())
    }

    /// Finds a block to claim (algorithm §8): one that does not exist, or one that its owner does not use.
    async fn vacant<'s>(
        &self,
        world: &World,
        setting: &'s Setting<'_>,
        all: &AllBlocks,
    ) -> Result<Option<Vacant<'s>>, Stop> {
        let found = search_of(self.request, world, self.clock.now()).among(&setting.usable, all);
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

    /// Gives up blocks of ours in pools that are no longer for us, those that are empty. The request is served already:
    /// failing to is not its concern, and the next one tries again.
    async fn give_up(&self, cidrs: &[Cidr]) {
        let Ok(blocks) = seen::blocks_of(self.store, cidrs).await else { return };
        let terms = ReleaseTerms { must_be_empty: true, ..ReleaseTerms::default() };
        for block in blocks.into_iter().flatten() {
            // Cooling ones may be over their time; the release looks exactly.
            let held = block::allocated(&block.value).any(|(_, attribute)| attribute.released_at.is_none());
            if !held || block::is_empty(&block.value) {
                let owner = &self.request.owner;
                let _ =
                    affinity::release_affinity(self.store, self.clock, owner, block.value.cidr, terms).await;
            }
        }
    }
}

fn search_of<'s>(request: &'s AssignRequest, world: &'s World, now: Timestamp) -> Search<'s> {
    Search {
        owner: &request.owner,
        reserved: &world.reserved,
        host_reserved: request.host_reserved.as_ref(),
        cooldown_seconds: world.config.ip_cooldown_seconds,
        now,
    }
}

fn is_settled(affinity: &Seen<Affinity>, block: &Seen<Block>) -> bool {
    affinity.value.state == AffinityState::Confirmed
        && block.value.affinity.as_ref() == Some(&affinity.value.owner)
}

/// The stricter of what the request and the configuration allow; 20 where neither says anything.
pub fn block_limit(requested: u32, configured: u32) -> u32 {
    match (requested, configured) {
        (0, 0) => DEFAULT_MAX_BLOCKS,
        (0, limit) | (limit, 0) => limit,
        (requested, configured) => requested.min(configured),
    }
}
