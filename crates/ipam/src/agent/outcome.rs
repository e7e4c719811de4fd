//! What comes back from the store: new versions, conflicts, and the writes of which nobody knows whether they happened.

use super::job::{Errand, Flight, NOT_SERVED, Stage, TRY_AGAIN, Task};
use super::{Agent, Effect, Known, Note, Ticket};
use crate::account::BlockEnd;
use crate::explain::{MAX_RECORD, cut};
use crate::seen::Seen;
use datastore::{CommitError, Key, Kind, Listing, ReadError, Record, Scope, Stored, Version, Write};
use jiff::{SignedDuration, Timestamp};

/// How old a handle may be when the block that counts on it is known to be written, before it is looked at again:
/// well below what a collector waits before it removes a handle without addresses.
const HANDLE_FRESH: SignedDuration = SignedDuration::from_secs(10);

/// Answers of the store that are missing in a row before all requests are told: one alone is asked for again.
const SILENCE: u32 = 3;

impl Agent {
    /// A commit ended.
    pub(super) fn committed(
        &mut self,
        now: Timestamp,
        ticket: Ticket,
        result: Result<Vec<Version>, CommitError>,
    ) {
        if !matches!(result, Err(CommitError::Unavailable { .. } | CommitError::Unknown { .. })) {
            self.silent = 0;
        }
        match self.errands.remove(&ticket) {
            Some(Errand::Lane(flight)) => self.landed(now, flight, result),
            Some(Errand::ClaimDrop(key)) => {
                let gone = result.map(|versions| versions.first().map(|version| version.revision));
                self.claim_dropped(&key, gone);
            }
            Some(Errand::Reclaim(writes)) => self.reclaim_written(writes, result),
            Some(
                Errand::Handle(_)
                | Errand::Block(..)
                | Errand::ClaimRead(..)
                | Errand::ReclaimRead(..)
                | Errand::Index,
            )
            | None => {}
        }
    }

    fn landed(&mut self, now: Timestamp, flight: Flight, result: Result<Vec<Version>, CommitError>) {
        if let Some(lane) = flight.cidr.and_then(|cidr| self.lanes.get_mut(&cidr)) {
            lane.flying = None;
        }
        match result {
            Ok(versions) => self.written(now, flight, versions),
            Err(CommitError::Conflict { key, written }) => {
                self.note(Note::Conflict { key: key.clone() });
                self.distrust(&flight, &key, written > 0);
                // A block write that was refused itself cannot happen any more. To write the block once more for it would
                // refuse somebody else's in turn, and so on.
                if written > 0 && flight.cidr.is_none_or(|cidr| key != Key::Block(cidr)) {
                    self.doubt(&flight);
                }
                self.retry(&flight, &key, written > 0);
                if flight.claims {
                    self.claim_asks(Some(&key), written > 0);
                }
            }
            Err(CommitError::Unavailable { key, reason }) => {
                let message = CommitError::Unavailable { key, reason }.to_string();
                for (id, _) in &flight.jobs {
                    self.fail(*id, TRY_AGAIN, message.clone());
                }
                if flight.claims {
                    self.abandon_claim();
                }
                self.unanswered(&message);
            }
            Err(CommitError::Unknown { key, reason }) => {
                // Nobody knows what was written, or will be: everything is read back and the block written, then it is
                // decided again.
                self.note(Note::Unanswered {
                    reason: CommitError::Unknown { key: key.clone(), reason }.to_string(),
                });
                self.distrust(&flight, &key, true);
                self.doubt(&flight);
                self.retry(&flight, &key, true);
                if flight.claims {
                    self.claim_asks(None, true);
                }
            }
            Err(CommitError::Refused { key, reason, written }) => {
                let message = CommitError::Refused { key: key.clone(), reason, written }.to_string();
                self.distrust(&flight, &key, written > 0);
                if written > 0 {
                    self.doubt(&flight);
                }
                // One handle that the store refuses is that request's own trouble.
                let culprit = match &key {
                    Key::Handle(handle) => flight
                        .jobs
                        .iter()
                        .map(|(id, _)| *id)
                        .find(|id| self.jobs.get(id).is_some_and(|job| job.handle == *handle)),
                    _ => None,
                };
                self.retry(&flight, &key, written > 0);
                match culprit {
                    Some(id) => {
                        self.fail(id, NOT_SERVED, message);
                        if flight.claims {
                            self.claim_asks(None, written > 0);
                        }
                    }
                    None => {
                        for (id, _) in &flight.jobs {
                            self.fail(*id, NOT_SERVED, message.clone());
                        }
                        if flight.claims {
                            self.abandon_claim();
                        }
                    }
                }
            }
        }
    }

    fn written(&mut self, now: Timestamp, flight: Flight, versions: Vec<Version>) {
        let late = now.duration_since(flight.sent) > HANDLE_FRESH;
        self.believe(&flight);
        for (write, version) in flight.writes.into_iter().zip(versions) {
            match write {
                Write::Create(Record::Handle(handle)) | Write::Update(Record::Handle(handle), _) => {
                    let id = handle.id.clone();
                    let known =
                        if late { Known::Unsure } else { Known::Here(Seen::written(handle, version, None)) };
                    self.handles.insert(id, known);
                }
                Write::Delete(Record::Handle(handle), _) => {
                    self.handles.insert(handle.id, Known::Absent);
                }
                Write::Create(record) | Write::Update(record, _) | Write::Pass { last: record, .. } => {
                    self.view.keep(Stored { record, version, created: None });
                }
                Write::Delete(record, _) => self.view.absent(&record.key(), Some(version.revision)),
            }
        }
        for (id, taken) in flight.jobs {
            let outcome = flight.cidr.map(|cidr| (cidr, self.outcome_of(cidr, flight.claims)));
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            job.stage = Stage::Waiting;
            match taken {
                Some(taken) => {
                    if let Some((cidr, outcome)) = outcome.filter(|_| !job.spare.contains(&taken.address)) {
                        job.tried(cidr, outcome);
                    }
                    job.left.pop_front();
                    if late {
                        job.pledged.push(taken);
                    } else {
                        job.got.push(taken);
                    }
                }
                None => {
                    job.visited.extend(flight.cidr);
                    if let (Task::Del(_), Some(cidr)) = (&job.task, flight.cidr) {
                        let addresses = std::mem::take(&mut job.giving);
                        job.account.block(cidr, BlockEnd::Released { addresses });
                    }
                }
            }
        }
        if let Some(cidr) = flight.cidr.filter(|_| flight.claims) {
            self.claim_stands(cidr);
        }
        self.again = true;
    }

    /// Marks what a failed commit touched, or may have touched, as to be read again.
    fn distrust(&mut self, flight: &Flight, key: &Key, all: bool) {
        for write in &flight.writes {
            let touched = write.key();
            if let Key::Handle(handle) = &touched
                && (all || touched == *key)
            {
                self.handles.insert(handle.clone(), Known::Unsure);
            }
        }
        if let Some(cidr) = flight.cidr
            && (all || *key == Key::Block(cidr))
        {
            let lane = self.lanes.entry(cidr).or_default();
            lane.stale = true;
            // A read that is under way was asked for before this came back.
            lane.reading = None;
            self.read_block(cidr);
        }
    }

    /// Remembers that the writes of a commit may happen even after they were not seen in the block.
    fn doubt(&mut self, flight: &Flight) {
        let Some(cidr) = flight.block_written() else { return };
        let handles = flight.writes.iter().filter_map(|write| match write.key() {
            Key::Handle(handle) => Some(handle),
            _ => None,
        });
        self.lanes.entry(cidr).or_default().unsure.get_or_insert_default().extend(handles);
    }

    /// A write of the block went through: no earlier one can any more. Handles that were not there may have come with it.
    fn believe(&mut self, flight: &Flight) {
        let lane = flight.block_written().and_then(|cidr| self.lanes.get_mut(&cidr));
        for handle in lane.and_then(|lane| lane.unsure.take()).into_iter().flatten() {
            if let Some(known @ Known::Absent) = self.handles.get_mut(&handle) {
                *known = Known::Unsure;
            }
        }
    }

    /// Sends the jobs of a failed commit back to be placed again.
    fn retry(&mut self, flight: &Flight, key: &Key, tainted: bool) {
        let since = flight.cidr.and_then(|cidr| self.lanes.get(&cidr)?.reading);
        let since = since.map_or(self.next, |Ticket(read)| read - 1);
        for (id, taken) in &flight.jobs {
            if let Some(job) = self.jobs.get_mut(id) {
                job.stage = Stage::Waiting;
                job.since = since;
                job.attempts += 1;
                // What was renewed is held as before, whatever became of that.
                let new = taken.as_ref().is_some_and(|taken| !job.spare.contains(&taken.address));
                job.tainted |= tainted && new;
                job.conflicts.push(cut(&key.to_string(), MAX_RECORD));
                job.account.conflict(key);
                if let Some(cidr) = &flight.cidr {
                    job.visited.remove(cidr);
                    job.looked.remove(cidr);
                }
            }
        }
        self.again = true;
    }

    /// A read ended.
    pub(super) fn read(&mut self, ticket: Ticket, result: Result<Option<Stored>, ReadError>) {
        if result.is_ok() {
            self.silent = 0;
        }
        match self.errands.remove(&ticket) {
            Some(Errand::Handle(handle)) if !self.is_awaited(&handle, ticket) => {
                self.wake(|job| job.handle == handle);
            }
            Some(Errand::Handle(handle)) => match result {
                Ok(found) => {
                    let known = found.and_then(Seen::from_stored).map_or(Known::Absent, Known::Here);
                    self.handles.insert(handle.clone(), known);
                    self.wake(|job| job.handle == handle);
                }
                Err(error) => {
                    self.handles.insert(handle.clone(), Known::Unsure);
                    if matches!(error, ReadError::Malformed { .. }) {
                        // That is the trouble of whoever needs this handle, and of nobody else.
                        for id in self.turns.get(&handle).cloned().unwrap_or_default() {
                            self.fail(id, NOT_SERVED, error.to_string());
                        }
                        self.handles.remove(&handle);
                    } else {
                        self.unanswered(&error.to_string());
                    }
                }
            },
            Some(Errand::Block(cidr, known)) => {
                let lane = self.lanes.get_mut(&cidr).filter(|lane| lane.reading == Some(ticket));
                if let Some(lane) = lane {
                    lane.reading = None;
                    lane.stale &= !matches!(result, Ok(_) | Err(ReadError::Malformed { .. }));
                }
                match result {
                    Ok(found) => {
                        match found {
                            Some(stored) => self.view.keep(stored),
                            None => self.view.absent(&Key::Block(cidr), known),
                        }
                        if let (None, Some(lane)) = (self.view.index().get(&cidr), self.lanes.get_mut(&cidr))
                        {
                            lane.unsure = None;
                        }
                        let waiting = self.jobs.values_mut().filter(|job| job.stage != Stage::Flying);
                        for job in waiting.filter(|job| job.since < ticket.0) {
                            job.looked.insert(cidr);
                        }
                        self.wake(|_| true);
                    }
                    // It is there, and only who can correct it can do anything about it.
                    Err(ReadError::Malformed { reason, .. }) => {
                        let at = self.view.index_at().max(known.unwrap_or_default());
                        self.view.unreadable(cidr, at, &reason);
                        self.wake(|_| true);
                    }
                    Err(error) => self.unanswered(&error.to_string()),
                }
            }
            Some(Errand::ClaimRead(key, known)) => self.claim_read(&key, known, result),
            Some(Errand::ReclaimRead(key, known)) => self.reclaim_read(&key, known, result),
            Some(Errand::Lane(_) | Errand::ClaimDrop(_) | Errand::Reclaim(_) | Errand::Index) | None => {}
        }
    }

    /// The store did not answer. Who reads, reads again; when that goes on, or the store is known to be away, everybody who is
    /// not part of a commit is told.
    pub(super) fn unanswered(&mut self, reason: &str) {
        self.note(Note::Unanswered { reason: reason.to_owned() });
        self.silent = self.silent.saturating_add(1);
        if self.silent >= SILENCE || self.view.is_lost() {
            self.fail_waiting(reason);
            return;
        }
        let mut tired = Vec::new();
        for (id, job) in self.jobs.iter_mut().filter(|(_, job)| job.stage == Stage::Reading) {
            job.unanswered += 1;
            if job.unanswered >= SILENCE {
                tired.push(*id);
            }
        }
        for id in tired {
            self.fail(id, TRY_AGAIN, reason.to_owned());
        }
        self.wake(|_| true);
    }

    /// Whether nothing was learnt of a handle since this read of it was sent.
    fn is_awaited(&self, handle: &str, ticket: Ticket) -> bool {
        matches!(self.handles.get(handle), Some(Known::Reading(awaited)) if *awaited == ticket)
    }

    fn fail_waiting(&mut self, reason: &str) {
        self.wake(|_| true);
        let waiting: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.stage != Stage::Flying && job.request.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.fail(id, TRY_AGAIN, reason.to_owned());
        }
        // The agent's own jobs do not outlive a store that is away: the runtime's DEL and the collector come after.
        let own: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.stage != Stage::Flying && job.request.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in own {
            self.fail(id, TRY_AGAIN, reason.to_owned());
        }
        if !self.claim_is_writing() {
            self.abandon_claim();
        }
    }

    /// Places jobs again that waited for a read.
    fn wake(&mut self, whom: impl Fn(&super::Job) -> bool) {
        for job in self.jobs.values_mut() {
            if job.stage == Stage::Reading && whom(job) {
                job.stage = Stage::Waiting;
            }
        }
        self.again = true;
    }

    /// Lists all blocks afresh: the watch is behind a pool.
    pub(super) fn list_blocks(&mut self) {
        if !self.indexing {
            self.indexing = true;
            self.view.listing_begins();
            let ticket = self.ticket(Errand::Index);
            self.effects.push(Effect::List { ticket, scope: Scope::All(Kind::Block) });
        }
    }

    /// A list ended.
    pub(super) fn listed(&mut self, ticket: Ticket, result: Result<Listing, ReadError>) {
        if let Some(Errand::Index) = self.errands.remove(&ticket) {
            self.indexing = false;
            match result {
                Ok(listing) => {
                    self.view.replace(Kind::Block, listing);
                    self.again = true;
                }
                Err(error) => {
                    self.note(Note::Unanswered { reason: error.to_string() });
                    self.fail_waiting(&error.to_string());
                }
            }
            self.view.listing_ends();
        }
    }
}
