//! The judge itself: what it must see, and what it must not take for wrong.

#![expect(clippy::unwrap_used, reason = "a test may")]

use api::{
    Affinity, AffinityNaming, AffinityState, Attribute, Block, Cidr, Handle, IpamConfig, Owner, Reservation,
};
use datastore::{Key, Record, Write};
use ipam::block;
use jiff::{SignedDuration, Timestamp};
use sim::db::{Db, StoreKind};
use sim::invariants::{Judge, Leave, Serves, Step};
use sim::promises::{Promise, Promises};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

const ONE: &str = "10.0.0.0/30";

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// A task that may free nothing and knows everything.
const TASK: Step<'static> = Step {
    task: 1,
    leave: &Leave::Nothing,
    serves: Serves::Nobody,
    by_peer: false,
    node: None,
    since: u64::MAX,
    latest: Timestamp::UNIX_EPOCH,
};

struct Court {
    db: Db,
    judge: Judge,
    promises: Promises,
}

impl Court {
    fn new(kind: StoreKind) -> Self {
        let db = Db::new(kind, AffinityNaming::PerNode);
        Self { db, judge: Judge::new(vec![cidr("10.0.0.0/29")]), promises: Promises::default() }
    }

    fn write_of(&self, record: Record) -> Write {
        match self.db.peek(&record.key()) {
            Some(stored) => Write::Update(record, stored.version.clone()),
            None => Write::Create(record),
        }
    }

    /// Writes a record, and answers what the judge finds wrong with that.
    fn write(&mut self, step: Step<'_>, record: Record) -> Vec<String> {
        let write = self.write_of(record);
        self.db.write(&write, now()).unwrap();
        self.judged(step)
    }

    fn delete(&mut self, step: Step<'_>, key: &Key) -> Vec<String> {
        let stored = self.db.peek(key).unwrap().clone();
        self.db.write(&Write::Delete(stored.record.clone(), stored.version.clone()), now()).unwrap();
        self.judged(step)
    }

    fn judged(&mut self, step: Step<'_>) -> Vec<String> {
        let (mut applied, mut wrong) = (Vec::new(), Vec::new());
        self.db.take_applied(&mut applied);
        self.judge.see(&self.db, &applied, step, &self.promises, &mut wrong);
        wrong
    }

    /// A block of `a` with its first address for each of these handles, which count it.
    fn held(&mut self, handles: &[&str]) -> Block {
        let mut made = block::new_block(cidr(ONE), &Owner::host("a"), now());
        for handle in handles {
            take(&mut made, handle);
            let counted = BTreeMap::from([(cidr(ONE), 1)]);
            let handle = Handle { id: (*handle).to_owned(), blocks: counted, deleted: false };
            assert_eq!(self.write(TASK, Record::Handle(handle)), Vec::<String>::new());
        }
        assert_eq!(self.write(TASK, Record::Block(made.clone())), Vec::<String>::new());
        made
    }

    fn configure(&mut self, config: IpamConfig) -> u64 {
        assert_eq!(self.write(TASK, Record::Config(config)), Vec::<String>::new());
        self.db.revision().0
    }

    fn promise(&mut self, address: IpAddr, handle: &str, block: &str, sequence: u64) {
        let block = Some(cidr(block));
        let promise = Promise { attachment: 0, handle: handle.to_owned(), block, sequence };
        assert_eq!(self.promises.give(address, promise), None);
    }
}

fn take(block: &mut Block, handle: &str) -> u64 {
    let next = block.cidr.address(api::Ordinal(block.unallocated[0])).unwrap();
    let taken = block::assign(block, next, Some(handle), &BTreeMap::new(), None).unwrap();
    block::advance(block);
    taken.sequence
}

fn begins(wrong: &[String], number: &str) -> bool {
    wrong.iter().any(|line| line.starts_with(number))
}

#[test]
fn only_who_serves_an_add_of_a_handle_renews_what_it_holds() {
    for (serves, wrong) in [
        (Serves::Handle("x"), false),
        (Serves::Anybody, false),
        (Serves::Handle("y"), true),
        (Serves::Nobody, true),
    ] {
        let mut court = Court::new(StoreKind::Etcd);
        let mut renewed = court.held(&["x"]);
        Arc::make_mut(&mut renewed.sequence_for_allocation).insert(0, renewed.sequence_number);
        block::advance(&mut renewed);
        let found = court.write(Step { task: 2, serves, ..TASK }, Record::Block(renewed));
        assert_eq!(begins(&found, "6:"), wrong, "{serves:?}: {found:?}");
    }
}

#[test]
fn stamps_of_a_block_that_its_maker_took_back_are_forgotten_unless_somebody_was_told() {
    for told in [false, true] {
        let mut court = Court::new(StoreKind::Kubernetes);
        let made = court.held(&["x"]);
        if told {
            court.promise(address(0), "x", ONE, block::stamp(&made, api::Ordinal(0)));
        }
        let undone = court.delete(TASK, &Key::Block(cidr(ONE)));
        assert_eq!(begins(&undone, "9:"), told, "{undone:?}");
        court.promises.take_back(0);
        let mut again = block::new_block(cidr(ONE), &Owner::host("b"), now());
        take(&mut again, "x");
        let found = court.write(Step { task: 2, ..TASK }, Record::Block(again));
        assert_eq!(begins(&found, "6:"), told, "{found:?}");
    }
}

#[test]
fn a_block_that_comes_back_as_it_was_is_seen() {
    let mut court = Court::new(StoreKind::Kubernetes);
    let mut unowned = court.held(&["x"]);
    unowned.affinity = None;
    court.write(TASK, Record::Block(unowned.clone()));
    let named = Leave::Named(vec![(address(0), "x".to_owned(), block::stamp(&unowned, api::Ordinal(0)))]);
    let step = Step { task: 2, leave: &named, ..TASK };
    assert_eq!(court.delete(step, &Key::Block(cidr(ONE))), Vec::<String>::new());
    let late = court.write(Step { task: 0, leave: &Leave::Unpromised, ..TASK }, Record::Block(unowned));
    assert!(begins(&late, "6:"), "{late:?}");
}

#[test]
fn a_promise_is_kept_by_the_block_that_it_was_given_of() {
    let mut court = Court::new(StoreKind::Kubernetes);
    let made = court.held(&["x"]);
    court.promise(address(0), "x", ONE, block::stamp(&made, api::Ordinal(0)));
    let across = block::new_block(cidr("10.0.0.0/29"), &Owner::host("b"), now());
    assert_eq!(court.write(Step { task: 2, ..TASK }, Record::Block(across)), Vec::<String>::new());
    let gone = court.delete(Step { task: 2, ..TASK }, &Key::Block(cidr("10.0.0.0/29")));
    assert_eq!(gone, Vec::<String>::new(), "it was never its");
    let gone = court.delete(Step { task: 2, ..TASK }, &Key::Block(cidr(ONE)));
    assert!(begins(&gone, "9:"), "{gone:?}");
}

#[test]
fn blocks_that_overlap_are_borne_until_both_count() {
    let mut court = Court::new(StoreKind::Kubernetes);
    let made = court.held(&["x"]);
    court.promise(address(0), "x", ONE, block::stamp(&made, api::Ordinal(0)));
    let across = block::new_block(cidr("10.0.0.0/29"), &Owner::host("b"), now());
    assert_eq!(court.write(TASK, Record::Block(across)), Vec::<String>::new());
    assert_eq!(court.judge.overlapping().len(), 1);
    let affinity = |state| {
        let (owner, cidr) = (Owner::host("b"), cidr("10.0.0.0/29"));
        Record::Affinity(Affinity { owner, cidr, state, deleted: false })
    };
    assert_eq!(court.write(TASK, affinity(AffinityState::Pending)), Vec::<String>::new());
    assert!(begins(&court.write(TASK, affinity(AffinityState::Confirmed)), "4:"));
}

/// Somebody on `node` takes the next address of `a`'s block for `y`.
fn taken_on(court: &mut Court, node: &str, since: u64) -> Vec<String> {
    let mut block = court.held(&["x"]);
    let counted = BTreeMap::from([(cidr(ONE), 1)]);
    let handle = Handle { id: "y".to_owned(), blocks: counted, deleted: false };
    court.write(TASK, Record::Handle(handle));
    take(&mut block, "y");
    court.write(Step { task: 2, node: Some(node), since, ..TASK }, Record::Block(block))
}

#[test]
fn an_address_of_anothers_block_is_given_by_itself_only_by_who_could_not_know_that_affinity_is_strict() {
    for (node, knows, exact, wrong) in [
        ("b", true, false, true),
        ("a", true, false, false),
        ("b", false, false, false),
        ("b", true, true, false),
    ] {
        let mut court = Court::new(StoreKind::Etcd);
        let lenient = court.configure(IpamConfig { strict_affinity: false, ..IpamConfig::default() });
        let strict = court.configure(IpamConfig { strict_affinity: true, ..IpamConfig::default() });
        if exact {
            court.judge.may_be_reserved.insert("y".to_owned());
        }
        let found = taken_on(&mut court, node, if knows { strict } else { lenient });
        assert_eq!(begins(&found, "0:"), wrong, "{node} {knows} {exact}: {found:?}");
    }
}

#[test]
fn a_reserved_address_is_given_by_itself_only_by_who_could_not_know() {
    for knows in [true, false] {
        let mut court = Court::new(StoreKind::Etcd);
        let before = court.db.revision().0;
        let kept = Reservation { name: "kept".to_owned(), cidrs: vec![cidr("10.0.0.1/32")] };
        court.write(TASK, Record::Reservation(kept));
        let since = if knows { court.db.revision().0 } else { before };
        let found = taken_on(&mut court, "a", since);
        assert_eq!(begins(&found, "2:"), knows, "{found:?}");
    }
}

#[test]
fn what_a_commit_freed_that_is_undone_is_not_handed_out_again() {
    let mut court = Court::new(StoreKind::Kubernetes);
    let held = court.held(&["x"]);
    let kept = Reservation { name: "kept".to_owned(), cidrs: vec![cidr("10.0.0.0/32")] };
    court.write(TASK, Record::Reservation(kept));
    let mut freed = held.clone();
    let named = vec![(address(0), "x".to_owned(), block::stamp(&held, api::Ordinal(0)))];
    block::release_by_handle(&mut freed, "x", None, 0, now());
    block::advance(&mut freed);
    let step = Step { task: 2, leave: &Leave::Named(named), ..TASK };
    assert_eq!(court.write(step, Record::Block(freed)), Vec::<String>::new());
    assert_eq!(court.write(step, Record::Block(held)), Vec::<String>::new());
}

#[test]
fn a_released_address_rests_as_long_as_the_shortest_cooldown_that_anybody_could_take_for_the_present_one() {
    for (seconds, knows_the_longer, wrong) in
        [(4, true, true), (6, false, false), (6, true, true), (31, true, false)]
    {
        let mut court = Court::new(StoreKind::Etcd);
        let cooldown = |ip_cooldown_seconds| IpamConfig { ip_cooldown_seconds, ..IpamConfig::default() };
        let short = court.configure(cooldown(5));
        let long = court.configure(cooldown(30));
        let mut made = block::new_block(cidr(ONE), &Owner::host("a"), now());
        made.unallocated.remove(0);
        Arc::make_mut(&mut made.allocations)[0] = Some(0);
        Arc::make_mut(&mut made.attributes)
            .push(Attribute { released_at: Some(now()), ..Attribute::default() }.into());
        court.write(TASK, Record::Block(made.clone()));
        Arc::make_mut(&mut made.attributes).clear();
        Arc::make_mut(&mut made.allocations)[0] = None;
        made.unallocated.push(0);
        block::advance(&mut made);
        let since = if knows_the_longer { long } else { short };
        let latest = now().checked_add(SignedDuration::from_secs(seconds)).unwrap();
        let found = court.write(Step { task: 2, since, latest, ..TASK }, Record::Block(made));
        assert_eq!(begins(&found, "2:"), wrong, "{seconds} {knows_the_longer}: {found:?}");
    }
}

#[test]
fn a_node_claims_no_block_beyond_its_limit_that_it_could_know_of() {
    for (limit, knows, wrong) in [(1, true, true), (1, false, false), (2, true, false)] {
        let mut court = Court::new(StoreKind::Kubernetes);
        let before = court.configure(IpamConfig { max_blocks_per_host: limit, ..IpamConfig::default() });
        let affinity = |text| {
            let (owner, state) = (Owner::host("a"), AffinityState::Pending);
            Record::Affinity(Affinity { owner, cidr: cidr(text), state, deleted: false })
        };
        assert_eq!(court.write(TASK, affinity(ONE)), Vec::<String>::new());
        let since = if knows { court.db.revision().0 } else { before };
        let found = court.write(Step { node: Some("a"), since, ..TASK }, affinity("10.0.0.4/30"));
        assert_eq!(begins(&found, "0:"), wrong, "{limit} {knows}: {found:?}");
    }
}

#[test]
fn what_a_peer_takes_off_a_handle_once_too_often_is_its_own_fault() {
    for by_peer in [true, false] {
        let mut court = Court::new(StoreKind::Etcd);
        court.held(&["x"]);
        let found = court.delete(Step { task: 2, by_peer, ..TASK }, &Key::Handle("x".to_owned()));
        assert_eq!(begins(&found, "5:"), !by_peer, "{found:?}");
    }
}
