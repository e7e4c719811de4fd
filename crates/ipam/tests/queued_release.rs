//! Queued releases meet a store in which time went on (architecture D4).

#![expect(clippy::unwrap_used, reason = "a test may")]

use api::attachment::Attachment;
use api::{Block, Cidr, ClusterInformation, Handle, Owner};
use datastore::memory::Memory;
use datastore::{Datastore as _, Key, Record, Write};
use futures::executor::block_on;
use ipam::block::{self, Take};
use ipam::clock::FixedClock;
use ipam::release_queue::{Entry, Held, Replayed, replay};
use ipam::{ReservationSet, seen};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);

fn cidr() -> Cidr {
    "10.0.0.0/30".parse().unwrap()
}

fn create(store: &Memory, record: Record) {
    block_on(store.commit(&[], &[Write::Create(record)])).unwrap();
}

fn take(block: &mut Block, interface: &str) -> Held {
    let attributes = BTreeMap::from([("interface".to_owned(), interface.to_owned())]);
    let request = Take {
        count: 1,
        handle: Some("net.c"),
        attributes: &attributes,
        reserved: &ReservationSet::default(),
        avoid: &BTreeSet::new(),
        only_owner: None,
    };
    let taken = block::take(block, &request).unwrap().remove(0);
    block::advance(block);
    Held { address: taken.address, sequence: taken.sequence }
}

/// A store in which handle `net.c` holds an address for each interface.
fn store(interfaces: &[&str]) -> (Memory, Vec<Held>) {
    let store = Memory::new();
    let mut made = block::new_block(cidr(), &Owner::host("a"), CLOCK.0);
    let held: Vec<Held> = interfaces.iter().map(|interface| take(&mut made, interface)).collect();
    let blocks = BTreeMap::from([(cidr(), u32::try_from(held.len()).unwrap())]);
    create(&store, Record::Handle(Handle { id: "net.c".to_owned(), blocks, deleted: false }));
    create(&store, Record::Block(made));
    let information = information(true);
    create(&store, Record::ClusterInformation(information));
    (store, held)
}

fn information(datastore_ready: bool) -> ClusterInformation {
    ClusterInformation { datastore_ready, cluster_guid: "here".to_owned(), ..ClusterInformation::default() }
}

fn entry(interface: &str, held: Option<Vec<Held>>, cluster: &str) -> Entry {
    Entry {
        attachment: Attachment {
            network: "net".to_owned(),
            container: "c".to_owned(),
            interface: interface.to_owned(),
        },
        handle: "net.c".to_owned(),
        held,
        cluster: Some(cluster.to_owned()).filter(|guid| !guid.is_empty()),
        at: CLOCK.0,
    }
}

fn holds(store: &Memory) -> u32 {
    block::count_of(&block_on(seen::block(store, cidr())).unwrap().unwrap().value, "net.c")
}

fn counted(store: &Memory) -> Option<u32> {
    let handle = block_on(seen::handle(store, "net.c")).unwrap()?;
    handle.value.blocks.get(&cidr()).copied()
}

#[test]
fn a_queued_release_gives_back_what_it_names_and_may_be_repeated() {
    let (store, held) = store(&["eth0", "net1"]);
    let owed = entry("eth0", Some(vec![held[0]]), "here");
    for _ in 0..2 {
        assert_eq!(block_on(replay(&store, &CLOCK, &owed)), Replayed::Done);
        assert_eq!((holds(&store), counted(&store)), (1, Some(1)));
    }
}

#[test]
fn the_same_address_under_the_same_handle_but_another_stamp_is_left_alone() {
    let (store, held) = store(&["eth0"]);
    let stale = Held { sequence: held[0].sequence.wrapping_sub(1), ..held[0] };
    let owed = entry("eth0", Some(vec![stale]), "here");
    assert_eq!(block_on(replay(&store, &CLOCK, &owed)), Replayed::Done);
    assert_eq!(holds(&store), 1);
}

#[test]
fn an_address_that_is_anothers_does_not_hold_up_the_rest() {
    let (store, held) = store(&["eth0", "eth0"]);
    let stale = Held { sequence: held[0].sequence.wrapping_sub(1), ..held[0] };
    let owed = entry("eth0", Some(vec![stale, held[1]]), "here");
    assert_eq!(block_on(replay(&store, &CLOCK, &owed)), Replayed::Done);
    assert_eq!(holds(&store), 1);
}

#[test]
fn nothing_is_released_in_another_cluster() {
    let (store, held) = store(&["eth0"]);
    for held in [Some(held), None] {
        let owed = entry("eth0", held, "there");
        assert_eq!(block_on(replay(&store, &CLOCK, &owed)), Replayed::Foreign);
    }
    assert_eq!(holds(&store), 1);
}

#[test]
fn nothing_is_released_while_the_datastore_is_locked() {
    let (store, held) = store(&["eth0"]);
    let lock = |ready| {
        let seen = block_on(store.get(&Key::ClusterInformation)).unwrap().unwrap();
        let record = Record::ClusterInformation(information(ready));
        block_on(store.commit(&[], &[Write::Update(record, seen.version)])).unwrap();
    };
    lock(false);
    for held in [Some(held), None] {
        let owed = entry("eth0", held, "here");
        assert!(matches!(block_on(replay(&store, &CLOCK, &owed)), Replayed::Unavailable { .. }));
        assert_eq!(holds(&store), 1);
    }
    lock(true);
    assert_eq!(block_on(replay(&store, &CLOCK, &entry("eth0", None, "here"))), Replayed::Done);
    assert_eq!(holds(&store), 0);
}

#[test]
fn what_a_del_could_not_name_is_looked_for_by_handle_and_interface() {
    let (store, _) = store(&["eth0", "net1"]);
    assert_eq!(block_on(replay(&store, &CLOCK, &entry("net1", None, ""))), Replayed::Done);
    assert_eq!(holds(&store), 1);
    // Also where a crash took the handle.
    let handle = block_on(seen::handle(&store, "net.c")).unwrap().unwrap();
    block_on(store.commit(&[], &[Write::Delete(Record::Handle(handle.value), handle.version)])).unwrap();
    assert_eq!(block_on(replay(&store, &CLOCK, &entry("eth0", None, ""))), Replayed::Done);
    assert_eq!(holds(&store), 0);
}
