//! What a node's agent may write of the records of allocations: its own node's, and little of others'.
//!
//! - In a block of another owner, or of none, only ordinals whose `node` is its own change.
//! - A block or affinity of another owner is released only when the block is empty and was claimed sixty seconds ago.
//! - A handle is changed only while no other node's address has it, and one that no address has only after sixty seconds.
//! - Owner references and finalizers of records are not its business: by them the server itself would delete or keep.
//! - A Node is its own.

use api::{Affinity, AffinityState, Block, Cidr, Handle, Owner};
use apiserver::guard::{Change, Guard, Others};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::collections::BTreeMap;

/// What the users of agents begin with; the node's name follows.
pub const USER_PREFIX: &str = "calico-node:";

/// How long another owner's empty block is left alone.
const PATIENCE: SignedDuration = SignedDuration::from_secs(60);

/// The guard of agents.
#[derive(Debug)]
pub struct RecordsGuard;

impl Guard for RecordsGuard {
    fn judge(&self, change: &Change<'_>, others: &dyn Others) -> Result<(), String> {
        let Some(node) = change.user.name.strip_prefix(USER_PREFIX) else { return Ok(()) };
        if change.group.is_empty() && change.resource == "nodes" {
            return if change.name == node {
                Ok(())
            } else {
                Err(format!("the agent of {node} changes no other node"))
            };
        }
        if !matches!(change.group, "crd.projectcalico.org" | "projectcalico.org") {
            return Ok(());
        }
        if matches!(change.resource, "ipamblocks" | "blockaffinities" | "ipamhandles") {
            metadata(change)?;
        }
        let world = World { node, owner: Owner::host(node), now: change.now, group: change.group, others };
        match change.resource {
            "ipamblocks" => {
                let (old, new) = read(change, Block::from_v1)?;
                world.block(change.old.and_then(created), old.as_ref(), new.as_ref())
            }
            "blockaffinities" => {
                let (old, new) = read(change, Affinity::from_v1)?;
                world.affinity(change.old.and_then(created), old.as_ref(), new.as_ref())
            }
            "ipamhandles" => {
                let (old, _) = read(change, Handle::from_v1)?;
                old.map_or(Ok(()), |old| world.handle(change.old.and_then(created), &old))
            }
            _ => Ok(()),
        }
    }
}

/// A record before and after a change.
type BeforeAndAfter<T> = (Option<T>, Option<T>);

fn read<T, E: std::fmt::Display>(
    change: &Change<'_>,
    from: impl Fn(&Value) -> Result<T, E>,
) -> Result<BeforeAndAfter<T>, String> {
    let one = |object: Option<&Value>| {
        object.map(&from).transpose().map_err(|error| format!("it cannot be judged: {error}"))
    };
    Ok((one(change.old)?, one(change.new)?))
}

/// Owner references, by which the server deletes, and finalizers, by which it waits, stay as they are; and labels, by which
/// records are found, are those that the record makes itself and those that others gave it.
fn metadata(change: &Change<'_>) -> Result<(), String> {
    let Some(new) = change.new else { return Ok(()) };
    let own = match change.resource {
        "blockaffinities" => Affinity::from_v1(new).map(|new| new.labels()).unwrap_or_default(),
        _ => BTreeMap::new(),
    };
    let before = |field: &str| change.old.map_or(&Value::Null, |old| &old["metadata"][field]);
    for field in ["ownerReferences", "finalizers"] {
        if *before(field) != new["metadata"][field] {
            return Err(format!("an agent does not change metadata.{field} of records"));
        }
    }
    let others = before("labels").as_object().into_iter().flatten();
    let others = others.filter(|(name, _)| !own.contains_key(*name));
    let mut wanted = others
        .map(|(name, value)| (name, value.as_str()))
        .chain(own.iter().map(|(name, value)| (name, Some(value.as_str()))));
    match wanted.find(|(name, value)| new["metadata"]["labels"][name.as_str()].as_str() != *value) {
        Some((name, _)) => Err(format!("an agent does not change the label {name} of a record")),
        None => Ok(()),
    }
}

fn created(object: &Value) -> Option<Timestamp> {
    object["metadata"]["creationTimestamp"].as_str()?.parse().ok()
}

struct World<'a> {
    node: &'a str,
    owner: Owner,
    now: Timestamp,
    group: &'a str,
    others: &'a dyn Others,
}

/// Whom an ordinal belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use<'a> {
    Free,
    Cooling,
    Of(Option<&'a str>),
}

fn use_of(block: &Block, ordinal: usize) -> Use<'_> {
    let attribute = block.allocations.get(ordinal).copied().flatten().and_then(|at| block.attributes.get(at));
    match attribute {
        None => Use::Free,
        Some(attribute) if attribute.released_at.is_some() => Use::Cooling,
        Some(attribute) => Use::Of(attribute.secondary.get("node").map(String::as_str)),
    }
}

fn is_empty(block: &Block) -> bool {
    (0..block.allocations.len()).all(|ordinal| !matches!(use_of(block, ordinal), Use::Of(_)))
}

impl World<'_> {
    fn is_old(&self, since: Option<Timestamp>) -> bool {
        since.is_none_or(|since| self.now.duration_since(since) >= PATIENCE)
    }

    fn block(&self, made: Option<Timestamp>, old: Option<&Block>, new: Option<&Block>) -> Result<(), String> {
        match (old, new) {
            (None, Some(new)) => {
                if new.affinity.as_ref() != Some(&self.owner) {
                    return Err(format!("the agent of {} makes blocks for its own node only", self.node));
                }
                self.ordinals(None, new)
            }
            (Some(old), None) if old.affinity.as_ref() == Some(&self.owner) => {
                let foreign =
                    (0..old.allocations.len()).find(|ordinal| self.is_foreign(use_of(old, *ordinal)));
                foreign.map_or(Ok(()), |ordinal| Err(self.foreign(old, ordinal)))
            }
            (Some(old), None) => self.releases(made, old),
            (Some(old), Some(new)) if old.affinity.as_ref() == Some(&self.owner) => {
                let stays = new.affinity.is_none() || new.affinity == old.affinity;
                if stays && new.cidr == old.cidr {
                    Ok(())
                } else {
                    Err(format!("the agent of {} gives its blocks to nobody", self.node))
                }
            }
            (Some(old), Some(new)) => {
                let claims = new.affinity != old.affinity;
                let to_itself = new.affinity.is_none() || new.affinity.as_ref() == Some(&self.owner);
                if new.cidr != old.cidr || claims && !to_itself {
                    return Err(format!("the agent of {} gives other nodes' blocks to nobody", self.node));
                }
                if claims && old.affinity.is_some() || new.deleted != old.deleted {
                    self.releases(made, old)?;
                } else if !claims && new.claim_time != old.claim_time {
                    return Err("another owner's claim is as old as it is".to_owned());
                }
                self.stamps(old, new)?;
                self.ordinals(Some(old), new)
            }
            (None, None) => Ok(()),
        }
    }

    /// Whether the stamps by which others release their addresses are as they were.
    fn stamps(&self, old: &Block, new: &Block) -> Result<(), String> {
        if new.sequence_number < old.sequence_number {
            return Err(format!("the sequence number of {} does not go back", old.cidr));
        }
        let stamp = |block: &Block, ordinal| block.sequence_for_allocation.get(&ordinal).copied();
        let size = u32::try_from(old.allocations.len()).unwrap_or(u32::MAX);
        let changed = (0..size).filter(|ordinal| stamp(old, *ordinal) != stamp(new, *ordinal));
        let mut changed = changed.filter_map(|ordinal| usize::try_from(ordinal).ok());
        let foreign = changed.find(|ordinal| self.is_foreign(use_of(old, *ordinal)));
        foreign.map_or(Ok(()), |ordinal| Err(self.foreign(old, ordinal)))
    }

    /// Whether only ordinals of the agent's own node differ.
    fn ordinals(&self, old: Option<&Block>, new: &Block) -> Result<(), String> {
        for ordinal in 0..new.allocations.len() {
            let attribute = |block: &Block| {
                let at = block.allocations.get(ordinal).copied().flatten()?;
                block.attributes.get(at).cloned()
            };
            if old.is_some_and(|old| attribute(old) == attribute(new)) {
                continue;
            }
            let before = old.map_or(Use::Free, |old| use_of(old, ordinal));
            let after = use_of(new, ordinal);
            let cools_what_was_not_its = after == Use::Cooling && !matches!(before, Use::Of(_));
            if self.is_foreign(before) || self.is_foreign(after) || cools_what_was_not_its {
                return Err(self.foreign(new, ordinal));
            }
        }
        Ok(())
    }

    fn is_foreign(&self, used: Use<'_>) -> bool {
        matches!(used, Use::Of(node) if node != Some(self.node))
    }

    fn foreign(&self, block: &Block, ordinal: usize) -> String {
        format!("ordinal {ordinal} of {} is not of node {}", block.cidr, self.node)
    }

    /// A block of a time when claims were not dated is as old as its record, which was `made` then.
    fn releases(&self, made: Option<Timestamp>, block: &Block) -> Result<(), String> {
        if !is_empty(block) {
            return Err(format!("block {} of another owner is not empty", block.cidr));
        }
        if block.affinity.is_some() && !self.is_old(block.claim_time.or(made)) {
            return Err(format!("block {} was claimed less than sixty seconds ago", block.cidr));
        }
        Ok(())
    }

    fn affinity(
        &self,
        made: Option<Timestamp>,
        old: Option<&Affinity>,
        new: Option<&Affinity>,
    ) -> Result<(), String> {
        let takes = new.is_some_and(|new| new.owner == self.owner);
        let Some(old) = old.filter(|old| old.owner != self.owner) else {
            return if takes || new.is_none() {
                Ok(())
            } else {
                Err(format!("the agent of {} claims for its own node only", self.node))
            };
        };
        match new {
            Some(new) if new.cidr != old.cidr => Err("an affinity is of one block".to_owned()),
            Some(_) if takes && old.state == AffinityState::Confirmed => {
                Err(format!("the affinity of {} is confirmed", old.cidr))
            }
            Some(_) if takes && self.block_of(old.cidr)?.is_some() => {
                Err(format!("block {} is there", old.cidr))
            }
            Some(new) if !takes && new.owner != old.owner => {
                Err(format!("the agent of {} claims for its own node only", self.node))
            }
            Some(new) if !takes && new.state != AffinityState::PendingDeletion => {
                Err(format!("the agent of {} confirms no other node's affinity", self.node))
            }
            _ => match self.block_of(old.cidr)? {
                Some(block) if block.affinity.as_ref() == Some(&old.owner) => self.releases(made, &block),
                // What is left of a claim, or of a release.
                _ if self.is_old(made) => Ok(()),
                _ => Err(format!("the affinity of {} was made less than sixty seconds ago", old.cidr)),
            },
        }
    }

    fn block_of(&self, cidr: Cidr) -> Result<Option<Block>, String> {
        let object = self.others.get(self.group, "ipamblocks", &cidr.name());
        object
            .map(|object| Block::from_v1(&object))
            .transpose()
            .map_err(|error| format!("its block cannot be judged: {error}"))
    }

    fn handle(&self, made: Option<Timestamp>, handle: &Handle) -> Result<(), String> {
        let mut is_used = false;
        for cidr in handle.blocks.keys() {
            let Some(block) = self.block_of(*cidr)? else { continue };
            let has = |ordinal: &usize| {
                let attribute = block.allocations[*ordinal].and_then(|at| block.attributes.get(at));
                attribute.is_some_and(|attribute| attribute.handle_id.as_ref() == Some(&handle.id))
            };
            let held: Vec<usize> = (0..block.allocations.len()).filter(has).collect();
            if let Some(ordinal) = held.iter().find(|ordinal| self.is_foreign(use_of(&block, **ordinal))) {
                return Err(self.foreign(&block, *ordinal));
            }
            is_used |= !held.is_empty();
        }
        // One that is written before its block is somebody's ADD.
        if is_used || self.is_old(made) {
            Ok(())
        } else {
            Err(format!("handle {} was made less than sixty seconds ago", handle.id))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{AffinityNaming, Attribute};
    use apiserver::identity::User;
    use serde_json::json;
    use std::sync::Arc;

    const NOW: Timestamp = Timestamp::constant(1_000_000, 0);
    const YOUNG: Timestamp = Timestamp::constant(1_000_000 - 59, 0);
    const OLD: Timestamp = Timestamp::constant(1_000_000 - 60, 0);

    /// The one block that others look at.
    struct There(Option<Block>);

    impl Others for There {
        fn get(&self, _group: &str, resource: &str, _name: &str) -> Option<Value> {
            assert_eq!(resource, "ipamblocks");
            self.0.as_ref().map(Block::to_v1)
        }
    }

    fn judged(
        resource: &str,
        old: Option<&Value>,
        new: Option<&Value>,
        there: Option<Block>,
    ) -> Result<(), String> {
        let user = User { name: agent_of("n1"), groups: Vec::new(), uid: None };
        let change = Change {
            user: &user,
            group: "crd.projectcalico.org",
            resource,
            namespace: "",
            name: "x",
            old,
            new,
            now: NOW,
        };
        RecordsGuard.judge(&change, &There(there))
    }

    fn agent_of(node: &str) -> String {
        format!("{USER_PREFIX}{node}")
    }

    /// A block of four addresses, with the nodes that use them.
    fn block(owner: Option<&str>, claimed: Timestamp, nodes: [Option<&str>; 4]) -> Block {
        let attribute = |node: &str| {
            Arc::new(Attribute {
                handle_id: Some(format!("h-{node}")),
                secondary: [("node".to_owned(), node.to_owned())].into(),
                ..Attribute::default()
            })
        };
        let used: Vec<&str> = nodes.iter().flatten().copied().collect();
        let mut next = 0;
        Block {
            cidr: "10.0.0.0/30".parse().unwrap(),
            affinity: owner.map(Owner::host),
            claim_time: Some(claimed),
            allocations: Arc::new(
                nodes
                    .iter()
                    .map(|node| {
                        node.map(|_| {
                            next += 1;
                            next - 1
                        })
                    })
                    .collect(),
            ),
            unallocated: (0_u32..4).filter(|ordinal| nodes[*ordinal as usize].is_none()).collect(),
            attributes: Arc::new(used.into_iter().map(attribute).collect()),
            sequence_number: 1,
            sequence_for_allocation: Default::default(),
            deleted: false,
            legacy_host_affinity: None,
        }
    }

    fn on_block(old: Option<Block>, new: Option<Block>) -> Result<(), String> {
        let (old, new) = (old.map(|block| block.to_v1()), new.map(|block| block.to_v1()));
        judged("ipamblocks", old.as_ref(), new.as_ref(), None)
    }

    #[test]
    fn its_own_blocks_are_its_business() {
        let own = |nodes| block(Some("n1"), YOUNG, nodes);
        on_block(None, Some(own([Some("n1"), None, None, None]))).unwrap();
        on_block(Some(own([Some("n2"), None, None, None])), Some(own([None; 4]))).unwrap();
        on_block(Some(own([Some("n1"), None, None, None])), None).unwrap();
        on_block(Some(own([None; 4])), Some(block(None, YOUNG, [None; 4]))).unwrap();
        on_block(Some(own([Some("n2"), None, None, None])), None).unwrap_err();
        on_block(Some(own([None; 4])), Some(block(Some("n2"), YOUNG, [None; 4]))).unwrap_err();
        on_block(None, Some(block(Some("n2"), YOUNG, [None; 4]))).unwrap_err();
    }

    #[test]
    fn in_a_foreign_block_only_its_own_ordinals_change() {
        let before = || block(Some("n2"), YOUNG, [Some("n2"), Some("n1"), None, None]);
        let to = |nodes| on_block(Some(before()), Some(block(Some("n2"), YOUNG, nodes)));
        to([Some("n2"), Some("n1"), Some("n1"), None]).unwrap();
        to([Some("n2"), None, None, None]).unwrap();
        to([None, Some("n1"), None, None]).unwrap_err();
        to([Some("n1"), Some("n1"), None, None]).unwrap_err();
        to([Some("n2"), Some("n1"), Some("n3"), None]).unwrap_err();
        on_block(Some(before()), Some(block(Some("n1"), YOUNG, [Some("n2"), Some("n1"), None, None])))
            .unwrap_err();
        on_block(Some(before()), Some(block(Some("n2"), NOW, [Some("n2"), Some("n1"), None, None])))
            .unwrap_err();
        on_block(Some(before()), None).unwrap_err();
    }

    #[test]
    fn a_foreign_block_is_released_when_it_is_empty_and_old() {
        on_block(Some(block(Some("n2"), OLD, [None; 4])), None).unwrap();
        on_block(Some(block(Some("n2"), OLD, [None; 4])), Some(block(None, OLD, [None; 4]))).unwrap();
        on_block(Some(block(Some("n2"), YOUNG, [None; 4])), None).unwrap_err();
        on_block(Some(block(Some("n2"), OLD, [Some("n1"), None, None, None])), None).unwrap_err();
        // One that nobody owns is there for all.
        on_block(Some(block(None, YOUNG, [None; 4])), Some(block(Some("n1"), NOW, [None; 4]))).unwrap();
        on_block(Some(block(None, YOUNG, [Some("n2"), None, None, None])), None).unwrap_err();
    }

    fn on_affinity(
        old: Option<(&str, AffinityState, Timestamp)>,
        new: Option<(&str, AffinityState)>,
        there: Option<Block>,
    ) -> Result<(), String> {
        let object = |node: &str, state| {
            let cidr = "10.0.0.0/30".parse().unwrap();
            Affinity { owner: Owner::host(node), cidr, state, deleted: false }.to_v1(AffinityNaming::PerBlock)
        };
        let old = old.map(|(node, state, made)| {
            let mut object = object(node, state);
            object["metadata"]["creationTimestamp"] = made.to_string().into();
            object
        });
        let new = new.map(|(node, state)| object(node, state));
        judged("blockaffinities", old.as_ref(), new.as_ref(), there)
    }

    #[test]
    fn foreign_affinities_go_only_with_empty_old_blocks() {
        use AffinityState::{Confirmed, Pending, PendingDeletion};
        on_affinity(None, Some(("n1", Pending)), None).unwrap();
        on_affinity(Some(("n1", Pending, NOW)), Some(("n1", Confirmed)), None).unwrap();
        on_affinity(Some(("n1", Confirmed, NOW)), None, None).unwrap();
        on_affinity(None, Some(("n2", Pending)), None).unwrap_err();
        on_affinity(Some(("n1", Pending, NOW)), Some(("n2", Pending)), None).unwrap_err();
        let theirs = |made| Some(("n2", Confirmed, made));
        on_affinity(theirs(OLD), None, Some(block(Some("n2"), OLD, [None; 4]))).unwrap();
        on_affinity(theirs(OLD), Some(("n2", PendingDeletion)), Some(block(Some("n2"), OLD, [None; 4])))
            .unwrap();
        on_affinity(theirs(OLD), None, None).unwrap();
        on_affinity(theirs(YOUNG), None, None).unwrap_err();
        on_affinity(theirs(OLD), None, Some(block(Some("n2"), YOUNG, [None; 4]))).unwrap_err();
        on_affinity(theirs(OLD), None, Some(block(Some("n2"), OLD, [Some("n2"), None, None, None])))
            .unwrap_err();
        on_affinity(theirs(OLD), Some(("n1", Pending)), None).unwrap_err();
        on_affinity(Some(("n2", Pending, OLD)), Some(("n1", Pending)), None).unwrap();
        on_affinity(Some(("n2", Pending, YOUNG)), Some(("n1", Pending)), None).unwrap_err();
        on_affinity(Some(("n2", Pending, OLD)), Some(("n2", Confirmed)), None).unwrap_err();
    }

    #[test]
    fn a_handle_of_another_nodes_addresses_stays() {
        let handle = |id: &str| Handle {
            id: id.to_owned(),
            blocks: [("10.0.0.0/30".parse().unwrap(), 1)].into(),
            deleted: false,
        };
        let there = || Some(block(Some("n2"), OLD, [Some("n2"), Some("n1"), None, None]));
        let delete = |id: &str, made: Timestamp, there| {
            let mut object = handle(id).to_v1();
            object["metadata"]["creationTimestamp"] = made.to_string().into();
            judged("ipamhandles", Some(&object), None, there)
        };
        delete("h-n1", YOUNG, there()).unwrap();
        delete("h-n2", OLD, there()).unwrap_err();
        delete("h-n2", OLD, None).unwrap();
        // What no address has yet may be an ADD of another node that writes in two steps.
        delete("h-n2", YOUNG, None).unwrap_err();
    }

    #[test]
    fn metadata_is_no_way_around() {
        let of = |owner: &str| block(Some(owner), OLD, [Some("n2"), None, None, None]).to_v1();
        for owner in ["n1", "n2"] {
            for (field, value) in [
                ("ownerReferences", json!([{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "gone"}])),
                ("finalizers", json!(["example.org/never"])),
            ] {
                let mut with = of(owner);
                with["metadata"][field] = value;
                judged("ipamblocks", Some(&of(owner)), Some(&with), None).unwrap_err();
                judged("ipamblocks", Some(&with), Some(&of(owner)), None).unwrap_err();
                judged("ipamblocks", Some(&with), Some(&with), None).unwrap();
            }
        }
        let affinity = |labels: Value| {
            let cidr = "10.0.0.0/30".parse().unwrap();
            let state = AffinityState::Confirmed;
            let affinity = Affinity { owner: Owner::host("n1"), cidr, state, deleted: false };
            let mut object = affinity.to_v1(AffinityNaming::PerBlock);
            for (name, value) in labels.as_object().unwrap() {
                object["metadata"]["labels"][name] = value.clone();
            }
            object
        };
        let change = |old, new| judged("blockaffinities", Some(&affinity(old)), Some(&affinity(new)), None);
        change(json!({"a": "b"}), json!({"a": "b", "c": "d"})).unwrap();
        change(json!({"a": "b"}), json!({})).unwrap_err();
        change(json!({"a": "b"}), json!({"a": "c"})).unwrap_err();
        // Without its own labels its owner would not find it.
        change(json!({}), json!({"projectcalico.org/affinity-type": "virtual"})).unwrap_err();
    }

    #[test]
    fn stamps_of_other_nodes_addresses_stay() {
        let stamped = |stamps: [(u32, u64); 2], number: u64| {
            let mut block = block(Some("n2"), OLD, [Some("n2"), Some("n1"), None, None]);
            block.sequence_for_allocation = Arc::new(stamps.into());
            block.sequence_number = number;
            Some(block)
        };
        let to = |stamps, number| on_block(stamped([(0, 5), (1, 6)], 7), stamped(stamps, number));
        to([(0, 5), (1, 7)], 8).unwrap();
        to([(0, 6), (1, 6)], 8).unwrap_err();
        to([(0, 5), (1, 6)], 6).unwrap_err();
    }

    #[test]
    fn a_claim_without_a_date_is_as_old_as_its_block() {
        let made = |made: Timestamp| {
            let mut undated = block(Some("n2"), OLD, [None; 4]);
            undated.claim_time = None;
            let mut object = undated.to_v1();
            object["metadata"]["creationTimestamp"] = made.to_string().into();
            judged("ipamblocks", Some(&object), None, None)
        };
        made(OLD).unwrap();
        made(YOUNG).unwrap_err();
    }
}
