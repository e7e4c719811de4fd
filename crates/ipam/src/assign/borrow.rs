//! Addresses of blocks that are another's, or nobody's (algorithm §10.5): the last that is tried.

use super::{Run, Stop, search_of};
use crate::block;
use crate::candidate;
use crate::explain::BlockOutcome;
use crate::mistake::{Mistake, made};
use crate::seen::Seen;
use crate::setting::{Setting, World};
use crate::shortage::{relief, shortage};
use crate::vacancy;
use api::{Block, Cidr};
use datastore::Datastore;
use std::collections::BTreeMap;

impl<D: Datastore> Run<'_, D> {
    /// Takes from blocks of others as listed, unless strict affinity forbids it, and says what is short then.
    pub(super) async fn borrow(
        &mut self,
        world: &World,
        setting: &Setting<'_>,
        blocks: Vec<Seen<Block>>,
    ) -> Result<(), Stop> {
        let strict = world.config.strict_affinity;
        let may_borrow = !self.only_own(world);
        let search = search_of(self.request, world, self.clock.now());
        let (now, seconds) = (search.now, cooldown(search.cooldown_seconds, BlockOutcome::Borrowed));
        let shortage = shortage(&search, &setting.usable, strict, &blocks);
        let relief = relief(&search, &setting.usable, &blocks);
        let mut by_cidr: BTreeMap<Cidr, Seen<Block>> =
            blocks.into_iter().map(|seen| (seen.value.cidr, seen)).collect();
        for pool in setting.usable.iter().filter(|_| may_borrow) {
            let existing = by_cidr.keys().copied().collect::<Vec<_>>();
            for cidr in candidate::in_order(&pool.value, &self.request.owner.name, now, existing) {
                if self.satisfied() {
                    return Ok(());
                }
                let Some(seen) = by_cidr.remove(&cidr) else { continue };
                let mut collected = seen.value.clone();
                block::collect(&mut collected, seconds, now);
                let lendable = vacancy::is_lendable(&collected, pool.value.block_size, now);
                if !lendable && !made(Mistake::LentYoung) {
                    continue;
                }
                if block::free_count(&collected, &world.reserved) > 0 {
                    self.take_from_block(world, seen, BlockOutcome::Borrowed).await?;
                }
            }
        }
        if !self.satisfied() {
            self.fall_short(shortage, relief);
        }
        Ok(())
    }
}

/// Seconds that a released address is not used: as many in others' blocks as in own ones.
pub(super) fn cooldown(seconds: u32, outcome: BlockOutcome) -> u32 {
    if outcome == BlockOutcome::Borrowed && made(Mistake::CooldownIgnored) { 0 } else { seconds }
}
