//! Which addresses and blocks nobody needs any more: the collector's verdicts (controllers §2).
//!
//! ```text
//! VALID --pod gone, node alive--> CANDIDATE --still so after the grace period--> CONFIRMED --released--> (none)
//!   ^                                 |                                              |
//!   +-- pod back, or re-assigned -----+        VALID or CANDIDATE --node gone--> CONFIRMED
//! ```
//!
//! Pure: the state of the cluster and the time are handed in, what is to be released comes out.

use api::{Attribute, Block, Cidr, Owner, OwnerKind};
use ipam::block::{self, Release};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Shortest grace for a virtual machine's address: migrations take their time.
const VM_GRACE: SignedDuration = SignedDuration::from_mins(5);

/// Releases of one pass at most; the rest waits for the next.
const RELEASES: usize = 10_000;

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
pub(crate) struct Pod {
    /// Where it runs, empty if nowhere yet.
    pub(crate) node: String,
    /// Addresses that it reports.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// It has ended: its addresses are nobody's.
    pub(crate) finished: bool,
    /// It was evicted.
    pub(crate) evicted: bool,
}

/// Pods by namespace and name.
pub(crate) type Pods = BTreeMap<(String, String), Pod>;

/// Everything that verdicts are made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot<'a> {
    /// Nodes that exist.
    pub(crate) nodes: &'a BTreeSet<String>,
    /// Pods that exist.
    pub(crate) pods: &'a Pods,
    /// Every block.
    pub(crate) blocks: &'a BTreeMap<Cidr, Block>,
    /// Owners of affinities, with or without a block.
    pub(crate) claimants: &'a BTreeSet<String>,
    /// How long an address may be without its pod. `None` or zero: on living nodes nothing is released.
    pub(crate) grace: Option<SignedDuration>,
    /// The present instant.
    pub(crate) now: Timestamp,
}

/// An address that is to be given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leak {
    /// What is to be released, and what it must still be.
    pub(crate) release: Release,
    /// Its block.
    pub(crate) block: Cidr,
    /// Node of the owner.
    pub(crate) node: String,
    /// The pod it was for, to be looked at once more before the release. `None`: a node's own address, or the node is gone.
    pub(crate) recheck: Option<(String, String)>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdicts {
    /// Addresses to release.
    pub(crate) leaks: Vec<Leak>,
    /// Nodes that are gone, whose blocks are to be given up once these leaks are released.
    pub(crate) gone: Vec<String>,
    /// Empty blocks that a living node has beyond its first, with the sequence number they must still have.
    pub(crate) spare: Vec<(Owner, Cidr, u64)>,
}

/// One allocation of one block.
#[derive(Clone, Debug)]
struct Allocation<'a> {
    address: IpAddr,
    block: Cidr,
    sequence: u64,
    handle: &'a str,
    attribute: &'a Attribute,
}

/// An allocation's identity across re-use of the address.
type Incarnation = (IpAddr, u64);

/// What the collector remembers between passes: since when something has looked superfluous.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collector {
    suspects: BTreeMap<Incarnation, Timestamp>,
    empty_since: BTreeMap<Cidr, Timestamp>,
}

impl Allocation<'_> {
    fn get(&self, key: &str) -> &str {
        self.attribute.secondary.get(key).map(String::as_str).unwrap_or_default()
    }

    fn node(&self) -> &str {
        self.get("node")
    }

    fn is_tunnel(&self) -> bool {
        TUNNELS.contains(&self.get("type"))
    }

    fn is_of_pod(&self) -> bool {
        !self.get("namespace").is_empty() && !self.get("pod").is_empty()
    }

    fn pod(&self) -> (String, String) {
        (self.get("namespace").to_owned(), self.get("pod").to_owned())
    }
}

/// Whether `pod`, which an allocation on `node` names, still needs `address` (controllers §2.7).
pub(crate) fn needs(pod: Option<&Pod>, node: &str, address: IpAddr) -> bool {
    let Some(pod) = pod else { return false };
    if !pod.node.is_empty() && !node.is_empty() && pod.node != node {
        // Scheduled anew under the same name, as a StatefulSet does.
        return false;
    }
    // A pod without reported addresses has just been made: the kubelet will tell.
    (pod.addresses.is_empty() && !pod.finished)
        || (!pod.evicted && !pod.finished && pod.addresses.contains(&address))
}

impl Collector {
    /// Judges everything. Call it after every change and at least twice per grace period.
    pub(crate) fn step(&mut self, snapshot: &Snapshot<'_>) -> Verdicts {
        let mut by_node: BTreeMap<&str, Vec<Allocation<'_>>> = BTreeMap::new();
        for owner in snapshot.claimants {
            by_node.entry(owner).or_default();
        }
        for (cidr, block) in snapshot.blocks {
            if let Some(owner) = block.affinity.as_ref().filter(|owner| owner.kind == OwnerKind::Host) {
                by_node.entry(&owner.name).or_default();
            }
            for allocation in allocations(*cidr, block) {
                by_node.entry(node_of(&allocation)).or_default().push(allocation);
            }
        }
        let mut verdicts = Verdicts::default();
        let mut suspects = BTreeMap::new();
        let mut confirmed = Vec::new();
        for (node, allocations) in by_node {
            self.judge_node(snapshot, node, allocations, &mut suspects, &mut confirmed, &mut verdicts.gone);
        }
        self.suspects = suspects;
        verdicts.leaks = whole_handles(snapshot, confirmed);
        verdicts.spare = self.judge_empty_blocks(snapshot);
        verdicts
    }

    fn judge_node<'a>(
        &self,
        snapshot: &Snapshot<'_>,
        node: &str,
        allocations: Vec<Allocation<'a>>,
        suspects: &mut BTreeMap<Incarnation, Timestamp>,
        confirmed: &mut Vec<(Allocation<'a>, bool)>,
        gone: &mut Vec<String>,
    ) {
        let exists = snapshot.nodes.contains(node);
        let mut releasable = !exists && !node.is_empty();
        let mut tunnels = Vec::new();
        for allocation in allocations {
            if allocation.handle == "windows-reserved-ipam-handle" {
                continue;
            }
            if allocation.is_tunnel() {
                tunnels.push(allocation);
                continue;
            }
            if !allocation.is_of_pod() {
                // Nobody knows whose it is: it stays, and its node's blocks with it.
                releasable = false;
                continue;
            }
            if needs(snapshot.pods.get(&allocation.pod()), node, allocation.address) {
                releasable = false;
                continue;
            }
            if !exists && !node.is_empty() {
                confirmed.push((allocation, false));
                continue;
            }
            let Some(grace) = snapshot.grace else { continue };
            let vm = !allocation.get("vmi-name").is_empty();
            let wait = if vm { grace.max(VM_GRACE) } else { grace };
            let incarnation = (allocation.address, allocation.sequence);
            let since = self.suspects.get(&incarnation).copied().unwrap_or(snapshot.now);
            suspects.insert(incarnation, since);
            if wait.is_positive() && snapshot.now.duration_since(since) > wait {
                confirmed.push((allocation, true));
            }
        }
        // Pods that are still there protect a node that flaps; so its own addresses stay as long as theirs.
        if releasable {
            confirmed.extend(tunnels.into_iter().map(|tunnel| (tunnel, false)));
            gone.push(node.to_owned());
        }
    }

    /// Empty blocks of living nodes, all but one per node and family, that have been so for the grace period.
    fn judge_empty_blocks(&mut self, snapshot: &Snapshot<'_>) -> Vec<(Owner, Cidr, u64)> {
        let grace = snapshot.grace.filter(|grace| grace.is_positive());
        let mut owned: BTreeMap<(&Owner, api::IpVersion), Vec<(Cidr, &Block)>> = BTreeMap::new();
        for (cidr, block) in snapshot.blocks {
            if let Some(owner) = &block.affinity
                && owner.kind == OwnerKind::Host
                && snapshot.nodes.contains(&owner.name)
            {
                owned.entry((owner, cidr.version())).or_default().push((*cidr, block));
            }
        }
        let mut empty_since = BTreeMap::new();
        let mut spare = Vec::new();
        for ((owner, _), blocks) in owned {
            let mut left = blocks.len();
            for (cidr, block) in blocks {
                if left <= 1 || !block.allocations.iter().all(Option::is_none) {
                    continue;
                }
                let Some(grace) = grace else { continue };
                let since = self.empty_since.get(&cidr).copied().unwrap_or(snapshot.now);
                empty_since.insert(cidr, since);
                if snapshot.now.duration_since(since) > grace {
                    left -= 1;
                    spare.push((owner.clone(), cidr, block.sequence_number));
                }
            }
        }
        self.empty_since = empty_since;
        spare
    }
}

fn node_of<'a>(allocation: &Allocation<'a>) -> &'a str {
    allocation.attribute.secondary.get("node").map(String::as_str).unwrap_or_default()
}

/// Allocations of `block` that have a handle; those that cool down have none.
fn allocations(cidr: Cidr, block: &Block) -> impl Iterator<Item = Allocation<'_>> {
    block::allocated(block).filter_map(move |(ordinal, attribute)| {
        Some(Allocation {
            address: cidr.address(ordinal)?,
            block: cidr,
            sequence: block::stamp(block, ordinal),
            handle: block::sanitized(attribute.handle_id.as_deref()?),
            attribute,
        })
    })
}

/// Confirmed leaks whose handles hold nothing else: what one owner got is given back together or not at all.
fn whole_handles(snapshot: &Snapshot<'_>, confirmed: Vec<(Allocation<'_>, bool)>) -> Vec<Leak> {
    let mut held: BTreeMap<&str, usize> = BTreeMap::new();
    let wanted: BTreeSet<&str> = confirmed.iter().map(|(allocation, _)| allocation.handle).collect();
    for (cidr, block) in snapshot.blocks {
        for allocation in allocations(*cidr, block) {
            if wanted.contains(allocation.handle) {
                *held.entry(allocation.handle).or_default() += 1;
            }
        }
    }
    for (allocation, _) in &confirmed {
        if let Some(count) = held.get_mut(allocation.handle) {
            *count -= 1;
        }
    }
    confirmed
        .iter()
        .filter(|(allocation, _)| held.get(allocation.handle) == Some(&0))
        .take(RELEASES)
        .map(|(allocation, alive)| Leak {
            release: Release {
                address: allocation.address,
                handle: Some(allocation.handle.to_owned()),
                sequence: Some(allocation.sequence),
            },
            block: allocation.block,
            node: allocation.node().to_owned(),
            recheck: (*alive && allocation.is_of_pod()).then(|| allocation.pod()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::UNIX_EPOCH;
    const GRACE: SignedDuration = SignedDuration::from_mins(15);

    /// A cluster of values.
    #[derive(Default)]
    struct Cluster {
        nodes: BTreeSet<String>,
        pods: Pods,
        blocks: BTreeMap<Cidr, Block>,
        claimants: BTreeSet<String>,
        grace: Option<SignedDuration>,
    }

    impl Cluster {
        fn of(nodes: &[&str]) -> Self {
            Self {
                nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
                grace: Some(GRACE),
                ..Self::default()
            }
        }

        fn block(&mut self, cidr: &str, owner: &str) -> &mut Block {
            let cidr: Cidr = cidr.parse().unwrap();
            self.blocks.entry(cidr).or_insert_with(|| block::new_block(cidr, &Owner::host(owner), START))
        }

        /// Takes one address of the block for `attributes`.
        fn take(&mut self, cidr: &str, owner: &str, handle: &str, attributes: &[(&str, &str)]) -> IpAddr {
            let attributes =
                attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let taken = block::take(
                self.block(cidr, owner),
                &block::Take {
                    count: 1,
                    handle: Some(handle),
                    attributes: &attributes,
                    reserved: &ipam::ReservationSet::default(),
                    avoid: &BTreeSet::new(),
                    only_owner: None,
                },
            );
            taken.unwrap()[0].address
        }

        fn pod(&mut self, name: &str, node: &str) -> IpAddr {
            let address = self.take(
                "10.0.0.0/28",
                node,
                name,
                &[("node", node), ("namespace", "default"), ("pod", name)],
            );
            let pod = Pod { node: node.to_owned(), addresses: BTreeSet::from([address]), ..Pod::default() };
            self.pods.insert(("default".to_owned(), name.to_owned()), pod);
            address
        }

        fn remove_pod(&mut self, name: &str) {
            self.pods.remove(&("default".to_owned(), name.to_owned()));
        }

        fn step(&self, collector: &mut Collector, minutes: i64) -> Verdicts {
            collector.step(&Snapshot {
                nodes: &self.nodes,
                pods: &self.pods,
                blocks: &self.blocks,
                claimants: &self.claimants,
                grace: self.grace,
                now: START + SignedDuration::from_mins(minutes),
            })
        }
    }

    fn addresses(verdicts: &Verdicts) -> Vec<IpAddr> {
        verdicts.leaks.iter().map(|leak| leak.release.address).collect()
    }

    #[test]
    fn address_of_a_living_pod_is_never_released() {
        let mut cluster = Cluster::of(&["a"]);
        cluster.pod("p", "a");
        let mut collector = Collector::default();
        for minutes in [0, 20, 400] {
            assert_eq!(cluster.step(&mut collector, minutes), Verdicts::default());
        }
    }

    #[test]
    fn address_without_its_pod_is_released_after_the_grace_period_and_not_before() {
        let mut cluster = Cluster::of(&["a"]);
        let address = cluster.pod("p", "a");
        cluster.remove_pod("p");
        let mut collector = Collector::default();
        assert!(addresses(&cluster.step(&mut collector, 100)).is_empty());
        assert!(addresses(&cluster.step(&mut collector, 115)).is_empty());
        let verdicts = cluster.step(&mut collector, 116);
        assert_eq!(addresses(&verdicts), [address]);
        assert_eq!(verdicts.leaks[0].recheck, Some(("default".to_owned(), "p".to_owned())));
        assert!(verdicts.leaks[0].release.sequence.is_some());
    }

    #[test]
    fn pod_that_comes_back_starts_the_clock_anew() {
        let mut cluster = Cluster::of(&["a"]);
        cluster.pod("p", "a");
        let pods = cluster.pods.clone();
        cluster.pods.clear();
        let mut collector = Collector::default();
        cluster.step(&mut collector, 0);
        cluster.pods = pods;
        cluster.step(&mut collector, 10);
        cluster.pods.clear();
        assert!(addresses(&cluster.step(&mut collector, 16)).is_empty());
        assert!(addresses(&cluster.step(&mut collector, 31)).is_empty());
        assert_eq!(addresses(&cluster.step(&mut collector, 32)).len(), 1);
    }

    #[test]
    fn address_that_was_assigned_again_starts_the_clock_anew() {
        let mut cluster = Cluster::of(&["a"]);
        cluster.pod("p", "a");
        cluster.remove_pod("p");
        let mut collector = Collector::default();
        cluster.step(&mut collector, 0);
        let stamp = cluster.block("10.0.0.0/28", "a").sequence_for_allocation.values_mut().next().unwrap();
        *stamp += 1;
        assert!(addresses(&cluster.step(&mut collector, 16)).is_empty());
    }

    #[test]
    fn two_addresses_under_one_handle_go_together_or_not_at_all() {
        let mut cluster = Cluster::of(&["a"]);
        let attributes = [("node", "a"), ("namespace", "default"), ("pod", "p")];
        let kept = cluster.take("10.0.0.0/28", "a", "h", &attributes);
        cluster.take("10.0.0.16/28", "a", "h", &attributes);
        let pod = Pod { node: "a".to_owned(), addresses: BTreeSet::from([kept]), ..Pod::default() };
        cluster.pods.insert(("default".to_owned(), "p".to_owned()), pod);
        let mut collector = Collector::default();
        cluster.step(&mut collector, 0);
        assert!(addresses(&cluster.step(&mut collector, 60)).is_empty());
        cluster.pods.clear();
        cluster.step(&mut collector, 61);
        assert_eq!(addresses(&cluster.step(&mut collector, 120)).len(), 2);
    }

    #[test]
    fn deleted_node_gives_everything_back_at_once_with_its_tunnel_address() {
        let mut cluster = Cluster::of(&["a"]);
        let pod = cluster.pod("p", "b");
        cluster.remove_pod("p");
        let tunnel = cluster.take("10.0.0.0/28", "b", "t", &[("node", "b"), ("type", "vxlanTunnelAddress")]);
        let verdicts = cluster.step(&mut Collector::default(), 0);
        assert_eq!(addresses(&verdicts), [pod, tunnel]);
        assert_eq!(verdicts.gone, ["b"]);
        assert!(verdicts.leaks.iter().all(|leak| leak.recheck.is_none()));
    }

    #[test]
    fn deleted_node_with_a_pod_left_keeps_everything() {
        let mut cluster = Cluster::of(&["a"]);
        cluster.pod("p", "b");
        cluster.take("10.0.0.0/28", "b", "t", &[("node", "b"), ("type", "vxlanTunnelAddress")]);
        assert_eq!(cluster.step(&mut Collector::default(), 0), Verdicts::default());
    }

    #[test]
    fn deleted_node_without_any_block_loses_its_affinities() {
        let mut cluster = Cluster::of(&["a"]);
        cluster.claimants.insert("b".to_owned());
        assert_eq!(cluster.step(&mut Collector::default(), 0).gone, ["b"]);
    }

    #[test]
    fn address_of_nobody_known_is_never_released_and_keeps_its_node() {
        let mut cluster = Cluster::of(&[]);
        cluster.take("10.0.0.0/28", "b", "x", &[("node", "b")]);
        let mut collector = Collector::default();
        cluster.step(&mut collector, 0);
        assert_eq!(cluster.step(&mut collector, 600), Verdicts::default());
    }

    #[test]
    fn tunnel_address_of_a_living_node_is_never_released() {
        let mut cluster = Cluster::of(&["a"]);
        cluster.take("10.0.0.0/28", "a", "t", &[("node", "a"), ("type", "vxlanTunnelAddress")]);
        let mut collector = Collector::default();
        cluster.step(&mut collector, 0);
        assert_eq!(cluster.step(&mut collector, 600), Verdicts::default());
    }

    #[test]
    fn no_grace_period_releases_nothing_on_living_nodes_but_cleans_up_after_deleted_ones() {
        for grace in [None, Some(SignedDuration::ZERO)] {
            let mut cluster = Cluster::of(&["a"]);
            cluster.grace = grace;
            cluster.pod("p", "a");
            cluster.remove_pod("p");
            cluster.block("10.0.0.16/28", "a");
            let mut collector = Collector::default();
            cluster.step(&mut collector, 0);
            assert_eq!(cluster.step(&mut collector, 600), Verdicts::default());
            cluster.nodes.clear();
            assert_eq!(cluster.step(&mut collector, 601).gone, ["a"]);
        }
    }

    #[test]
    fn living_node_keeps_one_block_of_several_empty_ones() {
        let mut cluster = Cluster::of(&["a"]);
        for cidr in ["10.0.0.0/28", "10.0.0.16/28", "10.0.0.32/28"] {
            cluster.block(cidr, "a");
        }
        let mut collector = Collector::default();
        assert_eq!(cluster.step(&mut collector, 0).spare, []);
        let spare = cluster.step(&mut collector, 16).spare;
        assert_eq!(spare.len(), 2);
        for (_, cidr, _) in &spare {
            cluster.blocks.remove(cidr);
        }
        assert_eq!(cluster.step(&mut collector, 60).spare, []);
    }

    #[test]
    fn pod_that_moved_ended_or_was_evicted_does_not_need_its_address() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let pod = Pod { node: "a".to_owned(), addresses: BTreeSet::from([address]), ..Pod::default() };
        assert!(needs(Some(&pod), "a", address));
        assert!(!needs(Some(&pod), "b", address));
        assert!(!needs(Some(&Pod { finished: true, ..pod.clone() }), "a", address));
        assert!(!needs(Some(&Pod { evicted: true, ..pod.clone() }), "a", address));
        assert!(!needs(None, "a", address));
        assert!(needs(Some(&Pod { addresses: BTreeSet::new(), ..pod }), "a", address));
    }
}
