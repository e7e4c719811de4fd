//! Blocks that nobody uses: an empty one of another owner that this node needs (algorithm §8 step 3), and own ones in pools
//! that are no longer for this node (§7.3, §12.1).
//!
//! ```text
//!   Reading ─────────► Leaving ─────────────► Going ──────────────────► gone: claimed like any network
//!    affinity, block    pendingDeletion        block, affinity deleted
//!      └──────────────────┴──────────────────────┴─ it is used, or somebody interferes: it is passed over
//! ```
//!
//! These are the steps of [`crate::affinity::release_affinity`], each conditional on what was read: an owner that takes an
//! address meanwhile, or claims its block again, makes the next step fail. Own blocks are known and not read.
//!
//! Datastore calls: 2 reads at once and 2 commits, then those of the claim; a block without owner 1 read and 1 commit; an own
//! block 2 commits, and after a failure none for [`REST`]. At most [`TRIES`] blocks are passed over, until nothing waits any
//! more. While the datastore is locked nothing is taken back.

use super::job::Errand;
use super::{Agent, Effect, Note};
use crate::block;
use crate::plan;
use crate::pools::{self, Selection};
use crate::seen::Seen;
use crate::vacancy::MIN_RECLAIM_AGE;
use api::{Affinity, AffinityState, Block, Cidr, Owner};
use datastore::{CommitError, Key, ReadError, Record, Revision, Stored, Version, Write};
use jiff::{SignedDuration, Timestamp};

/// Blocks of others that are passed over before no more are tried, until nothing waits any more.
pub(super) const TRIES: usize = 8;

/// How long own blocks are left alone after one could not be given up: nobody waits for that.
const REST: SignedDuration = SignedDuration::from_secs(60);

/// How far it has got.
#[derive(Clone, Debug)]
enum Step {
    /// Affinity and block of another owner are being read.
    Reading { affinity: Option<Option<Seen<Affinity>>>, block: Option<Option<Seen<Block>>> },
    /// The affinity is being marked.
    Leaving(Seen<Block>, Affinity),
    /// Block and affinity are being deleted.
    Going,
}

/// The one block that is being taken back.
#[derive(Clone, Debug)]
pub(super) struct Reclaim {
    cidr: Cidr,
    owner: Option<Owner>,
    step: Step,
}

impl Agent {
    /// Whether a block of another is being taken from its owner: whoever wants one waits for that.
    pub(super) fn is_reclaiming(&self) -> bool {
        self.reclaim.as_ref().is_some_and(|reclaim| reclaim.owner.as_ref() != Some(self.view.owner()))
    }

    /// Starts to take an empty block of another owner from these pools. False: there is none, or enough were tried.
    pub(super) fn start_reclaim(&mut self, selection: &Selection, now: Timestamp) -> bool {
        if self.reclaim.is_some() {
            return self.is_reclaiming();
        }
        if self.kept.len() >= TRIES {
            return false;
        }
        let Some((cidr, owner)) = self.reclaimable(selection, now) else { return false };
        let mut keys = vec![Key::Block(cidr)];
        keys.extend(owner.clone().map(|owner| Key::Affinity(owner, cidr)));
        let affinity = owner.is_none().then_some(None);
        self.reclaim = Some(Reclaim { cidr, owner, step: Step::Reading { affinity, block: None } });
        for key in keys {
            let ticket = self.ticket(Errand::ReclaimRead(key.clone(), self.view.known_at(&key)));
            self.effects.push(Effect::Read { ticket, key });
        }
        true
    }

    /// The first empty block in the order of the candidates that its owner has had for long enough.
    fn reclaimable(&mut self, selection: &Selection, now: Timestamp) -> Option<(Cidr, Option<Owner>)> {
        for pool in &selection.usable {
            let start = self.start_of(pool, now);
            let found = self.view.blocks().unused(pool, start).find(|(cidr, entry)| {
                let old = entry.is_unused_for(MIN_RECLAIM_AGE, now);
                let quiet = self.lanes.get(cidr).is_none_or(|lane| lane.is_idle());
                cidr.prefix() == pool.block_size
                    && entry.free > 0
                    && old
                    && quiet
                    && !self.kept.contains(cidr)
            });
            if let Some((cidr, entry)) = found {
                return Some((cidr, entry.owner.clone()));
            }
        }
        None
    }

    /// Starts to give up an own block that is empty, in a pool that is no longer for this node.
    pub(super) fn give_up_deselected(&mut self) {
        if self.reclaim.is_some() || self.claim.is_some() || self.deselecting().is_empty() {
            return;
        }
        // An instant further away than the longest rest is of a clock that was set back.
        let rests = self.rest_until.is_some_and(|until| {
            let left = until.duration_since(self.now);
            left > SignedDuration::ZERO && left <= REST
        });
        if rests || self.view.is_locked() || self.view.is_lost() {
            return;
        }
        let pools = self.deselecting().to_vec();
        let (cooldown, now) = (self.view.cooldown_seconds(), self.now);
        let found = self.view.affinities().values().find_map(|affinity| {
            let cidr = affinity.value.cidr;
            let idle = self.lanes.get(&cidr).is_none_or(|lane| lane.is_idle());
            if !idle || !pools.iter().any(|pool| pool.contains_cidr(cidr)) || !self.view.owns(cidr) {
                return None;
            }
            let mut block = self.view.whole(cidr)?.clone();
            block::collect(&mut block.value, cooldown, now);
            block::is_empty(&block.value).then(|| (affinity.clone(), block))
        });
        let Some((affinity, block)) = found else { return };
        let (cidr, owner) = (block.value.cidr, Some(self.view.owner().clone()));
        self.reclaim = Some(Reclaim { cidr, owner, step: Step::Going });
        self.mark(affinity, block);
    }

    /// CIDRs of the enabled pools whose node selector leaves this node out.
    fn deselecting(&mut self) -> &[Cidr] {
        let generation = self.view.generation();
        if self.deselecting.as_ref().is_none_or(|(at, _)| *at != generation) {
            let labels = self.view.labels();
            let out = self.view.pools().filter(|pool| {
                pool.is_enabled()
                    && labels.is_some_and(|labels| pools::selects_node(pool, labels) == Ok(false))
            });
            let out = out.map(|pool| pool.cidr).collect();
            self.deselecting = Some((generation, out));
        }
        self.deselecting.as_ref().map_or(&[], |(_, out)| out)
    }

    /// A read of what is to be taken back ended.
    pub(super) fn reclaim_read(
        &mut self,
        key: &Key,
        known: Option<Revision>,
        result: Result<Option<Stored>, ReadError>,
    ) {
        let found = match result {
            Ok(found) => found,
            Err(error) => {
                self.pass_over();
                if !matches!(error, ReadError::Malformed { .. }) {
                    self.unanswered(&error.to_string());
                }
                return;
            }
        };
        if let Some(Reclaim { cidr, step: Step::Reading { affinity, block }, .. }) = &mut self.reclaim {
            match key {
                Key::Affinity(_, of) if of == cidr => {
                    *affinity = Some(found.clone().and_then(Seen::from_stored));
                }
                Key::Block(of) if of == cidr => *block = Some(found.clone().and_then(Seen::from_stored)),
                // Of one that was passed over meanwhile.
                _ => {}
            }
        }
        match (found, key) {
            (Some(stored), _) => self.view.keep(stored),
            (None, Key::Block(_)) => self.view.absent(key, known),
            (None, _) => {}
        }
        self.take_back();
    }

    /// Goes on when both records are read.
    fn take_back(&mut self) {
        let Some(Reclaim {
            cidr,
            owner,
            step: Step::Reading { affinity: Some(affinity), block: Some(block) },
        }) = self.reclaim.clone()
        else {
            return;
        };
        let (cooldown, now) = (self.view.cooldown_seconds(), self.now);
        let is_unused = |seen: &Seen<Block>| {
            let mut block = seen.value.clone();
            block::collect(&mut block, cooldown, now);
            block.affinity == owner
                && block::is_empty(&block)
                && is_old(block.claim_time.unwrap_or(Timestamp::MIN), now)
        };
        let theirs = affinity.filter(|seen| Some(&seen.value.owner) == owner.as_ref());
        // A job may have come to work on it since the reads were sent.
        if self.lanes.get(&cidr).is_some_and(|lane| !lane.is_idle()) {
            return self.pass_over();
        }
        match (block.filter(is_unused), theirs) {
            (Some(block), Some(affinity)) => self.mark(affinity, block),
            // Nobody has it (quirk Q22).
            (Some(block), None) if owner.is_none() => {
                self.delete(cidr, vec![Write::Delete(Record::Block(block.value), block.version)]);
            }
            _ => self.pass_over(),
        }
    }

    /// Marks the affinity, so that its owner's next claim of the block and this meet each other.
    fn mark(&mut self, affinity: Seen<Affinity>, block: Seen<Block>) {
        let cidr = block.value.cidr;
        let write = plan::affinity_write(&affinity, AffinityState::PendingDeletion);
        let going = Affinity { state: AffinityState::PendingDeletion, ..affinity.value };
        self.send_reclaim(cidr, Step::Leaving(block, going), vec![write]);
    }

    fn delete(&mut self, cidr: Cidr, writes: Vec<Write>) {
        self.send_reclaim(cidr, Step::Going, writes);
    }

    fn send_reclaim(&mut self, cidr: Cidr, step: Step, writes: Vec<Write>) {
        if self.view.is_locked() {
            return self.pass_over();
        }
        let Some(reclaim) = &mut self.reclaim else { return };
        reclaim.step = step;
        let ticket = self.ticket(Errand::Reclaim(writes.clone()));
        // Nothing else is planned on the block meanwhile.
        self.lanes.entry(cidr).or_default().flying = Some((ticket, 0));
        self.effects.push(Effect::Commit { ticket, checks: Vec::new(), writes });
    }

    /// A commit of what takes a block back ended.
    pub(super) fn reclaim_written(&mut self, writes: Vec<Write>, result: Result<Vec<Version>, CommitError>) {
        let Some(Reclaim { cidr, owner, step }) = self.reclaim.clone() else { return };
        if let Some(lane) = self.lanes.get_mut(&cidr) {
            lane.flying = None;
        }
        self.again = true;
        match (step, result) {
            (Step::Leaving(block, going), Ok(versions)) => {
                let Some(version) = versions.into_iter().next() else { return self.pass_over() };
                let record = Record::Affinity(going.clone());
                self.view.keep(Stored { record, version: version.clone(), created: None });
                self.delete(cidr, vec![plan::disown(block), Write::Delete(Record::Affinity(going), version)]);
            }
            (_, Ok(versions)) => {
                self.gone(&writes, versions.len(), &versions);
                self.note(Note::Reclaimed { block: cidr, owner });
                self.reclaim = None;
            }
            (_, Err(CommitError::Conflict { written, .. } | CommitError::Refused { written, .. })) => {
                self.gone(&writes, written, &[]);
                self.pass_over();
            }
            (_, Err(error)) => {
                // What it may have done, or may do yet, is conditional on a block with nothing in it.
                self.lanes.entry(cidr).or_default().stale = true;
                self.read_block(cidr);
                let own = owner.as_ref() == Some(self.view.owner());
                self.pass_over();
                if own {
                    // No request hangs on it.
                    self.note(Note::Unanswered { reason: error.to_string() });
                } else {
                    self.unanswered(&error.to_string());
                }
            }
        }
    }

    /// Takes what was deleted out of what is known.
    fn gone(&mut self, writes: &[Write], made: usize, versions: &[Version]) {
        for (at, write) in writes.iter().enumerate().take(made) {
            let Write::Delete(record, seen) = write else { continue };
            let version = versions.get(at).unwrap_or(seen);
            self.view.absent(&record.key(), Some(version.revision));
        }
    }

    /// Leaves a block with its owner.
    fn pass_over(&mut self) {
        if let Some(reclaim) = self.reclaim.take() {
            if reclaim.owner.as_ref() == Some(self.view.owner()) {
                self.rest_until = self.now.checked_add(REST).ok();
            } else {
                self.kept.insert(reclaim.cidr);
            }
        }
        self.again = true;
    }
}

fn is_old(since: Timestamp, now: Timestamp) -> bool {
    now.duration_since(since) >= MIN_RECLAIM_AGE
}
