//! Answers that are lost and writes that come late: what an operation makes of what it reads then, and what others must never
//! see meanwhile. Each of these once went wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod gated;

use api::{Affinity, AffinityNaming, AffinityState, Cidr, IpVersion, Node, Owner, Pool, Use};
use datastore::memory::Memory;
use datastore::{CommitError, Datastore, Key, Kind, Record, Scope, Write};
use futures::FutureExt as _;
use gated::{By, Call, Fate, Gated, until_answered_or_dead};
use ipam::administration::release_affinities_in;
use ipam::assign::{AssignRequest, assign, ensure_block};
use ipam::block;
use ipam::clock::FixedClock;
use ipam::dual_stack::{BothError, assign_both};
use ipam::host_reserved::HostReserved;
use ipam::plan::Want;
use ipam::query::addresses_of;
use ipam::release::release_by_handle;
use ipam::seen::{self, Seen};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);

/// The outcome of what waits for nobody: a gate may ask it in the midst of another's call.
fn now<T>(operation: impl Future<Output = T>) -> T {
    operation.now_or_never().unwrap()
}

fn put(store: &Memory, record: Record) {
    now(store.commit(&[], &[Write::Create(record)])).unwrap();
}

fn pool(name: &str, cidr: &str, block_size: u8) -> Pool {
    let mut pool = Pool::with_defaults(name, cidr.parse().unwrap());
    pool.block_size = block_size;
    pool
}

fn lab(pools: Vec<Pool>) -> Memory {
    let store = Memory::new().with_naming(AffinityNaming::PerBlock).with_clock(|| Timestamp::UNIX_EPOCH);
    for pool in pools {
        put(&store, Record::Pool(pool));
    }
    for name in ["a", "b"] {
        put(&store, Record::Node(Node { name: name.to_owned(), ..Node::default() }));
    }
    store
}

fn one_pool() -> Memory {
    lab(vec![pool("p", "10.0.0.0/28", 30)])
}

fn request(node: &str, handle: &str) -> AssignRequest {
    let want = Want { count: 1, handle: Some(handle.to_owned()), attributes: BTreeMap::new() };
    AssignRequest::new(Owner::host(node), IpVersion::V4, Use::Workload, want)
}

fn ask<D: Datastore>(store: &D, node: &str, handle: &str) -> block::Taken {
    let assigned = now(assign(store, &CLOCK, &request(node, handle))).unwrap();
    assert_eq!(assigned.taken.len(), 1);
    assigned.taken[0].clone()
}

/// Every confirmed affinity has its block.
fn check(store: &Memory) {
    let affinities: Vec<Seen<Affinity>> = now(seen::list(store, &Scope::All(Kind::Affinity))).unwrap();
    for affinity in affinities.into_iter().filter(|seen| seen.value.state == AffinityState::Confirmed) {
        let found = now(seen::block(store, affinity.value.cidr)).unwrap();
        let owner = found.and_then(|seen| seen.value.affinity);
        assert_eq!(owner, Some(affinity.value.owner), "{} is confirmed", affinity.value.cidr);
    }
}

/// Changes the pool's block size, as an operator who makes it anew.
fn recut(store: &Memory, block_size: u8) {
    let found: Seen<Pool> = now(seen::pools(store)).unwrap().remove(0);
    let pool = Pool { block_size, ..found.value };
    now(store.commit(&[], &[Write::Update(Record::Pool(pool), found.version)])).unwrap();
}

#[test]
fn an_undo_that_comes_after_the_answer_takes_nothing_away() {
    let store = one_pool();
    let (late, reads) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let gated = Gated {
        store: store.clone(),
        ordered: true,
        gate: By(|call: Call<'_>| match call {
            // The check of the pool after the block was written.
            Call::Get(Key::Pool(_)) if reads.fetch_add(1, Ordering::Relaxed) == 0 => Fate::Unreachable,
            Call::Commit(writes @ [Write::Delete(Record::Block(_), _)]) => {
                late.lock().unwrap().extend(writes.to_vec());
                Fate::LostBefore
            }
            _ => Fate::Pass,
        }),
    };
    let taken = ask(&gated, "a", "h");
    let late = std::mem::take(&mut *late.lock().unwrap());
    assert_eq!(late.len(), 1, "the claim took its block back");
    let outcome = now(store.commit(&[], &late));
    assert!(matches!(outcome, Err(CommitError::Conflict { .. })), "{outcome:?}");
    assert_eq!(now(addresses_of(&store, "h", None)).unwrap(), [taken.address]);
    check(&store);
}

#[test]
fn a_claim_that_is_taken_back_never_leaves_its_affinity_confirmed_without_the_block() {
    for ordered in [false, true] {
        // Until nobody dies any more.
        for dies_at in 1.. {
            let store = one_pool();
            let (commits, lost, recut_at) = (AtomicUsize::new(0), AtomicUsize::new(0), store.clone());
            let gate = |call: Call<'_>| {
                let Call::Commit(writes) = call else {
                    // Between the lost answer and the look at what became of it the pool is made anew.
                    if lost.compare_exchange(1, 2, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                        recut(&recut_at, 31);
                    }
                    return Fate::Pass;
                };
                let number = commits.fetch_add(1, Ordering::Relaxed);
                let confirms = |write: &Write| matches!(write.record(), Record::Affinity(found) if found.state == AffinityState::Confirmed);
                if writes.iter().any(confirms)
                    && lost.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
                {
                    return Fate::LostAfter;
                }
                if number == dies_at { Fate::DiesAfter } else { Fate::Pass }
            };
            let gated = Gated { store: store.clone(), ordered, gate: By(gate) };
            let request = request("a", "h");
            let answer = now(until_answered_or_dead(assign(&gated, &CLOCK, &request)));
            check(&store);
            if let Some(answer) = answer {
                assert_eq!(answer.unwrap().taken[0].block.prefix(), 31, "of the pool as it is now");
                assert!(dies_at > 2, "some died");
                break;
            }
        }
    }
}

#[test]
fn a_claim_that_loses_only_its_last_write_takes_no_second_address() {
    let store = one_pool();
    let (meddler, once) = (store.clone(), AtomicUsize::new(0));
    let gated = Gated {
        store: store.clone(),
        ordered: true,
        gate: By(move |call: Call<'_>| {
            if let Call::Commit([Write::Update(Record::Affinity(affinity), version)]) = call
                && affinity.state == AffinityState::Confirmed
                && once.fetch_add(1, Ordering::Relaxed) == 0
            {
                // Another plugin of the node looks after the same claim.
                let touched = Affinity { state: AffinityState::Pending, ..affinity.clone() };
                let write = Write::Update(Record::Affinity(touched), version.clone());
                now(meddler.commit(&[], &[write])).unwrap();
            }
            Fate::Pass
        }),
    };
    let taken = ask(&gated, "a", "h");
    assert_eq!(now(addresses_of(&store, "h", None)).unwrap(), [taken.address]);
    check(&store);
}

#[test]
fn a_claim_whose_block_is_taken_from_it_before_the_answer_leaves_no_address_behind() {
    let store = one_pool();
    let (other, once) = (store.clone(), AtomicUsize::new(0));
    let gated = Gated {
        store: store.clone(),
        ordered: true,
        gate: By(|call: Call<'_>| {
            if matches!(call, Call::Get(Key::Pool(_))) && once.fetch_add(1, Ordering::Relaxed) == 0 {
                // The pool is disabled, and its blocks are taken from their owners.
                let found: Seen<Pool> = now(seen::pools(&other)).unwrap().remove(0);
                let pool = Pool { disabled: true, ..found.value };
                let all = pool.cidr;
                now(other.commit(&[], &[Write::Update(Record::Pool(pool), found.version)])).unwrap();
                assert_eq!(now(release_affinities_in(&other, &CLOCK, all)), Ok(1));
            }
            Fate::Pass
        }),
    };
    assert!(now(assign(&gated, &CLOCK, &request("a", "h"))).is_err(), "no pool is left");
    assert_eq!(now(addresses_of(&store, "h", None)), Ok(Vec::new()));
    assert_eq!(now(seen::blocks(&store)), Ok(Vec::new()));
    check(&store);
}

#[test]
fn another_nodes_young_claim_costs_one_look_and_not_a_hundred() {
    let first = ask(&one_pool(), "a", "h").block;
    let store = one_pool();
    let begun =
        Affinity { owner: Owner::host("b"), cidr: first, state: AffinityState::Pending, deleted: false };
    put(&store, Record::Affinity(begun));
    for ordered in [false, true] {
        let calls = AtomicUsize::new(0);
        let gated = Gated {
            store: store.clone(),
            ordered,
            gate: By(|_: Call<'_>| {
                calls.fetch_add(1, Ordering::Relaxed);
                Fate::Pass
            }),
        };
        let handle = format!("h-{ordered}");
        assert_ne!(ask(&gated, "a", &handle).block, first);
        let calls = calls.load(Ordering::Relaxed);
        assert!(calls <= 20, "{calls} calls");
        now(release_by_handle(&store, &CLOCK, &handle)).unwrap();
    }
}

#[test]
fn no_block_is_made_for_a_node_across_those_that_were_made_since_its_claim() {
    let store = lab(vec![pool("p", "10.0.0.0/29", 30)]);
    let cidr: Cidr = "10.0.0.0/30".parse().unwrap();
    let begun = Affinity { owner: Owner::host("a"), cidr, state: AffinityState::Pending, deleted: false };
    put(&store, Record::Affinity(begun));
    let across = block::new_block("10.0.0.2/31".parse().unwrap(), &Owner::host("b"), CLOCK.0);
    put(&store, Record::Block(across));
    let kept = HostReserved { start: 1, end: 1, ..HostReserved::windows() };
    let ensured = now(ensure_block(&store, &CLOCK, "a", IpVersion::V4, &kept)).unwrap();
    assert_eq!(ensured.block, "10.0.0.4/30".parse().unwrap());
    assert_eq!(now(seen::block(&store, cidr)).unwrap(), None);
}

#[test]
fn a_release_that_was_made_is_not_reported_as_failed() {
    let mut choosy = pool("p", "10.0.0.0/28", 30);
    choosy.node_selector = "zone == 'x'".to_owned();
    for broken in ["node", "affinity", "nothing"] {
        let store = lab(vec![pool("p", "10.0.0.0/28", 30)]);
        ask(&store, "a", "h");
        let found: Seen<Pool> = now(seen::pools(&store)).unwrap().remove(0);
        let write = Write::Update(Record::Pool(choosy.clone()), found.version);
        now(store.commit(&[], &[write])).unwrap();
        let gated = Gated {
            store: store.clone(),
            ordered: false,
            gate: By(|call: Call<'_>| match call {
                Call::Get(Key::Node(_)) if broken == "node" => Fate::Unreachable,
                Call::Commit([Write::Update(Record::Affinity(_), _)]) if broken == "affinity" => {
                    Fate::Unreachable
                }
                _ => Fate::Pass,
            }),
        };
        assert_eq!(now(release_by_handle(&gated, &CLOCK, "h")), Ok(1), "{broken}");
        let left = now(seen::blocks(&store)).unwrap().len();
        assert_eq!(left, usize::from(broken != "nothing"), "{broken}");
    }
}

#[test]
fn a_call_that_comes_short_gives_nothing_back_that_another_call_of_its_handle_was_answered() {
    let store = lab(vec![pool("four", "10.0.0.0/28", 30), pool("six", "fd00::/126", 126)]);
    let six = |node: &str, handle: &str, count: usize| {
        let want = Want { count, handle: Some(handle.to_owned()), attributes: BTreeMap::new() };
        AssignRequest::new(Owner::host(node), IpVersion::V6, Use::Workload, want)
    };
    let theirs = now(assign(&store, &CLOCK, &six("b", "theirs", 4))).unwrap();
    assert_eq!(theirs.taken.len(), 4, "nothing is left of the second family");
    let (other, once, told) = (store.clone(), AtomicUsize::new(0), Mutex::new(None));
    let gated = Gated {
        store: store.clone(),
        ordered: false,
        gate: By(|call: Call<'_>| {
            if let (Call::Commit(_), 0) =
                (call, once.fetch_add(usize::from(matches!(call, Call::Commit(_))), Ordering::Relaxed))
            {
                // The runtime asked twice; the other call asks for one family and is answered first.
                *told.lock().unwrap() = Some(ask(&other, "a", "h").address);
            }
            Fate::Pass
        }),
    };
    let refused = now(assign_both(&gated, &CLOCK, &request("a", "h"), &six("a", "h", 1))).unwrap_err();
    assert!(matches!(refused.error, BothError::Short { version: IpVersion::V6, .. }), "{refused:?}");
    let told = told.lock().unwrap().unwrap();
    assert_eq!(now(addresses_of(&store, "h", None)).unwrap(), [told]);
}
