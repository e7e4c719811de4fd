//! Tests of the step machine, driven by hand over the store in memory.

use super::*;
use crate::block;
use api::attachment::{AddRequest, Attachment};
use api::{
    Affinity, AffinityNaming, AffinityState, Block, ClusterInformation, IpVersion, IpamConfig, Node, Owner,
    Pool,
};
use datastore::follow::follow;
use datastore::memory::Memory;
use datastore::{Datastore, Record, Revision};
use futures::executor::block_on;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

/// What happens to the next commits instead of success.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Refused without a trace.
    Unavailable,
    /// Done, but the answer is lost.
    LostAnswer,
    /// Not done, and the answer is lost.
    LostRequest,
}

struct Bench {
    store: Memory,
    agent: Agent,
    now: Timestamp,
    feeds: Vec<(Kind, BoxStream<'static, Change>)>,
    /// Changes are not seen while this is set.
    blind: bool,
    faults: VecDeque<Option<Fault>>,
    /// No read is answered while this is set.
    mute: bool,
    replies: BTreeMap<u64, Reply>,
    commits: Vec<Vec<Write>>,
    reads: Vec<Key>,
    requests: u64,
}

fn bench_on(store: &Memory, node: &str) -> Bench {
    let agent = Agent::new(node);
    let feeds = agent.scopes().map(|scope| (scope.kind(), follow(store.clone(), scope)));
    let mut bench = Bench {
        store: store.clone(),
        agent,
        now: "2026-09-23T04:00:09.5Z".parse().unwrap(),
        feeds: feeds.into(),
        blind: false,
        faults: VecDeque::new(),
        mute: false,
        replies: BTreeMap::new(),
        commits: Vec::new(),
        reads: Vec::new(),
        requests: 0,
    };
    bench.run(Vec::new());
    bench
}

/// One pool of 4 blocks of 16, nodes `n1` and `n2`.
fn store() -> Memory {
    let store = Memory::new().with_naming(AffinityNaming::PerBlock);
    let mut pool = Pool::with_defaults("pool", "10.0.0.0/26".parse().unwrap());
    pool.block_size = 28;
    put(&store, Record::Pool(pool));
    for name in ["n1", "n2"] {
        put(&store, Record::Node(Node { name: name.to_owned(), ..Node::default() }));
    }
    store
}

fn put(store: &Memory, record: Record) {
    block_on(async {
        let write = match store.get(&record.key()).await.unwrap() {
            Some(stored) => Write::Update(record, stored.version),
            None => Write::Create(record),
        };
        store.commit(&[], &[write]).await.unwrap();
    });
}

fn request(container: &str) -> AddRequest {
    let attachment = Attachment {
        network: "net".to_owned(),
        container: container.to_owned(),
        interface: "eth0".to_owned(),
    };
    AddRequest {
        attachment,
        ipv4: 1,
        ipv6: 0,
        ipv4_pools: Vec::new(),
        ipv6_pools: Vec::new(),
        requested: None,
        attributes: [("pod", container), ("namespace", "default")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        namespace: Some("default".to_owned()),
    }
}

impl Bench {
    fn add_event(&mut self, container: &str) -> (u64, Event) {
        self.requests += 1;
        let demand = Demand::pod(&request(container), &self.agent.node, self.now).unwrap();
        (self.requests, Event::Add(RequestId(self.requests), demand))
    }

    fn del_event(&mut self, container: &str) -> (u64, Event) {
        self.requests += 1;
        let surrender = Surrender {
            handle: format!("net.{container}"),
            interface: Some("eth0".to_owned()),
            legacy_handle: None,
        };
        (self.requests, Event::Del(RequestId(self.requests), surrender))
    }

    /// Performs effects, and what follows from them, until nothing is left.
    fn run(&mut self, events: Vec<Event>) {
        let mut effects: VecDeque<Effect> = self.agent.steps(self.now, events).into();
        loop {
            if !self.blind {
                for (kind, feed) in &mut self.feeds {
                    while let Some(Some(change)) = feed.next().now_or_never() {
                        effects.extend(self.agent.step(self.now, Event::Changed(*kind, change)));
                    }
                }
            }
            let Some(effect) = effects.pop_front() else { break };
            if let Some(event) = self.perform(effect) {
                effects.extend(self.agent.step(self.now, event));
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Commit { ticket, checks, writes } => {
                self.commits.push(writes.clone());
                let key = writes[0].key();
                let reason = "gone".to_owned();
                let result = match self.faults.pop_front().flatten() {
                    None => block_on(self.store.commit(&checks, &writes)),
                    Some(Fault::Unavailable) => Err(CommitError::Unavailable { key, reason }),
                    Some(Fault::LostRequest) => Err(CommitError::Unknown { key, reason }),
                    Some(Fault::LostAnswer) => {
                        block_on(self.store.commit(&checks, &writes)).unwrap();
                        Err(CommitError::Unknown { key, reason })
                    }
                };
                Some(Event::Committed(ticket, result))
            }
            Effect::Read { ticket, key } => {
                self.reads.push(key.clone());
                let result = if self.mute {
                    Err(ReadError::Unavailable { what: key.to_string(), reason: "gone".to_owned() })
                } else {
                    block_on(self.store.get(&key))
                };
                Some(Event::Read(ticket, result))
            }
            Effect::List { ticket, scope } => Some(Event::Listed(ticket, block_on(self.store.list(&scope)))),
            Effect::Reply { request, reply } => {
                assert!(self.replies.insert(request.0, reply).is_none(), "answered twice");
                None
            }
            Effect::Note(_) => None,
        }
    }

    fn add(&mut self, container: &str) -> Reply {
        let (id, event) = self.add_event(container);
        self.run(vec![event]);
        self.replies[&id].clone()
    }

    fn address(&mut self, container: &str) -> IpAddr {
        match self.add(container) {
            Reply::Added(taken) => taken[0].address,
            other => panic!("{other:?}"),
        }
    }

    fn del(&mut self, container: &str) -> Reply {
        let (id, event) = self.del_event(container);
        self.run(vec![event]);
        self.replies[&id].clone()
    }

    fn blocks(&self) -> Vec<Block> {
        block_on(self.store.list(&Scope::All(Kind::Block)))
            .unwrap()
            .items
            .into_iter()
            .filter_map(|stored| match stored.record {
                Record::Block(block) => Some(block),
                _ => None,
            })
            .collect()
    }

    fn handles(&self) -> Vec<Handle> {
        block_on(self.store.list(&Scope::All(Kind::Handle)))
            .unwrap()
            .items
            .into_iter()
            .filter_map(|stored| match stored.record {
                Record::Handle(handle) => Some(handle),
                _ => None,
            })
            .collect()
    }

    fn block_writes(&self) -> usize {
        self.commits.iter().flatten().filter(|write| matches!(write.key(), Key::Block(_))).count()
    }

    /// Invariants 1 to 5 of the architecture, over what the store holds.
    fn check(&self) {
        let blocks = self.blocks();
        let mut counts: BTreeMap<(String, Cidr), u32> = BTreeMap::new();
        for (at, found) in blocks.iter().enumerate() {
            assert_eq!(block::fault(found), None);
            assert!(blocks[at + 1..].iter().all(|other| !other.cidr.overlaps(found.cidr)));
            for (_, attribute) in block::allocated(found) {
                let handle = attribute.handle_id.clone().unwrap();
                *counts.entry((handle, found.cidr)).or_default() += 1;
            }
        }
        let handles = self.handles();
        for ((id, cidr), count) in &counts {
            let handle = handles.iter().find(|handle| handle.id == *id).unwrap();
            assert_eq!(handle.blocks.get(cidr), Some(count), "{id}");
        }
        assert_eq!(handles.iter().map(|handle| handle.blocks.len()).sum::<usize>(), counts.len());
    }
}

fn refusal(reply: Reply) -> ErrorReply {
    match reply {
        Reply::Failed(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn first_add_claims_a_block_and_the_next_one_is_one_commit() {
    let mut bench = bench_on(&store(), "n1");
    let first = bench.address("a");
    assert_eq!(bench.commits.len(), 3, "pending, block, confirmed");
    let second = bench.address("b");
    assert_ne!(first, second);
    assert_eq!(bench.commits.len(), 4);
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
    assert_eq!(bench.commits.len(), 6);
    bench.check();
}

#[test]
fn add_again_answers_the_same_address_and_writes_nothing() {
    let mut bench = bench_on(&store(), "n1");
    let first = bench.address("a");
    let written = bench.commits.len();
    assert_eq!(bench.address("a"), first);
    assert_eq!(bench.commits.len(), written);
    // So does a new agent, which knows nothing but the store.
    let mut after = bench_on(&bench.store.clone(), "n1");
    assert_eq!(after.address("a"), first);
    assert!(after.commits.is_empty());
}

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
    for attribute in &mut edited.attributes {
        std::sync::Arc::make_mut(attribute).released_at = Some(bench.now);
    }
    put(&store, Record::Block(edited));
    bench.run(Vec::new());
    assert_ne!(bench.address("a"), first);
    assert_eq!(bench.del("a"), Reply::Deleted);
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
fn cold_claim_survives_a_lost_answer_at_each_of_its_commits() {
    for fault in [Fault::LostAnswer, Fault::LostRequest, Fault::Unavailable] {
        for at in 0..3 {
            let mut bench = bench_on(&store(), "n1");
            bench.faults = (0..3).map(|step| (step == at).then_some(fault)).collect();
            let first = bench.add("a");
            bench.faults.clear();
            let second = bench.address("a");
            if let Reply::Added(taken) = first {
                assert_eq!(taken[0].address, second);
            }
            assert_eq!(bench.blocks().len(), 1, "{fault:?} at {at}");
            assert_eq!(bench.blocks()[0].unallocated.len(), 15, "{fault:?} at {at}");
            bench.check();
        }
    }
}

#[test]
fn agent_killed_between_the_commits_of_a_claim_goes_on_where_it_was() {
    for writes in 0..3 {
        let store = store();
        let mut bench = bench_on(&store, "n1");
        let (_, event) = bench.add_event("a");
        let mut effects: VecDeque<Effect> = bench.agent.step(bench.now, event).into();
        for _ in 0..writes {
            let event = bench.perform(effects.pop_front().unwrap()).unwrap();
            effects.extend(bench.agent.step(bench.now, event));
        }
        let mut after = bench_on(&store, "n1");
        after.address("a");
        assert_eq!(after.blocks().len(), 1);
        assert_eq!(after.blocks()[0].unallocated.len(), 15);
        after.check();
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
fn lost_race_for_a_block_takes_the_next_one() {
    let store = store();
    let mut slow = bench_on(&store, "n1");
    slow.blind = true;
    // The other node gets the very block that n1 will try first.
    let wanted =
        slow.agent.candidate(slow.agent.view.pool("pool").map(|seen| &seen.value).unwrap(), slow.now);
    let cidr = wanted.unwrap();
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
