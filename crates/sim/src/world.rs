//! One simulated cluster: nodes whose plugins assign and release addresses over one store, under a seeded scheduler.
//!
//! ```
//! let end = sim::world::run(&sim::world::Setting { seed: 7, ..Default::default() });
//! assert_eq!(end.broken, Vec::<String>::new());
//! ```

use crate::invariants;
use crate::rng::Rng;
use crate::store::{SimStore, Verdict};
use api::{Cidr, IpVersion, Node, Owner, Pool, Use};
use datastore::memory::Memory;
use datastore::{Datastore as _, Kind, Record, Scope, Write};
use futures::FutureExt as _;
use ipam::Clock;
use ipam::assign::{AssignRequest, assign};
use ipam::plan::Want;
use ipam::release::release_by_handle;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Decides everything.
    pub seed: u64,
    /// Nodes, each with one plugin at work.
    pub nodes: usize,
    /// The pool that all share.
    pub pool: Cidr,
    /// Prefix length of its blocks.
    pub block_size: u8,
    /// Steps with faults, before faults stop and the world comes to rest.
    pub steps: usize,
    /// Faults in a hundred calls.
    pub faults: usize,
}

impl Default for Setting {
    fn default() -> Self {
        // Two blocks of four addresses for three nodes: room is short, so they meet.
        Self {
            seed: 1,
            nodes: 3,
            pool: Cidr::containing(IpAddr::from([10, 0, 0, 0]), 29).expect("29 is within 32 bits"),
            block_size: 30,
            steps: 400,
            faults: 10,
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Invariants that did not hold, with the step. Empty is good.
    pub broken: Vec<String>,
    /// Datastore calls made.
    pub calls: usize,
    /// Addresses given out, and calls that failed for want of one.
    pub assigned: usize,
    /// Operations cut short by a fault.
    pub cut_short: usize,
    /// Digest of everything that happened, in order.
    pub trace: u64,
}

struct SimClock(AtomicI64);

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.0.load(Ordering::Relaxed)).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

enum Outcome {
    Assigned(Vec<IpAddr>),
    Released,
    Failed,
}

struct Task {
    handle: String,
    future: Pin<Box<dyn Future<Output = Outcome>>>,
}

struct World {
    rng: Rng,
    clock: Arc<SimClock>,
    memory: Memory,
    nodes: Vec<(Owner, SimStore)>,
    tasks: Vec<Option<Task>>,
    /// Promised to a handle and not yet asked back.
    live: BTreeMap<String, Vec<IpAddr>>,
    /// Handles of operations that were cut short: a runtime repeats their DEL.
    doubtful: BTreeSet<String>,
    end: End,
    step: usize,
    handles: usize,
}

/// Runs one simulation to its end.
pub fn run(setting: &Setting) -> End {
    let mut world = World::new(setting);
    while world.step < setting.steps && world.end.broken.is_empty() {
        world.advance(setting.faults);
    }
    world.come_to_rest();
    world.end
}

impl World {
    fn new(setting: &Setting) -> Self {
        let memory = Memory::new();
        let pool = Pool {
            name: "pool".to_owned(),
            cidr: setting.pool,
            block_size: setting.block_size,
            ipip_mode: api::Encapsulation::Never,
            vxlan_mode: api::Encapsulation::Never,
            nat_outgoing: false,
            disabled: false,
            disable_bgp_export: false,
            node_selector: "all()".to_owned(),
            namespace_selector: None,
            allowed_uses: vec![Use::Workload, Use::Tunnel],
            assignment_mode: api::AssignmentMode::Automatic,
            deleting: false,
            unallocatable: false,
        };
        let names: Vec<String> = (0..setting.nodes).map(|index| format!("node-{index}")).collect();
        let mut writes = vec![Write::Create(Record::Pool(pool))];
        for name in &names {
            writes.push(Write::Create(Record::Node(Node { name: name.clone(), ..Node::default() })));
        }
        let made = memory.commit(&[], &writes).now_or_never();
        debug_assert!(made.is_some_and(|made| made.is_ok()), "an empty store takes everything");
        let nodes: Vec<_> =
            names.into_iter().map(|name| (Owner::host(name), SimStore::new(memory.clone()))).collect();
        Self {
            rng: Rng::new(setting.seed),
            clock: Arc::new(SimClock(AtomicI64::new(1_800_000_000))),
            tasks: nodes.iter().map(|_| None).collect(),
            memory,
            nodes,
            live: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            end: End {
                broken: Vec::new(),
                calls: 0,
                assigned: 0,
                cut_short: 0,
                trace: 0xcbf2_9ce4_8422_2325,
            },
            step: 0,
            handles: 0,
        }
    }

    /// One client does one thing: starts an operation, or makes its next datastore call.
    fn advance(&mut self, faults: usize) {
        self.step += 1;
        self.clock.0.fetch_add(i64::from(self.rng.chance(1, 4)), Ordering::Relaxed);
        let client = self.rng.below(self.nodes.len());
        if self.tasks[client].is_none() {
            self.begin(client);
        }
        let fault = self.rng.chance(faults, 100).then(|| self.rng.below(4));
        let verdict = match fault {
            None => Some(Verdict::Proceed),
            Some(0) => Some(Verdict::LoseRequest),
            Some(1) => Some(Verdict::LoseReply),
            Some(2) => Some(Verdict::DieAfter),
            Some(_) => None,
        };
        self.call(client, verdict);
        self.judge();
    }

    fn begin(&mut self, client: usize) {
        let doubtful = self.doubtful.first().cloned();
        let held: Vec<String> = self.live.keys().cloned().collect();
        let (owner, store) = self.nodes[client].clone();
        let clock = Arc::clone(&self.clock);
        let task = if let Some(handle) = doubtful.filter(|_| self.rng.chance(1, 2)) {
            self.doubtful.remove(&handle);
            release(store, clock, handle)
        } else if !held.is_empty() && self.rng.chance(1, 2) {
            // From here on the address is nobody's: its owner asked for it to be taken back.
            let handle = held[self.rng.below(held.len())].clone();
            self.live.remove(&handle);
            release(store, clock, handle)
        } else {
            self.handles += 1;
            add(store, clock, owner, format!("net.c{}", self.handles))
        };
        self.tasks[client] = Some(task);
        // Up to its first call.
        self.poll(client);
    }

    /// The client's next datastore call with this outcome; `None` kills it before the call.
    fn call(&mut self, client: usize, verdict: Option<Verdict>) {
        self.note(&format!("{client} {verdict:?}"));
        let Some(task) = &self.tasks[client] else { return };
        let handle = task.handle.clone();
        if let Some(verdict) = verdict {
            self.end.calls += 1;
            self.nodes[client].1.grant(verdict);
            self.poll(client);
        }
        if matches!(verdict, None | Some(Verdict::DieAfter)) && self.tasks[client].take().is_some() {
            self.end.cut_short += 1;
            self.doubtful.insert(handle);
        }
    }

    fn poll(&mut self, client: usize) {
        let Some(task) = &mut self.tasks[client] else { return };
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(outcome) = task.future.as_mut().poll(&mut context) else { return };
        let handle = task.handle.clone();
        self.tasks[client] = None;
        match outcome {
            Outcome::Assigned(addresses) => {
                self.note(&format!("{handle} has {addresses:?}"));
                self.end.assigned += addresses.len();
                if !addresses.is_empty() {
                    self.live.insert(handle, addresses);
                }
            }
            Outcome::Released => self.note(&format!("{handle} is gone")),
            Outcome::Failed => {
                self.end.cut_short += 1;
                self.doubtful.insert(handle);
            }
        }
    }

    fn records(&self) -> Vec<Record> {
        [Kind::Block, Kind::Handle]
            .into_iter()
            .filter_map(|kind| self.memory.list(&Scope::All(kind)).now_or_never()?.ok())
            .flat_map(|listing| listing.items)
            .map(|stored| stored.record)
            .collect()
    }

    fn judge(&mut self) {
        let records = self.records();
        let mut wrong = invariants::broken(&records);
        let promises =
            self.live.iter().flat_map(|(handle, held)| held.iter().map(move |ip| (handle.as_str(), *ip)));
        wrong.extend(invariants::promised_twice(promises));
        for (handle, addresses) in &self.live {
            let kept = records.iter().any(|record| match record {
                Record::Block(block) => addresses.iter().all(|address| {
                    ipam::block::attribute_of(block, *address).and_then(|held| held.handle_id.as_deref())
                        == Some(handle)
                }),
                _ => false,
            });
            if !kept {
                wrong.push(format!("9: {handle} was promised {addresses:?}, which the store does not know"));
            }
        }
        let step = self.step;
        self.end.broken.extend(wrong.into_iter().map(|text| format!("step {step}: {text}")));
    }

    /// No more faults: what is under way ends, everything is asked back, and nothing may be left.
    fn come_to_rest(&mut self) {
        for round in 0..10_000 {
            let client = round % self.nodes.len();
            if self.tasks[client].is_none() {
                let next =
                    self.doubtful.pop_first().or_else(|| self.live.pop_first().map(|(handle, _)| handle));
                let Some(handle) = next else {
                    if self.tasks.iter().all(Option::is_none) {
                        break;
                    }
                    continue;
                };
                let task = release(self.nodes[client].1.clone(), Arc::clone(&self.clock), handle);
                self.tasks[client] = Some(task);
                self.poll(client);
            }
            self.call(client, Some(Verdict::Proceed));
        }
        self.judge();
        for record in self.records() {
            match record {
                Record::Block(block) if ipam::block::allocated(&block).next().is_some() => {
                    self.end.broken.push(format!("8: block {} leaks", block.cidr));
                }
                Record::Handle(handle) => self.end.broken.push(format!("8: handle {} is left", handle.id)),
                _ => {}
            }
        }
    }

    fn note(&mut self, line: &str) {
        for byte in line.bytes().chain([b'\n']) {
            self.end.trace = (self.end.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn add(store: SimStore, clock: Arc<SimClock>, owner: Owner, handle: String) -> Task {
    let want = Want {
        count: 1,
        handle: Some(handle.clone()),
        attributes: BTreeMap::from([
            ("node".to_owned(), owner.name.clone()),
            ("pod".to_owned(), handle.clone()),
        ]),
    };
    let request = AssignRequest::new(owner, IpVersion::V4, Use::Workload, want);
    let future = Box::pin(async move {
        match assign(&store, clock.as_ref(), &request).await {
            Ok(assigned) => Outcome::Assigned(assigned.taken.iter().map(|taken| taken.address).collect()),
            Err(_) => Outcome::Failed,
        }
    });
    Task { handle, future }
}

fn release(store: SimStore, clock: Arc<SimClock>, handle: String) -> Task {
    let id = handle.clone();
    let future = Box::pin(async move {
        match release_by_handle(&store, clock.as_ref(), &id).await {
            Ok(_) => Outcome::Released,
            Err(_) => Outcome::Failed,
        }
    });
    Task { handle, future }
}
