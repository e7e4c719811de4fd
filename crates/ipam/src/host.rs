//! What is done for a node as a whole: a block before its first pod, labels of old records, and its end (algorithm §16).

use crate::administration;
use crate::affinity::{self, Claim, ClaimError, Known, ReleaseAffinityError, ReleaseTerms};
use crate::clock::Clock;
use crate::failure::{ATTEMPTS, StoreError};
use crate::host_reserved::{self, HostReserved, HostReservedError};
use crate::pools::{self, PoolRequest, SelectError, Selection};
use crate::reservations::ReservationSet;
use crate::seen::{self, Seen};
use crate::vacancy::{self, Search, Vacant};
use api::{Affinity, Cidr, IpVersion, IpamConfig, Node, Owner, Pool, Reservation, Use};
use datastore::{CommitError, Datastore, Key, Kind, Record, Scope, Write};
use futures::future::try_join5;
use std::collections::{BTreeMap, BTreeSet};

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

/// What a request for a block works with.
struct Setting {
    owner: Owner,
    config: IpamConfig,
    reserved: ReservationSet,
    pools: BTreeMap<String, Seen<Pool>>,
    selection: Selection,
    affine: Vec<Seen<Affinity>>,
}

impl Setting {
    fn usable(&self) -> impl Iterator<Item = &Seen<Pool>> {
        self.selection.usable.iter().filter_map(|pool| self.pools.get(&pool.name))
    }
}

/// Makes sure that a node has a block of this family for workloads (EnsureBlock), and returns it: one that it has, even a full
/// one, or a new one in which `reserved` is kept. The block limit does not apply.
///
/// A block that the node has is taken as it is: what was not kept when it was made is not kept now.
///
/// Datastore calls: 5 reads at once (configuration, reservations, node, pools, affinities), and those of
/// [`affinity::claim`]; where the node has none a list of all blocks before. Each claim that is lost to another adds as much
/// again.
///
/// # Errors
/// See [`EnsureBlockError`].
///
/// # Cancellation
/// As [`affinity::claim`].
pub async fn ensure_block<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    node: &str,
    version: IpVersion,
    reserved: &HostReserved,
) -> Result<Cidr, EnsureBlockError> {
    let max_prefix = host_reserved::max_prefix(version, Some(reserved))?;
    for _ in 0..ATTEMPTS {
        let setting = setting(store, node, version, max_prefix).await?;
        for affinity in &setting.affine {
            let cidr = affinity.value.cidr;
            let Some(pool) = setting.usable().find(|pool| pool.value.cidr.contains_cidr(cidr)) else {
                continue;
            };
            let claim = Claim { host_reserved: Some(reserved), ..Claim::of(&setting.owner, cidr, pool) };
            if let Some(cidr) = claimed(store, clock, &claim, Known::Found(affinity.clone())).await? {
                return Ok(cidr);
            }
        }
        if !setting.config.auto_allocate_blocks {
            return Err(EnsureBlockError::AutoAllocateOff { node: node.to_owned() });
        }
        let Some(Vacant { pool, cidr, known }) = vacant(store, clock, &setting, reserved).await? else {
            return Err(EnsureBlockError::NoFreeBlock { node: node.to_owned(), version });
        };
        let claim = Claim { host_reserved: Some(reserved), ..Claim::of(&setting.owner, cidr, pool) };
        if let Some(cidr) = claimed(store, clock, &claim, known).await? {
            return Ok(cidr);
        }
    }
    Err(StoreError::Contention { what: format!("a block for node {node}") }.into())
}

/// Claims a block. `None`: lost to another node, or the pool is another now; everything is to be looked at again.
async fn claimed<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    claim: &Claim<'_>,
    known: Known,
) -> Result<Option<Cidr>, StoreError> {
    match affinity::claim(store, clock, claim, known).await {
        Ok(claimed) => Ok(Some(claimed.block.value.cidr)),
        Err(
            ClaimError::Taken { .. }
            | ClaimError::PoolChanged { .. }
            | ClaimError::Refused(_)
            | ClaimError::Unreadable(_),
        ) => Ok(None),
        Err(ClaimError::Store(error)) => Err(error),
    }
}

async fn setting<D: Datastore>(
    store: &D,
    node: &str,
    version: IpVersion,
    max_prefix: u8,
) -> Result<Setting, EnsureBlockError> {
    let owner = Owner::host(node);
    let (node_key, all_reservations) = (Key::Node(node.to_owned()), Scope::All(Kind::Reservation));
    let of_owner = Scope::AffinitiesOf(owner.clone());
    let (config, reservations, found, pools, affine) = try_join5(
        seen::config(store),
        seen::list::<Reservation, D>(store, &all_reservations),
        seen::get::<Node, D>(store, &node_key),
        seen::pools(store),
        seen::list::<Affinity, D>(store, &of_owner),
    )
    .await
    .map_err(StoreError::from)?;
    let labels = found.ok_or_else(|| EnsureBlockError::NoSuchNode { node: node.to_owned() })?.value.labels;
    let asked = PoolRequest {
        version,
        requested: &[],
        node,
        node_labels: &labels,
        namespace_labels: &BTreeMap::new(),
        intended_use: Use::Workload,
        max_prefix,
    };
    let selection = pools::select(pools.iter().map(|seen| &seen.value), &asked)?;
    let reserved = ReservationSet::new(reservations.iter().map(|seen| &seen.value));
    let affine = affine.into_iter().filter(|seen| !reserved.covers(seen.value.cidr)).collect();
    let pools = pools.into_iter().map(|seen| (seen.value.name.clone(), seen)).collect();
    Ok(Setting { owner, config, reserved, pools, selection, affine })
}

async fn vacant<'s, D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    setting: &'s Setting,
    host_reserved: &'s HostReserved,
) -> Result<Option<Vacant<'s>>, EnsureBlockError> {
    let blocks = seen::all_blocks(store).await.map_err(StoreError::from)?;
    let search = Search {
        owner: &setting.owner,
        reserved: &setting.reserved,
        host_reserved: Some(host_reserved),
        cooldown_seconds: setting.config.ip_cooldown_seconds,
        now: clock.now(),
    };
    let found = search.among(setting.usable(), &blocks);
    if found.first.is_some() {
        return Ok(found.first);
    }
    for (pool, block) in found.reclaimable {
        if vacancy::reclaim(store, clock, &block).await? {
            return Ok(Some(Vacant { pool, cidr: block.value.cidr, known: Known::Unread }));
        }
    }
    Ok(None)
}

/// Gives up everything that a node has, for one that does not come back (RemoveIPAMHost). Returns how many blocks the
/// last round gave up: where something changed meanwhile there are several.
///
/// Addresses in use stay in use in blocks without owner. Release the node's addresses before.
///
/// Calico's etcd driver deletes the key `/calico/ipam/v2/host/<node>` besides, which nothing has written for years. It is no
/// record of ours and is left.
///
/// Datastore calls: those of [`administration::release_affinities_of`].
///
/// # Errors
/// See [`ReleaseAffinityError`].
///
/// # Cancellation
/// Leaves the blocks not yet given up; the call may be repeated.
pub async fn remove_host<D: Datastore>(
    store: &D,
    clock: &dyn Clock,
    node: &str,
) -> Result<usize, ReleaseAffinityError> {
    let owner = Owner::host(node);
    let terms = ReleaseTerms { owner_gone: true, ..ReleaseTerms::default() };
    for _ in 0..ATTEMPTS {
        match administration::release_affinities_of(store, clock, &owner, terms).await {
            Err(ReleaseAffinityError::Changed { .. }) => {}
            result => return result,
        }
    }
    Err(StoreError::Contention { what: format!("the removal of node {node}") }.into())
}

/// Brings the affinities of a node that old releases wrote under their present labels (UpgradeHost). Returns how many.
///
/// On Kubernetes the affinities of one owner are listed by labels, and an object written before there were labels is not found.
/// The driver writes the labels with every write of an affinity, so that writing it again unchanged mends it; one without type
/// gets type and label `host` (quirk Q21). On other stores lists need no labels and there is nothing to do.
///
/// Datastore calls: 2 lists (all affinities, those of the node), and 1 commit per affinity that the second does not show. Each
/// conflict or lost answer adds as much again.
///
/// # Errors
/// [`StoreError`].
///
/// # Cancellation
/// May leave some affinities as they were; the call may be repeated.
pub async fn upgrade_host<D: Datastore>(store: &D, node: &str) -> Result<usize, StoreError> {
    let owner = Owner::host(node);
    let mut upgraded = BTreeSet::new();
    for _ in 0..ATTEMPTS {
        let all: Vec<Seen<Affinity>> = seen::list(store, &Scope::All(Kind::Affinity)).await?;
        let found: Vec<Seen<Affinity>> = seen::list(store, &Scope::AffinitiesOf(owner.clone())).await?;
        let found: BTreeSet<Cidr> = found.into_iter().map(|seen| seen.value.cidr).collect();
        let mut settled = true;
        for affinity in all.into_iter().filter(|seen| seen.value.owner == owner) {
            let cidr = affinity.value.cidr;
            if found.contains(&cidr) {
                continue;
            }
            let write = Write::Update(Record::Affinity(affinity.value), affinity.version);
            match store.commit(&[], &[write]).await {
                Ok(_) => {
                    upgraded.insert(cidr);
                }
                Err(CommitError::Conflict { .. }) => settled = false,
                Err(CommitError::Unknown { .. }) => {
                    upgraded.insert(cidr);
                    settled = false;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if settled {
            return Ok(upgraded.len());
        }
    }
    Err(StoreError::Contention { what: format!("the labels of the affinities of node {node}") })
}
