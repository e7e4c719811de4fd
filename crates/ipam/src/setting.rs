//! What requests for addresses work with (algorithm §6 and §7): everything that does not hang on a block, read in one trip.

use crate::assign::{AssignError, AssignRequest};
use crate::crossing;
use crate::failure::StoreError;
use crate::host_reserved;
use crate::pools::{self, Considered, PoolRequest};
use crate::reservations::ReservationSet;
use crate::seen::{self, AllBlocks, HandleInHand, Seen};
use api::{Affinity, Cidr, IpamConfig, Node, Owner, OwnerKind, Pool};
use datastore::{Datastore, Key, ReadError, Scope};
use std::collections::BTreeMap;

/// The records that both families of a request need.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// Configuration; the default where there is none.
    pub(crate) config: IpamConfig,
    /// Addresses never handed out automatically.
    pub(crate) reserved: ReservationSet,
    /// Addresses that two blocks have, as far as all blocks were looked at; they are among the reserved ones.
    pub(crate) shared: ReservationSet,
    /// All pools, in pool order.
    pub(crate) pools: Vec<Seen<Pool>>,
    /// Labels of the owner; `None` if it is a node that does not exist.
    labels: Option<BTreeMap<String, String>>,
    /// Affinities of the owner, of both families, in whatever state.
    affinities: Vec<Seen<Affinity>>,
}

impl World {
    /// Reads it all, and the handle if it is not known.
    ///
    /// Datastore calls: 6 reads at once (configuration, reservations, node, pools, affinities of the owner, handle).
    pub(crate) async fn read<D: Datastore>(
        store: &D,
        owner: &Owner,
        hand: &mut HandleInHand,
    ) -> Result<Self, StoreError> {
        let affinities = Scope::AffinitiesOf(owner.clone());
        let (config, reservations, labels, pools, affinities, handle) = futures::join!(
            seen::config(store),
            seen::reservations(store),
            labels(store, owner),
            seen::pools(store),
            seen::list::<Affinity, D>(store, &affinities),
            hand.look(store),
        );
        handle?;
        let mut affinities = affinities?;
        affinities.retain(|seen| !seen.value.deleted);
        Ok(Self {
            config: config?,
            reserved: ReservationSet::new(reservations?.iter().map(|seen| &seen.value)),
            shared: ReservationSet::none(),
            pools: pools?,
            labels: labels?,
            affinities,
        })
    }
}

impl World {
    /// The same with what two of all blocks have held back; `None` if nothing is.
    pub(crate) fn holding_back_shared(&self, all: &AllBlocks) -> Option<Self> {
        let shared = crossing::shared(all);
        let reserved = (!shared.is_empty()).then(|| self.reserved.clone().with(&shared))?;
        Some(Self { reserved, shared, ..self.clone() })
    }

    /// Whether affinities of the owner lie across each other, as blocks may then.
    pub(crate) fn may_be_crossed(&self) -> bool {
        !crossing::crossings(self.affinities.iter().map(|seen| seen.value.cidr)).is_empty()
    }
}

async fn labels<D: Datastore>(
    store: &D,
    owner: &Owner,
) -> Result<Option<BTreeMap<String, String>>, ReadError> {
    if owner.kind == OwnerKind::Virtual {
        return Ok(Some(BTreeMap::new()));
    }
    let node: Option<Seen<Node>> = seen::get(store, &Key::Node(owner.name.clone())).await?;
    Ok(node.map(|seen| seen.value.labels))
}

/// What one request of one family works with.
#[derive(Clone, Debug)]
pub(crate) struct Setting<'w> {
    /// Pools to take from, in order.
    pub(crate) usable: Vec<Seen<Pool>>,
    /// Every pool of the family, with its verdict.
    pub(crate) considered: Vec<Considered>,
    /// Affinities of the owner for blocks of these pools, as listed.
    pub(crate) affine: Vec<&'w Seen<Affinity>>,
    /// Blocks of the owner in pools that are no longer for it: to be given up when they are empty.
    pub(crate) deselected: Vec<Cidr>,
}

impl<'w> Setting<'w> {
    /// Selects pools and blocks for a request.
    pub(crate) fn of(world: &'w World, request: &AssignRequest) -> Result<Self, AssignError> {
        let owner = &request.owner;
        let labels =
            world.labels.as_ref().ok_or_else(|| AssignError::NoSuchNode { node: owner.name.clone() })?;
        let reserved = request.host_reserved.as_ref();
        let asked = PoolRequest {
            version: request.version,
            requested: &request.pools,
            node: &owner.name,
            node_labels: labels,
            namespace_labels: &request.namespace_labels,
            intended_use: request.intended_use,
            max_prefix: host_reserved::max_prefix(request.version, reserved)?,
        };
        let selection = pools::select(world.pools.iter().map(|seen| &seen.value), &asked)?;
        let seen = |pool: &Pool| world.pools.iter().find(|seen| seen.value.name == pool.name).cloned();
        let usable: Vec<Seen<Pool>> = selection.usable.iter().filter_map(seen).collect();
        let (mut affine, mut deselected) = (Vec::new(), Vec::new());
        for affinity in &world.affinities {
            let cidr = affinity.value.cidr;
            if cidr.version() != request.version {
                continue;
            }
            if usable.iter().any(|pool| pool.value.cidr.contains_cidr(cidr)) {
                affine.push(affinity);
            } else if !selection.selecting.iter().any(|pool| pool.cidr.contains_cidr(cidr))
                && is_deselected(&world.pools, labels, cidr)
            {
                deselected.push(cidr);
            }
        }
        Ok(Self { usable, considered: selection.considered, affine, deselected })
    }

    /// The pool that a block is cut from.
    pub(crate) fn pool_of(&self, cidr: Cidr) -> Option<&Seen<Pool>> {
        self.usable.iter().find(|pool| pool.value.cidr.contains_cidr(cidr))
    }
}

/// Whether a block lies in an enabled pool whose node selector does not match these labels (algorithm §7.3, §12.1).
pub(crate) fn is_deselected(pools: &[Seen<Pool>], labels: &BTreeMap<String, String>, cidr: Cidr) -> bool {
    home(pools, cidr).is_some_and(|pool| pools::selects_node(pool, labels) == Ok(false))
}

/// The enabled pool that a block lies in.
pub(crate) fn home(pools: &[Seen<Pool>], cidr: Cidr) -> Option<&Pool> {
    pools.iter().map(|seen| &seen.value).find(|pool| pool.is_enabled() && pool.cidr.contains_cidr(cidr))
}
