//! The cluster-wide settings as custom resources: IPAMConfig, IPReservation, ClusterInformation (data model §8 to §10).

use super::field::Fields;
use super::{Resource, SINGLETON, WireError};
use crate::{Cidr, ClusterInformation, IpamConfig, Reservation};
use serde_json::{Map, Value, json};
use std::net::IpAddr;

impl IpamConfig {
    /// `spec` of the custom resource.
    pub fn spec_v1(&self) -> Value {
        let mut spec = Map::new();
        spec.insert("strictAffinity".into(), json!(self.strict_affinity));
        spec.insert("autoAllocateBlocks".into(), json!(self.auto_allocate_blocks));
        if self.max_blocks_per_host != 0 {
            spec.insert("maxBlocksPerHost".into(), json!(self.max_blocks_per_host));
        }
        if let Some(persistence) = &self.kube_virt_vm_address_persistence {
            spec.insert("kubeVirtVMAddressPersistence".into(), json!(persistence));
        }
        if self.ip_cooldown_seconds != 0 {
            spec.insert("ipCooldownSeconds".into(), json!(self.ip_cooldown_seconds));
        }
        Value::Object(spec)
    }

    /// The whole custom resource.
    pub fn to_v1(&self) -> Value {
        Resource::CONFIG.object(SINGLETON, &self.spec_v1())
    }

    /// Reads the custom resource. A missing `autoAllocateBlocks`, which no schema lets through, reads as true.
    ///
    /// # Errors
    /// If a value is of the wrong type.
    pub fn from_v1(object: &Value) -> Result<Self, WireError> {
        let spec = Fields::spec(Resource::CONFIG, object);
        let persistence = spec.text("kubeVirtVMAddressPersistence")?;
        Ok(Self {
            strict_affinity: spec.flag("strictAffinity", false)?,
            auto_allocate_blocks: spec.flag("autoAllocateBlocks", true)?,
            max_blocks_per_host: spec.small("maxBlocksPerHost", 0)?,
            kube_virt_vm_address_persistence: (!persistence.is_empty()).then(|| persistence.to_owned()),
            ip_cooldown_seconds: spec.small("ipCooldownSeconds", 0)?,
        })
    }
}

impl Reservation {
    /// `spec` of the custom resource.
    pub fn spec_v1(&self) -> Value {
        let cidrs: Vec<String> = self.cidrs.iter().map(Cidr::to_string).collect();
        json!({ "reservedCIDRs": cidrs })
    }

    /// The whole custom resource.
    pub fn to_v1(&self) -> Value {
        Resource::RESERVATION.object(&self.name, &self.spec_v1())
    }

    /// Reads the custom resource: bare addresses count as full-length prefixes, what does not parse is skipped.
    ///
    /// # Errors
    /// If it has no name, or its list is none.
    pub fn from_v1(object: &Value) -> Result<Self, WireError> {
        let spec = Fields::spec(Resource::RESERVATION, object);
        let cidrs =
            spec.array("reservedCIDRs")?.iter().filter_map(Value::as_str).filter_map(reserved).collect();
        Ok(Self { name: spec.object_name(object)?, cidrs })
    }
}

/// One entry of a reservation.
pub(super) fn reserved(entry: &str) -> Option<Cidr> {
    let entry = entry.trim();
    entry.parse().ok().or_else(|| entry.parse::<IpAddr>().ok().map(Cidr::from))
}

impl ClusterInformation {
    /// `spec` of the custom resource.
    pub fn spec_v1(&self) -> Value {
        let mut spec = self.rest.clone();
        spec.insert("datastoreReady".into(), json!(self.datastore_ready));
        for (field, text) in [("clusterGUID", &self.cluster_guid), ("calicoVersion", &self.calico_version)] {
            if !text.is_empty() {
                spec.insert(field.into(), json!(text));
            }
        }
        Value::Object(spec)
    }

    /// The whole custom resource.
    pub fn to_v1(&self) -> Value {
        Resource::CLUSTER_INFORMATION.object(SINGLETON, &self.spec_v1())
    }

    /// Reads the custom resource; a missing `datastoreReady` is ready.
    ///
    /// # Errors
    /// If a value is of the wrong type.
    pub fn from_v1(object: &Value) -> Result<Self, WireError> {
        let spec = Fields::spec(Resource::CLUSTER_INFORMATION, object);
        Ok(Self {
            datastore_ready: spec.flag("datastoreReady", true)?,
            cluster_guid: spec.text("clusterGUID")?.to_owned(),
            calico_version: spec.text("calicoVersion")?.to_owned(),
            rest: object
                .get("spec")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .filter(|(field, _)| {
                    !["datastoreReady", "clusterGUID", "calicoVersion"].contains(&field.as_str())
                })
                .map(|(field, value)| (field.clone(), value.clone()))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_reads_and_writes_as_the_example() {
        let object = json!({"apiVersion":"crd.projectcalico.org/v1","kind":"IPAMConfig","metadata":{"name":"default"},
            "spec":{"strictAffinity":true,"autoAllocateBlocks":true,"maxBlocksPerHost":4,
                    "kubeVirtVMAddressPersistence":"Enabled","ipCooldownSeconds":30}});
        assert_eq!(IpamConfig::from_v1(&object).unwrap().to_v1(), object);
    }

    #[test]
    fn reservations_take_bare_addresses_and_skip_nonsense() {
        let object = json!({"metadata":{"name":"gateways"},
            "spec":{"reservedCIDRs":[" 10.244.0.1 ","10.244.0.32/30","","gateway","fd00::1"]}});
        let cidrs: Vec<String> =
            Reservation::from_v1(&object).unwrap().cidrs.iter().map(Cidr::to_string).collect();
        assert_eq!(cidrs, ["10.244.0.1/32", "10.244.0.32/30", "fd00::1/128"]);
    }

    #[test]
    fn a_cluster_that_says_nothing_is_ready() {
        assert!(
            ClusterInformation::from_v1(&json!({"metadata":{"name":"default"}})).unwrap().datastore_ready
        );
        let closed = json!({"spec":{"datastoreReady":false,"clusterGUID":"g"}});
        assert!(!ClusterInformation::from_v1(&closed).unwrap().datastore_ready);
    }

    #[test]
    fn what_a_cluster_says_besides_survives_being_locked() {
        let object = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation", "metadata": {"name": "default"},
            "spec": {"datastoreReady": true, "clusterGUID": "g", "clusterType": "typha,kdd,k8s,operator", "variant": "Calico"}});
        let cluster = ClusterInformation::from_v1(&object).unwrap();
        let locked = ClusterInformation { datastore_ready: false, ..cluster }.to_v1();
        assert_eq!(locked["spec"]["clusterType"], "typha,kdd,k8s,operator");
        assert_eq!(locked["spec"]["datastoreReady"], false);
    }
}
