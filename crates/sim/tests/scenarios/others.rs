//! What hurt users of other address managers: whereabouts, spiderpool, Cilium, the cloud plugins, OVN, Metal3.

use crate::host::{Host, add_request, addresses};
use crate::stage::{GRACE, Stage, cidr, ip, pod_name, request};
use crate::wire::Fate;
use api::{IpVersion, Owner};
use futures::FutureExt;
use ipam::agent::{Effect, Reply};
use ipam::assign::assign;
use ipam::assign_address::{AssignAddressError, assign_address};
use ipam::block::TakeError;
use ipam::plan::AddressRequest;
use ipam::query::utilization_of;
use ipam::release::release_by_handle;
use jiff::SignedDuration;
use sim::peer::{Calico, Wanted};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn wa_110_no_address_is_given_twice_however_requests_cross() {
    let mut moments = 0;
    for first in 1..=12 {
        for second in 0..6 {
            let stage = Stage::new("10.0.0.0/29", 30, &["n1", "n2", "n3"]);
            stage.address("n1", "before").unwrap();
            stage.wire.restart();
            let time = stage.time.clone();
            stage.wire.before(first, move |memory| {
                assign(memory, &time, &request("n1", "crossing", IpVersion::V4))
                    .now_or_never()
                    .unwrap()
                    .unwrap();
            });
            let time = stage.time.clone();
            stage.wire.before(first + second + 1, move |memory| {
                let calico = Calico { store: memory, clock: &time };
                calico.auto_assign(&Wanted::one("n3", IpVersion::V4, "calico")).now_or_never().unwrap();
                release_by_handle(memory, &time, "before").now_or_never().unwrap().unwrap();
            });
            stage.address("n2", "a").unwrap();
            stage.address("n1", "b").unwrap();
            stage.address("n3", "c").unwrap();
            stage.assert_sound();
            let holders: BTreeSet<String> = stage.held().into_values().collect();
            assert_eq!(holders.len(), stage.held().len(), "one address each");
            assert!(["a", "b", "c"].iter().all(|id| holders.contains(*id)), "{holders:?}");
            moments += 1;
        }
    }
    assert_eq!(moments, 72);
}

#[test]
fn wa_176_a_pod_that_starts_while_the_collector_looks_keeps_its_address() {
    let mut stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    stage.start_incarnation("n1", "web-0", "uid-1");
    stage.pods.remove(&pod_name("web-0"));
    stage.collect();
    stage.time.pass(GRACE + SignedDuration::from_secs(1));
    // Now the old address is due. The set's pod of the same name starts after the records were listed.
    let mut address = None;
    stage.pass_with(|stage| {
        address = address.or_else(|| Some(stage.start_incarnation("n1", "web-0", "uid-2")));
    });
    let address = address.unwrap();
    assert_eq!(stage.held().get(&address).map(String::as_str), Some("uid-2"));
    stage.collect_for_long();
    assert_eq!(stage.held(), BTreeMap::from([(address, "uid-2".to_owned())]), "and only the old one goes");
}

#[test]
fn sp_2526_a_pod_of_a_set_that_moves_keeps_the_address_of_its_new_life() {
    let mut stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
    let old = stage.start_incarnation("n1", "web-0", "uid-1");
    let new = stage.start_incarnation("n2", "web-0", "uid-2");
    assert_ne!(old, new);
    stage.collect_for_long();
    assert_eq!(stage.held(), BTreeMap::from([(new, "uid-2".to_owned())]));
}

#[test]
fn neon_1281_a_release_that_failed_is_not_forgotten() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    let mut host = Host::start(&stage, "n1");
    for pod in 0..4 {
        host.address(&format!("pod-{pod}")).unwrap();
    }
    // The store is away: nobody is told that an address is released while it is not.
    for fate in [Fate::Refused, Fate::RequestLost, Fate::ReplyLost] {
        stage.wire.always(Some(fate));
        let (id, event) = host.del_event("pod-0");
        host.tell(vec![event]);
        stage.time.pass(SignedDuration::from_secs(60));
        host.tick();
        assert!(!matches!(host.replies.get(&id), Some(Reply::Deleted)), "{fate:?}");
        stage.wire.always(None);
        host.see();
    }
    for pod in 0..4 {
        assert_eq!(host.del(&format!("pod-{pod}")), Reply::Deleted);
    }
    assert_eq!((stage.held().len(), stage.handles().len()), (0, 0));
}

#[test]
fn sp_3541_a_large_pool_is_as_cheap_as_a_small_one() {
    let costs = |range: &str, version: IpVersion, block_size: u8| {
        let stage = Stage::new(range, block_size, &["n1", "n2"]);
        stage.wire.restart();
        assert_eq!(stage.ask(&request("n1", "cold", version)).unwrap().taken.len(), 1);
        let direct = stage.wire.counts();
        let mut host = Host::start(&stage, "n2");
        let mut wanted = add_request("cold");
        (wanted.ipv4, wanted.ipv6) = if version == IpVersion::V4 { (1, 0) } else { (0, 1) };
        stage.wire.restart();
        assert_eq!(addresses(&host.add(&wanted)).len(), 1);
        (direct, stage.wire.counts())
    };
    let small = costs("10.0.0.0/20", IpVersion::V4, 26);
    assert_eq!(costs("10.0.0.0/10", IpVersion::V4, 26), small);
    assert_eq!(costs("10.0.0.0/8", IpVersion::V4, 32), small);
    assert_eq!(costs("fd00::/48", IpVersion::V6, 122), small);
    assert_eq!(costs("fd00::/48", IpVersion::V6, 128), small);
}

#[test]
fn aws_3685_a_pool_with_room_serves_whatever_the_churn() {
    let stage = Stage::new("10.0.0.0/29", 30, &["n1", "n2"]);
    let mut hosts = [Host::start(&stage, "n1"), Host::start(&stage, "n2")];
    let mut running: Vec<Vec<String>> = vec![Vec::new(), Vec::new()];
    for turn in 0..200 {
        let node = turn % 2;
        if running[node].len() == 4 {
            let oldest = running[node].remove(0);
            assert_eq!(hosts[node].del(&oldest), Reply::Deleted);
        }
        let name = format!("pod-{turn}");
        assert!(hosts[node].address(&name).is_some(), "turn {turn}");
        running[node].push(name);
    }
    stage.assert_sound();
    assert_eq!((stage.held().len(), stage.handles().len()), (8, 8));
}

#[test]
fn az_4497_retries_of_a_sandbox_do_not_pile_addresses_up() {
    for fate in [Fate::Refused, Fate::RequestLost, Fate::ReplyLost] {
        let stage = Stage::new("10.0.0.0/28", 28, &["n1"]);
        let mut host = Host::start(&stage, "n1");
        host.address("other").unwrap();
        for attempt in 0..40 {
            // Each retry is another container. Its ADD fails, and the runtime sends a DEL for it.
            let container = format!("sandbox-{attempt}");
            stage.wire.restart();
            stage.wire.at(1, fate);
            stage.wire.at(2, Fate::Refused);
            let (id, event) = host.add_event(&add_request(&container));
            host.tell(vec![event]);
            stage.time.pass(SignedDuration::from_secs(30));
            host.tick();
            assert!(host.replies.contains_key(&id), "{fate:?}: no answer in half a minute");
            stage.wire.restart();
            assert_eq!(host.del(&container), Reply::Deleted, "{fate:?}");
        }
        assert!(host.address("at-last").is_some());
        assert_eq!((stage.held().len(), stage.handles().len()), (2, 2), "{fate:?}");
    }
}

#[test]
fn az_4829_add_and_del_of_one_container_do_not_cross() {
    // The DEL comes at once, while the ADD's commit is on its way, and when it is answered; a new ADD follows.
    for moment in 0..3 {
        let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
        let mut host = Host::start(&stage, "n1");
        host.address("other").unwrap();
        host.hold(|effect| matches!(effect, Effect::Commit { .. }));
        let (add, add_event) = host.add_event(&add_request("a"));
        let (del, del_event) = host.del_event("a");
        let (again, again_event) = host.add_event(&add_request("a"));
        match moment {
            0 => host.tell(vec![add_event, del_event, again_event]),
            1 => {
                host.tell(vec![add_event]);
                host.tell(vec![del_event]);
                host.tell(vec![again_event]);
            }
            _ => {
                host.tell(vec![add_event]);
                host.go_on();
                host.tell(vec![del_event, again_event]);
            }
        }
        host.go_on();
        assert_eq!(host.replies[&del], Reply::Deleted, "moment {moment}");
        let held = stage.held();
        let of_a: Vec<_> =
            held.iter().filter(|(_, id)| *id == "net.a").map(|(address, _)| *address).collect();
        assert_eq!(of_a, addresses(&host.replies[&again]), "moment {moment}: what the last ADD was told");
        assert_eq!(of_a.len(), 1);
        let _ = add;
        stage.assert_sound();
    }
}

#[test]
fn az_2999_an_add_that_failed_leaves_nothing() {
    for call in 1..=4 {
        for fate in [Fate::RequestLost, Fate::ReplyLost] {
            let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
            let mut host = Host::start(&stage, "n1");
            stage.wire.restart();
            stage.wire.at(call, fate);
            for after in 1..6 {
                stage.wire.at(call + after, Fate::Refused);
            }
            let (id, event) = host.add_event(&add_request("a"));
            host.tell(vec![event]);
            for _ in 0..4 {
                stage.time.pass(SignedDuration::from_secs(5));
                host.tick();
            }
            stage.wire.restart();
            host.see();
            for _ in 0..4 {
                stage.time.pass(SignedDuration::from_secs(5));
                host.tick();
            }
            let got = addresses(&host.replies[&id]);
            if got.is_empty() {
                // The kubelet gives this sandbox up and sends its DEL, as it does after every failed ADD.
                assert_eq!(host.del("a"), Reply::Deleted);
                assert_eq!((stage.held().len(), stage.handles().len()), (0, 0), "{fate:?} at {call}");
            } else {
                assert_eq!(stage.held().into_keys().collect::<Vec<_>>(), got, "{fate:?} at {call}");
            }
            stage.assert_sound();
        }
    }
}

#[test]
fn ovn_4304_counts_are_those_of_the_blocks_whoever_changed_them() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
    let mut host = Host::start(&stage, "n1");
    let counted = || {
        let (counted, _) = stage.play(utilization_of(&stage.wire)).unwrap().unwrap();
        (counted.pools[0].count.in_use, counted.pools[0].count.free)
    };
    for pod in 0..6 {
        let before = stage.held().len();
        match pod % 3 {
            0 => assert!(host.address(&format!("pod-{pod}")).is_some()),
            1 => assert!(stage.address("n2", &format!("pod-{pod}")).is_some()),
            _ => {
                let calico = Calico { store: &stage.wire, clock: &stage.time };
                let wanted = Wanted::one("n2", IpVersion::V4, &format!("pod-{pod}"));
                stage.play(calico.auto_assign(&wanted)).unwrap();
            }
        }
        if pod == 3 {
            // The agent is killed and started again.
            host = Host::start(&stage, "n1");
        }
        let held = u128::try_from(stage.held().len()).unwrap();
        assert_eq!(stage.held().len(), before + 1);
        assert_eq!(counted(), (held, 16 - held));
    }
}

#[test]
fn ovn_4210_requests_for_more_than_there_is_do_not_empty_the_pool() {
    let stage = Stage::new("10.0.0.0/29", 30, &["n1"]);
    for attempt in 0..10 {
        let handle = format!("greedy-{attempt}");
        let mut wanted = request("n1", &handle, IpVersion::V4);
        wanted.want.count = 12;
        let assigned = stage.ask(&wanted).unwrap();
        assert_eq!(assigned.taken.len(), 8, "attempt {attempt}");
        assert!(assigned.explain.shortage.is_some());
        // What it got too little of it gives back, by the one handle that holds it all.
        assert_eq!(stage.release(&handle).unwrap(), 8);
    }
    assert_eq!((stage.held().len(), stage.handles().len()), (0, 0));
}

#[test]
fn ovnk_5798_a_node_deletion_that_is_cut_short_leaks_nothing() {
    let mut cut = 0;
    for fate in [Fate::DiesBefore, Fate::DiesAfter] {
        for call in 1.. {
            let mut stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
            for pod in 0..6 {
                stage.start_pod("n1", &format!("pod-{pod}"));
            }
            let kept = stage.start_pod("n2", "kept");
            stage.lose_node("n1");
            stage.wire.restart();
            stage.wire.at(call, fate);
            stage.collect();
            stage.assert_sound();
            let whole = stage.wire.calls() < call;
            // Another collector takes over: it remembers nothing.
            stage.collector = ipam::collect::Collector::default();
            stage.wire.restart();
            stage.collect_for_long();
            stage.assert_sound();
            assert_eq!(stage.held().into_keys().collect::<Vec<_>>(), [kept], "{fate:?} at {call}");
            assert_eq!((stage.blocks().len(), stage.affinities().len(), stage.handles().len()), (1, 1, 1));
            if whole {
                break;
            }
            cut += 1;
        }
    }
    assert!(cut >= 10, "only {cut} cut short");
}

#[test]
fn plug_252_what_ran_before_a_reboot_gives_its_addresses_back() {
    let mut stage = Stage::new("10.0.0.0/29", 29, &["n1"]);
    let mut host = Host::start(&stage, "n1");
    for boot in 0..6 {
        for pod in 0..4 {
            let address =
                host.address(&format!("boot-{boot}-{pod}")).expect("there is room after every reboot");
            stage.report("n1", &format!("boot-{boot}-{pod}"), &[address]);
        }
        assert_eq!(stage.held().len(), 4);
        // Power is cut: no DEL. The pods come up as other containers, under other names.
        stage.pods.clear();
        host = Host::start(&stage, "n1");
        for _ in 0..3 {
            stage.collect();
            stage.time.pass(GRACE);
        }
        host.see();
    }
    assert_eq!((stage.held().len(), stage.handles().len()), (0, 0));
}

#[test]
fn antrea_3178_an_agent_killed_at_any_commit_loses_and_leaks_nothing() {
    let mut kills = 0;
    for fate in [Fate::DiesBefore, Fate::DiesAfter] {
        for call in 1.. {
            let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
            let mut host = Host::start(&stage, "n1");
            stage.wire.restart();
            stage.wire.at(call, fate);
            let (id, event) = host.add_event(&add_request("a"));
            host.tell(vec![event]);
            let answered = host.replies.contains_key(&id);
            drop(host);
            stage.assert_sound();
            // The kubelet asks the new agent again for the same container.
            stage.wire.restart();
            let mut host = Host::start(&stage, "n1");
            stage.time.pass(SignedDuration::from_secs(61));
            let again = host.address("a").expect("there is room");
            stage.assert_sound();
            assert_eq!(stage.held(), BTreeMap::from([(again, "net.a".to_owned())]), "{fate:?} at {call}");
            assert_eq!(host.del("a"), Reply::Deleted);
            assert_eq!((stage.held().len(), stage.handles().len()), (0, 0), "{fate:?} at {call}");
            if answered {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills >= 2, "only {kills} kills");
}

#[test]
fn m3_988_a_claim_that_hangs_does_not_hold_up_what_a_block_in_hand_can_serve() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    let mut host = Host::start(&stage, "n1");
    for pod in 0..4 {
        host.address(&format!("pod-{pod}")).unwrap();
    }
    let claims = |effect: &Effect| match effect {
        Effect::Commit { writes, .. } => {
            writes.iter().any(|write| matches!(write.key(), datastore::Key::Affinity(..)))
        }
        _ => false,
    };
    host.hold(claims);
    let (stuck, event) = host.add_event(&add_request("needs-a-block"));
    host.tell(vec![event]);
    assert!(!host.replies.contains_key(&stuck), "its claim is on its way");
    assert_eq!(host.del("pod-0"), Reply::Deleted);
    // The address that came free serves whoever waits longest, and what comes free next the next.
    assert_eq!(host.del("pod-1"), Reply::Deleted);
    let next = host.address("next");
    assert!(next.is_some() || host.replies.contains_key(&stuck));
    assert!(cidr("10.0.0.0/28").contains(next.unwrap_or_else(|| ip("10.0.0.0"))));
    host.go_on();
    assert_eq!(addresses(&host.replies[&stuck]).len(), 1);
    stage.assert_sound();
    assert_eq!(stage.held().len(), 4);
}

#[test]
fn m3_1440_an_address_asked_for_twice_is_refused_to_the_second() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
    let wanted = |node: &str, handle: &str| AddressRequest {
        owner: Owner::host(node),
        address: ip("10.0.0.6"),
        intended_use: None,
        handle: Some(handle.to_owned()),
        attributes: BTreeMap::new(),
        max_per_handle: 0,
    };
    let ask = |wanted: &AddressRequest| stage.play(assign_address(&stage.wire, &stage.time, wanted)).unwrap();
    assert!(ask(&wanted("n1", "a")).is_ok());
    let refused = ask(&wanted("n1", "b")).unwrap_err().error;
    let taken = matches!(refused, AssignAddressError::Refused(TakeError::AlreadyAssigned { .. }));
    assert!(taken, "{refused:?}");
    assert!(ask(&wanted("n2", "b")).is_err(), "nor on another node");
    assert!(ask(&wanted("n1", "a")).is_ok(), "its owner may ask again");
    let mut host = Host::start(&stage, "n1");
    let mut named = add_request("c");
    named.requested = Some(ip("10.0.0.6"));
    assert!(matches!(host.add(&named), Reply::Failed(_)));
    let ids: Vec<String> = stage.handles().into_iter().map(|handle| handle.id).collect();
    assert_eq!((stage.held().len(), ids), (1, vec!["a".to_owned()]), "no handle of a refused request");
}
