//! The node agent's batcher: which requests go into which commit, as a pure step machine (architecture D2, D4, D5).
//!
//! ```text
//!   requests ─┐                                   ┌─► Commit, Read, List ──► store ─┐
//!   watches ──┼─► Agent::step(now, event) ─► effects ─► Reply                       │
//!   results ──┘                                   └─► Note (for the log)            │
//!      ▲────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The caller performs every effect and brings back its result as an event with the effect's ticket. Nothing here reads
//! a clock or a store. A claim is one commit like any other: affinity, handles, and the block with the first addresses
//! in it. Answers go out after the commit, so a success is durable, and a block answered from is confirmed.
//!
//! Handles are keyed by container, so jobs of one handle are done one after the other. Every commit changes one block;
//! a block has at most one commit in flight, and what arrives meanwhile is planned together when it is back. What a block
//! in hand can serve never waits for a claim or for a block of another node: those run beside.
//!
//! Datastore calls (algorithm §17 has Calico's):
//!
//! | request, IPv4 | atomic store | Kubernetes |
//! |---|---|---|
//! | ADD, a block in hand has room | 1 commit | handle and block: 2 writes |
//! | ADD, cold | 1 commit | affinity, handle, block, the pool read again, affinity: 4 writes, 1 read |
//! | 32 ADDs waiting | 1 commit | 32 handles side by side, 1 block |
//! | ADD again | 1 commit, of the block; after a restart 1 read of the handle before it | the same |
//! | ADD from a block of another node | 1 read, 1 commit | 1 read, 2 writes |
//! | ADD that takes an empty block from another node | 2 reads at once, 2 commits, then as cold | affinity, block, affinity: 3 writes, then as cold |
//! | DEL of what this process wrote | 1 commit | block, handle: 2 writes |
//! | DEL of what another process wrote | 1 read of the handle, then the same | the same |
//!
//! A conflict adds the reads of what it touched and a new commit. A pool that changed after the last sight of the blocks
//! adds one list of the blocks before a claim.

mod claim;
mod draft;
mod held;
mod index;
mod job;
mod outcome;
mod place;
mod place_any;
mod place_release;
mod place_requested;
mod reclaim;
mod runs;
mod select;
#[cfg(test)]
mod tests;
mod view;

pub use index::Entry;
pub use job::{
    BAD_REQUEST, Demand, INTERFACE, MOST_ADDRESSES, NOT_SERVED, Reply, RequestId, Surrender, TRY_AGAIN,
};
pub use view::View;

use crate::account::Account;
use crate::crossing::Crossing;
use crate::explain::{Explain, Shortage};
use crate::seen::Seen;
use api::attachment::ErrorReply;
use api::{Cidr, Handle, IpVersion, Owner};
use claim::Claim;
use datastore::follow::Change;
use datastore::{Check, CommitError, Key, Kind, Listing, ReadError, Scope, Stored, Version, Write};
use jiff::{SignedDuration, Timestamp};
use job::{Errand, Job, Lane, Stage, Task};
use reclaim::Reclaim;
use select::Selections;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

/// How long a request may wait for its answer: less than the plugin waits for the agent.
const PATIENCE: SignedDuration = SignedDuration::from_secs(8);

/// Requests that may be on their way at once; more are told to try again.
const QUEUE: usize = 2048;

/// Commits tried for one request before it is told to try again.
const ATTEMPTS: u32 = 100;

/// Number of an effect that has a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A followed scope changed.
    Changed(Kind, Change),
    /// Somebody wants addresses.
    Add(RequestId, Demand),
    /// Somebody gives addresses back.
    Del(RequestId, Surrender),
    /// A commit ended.
    Committed(Ticket, Result<Vec<Version>, CommitError>),
    /// A read ended.
    Read(Ticket, Result<Option<Stored>, ReadError>),
    /// A list ended.
    Listed(Ticket, Result<Listing, ReadError>),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Commit this and bring back [`Event::Committed`].
    Commit {
        /// Goes back with the result.
        ticket: Ticket,
        /// Checks.
        checks: Vec<Check>,
        /// Writes.
        writes: Vec<Write>,
    },
    /// Read this and bring back [`Event::Read`].
    Read {
        /// Goes back with the result.
        ticket: Ticket,
        /// What.
        key: Key,
    },
    /// List this and bring back [`Event::Listed`].
    List {
        /// Goes back with the result.
        ticket: Ticket,
        /// What.
        scope: Scope,
    },
    /// Answer a request.
    Reply {
        /// Which.
        request: RequestId,
        /// What.
        reply: Reply,
    },
    /// A decision, for the log.
    Note(Note),
}

/// A decision, in the past tense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A block became the node's.
    Claimed {
        /// The block.
        block: Cidr,
    },
    /// A block that nobody used was taken from its owner.
    Reclaimed {
        /// The block.
        block: Cidr,
        /// Who had it; `None`: nobody.
        owner: Option<Owner>,
    },
    /// Another owner was quicker.
    LostRace {
        /// The block.
        block: Cidr,
    },
    /// A block lies in another: what both have is given to nobody.
    Crossed {
        /// The smaller.
        block: Cidr,
        /// The one around it.
        other: Cidr,
    },
    /// An address was assigned.
    Assigned {
        /// To this handle.
        handle: String,
        /// The address.
        address: IpAddr,
        /// Of this block.
        block: Cidr,
        /// Which is not the node's own.
        borrowed: bool,
    },
    /// Everything of a handle was released.
    Released {
        /// The handle.
        handle: String,
    },
    /// What was considered for a request, one account per family asked for. Comes before its [`Effect::Reply`].
    Explained {
        /// The request.
        request: RequestId,
        /// The account.
        explain: Box<Explain>,
    },
    /// What a release came to. Comes before its [`Effect::Reply`].
    Accounted {
        /// The request.
        request: RequestId,
        /// The account.
        account: Box<Account>,
    },
    /// A request could not be served.
    Refused {
        /// Its handle.
        handle: String,
        /// What it was told.
        error: ErrorReply,
    },
    /// A commit met a record that had changed, and is planned again.
    Conflict {
        /// The record.
        key: Key,
    },
    /// The store did not answer, or not in time.
    Unanswered {
        /// What it said.
        reason: String,
    },
}

/// What is known of a handle record.
#[derive(Clone, Debug)]
enum Known {
    /// There is none.
    Absent,
    /// As read or written.
    Here(Seen<Handle>),
    /// A write of it may or may not have happened.
    Unsure,
    /// It is being read: only the answer to this says how it is. What was asked for earlier may be older than what was
    /// written or read since.
    Reading(Ticket),
}

/// The agent's state.
#[derive(Debug)]
pub struct Agent {
    node: String,
    view: View,
    jobs: BTreeMap<u64, Job>,
    /// Jobs by handle, oldest first: only the first of each is worked on.
    turns: BTreeMap<String, VecDeque<u64>>,
    handles: BTreeMap<String, Known>,
    /// Handles that were left when those that nobody holds anything with were last let go.
    swept: usize,
    /// Answers of the store that were missing since the last that came.
    silent: u32,
    lanes: BTreeMap<Cidr, Lane>,
    claim: Option<Claim>,
    /// Blocks that another owner got while this node wanted them.
    lost_races: BTreeSet<Cidr>,
    reclaim: Option<Reclaim>,
    /// Blocks that could not be taken from their owners.
    kept: BTreeSet<Cidr>,
    /// No own block is given up before this: the last time it failed.
    rest_until: Option<Timestamp>,
    /// Pools that leave this node out, and the view's generation that this is of.
    deselecting: Option<(u64, Vec<Cidr>)>,
    errands: BTreeMap<Ticket, Errand>,
    /// A fresh list of blocks is on its way.
    indexing: bool,
    selections: Selections,
    next: u64,
    /// Of the step that is under way.
    now: Timestamp,
    /// Something changed that another round of planning may use.
    again: bool,
    effects: Vec<Effect>,
}

impl Agent {
    /// The agent of `node`, knowing nothing yet.
    ///
    /// It must be fed [`Event::Changed`] of the scopes that [`Agent::scopes`] names before it decides anything.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            view: View::new(node),
            jobs: BTreeMap::new(),
            turns: BTreeMap::new(),
            handles: BTreeMap::new(),
            swept: 0,
            silent: 0,
            lanes: BTreeMap::new(),
            claim: None,
            lost_races: BTreeSet::new(),
            reclaim: None,
            kept: BTreeSet::new(),
            rest_until: None,
            deselecting: None,
            errands: BTreeMap::new(),
            indexing: false,
            selections: Selections::default(),
            next: 0,
            now: Timestamp::UNIX_EPOCH,
            again: false,
            effects: Vec::new(),
        }
    }

    /// What has to be followed for this agent.
    #[must_use]
    pub fn scopes(&self) -> [Scope; 7] {
        [
            Scope::All(Kind::Pool),
            Scope::All(Kind::Block),
            Scope::All(Kind::Config),
            Scope::All(Kind::Reservation),
            Scope::All(Kind::Node),
            Scope::All(Kind::ClusterInformation),
            Scope::AffinitiesOf(self.view.owner().clone()),
        ]
    }

    /// What it knows.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Requests on their way.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.jobs.len()
    }

    /// When [`Event::Tick`] is due at the latest; `None` while nothing waits but for commits.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.jobs.values().filter(|job| job.can_be_late()).map(|job| job.deadline).min()
    }

    /// Takes one event in and answers what is to be done.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        self.steps(now, [event])
    }

    /// Takes several events in and plans once for all of them.
    pub fn steps(&mut self, now: Timestamp, events: impl IntoIterator<Item = Event>) -> Vec<Effect> {
        if now < self.now {
            // The clock was set back: nobody waits longer for that.
            for job in self.jobs.values_mut() {
                job.deadline = job.deadline.min(late(now));
            }
        }
        self.now = now;
        for event in events {
            match event {
                Event::Changed(kind, change) => self.view.fold(kind, change),
                Event::Add(request, demand) => self.add(now, request, demand),
                Event::Del(request, surrender) => self.del(now, Some(request), surrender),
                Event::Committed(ticket, result) => self.committed(now, ticket, result),
                Event::Read(ticket, result) => self.read(ticket, result),
                Event::Listed(ticket, result) => self.listed(ticket, result),
                Event::Tick => {}
            }
        }
        for Crossing { block, other } in self.view.hold_back_shared() {
            self.note(Note::Crossed { block, other });
        }
        self.plan(now);
        std::mem::take(&mut self.effects)
    }

    fn add(&mut self, now: Timestamp, request: RequestId, demand: Demand) {
        let count = demand.versions.len();
        if count > MOST_ADDRESSES {
            let message =
                format!("{count} addresses were asked for at once; ask for at most {MOST_ADDRESSES}");
            return self.turn_away(request, &Task::Add(demand), BAD_REQUEST, message);
        }
        self.enter(Job::new(Some(request), Task::Add(demand), late(now)));
    }

    /// A DEL ends an ADD of the same container that has written nothing yet, and waits for one that has.
    fn del(&mut self, now: Timestamp, request: Option<RequestId>, surrender: Surrender) {
        let handle = surrender.handle.clone();
        let ahead: Vec<u64> = self.turns.get(&handle).into_iter().flatten().copied().collect();
        for id in ahead {
            let idle = self.jobs.get(&id).is_some_and(|job| {
                matches!(job.task, Task::Add(_))
                    && job.stage != Stage::Flying
                    && !job.tainted
                    && job.got.is_empty()
            });
            if idle && request.is_some() {
                self.fail(id, TRY_AGAIN, "a DEL for the same container came in".to_owned());
            }
        }
        self.enter(Job::new(request, Task::Del(surrender), late(now)));
    }

    fn enter(&mut self, mut job: Job) {
        if let Some(request) = job.request.filter(|_| self.jobs.len() >= QUEUE) {
            let message = format!(
                "node {} has {QUEUE} requests for addresses waiting; try again when some are done",
                self.node
            );
            return self.turn_away(request, &job.task, TRY_AGAIN, message);
        }
        let id = self.number();
        job.since = id;
        let turn = self.turns.entry(job.turn.clone()).or_default();
        if job.request.is_some() {
            turn.push_back(id);
        } else {
            // What a request left behind goes back before a later request can rely on it.
            turn.push_front(id);
        }
        self.jobs.insert(id, job);
    }

    /// Answers a request that is not even begun.
    fn turn_away(&mut self, request: RequestId, task: &Task, code: u32, message: String) {
        if let Task::Add(demand) = task {
            let versions: BTreeSet<IpVersion> = demand.versions.iter().copied().collect();
            for version in versions {
                let wanted = demand.versions.iter().filter(|wanted| **wanted == version).count();
                let mut explain = Explain::new(self.node.clone(), version, wanted);
                explain.shortage = Some(Shortage::refused(&message));
                self.note(Note::Explained { request, explain: Box::new(explain) });
            }
        }
        let reply = Reply::Failed(ErrorReply { code, message, details: String::new() });
        self.effects.push(Effect::Reply { request, reply });
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn ticket(&mut self, errand: Errand) -> Ticket {
        let ticket = Ticket(self.number());
        self.errands.insert(ticket, errand);
        ticket
    }

    fn note(&mut self, note: Note) {
        self.effects.push(Effect::Note(note));
    }

    /// Answers whoever waits for a job; the job itself may go on.
    fn answer(&mut self, id: u64, reply: Reply) {
        if let Some(request) = self.jobs.get_mut(&id).and_then(|job| job.request.take()) {
            self.effects.push(Effect::Reply { request, reply });
        }
    }

    /// Ends a job with an answer.
    fn end(&mut self, id: u64, reply: Reply) {
        self.answer(id, reply);
        let Some(job) = self.jobs.remove(&id) else { return };
        if let Some(turn) = self.turns.get_mut(&job.turn) {
            turn.retain(|other| *other != id);
            if turn.is_empty() {
                self.turns.remove(&job.turn);
                if !matches!(self.handles.get(&job.handle), Some(Known::Here(_))) {
                    self.handles.remove(&job.handle);
                }
            }
        }
        self.again = true;
    }

    /// Ends a job that cannot be served. What it may have left behind is released by a job of the agent's own.
    fn fail(&mut self, id: u64, code: u32, message: String) {
        self.refuse(id, ErrorReply { code, message, details: String::new() });
    }

    fn refuse(&mut self, id: u64, error: ErrorReply) {
        let Some(job) = self.jobs.get(&id).cloned() else { return };
        self.account_for(&job);
        self.explain_refusal(&job, &error);
        let (handle, spare) = (job.handle.clone(), job.spare.clone());
        let gained = job.got.iter().chain(&job.pledged).any(|taken| !spare.contains(&taken.address));
        let leaves = match &job.task {
            Task::Add(demand) if job.tainted || gained => {
                let interface = demand.attributes.get(INTERFACE).cloned();
                Some(Surrender { handle: handle.clone(), interface, legacy_handle: None })
            }
            _ => None,
        };
        self.note(Note::Refused { handle, error: error.clone() });
        self.end(id, Reply::Failed(error));
        if let Some(surrender) = leaves {
            self.enter(Job { spare, ..Job::new(None, Task::Del(surrender), late(self.now)) });
        }
    }
}

/// When a request that came `now` is told to try again.
fn late(now: Timestamp) -> Timestamp {
    now.checked_add(PATIENCE).unwrap_or(Timestamp::MAX)
}
