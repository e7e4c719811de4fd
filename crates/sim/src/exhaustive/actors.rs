//! What goes on at once in a small world: operations of `ipam`, each with a connection and a clock of its own.

use super::agents::{Asked, serve};
use super::connect;
use crate::db::Db;
use crate::invariants::Leave;
use crate::port::{Call, Port, SimStore, Verdict};
use api::{Cidr, Handle, IpVersion, Node, Owner, Use};
use datastore::{Datastore as _, Key, Kind, Record, Scope, Write};
use ipam::affinity::{ReleaseTerms, release_affinity};
use ipam::assign::{AssignRequest, assign};
use ipam::block;
use ipam::collect::{self, Cluster, Collector, Effect, Event, Records};
use ipam::plan::Want;
use ipam::release::release_by_handle;
use ipam::seen::{self, Seen};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// When every world begins, in seconds since the epoch.
const BEGIN: i64 = 1_800_000_000;

/// The grace period of the worlds' collectors.
const GRACE: SignedDuration = SignedDuration::from_mins(1);

/// One operation.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// A plugin on a node assigns an address to a handle.
    Assign(&'static str, &'static str),
    /// Everything of a handle is released.
    Release(&'static str),
    /// A node gives up a block, empty or not.
    GiveUp(&'static str, Cidr),
    /// A node comes back under its name, and uses the address that it finds under this handle without writing it.
    Join(&'static str, &'static str),
    /// Two passes of a collector whose clock shows an hour between them, however little the others do meanwhile.
    Collect,
    /// A node's agent serves what it is asked.
    Serve(Asked),
    /// Something of the test's own, by name.
    Other(&'static str, fn(SimStore) -> Doing),
}

impl Operation {
    /// The handles that it is about.
    pub fn handles(&self) -> Vec<&'static str> {
        match self {
            Self::Assign(_, handle) | Self::Release(handle) | Self::Join(_, handle) => vec![handle],
            Self::Serve(asked) => asked.adds.iter().chain(asked.dels).copied().collect(),
            Self::GiveUp(..) | Self::Collect | Self::Other(..) => Vec::new(),
        }
    }

    /// The handles that it releases.
    pub fn released(&self) -> &[&'static str] {
        match self {
            Self::Release(handle) => std::slice::from_ref(handle),
            Self::Serve(asked) => asked.dels,
            _ => &[],
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Assign(node, handle) => write!(f, "{node} assigns to {handle}"),
            Self::Release(handle) => write!(f, "release of {handle}"),
            Self::GiveUp(node, block) => write!(f, "{node} gives {block} up"),
            Self::Join(node, _) => write!(f, "{node} joins"),
            Self::Collect => f.write_str("collector"),
            Self::Serve(Asked { node, adds, dels, hears }) => {
                let watch = if *hears { "with a watch" } else { "whose watch is late" };
                write!(f, "agent of {node} {watch}")?;
                adds.iter().try_for_each(|handle| write!(f, ", ADD {handle}"))?;
                dels.iter().try_for_each(|handle| write!(f, ", DEL {handle}"))
            }
            Self::Other(name, _) => f.write_str(name),
        }
    }
}

/// Addresses with their stamps.
pub type Taken = Vec<(IpAddr, u64)>;

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Addresses with their stamps; `None`: it failed.
    Assigned(Option<Taken>),
    /// The same by handle, for whoever serves several.
    Told(Vec<(&'static str, Option<Taken>)>),
    /// Whether it was done.
    Done(bool),
    /// It died.
    Died,
}

/// A clock of one actor: what it shows depends on nobody else.
#[derive(Debug)]
pub(super) struct ActorClock {
    base: Timestamp,
    readings: AtomicI64,
}

impl ipam::Clock for ActorClock {
    fn now(&self) -> Timestamp {
        let reading = self.readings.fetch_add(1, Ordering::Relaxed);
        self.base.checked_add(SignedDuration::from_nanos(reading)).unwrap_or(self.base)
    }
}

/// The clock of an actor; nobody else's shows the same instants.
pub(super) fn clock(actor: usize) -> ActorClock {
    let offset = i64::try_from(actor).unwrap_or(0) * 1_000_000;
    let begin = Timestamp::from_second(BEGIN).unwrap_or(Timestamp::UNIX_EPOCH);
    let base = begin.checked_add(SignedDuration::from_nanos(offset)).unwrap_or(begin);
    ActorClock { base, readings: AtomicI64::new(0) }
}

/// A clock that shows a later time.
pub(super) fn later(actor: usize, seconds: i64) -> ActorClock {
    let clock = clock(actor);
    let base = clock.base.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(clock.base);
    ActorClock { base, ..clock }
}

/// Later than any clock shows.
pub(super) fn latest() -> Timestamp {
    later(0, 1_000_000).base
}

/// What is left to be done of an operation.
pub type Doing = Pin<Box<dyn Future<Output = Ended>>>;

/// An operation under way.
pub struct Actor {
    /// What it is.
    pub operation: Operation,
    /// How it ended, if it has.
    pub ended: Option<Ended>,
    port: Port,
    future: Option<Doing>,
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Actor")
            .field("operation", &self.operation)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Actor {
    pub(super) fn new(
        number: usize,
        operation: &Operation,
        pods: &BTreeSet<String>,
        db: &Arc<Mutex<Db>>,
    ) -> Self {
        let (store, port) = connect(db);
        let future = begin(*operation, store, number + 1, pods.clone(), db);
        Self { operation: *operation, ended: None, port, future: Some(future) }
    }

    /// What it hears of whenever a call of its is answered: whose affinities, and every block and pool.
    pub(super) fn hears(&self) -> Option<&'static str> {
        match self.operation {
            Operation::Serve(asked) if asked.hears => Some(asked.node),
            _ => None,
        }
    }

    /// The call that it waits with: the oldest, where it made several at once.
    pub fn call(&self) -> Option<Call> {
        self.future.as_ref()?;
        self.port.calls().into_iter().next().map(|(_, call)| call)
    }

    pub(super) fn grant(&self, verdict: Verdict) -> Option<Call> {
        self.port.grant(0, verdict)
    }

    /// Goes on up to its next call. The end, if that is what comes first.
    pub(super) fn poll(&mut self) -> Option<Ended> {
        let poll = self.future.as_mut()?.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(ended) = poll else { return None };
        self.future = None;
        self.ended = Some(ended.clone());
        Some(ended)
    }

    pub(super) fn die(&mut self) {
        self.future = None;
        self.ended = Some(Ended::Died);
    }

    /// What it may free.
    pub(super) fn leave(&self) -> Leave {
        match self.operation {
            Operation::Release(handle) => Leave::Handle(handle.to_owned()),
            Operation::Collect => Leave::Unpromised,
            Operation::Serve(asked) if !asked.dels.is_empty() => Leave::Unpromised,
            Operation::Assign(..)
            | Operation::GiveUp(..)
            | Operation::Join(..)
            | Operation::Serve(_)
            | Operation::Other(..) => Leave::Nothing,
        }
    }
}

fn begin(
    operation: Operation,
    store: SimStore,
    number: usize,
    pods: BTreeSet<String>,
    db: &Arc<Mutex<Db>>,
) -> Doing {
    let clock = clock(number);
    match operation {
        Operation::Assign(node, handle) => Box::pin(async move {
            let attributes = [("node", node), ("namespace", "default"), ("pod", handle)];
            let want = Want {
                count: 1,
                handle: Some(handle.to_owned()),
                attributes: attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            };
            let request = AssignRequest::new(Owner::host(node), IpVersion::V4, Use::Workload, want);
            let assigned = assign(&store, &clock, &request).await.ok();
            Ended::Assigned(
                assigned
                    .map(|found| found.taken.iter().map(|taken| (taken.address, taken.sequence)).collect()),
            )
        }),
        Operation::Release(handle) => {
            Box::pin(async move { Ended::Done(release_by_handle(&store, &clock, handle).await.is_ok()) })
        }
        Operation::GiveUp(node, cidr) => Box::pin(async move {
            let outcome =
                release_affinity(&store, &clock, &Owner::host(node), cidr, ReleaseTerms::default()).await;
            Ended::Done(outcome.is_ok())
        }),
        Operation::Serve(asked) => Box::pin(serve(store, clock, number, Arc::clone(db), asked)),
        Operation::Other(_, make) => make(store),
        Operation::Join(node, handle) => Box::pin(join(store, node, handle)),
        Operation::Collect => Box::pin(async move {
            let mut collector = Collector::default();
            for pass in 0..2 {
                let clock = later(number, 3_600 * pass);
                if !pass_of(&store, &mut collector, &clock, &pods).await {
                    return Ended::Done(false);
                }
            }
            Ended::Done(true)
        }),
    }
}

/// One pass of a collector in a cluster whose pods are the handles of `pods`. False: something failed.
pub(super) async fn pass_of(
    store: &SimStore,
    collector: &mut Collector,
    clock: &ActorClock,
    pods: &BTreeSet<String>,
) -> bool {
    let now = ipam::Clock::now(clock);
    let mut effects = collector.step(now, Event::Begin { handles: true, grace: Some(GRACE) });
    let mut done = true;
    let mut tasks = Vec::new();
    while let Some(effect) = effects.pop() {
        let event = match effect {
            Effect::ListRecords { .. } => match records(store).await {
                Some(records) => Event::Records(Arc::new(records)),
                None => Event::Failed,
            },
            Effect::ListCluster => match cluster(store, pods).await {
                Some(cluster) => Event::Cluster(cluster),
                None => Event::Failed,
            },
            Effect::Ask(questions) => Event::Answers(answers(store, pods, questions).await),
            Effect::Do(task) => {
                tasks.push(task);
                continue;
            }
            Effect::Note(_) => continue,
        };
        done &= !matches!(event, Event::Failed);
        effects.extend(collector.step(now, event));
    }
    for task in tasks {
        done &= collect::carry_out(store, clock, &task).await.is_ok();
    }
    done
}

/// What there is: nodes as the store has them, and pods of which nobody has heard an address.
async fn cluster(store: &SimStore, pods: &BTreeSet<String>) -> Option<Cluster> {
    let nodes: Vec<Seen<Node>> = seen::list(store, &Scope::All(Kind::Node)).await.ok()?;
    Some(Cluster {
        nodes: nodes.into_iter().map(|seen| seen.value.name).collect(),
        pods: pods.iter().map(|pod| (named(pod), collect::Pod::default())).collect(),
    })
}

fn named(pod: &str) -> collect::PodName {
    ("default".to_owned(), pod.to_owned())
}

async fn answers(store: &SimStore, pods: &BTreeSet<String>, asked: collect::Questions) -> collect::Answers {
    let mut answers = collect::Answers::default();
    for node in asked.nodes {
        if store.get(&Key::Node(node.clone())).await == Ok(None) {
            answers.gone.insert(node);
        }
    }
    let found = |name: &collect::PodName| pods.contains(&name.1).then(collect::Pod::default);
    answers.pods = asked.pods.into_iter().map(|name| (name.clone(), found(&name))).collect();
    answers
}

/// A node comes, and goes on with what is its own.
async fn join(store: SimStore, node: &str, handle: &str) -> Ended {
    let record = Record::Node(Node { name: node.to_owned(), ..Node::default() });
    if store.commit(&[], &[Write::Create(record)]).await.is_err() {
        return Ended::Assigned(None);
    }
    let Ok(blocks) = seen::blocks(&store).await else { return Ended::Assigned(None) };
    let held = blocks.iter().flat_map(|seen| {
        block::held_by(&seen.value, handle).filter_map(|ordinal| {
            Some((seen.value.cidr.address(ordinal)?, block::stamp(&seen.value, ordinal)))
        })
    });
    Ended::Assigned(Some(held.collect()))
}

async fn records(store: &SimStore) -> Option<Records> {
    let blocks = seen::blocks(store).await.ok()?;
    let affinities = seen::list(store, &Scope::All(Kind::Affinity)).await.ok()?;
    let handles: BTreeMap<String, Seen<Handle>> = store
        .list(&Scope::All(Kind::Handle))
        .await
        .ok()?
        .items
        .into_iter()
        .filter_map(Seen::from_stored)
        .map(|seen: Seen<Handle>| (seen.value.id.clone(), seen))
        .collect();
    Some(Records {
        blocks: blocks.into_iter().map(|seen| (seen.value.cidr, seen)).collect(),
        affinities,
        handles: Some(handles),
        cooldown_seconds: 0,
    })
}
