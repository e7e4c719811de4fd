//! BlockAffinity and IPAMHandle as custom resources: who claims a block, and which blocks a handle is in (data model §6, §7).

use super::field::Fields;
use super::{Resource, WireError};
use crate::{Affinity, AffinityNaming, AffinityState, Cidr, Handle, Owner, OwnerKind};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

impl Affinity {
    /// `spec` of the custom resource; `deleted` is a text in this group.
    pub fn spec_v1(&self) -> Value {
        json!({
            "state": self.state.as_str(),
            "node": self.owner.name,
            "type": self.owner.kind.as_str(),
            "cidr": self.cidr.to_string(),
            "deleted": if self.deleted { "true" } else { "false" },
        })
    }

    /// The whole custom resource, with its mandatory labels, named as the datastore names them.
    pub fn to_v1(&self, naming: AffinityNaming) -> Value {
        let name = naming.object_name(&self.owner, self.cidr);
        let mut object = Resource::AFFINITY.object(&name, &self.spec_v1());
        object["metadata"]["labels"] = json!(self.labels());
        object
    }

    /// Reads the custom resource. The owner and CIDR are those of the spec, never of the name.
    ///
    /// # Errors
    /// If the CIDR or node is missing, or the state or type is none that Calico knows.
    pub fn from_v1(object: &Value) -> Result<Self, WireError> {
        let spec = Fields::spec(Resource::AFFINITY, object);
        let name = spec.text("node")?;
        if name.is_empty() {
            return Err(spec.missing("node"));
        }
        Ok(Self {
            owner: Owner {
                kind: spec.parsed("type", "host or virtual", OwnerKind::parse)?,
                name: name.to_owned(),
            },
            cidr: spec.cidr("cidr")?,
            state: spec.parsed("state", "pending, confirmed or pendingDeletion", AffinityState::parse)?,
            deleted: spec.flag("deleted", false)?,
        })
    }
}

impl Handle {
    /// Name of its object: the id in lower case. Two handles that differ in case only are one object.
    pub fn object_name(id: &str) -> String {
        id.to_lowercase()
    }

    /// `spec` of the custom resource.
    pub fn spec_v1(&self) -> Value {
        let block: Map<String, Value> =
            self.blocks.iter().map(|(cidr, count)| (cidr.to_string(), json!(count))).collect();
        json!({"handleID": self.id, "block": block, "deleted": self.deleted})
    }

    /// The whole custom resource.
    pub fn to_v1(&self) -> Value {
        Resource::HANDLE.object(&Self::object_name(&self.id), &self.spec_v1())
    }

    /// Reads the custom resource. Entries with a count of zero or less are dropped.
    ///
    /// # Errors
    /// If there is neither id nor name, or a key of `block` is no CIDR.
    pub fn from_v1(object: &Value) -> Result<Self, WireError> {
        let spec = Fields::spec(Resource::HANDLE, object);
        let id = match spec.text("handleID")? {
            "" => spec.object_name(object)?,
            id => id.to_owned(),
        };
        let blocks = Self::read_blocks(&spec)?;
        Ok(Self { id, blocks, deleted: spec.flag("deleted", false)? })
    }

    /// Reads the counts, which look alike in both forms. Entries with a count of zero or less are dropped.
    pub(super) fn read_blocks(spec: &Fields<'_>) -> Result<BTreeMap<Cidr, u32>, WireError> {
        let mut blocks = BTreeMap::new();
        for (key, count) in spec.entries("block")?.into_iter().flatten() {
            let cidr: Cidr = key.parse().map_err(|_| spec.invalid("block", &json!(key), "CIDRs as keys"))?;
            let number =
                count.as_i64().ok_or_else(|| spec.invalid("block", count, "whole numbers as counts"))?;
            if number > 0 {
                blocks.insert(cidr, u32::try_from(number).unwrap_or(u32::MAX));
            }
        }
        Ok(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affinity_reads_and_writes_as_the_example() {
        let object = json!({"apiVersion":"crd.projectcalico.org/v1","kind":"BlockAffinity",
         "metadata":{"name":"worker-1-10-244-7-64-26","labels":{
           "projectcalico.org/hostname-hash":"CPU5J3TPSNHFA66J45DG4Z5C3PSJAZ36LD46JZLYEGZSTAWBUCUA",
           "projectcalico.org/affinity-type":"host","projectcalico.org/ip-version":"4"}},
         "spec":{"state":"confirmed","node":"worker-1","type":"host","cidr":"10.244.7.64/26","deleted":"false"}});
        assert_eq!(Affinity::from_v1(&object).unwrap().to_v1(AffinityNaming::PerNode), object);
    }

    #[test]
    fn old_affinities_without_state_and_type_are_confirmed_claims_of_nodes() {
        let object = json!({"spec":{"state":"","node":"n","cidr":"10.0.0.0/26","deleted":""}});
        let affinity = Affinity::from_v1(&object).unwrap();
        assert_eq!(affinity.state, AffinityState::Confirmed);
        assert_eq!(affinity.owner, Owner::host("n"));
        assert!(!affinity.deleted);
        let going =
            json!({"spec":{"state":"pendingDeletion","node":"n","cidr":"10.0.0.0/26","deleted":"True"}});
        assert!(Affinity::from_v1(&going).unwrap().deleted);
    }

    #[test]
    fn an_affinity_of_an_unknown_type_is_refused() {
        let object = json!({"spec":{"state":"confirmed","type":"@","node":"n","cidr":"10.0.0.0/26"}});
        assert!(Affinity::from_v1(&object).is_err());
    }

    #[test]
    fn a_handle_keeps_the_case_of_its_id() {
        let object = json!({"apiVersion":"crd.projectcalico.org/v1","kind":"IPAMHandle",
            "metadata":{"name":"k8s-pod-network.4f2c7e"},
            "spec":{"handleID":"k8s-pod-network.4F2C7E","block":{"10.244.7.64/26":1,"fd00:10:244::1c0/122":1},"deleted":false}});
        assert_eq!(Handle::from_v1(&object).unwrap().to_v1(), object);
    }

    #[test]
    fn entries_without_a_count_are_dropped() {
        let object = json!({"metadata":{"name":"h"},"spec":{"block":{"10.0.0.0/26":0,"10.0.0.64/26":2}}});
        let handle = Handle::from_v1(&object).unwrap();
        assert_eq!(handle.id, "h");
        assert_eq!(handle.blocks.len(), 1);
        assert!(Handle::from_v1(&json!({"metadata":{"name":"h"},"spec":{"block":{"x":1}}})).is_err());
    }
}
