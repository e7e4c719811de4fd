//! Small worlds run in every order: two nodes, one or two blocks of four addresses, two or three operations at once, at
//! most two crashes, over a store with atomic commits and over one without.
//!
//! Numbers of executions are lower bounds: a world in which nothing meets would prove nothing.

#![expect(clippy::unwrap_used, reason = "a test may")]

use api::{AffinityState, Block, IpVersion, Owner, Use};
use datastore::{Check, Datastore as _, Key, Record, Write};
use ipam::assign::{AssignRequest, assign};
use ipam::block;
use ipam::clock::FixedClock;
use ipam::mistake::Mistake;
use ipam::plan::Want;
use ipam::seen;
use jiff::Timestamp;
use sim::db::StoreKind;
use sim::exhaustive::actors::Ended;
use sim::exhaustive::actors::Operation::{self, Assign, Collect, GiveUp, Join, Other, Release};
use sim::exhaustive::search::Reach;
use sim::exhaustive::stage::{
    MACHINE, ONE, TWO, affinity, block, cidr, cluster, handle, left, owned, take, world,
};
use sim::exhaustive::{Explored, SmallWorld};
use sim::port::SimStore;
use std::collections::BTreeSet;

/// Runs a world with crashes, and says what was broken in which order.
fn holds(world: SmallWorld, crashes: usize, executions: usize) {
    let names: Vec<String> = world.operations.iter().map(ToString::to_string).collect();
    let name = format!("{:?}: {}, {crashes} crashes", world.store, names.join(" beside "));
    let found = SmallWorld { crashes, ..world }.explore(Reach::Classes);
    assert_eq!(found.broken.map(|account| account.join("\n")), None, "{name}");
    let ran = found.count.executions;
    assert!(ran >= executions, "{name}: only {ran} executions, {} ends", found.ends.len());
}

/// Runs a world over an atomic store and over one without transactions; `executions` are the least of each.
fn holds_everywhere(
    records: &[Record],
    promised: &[&'static str],
    operations: &[Operation],
    crashes: usize,
    executions: [usize; 2],
) {
    for (store, executions) in [StoreKind::Etcd, StoreKind::Kubernetes].into_iter().zip(executions) {
        holds(world(store, records.to_vec(), promised, operations), crashes, executions);
    }
}

#[test]
fn two_nodes_claim_blocks() {
    let operations = [Assign("a", "x"), Assign("b", "y")];
    holds_everywhere(&cluster(ONE), &[], &operations, 2, [15, 40]);
    holds_everywhere(&cluster(TWO), &[], &operations, 2, [10, 25]);
}

#[test]
fn two_plugins_of_one_node_claim_a_block() {
    let operations = [Assign("a", "x"), Assign("a", "y")];
    holds_everywhere(&cluster(ONE), &[], &operations, 0, [5, 10]);
    holds_everywhere(&cluster(TWO), &[], &operations, 0, [5, 10]);
}

#[test]
fn three_plugins_claim_two_blocks() {
    let operations = [Assign("a", "x"), Assign("b", "y"), Assign("b", "z")];
    holds(world(StoreKind::Etcd, cluster(TWO), &[], &operations), 2, 100);
}

#[test]
fn an_assignment_meets_a_release() {
    holds_everywhere(&owned(&["x"]), &["x"], &[Assign("a", "y"), Release("x")], 2, [10, 25]);
    // A runtime that does not wait for its DEL, and uses the container id again.
    holds_everywhere(&owned(&["x"]), &["x"], &[Release("x"), Release("x")], 2, [10, 60]);
}

#[test]
fn a_borrower_meets_the_owner_and_a_release() {
    let operations = [Assign("a", "y"), Assign("b", "z"), Release("x")];
    holds(world(StoreKind::Etcd, owned(&["x"]), &["x"], &operations), 2, 1_000);
    holds(world(StoreKind::Kubernetes, owned(&["x"]), &["x"], &operations), 0, 400);
}

#[test]
fn a_block_is_given_up_while_others_use_it() {
    let up = GiveUp("a", cidr(ONE));
    holds_everywhere(&owned(&["x"]), &["x"], &[up, Release("x")], 2, [10, 40]);
    holds_everywhere(&owned(&["x"]), &["x"], &[up, Assign("a", "y")], 2, [25, 120]);
    holds_everywhere(&owned(&["x"]), &["x"], &[up, Assign("b", "y")], 2, [20, 25]);
    holds_everywhere(&owned(&[]), &[], &[up, Assign("b", "y")], 2, [40, 250]);
}

#[test]
fn a_block_is_given_up_while_it_is_claimed() {
    let up = GiveUp("a", cidr(ONE));
    holds_everywhere(&cluster(ONE), &[], &[up, Assign("a", "y")], 2, [5, 40]);
}

#[test]
fn a_block_is_given_up_while_two_others_use_it() {
    let operations = [GiveUp("a", cidr(ONE)), Assign("b", "y"), Release("x")];
    holds(world(StoreKind::Etcd, owned(&["x"]), &["x"], &operations), 2, 400);
    holds(world(StoreKind::Kubernetes, owned(&["x"]), &["x"], &operations), 1, 600);
}

#[test]
fn the_collector_meets_assignments_and_releases() {
    // The address of `x` was never promised to anybody: its ADD died, and nobody repeats it.
    holds_everywhere(&owned(&["x"]), &[], &[Collect, Assign("a", "y")], 2, [15, 250]);
    holds_everywhere(&owned(&["x"]), &["x"], &[Collect, Release("x")], 2, [12, 60]);
    holds_everywhere(&cluster(ONE), &[], &[Collect, Assign("a", "y")], 2, [7, 230]);
}

#[test]
fn the_collector_meets_those_who_use_what_crashes_left() {
    let claim = left(&[affinity("a", AffinityState::Pending), handle("y")]);
    holds_everywhere(&claim, &[], &[Collect, Assign("a", "y")], 2, [12, 310]);
    holds_everywhere(&claim, &[], &[Collect, Assign("b", "y")], 1, [10, 450]);
    let empty = Record::Block(block("a", &[]));
    let going = left(&[affinity("a", AffinityState::PendingDeletion), empty]);
    holds_everywhere(&going, &[], &[Collect, Assign("a", "y")], 2, [50, 650]);
    let unowned = left(&[Record::Block(Block { affinity: None, ..block("a", &[]) })]);
    holds_everywhere(&unowned, &[], &[Collect, Assign("a", "y")], 2, [30, 500]);
}

#[test]
fn a_block_is_not_given_up_by_whom_it_does_not_belong_to() {
    let records = lost_claim();
    holds_everywhere(&records, &["x"], &[GiveUp("b", cidr(ONE)), Assign("a", "y")], 2, [4, 4]);
    holds_everywhere(&records, &["x"], &[Assign("b", "y"), Release("x")], 2, [4, 4]);
}

/// Node `b` lost the claim of `a`'s block, and could not take its affinity back.
fn lost_claim() -> Vec<Record> {
    [owned(&["x"]), vec![affinity("b", AffinityState::Pending)]].concat()
}

/// A pod of a virtual machine is started: its ADD may hold one address with those of the machine's other pods.
async fn start(store: SimStore, pod: &'static str) -> Ended {
    let attributes = [("node", "a"), ("namespace", "default"), ("pod", pod)];
    let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let want = Want { count: 1, handle: Some(MACHINE.to_owned()), attributes };
    let request = AssignRequest::new(Owner::host("a"), IpVersion::V4, Use::Workload, want);
    let request = AssignRequest { max_per_handle: 1, ..request };
    let clock = FixedClock(Timestamp::from_second(1_800_000_000).unwrap());
    Ended::Done(assign(&store, &clock, &request).await.is_ok_and(|assigned| assigned.is_enough()))
}

/// One ADD may die between its handle and its block, or only be slow: the other cannot tell.
#[test]
fn two_pods_of_one_machine_are_started_at_once() {
    let pods = [
        Other("first", |store| Box::pin(start(store, "first"))),
        Other("second", |store| Box::pin(start(store, "second"))),
    ];
    holds(world(StoreKind::Kubernetes, owned(&["x"]), &["x"], &pods), 0, 4);
    holds(world(StoreKind::Etcd, owned(&["x"]), &["x"], &pods), 1, 2);
}

/// A node that was gone comes back while the collector gives back what it had.
fn rejoining() -> SmallWorld {
    let tunnel = "vxlan-tunnel-addr-c";
    let mut block = block("c", &[]);
    let attributes = [("node", "c"), ("type", "vxlanTunnelAddress")];
    let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    block::assign(&mut block, cidr(ONE).network(), Some(tunnel), &attributes, None).unwrap();
    block::advance(&mut block);
    let records = left(&[affinity("c", AffinityState::Confirmed), handle(tunnel), Record::Block(block)]);
    world(StoreKind::Etcd, records, &[], &[Collect, Join("c", tunnel)])
}

#[test]
fn a_node_that_joins_again_meets_the_collector_calico_3589() {
    holds(rejoining(), 2, 5);
}

#[test]
fn lost_answers_give_nothing_away_twice() {
    let up = GiveUp("a", cidr(ONE));
    for (records, promised, operations, least) in [
        (cluster(ONE), &[][..], [Assign("a", "x"), Assign("b", "y")], [20, 80]),
        (owned(&["x"]), &["x"], [Assign("a", "y"), Release("x")], [12, 24]),
        (owned(&["x"]), &["x"], [Release("x"), Release("x")], [15, 110]),
        (owned(&["x"]), &["x"], [up, Release("x")], [10, 18]),
        (owned(&["x"]), &["x"], [up, Assign("a", "y")], [30, 75]),
        (owned(&[]), &[], [up, Assign("b", "y")], [60, 180]),
        (owned(&["x"]), &["x"], [Collect, Release("x")], [25, 70]),
    ] {
        for (store, least) in [StoreKind::Etcd, StoreKind::Kubernetes].into_iter().zip(least) {
            let world = world(store, records.clone(), promised, &operations);
            holds(SmallWorld { lost_answers: 1, ..world }, usize::from(store.is_atomic()), least);
        }
    }
}

#[test]
fn the_pruned_search_reaches_the_ends_that_the_whole_one_reaches() {
    let up = GiveUp("a", cidr(ONE));
    let writes = Other("writer", |store| Box::pin(rewrite(store)));
    for (store, operations, crashes) in [
        (StoreKind::Etcd, vec![Release("x"), up], 2),
        (StoreKind::Etcd, vec![Release("x"), Release("x"), writes], 0),
        (StoreKind::Kubernetes, vec![Release("x"), Release("x")], 1),
        (StoreKind::Kubernetes, vec![up, writes], 2),
    ] {
        let world = SmallWorld { crashes, ..world(store, owned(&["x"]), &["x"], &operations) };
        let ends = |found: &Explored| found.ends.keys().cloned().collect::<BTreeSet<String>>();
        let (pruned, whole) = (world.explore(Reach::Classes), world.explore(Reach::All));
        assert_eq!(ends(&pruned), ends(&whole), "{operations:?}");
        let (few, many) = (pruned.count.executions, whole.count.executions);
        assert!(few * 4 < many, "{operations:?}: {few} of {many}");
    }
}

/// Writes the block as it was read, as whoever assigns or releases something else in it does.
async fn rewrite(store: SimStore) -> Ended {
    let Ok(Some(found)) = seen::block(&store, cidr(ONE)).await else { return Ended::Done(false) };
    let mut block = found.value;
    block::advance(&mut block);
    Ended::Done(store.commit(&[], &[Write::Update(Record::Block(block), found.version)]).await.is_ok())
}

/// An assignment that writes the block before the handle.
async fn assign_backwards(store: SimStore) -> Ended {
    let Ok(Some(found)) = seen::block(&store, cidr(ONE)).await else { return Ended::Done(false) };
    let mut block = found.value;
    take(&mut block, "a", "careless");
    let first = store.commit(&[], &[Write::Update(Record::Block(block), found.version)]).await;
    let second = store.commit(&[], &[Write::Create(handle("careless"))]).await;
    Ended::Done(first.is_ok() && second.is_ok())
}

/// A collector that takes a handle without addresses for an orphan, however young, and leaves its block as it is.
async fn collect_in_haste(store: SimStore) -> Ended {
    let Ok(Some(orphan)) = seen::handle(&store, "y").await else { return Ended::Done(false) };
    match seen::block(&store, cidr(ONE)).await {
        Ok(Some(found)) if block::count_of(&found.value, "y") == 0 => {}
        _ => return Ended::Done(false),
    }
    let delete = Write::Delete(Record::Handle(orphan.value), orphan.version);
    Ended::Done(store.commit(&[], &[delete]).await.is_ok())
}

/// A node that takes a block over although another has it: its check is of something else.
async fn steal(store: SimStore) -> Ended {
    let Ok(Some(found)) = seen::block(&store, cidr(ONE)).await else { return Ended::Done(false) };
    let stolen = Block { affinity: Some(Owner::host("b")), ..found.value };
    let check = Check::Absent(Key::Affinity(Owner::host("b"), cidr(ONE)));
    Ended::Done(store.commit(&[check], &[Write::Update(Record::Block(stolen), found.version)]).await.is_ok())
}

#[test]
fn mistakes_are_found_and_named() {
    for (store, operations, invariant) in [
        (
            StoreKind::Etcd,
            [Other("backwards", |store| Box::pin(assign_backwards(store))), Release("x")],
            "5:",
        ),
        (
            StoreKind::Kubernetes,
            [Other("haste", |store| Box::pin(collect_in_haste(store))), Assign("a", "y")],
            "5:",
        ),
        (StoreKind::Etcd, [Other("thief", |store| Box::pin(steal(store))), Release("x")], "3:"),
    ] {
        let found = world(store, owned(&["x"]), &["x"], &operations).explore(Reach::Classes);
        let account = found.broken.unwrap_or_default();
        let named = account.last().is_some_and(|line| line.starts_with(invariant));
        assert!(named, "{operations:?}: {account:?}");
    }
}

#[test]
fn mistakes_planted_in_the_protocols_are_found() {
    let up = GiveUp("b", cidr(ONE));
    let kubernetes = StoreKind::Kubernetes;
    for (mistake, world) in [
        (
            Mistake::PendingSkipped,
            world(kubernetes, cluster(ONE), &[], &[Assign("a", "x"), Assign("b", "y")]),
        ),
        (Mistake::HandleCollected, world(kubernetes, owned(&[]), &[], &[Collect, Assign("a", "y")])),
        (Mistake::OwnerUnchecked, world(StoreKind::Etcd, lost_claim(), &["x"], &[up, Release("x")])),
        (Mistake::RejoinedTrusted, rejoining()),
    ] {
        ipam::mistake::make(Some(mistake));
        let found = world.explore(Reach::Classes);
        ipam::mistake::make(None);
        assert!(found.broken.is_some(), "{mistake}: not found in {} executions", found.count.executions);
        assert_eq!(world.explore(Reach::Classes).broken, None, "{mistake}");
    }
}
