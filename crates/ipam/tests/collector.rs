//! The collector's tasks over a store: each makes sure of what was judged before it writes.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod gated;

use api::{Affinity, AffinityState, Block, Cidr, Handle, Node, Owner};
use datastore::memory::Memory;
use datastore::{Datastore as _, Key, Record, Revision, Version, Write};
use futures::executor::block_on;
use gated::{By, Call, Fate, Gate, Gated};
use ipam::block::{self, Release, Take};
use ipam::clock::FixedClock;
use ipam::collect::{Outcome, Task, carry_out};
use ipam::{ReservationSet, seen};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);
const CIDR: &str = "10.0.0.0/30";

fn cidr() -> Cidr {
    CIDR.parse().unwrap()
}

fn create(store: &Memory, record: Record) -> Revision {
    block_on(store.commit(&[], &[Write::Create(record)])).unwrap()[0].revision
}

fn affinity(owner: &str, state: AffinityState) -> Record {
    Record::Affinity(Affinity { owner: Owner::host(owner), cidr: cidr(), state, deleted: false })
}

fn handle(id: &str, count: u32) -> Record {
    Record::Handle(Handle { id: id.to_owned(), blocks: BTreeMap::from([(cidr(), count)]), deleted: false })
}

fn take(block: &mut Block, handle: &str) -> Release {
    let request = Take {
        count: 1,
        handle: Some(handle),
        attributes: &BTreeMap::new(),
        reserved: &ReservationSet::default(),
        avoid: &BTreeSet::new(),
        only_owner: None,
    };
    let taken = block::take(block, &request).unwrap().remove(0);
    Release { address: taken.address, handle: Some(handle.to_owned()), sequence: Some(taken.sequence) }
}

/// A store in which `a` has the block with one address of handle `h`.
fn store() -> (Memory, Release) {
    let store = Memory::new();
    let mut made = block::new_block(cidr(), &Owner::host("a"), CLOCK.0);
    let held = take(&mut made, "h");
    block::advance(&mut made);
    create(&store, affinity("a", AffinityState::Confirmed));
    create(&store, handle("h", 1));
    create(&store, Record::Block(made));
    (store, held)
}

fn release(held: &Release, gone: Option<&str>) -> Task {
    Task::Release {
        block: cidr(),
        releases: vec![held.clone()],
        gone: gone.map(str::to_owned),
        cooldown_seconds: 0,
    }
}

fn run(store: &Memory, task: &Task) -> Outcome {
    block_on(carry_out(store, &CLOCK, task)).unwrap()
}

fn found(store: &Memory) -> Option<Block> {
    block_on(seen::block(store, cidr())).unwrap().map(|seen| seen.value)
}

fn revision(store: &Memory, key: Key) -> Option<Version> {
    block_on(store.get(&key)).unwrap().map(|stored| stored.version)
}

fn done() -> Outcome {
    Outcome::Done { released: Vec::new() }
}

#[test]
fn a_leak_is_given_back_once_and_its_handle_with_it() {
    let (store, held) = store();
    let task = release(&held, None);
    assert_eq!(run(&store, &task), Outcome::Done { released: vec![held.address] });
    assert_eq!(revision(&store, Key::Handle("h".to_owned())), None);
    assert_eq!(block::allocated(&found(&store).unwrap()).count(), 0);
    assert_eq!(run(&store, &task), Outcome::Moot);
}

#[test]
fn a_leak_that_was_given_back_is_done_though_nobody_can_say_whose_its_block_should_be() {
    let (store, held) = store();
    let gate = By(|call: Call<'_>| match call {
        Call::List(datastore::Scope::All(datastore::Kind::Pool)) => Fate::Unreachable,
        _ => Fate::Pass,
    });
    let gated = Gated { store: store.clone(), ordered: false, gate };
    let outcome = block_on(carry_out(&gated, &CLOCK, &release(&held, None)));
    assert_eq!(outcome, Ok(Outcome::Done { released: vec![held.address] }));
    assert_eq!(block::allocated(&found(&store).unwrap()).count(), 0);
}

#[test]
fn an_address_that_was_assigned_again_is_not_given_back() {
    let (store, held) = store();
    run(&store, &release(&held, None));
    let seen = block_on(seen::block(&store, cidr())).unwrap().unwrap();
    let mut block = seen.value;
    // The queue is first in, first out: the same address again takes as many turns as there are addresses.
    for _ in 0..4 {
        take(&mut block, "h");
    }
    block::advance(&mut block);
    let write = Write::Update(Record::Block(block), seen.version);
    block_on(store.commit(&[], &[Write::Create(handle("h", 4)), write])).unwrap();
    assert_eq!(run(&store, &release(&held, None)), Outcome::Moot);
    assert_eq!(block::count_of(&found(&store).unwrap(), "h"), 4);
}

#[test]
fn the_tunnel_address_of_a_node_that_rejoined_is_not_given_back_calico_3589() {
    let (store, held) = store();
    create(&store, Record::Node(Node { name: "a".to_owned(), ..Node::default() }));
    assert!(matches!(run(&store, &release(&held, Some("a"))), Outcome::Later { .. }));
    assert_eq!(block::count_of(&found(&store).unwrap(), "h"), 1);
    let owner = Owner::host("a");
    assert_eq!(run(&store, &release(&held, Some("another"))), Outcome::Done { released: vec![held.address] });
    assert!(matches!(run(&store, &Task::GiveUpNode { owner }), Outcome::Done { .. }));
    assert_eq!(found(&store), None);
}

#[test]
fn a_block_of_a_deleted_node_without_affinity_is_taken_from_it() {
    let (store, held) = store();
    let owner = Owner::host("a");
    let abandon = Task::Abandon { owner: owner.clone(), block: cidr() };
    assert!(matches!(run(&store, &abandon), Outcome::Later { .. }), "an affinity leads to it");
    let version = revision(&store, Key::Affinity(owner, cidr())).unwrap();
    block_on(store.commit(&[], &[Write::Delete(affinity("a", AffinityState::Confirmed), version)])).unwrap();
    assert_eq!(run(&store, &abandon), done());
    assert_eq!(found(&store).unwrap().affinity, None);
    assert_eq!(run(&store, &abandon), Outcome::Moot);
    // With its last address goes the block.
    assert_eq!(run(&store, &release(&held, None)), Outcome::Done { released: vec![held.address] });
    assert_eq!(found(&store), None);
}

#[test]
fn an_empty_block_of_nobody_is_deleted_and_a_used_one_is_not() {
    let store = Memory::new();
    let mut made = block::new_block(cidr(), &Owner::host("a"), CLOCK.0);
    let held = take(&mut made, "h");
    made.affinity = None;
    create(&store, Record::Block(made));
    let tidy = Task::Tidy { block: cidr(), cooldown_seconds: 60 };
    assert_eq!(run(&store, &tidy), Outcome::Moot);
    // A cooldown keeps the block (algorithm §18, W15) until it is over.
    let Task::Release { block, releases, gone, .. } = release(&held, None) else { panic!() };
    let cooling = Task::Release { block, releases, gone, cooldown_seconds: 60 };
    assert_eq!(run(&store, &cooling), Outcome::Done { released: vec![held.address] });
    assert_eq!(run(&store, &tidy), Outcome::Moot);
    let later = FixedClock(CLOCK.0 + jiff::SignedDuration::from_secs(61));
    assert_eq!(block_on(carry_out(&store, &later, &tidy)), Ok(done()));
    assert_eq!(found(&store), None);
}

#[test]
fn an_affinity_is_dropped_only_in_the_state_that_was_judged() {
    let store = Memory::new();
    let owner = Owner::host("a");
    let judged = create(&store, affinity("a", AffinityState::Pending));
    let drop = |revision| Task::DropAffinity { owner: owner.clone(), block: cidr(), revision };
    let version = Version { revision: judged, uid: None };
    let again = block_on(store.commit(&[], &[Write::Update(affinity("a", AffinityState::Pending), version)]));
    assert_eq!(run(&store, &drop(judged)), Outcome::Moot);
    let current = again.unwrap()[0].revision;
    create(&store, Record::Block(block::new_block(cidr(), &owner, CLOCK.0)));
    assert_eq!(run(&store, &drop(current)), Outcome::Moot, "the claim went on");
    let version = revision(&store, Key::Block(cidr())).unwrap();
    let block = Record::Block(found(&store).unwrap());
    block_on(store.commit(&[], &[Write::Delete(block, version)])).unwrap();
    assert_eq!(run(&store, &drop(current)), done());
    assert_eq!(revision(&store, Key::Affinity(owner.clone(), cidr())), None);
}

/// A store in which somebody else writes the block before every commit.
struct Busy(Memory);

impl datastore::Datastore for Busy {
    fn capabilities(&self) -> datastore::Capabilities {
        self.0.capabilities()
    }

    async fn get(&self, key: &Key) -> Result<Option<datastore::Stored>, datastore::ReadError> {
        self.0.get(key).await
    }

    async fn list(&self, scope: &datastore::Scope) -> Result<datastore::Listing, datastore::ReadError> {
        self.0.list(scope).await
    }

    async fn commit(
        &self,
        checks: &[datastore::Check],
        writes: &[Write],
    ) -> Result<Vec<Version>, datastore::CommitError> {
        let seen = seen::block(&self.0, cidr()).await.unwrap().unwrap();
        let mut block = seen.value;
        block::advance(&mut block);
        self.0.commit(&[], &[Write::Update(Record::Block(block), seen.version)]).await.unwrap();
        self.0.commit(checks, writes).await
    }

    async fn watch(
        &self,
        scope: &datastore::Scope,
        from: Revision,
    ) -> Result<
        futures::stream::BoxStream<'static, Result<datastore::Event, datastore::ReadError>>,
        datastore::ReadError,
    > {
        self.0.watch(scope, from).await
    }
}

#[test]
fn an_affinity_beside_another_owners_busy_block_is_dropped_all_the_same() {
    for state in [AffinityState::Pending, AffinityState::Confirmed, AffinityState::PendingDeletion] {
        let store = Memory::new();
        create(&store, Record::Block(block::new_block(cidr(), &Owner::host("b"), CLOCK.0)));
        let revision = create(&store, affinity("a", state));
        let drop = Task::DropAffinity { owner: Owner::host("a"), block: cidr(), revision };
        assert_eq!(block_on(carry_out(&Busy(store.clone()), &CLOCK, &drop)), Ok(done()), "{state:?}");
        assert_eq!(self::revision(&store, Key::Affinity(Owner::host("a"), cidr())), None);
    }
}

#[test]
fn a_handle_is_lowered_to_what_the_blocks_say_and_deleted_when_that_is_nothing() {
    let (store, held) = store();
    let key = || Key::Handle("h".to_owned());
    let version = revision(&store, key()).unwrap();
    let raised = block_on(store.commit(&[], &[Write::Update(handle("h", 3), version)])).unwrap();
    let lower = |revision| Task::LowerHandle { id: "h".to_owned(), blocks: [cidr()].into(), revision };
    assert_eq!(run(&store, &lower(raised[0].revision)), done());
    let seen = block_on(seen::handle(&store, "h")).unwrap().unwrap();
    assert_eq!(Record::Handle(seen.value), handle("h", 1));
    assert_eq!(run(&store, &lower(seen.version.revision)), Outcome::Moot);
    run(&store, &release(&held, None));
    let orphan = create(&store, handle("h", 1));
    assert_eq!(run(&store, &lower(orphan)), done());
    assert_eq!(revision(&store, key()), None);
}

#[test]
fn a_stale_entry_behind_many_true_ones_is_lowered() {
    let store = Memory::new();
    let mut blocks = BTreeMap::new();
    for number in 0..20 {
        let cidr = format!("10.0.0.{}/30", number * 4).parse().unwrap();
        let mut made = block::new_block(cidr, &Owner::host("a"), CLOCK.0);
        take(&mut made, "h");
        create(&store, Record::Block(made));
        blocks.insert(cidr, 1);
    }
    let stale: Cidr = "10.0.1.0/30".parse().unwrap();
    let truth = Record::Handle(Handle { id: "h".to_owned(), blocks: blocks.clone(), deleted: false });
    blocks.insert(stale, 1);
    let counted = Record::Handle(Handle { id: "h".to_owned(), blocks, deleted: false });
    let revision = create(&store, counted);
    let lower = Task::LowerHandle { id: "h".to_owned(), blocks: [stale].into(), revision };
    assert_eq!(run(&store, &lower), done());
    let left = block_on(store.get(&Key::Handle("h".to_owned()))).unwrap().unwrap();
    assert_eq!(left.record, truth);
}

#[test]
fn an_assignment_that_was_paused_before_its_block_does_not_find_its_handle_collected() {
    // An owner wrote the handle of a store without transactions, and has yet to write the block that it read.
    for exists in [true, false] {
        let store = Memory::new();
        let owner = Owner::host("a");
        let mut planned = block::new_block(cidr(), &owner, CLOCK.0);
        let read = exists.then(|| create(&store, Record::Block(planned.clone())));
        let revision = create(&store, handle("h", 1));
        take(&mut planned, "h");
        block::advance(&mut planned);
        let write = match read {
            Some(revision) => Write::Update(Record::Block(planned), Version { revision, uid: None }),
            None => Write::Create(Record::Block(planned)),
        };
        let lower = Task::LowerHandle { id: "h".to_owned(), blocks: [cidr()].into(), revision };
        if exists {
            assert_eq!(run(&store, &lower), done());
            assert!(
                block_on(store.commit(&[], &[write])).is_err(),
                "its block write is refused, so it reads again"
            );
        } else {
            // The block comes between the collector's reads and its commit: here at its first moment.
            block_on(store.commit(&[], &[write])).unwrap();
            assert_eq!(run(&store, &lower), Outcome::Moot);
        }
    }
}

/// At the gate: when the collector first writes, a claim that has looked at its handle before writes its block, and `without_handle`
/// counts the calls for which the handle is not there.
struct Claims {
    store: Memory,
    claimed: AtomicUsize,
    without_handle: AtomicUsize,
}

impl Gate for Claims {
    async fn pass(&self, call: Call<'_>) -> Fate {
        if matches!(call, Call::Commit(_)) && self.claimed.fetch_add(1, Ordering::Relaxed) == 0 {
            let mut planned = block::new_block(cidr(), &Owner::host("a"), CLOCK.0);
            take(&mut planned, "h");
            block::advance(&mut planned);
            let records = [affinity("a", AffinityState::Pending), Record::Block(planned)];
            let made = self.store.commit(&[], &records.map(Write::Create)).await;
            assert!(made.is_ok(), "{made:?}");
        }
        if seen::handle(&self.store, "h").await.unwrap().is_none() {
            self.without_handle.fetch_add(1, Ordering::Relaxed);
        }
        Fate::Pass
    }
}

/// On a store without transactions the check that there is no block is made after the handle was written.
#[test]
fn a_claim_that_had_looked_at_its_handle_keeps_it() {
    let store = Memory::new();
    let revision = create(&store, handle("h", 1));
    let gate =
        Claims { store: store.clone(), claimed: Default::default(), without_handle: Default::default() };
    let gated = Gated { store: store.clone(), ordered: true, gate };
    let lower = Task::LowerHandle { id: "h".to_owned(), blocks: [cidr()].into(), revision };
    let outcome = block_on(carry_out(&gated, &CLOCK, &lower)).unwrap();
    assert!(matches!(outcome, Outcome::Later { .. }), "{outcome:?}");
    assert_eq!(gated.gate.without_handle.into_inner(), 0);
    // Where nobody claims, it goes.
    let store = Memory::new();
    let revision = create(&store, handle("h", 1));
    let gated = Gated { store: store.clone(), ordered: true, gate: By(|_: Call<'_>| Fate::Pass) };
    let lower = Task::LowerHandle { id: "h".to_owned(), blocks: [cidr()].into(), revision };
    assert_eq!(block_on(carry_out(&gated, &CLOCK, &lower)).unwrap(), done());
    assert!(block_on(seen::handle(&store, "h")).unwrap().is_none());
}

/// At the gate: the node `c` joins again when it is asked for the `back`th time; and what is noted is whatever the store is
/// asked while the block is not there, and how often it is written to.
struct Joins {
    store: Memory,
    back: usize,
    asked: AtomicUsize,
    writes: AtomicUsize,
    without_block: std::sync::Mutex<Vec<String>>,
}

impl Gate for Joins {
    async fn pass(&self, call: Call<'_>) -> Fate {
        if seen::block(&self.store, cidr()).await.unwrap().is_none() {
            self.without_block.lock().unwrap().push(format!("{call:?}"));
        }
        if matches!(call, Call::Commit(_)) {
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(call, Call::Get(Key::Node(_)))
            && self.asked.fetch_add(1, Ordering::Relaxed) + 1 == self.back
        {
            let node = Record::Node(Node { name: "c".to_owned(), ..Node::default() });
            let _ = self.store.commit(&[], &[Write::Create(node)]).await;
        }
        Fate::Pass
    }
}

/// Carries a task out on a store without transactions, and answers what was asked of it while the block was not there.
fn guarded(store: &Memory, task: &Task, back: usize) -> (Outcome, usize, Vec<String>) {
    let gate = Joins {
        store: store.clone(),
        back,
        asked: AtomicUsize::new(0),
        writes: AtomicUsize::new(0),
        without_block: Default::default(),
    };
    let gated = Gated { store: store.clone(), ordered: true, gate };
    let outcome = block_on(carry_out(&gated, &CLOCK, task)).unwrap();
    (outcome, gated.gate.writes.into_inner(), gated.gate.without_block.into_inner().unwrap())
}

/// A check of such a store fails after the writes. A block that was deleted and is made again was away meanwhile, and somebody
/// may have made one across it.
#[test]
fn a_block_stays_where_it_is_until_the_checks_have_held() {
    // Before the write, after it, and not at all.
    for back in [1, 2, 0] {
        let (store, held) = store();
        let seen = block_on(seen::block(&store, cidr())).unwrap().unwrap();
        let unowned = Block { affinity: None, claim_time: None, ..seen.value };
        block_on(store.commit(&[], &[Write::Update(Record::Block(unowned), seen.version)])).unwrap();
        let (outcome, writes, without_block) = guarded(&store, &release(&held, Some("c")), back);
        assert_eq!(without_block, Vec::<String>::new(), "{outcome:?}");
        assert_eq!(writes == 0, back == 1, "a node that is seen to be back is left what it has");
        if back > 0 {
            assert!(matches!(outcome, Outcome::Later { .. }), "{outcome:?}");
            assert_eq!(block::allocated(&found(&store).unwrap()).count(), 1);
        } else {
            assert_eq!(outcome, Outcome::Done { released: vec![held.address] });
            assert_eq!(found(&store), None, "deleted in the end");
        }
    }
}

#[test]
fn the_block_of_a_node_that_is_gone_stays_until_it_is_known_to_be_gone() {
    for back in [1, 0] {
        let store = Memory::new();
        create(&store, Record::Block(block::new_block(cidr(), &Owner::host("c"), CLOCK.0)));
        let task = Task::Abandon { owner: Owner::host("c"), block: cidr() };
        let (outcome, _, without_block) = guarded(&store, &task, back);
        assert_eq!(without_block, Vec::<String>::new(), "{outcome:?}");
        assert_eq!(matches!(outcome, Outcome::Later { .. }), back > 0, "{outcome:?}");
        let owner = found(&store).map(|block| block.affinity);
        assert_eq!(owner, (back > 0).then(|| Some(Owner::host("c"))));
    }
}
