//! The beginning of a simulation: the records that are there, the nodes, and who asks for addresses on them.

use crate::client::agent::Host;
use crate::client::collector::Desk;
use crate::client::pools::PoolWork;
use crate::clock::{SimClock, Time};
use crate::db::Db;
use crate::invariants::Judge;
use crate::promises::Promises;
use crate::rng::Rng;
use crate::setting::{Setting, Way};
use crate::trace::Trace;
use crate::wish::{Breadth, ZONE, ZONES};
use crate::world::{End, World};
use api::{Cidr, Node};
use datastore::{Record, Write};
use ipam::Clock as _;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// One node: its clock, and its agent if it has one.
#[derive(Debug)]
pub(crate) struct NodeState {
    pub(crate) name: String,
    pub(crate) clock: SimClock,
    /// Whether the cluster knows it.
    pub(crate) exists: bool,
    pub(crate) host: Option<Host>,
    /// Where it stands, in worlds in which that matters.
    pub(crate) zone: Option<&'static str>,
    /// Where it has ever stood.
    pub(crate) zones: BTreeSet<&'static str>,
}

impl NodeState {
    /// Its record.
    pub(crate) fn record(&self) -> Node {
        let labels = self.zone.map(|zone| (ZONE.to_owned(), zone.to_owned())).into_iter().collect();
        Node { name: self.name.clone(), labels, ..Node::default() }
    }
}

impl World {
    /// The cluster at its beginning.
    pub fn new(setting: Setting, readable: bool) -> Self {
        let time = Time::default();
        let mut db = Db::new(setting.store, setting.naming);
        let nodes = nodes(&setting, &time);
        let clock = time.clock();
        let mut first: Vec<Record> = setting.pools.iter().cloned().map(Record::Pool).collect();
        first.push(Record::Config(setting.config.clone()));
        if !setting.reserved.is_empty() {
            let cidrs = setting.reserved.clone();
            first.push(Record::Reservation(api::Reservation { name: "kept".to_owned(), cidrs }));
        }
        first.extend(nodes.iter().map(|node| Record::Node(node.record())));
        for record in first {
            let made = db.commit(&[], &[Write::Create(record)], clock.now());
            debug_assert!(made.is_ok(), "an empty store takes everything");
        }
        db.take_applied(&mut Vec::new());
        let limited: Vec<Cidr> = setting.pools.iter().map(|pool| pool.cidr).collect();
        let mut world = Self {
            rng: Rng::new(setting.seed),
            judge: Judge::new(limited),
            pools: setting.pools.iter().cloned().map(PoolWork::new).collect(),
            attachments: Vec::new(),
            trace: Trace::new(readable),
            promises: Promises::default(),
            db: Arc::new(Mutex::new(db)),
            tasks: Vec::new(),
            desk: Desk::default(),
            end: End::default(),
            step: 0,
            next: 0,
            delayed: Vec::new(),
            faults: true,
            applied: Vec::new(),
            nodes,
            time,
            setting,
        };
        for node in 0..world.nodes.len() {
            world.attach_containers(node);
        }
        world
    }
}

fn nodes(setting: &Setting, time: &Time) -> Vec<NodeState> {
    let nodes = setting.nodes.iter().enumerate().map(|(index, way)| {
        let zoned = setting.breadth.contains(&Breadth::Zones);
        let zone = zoned.then(|| ZONES[index % ZONES.len()]);
        let name = format!("node-{index}");
        let queue = setting.queues.then(Vec::new);
        NodeState {
            clock: time.clock(),
            exists: true,
            host: (*way == Way::Agent).then(|| Host::new(&name, queue)),
            name,
            zone,
            zones: zone.into_iter().collect(),
        }
    });
    nodes.collect()
}
