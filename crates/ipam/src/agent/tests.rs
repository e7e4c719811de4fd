//! Tests of the step machine, driven by hand over the store in memory: the bench, and a file a subject.

mod absurd;
mod batches;
mod claims;
mod demands;
mod late;
mod reclaims;
mod releases;

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
    accounts: BTreeMap<u64, Vec<Explain>>,
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
        accounts: BTreeMap::new(),
        commits: Vec::new(),
        reads: Vec::new(),
        requests: 0,
    };
    bench.run(Vec::new());
    bench
}

/// One pool of 4 blocks of 16, nodes `n1` and `n2`.
fn store() -> Memory {
    store_named(AffinityNaming::PerBlock)
}

fn store_named(naming: AffinityNaming) -> Memory {
    let store = Memory::new().with_naming(naming);
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
            Effect::Note(Note::Explained { request, explain }) => {
                self.accounts.entry(request.0).or_default().push(*explain);
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
            // What is counted too much is the collector's to lower.
            assert!(handle.blocks.get(cidr) >= Some(count), "{id}");
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
