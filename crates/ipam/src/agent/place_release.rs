//! Planning of a DEL: what a handle holds goes back block by block, and the handle with the last of it.

use super::draft::Draft;
use super::job::{Flight, Job, Reply};
use super::place::{Access, Next, Round, faulty, held};
use super::{Agent, Known};
use crate::plan::handle_write;
use api::{Cidr, Ordinal};
use datastore::{Record, Write};
use jiff::Timestamp;

impl Agent {
    /// Releases what a handle holds, one block a commit.
    pub(super) fn place_del(
        &mut self,
        id: u64,
        job: &mut Job,
        legacy_handle: Option<String>,
        round: &mut Round,
        now: Timestamp,
    ) -> Next {
        match self.handles.get(&job.handle) {
            None | Some(Known::Unsure) => {
                self.read_handle(&job.handle.clone());
                return Next::Read;
            }
            Some(Known::Reading) => return Next::Read,
            Some(Known::Absent | Known::Here(_)) => {}
        }
        let own: Vec<Cidr> = self
            .view
            .own_blocks()
            .filter(|seen| held(&seen.value, &job.handle, job.interface()).next().is_some())
            .map(|seen| seen.value.cidr)
            .collect();
        let counted: Vec<Cidr> = self
            .known(&job.handle)
            .into_iter()
            .flat_map(|seen| seen.value.blocks.keys().copied())
            .filter(|cidr| !job.visited.contains(cidr))
            .collect();
        let cooldown = self.view.config().ip_cooldown_seconds;
        for cidr in own.into_iter().chain(counted) {
            match self.access(cidr) {
                Access::Busy(_) => return Next::Wait,
                Access::Reading => {
                    job.attempts += 1;
                    return Next::Read;
                }
                Access::Faulty(fault) => return faulty(cidr, &fault),
                Access::Gone => {
                    job.visited.insert(cidr);
                    if let Some(write) = handle_write(&job.handle, self.known(&job.handle), cidr, 0) {
                        return self.send_handle(id, cidr, write);
                    }
                }
                Access::Ready => {
                    let Some(seen) = self.view.whole(cidr) else { continue };
                    let ordinals: Vec<Ordinal> = held(&seen.value, &job.handle, job.interface()).collect();
                    let draft = round.drafts.entry(cidr).or_insert_with(|| Draft::of(seen, cooldown, now));
                    if draft.is_full() {
                        return Next::Wait;
                    }
                    job.visited.insert(cidr);
                    draft.give_back(id, &job.handle, self.known(&job.handle), &ordinals, cooldown, now);
                    return Next::Fly;
                }
            }
        }
        // A handle that counts nothing is in nobody's way, but it should not stay either.
        if let Some(seen) = self.known(&job.handle).filter(|seen| seen.value.blocks.is_empty()) {
            let write = Write::Delete(Record::Handle(seen.value.clone()), seen.version.clone());
            if let Some(cidr) = self.view.index().keys().next().copied()
                && self.lanes.get(&cidr).is_none_or(super::Lane::is_idle)
                && !round.drafts.contains_key(&cidr)
            {
                return self.send_handle(id, cidr, write);
            }
        }
        if let Some(legacy) = legacy_handle.filter(|legacy| *legacy != job.handle)
            && self.view.own_blocks().any(|seen| held(&seen.value, &legacy, None).next().is_some())
        {
            job.handle = legacy;
            job.visited.clear();
            self.again = true;
            return Next::Wait;
        }
        Next::Answer(Reply::Deleted)
    }

    /// Commits a handle alone.
    fn send_handle(&mut self, id: u64, cidr: Cidr, write: Write) -> Next {
        let flight = Flight { cidr, writes: vec![write], jobs: vec![(id, None)], claims: false };
        self.send(flight, Vec::new(), 0);
        Next::Fly
    }
}
