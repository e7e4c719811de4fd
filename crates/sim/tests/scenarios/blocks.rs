//! Calico's blocks, affinities and pools.

use crate::host::{Host, add_request, addresses, refusal};
use crate::stage::{Stage, cidr, ip, pool, put, request};
use api::{AffinityState, AssignmentMode, IpVersion, Owner, Use};
use datastore::{Key, Record};
use futures::FutureExt;
use ipam::agent::{Demand, Reply};
use ipam::assign::assign;
use ipam::assign_address::{AssignAddressError, assign_address};
use ipam::explain::{BlockOutcome, Shortage};
use ipam::plan::AddressRequest;
use ipam::query::utilization_of;
use jiff::SignedDuration;
use sim::peer::{Calico, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

#[test]
fn calico_4861_the_block_limit_says_what_it_is_and_what_helps() {
    let stage = Stage::new("10.0.0.0/27", 30, &["n1"]);
    stage.configure(|config| {
        config.strict_affinity = true;
        config.max_blocks_per_host = 2;
    });
    for pod in 0..8 {
        assert!(stage.address("n1", &format!("pod-{pod}")).is_some());
    }
    let refused = stage.ask(&request("n1", "late", IpVersion::V4)).unwrap();
    assert!(refused.taken.is_empty());
    assert!(
        matches!(refused.explain.shortage, Some(Shortage::BlockLimit { limit: 2, owned: 2 })),
        "{:?}",
        refused.explain.shortage
    );
    let said = refused.explain.to_string();
    assert!(said.contains("has 2 blocks and may have 2") && said.contains("--max-blocks-per-host"), "{said}");
    let mut host = Host::start(&stage, "n1");
    let said = refusal(&host.add(&add_request("late")));
    assert!(said.contains("--max-blocks-per-host"), "{said}");
    stage.release("pod-3").unwrap();
    assert!(stage.address("n1", "late").is_some());
}

#[test]
fn calico_9462_a_node_may_have_twenty_blocks_where_nothing_says_otherwise() {
    let stage = Stage::new("10.0.0.0/26", 32, &["n1"]);
    stage.configure(|config| config.strict_affinity = true);
    let given = (0..25).filter_map(|pod| stage.address("n1", &format!("pod-{pod}"))).count();
    assert_eq!((given, stage.blocks().len()), (20, 20));
}

#[test]
fn calico_11149_single_address_blocks_of_other_nodes_come_back_when_needed() {
    let stage = Stage::new("10.0.0.0/30", 32, &["n1", "n2"]);
    stage.configure(|config| config.strict_affinity = true);
    for pod in 0..4 {
        stage.address("n1", &format!("pod-{pod}")).unwrap();
    }
    for pod in 0..3 {
        stage.release(&format!("pod-{pod}")).unwrap();
    }
    assert_eq!(stage.address("n2", "early"), None, "a minute is n1's");
    stage.time.pass(SignedDuration::from_secs(61));
    assert!(stage.address("n2", "late").is_some());
    stage.assert_sound();
    let of_n1 = stage.held().into_values().filter(|id| id == "pod-3").count();
    assert_eq!(of_n1, 1, "what n1 uses is left");
    // An agent keeps to the same rule.
    let mut host = Host::start(&stage, "n2");
    for pod in ["agent-1", "agent-2"] {
        assert!(host.address(pod).is_some(), "{pod}");
    }
    let taken = |note: &ipam::agent::Note| matches!(note, ipam::agent::Note::Reclaimed { owner: Some(owner), .. } if owner.name == "n1");
    assert_eq!(host.notes.iter().filter(|note| taken(note)).count(), 2);
    assert_eq!(host.address("agent-3"), None, "the last block is in use");
    stage.release("pod-3").unwrap();
    assert!(host.address("agent-4").is_some());
    assert_eq!(stage.affinities().len(), 4, "nothing is left of those of n1");
    stage.assert_sound();
}

#[test]
fn an_agent_leaves_empty_blocks_of_other_nodes_to_them_for_a_minute() {
    let stage = Stage::new("10.0.0.0/30", 32, &["n1", "n2"]);
    for pod in 0..4 {
        stage.address("n1", &format!("pod-{pod}")).unwrap();
    }
    stage.release("pod-0").unwrap();
    stage.release("pod-1").unwrap();
    let mut host = Host::start(&stage, "n2");
    host.address("borrowed").unwrap();
    stage.configure(|config| config.strict_affinity = true);
    let mut host = Host::start(&stage, "n2");
    let said = refusal(&host.add(&add_request("strict")));
    assert!(said.contains("1 empty blocks of other nodes may be had"), "{said}");
    let owners: Vec<_> = stage.blocks().into_iter().map(|block| block.affinity.unwrap().name).collect();
    assert!(owners.iter().all(|owner| owner == "n1"), "{owners:?}");
    stage.assert_sound();
}

#[test]
fn calico_3246_a_borrowed_address_is_said_to_be_one() {
    let stage = Stage::new("10.0.0.0/30", 30, &["n1", "n2"]);
    stage.address("n1", "own").unwrap();
    let assigned = stage.ask(&request("n2", "b", IpVersion::V4)).unwrap();
    assert_eq!(assigned.taken.len(), 1);
    let outcomes: Vec<BlockOutcome> =
        assigned.explain.blocks.listed().iter().map(|tried| tried.outcome).collect();
    assert!(outcomes.contains(&BlockOutcome::Borrowed), "{outcomes:?}");
    let mut host = Host::start(&stage, "n2");
    host.address("c").unwrap();
    let borrowed = host.notes.iter().any(|note| {
        matches!(note, ipam::agent::Note::Assigned { borrowed: true, handle, .. } if handle == "net.c")
    });
    assert!(borrowed, "{:?}", host.notes);
    stage.configure(|config| config.strict_affinity = true);
    assert_eq!(stage.address("n2", "d"), None);
}

#[test]
fn calico_5595_a_tunnel_address_is_never_a_borrowed_one() {
    let stage = Stage::new("10.0.0.0/29", 30, &["n1", "n2", "n3"]);
    stage.address("n1", "a").unwrap();
    stage.address("n3", "b").unwrap();
    // All blocks are others', and young: a pod borrows, a tunnel must not.
    assert!(stage.address("n2", "pod").is_some());
    let mut host = Host::start(&stage, "n2");
    let reply = host.demand(Demand::vxlan_tunnel("n2", Vec::new()));
    assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    let mut wanted = request("n2", "tunnel", IpVersion::V4);
    wanted.intended_use = Use::Tunnel;
    let direct = stage.ask(&wanted).unwrap();
    assert!(direct.taken.is_empty());
    assert!(direct.explain.shortage.is_some(), "and it says why");
    assert_eq!(stage.held().len(), 3);
    // With a block of its own it gets one.
    stage.put(Record::Pool(pool("more", "10.0.1.0/30", 30)));
    let mut host = Host::start(&stage, "n2");
    let tunnel = addresses(&host.demand(Demand::vxlan_tunnel("n2", Vec::new())))[0];
    assert!(cidr("10.0.1.0/30").contains(tunnel));
}

#[test]
fn calico_8435_strict_affinity_is_named_as_the_reason() {
    let stage = Stage::new("10.0.0.0/30", 30, &["n1", "n2"]);
    stage.configure(|config| config.strict_affinity = true);
    stage.address("n1", "a").unwrap();
    let refused = stage.ask(&request("n2", "b", IpVersion::V4)).unwrap();
    assert!(refused.taken.is_empty());
    assert!(matches!(refused.explain.shortage, Some(Shortage::StrictAffinity { .. })));
    let mut host = Host::start(&stage, "n2");
    for said in [refused.explain.to_string(), refusal(&host.add(&add_request("b")))] {
        assert!(said.contains("strict affinity") && said.contains("--strictaffinity=false"), "{said}");
    }
}

#[test]
fn calico_6486_two_nodes_never_both_have_a_confirmed_claim_on_a_block() {
    let mut moments = 0;
    for call in 1.. {
        // One block only: whoever comes second finds it taken and borrows.
        let stage = Stage::new("10.0.0.0/30", 30, &["n1", "n2"]);
        let time = stage.time.clone();
        stage.wire.before(call, move |memory| {
            let calico = Calico { store: memory, clock: &time };
            let wanted = Wanted::one("n2", IpVersion::V4, "theirs");
            let answer = calico.auto_assign(&wanted).now_or_never().unwrap();
            assert_eq!(answer.addresses.len(), 1);
        });
        let ours = stage.address("n1", "ours");
        assert!(ours.is_some(), "a claim that is lost ends in a borrowed address");
        stage.assert_sound();
        let confirmed: BTreeSet<Owner> = stage
            .affinities()
            .into_iter()
            .filter(|seen| seen.state == AffinityState::Confirmed)
            .map(|seen| seen.owner)
            .collect();
        assert_eq!(confirmed.len(), 1, "before call {call}");
        if stage.wire.calls() < call {
            break;
        }
        moments += 1;
    }
    // The other way round: Calico is in the middle, we come in whole.
    for call in 1..=15 {
        let stage = Stage::new("10.0.0.0/30", 30, &["n1", "n2"]);
        let time = stage.time.clone();
        stage.wire.before(call, move |memory| {
            let wanted = request("n1", "ours", IpVersion::V4);
            assert_eq!(assign(memory, &time, &wanted).now_or_never().unwrap().unwrap().taken.len(), 1);
        });
        let calico = Calico { store: &stage.wire, clock: &stage.time };
        let answer = stage.play(calico.auto_assign(&Wanted::one("n2", IpVersion::V4, "theirs"))).unwrap();
        assert_eq!(answer.addresses.len(), 1, "{:?}", answer.failure);
        stage.assert_sound();
        moments += 1;
    }
    assert!(moments >= 20, "only {moments} moments");
}

#[test]
fn calico_10778_a_new_block_size_never_makes_overlapping_blocks() {
    for (before, after) in [(26, 25), (25, 26), (30, 28), (28, 30)] {
        let mut moments = 0;
        for call in 1.. {
            let stage = Stage::new("10.0.0.0/24", before, &["n1", "n2"]);
            let old = stage.address("n1", "old").unwrap();
            stage.wire.restart();
            // The pool is deleted and made anew while a node claims.
            stage.wire.before(call, move |memory| {
                let key = Key::Pool("pool".to_owned());
                let found = datastore::Datastore::get(memory, &key).now_or_never().unwrap().unwrap().unwrap();
                let write = datastore::Write::Delete(found.record, found.version);
                datastore::Datastore::commit(memory, &[], &[write]).now_or_never().unwrap().unwrap();
                put(memory, Record::Pool(pool("pool", "10.0.0.0/24", after)));
            });
            let new = stage.address("n2", "new");
            stage.assert_sound();
            let third = stage.address("n2", "third");
            let mut host = Host::start(&stage, "n1");
            let fourth = host.address("fourth");
            stage.assert_sound();
            let given: BTreeSet<IpAddr> = [Some(old), new, third, fourth].into_iter().flatten().collect();
            assert_eq!(given.len(), 4, "/{before} to /{after} before call {call}");
            assert_eq!(stage.held().len(), 4);
            if stage.wire.calls() < call {
                break;
            }
            moments += 1;
            if moments > 12 {
                break;
            }
        }
    }
}

#[test]
fn calico_10551_a_full_first_pool_costs_a_node_nothing() {
    let costs = |full: bool| {
        let stage = Stage::new("10.0.0.0/22", 28, &["n1", "n2", "n3"]);
        stage.configure(|config| config.max_blocks_per_host = 64);
        stage.put(Record::Pool(pool("second", "10.1.0.0/22", 28)));
        if full {
            let mut wanted = request("n1", "everything", IpVersion::V4);
            wanted.want.count = 1024;
            wanted.pools = vec![cidr("10.0.0.0/22")];
            assert_eq!(stage.ask(&wanted).unwrap().taken.len(), 1024);
        }
        stage.wire.restart();
        let direct = stage.address("n2", "a").unwrap();
        let direct_cost = stage.wire.counts();
        let mut host = Host::start(&stage, "n3");
        stage.wire.restart();
        let by_agent = host.address("b").unwrap();
        assert_eq!(cidr("10.1.0.0/22").contains(direct), full);
        assert_eq!(cidr("10.1.0.0/22").contains(by_agent), full);
        (direct_cost, stage.wire.counts())
    };
    assert_eq!(costs(true), costs(false));
}

#[test]
fn calico_11353_pools_for_named_requests_only_are_given_as_the_reason_at_once() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    let mut manual = pool("six", "fd00::/120", 122);
    manual.assignment_mode = AssignmentMode::Manual;
    stage.put(Record::Pool(manual));
    let mut host = Host::start(&stage, "n1");
    let mut both = add_request("a");
    both.ipv6 = 1;
    let said = refusal(&host.add(&both));
    assert!(said.contains("for requests that name it only"), "{said}");
    stage.assert_sound();
    assert_eq!((stage.held().len(), stage.handles().len()), (0, 0), "the IPv4 address is not lost either");
    let mut named = add_request("b");
    named.ipv6 = 1;
    named.ipv6_pools = vec!["six".to_owned()];
    named.ipv4_pools = vec!["pool".to_owned()];
    assert_eq!(addresses(&host.add(&named)).len(), 2);
}

#[test]
fn ctl_797_reserved_addresses_are_never_given_out_by_themselves() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
    stage.reserve("ends", &["10.0.0.0/32", "10.0.0.15/32"]);
    stage.reserve("middle", &["10.0.0.6/31", "10.0.0.6/32"]);
    let mut host = Host::start(&stage, "n2");
    let mut given = BTreeSet::new();
    for pod in 0..8 {
        given.extend(stage.address("n1", &format!("direct-{pod}")));
        given.extend(host.address(&format!("agent-{pod}")));
    }
    let free: BTreeSet<IpAddr> = (0..16)
        .filter(|last| ![0, 6, 7, 15].contains(last))
        .map(|last| ip(&format!("10.0.0.{last}")))
        .collect();
    assert_eq!(given, free);
    // Asked for by name, one may be had.
    let wanted = AddressRequest {
        owner: Owner::host("n1"),
        address: ip("10.0.0.6"),
        intended_use: None,
        handle: Some("named".to_owned()),
        attributes: BTreeMap::new(),
        max_per_handle: 0,
    };
    let taken = stage.play(assign_address(&stage.wire, &stage.time, &wanted)).unwrap();
    assert!(taken.is_ok(), "{taken:?}");
}

#[test]
fn nv_154_a_block_that_is_wholly_reserved_is_never_cut() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1", "n2"]);
    stage.reserve("two blocks", &["10.0.0.4/30", "10.0.0.8/31", "10.0.0.10/31"]);
    let mut host = Host::start(&stage, "n2");
    let mut given = 0;
    for pod in 0..10 {
        given += usize::from(stage.address("n1", &format!("direct-{pod}")).is_some());
        given += usize::from(host.address(&format!("agent-{pod}")).is_some());
    }
    assert_eq!(given, 8);
    let cut: Vec<String> = stage.blocks().iter().map(|block| block.cidr.to_string()).collect();
    assert_eq!(cut, ["10.0.0.0/30", "10.0.0.12/30"]);
}

#[test]
fn calico_13331_reserved_and_cooling_addresses_are_not_counted_as_free() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    stage.configure(|config| config.ip_cooldown_seconds = 30);
    stage.reserve("some", &["10.0.0.12/30", "10.0.0.11/32"]);
    let free = || {
        let (counted, _) = stage.play(utilization_of(&stage.wire)).unwrap().unwrap();
        counted.pools[0].count.free
    };
    assert_eq!(free(), 11);
    stage.address("n1", "a").unwrap();
    stage.address("n1", "b").unwrap();
    assert_eq!(free(), 9);
    stage.release("a").unwrap();
    assert_eq!(free(), 9, "what cools down is not free (aws-vpc-cni#1700)");
}

#[test]
fn calico_13301_an_address_asked_for_by_name_must_be_of_a_pool_for_its_use() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    let mut balancers = pool("balancers", "10.9.0.0/28", 30);
    balancers.allowed_uses = vec![Use::LoadBalancer];
    stage.put(Record::Pool(balancers));
    let wanted = AddressRequest {
        owner: Owner::host("n1"),
        address: ip("10.9.0.5"),
        intended_use: Some(Use::Workload),
        handle: Some("a".to_owned()),
        attributes: BTreeMap::new(),
        max_per_handle: 0,
    };
    let refused = stage.play(assign_address(&stage.wire, &stage.time, &wanted)).unwrap().unwrap_err().error;
    assert!(matches!(refused, AssignAddressError::WrongUse { .. }), "{refused:?}");
    let mut host = Host::start(&stage, "n1");
    let mut named = add_request("b");
    named.requested = Some(ip("10.9.0.5"));
    assert!(matches!(host.add(&named), Reply::Failed(_)));
    assert_eq!(stage.held().len(), 0);
}

#[test]
fn calico_6968_a_released_address_rests_before_anybody_gets_it() {
    let stage = Stage::new("10.0.0.0/30", 30, &["n1", "n2"]);
    stage.configure(|config| config.ip_cooldown_seconds = 30);
    let mut own = Host::start(&stage, "n1");
    let mut other = Host::start(&stage, "n2");
    let first = own.address("job-0").unwrap();
    for job in 1..4 {
        own.address(&format!("job-{job}")).unwrap();
    }
    assert_eq!(own.del("job-0"), Reply::Deleted);
    // It is the only one that is not in use: nobody gets it, neither the owner of the block nor one that would borrow.
    assert_eq!((own.address("next"), other.address("next-other")), (None, None));
    assert_eq!((stage.address("n1", "direct"), stage.address("n2", "direct-other")), (None, None));
    stage.time.pass(SignedDuration::from_secs(31));
    assert_eq!(own.address("late"), Some(first));
    stage.assert_sound();
}

#[test]
fn cil_37746_blocks_of_a_pool_that_is_no_longer_for_the_node_are_given_back() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    stage.put(Record::Pool(pool("second", "10.1.0.0/28", 30)));
    stage.address("n1", "a").unwrap();
    stage.change_pool("pool", |pool| pool.node_selector = "zone == 'b'".to_owned());
    let moved = stage.address("n1", "b").unwrap();
    assert!(cidr("10.1.0.0/28").contains(moved), "new ones come from the pool that is for it");
    assert_eq!(stage.blocks().len(), 2, "what is in use stays");
    stage.release("a").unwrap();
    let left: Vec<bool> =
        stage.blocks().iter().map(|block| cidr("10.1.0.0/28").contains_cidr(block.cidr)).collect();
    assert_eq!((left, stage.affinities().len()), (vec![true], 1), "and goes with its last address");
}

#[test]
fn cil_37746_an_agent_gives_blocks_back_whose_pool_is_no_longer_for_its_node() {
    let stage = Stage::new("10.0.0.0/28", 30, &["n1"]);
    stage.put(Record::Pool(pool("second", "10.1.0.0/28", 30)));
    let mut host = Host::start(&stage, "n1");
    for pod in 0..5 {
        host.address(&format!("pod-{pod}")).unwrap();
    }
    for pod in 0..4 {
        assert_eq!(host.del(&format!("pod-{pod}")), Reply::Deleted);
    }
    assert_eq!(stage.blocks().len(), 2, "an empty block stays with its node");
    stage.change_pool("pool", |pool| pool.node_selector = "zone == 'b'".to_owned());
    let moved = host.address("moved").unwrap();
    assert!(cidr("10.1.0.0/28").contains(moved));
    let first = |block: &api::Block| cidr("10.0.0.0/28").contains_cidr(block.cidr);
    assert_eq!(stage.blocks().iter().filter(|block| first(block)).count(), 1, "what is in use stays");
    assert_eq!(host.del("pod-4"), Reply::Deleted);
    assert_eq!(
        stage.blocks().iter().filter(|block| first(block)).count(),
        0,
        "and goes with its last address"
    );
    assert_eq!((stage.blocks().len(), stage.affinities().len()), (1, 1));
    stage.assert_sound();
}

#[test]
fn cil_41986_a_pool_added_later_is_used_at_once() {
    let stage = Stage::new("10.0.0.0/30", 30, &["n1"]);
    let mut host = Host::start(&stage, "n1");
    for pod in 0..4 {
        host.address(&format!("pod-{pod}")).unwrap();
    }
    assert_eq!((host.address("early"), stage.address("n1", "early-direct")), (None, None));
    stage.put(Record::Pool(pool("second", "10.1.0.0/28", 30)));
    assert!(host.address("late").is_some());
    assert!(stage.address("n1", "late-direct").is_some());
}

#[test]
fn cil_47910_an_address_that_was_freed_elsewhere_is_found() {
    let stage = Stage::new("10.0.0.0/29", 30, &["n1", "n2"]);
    for pod in 0..8 {
        let node = if pod < 4 { "n1" } else { "n2" };
        stage.address(node, &format!("pod-{pod}")).unwrap();
    }
    let mut host = Host::start(&stage, "n1");
    assert_eq!((host.address("early"), stage.address("n1", "early-direct")), (None, None));
    stage.release("pod-6").unwrap();
    stage.release("pod-7").unwrap();
    assert!(host.address("late").is_some());
    assert!(stage.address("n1", "late-direct").is_some());
    assert_eq!(stage.held().len(), 8);
}
