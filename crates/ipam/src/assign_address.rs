//! Assigning one particular address (algorithm §11).

use crate::affinity::{self, Claim, ClaimError, Content, Known};
use crate::agent::INTERFACE;
use crate::assign::Assigned;
use crate::block::{self, TakeError, Taken};
use crate::cap::{self, CapReached, Lowered};
use crate::clock::Clock;
use crate::crossing::{Crossing, crossings};
use crate::explain::{BlockOutcome, Explain, Explained};
use crate::failure::{ATTEMPTS, StoreError};
use crate::plan::{self, AddressRequest, Handles, PlanRefusal};
use crate::pools::considered_around;
use crate::renewal::{self, Asker};
use crate::seen::{self, HandleInHand, Seen};
use crate::take::{OnBlock, commit_on};
use crate::vacancy;
use api::{Block, Cidr, IpVersion, IpamConfig, Pool};
use datastore::Datastore;
use std::net::IpAddr;

/// Times that a block is looked for again which another node began to claim.
const RACES: usize = 3;

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
    /// Two blocks have it, so that nobody can say who holds it.
    #[error(
        "address {address} is in block {block} and in block {other}, which lie across each other: nothing of what both have \
         is given out; delete one of them when nothing is held in it (calicoctl ipam check)"
    )]
    Crossed {
        /// The address.
        address: IpAddr,
        /// The smaller block.
        block: Cidr,
        /// The one around it.
        other: Cidr,
    },
    /// It is assigned, or its block is another's under strict affinity.
    #[error(transparent)]
    Refused(#[from] TakeError),
    /// The handle has another address and may not have one more.
    #[error(transparent)]
    AtCap(#[from] CapReached),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Assigns one particular address. Selectors, reservations and the block limit do not apply.
///
/// An address that the same handle holds already, for the same interface, is renewed and answered with success.
///
/// Datastore calls, as trips where commits are atomic: 3, of 3 reads (pools, configuration, handle), 1 read of the block,
/// and 1 commit; where the block does not exist 1 more, of the list of all blocks. On a Kubernetes API the commit is 2
/// requests one after another (handle, block), with a new block 4 trips (affinity and handle, block, pool, affinity).
///
/// # Errors
/// See [`AssignAddressError`]; the account comes with it.
///
/// # Cancellation
/// May leave the address assigned; it is found by its handle.
pub async fn assign_address<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    request: &AddressRequest,
) -> Result<Assigned, Box<Explained<AssignAddressError>>> {
    let explain = Explain::new(&request.owner.name, IpVersion::of(request.address), 1);
    let hand = HandleInHand::unread(request.handle.as_deref());
    let mut run = Run { store, clock, request, hand, looks: 0, explain };
    let result = run.carry_out().await;
    let mut explain = run.explain;
    match result {
        Ok(taken) => {
            explain.assigned = 1;
            Ok(Assigned { taken: vec![taken], held: Vec::new(), explain })
        }
        Err(error) => Err(Box::new(Explained { error, explain })),
    }
}

struct Run<'a, D> {
    store: &'a D,
    clock: &'a dyn Clock,
    request: &'a AddressRequest,
    hand: HandleInHand,
    /// Times that the handle was found to count more than its blocks hold.
    looks: usize,
    explain: Explain,
}

/// What one look at the block came to.
enum Look {
    /// It is ours.
    Taken(Taken),
    /// Something changed: look again.
    Again,
    /// Another node was quicker with the block: it is there, or soon will be.
    Lost,
    /// Its block does not exist; this one, of another size, has the address.
    Other(Cidr),
}

impl<D: Datastore> Run<'_, D> {
    async fn carry_out(&mut self) -> Result<Taken, AssignAddressError> {
        for _ in 0..ATTEMPTS {
            let (config, pools, handle) =
                futures::join!(seen::config(self.store), seen::pools(self.store), self.hand.look(self.store));
            let (config, pools) = (config.map_err(StoreError::from)?, pools.map_err(StoreError::from)?);
            handle.map_err(StoreError::from)?;
            let pool = self.pool(&pools)?;
            if let Some(taken) = self.in_pool(&config, pool).await? {
                return Ok(taken);
            }
        }
        Err(self.contention())
    }

    fn contention(&self) -> AssignAddressError {
        StoreError::Contention { what: format!("address {}", self.request.address) }.into()
    }

    /// The enabled pool that has the address and is for this.
    fn pool<'p>(&mut self, pools: &'p [Seen<Pool>]) -> Result<&'p Seen<Pool>, AssignAddressError> {
        let address = self.request.address;
        let around = pools.iter().filter(|pool| pool.value.cidr.contains(address));
        let considered =
            considered_around(around.clone().map(|pool| &pool.value), address, self.request.intended_use);
        self.explain.considered(considered);
        let pool = around
            .clone()
            .find(|pool| pool.value.is_enabled())
            .ok_or(AssignAddressError::NoPool { address })?;
        match self.request.intended_use.filter(|wanted| !pool.value.allowed_uses.contains(wanted)) {
            Some(wrong) => Err(AssignAddressError::WrongUse {
                address,
                pool: pool.value.name.clone(),
                intended_use: wrong.as_str(),
            }),
            None => Ok(pool),
        }
    }

    /// Assigns the address in its block. `None`: the pool changed, read again.
    async fn in_pool(
        &mut self,
        config: &IpamConfig,
        pool: &Seen<Pool>,
    ) -> Result<Option<Taken>, AssignAddressError> {
        let address = self.request.address;
        let no_pool = AssignAddressError::NoPool { address };
        let mut cidr = Cidr::containing(address, pool.value.block_size).ok_or(no_pool)?;
        let mut lost = 0;
        for _ in 0..ATTEMPTS {
            let found = seen::block(self.store, cidr).await.map_err(StoreError::from)?;
            let look = match found {
                Some(block) => self.in_block(config, block).await?,
                None => match self.in_new_block(pool, cidr).await? {
                    Some(look) => look,
                    None => return Ok(None),
                },
            };
            match look {
                Look::Taken(taken) => return Ok(Some(taken)),
                Look::Again => {}
                // Where only an affinity of another stands, its block may never come: it is not waited for here.
                Look::Lost if lost >= RACES => break,
                Look::Lost => lost += 1,
                Look::Other(other) => cidr = other,
            }
        }
        Err(self.contention())
    }

    async fn in_block(
        &mut self,
        config: &IpamConfig,
        block: Seen<Block>,
    ) -> Result<Look, AssignAddressError> {
        let cidr = block.value.cidr;
        if is_held_already(&block.value, self.request) {
            return self.renewed(block).await;
        }
        let only_owner = config.strict_affinity.then_some(&self.request.owner);
        let request = self.request;
        let planned =
            |seen: &Seen<Block>, handles: &Handles| plan::plan_assign(seen, request, handles, only_owner);
        let (hand, explain, cooldown) = (&mut self.hand, &mut self.explain, config.ip_cooldown_seconds);
        match commit_on(self.store, self.clock, block, hand, cooldown, explain, planned).await? {
            OnBlock::Took(taken) => {
                self.explain.tried(cidr, BlockOutcome::Took);
                Ok(taken.into_iter().next().map_or(Look::Again, Look::Taken))
            }
            OnBlock::Full | OnBlock::Gone => Ok(Look::Again),
            OnBlock::Refused(PlanRefusal::Take(refusal)) => self.refused(cidr, refusal).await,
            OnBlock::Refused(PlanRefusal::Cap(refusal)) => self.at_cap(refusal).await,
        }
    }

    /// Answers the address that the handle holds already, in a new life (see [`renewal`]).
    async fn renewed(&mut self, block: Seen<Block>) -> Result<Look, AssignAddressError> {
        let Some(id) = self.request.handle.as_deref() else { return Ok(Look::Again) };
        let (hand, here) = (&mut self.hand, [self.request.address]);
        let explain = &mut self.explain;
        let asker = Asker { handle: id, attributes: &self.request.attributes };
        let renewed = renewal::renew_in(self.store, self.clock, block, &here, asker, hand, explain).await?;
        Ok(renewed.and_then(|taken| taken.into_iter().next()).map_or(Look::Again, Look::Taken))
    }

    /// An address that is taken may have been taken for this handle meanwhile.
    async fn refused(&mut self, cidr: Cidr, refusal: TakeError) -> Result<Look, AssignAddressError> {
        self.explain.tried(
            cidr,
            match refusal {
                TakeError::NotOwner { .. } => BlockOutcome::NotOurs,
                TakeError::OutOfBlock { .. } | TakeError::AlreadyAssigned { .. } => BlockOutcome::Full,
            },
        );
        if matches!(refusal, TakeError::AlreadyAssigned { .. }) {
            let again = seen::block(self.store, cidr).await.map_err(StoreError::from)?;
            if let Some(block) = again.filter(|seen| is_held_already(&seen.value, self.request)) {
                return self.renewed(block).await;
            }
        }
        Err(refusal.into())
    }

    /// A handle that holds something of the family may not have this address; one whose count is ahead of its blocks is
    /// looked at again, because somebody may be taking for it, and lowered at the third look (see [`cap::lower`]).
    async fn at_cap(&mut self, refusal: CapReached) -> Result<Look, AssignAddressError> {
        // The block may be younger than what is known of the handle.
        self.hand.forget();
        self.hand.look(self.store).await.map_err(StoreError::from)?;
        let Some(handle) = self.hand.record() else { return Ok(Look::Again) };
        let version = IpVersion::of(self.request.address);
        let cidrs: Vec<Cidr> =
            handle.blocks.keys().copied().filter(|cidr| cidr.version() == version).collect();
        let counted = cap::counted(handle, version, None);
        let id = handle.id.clone();
        let blocks = seen::blocks_of(self.store, &cidrs).await.map_err(StoreError::from)?;
        let mut held: u64 = 0;
        for block in blocks.iter().flatten() {
            held += u64::from(block::count_of(&block.value, &id));
            if is_held_already(&block.value, self.request) {
                return self.renewed(block.clone()).await;
            }
        }
        if held >= counted || held >= refusal.held {
            return Err(refusal.into());
        }
        self.looks += 1;
        if self.looks < cap::LOOKS {
            return Ok(Look::Again);
        }
        if self.looks > cap::MOST_LOOKS
            || cap::lower(self.store, &mut self.hand, blocks).await? == Lowered::Nothing
        {
            return Err(refusal.into());
        }
        Ok(Look::Again)
    }

    /// Makes the block with the address in it. `None`: the pool changed.
    async fn in_new_block(
        &mut self,
        pool: &Seen<Pool>,
        cidr: Cidr,
    ) -> Result<Option<Look>, AssignAddressError> {
        let address = self.request.address;
        // Listed after the pool was read, so that only a changed pool, which the claim notices, has other blocks.
        let all = seen::all_blocks(self.store).await.map_err(StoreError::from)?;
        let around = || all.blocks.iter().map(|seen| seen.value.cidr).filter(|cidr| cidr.contains(address));
        if let Some(Crossing { block, other }) = crossings(around()).last() {
            return Err(AssignAddressError::Crossed { address, block: *block, other: *other });
        }
        let others = || all.blocks.iter().map(|seen| seen.value.cidr);
        if let Some(around) = all.blocks.iter().find(|seen| seen.value.cidr.contains(address)) {
            let (other, now) = (around.value.cidr, self.clock.now());
            let ours = around.value.affinity.as_ref() == Some(&self.request.owner);
            if ours || vacancy::is_lendable(&around.value, cidr.prefix(), now) {
                return Ok(Some(Look::Other(other)));
            }
            return Err(AssignAddressError::Overlap { address, block: cidr, other });
        }
        let in_the_way = others().chain(all.unreadable.iter().copied());
        if let Some(other) = in_the_way.into_iter().find(|other| other.overlaps(cidr)) {
            return Err(AssignAddressError::Overlap { address, block: cidr, other });
        }
        let claim =
            Claim { content: Content::One(self.request), ..Claim::of(&self.request.owner, cidr, pool) };
        // An affinity of ours would be one whose block went; most often there is none.
        match affinity::claim_for(self.store, self.clock, &claim, Known::Absent, &mut self.hand).await {
            Ok(claimed) => {
                self.explain.tried(cidr, BlockOutcome::Claimed);
                let taken = claimed.taken.into_iter().next();
                Ok(Some(taken.map_or(Look::Again, Look::Taken)))
            }
            // Lost to another node: its block is there now (quirk Q6).
            Err(ClaimError::Taken { .. }) => {
                self.explain.tried(cidr, BlockOutcome::LostRace);
                Ok(Some(Look::Lost))
            }
            Err(ClaimError::PoolChanged { .. }) => Ok(None),
            Err(ClaimError::Refused(PlanRefusal::Take(refusal))) => Err(refusal.into()),
            Err(ClaimError::Refused(PlanRefusal::Cap(refusal))) => self.at_cap(refusal).await.map(Some),
            Err(ClaimError::Unreadable(error)) => Err(StoreError::from(error).into()),
            Err(ClaimError::Store(error)) => Err(error.into()),
        }
    }
}

/// Whether the requesting handle has the requested address, for the same interface where both name one: two interfaces of one
/// container have one handle, and must not share an address.
fn is_held_already(block: &Block, request: &AddressRequest) -> bool {
    let Some(held) = block::attribute_of(block, request.address).filter(|held| held.released_at.is_none())
    else {
        return false;
    };
    let holder = held.handle_id.as_deref().map(block::sanitized);
    let is_holder = holder.is_some() && holder == request.handle.as_deref().map(block::sanitized);
    // A virtual machine keeps its address from one pod to the next, whatever their interfaces are called.
    let counts = request.max_per_handle == 0;
    let other = held.secondary.get(INTERFACE).zip(request.attributes.get(INTERFACE));
    is_holder && !(counts && other.is_some_and(|(has, wants)| has != wants))
}
