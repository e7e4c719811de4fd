//! What a node's agent knows without asking: the fold of its watches and of its own writes (architecture D5).
//!
//! Own blocks are kept whole. Of every other block only what claiming, borrowing and routing need: owner, revision, how
//! many ordinals wait in its queue, and which ordinals are used by another node than its owner. A record is only ever
//! replaced by a newer one, so that an own write is not undone by a watch that is behind.

use super::index::{Entry, Index};
use crate::block;
use crate::crossing::Crossing;
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

/// The fold.
#[derive(Clone, Debug)]
pub struct View {
    owner: Owner,
    pools: BTreeMap<String, Seen<Pool>>,
    config: BTreeMap<(), Seen<IpamConfig>>,
    reservations: BTreeMap<String, Seen<Reservation>>,
    /// What reservations name, and what two blocks have.
    reserved: ReservationSet,
    own_node: BTreeMap<(), Seen<Node>>,
    cluster: BTreeMap<(), Seen<ClusterInformation>>,
    affinities: BTreeMap<Cidr, Seen<Affinity>>,
    index: Index,
    /// Reservations and configuration that exist and were never understood: what may be given out is not known.
    opaque: BTreeSet<Key>,
    /// Blocks that lie in another one, as far as they are held back.
    crossed: BTreeSet<Cidr>,
    whole: BTreeMap<Cidr, Seen<Block>>,
    /// Own blocks by the handles that hold something in them.
    holders: BTreeMap<String, BTreeSet<Cidr>>,
    /// Blocks of others that are kept whole for now.
    borrowed: BTreeSet<Cidr>,
    /// Kinds that were listed, and up to where every change of them is known.
    complete: BTreeMap<Kind, Revision>,
    lost: BTreeSet<Kind>,
    /// How far the index of blocks is known to be complete.
    index_at: Revision,
    /// Blocks that went while a list of all blocks is under way, which may still show them.
    gone: Option<BTreeMap<Cidr, Revision>>,
    /// Grows with every change of pools, reservations or the node's own record.
    generation: u64,
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
        let owner = Owner::host(node);
        Self {
            index: Index::new(owner.clone()),
            owner,
            pools: BTreeMap::new(),
            config: BTreeMap::new(),
            reservations: BTreeMap::new(),
            reserved: ReservationSet::default(),
            own_node: BTreeMap::new(),
            cluster: BTreeMap::new(),
            affinities: BTreeMap::new(),
            opaque: BTreeSet::new(),
            crossed: BTreeSet::new(),
            whole: BTreeMap::new(),
            holders: BTreeMap::new(),
            borrowed: BTreeSet::new(),
            complete: BTreeMap::new(),
            lost: BTreeSet::new(),
            index_at: Revision::default(),
            gone: None,
            generation: 0,
        }
    }

    /// The node as owner of blocks.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Whether every scope has been listed once.
    pub fn is_complete(&self) -> bool {
        NEEDED.iter().all(|kind| self.complete.contains_key(kind))
    }

    /// Up to which revision every change of `kind` is known; `None` before its first list. What is known grows no older than
    /// the store's silence: see [`View::is_lost`].
    pub fn known_to(&self, kind: Kind) -> Option<Revision> {
        self.complete.get(&kind).copied()
    }

    /// Whether some scope's store does not answer, so that what is known grows old.
    pub fn is_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Whether writers are asked to stop, because the datastore is being migrated (data model §10).
    pub fn is_locked(&self) -> bool {
        self.cluster.get(&()).is_some_and(|seen| !seen.value.datastore_ready)
    }

    /// GUID of the cluster whose datastore this is, where it is known.
    pub fn cluster_guid(&self) -> Option<&str> {
        let seen = self.cluster.get(&())?;
        Some(seen.value.cluster_guid.as_str()).filter(|guid| !guid.is_empty())
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

    /// How long a released address rests. Where a configuration exists that was never understood, longer than anything lasts:
    /// what cools then stays as it is, and what is released cools too, until somebody can say for how long.
    pub(super) fn cooldown_seconds(&self) -> u32 {
        if self.opaque.contains(&Key::Config) { u32::MAX } else { self.config().ip_cooldown_seconds }
    }

    /// The node's labels.
    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.own_node.get(&()).map(|seen| &seen.value.labels)
    }

    /// The node's own record, where there is one.
    pub fn node(&self) -> Option<&Seen<Node>> {
        self.own_node.get(&())
    }

    /// What is never handed out automatically: what is reserved, and addresses of two blocks at once.
    pub fn reserved(&self) -> &ReservationSet {
        &self.reserved
    }

    /// All blocks, reduced.
    pub fn index(&self) -> &BTreeMap<Cidr, Entry> {
        self.index.entries()
    }

    /// The questions that a claim asks of them.
    pub(super) fn blocks(&self) -> &Index {
        &self.index
    }

    /// Whether what pools are selected by may have changed since `generation`; it is this now.
    pub(super) fn generation(&self) -> u64 {
        self.generation
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

    /// Own blocks in which `handle` holds something, or something cools down that it held.
    pub(super) fn held_by(&self, handle: &str) -> impl Iterator<Item = &Seen<Block>> {
        let blocks = self.holders.get(handle).into_iter().flatten();
        blocks.filter_map(|cidr| self.whole.get(cidr))
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
        self.index.get(cidr).is_some_and(|entry| entry.owner.as_ref() == Some(&self.owner))
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
        self.index
            .entries()
            .values()
            .flat_map(|entry| &entry.here)
            .map(|(address, name)| (*address, name.as_str()))
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
                // A store that was put back to an older state begins there again: what it said later is not so any more. A list
                // without a revision is of a kind that the server does not know, perhaps because it has only just started.
                if at > Revision::default() && self.known_to(kind).is_some_and(|known| known > at) {
                    self.replace(kind, Listing { revision: Revision(u64::MAX), ..Listing::default() });
                    if kind == Kind::Block {
                        self.index_at = at;
                    }
                }
                self.replace(kind, listing);
                self.complete.insert(kind, at);
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
            Change::Unreadable(key, at) => {
                match key {
                    // Nothing is to be put in its place, nor across it.
                    Key::Block(cidr) => self.unreadable(cidr, at, "it cannot be understood"),
                    // They are there, and hold as they were understood last: a reservation that was forgotten would be
                    // handed out, and the default configuration knows neither cooldown nor strictness.
                    Key::Config | Key::Reservation(_) => self.is_opaque(key),
                    Key::Node(_) | Key::ClusterInformation => {}
                    // What it says is not known any more.
                    key => self.forget(&key, at),
                }
                self.advance(kind, at);
            }
        }
        self.lost.remove(&kind);
    }

    /// Holds back what two blocks have, once they came to lie across each other, and gives free what only one has by now. To
    /// be called after changes and before anything is planned; answers which blocks it is about for the first time.
    pub(super) fn hold_back_shared(&mut self) -> Vec<Crossing> {
        if !self.crossed.iter().eq(self.index.crossed().keys()) {
            self.crossed = self.index.crossed().keys().copied().collect();
            self.reserve();
        }
        self.index.newly_crossed()
    }

    /// Notes a reservation or the configuration that cannot be understood, unless it was before.
    fn is_opaque(&mut self, key: Key) {
        let understood = match &key {
            Key::Config => !self.config.is_empty(),
            Key::Reservation(name) => self.reservations.contains_key(name),
            _ => true,
        };
        if !understood {
            self.opaque.insert(key);
        }
    }

    /// What has to be understood before anything may be given out, if there is such.
    pub(super) fn opaque(&self) -> Option<&Key> {
        self.opaque.first()
    }

    fn advance(&mut self, kind: Kind, at: Revision) {
        if let Some(known) = self.complete.get_mut(&kind) {
            *known = at.max(*known);
        }
        if kind == Kind::Block {
            self.index_at = self.index_at.max(at);
        }
    }

    /// Replaces a whole scope by a listing; also for a listing asked for out of turn.
    pub(super) fn replace(&mut self, kind: Kind, listing: Listing) {
        match kind {
            Kind::Pool => {
                reset(&mut self.pools, listing, |pool: &Pool| Some(pool.name.clone()));
                self.count_pools();
            }
            // What cannot be understood holds as it was understood last.
            Kind::Config if listing.unreadable.contains(&Key::Config) => self.is_opaque(Key::Config),
            Kind::Config => {
                self.opaque.remove(&Key::Config);
                reset(&mut self.config, listing, |_: &IpamConfig| Some(()));
            }
            Kind::Reservation => {
                self.opaque.retain(|key| *key == Key::Config);
                let unreadable = listing.unreadable.clone();
                let mut kept = self.reservations.clone();
                kept.retain(|name, _| listing.unreadable.contains(&Key::Reservation(name.clone())));
                reset(&mut self.reservations, listing, |found: &Reservation| Some(found.name.clone()));
                self.reservations.append(&mut kept);
                unreadable.into_iter().for_each(|key| self.is_opaque(key));
                self.reserve();
            }
            Kind::Node => {
                let own = self.owner.name.clone();
                reset(&mut self.own_node, listing, |node: &Node| (node.name == own).then_some(()));
                self.generation += 1;
            }
            Kind::Affinity => {
                let own = self.owner.clone();
                reset(&mut self.affinities, listing, |claim: &Affinity| {
                    (claim.owner == own && !claim.deleted).then_some(claim.cidr)
                });
            }
            Kind::Block => {
                let at = listing.revision;
                let old: BTreeSet<Cidr> = self
                    .index
                    .entries()
                    .iter()
                    .filter(|(_, entry)| entry.revision <= at)
                    .map(|(cidr, _)| *cidr)
                    .collect();
                let listed: BTreeSet<Cidr> = listing
                    .items
                    .iter()
                    .filter_map(|stored| match &stored.record {
                        datastore::Record::Block(found) => Some(found.cidr),
                        _ => None,
                    })
                    .collect();
                for cidr in old.difference(&listed) {
                    self.drop_block(*cidr);
                }
                for key in listing.unreadable {
                    if let Key::Block(cidr) = key {
                        self.unreadable(cidr, at, "it cannot be understood");
                    }
                }
                let gone = self.gone.clone().unwrap_or_default();
                for stored in listing.items {
                    let went = match stored.record.key() {
                        Key::Block(cidr) => gone.get(&cidr).copied(),
                        _ => None,
                    };
                    if went.is_none_or(|went| went < stored.version.revision) {
                        self.keep(stored);
                    }
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
        self.opaque.remove(&record.key());
        match record {
            datastore::Record::Pool(pool) => {
                put(&mut self.pools, pool.name.clone(), Seen { value: pool, version, created });
                self.count_pools();
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
                self.generation += 1;
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

    /// Takes the block of a commit that takes and releases for written before it is answered: a mistake, made on purpose only.
    pub(super) fn presume(&mut self, writes: &[datastore::Write]) {
        let handle = |write: &datastore::Write| matches!(write.record(), datastore::Record::Handle(_));
        let releases =
            |write: &datastore::Write| handle(write) && matches!(write, datastore::Write::Delete(..));
        if !writes.iter().any(releases) || !writes.iter().any(|write| handle(write) && !releases(write)) {
            return;
        }
        for write in writes {
            if let datastore::Write::Update(datastore::Record::Block(block), version) = write {
                let seen = Seen { value: block.clone(), version: version.clone(), created: None };
                self.put_whole(block.cidr, seen);
            }
        }
    }

    fn keep_block(&mut self, seen: Seen<Block>) {
        let cidr = seen.value.cidr;
        let wanted = seen.value.affinity.as_ref() == Some(&self.owner) || self.borrowed.contains(&cidr);
        if let Some(known) = self.index.get(cidr) {
            // The watch tells of own writes too: what is known already is not taken apart again.
            let same = known.revision == seen.version.revision;
            let done = !wanted || known.fault.is_some() || self.whole.contains_key(&cidr);
            if known.revision > seen.version.revision || (same && done) {
                return;
            }
        }
        let entry = Entry::of(&seen.value, seen.version.revision, &self.owner.name, &self.reserved);
        let sound = entry.fault.is_none();
        self.index.put(cidr, entry);
        if wanted && sound {
            self.put_whole(cidr, seen);
        } else {
            self.drop_whole(cidr);
        }
    }

    fn put_whole(&mut self, cidr: Cidr, seen: Seen<Block>) {
        let mine = seen.value.affinity.as_ref() == Some(&self.owner);
        let before = self.whole.insert(cidr, seen);
        let now = self.whole.get(&cidr).filter(|_| mine);
        let before = before.filter(|before| before.value.affinity.as_ref() == Some(&self.owner));
        let old = before.as_ref().map(|seen| handles_in(&seen.value)).unwrap_or_default();
        let new = now.map(|seen| handles_in(&seen.value)).unwrap_or_default();
        for handle in old.difference(&new) {
            unhold(&mut self.holders, handle, cidr);
        }
        for handle in new.difference(&old) {
            self.holders.entry((*handle).to_owned()).or_default().insert(cidr);
        }
    }

    fn drop_whole(&mut self, cidr: Cidr) {
        let Some(before) = self.whole.remove(&cidr) else { return };
        for handle in handles_in(&before.value) {
            unhold(&mut self.holders, handle, cidr);
        }
    }

    fn drop_block(&mut self, cidr: Cidr) {
        self.index.remove(cidr);
        self.drop_whole(cidr);
    }

    /// Takes one record out that was deleted at `at`.
    pub(super) fn forget(&mut self, key: &Key, at: Revision) {
        self.opaque.remove(key);
        match key {
            Key::Pool(name) => {
                remove(&mut self.pools, name, at);
                self.count_pools();
            }
            Key::Config => remove(&mut self.config, &(), at),
            Key::Reservation(name) => {
                remove(&mut self.reservations, name, at);
                self.reserve();
            }
            Key::Node(name) if *name == self.owner.name => {
                remove(&mut self.own_node, &(), at);
                self.generation += 1;
            }
            Key::Affinity(owner, cidr) if *owner == self.owner => remove(&mut self.affinities, cidr, at),
            Key::Block(cidr) => {
                if self.index.get(*cidr).is_some_and(|entry| entry.revision <= at) {
                    self.drop_block(*cidr);
                }
                if let Some(gone) = &mut self.gone {
                    let went = gone.entry(*cidr).or_default();
                    *went = at.max(*went);
                }
            }
            Key::ClusterInformation => remove(&mut self.cluster, &(), at),
            Key::Node(_) | Key::Affinity(..) | Key::Handle(_) => {}
        }
    }

    /// The revision in which a record is known, to be remembered when it is read again.
    pub(super) fn known_at(&self, key: &Key) -> Option<Revision> {
        match key {
            Key::Pool(name) => self.pools.get(name).map(|seen| seen.version.revision),
            Key::Affinity(_, cidr) => self.affinities.get(cidr).map(|seen| seen.version.revision),
            Key::Block(cidr) => self.index.get(*cidr).map(|entry| entry.revision),
            _ => None,
        }
    }

    /// Takes a record out that a read did not find, unless it came to be known anew since the read began: `known` is
    /// what [`View::known_at`] said then.
    pub(super) fn absent(&mut self, key: &Key, known: Option<Revision>) {
        if let Some(at) = known {
            self.forget(key, at);
        }
    }

    /// Notes a block that exists and cannot be understood, unless it is known in a newer state.
    pub(super) fn unreadable(&mut self, cidr: Cidr, at: Revision, reason: &str) {
        if self.index.get(cidr).is_none_or(|known| known.revision <= at) {
            self.drop_whole(cidr);
            self.index.put(cidr, Entry::unreadable(at, reason));
        }
    }

    /// How far the index of blocks reaches.
    pub(super) fn index_at(&self) -> Revision {
        self.index_at
    }

    /// A list of all blocks is asked for out of turn.
    pub(super) fn listing_begins(&mut self) {
        self.gone = Some(BTreeMap::new());
    }

    /// It came, or will not come.
    pub(super) fn listing_ends(&mut self) {
        self.gone = None;
    }

    /// Keeps a block of somebody else whole from the next sight on.
    pub(super) fn borrow_from(&mut self, cidr: Cidr) {
        self.borrowed.insert(cidr);
    }

    /// Goes back to the reduced form of a block of somebody else.
    pub(super) fn done_borrowing(&mut self, cidr: Cidr) {
        if self.borrowed.remove(&cidr) && !self.owns(cidr) {
            self.drop_whole(cidr);
        }
    }

    /// Blocks of others kept whole.
    pub(super) fn borrowing(&self) -> Vec<Cidr> {
        self.borrowed.iter().copied().collect()
    }

    fn reserve(&mut self) {
        let reserved = ReservationSet::new(self.reservations.values().map(|seen| &seen.value))
            .with(&ReservationSet::of_cidrs(self.crossed.iter().copied()));
        let before = std::mem::replace(&mut self.reserved, reserved);
        self.index.recount(&before, &self.reserved);
        self.generation += 1;
    }

    fn count_pools(&mut self) {
        self.index.count_for(self.pools.values().map(|seen| &seen.value));
        self.generation += 1;
    }
}

/// Handles that hold something in a block, or whose name is still on something that cools down.
fn handles_in(found: &Block) -> BTreeSet<&str> {
    found
        .attributes
        .iter()
        .filter_map(|attribute| attribute.handle_id.as_deref().map(block::sanitized))
        .collect()
}

fn unhold(holders: &mut BTreeMap<String, BTreeSet<Cidr>>, handle: &str, cidr: Cidr) {
    if let Some(blocks) = holders.get_mut(handle) {
        blocks.remove(&cidr);
        if blocks.is_empty() {
            holders.remove(handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datastore::{ReadError, Record, Version};

    fn pool(revision: u64) -> Stored {
        let record = Record::Pool(Pool::with_defaults("p", "10.0.0.0/16".parse().unwrap()));
        Stored { record, version: Version { revision: Revision(revision), uid: None }, created: None }
    }

    #[test]
    fn a_view_knows_how_far_each_kind_is_known() {
        let mut view = View::new("n");
        let listing = |at: u64| Change::Reset(Listing { revision: Revision(at), ..Listing::default() });
        // A change says nothing of what was before it.
        view.fold(Kind::Pool, Change::Put(pool(3)));
        assert_eq!(view.known_to(Kind::Pool), None);
        view.fold(Kind::Pool, listing(5));
        assert_eq!((view.known_to(Kind::Pool), view.known_to(Kind::Block)), (Some(Revision(5)), None));
        assert!(!view.is_complete(), "one kind is not all");
        view.fold(Kind::Pool, Change::Progress(Revision(9)));
        view.fold(Kind::Pool, Change::Put(pool(7)));
        assert_eq!(view.known_to(Kind::Pool), Some(Revision(9)));
        let lost = ReadError::Unavailable { what: "pools".to_owned(), reason: "gone".to_owned() };
        view.fold(Kind::Pool, Change::Lost(lost));
        assert!(view.is_lost());
        assert_eq!(view.known_to(Kind::Pool), Some(Revision(9)), "and no further");
        for kind in NEEDED {
            view.fold(kind, listing(11));
        }
        assert!(view.is_complete() && !view.is_lost());
        // Put back from a copy, the store counts from an older revision, and has nothing of what came after it.
        assert_eq!(view.pools().count(), 0);
        view.fold(Kind::Pool, Change::Put(pool(12)));
        view.fold(Kind::Pool, listing(0));
        assert_eq!(view.pools().count(), 1, "a server that has just started may not know the kind yet");
        view.fold(Kind::Pool, Change::Progress(Revision(13)));
        view.fold(Kind::Pool, listing(4));
        assert_eq!((view.known_to(Kind::Pool), view.pools().count()), (Some(Revision(4)), 0));
        view.fold(Kind::Block, listing(4));
        view.fold(Kind::Pool, Change::Put(pool(5)));
        let pools: Vec<Pool> = view.pools().cloned().collect();
        assert!(!view.covers(&pools), "the index is not newer than its list");
    }
}
