//! A node's queue of releases: the step machine of `ipam` over a log that outlives the agent, torn where it dies.
//!
//! A DEL that the agent cannot serve goes into the queue, whose word counts as the answer; an ADD asks the queue first.

use crate::client::agent::Asked;
use crate::client::runtime;
use crate::faults::{Fault, Operation};
use crate::invariants::Leave;
use crate::task::{Outcome, Purpose};
use crate::world::World;
use api::attachment::Attachment;
use datastore::{Kind, Record};
use ipam::Clock as _;
use ipam::agent::{Demand, INTERFACE, RequestId};
use ipam::block;
use ipam::release_queue::{Effect, Entry, Event, Held, Number, ReleaseQueue, Replayed, Verdict, log, replay};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

/// What a request to the queue is about.
#[derive(Debug)]
enum Request {
    Add(Asked, Box<Demand>),
    Del(Asked),
}

/// A queue, its log, and what waits between them.
#[derive(Debug)]
pub(crate) struct Desk {
    queue: ReleaseQueue,
    log: Vec<u8>,
    /// Writes of the log that are not done yet, in order.
    writes: VecDeque<Effect>,
    heard: Vec<Event>,
    requests: BTreeMap<RequestId, Request>,
    next: u64,
    /// Releases on their way.
    owed: BTreeMap<Number, Entry>,
    /// DELs that were queued while no ADD of theirs was under way: of which handle, and when.
    alone: BTreeSet<(String, Timestamp)>,
}

impl Desk {
    /// The queue that a log holds.
    pub(crate) fn recover(log: Vec<u8>) -> Self {
        let (queue, effects) = ReleaseQueue::recover(&log);
        let writes = effects.into_iter().filter(Effect::is_of_log).collect();
        let (owed, alone) = (BTreeMap::new(), BTreeSet::new());
        Self { queue, log, writes, heard: Vec::new(), requests: BTreeMap::new(), next: 0, owed, alone }
    }

    /// Whether nothing is owed and nothing is on its way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.writes.is_empty() && self.heard.is_empty() && self.requests.is_empty()
    }

    /// What the log holds when the process dies now: the write under way may be there in part. Also who waits.
    pub(crate) fn crash(mut self, torn: usize) -> (Vec<u8>, Vec<Asked>) {
        if let Some(write) = self.writes.front() {
            let bytes = bytes(write);
            if !matches!(write, Effect::Rewrite(_)) {
                let there = torn % (bytes.len() + 1);
                self.log.extend_from_slice(bytes.get(..there).unwrap_or_default());
            }
        }
        let waiting = self.requests.into_values().map(|request| match request {
            Request::Add(asked, _) | Request::Del(asked) => asked,
        });
        (self.log, waiting.collect())
    }

    fn request(&mut self, request: Request) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        self.requests.insert(id, request);
        id
    }
}

fn bytes(write: &Effect) -> Vec<u8> {
    match write {
        Effect::Append(number, entry) => log::append(*number, entry),
        Effect::Remove(number) => log::remove(*number),
        Effect::Rewrite(entries) => log::whole(entries),
        _ => Vec::new(),
    }
}

fn attachment(of: &runtime::Attachment) -> Attachment {
    let handle = &of.handle;
    let (network, container) = handle.split_once('.').unwrap_or(("net", handle));
    let interface = of.interface().to_owned();
    Attachment { network: network.to_owned(), container: container.to_owned(), interface }
}

impl World {
    fn queue_of(&mut self, node: usize) -> Option<&mut Desk> {
        self.nodes[node].host.as_mut()?.queue.as_mut()
    }

    /// An ADD comes in. False: the node has no queue.
    pub(crate) fn queue_before_add(&mut self, node: usize, asked: Asked, demand: &Demand) -> bool {
        let attachment = attachment(&self.attachments[asked.attachment]);
        let Some(desk) = self.queue_of(node) else { return false };
        let id = desk.request(Request::Add(asked, Box::new(demand.clone())));
        self.tell_queue(node, Event::Add(id, attachment));
        true
    }

    /// A DEL that the agent could not serve. False: the node has no queue.
    pub(crate) fn queue_del(&mut self, node: usize, asked: Asked) -> bool {
        let at = self.nodes[node].clock.now();
        let handle = self.attachments[asked.attachment].handle.clone();
        let given = self.attachments[asked.attachment].given.clone();
        let attachment = attachment(&self.attachments[asked.attachment]);
        // An ADD that is under way gives what is held another stamp.
        let alone = self.attachments[asked.attachment].adds == 0;
        let given = given.filter(|_| alone);
        let Some(desk) = self.queue_of(node) else { return false };
        if alone {
            desk.alone.insert((handle.clone(), at));
        }
        let held = given.map(|given: Vec<(IpAddr, u64)>| {
            given.into_iter().map(|(address, sequence)| Held { address, sequence }).collect()
        });
        let entry = Entry { attachment, handle, held, cluster: None, at };
        let id = desk.request(Request::Del(asked));
        self.tell_queue(node, Event::Del(id, entry));
        true
    }

    fn tell_queue(&mut self, node: usize, event: Event) {
        let now = self.nodes[node].clock.now();
        let Some(desk) = self.queue_of(node) else { return };
        for effect in desk.queue.step(now, event) {
            if effect.is_of_log() {
                if let Some(desk) = self.queue_of(node) {
                    desk.writes.push_back(effect);
                }
                continue;
            }
            match effect {
                Effect::Release(number, entry) => self.replay(node, number, entry),
                Effect::Reply(request, verdict) => self.queue_replied(node, request, verdict),
                Effect::Note(note) => {
                    let step = self.step;
                    self.trace.line(|| format!("{step:>5}     the queue of node-{node} notes {note:?}"));
                }
                _ => {}
            }
        }
    }

    fn replay(&mut self, node: usize, number: Number, entry: Entry) {
        let leave = match &entry.held {
            Some(held) => Leave::Named(
                held.iter().map(|held| (held.address, entry.handle.clone(), held.sequence)).collect(),
            ),
            None => Leave::Handle(entry.handle.clone()),
        };
        if let Some(desk) = self.queue_of(node) {
            desk.owed.insert(number, entry.clone());
        }
        let purpose = Purpose::Effect { node };
        self.begin(Operation::QueueRelease, Some(node), purpose, leave, move |store, clock| async move {
            Outcome::Replayed(number, replay(&store, &clock, &entry).await)
        });
    }

    fn queue_replied(&mut self, node: usize, request: RequestId, verdict: Verdict) {
        let Some(request) = self.queue_of(node).and_then(|desk| desk.requests.remove(&request)) else {
            self.wrong(format!("9: the queue of node-{node} answered request {} twice", request.0));
            return;
        };
        match (request, verdict) {
            (Request::Add(asked, demand), Verdict::Proceed) => self.demand_now(node, asked, *demand),
            (Request::Add(asked, _), Verdict::TryAgain { reason }) => {
                self.added(asked.attachment, asked.epoch.unwrap_or_default(), Err(reason));
            }
            (Request::Del(asked), Verdict::Accepted) => self.queued(asked.attachment),
            (Request::Del(asked), Verdict::TryAgain { reason }) => {
                self.deleted(asked.attachment, true, &Err(reason));
            }
            (_, verdict) => self.wrong(format!("9: the queue answered {verdict:?} to another question")),
        }
    }

    /// A replay ended; the queue hears of it later.
    pub(crate) fn replayed(&mut self, node: usize, number: Number, outcome: Replayed) {
        let Some(desk) = self.queue_of(node) else { return };
        let owed = desk.owed.remove(&number).filter(|_| outcome == Replayed::Done);
        let owed = owed.filter(|entry| desk.alone.contains(&(entry.handle.clone(), entry.at)));
        desk.heard.push(Event::Released(number, outcome));
        let Some(entry) = owed else { return };
        // A commit that takes effect late may bring back what a release did not find.
        if self.setting.call_faults.contains(&Fault::Late) || self.judge.spoilt.contains(&entry.handle) {
            return;
        }
        let named = entry.held.iter().flatten().find(|held| self.holds(&entry, held.address));
        if let Some(Held { address, .. }) = named {
            self.wrong(format!("9: the release of {address} is done, and {} holds it", entry.handle));
        }
    }

    /// Whether the interface of an entry holds an address: another of the container may have been given it since.
    fn holds(&self, entry: &Entry, address: IpAddr) -> bool {
        self.db().all(Kind::Block).any(|stored| match &stored.record {
            Record::Block(block) => {
                let held = block::held_by(block, &entry.handle);
                let is_held =
                    held.filter_map(|ordinal| block.cidr.address(ordinal)).any(|held| held == address);
                let interface =
                    block::attribute_of(block, address).and_then(|held| held.secondary.get(INTERFACE));
                is_held && interface.is_none_or(|interface| *interface == entry.attachment.interface)
            }
            _ => false,
        })
    }

    /// The queue's turn: its disk writes, it hears of something, or time passes. False: nothing to do.
    pub(crate) fn work_on_queue(&mut self, node: usize) -> bool {
        let fails = self.has(Fault::LogFails) && self.rng.chance(1, 8);
        let written = fails && self.rng.chance(1, 2);
        let now = self.nodes[node].clock.now();
        let reachable = self.rng.chance(1, 16);
        let disk_first = self.rng.chance(1, 2);
        let Some(desk) = self.queue_of(node) else { return false };
        if (disk_first || desk.heard.is_empty())
            && let Some(write) = desk.writes.pop_front()
        {
            if !fails || written {
                let bytes = bytes(&write);
                if matches!(write, Effect::Rewrite(_)) {
                    desk.log = bytes;
                } else {
                    desk.log.extend_from_slice(&bytes);
                }
            }
            let result = if fails { Err("simulated disk".to_owned()) } else { Ok(()) };
            let event = match write {
                Effect::Append(number, _) => Event::Logged(number, result),
                Effect::Remove(number) => Event::Unlogged(number, result),
                _ => Event::Rewritten(result),
            };
            if fails {
                self.met(Fault::LogFails, Some(node));
            }
            self.trace.mix(&[50, u64::try_from(node).unwrap_or(0)]);
            self.tell_queue(node, event);
            return true;
        }
        if !desk.heard.is_empty() {
            let event = desk.heard.swap_remove(0);
            self.tell_queue(node, event);
            return true;
        }
        if reachable && !desk.queue.is_empty() {
            self.tell_queue(node, Event::Reachable);
            return true;
        }
        if desk.queue.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.tell_queue(node, Event::Tick);
            return true;
        }
        false
    }
}
