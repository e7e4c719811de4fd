//! The protocols over the store in memory: assign, borrow, run out, release, and many nodes at once.

mod gated;

use api::{Affinity, AffinityNaming, Cidr, IpVersion, IpamConfig, Node, Owner, Pool, Reservation, Use};
use datastore::memory::Memory;
use datastore::{Datastore, Kind, Record, Scope, Write};
use futures::executor::block_on;
use gated::{Gated, InTurn};
use ipam::assign::{AssignError, AssignRequest, Assigned, assign};
use ipam::assign_address::{AssignAddressError, assign_address};
use ipam::block::{self, Release};
use ipam::clock::FixedClock;
use ipam::explain::Shortage;
use ipam::plan::{AddressRequest, Want};
use ipam::query::{Holder, addresses_of, holder_of, utilization_of};
use ipam::release::{release_addresses, release_by_handle};
use ipam::seen;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);

async fn create(store: &Memory, record: Record) -> Outcome {
    store.commit(&[], &[Write::Create(record)]).await?;
    Ok(())
}

/// A store with a pool cut into blocks of `block_size`, and these nodes.
async fn lab(cidr: &str, block_size: u8, nodes: &[&str]) -> Result<Memory, Box<dyn std::error::Error>> {
    let store = Memory::new().with_naming(AffinityNaming::PerBlock).with_clock(|| Timestamp::UNIX_EPOCH);
    let mut pool = Pool::with_defaults("p", cidr.parse()?);
    pool.block_size = block_size;
    create(&store, Record::Pool(pool)).await?;
    for name in nodes {
        create(&store, Record::Node(Node { name: (*name).to_owned(), ..Node::default() })).await?;
    }
    Ok(store)
}

fn request(node: &str, handle: &str, count: usize) -> AssignRequest {
    let want = Want {
        count,
        handle: Some(handle.to_owned()),
        attributes: BTreeMap::from([("node".to_owned(), node.to_owned())]),
    };
    AssignRequest::new(Owner::host(node), IpVersion::V4, Use::Workload, want)
}

async fn ask(store: &Memory, node: &str, handle: &str, count: usize) -> Result<Assigned, AssignError> {
    assign(store, &CLOCK, &request(node, handle, count)).await.map_err(|failure| failure.error)
}

fn texts(assigned: &Assigned) -> Vec<String> {
    assigned.taken.iter().map(block::Taken::with_block_prefix).collect()
}

/// Invariants 1 to 5 over all that the store holds.
async fn check(store: &Memory) -> Outcome {
    let blocks = seen::blocks(store).await?;
    for (i, one) in blocks.iter().enumerate() {
        assert_eq!(block::fault(&one.value), None);
        for other in &blocks[i + 1..] {
            assert!(!one.value.cidr.overlaps(other.value.cidr));
        }
        for (_, attribute) in block::allocated(&one.value) {
            if let Some(handle) = &attribute.handle_id {
                let held = block::count_of(&one.value, handle);
                let found = seen::handle(store, handle).await?;
                let counted = found.and_then(|found| found.value.blocks.get(&one.value.cidr).copied());
                assert!(
                    counted >= Some(held),
                    "{handle} counts {counted:?} for {held} in {}",
                    one.value.cidr
                );
            }
        }
    }
    let affinities: Vec<seen::Seen<Affinity>> = seen::list(store, &Scope::All(Kind::Affinity)).await?;
    for affinity in affinities {
        let found = seen::block(store, affinity.value.cidr).await?;
        assert_eq!(found.and_then(|found| found.value.affinity), Some(affinity.value.owner));
    }
    Ok(())
}

#[test]
fn the_first_address_of_a_node_is_that_of_its_block() -> Outcome {
    block_on(async {
        let nodes = ["calico-ipam-control-plane", "calico-ipam-worker", "calico-ipam-worker2"];
        let store = lab("192.168.0.0/16", 26, &nodes).await?;
        let mut first = Vec::new();
        for node in nodes {
            first.extend(texts(&ask(&store, node, &format!("vxlan-tunnel-addr-{node}"), 1).await?));
        }
        assert_eq!(first, ["192.168.18.64/26", "192.168.131.128/26", "192.168.112.128/26"]);
        let second = ask(&store, nodes[0], "k8s-pod-network.1", 1).await?;
        assert_eq!(texts(&second), ["192.168.18.65/26"]);
        let (counted, _) = utilization_of(&store).await?;
        assert_eq!((counted.pools[0].count.in_use, counted.pools[0].count.free), (4, 65532));
        check(&store).await
    })
}

#[test]
fn a_full_block_is_followed_by_a_second_and_then_by_those_of_others() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/28", 30, &["a", "b"]).await?;
        assert_eq!(ask(&store, "b", "b1", 1).await?.taken.len(), 1);
        let many = ask(&store, "a", "a1", 14).await?;
        assert_eq!(many.taken.len(), 14);
        assert_eq!(many.explain.shortage, None);
        let own: BTreeSet<Cidr> = many.taken.iter().map(|taken| taken.block).collect();
        assert_eq!(own.len(), 4, "three own blocks and the one of b");
        check(&store).await
    })
}

#[test]
fn a_full_pool_is_named_with_what_would_free_addresses() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/29", 30, &["a"]).await?;
        assert_eq!(ask(&store, "a", "h", 8).await?.taken.len(), 8);
        let nothing = ask(&store, "a", "i", 1).await?;
        assert!(nothing.taken.is_empty());
        assert_eq!(
            nothing.explain.to_string(),
            "Assigned 0 out of 1 requested IPv4 addresses on node a: no address is free in pool p 10.0.0.0/29 (2 of 2 \
             blocks exist, 2 of this node); to free addresses delete pods, or release leaked ones (calicoctl ipam check, \
             calicoctl ipam release --ip ADDRESS), or add a pool"
        );
        assert!(seen::handle(&store, "i").await?.is_none());
        check(&store).await
    })
}

#[test]
fn strict_affinity_keeps_a_node_from_the_blocks_of_others() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/29", 30, &["a", "b"]).await?;
        create(&store, Record::Config(IpamConfig { strict_affinity: true, ..IpamConfig::default() })).await?;
        ask(&store, "b", "b1", 1).await?;
        let some = ask(&store, "a", "a1", 5).await?;
        assert_eq!(some.taken.len(), 4);
        assert!(matches!(some.explain.shortage, Some(Shortage::StrictAffinity { .. })));
        Ok(())
    })
}

#[test]
fn a_node_claims_no_more_blocks_than_it_may() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/24", 30, &["a"]).await?;
        let limited = AssignRequest { max_blocks: 2, ..request("a", "h", 12) };
        let some = assign(&store, &CLOCK, &limited).await?;
        assert_eq!(some.taken.len(), 8);
        assert_eq!(some.explain.shortage, Some(Shortage::BlockLimit { limit: 2, owned: 2 }));
        Ok(())
    })
}

#[test]
fn reserved_addresses_are_never_handed_out_automatically() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/29", 30, &["a"]).await?;
        let cidrs = vec!["10.0.0.0/30".parse()?, "10.0.0.5/32".parse()?];
        create(&store, Record::Reservation(Reservation { name: "r".to_owned(), cidrs })).await?;
        let some = ask(&store, "a", "h", 8).await?;
        let taken: BTreeSet<String> = some.taken.iter().map(|taken| taken.address.to_string()).collect();
        assert_eq!(taken, ["10.0.0.4", "10.0.0.6", "10.0.0.7"].map(str::to_owned).into());
        assert!(matches!(some.explain.shortage, Some(Shortage::Reserved { .. })));
        let asked = AddressRequest {
            intended_use: Some(Use::Workload),
            ..AddressRequest::new(Owner::host("a"), "10.0.0.5".parse()?, Some("asked"))
        };
        assert_eq!(assign_address(&store, &CLOCK, &asked).await?.answer(), ["10.0.0.5/30"]);
        assert_eq!(assign_address(&store, &CLOCK, &asked).await?.answer(), ["10.0.0.5/30"]);
        let other = AddressRequest { handle: Some("other".to_owned()), ..asked };
        assert!(assign_address(&store, &CLOCK, &other).await.is_err());
        check(&store).await
    })
}

#[test]
fn an_address_asked_for_brings_its_block_with_it() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/24", 26, &["a"]).await?;
        let asked = AddressRequest::new(Owner::host("a"), "10.0.0.200".parse()?, Some("h"));
        assert_eq!(assign_address(&store, &CLOCK, &asked).await?.answer(), ["10.0.0.200/26"]);
        assert_eq!(addresses_of(&store, "h", None).await?, ["10.0.0.200".parse::<IpAddr>()?]);
        let outside = AddressRequest { address: "10.1.0.1".parse()?, ..asked };
        assert!(assign_address(&store, &CLOCK, &outside).await.is_err());
        check(&store).await
    })
}

#[test]
fn what_a_handle_held_is_free_after_its_release() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/28", 30, &["a"]).await?;
        let held = ask(&store, "a", "h", 6).await?;
        ask(&store, "a", "other", 1).await?;
        assert_eq!(release_by_handle(&store, &CLOCK, "h").await?, 6);
        assert_eq!(release_by_handle(&store, &CLOCK, "h").await?, 0);
        assert!(seen::handle(&store, "h").await?.is_none());
        for taken in held.taken {
            assert_eq!(holder_of(&store, &CLOCK, taken.address).await?, Holder::Nobody);
        }
        let (counted, _) = utilization_of(&store).await?;
        assert_eq!(counted.pools[0].count.in_use, 1);
        check(&store).await
    })
}

#[test]
fn a_release_frees_only_what_it_named() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/28", 30, &["a"]).await?;
        let held = ask(&store, "a", "h", 2).await?;
        let (first, second) = (&held.taken[0], &held.taken[1]);
        let named = |handle: &str, sequence| Release {
            address: first.address,
            handle: Some(handle.to_owned()),
            sequence: Some(sequence),
        };
        for wrong in [named("other", first.sequence), named("h", first.sequence + 1)] {
            let outcome = release_addresses(&store, &CLOCK, &[wrong]).await?;
            assert_eq!(outcome.failed.len(), 1);
        }
        let right = named("h", first.sequence);
        let stranger = Release { address: "192.0.2.1".parse()?, handle: None, sequence: None };
        let outcome = release_addresses(&store, &CLOCK, &[right.clone(), right, stranger]).await?;
        assert_eq!(outcome.released, [first.address]);
        assert_eq!(outcome.not_allocated, ["192.0.2.1".parse::<IpAddr>()?]);
        assert_eq!(addresses_of(&store, "h", Some(IpVersion::V4)).await?, [second.address]);
        check(&store).await
    })
}

#[test]
fn an_address_of_a_pool_made_anew_with_another_block_size_is_released() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/24", 28, &["a"]).await?;
        let held = ask(&store, "a", "h", 1).await?;
        let pool = seen::pools(&store).await?.remove(0);
        store.commit(&[], &[Write::Delete(Record::Pool(pool.value.clone()), pool.version)]).await?;
        create(&store, Record::Pool(Pool { block_size: 26, ..pool.value })).await?;
        let address = held.taken[0].address;
        let named = Release { address, handle: Some("h".to_owned()), sequence: Some(held.taken[0].sequence) };
        assert!(matches!(holder_of(&store, &CLOCK, address).await?, Holder::Allocated { .. }));
        let outcome = release_addresses(&store, &CLOCK, std::slice::from_ref(&named)).await?;
        assert_eq!(outcome.released, [address]);
        let again = release_addresses(&store, &CLOCK, &[named]).await?;
        assert_eq!((again.released, again.not_allocated), (Vec::new(), vec![address]));
        check(&store).await
    })
}

#[test]
fn an_address_asked_for_makes_no_block_across_those_of_another_size() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/26", 26, &["a"]).await?;
        let small = block::new_block("10.0.0.0/28".parse()?, &Owner::host("a"), CLOCK.0);
        create(&store, Record::Block(small)).await?;
        let wanted = |address: &str| -> Result<AddressRequest, std::net::AddrParseError> {
            Ok(AddressRequest::new(Owner::host("a"), address.parse()?, Some("h")))
        };
        let taken = assign_address(&store, &CLOCK, &wanted("10.0.0.5")?).await?;
        assert_eq!(taken.answer(), ["10.0.0.5/28"]);
        let refused = assign_address(&store, &CLOCK, &wanted("10.0.0.40")?).await.unwrap_err().error;
        assert!(matches!(refused, AssignAddressError::Overlap { .. }), "{refused:?}");
        Ok(())
    })
}

#[test]
fn an_address_in_cooldown_is_not_handed_out() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/31", 31, &["a"]).await?;
        create(&store, Record::Config(IpamConfig { ip_cooldown_seconds: 60, ..IpamConfig::default() }))
            .await?;
        let held = ask(&store, "a", "h", 2).await?;
        release_by_handle(&store, &CLOCK, "h").await?;
        assert_eq!(holder_of(&store, &CLOCK, held.taken[0].address).await?, Holder::Cooling);
        assert!(ask(&store, "a", "i", 1).await?.taken.is_empty());
        let later = FixedClock(CLOCK.0 + SignedDuration::from_secs(61));
        assert_eq!(assign(&store, &later, &request("a", "i", 1)).await?.taken.len(), 1);
        check(&store).await
    })
}

#[test]
fn an_empty_block_changes_hands_after_a_minute() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/30", 30, &["a", "b"]).await?;
        create(&store, Record::Config(IpamConfig { strict_affinity: true, ..IpamConfig::default() })).await?;
        ask(&store, "a", "h", 1).await?;
        release_by_handle(&store, &CLOCK, "h").await?;
        assert!(ask(&store, "b", "i", 1).await?.taken.is_empty());
        let later = FixedClock(CLOCK.0 + SignedDuration::from_secs(60));
        assert_eq!(assign(&store, &later, &request("b", "i", 1)).await?.taken.len(), 1);
        check(&store).await
    })
}

#[test]
fn the_last_address_of_a_block_without_owner_takes_the_block_along() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/30", 30, &["a"]).await?;
        ask(&store, "a", "h", 1).await?;
        ipam::administration::release_affinities_in(&store, &CLOCK, "10.0.0.0/30".parse()?).await?;
        assert_eq!(seen::blocks(&store).await?.len(), 1);
        assert_eq!(release_by_handle(&store, &CLOCK, "h").await?, 1);
        assert!(seen::blocks(&store).await?.is_empty());
        assert!(seen::handle(&store, "h").await?.is_none());
        Ok(())
    })
}

#[test]
fn a_block_of_another_size_is_never_overlapped() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/26", 28, &["a"]).await?;
        let stray = block::new_block("10.0.0.16/30".parse()?, &Owner::host("other"), CLOCK.0);
        create(&store, Record::Block(stray)).await?;
        let many = ask(&store, "a", "h", 64).await?;
        // Three blocks of sixteen.
        assert_eq!(many.taken.len(), 48);
        // And the four addresses of the stray one, borrowed, once nobody can be about to take it back.
        let later = FixedClock(CLOCK.0 + SignedDuration::from_secs(60));
        assert_eq!(assign(&store, &later, &request("a", "i", 16)).await?.taken.len(), 4);
        Ok(())
    })
}

#[test]
fn a_node_that_is_not_registered_gets_nothing() -> Outcome {
    block_on(async {
        let store = lab("10.0.0.0/26", 28, &[]).await?;
        let refused = ask(&store, "ghost", "h", 1).await;
        assert_eq!(refused, Err(AssignError::NoSuchNode { node: "ghost".to_owned() }));
        Ok(())
    })
}

/// Thirty-two nodes race for sixteen blocks, interleaved at every datastore call (algorithm §19, R1).
#[test]
fn nodes_that_race_for_too_few_blocks_all_get_an_address() -> Outcome {
    let names: Vec<String> = (0..32).map(|i| format!("node-{i}")).collect();
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    block_on(async {
        let store = lab("10.0.0.0/24", 28, &nodes).await?;
        let asked = names.iter().map(|name| {
            let store = Gated { store: store.clone(), ordered: false, gate: InTurn };
            async move { assign(&store, &CLOCK, &request(name, name, 1)).await }
        });
        let mut addresses = BTreeSet::new();
        for outcome in futures::future::join_all(asked).await {
            addresses.extend(outcome?.taken.into_iter().map(|taken| taken.address));
        }
        assert_eq!(addresses.len(), 32);
        assert_eq!(seen::blocks(&store).await?.len(), 16);
        check(&store).await
    })
}
