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
fn add_again_answers_the_same_address_in_a_new_life_by_one_write_of_its_block() {
    let mut bench = bench_on(&store(), "n1");
    let Reply::Added(first) = bench.add("a") else { panic!() };
    let block = bench.blocks()[0].cidr;
    let written = bench.commits.len();
    let Reply::Added(again) = bench.add("a") else { panic!() };
    assert_eq!(again[0].address, first[0].address);
    assert!(again[0].sequence > first[0].sequence);
    let keys = |writes: &Vec<Write>| writes.iter().map(Write::key).collect::<Vec<_>>();
    assert_eq!(bench.commits[written..].iter().map(keys).collect::<Vec<_>>(), [[Key::Block(block)]]);
    assert_eq!(bench.reads, []);
    bench.check();
    // So does a new agent, which knows nothing but the store.
    let mut after = bench_on(&bench.store.clone(), "n1");
    let Reply::Added(once_more) = after.add("a") else { panic!() };
    assert_eq!(once_more[0].address, first[0].address);
    assert!(once_more[0].sequence > again[0].sequence);
    assert_eq!(after.commits.iter().map(keys).collect::<Vec<_>>(), [[Key::Block(block)]]);
    assert_eq!(after.reads, [Key::Handle("net.a".to_owned())]);
    after.check();
}

#[test]
fn what_was_decided_before_an_add_again_does_not_free_its_address() {
    let mut bench = bench_on(&store(), "n1");
    let Reply::Added(first) = bench.add("a") else { panic!() };
    // A collector has read the block and decided, and does it only after the ADD.
    let judged = crate::block::Release {
        address: first[0].address,
        handle: Some("net.a".to_owned()),
        sequence: Some(first[0].sequence),
    };
    assert_eq!(bench.address("a"), first[0].address);
    let clock = crate::clock::FixedClock(bench.now);
    let late = block_on(crate::release::release_addresses(&bench.store, &clock, &[judged])).unwrap();
    assert_eq!((late.released.len(), late.failed.len()), (0, 1));
    bench.check();
}

#[test]
fn late_write_of_an_agent_that_ended_does_not_free_what_its_successor_answers() {
    let mut bench = bench_on(&store(), "n1");
    let first = bench.address("a");
    let (_, del) = bench.del_event("a");
    let effects = bench.agent.step(bench.now, del);
    let late = effects.into_iter().find_map(|effect| match effect {
        Effect::Commit { checks, writes, .. } => Some((checks, writes)),
        _ => None,
    });
    let (checks, writes) = late.unwrap();
    // The agent ends before its commit arrives; nobody tells the next one.
    let mut after = bench_on(&bench.store.clone(), "n1");
    assert_eq!(after.address("a"), first);
    let arrives = block_on(after.store.commit(&checks, &writes));
    assert!(matches!(arrives, Err(CommitError::Conflict { .. })), "{arrives:?}");
    after.check();
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
fn an_add_waits_for_the_first_list_of_every_scope_that_there_is() {
    let store = store();
    let scopes = Agent::new("n1").scopes();
    for missing in &scopes {
        let mut bench = bench_on(&store, "n1");
        bench.agent = Agent::new("n1");
        let (_, event) = bench.add_event("a");
        let mut effects = bench.agent.step(bench.now, event);
        let list =
            |scope: &Scope| Event::Changed(scope.kind(), Change::Reset(block_on(store.list(scope)).unwrap()));
        for scope in scopes.iter().filter(|scope| *scope != missing) {
            effects.extend(bench.agent.step(bench.now, list(scope)));
        }
        assert_eq!(effects, [], "nothing was heard of {missing}");
        let effects = bench.agent.step(bench.now, list(missing));
        assert!(
            effects.iter().any(|effect| matches!(effect, Effect::Commit { .. })),
            "{missing}: {effects:?}"
        );
    }
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
fn claim_that_the_lock_meets_halfway_goes_on_when_it_is_lifted() {
    let store = store_named(AffinityNaming::PerNode);
    let mut bench = bench_on(&store, "n1");
    let (_, event) = bench.add_event("a");
    let effects = bench.agent.step(bench.now, event);
    let claim = effects.into_iter().find_map(|effect| match effect {
        Effect::Commit { ticket, writes, .. } => Some((ticket, writes)),
        _ => None,
    });
    let (ticket, writes) = claim.unwrap();
    // Its affinity was written, and the rest met something.
    claims::one_by_one(&store, &writes, 1);
    let cluster = |ready| {
        let cluster = ClusterInformation { datastore_ready: ready, ..ClusterInformation::default() };
        put(&store, Record::ClusterInformation(cluster));
    };
    cluster(false);
    bench.run(Vec::new());
    let refused = CommitError::Conflict { key: writes[1].key(), written: 1 };
    bench.run(vec![Event::Committed(ticket, Err(refused))]);
    assert_eq!(bench.commits.len(), 0);
    assert_eq!(bench.blocks().len(), 0);
    cluster(true);
    bench.run(Vec::new());
    bench.address("b");
    assert_eq!(bench.blocks().len(), 1);
    bench.check();
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

#[test]
fn queue_is_bounded_and_who_comes_too_late_is_told_to_try_again() {
    let mut agent = Agent::new("n1");
    let now = Timestamp::UNIX_EPOCH;
    let demand = |number: usize| Demand::pod(&request(&format!("pod{number}")), "n1", now).unwrap();
    let event = |number: usize| Event::Add(RequestId(u64::try_from(number).unwrap()), demand(number));
    assert_eq!(agent.steps(now, (0..QUEUE).map(event)), []);
    let effects = agent.step(now, event(QUEUE));
    let [Effect::Note(_), Effect::Reply { reply: Reply::Failed(error), .. }] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(error.code, TRY_AGAIN);
    assert_eq!(agent.waiting(), QUEUE);
}

#[test]
fn batch_takes_the_oldest_and_no_more_than_its_bound() {
    let store = Memory::new();
    let mut pool = Pool::with_defaults("pool", "10.0.0.0/21".parse().unwrap());
    pool.block_size = 22;
    put(&store, Record::Pool(pool));
    put(&store, Record::Node(Node { name: "n1".to_owned(), ..Node::default() }));
    let mut bench = bench_on(&store, "n1");
    bench.address("warm");
    bench.commits.clear();
    let events: Vec<Event> = (0..300).map(|number| bench.add_event(&format!("pod{number}")).1).collect();
    bench.run(events);
    let handles: Vec<usize> = bench
        .commits
        .iter()
        .map(|writes| writes.iter().filter(|write| write.key().kind() == Kind::Handle).count())
        .collect();
    assert_eq!(handles, [256, 44]);
    let first: Vec<Key> = bench.commits[0].iter().map(Write::key).collect();
    assert!(first.contains(&Key::Handle("net.pod0".to_owned())));
    assert!(!first.contains(&Key::Handle("net.pod256".to_owned())));
    bench.check();
}

#[test]
fn block_in_hand_serves_while_a_claim_is_under_way() {
    let store = store();
    let mut other = Pool::with_defaults("zother", "10.1.0.0/26".parse().unwrap());
    other.block_size = 28;
    put(&store, Record::Pool(other));
    let mut bench = bench_on(&store, "n1");
    bench.address("warm");
    let demand = Demand {
        pools: vec!["zother".to_owned()],
        ..Demand::new("net.cold", vec![IpVersion::V4], BTreeMap::new())
    };
    let claim = bench.agent.step(bench.now, Event::Add(RequestId(77), demand));
    assert!(matches!(claim.as_slice(), [Effect::Commit { .. }]), "{claim:?}");
    // Its answer does not come. The next one goes out at once.
    let (_, event) = bench.add_event("quick");
    let batch = bench.agent.step(bench.now, event);
    let [Effect::Commit { writes, .. }] = batch.as_slice() else { panic!("{batch:?}") };
    assert_eq!(
        writes.iter().map(|write| write.key().kind()).collect::<Vec<_>>(),
        [Kind::Handle, Kind::Block]
    );
}

#[test]
fn one_that_the_store_refuses_does_not_fail_the_others_of_its_batch() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("warm");
    let events = ["a", "b", "c"].map(|name| bench.add_event(name));
    let ids: Vec<u64> = events.iter().map(|(id, _)| *id).collect();
    let mut effects = bench.agent.steps(bench.now, events.map(|(_, event)| event));
    let Some(Effect::Commit { ticket, .. }) = effects.pop() else { panic!() };
    let key = Key::Handle("net.b".to_owned());
    let refused = CommitError::Refused { key, reason: "no such name".to_owned(), written: 0 };
    bench.run(vec![Event::Committed(ticket, Err(refused))]);
    assert_eq!(refusal(bench.replies[&ids[1]].clone()).code, NOT_SERVED);
    assert!(matches!(bench.replies[&ids[0]], Reply::Added(_)));
    assert!(matches!(bench.replies[&ids[2]], Reply::Added(_)));
    bench.check();
}

#[test]
fn address_that_was_taken_away_meanwhile_is_not_answered_again() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("a");
    bench.blind = true;
    // A collector releases it, and the agent's watch is late.
    let mut collector = bench_on(&bench.store.clone(), "n1");
    assert_eq!(collector.del("a"), Reply::Deleted);
    let again = bench.address("a");
    let blocks = bench.blocks();
    let held: Vec<_> = block::held_by(&blocks[0], "net.a").collect();
    assert_eq!(held.iter().filter_map(|at| blocks[0].cidr.address(*at)).collect::<Vec<_>>(), [again]);
    bench.check();
}

#[test]
fn address_that_is_held_is_not_answered_while_the_store_is_away() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("a");
    bench.faults.push_back(Some(Fault::Unavailable));
    assert_eq!(refusal(bench.add("a")).code, TRY_AGAIN);
    let gone = ReadError::Unavailable { what: "blocks".to_owned(), reason: "gone".to_owned() };
    bench.run(vec![Event::Changed(Kind::Block, Change::Lost(gone))]);
    assert_eq!(refusal(bench.add("a")).code, TRY_AGAIN);
    bench.run(vec![Event::Changed(Kind::Block, Change::Progress(bench.store.revision()))]);
    bench.address("a");
}

#[test]
fn handle_is_looked_at_again_when_its_write_took_long() {
    for borrows in [false, true] {
        let store = store();
        if borrows {
            // Nothing is left to claim: the address comes from the other node's block.
            let mut other = bench_on(&store, "n2");
            for number in 0..49 {
                other.address(&format!("other{number}"));
            }
        }
        let mut bench = bench_on(&store, "n1");
        let (id, event) = bench.add_event("a");
        let mut effects: VecDeque<Effect> = bench.agent.step(bench.now, event).into();
        let (ticket, result) = loop {
            match bench.perform(effects.pop_front().unwrap()) {
                Some(Event::Committed(ticket, result)) => break (ticket, result),
                Some(event) => effects.extend(bench.agent.step(bench.now, event)),
                None => {}
            }
        };
        // While the block's write was on its way a collector took the handle for an orphan.
        let key = Key::Handle("net.a".to_owned());
        let stored = block_on(store.get(&key)).unwrap().unwrap();
        block_on(store.commit(&[], &[Write::Delete(stored.record, stored.version)])).unwrap();
        bench.now = bench.now.checked_add(SignedDuration::from_secs(11)).unwrap();
        bench.run(vec![Event::Committed(ticket, result)]);
        assert!(block_on(store.get(&key)).unwrap().is_some(), "borrows: {borrows}");
        assert_eq!(refusal(bench.replies[&id].clone()).code, TRY_AGAIN, "nobody waits that long");
        bench.check();
        bench.address("a");
        bench.check();
    }
}

#[test]
fn what_cannot_be_understood_is_the_trouble_of_one_request() {
    let mut bench = bench_on(&store(), "n1");
    bench.address("warm");
    let (del, event) = bench.del_event("odd");
    let (add, other) = bench.add_event("other");
    let effects = bench.agent.step(bench.now, event);
    let Some(Effect::Read { ticket, .. }) = effects.first().cloned() else { panic!("{effects:?}") };
    let odd = ReadError::Malformed { what: "handle net.odd".to_owned(), reason: "no block".to_owned() };
    bench.run(vec![other, Event::Read(ticket, Err(odd))]);
    assert_eq!(refusal(bench.replies[&del].clone()).code, NOT_SERVED);
    assert!(matches!(bench.replies[&add], Reply::Added(_)));
}

#[test]
fn every_answer_has_its_account() {
    let mut bench = bench_on(&store(), "n1");
    let (id, event) = bench.add_event("a");
    bench.run(vec![event]);
    let [explain] = bench.accounts[&id].as_slice() else { panic!("{:?}", bench.accounts) };
    assert_eq!((explain.wanted, explain.assigned), (1, 1));
    assert_eq!(explain.pools.listed()[0].pool, "pool");
    assert_eq!(explain.blocks.listed()[0].outcome, crate::explain::BlockOutcome::Claimed);
    put(&bench.store, Record::Config(IpamConfig { auto_allocate_blocks: false, ..IpamConfig::default() }));
    let mut other = bench_on(&bench.store.clone(), "n2");
    let (id, event) = other.add_event("b");
    other.run(vec![event]);
    assert_eq!(other.accounts[&id][0].shortage, Some(crate::explain::Shortage::AutoAllocateOff));
}

#[test]
fn every_refusal_has_its_account_with_the_pools_that_were_looked_at() {
    let store = store();
    let held = bench_on(&store, "n2").address("held");
    let mut bench = bench_on(&store, "n1");
    let demand = |handle: &str| Demand::new(handle, vec![IpVersion::V4], BTreeMap::new());
    let config = |config| Some(Record::Config(config));
    let strict = IpamConfig { strict_affinity: true, ..IpamConfig::default() };
    let locked = ClusterInformation { datastore_ready: false, ..ClusterInformation::default() };
    let outside: IpAddr = "10.9.0.1".parse().unwrap();
    let windows = Some(crate::host_reserved::HostReserved::windows());
    for (what, before, demand, pools) in [
        ("no such pool", None, Demand { pools: vec!["10.9.0.0/26".to_owned()], ..demand("a") }, 1),
        ("no name of a pool", None, Demand { pools: vec!["nowhere".to_owned()], ..demand("b") }, 0),
        ("no pool of the family", None, Demand { versions: vec![IpVersion::V6], ..demand("c") }, 0),
        ("no pool for the use", None, Demand { intended_use: api::Use::LoadBalancer, ..demand("d") }, 1),
        ("in no pool", None, Demand { requested: Some(outside), ..demand("e") }, 0),
        ("taken", None, Demand { requested: Some(held), ..demand("f") }, 1),
        ("windows", None, Demand { reserved: windows, ..demand("g") }, 1),
        ("of another", config(strict), Demand { requested: Some(held), ..demand("h") }, 1),
        ("locked", Some(Record::ClusterInformation(locked)), demand("i"), 1),
    ] {
        before.into_iter().for_each(|record| put(&store, record));
        bench.run(Vec::new());
        bench.requests += 1;
        let id = bench.requests;
        bench.run(vec![Event::Add(RequestId(id), demand)]);
        let error = refusal(bench.replies[&id].clone());
        let [explain] = bench.accounts[&id].as_slice() else { panic!("{what}: {:?}", bench.accounts) };
        assert_eq!(explain.shortage, Some(crate::explain::Shortage::refused(&error.message)), "{what}");
        assert_eq!(explain.pools.total(), pools, "{what}: {explain:?}");
    }
}
