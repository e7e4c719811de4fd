//! Pools and nodes that grow and shrink, and blocks that nobody uses any more.

use crate::host::{Host, add_request, addresses};
use crate::stage::{GRACE, Stage, cidr, pool};
use datastore::{Key, Record};
use ipam::agent::{Event, Reply};
use jiff::SignedDuration;
use std::collections::BTreeSet;
use std::net::IpAddr;

#[test]
fn cil_38539_a_pool_is_drained_and_goes_without_a_node_being_touched() {
    let mut stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
    let mut host = Host::start(&stage, "n1");
    host.address("a").unwrap();
    stage.address("n2", "b").unwrap();
    stage.put(Record::Pool(pool("second", "10.1.0.0/28", 30)));
    stage.change_pool("pool", |pool| pool.disabled = true);
    host.see();
    let second = cidr("10.1.0.0/28");
    let moved = [("n1", host.address("c").unwrap()), ("n2", stage.address("n2", "d").unwrap())];
    for ((node, address), name) in moved.into_iter().zip(["c", "d"]) {
        assert!(second.contains(address), "{address} of a pool that is being drained");
        stage.report(node, name, &[address]);
    }
    assert_eq!(stage.held().len(), 4, "what is in use stays");
    assert_eq!(host.del("a"), Reply::Deleted);
    assert_eq!(stage.release("b"), Ok(1));
    stage.collect_for_long();
    assert!(stage.blocks().iter().all(|block| second.contains_cidr(block.cidr)), "{:?}", stage.blocks());
    assert_eq!((stage.affinities().len(), stage.handles().len()), (2, 2));
    stage.delete(&Key::Pool("pool".to_owned()));
    host.see();
    assert!(host.address("e").is_some() && stage.address("n2", "f").is_some());
    stage.assert_sound();
}

#[test]
fn cil_15949_a_node_grows_by_a_block_where_it_needs_one_and_no_other_node_does() {
    let stage = Stage::new("10.0.0.0/24", 28, &["n1", "n2"]);
    let mut host = Host::start(&stage, "n1");
    stage.address("n2", "other").unwrap();
    for (pods, blocks) in [(16, 1), (17, 2), (33, 3)] {
        for pod in 0..pods {
            assert!(host.address(&format!("pod-{pod}")).is_some());
        }
        assert_eq!(host.agent.view().own_blocks().count(), blocks, "{pods} pods");
    }
    assert_eq!(stage.blocks().len(), 4);
    stage.assert_sound();
}

#[test]
fn aws_2294_blocks_that_idle_go_back_but_for_one() {
    let mut stage = Stage::new("10.0.0.0/24", 28, &["n1"]);
    let mut host = Host::start(&stage, "n1");
    for pod in 0..40 {
        host.address(&format!("pod-{pod}")).unwrap();
    }
    for pod in 0..40 {
        assert_eq!(host.del(&format!("pod-{pod}")), Reply::Deleted);
    }
    stage.collect();
    assert_eq!(stage.blocks().len(), 3, "for the grace they stay");
    stage.collect_for_long();
    assert_eq!((stage.blocks().len(), stage.affinities().len()), (1, 1));
    host.see();
    assert!(host.address("next").is_some());
    stage.assert_sound();
}

#[test]
fn calico_7987_of_blocks_of_two_addresses_one_is_kept_and_no_more() {
    let mut stage = Stage::new("10.0.0.0/27", 31, &["n1"]);
    for pod in 0..8 {
        stage.address("n1", &format!("pod-{pod}")).unwrap();
    }
    stage.report("n1", "pod-0", &[stage.held().into_keys().next().unwrap()]);
    for pod in 1..8 {
        stage.release(&format!("pod-{pod}")).unwrap();
    }
    assert_eq!(stage.blocks().len(), 4);
    stage.collect_for_long();
    assert_eq!(stage.blocks().len(), 1, "the one in use");
    stage.release("pod-0").unwrap();
    stage.pods.clear();
    stage.collect_for_long();
    assert_eq!(stage.blocks().len(), 1, "and the last one stays with its node");
    stage.assert_sound();
}

#[test]
fn calico_4726_five_hundred_pods_on_one_node() {
    let stage = Stage::new("10.0.0.0/22", 26, &["n1", "n2"]);
    let mut host = Host::start(&stage, "n1");
    stage.wire.restart();
    let events: Vec<(u64, Event)> =
        (0..500).map(|pod| host.add_event(&add_request(&format!("pod-{pod}")))).collect();
    let ids: Vec<u64> = events.iter().map(|(id, _)| *id).collect();
    host.tell(events.into_iter().map(|(_, event)| event).collect());
    let given: BTreeSet<IpAddr> = ids.iter().flat_map(|id| addresses(&host.replies[id])).collect();
    assert_eq!(given.len(), 500);
    let (reads, commits) = stage.wire.counts();
    assert!(reads == 0 && commits <= 16, "{reads} reads, {commits} commits");
    // Without an agent: a plugin a pod, one after the other.
    let stage = Stage::new("10.0.0.0/22", 26, &["n1"]);
    let mut given = BTreeSet::new();
    for pod in 0..500 {
        stage.wire.restart();
        given.insert(stage.address("n1", &format!("pod-{pod}")).unwrap());
        assert!(stage.wire.calls() <= 24, "pod {pod}: {} calls", stage.wire.calls());
    }
    assert_eq!((given.len(), stage.blocks().len()), (500, 8));
    stage.assert_sound();
}

#[test]
fn nv_280_grace_and_cooldown_are_both_as_they_are_set() {
    for (grace, cooldown) in [(1, 600), (60, 30)] {
        let mut stage = Stage::new("10.0.0.0/32", 32, &["n1"]);
        stage.grace = SignedDuration::from_mins(grace);
        stage.configure(|config| config.ip_cooldown_seconds = cooldown);
        stage.start_pod("n1", "gone");
        stage.pods.clear();
        stage.collect();
        stage.time.pass(stage.grace / 2);
        stage.collect();
        assert_eq!(stage.held().len(), 1, "half of {grace} minutes");
        stage.time.pass(stage.grace);
        stage.collect();
        assert_eq!((stage.held().len(), stage.address("n1", "early")), (0, None), "{cooldown} s");
        stage.time.pass(SignedDuration::from_secs(i64::from(cooldown) + 2));
        assert!(stage.address("n1", "late").is_some(), "{cooldown} s");
        stage.assert_sound();
    }
    assert_eq!(GRACE, SignedDuration::from_mins(15), "where nothing says otherwise");
}
