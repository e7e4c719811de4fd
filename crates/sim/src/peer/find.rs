//! Which block to take from: those of the host, then a free one, then one that another host does not use (algorithm §7 to §9).

use super::assign::Wanted;
use super::{Calico, Failure, RETRIES, affinity_key, enabled_pool_of, is_conflict};
use api::{Affinity, Block, Cidr, IpamConfig, Node, Owner, OwnerKind, Pool};
use datastore::{Datastore, Key, Kind, Scope};
use ipam::pools::{self, PoolRequest};
use ipam::{ReservationSet, Seen, block, candidate};
use jiff::SignedDuration;
use std::collections::{BTreeMap, VecDeque};

/// How long an empty block stays with its owner.
const MIN_RECLAIM_AGE: SignedDuration = SignedDuration::from_secs(60);

/// What one request for one family works with.
pub(super) struct Prepared<'a> {
    pub(super) owner: &'a Owner,
    pub(super) config: IpamConfig,
    pub(super) reserved: ReservationSet,
    pub(super) usable: Vec<Pool>,
    /// Blocks of the host that were not tried yet.
    pub(super) affine: VecDeque<Cidr>,
    pub(super) allow_new: bool,
}

impl<D: Datastore> Calico<'_, D> {
    /// Reads what a request works with, and gives up empty blocks that are no longer for this node.
    pub(super) async fn prepare<'w>(
        &self,
        wanted: &'w Wanted,
        config: IpamConfig,
        reserved: ReservationSet,
    ) -> Result<Prepared<'w>, Failure> {
        let owner = &wanted.owner;
        let labels = match owner.kind {
            OwnerKind::Host => self.get::<Node>(&Key::Node(owner.name.clone())).await?.value.labels,
            OwnerKind::Virtual => BTreeMap::new(),
        };
        let pools = self.pools().await?;
        let asked = PoolRequest {
            version: wanted.version,
            requested: &wanted.pools,
            node: &owner.name,
            node_labels: &labels,
            namespace_labels: &wanted.namespace_labels,
            intended_use: wanted.intended_use,
            max_prefix: wanted.version.bits(),
        };
        let selection = pools::select(&pools, &asked).map_err(|error| Failure::Refused(error.to_string()))?;
        let mut affine = VecDeque::new();
        for cidr in self.affine(owner, wanted.version).await? {
            let inside = |pool: &Pool| pool.cidr.contains(cidr.network());
            if selection.usable.iter().any(inside) {
                affine.push_back(cidr);
            } else if !selection.selecting.iter().any(inside)
                && let Some(home) = enabled_pool_of(&pools, cidr)
                && pools::selects_node(home, &labels) == Ok(false)
            {
                match self.release_affinity_retrying(owner, cidr, true, &config).await {
                    Ok(()) | Err(Failure::NotEmpty(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Prepared { owner, config, reserved, usable: selection.usable, affine, allow_new: true })
    }

    /// A block for the host that may be claimed: one that is not there, else one that its owner does not use.
    async fn find_usable(&self, prepared: &Prepared<'_>) -> Result<Cidr, Failure> {
        let now = self.clock.now();
        let mut found: Vec<Seen<Block>> = self.list(&Scope::All(Kind::Block)).await?;
        for seen in &mut found {
            block::collect(&mut seen.value, prepared.config.ip_cooldown_seconds, now);
        }
        let index: BTreeMap<Cidr, &Block> = found.iter().map(|seen| (seen.value.cidr, &seen.value)).collect();
        let mut reclaimable = Vec::new();
        for pool in &prepared.usable {
            for cidr in candidate::candidates(pool, &prepared.owner.name, now) {
                if prepared.reserved.covers(cidr) {
                    continue;
                }
                let Some(found) = index.get(&cidr) else { return Ok(cidr) };
                let free = block::free_count(found, &prepared.reserved);
                if found.affinity.as_ref() == Some(prepared.owner) && free > 0 {
                    return Ok(cidr);
                }
                if block::is_empty(found) && free > 0 {
                    reclaimable.push(*found);
                }
            }
        }
        for block in reclaimable {
            let Some(owner) = &block.affinity else { continue };
            if block.claim_time.is_some_and(|claimed| now.duration_since(claimed) < MIN_RECLAIM_AGE) {
                continue;
            }
            let sequence = Some(block.sequence_number);
            if self.release_affinity(owner, block.cidr, true, sequence, &prepared.config).await.is_ok() {
                return Ok(block.cidr);
            }
        }
        Err(Failure::NoFreeBlocks)
    }

    /// The next block with at least `min_free` addresses, and whether it counts as new (algorithm §9).
    pub(super) async fn find_or_claim(
        &self,
        prepared: &mut Prepared<'_>,
        min_free: usize,
    ) -> Result<(Seen<Block>, bool), Failure> {
        while let Some(cidr) = prepared.affine.pop_front() {
            if prepared.reserved.covers(cidr) {
                continue;
            }
            for _ in 0..RETRIES {
                let Ok(affinity) = self.get::<Affinity>(&affinity_key(prepared.owner, cidr)).await else {
                    break;
                };
                match self.block_for(&affinity, &prepared.config).await {
                    Ok(block) if block::free_count(&block.value, &prepared.reserved) >= min_free => {
                        return Ok((block, false));
                    }
                    Err(error) if is_conflict(&error) => {}
                    Ok(_) | Err(_) => break,
                }
            }
        }
        if !prepared.allow_new {
            return Err(Failure::BlockLimit);
        }
        if !prepared.config.auto_allocate_blocks {
            return Err(Failure::Refused("failed to find or claim a block".to_owned()));
        }
        for _ in 0..RETRIES {
            let cidr = self.find_usable(prepared).await?;
            for _ in 0..RETRIES {
                let claimed = match self.pending(prepared.owner, cidr).await {
                    Ok(affinity) => self.block_for(&affinity, &prepared.config).await,
                    Err(error) => Err(error),
                };
                match claimed {
                    Ok(block) if block::free_count(&block.value, &prepared.reserved) >= min_free => {
                        return Ok((block, true));
                    }
                    Ok(_) => return Err(Failure::Refused(format!("claimed block {cidr} has no room"))),
                    Err(error) if is_conflict(&error) => {}
                    Err(Failure::ClaimConflict(_) | Failure::Stale(_)) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Err(Failure::Retries)
    }
}
