//! Planning of an ADD for any address: own blocks first, then a claim, then a block of somebody else.

use super::Agent;
use super::draft::{Draft, Taker};
use super::job::{Demand, Job, NOT_SERVED};
use super::place::{Access, Next, Round, in_pools, refusal};
use crate::assign::{AssignError, block_limit};
use crate::explain::{BlockOutcome, Shortage, cut};
use crate::host_reserved::HostReserved;
use crate::pools::Selection;
use crate::vacancy;
use api::attachment::ErrorReply;
use api::{Cidr, IpVersion, Use};
use jiff::Timestamp;

/// Blocks of others that are tried for one request before others have their turn.
const LENDERS: usize = 32;

/// Longest list of pools that a refusal comes with, in bytes.
const DETAILS: usize = 900;

impl Agent {
    pub(super) fn place_any(
        &mut self,
        id: u64,
        job: &mut Job,
        demand: &Demand,
        version: IpVersion,
        round: &mut Round,
        now: Timestamp,
    ) -> Next {
        let is_windows = demand.reserved.as_ref().is_some_and(HostReserved::is_windows);
        if is_windows && !self.view.config().strict_affinity {
            let error = AssignError::StrictAffinityRequired { node: self.node.clone() };
            return refusal(NOT_SERVED, error.to_string());
        }
        let selection = match self.select(demand, version) {
            Ok(selection) => selection,
            Err(none) => return Next::Refuse(none.error),
        };
        let own: Vec<Cidr> = self
            .view
            .affinities()
            .keys()
            .copied()
            .filter(|cidr| in_pools(*cidr, &selection.usable) && self.view.is_in_hand(*cidr))
            .collect();
        if let Some(next) = self.take_from(id, job, demand, own.clone(), round, now) {
            return next;
        }
        if self.claim.is_some() || self.indexing || self.is_reclaiming() {
            round.wanting.push(id);
            return Next::Wait;
        }
        let Some(shortage) = self.look_for_block(demand, &selection, version, round, now) else {
            round.wanting.push(id);
            return Next::Wait;
        };
        // A tunnel's address must be routed to its node before any route of a borrowed one can come over the tunnel.
        if demand.intended_use != Use::Tunnel
            && matches!(shortage, Shortage::PoolsFull { .. } | Shortage::Reserved { .. })
            && let Some(next) = self.borrow(id, job, demand, &selection, round, now)
        {
            return next;
        }
        let mut explain = self.account(job, demand, version);
        explain.shortage = Some(shortage);
        explain.relief = self.relief(&selection);
        for cidr in own {
            if let Some(outcome) = self.has_nothing(cidr) {
                explain.tried(cidr, outcome);
            }
        }
        let considered: Vec<String> = explain
            .pools
            .listed()
            .iter()
            .map(|pool| format!("{} {} {}", pool.pool, pool.cidr, pool.verdict))
            .collect();
        let message = explain.to_string();
        job.explained = true;
        if let Some(request) = job.request {
            self.note(super::Note::Explained { request, explain: Box::new(explain) });
        }
        Next::Refuse(ErrorReply { code: NOT_SERVED, message, details: cut(&considered.join(", "), DETAILS) })
    }

    /// Why an own block gives nothing, unless that was noted when it was tried.
    fn has_nothing(&self, cidr: Cidr) -> Option<BlockOutcome> {
        let blocks = self.view.blocks();
        let entry = blocks.get(cidr).filter(|entry| entry.fault.is_none())?;
        let is_crossed = || blocks.crossed().keys().any(|block| block.overlaps(cidr));
        Some(if entry.waiting() > 0 && is_crossed() { BlockOutcome::Crossed } else { BlockOutcome::Full })
    }

    /// Takes from the first block of somebody else that has an address left. `None`: none has.
    fn borrow(
        &mut self,
        id: u64,
        job: &mut Job,
        demand: &Demand,
        selection: &Selection,
        round: &mut Round,
        now: Timestamp,
    ) -> Option<Next> {
        for pool in &selection.usable {
            let start = self.start_of(pool, now);
            loop {
                let reserved = self.view.reserved();
                let lenders: Vec<Cidr> = self
                    .view
                    .blocks()
                    .lendable(pool, start)
                    .filter(|cidr| !job.passed.contains(cidr) && !reserved.covers(*cidr))
                    .take(LENDERS)
                    .collect();
                if lenders.is_empty() {
                    break;
                }
                if let Some(next) = self.take_from(id, job, demand, lenders.clone(), round, now) {
                    return Some(next);
                }
                job.passed.extend(lenders);
            }
        }
        None
    }

    /// Takes addresses from the first of these blocks that has one. `None`: none of them has.
    fn take_from(
        &mut self,
        id: u64,
        job: &mut Job,
        demand: &Demand,
        blocks: Vec<Cidr>,
        round: &mut Round,
        now: Timestamp,
    ) -> Option<Next> {
        let cooldown = self.view.cooldown_seconds();
        for cidr in blocks {
            match self.access(cidr) {
                Access::Gone => {}
                Access::Faulty(_) => job.tried(cidr, BlockOutcome::Failed),
                Access::Reading => return Some(Next::Read),
                Access::Busy(free) => {
                    let promised = round.promised.entry(cidr).or_default();
                    if *promised < free {
                        *promised += 1;
                        return Some(Next::Wait);
                    }
                }
                Access::Ready => {
                    let Some(seen) = self.view.whole(cidr) else { continue };
                    let size = self.view.pools().find(|pool| pool.cidr.contains_cidr(cidr));
                    let size = size.map_or_else(|| cidr.prefix(), |pool| pool.block_size);
                    if !self.view.owns(cidr) && !vacancy::is_lendable(&seen.value, size, now) {
                        continue;
                    }
                    let cooling = || seen.value.attributes.iter().any(|held| held.released_at.is_some());
                    if seen.value.unallocated.is_empty() && !round.drafts.contains_key(&cidr) && !cooling() {
                        continue;
                    }
                    let draft = round.drafts.entry(cidr).or_insert_with(|| Draft::of(seen, cooldown, now));
                    if draft.is_full() {
                        return Some(Next::Wait);
                    }
                    let taker = Taker {
                        job: id,
                        handle: &job.handle,
                        known: self.known(&job.handle),
                        attributes: &demand.attributes,
                    };
                    let count = self.wanted_of(job, demand, cidr.version());
                    if draft.take(taker, count, self.view.reserved()) > 0 {
                        return Some(Next::Fly);
                    }
                }
            }
        }
        None
    }

    /// Starts a claim, or says why there is nothing to claim.
    fn look_for_block(
        &mut self,
        demand: &Demand,
        selection: &Selection,
        version: IpVersion,
        round: &mut Round,
        now: Timestamp,
    ) -> Option<Shortage> {
        let config = self.view.config();
        if !config.auto_allocate_blocks {
            return Some(Shortage::AutoAllocateOff);
        }
        if !self.view.covers(&selection.usable) {
            self.list_blocks();
            return None;
        }
        // Claims that were begun and not finished come first: they count towards the limit already.
        if let Some(cidr) = self.unfinished(&selection.usable) {
            self.start_claim(cidr);
            return None;
        }
        let limit = block_limit(demand.max_blocks, config.max_blocks_per_host);
        let owned = self
            .view
            .affinities()
            .keys()
            .filter(|cidr| cidr.version() == version && in_pools(**cidr, &selection.usable));
        let owned = u32::try_from(owned.count()).unwrap_or(u32::MAX);
        if owned >= limit {
            return Some(Shortage::BlockLimit { limit, owned });
        }
        for pool in &selection.usable {
            if round.exhausted.contains(&pool.name) {
                continue;
            }
            match self.candidate(pool, now) {
                Some(cidr) => {
                    self.start_claim(cidr);
                    return None;
                }
                None => {
                    round.exhausted.insert(pool.name.clone());
                }
            }
        }
        if self.start_reclaim(selection, now) {
            return None;
        }
        Some(self.shortage(selection))
    }
}
