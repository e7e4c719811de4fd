//! The stage of a scenario: a cluster of nodes and pods over one store, with a clock of its own.

use crate::wire::Wire;
use api::{
    Affinity, AffinityNaming, Block, Cidr, Handle, IpVersion, IpamConfig, Node, Owner, Pool, Reservation, Use,
};
use datastore::memory::Memory;
use datastore::{Datastore, Key, Kind, Record, Scope, Write};
use futures::FutureExt;
use ipam::assign::{AssignError, AssignRequest, Assigned, assign};
use ipam::collect::{self, Collector, POD_UID, Pod, PodName, Pods};
use ipam::plan::Want;
use ipam::release::release_by_handle;
use ipam::{Clock, Seen, StoreError, block, seen};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// How long an address may be without its pod.
pub(crate) const GRACE: SignedDuration = SignedDuration::from_mins(15);

/// A clock that is set by hand, in seconds.
#[derive(Clone)]
pub(crate) struct Time(Arc<AtomicI64>);

impl Clock for Time {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.0.load(Ordering::Relaxed)).unwrap()
    }
}

impl Time {
    pub(crate) fn pass(&self, span: SignedDuration) {
        self.0.fetch_add(span.as_secs(), Ordering::Relaxed);
    }
}

/// A cluster.
pub(crate) struct Stage {
    pub(crate) wire: Wire,
    pub(crate) time: Time,
    pub(crate) pods: Pods,
    pub(crate) collector: Collector,
    /// How long an address may be without its pod: [`GRACE`].
    pub(crate) grace: SignedDuration,
    /// What the collector said.
    pub(crate) notes: Vec<collect::Note>,
}

pub(crate) fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn pool(name: &str, range: &str, block_size: u8) -> Pool {
    let mut pool = Pool::with_defaults(name, cidr(range));
    pool.block_size = block_size;
    pool
}

/// What a pod's container asks for: one address of a family.
pub(crate) fn request(node: &str, handle: &str, version: IpVersion) -> AssignRequest {
    let attributes = [("node", node), ("pod", handle), ("namespace", "default"), (POD_UID, handle)];
    let want = Want {
        count: 1,
        handle: Some(handle.to_owned()),
        attributes: attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    AssignRequest::new(Owner::host(node), version, Use::Workload, want)
}

impl Stage {
    /// One IPv4 pool, and these nodes.
    pub(crate) fn new(range: &str, block_size: u8, nodes: &[&str]) -> Self {
        Self::named(AffinityNaming::PerNode, range, block_size, nodes)
    }

    /// The same with affinities named as said (architecture D9).
    pub(crate) fn named(naming: AffinityNaming, range: &str, block_size: u8, nodes: &[&str]) -> Self {
        let time = Time(Arc::new(AtomicI64::new(1_800_000_000)));
        let clock = time.clone();
        let memory = Memory::new().with_naming(naming).with_clock(move || clock.now());
        let stage = Self {
            wire: Wire::new(memory),
            time,
            pods: Pods::new(),
            collector: Collector::default(),
            grace: GRACE,
            notes: Vec::new(),
        };
        stage.put(Record::Pool(pool("pool", range, block_size)));
        for node in nodes {
            stage.join(node);
        }
        stage.wire.restart();
        stage
    }

    /// Writes a record as an administrator would, past the script.
    pub(crate) fn put(&self, record: Record) {
        put(&self.wire.memory, record);
    }

    pub(crate) fn delete(&self, key: &Key) {
        let found = self.wire.memory.get(key).now_or_never().unwrap().unwrap();
        if let Some(found) = found {
            let write = Write::Delete(found.record, found.version);
            self.wire.memory.commit(&[], &[write]).now_or_never().unwrap().unwrap();
        }
    }

    pub(crate) fn configure(&self, change: impl FnOnce(&mut IpamConfig)) {
        let mut config = seen::config(&self.wire.memory).now_or_never().unwrap().unwrap();
        change(&mut config);
        self.put(Record::Config(config));
    }

    pub(crate) fn reserve(&self, name: &str, ranges: &[&str]) {
        let cidrs = ranges.iter().map(|range| cidr(range)).collect();
        self.put(Record::Reservation(Reservation { name: name.to_owned(), cidrs }));
    }

    pub(crate) fn change_pool(&self, name: &str, change: impl FnOnce(&mut Pool)) {
        let found: Seen<Pool> = seen::get(&self.wire.memory, &Key::Pool(name.to_owned()))
            .now_or_never()
            .unwrap()
            .unwrap()
            .unwrap();
        let mut pool = found.value;
        change(&mut pool);
        self.put(Record::Pool(pool));
    }

    /// A node is there, or there again.
    pub(crate) fn join(&self, name: &str) {
        self.put(Record::Node(Node { name: name.to_owned(), ..Node::default() }));
    }

    /// A node goes, and its pods with it; nobody sends a DEL.
    pub(crate) fn lose_node(&mut self, name: &str) {
        self.delete(&Key::Node(name.to_owned()));
        self.pods.retain(|_, pod| pod.node != name);
    }

    /// Does something over the wire. `None`: whoever did it died on the way.
    pub(crate) fn play<T>(&self, deed: impl Future<Output = T>) -> Option<T> {
        deed.now_or_never()
    }

    /// An ADD in direct mode, answered.
    pub(crate) fn ask(&self, wanted: &AssignRequest) -> Result<Assigned, AssignError> {
        self.play(assign(&self.wire, &self.time, wanted)).unwrap().map_err(|failure| failure.error)
    }

    /// One IPv4 address for this handle, if there is one.
    pub(crate) fn address(&self, node: &str, handle: &str) -> Option<IpAddr> {
        let assigned = self.ask(&request(node, handle, IpVersion::V4)).unwrap();
        assigned.taken.first().map(|taken| taken.address)
    }

    /// A pod starts, gets its address, and reports it. Its name is its identity and its handle.
    pub(crate) fn start_pod(&mut self, node: &str, name: &str) -> IpAddr {
        let address = self.address(node, name).unwrap();
        self.report(node, name, &[address]);
        address
    }

    /// A pod of a name that others have had starts; its identity is its handle.
    pub(crate) fn start_incarnation(&mut self, node: &str, name: &str, uid: &str) -> IpAddr {
        let mut wanted = request(node, uid, IpVersion::V4);
        wanted.want.attributes.insert("pod".to_owned(), name.to_owned());
        let address = self.ask(&wanted).unwrap().taken[0].address;
        self.report(node, name, &[address]);
        if let Some(pod) = self.pods.get_mut(&pod_name(name)) {
            uid.clone_into(&mut pod.uid);
        }
        address
    }

    /// A pod is known to be running with these addresses.
    pub(crate) fn report(&mut self, node: &str, name: &str, addresses: &[IpAddr]) {
        let pod = Pod {
            uid: name.to_owned(),
            node: node.to_owned(),
            addresses: addresses.iter().copied().collect(),
            ..Pod::default()
        };
        self.pods.insert(pod_name(name), pod);
    }

    /// A DEL in direct mode.
    pub(crate) fn release(&self, handle: &str) -> Result<usize, StoreError> {
        self.play(release_by_handle(&self.wire, &self.time, handle)).unwrap()
    }

    pub(crate) fn blocks(&self) -> Vec<Block> {
        let found = seen::blocks(&self.wire.memory).now_or_never().unwrap().unwrap();
        found.into_iter().map(|seen| seen.value).collect()
    }

    pub(crate) fn affinities(&self) -> Vec<Affinity> {
        self.all(Kind::Affinity)
    }

    pub(crate) fn handles(&self) -> Vec<Handle> {
        self.all(Kind::Handle)
    }

    fn all<T: seen::Recorded>(&self, kind: Kind) -> Vec<T> {
        let found: Vec<Seen<T>> =
            seen::list(&self.wire.memory, &Scope::All(kind)).now_or_never().unwrap().unwrap();
        found.into_iter().map(|seen| seen.value).collect()
    }

    /// Addresses in use with the handles that hold them.
    pub(crate) fn held(&self) -> BTreeMap<IpAddr, String> {
        let mut held = BTreeMap::new();
        for block in self.blocks() {
            for (ordinal, attribute) in block::allocated(&block) {
                if attribute.released_at.is_none() {
                    let holder = attribute.handle_id.as_deref().map(block::sanitized).unwrap_or_default();
                    let before = held.insert(block.cidr.address(ordinal).unwrap(), holder.to_owned());
                    assert_eq!(before, None, "an address is in two blocks");
                }
            }
        }
        held
    }

    /// Fails unless the records keep invariants 1 to 5 (architecture §5).
    pub(crate) fn assert_sound(&self) {
        let blocks = self.blocks();
        let handles: BTreeMap<String, Handle> =
            self.handles().into_iter().map(|handle| (handle.id.clone(), handle)).collect();
        for (index, block) in blocks.iter().enumerate() {
            assert_eq!(block::fault(block), None, "block {}", block.cidr);
            for other in &blocks[index + 1..] {
                assert!(!block.cidr.overlaps(other.cidr), "blocks {} and {} overlap", block.cidr, other.cidr);
            }
            let ids: BTreeSet<&str> = block::allocated(block)
                .filter_map(|(_, attribute)| attribute.handle_id.as_deref())
                .map(block::sanitized)
                .collect();
            for id in ids {
                let counted = handles.get(id).and_then(|handle| handle.blocks.get(&block.cidr)).copied();
                assert!(
                    counted >= Some(block::count_of(block, id)),
                    "handle {id} does not reach its addresses in {}",
                    block.cidr
                );
            }
        }
        for affinity in self.affinities().iter().filter(|seen| seen.state == api::AffinityState::Confirmed) {
            let owner = blocks.iter().find(|block| block.cidr == affinity.cidr).map(|block| &block.affinity);
            assert_eq!(owner, Some(&Some(affinity.owner.clone())), "confirmed {}", affinity.cidr);
        }
    }

    /// Fails unless nothing is left at all.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!((self.blocks(), self.affinities(), self.handles()), (vec![], vec![], vec![]));
    }

    /// What the collector lists.
    pub(crate) fn records(&self) -> collect::Records {
        let keyed = |seen: Seen<Block>| (seen.value.cidr, seen);
        let of_all = |kind| Scope::All(kind);
        let memory = &self.wire.memory;
        let handles: Vec<Seen<Handle>> =
            seen::list(memory, &of_all(Kind::Handle)).now_or_never().unwrap().unwrap();
        collect::Records {
            blocks: seen::blocks(memory).now_or_never().unwrap().unwrap().into_iter().map(keyed).collect(),
            affinities: seen::list(memory, &of_all(Kind::Affinity)).now_or_never().unwrap().unwrap(),
            handles: Some(handles.into_iter().map(|seen| (seen.value.id.clone(), seen)).collect()),
            cooldown_seconds: seen::config(memory).now_or_never().unwrap().unwrap().ip_cooldown_seconds,
        }
    }

    /// What the collector sees of the cluster.
    pub(crate) fn cluster(&self) -> collect::Cluster {
        let nodes: Vec<Node> = self.all(Kind::Node);
        collect::Cluster { nodes: nodes.into_iter().map(|node| node.name).collect(), pods: self.pods.clone() }
    }

    /// Takes one event into the collector and carries out what follows, to the end of the pass.
    ///
    /// `between` is called when the records were listed and the cluster was not yet looked at.
    pub(crate) fn pass_with(&mut self, mut between: impl FnMut(&mut Self)) {
        let begin = collect::Event::Begin { handles: true, grace: Some(self.grace) };
        let mut effects = self.collector.step(self.time.now(), begin);
        while !effects.is_empty() {
            let effect = effects.remove(0);
            let event = match effect {
                collect::Effect::ListRecords { .. } => {
                    let records = Arc::new(self.records());
                    between(self);
                    collect::Event::Records(records)
                }
                collect::Effect::ListCluster => collect::Event::Cluster(self.cluster()),
                collect::Effect::Ask(questions) => collect::Event::Answers(self.answers(&questions)),
                collect::Effect::Do(task) => {
                    // One that fails is seen again by the next pass.
                    let _ = self.play(collect::carry_out(&self.wire, &self.time, &task));
                    continue;
                }
                collect::Effect::Note(note) => {
                    self.notes.push(note);
                    continue;
                }
            };
            effects.extend(self.collector.step(self.time.now(), event));
        }
    }

    fn answers(&self, questions: &collect::Questions) -> collect::Answers {
        let nodes = self.cluster().nodes;
        let gone = questions.nodes.iter().filter(|node| !nodes.contains(*node)).cloned().collect();
        let pods = questions.pods.iter().map(|name| (name.clone(), self.pods.get(name).cloned())).collect();
        collect::Answers { gone, pods }
    }

    /// One pass of the collector.
    pub(crate) fn collect(&mut self) {
        self.pass_with(|_| {});
    }

    /// Passes over a time that is longer than every grace.
    pub(crate) fn collect_for_long(&mut self) {
        for _ in 0..5 {
            self.collect();
            self.time.pass(GRACE / 2);
        }
        self.collect();
    }
}

pub(crate) fn put(memory: &Memory, record: Record) {
    let write = match memory.get(&record.key()).now_or_never().unwrap().unwrap() {
        Some(found) => Write::Update(record, found.version),
        None => Write::Create(record),
    };
    memory.commit(&[], &[write]).now_or_never().unwrap().unwrap();
}

pub(crate) fn pod_name(name: &str) -> PodName {
    ("default".to_owned(), name.to_owned())
}
