//! Claims: one commit, what a crash or a conflict in their midst leaves, and how the block is chosen.

use super::*;

#[test]
fn cold_claim_survives_a_lost_answer() {
    for fault in [Fault::LostAnswer, Fault::LostRequest, Fault::Unavailable] {
        let mut bench = bench_on(&store(), "n1");
        bench.faults = [Some(fault)].into();
        let first = bench.add("a");
        bench.faults.clear();
        let second = bench.address("a");
        if let Reply::Added(taken) = first {
            assert_eq!(taken[0].address, second);
        }
        assert_eq!(bench.blocks().len(), 1, "{fault:?}");
        assert_eq!(bench.blocks()[0].unallocated.len(), 15, "{fault:?}");
        bench.check();
    }
}

/// The single writes of a commit, in the order in which a store without transactions makes them.
pub(super) fn one_by_one(store: &Memory, writes: &[Write], how_many: usize) {
    let first = writes.iter().map(|write| match write {
        Write::Pass { passing, seen: None, .. } => Write::Create((**passing).clone()),
        Write::Pass { passing, seen: Some(version), .. } => {
            Write::Update((**passing).clone(), version.clone())
        }
        other => other.clone(),
    });
    for write in first.take(how_many) {
        block_on(store.commit(&[], &[write])).unwrap();
    }
}

#[test]
fn agent_killed_between_the_writes_of_a_claim_goes_on_where_it_was() {
    for naming in [AffinityNaming::PerBlock, AffinityNaming::PerNode] {
        for writes in 0..=3 {
            let store = store_named(naming);
            let mut bench = bench_on(&store, "n1");
            let (_, event) = bench.add_event("a");
            let effects = bench.agent.step(bench.now, event);
            let claim = effects.iter().find_map(|effect| match effect {
                Effect::Commit { writes, .. } => Some(writes.clone()),
                _ => None,
            });
            one_by_one(&store, &claim.unwrap(), writes);
            let mut after = bench_on(&store, "n1");
            after.address("a");
            assert_eq!(after.blocks().len(), 1, "{writes} {naming:?}");
            assert_eq!(after.blocks()[0].unallocated.len(), 15, "{writes} {naming:?}");
            let claims = block_on(store.list(&Scope::AffinitiesOf(Owner::host("n1")))).unwrap().items;
            let [claim] = claims.as_slice() else { panic!("{claims:?}") };
            assert!(
                matches!(&claim.record, Record::Affinity(claim) if claim.state == AffinityState::Confirmed)
            );
            after.check();
        }
    }
}

#[test]
fn conflict_in_the_midst_of_a_claim_leaves_one_block_whatever_was_written() {
    // A store without transactions stops at the handle or at the block: the affinity is left pending.
    for stops_at in [Kind::Handle, Kind::Block] {
        let store = store();
        let mut bench = bench_on(&store, "n1");
        let (id, event) = bench.add_event("a");
        let mut effects = bench.agent.step(bench.now, event);
        let Some(Effect::Commit { ticket, writes, .. }) = effects.pop() else { panic!() };
        let written = writes.iter().position(|write| write.key().kind() == stops_at).unwrap();
        one_by_one(&store, &writes, written);
        let key = writes[written].key();
        bench.run(vec![Event::Committed(ticket, Err(CommitError::Conflict { key, written }))]);
        assert!(matches!(bench.replies[&id], Reply::Added(_)), "{:?}", bench.replies);
        assert_eq!(bench.blocks().len(), 1, "{stops_at}");
        bench.check();
    }
}

#[test]
fn lost_race_for_a_block_takes_the_next_one() {
    let store = store();
    let mut slow = bench_on(&store, "n1");
    slow.blind = true;
    // The other node gets the very block that n1 will try first.
    let pool = slow.agent.view.pool("pool").unwrap().value.clone();
    let cidr = slow.agent.candidate(&pool, slow.now).unwrap();
    let affinity =
        Affinity { owner: Owner::host("n2"), cidr, state: AffinityState::Confirmed, deleted: false };
    put(&store, Record::Affinity(affinity));
    put(&store, Record::Block(block::new_block(cidr, &Owner::host("n2"), slow.now)));
    slow.address("a");
    let owners: Vec<_> =
        slow.blocks().into_iter().map(|found| (found.cidr == cidr, found.affinity)).collect();
    assert!(owners.contains(&(true, Some(Owner::host("n2")))));
    assert!(owners.contains(&(false, Some(Owner::host("n1")))));
}

#[test]
fn full_pool_is_borrowed_from_and_then_named() {
    let store = store();
    let mut one = bench_on(&store, "n1");
    for number in 0..48 {
        one.address(&format!("one{number}"));
    }
    let mut two = bench_on(&store, "n2");
    for number in 0..4 {
        two.address(&format!("two{number}"));
    }
    // Twelve addresses are left in the block of n2, none to claim.
    one.run(Vec::new());
    let borrowed = one.address("borrowed");
    assert!(
        two.blocks()
            .iter()
            .any(|found| { found.cidr.contains(borrowed) && found.affinity == Some(Owner::host("n2")) })
    );
    assert_eq!(one.address("borrowed"), borrowed);
    for number in 0..11 {
        one.address(&format!("more{number}"));
    }
    let error = refusal(one.add("late"));
    assert_eq!(error.code, NOT_SERVED);
    assert!(error.message.contains("pool pool 10.0.0.0/26"), "{}", error.message);
    assert!(error.message.contains("delete pods"), "{}", error.message);
    one.check();
    assert_eq!(one.del("borrowed"), Reply::Deleted);
    assert_eq!(one.address("late"), borrowed);
    // An agent that starts afresh finds what was borrowed through the handle.
    let mut after = bench_on(&store, "n1");
    assert_eq!(after.del("late"), Reply::Deleted);
    after.check();
}

#[test]
fn strict_affinity_and_the_block_limit_refuse_with_the_way_out() {
    let store = store();
    put(
        &store,
        Record::Config(IpamConfig { strict_affinity: true, max_blocks_per_host: 1, ..IpamConfig::default() }),
    );
    let mut bench = bench_on(&store, "n1");
    for number in 0..16 {
        bench.address(&format!("pod{number}"));
    }
    let error = refusal(bench.add("late"));
    assert!(error.message.contains("has 1 blocks and may have 1"), "{}", error.message);
    assert_eq!(bench.handles().len(), 16);
}

#[test]
fn index_older_than_the_pool_is_listed_again_before_a_claim() {
    let mut bench = bench_on(&store(), "n1");
    let Some(seen) = bench.agent.view.pool("pool").cloned() else { panic!() };
    let newer = datastore::Version { revision: Revision(1_000), ..seen.version };
    let stored = Stored { record: Record::Pool(seen.value), version: newer, created: None };
    bench.agent.step(bench.now, Event::Changed(Kind::Pool, Change::Put(stored)));
    let (_, event) = bench.add_event("a");
    let effects = bench.agent.step(bench.now, event);
    assert!(
        matches!(effects.as_slice(), [Effect::List { scope: Scope::All(Kind::Block), .. }]),
        "{effects:?}"
    );
}

#[test]
fn new_block_numbers_itself_above_the_stamps_of_its_first_addresses() {
    let mut bench = bench_on(&store(), "n1");
    let Reply::Added(taken) = bench.add("a") else { panic!() };
    assert!(taken[0].sequence < bench.blocks()[0].sequence_number);
    let Reply::Added(next) = bench.add("b") else { panic!() };
    assert!(next[0].sequence > taken[0].sequence);
}

#[test]
fn pool_made_anew_with_another_block_size_is_not_claimed_from_by_what_was_seen_before() {
    let store = store();
    let mut bench = bench_on(&store, "n1");
    bench.blind = true;
    let stored = block_on(store.get(&Key::Pool("pool".to_owned()))).unwrap().unwrap();
    let Record::Pool(pool) = stored.record else { panic!() };
    put(&store, Record::Pool(Pool { block_size: 29, ..pool }));
    bench.address("a");
    assert_eq!(bench.blocks().iter().map(|found| found.cidr.prefix()).collect::<Vec<_>>(), [29]);
    bench.check();
}

#[test]
fn claim_goes_by_reads_that_are_younger_than_what_the_watch_told_meanwhile() {
    let store = store();
    let mut bench = bench_on(&store, "n1");
    let cidr: Cidr = "10.0.0.16/28".parse().unwrap();
    // A read that found no block is answered after the watch has told of it.
    let known = bench.agent.view.known_at(&Key::Block(cidr));
    put(&store, Record::Block(block::new_block(cidr, &Owner::host("n2"), bench.now)));
    bench.run(Vec::new());
    bench.agent.view.absent(&Key::Block(cidr), known);
    assert!(bench.agent.view.index().contains_key(&cidr));
    // So is a list that was made before a delete.
    bench.agent.view.listing_begins();
    let listing = block_on(store.list(&Scope::All(Kind::Block))).unwrap();
    let stored = listing.items[0].clone();
    block_on(store.commit(&[], &[Write::Delete(stored.record, stored.version)])).unwrap();
    bench.run(Vec::new());
    bench.agent.view.replace(Kind::Block, listing);
    assert!(!bench.agent.view.index().contains_key(&cidr));
}

#[test]
fn what_is_reserved_and_configured_holds_as_it_was_understood_last() {
    let store = store();
    let reserved: Cidr = "10.0.0.0/27".parse().unwrap();
    put(&store, Record::Reservation(api::Reservation { name: "r".to_owned(), cidrs: vec![reserved] }));
    put(&store, Record::Config(IpamConfig { max_blocks_per_host: 1, ..IpamConfig::default() }));
    for listed in [false, true] {
        let mut bench = bench_on(&store, "n1");
        let keys = [(Kind::Reservation, Key::Reservation("r".to_owned())), (Kind::Config, Key::Config)];
        for (kind, key) in keys {
            let at = Revision(1_000);
            let change = if listed {
                Change::Reset(Listing { revision: at, unreadable: vec![key], ..Listing::default() })
            } else {
                Change::Unreadable(key, at)
            };
            bench.run(vec![Event::Changed(kind, change)]);
        }
        assert_eq!(bench.agent.view().config().max_blocks_per_host, 1);
        for number in 0..4 {
            let address = bench.address(&format!("pod{listed}{number}"));
            assert!(!reserved.contains(address), "{address} is reserved");
        }
    }
}

#[test]
fn block_that_turns_unreadable_under_the_watch_is_not_claimed_across() {
    let store = store();
    let cidr: Cidr = "10.0.0.0/27".parse().unwrap();
    put(&store, Record::Block(block::new_block(cidr, &Owner::host("n2"), Timestamp::UNIX_EPOCH)));
    let mut bench = bench_on(&store, "n1");
    bench.blind = true;
    let gone = Change::Unreadable(Key::Block(cidr), Revision(1_000));
    bench.run(vec![Event::Changed(Kind::Block, gone)]);
    for number in 0..32 {
        let address = bench.address(&format!("pod{number}"));
        assert!(!cidr.contains(address), "{address} of what nobody understands");
    }
    assert!(matches!(bench.add("more"), Reply::Failed(_)));
}

/// A claim of `cidr` that a node died in: its affinity pending, its block there with nothing in it.
fn begun(store: &Memory, cidr: &str, now: Timestamp) {
    let (owner, cidr) = (Owner::host("n1"), cidr.parse().unwrap());
    put(store, Record::Block(block::new_block(cidr, &owner, now)));
    put(store, Record::Affinity(Affinity { owner, cidr, state: AffinityState::Pending, deleted: false }));
}

#[test]
fn claim_begun_in_a_pool_that_is_cut_differently_now_is_given_up() {
    let store = store();
    begun(&store, "10.0.0.0/29", Timestamp::UNIX_EPOCH);
    let mut bench = bench_on(&store, "n1");
    bench.address("a");
    let [block] = &bench.blocks()[..] else { panic!("{:?}", bench.blocks()) };
    assert_eq!(block.cidr.prefix(), 28);
    let claims = block_on(store.list(&Scope::AffinitiesOf(Owner::host("n1")))).unwrap().items;
    assert_eq!(claims.len(), 1);
    bench.check();
}

#[test]
fn claim_begun_is_taken_up_only_if_the_pool_is_as_it_was_known() {
    let store = store();
    begun(&store, "10.0.0.0/28", Timestamp::UNIX_EPOCH);
    let mut bench = bench_on(&store, "n1");
    bench.blind = true;
    let mut pool = Pool::with_defaults("pool", "10.0.0.0/26".parse().unwrap());
    pool.block_size = 29;
    put(&store, Record::Pool(pool));
    bench.address("a");
    assert!(bench.blocks().iter().all(|block| block.cidr.prefix() == 29), "{:?}", bench.blocks());
    bench.check();
}
