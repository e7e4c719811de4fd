//! The protocol without an agent, over the store in memory.

use crate::{Begin, per_second, pool, runs, say, store};
use api::{IpVersion, Owner, Use};
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

fn del(store: &Memory, pod: u32) {
    assert_eq!(block_on(release_by_handle(store, &CLOCK, &handle(pod))).unwrap(), 1);
}

fn handle(pod: u32) -> String {
    format!("k8s-pod-network.{pod:064x}")
}

/// Time of an ADD while `pods` addresses stay in use.
fn warm(store: &Memory, pods: u32, times: u32) -> f64 {
    let mut took = Duration::ZERO;
    for turn in 0..times {
        let pod = turn.wrapping_mul(2_654_435_761) % pods;
        del(store, pod);
        let begin = Begin::now();
        add(store, "n", pod);
        took += begin.elapsed();
    }
    store.compact();
    took.as_secs_f64() / f64::from(times)
}

pub(crate) fn figures() {
    let half = store(&[pool("p", "10.0.0.0/16", 26)], &["n"]);
    (0..32).for_each(|pod| add(&half, "n", pod));
    say("direct: warm ADD", "1/s", &runs(|| per_second(1, Duration::from_secs_f64(warm(&half, 32, 400)))));

    let small = [pool("p", "10.0.0.0/20", 26)];
    let (empty, full) = (store(&small, &["n"]), store(&small, &["n"]));
    (0..40).for_each(|pod| add(&empty, "n", pod));
    (0..4055).for_each(|pod| add(&full, "n", pod));
    say("direct: ADD at 99 % full : at 1 %", "×", &runs(|| warm(&full, 4055, 100) / warm(&empty, 40, 100)));

    let wide = store(&[pool("p", "10.0.0.0/8", 26)], &["n"]);
    (0..32).for_each(|pod| add(&wide, "n", pod));
    say(
        "direct: ADD in a pool /8 : in a pool /16",
        "×",
        &runs(|| warm(&wide, 32, 400) / warm(&half, 32, 400)),
    );
}
