//! Handing out addresses (algorithm §10): own blocks, a claimed one, then those of others, one read a possible block.

use super::find::Prepared;
use super::{Calico, Failure, RETRIES, is_conflict};
use api::{Block, Cidr, Handle, IpVersion, Owner, OwnerKind, Pool, Use};
use datastore::{Datastore, Key};
use ipam::block::{self, Take};
use ipam::{Seen, candidate};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Blocks per host and family where neither request nor configuration says anything.
const DEFAULT_MAX_BLOCKS: u32 = 20;

/// A request for addresses of one family. For both, ask for IPv4 and then for IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// For whom.
    pub owner: Owner,
    /// Family.
    pub version: IpVersion,
    /// How many.
    pub count: usize,
    /// What for.
    pub intended_use: Use,
    /// Handle to hold them.
    pub handle: Option<String>,
    /// Attributes stored with them.
    pub attributes: BTreeMap<String, String>,
    /// Pools asked for.
    pub pools: Vec<Cidr>,
    /// Labels of the namespace.
    pub namespace_labels: BTreeMap<String, String>,
    /// Blocks the host may have; 0: as configured.
    pub max_blocks: u32,
    /// Addresses that the handle may hold of this family. `None`: any number.
    pub max_per_handle: Option<u32>,
}

impl Wanted {
    /// What a pod asks for: one address, held by `handle`.
    pub fn one(node: &str, version: IpVersion, handle: &str) -> Self {
        let attributes = [("node", node), ("pod", handle), ("namespace", "default")];
        Self {
            owner: Owner { kind: OwnerKind::Host, name: node.to_owned() },
            version,
            count: 1,
            intended_use: Use::Workload,
            handle: Some(handle.to_owned()),
            attributes: attributes
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            pools: Vec::new(),
            namespace_labels: BTreeMap::new(),
            max_blocks: 0,
            max_per_handle: None,
        }
    }
}

/// What was handed out. A failure comes together with what was assigned before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// Why there are fewer than wanted.
    pub messages: Vec<String>,
    /// What ended the work. `None` also when too few were left.
    pub failure: Option<Failure>,
}

impl<D: Datastore> Calico<'_, D> {
    /// Hands out up to `wanted.count` addresses.
    ///
    /// Datastore calls for one address and a new handle: 8 reads and 2 writes from a block in hand, 9 and 6 with a new
    /// one, 7 + k and 2 where the k-th possible block of the pool is borrowed from.
    pub async fn auto_assign(&self, wanted: &Wanted) -> Answer {
        let mut answer = Answer::default();
        if let Err(failure) = self.fill(wanted, &mut answer).await {
            answer.failure = Some(failure);
        }
        answer
    }

    async fn fill(&self, wanted: &Wanted, answer: &mut Answer) -> Result<(), Failure> {
        let config = self.config().await?;
        let reserved = self.reservations().await?;
        let mut prepared = self.prepare(wanted, config, reserved).await?;
        let strict = prepared.config.strict_affinity;
        let limit = match (wanted.max_blocks, prepared.config.max_blocks_per_host) {
            (0, 0) => DEFAULT_MAX_BLOCKS,
            (0, limit) | (limit, 0) => limit,
            (requested, configured) => requested.min(configured),
        };
        let mut owned = u32::try_from(prepared.affine.len()).unwrap_or(u32::MAX);
        while answer.addresses.len() < wanted.count {
            if owned >= limit {
                prepared.allow_new = false;
            }
            let block = match self.find_or_claim(&mut prepared, 1).await {
                Ok((block, new)) => {
                    owned = owned.saturating_add(u32::from(new));
                    block
                }
                Err(Failure::NoFreeBlocks) => {
                    if strict {
                        answer.say("No more free affine blocks and strict affinity enabled");
                    }
                    break;
                }
                Err(Failure::BlockLimit) => {
                    answer.say(&format!(
                        "Need to allocate an IPAM block but could not - limit of {limit} blocks reached for this node"
                    ));
                    return Err(Failure::BlockLimit);
                }
                Err(error) => return Err(error),
            };
            self.fill_from(wanted, &prepared, block, answer).await;
        }
        if !strict && answer.addresses.len() < wanted.count {
            self.borrow(wanted, &prepared, answer).await;
        }
        Ok(())
    }

    /// Takes from a block of the host, reading it again after a conflict.
    async fn fill_from(
        &self,
        wanted: &Wanted,
        prepared: &Prepared<'_>,
        block: Seen<Block>,
        answer: &mut Answer,
    ) {
        let cidr = block.value.cidr;
        let mut block = block;
        for _ in 0..RETRIES {
            let strict = prepared.config.strict_affinity;
            match self.assign_from(wanted, prepared, &block, answer.addresses.len(), strict).await {
                Ok(taken) => {
                    answer.addresses.extend(taken);
                    return;
                }
                Err(Failure::MaxAllocReached(_)) => {
                    if let Some(held) = self.held_enough(wanted).await {
                        answer.addresses.extend(held);
                        return;
                    }
                }
                Err(error) if is_conflict(&error) => {}
                Err(_) => {
                    answer.say("Failed to assign IPs in newly allocated block");
                    return;
                }
            }
            match self.block(cidr, &prepared.config).await {
                Ok(again) => block = again,
                Err(_) => return,
            }
        }
    }

    /// Takes from anybody's block, trying every block that the pools could have.
    async fn borrow(&self, wanted: &Wanted, prepared: &Prepared<'_>, answer: &mut Answer) {
        let mut exhausted: Vec<&Pool> = Vec::new();
        for pool in &prepared.usable {
            for cidr in candidate::candidates(pool, &prepared.owner.name, self.clock.now()) {
                if answer.addresses.len() >= wanted.count {
                    return;
                }
                if !prepared.reserved.covers(cidr) {
                    self.borrow_from(wanted, prepared, cidr, answer).await;
                }
            }
            if answer.addresses.len() < wanted.count {
                exhausted.push(pool);
            }
        }
        if !exhausted.is_empty() {
            let names: Vec<String> = exhausted.iter().map(|pool| pool.cidr.to_string()).collect();
            answer.say(&format!("No IPs available in pools: [{}]", names.join(" ")));
        }
    }

    async fn borrow_from(&self, wanted: &Wanted, prepared: &Prepared<'_>, cidr: Cidr, answer: &mut Answer) {
        for _ in 0..RETRIES {
            let Ok(block) = self.block(cidr, &prepared.config).await else { return };
            match self.assign_from(wanted, prepared, &block, answer.addresses.len(), false).await {
                Ok(taken) => {
                    answer.addresses.extend(taken);
                    return;
                }
                Err(Failure::MaxAllocReached(_)) => {
                    if let Some(held) = self.held_enough(wanted).await {
                        answer.addresses.extend(held);
                        return;
                    }
                }
                Err(error) if is_conflict(&error) => {}
                Err(_) => return,
            }
        }
    }

    /// Handle first, then block; a block write that failed, or seems to have, is taken off the handle again (§10.1, W14).
    async fn assign_from(
        &self,
        wanted: &Wanted,
        prepared: &Prepared<'_>,
        seen: &Seen<Block>,
        have: usize,
        strict: bool,
    ) -> Result<Vec<IpAddr>, Failure> {
        let missing = wanted.count.saturating_sub(have);
        let mut block = seen.value.clone();
        let request = Take {
            count: missing,
            handle: wanted.handle.as_deref(),
            attributes: &wanted.attributes,
            reserved: &prepared.reserved,
            avoid: &BTreeSet::new(),
            only_owner: strict.then_some(prepared.owner),
        };
        let taken = block::take(&mut block, &request).map_err(|error| Failure::Refused(error.to_string()))?;
        if taken.is_empty() {
            return Ok(Vec::new());
        }
        let requested = u32::try_from(missing).unwrap_or(u32::MAX);
        if let Some(handle) = &wanted.handle {
            self.count_up(handle, block.cidr, requested, wanted.max_per_handle).await?;
        }
        let cidr = block.cidr;
        if let Err(error) = self.update_block(block, &seen.version).await {
            if let Some(handle) = &wanted.handle {
                let _ = self.count_down(handle, cidr, requested, None).await;
            }
            return Err(error);
        }
        Ok(taken.into_iter().map(|taken| taken.address).collect())
    }

    /// What a handle at its cap holds, if that is as much as is wanted (§10.2).
    async fn held_enough(&self, wanted: &Wanted) -> Option<Vec<IpAddr>> {
        let held = self.addresses_by_handle(wanted.handle.as_deref()?).await.ok()?;
        let mut held: Vec<IpAddr> =
            held.into_iter().filter(|address| IpVersion::of(*address) == wanted.version).collect();
        if held.len() < wanted.count {
            return None;
        }
        held.truncate(wanted.count);
        Some(held)
    }

    /// Addresses that a handle holds.
    ///
    /// Datastore calls: 2 reads, and 1 per block of the handle.
    ///
    /// # Errors
    /// [`Failure::Missing`] if there is no such handle, or the store's. A block that cannot be read is left out.
    pub async fn addresses_by_handle(&self, id: &str) -> Result<Vec<IpAddr>, Failure> {
        let handle: Seen<Handle> = self.get(&Key::Handle(block::sanitized(id).to_owned())).await?;
        let config = self.config().await?;
        let mut held = Vec::new();
        for cidr in handle.value.blocks.keys() {
            let Ok(block) = self.block(*cidr, &config).await else { continue };
            held.extend(block::held_by(&block.value, id).filter_map(|ordinal| cidr.address(ordinal)));
        }
        Ok(held)
    }
}

impl Answer {
    /// Adds a message once.
    fn say(&mut self, message: &str) {
        if !self.messages.iter().any(|said| said == message) {
            self.messages.push(message.to_owned());
        }
    }
}
