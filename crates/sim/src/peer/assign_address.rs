//! Assigning one particular address (algorithm §11).

use super::{Calico, Failure, RETRIES, enabled_pool_of, is_conflict};
use api::{Cidr, IpVersion, Owner, Use};
use datastore::Datastore;
use ipam::block::{self, TakeError};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A request for one particular address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedAddress {
    /// For whom.
    pub owner: Owner,
    /// Which.
    pub address: IpAddr,
    /// What for. `None`: not checked.
    pub intended_use: Option<Use>,
    /// Handle to hold it.
    pub handle: Option<String>,
    /// Attributes stored with it.
    pub attributes: BTreeMap<String, String>,
    /// Addresses that the handle may hold of this family. `None`: any number.
    pub max_per_handle: Option<u32>,
}

impl<D: Datastore> Calico<'_, D> {
    /// Assigns one particular address.
    ///
    /// Datastore calls: 4 reads and 2 writes where its block exists, else 5 and 5.
    ///
    /// # Errors
    /// See [`Failure`]: that the block was claimed by another host meanwhile is one (Q6).
    pub async fn assign_address(&self, wanted: &WantedAddress) -> Result<(), Failure> {
        let address = wanted.address;
        let pools = self.pools().await?;
        let pool = enabled_pool_of(&pools, Cidr::from(address)).ok_or_else(|| {
            Failure::Refused("The provided IP address is not in a configured pool\n".to_owned())
        })?;
        if let Some(wrong) = wanted.intended_use.filter(|wanted| !pool.allowed_uses.contains(wanted)) {
            return Err(Failure::Refused(format!("{address} is not allowed for use {}", wrong.as_str())));
        }
        let config = self.config().await?;
        let cidr = Cidr::containing(address, pool.block_size)
            .ok_or_else(|| Failure::Refused(format!("pool {} has no blocks", pool.name)))?;
        for _ in 0..RETRIES {
            let seen = match self.block(cidr, &config).await {
                Ok(seen) => seen,
                Err(Failure::Missing(_)) => {
                    let config = self.config().await?;
                    let claimed = match self.pending(&wanted.owner, cidr).await {
                        Ok(affinity) => self.claim_block(&affinity, &config).await,
                        Err(error) => Err(error),
                    };
                    match claimed {
                        Ok(seen) => seen,
                        Err(error) if is_conflict(&error) => continue,
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            };
            let mut block = seen.value.clone();
            let only = config.strict_affinity.then_some(&wanted.owner);
            match block::assign(&mut block, address, wanted.handle.as_deref(), &wanted.attributes, only) {
                Ok(_) => {}
                Err(TakeError::AlreadyAssigned { .. }) => {
                    let holder = block::attribute_of(&block, address)
                        .and_then(|attribute| attribute.handle_id.as_deref())
                        .map(block::sanitized);
                    if wanted.max_per_handle.is_some()
                        && holder.is_some()
                        && holder == wanted.handle.as_deref()
                    {
                        return Ok(());
                    }
                    return Err(Failure::Exists(address.to_string()));
                }
                Err(error) => return Err(Failure::Refused(error.to_string())),
            }
            if let Some(handle) = &wanted.handle {
                match self.count_up(handle, cidr, 1, wanted.max_per_handle).await {
                    Ok(()) => {}
                    Err(Failure::MaxAllocReached(_)) => {
                        let held = self.addresses_by_handle(handle).await?;
                        if held.contains(&address) {
                            return Ok(());
                        }
                        if !held.iter().any(|held| IpVersion::of(*held) == IpVersion::of(address)) {
                            continue;
                        }
                        return Err(Failure::Refused(format!(
                            "{handle} already has IP(s) allocated, cannot assign additional IP {address}"
                        )));
                    }
                    Err(error) => return Err(error),
                }
            }
            match self.update_block(block, &seen.version).await {
                Ok(_) => return Ok(()),
                // The handle stays counted (Q7).
                Err(error) if is_conflict(&error) => {}
                Err(error) => {
                    if let Some(handle) = &wanted.handle {
                        let _ = self.count_down(handle, cidr, 1, None).await;
                    }
                    return Err(error);
                }
            }
        }
        Err(Failure::Retries)
    }
}
