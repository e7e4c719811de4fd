//! Affinity, handle and IPAM configuration as values in etcd (data model §6 to §8). Owner, block and handle id are in the key.

use super::WireError;
use super::etcd_text::compact;
use super::field::Fields;
use crate::{Affinity, AffinityState, Cidr, Handle, IpamConfig, Owner};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct AffinityText {
    state: &'static str,
    deleted: bool,
}

impl Affinity {
    /// The value in etcd.
    pub fn to_etcd(&self) -> String {
        compact(&AffinityText { state: self.state.as_str(), deleted: self.deleted })
    }

    /// Reads the value of the key that names `owner` and `cidr`. An empty state is old and means confirmed.
    ///
    /// # Errors
    /// If the state is none that Calico knows.
    pub fn from_etcd(owner: Owner, cidr: Cidr, value: &Value) -> Result<Self, WireError> {
        let name = format!("{owner} {cidr}");
        let fields = Fields::value("affinity", &name, value);
        let state = fields.parsed("state", "pending, confirmed or pendingDeletion", AffinityState::parse)?;
        Ok(Self { state, deleted: fields.flag("deleted", false)?, owner, cidr })
    }
}

#[derive(Serialize)]
struct HandleText {
    /// Sorted as texts, as Calico's encoder sorts the keys of a map.
    block: BTreeMap<String, u32>,
    deleted: bool,
}

impl Handle {
    /// The value in etcd.
    pub fn to_etcd(&self) -> String {
        let block = self.blocks.iter().map(|(cidr, count)| (cidr.to_string(), *count)).collect();
        compact(&HandleText { block, deleted: self.deleted })
    }

    /// Reads the value of the key that names the handle `id`. Entries with a count of zero or less are dropped.
    ///
    /// # Errors
    /// If a key of `block` is no CIDR.
    pub fn from_etcd(id: &str, value: &Value) -> Result<Self, WireError> {
        let fields = Fields::value("handle", id, value);
        Ok(Self {
            id: id.to_owned(),
            blocks: Self::read_blocks(&fields)?,
            deleted: fields.flag("deleted", false)?,
        })
    }
}

#[derive(Serialize)]
struct ConfigText<'a> {
    #[serde(skip_serializing_if = "is_false")]
    strict_affinity: bool,
    #[serde(skip_serializing_if = "is_false")]
    auto_allocate_blocks: bool,
    #[serde(rename = "maxBlocksPerHost", skip_serializing_if = "is_zero")]
    max_blocks_per_host: u32,
    #[serde(rename = "kubeVirtVMAddressPersistence", skip_serializing_if = "Option::is_none")]
    persistence: Option<&'a str>,
    #[serde(rename = "ipCooldownSeconds", skip_serializing_if = "is_zero")]
    ip_cooldown_seconds: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references over")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references over")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl IpamConfig {
    /// The value in etcd: what is false or zero is left out.
    pub fn to_etcd(&self) -> String {
        compact(&ConfigText {
            strict_affinity: self.strict_affinity,
            auto_allocate_blocks: self.auto_allocate_blocks,
            max_blocks_per_host: self.max_blocks_per_host,
            persistence: self.kube_virt_vm_address_persistence.as_deref(),
            ip_cooldown_seconds: self.ip_cooldown_seconds,
        })
    }

    /// Reads the value in etcd. What is missing is false or zero: the defaults are only for a missing record.
    ///
    /// # Errors
    /// If a value is of the wrong type.
    pub fn from_etcd(value: &Value) -> Result<Self, WireError> {
        let fields = Fields::value("IPAM configuration", "config", value);
        let persistence = fields.text("kubeVirtVMAddressPersistence")?;
        Ok(Self {
            strict_affinity: fields.flag("strict_affinity", false)?,
            auto_allocate_blocks: fields.flag("auto_allocate_blocks", false)?,
            max_blocks_per_host: fields.small("maxBlocksPerHost", 0)?,
            kube_virt_vm_address_persistence: (!persistence.is_empty()).then(|| persistence.to_owned()),
            ip_cooldown_seconds: fields.small("ipCooldownSeconds", 0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_empty_affinity_of_old_times_is_confirmed() {
        let cidr = "10.0.0.0/26".parse().unwrap();
        for value in [json!({}), json!({"state": ""}), json!({"state": "confirmed"})] {
            let affinity = Affinity::from_etcd(Owner::host("n"), cidr, &value).unwrap();
            assert_eq!(affinity.to_etcd(), r#"{"state":"confirmed","deleted":false}"#);
        }
        assert!(Affinity::from_etcd(Owner::host("n"), cidr, &json!({"state": "lost"})).is_err());
    }

    #[test]
    fn a_handle_of_both_families_reads_and_writes_in_the_order_of_texts() {
        let text =
            r#"{"block":{"10.244.7.64/26":1,"9.0.0.0/26":2,"fd00:10:244::1c0/122":1},"deleted":false}"#;
        let handle = Handle::from_etcd("net.4F2C", &serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(handle.id, "net.4F2C");
        assert_eq!(handle.to_etcd(), text);
        assert!(Handle::from_etcd("h", &json!({"block": {"x": 1}})).is_err());
        assert!(Handle::from_etcd("h", &json!({"block": null})).unwrap().blocks.is_empty());
    }

    #[test]
    fn a_configuration_that_does_not_say_that_blocks_may_be_claimed_forbids_it() {
        let config = IpamConfig::from_etcd(&json!({"strict_affinity": true})).unwrap();
        assert!(!config.auto_allocate_blocks);
        assert_eq!(config.to_etcd(), r#"{"strict_affinity":true}"#);
        assert_eq!(
            IpamConfig::default().to_etcd(),
            r#"{"auto_allocate_blocks":true,"kubeVirtVMAddressPersistence":"Enabled"}"#
        );
    }
}
