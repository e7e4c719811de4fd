//! Small worlds run in every order: two nodes, one or two blocks of four addresses, up to three operations at once, at
//! most two crashes, over a store with atomic commits and over one without. Operations are those of plugins, controllers,
//! and agents with all that they are asked at once.
//!
//! The tests run what takes seconds: all worlds of two operations with two crashes or a lost answer, but for some of agents
//! over a store without transactions; worlds of three with two crashes where commits are atomic, with one or none where they
//! are not. The rest is in [`long`].
//!
//! What is run are the protocols themselves, over the simulator's store. What must hold is judged after every call; at the
//! end of every execution crashes stop, everything is asked back, the collector runs, and nothing may be left.

pub mod actors;
pub mod agents;
pub mod long;
mod repair;
pub mod search;
pub mod stage;

use crate::db::{Applied, Db, StoreKind};
use crate::invariants::{Judge, Leave, Serves, Step};
use crate::port::{Call, Port, SimStore, Verdict};
use crate::promises::{Promise, Promises};
use actors::{Actor, Ended, Operation};
use api::{AffinityNaming, AffinityState};
use datastore::{Key, Kind, Record, Write};
use search::{Access, Count, Fate, Reach, Run, World};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A small world.
#[derive(Clone, Debug)]
pub struct SmallWorld {
    /// The store.
    pub store: StoreKind,
    /// What the store holds at the beginning.
    pub records: Vec<Record>,
    /// Handles whose addresses are promised at the beginning.
    pub promised: Vec<&'static str>,
    /// What goes on at once.
    pub operations: Vec<Operation>,
    /// How many of them may die.
    pub crashes: usize,
    /// How many answers to writes may be lost.
    pub lost_answers: usize,
}

/// What came of running a world in every order.
#[derive(Clone, Debug, Default)]
pub struct Explored {
    /// Executions.
    pub count: Count,
    /// Every end that was reached, with how often: records, and what each operation was told.
    pub ends: BTreeMap<String, usize>,
    /// The first execution that broke an invariant: its steps, and what was wrong.
    pub broken: Option<Vec<String>>,
    /// It was given up before every order had been run.
    pub unended: bool,
}

impl SmallWorld {
    /// Runs it in every order.
    pub fn explore(&self, reach: Reach) -> Explored {
        self.explore_while(reach, || true)
    }

    /// Runs it in every order, for as long as this answers true at the end of an execution.
    pub fn explore_while(&self, reach: Reach, go_on: impl Fn() -> bool) -> Explored {
        let mut explored = Explored::default();
        let mut ends = BTreeMap::new();
        let (mut broken, mut unended) = (None, false);
        explored.count = search::explore(self, reach, |mut run| {
            let end = run.to_string();
            // Executions that end alike are repaired alike.
            let times = ends.entry(end).or_insert(0);
            if *times == 0 && run.wrong.is_empty() {
                run.holds_what_was_told();
                run.repair();
            }
            *times += 1;
            if !run.wrong.is_empty() {
                broken = Some(run.account());
            }
            unended = broken.is_none() && !go_on();
            broken.is_none() && !unended
        });
        explored.unended = unended;
        explored.ends = ends;
        explored.broken = broken;
        explored
    }
}

impl fmt::Display for SmallWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {} crashes, {} lost answers", self.store, self.crashes, self.lost_answers)?;
        self.operations.iter().try_for_each(|operation| write!(f, "; {operation}"))
    }
}

impl World for SmallWorld {
    type Run = Execution;

    fn begin(&self) -> Execution {
        let mut db = Db::new(self.store, AffinityNaming::PerNode);
        let made = actors::clock(0);
        for record in &self.records {
            // A table that holds nothing takes everything.
            let _ = db.write(&Write::Create(record.clone()), ipam::Clock::now(&made));
        }
        let mut judge = Judge::new(Vec::new());
        judge.capped.insert(stage::MACHINE.to_owned());
        let mut promises = Promises::default();
        let mut wrong = Vec::new();
        let mut applied = Vec::new();
        db.take_applied(&mut applied);
        for (attachment, handle) in self.promised.iter().enumerate() {
            for (address, sequence) in held(&db, handle) {
                let block = Judge::promised(&db, address, handle, sequence).ok();
                let attachment = PROMISED + attachment;
                let promise = Promise { attachment, handle: (*handle).to_owned(), block, sequence };
                wrong.extend(promises.give(address, promise));
            }
        }
        let leave = Leave::Nothing;
        let step = step_of(0, &leave);
        // What crashes have left before is where a world begins: only what comes of it is judged.
        judge.see(&db, &applied, step, &promises, &mut Vec::new());
        let db = Arc::new(Mutex::new(db));
        // Whoever was promised something has a pod, and whoever is being assigned something; until it is asked back.
        let released: BTreeSet<_> = self.operations.iter().flat_map(Operation::released).copied().collect();
        let pods: BTreeSet<String> =
            self.handles().into_iter().filter(|handle| !released.contains(handle.as_str())).collect();
        let actors = self.operations.iter().enumerate();
        let handles = self.handles();
        let held_before = {
            let db = db.lock().unwrap_or_else(PoisonError::into_inner);
            handles.iter().filter(|handle| !held(&db, handle).is_empty()).cloned().collect()
        };
        let mut run = Execution {
            actors: actors.map(|(number, operation)| Actor::new(number, operation, &pods, &db)).collect(),
            db,
            judge,
            promises,
            crashes: self.crashes,
            lost_answers: self.lost_answers,
            wrong,
            steps: Vec::new(),
            handles,
            held_before,
        };
        for number in 0..run.actors.len() {
            run.before(number);
            run.go_on(number);
        }
        run
    }
}

/// Calls of one execution at most: operations that meet so few others end long before.
const CALLS: usize = 150;

/// Actors at most: the attachments that one serves are numbered this far apart.
const ACTORS: usize = 8;

/// Attachments of what was promised at the beginning are numbered from here.
const PROMISED: usize = 100;

impl SmallWorld {
    fn handles(&self) -> Vec<String> {
        let mut handles: Vec<String> = self.promised.iter().map(|handle| (*handle).to_owned()).collect();
        handles.extend(self.operations.iter().flat_map(Operation::handles).map(str::to_owned));
        handles.sort();
        handles.dedup();
        handles
    }
}

/// What the judge is told of a step here: nobody is a peer, and no rule of automatic assignment changes.
fn step_of(task: u64, leave: &Leave) -> Step<'_> {
    Step {
        task,
        leave,
        serves: Serves::Anybody,
        by_peer: false,
        node: None,
        since: 0,
        latest: actors::latest(),
    }
}

fn held(db: &Db, handle: &str) -> Vec<(IpAddr, u64)> {
    let mut held = Vec::new();
    for stored in db.all(Kind::Block) {
        if let Record::Block(block) = &stored.record {
            held.extend(ipam::block::held_by(block, handle).filter_map(|ordinal| {
                Some((block.cidr.address(ordinal)?, ipam::block::stamp(block, ordinal)))
            }));
        }
    }
    held
}

/// A confirmed affinity without a block of its owner's (invariant 3). Where the judge waits for whoever may take it back,
/// small worlds do not: nothing in them makes a claim's checks fail after its writes.
fn hollow(db: &Db) -> Option<String> {
    db.all(Kind::Affinity).find_map(|stored| {
        let Record::Affinity(affinity) = &stored.record else { return None };
        let owner = match db.peek(&Key::Block(affinity.cidr)).map(|stored| &stored.record) {
            Some(Record::Block(block)) => block.affinity.as_ref(),
            _ => None,
        };
        let stands = affinity.state != AffinityState::Confirmed || owner == Some(&affinity.owner);
        (!stands).then(|| {
            format!("3: {} is confirmed for {}, which does not own it", affinity.cidr, affinity.owner)
        })
    })
}

/// One execution of a small world.
#[derive(Debug)]
pub struct Execution {
    db: Arc<Mutex<Db>>,
    actors: Vec<Actor>,
    judge: Judge,
    promises: Promises,
    crashes: usize,
    lost_answers: usize,
    wrong: Vec<String>,
    /// What was done, for whoever has to understand a failure.
    steps: Vec<(usize, Call, Fate)>,
    handles: Vec<String>,
    /// Those that held something at the beginning.
    held_before: BTreeSet<String>,
}

impl Execution {
    fn db(&self) -> MutexGuard<'_, Db> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was done, and what was wrong with it.
    fn account(&self) -> Vec<String> {
        let steps = self.steps.iter().map(|(process, call, fate)| {
            let fault = match fate {
                Fate::Made => "",
                Fate::Last => ", and dies",
                Fate::Unanswered => ", and hears no answer",
            };
            format!("{}: {call:?}{fault}", self.actors[*process].operation)
        });
        steps.chain(self.wrong.iter().cloned()).collect()
    }

    /// From the beginning of a release on, what it releases is promised to nobody.
    fn before(&mut self, number: usize) {
        let operation = self.actors[number].operation;
        let released = operation.released();
        let given_up: Vec<usize> = (0..PROMISED)
            .chain(PROMISED..PROMISED + self.handles.len())
            .filter(|attachment| {
                self.promises.addresses_of(*attachment).any(|address| {
                    self.promises
                        .of(address)
                        .is_some_and(|promise| released.contains(&promise.handle.as_str()))
                })
            })
            .collect();
        for attachment in given_up {
            self.promises.take_back(attachment);
        }
    }

    /// Where nobody died and no answer was lost, whoever was assigned something holds what it was told and no more.
    fn holds_what_was_told(&mut self) {
        let mut told: BTreeMap<&'static str, Vec<IpAddr>> = BTreeMap::new();
        for actor in &self.actors {
            let of_actor = match &actor.ended {
                Some(Ended::Assigned(taken)) => {
                    actor.operation.handles().into_iter().map(|handle| (handle, taken.clone())).collect()
                }
                Some(Ended::Told(told)) => told.clone(),
                Some(Ended::Done(_)) => Vec::new(),
                Some(Ended::Died) | None => return,
            };
            for (handle, taken) in of_actor {
                told.entry(handle).or_default().extend(taken.iter().flatten().map(|(address, _)| *address));
            }
        }
        if self.steps.iter().any(|(_, _, fate)| *fate != Fate::Made) {
            return;
        }
        for (handle, told) in told {
            // What was there before is not looked at.
            let before = self.held_before.contains(handle);
            let untold = held(&self.db(), handle).into_iter().find(|(address, _)| !told.contains(address));
            if let Some((address, _)) = untold.filter(|_| !before) {
                self.wrong.push(format!("8: {handle} holds {address}, of which nobody was told"));
            }
        }
    }

    /// Lets an actor run up to its next call, and judges what it did.
    fn go_on(&mut self, number: usize) {
        let ended = self.actors[number].poll();
        let mut applied: Vec<Applied> = Vec::new();
        self.db().take_applied(&mut applied);
        let leave = self.actors[number].leave();
        let task = u64::try_from(number).unwrap_or(0) + 1;
        let step = step_of(task, &leave);
        let db = Arc::clone(&self.db);
        let db = db.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wrong = Vec::new();
        self.judge.see(&db, &applied, step, &self.promises, &mut wrong);
        if !applied.is_empty() {
            wrong.extend(hollow(&db));
        }
        let told = match ended {
            Some(Ended::Assigned(taken)) => self.actors[number]
                .operation
                .handles()
                .into_iter()
                .map(|handle| (handle, taken.clone()))
                .collect(),
            Some(Ended::Told(told)) => told,
            Some(Ended::Done(_) | Ended::Died) | None => Vec::new(),
        };
        for (place, (handle, taken)) in told.into_iter().enumerate() {
            for (address, sequence) in taken.unwrap_or_default() {
                let found = Judge::promised(&db, address, handle, sequence);
                let block = found.as_ref().ok().copied();
                let attachment = number + place * ACTORS;
                let promise = Promise { attachment, handle: handle.to_owned(), block, sequence };
                wrong.extend(found.err().into_iter().chain(self.promises.give(address, promise)));
            }
        }
        self.wrong.extend(wrong);
    }
}

impl Run for Execution {
    fn waiting(&self) -> Vec<Option<Access>> {
        let access = |actor: &Actor| {
            let access = Access::of(&actor.call()?);
            Some(match actor.hears() {
                Some(node) => access.by_whoever_hears(node),
                None => access,
            })
        };
        self.actors.iter().map(access).collect()
    }

    fn faults(&self, process: usize) -> Vec<Fate> {
        // Whoever dies after reading has done no more than whoever died before, and a lost read is read again.
        if !self.actors[process].call().is_some_and(|call| call.is_write()) {
            return Vec::new();
        }
        let possible = [(Fate::Last, self.crashes), (Fate::Unanswered, self.lost_answers)];
        possible.into_iter().filter(|(_, left)| *left > 0).map(|(fate, _)| fate).collect()
    }

    fn step(&mut self, process: usize, fate: Fate) {
        let verdict = match fate {
            Fate::Made => Verdict::Proceed,
            Fate::Last => Verdict::DieAfter,
            Fate::Unanswered => Verdict::LoseReply,
        };
        self.steps.extend(self.actors[process].grant(verdict).map(|call| (process, call, fate)));
        if self.steps.len() > CALLS {
            self.wrong.push(format!("10: {CALLS} calls, and no end"));
        }
        self.go_on(process);
        match fate {
            Fate::Made => {}
            Fate::Unanswered => self.lost_answers = self.lost_answers.saturating_sub(1),
            Fate::Last => {
                self.crashes = self.crashes.saturating_sub(1);
                self.actors[process].die();
            }
        }
    }

    fn is_broken(&self) -> bool {
        !self.wrong.is_empty()
    }
}

impl fmt::Display for Execution {
    /// The end that was reached, without what differs between executions that end alike: revisions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let db = self.db();
        for kind in [Kind::Affinity, Kind::Block, Kind::Handle] {
            for stored in db.all(kind) {
                writeln!(f, "{} {:?}", stored.record.key(), stored.record)?;
            }
        }
        for actor in &self.actors {
            writeln!(f, "{}: {:?}", actor.operation, actor.ended)?;
        }
        self.wrong.iter().try_for_each(|wrong| writeln!(f, "{wrong}"))
    }
}

/// A connection for one actor.
fn connect(db: &Arc<Mutex<Db>>) -> (SimStore, Port) {
    let port = Port::default();
    let time = crate::clock::Time::default();
    (SimStore::new(Arc::clone(db), port.clone(), &time), port)
}
