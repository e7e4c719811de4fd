//! Planning of an ADD for one particular address.

use super::Agent;
use super::draft::{Draft, Taker};
use super::job::{BAD_REQUEST, Demand, Job, NOT_SERVED, TRY_AGAIN};
use super::place::{Access, Next, Round, faulty, refusal};
use crate::crossing::Crossing;
use crate::vacancy;
use api::Cidr;
use jiff::Timestamp;
use std::net::IpAddr;

impl Agent {
    /// Takes one particular address (algorithm §11): selectors and reservations are not asked.
    pub(super) fn place_requested(
        &mut self,
        id: u64,
        job: &mut Job,
        demand: &Demand,
        address: IpAddr,
        round: &mut Round,
        now: Timestamp,
    ) -> Next {
        let Some(pool) = self.view.pool_around(address) else {
            return refusal(
                BAD_REQUEST,
                format!("address {address} is in no enabled pool; ask for one that is, or add a pool"),
            );
        };
        if !pool.allowed_uses.contains(&demand.intended_use) {
            return refusal(
                BAD_REQUEST,
                format!(
                    "address {address} is of pool {}, which is not allowed for use {}",
                    pool.name,
                    demand.intended_use.as_str()
                ),
            );
        }
        if let Some(Crossing { block, other }) = self.view.blocks().crossing_at(address) {
            return refusal(
                NOT_SERVED,
                format!(
                    "address {address} is in block {block} and in block {other}, which lie across each other: nothing of \
                     what both have is given out; delete one of them when nothing is held in it (calicoctl ipam check)"
                ),
            );
        }
        let Some(sized) = Cidr::containing(address, pool.block_size) else { return Next::Wait };
        // A block of an earlier pool with another block size has it, if there is one.
        let pool = pool.clone();
        let around = self.view.index().contains_key(&sized).then_some(sized);
        let around = around.or_else(|| self.view.blocks().holding(address));
        let cidr = around.unwrap_or(sized);
        let config = self.view.config();
        if around.is_none() {
            if !self.view.covers(&[pool]) {
                self.list_blocks();
                return Next::Wait;
            }
            if let Some(other) = self.view.blocks().overlapping(cidr).first() {
                return refusal(
                    NOT_SERVED,
                    format!(
                        "address {address} would need block {cidr}, which overlaps block {other} of an earlier block \
                         size; release what block {other} holds first"
                    ),
                );
            }
        }
        if around.is_none() || (self.view.owns(cidr) && !self.view.is_in_hand(cidr)) {
            if self.lost_races.contains(&cidr) && self.view.owns(cidr) {
                let (code, message) = self.unconfirmable(cidr);
                return refusal(code, message);
            }
            self.start_claim(cidr);
            round.wanting.push(id);
            return Next::Wait;
        }
        if config.strict_affinity && !self.view.owns(cidr) {
            return refusal(
                NOT_SERVED,
                format!("address {address} is in block {cidr} of another node, and strict affinity is on"),
            );
        }
        match self.access(cidr) {
            Access::Busy(_) | Access::Gone => return Next::Wait,
            Access::Reading => return Next::Read,
            Access::Faulty(fault) => return faulty(cidr, &fault),
            Access::Ready => {}
        }
        let Some(seen) = self.view.whole(cidr) else { return Next::Wait };
        if !self.view.owns(cidr) && !vacancy::is_lendable(&seen.value, sized.prefix(), now) {
            return refusal(
                TRY_AGAIN,
                format!(
                    "block {cidr} is of an earlier block size and was made just now; try again in a minute"
                ),
            );
        }
        let cooldown = self.view.cooldown_seconds();
        let draft = round.drafts.entry(cidr).or_insert_with(|| Draft::of(seen, cooldown, now));
        let taker = Taker {
            job: id,
            handle: &job.handle,
            known: self.known(&job.handle),
            attributes: &demand.attributes,
        };
        match draft.assign(taker, address) {
            Ok(()) => Next::Fly,
            Err(error) => refusal(NOT_SERVED, error.to_string()),
        }
    }
}
