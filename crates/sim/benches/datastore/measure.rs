//! Rounds of raw writes, ADDs and Calico's calls over one store.

use crate::fleet::{self, NodeAgent};
use crate::processor::Used;
use crate::raw::Raw;
use crate::say;
use api::IpVersion;
use datastore::Datastore;
use futures::future::join_all;
use ipam::Clock;
use jiff::Timestamp;
use sim::peer::{Calico, Wanted};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Clients at once.
const CLIENTS: [usize; 3] = [1, 4, 16];

/// Most clients at once: so many nodes, and so many raw clients.
pub(crate) const NODES: usize = 16;

/// Rounds of each figure at most, and at least.
const ROUNDS: usize = 25;
const FEWEST_ROUNDS: usize = 3;

/// No round begins after this.
const LIMIT: Duration = Duration::from_secs(100);

/// What is measured in a round is repeated until it took this long: a disk that hesitates once must not decide.
const SPAN: Duration = Duration::from_millis(150);

/// Writes of each client in a round; a block has room for them beside the address that keeps it.
pub(crate) const EACH: u32 = 40;

/// Assignments by Calico's calls of each client in a round.
const EACH_OF_CALICO: u32 = 8;

/// Requests that wait together.
const BATCH: u32 = 32;

/// A store to be measured.
pub(crate) struct Place<D> {
    /// Its name in the figures.
    pub(crate) name: &'static str,
    /// What its raw writes are called.
    pub(crate) raw_name: &'static str,
    /// Connections for agents, and those that follow for Calico's, by the nodes that they are of.
    pub(crate) agents: Vec<(String, D)>,
    pub(crate) peers: Vec<(String, D)>,
    /// Connections for the store by itself.
    pub(crate) raw: Vec<Raw>,
    /// One agent's and one Calico's connection on which calls are counted.
    pub(crate) counted: [(String, D); 2],
    pub(crate) calls: Arc<AtomicU64>,
}

/// The machine's clock.
struct Now;

impl Clock for Now {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// What came of each round, by name of the figure.
#[derive(Default)]
struct Figures(Vec<(String, &'static str, Vec<f64>)>);

impl Figures {
    fn note(&mut self, name: String, unit: &'static str, value: f64) {
        match self.0.iter_mut().find(|(known, ..)| *known == name) {
            Some((.., values)) => values.push(value),
            None => self.0.push((name, unit, vec![value])),
        }
    }
}

fn per_second(times: usize, took: Duration) -> f64 {
    f64::from(u32::try_from(times).unwrap()) / took.as_secs_f64()
}

/// The `percent`th of a hundred, in milliseconds.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len() - 1);
    sorted[at].as_secs_f64() * 1000.0
}

/// What a round measured.
#[derive(Default)]
struct Measured {
    /// How long all of it took.
    span: Duration,
    /// How long each operation took.
    took: Vec<Duration>,
    /// Processor time.
    used: Used,
}

impl Measured {
    /// Measures one series of operations that are made at once.
    async fn series(&mut self, operations: impl Future<Output = Vec<Duration>>) {
        let (begin, before) = (Instant::now(), Used::now());
        self.took.extend(operations.await);
        self.span += begin.elapsed();
        self.used += Used::now().since(before);
    }

    fn is_enough(&self) -> bool {
        self.span >= SPAN
    }

    fn rate(&self) -> f64 {
        per_second(self.took.len(), self.span)
    }

    /// Microseconds of an operation.
    fn per_operation(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / f64::from(u32::try_from(self.took.len()).unwrap())
    }
}

/// Writes of one client each, all clients at once.
async fn raw(clients: &mut [Raw], each: u32) -> Measured {
    let mut measured = Measured::default();
    while !measured.is_enough() {
        let all = join_all(clients.iter_mut().map(|client| async move {
            let mut took = Vec::new();
            for _ in 0..each {
                let since = Instant::now();
                client.write().await;
                took.push(since.elapsed());
            }
            took
        }));
        measured.series(async { all.await.concat() }).await;
    }
    measured
}

/// ADDs one after another by `callers` callers, each of the agent at its place; everything is given back.
async fn adds(callers: &[&NodeAgent], each: u32) -> Measured {
    let mut measured = Measured::default();
    while !measured.is_enough() {
        let working = (0_u32..).zip(callers).map(|(caller, agent)| {
            let agent = (*agent).clone();
            tokio::spawn(async move {
                let mut took = Vec::new();
                for number in 0..each {
                    let since = Instant::now();
                    agent.add(caller * each + number).await;
                    took.push(since.elapsed());
                }
                took
            })
        });
        let all = join_all(working);
        measured.series(async { all.await.into_iter().flat_map(Result::unwrap).collect() }).await;
        let all = (0_u32..)
            .zip(callers)
            .flat_map(|(caller, agent)| (0..each).map(move |number| agent.del(caller * each + number)));
        join_all(all).await;
    }
    measured
}

/// Requests that wait together at one agent.
async fn batches(agent: &NodeAgent) -> f64 {
    let mut measured = Measured::default();
    while !measured.is_enough() {
        let begin = Instant::now();
        let all = join_all((0..BATCH).map(|number| async move {
            agent.add(number).await;
            begin.elapsed()
        }));
        measured.series(all).await;
        join_all((0..BATCH).map(|number| agent.del(number))).await;
    }
    measured.rate()
}

/// Assignments by Calico's calls.
async fn calico<D: Datastore>(peers: &[(String, D)], each: u32) -> Measured {
    let handle = |node: &str, number: u32| format!("{}-{node}", fleet::pod(node, number).0);
    let mut measured = Measured::default();
    while !measured.is_enough() {
        let all = join_all(peers.iter().map(|(node, store)| async move {
            let calico = Calico { store, clock: &Now };
            let mut took = Vec::new();
            for number in 0..each {
                let mut wanted = Wanted::one(node, IpVersion::V4, &handle(node, number));
                wanted.attributes = fleet::pod(node, number).1;
                let since = Instant::now();
                let answer = calico.auto_assign(&wanted).await;
                took.push(since.elapsed());
                assert_eq!(answer.addresses.len(), 1, "{answer:?}");
            }
            took
        }));
        measured.series(async { all.await.concat() }).await;
        join_all(peers.iter().map(|(node, store)| async move {
            let calico = Calico { store, clock: &Now };
            for number in 0..each {
                calico.release_by_handle(&handle(node, number)).await.unwrap();
            }
        }))
        .await;
    }
    measured
}

/// Measures one store.
pub(crate) async fn figures<D: Datastore + Clone + 'static>(mut place: Place<D>) {
    let name = place.name;
    let over = Arc::new(AtomicBool::new(false));
    let fleet = fleet::start(&place.agents, &over).await;
    // Everybody claims a block and keeps it.
    join_all(fleet.iter().map(|agent| agent.add(u32::MAX))).await;
    calico(&place.peers, 1).await;
    raw(&mut place.raw, 5).await;
    let mut figures = Figures::default();
    let mut latencies: BTreeMap<(usize, &str), Vec<Duration>> = BTreeMap::new();
    let begin = Instant::now();
    for round in 0..ROUNDS {
        if round >= FEWEST_ROUNDS && begin.elapsed() > LIMIT {
            break;
        }
        for clients in CLIENTS {
            let callers: Vec<&NodeAgent> = fleet.iter().take(clients).collect();
            let mut rates = [0.0; 3];
            // Each is the first in its turn, so that none always has what another leaves behind.
            for which in (0..3).map(|step| (round + step) % 3) {
                let measured = match which {
                    0 => raw(&mut place.raw[..clients], EACH).await,
                    1 => adds(&callers, EACH).await,
                    _ => calico(&place.peers[..clients], EACH_OF_CALICO).await,
                };
                rates[which] = measured.rate();
                let (what, by) = ([place.raw_name, "ADD", CALICO][which], clients_words(clients));
                for (whose, time) in [("clients", measured.used.clients), ("store", measured.used.store)] {
                    let name = format!("{name}: {what}, processor time of the {whose}, {by}");
                    figures.note(name, "us", measured.per_operation(time));
                }
                latencies.entry((clients, what)).or_default().extend(measured.took);
            }
            let [alone, ours, theirs] = rates;
            let by = clients_words(clients);
            figures.note(format!("{name}: {}, {by}", place.raw_name), "/s", alone);
            figures.note(format!("{name}: ADD, {by}"), "/s", ours);
            figures.note(format!("{name}: ADD by raw, {by}"), "x", ours / alone);
            figures.note(format!("{name}: {CALICO}, {by}"), "/s", theirs);
            figures.note(format!("{name}: ADD by Calico's, {by}"), "x", ours / theirs);
        }
        let alone = raw(&mut place.raw[..1], EACH).await.rate();
        let together = batches(&fleet[0]).await;
        figures.note(format!("{name}: ADD, batches of {BATCH}"), "/s", together);
        figures.note(format!("{name}: batches of {BATCH} by raw"), "x", together / alone);
        let rate = adds(&[&fleet[0]; NODES], 3).await.rate();
        figures.note(format!("{name}: ADD, {NODES} callers of one agent"), "/s", rate);
        eprintln!("{name}: round {} of {ROUNDS} after {:.0} s", round + 1, begin.elapsed().as_secs_f64());
    }
    for (name, unit, values) in &figures.0 {
        say(name, unit, values);
    }
    for ((clients, what), mut took) in latencies {
        took.sort_unstable();
        let by = clients_words(clients);
        say(&format!("{name}: {what} p50, {by}"), "ms", &[percentile(&took, 50)]);
        say(&format!("{name}: {what} p99, {by}"), "ms", &[percentile(&took, 99)]);
    }
    calls(name, &place.counted, &place.calls, &over).await;
    over.store(true, Ordering::SeqCst);
}

/// What the yardstick is called.
const CALICO: &str = "Calico's calls";

fn clients_words(clients: usize) -> String {
    format!("{clients} {}", if clients == 1 { "client" } else { "clients" })
}

/// Calls of one warm ADD and DEL, ours and Calico's.
async fn calls<D: Datastore + Clone + 'static>(
    name: &str,
    counted: &[(String, D); 2],
    calls: &AtomicU64,
    over: &Arc<AtomicBool>,
) {
    let agents = fleet::start(&counted[..1], over).await;
    let agent = &agents[0];
    agent.add(0).await;
    let peer = &counted[1..];
    calico(peer, 1).await;
    let (node, store) = &counted[1];
    let theirs = Calico { store, clock: &Now };
    let kept = Wanted::one(node, IpVersion::V4, "kept");
    assert_eq!(theirs.auto_assign(&kept).await.addresses.len(), 1);
    let mut since = calls.load(Ordering::SeqCst);
    let mut told = |what: &str| {
        let now = calls.load(Ordering::SeqCst);
        let count = u32::try_from(now - since).unwrap();
        say(&format!("{name}: calls of a warm {what}"), "calls", &[f64::from(count)]);
        since = now;
    };
    agent.add(1).await;
    told("ADD");
    agent.del(1).await;
    told("DEL");
    let answer = theirs.auto_assign(&Wanted::one(node, IpVersion::V4, "one")).await;
    assert_eq!(answer.addresses.len(), 1);
    told("ADD, Calico's");
    theirs.release_by_handle("one").await.unwrap();
    told("DEL, Calico's");
}
