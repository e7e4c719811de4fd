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
