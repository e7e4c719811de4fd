//! What a node's agent may write of the records of allocations: its own node's, and little of others'.
//!
//! - In a block of another owner, or of none, only ordinals whose `node` is its own change.
//! - A block or affinity of another owner is released only when the block is empty and was claimed sixty seconds ago.
//! - A handle is changed only while no other node's address has it.
//! - A Node is its own.

use api::{Affinity, AffinityState, Block, Cidr, Handle, Owner};
use apiserver::guard::{Change, Guard, Others};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

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
        let world = World { node, owner: Owner::host(node), now: change.now, group: change.group, others };
        match change.resource {
            "ipamblocks" => {
                let (old, new) = read(change, Block::from_v1)?;
                world.block(old.as_ref(), new.as_ref())
            }
            "blockaffinities" => {
                let (old, new) = read(change, Affinity::from_v1)?;
                world.affinity(change.old.and_then(created), old.as_ref(), new.as_ref())
            }
            "ipamhandles" => {
                let (old, _) = read(change, Handle::from_v1)?;
                old.map_or(Ok(()), |old| world.handle(&old))
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

    fn block(&self, old: Option<&Block>, new: Option<&Block>) -> Result<(), String> {
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
            (Some(old), None) => self.releases(old),
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
                    self.releases(old)?;
                } else if !claims && new.claim_time != old.claim_time {
                    return Err("another owner's claim is as old as it is".to_owned());
                }
                self.ordinals(Some(old), new)
            }
            (None, None) => Ok(()),
        }
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

    fn releases(&self, block: &Block) -> Result<(), String> {
        if !is_empty(block) {
            return Err(format!("block {} of another owner is not empty", block.cidr));
        }
        if block.affinity.is_some() && !self.is_old(block.claim_time) {
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
                Some(block) if block.affinity.as_ref() == Some(&old.owner) => self.releases(&block),
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

    fn handle(&self, handle: &Handle) -> Result<(), String> {
        for cidr in handle.blocks.keys() {
            let Some(block) = self.block_of(*cidr)? else { continue };
            let foreign = (0..block.allocations.len()).find(|ordinal| {
                let attribute = block.allocations[*ordinal].and_then(|at| block.attributes.get(at));
                attribute.is_some_and(|attribute| attribute.handle_id.as_ref() == Some(&handle.id))
                    && self.is_foreign(use_of(&block, *ordinal))
            });
            if let Some(ordinal) = foreign {
                return Err(self.foreign(&block, ordinal));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{AffinityNaming, Attribute};
    use apiserver::identity::User;
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
            allocations: nodes
                .iter()
                .map(|node| {
                    node.map(|_| {
                        next += 1;
                        next - 1
                    })
                })
                .collect(),
            unallocated: (0_u32..4).filter(|ordinal| nodes[*ordinal as usize].is_none()).collect(),
            attributes: used.into_iter().map(attribute).collect(),
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
        let delete = |id: &str, there| judged("ipamhandles", Some(&handle(id).to_v1()), None, there);
        delete("h-n1", there()).unwrap();
        delete("h-n2", there()).unwrap_err();
        delete("h-n2", None).unwrap();
    }
}
