//! `ipam configure`: changes the cluster's IPAM configuration (calicoctl §5).

use crate::arguments::Configure;
use crate::failure::Failure;
use api::IpamConfig;
use datastore::{Datastore, Key, Record, Write};
use ipam::Seen;
use ipam::seen;

/// Runs the command.
pub(crate) async fn run<D: Datastore>(store: &D, options: &Configure) -> Result<String, Failure> {
    let found: Option<Seen<IpamConfig>> = seen::get(store, &Key::Config).await?;
    let before = found.as_ref().map(|seen| seen.value.clone()).unwrap_or_default();
    let (after, said) = changed(&before, options)?;
    if after != before {
        let write = match found {
            Some(seen) => Write::Update(Record::Config(after), seen.version),
            None => Write::Create(Record::Config(after)),
        };
        store.commit(&[], &[write]).await.map_err(|error| Failure::new(format!("error: {error}")))?;
    }
    Ok(said)
}

/// The configuration with the options applied, and one line of success for each.
fn changed(before: &IpamConfig, options: &Configure) -> Result<(IpamConfig, String), Failure> {
    let mut after = before.clone();
    let mut said = String::new();
    let mut set =
        |field: &str, value: &str| said.push_str(&format!("Successfully set {field} to: {value}\n"));
    if let Some(text) = &options.strictaffinity {
        after.strict_affinity = truth(text)
            .ok_or_else(|| Failure::new("invalid value. Use true or false to set strictaffinity"))?;
        set("StrictAffinity", &after.strict_affinity.to_string());
    }
    if let Some(text) = &options.max_blocks_per_host {
        after.max_blocks_per_host =
            text.parse().map_err(|_| Failure::new("invalid value for maxblockhost. Use a valid number"))?;
        set("MaxBlocksPerHost", text);
    }
    if let Some(mode) = &options.kubevirt_ip_persistence {
        if mode != "Enabled" && mode != "Disabled" {
            return Err(Failure::new("invalid value for --kubevirt-ip-persistence. Use Enabled or Disabled"));
        }
        after.kube_virt_vm_address_persistence = Some(mode.clone());
        set("KubeVirtVMAddressPersistence", mode);
    }
    if let Some(seconds) = options.ip_cooldown_seconds.and_then(|seconds| u32::try_from(seconds).ok()) {
        after.ip_cooldown_seconds = seconds;
        set("IPCooldownSeconds", &seconds.to_string());
    }
    if said.is_empty() {
        return Err(Failure::new("at least one configuration option must be specified"));
    }
    if !after.strict_affinity && !after.auto_allocate_blocks {
        return Err(Failure::new(
            "error: Cannot disable 'StrictAffinity' and 'AutoAllocateBlocks' at the same time",
        ));
    }
    if after.max_blocks_per_host > 0 && !after.strict_affinity {
        return Err(Failure::new("error: MaxBlocksPerHost requires StrictAffinity to be enabled"));
    }
    Ok((after, said))
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

    fn strict(text: &str) -> Configure {
        Configure { strictaffinity: Some(text.to_owned()), ..Configure::default() }
    }

    #[test]
    fn given_options_change_and_are_confirmed_in_order() {
        let options = Configure {
            max_blocks_per_host: Some("4".to_owned()),
            ip_cooldown_seconds: Some(30),
            ..strict("T")
        };
        let (after, said) = changed(&IpamConfig::default(), &options).unwrap();
        assert!(after.strict_affinity && after.auto_allocate_blocks);
        assert_eq!(
            said,
            "Successfully set StrictAffinity to: true\nSuccessfully set MaxBlocksPerHost to: 4\nSuccessfully set IPCooldownSeconds to: 30\n"
        );
    }

    #[test]
    fn impossible_combinations_are_refused() {
        let default = IpamConfig::default();
        let sentence = |options| changed(&default, &options).unwrap_err().sentence();
        assert_eq!(sentence(Configure::default()), "at least one configuration option must be specified");
        assert_eq!(sentence(strict("yes")), "invalid value. Use true or false to set strictaffinity");
        let limited = Configure { max_blocks_per_host: Some("4".to_owned()), ..Configure::default() };
        assert_eq!(sentence(limited), "error: MaxBlocksPerHost requires StrictAffinity to be enabled");
        let manual =
            IpamConfig { auto_allocate_blocks: false, strict_affinity: true, ..IpamConfig::default() };
        assert!(changed(&manual, &strict("false")).is_err());
    }
}
