//! Planning of a DEL: what a handle holds goes back block by block, and the handle with the last of it.

use super::draft::{Draft, Giver};
use super::held::held;
use super::job::{Flight, Job, Reply};
use super::place::{Access, Next, Round, faulty};
use super::{Agent, Known};
use crate::account::BlockEnd;
use crate::block;
use api::{Block, Cidr, Ordinal};
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
        // Writes for this handle that may still happen are kept out before anything is believed to be gone.
        let unsure: Vec<Cidr> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.unsure.as_ref().is_some_and(|handles| handles.contains(&job.handle)))
            .map(|(cidr, _)| *cidr)
            .collect();
        for cidr in unsure {
            match self.access(cidr) {
                Access::Busy(_) => return Next::Wait,
                Access::Reading => return Next::Read,
                Access::Ready | Access::Gone | Access::Faulty(_) => {}
            }
        }
        match self.handles.get(&job.handle) {
            None | Some(Known::Unsure) => {
                self.read_handle(&job.handle.clone());
                return Next::Read;
            }
            Some(Known::Reading(_)) => return Next::Read,
            Some(Known::Absent | Known::Here(_)) => {}
        }
        let own: Vec<Cidr> = self
            .view
            .held_by(&job.handle)
            .filter(|seen| !self.due(&seen.value, job).is_empty())
            .map(|seen| seen.value.cidr)
            .collect();
        let counted: Vec<Cidr> = self
            .known(&job.handle)
            .into_iter()
            .flat_map(|seen| seen.value.blocks.keys().copied())
            .filter(|cidr| !job.visited.contains(cidr))
            .collect();
        let cooldown = self.view.cooldown_seconds();
        for cidr in own.into_iter().chain(counted) {
            match self.access(cidr) {
                Access::Busy(_) => return Next::Wait,
                Access::Reading => return Next::Read,
                Access::Faulty(fault) => {
                    job.account.block(cidr, BlockEnd::failed(&fault));
                    return faulty(cidr, &fault);
                }
                Access::Gone if !job.looked.contains(&cidr) => {
                    self.read_block(cidr);
                    return Next::Read;
                }
                // The block may still come, where its write is late: whether the handle counts too much is for the
                // collector to say, after a while.
                Access::Gone => {
                    job.account.block(cidr, BlockEnd::Gone);
                    job.visited.insert(cidr);
                }
                Access::Ready => {
                    let Some(seen) = self.view.whole(cidr) else { continue };
                    let ordinals = self.due(&seen.value, job);
                    if ordinals.is_empty() {
                        if block::count_of(&seen.value, &job.handle) > 0 {
                            // Another interface's, or what stays whatever becomes of the request.
                            job.visited.insert(cidr);
                            continue;
                        }
                        // The handle counts something here that the block does not show: the store is asked before
                        // the count is taken away.
                        if !job.looked.contains(&cidr) {
                            self.read_block(cidr);
                            return Next::Read;
                        }
                    }
                    let draft = round.drafts.entry(cidr).or_insert_with(|| Draft::of(seen, cooldown, now));
                    if draft.is_full() {
                        return Next::Wait;
                    }
                    job.visited.insert(cidr);
                    let known = self.known(&job.handle);
                    let giver = Giver { job: id, handle: &job.handle, known, ordinals: &ordinals };
                    draft.give_back(giver, cooldown, now);
                    job.giving = ordinals.len();
                    return Next::Fly;
                }
            }
        }
        // A handle that counts nothing is in nobody's way, but it should not stay either.
        if let Some(seen) = self.known(&job.handle).filter(|seen| seen.value.blocks.is_empty()) {
            let write = Write::Delete(Record::Handle(seen.value.clone()), seen.version.clone());
            let jobs = vec![(id, None)];
            let flight = Flight { cidr: None, writes: vec![write], jobs, claims: false, sent: now };
            self.send(flight, Vec::new(), 0);
            return Next::Fly;
        }
        if let Some(legacy) = legacy_handle.filter(|legacy| *legacy != job.handle)
            && self.view.held_by(&legacy).any(|seen| held(&seen.value, &legacy, None).next().is_some())
        {
            job.handle = legacy;
            job.visited.clear();
            self.again = true;
            return Next::Wait;
        }
        Next::Answer(Reply::Deleted)
    }

    /// What a job gives back of a block.
    fn due(&self, found: &Block, job: &Job) -> Vec<Ordinal> {
        let spared = |ordinal: &Ordinal| {
            found.cidr.address(*ordinal).is_some_and(|address| job.spare.contains(&address))
        };
        held(found, &job.handle, job.interface()).filter(|ordinal| !spared(ordinal)).collect()
    }
}
