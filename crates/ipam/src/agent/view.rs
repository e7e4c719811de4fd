//! What a node's agent knows without asking: the fold of its watches and of its own writes (architecture D5).
//!
//! Own blocks are kept whole. Of every other block only what claiming, borrowing and routing need: owner, revision, how
//! many ordinals wait in its queue, and which ordinals are used by another node than its owner. A record is only ever
//! replaced by a newer one, so that an own write is not undone by a watch that is behind.

use crate::block;
use crate::reservations::ReservationSet;
use crate::seen::{Recorded, Seen};
use api::{
    Affinity, AffinityState, Block, Cidr, ClusterInformation, IpamConfig, Node, Owner, Pool, Reservation, Use,
};
use datastore::follow::Change;
use datastore::{Key, Kind, Listing, Revision, Stored};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Scopes that must be complete before anything is decided.
const NEEDED: [Kind; 7] = [
    Kind::Pool,
    Kind::Block,
    Kind::Affinity,
    Kind::Config,
    Kind::Reservation,
    Kind::Node,
    Kind::ClusterInformation,
];

/// What is kept of every block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Owner, if it has one.
    pub owner: Option<Owner>,
    /// Revision this was seen at.
    pub revision: Revision,
    /// Ordinals in its queue; reserved ones are counted.
    pub free: usize,
    /// What is wrong with it, if it contradicts itself: nothing is taken from it or released in it then.
    pub fault: Option<String>,
    /// Used ordinals whose `node` attribute is not the owner, and that node.
    pub elsewhere: BTreeMap<u32, String>,
    /// Addresses of pods of this node, with the host end of their interface.
    pub here: BTreeMap<IpAddr, String>,
}

/// The fold.
#[derive(Clone, Debug)]
pub struct View {
    owner: Owner,
    pools: BTreeMap<String, Seen<Pool>>,
    config: BTreeMap<(), Seen<IpamConfig>>,
    reservations: BTreeMap<String, Seen<Reservation>>,
    reserved: ReservationSet,
    own_node: BTreeMap<(), Seen<Node>>,
    cluster: BTreeMap<(), Seen<ClusterInformation>>,
    affinities: BTreeMap<Cidr, Seen<Affinity>>,
    index: BTreeMap<Cidr, Entry>,
    whole: BTreeMap<Cidr, Seen<Block>>,
    /// Blocks of others that are kept whole for now.
    borrowed: BTreeSet<Cidr>,
    complete: BTreeSet<Kind>,
    lost: BTreeSet<Kind>,
    /// How far the index of blocks is known to be complete.
    index_at: Revision,
}

/// Puts a record unless a newer one is known.
fn put<K: Ord, T>(map: &mut BTreeMap<K, Seen<T>>, key: K, seen: Seen<T>) {
    if map.get(&key).is_none_or(|known| known.version.revision <= seen.version.revision) {
        map.insert(key, seen);
    }
}

/// Removes a record unless it is newer than the delete.
fn remove<K: Ord, T>(map: &mut BTreeMap<K, Seen<T>>, key: &K, at: Revision) {
    if map.get(key).is_some_and(|known| known.version.revision <= at) {
        map.remove(key);
    }
}

/// Replaces everything by a listing, except what was written after it.
fn reset<K: Ord, T: Recorded>(
    map: &mut BTreeMap<K, Seen<T>>,
    listing: Listing,
    key: impl Fn(&T) -> Option<K>,
) {
    map.retain(|_, known| known.version.revision > listing.revision);
    for seen in listing.items.into_iter().filter_map(Seen::<T>::from_stored) {
        if let Some(key) = key(&seen.value) {
            put(map, key, seen);
        }
    }
}

impl View {
    /// Knows nothing yet.
    pub(super) fn new(node: &str) -> Self {
        Self {
            owner: Owner::host(node),
            pools: BTreeMap::new(),
            config: BTreeMap::new(),
            reservations: BTreeMap::new(),
            reserved: ReservationSet::default(),
            own_node: BTreeMap::new(),
            cluster: BTreeMap::new(),
            affinities: BTreeMap::new(),
            index: BTreeMap::new(),
            whole: BTreeMap::new(),
            borrowed: BTreeSet::new(),
            complete: BTreeSet::new(),
            lost: BTreeSet::new(),
            index_at: Revision::default(),
        }
    }

    /// The node as owner of blocks.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Whether every scope has been listed once.
    pub fn is_complete(&self) -> bool {
        NEEDED.iter().all(|kind| self.complete.contains(kind))
    }

    /// Whether some scope's store does not answer, so that what is known grows old.
    pub fn is_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Whether writers are asked to stop, because the datastore is being migrated (data model §10).
    pub fn is_locked(&self) -> bool {
        self.cluster.get(&()).is_some_and(|seen| !seen.value.datastore_ready)
    }

    /// Pools in pool order.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values().map(|seen| &seen.value)
    }

    /// A pool with the version it was seen in.
    pub(super) fn pool(&self, name: &str) -> Option<&Seen<Pool>> {
        self.pools.get(name)
    }

    /// The configuration; the default where there is none.
    pub fn config(&self) -> IpamConfig {
        self.config.get(&()).map(|seen| seen.value.clone()).unwrap_or_default()
    }

    /// The node's labels.
    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.own_node.get(&()).map(|seen| &seen.value.labels)
    }

    /// The node's own record, where there is one.
    pub fn node(&self) -> Option<&Seen<Node>> {
        self.own_node.get(&())
    }

    /// What is never handed out automatically.
    pub fn reserved(&self) -> &ReservationSet {
        &self.reserved
    }

    /// All blocks, reduced.
    pub fn index(&self) -> &BTreeMap<Cidr, Entry> {
        &self.index
    }

    /// The node's own claims, in any state.
    pub fn affinities(&self) -> &BTreeMap<Cidr, Seen<Affinity>> {
        &self.affinities
    }

    /// A block that is kept whole: an own one, or one borrowed from.
    pub fn whole(&self, cidr: Cidr) -> Option<&Seen<Block>> {
        self.whole.get(&cidr)
    }

    /// The node's own blocks.
    pub fn own_blocks(&self) -> impl Iterator<Item = &Seen<Block>> {
        self.whole.values().filter(|seen| seen.value.affinity.as_ref() == Some(&self.owner))
    }

    /// Whether the block is this node's and its claim is confirmed: addresses may be taken from it.
    pub(super) fn is_in_hand(&self, cidr: Cidr) -> bool {
        self.owns(cidr)
            && self
                .affinities
                .get(&cidr)
                .is_some_and(|seen| seen.value.state == AffinityState::Confirmed && !seen.value.deleted)
    }

    /// Whether the block exists and carries this node as owner.
    pub(super) fn owns(&self, cidr: Cidr) -> bool {
        self.index.get(&cidr).is_some_and(|entry| entry.owner.as_ref() == Some(&self.owner))
    }

    /// Whether the index of blocks is complete at a revision not older than that of any of `pools`.
    pub(super) fn covers(&self, pools: &[Pool]) -> bool {
        pools
            .iter()
            .all(|pool| self.pools.get(&pool.name).is_some_and(|seen| seen.version.revision <= self.index_at))
    }

    /// The enabled pool that holds an address or block, whatever its selectors say.
    pub(super) fn pool_around(&self, address: IpAddr) -> Option<&Pool> {
        self.pools().find(|pool| pool.is_enabled() && pool.cidr.contains(address))
    }

    /// Pools that tunnel addresses may come from, before selectors (dataplane §4.3).
    pub fn tunnel_pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools().filter(|pool| {
            pool.is_enabled()
                && pool.vxlan_mode != api::Encapsulation::Never
                && pool.allowed_uses.contains(&Use::Tunnel)
        })
    }

    /// Addresses of this node's pods and the host ends of their interfaces.
    pub fn endpoints(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.index.values().flat_map(|entry| &entry.here).map(|(address, name)| (*address, name.as_str()))
    }

    /// Folds one change of the scope of `kind`.
    pub(super) fn fold(&mut self, kind: Kind, change: Change) {
        match change {
            Change::Lost(_) => {
                self.lost.insert(kind);
                return;
            }
            Change::Progress(at) => self.advance(kind, at),
            Change::Reset(listing) => {
                let at = listing.revision;
                self.replace(kind, listing);
                self.complete.insert(kind);
                self.advance(kind, at);
            }
            Change::Put(stored) => {
                let at = stored.version.revision;
                self.keep(stored);
                self.advance(kind, at);
            }
            Change::Deleted(key, at) => {
                self.forget(&key, at);
                self.advance(kind, at);
            }
        }
        self.lost.remove(&kind);
    }

    fn advance(&mut self, kind: Kind, at: Revision) {
        if kind == Kind::Block {
            self.index_at = self.index_at.max(at);
        }
    }

    /// Replaces a whole scope by a listing; also for a listing asked for out of turn.
    pub(super) fn replace(&mut self, kind: Kind, listing: Listing) {
        match kind {
            Kind::Pool => reset(&mut self.pools, listing, |pool: &Pool| Some(pool.name.clone())),
            Kind::Config => reset(&mut self.config, listing, |_: &IpamConfig| Some(())),
            Kind::Reservation => {
                reset(&mut self.reservations, listing, |found: &Reservation| Some(found.name.clone()));
                self.reserve();
            }
            Kind::Node => {
                let own = self.owner.name.clone();
                reset(&mut self.own_node, listing, |node: &Node| (node.name == own).then_some(()));
            }
            Kind::Affinity => {
                let own = self.owner.clone();
                reset(&mut self.affinities, listing, |claim: &Affinity| {
                    (claim.owner == own && !claim.deleted).then_some(claim.cidr)
                });
            }
            Kind::Block => {
                let at = listing.revision;
                self.index.retain(|_, entry| entry.revision > at);
                self.whole.retain(|_, seen| seen.version.revision > at);
                for stored in listing.items {
                    self.keep(stored);
                }
                self.index_at = self.index_at.max(at);
            }
            Kind::ClusterInformation => {
                reset(&mut self.cluster, listing, |_: &ClusterInformation| Some(()));
            }
            Kind::Handle => {}
        }
    }

    /// Puts one record as read, watched or written.
    pub(super) fn keep(&mut self, stored: Stored) {
        if stored.record.is_deleted() {
            self.forget(&stored.record.key(), stored.version.revision);
            return;
        }
        let Stored { record, version, created } = stored;
        match record {
            datastore::Record::Pool(pool) => {
                put(&mut self.pools, pool.name.clone(), Seen { value: pool, version, created });
            }
            datastore::Record::Config(config) => {
                put(&mut self.config, (), Seen { value: config, version, created });
            }
            datastore::Record::Reservation(found) => {
                put(&mut self.reservations, found.name.clone(), Seen { value: found, version, created });
                self.reserve();
            }
            datastore::Record::Node(node) if node.name == self.owner.name => {
                put(&mut self.own_node, (), Seen { value: node, version, created });
            }
            datastore::Record::Affinity(claim) if claim.owner == self.owner => {
                put(&mut self.affinities, claim.cidr, Seen { value: claim, version, created });
            }
            datastore::Record::ClusterInformation(cluster) => {
                put(&mut self.cluster, (), Seen { value: cluster, version, created });
            }
            datastore::Record::Block(found) => self.keep_block(Seen { value: found, version, created }),
            datastore::Record::Node(_) | datastore::Record::Affinity(_) | datastore::Record::Handle(_) => {}
        }
    }

    fn keep_block(&mut self, seen: Seen<Block>) {
        let cidr = seen.value.cidr;
        if self.index.get(&cidr).is_some_and(|known| known.revision > seen.version.revision) {
            return;
        }
        let entry = entry(&seen, &self.owner.name);
        let sound = entry.fault.is_none();
        self.index.insert(cidr, entry);
        let wanted = seen.value.affinity.as_ref() == Some(&self.owner) || self.borrowed.contains(&cidr);
        if wanted && sound {
            self.whole.insert(cidr, seen);
        } else {
            self.whole.remove(&cidr);
        }
    }

    /// Takes one record out that was deleted at `at`.
    pub(super) fn forget(&mut self, key: &Key, at: Revision) {
        match key {
            Key::Pool(name) => remove(&mut self.pools, name, at),
            Key::Config => remove(&mut self.config, &(), at),
            Key::Reservation(name) => {
                remove(&mut self.reservations, name, at);
                self.reserve();
            }
            Key::Node(name) if *name == self.owner.name => remove(&mut self.own_node, &(), at),
            Key::Affinity(owner, cidr) if *owner == self.owner => remove(&mut self.affinities, cidr, at),
            Key::Block(cidr) => {
                if self.index.get(cidr).is_some_and(|entry| entry.revision <= at) {
                    self.index.remove(cidr);
                    self.whole.remove(cidr);
                }
            }
            Key::ClusterInformation => remove(&mut self.cluster, &(), at),
            Key::Node(_) | Key::Affinity(..) | Key::Handle(_) => {}
        }
    }

    /// Takes a record out that a read did not find.
    pub(super) fn absent(&mut self, key: &Key) {
        self.forget(key, Revision(u64::MAX));
    }

    /// Keeps a block of somebody else whole from the next sight on.
    pub(super) fn borrow_from(&mut self, cidr: Cidr) {
        self.borrowed.insert(cidr);
    }

    /// Goes back to the reduced form of a block of somebody else.
    pub(super) fn done_borrowing(&mut self, cidr: Cidr) {
        if self.borrowed.remove(&cidr) && !self.owns(cidr) {
            self.whole.remove(&cidr);
        }
    }

    /// Blocks of others kept whole.
    pub(super) fn borrowing(&self) -> Vec<Cidr> {
        self.borrowed.iter().copied().collect()
    }

    fn reserve(&mut self) {
        self.reserved = ReservationSet::new(self.reservations.values().map(|seen| &seen.value));
    }
}

fn entry(seen: &Seen<Block>, own: &str) -> Entry {
    let found = &seen.value;
    let owner = found.affinity.clone();
    let (mut elsewhere, mut here) = (BTreeMap::new(), BTreeMap::new());
    for (ordinal, attribute) in block::allocated(found).filter(|(_, held)| held.released_at.is_none()) {
        let Some(node) = attribute.secondary.get("node") else { continue };
        if owner.as_ref().is_none_or(|owner| owner.name != *node) {
            elsewhere.insert(ordinal.0, node.clone());
        }
        if let (true, Some(address), Some(namespace), Some(pod)) = (
            node == own,
            found.cidr.address(ordinal),
            attribute.secondary.get("namespace"),
            attribute.secondary.get("pod"),
        ) {
            here.insert(address, api::attachment::host_interface(namespace, pod));
        }
    }
    let fault = block::fault(found);
    let free = if fault.is_none() { found.unallocated.len() } else { 0 };
    Entry { owner, revision: seen.version.revision, free, fault, elsewhere, here }
}
