//! The reduced index of all blocks (architecture D5): who owns what, where room is, and which networks are free.
//!
//! Everything that a claim asks is answered without walking the blocks: the next free network of a pool, whether a
//! network overlaps a block, how many blocks a pool has, and which blocks of others have room.

mod crossed;

use super::runs::Covered;
use crate::block;
use crate::candidate::candidates_past;
use crate::crossing::Crossing;
use crate::explain::PoolFill;
use crate::reservations::ReservationSet;
use api::{Block, Cidr, IpVersion, Ordinal, Owner, Pool};
use datastore::Revision;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What is kept of every block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Owner, if it has one.
    pub owner: Option<Owner>,
    /// Revision this was seen at.
    pub revision: Revision,
    /// Addresses that can be handed out: ordinals in its queue that are not reserved.
    pub free: usize,
    /// When it was claimed, in seconds since 1970, if nothing is in it but what its host keeps: what nobody uses another node
    /// may have.
    unused_since: Option<u32>,
    /// What is wrong with it, if it contradicts itself: nothing is taken from it or released in it then.
    pub fault: Option<String>,
    /// Used ordinals whose `node` attribute is not the owner, and that node.
    pub elsewhere: BTreeMap<u32, String>,
    /// Addresses of pods of this node, with the host end of their interface.
    pub here: BTreeMap<IpAddr, String>,
    /// Ordinals in its queue.
    queued: Bits,
}

impl Entry {
    /// What is kept of `found` by the node `own`.
    pub(super) fn of(found: &Block, revision: Revision, own: &str, reserved: &ReservationSet) -> Self {
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
        let sound = fault.is_none();
        let unused = sound && block::is_empty(found);
        let mut entry = Self {
            owner,
            revision,
            free: 0,
            unused_since: unused.then(|| seconds(found.claim_time)),
            fault,
            elsewhere,
            here,
            queued: if sound { Bits::of(&found.unallocated) } else { Bits::Few(0) },
        };
        entry.count(found.cidr, reserved);
        entry
    }

    /// Counts what is free of the block anew.
    fn count(&mut self, cidr: Cidr, reserved: &ReservationSet) {
        let taken_out =
            |ordinal: &Ordinal| cidr.address(*ordinal).is_none_or(|address| reserved.covers_address(address));
        self.free = if reserved.touches(cidr) {
            self.ordinals().filter(|ordinal| !taken_out(ordinal)).count()
        } else {
            self.waiting()
        };
    }

    /// Ordinals in its queue, reserved ones among them.
    pub(super) fn waiting(&self) -> usize {
        let bits: u32 = self.queued.words().iter().map(|word| word.count_ones()).sum();
        usize::try_from(bits).unwrap_or(usize::MAX)
    }

    /// Whether nobody uses it, and it was claimed at least `age` ago.
    pub(super) fn is_unused_for(&self, age: SignedDuration, now: Timestamp) -> bool {
        self.unused_since.is_some_and(|since| now.as_second() - i64::from(since) >= age.as_secs())
    }

    fn ordinals(&self) -> impl Iterator<Item = Ordinal> + '_ {
        let words = (0_u32..).zip(self.queued.words());
        words.flat_map(|(at, word)| {
            (0..u64::BITS)
                .filter(move |bit| word >> bit & 1 == 1)
                .map(move |bit| Ordinal(at * u64::BITS + bit))
        })
    }

    /// A block that exists and cannot be understood: nothing may be put in its place.
    pub(super) fn unreadable(revision: Revision, reason: &str) -> Self {
        Self {
            owner: None,
            revision,
            free: 0,
            unused_since: None,
            fault: Some(reason.to_owned()),
            elsewhere: BTreeMap::new(),
            here: BTreeMap::new(),
            queued: Bits::Few(0),
        }
    }
}

/// Whole seconds since 1970; 0 where a claim time is not known, which is very old.
fn seconds(claimed: Option<Timestamp>) -> u32 {
    claimed.map_or(0, |at| {
        u32::try_from(at.as_second()).unwrap_or(if at.as_second() < 0 { 0 } else { u32::MAX })
    })
}

/// Ordinals, one bit each, lowest first: a word for the blocks that most pools are cut into.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Bits {
    Few(u64),
    Many(Box<[u64]>),
}

impl Bits {
    fn of(ordinals: &[u32]) -> Self {
        let words = ordinals.iter().max().map_or(1, |last| last / u64::BITS + 1);
        let mut bits = vec![0_u64; usize::try_from(words).unwrap_or(0)];
        for ordinal in ordinals {
            let word = usize::try_from(ordinal / u64::BITS).ok().and_then(|at| bits.get_mut(at));
            if let Some(word) = word {
                *word |= 1 << (ordinal % u64::BITS);
            }
        }
        match bits[..] {
            [word] => Self::Few(word),
            _ => Self::Many(bits.into()),
        }
    }

    fn words(&self) -> &[u64] {
        match self {
            Self::Few(word) => std::slice::from_ref(word),
            Self::Many(words) => words,
        }
    }
}

/// Blocks of one pool.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    blocks: u64,
    own: u64,
}

/// The index.
#[derive(Clone, Debug)]
pub(super) struct Index {
    me: Owner,
    entries: BTreeMap<Cidr, Entry>,
    covered: Covered,
    /// Blocks that lie in another one, and the smallest around each.
    crossed: BTreeMap<Cidr, Cidr>,
    /// Those of them that nobody was told of yet.
    untold: Vec<Crossing>,
    /// Blocks that are not this node's and have an address left.
    lendable: BTreeSet<Cidr>,
    /// Blocks that are not this node's and whose free addresses are all reserved.
    withheld: BTreeSet<Cidr>,
    /// Blocks that are not this node's and that nobody uses.
    unused: BTreeSet<Cidr>,
    /// By the pool's CIDR.
    tallies: BTreeMap<Cidr, Tally>,
}

impl Index {
    pub(super) fn new(me: Owner) -> Self {
        Self {
            me,
            entries: BTreeMap::new(),
            covered: Covered::default(),
            crossed: BTreeMap::new(),
            untold: Vec::new(),
            lendable: BTreeSet::new(),
            withheld: BTreeSet::new(),
            unused: BTreeSet::new(),
            tallies: BTreeMap::new(),
        }
    }

    pub(super) fn entries(&self) -> &BTreeMap<Cidr, Entry> {
        &self.entries
    }

    pub(super) fn get(&self, cidr: Cidr) -> Option<&Entry> {
        self.entries.get(&cidr)
    }

    pub(super) fn put(&mut self, cidr: Cidr, entry: Entry) {
        let mine = entry.owner.as_ref() == Some(&self.me);
        self.file(cidr, &entry);
        let before = self.entries.insert(cidr, entry);
        if before.is_none() {
            let covered = self.covered.of_mut(cidr.version());
            let is_across = covered.end_of_run_in(cidr).is_some();
            covered.add(cidr);
            if is_across {
                self.cross(cidr);
            }
        }
        let was_mine = before.as_ref().is_some_and(|before| before.owner.as_ref() == Some(&self.me));
        self.tally(cidr, |tally| {
            tally.blocks += u64::from(before.is_none());
            tally.own = tally.own + u64::from(mine) - u64::from(was_mine);
        });
    }

    /// Notes what a block of another is good for.
    fn file(&mut self, cidr: Cidr, entry: &Entry) {
        let others = entry.owner.as_ref() != Some(&self.me);
        set(&mut self.lendable, cidr, others && entry.free > 0);
        set(&mut self.withheld, cidr, others && entry.free == 0 && entry.waiting() > 0);
        set(&mut self.unused, cidr, others && entry.unused_since.is_some());
    }

    /// What is reserved changed: counts what is free in the blocks that either touches.
    pub(super) fn recount(&mut self, before: &ReservationSet, now: &ReservationSet) {
        let mut entries = std::mem::take(&mut self.entries);
        for (cidr, entry) in &mut entries {
            if before.touches(*cidr) || now.touches(*cidr) {
                entry.count(*cidr, now);
                self.file(*cidr, entry);
            }
        }
        self.entries = entries;
    }

    pub(super) fn remove(&mut self, cidr: Cidr) {
        let Some(before) = self.entries.remove(&cidr) else { return };
        for blocks in [&mut self.lendable, &mut self.withheld, &mut self.unused] {
            blocks.remove(&cidr);
        }
        let was_mine = before.owner.as_ref() == Some(&self.me);
        self.tally(cidr, |tally| {
            tally.blocks -= 1;
            tally.own -= u64::from(was_mine);
        });
        self.covered.of_mut(cidr.version()).remove(cidr);
        // Blocks that an operator made across each other cover what is left of each.
        let others = self.overlapping(cidr);
        for other in &others {
            self.covered.of_mut(cidr.version()).add(*other);
        }
        if !others.is_empty() {
            self.crossed.remove(&cidr);
            others
                .into_iter()
                .filter(|other| cidr.contains_cidr(*other))
                .for_each(|inside| self.cross_in(inside));
        }
    }

    fn tally(&mut self, cidr: Cidr, change: impl Fn(&mut Tally)) {
        for (_, tally) in self.tallies.iter_mut().filter(|(pool, _)| pool.contains_cidr(cidr)) {
            change(tally);
        }
    }

    /// Counts blocks for exactly these pools from now on.
    pub(super) fn count_for<'a>(&mut self, pools: impl IntoIterator<Item = &'a Pool>) {
        let mut before = std::mem::take(&mut self.tallies);
        for cidr in pools.into_iter().map(|pool| pool.cidr) {
            let tally = before.remove(&cidr).unwrap_or_else(|| {
                let mut tally = Tally::default();
                for (_, entry) in self.within(cidr) {
                    tally.blocks += 1;
                    tally.own += u64::from(entry.owner.as_ref() == Some(&self.me));
                }
                tally
            });
            self.tallies.insert(cidr, tally);
        }
    }

    /// How full a pool is.
    pub(super) fn fill(&self, pool: &Pool) -> PoolFill {
        let tally = self.tallies.get(&pool.cidr).copied().unwrap_or_default();
        PoolFill {
            pool: pool.name.clone(),
            cidr: pool.cidr,
            blocks: u64::try_from(pool.cidr.block_count(pool.block_size)).unwrap_or(u64::MAX),
            claimed: tally.blocks,
            own: tally.own,
        }
    }

    fn within(&self, pool: Cidr) -> impl Iterator<Item = (&Cidr, &Entry)> {
        self.entries.range(pool..).take_while(move |(cidr, _)| pool.contains_cidr(**cidr))
    }

    /// Blocks that share an address with `cidr`, itself included.
    pub(super) fn overlapping(&self, cidr: Cidr) -> Vec<Cidr> {
        let around = (0..cidr.prefix())
            .filter_map(|prefix| Cidr::containing(cidr.network(), prefix))
            .filter(|wider| self.entries.contains_key(wider));
        around.chain(self.within(cidr).map(|(inside, _)| *inside)).collect()
    }

    /// The first network of `pool`, in the order of `node`, that may be claimed: no block lies in or across it, it is not
    /// reserved as a whole, and it is none of `passed_over`.
    ///
    /// Takes no longer for more blocks that lie side by side, nor for a larger pool.
    pub(super) fn unclaimed(
        &self,
        pool: &Pool,
        node: &str,
        now: Timestamp,
        reserved: &ReservationSet,
        passed_over: &BTreeSet<Cidr>,
    ) -> Option<Cidr> {
        let covered = self.covered.of(pool.cidr.version());
        candidates_past(pool, node, now, |network| {
            covered
                .end_of_run_in(network)
                .or_else(|| reserved.last_around(network))
                .or_else(|| passed_over.contains(&network).then(|| network.last()))
        })
        .next()
    }

    /// Blocks of others in `pool` that have an address left, from the network numbered `start` on, with wrap-around.
    pub(super) fn lendable<'a>(&'a self, pool: &'a Pool, start: u128) -> impl Iterator<Item = Cidr> + 'a {
        around(&self.lendable, pool, start)
    }

    /// Blocks of others in `pool` whose free addresses are all reserved.
    pub(super) fn withheld<'a>(&'a self, pool: &'a Pool) -> impl Iterator<Item = Cidr> + 'a {
        around(&self.withheld, pool, 0)
    }

    /// Blocks of others in `pool` that nobody uses, from the network numbered `start` on, with wrap-around.
    pub(super) fn unused<'a>(
        &'a self,
        pool: &'a Pool,
        start: u128,
    ) -> impl Iterator<Item = (Cidr, &'a Entry)> {
        around(&self.unused, pool, start).filter_map(|cidr| Some((cidr, self.entries.get(&cidr)?)))
    }

    /// The block that holds `address`.
    pub(super) fn holding(&self, address: IpAddr) -> Option<Cidr> {
        let bits = IpVersion::of(address).bits();
        let networks = (0..=bits).rev().filter_map(|prefix| Cidr::containing(address, prefix));
        networks.into_iter().find(|network| self.entries.contains_key(network))
    }
}

fn set(blocks: &mut BTreeSet<Cidr>, cidr: Cidr, belongs: bool) {
    if belongs {
        blocks.insert(cidr);
    } else {
        blocks.remove(&cidr);
    }
}

fn around<'a>(blocks: &'a BTreeSet<Cidr>, pool: &'a Pool, start: u128) -> impl Iterator<Item = Cidr> + 'a {
    let from = pool.cidr.nth_block(pool.block_size, start).unwrap_or(pool.cidr);
    let ahead = blocks.range(from..).take_while(|cidr| pool.cidr.contains_cidr(**cidr));
    let behind = blocks.range(pool.cidr.min(from)..from);
    ahead.chain(behind).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn pool(text: &str, block_size: u8) -> Pool {
        let mut pool = Pool::with_defaults("p", cidr(text));
        pool.block_size = block_size;
        pool
    }

    fn index(blocks: &[(&str, &str)]) -> Index {
        let mut index = Index::new(Owner::host("me"));
        for (block, owner) in blocks {
            put(&mut index, block, owner, 1);
        }
        index
    }

    fn put(index: &mut Index, block: &str, owner: &str, revision: u64) {
        let found = block::new_block(cidr(block), &Owner::host(owner), Timestamp::UNIX_EPOCH);
        let entry = Entry::of(&found, Revision(revision), "me", &ReservationSet::default());
        index.put(cidr(block), entry);
    }

    #[test]
    fn next_network_is_the_first_candidate_without_block_reservation_or_lost_race() {
        let (pool, now) = (pool("10.0.0.0/24", 28), Timestamp::UNIX_EPOCH);
        let blocks = ["10.0.0.32/28", "10.0.0.64/27", "10.0.0.100/30", "10.0.0.160/28", "10.0.0.176/28"];
        let index = index(&blocks.map(|block| (block, "a")));
        let reserved = [cidr("10.0.0.48/28"), cidr("10.0.0.112/29"), cidr("10.0.0.192/27")];
        let reserved =
            ReservationSet::new(&[api::Reservation { name: "r".to_owned(), cidrs: reserved.to_vec() }]);
        let lost = BTreeSet::from([cidr("10.0.0.128/28")]);
        for node in ["n1", "n2", "n3", "n4", "n5"] {
            let free = |network: &Cidr| {
                index.overlapping(*network).is_empty()
                    && !reserved.covers(*network)
                    && !lost.contains(network)
            };
            let walked = crate::candidate::candidates(&pool, node, now).find(free);
            assert_eq!(index.unclaimed(&pool, node, now, &reserved, &lost), walked, "{node}");
        }
        let full = self::index(&[("10.0.0.0/25", "a"), ("10.0.0.128/25", "a")]);
        assert_eq!(full.unclaimed(&pool, "n1", now, &reserved, &lost), None);
    }

    #[test]
    fn pools_are_counted_as_blocks_come_change_owner_and_go() {
        let pool = pool("10.0.0.0/24", 28);
        let mut index = index(&[("10.0.0.32/28", "me"), ("10.0.0.64/28", "b"), ("10.1.0.0/28", "me")]);
        index.count_for([&pool]);
        assert_eq!((index.fill(&pool).claimed, index.fill(&pool).own), (2, 1));
        put(&mut index, "10.0.0.64/28", "me", 2);
        put(&mut index, "10.0.0.80/28", "b", 2);
        assert_eq!((index.fill(&pool).claimed, index.fill(&pool).own), (3, 2));
        index.remove(cidr("10.0.0.32/28"));
        index.count_for([&pool]);
        assert_eq!((index.fill(&pool).claimed, index.fill(&pool).own), (2, 1));
    }

    #[test]
    fn blocks_across_each_other_cover_their_addresses_until_both_are_gone() {
        let pool = pool("10.0.0.0/28", 30);
        let none = (ReservationSet::default(), BTreeSet::new());
        let mut index = index(&[("10.0.0.0/29", "a"), ("10.0.0.4/30", "b")]);
        assert_eq!(index.overlapping(cidr("10.0.0.4/31")), [cidr("10.0.0.0/29"), cidr("10.0.0.4/30")]);
        assert_eq!(index.holding("10.0.0.5".parse().unwrap()), Some(cidr("10.0.0.4/30")));
        let claims = |index: &mut Index, block: &str| {
            let mut left: Vec<Cidr> = Vec::new();
            while let Some(next) = index.unclaimed(&pool, "n", Timestamp::UNIX_EPOCH, &none.0, &none.1) {
                put(index, &next.to_string(), "me", 1);
                left.push(next);
            }
            left.iter().for_each(|claimed| index.remove(*claimed));
            left.contains(&cidr(block))
        };
        index.remove(cidr("10.0.0.0/29"));
        assert!(claims(&mut index, "10.0.0.0/30") && !claims(&mut index, "10.0.0.4/30"));
        index.remove(cidr("10.0.0.4/30"));
        assert!(claims(&mut index, "10.0.0.4/30"));
    }

    #[test]
    fn room_of_others_comes_in_the_order_of_the_candidates() {
        let pool = pool("10.0.0.0/26", 28);
        let index = index(&[
            ("10.0.0.0/28", "a"),
            ("10.0.0.16/28", "me"),
            ("10.0.0.32/28", "b"),
            ("10.0.0.48/28", "a"),
            ("10.0.1.0/28", "a"),
        ]);
        let found: Vec<Cidr> = index.lendable(&pool, 2).collect();
        assert_eq!(found, ["10.0.0.32/28", "10.0.0.48/28", "10.0.0.0/28"].map(cidr));
    }

    #[test]
    fn what_is_reserved_is_not_lent_and_counted_anew_when_reservations_change() {
        let pool = pool("10.0.0.0/26", 28);
        let mut index = index(&[("10.0.0.0/28", "a"), ("10.0.0.16/28", "b")]);
        let reserved = |text: &str| ReservationSet::of_cidrs([cidr(text)]);
        let (none, whole, part) =
            (ReservationSet::default(), reserved("10.0.0.0/28"), reserved("10.0.0.8/29"));
        let lent = |index: &Index| index.lendable(&pool, 0).collect::<Vec<_>>();
        let free =
            |index: &Index| ["10.0.0.0/28", "10.0.0.16/28"].map(|at| index.get(cidr(at)).unwrap().free);
        assert_eq!(free(&index), [16, 16]);
        index.recount(&none, &whole);
        assert_eq!((free(&index), lent(&index)), ([0, 16], vec![cidr("10.0.0.16/28")]));
        assert_eq!(index.withheld(&pool).collect::<Vec<_>>(), [cidr("10.0.0.0/28")]);
        index.recount(&whole, &part);
        assert_eq!((free(&index), lent(&index).len()), ([8, 16], 2));
        index.recount(&part, &none);
        assert_eq!((free(&index), index.withheld(&pool).count()), ([16, 16], 0));
    }

    #[test]
    fn ordinals_are_kept_as_bits_for_every_size_of_block() {
        for size in ["10.0.0.0/20", "10.0.0.0/25", "10.0.0.0/26", "10.0.0.0/31", "10.0.0.0/32"] {
            let mut found = block::new_block(cidr(size), &Owner::host("a"), Timestamp::UNIX_EPOCH);
            let last = found.cidr.last();
            block::assign(&mut found, last, Some("h"), &BTreeMap::new(), None).unwrap();
            let entry = Entry::of(&found, Revision(1), "me", &ReservationSet::default());
            let ordinals: Vec<u32> = entry.ordinals().map(|ordinal| ordinal.0).collect();
            assert_eq!((ordinals, entry.unused_since), (found.unallocated.clone(), None), "{size}");
            assert_eq!((entry.waiting(), entry.free), (found.unallocated.len(), found.unallocated.len()));
        }
    }
}
