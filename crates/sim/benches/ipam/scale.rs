//! A large cluster in one process: five thousand nodes with thirty pods each, and what one more node meets there.

use crate::node::Bench;
use crate::{Begin, direct, per_second, pool, say, store};
use api::{Affinity, AffinityState, Cidr, Handle, Owner};
use datastore::memory::Memory;
use datastore::{Datastore, Record, Write};
use futures::executor::block_on;
use ipam::ReservationSet;
use ipam::block::{self, Take};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

const NODES: u32 = 5_000;
const PODS: u32 = 30;
/// Nodes that come when the others are there.
const LATE: [&str; 4] = ["late-0", "late-1", "late-2", "late-3"];

/// Memory that this process holds, in bytes.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok());
    f64::from(pages.unwrap_or(0_u32)) * 4096.0
}

/// The records that a node with its pods leaves: an affinity, a block, and a handle for each pod.
pub(crate) fn populate(store: &Memory, node: u32, cidr: Cidr, pods: u32) {
    let name = format!("node-{node}");
    let owner = Owner::host(&name);
    let mut block = block::new_block(cidr, &owner, Timestamp::UNIX_EPOCH);
    let mut writes = Vec::new();
    for pod in 0..pods {
        let id = format!("k8s-pod-network.{:064x}", node * pods + pod);
        let attributes: BTreeMap<String, String> = [
            ("namespace", "shop".to_owned()),
            ("node", name.clone()),
            ("pod", format!("web-{node}-{pod}")),
            ("timestamp", "2026-08-01 10:15:31.004512 +0000 UTC".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let request = Take {
            count: 1,
            handle: Some(&id),
            attributes: &attributes,
            reserved: &ReservationSet::none(),
            avoid: &BTreeSet::new(),
            only_owner: None,
        };
        assert_eq!(block::take(&mut block, &request).unwrap().len(), 1);
        let handle = Handle { id, blocks: BTreeMap::from([(cidr, 1)]), deleted: false };
        writes.push(Write::Create(Record::Handle(handle)));
    }
    block::advance(&mut block);
    let affinity = Affinity { owner, cidr, state: AffinityState::Confirmed, deleted: false };
    writes.push(Write::Create(Record::Affinity(affinity)));
    writes.push(Write::Create(Record::Block(block)));
    block_on(store.commit(&[], &writes)).unwrap();
    // What is remembered for watches is not what is measured.
    store.compact();
}

pub(crate) fn figures() {
    let pool = pool("p", "10.0.0.0/8", 26);
    let store = store(std::slice::from_ref(&pool), &LATE);
    let before = resident();
    for node in 0..NODES {
        populate(&store, node, pool.cidr.nth_block(26, u128::from(node)).unwrap(), PODS);
    }
    let held = resident() - before;
    say("5,000 nodes × 30 pods: records, per block", "B", &[held / f64::from(NODES)]);
    say("5,000 nodes × 30 pods: records, per address", "B", &[held / f64::from(NODES * PODS)]);

    let mut rates = Vec::new();
    for (number, node) in (0_u32..).zip(LATE) {
        let begin = Begin::now();
        for pod in 0..PODS {
            direct::add(&store, node, 1_000_000 + number * PODS + pod);
        }
        rates.push(per_second(PODS, begin.elapsed()));
    }
    store.compact();
    say("one more node gets 30 pods, direct", "ADD/s", &rates);

    let begin = Begin::now();
    let mut agent = Bench::new(&store, LATE[0]);
    say("an agent reads 5,000 blocks", "ms", &[begin.elapsed().as_secs_f64() * 1000.0]);
    let claims: Vec<f64> = (0..5_u32)
        .map(|round| {
            let first = 2_000_000 + round * 64;
            // The first fills what is left of a block, the next claims.
            agent.add_all(first..first + 64, 64).as_secs_f64() * 1000.0
        })
        .collect();
    say("an agent claims a block for 64 pods beside them", "ms", &claims);
}
