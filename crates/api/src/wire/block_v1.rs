//! IPAMBlock as a custom resource (data model §5).

use super::field::{Fields, texts, whole_seconds};
use super::{Resource, WireError};
use crate::{Attribute, Block, Owner};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Largest block that is read: /20 and /116 (data model §13).
const MAX_BLOCK_SIZE: u128 = 4096;

impl Attribute {
    fn to_value(&self) -> Value {
        let mut object = Map::new();
        if let Some(handle) = &self.handle_id {
            object.insert("handle_id".into(), json!(handle));
        }
        for (field, texts) in [("secondary", &self.secondary), ("alternateOwnerAttrs", &self.alternate)] {
            if !texts.is_empty() {
                object.insert(field.into(), json!(texts));
            }
        }
        if let Some(time) = self.released_at {
            object.insert("releasedAt".into(), json!(whole_seconds(time)));
        }
        Value::Object(object)
    }

    fn from_value(value: &Value) -> Self {
        let text = |field: &str| value.get(field).and_then(Value::as_str);
        Self {
            handle_id: text("handle_id").map(str::to_owned),
            secondary: texts(value.get("secondary")),
            alternate: texts(value.get("alternateOwnerAttrs")),
            released_at: text("releasedAt").and_then(|time| time.parse::<Timestamp>().ok()),
        }
    }
}

impl Block {
    /// `spec` of the custom resource: arrays never null, `strictAffinity` always false.
    pub fn spec_v1(&self) -> Value {
        let mut spec = Map::new();
        spec.insert("cidr".into(), json!(self.cidr.to_string()));
        if let Some(owner) = &self.affinity {
            spec.insert("affinity".into(), json!(owner.to_string()));
        }
        if let Some(time) = self.claim_time {
            spec.insert("affinityClaimTime".into(), json!(whole_seconds(time)));
        }
        spec.insert("allocations".into(), json!(self.allocations));
        spec.insert("unallocated".into(), json!(self.unallocated));
        spec.insert(
            "attributes".into(),
            self.attributes.iter().map(|attribute| attribute.to_value()).collect(),
        );
        spec.insert("sequenceNumber".into(), json!(self.sequence_number));
        let stamps: Map<String, Value> = self
            .sequence_for_allocation
            .iter()
            .map(|(ordinal, stamp)| (ordinal.to_string(), json!(stamp)))
            .collect();
        spec.insert("sequenceNumberForAllocation".into(), Value::Object(stamps));
        spec.insert("deleted".into(), json!(self.deleted));
        spec.insert("strictAffinity".into(), json!(false));
        Value::Object(spec)
    }

    /// The whole custom resource.
    pub fn to_v1(&self) -> Value {
        Resource::BLOCK.object(&self.cidr.name(), &self.spec_v1())
    }

    /// Reads the custom resource and mends what a foreign hand left inconsistent, so that every block in memory has
    /// each ordinal either allocated or once in the queue:
    ///
    /// - an index that no attribute has counts as an allocation without handle (data model §14.5);
    /// - a queued ordinal that is allocated, queued twice or outside the block is taken out of the queue;
    /// - an ordinal that is neither allocated nor queued goes to the queue's tail.
    ///
    /// # Errors
    /// If the CIDR is missing or larger than a block may be, `allocations` has not one entry per address, or a value is
    /// of the wrong type.
    pub fn from_v1(object: &Value) -> Result<Self, WireError> {
        Self::read(&Fields::spec(Resource::BLOCK, object), "affinityClaimTime")
    }

    /// Reads the fields that both forms of a block have; the claim time has a name of its own in each.
    pub(super) fn read(spec: &Fields<'_>, claim_time: &str) -> Result<Self, WireError> {
        let cidr = spec.cidr("cidr")?;
        if cidr.size() > MAX_BLOCK_SIZE {
            return Err(spec.invalid("cidr", &json!(cidr.to_string()), "a block of at most 4096 addresses"));
        }
        let affinity = match spec.text("affinity")? {
            "" => None,
            _ => Some(spec.parsed("affinity", "host:<node> or virtual:<name>", Owner::parse)?),
        };
        let mut attributes: Vec<Arc<Attribute>> =
            spec.array("attributes")?.iter().map(|value| Arc::new(Attribute::from_value(value))).collect();
        let allocations = read_allocations(spec, cidr.size(), &mut attributes)?;
        let unallocated = read_queue(spec, &allocations)?;
        let mut sequence_for_allocation = std::collections::BTreeMap::new();
        for (key, stamp) in spec.entries("sequenceNumberForAllocation")?.into_iter().flatten() {
            if let (Ok(ordinal), Some(stamp)) = (key.parse(), stamp.as_u64()) {
                sequence_for_allocation.insert(ordinal, stamp);
            }
        }
        Ok(Self {
            cidr,
            affinity,
            claim_time: spec.time(claim_time)?,
            allocations: allocations.into(),
            unallocated,
            attributes: attributes.into(),
            sequence_number: spec.number("sequenceNumber", 0)?,
            sequence_for_allocation: sequence_for_allocation.into(),
            deleted: spec.flag("deleted", false)?,
            legacy_host_affinity: None,
        })
    }
}

/// Reads `allocations`; an index out of range is led to an attribute without handle, added for the purpose.
fn read_allocations(
    spec: &Fields<'_>,
    size: u128,
    attributes: &mut Vec<Arc<Attribute>>,
) -> Result<Vec<Option<usize>>, WireError> {
    let entries = spec.array("allocations")?;
    if u128::try_from(entries.len()) != Ok(size) {
        return Err(spec.invalid("allocations", &json!(entries.len()), "one entry per address of the block"));
    }
    let known = attributes.len();
    let mut anonymous = None;
    let mut allocations = Vec::with_capacity(entries.len());
    for entry in entries {
        if entry.is_null() {
            allocations.push(None);
            continue;
        }
        if !entry.is_i64() && !entry.is_u64() {
            return Err(spec.invalid("allocations", entry, "null or an index of attributes"));
        }
        let index =
            entry.as_u64().and_then(|index| usize::try_from(index).ok()).filter(|index| *index < known);
        allocations.push(Some(index.unwrap_or_else(|| {
            *anonymous.get_or_insert_with(|| {
                attributes.push(Arc::default());
                attributes.len() - 1
            })
        })));
    }
    Ok(allocations)
}

/// Reads `unallocated` so that exactly the ordinals without allocation are in it, each once, in the order given.
fn read_queue(spec: &Fields<'_>, allocations: &[Option<usize>]) -> Result<Vec<u32>, WireError> {
    let mut waiting: Vec<bool> = allocations.iter().map(Option::is_none).collect();
    let mut queue = Vec::with_capacity(waiting.len());
    for entry in spec.array("unallocated")? {
        let number = entry.as_i64().ok_or_else(|| spec.invalid("unallocated", entry, "ordinals"))?;
        let Ok(ordinal) = u32::try_from(number) else { continue };
        if let Some(free @ true) = usize::try_from(ordinal).ok().and_then(|index| waiting.get_mut(index)) {
            *free = false;
            queue.push(ordinal);
        }
    }
    let left = (0_u32..).zip(&waiting).filter(|(_, free)| **free).map(|(ordinal, _)| ordinal);
    queue.extend(left);
    Ok(queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Value {
        json!({"apiVersion":"crd.projectcalico.org/v1","kind":"IPAMBlock",
         "metadata":{"name":"10-244-7-64-30"},
         "spec":{"cidr":"10.244.7.64/30","affinity":"host:worker-1","affinityClaimTime":"2026-08-01T10:15:30Z",
          "allocations":[0,null,1,null],"unallocated":[3,1],
          "attributes":[{"handle_id":"k8s-pod-network.4f2c7e","secondary":{"namespace":"shop","node":"worker-1","pod":"web-0",
           "timestamp":"2026-08-01 10:15:31.004512 +0000 UTC"}},{"releasedAt":"2026-08-01T10:20:00Z"}],
          "sequenceNumber":1_785_579_330_123_456_795_u64,
          "sequenceNumberForAllocation":{"0":1_785_579_330_123_456_789_u64,"2":1_785_579_330_123_456_794_u64},
          "deleted":false,"strictAffinity":false}})
    }

    #[test]
    fn a_block_reads_and_writes_as_the_example_with_exact_sequence_numbers() {
        let text = serde_json::to_string(&example()).unwrap();
        let block = Block::from_v1(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(block.sequence_number, 1_785_579_330_123_456_795);
        assert_eq!(serde_json::to_string(&block.to_v1()).unwrap(), text);
    }

    #[test]
    fn times_of_any_year_are_written_so_that_they_can_be_read() {
        for time in [
            "-000001-01-01T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "9999-12-30T22:00:00Z",
        ] {
            let mut object = example();
            object["spec"]["affinityClaimTime"] = json!(time);
            let written = Block::from_v1(&object).unwrap().to_v1();
            assert_eq!(written["spec"]["affinityClaimTime"], time);
        }
    }

    #[test]
    fn null_arrays_missing_stamps_and_missing_owner_are_tolerated() {
        let object = json!({"spec":{"cidr":"10.0.0.0/31","allocations":[null,null],"unallocated":[0,1],"attributes":null}});
        let block = Block::from_v1(&object).unwrap();
        assert_eq!(block.affinity, None);
        assert_eq!(block.claim_time, None);
        assert!(block.attributes.is_empty());
        assert!(block.to_v1()["spec"]["attributes"].is_array());
        assert!(block.to_v1()["spec"].get("affinity").is_none());
    }

    #[test]
    fn an_index_without_attribute_is_an_allocation_without_handle() {
        let object = json!({"spec":{"cidr":"10.0.0.0/30","allocations":[7,0,null,-1],"unallocated":[2],"attributes":[{"handle_id":"h"}]}});
        let block = Block::from_v1(&object).unwrap();
        assert_eq!(*block.allocations, [Some(1), Some(0), None, Some(1)]);
        assert_eq!(*block.attributes[1], Attribute::default());
    }

    #[test]
    fn a_queue_edited_by_hand_is_mended() {
        let object = json!({"spec":{"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"unallocated":[3,0,3,9],"attributes":[{}]}});
        assert_eq!(Block::from_v1(&object).unwrap().unallocated, [3, 1, 2]);
    }

    #[test]
    fn blocks_of_another_shape_are_refused() {
        for spec in [
            json!({"allocations":[],"unallocated":[]}),
            json!({"cidr":"10.0.0.0/30","allocations":[null],"unallocated":[]}),
            json!({"cidr":"10.0.0.0/8","allocations":[],"unallocated":[]}),
            json!({"cidr":"10.0.0.0/31","allocations":[null,"x"],"unallocated":[]}),
            json!({"cidr":"10.0.0.0/32","allocations":[null],"sequenceNumber":1.5}),
            json!({"cidr":"10.0.0.0/32","allocations":[null],"affinity":"worker-1"}),
        ] {
            assert!(Block::from_v1(&json!({ "spec": spec })).is_err(), "{spec}");
        }
    }
}
