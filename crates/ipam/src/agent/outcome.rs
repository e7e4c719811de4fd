//! What comes back from the store: new versions, conflicts, and the writes of which nobody knows whether they happened.

use super::job::{Errand, Flight, NOT_SERVED, Stage, TRY_AGAIN};
use super::{Agent, Effect, Known, Note, Ticket};
use crate::block::Taken;
use crate::seen::Seen;
use api::Cidr;
use datastore::{CommitError, Key, Kind, Listing, ReadError, Record, Scope, Stored, Version, Write};

impl Agent {
    /// A commit ended.
    pub(super) fn committed(&mut self, ticket: Ticket, result: Result<Vec<Version>, CommitError>) {
        match self.errands.remove(&ticket) {
            Some(Errand::Lane(flight)) => self.landed(flight, result),
            Some(Errand::Claim) => self.claim_committed(result),
            Some(Errand::Handle(_) | Errand::Block(_) | Errand::Index) | None => {}
        }
    }

    fn landed(&mut self, flight: Flight, result: Result<Vec<Version>, CommitError>) {
        if let Some(lane) = self.lanes.get_mut(&flight.cidr) {
            lane.flying = None;
        }
        match result {
            Ok(versions) => self.written(flight, versions),
            Err(CommitError::Conflict { key, written }) => {
                self.note(Note::Conflict { key: key.clone() });
                self.distrust(&flight, &key, written > 0);
                self.retry(&flight, written > 0);
                if flight.claims {
                    self.claim_conflicts(&key);
                }
            }
            Err(CommitError::Unavailable { key, reason }) => {
                let message = CommitError::Unavailable { key, reason }.to_string();
                self.note(Note::Unanswered { reason: message.clone() });
                for (id, _) in &flight.jobs {
                    self.fail(*id, TRY_AGAIN, message.clone());
                }
                if flight.claims {
                    self.abandon_claim(TRY_AGAIN, &message);
                }
                self.fail_waiting(&message);
            }
            Err(CommitError::Unknown { key, reason }) => {
                // Nobody knows what was written: read everything back, then decide again.
                self.note(Note::Unanswered {
                    reason: CommitError::Unknown { key: key.clone(), reason }.to_string(),
                });
                self.distrust(&flight, &key, true);
                self.retry(&flight, true);
                if flight.claims {
                    self.claim_unsure();
                }
            }
            Err(CommitError::Refused { key, reason, written }) => {
                let message = CommitError::Refused { key: key.clone(), reason, written }.to_string();
                self.distrust(&flight, &key, written > 0);
                // One handle that the store refuses is that request's own trouble.
                let culprit = match &key {
                    Key::Handle(handle) => flight
                        .jobs
                        .iter()
                        .map(|(id, _)| *id)
                        .find(|id| self.jobs.get(id).is_some_and(|job| job.handle == *handle)),
                    _ => None,
                };
                self.retry(&flight, written > 0);
                match culprit {
                    Some(id) => {
                        self.fail(id, NOT_SERVED, message);
                        if flight.claims {
                            self.claim_unsure();
                        }
                    }
                    None => {
                        for (id, _) in &flight.jobs {
                            self.fail(*id, NOT_SERVED, message.clone());
                        }
                        if flight.claims {
                            self.abandon_claim(NOT_SERVED, &message);
                        }
                    }
                }
            }
        }
    }

    fn written(&mut self, flight: Flight, versions: Vec<Version>) {
        for (write, version) in flight.writes.into_iter().zip(versions) {
            match write {
                Write::Create(Record::Handle(handle)) | Write::Update(Record::Handle(handle), _) => {
                    let id = handle.id.clone();
                    self.handles.insert(id, Known::Here(Seen::written(handle, version, None)));
                }
                Write::Delete(Record::Handle(handle), _) => {
                    self.handles.insert(handle.id, Known::Absent);
                }
                Write::Create(record) | Write::Update(record, _) | Write::Pass { last: record, .. } => {
                    self.view.keep(Stored { record, version, created: None });
                }
                Write::Delete(record, _) => self.view.absent(&record.key()),
            }
        }
        if flight.claims {
            let jobs = flight.jobs.into_iter().filter_map(|(id, taken)| Some((id, taken?))).collect();
            self.claim_stands(jobs);
        } else {
            for (id, taken) in flight.jobs {
                self.got(id, taken, flight.cidr);
            }
        }
    }

    /// A job's commit went through.
    pub(super) fn got(&mut self, id: u64, taken: Option<Taken>, cidr: Cidr) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.stage = Stage::Waiting;
        if let Some(taken) = taken {
            job.left.pop_front();
            job.got.push(taken);
        } else {
            job.visited.insert(cidr);
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
        let block = Key::Block(flight.cidr);
        if all || *key == block {
            self.lanes.entry(flight.cidr).or_default().stale = true;
            self.read_block(flight.cidr);
        }
    }

    /// Sends the jobs of a failed commit back to be placed again.
    fn retry(&mut self, flight: &Flight, tainted: bool) {
        for (id, taken) in &flight.jobs {
            if let Some(job) = self.jobs.get_mut(id) {
                job.stage = Stage::Waiting;
                job.attempts += 1;
                job.tainted |= tainted && taken.is_some();
                job.visited.remove(&flight.cidr);
            }
        }
        self.again = true;
    }

    /// Tells everybody who is not part of a commit that the store cannot be reached.
    pub(super) fn fail_waiting(&mut self, message: &str) {
        let waiting: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.stage != Stage::Flying && job.request.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.fail(id, TRY_AGAIN, message.to_owned());
        }
    }

    /// A read ended.
    pub(super) fn read(&mut self, ticket: Ticket, result: Result<Option<Stored>, ReadError>) {
        match self.errands.remove(&ticket) {
            Some(Errand::Handle(handle)) => match result {
                Ok(found) => {
                    let known = found.and_then(Seen::from_stored).map_or(Known::Absent, Known::Here);
                    self.handles.insert(handle.clone(), known);
                    self.wake(Some(&handle));
                }
                Err(error) => {
                    self.handles.insert(handle, Known::Unsure);
                    self.unanswered(&error);
                }
            },
            Some(Errand::Block(cidr)) => {
                if let Some(lane) = self.lanes.get_mut(&cidr) {
                    lane.reading = None;
                }
                match result {
                    Ok(found) => {
                        if let Some(lane) = self.lanes.get_mut(&cidr) {
                            lane.stale = false;
                        }
                        match found {
                            Some(stored) => self.view.keep(stored),
                            None => self.view.absent(&Key::Block(cidr)),
                        }
                        self.wake(None);
                    }
                    Err(error) => self.unanswered(&error),
                }
            }
            Some(Errand::Claim) => self.claim_read(result),
            Some(Errand::Lane(_) | Errand::Index) | None => {}
        }
    }

    fn unanswered(&mut self, error: &ReadError) {
        let reason = error.to_string();
        self.note(Note::Unanswered { reason: reason.clone() });
        self.wake(None);
        self.fail_waiting(&reason);
        // The agent's own jobs do not outlive a store that is away: the runtime's DEL and the collector come after.
        let own: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.stage != Stage::Flying && job.request.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in own {
            self.fail(id, TRY_AGAIN, reason.clone());
        }
        if !self.claim_is_writing() {
            self.abandon_claim(TRY_AGAIN, &reason);
        }
    }

    /// Places jobs again that waited for a read: those of a handle, or all.
    fn wake(&mut self, handle: Option<&str>) {
        for job in self.jobs.values_mut() {
            if job.stage == Stage::Reading && handle.is_none_or(|handle| job.handle == handle) {
                job.stage = Stage::Waiting;
            }
        }
        self.again = true;
    }

    /// Lists all blocks afresh: the watch is behind a pool.
    pub(super) fn list_blocks(&mut self) {
        if !self.indexing {
            self.indexing = true;
            let ticket = self.ticket(Errand::Index);
            self.effects.push(Effect::List { ticket, scope: Scope::All(Kind::Block) });
        }
    }

    /// A list ended.
    pub(super) fn listed(&mut self, ticket: Ticket, result: Result<Listing, ReadError>) {
        if let Some(Errand::Index) = self.errands.remove(&ticket) {
            self.indexing = false;
            match result {
                Ok(listing) => self.view.replace(Kind::Block, listing),
                Err(error) => self.unanswered(&error),
            }
        }
    }
}
