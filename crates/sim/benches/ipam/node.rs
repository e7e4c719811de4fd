//! A node's agent over the store in memory, its watches included.

use crate::scale::populate;
use crate::{Begin, per_second, pool, runs, say, store};
use api::IpVersion;
use datastore::follow::{Change, follow};
use datastore::memory::Memory;
use datastore::{Datastore, Kind};
use futures::FutureExt;
use futures::executor::block_on;
use futures::stream::{BoxStream, StreamExt};
use ipam::agent::{Agent, Demand, Effect, Event, Reply, RequestId, Surrender};
use jiff::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;

/// The agent of a node with its watches.
pub(crate) struct Bench {
    store: Memory,
    agent: Agent,
    feeds: Vec<(Kind, BoxStream<'static, Change>)>,
    now: Timestamp,
    requests: u64,
}

impl Bench {
    /// Reads everything once.
    pub(crate) fn new(store: &Memory, node: &str) -> Self {
        let agent = Agent::new(node);
        let feeds = agent.scopes().map(|scope| (scope.kind(), follow(store.clone(), scope))).into();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mut bench = Self { store: store.clone(), agent, feeds, now, requests: 0 };
        bench.run(Vec::new());
        bench
    }

    fn add(&mut self, pod: u32) -> Event {
        self.requests += 1;
        let attributes = [
            ("namespace", "shop".to_owned()),
            ("node", "n".to_owned()),
            ("pod", format!("web-{pod}")),
            ("interface", "eth0".to_owned()),
            ("timestamp", "2026-08-01 10:15:31.004512 +0000 UTC".to_owned()),
        ];
        let mut demand = Demand::vxlan_tunnel("n", Vec::new());
        demand.handle = handle(pod);
        demand.versions = vec![IpVersion::V4];
        demand.attributes = attributes.map(|(key, value)| (key.to_owned(), value)).into();
        demand.intended_use = api::Use::Workload;
        Event::Add(RequestId(self.requests), demand)
    }

    fn del(&mut self, pod: u32) -> Event {
        self.requests += 1;
        let surrender = Surrender { handle: handle(pod), interface: None, legacy_handle: None };
        Event::Del(RequestId(self.requests), surrender)
    }

    /// Performs effects, and what follows from them, until nothing is left. Every request must succeed.
    fn run(&mut self, events: Vec<Event>) {
        let mut effects: VecDeque<Effect> = self.agent.steps(self.now, events).into();
        loop {
            for (kind, feed) in &mut self.feeds {
                while let Some(Some(change)) = feed.next().now_or_never() {
                    effects.extend(self.agent.step(self.now, Event::Changed(*kind, change)));
                }
            }
            let Some(effect) = effects.pop_front() else { break };
            let event = match effect {
                Effect::Commit { ticket, checks, writes } => {
                    Event::Committed(ticket, block_on(self.store.commit(&checks, &writes)))
                }
                Effect::Read { ticket, key } => Event::Read(ticket, block_on(self.store.get(&key))),
                Effect::List { ticket, scope } => Event::Listed(ticket, block_on(self.store.list(&scope))),
                Effect::Reply { reply: Reply::Failed(error), .. } => panic!("{error:?}"),
                Effect::Reply { .. } | Effect::Note(_) => continue,
            };
            effects.extend(self.agent.step(self.now, event));
        }
    }

    /// Time for these ADDs, `at_once` at a time.
    pub(crate) fn add_all(&mut self, pods: impl IntoIterator<Item = u32>, at_once: usize) -> Duration {
        let events: Vec<Event> = pods.into_iter().map(|pod| self.add(pod)).collect();
        self.timed(&events, at_once)
    }

    pub(crate) fn del_all(&mut self, pods: impl IntoIterator<Item = u32>, at_once: usize) -> Duration {
        let events: Vec<Event> = pods.into_iter().map(|pod| self.del(pod)).collect();
        self.timed(&events, at_once)
    }

    fn timed(&mut self, events: &[Event], at_once: usize) -> Duration {
        let batches: Vec<Vec<Event>> = events.chunks(at_once).map(<[Event]>::to_vec).collect();
        let begin = Begin::now();
        for batch in batches {
            self.run(batch);
        }
        let took = begin.elapsed();
        // What the store remembers for watches is not what is measured.
        self.store.compact();
        took
    }

    /// Time of an ADD, one after the other, while `pods` addresses stay in use: an older pod goes for each new one.
    fn warm(&mut self, pods: u32, times: u32) -> f64 {
        let mut took = Duration::ZERO;
        for turn in 0..times {
            // Pods go in another order than they came, so that room is in any block.
            let pod = turn.wrapping_mul(2_654_435_761) % pods;
            self.del_all([pod], 1);
            took += self.add_all([pod], 1);
        }
        took.as_secs_f64() / f64::from(times)
    }
}

fn handle(pod: u32) -> String {
    format!("k8s-pod-network.{pod:064x}")
}

pub(crate) fn figures() {
    one_at_a_time();
    ratios();
}

fn one_at_a_time() {
    let mut bench = Bench::new(&store(&[pool("p", "10.0.0.0/16", 26)], &["n"]), "n");
    bench.add_all(0..32, 32);
    let (mut adds, mut dels, mut bursts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..crate::RUNS {
        let (mut add, mut del, mut burst) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        for _ in 0..60 {
            add += bench.add_all(100..116, 1);
            del += bench.del_all(100..116, 1);
            burst += bench.add_all(200..232, 32);
            bench.del_all(200..232, 32);
        }
        adds.push(per_second(60 * 16, add));
        dels.push(per_second(60 * 16, del));
        bursts.push(per_second(60 * 32, burst));
    }
    say("agent: warm ADD, one at a time", "1/s", &adds);
    say("agent: warm ADD, 32 at once", "1/s", &bursts);
    say("agent: warm DEL, one at a time", "1/s", &dels);
}

/// Each a ratio of two measurements that follow each other within a run.
fn ratios() {
    // 64 blocks of 64 addresses.
    let small = [pool("p", "10.0.0.0/20", 26)];
    let mut empty = Bench::new(&store(&small, &["n"]), "n");
    empty.add_all(0..40, 40);
    let mut full = Bench::new(&store(&small, &["n"]), "n");
    full.add_all(0..4055, 128);
    say("agent: ADD at 99 % full : at 1 %", "×", &runs(|| full.warm(4055, 400) / empty.warm(40, 400)));

    let two = [pool("a", "10.1.0.0/22", 26), pool("b", "10.2.0.0/16", 26)];
    let mut second = Bench::new(&store(&two, &["n"]), "n");
    // 1024 in the first pool, and some in the second.
    second.add_all(0..1064, 128);
    let mut only = Bench::new(&store(&two[1..], &["n"]), "n");
    only.add_all(0..40, 40);
    let times = runs(|| {
        let second = second.add_all(2000..2200, 1) + second.del_all(2000..2200, 1);
        let only = only.add_all(2000..2200, 1) + only.del_all(2000..2200, 1);
        second.as_secs_f64() / only.as_secs_f64()
    });
    say("agent: second pool when the first is full : only pool", "×", &times);

    // Claims, 250 of them, beside a thousand blocks of another node.
    let claims = |cidr: &str| {
        let pool = pool("p", cidr, 30);
        let store = store(std::slice::from_ref(&pool), &["n"]);
        for node in 0..1000 {
            populate(&store, node, pool.cidr.nth_block(30, u128::from(node)).unwrap(), 4);
        }
        let mut bench = Bench::new(&store, "n");
        bench.add_all(1_000_000..1_001_000, 1).as_secs_f64()
    };
    claims("10.0.0.0/16");
    say(
        "agent: claims in a pool /8 : in a pool /16",
        "×",
        &runs(|| claims("10.0.0.0/8") / claims("10.0.0.0/16")),
    );
}
