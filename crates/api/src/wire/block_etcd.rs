//! The block as a value in etcd (data model §5): its own names for some fields, and a null where a new block has no attributes.

use super::WireError;
use super::etcd_text::compact;
use super::field::{Fields, whole_seconds};
use crate::{Attribute, Block, Cidr};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Text<'a> {
    cidr: String,
    affinity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity_claim_time: Option<String>,
    allocations: &'a [Option<usize>],
    unallocated: &'a [u32],
    attributes: Option<Vec<AttributeText<'a>>>,
    #[serde(rename = "sequenceNumber")]
    sequence_number: u64,
    /// Sorted as texts, as Calico's encoder sorts the keys of a map.
    #[serde(rename = "sequenceNumberForAllocation")]
    sequence_for_allocation: BTreeMap<String, u64>,
    deleted: bool,
    #[serde(rename = "hostAffinity", skip_serializing_if = "Option::is_none")]
    host_affinity: Option<&'a str>,
}

#[derive(Serialize)]
struct AttributeText<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    handle_id: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    secondary: &'a BTreeMap<String, String>,
    #[serde(rename = "alternateOwnerAttrs", skip_serializing_if = "BTreeMap::is_empty")]
    alternate: &'a BTreeMap<String, String>,
    #[serde(rename = "releasedAt", skip_serializing_if = "Option::is_none")]
    released_at: Option<String>,
}

impl<'a> From<&'a Attribute> for AttributeText<'a> {
    fn from(attribute: &'a Attribute) -> Self {
        Self {
            handle_id: attribute.handle_id.as_deref(),
            secondary: &attribute.secondary,
            alternate: &attribute.alternate,
            released_at: attribute.released_at.map(whole_seconds),
        }
    }
}

impl Block {
    /// The value in etcd.
    pub fn to_etcd(&self) -> String {
        compact(&Text {
            cidr: self.cidr.to_string(),
            affinity: self.affinity.as_ref().map(ToString::to_string),
            affinity_claim_time: self.claim_time.map(whole_seconds),
            allocations: &self.allocations,
            unallocated: &self.unallocated,
            attributes: (!self.attributes.is_empty())
                .then(|| self.attributes.iter().map(|attribute| AttributeText::from(&**attribute)).collect()),
            sequence_number: self.sequence_number,
            sequence_for_allocation: self
                .sequence_for_allocation
                .iter()
                .map(|(ordinal, stamp)| (ordinal.to_string(), *stamp))
                .collect(),
            deleted: self.deleted,
            host_affinity: self.legacy_host_affinity.as_deref(),
        })
    }

    /// Reads the value of the key that names `cidr`, and mends it as [`Block::from_v1`] does.
    ///
    /// # Errors
    /// As [`Block::from_v1`], and if the value holds another CIDR than its key.
    pub fn from_etcd(cidr: Cidr, value: &Value) -> Result<Self, WireError> {
        let name = cidr.to_string();
        let fields = Fields::value("block", &name, value);
        let mut block = Self::read(&fields, "affinity_claim_time")?;
        if block.cidr != cidr {
            return Err(fields.invalid("cidr", &json!(block.cidr.to_string()), "the CIDR of its key"));
        }
        let legacy = fields.text("hostAffinity")?;
        block.legacy_host_affinity = (!legacy.is_empty()).then(|| legacy.to_owned());
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Block, WireError> {
        let value: Value = serde_json::from_str(text).unwrap();
        let cidr = value["cidr"].as_str().unwrap_or("10.0.0.0/30").parse().unwrap();
        Block::from_etcd(cidr, &value)
    }

    #[test]
    fn a_deprecated_owner_is_carried_along_and_is_no_owner() {
        let text = r#"{"cidr":"10.0.0.0/31","affinity":null,"allocations":[null,null],"unallocated":[0,1],"attributes":null,"sequenceNumber":0,"sequenceNumberForAllocation":{},"deleted":false,"hostAffinity":"worker-1"}"#;
        let block = read(text).unwrap();
        assert_eq!(block.affinity, None);
        assert_eq!(block.to_etcd(), text);
    }

    #[test]
    fn a_block_of_before_the_sequence_numbers_is_read() {
        let block = read(
            r#"{"cidr":"10.0.0.0/31","affinity":"host:n","strictAffinity":false,"allocations":[0,null],"unallocated":[1],"attributes":[{"handle_id":null,"secondary":null}]}"#,
        )
        .unwrap();
        assert_eq!((block.sequence_number, block.claim_time), (0, None));
        assert_eq!(*block.attributes[0], Attribute::default());
    }

    #[test]
    fn a_value_under_the_key_of_another_block_is_refused() {
        let value = json!({"cidr":"10.0.0.0/31","allocations":[null,null],"unallocated":[0,1]});
        assert!(Block::from_etcd("10.0.0.2/31".parse().unwrap(), &value).is_err());
        assert!(Block::from_etcd("10.0.0.0/31".parse().unwrap(), &json!([])).is_err());
    }

    #[test]
    fn stamps_are_sorted_as_texts() {
        let mut block = read(
            r#"{"cidr":"10.0.0.0/28","allocations":[0,null,0,null,null,null,null,null,null,null,0,null,null,null,null,null],"unallocated":[],"attributes":[{}]}"#,
        )
        .unwrap();
        block.sequence_for_allocation = BTreeMap::from([(2, 1), (10, 1), (0, 1)]).into();
        assert!(block.to_etcd().contains(r#"{"0":1,"10":1,"2":1}"#));
    }
}
