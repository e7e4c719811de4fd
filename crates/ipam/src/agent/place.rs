//! Planning: which waiting job goes into which block, and what has to be read or claimed for the others.

use super::draft::{Draft, Drawn};
use super::job::{Demand, Errand, Flight, Job, Lane, NOT_SERVED, Reply, Stage, TRY_AGAIN, Task};
use super::{ATTEMPTS, Agent, Effect, Known, Note};
use crate::block;
use crate::explain::{Explain, Shortage};
use crate::mistake::{Mistake, made};
use crate::seen::Seen;
use api::attachment::ErrorReply;
use api::{Cidr, Handle, IpVersion, Pool};
use datastore::{Check, Key, Record, Write};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Rounds of one plan: each ends something or starts something, so few are needed.
const ROUNDS: usize = 64;

/// Blocks worked on before those that nothing is under way for are let go, however many requests wait.
const BORROWED: usize = 256;

/// Handles that may come to be known before those that are not needed are let go.
const SWEEP: usize = 64;

/// What one round has put together so far.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) drafts: BTreeMap<Cidr, Draft>,
    /// Jobs that wait for a block whose write is in flight.
    pub(super) promised: BTreeMap<Cidr, usize>,
    /// Pools without a block to claim.
    pub(super) exhausted: BTreeSet<String>,
    /// Jobs that no block in hand can serve, oldest first.
    pub(super) wanting: Vec<u64>,
}

/// Whether a block can be worked on now.
pub(super) enum Access {
    Ready,
    /// A write is in flight; this many addresses will be free after it.
    Busy(usize),
    Reading,
    /// There is no such block.
    Gone,
    /// It contradicts itself, in these words.
    Faulty(String),
}

/// What becomes of a job in this round.
pub(super) enum Next {
    Wait,
    Read,
    Fly,
    Answer(Reply),
    Refuse(ErrorReply),
}

pub(super) fn refusal(code: u32, message: impl Into<String>) -> Next {
    Next::Refuse(ErrorReply { code, message: message.into(), details: String::new() })
}

pub(super) fn faulty(block: Cidr, fault: &str) -> Next {
    let message =
        format!("block {block} contradicts itself and is not touched: {fault}; correct the IPAMBlock");
    refusal(NOT_SERVED, message)
}

impl Agent {
    /// Plans until nothing more can be started.
    pub(super) fn plan(&mut self, now: Timestamp) {
        self.expire(now);
        if !self.view.is_complete() {
            return;
        }
        for _ in 0..ROUNDS {
            self.again = false;
            let mut round = Round::default();
            let heads = self.heads();
            // Releases first: they never wait for room.
            for (id, _) in heads.iter().filter(|(_, adds)| !adds) {
                self.place(*id, &mut round, now);
            }
            for (id, _) in heads.iter().filter(|(_, adds)| *adds) {
                self.place(*id, &mut round, now);
            }
            for (cidr, draft) in std::mem::take(&mut round.drafts) {
                let free = draft.free_after(self.view.reserved());
                if let Some(Drawn { writes, jobs }) = draft.finish() {
                    let flight = Flight { cidr: Some(cidr), writes, jobs, claims: false, sent: now };
                    self.send(flight, Vec::new(), free);
                }
            }
            self.drive_claim(&round.wanting, now);
            if !self.again {
                break;
            }
        }
        self.give_up_deselected();
        self.tidy();
    }

    fn expire(&mut self, now: Timestamp) {
        let late: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.deadline <= now && job.can_be_late())
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let message = if self.view.is_complete() {
                "no address could be had in time: the datastore is slow or cannot be reached".to_owned()
            } else {
                "the agent has not read the datastore yet; see whether the API server answers".to_owned()
            };
            match self.jobs.get_mut(&id) {
                // Its outcome stays: the same ADD again finds the address, a DEL gives it back.
                Some(job)
                    if job.stage == Stage::Flying || (job.request.is_some() && !job.pledged.is_empty()) =>
                {
                    job.deadline = super::late(now);
                    let job = job.clone();
                    let error = ErrorReply { code: TRY_AGAIN, message, details: String::new() };
                    self.explain_refusal(&job, &error);
                    self.answer(id, Reply::Failed(error));
                }
                Some(job) if job.request.is_none() && matches!(job.task, Task::Add(_)) => {
                    let error = ErrorReply { code: TRY_AGAIN, message, details: String::new() };
                    self.end(id, Reply::Failed(error));
                }
                _ => self.fail(id, TRY_AGAIN, message),
            }
        }
    }

    /// The first waiting job of every handle in order of arrival, and whether it is an ADD.
    fn heads(&self) -> Vec<(u64, bool)> {
        let mut heads: Vec<(u64, bool)> = self
            .turns
            .values()
            .filter_map(|turn| turn.front())
            .filter_map(|id| {
                let job = self.jobs.get(id).filter(|job| job.stage == Stage::Waiting)?;
                Some((*id, matches!(job.task, Task::Add(_))))
            })
            .collect();
        heads.sort_unstable();
        heads
    }

    fn place(&mut self, id: u64, round: &mut Round, now: Timestamp) {
        let Some(mut job) = self.jobs.remove(&id) else { return };
        let next = if job.attempts > ATTEMPTS {
            refusal(
                TRY_AGAIN,
                format!("{ATTEMPTS} attempts met records that others were changing; try again"),
            )
        } else if self.view.is_locked() {
            refusal(
                TRY_AGAIN,
                "the datastore is locked while it is migrated (ClusterInformation default, datastoreReady false); \
                 try again when it is unlocked",
            )
        } else if let (Task::Add(_), Some(key)) = (&job.task, self.view.opaque()) {
            let why = "so that it is not known what may be given out";
            refusal(TRY_AGAIN, format!("{key} cannot be understood, {why}: correct it or delete it"))
        } else {
            match job.task.clone() {
                Task::Add(demand) => self.place_add(id, &mut job, &demand, round, now),
                Task::Del(surrender) => self.place_del(id, &mut job, surrender.legacy_handle, round, now),
            }
        };
        match &next {
            Next::Read => job.stage = Stage::Reading,
            Next::Fly => job.stage = Stage::Flying,
            Next::Wait | Next::Answer(_) | Next::Refuse(_) => {}
        }
        let done = matches!(job.task, Task::Del(_)).then(|| job.handle.clone());
        if matches!(next, Next::Answer(_)) {
            self.account_for(&job);
        }
        self.jobs.insert(id, job);
        match next {
            Next::Answer(reply) => {
                if let Some(handle) = done {
                    self.note(Note::Released { handle });
                }
                self.end(id, reply);
            }
            Next::Refuse(error) => self.refuse(id, error),
            Next::Wait | Next::Read | Next::Fly => {}
        }
    }

    pub(super) fn access(&mut self, cidr: Cidr) -> Access {
        let lane = self.lanes.get(&cidr).cloned().unwrap_or_default();
        if let Some((_, free)) = lane.flying {
            return Access::Busy(free);
        }
        if lane.reading.is_some() {
            return Access::Reading;
        }
        if !lane.stale && self.view.whole(cidr).is_some() {
            return if lane.unsure.is_some() { self.fence(cidr) } else { Access::Ready };
        }
        match self.view.index().get(&cidr) {
            _ if lane.stale => {}
            None => {
                // There is nothing that a late change could change, and a late create cannot be kept out.
                if let Some(lane) = self.lanes.get_mut(&cidr) {
                    lane.unsure = None;
                }
                return Access::Gone;
            }
            Some(entry) => {
                if let Some(fault) = &entry.fault {
                    return Access::Faulty(fault.clone());
                }
            }
        }
        self.read_block(cidr);
        Access::Reading
    }

    /// Writes a block as it is, so that a write of it whose answer was lost cannot happen any more (architecture D2).
    fn fence(&mut self, cidr: Cidr) -> Access {
        let Some(seen) = self.view.whole(cidr) else { return Access::Gone };
        let free = block::free_count(&seen.value, self.view.reserved());
        let mut block = seen.value.clone();
        block::advance(&mut block);
        let writes = vec![Write::Update(Record::Block(block), seen.version.clone())];
        let flight = Flight { cidr: Some(cidr), writes, jobs: Vec::new(), claims: false, sent: self.now };
        self.send(flight, Vec::new(), free);
        Access::Busy(free)
    }

    /// Reads a block from the store, unless that is under way.
    pub(super) fn read_block(&mut self, cidr: Cidr) {
        if self.lanes.get(&cidr).is_some_and(|lane| lane.reading.is_some()) {
            return;
        }
        if !self.view.owns(cidr) {
            self.view.borrow_from(cidr);
        }
        let known = self.view.known_at(&Key::Block(cidr));
        let ticket = self.ticket(Errand::Block(cidr, known));
        self.lanes.entry(cidr).or_default().reading = Some(ticket);
        self.effects.push(Effect::Read { ticket, key: Key::Block(cidr) });
    }

    pub(super) fn read_handle(&mut self, handle: &str) {
        let ticket = self.ticket(Errand::Handle(handle.to_owned()));
        self.handles.insert(handle.to_owned(), Known::Reading(ticket));
        self.effects.push(Effect::Read { ticket, key: Key::Handle(handle.to_owned()) });
    }

    /// Sends a commit.
    pub(super) fn send(&mut self, flight: Flight, checks: Vec<Check>, free: usize) {
        let (cidr, writes) = (flight.cidr, flight.writes.clone());
        if made(Mistake::ChangedBeforeWritten) {
            self.view.presume(&writes);
        }
        let ticket = self.ticket(Errand::Lane(flight));
        if let Some(cidr) = cidr {
            self.lanes.entry(cidr).or_default().flying = Some((ticket, free));
        }
        self.effects.push(Effect::Commit { ticket, checks, writes });
    }

    pub(super) fn known(&self, handle: &str) -> Option<&Seen<Handle>> {
        match self.handles.get(handle) {
            Some(Known::Here(seen)) => Some(seen),
            _ => None,
        }
    }

    fn place_add(
        &mut self,
        id: u64,
        job: &mut Job,
        demand: &Demand,
        round: &mut Round,
        now: Timestamp,
    ) -> Next {
        if let Some(next) = self.settle_pledges(id, job, round) {
            return next;
        }
        if let Some(version) = job.left.front().copied() {
            if let Some(next) = self.find_held(id, job, demand, version, round, now) {
                return next;
            }
            if let Some(held) = self.at_cap(job, demand, version) {
                return refusal(
                    TRY_AGAIN,
                    format!(
                        "handle {} holds {held} {version} addresses and may hold {}; release what it holds, or try again \
                         when whoever is taking with it has done",
                        job.handle, demand.max_per_handle
                    ),
                );
            }
            return match demand.requested {
                Some(address) => self.place_requested(id, job, demand, address, round, now),
                None => self.place_any(id, job, demand, version, round, now),
            };
        }
        for taken in &job.got {
            let borrowed = !self.view.owns(taken.block);
            self.effects.push(Effect::Note(Note::Assigned {
                handle: job.handle.clone(),
                address: taken.address,
                block: taken.block,
                borrowed,
            }));
        }
        self.explain_success(job, demand);
        // In the order of the families asked for: what was held already may have been found out of turn.
        let mut answer = Vec::with_capacity(job.got.len());
        let mut found = job.got.clone();
        for version in &demand.versions {
            if let Some(at) = found.iter().position(|taken| taken.block.version() == *version) {
                answer.push(found.remove(at));
            }
        }
        Next::Answer(Reply::Added(answer))
    }

    /// The account of what was considered for one family of a demand.
    pub(super) fn account(&mut self, job: &Job, demand: &Demand, version: IpVersion) -> Explain {
        let wanted = demand.versions.iter().filter(|wanted| **wanted == version).count();
        let mut explain = Explain::new(self.node.clone(), version, wanted);
        explain.assigned = job.got.iter().filter(|taken| taken.block.version() == version).count();
        explain.considered(self.considered(demand, version));
        for tried in job.tried.listed().iter().filter(|tried| tried.block.version() == version) {
            explain.blocks.push(tried.clone());
        }
        explain.conflicts = job.conflicts.clone();
        explain
    }

    /// Tells what a release came to, if somebody asked for it.
    pub(super) fn account_for(&mut self, job: &Job) {
        if let (Task::Del(_), Some(request)) = (&job.task, job.request) {
            self.note(Note::Accounted { request, account: Box::new(job.account.clone()) });
        }
    }

    /// Tells why an ADD is refused, for each family asked for, unless the refusal came with its account.
    pub(super) fn explain_refusal(&mut self, job: &Job, error: &ErrorReply) {
        let (Task::Add(demand), Some(request), false) = (&job.task, job.request, job.explained) else {
            return;
        };
        let versions: BTreeSet<IpVersion> = demand.versions.iter().copied().collect();
        for version in versions {
            let mut explain = Box::new(self.account(job, demand, version));
            explain.shortage = Some(Shortage::refused(&error.message));
            self.note(Note::Explained { request, explain });
        }
    }

    fn explain_success(&mut self, job: &Job, demand: &Demand) {
        let Some(request) = job.request else { return };
        let versions: BTreeSet<IpVersion> = demand.versions.iter().copied().collect();
        for version in versions {
            let explain = Box::new(self.account(job, demand, version));
            self.note(Note::Explained { request, explain });
        }
    }

    /// Lets go of handles that neither a job nor a block needs: what somebody else released is never asked about here.
    fn sweep(&mut self) {
        if self.handles.len() <= self.swept.saturating_mul(2).saturating_add(SWEEP) {
            return;
        }
        let busy: BTreeSet<&str> = self.jobs.values().map(|job| job.handle.as_str()).collect();
        let view = &self.view;
        self.handles.retain(|handle, known| {
            busy.contains(handle.as_str())
                || match known {
                    Known::Reading(_) => true,
                    Known::Here(seen) => {
                        let lent = |cidr: &Cidr| !view.owns(*cidr) && view.index().contains_key(cidr);
                        view.held_by(handle).next().is_some() || seen.value.blocks.keys().any(lent)
                    }
                    Known::Absent | Known::Unsure => false,
                }
        });
        self.swept = self.handles.len();
    }

    /// Lets go of blocks of others that nobody works on any more.
    fn tidy(&mut self) {
        self.sweep();
        if self.jobs.is_empty() {
            self.lost_races.clear();
            self.kept.clear();
        } else if self.lanes.len() < BORROWED {
            return;
        }
        for cidr in self.view.borrowing() {
            if self.lanes.get(&cidr).is_none_or(Lane::is_idle) {
                self.view.done_borrowing(cidr);
            }
        }
        self.lanes.retain(|_, lane| !lane.is_idle());
    }
}

/// Whether a block lies in one of these pools.
pub(super) fn in_pools(cidr: Cidr, pools: &[Pool]) -> bool {
    pools.iter().any(|pool| pool.cidr.contains_cidr(cidr))
}
