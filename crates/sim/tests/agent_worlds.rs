//! Small worlds with agents in them: two agents, an agent beside a plugin, a release, a block that is given up, a collector;
//! agents die, and answers are lost. Their watches are as late as can be, or up to date.
//!
//! Where an agent without delay hears of everything, and answers are lost on a store without transactions, there are too many
//! orders for a test: `cargo xtask sim --worlds` runs those.

use api::AffinityState;
use datastore::Record;
use sim::db::StoreKind;
use sim::exhaustive::SmallWorld;
use sim::exhaustive::actors::Operation::{self, Assign, Collect, GiveUp, Release, Serve};
use sim::exhaustive::agents::Asked;
use sim::exhaustive::search::Reach;
use sim::exhaustive::stage::{ONE, TWO, affinity, cidr, cluster, handle, left, owned, world};

const A: Asked = Asked { node: "a", adds: &[], dels: &[], hears: false };
const B: Asked = Asked { node: "b", ..A };

fn adds(of: Asked, adds: &'static [&'static str]) -> Operation {
    Serve(Asked { adds, ..of })
}

fn dels(of: Asked, dels: &'static [&'static str]) -> Operation {
    Serve(Asked { dels, ..of })
}

/// The same operations, their agents with up-to-date watches.
fn hearing(operations: &[Operation]) -> Vec<Operation> {
    let hears = |operation: &Operation| match operation {
        Serve(asked) => Serve(Asked { hears: true, ..*asked }),
        other => *other,
    };
    operations.iter().map(hears).collect()
}

/// Runs a world, and says what was broken in which order. How many executions there were.
fn holds(world: &SmallWorld) -> usize {
    let names: Vec<String> = world.operations.iter().map(ToString::to_string).collect();
    let found = world.explore(Reach::Classes);
    let name = format!("{:?}: {}", world.store, names.join(" beside "));
    assert_eq!(found.broken.map(|account| account.join("\n")), None, "{name}");
    found.count.executions
}

/// Runs a world in every order over both kinds of store: with crashes of at most two, and with a lost answer.
fn holds_everywhere(
    records: &[Record],
    promised: &[&'static str],
    operations: &[Operation],
    executions: usize,
) {
    let mut ran = holds_where_commits_are_atomic(records, promised, operations, 1);
    let late = world(StoreKind::Kubernetes, records.to_vec(), promised, operations);
    let hears = SmallWorld { operations: hearing(operations), ..late.clone() };
    for world in [
        SmallWorld { crashes: 2, ..late.clone() },
        SmallWorld { lost_answers: 1, ..late },
        SmallWorld { crashes: 2, ..hears },
    ] {
        ran += holds(&world);
    }
    assert!(ran >= executions, "only {ran} executions");
}

/// The same over a store with atomic commits alone.
fn holds_where_commits_are_atomic(
    records: &[Record],
    promised: &[&'static str],
    operations: &[Operation],
    executions: usize,
) -> usize {
    let mut ran = 0;
    for operations in [operations.to_vec(), hearing(operations)] {
        let world = world(StoreKind::Etcd, records.to_vec(), promised, &operations);
        ran += holds(&SmallWorld { crashes: 2, ..world.clone() });
        ran += holds(&SmallWorld { lost_answers: 1, ..world });
    }
    assert!(ran >= executions, "only {ran} executions");
    ran
}

#[test]
fn two_agents_claim_blocks() {
    let operations = [adds(A, &["x"]), adds(B, &["y"])];
    holds_everywhere(&cluster(ONE), &[], &operations, 600);
    holds_where_commits_are_atomic(&cluster(TWO), &[], &operations, 25);
}

#[test]
fn an_agent_and_a_plugin_of_one_node_claim_a_block() {
    holds_where_commits_are_atomic(&cluster(ONE), &[], &[adds(A, &["x"]), Assign("a", "y")], 120);
}

#[test]
fn an_agent_assigns_while_somebody_releases() {
    holds_everywhere(&owned(&["x"]), &["x"], &[adds(A, &["y"]), Release("x")], 180);
}

#[test]
fn an_agent_releases_while_somebody_borrows() {
    holds_everywhere(&owned(&["x"]), &["x"], &[dels(A, &["x"]), Assign("b", "y")], 330);
}

/// On a store without transactions each once wrote the block anew for every commit of the other's that it had refused, which
/// refused that one's next.
#[test]
fn an_agent_borrows_from_another_that_is_at_work() {
    let batch = Serve(Asked { adds: &["y"], dels: &["x"], ..A });
    holds_everywhere(&owned(&["x"]), &["x"], &[batch, adds(B, &["z"])], 1_000);
}

#[test]
fn an_agents_block_is_given_up() {
    let up = GiveUp("a", cidr(ONE));
    holds_everywhere(&owned(&["x"]), &["x"], &[up, adds(A, &["y"])], 330);
    holds_everywhere(&owned(&["x"]), &["x"], &[up, dels(A, &["x"])], 350);
}

#[test]
fn a_collector_meets_an_agent() {
    let pending = left(&[affinity("a", AffinityState::Pending), handle("y")]);
    holds_where_commits_are_atomic(&owned(&["x"]), &[], &[Collect, adds(A, &["y"])], 150);
    holds_where_commits_are_atomic(&pending, &[], &[Collect, adds(A, &["y"])], 1_500);
    holds_everywhere(&owned(&["x"]), &["x"], &[Collect, dels(A, &["x"])], 400);
}
