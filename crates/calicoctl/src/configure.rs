//! `ipam configure`: changes the cluster's IPAM configuration (calicoctl §5).

use crate::arguments::Configure;
use crate::failure::Failure;
use api::IpamConfig;
use datastore::Datastore;
use ipam::config::{self, ChangeConfigError, ConfigError};

/// Runs the command.
pub(crate) async fn run<D: Datastore>(store: &D, options: &Configure) -> Result<String, Failure> {
    let (wish, said) = wish(options)?;
    config::change(store, |before| wish.applied_to(before)).await.map_err(refusal)?;
    Ok(said)
}

/// What is to be changed; `None` stays.
#[derive(Clone, Debug, Default)]
struct Wish {
    strict_affinity: Option<bool>,
    max_blocks_per_host: Option<u32>,
    persistence: Option<String>,
    ip_cooldown_seconds: Option<u32>,
}

impl Wish {
    fn applied_to(&self, before: &IpamConfig) -> IpamConfig {
        IpamConfig {
            strict_affinity: self.strict_affinity.unwrap_or(before.strict_affinity),
            max_blocks_per_host: self.max_blocks_per_host.unwrap_or(before.max_blocks_per_host),
            kube_virt_vm_address_persistence: self
                .persistence
                .clone()
                .or_else(|| before.kube_virt_vm_address_persistence.clone()),
            ip_cooldown_seconds: self.ip_cooldown_seconds.unwrap_or(before.ip_cooldown_seconds),
            ..before.clone()
        }
    }
}

/// Reads the options, with one line of success for each.
fn wish(options: &Configure) -> Result<(Wish, String), Failure> {
    let mut wish = Wish::default();
    let mut said = String::new();
    let mut set =
        |field: &str, value: &str| said.push_str(&format!("Successfully set {field} to: {value}\n"));
    if let Some(text) = &options.strictaffinity {
        let strict = truth(text)
            .ok_or_else(|| Failure::new("invalid value. Use true or false to set strictaffinity"))?;
        wish.strict_affinity = Some(strict);
        set("StrictAffinity", &strict.to_string());
    }
    if let Some(text) = &options.max_blocks_per_host {
        let limit =
            text.parse().map_err(|_| Failure::new("invalid value for maxblockhost. Use a valid number"))?;
        wish.max_blocks_per_host = Some(limit);
        set("MaxBlocksPerHost", text);
    }
    if let Some(mode) = &options.kubevirt_ip_persistence {
        if mode != "Enabled" && mode != "Disabled" {
            return Err(Failure::new("invalid value for --kubevirt-ip-persistence. Use Enabled or Disabled"));
        }
        wish.persistence = Some(mode.clone());
        set("KubeVirtVMAddressPersistence", mode);
    }
    if let Some(seconds) = options.ip_cooldown_seconds.filter(|seconds| *seconds >= 0) {
        let too_long = || Failure::new(format!("error: a cooldown of {seconds} seconds is too long"));
        wish.ip_cooldown_seconds = Some(u32::try_from(seconds).map_err(|_| too_long())?);
        set("IPCooldownSeconds", &seconds.to_string());
    }
    if said.is_empty() {
        return Err(Failure::new("at least one configuration option must be specified"));
    }
    Ok((wish, said))
}

/// The refusal in Calico's words, where Calico has words for it.
fn refusal(error: ChangeConfigError) -> Failure {
    Failure::new(match error {
        ChangeConfigError::Invalid(ConfigError::NoWayToAllocate) => {
            "error: Cannot disable 'StrictAffinity' and 'AutoAllocateBlocks' at the same time".to_owned()
        }
        ChangeConfigError::Invalid(ConfigError::LimitWithoutStrictAffinity { .. }) => {
            "error: MaxBlocksPerHost requires StrictAffinity to be enabled".to_owned()
        }
        error => format!("error: {error}"),
    })
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datastore::memory::Memory;
    use datastore::{Record, Write};

    fn strict(text: &str) -> Configure {
        Configure { strictaffinity: Some(text.to_owned()), ..Configure::default() }
    }

    /// What the command says to a cluster with this configuration, and what the configuration is then.
    fn answer(before: IpamConfig, options: &Configure) -> (Result<String, String>, IpamConfig) {
        futures::executor::block_on(async {
            let store = Memory::new();
            store.commit(&[], &[Write::Create(Record::Config(before))]).await.unwrap();
            let answer = run(&store, options).await.map_err(|failure| failure.sentence());
            (answer, ipam::seen::config(&store).await.unwrap())
        })
    }

    #[test]
    fn given_options_change_and_are_confirmed_in_order() {
        let options = Configure {
            max_blocks_per_host: Some("4".to_owned()),
            ip_cooldown_seconds: Some(30),
            ..strict("T")
        };
        let (said, after) = answer(IpamConfig::default(), &options);
        assert!(after.strict_affinity && after.auto_allocate_blocks);
        assert_eq!((after.max_blocks_per_host, after.ip_cooldown_seconds), (4, 30));
        assert_eq!(
            said.unwrap(),
            "Successfully set StrictAffinity to: true\nSuccessfully set MaxBlocksPerHost to: 4\nSuccessfully set IPCooldownSeconds to: 30\n"
        );
    }

    #[test]
    fn impossible_combinations_are_refused_and_change_nothing() {
        let manual =
            IpamConfig { auto_allocate_blocks: false, strict_affinity: true, ..IpamConfig::default() };
        let limited = Configure { max_blocks_per_host: Some("4".to_owned()), ..Configure::default() };
        let slow = |seconds| Configure { ip_cooldown_seconds: Some(seconds), ..Configure::default() };
        for (before, options, sentence) in [
            (
                IpamConfig::default(),
                Configure::default(),
                "at least one configuration option must be specified",
            ),
            (IpamConfig::default(), slow(-1), "at least one configuration option must be specified"),
            (IpamConfig::default(), strict("yes"), "invalid value. Use true or false to set strictaffinity"),
            (IpamConfig::default(), limited, "error: MaxBlocksPerHost requires StrictAffinity to be enabled"),
            (
                manual,
                strict("false"),
                "error: Cannot disable 'StrictAffinity' and 'AutoAllocateBlocks' at the same time",
            ),
            (
                IpamConfig::default(),
                slow(1201),
                "error: a cooldown of 1201 seconds is longer than 1200: set a shorter one",
            ),
            (IpamConfig::default(), slow(1 << 40), "error: a cooldown of 1099511627776 seconds is too long"),
        ] {
            let (said, after) = answer(before.clone(), &options);
            assert_eq!(said.unwrap_err(), sentence);
            assert_eq!(after, before);
        }
    }
}
