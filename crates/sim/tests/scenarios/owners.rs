//! Owners that are more than a plain pod: live addresses that nobody recorded, load balancers, machines that migrate, sets with
//! an address of their own, several networks.

use crate::host::{Host, add_request, addresses, refusal};
use crate::stage::{Stage, cidr, ip, pool, request};
use crate::wire::Fate;
use api::{IpVersion, Owner, Use};
use datastore::Record;
use ipam::agent::{Event, Reply, RequestId, Surrender};
use ipam::assign::AssignRequest;
use ipam::assign_address::assign_address;
use ipam::owner_attributes::PodName;
use ipam::plan::{AddressRequest, Want};
use ipam::query::{Holder, holder_of};
use ipam::vm;
use jiff::SignedDuration;
use std::collections::BTreeMap;
use std::net::IpAddr;

#[test]
fn calico_7348_a_live_address_that_nobody_recorded_is_adopted_under_its_pod() {
    let mut stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
    let live = ip("10.0.0.5");
    stage.report("n1", "lost", &[live]);
    let adopt = |stage: &Stage, handle: &str| {
        let mut wanted = AddressRequest::new(Owner::host("n1"), live, Some(handle));
        wanted.attributes = request("n1", handle, IpVersion::V4).want.attributes;
        stage.play(assign_address(&stage.wire, &stage.time, &wanted)).unwrap()
    };
    assert!(adopt(&stage, "lost").is_ok());
    assert!(adopt(&stage, "another").is_err(), "it is the live pod's");
    stage.collect_for_long();
    assert_eq!(stage.held(), BTreeMap::from([(live, "lost".to_owned())]));
    let mut host = Host::start(&stage, "n2");
    let given: Vec<IpAddr> = (0..15).filter_map(|pod| host.address(&format!("pod-{pod}"))).collect();
    assert!(given.len() == 15 && !given.contains(&live), "{given:?}");
    assert_eq!(stage.release("lost"), Ok(1), "its DEL finds it");
    stage.assert_sound();
}

#[test]
fn calico_10476_a_pool_for_load_balancers_is_enough() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    let mut services = pool("services", "10.9.0.0/28", 30);
    services.allowed_uses = vec![Use::LoadBalancer];
    stage.put(Record::Pool(services));
    let service = |name: &str| {
        let want = Want { count: 1, handle: Some(name.to_owned()), attributes: BTreeMap::new() };
        let owner = Owner::virtual_named("load-balancer");
        AssignRequest::new(owner, IpVersion::V4, Use::LoadBalancer, want)
    };
    for number in 0..5 {
        let given = stage.ask(&service(&format!("lb-{number}"))).unwrap().taken;
        assert!(given.iter().any(|taken| cidr("10.9.0.0/28").contains(taken.address)), "{number}");
    }
    assert!(cidr("10.0.0.0/28").contains(stage.address("n1", "pod").unwrap()), "pods do not get them");
    let mut host = Host::start(&stage, "n1");
    let mut named = add_request("named");
    named.ipv4_pools = vec!["services".to_owned()];
    assert!(refusal(&host.add(&named)).contains("Workload"));
    assert_eq!(stage.release("lb-0"), Ok(1));
    stage.assert_sound();
}

#[test]
fn kubevirt_14320_a_machine_that_migrates_keeps_its_address() {
    let mut cut = 0;
    for fate in [Fate::DiesBefore, Fate::DiesAfter] {
        for call in 1.. {
            let stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
            let handle = vm::handle("net", "default", "db").unwrap();
            let mut wanted = request("n1", &handle, IpVersion::V4);
            wanted.max_per_handle = 1;
            wanted.want.attributes.insert("pod".to_owned(), "source".to_owned());
            let address = stage.ask(&wanted).unwrap().taken[0].address;
            let mut target = wanted.want.attributes.clone();
            target.insert("pod".to_owned(), "target".to_owned());
            target.insert("node".to_owned(), "n2".to_owned());
            let named = |pod: &str| PodName { namespace: "default".to_owned(), name: pod.to_owned() };
            let migrate = async || {
                let announced = vm::announce_target(&stage.wire, &stage.time, &handle, None, &target).await?;
                assert_eq!(announced, [address]);
                vm::promote(&stage.wire, &stage.time, address, &handle, &named("target")).await?;
                vm::forget(&stage.wire, &stage.time, &handle, &named("source"), false).await
            };
            stage.wire.restart();
            stage.wire.at(call, fate);
            let died = stage.play(migrate()).is_none();
            stage.wire.restart();
            if died {
                // Whoever migrates it begins again.
                stage.play(migrate()).unwrap().unwrap();
                cut += 1;
            }
            let holder = stage.play(holder_of(&stage.wire, &stage.time, address)).unwrap().unwrap();
            let Holder::Allocated { active, .. } = holder else { panic!("{fate:?} at {call}: {holder:?}") };
            assert!(named("target").owns(&active), "{fate:?} at {call}: {active:?}");
            assert_eq!(stage.held(), BTreeMap::from([(address, handle.clone())]), "{fate:?} at {call}");
            stage.assert_sound();
            if !died {
                break;
            }
        }
    }
    assert!(cut >= 6, "only {cut} cut short");
}

#[test]
fn sp_2517_a_full_pool_does_not_lock_itself() {
    let stage = Stage::new("10.0.0.0/30", 30, &["n1"]);
    let mut host = Host::start(&stage, "n1");
    for pod in 0..4 {
        host.address(&format!("pod-{pod}")).unwrap();
    }
    // Who waits for an address and who gives one back come together, many times over.
    for round in 0..4 {
        let (late, add) = host.add_event(&add_request(&format!("late-{round}")));
        let (gone, del) = host.del_event(&format!("pod-{round}"));
        host.tell(vec![add, del]);
        assert_eq!(host.replies[&gone], Reply::Deleted, "{round}");
        assert!(host.replies.contains_key(&late), "nobody waits for what came free already");
        assert!(host.address(&format!("late-{round}")).is_some(), "{round}");
    }
    assert_eq!((stage.held().len(), stage.handles().len()), (4, 4));
    stage.assert_sound();
}

#[test]
fn ovn_4922_what_fails_behind_the_address_gives_it_back() {
    let stage = Stage::new("10.0.0.0/30", 30, &["n1"]);
    let mut host = Host::start(&stage, "n1");
    // The gateway cannot be set up each time: the runtime sends the DEL of an ADD that was answered with success.
    for attempt in 0..20 {
        assert!(host.address(&format!("sandbox-{attempt}")).is_some(), "{attempt}");
        assert_eq!(host.del(&format!("sandbox-{attempt}")), Reply::Deleted);
    }
    assert_eq!((stage.held().len(), stage.handles().len()), (0, 0));
}

#[test]
fn ovn_6943_the_second_network_of_a_container_is_released_by_itself() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    let mut host = Host::start(&stage, "n1");
    let mut second = add_request("a");
    second.attachment.network = "second".to_owned();
    second.attachment.interface = "net1".to_owned();
    let first = host.address("a").unwrap();
    let other = addresses(&host.add(&second))[0];
    assert_ne!(first, other);
    let surrender = |network: &str, interface: &str| Surrender {
        handle: format!("{network}.a"),
        interface: Some(interface.to_owned()),
        legacy_handle: None,
    };
    host.tell(vec![Event::Del(RequestId(1_000), surrender("second", "net1"))]);
    assert_eq!(stage.held().into_keys().collect::<Vec<_>>(), [first]);
    host.tell(vec![Event::Del(RequestId(1_001), surrender("net", "eth0"))]);
    assert_eq!((stage.held().len(), stage.handles().len()), (0, 0));
}

#[test]
fn antrea_3384_the_reserved_address_of_a_set_is_its_own_again_after_each_restart() {
    let stage = Stage::new("10.0.0.0/29", 29, &["n1"]);
    let reserved = ip("10.0.0.6");
    stage.reserve("set", &["10.0.0.6/32"]);
    let mut host = Host::start(&stage, "n1");
    let named = |container: &str| {
        let mut named = add_request(container);
        named.requested = Some(reserved);
        named
    };
    for life in 0..3 {
        let container = format!("set-0-{life}");
        assert_eq!(addresses(&host.add(&named(&container))), [reserved], "{life}");
        assert_eq!(host.del(&container), Reply::Deleted);
    }
    let others: Vec<IpAddr> = (0..8).filter_map(|pod| host.address(&format!("pod-{pod}"))).collect();
    assert!(others.len() == 7 && !others.contains(&reserved), "{others:?}");
    // While it cools down nobody gets it, and then the set does.
    stage.configure(|config| config.ip_cooldown_seconds = 30);
    host.see();
    assert_eq!(addresses(&host.add(&named("set-0-3"))), [reserved]);
    assert_eq!(host.del("set-0-3"), Reply::Deleted);
    assert!(refusal(&host.add(&named("set-0-4"))).contains("10.0.0.6"));
    stage.time.pass(SignedDuration::from_secs(32));
    assert_eq!(addresses(&host.add(&named("set-0-5"))), [reserved]);
    stage.assert_sound();
}
