//! Each operation, with a fault at each of its datastore calls in turn: the call dies with its client, is lost before
//! or after it took effect, or is made by half where the store has no transactions (invariants 1 to 7).

mod gated;

use api::{AffinityNaming, IpVersion, Node, Owner, Pool, Use};
use datastore::memory::Memory;
use datastore::{Datastore, Kind, Record, Scope, Write};
use futures::executor::block_on;
use gated::{Call, Fate, Gate, Gated, until_answered_or_dead};
use ipam::administration::release_affinities_of;
use ipam::affinity::ReleaseTerms;
use ipam::assign::{AssignRequest, assign};
use ipam::block::{self, Release};
use ipam::clock::FixedClock;
use ipam::plan::Want;
use ipam::query::utilization_of;
use ipam::release::{release_addresses, release_by_handle};
use ipam::seen::{self, Seen};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);

const FAULTS: [Fate; 5] =
    [Fate::DiesBefore, Fate::DiesAfter, Fate::LostBefore, Fate::LostAfter, Fate::Unreachable];

/// A gate at which the call of this number meets a fault.
struct Faulty {
    calls: AtomicUsize,
    at: usize,
    fault: Fate,
}

impl Gate for Faulty {
    async fn pass(&self, _: Call<'_>) -> Fate {
        let now = self.calls.fetch_add(1, Ordering::Relaxed) == self.at;
        if now { self.fault } else { Fate::Pass }
    }
}

fn request(node: &str, handle: &str, count: usize) -> AssignRequest {
    let want = Want { count, handle: Some(handle.to_owned()), attributes: BTreeMap::new() };
    AssignRequest::new(Owner::host(node), IpVersion::V4, Use::Workload, want)
}

/// Two blocks of four addresses, two nodes; node `b` owns one block with one address, `a` what `held` says.
async fn lab(held: usize) -> Result<Memory, Box<dyn std::error::Error>> {
    let store = Memory::new().with_naming(AffinityNaming::PerBlock).with_clock(|| Timestamp::UNIX_EPOCH);
    let mut pool = Pool::with_defaults("p", "10.0.0.0/29".parse()?);
    pool.block_size = 30;
    store.commit(&[], &[Write::Create(Record::Pool(pool))]).await?;
    for name in ["a", "b"] {
        let node = Node { name: name.to_owned(), ..Node::default() };
        store.commit(&[], &[Write::Create(Record::Node(node))]).await?;
    }
    assign(&store, &CLOCK, &request("b", "b", 1)).await?;
    if held > 0 {
        assert_eq!(assign(&store, &CLOCK, &request("a", "held", held)).await?.taken.len(), held);
    }
    Ok(store)
}

/// What must hold at any moment, whoever died: blocks are sound and apart, every held address is known to its handle.
async fn check(store: &Memory) -> Result<(), Box<dyn std::error::Error>> {
    let blocks = seen::blocks(store).await?;
    for (i, one) in blocks.iter().enumerate() {
        assert_eq!(block::fault(&one.value), None);
        assert!(blocks[i + 1..].iter().all(|other| !one.value.cidr.overlaps(other.value.cidr)));
        let handles: BTreeSet<String> =
            block::allocated(&one.value).filter_map(|(_, attribute)| attribute.handle_id.clone()).collect();
        for handle in handles {
            let counted = seen::handle(store, &handle)
                .await?
                .and_then(|found| found.value.blocks.get(&one.value.cidr).copied());
            assert!(counted >= Some(block::count_of(&one.value, &handle)), "{handle} in {}", one.value.cidr);
        }
    }
    let affinities: Vec<Seen<api::Affinity>> = seen::list(store, &Scope::All(Kind::Affinity)).await?;
    for affinity in affinities.into_iter().filter(|seen| seen.value.state == api::AffinityState::Confirmed) {
        let owner = seen::block(store, affinity.value.cidr).await?.and_then(|found| found.value.affinity);
        assert_eq!(owner, Some(affinity.value.owner), "confirmed without being the block's owner");
    }
    Ok(())
}

/// What must come of it in the end: all handles released, every address is free and both nodes get addresses again.
async fn recover(store: &Memory) -> Outcome {
    for handle in ["a", "held", "b"] {
        release_by_handle(store, &CLOCK, handle).await?;
        // A claim that died before it made its block leaves the entry for it to the collector.
        for cidr in
            seen::handle(store, handle).await?.into_iter().flat_map(|left| left.value.blocks.into_keys())
        {
            assert_eq!(seen::block(store, cidr).await?, None, "handle {handle} is left");
        }
    }
    assert_eq!(utilization_of(store).await?.0.pools[0].count.in_use, 0);
    // Time enough for an abandoned claim to be taken over.
    let later = FixedClock(CLOCK.0 + SignedDuration::from_secs(61));
    for node in ["a", "b"] {
        assert_eq!(
            assign(store, &later, &request(node, &format!("{node}-again"), 4)).await?.taken.len(),
            4,
            "{node}"
        );
    }
    check(store).await
}

/// Runs `operation` with each fault at each call until it has fewer calls than that; returns how many calls it makes where
/// commits are atomic, and how many where they are not.
async fn sweep<F, T>(
    held: usize,
    operation: impl Fn(std::sync::Arc<Gated<Faulty>>) -> F,
) -> Result<[usize; 2], Box<dyn std::error::Error>>
where
    F: Future<Output = Result<T, String>>,
{
    let mut most = [0, 0];
    for ordered in [false, true] {
        for fault in FAULTS {
            for at in 0.. {
                let store = lab(held).await?;
                let gate = Faulty { calls: AtomicUsize::new(0), at, fault };
                let faulty = std::sync::Arc::new(Gated { store: store.clone(), ordered, gate });
                let answer = until_answered_or_dead(operation(faulty.clone())).await;
                let calls = faulty.gate.calls.load(Ordering::Relaxed);
                let context = format!("{fault:?} at call {at} of {calls}, ordered: {ordered}");
                check(&store).await.map_err(|error| format!("{context}: {error}"))?;
                if calls <= at {
                    answer.ok_or_else(|| format!("{context}: no answer without a fault"))??;
                    most[usize::from(ordered)] = calls;
                    break;
                }
                recover(&store).await.map_err(|error| format!("{context}: {error}"))?;
            }
        }
    }
    Ok(most)
}

/// Asks for an address; what is answered with success must be in the store.
async fn ask(store: &Gated<Faulty>, node: &str, count: usize) -> Result<(), String> {
    let assigned =
        assign(store, &CLOCK, &request(node, "a", count)).await.map_err(|error| error.to_string())?;
    for taken in &assigned.taken {
        let block = seen::block(&store.store, taken.block).await.map_err(|error| error.to_string())?;
        let held =
            block.is_some_and(|seen| ipam::affinity::holds(&seen.value, &[vec![taken.clone()]], Some("a")));
        if !held {
            return Err(format!("{} was answered and is not held", taken.address));
        }
    }
    Ok(())
}

#[test]
fn claiming_a_block_survives_a_fault_at_every_call() -> Outcome {
    block_on(async {
        let calls = sweep(0, |store| async move { ask(&store, "a", 1).await }).await?;
        // Configuration, reservations, node, pools, affinities, handle; blocks; affinity, handle, block, pool, affinity.
        assert_eq!(calls, [8, 12]);
        Ok(())
    })
}

#[test]
fn taking_from_the_own_block_survives_a_fault_at_every_call() -> Outcome {
    block_on(async {
        let calls = sweep(1, |store| async move { ask(&store, "a", 1).await }).await?;
        // Configuration, reservations, node, pools, affinities, handle; block; handle and block.
        assert_eq!(calls, [8, 9]);
        Ok(())
    })
}

#[test]
fn borrowing_survives_a_fault_at_every_call() -> Outcome {
    block_on(async {
        let calls = sweep(4, |store| async move { ask(&store, "a", 1).await }).await?;
        // Own block, blocks; handle and block of the other node.
        assert_eq!(calls, [9, 10]);
        Ok(())
    })
}

#[test]
fn releasing_by_handle_survives_a_fault_at_every_call() -> Outcome {
    block_on(async {
        let calls = sweep(2, |store| async move {
            release_by_handle(&*store, &CLOCK, "held").await.map_err(|error| error.to_string())
        })
        .await?;
        // Handle, configuration, pools; block; block and handle.
        assert_eq!(calls, [5, 6]);
        Ok(())
    })
}

#[test]
fn releasing_addresses_survives_a_fault_at_every_call() -> Outcome {
    block_on(async {
        let calls = sweep(2, |store| async move {
            let held = ipam::query::addresses_of(&store.store, "held", None)
                .await
                .map_err(|error| error.to_string())?;
            let release = Release { address: held[0], handle: Some("held".to_owned()), sequence: None };
            let outcome =
                release_addresses(&*store, &CLOCK, &[release]).await.map_err(|error| error.to_string())?;
            if outcome.failed.is_empty() {
                // Success means that it is free, and that it was this call that freed it.
                assert_eq!(outcome.released, [held[0]]);
                let left = ipam::query::addresses_of(&store.store, "held", None).await;
                assert_eq!(left.map_err(|error| error.to_string())?, held[1..]);
            }
            Ok(())
        })
        .await?;
        // Pools, configuration, block, handle; commit.
        assert_eq!(calls, [5, 6]);
        Ok(())
    })
}

#[test]
fn giving_blocks_up_survives_a_fault_at_every_call() -> Outcome {
    block_on(async {
        for held in [0, 1] {
            let calls = sweep(held, |store| async move {
                let owner = Owner::host(if held == 0 { "b" } else { "a" });
                release_affinities_of(&*store, &CLOCK, &owner, ReleaseTerms::default())
                    .await
                    .map_err(|error| error.to_string())
            })
            .await?;
            // Affinities; affinity, configuration, block; pending deletion; block and affinity.
            assert_eq!(calls, [6, 7]);
        }
        Ok(())
    })
}
