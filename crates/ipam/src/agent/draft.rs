//! One block write in the making: what a batch takes from a block and gives back to it (architecture D4).

use crate::block::{self, Release, Take, TakeError, Taken};
use crate::host_reserved::{self, HostReserved};
use crate::mistake::{Mistake, made};
use crate::plan::{handle_gain, handle_write};
use crate::renewal::{self, Asker};
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
    gaining: BTreeMap<String, Option<Seen<Handle>>>,
    losing: BTreeMap<String, Option<Seen<Handle>>>,
    changed: bool,
    requests: BTreeSet<u64>,
    taken: Vec<(u64, Option<Taken>)>,
}

/// What a draft comes to.
#[derive(Debug)]
pub(super) struct Drawn {
    /// In order: handles that gain, the block, handles that lose.
    pub(super) writes: Vec<Write>,
    /// Jobs in it, with the addresses that each takes; `None` for one that gives back.
    pub(super) jobs: Vec<(u64, Option<Taken>)>,
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

/// Who gives back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Giver<'a> {
    pub(super) job: u64,
    pub(super) handle: &'a str,
    pub(super) known: Option<&'a Seen<Handle>>,
    /// What: each only if it is still the allocation that was seen.
    pub(super) ordinals: &'a [Ordinal],
}

impl Draft {
    /// Of a block as seen; ordinals that have cooled down are free again.
    pub(super) fn of(seen: &Seen<Block>, cooldown_seconds: u32, now: Timestamp) -> Self {
        let mut draft = Self::start(Some(seen.version.clone()), seen.value.clone());
        block::collect(&mut draft.block, cooldown_seconds, now);
        draft
    }

    /// Of a block that does not exist yet, less what its host keeps for itself.
    pub(super) fn new_block(
        cidr: Cidr,
        owner: &Owner,
        reserved: Option<&HostReserved>,
        now: Timestamp,
    ) -> Self {
        let mut block = block::new_block(cidr, owner, now);
        if let Some(reserved) = reserved {
            host_reserved::keep(&mut block, reserved);
        }
        Self { changed: true, ..Self::start(None, block) }
    }

    fn start(base: Option<Version>, block: Block) -> Self {
        Self {
            base,
            block,
            avoid: BTreeSet::new(),
            gaining: BTreeMap::new(),
            losing: BTreeMap::new(),
            changed: false,
            requests: BTreeSet::new(),
            taken: Vec::new(),
        }
    }

    /// Writes the block even if nothing is taken, so that it has a new revision.
    pub(super) fn touch(&mut self) {
        self.changed = true;
    }

    pub(super) fn is_full(&self) -> bool {
        self.requests.len() >= BATCH
    }

    /// Takes up to `count` addresses from the head of the queue, and answers how many.
    pub(super) fn take(&mut self, taker: Taker<'_>, count: usize, reserved: &ReservationSet) -> usize {
        let request = Take {
            count,
            handle: Some(taker.handle),
            attributes: taker.attributes,
            reserved,
            avoid: &self.avoid,
            only_owner: None,
        };
        let taken = block::take(&mut self.block, &request).unwrap_or_default();
        let count = taken.len();
        self.took(taker, taken);
        count
    }

    /// Takes one particular address.
    pub(super) fn assign(&mut self, taker: Taker<'_>, address: IpAddr) -> Result<(), TakeError> {
        if self.block.cidr.ordinal(address).is_some_and(|ordinal| self.avoid.contains(&ordinal)) {
            return Err(TakeError::AlreadyAssigned { block: self.block.cidr, address });
        }
        let taken = block::assign(&mut self.block, address, Some(taker.handle), taker.attributes, None)?;
        self.took(taker, vec![taken]);
        Ok(())
    }

    /// Answers addresses that the handle holds already, in a new life as the taker's, and says how many.
    pub(super) fn renew(&mut self, taker: Taker<'_>, addresses: &[IpAddr]) -> usize {
        let asker = Asker { handle: taker.handle, attributes: taker.attributes };
        let renew = |address: &IpAddr| renewal::renew(&mut self.block, *address, asker);
        let renewed: Vec<Taken> = addresses.iter().filter_map(renew).collect();
        let count = renewed.len();
        if count > 0 {
            if renewal::counts_too_little(taker.known, &self.block, taker.handle) {
                self.gaining.entry(taker.handle.to_owned()).or_insert_with(|| taker.known.cloned());
            }
            self.changed = true;
            self.requests.insert(taker.job);
            self.taken.extend(renewed.into_iter().map(|taken| (taker.job, Some(taken))));
        }
        count
    }

    fn took(&mut self, taker: Taker<'_>, taken: Vec<Taken>) {
        if taken.is_empty() {
            return;
        }
        self.gaining.entry(taker.handle.to_owned()).or_insert_with(|| taker.known.cloned());
        self.changed = true;
        self.requests.insert(taker.job);
        self.taken.extend(taken.into_iter().map(|taken| (taker.job, Some(taken))));
    }

    /// Gives back ordinals of a handle.
    pub(super) fn give_back(&mut self, giver: Giver<'_>, cooldown_seconds: u32, now: Timestamp) {
        let cidr = self.block.cidr;
        let releases: Vec<Release> = giver
            .ordinals
            .iter()
            .filter_map(|ordinal| {
                Some(Release {
                    address: cidr.address(*ordinal)?,
                    handle: Some(giver.handle.to_owned()),
                    sequence: Some(block::stamp(&self.block, *ordinal)),
                })
            })
            .collect();
        if let Ok(released) = block::release(&mut self.block, &releases, cooldown_seconds, now) {
            self.changed |= !released.ordinals.is_empty();
            self.avoid.extend(released.ordinals);
        }
        // A handle that counts something here which the block does not show loses its count. The block is then written
        // too: a write of it that is late, with an address for the handle in it, fails.
        self.changed |= giver.known.is_some_and(|seen| seen.value.blocks.contains_key(&cidr));
        self.losing.entry(giver.handle.to_owned()).or_insert_with(|| giver.known.cloned());
        self.requests.insert(giver.job);
        self.taken.push((giver.job, None));
    }

    /// Addresses that can still be taken automatically, after this write.
    pub(super) fn free_after(&self, reserved: &ReservationSet) -> usize {
        block::free_count(&self.block, reserved)
    }

    /// The commit, unless nobody is in it and the block stays as it is.
    ///
    /// Handles' counts are set from the block, so that a retry after a crash does not count twice; one that only takes is never
    /// lowered (see [`handle_gain`]).
    pub(super) fn finish(mut self) -> Option<Drawn> {
        let cidr = self.block.cidr;
        let counts = |handles: BTreeMap<String, Option<Seen<Handle>>>, block: &Block| -> Vec<Write> {
            let write = |(id, known): (String, Option<Seen<Handle>>)| {
                handle_write(&id, known.as_ref(), cidr, block::count_of(block, &id))
            };
            handles.into_iter().filter_map(write).collect()
        };
        // A handle that both gains and loses is counted once, on the way in.
        let gain = |(id, known): (&String, &Option<Seen<Handle>>)| {
            let write = if self.losing.contains_key(id) { handle_write } else { handle_gain };
            write(id, known.as_ref(), cidr, block::count_of(&self.block, id))
        };
        let mut writes: Vec<Write> = self.gaining.iter().filter_map(gain).collect();
        self.losing.retain(|handle, _| !self.gaining.contains_key(handle));
        let after = counts(self.losing, &self.block);
        if self.changed {
            let deserted = self.block.affinity.is_none() && block::is_empty(&self.block);
            let took = self.taken.iter().any(|(_, taken)| taken.is_some());
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
            if made(Mistake::BlockBeforeHandle) && writes.len() > 2 {
                writes.rotate_right(1);
            }
        }
        writes.extend(after);
        (!writes.is_empty() || !self.taken.is_empty()).then_some(Drawn { writes, jobs: self.taken })
    }
}
