//! Configuration, cold addresses and queries: outcomes, calls, lost answers.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use api::{Block, Cidr, IpVersion, IpamConfig, Owner, Pool, Reservation};
use datastore::memory::Memory;
use datastore::{Datastore, Key, Record, Write};
use futures::executor::block_on;
use ipam::block::{self, Take};
use ipam::clock::FixedClock;
use ipam::cold::{Pass, collect_cold};
use ipam::config::{self, ChangeConfigError, ConfigError};
use ipam::query::{Holder, addresses_of, holder_of, utilization_of, utilization_of_pools};
use ipam::reservations::ReservationSet;
use ipam::seen::{self, Seen};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use support::{Calls, Counting, losses};

const CLOCK: FixedClock = FixedClock(Timestamp::constant(1000, 0));
const LATER: FixedClock = FixedClock(Timestamp::constant(1031, 0));
const COOLDOWN: u32 = 30;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

async fn create(store: &Memory, record: Record) {
    store.commit(&[], &[Write::Create(record)]).await.unwrap();
}

/// A block of four in which `h` holds two addresses.
fn used(text: &str) -> Block {
    let mut made = block::new_block(cidr(text), &Owner::host("a"), CLOCK.0);
    let request = Take {
        count: 2,
        handle: Some("h"),
        attributes: &BTreeMap::new(),
        reserved: &ReservationSet::default(),
        avoid: &BTreeSet::new(),
        only_owner: None,
    };
    assert_eq!(block::take(&mut made, &request).unwrap().len(), 2);
    made
}

/// A block without addresses but two that were released just now; nobody's if not `owned`.
async fn cooling(owned: bool) -> (Memory, Seen<Block>) {
    let store = Memory::new();
    let mut made = used("10.0.0.0/30");
    block::release_by_handle(&mut made, "h", None, COOLDOWN, CLOCK.0);
    made.affinity = owned.then(|| Owner::host("a"));
    create(&store, Record::Block(made)).await;
    let seen = seen::blocks(&store).await.unwrap().remove(0);
    (store, seen)
}

#[test]
fn two_who_change_different_fields_at_once_both_get_their_way() {
    block_on(async {
        let counting = Counting::new(Memory::new());
        let strict =
            config::change(&counting, |before| IpamConfig { strict_affinity: true, ..before.clone() });
        let cooldown =
            config::change(&counting, |before| IpamConfig { ip_cooldown_seconds: 30, ..before.clone() });
        let (one, other) = futures::join!(strict, cooldown);
        assert!(one.is_ok() && other.is_ok());
        let now = seen::config(&counting.store).await.unwrap();
        assert!(now.strict_affinity && now.ip_cooldown_seconds == 30, "{now:?}");
    });
}

#[test]
fn what_would_break_a_rule_or_changes_nothing_is_not_written() {
    block_on(async {
        let counting = Counting::new(Memory::new());
        let same = config::change(&counting, Clone::clone).await.unwrap();
        assert_eq!(same, IpamConfig::default());
        let wrong =
            config::change(&counting, |before| IpamConfig { max_blocks_per_host: 3, ..before.clone() }).await;
        let error = ConfigError::LimitWithoutStrictAffinity { limit: 3 };
        assert_eq!(wrong, Err(ChangeConfigError::Invalid(error)));
        assert_eq!(counting.calls(), Calls { gets: 2, trips: 2, ..Calls::default() });
        assert_eq!(counting.store.get(&Key::Config).await, Ok(None));
    });
}

#[test]
fn a_lost_answer_to_a_change_of_the_configuration_is_looked_up() {
    block_on(async {
        for exists in [false, true] {
            for (number, lost) in losses(1) {
                let store = Memory::new();
                if exists {
                    create(&store, Record::Config(IpamConfig::default())).await;
                }
                let counting = Counting::losing(store, number, lost);
                let strict = |before: &IpamConfig| IpamConfig { strict_affinity: true, ..before.clone() };
                assert!(config::change(&counting, strict).await.unwrap().strict_affinity);
                assert!(seen::config(&counting.store).await.unwrap().strict_affinity, "{exists} {lost:?}");
            }
        }
    });
}

#[test]
fn an_idle_block_gets_its_cooled_addresses_back() {
    block_on(async {
        let (store, seen) = cooling(true).await;
        let counting = Counting::new(store);
        assert_eq!(collect_cold(&counting, &CLOCK, COOLDOWN, &seen).await, Ok(Pass::Nothing));
        assert_eq!(counting.calls(), Calls::default());
        let before = seen.clone();
        let pass = collect_cold(&counting, &LATER, COOLDOWN, &seen).await.unwrap();
        assert_eq!(seen, before);
        let Pass::Freed(freed) = pass else { panic!("{pass:?}") };
        assert_eq!(freed.value.unallocated, [2, 3, 0, 1]);
        assert_eq!(freed.value.sequence_number, seen.value.sequence_number + 1);
        assert_eq!(seen::block(&counting.store, seen.value.cidr).await.unwrap().as_ref(), Some(&*freed));
        assert_eq!(counting.calls(), Calls { commits: 1, trips: 1, ..Calls::default() });
        assert_eq!(collect_cold(&counting, &LATER, COOLDOWN, &seen).await, Ok(Pass::Changed));
        assert_eq!(collect_cold(&counting, &LATER, COOLDOWN, &freed).await, Ok(Pass::Nothing));
    });
}

#[test]
fn a_block_without_owner_goes_with_its_last_cooled_address() {
    block_on(async {
        let (store, seen) = cooling(false).await;
        assert_eq!(collect_cold(&store, &CLOCK, COOLDOWN, &seen).await, Ok(Pass::Nothing));
        assert_eq!(collect_cold(&store, &LATER, COOLDOWN, &seen).await, Ok(Pass::Deleted));
        assert!(seen::blocks(&store).await.unwrap().is_empty());
        // Left by a peer that collected it and does not delete.
        let mut left = used("10.0.0.0/30");
        block::release_by_handle(&mut left, "h", None, 0, CLOCK.0);
        left.affinity = None;
        create(&store, Record::Block(left)).await;
        let seen = seen::blocks(&store).await.unwrap().remove(0);
        assert_eq!(collect_cold(&store, &CLOCK, COOLDOWN, &seen).await, Ok(Pass::Deleted));
    });
}

#[test]
fn a_lost_answer_of_a_cold_pass_is_looked_up_and_nothing_is_done_twice() {
    block_on(async {
        for owned in [true, false] {
            for (number, lost) in losses(1) {
                let (store, seen) = cooling(owned).await;
                let counting = Counting::losing(store, number, lost);
                let pass = collect_cold(&counting, &LATER, COOLDOWN, &seen).await.unwrap();
                let made = lost == support::Lost::After;
                assert_eq!(matches!(pass, Pass::Freed(_)), made && owned, "{pass:?}");
                assert_eq!(matches!(pass, Pass::Deleted), made && !owned, "{pass:?}");
                assert_eq!(matches!(pass, Pass::Changed), !made, "{pass:?}");
                let bound = Calls { gets: 1, commits: 1, trips: 2, ..Calls::default() };
                assert!(counting.calls().are_within(bound), "{:?}", counting.calls());
            }
        }
    });
}

#[test]
fn queries_tell_what_holds_an_address_and_what_a_handle_holds() {
    block_on(async {
        let store = Memory::new();
        let config = IpamConfig { ip_cooldown_seconds: COOLDOWN, ..IpamConfig::default() };
        create(&store, Record::Config(config)).await;
        let mut pool = Pool::with_defaults("p", cidr("10.0.0.0/24"));
        pool.block_size = 30;
        pool.disabled = true;
        create(&store, Record::Pool(pool)).await;
        let mut one = used("10.0.0.0/30");
        let back = block::Release { address: "10.0.0.1".parse().unwrap(), handle: None, sequence: None };
        block::release(&mut one, &[back], COOLDOWN, CLOCK.0).unwrap();
        create(&store, Record::Block(one)).await;
        let blocks = BTreeMap::from([(cidr("10.0.0.0/30"), 2), (cidr("10.0.0.4/30"), 1)]);
        create(&store, Record::Handle(api::Handle { id: "h".to_owned(), blocks, deleted: false })).await;
        let holder = async |text: &str, clock| holder_of(&store, clock, text.parse().unwrap()).await.unwrap();
        assert!(matches!(holder("10.0.0.0", &CLOCK).await, Holder::Allocated { .. }));
        assert_eq!(holder("10.0.0.1", &CLOCK).await, Holder::Cooling);
        assert_eq!(holder("10.0.0.1", &LATER).await, Holder::Nobody);
        assert_eq!(holder("10.0.0.2", &CLOCK).await, Holder::Nobody);
        assert_eq!(holder("10.9.0.2", &CLOCK).await, Holder::Nobody);
        let held: Vec<String> =
            addresses_of(&store, "h\rjunk", None).await.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(held, ["10.0.0.0"]);
        assert!(addresses_of(&store, "h", Some(IpVersion::V6)).await.unwrap().is_empty());
        assert!(addresses_of(&store, "i", None).await.unwrap().is_empty());
    });
}

#[test]
fn an_address_in_a_block_of_another_size_than_its_pool_has_now_is_found() {
    block_on(async {
        let store = Memory::new();
        create(&store, Record::Pool(Pool::with_defaults("p", cidr("10.0.0.0/24")))).await;
        create(&store, Record::Block(used("10.0.0.0/30"))).await;
        let found = holder_of(&store, &CLOCK, "10.0.0.1".parse().unwrap()).await.unwrap();
        assert!(matches!(found, Holder::Allocated { .. }));
    });
}

#[test]
fn utilization_counts_the_pools_asked_for_and_orphans_only_with_all() {
    block_on(async {
        let store = Memory::new();
        for (name, range) in [("a", "10.0.0.0/24"), ("b", "10.1.0.0/24")] {
            create(&store, Record::Pool(Pool::with_defaults(name, cidr(range)))).await;
        }
        let cidrs = vec![cidr("10.0.0.0/31")];
        create(&store, Record::Reservation(Reservation { name: "r".to_owned(), cidrs })).await;
        for range in ["10.0.0.0/30", "10.1.0.0/30", "10.2.0.0/30", "fd00::/126"] {
            create(&store, Record::Block(used(range))).await;
        }
        let counting = Counting::new(store);
        let (all, _) = utilization_of(&counting).await.unwrap();
        assert_eq!((all.pools.len(), all.orphans.len()), (2, 2));
        let a = all.pools[0].count;
        assert_eq!((a.total, a.in_use, a.reserved, a.free), (256, 2, 2, 254), "in use and reserved overlap");
        assert_eq!(counting.calls(), Calls { lists: 3, trips: 1, ..Calls::default() });
        let named = async |text: &str| utilization_of_pools(&counting, &[text.to_owned()]).await.unwrap().0;
        for text in ["b", "10.1.0.0/24"] {
            let one = named(text).await;
            assert_eq!((one.pools.len(), one.orphans.len()), (1, 0), "{text}");
            assert_eq!(one.pools[0].name, "b");
        }
        assert!(named("c").await.pools.is_empty());
    });
}

#[test]
fn queries_read_no_more_than_the_documentation_says() {
    block_on(async {
        let store = Memory::new();
        let mut pool = Pool::with_defaults("p", cidr("10.0.0.0/24"));
        pool.block_size = 30;
        create(&store, Record::Pool(pool)).await;
        create(&store, Record::Block(used("10.0.0.0/30"))).await;
        create(&store, Record::Block(used("10.0.0.4/30"))).await;
        let blocks = BTreeMap::from([(cidr("10.0.0.0/30"), 2), (cidr("10.0.0.4/30"), 2)]);
        create(&store, Record::Handle(api::Handle { id: "h".to_owned(), blocks, deleted: false })).await;
        let counting = Counting::new(store.clone());
        assert_eq!(addresses_of(&counting, "h", None).await.unwrap().len(), 4);
        assert_eq!(counting.calls(), Calls { gets: 3, trips: 2, ..Calls::default() });
        for (text, expected) in [
            ("10.0.0.1", Calls { gets: 2, lists: 1, commits: 0, trips: 2 }),
            ("10.0.0.9", Calls { gets: 2, lists: 2, commits: 0, trips: 3 }),
            ("10.9.0.9", Calls { gets: 1, lists: 2, commits: 0, trips: 2 }),
        ] {
            let counting = Counting::new(store.clone());
            holder_of(&counting, &CLOCK, text.parse().unwrap()).await.unwrap();
            assert_eq!(counting.calls(), expected, "{text}");
        }
    });
}
