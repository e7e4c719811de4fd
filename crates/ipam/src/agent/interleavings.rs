//! Seeded interleavings of three agents over one store: every write a step of its own, watches late, answers lost, agents
//! killed. After each step nobody holds another's address; in the end everything can be given back.

use super::*;
use crate::block;
use api::attachment::{AddRequest, Attachment};
use api::{AffinityNaming, Block, Node, Pool};
use datastore::follow::follow;
use datastore::memory::Memory;
use datastore::{Datastore, Record};
use futures::executor::block_on;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Marsaglia's xorshift: all that is wanted of it is the same sequence for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit).unwrap()).unwrap()
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

/// Something that an agent asked of the store and that is not answered yet.
enum Work {
    /// A commit as a Kubernetes API makes it: write after write, then the checks once more.
    Commit {
        ticket: Ticket,
        checks: Vec<Check>,
        writes: Vec<Write>,
        done: Vec<(Version, Option<Stored>)>,
        /// The checks held again; these are left to be brought to their last state.
        confirming: Option<Vec<(usize, Record)>>,
    },
    Read(Ticket, Key),
    List(Ticket, Scope),
    Deliver(Event),
}

struct Host {
    node: &'static str,
    agent: Agent,
    feeds: Vec<(Kind, BoxStream<'static, Change>)>,
    work: Vec<Work>,
    /// Container of each request that is not answered.
    asked: BTreeMap<RequestId, (String, bool)>,
}

struct World {
    store: Memory,
    hosts: Vec<Host>,
    random: Random,
    now: Timestamp,
    /// Addresses that containers were told they have.
    live: BTreeMap<String, IpAddr>,
    faults: bool,
    requests: u64,
    seen: BTreeMap<&'static str, u32>,
}

fn host(store: &Memory, node: &'static str) -> Host {
    let agent = Agent::new(node);
    let feeds = agent.scopes().map(|scope| (scope.kind(), follow(store.clone(), scope))).into();
    Host { node, agent, feeds, work: Vec::new(), asked: BTreeMap::new() }
}

fn blocks(store: &Memory) -> Vec<Block> {
    let items = block_on(store.list(&Scope::All(Kind::Block))).unwrap().items;
    let block = |stored: Stored| match stored.record {
        Record::Block(block) => Some(block),
        _ => None,
    };
    items.into_iter().filter_map(block).collect()
}

fn handles(store: &Memory) -> BTreeMap<String, Handle> {
    let items = block_on(store.list(&Scope::All(Kind::Handle))).unwrap().items;
    let handle = |stored: Stored| match stored.record {
        Record::Handle(handle) => Some((handle.id.clone(), handle)),
        _ => None,
    };
    items.into_iter().filter_map(handle).collect()
}

impl World {
    fn new(seed: u64) -> Self {
        let store = Memory::new().with_naming(AffinityNaming::PerBlock);
        let mut pool = Pool::with_defaults("pool", "10.0.0.0/27".parse().unwrap());
        pool.block_size = 29;
        let nodes = NODES.map(|name| Record::Node(Node { name: name.to_owned(), ..Node::default() }));
        for record in nodes.into_iter().chain([Record::Pool(pool)]) {
            block_on(store.commit(&[], &[Write::Create(record)])).unwrap();
        }
        Self {
            hosts: NODES.iter().map(|node| host(&store, node)).collect(),
            store,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: "2026-09-23T04:00:00Z".parse().unwrap(),
            live: BTreeMap::new(),
            faults: true,
            requests: 0,
            seen: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn step(&mut self) {
        let at = self.random.below(self.hosts.len());
        self.now = self.now.checked_add(SignedDuration::from_millis(1)).unwrap();
        match self.random.below(100) {
            0 if self.faults && self.random.one_in(3) => {
                self.count("kill");
                self.hosts[at] = host(&self.store, self.hosts[at].node);
            }
            0..30 => self.feed(at),
            30..45 if self.faults => self.ask(at),
            _ => self.work(at),
        }
    }

    fn feed(&mut self, at: usize) {
        let feed = self.random.below(self.hosts[at].feeds.len());
        let (kind, stream) = &mut self.hosts[at].feeds[feed];
        let kind = *kind;
        if let Some(Some(change)) = stream.next().now_or_never() {
            self.tell(at, Event::Changed(kind, change));
        }
    }

    /// A runtime asks for one container at a time: ADD, ADD again, or DEL.
    fn ask(&mut self, at: usize) {
        let container = format!("{}-{}", self.hosts[at].node, self.random.below(14));
        if self.hosts[at].asked.values().any(|(asked, _)| *asked == container) {
            return;
        }
        let adds = !self.random.one_in(3);
        self.request(at, &container, adds);
    }

    fn request(&mut self, at: usize, container: &str, adds: bool) {
        self.requests += 1;
        let id = RequestId(self.requests);
        self.hosts[at].asked.insert(id, (container.to_owned(), adds));
        let event = if adds {
            let (network, interface) = ("net".to_owned(), "eth0".to_owned());
            let request = AddRequest {
                attachment: Attachment { network, container: container.to_owned(), interface },
                ipv4: 1,
                ipv6: 0,
                ipv4_pools: Vec::new(),
                ipv6_pools: Vec::new(),
                requested: None,
                attributes: BTreeMap::new(),
                namespace: None,
            };
            Event::Add(id, Demand::pod(&request, self.hosts[at].node, self.now).unwrap())
        } else {
            self.live.remove(container);
            let (handle, interface) = (format!("net.{container}"), Some("eth0".to_owned()));
            Event::Del(id, Surrender { handle, interface, legacy_handle: None })
        };
        self.tell(at, event);
    }

    fn tell(&mut self, at: usize, event: Event) {
        let effects = self.hosts[at].agent.step(self.now, event);
        for effect in effects {
            match effect {
                Effect::Commit { ticket, checks, writes } => {
                    self.hosts[at].work.push(Work::Commit {
                        ticket,
                        checks,
                        writes,
                        done: Vec::new(),
                        confirming: None,
                    });
                }
                Effect::Read { ticket, key } => self.hosts[at].work.push(Work::Read(ticket, key)),
                Effect::List { ticket, scope } => self.hosts[at].work.push(Work::List(ticket, scope)),
                Effect::Reply { request, reply } => self.answered(at, request, reply),
                Effect::Note(note) => match note {
                    Note::Assigned { borrowed: true, .. } => self.count("borrowed"),
                    Note::LostRace { .. } => self.count("lost race"),
                    Note::Conflict { .. } => self.count("conflict"),
                    Note::Unanswered { .. } => self.count("unanswered"),
                    _ => {}
                },
            }
        }
    }

    fn answered(&mut self, at: usize, request: RequestId, reply: Reply) {
        let (container, adds) = self.hosts[at].asked.remove(&request).unwrap();
        let held: Vec<IpAddr> = blocks(&self.store)
            .iter()
            .flat_map(|found| {
                let held = block::held_by(found, &format!("net.{container}"));
                held.filter_map(|ordinal| found.cidr.address(ordinal)).collect::<Vec<_>>()
            })
            .collect();
        match reply {
            Reply::Added(taken) => {
                assert!(adds);
                self.count("added");
                let address = taken[0].address;
                assert_eq!(held, [address], "{container} was told {address}");
                if let Some(before) = self.live.insert(container, address) {
                    assert_eq!(before, address, "an ADD repeated got another address");
                }
            }
            Reply::Deleted => {
                assert!(!adds);
                self.count("deleted");
                assert_eq!(held, [] as [IpAddr; 0], "{container} was deleted");
            }
            Reply::Failed(error) => {
                self.count(if error.code == TRY_AGAIN { "try again" } else { "refused" });
            }
        }
    }

    fn work(&mut self, at: usize) {
        if self.hosts[at].work.is_empty() {
            return;
        }
        let pick = self.random.below(self.hosts[at].work.len());
        let work = self.hosts[at].work.swap_remove(pick);
        let fault = self.faults && self.random.one_in(25);
        let reason = || "gone".to_owned();
        let event = match work {
            Work::Deliver(event) => return self.tell(at, event),
            Work::Read(ticket, key) if fault => {
                Event::Read(ticket, Err(ReadError::Unavailable { what: key.to_string(), reason: reason() }))
            }
            Work::Read(ticket, key) => Event::Read(ticket, block_on(self.store.get(&key))),
            Work::List(ticket, scope) => Event::Listed(ticket, block_on(self.store.list(&scope))),
            Work::Commit { ticket, checks, writes, mut done, mut confirming } => {
                if done.len() == writes.len() && confirming.is_none() {
                    match self.checked(&checks, &writes, &done) {
                        Err(error) => {
                            let event = Event::Committed(ticket, Err(error));
                            return self.hosts[at].work.push(Work::Deliver(event));
                        }
                        Ok(()) => confirming = Some(passing(&writes)),
                    }
                }
                let place = confirming.as_mut().map(Vec::pop);
                let (place, write) = match place {
                    Some(None) => {
                        let versions = done.into_iter().map(|(version, _)| version).collect();
                        let event = Event::Committed(ticket, Ok(versions));
                        return self.hosts[at].work.push(Work::Deliver(event));
                    }
                    Some(Some((place, last))) => (Some(place), Write::Update(last, done[place].0.clone())),
                    None => (None, first(&writes[done.len()])),
                };
                let key = write.key();
                let happens = !fault || self.random.one_in(2);
                let before = block_on(self.store.get(&key)).unwrap();
                let result =
                    if happens { block_on(self.store.commit(&[], &[write])) } else { Ok(Vec::new()) };
                match result {
                    Err(CommitError::Conflict { key, .. }) => {
                        let written = done.len();
                        Event::Committed(ticket, Err(CommitError::Conflict { key, written }))
                    }
                    Err(other) => panic!("{other:?}"),
                    Ok(_) if fault && !happens && done.is_empty() && self.random.one_in(2) => {
                        Event::Committed(ticket, Err(CommitError::Unavailable { key, reason: reason() }))
                    }
                    Ok(_) if fault => {
                        Event::Committed(ticket, Err(CommitError::Unknown { key, reason: reason() }))
                    }
                    Ok(mut versions) => {
                        match place {
                            Some(place) => done[place].0 = versions.remove(0),
                            None => done.push((versions.remove(0), before)),
                        }
                        self.hosts[at].work.push(Work::Commit { ticket, checks, writes, done, confirming });
                        return;
                    }
                }
            }
        };
        self.hosts[at].work.push(Work::Deliver(event));
    }

    /// The end of a commit: what it depended on is looked at again, and its writes undone where that changed.
    fn checked(
        &mut self,
        checks: &[Check],
        writes: &[Write],
        done: &[(Version, Option<Stored>)],
    ) -> Result<(), CommitError> {
        for check in checks {
            let (Check::Unchanged(key, _) | Check::Absent(key)) = check;
            let found = block_on(self.store.get(key)).unwrap().map(|stored| stored.version.revision);
            let holds = match check {
                Check::Unchanged(_, revision) => found == Some(*revision),
                Check::Absent(_) => found.is_none(),
            };
            if holds {
                continue;
            }
            self.count("undone");
            let mut left = writes.len();
            for (write, (version, before)) in writes.iter().zip(done).rev() {
                let version = version.clone();
                let undo = match (first(write), before) {
                    (Write::Create(record), _) => Write::Delete(record, version),
                    (_, Some(before)) => Write::Update(before.record.clone(), version),
                    (_, None) => break,
                };
                if block_on(self.store.commit(&[], &[undo])).is_err() {
                    break;
                }
                left -= 1;
            }
            return Err(CommitError::Conflict { key: key.clone(), written: left });
        }
        Ok(())
    }

    /// What holds after every step.
    fn check(&self) {
        let (blocks, handles) = (blocks(&self.store), handles(&self.store));
        let mut holders: BTreeMap<IpAddr, String> = BTreeMap::new();
        for (at, found) in blocks.iter().enumerate() {
            assert_eq!(block::fault(found), None);
            assert!(blocks[at + 1..].iter().all(|other| !other.cidr.overlaps(found.cidr)), "overlap");
            for (ordinal, attribute) in block::allocated(found) {
                let handle = attribute.handle_id.clone().unwrap();
                let counted = handles.get(&handle).and_then(|handle| handle.blocks.get(&found.cidr));
                let count = block::count_of(found, &handle);
                assert!(counted.is_some_and(|counted| *counted >= count), "{handle} counts too little");
                holders.insert(found.cidr.address(ordinal).unwrap(), handle);
            }
        }
        let mut given = BTreeSet::new();
        for (container, address) in &self.live {
            assert!(given.insert(*address), "{address} has two owners");
            assert_eq!(holders.get(address), Some(&format!("net.{container}")), "{address} of {container}");
        }
    }

    /// No more faults: everything in flight ends.
    fn settle(&mut self) {
        self.faults = false;
        for _ in 0..200 {
            for at in 0..self.hosts.len() {
                for _ in 0..6 {
                    self.feed(at);
                }
                for _ in 0..20 {
                    self.work(at);
                }
            }
        }
        for at in 0..self.hosts.len() {
            while let Some(work) = self.hosts[at].work.pop() {
                self.hosts[at].work.push(work);
                self.work(at);
                self.feed(at);
            }
            assert_eq!(self.hosts[at].agent.waiting(), 0, "{}", self.hosts[at].node);
        }
    }
}

/// A write as it is made in its turn.
fn first(write: &Write) -> Write {
    match write {
        Write::Pass { passing, seen: None, .. } => Write::Create((**passing).clone()),
        Write::Pass { passing, seen: Some(version), .. } => {
            Write::Update((**passing).clone(), version.clone())
        }
        write => write.clone(),
    }
}

/// What passes through a state, and where it ends.
fn passing(writes: &[Write]) -> Vec<(usize, Record)> {
    let last = writes.iter().enumerate().filter_map(|(place, write)| match write {
        Write::Pass { last, .. } => Some((place, last.clone())),
        _ => None,
    });
    last.collect()
}

fn run(seed: u64, steps: usize) -> BTreeMap<&'static str, u32> {
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.step();
        world.check();
    }
    world.settle();
    world.check();
    for (at, node) in NODES.iter().enumerate() {
        for number in 0..14 {
            world.request(at, &format!("{node}-{number}"), false);
        }
    }
    world.settle();
    world.check();
    // What counts a block that was never made waits for the collector.
    let standing: BTreeSet<Cidr> = blocks(&world.store).iter().map(|found| found.cidr).collect();
    for handle in handles(&world.store).values() {
        assert!(handle.blocks.keys().all(|cidr| !standing.contains(cidr)), "{handle:?}");
    }
    for found in blocks(&world.store) {
        assert_eq!(found.unallocated.len(), 8, "{}", found.cidr);
    }
    world.seen
}

#[test]
fn no_interleaving_gives_an_address_twice_or_loses_one() {
    let mut seen: BTreeMap<&'static str, u32> = BTreeMap::new();
    for seed in 0..40 {
        let result = std::panic::catch_unwind(|| run(seed, 1_500));
        for (what, count) in result.unwrap_or_else(|_| panic!("seed {seed}")) {
            *seen.entry(what).or_default() += count;
        }
    }
    // What did not happen was not tested.
    for what in [
        "added",
        "deleted",
        "kill",
        "borrowed",
        "lost race",
        "conflict",
        "unanswered",
        "refused",
        "try again",
    ] {
        assert!(seen.get(what).is_some_and(|count| *count > 10), "{what}: {seen:?}");
    }
}

#[test]
fn same_seed_is_the_same_run() {
    assert_eq!(run(7, 1_000), run(7, 1_000));
}
