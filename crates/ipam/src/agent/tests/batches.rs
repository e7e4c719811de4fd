//! Batches: who shares a commit, and what becomes of each when it fails.

use super::*;

#[test]
fn first_add_is_one_commit_and_so_is_the_next() {
    let mut bench = bench_on(&store(), "n1");
    let first = bench.address("a");
    let [writes] = bench.commits.as_slice() else { panic!("{:?}", bench.commits) };
    let kinds: Vec<Kind> = writes.iter().map(|write| write.key().kind()).collect();
    assert_eq!(kinds, [Kind::Affinity, Kind::Handle, Kind::Block]);
    let Write::Pass { passing, seen: None, .. } = &writes[0] else { panic!("{writes:?}") };
    assert!(matches!(&**passing, Record::Affinity(claim) if claim.state == AffinityState::Pending));
    let second = bench.address("b");
    assert_ne!(first, second);
    assert_eq!(bench.commits.len(), 2);
    assert!(bench.reads.is_empty());
    bench.check();
    let claims = block_on(bench.store.list(&Scope::AffinitiesOf(Owner::host("n1")))).unwrap().items;
    let [claim] = claims.as_slice() else { panic!("{claims:?}") };
    assert!(matches!(&claim.record, Record::Affinity(claim) if claim.state == AffinityState::Confirmed));
}

#[test]
fn requests_that_arrive_together_share_one_block_write() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("warm");
    bench.commits.clear();
    let events: Vec<(u64, Event)> = (0..10).map(|number| bench.add_event(&format!("pod{number}"))).collect();
    bench.run(events.iter().map(|(_, event)| event.clone()).collect());
    assert_eq!(bench.block_writes(), 1);
    let addresses: BTreeSet<IpAddr> = events
        .iter()
        .map(|(id, _)| match &bench.replies[id] {
            Reply::Added(taken) => taken[0].address,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(addresses.len(), 10);
    bench.check();
}

#[test]
fn thirty_two_cold_requests_are_two_claims_with_their_addresses_in_them() {
    let mut bench = bench_on(&store(), "n1");
    let events: Vec<Event> = (0..32).map(|number| bench.add_event(&format!("pod{number}")).1).collect();
    bench.run(events);
    assert!(bench.replies.values().all(|reply| matches!(reply, Reply::Added(_))), "{:?}", bench.replies);
    assert_eq!(bench.block_writes(), 2);
    assert_eq!(bench.commits.len(), 2);
    bench.check();
}

#[test]
fn add_again_answers_the_same_address_and_writes_nothing() {
    let mut bench = bench_on(&store(), "n1");
    let first = bench.address("a");
    let block = bench.blocks()[0].cidr;
    let written = bench.commits.len();
    assert_eq!(bench.address("a"), first);
    assert_eq!(bench.commits.len(), written);
    assert_eq!(bench.reads, [Key::Block(block)]);
    // So does a new agent, which knows nothing but the store.
    let mut after = bench_on(&bench.store.clone(), "n1");
    assert_eq!(after.address("a"), first);
    assert!(after.commits.is_empty());
    assert_eq!(after.reads, [Key::Handle("net.a".to_owned()), Key::Block(block)]);
}

#[test]
fn address_released_by_a_batch_is_not_issued_by_it() {
    let mut bench = bench_on(&store(), "n1");
    for number in 0..16 {
        bench.address(&format!("pod{number}"));
    }
    let (_, del) = bench.del_event("pod3");
    let (id, add) = bench.add_event("new");
    bench.run(vec![del, add]);
    // The only free address was just given back: the request is served by a claim instead.
    assert!(matches!(&bench.replies[&id], Reply::Added(_)));
    assert_eq!(bench.blocks().len(), 2);
    bench.check();
}

#[test]
fn block_changed_by_another_writer_is_read_and_planned_again() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("a");
    bench.blind = true;
    // Another writer of this node takes the next address; the agent does not see it.
    let stored = block_on(bench.store.list(&Scope::All(Kind::Block))).unwrap().items.remove(0);
    let Record::Block(mut other) = stored.record else { panic!() };
    let next = other.cidr.address(api::Ordinal(other.unallocated[0])).unwrap();
    block::assign(&mut other, next, Some("other"), &BTreeMap::new(), None).unwrap();
    block::advance(&mut other);
    let handle = Handle { id: "other".to_owned(), blocks: [(other.cidr, 1)].into(), deleted: false };
    let writes = [Write::Create(Record::Handle(handle)), Write::Update(Record::Block(other), stored.version)];
    block_on(bench.store.commit(&[], &writes)).unwrap();
    let mine = bench.address("b");
    assert_ne!(mine, next);
    bench.check();
}

#[test]
fn commit_without_an_answer_is_read_back_and_not_repeated() {
    for fault in [Fault::LostAnswer, Fault::LostRequest] {
        let mut bench = bench_on(&store(), "n1");
        bench.address("a");
        bench.faults = [Some(fault)].into();
        bench.address("b");
        assert_eq!(bench.blocks()[0].unallocated.len(), 14, "{fault:?}");
        bench.check();
    }
}

#[test]
fn no_add_succeeds_while_the_store_is_away() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("a");
    bench.faults = [Some(Fault::Unavailable)].into();
    let error = refusal(bench.add("b"));
    assert_eq!(error.code, TRY_AGAIN);
    bench.faults = [Some(Fault::LostRequest)].into();
    bench.mute = true;
    assert_eq!(refusal(bench.add("c")).code, TRY_AGAIN);
    bench.mute = false;
    bench.address("c");
    assert_eq!(bench.agent.waiting(), 0);
    bench.check();
}

#[test]
fn one_handle_that_is_there_already_does_not_fail_the_batch() {
    let store = store();
    let mut bench = bench_on(&store, "n1");
    bench.address("warm");
    // A crash left this handle behind: it counts an address that no block has.
    let cidr = bench.blocks()[0].cidr;
    put(
        &store,
        Record::Handle(Handle { id: "net.b".to_owned(), blocks: [(cidr, 3)].into(), deleted: false }),
    );
    let events = ["a", "b", "c"].map(|name| bench.add_event(name).1);
    bench.run(events.into());
    assert!(bench.replies.values().all(|reply| matches!(reply, Reply::Added(_))), "{:?}", bench.replies);
    bench.check();
}

#[test]
fn requests_wait_for_the_first_sight_of_the_store_and_not_for_ever() {
    let store = store();
    let mut bench = bench_on(&store, "n1");
    bench.agent = Agent::new("n1");
    let (id, event) = bench.add_event("a");
    assert_eq!(bench.agent.step(bench.now, event), []);
    assert!(bench.agent.next_deadline().is_some());
    bench.now = bench.now.checked_add(PATIENCE).unwrap();
    let effects = bench.agent.step(bench.now, Event::Tick);
    let answered = effects.iter().any(|effect| {
        matches!(effect, Effect::Reply { request, reply: Reply::Failed(error) } if request.0 == id && error.code == TRY_AGAIN)
    });
    assert!(answered, "{effects:?}");
}

#[test]
fn locked_datastore_is_not_written_until_it_is_unlocked() {
    let store = store();
    let mut bench = bench_on(&store, "n1");
    let lock = |ready| {
        let cluster = ClusterInformation { datastore_ready: ready, ..ClusterInformation::default() };
        put(&store, Record::ClusterInformation(cluster));
    };
    lock(false);
    bench.run(Vec::new());
    let error = refusal(bench.add("a"));
    assert_eq!(error.code, TRY_AGAIN);
    assert!(error.message.contains("datastoreReady"), "{}", error.message);
    assert_eq!(refusal(bench.del("a")).code, TRY_AGAIN);
    assert_eq!(bench.commits.len(), 0);
    lock(true);
    bench.run(Vec::new());
    bench.address("a");
}

#[test]
fn block_that_contradicts_itself_is_left_alone_and_another_one_is_claimed() {
    let store = store();
    let mut bench = bench_on(&store, "n1");
    let first = bench.address("a");
    let mut broken = bench.blocks().remove(0);
    // An editor freed an address in one list and not in the other.
    broken.unallocated.push(0);
    broken.unallocated.push(0);
    put(&store, Record::Block(broken.clone()));
    bench.run(Vec::new());
    let second = bench.address("b");
    assert!(broken.cidr.contains(first) && !broken.cidr.contains(second));
    let error = refusal(bench.del("a"));
    assert!(error.message.contains(&broken.cidr.to_string()), "{}", error.message);
    assert!(bench.blocks().contains(&broken));
}
