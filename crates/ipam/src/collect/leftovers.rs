//! Which affinities and handles are leftovers of operations that were cut short (algorithm §18: W1, W3, W5, W7, W8, W13).
//!
//! Both look exactly like those of an operation under way. So nothing is judged before it has stood unchanged for
//! [`QUIET`] and through two looks, and then it is read again before it is touched.

use super::{Collector, QUIET, Records, Task};
use crate::block;
use crate::seen::Seen;
use api::{Affinity, AffinityState, Cidr, Handle};
use datastore::Revision;
use jiff::Timestamp;
use std::collections::BTreeSet;

/// Handles judged in one pass at most; the next goes on after them, so that none waits behind those that cannot be lowered.
pub(super) const HANDLES: usize = 1_000;

/// In which state something was first seen superfluous, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Since {
    revision: Revision,
    at: Timestamp,
}

impl Since {
    /// Whether it has been the same for long enough, and since when it has.
    fn look(before: Option<&Self>, revision: Revision, now: Timestamp) -> (Self, bool) {
        match before.filter(|before| before.revision == revision && before.at <= now) {
            Some(before) => (*before, now.duration_since(before.at) >= QUIET),
            None => (Self { revision, at: now }, false),
        }
    }
}

impl Collector {
    /// Affinities without a block of their owner's, and half-done releases of empty blocks.
    pub(super) fn judge_affinities(&mut self, now: Timestamp, records: &Records, tasks: &mut Vec<Task>) {
        let before = std::mem::take(&mut self.idle_affinities);
        for seen in &records.affinities {
            let Some(task) = idle_affinity(records, seen) else { continue };
            let place = (seen.value.owner.clone(), seen.value.cidr);
            let (since, due) = Since::look(before.get(&place), seen.version.revision, now);
            self.idle_affinities.insert(place, since);
            if due {
                tasks.push(task);
            }
        }
    }

    /// Handles that count more than the blocks say.
    pub(super) fn judge_handles(&mut self, now: Timestamp, records: &Records, tasks: &mut Vec<Task>) {
        let Some(handles) = &records.handles else { return };
        let before = std::mem::take(&mut self.idle_handles);
        let claimed: BTreeSet<Cidr> = records.affinities.iter().map(|seen| seen.value.cidr).collect();
        let mut all_due = Vec::new();
        for (id, seen) in handles {
            let Some(blocks) = counts_too_much(records, &claimed, &seen.value) else { continue };
            let (since, due) = Since::look(before.get(id), seen.version.revision, now);
            self.idle_handles.insert(id.clone(), since);
            if due {
                all_due.push((id, seen.version.revision, blocks));
            }
        }
        if all_due.len() > HANDLES {
            let done = self.judged_to.take();
            let after = all_due.partition_point(|(id, ..)| Some(*id) <= done.as_ref());
            all_due.rotate_left(after);
            all_due.truncate(HANDLES);
            self.judged_to = all_due.last().map(|(id, ..)| (*id).clone());
        }
        tasks.extend(all_due.into_iter().map(|(id, revision, blocks)| Task::LowerHandle {
            id: id.clone(),
            blocks,
            revision,
        }));
    }
}

fn idle_affinity(records: &Records, seen: &Seen<Affinity>) -> Option<Task> {
    let Affinity { owner, cidr, state, .. } = &seen.value;
    match records.blocks.get(cidr).map(|block| &block.value) {
        Some(block) if block.affinity.as_ref() == Some(owner) => {
            // A release that was cut short (W7). With addresses in it, its owner goes on using it.
            (*state == AffinityState::PendingDeletion && block::is_empty(block)).then(|| Task::GiveUpBlock {
                owner: owner.clone(),
                block: *cidr,
                sequence: block.sequence_number,
            })
        }
        _ => Some(Task::DropAffinity { owner: owner.clone(), block: *cidr, revision: seen.version.revision }),
    }
}

/// The blocks in which a handle counts more than they say; none where it counts nothing at all; `None`: it is right.
///
/// Where there is no block but somebody's affinity for it, a claim may be about to make it with this handle's addresses
/// in it: the affinity is judged first.
fn counts_too_much(records: &Records, claimed: &BTreeSet<Cidr>, handle: &Handle) -> Option<BTreeSet<Cidr>> {
    let counts_too_much = |(cidr, count): &(&Cidr, &u32)| match records.blocks.get(*cidr) {
        Some(block) => **count > block::count_of(&block.value, block::sanitized(&handle.id)),
        None => !claimed.contains(*cidr),
    };
    let blocks: BTreeSet<Cidr> =
        handle.blocks.iter().filter(counts_too_much).map(|(cidr, _)| *cidr).collect();
    (!blocks.is_empty() || handle.blocks.is_empty()).then_some(blocks)
}
