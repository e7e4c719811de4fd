//! Requests and pools of absurd size: answered promptly, without overflow, and not by looking at every address.

#![expect(clippy::unwrap_used, reason = "a test may")]

use api::{Cidr, Node, Owner, Pool, Reservation, Use};
use datastore::memory::Memory;
use datastore::{Datastore, Record, Write};
use futures::executor::block_on;
use ipam::ReservationSet;
use ipam::assign::{AssignRequest, Assigned, assign};
use ipam::clock::FixedClock;
use ipam::plan::Want;
use ipam::utilization::utilization;
use jiff::Timestamp;
use std::collections::BTreeMap;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn pool(text: &str, block_size: u8) -> Pool {
    let mut pool = Pool::with_defaults("p", cidr(text));
    pool.block_size = block_size;
    pool
}

fn reserved(cidrs: &[&str]) -> Reservation {
    Reservation { name: "r".to_owned(), cidrs: cidrs.iter().map(|text| cidr(text)).collect() }
}

/// What node `n` gets of `pool` when it asks for `count` addresses.
fn ask(pool: Pool, reservation: Reservation, count: usize) -> Assigned {
    let store = Memory::new();
    let version = pool.cidr.version();
    let records = [
        Record::Pool(pool),
        Record::Reservation(reservation),
        Record::Node(Node { name: "n".to_owned(), ..Node::default() }),
    ];
    let want = Want { count, handle: Some("h".to_owned()), attributes: BTreeMap::new() };
    let request = AssignRequest::new(Owner::host("n"), version, Use::Workload, want);
    block_on(async {
        store.commit(&[], &records.map(Write::Create)).await.unwrap();
        assign(&store, &FixedClock(Timestamp::UNIX_EPOCH), &request).await.unwrap()
    })
}

#[test]
fn a_million_addresses_are_as_many_as_the_block_limit_gives() {
    let assigned = ask(pool("10.0.0.0/8", 26), reserved(&[]), 1_000_000);
    assert_eq!(assigned.taken.len(), 20 * 64);
    assert!(assigned.explain.shortage.is_some());
    let most = ask(pool("10.0.0.0/8", 32), reserved(&[]), usize::MAX);
    assert_eq!(most.taken.len(), 20);
}

#[test]
fn a_whole_small_pool_can_be_asked_for() {
    let assigned = ask(pool("10.0.0.0/26", 28), reserved(&["10.0.0.5/32"]), 1_000_000);
    assert_eq!(assigned.taken.len(), 63);
}

#[test]
fn an_ipv6_pool_half_reserved_is_used_in_its_other_half() {
    for half in ["fd00::/49", "fd00:0:0:8000::/49"] {
        let assigned = ask(pool("fd00::/48", 122), reserved(&[half]), 70);
        assert_eq!(assigned.taken.len(), 70);
        assert!(assigned.taken.iter().all(|taken| !cidr(half).contains(taken.address)));
    }
}

#[test]
fn a_pool_that_is_reserved_but_for_one_address_gives_that_one() {
    // Every network that does not hold 10.200.3.4.
    let around: Vec<String> = (9..=32)
        .map(|prefix| {
            let beside = 0x0ac8_0304_u32 ^ (1 << (32 - prefix));
            format!("{}/{prefix}", std::net::Ipv4Addr::from_bits(beside))
        })
        .collect();
    let around: Vec<&str> = around.iter().map(String::as_str).collect();
    let assigned = ask(pool("10.0.0.0/8", 32), reserved(&around), 1);
    assert_eq!(assigned.taken[0].with_block_prefix(), "10.200.3.4/32");
}

#[test]
fn a_pool_that_is_wholly_reserved_says_so_at_once() {
    for (text, block_size) in [("10.0.0.0/8", 32), ("fd00::/48", 128), ("::/0", 128), ("0.0.0.0/0", 32)] {
        let assigned = ask(pool(text, block_size), reserved(&["0.0.0.0/0", "::/0"]), 1_000_000);
        assert!(assigned.taken.is_empty());
        assert!(assigned.explain.shortage.is_some());
    }
}

#[test]
fn counts_of_the_largest_pools_saturate() {
    let all = ReservationSet::new(&[reserved(&["0.0.0.0/0", "::/0"])]);
    let none = ReservationSet::none();
    for (text, total) in [("0.0.0.0/0", 1 << 32), ("::/0", u128::MAX), ("fd00::/48", 1 << 80)] {
        let pools = [pool(text, 32), pool(text, 32)];
        let free = utilization(&pools, &[], &none);
        assert!(free.pools.iter().all(|counted| counted.count.total == total && counted.count.free == total));
        let full = utilization(&pools, &[], &all);
        assert!(full.pools.iter().all(|counted| counted.count.reserved == total && counted.count.free == 0));
    }
}

/// A set of ten thousand separate reservations costs a question about as much as a set of ten: it is not walked.
#[test]
fn ten_thousand_reservations_are_asked_by_halving() {
    let entries = (0..10_000_u32).map(|n| Cidr::from(std::net::IpAddr::V4((0x0a00_0000 + 2 * n).into())));
    let set = ReservationSet::of_cidrs(entries);
    let mut covered = 0;
    for n in 0..20_000_u32 {
        covered += u32::from(set.covers_address(std::net::IpAddr::V4((0x0a00_0000 + n).into())));
    }
    assert_eq!(covered, 10_000);
    assert_eq!(set.count_in(cidr("10.0.0.0/16")), 10_000);
}
