//! Node agents: the step machine of `ipam`, its effects as calls of the simulated store, its watches with a lag.

use crate::client::queue;
use crate::db::Db;
use crate::faults::{Fault, Operation};
use crate::invariants::Leave;
use crate::task::{Outcome, Purpose};
use crate::world::World;
use datastore::follow::Change;
use datastore::{Datastore as _, Key, Listing, ReadError, Scope};
use ipam::Clock as _;
use ipam::agent::{Agent, Demand, Effect, Event, Note, Reply, RequestId, Surrender, TRY_AGAIN};
use std::collections::BTreeMap;

/// How far an agent has followed one scope.
#[derive(Clone, Debug)]
enum At {
    /// It has to list.
    Unlisted,
    /// It has listed and not heard of it yet: the list, and where the history goes on.
    Listed(Listing, usize),
    /// It has heard of everything before this place of the history.
    Following(usize),
}

#[derive(Clone, Debug)]
struct Feed {
    scope: Scope,
    at: At,
    /// What it told last.
    last: Option<Change>,
    /// Revision up to which it had told everything when it was last lost.
    known: u64,
}

impl Feed {
    /// Revision up to which it has told everything.
    fn known(&self, db: &Db) -> u64 {
        match self.at {
            At::Following(next) => match db.history(self.scope.kind()).get(next) {
                Some(change) => change.revision.saturating_sub(1),
                None => db.revision().0,
            },
            At::Unlisted | At::Listed(..) => self.known,
        }
    }

    /// Whether it has told all that there is.
    fn is_told(&self, db: &Db) -> bool {
        match self.at {
            At::Following(next) => next >= db.history(self.scope.kind()).len(),
            At::Unlisted | At::Listed(..) => false,
        }
    }
}

/// What a request was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) attachment: usize,
    /// The attachment's epoch, for an ADD; `None` for a DEL.
    pub(crate) epoch: Option<u32>,
}

/// A node's agent with what it waits for.
#[derive(Debug)]
pub struct Host {
    agent: Agent,
    feeds: Vec<Feed>,
    /// Results that it has not been told yet.
    inbox: Vec<Event>,
    asked: BTreeMap<RequestId, Asked>,
    requests: u64,
    /// Revision up to which it knew everything when it last had nothing to do: what it has decided since rests on no less.
    idle_since: u64,
    /// It answered something since it was last judged with nothing left to do.
    answered: bool,
    /// The queue of releases, if the node keeps one.
    pub(crate) queue: Option<queue::Desk>,
}

impl Host {
    /// An agent that knows nothing yet but the log of its queue, if it has one.
    pub fn new(node: &str, log: Option<Vec<u8>>) -> Self {
        let agent = Agent::new(node);
        let feeds = agent
            .scopes()
            .into_iter()
            .map(|scope| Feed { scope, at: At::Unlisted, last: None, known: 0 })
            .collect();
        let queue = log.map(queue::Desk::recover);
        Self {
            agent,
            feeds,
            inbox: Vec::new(),
            asked: BTreeMap::new(),
            requests: 0,
            idle_since: 0,
            answered: false,
            queue,
        }
    }
}

impl Host {
    /// Which scopes its agent has not heard all of.
    pub(crate) fn unheard(&self, node: &str, db: &Db) -> Option<String> {
        let scopes: Vec<String> =
            self.feeds.iter().filter(|feed| !feed.is_told(db)).map(|feed| feed.scope.to_string()).collect();
        (!scopes.is_empty()).then(|| format!("{node} has yet to hear of {}", scopes.join(", ")))
    }

    /// What it waits for, in words; `None`: nothing.
    pub(crate) fn restless(&self, node: &str) -> Option<String> {
        let queue = self.queue.as_ref().filter(|queue| !queue.is_quiet());
        match (self.inbox.len(), self.asked.len(), self.agent.waiting(), queue) {
            (0, 0, 0, None) => None,
            (inbox, asked, waiting, queue) => {
                Some(format!("{node} has {inbox} to hear, {asked} to answer, {waiting} at work, {queue:?}"))
            }
        }
    }
}

impl World {
    /// Hands an ADD to a node's agent.
    pub(crate) fn demand(&mut self, node: usize, attachment: usize, epoch: u32, demand: Demand) {
        let asked = Asked { attachment, epoch: Some(epoch) };
        if !self.queue_before_add(node, asked, &demand) {
            self.demand_now(node, asked, demand);
        }
    }

    /// The same, when nothing is queued before it.
    pub(crate) fn demand_now(&mut self, node: usize, asked: Asked, demand: Demand) {
        if let Some(id) = self.request(node, asked) {
            self.tell(node, vec![Event::Add(id, demand)]);
        }
    }

    /// Hands a DEL to a node's agent.
    pub(crate) fn surrender(&mut self, node: usize, attachment: usize, surrender: Surrender) {
        if let Some(id) = self.request(node, Asked { attachment, epoch: None }) {
            self.tell(node, vec![Event::Del(id, surrender)]);
        }
    }

    fn request(&mut self, node: usize, asked: Asked) -> Option<RequestId> {
        let host = self.nodes[node].host.as_mut()?;
        host.requests += 1;
        let id = RequestId(host.requests);
        host.asked.insert(id, asked);
        Some(id)
    }

    /// Takes events to an agent, and carries out what it wants.
    fn tell(&mut self, node: usize, events: Vec<Event>) {
        let now = self.nodes[node].clock.now();
        let Some(host) = &mut self.nodes[node].host else { return };
        let db = self.db.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let knows = host.feeds.iter().map(|feed| feed.known(&db)).min().unwrap_or(0);
        drop(db);
        let effects = host.agent.steps(now, events);
        if host.agent.waiting() == 0 {
            host.idle_since = knows;
        }
        self.see_what_is_left(node, &effects);
        let answers = effects.iter().any(|effect| matches!(effect, Effect::Reply { .. }));
        for effect in effects {
            self.carry_out(node, effect, knows);
        }
        let Some(host) = &mut self.nodes[node].host else { return };
        host.answered |= answers;
        if host.answered && host.agent.waiting() == 0 && host.asked.is_empty() && host.inbox.is_empty() {
            host.answered = false;
            self.node_holds_what_it_was_told(node);
        }
    }

    /// A refusal that nobody is told of is the agent's own release, which it gives up; one that comes without its note is an
    /// ADD whose commit may still be made.
    fn see_what_is_left(&mut self, node: usize, effects: &[Effect]) {
        let mut noted: Option<&str> = None;
        for effect in effects {
            let before = noted.take();
            match effect {
                Effect::Reply { request, reply: Reply::Failed(_) } => {
                    let host = self.nodes[node].host.as_ref();
                    let Some(asked) = host.and_then(|host| host.asked.get(request)) else { continue };
                    let index = asked.attachment;
                    if before != Some(self.attachments[index].handle.as_str()) {
                        self.attachments[index].clean = false;
                        before.into_iter().for_each(|handle| self.spoil_handle(node, handle));
                    }
                    continue;
                }
                Effect::Note(Note::Refused { handle, .. }) => noted = Some(handle),
                _ => {}
            }
            before.into_iter().for_each(|handle| self.spoil_handle(node, handle));
        }
        noted.into_iter().for_each(|handle| self.spoil_handle(node, handle));
    }

    /// `knows`: the revision up to which its agent knew everything when it decided on this.
    fn carry_out(&mut self, node: usize, effect: Effect, knows: u64) {
        let purpose = Purpose::Effect { node };
        match effect {
            Effect::Commit { ticket, checks, writes } => {
                let name = self.nodes[node].name.as_str();
                let owners = writes.iter().filter_map(|write| match write.key() {
                    Key::Affinity(owner, _) => Some(owner.name == name),
                    _ => None,
                });
                let operation = match owners.min() {
                    Some(true) => Operation::AgentClaim,
                    Some(false) => Operation::AgentReclaim,
                    None => Operation::AgentBatch,
                };
                // A claim is decided on some reads before it is made.
                let idle_since = self.nodes[node].host.as_ref().map_or(0, |host| host.idle_since);
                let since = if operation == Operation::AgentBatch { knows } else { knows.min(idle_since) };
                self.begin(operation, Some(node), purpose, Leave::Unpromised, |store, _| async move {
                    Outcome::Committed(ticket, store.commit(&checks, &writes).await)
                });
                if let Some(task) = self.tasks.last_mut() {
                    task.since = since;
                }
            }
            Effect::Read { ticket, key } => {
                self.begin(
                    Operation::AgentRead,
                    Some(node),
                    purpose,
                    Leave::Nothing,
                    |store, _| async move { Outcome::Read(ticket, store.get(&key).await) },
                );
            }
            Effect::List { ticket, scope } => {
                self.begin(
                    Operation::AgentRead,
                    Some(node),
                    purpose,
                    Leave::Nothing,
                    |store, _| async move { Outcome::Listed(ticket, store.list(&scope).await) },
                );
            }
            Effect::Reply { request, reply } => self.replied(node, request, reply),
            Effect::Note(note) => {
                let step = self.step;
                self.trace.line(|| format!("{step:>5}     node-{node} notes {note:?}"));
            }
        }
    }

    fn replied(&mut self, node: usize, request: RequestId, reply: Reply) {
        let Some(host) = &mut self.nodes[node].host else { return };
        let Some(asked) = host.asked.remove(&request) else {
            self.wrong(format!("9: node-{node} answered request {} twice", request.0));
            return;
        };
        match (asked.epoch, reply) {
            (Some(epoch), Reply::Added(taken)) => {
                let given = taken.iter().map(|taken| (taken.address, taken.sequence)).collect();
                self.added(asked.attachment, epoch, Ok(given));
            }
            (Some(epoch), Reply::Failed(error)) => self.added(asked.attachment, epoch, Err(error.message)),
            (None, Reply::Deleted) => self.deleted(asked.attachment, true, &Ok(())),
            // Not where an ADD came after it: the entry would name what that is given.
            (None, Reply::Failed(error))
                if error.code == TRY_AGAIN
                    && self.attachments[asked.attachment].adds == 0
                    && self.queue_del(node, asked) => {}
            (None, Reply::Failed(error)) => self.deleted(asked.attachment, true, &Err(error.message)),
            (_, reply) => self.wrong(format!("9: node-{node} answered {reply:?} to another question")),
        }
    }

    /// A call of an agent's ended; it hears of that later.
    pub(crate) fn effect_ended(&mut self, node: usize, outcome: Outcome) {
        if let Outcome::Replayed(number, outcome) = outcome {
            self.replayed(node, number, outcome);
            return;
        }
        let Some(host) = &mut self.nodes[node].host else { return };
        host.inbox.push(match outcome {
            Outcome::Committed(ticket, result) => Event::Committed(ticket, result),
            Outcome::Read(ticket, result) => Event::Read(ticket, result),
            Outcome::Listed(ticket, result) => Event::Listed(ticket, result),
            _ => return,
        });
    }

    /// An agent hears of a result or a change, or notices that time passed. False: there is nothing to hear of.
    pub(crate) fn tell_somebody(&mut self) -> bool {
        if self.rng.chance(1, 4) && self.tell_collector() {
            return true;
        }
        let count = self.nodes.len();
        let start = self.rng.below(count);
        (0..count).map(|offset| (start + offset) % count).any(|node| self.tell_node(node))
            || self.tell_collector()
    }

    fn tell_node(&mut self, node: usize) -> bool {
        if self.setting.queues && self.rng.chance(1, 4) && self.work_on_queue(node) {
            return true;
        }
        self.tell_agent(node) || (self.setting.queues && self.work_on_queue(node))
    }

    fn tell_agent(&mut self, node: usize) -> bool {
        let roll = self.rng.below(16);
        let Some(host) = &mut self.nodes[node].host else { return false };
        if roll == 0 && (!host.asked.is_empty() || host.agent.waiting() > 0) {
            self.tell(node, vec![Event::Tick]);
            return true;
        }
        if !host.inbox.is_empty() && roll < 9 {
            let place = self.rng.below(host.inbox.len());
            let event = host.inbox.swap_remove(place);
            self.trace.mix(&[30, u64::try_from(node).unwrap_or(0)]);
            self.tell(node, vec![event]);
            return true;
        }
        let most = if roll.is_multiple_of(4) { 8 } else { 1 };
        if let Some(events) = self.changes(node, most) {
            self.trace.mix(&[31, u64::try_from(node).unwrap_or(0), u64::try_from(events.len()).unwrap_or(0)]);
            let step = self.step;
            self.trace.line(|| format!("{step:>5} node-{node} hears of {}", heard(&events)));
            self.tell(node, events);
            return true;
        }
        let Some(host) = &mut self.nodes[node].host else { return false };
        let Some(event) = host.inbox.pop() else { return false };
        self.tell(node, vec![event]);
        true
    }

    /// What one feed of a node has to tell next; nothing, where it only asked for a list.
    fn changes(&mut self, node: usize, most: usize) -> Option<Vec<Event>> {
        let host = self.nodes[node].host.as_mut()?;
        let db = self.db.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = host.feeds.len();
        let start = self.rng.below(count);
        for offset in 0..count {
            let feed = &mut host.feeds[(start + offset) % count];
            let kind = feed.scope.kind();
            let mut events = Vec::new();
            match &mut feed.at {
                At::Unlisted => {
                    // What is listed now is told later.
                    feed.at = At::Listed(db.list(&feed.scope), db.history(kind).len());
                    return Some(Vec::new());
                }
                At::Listed(listing, next) => {
                    let change = Change::Reset(std::mem::take(listing));
                    feed.at = At::Following(*next);
                    feed.last = None;
                    events.push(Event::Changed(kind, change));
                }
                At::Following(next) => {
                    let history = db.history(kind);
                    while let Some(change) = history.get(*next) {
                        *next += 1;
                        if !feed.scope.holds(&change.key) {
                            continue;
                        }
                        let change = match change.event() {
                            datastore::Event::Put(stored) => Change::Put(stored),
                            datastore::Event::Deleted(key, at) => Change::Deleted(key, at),
                            datastore::Event::Unreadable(key, at) => Change::Unreadable(key, at),
                            datastore::Event::Progress(at) => Change::Progress(at),
                        };
                        feed.last = Some(change.clone());
                        events.push(Event::Changed(kind, change));
                        if events.len() >= most {
                            break;
                        }
                    }
                }
            }
            if !events.is_empty() {
                return Some(events);
            }
        }
        None
    }

    /// A watch of some agent is lost or repeats itself.
    pub(crate) fn disturb_watch(&mut self, fault: Fault) {
        let node = self.some_node();
        let feed = self.rng.below(7);
        let Some(host) = &mut self.nodes[node].host else { return };
        let Some(feed) = host.feeds.get_mut(feed) else { return };
        let kind = feed.scope.kind();
        let event = match (fault, &feed.last) {
            (Fault::WatchRepeats, Some(last)) => Event::Changed(kind, last.clone()),
            (Fault::WatchRepeats, None) => return,
            _ => {
                feed.known = feed.known(&self.db.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
                feed.at = At::Unlisted;
                let what = feed.scope.to_string();
                let reason = "simulated loss".to_owned();
                Event::Changed(kind, Change::Lost(ReadError::Unavailable { what, reason }))
            }
        };
        self.met(fault, Some(node));
        self.tell(node, vec![event]);
    }

    /// A node's agent ends with all that it has under way; another one starts.
    pub(crate) fn restart_agent(&mut self, node: usize) {
        let purpose = Purpose::Effect { node };
        self.spoil_node(node);
        self.tasks.retain(|task| task.purpose != purpose);
        let name = self.nodes[node].name.clone();
        let torn = self.rng.below(1_000);
        let Some(mut old) = self.nodes[node].host.take() else { return };
        let (log, waiting) = match old.queue.take().map(|queue| queue.crash(torn)) {
            Some((log, waiting)) => (Some(log), waiting),
            None => (None, Vec::new()),
        };
        self.nodes[node].host = Some(Host::new(&name, log));
        self.trace.mix(&[32, u64::try_from(node).unwrap_or(0)]);
        let step = self.step;
        self.trace.line(|| format!("{step:>5} node-{node} has a new agent"));
        for asked in old.asked.into_values().chain(waiting) {
            self.in_doubt(asked.attachment, asked.epoch.is_none());
        }
    }

    /// Whether no agent has anything to hear of or to answer.
    pub(crate) fn agents_are_quiet(&self) -> bool {
        let db = self.db();
        self.nodes.iter().filter_map(|node| node.host.as_ref()).all(|host| {
            host.queue.as_ref().is_none_or(queue::Desk::is_quiet)
                && host.inbox.is_empty()
                && host.asked.is_empty()
                && host.agent.waiting() == 0
                && host.feeds.iter().all(|feed| feed.is_told(&db))
        })
    }
}

fn heard(events: &[Event]) -> String {
    let each = events.iter().map(|event| match event {
        Event::Changed(_, Change::Put(stored)) => {
            format!("{} @{}", stored.record.key(), stored.version.revision.0)
        }
        Event::Changed(_, Change::Deleted(key, at)) => format!("{key} gone @{}", at.0),
        Event::Changed(_, Change::Unreadable(key, at)) => format!("{key} unreadable @{}", at.0),
        Event::Changed(kind, Change::Reset(listing)) => format!("all {kind} @{}", listing.revision.0),
        _ => "something".to_owned(),
    });
    let each = each.collect::<Vec<_>>();
    if each.is_empty() { "nothing yet: it lists".to_owned() } else { each.join(", ") }
}
