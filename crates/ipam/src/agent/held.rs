//! What a handle holds already: the answer to a repeated ADD, once a write of its block has said that it still stands.

use super::draft::{Draft, Taker};
use super::job::{Demand, Flight, Job, TRY_AGAIN};
use super::place::{Access, Next, Round, refusal};
use super::{Agent, Known};
use crate::block;
use crate::plan::handle_write;
use api::{Block, Cidr, IpVersion, Ordinal};
use jiff::Timestamp;
use std::net::IpAddr;

impl Agent {
    /// Looks for an address of `version` that the job's handle holds and that is not part of its answer yet, and renews it.
    /// `None`: there is none.
    pub(super) fn find_held(
        &mut self,
        id: u64,
        job: &mut Job,
        demand: &Demand,
        version: IpVersion,
        round: &mut Round,
        now: Timestamp,
    ) -> Option<Next> {
        let own = self.view.held_by(&job.handle).find_map(|seen| fitting(&seen.value, job, demand, version));
        if let Some((cidr, found)) = own {
            return Some(self.renew(id, job, demand, cidr, &found, round, now));
        }
        let counted: Vec<Cidr> = match self.handles.get(&job.handle) {
            Some(Known::Unsure) => {
                self.read_handle(&job.handle);
                return Some(Next::Read);
            }
            Some(Known::Reading(_)) => return Some(Next::Read),
            Some(Known::Here(seen)) => seen.value.blocks.keys().copied().collect(),
            Some(Known::Absent) | None => return None,
        };
        for cidr in counted.into_iter().filter(|cidr| cidr.version() == version) {
            if job.visited.contains(&cidr) {
                continue;
            }
            match self.access(cidr) {
                Access::Busy(_) => return Some(Next::Wait),
                Access::Reading => return Some(Next::Read),
                Access::Gone | Access::Faulty(_) => {}
                // Own blocks were looked through above.
                Access::Ready if self.view.owns(cidr) => {}
                Access::Ready => {
                    let found =
                        self.view.whole(cidr).and_then(|seen| fitting(&seen.value, job, demand, version));
                    if let Some((cidr, found)) = found {
                        return Some(self.renew(id, job, demand, cidr, &found, round, now));
                    }
                }
            }
            job.visited.insert(cidr);
        }
        None
    }

    /// Answers addresses found in a block by a write of the block that renews them: only that says that they still are held,
    /// and keeps out what was decided about them before (see [`crate::renewal`]).
    #[expect(clippy::too_many_arguments, reason = "who asks, what for, and where it is")]
    fn renew(
        &mut self,
        id: u64,
        job: &mut Job,
        demand: &Demand,
        cidr: Cidr,
        found: &[IpAddr],
        round: &mut Round,
        now: Timestamp,
    ) -> Next {
        if self.view.is_lost() {
            return refusal(
                TRY_AGAIN,
                "the datastore cannot be reached, so the address that is held cannot be confirmed; try again",
            );
        }
        match self.access(cidr) {
            Access::Busy(_) | Access::Gone | Access::Faulty(_) => return Next::Wait,
            Access::Reading => return Next::Read,
            Access::Ready => {}
        }
        if self.view.owns(cidr) && !self.view.is_in_hand(cidr) {
            if self.lost_races.contains(&cidr) {
                let (code, message) = self.unconfirmable(cidr);
                return refusal(code, message);
            }
            self.start_claim(cidr);
            return Next::Wait;
        }
        // The handle is to count it: where the block was written and its handle was not, or it was collected, both are.
        match self.handles.get(&job.handle) {
            Some(Known::Here(_) | Known::Absent) => {}
            Some(Known::Reading(_)) => return Next::Read,
            Some(Known::Unsure) | None => {
                self.read_handle(&job.handle);
                return Next::Read;
            }
        }
        let cooldown = self.view.cooldown_seconds();
        let Some(seen) = self.view.whole(cidr) else { return Next::Wait };
        let draft = round.drafts.entry(cidr).or_insert_with(|| Draft::of(seen, cooldown, now));
        let known = self.known(&job.handle);
        let taker = Taker { job: id, handle: &job.handle, known, attributes: &demand.attributes };
        if draft.is_full() || draft.renew(taker, found) == 0 {
            return Next::Wait;
        }
        // What stood before anything was written for this request stays, whatever becomes of it.
        if !job.tainted {
            job.spare.extend(found);
        }
        Next::Fly
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
                Some(Known::Reading(_)) => return Some(Next::Read),
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

/// The addresses of `block` that answer what the job wants next of this family; `None`: there is none.
fn fitting(found: &Block, job: &Job, demand: &Demand, version: IpVersion) -> Option<(Cidr, Vec<IpAddr>)> {
    if found.cidr.version() != version {
        return None;
    }
    let wanted = job.left.iter().take_while(|left| **left == version).count();
    let fits = |address: &IpAddr| {
        let answered = job.got.iter().any(|taken| taken.address == *address);
        !answered && demand.requested.is_none_or(|requested| requested == *address)
    };
    let held = held(found, &job.handle, job.interface()).filter_map(|ordinal| found.cidr.address(ordinal));
    let fitting: Vec<IpAddr> = held.filter(fits).take(wanted).collect();
    (!fitting.is_empty()).then_some((found.cidr, fitting))
}
