//! Which blocks nobody needs: spare ones, those of deleted nodes, those that only cool down (controllers §2.9, §2.10).

use super::addresses::sound;
use super::{Cluster, Collector, Records, Task, Verdicts};
use crate::block;
use api::{Block, Cidr, IpVersion, Owner, OwnerKind};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

impl Collector {
    pub(super) fn judge_blocks(
        &mut self,
        now: Timestamp,
        records: &Records,
        cluster: &Cluster,
        verdicts: &mut Verdicts,
    ) {
        let indexed: BTreeSet<(&Owner, Cidr)> =
            records.affinities.iter().map(|seen| (&seen.value.owner, seen.value.cidr)).collect();
        let mut owned: BTreeMap<(&Owner, IpVersion), Vec<(Cidr, &Block)>> = BTreeMap::new();
        for (cidr, seen) in sound(records) {
            let mut collected = seen.clone();
            let thawed = block::collect(&mut collected, records.cooldown_seconds, now);
            // Empty and nobody's: nobody could claim it, and nobody else would delete it (quirk Q22).
            if thawed || (seen.affinity.is_none() && block::is_empty(&collected)) {
                let cooldown_seconds = records.cooldown_seconds;
                verdicts.tasks.push(Task::Tidy { block: cidr, cooldown_seconds });
            }
            let Some(owner) = seen.affinity.as_ref().filter(|owner| owner.kind == OwnerKind::Host) else {
                continue;
            };
            if cluster.nodes.contains(&owner.name) {
                owned.entry((owner, cidr.version())).or_default().push((cidr, seen));
            } else if verdicts.gone.contains(&owner.name) && !indexed.contains(&(owner, cidr)) {
                verdicts.abandoned.push((owner.clone(), cidr));
            }
        }
        self.judge_empty_blocks(now, &owned, &mut verdicts.tasks);
    }

    /// Empty blocks of living nodes, all but one per node and family, that have been so for the grace period.
    fn judge_empty_blocks(
        &mut self,
        now: Timestamp,
        owned: &BTreeMap<(&Owner, IpVersion), Vec<(Cidr, &Block)>>,
        tasks: &mut Vec<Task>,
    ) {
        let before = std::mem::take(&mut self.empty_since);
        let Some(grace) = self.grace else { return };
        for ((owner, _), blocks) in owned {
            let mut left = blocks.len();
            for (cidr, block) in blocks {
                if left <= 1 || !block.allocations.iter().all(Option::is_none) {
                    continue;
                }
                let since = before.get(cidr).copied().filter(|since| *since <= now).unwrap_or(now);
                self.empty_since.insert(*cidr, since);
                if now.duration_since(since) > grace {
                    left -= 1;
                    tasks.push(Task::GiveUpBlock {
                        owner: (*owner).clone(),
                        block: *cidr,
                        sequence: block.sequence_number,
                    });
                }
            }
        }
    }
}
