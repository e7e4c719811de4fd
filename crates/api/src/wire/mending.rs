//! What is mended or passed over in records that a foreign hand left inconsistent, in words for whoever has to know of it.

use super::settings_v1::reserved;
use crate::{Block, Reservation};
use serde_json::Value;

/// Findings that are told one by one.
const SHOWN: usize = 3;

/// Characters of an entry that are told.
const ENTRY: usize = 100;

impl Block {
    /// What reading mends in a block that can be read, from its `spec` or from its value in etcd; `None`: it is in order, or
    /// lacks only what old releases did not write (data model §14.5).
    pub fn mending(spec: &Value) -> Option<String> {
        let array = |field: &str| spec.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let (allocations, attributes) = (array("allocations"), array("attributes"));
        let number = |entry: &Value| entry.as_u64().and_then(|number| usize::try_from(number).ok());
        let mut findings: Vec<String> = Vec::new();
        for (ordinal, entry) in allocations.iter().enumerate().filter(|(_, entry)| !entry.is_null()) {
            if number(entry).is_none_or(|index| index >= attributes.len()) {
                findings
                    .push(format!("ordinal {ordinal} has index {entry} of {} attributes", attributes.len()));
            }
        }
        // Every block that is read comes by here.
        let mut queued = vec![false; allocations.len()];
        for entry in array("unallocated") {
            match number(entry).and_then(|ordinal| Some((ordinal, allocations.get(ordinal)?))) {
                None => findings.push(format!("ordinal {entry} is queued and not in the block")),
                Some((ordinal, allocation)) if !allocation.is_null() => {
                    findings.push(format!("ordinal {ordinal} is allocated and queued"));
                }
                Some((ordinal, _)) => {
                    let before = queued.get_mut(ordinal).map(|queued| std::mem::replace(queued, true));
                    if before == Some(true) {
                        findings.push(format!("ordinal {ordinal} is queued twice"));
                    }
                }
            }
        }
        let places = allocations.iter().zip(&queued).enumerate();
        let lost = places.filter(|(_, (entry, queued))| entry.is_null() && !**queued);
        findings
            .extend(lost.map(|(ordinal, _)| format!("ordinal {ordinal} is neither allocated nor queued")));
        for (index, attribute) in attributes.iter().enumerate() {
            let text = attribute.get("releasedAt").and_then(Value::as_str);
            if text.is_some_and(|text| text.parse::<jiff::Timestamp>().is_err()) {
                findings.push(format!("attribute {index} has a release time that cannot be read"));
            }
        }
        told(findings)
    }
}

impl Reservation {
    /// Entries that reading passes over because they are neither a CIDR nor an address, from the resource's `spec` (data model
    /// §9); `None`: there are none.
    pub fn mending(spec: &Value) -> Option<String> {
        let entries = spec.get("reservedCIDRs").and_then(Value::as_array).into_iter().flatten();
        let is_odd = |entry: &&Value| match entry.as_str() {
            Some(text) => !text.trim().is_empty() && reserved(text).is_none(),
            None => true,
        };
        let name = |entry: &Value| entry.to_string().chars().take(ENTRY).collect::<String>();
        told(entries.filter(is_odd).map(|entry| format!("{} reserves nothing", name(entry))).collect())
    }
}

/// The first of these findings.
fn told(mut findings: Vec<String>) -> Option<String> {
    let more = findings.len().saturating_sub(SHOWN);
    findings.truncate(SHOWN);
    if more > 0 {
        findings.push(format!("and {more} more"));
    }
    (!findings.is_empty()).then(|| findings.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_thing_that_is_mended_is_told() {
        let cases = [
            (json!([0, 7, null, null]), json!([2, 3]), "ordinal 1 has index 7 of 1 attributes"),
            (json!([-1, null, null, null]), json!([1, 2, 3]), "ordinal 0 has index -1 of 1 attributes"),
            (json!([0, null, null, null]), json!([0, 1, 2, 3]), "ordinal 0 is allocated and queued"),
            (json!([0, null, null, null]), json!([1, 2, 3, 2]), "ordinal 2 is queued twice"),
            (json!([0, null, null, null]), json!([1, 2, 3, 9]), "ordinal 9 is queued and not in the block"),
            (json!([0, null, null, null]), json!([1, 3]), "ordinal 2 is neither allocated nor queued"),
            (
                json!([null, null, null, null]),
                json!(null),
                "ordinal 0 is neither allocated nor queued, ordinal 1 is neither allocated nor queued, ordinal 2 is neither \
                 allocated nor queued, and 1 more",
            ),
        ];
        for (allocations, unallocated, told) in cases {
            let spec = json!({"cidr":"10.0.0.0/30","allocations":allocations,"unallocated":unallocated,"attributes":[{}]});
            assert_eq!(Block::mending(&spec).as_deref(), Some(told), "{spec}");
            // What is told is what reading it changes.
            let read = Block::from_v1(&json!({"metadata":{"name":"b"},"spec":spec})).unwrap();
            assert_eq!(Block::mending(&read.spec_v1()), None, "{spec}");
        }
        let spec = json!({"allocations":[0],"unallocated":[],"attributes":[{"releasedAt":"soon"}]});
        assert_eq!(
            Block::mending(&spec).as_deref(),
            Some("attribute 0 has a release time that cannot be read")
        );
        assert_eq!(Block::mending(&json!(null)), None);
    }

    #[test]
    fn entries_that_reserve_nothing_are_told() {
        let spec = json!({"reservedCIDRs":["10.0.0.0/30"," 10.0.0.9 ","", "10.0.0.0-10.0.0.9", 7]});
        let told = Reservation::mending(&spec).unwrap();
        assert_eq!(told, "\"10.0.0.0-10.0.0.9\" reserves nothing, 7 reserves nothing");
        assert_eq!(Reservation::mending(&json!({"reservedCIDRs":["fd00::/64"]})), None);
        assert_eq!(Reservation::mending(&json!(null)), None);
    }
}
