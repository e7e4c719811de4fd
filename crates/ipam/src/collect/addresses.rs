//! Which addresses nobody needs: leak candidates, deleted nodes, tunnels (controllers §2.6 to §2.8).

use super::{Answers, Cluster, Collector, Effect, Note, Records, Verdicts};
use crate::block::{self, Release, WINDOWS_RESERVED_HANDLE};
use api::{Attribute, Block, Cidr, OwnerKind};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Shortest grace for a virtual machine's address: migrations take their time.
const VM_GRACE: SignedDuration = SignedDuration::from_mins(5);

/// Releases of one pass at most; the rest waits for the next.
const RELEASES: usize = 10_000;

/// Key of the attribute that tells a pod from its successor of the same name; peers carry it along.
pub const POD_UID: &str = "pod-uid";

/// Attribute `type` of addresses that nodes hold for themselves.
const TUNNELS: [&str; 5] = [
    "ipipTunnelAddress",
    "vxlanTunnelAddress",
    "vxlanV6TunnelAddress",
    "wireguardTunnelAddress",
    "wireguardV6TunnelAddress",
];

/// What is known of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its identity. Empty: not known, or not the one that plugins are told (mirrors of static pods).
    pub uid: String,
    /// Where it runs, empty if nowhere yet.
    pub node: String,
    /// Addresses that it reports.
    pub addresses: BTreeSet<IpAddr>,
    /// It has ended: its addresses are nobody's.
    pub finished: bool,
    /// It was evicted.
    pub evicted: bool,
}

/// A pod's namespace and name.
pub type PodName = (String, String);

/// Pods by namespace and name.
pub type Pods = BTreeMap<PodName, Pod>;

/// For whom an address was assigned, as its attributes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The node; empty if not known.
    pub node: String,
    /// The pod's identity; empty if not known.
    pub uid: String,
    /// The address.
    pub address: IpAddr,
}

/// An address that is to be given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// What is to be released, and what it must still be.
    pub release: Release,
    /// Its block.
    pub block: Cidr,
    /// Node of the owner.
    pub node: String,
    /// Identity of the owner.
    pub uid: String,
    /// Released because the node is gone, and only if it is.
    pub node_gone: bool,
    /// The pod it was for, to be looked at once more before the release. `None`: a node's own address.
    pub pod: Option<PodName>,
}

impl Leak {
    pub(super) fn handle(&self) -> &str {
        self.release.handle.as_deref().unwrap_or_default()
    }

    /// Whether the authority, too, knows nobody who needs the address. No answer is no.
    pub(super) fn is_borne_out(&self, answers: &Answers) -> bool {
        if self.node_gone && !answers.gone.contains(&self.node) {
            return false;
        }
        let Some(name) = &self.pod else { return self.node_gone };
        let holder = Holder { node: self.node.clone(), uid: self.uid.clone(), address: self.release.address };
        answers.pods.get(name).is_some_and(|pod| !needs(pod.as_ref(), &holder))
    }

    /// Why nobody needs the address, by these answers, which bear it out.
    pub(super) fn reason(&self, answers: &Answers) -> String {
        let gone = || format!("node {} does not exist", self.node);
        let Some((namespace, name)) = &self.pod else { return gone() };
        let pod = match answers.pods.get(&(namespace.clone(), name.clone())) {
            Some(Some(pod)) if pod.node != self.node => format!("pod {namespace}/{name} is on another node"),
            Some(Some(_)) => format!("pod {namespace}/{name} does not use it"),
            _ => format!("pod {namespace}/{name} does not exist"),
        };
        if self.node_gone { format!("{}, {pod}", gone()) } else { pod }
    }
}

/// Whether `pod`, found under the name that the allocation has, still needs the address (controllers §2.7).
pub fn needs(pod: Option<&Pod>, holder: &Holder) -> bool {
    let Some(pod) = pod else { return false };
    if !pod.node.is_empty() && !holder.node.is_empty() && pod.node != holder.node {
        // Scheduled anew under the same name, as a StatefulSet does.
        return false;
    }
    if pod.addresses.is_empty() {
        // It has just been made: the kubelet will tell. If it is another of the same name, what it will tell is not this.
        let another = !pod.uid.is_empty() && !holder.uid.is_empty() && pod.uid != holder.uid;
        return !pod.finished && !another;
    }
    !pod.evicted && !pod.finished && pod.addresses.contains(&holder.address)
}

/// An allocation's identity across re-use of the address: address and stamp.
pub(super) type Incarnation = (IpAddr, u64);

/// One allocation of one block.
#[derive(Clone, Debug)]
struct Allocation<'a> {
    address: IpAddr,
    block: Cidr,
    sequence: u64,
    handle: &'a str,
    attribute: &'a Attribute,
}

impl Allocation<'_> {
    fn get(&self, key: &str) -> &str {
        self.attribute.secondary.get(key).map(String::as_str).unwrap_or_default()
    }

    fn is_tunnel(&self) -> bool {
        TUNNELS.contains(&self.get("type"))
    }

    fn pod(&self) -> Option<PodName> {
        let (namespace, name) = (self.get("namespace"), self.get("pod"));
        (!namespace.is_empty() && !name.is_empty()).then(|| (namespace.to_owned(), name.to_owned()))
    }

    fn holder(&self) -> Holder {
        Holder { node: self.get("node").to_owned(), uid: self.get(POD_UID).to_owned(), address: self.address }
    }

    /// Whether one of the pods that the allocation is for needs it: during a migration there are two.
    fn is_needed(&self, cluster: &Cluster) -> bool {
        let active = self.pod().and_then(|name| cluster.pods.get(&name));
        if needs(active, &self.holder()) {
            return true;
        }
        let alternate = |key: &str| self.attribute.alternate.get(key).cloned().unwrap_or_default();
        let (namespace, name) = (alternate("namespace"), alternate("pod"));
        // Where the other owner is, it is not for this attribute to say.
        let holder = Holder { node: alternate("node"), uid: alternate(POD_UID), address: self.address };
        !name.is_empty() && needs(cluster.pods.get(&(namespace, name)), &holder)
    }

    fn leak(&self, node_gone: bool) -> Leak {
        Leak {
            release: Release {
                address: self.address,
                handle: Some(self.handle.to_owned()),
                sequence: Some(self.sequence),
            },
            block: self.block,
            node: self.get("node").to_owned(),
            uid: self.get(POD_UID).to_owned(),
            node_gone,
            pod: self.pod().filter(|_| !self.is_tunnel()),
        }
    }
}

/// Allocations of `block` that have a handle; those that cool down have none.
fn allocations(cidr: Cidr, block: &Block) -> impl Iterator<Item = Allocation<'_>> {
    block::allocated(block).filter(|(_, attribute)| attribute.released_at.is_none()).filter_map(
        move |(ordinal, attribute)| {
            Some(Allocation {
                address: cidr.address(ordinal)?,
                block: cidr,
                sequence: block::stamp(block, ordinal),
                handle: block::sanitized(attribute.handle_id.as_deref()?),
                attribute,
            })
        },
    )
}

impl Collector {
    pub(super) fn judge_addresses(
        &mut self,
        now: Timestamp,
        records: &Records,
        cluster: &Cluster,
        verdicts: &mut Verdicts,
        effects: &mut Vec<Effect>,
    ) {
        let mut by_node: BTreeMap<&str, Vec<Allocation<'_>>> = BTreeMap::new();
        for affinity in &records.affinities {
            if affinity.value.owner.kind == OwnerKind::Host {
                by_node.entry(&affinity.value.owner.name).or_default();
            }
        }
        for (cidr, seen) in sound(records) {
            if let Some(owner) = seen.affinity.as_ref().filter(|owner| owner.kind == OwnerKind::Host) {
                by_node.entry(&owner.name).or_default();
            }
            for allocation in allocations(cidr, seen) {
                let node = allocation.attribute.secondary.get("node");
                by_node.entry(node.map(String::as_str).unwrap_or_default()).or_default().push(allocation);
            }
        }
        let before = std::mem::take(&mut self.suspects);
        let mut confirmed = Vec::new();
        for (node, allocations) in by_node {
            let exists = cluster.nodes.contains(node);
            let mut releasable = !exists && !node.is_empty();
            let mut tunnels = Vec::new();
            for allocation in allocations {
                if allocation.handle.eq_ignore_ascii_case(WINDOWS_RESERVED_HANDLE) {
                    continue;
                }
                if allocation.is_tunnel() {
                    tunnels.push(allocation);
                    continue;
                }
                if allocation.pod().is_none() || allocation.is_needed(cluster) {
                    // Without a pod's name nobody knows whose it is: it stays, and its node's blocks with it.
                    releasable = false;
                    continue;
                }
                if !exists && !node.is_empty() {
                    confirmed.push((allocation, true));
                    continue;
                }
                let Some(grace) = self.grace else { continue };
                let wait = if allocation.get("vmi-name").is_empty() { grace } else { grace.max(VM_GRACE) };
                let incarnation = (allocation.address, allocation.sequence);
                // A clock that was set back starts the wait anew.
                let since = before.get(&incarnation).copied().filter(|since| *since <= now);
                if since.is_none() {
                    effects.push(Effect::Note(Note::Suspected {
                        address: allocation.address,
                        node: node.to_owned(),
                        handle: allocation.handle.to_owned(),
                    }));
                }
                let since = since.unwrap_or(now);
                self.suspects.insert(incarnation, since);
                if now.duration_since(since) > wait {
                    confirmed.push((allocation, false));
                }
            }
            // Pods that are still there protect a node that flaps; so its own addresses stay as long as theirs.
            if releasable {
                confirmed.extend(tunnels.into_iter().map(|tunnel| (tunnel, true)));
                verdicts.gone.insert(node.to_owned());
            }
        }
        verdicts.leaks = whole_handles(records, &confirmed);
    }
}

/// Blocks that make sense.
pub(super) fn sound(records: &Records) -> impl Iterator<Item = (Cidr, &Block)> {
    records
        .blocks
        .iter()
        .map(|(cidr, seen)| (*cidr, &seen.value))
        .filter(|(cidr, block)| *cidr == block.cidr && block::fault(block).is_none())
}

/// Confirmed leaks whose handles hold nothing else: what one owner got is given back together or not at all.
fn whole_handles(records: &Records, confirmed: &[(Allocation<'_>, bool)]) -> Vec<Leak> {
    let mut held: BTreeMap<&str, usize> =
        confirmed.iter().map(|(allocation, _)| (allocation.handle, 0)).collect();
    for (cidr, seen) in &records.blocks {
        for allocation in allocations(*cidr, &seen.value) {
            if let Some(count) = held.get_mut(allocation.handle) {
                *count += 1;
            }
        }
    }
    for (allocation, _) in confirmed {
        if let Some(count) = held.get_mut(allocation.handle) {
            *count = count.saturating_sub(1);
        }
    }
    confirmed
        .iter()
        .filter(|(allocation, _)| held.get(allocation.handle) == Some(&0))
        .take(RELEASES)
        .map(|(allocation, node_gone)| allocation.leak(*node_gone))
        .collect()
}
