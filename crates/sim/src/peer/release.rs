//! Giving addresses back (algorithm §12 and §13).

use super::{Calico, Failure, RETRIES, enabled_pool_of, is_conflict};
use api::{Block, Cidr, Handle, IpamConfig, Node, OwnerKind};
use datastore::{Datastore, Key, Kind, Record, Scope};
use ipam::block::{self, Release};
use ipam::{Seen, pools};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// More addresses than this, and all handles are listed once in place of a read each.
const LIST_HANDLES_ABOVE: usize = 2;

/// What a release by addresses did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleasedByPeer {
    /// Addresses that were free or cooling already.
    pub not_allocated: Vec<IpAddr>,
    /// What was asked of blocks that succeeded.
    pub succeeded: Vec<Release>,
    /// The first block's failure.
    pub failure: Option<Failure>,
}

impl<D: Datastore> Calico<'_, D> {
    /// Gives back everything that a handle holds.
    ///
    /// Datastore calls for one address: 6 reads and 2 writes; 1 read if there is no such handle.
    ///
    /// # Errors
    /// [`Failure::Missing`] if there is no such handle, which its callers count as success. The first hard failure leaves the
    /// other blocks.
    pub async fn release_by_handle(&self, handle: &str) -> Result<(), Failure> {
        let id = block::sanitized(handle);
        let seen: Seen<Handle> = self.get(&Key::Handle(id.to_owned())).await?;
        let config = self.config().await?;
        for cidr in seen.value.blocks.keys() {
            self.release_handle_in(id, *cidr, &config).await?;
        }
        Ok(())
    }

    async fn release_handle_in(&self, id: &str, cidr: Cidr, config: &IpamConfig) -> Result<(), Failure> {
        for _ in 0..RETRIES {
            let seen = match self.block(cidr, config).await {
                Ok(seen) => seen,
                Err(Failure::Missing(_)) => return Ok(()),
                Err(error) => return Err(error),
            };
            let mut block = seen.value.clone();
            let (cooldown, now) = (config.ip_cooldown_seconds, self.clock.now());
            let released = block::release_by_handle(&mut block, id, None, cooldown, now);
            if released.is_empty() {
                // The handle keeps its entry (Q9).
                return Ok(());
            }
            let written = match self.put_or_delete(block.clone(), &seen).await {
                Err(Failure::Missing(_)) => Ok(()),
                written => written,
            };
            match written {
                Ok(()) => {}
                Err(error) if is_conflict(&error) => continue,
                Err(error) => return Err(error),
            }
            let count = u32::try_from(released.len()).unwrap_or(u32::MAX);
            let _ = self.count_down(id, cidr, count, None).await;
            let _ = self.ensure_consistent(&block, config).await;
            return Ok(());
        }
        Err(Failure::Retries)
    }

    /// An empty block without owner goes, any other is written.
    async fn put_or_delete(&self, block: Block, seen: &Seen<Block>) -> Result<(), Failure> {
        if block.affinity.is_none() && block::is_empty(&block) {
            self.delete(Record::Block(block), &seen.version).await
        } else {
            self.update_block(block, &seen.version).await.map(|_| ())
        }
    }

    /// Gives back particular addresses; a block's failure does not stop the others.
    ///
    /// Datastore calls for one address, the last of its handle: 6 reads and 2 writes; 3 reads if it is free.
    ///
    /// # Errors
    /// The store's, where pools, handles or configuration cannot be read; a block's failure is in the answer.
    pub async fn release_addresses(&self, releases: &[Release]) -> Result<ReleasedByPeer, Failure> {
        let mut answer = ReleasedByPeer::default();
        let pools = self.pools().await?;
        let mut by_block: BTreeMap<Cidr, Vec<Release>> = BTreeMap::new();
        let mut all_blocks: Option<Vec<Cidr>> = None;
        for release in releases {
            let pool = pools.iter().find(|pool| pool.cidr.contains(release.address));
            let cidr = match pool {
                Some(pool) => Cidr::containing(release.address, pool.block_size),
                None => {
                    if all_blocks.is_none() {
                        let found: Vec<Seen<Block>> = self.list(&Scope::All(Kind::Block)).await?;
                        all_blocks = Some(found.into_iter().map(|seen| seen.value.cidr).collect());
                    }
                    all_blocks.iter().flatten().copied().find(|cidr| cidr.contains(release.address))
                }
            };
            match cidr {
                Some(cidr) => by_block.entry(cidr).or_default().push(release.clone()),
                None => answer.not_allocated.push(release.address),
            }
        }
        let mut handles: BTreeMap<String, Seen<Handle>> = BTreeMap::new();
        if releases.len() > LIST_HANDLES_ABOVE {
            let found: Vec<Seen<Handle>> = self.list(&Scope::All(Kind::Handle)).await?;
            handles.extend(found.into_iter().map(|seen| (seen.value.id.clone(), seen)));
        }
        let config = self.config().await?;
        let blocks =
            by_block.iter().map(|(cidr, releases)| self.release_in(*cidr, releases, &handles, &config));
        let outcomes = futures::future::join_all(blocks).await;
        for (outcome, releases) in outcomes.into_iter().zip(by_block.values()) {
            match outcome {
                Ok(not_allocated) => {
                    answer.not_allocated.extend(not_allocated);
                    answer.succeeded.extend(releases.iter().cloned());
                }
                Err(failure) => answer.failure = answer.failure.or(Some(failure)),
            }
        }
        Ok(answer)
    }

    async fn release_in(
        &self,
        cidr: Cidr,
        releases: &[Release],
        handles: &BTreeMap<String, Seen<Handle>>,
        config: &IpamConfig,
    ) -> Result<Vec<IpAddr>, Failure> {
        for _ in 0..RETRIES {
            let seen = match self.block(cidr, config).await {
                Ok(seen) => seen,
                Err(Failure::Missing(_)) => {
                    return Ok(releases.iter().map(|release| release.address).collect());
                }
                Err(error) => return Err(error),
            };
            let mut block = seen.value.clone();
            let released = block::release(&mut block, releases, config.ip_cooldown_seconds, self.clock.now())
                .map_err(|error| Failure::Refused(error.to_string()))?;
            if released.ordinals.is_empty() {
                return Ok(released.not_allocated);
            }
            match self.put_or_delete(block.clone(), &seen).await {
                Ok(()) => {}
                Err(error) if is_conflict(&error) => continue,
                // A block that is gone already fails this too, and the handles stay counted (Q8).
                Err(error) => return Err(error),
            }
            for (id, count) in &released.by_handle {
                let _ = self.count_down(id, cidr, *count, handles.get(id)).await;
            }
            let _ = self.ensure_consistent(&block, config).await;
            return Ok(released.not_allocated);
        }
        Err(Failure::Retries)
    }

    /// Gives up a block that is empty now and whose pool no longer is for its node (§12.1).
    async fn ensure_consistent(&self, block: &Block, config: &IpamConfig) -> Result<(), Failure> {
        let Some(owner) = block.affinity.as_ref().filter(|owner| owner.kind == OwnerKind::Host) else {
            return Ok(());
        };
        let node: Seen<Node> = self.get(&Key::Node(owner.name.clone())).await?;
        let pools = self.pools().await?;
        let home = enabled_pool_of(&pools, block.cidr);
        if home.is_some_and(|pool| pools::selects_node(pool, &node.value.labels) == Ok(false)) {
            self.release_affinity_retrying(owner, block.cidr, true, config).await?;
        }
        Ok(())
    }
}
