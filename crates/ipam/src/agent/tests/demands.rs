//! Demands: what may be asked for besides one address.

use super::*;

#[test]
fn requested_address_is_assigned_or_refused_by_name() {
    let mut bench = bench_on(&store(), "n1");
    let mut ask = |container: &str, address: &str| {
        let demand = AddRequest { requested: Some(address.parse().unwrap()), ..request(container) };
        bench.requests += 1;
        let id = bench.requests;
        let demand = Demand::pod(&demand, "n1", bench.now).unwrap();
        bench.run(vec![Event::Add(RequestId(id), demand)]);
        bench.replies[&id].clone()
    };
    let Reply::Added(taken) = ask("a", "10.0.0.21") else { panic!() };
    assert_eq!(taken[0].with_block_prefix(), "10.0.0.21/28");
    assert!(refusal(ask("b", "10.0.0.21")).message.contains("already assigned"));
    assert_eq!(refusal(ask("c", "172.16.0.1")).code, BAD_REQUEST);
    bench.check();
}

#[test]
fn requested_address_makes_no_block_across_those_of_another_size() {
    let store = store();
    let small: Cidr = "10.0.0.16/30".parse().unwrap();
    put(&store, Record::Block(block::new_block(small, &Owner::host("n2"), Timestamp::UNIX_EPOCH)));
    let mut bench = bench_on(&store, "n1");
    let mut ask = |container: &str, address: &str| {
        let demand = AddRequest { requested: Some(address.parse().unwrap()), ..request(container) };
        bench.requests += 1;
        let id = bench.requests;
        let demand = Demand::pod(&demand, "n1", bench.now).unwrap();
        bench.run(vec![Event::Add(RequestId(id), demand)]);
        bench.replies[&id].clone()
    };
    assert!(refusal(ask("a", "10.0.0.21")).message.contains("overlaps block 10.0.0.16/30"));
    let Reply::Added(taken) = ask("b", "10.0.0.18") else { panic!() };
    assert_eq!(taken[0].with_block_prefix(), "10.0.0.18/30");
}

#[test]
fn attributes_say_whose_address_it_is_and_when_it_was_taken() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("a");
    let blocks = bench.blocks();
    let (_, attribute) = block::allocated(&blocks[0]).next().unwrap();
    let text = |key: &str| attribute.secondary.get(key).map(String::as_str);
    assert_eq!(text("timestamp"), Some("2026-09-23 04:00:09.5 +0000 UTC"));
    assert_eq!((text("node"), text("pod"), text("interface")), (Some("n1"), Some("a"), Some("eth0")));
    let endpoints: Vec<_> = bench.agent.view().endpoints().collect();
    assert_eq!(endpoints.len(), 1);
    assert_eq!(endpoints[0].1, api::attachment::host_interface("default", "a"));
}

#[test]
fn requests_that_make_no_handle_are_refused() {
    for container in ["", "a/b", "a b"] {
        assert_eq!(
            Demand::pod(&request(container), "n1", Timestamp::UNIX_EPOCH).unwrap_err().code,
            BAD_REQUEST
        );
    }
    let none = AddRequest { ipv4: 0, ..request("a") };
    assert_eq!(Demand::pod(&none, "n1", Timestamp::UNIX_EPOCH).unwrap_err().code, BAD_REQUEST);
    let six = Demand::pod(&AddRequest { ipv6: 1, ..request("a") }, "n1", Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(six.versions, [IpVersion::V4, IpVersion::V6]);
}

#[test]
fn dual_stack_request_that_gets_one_family_only_keeps_nothing() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("warm");
    let demand = Demand::pod(&AddRequest { ipv6: 1, ..request("a") }, "n1", bench.now).unwrap();
    bench.run(vec![Event::Add(RequestId(77), demand)]);
    assert!(matches!(bench.replies[&77], Reply::Failed(_)));
    assert_eq!(bench.handles().len(), 1);
    assert_eq!(bench.agent.waiting(), 0);
    bench.check();
}

fn ask(bench: &mut Bench, demand: Demand) -> Reply {
    bench.requests += 1;
    let id = bench.requests;
    bench.run(vec![Event::Add(RequestId(id), demand)]);
    bench.replies[&id].clone()
}

fn of_interface(interface: &str) -> BTreeMap<String, String> {
    [("node", "n1"), (INTERFACE, interface)].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

#[test]
fn several_addresses_are_one_commit_and_one_write_of_the_handle() {
    let mut bench = bench_on(&store(), "n1");
    let demand = Demand::new("h", vec![IpVersion::V4; 3], of_interface("eth0"));
    let Reply::Added(taken) = ask(&mut bench, demand.clone()) else { panic!() };
    assert_eq!(taken.iter().map(|taken| taken.address).collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(bench.commits.len(), 1);
    assert_eq!(bench.commits[0].len(), 3, "affinity, handle, block");
    let Reply::Added(again) = ask(&mut bench, demand) else { panic!() };
    let addresses =
        |taken: &[crate::block::Taken]| taken.iter().map(|taken| taken.address).collect::<Vec<_>>();
    assert_eq!(addresses(&again), addresses(&taken));
    assert_eq!(bench.commits.len(), 2, "all of them renewed by one write");
    bench.check();
    // More than a block has are of several.
    let Reply::Added(many) = ask(&mut bench, Demand::new("i", vec![IpVersion::V4; 20], of_interface("eth0")))
    else {
        panic!()
    };
    assert_eq!(many.len(), 20);
    bench.check();
}

#[test]
fn request_for_more_than_there_is_keeps_nothing() {
    let mut bench = bench_on(&store(), "n1");
    let kept = bench.address("kept");
    let demand = Demand::new("h", vec![IpVersion::V4; 100], of_interface("eth0"));
    assert_eq!(refusal(ask(&mut bench, demand)).code, NOT_SERVED);
    assert_eq!(bench.handles().len(), 1);
    assert_eq!(bench.address("kept"), kept);
    bench.check();
}

#[test]
fn capped_handle_is_answered_what_it_holds_whichever_interface_asks() {
    let mut bench = bench_on(&store(), "n1");
    let capped = |interface: &str| Demand {
        max_per_handle: 1,
        ..Demand::new("vm", vec![IpVersion::V4], of_interface(interface))
    };
    let Reply::Added(first) = ask(&mut bench, capped("eth0")) else { panic!() };
    let Reply::Added(second) = ask(&mut bench, capped("eth1")) else { panic!() };
    assert_eq!(first[0].address, second[0].address);
    // Another node, by the handle's record alone.
    let mut other = bench_on(&bench.store.clone(), "n2");
    let Reply::Added(third) = ask(&mut other, capped("eth0")) else { panic!() };
    assert_eq!(first[0].address, third[0].address);
    let more = Demand { versions: vec![IpVersion::V4; 2], ..capped("eth0") };
    assert_eq!(refusal(ask(&mut other, more)).code, TRY_AGAIN);
    let particular = Demand { requested: Some("10.0.0.21".parse().unwrap()), ..capped("eth0") };
    assert!(refusal(ask(&mut other, particular)).message.contains("may hold 1"));
    other.check();
}

#[test]
fn a_count_that_a_crash_left_too_high_does_not_lock_a_capped_handle_out_of_own_blocks() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("warm");
    let cidr = bench.blocks()[0].cidr;
    put(
        &bench.store,
        Record::Handle(Handle { id: "vm".to_owned(), blocks: [(cidr, 1)].into(), deleted: false }),
    );
    let demand = Demand { max_per_handle: 1, ..Demand::new("vm", vec![IpVersion::V4], of_interface("eth0")) };
    assert!(matches!(ask(&mut bench, demand), Reply::Added(_)));
    bench.check();
}

#[test]
fn what_was_held_before_stays_when_a_wider_request_fails() {
    let mut bench = bench_on(&store(), "n1");
    let held = bench.address("a");
    let demand = Demand::pod(&AddRequest { ipv6: 1, ..request("a") }, "n1", bench.now).unwrap();
    assert!(matches!(ask(&mut bench, demand), Reply::Failed(_)));
    assert_eq!(bench.agent.waiting(), 0);
    assert_eq!(bench.address("a"), held);
    bench.check();
}

#[test]
fn pools_are_asked_for_by_name_or_by_range_and_unknown_ones_refused() {
    let store = store();
    let mut second = Pool::with_defaults("second", "10.1.0.0/26".parse().unwrap());
    second.allowed_uses = vec![api::Use::Tunnel];
    put(&store, Record::Pool(second));
    let mut third = Pool::with_defaults("third", "10.2.0.0/26".parse().unwrap());
    third.assignment_mode = api::AssignmentMode::Manual;
    put(&store, Record::Pool(third));
    let mut bench = bench_on(&store, "n1");
    let of = |pool: &str| Demand {
        pools: vec![pool.to_owned()],
        ..Demand::new(format!("h-{}", pool.len()), vec![IpVersion::V4], of_interface("eth0"))
    };
    let Reply::Added(taken) = ask(&mut bench, of("third")) else { panic!() };
    assert!("10.2.0.0/26".parse::<Cidr>().unwrap().contains(taken[0].address));
    assert!(matches!(ask(&mut bench, of("10.2.0.0/26")), Reply::Added(_)));
    assert_eq!(refusal(ask(&mut bench, of("nowhere"))).code, BAD_REQUEST);
    assert!(refusal(ask(&mut bench, of("second"))).message.contains("Workload"));
    let tunnel = Demand { intended_use: api::Use::Tunnel, ..of("second") };
    assert!(matches!(ask(&mut bench, tunnel), Reply::Added(_)));
    bench.check();
}

fn windows(handle: &str) -> Demand {
    Demand {
        reserved: Some(crate::host_reserved::HostReserved::windows()),
        ..Demand::new(handle, vec![IpVersion::V4], of_interface("eth0"))
    }
}

/// Strict affinity, without which a Windows node gets nothing.
fn strict() -> Memory {
    let store = store();
    put(&store, Record::Config(IpamConfig { strict_affinity: true, ..IpamConfig::default() }));
    store
}

#[test]
fn windows_node_is_refused_without_strict_affinity_and_never_borrows() {
    let mut bench = bench_on(&store(), "n1");
    let error = refusal(ask(&mut bench, windows("h")));
    assert!(error.message.contains("--strictaffinity=true"), "{error:?}");
    assert!(bench.commits.is_empty());
    let store = strict();
    let mut other = bench_on(&store, "n2");
    for number in 0..49 {
        other.address(&format!("o{number}"));
    }
    let error = refusal(ask(&mut bench_on(&store, "n1"), windows("h")));
    assert!(error.message.contains("strict affinity"), "{error:?}");
}

#[test]
fn request_has_a_block_limit_of_its_own() {
    let mut bench = bench_on(&strict(), "n1");
    let one = |handle: &str| Demand { max_blocks: 1, ..windows(handle) };
    for number in 0..12 {
        assert!(matches!(ask(&mut bench, one(&format!("h{number}"))), Reply::Added(_)), "{number}");
    }
    let error = refusal(ask(&mut bench, one("late")));
    assert!(error.message.contains("this node has 1 blocks and may have 1"), "{error:?}");
    assert!(matches!(ask(&mut bench, windows("other")), Reply::Added(_)), "others may have more");
    assert_eq!(bench.blocks().len(), 2);
}

#[test]
fn host_that_keeps_ordinals_makes_blocks_without_them() {
    let mut bench = bench_on(&strict(), "n1");
    let Reply::Added(taken) = ask(&mut bench, windows("h")) else { panic!() };
    assert_eq!(taken[0].ordinal, api::Ordinal(3));
    let found = bench.blocks().remove(0);
    assert_eq!(found.unallocated.len(), 11);
    assert_eq!(bench.address("plain"), found.cidr.address(api::Ordinal(4)).unwrap());
}

#[test]
fn refusal_says_what_could_come_free() {
    let store = store();
    let config = IpamConfig { strict_affinity: true, ip_cooldown_seconds: 60, ..IpamConfig::default() };
    put(&store, Record::Config(config));
    let (mut one, mut two) = (bench_on(&store, "n1"), bench_on(&store, "n2"));
    two.address("other");
    one.run(Vec::new());
    for number in 0..48 {
        one.address(&format!("c{number}"));
    }
    one.del("c0");
    let (id, event) = one.add_event("late");
    one.run(vec![event]);
    let [explain] = one.accounts[&id].as_slice() else { panic!("{:?}", one.accounts) };
    assert_eq!((explain.relief.cooling, explain.relief.elsewhere), (1, 15));
}
