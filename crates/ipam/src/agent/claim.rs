//! Claiming a block: affinity pending, then the block with its first addresses, then affinity confirmed (architecture D5).
//!
//! ```text
//!   Affinity ──write──► Pending ──► Block ──write──► Writing ──► Confirm ──write──► Confirming ──► done
//!      ▲  │ taken                    │ somebody else's block        ▲                    │
//!      │  └──► another block         └──► Drop ──write──► Dropping  │                    │
//!      └────────────── Asking ◄──── the affinity changed ◄──────────┴────────────────────┘
//! ```
//!
//! The same way repairs what a crash left: a pending affinity without block, a block whose affinity is not confirmed
//! or gone. A block that is there already is written once more, so that whoever is giving it up meets a new revision.

use super::draft::{Draft, Taker};
use super::job::{Errand, NOT_SERVED, TRY_AGAIN, Task};
use super::place::in_pools;
use super::{Agent, Effect, Known, Note};
use crate::block::Taken;
use crate::candidate::candidates;
use crate::plan::{PendingPlan, affinity_write, plan_pending};
use crate::seen::Seen;
use api::{Affinity, AffinityState, Cidr, Pool};
use datastore::{Check, CommitError, Key, ReadError, Record, Stored, Version, Write};
use jiff::Timestamp;

/// Reads of a changing affinity before the block is given up for another.
const TRIES: u32 = 10;

/// How far a claim has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Decide by the affinity as known.
    Affinity,
    /// The affinity is being read.
    Asking,
    /// The pool is being read: it changed under the claim.
    AskingPool,
    /// The pending affinity is being written.
    Pending,
    /// The block is to be written.
    Block,
    /// The block is being written.
    Writing,
    /// The affinity is being confirmed.
    Confirming,
    /// The affinity is being removed.
    Dropping,
}

/// The one claim that is running.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    cidr: Cidr,
    step: Step,
    affinity: Option<Seen<Affinity>>,
    /// The block stands and is ours: only the confirmation is missing.
    stands: bool,
    tries: u32,
    /// What is being written to the affinity.
    write: Option<Write>,
    /// Jobs whose addresses are in the block and wait for the confirmation.
    jobs: Vec<(u64, Taken)>,
}

impl Agent {
    /// Starts to claim or repair a block, unless a claim is running.
    pub(super) fn start_claim(&mut self, cidr: Cidr) {
        if self.claim.is_none() {
            self.claim = Some(Claim {
                cidr,
                step: Step::Affinity,
                affinity: self.view.affinities().get(&cidr).cloned(),
                stands: false,
                tries: 0,
                write: None,
                jobs: Vec::new(),
            });
        }
    }

    /// An own claim in these pools that was begun and not finished.
    pub(super) fn unfinished(&self, pools: &[Pool]) -> Option<Cidr> {
        let claimed = self.view.affinities().keys().copied();
        let owned = self.view.own_blocks().map(|seen| seen.value.cidr);
        claimed.chain(owned).find(|cidr| {
            in_pools(*cidr, pools) && !self.view.is_in_hand(*cidr) && !self.lost_races.contains(cidr)
        })
    }

    /// The first block of a pool, in this node's order, that nobody has.
    pub(super) fn candidate(&self, pool: &Pool, now: Timestamp) -> Option<Cidr> {
        let reserved = self.view.reserved();
        // Blocks of an earlier pool with another block size may lie across candidates.
        let odd: Vec<Cidr> = self
            .view
            .index()
            .keys()
            .copied()
            .filter(|cidr| cidr.prefix() != pool.block_size && cidr.overlaps(pool.cidr))
            .collect();
        candidates(pool, &self.node, now).find(|cidr| {
            !self.view.index().contains_key(cidr)
                && !self.lost_races.contains(cidr)
                && !reserved.covers(*cidr)
                && !odd.iter().any(|other| other.overlaps(*cidr))
        })
    }

    /// Takes the running claim as far as it goes without an answer from the store.
    pub(super) fn drive_claim(&mut self, now: Timestamp) {
        while let Some(mut claim) = self.claim.take() {
            let before = claim.step;
            let goes_on = match claim.step {
                Step::Affinity => self.claim_affinity(&mut claim, now),
                Step::Block => self.claim_block(&mut claim, now),
                _ => true,
            };
            if !goes_on {
                self.again = true;
                return;
            }
            let stays = claim.step == before;
            self.claim = Some(claim);
            if stays {
                return;
            }
        }
    }

    fn commit_claim(&mut self, claim: &mut Claim, write: Write, step: Step) {
        claim.step = step;
        claim.write = Some(write.clone());
        let ticket = self.ticket(Errand::Claim);
        self.effects.push(Effect::Commit { ticket, checks: Vec::new(), writes: vec![write] });
    }

    fn claim_affinity(&mut self, claim: &mut Claim, now: Timestamp) -> bool {
        if claim.stands {
            return self.confirm(claim);
        }
        let owner = self.view.owner().clone();
        let exists = self.view.index().contains_key(&claim.cidr);
        match plan_pending(&owner, claim.cidr, claim.affinity.as_ref(), exists, now) {
            PendingPlan::Write(write) => self.commit_claim(claim, write, Step::Pending),
            PendingPlan::Pending => claim.step = Step::Block,
            PendingPlan::Confirmed if self.view.owns(claim.cidr) => {
                self.settle(claim);
                return false;
            }
            PendingPlan::Confirmed => {
                if let Some(seen) = &claim.affinity {
                    let write = affinity_write(seen, AffinityState::Pending);
                    self.commit_claim(claim, write, Step::Pending);
                }
            }
            PendingPlan::Taken(_) => {
                self.lose(claim.cidr);
                return false;
            }
        }
        true
    }

    /// The block stands: confirms the affinity, or makes it again if it is gone.
    fn confirm(&mut self, claim: &mut Claim) -> bool {
        let owner = self.view.owner().clone();
        match &claim.affinity {
            Some(seen) if seen.value.owner != owner => {
                let message = format!(
                    "block {} is of node {} and its affinity of {}: delete the affinity that is wrong",
                    claim.cidr, self.node, seen.value.owner
                );
                for (id, _) in std::mem::take(&mut claim.jobs) {
                    self.fail(id, NOT_SERVED, message.clone());
                }
                self.lose(claim.cidr);
                return false;
            }
            Some(seen) if seen.value.state == AffinityState::Confirmed => {
                self.settle(claim);
                return false;
            }
            Some(seen) => {
                let write = affinity_write(seen, AffinityState::Confirmed);
                self.commit_claim(claim, write, Step::Confirming);
            }
            None => {
                let write = Write::Create(Record::Affinity(Affinity {
                    owner,
                    cidr: claim.cidr,
                    state: AffinityState::Confirmed,
                    deleted: false,
                }));
                self.commit_claim(claim, write, Step::Confirming);
            }
        }
        true
    }

    /// The claim is done: its jobs have their addresses.
    fn settle(&mut self, claim: &mut Claim) {
        self.note(Note::Claimed { block: claim.cidr });
        for (id, taken) in std::mem::take(&mut claim.jobs) {
            self.got(id, Some(taken), claim.cidr);
        }
        self.lost_races.clear();
        self.again = true;
    }

    fn lose(&mut self, block: Cidr) {
        self.note(Note::LostRace { block });
        self.lost_races.insert(block);
        self.again = true;
    }

    /// Writes the block with as many waiting jobs in it as it serves.
    fn claim_block(&mut self, claim: &mut Claim, now: Timestamp) -> bool {
        let cidr = claim.cidr;
        if self.lanes.get(&cidr).is_some_and(|lane| lane.flying.is_some() || lane.reading.is_some()) {
            return true;
        }
        if self.lanes.get(&cidr).is_some_and(|lane| lane.stale) {
            self.read_block(cidr);
            return true;
        }
        let Some(affinity) = claim.affinity.clone() else {
            claim.step = Step::Affinity;
            return true;
        };
        let key = Key::Affinity(self.view.owner().clone(), cidr);
        let mut checks = vec![Check::Unchanged(key, affinity.version.revision)];
        if self.view.index().get(&cidr).is_some_and(|entry| entry.fault.is_some()) {
            // Whoever has to correct it decides about the claim too.
            self.lose(cidr);
            return false;
        }
        let mut draft = if self.view.index().contains_key(&cidr) {
            let Some(seen) = self.view.whole(cidr).filter(|_| self.view.owns(cidr)) else {
                // Somebody else's, or nobody's: our claim is in the way.
                let write = Write::Delete(Record::Affinity(affinity.value), affinity.version);
                self.commit_claim(claim, write, Step::Dropping);
                return true;
            };
            let mut draft = Draft::of(seen, self.view.config().ip_cooldown_seconds, now);
            draft.touch();
            draft
        } else {
            let pool = self.view.pools().find(|pool| {
                pool.is_enabled() && pool.block_size == cidr.prefix() && pool.cidr.contains_cidr(cidr)
            });
            // The pool may have changed since the block was chosen: what it was made of before is to be known.
            if let Some(pool) = pool.cloned()
                && !self.view.covers(&[pool])
            {
                self.list_blocks();
                return true;
            }
            let overlaps = self.view.index().keys().any(|other| other.overlaps(cidr));
            let pool = pool.filter(|_| !overlaps);
            let Some(pool) = pool.and_then(|pool| self.view.pool(&pool.name)) else {
                let write = Write::Delete(Record::Affinity(affinity.value), affinity.version);
                self.commit_claim(claim, write, Step::Dropping);
                return true;
            };
            checks.push(Check::Unchanged(Key::Pool(pool.value.name.clone()), pool.version.revision));
            Draft::new_block(cidr, self.view.owner(), now)
        };
        for id in self.claimants(cidr) {
            if draft.is_full() {
                break;
            }
            let Some(job) = self.jobs.get(&id) else { continue };
            let Task::Add(demand) = &job.task else { continue };
            let known = match self.handles.get(&job.handle) {
                Some(Known::Here(seen)) => Some(seen),
                _ => None,
            };
            let taker = Taker { job: id, handle: &job.handle, known, attributes: &demand.attributes };
            // A job that finds no room stays waiting.
            let _ = match demand.requested {
                Some(address) => draft.assign(taker, address).ok(),
                None => draft.take(taker, self.view.reserved()),
            };
        }
        let free = draft.free_after(self.view.reserved());
        let Some(flight) = draft.finish(true) else { return true };
        for (id, _) in &flight.jobs {
            if let Some(job) = self.jobs.get_mut(id) {
                job.stage = super::Stage::Flying;
            }
        }
        claim.step = Step::Writing;
        self.send(flight, checks, free);
        true
    }

    /// Waiting ADDs that may take an address of this block.
    fn claimants(&mut self, cidr: Cidr) -> Vec<u64> {
        let waiting: Vec<u64> = self.heads_for_claim();
        waiting
            .into_iter()
            .filter(|id| {
                let Some(job) = self.jobs.get(id) else { return false };
                let Task::Add(demand) = &job.task else { return false };
                let unclear = match self.handles.get(&job.handle) {
                    Some(Known::Unsure | Known::Reading) => true,
                    Some(Known::Here(seen)) => seen
                        .value
                        .blocks
                        .keys()
                        .any(|held| !self.view.owns(*held) && !job.visited.contains(held)),
                    Some(Known::Absent) | None => false,
                };
                // What holds an address already waits for something else.
                if unclear || self.holds(job) {
                    return false;
                }
                match (demand.requested, job.left.front().copied()) {
                    (Some(address), _) => cidr.contains(address),
                    (None, Some(version)) if version == cidr.version() => {
                        self.select(demand, version).is_ok_and(|selection| in_pools(cidr, &selection.usable))
                    }
                    _ => false,
                }
            })
            .collect()
    }

    fn heads_for_claim(&self) -> Vec<u64> {
        let mut heads: Vec<u64> = self
            .turns
            .values()
            .filter_map(|turn| turn.front().copied())
            .filter(|id| {
                self.jobs
                    .get(id)
                    .is_some_and(|job| job.stage == super::Stage::Waiting && job.visited.is_empty())
            })
            .collect();
        heads.sort_unstable();
        heads
    }

    /// The block's commit of a running claim went through, with these addresses in it.
    pub(super) fn claim_stands(&mut self, jobs: Vec<(u64, Taken)>) {
        if let Some(claim) = &mut self.claim {
            claim.jobs.extend(jobs);
            claim.stands = true;
            claim.step = Step::Affinity;
        }
    }

    /// The block's commit of a running claim met a record that had changed.
    pub(super) fn claim_conflicts(&mut self, key: &Key) {
        let Some(claim) = &mut self.claim else { return };
        match key {
            Key::Affinity(..) => {
                claim.step = Step::Asking;
                self.ask_affinity();
            }
            Key::Pool(_) => {
                claim.step = Step::AskingPool;
                let ticket = self.ticket(Errand::Claim);
                self.effects.push(Effect::Read { ticket, key: key.clone() });
            }
            _ => claim.step = Step::Block,
        }
    }

    /// The block's commit of a running claim had no answer: the block is read, then written again if need be.
    pub(super) fn claim_unsure(&mut self) {
        if let Some(claim) = &mut self.claim {
            claim.step = Step::Block;
        }
    }

    /// Gives the running claim up for now; what it has written is found by the next one.
    pub(super) fn abandon_claim(&mut self, code: u32, message: &str) {
        let Some(claim) = self.claim.take() else { return };
        for (id, _) in claim.jobs {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.tainted = true;
            }
            self.fail(id, code, message.to_owned());
        }
    }

    /// Whether the running claim waits for the answer to a write.
    pub(super) fn claim_is_writing(&self) -> bool {
        self.claim.as_ref().is_some_and(|claim| {
            matches!(claim.step, Step::Pending | Step::Writing | Step::Confirming | Step::Dropping)
        })
    }

    fn ask_affinity(&mut self) {
        let Some(claim) = &mut self.claim else { return };
        claim.tries += 1;
        if claim.tries > TRIES && !claim.stands {
            let cidr = claim.cidr;
            self.claim = None;
            self.lose(cidr);
            return;
        }
        let key = Key::Affinity(self.view.owner().clone(), claim.cidr);
        let ticket = self.ticket(Errand::Claim);
        self.effects.push(Effect::Read { ticket, key });
    }

    /// A commit of the running claim's affinity ended.
    pub(super) fn claim_committed(&mut self, result: Result<Vec<Version>, CommitError>) {
        let Some(claim) = &mut self.claim else { return };
        let step = claim.step;
        let Some(write) = claim.write.take() else { return };
        match (result, step) {
            (Ok(versions), Step::Pending | Step::Confirming) => {
                let record = write.record().clone();
                let Some(version) = versions.into_iter().next() else { return };
                let stored = Stored { record, version, created: None };
                claim.affinity = Seen::from_stored(stored.clone());
                claim.step = if step == Step::Pending { Step::Block } else { Step::Affinity };
                self.view.keep(stored);
            }
            (Ok(_), _) => {
                let cidr = claim.cidr;
                self.view.absent(&write.key());
                self.claim = None;
                self.lose(cidr);
            }
            // Whoever changed it has decided about it: another block is tried.
            (Err(CommitError::Conflict { .. }), Step::Dropping) => {
                let cidr = claim.cidr;
                self.claim = None;
                self.lose(cidr);
            }
            (Err(CommitError::Conflict { key, .. }), _) => {
                claim.step = Step::Asking;
                self.note(Note::Conflict { key });
                self.ask_affinity();
            }
            (Err(error @ (CommitError::Unknown { .. } | CommitError::Unavailable { .. })), _) => {
                let reason = error.to_string();
                // The affinity may have been written: the next claim reads it when it conflicts.
                self.note(Note::Unanswered { reason: reason.clone() });
                self.abandon_claim(TRY_AGAIN, &reason);
                self.fail_waiting(&reason);
            }
            (Err(error @ CommitError::Refused { .. }), _) => {
                let message = error.to_string();
                self.abandon_claim(NOT_SERVED, &message);
                self.refuse_claimants(&message);
            }
        }
    }

    fn refuse_claimants(&mut self, message: &str) {
        for id in self.heads_for_claim() {
            if self.jobs.get(&id).is_some_and(|job| matches!(job.task, Task::Add(_))) {
                self.fail(id, NOT_SERVED, message.to_owned());
            }
        }
    }

    /// A read for the running claim ended.
    pub(super) fn claim_read(&mut self, result: Result<Option<Stored>, ReadError>) {
        let Some(claim) = &mut self.claim else { return };
        let cidr = claim.cidr;
        let step = claim.step;
        match result {
            Err(error) => {
                let reason = error.to_string();
                self.note(Note::Unanswered { reason: reason.clone() });
                self.abandon_claim(TRY_AGAIN, &reason);
                self.fail_waiting(&reason);
            }
            Ok(found) if step == Step::AskingPool => {
                match found {
                    Some(stored) => self.view.keep(stored),
                    None => {
                        let gone = self.view.pools().find(|pool| pool.cidr.contains_cidr(cidr));
                        if let Some(key) = gone.map(|pool| Key::Pool(pool.name.clone())) {
                            self.view.absent(&key);
                        }
                    }
                }
                // What is left of the pool decides anew; the pending affinity is used or removed by that.
                if let Some(claim) = &mut self.claim {
                    claim.step = Step::Block;
                }
            }
            Ok(found) => {
                claim.affinity = found.clone().and_then(Seen::from_stored);
                claim.step = Step::Affinity;
                match found {
                    Some(stored) => self.view.keep(stored),
                    None => self.view.absent(&Key::Affinity(self.view.owner().clone(), cidr)),
                }
            }
        }
    }
}
