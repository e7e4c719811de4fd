//! Direct mode: in how few trips, with which answers, and with which account of itself (invariant 10).

#![expect(clippy::unwrap_used, reason = "tests")]

mod gated;
mod support;

use api::{
    Affinity, AffinityNaming, AffinityState, AssignmentMode, Cidr, IpVersion, IpamConfig, Node, Owner, Pool,
    Reservation, Use,
};
use datastore::memory::Memory;
use datastore::{Datastore, Key, Kind, Record, Scope, Write};
use futures::executor::block_on;
use futures::future::join_all;
use gated::{Gated, InTurn};
use ipam::assign::{AssignError, AssignRequest, Assigned, assign};
use ipam::assign_address::{AssignAddressError, assign_address};
use ipam::block::{self, Release};
use ipam::clock::FixedClock;
use ipam::dual_stack::{BothError, assign_both};
use ipam::explain::Shortage;
use ipam::host_reserved::HostReserved;
use ipam::plan::{AddressRequest, Want};
use ipam::query::{addresses_of, utilization_of};
use ipam::release::{release_addresses, release_by_handle, release_by_handle_in};
use ipam::seen::{self, Seen};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use support::{Calls, Counting};

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);

fn put(store: &Memory, record: Record) {
    block_on(store.commit(&[], &[Write::Create(record)])).unwrap();
}

fn pool(name: &str, cidr: &str, block_size: u8) -> Pool {
    let mut pool = Pool::with_defaults(name, cidr.parse().unwrap());
    pool.block_size = block_size;
    pool
}

/// A store with these pools and the nodes `a` and `b`.
fn lab(pools: Vec<Pool>) -> Memory {
    let store = Memory::new().with_clock(|| Timestamp::UNIX_EPOCH);
    for pool in pools {
        put(&store, Record::Pool(pool));
    }
    for name in ["a", "b"] {
        put(&store, Record::Node(Node { name: name.to_owned(), ..Node::default() }));
    }
    store
}

fn v4_lab() -> Memory {
    lab(vec![pool("p", "10.0.0.0/28", 30)])
}

fn configure(store: &Memory, config: IpamConfig) {
    put(store, Record::Config(config));
}

fn request(node: &str, handle: &str, count: usize) -> AssignRequest {
    let want = Want { count, handle: Some(handle.to_owned()), attributes: BTreeMap::new() };
    AssignRequest::new(Owner::host(node), IpVersion::V4, Use::Workload, want)
}

fn ask<D: Datastore>(store: &D, node: &str, handle: &str, count: usize) -> Assigned {
    block_on(assign(store, &CLOCK, &request(node, handle, count))).unwrap()
}

fn addresses(assigned: &Assigned) -> Vec<String> {
    assigned.taken.iter().map(|taken| taken.address.to_string()).collect()
}

fn held(store: &Memory, handle: &str) -> usize {
    block_on(addresses_of(store, handle, None)).unwrap().len()
}

fn in_use(store: &Memory) -> u128 {
    let (counted, _) = block_on(utilization_of(store)).unwrap();
    counted.pools.iter().map(|pool| pool.count.in_use).sum()
}

/// Counts the calls of one operation on a copy of the connection to `store`.
fn counted<T>(store: &Memory, operation: impl AsyncFnOnce(&Counting) -> T) -> (T, Calls) {
    let counting = Counting::new(store.clone());
    let answer = block_on(operation(&counting));
    let calls = counting.calls();
    (answer, calls)
}

fn calls(gets: usize, lists: usize, commits: usize, trips: usize) -> Calls {
    Calls { gets, lists, commits, trips }
}

#[test]
fn a_warm_assignment_is_three_trips_and_so_is_a_cold_one() {
    let store = v4_lab();
    let asked = async |store: &Counting, handle: &str, count| {
        assign(store, &CLOCK, &request("a", handle, count)).await.unwrap().taken.len()
    };
    // Configuration, node, handle; reservations, pools, affinities; then all blocks; then one commit.
    let cold = counted(&store, async |store| asked(store, "cold", 1).await);
    assert_eq!(cold, (1, calls(3, 4, 1, 3)));
    // The own block instead of all blocks.
    let warm = counted(&store, async |store| asked(store, "warm", 1).await);
    assert_eq!(warm, (1, calls(4, 3, 1, 3)));
    let again = counted(&store, async |store| asked(store, "warm", 1).await);
    assert_eq!(again, (1, calls(4, 3, 1, 3)), "the handle is there");
    // Two addresses from two blocks: the rest of the first one, and a new one.
    let more = counted(&store, async |store| asked(store, "more", 2).await);
    assert_eq!(more, (2, calls(4, 4, 2, 5)));
    let full = counted(&store, async |store| asked(store, "many", 3).await);
    assert_eq!(full, (3, calls(5, 3, 1, 3)), "both own blocks are read at once");
    let next = counted(&store, async |store| asked(store, "next", 1).await);
    assert_eq!(next, (1, calls(5, 4, 1, 4)), "full own blocks, then the list");
}

#[test]
fn of_few_own_blocks_the_lowest_with_room_is_used_and_of_many_the_youngest() {
    let store = lab(vec![pool("p", "10.0.0.0/26", 30)]);
    let mut pods: Vec<(String, Cidr)> = Vec::new();
    let add = |pods: &mut Vec<(String, Cidr)>| {
        let handle = format!("h{}", pods.len());
        let block = ask(&store, "a", &handle, 1).taken[0].block;
        pods.push((handle, block));
        block
    };
    let give_back = |pods: &[(String, Cidr)], block: Cidr| {
        let held = pods.iter().rev().find(|(_, of)| *of == block).unwrap();
        block_on(release_by_handle(&store, &CLOCK, &held.0)).unwrap();
    };
    let bounds = |pods: &[(String, Cidr)]| {
        let own: BTreeSet<Cidr> = pods.iter().map(|(_, block)| *block).collect();
        (*own.first().unwrap(), *own.last().unwrap(), own.len())
    };
    for _ in 0..12 {
        add(&mut pods);
    }
    let (lowest, highest, count) = bounds(&pods);
    assert_eq!(count, 3);
    give_back(&pods, highest);
    give_back(&pods, lowest);
    assert_eq!([add(&mut pods), add(&mut pods)], [lowest, highest]);
    let youngest = (0..12).map(|_| add(&mut pods)).last().unwrap();
    let (lowest, highest, count) = bounds(&pods);
    assert_eq!(count, 6);
    let other = if youngest == lowest { highest } else { lowest };
    give_back(&pods, other);
    give_back(&pods, youngest);
    assert_eq!([add(&mut pods), add(&mut pods)], [youngest, other]);
}

#[test]
fn borrowing_is_three_trips_where_the_node_has_no_block() {
    let store = lab(vec![pool("p", "10.0.0.0/29", 30)]);
    ask(&store, "b", "theirs", 5);
    let borrowed = counted(&store, async |store| {
        assign(store, &CLOCK, &request("a", "h", 1)).await.unwrap().taken.len()
    });
    assert_eq!(borrowed, (1, calls(3, 4, 1, 3)));
}

#[test]
fn a_release_by_handle_is_three_trips_in_however_many_blocks() {
    let store = v4_lab();
    assert_eq!(ask(&store, "a", "h", 10).taken.len(), 10);
    // Handle and configuration; pools; three blocks; one commit.
    let done = counted(&store, async |store| release_by_handle(store, &CLOCK, "h").await.unwrap());
    assert_eq!(done, (10, calls(5, 1, 1, 3)));
    let nothing = counted(&store, async |store| release_by_handle(store, &CLOCK, "h").await.unwrap());
    assert_eq!(nothing, (0, calls(2, 1, 0, 1)));
    assert_eq!(in_use(&store), 0);
    assert!(block_on(seen::handle(&store, "h")).unwrap().is_none());
}

#[test]
fn a_release_whose_blocks_are_known_is_two_trips_and_a_wrong_guess_releases_nothing_else() {
    let store = v4_lab();
    let taken = ask(&store, "a", "h", 10).taken;
    let right: BTreeSet<Cidr> = taken.iter().map(|taken| taken.block).collect();
    let right: Vec<Cidr> = right.into_iter().collect();
    let other = ask(&store, "b", "other", 1).taken[0].block;
    // One of the three blocks is not guessed, one that is guessed is another's, and one does not exist.
    let wrong = [right[0], right[1], other, "10.9.9.0/30".parse().unwrap()];
    let release = async |store: &_, blocks: &[Cidr]| release_by_handle_in(store, &CLOCK, "h", blocks).await;
    let (done, spent) = counted(&store, async |store| release(store, &wrong).await.unwrap());
    assert_eq!((done.addresses, spent), (10, calls(7, 1, 1, 3)));
    assert_eq!((done.account.blocks.total(), done.account.odd.total()), (3, 0), "{}", done.account);
    assert_eq!(in_use(&store), 1);
    let right = [ask(&store, "a", "h", 1).taken[0].block];
    let (done, spent) = counted(&store, async |store| release(store, &right).await.unwrap());
    assert_eq!((done.addresses, spent), (1, calls(3, 1, 1, 2)));
    let line = format!("release of handle h: block {} gave back 1 address", right[0]);
    assert_eq!(done.account.to_string(), line);
    assert_eq!(in_use(&store), 1);
}

#[test]
fn whether_an_emptied_block_stays_with_its_node_is_looked_up_during_the_commit() {
    let mut choosy = pool("p", "10.0.0.0/28", 30);
    choosy.node_selector = "!has(old)".to_owned();
    let store = lab(vec![choosy]);
    ask(&store, "a", "h", 1);
    ask(&store, "a", "i", 1);
    let kept = counted(&store, async |store| release_by_handle(store, &CLOCK, "h").await.unwrap());
    assert_eq!(kept, (1, calls(3, 1, 1, 3)));
    let kept = counted(&store, async |store| release_by_handle(store, &CLOCK, "i").await.unwrap());
    assert_eq!(kept, (1, calls(4, 1, 1, 3)), "the block is empty, and the pool still for the node");
    assert_eq!(block_on(seen::blocks(&store)).unwrap().len(), 1);
    ask(&store, "a", "h", 1);
    let node: Seen<Node> = block_on(seen::get(&store, &Key::Node("a".to_owned()))).unwrap().unwrap();
    let mut relabelled = node.value;
    relabelled.labels.insert("old".to_owned(), "yes".to_owned());
    block_on(store.commit(&[], &[Write::Update(Record::Node(relabelled), node.version)])).unwrap();
    assert_eq!(block_on(release_by_handle(&store, &CLOCK, "h")).unwrap(), 1);
    assert!(block_on(seen::blocks(&store)).unwrap().is_empty(), "the pool is no longer for the node");
}

#[test]
fn named_addresses_are_released_in_three_trips() {
    let store = v4_lab();
    let taken = ask(&store, "a", "h", 2).taken;
    let named = |index: usize, handle: Option<&str>| Release {
        address: taken[index].address,
        handle: handle.map(str::to_owned),
        sequence: Some(taken[index].sequence),
    };
    let release = async |store: &Counting, release: Release| {
        release_addresses(store, &CLOCK, &[release]).await.unwrap().released
    };
    let one = counted(&store, async |store| release(store, named(0, Some("h"))).await);
    assert_eq!(one, (vec![taken[0].address], calls(3, 1, 1, 3)));
    let other = counted(&store, async |store| release(store, named(1, None)).await);
    assert_eq!(other, (vec![taken[1].address], calls(3, 1, 1, 4)), "whose it is, is read from the block");
}

#[test]
fn one_particular_address_is_three_trips_and_one_more_with_its_block() {
    let store = v4_lab();
    let wanted = |address: &str, handle: &str| {
        AddressRequest::new(Owner::host("a"), address.parse().unwrap(), Some(handle))
    };
    let asked = async |store: &Counting, address, handle| {
        assign_address(store, &CLOCK, &wanted(address, handle)).await.unwrap().answer().remove(0)
    };
    let cold = counted(&store, async |store| asked(store, "10.0.0.5", "h").await);
    assert_eq!(cold, ("10.0.0.5/30".to_owned(), calls(3, 2, 1, 4)));
    let warm = counted(&store, async |store| asked(store, "10.0.0.6", "i").await);
    assert_eq!(warm, ("10.0.0.6/30".to_owned(), calls(3, 1, 1, 3)));
    let again = counted(&store, async |store| asked(store, "10.0.0.6", "i").await);
    assert_eq!(again, ("10.0.0.6/30".to_owned(), calls(3, 1, 1, 3)), "its own already, which is renewed");
}

#[test]
fn a_block_left_half_claimed_is_mended_and_used() {
    for (state, with_block) in [
        (AffinityState::Pending, false),
        (AffinityState::Pending, true),
        (AffinityState::PendingDeletion, true),
        (AffinityState::Confirmed, false),
    ] {
        let store = v4_lab();
        let (owner, cidr): (Owner, Cidr) = (Owner::host("a"), "10.0.0.8/30".parse().unwrap());
        put(&store, Record::Affinity(Affinity { owner: owner.clone(), cidr, state, deleted: false }));
        if with_block {
            put(&store, Record::Block(block::new_block(cidr, &owner, CLOCK.0)));
        }
        let (assigned, calls) =
            counted(&store, async |store| assign(store, &CLOCK, &request("a", "h", 1)).await.unwrap());
        assert_eq!(addresses(&assigned), ["10.0.0.8"], "{state:?} {with_block}");
        // A block whose claim nobody finished is confirmed only after a look at all blocks and another at the pool.
        let trips = if with_block { 7 } else { 6 };
        let bound = Calls { gets: 8, lists: 4, commits: 2, trips };
        assert!(calls.are_within(bound), "{state:?} {with_block}: {calls:?}");
        let affinity = block_on(seen::affinity(&store, &owner, cidr)).unwrap().unwrap();
        assert_eq!(affinity.value.state, AffinityState::Confirmed);
    }
}

#[test]
fn an_affinity_of_another_block_size_makes_no_block_across_others() {
    let store = v4_lab();
    let owner = Owner::host("a");
    for cidr in ["10.0.0.0/29", "10.0.0.4/31"] {
        let affinity = Affinity {
            owner: owner.clone(),
            cidr: cidr.parse().unwrap(),
            state: AffinityState::Pending,
            deleted: false,
        };
        put(&store, Record::Affinity(affinity));
    }
    ask(&store, "b", "theirs", 1);
    assert_eq!(ask(&store, "a", "h", 4).taken.len(), 4);
    let blocks = block_on(seen::blocks(&store)).unwrap();
    assert!(blocks.iter().all(|seen| seen.value.cidr.prefix() == 30));
    let left: Vec<Seen<Affinity>> = block_on(seen::list(&store, &Scope::AffinitiesOf(owner))).unwrap();
    assert!(left.iter().all(|seen| seen.value.cidr.prefix() == 30), "{left:?}");
}

#[test]
fn a_capped_handle_is_answered_with_what_it_holds() {
    let store = v4_lab();
    let capped = |count| AssignRequest { max_per_handle: 1, ..request("a", "vm", count) };
    let first = block_on(assign(&store, &CLOCK, &capped(1))).unwrap();
    let (second, calls_made) =
        counted(&store, async |store| assign(store, &CLOCK, &capped(1)).await.unwrap());
    assert_eq!(second.taken, []);
    assert_eq!(second.answer(), [format!("{}/32", first.taken[0].address)]);
    assert!(second.is_enough());
    assert_eq!(calls_made, calls(4, 3, 1, 3));
    let (too_many, calls_made) =
        counted(&store, async |store| assign(store, &CLOCK, &capped(2)).await.unwrap());
    assert_eq!(too_many.explain.shortage, Some(Shortage::HandleLimit { limit: 1, held: 1 }));
    assert!(!too_many.is_enough());
    assert_eq!(calls_made.commits, 0);
    assert_eq!(held(&store, "vm"), 1);
}

#[test]
fn two_at_once_for_one_capped_handle_get_the_same_address() {
    for ordered in [false, true] {
        let store = v4_lab();
        ask(&store, "b", "theirs", 1);
        let asked = ["a", "b", "a", "b"].map(|node| {
            let slow = Gated { store: store.clone(), ordered, gate: InTurn };
            async move {
                let request = AssignRequest { max_per_handle: 1, ..request(node, "vm", 1) };
                assign(&slow, &CLOCK, &request).await.unwrap()
            }
        });
        let answers = block_on(join_all(asked));
        let distinct: BTreeSet<IpAddr> = answers
            .iter()
            .flat_map(|assigned| {
                let taken = assigned.taken.iter().map(|taken| taken.address);
                taken.chain(assigned.held.iter().map(|cidr| cidr.network()))
            })
            .collect();
        assert_eq!(distinct.len(), 1, "ordered: {ordered}");
        assert!(answers.iter().all(Assigned::is_enough));
        assert_eq!(held(&store, "vm"), 1);
    }
}

#[test]
fn a_capped_handle_gets_no_second_address_by_name() {
    let store = v4_lab();
    let wanted = |address: &str, handle: &str| AddressRequest {
        max_per_handle: 1,
        ..AddressRequest::new(Owner::host("a"), address.parse().unwrap(), Some(handle))
    };
    let asked = |address, handle| block_on(assign_address(&store, &CLOCK, &wanted(address, handle)));
    assert!(asked("10.0.0.5", "vm").is_ok());
    assert!(asked("10.0.0.5", "vm").is_ok(), "its own");
    for other in ["10.0.0.6", "10.0.0.9"] {
        let refused = asked(other, "vm").unwrap_err();
        assert!(matches!(refused.error, AssignAddressError::AtCap(_)), "{refused:?}");
    }
    assert!(asked("10.0.0.6", "other").is_ok());
    assert_eq!(held(&store, "vm"), 1);
}

#[test]
fn a_windows_node_keeps_ordinals_of_its_blocks_and_borrows_none() {
    let store = lab(vec![pool("small", "10.1.0.0/28", 30), pool("wide", "10.0.0.0/24", 26)]);
    let windows =
        |count| AssignRequest { host_reserved: Some(HostReserved::windows()), ..request("a", "h", count) };
    let refused = block_on(assign(&store, &CLOCK, &windows(1))).unwrap_err();
    assert_eq!(refused.error, AssignError::StrictAffinityRequired { node: "a".to_owned() });
    configure(&store, IpamConfig { strict_affinity: true, ..IpamConfig::default() });
    let assigned = block_on(assign(&store, &CLOCK, &windows(300))).unwrap();
    // Sixty of each sixty-four; the blocks of the other pool are too small (quirk Q5).
    assert_eq!(assigned.taken.len(), 240);
    let wide: Cidr = "10.0.0.0/24".parse().unwrap();
    assert!(assigned.taken.iter().all(|taken| wide.contains(taken.address) && taken.ordinal.0 >= 3));
    assert!(matches!(assigned.explain.shortage, Some(Shortage::StrictAffinity { .. })));
    let verdict = serde_json::to_value(&assigned.explain).unwrap();
    assert_eq!(verdict["pools"]["listed"][0]["verdict"], "blocksTooSmall");
    assert_eq!(block_on(release_by_handle(&store, &CLOCK, "h")).unwrap(), 240);
    let blocks = block_on(seen::blocks(&store)).unwrap();
    assert!(blocks.iter().all(|seen| block::is_empty(&seen.value)));
}

#[test]
fn pools_asked_for_are_used_in_their_order_and_one_bad_one_fails_the_request() {
    let mut manual = pool("manual", "10.9.0.0/29", 30);
    manual.assignment_mode = AssignmentMode::Manual;
    manual.node_selector = "has(nothing)".to_owned();
    let mut balancers = pool("balancers", "10.8.0.0/29", 30);
    balancers.allowed_uses = vec![Use::LoadBalancer];
    let store = lab(vec![pool("any", "10.0.0.0/28", 30), manual, balancers]);
    let asked = |pools: &[&str]| {
        let pools = pools.iter().map(|pool| pool.parse().unwrap()).collect();
        block_on(assign(&store, &CLOCK, &AssignRequest { pools, ..request("a", "h", 10) }))
    };
    let assigned = asked(&["10.9.0.0/29", "10.0.0.0/28"]).unwrap();
    let first: Cidr = "10.9.0.0/29".parse().unwrap();
    assert!(assigned.taken[..8].iter().all(|taken| first.contains(taken.address)));
    assert!(assigned.taken[8..].iter().all(|taken| !first.contains(taken.address)));
    assert!(asked(&["10.0.0.0/28", "10.7.0.0/29"]).is_err());
    let wrong_use = asked(&["10.8.0.0/29"]).unwrap_err();
    let told = serde_json::to_value(&wrong_use.explain).unwrap();
    assert_eq!(told["pools"]["listed"][0]["verdict"], "otherUse", "{told}");
}

#[test]
fn a_virtual_owner_needs_no_node_and_stays_in_its_pools() {
    let mut balancers = pool("balancers", "10.8.0.0/29", 30);
    balancers.allowed_uses = vec![Use::LoadBalancer];
    let store = lab(vec![pool("any", "10.0.0.0/28", 30), balancers]);
    let want = Want { count: 1, handle: Some("service".to_owned()), attributes: BTreeMap::new() };
    let owner = Owner::virtual_named("load-balancer");
    let request = AssignRequest::new(owner.clone(), IpVersion::V4, Use::LoadBalancer, want);
    let (assigned, made) = counted(&store, async |store| assign(store, &CLOCK, &request).await.unwrap());
    assert!(assigned.taken[0].address.to_string().starts_with("10.8.0."));
    assert_eq!(made, calls(2, 4, 1, 3));
    let affinities: Vec<Seen<Affinity>> = block_on(seen::list(&store, &Scope::AffinitiesOf(owner))).unwrap();
    assert_eq!(affinities.len(), 1);
}

#[test]
fn an_empty_block_of_a_pool_that_is_no_longer_for_the_node_is_given_up() {
    let mut other = pool("other", "10.9.0.0/28", 30);
    let store = lab(vec![pool("p", "10.0.0.0/28", 30), other.clone()]);
    let pools = vec!["10.9.0.0/28".parse().unwrap()];
    let asked = AssignRequest { pools, ..request("a", "h", 5) };
    block_on(assign(&store, &CLOCK, &asked)).unwrap();
    let freed = block_on(addresses_of(&store, "h", None)).unwrap();
    // All but the last are released: one block is empty, the other is in use.
    let releases: Vec<Release> = freed[..4]
        .iter()
        .map(|address| Release { address: *address, handle: None, sequence: None })
        .collect();
    block_on(release_addresses(&store, &CLOCK, &releases)).unwrap();
    other.node_selector = "has(nothing)".to_owned();
    let version = block_on(seen::pools(&store))
        .unwrap()
        .into_iter()
        .find(|seen| seen.value.name == "other")
        .unwrap()
        .version;
    block_on(store.commit(&[], &[Write::Update(Record::Pool(other), version)])).unwrap();
    ask(&store, "a", "i", 1);
    let left: Vec<String> =
        block_on(seen::blocks(&store)).unwrap().iter().map(|seen| seen.value.cidr.to_string()).collect();
    assert_eq!(left.iter().filter(|cidr| cidr.starts_with("10.9.")).count(), 1, "{left:?}");
}

#[test]
fn what_would_come_free_is_in_the_account() {
    let store = lab(vec![pool("p", "10.0.0.0/29", 30)]);
    configure(&store, IpamConfig { strict_affinity: true, ip_cooldown_seconds: 30, ..IpamConfig::default() });
    put(
        &store,
        Record::Reservation(Reservation {
            name: "r".to_owned(),
            cidrs: vec!["10.0.0.0/32".parse().unwrap()],
        }),
    );
    ask(&store, "b", "theirs", 1);
    let mine = ask(&store, "a", "mine", 8);
    assert!(mine.taken.len() >= 3);
    block_on(release_by_handle(&store, &CLOCK, "mine")).unwrap();
    let nothing = ask(&store, "a", "h", 1);
    assert!(nothing.taken.is_empty());
    let relief = nothing.explain.relief;
    assert_eq!(relief.cooling, u64::try_from(mine.taken.len()).unwrap());
    assert_eq!((relief.reserved, relief.elsewhere > 0), (1, true));
    assert!(nothing.explain.to_string().contains("are cooling down"), "{}", nothing.explain);
    let later = FixedClock(CLOCK.0 + SignedDuration::from_secs(31));
    assert_eq!(block_on(assign(&store, &later, &request("a", "h", 1))).unwrap().taken.len(), 1);
}

fn v6(handle: &str, count: usize) -> AssignRequest {
    AssignRequest { version: IpVersion::V6, ..request("a", handle, count) }
}

#[test]
fn both_families_come_together_in_five_trips() {
    let store = lab(vec![pool("four", "10.0.0.0/28", 30), pool("six", "fd00::/122", 126)]);
    let both = async |store: &Counting, handle: &str| {
        let done = assign_both(store, &CLOCK, &request("a", handle, 1), &v6(handle, 1)).await.unwrap();
        (done.first.taken.len(), done.second.taken.len())
    };
    let cold = counted(&store, async |store| both(store, "cold").await);
    assert_eq!(cold, ((1, 1), calls(3, 5, 2, 5)));
    let warm = counted(&store, async |store| both(store, "warm").await);
    assert_eq!(warm, ((1, 1), calls(5, 3, 2, 5)));
    assert_eq!(block_on(release_by_handle(&store, &CLOCK, "warm")).unwrap(), 2);
    assert_eq!(held(&store, "cold"), 2);
}

#[test]
fn where_one_family_comes_short_nothing_of_the_other_stays() {
    let store = lab(vec![pool("four", "10.0.0.0/28", 30), pool("six", "fd00::/126", 126)]);
    let six = AssignRequest { owner: Owner::host("b"), ..v6("theirs", 4) };
    block_on(assign(&store, &CLOCK, &six)).unwrap();
    for (first, second, short) in [
        (request("a", "h", 2), v6("h", 1), IpVersion::V6),
        (v6("h", 1), request("a", "h", 2), IpVersion::V6),
        (request("a", "h", 99), v6("h", 1), IpVersion::V4),
    ] {
        let refused = block_on(assign_both(&store, &CLOCK, &first, &second)).unwrap_err();
        assert!(matches!(refused.error, BothError::Short { version, .. } if version == short), "{refused:?}");
        assert!(refused.first.shortage.is_some() || refused.second.shortage.is_some());
        assert_eq!(in_use(&store), 4);
        assert!(block_on(seen::handle(&store, "h")).unwrap().is_none());
    }
    let none = lab(vec![pool("four", "10.0.0.0/28", 30)]);
    let refused = block_on(assign_both(&none, &CLOCK, &request("a", "h", 2), &v6("h", 1))).unwrap_err();
    assert!(matches!(refused.error, BothError::Failed { version: IpVersion::V6, .. }), "{refused:?}");
    assert_eq!(in_use(&none), 0);
}

#[test]
fn what_a_handle_held_before_stays_when_both_families_are_refused() {
    let store = lab(vec![pool("four", "10.0.0.0/28", 30), pool("six", "fd00::/126", 126)]);
    let six = AssignRequest { owner: Owner::host("b"), ..v6("theirs", 4) };
    block_on(assign(&store, &CLOCK, &six)).unwrap();
    ask(&store, "a", "vm", 1);
    let first = AssignRequest { max_per_handle: 1, ..request("a", "vm", 1) };
    assert!(block_on(assign_both(&store, &CLOCK, &first, &v6("vm", 1))).is_err());
    assert_eq!(held(&store, "vm"), 1);
    assert!(block_on(assign_both(&store, &CLOCK, &request("a", "vm", 2), &v6("vm", 1))).is_err());
    assert_eq!(held(&store, "vm"), 1);
}

#[test]
fn both_families_or_none_whatever_answer_is_lost() {
    for (six_blocks, commits) in [("fd00::/122", 2), ("fd00::/126", 3)] {
        for (number, lost) in support::losses(commits) {
            let store = lab(vec![pool("four", "10.0.0.0/28", 30), pool("six", six_blocks, 126)]);
            if commits == 3 {
                let six = AssignRequest { owner: Owner::host("b"), ..v6("theirs", 4) };
                block_on(assign(&store, &CLOCK, &six)).unwrap();
            }
            let losing = Counting::losing(store.clone(), number, lost);
            let done = block_on(assign_both(&losing, &CLOCK, &request("a", "h", 1), &v6("h", 1)));
            assert_eq!(done.is_ok(), commits == 2, "{number} {lost:?}");
            assert_eq!(held(&store, "h"), if done.is_ok() { 2 } else { 0 }, "{number} {lost:?}");
        }
    }
}

#[test]
fn no_record_of_a_kind_is_left_behind_by_a_request_that_found_nothing() {
    let store = lab(vec![pool("p", "10.0.0.0/30", 30)]);
    configure(&store, IpamConfig { strict_affinity: true, ..IpamConfig::default() });
    ask(&store, "b", "theirs", 1);
    assert!(ask(&store, "a", "h", 1).taken.is_empty());
    for (kind, left) in [(Kind::Handle, 1), (Kind::Affinity, 1), (Kind::Block, 1)] {
        assert_eq!(block_on(store.list(&Scope::All(kind))).unwrap().items.len(), left, "{kind}");
    }
}

#[test]
fn what_was_taken_is_told_when_the_pools_go_meanwhile() {
    let store = v4_lab();
    let counting = Counting::new(store.clone());
    let wanted = request("a", "h", 6);
    let mut assigning = std::pin::pin!(assign(&counting, &CLOCK, &wanted));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut goes = true;
    let assigned = loop {
        if let std::task::Poll::Ready(done) = assigning.as_mut().poll(&mut context) {
            break done.unwrap();
        }
        // It has taken a block of four and is about to claim another.
        if counting.calls().commits == 2 && std::mem::take(&mut goes) {
            let found = block_on(store.get(&Key::Pool("p".to_owned()))).unwrap().unwrap();
            let disabled = Pool { disabled: true, ..pool("p", "10.0.0.0/28", 30) };
            block_on(store.commit(&[], &[Write::Update(Record::Pool(disabled), found.version)])).unwrap();
        }
    };
    assert!(!assigned.is_enough());
    assert_eq!((addresses(&assigned).len(), held(&store, "h")), (4, 4));
}

#[test]
fn a_particular_address_does_not_wait_for_a_claim_that_another_node_began() {
    let store = Memory::new().with_naming(AffinityNaming::PerBlock).with_clock(|| Timestamp::UNIX_EPOCH);
    put(&store, Record::Pool(pool("p", "10.0.0.0/28", 30)));
    let (owner, state) = (Owner::host("b"), AffinityState::Pending);
    put(
        &store,
        Record::Affinity(Affinity { owner, cidr: "10.0.0.0/30".parse().unwrap(), state, deleted: false }),
    );
    let wanted = AddressRequest::new(Owner::host("a"), "10.0.0.1".parse().unwrap(), Some("h"));
    let (refused, calls) =
        counted(&store, async |store| assign_address(store, &CLOCK, &wanted).await.unwrap_err());
    assert!(matches!(refused.error, AssignAddressError::Store(_)), "{refused:?}");
    assert!(calls.gets + calls.lists + calls.commits <= 40, "{calls:?}");
    assert_eq!(held(&store, "h"), 0);
}

fn machine(handle: &str) -> AssignRequest {
    AssignRequest { max_per_handle: 1, ..request("a", handle, 1) }
}

/// A store in which node `a` has a block, and a handle counts an address of it that its ADD died before it wrote.
fn with_a_count_ahead() -> Memory {
    let store = v4_lab();
    ask(&store, "a", "other", 1);
    let cidr = block_on(seen::blocks(&store)).unwrap()[0].value.cidr;
    let blocks = BTreeMap::from([(cidr, 1)]);
    put(&store, Record::Handle(api::Handle { id: "vm".to_owned(), blocks, deleted: false }));
    store
}

#[test]
fn a_count_that_a_crash_left_keeps_a_handle_at_its_cap_for_three_looks_and_no_longer() {
    let store = with_a_count_ahead();
    let (answer, calls) = counted(&store, async |store| assign(store, &CLOCK, &machine("vm")).await.unwrap());
    assert_eq!((answer.taken.len(), answer.held.len(), held(&store, "vm")), (1, 0, 1));
    // Handle and own block; the handle twice and its block thrice more; what lowers it, and what takes.
    assert!(calls.are_within(Calls { gets: 10, lists: 3, commits: 2, trips: 10 }), "{calls:?}");
    let again = ask_machine(&store);
    assert_eq!((again.taken.len(), again.held.len()), (0, 1), "what it holds now is the answer");

    let store = with_a_count_ahead();
    let address = "10.0.0.14".parse().unwrap();
    let exact = AddressRequest::new(Owner::host("a"), address, Some("vm"));
    let exact = AddressRequest { max_per_handle: 1, ..exact };
    let (answer, calls) = counted(&store, async |store| assign_address(store, &CLOCK, &exact).await.unwrap());
    assert_eq!((answer.taken[0].address, held(&store, "vm")), (address, 1));
    assert!(calls.are_within(Calls { gets: 20, lists: 8, commits: 4, trips: 20 }), "{calls:?}");
}

fn ask_machine(store: &Memory) -> Assigned {
    block_on(assign(store, &CLOCK, &machine("vm"))).unwrap()
}

#[test]
fn a_handle_that_counts_what_nobody_can_look_at_is_refused_after_three_looks() {
    let store = v4_lab();
    ask(&store, "a", "other", 1);
    let blocks = BTreeMap::from([("10.0.1.0/30".parse().unwrap(), 1)]);
    put(&store, Record::Handle(api::Handle { id: "vm".to_owned(), blocks, deleted: false }));
    let (answer, calls) = counted(&store, async |store| assign(store, &CLOCK, &machine("vm")).await.unwrap());
    assert!(matches!(answer.explain.shortage, Some(Shortage::HandleLimit { limit: 1, held: 0 })));
    assert!(calls.are_within(Calls { gets: 10, lists: 3, commits: 0, trips: 8 }), "{calls:?}");
}

/// An ADD that is slow between its handle and its block, on a store without transactions, meets one that takes its count for
/// what a crash left: whichever is first, the handle holds one address and both are told that one.
#[test]
fn a_machine_that_is_asked_for_twice_at_once_gets_one_address() {
    for pause in 0..40 {
        let store = v4_lab();
        ask(&store, "a", "other", 1);
        let gated = Gated { store: store.clone(), ordered: true, gate: InTurn };
        let asked = machine("vm");
        let mut slow = Box::pin(assign(&gated, &CLOCK, &asked));
        let (first, second) = block_on(async {
            for _ in 0..pause {
                if let std::task::Poll::Ready(answer) = futures::poll!(slow.as_mut()) {
                    return (answer.unwrap(), assign(&gated, &CLOCK, &asked).await.unwrap());
                }
            }
            let second = assign(&gated, &CLOCK, &asked).await.unwrap();
            (slow.await.unwrap(), second)
        });
        assert_eq!(held(&store, "vm"), 1, "{pause}");
        let told = |answer: &Assigned| -> Vec<IpAddr> {
            let taken = answer.taken.iter().map(|taken| taken.address);
            taken.chain(answer.held.iter().map(|held| held.network())).collect()
        };
        assert_eq!((told(&first).len(), told(&first)), (1, told(&second)), "{pause}");
    }
}
