//! What a handle holds already: the answer to a repeated ADD, once the store has said that it still stands.

use super::job::{Demand, Flight, Job, TRY_AGAIN};
use super::place::{Access, Next, Round, refusal};
use super::{Agent, Known};
use crate::block::{self, Taken};
use crate::plan::handle_write;
use api::{Block, Cidr, IpVersion, Ordinal};
use std::net::IpAddr;

/// What is known of an address for a job's next family.
pub(super) enum Held {
    /// This one, and the store agrees.
    This(Taken),
    /// None.
    Nothing,
    /// Something has to be read or written first.
    Later(Next),
}

impl Agent {
    /// Looks for an address of `version` that the job's handle holds and that is not part of its answer yet.
    pub(super) fn find_held(
        &mut self,
        id: u64,
        job: &mut Job,
        demand: &Demand,
        version: IpVersion,
        round: &Round,
    ) -> Held {
        let own = self.view.held_by(&job.handle).find_map(|seen| fitting(&seen.value, job, demand, version));
        if let Some(found) = own {
            return match self.confirm_held(id, job, &found, round) {
                Some(next) => Held::Later(next),
                None => Held::This(found),
            };
        }
        let counted: Vec<Cidr> = match self.handles.get(&job.handle) {
            Some(Known::Unsure) => {
                self.read_handle(&job.handle);
                return Held::Later(Next::Read);
            }
            Some(Known::Reading) => return Held::Later(Next::Read),
            Some(Known::Here(seen)) => seen.value.blocks.keys().copied().collect(),
            Some(Known::Absent) | None => return Held::Nothing,
        };
        for cidr in counted.into_iter().filter(|cidr| cidr.version() == version) {
            if job.visited.contains(&cidr) {
                continue;
            }
            match self.access(cidr) {
                Access::Busy(_) => return Held::Later(Next::Wait),
                Access::Reading => return Held::Later(Next::Read),
                Access::Gone | Access::Faulty(_) => {}
                // Own blocks were looked through above.
                Access::Ready if self.view.owns(cidr) => {}
                Access::Ready => {
                    let found =
                        self.view.whole(cidr).and_then(|seen| fitting(&seen.value, job, demand, version));
                    if let Some(found) = found {
                        return match self.confirm_held(id, job, &found, round) {
                            Some(next) => Held::Later(next),
                            None => Held::This(found),
                        };
                    }
                }
            }
            job.visited.insert(cidr);
        }
        Held::Nothing
    }

    /// Makes sure that an address found in a block may be answered. `Some`: not yet.
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
        // What was seen by watch may have been taken away since: the store is asked once. Both reads go out together.
        if matches!(self.handles.get(&job.handle), None | Some(Known::Unsure)) {
            self.read_handle(&job.handle);
        }
        if !job.looked.contains(&found.block) {
            self.read_block(found.block);
            return Some(Next::Read);
        }
        if self.view.owns(found.block) && !self.view.is_in_hand(found.block) {
            if self.lost_races.contains(&found.block) {
                let (code, message) = self.unconfirmable(found.block);
                return Some(refusal(code, message));
            }
            self.start_claim(found.block);
            return Some(Next::Wait);
        }
        match self.handles.get(&job.handle) {
            Some(Known::Here(seen)) if seen.value.blocks.contains_key(&found.block) => None,
            Some(Known::Reading | Known::Unsure) | None => Some(Next::Read),
            // The block was written and its handle was not, or it was collected: write it now.
            Some(Known::Here(_) | Known::Absent) => Some(self.write_handle(id, job, found.block, round)),
        }
    }

    /// Sets the handle's count for a block from the block in hand.
    fn write_handle(&mut self, id: u64, job: &Job, cidr: Cidr, round: &Round) -> Next {
        if round.drafts.contains_key(&cidr) {
            // The draft goes out at the end of this round; then the block is busy until it is back.
            self.again = true;
            return Next::Wait;
        }
        let Some(seen) = self.view.whole(cidr) else { return Next::Wait };
        let count = block::count_of(&seen.value, &job.handle);
        let free = block::free_count(&seen.value, self.view.reserved());
        let Some(write) = handle_write(&job.handle, self.known(&job.handle), cidr, count) else {
            return Next::Wait;
        };
        let flight = Flight {
            cidr: Some(cidr),
            writes: vec![write],
            jobs: vec![(id, None)],
            claims: false,
            sent: self.now,
        };
        self.send(flight, Vec::new(), free);
        Next::Fly
    }

    /// Sees to it that the handle still knows of addresses whose write took so long that a collector may have removed it
    /// meanwhile (architecture D4). `None`: it does.
    pub(super) fn settle_pledges(&mut self, id: u64, job: &mut Job, round: &Round) -> Option<Next> {
        let blocks: Vec<Cidr> = job.pledged.iter().map(|taken| taken.block).collect();
        for cidr in blocks {
            match self.handles.get(&job.handle) {
                None | Some(Known::Unsure) => {
                    self.read_handle(&job.handle);
                    return Some(Next::Read);
                }
                Some(Known::Reading) => return Some(Next::Read),
                Some(Known::Here(seen)) if seen.value.blocks.contains_key(&cidr) => {}
                Some(Known::Here(_) | Known::Absent) => match self.access(cidr) {
                    Access::Busy(_) => return Some(Next::Wait),
                    Access::Reading => return Some(Next::Read),
                    Access::Ready => return Some(self.write_handle(id, job, cidr, round)),
                    Access::Gone | Access::Faulty(_) => {
                        // The address went with its block, or nobody may touch it: it is not answered.
                        for lost in job.pledged.extract_if(.., |taken| taken.block == cidr) {
                            job.left.push_back(IpVersion::of(lost.address));
                        }
                    }
                },
            }
        }
        job.got.append(&mut job.pledged);
        None
    }

    /// How many addresses of the family the job wants now: what is left, as far as its handle's cap goes.
    pub(super) fn wanted_of(&self, job: &Job, demand: &Demand, version: IpVersion) -> usize {
        let wanted = job.left.iter().take_while(|left| **left == version).count();
        if demand.max_per_handle == 0 {
            return wanted;
        }
        let room = u64::from(demand.max_per_handle).saturating_sub(self.held_count(&job.handle, version));
        wanted.min(usize::try_from(room).unwrap_or(usize::MAX))
    }

    /// How many addresses of the family the handle holds already, if that leaves no room for what is still wanted.
    pub(super) fn at_cap(&self, job: &Job, demand: &Demand, version: IpVersion) -> Option<u64> {
        let wanted = job.left.iter().filter(|left| **left == version).count();
        let held = self.held_count(&job.handle, version);
        let cap = u64::from(demand.max_per_handle);
        let full = held.saturating_add(u64::try_from(wanted).unwrap_or(u64::MAX)) > cap;
        (cap > 0 && full).then_some(held)
    }

    /// What own blocks hold for a handle, and what its record counts in those of others: a count that a crash left too
    /// high does not lock the handle out of own blocks.
    fn held_count(&self, handle: &str, version: IpVersion) -> u64 {
        let own = self.view.held_by(handle).filter(|seen| seen.value.cidr.version() == version);
        let own: u64 = own.map(|seen| u64::from(block::count_of(&seen.value, handle))).sum();
        let counted = self.known(handle).into_iter().flat_map(|seen| &seen.value.blocks);
        let elsewhere: u64 = counted
            .filter(|(cidr, _)| cidr.version() == version && !self.view.owns(**cidr))
            .map(|(_, count)| u64::from(*count))
            .sum();
        own.saturating_add(elsewhere)
    }
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

/// An address of `block` that answers the job's next wish.
fn fitting(found: &Block, job: &Job, demand: &Demand, version: IpVersion) -> Option<Taken> {
    if found.cidr.version() != version {
        return None;
    }
    let answered = |address: IpAddr| job.got.iter().any(|taken| taken.address == address);
    held(found, &job.handle, job.interface()).find_map(|ordinal| {
        let address = found.cidr.address(ordinal)?;
        let wished = demand.requested.is_none_or(|requested| requested == address);
        (wished && !answered(address)).then(|| Taken {
            block: found.cidr,
            ordinal,
            address,
            sequence: block::stamp(found, ordinal),
        })
    })
}
