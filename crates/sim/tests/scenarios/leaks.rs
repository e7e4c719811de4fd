//! Calico's leaks and its garbage collection.

use crate::host::{Host, add_request, addresses};
use crate::stage::{GRACE, Stage, cidr, ip, pod_name, pool, put, request};
use crate::wire::Fate;
use api::{Handle, IpVersion, Node};
use datastore::{Key, Record};
use futures::FutureExt;
use ipam::agent::{Demand, Reply};
use ipam::assign::assign;
use ipam::block::{self, Release, ReleaseError};
use ipam::collect::Note;
use ipam::release::{ReleaseFailure, release_addresses, release_by_handle};
use jiff::SignedDuration;
use sim::peer::{Calico, Wanted};
use std::collections::BTreeMap;
use std::sync::Arc;

#[test]
fn calico_7839_nodes_gone_leave_no_blocks() {
    let names: Vec<String> = (0..12).map(|index| format!("n{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut stage = Stage::new("10.0.0.0/22", 28, &names);
    for (index, node) in names.iter().enumerate() {
        for pod in 0..20 {
            stage.start_pod(node, &format!("pod-{index}-{pod}"));
        }
    }
    assert_eq!((stage.held().len(), stage.blocks().len()), (240, 24));
    // Five minutes later the autoscaler takes them all, and no DEL is ever sent.
    stage.time.pass(SignedDuration::from_mins(5));
    stage.collect();
    assert_eq!(stage.held().len(), 240);
    for node in &names {
        stage.lose_node(node);
    }
    // One sweep takes the addresses, the blocks go with it or with the next, within a minute.
    stage.collect();
    assert_eq!(stage.held().len(), 0);
    stage.time.pass(SignedDuration::from_secs(60));
    stage.collect();
    stage.assert_nothing_left();
}

#[test]
fn calico_8643_what_cannot_be_read_does_not_freeze_the_collector() {
    let mut stage = Stage::new("10.0.0.0/24", 28, &["n1", "n2", "n3"]);
    for node in ["n1", "n2", "n3"] {
        stage.start_pod(node, &format!("pod-of-{node}"));
    }
    for node in ["n1", "n2", "n3"] {
        stage.lose_node(node);
    }
    // The first thing that is tried fails, and so does the first of the next pass.
    stage.wire.restart();
    stage.wire.at(1, Fate::Refused);
    stage.collect();
    assert_eq!(stage.held().len(), 1, "the other nodes' addresses are back");
    stage.wire.restart();
    stage.wire.at(1, Fate::RequestLost);
    stage.collect();
    stage.collect();
    stage.assert_nothing_left();
}

#[test]
fn calico_8548_no_crash_leaves_an_orphan_handle() {
    let mut crashes = 0;
    for fate in [Fate::DiesBefore, Fate::DiesAfter] {
        for call in 1.. {
            let mut stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
            stage.wire.at(call, fate);
            let wanted = request("n1", "a", IpVersion::V4);
            let done = stage.play(assign(&stage.wire, &stage.time, &wanted));
            stage.assert_sound();
            stage.collect_for_long();
            stage.assert_sound();
            assert_eq!(
                (stage.handles(), stage.held().len()),
                (vec![], 0),
                "{fate:?} at call {call} of an ADD"
            );
            if done.is_some() {
                break;
            }
            crashes += 1;
        }
        for call in 1.. {
            let mut stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
            stage.address("n1", "a").unwrap();
            stage.wire.restart();
            stage.wire.at(call, fate);
            let done = stage.play(release_by_handle(&stage.wire, &stage.time, "a"));
            stage.assert_sound();
            stage.collect_for_long();
            assert_eq!(
                (stage.handles(), stage.held().len()),
                (vec![], 0),
                "{fate:?} at call {call} of a DEL"
            );
            if done.is_some() {
                break;
            }
            crashes += 1;
        }
    }
    assert!(crashes >= 20, "only {crashes} crashes");
}

#[test]
fn calico_10759_what_a_dying_calico_leaves_is_removed_and_nothing_else() {
    let mut crashes = 0;
    for fate in [Fate::DiesBefore, Fate::DiesAfter] {
        for call in 1.. {
            let mut stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
            let kept = stage.start_pod("n2", "kept");
            stage.wire.restart();
            stage.wire.at(call, fate);
            let calico = Calico { store: &stage.wire, clock: &stage.time };
            let done = stage.play(calico.auto_assign(&Wanted::one("n1", IpVersion::V4, "a"))).is_some();
            stage.collect_for_long();
            stage.assert_sound();
            assert_eq!(stage.held(), BTreeMap::from([(kept, "kept".to_owned())]), "{fate:?} at {call}");
            let ids: Vec<String> = stage.handles().into_iter().map(|handle| handle.id).collect();
            assert_eq!(ids, ["kept"], "{fate:?} at {call}");
            // A block that n1 has made is n1's, and its next request confirms it. No claim is left without its block.
            for claim in stage.affinities() {
                let owned = stage
                    .blocks()
                    .iter()
                    .any(|block| block.cidr == claim.cidr && block.affinity.as_ref() == Some(&claim.owner));
                assert!(owned, "{claim:?} is left, {fate:?} at {call}");
            }
            if done {
                break;
            }
            crashes += 1;
        }
    }
    assert_eq!(crashes, 30, "a cold request of Calico is 15 calls");
}

#[test]
fn calico_10759_a_handle_under_a_paused_add_is_left_alone() {
    // Calico writes the handle first. One that has stood there for minutes may still belong to a request under way:
    // it is removed only as it was seen, so that the block write that comes at last is not left without its handle.
    let mut stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    stage.start_pod("n1", "first");
    let block = stage.blocks().remove(0);
    let handle =
        Handle { id: "paused".to_owned(), blocks: BTreeMap::from([(block.cidr, 1)]), deleted: false };
    stage.put(Record::Handle(handle));
    for _ in 0..3 {
        stage.collect();
        stage.time.pass(SignedDuration::from_secs(40));
    }
    // It goes on just before the collector would delete: its block write is what the collector must see.
    let memory = stage.wire.memory.clone();
    let mut used = block;
    stage.put(Record::Handle(Handle {
        id: "paused".to_owned(),
        blocks: BTreeMap::from([(used.cidr, 1)]),
        deleted: false,
    }));
    stage.collect();
    stage.time.pass(SignedDuration::from_secs(61));
    let address = used.cidr.address(api::Ordinal(used.unallocated[0])).unwrap();
    let attributes = BTreeMap::from([("node".to_owned(), "n1".to_owned())]);
    block::assign(&mut used, address, Some("paused"), &attributes, None).unwrap();
    block::advance(&mut used);
    stage.wire.restart();
    stage.pass_with(move |_| put(&memory, Record::Block(used.clone())));
    stage.assert_sound();
    assert_eq!(stage.held().get(&address).map(String::as_str), Some("paused"));
}

#[test]
fn calico_5044_live_ipv6_pods_keep_their_addresses() {
    let mut stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    stage.put(Record::Pool(pool("six", "fd00:10:244::/120", 122)));
    let mut live = BTreeMap::new();
    for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
        let assigned = stage.ask(&request("n1", name, IpVersion::V6)).unwrap();
        let address = assigned.taken[0].address;
        // What a kubelet reports is text, and not every kubelet writes it the short way.
        let told = match index {
            0 => address.to_string().to_uppercase().parse().unwrap(),
            1 => address.to_string().replace("::", ":0:0:0:0:").parse().unwrap_or(address),
            _ => address,
        };
        stage.report("n1", name, &[told]);
        live.insert(address, name.to_owned());
    }
    stage.collect_for_long();
    assert_eq!(stage.held(), live);
}

#[test]
fn calico_3589_a_node_that_comes_back_keeps_its_tunnel_address() {
    // The node returns at every moment of the pass that found it gone: before each datastore call of its tasks, and between
    // the collector's two looks.
    let mut moments = 0;
    for call in 0.. {
        let mut stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
        let mut host = Host::start(&stage, "n1");
        let tunnel = addresses(&host.demand(Demand::vxlan_tunnel("n1", Vec::new())))[0];
        stage.lose_node("n1");
        stage.wire.restart();
        let memory = stage.wire.memory.clone();
        let back = move || put(&memory, Record::Node(Node { name: "n1".to_owned(), ..Node::default() }));
        if call > 0 {
            stage.wire.before(call, move |_| back());
            stage.collect();
        } else {
            stage.pass_with(move |_| back());
        }
        // A block write that was made before the node came back may have taken the address: then the node asks anew, as
        // an agent that starts does. What must not be is that it is taken from a node that is there.
        let released_before = !stage.held().contains_key(&tunnel);
        if stage.wire.calls() < call {
            assert!(released_before, "the pass ended before the node came back");
            break;
        }
        moments += 1;
        if released_before {
            let mut host = Host::start(&stage, "n1");
            assert_eq!(addresses(&host.demand(Demand::vxlan_tunnel("n1", Vec::new()))).len(), 1);
        }
        let held = stage.held();
        stage.collect_for_long();
        assert_eq!(stage.held(), held, "back before call {call}");
        // And no pod of another node has it.
        let handle = held.values().next().map(String::as_str);
        assert_eq!(handle, Some("vxlan-tunnel-addr-n1"), "back before call {call}");
    }
    assert!(moments >= 3, "only {moments} moments");
}

#[test]
fn calico_3940_a_handle_with_junk_behind_it_holds_and_releases() {
    let mut stage = Stage::new("10.0.0.0/30", 30, &["n1"]);
    let first = stage.start_pod("n1", "net.a");
    let mut block = stage.blocks().remove(0);
    for attribute in Arc::make_mut(&mut block.attributes) {
        let mut edited = (**attribute).clone();
        edited.handle_id = Some("net.a\r\n".to_owned());
        *attribute = edited.into();
    }
    stage.put(Record::Block(block));
    let others: Vec<_> = (0..3).map(|index| stage.address("n1", &format!("net.{index}")).unwrap()).collect();
    assert!(!others.contains(&first), "an address in use was given again");
    assert_eq!(stage.address("n1", "net.late"), None);
    assert_eq!(stage.release("net.a").unwrap(), 1);
    assert_eq!(stage.address("n1", "net.late"), Some(first));
}

#[test]
fn calico_5218_the_collector_does_not_grow_while_a_block_is_not_empty() {
    let mut stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
    // The node is gone, but a virtual machine's address in its block is used on another node.
    let address = stage.start_pod("n1", "vm");
    stage.lose_node("n1");
    stage.report("", "vm", &[address]);
    let mut sizes = Vec::new();
    for _ in 0..40 {
        stage.collect();
        stage.time.pass(GRACE);
        sizes.push(format!("{:?}", stage.collector).len());
    }
    assert!(sizes[39] <= sizes[9], "{sizes:?}");
}

#[test]
fn calico_12277_a_stale_sequence_number_is_refused_once_and_changes_nothing() {
    let stage = Stage::new("10.0.0.0/30", 30, &["n1"]);
    let address = stage.address("n1", "a").unwrap();
    let before = stage.blocks();
    let ordinal = before[0].cidr.ordinal(address).unwrap();
    let stale = Release {
        address,
        handle: Some("a".to_owned()),
        sequence: Some(block::stamp(&before[0], ordinal).wrapping_sub(1)),
    };
    stage.wire.restart();
    let outcome = stage.play(release_addresses(&stage.wire, &stage.time, &[stale])).unwrap().unwrap();
    let refused = &outcome.failed[0].1;
    assert!(matches!(refused, ReleaseFailure::Refused(ReleaseError::OtherSequence { .. })), "{refused:?}");
    assert_eq!(stage.blocks(), before);
    let (_, commits) = stage.wire.counts();
    assert_eq!(commits, 0);
    assert!(stage.wire.calls() <= 5, "{} calls", stage.wire.calls());
}

#[test]
fn calico_12697_a_change_that_lost_is_not_saved_by_a_later_try() {
    let mut moments = 0;
    for call in 1.. {
        let stage = Stage::new("10.0.0.0/28", 28, &["n1"]);
        stage.address("n1", "first").unwrap();
        stage.wire.restart();
        let time = stage.time.clone();
        stage.wire.before(call, move |memory| {
            let wanted = request("n1", "rival", IpVersion::V4);
            assign(memory, &time, &wanted).now_or_never().unwrap().unwrap();
        });
        stage.address("n1", "a").unwrap();
        stage.assert_sound();
        let mut holders: Vec<String> = stage.held().into_values().collect();
        holders.sort();
        if stage.wire.calls() < call {
            assert_eq!(holders, ["a", "first"]);
            break;
        }
        assert_eq!(holders, ["a", "first", "rival"], "a rival before call {call}");
        moments += 1;
    }
    assert!(moments >= 5, "only {moments} moments");
}

#[test]
fn calico_11906_the_collector_and_a_fast_scale_down_do_not_stop_each_other() {
    for from in 1..=12 {
        let mut stage = Stage::new("10.0.0.0/26", 29, &["n1", "n2", "n3"]);
        for node in ["n1", "n2", "n3"] {
            for pod in 0..6 {
                stage.start_pod(node, &format!("{node}-{pod}"));
            }
        }
        stage.lose_node("n1");
        stage.lose_node("n2");
        // While the collector works, the kubelets that are still there send their DELs.
        stage.wire.restart();
        for pod in 0..6_usize {
            let time = stage.time.clone();
            stage.wire.before(from + 2 * pod, move |memory| {
                for node in ["n1", "n3"] {
                    let handle = format!("{node}-{pod}");
                    release_by_handle(memory, &time, &handle).now_or_never().unwrap().unwrap();
                }
            });
        }
        stage.collect();
        for pod in 0..6 {
            stage.pods.remove(&pod_name(&format!("n3-{pod}")));
            stage.release(&format!("n3-{pod}")).unwrap();
        }
        stage.lose_node("n3");
        for _ in 0..3 {
            stage.collect();
            stage.time.pass(SignedDuration::from_secs(61));
        }
        stage.collect();
        stage.assert_nothing_left();
    }
}

#[test]
fn calico_10658_an_add_that_ran_out_of_time_leaves_nothing_after_its_del() {
    let mut cut = 0;
    for fate in [Fate::DiesBefore, Fate::DiesAfter, Fate::RequestLost, Fate::ReplyLost] {
        for call in 1.. {
            let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
            stage.address("n1", "other").unwrap();
            stage.wire.restart();
            stage.wire.at(call, fate);
            let wanted = request("n1", "a", IpVersion::V4);
            let done = stage.play(assign(&stage.wire, &stage.time, &wanted));
            let whole = stage.wire.calls() < call;
            stage.wire.restart();
            stage.release("a").unwrap();
            let ids: Vec<String> = stage.handles().into_iter().map(|handle| handle.id).collect();
            assert_eq!(
                (ids, stage.held().len()),
                (vec!["other".to_owned()], 1),
                "{fate:?} at {call}: {done:?}"
            );
            if whole {
                break;
            }
            cut += 1;
        }
    }
    assert!(cut >= 20, "only {cut} cut short");
}

#[test]
fn kc_564_blocks_of_dead_nodes_neither_stay_nor_slow_a_new_node() {
    let calls_beside = |dead: usize| {
        let mut stage = Stage::new("10.0.0.0/20", 28, &["new"]);
        for index in 0..dead {
            let node = format!("dead-{index}");
            stage.join(&node);
            stage.address(&node, &format!("pod-{index}")).unwrap();
            stage.delete(&Key::Node(node));
        }
        stage.wire.restart();
        stage.address("new", "a").unwrap();
        let direct = stage.wire.calls();
        stage.join("newer");
        let mut host = Host::start(&stage, "newer");
        stage.wire.restart();
        host.address("b").unwrap();
        let agent = stage.wire.calls();
        stage.report(
            "new",
            "a",
            &stage.held().iter().filter(|(_, id)| *id == "a").map(|(ip, _)| *ip).collect::<Vec<_>>(),
        );
        stage.collect();
        stage.time.pass(SignedDuration::from_secs(61));
        stage.collect();
        let owners = stage
            .blocks()
            .iter()
            .filter(|block| block.affinity.as_ref().is_some_and(|owner| owner.name.starts_with("dead")))
            .count();
        assert_eq!(owners, 0, "blocks of dead nodes stay");
        (direct, agent)
    };
    assert_eq!(calls_beside(120), calls_beside(0));
}

#[test]
fn calico_5339_addresses_of_dead_pods_come_back_and_those_of_live_ones_stay() {
    let mut stage = Stage::new("10.0.0.0/27", 28, &["n1"]);
    let live: Vec<_> = (0..5).map(|pod| stage.start_pod("n1", &format!("live-{pod}"))).collect();
    for pod in 0..15 {
        stage.start_pod("n1", &format!("dead-{pod}"));
        stage.pods.remove(&pod_name(&format!("dead-{pod}")));
    }
    stage.collect();
    assert_eq!(stage.held().len(), 20, "one look is not enough");
    stage.collect_for_long();
    assert_eq!(stage.held().into_keys().collect::<Vec<_>>(), live);
    assert_eq!(stage.handles().len(), 5);
}

#[test]
fn calico_5004_jobs_that_ended_give_their_addresses_back() {
    let mut stage = Stage::new("10.0.0.0/27", 28, &["n1", "n2"]);
    for job in 0..10 {
        stage.start_pod("n1", &format!("job-{job}"));
        // The pod object of a finished job stays until somebody deletes it.
        stage.pods.get_mut(&pod_name(&format!("job-{job}"))).unwrap().finished = true;
    }
    let kept = stage.start_pod("n1", "service");
    stage.collect_for_long();
    assert_eq!(stage.held().into_keys().collect::<Vec<_>>(), [kept]);
}

#[test]
fn calico_7192_a_tunnel_address_does_not_keep_a_dead_node() {
    let mut stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
    let mut host = Host::start(&stage, "n1");
    assert_eq!(addresses(&host.demand(Demand::vxlan_tunnel("n1", Vec::new()))).len(), 1);
    stage.collect_for_long();
    assert_eq!(stage.held().len(), 1, "of a node that is there it is kept");
    stage.lose_node("n1");
    stage.collect();
    stage.collect();
    stage.assert_nothing_left();
}

#[test]
fn cnip_908_where_ipv6_is_exhausted_the_ipv4_address_is_not_lost() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    stage.put(Record::Pool(pool("six", "fd00::/127", 127)));
    let mut host = Host::start(&stage, "n1");
    let both = |container: &str| {
        let mut wanted = add_request(container);
        wanted.ipv6 = 1;
        wanted
    };
    assert_eq!(addresses(&host.add(&both("a"))).len(), 2);
    assert_eq!(addresses(&host.add(&both("b"))).len(), 2);
    for attempt in 0..10 {
        let reply = host.add(&both(&format!("late-{attempt}")));
        assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    }
    stage.assert_sound();
    assert_eq!(stage.held().len(), 4);
    assert_eq!(stage.handles().len(), 2);
    assert!(stage.held().contains_key(&ip("fd00::1")) && cidr("fd00::/127").contains(ip("fd00::1")));
}

#[test]
fn a_block_that_contradicts_itself_is_reported_and_not_touched() {
    let mut stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    stage.start_pod("n1", "a");
    let mut block = stage.blocks().remove(0);
    Arc::make_mut(&mut block.allocations)[1] = Some(9);
    stage.put(Record::Block(block.clone()));
    stage.lose_node("n1");
    stage.collect_for_long();
    assert_eq!(stage.blocks(), [block]);
    assert!(stage.notes.iter().any(|note| matches!(note, Note::Malformed { .. })));
}
