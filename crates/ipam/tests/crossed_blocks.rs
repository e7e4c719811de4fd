//! Blocks that an operator made across each other: what both have is given to nobody, both are told by name, and nothing
//! else is done to them.

#![expect(clippy::unwrap_used, reason = "a test may")]

use api::{Affinity, AffinityState, Block, Cidr, IpVersion, Node, Owner, Pool, Use};
use datastore::follow::follow;
use datastore::memory::Memory;
use datastore::{Datastore as _, Kind, Record, Scope, Write};
use futures::executor::block_on;
use futures::{FutureExt as _, StreamExt as _};
use ipam::agent::{Agent, Demand, Effect, Event, Note, Reply, RequestId};
use ipam::assign::{AssignRequest, Assigned, assign};
use ipam::assign_address::{AssignAddressError, assign_address};
use ipam::block;
use ipam::clock::FixedClock;
use ipam::collect::{self, Cluster, Collector, Records};
use ipam::explain::BlockOutcome;
use ipam::plan::{AddressRequest, Want};
use ipam::seen::{self, Seen};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn create(store: &Memory, record: Record) {
    block_on(store.commit(&[], &[Write::Create(record)])).unwrap();
}

/// A pool of one block of sixteen, and blocks that a hand made in it: each with the node that has it.
fn store(blocks: &[(&str, &str)]) -> Memory {
    let store = Memory::new();
    let mut pool = Pool::with_defaults("p", cidr("10.0.0.0/28"));
    pool.block_size = 28;
    create(&store, Record::Pool(pool));
    for name in ["a", "b", "c"] {
        create(&store, Record::Node(Node { name: name.to_owned(), ..Node::default() }));
    }
    for (text, node) in blocks {
        let (cidr, owner) = (cidr(text), Owner::host(*node));
        create(&store, Record::Block(block::new_block(cidr, &owner, CLOCK.0)));
        let state = AffinityState::Confirmed;
        create(&store, Record::Affinity(Affinity { owner, cidr, state, deleted: false }));
    }
    store
}

fn blocks(store: &Memory) -> Vec<Seen<Block>> {
    block_on(seen::blocks(store)).unwrap()
}

/// What `node` gets when it asks for a hundred addresses without an agent.
fn direct(store: &Memory, node: &str) -> Assigned {
    let want = Want { count: 100, handle: Some(format!("h-{node}")), attributes: BTreeMap::new() };
    let request = AssignRequest::new(Owner::host(node), IpVersion::V4, Use::Workload, want);
    block_on(assign(store, &CLOCK, &request)).unwrap()
}

/// An agent, and everything it noted.
struct Served {
    store: Memory,
    agent: Agent,
    notes: Vec<Note>,
    replies: Vec<Reply>,
}

impl Served {
    fn of(store: &Memory, node: &str) -> Self {
        let mut served =
            Self { store: store.clone(), agent: Agent::new(node), notes: Vec::new(), replies: Vec::new() };
        for scope in served.agent.scopes() {
            let kind = scope.kind();
            let mut feed = follow(store.clone(), scope);
            while let Some(Some(change)) = feed.next().now_or_never() {
                served.tell(Event::Changed(kind, change));
            }
        }
        served
    }

    fn tell(&mut self, event: Event) {
        for effect in self.agent.step(CLOCK.0, event) {
            match effect {
                Effect::Commit { ticket, checks, writes } => {
                    let result = block_on(self.store.commit(&checks, &writes));
                    self.tell(Event::Committed(ticket, result));
                }
                Effect::Read { ticket, key } => {
                    let result = block_on(self.store.get(&key));
                    self.tell(Event::Read(ticket, result));
                }
                Effect::List { ticket, scope } => {
                    let result = block_on(self.store.list(&scope));
                    self.tell(Event::Listed(ticket, result));
                }
                Effect::Reply { reply, .. } => self.replies.push(reply),
                Effect::Note(note) => self.notes.push(note),
            }
        }
    }

    fn ask(&mut self, handle: &str, requested: Option<IpAddr>) -> Reply {
        let demand = Demand { requested, ..Demand::new(handle, vec![IpVersion::V4], BTreeMap::new()) };
        self.tell(Event::Add(RequestId(1), demand));
        self.replies.pop().unwrap()
    }
}

/// Everything that an agent of `node` gives out, one request after the other.
fn by_agent(store: &Memory, node: &str) -> (Vec<IpAddr>, Served) {
    let mut served = Served::of(store, node);
    let mut given = Vec::new();
    while let Reply::Added(taken) = served.ask(&format!("h-{node}-{}", given.len()), None) {
        given.push(taken[0].address);
    }
    (given, served)
}

#[test]
fn what_two_own_blocks_have_is_given_out_of_neither() {
    let across = [("10.0.0.0/28", "a"), ("10.0.0.4/30", "a")];
    let outside = |address: &IpAddr| !cidr("10.0.0.4/30").contains(*address);
    let alone = store(&across);
    let assigned = direct(&alone, "a");
    let given: BTreeSet<IpAddr> = assigned.taken.iter().map(|taken| taken.address).collect();
    assert_eq!((given.len(), assigned.taken.len()), (12, 12));
    assert!(given.iter().all(outside));
    let tried: Vec<BlockOutcome> =
        assigned.explain.blocks.listed().iter().map(|tried| tried.outcome).collect();
    assert!(tried.contains(&BlockOutcome::Crossed), "{tried:?}");
    let (given, served) = by_agent(&store(&across), "a");
    assert_eq!(given.len(), 12);
    assert!(given.iter().all(outside));
    let crossed = Note::Crossed { block: cidr("10.0.0.4/30"), other: cidr("10.0.0.0/28") };
    assert_eq!(served.notes.iter().filter(|note| **note == crossed).count(), 1);
    let told = |note: &Note| {
        matches!(note, Note::Explained { explain, .. }
        if explain.to_string().contains("block 10.0.0.4/30 lies across another block"))
    };
    assert!(served.notes.iter().any(told));
}

/// Without an agent a node that has room in its own block does not look at those of others: see `docs/compat.md`.
#[test]
fn what_blocks_of_two_nodes_have_is_given_out_by_no_agent_and_lent_by_nobody() {
    let across = [("10.0.0.0/28", "a"), ("10.0.0.4/30", "b")];
    let store = store(&across);
    let (large, _) = by_agent(&store, "a");
    let (small, served) = by_agent(&store, "b");
    assert_eq!((large.len(), small.len()), (12, 0));
    assert!(served.notes.iter().any(|note| matches!(note, Note::Crossed { .. })));
    let borrowed = direct(&store, "c");
    assert!(borrowed.taken.is_empty(), "{:?}", borrowed.taken);
    assert_eq!(blocks(&store).len(), 2, "nothing is made in between");
}

#[test]
fn an_address_of_two_blocks_is_refused_with_both_names() {
    let store = store(&[("10.0.0.0/29", "a"), ("10.0.0.4/30", "b")]);
    let before = blocks(&store);
    let address = "10.0.0.5".parse().unwrap();
    let request = AddressRequest {
        owner: Owner::host("a"),
        address,
        handle: Some("h".to_owned()),
        attributes: BTreeMap::new(),
        intended_use: None,
        max_per_handle: 0,
    };
    let refused = block_on(assign_address(&store, &CLOCK, &request)).unwrap_err().error;
    assert!(matches!(refused, AssignAddressError::Crossed { .. }), "{refused:?}");
    let Reply::Failed(error) = Served::of(&store, "a").ask("h", Some(address)) else { panic!("given") };
    for message in [refused.to_string(), error.message] {
        assert!(message.contains("10.0.0.0/29") && message.contains("10.0.0.4/30"), "{message}");
    }
    assert_eq!(blocks(&store), before);
}

#[test]
fn what_is_held_in_either_block_can_be_given_back_and_what_one_has_alone_is_given_out_again() {
    let store = store(&[("10.0.0.0/30", "a")]);
    let (given, mut served) = by_agent(&store, "a");
    assert_eq!(given.len(), 4);
    let small = cidr("10.0.0.2/31");
    create(&store, Record::Block(block::new_block(small, &Owner::host("b"), CLOCK.0)));
    served = Served::of(&served.store, "a");
    let surrender =
        ipam::agent::Surrender { handle: "h-a-3".to_owned(), interface: None, legacy_handle: None };
    served.tell(Event::Del(RequestId(1), surrender));
    assert_eq!(served.replies.pop(), Some(Reply::Deleted));
    assert!(matches!(served.ask("again", None), Reply::Failed(_)), "both have it");
    let other = blocks(&store).into_iter().find(|seen| seen.value.cidr == small).unwrap();
    block_on(store.commit(&[], &[Write::Delete(Record::Block(other.value), other.version)])).unwrap();
    assert!(matches!(Served::of(&store, "a").ask("again", None), Reply::Added(_)), "one has it");
}

#[test]
fn the_collector_tells_of_both_and_does_nothing_to_them() {
    let store = store(&[("10.0.0.0/28", "a"), ("10.0.0.4/30", "b")]);
    let affinities = block_on(seen::list(&store, &Scope::All(Kind::Affinity))).unwrap();
    let records = Records {
        blocks: blocks(&store).into_iter().map(|seen| (seen.value.cidr, seen)).collect(),
        affinities,
        handles: Some(BTreeMap::new()),
        cooldown_seconds: 0,
    };
    let nodes = ["a", "b"].map(str::to_owned).into();
    let mut collector = Collector::default();
    collector.step(CLOCK.0, collect::Event::Begin { handles: true, grace: None });
    collector.step(CLOCK.0, collect::Event::Records(Arc::new(records)));
    let cluster = Cluster { nodes, ..Cluster::default() };
    let effects = collector.step(CLOCK.0, collect::Event::Cluster(cluster));
    let crossed = collect::Note::Crossed { block: cidr("10.0.0.4/30"), other: cidr("10.0.0.0/28") };
    assert_eq!(effects, [collect::Effect::Note(crossed)]);
}
