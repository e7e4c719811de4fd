//! Claiming and giving up blocks, one record at a time (algorithm §5 and §16).

use super::{Calico, Failure, RETRIES, affinity_key, enabled_pool_of, is_conflict};
use api::{Affinity, AffinityState, Block, Cidr, IpVersion, IpamConfig, Owner};
use datastore::{Datastore, Kind, Record, Scope};
use ipam::{Seen, block};

impl<D: Datastore> Calico<'_, D> {
    /// Brings an affinity into another state.
    async fn update_affinity(
        &self,
        seen: &Seen<Affinity>,
        state: AffinityState,
    ) -> Result<Seen<Affinity>, Failure> {
        let value = Affinity { state, ..seen.value.clone() };
        let version = self.update(Record::Affinity(value.clone()), &seen.version).await?;
        Ok(Seen::written(value, version, seen.created))
    }

    async fn delete_affinity(&self, seen: &Seen<Affinity>) -> Result<(), Failure> {
        self.delete(Record::Affinity(seen.value.clone()), &seen.version).await
    }

    /// A pending affinity of ours, or the confirmed one that is there (algorithm §5.1).
    pub(super) async fn pending(&self, owner: &Owner, cidr: Cidr) -> Result<Seen<Affinity>, Failure> {
        let value = Affinity { owner: owner.clone(), cidr, state: AffinityState::Pending, deleted: false };
        match self.create(Record::Affinity(value.clone())).await {
            Ok(version) => return Ok(Seen::written(value, version, None)),
            Err(Failure::Exists(_)) => {}
            Err(error) => return Err(error),
        }
        let found: Seen<Affinity> = self.get(&affinity_key(owner, cidr)).await?;
        if found.value.state == AffinityState::Confirmed {
            return Ok(found);
        }
        self.update_affinity(&found, AffinityState::Pending).await
    }

    /// Creates the block, or finds it ours, and confirms; gives the affinity up if it is another's (algorithm §5.2).
    pub(super) async fn claim_block(
        &self,
        affinity: &Seen<Affinity>,
        config: &IpamConfig,
    ) -> Result<Seen<Block>, Failure> {
        let (owner, cidr) = (&affinity.value.owner, affinity.value.cidr);
        let made = block::new_block(cidr, owner, self.clock.now());
        match self.create(Record::Block(made.clone())).await {
            Ok(version) => {
                self.confirm(affinity).await?;
                Ok(Seen::written(made, version, None))
            }
            Err(Failure::Exists(_)) => {
                let found = self.block(cidr, config).await?;
                if found.value.affinity.as_ref() == Some(owner) {
                    self.confirm(affinity).await?;
                    return Ok(found);
                }
                let _ = self.delete_affinity(affinity).await;
                Err(Failure::ClaimConflict(cidr))
            }
            Err(error) => Err(error),
        }
    }

    /// Confirms; somebody else's confirmation of the same is as good (algorithm §5.3).
    async fn confirm(&self, affinity: &Seen<Affinity>) -> Result<(), Failure> {
        let Err(first) = self.update_affinity(affinity, AffinityState::Confirmed).await else {
            return Ok(());
        };
        let key = affinity_key(&affinity.value.owner, affinity.value.cidr);
        match self.get::<Affinity>(&key).await {
            Ok(found) if found.value.state == AffinityState::Confirmed => Ok(()),
            _ => Err(first),
        }
    }

    /// Loads the block of an affinity and repairs what is stale (algorithm §5.4).
    pub(super) async fn block_for(
        &self,
        affinity: &Seen<Affinity>,
        config: &IpamConfig,
    ) -> Result<Seen<Block>, Failure> {
        let (owner, cidr) = (&affinity.value.owner, affinity.value.cidr);
        let found = match self.block(cidr, config).await {
            Ok(found) => found,
            Err(Failure::Missing(_)) => {
                let pending = self.update_affinity(affinity, AffinityState::Pending).await?;
                let config = self.config().await?;
                return self.claim_block(&pending, &config).await;
            }
            Err(error) => return Err(error),
        };
        if found.value.affinity.as_ref() != Some(owner) {
            let _ = self.delete_affinity(affinity).await;
            return Err(Failure::Stale(cidr));
        }
        if affinity.value.state == AffinityState::Confirmed {
            return Ok(found);
        }
        let pending = self.update_affinity(affinity, AffinityState::Pending).await?;
        let touched = self.update_block(found.value, &found.version).await?;
        self.update_affinity(&pending, AffinityState::Confirmed).await?;
        Ok(touched)
    }

    /// Gives one block up (algorithm §5.5): pending deletion, the block deleted or without owner, the affinity deleted.
    ///
    /// # Errors
    /// [`Failure::Missing`] if affinity or block are not there, and the affinity then stays (Q4); [`Failure::NotEmpty`];
    /// [`Failure::ClaimConflict`]; [`Failure::Conflict`] if it changed meanwhile.
    pub async fn release_affinity(
        &self,
        owner: &Owner,
        cidr: Cidr,
        must_be_empty: bool,
        required_sequence: Option<u64>,
        config: &IpamConfig,
    ) -> Result<(), Failure> {
        let affinity: Seen<Affinity> = self.get(&affinity_key(owner, cidr)).await?;
        let mut found = self.block(cidr, config).await?;
        if required_sequence.is_some_and(|sequence| sequence != found.value.sequence_number) {
            return Err(Failure::Refused(format!("block {cidr} updated since read")));
        }
        if found.value.affinity.as_ref().is_some_and(|other| other != owner) {
            let _ = self.delete_affinity(&affinity).await;
            return Err(Failure::ClaimConflict(cidr));
        }
        let empty = block::is_empty(&found.value);
        if must_be_empty && !empty {
            return Err(Failure::NotEmpty(cidr));
        }
        let leaving = self.update_affinity(&affinity, AffinityState::PendingDeletion).await?;
        if empty {
            match self.delete(Record::Block(found.value), &found.version).await {
                Ok(()) | Err(Failure::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        } else {
            found.value.affinity = None;
            found.value.claim_time = None;
            self.update_block(found.value, &found.version).await?;
        }
        match self.delete_affinity(&leaving).await {
            Ok(()) | Err(Failure::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// [`Calico::release_affinity`] until there is no conflict; what somebody else did meanwhile is no failure.
    pub(super) async fn release_affinity_retrying(
        &self,
        owner: &Owner,
        cidr: Cidr,
        must_be_empty: bool,
        config: &IpamConfig,
    ) -> Result<(), Failure> {
        for _ in 0..RETRIES {
            match self.release_affinity(owner, cidr, must_be_empty, None, config).await {
                Err(error) if is_conflict(&error) => {}
                Err(Failure::ClaimConflict(_) | Failure::Missing(_)) => return Ok(()),
                outcome => return outcome,
            }
        }
        Err(Failure::Retries)
    }

    /// Gives one block up as the node collector does: the owner is taken from the block it looked at, one attempt.
    ///
    /// # Errors
    /// As [`Calico::release_affinity`]; what somebody else did meanwhile is no failure.
    pub async fn release_block_affinity(&self, block: &Block, must_be_empty: bool) -> Result<(), Failure> {
        let Some(owner) = &block.affinity else { return Ok(()) };
        let config = self.config().await?;
        match self.release_affinity(owner, block.cidr, must_be_empty, None, &config).await {
            Err(Failure::ClaimConflict(_) | Failure::Missing(_)) => Ok(()),
            outcome => outcome,
        }
    }

    /// Gives up all blocks of an owner, IPv4 first.
    ///
    /// # Errors
    /// The last block's failure, after all were tried.
    pub async fn release_host_affinities(&self, owner: &Owner, must_be_empty: bool) -> Result<(), Failure> {
        let config = self.config().await?;
        let mut failure = None;
        for version in [IpVersion::V4, IpVersion::V6] {
            for cidr in self.affine(owner, version).await? {
                if let Err(error) = self.release_affinity_retrying(owner, cidr, must_be_empty, &config).await
                {
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Blocks that an owner has an affinity for, in any state.
    pub(super) async fn affine(&self, owner: &Owner, version: IpVersion) -> Result<Vec<Cidr>, Failure> {
        let found: Vec<Seen<Affinity>> = self.list(&Scope::AffinitiesOf(owner.clone())).await?;
        Ok(found.iter().map(|seen| seen.value.cidr).filter(|cidr| cidr.version() == version).collect())
    }

    /// Gives up all blocks of a pool, whoever owns them: what precedes the pool's deletion.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn release_pool_affinities(&self, pool: Cidr) -> Result<(), Failure> {
        let config = self.config().await?;
        for _ in 0..RETRIES {
            let found: Vec<Seen<Affinity>> = self.list(&Scope::All(Kind::Affinity)).await?;
            let inside: Vec<Affinity> = found
                .into_iter()
                .map(|seen| seen.value)
                .filter(|affinity| pool.contains(affinity.cidr.network()))
                .collect();
            let mut again = false;
            for affinity in inside {
                for _ in 0..RETRIES {
                    match self.release_affinity(&affinity.owner, affinity.cidr, false, None, &config).await {
                        Err(error) if is_conflict(&error) => {}
                        Err(Failure::ClaimConflict(_)) => {
                            again = true;
                            break;
                        }
                        Ok(()) | Err(Failure::Missing(_)) => break,
                        Err(error) => return Err(error),
                    }
                }
            }
            if !again {
                return Ok(());
            }
        }
        Err(Failure::Retries)
    }

    /// Claims all blocks of a range for an owner; those that are another's are returned.
    ///
    /// # Errors
    /// [`Failure::Refused`] if no enabled pool has the range or it is smaller than a block; see [`Failure`] otherwise.
    pub async fn claim_affinity(&self, range: Cidr, owner: &Owner) -> Result<Vec<Cidr>, Failure> {
        let pools = self.pools().await?;
        let pool = enabled_pool_of(&pools, range)
            .ok_or_else(|| Failure::Refused(format!("{range} is not in a configured pool")))?;
        if range.prefix() > pool.block_size {
            return Err(Failure::Refused(format!(
                "the requested range ({range}) is smaller than the minimum."
            )));
        }
        let config = self.config().await?;
        let mut lost = Vec::new();
        for index in 0..range.block_count(pool.block_size) {
            let Some(cidr) = range.nth_block(pool.block_size, index) else { break };
            for _ in 0..RETRIES {
                let claimed = match self.pending(owner, cidr).await {
                    Ok(affinity) => self.claim_block(&affinity, &config).await,
                    Err(error) => Err(error),
                };
                match claimed {
                    Ok(_) => break,
                    Err(error) if is_conflict(&error) => {}
                    Err(Failure::ClaimConflict(cidr)) => {
                        lost.push(cidr);
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(lost)
    }
}
