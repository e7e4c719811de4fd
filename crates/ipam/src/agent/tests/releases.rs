//! Releases: what is given back, and of which blocks.

use super::*;

#[test]
fn del_gives_the_address_back_in_one_commit_and_again_is_no_error() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("a");
    bench.commits.clear();
    assert_eq!(bench.del("a"), Reply::Deleted);
    assert_eq!(bench.commits.len(), 1);
    assert!(bench.reads.is_empty());
    assert_eq!(bench.handles(), []);
    assert_eq!(bench.blocks()[0].unallocated.len(), 16);
    assert_eq!(bench.del("a"), Reply::Deleted);
    bench.check();
}

#[test]
fn an_address_that_cools_down_is_not_its_former_handles() {
    let store = store();
    put(&store, Record::Config(IpamConfig { ip_cooldown_seconds: 3600, ..IpamConfig::default() }));
    let mut bench = bench_on(&store, "n1");
    let first = bench.address("a");
    // Written by somebody who left the handle in.
    let mut edited = bench.blocks().remove(0);
    for attribute in std::sync::Arc::make_mut(&mut edited.attributes) {
        std::sync::Arc::make_mut(attribute).released_at = Some(bench.now);
    }
    put(&store, Record::Block(edited));
    bench.run(Vec::new());
    assert_ne!(bench.address("a"), first);
    assert_eq!(bench.del("a"), Reply::Deleted);
}

#[test]
fn what_cools_goes_on_cooling_where_nobody_ever_understood_for_how_long() {
    let store = store();
    put(&store, Record::Config(IpamConfig { ip_cooldown_seconds: 3600, ..IpamConfig::default() }));
    let mut bench = bench_on(&store, "n1");
    for container in ["a", "b", "c", "d"] {
        bench.address(container);
    }
    assert_eq!(bench.del("a"), Reply::Deleted);
    assert_eq!(bench.blocks()[0].unallocated.len(), 12);
    // Started again while the configuration cannot be understood.
    bench.blind = true;
    bench.agent = Agent::new("n1");
    for scope in bench.agent.scopes() {
        let mut listing = block_on(store.list(&scope)).unwrap();
        if scope.kind() == Kind::Config {
            listing.items.clear();
            listing.unreadable = vec![Key::Config];
        }
        bench.run(vec![Event::Changed(scope.kind(), Change::Reset(listing))]);
    }
    assert_eq!(bench.del("b"), Reply::Deleted);
    assert_eq!(bench.blocks()[0].unallocated.len(), 12, "neither what cooled nor what was released is free");
    // Corrected: what was released meanwhile has its time too.
    let stored = block_on(store.get(&Key::Config)).unwrap().unwrap();
    bench.run(vec![Event::Changed(Kind::Config, Change::Put(stored))]);
    assert_eq!(bench.del("c"), Reply::Deleted);
    assert_eq!(bench.blocks()[0].unallocated.len(), 12);
    bench.now += SignedDuration::from_hours(2);
    assert_eq!(bench.del("d"), Reply::Deleted);
    assert_eq!(bench.blocks()[0].unallocated.len(), 15);
}

#[test]
fn del_by_a_new_agent_reads_the_handle_and_releases() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("a");
    let mut after = bench_on(&bench.store.clone(), "n1");
    assert_eq!(after.del("a"), Reply::Deleted);
    assert_eq!(after.reads, [Key::Handle("net.a".to_owned())]);
    assert_eq!(after.handles(), []);
    after.check();
}

#[test]
fn del_whose_handle_is_missing_looks_through_the_own_blocks() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("a");
    let stored = block_on(bench.store.get(&Key::Handle("net.a".to_owned()))).unwrap().unwrap();
    block_on(bench.store.commit(&[], &[Write::Delete(stored.record, stored.version)])).unwrap();
    let mut after = bench_on(&bench.store.clone(), "n1");
    assert_eq!(after.del("a"), Reply::Deleted);
    after.check();
    assert_eq!(after.blocks()[0].unallocated.len(), 16);
}

#[test]
fn del_ends_an_add_that_has_written_nothing() {
    let mut bench = bench_on(&store(), "n1");
    bench.agent = Agent::new("n1");
    let (add, event) = bench.add_event("a");
    bench.agent.step(bench.now, event);
    let (_, del) = bench.del_event("a");
    let effects = bench.agent.step(bench.now, del);
    assert!(effects.iter().any(|effect| {
        matches!(effect, Effect::Reply { request, reply: Reply::Failed(_) } if request.0 == add)
    }));
}

#[test]
fn handle_of_the_old_form_is_released_where_the_new_one_is_not_known() {
    let mut bench = bench_on(&store(), "n1");
    let demand = Demand::new("default.web-0", vec![IpVersion::V4], BTreeMap::new());
    bench.run(vec![Event::Add(RequestId(70), demand)]);
    let surrender = Surrender {
        handle: "net.c".to_owned(),
        interface: Some("eth0".to_owned()),
        legacy_handle: Some("default.web-0".to_owned()),
    };
    bench.run(vec![Event::Del(RequestId(71), surrender)]);
    assert_eq!(bench.replies[&71], Reply::Deleted);
    assert_eq!(bench.handles(), []);
    bench.check();
}

#[test]
fn interfaces_of_one_container_are_given_back_one_by_one() {
    let mut bench = bench_on(&store(), "n1");
    for interface in ["eth0", "eth1"] {
        let attachment = Attachment {
            network: "net".to_owned(),
            container: "c".to_owned(),
            interface: interface.to_owned(),
        };
        let demand = Demand::pod(&AddRequest { attachment, ..request("c") }, "n1", bench.now).unwrap();
        bench.requests += 1;
        bench.run(vec![Event::Add(RequestId(bench.requests), demand)]);
    }
    assert_eq!(bench.blocks()[0].unallocated.len(), 14);
    assert_eq!(bench.del("c"), Reply::Deleted);
    assert_eq!(bench.blocks()[0].unallocated.len(), 15);
    bench.check();
}

#[test]
fn count_without_addresses_is_taken_away_after_the_block_was_read() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("warm");
    let cidr = bench.blocks()[0].cidr;
    put(
        &bench.store,
        Record::Handle(Handle { id: "net.a".to_owned(), blocks: [(cidr, 1)].into(), deleted: false }),
    );
    assert_eq!(bench.del("a"), Reply::Deleted);
    assert_eq!(bench.reads, [Key::Handle("net.a".to_owned()), Key::Block(cidr)]);
    let written: Vec<Key> = bench.commits[1].iter().map(Write::key).collect();
    assert_eq!(written, [Key::Block(cidr), Key::Handle("net.a".to_owned())]);
    bench.check();
}

#[test]
fn add_after_a_del_of_the_same_container_waits_for_it() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("a");
    let (_, del) = bench.del_event("a");
    let (id, add) = bench.add_event("a");
    bench.commits.clear();
    bench.run(vec![del, add]);
    assert!(matches!(bench.replies[&id], Reply::Added(_)));
    assert_eq!(bench.commits.len(), 2, "the release, then the new address");
    bench.check();
}

#[test]
fn count_is_not_taken_away_when_the_block_comes_after_all() {
    let store = store();
    let mut bench = bench_on(&store, "n1");
    let (_, add) = bench.add_event("a");
    let effects = bench.agent.step(bench.now, add);
    let [Effect::Commit { ticket, writes, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    // The request is given up: the claim has no answer, and what it depends on cannot be read.
    let lost = CommitError::Unknown { key: writes[0].key(), reason: "gone".to_owned() };
    let mut reads = bench.agent.step(bench.now, Event::Committed(*ticket, Err(lost)));
    let gone = ReadError::Unavailable { what: "affinity".to_owned(), reason: "gone".to_owned() };
    let mut left = Vec::new();
    while let Some(effect) = reads.pop() {
        match effect {
            Effect::Read { ticket, key: Key::Block(_) } => left.push(Event::Read(ticket, Ok(None))),
            Effect::Read { ticket, key: Key::Affinity(..) } => {
                left.push(Event::Read(ticket, Err(gone.clone())));
            }
            Effect::Read { ticket, key } => left.push(Event::Read(ticket, block_on(store.get(&key)))),
            _ => {}
        }
    }
    // It arrives only now, after the block was looked for and before the handle is.
    block_on(store.commit(&[], writes)).unwrap();
    bench.blind = true;
    bench.run(left);
    assert_eq!(bench.agent.waiting(), 0);
    bench.check();
    // Once the agent has seen it, the runtime's own DEL gives it back.
    bench.blind = false;
    assert_eq!(bench.del("a"), Reply::Deleted);
    bench.check();
    assert_eq!(bench.handles(), []);
}
