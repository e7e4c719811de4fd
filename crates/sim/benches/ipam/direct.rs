//! The protocol without an agent, over the store in memory.

use crate::{Begin, per_second, pool, runs, say, store};
use api::{IpVersion, Owner, Pool, Use};
use datastore::memory::Memory;
use futures::executor::block_on;
use ipam::assign::{AssignRequest, assign};
use ipam::clock::FixedClock;
use ipam::plan::Want;
use ipam::release::release_by_handle;
use jiff::Timestamp;
use std::time::Duration;

const CLOCK: FixedClock = FixedClock(Timestamp::UNIX_EPOCH);

/// One address for one pod.
pub(crate) fn add(store: &Memory, node: &str, pod: u32) {
    let attributes = [
        ("namespace", "shop".to_owned()),
        ("node", node.to_owned()),
        ("pod", format!("web-{pod}")),
        ("timestamp", "2026-08-01 10:15:31.004512 +0000 UTC".to_owned()),
    ];
    let want = Want {
        count: 1,
        handle: Some(handle(pod)),
        attributes: attributes.map(|(key, value)| (key.to_owned(), value)).into(),
    };
    let request = AssignRequest::new(Owner::host(node), IpVersion::V4, Use::Workload, want);
    let assigned = block_on(assign(store, &CLOCK, &request)).unwrap();
    assert_eq!(assigned.taken.len(), 1);
}

/// Pods with a container each. Whoever comes in a pod's place is another container.
struct Pods {
    store: Memory,
    containers: Vec<u32>,
    /// The next container.
    next: u32,
    /// State of a generator by shifts (Marsaglia's xorshift): which pod dies follows no pattern.
    dice: u64,
}

impl Pods {
    fn of(pools: &[Pool], count: u32) -> Self {
        let store = store(pools, &["n"]);
        (0..count).for_each(|pod| add(&store, "n", pod));
        Self { store, containers: (0..count).collect(), next: count, dice: 88_172_645_463_325_252 }
    }

    /// Time of an ADD while as many addresses stay in use.
    fn warm(&mut self, times: u32) -> f64 {
        let mut took = Duration::ZERO;
        for _ in 0..times {
            for shift in [13, -7, 17] {
                self.dice ^= if shift > 0 { self.dice << shift } else { self.dice >> -shift };
            }
            let count = u64::try_from(self.containers.len()).unwrap();
            let dying = usize::try_from(self.dice % count).unwrap();
            let gone = std::mem::replace(&mut self.containers[dying], self.next);
            del(&self.store, gone);
            let begin = Begin::now();
            add(&self.store, "n", self.next);
            took += begin.elapsed();
            self.next += 1;
        }
        self.store.compact();
        took.as_secs_f64() / f64::from(times)
    }
}

fn del(store: &Memory, pod: u32) {
    assert_eq!(block_on(release_by_handle(store, &CLOCK, &handle(pod))).unwrap(), 1);
}

fn handle(pod: u32) -> String {
    format!("k8s-pod-network.{pod:064x}")
}

pub(crate) fn figures() {
    let mut half = Pods::of(&[pool("p", "10.0.0.0/16", 26)], 32);
    say("direct: warm ADD", "1/s", &runs(|| per_second(1, Duration::from_secs_f64(half.warm(400)))));

    let small = [pool("p", "10.0.0.0/20", 26)];
    let (mut empty, mut full) = (Pods::of(&small, 40), Pods::of(&small, 4055));
    // Until what was given back lies about in the blocks as it does on a node that has run for a while.
    full.warm(2000);
    say("direct: ADD at 99 % full : at 1 %", "×", &runs(|| full.warm(100) / empty.warm(100)));

    let mut wide = Pods::of(&[pool("p", "10.0.0.0/8", 26)], 32);
    say("direct: ADD in a pool /8 : in a pool /16", "×", &runs(|| wide.warm(400) / half.warm(400)));
}
