//! Planning: which waiting job goes into which block, and what has to be read or claimed for the others.

use super::draft::{Draft, Taker};
use super::job::{BAD_REQUEST, Demand, Errand, Flight, Job, NOT_SERVED, Reply, Stage, TRY_AGAIN, Task};
use super::{ATTEMPTS, Agent, Effect, Known, Note};
use crate::block::{self, Taken};
use crate::explain::{Explain, Few, PoolFill, Shortage};
use crate::plan::handle_write;
use crate::pools::{self, PoolRequest, SelectError, Selection};
use crate::seen::Seen;
use api::attachment::ErrorReply;
use api::{Block, Cidr, Handle, IpVersion, Ordinal, Pool};
use datastore::{Check, Key};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Rounds of one plan: each ends something or starts something, so few are needed.
const ROUNDS: usize = 64;

/// What one round has put together so far.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) drafts: BTreeMap<Cidr, Draft>,
    /// Jobs that wait for a block whose write is in flight.
    promised: BTreeMap<Cidr, usize>,
    /// Pools without a block to claim.
    exhausted: BTreeSet<String>,
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
            for draft in std::mem::take(&mut round.drafts).into_values() {
                let free = draft.free_after(self.view.reserved());
                if let Some(flight) = draft.finish(false) {
                    self.send(flight, Vec::new(), free);
                }
            }
            self.drive_claim(now);
            if !self.again {
                break;
            }
        }
        self.tidy();
    }

    fn expire(&mut self, now: Timestamp) {
        let late: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.deadline <= now && job.request.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let message = if self.view.is_complete() {
                "no address could be had in time: the datastore is slow or cannot be reached".to_owned()
            } else {
                "the agent has not read the datastore yet; see whether the API server answers".to_owned()
            };
            match self.jobs.get(&id).map(|job| job.stage) {
                // Its outcome stays: the same ADD again finds the address, a DEL gives it back.
                Some(Stage::Flying) => {
                    let error = ErrorReply { code: TRY_AGAIN, message, details: String::new() };
                    self.answer(id, Reply::Failed(error));
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
            return Access::Ready;
        }
        match self.view.index().get(&cidr) {
            _ if lane.stale => {}
            None => return Access::Gone,
            Some(entry) => {
                if let Some(fault) = &entry.fault {
                    return Access::Faulty(fault.clone());
                }
            }
        }
        self.read_block(cidr);
        Access::Reading
    }

    /// Reads a block from the store, unless that is under way.
    pub(super) fn read_block(&mut self, cidr: Cidr) {
        if self.lanes.get(&cidr).is_some_and(|lane| lane.reading.is_some()) {
            return;
        }
        if !self.view.owns(cidr) {
            self.view.borrow_from(cidr);
        }
        let ticket = self.ticket(Errand::Block(cidr));
        self.lanes.entry(cidr).or_default().reading = Some(ticket);
        self.effects.push(Effect::Read { ticket, key: Key::Block(cidr) });
    }

    pub(super) fn read_handle(&mut self, handle: &str) {
        self.handles.insert(handle.to_owned(), Known::Reading);
        let ticket = self.ticket(Errand::Handle(handle.to_owned()));
        self.effects.push(Effect::Read { ticket, key: Key::Handle(handle.to_owned()) });
    }

    /// Sends a commit on one block.
    pub(super) fn send(&mut self, flight: Flight, checks: Vec<Check>, free: usize) {
        let (cidr, writes) = (flight.cidr, flight.writes.clone());
        let ticket = self.ticket(Errand::Lane(flight));
        self.lanes.entry(cidr).or_default().flying = Some((ticket, free));
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
        while let Some(version) = job.left.front().copied() {
            // What is there already is the answer to a repeated ADD.
            if let Some(taken) = self.held_own(&job.handle, job.interface(), version) {
                if let Some(next) = self.confirm_held(id, job, &taken, round) {
                    return next;
                }
                job.left.pop_front();
                job.got.push(taken);
                continue;
            }
            match self.handles.get(&job.handle) {
                Some(Known::Unsure) => {
                    self.read_handle(&job.handle.clone());
                    return Next::Read;
                }
                Some(Known::Reading) => return Next::Read,
                Some(Known::Here(seen)) => {
                    let elsewhere: Vec<Cidr> = seen.value.blocks.keys().copied().collect();
                    match self.held_elsewhere(job, &elsewhere, version) {
                        Ok(Some(taken)) => {
                            job.left.pop_front();
                            job.got.push(taken);
                            continue;
                        }
                        Ok(None) => {}
                        Err(next) => return next,
                    }
                }
                Some(Known::Absent) | None => {}
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
        Next::Answer(Reply::Added(job.got.clone()))
    }

    /// Whether an own block holds an address for the job's next family.
    pub(super) fn holds(&self, job: &Job) -> bool {
        job.left
            .front()
            .is_some_and(|version| self.held_own(&job.handle, job.interface(), *version).is_some())
    }

    /// What the handle holds for this interface in an own block.
    fn held_own(&self, handle: &str, interface: Option<&str>, version: IpVersion) -> Option<Taken> {
        self.view
            .own_blocks()
            .filter(|seen| seen.value.cidr.version() == version)
            .find_map(|seen| held(&seen.value, handle, interface).next().map(|at| taken(&seen.value, at)))
    }

    /// Looks for what the handle holds in the blocks of others. `Err`: one has to be read first.
    fn held_elsewhere(
        &mut self,
        job: &mut Job,
        blocks: &[Cidr],
        version: IpVersion,
    ) -> Result<Option<Taken>, Next> {
        for cidr in blocks.iter().copied().filter(|cidr| cidr.version() == version) {
            if self.view.owns(cidr) || job.visited.contains(&cidr) {
                continue;
            }
            match self.access(cidr) {
                Access::Busy(_) => return Err(Next::Wait),
                Access::Reading => {
                    job.attempts += 1;
                    return Err(Next::Read);
                }
                Access::Gone | Access::Faulty(_) => {}
                Access::Ready => {
                    let found = self.view.whole(cidr).and_then(|seen| {
                        let ordinal = held(&seen.value, &job.handle, job.interface()).next()?;
                        Some(taken(&seen.value, ordinal))
                    });
                    if found.is_some() {
                        return Ok(found);
                    }
                }
            }
            job.visited.insert(cidr);
        }
        Ok(None)
    }

    /// Makes sure that an address found in an own block may be answered. `Some`: not yet.
    fn confirm_held(&mut self, id: u64, job: &Job, found: &Taken, round: &Round) -> Option<Next> {
        if self.view.is_lost() {
            return Some(refusal(
                TRY_AGAIN,
                "the datastore cannot be reached, so the address that is held cannot be confirmed; try again",
            ));
        }
        match self.access(found.block) {
            Access::Busy(_) | Access::Gone | Access::Faulty(_) => return Some(Next::Wait),
            Access::Reading => return Some(Next::Read),
            Access::Ready => {}
        }
        if !self.view.is_in_hand(found.block) {
            self.start_claim(found.block);
            return Some(Next::Wait);
        }
        match self.handles.get(&job.handle) {
            Some(Known::Unsure) => {
                self.read_handle(&job.handle);
                Some(Next::Read)
            }
            Some(Known::Reading) => Some(Next::Read),
            // The block was written and its handle was not: write it now.
            Some(Known::Absent) => {
                let seen = self.view.whole(found.block)?;
                let count = block::count_of(&seen.value, &job.handle);
                let write = handle_write(&job.handle, None, found.block, count)?;
                if round.drafts.contains_key(&found.block) {
                    self.again = true;
                    return Some(Next::Wait);
                }
                let jobs = vec![(id, None)];
                let free = seen.value.unallocated.len();
                self.send(
                    Flight { cidr: found.block, writes: vec![write], jobs, claims: false },
                    Vec::new(),
                    free,
                );
                Some(Next::Fly)
            }
            Some(Known::Here(_)) | None => None,
        }
    }

    /// Pools asked for, as CIDRs of this family.
    fn requested_pools(&self, demand: &Demand, version: IpVersion) -> Result<Vec<Cidr>, Next> {
        let mut cidrs = Vec::new();
        for name in &demand.pools {
            let named = self.view.pool(name).map(|seen| seen.value.cidr);
            match named.or_else(|| name.parse().ok()) {
                Some(cidr) if cidr.version() == version => cidrs.push(cidr),
                Some(_) => {}
                None => {
                    return Err(refusal(
                        BAD_REQUEST,
                        format!("pool {name:?} is neither an IPPool's name nor a CIDR; name one that exists"),
                    ));
                }
            }
        }
        Ok(cidrs)
    }

    pub(super) fn select(&self, demand: &Demand, version: IpVersion) -> Result<Selection, Next> {
        let requested = self.requested_pools(demand, version)?;
        let Some(labels) = self.view.labels() else {
            return Err(refusal(
                TRY_AGAIN,
                format!("there is no Node {} in the cluster; addresses are for nodes that are", self.node),
            ));
        };
        let request = PoolRequest {
            version,
            requested: &requested,
            node: &self.node,
            node_labels: labels,
            namespace_labels: &demand.namespace_labels,
            intended_use: demand.intended_use,
            max_prefix: version.bits(),
        };
        pools::select(self.view.pools(), &request).map_err(|error| {
            let code = match error {
                SelectError::NoSuchPool { .. } | SelectError::WrongFamily { .. } => BAD_REQUEST,
                _ => NOT_SERVED,
            };
            refusal(code, error.to_string())
        })
    }

    /// Takes any address of the family: from a block in hand, else from a new block, else from somebody else's.
    fn place_any(
        &mut self,
        id: u64,
        job: &mut Job,
        demand: &Demand,
        version: IpVersion,
        round: &mut Round,
        now: Timestamp,
    ) -> Next {
        let selection = match self.select(demand, version) {
            Ok(selection) => selection,
            Err(next) => return next,
        };
        let own: Vec<Cidr> = self
            .view
            .affinities()
            .keys()
            .copied()
            .filter(|cidr| in_pools(*cidr, &selection.usable) && self.view.is_in_hand(*cidr))
            .collect();
        if let Some(next) = self.take_from(id, job, demand, own, round, now) {
            return next;
        }
        if self.claim.is_some() || self.indexing {
            return Next::Wait;
        }
        let shortage = match self.look_for_block(&selection, version, round, now) {
            None => return Next::Wait,
            Some(shortage) => shortage,
        };
        if matches!(shortage, Shortage::PoolsFull { .. } | Shortage::Reserved { .. }) {
            let mut others: Vec<Cidr> = Vec::new();
            for pool in &selection.usable {
                others.extend(self.view.index().iter().filter_map(|(cidr, entry)| {
                    let lendable = pool.cidr.contains_cidr(*cidr) && entry.free > 0 && !self.view.owns(*cidr);
                    lendable.then_some(*cidr)
                }));
            }
            if let Some(next) = self.take_from(id, job, demand, others, round, now) {
                return next;
            }
        }
        let mut explain = Explain::new(self.node.clone(), version, 1);
        let considered: Vec<String> = selection
            .considered
            .iter()
            .map(|pool| format!("{} {} {}", pool.pool, pool.cidr, pool.verdict))
            .collect();
        explain.considered(selection.considered);
        explain.shortage = Some(shortage);
        let details = considered.join(", ");
        Next::Refuse(ErrorReply { code: NOT_SERVED, message: explain.to_string(), details })
    }

    /// Takes one address from the first of these blocks that has one. `None`: none of them has.
    fn take_from(
        &mut self,
        id: u64,
        job: &mut Job,
        demand: &Demand,
        blocks: Vec<Cidr>,
        round: &mut Round,
        now: Timestamp,
    ) -> Option<Next> {
        let cooldown = self.view.config().ip_cooldown_seconds;
        for cidr in blocks {
            match self.access(cidr) {
                Access::Gone | Access::Faulty(_) => {}
                Access::Reading => {
                    job.attempts += 1;
                    return Some(Next::Read);
                }
                Access::Busy(free) => {
                    let promised = round.promised.entry(cidr).or_default();
                    if *promised < free {
                        *promised += 1;
                        return Some(Next::Wait);
                    }
                }
                Access::Ready => {
                    let Some(seen) = self.view.whole(cidr) else { continue };
                    let draft = round.drafts.entry(cidr).or_insert_with(|| Draft::of(seen, cooldown, now));
                    if draft.is_full() {
                        return Some(Next::Wait);
                    }
                    let taker = Taker {
                        job: id,
                        handle: &job.handle,
                        known: self.known(&job.handle),
                        attributes: &demand.attributes,
                    };
                    if draft.take(taker, self.view.reserved()).is_some() {
                        return Some(Next::Fly);
                    }
                }
            }
        }
        None
    }

    /// Starts a claim, or says why there is nothing to claim.
    fn look_for_block(
        &mut self,
        selection: &Selection,
        version: IpVersion,
        round: &mut Round,
        now: Timestamp,
    ) -> Option<Shortage> {
        let config = self.view.config();
        if !config.auto_allocate_blocks {
            return Some(Shortage::AutoAllocateOff);
        }
        if !self.view.covers(&selection.usable) {
            self.list_blocks();
            return None;
        }
        // Claims that were begun and not finished come first: they count towards the limit already.
        if let Some(cidr) = self.unfinished(&selection.usable) {
            self.start_claim(cidr);
            return None;
        }
        /// Blocks per node and family where nothing else is configured.
        const DEFAULT_LIMIT: u32 = 20;
        let limit = match config.max_blocks_per_host {
            0 => DEFAULT_LIMIT,
            limit => limit,
        };
        let owned = self
            .view
            .affinities()
            .keys()
            .filter(|cidr| cidr.version() == version && in_pools(**cidr, &selection.usable));
        let owned = u32::try_from(owned.count()).unwrap_or(u32::MAX);
        if owned >= limit {
            return Some(Shortage::BlockLimit { limit, owned });
        }
        for pool in &selection.usable {
            if round.exhausted.contains(&pool.name) {
                continue;
            }
            match self.candidate(pool, now) {
                Some(cidr) => {
                    self.start_claim(cidr);
                    return None;
                }
                None => {
                    round.exhausted.insert(pool.name.clone());
                }
            }
        }
        let owns = |cidr: &Cidr| self.view.owns(*cidr);
        let pools: Few<PoolFill> = selection
            .usable
            .iter()
            .map(|pool| PoolFill::of(pool, self.view.index().keys().map(|cidr| (cidr, owns(cidr)))))
            .collect();
        let some_free = self
            .view
            .index()
            .iter()
            .any(|(cidr, entry)| entry.free > 0 && in_pools(*cidr, &selection.usable));
        Some(match (config.strict_affinity, some_free && !self.view.reserved().is_empty()) {
            (true, _) => Shortage::StrictAffinity { pools },
            (false, true) => Shortage::Reserved { pools },
            (false, false) => Shortage::PoolsFull { pools },
        })
    }

    /// Lets go of blocks of others that nobody works on any more.
    fn tidy(&mut self) {
        if !self.jobs.is_empty() {
            return;
        }
        self.lost_races.clear();
        for cidr in self.view.borrowing() {
            self.view.done_borrowing(cidr);
        }
        self.lanes.retain(|_, lane| !lane.is_idle());
    }
}

/// Whether a block lies in one of these pools.
pub(super) fn in_pools(cidr: Cidr, pools: &[Pool]) -> bool {
    pools.iter().any(|pool| pool.cidr.contains_cidr(cidr))
}

/// Ordinals that a handle holds for an interface, those that name no interface included; none that cool down.
pub(super) fn held<'a>(
    block: &'a Block,
    handle: &'a str,
    interface: Option<&'a str>,
) -> impl Iterator<Item = Ordinal> + 'a {
    block::allocated(block)
        .filter(move |(_, attribute)| {
            let named = attribute.secondary.get(super::INTERFACE).map(String::as_str);
            attribute.released_at.is_none()
                && attribute.handle_id.as_deref().map(block::sanitized) == Some(handle)
                && interface.is_none_or(|wanted| named.is_none_or(|named| named == wanted))
        })
        .map(|(ordinal, _)| ordinal)
}

fn taken(block: &Block, ordinal: Ordinal) -> Taken {
    Taken {
        block: block.cidr,
        ordinal,
        address: block.cidr.address(ordinal).unwrap_or_else(|| block.cidr.network()),
        sequence: block::stamp(block, ordinal),
    }
}
