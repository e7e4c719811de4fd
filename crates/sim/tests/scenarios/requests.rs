//! Calico's speed, its plugin, load balancers and virtual machines.

use crate::host::{Host, add_request, addresses};
use crate::stage::{Stage, cidr, pool, request};
use api::{Cidr, IpVersion, Owner};
use datastore::{Kind, Record};
use ipam::agent::{Effect, Event, Reply};
use ipam::block::Release;
use ipam::release::release_addresses;
use jiff::SignedDuration;
use std::collections::BTreeSet;
use std::net::IpAddr;

#[test]
fn calico_5612_a_hundred_pods_on_one_node_take_a_few_commits() {
    let stage = Stage::new("10.0.0.0/16", 26, &["n1"]);
    let mut host = Host::start(&stage, "n1");
    stage.wire.restart();
    let events: Vec<(u64, Event)> =
        (0..100).map(|pod| host.add_event(&add_request(&format!("pod-{pod}")))).collect();
    let ids: Vec<u64> = events.iter().map(|(id, _)| *id).collect();
    host.tell(events.into_iter().map(|(_, event)| event).collect());
    let given: BTreeSet<IpAddr> = ids.iter().flat_map(|id| addresses(&host.replies[id])).collect();
    assert_eq!(given.len(), 100);
    let (reads, commits) = stage.wire.counts();
    assert!(reads == 0 && commits <= 3, "{reads} reads, {commits} commits");
}

#[test]
fn lcg_1236_the_calls_of_an_add_do_not_grow_with_the_cluster() {
    let costs = |blocks: u32| {
        let stage = Stage::new("10.0.0.0/20", 28, &["n1", "n2"]);
        for index in 0..blocks {
            let cidr = cidr("10.0.0.0/20").nth_block(28, u128::from(index)).unwrap();
            let mut block = ipam::block::new_block(
                cidr,
                &Owner::host(format!("other-{index}")),
                ipam::Clock::now(&stage.time),
            );
            for ordinal in 0..16 {
                let address = cidr.address(api::Ordinal(ordinal)).unwrap();
                ipam::block::assign(&mut block, address, None, &Default::default(), None).unwrap();
            }
            stage.put(Record::Block(block));
        }
        stage.wire.restart();
        stage.address("n1", "cold").unwrap();
        let cold = stage.wire.calls();
        stage.wire.restart();
        stage.address("n1", "warm").unwrap();
        let warm = stage.wire.calls();
        let mut host = Host::start(&stage, "n2");
        stage.wire.restart();
        host.address("cold").unwrap();
        (cold, warm, stage.wire.calls())
    };
    let (small, large) = (costs(8), costs(250));
    assert_eq!(small, large);
    assert!(small.0 <= 20 && small.1 <= 10 && small.2 <= 6, "{small:?}");
}

#[test]
fn calico_10855_a_warm_add_reads_nothing() {
    let stage = Stage::new("10.0.0.0/24", 26, &["n1"]);
    let mut host = Host::start(&stage, "n1");
    host.address("first").unwrap();
    stage.wire.restart();
    host.address("second").unwrap();
    assert_eq!(stage.wire.counts(), (0, 1));
    stage.wire.restart();
    assert_eq!(host.del("second"), Reply::Deleted);
    assert_eq!(stage.wire.counts(), (0, 1));
}

#[test]
fn calico_10333_addresses_of_one_block_go_back_in_one_commit() {
    let stage = Stage::new("10.0.0.0/24", 26, &["n1"]);
    let releases: Vec<Release> = (0..20)
        .map(|pod| {
            let handle = format!("pod-{pod}");
            let address = stage.address("n1", &handle).unwrap();
            Release { address, handle: Some(handle), sequence: None }
        })
        .collect();
    // A disabled pool is no obstacle either.
    stage.change_pool("pool", |pool| pool.disabled = true);
    stage.wire.restart();
    let done = stage.play(release_addresses(&stage.wire, &stage.time, &releases)).unwrap().unwrap();
    assert_eq!((done.released.len(), stage.held().len(), stage.handles().len()), (20, 0, 0));
    assert_eq!(stage.wire.counts().1, 1);
}

#[test]
fn cnip_985_requests_that_wait_for_a_write_go_together_in_the_next() {
    let stage = Stage::new("10.0.0.0/24", 26, &["n1"]);
    let mut host = Host::start(&stage, "n1");
    host.address("first").unwrap();
    stage.wire.restart();
    host.hold(|effect| matches!(effect, Effect::Commit { .. }));
    let (_, event) = host.add_event(&add_request("in-flight"));
    host.tell(vec![event]);
    for pod in 0..32 {
        let (_, event) = host.add_event(&add_request(&format!("waiting-{pod}")));
        host.tell(vec![event]);
    }
    assert_eq!(host.replies.len(), 1);
    host.go_on();
    assert_eq!(host.replies.len(), 34);
    assert_eq!((stage.wire.counts(), stage.held().len()), ((0, 2), 34));
}

#[test]
fn calico_12503_an_agent_gives_nothing_before_it_has_seen_everything() {
    let all = [
        Kind::Pool,
        Kind::Block,
        Kind::Config,
        Kind::Reservation,
        Kind::Node,
        Kind::ClusterInformation,
        Kind::Affinity,
    ];
    for missing in all {
        let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
        let mut before = Host::start(&stage, "n1");
        let address = before.address("service").unwrap();
        drop(before);
        stage.wire.restart();
        let mut host = Host::start_blind(&stage, "n1");
        let seen: Vec<Kind> = all.into_iter().filter(|kind| *kind != missing).collect();
        host.see_only(&seen);
        let (id, event) = host.add_event(&add_request("service"));
        let (other, event_of_other) = host.add_event(&add_request("other"));
        host.tell(vec![event, event_of_other]);
        assert_eq!((host.replies.len(), stage.wire.counts().1), (0, 0), "without {missing}");
        // Once it has, the service has the address that it had, and only that.
        host.see();
        assert_eq!(addresses(&host.replies[&id]), [address], "without {missing}");
        assert_eq!(addresses(&host.replies[&other]).len(), 1);
        assert_eq!(stage.held().len(), 2);
    }
}

#[test]
fn calico_12503_a_request_that_waits_for_a_view_is_refused_in_time() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    let mut host = Host::start_blind(&stage, "n1");
    let (id, event) = host.add_event(&add_request("a"));
    host.tell(vec![event]);
    stage.time.pass(SignedDuration::from_secs(60));
    host.tick();
    assert!(matches!(&host.replies[&id], Reply::Failed(error) if error.code == 11));
    assert_eq!(stage.wire.counts().1, 0);
}

#[test]
fn kubevirt_9589_a_virtual_machine_that_restarts_keeps_its_addresses() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
    stage.put(Record::Pool(pool("six", "fd00::/120", 122)));
    let wanted = |node: &str, version| {
        let mut wanted = request(node, "vm", version);
        wanted.max_per_handle = 1;
        wanted
    };
    let mut first = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        first.push(stage.ask(&wanted("n1", version)).unwrap().taken[0].address);
    }
    for node in ["n1", "n2", "n1"] {
        for (index, version) in [IpVersion::V4, IpVersion::V6].into_iter().enumerate() {
            let again = stage.ask(&wanted(node, version)).unwrap();
            assert_eq!((again.taken, again.held), (Vec::new(), vec![Cidr::from(first[index])]));
        }
    }
    assert_eq!(stage.held().len(), 2);
}
