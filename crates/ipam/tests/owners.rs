//! Owners of addresses and the addresses of virtual machines: outcomes, calls, lost answers.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use api::{IpVersion, Node, Owner, Pool, Use};
use datastore::memory::Memory;
use datastore::{Datastore, Key, Record, Write};
use futures::executor::block_on;
use ipam::assign::{AssignRequest, assign};
use ipam::assign_address::assign_address;
use ipam::block::{self, Release};
use ipam::clock::FixedClock;
use ipam::owner_attributes::{
    Change, Expected, OwnerUpdate, PodName, SetOwnerAttributesError, SetOwnerError, set_owner_attributes,
};
use ipam::plan::{AddressRequest, Want};
use ipam::query::{Holder, holder_of};
use ipam::release::release_addresses;
use ipam::seen::{self, Seen};
use ipam::vm::{self, VmError};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::net::IpAddr;
use support::{Calls, Counting, losses};

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);
const MACHINE: &str = "k8s-pod-network.vmi.shop.db";

fn pod(name: &str) -> PodName {
    PodName { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn attributes(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("pod".to_owned(), name.to_owned()), ("namespace".to_owned(), "shop".to_owned())])
}

/// A machine with `count` addresses, of which the pod `source` is the active owner.
async fn machine(count: usize) -> (Memory, Vec<IpAddr>) {
    let store = Memory::new().with_clock(|| Timestamp::UNIX_EPOCH);
    let mut pool = Pool::with_defaults("p", "10.0.0.0/28".parse().unwrap());
    pool.block_size = 29;
    store.commit(&[], &[Write::Create(Record::Pool(pool))]).await.unwrap();
    let node = Node { name: "a".to_owned(), ..Node::default() };
    store.commit(&[], &[Write::Create(Record::Node(node))]).await.unwrap();
    let want = Want { count, handle: Some(MACHINE.to_owned()), attributes: attributes("source") };
    let request = AssignRequest::new(Owner::host("a"), IpVersion::V4, Use::Workload, want);
    let taken = assign(&store, &CLOCK, &request).await.unwrap().taken;
    (store, taken.into_iter().map(|taken| taken.address).collect())
}

/// Names of the active and the alternate owner, empty where there is none.
async fn owners<D: Datastore>(store: &D, address: IpAddr) -> (String, String) {
    let name = |of: &BTreeMap<String, String>| of.get("pod").cloned().unwrap_or_default();
    match holder_of(store, &CLOCK, address).await.unwrap() {
        Holder::Allocated { active, alternate, .. } => (name(&active), name(&alternate)),
        other => panic!("{other:?}"),
    }
}

fn is(owners: (String, String), active: &str, alternate: &str) -> bool {
    owners == (active.to_owned(), alternate.to_owned())
}

fn hand_over() -> OwnerUpdate {
    OwnerUpdate {
        active: Change::Set(attributes("other")),
        expected_active: Expected::Owner(pod("source")),
        ..OwnerUpdate::default()
    }
}

#[test]
fn an_update_is_made_once_and_its_repetition_meets_its_precondition() {
    block_on(async {
        let (store, held) = machine(2).await;
        set_owner_attributes(&store, &CLOCK, held[0], MACHINE, &hand_over()).await.unwrap();
        assert!(is(owners(&store, held[0]).await, "other", ""));
        assert!(is(owners(&store, held[1]).await, "source", ""), "assigned together, owned apart");
        let again = set_owner_attributes(&store, &CLOCK, held[0], MACHINE, &hand_over()).await;
        assert!(matches!(again, Err(SetOwnerAttributesError::Refused(SetOwnerError::Unexpected { .. }))));
        let blocks = seen::blocks(&store).await.unwrap();
        assert_eq!(block::fault(&blocks[0].value), None);
        assert_eq!(block::count_of(&blocks[0].value, MACHINE), 2);
    });
}

#[test]
fn a_lost_answer_is_looked_up_and_not_taken_for_a_failed_precondition() {
    block_on(async {
        for (number, lost) in losses(1) {
            let (store, held) = machine(1).await;
            let counting = Counting::losing(store, number, lost);
            let outcome = set_owner_attributes(&counting, &CLOCK, held[0], MACHINE, &hand_over()).await;
            assert_eq!(outcome, Ok(()), "{lost:?}");
            assert!(is(owners(&counting.store, held[0]).await, "other", ""), "{lost:?}");
        }
    });
}

#[test]
fn an_update_that_changes_nothing_still_makes_a_new_revision() {
    block_on(async {
        let (store, held) = machine(1).await;
        let before = seen::blocks(&store).await.unwrap().remove(0);
        set_owner_attributes(&store, &CLOCK, held[0], MACHINE, &OwnerUpdate::default()).await.unwrap();
        let after = seen::blocks(&store).await.unwrap().remove(0);
        assert!(after.version.revision > before.version.revision);
        assert_eq!(after.value.sequence_number, before.value.sequence_number + 1);
        assert_eq!(after.value.attributes, before.value.attributes);
    });
}

#[test]
fn owners_can_be_changed_in_a_pool_that_is_disabled_or_gone() {
    block_on(async {
        let (store, held) = machine(1).await;
        let pool: Seen<Pool> = seen::get(&store, &Key::Pool("p".to_owned())).await.unwrap().unwrap();
        let off = Pool { disabled: true, ..pool.value };
        let written =
            store.commit(&[], &[Write::Update(Record::Pool(off.clone()), pool.version)]).await.unwrap();
        set_owner_attributes(&store, &CLOCK, held[0], MACHINE, &hand_over()).await.unwrap();
        store.commit(&[], &[Write::Delete(Record::Pool(off), written[0].clone())]).await.unwrap();
        let back = OwnerUpdate { active: Change::Set(attributes("source")), ..OwnerUpdate::default() };
        set_owner_attributes(&store, &CLOCK, held[0], MACHINE, &back).await.unwrap();
        assert!(is(owners(&store, held[0]).await, "source", ""));
    });
}

#[test]
fn a_machine_migrates_and_keeps_its_address() {
    block_on(async {
        let (store, held) = machine(1).await;
        let early = vm::promote(&store, &CLOCK, held[0], MACHINE, &pod("target")).await;
        assert!(matches!(early, Err(VmError::AlternateOwnerEmpty { .. })));
        let announced = vm::announce_target(&store, &CLOCK, MACHINE, None, &attributes("target")).await;
        assert_eq!(announced, Ok(held.clone()));
        assert!(is(owners(&store, held[0]).await, "source", "target"));
        let other = vm::promote(&store, &CLOCK, held[0], MACHINE, &pod("stranger")).await;
        assert_eq!(
            other,
            Err(VmError::AlternateOwnerMismatch {
                address: held[0],
                wanted: pod("stranger"),
                found: pod("target")
            })
        );
        vm::promote(&store, &CLOCK, held[0], MACHINE, &pod("target")).await.unwrap();
        assert!(is(owners(&store, held[0]).await, "target", "source"));
        let before = store.revision();
        vm::promote(&store, &CLOCK, held[0], MACHINE, &pod("target")).await.unwrap();
        assert_eq!(store.revision(), before, "active already: nothing is written");
        assert_eq!(vm::forget(&store, &CLOCK, MACHINE, &pod("source"), false).await, Ok(0));
        assert!(is(owners(&store, held[0]).await, "target", ""));
    });
}

#[test]
fn a_target_becomes_active_where_nobody_was() {
    block_on(async {
        let (store, held) = machine(1).await;
        vm::announce_target(&store, &CLOCK, MACHINE, None, &attributes("target")).await.unwrap();
        vm::forget(&store, &CLOCK, MACHINE, &pod("source"), false).await.unwrap();
        assert!(is(owners(&store, held[0]).await, "", "target"));
        vm::promote(&store, &CLOCK, held[0], MACHINE, &pod("target")).await.unwrap();
        assert!(is(owners(&store, held[0]).await, "target", ""));
    });
}

#[test]
fn the_addresses_of_a_machine_are_released_with_its_last_owner_and_not_before() {
    block_on(async {
        let (store, held) = machine(2).await;
        vm::announce_target(&store, &CLOCK, MACHINE, None, &attributes("target")).await.unwrap();
        assert_eq!(vm::forget(&store, &CLOCK, MACHINE, &pod("source"), true).await, Ok(0));
        assert!(is(owners(&store, held[1]).await, "target", ""));
        assert_eq!(vm::forget(&store, &CLOCK, MACHINE, &pod("stranger"), true).await, Ok(0));
        assert_eq!(vm::forget(&store, &CLOCK, MACHINE, &pod("target"), true).await, Ok(2));
        assert_eq!(vm::forget(&store, &CLOCK, MACHINE, &pod("target"), true).await, Ok(0));
        assert!(seen::handle(&store, MACHINE).await.unwrap().is_none());
    });
}

/// Whoever dies on the way leaves an address that names a pod, by which the collector finds it.
#[test]
fn the_last_pod_of_a_deleted_machine_is_not_taken_off_before_the_release() {
    block_on(async {
        for polls in 0..40 {
            let (store, held) = machine(1).await;
            let counting = Counting::new(store);
            let gone = pod("source");
            let forgotten = vm::forget(&counting, &CLOCK, MACHINE, &gone, true);
            let mut forgotten = Box::pin(forgotten);
            for _ in 0..polls {
                if futures::poll!(forgotten.as_mut()).is_ready() {
                    return;
                }
            }
            drop(forgotten);
            let left = ipam::query::holder_of(&counting.store, &CLOCK, held[0]).await.unwrap();
            if let ipam::query::Holder::Allocated { active, .. } = left {
                assert!(pod("source").owns(&active), "after {polls} polls: {active:?}");
            }
        }
        panic!("it does not end");
    });
}

#[test]
fn a_machine_that_stops_keeps_its_address_for_its_next_pod() {
    block_on(async {
        let (store, held) = machine(1).await;
        assert_eq!(vm::forget(&store, &CLOCK, MACHINE, &pod("source"), false).await, Ok(0));
        assert!(is(owners(&store, held[0]).await, "", ""));
        let reused = vm::reuse(&store, &CLOCK, MACHINE, Some(IpVersion::V4), &attributes("next")).await;
        assert_eq!(reused, Ok(held.clone()));
        assert!(is(owners(&store, held[0]).await, "next", ""));
        let none = vm::reuse(&store, &CLOCK, MACHINE, Some(IpVersion::V6), &attributes("next")).await;
        assert_eq!(none, Ok(Vec::new()));
        let unknown = vm::announce_target(&store, &CLOCK, "nobody", None, &attributes("next")).await;
        assert!(matches!(unknown, Err(VmError::NoAddress { .. })));
    });
}

#[test]
fn every_lost_answer_of_a_migration_is_looked_up() {
    block_on(async {
        for (number, lost) in losses(3) {
            let (store, held) = machine(1).await;
            let counting = Counting::losing(store, number, lost);
            vm::announce_target(&counting, &CLOCK, MACHINE, None, &attributes("target")).await.unwrap();
            vm::promote(&counting, &CLOCK, held[0], MACHINE, &pod("target")).await.unwrap();
            assert!(is(owners(&counting.store, held[0]).await, "target", "source"), "{number} {lost:?}");
            vm::forget(&counting, &CLOCK, MACHINE, &pod("source"), false).await.unwrap();
            assert!(is(owners(&counting.store, held[0]).await, "target", ""), "{number} {lost:?}");
        }
    });
}

/// A DEL of the source races a promotion: at whatever call the other comes in, the target ends as the only owner.
#[test]
fn a_pod_that_goes_while_the_other_is_promoted_disturbs_nothing() {
    block_on(async {
        for calls_before in 0..8 {
            let (store, held) = machine(1).await;
            vm::announce_target(&store, &CLOCK, MACHINE, None, &attributes("target")).await.unwrap();
            let counting = Counting::new(store);
            let gone = pod("source");
            let mut forgetting = Box::pin(vm::forget(&counting, &CLOCK, MACHINE, &gone, false));
            for _ in 0..calls_before {
                if futures::poll!(forgetting.as_mut()).is_ready() {
                    return;
                }
            }
            vm::promote(&counting.store, &CLOCK, held[0], MACHINE, &pod("target")).await.unwrap();
            forgetting.await.unwrap();
            assert!(is(owners(&counting.store, held[0]).await, "target", ""), "{calls_before}");
        }
    });
}

/// The last DEL of a machine that is deleted races the ADD of one that is made anew under its name: whoever was told an address
/// keeps it.
#[test]
fn an_address_that_was_handed_on_is_not_freed_by_the_last_del_of_the_machine_before() {
    block_on(async {
        let mut raced = 0;
        for calls_before in 0..20 {
            let (store, held) = machine(1).await;
            let counting = Counting::new(store);
            let gone = pod("source");
            let mut forgetting = Box::pin(vm::forget(&counting, &CLOCK, MACHINE, &gone, true));
            for _ in 0..calls_before {
                if futures::poll!(forgetting.as_mut()).is_ready() {
                    assert!(raced > 5, "{raced}");
                    return;
                }
            }
            let told = vm::reuse(&counting.store, &CLOCK, MACHINE, None, &attributes("next")).await.unwrap();
            forgetting.await.unwrap();
            if told == held {
                assert!(is(owners(&counting.store, held[0]).await, "next", ""), "{calls_before}");
                raced += 1;
            }
        }
        panic!("more calls than there are");
    });
}

#[test]
fn handles_of_machines_are_named_by_network_and_machine_and_never_cut() {
    assert_eq!(vm::handle("k8s-pod-network", "shop", "db").as_deref(), Some(MACHINE));
    assert_eq!(vm::handle("k8s-pod-network", "shop", &"m".repeat(103)).map(|handle| handle.len()), Some(128));
    assert_eq!(vm::handle("k8s-pod-network", "shop", &"m".repeat(104)), None);
}

#[test]
fn calls_are_within_those_of_the_documentation() {
    block_on(async {
        for (what, [gets, lists, commits, trips]) in [
            ("set", [2, 1, 1, 3]),
            ("reuse", [4, 1, 1, 5]),
            ("promote", [4, 2, 1, 5]),
            ("forget", [6, 2, 1, 7]),
            ("forget a stranger", [4, 1, 0, 4]),
        ] {
            let (store, held) = machine(1).await;
            vm::announce_target(&store, &CLOCK, MACHINE, None, &attributes("target")).await.unwrap();
            let counting = Counting::new(store);
            match what {
                "set" => {
                    set_owner_attributes(&counting, &CLOCK, held[0], MACHINE, &hand_over()).await.unwrap()
                }
                "reuse" => {
                    drop(vm::reuse(&counting, &CLOCK, MACHINE, None, &attributes("next")).await.unwrap());
                }
                "promote" => {
                    vm::promote(&counting, &CLOCK, held[0], MACHINE, &pod("target")).await.unwrap();
                }
                "forget" => {
                    vm::forget(&counting, &CLOCK, MACHINE, &pod("source"), false).await.unwrap();
                }
                _ => {
                    vm::forget(&counting, &CLOCK, MACHINE, &pod("stranger"), false).await.unwrap();
                }
            }
            let calls = counting.calls();
            assert!(calls.are_within(Calls { gets, lists, commits, trips }), "{what}: {calls:?}");
        }
    });
}

/// What a collector has judged about an address: it is freed only while this is so.
async fn judged(store: &Memory, address: IpAddr) -> Release {
    let block = seen::blocks(store).await.unwrap().remove(0).value;
    let sequence = block.cidr.ordinal(address).map(|ordinal| block::stamp(&block, ordinal));
    Release { address, handle: Some(MACHINE.to_owned()), sequence }
}

#[test]
fn an_address_that_is_answered_or_handed_over_is_not_freed_by_what_was_judged_before() {
    block_on(async {
        let (store, held) = machine(1).await;
        for way in ["handed over", "answered at the cap", "asked for by name"] {
            let judged = judged(&store, held[0]).await;
            match way {
                "handed over" => {
                    set_owner_attributes(&store, &CLOCK, held[0], MACHINE, &hand_over()).await.unwrap();
                }
                "answered at the cap" => {
                    let want =
                        Want { count: 1, handle: Some(MACHINE.to_owned()), attributes: attributes("b") };
                    let request = AssignRequest::new(Owner::host("a"), IpVersion::V4, Use::Workload, want);
                    let request = AssignRequest { max_per_handle: 1, ..request };
                    let answer = assign(&store, &CLOCK, &request).await.unwrap();
                    assert_eq!((answer.taken.len(), answer.held.len()), (0, 1));
                }
                _ => {
                    let request = AddressRequest::new(Owner::host("a"), held[0], Some(MACHINE));
                    let answer = assign_address(&store, &CLOCK, &request).await.unwrap();
                    assert_eq!(answer.taken[0].address, held[0]);
                }
            }
            let late = release_addresses(&store, &CLOCK, &[judged]).await.unwrap();
            assert_eq!((late.released.len(), late.failed.len()), (0, 1), "{way}");
        }
    });
}

/// A container id that comes back with another pod, after a DEL that was cut short: under the name of the earlier pod the
/// collector would take the address for leaked.
#[test]
fn what_is_answered_again_is_of_the_pod_that_asks() {
    block_on(async {
        let (store, held) = machine(2).await;
        for (way, asker) in ["asked for by name", "answered at the cap"].into_iter().zip(["b", "c"]) {
            if way == "asked for by name" {
                let request = AddressRequest::new(Owner::host("a"), held[0], Some(MACHINE));
                let request = AddressRequest { attributes: attributes(asker), ..request };
                assign_address(&store, &CLOCK, &request).await.unwrap();
            } else {
                let want = Want { count: 1, handle: Some(MACHINE.to_owned()), attributes: attributes(asker) };
                let request = AssignRequest::new(Owner::host("a"), IpVersion::V4, Use::Workload, want);
                let request = AssignRequest { max_per_handle: 1, ..request };
                assert_eq!(assign(&store, &CLOCK, &request).await.unwrap().held.len(), 1);
            }
            assert!(is(owners(&store, held[0]).await, asker, ""), "{way}");
            assert!(is(owners(&store, held[1]).await, "source", ""), "{way}: nobody asked for it");
        }
    });
}
