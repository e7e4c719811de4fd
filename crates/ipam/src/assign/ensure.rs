//! A block for a node before its first pod (EnsureBlock, algorithm §16): an assignment with nothing wanted.

use super::{AssignError, AssignRequest, Run, Stop, search_of};
use crate::affinity::Known;
use crate::clock::Clock;
use crate::explain::{Explain, Explained, Shortage};
use crate::failure::{ATTEMPTS, StoreError};
use crate::host_reserved::{HostReserved, HostReservedError};
use crate::plan::Want;
use crate::pools::SelectError;
use crate::seen::{self, HandleInHand};
use crate::setting::{Setting, World};
use crate::shortage::{relief, shortage};
use crate::vacancy::Vacant;
use api::{Cidr, IpVersion, Owner, Use};
use datastore::Datastore;
use std::collections::BTreeMap;

/// Why a node has no block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnsureBlockError {
    /// What the node wants to keep of each block makes no sense.
    #[error(transparent)]
    Reserved(#[from] HostReservedError),
    /// No pool may be used.
    #[error(transparent)]
    Pools(#[from] SelectError),
    /// The node is not in the datastore.
    #[error("node {node} does not exist: register it, or correct the node name")]
    NoSuchNode {
        /// Its name.
        node: String,
    },
    /// Nodes may not claim blocks.
    #[error(
        "node {node} has no block and may not claim one: set autoAllocateBlocks in the IPAM configuration"
    )]
    AutoAllocateOff {
        /// The node.
        node: String,
    },
    /// Every block of every pool is in use.
    #[error(
        "no {version} block is free for node {node}: add a pool, or release leaked addresses (calicoctl ipam check)"
    )]
    NoFreeBlock {
        /// The node.
        node: String,
        /// Family.
        version: IpVersion,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EnsureBlockError {
    fn of(stop: Stop, request: &AssignRequest) -> Self {
        let node = request.owner.name.clone();
        match stop {
            Stop::Failed(AssignError::Pools(error)) => Self::Pools(error),
            Stop::Failed(AssignError::HostReserved(error)) => Self::Reserved(error),
            Stop::Failed(AssignError::NoSuchNode { node }) => Self::NoSuchNode { node },
            Stop::Failed(AssignError::Interrupted { source, .. }) | Stop::Store(source) => {
                Self::Store(source)
            }
            Stop::Failed(AssignError::StrictAffinityRequired { .. }) | Stop::Restart | Stop::Answered => {
                Self::Store(StoreError::Contention { what: format!("a block for node {node}") })
            }
        }
    }
}

/// A node's block, and how it came to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ensured {
    /// The block.
    pub block: Cidr,
    /// The account.
    pub explain: Explain,
}

/// Makes sure that a node has a block of this family for workloads, and returns it: one that it has, even a full one, or a
/// new one in which `reserved` is kept. The block limit does not apply, nor that Windows nodes need strict affinity.
///
/// A block that the node has is taken as it is: what was not kept when it was made is not kept now.
///
/// Datastore calls: 5 reads at once (configuration, reservations, node, pools, affinities), and those of
/// [`crate::affinity::claim`]; where the node has none a list of all blocks before. Each claim that is lost to another adds as
/// much again.
///
/// # Errors
/// See [`EnsureBlockError`]; the account comes with it.
///
/// # Cancellation
/// As [`crate::affinity::claim`].
pub async fn ensure_block<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    node: &str,
    version: IpVersion,
    reserved: &HostReserved,
) -> Result<Ensured, Box<Explained<EnsureBlockError>>> {
    let want = Want { count: 0, handle: None, attributes: BTreeMap::new() };
    let request = AssignRequest {
        host_reserved: Some(reserved.clone()),
        ..AssignRequest::new(Owner::host(node), version, Use::Workload, want)
    };
    let explain = Explain::new(node, version, 0);
    let mut hand = HandleInHand::unread(None);
    let mut run = Run {
        store,
        clock,
        request: &request,
        hand: &mut hand,
        taken: Vec::new(),
        held: Vec::new(),
        explain,
    };
    let found = run.ensure().await;
    let explain = run.explain;
    match found {
        Ok(Some(block)) => Ok(Ensured { block, explain }),
        Ok(None) => {
            let node = node.to_owned();
            let error = match explain.shortage {
                Some(Shortage::AutoAllocateOff) => EnsureBlockError::AutoAllocateOff { node },
                _ => EnsureBlockError::NoFreeBlock { node, version },
            };
            Err(Box::new(Explained { error, explain }))
        }
        Err(stop) => Err(Box::new(Explained { error: EnsureBlockError::of(stop, &request), explain })),
    }
}

impl<D: Datastore> Run<'_, D> {
    /// Finds or makes a block. `None`: the account says what is short.
    async fn ensure(&mut self) -> Result<Option<Cidr>, Stop> {
        for _ in 0..ATTEMPTS {
            let world = World::read(self.store, &self.request.owner, self.hand).await?;
            let setting = self.set_out(&world)?;
            match self.ensure_in(&world, &setting).await {
                Ok(Found::Block(block)) => return Ok(Some(block)),
                Ok(Found::Nothing) => return Ok(None),
                // Lost to another, or the pool is another now: everything is looked at again.
                Ok(Found::Lost) | Err(Stop::Restart) => {}
                Err(stop) => return Err(stop),
            }
        }
        Err(Stop::Restart)
    }

    async fn ensure_in(&mut self, world: &World, setting: &Setting<'_>) -> Result<Found, Stop> {
        for affinity in setting.affine.iter().filter(|seen| !world.reserved.covers(seen.value.cidr)) {
            let cidr = affinity.value.cidr;
            if let Some(pool) = setting.pool_of(cidr)
                && let Some(claimed) =
                    self.claim(world, pool, cidr, Known::Found((*affinity).clone())).await?
            {
                return Ok(Found::Block(claimed.block.value.cidr));
            }
        }
        if !world.config.auto_allocate_blocks {
            self.explain.shortage = Some(Shortage::AutoAllocateOff);
            return Ok(Found::Nothing);
        }
        let all = seen::all_blocks(self.store).await?;
        let Some(Vacant { pool, cidr, known }) = self.vacant(world, setting, &all).await? else {
            let search = search_of(self.request, world, self.clock.now());
            // Blocks of others are none of the node's, as under strict affinity.
            let shortage = shortage(&search, &setting.usable, true, &all.blocks);
            let relief = relief(&search, &setting.usable, &all.blocks);
            self.fall_short(shortage, relief);
            return Ok(Found::Nothing);
        };
        let claimed = self.claim(world, pool, cidr, known).await?;
        Ok(claimed.map_or(Found::Lost, |claimed| Found::Block(claimed.block.value.cidr)))
    }
}

/// What one look at everything found.
enum Found {
    Block(Cidr),
    /// Another was quicker.
    Lost,
    Nothing,
}
