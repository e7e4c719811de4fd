//! One block write in the making: what a batch takes from a block and gives back to it (architecture D4).

use super::job::Flight;
use crate::block::{self, Release, Take, TakeError, Taken};
use crate::plan::handle_write;
use crate::reservations::ReservationSet;
use crate::seen::Seen;
use api::{Block, Cidr, Handle, Ordinal, Owner};
use datastore::{Record, Version, Write};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Requests served by one write at most.
pub(super) const BATCH: usize = 256;

/// A block being changed by a batch. Handles that gain are written before it, handles that lose after it.
#[derive(Debug)]
pub(super) struct Draft {
    /// State the block was seen in; `None` for one that is to be created.
    base: Option<Version>,
    block: Block,
    /// Released by this batch, so not to be issued by it.
    avoid: BTreeSet<Ordinal>,
    before: Vec<Write>,
    after: Vec<Write>,
    changed: bool,
    jobs: Vec<(u64, Option<Taken>)>,
}

/// Who takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taker<'a> {
    pub(super) job: u64,
    pub(super) handle: &'a str,
    /// The handle as known; `None` if it is believed absent.
    pub(super) known: Option<&'a Seen<Handle>>,
    pub(super) attributes: &'a BTreeMap<String, String>,
}

impl Draft {
    /// Of a block as seen; ordinals that have cooled down are free again.
    pub(super) fn of(seen: &Seen<Block>, cooldown_seconds: u32, now: Timestamp) -> Self {
        let mut draft = Self::start(Some(seen.version.clone()), seen.value.clone());
        block::collect(&mut draft.block, cooldown_seconds, now);
        draft
    }

    /// Of a block that does not exist yet.
    pub(super) fn new_block(cidr: Cidr, owner: &Owner, now: Timestamp) -> Self {
        Self { changed: true, ..Self::start(None, block::new_block(cidr, owner, now)) }
    }

    fn start(base: Option<Version>, block: Block) -> Self {
        Self {
            base,
            block,
            avoid: BTreeSet::new(),
            before: Vec::new(),
            after: Vec::new(),
            changed: false,
            jobs: Vec::new(),
        }
    }

    /// Writes the block even if nothing is taken, so that it has a new revision.
    pub(super) fn touch(&mut self) {
        self.changed = true;
    }

    pub(super) fn is_full(&self) -> bool {
        self.jobs.len() >= BATCH
    }

    /// Takes one address from the head of the queue; `None` if there is none that may be had.
    pub(super) fn take(&mut self, taker: Taker<'_>, reserved: &ReservationSet) -> Option<Taken> {
        let request = Take {
            count: 1,
            handle: Some(taker.handle),
            attributes: taker.attributes,
            reserved,
            avoid: &self.avoid,
            only_owner: None,
        };
        let taken = block::take(&mut self.block, &request).ok()?.pop()?;
        self.took(taker, taken.clone());
        Some(taken)
    }

    /// Takes one particular address.
    pub(super) fn assign(&mut self, taker: Taker<'_>, address: IpAddr) -> Result<Taken, TakeError> {
        if self.block.cidr.ordinal(address).is_some_and(|ordinal| self.avoid.contains(&ordinal)) {
            return Err(TakeError::AlreadyAssigned { block: self.block.cidr, address });
        }
        let taken = block::assign(&mut self.block, address, Some(taker.handle), taker.attributes, None)?;
        self.took(taker, taken.clone());
        Ok(taken)
    }

    fn took(&mut self, taker: Taker<'_>, taken: Taken) {
        let count = block::count_of(&self.block, taker.handle);
        self.before.extend(handle_write(taker.handle, taker.known, self.block.cidr, count));
        self.changed = true;
        self.jobs.push((taker.job, Some(taken)));
    }

    /// Gives back the ordinals of a handle, each of them only if it is still the allocation that was seen.
    pub(super) fn give_back(
        &mut self,
        job: u64,
        handle: &str,
        known: Option<&Seen<Handle>>,
        ordinals: &[Ordinal],
        cooldown_seconds: u32,
        now: Timestamp,
    ) {
        let cidr = self.block.cidr;
        let releases: Vec<Release> = ordinals
            .iter()
            .filter_map(|ordinal| {
                Some(Release {
                    address: cidr.address(*ordinal)?,
                    handle: Some(handle.to_owned()),
                    sequence: Some(block::stamp(&self.block, *ordinal)),
                })
            })
            .collect();
        if let Ok(released) = block::release(&mut self.block, &releases, cooldown_seconds, now) {
            self.changed |= !released.ordinals.is_empty();
            self.avoid.extend(released.ordinals);
        }
        let count = block::count_of(&self.block, handle);
        self.after.extend(handle_write(handle, known, cidr, count));
        self.jobs.push((job, None));
    }

    /// Addresses that can still be taken automatically, after this write.
    pub(super) fn free_after(&self, reserved: &ReservationSet) -> usize {
        block::free_count(&self.block, reserved)
    }

    /// The commit, unless nobody is in it and the block stays as it is.
    pub(super) fn finish(mut self, claims: bool) -> Option<Flight> {
        let cidr = self.block.cidr;
        let mut writes = self.before;
        if self.changed {
            let deserted = self.block.affinity.is_none() && block::is_empty(&self.block);
            let took = self.jobs.iter().any(|(_, taken)| taken.is_some());
            writes.push(match self.base {
                Some(version) if deserted => Write::Delete(Record::Block(self.block), version),
                Some(version) => {
                    block::advance(&mut self.block);
                    Write::Update(Record::Block(self.block), version)
                }
                None => {
                    // Stamps of first addresses stay below the block's own number.
                    if took {
                        block::advance(&mut self.block);
                    }
                    Write::Create(Record::Block(self.block))
                }
            });
        }
        writes.append(&mut self.after);
        (!writes.is_empty() || !self.jobs.is_empty()).then_some(Flight {
            cidr,
            writes,
            jobs: self.jobs,
            claims,
        })
    }
}
