//! Claiming a block: one commit of its affinity, the first handles and the block with their addresses (architecture D5).
//!
//! ```text
//!   Ready ──commit──► Writing ──► done
//!     ▲ │ the block is somebody else's, and an affinity of ours is in the way
//!     │ └──commit──► Dropping ──► another block
//!     └── Asking ◄── a record changed, or no answer came
//! ```
//!
//! In the commit the affinity passes through pending. A store without transactions writes: affinity pending, handles, block,
//! then reads the pool again and confirms the affinity. The same commit repairs what a crash left: an affinity without
//! block, a block whose affinity is not confirmed or gone. A block that is there already is written once more, so that
//! whoever is giving it up meets a new revision.

use super::draft::{BATCH, Draft, Taker};
use super::job::{Errand, Flight, NOT_SERVED, Stage, Task};
use super::place::in_pools;
use super::{Agent, Effect, Note};
use crate::block;
use crate::explain::BlockOutcome;
use crate::plan::{PendingPlan, plan_pending};
use crate::seen::Seen;
use api::{Affinity, AffinityState, Block, Cidr, Pool};
use datastore::{Check, CommitError, Key, ReadError, Record, Revision, Stored, Write};
use jiff::Timestamp;

/// Looks at a changing affinity or pool before the block is given up for another.
const TRIES: u32 = 10;

/// How far a claim has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// To be committed, once nothing else of the block is under way.
    Ready,
    /// What it depends on is being read: so many reads.
    Asking(u8),
    /// The commit is under way.
    Writing,
    /// The affinity is being removed.
    Dropping,
}

/// The one claim that is running.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    cidr: Cidr,
    step: Step,
    affinity: Option<Seen<Affinity>>,
    tries: u32,
}

/// What a claim comes to.
enum Decision {
    /// Something else has to end first.
    Wait,
    /// There is nothing to do, or it is under way.
    Done,
    /// Not this block.
    Lost,
    /// Write this.
    Commit { draft: Box<Draft>, affinity: Write, checks: Vec<Check> },
    /// Remove this affinity, then try another block.
    Drop(Seen<Affinity>),
    /// Remove this block, then decide about its affinity.
    GiveUp(Seen<Block>),
}

impl Agent {
    /// Starts to claim or repair a block, unless a claim is running.
    pub(super) fn start_claim(&mut self, cidr: Cidr) {
        if self.claim.is_none() {
            let affinity = self.view.affinities().get(&cidr).cloned();
            self.claim = Some(Claim { cidr, step: Step::Ready, affinity, tries: 0 });
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
    ///
    /// Takes no longer for a larger pool, nor for more blocks that others have.
    pub(super) fn candidate(&self, pool: &Pool, now: Timestamp) -> Option<Cidr> {
        self.view.blocks().unclaimed(pool, &self.node, now, self.view.reserved(), &self.lost_races)
    }

    /// Takes the running claim as far as it goes without an answer from the store. `wanting` are the jobs that no block in
    /// hand can serve, oldest first.
    pub(super) fn drive_claim(&mut self, wanting: &[u64], now: Timestamp) {
        if self.view.is_locked() {
            // It goes on from where it is when the lock is lifted.
            return;
        }
        let Some(claim) = self.claim.clone().filter(|claim| claim.step == Step::Ready) else { return };
        let mut takers = Vec::new();
        for id in wanting {
            if takers.len() < BATCH && self.wants(*id, claim.cidr) {
                takers.push(*id);
            }
        }
        match self.decide(&claim, &takers, now) {
            Decision::Wait => {}
            Decision::Done => {
                self.claim = None;
                self.again = true;
            }
            Decision::Lost => self.lose(claim.cidr),
            Decision::Commit { draft, affinity, checks } => {
                self.commit_claim(claim.cidr, *draft, affinity, checks, now);
            }
            Decision::GiveUp(seen) => {
                let writes = vec![Write::Delete(Record::Block(seen.value), seen.version)];
                let cidr = Some(claim.cidr);
                let flight = Flight { cidr, writes, jobs: Vec::new(), claims: false, sent: now };
                self.send(flight, Vec::new(), 0);
            }
            Decision::Drop(affinity) => {
                let key = Key::Affinity(affinity.value.owner.clone(), claim.cidr);
                let write = Write::Delete(Record::Affinity(affinity.value), affinity.version);
                let ticket = self.ticket(Errand::ClaimDrop(key));
                self.set_step(Step::Dropping);
                self.effects.push(Effect::Commit { ticket, checks: Vec::new(), writes: vec![write] });
            }
        }
    }

    fn set_step(&mut self, step: Step) {
        if let Some(claim) = &mut self.claim {
            claim.step = step;
        }
    }

    fn decide(&mut self, claim: &Claim, takers: &[u64], now: Timestamp) -> Decision {
        let cidr = claim.cidr;
        if let Some(lane) = self.lanes.get(&cidr) {
            if lane.flying.is_some() || lane.reading.is_some() {
                return Decision::Wait;
            }
            if lane.stale {
                self.read_block(cidr);
                return Decision::Wait;
            }
        }
        match self.view.index().get(&cidr) {
            // Whoever has to correct it decides about the claim too.
            Some(entry) if entry.fault.is_some() => Decision::Lost,
            Some(_) => self.decide_existing(claim, takers, now),
            None => self.decide_new(claim, takers, now),
        }
    }

    /// The block is there: it is ours and its affinity is to be confirmed, or our affinity is in the way of its owner.
    ///
    /// A claim that a crash left is not taken up where the pool is cut differently now, or another block lies across.
    fn decide_existing(&mut self, claim: &Claim, takers: &[u64], now: Timestamp) -> Decision {
        let me = self.view.owner().clone();
        let mine = claim.affinity.clone().filter(|seen| seen.value.owner == me);
        let Some(seen) = self.view.whole(claim.cidr).filter(|_| self.view.owns(claim.cidr)).cloned() else {
            return mine.map_or(Decision::Lost, Decision::Drop);
        };
        match &claim.affinity {
            Some(found) if found.value.owner != me => return Decision::Lost,
            Some(found) if found.value.state == AffinityState::Confirmed => return Decision::Done,
            _ => {}
        }
        let pool = self.view.pools().find(|pool| pool.cidr.contains_cidr(claim.cidr)).cloned();
        if let Some(pool) = &pool
            && !self.view.covers(std::slice::from_ref(pool))
        {
            self.list_blocks();
            return Decision::Wait;
        }
        let begun = claim.affinity.as_ref().is_some_and(|seen| seen.value.state == AffinityState::Pending);
        let outgrown = begun && pool.as_ref().is_some_and(|pool| pool.block_size != claim.cidr.prefix());
        if outgrown || self.view.blocks().overlapping(claim.cidr).len() > 1 {
            return if block::is_empty(&seen.value) { Decision::GiveUp(seen) } else { Decision::Lost };
        }
        let pool = pool.and_then(|pool| self.view.pool(&pool.name));
        let unchanged =
            |pool: &Seen<Pool>| Check::Unchanged(Key::Pool(pool.value.name.clone()), pool.version.revision);
        let checks = pool.map(unchanged).into_iter().collect();
        let mut draft = Draft::of(&seen, self.view.cooldown_seconds(), now);
        draft.touch();
        let draft = Box::new(self.serve(draft, claim.cidr, takers));
        Decision::Commit { draft, affinity: self.passing(claim), checks }
    }

    /// The block is to be made, if the pool still wants it and nobody else is at it.
    fn decide_new(&mut self, claim: &Claim, takers: &[u64], now: Timestamp) -> Decision {
        let cidr = claim.cidr;
        let me = self.view.owner();
        let mine = claim.affinity.clone().filter(|seen| seen.value.owner == *me);
        if claim.affinity.is_some()
            && mine.is_none()
            && !matches!(plan_pending(me, cidr, claim.affinity.as_ref(), false, now), PendingPlan::Write(_))
        {
            return Decision::Lost;
        }
        if mine.is_none() && takers.is_empty() {
            // Whoever wanted it has gone.
            return Decision::Done;
        }
        let pool = self.view.pools().find(|pool| {
            pool.is_enabled() && pool.block_size == cidr.prefix() && pool.cidr.contains_cidr(cidr)
        });
        // The pool may have changed since the block was chosen: what it was made of before is to be known.
        if let Some(pool) = pool
            && !self.view.covers(std::slice::from_ref(pool))
        {
            self.list_blocks();
            return Decision::Wait;
        }
        let pool = pool.filter(|_| self.view.blocks().overlapping(cidr).is_empty());
        let Some(pool) = pool.and_then(|pool| self.view.pool(&pool.name)) else {
            return mine.map_or(Decision::Lost, Decision::Drop);
        };
        let checks = vec![Check::Unchanged(Key::Pool(pool.value.name.clone()), pool.version.revision)];
        let reserved = takers
            .iter()
            .find_map(|id| match self.jobs.get(id).map(|job| &job.task) {
                Some(Task::Add(demand)) => Some(demand.reserved.clone()),
                _ => None,
            })
            .flatten();
        let draft = Draft::new_block(cidr, self.view.owner(), reserved.as_ref(), now);
        let draft = Box::new(self.serve(draft, cidr, takers));
        Decision::Commit { draft, affinity: self.passing(claim), checks }
    }

    /// The affinity's part of the commit: pending while the block is made, confirmed when it stands.
    fn passing(&self, claim: &Claim) -> Write {
        let affinity = |state| {
            let owner = self.view.owner().clone();
            Record::Affinity(Affinity { owner, cidr: claim.cidr, state, deleted: false })
        };
        Write::Pass {
            passing: Box::new(affinity(AffinityState::Pending)),
            last: affinity(AffinityState::Confirmed),
            seen: claim.affinity.as_ref().map(|seen| seen.version.clone()),
        }
    }

    /// Puts jobs into the block, as many as find room. One that finds none stays waiting.
    fn serve(&self, mut draft: Draft, cidr: Cidr, takers: &[u64]) -> Draft {
        for id in takers {
            let Some(job) = self.jobs.get(id) else { continue };
            let Task::Add(demand) = &job.task else { continue };
            let known = self.known(&job.handle);
            let taker = Taker { job: *id, handle: &job.handle, known, attributes: &demand.attributes };
            if let Some(address) = demand.requested {
                let _ = draft.assign(taker, address);
            } else {
                draft.take(taker, self.wanted_of(job, demand, cidr.version()), self.view.reserved());
            }
        }
        draft
    }

    /// Whether a waiting job may take an address of this block.
    fn wants(&mut self, id: u64, cidr: Cidr) -> bool {
        let Some(job) = self.jobs.get(&id).filter(|job| job.stage == Stage::Waiting) else { return false };
        let Task::Add(demand) = &job.task else { return false };
        if let Some(address) = demand.requested {
            return cidr.contains(address);
        }
        let Some(version) = job.left.front().copied().filter(|version| *version == cidr.version()) else {
            return false;
        };
        let demand = demand.clone();
        self.select(&demand, version).is_ok_and(|selection| in_pools(cidr, &selection.usable))
    }

    fn commit_claim(
        &mut self,
        cidr: Cidr,
        draft: Draft,
        affinity: Write,
        checks: Vec<Check>,
        now: Timestamp,
    ) {
        let free = draft.free_after(self.view.reserved());
        let Some(drawn) = draft.finish() else { return };
        for (id, _) in &drawn.jobs {
            if let Some(job) = self.jobs.get_mut(id) {
                job.stage = Stage::Flying;
            }
        }
        let writes = std::iter::once(affinity).chain(drawn.writes).collect();
        self.set_step(Step::Writing);
        let flight = Flight { cidr: Some(cidr), writes, jobs: drawn.jobs, claims: true, sent: now };
        self.send(flight, checks, free);
    }

    fn lose(&mut self, block: Cidr) {
        self.claim = None;
        self.note(Note::LostRace { block });
        self.lost_races.insert(block);
        self.again = true;
    }

    /// The claim's commit went through.
    pub(super) fn claim_stands(&mut self, cidr: Cidr) {
        self.note(Note::Claimed { block: cidr });
        self.claim = None;
        self.lost_races.clear();
        self.again = true;
    }

    /// The claim's commit met a record that had changed, or had no answer (`key` is `None`): what it depends on is read
    /// before anything is written again.
    pub(super) fn claim_asks(&mut self, key: Option<&Key>, affinity_too: bool) {
        let Some(claim) = &mut self.claim else { return };
        claim.tries += 1;
        let (cidr, tries) = (claim.cidr, claim.tries);
        if tries > TRIES {
            self.lose(cidr);
            return;
        }
        let affinity = Key::Affinity(self.view.owner().clone(), cidr);
        let mut keys = Vec::new();
        if affinity_too || matches!(key, Some(Key::Affinity(..))) {
            keys.push(affinity);
        }
        if let Some(pool @ Key::Pool(_)) = key {
            keys.push(pool.clone());
        }
        self.set_step(match u8::try_from(keys.len()) {
            Ok(0) | Err(_) => Step::Ready,
            Ok(reads) => Step::Asking(reads),
        });
        for key in keys {
            let ticket = self.ticket(Errand::ClaimRead(key.clone(), self.view.known_at(&key)));
            self.effects.push(Effect::Read { ticket, key });
        }
        self.again = true;
    }

    /// Gives the running claim up for now; what it has written is found by the next one.
    pub(super) fn abandon_claim(&mut self) {
        self.claim = None;
        self.again = true;
    }

    /// Whether the running claim waits for the answer to a write.
    pub(super) fn claim_is_writing(&self) -> bool {
        self.claim.as_ref().is_some_and(|claim| matches!(claim.step, Step::Writing | Step::Dropping))
    }

    /// The affinity that was in another owner's way was removed, or not.
    pub(super) fn claim_dropped(&mut self, key: &Key, result: Result<Option<Revision>, CommitError>) {
        let Some(cidr) = self.claim.as_ref().map(|claim| claim.cidr) else { return };
        match result {
            Ok(gone) => {
                self.view.absent(key, gone);
                self.lose(cidr);
            }
            // Whoever changed it has decided about it: another block is tried.
            Err(CommitError::Conflict { .. } | CommitError::Refused { .. }) => self.lose(cidr),
            Err(error @ (CommitError::Unknown { .. } | CommitError::Unavailable { .. })) => {
                self.abandon_claim();
                self.unanswered(&error.to_string());
            }
        }
    }

    /// A read for the running claim ended.
    pub(super) fn claim_read(
        &mut self,
        key: &Key,
        known: Option<Revision>,
        result: Result<Option<Stored>, ReadError>,
    ) {
        let found = match result {
            Err(error) => {
                let cidr = self.claim.as_ref().filter(|_| !self.claim_is_writing()).map(|claim| claim.cidr);
                match (cidr, matches!(error, ReadError::Malformed { .. })) {
                    (Some(cidr), true) => self.lose(cidr),
                    (Some(_), false) => self.abandon_claim(),
                    (None, _) => {}
                }
                self.unanswered(&error.to_string());
                return;
            }
            Ok(found) => found,
        };
        if let Some(claim) = &mut self.claim {
            if let Key::Affinity(_, cidr) = key
                && *cidr == claim.cidr
            {
                claim.affinity = found.clone().and_then(Seen::from_stored);
            }
            claim.step = match claim.step {
                Step::Asking(reads) if reads > 1 => Step::Asking(reads - 1),
                Step::Asking(_) => Step::Ready,
                other => other,
            };
        }
        let answers = found.as_ref().is_some_and(|stored| stored.record.key() == *key);
        if !answers {
            self.view.absent(key, known);
        }
        if let Some(stored) = found {
            self.view.keep(stored);
        }
        self.again = true;
    }

    /// Tells a job that the block it holds an address of cannot be confirmed.
    pub(super) fn unconfirmable(&self, cidr: Cidr) -> (u32, String) {
        let message = format!(
            "block {cidr} is of node {} and its affinity is not: delete the BlockAffinity that is wrong",
            self.node
        );
        (NOT_SERVED, message)
    }

    /// What a job's account says of a claimed block.
    pub(super) fn outcome_of(&self, cidr: Cidr, claims: bool) -> BlockOutcome {
        match (claims, self.view.owns(cidr)) {
            (true, _) => BlockOutcome::Claimed,
            (false, true) => BlockOutcome::Took,
            (false, false) => BlockOutcome::Borrowed,
        }
    }
}
