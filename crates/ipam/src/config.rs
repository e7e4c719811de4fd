//! The cluster-wide configuration: the rules that its fields have with each other, and changing it (algorithm §16, data
//! model §8). It is read by [`crate::seen::config`].

use crate::failure::{ATTEMPTS, StoreError};
use crate::seen::{self, Seen};
use api::IpamConfig;
use datastore::{CommitError, Datastore, Key, Record, Write};

/// Longest cooldown, in seconds.
pub const MAX_COOLDOWN_SECONDS: u32 = 1200;

/// Highest limit of blocks per host that every peer can read.
pub const MAX_BLOCKS_PER_HOST: u32 = 2_147_483_647;

/// A configuration that nobody could work with. An object written past this may hold it all the same: readers accept it as is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Neither own blocks nor those of others could serve a request.
    #[error(
        "strict affinity and automatic allocation of blocks cannot both be off: no node could get an address of a new block; \
         turn one of them on"
    )]
    NoWayToAllocate,
    /// A limit that borrowing would get around.
    #[error("a limit of {limit} blocks per host needs strict affinity: turn it on, or set the limit to 0")]
    LimitWithoutStrictAffinity {
        /// The limit.
        limit: u32,
    },
    /// More than peers read.
    #[error(
        "a limit of {limit} blocks per host is more than {MAX_BLOCKS_PER_HOST}: set a lower one, or 0 for the default"
    )]
    LimitTooHigh {
        /// The limit.
        limit: u32,
    },
    /// Longer than peers accept.
    #[error("a cooldown of {seconds} seconds is longer than {MAX_COOLDOWN_SECONDS}: set a shorter one")]
    CooldownTooLong {
        /// The cooldown.
        seconds: u32,
    },
    /// A word that Calico does not know.
    #[error("{word:?} does not say whether virtual machines keep their addresses: it is Enabled or Disabled")]
    UnknownPersistence {
        /// The word.
        word: String,
    },
}

/// Checks one configuration.
///
/// # Errors
/// See [`ConfigError`]; the first rule that is broken.
pub fn check(config: &IpamConfig) -> Result<(), ConfigError> {
    let limit = config.max_blocks_per_host;
    if !config.strict_affinity && !config.auto_allocate_blocks {
        return Err(ConfigError::NoWayToAllocate);
    }
    if limit > 0 && !config.strict_affinity {
        return Err(ConfigError::LimitWithoutStrictAffinity { limit });
    }
    if limit > MAX_BLOCKS_PER_HOST {
        return Err(ConfigError::LimitTooHigh { limit });
    }
    if config.ip_cooldown_seconds > MAX_COOLDOWN_SECONDS {
        return Err(ConfigError::CooldownTooLong { seconds: config.ip_cooldown_seconds });
    }
    match config.kube_virt_vm_address_persistence.as_deref() {
        None | Some("Enabled" | "Disabled") => Ok(()),
        Some(word) => Err(ConfigError::UnknownPersistence { word: word.to_owned() }),
    }
}

/// Why the configuration was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeConfigError {
    /// It would break a rule.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Changes the configuration and returns it as it is then (SetIPAMConfig). Where there is none `change` starts from the default.
///
/// `change` sets fields: it may be called again on what somebody else has written meanwhile, so that nobody's change is lost
/// (quirk Q19), and once more on its own result when an answer was lost. A change that changes nothing writes nothing.
///
/// Datastore calls: 1 read and 1 commit; as many more after each conflict or lost answer.
///
/// # Errors
/// See [`ChangeConfigError`].
///
/// # Cancellation
/// The change is made or not made.
pub async fn change<D: Datastore>(
    store: &D,
    change: impl Fn(&IpamConfig) -> IpamConfig,
) -> Result<IpamConfig, ChangeConfigError> {
    for _ in 0..ATTEMPTS {
        let found: Option<Seen<IpamConfig>> =
            seen::get(store, &Key::Config).await.map_err(StoreError::from)?;
        let before = found.as_ref().map(|seen| seen.value.clone()).unwrap_or_default();
        let after = change(&before);
        if after == before {
            return Ok(after);
        }
        check(&after)?;
        let record = Record::Config(after.clone());
        let write = match found {
            Some(seen) => Write::Update(record, seen.version),
            None => Write::Create(record),
        };
        match store.commit(&[], &[write]).await {
            Ok(_) => return Ok(after),
            Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => {}
            Err(error) => return Err(StoreError::from(error).into()),
        }
    }
    Err(StoreError::Contention { what: "the IPAM configuration".to_owned() }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_checked_against_each_other() {
        let strict = IpamConfig { strict_affinity: true, ..IpamConfig::default() };
        for (config, wrong) in [
            (IpamConfig::default(), None),
            (strict.clone(), None),
            (IpamConfig { auto_allocate_blocks: false, ..strict.clone() }, None),
            (
                IpamConfig { auto_allocate_blocks: false, ..IpamConfig::default() },
                Some(ConfigError::NoWayToAllocate),
            ),
            (IpamConfig { max_blocks_per_host: 4, ..strict.clone() }, None),
            (
                IpamConfig { max_blocks_per_host: 4, ..IpamConfig::default() },
                Some(ConfigError::LimitWithoutStrictAffinity { limit: 4 }),
            ),
            (
                IpamConfig { max_blocks_per_host: u32::MAX, ..strict.clone() },
                Some(ConfigError::LimitTooHigh { limit: u32::MAX }),
            ),
            (IpamConfig { ip_cooldown_seconds: 1200, ..strict.clone() }, None),
            (
                IpamConfig { ip_cooldown_seconds: 1201, ..strict.clone() },
                Some(ConfigError::CooldownTooLong { seconds: 1201 }),
            ),
            (IpamConfig { kube_virt_vm_address_persistence: None, ..strict.clone() }, None),
            (
                IpamConfig { kube_virt_vm_address_persistence: Some("enabled".to_owned()), ..strict },
                Some(ConfigError::UnknownPersistence { word: "enabled".to_owned() }),
            ),
        ] {
            assert_eq!(check(&config).err(), wrong, "{config:?}");
        }
    }
}
