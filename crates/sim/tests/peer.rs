//! The peer makes the datastore calls of algorithm §17, no more and no fewer, and keeps Calico's warts.

#![expect(clippy::unwrap_used, reason = "what sets a scene may fail the test")]

use api::{Affinity, AffinityState, Block, Cidr, Handle, IpVersion, IpamConfig, Node, Owner, Pool};
use datastore::memory::Memory;
use datastore::{
    Capabilities, Check, CommitError, Datastore, Event, Key, Kind, Listing, ReadError, Record, Revision,
    Scope, Stored, Version, Write,
};
use futures::executor::block_on;
use futures::stream::BoxStream;
use ipam::block::{self, Release};
use ipam::clock::FixedClock;
use ipam::{Seen, seen};
use jiff::Timestamp;
use sim::peer::{Calico, Failure, Wanted, WantedAddress};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A store that counts what is asked of it, and can lose the answer of one write.
struct Counted {
    memory: Memory,
    reads: AtomicUsize,
    writes: AtomicUsize,
    /// Number of the write whose answer is lost.
    lose: AtomicUsize,
}

impl Datastore for Counted {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<Stored>, ReadError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.memory.get(key).await
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, ReadError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.memory.list(scope).await
    }

    async fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Vec<Version>, CommitError> {
        assert!(checks.is_empty() && writes.len() == 1, "Calico has no transactions: {writes:?}");
        let number = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = self.memory.commit(checks, writes).await;
        if number == self.lose.load(Ordering::Relaxed) {
            return Err(CommitError::Unknown { key: writes[0].key(), reason: "lost".to_owned() });
        }
        answer
    }

    async fn watch(
        &self,
        scope: &Scope,
        from: Revision,
    ) -> Result<BoxStream<'static, Result<Event, ReadError>>, ReadError> {
        self.memory.watch(scope, from).await
    }
}

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);
const LATER: FixedClock = FixedClock(Timestamp::constant(120, 0));

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Nodes `n1` and `n2`, and a pool of four blocks of four.
fn lab() -> Counted {
    let store = Counted { memory: Memory::new(), reads: 0.into(), writes: 0.into(), lose: usize::MAX.into() };
    let mut pool = Pool::with_defaults("p", cidr("10.0.0.0/28"));
    pool.block_size = 30;
    put(&store, Record::Pool(pool));
    let mut pool = Pool::with_defaults("p6", cidr("fd00::/124"));
    pool.block_size = 126;
    put(&store, Record::Pool(pool));
    for name in ["n1", "n2"] {
        put(&store, Record::Node(Node { name: name.to_owned(), ..Node::default() }));
    }
    store
}

fn put(store: &Counted, record: Record) {
    block_on(async {
        let write = match store.memory.get(&record.key()).await.unwrap() {
            Some(found) => Write::Update(record, found.version),
            None => Write::Create(record),
        };
        store.memory.commit(&[], &[write]).await.unwrap();
    });
}

/// Does it, and says how many reads and writes that took.
fn counted<T>(store: &Counted, work: impl Future<Output = T>) -> (T, (usize, usize)) {
    store.reads.store(0, Ordering::Relaxed);
    store.writes.store(0, Ordering::Relaxed);
    let done = block_on(work);
    (done, (store.reads.load(Ordering::Relaxed), store.writes.load(Ordering::Relaxed)))
}

fn calico<'a>(store: &'a Counted, clock: &'a FixedClock) -> Calico<'a, Counted> {
    Calico { store, clock }
}

fn assign(store: &Counted, wanted: &Wanted) -> (Vec<IpAddr>, (usize, usize)) {
    let (answer, calls) = counted(store, calico(store, &CLOCK).auto_assign(wanted));
    assert_eq!(answer.failure, None);
    (answer.addresses, calls)
}

fn one(handle: &str) -> Wanted {
    Wanted::one("n1", IpVersion::V4, handle)
}

fn blocks(store: &Counted) -> Vec<Block> {
    block_on(seen::blocks(&store.memory)).unwrap().into_iter().map(|seen| seen.value).collect()
}

fn affinities(store: &Counted) -> Vec<Affinity> {
    let found: Vec<Seen<Affinity>> =
        block_on(seen::list(&store.memory, &Scope::All(Kind::Affinity))).unwrap();
    found.into_iter().map(|seen| seen.value).collect()
}

fn handle(store: &Counted, id: &str) -> Option<Handle> {
    block_on(seen::handle(&store.memory, id)).unwrap().map(|seen| seen.value)
}

fn own_affinity(state: AffinityState, cidr: Cidr) -> Record {
    Record::Affinity(Affinity { owner: Owner::host("n1"), cidr, state, deleted: false })
}

#[test]
fn an_address_costs_what_calico_pays_for_it() {
    let store = lab();
    assert_eq!(assign(&store, &one("a")).1, (9, 6), "cold");
    assert_eq!(assign(&store, &one("b")).1, (8, 2), "warm");
    assert_eq!(assign(&store, &one("b")).1, (8, 2), "warm, the handle is there");
    assert_eq!(assign(&store, &Wanted { handle: None, ..one("") }).1, (7, 1), "warm without handle");
    // That was the fourth and last of the block: it is tried, and another one claimed.
    assert_eq!(assign(&store, &one("c")).1, (11, 6), "cold after a full block");
    assert_eq!(blocks(&store).len(), 2);
    let cold = lab();
    assert_eq!(assign(&cold, &Wanted { handle: None, ..one("") }).1, (8, 5), "cold without handle");
}

#[test]
fn both_families_cost_twice_as_much_as_one() {
    let store = lab();
    let six = |handle: &str| Wanted { version: IpVersion::V6, ..one(handle) };
    assign(&store, &one("a"));
    assign(&store, &six("a"));
    let ((reads, writes), (more_reads, more_writes)) =
        (assign(&store, &one("b")).1, assign(&store, &six("b")).1);
    assert_eq!((reads + more_reads, writes + more_writes), (16, 4));
    assert_eq!(handle(&store, "b").unwrap().blocks.len(), 2);
}

#[test]
fn half_done_claims_are_mended_at_calicos_price() {
    let store = lab();
    let (taken, _) = assign(&store, &one("a"));
    let home = Cidr::containing(taken[0], 30).unwrap();
    put(&store, own_affinity(AffinityState::Pending, home));
    assert_eq!(assign(&store, &one("b")).1, (8, 5), "pending, the block is ours");
    assert_eq!(affinities(&store)[0].state, AffinityState::Confirmed);

    let store = lab();
    put(&store, own_affinity(AffinityState::Pending, home));
    assert_eq!(assign(&store, &one("a")).1, (9, 5), "the affinity is there, the block is not");
    assert_eq!(affinities(&store)[0].state, AffinityState::Confirmed);
}

#[test]
fn an_unused_block_is_taken_from_its_owner_after_a_minute() {
    let store = lab();
    for index in 0..4 {
        let cidr = cidr("10.0.0.0/28").nth_block(30, index).unwrap();
        let owner = Owner::host("n2");
        put(&store, Record::Block(block::new_block(cidr, &owner, CLOCK.0)));
        put(
            &store,
            Record::Affinity(Affinity { owner, cidr, state: AffinityState::Confirmed, deleted: false }),
        );
    }
    let (answer, calls) = counted(&store, calico(&store, &LATER).auto_assign(&one("a")));
    assert_eq!((answer.addresses.len(), calls), (1, (11, 9)));
    // Earlier it borrows, from the first block in its order; all are there and free.
    let store = lab();
    for index in 0..4 {
        let cidr = cidr("10.0.0.0/28").nth_block(30, index).unwrap();
        put(&store, Record::Block(block::new_block(cidr, &Owner::host("n2"), CLOCK.0)));
    }
    let (taken, calls) = assign(&store, &one("a"));
    assert_eq!((taken.len(), calls), (1, (8, 2)));
    assert_eq!(affinities(&store), []);
}

#[test]
fn borrowing_reads_every_possible_block_up_to_the_one_with_room() {
    let store = lab();
    let mut order = ipam::candidate::candidates(
        &{
            let mut pool = Pool::with_defaults("p", cidr("10.0.0.0/28"));
            pool.block_size = 30;
            pool
        },
        "n1",
        CLOCK.0,
    );
    let last = order.nth(3).unwrap();
    for index in 0..4 {
        let cidr = cidr("10.0.0.0/28").nth_block(30, index).unwrap();
        let mut block = block::new_block(cidr, &Owner::host("n2"), CLOCK.0);
        let full = if cidr == last { 3 } else { 4 };
        for ordinal in 0..full {
            let address = cidr.address(api::Ordinal(ordinal)).unwrap();
            block::assign(&mut block, address, Some("x"), &BTreeMap::new(), None).unwrap();
        }
        put(&store, Record::Block(block));
    }
    let (taken, calls) = assign(&store, &one("a"));
    assert!(last.contains(taken[0]));
    assert_eq!(calls, (7 + 4, 2));
}

#[test]
fn one_particular_address_costs_what_calico_pays_for_it() {
    let store = lab();
    let wanted = |text: &str, handle: &str| WantedAddress {
        owner: Owner::host("n1"),
        address: address(text),
        intended_use: None,
        handle: Some(handle.to_owned()),
        attributes: BTreeMap::new(),
        max_per_handle: None,
    };
    let peer = calico(&store, &CLOCK);
    assert_eq!(counted(&store, peer.assign_address(&wanted("10.0.0.5", "a"))), (Ok(()), (5, 5)));
    assert_eq!(counted(&store, peer.assign_address(&wanted("10.0.0.6", "b"))), (Ok(()), (4, 2)));
    let refused = block_on(peer.assign_address(&wanted("10.0.0.6", "c")));
    assert_eq!(refused, Err(Failure::Exists("10.0.0.6".to_owned())));
    assert_eq!(handle(&store, "c"), None);
}

#[test]
fn releases_cost_what_calico_pays_for_them() {
    let store = lab();
    let peer = calico(&store, &CLOCK);
    let (a, b) = (assign(&store, &one("a")).0[0], assign(&store, &one("b")).0[0]);
    let release = |address: IpAddr| [Release { address, handle: None, sequence: None }];
    let (done, calls) = counted(&store, peer.release_by_handle("a"));
    assert_eq!((done, calls), (Ok(()), (6, 2)));
    assert_eq!(handle(&store, "a"), None);
    assert_eq!(counted(&store, peer.release_by_handle("a")).1, (1, 0), "unknown handle");
    let (done, calls) = counted(&store, peer.release_addresses(&release(a)));
    assert_eq!((done.unwrap().not_allocated, calls), (vec![a], (3, 0)), "already free");
    assert_eq!(counted(&store, peer.release_addresses(&release(b))).1, (6, 2));
    assert_eq!(handle(&store, "b"), None);

    // The last address of a block without owner takes the block along.
    let c = assign(&store, &one("c")).0[0];
    block_on(peer.release_host_affinities(&Owner::host("n1"), false)).unwrap();
    assert_eq!((affinities(&store), blocks(&store)[0].affinity.clone()), (Vec::new(), None));
    assert_eq!(counted(&store, peer.release_addresses(&release(c))).1, (4, 2));
    assert_eq!(blocks(&store), []);
}

#[test]
fn claims_and_their_release_cost_what_calico_pays_for_them() {
    let store = lab();
    let peer = calico(&store, &CLOCK);
    let owner = Owner::host("n1");
    let (lost, calls) = counted(&store, peer.claim_affinity(cidr("10.0.0.0/29"), &owner));
    assert_eq!((lost, calls), (Ok(Vec::new()), (2, 6)));
    let (lost, _) = counted(&store, peer.claim_affinity(cidr("10.0.0.0/29"), &Owner::host("n2")));
    assert_eq!(lost.unwrap().len(), 2);
    assert_eq!(affinities(&store).len(), 2, "the loser left nothing");
    let first = blocks(&store).remove(0);
    assert_eq!(counted(&store, peer.release_block_affinity(&first, true)), (Ok(()), (3, 3)));
    assign(&store, &one("a"));
    assert_eq!(counted(&store, peer.release_host_affinities(&owner, false)), (Ok(()), (5, 3)));
    assert_eq!(affinities(&store), []);

    let store = lab();
    let peer = calico(&store, &CLOCK);
    block_on(peer.claim_affinity(cidr("10.0.0.0/29"), &owner)).unwrap();
    assert_eq!(counted(&store, peer.release_host_affinities(&owner, true)), (Ok(()), (7, 6)));
    assert_eq!(blocks(&store), []);
    assign(&store, &one("b"));
    assert_eq!(block_on(peer.release_pool_affinities(cidr("10.0.0.0/28"))), Ok(()));
    assert_eq!((affinities(&store), blocks(&store)[0].affinity.clone()), (Vec::new(), None));
}

#[test]
fn a_handle_is_asked_for_its_addresses_block_by_block() {
    let store = lab();
    assign(&store, &Wanted { count: 6, ..one("a") });
    let (held, calls) = counted(&store, calico(&store, &CLOCK).addresses_by_handle("a"));
    assert_eq!((held.unwrap().len(), calls), (6, (4, 0)));
    // Counted by what was requested, which the first block could not supply (Q3).
    let counts: Vec<u32> = handle(&store, "a").unwrap().blocks.into_values().collect();
    assert_eq!(counts.iter().sum::<u32>(), 8);
}

#[test]
fn a_handle_at_its_cap_is_answered_with_what_it_has() {
    let store = lab();
    let capped = Wanted { max_per_handle: Some(1), ..one("vm") };
    let first = assign(&store, &capped).0;
    assert_eq!(assign(&store, &capped).0, first);
    assert_eq!(handle(&store, "vm").unwrap().blocks.into_values().sum::<u32>(), 1);
}

#[test]
fn the_block_limit_ends_the_request_and_nothing_is_borrowed() {
    let store = lab();
    put(&store, Record::Block(block::new_block(cidr("10.0.0.12/30"), &Owner::host("n2"), CLOCK.0)));
    let wanted = Wanted { count: 5, max_blocks: 1, ..one("a") };
    let answer = block_on(calico(&store, &CLOCK).auto_assign(&wanted));
    assert_eq!((answer.addresses.len(), answer.failure), (4, Some(Failure::BlockLimit)));
    assert_eq!(answer.messages.len(), 1);
    put(&store, Record::Config(IpamConfig { strict_affinity: true, ..IpamConfig::default() }));
    let answer = block_on(calico(&store, &CLOCK).auto_assign(&Wanted { count: 9, ..one("b") }));
    assert_eq!((answer.addresses.len(), answer.failure), (8, None));
    assert_eq!(answer.messages, ["No more free affine blocks and strict affinity enabled"]);
}

#[test]
fn a_block_write_whose_answer_is_lost_leaves_an_address_that_its_handle_does_not_know() {
    let store = lab();
    assign(&store, &one("a"));
    store.lose.store(2, Ordering::Relaxed);
    let (answer, _) = counted(&store, calico(&store, &CLOCK).auto_assign(&one("b")));
    let held: u32 = blocks(&store).iter().map(|block| block::count_of(block, "b")).sum();
    // It takes another address in another block, because this one "failed": the first is leaked (W14).
    assert_eq!((answer.addresses.len(), held), (1, 2));
    let counted: u32 = handle(&store, "b").unwrap().blocks.into_values().sum();
    assert_eq!(counted, 1);
}

#[test]
fn a_release_decided_on_what_is_no_more_is_refused() {
    let store = lab();
    let peer = calico(&store, &CLOCK);
    let taken = assign(&store, &one("a")).0[0];
    let block = blocks(&store).remove(0);
    let stamp = block::stamp(&block, block.cidr.ordinal(taken).unwrap());
    let stale = [Release { address: taken, handle: Some("a".to_owned()), sequence: Some(stamp + 2) }];
    let done = block_on(peer.release_addresses(&stale)).unwrap();
    assert!(matches!(done.failure, Some(Failure::Refused(_))));
    assert_eq!(blocks(&store), [block]);
    let right = [Release { sequence: Some(stamp), ..stale[0].clone() }];
    assert_eq!(block_on(peer.release_addresses(&right)).unwrap().succeeded, right);
    assert_eq!(handle(&store, "a"), None);
}

#[test]
fn a_deselected_block_goes_with_its_last_address() {
    let store = lab();
    assign(&store, &one("a"));
    let mut pool = Pool::with_defaults("p", cidr("10.0.0.0/28"));
    pool.block_size = 30;
    pool.node_selector = "has(gpu)".to_owned();
    put(&store, Record::Pool(pool));
    block_on(calico(&store, &CLOCK).release_by_handle("a")).unwrap();
    assert_eq!((blocks(&store), affinities(&store)), (Vec::new(), Vec::new()));
}

#[test]
fn an_affinity_whose_block_is_missing_stays() {
    let store = lab();
    put(&store, own_affinity(AffinityState::PendingDeletion, cidr("10.0.0.4/30")));
    let peer = calico(&store, &CLOCK);
    assert_eq!(block_on(peer.release_host_affinities(&Owner::host("n1"), false)), Ok(()));
    assert_eq!(affinities(&store).len(), 1);
}
