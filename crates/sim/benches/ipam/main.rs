//! What the allocator costs, in memory and on one core: `cargo xtask bench ipam` builds and runs this and judges its figures.
//!
//! Prints one JSON object a figure: name, unit, and the value of each run. With `take` or `release` as argument it does
//! only that, a thousand times, for a profiler that counts instructions.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a figure of something broken is no figure, and printing is what it is for"
)]

mod direct;
mod node;
mod primitives;
mod scale;

use api::{Cidr, IpamConfig, Node, Pool};
use datastore::memory::Memory;
use datastore::{Datastore, Record, Write};
use futures::executor::block_on;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Runs of each figure.
const RUNS: usize = 7;

fn main() {
    match std::env::args().find(|argument| !argument.starts_with('-') && !argument.contains('/')).as_deref() {
        Some("take") => primitives::takes(),
        Some("release") => primitives::releases(),
        _ => everything(),
    }
}

fn everything() {
    // Memory first, while the process has used none for anything else.
    scale::figures();
    primitives::figures();
    node::figures();
    direct::figures();
    simulator();
}

/// What this thread has used of a processor: a busy machine changes waiting, which is not measured.
#[derive(Clone, Copy, Debug)]
struct Begin(Duration);

impl Begin {
    fn now() -> Self {
        let used = clock_gettime(ClockId::ThreadCPUTime);
        let (seconds, nanoseconds) = (u64::try_from(used.tv_sec), u32::try_from(used.tv_nsec));
        Self(Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0)))
    }

    fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

/// Prints a figure.
fn say(name: &str, unit: &str, runs: &[f64]) {
    let runs: Vec<String> = runs.iter().map(|run| format!("{run:.4}")).collect();
    println!(r#"{{"name": "{name}", "unit": "{unit}", "runs": [{}]}}"#, runs.join(", "));
}

/// Several runs of one measurement.
fn runs(mut measure: impl FnMut() -> f64) -> Vec<f64> {
    (0..RUNS).map(|_| measure()).collect()
}

/// How often a second something happened that took `took` for `times`.
fn per_second(times: u32, took: Duration) -> f64 {
    f64::from(times) / took.as_secs_f64()
}

/// A pool of this name.
fn pool(name: &str, cidr: &str, block_size: u8) -> Pool {
    let mut pool = Pool::with_defaults(name, cidr.parse::<Cidr>().unwrap());
    pool.block_size = block_size;
    pool
}

/// A store with these pools and nodes, and no limit of blocks per node that matters.
fn store(pools: &[Pool], nodes: &[&str]) -> Memory {
    let store = Memory::new();
    let config = IpamConfig { max_blocks_per_host: 1_000_000, ..IpamConfig::default() };
    let pools = pools.iter().cloned().map(Record::Pool);
    let nodes = nodes.iter().map(|name| Record::Node(Node { name: (*name).to_owned(), ..Node::default() }));
    let writes: Vec<Write> = pools.chain(nodes).chain([Record::Config(config)]).map(Write::Create).collect();
    block_on(store.commit(&[], &writes)).unwrap();
    store
}

/// Steps that the simulator makes in a second, judging each.
fn simulator() {
    let mut seed = 0;
    let rates = runs(|| {
        let (begin, mut steps) = (Begin::now(), 0);
        while begin.elapsed() < Duration::from_secs(1) {
            steps += sim::world::run(seed, false).steps;
            seed += 1;
        }
        per_second(u32::try_from(steps).unwrap(), begin.elapsed())
    });
    say("simulator", "steps/s", &rates);
}
